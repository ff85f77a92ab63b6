//! One suite for every store: `cargo test --test dcs [filter]`, the filter matching `store case` (`"etcd3 renew"`).
//!
//! To register a store: a file beside this one with a `Backend`, and a line in `backends`. Each case gets a cluster of its own,
//! many cases of all stores run at the same time, and a table store × case ends the run. A store whose server cannot be started is
//! reported as "not run", which is a failure.

#![cfg_attr(
    not(feature = "all-stores"),
    allow(
        dead_code,
        unused_imports,
        unused_macros,
        reason = "one store alone does not need all that stores share"
    )
)]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, and the line says where"
)]

#[cfg(feature = "consul")]
mod consul;
#[cfg(feature = "consul")]
mod consul_server;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "etcd3")]
mod etcd3;
#[cfg(any(feature = "etcd", feature = "etcd3", feature = "kubernetes"))]
mod etcd_server;
mod harness;
#[cfg(feature = "kubernetes")]
mod kubernetes;
#[cfg(feature = "kubernetes")]
mod kubernetes_server;
#[cfg(feature = "kubernetes")]
mod manifests;
mod memory;
mod proxy;
#[cfg(feature = "raft")]
mod raft;
mod server;
mod suite;
mod table;
#[cfg(feature = "zookeeper")]
mod zookeeper;
#[cfg(feature = "zookeeper")]
mod zookeeper_server;

use std::pin::Pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use harness::{Backend, Case, Needs};
use table::{Line, Verdict};
use tokio::sync::Semaphore;

type Starting = Pin<Box<dyn Future<Output = anyhow::Result<Rc<dyn Backend>>>>>;

/// Every store that is checked. Nothing is started before it is polled.
fn backends() -> Vec<(&'static str, Starting)> {
    vec![
        (
            "memory",
            Box::pin(async { Ok(Rc::new(memory::Memory) as Rc<dyn Backend>) }),
        ),
        #[cfg(feature = "consul")]
        ("consul", Box::pin(consul::plain())),
        #[cfg(feature = "consul")]
        ("consul-tls", Box::pin(consul::secured())),
        #[cfg(feature = "etcd")]
        ("etcd", Box::pin(etcd::plain())),
        #[cfg(feature = "etcd")]
        ("etcd-tls", Box::pin(etcd::secured())),
        #[cfg(feature = "etcd3")]
        ("etcd3", Box::pin(etcd3::plain())),
        #[cfg(feature = "etcd3")]
        ("etcd3-tls", Box::pin(etcd3::secured())),
        #[cfg(feature = "kubernetes")]
        ("kubernetes-configmaps", Box::pin(kubernetes::configmaps())),
        #[cfg(feature = "kubernetes")]
        ("kubernetes-endpoints", Box::pin(kubernetes::endpoints())),
        #[cfg(feature = "kubernetes")]
        ("kubernetes-manifests", Box::pin(manifests::all())),
        #[cfg(feature = "raft")]
        (
            "raft",
            Box::pin(async { Ok(raft::Raft::of(3) as Rc<dyn Backend>) }),
        ),
        #[cfg(feature = "raft")]
        (
            "raft-client",
            Box::pin(async { Ok(raft::Raft::of(1) as Rc<dyn Backend>) }),
        ),
        #[cfg(feature = "zookeeper")]
        ("zookeeper", Box::pin(zookeeper::plain())),
        #[cfg(feature = "zookeeper")]
        ("zookeeper-tls", Box::pin(zookeeper::secured())),
    ]
}

/// Cases that run at the same time, over all stores: they share one thread and the machine with their servers, and they have
/// deadlines of seconds.
const AT_ONCE: usize = 10;

/// Servers that start at the same time: some of them are what the machine is busy with for seconds.
const STARTING_AT_ONCE: usize = 4;

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
    if table::print(&lines) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Whether a filter can mean a case of this store: text that occurs in the name of any store means stores.
fn may_mean(filter: &str, store: &str, stores: &[&str]) -> bool {
    match filter.split_once(' ') {
        Some((end_of_name, _)) => store.ends_with(end_of_name),
        None if stores.iter().any(|store| store.contains(filter)) => store.contains(filter),
        None => true,
    }
}

async fn run(filter: &str) -> Vec<Line> {
    let mut running = Vec::new();
    let mut lines = Vec::new();
    let all_turns = Rc::new(Semaphore::new(AT_ONCE));
    let wanted = |store: &str, case: &str| format!("{store} {case}").contains(filter);
    let backends = backends();
    let stores: Vec<&str> = backends.iter().map(|(store, _)| *store).collect();
    let starts = Rc::new(Semaphore::new(STARTING_AT_ONCE));
    let starting = backends
        .into_iter()
        .filter(|(store, _)| may_mean(filter, store, &stores))
        .map(|(store, backend)| {
            let starts = Rc::clone(&starts);
            async move {
                let _turn = starts.acquire().await;
                (store, backend.await)
            }
        });
    for (store, backend) in join_all(starting).await {
        let backend = match backend {
            Ok(backend) => backend,
            Err(error) => {
                let reason = format!("the store could not be started: {error:#}");
                lines.extend(suite::cases().into_iter().map(|case| Line {
                    store,
                    case: case.name,
                    own: false,
                    verdict: Verdict::NotRun(reason.clone()),
                }));
                continue;
            }
        };
        let own = backend.own_cases().into_iter().map(|case| (true, case));
        let suite = backend.is_store().then(suite::cases).unwrap_or_default();
        let cases: Vec<(bool, Case)> = suite
            .into_iter()
            .map(|case| (false, case))
            .chain(own)
            .collect();
        let turns = Rc::new(Semaphore::new(backend.at_once()));
        for (own, case) in cases
            .into_iter()
            .filter(|(_, case)| wanted(store, case.name))
        {
            let backend = Rc::clone(&backend);
            let (turns, all_turns) = (Rc::clone(&turns), Rc::clone(&all_turns));
            let task = tokio::task::spawn_local(async move {
                let _turn = turns.acquire().await?;
                let _any_turn = all_turns.acquire().await?;
                let harness = backend.harness(case.name).await?;
                match case.needs {
                    Needs::Sessions if !harness.has_sessions() => {
                        return Ok(Verdict::DoesNotApply("no sessions"));
                    }
                    Needs::Expiry if !harness.members_expire() => {
                        return Ok(Verdict::DoesNotApply("members are pods"));
                    }
                    Needs::Sessions | Needs::Expiry | Needs::Nothing => {}
                }
                tokio::time::timeout(CASE_LIMIT, (case.run)(&*harness)).await??;
                Ok::<_, anyhow::Error>(Verdict::Passed)
            });
            running.push((store, case.name, own, task));
        }
    }
    for (store, case, own, task) in running {
        let verdict = match task.await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(error)) => Verdict::Failed(format!("{error:#}")),
            Err(panic) => Verdict::Failed(format!("{panic}")),
        };
        lines.push(Line {
            store,
            case,
            own,
            verdict,
        });
    }
    lines
}
