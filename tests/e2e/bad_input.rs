//! Everything an operator gets wrong: the container says what is wrong with what, and nothing is destroyed.

use std::time::Duration;

use crate::cluster::{Cluster, Node, PATIENCE, Store, fails, one_off};
use crate::docker::{Lab, docker, image, wait_until};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_missing_scope_is_named() {
    let image = image();
    let (status, said) = one_off(&[&image]);
    assert_eq!(status, 64, "{said}");
    assert!(said.contains("PATRONI_SCOPE"), "{said}");
}

#[test]
fn missing_passwords_are_named_all_at_once() {
    let image = image();
    let (status, said) = one_off(&[
        "-e",
        "PATRONI_SCOPE=a",
        "-e",
        "PATRONI_NAME=b",
        "-e",
        "PATRONI_ETCD3_HOSTS=nowhere:2379",
        &image,
    ]);
    assert_eq!(status, 64, "{said}");
    for variable in ["PATRONI_SUPERUSER_PASSWORD", "PATRONI_REPLICATION_PASSWORD"] {
        assert!(
            said.contains(variable),
            "{variable} is not named in:\n{said}"
        );
    }
}

#[test]
fn contradictory_variables_are_named_all_at_once() {
    let image = image();
    let (status, said) = one_off(&[
        "-e",
        "PATRONI_SCOPE=a",
        "-e",
        "PATRONI_NAME=b",
        "-e",
        "PATRONI_SUPERUSER_PASSWORD=one",
        "-e",
        "PATRONI_SUPERUSER_PASSWORD_FILE=/run/secrets/superuser",
        "-e",
        "PATRONI_RAFT_PASSWORD=one",
        "-e",
        "PATRONI_RAFT_PASSWORD_FILE=/run/secrets/raft",
        &image,
    ]);
    assert_eq!(status, 64, "{said}");
    for variable in ["PATRONI_SUPERUSER_PASSWORD", "PATRONI_RAFT_PASSWORD"] {
        let fault = format!("{variable}: is given twice: also as {variable}_FILE");
        assert!(said.contains(&fault), "{fault} is not in:\n{said}");
    }
}

#[test]
fn a_value_that_is_no_number_is_named() {
    let image = image();
    let (status, said) = one_off(&[
        "-e",
        "PATRONI_SCOPE=a",
        "-e",
        "PATRONI_NAME=b",
        "-e",
        "PATRONI_TTL=soon",
        &image,
    ]);
    assert_eq!(status, 64, "{said}");
    assert!(
        said.contains("PATRONI_TTL") && said.contains("soon"),
        "{said}"
    );
}

#[test]
fn a_typo_in_yaml_names_its_line() {
    let image = image();
    let script = "printf 'scope: a\\nname: [b\\n' > /tmp/x.yml; exec patroni /tmp/x.yml";
    let (status, said) = one_off(&[&image, "sh", "-c", script]);
    assert!(status == 1 || status == 64, "{status}: {said}");
    assert!(said.contains("/tmp/x.yml"), "{said}");
}

#[test]
fn a_foreign_data_directory_is_left_alone() {
    let cluster = Cluster::start("foreign", Store::Etcd, 1, &[]);
    let volume = cluster.lab.volume("other");
    let mount = format!("{volume}:/var/lib/postgresql");
    // A cluster of its own, from the embedded store.
    let other = cluster.lab.run(
        "other",
        &image(),
        &[
            "-e",
            "PATRONI_SCOPE=other",
            "-e",
            "PATRONI_NAME=other",
            "-v",
            &mount,
        ],
        &[],
    );
    // Not before it is bootstrapped: a stop in the middle of that leaves no data behind.
    wait_until("it has data", PATIENCE, || {
        other.exec(&["howdah", "healthcheck", "primary"]).is_ok()
            && other
                .exec(&[
                    "psql",
                    "-U",
                    "postgres",
                    "-Xqc",
                    "create table if not exists mine (v int)",
                ])
                .is_ok()
    });
    other.stop();
    let intruder = cluster.lab.run(
        "intruder",
        &image(),
        &[
            "-e",
            "PATRONI_SCOPE=demo",
            "-e",
            "PATRONI_NAME=intruder",
            "-e",
            "PATRONI_ETCD3_HOSTS=etcd1:2379",
            "-e",
            "PATRONI_SUPERUSER_PASSWORD=super-secret",
            "-e",
            "PATRONI_REPLICATION_PASSWORD=replication-secret",
            "-v",
            &mount,
        ],
        &[],
    );
    let (status, said) = fails(&intruder, SOON);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("system"), "{said}");
    // The data is still there for its owner.
    other.start();
    wait_until("the table is still there", PATIENCE, || {
        other
            .exec(&["psql", "-U", "postgres", "-Xqc", "select * from mine"])
            .is_ok()
    });
}

#[test]
fn a_directory_of_another_major_is_refused() {
    let lab = Lab::new("major");
    let volume = lab.volume("data");
    let mount = format!("{volume}:/var/lib/postgresql");
    let image = image();
    docker(&[
        "run",
        "--rm",
        "-v",
        &mount,
        &image,
        "sh",
        "-c",
        "initdb -D /var/lib/postgresql/data -U postgres >/dev/null && echo 12 > /var/lib/postgresql/data/PG_VERSION",
    ]);
    let container = lab.run(
        "one",
        &image,
        &[
            "-e",
            "PATRONI_SCOPE=a",
            "-e",
            "PATRONI_NAME=one",
            "-v",
            &mount,
        ],
        &[],
    );
    let (status, said) = fails(&container, SOON);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("12"), "{said}");
}

#[test]
fn two_members_with_one_name() {
    let cluster = Cluster::start("namesake", Store::Etcd, 1, &[]);
    let node = &cluster.nodes[0];
    let environment = node.container.environment();
    let mut options = Vec::new();
    let settings: Vec<String> = environment
        .iter()
        .filter(|(name, _)| name.starts_with("PATRONI_"))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    for setting in &settings {
        options.extend(["-e", setting.as_str()]);
    }
    let namesake = cluster.lab.run("namesake", &image(), &options, &[]);
    let (status, said) = fails(&namesake, SOON);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("node1"), "{said}");
    assert!(node.is_primary());
}

#[test]
fn a_wrong_replication_password_shows_in_the_log() {
    let cluster = Cluster::start("wrong-password", Store::Etcd, 1, &[]);
    let node = cluster.start_member(2, 2, &["PATRONI_REPLICATION_PASSWORD=wrong"]);
    wait_until("the log says so", PATIENCE, || {
        node.container
            .logs()
            .contains("password authentication failed")
    });
    assert!(node.container.is_running(), "it waits for a remedy");
    assert!(cluster.nodes[0].is_primary());
}

#[test]
fn a_store_that_comes_late() {
    let cluster = Cluster::start("late-store", Store::Etcd, 1, &[]);
    let node = &cluster.nodes[0];
    node.container.stop();
    for etcd in &cluster.etcd {
        etcd.stop();
    }
    node.container.start();
    wait_until("it says what it waits for", SOON, || {
        node.container.logs().contains("etcd")
    });
    assert!(node.container.is_running());
    for etcd in &cluster.etcd {
        etcd.start();
    }
    node.await_primary();
}

#[test]
fn a_store_that_goes_away_stops_the_writing() {
    let cluster = Cluster::start("lost-store", Store::Etcd, 2, &[]);
    let primary = cluster.primary().clone();
    for etcd in &cluster.etcd {
        etcd.stop();
    }
    wait_until("nobody is primary", SOON, || {
        cluster.nodes.iter().all(Node::denies_being_primary)
    });
    wait_until("no node takes a write", SOON, || {
        cluster.nodes.iter().all(|node| {
            node.sql("create table if not exists never (v int)")
                .is_err()
        })
    });
    for etcd in &cluster.etcd {
        etcd.start();
    }
    cluster.await_healthy();
    drop(primary);
}

#[test]
fn a_port_in_use_is_named() {
    let lab = Lab::new("port");
    let squatter = lab.run(
        "squatter",
        &image(),
        &["-e", "PATRONI_SCOPE=a", "-e", "PATRONI_NAME=one"],
        &[],
    );
    wait_until("the first one leads", PATIENCE, || {
        squatter
            .exec(&["psql", "-U", "postgres", "-XAtqc", "select 1"])
            .is_ok()
    });
    let network = format!("container:{}", squatter.inspect("{{.Id}}"));
    let image = image();
    let (status, said) = one_off(&[
        "--network",
        &network,
        "-e",
        "PATRONI_SCOPE=b",
        "-e",
        "PATRONI_NAME=two",
        &image,
    ]);
    assert_ne!(status, 0, "{said}");
    assert!(
        said.contains("8008") || said.contains("5432") || said.contains("2222"),
        "{said}"
    );
}

#[test]
fn an_unwritable_volume_is_named() {
    let image = image();
    let (status, said) = one_off(&[
        "--tmpfs",
        "/var/lib/postgresql:ro",
        "-e",
        "PATRONI_SCOPE=a",
        "-e",
        "PATRONI_NAME=one",
        &image,
    ]);
    assert_ne!(status, 0, "{said}");
    assert!(said.contains("/var/lib/postgresql"), "{said}");
}

#[test]
fn a_malformed_document_in_the_store_is_survived() {
    let cluster = Cluster::start("malformed", Store::Etcd, 2, &[]);
    for key in [
        "sync",
        "history",
        "failover",
        "status",
        "config",
        "members/node9",
    ] {
        cluster.etcd[0]
            .exec(&[
                "env",
                "ETCDCTL_API=3",
                "etcdctl",
                "put",
                &format!("/service/demo/{key}"),
                "{broken",
            ])
            .unwrap();
    }
    let later = howdah::clock::now() + Duration::from_secs(8);
    wait_until("a ttl is over", SOON, || howdah::clock::now() > later);
    cluster.await_healthy();
    assert_eq!(cluster.primary().sql("select 1").unwrap(), "1");
}
