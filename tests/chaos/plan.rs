//! What will happen: faults drawn from a seed, without knowing yet who leads.

use std::time::Duration;

use crate::rng::Rng;

/// What commits wait for in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Priority,
    Quorum,
    Asynchronous,
}

impl Mode {
    /// The value of `synchronous_mode`.
    pub(crate) fn setting(self) -> &'static str {
        match self {
            Mode::Priority => "on",
            Mode::Quorum => "quorum",
            Mode::Asynchronous => "off",
        }
    }

    /// Whether everything acknowledged must be kept.
    pub(crate) fn promises(self) -> bool {
        self != Mode::Asynchronous
    }
}

/// One way of harming a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harm {
    AgentKilled,
    AgentFrozen,
    PostmasterKilled,
    PostmasterFrozen,
    ContainerKilled,
    ContainerStopped,
    ContainerPaused,
    /// From members and store; clients still reach it, so that a primary that goes on would be seen.
    NodeCut,
    /// From everybody.
    NodeCutAndUnseen,
    StoreCut,
    PeersCut,
    DiskFull,
    StoreServerKilled,
    StoreServerPaused,
    StoreMajorityKilled,
    StoreRestarted,
    StorePaused,
}

use Harm::{
    AgentFrozen, AgentKilled, ContainerKilled, ContainerPaused, ContainerStopped, DiskFull,
    NodeCut, NodeCutAndUnseen, PeersCut, PostmasterFrozen, PostmasterKilled, StoreCut,
    StoreMajorityKilled, StorePaused, StoreRestarted, StoreServerKilled, StoreServerPaused,
};

/// What every run begins with, so that the short form has seen each kind of trouble.
const FIRST: [Harm; 9] = [
    AgentKilled,
    AgentFrozen,
    PostmasterKilled,
    ContainerKilled,
    ContainerPaused,
    NodeCut,
    StoreCut,
    StoreRestarted,
    DiskFull,
];
const THEN: [Harm; 8] = [
    PostmasterFrozen,
    ContainerStopped,
    NodeCutAndUnseen,
    PeersCut,
    StoreServerKilled,
    StoreServerPaused,
    StoreMajorityKilled,
    StorePaused,
];

impl Harm {
    pub(crate) fn name(self) -> &'static str {
        match self {
            AgentKilled => "agent killed",
            AgentFrozen => "agent stopped (SIGSTOP)",
            PostmasterKilled => "postmaster killed",
            PostmasterFrozen => "postmaster stopped (SIGSTOP)",
            ContainerKilled => "container killed",
            ContainerStopped => "container shut down",
            ContainerPaused => "container paused",
            NodeCut => "node cut off, clients reach it",
            NodeCutAndUnseen => "node cut off",
            StoreCut => "node cut off from the store",
            PeersCut => "node cut off from the members",
            DiskFull => "disk full",
            StoreServerKilled => "store: one of three killed",
            StoreServerPaused => "store: one of three paused",
            StoreMajorityKilled => "store: two of three killed",
            StoreRestarted => "store: all restarted",
            StorePaused => "store: all paused",
        }
    }

    /// It strikes a member, and not the store.
    pub(crate) fn strikes_a_member(self) -> bool {
        !matches!(
            self,
            StoreServerKilled
                | StoreServerPaused
                | StoreMajorityKilled
                | StoreRestarted
                | StorePaused
        )
    }

    /// What it leaves frozen runs on for a moment after the thaw, whatever has been agreed meanwhile.
    pub(crate) fn thaws(self) -> bool {
        self == ContainerPaused
    }

    /// There is nothing to heal: what was killed is to come back by itself.
    fn is_over_at_once(self) -> bool {
        matches!(self, AgentKilled | PostmasterKilled | StoreRestarted)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Leader,
    /// The first or second of the others, by name.
    Standby(usize),
    /// The store, or the server of it with this number.
    Store(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) harm: Harm,
    pub(crate) target: Target,
    /// From the beginning of the round.
    pub(crate) begins: Duration,
    pub(crate) lasts: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) mode: Mode,
    pub(crate) faults: Vec<Fault>,
}

/// Deals rounds without end: every kind of fault once before any comes again.
pub(crate) struct Plan {
    rng: Rng,
    only: String,
    deck: Vec<Harm>,
    modes: Vec<Mode>,
    dealt: usize,
}

/// Changing the mode is part of the trial, but not of every round.
const ROUNDS_PER_MODE: usize = 4;

impl Plan {
    /// `only`: keeps to faults whose name has this in it.
    pub(crate) fn new(seed: u64, only: &str) -> Plan {
        let mut rng = Rng::new(seed);
        let mut modes = vec![Mode::Priority, Mode::Quorum];
        shuffle(&mut rng, &mut modes);
        modes.push(Mode::Asynchronous);
        Plan {
            rng,
            only: only.to_owned(),
            deck: Vec::new(),
            modes,
            dealt: 0,
        }
    }

    /// The mode in which a run begins.
    pub(crate) fn first_mode(&self) -> Mode {
        self.modes[0]
    }

    pub(crate) fn next(&mut self) -> Round {
        let mode = self.modes[self.dealt / ROUNDS_PER_MODE % self.modes.len()];
        let is_settled = self.dealt >= FIRST.len();
        self.dealt += 1;
        let mut faults = vec![self.fault()];
        if is_settled && self.rng.per_mille(300) {
            let second = self.fault();
            // Two faults of one thing would be one.
            if second.target != faults[0].target
                && (faults[0].harm.strikes_a_member() || second.harm.strikes_a_member())
            {
                faults.push(Fault {
                    begins: Duration::from_millis(self.rng.below(3000)),
                    ..second
                });
            }
        }
        Round { mode, faults }
    }

    fn fault(&mut self) -> Fault {
        let harm = self.draw();
        let target = if !harm.strikes_a_member() {
            Target::Store(self.rng.below(3) as usize)
        } else if self.rng.per_mille(650) {
            Target::Leader
        } else {
            Target::Standby(self.rng.below(2) as usize)
        };
        let lasts = match harm.is_over_at_once() {
            true => 3000,
            false => self.rng.between(6000, 12_000),
        };
        Fault {
            harm,
            target,
            begins: Duration::ZERO,
            lasts: Duration::from_millis(lasts),
        }
    }

    fn draw(&mut self) -> Harm {
        loop {
            let Some(harm) = self.deck.pop() else {
                self.deck = THEN.to_vec();
                shuffle(&mut self.rng, &mut self.deck);
                let mut first = FIRST.to_vec();
                shuffle(&mut self.rng, &mut first);
                self.deck.append(&mut first);
                assert!(
                    self.deck
                        .iter()
                        .any(|harm| harm.name().contains(&self.only)),
                    "no fault has {} in its name",
                    self.only
                );
                continue;
            };
            if harm.name().contains(&self.only) {
                return harm;
            }
        }
    }
}

fn shuffle<T>(rng: &mut Rng, cards: &mut [T]) {
    for last in (1..cards.len()).rev() {
        let other = rng.below(last as u64 + 1) as usize;
        cards.swap(last, other);
    }
}

#[test]
fn a_seed_deals_the_same_rounds_and_every_harm() {
    let rounds = |seed| {
        let mut plan = Plan::new(seed, "");
        (0..60).map(|_| plan.next()).collect::<Vec<_>>()
    };
    assert_eq!(rounds(7), rounds(7));
    assert_ne!(rounds(7), rounds(8));
    let dealt = rounds(7);
    let first: Vec<Harm> = dealt[..FIRST.len()]
        .iter()
        .map(|round| round.faults[0].harm)
        .collect();
    assert!(FIRST.iter().all(|harm| first.contains(harm)), "{first:?}");
    let all: Vec<Harm> = dealt
        .iter()
        .flat_map(|round| round.faults.iter().map(|fault| fault.harm))
        .collect();
    assert!(THEN.iter().all(|harm| all.contains(harm)), "{all:?}");
    assert!(dealt.iter().any(|round| round.faults.len() == 2));
    assert!(dealt.iter().any(|round| round.mode == Mode::Asynchronous));
}
