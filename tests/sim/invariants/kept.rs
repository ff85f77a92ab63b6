//! S2: in the synchronous modes everything that a client was told is done is on every later primary.

use crate::postgres::Segment;
use crate::world::World;

/// The latest commit of which a client was told while the synchronous state was in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Promise {
    history: Vec<Segment>,
    end: u64,
}

/// A primary has told clients that everything up to there is done.
pub(crate) fn acknowledged(world: &mut World, node: usize, upto: u64) {
    if !world.is_synchronous() {
        world.promise = None;
        return;
    }
    let (pg, name) = (&world.nodes[node].pg, &world.nodes[node].name);
    let mut history = pg.history.clone();
    // Nothing is lost with a timeline on which nothing was written.
    while history.last().is_some_and(|last| last.start >= upto) {
        history.pop();
    }
    // From the first time that a leader has published the state it is in force until the mode ends.
    if world.promise.is_none() && world.store.cluster.sync.leader.as_ref() != Some(name) {
        return;
    }
    match &mut world.promise {
        Some(promise) if promise.history == history => promise.end = promise.end.max(upto),
        Some(promise) if !pg.has(&promise.history, promise.end) => {
            let detail = format!(
                "n{node} acknowledges commits although it has not got those up to {} of {:?}",
                promise.end, promise.history
            );
            world.fail("S2 acknowledged means kept", detail);
        }
        promise => {
            *promise = Some(Promise { history, end: upto });
        }
    }
}

/// A new primary.
pub(super) fn promoted(world: &mut World, node: usize) {
    let Some(promise) = &world.promise else {
        return;
    };
    let pg = &world.nodes[node].pg;
    if world.is_synchronous() && !pg.has(&promise.history, promise.end) {
        let detail = format!(
            "n{node} was promoted at {} of {:?} without what was acknowledged up to {} of {:?}",
            pg.end, pg.history, promise.end, promise.history
        );
        world.fail("S2 acknowledged means kept", detail);
    }
}

/// The last primary has it, too.
pub(super) fn at_the_end(world: &mut World) {
    let last = (0..world.nodes.len()).find(|node| world.nodes[*node].pg.accepts_writes());
    if let Some(node) = last {
        promoted(world, node);
    }
}

/// An operator has named a leader regardless.
pub(super) fn excused(world: &mut World) {
    world.promise = None;
}
