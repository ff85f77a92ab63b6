//! What goes wrong, and when. A plan is drawn from the seed before the world starts.

use howdah::ha::observation::Request;

use crate::rng::Rng;
use crate::world::{TTL, World};

/// When faults begin: the cluster has normally been created by then.
const BEGIN: u64 = 8_000;
/// When everything is healed.
pub(crate) const HEAL: u64 = 45_000;
/// When the run ends.
pub(crate) const END: u64 = 110_000;

#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The container dies and comes back.
    KillContainer { node: Pick, back: u64 },
    /// The agent dies; init restarts it; PostgreSQL goes on.
    KillAgent { node: Pick },
    /// The agent stands still.
    Freeze { node: Pick, millis: u64 },
    /// The postmaster dies.
    CrashPostgres { node: Pick },
    /// The container is asked to stop, and started again.
    Stop { node: Pick },
    /// The node cannot reach the store.
    CutStore { node: Pick, millis: u64 },
    /// Two nodes cannot reach each other.
    Cut { a: Pick, b: Pick, millis: u64 },
    /// Nobody can reach the store.
    Outage { millis: u64, extends: bool },
    /// Store messages get lost.
    Loss { per_mille: u64, millis: u64 },
    /// A switchover or failover is requested.
    Switchover {
        candidate: Option<u64>,
        leader: bool,
    },
    /// Restart or reinitialize by REST.
    Ask {
        node: Pick,
        reinitialize: bool,
        force: bool,
    },
    /// The cluster is paused.
    Pause(bool),
    /// One earlier fault ends.
    Mend(Mend),
    /// Everything is healed.
    Heal,
}

/// Which node: a number, or whoever leads at that time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pick {
    Number(usize),
    Leader,
}

#[derive(Debug, Clone)]
pub(crate) enum Mend {
    Store(usize),
    Link(usize, usize),
    Outage { extends: bool },
    Loss,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) faults: Vec<(u64, Fault)>,
    /// Nothing but requests: they must lose nothing.
    pub(crate) calm: bool,
}

impl Plan {
    pub(crate) fn new(rng: &mut Rng, nodes: usize) -> Self {
        let calm = rng.per_mille(150);
        let paused = !calm && rng.per_mille(120);
        let mut faults = Vec::new();
        let mut at = BEGIN + rng.below(4000);
        while at < HEAL - 2000 {
            let fault = if calm {
                Self::request(rng, nodes)
            } else if paused {
                Self::gentle(rng, nodes)
            } else {
                Self::any(rng, nodes)
            };
            faults.push((at, fault));
            at += if calm || rng.per_mille(600) {
                rng.between(2000, 9000)
            } else {
                rng.between(20, 900)
            };
        }
        if paused {
            faults.push((rng.between(BEGIN, BEGIN + 15_000), Fault::Pause(true)));
        }
        faults.push((HEAL, Fault::Heal));
        Plan { faults, calm }
    }

    fn pick(rng: &mut Rng, nodes: usize) -> Pick {
        if rng.per_mille(500) {
            Pick::Leader
        } else {
            Pick::Number(usize::try_from(rng.below(nodes as u64)).unwrap_or(0))
        }
    }

    fn request(rng: &mut Rng, nodes: usize) -> Fault {
        let candidate = rng.per_mille(600).then(|| rng.below(nodes as u64));
        Fault::Switchover {
            candidate,
            leader: candidate.is_none() || rng.per_mille(700),
        }
    }

    /// Without lost leases: what an operator may see while the cluster is paused.
    fn gentle(rng: &mut Rng, nodes: usize) -> Fault {
        let node = Self::pick(rng, nodes);
        match rng.below(5) {
            0 => Fault::KillAgent { node },
            1 => Fault::CrashPostgres { node },
            2 => Fault::Ask {
                node,
                reinitialize: false,
                force: false,
            },
            _ => Self::request(rng, nodes),
        }
    }

    fn any(rng: &mut Rng, nodes: usize) -> Fault {
        let node = Self::pick(rng, nodes);
        let ttl = u64::try_from(TTL.as_millis()).unwrap_or(0);
        match rng.below(16) {
            0 | 1 => Fault::KillContainer {
                node,
                back: rng.between(300, 2 * ttl),
            },
            2 => Fault::KillAgent { node },
            3 | 4 => Fault::Freeze {
                node,
                millis: rng.between(100, 2 * ttl),
            },
            5 | 6 => Fault::CrashPostgres { node },
            7 => Fault::Stop { node },
            8 | 9 => Fault::CutStore {
                node,
                millis: rng.between(500, 2 * ttl),
            },
            10 => Fault::Cut {
                a: node,
                b: Self::pick(rng, nodes),
                millis: rng.between(500, 2 * ttl),
            },
            11 => Fault::Outage {
                millis: rng.between(500, 2 * ttl),
                extends: rng.per_mille(500),
            },
            12 => Fault::Loss {
                per_mille: rng.between(20, 300),
                millis: rng.between(1000, 15_000),
            },
            13 => Fault::Ask {
                node,
                reinitialize: rng.per_mille(500),
                force: rng.per_mille(500),
            },
            _ => Self::request(rng, nodes),
        }
    }
}

impl Pick {
    fn of(self, world: &World) -> usize {
        match self {
            Pick::Number(node) => node,
            Pick::Leader => world.leader().unwrap_or(0),
        }
    }
}

impl Fault {
    pub(crate) fn apply(self, world: &mut World) {
        world.say(|| format!("---- {self:?}"));
        match self {
            Fault::KillContainer { node, back } => {
                let node = node.of(world);
                world.planned = None;
                world.kill_container(node, back);
            }
            Fault::KillAgent { node } => {
                let node = node.of(world);
                if world.nodes[node].up {
                    world.boot(node, 200);
                }
            }
            Fault::Freeze { node, millis } => {
                let node = node.of(world);
                world.freeze(node, millis);
            }
            Fault::CrashPostgres { node } => {
                let node = node.of(world);
                world.planned = None;
                world.crash_postgres(node);
            }
            Fault::Stop { node } => {
                let node = node.of(world);
                world.ask_to_stop(node);
            }
            Fault::CutStore { node, millis } => {
                let node = node.of(world);
                world.cut_from_store.insert(node);
                world.later(millis, Fault::Mend(Mend::Store(node)));
            }
            Fault::Cut { a, b, millis } => {
                let (a, b) = (a.of(world), b.of(world));
                world.cut.insert((a.min(b), a.max(b)));
                world.later(millis, Fault::Mend(Mend::Link(a.min(b), a.max(b))));
            }
            Fault::Outage { millis, extends } => {
                world.store_down = true;
                world.later(millis, Fault::Mend(Mend::Outage { extends }));
            }
            Fault::Loss { per_mille, millis } => {
                world.loss = per_mille;
                world.later(millis, Fault::Mend(Mend::Loss));
            }
            Fault::Switchover { candidate, leader } => {
                let leads = world
                    .leader()
                    .map(|leader| world.nodes[leader].name.clone());
                let candidate = candidate.and_then(|node| {
                    Some(world.nodes.get(usize::try_from(node).ok()?)?.name.clone())
                });
                if leads.is_some() && (leader || candidate.is_some()) {
                    world
                        .store
                        .request(if leader { leads } else { None }, candidate);
                    world.notify_all();
                }
            }
            Fault::Ask {
                node,
                reinitialize,
                force,
            } => {
                let node = node.of(world);
                let request = if reinitialize {
                    Request::Reinitialize {
                        force,
                        from_leader: true,
                    }
                } else {
                    Request::Restart { timeout: None }
                };
                world.request(node, request);
            }
            Fault::Pause(on) => {
                world.store.pause = on;
                world.notify_all();
            }
            Fault::Mend(mend) => mend.apply(world),
            Fault::Heal => world.heal(),
        }
    }
}

impl Mend {
    fn apply(self, world: &mut World) {
        match self {
            Mend::Store(node) => {
                world.cut_from_store.remove(&node);
            }
            Mend::Link(a, b) => {
                for node in [a, b] {
                    world.nodes[node].stable_since = world.now;
                }
                world.cut.remove(&(a, b));
            }
            Mend::Outage { extends } => {
                world.store_down = false;
                if extends {
                    let now = world.now;
                    world.store.extend(now, TTL);
                }
            }
            Mend::Loss => world.loss = 0,
        }
        world.notify_all();
    }
}
