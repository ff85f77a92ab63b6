//! The winner of a race is not behind a member that it could have asked.

use std::time::Duration;

use super::kept;
use crate::world::World;

/// A position that moved within this time may not have been seen.
const SETTLED: Duration = Duration::from_secs(3);

/// A member that an operator has named regardless has the key, or may have it.
pub(crate) fn may_have_won(world: &mut World, node: usize) {
    let forced = world
        .store
        .cluster
        .failover
        .as_ref()
        .is_some_and(|request| {
            request.leader.is_none() && request.candidate.as_ref() == Some(&world.nodes[node].name)
        });
    if forced {
        kept::excused(world);
    }
}

pub(crate) fn won(world: &mut World, node: usize) {
    may_have_won(world, node);
    let winner = &world.nodes[node];
    if !winner.pg.recovery || world.store.cluster.failover.is_some() || world.store.dynamic.pause
        // There the published electorate decides, and `kept` looks after its results.
        || world.is_synchronous()
        || world.store.cluster.sync.leader.is_some()
    {
        return;
    }
    let mine = (winner.pg.timeline(), winner.pg.end);
    let now = world.now;
    // A node that has just thawed reaches nobody yet.
    if now.since(winner.halted_until) <= SETTLED {
        return;
    }
    let better = (0..world.nodes.len()).find(|other| {
        let peer = &world.nodes[*other];
        *other != node
            && world.reaches(node, *other)
            && peer.is_up()
            // Its agent answers.
            && now.since(peer.frozen_until) > SETTLED
            && now.since(peer.halted_until) > SETTLED
            && peer.pg.recovery
            && !peer.tags.never_leads()
            // Failsafe mode keeps it from the race.
            && world.store.cluster.failsafe.as_ref().is_none_or(|topology| topology.contains_key(&peer.name))
            && (winner.cannot_serve() || !peer.cannot_serve())
            && now.since(peer.moved.max(peer.stable_since)) > SETTLED
            && world.store.cluster.members.contains_key(&peer.name)
            // More of the same history, or a later one; a longer tail of a history that was left does not count.
            && (peer.pg.timeline() > mine.0 || (winner.pg.is_prefix_of(&peer.pg) && peer.pg.end > mine.1))
    });
    if let Some(other) = better {
        let theirs = (world.nodes[other].pg.timeline(), world.nodes[other].pg.end);
        world.fail(
            "election",
            format!("n{node} won with {mine:?} although n{other} has {theirs:?}"),
        );
    }
}
