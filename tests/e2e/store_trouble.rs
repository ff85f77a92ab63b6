//! A store that is slow, or restarted: no change of the leader without need, no write without a lease, nothing lost, and all is
//! well again without anybody's help.

use std::time::Duration;

use howdah::clock;

use crate::client::{Recorder, assert_one_writer, longest_gap, missing};
use crate::cluster::{Cluster, Node, PATIENCE, Store};
use crate::docker::wait_until;
use crate::slow_network::SlowWay;

/// Longer than the lease of these clusters.
const LONGER_THAN_TTL: Duration = Duration::from_secs(8);

fn pass(time: Duration) {
    let end = clock::now() + time;
    wait_until("the time is over", PATIENCE, || clock::now() > end);
}

#[test]
fn a_slow_store_at_the_start_and_later() {
    let mut cluster = Cluster::start_without_waiting("slow-store", Store::Etcd, 0, &[]);
    let ways: Vec<SlowWay> = cluster
        .etcd
        .iter()
        .map(|etcd| SlowWay::to(&cluster.lab, etcd, 2379))
        .collect();
    let delay = |time| ways.iter().for_each(|way| way.delay(time));
    let addresses: Vec<String> = ways.iter().map(|way| way.address().to_string()).collect();
    let hosts = format!("PATRONI_ETCD3_HOSTS={}", addresses.join(","));
    // The servers would name themselves otherwise, past the slow way.
    let extra = [hosts.as_str(), "PATRONI_ETCD3_USE_PROXIES=true"];

    // Half a second there and back for every request, from the first one on.
    delay(Duration::from_millis(250));
    for number in 1..=2 {
        let node = cluster.start_member(number, 2, &extra);
        cluster.nodes.push(node);
    }
    cluster.await_healthy();
    let leader = cluster.primary().name().to_owned();
    let recorder = Recorder::start(cluster.primary(), &cluster.all());
    pass(LONGER_THAN_TTL);
    assert_eq!(cluster.primary().name(), leader, "slow is not silent");
    recorder.written_after(clock::now(), PATIENCE);

    // Slower than the lease is long: the same as silent.
    delay(Duration::from_secs(20));
    wait_until("nobody is primary", PATIENCE, || {
        cluster.nodes.iter().all(Node::denies_being_primary)
    });
    // It says no first, a moment before its lease ends, and PostgreSQL ends after that.
    wait_until("no node takes a write", PATIENCE, || {
        cluster.nodes.iter().all(|node| {
            node.sql("create table if not exists never (v int)")
                .is_err()
        })
    });
    delay(Duration::ZERO);
    cluster.await_healthy();
    recorder.written_after(clock::now(), PATIENCE);
    let acks = recorder.finish();
    assert_one_writer(&acks);
    assert_eq!(missing(&acks, cluster.primary()), Vec::<u64>::new());
    for node in &cluster.nodes {
        assert!(!node.container.logs().contains("panicked"));
    }
}

#[test]
fn a_store_that_is_restarted() {
    let cluster = Cluster::start("restarted-store", Store::Etcd, 2, &[]);
    let leader = cluster.primary().name().to_owned();
    let recorder = Recorder::start(cluster.primary(), &cluster.all());
    recorder.written_after(clock::now(), PATIENCE);

    // One server after the other, as an upgrade does it: nobody notices.
    for etcd in &cluster.etcd {
        etcd.restart();
        wait_until("the server is back", PATIENCE, || {
            etcd.exec(&["etcdctl", "endpoint", "health"]).is_ok()
        });
        recorder.written_after(clock::now(), PATIENCE);
    }
    assert_eq!(cluster.primary().name(), leader);

    // All at once, without a goodbye.
    for etcd in &cluster.etcd {
        etcd.kill();
    }
    for etcd in &cluster.etcd {
        etcd.start();
    }
    cluster.await_healthy();
    recorder.written_after(clock::now(), PATIENCE);
    let acks = recorder.finish();
    println!("restarted-store: no writes for {:?}", longest_gap(&acks));
    assert_one_writer(&acks);
    assert_eq!(missing(&acks, cluster.primary()), Vec::<u64>::new());
}
