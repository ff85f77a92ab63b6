//! The agent's loop: what wakes it, the turn's beginning and its end.

use std::time::Duration;

use howdah::cluster::Cluster;
use howdah::ha::decision::{Asked, Job, Step, Why};
use howdah::ha::observation::{
    Divergence, JobEnd, JobView, LeaseView, Memory, Observation, Peer, Request, StandbyNames,
    Synchronous,
};
use howdah::types::{Lsn, MemberName, Moment, PgState, Role};

use super::failsafe::{Agreement, Pledge};
use super::job::Running;
use super::{Event, LOOP_WAIT, STOP_MARGIN, TTL, World};
use crate::observation::member;
use crate::postgres::Server;
use crate::store::{Dynamic, Op, Reply};

#[derive(Debug)]
pub(super) enum AgentEvent {
    Boot,
    Timer {
        token: u64,
    },
    Notified,
    Reply {
        id: u64,
        reply: Box<Reply>,
    },
    Timeout {
        id: u64,
    },
    PeersAt {
        id: u64,
        whom: Vec<Asked>,
        took: u64,
    },
    Peers {
        id: u64,
        peers: Vec<Peer>,
    },
    /// A member is asked for its word, for the first time or again.
    Question {
        id: u64,
        whom: MemberName,
        attempt: u8,
    },
    /// A leader asks for this agent's word.
    Asked {
        by: usize,
        id: u64,
    },
    /// A member has answered.
    Word {
        id: u64,
        whom: MemberName,
        yes: bool,
    },
    /// The silent store is asked once more meanwhile.
    Probe {
        id: u64,
    },
    /// It looks whether its change of `synchronous_standby_names` is in force.
    Names {
        id: u64,
        wanted: String,
    },
    Stage {
        job: u64,
        stage: u8,
    },
}

/// What the agent waits for.
#[derive(Debug)]
pub(super) enum Phase {
    Asleep,
    Loading,
    Acting(Step),
    /// Reading the store after an operation that was not answered.
    LookingAgain,
    SettingNames,
    Asking,
    /// Waiting for the members' word.
    Agreeing,
    Publishing,
    Deciding,
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) session: u64,
    pub(super) sent: Moment,
    pub(super) expires: Moment,
}

#[derive(Debug)]
pub(super) struct Agent {
    pub(super) phase: Phase,
    pub(super) waiting: u64,
    /// When its last message was sent: in truth, and by its own clock.
    pub(super) sent: (Moment, Moment),
    pub(super) session: u64,
    pub(super) memory: Memory,
    pub(super) held: Option<Held>,
    pub(super) heard: Option<Moment>,
    pub(super) last: Option<Cluster>,
    pub(super) obs: Option<Box<Observation>>,
    pub(super) job: Option<Running>,
    pub(super) finished: Option<(Job, JobEnd)>,
    pub(super) divergence: Divergence,
    pub(super) role: Role,
    pub(super) requests: Vec<Request>,
    pub(super) stopping: bool,
    pub(super) dynamic: Dynamic,
    /// What it has decided about `synchronous_standby_names`.
    pub(super) names: Option<StandbyNames>,
    pub(super) pledge: Pledge,
    pub(super) agreement: Agreement,
    /// When it was started.
    pub(super) since: Moment,
    pub(super) dirty: bool,
    pub(super) timer: u64,
    pub(super) wake_at: Option<Moment>,
    pub(super) why: Why,
}

impl Agent {
    pub(super) fn new(role: Role, now: Moment, local: Moment, dynamic: Dynamic) -> Self {
        Agent {
            phase: Phase::Asleep,
            waiting: 0,
            sent: (now, now),
            session: 0,
            memory: Memory::default(),
            held: None,
            heard: None,
            last: None,
            obs: None,
            job: None,
            finished: None,
            divergence: Divergence::Unchecked,
            role,
            requests: Vec::new(),
            stopping: false,
            dynamic,
            names: None,
            pledge: Pledge::default(),
            agreement: Agreement::default(),
            since: local,
            dirty: false,
            timer: 0,
            wake_at: None,
            why: Why::NotDecidedYet,
        }
    }

    /// After a restart of the agent: what a running server has in force stays until the core decides otherwise.
    pub(super) fn adopt_names(&mut self, running: &str) {
        if self.names.is_none() {
            let asynchronous = self.dynamic.synchronous == Synchronous::Off;
            self.names = Some(match running {
                "" if asynchronous => StandbyNames::Configured,
                "" => StandbyNames::Managed(None),
                names => StandbyNames::Managed(Some(names.to_owned())),
            });
        }
    }

    pub(super) fn lease(&self) -> Option<LeaseView> {
        self.held.as_ref().map(|held| LeaseView {
            sent: held.sent,
            expires: held.expires,
        })
    }

    pub(super) fn job_view(&self) -> JobView {
        if let Some(running) = &self.job {
            return JobView::Running {
                job: running.job.clone(),
                since: running.since,
                shut_down_at: running.shut_down_at,
                cancelled: running.cancelled,
            };
        }
        match &self.finished {
            Some((job, end)) => JobView::Finished {
                job: job.clone(),
                end: end.clone(),
            },
            None => JobView::Idle,
        }
    }
}

impl World {
    pub(super) fn agent_event(&mut self, node: usize, what: AgentEvent) {
        match what {
            AgentEvent::Boot => {
                let role = if self.nodes[node].pg.present {
                    Role::Replica
                } else {
                    Role::Uninitialized
                };
                let (local, dynamic) = (self.local(node), self.nodes[node].cached);
                let agent = Agent::new(role, self.now, local, dynamic);
                self.nodes[node].agent = Some(Box::new(agent));
                self.begin_turn(node);
            }
            AgentEvent::Timer { token } => {
                if self.nodes[node]
                    .agent
                    .as_ref()
                    .is_some_and(|agent| agent.timer == token)
                {
                    self.wake(node);
                }
            }
            AgentEvent::Notified => self.wake(node),
            AgentEvent::Stage { job, stage } => self.job_stage(node, job, stage),
            AgentEvent::Reply { id, reply } => {
                if self.is_waiting(node, id) {
                    self.replied(node, Some(reply));
                }
            }
            AgentEvent::Timeout { id } => {
                if self.is_waiting(node, id) {
                    self.replied(node, None);
                }
            }
            AgentEvent::Names { id, wanted } => {
                if self.is_waiting(node, id) {
                    self.names_seen(node, &wanted);
                }
            }
            AgentEvent::Question { id, whom, attempt } => {
                if self.is_waiting(node, id) {
                    self.question(node, id, &whom, attempt);
                }
            }
            AgentEvent::Asked { by, id } => self.asked(node, by, id),
            AgentEvent::Word { id, whom, yes } => {
                if self.is_waiting(node, id) {
                    self.hear_word(node, &whom, yes);
                }
            }
            AgentEvent::Probe { id } => {
                if self.is_waiting(node, id) {
                    self.probe(node, id);
                }
            }
            AgentEvent::PeersAt { id, whom, took } => self.poll(node, id, &whom, took),
            AgentEvent::Peers { id, peers } => {
                if self.is_waiting(node, id)
                    && let Some(agent) = self.nodes[node].agent.as_mut()
                {
                    agent.phase = Phase::Deciding;
                    if let Some(obs) = agent.obs.as_mut() {
                        obs.peers = Some(peers);
                    }
                    self.decide(node);
                }
            }
        }
    }

    pub(super) fn is_waiting(&self, node: usize, id: u64) -> bool {
        self.nodes[node]
            .agent
            .as_ref()
            .is_some_and(|agent| agent.waiting == id)
    }

    /// An event: a turn now, or right after the present one.
    pub(crate) fn wake(&mut self, node: usize) {
        if self.frozen(node) {
            let incarnation = self.nodes[node].incarnation;
            let thaw = self.nodes[node].frozen_until;
            self.moment(
                thaw,
                Event::Agent {
                    node,
                    incarnation,
                    what: AgentEvent::Notified,
                },
            );
            return;
        }
        let Some(agent) = self.nodes[node].agent.as_mut() else {
            return;
        };
        agent.dirty = true;
        if matches!(agent.phase, Phase::Asleep) {
            self.begin_turn(node);
        }
    }

    pub(super) fn begin_turn(&mut self, node: usize) {
        let Some(agent) = self.nodes[node].agent.as_mut() else {
            return;
        };
        agent.dirty = false;
        agent.wake_at = None;
        agent.finished = None;
        agent.obs = None;
        if agent.job.as_ref().is_some_and(|job| job.end.is_some())
            && let Some(Running {
                job,
                end: Some(end),
                ..
            }) = agent.job.take()
        {
            agent.finished = Some((job, end));
        }
        agent.phase = Phase::Loading;
        let led = agent
            .last
            .as_ref()
            .is_some_and(|cluster| !cluster.is_unlocked());
        let latest = agent.held.is_none() && !led;
        self.send(node, Op::Load { latest });
    }

    /// End of the turn: publish the member document, then sleep.
    pub(super) fn publish(&mut self, node: usize) {
        let n = &self.nodes[node];
        let Some(agent) = n.agent.as_ref() else {
            return;
        };
        let known = agent
            .obs
            .as_ref()
            .is_some_and(|obs| obs.cluster().is_some());
        if !known {
            self.sleep(node);
            return;
        }
        let timeline = n.pg.position().and_then(|position| position.timeline());
        let state = match n.pg.server {
            Server::Up => PgState::Running,
            Server::Starting { .. } => PgState::Starting,
            Server::Down { .. } => match agent.job.as_ref().map(|job| &job.job) {
                Some(Job::Bootstrap) => PgState::InitializingNewCluster,
                Some(_) | None => PgState::Stopped,
            },
        };
        let role = if agent.dynamic.standby_cluster && agent.held.is_some() && n.pg.recovery {
            Role::StandbyLeader
        } else {
            agent.role
        };
        let member = member(
            &n.name,
            role,
            state,
            timeline,
            n.tags.clone(),
            Lsn(n.pg.end),
        );
        if let Some(agent) = self.nodes[node].agent.as_mut() {
            agent.phase = Phase::Publishing;
        }
        self.send(node, Op::PutMember(Box::new(member)));
    }

    pub(super) fn sleep(&mut self, node: usize) {
        self.promise(node);
        let now = self.local(node);
        self.order += 1;
        let token = self.order;
        let incarnation = self.nodes[node].incarnation;
        let Some(agent) = self.nodes[node].agent.as_mut() else {
            return;
        };
        agent.phase = Phase::Asleep;
        agent.waiting = 0;
        agent.timer = token;
        let finished = agent.job.as_ref().is_some_and(|job| job.end.is_some());
        if agent.dirty || finished {
            self.begin_turn(node);
            return;
        }
        let mut until = now + LOOP_WAIT.min(TTL / 3);
        if let Some(at) = agent.wake_at {
            until = until.min(at.max(now + Duration::from_millis(1)));
        }
        if let Some(held) = &agent.held {
            let act_by = Moment(held.expires.0.saturating_sub(STOP_MARGIN));
            if act_by > now {
                until = until.min(act_by);
            }
        }
        self.local_moment(
            node,
            until,
            Event::Agent {
                node,
                incarnation,
                what: AgentEvent::Timer { token },
            },
        );
    }
}
