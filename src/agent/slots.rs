//! Replication slots: at the end of a turn the difference between wanted and present. The statements run in tasks beside the loop, each with a
//! deadline: no turn waits for a slot (spec/ha.md §16).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::clock;
use crate::cluster::{self, Cluster};
use crate::config::dynamic::{ClusterType, SlotKind};
use crate::ha::decision::Job;
use crate::ha::observation::{JobView, Observation, Position, Upstream};
use crate::node::PgTimestamp;
use crate::postgres::logical::{self, Readiness, Seen};
use crate::postgres::observe::Slot;
use crate::postgres::older_wal;
use crate::postgres::slots::{
    self, IgnoreSlot, LogicalSlot, PlanInputs, PresentSlot, SlotAction, SlotInputs, SlotMember,
};
use crate::postgres::sql::{Session, SqlError, Target};
use crate::postgres::{Settings, conninfo};
use crate::types::{Lsn, MemberName, PgVersion};

use super::Agent;
use super::plan::address_of;

/// How long the statements about physical slots and drops of one turn may take together.
const STATEMENTS_LIMIT: Duration = Duration::from_secs(10);
/// The same for logical slots: creating one waits for the transactions that run, moving one decodes WAL.
const LOGICAL_LIMIT: Duration = Duration::from_secs(60);

/// The work beside the loop, and what it has shown.
#[derive(Default)]
pub(super) struct Slots {
    statements: Option<JoinHandle<Option<Session>>>,
    /// Kept for the next turn's statements.
    session: Option<Session>,
    logical: Option<JoinHandle<Found>>,
    /// A task ended just before this turn.
    statements_ended: bool,
    logical_ended: bool,
    readiness: Readiness,
    /// Copies that have lost their WAL.
    broken: BTreeSet<String>,
    /// The running server: what is known of slots holds for it alone.
    server: Option<PgTimestamp>,
    missing: Vec<String>,
    /// WAL may have been fetched for a copy that nobody wants any more.
    fetched: bool,
    /// What was complained about last, so that it is said once.
    complaints: BTreeSet<String>,
}

/// What the task for logical slots has found out.
#[derive(Debug, Default)]
struct Found {
    broken: Vec<String>,
    /// What slots on the leader hold back.
    horizons: Option<BTreeMap<String, Option<u32>>>,
    feedback_is_off: bool,
}

/// What a standby does for its copies in one turn.
struct CopyWork {
    settings: Settings,
    version: PgVersion,
    behind: Vec<(String, String, Lsn)>,
    /// Where to ask for horizons, and the slot that feedback should reach; only while a copy is not ready.
    ask: Option<(conninfo::Upstream, String)>,
}

impl Slots {
    /// Logical slots of the leader that this standby should have and has not.
    pub(super) fn missing(&self) -> &[String] {
        &self.missing
    }

    /// A job is about to change what the server is: nothing else works on slots then.
    pub(super) fn make_way(&mut self, job: &Job) {
        if matches!(job, Job::CheckDivergence { .. }) {
            return;
        }
        if let Some(task) = self.statements.take() {
            task.abort();
        }
        if let Some(task) = self.logical.take() {
            task.abort();
        }
        self.session = None;
        if matches!(job, Job::Promote) {
            for slot in self
                .readiness
                .waiting()
                .chain(self.missing.iter().map(String::as_str))
            {
                tracing::warn!(
                    slot,
                    "Logical replication slot might be unsafe to use after promote"
                );
            }
        }
        self.missing.clear();
    }

    fn on_server(&mut self, started: PgTimestamp) {
        if self.server.replace(started) != Some(started) {
            self.readiness.forget();
            self.broken.clear();
            self.session = None;
            self.fetched = true;
        }
    }

    /// Says it once, and again when it has been otherwise.
    fn complain(&mut self, complaints: Vec<String>) {
        let complaints: BTreeSet<String> = complaints.into_iter().collect();
        for complaint in complaints.difference(&self.complaints) {
            tracing::error!("{complaint}");
        }
        self.complaints = complaints;
    }

    /// Takes the results of tasks that have ended. What was seen of the server before says nothing of what they did: the next turn plans anew.
    async fn collect(&mut self) -> Option<Found> {
        (self.statements_ended, self.logical_ended) = (false, false);
        if self
            .statements
            .as_ref()
            .is_some_and(JoinHandle::is_finished)
            && let Some(task) = self.statements.take()
        {
            self.session = task.await.unwrap_or_default();
            self.statements_ended = true;
        }
        if self.logical.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(task) = self.logical.take()
        {
            self.logical_ended = true;
            return task.await.ok();
        }
        None
    }
}

impl Agent {
    /// The permanent logical slots of the configuration; none in a standby cluster.
    pub(super) fn logical_slots(&self) -> BTreeMap<String, LogicalSlot> {
        if self.dynamic.standby_cluster.is_some() {
            return BTreeMap::new();
        }
        let logical = |kind: &SlotKind| match kind {
            SlotKind::Physical => None,
            SlotKind::Logical { database, plugin } => Some(LogicalSlot {
                database: database.clone(),
                plugin: plugin.clone(),
            }),
        };
        let slots = self.dynamic.slots.iter();
        slots
            .filter_map(|(name, slot)| Some((name.clone(), logical(&slot.kind)?)))
            .collect()
    }

    /// The permanent physical slots of a cluster of this type.
    fn physical_slots(&self) -> Vec<String> {
        let here = match self.dynamic.standby_cluster {
            Some(_) => ClusterType::Standby,
            None => ClusterType::Primary,
        };
        let slots = self.dynamic.slots.iter();
        slots
            .filter(|(_, slot)| matches!(slot.kind, SlotKind::Physical))
            .filter(|(_, slot)| slot.cluster_type.is_none_or(|kind| kind == here))
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn slot_members(&self, cluster: &Cluster) -> Vec<SlotMember> {
        let members = cluster.members.values();
        members
            .map(|member| {
                let tags = if member.name == self.me {
                    &self.tags
                } else {
                    &member.tags
                };
                SlotMember {
                    name: member.name.clone(),
                    replicatefrom: tags.replicatefrom.clone(),
                    nostream: tags.nostream,
                    position: member
                        .xlog_location
                        .max(self.agreement.positions.get(&member.name).copied()),
                    nofailover: tags.never_leads(),
                }
            })
            .collect()
    }

    /// Compares the slots of a running server with those it should have, and starts what the difference takes (spec/ha.md §16.2).
    pub(super) async fn keep_slots(&mut self, obs: &Observation) {
        let found = self.slots.collect().await;
        let missing_before = std::mem::take(&mut self.slots.missing);
        let word = self.pledge.word(obs.now);
        // In failsafe mode with what was last known (spec/ha.md §5.13); then nothing is dropped.
        let last = self.last_cluster.clone();
        let known = obs.cluster().or_else(|| {
            let agreed = self.agreement.until.is_some() || word.is_some();
            last.as_deref().filter(|_| agreed)
        });
        let Some(cluster) = known.filter(|cluster| cluster.config.is_some()) else {
            return;
        };
        let stale = obs.cluster().is_none();
        let Some(sample) = self.instance.sample.as_ref() else {
            return;
        };
        let (Some(present), Some(position)) = (&sample.slots, &obs.postgres.position) else {
            return;
        };
        let version = sample.version;
        let present: Vec<PresentSlot> = present
            .iter()
            .filter(|slot| !(slot.temporary || slot.failover && slot.synced))
            .map(present_slot)
            .filter(|slot| !self.is_of_citus(slot))
            .collect();
        self.slots.on_server(sample.postmaster_start_time);

        let members = self.slot_members(cluster);
        let is_leader = self.held.is_some();
        let promised = word
            .as_ref()
            .filter(|_| stale || cluster.is_unlocked())
            .filter(|_| !is_leader);
        let leader = promised
            .map(|word| &word.promise.leader)
            .or(cluster.leader.as_ref().map(|leader| &leader.name));
        let leader_member = leader.and_then(|name| cluster.members.get(name));
        let published = promised.map_or(&cluster.status.slots, |word| &word.slots);
        let inputs = SlotInputs {
            me: &self.me,
            is_leader,
            leader,
            nofailover: self.tags.never_leads(),
            members: &members,
            use_slots: self.settings.use_slots,
            retain: !self.dynamic.member_slots_ttl.is_zero(),
            retained: &cluster.status.retain_slots,
            published,
            leader_is_old: leader_member
                .and_then(cluster::agent_version)
                .is_some_and(|version| version < (4, 0, 0)),
            version,
        };
        let mut desired = slots::desired(&inputs);
        slots::add_permanent_physical(&mut desired, &inputs, &self.physical_slots());
        let configured = self.logical_slots();
        let (logical, taken) = slots::permanent_logical(&inputs, &configured);
        let mut complaints = complaints_about(&desired, &taken, &configured, version);

        let ignored: Vec<IgnoreSlot> = self.ignored_slots();
        let (writable, standby) = match position {
            Position::Primary { .. } => (true, None),
            Position::Standby { replayed, .. } => (false, Some(*replayed)),
        };
        let follows = !is_leader && standby.is_some() && leader.is_some();
        let promoting = matches!(obs.job, JobView::Running { .. });
        let actions = slots::plan(&PlanInputs {
            present: &present,
            desired: &desired.slots,
            logical: &logical,
            follows,
            creates_logical: is_leader && writable && !promoting,
            ignored: &ignored,
            paused: self.settings.pause || stale,
            may_drop_xmin: !stale && !cluster.is_unlocked() && (!is_leader || writable),
            version,
        });
        let feedback = inputs.use_slots
            && version.at_least(11)
            && !configured.is_empty()
            && slots::needs_feedback(&members, &self.me);
        self.instance.set_feedback(feedback);

        let settings = self.instance.plan().effective.settings.clone();
        if let (Some(replayed), true) = (standby, follows) {
            let mut copy = CopyWork {
                settings: settings.clone(),
                version,
                behind: Vec::new(),
                ask: None,
            };
            let feedback_slot =
                leader.map(|leader| slots::first_hop(&members, &self.me, leader).slot_name());
            let address = leader_member
                .and_then(|leader| {
                    address_of(&Upstream::Member {
                        name: leader.name.clone(),
                        conn_url: leader.conn_url.clone()?,
                    })
                })
                .zip(feedback_slot);
            let slots = &mut self.slots;
            slots.take_in(found, address.as_ref(), &present, &logical, &mut complaints);
            let copies = slots::copies(&present, &logical, published, &slots.broken, replayed);
            slots.missing = copies.missing;
            copy.behind = copies.behind;
            copy.ask = address.filter(|_| slots.readiness.waiting().next().is_some());
            slots.tend_copies(copy);
            if slots
                .missing
                .iter()
                .any(|slot| !missing_before.contains(slot))
            {
                self.wake_by(clock::now());
            }
        }
        self.slots.complain(complaints);
        if !matches!(obs.job, JobView::Running { .. }) {
            self.slots.forget_fetched(&settings);
        }
        self.slots.carry_out(settings, version, actions, published);
    }

    /// A slot that Citus made for itself, in its database.
    fn is_of_citus(&self, slot: &PresentSlot) -> bool {
        let citus = self.loaded.config.citus.as_ref();
        citus.is_some_and(|citus| {
            slot.database.as_ref() == Some(&citus.database)
                && crate::citus::is_own_slot(&slot.name, slot.plugin.as_deref())
        })
    }

    fn ignored_slots(&self) -> Vec<IgnoreSlot> {
        let configured = self.dynamic.ignore_slots.iter().map(|slot| IgnoreSlot {
            name: slot.name.clone(),
            slot_type: slot.slot_type.clone(),
            database: slot.database.clone(),
            plugin: slot.plugin.clone(),
        });
        configured.collect()
    }
}

impl Slots {
    /// What the last task has found, and which copies there are.
    fn take_in(
        &mut self,
        found: Option<Found>,
        leader: Option<&(conninfo::Upstream, String)>,
        present: &[PresentSlot],
        logical: &BTreeMap<String, LogicalSlot>,
        complaints: &mut Vec<String>,
    ) {
        let copies = present.iter().map(|slot| slot.name.as_str());
        self.readiness
            .observe(copies.filter(|name| logical.contains_key(*name)));
        let Some(found) = found else { return };
        self.broken.extend(found.broken);
        let (Some(horizons), Some((_, feedback_slot))) = (found.horizons, leader) else {
            return;
        };
        match self.readiness.look(&horizons, feedback_slot, present) {
            Seen::Ready(names) => {
                for name in names {
                    tracing::info!("Logical slot {name} is safe to be used after a failover");
                }
            }
            Seen::NoFeedback if found.feedback_is_off => complaints.push(
                "Logical slot failover requires \"hot_standby_feedback\". Please check postgresql.auto.conf"
                    .to_owned(),
            ),
            Seen::NoFeedback => {}
        }
    }

    fn forget_fetched(&mut self, settings: &Settings) {
        let of_no_use = self.fetched && self.missing.is_empty();
        self.fetched = !self.missing.is_empty();
        if of_no_use && let Err(error) = older_wal::discard(&settings.data_dir) {
            tracing::warn!("{error}");
        }
    }

    fn tend_copies(&mut self, work: CopyWork) {
        if self.logical.is_some() || (work.behind.is_empty() && work.ask.is_none()) {
            return;
        }
        self.logical = Some(tokio::task::spawn_local(async move {
            let mut found = Found::default();
            if tokio::time::timeout(LOGICAL_LIMIT, work.run(&mut found))
                .await
                .is_err()
            {
                tracing::warn!("logical slots are behind their leader's; the next turn goes on");
            }
            found
        }));
    }

    /// Runs the statements; what is not done in time is planned again.
    fn carry_out(
        &mut self,
        settings: Settings,
        version: PgVersion,
        actions: Vec<SlotAction>,
        published: &BTreeMap<String, Lsn>,
    ) {
        let (create, others): (Vec<SlotAction>, Vec<SlotAction>) = actions
            .into_iter()
            .filter(|action| !matches!(action, SlotAction::Busy { .. }))
            .partition(|action| matches!(action, SlotAction::CreateLogical { .. }));
        if self.logical.is_none() && !self.logical_ended && !create.is_empty() {
            for action in &create {
                if let SlotAction::CreateLogical { name, .. } = action
                    && let Some(lsn) = published.get(name)
                {
                    tracing::warn!(
                        slot = name,
                        "the logical slot is not on this server and is created at its present position: its consumer misses what happened after {lsn}"
                    );
                }
            }
            let settings = settings.clone();
            self.logical = Some(tokio::task::spawn_local(async move {
                let work = create_logical(&settings, create, version);
                if tokio::time::timeout(LOGICAL_LIMIT, work).await.is_err() {
                    tracing::warn!(
                        "a logical slot is not created within {} s: it waits for transactions that run; the next turn tries again",
                        LOGICAL_LIMIT.as_secs()
                    );
                }
                Found::default()
            }));
        }
        if self.statements.is_none() && !self.statements_ended && !others.is_empty() {
            let session = self.session.take().filter(|session| !session.is_closed());
            self.statements = Some(tokio::task::spawn_local(async move {
                let work = statements(&settings, session, others, version);
                tokio::time::timeout(STATEMENTS_LIMIT, work)
                    .await
                    .unwrap_or_else(|_| {
                        tracing::warn!(
                            "replication slots are not in order yet; the next turn goes on"
                        );
                        None
                    })
            }));
        }
    }
}

impl CopyWork {
    async fn run(self, found: &mut Found) {
        for (name, database, to) in &self.behind {
            match logical::advance(&self.settings, name, database, *to).await {
                Ok(()) => tracing::debug!(slot = name, %to, "moved the logical slot"),
                Err(error) if logical::is_broken(&error) => {
                    tracing::warn!(slot = name, "the logical slot is copied anew: {error}");
                    found.broken.push(name.clone());
                }
                Err(error) => {
                    tracing::warn!(slot = name, "the logical slot stays behind: {error}");
                }
            }
        }
        let Some((leader, feedback_slot)) = &self.ask else {
            return;
        };
        match logical::catalog_horizons(&self.settings, self.version, leader).await {
            Ok(horizons) => {
                let arrives = horizons.get(feedback_slot).copied().flatten().is_some();
                found.feedback_is_off =
                    !arrives && feedback_is_off(&self.settings).await.unwrap_or(false);
                found.horizons = Some(horizons);
            }
            Err(error) => tracing::debug!("cannot ask the leader about its slots: {error}"),
        }
    }
}

async fn feedback_is_off(settings: &Settings) -> Result<bool, SqlError> {
    let session = Target::local(settings)
        .named("Patroni slots")
        .connect()
        .await?;
    let rows = session.simple("SHOW hot_standby_feedback").await?;
    Ok(rows
        .first()
        .and_then(|row| row.first()?.as_deref())
        .is_some_and(|value| value == "off"))
}

async fn create_logical(settings: &Settings, actions: Vec<SlotAction>, version: PgVersion) {
    for action in &actions {
        let SlotAction::CreateLogical { name, slot } = action else {
            continue;
        };
        let target = Target::local(settings)
            .named("Patroni slots")
            .database(&slot.database)
            .statement_limit(None);
        let created = async {
            let session = target.connect().await?;
            slots::carry_out(session.client(), action, version).await?;
            Ok::<(), SqlError>(())
        };
        match created.await {
            Ok(()) => tracing::info!(slot = name, "created the permanent logical slot"),
            Err(error) => {
                tracing::warn!(
                    slot = name,
                    "the logical slot could not be created: {error}"
                );
            }
        }
    }
}

/// Carries the actions out on one session, which is kept.
async fn statements(
    settings: &Settings,
    session: Option<Session>,
    actions: Vec<SlotAction>,
    version: PgVersion,
) -> Option<Session> {
    let session = match session {
        Some(session) => session,
        None => {
            let target = Target::local(settings).named("Patroni slots");
            match target.connect().await {
                Ok(session) => session,
                Err(error) => {
                    tracing::warn!("cannot look after replication slots: {error}");
                    return None;
                }
            }
        }
    };
    for action in &actions {
        match slots::carry_out(session.client(), action, version).await {
            Ok(()) => tracing::debug!(?action, "slot"),
            Err(error) => {
                tracing::warn!(?action, "a replication slot could not be changed: {error}");
            }
        }
    }
    Some(session)
}

fn complaints_about(
    desired: &slots::DesiredSlots,
    taken: &[String],
    logical: &BTreeMap<String, LogicalSlot>,
    version: PgVersion,
) -> Vec<String> {
    let shared = desired.shared.iter().map(|(slot, names)| {
        let names: Vec<&str> = names.iter().map(MemberName::as_str).collect();
        format!(
            "Following cluster members share a replication slot name: {} map to {slot}",
            names.join(", ")
        )
    });
    let taken = taken.iter().map(|slot| {
        format!("the permanent logical replication slot {slot:?} has the name of a member's slot and is not created; give it another one in slots")
    });
    let mut complaints: Vec<String> = shared.chain(taken).collect();
    if !logical.is_empty() && !version.at_least(11) {
        complaints.push(format!(
            "Permanent logical replication slots are supported only from PostgreSQL 11 on; this is {}.{}",
            version.0 / 10_000,
            version.0 % 10_000 / 100
        ));
    }
    complaints
}

fn present_slot(slot: &Slot) -> PresentSlot {
    PresentSlot {
        name: slot.name.clone(),
        physical: slot.physical,
        plugin: slot.plugin.clone(),
        database: slot.database.clone(),
        active: slot.active,
        restart_lsn: slot.restart_lsn,
        confirmed_flush: slot.confirmed_flush_lsn,
        catalog_xmin: slot.catalog_xmin.and_then(|xid| u32::try_from(xid).ok()),
        xmin: slot.xmin.is_some() || slot.catalog_xmin.is_some(),
        lost: slot.wal_status.as_deref() == Some("lost"),
        failover: slot.failover,
    }
}
