//! The order of changes held to brute force, and whole lives of a cluster through `decide`: whatever is interrupted where, whoever is
//! elected by the rules has everything that was acknowledged.

use std::collections::BTreeSet;
use std::time::Duration;

use super::plan::{Change, Node, Nodes, Situation, State, Style, next};
use super::*;
use crate::cluster::{ConfigDocument, FailoverRequest, Initialize, Leader, Member, Tags};
use crate::ha::decision::Job;
use crate::ha::observation::*;
use crate::ha::{Decision, decide};
use crate::types::{Moment, Revision, Role, SystemId, Timeline, WallTime};

/// A small generator with a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(bits).unwrap() % bound
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

fn name(index: usize) -> MemberName {
    MemberName::new(format!("Node-{index}")).unwrap()
}

fn nodes(bits: usize) -> Nodes {
    (0..8)
        .filter(|bit| bits & (1 << bit) != 0)
        .map(|bit| Node::from(&name(bit)))
        .collect()
}

/// All subsets of this size.
fn subsets(of: &Nodes, size: usize) -> Vec<Nodes> {
    let all: Vec<&Node> = of.iter().collect();
    (0u32..1 << all.len())
        .filter(|bits| usize::try_from(bits.count_ones()).unwrap() == size)
        .map(|bits| {
            all.iter()
                .enumerate()
                .filter(|(index, _)| bits & (1 << index) != 0)
                .map(|(_, node)| (*node).clone())
                .collect()
        })
        .collect()
}

/// Every set that can acknowledge a commit meets every set that can elect a leader, by trying all of them.
fn meets(state: &State) -> bool {
    let mut electing = state.voters.clone();
    electing.insert(state.leader.clone());
    let acknowledging = subsets(&state.listed, state.needed);
    subsets(&electing, state.quorum + 1).iter().all(|electors| {
        acknowledging.iter().all(|set| {
            electors.contains(&state.me) || electors.iter().any(|node| set.contains(node))
        })
    })
}

fn apply(state: &State, change: &Change) -> State {
    match change {
        Change::Publish { quorum, voters } => State {
            leader: state.me.clone(),
            quorum: *quorum,
            voters: voters.clone(),
            ..state.clone()
        },
        Change::Require { needed, listed } => State {
            needed: *needed,
            listed: listed.clone(),
            ..state.clone()
        },
        Change::Wait | Change::Settled => state.clone(),
    }
}

/// Every state of a primary with three other nodes.
fn every_state() -> Vec<State> {
    let me = Node::from(&name(7));
    let mut states = Vec::new();
    for leader in [7, 0] {
        for (voters, listed) in (0..8).flat_map(|voters| (0..8).map(move |listed| (voters, listed)))
        {
            if leader == 0 && voters & 1 != 0 {
                continue;
            }
            let mut voters = nodes(voters);
            if leader == 0 {
                voters.insert(me.clone());
            }
            let listed = nodes(listed);
            for quorum in 0..voters.len().max(1) {
                for needed in 0..=listed.len() {
                    states.push(State {
                        me: me.clone(),
                        leader: Node::from(&name(leader)),
                        quorum,
                        voters: voters.clone(),
                        needed,
                        listed: listed.clone(),
                    });
                }
            }
        }
    }
    states
}

#[test]
fn the_invariant_is_what_brute_force_says() {
    let mut held = 0;
    for state in every_state() {
        if state.holds() {
            held += 1;
            assert!(meets(&state), "{state:?}");
        } else if state.quorum < state.voters.len() && state.leader == state.me {
            // Nestedness is demanded on top; without it the count alone must be exact.
            let nested =
                state.voters.is_subset(&state.listed) || state.listed.is_subset(&state.voters);
            assert!(!nested || !meets(&state), "{state:?}");
        }
    }
    assert!(held > 100);
}

#[test]
fn every_plan_keeps_the_invariant_and_arrives() {
    let mut plans = 0;
    for state in every_state() {
        for active in 0..8 {
            for wanted in 1..=2 {
                for (style, strict) in [
                    (Style::Quorum, false),
                    (Style::Quorum, true),
                    (Style::Priority, false),
                    (Style::Priority, true),
                ] {
                    let active = nodes(active);
                    if style == Style::Priority && active.len() > wanted {
                        continue;
                    }
                    arrives(&state, &active, wanted, style, strict);
                    plans += 1;
                }
            }
        }
    }
    assert!(plans > 10_000);
}

fn arrives(start: &State, active: &Nodes, wanted: usize, style: Style, strict: bool) {
    let mut situation = Situation {
        state: start.clone(),
        style,
        wanted,
        strict,
        active: active.clone(),
        ready: Nodes::new(),
        reconnecting: false,
    };
    let mut held = start.holds();
    for step in 0.. {
        let change = next(&situation);
        let after = apply(&situation.state, &change);
        // What is broken at the start is mended by the first change and never broken again.
        assert!(after.holds() && meets(&after), "{situation:?} {change:?}");
        held = held || after.holds();
        match &change {
            Change::Require { .. } => situation.ready = Nodes::new(),
            Change::Wait if situation.ready == after.listed => break,
            Change::Wait => situation.ready = after.listed.clone(),
            Change::Settled => break,
            Change::Publish { .. } => {}
        }
        assert_ne!(
            (
                matches!(change, Change::Publish { .. } | Change::Require { .. }),
                &after
            ),
            (true, &situation.state),
            "a change that changes nothing"
        );
        situation.state = after;
        assert!(
            step < 10,
            "does not arrive: {start:?} active {active:?} {style:?}"
        );
    }
    assert!(held);
    let state = &situation.state;
    if active.is_empty() && strict {
        assert!(state.needed >= 1, "{state:?}");
        return;
    }
    let count = match style {
        Style::Priority => active.len(),
        Style::Quorum => wanted.min(active.len()),
    };
    assert_eq!(
        (&state.voters, &state.listed),
        (active, active),
        "{start:?} {style:?}"
    );
    assert_eq!(state.needed, count, "{start:?}");
    assert_eq!(state.quorum, active.len() - count, "{start:?}");
}

// Whole lives.

struct World {
    random: Random,
    now: Moment,
    positions: Vec<u64>,
    /// Connected to the primary.
    streaming: BTreeSet<usize>,
    primary: usize,
    /// What the primary requires, and what was last written there.
    names: String,
    set: Option<StandbyNames>,
    sync: SyncState,
    /// A write that was not answered and has not happened yet.
    delayed: Option<SyncState>,
    acknowledged: u64,
    mode: Synchronous,
    memory: Memory,
    elections: usize,
    /// A random failure after a step.
    faults: bool,
    /// Nobody can be elected any more.
    leaderless: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random::new(seed);
        let count = 2 + random.below(4);
        World {
            now: Moment(Duration::from_secs(1000)),
            positions: vec![10; count],
            streaming: BTreeSet::new(),
            primary: 0,
            names: String::new(),
            set: None,
            sync: SyncState::default(),
            delayed: None,
            acknowledged: 0,
            mode: Synchronous::Quorum {
                strict: false,
                count: 1,
            },
            memory: Memory::default(),
            elections: 0,
            faults: true,
            leaderless: false,
            random,
        }
    }

    fn required(&self) -> (usize, Nodes) {
        required(names::parse(&self.names).as_ref())
    }

    /// What clients have been told after the latest progress.
    fn acknowledge(&mut self) {
        let (needed, listed) = self.required();
        let mut confirmed: Vec<u64> = (0..self.positions.len())
            .filter(|index| {
                listed.contains(&Node::from(&name(*index))) && self.streaming.contains(index)
            })
            .map(|index| self.positions[index])
            .collect();
        confirmed.sort_unstable_by(|a, b| b.cmp(a));
        let all = self.positions[self.primary];
        let told = match needed {
            0 => all,
            n => confirmed.get(n - 1).copied().unwrap_or(0),
        };
        self.acknowledged = self.acknowledged.max(told);
    }

    fn work(&mut self) {
        if !self.random.one_in(3) {
            self.positions[self.primary] += 1;
        }
        for index in 0..self.positions.len() {
            if self.streaming.contains(&index) && self.random.one_in(3) {
                let behind = self.positions[self.primary].saturating_sub(self.positions[index]);
                let step = self.random.below(usize::try_from(behind).unwrap() + 1);
                self.positions[index] += u64::try_from(step).unwrap();
            }
        }
        self.acknowledge();
    }

    fn cluster(&self, leader: Option<usize>) -> Cluster {
        let mut cluster = base_cluster(self.positions.len());
        cluster.leader = leader.map(|index| Leader {
            name: name(index),
            revision: Revision(1),
            session: None,
        });
        cluster.sync = self.sync.clone();
        cluster
    }

    fn observation(&self, me: usize, leader: Option<usize>) -> Observation {
        let mut obs = base_observation(me, self.cluster(leader));
        obs.now = self.now;
        obs.settings.synchronous = self.mode;
        if leader == Some(me) {
            obs.lease = Some(LeaseView {
                sent: self.now,
                expires: self.now + Duration::from_secs(30),
            });
        }
        obs
    }

    fn primary_observation(&self) -> Observation {
        let mut obs = self.observation(self.primary, Some(self.primary));
        let at = Lsn(self.positions[self.primary]);
        let (needed, listed) = self.required();
        let any = self.names.starts_with("ANY");
        obs.postgres.role = Role::Primary;
        obs.postgres.standby_configured = false;
        obs.postgres.position = Some(Position::Primary {
            timeline: Timeline(1),
            lsn: at,
        });
        obs.postgres.standby_names = self.set.clone();
        obs.postgres.replication = Some(Replication {
            at: self.now,
            names: self.names.clone(),
            acknowledged: Acknowledged::Flushed,
            standbys: self
                .streaming
                .iter()
                .map(|index| {
                    let lsn = Some(Lsn(self.positions[*index]));
                    let named = listed.contains(&Node::from(&name(*index)));
                    Connection {
                        name: name(*index).as_str().to_uppercase(),
                        streaming: true,
                        standing: match (named && needed > 0, any) {
                            (true, true) => Standing::Quorum,
                            (true, false) => Standing::Sync,
                            (false, _) => Standing::Async,
                        },
                        written: lsn,
                        flushed: lsn,
                        replayed: lsn,
                    }
                })
                .collect(),
        });
        obs
    }

    fn write(&mut self, sync: SyncState) -> Outcome {
        if sync.revision != self.sync.revision {
            return Outcome::Refused;
        }
        // Before the first one there is no promise to break.
        if self.faults && sync.revision.is_some() && self.random.one_in(8) {
            if self.random.one_in(2) {
                self.store(sync);
            } else {
                self.delayed = Some(sync);
            }
            return Outcome::Unknown;
        }
        self.store(sync);
        Outcome::Done
    }

    fn store(&mut self, mut sync: SyncState) {
        sync.revision = Some(Revision(
            self.sync.revision.map_or(1, |revision| revision.0 + 1),
        ));
        self.sync = sync;
    }

    fn deliver(&mut self) {
        if let Some(sync) = self.delayed.take()
            && sync.revision == self.sync.revision
        {
            self.store(sync);
        }
    }

    /// One turn of the primary; it may die after any step.
    fn turn(&mut self) {
        self.now = self.now + Duration::from_millis(120);
        let mut tried = Tried::default();
        for _ in 0..24 {
            let mut obs = self.primary_observation();
            obs.tried = tried;
            let Decision {
                step, memory, why, ..
            } = decide(&obs, &self.memory);
            self.memory = memory;
            match step {
                Step::Rest => return,
                Step::Renew => tried.renew = Some(Outcome::Done),
                Step::Write(Write::Sync(sync)) => tried.write = Some(self.write(sync)),
                Step::SetSynchronousNames(names) => {
                    assert_eq!(
                        tried.renew,
                        Some(Outcome::Done),
                        "not under a confirmed lease"
                    );
                    let StandbyNames::Managed(text) = &names else {
                        panic!("{names:?}")
                    };
                    self.names = text.clone().unwrap_or_default();
                    self.set = Some(names);
                    tried.names = Some(Outcome::Done);
                }
                other => panic!("{other:?}: {why}"),
            }
            self.check();
            self.work();
            if self.faults && self.random.one_in(6) {
                // The agent is restarted.
                self.memory = Memory::default();
                return;
            }
        }
        panic!("the turn does not end: {:?} {:?}", self.sync, self.names);
    }

    fn check(&self) {
        let (needed, listed) = self.required();
        if let Some(leader) = &self.sync.leader {
            let state = State {
                me: Node::from(&name(self.primary)),
                leader: Node::from(leader),
                quorum: usize::try_from(self.sync.quorum).unwrap(),
                voters: self.sync.standbys.iter().map(Node::from).collect(),
                needed,
                listed,
            };
            let nobody = state.listed.is_empty() && state.needed > 0;
            assert!(nobody || meets(&state), "{state:?}");
        }
    }

    /// The primary is gone; those who can be reached elect. `true`: somebody leads now.
    fn elect(&mut self) -> bool {
        let reachable: Vec<usize> = (0..self.positions.len())
            .filter(|index| {
                if *index == self.primary {
                    self.random.one_in(3)
                } else {
                    !self.random.one_in(4)
                }
            })
            .collect();
        let mut order = reachable.clone();
        for index in (1..order.len()).rev() {
            order.swap(index, self.random.below(index + 1));
        }
        for candidate in order {
            if self.wins(candidate, &reachable) {
                if self.sync.leader.is_none() {
                    // Not synchronous yet.
                    self.acknowledged = self.acknowledged.min(self.positions[candidate]);
                }
                assert!(
                    self.positions[candidate] >= self.acknowledged,
                    "{candidate} of {reachable:?} leads at {} though {} was acknowledged: {:?}, {:?}, {:?}",
                    self.positions[candidate],
                    self.acknowledged,
                    self.sync,
                    self.names,
                    self.positions
                );
                self.elections += 1;
                return self.promote(candidate) || self.elect_again();
            }
        }
        false
    }

    /// The winner died before it was promoted; the old primary has lost its key.
    fn elect_again(&mut self) -> bool {
        for _ in 0..20 {
            if self.elect() {
                return true;
            }
        }
        self.leaderless = true;
        false
    }

    fn standby_observation(&self, me: usize, leader: Option<usize>) -> Observation {
        let mut obs = self.observation(me, leader);
        obs.postgres.position = Some(Position::Standby {
            timeline: Some(Timeline(1)),
            received: Lsn(self.positions[me]),
            replayed: Lsn(self.positions[me]),
            replication: None,
        });
        obs
    }

    fn wins(&mut self, candidate: usize, reachable: &[usize]) -> bool {
        let mut obs = self.standby_observation(candidate, None);
        let mut memory = Memory::default();
        loop {
            let decision = decide(&obs, &memory);
            memory = decision.memory;
            match decision.step {
                Step::Rest => return false,
                Step::Acquire => return true,
                Step::AskPeers { whom } => {
                    obs.peers = Some(
                        whom.into_iter()
                            .map(|asked| {
                                let answer = reachable
                                    .iter()
                                    .find(|index| name(**index) == asked.name)
                                    .map(|index| answer(self.positions[*index]));
                                Peer {
                                    name: asked.name,
                                    answer,
                                }
                            })
                            .collect(),
                    );
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn promote(&mut self, winner: usize) -> bool {
        let mut memory = Memory::default();
        let mut tried = Tried {
            acquire: Some(Outcome::Done),
            renew: Some(Outcome::Done),
            ..Tried::default()
        };
        let mut set = None;
        loop {
            let mut obs = self.standby_observation(winner, Some(winner));
            obs.tried = tried;
            obs.postgres.standby_names = set.clone();
            let decision = decide(&obs, &memory);
            memory = decision.memory;
            match decision.step {
                Step::Write(Write::Sync(sync)) => {
                    assert_eq!(sync.revision, self.sync.revision);
                    self.store(sync);
                    tried.write = Some(Outcome::Done);
                }
                Step::SetSynchronousNames(names) => set = Some(names),
                Step::Start(Job::Promote) => break,
                other => panic!("{other:?}: {}", decision.why),
            }
            if self.random.one_in(8) {
                return false;
            }
        }
        let Some(StandbyNames::Managed(text)) = set.clone() else {
            panic!("{set:?}")
        };
        self.primary = winner;
        self.names = text.unwrap_or_default();
        self.set = set;
        self.memory = Memory::default();
        self.streaming.clear();
        let top = self.positions[winner];
        for position in &mut self.positions {
            *position = (*position).min(top);
        }
        self.acknowledge();
        true
    }

    fn live(&mut self, events: usize) {
        for _ in 0..events {
            if self.leaderless {
                return;
            }
            match self.random.below(12) {
                0 | 1 => {
                    let index = self.random.below(self.positions.len());
                    if index != self.primary {
                        self.streaming.insert(index);
                    }
                }
                2 => {
                    let index = self.random.below(self.positions.len());
                    self.streaming.remove(&index);
                }
                3 => self.deliver(),
                4 if !self.random.one_in(3) => {
                    self.elect();
                }
                5 if self.random.one_in(4) => {
                    let strict = self.random.one_in(2);
                    let count = u32::try_from(1 + self.random.below(2)).unwrap();
                    self.mode = if self.random.one_in(2) {
                        Synchronous::Quorum { strict, count }
                    } else {
                        Synchronous::Priority { strict, count }
                    };
                }
                6 | 7 => self.work(),
                _ => self.turn(),
            }
        }
    }
}

#[test]
fn whoever_is_elected_has_everything_that_was_acknowledged() {
    let mut elections = 0;
    for seed in 0..1500 {
        let mut world = World::new(seed);
        world.turn();
        world.live(150);
        elections += world.elections;
        if world.leaderless {
            continue;
        }
        // Left in peace it arrives.
        world.faults = false;
        world.delayed = None;
        for index in 0..world.positions.len() {
            if index != world.primary {
                world.streaming.insert(index);
            }
        }
        for _ in 0..8 {
            for index in 0..world.positions.len() {
                world.positions[index] = world.positions[world.primary];
            }
            world.turn();
        }
        let others = world.positions.len() - 1;
        let (count, quorum) = match world.mode {
            Synchronous::Priority { count, .. } => (others.min(usize::try_from(count).unwrap()), 0),
            Synchronous::Quorum { count, .. } => (
                others,
                others.saturating_sub(usize::try_from(count).unwrap()),
            ),
            Synchronous::Off => unreachable!(),
        };
        assert_eq!(
            world.sync.standbys.len(),
            count,
            "seed {seed}: {:?}",
            world.sync
        );
        assert_eq!(
            world.sync.quorum,
            u32::try_from(quorum).unwrap(),
            "seed {seed}"
        );
        assert_eq!(
            world.required().1.len(),
            count,
            "seed {seed}: {}",
            world.names
        );
    }
    assert!(elections > 500, "{elections}");
}

/// A primary of three nodes in a settled quorum, its lease just renewed.
fn settled(mode: Synchronous) -> (World, Memory) {
    let mut world = World::new(1);
    world.faults = false;
    world.positions = vec![10; 3];
    world.mode = mode;
    world.streaming = BTreeSet::from([1, 2]);
    for _ in 0..6 {
        world.turn();
        world.positions = vec![10; 3];
    }
    // Standbys of a fresh primary would be waited for.
    world.now = world.now + Duration::from_secs(20);
    let memory = world.memory.clone();
    (world, memory)
}

const QUORUM: Synchronous = Synchronous::Quorum {
    strict: false,
    count: 1,
};
const STRICT: Synchronous = Synchronous::Priority {
    strict: true,
    count: 1,
};

fn whys(world: &mut World, turns: usize) -> Vec<String> {
    let mut said = Vec::new();
    for _ in 0..turns {
        world.now = world.now + Duration::from_millis(120);
        let mut tried = Tried::default();
        loop {
            let mut obs = world.primary_observation();
            obs.tried = tried;
            let decision = decide(&obs, &world.memory);
            world.memory = decision.memory;
            said.push(decision.why.to_string());
            match decision.step {
                Step::Renew => tried.renew = Some(Outcome::Done),
                Step::Write(Write::Sync(sync)) => tried.write = Some(world.write(sync)),
                Step::Write(Write::DropSync) => {
                    world.sync = SyncState::default();
                    tried.write = Some(Outcome::Done);
                }
                Step::SetSynchronousNames(names) => {
                    world.names = match &names {
                        StandbyNames::Managed(text) => text.clone().unwrap_or_default(),
                        StandbyNames::Configured => String::new(),
                    };
                    world.set = Some(names);
                    tried.names = Some(Outcome::Done);
                }
                _ => break,
            }
        }
    }
    said.dedup();
    said
}

#[test]
fn a_quorum_is_built_list_first() {
    let mut world = World::new(1);
    world.faults = false;
    world.positions = vec![10; 3];
    world.mode = QUORUM;
    world.streaming = BTreeSet::from([1, 2]);
    let steady = "no action. I am (Node-0), the leader with the lock";
    assert_eq!(
        whys(&mut world, 4),
        [
            "Enabled synchronous replication",
            "renewing the lock before synchronous_standby_names is changed",
            "Assigning synchronous_standby_names to ANY 1 (\"Node-1\",\"Node-2\")",
            steady,
            "publishing the synchronous standbys: [Node-1, Node-2], quorum 1",
            steady,
        ]
    );
}

#[test]
fn a_lost_voter_is_given_up_only_once_the_other_has_everything() {
    let (mut world, _) = settled(QUORUM);
    world.positions = vec![20, 15, 20];
    world.streaming.remove(&2);
    let steady = "no action. I am (Node-0), the leader with the lock";
    assert_eq!(
        whys(&mut world, 4),
        [
            "renewing the lock before synchronous_standby_names is changed",
            "Assigning synchronous_standby_names to ANY 1 (\"Node-1\")",
            steady,
        ]
    );
    assert_eq!((world.sync.quorum, world.sync.standbys.len()), (1, 2));
    world.positions[1] = 20;
    assert_eq!(
        whys(&mut world, 2),
        [
            "publishing the synchronous standbys: [Node-1], quorum 0",
            steady
        ]
    );
}

#[test]
fn strict_mode_lets_commits_wait() {
    let (mut world, _) = settled(STRICT);
    assert_eq!(world.names, "\"Node-1\"");
    world.streaming.clear();
    assert_eq!(
        whys(&mut world, 2),
        [
            "no active replication connections from members and synchronous_mode_strict is requested; commits are delayed"
        ]
    );
    assert_eq!(world.sync.standbys, [name(1)]);
    assert_eq!(world.names, "\"Node-1\"");
}

#[test]
fn switching_off_takes_the_document_first() {
    let (mut world, _) = settled(STRICT);
    world.mode = Synchronous::Off;
    assert_eq!(
        whys(&mut world, 2)[..3],
        [
            "removing the synchronous state: synchronous mode is off",
            "renewing the lock before synchronous_standby_names is changed",
            "Assigning synchronous_standby_names to the configured value",
        ]
    );
    assert_eq!(
        (world.set, world.sync.leader),
        (Some(StandbyNames::Configured), None)
    );
}

#[test]
fn nothing_is_relaxed_while_the_lease_is_not_confirmed() {
    let (mut world, memory) = settled(QUORUM);
    world.streaming.clear();
    world.now = world.now + Duration::from_secs(1);
    world.sync.standbys.clear();
    world.sync.quorum = 0;
    for outcome in [Outcome::Unknown, Outcome::Refused] {
        let mut obs = world.primary_observation();
        obs.tried.renew = Some(outcome);
        let step = decide(&obs, &memory).step;
        assert!(matches!(step, Step::Rest | Step::ForgetLease), "{step:?}");
    }
}

#[test]
fn an_unanswered_write_is_settled_before_the_list_shrinks() {
    let (mut world, memory) = settled(STRICT);
    let mut obs = world.primary_observation();
    let mut doubtful = memory.clone();
    doubtful.sync_doubt = Some((world.sync.revision, world.now));
    assert_eq!(decide(&obs, &doubtful).why, Why::SettlingSync);
    obs.tried.write = Some(Outcome::Unknown);
    assert_eq!(decide(&obs, &doubtful).step, Step::Rest);
    // Once anything has been written since, it cannot happen any more.
    world.sync.revision = Some(Revision(99));
    assert_eq!(
        decide(&world.primary_observation(), &doubtful).step,
        Step::Rest
    );
}

#[test]
fn a_promotion_waits_for_the_synchronous_state() {
    let (world, _) = settled(STRICT);
    let mut obs = world.standby_observation(1, Some(1));
    obs.tried.acquire = Some(Outcome::Done);
    obs.tried.renew = Some(Outcome::Done);
    let first = decide(&obs, &Memory::default());
    let Step::Write(Write::Sync(sync)) = &first.step else {
        panic!("{first:?}")
    };
    assert_eq!(
        (&sync.leader, &sync.standbys),
        (&Some(name(1)), &vec![name(0)])
    );
    obs.tried.write = Some(Outcome::Refused);
    assert_eq!(decide(&obs, &first.memory).why, Why::PromotionPostponed);
}

#[test]
fn only_synchronous_standbys_race_and_a_quorum_needs_its_votes() {
    let (mut world, _) = settled(STRICT);
    let decided =
        |world: &World, me: usize| decide(&world.standby_observation(me, None), &Memory::default());
    assert_eq!(decided(&world, 2).why, Why::NotSynchronous);
    assert!(world.wins(1, &[1, 2]) && world.wins(0, &[0, 1]));
    // A switchover does not change that, a manual failover does.
    let mut obs = world.standby_observation(2, None);
    let StoreView::Fresh(cluster) = &mut obs.store else {
        panic!()
    };
    cluster.failover = Some(FailoverRequest {
        revision: Revision(5),
        leader: Some(name(0)),
        candidate: Some(name(2)),
        scheduled_at: None,
    });
    assert_eq!(decide(&obs, &Memory::default()).why, Why::NotSynchronous);
    if let StoreView::Fresh(cluster) = &mut obs.store
        && let Some(request) = &mut cluster.failover
    {
        request.leader = None;
    }
    assert_eq!(decide(&obs, &Memory::default()).step, Step::Acquire);

    let (mut world, _) = settled(QUORUM);
    assert!(!world.wins(1, &[1]) && world.wins(1, &[1, 2]) && world.wins(0, &[0]));
    world.positions[2] += 1;
    assert!(!world.wins(1, &[1, 2]) && world.wins(2, &[1, 2]));
}

#[test]
fn a_voter_that_never_leads_votes() {
    let (world, _) = settled(QUORUM);
    let mut obs = world.standby_observation(1, None);
    let StoreView::Fresh(cluster) = &mut obs.store else {
        panic!()
    };
    let tags = Tags {
        nofailover: Some(true),
        ..Tags::default()
    };
    cluster.members.get_mut(&name(2)).unwrap().tags = tags.clone();
    let asked = decide(&obs, &Memory::default());
    let Step::AskPeers { whom } = &asked.step else {
        panic!("{asked:?}")
    };
    obs.peers = Some(
        whom.iter()
            .map(|asked| Peer {
                name: asked.name.clone(),
                answer: (asked.name == name(2)).then(|| PeerAnswer {
                    tags: tags.clone(),
                    ..answer(10)
                }),
            })
            .collect(),
    );
    assert_eq!(decide(&obs, &asked.memory).step, Step::Acquire);
    obs.peers = None;
    let peers = whom
        .iter()
        .map(|asked| Peer {
            name: asked.name.clone(),
            answer: None,
        })
        .collect();
    obs.peers = Some(peers);
    assert_eq!(
        decide(&obs, &asked.memory).why,
        Why::TooFewVotes {
            votes: 0,
            needed: 1
        }
    );
}

#[test]
fn a_standby_asks_to_be_released_before_it_stops() {
    let (world, _) = settled(STRICT);
    let mut obs = world.standby_observation(1, Some(0));
    obs.stopping = true;
    let asked = decide(&obs, &Memory::default());
    assert_eq!(
        (asked.step, asked.why),
        (Step::Rest, Why::LeavingSynchronousDuty)
    );
    assert!(asked.memory.leaves_synchronous_duty());
    // Released, or out of patience, it stops.
    let mut released = obs.clone();
    if let StoreView::Fresh(cluster) = &mut released.store {
        cluster.sync.standbys = vec![name(2)];
    }
    assert_eq!(decide(&released, &asked.memory).why, Why::ShuttingDown);
    obs.now = obs.now + Duration::from_secs(20);
    assert_eq!(decide(&obs, &asked.memory).why, Why::ShuttingDown);
}

#[test]
fn duty_is_for_direct_willing_and_close_standbys() {
    let mut cluster = base_cluster(6);
    let tag = |cluster: &mut Cluster, index: usize, change: fn(&mut Tags)| {
        change(&mut cluster.members.get_mut(&name(index)).unwrap().tags);
    };
    tag(&mut cluster, 1, |tags| tags.nofailover = Some(true));
    tag(&mut cluster, 2, |tags| tags.sync_priority = Some(5));
    tag(&mut cluster, 3, |tags| tags.nosync = Some(true));
    tag(&mut cluster, 4, |tags| tags.replicatefrom = Some(name(2)));
    let connection = |index: usize, lsn: u64, standing| Connection {
        name: name(index).as_str().to_lowercase(),
        streaming: true,
        standing,
        written: Some(Lsn(lsn)),
        flushed: Some(Lsn(lsn)),
        replayed: Some(Lsn(lsn)),
    };
    let replication = Replication {
        at: Moment(Duration::ZERO),
        names: String::new(),
        acknowledged: Acknowledged::Flushed,
        standbys: vec![
            connection(1, 100, Standing::Sync),
            connection(2, 90, Standing::Async),
            connection(3, 100, Standing::Async),
            connection(4, 100, Standing::Async),
            connection(5, 10, Standing::Potential),
        ],
    };
    let found = |lag| candidates::candidates(&name(0), &cluster, &replication, Lsn(100), lag);
    let order = |lag| -> Vec<MemberName> {
        found(lag)
            .into_iter()
            .map(|found| found.node.name)
            .collect()
    };
    assert_eq!(order(None), [name(2), name(5), name(1)]);
    assert_eq!(order(Some(20)), [name(2), name(1)]);
    let all = |count| candidates::all(&found(None), count).len();
    assert_eq!((all(1), all(2), all(3)), (2, 2, 3));
    assert_eq!(candidates::picked(&found(None), 1).len(), 1);
}

#[test]
fn a_primary_is_started_again_with_what_goes_with_the_published_state() {
    let (world, _) = settled(QUORUM);
    let mut obs = world.primary_observation();
    obs.postgres.process = Process::Down { crashed: true };
    obs.postgres.position = None;
    obs.postgres.replication = None;
    obs.postgres.directory = Directory::Present {
        system_id: Some("7000000000000000001".parse::<SystemId>().unwrap()),
        control: Some(Control {
            state: ControlState::InProduction,
            timeline: Timeline(1),
            checkpoint: Lsn(1),
            backup_label: false,
        }),
    };
    let kept = decide(&obs, &Memory::default());
    assert!(
        matches!(kept.step, Step::Start(Job::StartPrimary { .. })),
        "{kept:?}"
    );
    obs.postgres.standby_names = None;
    let names = "ANY 1 (\"Node-1\",\"Node-2\")".to_owned();
    assert_eq!(
        decide(&obs, &Memory::default()).step,
        Step::SetSynchronousNames(StandbyNames::Managed(Some(names)))
    );
}

fn answer(lsn: u64) -> PeerAnswer {
    PeerAnswer {
        in_recovery: true,
        lsn: Lsn(lsn),
        timeline: Some(Timeline(1)),
        tags: Tags::default(),
        watchdog_failed: false,
        cannot_serve: false,
        replaying: false,
    }
}

fn member(index: usize) -> Member {
    Member {
        name: name(index),
        session: None,
        conn_url: Some(format!("postgres://host{index}:5432/postgres")),
        api_url: Some(format!("http://host{index}:8008/patroni")),
        state: Some(PgState::Running),
        role: Some(Role::Replica),
        version: None,
        proxy_url: None,
        checkpoint_after_promote: true,
        tags: Tags::default(),
        pending_restart: None,
        xlog_location: None,
        replay_lsn: None,
        receive_lsn: None,
        replication_state: None,
        timeline: Some(Timeline(1)),
        scheduled_restart: None,
        pause: false,
        cannot_serve: None,
    }
}

fn base_cluster(count: usize) -> Cluster {
    Cluster {
        initialize: Initialize::Done("7000000000000000001".parse::<SystemId>().unwrap()),
        config: Some(ConfigDocument {
            data: Default::default(),
            revision: Revision(1),
        }),
        members: (0..count)
            .map(|index| (name(index), member(index)))
            .collect(),
        ..Cluster::default()
    }
}

fn base_observation(me: usize, cluster: Cluster) -> Observation {
    Observation {
        me: name(me),
        now: Moment(Duration::from_secs(1000)),
        wall: WallTime(0),
        settings: Settings {
            ttl: Duration::from_secs(30),
            loop_wait: Duration::from_secs(10),
            retry_timeout: Duration::from_secs(10),
            maximum_lag_on_failover: 1 << 40,
            maximum_lag_on_syncnode: None,
            primary_start_timeout: Duration::from_secs(300),
            primary_stop_timeout: Duration::ZERO,
            primary_answer_timeout: Duration::from_secs(120),
            primary_race_backoff: Duration::ZERO,
            check_timeline: false,
            pause: false,
            synchronous: Synchronous::Off,
            failsafe: false,
            isolation_hold: false,
            max_timelines_history: 0,
            standby_cluster: None,
            may_bootstrap: true,
            may_rewind: true,
            may_replace_diverged: false,
            may_replace_unrewindable: false,
            may_clone_without_leader: false,
            watchdog_required: false,
            use_slots: true,
            hand_over: true,
            stop_margin: Duration::from_secs(5),
        },
        tags: Tags::default(),
        store: StoreView::Fresh(cluster),
        lease: None,
        tried: Tried::default(),
        postgres: Local {
            directory: Directory::Present {
                system_id: Some("7000000000000000001".parse::<SystemId>().unwrap()),
                control: None,
            },
            process: Process::Up,
            role: Role::Replica,
            state: PgState::Running,
            version: Some(PgVersion(150_000)),
            standby_configured: true,
            position: None,
            follows: None,
            divergence: Divergence::Unchecked,
            replay_paused: false,
            standby_names: None,
            missing_slots: Vec::new(),
            replication: None,
        },
        job: JobView::Idle,
        peers: None,
        watchdog: WatchdogView {
            armed: true,
            usable: true,
        },
        requests: Vec::new(),
        stopping: false,
        failsafe: crate::ha::observation::FailsafeView::default(),
        heard: crate::ha::observation::Heard::default(),
        agent_since: Moment(Duration::ZERO),
        ailment: None,
    }
}
