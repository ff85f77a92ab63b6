//! S6: once the faults are over there is a leader again, everybody follows it, and commits are done.

use howdah::ha::observation::{Synchronous, Upstream};

use crate::postgres::Server;
use crate::world::World;

/// What is written in a moment; more than this is not waiting because of the last moment.
const IN_FLIGHT: u64 = 50_000;

/// After a long quiet time.
pub(super) fn at_the_end(world: &mut World) {
    let leader = if world.store.dynamic.standby_cluster {
        standby_leader(world)
    } else {
        only_writer(world)
    };
    let Some(leader) = leader else {
        // Its members have what the other site left behind, and nothing is allowed that could mend it: somebody leads all the same.
        let cannot_mend = !world.allowed.rewind && !world.allowed.replace;
        let converted = world.store.dynamic.standby_cluster && world.converted.is_some();
        if converted && cannot_mend && world.leader().is_some() {
            return;
        }
        let reasons: Vec<String> = world
            .nodes
            .iter()
            .map(|node| format!("{}: {}", node.name, node.reason()))
            .collect();
        world.fail(
            "S6 progress",
            format!("no leader at the end; {}", reasons.join("; ")),
        );
        return;
    };
    everybody_follows(world, leader);
    commits_are_done(world, leader);
}

fn only_writer(world: &World) -> Option<usize> {
    let mut writers = (0..world.nodes.len()).filter(|node| world.nodes[*node].pg.accepts_writes());
    writers.next().filter(|_| writers.next().is_none())
}

/// The holder of the key follows the other cluster.
fn standby_leader(world: &World) -> Option<usize> {
    let follows =
        |node: &usize| matches!(world.nodes[*node].pg.follows, Some(Upstream::Remote { .. }));
    world
        .leader()
        .filter(follows)
        .filter(|node| world.nodes[*node].pg.streaming)
}

fn everybody_follows(world: &mut World, leader: usize) {
    for node in 0..world.nodes.len() {
        if node == leader || world.nodes[node].pg.streaming {
            continue;
        }
        let pg = &world.nodes[node].pg;
        let diverged = pg.present && !pg.is_prefix_of(&world.nodes[leader].pg);
        // A rewind that failed is tried again. None can tell two timelines of the same number apart.
        let twins = pg.has_twin_timeline(&world.nodes[leader].pg);
        let may = world.allowed.replace || (world.allowed.rewind && !twins);
        if diverged && !may {
            // Nothing is allowed that could bring it back; it must say so and stay down.
            continue;
        }
        let down = matches!(pg.server, Server::Down { .. });
        let reason = world.nodes[node].reason();
        world.fail("S6 progress", format!("n{node} does not follow n{leader} at the end (down: {down}, diverged: {diverged}): {reason}"));
        return;
    }
}

fn commits_are_done(world: &mut World, leader: usize) {
    let strict = match world.store.dynamic.synchronous {
        Synchronous::Off => return,
        Synchronous::Priority { strict, .. } | Synchronous::Quorum { strict, .. } => strict,
    };
    let sync = &world.store.cluster.sync;
    let name = &world.nodes[leader].name;
    if sync.leader.as_ref() != Some(name) {
        world.fail(
            "S6 progress",
            format!("n{leader} leads at the end and has not published it: {sync:?}"),
        );
        return;
    }
    let may_confirm = |node: &usize| {
        let n = &world.nodes[*node];
        world.sends_to(leader, *node) && !n.tags.never_sync()
    };
    let partners = (0..world.nodes.len()).filter(may_confirm).count();
    let pg = &world.nodes[leader].pg;
    if partners > 0 && sync.standbys.is_empty() && world.allowed.lag.is_none() {
        let detail = format!("nobody is synchronous with n{leader} at the end, of {partners}");
        world.fail("S6 progress", detail);
    } else if pg.end > pg.told + IN_FLIGHT && (partners > 0 || !strict) {
        let detail = format!(
            "commits wait at n{leader} at the end: {} of {} with {:?}, partners {partners}",
            pg.told, pg.end, pg.names
        );
        world.fail("S6 progress", detail);
    }
}
