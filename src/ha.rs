//! The decision core: `decide(&Observation, &Memory) -> Decision`. Pure: no I/O, no clock, no randomness, no async, no logs.
//!
//! It looks at the whole picture each time (level-triggered) and names ONE step. The agent carries the step out, observes again and
//! asks again, until the step is [`Step::Rest`]; that is one *turn*. Every decision names its reason ([`Why`]); `why` renders it once
//! for log, API and history. The same code runs in production and in the simulator.
//!
//! [`decide`] lists the concerns in their order of precedence. Each is a function that either names the step or passes.

mod bootstrap;
mod deadline;
pub mod decision;
pub mod explain;
mod failsafe;
mod isolation;
mod jobs;
mod leader;
pub mod observation;
mod pause;
mod race;
mod recovery;
mod replica;
mod requests;
mod serving;
mod shutdown;
mod standby;
mod switchover;
mod sync;
mod turn;

pub use decision::{Decision, Step, Why};
pub use failsafe::ATTEMPTS;
pub use observation::{Memory, Observation};

use observation::{Directory, Position, Process, StoreView};
use turn::{Choice, Turn};

/// The one step to take now, and why.
#[must_use]
pub fn decide(observation: &Observation, memory: &Memory) -> Decision {
    let mut turn = Turn::new(observation, memory);
    serving::note(&mut turn);
    failsafe::note(&mut turn);
    jobs::note(&mut turn);
    let (step, why) = choose(&mut turn);
    turn.decide(step, why)
}

fn choose(turn: &mut Turn<'_>) -> (Step, Why) {
    // The lease's end comes before everything, whatever the store says (S1).
    if let Some(choice) = deadline::stop_in_time(turn) {
        return choice;
    }
    let cluster = match &turn.obs.store {
        StoreView::Fresh(cluster) => cluster,
        StoreView::Silent { .. } => {
            return shutdown::without_store(turn).unwrap_or_else(|| leader::without_store(turn));
        }
    };
    // Nobody holds the key, and this member has given its word: its leader is whom it gave it to.
    let promised = failsafe::led_by_promise(turn, cluster);
    let (step, why) = with_store(turn, promised.as_ref().unwrap_or(cluster));
    let why = match promised {
        Some(_) => failsafe::explain(turn, &step, why),
        None => why,
    };
    (step, why)
}

fn with_store(turn: &mut Turn<'_>, cluster: &crate::cluster::Cluster) -> (Step, Why) {
    turn.remember(cluster);
    None.or_else(|| leader::hold(turn, cluster))
        .or_else(|| jobs::at_work(turn, cluster))
        .or_else(|| jobs::settle(turn, cluster))
        .or_else(|| shutdown::shut_down(turn, cluster))
        .or_else(|| bootstrap::finish(turn, cluster))
        .or_else(|| requests::serve(turn, cluster))
        .or_else(|| pause::paused(turn, cluster))
        .or_else(|| recovery::identity(turn, cluster))
        .unwrap_or_else(|| by_state(turn, cluster))
}

/// Nothing special is going on: the state of PostgreSQL decides.
fn by_state(turn: &mut Turn<'_>, cluster: &crate::cluster::Cluster) -> (Step, Why) {
    if !turn.leads && cluster.is_led_by(&turn.obs.me) {
        let step = if deadline::may_write(turn) {
            turn.stop_for_lost_lease()
        } else {
            Step::Rest
        };
        return (step, Why::KeyNotConfirmed);
    }
    match (&turn.obs.postgres.directory, turn.obs.postgres.process) {
        (Directory::Empty, _) => bootstrap::empty(turn, cluster),
        (Directory::Inaccessible(detail), _) => recovery::inaccessible(turn, cluster, detail),
        (Directory::Present { .. }, Process::Starting { since }) => {
            recovery::starting(turn, cluster, since)
        }
        (Directory::Present { .. }, Process::Down { crashed }) => {
            recovery::down(turn, cluster, crashed)
        }
        (Directory::Present { .. }, Process::Up) => match &turn.obs.postgres.position {
            None => recovery::silent(turn, cluster),
            Some(Position::Primary { timeline, .. }) => running_primary(turn, cluster, *timeline),
            Some(Position::Standby { .. }) => running_standby(turn, cluster),
        },
    }
}

fn running_primary(
    turn: &mut Turn<'_>,
    cluster: &crate::cluster::Cluster,
    timeline: crate::types::Timeline,
) -> (Step, Why) {
    standby::no_primary_here(turn, cluster).unwrap_or_else(|| match &cluster.leader {
        _ if turn.leads => leader::primary(turn, cluster, timeline),
        Some(other) => (
            turn.stop_for_lost_lease(),
            Why::SomebodyElseLeads {
                leader: other.name.clone(),
            },
        ),
        None => race::as_primary(turn, cluster, timeline),
    })
}

fn running_standby(turn: &mut Turn<'_>, cluster: &crate::cluster::Cluster) -> (Step, Why) {
    match &cluster.leader {
        _ if turn.leads => leader::standby(turn, cluster),
        Some(leader) => replica::follow(turn, cluster, &leader.name),
        None => race::as_standby(turn, cluster),
    }
}

/// Whether PostgreSQL accepts writes here, or may soon without another decision. Doubt counts as yes.
#[must_use]
pub fn may_write(observation: &Observation) -> bool {
    deadline::is_or_may_become_primary(observation)
}

/// Whom a leader listens to (name and api_url), because without a word from any of them, and from the store, its commits are held.
/// Empty: nobody.
#[must_use]
pub fn company(observation: &Observation) -> Vec<(crate::types::MemberName, String)> {
    isolation::company(observation)
}

/// A concern that passes.
const PASS: Choice = None;
