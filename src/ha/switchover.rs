//! Planned changes of the leader: a request in the `failover` document, the stop, and giving the key to one who has everything
//! (spec/ha.md §9, §6.6, §7.3, §23.4).

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cluster::{Cluster, FailoverRequest, Schedule};
use crate::types::{Lsn, MemberName};

use super::decision::{Job, Step, StopMode, StopPurpose, Why, Write};
use super::jobs::just_acquired;
use super::observation::{Outcome, PeerAnswer, Position, Upstream};
use super::turn::{Choice, Turn};
use super::{PASS, replica};

/// After its stop the old leader waits so long for somebody to have received everything; then it starts again.
const CATCH_UP: Duration = Duration::from_secs(5);
/// How often it asks meanwhile.
const ASK_AGAIN_MILLIS: u64 = 50;

/// A request, seen by the leader (spec/ha.md §9.3).
pub(super) fn on_request(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let request = cluster.failover.as_ref()?;
    if turn.writes_fail() {
        return PASS;
    }
    if turn.paused() && !matches!(turn.obs.postgres.position, Some(Position::Primary { .. })) {
        return PASS;
    }
    match schedule(turn, request) {
        Due::Now => {}
        Due::Later => return PASS,
        Due::Never(because) => return refuse(because),
    }
    let me = &turn.obs.me;
    if just_acquired(turn) {
        return Some((Step::Write(Write::ClearFailover), Why::RequestDone));
    }
    if request.leader.as_ref().is_some_and(|leader| leader != me) {
        return refuse("the leader in the request is not the leader");
    }
    if request.candidate.as_ref() == Some(me) {
        return refuse("the candidate is already the leader");
    }
    if request.candidate.is_none() && turn.paused() {
        return refuse("a switchover needs a candidate while the cluster is paused");
    }
    if turn.obs.failsafe.bound_until.is_some() {
        return PASS;
    }
    let whom = turn.candidates(cluster, request.candidate.as_ref());
    let able = match turn.able_to_lead(cluster, whom, None) {
        Err(whom) => return Some((Step::AskPeers { whom }, Why::AskingCandidates)),
        Ok(able) => able,
    };
    let why = Why::SwitchingOver {
        candidate: request.candidate.clone(),
    };
    if turn.obs.settings.standby_cluster.is_some() {
        return hand_on(turn, cluster, able, why);
    }
    begin(turn, able, why).or_else(|| refuse("no healthy candidate"))
}

/// Remembers those of `able` that have this leader's history; whether there are any. Somebody with more WAL on an older timeline has
/// another history, not all of this one.
fn name_successors(turn: &mut Turn<'_>, able: Vec<(MemberName, PeerAnswer)>) -> bool {
    let mine = turn.my_timeline();
    let successors: BTreeSet<MemberName> = able
        .into_iter()
        .filter(|(_, answer)| answer.timeline.is_none() || answer.timeline == mine)
        .map(|(name, _)| name)
        .collect();
    let any = !successors.is_empty();
    turn.memory.successors = successors;
    any
}

/// The leader of a standby cluster gives the key away without a stop: no commit is acknowledged here. It lets go of the remote server
/// first, so that its slot there is free and the successor, which has everything received here, lacks nothing that the slot no longer
/// keeps.
fn hand_on(
    turn: &mut Turn<'_>,
    cluster: &Cluster,
    able: Vec<(MemberName, PeerAnswer)>,
    why: Why,
) -> Choice {
    if !matches!(turn.obs.postgres.position, Some(Position::Standby { .. })) {
        return PASS;
    }
    if turn.obs.postgres.follows != Some(Upstream::Nobody) {
        if !name_successors(turn, able) {
            return refuse("no healthy candidate");
        }
        let me = turn.obs.me.clone();
        let (step, _) = replica::point(turn, Upstream::Nobody, &me, why.clone());
        return Some((step, why));
    }
    let (now, at) = (turn.obs.now, turn.my_lsn());
    let since = *turn.memory.handing_on.get_or_insert(now);
    if !replica::is_streaming(turn)
        && let Some(choice) = give_away(turn, cluster, at)
    {
        return Some(choice);
    }
    if now.since(since) < CATCH_UP {
        turn.wake_in(ASK_AGAIN_MILLIS);
        return Some((Step::Rest, Why::NobodyCaughtUp { at }));
    }
    turn.memory.handing_on = None;
    Some((
        Step::Write(Write::ClearFailover),
        Why::SwitchoverAbandoned { at },
    ))
}

/// Stops this leader so that one of `able` can take over; nothing if none of them has its history.
pub(super) fn begin(turn: &mut Turn<'_>, able: Vec<(MemberName, PeerAnswer)>, why: Why) -> Choice {
    if !name_successors(turn, able) {
        return PASS;
    }
    turn.memory.switching = true;
    let job = Job::Stop {
        mode: StopMode::Fast,
        bound: turn.stop_bound(),
        checkpoint: true,
        purpose: StopPurpose::Switchover,
    };
    Some((Step::Start(job), why))
}

/// A request that is due waits for the members' word to run out: until then none of them takes the key (`failsafe`).
pub(super) fn waits(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let until = turn.obs.failsafe.bound_until?;
    match schedule(turn, cluster.failover.as_ref()?) {
        Due::Now => {}
        Due::Later | Due::Never(_) => return PASS,
    }
    turn.wake_by(until);
    Some((Step::Rest, Why::SwitchoverWaits))
}

fn refuse(because: &'static str) -> Choice {
    Some((
        Step::Write(Write::ClearFailover),
        Why::RequestRefused { because },
    ))
}

enum Due {
    Now,
    Later,
    Never(&'static str),
}

/// When a request is due (spec/ha.md §9.2).
fn schedule(turn: &mut Turn<'_>, request: &FailoverRequest) -> Due {
    let at = match &request.scheduled_at {
        None => return Due::Now,
        Some(_) if turn.paused() => return Due::Later,
        Some(Schedule::Unreadable(_)) => return Due::Never("its time is unreadable"),
        Some(Schedule::At(at)) => *at,
    };
    let left = at.0 - turn.obs.wall.0;
    let stale =
        i64::try_from(turn.obs.settings.loop_wait.as_millis()).unwrap_or(i64::MAX / 2) * 3 / 2;
    if left < -stale {
        return Due::Never("its time has passed");
    }
    match u64::try_from(left) {
        Ok(left) if left > 0 => {
            turn.wake_in(left);
            Due::Later
        }
        Ok(_) | Err(_) => Due::Now,
    }
}

/// Whether a request counts in a race: a scheduled one does not before its time.
pub(super) fn in_force<'a>(turn: &Turn<'_>, cluster: &'a Cluster) -> Option<&'a FailoverRequest> {
    cluster
        .failover
        .as_ref()
        .filter(|request| match &request.scheduled_at {
            None => true,
            Some(Schedule::Unreadable(_)) => false,
            Some(Schedule::At(at)) => !turn.paused() && *at <= turn.obs.wall,
        })
}

/// The winner removes the request that made it leader, beside its promotion.
pub(super) fn done(turn: &Turn<'_>, cluster: &Cluster) -> Choice {
    let request = cluster.failover.as_ref()?;
    if !just_acquired(turn) || turn.obs.tried.write.is_some() {
        return PASS;
    }
    let write = if turn.paused() && request.leader.is_some() && request.candidate.is_some() {
        Write::FailoverWithoutLeader
    } else {
        Write::ClearFailover
    };
    Some((Step::Write(write), Why::RequestDone))
}

/// The leader stops for a switchover; the key is given away at the safe point.
pub(super) fn while_stopping(
    turn: &mut Turn<'_>,
    cluster: &Cluster,
    shut_down_at: Option<Lsn>,
) -> Choice {
    let Some(at) = shut_down_at else {
        return Some((Step::Rest, Why::StoppingForSwitchover));
    };
    Some(give_away(turn, cluster, at).unwrap_or_else(|| {
        turn.wake_in(ASK_AGAIN_MILLIS);
        (Step::Rest, Why::NobodyCaughtUp { at })
    }))
}

/// The leader has stopped for a switchover and still has the key.
pub(super) fn after_stop(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    // A stop of which the position is unknown was no clean one: nobody can be asked for it.
    let Some((at, since)) = turn.memory.stopped_at else {
        turn.memory.switching = false;
        return cut_short(turn, cluster);
    };
    if let Some(choice) = give_away(turn, cluster, at) {
        return Some(choice);
    }
    if turn.obs.now.since(since) < CATCH_UP {
        turn.wake_in(ASK_AGAIN_MILLIS);
        return Some((Step::Rest, Why::NobodyCaughtUp { at }));
    }
    if cluster.failover.is_some() && turn.obs.tried.write.is_none() {
        return Some((
            Step::Write(Write::ClearFailover),
            Why::SwitchoverAbandoned { at },
        ));
    }
    if let Some(choice) = super::sync::before_start(turn, cluster) {
        return Some(choice);
    }
    turn.memory.switching = false;
    turn.memory.compared_with = None;
    let timeout = turn.obs.settings.primary_start_timeout;
    Some((
        Step::Start(Job::StartPrimary { timeout }),
        Why::SwitchoverAbandoned { at },
    ))
}

/// The stop was no clean one. If its bound (`primary_stop_timeout`) cut it short, the synchronous standbys have all that was
/// acknowledged, and the switchover goes on among them.
fn cut_short(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let bounded = !turn.obs.settings.primary_stop_timeout.is_zero();
    if !bounded || cluster.failover.is_none() || super::sync::electorate(turn, cluster).is_none() {
        return PASS;
    }
    let named = cluster
        .failover
        .as_ref()
        .and_then(|request| request.candidate.as_ref());
    let whom = turn.candidates(cluster, named);
    match turn.able_to_lead(cluster, whom, None) {
        Err(whom) => {
            turn.memory.switching = true;
            Some((Step::AskPeers { whom }, Why::AskingCandidates))
        }
        Ok(able) if able.is_empty() => PASS,
        Ok(_) => Some((Step::Release { publish: None }, Why::GivingUpLock)),
    }
}

/// Gives the key to somebody who has everything up to `at`; `None`: nobody has.
pub(super) fn give_away(turn: &mut Turn<'_>, cluster: &Cluster, at: Lsn) -> Choice {
    let named = cluster
        .failover
        .as_ref()
        .and_then(|request| request.candidate.as_ref());
    let whom = turn.candidates(cluster, named);
    let able = match turn.able_to_lead(cluster, whom, Some(at)) {
        Err(whom) => return Some((Step::AskPeers { whom }, Why::VerifyingCandidates { at })),
        Ok(able) => able,
    };
    // The timeline is best known while it streams; what was known when the switchover began counts.
    let mine = turn.memory.was_primary_on;
    let successors = &turn.memory.successors;
    let fit = |(name, answer): &(MemberName, PeerAnswer)| {
        successors.contains(name) || (answer.timeline.is_some() && answer.timeline == mine)
    };
    let to = best(able.into_iter().filter(fit).collect())?;
    match turn.obs.tried.hand_over {
        None if turn.obs.settings.hand_over => Some((
            Step::HandOver {
                to: to.clone(),
                publish: at,
            },
            Why::HandingOver { to, at },
        )),
        // A hand-over of unknown outcome may have happened; a release is compare-and-set on our own lease and then does nothing.
        None | Some(Outcome::Refused | Outcome::Unknown) if turn.obs.tried.release.is_none() => {
            Some((
                Step::Release { publish: Some(at) },
                Why::ReleasingFor { to, at },
            ))
        }
        None | Some(Outcome::Done | Outcome::Refused | Outcome::Unknown) => {
            turn.wake_in(ASK_AGAIN_MILLIS);
            Some((Step::Rest, Why::ReleasingFor { to, at }))
        }
    }
}

/// The one with most WAL, then the highest priority, then the first name.
fn best(able: Vec<(MemberName, PeerAnswer)>) -> Option<MemberName> {
    able.into_iter()
        .max_by(|(a_name, a), (b_name, b)| {
            let rank = |answer: &PeerAnswer| (answer.lsn, answer.tags.leader_priority());
            rank(a).cmp(&rank(b)).then_with(|| b_name.cmp(a_name))
        })
        .map(|(name, _)| name)
}
