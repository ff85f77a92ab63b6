//! What goes wrong, and when. A plan is drawn from the seed before the world starts.

mod without_store;

use howdah::ha::observation::{Request, Synchronous};
use howdah::types::WallTime;

use crate::rng::Rng;
use crate::store::Dynamic;
use crate::world::{TTL, World};

/// When faults begin: the cluster has normally been created by then.
const BEGIN: u64 = 8_000;
/// When everything is healed.
pub(crate) const HEAL: u64 = 45_000;
/// When the run ends.
pub(crate) const END: u64 = 110_000;

/// A store's client notices by then that its watch is silent.
const STALE_MAX: u64 = 2_000;

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
    /// The container stands still with everything in it.
    Halt { node: Pick, millis: u64 },
    /// Every container dies.
    Blackout { back: u64 },
    /// Two nodes cannot reach each other; `one_way`: the second can open connections to the first.
    Cut {
        a: Pick,
        b: Pick,
        one_way: bool,
        millis: u64,
    },
    /// A node cannot reach any other node, and they not it.
    Isolate { node: Pick, millis: u64 },
    /// The store hears the node, the node does not hear the store.
    Unanswered { node: Pick, millis: u64 },
    /// Its watch is cancelled without a word.
    Deaf { node: Pick, millis: u64 },
    /// Its readings grow old.
    Stale { node: Pick, millis: u64 },
    /// A standby's session is gone at once.
    LoseSession { node: Pick },
    /// Store operations end with errors of no meaning.
    Errors { per_mille: u64, millis: u64 },
    /// Store messages take long.
    Delay { most: u64, millis: u64 },
    /// A standby stays connected and receives nothing.
    Lag { node: Pick, millis: u64 },
    /// Another synchronous mode.
    Mode(Synchronous),
    /// Nobody can reach the store.
    Outage { millis: u64, extends: bool },
    /// Store messages get lost.
    Loss { per_mille: u64, millis: u64 },
    /// Messages between agents get lost.
    PeerLoss { per_mille: u64, millis: u64 },
    /// They take long.
    PeerDelay { most: u64, millis: u64 },
    /// Failsafe mode is switched on or off.
    Failsafe(bool),
    /// A switchover or failover is requested.
    Switchover {
        candidate: Option<u64>,
        leader: bool,
        /// At that time from now, by the wall clock.
        scheduled: Option<u64>,
    },
    /// Restart or reinitialize by REST.
    Ask {
        node: Pick,
        reinitialize: bool,
        force: bool,
    },
    /// The cluster is paused.
    Pause(bool),
    /// It becomes the standby cluster of a site that was a standby of it, so many bytes behind; which has been promoted, or will be.
    DemoteCluster { promoted: bool, behind: u64 },
    /// That site is promoted.
    PromoteRemote,
    /// It becomes a cluster of its own again.
    PromoteCluster,
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
    Answers(usize),
    Watch(usize),
    Link(usize, usize),
    Isolation(usize),
    Outage { extends: bool },
    Loss,
    Errors,
    Delay,
    PeerLoss,
    PeerDelay,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) faults: Vec<(u64, Fault)>,
    /// The settings at the beginning.
    pub(crate) dynamic: Dynamic,
}

impl Plan {
    pub(crate) fn new(rng: &mut Rng, nodes: usize) -> Self {
        let calm = rng.per_mille(150);
        let paused = !calm && rng.per_mille(120);
        let standby_cluster = rng.per_mille(40);
        let synchronous = if !standby_cluster && rng.per_mille(550) {
            mode(rng)
        } else {
            Synchronous::Off
        };
        let mut faults = Vec::new();
        let mut at = BEGIN + rng.below(4000);
        while at < HEAL - 2000 {
            let fault = if calm {
                Self::request(rng, nodes)
            } else if paused {
                Self::gentle(rng, nodes)
            } else {
                Self::any(rng, nodes, synchronous)
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
        if synchronous == Synchronous::Off && !standby_cluster && !paused {
            Self::convert(rng, &mut faults);
        }
        faults.push((HEAL, Fault::Heal));
        Plan {
            faults,
            dynamic: Dynamic {
                synchronous,
                standby_cluster,
                ..Dynamic::default()
            },
        }
    }

    /// Some asynchronous clusters change sides with another site, and some of these change back.
    fn convert(rng: &mut Rng, faults: &mut Vec<(u64, Fault)>) {
        if !rng.per_mille(300) {
            return;
        }
        let at = rng.between(BEGIN + 4000, HEAL - 4000);
        let promoted = rng.per_mille(500);
        let behind = if promoted && rng.per_mille(500) {
            rng.between(1, 4000)
        } else {
            0
        };
        faults.push((at, Fault::DemoteCluster { promoted, behind }));
        faults.push((at + rng.between(500, 12_000), Fault::PromoteRemote));
        if rng.per_mille(400) {
            faults.push((at + rng.between(3000, 30_000), Fault::PromoteCluster));
        }
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
            scheduled: rng.per_mille(200).then(|| rng.between(500, 8000)),
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

    fn any(rng: &mut Rng, nodes: usize, synchronous: Synchronous) -> Fault {
        let node = Self::pick(rng, nodes);
        let ttl = u64::try_from(TTL.as_millis()).unwrap_or(0);
        match rng.below(31) {
            29 | 30 => Fault::Lag {
                node,
                millis: rng.between(200, ttl),
            },
            16 | 17 => Fault::Isolate {
                node,
                millis: rng.between(500, 2 * ttl),
            },
            18 => Fault::Halt {
                node,
                millis: rng.between(100, 2 * ttl),
            },
            19 if rng.per_mille(300) => Fault::Blackout {
                back: rng.between(300, ttl),
            },
            20 => Fault::Unanswered {
                node,
                millis: rng.between(300, ttl),
            },
            21 => Fault::Deaf {
                node,
                millis: rng.between(1000, 2 * ttl),
            },
            22 => Fault::Stale {
                node,
                millis: rng.between(100, STALE_MAX),
            },
            23 => Fault::LoseSession { node },
            24 => Fault::Errors {
                per_mille: rng.between(50, 600),
                millis: rng.between(1000, ttl),
            },
            25 => Fault::Delay {
                most: rng.between(20, 2500),
                millis: rng.between(1000, 15_000),
            },
            26 if synchronous != Synchronous::Off && rng.per_mille(500) => {
                Fault::Mode(if rng.per_mille(200) {
                    Synchronous::Off
                } else {
                    mode(rng)
                })
            }
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
                one_way: rng.per_mille(300),
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

/// Some synchronous mode.
fn mode(rng: &mut Rng) -> Synchronous {
    let strict = rng.per_mille(250);
    let count = u32::from(rng.per_mille(300)) + 1;
    if rng.per_mille(500) {
        Synchronous::Quorum { strict, count }
    } else {
        Synchronous::Priority { strict, count }
    }
}

impl Pick {
    pub(crate) fn of(self, world: &World) -> usize {
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
                world.network.cut_from_store.insert(node);
                world.later(millis, Fault::Mend(Mend::Store(node)));
            }
            Fault::Halt { node, millis } => {
                let node = node.of(world);
                world.halt(node, millis);
            }
            Fault::Blackout { back } => {
                world.planned = None;
                for node in 0..world.nodes.len() {
                    let back = back + world.rng.below(3000);
                    world.kill_container(node, back);
                }
            }
            Fault::Cut {
                a,
                b,
                one_way,
                millis,
            } => {
                let (a, b) = (a.of(world), b.of(world));
                world.network.cut.insert((a, b));
                if !one_way {
                    world.network.cut.insert((b, a));
                }
                world.later(millis, Fault::Mend(Mend::Link(a, b)));
            }
            Fault::Isolate { node, millis } => {
                let node = node.of(world);
                for other in 0..world.nodes.len() {
                    world.network.cut.insert((node, other));
                    world.network.cut.insert((other, node));
                }
                world.later(millis, Fault::Mend(Mend::Isolation(node)));
            }
            Fault::Unanswered { node, millis } => {
                let node = node.of(world);
                world.network.unanswered.insert(node);
                world.later(millis, Fault::Mend(Mend::Answers(node)));
            }
            Fault::Deaf { node, millis } => {
                let node = node.of(world);
                world.network.deaf.insert(node);
                world.later(millis, Fault::Mend(Mend::Watch(node)));
            }
            Fault::Stale { node, millis } => {
                let node = node.of(world);
                world.stop_watch(node, millis);
            }
            Fault::LoseSession { node } => {
                let node = node.of(world);
                if world.leader() != Some(node) {
                    let name = world.nodes[node].name.clone();
                    world.store.end_session(&name);
                    world.notify_all();
                }
            }
            Fault::Errors { per_mille, millis } => {
                world.network.errors = per_mille;
                world.later(millis, Fault::Mend(Mend::Errors));
            }
            Fault::Delay { most, millis } => {
                world.network.delay = most;
                world.later(millis, Fault::Mend(Mend::Delay));
            }
            Fault::Lag { node, millis } => {
                let node = node.of(world);
                world.nodes[node].lags_until = world.now + std::time::Duration::from_millis(millis);
            }
            Fault::Mode(mode) => {
                world.store.dynamic.synchronous = mode;
                world.notify_all();
            }
            Fault::Outage { millis, extends } => {
                world.network.store_down = true;
                world.later(millis, Fault::Mend(Mend::Outage { extends }));
            }
            Fault::Loss { per_mille, millis } => {
                world.network.loss = per_mille;
                world.later(millis, Fault::Mend(Mend::Loss));
            }
            Fault::PeerLoss { per_mille, millis } => {
                world.network.peer_loss = per_mille;
                world.later(millis, Fault::Mend(Mend::PeerLoss));
            }
            Fault::PeerDelay { most, millis } => {
                world.network.peer_delay = most;
                world.later(millis, Fault::Mend(Mend::PeerDelay));
            }
            Fault::Failsafe(on) => {
                world.store.dynamic.failsafe = on;
                world.notify_all();
            }
            Fault::Switchover {
                candidate,
                leader,
                scheduled,
            } => {
                let leads = world
                    .leader()
                    .map(|leader| world.nodes[leader].name.clone());
                let candidate = candidate.and_then(|node| {
                    Some(world.nodes.get(usize::try_from(node).ok()?)?.name.clone())
                });
                if leads.is_some() && (leader || candidate.is_some()) {
                    let leads = leads.filter(|_| leader);
                    let now = i64::try_from(world.now.0.as_millis()).unwrap_or(0);
                    let at = scheduled
                        .filter(|_| leader)
                        .and_then(|after| Some(WallTime(now + i64::try_from(after).ok()?)));
                    world.store.request(leads, candidate, at);
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
                world.store.dynamic.pause = on;
                world.notify_all();
            }
            Fault::DemoteCluster { promoted, behind } => world.demote_cluster(promoted, behind),
            Fault::PromoteRemote => world.promote_remote(),
            Fault::PromoteCluster => world.promote_cluster(),
            Fault::Mend(mend) => mend.apply(world),
            Fault::Heal => world.heal(),
        }
    }
}

impl Mend {
    fn apply(self, world: &mut World) {
        match self {
            Mend::Store(node) => {
                world.network.cut_from_store.remove(&node);
            }
            Mend::Link(a, b) => {
                for node in [a, b] {
                    world.nodes[node].stable_since = world.now;
                }
                world.network.cut.remove(&(a, b));
                world.network.cut.remove(&(b, a));
            }
            Mend::Isolation(node) => {
                for other in &mut world.nodes {
                    other.stable_since = world.now;
                }
                world.network.cut.retain(|(a, b)| *a != node && *b != node);
            }
            Mend::Answers(node) => {
                world.network.unanswered.remove(&node);
            }
            Mend::Watch(node) => {
                world.network.deaf.remove(&node);
            }
            Mend::Errors => world.network.errors = 0,
            Mend::Delay => world.network.delay = 0,
            Mend::PeerLoss => world.network.peer_loss = 0,
            Mend::PeerDelay => world.network.peer_delay = 0,
            Mend::Outage { extends } => {
                world.network.store_down = false;
                if extends {
                    let now = world.now;
                    world.store.extend(now, TTL);
                }
            }
            Mend::Loss => world.network.loss = 0,
        }
        world.notify_all();
    }
}
