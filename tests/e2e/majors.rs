//! Every major version of PostgreSQL that a current Debian release packages, each from its own image: a leader and a replica, a planned change of
//! the leader, a restart of both, and all of the data.

use crate::cluster::{Cluster, Store};
use crate::docker::image_of_major;

fn lives(major: u32) {
    let story = format!("major-{major}");
    let mut cluster = Cluster::start_without_waiting(&story, Store::Raft, 0, &[]);
    for number in 1..=2 {
        let node = cluster.start_member_of(&image_of_major(major), number, 2, &[], &[]);
        cluster.nodes.push(node);
    }
    cluster.await_healthy();
    let old = cluster.primary().clone();
    let version = old.sql("show server_version_num").unwrap();
    assert_eq!(version.parse::<u32>().unwrap() / 10_000, major);
    old.sql("create table kept (v int)").unwrap();
    old.sql("insert into kept values (1)").unwrap();

    let target = cluster.others(&old)[0].clone();
    let body = serde_json::json!({"leader": old.name(), "candidate": target.name()});
    let (status, answer) = old.post("/switchover", &body.to_string());
    assert_eq!(status, 200, "{answer}");
    target.await_primary();
    cluster.await_healthy();
    target.sql("insert into kept values (2)").unwrap();

    // One after the other: who is promoted and stopped at once, before the other has heard of it, diverges.
    for node in &cluster.nodes {
        node.container.restart();
        cluster.await_healthy();
    }
    cluster
        .primary()
        .sql("insert into kept values (3)")
        .unwrap();
    let kept = cluster
        .primary()
        .sql("select v from kept order by v")
        .unwrap();
    assert_eq!(kept, "1\n2\n3");
}

#[test]
fn postgresql_15() {
    lives(15);
}

#[test]
fn postgresql_17() {
    lives(17);
}

#[test]
fn postgresql_18() {
    lives(18);
}
