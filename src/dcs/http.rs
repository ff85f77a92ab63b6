//! HTTP/1.1 as the stores with a JSON interface speak it: one server, connections that are used again, one deadline for an exchange.
//!
//! Knows no store. It tells apart what matters for a write: nobody can have seen the request, or it may have been carried out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::clock;
use crate::types::Moment;

/// A whole cluster's documents are some kilobytes; more than this is no answer of a store.
const ANSWER_LIMIT: usize = 16 << 20;
/// Connections kept open for the next request.
const KEPT_OPEN: usize = 2;

/// Why there is no answer.
#[derive(Debug, Clone)]
pub(super) enum NoAnswer {
    /// Nobody can have seen the request.
    NotSent(String),
    /// It may have been carried out.
    Unanswered(String),
}

impl NoAnswer {
    pub(super) fn into_text(self) -> String {
        match self {
            NoAnswer::NotSent(text) | NoAnswer::Unanswered(text) => text,
        }
    }
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    /// Path and query, as they go over the wire.
    pub(super) target: String,
    /// Name and value of each header besides `Host` and the user agent.
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

impl Request {
    pub(super) fn new(method: Method, target: impl Into<String>) -> Self {
        Request {
            method,
            target: target.into(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.header("content-type", content_type)
    }
}

/// A complete answer of any status.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// A header's value as text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A header that is a number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.trim().parse().ok()
    }

    /// The body in one line, for messages.
    pub(super) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some((end, _)) = line.char_indices().nth(300) {
            line.truncate(end);
        }
        line
    }

    /// The body as JSON; `None` when it is none.
    pub(super) fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// The lines of an answer, as they come.
pub(super) struct Lines {
    pub(super) status: u16,
    body: Incoming,
    buffer: Vec<u8>,
    /// The answer ends with it.
    _connection: Sender,
}

impl Lines {
    /// The next one; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or a line is longer than any that a store writes.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
            if self.buffer.len() > ANSWER_LIMIT {
                return Err("a line without end".to_owned());
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(chain(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

type Sender = SendRequest<Full<Bytes>>;

/// One server and the connections to it.
pub(super) struct Server {
    url: String,
    /// Whose certificate is expected.
    host: String,
    /// Where it is reached.
    address: (String, u16),
    authority: HeaderValue,
    tls: Option<TlsConnector>,
    idle: Mutex<Vec<Sender>>,
}

impl Server {
    /// The server behind `http(s)://host[:port]`; `tls` serves the second kind. Nothing is sent yet.
    ///
    /// # Errors
    /// Not such a URL.
    pub(super) fn new(
        url: &str,
        default_port: u16,
        tls: &Arc<ClientConfig>,
    ) -> anyhow::Result<Self> {
        let uri: Uri = url
            .parse()
            .with_context(|| format!("{url:?} is not a URL"))?;
        let host = uri
            .host()
            .with_context(|| format!("{url:?} names no host"))?;
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => Some(TlsConnector::from(Arc::clone(tls))),
            _ => anyhow::bail!("{url:?} is not an http(s) URL"),
        };
        let port = uri.port_u16().unwrap_or(default_port);
        Ok(Server {
            url: format!("{}://{host}:{port}", uri.scheme_str().unwrap_or("http")),
            address: (host.trim_matches(['[', ']']).to_owned(), port),
            host: host.trim_matches(['[', ']']).to_owned(),
            authority: HeaderValue::from_str(&format!("{host}:{port}"))?,
            tls,
            idle: Mutex::default(),
        })
    }

    /// The same server by name, reached at one of its addresses.
    pub(super) fn reached_at(mut self, address: &str, port: u16) -> Self {
        self.url = format!("{} at {address}:{port}", self.url);
        self.address = (address.to_owned(), port);
        self
    }

    /// Scheme, host and port.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// One exchange, finished by `deadline` whatever happens.
    ///
    /// # Errors
    /// No complete answer.
    pub(super) async fn ask(
        &self,
        deadline: Moment,
        request: &Request,
    ) -> Result<Answer, NoAnswer> {
        let mut sent = false;
        let exchange = async {
            let (mut sender, response) = self.send(request, &mut sent).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_LIMIT)
                .collect()
                .await
                .map_err(|error| NoAnswer::Unanswered(error.to_string()))?;
            if sender.ready().await.is_ok() {
                let mut idle = self.idle();
                if idle.len() < KEPT_OPEN {
                    idle.push(sender);
                }
            }
            Ok(Answer {
                status: head.status.as_u16(),
                headers: head.headers,
                body: body.to_bytes(),
            })
        };
        let outcome = tokio::time::timeout(clock::now().until(deadline), exchange).await;
        match outcome {
            Ok(outcome) => outcome,
            Err(_) if sent => Err(NoAnswer::Unanswered("no answer in time".to_owned())),
            Err(_) => Err(NoAnswer::NotSent("no connection in time".to_owned())),
        }
    }

    /// The same for an answer without end, of which lines are read as they come. `deadline` is for its beginning.
    ///
    /// # Errors
    /// No answer begins.
    pub(super) async fn listen(
        &self,
        deadline: Moment,
        request: &Request,
    ) -> Result<Lines, NoAnswer> {
        let mut sent = false;
        let began = self.send(request, &mut sent);
        let (sender, response) = tokio::time::timeout(clock::now().until(deadline), began)
            .await
            .map_err(|_| NoAnswer::Unanswered("no answer in time".to_owned()))??;
        let (head, body) = response.into_parts();
        Ok(Lines {
            status: head.status.as_u16(),
            body,
            buffer: Vec::new(),
            _connection: sender,
        })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Sender>> {
        // Taken and put back whole: a panic elsewhere leaves it usable.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends over a kept connection, or over a new one when the server has closed that in the meantime.
    async fn send(
        &self,
        request: &Request,
        sent: &mut bool,
    ) -> Result<(Sender, hyper::Response<Incoming>), NoAnswer> {
        let mut message = self
            .message(request)
            .map_err(|error| NoAnswer::NotSent(error.to_string()))?;
        loop {
            let kept = self.idle().pop();
            let fresh = kept.is_none();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.connect().await.map_err(NoAnswer::NotSent)?,
            };
            *sent = true;
            match sender.try_send_request(message).await {
                Ok(response) => return Ok((sender, response)),
                Err(mut refused) => match refused.take_message() {
                    Some(unsent) if !fresh => {
                        *sent = false;
                        message = unsent;
                    }
                    Some(_) => return Err(NoAnswer::NotSent(refused.into_error().to_string())),
                    None => return Err(NoAnswer::Unanswered(chain(&refused.into_error()))),
                },
            }
        }
    }

    fn message(&self, request: &Request) -> anyhow::Result<hyper::Request<Full<Bytes>>> {
        let mut builder = hyper::Request::builder()
            .method(request.method.clone())
            .uri(&request.target)
            .header(HOST, &self.authority)
            .header(USER_AGENT, concat!("Howdah/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        Ok(builder.body(Full::new(Bytes::from(request.body.clone())))?)
    }

    async fn connect(&self) -> Result<Sender, String> {
        let tcp = TcpStream::connect((self.address.0.as_str(), self.address.1))
            .await
            .map_err(|error| error.to_string())?;
        let _ = tcp.set_nodelay(true);
        watch_for_death(&tcp);
        match &self.tls {
            None => handshake(tcp).await,
            Some(tls) => {
                let name =
                    ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?;
                handshake(
                    tls.connect(name, tcp)
                        .await
                        .map_err(|error| error.to_string())?,
                )
                .await
            }
        }
    }
}

/// The connection is driven by a task of its own, which ends with it.
async fn handshake<S>(stream: S) -> Result<Sender, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

/// A long wait for an answer must not outlive the server's machine.
fn watch_for_death(tcp: &TcpStream) {
    use rustix::net::sockopt;
    // Hints: a kernel that refuses one of them costs later notice of a dead peer, not the connection.
    let _ = sockopt::set_socket_keepalive(tcp, true);
    let _ = sockopt::set_tcp_keepidle(tcp, Duration::from_secs(5));
    let _ = sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(2));
    let _ = sockopt::set_tcp_keepcnt(tcp, 3);
}

/// hyper says "connection error" and keeps the reason one level down.
fn chain(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Percent-encodes everything that is not safe in a path segment or a query value; `/` stays.
pub(super) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_it_is_encoded() {
        assert_eq!(
            encode("service/my scope/a&b=ü"),
            "service/my%20scope/a%26b%3D%C3%BC"
        );
    }

    #[test]
    fn a_server_needs_a_whole_url() {
        let tls =
            crate::dcs::tls::client(crate::dcs::tls::Trust::Anybody, None, None, None).unwrap();
        let server = Server::new("https://[fd00::1]", 8500, &tls).unwrap();
        assert_eq!(
            (server.url(), server.host.as_str()),
            ("https://[fd00::1]:8500", "fd00::1")
        );
        for bad in ["host:1", "ftp://host", "http://", "http://a b"] {
            assert!(Server::new(bad, 1, &tls).is_err(), "{bad}");
        }
    }
}
