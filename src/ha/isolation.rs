//! A leader that hears nobody at all, neither the store nor any other member, lets its commits wait: what it acknowledged now is what a
//! failover would lose.
//!
//! Commits wait for a name that nobody has. The wait ends in one of two ways: the store (or, in failsafe mode, every member) confirms
//! the lease, then the old value is restored; or PostgreSQL is stopped, which ends the waiting sessions without an answer. A node that
//! may have been superseded never lets them through.

use std::time::Duration;

use crate::types::{MemberName, Moment};

use super::PASS;
use super::decision::{Step, Why};
use super::failsafe::last_known;
use super::observation::{JobView, Observation, Outcome, Position, StandbyNames, Synchronous};
use super::sync;
use super::turn::{Choice, Turn};

/// Longer than this without a word from anybody is silence. Noticing it takes two seconds at most, acting another half.
const SILENCE: Duration = Duration::from_millis(1500);
/// How often the store is asked while the members are silent.
const LISTEN_AGAIN_MILLIS: u64 = 1000;
/// What commits wait for then: nobody has this name.
pub(super) const HELD: &str = "__howdah_isolated__";

/// Whom a leader listens to, with their addresses; empty: its commits are never held, or wait already.
pub(super) fn company(obs: &Observation) -> Vec<(MemberName, String)> {
    let settings = &obs.settings;
    let leads = obs.lease.is_some()
        && matches!(obs.postgres.position, Some(Position::Primary { .. }))
        && settings.isolation_hold
        && !settings.pause
        && settings.standby_cluster.is_none();
    let waits = obs
        .postgres
        .replication
        .as_ref()
        .is_none_or(|replication| !replication.names.is_empty());
    let Some(cluster) = last_known(&obs.store).filter(|_| leads && !waits) else {
        return Vec::new();
    };
    // Nobody takes over from this one but these.
    cluster
        .members
        .values()
        .filter(|member| member.name != obs.me && !member.tags.never_leads())
        .filter_map(|member| Some((member.name.clone(), member.api_url.clone()?)))
        .collect()
}

/// While the members are silent and the store is not, the store's silence must not be noticed late.
pub(super) fn listen(turn: &mut Turn<'_>) {
    let now = turn.obs.now;
    let heard = turn.obs.heard.members.max(turn.obs.heard.standbys);
    if heard.is_some_and(|at| now.since(at) >= SILENCE) && !company(turn.obs).is_empty() {
        turn.wake_in(LISTEN_AGAIN_MILLIS);
    }
}

/// The store does not answer: if nobody else does either, commits wait from now on.
pub(super) fn hold(turn: &mut Turn<'_>) -> Choice {
    let obs = turn.obs;
    let busy = matches!(obs.job, JobView::Running { .. });
    if busy || obs.stopping || obs.tried.names.is_some() || company(obs).is_empty() {
        return PASS;
    }
    let last = last_word(obs)?;
    if obs.now.since(last) < SILENCE {
        turn.wake_by(last + SILENCE);
        return PASS;
    }
    let held = StandbyNames::Managed(Some(HELD.to_owned()));
    Some((Step::SetSynchronousNames(held), Why::HoldingCommits))
}

/// How long until silence is to be called so, if nobody says a word; `None`: commits are not held for silence here and now.
pub(super) fn silence_in(turn: &Turn<'_>) -> Option<Duration> {
    let obs = turn.obs;
    let last = last_word(obs).filter(|_| !company(obs).is_empty())?;
    Some(obs.now.until(last + SILENCE))
}

/// A member has answered a moment ago.
pub(super) fn hears_a_member(turn: &Turn<'_>) -> bool {
    let last = turn.obs.heard.members;
    last.is_some_and(|at| turn.obs.now.since(at) < SILENCE)
}

fn last_word(obs: &Observation) -> Option<Moment> {
    let heard = &obs.heard;
    let confirmed = obs.lease.map(|lease| lease.sent);
    heard
        .store
        .max(heard.members)
        .max(heard.standbys)
        .max(confirmed)
}

/// Commits wait because of this.
pub(super) fn is_held(obs: &Observation) -> bool {
    let running = obs
        .postgres
        .replication
        .as_ref()
        .is_some_and(|replication| replication.names == HELD);
    running && matches!(obs.postgres.position, Some(Position::Primary { .. }))
}

/// The lease is confirmed, or can be: the old value comes back. In a synchronous mode the planner goes on from here.
pub(super) fn release(turn: &mut Turn<'_>) -> Choice {
    if !is_held(turn.obs) || turn.obs.settings.synchronous != Synchronous::Off {
        return PASS;
    }
    let tried = &turn.obs.tried;
    if sync::is_lease_confirmed(turn) {
        return tried.names.is_none().then(restore_configured);
    }
    Some(match tried.renew {
        None => (Step::Renew, Why::ConfirmingLease),
        Some(_) => (Step::Rest, Why::CommitsHeld),
    })
}

/// The same in failsafe mode: the members' word of this turn is a confirmation, too.
pub(super) fn release_by_agreement(turn: &Turn<'_>) -> Choice {
    let tried = &turn.obs.tried;
    let agreed = match tried.failsafe {
        Some(Outcome::Done) => true,
        None | Some(Outcome::Refused | Outcome::Unknown) => false,
    };
    if !is_held(turn.obs) || !agreed || tried.names.is_some() {
        return PASS;
    }
    Some(match turn.obs.settings.synchronous {
        Synchronous::Off => restore_configured(),
        // They were held only because nobody was listed.
        Synchronous::Priority { .. } | Synchronous::Quorum { .. } => (
            Step::SetSynchronousNames(StandbyNames::Managed(None)),
            Why::ReleasingCommits,
        ),
    })
}

fn restore_configured() -> (Step, Why) {
    (
        Step::SetSynchronousNames(StandbyNames::Configured),
        Why::ReleasingCommits,
    )
}
