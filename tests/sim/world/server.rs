//! PostgreSQL as processes: what a start, a stop, a promotion and a crash lead to, and when.

use std::time::Duration;

use howdah::ha::decision::{Job, StopMode, StopPurpose};
use howdah::ha::observation::{JobEnd, Outcome, StandbyNames, Upstream};
use howdah::types::{Lsn, Role};

use super::agent::{AgentEvent, Phase};
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
    NamesTaken,
}

/// The value that a decision about `synchronous_standby_names` writes; the user of this world has configured none.
fn text(names: Option<&StandbyNames>) -> String {
    match names {
        Some(StandbyNames::Managed(Some(names))) => names.clone(),
        Some(StandbyNames::Managed(None) | StandbyNames::Configured) | None => String::new(),
    }
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
        let now = self.local(node);
        let n = &mut self.nodes[node];
        if let Some(agent) = &n.agent {
            n.pg.names_on_disk = text(agent.names.as_ref());
        }
        n.senders.clear();
        n.pg.begin_start(now);
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
                if self.cancels_waiting && self.nodes[node].pg.accepts_writes() {
                    self.cancel_waiting(node);
                }
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

    /// Planted: every waiting COMMIT is cancelled, and PostgreSQL reports success.
    fn cancel_waiting(&mut self, node: usize) {
        let end = self.nodes[node].pg.end;
        self.nodes[node].pg.told = end;
        invariants::acknowledged(self, node, end);
    }

    /// Writes `synchronous_standby_names` and has a running server read it.
    pub(super) fn set_names(&mut self, node: usize, names: StandbyNames) {
        let wanted = text(Some(&names));
        self.order += 1;
        let id = self.order;
        let n = &mut self.nodes[node];
        let Some(agent) = n.agent.as_mut() else {
            return;
        };
        agent.names = Some(names);
        agent.phase = Phase::SettingNames;
        agent.waiting = id;
        let mut seen = 1;
        if n.pg.server == Server::Up {
            n.pg.names_on_disk.clone_from(&wanted);
            let takes = if self.rng.per_mille(40) {
                self.rng.between(200, 1500)
            } else {
                self.rng.between(1, 40)
            };
            self.pg_at(node, takes, PgEvent::NamesTaken);
            seen = (takes + 10).min(250);
        }
        self.agent_at(node, seen, AgentEvent::Names { id, wanted });
    }

    /// The agent has looked whether the value is in force.
    pub(super) fn names_seen(&mut self, node: usize, wanted: &str) {
        let pg = &self.nodes[node].pg;
        let outcome = if pg.server != Server::Up || pg.names == wanted {
            Outcome::Done
        } else {
            Outcome::Unknown
        };
        let server = self.nodes[node]
            .agent
            .as_ref()
            .map(|agent| self.server_of(node, agent));
        if let Some(agent) = self.nodes[node].agent.as_mut()
            && let (Some(obs), Some(server)) = (agent.obs.as_mut(), server)
        {
            agent.phase = Phase::Deciding;
            agent.waiting = 0;
            obs.tried.names = Some(outcome);
            obs.postgres = server;
        }
        self.decide(node);
    }

    pub(super) fn pg_event(&mut self, node: usize, what: PgEvent) {
        if !matches!(what, PgEvent::NamesTaken) {
            self.nodes[node].stable_since = self.now;
        }
        match what {
            PgEvent::Ready => {
                self.nodes[node].pg.ready();
                self.nodes[node].switched_over = false;
                invariants::opened(self, node);
            }
            PgEvent::NamesTaken => {
                let until = self.now + Duration::from_millis(self.rng.below(95));
                self.nodes[node].pg.take_up_names(until);
                return;
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
                        let end = self.nodes[node].pg.end;
                        self.receive(other, node, end);
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
