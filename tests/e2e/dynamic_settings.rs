//! The cluster's settings change while it runs, everywhere at once.

use crate::cluster::{Cluster, PATIENCE, Store};
use crate::docker::wait_until;

#[test]
fn a_parameter_reaches_every_member() {
    let cluster = Cluster::start("settings", Store::Raft, 2, &[]);
    let standby = cluster.others(cluster.primary())[0].clone();
    let (status, answer) = standby.patch(
        "/config",
        r#"{"postgresql": {"parameters": {"work_mem": "7MB"}}}"#,
    );
    assert_eq!(status, 200, "{answer}");
    for node in &cluster.nodes {
        wait_until(&format!("{} uses it", node.name()), PATIENCE, || {
            node.sql("show work_mem").is_ok_and(|found| found == "7MB")
        });
    }
}

#[test]
fn paused_means_paused() {
    let cluster = Cluster::start("pause", Store::Etcd, 2, &[]);
    let primary = cluster.primary().clone();
    let (status, answer) = primary.patch("/config", r#"{"pause": true}"#);
    assert_eq!(status, 200, "{answer}");
    wait_until("every member knows", PATIENCE, || {
        cluster
            .nodes
            .iter()
            .all(|node| node.status().is_some_and(|status| status["pause"] == true))
    });
    primary.container.signal_postmaster("INT");
    wait_until("PostgreSQL is down", PATIENCE, || {
        primary.sql("select 1").is_err()
    });
    let later = howdah::clock::now() + std::time::Duration::from_secs(8);
    wait_until("a ttl is over", PATIENCE, || howdah::clock::now() > later);
    assert!(
        cluster.nodes.iter().all(|node| !node.is_primary()),
        "nobody acts in pause"
    );
    let (status, answer) = primary.patch("/config", r#"{"pause": null}"#);
    assert_eq!(status, 200, "{answer}");
    cluster.await_healthy();
}
