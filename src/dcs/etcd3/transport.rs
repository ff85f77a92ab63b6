//! How a connection to one etcd node is made: TCP with keepalive, TLS the way Patroni's settings mean it, HTTP/2 on top.
//!
//! Nothing here knows requests. A failure to connect is `tonic::ConnectError`, which proves that no request was sent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

/// One connection, encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How long a dead peer may stay unnoticed; from `ttl` (spec/dcs.md §5.3, "TCP keepalive").
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For the connection to stand, TLS included.
    pub(super) connect: Duration,
    /// For sent data to be acknowledged.
    pub(super) unacknowledged: Duration,
}

/// Makes connections to one node.
#[derive(Clone)]
struct Connector {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    patience: Patience,
}

/// A channel to `url` that connects with the first request and again after every loss.
pub(super) fn channel(
    url: &Uri,
    tls: Option<&Arc<ClientConfig>>,
    patience: Patience,
) -> anyhow::Result<Channel> {
    let host = url.host().context("no host in it")?;
    let port = url.port_u16().unwrap_or(2379);
    let encrypted = url.scheme_str() == Some("https");
    let connector = Connector {
        host: host.trim_matches(['[', ']']).to_owned(),
        port,
        tls: encrypted.then(|| tls.cloned()).flatten(),
        patience,
    };
    // tonic must not add TLS of its own, so it is told that this is plain HTTP; the origin keeps the truth for the server.
    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}"))?
        .origin(url.clone())
        .buffer_size(16);
    Ok(endpoint.connect_with_connector_lazy(connector))
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Pin<Box<dyn Stream>>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _url: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let connect = connector.connect();
            match tokio::time::timeout(connector.patience.connect, connect).await {
                Ok(stream) => Ok(TokioIo::new(stream?)),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "no connection in time",
                )),
            }
        })
    }
}

impl Connector {
    async fn connect(&self) -> io::Result<Pin<Box<dyn Stream>>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        // Hints: a kernel that refuses one of them costs later notice of a dead peer, not the connection.
        if let Err(error) = self.watch_for_death(&tcp) {
            tracing::debug!(%error, host = self.host, "cannot set TCP keepalive");
        }
        let Some(tls) = &self.tls else {
            return Ok(Box::pin(tcp));
        };
        let name = ServerName::try_from(self.host.clone())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let tls = TlsConnector::from(Arc::clone(tls))
            .connect(name, tcp)
            .await?;
        Ok(Box::pin(tls))
    }

    fn watch_for_death(&self, tcp: &TcpStream) -> io::Result<()> {
        use rustix::net::sockopt;
        let limit = self.patience.unacknowledged;
        let idle = limit * 2 / 3;
        let interval = ((limit - idle) / 3).max(Duration::from_secs(1));
        sockopt::set_socket_keepalive(tcp, true)?;
        sockopt::set_tcp_keepidle(tcp, idle.max(Duration::from_secs(1)))?;
        sockopt::set_tcp_keepintvl(tcp, interval)?;
        sockopt::set_tcp_keepcnt(tcp, 3)?;
        let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(tcp, millis)?;
        Ok(())
    }
}

/// The same TLS settings, for HTTP/2 on top.
pub(super) fn http2(tls: &ClientConfig) -> Arc<ClientConfig> {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(tls)
}
