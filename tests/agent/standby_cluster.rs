//! Two clusters on two sites, one the standby cluster of the other, and back.

use std::path::Path;

use crate::cluster::{Cluster, Node, PATIENCE, give, wait_until};

/// Its standby leader receives from the other site, and everybody else from the standby leader.
#[track_caller]
fn await_standby_leader(site: &Cluster) -> usize {
    let leads = |node: &Node| {
        let about = node.about();
        about["role"] == "standby_leader" && about["replication_state"] == "streaming"
    };
    let mut leader = 0;
    wait_until(
        "a standby leader streams, and others from it",
        PATIENCE,
        || {
            let Some(found) = site.nodes.iter().position(leads) else {
                return false;
            };
            leader = found;
            site.others(found)
                .iter()
                .all(|at| site.nodes[*at].streams())
        },
    );
    leader
}

/// Makes it the standby cluster of whatever listens there.
#[track_caller]
fn demote(site: &Cluster, at: usize, source: &str) {
    site.configure_at(at, &format!(r#"{{"standby_cluster": {source}}}"#));
}

fn server(node: &Node) -> String {
    format!(r#"{{"host": "127.0.0.1", "port": {}}}"#, node.port)
}

#[track_caller]
fn await_row(node: &Node, row: &str) {
    wait_until(&format!("{} has {row}", node.name), PATIENCE, || {
        let found = node.sql(&format!("SELECT count(*) FROM facts WHERE fact = '{row}'"));
        found.is_ok_and(|count| count.trim() == "1")
    });
}

/// Writes a row once the server takes it.
#[track_caller]
fn write(node: &Node, row: &str) {
    wait_until(&format!("{} takes {row}", node.name), PATIENCE, || {
        node.sql(&format!("INSERT INTO facts VALUES ('{row}')"))
            .is_ok()
    });
}

fn archive_in(dir: &Path) -> String {
    let archive = dir.join("archive");
    std::fs::create_dir(&archive).unwrap();
    give(&archive);
    archive.display().to_string()
}

#[test]
fn a_standby_cluster_follows_changes_its_leader_and_changes_sides() {
    let shared = tempfile::tempdir().unwrap();
    give(shared.path());
    let archive = archive_in(shared.path());
    let parameters = format!(
        "{{archive_mode: 'on', archive_command: 'cp %p {archive}/%f', archive_timeout: 1s}}"
    );
    let home = Cluster::start_with(
        1,
        &[
            ("PATRONI_POSTGRESQL_PARAMETERS", &parameters),
            ("PATRONI_POSTGRESQL_USE_PG_REWIND", "true"),
            ("PATRONI_SLOTS", "{site: {type: physical}}"),
            ("PATRONI_LOG_LEVEL", "DEBUG"),
        ],
    );
    home.nodes[0].query("CREATE TABLE facts (fact text)");
    let port = home.nodes[0].port.to_string();
    let mut away = Cluster::prepare(2);
    for node in &mut away.nodes {
        for (name, value) in [
            ("PATRONI_STANDBY_CLUSTER_HOST", "127.0.0.1"),
            ("PATRONI_STANDBY_CLUSTER_PORT", port.as_str()),
            ("PATRONI_STANDBY_CLUSTER_PRIMARY_SLOT_NAME", "site"),
            ("PATRONI_POSTGRESQL_USE_PG_REWIND", "true"),
        ] {
            node.environment.insert(name.to_owned(), value.to_owned());
        }
        node.start();
    }
    let first = await_standby_leader(&away);
    write(&home.nodes[0], "from home");
    for node in &away.nodes {
        await_row(node, "from home");
    }

    let second = change_the_leader(&away, first, &home.nodes[0]);
    by_the_archive_alone(&home, &away, second, &archive);
    let third = change_sides(&home, &away);
    change_back_by_force(&home, &away, third);
}

/// A switchover in the standby cluster: no server is stopped, the slot at the other site gets the new leader.
fn change_the_leader(away: &Cluster, old: usize, home: &Node) -> usize {
    let processes: Vec<_> = away.nodes.iter().map(Node::postmaster).collect();
    let body = format!(r#"{{"leader": "{}"}}"#, away.nodes[old].name);
    let (status, answer) = away.nodes[old].ask("POST", "/switchover", &body).unwrap();
    assert_eq!(status, 200, "{answer}");
    let new = await_standby_leader(away);
    assert_ne!(new, old);
    let now: Vec<_> = away.nodes.iter().map(Node::postmaster).collect();
    assert_eq!(processes, now, "a server was stopped");
    let application = home.query(
        "SELECT application_name FROM pg_stat_replication \
         JOIN pg_replication_slots ON active_pid = pid WHERE slot_name = 'site'",
    );
    assert_eq!(application.trim(), away.nodes[new].name);
    new
}

/// `restore_command` as the only source.
fn by_the_archive_alone(home: &Cluster, away: &Cluster, leader: usize, archive: &str) {
    let source = format!(
        r#"{{"restore_command": "cp {archive}/%f %p", "host": null, "port": null, "primary_slot_name": null}}"#
    );
    demote(away, leader, &source);
    write(&home.nodes[0], "by archive");
    for node in &away.nodes {
        await_row(node, "by archive");
    }
    let about = away.nodes[leader].about();
    assert_eq!(about["role"], "standby_leader");
    assert_eq!(about["replication_state"], "in archive recovery");
    assert_eq!(
        home.nodes[0]
            .query("SELECT count(*) FROM pg_stat_replication")
            .trim(),
        "0"
    );
}

/// Home becomes the standby cluster of what is its own standby cluster still, which then takes over. What home wrote last, its shutdown
/// checkpoint included, reaches the other site by the archive; so nothing is rewound. Who leads there.
fn change_sides(home: &Cluster, away: &Cluster) -> usize {
    write(&home.nodes[0], "last from home");
    let leader = (0..away.nodes.len())
        .find(|at| away.nodes[*at].about()["role"] == "standby_leader")
        .expect("a standby leader");
    demote(home, 0, &server(&away.nodes[leader]));
    home.nodes[0].await_log("archived the WAL up to the shutdown checkpoint");
    // The checkpoint opens a segment, for with archiving PostgreSQL switches to a new one right before it: its header has 0x28 bytes.
    let said = "publishing the end of this primary: ";
    home.nodes[0].await_log(said);
    let log = home.nodes[0].log();
    let end = log
        .split(said)
        .nth(1)
        .and_then(|end| end.split_whitespace().next());
    assert!(end.is_some_and(|end| end.ends_with("000028")), "{end:?}");
    wait_until("home is a standby", PATIENCE, || {
        home.nodes[0].about()["role"] == "standby_leader"
    });
    for node in &away.nodes {
        await_row(node, "last from home");
    }
    wait_until("the other site has all", PATIENCE, || {
        let at = |node: &Node| {
            node.sql("SELECT pg_last_wal_replay_lsn()")
                .unwrap_or_default()
        };
        let (there, here) = (at(&away.nodes[leader]), at(&home.nodes[0]));
        !here.is_empty() && there == here
    });
    demote(away, leader, "null");
    let promoted = away.await_primary();
    write(&away.nodes[promoted], "from away");
    await_row(&home.nodes[0], "from away");
    await_standby_leader(home);
    assert!(!home.nodes[0].log().contains("running pg_rewind"));
    promoted
}

/// Both sites are primaries for a while. The one that gives in is rewound against the other.
fn change_back_by_force(home: &Cluster, away: &Cluster, leader: usize) {
    demote(home, 0, "null");
    home.await_primary();
    write(&home.nodes[0], "lost");
    write(&away.nodes[leader], "kept");
    demote(home, 0, &server(&away.nodes[leader]));
    await_row(&home.nodes[0], "kept");
    await_standby_leader(home);
    let lost = home.nodes[0].query("SELECT count(*) FROM facts WHERE fact = 'lost'");
    assert_eq!(lost.trim(), "0");
    assert!(home.nodes[0].log().contains("running pg_rewind"));
}
