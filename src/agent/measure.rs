//! What the loop measures of itself, for `/metrics`.

use crate::ha::decision::Job;
use crate::ha::observation::{Observation, Position};
use crate::types::Moment;

use super::Agent;

impl Agent {
    /// Times a take-over: from the turn in which nobody led, or the key was ours and PostgreSQL still a standby, until it takes writes.
    pub(super) fn time_failover(&mut self, began: Moment, now: Moment, obs: &Observation) {
        let unlocked = obs.cluster().is_some_and(|cluster| cluster.is_unlocked());
        let leads = self.held.is_some();
        match &obs.postgres.position {
            Some(Position::Primary { .. }) if leads => {
                if let Some(since) = self.leaderless_since.take() {
                    self.counters.failovers.observe(now.since(since));
                }
            }
            Some(Position::Standby { .. }) if leads || unlocked => {
                // A standby leader stays one for as long as its cluster does.
                if self.settings.standby_cluster.is_none() {
                    self.leaderless_since.get_or_insert(began);
                }
            }
            _ if leads => {}
            _ => self.leaderless_since = None,
        }
    }
}

/// Its name among the labels.
pub(super) fn name(job: &Job) -> &'static str {
    match job {
        Job::Bootstrap => "bootstrap",
        Job::Clone { .. } => "clone",
        Job::StartPrimary { .. } => "start_primary",
        Job::StartStandby { .. } => "start_standby",
        Job::RestartToFollow { .. } => "restart_to_follow",
        Job::Promote => "promote",
        Job::Stop { .. } => "stop",
        Job::Restart { .. } => "restart",
        Job::CheckDivergence { .. } => "check_divergence",
        Job::CrashRecovery => "crash_recovery",
        Job::Rewind { .. } => "rewind",
        Job::Replace { .. } => "replace",
        Job::CopySlots { .. } => "copy_slots",
    }
}
