//! The nodes of one etcd cluster behind its v2 API: node after node, the retry budget, the list of nodes (spec/dcs.md §4.3, §5.2).
//!
//! Knows what an answer's status means, not what the keys are for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use rand::Rng as _;
use rand::seq::SliceRandom as _;
use rustls::ClientConfig;
use serde_json::Value;

use crate::clock;
use crate::dcs::etcd_hosts::srv::{self, Srv};
use crate::dcs::http::{Answer, NoAnswer, Request, Server};
use crate::dcs::{DcsError, Identity, Timings};
use crate::types::Moment;

/// Why there is no usable answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// No answer in time, and nothing can have been carried out.
    Unreachable(DcsError),
    /// No answer that tells; it may have been carried out.
    Ambiguous(DcsError),
    /// etcd rejects the request itself.
    Rejected(String),
}

impl Failure {
    /// For callers to whom every failure is "the store could not answer".
    pub(super) fn into_error(self) -> DcsError {
        match self {
            Failure::Unreachable(error) | Failure::Ambiguous(error) => error,
            Failure::Rejected(detail) => error("", &detail),
        }
    }
}

pub(super) fn error(url: &str, detail: &str) -> DcsError {
    DcsError {
        store: format!("etcd {url}").trim_end().to_owned(),
        detail: detail.to_owned(),
    }
}

/// What etcd answered.
#[derive(Debug)]
pub(super) enum Told {
    /// It is so; the answer's document.
    Yes(Value),
    /// The key is not there.
    Absent,
    /// The key is there, or is not as expected.
    Conflict,
    /// The change that was waited for is too old to be told.
    Cleared,
}

/// An answer and how far the store's history went.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) told: Told,
    pub(super) index: u64,
}

/// What may happen to a request besides being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Repeating it has no effect beyond the first time.
    Repeatable,
    /// Must not be repeated once it may have arrived.
    Once,
}

/// The nodes requests can go to; the first one is asked first.
pub(super) struct Pool {
    configured: Vec<String>,
    srv: Option<Srv>,
    discovers: bool,
    tls: Arc<ClientConfig>,
    authorization: Option<String>,
    nodes: Mutex<Vec<Arc<Server>>>,
    timings: Mutex<Timings>,
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the mutexes here guard is replaced as a whole, so a panic elsewhere leaves it usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The fewest seconds that one attempt gets.
const LEAST_SHARE: Duration = Duration::from_secs(1);

impl Pool {
    pub(super) fn new(
        urls: Vec<String>,
        srv: Option<Srv>,
        discovers: bool,
        tls: Arc<ClientConfig>,
        credentials: Option<(String, String)>,
        identity: &Identity,
    ) -> anyhow::Result<Self> {
        let pool = Pool {
            configured: urls,
            srv,
            discovers,
            tls,
            authorization: credentials.map(|(user, password)| {
                format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
            }),
            nodes: Mutex::default(),
            timings: Mutex::new(identity.timings()),
        };
        for url in &pool.configured {
            unpoisoned(&pool.nodes).push(Arc::new(pool.node(url)?));
        }
        Ok(pool)
    }

    fn node(&self, url: &str) -> anyhow::Result<Server> {
        Server::new(url, 2379, &self.tls)
    }

    pub(super) fn timings(&self) -> Timings {
        *unpoisoned(&self.timings)
    }

    pub(super) fn set_timings(&self, timings: Timings) {
        *unpoisoned(&self.timings) = timings;
    }

    /// When a call that begins now must have ended.
    pub(super) fn deadline(&self) -> Moment {
        clock::now() + self.timings().retry_timeout
    }

    /// How many nodes requests can go to.
    pub(super) fn known_nodes(&self) -> usize {
        unpoisoned(&self.nodes).len()
    }

    fn current(&self) -> Option<(Arc<Server>, usize)> {
        let nodes = unpoisoned(&self.nodes);
        nodes.first().map(|node| (Arc::clone(node), nodes.len()))
    }

    /// The next request begins with another node.
    fn leave(&self, failed: &Arc<Server>) {
        let mut nodes = unpoisoned(&self.nodes);
        if nodes
            .first()
            .is_some_and(|first| Arc::ptr_eq(first, failed))
        {
            nodes.rotate_left(1);
        }
    }

    fn request(&self, method: Method, target: &str, body: Option<&str>) -> Request {
        let mut request = Request::new(method, target);
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        match body {
            Some(body) => request.body("application/x-www-form-urlencoded", body),
            None => request,
        }
    }

    /// Sends a request until it is answered, must not be repeated, or `deadline` has come.
    pub(super) async fn call(
        &self,
        deadline: Moment,
        kind: Kind,
        method: Method,
        target: &str,
        body: Option<&str>,
    ) -> Result<Known, Failure> {
        let request = self.request(method, target, body);
        let mut last = error("", "no node is known");
        let mut failures = 0_usize;
        let mut pause = Duration::from_millis(100);
        loop {
            if self.known_nodes() == 0 {
                self.look_up(deadline).await;
            }
            let Some((node, nodes)) = self.current() else {
                let next = clock::now() + pause;
                if next >= deadline {
                    return Err(Failure::Unreachable(last));
                }
                tokio::time::sleep(pause).await;
                continue;
            };
            let budget = self.timings().retry_timeout;
            let share = match (kind, nodes) {
                (Kind::Once, 1) => budget * 2 / 3,
                (_, 1) => budget / 3,
                (_, 2) => budget / 4,
                _ => budget / u32::try_from(nodes).unwrap_or(3),
            };
            let attempt = clock::now() + share.max(LEAST_SHARE);
            let detail = match node.ask(attempt.min(deadline), &request).await {
                Ok(answer) => match understand(&answer) {
                    Understood::Told(told) => {
                        let index = answer.number("x-etcd-index").unwrap_or(0);
                        return Ok(Known { told, index });
                    }
                    Understood::Rejected(detail) => {
                        return Err(Failure::Rejected(format!("{}: {detail}", node.url())));
                    }
                    Understood::NotCarriedOut(detail) => detail,
                    Understood::Ambiguous(detail) if kind == Kind::Once => {
                        self.leave(&node);
                        return Err(Failure::Ambiguous(error(node.url(), &detail)));
                    }
                    Understood::Ambiguous(detail) => detail,
                },
                Err(NoAnswer::Unanswered(detail)) if kind == Kind::Once => {
                    self.leave(&node);
                    return Err(Failure::Ambiguous(error(node.url(), &detail)));
                }
                Err(no_answer) => no_answer.into_text(),
            };
            last = error(node.url(), &detail);
            self.leave(&node);
            failures += 1;
            if clock::now() >= deadline {
                return Err(Failure::Unreachable(last));
            }
            if failures.is_multiple_of(nodes) {
                self.look_up(deadline).await;
                let jitter = Duration::from_millis(rand::rng().random_range(0..50));
                if clock::now() + pause + jitter >= deadline {
                    return Err(Failure::Unreachable(last));
                }
                tokio::time::sleep(pause + jitter).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }

    /// One request to the current node that may take until `deadline`; the caller repeats it.
    pub(super) async fn wait(
        &self,
        deadline: Moment,
        target: &str,
    ) -> Result<Option<Known>, Failure> {
        let Some((node, _)) = self.current() else {
            return Err(Failure::Unreachable(error("", "no node is known")));
        };
        let request = self.request(Method::GET, target, None);
        match node.ask(deadline, &request).await {
            Ok(answer) => match understand(&answer) {
                Understood::Told(told) => Ok(Some(Known {
                    told,
                    index: answer.number("x-etcd-index").unwrap_or(0),
                })),
                Understood::Rejected(detail)
                | Understood::NotCarriedOut(detail)
                | Understood::Ambiguous(detail) => {
                    self.leave(&node);
                    Err(Failure::Unreachable(error(node.url(), &detail)))
                }
            },
            // Nothing has happened in the meantime.
            Err(NoAnswer::Unanswered(_)) if clock::now() >= deadline => Ok(None),
            Err(no_answer) => {
                self.leave(&node);
                Err(Failure::Unreachable(error(
                    node.url(),
                    &no_answer.into_text(),
                )))
            }
        }
    }

    /// Keeps the list of nodes right; ends at once behind proxies.
    pub(super) async fn keep_discovering(&self) {
        if !self.discovers {
            return;
        }
        loop {
            self.discover().await;
            tokio::time::sleep(self.timings().ttl * 10).await;
        }
    }

    /// Starts from what is configured: after all nodes have failed, or before any is known.
    async fn look_up(&self, deadline: Moment) {
        let mut urls = self.configured.clone();
        if let Some(srv) = &self.srv {
            let left = clock::now().until(deadline);
            let found = tokio::time::timeout(left, srv::urls(srv)).await;
            let found = found.unwrap_or_default();
            if !found.is_empty() {
                urls = found;
            }
        }
        let known: Vec<String> = unpoisoned(&self.nodes)
            .iter()
            .map(|node| node.url().to_owned())
            .collect();
        for url in urls {
            if let Ok(node) = self.node(&url)
                && !known.iter().any(|known| known == node.url())
            {
                unpoisoned(&self.nodes).push(Arc::new(node));
            }
        }
    }

    /// Asks one node for all of them.
    async fn discover(&self) {
        let Some((node, _)) = self.current() else {
            return;
        };
        let request = self.request(Method::GET, "/v2/machines", None);
        let Ok(answer) = node.ask(self.deadline(), &request).await else {
            return;
        };
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let mut found: Vec<Arc<Server>> = text
            .split(',')
            .filter_map(|url| self.node(url.trim()).ok())
            .map(Arc::new)
            .collect();
        if answer.status != 200 || found.is_empty() {
            return;
        }
        found.shuffle(&mut rand::rng());
        let mut nodes = unpoisoned(&self.nodes);
        // The node in use, with its connections, stays the first.
        let current = nodes.first().cloned();
        for fresh in &mut found {
            if let Some(known) = nodes.iter().find(|known| known.url() == fresh.url()) {
                *fresh = Arc::clone(known);
            }
        }
        if let Some(at) =
            current.and_then(|current| found.iter().position(|node| node.url() == current.url()))
        {
            found.swap(0, at);
        }
        *nodes = found;
    }
}

enum Understood {
    Told(Told),
    /// Another node, or the same one later, may do it.
    NotCarriedOut(String),
    Ambiguous(String),
    Rejected(String),
}

/// etcd's error codes (spec/dcs.md §5.2; etcd v2 documentation, "errorcode.md").
fn understand(answer: &Answer) -> Understood {
    let body = answer.json();
    let code = body.as_ref().and_then(|body| body["errorCode"].as_u64());
    match (answer.status, code) {
        (200 | 201, None) => match body {
            Some(body) => Understood::Told(Told::Yes(body)),
            None => Understood::Ambiguous(format!("not the answer of etcd: {}", answer.text())),
        },
        (_, Some(100)) => Understood::Told(Told::Absent),
        (_, Some(101 | 105)) => Understood::Told(Told::Conflict),
        (_, Some(400 | 401)) => Understood::Told(Told::Cleared),
        // No leader yet.
        (_, Some(301)) => Understood::NotCarriedOut(answer.text()),
        (500.., _) => Understood::Ambiguous(answer.text()),
        (status, _) => Understood::Rejected(format!("{status}: {}", answer.text())),
    }
}
