//! The accept loop: no caller, however slow or silent, keeps a health check waiting (spec/rest-api.md §1, D3).
//!
//! A connection carries requests one after another for as long as its client wants. It has deadlines and there is a cap on
//! connections (`connections`); what a connection needs to be answered exists only once something has arrived on it.

use std::convert::Infallible;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::access::Caller;
use super::connections::{Connections, HEAD_DEADLINE, Mark};
use super::tls::{self, Fingerprint};
use super::{Api, Settings, TlsSettings};
use crate::clock;

/// How often certificate files are looked at.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(10);

/// The TLS side of the listener.
struct Tls {
    settings: TlsSettings,
    fingerprint: Fingerprint,
    acceptor: TlsAcceptor,
}

impl Tls {
    fn load(settings: &TlsSettings) -> Result<Tls, crate::peers::TlsError> {
        let fingerprint = Fingerprint::take(settings);
        let acceptor = TlsAcceptor::from(tls::server_config(settings)?);
        Ok(Tls {
            settings: settings.clone(),
            fingerprint,
            acceptor,
        })
    }
}

/// Listens until dropped. Rebinds when `listen` changes; swaps certificates without closing the port.
pub(crate) async fn run(
    api: Arc<Api>,
    mut settings: watch::Receiver<Arc<Settings>>,
    first: TcpListener,
) -> anyhow::Result<()> {
    let mut listener = first;
    let mut in_force = settings.borrow_and_update().clone();
    let mut tls = in_force.tls.as_ref().map(Tls::load).transpose()?;
    let connections = Arc::new(Connections::default());
    let mut next_id = 0_u64;
    let mut certificate_check = tokio::time::interval(CERTIFICATE_CHECK);
    let mut settings_open = true;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let cap = connections_at_most(in_force.max_connections);
                    if !connections.make_room(cap) {
                        tracing::warn!("{cap} requests in progress: connection of {peer} closed");
                        continue;
                    }
                    // Answers are written whole; waiting for more to send would only delay the next request's.
                    let _ = stream.set_nodelay(true);
                    next_id += 1;
                    let mark = Mark::new();
                    let acceptor = tls.as_ref().map(|tls| tls.acceptor.clone());
                    let connection = connection(api.clone(), stream, peer, acceptor, mark.clone());
                    connections.run(next_id, mark, connection);
                }
                Err(error) => {
                    tracing::warn!("REST API can not accept a connection: {error}");
                    // Out of descriptors, perhaps: one that waits is given up for the new one.
                    connections.close_one();
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            changed = settings.changed(), if settings_open => {
                if changed.is_err() {
                    settings_open = false;
                    continue;
                }
                let new = settings.borrow_and_update().clone();
                if new.listen != in_force.listen {
                    match bind(&new.listen, new.request_queue_size) {
                        Ok(bound) => listener = bound,
                        Err(error) => tracing::error!("REST API can not listen on {}: {error}; still on {}", new.listen, in_force.listen),
                    }
                }
                match new.tls.as_ref().map(Tls::load).transpose() {
                    Ok(loaded) => tls = loaded,
                    Err(error) => tracing::error!("REST API keeps its certificate: {error}"),
                }
                in_force = new;
            }
            _ = certificate_check.tick() => if let Some(current) = &mut tls
                && Fingerprint::take(&current.settings) != current.fingerprint
            {
                match Tls::load(&current.settings) {
                    Ok(loaded) => {
                        tracing::info!("REST API certificate reloaded");
                        *current = loaded;
                    }
                    Err(error) => tracing::error!("REST API keeps its certificate: {error}"),
                }
            },
        }
    }
}

/// The cap on connections: a quarter of the process's descriptors stays for PostgreSQL, the store and files.
fn connections_at_most(wanted: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let share = limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit / 4 * 3).unwrap_or(usize::MAX)
    });
    wanted.min(share).max(1)
}

async fn connection(
    api: Arc<Api>,
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    mark: Arc<Mark>,
) {
    // One that never speaks costs a descriptor and this much.
    if tokio::time::timeout(HEAD_DEADLINE, stream.readable())
        .await
        .is_err()
    {
        tracing::debug!(
            "connection of {peer}: silent for {} s",
            HEAD_DEADLINE.as_secs()
        );
        return;
    }
    mark.begins();
    let caller = Caller {
        address: peer.ip(),
        has_certificate: false,
    };
    match tls {
        None => Box::pin(exchanges(api, stream, caller, mark)).await,
        Some(acceptor) => Box::pin(encrypted(api, stream, acceptor, caller, mark)).await,
    }
}

async fn encrypted(
    api: Arc<Api>,
    stream: TcpStream,
    acceptor: TlsAcceptor,
    caller: Caller,
    mark: Arc<Mark>,
) {
    let peer = caller.address;
    let limit = mark.deadline().since(clock::now());
    match tokio::time::timeout(limit, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let has_certificate = stream.get_ref().1.peer_certificates().is_some();
            let caller = Caller {
                has_certificate,
                ..caller
            };
            exchanges(api, stream, caller, mark).await;
        }
        Ok(Err(error)) => tracing::debug!("TLS handshake with {peer}: {error}"),
        Err(_) => tracing::debug!(
            "TLS handshake with {peer}: no end within {} s",
            HEAD_DEADLINE.as_secs()
        ),
    }
}

async fn exchanges<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    api: Arc<Api>,
    stream: S,
    caller: Caller,
    mark: Arc<Mark>,
) {
    let service = {
        let mark = mark.clone();
        service_fn(move |request: Request<Incoming>| {
            let (api, mark) = (api.clone(), mark.clone());
            async move {
                let _answering = mark.answering();
                Ok::<Response<Body>, Infallible>(api.answer(request, caller, mark.clone()).await)
            }
        })
    };
    // Deadlines are `Mark`'s: one timer for a connection, which moves only when it fires.
    let served = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .header_read_timeout(None)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    loop {
        let left = mark.deadline().since(clock::now());
        if left.is_zero() {
            tracing::debug!("connection of {}: waited too long", caller.address);
            return;
        }
        match tokio::time::timeout(left, &mut served).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::debug!("connection of {}: {error}", caller.address);
                return;
            }
            Err(_) => {}
        }
    }
}

/// Binds `host:port`; empty host or `*` = all addresses, dual-stack if the kernel can.
pub(crate) fn bind(listen: &str, queue: u32) -> anyhow::Result<TcpListener> {
    let (host, port) = listen
        .rsplit_once(':')
        .ok_or_else(|| anyhow::anyhow!("{listen:?} is not host:port"))?;
    let port: u16 = port
        .parse()
        .map_err(|_| anyhow::anyhow!("{port:?} in {listen:?} is not a port"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let candidates: Vec<SocketAddr> = if host.is_empty() || host == "*" {
        vec![
            SocketAddr::from(([0_u16; 8], port)),
            SocketAddr::from(([0_u8; 4], port)),
        ]
    } else {
        (host, port).to_socket_addrs()?.collect()
    };
    let mut failure = anyhow::anyhow!("{host} has no address");
    for address in candidates {
        match bind_one(address, queue) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = anyhow::Error::new(error).context(format!("{address}")),
        }
    }
    Err(failure)
}

/// Accepted sockets inherit the keep-alive settings from the listening one.
fn bind_one(address: SocketAddr, queue: u32) -> std::io::Result<TcpListener> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = net::socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, Duration::from_secs(3))?;
    sockopt::set_tcp_keepcnt(&socket, 3)?;
    sockopt::set_tcp_user_timeout(&socket, 10_000)?;
    net::bind(&socket, &address)?;
    // Upstream's default queue of 5 drops bursts of health checks, which then wait a second for the retransmission.
    let queue = i32::try_from(queue).unwrap_or(i32::MAX).max(1024);
    net::listen(&socket, queue)?;
    TcpListener::from_std(std::net::TcpListener::from(socket))
}
