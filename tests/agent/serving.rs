//! What members say of themselves, and a leader that can serve no more although it runs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::cluster::{Cluster, Node, PATIENCE, wait_until};

/// What a node says of `member`.
fn explained(node: &Node, member: &str) -> Option<Value> {
    let (status, body) = node.ask("GET", "/explain", "")?;
    assert_eq!(status, 200, "{body}");
    let document: Value = serde_json::from_str(&body).unwrap();
    let members = document["members"].as_array().unwrap();
    members.iter().find(|row| row["member"] == member).cloned()
}

fn sentence(node: &Node, member: &str) -> String {
    explained(node, member).map_or_else(String::new, |row| {
        row["sentence"].as_str().unwrap().to_owned()
    })
}

#[test]
fn members_explain_themselves_and_an_ailing_leader_hands_over() {
    let cluster = Cluster::start(2);
    let leader = cluster.await_primary();
    cluster.await_healthy();
    let other = cluster.others(leader)[0];
    let (old, new) = (&cluster.nodes[leader], &cluster.nodes[other]);
    wait_until("the leader explains itself", PATIENCE, || {
        sentence(old, &old.name)
            == format!(
                "{} is the leader: it holds the leader key and its PostgreSQL runs as primary",
                old.name
            )
    });
    wait_until("the standby explains itself", PATIENCE, || {
        sentence(new, &new.name).ends_with(&format!(
            "{} holds the leader key, and it follows",
            old.name
        ))
    });
    wait_until("the standby explains the leader", PATIENCE, || {
        explained(new, &old.name)
            .is_some_and(|row| row["leader"] == true && row["told_by"] == new.name.as_str())
    });

    let mode = |mode| fs::set_permissions(old.data(), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o500);
    let led = {
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cluster.await_other(leader, PATIENCE)
        }));
        mode(0o700);
        waited
    };
    assert_eq!(led.unwrap(), other);
    assert!(old.log().contains("stepping down:"), "{}", old.log());
    assert!(old.log().contains("cannot be read and written"));
    cluster.await_healthy();
    wait_until("it could serve again", PATIENCE, || {
        old.about()["cannot_serve"].is_null()
    });
}
