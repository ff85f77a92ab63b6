//! Planned changes: nothing is lost, and hardly any time.

use std::time::Duration;

use howdah::clock;

use crate::client::{Recorder, assert_one_writer, longest_gap, missing};
use crate::cluster::{Cluster, PATIENCE, Store};

fn switchover(story: &str, store: Store) {
    let cluster = Cluster::start(story, store, 3, &[]);
    let recorder = Recorder::start(cluster.primary(), &cluster.all());
    recorder.written_after(clock::now(), PATIENCE);
    for _ in 0..2 {
        let old = cluster.primary().clone();
        let target = cluster.others(&old)[0].name().to_owned();
        let body = format!(
            "{{\"leader\": \"{}\", \"candidate\": \"{target}\"}}",
            old.name()
        );
        let (status, answer) = old.post("/switchover", &body);
        assert_eq!(status, 200, "{answer}");
        let new = cluster.await_new_primary(&old);
        assert_eq!(new.name(), target);
        cluster.await_healthy();
    }
    recorder.written_after(clock::now(), PATIENCE);
    let acks = recorder.finish();
    let gap = longest_gap(&acks);
    println!("{story}: no writes for {} ms", gap.as_millis());
    assert!(gap < Duration::from_secs(10), "a switchover took {gap:?}");
    assert_one_writer(&acks);
    assert_eq!(
        missing(&acks, cluster.primary()),
        Vec::<u64>::new(),
        "a planned change loses nothing"
    );
}

#[test]
fn over_raft() {
    switchover("switch-raft", Store::Raft);
}

#[test]
fn over_etcd() {
    switchover("switch-etcd", Store::Etcd);
}

#[test]
fn by_command_line() {
    let cluster = Cluster::start("switch-ctl", Store::Raft, 2, &[]);
    let old = cluster.primary().clone();
    let target = cluster.others(&old)[0].clone();
    let answer = old
        .container
        .exec(&[
            "patronictl",
            "switchover",
            "--candidate",
            target.name(),
            "--force",
        ])
        .unwrap();
    assert!(answer.contains("Successfully switched over"), "{answer}");
    target.await_primary();
    old.await_streaming();
    let list = old
        .container
        .exec(&["patronictl", "list", "-f", "json"])
        .unwrap();
    let members: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(members.as_array().map(Vec::len), Some(2), "{list}");
}
