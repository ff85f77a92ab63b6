//! A turn: decide, act, take the outcome into the picture, decide again.

use howdah::ha::decision::{Job, Step, StopPurpose, Why, Write};
use howdah::ha::observation::{JobEnd, Outcome, StoreView};
use howdah::types::{Lsn, Moment, Role};

use super::agent::{Held, Phase};
use super::node::Node;
use super::{STEPS_MAX, TTL, World};
use crate::invariants;
use crate::postgres::Server;
use crate::store::{Op, Reply, entries};

/// The variant's name.
fn variant(why: &Why) -> String {
    let text = format!("{why:?}");
    text.split([' ', '{', '('])
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Steps as the trace shows them.
fn brief(step: &Step) -> String {
    match step {
        Step::AskPeers { whom } => format!("AskPeers {}", whom.len()),
        Step::Rest
        | Step::AskFailsafe { .. }
        | Step::Reload
        | Step::Renew
        | Step::Acquire
        | Step::Adopt
        | Step::Take
        | Step::Release { .. }
        | Step::HandOver { .. }
        | Step::ForgetLease
        | Step::Write(_)
        | Step::Start(_)
        | Step::CancelJob
        | Step::Follow(_)
        | Step::ResumeReplay
        | Step::SetSynchronousNames(_)
        | Step::ArmWatchdog
        | Step::Answer { .. }
        | Step::Exit { .. } => format!("{step:?}"),
    }
}

impl World {
    pub(super) fn replied(&mut self, node: usize, reply: Option<Box<Reply>>) {
        let now = self.local(node);
        let Some(agent) = self.nodes[node].agent.as_mut() else {
            return;
        };
        agent.waiting = 0;
        if let Some(reply) = &reply {
            agent.session = reply.session;
            agent.heard = Some(now);
            agent.last = Some(reply.cluster.clone());
        }
        if matches!(agent.phase, Phase::Agreeing) {
            self.store_came_back(node, reply);
            return;
        }
        let sent = agent.sent;
        match std::mem::replace(&mut agent.phase, Phase::Deciding) {
            Phase::Asleep
            | Phase::Asking
            | Phase::Agreeing
            | Phase::Deciding
            | Phase::SettingNames => {}
            Phase::Publishing => self.sleep(node),
            Phase::Loading => {
                let store = match reply {
                    Some(reply) => {
                        agent.dynamic = reply.dynamic;
                        StoreView::Fresh(reply.cluster)
                    }
                    None => StoreView::Silent {
                        since: agent.heard,
                        last: agent.last.clone().map(Box::new),
                    },
                };
                let Node {
                    agent, pg, cached, ..
                } = &mut self.nodes[node];
                if let (Some(agent), true) = (agent.as_ref(), pg.present) {
                    *cached = agent.dynamic;
                }
                // What runs decides the role, whoever started it.
                let Node { agent, pg, .. } = &mut self.nodes[node];
                if let (Some(agent), Server::Up) = (agent.as_mut(), pg.server) {
                    agent.role = if pg.recovery {
                        agent.role
                    } else {
                        Role::Primary
                    };
                    agent.adopt_names(&pg.names);
                }
                let obs = self.observe(node, store);
                if let Some(agent) = self.nodes[node].agent.as_mut() {
                    agent.obs = Some(Box::new(obs));
                }
                self.decide(node);
            }
            Phase::Acting(step) => self.acted(node, step, reply, sent),
            Phase::LookingAgain => {
                if let Some(obs) = agent.obs.as_mut() {
                    obs.store = match reply {
                        Some(reply) => StoreView::Fresh(reply.cluster),
                        None => StoreView::Silent {
                            since: agent.heard,
                            last: agent.last.clone().map(Box::new),
                        },
                    };
                }
                self.decide(node);
            }
        }
    }

    /// Takes the outcome of a store operation into the picture.
    pub(super) fn acted(
        &mut self,
        node: usize,
        step: Step,
        reply: Option<Box<Reply>>,
        (sent, shown): (Moment, Moment),
    ) {
        let outcome = reply
            .as_ref()
            .map_or(Outcome::Unknown, |reply| reply.outcome);
        let expires = shown + TTL;
        let mut planned = None;
        {
            let Some(agent) = self.nodes[node].agent.as_mut() else {
                return;
            };
            let Some(obs) = agent.obs.as_mut() else {
                return;
            };
            if let Some(reply) = &reply {
                obs.store = StoreView::Fresh(reply.cluster.clone());
            }
            match &step {
                Step::Acquire | Step::Adopt | Step::Take | Step::Renew => {
                    let tried = if step == Step::Renew {
                        &mut obs.tried.renew
                    } else {
                        &mut obs.tried.acquire
                    };
                    *tried = Some(outcome);
                    if outcome == Outcome::Done {
                        agent.agreement.until = None;
                        agent.held = Some(Held {
                            session: agent.session,
                            sent: shown,
                            expires,
                        });
                        obs.tried.renew = Some(outcome);
                        self.nodes[node].leads_until = Some(sent + TTL);
                        self.nodes[node].pg.newborn = false;
                    } else if agent.held.is_none() {
                        agent.pledge.lost();
                    }
                }
                Step::Release { .. } => {
                    obs.tried.release = Some(outcome);
                    agent.held = None;
                    agent.agreement.until = None;
                    agent.pledge.lost();
                }
                Step::HandOver { to, .. } => {
                    obs.tried.hand_over = Some(outcome);
                    if outcome != Outcome::Refused {
                        agent.held = None;
                        agent.pledge.lost();
                    }
                    if outcome == Outcome::Done {
                        planned = Some(to.clone());
                    }
                }
                Step::Write(_) => obs.tried.write = Some(outcome),
                Step::Reload => obs.tried.reloaded = true,
                Step::Rest
                | Step::AskPeers { .. }
                | Step::AskFailsafe { .. }
                | Step::ForgetLease
                | Step::Start(_)
                | Step::CancelJob
                | Step::Follow(_)
                | Step::ResumeReplay
                | Step::SetSynchronousNames(_)
                | Step::ArmWatchdog
                | Step::Answer { .. }
                | Step::Exit { .. } => {}
            }
        }
        if let Some(to) = planned {
            self.planned = Some((self.nodes[node].pg.clone(), to));
        }
        match (&step, outcome) {
            (Step::Acquire, Outcome::Done) => invariants::won(self, node),
            (Step::Acquire, Outcome::Unknown) | (Step::Adopt, Outcome::Done) => {
                invariants::may_have_won(self, node);
            }
            _ => {}
        }
        self.promise(node);
        let rereads = match step {
            Step::Renew | Step::Reload => false,
            _ => reply.is_none(),
        };
        if rereads {
            if let Some(agent) = self.nodes[node].agent.as_mut() {
                agent.phase = Phase::LookingAgain;
            }
            self.send(node, Op::Load { latest: true });
        } else {
            self.decide(node);
        }
    }

    /// Asks the core until it rests or something has to be waited for.
    pub(super) fn decide(&mut self, node: usize) {
        loop {
            let now = self.local(node);
            let core = self.core;
            let Some(agent) = self.nodes[node].agent.as_ref() else {
                return;
            };
            let (lease, view) = (agent.lease(), agent.job_view());
            let failsafe = self.failsafe_view(node);
            let Some(agent) = self.nodes[node].agent.as_mut() else {
                return;
            };
            let Some(obs) = agent.obs.as_mut() else {
                return;
            };
            obs.now = now;
            obs.lease = lease;
            obs.job = view;
            obs.failsafe = failsafe;
            let decision = core(obs, &agent.memory);
            agent.memory = decision.memory;
            if let Some(at) = decision.wake_at {
                agent.wake_at = Some(agent.wake_at.map_or(at, |sooner: Moment| sooner.min(at)));
            }
            obs.tried.steps += 1;
            let steps = obs.tried.steps;
            let changed = agent.why != decision.why;
            agent.why = decision.why.clone();
            if changed || decision.step != Step::Rest {
                self.say(|| format!("n{node}: {:?} | {}", brief(&decision.step), decision.why));
                self.reasons.insert(variant(&decision.why));
            }
            if steps > STEPS_MAX {
                self.fail(
                    "rest",
                    format!(
                        "n{node}: the turn does not come to rest: {:?}",
                        decision.step
                    ),
                );
                return;
            }
            if !self.act(node, decision.step) {
                return;
            }
        }
    }

    /// Carries a step out; `true` = ask again at once.
    pub(super) fn act(&mut self, node: usize, step: Step) -> bool {
        let session = self.nodes[node]
            .agent
            .as_ref()
            .and_then(|agent| agent.held.as_ref())
            .map_or(0, |held| held.session);
        let pg_end =
            (self.nodes[node].pg.server == Server::Up).then_some(Lsn(self.nodes[node].pg.end));
        let op = match &step {
            Step::Rest => {
                self.publish(node);
                return false;
            }
            Step::AskPeers { whom } => {
                self.ask(node, whom.clone());
                return false;
            }
            Step::AskFailsafe { whom } => {
                self.ask_failsafe(node, whom);
                return false;
            }
            Step::Acquire | Step::Adopt | Step::Take if !self.may_try(node) => return true,
            Step::Reload => Op::Load { latest: true },
            Step::Renew => Op::Renew {
                session,
                publish: pg_end,
            },
            Step::Acquire => Op::Acquire,
            Step::Adopt => Op::Adopt,
            Step::Take => Op::Take,
            Step::Release { publish } => {
                invariants::gives_away(self, node);
                Op::Release {
                    session,
                    publish: *publish,
                }
            }
            Step::HandOver { to, publish } => {
                invariants::gives_away(self, node);
                Op::HandOver {
                    session,
                    to: to.clone(),
                    publish: *publish,
                }
            }
            Step::Write(write) => self.document(node, write.clone()),
            Step::ForgetLease => {
                if let Some(agent) = self.nodes[node].agent.as_mut() {
                    agent.held = None;
                    agent.agreement.until = None;
                    agent.pledge.lost();
                }
                return true;
            }
            Step::Start(job) => {
                let paused = self.nodes[node]
                    .agent
                    .as_ref()
                    .is_some_and(|agent| agent.dynamic.pause);
                if let Job::Stop {
                    purpose: StopPurpose::Switchover,
                    ..
                } = job
                {
                    self.nodes[node].switched_over = true;
                }
                if paused && self.store.dynamic.pause {
                    invariants::begun_in_pause(self, node, job);
                }
                self.start_job(node, job.clone());
                return self.violation.is_none();
            }
            Step::CancelJob => {
                if let Some(job) = self.nodes[node]
                    .agent
                    .as_mut()
                    .and_then(|agent| agent.job.as_mut())
                {
                    job.cancelled = true;
                    job.end = Some(JobEnd::Cancelled);
                }
                if let Some(agent) = self.nodes[node].agent.as_mut() {
                    agent.dirty = true;
                }
                return true;
            }
            Step::Follow(upstream) => {
                invariants::pointed(self, node, upstream);
                let pg = &mut self.nodes[node].pg;
                pg.follows = Some(upstream.clone());
                pg.streaming = false;
                if let Some(obs) = self.nodes[node]
                    .agent
                    .as_mut()
                    .and_then(|agent| agent.obs.as_mut())
                {
                    obs.postgres.follows = Some(upstream.clone());
                }
                return true;
            }
            Step::SetSynchronousNames(names) => {
                self.set_names(node, names.clone());
                return false;
            }
            Step::ResumeReplay | Step::ArmWatchdog => return true,
            Step::Answer { .. } => {
                if let Some(agent) = self.nodes[node].agent.as_mut() {
                    agent.requests.remove(0);
                    if let Some(obs) = agent.obs.as_mut() {
                        obs.requests.remove(0);
                    }
                }
                return true;
            }
            Step::Exit { .. } => {
                let back = self.rng.between(500, 4000);
                if !self.store.dynamic.pause
                    && !matches!(self.nodes[node].pg.server, Server::Down { .. })
                {
                    self.say(|| format!("n{node}: the container ends PostgreSQL"));
                }
                self.kill_container(node, back);
                return false;
            }
        };
        if let Some(agent) = self.nodes[node].agent.as_mut() {
            agent.phase = Phase::Acting(step);
        }
        self.send(node, op);
        false
    }

    /// The agent's own look at the word it gave, after the core's.
    fn may_try(&mut self, node: usize) -> bool {
        let now = self.local(node);
        let alone = self.core_alone;
        let Some(agent) = self.nodes[node].agent.as_mut() else {
            return false;
        };
        let may = agent.pledge.may_try(now) || alone;
        if let (false, Some(obs)) = (may, agent.obs.as_mut()) {
            obs.tried.acquire = Some(Outcome::Refused);
        }
        may
    }

    pub(super) fn document(&self, node: usize, write: Write) -> Op {
        let seen = self.nodes[node]
            .agent
            .as_ref()
            .and_then(|agent| agent.obs.as_ref())
            .and_then(|obs| obs.cluster().cloned())
            .unwrap_or_default();
        let history = entries(&self.nodes[node].pg.history);
        Op::Write {
            write,
            seen: Box::new(seen),
            history,
        }
    }
}
