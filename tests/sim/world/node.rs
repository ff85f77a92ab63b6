//! Nodes: a container with an agent, PostgreSQL and init's guard.

use std::collections::BTreeMap;
use std::time::Duration;

use howdah::cluster::Tags;
use howdah::ha::observation::{PeerAnswer, Process, Request};
use howdah::types::{MemberName, Moment};

use super::agent::{Agent, AgentEvent};
use super::network::Copy;
use super::replication::Sender;
use super::{Event, GUARD_MARGIN, World};
use crate::clock::Clock;
use crate::postgres::{Pg, Server};
use crate::rng::Rng;
use crate::store::Dynamic;

/// What init needs to run again after its container stood still.
const INIT_WAKES: Duration = Duration::from_millis(50);

pub(crate) struct Node {
    pub(crate) name: MemberName,
    pub(crate) pg: Pg,
    pub(crate) tags: Tags,
    /// The container runs.
    pub(crate) up: bool,
    pub(super) incarnation: u32,
    pub(super) agent: Option<Box<Agent>>,
    pub(crate) clock: Clock,
    /// The agent is frozen until then.
    pub(crate) frozen_until: Moment,
    /// The whole container is frozen until then.
    pub(crate) halted_until: Moment,
    /// What its watch showed last, while the watch has stopped unnoticed.
    pub(super) copy: Option<Box<Copy>>,
    /// When its last write was answered.
    pub(super) wrote: Moment,
    /// Its server's connections to standbys.
    pub(super) senders: BTreeMap<usize, Sender>,
    pub(super) promise: Option<(Moment, u64)>,
    /// Until when this node could know that it leads; survives its agent.
    pub(crate) leads_until: Option<Moment>,
    pub(crate) slow: bool,
    /// The settings that the data directory remembers.
    pub(super) cached: Dynamic,
    /// It is connected and receives nothing until then.
    pub(crate) lags_until: Moment,
    /// A switchover stopped its server, which has not run since.
    pub(crate) switched_over: bool,
    /// When its position changed last.
    pub(crate) moved: Moment,
    /// When its server, its agent or its network changed last.
    pub(crate) stable_since: Moment,
}

impl Node {
    pub(super) fn new(index: usize, rng: &mut Rng) -> Self {
        let mut tags = Tags::default();
        if rng.per_mille(60) && index > 1 {
            tags.nofailover = Some(true);
        }
        if rng.per_mille(100) {
            tags.failover_priority = Some(2);
        }
        if rng.per_mille(60) && index > 1 {
            tags.nosync = Some(true);
        }
        Node {
            name: MemberName::new(format!("n{index}")).expect("not empty"),
            pg: Pg::empty(),
            tags,
            up: false,
            incarnation: 0,
            agent: None,
            clock: Clock::new(rng),
            frozen_until: Moment(Duration::ZERO),
            halted_until: Moment(Duration::ZERO),
            copy: None,
            wrote: Moment(Duration::ZERO),
            senders: BTreeMap::new(),
            promise: None,
            leads_until: None,
            slow: rng.per_mille(200),
            cached: Dynamic::default(),
            switched_over: false,
            lags_until: Moment(Duration::ZERO),
            moved: Moment(Duration::ZERO),
            stable_since: Moment(Duration::ZERO),
        }
    }

    pub(super) fn answer(&self) -> Option<PeerAnswer> {
        let position = self.pg.position()?;
        Some(PeerAnswer {
            in_recovery: self.pg.recovery,
            lsn: position.lsn(),
            timeline: position.timeline(),
            tags: self.tags.clone(),
            watchdog_failed: false,
            cannot_serve: self.cannot_serve(),
            replaying: false,
        })
    }

    /// It knows of something for which others go first: here that its history has left the remote primary's.
    pub(crate) fn cannot_serve(&self) -> bool {
        let agent = self.agent.as_ref();
        agent.is_some_and(|agent| agent.memory.cannot_serve().is_some())
    }

    /// What its agent said last.
    pub(crate) fn reason(&self) -> String {
        self.agent
            .as_ref()
            .map_or_else(|| "no agent".to_owned(), |agent| agent.why.to_string())
    }

    /// The request for a change of the leader names it, as far as its agent knows.
    pub(crate) fn is_named(&self, name: &MemberName) -> bool {
        let cluster = self
            .agent
            .as_ref()
            .and_then(|agent| agent.obs.as_ref())
            .and_then(|obs| obs.cluster());
        let request = cluster.and_then(|cluster| cluster.failover.as_ref());
        request.is_some_and(|request| request.candidate.as_ref() == Some(name))
    }

    pub(crate) fn is_up(&self) -> bool {
        self.pg.process() == Process::Up
    }
}

impl World {
    /// Starts (or restarts) the agent of a node, and its container if that is down.
    pub(crate) fn boot(&mut self, node: usize, delay: u64) {
        let n = &mut self.nodes[node];
        n.up = true;
        n.incarnation += 1;
        n.frozen_until = self.now;
        n.stable_since = self.now;
        n.agent = None;
        n.copy = None;
        let incarnation = n.incarnation;
        self.at(
            delay + 1,
            Event::Agent {
                node,
                incarnation,
                what: AgentEvent::Boot,
            },
        );
    }

    pub(crate) fn kill_container(&mut self, node: usize, back: u64) {
        let n = &mut self.nodes[node];
        n.up = false;
        n.agent = None;
        n.incarnation += 1;
        n.promise = None;
        n.pg.kill(false);
        n.senders.clear();
        n.halted_until = self.now;
        self.at(back, Event::Back { node });
    }

    pub(crate) fn freeze(&mut self, node: usize, millis: u64) {
        let until = self.now + Duration::from_millis(millis);
        self.nodes[node].frozen_until = until;
        self.nodes[node].stable_since = until;
    }

    /// The container stands still, with everything in it. For the moment that init needs to look at its clock afterwards nothing can be
    /// promised of a primary; its first clients come later than that.
    pub(crate) fn halt(&mut self, node: usize, millis: u64) {
        let until = self.now + Duration::from_millis(millis);
        let n = &mut self.nodes[node];
        n.halted_until = n.halted_until.max(until + INIT_WAKES);
        n.frozen_until = n.frozen_until.max(until);
        n.stable_since = until;
    }

    /// Ends what makes it stand still.
    pub(super) fn thaw(&mut self, node: usize) {
        let now = self.now;
        let n = &mut self.nodes[node];
        n.copy = None;
        n.lags_until = now;
        n.frozen_until = n.frozen_until.min(now);
        if now < n.halted_until {
            n.halted_until = now + INIT_WAKES;
            let due = n
                .promise
                .filter(|(until, _)| *until <= n.clock.read(now))
                .map(|(_, token)| token);
            if let Some(token) = due {
                self.guard(node, token);
            }
        }
    }

    /// What the node's clock shows.
    pub(super) fn local(&self, node: usize) -> Moment {
        self.nodes[node].clock.read(self.now)
    }

    /// An event at a time by the node's clock.
    pub(super) fn local_moment(&mut self, node: usize, shown: Moment, event: Event) {
        let when = self.nodes[node].clock.when(shown);
        self.moment(when, event);
    }

    pub(crate) fn ask_to_stop(&mut self, node: usize) {
        if let Some(agent) = self.nodes[node].agent.as_mut() {
            agent.stopping = true;
        }
        self.wake(node);
    }

    pub(crate) fn request(&mut self, node: usize, request: Request) {
        if let Some(agent) = self.nodes[node].agent.as_mut() {
            agent.requests.push(request);
        }
        self.wake(node);
    }

    /// The postmaster dies; the agent sees it at once.
    pub(crate) fn crash_postgres(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        if n.pg.present && !matches!(n.pg.server, Server::Down { .. }) {
            n.pg.kill(true);
            self.postgres_changed(node);
        }
    }

    pub(crate) fn frozen(&self, node: usize) -> bool {
        self.now < self.nodes[node].frozen_until
    }

    pub(crate) fn index(&self, name: &MemberName) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == *name)
    }

    /// The name in the leader key, as an index.
    pub(crate) fn leader(&self) -> Option<usize> {
        self.store
            .cluster
            .leader
            .as_ref()
            .and_then(|leader| self.index(&leader.name))
    }

    /// Tells init until when PostgreSQL may run as a primary.
    pub(super) fn promise(&mut self, node: usize) {
        let Some(agent) = self.nodes[node].agent.as_ref() else {
            return;
        };
        let until = agent
            .held
            .as_ref()
            .filter(|_| !agent.dynamic.pause)
            .map(|held| Moment(held.expires.0.saturating_sub(GUARD_MARGIN)));
        let Some(until) = until else {
            // An agent that has just been restarted keeps the promise of the one before while a primary runs or a promotion is under way.
            let pg = &self.nodes[node].pg;
            if agent.dynamic.pause || !(pg.accepts_writes() || pg.promoting) {
                self.nodes[node].promise = None;
            }
            return;
        };
        self.order += 1;
        let token = self.order;
        self.nodes[node].promise = Some((until, token));
        self.local_moment(node, until, Event::Guard { node, token });
    }

    pub(super) fn guard(&mut self, node: usize, token: u64) {
        let thaw = Moment(self.nodes[node].halted_until.0.saturating_sub(INIT_WAKES));
        if self.now < thaw {
            self.moment(thaw, Event::Guard { node, token });
            return;
        }
        let n = &mut self.nodes[node];
        let due = n.promise.is_some_and(|(_, current)| current == token);
        if due && n.up && !self.core_alone {
            n.promise = None;
            let may_write = n.pg.promoting || !n.pg.recovery;
            if !matches!(n.pg.server, Server::Down { .. }) && may_write {
                n.pg.kill(false);
                self.say(|| format!("n{node}: init stops PostgreSQL at the promised time"));
                self.postgres_changed(node);
            }
        }
    }
}
