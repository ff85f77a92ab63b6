//! A planned switchover loses nothing: whoever is handed the key has everything the old leader acknowledged.

use crate::world::World;

pub(super) fn promoted(world: &mut World, node: usize) {
    let Some((old, to)) = world.planned.take() else {
        return;
    };
    // A leader that has just opened a timeline of a number that its candidate has opened, too, cannot tell until its history is written.
    let twins = old.has_twin_timeline(&world.nodes[node].pg);
    if world.nodes[node].name == to && !twins && !old.is_prefix_of(&world.nodes[node].pg) {
        world.fail(
            "planned switchover",
            format!(
                "n{node} was handed the key without everything up to {}",
                old.end
            ),
        );
    }
}
