//! The simulated world: nodes with the real core in a simulated agent, a store, a network, clients. One event at a time, in an
//! order that depends on the seed alone.

mod agent;
mod failsafe;
mod job;
mod network;
mod node;
mod replication;
mod server;
mod turn;
mod view;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use howdah::cluster::Tags;
use howdah::ha::decision::Decision;
use howdah::ha::observation::{Memory, Observation};
use howdah::types::{MemberName, Moment};

use crate::faults::{Fault, Plan};
use crate::invariants;
use crate::invariants::{Promise, Violation};
use crate::postgres::Pg;
use crate::rng::Rng;
use crate::store::{Dynamic, Op, Store};
use agent::AgentEvent;
use network::Network;
use node::Node;
use server::PgEvent;

/// A core under test: the real one, or one with a planted fault.
pub(crate) type Core = fn(&Observation, &Memory) -> Decision;

pub(crate) const TTL: Duration = Duration::from_secs(10);
pub(crate) const LOOP_WAIT: Duration = Duration::from_secs(3);
pub(crate) const RETRY: Duration = Duration::from_secs(3);
pub(crate) const STOP_MARGIN: Duration = Duration::from_secs(2);
/// Init stops PostgreSQL so long before the promised end.
const GUARD_MARGIN: Duration = Duration::from_millis(400);
const TICK: u64 = 25;
const STEPS_MAX: u32 = 24;
/// Another stream of chance for each seed.
const STREAM: u64 = 0x1000_0000_0000;

#[derive(Debug)]
enum Event {
    Tick,
    Agent {
        node: usize,
        incarnation: u32,
        what: AgentEvent,
    },
    Pg {
        node: usize,
        generation: u64,
        what: PgEvent,
    },
    Arrive {
        node: usize,
        incarnation: u32,
        id: u64,
        op: Op,
        answered: bool,
    },
    Guard {
        node: usize,
        token: u64,
    },
    Fault(Fault),
    Back {
        node: usize,
    },
}

/// What the settings of a run allow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed {
    pub(crate) rewind: bool,
    pub(crate) replace: bool,
    pub(crate) hand_over: bool,
    /// What a synchronous standby may be behind.
    pub(crate) lag: Option<u64>,
}

pub(crate) struct World {
    pub(crate) now: Moment,
    pub(crate) rng: Rng,
    queue: BinaryHeap<Reverse<(Moment, u64)>>,
    events: BTreeMap<u64, Event>,
    order: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) store: Store,
    /// The primary of another cluster, which a standby cluster follows.
    pub(crate) remote: Pg,
    /// When it last became a standby cluster or ceased to be one.
    pub(crate) converted: Option<Moment>,
    pub(crate) network: Network,
    pub(crate) allowed: Allowed,
    pub(crate) trace: Vec<String>,
    pub(crate) violation: Option<Violation>,
    /// History that the next leader must have, and who was handed the key.
    pub(crate) planned: Option<(Pg, MemberName)>,
    /// What clients were told is kept.
    pub(crate) promise: Option<Promise>,
    pub(crate) healed: Option<Moment>,
    /// Planted: a stop cancels the commits that wait.
    pub(crate) cancels_waiting: bool,
    /// Without init's guard, the promotion job's look at the lease and the agent's look at the word it gave: for planted faults that
    /// those would cover.
    pub(crate) core_alone: bool,
    pub(crate) reasons: BTreeSet<String>,
    /// Every timeline ever opened: its number and where it begins.
    opened: BTreeSet<(u32, u64)>,
    pub(crate) core: Core,
}

impl World {
    pub(crate) fn new(seed: u64, core: Core) -> Self {
        let mut rng = Rng::new(seed);
        let count = usize::try_from(rng.between(2, 7)).unwrap_or(3);
        let allowed = Allowed {
            rewind: rng.per_mille(700),
            replace: rng.per_mille(700),
            hand_over: rng.per_mille(700),
            lag: rng.per_mille(300).then(|| rng.between(400, 6000)),
        };
        let nodes = (0..count).map(|i| Node::new(i, &mut rng)).collect();
        let mut plan = Plan::new(&mut rng, count);
        plan.without_store(&mut Rng::new(seed ^ STREAM), count);
        let mut world = World::of(rng, nodes, allowed, plan.dynamic, core);
        for (millis, fault) in &plan.faults {
            world.at(*millis, Event::Fault(fault.clone()));
        }
        world
    }

    /// Members without tags and without faults.
    pub(crate) fn calm(seed: u64, count: usize, dynamic: Dynamic) -> Self {
        let mut rng = Rng::new(seed);
        let allowed = Allowed {
            rewind: true,
            replace: true,
            hand_over: true,
            lag: None,
        };
        let mut nodes: Vec<Node> = (0..count).map(|i| Node::new(i, &mut rng)).collect();
        for node in &mut nodes {
            (node.tags, node.slow) = (Tags::default(), false);
        }
        World::of(rng, nodes, allowed, dynamic, howdah::ha::decide)
    }

    fn of(rng: Rng, nodes: Vec<Node>, allowed: Allowed, dynamic: Dynamic, core: Core) -> Self {
        let count = nodes.len();
        let mut remote = Pg::empty();
        remote.initdb(0);
        let mut world = World {
            now: Moment(Duration::from_secs(1000)),
            rng,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            order: 0,
            nodes,
            store: Store::default(),
            remote,
            converted: None,
            network: Network::default(),
            allowed,
            trace: Vec::new(),
            violation: None,
            planned: None,
            promise: None,
            healed: None,
            cancels_waiting: false,
            core_alone: false,
            reasons: BTreeSet::new(),
            opened: BTreeSet::new(),
            core,
        };
        world.store.dynamic = dynamic;
        world.at(TICK, Event::Tick);
        for node in 0..count {
            world.boot(node, node as u64 * 40);
        }
        world
    }

    fn at(&mut self, millis: u64, event: Event) {
        self.order += 1;
        self.events.insert(self.order, event);
        self.queue.push(Reverse((
            self.now + Duration::from_millis(millis),
            self.order,
        )));
    }

    fn moment(&mut self, when: Moment, event: Event) {
        let micros = self.now.until(when).as_micros();
        let millis = u64::try_from(micros.div_ceil(1000)).unwrap_or(0);
        self.at(millis, event);
    }

    pub(crate) fn say(&mut self, text: impl FnOnce() -> String) {
        let at = self.now.0.as_millis() - 1_000_000;
        self.trace
            .push(format!("{:>7}.{:03} {}", at / 1000, at % 1000, text()));
    }

    pub(crate) fn fail(&mut self, rule: &'static str, detail: String) {
        if self.violation.is_none() {
            self.say(|| format!("VIOLATION {rule}: {detail}"));
            self.violation = Some(Violation { rule, detail });
        }
    }

    /// Runs until then, or to the first violation.
    pub(crate) fn run_until(&mut self, millis: u64) {
        let end = Moment(Duration::from_millis(1_000_000 + millis));
        while self.violation.is_none() {
            match self.queue.peek() {
                Some(Reverse((at, _))) if *at <= end => {}
                Some(_) | None => break,
            }
            let Some(Reverse((at, id))) = self.queue.pop() else {
                break;
            };
            let Some(event) = self.events.remove(&id) else {
                continue;
            };
            self.now = at;
            self.handle(event);
            invariants::after_every_step(self);
        }
        self.now = self.now.max(end);
    }

    pub(crate) fn later(&mut self, millis: u64, fault: Fault) {
        self.at(millis, Event::Fault(fault));
    }

    /// The faults are over; what is broken by then has to come right by itself.
    pub(crate) fn heal(&mut self) {
        use howdah::cluster::Initialize;
        self.healed = Some(self.now);
        self.network = Network::default();
        self.store.dynamic.pause = false;
        // A creator that died in the middle leaves its claim; only an operator can tell that it is not coming back.
        if self.store.cluster.initialize == Initialize::InProgress
            && self.store.cluster.leader.is_none()
        {
            self.store.cluster.initialize = Initialize::Absent;
        }
        for node in 0..self.nodes.len() {
            self.thaw(node);
            if !self.nodes[node].up {
                self.boot(node, 10);
            }
        }
        self.notify_all();
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick => self.tick(),
            Event::Agent {
                node,
                incarnation,
                what,
            } => {
                if self.nodes[node].incarnation != incarnation || !self.nodes[node].up {
                    return;
                }
                let thaw = self.nodes[node].frozen_until;
                if self.now < thaw {
                    // What arrives meanwhile waits in a buffer.
                    self.moment(
                        thaw,
                        Event::Agent {
                            node,
                            incarnation,
                            what,
                        },
                    );
                    return;
                }
                self.agent_event(node, what);
            }
            Event::Pg {
                node,
                generation,
                what,
            } => {
                let thaw = self.nodes[node].halted_until;
                if self.now < thaw {
                    self.moment(
                        thaw,
                        Event::Pg {
                            node,
                            generation,
                            what,
                        },
                    );
                } else if self.nodes[node].pg.generation == generation {
                    self.pg_event(node, what);
                }
            }
            Event::Arrive {
                node,
                incarnation,
                id,
                op,
                answered,
            } => self.arrive(node, incarnation, id, op, answered),
            Event::Guard { node, token } => self.guard(node, token),
            Event::Fault(fault) => fault.apply(self),
            Event::Back { node } => {
                if !self.nodes[node].up {
                    self.boot(node, 0);
                }
            }
        }
    }
}
