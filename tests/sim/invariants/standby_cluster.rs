//! The members of a standby cluster are never primaries, once every agent has had time to learn what it is and to stop what it was.

use std::time::Duration;

use crate::world::{TTL, World};

/// A start under way when the cluster became one may still take so long.
const STARTING: Duration = Duration::from_secs(25);

/// A server accepts writes.
pub(super) fn opened(world: &mut World, node: usize) {
    let known = world
        .converted
        .is_none_or(|at| world.now > at + TTL + STARTING);
    if known && world.store.dynamic.standby_cluster && world.nodes[node].pg.accepts_writes() {
        let detail = format!("n{node} accepts writes in a standby cluster");
        world.fail("standby cluster", detail);
    }
}
