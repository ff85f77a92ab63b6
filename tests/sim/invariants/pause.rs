//! While the cluster is paused nothing is touched: PostgreSQL is neither started nor stopped nor promoted, beyond what an operator asked
//! for (spec/ha.md §11).

use howdah::ha::decision::{Job, StopPurpose};

use crate::world::World;

/// A node that has read that the cluster is paused begins this.
pub(crate) fn begun_in_pause(world: &mut World, node: usize, job: &Job) {
    let name = &world.nodes[node].name;
    let named = world.nodes[node].is_named(name);
    let asked = match job {
        Job::Restart { .. } => true,
        Job::Replace { because, .. } => because.on_request(),
        Job::Stop { purpose, .. } => {
            matches!(purpose, StopPurpose::Switchover | StopPurpose::Maintenance)
        }
        Job::Promote => named,
        // Comparing reads; a leader that a switchover has stopped comes back by the ordinary way.
        Job::CheckDivergence { .. } => true,
        Job::CrashRecovery | Job::Rewind { .. } | Job::StartStandby { .. } => {
            world.nodes[node].switched_over
        }
        Job::StartPrimary { .. } => world.nodes[node].switched_over,
        Job::Bootstrap
        | Job::Clone { .. }
        | Job::RestartToFollow { .. }
        | Job::CopySlots { .. } => false,
    };
    if !asked {
        let detail = format!("n{node} begins {job:?} while the cluster is paused");
        world.fail("pause", detail);
    }
}
