//! The demo of each store, as its compose file has it: started, read and written through the proxy, failed over, removed.

use std::process::Command;

use tempfile::TempDir;

use crate::cluster::PATIENCE;
use crate::docker::{docker, setting, try_docker, wait_for, wait_until};

/// One running demo; it goes with its owner, volumes and all.
struct Demo {
    flavour: &'static str,
    project: String,
    folder: TempDir,
    ports: [u16; 3],
}

impl Demo {
    /// Returns when the demo says that it is healthy.
    fn start(flavour: &'static str) -> Demo {
        let run =
            setting("HOWDAH_TEST_RUN").unwrap_or_else(|| format!("run{}", std::process::id()));
        let demo = Demo {
            flavour,
            project: format!("{run}-demo-{flavour}"),
            folder: TempDir::new().unwrap(),
            ports: free_ports(),
        };
        println!("{}", demo.script("up"));
        demo
    }

    /// What `docker/demo.sh` says.
    fn script(&self, action: &str) -> String {
        let [primary, replica, statistics] = self.ports.map(|port| port.to_string());
        let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docker/demo.sh"))
            .args([action, self.flavour])
            .env("DEMO_PROJECT", &self.project)
            .env("DEMO_SECRETS", self.folder.path().join("demo.env"))
            .env("HOWDAH_IMAGE", crate::docker::image())
            .env("HOWDAH_PRIMARY_PORT", primary)
            .env("HOWDAH_REPLICA_PORT", replica)
            .env("HOWDAH_STATS_PORT", statistics)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "demo.sh {action}: {said}");
        said
    }

    /// The container of one service.
    fn container(&self, service: &str) -> String {
        let label = "com.docker.compose";
        docker(&[
            "ps",
            "-aq",
            "--filter",
            &format!("label={label}.project={}", self.project),
            "--filter",
            &format!("label={label}.service={service}"),
        ])
    }

    /// SQL through the proxy, by way of a member that is up: 5000 is the primary, 5001 a replica.
    fn sql(&self, through: &str, port: u16, sql: &str) -> Result<String, String> {
        let script = format!(
            "PGPASSWORD=$PATRONI_SUPERUSER_PASSWORD PGCONNECT_TIMEOUT=2 exec psql -XAtq \
             'host=haproxy port={port} user=postgres dbname=postgres' -c \"{sql}\""
        );
        try_docker(&["exec", &self.container(through), "sh", "-c", &script])
    }

    /// Whether a client that sets no time limit hears something of the proxy, if only that there is no server.
    fn answers(&self, through: &str) -> bool {
        let script = "PGPASSWORD=$PATRONI_SUPERUSER_PASSWORD timeout 15 psql -XAtqc 'select 1' \
             'host=haproxy port=5000 user=postgres dbname=postgres'; test $? != 124";
        try_docker(&["exec", &self.container(through), "sh", "-c", script]).is_ok()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.script("down");
            return;
        }
        // A second panic would hide the first.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.script("down")));
    }
}

fn free_ports() -> [u16; 3] {
    // Held until all three are known, so that they differ.
    let held = [(); 3].map(|()| std::net::TcpListener::bind("0.0.0.0:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

const MEMBERS: [&str; 3] = ["howdah1", "howdah2", "howdah3"];

/// Whether a member says of itself that it is this.
fn is(demo: &Demo, member: &str, role: &str) -> bool {
    try_docker(&[
        "exec",
        &demo.container(member),
        "howdah",
        "healthcheck",
        role,
    ])
    .is_ok()
}

fn fails_over(flavour: &'static str) {
    let demo = Demo::start(flavour);
    let leader = wait_for("one member is primary", PATIENCE, || {
        MEMBERS
            .into_iter()
            .find(|member| is(&demo, member, "primary"))
    });
    let other = MEMBERS
        .into_iter()
        .find(|member| *member != leader)
        .unwrap();
    wait_until("the proxy takes a write", PATIENCE, || {
        demo.sql(
            other,
            5000,
            "create table if not exists t (v int primary key)",
        )
        .is_ok()
    });
    demo.sql(other, 5000, "insert into t values (1)").unwrap();
    // On both standbys: replication is asynchronous, and either may take over.
    wait_until("both standbys have it", PATIENCE, || {
        let all =
            "select count(*) from pg_stat_replication where replay_lsn = pg_current_wal_lsn()";
        demo.sql(other, 5000, all).is_ok_and(|count| count == "2")
    });
    docker(&["kill", &demo.container(leader)]);
    assert!(
        demo.answers(other),
        "the proxy forgot a client that came while the leader was going"
    );
    wait_until("the proxy takes a write again", PATIENCE, || {
        demo.sql(other, 5000, "insert into t values (2)").is_ok()
    });
    assert_eq!(
        demo.sql(
            other,
            5000,
            "select string_agg(v::text, ',' order by v) from t"
        )
        .unwrap(),
        "1,2"
    );
    assert!(
        MEMBERS
            .into_iter()
            .any(|member| member != leader && is(&demo, member, "primary"))
    );
    docker(&["start", &demo.container(leader)]);
    wait_until("the old leader is a replica", PATIENCE, || {
        is(&demo, leader, "replica")
    });
    wait_until("a replica shows the second row", PATIENCE, || {
        demo.sql(other, 5001, "select count(*) from t")
            .is_ok_and(|count| count == "2")
    });
}

#[test]
fn raft() {
    fails_over("raft");
}

#[test]
fn etcd() {
    fails_over("etcd");
}

#[test]
fn etcd2() {
    fails_over("etcd2");
}

#[test]
fn consul() {
    fails_over("consul");
}

#[test]
fn zookeeper() {
    fails_over("zookeeper");
}
