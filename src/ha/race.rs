//! Nobody leads: who may take the key (spec/ha.md §5.8, §6).
//!
//! Several members may find themselves fit at the same time; the store decides. Whoever is stricter here is safe; laxer is not.

use std::time::Duration;

use crate::cluster::{Cluster, FailoverRequest};
use crate::types::{Lsn, MemberName, Timeline};

use super::PASS;
use super::decision::{Asked, Step, Why};
use super::failsafe;
use super::observation::{Outcome, PeerAnswer, Position};
use super::standby;
use super::switchover::in_force;
use super::sync;
use super::turn::{Choice, Limitation, Turn, limitation};

/// How long the election waits for the last leader.
const PATIENCE_LAST_LEADER: Duration = Duration::from_millis(300);
/// A member that holds back looks again this soon, should no event come.
const LOOK_AGAIN_MILLIS: u64 = 1000;

/// A primary without the key, and the key is free: after a resume, an import of an existing server, or a key deleted by hand.
pub(super) fn as_primary(
    turn: &mut Turn<'_>,
    cluster: &Cluster,
    timeline: Timeline,
) -> (Step, Why) {
    if let Some(newer) = cluster.timeline()
        && newer > timeline
    {
        return (
            turn.stop_for_lost_lease(),
            Why::StalePrimary {
                mine: timeline,
                cluster: newer,
            },
        );
    }
    let tried = &turn.obs.tried;
    match tried.acquire {
        None if tried.renew != Some(Outcome::Refused)
            && tried.release.is_none()
            && !turn.memory.abdicating =>
        {
            (Step::Acquire, Why::PrimaryTakesFreeKey)
        }
        None | Some(Outcome::Done | Outcome::Refused | Outcome::Unknown) => {
            (turn.stop_for_lost_lease(), Why::PrimaryLostRace)
        }
    }
}

/// A standby, and the key is free.
pub(super) fn as_standby(turn: &mut Turn<'_>, cluster: &Cluster) -> (Step, Why) {
    turn.wake_in(LOOK_AGAIN_MILLIS);
    let outcome = match turn.obs.tried.acquire {
        Some(outcome) => Some(lost(turn, outcome)),
        None if turn.obs.tried.release.is_some() || turn.obs.tried.hand_over.is_some() => {
            Some((Step::Rest, Why::KeyGone))
        }
        None => back_off(turn, cluster).or_else(|| unfit(turn, cluster)),
    };
    let previous = turn.my_lsn();
    let verdict = outcome.unwrap_or_else(|| elect(turn, cluster));
    turn.memory.previous_lsn = Some((turn.obs.now, previous));
    if verdict.0 == Step::Rest
        && let Some(choice) = standby::without_leader(turn, cluster)
    {
        return choice;
    }
    verdict
}

fn lost(turn: &mut Turn<'_>, outcome: Outcome) -> (Step, Why) {
    match outcome {
        Outcome::Done | Outcome::Refused => (Step::Rest, Why::LostRace),
        Outcome::Unknown => {
            turn.wake_in(100);
            (Step::Rest, Why::RaceInDoubt)
        }
    }
}

/// `primary_race_backoff`: while WAL still arrives, the primary may only have lost the store (spec/ha.md §5.8).
fn back_off(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let backoff = turn.obs.settings.primary_race_backoff;
    let named = cluster
        .failover
        .as_ref()
        .is_some_and(|request| request.candidate.is_some());
    if backoff.is_zero() || named || turn.obs.settings.standby_cluster.is_some() {
        return PASS;
    }
    let now = turn.obs.now;
    let since = *turn.memory.race_backoff.get_or_insert(now);
    let until = since + backoff;
    let (_, before) = turn.memory.previous_lsn?;
    let arriving = match &turn.obs.postgres.position {
        Some(Position::Standby { replication, .. }) => {
            *replication == Some(crate::types::ReplicationState::Streaming)
                && turn.my_lsn() > before
        }
        Some(Position::Primary { .. }) | None => false,
    };
    let fresh = now.until(until) > backoff.saturating_sub(turn.obs.settings.loop_wait);
    if now < until && (arriving || fresh) {
        turn.wake_by(until);
        return Some((Step::Rest, Why::RaceBackoff { until }));
    }
    PASS
}

/// What forbids this member to lead without asking anybody.
fn unfit(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let obs = turn.obs;
    if let Some(until) = turn.memory.no_race_until {
        if obs.now < until {
            turn.wake_by(until);
            return Some((Step::Rest, Why::NoRaceUntil { until }));
        }
        turn.memory.no_race_until = None;
    }
    if obs.tags.never_leads() {
        return Some((Step::Rest, Why::NoFailover));
    }
    if failsafe::leaves_out(turn, cluster, &turn.obs.me) {
        return Some((Step::Rest, Why::NotInFailsafe));
    }
    if let Some(why) = super::recovery::must_not_lead(turn, cluster) {
        return Some((Step::Rest, why));
    }
    let request = in_force(turn, cluster);
    let electorate = sync::electorate(turn, cluster);
    let planned = request.is_some_and(|request| request.leader.is_some());
    // A planned candidate too: its leader may have died before it made sure of the candidate.
    let barred = electorate.is_some_and(|electorate| !electorate.may_stand(&obs.me));
    if request.is_some_and(|request| request.candidate.as_ref() == Some(&obs.me))
        && !(planned && electorate.is_some())
    {
        return Some(as_candidate(turn, cluster));
    }
    if barred {
        return Some((Step::Rest, Why::NotSynchronous));
    }
    // Somebody brings existing servers under our care, and this is not the one to begin with (spec/ha.md §5.6). The primary of a
    // standby cluster is elsewhere: there any of them will do.
    if !turn.memory.belongs && obs.settings.standby_cluster.is_none() {
        return Some((Step::Rest, Why::StandbyBeforeItsPrimary));
    }
    if obs.settings.watchdog_required && !obs.watchdog.usable {
        return Some((Step::Rest, Why::WatchdogUnusable));
    }
    if request.is_none() {
        let lag = cluster.status.optime.ahead_of(turn.my_lsn());
        if lag > obs.settings.maximum_lag_on_failover {
            return Some((Step::Rest, Why::LagsBehind { bytes: lag }));
        }
    }
    behind_timeline(turn, cluster)
}

/// The named candidate of a paused cluster. A planned change takes a synchronous standby that has everything, as everywhere.
pub(super) fn as_named(turn: &mut Turn<'_>, cluster: &Cluster) -> (Step, Why) {
    let planned = in_force(turn, cluster).is_some_and(|request| request.leader.is_some());
    match sync::electorate(turn, cluster).filter(|_| planned) {
        None => as_candidate(turn, cluster),
        Some(electorate) if !electorate.may_stand(&turn.obs.me) => {
            (Step::Rest, Why::NotSynchronous)
        }
        Some(_) => elect(turn, cluster),
    }
}

/// The named candidate takes the key without asking, unless its agent may have forgotten whom it promised to leave it alone.
pub(super) fn as_candidate(turn: &mut Turn<'_>, cluster: &Cluster) -> (Step, Why) {
    if failsafe::may_have_forgotten(turn, cluster) {
        let whom = voters(turn, cluster, in_force(turn, cluster));
        let Some(answers) = turn.answers(&whom) else {
            return (Step::AskPeers { whom }, Why::AskingPeers);
        };
        if let Some(why) = primary_alive(&answers) {
            return (Step::Rest, why);
        }
        if let Some(choice) = failsafe::forgotten_word(turn, cluster, &answers) {
            return choice;
        }
    }
    (Step::Acquire, Why::RacingAsCandidate)
}

fn behind_timeline(turn: &Turn<'_>, cluster: &Cluster) -> Choice {
    if !turn.obs.settings.check_timeline || turn.obs.settings.standby_cluster.is_some() {
        return PASS;
    }
    let newest = cluster.timeline()?;
    let mine = turn.my_timeline();
    (mine < Some(newest)).then_some((
        Step::Rest,
        Why::BehindTimeline {
            mine,
            cluster: newest,
        },
    ))
}

/// Asks the others and compares.
fn elect(turn: &mut Turn<'_>, cluster: &Cluster) -> (Step, Why) {
    let request = in_force(turn, cluster);
    let whom = voters(turn, cluster, request);
    let Some(answers) = turn.answers(&whom) else {
        return (Step::AskPeers { whom }, Why::AskingPeers);
    };
    if let Some(request) = request
        && let Some(choice) = manual(turn, request, &answers)
    {
        return choice;
    }
    if let Some(choice) = super::serving::hold_back(turn, cluster) {
        return choice;
    }
    match objection(turn, cluster, &answers) {
        Some(Objection { why, lasts: true }) => return (Step::Rest, why),
        Some(Objection { why, lasts: false }) if awaits_others(turn) => return (Step::Rest, why),
        Some(_) | None => {}
    }
    if let Some(choice) = failsafe::forgotten_word(turn, cluster, &answers) {
        return choice;
    }
    if let Some(choice) = await_replay(turn, cluster, &answers) {
        return choice;
    }
    (Step::Acquire, Why::Racing)
}

/// What speaks against this member.
struct Objection {
    why: Why,
    /// For as long as the answers are these. Else the election waits for the other one, for one lease at most: it may never take the
    /// key (it does not reach the store, failsafe mode leaves it out, or what it ails from prevents it).
    lasts: bool,
}

fn awaits_others(turn: &mut Turn<'_>) -> bool {
    let now = turn.obs.now;
    let until = *turn.memory.preferred_awaited.get_or_insert(now) + turn.obs.settings.ttl;
    if now < until {
        turn.wake_by(until);
    }
    now < until
}

/// A peer that still replays what it had received before its start has more than it says. The election waits for it, for one lease at
/// most. In the synchronous modes it does not vote meanwhile (`sync::election`), which needs no bound.
fn await_replay(
    turn: &mut Turn<'_>,
    cluster: &Cluster,
    answers: &[(MemberName, PeerAnswer)],
) -> Choice {
    if sync::electorate(turn, cluster).is_some() || wrote_the_newest(turn, cluster) {
        return PASS;
    }
    let (peer, _) = answers
        .iter()
        .find(|(_, answer)| answer.replaying && limitation(answer).is_none())?;
    let now = turn.obs.now;
    let until = *turn.memory.replay_awaited.get_or_insert(now) + turn.obs.settings.ttl;
    if now >= until {
        return PASS;
    }
    turn.wake_by(until);
    Some((
        Step::Rest,
        Why::PeerReplaying {
            peer: peer.clone(),
            until,
        },
    ))
}

/// Everybody of the last time when there was a leader, and everybody who is there now.
fn voters(turn: &Turn<'_>, cluster: &Cluster, request: Option<&FailoverRequest>) -> Vec<Asked> {
    let mut voters: Vec<Asked> = Vec::new();
    let electorate = sync::electorate(turn, cluster);
    let absent = turn
        .memory
        .last_led
        .values()
        .filter(|member| !cluster.members.contains_key(&member.name));
    for (member, alive) in cluster
        .members
        .values()
        .map(|member| (member, true))
        .chain(absent.map(|member| (member, false)))
    {
        let led = turn.memory.last_leader.as_ref() == Some(&member.name);
        let candidate =
            request.is_some_and(|request| request.candidate.as_ref() == Some(&member.name));
        // One that never leads does not vote either, unless it holds what was acknowledged; but the last leader is asked whether it is
        // still a primary.
        let votes = electorate.is_some_and(|electorate| electorate.includes(&member.name));
        if !member.tags.never_leads() || led || candidate || votes {
            let asked = turn.asked(member, alive);
            voters.extend(asked.map(|asked| Asked {
                // Its leader key is gone, so it is most likely dead or frozen, although its member key may live a moment longer.
                patience: if led {
                    asked.patience.min(PATIENCE_LAST_LEADER)
                } else {
                    asked.patience
                },
                ..asked
            }));
        }
    }
    let more = failsafe::more_voters(turn, cluster, &voters);
    voters.extend(more);
    voters
}

/// A switchover or failover that has lost its leader (spec/ha.md §6.5).
fn manual(
    turn: &mut Turn<'_>,
    request: &FailoverRequest,
    answers: &[(MemberName, PeerAnswer)],
) -> Choice {
    let now = turn.obs.now;
    let able = |answer: &PeerAnswer| answer.in_recovery && limitation(answer).is_none();
    if let Some(candidate) = &request.candidate {
        let healthy = answers
            .iter()
            .any(|(name, answer)| name == candidate && able(answer));
        // A candidate that everyone sees but that does not see the store must not keep the cluster without a leader for ever.
        let until = *turn
            .memory
            .yield_until
            .get_or_insert(now + turn.obs.settings.ttl);
        if healthy && now < until {
            turn.wake_by(until);
            return Some((
                Step::Rest,
                Why::LeavingToCandidate {
                    candidate: candidate.clone(),
                },
            ));
        }
    }
    if request.leader.as_ref() == Some(&turn.obs.me) {
        let broken = request.candidate.as_ref();
        let others = answers
            .iter()
            .any(|(name, answer)| Some(name) != broken && able(answer));
        let until = *turn
            .memory
            .yield_until
            .get_or_insert(now + turn.obs.settings.ttl);
        if others && now < until {
            turn.wake_by(until);
            return Some((Step::Rest, Why::FormerLeaderHoldsBack));
        }
    }
    PASS
}

fn primary_alive(answers: &[(MemberName, PeerAnswer)]) -> Option<Why> {
    let (peer, _) = answers.iter().find(|(_, answer)| !answer.in_recovery)?;
    Some(Why::PrimaryAlive { peer: peer.clone() })
}

/// The first answer that speaks against this member, a mere preference last (spec/ha.md §6.3). Members that could not serve do not speak
/// against those that could, only against each other.
fn objection(
    turn: &Turn<'_>,
    cluster: &Cluster,
    answers: &[(MemberName, PeerAnswer)],
) -> Option<Objection> {
    let lasting = |why| Objection { why, lasts: true };
    let (mine, my_priority) = (turn.my_lsn(), turn.obs.tags.leader_priority());
    if let Some(why) = primary_alive(answers) {
        return Some(lasting(why));
    }
    if let Some(electorate) = sync::electorate(turn, cluster) {
        let why = electorate.objection(turn, answers, |answer| {
            ahead((answer.timeline, answer.lsn), (turn.my_timeline(), mine))
        });
        return why.map(|why| Objection {
            lasts: !matches!(why, Why::PeerPreferred { .. }),
            why,
        });
    }
    let ailing = turn.memory.cannot_serve().is_some();
    let mut preference = None;
    for (peer, answer) in answers {
        let able = match limitation(answer) {
            None => !failsafe::leaves_out(turn, cluster, peer),
            Some(Limitation::CannotServe) if ailing => false,
            Some(Limitation::NoFailover | Limitation::Watchdog | Limitation::CannotServe) => {
                continue;
            }
        };
        if !wrote_the_newest(turn, cluster)
            && ahead((answer.timeline, answer.lsn), (turn.my_timeline(), mine))
        {
            let (peer, lsn) = (peer.clone(), answer.lsn);
            let why = Why::PeerAhead { peer, lsn };
            if able {
                return Some(lasting(why));
            }
            preference = Some(why);
            continue;
        }
        let former = turn.memory.last_leader.as_ref() == Some(peer);
        if able
            && answer.lsn > Lsn::ZERO
            && answer.lsn == mine
            && my_priority < answer.tags.leader_priority()
            && !former
        {
            preference = Some(Why::PeerPreferred { peer: peer.clone() });
        }
    }
    preference.map(|why| Objection { why, lasts: false })
}

/// This member opened the newest timeline of the cluster and is on it: what others have beyond its end is not of the cluster's
/// history (a standby never receives what its primary has not flushed). Without this a diverged member could block everybody.
fn wrote_the_newest(turn: &Turn<'_>, cluster: &Cluster) -> bool {
    let Some(mine) = turn.my_timeline() else {
        return false;
    };
    cluster.timeline() == Some(mine)
        && super::recovery::opener_of(cluster, mine) == Some(&turn.obs.me)
}

/// Positions on different timelines are compared by timeline: the older one is either a prefix, or a tail that was left behind when the
/// newer one was opened, however long it is.
fn ahead(theirs: (Option<Timeline>, Lsn), mine: (Option<Timeline>, Lsn)) -> bool {
    match (theirs, mine) {
        ((Some(their_timeline), _), (Some(my_timeline), _)) if their_timeline != my_timeline => {
            their_timeline > my_timeline
        }
        ((_, their_lsn), (_, my_lsn)) => their_lsn > my_lsn,
    }
}
