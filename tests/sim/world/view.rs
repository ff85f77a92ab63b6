//! What an agent sees.

use howdah::ha::observation::{Local, Observation, StoreView};

use super::World;
use super::agent::Agent;
use crate::observation;

impl World {
    pub(super) fn observe(&self, node: usize, store: StoreView) -> Observation {
        let n = &self.nodes[node];
        let Some(agent) = n.agent.as_ref() else {
            unreachable!("an agent observes")
        };
        Observation {
            wall: n.clock.wall(self.now),
            tags: n.tags.clone(),
            store,
            lease: agent.lease(),
            postgres: self.server_of(node, agent),
            job: agent.job_view(),
            requests: agent.requests.clone(),
            stopping: agent.stopping,
            failsafe: self.failsafe_view(node),
            agent_since: agent.since,
            ..observation::plain(
                n.name.clone(),
                self.local(node),
                agent.dynamic,
                self.allowed,
            )
        }
    }

    /// The local server as one reading of it shows it.
    pub(super) fn server_of(&self, node: usize, agent: &Agent) -> Local {
        Local {
            role: agent.role,
            divergence: agent.divergence.clone(),
            standby_names: agent.names.clone(),
            replication: self.replication(node),
            ..observation::server(&self.nodes[node].pg)
        }
    }
}
