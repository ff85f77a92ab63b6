//! Every row of spec/rest-api.md §5.4 as data, and the parameters.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::cluster::{Cluster, Leader};
use crate::node::{PgTimestamp, PostgresStatus, Snapshot};
use crate::types::{PgVersion, ReplicationState, Revision, Timeline};

const NOW: Moment = Moment(Duration::from_secs(1000));

fn at(secs: u64) -> Moment {
    Moment(Duration::from_secs(secs))
}

fn postgres(xlog: Xlog) -> PostgresStatus {
    PostgresStatus {
        server_version: PgVersion(170_002),
        postmaster_start_time: PgTimestamp(0),
        timeline: Some(Timeline(1)),
        replication_state: matches!(xlog, Xlog::Standby { .. })
            .then_some(ReplicationState::Streaming),
        xlog,
        replication: Vec::new(),
        replaying: false,
    }
}

fn view(state: PgState, role: Role) -> NodeView {
    let mut view = NodeView::starting(MemberName::new("me").unwrap(), "demo", at(990));
    view.state = state;
    view.role = role;
    let mut cluster = Cluster {
        leader: Some(Leader {
            name: MemberName::new("boss").unwrap(),
            revision: Revision(1),
            session: None,
        }),
        ..Cluster::default()
    };
    cluster.status.optime = Lsn(1000);
    view.snapshot = Some(Snapshot {
        cluster: Arc::new(cluster),
        read_at: at(995),
    });
    view
}

fn primary() -> NodeView {
    let mut view = view(PgState::Running, Role::Primary);
    view.postgres = Some(postgres(Xlog::Primary {
        location: Lsn(1000),
    }));
    view.postmaster_alive = true;
    view
}

fn replica() -> NodeView {
    let mut view = view(PgState::Running, Role::Replica);
    view.postgres = Some(postgres(Xlog::Standby {
        received: Lsn(900),
        replayed: Lsn(800),
        replayed_timestamp: None,
        paused: false,
        latest_end: Some(Lsn(950)),
    }));
    view
}

#[test]
fn primary_may_have_to_wait_for_writes() {
    let asked = |mut view: NodeView, strict: bool, path: &str| {
        view.settings.primary_when_writable = strict;
        is_healthy(&view, NOW, path, &Query::default())
    };
    let crashed = || leading(down(primary(), PgState::Crashed));
    for path in ["/", "/primary", "/read-write", "/master"] {
        for strict in [false, true] {
            assert!(asked(leading(primary()), strict, path), "{path}");
            assert!(!asked(replica(), strict, path), "{path}");
            // Promoting, and down while it has the lock.
            assert_eq!(asked(leading(replica()), strict, path), !strict, "{path}");
            assert_eq!(asked(crashed(), strict, path), !strict, "{path}");
        }
    }
    assert!(
        asked(leading(replica()), true, "/leader"),
        "who leads is another question"
    );
    assert!(
        asked(leading(replica()), true, "/read-only"),
        "it still answers reads"
    );
    assert!(!asked(crashed(), true, "/read-only"));
    assert!(asked(paused(without_store(primary())), true, "/primary"));
}

fn leading(mut view: NodeView) -> NodeView {
    view.leader_until = Some(at(1010));
    view
}

fn standby_cluster(mut view: NodeView) -> NodeView {
    view.settings.standby_cluster = true;
    view
}

fn paused(mut view: NodeView) -> NodeView {
    view.settings.pause = true;
    view
}

fn without_store(mut view: NodeView) -> NodeView {
    view.snapshot = None;
    view
}

fn down(mut view: NodeView, state: PgState) -> NodeView {
    view.state = state;
    view.postgres = None;
    view
}

fn synchronous(mut view: NodeView, mode: SynchronousMode) -> NodeView {
    view.settings.synchronous_mode = mode;
    let mut cluster = view
        .snapshot
        .as_ref()
        .map_or_else(Cluster::default, |s| (*s.cluster).clone());
    cluster.sync.leader = Some(MemberName::new("boss").unwrap());
    cluster.sync.standbys = vec![MemberName::new("ME").unwrap()];
    view.snapshot = Some(Snapshot {
        cluster: Arc::new(cluster),
        read_at: at(995),
    });
    view
}

fn answer(view: &NodeView, target: &str) -> bool {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    is_healthy(view, NOW, path, &Query::parse(Some(query)))
}

#[test]
fn every_situation_of_the_table() {
    let no_balance = |mut view: NodeView| {
        view.tags.noloadbalance = true;
        view
    };
    let expired = |mut view: NodeView| {
        view.leader_until = Some(NOW);
        view
    };
    let standby_leader = |mut view: NodeView| {
        view.role = Role::StandbyLeader;
        standby_cluster(view)
    };
    let failsafe = |mut view: NodeView| {
        view.failsafe_until = Some(at(1010));
        view
    };
    // Columns: primary, leader, standby-leader, replica, read-only, async, health.
    let rows: Vec<(&str, NodeView, [u8; 7])> = vec![
        ("primary leads", leading(primary()), [1, 1, 0, 0, 1, 0, 1]),
        (
            "primary leads, starting",
            leading(down(primary(), PgState::Starting)),
            [1, 1, 0, 0, 1, 0, 0],
        ),
        (
            "primary leads, restarting",
            leading(down(primary(), PgState::Restarting)),
            [1, 1, 0, 0, 1, 0, 0],
        ),
        (
            "primary leads, crashed",
            leading(down(primary(), PgState::Crashed)),
            [1, 1, 0, 0, 1, 0, 0],
        ),
        (
            "primary leads, query failed",
            leading(down(primary(), PgState::Running)),
            [1, 1, 0, 0, 1, 0, 0],
        ),
        (
            "lock just acquired, promoting",
            leading(replica()),
            [1, 1, 0, 1, 1, 1, 1],
        ),
        (
            "promoting, was sync",
            leading(synchronous(replica(), SynchronousMode::On)),
            [1, 1, 0, 1, 1, 0, 1],
        ),
        ("primary, lock lost", primary(), [0, 0, 0, 0, 0, 0, 1]),
        (
            "primary, lock expired",
            expired(primary()),
            [0, 0, 0, 0, 0, 0, 1],
        ),
        ("replica", replica(), [0, 0, 0, 1, 1, 1, 1]),
        (
            "sync standby",
            synchronous(replica(), SynchronousMode::On),
            [0, 0, 0, 1, 1, 0, 1],
        ),
        (
            "quorum standby",
            synchronous(replica(), SynchronousMode::Quorum),
            [0, 0, 0, 1, 1, 0, 1],
        ),
        (
            "noloadbalance",
            no_balance(replica()),
            [0, 0, 0, 0, 0, 0, 1],
        ),
        (
            "replica starting",
            down(replica(), PgState::Starting),
            [0; 7],
        ),
        (
            "replica being created",
            down(replica(), PgState::CreatingReplica),
            [0; 7],
        ),
        ("replica stopped", down(replica(), PgState::Stopped), [0; 7]),
        (
            "standby leader",
            leading(standby_leader(replica())),
            [0, 1, 1, 0, 1, 0, 1],
        ),
        (
            "standby leader down",
            leading(standby_leader(down(replica(), PgState::Stopped))),
            [0, 1, 1, 0, 1, 0, 0],
        ),
        (
            "replica of a standby cluster",
            standby_cluster(replica()),
            [0, 0, 0, 1, 1, 1, 1],
        ),
        (
            "paused primary",
            paused(leading(primary())),
            [1, 1, 0, 0, 1, 0, 1],
        ),
        (
            "paused primary without lock",
            paused(primary()),
            [0, 0, 0, 0, 0, 0, 1],
        ),
        (
            "paused, no store, primary",
            without_store(paused(primary())),
            [1, 1, 0, 0, 1, 0, 1],
        ),
        (
            "paused, no store, standby leader",
            without_store(paused(standby_leader(replica()))),
            [0, 1, 1, 0, 1, 0, 1],
        ),
        (
            "paused, no store, replica",
            without_store(paused(replica())),
            [0, 0, 0, 1, 1, 0, 1],
        ),
        (
            "no store, failsafe, primary",
            failsafe(without_store(leading(primary()))),
            [1, 1, 0, 0, 1, 0, 1],
        ),
        (
            "no store, replica",
            without_store(replica()),
            [0, 0, 0, 1, 1, 0, 1],
        ),
    ];
    let columns: [&[&str]; 7] = [
        &[
            "/",
            "/primary",
            "/read-write",
            "/master",
            "/my-primary-check",
        ],
        &["/leader"],
        &["/standby-leader", "/standby_leader"],
        &["/replica", "/any_replica"],
        &["/read-only"],
        &["/async", "/asynchronous"],
        &["/health"],
    ];
    for (name, view, want) in &rows {
        for (paths, want) in columns.iter().zip(want) {
            for path in *paths {
                assert_eq!(answer(view, path), *want == 1, "{name}: {path}");
            }
        }
        assert!(!answer(view, "/no-such-check"), "{name}");
    }
}

#[test]
fn synchronous_paths_need_the_store() {
    let sync = synchronous(replica(), SynchronousMode::On);
    for path in [
        "/sync",
        "/synchronous",
        "/read-only-sync",
        "/read-only-synchronous",
    ] {
        assert!(answer(&sync, path), "{path}");
        assert!(!answer(&without_store(sync.clone()), path), "{path}");
        assert!(!answer(&replica(), path), "{path}");
    }
    let quorum = synchronous(replica(), SynchronousMode::Quorum);
    assert!(answer(&quorum, "/quorum") && answer(&quorum, "/read-only-quorum"));
    assert!(!answer(&quorum, "/sync") && !answer(&sync, "/quorum"));
    for path in ["/read-only-sync", "/read-only-quorum"] {
        assert!(answer(&leading(primary()), path), "{path}");
        assert!(!answer(&without_store(leading(primary())), path), "{path}");
    }
}

#[test]
fn the_snapshot_expires_with_ttl() {
    let mut view = synchronous(replica(), SynchronousMode::On);
    view.snapshot.as_mut().unwrap().read_at = at(970);
    assert!(!answer(&view, "/sync"));
}

#[test]
fn parameters() {
    let mut view = replica();
    // The leader is at 1000, we have replayed 800.
    assert!(answer(&view, "/replica?lag=200") && !answer(&view, "/replica?lag=199"));
    assert!(answer(&view, "/replica?lag=1kB") && answer(&view, "/replica?lag=nonsense"));
    assert!(answer(&view, "/replica?lag=") && !answer(&view, "/read-only?lag=10B"));
    assert!(answer(&view, "/replica?replication_state=streaming"));
    assert!(!answer(
        &view,
        "/replica?replication_state=in+archive%20recovery"
    ));
    view.configured_tags =
        serde_json::from_str(r#"{"zone": "eu west", "prio": 3, "hot": true}"#).unwrap();
    assert!(answer(
        &view,
        "/replica?tag_zone=eu%20west&tag_prio=3&tag_hot=true"
    ));
    assert!(!answer(&view, "/replica?tag_zone=us"));
    assert!(!answer(&view, "/replica?tag_absent=1"));
    assert!(!answer(&view, "/health?tag_zone=us"));
    assert!(
        answer(&leading(primary()), "/primary?tag_zone=us"),
        "ignored on leader checks"
    );
    assert!(
        answer(&view, "/replica?tag_prio=3&tag_prio=4"),
        "the first value counts"
    );
}

#[test]
fn liveness_has_patience() {
    let mut view = primary();
    view.next_turn = at(971);
    assert!(is_live(&view, NOW));
    view.next_turn = at(970);
    assert!(!is_live(&view, NOW));
    assert!(is_live(&paused(view.clone()), NOW));
    view.postmaster_alive = false;
    assert!(is_live(&view, NOW));
    view.next_turn = at(940);
    assert!(!is_live(&view, NOW));
}

#[test]
fn readiness_in_order() {
    let ready =
        |view: &NodeView, query: &str| readiness(view, NOW, &Query::parse(Some(query))).is_ok();
    assert!(ready(&leading(down(primary(), PgState::Starting)), ""));
    assert!(
        !ready(&primary(), ""),
        "a primary without the lock does not stream"
    );
    assert!(!ready(&down(replica(), PgState::Starting), ""));
    assert!(ready(&replica(), ""));
    assert!(ready(&replica(), "lag=200") && !ready(&replica(), "lag=199"));
    assert!(ready(&replica(), "lag=100&mode=write") && !ready(&replica(), "lag=99&mode=write"));
    let mut archive = replica();
    archive.postgres.as_mut().unwrap().replication_state =
        Some(ReplicationState::InArchiveRecovery);
    assert!(!ready(&archive, ""));
    let mut blind = without_store(replica());
    assert!(
        ready(&blind, "lag=150") && !ready(&blind, "lag=149"),
        "the receiver knows"
    );
    if let Xlog::Standby { latest_end, .. } = &mut blind.postgres.as_mut().unwrap().xlog {
        *latest_end = None;
    }
    assert!(!ready(&blind, ""));
    blind.failsafe_until = Some(at(1001));
    assert!(ready(&blind, ""));
}
