//! Callers of one member's REST API: a crowd that holds connections without needing them, and busy clients that keep theirs.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use howdah::clock;
use howdah::types::Moment;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::block_on;

/// Connections that say nothing, at a time.
const SILENT: usize = 10_000;
/// Connections that begin a request head, and such that begin a TLS handshake, at a time.
const STARTED: usize = 200;
/// Clients that ask without pause.
const BUSY: usize = 64;
/// How long the crowd stays.
const STAY: Duration = Duration::from_secs(6);
/// Between two health checks.
const CHECK: Duration = Duration::from_millis(50);
/// What a handshake begins with: the head of a record that never comes.
const HALF_HELLO: &[u8] = &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01];

/// A certificate for `node` and its key, in PEM, and how a client connects that trusts only that.
pub(crate) fn identity() -> (String, String, TlsConnector) {
    let made = rcgen::generate_simple_self_signed(vec!["node".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    (made.cert.pem(), made.signing_key.serialize_pem(), connector)
}

/// The slowest of the health checks beside the crowd, in milliseconds, and the most memory that was seen meanwhile.
pub(crate) fn slowest_check(
    to: SocketAddr,
    tls: &TlsConnector,
    memory: impl Fn() -> f64,
) -> (f64, f64) {
    let files = rustix::process::Resource::Nofile;
    let mut limit = rustix::process::getrlimit(files);
    limit.current = limit.maximum;
    rustix::process::setrlimit(files, limit).unwrap();
    let end = clock::now() + STAY;
    let crowd = {
        let tls = tls.clone();
        std::thread::spawn(move || {
            block_on(async {
                let busy = (0..BUSY).map(|_| busy_over_tls(to, &tls, end));
                let busy = futures_util::future::join_all(busy);
                tokio::join!(
                    hold(to, SILENT, b"", end),
                    hold(to, STARTED, HALF_HELLO, end),
                    hold_heads(to, &tls, end),
                    busy
                );
            });
        })
    };
    let (mut slowest, mut most) = (0.0_f64, 0.0_f64);
    while clock::now() < end {
        let begin = clock::now();
        block_on(first_answer(to, tls));
        let took = clock::now().since(begin);
        slowest = slowest.max(took.as_secs_f64() * 1000.0);
        most = most.max(memory());
        std::thread::sleep(CHECK.saturating_sub(took));
    }
    crowd.join().unwrap();
    (slowest, most)
}

/// Requests a second of the busy clients on their own, over plain connections that they keep.
pub(crate) fn kept_rate(to: SocketAddr) -> f64 {
    let begin = clock::now();
    let end = begin + Duration::from_secs(3);
    let clients = (0..BUSY).map(|_| async move {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        busy(&mut stream, end).await
    });
    let asked: usize = block_on(futures_util::future::join_all(clients))
        .into_iter()
        .sum();
    asked as f64 / clock::now().since(begin).as_secs_f64()
}

/// Holds so many connections that have said no more than this; opens others as the oldest are given up.
async fn hold(to: SocketAddr, count: usize, says: &[u8], end: Moment) {
    let mut held = VecDeque::new();
    while clock::now() < end {
        if held.len() >= count {
            held.pop_front();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut stream = TcpStream::connect(to).await.unwrap();
        // The server may have closed it already.
        let _ = stream.write_all(says).await;
        held.push_back(stream);
    }
}

/// The same with heads that never end.
async fn hold_heads(to: SocketAddr, tls: &TlsConnector, end: Moment) {
    let mut held = VecDeque::new();
    while clock::now() < end {
        if held.len() >= STARTED {
            held.pop_front();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let stream = TcpStream::connect(to).await.unwrap();
        let Ok(mut stream) = tls.connect(name(), stream).await else {
            continue;
        };
        let _ = stream.write_all(b"GET /primary HTTP/1.1\r\nX-Slow: ").await;
        let _ = stream.flush().await;
        held.push_back(stream);
    }
}

fn name() -> ServerName<'static> {
    ServerName::try_from("node").unwrap()
}

/// A connection that has been answered once. Whoever has not asked yet may have to give way to a flood of others, and tries again, as a
/// load balancer does; its time goes on meanwhile.
async fn first_answer(to: SocketAddr, tls: &TlsConnector) -> TlsStream<TcpStream> {
    let mut failed = None;
    for _ in 0..100 {
        let attempt = async {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            let mut stream = tls.connect(name(), stream).await?;
            ask(&mut stream).await?;
            std::io::Result::Ok(stream)
        };
        match attempt.await {
            Ok(stream) => return stream,
            Err(error) => failed = Some(error),
        }
    }
    panic!("no answer in a hundred attempts: {failed:?}");
}

async fn busy_over_tls(to: SocketAddr, tls: &TlsConnector, end: Moment) -> usize {
    busy(&mut first_answer(to, tls).await, end).await
}

async fn busy<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, end: Moment) -> usize {
    let mut asked = 0;
    while clock::now() < end {
        ask(stream).await.unwrap();
        asked += 1;
    }
    asked
}

/// One `GET /primary` on a connection that stays open.
async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> std::io::Result<()> {
    stream
        .write_all(b"GET /primary HTTP/1.1\r\nHost: node\r\n\r\n")
        .await?;
    // Over TLS it may still lie here.
    stream.flush().await?;
    let mut answer = Vec::with_capacity(2048);
    loop {
        let count = stream.read_buf(&mut answer).await?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.parse::<usize>().unwrap())
        });
        if Some(body.len()) == length {
            return Ok(());
        }
    }
}
