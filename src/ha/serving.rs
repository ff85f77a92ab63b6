//! A member that could not serve is no candidate while another can: no space, an unusable directory, an API that nobody reaches, in a
//! standby cluster a history that has left the remote primary's.
//!
//! What is wrong comes from outside as [`Observation::ailment`]. It counts once it has lasted for a turn, is over once it has not been
//! seen for a lease, and costs a running leader its place only after a whole lease and only once in a while: nothing flaps. It never
//! leaves the cluster without a leader: a member that ails leads if nobody else can.
//!
//! [`Observation::ailment`]: super::observation::Observation::ailment

use crate::cluster::Cluster;
use crate::types::Lsn;

use super::PASS;
use super::decision::{Step, Why};
use super::observation::Ailing;
use super::switchover;
use super::turn::{Choice, Turn};

/// A leader that stepped down for its ailment, or tried to, does not do so again for so many leases.
const LEASES_BETWEEN_STEPS_DOWN: u32 = 10;

/// Takes the observation into the memory.
pub(super) fn note(turn: &mut Turn<'_>) {
    let (now, settings) = (turn.obs.now, &turn.obs.settings);
    match (&turn.obs.ailment, turn.memory.ailing.take()) {
        (Some(because), ailing) => {
            let since = ailing.as_ref().map_or(now, |ailing| ailing.since);
            let lasting = ailing.is_some_and(|ailing| ailing.lasting);
            turn.memory.ailing = Some(Ailing {
                since,
                seen: now,
                lasting: lasting || now.since(since) >= settings.loop_wait,
                because: because.clone(),
            });
        }
        (None, Some(ailing)) if ailing.lasting && now.since(ailing.seen) < settings.ttl => {
            turn.memory.ailing = Some(ailing);
        }
        (None, Some(_) | None) => {}
    }
}

/// Nobody leads and this member ails: it leaves the race to those who do not, for one lease at most.
pub(super) fn hold_back(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let because = turn.memory.cannot_serve()?.to_owned();
    // What a diverged history has beyond another's does not count.
    let at = turn.memory.has_left_the_remote().then_some(Lsn::ZERO);
    let able = turn
        .able_to_lead(cluster, turn.candidates(cluster, None), at)
        .ok()?;
    if able.is_empty() {
        return PASS;
    }
    let now = turn.obs.now;
    let until = *turn
        .memory
        .yield_until
        .get_or_insert(now + turn.obs.settings.ttl);
    if now >= until {
        return PASS;
    }
    turn.wake_by(until);
    Some((Step::Rest, Why::CannotServe { because }))
}

/// This leader ails for a whole lease: it hands over to one who does not, if there is one that has everything it may lack.
pub(super) fn step_down(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let (now, settings) = (turn.obs.now, &turn.obs.settings);
    let ailing = turn.memory.ailing.as_ref()?;
    let lasts = turn.obs.ailment.is_some() && now.since(ailing.since) >= settings.ttl;
    let busy = turn.paused()
        || cluster.failover.is_some()
        || settings.standby_cluster.is_some()
        // The members' word keeps them from taking the key.
        || turn.obs.failsafe.bound_until.is_some();
    let stays = turn.memory.stays_until.is_some_and(|until| now < until);
    if !lasts || busy || stays || turn.writes_fail() {
        return PASS;
    }
    let because = ailing.because.clone();
    match turn.able_to_lead(cluster, turn.candidates(cluster, None), None) {
        Err(whom) => Some((Step::AskPeers { whom }, Why::AskingCandidates)),
        Ok(able) => {
            let choice = switchover::begin(turn, able, Why::SteppingDown { because });
            let pause = match choice {
                Some(_) => settings.ttl * LEASES_BETWEEN_STEPS_DOWN,
                None => settings.loop_wait,
            };
            turn.memory.stays_until = Some(now + pause);
            choice
        }
    }
}
