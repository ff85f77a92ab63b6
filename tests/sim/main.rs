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

mod faults;
mod invariants;
mod planted;
mod postgres;
mod rng;
mod store;
mod world;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use world::{Core, World};

/// Seeds of a normal run.
const SEEDS: u64 = 2_000;

/// One worker has found something: the others end.
static STOP: AtomicBool = AtomicBool::new(false);

struct Outcome {
    world: World,
    calm: bool,
}

fn run(seed: u64, core: Core, prepare: impl FnOnce(&mut World)) -> Outcome {
    let (mut world, plan) = World::new(seed, core);
    prepare(&mut world);
    world.run_until(faults::END);
    if world.violation.is_none() {
        invariants::at_the_end(&mut world);
    }
    Outcome {
        world,
        calm: plan.calm,
    }
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

/// Every seed, on both cores of the machine.
#[test]
fn all_seeds_keep_the_rules() {
    let seeds = number("HOWDAH_SIM_SEEDS").unwrap_or(SEEDS);
    let first = number("HOWDAH_SIM_FIRST").unwrap_or(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let workers: Vec<_> = (0..threads)
        .map(|worker| {
            std::thread::spawn(move || {
                let mut reasons = BTreeSet::new();
                let mut calm = 0_u64;
                for seed in (first + worker..first + seeds).step_by(threads as usize) {
                    let outcome = run(seed, howdah::ha::decide, |_| {});
                    if STOP.load(Ordering::Relaxed) {
                        break;
                    }
                    if outcome.world.violation.is_some() {
                        STOP.store(true, Ordering::Relaxed);
                        return Err(explain(seed, &outcome.world));
                    }
                    calm += u64::from(outcome.calm);
                    reasons.extend(outcome.world.reasons);
                }
                Ok((reasons, calm))
            })
        })
        .collect();
    let mut reasons = BTreeSet::new();
    for worker in workers {
        match worker.join().expect("no panic") {
            Ok((seen, _)) => reasons.extend(seen),
            Err(text) => panic!("{text}"),
        }
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
    ] {
        assert!(
            seeds < 500 || reasons.contains(needed),
            "no seed reached {needed}; reached: {reasons:?}"
        );
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
fn planted_unconditional_leader_write_is_found() {
    let found = (0..300).find(|seed| {
        let outcome = run(*seed, howdah::ha::decide, |world| {
            world.store.unconditional = true
        });
        outcome.world.violation.is_some()
    });
    assert!(found.is_some(), "not found");
}
