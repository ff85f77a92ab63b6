//! Why a member is or is not the leader and what it waits for, in one sentence for people.
//!
//! [`own`] tells of this node what only it can know: the reason of its last decision. [`of_other`] tells of another member what the
//! snapshot shows of it and what it answered. Pure, as everything here; the API and `ctl` only pass it on.

use std::time::Duration;

use crate::cluster::{Cluster, Member};
use crate::types::{MemberName, Moment, PgState, ReplicationState, Role, Timeline};

use super::decision::Why;
use super::observation::{Observation, PeerAnswer};

/// One member, explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Who.
    pub member: MemberName,
    /// It holds the leader key.
    pub leads: bool,
    /// Why it is, or is not, the leader.
    pub sentence: String,
    /// What must happen for that to go on; `None`: it waits for nothing.
    pub waits_for: Option<String>,
}

/// This node, by the reason of its last decision.
#[must_use]
pub fn own(obs: &Observation, why: &Why) -> Explanation {
    let me = &obs.me;
    let held = obs.lease.is_some_and(|lease| obs.now < lease.expires);
    let leads = held && obs.cluster().is_none_or(|cluster| cluster.is_led_by(me));
    let other = obs
        .cluster()
        .and_then(|cluster| cluster.leader.as_ref())
        .filter(|leader| leader.name != *me);
    let reading = read(why, obs.now);
    let head = match other {
        _ if leads => format!("{me} is the leader"),
        Some(leader) => format!("{me} is not the leader ({} is)", leader.name),
        None => format!("{me} is not the leader"),
    };
    Explanation {
        member: me.clone(),
        leads,
        sentence: format!("{head}: {}", reading.because),
        waits_for: reading.waits_for,
    }
}

/// Another member, as this node sees it: by the snapshot, and by its answer if it was asked (`Some(None)`: it did not answer).
#[must_use]
pub fn of_other(
    cluster: &Cluster,
    member: &Member,
    answer: Option<Option<&PeerAnswer>>,
) -> Explanation {
    let leads = cluster.is_led_by(&member.name);
    let (because, waits_for) = if leads {
        leader_seen(member)
    } else {
        other_seen(cluster, member, answer.flatten())
    };
    let name = &member.name;
    let head = match &cluster.leader {
        _ if leads => format!("{name} is the leader"),
        Some(leader) => format!("{name} is not the leader ({} is)", leader.name),
        None => format!("{name} is not the leader"),
    };
    let silent = match answer {
        Some(None) => "; it does not answer here",
        Some(Some(_)) | None => "",
    };
    Explanation {
        member: name.clone(),
        leads,
        sentence: format!("{head}: {because}{silent}"),
        waits_for,
    }
}

fn leader_seen(member: &Member) -> (String, Option<String>) {
    match (member.role, member.state) {
        (Some(Role::Primary), Some(PgState::Running)) => (
            "it holds the leader key and its PostgreSQL runs as primary".to_owned(),
            None,
        ),
        (Some(Role::StandbyLeader), Some(PgState::Running)) => (
            "it holds the leader key of a standby cluster and follows the remote primary"
                .to_owned(),
            None,
        ),
        (Some(Role::Promoted), _) => (
            "it holds the leader key and is being promoted".to_owned(),
            Some("the end of its promotion".to_owned()),
        ),
        (
            Some(
                Role::Primary
                | Role::StandbyLeader
                | Role::Replica
                | Role::Demoted
                | Role::Uninitialized,
            )
            | None,
            state,
        ) => (
            format!("it holds the leader key, but {}", state_words(state)),
            Some("its PostgreSQL, or the end of its lease".to_owned()),
        ),
    }
}

fn other_seen(
    cluster: &Cluster,
    member: &Member,
    answer: Option<&PeerAnswer>,
) -> (String, Option<String>) {
    let limited = if let Some(reason) = &member.cannot_serve {
        Some(format!("it could not serve as leader: {reason}"))
    } else if member.tags.never_leads() {
        Some("its tags forbid it to lead (nofailover)".to_owned())
    } else if answer.is_some_and(|answer| answer.watchdog_failed) {
        Some("its watchdog is required and unusable".to_owned())
    } else {
        None
    };
    if member.state != Some(PgState::Running) {
        return (
            state_words(member.state).to_owned(),
            Some("its PostgreSQL to run".to_owned()),
        );
    }
    let Some(leader) = &cluster.leader else {
        return without_leader(cluster, member, answer, limited);
    };
    let follows = match (member.replication_state, lag(cluster, member)) {
        (Some(ReplicationState::Streaming), Some(bytes)) => {
            format!("it streams from the cluster, {bytes} bytes behind")
        }
        (Some(ReplicationState::Streaming), None) => "it streams from the cluster".to_owned(),
        (Some(ReplicationState::InArchiveRecovery), _) => {
            "it restores WAL from the archive".to_owned()
        }
        (None, _) => format!("it runs, but does not stream from {}", leader.name),
    };
    let streams = member.replication_state == Some(ReplicationState::Streaming);
    let waits_for = (!streams).then(|| format!("WAL of {}", leader.name));
    (
        limited.map_or(follows.clone(), |limit| format!("{follows}, and {limit}")),
        waits_for,
    )
}

fn without_leader(
    cluster: &Cluster,
    member: &Member,
    answer: Option<&PeerAnswer>,
    limited: Option<String>,
) -> (String, Option<String>) {
    if let Some(limit) = limited {
        return (limit, Some("another member to lead".to_owned()));
    }
    if answer.is_some_and(|answer| !answer.in_recovery) {
        return (
            "it runs as primary and does not hold the leader key".to_owned(),
            Some("the leader key, or its PostgreSQL to stop".to_owned()),
        );
    }
    let timeline = answer
        .and_then(|answer| answer.timeline)
        .or(member.timeline);
    if let (Some(mine), Some(newest)) = (timeline, cluster.timeline())
        && mine < newest
    {
        return (
            format!("it is on timeline {mine}, the cluster's is {newest}"),
            Some("a leader to follow".to_owned()),
        );
    }
    let at = answer.map(|answer| answer.lsn).or(member.xlog_location);
    (
        at.map_or_else(
            || "nobody holds the leader key, and its position is unknown".to_owned(),
            |at| format!("nobody holds the leader key; it has WAL up to {at}"),
        ),
        Some("the outcome of the election".to_owned()),
    )
}

fn lag(cluster: &Cluster, member: &Member) -> Option<u64> {
    let leader = cluster
        .leader_member()
        .and_then(|leader| leader.xlog_location);
    let newest = leader.unwrap_or_default().max(cluster.status.optime);
    newest.known()?;
    Some(newest.ahead_of(member.xlog_location?))
}

fn state_words(state: Option<PgState>) -> &'static str {
    match state {
        Some(PgState::Running) => "its PostgreSQL runs, not as primary yet",
        Some(PgState::Starting | PgState::Restarting | PgState::StartingAfterCustomBootstrap) => {
            "its PostgreSQL is starting"
        }
        Some(PgState::Stopping) => "its PostgreSQL is stopping",
        Some(PgState::Stopped) => "its PostgreSQL is stopped",
        Some(PgState::Crashed) => "its PostgreSQL has crashed",
        Some(PgState::StartFailed | PgState::RestartFailed) => "its PostgreSQL cannot be started",
        Some(PgState::StopFailed) => "its PostgreSQL cannot be stopped",
        Some(PgState::CreatingReplica) => "it copies its data from another member",
        Some(PgState::InitializingNewCluster | PgState::RunningCustomBootstrap) => {
            "it creates the cluster"
        }
        Some(PgState::InitdbFailed | PgState::CustomBootstrapFailed) => {
            "it failed to create the cluster"
        }
        None => "the state of its PostgreSQL is unknown",
    }
}

struct Reading {
    because: String,
    waits_for: Option<String>,
}

fn plain(because: impl Into<String>) -> Reading {
    Reading {
        because: because.into(),
        waits_for: None,
    }
}

fn waiting(because: impl Into<String>, waits_for: impl Into<String>) -> Reading {
    Reading {
        because: because.into(),
        waits_for: Some(waits_for.into()),
    }
}

fn seconds(left: Duration) -> String {
    format!("{:.1} s", left.as_secs_f64())
}

fn on(timeline: Option<Timeline>) -> String {
    timeline.map_or_else(
        || "an unknown timeline".to_owned(),
        |it| format!("timeline {it}"),
    )
}

/// The reason in words for people who do not know the loop. One arm per branch of the core: a new reason must be put into words.
fn read(why: &Why, now: Moment) -> Reading {
    let left = |until: &Moment| seconds(now.until(*until));
    match why {
        Why::NotDecidedYet => waiting("it has not looked at the cluster yet", "its first turn"),

        Why::LeaseEnds {
            left,
            store_silent: true,
        } => waiting(
            format!(
                "the store is silent and the lease ends in {}, so PostgreSQL is stopped",
                seconds(*left)
            ),
            "the store to answer",
        ),
        Why::LeaseEnds {
            left,
            store_silent: false,
        } => waiting(
            format!(
                "the lease ends in {} and was not renewed, so PostgreSQL is stopped",
                seconds(*left)
            ),
            "PostgreSQL to stop",
        ),
        Why::LeaseEndsStopping => waiting(
            "the lease ends and PostgreSQL is being stopped before",
            "PostgreSQL to stop",
        ),
        Why::LeaseOver => plain("its lease is over, and PostgreSQL accepts no writes here"),
        Why::RenewalDue | Why::ConfirmingLease => plain("it renews its lease"),
        Why::RenewalUnanswered { until } => waiting(
            format!(
                "the store did not say whether the lease was renewed; it holds for another {}",
                left(until)
            ),
            "the store to answer",
        ),
        Why::RenewalRefused => plain("the store refused to renew its lease"),
        Why::KeyTaken { by } => plain(format!("{by} has taken the leader key")),
        Why::KeyGone => plain("the leader key it held is gone"),
        Why::KeyIsMine => plain("the leader key carries its name, and it takes the lease over"),
        Why::KeyNotConfirmed => waiting(
            "the leader key carries its name, but the store does not confirm it",
            "the store to confirm the key, or the key to expire",
        ),
        Why::StoreSilentLeading { until } => waiting(
            format!(
                "the store is silent, and its lease still holds for {}",
                left(until)
            ),
            "the store to answer",
        ),
        Why::StoreSilent => waiting(
            "the store is silent, and nobody leads without it",
            "the store to answer",
        ),
        Why::StoreSilentPaused => waiting(
            "the store is silent and the cluster is paused",
            "the store to answer",
        ),
        Why::PrimaryWithoutLease => waiting(
            "the store is silent and no lease covers its primary, which is stopped",
            "the store to answer",
        ),

        Why::WritingFailsafe => {
            plain("it holds the leader key and publishes the members for failsafe mode")
        }
        Why::AskingFailsafe => waiting(
            "the store is silent and it asks all members whether it may go on (failsafe mode)",
            "their answers",
        ),
        Why::FailsafeLeading { until } => waiting(
            format!(
                "the store is silent and all members agree that it goes on (failsafe mode), for another {}",
                left(until)
            ),
            "the store to answer",
        ),
        Why::FailsafeRefused { until } => waiting(
            format!(
                "the store is silent and not all members agree that it goes on; its lease still holds for {}",
                left(until)
            ),
            "the store, or all members, to answer",
        ),
        Why::FailsafeTakesKeyBack => plain(
            "the store is back and it takes the leader key that failsafe mode has kept for it",
        ),
        Why::BoundByFailsafe { leader } => waiting(
            format!("it has given {leader} its word not to take the leader key (failsafe mode)"),
            format!("{leader} to take the key, or its word to run out"),
        ),
        Why::NotInFailsafe => waiting(
            "it is not among the members of failsafe mode",
            "another member to lead",
        ),
        Why::FailsafeUncertain { silent } => waiting(
            format!(
                "{silent} does not answer and may have been promised failsafe mode before this agent was started"
            ),
            format!("an answer of {silent}, or one ttl"),
        ),
        Why::SwitchoverWaits => waiting(
            "it is to hand the leadership over, but the members are still bound to it by failsafe mode",
            "their word to run out",
        ),
        Why::HoldingCommits | Why::CommitsHeld => waiting(
            "its lease still holds, but neither the store nor any member answers, so commits wait",
            "the store or a member to answer",
        ),
        Why::ReleasingCommits => plain("it holds the leader key, and commits that were held go on"),

        Why::BusyLeading { job } | Why::Busy { job } => waiting(
            format!("it is at work: {job}"),
            format!("the end of: {job}"),
        ),
        Why::LostBeforePromote => {
            plain("it lost the leader key before its promotion, which it gives up")
        }
        Why::LostDuring { job } => plain(format!("it lost the leader key during: {job}")),
        Why::LeaderGoneWhileComparing => plain("the leader it compared histories with is gone"),
        Why::CancelledForReinitialize { job } => {
            plain(format!("a forced reinitialize ends its work: {job}"))
        }
        Why::JobFailed { job, detail } => {
            waiting(format!("{job} failed: {detail}"), "the next attempt")
        }

        Why::ClaimingBootstrap => plain("nobody has created the cluster, and it tries to"),
        Why::LostBootstrapRace => waiting(
            "another node creates the cluster",
            "its leader, to copy from",
        ),
        Why::BootstrapClaimInDoubt => waiting(
            "the store did not say whether this node may create the cluster",
            "another node at work, or the end of one lease",
        ),
        Why::BootstrapClaimAbandoned => {
            plain("the node that began to create the cluster is gone, and its claim is withdrawn")
        }
        Why::Bootstrapping => waiting("it creates the cluster", "the new database cluster"),
        Why::BootstrappingStandbyCluster => {
            waiting("it copies the remote primary", "the end of the copy")
        }
        Why::WritingInitialize | Why::WritingConfig => plain(why.to_string()),
        Why::InitializedCluster => plain("it has created the cluster and takes the leader key"),
        Why::CannotTakeKey => waiting(
            "it has created the cluster and cannot take its leader key yet",
            "the store",
        ),
        Why::BootstrapFailed => plain("it failed to create the cluster"),
        Why::Cloning { from } => waiting(
            format!("its data directory is empty and it copies {from}"),
            "the end of the copy",
        ),
        Why::CloningWithoutLeader => waiting(
            "its data directory is empty and it is restored without a leader",
            "the end of the restore",
        ),
        Why::WaitingForLeader => waiting(
            "its data directory is empty and there is no leader to copy from",
            "a leader",
        ),
        Why::EmptyDirectoryPaused => waiting(
            "its data directory is empty and the cluster is paused",
            "the end of the pause",
        ),
        Why::NoDataWithLock => {
            plain("its data directory is empty or unusable, so it gives the leader key away")
        }
        Why::DirectoryInaccessible { detail } => waiting(
            format!("its data directory is not accessible: {detail}"),
            "an operator to make the data directory accessible",
        ),
        Why::DirectoryBroken => waiting(
            "its data directory has no readable control file",
            "an operator to restore or reinitialize it",
        ),
        Why::SystemIdMismatch { mine, theirs } => waiting(
            format!("its data directory belongs to the cluster {mine}, not to {theirs}"),
            "an operator to remove or move the directory",
        ),

        Why::RestartingInPlace { crashed: true } => waiting(
            "its PostgreSQL died and is started again where it stands",
            "PostgreSQL to start",
        ),
        Why::RestartingInPlace { crashed: false } => waiting(
            "it holds the key and starts its PostgreSQL",
            "PostgreSQL to start",
        ),
        Why::GivingUpLock => plain("its PostgreSQL is down and another member can lead"),
        Why::StandbyBeforeItsPrimary => waiting(
            "the store knows no cluster, and its PostgreSQL was found running as a standby",
            "the node that runs the primary, or a failover that names this member",
        ),
        Why::AskingCandidates => {
            waiting("it asks whether another member can lead", "their answers")
        }
        Why::StartTooSlow { after } => plain(format!(
            "its PostgreSQL has not started within {} and another member can lead",
            seconds(*after)
        )),
        Why::RecoveryTooSlow { after } => plain(format!(
            "its crash recovery has not ended within {} and another member can lead",
            seconds(*after)
        )),
        Why::StartSlowNobodyElse => waiting(
            "its PostgreSQL starts slowly, and nobody else can lead",
            "PostgreSQL to start",
        ),
        Why::Starting => waiting("its PostgreSQL is starting", "PostgreSQL to start"),
        Why::FailedToStartLeading => {
            plain("its PostgreSQL could not be started and another member can lead")
        }
        Why::StartFailedNobodyElse => waiting(
            "its PostgreSQL could not be started, and nobody else can lead",
            "the next attempt",
        ),
        Why::ReadOnlyWithLock => waiting(
            "it starts read-only before it is promoted",
            "PostgreSQL to start",
        ),
        Why::ReadOnlyWithoutLeader => waiting(
            "there is no leader, so it starts read-only",
            "PostgreSQL to start",
        ),
        Why::StartingAsSecondary { of } => waiting(
            format!("it starts as a standby of {of}"),
            "PostgreSQL to start",
        ),
        Why::CrashRecovering => waiting(
            "its PostgreSQL died as primary and recovers before it may follow",
            "crash recovery",
        ),
        Why::Comparing { with } => waiting(
            format!("it compares its history with {with}'s before it follows"),
            "the comparison",
        ),
        Why::WaitingForPromotion { leader } => waiting(
            format!("it may not follow {leader} before {leader} is promoted"),
            format!("the promotion of {leader}"),
        ),
        Why::WaitingForCheckpoint { leader } => waiting(
            format!("its history has diverged from {leader}'s and it is to be rewound"),
            format!("the first checkpoint of {leader} after its promotion"),
        ),
        Why::Rewinding { from, detail } => waiting(
            format!("its history has diverged ({detail}) and it is rewound from {from}"),
            "pg_rewind",
        ),
        Why::StoppingToRepair { detail } => waiting(
            format!("its history has diverged ({detail}) and it is stopped for the repair"),
            "PostgreSQL to stop",
        ),
        Why::Recloning { from, .. } => waiting(
            format!("its data directory is replaced by a copy of {from}"),
            "the end of the copy",
        ),
        Why::CannotRejoin { leader, detail } => waiting(
            format!("it cannot follow {leader}: {detail}"),
            "an operator to reinitialize it, or to allow pg_rewind",
        ),
        Why::RecloneAwaitsResume { leader, detail } => waiting(
            format!(
                "it cannot follow {leader} ({detail}) and its data directory is not replaced in a paused cluster"
            ),
            "the end of the pause",
        ),
        Why::DownPaused => waiting(
            "its PostgreSQL is down and the cluster is paused",
            "the end of the pause",
        ),
        Why::DownPausedWithLock => {
            plain("its PostgreSQL is down in a paused cluster, so it gives the leader key away")
        }
        Why::CopyingSlots { leader } => waiting(
            format!("it follows {leader} and copies its logical replication slots"),
            "the copy, and a restart",
        ),
        Why::NoAnswer => waiting(
            "its PostgreSQL runs and does not answer queries",
            "PostgreSQL to answer",
        ),
        Why::SilentPrimary { after } => plain(format!(
            "its primary runs and has not answered queries for {}, so it is stopped as failed",
            seconds(*after)
        )),

        Why::NoRaceUntil { until } => waiting(
            "its last attempt to lead failed",
            format!("another {}", left(until)),
        ),
        Why::RaceBackoff { until } => waiting(
            "WAL still arrives although nobody holds the leader key (primary_race_backoff)",
            format!("the leader to come back, at most {}", left(until)),
        ),
        Why::NoFailover => waiting(
            "its tags forbid it to lead (nofailover)",
            "another member to lead",
        ),
        Why::KnownDiverged { from } => waiting(
            format!(
                "its history has diverged from {from}'s, and leading would lose what {from} acknowledged"
            ),
            "another member to lead, or a failover to this one by an operator",
        ),
        Why::WatchdogUnusable => waiting(
            "its watchdog is required and unusable",
            "the watchdog, or another member to lead",
        ),
        Why::CannotServe { because } => waiting(
            format!("it could not serve: {because}"),
            "another member to lead",
        ),
        Why::SteppingDown { because } => waiting(
            format!(
                "it cannot serve well ({because}) and another member can, so it hands the leadership over"
            ),
            "PostgreSQL to stop",
        ),
        Why::PeerReplaying { peer, until } => waiting(
            format!(
                "{peer} was just started and still replays the WAL it had received, so its position is not known yet"
            ),
            format!("the end of the replay on {peer}, at most {}", left(until)),
        ),
        Why::LagsBehind { bytes } => waiting(
            format!(
                "it is {bytes} bytes behind the last known position, more than maximum_lag_on_failover"
            ),
            "another member to lead",
        ),
        Why::BehindTimeline { mine, cluster } => waiting(
            format!("it is on {}, the cluster's is {cluster}", on(*mine)),
            "another member to lead",
        ),
        Why::AskingPeers => waiting(
            "nobody leads and it asks the others for their position",
            "their answers",
        ),
        Why::PrimaryAlive { peer } => waiting(
            format!("nobody holds the leader key, but {peer} still runs as primary"),
            format!("{peer} to take the key or to stop"),
        ),
        Why::PeerAhead { peer, lsn } => waiting(
            format!("{peer} has more WAL (up to {lsn})"),
            format!("{peer} to lead"),
        ),
        Why::PeerPreferred { peer } => waiting(
            format!("{peer} has the same WAL and a higher failover_priority"),
            format!("{peer} to lead"),
        ),
        Why::LeavingToCandidate { candidate } => waiting(
            format!("{candidate} was named as the next leader and is healthy"),
            format!("{candidate} to lead"),
        ),
        Why::FormerLeaderHoldsBack => waiting(
            "it has just given the leadership away",
            "another member to lead",
        ),
        Why::Racing | Why::RacingAsCandidate | Why::PrimaryTakesFreeKey => {
            waiting("it tries to take the free leader key", "the store")
        }
        Why::LostRace => waiting(
            "another member was faster to take the leader key",
            "the new leader",
        ),
        Why::RaceInDoubt => waiting(
            "the store did not say whether it got the leader key",
            "the store to answer",
        ),
        Why::StalePrimary { mine, cluster } => plain(format!(
            "it runs as primary on timeline {mine} and the cluster's is {cluster}, so it is stopped"
        )),
        Why::PrimaryLostRace => {
            plain("it runs as primary and could not take the leader key, so it is stopped")
        }

        Why::PromotedByAcquiring | Why::PromotedWithLock | Why::PromotionUnderWay => waiting(
            "it holds the leader key and is being promoted",
            "the end of its promotion",
        ),
        Why::PromotionFailed { detail } => plain(format!(
            "its promotion failed ({detail}), so it gives the leader key away"
        )),
        Why::ArmingWatchdog => plain("it arms its watchdog"),
        Why::WatchdogFailed => plain("its required watchdog could not be armed"),
        Why::Leading { .. } => plain("it holds the leader key and its PostgreSQL runs as primary"),
        Why::LeadingStandbyCluster { .. } => {
            plain("it holds the leader key of a standby cluster and follows the remote primary")
        }
        Why::WritingHistory => plain(why.to_string()),
        Why::PublishingEnd { at } => plain(format!(
            "its PostgreSQL was a primary until {at}, which it publishes"
        )),
        Why::BecameStandbyCluster => {
            plain("the cluster has become a standby cluster, so its primary is demoted")
        }

        Why::DroppingSync
        | Why::EnablingSync
        | Why::PublishingSync { .. }
        | Why::SettlingSync
        | Why::AssigningNames { .. } => plain(format!("it holds the leader key; {why}")),
        Why::CommitsWait => waiting(
            "it holds the leader key, but commits wait: no synchronous standby is connected",
            "a standby that may be synchronous",
        ),
        Why::PromotionPostponed => waiting(
            "it holds the leader key and its promotion waits for the synchronous state",
            "the store to accept the synchronous state",
        ),
        Why::NamesNotInForce => waiting(
            "it holds the leader key and its promotion waits for synchronous_standby_names",
            "PostgreSQL to take up what its commits shall wait for",
        ),
        Why::NotSynchronous => waiting(
            "it is no synchronous standby and may lack acknowledged commits",
            "a synchronous standby to lead",
        ),
        Why::TooFewVotes { votes, needed } => waiting(
            format!("{votes} of {needed} needed voters are known not to have more"),
            "more voters to answer",
        ),
        Why::LeavingSynchronousDuty => waiting(
            "it is about to stop and asks to be released from synchronous duty",
            "the leader to release it",
        ),

        Why::RequestDone | Why::RequestRefused { .. } => plain(why.to_string()),
        Why::SwitchingOver {
            candidate: Some(candidate),
        } => waiting(
            format!("it stops to hand the leadership to {candidate}"),
            "PostgreSQL to stop",
        ),
        Why::SwitchingOver { candidate: None } | Why::StoppingForSwitchover => {
            waiting("it stops to hand the leadership over", "PostgreSQL to stop")
        }
        Why::VerifyingCandidates { at } => waiting(
            format!("its PostgreSQL has stopped at {at} and it asks who has received everything"),
            "their answers",
        ),
        Why::NobodyCaughtUp { at } => waiting(
            format!("its PostgreSQL has stopped at {at} and nobody has received everything yet"),
            format!("a member to receive everything up to {at}"),
        ),
        Why::HandingOver { to, .. } | Why::ReleasingFor { to, .. } => waiting(
            format!("it gives the leader key to {to}, which has everything"),
            format!("{to} to lead"),
        ),
        Why::SwitchoverAbandoned { at } => waiting(
            format!("nobody has received everything up to {at}, so it stays the leader"),
            "PostgreSQL to run as before",
        ),

        Why::Following { leader, .. } => {
            plain(format!("{leader} holds the leader key, and it follows"))
        }
        Why::FollowingDifferent { leader, upstream } => plain(format!(
            "{leader} holds the leader key; it now receives from {upstream}"
        )),
        Why::RestartingToFollow { upstream } => waiting(
            format!("it restarts to receive from {upstream}"),
            "PostgreSQL to start",
        ),
        Why::LeaderUnknown { leader } => waiting(
            format!("{leader} holds the leader key, but its member key is missing"),
            format!("the member key of {leader}"),
        ),
        Why::ResumingReplay => {
            plain("its replay was paused by settings that are too small, and goes on")
        }
        Why::SomebodyElseLeads { leader } => plain(format!(
            "{leader} holds the leader key, so its own primary is stopped"
        )),
        Why::FollowingRemote => plain("it follows the remote primary"),
        Why::LeadingPaused { .. } => plain("it holds the leader key; the cluster is paused"),
        Why::PrimaryWithoutLockPaused => waiting(
            "it runs as primary without the leader key; the cluster is paused",
            "the end of the pause",
        ),
        Why::NotPrimaryPaused => plain(
            "its PostgreSQL is no primary in a paused cluster, so it gives the leader key away",
        ),
        Why::Paused => waiting("the cluster is paused", "the end of the pause"),

        Why::Answering { .. } | Why::Restarting => plain(why.to_string()),
        Why::StoppingToReinitialize => {
            waiting("it is stopped to be reinitialized", "PostgreSQL to stop")
        }
        Why::ShuttingDown => waiting("it is shutting down", "PostgreSQL to stop"),
        Why::ShuttingDownJob { job } => {
            waiting("it is shutting down", format!("the end of: {job}"))
        }
        Why::ReleasingAtShutdown => plain("it is shutting down and releases the leader key"),
        Why::ShutDown => plain("it has shut down"),
        Why::ShutDownPaused => {
            plain("it has shut down; PostgreSQL goes on because the cluster is paused")
        }
        Why::CannotStop { detail } => waiting(
            format!("its PostgreSQL does not stop: {detail}"),
            "PostgreSQL to stop",
        ),
    }
}
