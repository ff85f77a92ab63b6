//! The members of a standby cluster are never primaries.

use crate::world::World;

/// A server accepts writes.
pub(super) fn opened(world: &mut World, node: usize) {
    if world.store.dynamic.standby_cluster && world.nodes[node].pg.accepts_writes() {
        let detail = format!("n{node} accepts writes in a standby cluster");
        world.fail("standby cluster", detail);
    }
}
