//! The holder of the leader key: keeping the lease in step with the store, and what a leader does when all is well
//! (spec/ha.md §5.9, §5.11).

use crate::cluster::{Cluster, Initialize};
use crate::types::{Role, Timeline};

use super::decision::{Job, Step, StopMode, StopPurpose, Why, Write};
use super::observation::{JobView, Outcome, Position, Process};
use super::turn::{Choice, Turn, stop};
use super::{PASS, deadline, failsafe, isolation, standby, switchover, sync};

/// Keeps the record of the lease in step with the snapshot, and renews it.
pub(super) fn hold(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let obs = turn.obs;
    let mine = cluster.is_led_by(&obs.me);
    let Some(lease) = &obs.lease else {
        let lost = obs.tried.renew == Some(Outcome::Refused)
            || obs.tried.release.is_some()
            || obs.tried.hand_over.is_some();
        let adopt = mine
            && !lost
            && obs.tried.acquire.is_none()
            && !obs.stopping
            && failsafe::promise(turn).is_none();
        return adopt.then_some((Step::Adopt, Why::KeyIsMine));
    };
    if let Some(choice) = failsafe::take_back(turn, cluster) {
        return Some(choice);
    }
    if !mine {
        let why = cluster
            .leader
            .as_ref()
            .map_or(Why::KeyGone, |leader| Why::KeyTaken {
                by: leader.name.clone(),
            });
        return Some((Step::ForgetLease, why));
    }
    turn.wake_by(deadline::next_renewal(lease, &obs.settings));
    if let Some(deadline) = turn.deadline()
        && deadline > obs.now
    {
        turn.wake_by(deadline);
    }
    let due = deadline::renewal_due(lease, &obs.settings, obs.now) || failsafe::is_agreed(turn);
    match obs.tried.renew {
        None if due => Some((Step::Renew, Why::RenewalDue)),
        None | Some(Outcome::Done) => PASS,
        Some(Outcome::Refused) => Some((Step::ForgetLease, Why::RenewalRefused)),
        // Nothing that only a leader may do is begun on a lease of which the last word is doubt; a stop on its way goes on.
        Some(Outcome::Unknown) => unanswered(turn),
    }
}

fn unanswered(turn: &mut Turn<'_>) -> Choice {
    if let Some(choice) = failsafe::ask(turn) {
        return Some(choice);
    }
    match &turn.obs.job {
        JobView::Running { .. } => return PASS,
        JobView::Idle | JobView::Finished { .. } if turn.obs.stopping => return PASS,
        JobView::Idle | JobView::Finished { .. } => {}
    }
    turn.wake_in(500);
    if let Some(choice) = isolation::release_by_agreement(turn).or_else(|| isolation::hold(turn)) {
        return Some(choice);
    }
    let until = turn.deadline().unwrap_or(turn.obs.now);
    let why = match failsafe::standing(turn) {
        _ if isolation::is_held(turn.obs) => Why::CommitsHeld,
        Some(why) => why,
        None => Why::RenewalUnanswered { until },
    };
    Some((Step::Rest, why))
}

/// The store is silent: the lease covers a primary to its end (then `deadline` stops it), nothing else is begun.
pub(super) fn without_store(turn: &mut Turn<'_>) -> (Step, Why) {
    if turn.paused() {
        return (Step::Rest, Why::StoreSilentPaused);
    }
    let writable = deadline::may_write(turn);
    match turn.deadline() {
        Some(until) => {
            turn.wake_by(until);
            if let Some(choice) = failsafe::ask(turn)
                .or_else(|| isolation::release_by_agreement(turn))
                .or_else(|| isolation::hold(turn))
            {
                return choice;
            }
            let why = match failsafe::standing(turn) {
                _ if !writable => Why::StoreSilent,
                _ if isolation::is_held(turn.obs) => Why::CommitsHeld,
                Some(why) => why,
                None => Why::StoreSilentLeading { until },
            };
            (Step::Rest, why)
        }
        // The agent was restarted: how much of the lease is left is unknown.
        None if writable && !is_stopping(turn) && !is_bootstrapping(turn) => {
            let job = Job::Stop {
                mode: StopMode::Fast,
                bound: Some(turn.obs.settings.stop_margin / 2),
                checkpoint: false,
                purpose: StopPurpose::StoreSilent,
            };
            (Step::Start(job), Why::PrimaryWithoutLease)
        }
        None => (Step::Rest, Why::StoreSilent),
    }
}

fn is_stopping(turn: &Turn<'_>) -> bool {
    matches!(
        turn.obs.job,
        JobView::Running {
            job: Job::Stop { .. },
            ..
        }
    )
}

fn is_bootstrapping(turn: &Turn<'_>) -> bool {
    use super::observation::Bootstrap;
    match turn.memory.bootstrap {
        Bootstrap::Claimed | Bootstrap::Ready | Bootstrap::Failed => true,
        Bootstrap::None | Bootstrap::Claiming | Bootstrap::InDoubt(_) => false,
    }
}

/// Documents that a leader repairs (spec/ha.md §5.1 rows 4 and 5).
pub(super) fn repair(turn: &Turn<'_>, cluster: &Cluster) -> Choice {
    if turn.writes_fail() {
        return PASS;
    }
    let valid = match &cluster.initialize {
        Initialize::Done(_) => true,
        Initialize::Absent | Initialize::InProgress | Initialize::Invalid(_) => false,
    };
    if let Some(system_id) = super::recovery::system_id(turn)
        && !valid
    {
        return Some((
            Step::Write(Write::Initialize(system_id.clone())),
            Why::WritingInitialize,
        ));
    }
    (cluster.config.is_none() && turn.obs.tried.write.is_none())
        .then_some((Step::Write(Write::Config), Why::WritingConfig))
}

/// The leader runs as a primary.
pub(super) fn primary(turn: &mut Turn<'_>, cluster: &Cluster, timeline: Timeline) -> (Step, Why) {
    turn.memory.abdicating = false;
    isolation::listen(turn);
    if let Some(choice) = watchdog(turn) {
        return choice;
    }
    let choice =
        steady(turn, cluster, timeline).or_else(|| super::serving::step_down(turn, cluster));
    choice.unwrap_or_else(|| {
        (
            Step::Rest,
            Why::Leading {
                me: turn.obs.me.clone(),
            },
        )
    })
}

/// What a running primary with the key does besides serving; also in pause.
pub(super) fn steady(turn: &mut Turn<'_>, cluster: &Cluster, timeline: Timeline) -> Choice {
    repair(turn, cluster)
        .or_else(|| switchover::on_request(turn, cluster))
        .or_else(|| history(turn, cluster, timeline))
        .or_else(|| failsafe::publish(turn, cluster))
        .or_else(|| isolation::release(turn))
        .or_else(|| sync::keep(turn, cluster))
        .or_else(|| switchover::waits(turn, cluster))
}

fn history(turn: &Turn<'_>, cluster: &Cluster, timeline: Timeline) -> Choice {
    // Once per turn: a document that stays behind although it was written must not keep the turn from its rest.
    if turn.obs.tried.write.is_some() {
        return PASS;
    }
    // Whoever leads on a timeline has opened it. An entry that names somebody else tells of another timeline of the same number;
    // its opener learns from ours that its history is not this one's (`recovery::verdict`).
    let current = match &cluster.history {
        None => timeline == Timeline(1),
        Some(history) => match history.entries.last() {
            None => timeline == Timeline(1),
            Some(last) => {
                last.timeline.0 + 1 == timeline.0
                    && last.timestamp.is_some()
                    && last.new_leader.as_ref() == Some(&turn.obs.me)
            }
        },
    };
    (!current).then_some((Step::Write(Write::History), Why::WritingHistory))
}

/// Arms the device; without a required one this node does not lead. Arming is the first keepalive, so it follows a renewal.
fn watchdog(turn: &mut Turn<'_>) -> Choice {
    let view = turn.obs.watchdog;
    if view.armed {
        turn.memory.watchdog_tried = false;
        return PASS;
    }
    if !turn.memory.watchdog_tried && view.usable {
        if turn.obs.tried.renew.is_none() {
            return Some((Step::Renew, Why::RenewalDue));
        }
        turn.memory.watchdog_tried = true;
        return Some((Step::ArmWatchdog, Why::ArmingWatchdog));
    }
    if !turn.obs.settings.watchdog_required {
        return PASS;
    }
    turn.memory.no_race_until = Some(turn.obs.now + turn.obs.settings.ttl);
    match turn.obs.postgres.position {
        Some(Position::Primary { .. }) | None => {
            turn.memory.abdicating = true;
            Some((
                stop(StopMode::Immediate, StopPurpose::CannotLead),
                Why::WatchdogFailed,
            ))
        }
        Some(Position::Standby { .. }) => {
            Some((Step::Release { publish: None }, Why::WatchdogFailed))
        }
    }
}

/// The leader runs as a standby: promote it.
pub(super) fn standby(turn: &mut Turn<'_>, cluster: &Cluster) -> (Step, Why) {
    if let Some(choice) = standby::lead(turn, cluster) {
        return choice;
    }
    if let Some(why) = super::recovery::must_not_lead(turn, cluster) {
        return (Step::Release { publish: None }, why);
    }
    if let Some(detail) = turn.failed(|job| *job == Job::Promote) {
        // Parity with upstream's pre_promote: somebody else's turn for one ttl.
        turn.memory.no_race_until = Some(turn.obs.now + turn.obs.settings.ttl);
        return (
            Step::Release { publish: None },
            Why::PromotionFailed { detail },
        );
    }
    match turn.obs.postgres.role {
        Role::Promoted => return (Step::Rest, Why::PromotionUnderWay),
        Role::Uninitialized
        | Role::Replica
        | Role::Primary
        | Role::StandbyLeader
        | Role::Demoted => {}
    }
    if let Some(choice) = watchdog(turn) {
        return choice;
    }
    promote(turn, cluster)
}

/// Starts the promotion, once commits cannot be acknowledged to fewer than they should.
pub(super) fn promote(turn: &mut Turn<'_>, cluster: &Cluster) -> (Step, Why) {
    if let Some(choice) = sync::before_promotion(turn, cluster) {
        return choice;
    }
    debug_assert!(turn.leads && matches!(turn.obs.postgres.process, Process::Up));
    // A comparison with an earlier leader says nothing of what is written here from now on.
    turn.memory.compared_with = None;
    let why = match turn.obs.tried.acquire {
        Some(Outcome::Done) => Why::PromotedByAcquiring,
        None | Some(Outcome::Refused | Outcome::Unknown) => Why::PromotedWithLock,
    };
    (Step::Start(Job::Promote), why)
}
