//! As much of the frontend protocol as the driver does not offer: asking whether a server is up, and opening a
//! replication connection with the driver's own client.
//!
//! No authentication and no query is spoken here.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::ready::Ping;

/// Protocol 3.0, the one every supported server speaks.
const PROTOCOL: [u8; 4] = [0, 3, 0, 0];

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Host and port.
    Tcp(String, u16),
    /// Socket directory and port.
    Unix(PathBuf, u16),
}

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Address {
    /// Opens a connection.
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Address::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Address::Unix(directory, port) => {
                let path = directory.join(format!(".s.PGSQL.{port}"));
                Box::new(UnixStream::connect(path).await?)
            }
        })
    }
}

/// Asks a server whether it would accept a connection, by the rules of libpq's `PQping`: any answer but "cannot connect
/// now" (SQLSTATE 57P03) proves that it accepts connections.
pub(super) async fn ping(address: &Address, user: &str, database: &str) -> Ping {
    let ask = async || -> io::Result<Ping> {
        let mut stream = address.connect().await?;
        stream
            .write_all(&startup(&[("user", user), ("database", database)]))
            .await?;
        let mut head = [0_u8; 5];
        stream.read_exact(&mut head).await?;
        if head[0] != b'E' {
            return Ok(Ping::Accepting);
        }
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut body = vec![0; usize::try_from(length.clamp(4, 30_000) - 4).unwrap_or(0)];
        stream.read_exact(&mut body).await?;
        Ok(match error_code(&body) {
            Some("57P03") => Ping::Rejecting,
            _ => Ping::Accepting,
        })
    };
    ask().await.unwrap_or(Ping::NoResponse)
}

/// The SQLSTATE of an error message's body.
fn error_code(body: &[u8]) -> Option<&str> {
    body.split(|byte| *byte == 0)
        .find(|field| field.first() == Some(&b'C'))
        .and_then(|field| std::str::from_utf8(field.get(1..)?).ok())
}

fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = PROTOCOL.to_vec();
    for (name, value) in parameters {
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        body.extend_from_slice(value.as_bytes());
        body.push(0);
    }
    body.push(0);
    framed(&body)
}

fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), body].concat()
}

/// A connection that adds `replication=true` to the startup message the driver sends through it, which the driver cannot
/// express itself. Everything else, a TLS request before it included, passes unchanged.
pub(super) struct Replication<S> {
    inner: S,
    /// The rewritten startup message, as far as it has not been sent.
    pending: Vec<u8>,
    wanted: bool,
}

impl<S> Replication<S> {
    /// `wanted`: whether anything is to be added at all.
    pub(super) fn new(inner: S, wanted: bool) -> Self {
        Replication {
            inner,
            pending: Vec::new(),
            wanted,
        }
    }

    /// Whether the startup message is still to come and to be changed.
    pub(super) fn wanted(&self) -> bool {
        self.wanted
    }
}

/// The startup message with the parameter added; `None` if `bytes` is not exactly one startup message.
fn with_replication(bytes: &[u8]) -> Option<Vec<u8>> {
    let length = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?);
    let body = bytes.get(4..)?;
    if usize::try_from(length).ok()? != bytes.len() || !body.starts_with(&PROTOCOL) {
        return None;
    }
    let body = body.strip_suffix(b"\0")?;
    Some(framed(&[body, b"replication\0true\0\0"].concat()))
}

impl<S: AsyncWrite + Unpin> Replication<S> {
    fn poll_pending(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let sent = ready!(Pin::new(&mut self.inner).poll_write(context, &self.pending))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.drain(..sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replication<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replication<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_pending(context))?;
        if self.wanted
            && let Some(message) = with_replication(bytes)
        {
            self.wanted = false;
            self.pending = message;
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_startup_message_is_changed() {
        let before = startup(&[("user", "me")]);
        let after = with_replication(&before).unwrap();
        assert_eq!(after, startup(&[("user", "me"), ("replication", "true")]));
        assert!(
            with_replication(&[0, 0, 0, 8, 4, 210, 22, 47]).is_none(),
            "TLS request"
        );
        assert!(
            with_replication(b"\x16\x03\x01\x02\x00\x01\x00\x01").is_none(),
            "TLS hello"
        );
    }

    #[test]
    fn the_code_in_an_error() {
        assert_eq!(
            error_code(b"SFATAL\0VFATAL\0C57P03\0Mstarting up\0\0"),
            Some("57P03")
        );
        assert_eq!(error_code(b""), None);
    }
}
