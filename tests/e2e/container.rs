//! What PID 1 owes its container, with the real agent and the real PostgreSQL.

use std::time::Duration;

use crate::cluster::{Cluster, PATIENCE, Store};
use crate::docker::wait_until;

fn postmaster(cluster: &Cluster) -> String {
    cluster.nodes[0]
        .container
        .shell("head -n 1 \"$PATRONI_POSTGRESQL_DATA_DIR/postmaster.pid\"")
        .unwrap()
}

#[test]
fn a_crashed_agent_comes_back_without_postgres_noticing() {
    let cluster = Cluster::start("agent-crash", Store::Raft, 1, &[]);
    let node = &cluster.nodes[0];
    let before = postmaster(&cluster);
    node.container.signal_agent("KILL");
    wait_until("init reports it", Duration::from_secs(5), || {
        node.container.logs().contains("starting it again")
    });
    wait_until("it leads again", PATIENCE, || node.is_primary());
    assert_eq!(
        postmaster(&cluster),
        before,
        "the same postmaster still runs"
    );
    assert_eq!(node.sql("select pg_is_in_recovery()").unwrap(), "f");
}

#[test]
fn postgres_sees_none_of_the_agents_secrets() {
    let cluster = Cluster::start("environment", Store::Raft, 1, &[]);
    let script = "tr '\\0' '\\n' < /proc/$(head -n 1 \"$PATRONI_POSTGRESQL_DATA_DIR/postmaster.pid\")/environ";
    let environment = cluster.nodes[0].container.shell(script).unwrap();
    assert!(!environment.contains("PATRONI_"), "{environment}");
}

#[test]
fn no_zombies_are_left() {
    let cluster = Cluster::start("zombies", Store::Raft, 1, &[]);
    let container = &cluster.nodes[0].container;
    container.shell("(sleep 0.1 &) ; (sleep 0.1 &)").unwrap();
    wait_until("every orphan is reaped", Duration::from_secs(5), || {
        let states = container
            .shell("cat /proc/[0-9]*/stat 2>/dev/null | cut -d' ' -f3")
            .unwrap();
        !states.lines().any(|state| state == "Z")
    });
}
