//! The accept loop: no caller, however slow or silent, keeps a health check waiting (spec/rest-api.md §1, D3).
//!
//! A connection carries one request. It has deadlines for the handshake, the head and the whole exchange, and there is a cap
//! on connections; when it is reached the oldest one that is not inside a long call gives way. Long calls are limited apart.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use super::access::Caller;
use super::tls::{self, Fingerprint};
use super::{Api, Settings, TlsSettings};

/// Time for a TLS handshake, and for a request's head.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// Time for a whole exchange, long calls excepted.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(30);
/// How often certificate files are looked at.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(10);

/// Shared between a connection, its request and the table: a long call must not be cut off.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    busy: AtomicBool,
    task: OnceLock<AbortHandle>,
}

impl Mark {
    /// The connection is inside a long call until the guard is dropped.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.busy.store(true, Ordering::Relaxed);
        Busy(self.clone())
    }

    fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }
}

/// See [`Mark::busy`].
pub(crate) struct Busy(Arc<Mark>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Relaxed);
    }
}

/// Open connections, oldest first.
#[derive(Default)]
struct Connections(Mutex<BTreeMap<u64, Arc<Mark>>>);

impl Connections {
    /// No other code runs while the table is locked: dropping a task locks it again.
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Mark>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for one more; `false` = every connection is inside a long call.
    fn make_room(&self, cap: usize) -> bool {
        let oldest = {
            let mut open = self.lock();
            if open.len() < cap {
                return true;
            }
            let id = open
                .iter()
                .find(|(_, mark)| !mark.is_busy())
                .map(|(id, _)| *id);
            id.and_then(|id| open.remove(&id))
        };
        let Some(mark) = oldest else { return false };
        if let Some(task) = mark.task.get() {
            task.abort();
        }
        true
    }
}

/// Removes a connection from the table however its task ends.
struct Registered {
    connections: Arc<Connections>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.id);
    }
}

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
                    if !connections.make_room(in_force.max_connections) {
                        tracing::warn!("{} long calls in progress: connection of {peer} closed", in_force.max_connections);
                        continue;
                    }
                    next_id += 1;
                    let mark = Arc::new(Mark::default());
                    let registered = Registered { connections: connections.clone(), id: next_id };
                    let acceptor = tls.as_ref().map(|tls| tls.acceptor.clone());
                    let connection = connection(api.clone(), stream, peer, acceptor, mark.clone());
                    connections.lock().insert(next_id, mark.clone());
                    let task = tokio::spawn(async move {
                        let _registered = registered;
                        connection.await;
                    });
                    let _ = mark.task.set(task.abort_handle());
                }
                Err(error) => {
                    // Out of descriptors, or a client that went away; the former needs a moment.
                    tracing::warn!("REST API can not accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
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

async fn connection(
    api: Arc<Api>,
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    mark: Arc<Mark>,
) {
    let caller = Caller {
        address: peer.ip(),
        over_tls: tls.is_some(),
        has_certificate: false,
    };
    match tls {
        None => exchange(api, stream, caller, mark).await,
        Some(acceptor) => {
            match tokio::time::timeout(HEAD_DEADLINE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let has_certificate = stream.get_ref().1.peer_certificates().is_some();
                    exchange(
                        api,
                        stream,
                        Caller {
                            has_certificate,
                            ..caller
                        },
                        mark,
                    )
                    .await;
                }
                Ok(Err(error)) => tracing::debug!("TLS handshake with {peer}: {error}"),
                Err(_) => tracing::debug!(
                    "TLS handshake with {peer}: no end within {} s",
                    HEAD_DEADLINE.as_secs()
                ),
            }
        }
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    api: Arc<Api>,
    stream: S,
    caller: Caller,
    mark: Arc<Mark>,
) {
    let service = {
        let mark = mark.clone();
        service_fn(move |request: Request<Incoming>| {
            let (api, mark) = (api.clone(), mark.clone());
            async move { Ok::<Response<Body>, Infallible>(api.answer(request, caller, mark).await) }
        })
    };
    let served = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    loop {
        match tokio::time::timeout(EXCHANGE_DEADLINE, &mut served).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::debug!("connection of {}: {error}", caller.address);
                return;
            }
            Err(_) if mark.is_busy() => {}
            Err(_) => {
                tracing::debug!(
                    "connection of {}: no end within {} s",
                    caller.address,
                    EXCHANGE_DEADLINE.as_secs()
                );
                return;
            }
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
