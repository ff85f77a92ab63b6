//! The simulated world: nodes with the real core in a simulated agent, a store, a network, clients. One event at a time, in an
//! order that depends on the seed alone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use howdah::cluster::{Cluster, Member, Tags};
use howdah::ha::decision::{Asked, Decision, Job, Step, StopMode, StopPurpose, Why, Write};
use howdah::ha::observation::{
    Divergence, JobEnd, JobView, LeaseView, Local, Memory, Observation, Outcome, Peer, PeerAnswer,
    Process, Request, Settings, StoreView, Synchronous, Tried, Upstream, WatchdogView,
};
use howdah::types::{Lsn, MemberName, Moment, PgState, PgVersion, Role, Timeline, WallTime};

use crate::faults::{Fault, Plan};
use crate::invariants::{self, Violation};
use crate::postgres::{Pg, Server};
use crate::rng::Rng;
use crate::store::{Op, Reply, Store, entries, system_id};

/// A core under test: the real one, or one with a planted fault.
pub(crate) type Core = fn(&Observation, &Memory) -> Decision;

pub(crate) const TTL: Duration = Duration::from_secs(10);
const LOOP_WAIT: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_secs(3);
const STOP_MARGIN: Duration = Duration::from_secs(2);
/// Init stops PostgreSQL so long before the promised end.
const GUARD_MARGIN: Duration = Duration::from_millis(400);
const TICK: u64 = 25;
const STEPS_MAX: u32 = 24;

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

#[derive(Debug)]
enum AgentEvent {
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
    Stage {
        job: u64,
        stage: u8,
    },
}

#[derive(Debug, Clone, Copy)]
enum PgEvent {
    Ready,
    StartFailed,
    Checkpointed,
    Exited,
    Opened,
}

/// What the agent waits for.
#[derive(Debug)]
enum Phase {
    Asleep,
    Loading,
    Acting(Step),
    Asking,
    Publishing,
    Deciding,
}

#[derive(Debug)]
struct Held {
    session: u64,
    sent: Moment,
    expires: Moment,
}

#[derive(Debug)]
struct Running {
    id: u64,
    job: Job,
    since: Moment,
    shut_down_at: Option<Lsn>,
    cancelled: bool,
    end: Option<JobEnd>,
}

#[derive(Debug)]
struct Agent {
    phase: Phase,
    waiting: u64,
    sent: Moment,
    session: u64,
    memory: Memory,
    held: Option<Held>,
    heard: Option<Moment>,
    last: Option<Cluster>,
    obs: Option<Box<Observation>>,
    job: Option<Running>,
    finished: Option<(Job, JobEnd)>,
    divergence: Divergence,
    role: Role,
    requests: Vec<Request>,
    stopping: bool,
    pause: bool,
    dirty: bool,
    timer: u64,
    wake_at: Option<Moment>,
    why: Why,
}

pub(crate) struct Node {
    pub(crate) name: MemberName,
    pub(crate) pg: Pg,
    pub(crate) tags: Tags,
    /// The container runs.
    pub(crate) up: bool,
    incarnation: u32,
    agent: Option<Box<Agent>>,
    /// The agent is frozen until then.
    frozen_until: Moment,
    promise: Option<(Moment, u64)>,
    /// Until when this node could know that it leads; survives its agent.
    pub(crate) leads_until: Option<Moment>,
    pub(crate) slow: bool,
    /// When its position changed last.
    pub(crate) moved: Moment,
    /// When its server, its agent or its network changed last.
    pub(crate) stable_since: Moment,
}

/// What the settings of a run allow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed {
    pub(crate) rewind: bool,
    pub(crate) replace: bool,
    pub(crate) hand_over: bool,
}

pub(crate) struct World {
    pub(crate) now: Moment,
    pub(crate) rng: Rng,
    queue: BinaryHeap<Reverse<(Moment, u64)>>,
    events: BTreeMap<u64, Event>,
    order: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) store: Store,
    pub(crate) store_down: bool,
    pub(crate) cut_from_store: BTreeSet<usize>,
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// Per mille of store messages lost.
    pub(crate) loss: u64,
    pub(crate) allowed: Allowed,
    pub(crate) trace: Vec<String>,
    pub(crate) violation: Option<Violation>,
    /// History that the next leader must have, and who was handed the key.
    pub(crate) planned: Option<(Pg, MemberName)>,
    pub(crate) healed: Option<Moment>,
    /// Without init's guard and the promotion job's look at the lease: for planted faults that those two would cover.
    pub(crate) core_alone: bool,
    pub(crate) reasons: BTreeSet<String>,
    /// Every timeline ever opened: its number and where it begins.
    opened: BTreeSet<(u32, u64)>,
    core: Core,
}

impl World {
    pub(crate) fn new(seed: u64, core: Core) -> (Self, Plan) {
        let mut rng = Rng::new(seed);
        let count = usize::try_from(rng.between(2, 5)).unwrap_or(3);
        let allowed = Allowed {
            rewind: rng.per_mille(700),
            replace: rng.per_mille(700),
            hand_over: rng.per_mille(700),
        };
        let nodes = (0..count).map(|i| Node::new(i, &mut rng)).collect();
        let plan = Plan::new(&mut rng, count);
        let mut world = World {
            now: Moment(Duration::from_secs(1000)),
            rng,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            order: 0,
            nodes,
            store: Store::default(),
            store_down: false,
            cut_from_store: BTreeSet::new(),
            cut: BTreeSet::new(),
            loss: 0,
            allowed,
            trace: Vec::new(),
            violation: None,
            planned: None,
            healed: None,
            core_alone: false,
            reasons: BTreeSet::new(),
            opened: BTreeSet::new(),
            core,
        };
        world.at(TICK, Event::Tick);
        for node in 0..count {
            world.boot(node, node as u64 * 40);
        }
        for (millis, fault) in &plan.faults {
            world.at(*millis, Event::Fault(fault.clone()));
        }
        (world, plan)
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
        let millis = u64::try_from(self.now.until(when).as_millis()).unwrap_or(0);
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
                if self.nodes[node].pg.generation == generation {
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

    // ---- nodes -----------------------------------------------------------------------------------------------------------

    /// Starts (or restarts) the agent of a node, and its container if that is down.
    pub(crate) fn boot(&mut self, node: usize, delay: u64) {
        let n = &mut self.nodes[node];
        n.up = true;
        n.incarnation += 1;
        n.frozen_until = self.now;
        n.stable_since = self.now;
        n.agent = None;
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
        if let Server::Down { .. } = n.pg.server {
            n.pg.server = Server::Down { crashed: false };
        }
        self.at(back, Event::Back { node });
    }

    pub(crate) fn freeze(&mut self, node: usize, millis: u64) {
        let until = self.now + Duration::from_millis(millis);
        self.nodes[node].frozen_until = until;
        self.nodes[node].stable_since = until;
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

    pub(crate) fn reaches(&self, a: usize, b: usize) -> bool {
        self.nodes[a].up && self.nodes[b].up && !self.cut.contains(&(a.min(b), a.max(b)))
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

    // ---- time passes -----------------------------------------------------------------------------------------------------

    fn tick(&mut self) {
        self.at(TICK, Event::Tick);
        if self.store.expire(self.now) {
            self.notify_all();
        }
        for node in 0..self.nodes.len() {
            let n = &self.nodes[node];
            if n.pg.accepts_writes() && !n.pg.newborn {
                let bytes = self.rng.between(8, 200);
                self.nodes[node].pg.end += bytes;
                invariants::committed(self, node);
            }
            self.replicate(node);
        }
    }

    fn replicate(&mut self, node: usize) {
        let n = &self.nodes[node];
        if n.pg.server != Server::Up || !n.pg.recovery {
            return;
        }
        let source = match &n.pg.follows {
            Some(Upstream::Member { name, .. }) => self.index(name),
            Some(Upstream::Remote { .. } | Upstream::Nobody) | None => None,
        };
        let ready = source.filter(|source| {
            let s = &self.nodes[*source];
            *source != node
                && self.reaches(node, *source)
                && s.pg.server == Server::Up
                && n.pg.may_stream_from(&s.pg)
        });
        let Some(source) = ready else {
            self.nodes[node].pg.streaming = false;
            return;
        };
        if !n.pg.is_prefix_of(&self.nodes[source].pg) {
            self.nodes[node].pg.streaming = false;
            return;
        }
        let pg = &mut self.nodes[node].pg;
        (pg.streaming, pg.was_primary) = (true, false);
        if self.nodes[node].slow && self.rng.per_mille(900) {
            return;
        }
        self.receive(node, source);
    }

    fn receive(&mut self, node: usize, source: usize) {
        let (end, from) = (self.nodes[source].pg.end, self.nodes[source].pg.clone());
        if self.nodes[node].pg.end != end {
            self.nodes[node].moved = self.now;
        }
        self.nodes[node].pg.receive(&from, end);
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

    fn guard(&mut self, node: usize, token: u64) {
        let n = &mut self.nodes[node];
        let due = n.promise.is_some_and(|(_, current)| current == token);
        if due && n.up && !self.core_alone {
            n.promise = None;
            if !matches!(n.pg.server, Server::Down { .. }) && !n.pg.recovery {
                n.pg.kill(false);
                self.say(|| format!("n{node}: init stops PostgreSQL at the promised time"));
                self.postgres_changed(node);
            }
        }
    }

    // ---- PostgreSQL ------------------------------------------------------------------------------------------------------

    fn pg_at(&mut self, node: usize, millis: u64, what: PgEvent) {
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

    fn start_postgres(&mut self, node: usize) {
        let now = self.now;
        self.nodes[node].pg.begin_start(now);
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

    fn pg_event(&mut self, node: usize, what: PgEvent) {
        self.nodes[node].stable_since = self.now;
        match what {
            PgEvent::Ready => {
                self.nodes[node].pg.ready();
                invariants::opened(self, node);
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
                        self.receive(other, node);
                    }
                }
                self.nodes[node].pg.shut_down();
            }
        }
        self.postgres_changed(node);
    }

    /// A job may be done with it; the agent wakes.
    fn postgres_changed(&mut self, node: usize) {
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

    // ---- jobs ------------------------------------------------------------------------------------------------------------

    fn start_job(&mut self, node: usize, job: Job) {
        self.order += 1;
        let id = self.order;
        let since = self.now;
        if let Some(agent) = self.nodes[node].agent.as_mut() {
            agent.job = Some(Running {
                id,
                job: job.clone(),
                since,
                shut_down_at: None,
                cancelled: false,
                end: None,
            });
        }
        match job {
            Job::Bootstrap => self.stage(node, id, 1, 400, 900),
            Job::Clone { .. } => {
                if self.nodes[node].pg.present {
                    self.fail(
                        "S4",
                        format!("n{node} clones into a directory that is not empty"),
                    );
                }
                self.stage(node, id, 1, 200, 800);
            }
            Job::StartPrimary { timeout } => {
                if self.nodes[node].pg.standby_signal {
                    self.finish(node, JobEnd::Failed("standby.signal is there".to_owned()));
                    return;
                }
                self.start_postgres(node);
                let millis = u64::try_from(timeout.as_millis()).unwrap_or(0);
                self.stage(node, id, 9, millis, millis);
            }
            Job::StartStandby { of } => {
                invariants::pointed(self, node, &of);
                let pg = &mut self.nodes[node].pg;
                pg.standby_signal = true;
                pg.follows = Some(of);
                self.start_postgres(node);
            }
            Job::RestartToFollow { of } => {
                self.nodes[node].pg.follows = Some(of);
                self.finish(node, JobEnd::Done);
            }
            Job::Promote => self.stage(node, id, 1, 5, 20),
            Job::Stop {
                mode,
                bound,
                purpose,
                ..
            } => self.stop_postgres(node, id, mode, bound, purpose),
            Job::Restart { .. } => {
                self.nodes[node].pg.shut_down();
                self.start_postgres(node);
            }
            Job::CheckDivergence { .. } => self.stage(node, id, 1, 20, 60),
            Job::CrashRecovery => self.stage(node, id, 1, 100, 300),
            Job::Rewind { .. } => self.stage(node, id, 1, 200, 600),
            Job::Replace { .. } => {
                if !self.allowed.replace && !self.reinit_requested(node) {
                    self.fail(
                        "S4",
                        format!("n{node} replaces its directory although that is not allowed"),
                    );
                }
                self.stage(node, id, 1, 300, 900);
            }
        }
    }

    fn reinit_requested(&self, node: usize) -> bool {
        self.nodes[node].agent.as_ref().is_some_and(|agent| {
            matches!(
                &agent.job,
                Some(Running {
                    job: Job::Replace {
                        because: howdah::ha::decision::ReplaceReason::Requested,
                        ..
                    },
                    ..
                })
            )
        })
    }

    fn stop_postgres(
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

    fn stage(&mut self, node: usize, job: u64, stage: u8, low: u64, high: u64) {
        let millis = self.rng.between(low, high);
        let incarnation = self.nodes[node].incarnation;
        self.at(
            millis,
            Event::Agent {
                node,
                incarnation,
                what: AgentEvent::Stage { job, stage },
            },
        );
    }

    fn finish(&mut self, node: usize, end: JobEnd) {
        if let Some(job) = self.nodes[node]
            .agent
            .as_mut()
            .and_then(|agent| agent.job.as_mut())
        {
            job.end = Some(end);
        }
        self.wake(node);
    }

    /// A node that can be copied from or compared with.
    fn source(&self, node: usize, upstream: &Upstream) -> Option<usize> {
        let Upstream::Member { name, .. } = upstream else {
            return None;
        };
        let source = self.index(name)?;
        (source != node && self.reaches(node, source) && self.nodes[source].pg.server == Server::Up)
            .then_some(source)
    }

    fn job_stage(&mut self, node: usize, id: u64, stage: u8) {
        let Some(agent) = self.nodes[node].agent.as_ref() else {
            return;
        };
        let Some(running) = agent
            .job
            .as_ref()
            .filter(|job| job.id == id && job.end.is_none())
        else {
            return;
        };
        let job = running.job.clone();
        let serve_until = agent
            .held
            .as_ref()
            .map(|held| Moment(held.expires.0.saturating_sub(STOP_MARGIN)));
        match job {
            Job::Bootstrap => {
                if self.rng.per_mille(50) {
                    self.nodes[node].pg = Pg::empty();
                    self.finish(node, JobEnd::Failed("initdb failed".to_owned()));
                } else {
                    self.nodes[node].pg.initdb(id);
                    self.finish(node, JobEnd::Done);
                    self.postgres_changed(node);
                }
            }
            Job::Clone { from } | Job::Replace { from, .. } => match self.source(node, &from) {
                Some(source) if !self.rng.per_mille(50) => {
                    let copy = self.nodes[source].pg.clone();
                    self.nodes[node].pg.copy_of(&copy, from);
                    self.set_divergence(node, Divergence::Unchecked);
                    self.finish(node, JobEnd::Done);
                }
                Some(_) | None => {
                    self.nodes[node].pg = Pg::empty();
                    self.finish(node, JobEnd::Failed("base backup failed".to_owned()));
                }
            },
            Job::StartPrimary { .. } => {
                if stage == 9 {
                    self.finish(node, JobEnd::Failed("not up in time".to_owned()));
                }
            }
            Job::Promote => self.promote_stage(node, id, stage, serve_until),
            Job::Stop { .. } => {
                self.nodes[node].pg.kill(false);
                self.postgres_changed(node);
            }
            Job::CheckDivergence { with } => self.compare(node, &with),
            Job::CrashRecovery => {
                let pg = &mut self.nodes[node].pg;
                pg.control = howdah::ha::observation::ControlState::ShutDown;
                pg.checkpoint = pg.end;
                self.finish(node, JobEnd::Done);
            }
            Job::Rewind { from } => self.rewind(node, &from),
            Job::StartStandby { .. } | Job::RestartToFollow { .. } | Job::Restart { .. } => {}
        }
    }

    fn promote_stage(&mut self, node: usize, id: u64, stage: u8, serve_until: Option<Moment>) {
        if stage == 1 {
            let pg = &mut self.nodes[node].pg;
            pg.follows = Some(Upstream::Nobody);
            pg.streaming = false;
            if self.rng.per_mille(20) {
                self.finish(node, JobEnd::Failed("pre_promote failed".to_owned()));
            } else {
                self.stage(node, id, 2, 10, 100);
            }
            return;
        }
        if !self.core_alone && serve_until.is_none_or(|until| self.now >= until) {
            self.finish(node, JobEnd::Failed("no authority to promote".to_owned()));
        } else {
            let millis = self.rng.between(10, 150);
            self.pg_at(node, millis, PgEvent::Opened);
            if let Some(agent) = self.nodes[node].agent.as_mut() {
                agent.role = Role::Promoted;
            }
        }
    }

    /// What pg_controldata, IDENTIFY_SYSTEM and TIMELINE_HISTORY can tell: numbers.
    fn compare(&mut self, node: usize, with: &Upstream) {
        let Some(source) = self
            .source(node, with)
            .filter(|source| !self.nodes[*source].pg.recovery)
        else {
            self.finish(
                node,
                JobEnd::Failed("the leader does not answer".to_owned()),
            );
            return;
        };
        let (mine, theirs) = (&self.nodes[node].pg, &self.nodes[source].pg);
        let known = match mine.control {
            howdah::ha::observation::ControlState::InProduction if mine.server != Server::Up => {
                mine.checkpoint
            }
            _ => mine.end,
        };
        let at = theirs
            .history
            .iter()
            .position(|segment| segment.timeline == mine.timeline());
        let number = |segment: &crate::postgres::Segment| (segment.timeline, segment.start);
        let forked = mine
            .history
            .iter()
            .zip(&theirs.history)
            .any(|(a, b)| number(a) != number(b));
        let diverged = match at {
            None => true,
            Some(_) if forked => true,
            Some(at) => theirs
                .history
                .get(at + 1)
                .is_some_and(|next| known > next.start),
        };
        let name = self.nodes[source].name.clone();
        let verdict = if diverged {
            Divergence::Diverged {
                from: name,
                detail: "timelines forked".to_owned(),
            }
        } else {
            Divergence::Prefix { of: name }
        };
        self.say(|| format!("n{node}: compared with n{source}: {verdict:?}"));
        self.set_divergence(node, verdict);
        self.finish(node, JobEnd::Done);
    }

    fn rewind(&mut self, node: usize, from: &Upstream) {
        if !self.allowed.rewind {
            self.fail(
                "S4",
                format!("n{node} rewinds although that is not possible"),
            );
        }
        let Some(source) = self
            .source(node, from)
            .filter(|source| !self.nodes[*source].pg.recovery)
        else {
            self.finish(
                node,
                JobEnd::Failed("the leader does not answer".to_owned()),
            );
            return;
        };
        if self.rng.per_mille(100) {
            let from = self.nodes[source].name.clone();
            self.set_divergence(node, Divergence::RewindFailed { from });
            self.finish(node, JobEnd::Failed("pg_rewind failed".to_owned()));
            return;
        }
        let copy = self.nodes[source].pg.clone();
        self.nodes[node].pg.rewind_to(&copy, from.clone());
        self.set_divergence(node, Divergence::Unchecked);
        self.finish(node, JobEnd::Done);
    }

    fn set_divergence(&mut self, node: usize, verdict: Divergence) {
        if let Some(agent) = self.nodes[node].agent.as_mut() {
            agent.divergence = verdict;
        }
    }

    // ---- the agent -------------------------------------------------------------------------------------------------------

    fn agent_event(&mut self, node: usize, what: AgentEvent) {
        match what {
            AgentEvent::Boot => {
                let role = if self.nodes[node].pg.present {
                    Role::Replica
                } else {
                    Role::Uninitialized
                };
                self.nodes[node].agent = Some(Box::new(Agent::new(role, self.now)));
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

    fn is_waiting(&self, node: usize, id: u64) -> bool {
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

    fn begin_turn(&mut self, node: usize) {
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
        self.send(node, Op::Load);
    }

    /// Sends one operation to the store; the answer, or its timeout, comes as an event.
    fn send(&mut self, node: usize, op: Op) {
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

    fn arrive(&mut self, node: usize, incarnation: u32, id: u64, op: Op, answered: bool) {
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

    fn replied(&mut self, node: usize, reply: Option<Box<Reply>>) {
        let now = self.now;
        let Some(agent) = self.nodes[node].agent.as_mut() else {
            return;
        };
        agent.waiting = 0;
        if let Some(reply) = &reply {
            agent.session = reply.session;
            agent.heard = Some(now);
            agent.pause = reply.pause;
            agent.last = Some(reply.cluster.clone());
        }
        let sent = agent.sent;
        match std::mem::replace(&mut agent.phase, Phase::Deciding) {
            Phase::Asleep | Phase::Asking | Phase::Deciding => {}
            Phase::Publishing => self.sleep(node),
            Phase::Loading => {
                let store = match reply {
                    Some(reply) => StoreView::Fresh(reply.cluster),
                    None => StoreView::Silent {
                        since: agent.heard,
                        last: agent.last.clone().map(Box::new),
                    },
                };
                // What runs decides the role, whoever started it.
                let Node { agent, pg, .. } = &mut self.nodes[node];
                if let (Some(agent), Server::Up) = (agent.as_mut(), pg.server) {
                    agent.role = if pg.recovery {
                        agent.role
                    } else {
                        Role::Primary
                    };
                }
                let obs = self.observe(node, store);
                if let Some(agent) = self.nodes[node].agent.as_mut() {
                    agent.obs = Some(Box::new(obs));
                }
                self.decide(node);
            }
            Phase::Acting(step) => {
                self.acted(node, step, reply, sent);
                self.decide(node);
            }
        }
    }

    /// Takes the outcome of a store operation into the picture.
    fn acted(&mut self, node: usize, step: Step, reply: Option<Box<Reply>>, sent: Moment) {
        let outcome = reply
            .as_ref()
            .map_or(Outcome::Unknown, |reply| reply.outcome);
        let name = self.nodes[node].name.clone();
        let expires = sent + TTL;
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
                obs.settings.pause = reply.pause;
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
                        agent.held = Some(Held {
                            session: agent.session,
                            sent,
                            expires,
                        });
                        self.nodes[node].leads_until = Some(expires);
                        self.nodes[node].pg.newborn = false;
                    }
                }
                Step::Release { .. } => {
                    obs.tried.release = Some(outcome);
                    agent.held = None;
                }
                Step::HandOver { to, .. } => {
                    obs.tried.hand_over = Some(outcome);
                    if outcome == Outcome::Done {
                        agent.held = None;
                        planned = Some(to.clone());
                    }
                }
                Step::Write(_) => obs.tried.write = Some(outcome),
                Step::Rest
                | Step::AskPeers { .. }
                | Step::Reload
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
        if step == Step::Acquire && outcome == Outcome::Done {
            invariants::won(self, node);
        }
        let _ = name;
        self.promise(node);
    }

    /// Tells init until when PostgreSQL may run as a primary.
    fn promise(&mut self, node: usize) {
        let Some(agent) = self.nodes[node].agent.as_ref() else {
            return;
        };
        let until = agent
            .held
            .as_ref()
            .filter(|_| !agent.pause)
            .map(|held| Moment(held.expires.0.saturating_sub(GUARD_MARGIN)));
        let Some(until) = until else {
            // An agent that has just been restarted keeps the promise of the one before while a primary runs.
            if agent.pause || !self.nodes[node].pg.accepts_writes() {
                self.nodes[node].promise = None;
            }
            return;
        };
        self.order += 1;
        let token = self.order;
        self.nodes[node].promise = Some((until, token));
        self.moment(until, Event::Guard { node, token });
    }

    fn observe(&self, node: usize, store: StoreView) -> Observation {
        let n = &self.nodes[node];
        let Some(agent) = n.agent.as_ref() else {
            unreachable!("an agent observes")
        };
        Observation {
            me: n.name.clone(),
            now: self.now,
            wall: WallTime(0),
            settings: self.settings(agent.pause),
            tags: n.tags.clone(),
            store,
            lease: agent.lease(),
            tried: Tried::default(),
            postgres: Local {
                directory: n.pg.directory(&system_id()),
                process: n.pg.process(),
                role: agent.role,
                state: PgState::Running,
                version: Some(PgVersion(150_000)),
                standby_configured: n.pg.standby_signal,
                position: n.pg.position(),
                follows: if n.pg.standby_signal {
                    n.pg.follows.clone()
                } else {
                    None
                },
                divergence: agent.divergence.clone(),
                replay_paused: false,
                standby_names: None,
                replication: None,
            },
            job: agent.job_view(),
            peers: None,
            watchdog: WatchdogView {
                armed: true,
                usable: true,
            },
            requests: agent.requests.clone(),
            stopping: agent.stopping,
        }
    }

    fn settings(&self, pause: bool) -> Settings {
        Settings {
            ttl: TTL,
            loop_wait: LOOP_WAIT,
            retry_timeout: RETRY,
            maximum_lag_on_failover: 1_048_576,
            maximum_lag_on_syncnode: None,
            primary_start_timeout: Duration::from_secs(6),
            primary_stop_timeout: Duration::ZERO,
            primary_race_backoff: Duration::ZERO,
            check_timeline: false,
            pause,
            synchronous: Synchronous::Off,
            failsafe: false,
            max_timelines_history: 0,
            standby_cluster: None,
            may_bootstrap: true,
            may_rewind: self.allowed.rewind,
            may_replace_diverged: self.allowed.replace,
            may_replace_unrewindable: self.allowed.replace,
            may_clone_without_leader: false,
            watchdog_required: false,
            use_slots: true,
            hand_over: self.allowed.hand_over,
            stop_margin: STOP_MARGIN,
        }
    }

    /// Asks the core until it rests or something has to be waited for.
    fn decide(&mut self, node: usize) {
        loop {
            let now = self.now;
            let core = self.core;
            let Some(agent) = self.nodes[node].agent.as_mut() else {
                return;
            };
            let (lease, view) = (agent.lease(), agent.job_view());
            let Some(obs) = agent.obs.as_mut() else {
                return;
            };
            obs.now = now;
            obs.lease = lease;
            obs.job = view;
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
    fn act(&mut self, node: usize, step: Step) -> bool {
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
            Step::Reload => Op::Load,
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
                }
                return true;
            }
            Step::Start(job) => {
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
            Step::ResumeReplay | Step::ArmWatchdog | Step::SetSynchronousNames(_) => return true,
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
                if !self.store.pause && !matches!(self.nodes[node].pg.server, Server::Down { .. }) {
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

    fn document(&self, node: usize, write: Write) -> Op {
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

    fn ask(&mut self, node: usize, whom: Vec<Asked>) {
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
    fn poll(&mut self, node: usize, id: u64, whom: &[Asked], took: u64) {
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

    /// End of the turn: publish the member document, then sleep.
    fn publish(&mut self, node: usize) {
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
        let member = member(
            &n.name,
            agent.role,
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

    fn sleep(&mut self, node: usize) {
        self.promise(node);
        let now = self.now;
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
        self.moment(
            until,
            Event::Agent {
                node,
                incarnation,
                what: AgentEvent::Timer { token },
            },
        );
    }
}

impl Agent {
    fn new(role: Role, now: Moment) -> Self {
        Agent {
            phase: Phase::Asleep,
            waiting: 0,
            sent: now,
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
            pause: false,
            dirty: false,
            timer: 0,
            wake_at: None,
            why: Why::NotDecidedYet,
        }
    }

    fn lease(&self) -> Option<LeaseView> {
        self.held.as_ref().map(|held| LeaseView {
            sent: held.sent,
            expires: held.expires,
        })
    }

    fn job_view(&self) -> JobView {
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

impl Node {
    fn new(index: usize, rng: &mut Rng) -> Self {
        let mut tags = Tags::default();
        if rng.per_mille(60) && index > 1 {
            tags.nofailover = Some(true);
        }
        if rng.per_mille(100) {
            tags.failover_priority = Some(2);
        }
        Node {
            name: MemberName::new(format!("n{index}")).expect("not empty"),
            pg: Pg::empty(),
            tags,
            up: false,
            incarnation: 0,
            agent: None,
            frozen_until: Moment(Duration::ZERO),
            promise: None,
            leads_until: None,
            slow: rng.per_mille(200),
            moved: Moment(Duration::ZERO),
            stable_since: Moment(Duration::ZERO),
        }
    }

    fn answer(&self) -> Option<PeerAnswer> {
        let position = self.pg.position()?;
        Some(PeerAnswer {
            in_recovery: self.pg.recovery,
            lsn: position.lsn(),
            timeline: position.timeline(),
            tags: self.tags.clone(),
            watchdog_failed: false,
        })
    }

    /// What its agent said last.
    pub(crate) fn reason(&self) -> String {
        self.agent
            .as_ref()
            .map_or_else(|| "no agent".to_owned(), |agent| agent.why.to_string())
    }

    pub(crate) fn is_up(&self) -> bool {
        self.pg.process() == Process::Up
    }
}

fn member(
    name: &MemberName,
    role: Role,
    state: PgState,
    timeline: Option<Timeline>,
    tags: Tags,
    lsn: Lsn,
) -> Member {
    Member {
        name: name.clone(),
        session: None,
        conn_url: Some(format!("postgres://{name}:5432/postgres")),
        api_url: Some(format!("http://{name}:8008/patroni")),
        state: Some(state),
        role: Some(role),
        version: None,
        proxy_url: None,
        checkpoint_after_promote: true,
        tags,
        pending_restart: None,
        xlog_location: Some(lsn),
        replay_lsn: None,
        receive_lsn: None,
        replication_state: None,
        timeline,
        scheduled_restart: None,
        pause: false,
    }
}

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
    pub(crate) fn later(&mut self, millis: u64, fault: Fault) {
        self.at(millis, Event::Fault(fault));
    }

    /// The faults are over; what is broken by then has to come right by itself.
    pub(crate) fn heal(&mut self) {
        use howdah::cluster::Initialize;
        self.healed = Some(self.now);
        self.loss = 0;
        self.cut.clear();
        self.cut_from_store.clear();
        self.store_down = false;
        self.store.pause = false;
        // A creator that died in the middle leaves its claim; only an operator can tell that it is not coming back.
        if self.store.cluster.initialize == Initialize::InProgress
            && self.store.cluster.leader.is_none()
        {
            self.store.cluster.initialize = Initialize::Absent;
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].frozen_until = self.now;
            if !self.nodes[node].up {
                self.boot(node, 10);
            }
        }
        self.notify_all();
    }
}
