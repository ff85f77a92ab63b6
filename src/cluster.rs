//! The cluster as one snapshot of the store says it is. Plain values: no I/O, no text formats.
//!
//! `wire` (beside this file) alone knows how each part is spelled in the store; spec/dcs.md §2 is the source.
//! A part that could not be read has its empty value, never an error (spec/dcs.md §1.3).

pub mod wire;

use std::collections::BTreeMap;

use crate::types::{
    Lsn, MemberName, PgState, ReplicationState, Revision, Role, SystemId, Timeline, WallTime,
};

/// One snapshot of everything below the cluster's base path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cluster {
    /// The `initialize` document.
    pub initialize: Initialize,
    /// Its revision.
    pub initialize_revision: Option<Revision>,
    /// The dynamic configuration; `None` when absent or unreadable: the last known one stays in force.
    pub config: Option<ConfigDocument>,
    /// Revision of `config` even when it is unreadable, so that a repair can be compare-and-set.
    pub config_revision: Option<Revision>,
    /// Who holds the leader key; `None` = unlocked.
    pub leader: Option<Leader>,
    /// Members by name; only those whose key is alive.
    pub members: BTreeMap<MemberName, Member>,
    /// What the leader last published.
    pub status: Status,
    /// The synchronous state; `SyncState::default()` = inactive.
    pub sync: SyncState,
    /// A requested switchover or failover.
    pub failover: Option<FailoverRequest>,
    /// Revision of the failover document even when it holds no request.
    pub failover_revision: Option<Revision>,
    /// The timeline history; `None` = absent or unreadable.
    pub history: Option<History>,
    /// The failsafe topology: name → api_url; `None` = absent or unreadable.
    pub failsafe: Option<BTreeMap<MemberName, String>>,
}

impl Cluster {
    /// Nobody holds the leader key.
    #[must_use]
    pub fn is_unlocked(&self) -> bool {
        self.leader.is_none()
    }

    /// Whether `name` is the holder of the leader key.
    #[must_use]
    pub fn is_led_by(&self, name: &MemberName) -> bool {
        self.leader
            .as_ref()
            .is_some_and(|leader| leader.name == *name)
    }

    /// The member document of the leader, if its key is alive.
    #[must_use]
    pub fn leader_member(&self) -> Option<&Member> {
        self.leader
            .as_ref()
            .and_then(|leader| self.members.get(&leader.name))
    }

    /// Derived timeline of the cluster (spec/dcs.md §2.8): last entry + 1; empty history → 1; unknown → `None`.
    #[must_use]
    pub fn timeline(&self) -> Option<Timeline> {
        let history = self.history.as_ref()?;
        Some(Timeline(
            history
                .entries
                .last()
                .map_or(1, |entry| entry.timeline.0 + 1),
        ))
    }
}

/// The `initialize` document (spec/dcs.md §2.1).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Initialize {
    /// Nobody has bootstrapped.
    #[default]
    Absent,
    /// Somebody runs bootstrap now.
    InProgress,
    /// The cluster's system identifier.
    Done(SystemId),
    /// Present and unreadable: counts as invalid, the leader repairs it.
    Invalid(String),
}

/// The dynamic configuration as stored, an object; the typed form is `config::dynamic`.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigDocument {
    /// The object.
    pub data: serde_json::Map<String, serde_json::Value>,
    /// Its revision, for compare-and-set and change detection.
    pub revision: Revision,
}

/// The holder of the leader key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// The name in the key.
    pub name: MemberName,
    /// Revision of the key.
    pub revision: Revision,
    /// The session (lease, Consul session, ephemeral owner) the key hangs on, where the store has one.
    pub session: Option<String>,
}

/// One member document (spec/dcs.md §2.4).
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Its name (from the key).
    pub name: MemberName,
    /// The session of its key, where the store has one; a hand-over binds the leader key to it.
    pub session: Option<String>,
    /// `postgres://host:port/database`.
    pub conn_url: Option<String>,
    /// `http(s)://host:port/patroni`.
    pub api_url: Option<String>,
    /// `None`: unreadable or unknown spelling.
    pub state: Option<PgState>,
    /// `None`: unreadable or unknown spelling.
    pub role: Option<Role>,
    /// The agent's advertised version, verbatim.
    pub version: Option<String>,
    /// `postgres://…` of a proxy in front of it.
    pub proxy_url: Option<String>,
    /// `false` only on a leader that has not finished its post-promote checkpoint.
    pub checkpoint_after_promote: bool,
    /// Its tags.
    pub tags: Tags,
    /// Settings that wait for a restart: GUC → (old, new). `Some(empty)`: pending without reasons.
    pub pending_restart: Option<BTreeMap<String, PendingChange>>,
    /// primary: flush position; standby: max(received, replayed).
    pub xlog_location: Option<Lsn>,
    /// Last replayed position of a standby.
    pub replay_lsn: Option<Lsn>,
    /// Last received position of a standby.
    pub receive_lsn: Option<Lsn>,
    /// How it receives WAL.
    pub replication_state: Option<ReplicationState>,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// A restart it has accepted for later, verbatim.
    pub scheduled_restart: Option<serde_json::Map<String, serde_json::Value>>,
    /// It considers the cluster paused.
    pub pause: bool,
    /// It could not serve as leader, for this reason (new beyond Patroni, which ignores the field).
    pub cannot_serve: Option<String>,
}

/// Old and new value of a setting that waits for a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingChange {
    /// The running value; empty = unset.
    pub old_value: String,
    /// The value after the restart; empty = unset.
    pub new_value: String,
}

/// Tags of a member (spec/ha.md §18). Known ones typed, in their effective meaning; others verbatim in `custom`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tags {
    /// `nofailover` as given; see [`Tags::never_leads`].
    pub nofailover: Option<bool>,
    /// `failover_priority` as given.
    pub failover_priority: Option<i64>,
    /// `nosync` as given.
    pub nosync: Option<bool>,
    /// `sync_priority` as given.
    pub sync_priority: Option<i64>,
    /// Not for read load balancing.
    pub noloadbalance: bool,
    /// Preferred source of clones.
    pub clonefrom: bool,
    /// Receives WAL from an archive only.
    pub nostream: bool,
    /// The member to stream from.
    pub replicatefrom: Option<MemberName>,
    /// Everything else.
    pub custom: BTreeMap<String, serde_json::Value>,
}

impl Tags {
    /// Effective `nofailover`: the boolean if present, else `failover_priority <= 0`.
    #[must_use]
    pub fn never_leads(&self) -> bool {
        self.nofailover
            .unwrap_or_else(|| self.failover_priority.is_some_and(|p| p <= 0))
    }

    /// Effective `failover_priority`: 0 for a member that never leads, 1 unless given.
    #[must_use]
    pub fn leader_priority(&self) -> i64 {
        if self.never_leads() {
            0
        } else {
            self.failover_priority.unwrap_or(1)
        }
    }

    /// Effective `nosync`: the boolean if present, else `sync_priority <= 0`.
    #[must_use]
    pub fn never_sync(&self) -> bool {
        self.nosync
            .unwrap_or_else(|| self.sync_priority.is_some_and(|p| p <= 0))
    }
}

/// The `status` document (spec/dcs.md §2.5).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// The leader's last published position; zero = unknown.
    pub optime: Lsn,
    /// Slot name → position.
    pub slots: BTreeMap<String, Lsn>,
    /// Slots kept although their member is gone.
    pub retain_slots: Vec<String>,
}

/// The `sync` document (spec/dcs.md §2.6).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncState {
    /// Revision; present even when the content counts as empty on stores that keep it.
    pub revision: Option<Revision>,
    /// Owner of the synchronous state; `None` = the whole document counts as empty.
    pub leader: Option<MemberName>,
    /// How many other members a candidate must find not ahead of it; 0 in priority mode.
    pub quorum: u32,
    /// Synchronous standbys, or voters in quorum mode; sorted.
    pub standbys: Vec<MemberName>,
}

/// The `failover` document with a request in it (spec/dcs.md §2.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverRequest {
    /// Revision, to clear exactly this request.
    pub revision: Revision,
    /// Present: a switchover from this leader. Absent: a manual failover.
    pub leader: Option<MemberName>,
    /// The wanted new leader.
    pub candidate: Option<MemberName>,
    /// When; `None` = now.
    pub scheduled_at: Option<Schedule>,
}

/// A time given by a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// A valid time.
    At(WallTime),
    /// Unreadable; the request is cleared.
    Unreadable(String),
}

/// The `history` document (spec/dcs.md §2.8).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// Oldest first.
    pub entries: Vec<HistoryEntry>,
}

/// One switch of timelines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// Where it ended.
    pub lsn: Lsn,
    /// PostgreSQL's reason text.
    pub reason: String,
    /// ISO-8601 time of the promotion, verbatim.
    pub timestamp: Option<String>,
    /// Who was promoted.
    pub new_leader: Option<MemberName>,
}

/// PostgreSQL's version gates need the smallest agent version of the members; unparsable versions are ignored.
#[must_use]
pub fn min_version(cluster: &Cluster) -> Option<(u32, u32, u32)> {
    cluster.members.values().filter_map(agent_version).min()
}

/// The version of the agent that a member runs; `None`: it does not say.
#[must_use]
pub fn agent_version(member: &Member) -> Option<(u32, u32, u32)> {
    parse_version(member.version.as_deref()?)
}

fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split('.').map(|p| p.parse().ok());
    Some((
        parts.next()??,
        parts.next().flatten().unwrap_or(0),
        parts.next().flatten().unwrap_or(0),
    ))
}

/// The version this program advertises in member documents and `GET /patroni`: the level of Patroni's contract it speaks.
pub const CONTRACT_VERSION: &str = "4.1.4";
