//! The only arithmetic on the lease (S1): when to renew it, when PostgreSQL must stop.
//!
//! A lease counts from the moment its last successful request was SENT: the store cannot have started counting earlier. This node
//! serves until `sent + ttl - margin`; nobody can have taken the key before `sent + ttl`.

use std::time::Duration;

use crate::types::{Moment, Role};

use super::PASS;
use super::decision::{Job, Step, StopMode, StopPurpose, Why};
use super::observation::{
    JobView, LeaseView, Observation, Outcome, Position, Process, Settings, StoreView,
};
use super::turn::{Choice, Turn};

/// With at least this much time left PostgreSQL is stopped cleanly, which saves the rewind afterwards.
const TIME_FOR_FAST_STOP: Duration = Duration::from_secs(3);
/// What an immediate stop is given when a fast one did not end in time.
const TIME_FOR_IMMEDIATE_STOP: Duration = Duration::from_millis(1500);

/// Until when a primary may serve under this lease; then its stop begins.
pub(super) fn serve_until(lease: &LeaseView, settings: &Settings) -> Moment {
    Moment(lease.expires.0.saturating_sub(settings.stop_margin))
}

/// The time between renewals: more often than upstream's `loop_wait` when the lease is short.
pub(super) fn renewal_interval(settings: &Settings) -> Duration {
    settings.loop_wait.min(settings.ttl / 3)
}

/// Whether the lease is old enough to be renewed in this turn. Turns come with every event; a renewal with each of them would be an
/// event of its own for everybody.
pub(super) fn renewal_due(lease: &LeaseView, settings: &Settings, now: Moment) -> bool {
    now.since(lease.sent) >= renewal_interval(settings) / 2
}

/// The regular time of the next renewal.
pub(super) fn next_renewal(lease: &LeaseView, settings: &Settings) -> Moment {
    lease.sent + renewal_interval(settings)
}

/// Stops PostgreSQL when the lease ends, even in the middle of a job. Not in pause.
pub(super) fn stop_in_time(turn: &mut Turn<'_>) -> Choice {
    let obs = turn.obs;
    let (lease, settings) = (obs.lease?, &obs.settings);
    let silent = matches!(obs.store, StoreView::Silent { .. });
    if turn.paused() || obs.now < serve_until(&lease, settings) {
        return PASS;
    }
    let over = obs.now >= lease.expires;
    if !may_write(turn) {
        return over.then_some((Step::ForgetLease, Why::LeaseOver));
    }
    // A late turn with a store that answers: one quick renewal is better than an outage.
    let renewable = match obs.tried.renew {
        None => {
            !silent
                && !over
                && obs
                    .cluster()
                    .is_some_and(|cluster| cluster.is_led_by(&obs.me))
        }
        Some(Outcome::Done | Outcome::Refused | Outcome::Unknown) => false,
    };
    if renewable {
        return Some((Step::Renew, Why::RenewalDue));
    }
    let left = obs.now.until(lease.expires);
    if let JobView::Running {
        job: Job::Stop { mode, .. },
        shut_down_at,
        ..
    } = &obs.job
    {
        match (shut_down_at, mode) {
            (Some(_), _) | (None, StopMode::Immediate) => {
                return Some((Step::Rest, Why::LeaseEndsStopping));
            }
            (None, StopMode::Fast) if left > TIME_FOR_IMMEDIATE_STOP => {
                turn.wake_by(Moment(
                    lease.expires.0.saturating_sub(TIME_FOR_IMMEDIATE_STOP),
                ));
                return Some((Step::Rest, Why::LeaseEndsStopping));
            }
            (None, StopMode::Fast) => {}
        }
    }
    let purpose = if silent {
        StopPurpose::StoreSilent
    } else {
        StopPurpose::LostLease
    };
    let (mode, bound) = if left >= TIME_FOR_FAST_STOP {
        (StopMode::Fast, Some(left - TIME_FOR_IMMEDIATE_STOP))
    } else {
        (StopMode::Immediate, None)
    };
    let job = Job::Stop {
        mode,
        bound,
        checkpoint: false,
        purpose,
    };
    Some((
        Step::Start(job),
        Why::LeaseEnds {
            left,
            store_silent: silent,
        },
    ))
}

/// See [`super::may_write`].
pub(super) fn may_write(turn: &Turn<'_>) -> bool {
    super::may_write(turn.obs)
}

/// See [`super::may_write`].
pub(super) fn is_or_may_become_primary(obs: &Observation) -> bool {
    let postgres = &obs.postgres;
    let opening = match &obs.job {
        JobView::Running { job, .. } => match job {
            Job::Promote | Job::StartPrimary { .. } => true,
            Job::Restart { .. } => match postgres.role {
                Role::Primary | Role::Promoted => true,
                Role::Uninitialized | Role::Replica | Role::StandbyLeader | Role::Demoted => false,
            },
            Job::Bootstrap
            | Job::Clone { .. }
            | Job::StartStandby { .. }
            | Job::RestartToFollow { .. }
            | Job::Stop { .. }
            | Job::CheckDivergence { .. }
            | Job::CopySlots { .. }
            | Job::CrashRecovery
            | Job::Rewind { .. }
            | Job::Replace { .. } => false,
        },
        JobView::Idle | JobView::Finished { .. } => false,
    };
    let open = match postgres.process {
        Process::Down { .. } => false,
        Process::Starting { .. } => !postgres.standby_configured,
        Process::Up => match &postgres.position {
            Some(Position::Primary { .. }) => true,
            Some(Position::Standby { .. }) => false,
            None => !postgres.standby_configured,
        },
    };
    opening || open
}
