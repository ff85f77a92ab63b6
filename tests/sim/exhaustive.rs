//! Three nodes and every order of what can happen to them, up to a stated number of events: elections while the synchronous set changes.
//!
//! No chance and little time: the search keeps every state that it has reached and goes on from each in every way. An event is a node's
//! turn (the real core's) up to the next step that others can notice, with every outcome a write can have, or something from outside: a commit, a standby that
//! receives, a connection lost or made, the end of the leader, an agent's restart, another mode. It starts in a settled cluster.
//! The rule is S2: whoever is promoted has everything of which a client was told.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use howdah::cluster::{
    Cluster, ConfigDocument, History, HistoryEntry, Initialize, Leader, SyncState,
};
use howdah::ha::decide;
use howdah::ha::decision::{Job, Step, Why, Write};
use howdah::ha::observation::{
    Acknowledged, Connection, Divergence, JobEnd, JobView, LeaseView, Memory, Observation, Outcome,
    Peer, PeerAnswer, Replication, StandbyNames, Standing, StoreView, Synchronous, Upstream,
};
use howdah::types::{Lsn, MemberName, Moment, PgState, Revision, Role};

use crate::observation;
use crate::postgres::{Pg, Server};
use crate::store::{Dynamic, entries, system_id};
use crate::synchronous::Rule;
use crate::world::{Allowed, Core};

const NODES: usize = 3;
/// The whole search, in events; `HOWDAH_SIM_DEPTH` asks for more.
const DEPTH: usize = 5;
/// Longer than a server's processes need to take up a setting.
const MOMENT: Duration = Duration::from_millis(150);

/// What may still happen from outside.
#[derive(Debug, Clone, Copy)]
struct Budget {
    commits: u8,
    doubts: u8,
    losses: u8,
    connections: u8,
    restarts: u8,
    modes: u8,
    moments: u8,
}

#[derive(Debug, Clone)]
struct Node {
    alive: bool,
    pg: Pg,
    connected: bool,
    set: Option<StandbyNames>,
    divergence: Divergence,
    lease: Option<Moment>,
    memory: Memory,
    finished: Option<(Job, JobEnd)>,
    turn: Option<Box<Observation>>,
}

#[derive(Debug, Clone)]
struct Model {
    now: Moment,
    mode: Synchronous,
    cluster: Cluster,
    revision: u64,
    /// A write that was not answered and may still arrive.
    late: Option<SyncState>,
    nodes: Vec<Node>,
    told: Option<(Pg, u64)>,
    budget: Budget,
    broken: Option<String>,
    /// The last step changed what others can notice.
    noticed: bool,
}

/// How a write to the store goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    /// It happens, and the answer is lost.
    AnswerLost,
    /// It may happen later.
    Late,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Step(usize, Fate),
    Commit,
    Receive(usize),
    Disconnect(usize),
    Connect(usize),
    /// The leader's node dies, and its lease ends.
    LoseLeader,
    /// A dead node comes back; its PostgreSQL is down.
    Revive(usize),
    RestartAgent(usize),
    Arrive,
    Mode(Synchronous),
    Moment,
}

fn name(node: usize) -> MemberName {
    MemberName::new(format!("n{node}")).expect("not empty")
}

fn index(name: &MemberName) -> Option<usize> {
    (0..NODES).find(|node| self::name(*node) == *name)
}

fn upstream(node: usize) -> Upstream {
    Upstream::Member {
        name: name(node),
        conn_url: format!("postgres://{}:5432/postgres", name(node)),
    }
}

const ALLOWED: Allowed = Allowed {
    rewind: true,
    replace: true,
    hand_over: true,
    lag: None,
};
const QUORUM: Synchronous = Synchronous::Quorum {
    strict: false,
    count: 1,
};
const PRIORITY: Synchronous = Synchronous::Priority {
    strict: false,
    count: 1,
};

impl Model {
    /// n0 leads, the others stream from it; the published state and the server's go together.
    fn settled(mode: Synchronous, voters: &[usize], quorum: u32, names: &str) -> Self {
        let mut primary = Pg::empty();
        primary.initdb(1);
        primary.newborn = false;
        primary.names = names.to_owned();
        let names = (!names.is_empty()).then(|| names.to_owned());
        let nodes = (0..NODES)
            .map(|node| {
                let mut pg = primary.clone();
                if node != 0 {
                    pg.copy_of(&primary, upstream(0));
                    (pg.server, pg.recovery, pg.streaming) = (Server::Up, true, true);
                }
                Node {
                    alive: true,
                    pg,
                    connected: node != 0,
                    set: (node == 0).then(|| StandbyNames::Managed(names.clone())),
                    divergence: Divergence::Unchecked,
                    lease: None,
                    memory: Memory::default(),
                    finished: None,
                    turn: None,
                }
            })
            .collect();
        let cluster = Cluster {
            initialize: Initialize::Done(system_id()),
            config: Some(ConfigDocument {
                data: serde_json::Map::new(),
                revision: Revision(1),
            }),
            leader: Some(Leader {
                name: name(0),
                revision: Revision(2),
                session: None,
            }),
            sync: SyncState {
                revision: Some(Revision(3)),
                leader: Some(name(0)),
                quorum,
                standbys: voters.iter().map(|node| name(*node)).collect(),
            },
            ..Cluster::default()
        };
        let now = Moment(Duration::from_secs(1000));
        let mut model = Model {
            now,
            mode,
            cluster,
            revision: 10,
            late: None,
            nodes,
            told: None,
            budget: Budget {
                commits: 2,
                doubts: 1,
                losses: 2,
                connections: 2,
                restarts: 1,
                modes: 1,
                moments: 2,
            },
            broken: None,
            noticed: false,
        };
        model.nodes[0].lease = Some(now);
        // Everybody has looked around once, and the leader's server is no new one.
        for _ in 0..2 {
            for node in 0..NODES {
                while model.step(node, Fate::Answered, decide) {}
            }
            model.now = model.now + Duration::from_secs(4);
            for node in 0..NODES {
                model.nodes[node].lease = model.nodes[node].lease.map(|_| model.now);
            }
        }
        model
    }

    fn primary(&self) -> Option<usize> {
        (0..NODES).find(|node| self.nodes[*node].alive && self.nodes[*node].pg.accepts_writes())
    }

    fn streams(&self, node: usize) -> Option<usize> {
        let n = &self.nodes[node];
        let primary = self.primary()?;
        let follows = matches!(&n.pg.follows, Some(Upstream::Member { name, .. }) if index(name) == Some(primary));
        let fits = n.pg.is_prefix_of(&self.nodes[primary].pg);
        (n.alive
            && n.connected
            && n.pg.server == Server::Up
            && n.pg.recovery
            && follows
            && fits
            && node != primary)
            .then_some(primary)
    }

    fn snapshot(&self) -> Cluster {
        let mut cluster = self.cluster.clone();
        for node in (0..NODES).filter(|node| self.nodes[*node].alive) {
            let n = &self.nodes[node];
            let (role, state) = match (n.pg.server, n.pg.recovery) {
                (Server::Up, false) => (Role::Primary, PgState::Running),
                (Server::Up, true) => (Role::Replica, PgState::Running),
                (Server::Down { .. } | Server::Starting { .. }, _) => {
                    (Role::Replica, PgState::Stopped)
                }
            };
            let member = observation::member(
                &name(node),
                role,
                state,
                n.pg.position().and_then(|position| position.timeline()),
                howdah::cluster::Tags::default(),
                Lsn(n.pg.end),
            );
            cluster.members.insert(name(node), member);
        }
        cluster
    }

    fn replication(&self, node: usize) -> Option<Replication> {
        let pg = &self.nodes[node].pg;
        if pg.server != Server::Up {
            return None;
        }
        let names: Vec<(String, u64)> = (0..NODES)
            .filter(|other| self.streams(*other) == Some(node))
            .map(|other| (name(other).to_string(), self.nodes[other].pg.end))
            .collect();
        let flushed = names.iter().map(|(n, end)| (n.as_str(), *end)).collect();
        let rule = Rule::read(&pg.names);
        let standbys = names
            .iter()
            .map(|(name, end)| Connection {
                name: name.clone(),
                streaming: true,
                standing: rule
                    .as_ref()
                    .map_or(Standing::Async, |rule| rule.standing(name, &flushed)),
                written: Some(Lsn(*end)),
                flushed: Some(Lsn(*end)),
                replayed: Some(Lsn(*end)),
            })
            .collect();
        Some(Replication {
            at: self.now,
            names: pg.names.clone(),
            acknowledged: Acknowledged::Flushed,
            standbys,
        })
    }

    fn observe(&self, node: usize) -> Observation {
        let n = &self.nodes[node];
        let dynamic = Dynamic {
            synchronous: self.mode,
            ..Dynamic::default()
        };
        let mut obs = observation::plain(name(node), self.now, dynamic, ALLOWED);
        obs.store = StoreView::Fresh(self.snapshot());
        obs.lease = self.lease(node);
        obs.job = match &n.finished {
            Some((job, end)) => JobView::Finished {
                job: job.clone(),
                end: end.clone(),
            },
            None => JobView::Idle,
        };
        self.look_at_server(node, &mut obs);
        obs
    }

    fn lease(&self, node: usize) -> Option<LeaseView> {
        self.nodes[node].lease.map(|sent| LeaseView {
            sent,
            expires: sent + Duration::from_secs(10),
        })
    }

    fn look_at_server(&self, node: usize, obs: &mut Observation) {
        let n = &self.nodes[node];
        let mut pg = n.pg.clone();
        pg.streaming = self.streams(node).is_some();
        obs.postgres = observation::server(&pg);
        obs.postgres.role = match (pg.server, pg.recovery) {
            (Server::Up, false) => Role::Primary,
            (Server::Up | Server::Starting { .. }, true) => Role::Replica,
            (Server::Down { .. } | Server::Starting { .. }, _) => Role::Demoted,
        };
        obs.postgres.divergence = n.divergence.clone();
        obs.postgres.standby_names = n.set.clone();
        obs.postgres.replication = self.replication(node);
    }

    /// Clients are told of what is confirmed.
    fn acknowledge(&mut self) {
        let Some(primary) = self.primary() else {
            return;
        };
        let names: Vec<(String, u64)> = (0..NODES)
            .filter(|other| self.streams(*other) == Some(primary))
            .map(|other| (name(other).to_string(), self.nodes[other].pg.end))
            .collect();
        let flushed = names.iter().map(|(n, end)| (n.as_str(), *end)).collect();
        let pg = &self.nodes[primary].pg;
        let confirmed = match Rule::read(&pg.names) {
            None => Some(pg.end),
            Some(rule) => rule.confirmed(&flushed),
        };
        let Some(upto) = confirmed.map(|upto| upto.min(pg.end)) else {
            return;
        };
        match &mut self.told {
            Some((of, told)) if of.history == pg.history => *told = upto.max(*told),
            told => *told = Some((pg.clone(), upto)),
        }
    }

    fn promoted(&mut self, node: usize) {
        if let Some((of, upto)) = &self.told
            && !self.nodes[node].pg.has(&of.history, *upto)
        {
            self.broken = Some(format!(
                "n{node} was promoted at {} without what was acknowledged up to {upto}",
                self.nodes[node].pg.end
            ));
        }
    }

    fn next_revision(&mut self) -> Revision {
        self.revision += 1;
        Revision(self.revision)
    }

    fn store_sync(&mut self, sync: SyncState) -> bool {
        let same = sync.revision == self.cluster.sync.revision;
        if same {
            let revision = Some(self.next_revision());
            self.cluster.sync = SyncState { revision, ..sync };
        }
        same
    }

    /// One step of a node's turn; `false`: the turn is over.
    fn step(&mut self, node: usize, fate: Fate, core: Core) -> bool {
        let mut obs = match self.nodes[node].turn.take() {
            Some(obs) => *obs,
            None => self.observe(node),
        };
        self.nodes[node].finished = None;
        (obs.now, obs.lease) = (self.now, self.lease(node));
        let decision = core(&obs, &self.nodes[node].memory);
        self.nodes[node].memory = decision.memory;
        obs.tried.steps += 1;
        // It waits for this alone, and nothing else happens meanwhile: one event less.
        if decision.why == Why::NamesNotInForce
            && self.nodes[node].pg.names == self.nodes[node].pg.names_on_disk
        {
            self.now = self.now + MOMENT;
            self.nodes[node].turn = Some(Box::new(obs));
            return true;
        }
        if obs.tried.steps > 24 {
            self.broken = Some(format!("the turn of n{node} does not come to rest"));
            return false;
        }
        if !self.act(node, decision.step, fate, &mut obs) {
            return false;
        }
        self.nodes[node].turn = Some(Box::new(obs));
        true
    }

    /// Steps up to one that others can notice, or to the turn's end.
    fn advance(&mut self, node: usize, fate: Fate, core: Core) {
        self.noticed = false;
        while self.step(node, fate, core) && !self.noticed {}
        self.noticed = false;
    }

    fn act(&mut self, node: usize, step: Step, fate: Fate, obs: &mut Observation) -> bool {
        self.noticed = match &step {
            Step::Acquire
            | Step::Adopt
            | Step::Take
            | Step::Release { .. }
            | Step::HandOver { .. }
            | Step::Write(_) => true,
            Step::SetSynchronousNames(_) => self.nodes[node].pg.accepts_writes(),
            _ => false,
        };
        match step {
            Step::Rest | Step::Exit { .. } => return false,
            Step::AskPeers { whom } => {
                obs.peers = Some(
                    whom.into_iter()
                        .map(|asked| Peer {
                            answer: index(&asked.name).and_then(|peer| self.answer(peer)),
                            name: asked.name,
                        })
                        .collect(),
                );
                return true;
            }
            Step::Renew => {
                let mine = self.cluster.is_led_by(&name(node));
                obs.tried.renew = Some(if mine {
                    self.nodes[node].lease = Some(self.now);
                    Outcome::Done
                } else {
                    Outcome::Refused
                });
            }
            Step::Acquire | Step::Adopt | Step::Take => {
                let free = self.cluster.leader.is_none() || self.cluster.is_led_by(&name(node));
                if free {
                    let revision = self.next_revision();
                    self.cluster.leader = Some(Leader {
                        name: name(node),
                        revision,
                        session: None,
                    });
                    self.nodes[node].lease = Some(self.now);
                }
                let outcome = if free {
                    Outcome::Done
                } else {
                    Outcome::Refused
                };
                (obs.tried.acquire, obs.tried.renew) = (Some(outcome), Some(outcome));
            }
            Step::Release { .. } | Step::HandOver { .. } => {
                if self.cluster.is_led_by(&name(node)) {
                    self.cluster.leader = None;
                }
                self.nodes[node].lease = None;
                obs.tried.release = Some(Outcome::Done);
            }
            Step::ForgetLease => self.nodes[node].lease = None,
            Step::Write(write) => obs.tried.write = Some(self.write(node, write, fate)),
            Step::SetSynchronousNames(names) => {
                let text = match &names {
                    StandbyNames::Managed(Some(text)) => text.clone(),
                    StandbyNames::Managed(None) | StandbyNames::Configured => String::new(),
                };
                let n = &mut self.nodes[node];
                (n.pg.names, n.set) = (text.clone(), Some(names));
                n.pg.names_on_disk = text;
                obs.tried.names = Some(Outcome::Done);
                self.look_at_server(node, obs);
            }
            Step::Follow(upstream) => {
                self.nodes[node].pg.follows = Some(upstream);
                self.look_at_server(node, obs);
            }
            Step::Start(job) => {
                self.work(node, &job);
                self.nodes[node].finished = Some((job, JobEnd::Done));
                return false;
            }
            Step::Reload
            | Step::AskFailsafe { .. }
            | Step::CancelJob
            | Step::ResumeReplay
            | Step::ArmWatchdog
            | Step::Answer { .. } => {}
        }
        obs.store = StoreView::Fresh(self.snapshot());
        true
    }

    fn answer(&self, node: usize) -> Option<PeerAnswer> {
        let n = &self.nodes[node];
        let position = n.pg.position().filter(|_| n.alive)?;
        Some(PeerAnswer {
            in_recovery: n.pg.recovery,
            lsn: position.lsn(),
            timeline: position.timeline(),
            tags: howdah::cluster::Tags::default(),
            watchdog_failed: false,
            cannot_serve: false,
            replaying: false,
        })
    }

    fn write(&mut self, node: usize, write: Write, fate: Fate) -> Outcome {
        match write {
            Write::Sync(sync) => match fate {
                Fate::Answered if self.store_sync(sync.clone()) => Outcome::Done,
                Fate::Answered => Outcome::Refused,
                Fate::AnswerLost => {
                    self.store_sync(sync);
                    Outcome::Unknown
                }
                Fate::Late => {
                    self.late = Some(sync);
                    Outcome::Unknown
                }
            },
            Write::History => {
                let mut entries: Vec<HistoryEntry> = entries(&self.nodes[node].pg.history);
                if let Some(last) = entries.last_mut() {
                    last.timestamp = Some("now".to_owned());
                    last.new_leader = Some(name(node));
                }
                self.cluster.history = Some(History { entries });
                Outcome::Done
            }
            Write::DropSync => {
                self.cluster.sync = SyncState::default();
                Outcome::Done
            }
            Write::ClaimInitialize
            | Write::Initialize(_)
            | Write::CancelInitialize
            | Write::WithdrawClaim(_)
            | Write::Config
            | Write::ClearFailover
            | Write::FailoverWithoutLeader
            | Write::Status(_)
            | Write::Failsafe(_) => Outcome::Done,
        }
    }

    /// Jobs end at once: what can happen between is in the random histories.
    fn work(&mut self, node: usize, job: &Job) {
        let now = self.now;
        let branch = self.next_revision().0;
        let pg = &mut self.nodes[node].pg;
        match job {
            Job::Promote => {
                pg.open_timeline(branch);
                self.promoted(node);
            }
            Job::StartPrimary { .. } | Job::Restart { .. } => {
                pg.begin_start(now);
                pg.ready();
            }
            Job::StartStandby { of } | Job::RestartToFollow { of } => {
                (pg.standby_signal, pg.follows) = (true, Some(of.clone()));
                pg.begin_start(now);
                pg.ready();
            }
            Job::Stop { .. } => pg.shut_down(),
            Job::CrashRecovery => pg.shut_down(),
            Job::CheckDivergence { with } => {
                if let Upstream::Member { name, .. } = with
                    && let Some(source) = index(name)
                {
                    let prefix = self.nodes[node].pg.is_prefix_of(&self.nodes[source].pg);
                    self.nodes[node].divergence = if prefix {
                        Divergence::Prefix { of: name.clone() }
                    } else {
                        Divergence::Diverged {
                            from: name.clone(),
                            detail: "forked".to_owned(),
                        }
                    };
                }
            }
            Job::Rewind { from } | Job::Clone { from } | Job::Replace { from, .. } => {
                if let Upstream::Member { name, .. } = from
                    && let Some(source) = index(name)
                {
                    let copy = self.nodes[source].pg.clone();
                    self.nodes[node].pg.copy_of(&copy, from.clone());
                    self.nodes[node].divergence = Divergence::Unchecked;
                }
            }
            Job::Bootstrap | Job::CopySlots { .. } => {}
        }
    }

    /// Everything that may happen next.
    fn events(&self) -> Vec<Event> {
        let (mut events, budget) = (Vec::new(), self.budget);
        for node in 0..NODES {
            let n = &self.nodes[node];
            if !n.alive {
                if budget.losses > 0 {
                    events.push(Event::Revive(node));
                }
                continue;
            }
            events.push(Event::Step(node, Fate::Answered));
            if budget.doubts > 0 {
                events.push(Event::Step(node, Fate::AnswerLost));
                events.push(Event::Step(node, Fate::Late));
            }
            if budget.restarts > 0 && n.turn.is_some() {
                events.push(Event::RestartAgent(node));
            }
            if let Some(primary) = self.streams(node)
                && n.pg.end < self.nodes[primary].pg.end
            {
                events.push(Event::Receive(node));
            }
            if budget.connections > 0 && n.pg.recovery {
                events.push(if n.connected {
                    Event::Disconnect(node)
                } else {
                    Event::Connect(node)
                });
            }
        }
        if budget.commits > 0 && self.primary().is_some() {
            events.push(Event::Commit);
        }
        if budget.losses > 0 && self.cluster.leader.is_some() {
            events.push(Event::LoseLeader);
        }
        if budget.modes > 0 {
            events.push(Event::Mode(if self.mode == QUORUM {
                PRIORITY
            } else {
                QUORUM
            }));
        }
        if self.late.is_some() {
            events.push(Event::Arrive);
        }
        if budget.moments > 0 {
            events.push(Event::Moment);
        }
        events
    }

    /// `false`: the same as something else that may happen.
    fn happen(&mut self, event: Event, core: Core) -> bool {
        match event {
            Event::Step(node, fate) => {
                let (before, late) = (self.cluster.sync.revision, self.late.clone());
                self.advance(node, fate, core);
                if fate != Fate::Answered {
                    if before == self.cluster.sync.revision && late == self.late {
                        return false;
                    }
                    self.budget.doubts -= 1;
                }
            }
            Event::Commit => {
                self.budget.commits -= 1;
                if let Some(primary) = self.primary() {
                    self.nodes[primary].pg.end += 10;
                }
            }
            Event::Receive(node) => {
                if let Some(primary) = self.streams(node) {
                    let from = self.nodes[primary].pg.clone();
                    self.nodes[node].pg.receive(&from, from.end);
                    self.nodes[node].pg.was_primary = false;
                }
            }
            Event::Disconnect(node) => {
                self.budget.connections -= 1;
                self.nodes[node].connected = false;
            }
            Event::Connect(node) => {
                self.budget.connections -= 1;
                self.nodes[node].connected = true;
            }
            Event::LoseLeader => {
                self.budget.losses -= 1;
                let leader = self.cluster.leader.take();
                if let Some(node) = leader.and_then(|leader| index(&leader.name)) {
                    let n = &mut self.nodes[node];
                    n.pg.kill(false);
                    (n.alive, n.lease, n.turn) = (false, None, None);
                }
            }
            Event::Revive(node) => {
                self.budget.losses -= 1;
                let n = &mut self.nodes[node];
                (n.alive, n.connected) = (true, true);
                (n.memory, n.set, n.finished) = (Memory::default(), None, None);
                n.divergence = Divergence::Unchecked;
            }
            Event::RestartAgent(node) => {
                self.budget.restarts -= 1;
                let n = &mut self.nodes[node];
                (n.memory, n.turn, n.lease, n.finished) = (Memory::default(), None, None, None);
                let running = (!n.pg.names.is_empty()).then(|| n.pg.names.clone());
                n.set = Some(StandbyNames::Managed(running));
            }
            Event::Arrive => {
                if let Some(sync) = self.late.take() {
                    self.store_sync(sync);
                }
            }
            Event::Mode(mode) => {
                self.budget.modes -= 1;
                self.mode = mode;
            }
            Event::Moment => {
                self.budget.moments -= 1;
                self.now = self.now + MOMENT;
            }
        }
        self.acknowledge();
        true
    }

    fn fingerprint(&self) -> u64 {
        struct Text(DefaultHasher);
        impl std::fmt::Write for Text {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                self.0.write(text.as_bytes());
                Ok(())
            }
        }
        let mut text = Text(DefaultHasher::new());
        write!(text, "{self:?}").expect("a hasher takes everything");
        text.0.finish()
    }
}

/// Where a broken rule was found.
struct Found {
    what: String,
    path: Vec<Event>,
}

/// Every order of events up to this many of them. Gives the number of states, or the shortest way to a broken rule.
fn search(start: Model, depth: usize, core: Core) -> Result<usize, Found> {
    let mut known = HashSet::from([start.fingerprint()]);
    let mut layer = vec![(start, Vec::new())];
    for _ in 0..depth {
        let mut next = Vec::new();
        for (model, path) in layer {
            for event in model.events() {
                let mut after = model.clone();
                if !after.happen(event, core) {
                    continue;
                }
                let mut path = path.clone();
                path.push(event);
                if let Some(what) = after.broken {
                    return Err(Found { what, path });
                }
                if known.insert(after.fingerprint()) {
                    next.push((after, path));
                }
            }
        }
        layer = next;
    }
    Ok(known.len())
}

fn depth() -> usize {
    crate::number("HOWDAH_SIM_DEPTH")
        .and_then(|depth| usize::try_from(depth).ok())
        .unwrap_or(DEPTH)
}

fn quorum() -> Model {
    Model::settled(QUORUM, &[1, 2], 1, "ANY 1 (n1,n2)")
}

/// A commit was acknowledged because of n1, which then disappeared; n2 is behind, and the leader has begun to do without n1.
fn after_a_commit_on_one() -> Model {
    let mut model = quorum();
    for event in [
        Event::Commit,
        Event::Receive(1),
        Event::Disconnect(1),
        Event::Step(0, Fate::Answered),
    ] {
        model.happen(event, decide);
    }
    model
}

fn priority() -> Model {
    Model::settled(PRIORITY, &[1], 0, "n1")
}

/// The search holds for the real core.
fn holds(start: Model, least: usize) {
    match search(start, depth(), decide) {
        Ok(states) => assert!(states > least, "only {states} states"),
        Err(Found { what, path }) => panic!("{what}: {path:#?}"),
    }
}

#[test]
fn every_order_of_events_in_quorum_mode_keeps_what_was_acknowledged() {
    holds(quorum(), 300);
    holds(after_a_commit_on_one(), 300);
}

#[test]
fn every_order_of_events_in_priority_mode_keeps_what_was_acknowledged() {
    holds(priority(), 300);
}

#[test]
fn the_search_finds_a_leader_without_votes() {
    let mut start = after_a_commit_on_one();
    start.nodes[1].alive = false;
    let found = search(start, DEPTH, crate::planted::leads_without_votes);
    assert!(found.is_err(), "not found");
}

#[test]
fn the_search_finds_an_early_quorum() {
    let found = search(
        after_a_commit_on_one(),
        DEPTH,
        crate::planted::lowers_the_quorum_early,
    );
    assert!(found.is_err(), "not found");
}
