//! The agent of the primary is stopped for longer than the lease: its PostgreSQL must be silent before another one writes.

use std::time::Duration;

use howdah::clock;

use crate::client::{Recorder, missing};
use crate::cluster::{Cluster, PATIENCE, Store};
use crate::docker::wait_until;

fn frozen(story: &str, store: Store) {
    let cluster = Cluster::start(story, store, 3, &[]);
    let old = cluster.primary().clone();
    let recorder = Recorder::start(&old, &cluster.all());
    recorder.written_after(clock::now(), PATIENCE);
    old.container.signal_agent("STOP");
    let new = cluster.await_new_primary(&old).clone();
    recorder.written_after(clock::now(), PATIENCE);
    assert!(
        old.container
            .logs()
            .contains("was not renewed: stopping PostgreSQL"),
        "init stopped it"
    );
    old.container.signal_agent("CONT");
    old.await_streaming();
    let acks = recorder.finish();
    let last_of_old = acks
        .iter()
        .filter(|ack| ack.node == old.name())
        .map(|ack| ack.acknowledged)
        .max()
        .unwrap();
    let first_of_new = acks
        .iter()
        .filter(|ack| ack.node == new.name())
        .map(|ack| ack.acknowledged)
        .min()
        .unwrap();
    assert!(
        last_of_old < first_of_new,
        "two primaries for {:?}",
        last_of_old.since(first_of_new)
    );
    println!(
        "{story}: {} ms between the last write here and the first there",
        first_of_new.since(last_of_old).as_millis()
    );
    assert_eq!(cluster.primary().name(), new.name());
    // Asynchronous replication may lose the tail, but nothing that the new primary acknowledged.
    let by_new: Vec<_> = acks
        .iter()
        .filter(|ack| ack.node == new.name())
        .cloned()
        .collect();
    assert_eq!(missing(&by_new, &new), Vec::<u64>::new());
}

#[test]
fn over_etcd() {
    frozen("frozen-etcd", Store::Etcd);
}

#[test]
fn over_raft() {
    frozen("frozen-raft", Store::Raft);
}

#[test]
fn the_only_member_comes_back_by_itself() {
    let cluster = Cluster::start("frozen-single", Store::Etcd, 1, &[]);
    let node = &cluster.nodes[0];
    node.container.signal_agent("STOP");
    wait_until("PostgreSQL is stopped", Duration::from_secs(15), || {
        node.container
            .logs()
            .contains("PostgreSQL is stopped, because")
    });
    assert!(node.sql("select 1").is_err());
    node.container.signal_agent("CONT");
    // The view that the agent published before it froze may answer once more, so only a write counts.
    wait_until("it takes writes again", PATIENCE, || {
        node.sql("create table if not exists t (v int)").is_ok()
    });
}
