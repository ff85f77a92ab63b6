//! HAProxy in front of our members, as Patroni's documentation sets it up.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::cluster::{Cluster, PATIENCE, PROGRAMS, free_port, wait_until};
use crate::etcd::Etcd;
use crate::members::{self, Kind};

/// A program that ends with this.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn beside(command: &mut Command, log: &Path) -> Beside {
    let log = fs::File::create(log).unwrap();
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    Beside(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
}

/// The port of the server that answers at this address; `None`: no answer.
fn answers(host: &str, port: u16) -> Option<u16> {
    let output = Command::new(format!("{PROGRAMS}/psql"))
        .args([
            "-XqAt",
            "-c",
            "SELECT setting FROM pg_settings WHERE name = 'port'",
        ])
        .arg(format!(
            "host={host} port={port} user=postgres dbname=postgres connect_timeout=2"
        ))
        .env("PGPASSWORD", "super")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    output.status.success().then_some(())?;
    said.trim().parse().ok()
}

#[test]
fn haproxy_as_patronis_documentation_sets_it_up() {
    let etcd = Etcd::start();
    let mut cluster = members::start(&[Kind::Howdah; 3], |_| etcd.port);
    let (primary, replicas) = (free_port(), free_port());
    let servers: String = cluster
        .nodes
        .iter()
        .map(|node| {
            format!(
                "    server {} 127.0.0.1:{} maxconn 100 check port {}\n",
                node.name, node.port, node.rest
            )
        })
        .collect();
    // HTTP/1.0, OPTIONS and HEAD: what HAProxy sends when it is told no more than that.
    let settings = format!(
        "\
global
    maxconn 100

defaults
    log global
    mode tcp
    retries 2
    timeout client 30m
    timeout connect 4s
    timeout server 30m
    timeout check 5s

listen primary
    bind 127.0.0.1:{primary}
    option httpchk OPTIONS /primary
    http-check expect status 200
    default-server inter 1s fall 3 rise 2 on-marked-down shutdown-sessions
{servers}
listen replicas
    bind 127.0.0.1:{replicas}
    option httpchk HEAD /replica
    http-check expect status 200
    default-server inter 1s fall 3 rise 2 on-marked-down shutdown-sessions
{servers}"
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("haproxy.cfg");
    fs::write(&file, settings).unwrap();
    let log = dir.path().join("log");
    let _proxy = beside(
        Command::new("/usr/sbin/haproxy")
            .arg("-db")
            .arg("-f")
            .arg(&file),
        &log,
    );

    let first = cluster.await_primary();
    let follows = |cluster: &Cluster, leader: usize| {
        let leader = cluster.nodes[leader].port;
        wait_until("the proxy leads to the primary", PATIENCE, || {
            answers("127.0.0.1", primary) == Some(leader)
        });
        wait_until("the proxy leads to both replicas", PATIENCE, || {
            let seen: std::collections::BTreeSet<_> =
                (0..6).map(|_| answers("127.0.0.1", replicas)).collect();
            seen.len() == 2 && !seen.contains(&None) && !seen.contains(&Some(leader))
        });
    };
    follows(&cluster, first);
    let second = cluster.others(first)[0];
    cluster.switchover(second);
    cluster.await_healthy();
    follows(&cluster, second);
    // A member that is gone gets nobody any more.
    assert!(cluster.nodes[second].stop().success());
    let third = cluster.await_other(second, PATIENCE);
    wait_until("the proxy leads to the new primary", PATIENCE, || {
        answers("127.0.0.1", primary) == Some(cluster.nodes[third].port)
    });
}
