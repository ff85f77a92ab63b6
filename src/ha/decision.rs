//! The whole output of the core: one step, its reason, and the memory for the next call.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::cluster::SyncState;
use crate::types::{Lsn, MemberName, Moment, Revision, SystemId, Timeline};

use super::observation::{Memory, StandbyNames, Upstream};

/// What to do now, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The one step.
    pub step: Step,
    /// Its reason.
    pub why: Why,
    /// Hand this back with the next observation.
    pub memory: Memory,
    /// Observe again no later than this, if earlier than the regular turn.
    pub wake_at: Option<Moment>,
}

/// One step. It carries everything it depends on: a stale step fails its precondition instead of doing harm.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// End of the turn: publish, touch the member key, wait.
    Rest,
    /// Ask these members for their status (all in parallel), then decide again with one [`Peer`] per asked member.
    ///
    /// [`Peer`]: super::observation::Peer
    AskPeers {
        /// Whom, where, and how long.
        whom: Vec<Asked>,
    },
    /// Failsafe mode: ask these members whether this leader may go on, all in parallel and together with the store if that is silent.
    /// If every one of them agrees, the lease holds for another ttl from the moment of asking.
    AskFailsafe {
        /// All others of the topology; nobody = agreed.
        whom: Vec<Asked>,
    },
    /// Read the store again (linearizable), then decide again.
    Reload,
    /// Extend the lease; with it publish `status` (position, slots).
    Renew,
    /// Try once to create the leader key.
    Acquire,
    /// The snapshot shows the key as mine but I have no lease record (restart of the agent, hand-over): adopt it.
    Adopt,
    /// Become leader right after bootstrap.
    Take,
    /// Delete the leader key; first publish this position if given.
    Release {
        /// Position of the shutdown checkpoint, if no commit can follow it.
        publish: Option<Lsn>,
    },
    /// Give the leader key to this member in one transaction after publishing the position; fall back to `Release`.
    HandOver {
        /// To whom.
        to: MemberName,
        /// Position of the shutdown checkpoint.
        publish: Lsn,
    },
    /// The lease is gone (expired or taken): forget our record of it.
    ForgetLease,
    /// Write a document, compare-and-set on what the snapshot of this observation showed.
    Write(Write),
    /// Begin the one long job. If one is running (only ever for a [`Job::Stop`] that cannot wait), it is aborted first.
    Start(Job),
    /// Tell the running job to stop before its point of no return.
    CancelJob,
    /// Point replication here and reload (no restart).
    Follow(Upstream),
    /// Resume a paused replay, so that PostgreSQL stops itself and is restarted with larger settings.
    ResumeReplay,
    /// Write `synchronous_standby_names` into the server's files; a running server reloads them. Afterwards look at the server again.
    SetSynchronousNames(StandbyNames),
    /// Arm the watchdog device.
    ArmWatchdog,
    /// Answer the oldest request: accepted (a job will start) or refused.
    Answer {
        /// `Err` = refusal.
        result: Result<(), Refused>,
    },
    /// Leave the main loop; the reason says why. PostgreSQL has been dealt with already.
    Exit {
        /// True: the agent ends with a failure status.
        failure: bool,
    },
}

/// One member to ask. The address comes along because the member's key may be gone from the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its name.
    pub name: MemberName,
    /// Its api_url as last published.
    pub api_url: String,
    /// Its answer counts if it comes within this time of asking; short for members whose key is gone, so that a dead one does not
    /// hold up the election.
    pub patience: Duration,
}

/// Documents the core wants written; the agent renders them (`cluster::wire`) and uses the snapshot's revisions.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Create `initialize` empty, only if absent: the bootstrap race.
    ClaimInitialize,
    /// Set `initialize` to my identifier.
    Initialize(SystemId),
    /// Delete `initialize` after a failed bootstrap.
    CancelInitialize,
    /// Delete the empty `initialize` of this revision: whoever claimed it is gone.
    WithdrawClaim(Revision),
    /// Write the dynamic configuration in force.
    Config,
    /// Empty the failover request.
    ClearFailover,
    /// Drop only `leader` from the failover request (paused manual failover).
    FailoverWithoutLeader,
    /// Rebuild the history document from the local history file.
    History,
    /// Publish the synchronous state; compare-and-set on the revision in it.
    Sync(SyncState),
    /// Remove the `sync` document.
    DropSync,
    /// Write `failsafe`: name → api_url of all members, this one included.
    Failsafe(BTreeMap<MemberName, String>),
    /// Write `status` with this position, where a server that keeps the key was shut down.
    Status(Lsn),
}

/// Long work. One at a time; cancellable; never in the loop.
#[derive(Debug, Clone, PartialEq)]
pub enum Job {
    /// Create a new database cluster: initdb or a custom method, start, users and post_bootstrap. Cleans up after itself.
    Bootstrap,
    /// Copy another server's data directory, then configure it as its standby (not started).
    Clone {
        /// From whom; `Nobody`: a method that needs no server.
        from: Upstream,
    },
    /// Start the server as a primary where it stands (crash recovery under the held lease).
    StartPrimary {
        /// Give up after.
        timeout: Duration,
    },
    /// Start the server as a standby.
    StartStandby {
        /// Of whom.
        of: Upstream,
    },
    /// Restart a running standby because its new settings need it.
    RestartToFollow {
        /// Whom.
        of: Upstream,
    },
    /// Leave recovery. The agent starts it only with the lease at hand.
    Promote,
    /// Stop the server and stay down.
    Stop {
        /// How.
        mode: StopMode,
        /// Bound; `None` = until it is down (escalates to immediate at the bound).
        bound: Option<Duration>,
        /// Run a CHECKPOINT first to make the stop short.
        checkpoint: bool,
        /// Why, for the log.
        purpose: StopPurpose,
    },
    /// Restart the server in its role (user's request, pending settings).
    Restart {
        /// Bound of the start.
        timeout: Duration,
    },
    /// Copy logical slots from the leader, which takes a restart.
    CopySlots {
        /// From whom.
        from: Upstream,
        /// Which.
        slots: Vec<String>,
    },
    /// Compare histories with this leader; the result is the observation's `divergence`.
    CheckDivergence {
        /// With whom.
        with: Upstream,
    },
    /// Single-user crash recovery, so that a rewind is possible.
    CrashRecovery,
    /// pg_rewind from this server (stopped before).
    Rewind {
        /// From whom.
        from: Upstream,
    },
    /// Put the directory aside or remove it (as the settings allow), then clone.
    Replace {
        /// From whom.
        from: Upstream,
        /// What it replaces for, for the log.
        because: ReplaceReason,
    },
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Disconnect clients, checkpoint.
    Fast,
    /// No checkpoint: crash recovery follows.
    Immediate,
}

/// Why a stop happens (spec/ha.md §7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopPurpose {
    /// A switchover or failover request; the key goes to somebody else at the safe point.
    Switchover,
    /// The lease is lost or about to end, or somebody else leads.
    LostLease,
    /// The store is silent.
    StoreSilent,
    /// The agent is stopping.
    Shutdown,
    /// The start or crash recovery took too long, or the watchdog cannot be armed, with the lease held.
    CannotLead,
    /// The directory is about to be worked on (rewind, replace).
    Maintenance,
    /// The cluster became a standby cluster.
    DemoteCluster,
}

/// Why a directory is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplaceReason {
    /// The operator asked.
    Requested,
    /// The operator asked for a base backup of the leader, whatever methods are configured (spec/postgres-management.md §9.4).
    RequestedFromLeader,
    /// Histories diverged.
    Diverged,
    /// A rewind failed.
    RewindFailed,
}

impl ReplaceReason {
    /// Whether an operator asked for it; then no setting is needed that allows it, and it is done in a pause, too.
    pub fn on_request(self) -> bool {
        match self {
            ReplaceReason::Requested | ReplaceReason::RequestedFromLeader => true,
            ReplaceReason::Diverged | ReplaceReason::RewindFailed => false,
        }
    }
}

/// Why a local request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Refused {
    NoLeader,
    IAmLeader,
    JobRunning,
    NotRunning,
}

/// The reason of a decision. One variant per branch of the core; rendered for people by `Display` alone.
///
/// Texts keep the fragments that people search upstream's logs for.
#[derive(Debug, Clone, PartialEq)]
#[allow(
    missing_docs,
    reason = "the variant says it; fields carry the data its text needs"
)]
pub enum Why {
    /// Placeholder until the first decision.
    NotDecidedYet,

    // The lease and the store.
    /// The lease ends soon and was not renewed: PostgreSQL must be down before.
    LeaseEnds { left: Duration, store_silent: bool },
    /// The stop for that reason is on its way.
    LeaseEndsStopping,
    /// The lease ended; PostgreSQL accepts no writes here.
    LeaseOver,
    /// A renewal is due.
    RenewalDue,
    /// The store did not say whether the renewal happened.
    RenewalUnanswered { until: Moment },
    /// The store refused the renewal: the key is not ours.
    RenewalRefused,
    /// The snapshot shows somebody else.
    KeyTaken { by: MemberName },
    /// The snapshot shows no leader although we had the key.
    KeyGone,
    /// The snapshot shows the key as ours, without a lease on record.
    KeyIsMine,
    /// The snapshot shows the key as ours, but the store does not confirm it.
    KeyNotConfirmed,
    /// The store is silent; the lease still covers this primary.
    StoreSilentLeading { until: Moment },
    /// The store is silent and this is no primary.
    StoreSilent,
    /// The store is silent and the cluster is paused.
    StoreSilentPaused,
    /// A primary without a lease while the store is silent.
    PrimaryWithoutLease,

    // Failsafe mode.
    /// The topology is not what is published.
    WritingFailsafe,
    /// The store does not answer: may this leader go on?
    AskingFailsafe,
    /// All members agreed.
    FailsafeLeading { until: Moment },
    /// Not all of them did.
    FailsafeRefused { until: Moment },
    /// The store is back, the key is not.
    FailsafeTakesKeyBack,
    /// Nobody holds the key, but this member gave its word to a leader.
    BoundByFailsafe { leader: MemberName },
    /// Not in the published topology.
    NotInFailsafe,
    /// What this agent's predecessor promised is not known, and somebody does not answer.
    FailsafeUncertain { silent: MemberName },
    /// The members are bound to this leader.
    SwitchoverWaits,

    // A leader that hears nobody.
    /// Commits are to wait from now on.
    HoldingCommits,
    /// Commits wait.
    CommitsHeld,
    /// The lease is confirmed: they go on.
    ReleasingCommits,

    // Jobs.
    /// A job runs with the lease held.
    BusyLeading { job: &'static str },
    /// A job runs without the lease.
    Busy { job: &'static str },
    /// The lease was lost before the promotion.
    LostBeforePromote,
    /// The lease was lost and a writable server has come up, or is about to.
    LostDuring { job: &'static str },
    /// A comparison with a leader that is gone holds up the race.
    LeaderGoneWhileComparing,
    /// A forced reinitialise ends the running job.
    CancelledForReinitialize { job: &'static str },
    /// A job that failed is tried again later.
    JobFailed { job: &'static str, detail: String },

    // Bootstrap and clone.
    /// Nobody has created the cluster: claim it.
    ClaimingBootstrap,
    /// Another node was faster.
    LostBootstrapRace,
    /// It is unknown whether the claim is ours.
    BootstrapClaimInDoubt,
    /// The claim's owner is gone.
    BootstrapClaimAbandoned,
    /// Create the cluster.
    Bootstrapping,
    /// Create the cluster as a copy of a remote one.
    BootstrappingStandbyCluster,
    /// The new cluster's documents.
    WritingInitialize,
    /// The dynamic configuration is missing in the store.
    WritingConfig,
    /// Take the key of the new cluster.
    InitializedCluster,
    /// The key of the new cluster could not be taken yet.
    CannotTakeKey,
    /// Creating the cluster failed.
    BootstrapFailed,
    /// Copy a member.
    Cloning { from: String },
    /// A replica method needs no server.
    CloningWithoutLeader,
    /// Empty directory, nobody to copy from.
    WaitingForLeader,
    /// Empty directory while paused.
    EmptyDirectoryPaused,
    /// Empty or unusable directory with the key held.
    NoDataWithLock,
    /// The directory cannot be read.
    DirectoryInaccessible { detail: String },
    /// The control file is unreadable.
    DirectoryBroken,
    /// Another cluster's data.
    SystemIdMismatch { mine: SystemId, theirs: SystemId },

    // PostgreSQL is down or starting.
    /// The lease holder's server died: start it where it stands.
    RestartingInPlace { crashed: bool },
    /// The lease holder's server is down and another can lead at once.
    GivingUpLock,
    /// A standby was found running, and the store knows of no cluster.
    StandbyBeforeItsPrimary,
    /// Ask whether somebody else could lead.
    AskingCandidates,
    /// The start takes too long and another can lead.
    StartTooSlow { after: Duration },
    /// Crash recovery takes too long and another can lead.
    RecoveryTooSlow { after: Duration },
    /// The start takes long, but nobody else can lead.
    StartSlowNobodyElse,
    /// The server starts.
    Starting,
    /// The start failed with the lease held.
    FailedToStartLeading,
    /// The start failed with the lease held, and nobody else can lead.
    StartFailedNobodyElse,
    /// Start without an upstream with the lease held.
    ReadOnlyWithLock,
    /// Start without an upstream because there is no leader.
    ReadOnlyWithoutLeader,
    /// Start as a secondary.
    StartingAsSecondary { of: String },
    /// A former primary that was not shut down cleanly.
    CrashRecovering,
    /// Compare histories before following.
    Comparing { with: String },
    /// The leader has not finished its promotion.
    WaitingForPromotion { leader: MemberName },
    /// The leader's post-promote checkpoint is not done.
    WaitingForCheckpoint { leader: MemberName },
    /// Histories diverged: rewind.
    Rewinding { from: MemberName, detail: String },
    /// Histories diverged: stop first.
    StoppingToRepair { detail: String },
    /// Histories diverged: copy again.
    Recloning {
        from: String,
        because: ReplaceReason,
    },
    /// Histories diverged and no way back is allowed.
    CannotRejoin { leader: MemberName, detail: String },
    /// Histories diverged, and the directory is not replaced in pause.
    RecloneAwaitsResume { leader: MemberName, detail: String },
    /// PostgreSQL is down in pause.
    DownPaused,
    /// The key goes because PostgreSQL is down in pause.
    DownPausedWithLock,
    /// The server does not answer queries.
    NoAnswer,
    /// A primary has not answered queries for too long: it has failed.
    SilentPrimary { after: Duration },

    // The race.
    /// No race because a promotion failed or the watchdog is unusable.
    NoRaceUntil { until: Moment },
    /// Delayed by `primary_race_backoff`.
    RaceBackoff { until: Moment },
    /// The tag forbids it.
    NoFailover,
    /// This history has left the cluster's: leading with it would lose what the last leader acknowledged.
    KnownDiverged { from: MemberName },
    /// The watchdog is required and unusable.
    WatchdogUnusable,
    /// This node could not serve as leader, and another can.
    CannotServe { because: String },
    /// A peer does not know yet how much it has.
    PeerReplaying { peer: MemberName, until: Moment },
    /// Too far behind the last published position.
    LagsBehind { bytes: u64 },
    /// Behind the cluster's timeline.
    BehindTimeline {
        mine: Option<Timeline>,
        cluster: Timeline,
    },
    /// Peers are to be asked.
    AskingPeers,
    /// A peer is a running primary.
    PrimaryAlive { peer: MemberName },
    /// A peer has more.
    PeerAhead { peer: MemberName, lsn: Lsn },
    /// A peer with the same position has a higher priority.
    PeerPreferred { peer: MemberName },
    /// A named candidate is healthy.
    LeavingToCandidate { candidate: MemberName },
    /// The former leader of a switchover holds back.
    FormerLeaderHoldsBack,
    /// Try to get the key.
    Racing,
    /// The named candidate takes the key.
    RacingAsCandidate,
    /// A running primary takes the free key.
    PrimaryTakesFreeKey,
    /// Somebody else got it.
    LostRace,
    /// Whether we got the key is unknown.
    RaceInDoubt,
    /// A primary on an old timeline without the key.
    StalePrimary { mine: Timeline, cluster: Timeline },
    /// A primary that could not get the free key.
    PrimaryLostRace,

    // Leading.
    /// Promote after winning.
    PromotedByAcquiring,
    /// Promote because the key is ours.
    PromotedWithLock,
    /// Promotion accepted, still in recovery.
    PromotionUnderWay,
    /// The promotion failed.
    PromotionFailed { detail: String },
    /// Arm the watchdog.
    ArmingWatchdog,
    /// The watchdog could not be armed.
    WatchdogFailed,
    /// Steady.
    Leading { me: MemberName },
    /// Steady, leader of a standby cluster.
    LeadingStandbyCluster { me: MemberName },
    /// The history document is behind.
    WritingHistory,
    /// Synchronous mode is off; its document goes.
    DroppingSync,
    /// A primary in a standby cluster.
    BecameStandbyCluster,
    /// Its shutdown checkpoint is what the other side has to receive.
    PublishingEnd { at: Lsn },

    // Synchronous replication.
    /// The synchronous state begins, or this leader takes it over.
    EnablingSync,
    /// Who is synchronous has changed.
    PublishingSync {
        quorum: u32,
        standbys: Vec<MemberName>,
    },
    /// The last write of the synchronous state was not answered: settle it first.
    SettlingSync,
    /// Whom commits wait for changes.
    AssigningNames { names: Option<String> },
    /// What is confirmed now may be changed under a lease confirmed now.
    ConfirmingLease,
    /// Strict mode and no standby: commits wait.
    CommitsWait,
    /// The synchronous state could not be written before the promotion.
    PromotionPostponed,
    /// The server has not taken up what its commits shall wait for.
    NamesNotInForce,
    /// Not a synchronous standby.
    NotSynchronous,
    /// Too few of the voters are known not to be ahead.
    TooFewVotes { votes: u32, needed: u32 },
    /// A synchronous standby asks to be released before it stops.
    LeavingSynchronousDuty,

    // Switchover.
    /// This leader cannot serve as it should, and another can.
    SteppingDown { because: String },
    /// A request was carried out; it goes.
    RequestDone,
    /// A request that cannot be carried out.
    RequestRefused { because: &'static str },
    /// Stop for a switchover.
    SwitchingOver { candidate: Option<MemberName> },
    /// PostgreSQL is stopping; the safe point is not reached.
    StoppingForSwitchover,
    /// Shut down; which candidate has everything?
    VerifyingCandidates { at: Lsn },
    /// Nobody has everything yet.
    NobodyCaughtUp { at: Lsn },
    /// The key goes straight to the candidate.
    HandingOver { to: MemberName, at: Lsn },
    /// The key is deleted for the candidates to race.
    ReleasingFor { to: MemberName, at: Lsn },
    /// Nobody has caught up: the old leader starts again.
    SwitchoverAbandoned { at: Lsn },

    // Following.
    /// Steady.
    Following { me: MemberName, leader: MemberName },
    /// Point replication at the leader, or what the tags say.
    FollowingDifferent {
        leader: MemberName,
        upstream: String,
    },
    /// The same with a restart.
    RestartingToFollow { upstream: String },
    /// The leader's member document is missing.
    LeaderUnknown { leader: MemberName },
    /// Replay is paused by smaller settings.
    ResumingReplay,
    /// Another node leads and this is a primary.
    SomebodyElseLeads { leader: MemberName },
    /// A member of a standby cluster follows the remote server.
    FollowingRemote,
    /// Logical slots are copied, so that their consumers survive a failover to this node.
    CopyingSlots {
        /// From whom.
        leader: MemberName,
    },

    // Pause.
    /// Primary with the lock.
    LeadingPaused { me: MemberName },
    /// Primary without the lock.
    PrimaryWithoutLockPaused,
    /// The key goes because this is no primary.
    NotPrimaryPaused,
    /// Paused, nothing to do.
    Paused,

    // Requests and shutdown.
    /// A local request is accepted or refused.
    Answering { accepted: bool },
    /// Restart.
    Restarting,
    /// Stop before a copy.
    StoppingToReinitialize,
    /// The agent stops: PostgreSQL first.
    ShuttingDown,
    /// The agent stops: a job is to end first.
    ShuttingDownJob { job: &'static str },
    /// The key is deleted at the end.
    ReleasingAtShutdown,
    /// The agent ends.
    ShutDown,
    /// The agent ends and leaves PostgreSQL alone.
    ShutDownPaused,
    /// PostgreSQL did not stop.
    CannotStop { detail: String },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::NotDecidedYet => f.write_str("starting"),
            Why::LeaseEnds { left, store_silent: true } => write!(
                f,
                "demoting self because DCS is not accessible and I was a leader; the lease ends in {} ms",
                left.as_millis()
            ),
            Why::LeaseEnds { left, store_silent: false } => {
                write!(f, "demoting self because the lease ends in {} ms and was not renewed", left.as_millis())
            }
            Why::LeaseEndsStopping => f.write_str("PostgreSQL is being stopped because the lease ends"),
            Why::LeaseOver => f.write_str("the lease is over"),
            Why::RenewalDue => f.write_str("renewing the lock"),
            Why::RenewalUnanswered { .. } => {
                f.write_str("the store did not answer the renewal of the lock; trying again until the lease ends")
            }
            Why::RenewalRefused => f.write_str("lost the leader lock: the store refused to renew it"),
            Why::KeyTaken { by } => write!(f, "lost the leader lock to {by}"),
            Why::KeyGone => f.write_str("lost the leader lock: the key is gone"),
            Why::KeyIsMine => f.write_str("the leader key carries my name; taking it up again"),
            Why::KeyNotConfirmed => f.write_str("the leader key carries my name, but the store does not confirm that it is mine"),
            Why::StoreSilentLeading { .. } => {
                f.write_str("DCS is not accessible; continuing as the leader until the lease ends")
            }
            Why::StoreSilent => f.write_str("DCS is not accessible"),
            Why::StoreSilentPaused => f.write_str("PAUSE: DCS is not accessible"),
            Why::PrimaryWithoutLease => {
                f.write_str("demoting self because DCS is not accessible and there is no lease on record")
            }
            Why::WritingFailsafe => f.write_str("publishing the members for failsafe mode"),
            Why::AskingFailsafe => {
                f.write_str("DCS is not accessible; asking all members whether I may go on as the leader")
            }
            Why::FailsafeLeading { .. } => f.write_str(
                "continue to run as a leader because failsafe mode is enabled and all members are accessible",
            ),
            Why::FailsafeRefused { .. } => f.write_str(
                "DCS is not accessible and not all members agree to failsafe mode; continuing as the leader until the lease ends",
            ),
            Why::FailsafeTakesKeyBack => {
                f.write_str("DCS is accessible again; taking the leader lock back that failsafe mode has kept for me")
            }
            Why::BoundByFailsafe { leader } => write!(
                f,
                "following {leader}, which leads in failsafe mode, although nobody holds the leader lock"
            ),
            Why::NotInFailsafe => {
                f.write_str("not healthy enough for leader race: not among the members of failsafe mode")
            }
            Why::FailsafeUncertain { silent } => write!(
                f,
                "not racing yet: {silent} does not answer and may have been promised failsafe mode before this agent was started"
            ),
            Why::SwitchoverWaits => {
                f.write_str("a switchover waits: the members are still bound to me by failsafe mode")
            }
            Why::HoldingCommits => {
                f.write_str("neither the store nor any member answers: commits wait until they do, or until I am demoted")
            }
            Why::CommitsHeld => f.write_str("neither the store nor any member answers; commits wait"),
            Why::ReleasingCommits => f.write_str("the lock is confirmed: commits that were held go on"),
            Why::BusyLeading { job } => write!(f, "lock updated during {job}"),
            Why::Busy { job } => write!(f, "{job} in progress"),
            Why::LostBeforePromote => f.write_str("lost leader before promote"),
            Why::LostDuring { job } => write!(f, "lost leader lock during {job}"),
            Why::LeaderGoneWhileComparing => f.write_str("the leader is gone; not comparing histories any longer"),
            Why::CancelledForReinitialize { job } => write!(f, "cancelling {job} for a forced reinitialize"),
            Why::JobFailed { job, detail } => write!(f, "{job} failed: {detail}; trying again"),
            Why::ClaimingBootstrap => f.write_str("trying to bootstrap a new cluster"),
            Why::LostBootstrapRace => f.write_str("failed to acquire initialize lock; waiting for leader to bootstrap"),
            Why::BootstrapClaimInDoubt => {
                f.write_str("the store did not say whether the initialize lock is ours; waiting to find out")
            }
            Why::Bootstrapping => f.write_str("bootstrapping a new cluster"),
            Why::BootstrappingStandbyCluster => f.write_str("bootstrapping a standby leader from the remote primary"),
            Why::WritingInitialize => f.write_str("publishing the system identifier"),
            Why::WritingConfig => f.write_str("publishing the dynamic configuration"),
            Why::BootstrapClaimAbandoned => {
                f.write_str("removing the initialize key: whoever began to create the cluster is gone")
            }
            Why::InitializedCluster => f.write_str("initialized a new cluster"),
            Why::CannotTakeKey => f.write_str("initialized a new cluster, but could not take its leader key yet"),
            Why::BootstrapFailed => f.write_str("failed to bootstrap a new cluster"),
            Why::Cloning { from } => write!(f, "trying to bootstrap from {from}"),
            Why::CloningWithoutLeader => f.write_str("trying to bootstrap without a leader"),
            Why::WaitingForLeader => f.write_str("waiting for leader to bootstrap"),
            Why::EmptyDirectoryPaused => f.write_str("PAUSE: running with empty data directory"),
            Why::NoDataWithLock => f.write_str("released leader key voluntarily as data dir is empty or unusable"),
            Why::DirectoryInaccessible { detail } => write!(f, "data directory is not accessible: {detail}"),
            Why::DirectoryBroken => f.write_str(
                "data directory is not empty but its control file is unreadable; consider reinitialize or restore it",
            ),
            Why::SystemIdMismatch { mine, theirs } => write!(
                f,
                "system ID mismatch: this data directory belongs to {mine}, the cluster is {theirs}; remove or move the directory"
            ),
            Why::RestartingInPlace { crashed: true } => f.write_str("starting primary after failure"),
            Why::RestartingInPlace { crashed: false } => f.write_str("starting primary: I had the session lock"),
            Why::GivingUpLock => f.write_str("released leader key voluntarily: PostgreSQL is down and another member can lead"),
            Why::StandbyBeforeItsPrimary => f.write_str(
                "the store knows no cluster and PostgreSQL was found running as a standby: start the node that runs its primary first, or name this member in a failover",
            ),
            Why::AskingCandidates => f.write_str("asking whether another member can lead"),
            Why::StartTooSlow { after } => write!(
                f,
                "demoting self: PostgreSQL has not started after {} s and another member can lead",
                after.as_secs()
            ),
            Why::RecoveryTooSlow { after } => write!(
                f,
                "terminating crash recovery: it has not ended after {} s and another member can lead",
                after.as_secs()
            ),
            Why::StartSlowNobodyElse => f.write_str("PostgreSQL is still starting up, but nobody else can lead"),
            Why::Starting => f.write_str("PostgreSQL is still starting up"),
            Why::FailedToStartLeading => {
                f.write_str("PostgreSQL failed to start and another member can lead: giving the leader key away")
            }
            Why::StartFailedNobodyElse => {
                f.write_str("PostgreSQL failed to start, but nobody else can lead; trying again")
            }
            Why::ReadOnlyWithLock => f.write_str("starting as readonly because i had the session lock"),
            Why::ReadOnlyWithoutLeader => f.write_str("starting as readonly because there is no leader"),
            Why::StartingAsSecondary { of } => write!(f, "starting as a secondary of {of}"),
            Why::CrashRecovering => f.write_str("doing crash recovery in a single user mode"),
            Why::Comparing { with } => write!(f, "comparing histories with {with}"),
            Why::WaitingForPromotion { leader } => write!(f, "waiting for {leader} to finish its promotion"),
            Why::WaitingForCheckpoint { leader } => write!(f, "waiting for the checkpoint on {leader} before rewind"),
            Why::Rewinding { from, detail } => write!(f, "running pg_rewind from {from}: {detail}"),
            Why::StoppingToRepair { detail } => write!(f, "stopping PostgreSQL to rejoin: {detail}"),
            Why::Recloning { from, because: ReplaceReason::Requested | ReplaceReason::RequestedFromLeader } => write!(f, "reinitializing from {from} on request"),
            Why::Recloning { from, because: ReplaceReason::Diverged } => {
                write!(f, "reinitializing due to diverged timelines, from {from}")
            }
            Why::Recloning { from, because: ReplaceReason::RewindFailed } => {
                write!(f, "reinitializing after a failed pg_rewind, from {from}")
            }
            Why::CannotRejoin { leader, detail } => write!(
                f,
                "cannot follow {leader}: {detail}; enable pg_rewind or removal of diverged directories, or reinitialize this member"
            ),
            Why::RecloneAwaitsResume { leader, detail } => write!(
                f,
                "PAUSE: cannot follow {leader}: {detail}; the data directory is replaced once the cluster is resumed"
            ),
            Why::DownPaused => f.write_str("PAUSE: postgres is not running"),
            Why::DownPausedWithLock => f.write_str("PAUSE: removed leader lock because postgres is not running"),
            Why::NoAnswer => f.write_str("Error communicating with PostgreSQL. Will try again later"),
            Why::SilentPrimary { after } => write!(
                f,
                "PostgreSQL runs and has not answered for {} s: treating it as failed (primary_answer_timeout)",
                after.as_secs()
            ),
            Why::CannotServe { because } => {
                write!(f, "not healthy enough for leader race: {because}; another member can lead")
            }
            Why::PeerReplaying { peer, .. } => {
                write!(f, "waiting for {peer}, which still replays the WAL it had received before it was started")
            }
            Why::SteppingDown { because } => write!(f, "stepping down: {because}; another member can lead"),
            Why::NoRaceUntil { .. } => f.write_str("not racing: the last attempt to lead failed here"),
            Why::RaceBackoff { .. } => f.write_str("not racing yet: primary_race_backoff"),
            Why::NoFailover => f.write_str("following a different leader because I am not allowed to promote"),
            Why::KnownDiverged { from } => write!(
                f,
                "not healthy enough for leader race: this history has diverged from {from}'s; a failover to this member would force it"
            ),
            Why::WatchdogUnusable => f.write_str("not healthy enough for leader race: the required watchdog is unusable"),
            Why::LagsBehind { bytes } => {
                write!(f, "not healthy enough for leader race: {bytes} bytes behind the last known position of the cluster")
            }
            Why::BehindTimeline { mine: Some(mine), cluster } => {
                write!(f, "not healthy enough for leader race: timeline {mine} is behind the cluster's {cluster}")
            }
            Why::BehindTimeline { mine: None, cluster } => {
                write!(f, "not healthy enough for leader race: own timeline is unknown, the cluster's is {cluster}")
            }
            Why::AskingPeers => f.write_str("asking the other members for their position"),
            Why::PrimaryAlive { peer } => {
                write!(f, "following a different leader because primary ({peer}) is still alive")
            }
            Why::PeerAhead { peer, lsn } => write!(
                f,
                "following a different leader because i am not the healthiest node: {peer} is ahead at {lsn}"
            ),
            Why::PeerPreferred { peer } => write!(
                f,
                "following a different leader because i am not the healthiest node: {peer} has a higher failover priority"
            ),
            Why::LeavingToCandidate { candidate } => {
                write!(f, "following a different leader because {candidate} is the candidate and healthy")
            }
            Why::FormerLeaderHoldsBack => {
                f.write_str("following a different leader because I gave the lock away and another member can lead")
            }
            Why::Racing => f.write_str("trying to acquire the leader lock"),
            Why::RacingAsCandidate => f.write_str("trying to acquire the leader lock as the requested candidate"),
            Why::PrimaryTakesFreeKey => f.write_str("trying to acquire the leader lock: running as primary and nobody leads"),
            Why::LostRace => f.write_str("following new leader after trying and failing to obtain lock"),
            Why::RaceInDoubt => f.write_str("the store did not say whether the leader lock is ours; reading again"),
            Why::StalePrimary { mine, cluster } => {
                write!(f, "demoting self because timeline {mine} is behind the cluster's {cluster} and nobody leads")
            }
            Why::PrimaryLostRace => f.write_str("demoted self after trying and failing to obtain lock"),
            Why::PromotedByAcquiring => f.write_str("promoted self to leader by acquiring session lock"),
            Why::PromotedWithLock => f.write_str("promoted self to leader because I had the session lock"),
            Why::PromotionUnderWay => f.write_str("promotion is under way"),
            Why::PromotionFailed { detail } => write!(f, "released leader key voluntarily as promotion failed: {detail}"),
            Why::ArmingWatchdog => f.write_str("activating the watchdog"),
            Why::WatchdogFailed => f.write_str("not leading: the required watchdog could not be activated"),
            Why::Leading { me } => write!(f, "no action. I am ({me}), the leader with the lock"),
            Why::LeadingStandbyCluster { me } => write!(f, "no action. I am ({me}), the standby leader with the lock"),
            Why::WritingHistory => f.write_str("updating the timeline history"),
            Why::DroppingSync => f.write_str("removing the synchronous state: synchronous mode is off"),
            Why::EnablingSync => f.write_str("Enabled synchronous replication"),
            Why::PublishingSync { quorum, standbys } => {
                let names: Vec<&str> = standbys.iter().map(MemberName::as_str).collect();
                write!(f, "publishing the synchronous standbys: [{}], quorum {quorum}", names.join(", "))
            }
            Why::SettlingSync => {
                f.write_str("publishing the synchronous state once more: an earlier change of it may still be on its way")
            }
            Why::AssigningNames { names: Some(names) } => write!(f, "Assigning synchronous_standby_names to {names}"),
            Why::AssigningNames { names: None } => f.write_str("Assigning synchronous_standby_names to None"),
            Why::ConfirmingLease => f.write_str("renewing the lock before synchronous_standby_names is changed"),
            Why::CommitsWait => f.write_str(
                "no active replication connections from members and synchronous_mode_strict is requested; commits are delayed",
            ),
            Why::NamesNotInForce => f.write_str(
                "Postponing promotion until synchronous_standby_names is in force",
            ),
            Why::PromotionPostponed => {
                f.write_str("Postponing promotion because synchronous replication state was updated by somebody else")
            }
            Why::NotSynchronous => f.write_str("not healthy enough for leader race: not a synchronous standby"),
            Why::TooFewVotes { votes, needed } => write!(
                f,
                "not healthy enough for leader race: {votes} of {needed} voters are known not to be ahead"
            ),
            Why::LeavingSynchronousDuty => f.write_str("asking to be released from synchronous duty before stopping"),
            Why::BecameStandbyCluster => f.write_str("demoting to a standby cluster"),
            Why::PublishingEnd { at } => write!(f, "publishing the end of this primary: {at}"),
            Why::RequestDone => f.write_str("cleaning up failover key after acquiring leader lock"),
            Why::RequestRefused { because } => write!(f, "cleaning up failover key: {because}"),
            Why::SwitchingOver { candidate: Some(candidate) } => write!(f, "switchover: demote in progress, to {candidate}"),
            Why::SwitchingOver { candidate: None } => f.write_str("switchover: demote in progress"),
            Why::StoppingForSwitchover => f.write_str("switchover: waiting for the shutdown checkpoint"),
            Why::VerifyingCandidates { at } => write!(f, "asking who has received everything up to {at}"),
            Why::NobodyCaughtUp { at } => write!(f, "waiting for a member to receive everything up to {at}"),
            Why::HandingOver { to, at } => write!(f, "handing the leader lock over to {to} at {at}"),
            Why::ReleasingFor { to, at } => write!(f, "releasing the leader lock at {at}; {to} has everything"),
            Why::SwitchoverAbandoned { at } => {
                write!(f, "switchover abandoned: no member has received everything up to {at}; staying the leader")
            }
            Why::Following { me, leader } => {
                write!(f, "no action. I am ({me}), a secondary, and following a leader ({leader})")
            }
            Why::FollowingDifferent { leader, upstream } => {
                write!(f, "following a different leader: {leader} leads; receiving from {upstream}")
            }
            Why::RestartingToFollow { upstream } => {
                write!(f, "changing primary_conninfo and restarting, to receive from {upstream}")
            }
            Why::LeaderUnknown { leader } => write!(f, "{leader} leads, but its member key is missing; waiting"),
            Why::ResumingReplay => {
                f.write_str("resuming paused WAL replay so that PostgreSQL can be restarted with larger settings")
            }
            Why::SomebodyElseLeads { leader } => {
                write!(f, "demoting self because I do not have the lock and I was a leader; {leader} leads")
            }
            Why::FollowingRemote => f.write_str("following the remote primary"),
            Why::CopyingSlots { leader } => write!(f, "copying logical replication slots from {leader}"),
            Why::LeadingPaused { me } => write!(f, "PAUSE: no action. I am ({me}), the leader with the lock"),
            Why::PrimaryWithoutLockPaused => f.write_str("PAUSE: continue to run as primary without lock"),
            Why::NotPrimaryPaused => f.write_str("PAUSE: removed leader lock because postgres is not running as primary"),
            Why::Paused => f.write_str("PAUSE: no action"),
            Why::Answering { accepted: true } => f.write_str("accepted a request"),
            Why::Answering { accepted: false } => f.write_str("refused a request"),
            Why::Restarting => f.write_str("restart initiated"),
            Why::StoppingToReinitialize => f.write_str("stopping PostgreSQL to reinitialize"),
            Why::ShuttingDown => f.write_str("shutting down: stopping PostgreSQL"),
            Why::ShuttingDownJob { job } => write!(f, "shutting down: waiting for {job} to end"),
            Why::ReleasingAtShutdown => f.write_str("shutting down: PostgreSQL is down, releasing the leader lock"),
            Why::ShutDown => f.write_str("shut down"),
            Why::ShutDownPaused => f.write_str("shut down; PostgreSQL keeps running because the cluster is paused"),
            Why::CannotStop { detail } => write!(f, "PostgreSQL did not stop: {detail}; the leader lock stays until it expires"),
        }
    }
}

impl Job {
    /// Its name for people, as upstream's logs have it where they have one.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Job::Bootstrap => "bootstrap",
            Job::Clone { .. } => "bootstrap from another server",
            Job::StartPrimary { .. } => "starting primary after failure",
            Job::StartStandby { .. } => "restarting after failure",
            Job::RestartToFollow { .. } => "changing primary_conninfo and restarting",
            Job::Promote => "promote",
            Job::Stop {
                purpose: StopPurpose::Switchover,
                ..
            } => "switchover: demote",
            Job::Stop { .. } => "stopping",
            Job::Restart { .. } => "restart",
            Job::CopySlots { .. } => "copying logical replication slots",
            Job::CheckDivergence { .. } => "comparing histories",
            Job::CrashRecovery => "doing crash recovery in a single user mode",
            Job::Rewind { .. } => "running pg_rewind",
            Job::Replace { .. } => "reinitialize",
        }
    }
}
