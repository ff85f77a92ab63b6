//! Commands against a store with one fixed snapshot; outputs as snapshots.

use std::io::Write;
use std::sync::{Arc, Mutex};

use super::*;
use crate::api::tests::FixedStore;
use crate::cluster::{ConfigDocument, FailoverRequest, Initialize, Leader, Schedule, wire};
use crate::config::FakeEnvironment;
use crate::dcs::Document;
use crate::types::{Lsn, MemberName, Revision, WallTime};

/// Collects output.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Paper {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

struct Ran {
    code: u8,
    out: String,
    err: String,
}

async fn run_with(store: &Arc<FixedStore>, line: &str, input: &str) -> Ran {
    let variables = [
        ("PATRONI_SCOPE", "demo"),
        ("PATRONI_ETCD3_HOSTS", "localhost:2379"),
    ];
    run_in(&variables, store, line, input).await
}

async fn run_in(
    variables: &[(&str, &str)],
    store: &Arc<FixedStore>,
    line: &str,
    input: &str,
) -> Ran {
    let arguments: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
    let environment = FakeEnvironment::new(variables);
    let store = store.clone();
    let open = move |_: Config, _: Identity| -> BoxFuture<'static, anyhow::Result<Store>> {
        let store: Store = store.clone();
        Box::pin(async move { Ok(store) })
    };
    let (out, err) = (Paper::default(), Paper::default());
    let mut screen = Screen {
        out: Box::new(out.clone()),
        err: Box::new(err.clone()),
        input: Box::new(std::io::Cursor::new(input.to_owned().into_bytes())),
        is_terminal: false,
    };
    let code = run(arguments, &environment, &open, &mut screen).await;
    Ran {
        code,
        out: out.text(),
        err: err.text(),
    }
}

fn name(text: &str) -> MemberName {
    MemberName::new(text).unwrap()
}

fn cluster(config: &str, members: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster {
        initialize: Initialize::Done("7301234567890123456".parse().unwrap()),
        ..Cluster::default()
    };
    for (member, document) in members {
        cluster.members.insert(
            name(member),
            wire::parse_member(name(member), None, document),
        );
    }
    cluster.leader = Some(Leader {
        name: name(members[0].0),
        revision: Revision(1),
        session: None,
    });
    cluster.config = Some(ConfigDocument {
        data: serde_json::from_str(config).unwrap(),
        revision: Revision(5),
    });
    cluster.config_revision = Some(Revision(5));
    cluster.status.optime = Lsn(0x500_0148);
    cluster
}

const A: &str = r#"{"conn_url": "postgres://10.1.0.1:5432/postgres", "state": "running", "role": "primary", "timeline": 3, "version": "4.1.4"}"#;
const B: &str = r#"{"conn_url": "postgres://10.1.0.2:5432/postgres", "state": "running", "role": "replica", "replication_state": "streaming",
    "timeline": 3, "xlog_location": 83886408, "receive_lsn": 83886408, "replay_lsn": 83886408}"#;
const C: &str =
    r#"{"conn_url": "postgres://10.1.0.3:5432/postgres", "state": "stopped", "role": "replica"}"#;

fn plain() -> Cluster {
    cluster(r#"{"ttl": 30}"#, &[("pg-a", A), ("pg-b", B), ("pg-c", C)])
}

#[tokio::test]
async fn list_in_the_form_of_the_specification() {
    let mut data = cluster(
        r#"{"pause": true}"#,
        &[("pg-a", A), ("pg-b", B), ("pg-c", C)],
    );
    data.failover = Some(FailoverRequest {
        revision: Revision(2),
        leader: Some(name("pg-a")),
        candidate: Some(name("pg-b")),
        scheduled_at: Some(Schedule::At(WallTime(1_903_831_200_000))),
    });
    let ran = run_with(&FixedStore::new(data), "list", "").await;
    let want = "\
+ Cluster: demo (7301234567890123456) ----+----+-------------+-----+------------+-----+
| Member | Host     | Role    | State     | TL | Receive LSN | Lag | Replay LSN | Lag |
+--------+----------+---------+-----------+----+-------------+-----+------------+-----+
| pg-a   | 10.1.0.1 | Leader  | running   |  3 |             |     |            |     |
| pg-b   | 10.1.0.2 | Replica | streaming |  3 |   0/5000148 |   0 |  0/5000148 |   0 |
| pg-c   | 10.1.0.3 | Replica | stopped   |    |     unknown |     |    unknown |     |
+--------+----------+---------+-----------+----+-------------+-----+------------+-----+
 Maintenance mode: on
 Switchover scheduled at: 2030-05-01T02:00:00+00:00
                    from: pg-a
                      to: pg-b
";
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, want, "")
    );
}

/// Every optional column, cascading, an odd port, an old agent, quorum mode.
fn rich() -> Cluster {
    let mut data = cluster(
        r#"{"synchronous_mode": "quorum"}"#,
        &[
            ("a", A),
            (
                "b",
                r#"{"conn_url": "postgres://10.1.0.2:5433/postgres", "state": "running", "role": "replica", "replication_state": "streaming",
                "timeline": 3, "xlog_location": 73400320, "pending_restart": true,
                "pending_restart_reason": {"max_connections": {"old_value": "100", "new_value": "200"},
                    "shared_preload_libraries": {"old_value": "a", "new_value": "a_very_long_list_of_libraries_that_hides"}},
                "tags": {"clonefrom": true, "zone": "eu, west"}}"#,
            ),
            (
                "c",
                r#"{"conn_url": "postgres://10.1.0.3:5432/postgres", "state": "running", "role": "replica",
                "replication_state": "in archive recovery", "timeline": 2, "xlog_location": 100, "receive_lsn": 0, "replay_lsn": 100,
                "tags": {"replicatefrom": "b", "failover_priority": 0},
                "scheduled_restart": {"schedule": "2030-01-01T00:00:00+00:00", "postgres_version": "17.3", "postmaster_start_time": "x"}}"#,
            ),
            (
                "d",
                r#"{"state": "running", "role": "replica", "tags": {"replicatefrom": "e"}}"#,
            ),
            (
                "e",
                r#"{"state": "creating replica", "role": "replica", "tags": {"replicatefrom": "d"}}"#,
            ),
        ],
    );
    data.sync.leader = Some(name("a"));
    data.sync.standbys = vec![name("b")];
    data
}

#[tokio::test]
async fn every_format_of_a_rich_cluster() {
    let store = FixedStore::new(rich());
    for format in ["pretty", "tsv", "json", "yaml"] {
        let ran = run_with(&store, &format!("list -f{format}"), "").await;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        insta::assert_snapshot!(format!("rich_{format}"), ran.out);
    }
    insta::assert_snapshot!(
        "rich_topology",
        run_with(&store, "topology demo", "").await.out
    );
}

#[tokio::test]
async fn unknown_cluster_and_missing_name() {
    let ran = run_with(&FixedStore::new(Cluster::default()), "list", "").await;
    assert!(
        ran.code == 0 && ran.out.starts_with("+ Cluster: demo (uninitialized) "),
        "{}",
        ran.out
    );
    assert_eq!(
        ran.out.lines().count(),
        4,
        "the rule is printed twice below the heading"
    );
}

#[tokio::test]
async fn without_any_cluster_name() {
    let store = FixedStore::new(plain());
    let variables = [("PATRONI_ETCD3_HOSTS", "localhost:2379")];
    let ran = run_in(&variables, &store, "list", "").await;
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, "", "Listing members: No cluster names were provided\n")
    );
    let ran = run_in(&variables, &store, "show-config", "").await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.starts_with("Error: no cluster is named"),
        "{}",
        ran.err
    );
    let ran = run_in(&variables, &store, "list demo", "").await;
    assert!(ran.code == 0 && ran.out.contains("pg-a"), "{}", ran.err);
}

#[tokio::test]
async fn history_version_and_configuration() {
    let mut data = plain();
    data.history = wire::parse_history(
        r#"[[1, 25623960, "no recovery target specified", "2026-01-01T00:00:00+00:00", "pg-a"], [2, 83886080, "x"]]"#,
    );
    let store = FixedStore::new(data);
    insta::assert_snapshot!("history_pretty", run_with(&store, "history", "").await.out);
    insta::assert_snapshot!(
        "history_json",
        run_with(&store, "history demo --format=json", "").await.out
    );
    assert_eq!(run_with(&store, "show-config", "").await.out, "ttl: 30\n\n");
    assert_eq!(
        run_with(&store, "version", "").await.out,
        "patronictl version 4.1.4\n"
    );
    assert_eq!(
        run_with(&store, "dsn -r replica", "").await.out,
        "host=10.1.0.2 port=5432\n"
    );
    assert_eq!(
        run_with(&store, "dsn", "").await.out,
        "host=10.1.0.1 port=5432\n"
    );
}

#[tokio::test]
async fn usage_errors_exit_with_two() {
    let store = FixedStore::new(plain());
    for line in ["list --nonsense", "frobnicate", "reload", "list -f xml", ""] {
        let ran = run_with(&store, line, "").await;
        assert_eq!(ran.code, 2, "{line}: {}", ran.err);
    }
    let ran = run_with(&store, "list --nonsense", "").await;
    assert!(
        ran.err.starts_with("Usage: patronictl list [OPTIONS]")
            && ran
                .err
                .contains("\nTry 'patronictl list --help' for help.\n\nError: "),
        "{}",
        ran.err
    );
    let help = run_with(&store, "list --help", "").await;
    assert!(
        help.code == 0 && help.out.contains("Usage: patronictl list"),
        "{}",
        help.out
    );
}

#[tokio::test]
async fn editing_the_configuration() {
    let store = FixedStore::new(plain());
    assert_eq!(
        run_with(&store, "edit-config -s ttl=30 --force", "")
            .await
            .out,
        "Not changed\n"
    );
    let ran = run_with(&store, "edit-config -p work_mem=8MB -s loop_wait=5", "n\n").await;
    assert_eq!(
        (ran.code, store.written.lock().unwrap().len()),
        (0, 0),
        "{}",
        ran.out
    );
    let ran = run_with(&store, "edit-config -s loop_wait=5", "y\n").await;
    let want = "--- \n+++ \n@@ -1 +1,2 @@\n+loop_wait: 5\n ttl: 30\nApply these changes? [y/N]: Configuration changed\n";
    assert_eq!((ran.code, ran.out.as_str()), (0, want));
    let (document, value, expect) = store.written.lock().unwrap().pop().unwrap();
    assert_eq!(
        (document, value.as_str(), expect),
        (
            Document::Config,
            r#"{"ttl":30,"loop_wait":5}"#,
            crate::dcs::Expect::At(Revision(5))
        )
    );
    let ran = run_with(&store, "edit-config --apply -", "ttl: 20\n").await;
    assert!(
        ran.code == 0 && ran.out.ends_with("Use --force option to apply changes\n"),
        "{}",
        ran.out
    );
    let ran = run_with(
        &store,
        "edit-config --replace - --force --quiet",
        "ttl: 20\n",
    )
    .await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "Configuration changed\n"));
    let ran = run_with(&store, "edit-config --replace - --force", "- a\n").await;
    assert_eq!(ran.code, 1, "C4: {}", ran.out);
    store.cluster.lock().unwrap().config = None;
    let ran = run_with(&store, "edit-config -s a=1", "").await;
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (
            1,
            "Error: The config key does not exist in the cluster demo\n"
        )
    );
}

#[tokio::test]
async fn pause_and_its_refusals() {
    let store = FixedStore::new(plain());
    let ran = run_with(&store, "resume", "").await;
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "Error: Cluster is not paused\n")
    );
    let ran = run_with(&store, "pause", "").await;
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "Error: Can not find accessible cluster member\n")
    );
}

#[tokio::test]
async fn switchover_checks_and_fallback() {
    let store = FixedStore::new(plain());
    for (line, input, want) in [
        (
            "switchover --leader pg-b --force",
            "",
            "Member pg-b is not the leader of cluster demo",
        ),
        (
            "switchover --candidate pg-a --force",
            "",
            "Member pg-a is already the leader of cluster demo",
        ),
        (
            "switchover --candidate nobody --force",
            "",
            "Member nobody does not exist in cluster demo or is tagged as nofailover",
        ),
        ("switchover", "\n\n\nn\n", "Aborting switchover"),
        (
            "switchover --scheduled soon",
            "\n\n",
            "Unable to parse scheduled timestamp (soon). It should be in an unambiguous format (e.g. ISO 8601)",
        ),
        (
            "failover --force",
            "",
            "Failover could be performed only to a specific candidate",
        ),
    ] {
        let ran = run_with(&store, line, input).await;
        assert_eq!(
            (ran.code, ran.err),
            (1, format!("Error: {want}\n")),
            "{line}: {}",
            ran.out
        );
    }
    let ran = run_with(&store, "switchover", "").await;
    assert_eq!((ran.code, ran.err.as_str()), (1, "Aborted!\n"));
    assert!(ran.out.ends_with("\nPrimary [pg-a]: "), "{}", ran.out);
    assert!(store.written.lock().unwrap().is_empty());
    // No member has a REST address here: the request was never sent, so the store is written.
    let ran = run_with(&store, "switchover --candidate pg-b --force", "").await;
    assert!(
        ran.code == 0
            && ran
                .out
                .contains(" Could not switchover using Patroni api, falling back to DCS\n"),
        "{}",
        ran.out
    );
    let (document, value, _) = store.written.lock().unwrap().pop().unwrap();
    assert_eq!(
        (document, value.as_str()),
        (Document::Failover, r#"{"leader":"pg-a","member":"pg-b"}"#)
    );
    let mut empty = plain();
    empty.leader = None;
    let ran = run_with(&FixedStore::new(empty), "switchover --force", "").await;
    assert_eq!(ran.err, "Error: This cluster has no leader\n");
}

#[tokio::test]
async fn members_are_selected_and_confirmed() {
    let store = FixedStore::new(plain());
    for (line, input, want) in [
        ("reload demo nobody", "", "No 'any' among provided members"),
        ("reinit demo pg-a", "", "No replica among provided members"),
        ("reload demo -r replica", "n\n", "Aborted reload"),
        (
            "restart demo pg-b --pg-version 17 --force",
            "",
            "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 17",
        ),
    ] {
        let ran = run_with(&store, line, input).await;
        assert_eq!(
            (ran.code, ran.err),
            (1, format!("Error: {want}\n")),
            "{line}: {}",
            ran.out
        );
    }
    let ran = run_with(&store, "reload demo pg-b nobody --force", "").await;
    assert!(
        ran.code == 0 && ran.out.contains("\nFailed: reload for member pg-b, "),
        "{}",
        ran.out
    );
    assert!(
        ran.err.contains("nobody is not among the 'any' members"),
        "C7: {}",
        ran.err
    );
    let ran = run_with(&store, "--strict-exit reload demo pg-b --force", "").await;
    assert_eq!(ran.code, 1, "C1");
    let ran = run_with(&store, "flush demo switchover", "").await;
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "No pending scheduled switchover\n")
    );
    let ran = run_with(&store, "flush demo pg-b restart --force", "").await;
    assert!(
        ran.out.ends_with("No scheduled restart for member pg-b\n"),
        "{}",
        ran.out
    );
}

#[tokio::test]
async fn removal_asks_three_times() {
    let store = FixedStore::new(plain());
    for (input, want) in [
        ("other\n", "Cluster names specified do not match"),
        ("demo\nyes\n", "You did not exactly type \"Yes I am aware\""),
        (
            "demo\nYes I am aware\npg-b\n",
            "You did not specify the current leader of the cluster",
        ),
    ] {
        let ran = run_with(&store, "remove demo", input).await;
        assert_eq!((ran.code, ran.err), (1, format!("Error: {want}\n")));
    }
    assert_eq!(
        run_with(&store, "remove demo", "demo\nYes I am aware\npg-a\n")
            .await
            .code,
        0
    );
}

#[tokio::test]
async fn members_out_of_reach_are_explained_by_the_store() {
    let ran = run_with(&FixedStore::new(plain()), "explain -f tsv", "").await;
    let want = "\
Member\tRole\tExplanation\tWaits for\tTold by
pg-a\tprimary\tpg-a is the leader: it holds the leader key and its PostgreSQL runs as primary; it does not answer here\t\tthe store
pg-b\treplica\tpg-b is not the leader (pg-a is): it streams from the cluster, 0 bytes behind; it does not answer here\t\tthe store
pg-c\treplica\tpg-c is not the leader (pg-a is): its PostgreSQL is stopped; it does not answer here\tits PostgreSQL to run\tthe store
";
    assert_eq!((ran.code, ran.out.as_str()), (0, want), "{}", ran.err);
}

#[tokio::test]
async fn each_member_explains_itself_and_the_leader_those_out_of_reach() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/patroni", listener.local_addr().unwrap());
    let mut data = plain();
    if let Some(leader) = data.members.get_mut(&name("pg-a")) {
        leader.api_url = Some(url);
    }
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await.unwrap();
        let row = |member: &str, sentence: &str, waits_for: Option<&str>| {
            serde_json::json!({"member": member, "role": "primary", "leader": member == "pg-a", "sentence": sentence,
                "waits_for": waits_for, "told_by": "pg-a"})
        };
        let body = serde_json::json!({"members": [row("pg-a", "I lead", None), row("pg-b", "it follows me", Some("me"))]});
        let body = body.to_string();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    };
    let store = FixedStore::new(data);
    let (ran, ()) = tokio::join!(run_with(&store, "explain -f json", ""), serve);
    let rows: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let cell = |at: usize, key: &str| rows[at][key].as_str().unwrap().to_owned();
    assert_eq!(
        (cell(0, "Explanation"), cell(0, "Told by")),
        ("I lead".to_owned(), "pg-a".to_owned())
    );
    assert_eq!(
        (cell(1, "Explanation"), cell(1, "Waits for")),
        ("it follows me".to_owned(), "me".to_owned())
    );
    assert_eq!(cell(2, "Told by"), "the store");
}
