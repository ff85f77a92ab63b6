//! What clients of the cluster see: plain HTTP, SQL, and a recorder that writes without pause and remembers what was acknowledged.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use howdah::clock;
use howdah::types::Moment;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::cluster::Node;

/// One request to the REST API; `None` when nobody answers with HTTP in a second.
pub(crate) fn http(ip: IpAddr, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let wait = Duration::from_secs(if method == "GET" { 1 } else { 30 });
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::new(ip, 8008), Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(wait)).ok()?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split_whitespace().nth(1)?.parse().ok()?;
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default();
    Some((status, body))
}

/// Runs one future on a runtime of its own.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

async fn connect(ip: IpAddr, password: &str) -> Result<Client, tokio_postgres::Error> {
    let mut config = Config::new();
    config
        .host(ip.to_string())
        .user("postgres")
        .password(password)
        .dbname("postgres");
    config.connect_timeout(Duration::from_millis(500));
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The first column of every row, one line each.
pub(crate) fn query(ip: IpAddr, password: &str, sql: &str) -> Result<String, String> {
    let said = |error: tokio_postgres::Error| match error.as_db_error() {
        Some(error) => format!("{}: {}", error.code().code(), error.message()),
        None => error.to_string(),
    };
    block_on(async {
        let work = async {
            let client = connect(ip, password).await.map_err(said)?;
            let messages = client.simple_query(sql).await.map_err(said)?;
            let rows = messages.iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
                _ => None,
            });
            Ok(rows.collect::<Vec<_>>().join("\n"))
        };
        tokio::time::timeout(Duration::from_secs(10), work)
            .await
            .unwrap_or_else(|_| Err("no answer in 10 s".to_owned()))
    })
}

/// One acknowledged write.
#[derive(Debug, Clone)]
pub(crate) struct Ack {
    pub(crate) node: String,
    pub(crate) value: u64,
    pub(crate) sent: Moment,
    pub(crate) acknowledged: Moment,
}

/// Writes to all nodes at once, each on its own connection, whoever takes it; every value once.
pub(crate) struct Recorder {
    stop: Arc<AtomicBool>,
    acks: Arc<Mutex<Vec<Ack>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Recorder {
    /// Makes the table on the primary, and begins.
    pub(crate) fn start(primary: &Node, nodes: &[&Node]) -> Recorder {
        primary
            .sql("create table if not exists recorded (value bigint primary key, node text)")
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let acks = Arc::new(Mutex::new(Vec::new()));
        let next = Arc::new(AtomicU64::new(1));
        let threads = nodes
            .iter()
            .map(|node| {
                let (stop, acks, next) = (stop.clone(), acks.clone(), next.clone());
                let node = (*node).clone();
                std::thread::spawn(move || block_on(write(&node, &stop, &acks, &next)))
            })
            .collect();
        Recorder {
            stop,
            acks,
            threads,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.acks.lock().unwrap().len()
    }

    /// What was acknowledged in a span of time, in order; the last before it, too.
    #[allow(dead_code, reason = "the bench looks while it records")]
    pub(crate) fn between(&self, from: Moment, to: Moment) -> Vec<Ack> {
        let mut acks = self.acks.lock().unwrap().clone();
        acks.sort_by_key(|ack| ack.acknowledged);
        let first = acks.partition_point(|ack| ack.acknowledged < from);
        let end = acks.partition_point(|ack| ack.acknowledged <= to);
        acks[first.saturating_sub(1)..end].to_vec()
    }

    /// Ends the writing; everything that was acknowledged, in order.
    pub(crate) fn finish(mut self) -> Vec<Ack> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        let mut acks = std::mem::take(&mut *self.acks.lock().unwrap());
        acks.sort_by_key(|ack| ack.acknowledged);
        acks
    }

    /// Waits until a write that was sent after `moment` has been acknowledged; by whom.
    pub(crate) fn written_after(&self, moment: Moment, limit: Duration) -> Ack {
        crate::docker::wait_for("a write is acknowledged", limit, || {
            self.acks
                .lock()
                .unwrap()
                .iter()
                .rev()
                .find(|ack| ack.sent > moment)
                .cloned()
        })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn write(node: &Node, stop: &AtomicBool, acks: &Mutex<Vec<Ack>>, next: &AtomicU64) {
    let mut session: Option<Client> = None;
    let mut ip = node.container.ip();
    while !stop.load(Ordering::Relaxed) {
        let Some(client) = &session else {
            session = match ip {
                Some(ip) => connect(ip, &node.password).await.ok(),
                None => None,
            };
            if session.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
                // A restarted container may have another address; asking docker is slow, so only when nobody answers.
                if ip.is_none() || !node.container.is_running() {
                    ip = node.container.ip();
                }
            }
            continue;
        };
        let value = next.fetch_add(1, Ordering::Relaxed);
        let sent = clock::now();
        let sql = format!(
            "insert into recorded values ({value}, '{}')",
            node.container.name
        );
        match tokio::time::timeout(Duration::from_secs(3), client.batch_execute(&sql)).await {
            Ok(Ok(())) => {
                let ack = Ack {
                    node: node.container.name.clone(),
                    value,
                    sent,
                    acknowledged: clock::now(),
                };
                acks.lock().unwrap().push(ack);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            // A standby refuses, and may become primary at any moment.
            Ok(Err(error)) if error.as_db_error().is_some() && !client.is_closed() => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            _ => session = None,
        }
    }
}

/// The longest time between two acknowledgements; acks in order.
pub(crate) fn longest_gap(acks: &[Ack]) -> Duration {
    let gaps = acks
        .windows(2)
        .map(|pair| pair[1].acknowledged.since(pair[0].acknowledged));
    gaps.max().unwrap_or_default()
}

/// Acknowledged values that the primary does not have.
pub(crate) fn missing(acks: &[Ack], primary: &Node) -> Vec<u64> {
    let there: BTreeSet<u64> = primary
        .sql("select value from recorded")
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    acks.iter()
        .map(|ack| ack.value)
        .filter(|value| !there.contains(value))
        .collect()
}

/// No two nodes took writes at the same time: each node's writes lie between those of others.
pub(crate) fn assert_one_writer(acks: &[Ack]) {
    let mut finished: Vec<&str> = Vec::new();
    for pair in acks.windows(2) {
        if pair[0].node == pair[1].node {
            continue;
        }
        assert!(
            pair[1].sent >= pair[0].sent || pair[1].acknowledged > pair[0].acknowledged,
            "{pair:?} overlap"
        );
        finished.push(&pair[0].node);
    }
    // Two nodes taking turns many times would be two primaries, interleaved.
    assert!(
        finished.len() <= 6,
        "the writer changed {} times: {finished:?}",
        finished.len()
    );
}
