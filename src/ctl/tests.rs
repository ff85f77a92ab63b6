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
    let (out, err) = (Paper::default(), Paper::default());
    let code = run_on(variables, store, line, input, (&out, &err), false).await;
    Ran {
        code,
        out: out.text(),
        err: err.text(),
    }
}

/// As [`run_in`], onto paper that can be read while the command runs, or pretending to be a terminal.
async fn run_on(
    variables: &[(&str, &str)],
    store: &Arc<FixedStore>,
    line: &str,
    input: &str,
    (out, err): (&Paper, &Paper),
    on_terminal: bool,
) -> u8 {
    let arguments: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
    let environment = FakeEnvironment::new(variables);
    let store = store.clone();
    let open = move |_: Config, _: Identity| -> BoxFuture<'static, anyhow::Result<Store>> {
        let store: Store = store.clone();
        Box::pin(async move { Ok(store) })
    };
    let mut screen = Screen {
        out: Box::new(out.clone()),
        err: Box::new(err.clone()),
        input: Box::new(std::io::Cursor::new(input.to_owned().into_bytes())),
        is_terminal: on_terminal,
        colours: false,
    };
    run(arguments, &environment, &open, &mut screen).await
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

/// Answers every request with what is listed for its method and path, 404 without.
async fn stub(answers: &'static [(&'static str, u16, &'static str)]) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/patroni", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = String::new();
            while !request.contains("\r\n\r\n") {
                let mut buffer = [0; 4096];
                match stream.read(&mut buffer).await {
                    Ok(count) if count > 0 => {
                        request.push_str(&String::from_utf8_lossy(&buffer[..count]))
                    }
                    _ => break,
                }
            }
            let asked = request.split(" HTTP/").next().unwrap_or_default();
            let (status, body) = answers
                .iter()
                .find(|(line, ..)| *line == asked)
                .map_or((404, "not there"), |(_, status, body)| (*status, *body));
            let answer = format!(
                "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

const WILLING: &[(&str, u16, &str)] = &[
    ("POST /reload", 202, "reload scheduled"),
    ("POST /restart", 200, "restarted successfully"),
    ("DELETE /restart", 200, "scheduled restart deleted"),
    ("POST /reinitialize", 200, "reinitialize started"),
    (
        "POST /switchover",
        200,
        "Successfully switched over to \"pg-b\"",
    ),
    (
        "POST /failover",
        200,
        "Successfully failed over to \"pg-b\"",
    ),
    ("DELETE /switchover", 200, "scheduled switchover deleted"),
    ("PATCH /config", 200, "{}"),
    (
        "GET /patroni",
        200,
        r#"{"server_version": 170002, "patroni": {"version": "4.1.4"}}"#,
    ),
];

const UNWILLING: &[(&str, u16, &str)] = &[
    (
        "POST /reload",
        503,
        "The node is busy or shutting down and did not answer",
    ),
    ("POST /restart", 503, "restart conditions are not satisfied"),
    ("DELETE /restart", 500, "no"),
    (
        "POST /reinitialize",
        503,
        "restarting after failure already in progress",
    ),
    (
        "POST /switchover",
        412,
        "switchover is not possible: no good candidates have been found",
    ),
    (
        "POST /failover",
        503,
        "Failover status unknown after 20 seconds; operation may still be in progress",
    ),
    ("DELETE /switchover", 404, "no switchover is scheduled"),
    ("PATCH /config", 401, "no auth header received"),
    ("GET /patroni", 200, "{}"),
];

/// What a person types and then answers.
const DIALOGUES: &[(&str, &str)] = &[
    ("list -e", ""),
    ("topology", ""),
    ("explain -f tsv", ""),
    ("dsn -m pg-b", ""),
    ("dsn -m nobody", ""),
    ("dsn -r leader -m pg-b", ""),
    ("query", ""),
    ("query -c x -f y", ""),
    ("version demo", ""),
    ("version demo pg-c", ""),
    ("history", ""),
    ("show-config", ""),
    ("reload demo --force", ""),
    ("reload demo pg-c", "y\n"),
    ("reload demo pg-c pg-d", "y\n"),
    ("restart demo pg-b --force", ""),
    ("restart demo pg-b pg-c", "now\ny\n17.2\n"),
    ("restart demo pg-b", "2030-05-01T02:00+00:00\ny\n\n"),
    ("restart demo --pending --force", ""),
    (
        "restart demo --pending --scheduled 2030-05-01T02:00+00:00",
        "n\n",
    ),
    (
        "restart demo pg-b --scheduled 2030-05-01T02:00+00:00 --force",
        "",
    ),
    ("reinit demo", "pg-b\ny\nn\n"),
    ("reinit demo", "pg-a\n"),
    ("reinit demo pg-c --force --from-leader", ""),
    ("switchover", "\npg-b\nnow\ny\n"),
    ("switchover", "\n\n2030-05-01T02:00+00:00\ny\n"),
    ("switchover --candidate pg-b --force", ""),
    ("failover", "pg-b\ny\n"),
    ("failover --candidate pg-b --force", ""),
    ("flush demo restart --force", ""),
    ("flush demo restart", "n\n"),
    ("flush demo switchover", ""),
    ("pause", ""),
    ("resume", ""),
    ("edit-config -s ttl=20 -p work_mem=8MB", "y\n"),
    ("edit-config -s ttl=20 --quiet --force", ""),
    ("edit-config -s ttl", ""),
    ("demote-cluster", ""),
    ("demote-cluster --host elsewhere", "n\n"),
    ("promote-cluster", ""),
    ("remove demo", "demo\nYes I am aware\npg-a\n"),
];

/// Times of now and ports of now become words.
fn without_now(text: &str, url: &str) -> String {
    let authority = url
        .trim_start_matches("http://")
        .trim_end_matches("/patroni");
    let text = text.replace(authority, "node:8008");
    let bytes = text.as_bytes();
    let is_date = |at: usize| {
        bytes.len() >= at + 16
            && (at..at + 10).all(|i| match i - at {
                4 | 7 => bytes[i] == b'-',
                _ => bytes[i].is_ascii_digit(),
            })
            && matches!(bytes[at + 10], b' ' | b'T')
            && bytes[at + 11].is_ascii_digit()
            && !text[at..].starts_with("2030")
    };
    let (mut out, mut at) = (String::new(), 0);
    while at < bytes.len() {
        if text.is_char_boundary(at) && is_date(at) {
            out.push_str("<now>");
            at += 11;
            while at < bytes.len() && (bytes[at].is_ascii_digit() || b":.".contains(&bytes[at])) {
                at += 1;
            }
        } else {
            let next = text[at..].chars().next().unwrap();
            out.push(next);
            at += next.len_utf8();
        }
    }
    out
}

/// All dialogues with nodes that answer like this, each with a cluster of its own.
async fn transcript(answers: &'static [(&'static str, u16, &'static str)], strict: bool) -> String {
    let url = stub(answers).await;
    let mut out = String::new();
    for (line, input) in DIALOGUES {
        let mut data = plain();
        for member in data.members.values_mut() {
            member.api_url = Some(url.clone());
        }
        let b = data.members.get_mut(&name("pg-b")).unwrap();
        b.pending_restart = Some(std::collections::BTreeMap::default());
        b.scheduled_restart =
            serde_json::from_str(r#"{"schedule": "2030-01-01T00:00:00+00:00"}"#).ok();
        data.failover = Some(FailoverRequest {
            revision: Revision(2),
            leader: Some(name("pg-a")),
            candidate: None,
            scheduled_at: Some(Schedule::At(WallTime(1_903_831_200_000))),
        });
        let store = FixedStore::new(data);
        let options = if strict { "--strict-exit " } else { "" };
        let ran = run_with(&store, &format!("{options}{line}"), input).await;
        let written: Vec<String> = store
            .written
            .lock()
            .unwrap()
            .iter()
            .map(|(document, text, _)| format!("written: {document:?} {text}\n"))
            .collect();
        out.push_str(&format!("$ patronictl {options}{line}\n"));
        for answer in input.lines() {
            out.push_str(&format!("< {answer}\n"));
        }
        out.push_str(&ran.out);
        if !ran.out.is_empty() && !ran.out.ends_with('\n') {
            out.push('\n');
        }
        for complaint in ran.err.lines() {
            out.push_str(&format!("! {complaint}\n"));
        }
        out.push_str(&written.concat());
        out.push_str(&format!("= {}\n\n", ran.code));
    }
    // The table is a test of its own.
    let begin = out.rfind("+ Cluster: demo").unwrap();
    let rest = &out[begin..];
    let end = rest.find("Please confirm").unwrap();
    let table = rest[..end].to_owned();
    without_now(&out.replace(&table, "<members>\n"), &url)
}

#[tokio::test]
async fn what_commands_say_when_nodes_do_as_asked() {
    insta::assert_snapshot!("willing", transcript(WILLING, false).await);
}

#[tokio::test]
async fn what_commands_say_when_nodes_refuse() {
    let refused = transcript(UNWILLING, true).await;
    let lenient = transcript(UNWILLING, false).await;
    insta::assert_snapshot!("unwilling", refused);
    // The texts are the same; only the status tells a script.
    let statuses = |text: &str| text.matches("\n= 1\n").count();
    assert!(statuses(&refused) >= statuses(&lenient) + 12, "{refused}");
    let unstrict = |text: &str| {
        text.replace("--strict-exit ", "")
            .replace("\n= 1\n", "\n= 0\n")
    };
    assert_eq!(unstrict(&refused), unstrict(&lenient));
}

#[tokio::test]
async fn a_variable_makes_the_exit_status_strict() {
    let url = stub(UNWILLING).await;
    let mut data = plain();
    for member in data.members.values_mut() {
        member.api_url = Some(url.clone());
    }
    let store = FixedStore::new(data);
    for (value, code) in [("1", 1), ("off", 0), ("", 0)] {
        let variables = [
            ("PATRONI_SCOPE", "demo"),
            ("PATRONI_ETCD3_HOSTS", "localhost:2379"),
            ("PATRONICTL_STRICT_EXIT", value),
        ];
        let ran = run_in(&variables, &store, "reload demo --force", "").await;
        assert_eq!(ran.code, code, "{value:?}");
    }
}

#[tokio::test]
async fn the_options_of_every_command() {
    let store = FixedStore::new(plain());
    let main = run_with(&store, "--help", "").await;
    let mut all = main.out.clone();
    let commands = main.out.lines().skip_while(|line| *line != "Commands:");
    for line in commands.skip(1).take_while(|line| line.starts_with("  ")) {
        let command = line.split_whitespace().next().unwrap();
        if command == "help" {
            continue;
        }
        let help = run_with(&store, &format!("{command} --help"), "").await;
        assert_eq!(help.code, 0, "{command}");
        all.push_str(&format!("\n===== {command}\n{}", help.out));
    }
    assert!(all.matches("=====").count() >= 22, "{all}");
    insta::assert_snapshot!("help", all);
}

#[tokio::test]
async fn shells_and_readers_are_told_of_every_command() {
    let store = FixedStore::new(plain());
    for shell in ["bash", "zsh", "fish"] {
        let ran = run_with(&store, &format!("completions {shell}"), "").await;
        assert_eq!(ran.code, 0, "{}", ran.err);
        for word in ["patronictl", "switchover", "candidate", "edit-config"] {
            assert!(ran.out.contains(word), "{shell}: {word}");
        }
    }
    let page = run_with(&store, "man", "").await.out;
    assert!(
        page.contains(".TH patronictl 1") && page.contains("switchover"),
        "{page}"
    );
    let page = run_with(&store, "man switchover", "").await.out;
    assert!(
        page.contains("candidate") && page.contains(".SH OPTIONS"),
        "{page}"
    );
    let ran = run_with(&store, "man frobnicate", "").await;
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "Error: there is no command frobnicate\n")
    );
    // A shell takes the script as it is.
    let script = run_with(&store, "completions bash", "").await.out;
    let mut bash = std::process::Command::new("bash")
        .arg("-n")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    bash.stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(bash.wait().unwrap().success());
}

const VARIABLES: [(&str, &str); 2] = [
    ("PATRONI_SCOPE", "demo"),
    ("PATRONI_ETCD3_HOSTS", "localhost:2379"),
];

#[tokio::test]
async fn a_terminal_gets_colours_unless_it_wants_none() {
    let store = FixedStore::new(plain());
    for (extra, on_terminal, coloured) in [
        (None, true, true),
        (None, false, false),
        (Some(("NO_COLOR", "1")), true, false),
        (Some(("TERM", "dumb")), true, false),
    ] {
        let mut variables = VARIABLES.to_vec();
        variables.extend(extra);
        let (out, err) = (Paper::default(), Paper::default());
        run_on(&variables, &store, "list", "", (&out, &err), on_terminal).await;
        let text = out.text();
        assert_eq!(text.contains("\x1b["), coloured, "{extra:?}: {text}");
        assert_eq!(text.contains("\x1b[1;32mLeader\x1b[0m"), coloured);
        let mut plain = text.clone();
        for code in ["\x1b[1;32m", "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[0m"] {
            plain = plain.replace(code, "");
        }
        assert_eq!(
            plain,
            run_with(&store, "list", "").await.out,
            "colours take no room"
        );
    }
}

#[tokio::test]
async fn a_watch_is_written_in_place_on_a_terminal_and_appended_elsewhere() {
    for on_terminal in [true, false] {
        let store = FixedStore::new(plain());
        let (out, err) = (Paper::default(), Paper::default());
        let paper = (&out, &err);
        let watching = run_on(&VARIABLES, &store, "list -w 0.01", "", paper, on_terminal);
        let seen = async {
            let until = |what: &'static str| {
                let out = out.clone();
                async move {
                    while !out.text().contains(what) {
                        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                    }
                }
            };
            until("pg-c").await;
            store.cluster.lock().unwrap().members.remove(&name("pg-b"));
            let length = out.text().len();
            let one_more = async {
                while !out.text()[length..].contains("pg-c")
                    || out.text()[length..].matches("Cluster: demo").count() < 3
                {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            };
            one_more.await;
        };
        tokio::select! {
            code = watching => panic!("the watch ended with {code}"),
            () = seen => {}
            () = tokio::time::sleep(std::time::Duration::from_secs(20)) => panic!("{}", out.text()),
        }
        let text = out.text();
        assert_eq!(text.contains("\x1b[H"), on_terminal);
        let last = text.rsplit("+ Cluster: demo").next().unwrap();
        assert!(!last.contains("pg-b"), "{last}");
        if on_terminal {
            let round = text.split("\x1b[H").nth(1).unwrap();
            assert!(round.ends_with("\x1b[K\n\x1b[J"), "{round:?}");
        }
    }
}

#[tokio::test]
async fn an_editor_that_empties_the_file_or_leaves_it_changes_nothing() {
    let store = FixedStore::new(plain());
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    for (editor, code, says) in [
        (
            "truncate -s 0",
            1,
            "must be a YAML mapping; nothing was changed",
        ),
        ("sed -i d", 1, "must be a YAML mapping; nothing was changed"),
        (
            "sed -i s/.*/-\\ a/",
            1,
            "must be a YAML mapping; nothing was changed",
        ),
        ("true", 0, "Not changed"),
        ("false", 1, "Editor exited with return code 1"),
    ] {
        let mut variables = VARIABLES.to_vec();
        variables.extend([("EDITOR", editor), ("TMPDIR", folder)]);
        let ran = run_in(&variables, &store, "edit-config", "y\n").await;
        let said = format!("{}{}", ran.out, ran.err);
        assert_eq!(ran.code, code, "{editor}: {said}");
        assert!(said.contains(says), "{editor}: {said}");
        assert!(store.written.lock().unwrap().is_empty(), "{editor}");
    }
    let mut variables = VARIABLES.to_vec();
    variables.extend([("EDITOR", "sed -i s/30/20/"), ("TMPDIR", folder)]);
    let ran = run_in(&variables, &store, "edit-config", "y\n").await;
    assert!(
        ran.out.ends_with("Configuration changed\n"),
        "{}{}",
        ran.out,
        ran.err
    );
    assert_eq!(
        std::fs::read_dir(folder).unwrap().count(),
        0,
        "no file is left behind"
    );
}
