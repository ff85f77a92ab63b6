//! The client side of the REST API: what a node asks its peers, and what ctl asks nodes (spec/rest-api.md §15).
//!
//! Every call has its own deadline from connect to the last byte. A call never retries and never decides anything.

pub(crate) mod kept;
pub(crate) mod tls;

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use crate::api::Credentials;
use crate::cluster::wire;
use crate::config::Config;
use crate::ha::observation::{Peer, PeerAnswer};
use crate::node::FailsafePing;
use crate::types::{Lsn, MemberName, Timeline};

pub use crate::pem::TlsError;

/// Answers longer than this are cut off with an error; a status document is a few kilobytes.
const ANSWER_LIMIT: usize = 4 << 20;
/// Time for a connection, however patient the caller is with the answer.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// What a caller may configure (`ctl.*`, with `restapi.*` as fallback).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClientSettings {
    /// Basic credentials.
    pub credentials: Option<Credentials>,
    /// CA bundle that server certificates must chain to; without one the system's usual bundle.
    pub cacert: Option<String>,
    /// Client certificate.
    pub certfile: Option<String>,
    /// Its key, if not in `certfile`.
    pub keyfile: Option<String>,
    /// Passphrase of the key.
    pub keyfile_password: Option<String>,
    /// Whether and how server certificates are verified.
    pub verify: Verify,
}

impl ClientSettings {
    /// For calls between nodes: unverified unless a client certificate is configured, and never by host name.
    #[must_use]
    pub fn for_daemon(config: &Config) -> ClientSettings {
        let verify = if config.ctl.certfile.is_some() {
            Verify::Chain
        } else {
            Verify::Nothing
        };
        ClientSettings {
            verify,
            ..ClientSettings::common(config)
        }
    }

    /// For ctl: verified, unless told otherwise (`-k`, `ctl.insecure`).
    #[must_use]
    pub fn for_ctl(config: &Config, insecure: bool) -> ClientSettings {
        let verify = if insecure || config.ctl.insecure {
            Verify::Nothing
        } else {
            Verify::Full
        };
        ClientSettings {
            verify,
            ..ClientSettings::common(config)
        }
    }

    fn common(config: &Config) -> ClientSettings {
        let (ctl, rest) = (&config.ctl, &config.restapi);
        ClientSettings {
            credentials: ctl
                .authentication
                .as_ref()
                .or(rest.authentication.as_ref())
                .map(Credentials::from_config),
            cacert: ctl
                .cacert
                .as_deref()
                .or(rest.cafile.as_deref())
                .map(path_text),
            certfile: ctl.certfile.as_deref().map(path_text),
            keyfile: ctl.keyfile.as_deref().map(path_text),
            keyfile_password: ctl
                .keyfile_password
                .as_ref()
                .map(|password| password.expose().to_owned()),
            verify: Verify::Nothing,
        }
    }
}

/// A path as text; configured paths come from text.
pub(crate) fn path_text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

/// How much of a server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Nothing: daemons without a client certificate, and `-k`.
    #[default]
    Nothing,
    /// The chain, not the host name: daemons with a client certificate.
    Chain,
    /// Chain and host name: ctl.
    Full,
}

/// A client with its TLS configuration loaded.
#[derive(Clone)]
pub struct Client {
    authorization: Option<String>,
    tls: TlsConnector,
}

/// An answer of any status.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// The body as text.
    pub body: String,
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The request cannot have been seen by anyone.
    #[error("{0}")]
    NotSent(String),
    /// It may have been carried out.
    #[error("{0}")]
    Unanswered(String),
}

impl Client {
    /// Loads certificates; without TLS settings it cannot fail.
    ///
    /// # Errors
    /// A file that is missing, unreadable or no PEM.
    pub fn new(settings: &ClientSettings) -> Result<Client, TlsError> {
        Ok(Client {
            authorization: settings.credentials.as_ref().map(Credentials::header),
            tls: TlsConnector::from(Arc::new(tls::client_config(settings)?)),
        })
    }

    /// One request to `<scheme and authority of api_url>/<endpoint>`, over a connection of its own.
    ///
    /// # Errors
    /// No complete answer within `timeout`.
    pub async fn call(
        &self,
        method: Method,
        api_url: &str,
        endpoint: &str,
        body: Option<&str>,
        timeout: Duration,
    ) -> Result<Answer, CallError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/{}", endpoint.trim_start_matches('/')));
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default().to_owned())))
            .map_err(|error| CallError::NotSent(error.to_string()))?;
        self.request(api_url, request, timeout).await
    }

    /// A request as it is, but for its host and user agent, to the scheme and authority of `url`.
    ///
    /// # Errors
    /// No complete answer within `timeout`.
    pub async fn request(
        &self,
        url: &str,
        request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Answer, CallError> {
        let target = Target::parse(url)
            .ok_or_else(|| CallError::NotSent(format!("{url:?} is not an http(s) URL")))?;
        let mut sent = false;
        let exchange = self.exchange(&target, request, &mut sent);
        let outcome = match tokio::time::timeout(timeout, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {} s", timeout.as_secs_f64())),
        };
        outcome.map_err(|detail| {
            let detail = format!("{}: {detail}", target.authority);
            if sent {
                CallError::Unanswered(detail)
            } else {
                CallError::NotSent(detail)
            }
        })
    }

    async fn exchange(
        &self,
        target: &Target,
        mut request: Request<Full<Bytes>>,
        sent: &mut bool,
    ) -> Result<Answer, String> {
        address(target, &mut request)?;
        let stream = self.connect(target).await?;
        send(stream, request, sent).await
    }

    /// A connection that is ready for HTTP.
    async fn connect(&self, target: &Target) -> Result<Box<dyn Stream>, String> {
        let connecting = TcpStream::connect((target.host.as_str(), target.port));
        let stream = tokio::time::timeout(CONNECT_DEADLINE, connecting)
            .await
            .map_err(|_| format!("no connection within {} s", CONNECT_DEADLINE.as_secs()))?
            .map_err(|error| error.to_string())?;
        let _ = stream.set_nodelay(true);
        if !target.tls {
            return Ok(Box::new(stream));
        }
        let name = rustls::pki_types::ServerName::try_from(target.host.clone())
            .map_err(|error| error.to_string())?;
        let stream = self.tls.connect(name, stream).await;
        Ok(Box::new(stream.map_err(|error| error.to_string())?))
    }

    /// `POST /failsafe`: whether that member agrees that the sender of `body` goes on as the leader (spec/rest-api.md §13).
    ///
    /// # Errors
    /// Anything but `200 Accepted`.
    pub async fn agrees(
        &self,
        api_url: &str,
        body: &str,
        timeout: Duration,
    ) -> Result<Option<Lsn>, Disagreement> {
        let answer = self
            .call(Method::POST, api_url, "failsafe", Some(body), timeout)
            .await
            .map_err(|error| Disagreement::Unreachable(error.to_string()))?;
        if answer.status != 200 || answer.body != "Accepted" {
            return Err(Disagreement::Refused {
                status: answer.status,
                text: answer.body.chars().take(200).collect(),
            });
        }
        Ok(answer
            .headers
            .get("lsn")
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Lsn))
    }

    /// Asks all peers for their status at once. Answers, failures included, come through the channel as they arrive; drop the
    /// receiver as soon as the outcome cannot change, and the remaining calls end. Must be called on a runtime.
    #[must_use]
    pub fn poll(
        &self,
        peers: impl IntoIterator<Item = (MemberName, String)>,
        timeout: Duration,
    ) -> mpsc::Receiver<Peer> {
        let peers: Vec<_> = peers.into_iter().collect();
        let (sender, receiver) = mpsc::channel(peers.len().max(1));
        for (name, api_url) in peers {
            let (client, sender) = (self.clone(), sender.clone());
            tokio::spawn(async move {
                let call = client.call(Method::GET, &api_url, "patroni", None, timeout);
                let answer = tokio::select! {
                    answer = call => answer,
                    () = sender.closed() => return,
                };
                let answer = match answer {
                    Ok(answer) => parse_status(&answer.body),
                    Err(error) => {
                        tracing::warn!("member {name} does not answer: {error}");
                        None
                    }
                };
                let _ = sender.send(Peer { name, answer }).await;
            });
        }
        receiver
    }

    /// Whether another process already runs under the name whose member document says `api_url` (spec §15, D12).
    /// Any HTTP answer counts, except our own.
    pub async fn is_name_taken(&self, api_url: &str, own_instance: &str) -> bool {
        match self
            .call(
                Method::GET,
                api_url,
                "liveness",
                None,
                Duration::from_secs(3),
            )
            .await
        {
            Ok(answer) => answer
                .headers
                .get(INSTANCE_HEADER)
                .is_none_or(|instance| instance.as_bytes() != own_instance.as_bytes()),
            Err(CallError::NotSent(_) | CallError::Unanswered(_)) => false,
        }
    }
}

/// Why a member does not agree to failsafe mode.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Disagreement {
    /// There was no answer.
    #[error("{0}")]
    Unreachable(String),
    /// It said no.
    #[error("status {status}: {text}")]
    Refused {
        /// The status code.
        status: u16,
        /// The beginning of the body.
        text: String,
    },
}

/// The body of `POST /failsafe`.
#[must_use]
pub fn failsafe_text(ping: &FailsafePing) -> String {
    let slots: Map<String, Value> = ping
        .slots
        .iter()
        .map(|(slot, lsn)| (slot.clone(), lsn.0.into()))
        .collect();
    serde_json::json!({
        "name": ping.name.as_str(),
        "conn_url": ping.conn_url,
        "api_url": ping.api_url,
        "slots": slots,
    })
    .to_string()
}

/// Carries [`crate::node::NodeView::instance`] in answers of `/liveness`.
pub const INSTANCE_HEADER: &str = "x-howdah-instance";

/// Names the host that is asked, and who asks.
fn address(target: &Target, request: &mut Request<Full<Bytes>>) -> Result<(), String> {
    let host = HeaderValue::try_from(&target.authority).map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    headers.insert(
        USER_AGENT,
        HeaderValue::from_static(concat!("Howdah/", env!("CARGO_PKG_VERSION"))),
    );
    Ok(())
}

/// A connection, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn send(
    stream: Box<dyn Stream>,
    request: Request<Full<Bytes>>,
    sent: &mut bool,
) -> Result<Answer, String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_LIMIT)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        })
    };
    *sent = true;
    let mut exchange = std::pin::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    // The connection is driven here rather than in a task of its own, so that dropping the call drops everything.
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            // The peer has closed after its answer: the body may still be in our buffers.
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

/// A status document as the leader race uses it (spec/ha.md §6.2). `None`: not a status, or PostgreSQL does not answer there.
#[must_use]
pub fn parse_status(text: &str) -> Option<PeerAnswer> {
    let document: Map<String, Value> = serde_json::from_str(text).ok()?;
    let xlog = document
        .get("xlog")
        .or_else(|| document.get("wal"))?
        .as_object()?;
    let position = |key: &str| xlog.get(key).and_then(Value::as_u64).map_or(Lsn::ZERO, Lsn);
    let in_recovery = !xlog.contains_key("location");
    let tags = document.get("tags").and_then(Value::as_object);
    Some(PeerAnswer {
        in_recovery,
        lsn: if in_recovery {
            position("received_location").max(position("replayed_location"))
        } else {
            position("location")
        },
        timeline: document
            .get("timeline")
            .and_then(Value::as_u64)
            .and_then(|timeline| u32::try_from(timeline).ok())
            .filter(|timeline| *timeline > 0)
            .map(Timeline),
        tags: tags.map(wire::parse_tags).unwrap_or_default(),
        watchdog_failed: document
            .get("watchdog_failed")
            .is_some_and(|flag| flag.as_bool() != Some(false)),
        cannot_serve: document.contains_key("cannot_serve"),
        replaying: in_recovery && document.get("replaying").and_then(Value::as_bool) == Some(true),
    })
}

/// Where a URL leads.
struct Target {
    tls: bool,
    host: String,
    port: u16,
    authority: String,
}

impl Target {
    fn parse(url: &str) -> Option<Target> {
        let (scheme, rest) = url.split_once("://")?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let authority = rest.split(['/', '?', '#']).next()?.rsplit('@').next()?;
        let (host, port) = split_authority(authority)?;
        let default = if tls { 443 } else { 80 };
        Some(Target {
            tls,
            host,
            port: port.unwrap_or(default),
            authority: authority.to_owned(),
        })
    }
}

/// Splits `host:port`, `[v6]:port`, a bare IPv6 address included.
fn split_authority(authority: &str) -> Option<(String, Option<u16>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port.parse().ok()?),
            None => None,
        };
        return Some((host.to_owned(), port));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => {
            Some((host.to_owned(), Some(port.parse().ok()?)))
        }
        _ if authority.is_empty() => None,
        _ => Some((authority.to_owned(), None)),
    }
}

/// The host part of a URL, without brackets.
#[must_use]
pub fn host_of(url: &str) -> Option<String> {
    address_of(url).map(|(host, _)| host)
}

/// Host, without brackets, and port of a URL.
#[must_use]
pub fn address_of(url: &str) -> Option<(String, Option<u16>)> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next()?.rsplit('@').next()?;
    split_authority(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let target = Target::parse("https://[fd00::1]:8008/patroni").unwrap();
        assert_eq!(
            (target.tls, target.host.as_str(), target.port),
            (true, "fd00::1", 8008)
        );
        assert_eq!(Target::parse("http://pg-a/patroni").unwrap().port, 80);
        assert!(
            Target::parse("ftp://x").is_none()
                && Target::parse("http://").is_none()
                && Target::parse("http://h:99999/").is_none()
        );
        assert_eq!(
            host_of("postgres://10.0.0.1:5432/postgres").as_deref(),
            Some("10.0.0.1")
        );
    }

    #[test]
    fn statuses() {
        let standby = parse_status(
            r#"{"state": "running", "role": "replica", "xlog": {"received_location": 5, "replayed_location": 7, "paused": false},
                "timeline": 3, "tags": {"nofailover": true}, "watchdog_failed": true}"#,
        )
        .unwrap();
        assert!(standby.in_recovery && standby.watchdog_failed && standby.tags.never_leads());
        assert_eq!((standby.lsn, standby.timeline), (Lsn(7), Some(Timeline(3))));
        let primary = parse_status(r#"{"xlog": {"location": 9}, "timeline": 0}"#).unwrap();
        assert_eq!(
            (primary.in_recovery, primary.lsn, primary.timeline),
            (false, Lsn(9), None)
        );
        assert!(
            parse_status(r#"{"state": "stopped"}"#).is_none() && parse_status("<html>").is_none()
        );
    }

    #[tokio::test]
    async fn a_refused_connection_was_never_sent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/patroni", listener.local_addr().unwrap());
        drop(listener);
        let client = Client::new(&ClientSettings::default()).unwrap();
        let answer = client
            .call(Method::GET, &url, "patroni", None, Duration::from_secs(5))
            .await;
        assert!(matches!(answer, Err(CallError::NotSent(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn a_silent_peer_does_not_hold_up_the_others() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let quick = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = |listener: &tokio::net::TcpListener| {
            format!("http://{}/patroni", listener.local_addr().unwrap())
        };
        let peers = [
            (MemberName::new("silent").unwrap(), url(&silent)),
            (MemberName::new("quick").unwrap(), url(&quick)),
        ];
        let client = Client::new(&ClientSettings::default()).unwrap();
        let mut answers = client.poll(peers, Duration::from_secs(20));
        let (mut stream, _) = quick.accept().await.unwrap();
        let mut request = [0; 1024];
        let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut request)
            .await
            .unwrap();
        let reply = b"HTTP/1.0 503 Service Unavailable\r\n\r\n{\"xlog\": {\"location\": 1}}";
        tokio::io::AsyncWriteExt::write_all(&mut stream, reply)
            .await
            .unwrap();
        drop(stream);
        let first = tokio::time::timeout(Duration::from_secs(5), answers.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(first.name.as_str(), "quick");
        assert_eq!(first.answer.unwrap().lsn, Lsn(1));
    }
}
