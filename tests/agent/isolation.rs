//! A leader that hears nobody lets its commits wait: none is acknowledged that a failover would lose.

use std::thread::JoinHandle;
use std::time::Duration;

use howdah::clock;
use rustix::process::Signal;

use crate::cluster::{Cluster, PATIENCE, wait_until};
use crate::etcd::{Etcd, Wire};

/// Slow turns: it is not the timer that notices.
const TIMINGS: &str =
    "{ttl: 16, loop_wait: 8, retry_timeout: 4, postgresql: {use_pg_rewind: true}}";
const WITHIN: Duration = Duration::from_secs(3);
const HELD: &str = "__howdah_isolated__";

struct Stage {
    cluster: Cluster,
    wires: Vec<Wire>,
    leader: usize,
    _etcd: Etcd,
}

impl Stage {
    fn set() -> Stage {
        let etcd = Etcd::start();
        let (cluster, wires) = Cluster::start_over(&etcd, 3, &[("PATRONI_BOOTSTRAP_DCS", TIMINGS)]);
        let leader = cluster.await_primary();
        cluster.nodes[leader].query("CREATE TABLE t (id int PRIMARY KEY)");
        Stage {
            cluster,
            wires,
            leader,
            _etcd: etcd,
        }
    }

    fn names(&self) -> String {
        self.cluster.nodes[self.leader].query("SHOW synchronous_standby_names")
    }

    /// The leader hears nobody from now on; returns when its commits are held.
    fn isolate(&self) {
        assert_eq!(self.names(), "");
        let began = clock::now();
        self.wires[self.leader].cut();
        for at in self.cluster.others(self.leader) {
            self.cluster.nodes[at].signal_all(Signal::STOP);
        }
        wait_until("commits are held", WITHIN, || self.names() == HELD);
        println!(
            "isolated: commits are held after {} ms",
            clock::now().since(began).as_millis()
        );
    }

    fn others_return(&self) {
        for at in self.cluster.others(self.leader) {
            self.cluster.nodes[at].signal_all(Signal::CONT);
        }
    }

    /// A commit that waits; what its client is told.
    fn commit(&self, id: u32) -> JoinHandle<Result<String, String>> {
        let sql = self.cluster.nodes[self.leader].session();
        let statement = format!("INSERT INTO t VALUES ({id})");
        let told = std::thread::spawn(move || sql.run(&statement));
        wait_until("the commit waits", PATIENCE, || {
            self.cluster.nodes[self.leader]
                .query("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
                == "1"
        });
        told
    }

    #[track_caller]
    fn assert_everywhere(&self, id: u32) {
        for node in &self.cluster.nodes {
            wait_until("the row is there", PATIENCE, || {
                node.sql(&format!("SELECT id FROM t WHERE id = {id}"))
                    .as_deref()
                    == Ok(id.to_string().as_str())
            });
        }
    }
}

#[test]
fn held_commits_go_on_when_somebody_is_heard_again() {
    let mut stage = Stage::set();
    stage.isolate();
    let told = stage.commit(1);
    assert!(!told.is_finished());
    assert!(stage.cluster.nodes[stage.leader].is_primary());
    stage.others_return();
    stage.wires[stage.leader].mend();
    assert_eq!(told.join().unwrap(), Ok(String::new()));
    wait_until("nothing is held any more", PATIENCE, || {
        stage.names().is_empty()
    });
    assert_eq!(stage.cluster.primary(), Some(stage.leader));
    stage.assert_everywhere(1);

    // The agent dies while they are held; its successor lets them go once the lease is its own.
    stage.isolate();
    let told = stage.commit(2);
    let node = &mut stage.cluster.nodes[stage.leader];
    node.signal(Signal::KILL);
    node.ended(PATIENCE);
    assert_eq!(stage.names(), HELD);
    assert!(!told.is_finished());
    stage.others_return();
    stage.wires[stage.leader].mend();
    stage.cluster.nodes[stage.leader].start();
    assert_eq!(told.join().unwrap(), Ok(String::new()));
    stage.cluster.await_healthy();
    assert_eq!(stage.names(), "");
    assert_eq!(stage.cluster.primary(), Some(stage.leader));
    stage.assert_everywhere(2);
}

#[test]
fn held_commits_are_not_acknowledged_when_the_leader_is_demoted() {
    let stage = Stage::set();
    stage.isolate();
    let told = stage.commit(1);
    let old = &stage.cluster.nodes[stage.leader];
    wait_until("PostgreSQL is stopped", PATIENCE, || {
        old.postmaster().is_none()
    });
    let error = told.join().unwrap().unwrap_err();
    println!("the client was told: {error}");
    stage.others_return();
    // What was on its way to the standbys may still arrive there; nobody was told that it did.
    let new = stage.cluster.await_other(stage.leader, PATIENCE);
    stage.wires[stage.leader].mend();
    stage.cluster.await_healthy();
    assert_eq!(stage.cluster.primary(), Some(new));
    stage.cluster.nodes[new].query("INSERT INTO t VALUES (2)");
    stage.assert_everywhere(2);
}

#[test]
fn a_single_node_never_holds_its_commits() {
    let etcd = Etcd::start();
    let (cluster, wires) = Cluster::start_over(&etcd, 1, &[("PATRONI_BOOTSTRAP_DCS", TIMINGS)]);
    let node = &cluster.nodes[0];
    let sql = node.session();
    wires[0].cut();
    wait_until("the store is silent", PATIENCE, || {
        assert_eq!(sql.run("SHOW synchronous_standby_names"), Ok(String::new()));
        node.log().contains("the store does not answer")
    });
    assert_eq!(node.query("SHOW synchronous_standby_names"), "");
    node.query("CREATE TABLE t (id int)");
}
