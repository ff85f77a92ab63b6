//! The whole input of the core: what this node knows at one moment, and what it remembers of earlier turns.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::cluster::{Cluster, Tags};
use crate::types::{
    Lsn, MemberName, Moment, PgState, PgVersion, ReplicationState, Role, SystemId, Timeline,
    WallTime,
};

use super::decision::Job;

/// Everything one decision may depend on.
#[derive(Debug, Clone)]
pub struct Observation {
    /// My name.
    pub me: MemberName,
    /// The time of this observation.
    pub now: Moment,
    /// Wall-clock time, for scheduled actions only.
    pub wall: WallTime,
    /// Dynamic settings in force, and the local ones the core needs.
    pub settings: Settings,
    /// My own effective tags.
    pub tags: Tags,
    /// The store as last heard in this turn.
    pub store: StoreView,
    /// The lease by our own record, whatever the snapshot says.
    pub lease: Option<LeaseView>,
    /// What was already tried in this turn, so that a step is not repeated in it.
    pub tried: Tried,
    /// The local PostgreSQL.
    pub postgres: Local,
    /// The one long job.
    pub job: JobView,
    /// Answers of peers, once asked in this turn; `None` = not asked.
    pub peers: Option<Vec<Peer>>,
    /// The watchdog device.
    pub watchdog: WatchdogView,
    /// Local requests (REST) that wait for a decision, oldest first.
    pub requests: Vec<Request>,
    /// The agent was told to stop (SIGTERM, SIGINT).
    pub stopping: bool,
    /// What failsafe mode has agreed on.
    pub failsafe: FailsafeView,
    /// Who was last heard, for a leader that may be alone.
    pub heard: Heard,
    /// When this agent was started: what it promised before is not known.
    pub agent_since: Moment,
    /// What keeps this node from serving as it should, in words: no space, an unusable directory, an API that does not answer.
    pub ailment: Option<String>,
}

/// Failsafe mode as this node knows it (spec/ha.md §14).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FailsafeView {
    /// As a member: the word given to a leader.
    pub promise: Option<Promise>,
    /// As the leader: all members agreed since the store last confirmed the lease; their word holds until then.
    pub agreed_until: Option<Moment>,
    /// As the leader: some member may still be bound by its word until then (in the future).
    pub bound_until: Option<Moment>,
}

/// The word of a member: it does not try to get the leader key before `until`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// Given to whom.
    pub leader: MemberName,
    /// Its conn_url.
    pub conn_url: String,
    /// Its api_url.
    pub api_url: String,
    /// One ttl after it was given.
    pub until: Moment,
}

/// When somebody was last heard: the time at which what was answered had been asked, never later than the answer. `None`: not yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heard {
    /// The store itself, not its cached picture.
    pub store: Option<Moment>,
    /// Any other member's REST API.
    pub members: Option<Moment>,
    /// Any member's WAL receiver.
    pub standbys: Option<Moment>,
}

impl Observation {
    /// The snapshot, if the store answered in this turn.
    #[must_use]
    pub fn cluster(&self) -> Option<&Cluster> {
        match &self.store {
            StoreView::Fresh(cluster) => Some(cluster),
            StoreView::Silent { .. } => None,
        }
    }
}

/// Settings in the core's own units (spec/ha.md §1.3).
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Lifetime of the leader key.
    pub ttl: Duration,
    /// Time between turns when nothing happens.
    pub loop_wait: Duration,
    /// Budget of a store operation.
    pub retry_timeout: Duration,
    /// Bytes a candidate may lag behind the last published position.
    pub maximum_lag_on_failover: u64,
    /// Bytes a synchronous standby may lag; `None` = any.
    pub maximum_lag_on_syncnode: Option<u64>,
    /// How long a crashed primary may try to come back before the lock is given away; zero = at once.
    pub primary_start_timeout: Duration,
    /// Bound of a primary's stop in the synchronous modes; zero = none.
    pub primary_stop_timeout: Duration,
    /// A running primary that answers no query for so long has failed; zero = never.
    pub primary_answer_timeout: Duration,
    /// Delay of the race while WAL still advances; zero = none.
    pub primary_race_backoff: Duration,
    /// Refuse candidates behind the cluster's timeline.
    pub check_timeline: bool,
    /// Maintenance: touch nothing.
    pub pause: bool,
    /// Synchronous replication mode.
    pub synchronous: Synchronous,
    /// Failsafe mode.
    pub failsafe: bool,
    /// A leader that hears nobody lets its commits wait.
    pub isolation_hold: bool,
    /// Entries kept in the history document; zero = all.
    pub max_timelines_history: usize,
    /// `standby_cluster` is set: never promote, follow this instead.
    pub standby_cluster: Option<Upstream>,
    /// A `bootstrap` section (or its default) allows this node to create the cluster.
    pub may_bootstrap: bool,
    /// pg_rewind is enabled and usable (configured, checksums or wal_log_hints).
    pub may_rewind: bool,
    /// A diverged directory may be replaced by a clone (`remove_data_directory_on_diverged_timelines`).
    pub may_replace_diverged: bool,
    /// The same after a failed rewind (`remove_data_directory_on_rewind_failure`).
    pub may_replace_unrewindable: bool,
    /// A replica method works without a leader (`no_leader`).
    pub may_clone_without_leader: bool,
    /// A watchdog device is required to lead.
    pub watchdog_required: bool,
    /// Replication slots are used.
    pub use_slots: bool,
    /// Hand the leader key straight to the candidate in a switchover (spec/ha.md §23.4).
    pub hand_over: bool,
    /// Time kept before the lease's end in which PostgreSQL must be stopped (S1's margin).
    pub stop_margin: Duration,
}

/// Synchronous mode as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronous {
    /// Asynchronous.
    Off,
    /// Named standbys (`on`).
    Priority {
        /// Commits wait rather than run unreplicated.
        strict: bool,
        /// Wanted number of synchronous standbys.
        count: u32,
    },
    /// `ANY n`.
    Quorum {
        /// Commits wait rather than run unreplicated.
        strict: bool,
        /// Wanted number of acknowledging standbys.
        count: u32,
    },
}

/// What the store said in this turn.
#[derive(Debug, Clone, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "one value per turn; a box would only cost"
)]
pub enum StoreView {
    /// A snapshot of this turn (at least as new as this node's own last write).
    Fresh(Cluster),
    /// No answer within the budget.
    Silent {
        /// When it last answered; `None` = never.
        since: Option<Moment>,
        /// The last snapshot, for topology only.
        last: Option<Box<Cluster>>,
    },
}

/// Our own record of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseView {
    /// When the last successful acquire or renewal was SENT.
    pub sent: Moment,
    /// `sent + ttl`: after this the store may give the key to somebody else.
    pub expires: Moment,
}

/// What this turn has already tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tried {
    /// Outcome of a renewal in this turn.
    pub renew: Option<Outcome>,
    /// Outcome of an acquisition (acquire, adopt, take) in this turn.
    pub acquire: Option<Outcome>,
    /// Outcome of the last document write in this turn.
    pub write: Option<Outcome>,
    /// Outcome of a hand-over in this turn.
    pub hand_over: Option<Outcome>,
    /// Outcome of a release in this turn.
    pub release: Option<Outcome>,
    /// Outcome of a change of `synchronous_standby_names` in this turn: `Done` = seen in force, `Unknown` = written, not seen yet.
    pub names: Option<Outcome>,
    /// Outcome of asking the members in failsafe mode: `Done` = all agreed, and the lease was extended; `Unknown` = the store answered
    /// first.
    pub failsafe: Option<Outcome>,
    /// The store was read again by [`super::Step::Reload`].
    pub reloaded: bool,
    /// Steps carried out in this turn so far.
    pub steps: u32,
}

/// The three outcomes of a write, without their payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It happened.
    Done,
    /// The store said no.
    Refused,
    /// It may have happened.
    Unknown,
}

/// The local PostgreSQL and its data directory.
#[derive(Debug, Clone, PartialEq)]
pub struct Local {
    /// The data directory.
    pub directory: Directory,
    /// The postmaster.
    pub process: Process,
    /// My role as published.
    pub role: Role,
    /// My state as published.
    pub state: PgState,
    /// Server version, once known.
    pub version: Option<PgVersion>,
    /// Recovery is configured (standby.signal, recovery.signal, recovery.conf).
    pub standby_configured: bool,
    /// Where it stands, when it runs and answered in this turn.
    pub position: Option<Position>,
    /// What the replication settings on disk point to; `None` = nothing configured.
    pub follows: Option<Upstream>,
    /// Whether this history is a prefix of the leader's, as last checked.
    pub divergence: Divergence,
    /// Replay is paused because `max_*` settings are below the primary's.
    pub replay_paused: bool,
    /// Who decides `synchronous_standby_names` in the files here; `None` = nobody has since the agent started.
    pub standby_names: Option<StandbyNames>,
    /// What the running server says of synchronous replication.
    pub replication: Option<Replication>,
    /// Logical slots of the leader that this standby should have and has not.
    pub missing_slots: Vec<String>,
}

/// Who decides `synchronous_standby_names`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StandbyNames {
    /// The user's configuration.
    Configured,
    /// The core: this value; `None` = unset.
    Managed(Option<String>),
}

/// Synchronous replication as the running server has it (spec/ha.md §12.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replication {
    /// When it was asked.
    pub at: Moment,
    /// `synchronous_standby_names` in force.
    pub names: String,
    /// What a commit waits for, by `synchronous_commit`.
    pub acknowledged: Acknowledged,
    /// Who is connected.
    pub standbys: Vec<Connection>,
}

/// What the standby must have done with a commit before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledged {
    /// `remote_write`.
    Written,
    /// Everything else.
    Flushed,
    /// `remote_apply`.
    Replayed,
}

/// A standby's connection (a row of `pg_stat_replication`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Its application_name.
    pub name: String,
    /// It streams (is not catching up or taking a backup).
    pub streaming: bool,
    /// What it is to commits.
    pub standing: Standing,
    /// Written there.
    pub written: Option<Lsn>,
    /// Flushed there.
    pub flushed: Option<Lsn>,
    /// Replayed there.
    pub replayed: Option<Lsn>,
}

/// `sync_state`, in ascending order of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "PostgreSQL's own names")]
pub enum Standing {
    Async,
    Potential,
    Quorum,
    Sync,
}

/// The data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directory {
    /// Missing or empty by the rule of spec/postgres-management.md §1.3.
    Empty,
    /// Cannot be read; the text says why.
    Inaccessible(String),
    /// There is one.
    Present {
        /// Its identifier; `None` = the control file is unreadable: broken.
        system_id: Option<SystemId>,
        /// The control file's facts, if readable.
        control: Option<Control>,
    },
}

/// Facts from the control file the core needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// What the file says the server was last doing.
    pub state: ControlState,
    /// Timeline of the latest checkpoint.
    pub timeline: Timeline,
    /// Position of the latest checkpoint.
    pub checkpoint: Lsn,
    /// `backup_label` is present (an unfinished base backup).
    pub backup_label: bool,
}

/// `Database cluster state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "PostgreSQL's own names")]
pub enum ControlState {
    StartingUp,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
    Unknown,
}

/// The postmaster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// No postmaster.
    Down {
        /// It died without having been asked to stop.
        crashed: bool,
    },
    /// Alive, does not accept connections yet.
    Starting {
        /// Since when.
        since: Moment,
    },
    /// Accepts connections.
    Up,
}

/// Where the running server stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Position {
    /// Out of recovery: it accepts writes.
    Primary {
        /// Its timeline.
        timeline: Timeline,
        /// Its flush position.
        lsn: Lsn,
    },
    /// In recovery.
    Standby {
        /// Its timeline, if known.
        timeline: Option<Timeline>,
        /// Received position (zero: none).
        received: Lsn,
        /// Replayed position.
        replayed: Lsn,
        /// How it receives WAL.
        replication: Option<ReplicationState>,
    },
}

impl Position {
    /// Flush position of a primary, max(received, replayed) of a standby.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        match self {
            Position::Primary { lsn, .. } => *lsn,
            Position::Standby {
                received, replayed, ..
            } => (*received).max(*replayed),
        }
    }

    /// Its timeline, if known.
    #[must_use]
    pub fn timeline(&self) -> Option<Timeline> {
        match self {
            Position::Primary { timeline, .. } => Some(*timeline),
            Position::Standby { timeline, .. } => *timeline,
        }
    }
}

/// A server to receive WAL from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// A member of this cluster.
    Member {
        /// Its name.
        name: MemberName,
        /// Its conn_url.
        conn_url: String,
    },
    /// The remote primary of a standby cluster (or its archive only).
    Remote {
        /// Host or hosts; `None`: archive only.
        host: Option<String>,
        /// Port or ports.
        port: Option<String>,
        /// Slot there.
        slot: Option<String>,
        /// Its restore_command.
        restore_command: Option<String>,
    },
    /// Configured as a standby of nobody (read-only, waits).
    Nobody,
}

impl Upstream {
    /// Under which name histories are compared with it: the member's, or the remote primary's with its address, because a verdict about
    /// one server says nothing about another. `None`: nobody.
    #[must_use]
    pub fn name(&self) -> Option<MemberName> {
        match self {
            Upstream::Member { name, .. } => Some(name.clone()),
            Upstream::Remote { host, port, .. } => {
                let address = [Some(Self::REMOTE), host.as_deref(), port.as_deref()];
                let words: Vec<&str> = address.into_iter().flatten().collect();
                MemberName::new(words.join(" ")).ok()
            }
            Upstream::Nobody => None,
        }
    }

    /// Whether this is the name of a standby cluster's remote primary.
    pub(super) fn is_remote(name: &MemberName) -> bool {
        name.as_str().starts_with(Self::REMOTE)
    }

    const REMOTE: &str = "the remote primary";
}

/// Whether the local history is a prefix of the leader's (S3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Divergence {
    /// Not checked since the last event that could have changed it.
    Unchecked,
    /// A prefix of this leader's history.
    Prefix {
        /// Of whom.
        of: MemberName,
    },
    /// Diverged; the text says where, for people.
    Diverged {
        /// From whom.
        from: MemberName,
        /// In words, with timelines and positions.
        detail: String,
    },
    /// A rewind was tried and failed.
    RewindFailed {
        /// From whom.
        from: MemberName,
    },
}

/// The one long job.
#[derive(Debug, Clone, PartialEq)]
pub enum JobView {
    /// None.
    Idle,
    /// At work.
    Running {
        /// What.
        job: Job,
        /// Since when.
        since: Moment,
        /// A stop has written its shutdown checkpoint at this position: no commit can be acknowledged any more (the safe
        /// point), although the postmaster may still run (archiving, slow walsenders).
        shut_down_at: Option<Lsn>,
        /// It was told to cancel.
        cancelled: bool,
    },
    /// Ended; shown in exactly one turn.
    Finished {
        /// What.
        job: Job,
        /// How.
        end: JobEnd,
    },
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEnd {
    /// As wanted.
    Done,
    /// A stop that wrote its shutdown checkpoint here.
    StoppedAt(Lsn),
    /// Not; the text is for people.
    Failed(String),
    /// Cancelled before its point of no return.
    Cancelled,
}

/// One member's answer to a status request in this turn (spec/ha.md §6.2).
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// Who was asked.
    pub name: MemberName,
    /// What it said; `None` = unreachable, or its PostgreSQL does not answer.
    pub answer: Option<PeerAnswer>,
}

/// A usable answer.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerAnswer {
    /// It is in recovery.
    pub in_recovery: bool,
    /// Position of a standby: max(received, replayed); of a primary: its flush position.
    pub lsn: Lsn,
    /// Its timeline, if it knows.
    pub timeline: Option<Timeline>,
    /// Its tags.
    pub tags: Tags,
    /// Its required watchdog is unusable.
    pub watchdog_failed: bool,
    /// It says that it could not serve.
    pub cannot_serve: bool,
    /// It has not replayed yet what it had received before it was started: it has more than `lsn` says.
    pub replaying: bool,
}

/// The watchdog device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchdogView {
    /// It is armed, or need not be: the mode is off, or `automatic` and the device does not work.
    pub armed: bool,
    /// It is or could be armed, or the mode is not `required`.
    pub usable: bool,
}

/// A local request (REST) that changes what this node does.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Restart PostgreSQL.
    Restart {
        /// Bound of the start; `None` = primary_start_timeout.
        timeout: Option<Duration>,
    },
    /// Wipe and clone again.
    Reinitialize {
        /// Cancel a running job for it.
        force: bool,
        /// Clone from the leader even if a replica is preferred.
        from_leader: bool,
    },
}

/// What the core remembers between decisions. The agent keeps it and hands it back; it never looks inside.
///
/// Losing it (agent restart) costs time, never safety: everything that safety needs can be read again from the store, from the
/// control file and from the configuration on disk.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Memory {
    /// Members of the last snapshot that had a leader, for races in which member keys have expired.
    pub(super) last_led: BTreeMap<MemberName, crate::cluster::Member>,
    /// Who led then.
    pub(super) last_leader: Option<MemberName>,
    /// A promotion failed or the watchdog could not be armed: no race until then.
    pub(super) no_race_until: Option<Moment>,
    /// When a rewind that failed is tried again.
    pub(super) rewind_again: Option<Moment>,
    /// Since when the race is backed off (`primary_race_backoff`).
    pub(super) race_backoff: Option<Moment>,
    /// Position in the previous turn; tells whether WAL still arrives.
    pub(super) previous_lsn: Option<(Moment, Lsn)>,
    /// Others hold back for a named candidate until then.
    pub(super) yield_until: Option<Moment>,
    /// How far this node's creation of the cluster has come.
    pub(super) bootstrap: Bootstrap,
    /// The directory was just cloned or rewound and not started since: its history is the source's.
    pub(super) fresh: bool,
    /// Single-user crash recovery was tried since the last successful start.
    pub(super) crash_recovery_done: bool,
    /// The timeline on which this directory was a primary since it was last proven a prefix of a leader's history.
    pub(super) was_primary_on: Option<Timeline>,
    /// Who opened the timeline this directory is on, as the history said while it was received or written here.
    pub(super) opened_by: Option<(Timeline, MemberName)>,
    /// The leader and its timeline with which a comparison was begun.
    pub(super) comparing: Option<(MemberName, Option<Timeline>)>,
    /// The leader and its timeline with which histories were last compared to a verdict.
    pub(super) compared_with: Option<(MemberName, Option<Timeline>)>,
    /// PostgreSQL was stopped (or stays down) to give the leader key away.
    pub(super) abdicating: bool,
    /// The store has shown a cluster, or this server was not found running: it may stand for election.
    pub(super) belongs: bool,
    /// A switchover stopped this leader: it comes back as a standby even when paused.
    pub(super) switching: bool,
    /// The leader from whose history this one is known to have diverged, until it was repaired or proven a prefix.
    pub(super) diverged: Option<MemberName>,
    /// Since when the leader of a standby cluster receives nothing because of a switchover.
    pub(super) handing_on: Option<Moment>,
    /// Members that were on this leader's timeline when its switchover began.
    pub(super) successors: BTreeSet<MemberName>,
    /// The end of this primary that is yet to be published, and when it was seen (demote-cluster).
    pub(super) ended_at: Option<(Lsn, Moment)>,
    /// Shutdown checkpoint of the last stop and when its end was seen, while PostgreSQL is down.
    pub(super) stopped_at: Option<(Lsn, Moment)>,
    /// A request was accepted and its job has not begun yet.
    pub(super) accepted: Option<Request>,
    /// How long the start of the restart that was asked for may take, by the request's own word, until the server runs.
    pub(super) start_limit: Option<Duration>,
    /// The watchdog was to be armed since it was last seen armed or not needed.
    pub(super) watchdog_tried: bool,
    /// Replication was pointed there at that time; not repeated at once when the observation still differs.
    pub(super) followed: Option<(Upstream, Moment)>,
    /// Replay was resumed since it was last seen running.
    pub(super) replay_resumed: bool,
    /// `synchronous_standby_names` as this primary has it in force, and what was acknowledged before.
    pub(super) in_force: Option<InForce>,
    /// The value that this running standby uses, and since when it has been seen.
    pub(super) names_on_standby: Option<(String, Moment)>,
    /// A write of `sync` based on this revision was sent in this turn.
    pub(super) sync_sent: Option<Option<crate::types::Revision>>,
    /// A write of `sync` based on this revision was not answered then: it may still happen.
    pub(super) sync_doubt: Option<(Option<crate::types::Revision>, Moment)>,
    /// When failsafe mode was last seen to be on.
    pub(super) failsafe_on: Option<Moment>,
    /// A failsafe topology was sent in this turn.
    pub(super) failsafe_sent: Option<BTreeMap<MemberName, String>>,
    /// While the store is silent some members answered and not all in time: they get all of it.
    pub(super) failsafe_patient: bool,
    /// Members (with their addresses) of topologies whose writes were not answered then.
    pub(super) failsafe_doubt: BTreeMap<MemberName, (String, Moment)>,
    /// Since when this standby asks to be released from synchronous duty before it stops.
    pub(super) leaving: Option<Moment>,
    /// What keeps this node from serving.
    pub(super) ailing: Option<Ailing>,
    /// This leader does not look for a better one before then.
    pub(super) stays_until: Option<Moment>,
    /// Since when the primary here runs and does not answer.
    pub(super) silent_since: Option<Moment>,
    /// Since when the election waits for a peer that still replays.
    pub(super) replay_awaited: Option<Moment>,
    /// Since when the election leaves the key to a member of a higher priority.
    pub(super) preferred_awaited: Option<Moment>,
    /// An empty `initialize` of this revision with nobody at work, and since when.
    pub(super) claim_idle: Option<(Option<crate::types::Revision>, Moment)>,
    /// Highest timeline this node has promised not to go behind; the seam for failing over faster than the lease.
    pub promised: Option<Timeline>,
}

impl Memory {
    /// This standby is about to stop and asks not to be synchronous: its member document says `nosync` (spec/ha.md §12.8).
    #[must_use]
    pub fn leaves_synchronous_duty(&self) -> bool {
        self.leaving.is_some()
    }

    /// What keeps this node from serving as it should; its member document and its status say so.
    #[must_use]
    pub fn cannot_serve(&self) -> Option<&str> {
        let ailing = self.ailing.as_ref().filter(|ailing| ailing.lasting);
        let diverged = self.has_left_the_remote();
        ailing
            .map(|ailing| ailing.because.as_str())
            .or(diverged.then_some("its history has diverged from the remote primary's"))
    }

    /// Leading a standby cluster with such a history is better than nobody at all: nothing is written there, and an operator may make
    /// this site the primary one.
    pub(super) fn has_left_the_remote(&self) -> bool {
        self.diverged.as_ref().is_some_and(Upstream::is_remote)
    }
}

/// A condition that keeps this node from serving, with the memory that keeps it from flapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ailing {
    /// First seen.
    pub(super) since: Moment,
    /// Last seen.
    pub(super) seen: Moment,
    /// It has lasted long enough to count.
    pub(super) lasting: bool,
    /// In words.
    pub(super) because: String,
}

/// The value of `synchronous_standby_names` in force on this primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InForce {
    /// The value.
    pub(super) names: String,
    /// Since when it has been seen.
    pub(super) since: Moment,
    /// The primary's position once every backend must have taken it up: a standby that has this has everything acknowledged before.
    pub(super) reference: Option<Lsn>,
    /// Since when this server has been seen as a primary.
    pub(super) primary_since: Moment,
}

/// How far this node's creation of a new cluster has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Bootstrap {
    /// Not creating one.
    #[default]
    None,
    /// The claim on `initialize` was sent in this turn.
    Claiming,
    /// The claim's outcome is unknown since then.
    InDoubt(Moment),
    /// The claim is ours; the job runs or is about to.
    Claimed,
    /// The server runs; documents and the leader key are still to be written.
    Ready,
    /// The job failed and has cleaned up; the claim is to be withdrawn.
    Failed,
}
