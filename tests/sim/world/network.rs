//! Messages between agents, the store and each other: delayed, lost, answered or not, answered with an error, out of date.

use std::collections::BTreeSet;
use std::time::Duration;

use howdah::cluster::{Cluster, Member};
use howdah::ha::decision::Asked;
use howdah::ha::observation::{Outcome, Peer};
use howdah::types::Moment;

use super::agent::{AgentEvent, Phase};
use super::{Event, RETRY, STOP_MARGIN, TTL, World};
use crate::store::{Dynamic, Op, Reply};

/// What is wrong with the network and with the store's answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Network {
    /// Nobody reaches the store.
    pub(crate) store_down: bool,
    /// They do not reach the store.
    pub(crate) cut_from_store: BTreeSet<usize>,
    /// The store hears them and they do not hear the store.
    pub(crate) unanswered: BTreeSet<usize>,
    /// Their watch says nothing any more.
    pub(crate) deaf: BTreeSet<usize>,
    /// The first cannot open a connection to the second.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// Per mille of store messages lost.
    pub(crate) loss: u64,
    /// Per mille of store operations that end with an error that says nothing of what happened.
    pub(crate) errors: u64,
    /// The longest delay of a store message, in milliseconds, when it is more than usual.
    pub(crate) delay: u64,
    /// Per mille of messages between agents lost.
    pub(crate) peer_loss: u64,
    /// The longest delay of such a message, in milliseconds, when it is more than usual.
    pub(crate) peer_delay: u64,
}

/// The copy that a watch has fed, since it stopped.
#[derive(Debug, Clone)]
pub(crate) struct Copy {
    cluster: Cluster,
    dynamic: Dynamic,
    since: Moment,
    /// The store client notices then.
    until: Moment,
}

impl World {
    /// The first can open a connection to the second.
    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        self.nodes[from].up
            && self.nodes[to].up
            && !self.network.cut.contains(&(from, to))
            && self.now >= self.nodes[from].halted_until
            && self.now >= self.nodes[to].halted_until
    }

    pub(crate) fn notify_all(&mut self) {
        for node in 0..self.nodes.len() {
            let hears = self.nodes[node].up
                && self.nodes[node].copy.is_none()
                && !self.network.store_down
                && !self.network.cut_from_store.contains(&node)
                && !self.network.unanswered.contains(&node)
                && !self.network.deaf.contains(&node);
            if hears {
                let delay = self.rng.between(1, 20.max(self.network.delay));
                self.agent_at(node, delay, AgentEvent::Notified);
            }
        }
    }

    pub(super) fn agent_at(&mut self, node: usize, millis: u64, what: AgentEvent) {
        let incarnation = self.nodes[node].incarnation;
        self.at(
            millis,
            Event::Agent {
                node,
                incarnation,
                what,
            },
        );
    }

    /// The watch of a node stops; what it shows grows old until the store's client notices.
    pub(crate) fn stop_watch(&mut self, node: usize, millis: u64) {
        self.nodes[node].copy = Some(Box::new(Copy {
            cluster: self.store.cluster.clone(),
            dynamic: self.store.dynamic,
            since: self.now,
            until: self.now + Duration::from_millis(millis),
        }));
    }

    /// A reading that may be out of date, never older than what this node wrote itself.
    fn recent(&mut self, node: usize) -> Option<Reply> {
        let n = &mut self.nodes[node];
        n.copy
            .take_if(|copy| self.now >= copy.until || n.wrote >= copy.since);
        let copy = n.copy.as_ref()?;
        let session = n.agent.as_ref().map_or(0, |agent| agent.session);
        Some(Reply {
            outcome: Outcome::Done,
            session,
            cluster: copy.cluster.clone(),
            dynamic: copy.dynamic,
        })
    }

    /// How long something may take: less when PostgreSQL must be stopped earlier.
    pub(super) fn budget(&self, node: usize, wanted: Duration) -> Duration {
        let now = self.local(node);
        let held = self.nodes[node]
            .agent
            .as_ref()
            .and_then(|agent| agent.held.as_ref());
        held.map_or(wanted, |held| {
            let act_by = Moment(held.expires.0.saturating_sub(STOP_MARGIN));
            if act_by > now {
                wanted.min(act_by.since(now))
            } else {
                wanted.min(Duration::from_millis(200))
            }
        })
    }

    /// The same for a call of the store. A leader that may have to ask the members instead keeps two thirds of its time for that.
    fn store_budget(&self, node: usize) -> Duration {
        let held = self.nodes[node]
            .agent
            .as_ref()
            .and_then(|agent| agent.held.as_ref());
        match held {
            Some(held) if self.may_need_failsafe(node) => {
                let act_by = Moment(held.expires.0.saturating_sub(STOP_MARGIN));
                let third = act_by.since(self.local(node)) / 3;
                self.budget(node, RETRY.min(third.max(Duration::from_millis(200))))
            }
            Some(_) | None => self.budget(node, RETRY),
        }
    }

    /// Sends one operation to the store; the answer, or its timeout, comes as an event.
    pub(super) fn send(&mut self, node: usize, op: Op) {
        self.order += 1;
        let id = self.order;
        let timeout = u64::try_from(self.store_budget(node).as_millis())
            .unwrap_or(0)
            .max(1);
        let (now, local) = (self.now, self.local(node));
        let Some(agent) = self.nodes[node].agent.as_mut() else {
            return;
        };
        agent.waiting = id;
        agent.sent = (now, local);
        if op == (Op::Load { latest: false })
            && let Some(reply) = self.recent(node)
        {
            let reply = Box::new(reply);
            self.agent_at(node, 1, AgentEvent::Reply { id, reply });
            return;
        }
        let failed = self.rng.per_mille(self.network.errors);
        let timeout = if failed {
            self.rng.between(1, 10)
        } else {
            timeout
        };
        self.agent_at(node, timeout, AgentEvent::Timeout { id });
        self.post(node, id, op, failed);
    }

    /// The message to the store; `failed`: it ends with an error, whether it arrives or not.
    pub(super) fn post(&mut self, node: usize, id: u64, op: Op, failed: bool) {
        let network = &self.network;
        let cut = network.cut_from_store.contains(&node) || network.store_down;
        let loss = network.loss;
        if cut || self.rng.per_mille(loss) || (failed && self.rng.per_mille(500)) {
            return;
        }
        let delay = match self.network.delay {
            0 if self.rng.per_mille(3) => self.rng.between(100, 4000),
            0 => self.rng.between(1, 4),
            most => self.rng.between(1, most),
        };
        let answered = !failed && !self.rng.per_mille(loss);
        let incarnation = self.nodes[node].incarnation;
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
        if self.network.store_down {
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
            Op::Load { .. } | Op::Renew { .. } => false,
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
        let reads = matches!(op, Op::Load { .. });
        let reply = self.store.apply(&name, known, op, self.now, TTL);
        if let Some(detail) = self.store.overwrote.take() {
            self.fail("S5 compare and set", detail);
        }
        if watched && reply.outcome == Outcome::Done {
            self.notify_all();
        }
        let heard = !self.network.cut_from_store.contains(&node)
            && !self.network.unanswered.contains(&node);
        if answered && heard {
            if !reads {
                self.nodes[node].wrote = self.now;
            }
            let delay = self.rng.between(1, 4.max(self.network.delay / 4));
            let what = AgentEvent::Reply {
                id,
                reply: Box::new(reply),
            };
            let late = Event::Agent {
                node,
                incarnation,
                what,
            };
            self.at(delay, late);
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
        self.agent_at(node, took, AgentEvent::PeersAt { id, whom, took });
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
        self.agent_at(node, wait, AgentEvent::Peers { id, peers });
    }
}
