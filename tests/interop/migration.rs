//! A running cluster changes its program, member by member, on the same data directories, under write load: to Howdah and back.

use howdah::clock;

use crate::cluster::{Cluster, PATIENCE};
use crate::etcd::Etcd;
use crate::members::{self, Kind, assign};
use crate::tools::Tools;
use crate::writer::{Writer, assert_one_writer, longest_gap, missing};

#[test]
fn a_running_cluster_moves_to_ours_and_back_and_loses_nothing() {
    let etcd = Etcd::start();
    let mut cluster = members::start(&[Kind::Patroni; 3], |_| etcd.port);
    let identifier = cluster.nodes[0].query("SELECT system_identifier FROM pg_control_system()");
    let tools = Tools::new(&members::file(&cluster.nodes[0]));
    for to in [Kind::Howdah, Kind::Patroni] {
        let leader = &cluster.nodes[cluster.await_primary()];
        leader.query("DROP TABLE IF EXISTS written");
        let mut writer = Writer::start(&cluster);
        roll(&mut cluster, to);
        writer.await_write(clock::now(), PATIENCE);
        let acks = writer.finish();
        assert_one_writer(&acks);
        let leader = cluster.await_primary();
        let lost = missing(&acks, &cluster.nodes[leader]);
        println!(
            "all members run {to:?}: {} rows acknowledged, {} lost, longest time without one {} ms",
            acks.len(),
            lost.len(),
            longest_gap(&acks).as_millis()
        );
        assert_eq!(lost, Vec::<i64>::new());
        for node in &cluster.nodes {
            let now = node.query("SELECT system_identifier FROM pg_control_system()");
            assert_eq!(now, identifier, "{} has its old data", node.name);
        }
        tools.same(&["list", "demo"]);
        tools.same(&["history", "demo"]);
        tools.same(&["show-config", "demo"]);
    }
    for node in &cluster.nodes {
        // Nobody was copied again: what a replica had is what it goes on with.
        let bootstrapped = node.log().matches("replica has been created").count()
            + node.log().matches("replica created").count();
        assert!(bootstrapped <= 1, "{} was copied again", node.name);
        assert!(
            !node.log().contains("pg_rewind"),
            "{} was rewound",
            node.name
        );
    }
}

/// The replicas first, then a switchover to one of them, the former leader last.
fn roll(cluster: &mut Cluster, to: Kind) {
    let leader = cluster.await_primary();
    for at in cluster.others(leader) {
        replace(cluster, at, to);
    }
    let next = cluster.others(leader)[0];
    cluster.switchover(next);
    cluster.await_healthy();
    replace(cluster, leader, to);
}

fn replace(cluster: &mut Cluster, at: usize, to: Kind) {
    let node = &mut cluster.nodes[at];
    assert!(node.stop().success(), "{} ends well", node.name);
    assign(node, to);
    node.start();
    cluster.await_healthy();
}
