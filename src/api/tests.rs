//! The server over loopback: routes, guards, malformed input, slow and idle callers, leader changes.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::cluster::{ConfigDocument, FailoverRequest, Leader, Member, Schedule};
use crate::dcs::{DcsError, Document, Expect, Lease, Refusal, Write};
use crate::node::{Command, RestartOutcome, Snapshot, ViewSender};
use crate::types::{MemberName, Revision, WallTime};

/// A store with one snapshot, writes applied to it.
pub(crate) struct FixedStore {
    pub(crate) cluster: Mutex<Cluster>,
    pub(crate) written: Mutex<Vec<(Document, String, Expect)>>,
    answers: bool,
    changes: watch::Sender<u64>,
}

impl FixedStore {
    pub(crate) fn new(cluster: Cluster) -> Arc<FixedStore> {
        Arc::new(FixedStore {
            cluster: Mutex::new(cluster),
            written: Mutex::default(),
            answers: true,
            changes: watch::channel(0).0,
        })
    }

    fn error() -> DcsError {
        DcsError {
            store: "fixed".into(),
            detail: "unplugged".into(),
        }
    }
}

#[async_trait::async_trait]
impl crate::dcs::Dcs for FixedStore {
    fn store(&self) -> &'static str {
        "fixed"
    }

    async fn load(&self, _: Freshness) -> Result<Cluster, DcsError> {
        if self.answers {
            Ok(self.cluster.lock().unwrap().clone())
        } else {
            Err(FixedStore::error())
        }
    }

    async fn load_groups(&self) -> Result<BTreeMap<u32, Cluster>, DcsError> {
        Err(FixedStore::error())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn acquire(&self) -> Write<Lease> {
        Write::Refused(Refusal::Precondition)
    }

    async fn adopt(&self, _: &Leader) -> Write<Lease> {
        Write::Refused(Refusal::Precondition)
    }

    async fn take(&self) -> Write<Lease> {
        Write::Refused(Refusal::Precondition)
    }

    async fn renew(&self, _: &Lease) -> Write {
        Write::Refused(Refusal::Precondition)
    }

    async fn release(&self, _: Lease) -> Write {
        Write::Refused(Refusal::Precondition)
    }

    async fn hand_over(&self, lease: Lease, _: &Member) -> (Write, Option<Lease>) {
        (Write::Refused(Refusal::Precondition), Some(lease))
    }

    async fn put_member(&self, _: &str) -> Write {
        Write::Done(())
    }

    async fn delete_member(&self) -> Write {
        Write::Done(())
    }

    async fn put(&self, document: Document, value: &str, expect: Expect) -> Write<Revision> {
        if !self.answers {
            return Write::Unknown(FixedStore::error());
        }
        let mut cluster = self.cluster.lock().unwrap();
        let current = match document {
            Document::Config => cluster.config_revision,
            Document::Failover => cluster.failover_revision,
            _ => None,
        };
        if matches!(expect, Expect::At(revision) if Some(revision) != current) {
            return Write::Refused(Refusal::Precondition);
        }
        self.written
            .lock()
            .unwrap()
            .push((document, value.to_owned(), expect));
        let revision = Revision(current.map_or(1, |revision| revision.0 + 1));
        match document {
            Document::Config => {
                cluster.config = crate::cluster::wire::parse_config(value)
                    .map(|data| ConfigDocument { data, revision });
                cluster.config_revision = Some(revision);
            }
            Document::Failover => {
                cluster.failover = crate::cluster::wire::parse_failover(value, revision);
                cluster.failover_revision = Some(revision);
            }
            _ => {}
        }
        Write::Done(revision)
    }

    async fn delete(&self, _: Document, _: Expect) -> Write {
        Write::Done(())
    }

    async fn delete_cluster(&self) -> Write {
        Write::Done(())
    }

    fn set_timings(&self, _: Duration, _: Duration) {}
}

fn name(text: &str) -> MemberName {
    MemberName::new(text).unwrap()
}

fn member(text: &str, api_url: &str) -> Member {
    let document = format!(
        r#"{{"conn_url": "postgres://10.0.0.1:5432/postgres", "api_url": "{api_url}", "state": "running", "role": "replica"}}"#
    );
    crate::cluster::wire::parse_member(name(text), None, &document)
}

fn example() -> Cluster {
    let leader = Leader {
        name: name("a"),
        revision: Revision(1),
        session: None,
    };
    let mut cluster = Cluster {
        leader: Some(leader),
        ..Cluster::default()
    };
    for each in ["a", "b"] {
        cluster
            .members
            .insert(name(each), member(each, "http://127.0.0.1:1/patroni"));
    }
    let data =
        serde_json::from_str(r#"{"ttl": 30, "postgresql": {"parameters": {"work_mem": "4MB"}}}"#)
            .unwrap();
    cluster.config = Some(ConfigDocument {
        data,
        revision: Revision(7),
    });
    cluster.config_revision = Some(Revision(7));
    cluster
}

struct Server {
    address: SocketAddr,
    view: ViewSender,
    commands: mpsc::Receiver<Command>,
    store: Arc<FixedStore>,
    settings: watch::Sender<Arc<Settings>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn server_with(settings: Settings, store: Arc<FixedStore>) -> Server {
    let slot: StoreSlot = Arc::new(OnceLock::new());
    let _ = slot.set(store.clone());
    server_over(settings, store, slot).await
}

/// Listens on a port of its own, on loopback unless the settings name another address.
async fn server_over(settings: Settings, store: Arc<FixedStore>, slot: StoreSlot) -> Server {
    let default = Settings::default().listen;
    let (settings, settings_seen) = watch::channel(Arc::new(Settings {
        listen: if settings.listen == default {
            "127.0.0.1:0".into()
        } else {
            settings.listen.clone()
        },
        ..settings
    }));
    let mut node = NodeView::starting(name("a"), "demo", clock::now());
    node.leader_until = Some(clock::now() + Duration::from_secs(600));
    let (view, view_seen) = watch::channel(Arc::new(node));
    let (sender, commands) = mpsc::channel(8);
    let bound = bind(settings_seen, view_seen, sender, slot).await.unwrap();
    let mut address = bound.local_addr().unwrap();
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let task = tokio::spawn(async move {
        let _ = bound.serve().await;
    });
    Server {
        address,
        view,
        commands,
        store,
        settings,
        task,
    }
}

async fn server(settings: Settings) -> Server {
    server_with(settings, FixedStore::new(example())).await
}

impl Server {
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read =
            tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await;
        read.expect("an answer in time").unwrap();
        answer
    }

    /// Status and body.
    async fn ask(&self, method: &str, target: &str, body: Option<&str>) -> (u16, String) {
        let length = body.map_or_else(String::new, |body| {
            format!("Content-Length: {}\r\n", body.len())
        });
        let answer = self
            .raw(&format!(
                "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{length}\r\n{}",
                body.unwrap_or("")
            ))
            .await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            body.to_owned(),
        )
    }

    fn publish(&self, change: impl FnOnce(&mut NodeView)) {
        self.view.send_modify(|view| change(Arc::make_mut(view)));
    }
}

#[tokio::test]
async fn health_checks_by_method_and_version() {
    let server = server(Settings::default()).await;
    let get = server.raw("GET /primary HTTP/1.0\r\n\r\n").await;
    assert!(get.starts_with("HTTP/1.0 200 OK\r\n"), "{get}");
    assert!(
        get.contains("\r\n\r\n{\"state\": \"stopped\", \"role\": \"uninitialized\", "),
        "{get}"
    );
    let lower = get.to_lowercase();
    assert!(
        lower.contains("\r\nserver: howdah/")
            && lower.contains("\r\ncontent-type: application/json\r\n"),
        "{get}"
    );
    for method in ["HEAD", "OPTIONS"] {
        for (path, want) in [
            ("/primary", 200),
            ("/", 200),
            ("//primary/x", 200),
            ("/replica", 503),
            ("/cluster", 503),
            ("/liveness", 200),
        ] {
            let (status, body) = server.ask(method, path, None).await;
            assert_eq!((status, body.as_str()), (want, ""), "{method} {path}");
        }
    }
    let (status, body) = server.ask("GET", "/nonsense", None).await;
    assert!(status == 503 && body.starts_with("{\"state\": "));
    assert_eq!(server.ask("GET", "/patroni/", None).await.0, 200);
    assert_eq!(
        server.ask("GET", "/liveness", None).await,
        (200, String::new())
    );
    let (status, body) = server.ask("POST", "/nonsense", Some("{}")).await;
    assert!(
        status == 501 && body.contains("Server does not support this operation"),
        "{body}"
    );
    assert_eq!(
        server.ask("POST_reload", "/", Some("{}")).await.0,
        501,
        "D13"
    );
}

#[tokio::test]
async fn leadership_ends_by_the_clock_without_the_agent() {
    let server = server(Settings::default()).await;
    assert_eq!(server.ask("GET", "/primary", None).await.0, 200);
    server.publish(|view| view.leader_until = Some(clock::now()));
    assert_eq!(server.ask("GET", "/primary", None).await.0, 503);
}

#[tokio::test]
async fn the_rendered_body_follows_the_view() {
    let server = server(Settings::default()).await;
    let before = server.ask("GET", "/patroni", None).await.1;
    assert!(before.contains("\"cluster_unlocked\": true"));
    server.publish(|view| {
        view.snapshot = Some(Snapshot {
            cluster: Arc::new(example()),
            read_at: clock::now(),
        })
    });
    let after = server.ask("GET", "/patroni", None).await.1;
    assert!(!after.contains("cluster_unlocked"), "{after}");
}

#[tokio::test]
async fn idle_and_slow_callers_do_not_starve_health_checks() {
    let server = server(Settings {
        max_connections: 20,
        ..Settings::default()
    })
    .await;
    let mut idle = Vec::new();
    for number in 0..60 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        if number % 2 == 0 {
            stream
                .write_all(b"GET /primary HTTP/1.1\r\nX-Slow: ")
                .await
                .unwrap();
        }
        idle.push(stream);
        if number % 10 == 0 {
            assert_eq!(
                server.ask("GET", "/primary", None).await.0,
                200,
                "after {number} idle connections"
            );
        }
    }
    assert_eq!(server.ask("HEAD", "/primary", None).await.0, 200);
    // The oldest had to give way.
    let mut buffer = [0; 16];
    let closed = tokio::time::timeout(Duration::from_secs(5), idle[1].read(&mut buffer))
        .await
        .expect("closed in time");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
}

/// One answer from a connection that stays open.
async fn next_answer(stream: &mut TcpStream) -> (String, String) {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer));
        let count = read.await.expect("an answer in time").unwrap();
        assert!(
            count > 0,
            "closed after {:?}",
            String::from_utf8_lossy(&bytes)
        );
        bytes.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.parse().unwrap())
        });
        if body.len() == length.unwrap_or(0) {
            return (head.to_owned(), body.to_owned());
        }
    }
}

#[tokio::test]
async fn a_connection_carries_requests_until_the_client_or_an_error_ends_it() {
    let server = server(Settings::default()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for (request, status) in [
        ("GET /primary HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
        ("GET /replica HTTP/1.1\r\nHost: x\r\n\r\n", "503"),
        ("GET /liveness HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
        ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
        (
            "PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n{\"a\": 1}",
            "200",
        ),
    ] {
        stream.write_all(request.as_bytes()).await.unwrap();
        let (head, _) = next_answer(&mut stream).await;
        assert_eq!(head.split(' ').nth(1), Some(status), "{request}: {head}");
        assert!(!head.to_lowercase().contains("connection: close"), "{head}");
    }
    // An error page ends it (spec §1).
    stream
        .write_all(b"POST /nonsense HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    let (head, _) = next_answer(&mut stream).await;
    assert!(
        head.starts_with("HTTP/1.1 501 ") && head.to_lowercase().contains("connection: close"),
        "{head}"
    );
    let mut rest = [0; 1];
    assert_eq!(stream.read(&mut rest).await.unwrap(), 0);
}

#[tokio::test]
async fn http_1_0_is_closed_unless_it_asks_otherwise() {
    let server = server(Settings::default()).await;
    let closed = server.raw("OPTIONS / HTTP/1.0\r\n\r\n").await;
    assert!(closed.starts_with("HTTP/1.0 200 OK\r\n"), "{closed}");
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..2 {
        stream
            .write_all(b"GET /primary HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            .await
            .unwrap();
        let (head, _) = next_answer(&mut stream).await;
        assert!(
            head.to_lowercase().contains("connection: keep-alive"),
            "{head}"
        );
    }
}

/// All sorts of callers that keep connections without needing them, far more of them than there may be.
#[tokio::test]
async fn a_crowd_of_connections_neither_delays_health_checks_nor_ends_busy_ones() {
    let server = server(Settings {
        max_connections: 64,
        ..Settings::default()
    })
    .await;
    let mut busy = TcpStream::connect(server.address).await.unwrap();
    let mut crowd = std::collections::VecDeque::new();
    for number in 0..600 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let says: &[u8] = match number % 4 {
            0 => b"",
            1 => b"GET /primary HTTP/1.1\r\nX-Slow: ",
            2 => b"\x16\x03\x01\x02\x00\x01",
            _ => b"HEAD /primary HTTP/1.1\r\nHost: x\r\n\r\n",
        };
        // The server may have closed it already.
        let _ = stream.write_all(says).await;
        crowd.push_back(stream);
        if crowd.len() > 200 {
            crowd.pop_front();
        }
        if number % 8 == 0 {
            busy.write_all(b"GET /primary HTTP/1.1\r\nHost: x\r\n\r\n")
                .await
                .unwrap();
            let (head, _) = next_answer(&mut busy).await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        }
        if number % 50 == 0 {
            assert_eq!(server.ask("HEAD", "/primary", None).await.0, 200);
        }
    }
}

/// All have come before the first one is accepted.
#[tokio::test]
async fn in_a_burst_of_silent_connections_the_one_that_asks_is_answered() {
    let server = server(Settings {
        max_connections: 64,
        ..Settings::default()
    })
    .await;
    let connect = || std::net::TcpStream::connect(server.address).unwrap();
    let before: Vec<_> = (0..100).map(|_| connect()).collect();
    let mut asks = connect();
    std::io::Write::write_all(&mut asks, b"GET /primary HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let after: Vec<_> = (0..500).map(|_| connect()).collect();
    asks.set_nonblocking(true).unwrap();
    let mut asks = TcpStream::from_std(asks).unwrap();
    let (head, _) = next_answer(&mut asks).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    drop((before, after));
}

#[tokio::test]
async fn guards_come_first_and_in_order() {
    let credentials = Credentials {
        username: "u".into(),
        password: "p".into(),
    };
    let server = server(Settings {
        authentication: Some(credentials),
        ..Settings::default()
    })
    .await;
    assert_eq!(
        server.ask("GET", "/config", None).await.0,
        200,
        "reading is free"
    );
    for (method, path) in [
        ("PATCH", "/config"),
        ("PUT", "/config"),
        ("POST", "/reload"),
        ("POST", "/failsafe"),
        ("POST", "/sigterm"),
        ("POST", "/restart"),
        ("DELETE", "/restart"),
        ("POST", "/switchover"),
        ("DELETE", "/switchover"),
        ("POST", "/failover"),
        ("POST", "/reinitialize"),
        ("POST", "/citus"),
        ("POST", "/mpp"),
        ("POST", "/ui"),
    ] {
        let answer = server.ask(method, path, Some("{bad json")).await;
        assert_eq!(
            answer,
            (401, "no auth header received".to_owned()),
            "{method} {path}"
        );
    }
    let answer = server
        .raw("POST /reload/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Basic dTpw\r\n\r\n")
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 202 ") && answer.ends_with("reload scheduled"),
        "{answer}"
    );
    let answer = server
        .raw("POST /reload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Basic AAAA\r\n\r\n")
        .await
        .to_lowercase();
    assert!(
        answer.contains("www-authenticate: basic realm=\"patroni\""),
        "{answer}"
    );
    // New settings take effect in place.
    let mut settings = (**server.settings.borrow()).clone();
    settings.authentication = None;
    server.settings.send_replace(Arc::new(settings));
    for _ in 0..200 {
        if server.ask("POST", "/sigterm", None).await == (202, "shutdown scheduled".to_owned()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the new settings never took effect");
}

#[tokio::test]
async fn malformed_bodies() {
    let mut server = server(Settings::default()).await;
    for (body, want) in [
        (None, 411),
        (Some("{"), 400),
        (Some("[]"), 400),
        (Some("{}"), 400),
        (Some(""), 400),
    ] {
        assert_eq!(
            server.ask("PATCH", "/config", body).await.0,
            want,
            "{body:?}"
        );
    }
    assert_eq!(
        server.ask("POST", "/reinitialize", Some("{")).await.0,
        400,
        "D4"
    );
    assert!(
        server.commands.try_recv().is_err(),
        "nothing may happen after a malformed body"
    );
    assert_eq!(
        server
            .ask("POST", "/failsafe", Some(r#"{"name": "a"}"#))
            .await
            .0,
        400,
        "D8"
    );
    for (body, want) in [
        (r#"{"postgres_version": 16}"#, 400),
        (r#"{"postgres_version": "16"}"#, 400),
        (r#"{"role": "boss"}"#, 400),
        (r#"{"timeout": 0}"#, 400),
        (r#"{"colour": 1}"#, 400),
        (r#"{"schedule": "2030-01-01T00:00"}"#, 400),
        (r#"{"schedule": "2001-01-01T00:00Z"}"#, 422),
        (r#"{"schedule": "soon"}"#, 422),
    ] {
        assert_eq!(
            server.ask("POST", "/restart", Some(body)).await.0,
            want,
            "{body}"
        );
    }
}

/// What a request with these further header lines is answered.
async fn ask_with(server: &Server, line: &str, headers: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let answer = server
        .raw(&format!(
            "{line} HTTP/1.1\r\nHost: node:8008\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        ))
        .await;
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

#[tokio::test]
async fn ipv4_callers_of_a_dual_stack_socket_are_on_an_ipv4_allowlist() {
    for (network, status) in [("127.0.0.0/8", 202), ("10.0.0.0/8", 403)] {
        let server = server(Settings {
            listen: "*:0".into(),
            allowlist: vec![network.into()],
            ..Settings::default()
        })
        .await;
        assert_eq!(
            server.ask("POST", "/sigterm", None).await.0,
            status,
            "D2: {network}"
        );
    }
}

#[tokio::test]
async fn the_port_answers_before_there_is_a_store() {
    let store = FixedStore::new(Cluster::default());
    let server = server_over(Settings::default(), store, Arc::default()).await;
    server.publish(|view| view.leader_until = None);
    assert_eq!(server.ask("GET", "/liveness", None).await.0, 200, "D12");
    for path in ["/primary", "/replica", "/readiness", "/health"] {
        assert_eq!(server.ask("GET", path, None).await.0, 503, "{path}");
    }
    let (status, body) = server.ask("GET", "/cluster", None).await;
    assert!(status == 503 && body.contains("not open yet"), "{body}");
}

#[tokio::test]
async fn names_that_are_no_text_are_refused_and_flags_are_honoured() {
    let mut server = server(Settings::default()).await;
    for (path, body) in [
        ("/switchover", r#"{"leader": "a", "candidate": 5}"#),
        ("/switchover", r#"{"leader": "a", "member": ["b"]}"#),
        ("/failover", r#"{"candidate": true}"#),
        (
            "/failsafe",
            r#"{"name": 1, "conn_url": "x", "api_url": "y"}"#,
        ),
        ("/mpp", r#"{"type": "before_demote", "leader": {}}"#),
    ] {
        let (status, answer) = server.ask("POST", path, Some(body)).await;
        assert_eq!(status, 400, "{path} {body}: {answer}");
    }
    assert!(server.store.written.lock().unwrap().is_empty());
    assert!(server.commands.try_recv().is_err());
    for (endpoint, body) in [
        ("/restart", r#"{"restart_pending": false}"#),
        ("/reinitialize", r#"{"from-leader": true}"#),
        ("/reinitialize", r#"{"from_leader": "on", "force": "off"}"#),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let length = body.len();
        let request = format!(
            "POST {endpoint} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        match server.commands.recv().await {
            Some(Command::Restart { conditions, .. }) => assert!(!conditions.only_pending, "D9"),
            Some(Command::Reinitialize {
                force, from_leader, ..
            }) => assert!(from_leader && !force, "D14: {body}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_lost_race_leaves_the_configuration_as_it_was() {
    let server = server(Settings::default()).await;
    let cluster = Arc::new(example());
    server.publish(|view| {
        view.snapshot = Some(Snapshot {
            cluster,
            read_at: clock::now(),
        })
    });
    let before = server.ask("GET", "/config", None).await;
    // Somebody has written since the document was read.
    server.store.cluster.lock().unwrap().config_revision = Some(Revision(8));
    let patch = server.ask("PATCH", "/config", Some(r#"{"ttl": 20}"#)).await;
    assert_eq!(patch.0, 409);
    assert_eq!(server.ask("GET", "/config", None).await, before, "D11");
}

#[tokio::test]
async fn a_page_of_somebody_else_can_not_act_through_a_browser() {
    let server = server(Settings::default()).await;
    for (headers, status) in [
        ("", 202),
        ("Origin: http://node:8008\r\n", 202),
        (
            "Sec-Fetch-Site: same-origin\r\nOrigin: https://proxy\r\n",
            202,
        ),
        ("Origin: http://elsewhere\r\n", 403),
        ("Origin: null\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\n", 403),
    ] {
        let (got, answer) = ask_with(&server, "POST /sigterm", headers, "").await;
        assert_eq!(got, status, "{headers:?}: {answer}");
    }
}

#[tokio::test]
async fn browsers_get_the_page_and_probes_what_they_always_got() {
    let server = server(Settings::default()).await;
    let html = "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n";
    for (line, headers, is_page) in [
        ("GET /", html, true),
        ("GET /ui", html, true),
        ("GET /ui", "", true),
        ("GET /", "Accept: */*\r\n", false),
        ("GET /", "Accept: text/html, image/gif, *; q=.2\r\n", false),
        ("GET /", "", false),
        ("GET /primary", html, false),
        ("GET /patroni", html, false),
    ] {
        let (status, answer) = ask_with(&server, line, headers, "").await;
        assert_eq!(status, 200, "{line} {headers}");
        assert_eq!(answer.contains("<!doctype html>"), is_page, "{line}");
        assert_eq!(answer.contains("{\"state\": "), !is_page, "{line}");
    }
    // What may run is the script of the page and no other.
    let (_, page) = ask_with(&server, "GET /ui", html, "").await;
    let script = page.split_once("<script>").unwrap().1;
    let script = script.split_once("</script>").unwrap().0;
    use base64::Engine as _;
    use sha2::Digest as _;
    let hash =
        base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(script.as_bytes()));
    assert!(
        page.contains(&format!("script-src 'sha256-{hash}'")),
        "{page}"
    );
    for outside in ["src=\"http", "href=\"http", "@import", "url("] {
        assert!(!page.contains(outside), "the page fetches something");
    }
    // The status stays that of the health check.
    server.publish(|view| view.leader_until = None);
    let (status, answer) = ask_with(&server, "GET /", html, "").await;
    assert!(status == 503 && answer.contains("<!doctype html>"));
    assert_eq!(ask_with(&server, "HEAD /", html, "").await.0, 503);
    assert_eq!(ask_with(&server, "GET /ui", html, "").await.0, 200);
}

/// The next event of a stream, the signs of life left out.
async fn next_event(stream: &mut TcpStream, kept: &mut String) -> Value {
    loop {
        if let Some((event, rest)) = kept
            .split_once("data: ")
            .and_then(|(_, rest)| rest.split_once("\n\n"))
        {
            let event = serde_json::from_str(event).unwrap();
            *kept = rest.to_owned();
            return event;
        }
        let mut buffer = [0; 16384];
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer));
        let count = read.await.expect("an event in time").unwrap();
        assert!(count > 0, "the stream ended: {kept}");
        kept.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}

#[tokio::test]
async fn open_pages_are_told_of_every_change() {
    let server = server(Settings::default()).await;
    let request = b"GET /ui HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n";
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut kept = String::new();
    let first = next_event(&mut stream, &mut kept).await;
    assert_eq!(
        (&first["scope"], &first["cluster"], &first["sign_in"]),
        (&"demo".into(), &Value::Null, &"none".into())
    );
    let mut cluster = example();
    cluster.history = crate::cluster::wire::parse_history(
        r#"[[1, 100, "no recovery target specified", "2026-01-01T00:00:00+00:00", "a"]]"#,
    );
    server.publish(|view| {
        view.snapshot = Some(Snapshot {
            cluster: Arc::new(cluster),
            read_at: clock::now(),
        })
    });
    let second = next_event(&mut stream, &mut kept).await;
    assert_eq!(second["cluster"]["members"][0]["role"], "leader");
    assert_eq!(second["history"][0][4], "a");
    let sentence = second["explanations"][1]["sentence"].as_str().unwrap();
    assert!(
        sentence.starts_with("b is not the leader (a is): "),
        "{sentence}"
    );
    // There is an end to how many may be open.
    let mut others = Vec::new();
    for _ in 1..dashboard::FEEDS {
        let mut other = TcpStream::connect(server.address).await.unwrap();
        other.write_all(request).await.unwrap();
        next_event(&mut other, &mut String::new()).await;
        others.push(other);
    }
    let (status, _) = ask_with(&server, "GET /ui", "Accept: text/event-stream\r\n", "").await;
    assert_eq!(status, 503);
    assert_eq!(server.ask("GET", "/primary", None).await.0, 200);
}

#[tokio::test]
async fn the_page_acts_for_those_who_are_known_only() {
    let stranger = server(Settings::default()).await;
    let (status, answer) = stranger.ask("POST", "/ui", None).await;
    assert!(
        status == 403 && answer.contains("restapi.authentication"),
        "{answer}"
    );
    let mut other = server(Settings::default()).await;
    let credentials = Credentials {
        username: "u".into(),
        password: "p".into(),
    };
    let mine = server(Settings {
        authentication: Some(credentials),
        ..Settings::default()
    })
    .await;
    let url = format!("http://{}/patroni", other.address);
    mine.store
        .cluster
        .lock()
        .unwrap()
        .members
        .insert(name("b"), member("b", &url));
    assert_eq!(mine.ask("POST", "/ui", None).await.0, 401);
    let known = "Authorization: Basic dTpw\r\n";
    assert_eq!(ask_with(&mine, "POST /ui", known, "{}").await.0, 200);
    let restart = |who: &str| format!(r#"{{"restart": "{who}"}}"#);
    let (status, _) = ask_with(&mine, "POST /ui", known, &restart("nobody")).await;
    assert_eq!(status, 404);
    let done = async {
        match other.commands.recv().await {
            Some(Command::Restart { reply, .. }) => reply.send(RestartOutcome::Done).unwrap(),
            command => panic!("{command:?}"),
        }
    };
    let body = restart("b");
    let ((status, answer), ()) = tokio::join!(ask_with(&mine, "POST /ui", known, &body), done);
    assert!(
        status == 200 && answer.ends_with("restarted successfully"),
        "{answer}"
    );
}

#[tokio::test]
async fn configuration_is_written_with_compare_and_set() {
    let mut server = server(Settings::default()).await;
    let (status, body) = server
        .ask(
            "PATCH",
            "/config",
            Some(r#"{"ttl": 20, "postgresql": {"parameters": {"work_mem": null}}}"#),
        )
        .await;
    assert_eq!(
        (status, body.as_str()),
        (200, r#"{"ttl": 20, "postgresql": {"parameters": {}}}"#)
    );
    let written = server.store.written.lock().unwrap().pop().unwrap();
    assert_eq!(
        written,
        (
            Document::Config,
            r#"{"ttl":20,"postgresql":{"parameters":{}}}"#.to_owned(),
            Expect::At(Revision(7))
        )
    );
    assert!(matches!(server.commands.try_recv(), Ok(Command::Wake)));
    let (status, _) = server
        .ask("PATCH", "/config", Some(r#"{"ttl": "20"}"#))
        .await;
    assert!(
        status == 200 && server.store.written.lock().unwrap().is_empty(),
        "equal texts are no change"
    );
    let (status, body) = server.ask("PUT", "/config", Some(r#"{"ttl":40}"#)).await;
    assert_eq!((status, body.as_str()), (200, r#"{"ttl": 40}"#));
    server.store.cluster.lock().unwrap().config = None;
    assert_eq!(
        server
            .ask("PATCH", "/config", Some(r#"{"ttl": 20}"#))
            .await
            .0,
        503
    );
    assert_eq!(server.ask("GET", "/config", None).await.0, 502);
}

#[tokio::test]
async fn an_unreachable_store_is_explained() {
    let store = Arc::new(FixedStore {
        cluster: Mutex::default(),
        written: Mutex::default(),
        answers: false,
        changes: watch::channel(0).0,
    });
    let server = server_with(Settings::default(), store).await;
    for (method, path, body) in [
        ("GET", "/cluster", None),
        ("GET", "/history", None),
        ("GET", "/config", None),
        ("PATCH", "/config", Some(r#"{"a": 1}"#)),
        ("POST", "/switchover", Some(r#"{"leader": "a"}"#)),
        ("DELETE", "/switchover", None),
    ] {
        let (status, body) = server.ask(method, path, body).await;
        assert!(
            status == 503 && body.contains("unplugged"),
            "{method} {path}: {status} {body}"
        );
    }
    assert_eq!(
        server.ask("GET", "/primary", None).await.0,
        200,
        "health checks do not need the store"
    );
    assert_eq!(server.ask("GET", "/failsafe", None).await.0, 502);
}

#[tokio::test]
async fn cluster_and_history() {
    let server = server(Settings::default()).await;
    {
        let mut cluster = server.store.cluster.lock().unwrap();
        cluster.status.optime = crate::types::Lsn(0x5000200);
        let b = cluster.members.get_mut(&name("b")).unwrap();
        b.replay_lsn = Some(crate::types::Lsn(0x5000100));
        b.replication_state = Some(crate::types::ReplicationState::Streaming);
        cluster.history = crate::cluster::wire::parse_history(
            r#"[[1, 100, "no recovery target specified", "2026-01-01T00:00:00+00:00", "a"], [2, 200, "x"]]"#,
        );
        cluster.failover = Some(FailoverRequest {
            revision: Revision(1),
            leader: Some(name("a")),
            candidate: None,
            scheduled_at: Some(Schedule::At(WallTime(1_900_000_000_000))),
        });
    }
    let (_, body) = server.ask("GET", "/cluster", None).await;
    assert_eq!(
        body,
        concat!(
            r#"{"members": [{"name": "a", "role": "leader", "state": "running", "api_url": "http://127.0.0.1:1/patroni", "host": "10.0.0.1", "port": 5432}, "#,
            r#"{"name": "b", "role": "replica", "state": "streaming", "api_url": "http://127.0.0.1:1/patroni", "host": "10.0.0.1", "port": 5432, "#,
            r#""receive_lag": "unknown", "receive_lsn": "unknown", "replay_lag": 256, "replay_lsn": "0/5000100", "lag": "unknown", "lsn": "unknown"}], "#,
            r#""scheduled_switchover": {"at": "2030-03-17T17:46:40+00:00", "from": "a"}, "scope": "demo"}"#
        )
    );
    let (_, body) = server.ask("GET", "/history", None).await;
    assert_eq!(
        body,
        r#"[[1, 100, "no recovery target specified", "2026-01-01T00:00:00+00:00", "a"], [2, 200, "x"]]"#
    );
}

#[tokio::test]
async fn switchover_refusals() {
    let server = server(Settings::default()).await;
    for (path, body, status, text) in [
        (
            "/failover",
            r#"{"leader": "a"}"#,
            400,
            "Failover could be performed only to a specific candidate",
        ),
        (
            "/switchover",
            r#"{"candidate": "b"}"#,
            400,
            "Switchover could be performed only from a specific leader",
        ),
        (
            "/failover",
            r#"{"candidate": "b", "scheduled_at": "2030-01-01T00:00Z"}"#,
            400,
            "Failover can't be scheduled",
        ),
        (
            "/switchover",
            r#"{"leader": "a", "candidate": "a"}"#,
            400,
            "Switchover target and source are the same",
        ),
        (
            "/switchover",
            r#"{"leader": "a", "candidate": "a", "scheduled_at": "2030-01-01T00:00Z"}"#,
            400,
            "Switchover target and source are the same",
        ),
        (
            "/switchover",
            r#"{"leader": "b"}"#,
            412,
            "leader name does not match",
        ),
        (
            "/switchover",
            r#"{"leader": "a", "member": "c"}"#,
            412,
            "candidate does not exists",
        ),
        (
            "/switchover",
            r#"{"leader": "a"}"#,
            412,
            "switchover is not possible: no good candidates have been found",
        ),
        (
            "/failover",
            r#"{"candidate": "b"}"#,
            412,
            "failover is not possible: no good candidates have been found",
        ),
    ] {
        assert_eq!(
            server.ask("POST", path, Some(body)).await,
            (status, text.to_owned()),
            "{path} {body}"
        );
    }
    assert!(server.store.written.lock().unwrap().is_empty());
    let scheduled = r#"{"leader": "a", "candidate": "", "scheduled_at": "2030-01-01T00:00Z"}"#;
    assert_eq!(
        server.ask("POST", "/switchover", Some(scheduled)).await,
        (202, "Switchover scheduled".to_owned())
    );
    let (_, value, _) = server.store.written.lock().unwrap().pop().unwrap();
    assert_eq!(
        value,
        r#"{"leader":"a","scheduled_at":"2030-01-01T00:00:00+00:00"}"#
    );
    assert_eq!(
        server.ask("DELETE", "/switchover", None).await,
        (200, "scheduled switchover deleted".to_owned())
    );
    assert_eq!(
        server.ask("DELETE", "/switchover", None).await,
        (404, "no switchover is scheduled".to_owned())
    );
}

/// A cluster whose other member answers as a good candidate.
async fn with_candidate() -> (Server, Server) {
    let candidate = server(Settings::default()).await;
    candidate.publish(|view| {
        view.state = crate::types::PgState::Running;
        view.postgres = Some(crate::node::PostgresStatus {
            server_version: crate::types::PgVersion(170_002),
            postmaster_start_time: crate::node::PgTimestamp(0),
            timeline: None,
            xlog: crate::node::Xlog::Primary {
                location: crate::types::Lsn(1),
            },
            replication_state: None,
            replication: Vec::new(),
            replaying: false,
        });
    });
    let mut cluster = example();
    cluster.members.insert(
        name("b"),
        member("b", &format!("http://{}/patroni", candidate.address)),
    );
    (
        server_with(Settings::default(), FixedStore::new(cluster)).await,
        candidate,
    )
}

#[tokio::test]
async fn a_switchover_is_answered_when_the_snapshot_shows_it() {
    let (mut server, _candidate) = with_candidate().await;
    let address = server.address;
    let request = r#"{"leader": "a"}"#;
    let call = tokio::spawn(async move {
        let client = peers::Client::new(&peers::ClientSettings::default()).unwrap();
        client
            .call(
                Method::POST,
                &format!("http://{address}/patroni"),
                "switchover",
                Some(request),
                Duration::from_secs(15),
            )
            .await
    });
    assert!(matches!(server.commands.recv().await, Some(Command::Wake)));
    let mut after = server.store.cluster.lock().unwrap().clone();
    after.leader = Some(Leader {
        name: name("b"),
        revision: Revision(2),
        session: None,
    });
    server.publish(|view| {
        view.snapshot = Some(Snapshot {
            cluster: Arc::new(after),
            read_at: clock::now(),
        })
    });
    let answer = call.await.unwrap().unwrap();
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "Successfully switched over to \"b\"")
    );
}

#[tokio::test]
async fn a_cleared_request_means_failed() {
    let (mut server, _candidate) = with_candidate().await;
    let store = server.store.clone();
    let clear = async {
        assert!(matches!(server.commands.recv().await, Some(Command::Wake)));
        store.cluster.lock().unwrap().failover = None;
        std::future::pending::<()>().await;
    };
    let url = format!("http://{}/patroni", server.address);
    let client = peers::Client::new(&peers::ClientSettings::default()).unwrap();
    let call = client.call(
        Method::POST,
        &url,
        "failover",
        Some(r#"{"candidate": "b"}"#),
        Duration::from_secs(15),
    );
    let answer = tokio::select! {
        answer = call => answer.unwrap(),
        () = clear => unreachable!(),
    };
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (503, "Failover failed")
    );
}

#[tokio::test]
async fn restart_goes_through_the_agent() {
    let mut server = server(Settings::default()).await;
    let answering = async {
        while let Some(command) = server.commands.recv().await {
            match command {
                Command::Restart { conditions, reply } => {
                    assert!(conditions.only_pending);
                    let _ = reply.send(RestartOutcome::Busy("reinitialize".into()));
                }
                Command::ScheduleRestart { restart, reply } => {
                    assert_eq!(
                        restart.document.get("schedule").unwrap(),
                        "2030-01-01T00:00:00+00:00"
                    );
                    let _ = reply.send(true);
                }
                Command::CancelRestart { reply } => {
                    let _ = reply.send(false);
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let url = format!("http://{}/patroni", server.address);
    let client = peers::Client::new(&peers::ClientSettings::default()).unwrap();
    let asking = async {
        for (method, body, status, text) in [
            (
                Method::POST,
                r#"{"restart_pending": true}"#,
                503,
                "reinitialize already in progress",
            ),
            (
                Method::POST,
                r#"{"schedule": "2030-01-01T00:00Z"}"#,
                202,
                "Restart scheduled",
            ),
            (Method::DELETE, "", 404, "no restarts are scheduled"),
        ] {
            let answer = client
                .call(method, &url, "restart", Some(body), Duration::from_secs(15))
                .await
                .unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (status, text));
        }
    };
    tokio::select! {
        () = asking => {}
        () = answering => unreachable!(),
    }
}

#[test]
fn versions_of_postgres() {
    use crate::types::PgVersion;
    let parse =
        |text: &str| crate::restart::parse_version(&Value::from(text)).map(|(_, number)| number);
    assert_eq!(parse("17.2"), Ok(PgVersion(170_002)));
    assert_eq!(parse("9.6.24"), Ok(PgVersion(90_624)));
    assert!(
        parse("17").is_err()
            && parse("17.x").is_err()
            && parse("9.6").is_err()
            && parse("1.2.3.4").is_err()
    );
}

#[tokio::test]
async fn tls_with_client_certificates_and_reload() {
    let folder = tempfile::tempdir().unwrap();
    let path = |file: &str| folder.path().join(file).to_str().unwrap().to_owned();
    let write_identity = |prefix: &str| {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(path(&format!("{prefix}.crt")), made.cert.pem()).unwrap();
        std::fs::write(
            path(&format!("{prefix}.key")),
            made.signing_key.serialize_pem(),
        )
        .unwrap();
    };
    write_identity("server");
    write_identity("client");
    let tls = TlsSettings {
        certfile: path("server.crt"),
        keyfile: Some(path("server.key")),
        keyfile_password: Some("secret".to_owned()),
        cafile: Some(path("client.crt")),
        verify_client: VerifyClient::Optional,
    };
    // The key lies there encrypted, as keys should.
    let locked = |prefix: &str, password: &str| {
        let key = path(&format!("{prefix}.key"));
        let pem = std::fs::read_to_string(&key).unwrap();
        let info = rcgen::KeyPair::from_pem(&pem).unwrap().serialize_der();
        let encrypted = pkcs8::PrivateKeyInfo::try_from(info.as_slice())
            .unwrap()
            .encrypt_with_params(
                pkcs8::pkcs5::pbes2::Parameters::pbkdf2_sha256_aes256cbc(
                    1000,
                    b"saltsalt",
                    &[7; 16],
                )
                .unwrap(),
                password,
            )
            .unwrap();
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(encrypted.as_bytes());
        let pem = format!(
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\n{body}\n-----END ENCRYPTED PRIVATE KEY-----\n"
        );
        std::fs::write(key, pem).unwrap();
    };
    locked("server", "secret");
    locked("client", "client's");
    for (password, why) in [
        (None, "is encrypted; its password is needed"),
        (Some("wrong"), "is wrong"),
    ] {
        let tls = TlsSettings {
            keyfile_password: password.map(str::to_owned),
            ..tls.clone()
        };
        let refused = tls::server_config(&tls).unwrap_err().to_string();
        assert!(
            refused.contains("server.key") && refused.contains(why),
            "{refused}"
        );
    }
    let server = server(Settings {
        tls: Some(tls),
        ..Settings::default()
    })
    .await;
    let url = format!("https://localhost:{}/patroni", server.address.port());
    let call = |settings: peers::ClientSettings, method: Method, endpoint: &'static str| {
        let url = url.clone();
        async move {
            peers::Client::new(&settings)
                .unwrap()
                .call(method, &url, endpoint, None, Duration::from_secs(10))
                .await
        }
    };
    let lenient = peers::ClientSettings::default();
    assert_eq!(
        call(lenient.clone(), Method::GET, "primary")
            .await
            .unwrap()
            .status,
        200
    );
    let refused = call(lenient, Method::POST, "sigterm").await.unwrap();
    assert_eq!(
        (refused.status, refused.body.as_str()),
        (403, "client certificate required")
    );
    let full = peers::ClientSettings {
        cacert: Some(path("server.crt")),
        certfile: Some(path("client.crt")),
        keyfile: Some(path("client.key")),
        keyfile_password: Some("client's".to_owned()),
        verify: peers::Verify::Full,
        ..peers::ClientSettings::default()
    };
    assert_eq!(
        call(full.clone(), Method::POST, "sigterm")
            .await
            .unwrap()
            .status,
        202
    );
    // A renewed certificate is served after a reload, without a new port.
    write_identity("server");
    server.settings.send_modify(|_| {});
    let renewed = async {
        while call(full.clone(), Method::GET, "primary").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let reloaded = tokio::time::timeout(Duration::from_secs(10), renewed).await;
    assert!(reloaded.is_ok(), "the renewed certificate is never served");
    let stranger = peers::ClientSettings {
        cacert: Some(path("client.crt")),
        ..full
    };
    assert!(matches!(
        call(stranger, Method::GET, "primary").await,
        Err(peers::CallError::NotSent(_))
    ));
}

/// A standby that has received up to `received`.
fn standby_at(received: u64) -> crate::node::PostgresStatus {
    crate::node::PostgresStatus {
        server_version: crate::types::PgVersion(170_000),
        postmaster_start_time: crate::node::PgTimestamp(0),
        timeline: None,
        xlog: crate::node::Xlog::Standby {
            received: crate::types::Lsn(received),
            replayed: crate::types::Lsn(received),
            replayed_timestamp: None,
            paused: false,
            latest_end: None,
        },
        replication_state: None,
        replication: Vec::new(),
        replaying: false,
    }
}

#[tokio::test]
async fn peers_read_the_position_of_this_moment_or_none() {
    let server = server(Settings::default()).await;
    let (live, mut requests) =
        mpsc::channel::<tokio::sync::oneshot::Sender<Option<crate::node::PostgresStatus>>>(1);
    server.view.send_modify(|view| {
        let mut next = (**view).clone();
        next.state = crate::types::PgState::Running;
        next.role = crate::types::Role::Replica;
        next.postgres = Some(standby_at(1000));
        next.live = Some(crate::node::LiveStatus(live));
        *view = Arc::new(next);
    });
    let answering = tokio::spawn(async move {
        if let Some(reply) = requests.recv().await {
            let _ = reply.send(Some(standby_at(2000)));
        }
        // Dropping the receiver: from here on nobody can say where the server stands.
    });
    let (status, fresh) = server.ask("GET", "/patroni", None).await;
    answering.await.unwrap();
    assert_eq!(status, 200);
    assert!(fresh.contains("2000") && !fresh.contains("1000"), "{fresh}");
    let (status, silent) = server.ask("GET", "/patroni", None).await;
    assert_eq!(status, 200);
    assert!(
        !silent.contains("received_location"),
        "an old position must not stand in for a new one: {silent}"
    );
}

#[tokio::test]
async fn a_node_explains_itself_and_the_others_as_it_sees_them() {
    let server = server(Settings::default()).await;
    let (status, body) = server.ask("GET", "/explain", None).await;
    let alone: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    assert_eq!(
        alone["members"],
        serde_json::json!([{
            "member": "a", "role": "uninitialized", "leader": false,
            "sentence": "a is not the leader: it has not looked at the cluster yet",
            "waits_for": "its first turn", "told_by": "a",
        }])
    );
    server.publish(|view| {
        view.snapshot = Some(Snapshot {
            cluster: Arc::new(example()),
            read_at: clock::now(),
        })
    });
    let body = server.ask("GET", "/explain", None).await.1;
    let both: Value = serde_json::from_str(&body).unwrap();
    let other = &both["members"][1];
    assert_eq!(
        (&other["member"], &other["told_by"]),
        (&"b".into(), &"a".into())
    );
    let sentence = other["sentence"].as_str().unwrap();
    assert!(
        sentence.starts_with("b is not the leader (a is): ")
            && sentence.ends_with("; it does not answer here"),
        "{sentence}"
    );
}
