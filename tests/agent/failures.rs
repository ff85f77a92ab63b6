//! What happens to a cluster without anybody wanting it.

use std::time::Duration;

use howdah::clock;
use rustix::process::{Signal, kill_process};

use crate::cluster::{Cluster, PATIENCE, TTL, wait_until};
use crate::writer::{Writer, assert_one_writer, missing};

/// From the loss of a node to the first write: the rest of its lease and an election.
const ELECTION: Duration = Duration::from_millis(2000);

#[test]
fn a_killed_postmaster_and_a_killed_agent_cost_no_failover() {
    let note = r#"/bin/sh -c 'echo "$0 $1 $2" >> callbacks'"#;
    let mut cluster = Cluster::start_with(3, &[("PATRONI_POSTGRESQL_CALLBACKS_ON_START", note)]);
    let mut writer = Writer::start(&cluster);
    let leader = cluster.await_primary();

    let hurt = clock::now();
    kill_process(cluster.nodes[leader].postmaster().unwrap(), Signal::KILL).unwrap();
    let back = writer.await_write(hurt + Duration::from_millis(20), PATIENCE);
    println!(
        "postmaster killed: first write after {} ms",
        back.at.since(hurt).as_millis()
    );
    assert!(back.at.since(hurt) < Duration::from_secs(4));
    assert_eq!(
        back.port, cluster.nodes[leader].port,
        "crash recovery in place"
    );
    cluster.await_healthy();

    // The agent of the leader: PostgreSQL lives on, and its successor finds it.
    let postmaster = cluster.nodes[leader].postmaster();
    let node = &mut cluster.nodes[leader];
    node.signal(Signal::KILL);
    node.ended(PATIENCE);
    assert_eq!(node.postmaster(), postmaster);
    let callbacks = node.dir.join("callbacks");
    std::fs::remove_file(&callbacks).unwrap();
    node.start();
    cluster.await_healthy();
    wait_until(
        "the server found running gets its on_start",
        PATIENCE,
        || {
            std::fs::read_to_string(&callbacks)
                .is_ok_and(|lines| lines == "on_start primary demo\n")
        },
    );
    assert_eq!(cluster.primary(), Some(leader), "the lease was still held");
    assert_eq!(cluster.nodes[leader].postmaster(), postmaster);
    let receivers = |cluster: &Cluster| -> Vec<String> {
        cluster
            .others(leader)
            .iter()
            .map(|at| cluster.nodes[*at].query("SELECT pid FROM pg_stat_wal_receiver"))
            .collect()
    };
    let before = receivers(&cluster);

    // The same on a replica, which goes on receiving from the same process.
    let replica = cluster.others(leader)[0];
    let node = &mut cluster.nodes[replica];
    let postmaster = node.postmaster();
    node.signal(Signal::KILL);
    node.ended(PATIENCE);
    node.start();
    cluster.await_healthy();
    assert_eq!(cluster.nodes[replica].postmaster(), postmaster);
    assert_eq!(
        receivers(&cluster),
        before,
        "the WAL receivers were left alone"
    );

    let acks = writer.finish();
    assert_one_writer(&acks);
    assert_eq!(missing(&acks, &cluster.nodes[leader]), Vec::<i64>::new());
}

#[test]
fn a_lost_node_is_replaced_within_its_lease_and_rejoins() {
    let mut cluster = Cluster::start(3);
    let mut writer = Writer::start(&cluster);
    let old = cluster.await_primary();
    let lost = clock::now();
    cluster.nodes[old].kill();
    let first = writer.await_write(lost + Duration::from_millis(200), PATIENCE);
    let took = first.at.since(lost);
    println!("node killed: first write after {} ms", took.as_millis());
    assert!(took < TTL + ELECTION, "first write after {took:?}");
    let new = cluster.await_other(old, PATIENCE);
    // The old primary may have written what nobody received.
    cluster.nodes[old].start();
    cluster.await_healthy();
    assert_eq!(
        cluster.primary(),
        Some(new),
        "the old one comes back as a replica"
    );
    let acks = writer.finish();
    assert_one_writer(&acks);
}

#[test]
fn a_frozen_agent_never_leaves_two_primaries() {
    let cluster = Cluster::start_with(3, &[("PATRONI_GUARD", "on")]);
    let mut writer = Writer::start(&cluster);
    let old = cluster.await_primary();

    // One that dies is replaced at once, and the next finds PostgreSQL running.
    let postmaster = cluster.nodes[old].postmaster();
    let dead = cluster.nodes[old].guarded_agent();
    kill_process(dead, Signal::KILL).unwrap();
    wait_until("init starts another agent", PATIENCE, || {
        cluster.nodes[old]
            .find_guarded_agent()
            .is_some_and(|agent| agent != dead)
    });
    cluster.await_healthy();
    assert_eq!(cluster.primary(), Some(old));
    assert_eq!(cluster.nodes[old].postmaster(), postmaster);

    let agent = cluster.nodes[old].guarded_agent();
    let frozen = clock::now();
    kill_process(agent, Signal::STOP).unwrap();
    let down = {
        let node = &cluster.nodes[old];
        wait_until("the guard stops PostgreSQL", PATIENCE, || {
            node.postmaster().is_none()
        });
        clock::now()
    };
    assert!(
        down.since(frozen) < TTL,
        "stopped after {:?}",
        down.since(frozen)
    );
    let new = cluster.await_other(old, PATIENCE);
    let promoted = clock::now();
    println!(
        "frozen agent: PostgreSQL down after {} ms, the next primary after {} ms",
        down.since(frozen).as_millis(),
        promoted.since(frozen).as_millis()
    );
    writer.await_write(clock::now(), PATIENCE);
    // Init replaces the agent that does not answer, or it thaws; either way the node rejoins.
    let _ = kill_process(agent, Signal::CONT);
    cluster.await_healthy();
    assert_eq!(cluster.primary(), Some(new));
    assert_one_writer(&writer.finish());
}

#[test]
fn without_a_majority_of_the_store_nobody_writes() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.await_primary();
    let others = cluster.others(leader);
    let mut writer = Writer::start(&cluster);
    let lost = clock::now();
    for other in &others {
        cluster.nodes[*other].kill();
    }
    wait_until("writes end before the lease does", TTL, || {
        cluster.nodes[leader].postmaster().is_none()
            || cluster.nodes[leader]
                .sql("SELECT pg_is_in_recovery()")
                .as_deref()
                == Ok("t")
    });
    println!(
        "store lost: no writes after {} ms",
        clock::now().since(lost).as_millis()
    );
    wait_until("/primary says so", PATIENCE, || {
        !cluster.nodes[leader].is_primary()
    });
    for other in &others {
        cluster.nodes[*other].start();
    }
    cluster.await_healthy();
    writer.await_write(clock::now(), PATIENCE);
    let acks = writer.finish();
    assert_one_writer(&acks);
}
