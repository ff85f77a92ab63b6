//! Whole clusters of the real decision core over a simulated store, network, clock and PostgreSQL.
//!
//! A seed decides everything: the cluster, the faults, every delay. The first part of a run has faults, the second has none; the
//! rules in `invariants` hold throughout, and at the end there is a leader that everybody follows. `HOWDAH_SIM_SEEDS` sets the
//! number of seeds, `HOWDAH_SIM_SEED` runs one and prints its history.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests"
)]

mod catalogue;
mod clock;
mod exhaustive;
mod failsafe;
mod faults;
mod invariants;
mod observation;
mod planted;
mod postgres;
mod rng;
mod store;
mod synchronous;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use world::{Core, World};

/// Seeds of a run without a number; `make test` asks for more, of the optimised build.
const SEEDS: u64 = 300;

/// A worker that has found so many broken rules ends.
const BROKEN_MAX: usize = 40;

struct Outcome {
    world: World,
}

fn run(seed: u64, core: Core, prepare: impl FnOnce(&mut World)) -> Outcome {
    let mut world = World::new(seed, core);
    prepare(&mut world);
    world.run_until(faults::END);
    if world.violation.is_none() {
        invariants::at_the_end(&mut world);
    }
    Outcome { world }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn explain(seed: u64, world: &World) -> String {
    let violation = world
        .violation
        .as_ref()
        .map_or_else(String::new, |v| format!("{}: {}", v.rule, v.detail));
    let tail = world.trace.len().saturating_sub(160);
    format!(
        "seed {seed} broke a rule\n{}\n\n{violation}\nagain: HOWDAH_SIM_SEED={seed} cargo test --test sim one_seed -- --nocapture",
        world.trace[tail..].join("\n")
    )
}

/// What a worker saw over its seeds.
#[derive(Default)]
struct Seen {
    reasons: BTreeSet<String>,
    broken: BTreeMap<u64, String>,
}

/// Every seed, on all cores of the machine.
#[test]
fn all_seeds_keep_the_rules() {
    let seeds = number("HOWDAH_SIM_SEEDS").unwrap_or(SEEDS);
    let first = number("HOWDAH_SIM_FIRST").unwrap_or(0);
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let seen = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| work(&next, first + seeds)))
            .collect();
        workers
            .into_iter()
            .fold(Seen::default(), |mut all, worker| {
                let one = worker.join().expect("no panic");
                all.reasons.extend(one.reasons);
                all.broken.extend(one.broken);
                all
            })
    });
    if let Some(seed) = seen.broken.keys().next() {
        let list: Vec<String> = seen
            .broken
            .iter()
            .map(|(seed, what)| format!("{seed}: {what}"))
            .collect();
        panic!(
            "{}\n\n{} of {seeds} seeds broke a rule:\n{}",
            explain(*seed, &run(*seed, howdah::ha::decide, |_| {}).world),
            list.len(),
            list.join("\n")
        );
    }
    // A simulator that no longer reaches the interesting branches proves nothing.
    for needed in [
        "RestartingInPlace",
        "HandingOver",
        "Rewinding",
        "Recloning",
        "PeerAhead",
        "LeaseEnds",
        "Comparing",
        "PublishingSync",
        "SettlingSync",
        "TooFewVotes",
        "NotSynchronous",
        "CommitsWait",
        "PromotionPostponed",
        "RequestRefused",
        "BecameStandbyCluster",
        "LeadingStandbyCluster",
        "FailsafeLeading",
        "FailsafeRefused",
        "BoundByFailsafe",
        "FailsafeTakesKeyBack",
        "FailsafeUncertain",
        "NotInFailsafe",
    ] {
        assert!(
            seeds < 300 || seen.reasons.contains(needed),
            "no seed reached {needed}; reached: {:?}",
            seen.reasons
        );
    }
}

fn work(next: &AtomicU64, end: u64) -> Seen {
    let mut seen = Seen::default();
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end || seen.broken.len() >= BROKEN_MAX {
            return seen;
        }
        let world = run(seed, howdah::ha::decide, |_| {}).world;
        if let Some(violation) = &world.violation {
            let what = format!("{}: {}", violation.rule, violation.detail);
            seen.broken.insert(seed, what.chars().take(220).collect());
        }
        seen.reasons.extend(world.reasons);
    }
}

/// One seed with its history, by hand.
#[test]
fn one_seed() {
    let seed = number("HOWDAH_SIM_SEED").unwrap_or(1);
    let outcome = run(seed, howdah::ha::decide, |_| {});
    if number("HOWDAH_SIM_SEED").is_some() {
        for line in &outcome.world.trace {
            println!("{line}");
        }
    }
    assert!(
        outcome.world.violation.is_none(),
        "{}",
        explain(seed, &outcome.world)
    );
}

/// The same seed gives the same history.
#[test]
fn a_seed_is_reproducible() {
    for seed in 0..5 {
        let (one, two) = (
            run(seed, howdah::ha::decide, |_| {}),
            run(seed, howdah::ha::decide, |_| {}),
        );
        assert_eq!(one.world.trace, two.world.trace, "seed {seed}");
    }
}

/// A planted fault is found when it breaks a rule in a history in which the real core, under the same conditions, keeps them all.
fn is_found(name: &str, within: u64, core: Core, prepare: fn(&mut World)) {
    let broken = |seed, core| run(seed, core, prepare).world.violation.is_some();
    let found = (0..within).find(|seed| broken(*seed, core) && !broken(*seed, howdah::ha::decide));
    assert!(found.is_some(), "{name}: not found within {within} seeds");
}

#[test]
fn planted_endless_lease_is_found() {
    is_found("endless lease", 300, planted::endless_lease, |world| {
        world.core_alone = true
    });
}

#[test]
fn planted_asks_nobody_is_found() {
    is_found("asks nobody", 500, planted::asks_nobody, |_| {});
}

#[test]
fn planted_compares_nothing_is_found() {
    is_found("compares nothing", 300, planted::compares_nothing, |_| {});
}

#[test]
fn planted_promotion_without_the_key_is_found() {
    is_found(
        "promotes without the key",
        500,
        planted::promotes_without_the_key,
        |world| world.core_alone = true,
    );
}

#[test]
fn planted_early_release_is_found() {
    is_found("releases early", 100, planted::releases_early, |_| {});
}

#[test]
fn planted_ignored_leader_is_found() {
    is_found(
        "ignores the other leader",
        300,
        planted::ignores_the_other_leader,
        |_| {},
    );
}

#[test]
fn planted_restart_in_place_is_found() {
    is_found("restarts in place", 300, planted::restarts_in_place, |_| {});
}

#[test]
fn planted_unconditional_writes_are_found() {
    let found = (0..300).find(|seed| {
        let outcome = run(*seed, howdah::ha::decide, |world| {
            world.store.unconditional = true
        });
        let violation = outcome.world.violation;
        violation.is_some_and(|violation| violation.rule == "S5 compare and set")
    });
    assert!(found.is_some(), "not found");
}

/// Found as the loss of an acknowledged commit.
fn is_found_as(rule: &str, within: u64, core: Core, prepare: fn(&mut World)) {
    let broken = |seed, core| run(seed, core, prepare).world.violation;
    let found = (0..within).find(|seed| {
        broken(*seed, core).is_some_and(|violation| violation.rule.starts_with(rule))
            && broken(*seed, howdah::ha::decide).is_none()
    });
    assert!(found.is_some(), "{rule}: not found within {within} seeds");
}

#[test]
fn planted_relaxed_names_are_found() {
    is_found_as("S2", 1000, planted::relaxes_without_the_store, |_| {});
}

#[test]
fn planted_leader_without_votes_is_found() {
    is_found_as("S2", 500, planted::leads_without_votes, |_| {});
}

#[test]
fn planted_cancelled_commits_are_found() {
    let found = (0..1000).find(|seed| {
        let outcome = run(*seed, howdah::ha::decide, |world| {
            world.cancels_waiting = true
        });
        let violation = outcome.world.violation;
        violation.is_some_and(|violation| violation.rule.starts_with("S2"))
    });
    assert!(found.is_some(), "not found");
}

#[test]
fn planted_replacement_is_found() {
    is_found_as("S4", 300, planted::replaces_regardless, |_| {});
}

#[test]
fn planted_idleness_is_found() {
    is_found_as("S6", 100, planted::never_races, |_| {});
}

#[test]
fn planted_disregard_of_pause_is_found() {
    is_found_as("pause", 300, planted::ignores_the_pause, |_| {});
}

#[test]
fn planted_majority_in_failsafe_mode_is_found() {
    is_found_as("S1", 100, planted::asks_a_majority, |_| {});
}

#[test]
fn planted_forgotten_word_is_found() {
    is_found_as("S1", 500, planted::forgets_its_word, |_| {});
}
