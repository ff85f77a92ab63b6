//! Synchronous replication with real servers: what was acknowledged is there after the loss of any one node, and commits wait for whom
//! they should.

use std::time::Duration;

use howdah::clock;

use crate::cluster::{Cluster, PATIENCE, wait_until};
use crate::writer::{Writer, assert_one_writer, missing};

/// A healthy cluster of three in this mode, once so many are synchronous.
fn synchronous(mode: &str, count: usize) -> Cluster {
    let cluster = Cluster::start(3);
    cluster.configure(mode);
    await_synchronous(&cluster, count);
    cluster
}

/// The members that `/cluster` shows on synchronous duty.
fn on_duty(cluster: &Cluster) -> Vec<String> {
    let Some(leader) = cluster.primary() else {
        return Vec::new();
    };
    let answer = cluster.nodes[leader].ask("GET", "/cluster", "");
    let view: serde_json::Value = answer
        .and_then(|(_, body)| serde_json::from_str(&body).ok())
        .unwrap_or_default();
    let members = view["members"].as_array().cloned().unwrap_or_default();
    members
        .iter()
        .filter(|member| member["role"] == "sync_standby" || member["role"] == "quorum_standby")
        .filter_map(|member| member["name"].as_str().map(str::to_owned))
        .collect()
}

#[track_caller]
fn await_synchronous(cluster: &Cluster, count: usize) {
    wait_until("standbys are synchronous", PATIENCE, || {
        on_duty(cluster).len() == count
    });
}

fn names(cluster: &Cluster, at: usize) -> String {
    cluster.nodes[at].query("SHOW synchronous_standby_names")
}

/// Kills the leader under load, twice, and finds everything that was acknowledged.
fn survives_its_leader(cluster: &mut Cluster, synchronous: usize) {
    let mut writer = Writer::start(cluster);
    for _ in 0..2 {
        await_synchronous(cluster, synchronous);
        writer.await_write(clock::now(), PATIENCE);
        let old = cluster.await_primary();
        let lost = clock::now();
        cluster.nodes[old].kill();
        let new = cluster.await_other(old, PATIENCE);
        let first = writer.await_write(lost + Duration::from_millis(200), PATIENCE);
        println!(
            "node killed: first write after {} ms",
            first.at.since(lost).as_millis()
        );
        assert_eq!(first.port, cluster.nodes[new].port);
        cluster.nodes[old].start();
        cluster.await_healthy();
        await_synchronous(cluster, synchronous);
        let pending = "SELECT count(*) FROM pg_settings WHERE pending_restart";
        assert_eq!(
            cluster.nodes[new].query(pending),
            "0",
            "a new list of standbys asks for no restart"
        );
    }
    let acks = writer.finish();
    assert!(acks.len() > 100, "only {} rows", acks.len());
    assert_one_writer(&acks);
    for node in &cluster.nodes {
        wait_until("every acknowledged row is there", PATIENCE, || {
            missing(&acks, node).is_empty()
        });
    }
}

#[test]
fn a_quorum_keeps_what_was_acknowledged_when_its_leader_dies() {
    let mut cluster = synchronous(r#"{"synchronous_mode": "quorum"}"#, 2);
    let leader = cluster.await_primary();
    let listed = names(&cluster, leader);
    assert!(listed.starts_with("ANY 1 (n"), "{listed}");
    survives_its_leader(&mut cluster, 2);
}

#[test]
fn a_synchronous_standby_keeps_what_was_acknowledged_when_its_leader_dies() {
    let mut cluster = synchronous(r#"{"synchronous_mode": true}"#, 1);
    survives_its_leader(&mut cluster, 1);
}

#[test]
fn commits_go_on_without_the_synchronous_standby_and_another_takes_over() {
    let mut cluster = synchronous(r#"{"synchronous_mode": true}"#, 1);
    let leader = cluster.await_primary();
    let mut writer = Writer::start(&cluster);
    let duty = on_duty(&cluster);
    let lost = cluster
        .nodes
        .iter()
        .position(|node| duty.contains(&node.name))
        .unwrap();
    let killed = clock::now();
    cluster.nodes[lost].kill();
    wait_until("another standby is on duty", PATIENCE, || {
        let now = on_duty(&cluster);
        now.len() == 1 && now != duty
    });
    let taken = clock::now();
    writer.await_write(taken, PATIENCE);
    println!(
        "synchronous standby killed: another on duty after {} ms",
        taken.since(killed).as_millis()
    );
    // Nobody is left: not strict, so commits go on alone.
    let last = cluster
        .others(leader)
        .into_iter()
        .find(|at| *at != lost)
        .unwrap();
    cluster.nodes[last].kill();
    cluster.nodes[lost].start();
    await_synchronous(&cluster, 1);
    cluster.configure(r#"{"synchronous_mode": false}"#);
    wait_until("the list is empty", PATIENCE, || {
        names(&cluster, leader).is_empty()
    });
    assert_eq!(on_duty(&cluster), Vec::<String>::new());
    writer.await_write(clock::now(), PATIENCE);
    let acks = writer.finish();
    assert_eq!(missing(&acks, &cluster.nodes[leader]), Vec::<i64>::new());
    cluster.nodes[last].start();
    cluster.await_healthy();
}

#[test]
fn strict_commits_wait_until_a_standby_is_back() {
    let mut cluster = synchronous(
        r#"{"synchronous_mode": "quorum", "synchronous_mode_strict": true}"#,
        2,
    );
    let leader = cluster.await_primary();
    let mut writer = Writer::start(&cluster);
    let others = cluster.others(leader);
    // One is enough; the store keeps its majority with it.
    cluster.nodes[others[0]].kill();
    wait_until("the lost standby is off duty", PATIENCE, || {
        on_duty(&cluster).len() == 1
    });
    writer.await_write(clock::now(), PATIENCE);
    // The other one's PostgreSQL does not come back for now, its agent stays.
    cluster.configure(r#"{"pause": true}"#);
    let alone = others[1];
    wait_until("the pause is known", PATIENCE, || {
        cluster.nodes[alone].about()["pause"] == true
    });
    let postmaster = cluster.nodes[alone].postmaster().unwrap();
    rustix::process::kill_process(postmaster, rustix::process::Signal::INT).unwrap();
    cluster.nodes[leader].await_log("commits are delayed");
    let waiting = clock::now();
    let listed = names(&cluster, leader);
    assert_eq!(listed, format!("ANY 1 ({})", cluster.nodes[alone].name));
    let resumed = clock::now();
    cluster.nodes[others[0]].start();
    cluster.configure(r#"{"pause": false}"#);
    writer.await_write(resumed, PATIENCE);
    cluster.await_healthy();
    let acks = writer.finish();
    let between: Vec<_> = acks
        .iter()
        .filter(|ack| ack.at > waiting && ack.at < resumed)
        .collect();
    assert!(between.is_empty(), "acknowledged alone: {between:?}");
    for node in &cluster.nodes {
        wait_until("every acknowledged row is there", PATIENCE, || {
            missing(&acks, node).is_empty()
        });
    }
}

#[test]
fn a_switchover_goes_to_a_synchronous_standby_only() {
    let cluster = synchronous(r#"{"synchronous_mode": true}"#, 1);
    let writer = Writer::start(&cluster);
    let leader = cluster.await_primary();
    let duty = on_duty(&cluster);
    let (mut inside, mut outside) = (leader, leader);
    for at in cluster.others(leader) {
        if duty.contains(&cluster.nodes[at].name) {
            inside = at;
        } else {
            outside = at;
        }
    }
    let ask = |to: usize| {
        let names = (&cluster.nodes[leader].name, &cluster.nodes[to].name);
        let body = format!(r#"{{"leader": "{}", "candidate": "{}"}}"#, names.0, names.1);
        cluster.nodes[leader]
            .ask("POST", "/switchover", &body)
            .expect("an answer")
    };
    let refused = ask(outside);
    assert!(refused.0 >= 400, "{refused:?}");
    assert_eq!(cluster.primary(), Some(leader));
    let done = ask(inside);
    assert_eq!(done.0, 200, "{done:?}");
    cluster.await_healthy();
    assert_eq!(cluster.primary(), Some(inside));
    await_synchronous(&cluster, 1);
    let acks = writer.finish();
    assert_one_writer(&acks);
    for node in &cluster.nodes {
        wait_until("every acknowledged row is there", PATIENCE, || {
            missing(&acks, node).is_empty()
        });
    }
}
