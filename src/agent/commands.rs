//! What people ask of this node through the API: queued for the core, answered when it has decided or the work is done.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock;
use crate::ha::decision::{Job, Refused};
use crate::ha::observation::{JobEnd, Request};
use crate::node::{Command, FailsafeOutcome, ReinitializeOutcome, RestartOutcome};
use crate::restart::RestartConditions;

use super::Agent;
use super::act::job_name;

/// A request that waits for the core's decision.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) request: Request,
    reply: Reply,
}

#[derive(Debug)]
enum Reply {
    Restart(Option<oneshot::Sender<RestartOutcome>>),
    Reinitialize(oneshot::Sender<ReinitializeOutcome>),
}

/// Sends an answer; the asker may have gone away, which is its business.
fn send<T>(reply: oneshot::Sender<T>, answer: T) {
    if reply.send(answer).is_err() {
        tracing::debug!("nobody waits for the answer any more");
    }
}

impl Agent {
    /// Takes a command in; `true` = a turn is due.
    pub(super) fn accept(&mut self, command: Command) -> bool {
        match command {
            Command::Wake => true,
            Command::Reload => {
                self.reload_requested = true;
                true
            }
            Command::Restart { conditions, reply } => {
                self.make_way();
                if let Some(job) = self.busy() {
                    send(reply, RestartOutcome::Busy(job_name(job).to_owned()));
                    false
                } else if self.restart_wanted(&conditions) {
                    self.queue_restart(&conditions, Some(reply));
                    true
                } else {
                    send(reply, RestartOutcome::ConditionsNotMet);
                    false
                }
            }
            Command::ScheduleRestart { mut restart, reply } => {
                let free = self.scheduled_restart.is_none();
                if free {
                    restart.postmaster_start_time = self.instance.postmaster_start_time();
                    tracing::info!(at = ?restart.at, "a restart is scheduled");
                    self.scheduled_restart = Some(restart);
                }
                send(reply, free);
                free
            }
            Command::CancelRestart { reply } => {
                let was = self.scheduled_restart.take().is_some();
                send(reply, was);
                was
            }
            Command::Reinitialize {
                force,
                from_leader,
                reply,
            } => {
                self.make_way();
                if let Some(job) = self.busy()
                    && !force
                {
                    send(reply, ReinitializeOutcome::Busy(job_name(job).to_owned()));
                    return false;
                }
                let request = Request::Reinitialize { force, from_leader };
                self.requests.push_back(Pending {
                    request,
                    reply: Reply::Reinitialize(reply),
                });
                true
            }
            // The clerk has answered it already (`failsafe`).
            Command::FailsafePing { reply, .. } => {
                send(reply, FailsafeOutcome::NotEnabled);
                false
            }
            Command::Citus { event, reply } => {
                match &self.citus {
                    Some(citus) => citus.take(event, reply),
                    None => send(reply, ()),
                }
                false
            }
        }
    }

    /// A comparison of histories only reads: what people ask for goes first, and it is made again.
    fn make_way(&mut self) {
        if matches!(self.job.running(), Some(Job::CheckDivergence { .. })) {
            self.job.cancel();
        }
    }

    fn busy(&self) -> Option<&Job> {
        self.job
            .running()
            .filter(|job| !matches!(job, Job::CheckDivergence { .. }))
    }

    fn restart_wanted(&self, conditions: &RestartConditions) -> bool {
        conditions.hold(
            self.role,
            self.instance.server_version(),
            self.instance.pending_restart().is_some(),
        )
    }

    fn queue_restart(
        &mut self,
        conditions: &RestartConditions,
        reply: Option<oneshot::Sender<RestartOutcome>>,
    ) {
        let request = Request::Restart {
            timeout: conditions.timeout,
        };
        self.requests.push_back(Pending {
            request,
            reply: Reply::Restart(reply),
        });
    }

    /// A due scheduled restart becomes a request (spec/ha.md §10.2): never while paused or without a leader; a postmaster that
    /// was restarted since cancels it; more than 1.5 loop_wait late is stale.
    pub(super) fn scheduled_restart_due(&mut self) {
        let started = self.instance.postmaster_start_time();
        let Some(restart) = &mut self.scheduled_restart else {
            return;
        };
        // It was asked for while the server was starting: the one that runs then is meant.
        if restart.postmaster_start_time.is_none() {
            restart.postmaster_start_time = started;
        }
        // A server that does not answer in this turn has not been restarted for that.
        if let (Some(then), Some(now)) = (restart.postmaster_start_time, started)
            && then != now
        {
            tracing::info!(
                "the scheduled restart is cancelled: PostgreSQL has been restarted since"
            );
            self.scheduled_restart = None;
            return;
        }
        let led = self
            .last_cluster
            .as_ref()
            .is_some_and(|cluster| !cluster.is_unlocked());
        let late_ms = clock::wall().0 - restart.at.0;
        if late_ms < 0 {
            // On time, not with the next regular turn.
            let left = Duration::from_millis(late_ms.unsigned_abs());
            self.wake_by(clock::now() + left);
            return;
        }
        if self.settings.pause || !led || self.job.running().is_some() {
            return;
        }
        let Some(restart) = self.scheduled_restart.take() else {
            return;
        };
        let stale_ms = i64::try_from(self.settings.loop_wait.as_millis())
            .unwrap_or(i64::MAX)
            .saturating_mul(3)
            / 2;
        if late_ms > stale_ms {
            tracing::warn!("the scheduled restart is {late_ms} ms late and is dropped");
        } else if self.restart_wanted(&restart.conditions) {
            self.queue_restart(&restart.conditions, None);
            self.wake_by(clock::now());
        } else {
            tracing::info!("the scheduled restart is not done: its conditions do not hold");
        }
    }

    /// The core's verdict on the oldest request.
    pub(super) fn answer(&mut self, result: Result<(), Refused>) {
        let Some(pending) = self.requests.pop_front() else {
            return;
        };
        match (pending.reply, result) {
            (Reply::Restart(Some(reply)), Ok(())) => self.restarting = Some(reply),
            (Reply::Restart(Some(reply)), Err(Refused::JobRunning)) => {
                send(
                    reply,
                    RestartOutcome::Busy(
                        self.job
                            .running()
                            .map_or("another job", job_name)
                            .to_owned(),
                    ),
                );
            }
            (Reply::Restart(Some(reply)), Err(_)) => send(reply, RestartOutcome::Failed),
            (Reply::Restart(None), Ok(())) => {}
            (Reply::Restart(None), Err(refused)) => {
                tracing::warn!(?refused, "the scheduled restart was refused")
            }
            (Reply::Reinitialize(reply), Ok(())) => send(reply, ReinitializeOutcome::Started),
            (Reply::Reinitialize(reply), Err(refused)) => send(
                reply,
                match refused {
                    Refused::NoLeader | Refused::NotRunning => ReinitializeOutcome::NoLeader,
                    Refused::IAmLeader => ReinitializeOutcome::IAmLeader,
                    Refused::JobRunning => ReinitializeOutcome::Busy(
                        self.job
                            .running()
                            .map_or("another job", job_name)
                            .to_owned(),
                    ),
                },
            ),
        }
    }

    /// Answers whoever waits for the restart that has just ended.
    pub(super) fn settle_restart(&mut self) {
        if let Some((Job::Restart { .. }, ended)) = self.job.ended()
            && let Some(reply) = self.restarting.take()
        {
            send(
                reply,
                match &ended.end {
                    JobEnd::Done | JobEnd::StoppedAt(_) => RestartOutcome::Done,
                    JobEnd::Failed(_) if self.instance.find_postmaster() => {
                        RestartOutcome::StillStarting
                    }
                    JobEnd::Failed(_) | JobEnd::Cancelled => RestartOutcome::Failed,
                },
            );
        }
    }
}
