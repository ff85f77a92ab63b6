//! S3: whoever receives WAL has a history that is a prefix of its source's, judged by branches, not by timeline numbers.

use crate::world::World;

pub(crate) fn began_streaming(world: &mut World, node: usize, source: usize) {
    if !world.nodes[node].pg.is_prefix_of(&world.nodes[source].pg) {
        let (mine, theirs) = (&world.nodes[node].pg, &world.nodes[source].pg);
        let detail = format!(
            "n{node} follows n{source} with another history: {:?} to {} against {:?} to {}",
            mine.history, mine.end, theirs.history, theirs.end
        );
        world.fail("S3 no resurrection", detail);
    }
}

/// A server that was started accepts connections: as a primary only under a lease.
pub(crate) fn opened(world: &mut World, node: usize) {
    let pg = &world.nodes[node].pg;
    let leased = world.nodes[node].leads_until.is_some_and(|until| world.now < until);
    if pg.accepts_writes() && !pg.newborn && !leased && !world.store.pause {
        world.fail("S1 lease", format!("n{node} was started as a primary without a lease"));
    }
}
