//! Daemons that are told to stop, whatever they are doing.

use std::time::Duration;

use howdah::clock;
use rustix::process::Signal;

use crate::cluster::{Cluster, PATIENCE, TTL, wait_until};
use crate::writer::{Writer, missing};

#[test]
fn a_stopped_replica_is_missed_by_nobody_and_a_stopped_leader_hands_over() {
    let mut cluster = Cluster::start(3);
    let mut writer = Writer::start(&cluster);
    let leader = cluster.await_primary();
    let replica = cluster.others(leader)[0];
    let status = cluster.nodes[replica].stop();
    assert!(status.success(), "{status}");
    assert!(cluster.nodes[replica].postmaster().is_none());
    writer.await_write(clock::now(), PATIENCE);
    cluster.nodes[replica].start();
    cluster.await_healthy();

    let asked = clock::now();
    let status = cluster.nodes[leader].stop();
    assert!(status.success(), "{status}");
    assert!(cluster.nodes[leader].postmaster().is_none());
    let first = writer.await_write(asked + Duration::from_millis(100), PATIENCE);
    let new = cluster.await_other(leader, PATIENCE);
    let took = first.at.since(asked);
    println!("leader stopped: first write after {} ms", took.as_millis());
    assert!(took < TTL, "nobody waits for the lease: {took:?}");
    cluster.nodes[leader].start();
    cluster.await_healthy();
    assert!(!cluster.nodes[leader].log().contains("pg_rewind"));
    let acks = writer.finish();
    assert_eq!(missing(&acks, &cluster.nodes[new]), Vec::<i64>::new());
}

#[test]
fn a_node_without_a_store_stops_when_told() {
    let mut cluster = Cluster::prepare(3);
    // One of three: no majority, nothing to do but to wait.
    let node = &mut cluster.nodes[0];
    node.start();
    wait_until("the API answers", PATIENCE, || {
        node.status_of("/liveness").is_some()
    });
    let asked = clock::now();
    let status = node.stop();
    assert!(status.success(), "{status}");
    assert!(clock::now().since(asked) < Duration::from_secs(3));
}

#[test]
fn a_bootstrap_that_is_interrupted_leaves_nothing_behind() {
    let mut cluster = Cluster::prepare(1);
    let node = &mut cluster.nodes[0];
    let (hook, begun) = (node.dir.join("slow"), node.dir.join("begun"));
    std::fs::write(
        &hook,
        format!("#!/bin/sh\n: > {}\nexec sleep 600\n", begun.display()),
    )
    .unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&hook, mode).unwrap();
    node.environment.insert(
        "PATRONI_BOOTSTRAP_POST_BOOTSTRAP".to_owned(),
        hook.display().to_string(),
    );
    node.start();
    wait_until("the hook runs", PATIENCE, || begun.exists());
    let asked = clock::now();
    node.signal(Signal::TERM);
    node.signal(Signal::TERM);
    let status = node.ended(PATIENCE);
    assert!(clock::now().since(asked) < Duration::from_secs(15));
    assert!(status.success(), "{status}");
    assert!(node.postmaster().is_none());
    // The claim is withdrawn and the half of a cluster is out of the way: the next start succeeds.
    node.environment.remove("PATRONI_BOOTSTRAP_POST_BOOTSTRAP");
    node.start();
    cluster.await_healthy();
}
