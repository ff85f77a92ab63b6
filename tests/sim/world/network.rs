//! Messages between agents, the store and each other: delayed, lost, answered or not.

use std::time::Duration;

use howdah::cluster::Member;
use howdah::ha::decision::Asked;
use howdah::ha::observation::{Outcome, Peer};
use howdah::types::Moment;

use super::agent::{AgentEvent, Phase};
use super::{Event, RETRY, STOP_MARGIN, TTL, World};
use crate::store::Op;

impl World {
    pub(crate) fn reaches(&self, a: usize, b: usize) -> bool {
        self.nodes[a].up && self.nodes[b].up && !self.cut.contains(&(a.min(b), a.max(b)))
    }

    pub(crate) fn notify_all(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].up && !self.cut_from_store.contains(&node) && !self.store_down {
                let delay = self.rng.between(1, 20);
                let incarnation = self.nodes[node].incarnation;
                self.at(
                    delay,
                    Event::Agent {
                        node,
                        incarnation,
                        what: AgentEvent::Notified,
                    },
                );
            }
        }
    }

    /// Sends one operation to the store; the answer, or its timeout, comes as an event.
    pub(super) fn send(&mut self, node: usize, op: Op) {
        self.order += 1;
        let id = self.order;
        let now = self.now;
        let incarnation = self.nodes[node].incarnation;
        let Some(agent) = self.nodes[node].agent.as_mut() else {
            return;
        };
        agent.waiting = id;
        agent.sent = now;
        let budget = agent.held.as_ref().map_or(RETRY, |held| {
            let act_by = Moment(held.expires.0.saturating_sub(STOP_MARGIN));
            if act_by > now {
                RETRY.min(act_by.since(now))
            } else {
                Duration::from_millis(200)
            }
        });
        let timeout = u64::try_from(budget.as_millis()).unwrap_or(0).max(1);
        self.at(
            timeout,
            Event::Agent {
                node,
                incarnation,
                what: AgentEvent::Timeout { id },
            },
        );
        let (cut, loss) = (
            self.cut_from_store.contains(&node) || self.store_down,
            self.loss,
        );
        if cut || self.rng.per_mille(loss) {
            return;
        }
        let delay = if self.rng.per_mille(3) {
            self.rng.between(100, 4000)
        } else {
            self.rng.between(1, 4)
        };
        let answered = !self.rng.per_mille(loss);
        self.at(
            delay,
            Event::Arrive {
                node,
                incarnation,
                id,
                op,
                answered,
            },
        );
    }

    pub(super) fn arrive(
        &mut self,
        node: usize,
        incarnation: u32,
        id: u64,
        op: Op,
        answered: bool,
    ) {
        if self.store_down {
            return;
        }
        let known = self.nodes[node]
            .agent
            .as_ref()
            .map_or(0, |agent| agent.session);
        let name = self.nodes[node].name.clone();
        // Positions and heartbeats wake nobody.
        let told = |m: &Member| (m.state, m.role, m.timeline, m.tags.clone());
        let watched = match &op {
            Op::Load | Op::Renew { .. } => false,
            Op::PutMember(new) => {
                self.store.cluster.members.get(&name).map(told) != Some(told(new))
            }
            Op::Acquire
            | Op::Adopt
            | Op::Take
            | Op::Release { .. }
            | Op::HandOver { .. }
            | Op::Write { .. } => true,
        };
        let reply = self.store.apply(&name, known, op, self.now, TTL);
        if watched && reply.outcome == Outcome::Done {
            self.notify_all();
        }
        if answered && !self.cut_from_store.contains(&node) {
            let delay = self.rng.between(1, 4);
            let what = AgentEvent::Reply {
                id,
                reply: Box::new(reply),
            };
            self.at(
                delay,
                Event::Agent {
                    node,
                    incarnation,
                    what,
                },
            );
        }
    }

    pub(super) fn ask(&mut self, node: usize, whom: Vec<Asked>) {
        self.order += 1;
        let id = self.order;
        if let Some(agent) = self.nodes[node].agent.as_mut() {
            agent.phase = Phase::Asking;
            agent.waiting = id;
        }
        let took = self.rng.between(1, 8);
        let incarnation = self.nodes[node].incarnation;
        self.at(
            took,
            Event::Agent {
                node,
                incarnation,
                what: AgentEvent::PeersAt { id, whom, took },
            },
        );
    }

    /// The moment at which the questions arrive.
    pub(super) fn poll(&mut self, node: usize, id: u64, whom: &[Asked], took: u64) {
        let mut peers = Vec::new();
        let mut wait = took;
        for asked in whom {
            let index = self.index(&asked.name);
            let talks = index.filter(|i| {
                self.reaches(node, *i) && !self.frozen(*i) && self.nodes[*i].agent.is_some()
            });
            let answer = talks.and_then(|i| self.nodes[i].answer());
            if talks.is_none() {
                wait = wait.max(u64::try_from(asked.patience.as_millis()).unwrap_or(0));
            }
            peers.push(Peer {
                name: asked.name.clone(),
                answer,
            });
        }
        let incarnation = self.nodes[node].incarnation;
        self.at(
            wait,
            Event::Agent {
                node,
                incarnation,
                what: AgentEvent::Peers { id, peers },
            },
        );
    }
}
