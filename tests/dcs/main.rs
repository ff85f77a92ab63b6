//! One suite for every store: `cargo test --test dcs [filter]`, the filter matching `store case` (`"etcd3 renew"`).
//!
//! To register a store: a file beside this one with a `Backend`, and a line in `backends`. Each case gets a cluster of its own,
//! many cases of all stores run at the same time, and a table store × case ends the run. A store whose server cannot be started is
//! reported as "not run", which is a failure.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, and the line says where"
)]

#[cfg(feature = "consul")]
mod consul;
#[cfg(feature = "consul")]
mod consul_server;
#[cfg(all(feature = "etcd", feature = "etcd3"))]
mod etcd;
#[cfg(feature = "etcd3")]
mod etcd3;
#[cfg(feature = "etcd3")]
mod etcd_server;
mod harness;
mod memory;
#[cfg(any(feature = "consul", feature = "etcd3", feature = "zookeeper"))]
mod proxy;
#[cfg(feature = "raft")]
mod raft;
#[cfg(any(feature = "consul", feature = "etcd3", feature = "zookeeper"))]
mod server;
mod suite;
#[cfg(feature = "zookeeper")]
mod zookeeper;
#[cfg(feature = "zookeeper")]
mod zookeeper_server;

use std::io::Write as _;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use harness::{Backend, Case};
use tokio::sync::Semaphore;

/// Every store that is checked.
async fn backends() -> Vec<(&'static str, anyhow::Result<Rc<dyn Backend>>)> {
    vec![
        ("memory", Ok(Rc::new(memory::Memory))),
        #[cfg(feature = "consul")]
        ("consul", consul::plain().await),
        #[cfg(feature = "consul")]
        ("consul-tls", consul::secured().await),
        #[cfg(all(feature = "etcd", feature = "etcd3"))]
        ("etcd", etcd::plain().await),
        #[cfg(all(feature = "etcd", feature = "etcd3"))]
        ("etcd-tls", etcd::secured().await),
        #[cfg(feature = "etcd3")]
        ("etcd3", etcd3::plain().await),
        #[cfg(feature = "etcd3")]
        ("etcd3-tls", etcd3::secured().await),
        #[cfg(feature = "raft")]
        ("raft", Ok(raft::Raft::of(3))),
        #[cfg(feature = "raft")]
        ("raft-client", Ok(raft::Raft::of(1))),
        #[cfg(feature = "zookeeper")]
        ("zookeeper", zookeeper::plain().await),
        #[cfg(feature = "zookeeper")]
        ("zookeeper-tls", zookeeper::secured().await),
    ]
}

/// Cases that run at the same time, over all stores: they share one thread and the machine with their servers, and they have
/// deadlines of seconds.
const AT_ONCE: usize = 64;

/// No case may take longer, whatever it waits for.
const CASE_LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'))
        .unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let lines = tokio::task::LocalSet::new().block_on(&runtime, run(&filter));
    let failed = lines.iter().filter(|line| line.outcome.is_err()).count();
    let mut out = std::io::stdout().lock();
    for line in &lines {
        let _ = match &line.outcome {
            Ok(verdict) => writeln!(out, "{:<12} {:<37} {verdict}", line.store, line.case),
            Err(reason) => writeln!(out, "{:<12} {:<37} FAILED {reason}", line.store, line.case),
        };
    }
    let _ = writeln!(out, "\n{} cases, {failed} failed", lines.len());
    if failed == 0 && !lines.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

struct Line {
    store: &'static str,
    case: &'static str,
    outcome: Result<&'static str, String>,
}

async fn run(filter: &str) -> Vec<Line> {
    let mut running = Vec::new();
    let mut lines = Vec::new();
    let all_turns = Rc::new(Semaphore::new(AT_ONCE));
    let wanted = |store: &str, case: &str| format!("{store} {case}").contains(filter);
    for (store, backend) in backends().await {
        let backend = match backend {
            Ok(backend) => backend,
            Err(error) => {
                lines.push(Line {
                    store,
                    case: "(all)",
                    outcome: Err(format!("not run: {error:#}")),
                });
                continue;
            }
        };
        let cases: Vec<Case> = [suite::cases(), backend.own_cases()].concat();
        let turns = Rc::new(Semaphore::new(backend.at_once()));
        for case in cases.into_iter().filter(|case| wanted(store, case.name)) {
            let backend = Rc::clone(&backend);
            let (turns, all_turns) = (Rc::clone(&turns), Rc::clone(&all_turns));
            let task = tokio::task::spawn_local(async move {
                let _turn = turns.acquire().await?;
                let _any_turn = all_turns.acquire().await?;
                let harness = backend.harness(case.name).await?;
                if case.needs_sessions && !harness.has_sessions() {
                    return Ok("does not apply: no sessions");
                }
                tokio::time::timeout(CASE_LIMIT, (case.run)(&*harness)).await??;
                Ok::<_, anyhow::Error>("ok")
            });
            running.push((store, case.name, task));
        }
    }
    for (store, case, task) in running {
        let outcome = match task.await {
            Ok(Ok(verdict)) => Ok(verdict),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(panic) => Err(format!("{panic}")),
        };
        lines.push(Line {
            store,
            case,
            outcome,
        });
    }
    lines
}
