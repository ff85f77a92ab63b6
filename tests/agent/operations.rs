//! What people do to a healthy cluster.

use std::time::Duration;

use howdah::clock;

use crate::cluster::{Cluster, PATIENCE, wait_until};
use crate::writer::{Writer, assert_one_writer, longest_gap, missing};

#[test]
fn a_planned_change_of_the_leader_loses_nothing_and_hardly_any_time() {
    let cluster = Cluster::start(3);
    let mut writer = Writer::start(&cluster);
    for _ in 0..2 {
        let old = cluster.await_primary();
        let to = cluster.others(old)[0];
        let name = |at: usize| cluster.nodes[at].name.clone();
        let body = format!(
            r#"{{"leader": "{}", "candidate": "{}"}}"#,
            name(old),
            name(to)
        );
        let (status, answer) = cluster.nodes[old]
            .ask("POST", "/switchover", &body)
            .unwrap();
        assert_eq!(status, 200, "{answer}");
        assert_eq!(name(cluster.await_other(old, PATIENCE)), name(to));
        cluster.await_healthy();
        writer.await_write(clock::now(), PATIENCE);
    }
    let acks = writer.finish();
    let gap = longest_gap(&acks);
    println!("switchover: no writes for {} ms", gap.as_millis());
    assert!(gap < Duration::from_millis(2500), "no writes for {gap:?}");
    assert_one_writer(&acks);
    let leader = cluster.await_primary();
    assert_eq!(missing(&acks, &cluster.nodes[leader]), Vec::<i64>::new());
    // A switchover needs no rewind and no new copy.
    for node in &cluster.nodes {
        assert!(
            !node.log().contains("pg_rewind"),
            "{} was rewound",
            node.name
        );
        let complaint = "contains errors; unaffected changes were applied";
        assert!(!node.log().contains(complaint), "{}", node.name);
    }
}

#[test]
fn settings_restart_pause_and_reinitialize() {
    let cluster = Cluster::start(3);
    let leader = cluster.await_primary();
    let replica = cluster.others(leader)[0];

    reloadable(&cluster);
    restart_only(&cluster, replica);
    restart_of_the_leader(&cluster, leader);
    pause(&cluster, leader);

    // Copied again, on demand.
    let leader = cluster.await_primary();
    let replica = cluster.others(leader)[0];
    let node = &cluster.nodes[replica];
    let before = node.postmaster().expect("it runs");
    let (status, answer) = node.ask("POST", "/reinitialize", "{}").unwrap();
    assert_eq!(status, 200, "{answer}");
    wait_until("the replica runs again", PATIENCE, || {
        node.postmaster().is_some_and(|pid| pid != before) && node.streams()
    });
    assert!(node.log().contains("replica created"));
    let (status, answer) = cluster.nodes[leader]
        .ask("POST", "/reinitialize", "{}")
        .unwrap();
    assert_eq!(status, 503, "{answer}");
    cluster.await_healthy();
}

/// Takes effect everywhere without a restart, and does not disturb replication.
fn reloadable(cluster: &Cluster) {
    let receivers: Vec<String> = cluster.nodes.iter().map(receiver).collect();
    cluster.configure(r#"{"postgresql": {"parameters": {"work_mem": "7MB"}}}"#);
    for node in &cluster.nodes {
        wait_until("work_mem is changed", PATIENCE, || {
            node.sql("SHOW work_mem").as_deref() == Ok("7MB")
        });
    }
    for (node, before) in cluster.nodes.iter().zip(receivers) {
        assert_eq!(
            receiver(node),
            before,
            "{} keeps its WAL receiver",
            node.name
        );
        assert!(node.about()["pending_restart"].is_null());
    }
}

fn receiver(node: &crate::cluster::Node) -> String {
    node.query("SELECT pid, slot_name, conninfo FROM pg_stat_wal_receiver")
}

/// Is shown as pending, taken back, shown again, and gone after a restart.
fn restart_only(cluster: &Cluster, replica: usize) {
    let node = &cluster.nodes[replica];
    let pending = || node.about()["pending_restart"] == true;
    cluster.configure(r#"{"postgresql": {"parameters": {"max_connections": 120}}}"#);
    wait_until("the restart is pending", PATIENCE, pending);
    cluster.configure(r#"{"postgresql": {"parameters": {"max_connections": null}}}"#);
    wait_until("no restart is pending", PATIENCE, || !pending());
    cluster.configure(
        r#"{"postgresql": {"parameters": {"max_wal_senders": 12, "shared_buffers": "17MB"}}}"#,
    );
    wait_until("the restart is pending", PATIENCE, pending);
    // The leader first: a standby may not have less than its primary, and gets what the leader has until then.
    let leader = &cluster.nodes[cluster.await_primary()];
    for node in [leader, node] {
        let before = node.postmaster().expect("it runs");
        let (status, answer) = node.ask("POST", "/restart", "{}").unwrap();
        assert_eq!((status, answer.as_str()), (200, "restarted successfully"));
        assert_ne!(node.postmaster(), Some(before));
    }
    wait_until("the replica streams", PATIENCE, || node.streams());
    wait_until("no restart is pending", PATIENCE, || !pending());
    assert_eq!(node.query("SHOW max_wal_senders"), "12");
    let (status, answer) = node
        .ask("POST", "/restart", r#"{"role": "primary"}"#)
        .unwrap();
    assert_eq!(status, 503, "{answer}");
}

fn restart_of_the_leader(cluster: &Cluster, leader: usize) {
    assert_eq!(
        cluster.primary(),
        Some(leader),
        "a restart keeps the leader"
    );
}

/// In pause a leader that is stopped by hand stays down; afterwards it comes back.
fn pause(cluster: &Cluster, leader: usize) {
    cluster.configure(r#"{"pause": true}"#);
    let node = &cluster.nodes[leader];
    wait_until("all know of the pause", PATIENCE, || {
        cluster
            .nodes
            .iter()
            .all(|node| node.about()["pause"] == true)
    });
    let postmaster = node.postmaster().expect("it runs");
    rustix::process::kill_process(postmaster, rustix::process::Signal::INT).unwrap();
    wait_until("PostgreSQL is down", PATIENCE, || {
        node.postmaster().is_none()
    });
    wait_until("the key is given back", PATIENCE, || {
        node.log()
            .contains("PAUSE: removed leader lock because postgres is not running")
    });
    for other in cluster.others(leader) {
        assert!(!cluster.nodes[other].is_primary());
    }
    cluster.configure_at(cluster.others(leader)[0], r#"{"pause": false}"#);
    cluster.await_healthy();
}
