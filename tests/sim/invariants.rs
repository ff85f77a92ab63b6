//! The rules that every run must keep: one file per rule, each called where it can first be seen broken.

mod election;
mod history;
mod one_writer;
mod planned;
mod progress;

use crate::world::World;

pub(crate) use election::won;
pub(crate) use history::{opened, pointed};
pub(crate) use one_writer::{committed, gives_away};
pub(crate) use planned::promoted;
pub(crate) use progress::at_the_end;

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Its short name.
    pub(crate) rule: &'static str,
    /// What was seen.
    pub(crate) detail: String,
}

/// Cheap enough for every step.
pub(crate) fn after_every_step(world: &mut World) {
    one_writer::at_most_one(world);
}
