//! The whole output of the core: one step, its reason, and the memory for the next call.

use std::fmt;
use std::time::Duration;

use crate::types::{Lsn, MemberName, Moment, SystemId};

use super::observation::{Memory, Upstream};

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
    /// Write the dynamic configuration in force.
    Config,
    /// Empty the failover request.
    ClearFailover,
    /// Drop only `leader` from the failover request (paused manual failover).
    FailoverWithoutLeader,
    /// Rebuild the history document from the local history file.
    History,
    /// Remove the `sync` document.
    DropSync,
    /// Write `failsafe`.
    Failsafe,
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
    /// Histories diverged.
    Diverged,
    /// A rewind failed.
    RewindFailed,
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
#[derive(Debug, Clone, PartialEq)]
pub enum Why {
    /// Placeholder until the first decision.
    NotDecidedYet,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::NotDecidedYet => f.write_str("starting"),
        }
    }
}
