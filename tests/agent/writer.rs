//! A client that writes without pause and records what was acknowledged, by whom and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use howdah::clock;
use howdah::types::Moment;
use tokio_postgres::NoTls;

use crate::cluster::{Cluster, Node, PATIENCE};

/// One acknowledged row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ack {
    pub(crate) id: i64,
    pub(crate) at: Moment,
    pub(crate) port: u16,
}

/// Writes until it is told to stop.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    acks: mpsc::Receiver<Ack>,
    seen: Vec<Ack>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Creates the table and begins.
    pub(crate) fn start(cluster: &Cluster) -> Writer {
        let leader = &cluster.nodes[cluster.await_primary()];
        leader.query("CREATE TABLE written (id bigint PRIMARY KEY)");
        let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.port).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, acks) = mpsc::channel();
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(write(&ports, &told, &sender));
        });
        let mut writer = Writer {
            stop,
            acks,
            seen: Vec::new(),
            thread,
        };
        writer.await_write(clock::now(), PATIENCE);
        writer
    }

    /// The first row acknowledged after `since`.
    #[track_caller]
    pub(crate) fn await_write(&mut self, since: Moment, limit: Duration) -> Ack {
        let began = clock::now();
        loop {
            let left = limit.saturating_sub(clock::now().since(began));
            match self.acks.recv_timeout(left) {
                Ok(ack) => {
                    self.seen.push(ack);
                    if ack.at > since {
                        return ack;
                    }
                }
                Err(error) => panic!("no row was acknowledged within {limit:?}: {error}"),
            }
        }
    }

    /// Ends it; everything that was acknowledged, in order.
    pub(crate) fn finish(mut self) -> Vec<Ack> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        self.seen.extend(self.acks.try_iter());
        self.seen
    }
}

async fn write(ports: &[u16], stop: &AtomicBool, acks: &mpsc::Sender<Ack>) {
    let mut next: i64 = 0;
    let mut at = 0;
    while !stop.load(Ordering::SeqCst) {
        let port = ports[at % ports.len()];
        at += 1;
        let _ = tokio::time::timeout(
            Duration::from_secs(20),
            session(port, stop, acks, &mut next),
        )
        .await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn session(
    port: u16,
    stop: &AtomicBool,
    acks: &mpsc::Sender<Ack>,
    next: &mut i64,
) -> Option<()> {
    let text = format!("host=127.0.0.1 port={port} user=postgres password=super dbname=postgres");
    let connecting = tokio_postgres::connect(&text, NoTls);
    let (client, connection) = tokio::time::timeout(Duration::from_millis(500), connecting)
        .await
        .ok()?
        .ok()?;
    tokio::spawn(connection);
    let insert = client
        .prepare("INSERT INTO written VALUES ($1)")
        .await
        .ok()?;
    while !stop.load(Ordering::SeqCst) {
        *next += 1;
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&*next];
        let writing = client.execute(&insert, &values);
        tokio::time::timeout(Duration::from_secs(2), writing)
            .await
            .ok()?
            .ok()?;
        let ack = Ack {
            id: *next,
            at: clock::now(),
            port,
        };
        acks.send(ack).ok()?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Some(())
}

/// The longest time without an acknowledged row.
pub(crate) fn longest_gap(acks: &[Ack]) -> Duration {
    acks.windows(2)
        .map(|pair| pair[1].at.since(pair[0].at))
        .max()
        .unwrap_or_default()
}

/// Acknowledged rows that this node does not have.
pub(crate) fn missing(acks: &[Ack], node: &Node) -> Vec<i64> {
    let kept: std::collections::BTreeSet<i64> = node
        .query("SELECT id FROM written")
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    acks.iter()
        .map(|ack| ack.id)
        .filter(|id| !kept.contains(id))
        .collect()
}

/// Acknowledged rows come from one server at a time: after a change no row of the old one follows.
#[track_caller]
pub(crate) fn assert_one_writer(acks: &[Ack]) {
    let mut left: Vec<u16> = Vec::new();
    for pair in acks.windows(2) {
        if pair[0].port != pair[1].port {
            left.push(pair[0].port);
        }
    }
    let mut unique = left.clone();
    unique.dedup();
    assert_eq!(left, unique, "two servers took turns in acknowledging");
}
