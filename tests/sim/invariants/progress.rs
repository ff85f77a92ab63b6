//! S6: once the faults are over there is a leader again, and everybody follows it.

use crate::postgres::Server;
use crate::world::World;

/// After a long quiet time.
pub(crate) fn at_the_end(world: &mut World) {
    let writers: Vec<usize> = (0..world.nodes.len())
        .filter(|node| world.nodes[*node].pg.accepts_writes())
        .collect();
    let [leader] = writers[..] else {
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
