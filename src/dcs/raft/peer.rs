//! The outgoing side: one connection to one address, opened when it is needed, shared by all requests, opened anew after a
//! failure with growing pauses.
//!
//! A request is never sent twice. Its caller bounds how long it waits.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::disk::{NodeId, lock};
use super::transport::{Connection, Credentials, Numbered, Reply, Request, dial};
use crate::types::Moment;

/// The first pause after a failed attempt; doubles up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// A peer that comes back is seen that soon.
const LONGEST_PAUSE: Duration = Duration::from_millis(800);
/// The same trouble with the same address is logged that often.
const REPEAT_LOG: Duration = Duration::from_secs(60);
/// An unused connection is closed after that.
const IDLE: Duration = Duration::from_secs(60);

/// Why there is no reply.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CallError {
    /// The request has not left this node.
    #[error("{0}")]
    NotSent(String),
    /// It may have arrived.
    #[error("{0}")]
    Lost(String),
}

struct Call {
    /// The request's JSON.
    body: String,
    reply: oneshot::Sender<Result<Reply, CallError>>,
}

/// A handle on the connection to one address. The connection ends with the last handle.
#[derive(Clone)]
pub(crate) struct Peer {
    calls: mpsc::Sender<Call>,
}

/// What the connection needs to know.
#[derive(Clone)]
pub(crate) struct PeerSettings {
    /// `host:port`.
    pub(crate) address: String,
    /// What is really dialled; the same except in tests.
    pub(crate) dialled: String,
    /// The node that must answer there.
    pub(crate) wanted: Option<NodeId>,
    /// Who this side is, asked at each attempt.
    pub(crate) credentials: Arc<dyn Fn() -> Credentials + Send + Sync>,
    /// Limit for connecting, and for silence while requests wait.
    pub(crate) timeout: Duration,
    /// The clock.
    pub(crate) clock: fn() -> Moment,
    /// Trouble that has been logged, by address.
    pub(crate) troubles: Arc<Troubles>,
}

impl Peer {
    /// A handle and the work of the connection, to be spawned by the caller. Nothing is connected yet.
    pub(crate) fn new(settings: PeerSettings) -> (Peer, impl Future<Output = ()> + Send) {
        let (calls, queue) = mpsc::channel(256);
        (Peer { calls }, run(settings, queue))
    }

    /// Sends one request and waits for its reply. The caller adds the time limit.
    pub(crate) async fn call(&self, request: &Request) -> Result<Reply, CallError> {
        let not_sent = |error: &dyn std::fmt::Display| CallError::NotSent(error.to_string());
        let body = serde_json::to_string(request).map_err(|e| not_sent(&e))?;
        let (reply, answer) = oneshot::channel();
        self.calls
            .try_send(Call { body, reply })
            .map_err(|_| not_sent(&"too many requests are waiting"))?;
        answer
            .await
            .unwrap_or_else(|_| Err(CallError::Lost("the connection has ended".to_owned())))
    }
}

/// Remembers what has been said about an address, so that the log has each trouble once (and a reminder per minute).
#[derive(Default)]
pub(crate) struct Troubles {
    said: Mutex<HashMap<String, (String, Moment)>>,
}

impl Troubles {
    /// Logs `text` about `subject` unless it has just been said.
    pub(crate) fn say(&self, subject: &str, text: &str, now: Moment) {
        let mut said = lock(&self.said);
        let fresh = match said.get(subject) {
            Some((before, at)) => before != text || now.since(*at) >= REPEAT_LOG,
            None => true,
        };
        if fresh {
            if said.len() >= 256 {
                said.clear();
            }
            said.insert(subject.to_owned(), (text.to_owned(), now));
            tracing::warn!("raft: {subject}: {text}");
        }
    }

    /// The trouble is over.
    pub(crate) fn over(&self, subject: &str) {
        if lock(&self.said).remove(subject).is_some() {
            tracing::info!("raft: {subject}: connected");
        }
    }
}

async fn run(settings: PeerSettings, mut queue: mpsc::Receiver<Call>) {
    let mut pause = SHORTEST_PAUSE;
    let mut resume = Moment(Duration::ZERO);
    let mut trouble = String::new();
    while let Some(call) = queue.recv().await {
        if call.reply.is_closed() {
            continue;
        }
        if (settings.clock)() < resume {
            let _ = call.reply.send(Err(CallError::NotSent(trouble.clone())));
            continue;
        }
        match connect(&settings).await {
            Ok(connection) => {
                pause = SHORTEST_PAUSE;
                settings.troubles.over(&settings.address);
                let error = serve(&settings, connection, call, &mut queue).await;
                if let Some(error) = error {
                    trouble = format!("the connection broke: {error}");
                    tracing::debug!("raft: {}: {trouble}", settings.address);
                }
            }
            Err(error) => {
                trouble = match error.kind() {
                    io::ErrorKind::PermissionDenied => format!("wrong peer: {error}"),
                    io::ErrorKind::TimedOut => "cannot connect: no answer in time".to_owned(),
                    _ => format!("cannot connect: {error}"),
                };
                let now = (settings.clock)();
                settings.troubles.say(&settings.address, &trouble, now);
                let _ = call.reply.send(Err(CallError::NotSent(format!(
                    "{}: {trouble}",
                    settings.address
                ))));
                // Not in step with the other nodes.
                resume = now + pause.mul_f64(rand::random_range(0.7..1.3));
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

async fn connect(settings: &PeerSettings) -> io::Result<Connection> {
    let stream = dial(&settings.dialled, settings.timeout).await?;
    let credentials = (settings.credentials)();
    tokio::time::timeout(
        settings.timeout,
        credentials.connect(stream, settings.wanted),
    )
    .await
    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Carries requests until the connection breaks (`Some`) or nobody needs it (`None`). Fails what waits then.
async fn serve(
    settings: &PeerSettings,
    connection: Connection,
    first: Call,
    queue: &mut mpsc::Receiver<Call>,
) -> Option<io::Error> {
    let Connection {
        mut reader,
        mut writer,
        ..
    } = connection;
    let mut waiting: HashMap<u64, oneshot::Sender<Result<Reply, CallError>>> = HashMap::new();
    let mut number = 0u64;
    let mut next = Some(first);
    // When the other side was last heard, or could first have been.
    let mut heard = (settings.clock)();
    let error = loop {
        if let Some(call) = next.take()
            && !call.reply.is_closed()
        {
            number += 1;
            if waiting.is_empty() {
                heard = (settings.clock)();
            }
            // Spelled by hand: the body is JSON already.
            let frame = format!("{{\"number\":{number},\"body\":{}}}", call.body);
            waiting.insert(number, call.reply);
            match tokio::time::timeout(settings.timeout, writer.send(frame.as_bytes())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => break Some(error),
                Err(_) => break Some(io::ErrorKind::TimedOut.into()),
            }
        }
        if waiting.len() > 64 {
            waiting.retain(|_, reply| !reply.is_closed());
        }
        let silence = if waiting.is_empty() {
            IDLE
        } else {
            (settings.clock)().until(heard + settings.timeout)
        };
        tokio::select! {
            call = queue.recv() => match call {
                Some(call) => next = Some(call),
                None => break None,
            },
            frame = reader.next() => match frame {
                Ok(Some(frame)) => {
                  heard = (settings.clock)();
                  match serde_json::from_slice::<Numbered<Reply>>(&frame) {
                    Ok(reply) => {
                        if let Some(sender) = waiting.remove(&reply.number) {
                            let _ = sender.send(Ok(reply.body));
                        }
                    }
                    Err(error) => break Some(error.into()),
                }},
                Ok(None) => break Some(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => break Some(error),
            },
            () = tokio::time::sleep(silence) => {
                if waiting.is_empty() {
                    break None;
                }
                break Some(io::ErrorKind::TimedOut.into());
            }
        }
    };
    for (_, reply) in waiting {
        let text = format!("{}: the connection broke", settings.address);
        let _ = reply.send(Err(CallError::Lost(text)));
    }
    error
}
