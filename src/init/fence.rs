//! Stopping PostgreSQL from outside: politely (fast), at once (immediate), or by force, with proof that it is gone.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::process::{ProcessId, children_of, postmaster_of};
use crate::types::Moment;

/// How long before the promised deadline the immediate stop begins (SIGQUIT to the postmaster).
pub const QUIT_LEAD: Duration = Duration::from_millis(500);
/// How long before the promised deadline everything that is left gets SIGKILL.
pub const KILL_LEAD: Duration = Duration::from_millis(200);
/// How often a stop in progress is looked at when no signal reports its end.
pub(super) const STEP: Duration = Duration::from_millis(20);

/// The running postmaster: the one the agent named, else the one that the lock file names and that works in the directory.
pub(super) fn find(told: Option<ProcessId>, data_dir: Option<&Path>) -> Option<ProcessId> {
    told.filter(|process| process.is_alive())
        .or_else(|| postmaster_of(data_dir?))
}

/// A stop that goes on: first a signal, then force. Dropping it changes nothing.
#[derive(Debug)]
pub(super) struct Stop {
    postmaster: ProcessId,
    force_at: Moment,
    /// Backends that outlive their postmaster; watched until they are gone too.
    orphans: Vec<ProcessId>,
}

impl Stop {
    /// Sends `signal` now; everything left at `force_at` is killed.
    pub(super) fn begin(postmaster: ProcessId, signal: Signal, force_at: Moment) -> Stop {
        // Whoever survives the postmaster must still be found, so note the children while it is their parent.
        let orphans = children_of(postmaster.pid);
        postmaster.signal(signal);
        // A postmaster that somebody stopped (SIGSTOP) acts on nothing but SIGKILL.
        postmaster.signal(Signal::CONT);
        Stop {
            postmaster,
            force_at,
            orphans,
        }
    }

    /// Goes on; `true` once neither the postmaster nor a backend of it runs.
    pub(super) fn is_complete(&mut self, now: Moment) -> bool {
        if now >= self.force_at {
            self.kill();
        }
        self.orphans.retain(|process| process.is_alive());
        !self.postmaster.is_alive() && self.orphans.is_empty()
    }

    /// The next moment at which [`Stop::is_complete`] has something to do.
    pub(super) fn next_look(&self, now: Moment) -> Moment {
        if self.force_at > now {
            self.force_at.min(now + STEP)
        } else {
            now + STEP
        }
    }

    /// A frozen postmaster neither forks nor reaps, so the list of its children is complete and none of their pids can be
    /// taken over until it is dead; after that they are init's own children, and init reaps nobody in between.
    fn kill(&mut self) {
        if self.postmaster.signal(Signal::STOP) {
            for child in children_of(self.postmaster.pid) {
                if !self.orphans.contains(&child) {
                    self.orphans.push(child);
                }
            }
            self.postmaster.signal(Signal::KILL);
        }
        for orphan in &self.orphans {
            orphan.signal(Signal::KILL);
        }
    }
}
