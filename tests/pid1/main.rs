//! PID 1 under test: the real `init::run` over small agents, in a PID namespace of its own and as a plain subreaper.
//!
//! The binary plays all parts, by its first argument: `init` and `agent`; without one it runs the stories.

#![allow(
    missing_docs,
    reason = "a test program has no readers of its interface"
)]
#![allow(clippy::print_stdout, reason = "this program is its own test runner")]
#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed story")]

mod agent;
mod stage;
mod stories;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("init") => stage::play_init(&args[2..]),
        Some("agent") => agent::play(&args[2..]),
        // `cargo test NAME` passes a filter; options of the standard harness mean nothing here.
        filter => run(filter.filter(|word| !word.starts_with('-')).unwrap_or("")),
    }
}

fn run(filter: &str) -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    for (name, story) in stories::ALL
        .iter()
        .filter(|(name, _)| name.contains(filter))
    {
        for stage in [stage::Kind::Namespace, stage::Kind::Subreaper] {
            let result = std::panic::catch_unwind(|| story(stage));
            println!(
                "test {name} ({stage:?}) ... {}",
                if result.is_ok() { "ok" } else { "FAILED" }
            );
            if result.is_ok() {
                passed += 1;
            } else {
                failed += 1;
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out"
    );
    ExitCode::from(u8::from(failed > 0))
}
