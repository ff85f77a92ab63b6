//! The rules that every run must keep: one file per rule, each called where it can first be seen broken.

mod election;
mod failsafe;
mod history;
mod kept;
mod one_writer;
mod pause;
mod planned;
mod progress;
mod standby_cluster;

use crate::world::World;

pub(crate) use election::{may_have_won, won};
pub(crate) use failsafe::agreed;
pub(crate) use history::pointed;
pub(crate) use kept::{Promise, acknowledged};
pub(crate) use one_writer::{committed, gives_away};
pub(crate) use pause::begun_in_pause;

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Its short name.
    pub(crate) rule: &'static str,
    /// What was seen.
    pub(crate) detail: String,
}

/// A server that was started accepts connections.
pub(crate) fn opened(world: &mut World, node: usize) {
    history::opened(world, node);
    standby_cluster::opened(world, node);
}

/// A server has left recovery.
pub(crate) fn promoted(world: &mut World, node: usize) {
    planned::promoted(world, node);
    kept::promoted(world, node);
    standby_cluster::opened(world, node);
}

/// After a long quiet time.
pub(crate) fn at_the_end(world: &mut World) {
    progress::at_the_end(world);
    kept::at_the_end(world);
}

/// Cheap enough for every step.
pub(crate) fn after_every_step(world: &mut World) {
    one_writer::at_most_one(world);
}
