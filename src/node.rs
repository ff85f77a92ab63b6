//! The seam between the agent and what people and load balancers see of it: the node's published view and the commands it takes.
//!
//! Types only. The agent publishes one [`NodeView`] per turn through a `tokio::sync::watch`; the REST API answers every GET
//! from it and never asks the agent, PostgreSQL or the store for a health check. Commands go the other way through an mpsc.
//!
//! Who writes what: the documents that *people* own (`config`, and a new request in `failover`) are written by the API, straight
//! through the store with the preconditions of spec/rest-api.md §10 and §12, so that a hung loop cannot hold them up; the
//! API then sends [`Command::Wake`]. Everything else in the store, clearing a `failover` request included, is the agent's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot, watch};

use crate::cluster::{Cluster, PendingChange, Tags};
use crate::ha::explain::Explanation;
use crate::histogram::Histogram;
use crate::restart::{RestartConditions, ScheduledRestart};
use crate::telemetry::Backlog;
use crate::types::{
    Lsn, MemberName, Moment, PgState, PgVersion, ReplicationState, Role, SystemId, Timeline,
    WallTime,
};

/// Where the agent publishes.
pub type ViewSender = watch::Sender<Arc<NodeView>>;
/// Where the API reads.
pub type ViewReceiver = watch::Receiver<Arc<NodeView>>;
/// Where the API sends commands.
pub type CommandSender = mpsc::Sender<Command>;
/// Where the agent takes them.
pub type CommandReceiver = mpsc::Receiver<Command>;

/// Asks PostgreSQL for its status now. The published one may be a turn old, which is good enough for people and load balancers but not
/// for an election: a peer that reads an old position may believe itself ahead.
#[derive(Debug, Clone)]
pub struct LiveStatus(pub mpsc::Sender<oneshot::Sender<Option<PostgresStatus>>>);

impl LiveStatus {
    /// The status at this moment; `None`: no answer within `limit`.
    pub async fn ask(&self, limit: Duration) -> Option<PostgresStatus> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.0.send(reply).await.ok()?;
            answer.await.ok()?
        };
        tokio::time::timeout(limit, exchange).await.ok()?
    }
}

impl PartialEq for LiveStatus {
    /// The same way to ask.
    fn eq(&self, other: &Self) -> bool {
        self.0.same_channel(&other.0)
    }
}

/// Everything the surface says about this node, as of one moment. Deadlines in it are compared with the clock when the
/// question is answered, so that answers turn negative in time even if the loop hangs.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    /// My name.
    pub name: MemberName,
    /// The cluster's name.
    pub scope: String,
    /// Citus group, if any.
    pub group: Option<u32>,
    /// Random per process; tells our own answer from a namesake's (spec/rest-api.md D12).
    pub instance: String,

    /// What PostgreSQL is doing, as the agent remembers it.
    pub state: PgState,
    /// The role the agent remembers. `promoted` and `demoted` are possible values.
    pub role: Role,
    /// The postmaster process is alive (liveness, spec §6).
    pub postmaster_alive: bool,
    /// The last status query; `None` when it was not tried (state) or failed.
    pub postgres: Option<PostgresStatus>,
    /// How to ask for a status of this moment; `None`: only the published one is there.
    pub live: Option<LiveStatus>,
    /// The server's system identifier, unless unknown or bootstrapping.
    pub system_id: Option<SystemId>,

    /// Until when this node may call itself leader: its own lease, or a failsafe agreement that renews it. `None`: not leader.
    pub leader_until: Option<Moment>,
    /// The last snapshot; `None` as soon as one read failed, until the next succeeds.
    pub snapshot: Option<Snapshot>,
    /// The failsafe topology as last read, however long ago: it matters exactly when the store is away.
    pub failsafe_topology: Option<Arc<BTreeMap<MemberName, String>>>,
    /// When the store last answered; zero = never.
    pub dcs_last_seen: WallTime,
    /// Why there is no snapshot, for people ("etcd3 http://…: connection refused"); part of 503 explanations.
    pub dcs_error: Option<String>,
    /// The settings in force, last known ones included.
    pub settings: ViewSettings,
    /// Failsafe mode counts as active here until then (an accepted ping on a member, all agreed on the leader).
    pub failsafe_until: Option<Moment>,

    /// My configured tags, typed.
    pub tags: Tags,
    /// My configured tags as `tag_*` filters see them (spec §5.3): defaults left out, no dynamic additions.
    pub configured_tags: Map<String, Value>,
    /// My effective tags as published in the member document (dynamic `nosync` and `sync_priority` included).
    pub effective_tags: Map<String, Value>,

    /// Settings that wait for a restart; `Some(empty)`: pending without reasons.
    pub pending_restart: Option<BTreeMap<String, PendingChange>>,
    /// A restart accepted for later.
    pub scheduled_restart: Option<ScheduledRestart>,
    /// Watchdog required but unusable.
    pub watchdog_failed: bool,
    /// Why this node could not serve as leader.
    pub cannot_serve: Option<String>,

    /// When the loop last finished a turn.
    pub last_turn: Moment,
    /// When the loop is due next; liveness allows `ttl` or `2·ttl` beyond it.
    pub next_turn: Moment,
    /// The core's last reason, one line for people.
    pub reason: String,
    /// The same as an explanation: why this node is or is not the leader.
    pub explanation: Explanation,
    /// Counters for `/metrics`.
    pub counters: Counters,
    /// The running job, for `/metrics`.
    pub job: Option<RunningJob>,
    /// Log lines that wait, and that were dropped.
    pub log: Backlog,
}

/// The long work that is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunningJob {
    /// `clone`, `promote`, ….
    pub name: &'static str,
    /// Since when.
    pub since: Moment,
    /// Bytes copied, and to be copied in all; `None` for work that copies nothing.
    pub bytes: Option<(u64, u64)>,
}

/// A snapshot and when it was read.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// What the store said.
    pub cluster: Arc<Cluster>,
    /// When the read was answered; the snapshot counts for `ttl`.
    pub read_at: Moment,
}

impl PartialEq for Snapshot {
    /// The same snapshot, not an equal one: comparing contents is the reader's business.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.cluster, &other.cluster) && self.read_at == other.read_at
    }
}

/// The settings that answers depend on.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewSettings {
    /// Lease time.
    pub ttl: Duration,
    /// Time between turns.
    pub loop_wait: Duration,
    /// Management is paused (last known value).
    pub pause: bool,
    /// `standby_cluster` has a host, port or restore_command.
    pub standby_cluster: bool,
    /// Synchronous mode in force (inactive in a standby cluster).
    pub synchronous_mode: SynchronousMode,
    /// `failsafe_mode` is on.
    pub failsafe_mode: bool,
    /// `/primary` needs PostgreSQL that takes writes, not the lease alone (`restapi.primary_when`).
    pub primary_when_writable: bool,
    /// Bytes; `/readiness` uses it as the default lag limit.
    pub maximum_lag_on_failover: u64,
    /// The patience of a restart without a timeout of its own.
    pub primary_start_timeout: Duration,
}

impl Default for ViewSettings {
    fn default() -> Self {
        ViewSettings {
            ttl: Duration::from_secs(30),
            loop_wait: Duration::from_secs(10),
            pause: false,
            standby_cluster: false,
            synchronous_mode: SynchronousMode::Off,
            failsafe_mode: false,
            primary_when_writable: false,
            maximum_lag_on_failover: 1_048_576,
            primary_start_timeout: Duration::from_secs(300),
        }
    }
}

/// `synchronous_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SynchronousMode {
    /// Asynchronous.
    #[default]
    Off,
    /// Priority mode: the `/sync` document lists the synchronous standbys.
    On,
    /// Quorum mode: it lists the voters.
    Quorum,
}

/// One answered status query (spec §4).
#[derive(Debug, Clone, PartialEq)]
pub struct PostgresStatus {
    /// `server_version_num`.
    pub server_version: PgVersion,
    /// When the postmaster started, in microseconds since 1970.
    pub postmaster_start_time: PgTimestamp,
    /// The timeline; in recovery the one being received or replayed, `None` = unknown.
    pub timeline: Option<Timeline>,
    /// Positions. [`Xlog::Primary`] means: PostgreSQL is really out of recovery and writable.
    pub xlog: Xlog,
    /// How a standby receives WAL.
    pub replication_state: Option<ReplicationState>,
    /// `pg_stat_replication`, in its order.
    pub replication: Vec<Walsender>,
    /// A standby that has not replayed yet what it had received before it was started: it has more than its positions say.
    pub replaying: bool,
}

impl PostgresStatus {
    /// PostgreSQL is out of recovery.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        matches!(self.xlog, Xlog::Primary { .. })
    }
}

/// A PostgreSQL timestamp: microseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PgTimestamp(pub i64);

/// WAL positions by recovery status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Xlog {
    /// Out of recovery.
    Primary {
        /// Flush position.
        location: Lsn,
    },
    /// In recovery.
    Standby {
        /// Written, else received, else replayed position.
        received: Lsn,
        /// Replayed position.
        replayed: Lsn,
        /// Commit time of the last replayed transaction.
        replayed_timestamp: Option<PgTimestamp>,
        /// Replay is paused.
        paused: bool,
        /// `latest_end_lsn` of the WAL receiver: what the upstream last said it has.
        latest_end: Option<Lsn>,
    },
}

/// One row of `pg_stat_replication`. Columns may be null.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the columns of pg_stat_replication")]
pub struct Walsender {
    pub usename: Option<String>,
    pub application_name: Option<String>,
    pub client_addr: Option<String>,
    pub state: Option<String>,
    pub sync_state: Option<String>,
    pub sync_priority: Option<i32>,
}

/// Counts since the process started, for `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Finished turns of the loop.
    pub turns: u64,
    /// Turns that took longer than `loop_wait`.
    pub overruns: u64,
    /// Reads and writes of the store that failed or stayed unanswered.
    pub dcs_failures: u64,
    /// Status queries that failed.
    pub postgres_failures: u64,
    /// From when this node saw that nobody leads, or was handed the key, until it took writes.
    pub failovers: Histogram,
    /// Turns of the loop.
    pub turn_times: Histogram,
    /// Calls to the store that were answered.
    pub dcs_times: Histogram,
    /// What was left of the lease, up to the moment in which PostgreSQL is stopped, when it was renewed.
    pub lease_margins: Histogram,
}

impl NodeView {
    /// The view before the first turn: nothing known, PostgreSQL stopped.
    #[must_use]
    pub fn starting(name: MemberName, scope: impl Into<String>, now: Moment) -> Self {
        let explanation = Explanation {
            sentence: format!("{name} is not the leader: it has not looked at the cluster yet"),
            member: name.clone(),
            leads: false,
            waits_for: Some("its first turn".to_owned()),
        };
        NodeView {
            name,
            scope: scope.into(),
            group: None,
            instance: format!("{:016x}", rand::random::<u64>()),
            state: PgState::Stopped,
            role: Role::Uninitialized,
            postmaster_alive: false,
            postgres: None,
            live: None,
            system_id: None,
            leader_until: None,
            snapshot: None,
            failsafe_topology: None,
            dcs_last_seen: WallTime(0),
            dcs_error: None,
            settings: ViewSettings::default(),
            failsafe_until: None,
            tags: Tags::default(),
            configured_tags: Map::new(),
            effective_tags: Map::new(),
            pending_restart: None,
            scheduled_restart: None,
            watchdog_failed: false,
            cannot_serve: None,
            last_turn: now,
            next_turn: now,
            reason: "starting".to_owned(),
            explanation,
            counters: Counters::default(),
            job: None,
            log: Backlog::default(),
        }
    }

    /// L of spec §4: this node holds the leader lock by its own deadline.
    #[must_use]
    pub fn is_leader(&self, now: Moment) -> bool {
        self.leader_until.is_some_and(|until| until > now)
    }

    /// C of spec §4: the cached snapshot, unless a read failed since or it is older than `ttl`.
    #[must_use]
    pub fn current_cluster(&self, now: Moment) -> Option<&Arc<Cluster>> {
        let snapshot = self.snapshot.as_ref()?;
        (now.since(snapshot.read_at) < self.settings.ttl).then_some(&snapshot.cluster)
    }

    /// Failsafe mode is active here.
    #[must_use]
    pub fn failsafe_active(&self, now: Moment) -> bool {
        self.failsafe_until.is_some_and(|until| until > now)
    }
}

/// What people and peers ask of the agent. Each is answered exactly once; a dropped reply reads as an internal failure.
#[derive(Debug)]
pub enum Command {
    /// A document in the store was written on someone's behalf: run a turn now.
    Wake,
    /// `POST /reload`: as SIGHUP.
    Reload,
    /// Restart PostgreSQL now; answered when it is over.
    Restart {
        /// For which servers.
        conditions: RestartConditions,
        /// The outcome.
        reply: oneshot::Sender<RestartOutcome>,
    },
    /// Restart it later. `false`: another one is scheduled already.
    ScheduleRestart {
        /// When and for which servers; the agent fills in the start time.
        restart: ScheduledRestart,
        /// Whether it was accepted.
        reply: oneshot::Sender<bool>,
    },
    /// Forget a scheduled restart. `false`: there was none.
    CancelRestart {
        /// Whether there was one.
        reply: oneshot::Sender<bool>,
    },
    /// Throw the data directory away and clone it anew.
    Reinitialize {
        /// Cancel a running job first.
        force: bool,
        /// Clone from the leader with a base backup.
        from_leader: bool,
        /// Started, or why not.
        reply: oneshot::Sender<ReinitializeOutcome>,
    },
    /// `POST /failsafe`: the primary asks whether it may go on without the store.
    FailsafePing {
        /// Who asks.
        ping: FailsafePing,
        /// The answer.
        reply: oneshot::Sender<FailsafeOutcome>,
    },
    /// `POST /citus` or `/mpp`, answered when the metadata change is done (or at once if there is nothing to do).
    Citus {
        /// The event.
        event: CitusEvent,
        /// Done.
        reply: oneshot::Sender<()>,
    },
}

/// How an immediate restart ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestartOutcome {
    /// `restarted successfully`.
    Done,
    /// `restart conditions are not satisfied`.
    ConditionsNotMet,
    /// `<job> already in progress`.
    Busy(String),
    /// `postgres is still starting`.
    StillStarting,
    /// `restart failed`.
    Failed,
}

/// Whether a reinitialisation began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReinitializeOutcome {
    /// `reinitialize started`.
    Started,
    /// `Cluster has no leader, can not reinitialize`.
    NoLeader,
    /// `I am the leader, can not reinitialize`.
    IAmLeader,
    /// `<job> already in progress`.
    Busy(String),
}

/// The body of `POST /failsafe` (spec §13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailsafePing {
    /// The primary's name.
    pub name: MemberName,
    /// Its `conn_url`.
    pub conn_url: String,
    /// Its `api_url`.
    pub api_url: String,
    /// Slot name → position, as in `/status`, its own included.
    pub slots: BTreeMap<String, Lsn>,
}

/// The answer to a failsafe ping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailsafeOutcome {
    /// 200 `Accepted`, with my received or replayed position if known.
    Accepted(Option<Lsn>),
    /// 500 `Running as a leader`.
    RunningAsLeader,
    /// 500: the store shows this member another leader than the one who asks.
    AnotherLeads(MemberName),
    /// 502: failsafe mode is off.
    NotEnabled,
}

/// The body of `POST /citus` (spec §14).
#[derive(Debug, Clone, PartialEq)]
pub struct CitusEvent {
    /// `before_demote`, `before_promote`, `after_promote`, …
    pub kind: String,
    /// The worker's group.
    pub group: u32,
    /// The worker group's leader.
    pub leader: MemberName,
    /// How long traffic may be held.
    pub timeout: Duration,
    /// Patience before running queries are ended.
    pub cooldown: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leadership_and_snapshots_expire_by_the_clock() {
        let at = |secs| Moment(Duration::from_secs(secs));
        let mut view = NodeView::starting(MemberName::new("a").unwrap(), "demo", at(0));
        assert!(!view.is_leader(at(0)));
        view.leader_until = Some(at(30));
        assert!(view.is_leader(at(29)));
        assert!(!view.is_leader(at(30)), "the deadline itself is too late");
        view.snapshot = Some(Snapshot {
            cluster: Arc::default(),
            read_at: at(10),
        });
        assert!(view.current_cluster(at(39)).is_some());
        assert!(view.current_cluster(at(40)).is_none());
    }

    #[test]
    fn restart_conditions_are_anded() {
        let conditions = RestartConditions {
            role: Some(Role::Replica),
            below_version: Some(("17.3".to_owned(), PgVersion(170_003))),
            only_pending: true,
            timeout: None,
        };
        assert!(conditions.hold(Role::Replica, Some(PgVersion(170_002)), true));
        assert!(!conditions.hold(Role::Primary, Some(PgVersion(170_002)), true));
        assert!(!conditions.hold(Role::Replica, Some(PgVersion(170_003)), true));
        assert!(!conditions.hold(Role::Replica, None, true));
        assert!(!conditions.hold(Role::Replica, Some(PgVersion(170_002)), false));
        assert!(RestartConditions::default().hold(Role::Primary, None, false));
    }
}
