//! While the one long job runs, and the turn in which it has ended (spec/ha.md §5.2, §5.5).

use crate::cluster::Cluster;
use crate::types::Role;

use super::decision::{Job, Step, StopPurpose, Why};
use super::observation::{
    Bootstrap, JobEnd, JobView, Outcome, Position, Process, Request, Upstream,
};
use super::turn::{Choice, Turn};
use super::{PASS, recovery, shutdown, switchover};

/// A job runs: usually the turn is over.
pub(super) fn at_work(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let obs = turn.obs;
    let JobView::Running {
        job,
        since,
        shut_down_at,
        cancelled,
    } = &obs.job
    else {
        return PASS;
    };
    if obs.stopping
        && let Some(choice) = shutdown::while_running(turn, cluster, job, *shut_down_at, *cancelled)
    {
        return Some(choice);
    }
    if !cancelled
        && let Some(Request::Reinitialize { force: true, .. }) = obs.requests.first()
        && !turn.leads
        // A new copy on its way was asked for earlier: the request for this one is answered before its own begins.
        && !matches!(job, Job::Stop { .. })
    {
        return Some((
            Step::CancelJob,
            Why::CancelledForReinitialize { job: job.name() },
        ));
    }
    let busy = if turn.leads {
        Why::BusyLeading { job: job.name() }
    } else {
        Why::Busy { job: job.name() }
    };
    let rest = Some((Step::Rest, busy));
    match job {
        Job::Promote if turn.leads => switchover::done(turn, cluster).or(rest),
        Job::Promote | Job::StartPrimary { .. } if turn.paused() => rest,
        Job::Promote => lost_before_promote(turn, *cancelled).or(rest),
        Job::StartPrimary { .. } => lost_during(turn, job).or(rest),
        Job::Restart { .. } => match obs.postgres.role {
            Role::Primary | Role::Promoted if !turn.leads && !turn.paused() => {
                lost_during(turn, job)
            }
            Role::Primary
            | Role::Promoted
            | Role::Uninitialized
            | Role::Replica
            | Role::StandbyLeader
            | Role::Demoted => rest,
        },
        Job::Stop {
            purpose: StopPurpose::Switchover,
            ..
        } if turn.leads => switchover::while_stopping(turn, cluster, *shut_down_at),
        Job::CheckDivergence { with }
            if cluster.is_unlocked() && !cancelled && is_in_the_way(turn, with) =>
        {
            Some((Step::CancelJob, Why::LeaderGoneWhileComparing))
        }
        Job::CrashRecovery if turn.leads && !cancelled && !turn.paused() => {
            recovery::recovering(turn, cluster, *since).or(rest)
        }
        Job::Stop { .. }
        | Job::CheckDivergence { .. }
        | Job::CopySlots { .. }
        | Job::Bootstrap
        | Job::Clone { .. }
        | Job::StartStandby { .. }
        | Job::RestartToFollow { .. }
        | Job::CrashRecovery
        | Job::Rewind { .. }
        | Job::Replace { .. } => rest,
    }
}

/// A comparison with a leader that is gone, or one that keeps a running server from the race.
fn is_in_the_way(turn: &Turn<'_>, with: &Upstream) -> bool {
    match with {
        Upstream::Member { .. } | Upstream::Nobody => true,
        Upstream::Remote { .. } => turn.obs.postgres.process == Process::Up,
    }
}

fn lost_before_promote(turn: &mut Turn<'_>, cancelled: bool) -> Choice {
    if matches!(turn.obs.postgres.position, Some(Position::Primary { .. })) {
        return Some((
            turn.stop_for_lost_lease(),
            Why::LostDuring {
                job: Job::Promote.name(),
            },
        ));
    }
    (!cancelled).then_some((Step::CancelJob, Why::LostBeforePromote))
}

fn lost_during(turn: &mut Turn<'_>, job: &Job) -> Choice {
    (!turn.leads).then(|| {
        (
            turn.stop_for_lost_lease(),
            Why::LostDuring { job: job.name() },
        )
    })
}

/// A start that succeeded ends what a switchover was about, also while the store is silent: if PostgreSQL is down after it, it has
/// crashed since.
pub(super) fn note(turn: &mut Turn<'_>) {
    if let JobView::Finished {
        job: Job::StartStandby { .. } | Job::StartPrimary { .. },
        end: JobEnd::Done,
    } = &turn.obs.job
    {
        turn.memory.switching = false;
    }
}

/// Draws the consequences of an ended job; level-triggered within its turn.
pub(super) fn settle(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let obs = turn.obs;
    let JobView::Finished { job, end } = &obs.job else {
        return PASS;
    };
    let done = match end {
        JobEnd::Done | JobEnd::StoppedAt(_) => true,
        JobEnd::Failed(_) | JobEnd::Cancelled => false,
    };
    match job {
        Job::Bootstrap => {
            if turn.memory.bootstrap == Bootstrap::Claimed {
                turn.memory.bootstrap = if done {
                    Bootstrap::Ready
                } else {
                    Bootstrap::Failed
                };
            }
            PASS
        }
        Job::Clone { .. } | Job::Replace { .. } => {
            if done && matches!(obs.postgres.process, Process::Down { .. }) {
                history_is_the_sources(turn);
            }
            PASS
        }
        Job::Rewind { .. } => {
            if done && matches!(obs.postgres.process, Process::Down { .. }) {
                history_is_the_sources(turn);
            }
            PASS
        }
        Job::CheckDivergence { .. } => {
            if done && let Some(compared) = turn.memory.comparing.take() {
                turn.memory.compared_with = Some(compared);
            }
            PASS
        }
        Job::CrashRecovery => {
            // One that was ended is due again: the data is as crashed as before.
            turn.memory.crash_recovery_done = *end != JobEnd::Cancelled;
            PASS
        }
        Job::Stop { purpose, .. } => {
            if let JobEnd::StoppedAt(at) = end
                && matches!(obs.postgres.process, Process::Down { .. })
                && turn.memory.stopped_at.is_none()
            {
                turn.memory.stopped_at = Some((*at, obs.now));
            }
            if let JobEnd::Failed(detail) = end
                && !matches!(obs.postgres.process, Process::Down { .. })
            {
                turn.wake_in(1000);
                let detail = detail.clone();
                return if obs.stopping {
                    Some((Step::Exit { failure: true }, Why::CannotStop { detail }))
                } else {
                    stop_again(turn, detail)
                };
            }
            if let (StopPurpose::DemoteCluster, JobEnd::StoppedAt(at)) = (purpose, end) {
                turn.memory.ended_at.get_or_insert((*at, obs.now));
            }
            PASS
        }
        Job::StartPrimary { .. }
            if !done && turn.leads && obs.tried.release.is_none() && !turn.paused() =>
        {
            recovery::start_failed(turn, cluster)
        }
        Job::StartStandby { .. }
            if !done && turn.leads && matches!(obs.postgres.process, Process::Down { .. }) =>
        {
            Some((Step::Release { publish: None }, Why::FailedToStartLeading))
        }
        Job::StartPrimary { .. }
        | Job::StartStandby { .. }
        | Job::Promote
        | Job::RestartToFollow { .. }
        | Job::CopySlots { .. }
        | Job::Restart { .. } => PASS,
    }
}

fn history_is_the_sources(turn: &mut Turn<'_>) {
    turn.memory.fresh = true;
    turn.memory.was_primary_on = None;
    turn.memory.opened_by = None;
    turn.memory.diverged = None;
    turn.memory.crash_recovery_done = false;
    turn.memory.compared_with = None;
    // Where this server ended as a primary is not where it is now: no switchover goes on from there.
    turn.memory.switching = false;
    turn.memory.stopped_at = None;
}

/// A primary that must not serve is stopped by all means; anything else may go on.
fn stop_again(turn: &mut Turn<'_>, detail: String) -> Choice {
    let unleased = !turn.leads && !turn.paused() && super::deadline::may_write(turn);
    unleased.then(|| (turn.stop_for_lost_lease(), Why::CannotStop { detail }))
}

/// Whether the acquisition of this turn succeeded.
pub(super) fn just_acquired(turn: &Turn<'_>) -> bool {
    match turn.obs.tried.acquire {
        Some(Outcome::Done) => true,
        None | Some(Outcome::Refused | Outcome::Unknown) => false,
    }
}
