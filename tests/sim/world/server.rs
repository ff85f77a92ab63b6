//! PostgreSQL as processes: what a start, a stop, a promotion and a crash lead to, and when.

use std::time::Duration;

use howdah::ha::decision::{Job, StopMode, StopPurpose};
use howdah::ha::observation::{JobEnd, Upstream};
use howdah::types::{Lsn, Role};

use super::node::Node;
use super::{Event, World};
use crate::invariants;
use crate::postgres::Server;

#[derive(Debug, Clone, Copy)]
pub(super) enum PgEvent {
    Ready,
    StartFailed,
    Checkpointed,
    Exited,
    Opened,
}

impl World {
    pub(super) fn pg_at(&mut self, node: usize, millis: u64, what: PgEvent) {
        let generation = self.nodes[node].pg.generation;
        self.at(
            millis,
            Event::Pg {
                node,
                generation,
                what,
            },
        );
    }

    pub(super) fn start_postgres(&mut self, node: usize) {
        let now = self.now;
        self.nodes[node].pg.begin_start(now);
        let slow = self.rng.per_mille(40);
        let millis = if slow {
            self.rng.between(4000, 15000)
        } else {
            self.rng.between(30, 500)
        };
        let what = if self.rng.per_mille(30) {
            PgEvent::StartFailed
        } else {
            PgEvent::Ready
        };
        self.pg_at(node, millis, what);
    }

    pub(super) fn stop_postgres(
        &mut self,
        node: usize,
        id: u64,
        mode: StopMode,
        bound: Option<Duration>,
        _purpose: StopPurpose,
    ) {
        self.nodes[node].pg.generation += 1;
        match (self.nodes[node].pg.server, mode) {
            (Server::Down { .. }, _) => self.finish(node, JobEnd::Done),
            (Server::Up, StopMode::Fast) => {
                let slow = self.rng.per_mille(80);
                let millis = if slow {
                    self.rng.between(3000, 9000)
                } else {
                    self.rng.between(30, 300)
                };
                let what = if self.nodes[node].pg.recovery {
                    PgEvent::Exited
                } else {
                    PgEvent::Checkpointed
                };
                self.pg_at(node, millis, what);
                if let Some(bound) = bound {
                    let bound = u64::try_from(bound.as_millis()).unwrap_or(0);
                    self.stage(node, id, 8, bound, bound);
                }
            }
            (Server::Up, StopMode::Immediate) | (Server::Starting { .. }, _) => {
                self.stage(node, id, 8, 10, 40)
            }
        }
    }

    pub(super) fn pg_event(&mut self, node: usize, what: PgEvent) {
        self.nodes[node].stable_since = self.now;
        match what {
            PgEvent::Ready => {
                self.nodes[node].pg.ready();
                invariants::opened(self, node);
            }
            PgEvent::StartFailed => self.nodes[node].pg.kill(false),
            PgEvent::Opened => {
                self.order += 1;
                let branch = self.order;
                // Two members that open a timeline of one number at one position cannot be told apart by anything PostgreSQL shows, once
                // their agents have restarted. The stories cover what the core can do; here positions differ by a byte.
                let number = self.nodes[node].pg.timeline() + 1;
                while !self.opened.insert((number, self.nodes[node].pg.end)) {
                    self.nodes[node].pg.end += 1;
                }
                self.nodes[node].pg.open_timeline(branch);
                self.say(|| format!("n{node}: opened a timeline"));
                invariants::promoted(self, node);
                if let Some(agent) = self.nodes[node].agent.as_mut() {
                    agent.role = Role::Primary;
                }
            }
            PgEvent::Checkpointed => {
                let pg = &mut self.nodes[node].pg;
                pg.open = false;
                pg.end += 1;
                let at = Lsn(pg.end);
                pg.control = howdah::ha::observation::ControlState::ShutDown;
                if let Some(job) = self.nodes[node]
                    .agent
                    .as_mut()
                    .and_then(|agent| agent.job.as_mut())
                    && matches!(job.job, Job::Stop { .. })
                {
                    job.shut_down_at = Some(at);
                }
                let millis = self.rng.between(30, 300);
                self.pg_at(node, millis, PgEvent::Exited);
                self.wake(node);
                return;
            }
            PgEvent::Exited => {
                // Walsenders have sent everything to those who are connected.
                for other in 0..self.nodes.len() {
                    let o = &self.nodes[other];
                    let name = &self.nodes[node].name;
                    let connected = o.pg.streaming
                        && matches!(&o.pg.follows, Some(Upstream::Member { name: n, .. }) if n == name);
                    if other != node && connected && self.reaches(node, other) {
                        self.receive(other, node);
                    }
                }
                self.nodes[node].pg.shut_down();
            }
        }
        self.postgres_changed(node);
    }

    /// A job may be done with it; the agent wakes.
    pub(super) fn postgres_changed(&mut self, node: usize) {
        let Node { agent, pg, .. } = &mut self.nodes[node];
        let Some(agent) = agent.as_mut() else { return };
        if let Some(running) = agent.job.as_mut().filter(|job| job.end.is_none()) {
            let end = match (&running.job, pg.server) {
                (
                    Job::StartPrimary { .. } | Job::StartStandby { .. } | Job::Restart { .. },
                    Server::Up,
                ) => Some(JobEnd::Done),
                (
                    Job::StartPrimary { .. } | Job::StartStandby { .. } | Job::Restart { .. },
                    Server::Down { .. },
                ) => Some(JobEnd::Failed("did not start".to_owned())),
                (Job::Stop { .. }, Server::Down { .. }) => {
                    Some(running.shut_down_at.map_or(JobEnd::Done, JobEnd::StoppedAt))
                }
                (Job::Promote, Server::Up) if !pg.recovery => Some(JobEnd::Done),
                (Job::Promote, Server::Down { .. }) => {
                    Some(JobEnd::Failed("PostgreSQL died".to_owned()))
                }
                _ => None,
            };
            running.end = end;
        }
        match (pg.server, pg.recovery) {
            (Server::Up, false) => agent.role = Role::Primary,
            (Server::Up | Server::Starting { .. }, true) => agent.role = Role::Replica,
            (Server::Down { .. }, false) if pg.present => agent.role = Role::Demoted,
            (Server::Starting { .. } | Server::Down { .. }, _) => {}
        }
        self.wake(node);
    }
}
