//! A primary is lost in each of the ways in which primaries get lost.

use std::time::Duration;

use howdah::clock;

use crate::client::{Recorder, assert_one_writer, missing};
use crate::cluster::{Cluster, PATIENCE, Store};

/// Everything that holds after any single failure: somebody writes again, the lost one comes back as a standby, all agree.
fn survives(story: &str, store: Store, harm: impl Fn(&Cluster), mend: impl Fn(&Cluster)) {
    let cluster = Cluster::start(story, store, 3, &["PATRONI_SYNCHRONOUS_MODE=quorum"]);
    let old = cluster.primary().name().to_owned();
    // Nobody may take over, and nothing is promised, before the primary has published its voters.
    crate::docker::wait_until("both standbys are voters", PATIENCE, || {
        let members = cluster.primary().container.exec(&["patronictl", "list"]);
        members.is_ok_and(|table| table.matches("Quorum Standby").count() == 2)
    });
    let recorder = Recorder::start(cluster.primary(), &cluster.all());
    recorder.written_after(clock::now(), PATIENCE);
    harm(&cluster);
    let harmed = clock::now();
    let first = recorder.written_after(harmed, PATIENCE);
    println!(
        "{story}: {old} harmed, {} writes after {} ms",
        first.node,
        first.acknowledged.since(harmed).as_millis()
    );
    mend(&cluster);
    cluster.await_healthy();
    let count = recorder.count();
    crate::docker::wait_until("writes go on", PATIENCE, || recorder.count() > count + 20);
    let acks = recorder.finish();
    assert_one_writer(&acks);
    assert_eq!(
        missing(&acks, cluster.primary()),
        Vec::<u64>::new(),
        "acknowledged and lost"
    );
}

fn container_killed(story: &str, store: Store) {
    let victim = std::cell::RefCell::new(None);
    survives(
        story,
        store,
        |cluster| {
            let primary = cluster.primary().container.clone();
            primary.kill();
            victim.replace(Some(primary));
        },
        |_| victim.borrow().as_ref().unwrap().start(),
    );
}

#[test]
fn container_killed_raft() {
    container_killed("kill-raft", Store::Raft);
}

#[test]
fn container_killed_etcd() {
    container_killed("kill-etcd", Store::Etcd);
}

#[test]
fn container_killed_etcd2() {
    container_killed("kill-etcd2", Store::Etcd2);
}

#[test]
fn container_killed_consul() {
    container_killed("kill-consul", Store::Consul);
}

#[test]
fn container_killed_zookeeper() {
    container_killed("kill-zookeeper", Store::Zookeeper);
}

#[test]
fn postmaster_killed() {
    survives(
        "postmaster",
        Store::Raft,
        |cluster| cluster.primary().container.signal_postmaster("KILL"),
        |_| (),
    );
}

#[test]
fn agent_killed_costs_no_write() {
    let cluster = Cluster::start("agent", Store::Etcd, 3, &[]);
    let old = cluster.primary().name().to_owned();
    let recorder = Recorder::start(cluster.primary(), &cluster.all());
    recorder.written_after(clock::now(), PATIENCE);
    cluster.primary().container.signal_agent("KILL");
    // Longer than the ttl: nobody may take the lead away from a node whose agent came back.
    let later = clock::now() + Duration::from_secs(8);
    crate::docker::wait_until("a ttl is over", PATIENCE, || clock::now() > later);
    assert_eq!(cluster.primary().name(), old);
    let acks = recorder.finish();
    assert!(
        crate::client::longest_gap(&acks) < Duration::from_secs(1),
        "writes stopped for {:?}",
        crate::client::longest_gap(&acks)
    );
}

#[test]
fn network_cut_off() {
    let victim = std::cell::RefCell::new(None);
    survives(
        "partition",
        Store::Etcd,
        |cluster| {
            let primary = cluster.primary().container.clone();
            primary.disconnect(&cluster.lab);
            victim.replace(Some(primary));
        },
        |cluster| victim.borrow().as_ref().unwrap().connect(&cluster.lab),
    );
}

#[test]
fn a_lost_history_is_rewound() {
    let cluster = Cluster::start(
        "rewind",
        Store::Raft,
        3,
        &["PATRONI_POSTGRESQL_USE_PG_REWIND=true"],
    );
    let old = cluster.primary().clone();
    old.sql("create table t (v int)").unwrap();
    // Writes that reach no standby: their walsenders are frozen out before the kill.
    for other in cluster.others(&old) {
        other
            .container
            .shell("kill -STOP $(pgrep -f '[w]alreceiver')")
            .unwrap();
    }
    old.sql("insert into t select generate_series(1, 1000)")
        .unwrap();
    old.container.kill();
    for other in cluster.others(&old) {
        let _ = other
            .container
            .shell("kill -CONT $(pgrep -f '[w]alreceiver')");
    }
    let new = cluster.await_new_primary(&old).clone();
    // The key comes before the promotion is through.
    crate::docker::wait_until("the new primary takes writes", PATIENCE, || {
        new.sql("insert into t values (-1)").is_ok()
    });
    old.container.start();
    old.await_streaming();
    crate::docker::wait_until("the new row arrives", PATIENCE, || {
        old.sql("select min(v) from t")
            .is_ok_and(|found| found == "-1")
    });
    let rows = new.sql("select count(*) from t").unwrap();
    assert_eq!(old.sql("select count(*) from t").unwrap(), rows);
}
