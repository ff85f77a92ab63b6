//! Failsafe mode between agents: a leader asks, a member gives its word, over the same network as everything else.

use std::collections::BTreeSet;

use howdah::ha::ATTEMPTS;
use howdah::ha::decision::Asked;
use howdah::ha::observation::{FailsafeView, Outcome, Promise, StoreView};
use howdah::types::{MemberName, Moment, Role};

use super::agent::{AgentEvent, Phase};
use super::{TTL, World};
use crate::invariants;
use crate::store::{Op, Reply};

/// Between attempts to read the silent store while the members are asked, in milliseconds.
const STORE_AGAIN: u64 = 200;

/// The word this agent has given, and its own attempts to get the key: they exclude each other.
#[derive(Debug, Default)]
pub(super) struct Pledge {
    word: Option<Promise>,
    races: bool,
}

impl Pledge {
    /// Whether it may try to get the key now; if so it gives no word until it has lost.
    pub(super) fn may_try(&mut self, now: Moment) -> bool {
        let bound = self.word(now).is_some();
        self.races |= !bound;
        !bound
    }

    pub(super) fn lost(&mut self) {
        self.races = false;
    }

    fn word(&self, now: Moment) -> Option<Promise> {
        self.word.clone().filter(|word| word.until > now)
    }
}

/// What the members' word means to this leader.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    pub(super) until: Option<Moment>,
    bound_until: Option<Moment>,
    round: Option<Round>,
}

/// Questions to all members.
#[derive(Debug)]
struct Round {
    /// When they were sent: in truth, and by the leader's clock.
    sent: (Moment, Moment),
    attempt: u64,
    open: BTreeSet<MemberName>,
    yes: BTreeSet<MemberName>,
    refused: bool,
    /// The store is asked meanwhile.
    probes: bool,
}

impl World {
    pub(super) fn failsafe_view(&self, node: usize) -> FailsafeView {
        let now = self.local(node);
        let Some(agent) = self.nodes[node].agent.as_ref() else {
            return FailsafeView::default();
        };
        FailsafeView {
            promise: agent.pledge.word(now),
            agreed_until: agent.agreement.until,
            bound_until: agent.agreement.bound_until.filter(|until| *until > now),
        }
    }

    /// A leader that may have to ask the members keeps time for that when it calls the store.
    pub(super) fn may_need_failsafe(&self, node: usize) -> bool {
        let n = &self.nodes[node];
        n.agent.as_ref().is_some_and(|agent| {
            let topology = agent.last.as_ref().and_then(|last| last.failsafe.as_ref());
            agent.dynamic.failsafe
                && !agent.dynamic.pause
                && agent.held.is_some()
                && topology.is_some_and(|topology| topology.contains_key(&n.name))
        })
    }

    pub(super) fn ask_failsafe(&mut self, node: usize, whom: &[Asked]) {
        self.order += 1;
        let id = self.order;
        let patience = whom.iter().map(|asked| asked.patience).max();
        let patience = patience.unwrap_or_default();
        let limit = self.budget(node, patience * ATTEMPTS);
        let attempt = u64::try_from(patience.min(limit / ATTEMPTS).as_millis())
            .unwrap_or(0)
            .max(1);
        let sent = (self.now, self.local(node));
        let Some(agent) = self.nodes[node].agent.as_mut() else {
            return;
        };
        agent.phase = Phase::Agreeing;
        agent.waiting = id;
        let probes = agent
            .obs
            .as_ref()
            .is_some_and(|obs| matches!(obs.store, StoreView::Silent { .. }));
        agent.agreement.round = Some(Round {
            sent,
            attempt,
            open: whom.iter().map(|asked| asked.name.clone()).collect(),
            yes: BTreeSet::new(),
            refused: false,
            probes,
        });
        if probes {
            self.agent_at(node, 1, AgentEvent::Probe { id });
        }
        for asked in whom {
            self.question(node, id, &asked.name, 0);
        }
        self.round_goes_on(node);
    }

    /// Asks one member, and notes that it did not answer after the last attempt.
    pub(super) fn question(&mut self, node: usize, id: u64, whom: &MemberName, attempt: u8) {
        let round = self.nodes[node]
            .agent
            .as_mut()
            .and_then(|agent| agent.agreement.round.as_mut());
        let Some(round) = round.filter(|round| round.open.contains(whom)) else {
            return;
        };
        if u32::from(attempt) == ATTEMPTS {
            self.hear_word(node, whom, false);
            return;
        }
        let patience = round.attempt;
        let again = AgentEvent::Question {
            id,
            whom: whom.clone(),
            attempt: attempt + 1,
        };
        self.agent_at(node, patience, again);
        let Some(member) = self
            .index(whom)
            .filter(|member| self.reaches(node, *member) && self.nodes[*member].agent.is_some())
        else {
            return;
        };
        if let Some(delay) = self.between_agents() {
            self.agent_at(member, delay, AgentEvent::Asked { by: node, id });
        }
    }

    /// How long a message between agents takes; `None`: it is lost.
    fn between_agents(&mut self) -> Option<u64> {
        let (loss, most) = (self.network.peer_loss, self.network.peer_delay);
        (!self.rng.per_mille(loss)).then(|| self.rng.between(1, most.max(4)))
    }

    /// A member hears a leader that asks for its word, whatever its loop is waiting for.
    pub(super) fn asked(&mut self, node: usize, by: usize, id: u64) {
        let leader = &self.nodes[by].name;
        let promise = Promise {
            leader: leader.clone(),
            conn_url: format!("postgres://{leader}:5432/postgres"),
            api_url: format!("http://{leader}:8008/patroni"),
            until: self.local(node) + TTL,
        };
        let yes = self.gives_word(node, promise);
        self.say(|| {
            let answer = if yes { "gives" } else { "refuses" };
            format!("n{node}: {answer} its word to n{by}")
        });
        if self.reaches(by, node)
            && let Some(delay) = self.between_agents()
        {
            let whom = self.nodes[node].name.clone();
            self.agent_at(by, delay, AgentEvent::Word { id, whom, yes });
        }
    }

    fn gives_word(&mut self, node: usize, promise: Promise) -> bool {
        let now = self.local(node);
        let Some(agent) = self.nodes[node].agent.as_mut() else {
            return false;
        };
        let primary = matches!(agent.role, Role::Primary | Role::Promoted);
        let recent = agent.heard.is_some_and(|heard| now.since(heard) < TTL);
        let leader = agent.last.as_ref().and_then(|last| last.leader.as_ref());
        let other = recent && leader.is_some_and(|leader| leader.name != promise.leader);
        if !agent.dynamic.failsafe || primary || other || agent.pledge.races {
            return false;
        }
        let before = agent.pledge.word(now);
        let first = before.is_none_or(|word| word.leader != promise.leader);
        agent.pledge.word = Some(promise);
        if first {
            self.wake(node);
        }
        true
    }

    /// An answer, or none in the end.
    pub(super) fn hear_word(&mut self, node: usize, whom: &MemberName, yes: bool) {
        let round = self.nodes[node]
            .agent
            .as_mut()
            .and_then(|agent| agent.agreement.round.as_mut());
        if let Some(round) = round
            && round.open.remove(whom)
        {
            round.refused |= !yes;
            if yes {
                round.yes.insert(whom.clone());
            }
            self.round_goes_on(node);
        }
    }

    /// Everybody has been heard: the lease holds for another ttl from when they were asked, if all said yes.
    fn round_goes_on(&mut self, node: usize) {
        let name = self.nodes[node].name.clone();
        let local = self.local(node);
        let Some(agent) = self.nodes[node].agent.as_mut() else {
            return;
        };
        let Some(round) = agent.agreement.round.take_if(|round| round.open.is_empty()) else {
            return;
        };
        let (sent, shown) = round.sent;
        agent.agreement.bound_until = Some(local + TTL);
        agent.waiting = 0;
        agent.phase = Phase::Deciding;
        if !round.refused
            && let Some(held) = &mut agent.held
        {
            held.sent = held.sent.max(shown);
            held.expires = held.expires.max(shown + TTL);
            agent.agreement.until = Some(shown + TTL);
        }
        if let Some(obs) = agent.obs.as_mut() {
            obs.tried.failsafe = Some(if round.refused {
                Outcome::Refused
            } else {
                Outcome::Done
            });
        }
        if !round.refused {
            self.say(|| format!("n{node}: all members agree: {:?}", round.yes));
            let mut said = round.yes;
            said.insert(name);
            invariants::agreed(self, node, &said, sent + TTL);
            self.promise(node);
        }
        self.decide(node);
    }

    /// Asks the silent store once more, while the members are asked.
    pub(super) fn probe(&mut self, node: usize, id: u64) {
        self.agent_at(node, STORE_AGAIN, AgentEvent::Probe { id });
        self.post(node, id, Op::Load { latest: true }, false);
    }

    /// The store has answered before all members have.
    pub(super) fn store_came_back(&mut self, node: usize, reply: Option<Box<Reply>>) {
        let now = self.local(node);
        let Some(agent) = self.nodes[node].agent.as_mut() else {
            return;
        };
        let Some(_) = agent.agreement.round.take_if(|round| round.probes) else {
            return;
        };
        agent.agreement.bound_until = Some(now + TTL);
        if let Some(obs) = agent.obs.as_mut() {
            obs.tried.failsafe = Some(Outcome::Unknown);
            if let Some(reply) = reply {
                obs.store = StoreView::Fresh(reply.cluster);
            }
        }
        self.decide(node);
    }
}
