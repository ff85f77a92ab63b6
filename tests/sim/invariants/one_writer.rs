//! S1: at no time do two nodes accept writes, and nobody accepts one after the end of its own lease.

use crate::world::World;

pub(crate) fn at_most_one(world: &mut World) {
    let mut writers = (0..world.nodes.len()).filter(|node| world.writes(*node));
    if let (Some(a), Some(b)) = (writers.next(), writers.next()) {
        world.fail("S1 one writer", format!("n{a} and n{b} accept writes"));
    }
}

/// A commit was acknowledged. In pause leases are not enforced.
pub(crate) fn committed(world: &mut World, node: usize) {
    if world.store.dynamic.pause {
        return;
    }
    let covered = world.nodes[node]
        .leads_until
        .is_some_and(|until| world.now < until);
    if !covered {
        world.fail(
            "S1 lease",
            format!("n{node} acknowledged a commit without a lease"),
        );
    }
}

/// The key leaves the node: nothing may be acknowledged there any more.
pub(crate) fn gives_away(world: &mut World, node: usize) {
    if world.nodes[node].pg.accepts_writes() {
        world.fail(
            "S1 release",
            format!("n{node} gives the key away while it accepts writes"),
        );
    }
}
