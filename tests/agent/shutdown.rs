//! Daemons that are told to stop, whatever they are doing.

use std::time::Duration;

use howdah::clock;
use howdah::postgres::process::Process;
use rustix::process::Signal;

use crate::cluster::{Cluster, PATIENCE, TTL, give, wait_until};
use crate::etcd::Etcd;
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
        format!(
            "#!/bin/sh\nsleep 600 &\necho $$ $! > {0}.new\nmv {0}.new {0}\nwait\n",
            begun.display()
        ),
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
    let pids = std::fs::read_to_string(&begun).unwrap();
    let open = |pid: &str| Process::open(pid.parse().unwrap()).unwrap().unwrap();
    let hook_and_child: Vec<Process> = pids.split_whitespace().map(open).collect();
    let asked = clock::now();
    node.signal(Signal::TERM);
    node.signal(Signal::TERM);
    let status = node.ended(PATIENCE);
    assert!(clock::now().since(asked) < Duration::from_secs(15));
    assert!(status.success(), "{status}");
    assert!(node.postmaster().is_none());
    assert_eq!(hook_and_child.len(), 2);
    assert!(
        hook_and_child.iter().all(|process| !process.is_alive()),
        "the hook goes on after its daemon"
    );
    // The claim is withdrawn and the half of a cluster is out of the way: the next start succeeds.
    node.environment.remove("PATRONI_BOOTSTRAP_POST_BOOTSTRAP");
    node.start();
    cluster.await_healthy();
}

#[test]
fn the_operators_script_comes_before_a_stop_and_never_before_one_for_a_lost_key() {
    let etcd = Etcd::start();
    let folder = tempfile::tempdir().unwrap();
    give(folder.path());
    let mark = folder.path().join("ran");
    let script = format!("/bin/sh -c 'echo ran >>{}'", mark.display());
    let (mut cluster, _wires) =
        Cluster::start_over(&etcd, 1, &[("PATRONI_POSTGRESQL_BEFORE_STOP", &script)]);
    let before = cluster.nodes[0].postmaster().expect("it runs");
    etcd.put("/service/demo/leader", "somebody else");
    wait_until("PostgreSQL is stopped", PATIENCE, || {
        cluster.nodes[0].postmaster() != Some(before)
    });
    cluster.nodes[0].await_log("stopping PostgreSQL (immediate)");
    assert!(!mark.exists(), "the script held up the stop");

    // Nobody holds the key any more: it leads again.
    etcd.delete("/service/demo/leader");
    cluster.await_healthy();
    assert!(cluster.nodes[0].stop().success());
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "ran\n");
}
