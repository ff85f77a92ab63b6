//! What people do to a healthy cluster.

use std::time::Duration;

use howdah::clock;
use rustix::process::Signal;

use crate::cluster::{Cluster, PATIENCE, wait_until};
use crate::writer::{Writer, assert_one_writer, longest_gap, missing};

#[test]
fn a_planned_change_of_the_leader_loses_nothing_and_hardly_any_time() {
    let cluster = Cluster::start(3);
    let mut writer = Writer::start(&cluster);
    for _ in 0..2 {
        let old = cluster.await_primary();
        let to = cluster.others(old)[0];
        cluster.switchover(to);
        assert_eq!(cluster.await_other(old, PATIENCE), to);
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
    methods_of_a_copy(&cluster, node);
    let (status, answer) = cluster.nodes[leader]
        .ask("POST", "/reinitialize", "{}")
        .unwrap();
    assert_eq!(status, 503, "{answer}");
    cluster.await_healthy();
}

/// The configured methods come in their order; a copy of the leader on request is a base backup whatever they are.
fn methods_of_a_copy(cluster: &Cluster, node: &crate::cluster::Node) {
    let mark = node.dir.join("method");
    cluster.configure(&format!(
        r#"{{"postgresql": {{
            "create_replica_methods": ["mark", "basebackup"],
            "mark": {{"command": "sh -c 'touch {}; exit 1'", "no_params": true}}
        }}}}"#,
        mark.display()
    ));
    let copy = |how: &str| {
        let before = node.postmaster().expect("it runs");
        let (status, answer) = node.ask("POST", "/reinitialize", how).unwrap();
        assert_eq!(status, 200, "{answer}");
        wait_until("the replica runs again", PATIENCE, || {
            node.postmaster().is_some_and(|pid| pid != before) && node.streams()
        });
    };
    // The settings may still be on their way to it.
    wait_until("the configured method is used", PATIENCE, || {
        copy("{}");
        mark.exists()
    });
    std::fs::remove_file(&mark).unwrap();
    copy(r#"{"from_leader": true}"#);
    assert!(!mark.exists(), "the configured method was used");
}

#[test]
fn a_scheduled_restart_comes_on_time_once_and_not_after_another() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[cluster.await_primary()];
    let schedule = |seconds: i64| {
        let at = chrono::DateTime::from_timestamp_millis(clock::wall().0 + seconds * 1000).unwrap();
        let body = format!(r#"{{"schedule": "{}"}}"#, at.to_rfc3339());
        node.ask("POST", "/restart", &body).unwrap()
    };
    let is_scheduled = || !node.about()["scheduled_restart"].is_null();
    let before = node.postmaster().expect("it runs");
    let due = clock::wall().0 + 3000;
    let (status, answer) = schedule(3);
    assert_eq!(status, 202, "{answer}");
    let (status, answer) = schedule(600);
    assert_eq!(status, 409, "{answer}");
    wait_until("PostgreSQL is restarted", PATIENCE, || {
        node.postmaster().is_some_and(|pid| pid != before)
    });
    assert!(clock::wall().0 >= due, "too early");
    wait_until("nothing is scheduled any more", PATIENCE, || {
        !is_scheduled()
    });

    // Somebody restarts by hand meanwhile: there is nothing left to do.
    let (status, answer) = schedule(600);
    assert_eq!(status, 202, "{answer}");
    wait_until("it is shown", PATIENCE, is_scheduled);
    // The first one may still be going on.
    wait_until("a restart by hand is done", PATIENCE, || {
        node.ask("POST", "/restart", "{}").unwrap().0 == 200
    });
    node.await_log("the scheduled restart is cancelled");
    wait_until("nothing is scheduled any more", PATIENCE, || {
        !is_scheduled()
    });
}

#[test]
fn a_scheduled_restart_outlives_the_agent_that_took_it() {
    let mut cluster = Cluster::start(1);
    let at = cluster.await_primary();
    let node = &mut cluster.nodes[at];
    let time = chrono::DateTime::from_timestamp_millis(clock::wall().0 + 600_000).unwrap();
    let body = format!(
        r#"{{"schedule": "{}", "role": "primary"}}"#,
        time.to_rfc3339()
    );
    let (status, answer) = node.ask("POST", "/restart", &body).unwrap();
    assert_eq!(status, 202, "{answer}");
    wait_until("it is published", PATIENCE, || {
        let cluster = node.ask("GET", "/cluster", "").map(|(_, text)| text);
        cluster.is_some_and(|text| text.contains("scheduled_restart"))
    });
    let before = node.about()["scheduled_restart"].clone();
    let postmaster = node.postmaster();
    node.signal(Signal::KILL);
    node.ended(PATIENCE);
    node.start();
    wait_until("it leads again", PATIENCE, || node.is_primary());
    assert_eq!(node.postmaster(), postmaster, "its server went on");
    assert_eq!(node.about()["scheduled_restart"], before);
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
