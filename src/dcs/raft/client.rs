//! A way to the store for somebody who is no Raft node: asks any node it is given, which passes the request on.
//!
//! Keeps no state of the cluster: every read is linearizable.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::peer::{Peer, PeerSettings, Troubles};
use super::state::{Action, Command, Outcome, Record, RequestId};
use super::transport::{Credentials, Introduction, Reply, Request};
use crate::config::Secret;
use crate::types::Moment;

/// One node gets that long for an answer, then the next one is asked.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// A connection attempt may take that long.
const CONNECT: Duration = Duration::from_secs(3);
/// A node answers a watch at the latest after that, news or not: less than the silence that a connection takes for death.
pub(crate) const WATCH: Duration = Duration::from_millis(1500);

/// A client of the nodes at some addresses.
pub(crate) struct Client {
    reach: Arc<Reach>,
    origin: u64,
    requests: AtomicU64,
    watching: OnceLock<(watch::Sender<u64>, AbortHandle)>,
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some((_, task)) = self.watching.get() {
            task.abort();
        }
    }
}

/// The nodes, and which one answered last.
struct Reach {
    addresses: Vec<String>,
    peers: Vec<OnceLock<Peer>>,
    credentials: Arc<dyn Fn() -> Credentials + Send + Sync>,
    troubles: Arc<Troubles>,
    current: AtomicUsize,
}

impl Client {
    /// Connects to nothing yet.
    pub(crate) fn new(addresses: Vec<String>, password: Option<Secret>, cluster: String) -> Client {
        let credentials = Credentials {
            introduction: Introduction {
                cluster,
                address: "client".to_owned(),
                ..Introduction::default()
            },
            secret: password.map(|secret| secret.expose().to_owned()),
        };
        let reach = Reach {
            peers: addresses.iter().map(|_| OnceLock::new()).collect(),
            addresses,
            credentials: Arc::new(move || credentials.clone()),
            troubles: Arc::default(),
            current: AtomicUsize::new(0),
        };
        Client {
            reach: Arc::new(reach),
            origin: rand::random(),
            requests: AtomicU64::new(0),
            watching: OnceLock::new(),
        }
    }

    /// Wraps an action into a command with a fresh request id.
    pub(crate) fn command(&self, action: Action) -> Command {
        Command {
            request: RequestId {
                origin: self.origin,
                number: self.requests.fetch_add(1, Ordering::Relaxed),
            },
            action,
        }
    }

    /// As `Node::submit`.
    ///
    /// # Errors
    /// Why there was no answer until `deadline`.
    pub(crate) async fn submit(
        &self,
        command: &Command,
        deadline: Moment,
    ) -> Result<Outcome, String> {
        let request = |budget| Request::Propose {
            command: command.clone(),
            budget,
            forwarded: false,
        };
        match self.reach.ask(request, deadline).await? {
            Reply::Outcome(outcome) => Ok(outcome),
            _ => Err("unexpected answer".to_owned()),
        }
    }

    /// The records below a prefix, as new as the last write anywhere.
    ///
    /// # Errors
    /// Why there was no answer until `deadline`.
    pub(crate) async fn records(
        &self,
        prefix: &str,
        deadline: Moment,
    ) -> Result<Vec<(String, Record)>, String> {
        let request = |budget| Request::Read {
            prefix: prefix.to_owned(),
            budget,
        };
        match self.reach.ask(request, deadline).await? {
            Reply::Records(records) => Ok(records),
            _ => Err("unexpected answer".to_owned()),
        }
    }

    /// Follows the changes of whichever node answers; begins with the first call.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        let (sender, _) = self.watching.get_or_init(|| {
            let sender = watch::Sender::new(0);
            let task = tokio::spawn(follow(Arc::clone(&self.reach), sender.clone()));
            (sender, task.abort_handle())
        });
        sender.subscribe()
    }
}

impl Reach {
    fn peer(&self, turn: usize) -> Option<(&str, Peer)> {
        let index = turn % self.addresses.len().max(1);
        let address = self.addresses.get(index)?;
        let peer = self.peers.get(index)?.get_or_init(|| {
            let (peer, work) = Peer::new(PeerSettings {
                address: address.clone(),
                dialled: address.clone(),
                wanted: None,
                credentials: Arc::clone(&self.credentials),
                timeout: CONNECT,
                clock: crate::clock::now,
                troubles: Arc::clone(&self.troubles),
            });
            tokio::spawn(work);
            peer
        });
        Some((address, peer.clone()))
    }

    /// Asks one node after the other until one has an answer or the time is over.
    async fn ask(
        &self,
        request: impl Fn(u64) -> Request,
        deadline: Moment,
    ) -> Result<Reply, String> {
        let mut why = "no time left".to_owned();
        loop {
            let left = crate::clock::now().until(deadline);
            if left.is_zero() {
                return Err(why);
            }
            let turn = self.current.load(Ordering::Relaxed);
            let Some((address, peer)) = self.peer(turn) else {
                return Err("no address of a Raft node is configured".to_owned());
            };
            let attempt = left.min(ATTEMPT);
            let budget = u64::try_from(attempt.as_millis()).unwrap_or(u64::MAX);
            // The node's own answer, why it could not, is worth a moment more.
            let patience = left.min(attempt + PAUSE);
            why = match timeout(patience, peer.call(&request(budget))).await {
                Ok(Ok(Reply::Failed(text))) => format!("{address} says: {text}"),
                Ok(Ok(Reply::NotLeader)) => format!("{address} could not pass the request on"),
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("{address} did not answer in time"),
            };
            self.current.store(turn.wrapping_add(1), Ordering::Relaxed);
            sleep(PAUSE).await;
        }
    }
}

async fn follow(reach: Arc<Reach>, changes: watch::Sender<u64>) {
    let mut seen: Option<(usize, u64)> = None;
    loop {
        let turn = reach.current.load(Ordering::Relaxed);
        let Some((_, peer)) = reach.peer(turn) else {
            return;
        };
        let after = seen.filter(|(at, _)| *at == turn).map(|(_, number)| number);
        let request = Request::Watch { after };
        match timeout(WATCH + ATTEMPT, peer.call(&request)).await {
            Ok(Ok(Reply::Changes(number))) => {
                // Another node, or the first answer after a failure: anything may have happened.
                if after != Some(number) {
                    changes.send_modify(|n| *n = n.wrapping_add(1));
                }
                seen = Some((turn, number));
            }
            _ => {
                seen = None;
                let next = turn.wrapping_add(1);
                let _ = reach.current.compare_exchange(
                    turn,
                    next,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                sleep(PAUSE).await;
            }
        }
    }
}
