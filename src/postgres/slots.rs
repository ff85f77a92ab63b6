//! Replication slots: which ones a node should have, and the statements that make it so (spec/postgres-management.md §11.2 to §11.5).
//!
//! The plan is pure and safe by construction: it never drops an active slot, one that an operator told to ignore, or anything in pause.
//! How a standby comes by a logical slot is told in `logical`.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use crate::types::{Lsn, MemberName, PgVersion};

/// A member, as far as slots are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotMember {
    /// Its name; the slot's name derives from it.
    pub name: MemberName,
    /// Tag `replicatefrom`.
    pub replicatefrom: Option<MemberName>,
    /// Tag `nostream`.
    pub nostream: bool,
    /// Its own `xlog_location`.
    pub position: Option<Lsn>,
    /// Tag `nofailover`, or whatever else keeps it from leading.
    pub nofailover: bool,
}

/// All that decides which member slots this node has.
#[derive(Debug, Clone)]
pub struct SlotInputs<'a> {
    /// This node.
    pub me: &'a MemberName,
    /// This node holds the leader key.
    pub is_leader: bool,
    /// Holder of the leader key.
    pub leader: Option<&'a MemberName>,
    /// Tag `nofailover` of this node.
    pub nofailover: bool,
    /// All members of the cluster.
    pub members: &'a [SlotMember],
    /// `use_slots`.
    pub use_slots: bool,
    /// `member_slots_ttl` is above zero: slots of all members are on every node (11+), and survive their member for a while.
    pub retain: bool,
    /// `/status.retain_slots`.
    pub retained: &'a [String],
    /// `/status.slots`.
    pub published: &'a BTreeMap<String, Lsn>,
    /// The leader runs a Patroni before 4.0, which does not publish the positions of all members.
    pub leader_is_old: bool,
    /// Data directory's major.
    pub version: PgVersion,
}

/// A slot this node should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DesiredSlot {
    /// A member streams (or is about to stream) from this node with it.
    pub expected_active: bool,
    /// Where an unused copy of the slot should be.
    pub advance_to: Option<Lsn>,
}

/// Desired slots by name, and names that more than one member maps to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredSlots {
    /// By slot name.
    pub slots: BTreeMap<String, DesiredSlot>,
    /// For the log: `Following cluster members share a replication slot name`.
    pub shared: Vec<(String, Vec<MemberName>)>,
}

/// Which member slots this node should have (§11.2).
#[must_use]
pub fn desired(inputs: &SlotInputs<'_>) -> DesiredSlots {
    let mut desired = DesiredSlots::default();
    if !inputs.use_slots || inputs.version.0 < 90_400 {
        return desired;
    }
    let everywhere = inputs.retain && inputs.version.at_least(11);
    let own_slot = inputs.me.slot_name();
    let mut owners: BTreeMap<String, Vec<MemberName>> = BTreeMap::new();
    for member in inputs
        .members
        .iter()
        .filter(|m| m.name != *inputs.me && !m.nostream)
    {
        let expected_active = streams_from_me(member, inputs);
        let wanted = if everywhere {
            let replicates_from_me = member.replicatefrom.as_ref() == Some(inputs.me);
            !inputs.nofailover || replicates_from_me || expected_active
        } else {
            expected_active
        };
        let slot = member.name.slot_name();
        // Slots of the other nodes of this name would be this node's own.
        if !wanted || slot == own_slot {
            continue;
        }
        let published = inputs.published.get(&slot).copied();
        let advance_to = match &member.replicatefrom {
            None if !inputs.leader_is_old => published,
            Some(_) | None => published.max(member.position),
        };
        owners
            .entry(slot.clone())
            .or_default()
            .push(member.name.clone());
        let entry = desired.slots.entry(slot).or_default();
        entry.expected_active |= expected_active;
        entry.advance_to = entry.advance_to.max(advance_to);
    }
    if everywhere && !inputs.nofailover {
        for name in inputs.retained.iter().filter(|name| **name != own_slot) {
            let entry = desired.slots.entry(name.clone()).or_default();
            entry.advance_to = entry.advance_to.max(inputs.published.get(name).copied());
        }
    }
    desired.shared = owners
        .into_iter()
        .filter(|(_, members)| members.len() > 1)
        .collect();
    desired
}

/// Adds the permanent physical slots this node should have (§11.3): on all nodes from 11 on, below on the leader only; never on a
/// `nofailover` node, never the node's own. `names`: those of the configuration that count here (in a standby cluster without the ones for
/// the primary cluster). Those that were added must not be listed as `permanent` in the plan.
pub fn add_permanent_physical(
    desired: &mut DesiredSlots,
    inputs: &SlotInputs<'_>,
    names: &[String],
) {
    let everywhere = inputs.version.at_least(11);
    if !inputs.use_slots
        || inputs.nofailover
        || inputs.version.0 < 90_400
        || !(everywhere || inputs.is_leader)
    {
        return;
    }
    let own_slot = inputs.me.slot_name();
    for name in names.iter().filter(|name| **name != own_slot) {
        let cascades = inputs
            .members
            .iter()
            .any(|member| member.name.slot_name() == *name && member.replicatefrom.is_some());
        let entry = desired.slots.entry(name.clone()).or_default();
        entry.expected_active |= inputs.is_leader && !cascades;
        entry.advance_to = entry.advance_to.max(inputs.published.get(name).copied());
    }
}

/// A permanent logical slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalSlot {
    /// Its database.
    pub database: String,
    /// Its output plugin.
    pub plugin: String,
}

/// The members from this one up to the one that streams from the leader: by `replicatefrom`, as far as members exist. Bounded, whatever
/// the tags say.
fn upstreams<'a>(members: &'a [SlotMember], of: &'a SlotMember) -> Vec<&'a SlotMember> {
    let mut chain = vec![of];
    while let Some(from) = chain.last().and_then(|last| last.replicatefrom.as_ref())
        && let Some(next) = members.iter().find(|member| member.name == *from)
        && !chain.iter().any(|seen| seen.name == next.name)
    {
        chain.push(next);
    }
    chain
}

/// Whether this member has the permanent logical slots: it may lead, and receives WAL like everything above it.
#[must_use]
pub fn keeps_logical(members: &[SlotMember], member: &SlotMember) -> bool {
    !member.nofailover && !upstreams(members, member).iter().any(|up| up.nostream)
}

/// Whether this node must tell its upstream what it still needs (`hot_standby_feedback`): it, or one that streams through it, has logical
/// slots.
#[must_use]
pub fn needs_feedback(members: &[SlotMember], me: &MemberName) -> bool {
    members.iter().any(|member| {
        keeps_logical(members, member) && upstreams(members, member).iter().any(|up| up.name == *me)
    })
}

/// Whose physical slot on the leader keeps what this node's logical slots need: its own, or that of the first hop.
#[must_use]
pub fn first_hop<'a>(
    members: &'a [SlotMember],
    me: &'a MemberName,
    leader: &MemberName,
) -> &'a MemberName {
    let Some(member) = members.iter().find(|member| member.name == *me) else {
        return me;
    };
    let below_leader = upstreams(members, member)
        .into_iter()
        .take_while(|up| up.name != *leader);
    below_leader.last().map_or(me, |up| &up.name)
}

/// The permanent logical slots this node should have (§11.3), and those whose name a member needs for itself.
#[must_use]
pub fn permanent_logical(
    inputs: &SlotInputs<'_>,
    wanted: &BTreeMap<String, LogicalSlot>,
) -> (BTreeMap<String, LogicalSlot>, Vec<String>) {
    let me = inputs
        .members
        .iter()
        .find(|member| member.name == *inputs.me);
    let here = inputs.use_slots
        && inputs.version.at_least(11)
        && me.is_none_or(|me| keeps_logical(inputs.members, me))
        && !inputs.nofailover;
    if !here {
        return (BTreeMap::new(), Vec::new());
    }
    let mut slots = wanted.clone();
    let taken: Vec<String> = inputs
        .members
        .iter()
        .map(|member| member.name.slot_name())
        .filter(|slot| slots.remove(slot).is_some())
        .collect();
    (slots, taken)
}

fn streams_from_me(member: &SlotMember, inputs: &SlotInputs<'_>) -> bool {
    let exists = |name: &MemberName| inputs.members.iter().any(|m| m.name == *name);
    match &member.replicatefrom {
        Some(from) if from == inputs.me => inputs.leader != Some(&member.name),
        Some(from) if from != &member.name && exists(from) => false,
        _ => inputs.is_leader,
    }
}

/// A row of `pg_replication_slots`, without temporary ones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the view's own columns")]
pub struct PresentSlot {
    pub name: String,
    pub physical: bool,
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub active: bool,
    pub restart_lsn: Option<Lsn>,
    pub confirmed_flush: Option<Lsn>,
    pub catalog_xmin: Option<u32>,
    /// It has an `xmin` or a `catalog_xmin`.
    pub xmin: bool,
    /// `wal_status` is `lost` (13+).
    pub lost: bool,
    /// A logical failover slot (17+).
    pub failover: bool,
}

/// One matcher of `ignore_slots`: every given property must match (§11.5).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the setting's own keys")]
pub struct IgnoreSlot {
    pub name: Option<String>,
    pub slot_type: Option<String>,
    pub database: Option<String>,
    pub plugin: Option<String>,
}

impl IgnoreSlot {
    fn matches(&self, slot: &PresentSlot) -> bool {
        let same = |wanted: &Option<String>, value: Option<&str>| {
            wanted
                .as_deref()
                .is_none_or(|w| w.is_empty() || Some(w) == value)
        };
        same(&self.name, Some(&slot.name))
            && same(
                &self.slot_type,
                Some(if slot.physical { "physical" } else { "logical" }),
            )
            && same(&self.database, slot.database.as_deref())
            && same(&self.plugin, slot.plugin.as_deref())
    }
}

/// What else the reconciliation depends on.
#[derive(Debug, Clone)]
pub struct PlanInputs<'a> {
    /// Slots that are there.
    pub present: &'a [PresentSlot],
    /// Member slots that should be.
    pub desired: &'a BTreeMap<String, DesiredSlot>,
    /// Permanent logical slots that should be.
    pub logical: &'a BTreeMap<String, LogicalSlot>,
    /// This node is a standby of another leader: its failover slots are PostgreSQL's own business (17+), and its logical slots are copies.
    pub follows: bool,
    /// Missing logical slots are created: this node leads and accepts writes.
    pub creates_logical: bool,
    /// `ignore_slots`.
    pub ignored: &'a [IgnoreSlot],
    /// The cluster is paused: nothing is dropped.
    pub paused: bool,
    /// There is a leader and this node is either not the leader or a real primary: a stale `xmin` may be cured by dropping.
    pub may_drop_xmin: bool,
    /// Data directory's major.
    pub version: PgVersion,
}

/// One step of the reconciliation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotAction {
    /// `pg_drop_replication_slot`.
    Drop {
        /// Slot.
        name: String,
        /// Why, for the log.
        reason: &'static str,
    },
    /// `pg_create_physical_replication_slot`, reserving WAL at once from 9.6 on.
    Create {
        /// Slot.
        name: String,
    },
    /// `pg_create_logical_replication_slot`.
    CreateLogical {
        /// Slot.
        name: String,
        /// What it is.
        slot: LogicalSlot,
    },
    /// `pg_replication_slot_advance` (11+).
    Advance {
        /// Slot.
        name: String,
        /// To where.
        to: Lsn,
    },
    /// Nothing can be done: the slot should go, but is in use (`Unable to drop replication slot '<n>', slot is active`).
    Busy {
        /// Slot.
        name: String,
    },
}

/// The steps that turn the present slots into the desired ones (§11.4).
#[must_use]
pub fn plan(inputs: &PlanInputs<'_>) -> Vec<SlotAction> {
    let mut actions = Vec::new();
    let mut keep: BTreeSet<&str> = BTreeSet::new();
    for slot in inputs.present {
        let wanted = inputs.desired.get(&slot.name);
        let ignored = inputs.ignored.iter().any(|matcher| matcher.matches(slot));
        keep.insert(&slot.name);
        if ignored {
            continue;
        }
        if slot.failover && !slot.physical {
            if inputs.follows && !inputs.paused && !slot.active {
                actions.push(SlotAction::Drop {
                    name: slot.name.clone(),
                    reason: "a failover slot that PostgreSQL does not synchronise cannot be used here",
                });
            }
            continue;
        }
        match (wanted, reason_to_drop(slot, wanted, inputs)) {
            (_, Some(_)) if inputs.paused => {}
            (_, Some(_)) if slot.active => actions.push(SlotAction::Busy {
                name: slot.name.clone(),
            }),
            (_, Some((reason, recreate))) => {
                actions.push(SlotAction::Drop {
                    name: slot.name.clone(),
                    reason,
                });
                if recreate {
                    keep.remove(slot.name.as_str());
                }
            }
            (Some(wanted), None) => actions.extend(advance(slot, wanted, inputs.version)),
            (None, None) => {}
        }
    }
    let missing = inputs
        .desired
        .keys()
        .filter(|name| !keep.contains(name.as_str()));
    actions.extend(missing.map(|name| SlotAction::Create { name: name.clone() }));
    if inputs.creates_logical {
        let missing = inputs
            .logical
            .iter()
            .filter(|(name, _)| !keep.contains(name.as_str()));
        actions.extend(missing.map(|(name, slot)| SlotAction::CreateLogical {
            name: name.clone(),
            slot: slot.clone(),
        }));
    }
    actions
}

/// The reason, and whether the slot is created again at once.
fn reason_to_drop(
    slot: &PresentSlot,
    wanted: Option<&DesiredSlot>,
    inputs: &PlanInputs<'_>,
) -> Option<(&'static str, bool)> {
    let Some(wanted) = wanted else {
        return match inputs.logical.get(&slot.name) {
            None => Some(("nobody needs it", false)),
            Some(_) if slot.lost => Some(("its WAL is gone", true)),
            Some(logical) if is_it(slot, logical) => None,
            Some(_) => Some(("it has another type, database or plugin", true)),
        };
    };
    if !slot.physical {
        return Some(("a member needs a physical slot of this name", true));
    }
    if slot.lost {
        return Some(("its WAL is gone", true));
    }
    if inputs.version.at_least(11) && !wanted.expected_active {
        if slot.xmin && inputs.may_drop_xmin {
            return Some(("an unused slot with xmin would hold back vacuum", false));
        }
        if slot.restart_lsn.is_none() {
            return Some(("it reserves no WAL and cannot be advanced", false));
        }
    }
    None
}

fn is_it(slot: &PresentSlot, logical: &LogicalSlot) -> bool {
    !slot.physical
        && slot.database.as_deref() == Some(&logical.database)
        && slot.plugin.as_deref() == Some(&logical.plugin)
}

/// What a standby has to do for its copies of the leader's logical slots (§11.6).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copies {
    /// Present ones that are behind: name, database, where to.
    pub behind: Vec<(String, String, Lsn)>,
    /// Those that are to be copied from the leader.
    pub missing: Vec<String>,
}

/// Compares the copies with what the leader has published. `replayed`: where this standby is. Slots in `broken` have lost their WAL here.
#[must_use]
pub fn copies(
    present: &[PresentSlot],
    logical: &BTreeMap<String, LogicalSlot>,
    published: &BTreeMap<String, Lsn>,
    broken: &BTreeSet<String>,
    replayed: Lsn,
) -> Copies {
    let mut copies = Copies::default();
    for (name, slot) in logical {
        let Some(leader_is_at) = published.get(name) else {
            continue;
        };
        match present.iter().find(|present| present.name == *name) {
            None => copies.missing.push(name.clone()),
            Some(_) if broken.contains(name) => copies.missing.push(name.clone()),
            // Dropped by the plan; copied once it is gone.
            Some(present) if present.lost || !is_it(present, slot) => {}
            Some(present) => {
                let to = (*leader_is_at).min(replayed);
                if !present.active && present.confirmed_flush.is_some_and(|at| at < to) {
                    copies
                        .behind
                        .push((name.clone(), slot.database.clone(), to));
                }
            }
        }
    }
    copies
}

fn advance(slot: &PresentSlot, wanted: &DesiredSlot, version: PgVersion) -> Option<SlotAction> {
    if !version.at_least(11) || wanted.expected_active || slot.active || slot.xmin {
        return None;
    }
    let to = wanted
        .advance_to
        .filter(|to| slot.restart_lsn.is_some_and(|at| *to > at))?;
    Some(SlotAction::Advance {
        name: slot.name.clone(),
        to,
    })
}

/// Slots of absent members that survive for `member_slots_ttl` (§11.2, retention). Kept by the leader.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retention(BTreeMap<String, crate::types::Moment>);

impl Retention {
    /// Notes which member slots are backed by a member key now, forgets what is unseen for longer than `ttl`, and returns the names for
    /// `/status.retain_slots` with those that expired just now. `known`: names found in `/status` (timers of unknown ones start now).
    pub fn update(
        &mut self,
        backed: &BTreeSet<String>,
        known: &[String],
        permanent: &BTreeSet<String>,
        ttl: std::time::Duration,
        now: crate::types::Moment,
    ) -> (Vec<String>, Vec<String>) {
        for name in backed {
            self.0.insert(name.clone(), now);
        }
        for name in known {
            self.0.entry(name.clone()).or_insert(now);
        }
        let expired: Vec<String> = self
            .0
            .iter()
            .filter(|(name, seen)| !backed.contains(*name) && now.since(**seen) >= ttl)
            .map(|(name, _)| name.clone())
            .collect();
        self.0
            .retain(|name, _| !expired.contains(name) && !permanent.contains(name));
        (self.0.keys().cloned().collect(), expired)
    }

    /// Another node became leader: its timers count.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

/// Reads all slots that are not temporary.
///
/// # Errors
/// The statement failed.
pub async fn read(
    client: &Client,
    version: PgVersion,
) -> Result<Vec<PresentSlot>, tokio_postgres::Error> {
    let zero = if version.at_least(10) {
        "'0/0'::pg_lsn"
    } else {
        "'0/0'"
    };
    let difference = if version.at_least(10) {
        "pg_catalog.pg_wal_lsn_diff"
    } else {
        "pg_catalog.pg_xlog_location_diff"
    };
    let lost = if version.at_least(13) {
        "coalesce(wal_status = 'lost', false)"
    } else {
        "false"
    };
    let failover = if version.at_least(17) {
        "failover"
    } else {
        "false"
    };
    let mut conditions = Vec::new();
    if version.at_least(10) {
        conditions.push("NOT temporary");
    }
    if version.at_least(17) {
        conditions.push("NOT (failover AND synced)");
    }
    let filter = if conditions.is_empty() {
        String::new()
    } else {
        format!(" WHERE {}", conditions.join(" AND "))
    };
    let confirmed = if version >= PgVersion(90_600) {
        format!("{difference}(confirmed_flush_lsn, {zero})::bigint")
    } else {
        "NULL::bigint".to_owned()
    };
    let statement = format!(
        "SELECT slot_name::text, slot_type::text, plugin::text, database::text, active, {difference}(restart_lsn, {zero})::bigint, \
         xmin IS NOT NULL, {lost}, {failover}, {confirmed}, catalog_xmin::text::bigint FROM pg_catalog.pg_replication_slots{filter}"
    );
    let rows = client.query(&statement, &[]).await?;
    rows.iter()
        .map(|row| {
            let restart: Option<i64> = row.try_get(5)?;
            Ok(PresentSlot {
                name: row.try_get(0)?,
                physical: row.try_get::<_, String>(1)? == "physical",
                plugin: row.try_get(2)?,
                database: row.try_get(3)?,
                active: row.try_get(4)?,
                restart_lsn: restart.and_then(|lsn| u64::try_from(lsn).ok()).map(Lsn),
                xmin: row.try_get(6)?,
                lost: row.try_get(7)?,
                failover: row.try_get(8)?,
                confirmed_flush: row
                    .try_get::<_, Option<i64>>(9)?
                    .and_then(|lsn| u64::try_from(lsn).ok())
                    .map(Lsn),
                catalog_xmin: row
                    .try_get::<_, Option<i64>>(10)?
                    .and_then(|xid| u32::try_from(xid).ok()),
            })
        })
        .collect()
}

/// Carries out one step. The guards against concurrent change are in the statements: a slot that became active is not dropped.
///
/// # Errors
/// The statement failed. A slot that exists already, is gone already, or became active is none. A logical slot is created in the
/// session's own database.
pub async fn carry_out(
    client: &Client,
    action: &SlotAction,
    version: PgVersion,
) -> Result<(), tokio_postgres::Error> {
    match action {
        SlotAction::Busy { .. } => {}
        SlotAction::Drop { name, .. } => {
            let statement = "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots \
                             WHERE slot_name = $1::text AND NOT active";
            client.query(statement, &[name]).await?;
        }
        SlotAction::Create { name } => {
            let reserve = if version.0 >= 90_600 { ", true" } else { "" };
            let statement = format!(
                "SELECT pg_catalog.pg_create_physical_replication_slot($1::text{reserve}) \
                 WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name = $1::text)"
            );
            client.query(&statement, &[name]).await?;
        }
        SlotAction::CreateLogical { name, slot } => {
            let statement = "SELECT pg_catalog.pg_create_logical_replication_slot($1::text, $2::text) \
                             WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name = $1::text)";
            client.query(statement, &[name, &slot.plugin]).await?;
        }
        SlotAction::Advance { name, to } => {
            let to = to.to_string();
            let statement = "SELECT pg_catalog.pg_replication_slot_advance(slot_name, $2::text::pg_lsn) FROM pg_catalog.pg_replication_slots \
                             WHERE slot_name = $1::text AND NOT active AND restart_lsn < $2::text::pg_lsn";
            client.query(statement, &[name, &to]).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Moment;
    use std::time::Duration;

    fn name(text: &str) -> MemberName {
        MemberName::new(text).unwrap()
    }

    fn member(text: &str, from: Option<&str>) -> SlotMember {
        SlotMember {
            name: name(text),
            replicatefrom: from.map(name),
            nostream: false,
            position: Some(Lsn(70)),
            nofailover: false,
        }
    }

    struct Case {
        me: MemberName,
        leader: MemberName,
        members: Vec<SlotMember>,
        published: BTreeMap<String, Lsn>,
        retained: Vec<String>,
    }

    impl Case {
        fn new(me: &str) -> Self {
            Case {
                me: name(me),
                leader: name("a"),
                members: vec![
                    member("a", None),
                    member("b", None),
                    member("c", Some("b")),
                    member("d-1", Some("gone")),
                ],
                published: BTreeMap::from([
                    ("c".into(), Lsn(50)),
                    ("b".into(), Lsn(60)),
                    ("old".into(), Lsn(10)),
                ]),
                retained: vec!["old".into(), self::name(me).slot_name()],
            }
        }

        fn inputs(&self) -> SlotInputs<'_> {
            SlotInputs {
                me: &self.me,
                is_leader: self.me == self.leader,
                leader: Some(&self.leader),
                nofailover: false,
                members: &self.members,
                use_slots: true,
                retain: true,
                retained: &self.retained,
                published: &self.published,
                leader_is_old: false,
                version: PgVersion(150_000),
            }
        }
    }

    fn shown(desired: &DesiredSlots) -> String {
        let show = |(name, slot): (&String, &DesiredSlot)| {
            let to = slot
                .advance_to
                .map_or_else(String::new, |lsn| format!("@{}", lsn.0));
            format!("{name}{}{to}", if slot.expected_active { "!" } else { "" })
        };
        desired.slots.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_leader_has_slots_for_all_and_streams_to_those_that_name_nobody_else() {
        let case = Case::new("a");
        assert_eq!(shown(&desired(&case.inputs())), "b!@60 c@70 d_1!@70 old@10");
        let without = SlotInputs {
            retain: false,
            ..case.inputs()
        };
        assert_eq!(shown(&desired(&without)), "b!@60 d_1!@70");
        let off = SlotInputs {
            use_slots: false,
            ..case.inputs()
        };
        assert_eq!(shown(&desired(&off)), "");
    }

    #[test]
    fn positions_are_told_by_the_names_of_slots_not_of_members() {
        let mut case = Case::new("b");
        case.published.insert("d_1".into(), Lsn(90));
        case.published.insert("d-1".into(), Lsn(95));
        assert_eq!(shown(&desired(&case.inputs())), "a c!@70 d_1@90 old@10");
    }

    #[test]
    fn what_an_old_leader_does_not_publish_the_members_say_themselves() {
        let case = Case::new("a");
        let old = SlotInputs {
            leader_is_old: true,
            ..case.inputs()
        };
        assert_eq!(shown(&desired(&old)), "b!@70 c@70 d_1!@70 old@10");
    }

    #[test]
    fn a_replica_has_copies_and_serves_its_cascade() {
        let case = Case::new("b");
        assert_eq!(shown(&desired(&case.inputs())), "a c!@70 d_1@70 old@10");
        let nofailover = SlotInputs {
            nofailover: true,
            ..case.inputs()
        };
        assert_eq!(shown(&desired(&nofailover)), "c!@70");
        let old_version = SlotInputs {
            version: PgVersion(100_000),
            ..case.inputs()
        };
        assert_eq!(shown(&desired(&old_version)), "c!@70");
    }

    #[test]
    fn permanent_slots_are_on_every_node_that_may_lead() {
        let names = ["perm".to_owned(), "b".to_owned(), "c".to_owned()];
        let with = |case: &Case, change: fn(&mut SlotInputs<'_>)| {
            let mut inputs = SlotInputs {
                retain: false,
                ..case.inputs()
            };
            change(&mut inputs);
            let mut slots = DesiredSlots::default();
            add_permanent_physical(&mut slots, &inputs, &names);
            shown(&slots)
        };
        assert_eq!(with(&Case::new("a"), |_| {}), "b!@60 c@50 perm!");
        assert_eq!(with(&Case::new("b"), |_| {}), "c@50 perm");
        assert_eq!(with(&Case::new("b"), |i| i.nofailover = true), "");
        assert_eq!(
            with(&Case::new("b"), |i| i.version = PgVersion(100_000)),
            ""
        );
        assert_eq!(with(&Case::new("a"), |i| i.use_slots = false), "");
    }

    #[test]
    fn members_that_do_not_stream_have_none_and_shared_names_are_told() {
        let mut case = Case::new("a");
        case.members[1].nostream = true;
        case.members.push(member("D.1", None));
        let desired = desired(&case.inputs());
        assert!(!desired.slots.contains_key("b"));
        assert_eq!(
            desired.shared,
            [("d_1".to_owned(), vec![name("d-1"), name("D.1")])]
        );
    }

    fn present(name: &str) -> PresentSlot {
        PresentSlot {
            name: name.into(),
            physical: true,
            restart_lsn: Some(Lsn(20)),
            ..PresentSlot::default()
        }
    }

    fn logical_slot() -> LogicalSlot {
        LogicalSlot {
            database: "app".to_owned(),
            plugin: "pgoutput".to_owned(),
        }
    }

    fn present_logical(name: &str) -> PresentSlot {
        PresentSlot {
            physical: false,
            plugin: Some("pgoutput".into()),
            database: Some("app".into()),
            confirmed_flush: Some(Lsn(30)),
            xmin: true,
            ..present(name)
        }
    }

    fn planned(present: &[PresentSlot], change: impl FnOnce(&mut PlanInputs<'_>)) -> String {
        let desired = BTreeMap::from([
            (
                "b".to_owned(),
                DesiredSlot {
                    expected_active: true,
                    advance_to: Some(Lsn(60)),
                },
            ),
            (
                "c".to_owned(),
                DesiredSlot {
                    expected_active: false,
                    advance_to: Some(Lsn(50)),
                },
            ),
        ]);
        let logical = BTreeMap::from([("perm".to_owned(), logical_slot())]);
        let ignored = [IgnoreSlot {
            name: Some("theirs".into()),
            slot_type: Some("physical".into()),
            ..IgnoreSlot::default()
        }];
        let mut inputs = PlanInputs {
            present,
            desired: &desired,
            logical: &logical,
            follows: false,
            creates_logical: false,
            ignored: &ignored,
            paused: false,
            may_drop_xmin: true,
            version: PgVersion(150_000),
        };
        change(&mut inputs);
        let show = |action: SlotAction| match action {
            SlotAction::Drop { name, .. } => format!("-{name}"),
            SlotAction::Create { name } => format!("+{name}"),
            SlotAction::CreateLogical { name, slot } => {
                format!("+{name}({} {})", slot.database, slot.plugin)
            }
            SlotAction::Advance { name, to } => format!("{name}>{}", to.0),
            SlotAction::Busy { name } => format!("{name}?"),
        };
        plan(&inputs)
            .into_iter()
            .map(show)
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn missing_slots_are_created_and_unused_copies_advanced() {
        assert_eq!(planned(&[], |_| {}), "+b +c");
        assert_eq!(planned(&[present("b"), present("c")], |_| {}), "c>50");
        assert_eq!(
            planned(&[present("b"), present("c")], |i| i.version =
                PgVersion(100_000)),
            ""
        );
    }

    #[test]
    fn only_unwanted_idle_slots_of_nobody_else_are_dropped() {
        let slots = [
            present("x"),
            present_logical("perm"),
            present("theirs"),
            present("b"),
            present("c"),
        ];
        assert_eq!(planned(&slots, |_| {}), "-x c>50");
        assert_eq!(planned(&slots, |i| i.paused = true), "c>50");
        let active = PresentSlot {
            active: true,
            ..present("x")
        };
        assert_eq!(
            planned(&[active, present("b"), present("c")], |_| {}),
            "x? c>50"
        );
        let failover = PresentSlot {
            physical: false,
            failover: true,
            ..present("x")
        };
        assert_eq!(
            planned(&[failover, present("b"), present("c")], |_| {}),
            "c>50"
        );
    }

    #[test]
    fn useless_slots_are_made_anew() {
        let lost = PresentSlot {
            lost: true,
            ..present("b")
        };
        assert_eq!(planned(&[lost, present("c")], |_| {}), "-b c>50 +b");
        let logical = PresentSlot {
            physical: false,
            ..present("b")
        };
        assert_eq!(planned(&[logical, present("c")], |_| {}), "-b c>50 +b");
        let stale = PresentSlot {
            xmin: true,
            ..present("c")
        };
        assert_eq!(planned(&[present("b"), stale.clone()], |_| {}), "-c");
        assert_eq!(
            planned(&[present("b"), stale], |i| i.may_drop_xmin = false),
            ""
        );
        let unreserved = PresentSlot {
            restart_lsn: None,
            ..present("c")
        };
        assert_eq!(planned(&[present("b"), unreserved], |_| {}), "-c");
    }

    #[test]
    fn logical_slots_are_created_by_the_leader_and_made_anew_when_they_are_something_else() {
        let members = [present("b"), present("c")];
        let with = |slot: PresentSlot, paused| {
            let slots = [members[0].clone(), slot, members[1].clone()];
            planned(&slots, |inputs| {
                inputs.creates_logical = true;
                inputs.paused = paused;
            })
        };
        assert_eq!(planned(&members, |_| {}), "c>50", "a standby creates none");
        assert_eq!(
            planned(&members, |inputs| inputs.creates_logical = true),
            "c>50 +perm(app pgoutput)"
        );
        assert_eq!(with(present_logical("perm"), false), "c>50");
        let others = [
            present("perm"),
            PresentSlot {
                plugin: Some("test_decoding".into()),
                ..present_logical("perm")
            },
            PresentSlot {
                database: Some("other".into()),
                ..present_logical("perm")
            },
            PresentSlot {
                lost: true,
                ..present_logical("perm")
            },
        ];
        for other in others {
            assert_eq!(
                with(other.clone(), false),
                "-perm c>50 +perm(app pgoutput)",
                "{other:?}"
            );
            assert_eq!(with(other.clone(), true), "c>50", "{other:?}");
            let active = PresentSlot {
                active: true,
                ..other
            };
            assert_eq!(with(active, false), "perm? c>50");
        }
        assert_eq!(
            with(present_logical("gone"), false),
            "-gone c>50 +perm(app pgoutput)"
        );
    }

    #[test]
    fn ignored_logical_slots_and_failover_slots_are_left_alone() {
        let slot = PresentSlot {
            plugin: Some("other".into()),
            ..present_logical("perm")
        };
        let matchers = [
            (None, None, None, Some("other")),
            (Some("perm"), Some("logical"), None, None),
            (None, None, Some("app"), None),
        ];
        for (name, slot_type, database, plugin) in matchers {
            let own = |text: Option<&str>| text.map(str::to_owned);
            let ignored = [IgnoreSlot {
                name: own(name),
                slot_type: own(slot_type),
                database: own(database),
                plugin: own(plugin),
            }];
            let slots = [present("b"), slot.clone(), present("c")];
            let desired = BTreeMap::from([
                ("b".to_owned(), DesiredSlot::default()),
                ("c".to_owned(), DesiredSlot::default()),
            ]);
            let actions = plan(&PlanInputs {
                present: &slots,
                desired: &desired,
                logical: &BTreeMap::from([("perm".to_owned(), logical_slot())]),
                follows: false,
                creates_logical: true,
                ignored: &ignored,
                paused: false,
                may_drop_xmin: true,
                version: PgVersion(150_000),
            });
            assert_eq!(actions, []);
        }
        let failover = [
            present("b"),
            PresentSlot {
                failover: true,
                ..present_logical("f")
            },
            present("c"),
        ];
        assert_eq!(planned(&failover, |_| {}), "c>50");
        let with = |change: fn(&mut PlanInputs<'_>)| planned(&failover, change);
        assert_eq!(with(|inputs| inputs.follows = true), "-f c>50");
        let paused = |inputs: &mut PlanInputs<'_>| {
            inputs.follows = true;
            inputs.paused = true;
        };
        assert_eq!(with(paused), "c>50");
    }

    #[test]
    fn logical_slots_are_on_members_that_may_lead_and_receive_wal() {
        let mut case = Case::new("b");
        let wanted = BTreeMap::from([
            ("perm".to_owned(), logical_slot()),
            ("d_1".to_owned(), logical_slot()),
        ]);
        let names = |case: &Case, change: fn(&mut SlotInputs<'_>)| {
            let mut inputs = case.inputs();
            change(&mut inputs);
            let (slots, taken) = permanent_logical(&inputs, &wanted);
            let slots: Vec<String> = slots.into_keys().collect();
            format!("{} {}", slots.join(","), taken.join(","))
        };
        assert_eq!(names(&case, |_| {}), "perm d_1");
        assert_eq!(names(&case, |i| i.nofailover = true), " ");
        assert_eq!(names(&case, |i| i.use_slots = false), " ");
        assert_eq!(names(&case, |i| i.version = PgVersion(100_000)), " ");
        assert!(needs_feedback(&case.members, &name("b")));
        // c streams from b; b receives nothing: neither has any.
        case.members[1].nostream = true;
        assert_eq!(names(&case, |_| {}), " ");
        let cascaded = Case {
            me: name("c"),
            ..case
        };
        assert_eq!(names(&cascaded, |_| {}), " ");
        assert!(!needs_feedback(&cascaded.members, &name("c")));
    }

    #[test]
    fn feedback_is_needed_along_the_chain() {
        let mut members = vec![
            member("a", None),
            member("b", None),
            member("c", Some("b")),
            member("d", Some("c")),
        ];
        members[1].nofailover = true;
        members[2].nofailover = true;
        for needs in ["b", "c", "d"] {
            assert!(needs_feedback(&members, &name(needs)), "{needs}");
        }
        members[3].nofailover = true;
        assert!(!needs_feedback(&members, &name("b")));
        let (a, d) = (name("a"), name("d"));
        assert_eq!(first_hop(&members, &d, &a), &name("b"));
        assert_eq!(first_hop(&members, &d, &name("c")), &d);
        // Tags that go in a circle.
        members[1].replicatefrom = Some(name("d"));
        assert!(!needs_feedback(&members, &name("b")));
    }

    #[test]
    fn copies_follow_the_leader_no_further_than_they_have_replayed() {
        let logical = BTreeMap::from([
            ("p".to_owned(), logical_slot()),
            ("q".to_owned(), logical_slot()),
        ]);
        let published = BTreeMap::from([("p".to_owned(), Lsn(50))]);
        let compare = |present: &[PresentSlot], broken: &[&str], replayed| {
            let broken = broken.iter().map(|name| (*name).to_owned()).collect();
            let copies = copies(present, &logical, &published, &broken, Lsn(replayed));
            let behind: Vec<String> = copies
                .behind
                .iter()
                .map(|(name, database, to)| format!("{name}@{database}>{}", to.0))
                .collect();
            format!("{} {}", behind.join(","), copies.missing.join(","))
        };
        // Nobody knows where q is: there is nothing to copy.
        assert_eq!(compare(&[], &[], 40), " p");
        let slot = present_logical("p");
        assert_eq!(compare(std::slice::from_ref(&slot), &[], 40), "p@app>40 ");
        assert_eq!(compare(std::slice::from_ref(&slot), &[], 90), "p@app>50 ");
        assert_eq!(compare(std::slice::from_ref(&slot), &[], 30), " ");
        assert_eq!(compare(std::slice::from_ref(&slot), &["p"], 90), " p");
        let lost = PresentSlot { lost: true, ..slot };
        assert_eq!(compare(&[lost], &[], 90), " ");
    }

    #[test]
    fn slots_of_absent_members_expire() {
        let at = |secs| Moment(Duration::from_secs(secs));
        let ttl = Duration::from_secs(60);
        let (none, permanent) = (BTreeSet::new(), BTreeSet::from(["p".to_owned()]));
        let backed = BTreeSet::from(["b".to_owned(), "p".to_owned()]);
        let mut retention = Retention::default();
        assert_eq!(
            retention.update(&backed, &["old".to_owned()], &permanent, ttl, at(0)),
            (vec!["b".into(), "old".into()], vec![])
        );
        assert_eq!(
            retention.update(&backed, &[], &permanent, ttl, at(59)).0,
            ["b", "old"]
        );
        let (kept, expired) = retention.update(&none, &[], &permanent, ttl, at(60));
        assert_eq!(
            (kept, expired),
            (vec!["b".to_owned()], vec!["old".to_owned()])
        );
        assert_eq!(
            retention.update(&none, &[], &permanent, ttl, at(119)).1,
            ["b"]
        );
    }
}
