//! PostgreSQL is down, starting, or not ours: bring it back without ever letting a diverged history follow (S3; spec/ha.md §5.3,
//! §5.6, §5.7, §15).

use std::time::Duration;

use crate::cluster::{Cluster, Initialize, Member};
use crate::types::{MemberName, Moment, PgState, Role, SystemId, Timeline};

use super::decision::{Job, ReplaceReason, Step, StopMode, StopPurpose, Why};
use super::observation::{ControlState, Directory, Divergence, Process, Upstream};
use super::turn::{Choice, Turn, as_upstream, named, stop};
use super::{PASS, standby, switchover, sync};

/// After a start or a comparison failed it is tried again so much later, if nothing else happens.
const TRY_AGAIN_MILLIS: u64 = 1000;
/// After a failed rewind: what it stumbled over, a full disk or a source that went away, may have passed by then.
const REWIND_AGAIN_MILLIS: u64 = 10_000;

/// My directory's identifier.
pub(super) fn system_id<'a>(turn: &Turn<'a>) -> Option<&'a SystemId> {
    match &turn.obs.postgres.directory {
        Directory::Present { system_id, .. } => system_id.as_ref(),
        Directory::Empty | Directory::Inaccessible(_) => None,
    }
}

/// Whose data is this? (spec/ha.md §5.6)
pub(super) fn identity(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let Directory::Present { system_id, control } = &turn.obs.postgres.directory else {
        return PASS;
    };
    let down = matches!(turn.obs.postgres.process, Process::Down { .. });
    match (system_id, &cluster.initialize) {
        (None, _) if down || control.is_none() => Some(if turn.leads && down {
            (Step::Release { publish: None }, Why::NoDataWithLock)
        } else {
            (Step::Rest, Why::DirectoryBroken)
        }),
        (Some(mine), Initialize::Done(theirs)) if mine != theirs => {
            Some(foreign(turn, mine.clone(), theirs.clone()))
        }
        (
            Some(_) | None,
            Initialize::Done(_)
            | Initialize::Absent
            | Initialize::InProgress
            | Initialize::Invalid(_),
        ) => PASS,
    }
}

/// Another cluster's data: the agent ends; PostgreSQL is stopped, the key released.
pub(super) fn foreign(turn: &mut Turn<'_>, mine: SystemId, theirs: SystemId) -> (Step, Why) {
    let why = Why::SystemIdMismatch { mine, theirs };
    let step = match turn.obs.postgres.process {
        Process::Up | Process::Starting { .. } => stop(StopMode::Fast, StopPurpose::Shutdown),
        Process::Down { .. } if turn.leads && turn.obs.tried.release.is_none() => {
            Step::Release { publish: None }
        }
        Process::Down { .. } => Step::Exit { failure: true },
    };
    (step, why)
}

/// The directory cannot be read.
pub(super) fn inaccessible(turn: &mut Turn<'_>, cluster: &Cluster, detail: &str) -> (Step, Why) {
    if turn.leads && matches!(turn.obs.postgres.process, Process::Down { .. }) {
        return (Step::Release { publish: None }, Why::NoDataWithLock);
    }
    if turn.leads
        && let Some(choice) = super::serving::step_down(turn, cluster)
    {
        return choice;
    }
    (
        Step::Rest,
        Why::DirectoryInaccessible {
            detail: detail.to_owned(),
        },
    )
}

/// The postmaster runs and does not answer queries. A primary that does so for long has failed like one that is down: the lease must
/// not be renewed for it for ever.
pub(super) fn silent(turn: &mut Turn<'_>, cluster: &Cluster) -> (Step, Why) {
    let patience = turn.obs.settings.primary_answer_timeout;
    if !turn.leads || patience.is_zero() || !super::deadline::may_write(turn) {
        return (Step::Rest, Why::NoAnswer);
    }
    let since = *turn.memory.silent_since.get_or_insert(turn.obs.now);
    let after = turn.obs.now.since(since);
    if after < patience {
        turn.wake_by(since + patience);
        return (Step::Rest, Why::NoAnswer);
    }
    match turn.able_to_lead(cluster, turn.candidates(cluster, None), None) {
        Err(whom) => (Step::AskPeers { whom }, Why::AskingCandidates),
        Ok(able) => {
            turn.memory.silent_since = None;
            turn.memory.abdicating = !able.is_empty();
            (
                stop(StopMode::Immediate, StopPurpose::CannotLead),
                Why::SilentPrimary { after },
            )
        }
    }
}

/// The postmaster does not accept connections yet and no job of ours starts it.
pub(super) fn starting(turn: &mut Turn<'_>, cluster: &Cluster, since: Moment) -> (Step, Why) {
    let obs = turn.obs;
    if !turn.leads {
        if let Some(other) = &cluster.leader
            && super::deadline::may_write(turn)
        {
            return (
                turn.stop_for_lost_lease(),
                Why::SomebodyElseLeads {
                    leader: other.name.clone(),
                },
            );
        }
        turn.wake_in(TRY_AGAIN_MILLIS);
        return (Step::Rest, Why::Starting);
    }
    let timeout = turn.start_limit();
    let took = obs.now.since(since);
    if took >= timeout {
        return too_slow(turn, cluster, took);
    }
    turn.wake_by(since + timeout);
    turn.wake_in(TRY_AGAIN_MILLIS);
    switchover::on_request(turn, cluster).unwrap_or((Step::Rest, Why::Starting))
}

fn too_slow(turn: &mut Turn<'_>, cluster: &Cluster, took: Duration) -> (Step, Why) {
    match turn.able_to_lead(cluster, turn.candidates(cluster, None), None) {
        Err(whom) => (Step::AskPeers { whom }, Why::AskingCandidates),
        Ok(able) if able.is_empty() => (Step::Rest, Why::StartSlowNobodyElse),
        Ok(_) => {
            turn.memory.abdicating = true;
            (
                stop(StopMode::Immediate, StopPurpose::CannotLead),
                Why::StartTooSlow { after: took },
            )
        }
    }
}

/// The leader of a standby cluster lets its crashed server recover before it compares histories. It leads on without serving no longer
/// than one whose server starts, if another can lead (spec/ha.md §5.2).
pub(super) fn recovering(turn: &mut Turn<'_>, cluster: &Cluster, since: Moment) -> Choice {
    let timeout = turn.obs.settings.primary_start_timeout;
    let after = turn.obs.now.since(since);
    if after < timeout {
        turn.wake_by(since + timeout);
        return PASS;
    }
    match turn.able_to_lead(cluster, turn.candidates(cluster, None), None) {
        Err(whom) => Some((Step::AskPeers { whom }, Why::AskingCandidates)),
        Ok(able) if able.is_empty() => PASS,
        Ok(_) => {
            turn.memory.abdicating = true;
            Some((Step::CancelJob, Why::RecoveryTooSlow { after }))
        }
    }
}

/// The job that was to start the leader's server in place has failed or timed out.
pub(super) fn start_failed(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    match turn.obs.postgres.process {
        Process::Up => PASS,
        Process::Starting { .. } => Some(too_slow(turn, cluster, turn.start_limit())),
        Process::Down { .. } => Some(
            match turn.able_to_lead(cluster, turn.candidates(cluster, None), None) {
                Err(whom) => (Step::AskPeers { whom }, Why::AskingCandidates),
                Ok(able) if able.is_empty() => {
                    turn.wake_in(TRY_AGAIN_MILLIS);
                    (Step::Rest, Why::StartFailedNobodyElse)
                }
                Ok(_) => (Step::Release { publish: None }, Why::FailedToStartLeading),
            },
        ),
    }
}

/// No postmaster.
pub(super) fn down(turn: &mut Turn<'_>, cluster: &Cluster, crashed: bool) -> (Step, Why) {
    if let Some(detail) =
        turn.failed(|job| matches!(job, Job::StartStandby { .. } | Job::RestartToFollow { .. }))
    {
        turn.wake_in(TRY_AGAIN_MILLIS);
        return (
            Step::Rest,
            Why::JobFailed {
                job: "restarting after failure",
                detail,
            },
        );
    }
    if let Some(choice) = standby::start(turn, cluster) {
        return choice;
    }
    match &cluster.leader {
        _ if turn.leads => down_leading(turn, cluster, crashed),
        Some(leader) => rejoin(turn, cluster, &leader.name),
        None => {
            turn.memory.abdicating = false;
            (
                Step::Start(Job::StartStandby {
                    of: Upstream::Nobody,
                }),
                Why::ReadOnlyWithoutLeader,
            )
        }
    }
}

fn down_leading(turn: &mut Turn<'_>, cluster: &Cluster, crashed: bool) -> (Step, Why) {
    if turn.memory.abdicating {
        return (Step::Release { publish: None }, Why::GivingUpLock);
    }
    if turn.memory.switching
        && let Some(choice) = switchover::after_stop(turn, cluster)
    {
        return choice;
    }
    if turn.is_primary_in_place() {
        let timeout = turn.obs.settings.primary_start_timeout;
        if timeout.is_zero() && crashed {
            match turn.able_to_lead(cluster, turn.candidates(cluster, None), None) {
                Err(whom) => return (Step::AskPeers { whom }, Why::AskingCandidates),
                Ok(able) if !able.is_empty() => {
                    return (Step::Release { publish: None }, Why::GivingUpLock);
                }
                Ok(_) => {}
            }
        }
        if let Some(choice) = sync::before_start(turn, cluster) {
            return choice;
        }
        let timeout = if timeout.is_zero() {
            turn.obs.settings.ttl
        } else {
            timeout
        };
        turn.memory.compared_with = None;
        return (
            Step::Start(Job::StartPrimary { timeout }),
            Why::RestartingInPlace { crashed },
        );
    }
    (
        Step::Start(Job::StartStandby {
            of: Upstream::Nobody,
        }),
        Why::ReadOnlyWithLock,
    )
}

impl Turn<'_> {
    /// How long the leader's server may take to start: as the restart that was asked for says, or as configured (spec/ha.md §5.3).
    fn start_limit(&self) -> Duration {
        let configured = self.obs.settings.primary_start_timeout;
        self.memory.start_limit.unwrap_or(configured)
    }

    /// The directory is a primary's that has not been turned into a standby's: under a lease that was never lost it may go on where
    /// it stands, because nobody can have led in between.
    fn is_primary_in_place(&self) -> bool {
        self.was_primary_by_control() && !self.obs.postgres.standby_configured
    }
}

/// Somebody else leads and our server is down: start it as their standby, after proof that it can be one.
fn rejoin(turn: &mut Turn<'_>, cluster: &Cluster, name: &MemberName) -> (Step, Why) {
    turn.memory.abdicating = false;
    let Some(leader) = cluster.members.get(name) else {
        return (
            Step::Rest,
            Why::LeaderUnknown {
                leader: name.clone(),
            },
        );
    };
    let Some(upstream) = turn.upstream(cluster, name) else {
        return (
            Step::Rest,
            Why::LeaderUnknown {
                leader: name.clone(),
            },
        );
    };
    let leader = &Reference::of(leader);
    if let Some(diverged) = verdict(turn, cluster, leader) {
        return repair(turn, leader, diverged);
    }
    let proven = proven(turn, leader);
    // A standby that cannot be started as it was may have received more than the leader's history has.
    let could_not_start = turn.obs.postgres.state == PgState::StartFailed;
    // It has left somebody's history, and was not repaired since.
    let left = match &turn.obs.postgres.divergence {
        Divergence::Diverged { .. } | Divergence::RewindFailed { .. } => !turn.memory.fresh,
        Divergence::Unchecked | Divergence::Prefix { .. } => false,
    };
    if (turn.is_former_primary() || could_not_start || left) && !proven {
        return prove(turn, leader);
    }
    // A standby that followed somebody else starts as it was; it is pointed at the new leader once it runs, after the comparison.
    let upstream = match &turn.obs.postgres.follows {
        Some(before @ Upstream::Member { name, .. })
            if !proven && !turn.memory.fresh && *name != turn.obs.me =>
        {
            before.clone()
        }
        Some(Upstream::Member { .. } | Upstream::Remote { .. } | Upstream::Nobody) | None => {
            upstream
        }
    };
    let why = Why::StartingAsSecondary {
        of: named(&upstream),
    };
    (Step::Start(Job::StartStandby { of: upstream }), why)
}

/// Whose history ours is compared with: the leader's, in a standby cluster the remote primary's.
pub(super) struct Reference {
    pub(super) name: MemberName,
    /// As it says; `None`: not known.
    pub(super) timeline: Option<Timeline>,
    /// It has left recovery, as far as is known.
    pub(super) is_ready: bool,
    /// Its control file shows its timeline, as far as is known.
    pub(super) has_checkpoint: bool,
    /// Where it is.
    pub(super) server: Option<Upstream>,
}

impl Reference {
    /// The leader.
    pub(super) fn of(leader: &Member) -> Self {
        Reference {
            name: leader.name.clone(),
            timeline: leader.timeline,
            is_ready: is_ready(leader),
            has_checkpoint: leader.checkpoint_after_promote,
            server: as_upstream(leader),
        }
    }
}

/// Whether this history is known to be a prefix of the leader's present one.
pub(super) fn proven(turn: &Turn<'_>, leader: &Reference) -> bool {
    let compared = turn.memory.compared_with.as_ref();
    match &turn.obs.postgres.divergence {
        Divergence::Prefix { of } => {
            *of == leader.name
                && compared.is_some_and(|(name, timeline)| {
                    *name == leader.name && *timeline == leader.timeline
                })
        }
        Divergence::Unchecked | Divergence::Diverged { .. } | Divergence::RewindFailed { .. } => {
            false
        }
    }
}

/// A known divergence from the leader.
pub(super) struct Diverged {
    /// In words.
    pub(super) detail: String,
    /// pg_rewind would find nothing to do: it compares timelines by their numbers.
    pub(super) same_number: bool,
}

/// The known divergence from this leader; remembered, so that a member does not lead with it once that leader is gone.
pub(super) fn verdict(
    turn: &mut Turn<'_>,
    cluster: &Cluster,
    leader: &Reference,
) -> Option<Diverged> {
    let verdict = judge(turn, cluster, leader);
    if verdict.is_some() {
        turn.memory.diverged = Some(leader.name.clone());
    } else if proven(turn, leader) {
        turn.memory.diverged = None;
    }
    verdict
}

fn judge(turn: &Turn<'_>, cluster: &Cluster, leader: &Reference) -> Option<Diverged> {
    if turn.memory.fresh {
        return None;
    }
    let detail = match &turn.obs.postgres.divergence {
        Divergence::Diverged { from, detail } if *from == leader.name => Some(detail.clone()),
        Divergence::RewindFailed { from } if *from == leader.name => {
            Some("pg_rewind failed".to_owned())
        }
        Divergence::Diverged { .. }
        | Divergence::RewindFailed { .. }
        | Divergence::Unchecked
        | Divergence::Prefix { .. } => None,
    };
    // pg_rewind compares timelines by number: with the same number it would find nothing to do.
    let number = turn
        .my_timeline()
        .or_else(|| turn.control().map(|control| control.timeline));
    let same_number = number.is_some() && number == leader.timeline;
    same_timeline(turn, cluster).or_else(|| {
        detail.map(|detail| Diverged {
            detail,
            same_number,
        })
    })
}

/// Two members may each have opened a timeline of the same number, even at the same position; then neither numbers nor history files
/// nor pg_rewind can tell the two apart. The history document names who opened it.
fn same_timeline(turn: &Turn<'_>, cluster: &Cluster) -> Option<Diverged> {
    let (timeline, opener) = turn.memory.opened_by.as_ref()?;
    let now = opener_of(cluster, *timeline).filter(|name| *name != opener)?;
    let detail = format!("{now} and {opener} both opened timeline {timeline}");
    Some(Diverged {
        detail,
        same_number: true,
    })
}

/// Who opened this timeline, as far as the history document knows.
pub(super) fn opener_of(cluster: &Cluster, timeline: Timeline) -> Option<&MemberName> {
    let history = cluster.history.as_ref()?;
    history
        .entries
        .iter()
        .find(|entry| entry.timeline.0 + 1 == timeline.0)?
        .new_leader
        .as_ref()
}

/// Whether this member must not lead because of its history. A failover (not a switchover) to it is an operator's word against that. The
/// verdict about a standby cluster's remote primary only lets others go first ([`super::serving`]): nobody writes here.
pub(super) fn must_not_lead(turn: &Turn<'_>, cluster: &Cluster) -> Option<Why> {
    if turn.memory.has_left_the_remote() {
        return None;
    }
    let from = turn.memory.diverged.clone()?;
    let forced = cluster.failover.as_ref().is_some_and(|request| {
        request.leader.is_none() && request.candidate.as_ref() == Some(&turn.obs.me)
    });
    (!forced).then_some(Why::KnownDiverged { from })
}

/// Begins the comparison, if the leader is ready for it.
pub(super) fn prove(turn: &mut Turn<'_>, leader: &Reference) -> (Step, Why) {
    if !leader.is_ready || still_on_mine(turn, leader) {
        return (
            Step::Rest,
            Why::WaitingForPromotion {
                leader: leader.name.clone(),
            },
        );
    }
    if let Some(detail) =
        turn.failed(|job| matches!(job, Job::CheckDivergence { .. } | Job::CrashRecovery))
    {
        turn.wake_in(TRY_AGAIN_MILLIS);
        return (
            Step::Rest,
            Why::JobFailed {
                job: "comparing histories",
                detail,
            },
        );
    }
    if turn.ended(|job| matches!(job, Job::CheckDivergence { .. }))
        && turn.obs.postgres.divergence == Divergence::Unchecked
    {
        turn.wake_in(TRY_AGAIN_MILLIS);
        let detail = "no verdict".to_owned();
        return (
            Step::Rest,
            Why::JobFailed {
                job: "comparing histories",
                detail,
            },
        );
    }
    let down = matches!(turn.obs.postgres.process, Process::Down { .. });
    if down && is_unclean(turn) && !turn.memory.crash_recovery_done {
        return (Step::Start(Job::CrashRecovery), Why::CrashRecovering);
    }
    let Some(with) = leader.server.clone() else {
        return (
            Step::Rest,
            Why::LeaderUnknown {
                leader: leader.name.clone(),
            },
        );
    };
    turn.memory.compared_with = None;
    turn.memory.comparing = Some((leader.name.clone(), leader.timeline));
    let why = Why::Comparing { with: named(&with) };
    (Step::Start(Job::CheckDivergence { with }), why)
}

impl Turn<'_> {
    /// A job that ended in this turn, however.
    fn ended(&self, which: impl Fn(&Job) -> bool) -> bool {
        use super::observation::JobView;
        match &self.obs.job {
            JobView::Finished { job, .. } => which(job),
            JobView::Idle | JobView::Running { .. } => false,
        }
    }
}

/// The leader's document shows the timeline on which this directory was a primary. Either the document is older than the leader's
/// promotion, or both opened a timeline of the same number and the history does not tell yet: no verdict in either case.
fn still_on_mine(turn: &Turn<'_>, leader: &Reference) -> bool {
    !turn.memory.fresh
        && turn.memory.was_primary_on.is_some()
        && turn.memory.was_primary_on == leader.timeline
}

/// A leader whose history can be compared with: it has left recovery.
pub(super) fn is_ready(leader: &Member) -> bool {
    match leader.role {
        Some(Role::Primary | Role::StandbyLeader) => true,
        Some(Role::Uninitialized | Role::Replica | Role::Promoted | Role::Demoted) | None => false,
    }
}

/// The primary was not shut down: where its history ends is not in the control file.
fn is_unclean(turn: &Turn<'_>) -> bool {
    turn.control().is_some_and(|control| {
        !control.backup_label
            && match control.state {
                ControlState::StartingUp
                | ControlState::ShuttingDown
                | ControlState::InCrashRecovery
                | ControlState::InProduction => true,
                ControlState::ShutDown
                | ControlState::ShutDownInRecovery
                | ControlState::InArchiveRecovery
                | ControlState::Unknown => false,
            }
    })
}

/// Histories diverged and the server is down: rewind or copy again, as allowed.
pub(super) fn repair(turn: &mut Turn<'_>, leader: &Reference, diverged: Diverged) -> (Step, Why) {
    let Diverged {
        detail,
        same_number,
    } = diverged;
    let settings = &turn.obs.settings;
    let failed = matches!(
        turn.obs.postgres.divergence,
        Divergence::RewindFailed { .. }
    );
    let Some(from) = leader.server.clone() else {
        return (
            Step::Rest,
            Why::LeaderUnknown {
                leader: leader.name.clone(),
            },
        );
    };
    if !leader.is_ready {
        return (
            Step::Rest,
            Why::WaitingForPromotion {
                leader: leader.name.clone(),
            },
        );
    }
    if let Some(detail) = turn.failed(|job| matches!(job, Job::Replace { .. })) {
        turn.wake_in(5 * TRY_AGAIN_MILLIS);
        return (
            Step::Rest,
            Why::JobFailed {
                job: "reinitialize",
                detail,
            },
        );
    }
    if let Some(detail) = turn.failed(|job| matches!(job, Job::Rewind { .. }))
        && !failed
    {
        // Cancelled, or the source was not healthy: that says nothing about the directory.
        turn.wake_in(TRY_AGAIN_MILLIS);
        return (
            Step::Rest,
            Why::JobFailed {
                job: "running pg_rewind",
                detail,
            },
        );
    }
    let because = if failed {
        ReplaceReason::RewindFailed
    } else {
        ReplaceReason::Diverged
    };
    let may_replace =
        settings.may_replace_diverged || (failed && settings.may_replace_unrewindable);
    if settings.may_rewind && !same_number && !(failed && may_replace) {
        if failed && let Some(choice) = await_another_rewind(turn) {
            return choice;
        }
        if !leader.has_checkpoint {
            return (
                Step::Rest,
                Why::WaitingForCheckpoint {
                    leader: leader.name.clone(),
                },
            );
        }
        let from_name = leader.name.clone();
        return (
            Step::Start(Job::Rewind { from }),
            Why::Rewinding {
                from: from_name,
                detail,
            },
        );
    }
    // A leader that a switchover has stopped comes back in pause, but not at the price of its data.
    if may_replace && turn.paused() {
        let leader = leader.name.clone();
        return (Step::Rest, Why::RecloneAwaitsResume { leader, detail });
    }
    if may_replace {
        let why = Why::Recloning {
            from: leader.name.to_string(),
            because,
        };
        return (Step::Start(Job::Replace { from, because }), why);
    }
    (
        Step::Rest,
        Why::CannotRejoin {
            leader: leader.name.clone(),
            detail,
        },
    )
}

/// Nothing but a rewind is allowed, and one has failed. Trying again is safe: pg_rewind writes the control file last, and refuses
/// when it does not find the WAL of its own that it needs.
fn await_another_rewind(turn: &mut Turn<'_>) -> Choice {
    let now = turn.obs.now;
    let again = turn
        .memory
        .rewind_again
        .filter(|_| {
            turn.failed(|job| matches!(job, Job::Rewind { .. }))
                .is_none()
        })
        .unwrap_or(now + Duration::from_millis(REWIND_AGAIN_MILLIS));
    turn.memory.rewind_again = Some(again);
    if now >= again {
        return PASS;
    }
    turn.wake_by(again);
    let why = Why::JobFailed {
        job: "running pg_rewind",
        detail: "its output is above (reinitialize this member if it keeps failing)".to_owned(),
    };
    Some((Step::Rest, why))
}

/// Whether anything may be done about a divergence.
pub(super) fn can_repair(turn: &Turn<'_>, diverged: &Diverged) -> bool {
    let settings = &turn.obs.settings;
    match &turn.obs.postgres.divergence {
        Divergence::RewindFailed { .. } => {
            (settings.may_rewind && !diverged.same_number)
                || settings.may_replace_diverged
                || settings.may_replace_unrewindable
        }
        Divergence::Unchecked | Divergence::Prefix { .. } | Divergence::Diverged { .. } => {
            (settings.may_rewind && !diverged.same_number) || settings.may_replace_diverged
        }
    }
}
