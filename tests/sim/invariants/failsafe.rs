//! S1 in failsafe mode: a leader without the store has its lease from the members, from all of them that the published topology names and
//! that this one, too, is named by. Anything less is no lease, and a commit acknowledged under it breaks "S1 lease".

use std::collections::BTreeSet;

use howdah::types::{MemberName, Moment};

use crate::world::World;

/// A leader takes these members' word (its own included) for a lease until then.
pub(crate) fn agreed(world: &mut World, node: usize, said: &BTreeSet<MemberName>, until: Moment) {
    let topology = world.store.cluster.failsafe.as_ref();
    let all = topology.is_some_and(|topology| {
        topology.contains_key(&world.nodes[node].name)
            && topology.keys().all(|name| said.contains(name))
    });
    let n = &mut world.nodes[node];
    if all {
        n.leads_until = n.leads_until.max(Some(until));
    }
}
