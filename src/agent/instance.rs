//! The local PostgreSQL as the agent knows it: the plan in force, the last observation, what was written and what is pending.
//!
//! It looks and remembers; starting, stopping and the like are jobs (`work`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::cluster::{Cluster, History, HistoryEntry, PendingChange};
use crate::ha::observation::{Control, Directory, Divergence, StandbyNames, Upstream};
use crate::node::{PgTimestamp, PostgresStatus};
use crate::postgres::changes::{self, Need, SettingRow};
use crate::postgres::conninfo::Conninfo;
use crate::postgres::control::{self, ControlData};
use crate::postgres::directory::{self, Contents};
use crate::postgres::hooks::Event;
use crate::postgres::inquire;
use crate::postgres::observe::{Observer, Sample, Wants};
use crate::postgres::params::PendingRestart;
use crate::postgres::pidfile::{self, Found};
use crate::postgres::process::{self, Postmaster};
use crate::postgres::rewind;
use crate::postgres::sql::{SqlError, Target};
use crate::postgres::write;
use crate::types::{Lsn, MemberName, Moment, PgVersion, Role, SystemId, Timeline};

use super::callbacks::{Caller, Due, Known};
use super::plan::{Plan, Way, address_of};

/// A server marks what waits for a restart when its processes have read the files.
const PENDING_AFTER: Duration = Duration::from_secs(1);

/// The local PostgreSQL between two turns.
pub(super) struct Instance {
    plan: Arc<Plan>,
    /// The plan that the files (and a running server) have; `None`: not known, for example of a server found running.
    applied: Option<Arc<Plan>>,
    /// The last failure to apply one, so that it is logged once.
    apply_error: Option<String>,
    /// When the server shall be asked itself what waits for a restart: a moment after a reload.
    ask_pending_at: Option<Moment>,
    binaries: PgVersion,
    observer: Observer,
    pub(super) sample: Option<Sample>,
    pub(super) control: Option<ControlData>,
    pub(super) postmaster: Option<Postmaster>,
    /// Since when the present postmaster has been starting.
    pub(super) starting_since: Option<Moment>,
    /// The last postmaster was asked to stop; otherwise its end is a crash.
    pub(super) asked_to_stop: bool,
    /// The last postmaster ended without having been asked to.
    pub(super) crashed: bool,
    /// What a dead postmaster left behind may still be there.
    pub(super) unburied: bool,
    /// The last start did not succeed.
    pub(super) start_failed: bool,
    pub(super) divergence: Divergence,
    pub(super) follows: Option<Upstream>,
    pending: Option<BTreeMap<String, PendingChange>>,
    checkpointing: Option<Timeline>,
    pub(super) caller: Caller,
}

impl Instance {
    /// Looks at what is there before anything is touched: binaries, access, major version. Waits for access to the data directory.
    ///
    /// # Errors
    /// No usable binaries; a data directory that was made by another major.
    pub(super) async fn open(mut plan: Plan) -> anyhow::Result<Self> {
        let settings = &plan.effective.settings;
        let binaries = inquire::programs_version(settings)
            .await
            .context(
                "run postgres --version; check postgresql.bin_dir (PATRONI_POSTGRESQL_BIN_DIR)",
            )?
            .context("postgres --version prints no version; check postgresql.bin_dir")?;
        match inquire::known_names(settings).await {
            Ok(names) => plan.known_names = Some(Arc::new(names)),
            Err(error) => tracing::warn!("cannot list the settings PostgreSQL knows: {error}"),
        }
        let data_dir = &plan.effective.settings.data_dir;
        if data_dir.exists() {
            await_access(data_dir).await;
            directory::check_major(data_dir, binaries)?;
        }
        Ok(Instance {
            plan: Arc::new(plan),
            applied: None,
            apply_error: None,
            ask_pending_at: None,
            binaries,
            observer: Observer::new(),
            sample: None,
            control: None,
            postmaster: None,
            starting_since: None,
            asked_to_stop: true,
            crashed: false,
            unburied: true,
            start_failed: false,
            divergence: Divergence::Unchecked,
            follows: None,
            pending: None,
            checkpointing: None,
            caller: Caller::new(),
        })
    }

    pub(super) fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan)
    }

    /// Resolves when the known postmaster has ended; never without one.
    pub(super) fn postmaster_exit(&self) -> impl Future<Output = ()> + use<> {
        let postmaster = self.postmaster.clone();
        async move {
            match postmaster {
                Some(postmaster) => postmaster.exited().await,
                None => std::future::pending().await,
            }
        }
    }

    /// The postmaster is gone; what it said does not hold any more.
    pub(super) fn forget_postmaster(&mut self) {
        if self.postmaster.take().is_some() {
            if !self.asked_to_stop {
                self.crashed = true;
                tracing::warn!("PostgreSQL has ended without having been asked to");
            }
            self.starting_since = None;
            self.unburied = true;
        }
        self.sample = None;
        self.observer.forget();
    }

    /// Ends what a dead postmaster left behind; before that, the node is not down.
    pub(super) async fn bury(&mut self) {
        if std::mem::take(&mut self.unburied) {
            let settings = self.plan.effective.settings.clone();
            crate::postgres::stop::bury(&settings).await;
        }
    }

    /// Looks for a postmaster on the data directory; `true` if it is another one than before.
    pub(super) fn find_postmaster(&mut self) -> bool {
        if self.postmaster.as_ref().is_some_and(Postmaster::is_alive) {
            return false;
        }
        let had = self.postmaster.is_some();
        if had {
            self.forget_postmaster();
        }
        match pidfile::find(&self.plan.effective.settings) {
            Found::Postmaster(postmaster) => {
                self.postmaster = Some(postmaster);
                self.asked_to_stop = false;
                self.crashed = false;
                self.start_failed = false;
                true
            }
            Found::None | Found::Stale { .. } | Found::SingleUser(_) => had,
        }
    }

    /// One statement over the kept connection, within `limit`.
    pub(super) async fn take_sample(&mut self, limit: Duration) -> Result<(), SqlError> {
        let settings = self.plan.effective.settings.clone();
        let wants = Wants {
            slots: self.plan.effective.use_slots,
        };
        let result = tokio::time::timeout(limit, self.observer.observe(&settings, wants)).await;
        match result {
            Ok(Ok(sample)) => {
                self.adopt_standby_names(&sample);
                self.sample = Some(sample);
                Ok(())
            }
            Ok(Err(error)) => {
                self.sample = None;
                Err(error)
            }
            Err(_) => {
                self.observer.forget();
                self.sample = None;
                Err(SqlError::Timeout("query"))
            }
        }
    }

    /// After a restart of the agent: what a running server has in force stays until the core decides otherwise.
    fn adopt_standby_names(&mut self, sample: &Sample) {
        if self.plan.standby_names.is_some() {
            return;
        }
        let running = sample.synchronous_standby_names.as_str();
        let configured = self
            .plan
            .effective
            .parameters
            .get("synchronous_standby_names")
            .unwrap_or_default();
        let names = if running == configured && !self.plan.synchronous {
            StandbyNames::Configured
        } else {
            StandbyNames::Managed((!running.is_empty()).then(|| running.to_owned()))
        };
        Arc::make_mut(&mut self.plan).standby_names = Some(names);
    }

    /// Takes a decision about `synchronous_standby_names` into the plan, and into the files of a running server. Returns the value
    /// that is to be in force.
    pub(super) fn set_standby_names(&mut self, names: StandbyNames) -> anyhow::Result<String> {
        let settled = self.applied.as_ref() == Some(&self.plan);
        Arc::make_mut(&mut self.plan).standby_names = Some(names);
        let limits = self.control.as_ref().map(|control| control.limits);
        let standby = self
            .sample
            .as_ref()
            .is_some_and(|sample| sample.in_recovery);
        let way = match (&self.follows, standby) {
            // It was promoted with recovery settings; to take them away asks for a restart.
            (_, false) => Way::RunningPrimary,
            (Some(upstream), true) => Way::Standby(upstream),
            (None, true) => Way::AnyStandby,
        };
        let layout = self.plan.layout(self.version(), &way, limits);
        let value = layout
            .wanted
            .parameters
            .get("synchronous_standby_names")
            .unwrap_or_default()
            .to_owned();
        if self.sample.is_some() && self.postmaster.is_some() {
            write::write(&self.plan.effective.settings, &layout.wanted)?;
            self.reload()?;
            self.tell_reloaded(standby);
            if settled {
                self.applied = Some(Arc::clone(&self.plan));
            }
        }
        Ok(value)
    }

    /// Closes the kept connection: it must not be what a fast stop waits for.
    pub(super) fn disconnect(&mut self) {
        self.observer.forget();
        self.sample = None;
    }

    /// What the data directory is.
    pub(super) async fn directory(&mut self) -> Directory {
        let settings = &self.plan.effective.settings;
        match directory::contents(&settings.data_dir) {
            Err(error) => {
                self.control = None;
                Directory::Inaccessible(error.to_string())
            }
            Ok(Contents::Empty | Contents::Incomplete(_)) => {
                self.control = None;
                Directory::Empty
            }
            Ok(Contents::Unrecognised) => {
                self.control = None;
                Directory::Present {
                    system_id: None,
                    control: None,
                }
            }
            Ok(Contents::Cluster(_)) => {
                match control::read(settings).await {
                    Ok(control) => self.control = Some(control),
                    Err(error) => {
                        tracing::debug!("{error}");
                        self.control = None;
                    }
                }
                let backup_label = settings.data_dir.join("backup_label").exists();
                Directory::Present {
                    system_id: self
                        .control
                        .as_ref()
                        .map(|control| control.system_id.clone()),
                    control: self.control.as_ref().map(|control| Control {
                        state: control.state,
                        timeline: control.timeline,
                        checkpoint: control.checkpoint,
                        backup_label,
                    }),
                }
            }
        }
    }

    pub(super) fn standby_configured(&self) -> bool {
        let in_data = |name: &str| self.plan.effective.settings.data_dir.join(name).exists();
        in_data("standby.signal") || in_data("recovery.signal") || in_data("recovery.conf")
    }

    /// Whom the running WAL receiver follows, when this agent has not set it itself (it was restarted).
    pub(super) fn derive_upstream(&mut self, cluster: Option<&Cluster>) {
        if self.follows.is_some() {
            return;
        }
        let Some(receiver) = self
            .sample
            .as_ref()
            .and_then(|sample| sample.receiver.as_ref())
        else {
            return;
        };
        let Ok(conninfo) = Conninfo::parse(&receiver.conninfo) else {
            return;
        };
        let (host, port) = (
            conninfo.get("host").unwrap_or_default(),
            conninfo.get("port").unwrap_or("5432"),
        );
        let of = cluster.and_then(|cluster| {
            cluster.members.values().find_map(|member| {
                let conn_url = member.conn_url.clone()?;
                let upstream = Upstream::Member {
                    name: member.name.clone(),
                    conn_url,
                };
                let address = address_of(&upstream)?;
                (address.host == host && (address.port == port || address.port.is_empty()))
                    .then_some(upstream)
            })
        });
        self.follows = of;
    }

    pub(super) fn system_id(&self) -> Option<SystemId> {
        self.control
            .as_ref()
            .map(|control| control.system_id.clone())
    }

    pub(super) fn server_version(&self) -> Option<PgVersion> {
        self.sample.as_ref().map(|sample| sample.version)
    }

    pub(super) fn postmaster_start_time(&self) -> Option<PgTimestamp> {
        self.sample
            .as_ref()
            .map(|sample| sample.postmaster_start_time)
    }

    pub(super) fn status(&self) -> Option<PostgresStatus> {
        self.sample.as_ref().map(Sample::status)
    }

    pub(super) fn pending_restart(&self) -> Option<BTreeMap<String, PendingChange>> {
        self.pending.clone()
    }

    /// Replaces the pending-restart set (a start has just computed it anew).
    pub(super) fn set_pending(&mut self, pending: PendingRestart) {
        let pending: BTreeMap<String, PendingChange> = pending
            .into_iter()
            .map(|(name, reason)| {
                (
                    name,
                    PendingChange {
                        old_value: reason.old_value,
                        new_value: reason.new_value,
                    },
                )
            })
            .collect();
        self.pending = (!pending.is_empty()).then_some(pending);
    }

    /// pg_rewind could work on this directory (checksums or wal_log_hints); unknown counts as yes.
    pub(super) fn rewindable(&self) -> bool {
        self.control.as_ref().is_none_or(ControlData::rewindable)
    }

    /// The control file has a checkpoint of the current timeline: others may use this primary as a source of pg_rewind.
    pub(super) fn checkpointed_after_promote(&self) -> bool {
        let current = self
            .sample
            .as_ref()
            .and_then(|sample| sample.primary_timeline);
        match (current, &self.control) {
            (Some(current), Some(control)) => control.timeline == current,
            (None, _) | (_, None) => true,
        }
    }

    /// Runs the checkpoint that a fresh primary owes, once per timeline, beside the loop.
    pub(super) fn checkpoint_after_promote(&mut self) {
        let Some(timeline) = self
            .sample
            .as_ref()
            .and_then(|sample| sample.primary_timeline)
        else {
            return;
        };
        if self.checkpointed_after_promote() || self.checkpointing == Some(timeline) {
            return;
        }
        self.checkpointing = Some(timeline);
        let (settings, version) = (self.plan.effective.settings.clone(), self.binaries);
        tokio::task::spawn_local(async move {
            let done = async {
                Target::local(&settings)
                    .named("Patroni heartbeat")
                    .statement_limit(None)
                    .connect()
                    .await?
                    .checkpoint(version)
                    .await
            };
            match done.await {
                Ok(()) => tracing::info!(%timeline, "the checkpoint after the promotion is done"),
                Err(error) => {
                    tracing::warn!(%timeline, "the checkpoint after the promotion failed: {error}")
                }
            }
        });
    }

    /// Positions of the slots, for the status document: what a physical one keeps, what the consumer of a logical one has confirmed.
    /// `None`: the server has not said.
    pub(super) fn slot_positions(&self) -> Option<BTreeMap<String, Lsn>> {
        let slots = self.sample.as_ref()?.slots.as_ref()?;
        let position = |slot: &crate::postgres::observe::Slot| {
            if slot.physical {
                slot.restart_lsn
            } else {
                slot.confirmed_flush_lsn
            }
        };
        let positions = slots
            .iter()
            .filter(|slot| !(slot.temporary || slot.failover && slot.synced))
            .filter_map(|slot| Some((slot.name.clone(), position(slot)?)));
        Some(positions.collect())
    }

    /// Whether this node must tell its upstream what its slots need.
    pub(super) fn set_feedback(&mut self, feedback: bool) {
        if self.plan.feedback != feedback {
            Arc::make_mut(&mut self.plan).feedback = feedback;
        }
    }

    /// The kept session, for statements of the same turn.
    pub(super) fn session(&self) -> Option<&crate::postgres::sql::Session> {
        self.observer.session()
    }

    /// `pg_wal_replay_resume()`: the server then stops itself over its too small settings, and is started with larger ones.
    pub(super) async fn resume_replay(&mut self) {
        let Some(session) = self.session() else {
            return;
        };
        match session
            .execute("SELECT pg_catalog.pg_wal_replay_resume()")
            .await
        {
            Ok(()) => {
                tracing::info!("resumed replay; PostgreSQL will restart with larger settings")
            }
            Err(error) => tracing::warn!("cannot resume replay: {error}"),
        }
    }

    /// Runs the callback that is due after this, if one is configured.
    pub(super) fn tell(&self, happened: impl FnOnce(&mut Known) -> Due) {
        self.caller.tell(&self.plan, happened);
    }

    fn tell_reloaded(&self, standby: bool) {
        let observed = if standby {
            Role::Replica
        } else {
            Role::Primary
        };
        self.tell(|known| known.reloaded(observed));
    }

    /// Points a running standby at `upstream` by rewriting its configuration and reloading; it does so as `role`.
    ///
    /// # Errors
    /// A file cannot be written, or the server not be signalled.
    pub(super) async fn follow(&mut self, upstream: &Upstream, role: Role) -> anyhow::Result<()> {
        let limits = self.control.as_ref().map(|control| control.limits);
        let layout = self
            .plan
            .layout(self.version(), &Way::Standby(upstream), limits);
        write::write(&self.plan.effective.settings, &layout.wanted)?;
        self.reload()?;
        self.tell(|known| known.followed(role, Event::OnReload, true));
        self.follows = Some(upstream.clone());
        Ok(())
    }

    fn reload(&self) -> anyhow::Result<()> {
        if let Some(postmaster) = &self.postmaster {
            process::reload(postmaster).context("signal PostgreSQL to reload")?;
        }
        Ok(())
    }

    /// The server's version if it runs, else the programs'.
    pub(super) fn version(&self) -> PgVersion {
        self.server_version().unwrap_or(self.binaries)
    }

    /// A new plan. [`Instance::settle_plan`] brings it to a running server; a job that starts one writes it anyway.
    pub(super) fn set_plan(&mut self, plan: Plan) {
        if plan == *self.plan {
            return;
        }
        if plan.effective.settings != self.plan.effective.settings {
            self.observer.forget();
        }
        self.plan = Arc::new(plan);
    }

    /// A job has written the files by this plan; `None`: it is not certain what they say.
    pub(super) fn set_applied(&mut self, plan: Option<Arc<Plan>>) {
        self.applied = plan;
    }

    /// Whether the running server has another configuration than the plan's.
    pub(super) fn is_unsettled(&self) -> bool {
        self.sample.is_some() && self.applied.as_ref() != Some(&self.plan)
    }

    /// Gives a running server what a reload can apply; the rest waits for a restart and is shown as pending. For a server found
    /// running this is the attachment (spec/postgres-management.md §3.2).
    pub(super) async fn settle_plan(&mut self, now: Moment, limit: Duration) {
        if !self.is_unsettled() {
            return;
        }
        let applied = tokio::time::timeout(limit, self.apply_running(now)).await;
        let error = match applied {
            Ok(Ok(())) => {
                self.applied = Some(Arc::clone(&self.plan));
                None
            }
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => {
                self.observer.forget();
                Some(format!(
                    "PostgreSQL does not answer within {} ms",
                    limit.as_millis()
                ))
            }
        };
        if let Some(error) = &error
            && self.apply_error.as_ref() != Some(error)
        {
            tracing::error!("the PostgreSQL configuration is not applied: {error}");
        }
        self.apply_error = error;
    }

    async fn apply_running(&mut self, now: Moment) -> anyhow::Result<()> {
        let version = self.version();
        let limits = self.control.as_ref().map(|control| control.limits);
        let standby = self
            .sample
            .as_ref()
            .is_some_and(|sample| sample.in_recovery);
        let way = match (&self.follows, standby) {
            (_, false) => Way::RunningPrimary,
            (Some(upstream), true) => Way::Standby(upstream),
            // Whom it follows is not ours to guess: its recovery settings stay.
            (None, true) => Way::AnyStandby,
        };
        let previous = self
            .applied
            .as_ref()
            .map(|old| old.layout(version, &way, limits).wanted.parameters)
            .unwrap_or_default();
        let mut layout = self.plan.layout(version, &way, limits);
        for problem in &layout.problems {
            tracing::warn!("{problem}");
        }
        let Some(session) = self.session() else {
            bail!("no connection to PostgreSQL");
        };
        let rows = setting_rows(session).await?;
        let comparison = changes::compare(&layout.wanted.parameters, &previous, &rows);
        for name in &comparison.invalid {
            tracing::warn!("Removing invalid parameter `{name}` from postgresql.parameters");
            layout.wanted.parameters.remove(name);
        }
        for change in &comparison.changes {
            let restart = if change.restart {
                " (restart might be required)"
            } else {
                ""
            };
            tracing::info!(
                "Changed {} from '{}' to '{}'{restart}",
                change.name,
                change.old_value,
                change.new_value
            );
        }
        let written = write::write(&self.plan.effective.settings, &layout.wanted)?;
        if comparison.rewrite || written.need() != Need::Nothing {
            self.reload()?;
            self.ask_pending_at = Some(now + PENDING_AFTER);
            self.tell_reloaded(standby);
        } else {
            tracing::info!("No PostgreSQL configuration items changed, nothing to reload.");
        }
        let mut pending = comparison.pending;
        pending.extend(layout.raised);
        self.set_pending(pending);
        Ok(())
    }

    /// When [`Instance::ask_pending`] is due.
    pub(super) fn ask_pending_at(&self) -> Option<Moment> {
        self.ask_pending_at
    }

    /// Adds what waits for a restart by the server's own account: it also knows settings that were changed without us.
    pub(super) async fn ask_pending(&mut self, now: Moment, limit: Duration) {
        if self.ask_pending_at.is_none_or(|at| at > now) {
            return;
        }
        let Some(session) = self.session() else {
            // A start computes it anew; a server that is only silent is asked later.
            self.ask_pending_at = self.postmaster.is_some().then_some(now + PENDING_AFTER);
            return;
        };
        let settings = &self.plan.effective.settings;
        let asking = inquire::pending_restart(session.client(), settings);
        match tokio::time::timeout(limit, asking).await {
            Ok(Ok(found)) => {
                // Recovery settings of an earlier life as a standby mean nothing to a running primary.
                let found = found
                    .into_iter()
                    .filter(|(name, _)| !crate::postgres::version_rules::is_recovery(name));
                for (name, reason) in found {
                    let change = PendingChange {
                        old_value: reason.old_value,
                        new_value: reason.new_value,
                    };
                    self.pending
                        .get_or_insert_default()
                        .entry(name)
                        .or_insert(change);
                }
            }
            Ok(Err(error)) => tracing::warn!("cannot ask what waits for a restart: {error}"),
            Err(_) => self.observer.forget(),
        }
        self.ask_pending_at = None;
    }

    /// The history document of this primary (spec/ha.md §19); `None`: the local history file is not there (yet).
    pub(super) async fn history(
        &self,
        me: &MemberName,
        cluster: &Cluster,
        keep: usize,
    ) -> Option<History> {
        let timeline = self.sample.as_ref()?.primary_timeline?;
        if timeline.0 <= 1 {
            return Some(History::default());
        }
        let wal = if self.binaries.at_least(10) {
            "pg_wal"
        } else {
            "pg_xlog"
        };
        let path = self
            .plan
            .effective
            .settings
            .data_dir
            .join(wal)
            .join(format!("{:08X}.history", timeline.0));
        let entries = read_history(&path)?;
        let modified = std::fs::metadata(&path)
            .ok()
            .and_then(|meta| meta.modified().ok());
        let written = modified.map(|time| {
            chrono::DateTime::<chrono::Local>::from(time)
                .to_rfc3339_opts(chrono::SecondsFormat::Micros, false)
        });
        let known = cluster
            .history
            .as_ref()
            .map(|history| history.entries.as_slice())
            .unwrap_or_default();
        let newest = Timeline(timeline.0 - 1);
        let mut entries: Vec<HistoryEntry> = entries
            .into_iter()
            .map(|entry| {
                let stored = known.iter().find(|stored| {
                    stored.timeline == entry.timeline && stored.lsn == entry.switch_point
                });
                let (timestamp, new_leader) = if entry.timeline == newest {
                    (written.clone(), Some(me.clone()))
                } else {
                    (
                        stored.and_then(|s| s.timestamp.clone()),
                        stored.and_then(|s| s.new_leader.clone()),
                    )
                };
                HistoryEntry {
                    timeline: entry.timeline,
                    lsn: entry.switch_point,
                    reason: entry.reason,
                    timestamp,
                    new_leader,
                }
            })
            .collect();
        if keep > 0 && entries.len() > keep {
            entries.drain(..entries.len() - keep);
        }
        Some(History { entries })
    }
}

fn read_history(path: &Path) -> Option<Vec<rewind::HistoryEntry>> {
    let text = std::fs::read_to_string(path).ok()?;
    rewind::parse_history(&text).ok()
}

async fn setting_rows(session: &crate::postgres::sql::Session) -> anyhow::Result<Vec<SettingRow>> {
    let rows = session
        .simple(
            "SELECT name, setting, unit, vartype, context, sourcefile FROM pg_catalog.pg_settings",
        )
        .await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            let mut row = row.into_iter();
            Some(SettingRow {
                name: row.next()??,
                setting: row.next()?.unwrap_or_default(),
                unit: row.next()?,
                vartype: row.next()??,
                context: row.next()??,
                sourcefile: row.next()?,
            })
        })
        .collect())
}

/// Owner and permissions of a volume are somebody else's to change, and can be changed while this node waits.
async fn await_access(data_dir: &Path) {
    let mut said = None;
    loop {
        if let Err(error) = directory::close_to_others(data_dir) {
            // Not ours, most likely; the check says it better.
            tracing::debug!("{error}");
        }
        let me = rustix::process::geteuid().as_raw();
        let Err(error) = directory::check_access(data_dir, me) else {
            return;
        };
        let line = error.to_string();
        if said.as_ref() != Some(&line) {
            tracing::error!("PostgreSQL cannot use its data directory: {line}");
            said = Some(line);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
