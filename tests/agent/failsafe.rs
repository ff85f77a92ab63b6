//! Failsafe mode: a leader without the store goes on while every member agrees, and not longer.

use std::time::Duration;

use howdah::clock;

use crate::cluster::{Cluster, PATIENCE, TTL, wait_until};
use crate::etcd::{Etcd, Wire};
use crate::writer::{Writer, assert_one_writer, longest_gap, missing};

/// A healthy cluster of three in failsafe mode, once everybody knows who belongs to it.
fn failsafe(etcd: &Etcd) -> (Cluster, Vec<Wire>) {
    let (cluster, wires) = Cluster::start_over(etcd, 3, &[]);
    cluster.configure(r#"{"failsafe_mode": true}"#);
    wait_until("everybody knows the members", PATIENCE, || {
        cluster.nodes.iter().all(|node| {
            node.ask("GET", "/failsafe", "").is_some_and(|(_, body)| {
                let members: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
                members
                    .as_object()
                    .is_some_and(|members| members.len() == 3)
            }) && metric(node, "patroni_failsafe_mode_enabled") == Some(1)
        })
    });
    (cluster, wires)
}

fn metric(node: &crate::cluster::Node, name: &str) -> Option<u64> {
    let (_, text) = node.ask("GET", "/metrics", "")?;
    let line = text
        .lines()
        .find(|line| line.starts_with(name) && !line.starts_with('#'))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn is_active(cluster: &Cluster, at: usize) -> bool {
    cluster.nodes[at].about()["failsafe_mode_is_active"] == true
        && metric(&cluster.nodes[at], "patroni_failsafe_mode_is_active") == Some(1)
}

/// Nobody but this one leads, and it writes, for so long.
fn leads_alone(cluster: &Cluster, leader: usize, writer: &mut Writer, time: Duration) {
    let began = clock::now();
    while clock::now().since(began) < time {
        writer.await_write(clock::now(), TTL);
        for at in 0..cluster.nodes.len() {
            assert_eq!(cluster.nodes[at].is_primary(), at == leader, "member {at}");
        }
    }
}

/// Cuts these members off from the store until the key is long gone, and mends it: the leader writes all the time.
fn survives(cut: impl Fn(usize, usize) -> bool) {
    let etcd = Etcd::start();
    let (cluster, wires) = failsafe(&etcd);
    let leader = cluster.await_primary();
    let mut writer = Writer::start(&cluster);
    for (at, wire) in wires.iter().enumerate() {
        if cut(at, leader) {
            wire.cut();
        }
    }
    leads_alone(&cluster, leader, &mut writer, TTL * 3);
    for at in 0..3 {
        assert!(is_active(&cluster, at), "failsafe mode is active on {at}");
    }
    for wire in &wires {
        wire.mend();
    }
    cluster.nodes[leader].await_log("failsafe mode ends: the store has confirmed the lease");
    wait_until("the leader is done with failsafe mode", PATIENCE, || {
        !is_active(&cluster, leader)
    });
    leads_alone(&cluster, leader, &mut writer, TTL);
    cluster.await_healthy();
    assert_eq!(cluster.primary(), Some(leader));
    let acks = writer.finish();
    assert_one_writer(&acks);
    let gap = longest_gap(&acks);
    println!("longest time without a row: {} ms", gap.as_millis());
    assert!(gap < Duration::from_secs(2), "no row for {gap:?}");
    for node in &cluster.nodes {
        wait_until("every acknowledged row is there", PATIENCE, || {
            missing(&acks, node).is_empty()
        });
        assert!(!node.log().contains("demoting self"));
    }
}

#[test]
fn a_leader_cut_off_from_the_store_goes_on_while_every_member_agrees() {
    survives(|at, leader| at == leader);
}

#[test]
fn a_store_that_is_away_for_everybody_stops_nobody() {
    survives(|_, _| true);
}

#[test]
fn without_one_members_word_the_leader_stops_in_time_and_another_follows() {
    let etcd = Etcd::start();
    let (mut cluster, wires) = failsafe(&etcd);
    let old = cluster.await_primary();
    let mut writer = Writer::start(&cluster);
    wires[old].cut();
    leads_alone(&cluster, old, &mut writer, TTL * 2);
    let lost = cluster.others(old)[0];
    let killed = clock::now();
    cluster.nodes[lost].kill();
    wait_until("the leader stops", TTL, || !cluster.nodes[old].is_primary());
    let new = cluster.await_other(old, TTL * 2);
    let first = writer.await_write(clock::now(), PATIENCE);
    println!(
        "a member and the store lost: the next primary writes after {} ms",
        first.at.since(killed).as_millis()
    );
    assert_eq!(first.port, cluster.nodes[new].port);
    cluster.nodes[lost].start();
    wires[old].mend();
    cluster.await_healthy();
    assert_eq!(cluster.primary(), Some(new));
    assert_one_writer(&writer.finish());
}
