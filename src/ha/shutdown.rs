//! The agent was told to stop: PostgreSQL first, then the key, then the end (spec/ha.md §2.5).

use crate::cluster::Cluster;
use crate::types::Lsn;

use super::PASS;
use super::decision::{Job, Step, StopMode, StopPurpose, Why};
use super::observation::{Bootstrap, JobView, Process};
use super::switchover::give_away;
use super::turn::{Choice, Turn};

/// A job runs: end it, or wait for the stop and give the key away early.
pub(super) fn while_running(
    turn: &mut Turn<'_>,
    cluster: &Cluster,
    job: &Job,
    shut_down_at: Option<Lsn>,
    cancelled: bool,
) -> Choice {
    match job {
        Job::Stop { .. } => match shut_down_at {
            Some(at) if turn.leads && !turn.paused() => {
                Some(give_away(turn, cluster, at).unwrap_or_else(|| {
                    turn.wake_in(100);
                    (Step::Rest, Why::NobodyCaughtUp { at })
                }))
            }
            Some(_) | None => PASS,
        },
        Job::Bootstrap
        | Job::Clone { .. }
        | Job::StartPrimary { .. }
        | Job::StartStandby { .. }
        | Job::RestartToFollow { .. }
        | Job::Promote
        | Job::Restart { .. }
        | Job::CheckDivergence { .. }
        | Job::CopySlots { .. }
        | Job::CrashRecovery
        | Job::Rewind { .. }
        | Job::Replace { .. } => Some(end_job(job, cancelled)),
    }
}

fn end_job(job: &Job, cancelled: bool) -> (Step, Why) {
    let step = if cancelled {
        Step::Rest
    } else {
        Step::CancelJob
    };
    (step, Why::ShuttingDownJob { job: job.name() })
}

/// No job runs.
pub(super) fn shut_down(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    if !turn.obs.stopping {
        return PASS;
    }
    if turn.paused() {
        return Some((Step::Exit { failure: false }, Why::ShutDownPaused));
    }
    match turn.memory.bootstrap {
        Bootstrap::Failed => return PASS,
        Bootstrap::Claimed => {
            turn.memory.bootstrap = Bootstrap::Failed;
            return PASS;
        }
        Bootstrap::None | Bootstrap::Claiming | Bootstrap::InDoubt(_) | Bootstrap::Ready => {}
    }
    if let Some(choice) = super::sync::leave(turn, cluster) {
        return Some(choice);
    }
    Some(match turn.obs.postgres.process {
        Process::Up | Process::Starting { .. } => (stop_for_good(turn), Why::ShuttingDown),
        Process::Down { .. } if turn.leads && turn.obs.tried.release.is_none() => {
            release(turn, cluster)
        }
        Process::Down { .. } => (Step::Exit { failure: false }, Why::ShutDown),
    })
}

fn stop_for_good(turn: &Turn<'_>) -> Step {
    Step::Start(Job::Stop {
        mode: StopMode::Fast,
        bound: turn.stop_bound(),
        checkpoint: false,
        purpose: StopPurpose::Shutdown,
    })
}

fn release(turn: &mut Turn<'_>, cluster: &Cluster) -> (Step, Why) {
    let Some((at, _)) = turn.memory.stopped_at else {
        return (Step::Release { publish: None }, Why::ReleasingAtShutdown);
    };
    give_away(turn, cluster, at).unwrap_or((
        Step::Release { publish: Some(at) },
        Why::ReleasingAtShutdown,
    ))
}

/// The same while the store is silent: the key expires by itself.
pub(super) fn without_store(turn: &mut Turn<'_>) -> Choice {
    if !turn.obs.stopping {
        return PASS;
    }
    match &turn.obs.job {
        JobView::Running {
            job: Job::Stop { .. },
            ..
        } => return Some((Step::Rest, Why::ShuttingDown)),
        JobView::Running { job, cancelled, .. } => return Some(end_job(job, *cancelled)),
        JobView::Idle | JobView::Finished { .. } => {}
    }
    if let Some(detail) = turn.failed(|job| matches!(job, Job::Stop { .. }))
        && !matches!(turn.obs.postgres.process, Process::Down { .. })
    {
        return Some((Step::Exit { failure: true }, Why::CannotStop { detail }));
    }
    Some(match turn.obs.postgres.process {
        _ if turn.paused() => (Step::Exit { failure: false }, Why::ShutDownPaused),
        Process::Up | Process::Starting { .. } => (stop_for_good(turn), Why::ShuttingDown),
        Process::Down { .. } => (Step::Exit { failure: false }, Why::ShutDown),
    })
}
