//! One container and two variables make a database; nothing else is needed.

use std::time::Duration;

use crate::cluster::{Node, PATIENCE};
use crate::docker::{Container, Lab, image, wait_for, wait_until};

/// Waits for the first write inside the container, where no password is needed.
fn await_writable(container: &Container) {
    wait_until("the database takes a write", PATIENCE, || {
        container
            .exec(&[
                "psql",
                "-U",
                "postgres",
                "-Xqc",
                "create table if not exists t (v int)",
            ])
            .is_ok()
    });
}

fn start(lab: &Lab, options: &[&str]) -> Container {
    let mut all = vec!["-e", "PATRONI_SCOPE=demo", "-e", "PATRONI_NAME=one"];
    all.extend(options);
    lab.run("one", &image(), &all, &[])
}

#[test]
fn two_variables_are_enough_and_data_survives_a_restart() {
    let lab = Lab::new("single");
    let container = start(&lab, &[]);
    await_writable(&container);
    container
        .exec(&[
            "psql",
            "-U",
            "postgres",
            "-Xqc",
            "insert into t values (42)",
        ])
        .unwrap();
    container.restart();
    await_writable(&container);
    let found = container
        .exec(&["psql", "-U", "postgres", "-XAtqc", "select v from t"])
        .unwrap();
    assert_eq!(found, "42");
    container.stop();
    assert_eq!(
        container.exit_status(),
        Some(0),
        "a normal stop is a success"
    );
}

#[test]
fn the_generated_password_is_the_one_that_works() {
    let lab = Lab::new("password");
    let container = start(&lab, &[]);
    await_writable(&container);
    let text = container
        .shell("cat /var/lib/postgresql/howdah-secrets.json")
        .unwrap();
    let secrets: serde_json::Value = serde_json::from_str(&text).unwrap();
    let password = secrets["superuser"]
        .as_str()
        .or(secrets["superuser"]["password"].as_str())
        .unwrap()
        .to_owned();
    assert!(password.len() >= 16, "{password:?} is too short to be safe");
    assert!(
        !container.logs().contains(&password),
        "a password in the log"
    );
    assert_eq!(
        container
            .shell("stat -c %a /var/lib/postgresql/howdah-secrets.json")
            .unwrap(),
        "600"
    );
    let node = Node {
        container,
        password,
    };
    assert_eq!(node.sql("select 1").unwrap(), "1");
    let wrong = Node {
        password: "wrong".to_owned(),
        ..node
    };
    assert!(wrong.sql("select 1").unwrap_err().starts_with("28P01"));
}

#[test]
fn the_image_says_when_it_is_healthy() {
    let lab = Lab::new("health");
    let container = start(&lab, &["--health-interval", "1s"]);
    wait_until("docker calls it healthy", PATIENCE, || {
        container.inspect("{{.State.Health.Status}}") == "healthy"
    });
    container.exec(&["patronictl", "list"]).unwrap();
}

#[test]
fn a_restricted_container_is_enough() {
    let lab = Lab::new("restricted");
    let container = start(
        &lab,
        &[
            "--read-only",
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
            "--user",
            "54321:54321",
        ],
    );
    await_writable(&container);
    assert_eq!(
        container
            .shell("stat -c %u \"$PATRONI_POSTGRESQL_DATA_DIR\"")
            .unwrap(),
        "54321"
    );
    container.restart();
    await_writable(&container);
    container.stop();
    assert_eq!(container.exit_status(), Some(0));
}

#[test]
fn started_as_root_it_steps_down() {
    let lab = Lab::new("root");
    let volume = lab.volume("data");
    let container = start(
        &lab,
        &[
            "--user",
            "0:0",
            "-v",
            &format!("{volume}:/var/lib/postgresql"),
        ],
    );
    await_writable(&container);
    let owners = container
        .shell("for pid in /proc/[0-9]*; do stat -c %u $pid; done 2>/dev/null | sort -u")
        .unwrap();
    // The shell that looks is root itself.
    assert!(owners.contains("999"), "{owners}");
    assert_eq!(container.shell("stat -c %u /proc/1").unwrap(), "999");
}

#[test]
fn the_container_ends_when_told() {
    let lab = Lab::new("stop");
    let container = start(&lab, &[]);
    await_writable(&container);
    container.stop();
    let status = wait_for("it has ended", Duration::from_secs(5), || {
        container.exit_status()
    });
    assert_eq!(status, 0);
    let log = container.logs();
    assert!(
        log.contains("database system is shut down"),
        "PostgreSQL was shut down cleanly:\n{log}"
    );
}
