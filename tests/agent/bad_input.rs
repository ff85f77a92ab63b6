//! Mistakes in what a node is given: each is named, nothing is touched, and it goes on once the mistake is gone.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use howdah::clock;
use rustix::process::{Signal, kill_process};

use crate::cluster::{Cluster, PATIENCE, wait_until};

/// How often a text was logged.
fn count(log: &str, text: &str) -> usize {
    log.matches(text).count()
}

#[test]
fn a_wrong_replication_password_is_named_and_does_not_make_the_node_spin() {
    let mut cluster = Cluster::prepare(3);
    cluster.nodes[1].environment.insert(
        "PATRONI_REPLICATION_PASSWORD".to_owned(),
        "mistyped".to_owned(),
    );
    cluster.nodes[1]
        .environment
        .insert("PATRONI_TAGS_NOFAILOVER".to_owned(), "true".to_owned());
    for node in &mut cluster.nodes {
        node.start();
    }
    let failed = "password authentication failed for user \"replicator\"";
    cluster.nodes[1].await_log(failed);
    let began = clock::now();
    wait_until("it is tried again", PATIENCE, || {
        count(
            &cluster.nodes[1].log(),
            "bootstrap from another server: failed: ",
        ) >= 3
    });
    let tries = count(&cluster.nodes[1].log(), "trying to bootstrap from");
    let most = 6 + clock::now().since(began).as_secs() as usize * 4;
    assert!(tries <= most, "{tries} lines about clones");
    // Once the password fits it goes on by itself.
    let leader = &cluster.nodes[cluster.await_primary()];
    leader.query("ALTER ROLE replicator PASSWORD 'mistyped'");
    cluster.nodes[2].stop();
    wait_until("the node streams", PATIENCE, || cluster.nodes[1].streams());
}

#[test]
fn data_of_another_cluster_or_another_major_is_left_alone() {
    let mut mine = Cluster::start(1);
    let mut theirs = Cluster::start(1);
    mine.nodes[0].query("CREATE TABLE precious ()");
    assert!(mine.nodes[0].stop().success());
    assert!(theirs.nodes[0].stop().success());

    // Another cluster's directory in my place.
    let (data, aside) = (mine.nodes[0].data(), mine.nodes[0].dir.join("aside"));
    fs::rename(&data, &aside).unwrap();
    fs::rename(theirs.nodes[0].data(), &data).unwrap();
    mine.nodes[0].start();
    let status = mine.nodes[0].ended(PATIENCE);
    assert_eq!(status.code(), Some(1), "{status}");
    let log = mine.nodes[0].log();
    assert!(log.contains("system ID mismatch"), "{log}");
    assert!(data.join("global/pg_control").exists());
    fs::rename(&data, theirs.nodes[0].data()).unwrap();
    fs::rename(&aside, &data).unwrap();

    // Another major.
    let version = data.join("PG_VERSION");
    fs::write(&version, "14\n").unwrap();
    mine.nodes[0].start();
    let status = mine.nodes[0].ended(PATIENCE);
    assert_eq!(status.code(), Some(1), "{status}");
    let log = mine.nodes[0].log();
    assert!(log.contains("14") && log.contains("15"), "{log}");
    fs::write(&version, "15\n").unwrap();

    mine.nodes[0].start();
    mine.await_healthy();
    mine.nodes[0].query("SELECT FROM precious");
}

#[test]
fn a_port_in_use_is_named_and_waited_for() {
    let mut cluster = Cluster::start(1);
    assert!(cluster.nodes[0].stop().success());

    // PostgreSQL's own: tried again until it is free.
    let thief = TcpListener::bind(("127.0.0.1", cluster.nodes[0].port)).unwrap();
    cluster.nodes[0].start();
    let port = cluster.nodes[0].port.to_string();
    cluster.nodes[0].await_log("PostgreSQL ended while starting");
    assert!(cluster.nodes[0].log().contains(&port));
    drop(thief);
    cluster.await_healthy();
    assert!(cluster.nodes[0].stop().success());

    // The API's: the node ends and says why.
    let thief = TcpListener::bind(("127.0.0.1", cluster.nodes[0].rest)).unwrap();
    cluster.nodes[0].start();
    let status = cluster.nodes[0].ended(PATIENCE);
    assert!(!status.success());
    let rest = cluster.nodes[0].rest.to_string();
    let log = cluster.nodes[0].log();
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains(&rest), "{last}");
    drop(thief);
    cluster.nodes[0].start();
    cluster.await_healthy();
}

#[test]
fn a_setting_that_postgresql_cannot_start_with_is_taken_back_without_a_restart_of_the_node() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    cluster.configure(
        r#"{"postgresql": {"parameters": {"shared_preload_libraries": "no_such_library"}}}"#,
    );
    wait_until("the restart is pending", PATIENCE, || {
        node.about()["pending_restart"] == true
    });
    kill_process(node.postmaster().unwrap(), Signal::KILL).unwrap();
    let began = clock::now();
    wait_until("it is tried again", PATIENCE, || {
        count(&node.log(), "starting primary after failure: failed: ") >= 3
    });
    let took = clock::now().since(began);
    assert!(took > Duration::from_secs(2), "three attempts in {took:?}");
    assert!(node.log().contains("no_such_library"));
    let answer = node.ask(
        "PATCH",
        "/config",
        r#"{"postgresql": {"parameters": {"shared_preload_libraries": null}}}"#,
    );
    assert_eq!(answer.map(|(status, _)| status), Some(200));
    cluster.await_healthy();
    assert!(node.about()["pending_restart"].is_null());
}

#[test]
fn a_place_for_data_that_cannot_be_written_is_named_and_leaves_the_way_free() {
    let mut cluster = Cluster::prepare(1);
    let node = &mut cluster.nodes[0];
    let parent = node.dir.join("full");
    fs::create_dir(&parent).unwrap();
    let data = parent.join("data");
    let here = data.display().to_string();
    node.environment
        .insert("PATRONI_POSTGRESQL_DATA_DIR".to_owned(), here.clone());
    fs::set_permissions(&parent, PermissionsExt::from_mode(0o555)).unwrap();
    node.start();
    let status = node.ended(PATIENCE);
    assert_eq!(status.code(), Some(1), "{status}");
    let log = node.log();
    assert!(log.contains(&here), "{log}");
    crate::cluster::give(&parent);
    fs::set_permissions(&parent, PermissionsExt::from_mode(0o700)).unwrap();
    node.start();
    cluster.await_healthy();
}
