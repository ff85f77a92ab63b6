//! S3: a former primary follows only a leader of whose history its own is a prefix, judged by branches, not by timeline numbers.
//!
//! A standby that never was a primary may be pointed at anything: PostgreSQL refuses what does not continue its history. It must not
//! stay there: `progress` asks for that.

use howdah::ha::observation::Upstream;

use crate::world::World;

/// The agent points a server at another one.
pub(crate) fn pointed(world: &mut World, node: usize, upstream: &Upstream) {
    let Upstream::Member { name, .. } = upstream else {
        return;
    };
    let Some(source) = world.index(name) else {
        return;
    };
    let (mine, theirs) = (&world.nodes[node].pg, &world.nodes[source].pg);
    let comparable = theirs.present && !theirs.recovery && theirs.timeline() > 0;
    if mine.was_primary && comparable && !mine.is_prefix_of(theirs) {
        let detail = format!(
            "n{node} follows n{source} with another history: {:?} to {} against {:?} to {}",
            mine.history, mine.end, theirs.history, theirs.end
        );
        world.fail("S3 no resurrection", detail);
    }
}

/// A server that was started accepts connections: as a primary only under a lease.
pub(super) fn opened(world: &mut World, node: usize) {
    let pg = &world.nodes[node].pg;
    let leased = world.nodes[node]
        .leads_until
        .is_some_and(|until| world.now < until);
    if pg.accepts_writes() && !pg.newborn && !leased && !world.store.dynamic.pause {
        world.fail(
            "S1 lease",
            format!("n{node} was started as a primary without a lease"),
        );
    }
}
