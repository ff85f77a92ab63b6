//! Real containers, harmed at random under a recording client; `make chaos MINUTES=…`, and for three minutes in `make test`.
//!
//! Three members over three etcd servers. Each round draws a fault, sometimes two, harms, heals, and waits until everything is well
//! again; then nothing that was acknowledged in a synchronous mode may be missing on any member, no member may have a row that
//! the primary lacks, and no two nodes may have taken writes in overlapping time.
//!
//! HOWDAH_CHAOS_MINUTES says how long, HOWDAH_CHAOS_SEED draws the faults of an earlier run again (their timing is never quite the
//! same), HOWDAH_CHAOS_ONLY=disk keeps to faults with that word. A run that fails leaves the logs of all containers in a
//! temporary directory and says where.

#![allow(
    missing_docs,
    reason = "a test program has no readers of its interface"
)]
#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed run")]
#![allow(
    clippy::print_stdout,
    reason = "the rounds and the table are the output"
)]
#![allow(dead_code, reason = "shares the harness of the stories, not all of it")]

#[path = "../containers/client.rs"]
mod client;
#[path = "../containers/cluster.rs"]
mod cluster;
#[path = "../containers/docker.rs"]
mod docker;
#[path = "../sim/rng.rs"]
mod rng;

mod field;
mod harm;
mod judge;
mod plan;
mod recorder;
mod rounds;
mod summary;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use howdah::clock;

use field::Field;
use rounds::Run;

#[test]
fn the_cluster_survives_random_faults() {
    let minutes: f64 = setting("HOWDAH_CHAOS_MINUTES", 2.5);
    let seed: u64 = setting(
        "HOWDAH_CHAOS_SEED",
        clock::wall().0.unsigned_abs() % 1_000_000,
    );
    println!(
        "chaos: {minutes} minutes of {}, HOWDAH_CHAOS_SEED={seed}",
        docker::image()
    );
    let field = Field::start(minutes);
    let mut run = Run::new(&field, seed);
    let end = clock::now() + Duration::from_secs_f64(minutes * 60.0);
    let result = catch_unwind(AssertUnwindSafe(|| run.until(end)));
    let verdict = match &result {
        Ok(verdict) => verdict.clone(),
        Err(_) => Err("the run itself broke off".to_owned()),
    };
    println!("\n{}", run.summary());
    if let Err(fault) = &verdict {
        let kept = run.keep(fault);
        println!(
            "chaos: FAILED with HOWDAH_CHAOS_SEED={seed}: {fault}\nchaos: logs are in {}",
            kept.display()
        );
    }
    if let Err(panic) = result {
        resume_unwind(panic);
    }
    assert!(verdict.is_ok(), "seed {seed}: {}", verdict.unwrap_err());
}

/// A setting of the environment; one that cannot be read is a mistake worth stopping for.
fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    let Some(text) = docker::setting(name) else {
        return default;
    };
    text.parse()
        .unwrap_or_else(|_| panic!("{name}={text} is not a number"))
}
