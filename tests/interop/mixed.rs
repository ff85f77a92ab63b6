//! Howdah's and Patroni's members in one cluster.

use std::time::Duration;

use howdah::clock;
use serde_json::Value;

use crate::cluster::{Cluster, PATIENCE, wait_until};
use crate::etcd::Etcd;
use crate::members::{self, Kind};
use crate::tools::Tools;
use crate::writer::{Writer, assert_one_writer, longest_gap, missing};

use Kind::{Howdah, Patroni};

/// The `ttl` of these clusters, with the time an election takes.
const ELECTION: Duration = Duration::from_secs(35);

#[test]
fn two_of_ours_and_one_of_patronis() {
    mixed([Howdah, Howdah, Patroni]);
}

#[test]
fn two_of_patronis_and_one_of_ours() {
    mixed([Patroni, Patroni, Howdah]);
}

/// The first two are of one kind, the third of the other; the first creates the cluster.
fn mixed(kinds: [Kind; 3]) {
    let etcd = Etcd::start();
    let wires: Vec<_> = kinds.iter().map(|_| etcd.wire()).collect();
    let mut cluster = members::start(&kinds, |at| wires[at].port);
    let tools = Tools::new(&members::file(&cluster.nodes[0]));
    tools.same_shape(&["list", "demo"]);
    let mut writer = Writer::start(&cluster);

    // Planned, in both directions, and what the other kind's leader is told.
    for (leader, copied, work_mem) in [(2, 0, "6MB"), (0, 2, "7MB")] {
        switchover(&cluster, leader);
        config(&cluster, work_mem);
        reinitialize(&cluster, copied);
    }
    pause(&cluster);
    if cluster.primary() != Some(0) {
        // What was stopped by hand is led by another once the pause is over.
        switchover(&cluster, 0);
    }

    // Whoever is named has everything, the other kind included.
    for (mode, role) in [("true", "Sync Standby"), ("\"quorum\"", "Quorum Standby")] {
        let change = format!(r#"{{"synchronous_mode": {mode}, "synchronous_node_count": 2}}"#);
        cluster.configure(&change);
        for to in [2, 0] {
            synchronous(&cluster, &tools, role, to);
            switchover(&cluster, to);
        }
    }
    cluster.configure(r#"{"synchronous_mode": false}"#);
    wait_until("commits wait for nobody", PATIENCE, || {
        cluster.nodes[0]
            .sql("SHOW synchronous_standby_names")
            .as_deref()
            == Ok("")
    });

    // The store is away for longer than the lease lasts.
    cluster.configure(r#"{"failsafe_mode": true}"#);
    wait_until("everybody knows the members", PATIENCE, || {
        cluster.nodes.iter().all(|node| {
            node.ask("GET", "/failsafe", "").is_some_and(|(_, body)| {
                let members: Value = serde_json::from_str(&body).unwrap_or_default();
                members
                    .as_object()
                    .is_some_and(|members| members.len() == 3)
            })
        })
    });
    for wire in &wires {
        wire.cut();
    }
    let cut = clock::now();
    while clock::now().since(cut) < Duration::from_secs(26) {
        writer.await_write(clock::now(), Duration::from_secs(5));
        assert_eq!(cluster.primary(), Some(0), "the leader stays");
    }
    for wire in &wires {
        wire.mend();
    }
    // Patroni's `/primary` says no for a moment, between reading that the key is gone and taking it again.
    wait_until("the leader has its key again", PATIENCE, || {
        assert!(!cluster.nodes[1].is_primary() && !cluster.nodes[2].is_primary());
        cluster.primary() == Some(0)
    });
    cluster.await_healthy();
    assert_eq!(cluster.nodes[0].query("SELECT pg_is_in_recovery()"), "f");
    cluster.configure(r#"{"failsafe_mode": false}"#);

    // The leader's machine is gone: the store forgets it after `ttl`, and the other kind follows, with everything.
    cluster.configure(r#"{"synchronous_mode": "quorum"}"#);
    synchronous(&cluster, &tools, "Quorum Standby", 2);
    assert!(cluster.nodes[1].stop().success());
    wait_until("commits wait for the other kind alone", PATIENCE, || {
        with_role(&tools, "Quorum Standby") == [cluster.nodes[2].name.as_str()]
    });
    let killed = clock::now();
    cluster.nodes[0].kill();
    assert_eq!(cluster.await_other(0, ELECTION), 2);
    println!(
        "{kinds:?}: killed leader replaced after {} ms",
        clock::now().since(killed).as_millis()
    );
    for node in &mut cluster.nodes[..2] {
        node.start();
    }
    cluster.await_healthy();
    // Who streams is not yet written down as one who votes: stopped before that, the leader has no successor.
    synchronous(&cluster, &tools, "Quorum Standby", 0);
    // Told to stop: the key is given back at once, to the other kind.
    assert!(cluster.nodes[2].stop().success());
    cluster.await_other(2, PATIENCE);
    cluster.nodes[2].start();
    cluster.await_healthy();
    tools.same_shape(&["list", "demo"]);
    tools.same(&["history", "demo"]);

    writer.await_write(clock::now(), PATIENCE);
    let acks = writer.finish();
    assert_one_writer(&acks);
    println!(
        "{kinds:?}: {} rows, longest time without one {} ms",
        acks.len(),
        longest_gap(&acks).as_millis()
    );
    let leader = cluster.await_primary();
    assert_eq!(missing(&acks, &cluster.nodes[leader]), Vec::<i64>::new());
}

#[track_caller]
fn switchover(cluster: &Cluster, to: usize) {
    let answer = cluster.switchover(to);
    let name = &cluster.nodes[to].name;
    assert_eq!(answer, format!("Successfully switched over to \"{name}\""));
    cluster.await_healthy();
    assert_eq!(cluster.primary(), Some(to));
}

#[track_caller]
fn config(cluster: &Cluster, work_mem: &str) {
    cluster.configure(&format!(
        r#"{{"postgresql": {{"parameters": {{"work_mem": "{work_mem}"}}}}}}"#
    ));
    for node in &cluster.nodes {
        wait_until("the setting is taken up", PATIENCE, || {
            node.sql("SHOW work_mem").as_deref() == Ok(work_mem)
        });
    }
}

#[track_caller]
fn reinitialize(cluster: &Cluster, at: usize) {
    let node = &cluster.nodes[at];
    let before = node.postmaster();
    let (status, answer) = node.ask("POST", "/reinitialize", "{}").unwrap();
    assert_eq!(status, 200, "{answer}");
    wait_until("the new copy streams", PATIENCE, || {
        node.postmaster().is_some_and(|pid| Some(pid) != before) && node.streams()
    });
    cluster.await_healthy();
}

/// Nobody replaces a leader that is stopped by hand meanwhile.
fn pause(cluster: &Cluster) {
    cluster.configure(r#"{"pause": true}"#);
    wait_until("all know of the pause", PATIENCE, || {
        cluster
            .nodes
            .iter()
            .all(|node| node.about()["pause"] == true)
    });
    let leader = cluster.await_primary();
    let node = &cluster.nodes[leader];
    let postmaster = node.postmaster().expect("it runs");
    rustix::process::kill_process(postmaster, rustix::process::Signal::INT).unwrap();
    wait_until("PostgreSQL is down", PATIENCE, || {
        node.postmaster().is_none()
    });
    let seen = clock::now();
    while clock::now().since(seen) < Duration::from_secs(3) {
        for other in cluster.others(leader) {
            assert!(
                !cluster.nodes[other].is_primary(),
                "paused, and yet replaced"
            );
        }
    }
    cluster.configure_at(cluster.others(leader)[0], r#"{"pause": null}"#);
    cluster.await_healthy();
}

/// Waits until the store says that commits wait for both standbys.
#[track_caller]
fn synchronous(cluster: &Cluster, tools: &Tools, role: &str, to: usize) {
    wait_until("the standbys are synchronous", PATIENCE, || {
        with_role(tools, role).len() == 2 && with_role(tools, "Replica").is_empty()
    });
    // The client goes on writing: positions differ from one look to the next.
    let said = tools.same_shape(&["list", "demo"]);
    said.must_contain(&cluster.nodes[to].name);
}

/// The members that the command line shows in this role.
fn with_role(tools: &Tools, role: &str) -> Vec<String> {
    let said = tools.run(Howdah, &["list", "demo", "-f", "json"], "");
    let rows: Value = serde_json::from_str(&said.out).unwrap_or_default();
    let rows = rows.as_array().cloned().unwrap_or_default();
    rows.iter()
        .filter(|row| row["Role"] == role)
        .filter_map(|row| Some(row["Member"].as_str()?.to_owned()))
        .collect()
}
