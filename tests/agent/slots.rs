//! Replication slots: what the settings say is there, and what consumers rely on survives a failover.

use crate::cluster::{Cluster, PATIENCE, wait_until};

/// Logical decoding, and one permanent logical slot.
const SETTINGS: &str = "{ttl: 5, loop_wait: 1, retry_timeout: 2, maximum_lag_on_failover: 1048576, \
    slots: {events: {type: logical, database: postgres, plugin: test_decoding}}, \
    postgresql: {use_pg_rewind: true, parameters: {wal_level: logical}}}";

/// Consumes everything that the slot holds.
const CHANGES: &str = "SELECT string_agg(substring(data from 'integer.:([0-9]+)'), ',') \
    FROM pg_logical_slot_get_changes('events', NULL, NULL) WHERE data LIKE '%INSERT%'";

fn slots(cluster: &Cluster, at: usize) -> String {
    let statement = "SELECT coalesce(string_agg(slot_name || coalesce(' ' || plugin, ''), ', ' ORDER BY slot_name), '') \
                     FROM pg_replication_slots WHERE slot_name !~ '^n[0-9]$'";
    cluster.nodes[at].sql(statement).unwrap_or_default()
}

#[track_caller]
fn await_slots(cluster: &Cluster, at: usize, wanted: &str) {
    let what = format!("{} has the slots {wanted:?}", cluster.nodes[at].name);
    wait_until(&what, PATIENCE, || slots(cluster, at) == wanted);
}

#[test]
fn a_consumer_of_a_logical_slot_misses_nothing_in_a_failover() {
    let mut cluster = Cluster::start_with(3, &[("PATRONI_BOOTSTRAP_DCS", SETTINGS)]);
    let old = cluster.await_primary();
    await_slots(&cluster, old, "events test_decoding");
    for at in cluster.others(old) {
        await_slots(&cluster, at, "events test_decoding");
        let node = &cluster.nodes[at];
        node.await_log("Logical slot events is safe to be used after a failover");
        assert_eq!(node.query("SHOW hot_standby_feedback"), "on");
    }
    cluster.await_healthy();

    let node = &cluster.nodes[old];
    node.query("CREATE TABLE event (id int)");
    node.query("INSERT INTO event SELECT generate_series(1, 10)");
    let consume = "SELECT count(*) FROM pg_logical_slot_get_changes('events', NULL, NULL) WHERE data LIKE '%INSERT%'";
    assert_eq!(node.query(consume), "10");
    let confirmed =
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'events'";
    let at_the_leader = node.query(confirmed);
    for at in cluster.others(old) {
        wait_until("the copies move along", PATIENCE, || {
            cluster.nodes[at]
                .sql(&format!(
                    "SELECT ({confirmed}) >= '{at_the_leader}'::pg_lsn"
                ))
                .is_ok_and(|answer| answer == "t")
        });
    }
    // What nobody has consumed yet.
    let node = &cluster.nodes[old];
    node.query("INSERT INTO event SELECT generate_series(11, 15)");
    let end = node.query("SELECT pg_current_wal_lsn()");
    for at in cluster.others(old) {
        wait_until("it is received", PATIENCE, || {
            cluster.nodes[at]
                .sql(&format!(
                    "SELECT pg_last_wal_replay_lsn() >= '{end}'::pg_lsn"
                ))
                .is_ok_and(|answer| answer == "t")
        });
    }
    cluster.nodes[old].kill();
    let new = cluster.await_other(old, PATIENCE);
    let node = &cluster.nodes[new];
    wait_until("the new leader accepts writes", PATIENCE, || {
        node.sql("INSERT INTO event VALUES (16)").is_ok()
    });
    assert_eq!(node.query(CHANGES), "11,12,13,14,15,16");
    let lost = "its consumer misses";
    assert!(!node.log().contains(lost), "the slot was not made anew");

    cluster.nodes[old].start();
    cluster.await_healthy();
    await_slots(&cluster, old, "events test_decoding");
}

/// The consumer has left three rows; a fourth is written on the new leader.
#[track_caller]
fn nothing_is_missing_after_a_switchover(cluster: &Cluster, old: usize, new: usize) {
    cluster.switchover(new);
    assert_eq!(cluster.await_other(old, PATIENCE), new);
    let node = &cluster.nodes[new];
    wait_until("the new leader accepts writes", PATIENCE, || {
        node.sql("INSERT INTO event VALUES (4)").is_ok()
    });
    assert_eq!(node.query(CHANGES), "1,2,3,4");
}

/// A copy of the server is younger than the slot: its WAL begins after the position that the consumer has left it at.
#[test]
fn a_logical_slot_is_older_than_the_standby_that_copies_it() {
    let cluster = Cluster::start_with(2, &[("PATRONI_BOOTSTRAP_DCS", SETTINGS)]);
    let old = cluster.await_primary();
    let new = cluster.others(old)[0];
    await_slots(&cluster, new, "events test_decoding");
    cluster.await_healthy();
    let leader = &cluster.nodes[old];
    leader.query("CREATE TABLE event (id int)");
    for id in 1..=3 {
        leader.query(&format!("INSERT INTO event VALUES ({id})"));
        leader.query("SELECT pg_switch_wal()");
    }
    leader.query("CHECKPOINT");

    let node = &cluster.nodes[new];
    let before = node.postmaster().expect("it runs");
    let (status, answer) = node.ask("POST", "/reinitialize", "{}").unwrap();
    assert_eq!(status, 200, "{answer}");
    wait_until("the standby is another", PATIENCE, || {
        node.postmaster().is_some_and(|pid| pid != before) && node.log().contains("replica created")
    });
    await_slots(&cluster, new, "events test_decoding");
    cluster.await_healthy();
    nothing_is_missing_after_a_switchover(&cluster, old, new);
    // Nothing of the copying is left.
    let node = &cluster.nodes[new];
    let left = "SELECT count(*) FROM pg_ls_dir('pg_wal') AS name WHERE name LIKE 'xlogtemp.%'";
    assert_eq!(node.query(left), "0");
}

/// A transaction runs at the slot's position and on: decoding from there takes the snapshot that the leader has written down, or begins
/// only after the transaction and misses what was committed meanwhile.
#[test]
fn a_logical_slot_is_copied_with_its_snapshot() {
    let settings = SETTINGS.replace("slots:", "ignore_slots: [{name: events}], later:");
    let cluster = Cluster::start_with(2, &[("PATRONI_BOOTSTRAP_DCS", &settings)]);
    let old = cluster.await_primary();
    let new = cluster.others(old)[0];
    cluster.await_healthy();
    let leader = &cluster.nodes[old];
    leader.query("CREATE TABLE event (id int)");
    leader.query("SELECT pg_create_logical_replication_slot('events', 'test_decoding')");
    let session = leader.session();
    let long =
        std::thread::spawn(move || session.run("SELECT txid_current(); SELECT pg_sleep(600)"));
    let at_work = "SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()";
    wait_until("it runs", PATIENCE, || leader.query(at_work) == "1");
    let position = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'events'";
    let here = leader.query("SELECT pg_current_wal_lsn()");
    wait_until("the slot has moved on", PATIENCE, || {
        leader.query("CHECKPOINT");
        leader.query(CHANGES);
        leader.query(&format!("SELECT ({position}) > '{here}'::pg_lsn")) == "t"
    });
    leader.query("INSERT INTO event SELECT generate_series(1, 3)");
    cluster.configure(
        r#"{"ignore_slots": null, "slots": {"events": {"type": "logical", "database": "postgres", "plugin": "test_decoding"}}}"#,
    );
    await_slots(&cluster, new, "events test_decoding");
    cluster.await_healthy();
    nothing_is_missing_after_a_switchover(&cluster, old, new);
    assert!(long.join().unwrap().is_err(), "it was ended");
}

#[test]
fn slots_are_what_the_settings_say_and_others_are_left_alone() {
    let cluster = Cluster::start_with(2, &[("PATRONI_BOOTSTRAP_DCS", SETTINGS)]);
    let leader = cluster.await_primary();
    let replica = cluster.others(leader)[0];
    await_slots(&cluster, replica, "events test_decoding");

    cluster.configure(
        r#"{"ignore_slots": [{"name": "theirs", "type": "logical", "plugin": "pgoutput"}],
            "slots": {"backup": {"type": "physical"}}}"#,
    );
    for at in [leader, replica] {
        await_slots(&cluster, at, "backup, events test_decoding");
    }
    let node = &cluster.nodes[leader];
    node.query("SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')");
    node.query("SELECT pg_create_physical_replication_slot('stray')");
    let rest = "backup, events test_decoding, theirs pgoutput";
    await_slots(&cluster, leader, rest);

    // Another plugin: another slot, here and on the standby.
    cluster.configure(r#"{"slots": {"events": {"plugin": "pgoutput"}}}"#);
    await_slots(&cluster, leader, "backup, events pgoutput, theirs pgoutput");
    await_slots(&cluster, replica, "backup, events pgoutput");

    // In pause nothing is dropped.
    cluster.configure(r#"{"pause": true}"#);
    wait_until("the cluster is paused", PATIENCE, || {
        cluster.nodes[leader].about()["pause"] == true
            && cluster.nodes[replica].about()["pause"] == true
    });
    cluster.configure(r#"{"slots": null}"#);
    cluster.nodes[leader].query("SELECT pg_create_physical_replication_slot('stray')");
    let turns = || cluster.nodes[leader].ask("GET", "/metrics", "").unwrap().1;
    let seen = turns();
    wait_until("a few more turns", PATIENCE, || {
        let loops = |text: &str| -> f64 {
            let line = text
                .lines()
                .find(|line| line.starts_with("howdah_loop_turns"));
            line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
                .unwrap_or_default()
        };
        loops(&turns()) >= loops(&seen) + 3.0
    });
    assert_eq!(
        slots(&cluster, leader),
        "backup, events pgoutput, stray, theirs pgoutput"
    );
    cluster.configure(r#"{"pause": false}"#);
    await_slots(&cluster, leader, "theirs pgoutput");
    await_slots(&cluster, replica, "");
}

#[test]
fn the_slot_of_a_lost_member_is_kept_for_its_time() {
    // No feedback: a slot that holds back vacuum for nobody is dropped and made anew.
    let settings = "{ttl: 5, loop_wait: 1, retry_timeout: 2, member_slots_ttl: 8, postgresql: {use_pg_rewind: true}}";
    let mut cluster = Cluster::start_with(3, &[("PATRONI_BOOTSTRAP_DCS", settings)]);
    let leader = cluster.await_primary();
    let lost = cluster.others(leader)[0];
    let other = cluster.others(leader)[1];
    let has_slot = |cluster: &Cluster, at: usize| {
        let name = &cluster.nodes[lost].name;
        cluster.nodes[at].query(&format!(
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}'"
        )) == "1"
    };
    for at in [leader, other] {
        wait_until("there is a slot for every member", PATIENCE, || {
            has_slot(&cluster, at)
        });
    }
    cluster.nodes[lost].kill();
    let gone = cluster.nodes[lost].name.clone();
    wait_until("its key expires", PATIENCE, || {
        let answer = cluster.nodes[leader].ask("GET", "/cluster", "");
        answer.is_some_and(|(_, body)| !body.contains(&format!("\"{gone}\"")))
    });
    assert!(has_slot(&cluster, leader) && has_slot(&cluster, other));
    let expired =
        format!("Replication slot '{gone}' for absent cluster member is expired after 8 sec.");
    cluster.nodes[leader].await_log(&expired);
    for at in [leader, other] {
        wait_until("its slot is dropped", PATIENCE, || !has_slot(&cluster, at));
    }
}
