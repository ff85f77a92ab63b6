//! The nodes of one etcd cluster and how a request finds one that answers: retry budget, node after node, authentication, the
//! list of nodes, the guard against a node that is behind (spec/dcs.md §4.3, §5.2, §5.3).
//!
//! It never repeats a request that may have been carried out unless the caller says that repeating is harmless, and it knows
//! nothing of keys.

use std::error::Error as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use etcd_client::{
    Client, ConnectOptions, DeleteResponse, Error, GetResponse, LeaseGrantResponse,
    MemberListResponse, PutResponse, ResponseHeader, TxnResponse,
};
use rand::seq::SliceRandom;
use rustls::ClientConfig;
use tokio::sync::Notify;
use tonic::Code;
use tonic::codegen::http::Uri;

use super::transport::{self, Patience};
use super::unpoisoned;
use crate::clock;
use crate::dcs::etcd_hosts::srv::{self, Srv};
use crate::dcs::{DcsError, Timings};
use crate::types::Moment;

/// Why there is no answer, or only a negative one.
#[derive(Debug)]
pub(super) enum Failure {
    /// No node answered in time, and none can have carried it out.
    Unreachable(DcsError),
    /// No answer that tells; it may have been carried out.
    Ambiguous(DcsError),
    /// The lease named in the request does not exist.
    LeaseGone,
    /// The store rejects the request itself.
    Rejected(String),
}

impl Failure {
    /// For callers to whom every failure is "the store could not answer".
    pub(super) fn into_error(self) -> DcsError {
        match self {
            Failure::Unreachable(error) | Failure::Ambiguous(error) => error,
            Failure::LeaseGone => error("", "the lease does not exist"),
            Failure::Rejected(detail) => error("", &detail),
        }
    }
}

/// What may happen to a request besides being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A linearizable read: repeatable, and its answer must not be older than what was known when it was sent.
    Read,
    /// Repeating it has no effect beyond the first time.
    Repeatable,
    /// Must not be repeated once it may have arrived.
    Once,
}

/// Where an answer stands in the history of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stamp {
    pub(super) cluster: u64,
    pub(super) term: u64,
    pub(super) revision: i64,
}

impl From<&ResponseHeader> for Stamp {
    fn from(header: &ResponseHeader) -> Self {
        Stamp {
            cluster: header.cluster_id(),
            term: header.raft_term(),
            revision: header.revision(),
        }
    }
}

/// Answers that say where they stand.
pub(super) trait Answer {
    fn stamp(&self) -> Option<Stamp>;
}

macro_rules! answers {
    ($($response:ty),*) => {
        $(impl Answer for $response {
            fn stamp(&self) -> Option<Stamp> {
                self.header().map(Stamp::from)
            }
        })*
    };
}
answers!(
    GetResponse,
    PutResponse,
    DeleteResponse,
    TxnResponse,
    LeaseGrantResponse,
    MemberListResponse
);

impl Answer for () {
    fn stamp(&self) -> Option<Stamp> {
        None
    }
}

/// One node and the connection to it, if one was needed yet.
struct Node {
    url: String,
    connection: Mutex<Option<Connection>>,
}

#[derive(Clone)]
struct Connection {
    client: Client,
    /// Whether the token of the connection, if it needs one, is thought to be good.
    authenticated: bool,
}

struct Nodes {
    list: Vec<Arc<Node>>,
    current: usize,
}

/// How one attempt at one node went wrong.
enum Attempt {
    /// It cannot have been carried out; another node may do better.
    NotCarriedOut(String),
    /// It may have been carried out.
    Ambiguous(String),
    /// The token is missing, too old or insufficient.
    Unauthenticated(String),
    /// The answer is older than what was known before.
    Stale,
    LeaseGone,
    Rejected(String),
}

/// The nodes of one etcd cluster.
pub(super) struct Pool {
    configured: Vec<String>,
    /// Where to look for hosts instead.
    srv: Option<Srv>,
    discovers: bool,
    tls: Arc<ClientConfig>,
    credentials: Mutex<Option<(String, String)>>,
    nodes: Mutex<Nodes>,
    timings: Mutex<Timings>,
    /// The newest place in history that any answer has shown.
    seen: Mutex<Stamp>,
    /// Counts how often history has started anew (another cluster, or one restored from a backup).
    epoch: AtomicU64,
    /// Told when a node failed a request.
    moved_on: Notify,
}

/// Stands for a node while none is known.
const NO_NODE: &str = "(no service record found)";

/// The fewest seconds that one attempt gets.
const LEAST_SHARE: Duration = Duration::from_secs(1);

impl Pool {
    pub(super) fn new(
        urls: Vec<String>,
        srv: Option<Srv>,
        discovers: bool,
        tls: Arc<ClientConfig>,
        credentials: Option<(String, String)>,
        timings: Timings,
    ) -> Self {
        // Where DNS is to be asked first, the first call does.
        let list = match srv {
            Some(_) => Vec::new(),
            None => urls.iter().map(|url| Node::new(url)).collect(),
        };
        Pool {
            configured: urls,
            srv,
            discovers,
            tls,
            credentials: Mutex::new(credentials),
            nodes: Mutex::new(Nodes { list, current: 0 }),
            timings: Mutex::new(timings),
            seen: Mutex::new(Stamp::default()),
            epoch: AtomicU64::new(0),
            moved_on: Notify::new(),
        }
    }

    pub(super) fn timings(&self) -> Timings {
        *unpoisoned(&self.timings)
    }

    pub(super) fn set_timings(&self, timings: Timings) {
        *unpoisoned(&self.timings) = timings;
    }

    pub(super) fn set_credentials(&self, credentials: Option<(String, String)>) {
        *unpoisoned(&self.credentials) = credentials;
        for node in &unpoisoned(&self.nodes).list {
            node.forget_token();
        }
    }

    /// When a call that begins now must have ended.
    pub(super) fn deadline(&self) -> Moment {
        clock::now() + self.timings().retry_timeout
    }

    /// The newest place in history that any answer has shown.
    pub(super) fn seen(&self) -> Stamp {
        *unpoisoned(&self.seen)
    }

    /// Changes when the history of the store has started anew, so that revisions cannot be compared across it.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Sends `request` until it is answered, must not be repeated, or `deadline` has come.
    pub(super) async fn call<T, F>(
        &self,
        deadline: Moment,
        kind: Kind,
        request: impl Fn(Client) -> F + Send + Sync,
    ) -> Result<T, Failure>
    where
        T: Answer,
        F: Future<Output = Result<T, Error>> + Send,
    {
        let mut failures = 0_usize;
        let mut stale = 0_usize;
        let mut logins = 0;
        let mut pause = Duration::from_millis(100);
        let mut last = error(&self.current().url, "no time left to ask");
        if self.known_nodes() == 0 {
            self.look_up(deadline).await;
            if self.known_nodes() == 0 {
                self.all_failed();
            }
        }
        loop {
            let (node, nodes) = self.next_node();
            let remaining = clock::now().until(deadline);
            if remaining.is_zero() {
                return Err(Failure::Unreachable(last));
            }
            let before = (kind == Kind::Read && stale < nodes).then(|| self.seen());
            let attempt = self.attempt(&node, self.share(nodes).min(remaining), before, &request);
            match attempt.await {
                Ok(answer) => {
                    if let Some(stamp) = answer.stamp() {
                        self.note(stamp, stale >= nodes);
                    }
                    return Ok(answer);
                }
                Err(Attempt::LeaseGone) => return Err(Failure::LeaseGone),
                Err(Attempt::Rejected(detail)) => {
                    return Err(Failure::Rejected(format!("{}: {detail}", node.url)));
                }
                Err(Attempt::Unauthenticated(detail)) => {
                    logins += 1;
                    node.forget_token();
                    if logins > 2 || unpoisoned(&self.credentials).is_none() {
                        return Err(Failure::Rejected(format!("{}: {detail}", node.url)));
                    }
                    continue;
                }
                Err(Attempt::Ambiguous(detail)) => {
                    last = error(&node.url, &detail);
                    if kind == Kind::Once {
                        self.leave(&node);
                        return Err(Failure::Ambiguous(last));
                    }
                }
                Err(Attempt::NotCarriedOut(detail)) => last = error(&node.url, &detail),
                Err(Attempt::Stale) => {
                    stale += 1;
                    last = error(&node.url, "its answer is older than one seen before");
                }
            }
            self.leave(&node);
            failures += 1;
            if failures.is_multiple_of(nodes.max(1)) {
                self.all_failed();
                self.look_up(deadline).await;
                let jitter = pause.mul_f64(rand::random::<f64>() / 2.0);
                if clock::now() + pause + jitter >= deadline {
                    return Err(Failure::Unreachable(last));
                }
                tokio::time::sleep(pause + jitter).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }

    async fn attempt<T, F>(
        &self,
        node: &Arc<Node>,
        share: Duration,
        before: Option<Stamp>,
        request: &(impl Fn(Client) -> F + Send + Sync),
    ) -> Result<T, Attempt>
    where
        T: Answer,
        F: Future<Output = Result<T, Error>> + Send,
    {
        let deadline = clock::now() + share;
        let ready = tokio::time::timeout(share, self.connected(node));
        let client = ready.await.unwrap_or_else(|_| {
            node.disconnect();
            Err(Attempt::NotCarriedOut("no login in time".to_owned()))
        })?;
        let left = clock::now().until(deadline);
        match tokio::time::timeout(left, request(client)).await {
            Ok(Ok(answer)) => match (answer.stamp(), before) {
                (Some(stamp), Some(before)) if is_behind(stamp, before) => Err(Attempt::Stale),
                _ => Ok(answer),
            },
            Ok(Err(error)) => Err(classify(&error)),
            Err(_) => {
                // Whatever swallowed this request would swallow the next one on the same connection.
                node.disconnect();
                Err(Attempt::Ambiguous(format!("no answer within {left:.1?}")))
            }
        }
    }

    /// A client of the current node for a long-lived stream.
    pub(super) async fn stream_client(&self) -> Result<(Client, String), Failure> {
        let node = self.current();
        let share = self.share(1);
        let connected = tokio::time::timeout(share, self.connected(&node)).await;
        match connected {
            Ok(Ok(client)) => Ok((client, node.url.clone())),
            Ok(Err(
                Attempt::NotCarriedOut(detail)
                | Attempt::Ambiguous(detail)
                | Attempt::Unauthenticated(detail)
                | Attempt::Rejected(detail),
            )) => Err(Failure::Unreachable(error(&node.url, &detail))),
            Ok(Err(Attempt::Stale | Attempt::LeaseGone)) | Err(_) => Err(Failure::Unreachable(
                error(&node.url, "no connection in time"),
            )),
        }
    }

    /// The node's client, with a token if it needs one.
    async fn connected(&self, node: &Arc<Node>) -> Result<Client, Attempt> {
        let existing = unpoisoned(&node.connection).clone();
        let mut connection = match existing {
            Some(connection) => connection,
            None => Connection {
                client: self.client(&node.url).await?,
                authenticated: false,
            },
        };
        let credentials = unpoisoned(&self.credentials).clone();
        if !connection.authenticated
            && let Some((user, password)) = credentials
        {
            match connection.client.update_user(Some((user, password))).await {
                Ok(()) => {}
                Err(error) if message(&error).contains("authentication is not enabled") => {}
                Err(error) => {
                    // A login changes nothing, so nothing has been carried out yet.
                    return Err(match classify(&error) {
                        Attempt::Ambiguous(detail) => Attempt::NotCarriedOut(detail),
                        other => other,
                    });
                }
            }
        }
        connection.authenticated = true;
        let client = connection.client.clone();
        *unpoisoned(&node.connection) = Some(connection);
        Ok(client)
    }

    async fn client(&self, url: &str) -> Result<Client, Attempt> {
        let timings = self.timings();
        let share = self.share(unpoisoned(&self.nodes).list.len());
        let patience = Patience {
            connect: (share / 2).max(Duration::from_millis(500)),
            unacknowledged: timings.ttl,
        };
        let unusable = |detail: String| Attempt::Rejected(detail);
        let uri: Uri = url
            .parse()
            .map_err(|e| unusable(format!("not a URL: {e}")))?;
        let channel = transport::channel(&uri, Some(&self.tls), patience)
            .map_err(|e| unusable(format!("{e:#}")))?;
        // A node without a leader must say so instead of serving what may be old.
        let options = ConnectOptions::new().with_require_leader(true);
        Client::from_channel(etcd_client::Channel::Tonic(channel), Some(options))
            .await
            .map_err(|e| classify(&e))
    }

    /// Keeps the list of nodes right: asks at the start, when a request had to go to another node, and once in a while.
    /// Ends at once behind proxies.
    pub(super) async fn keep_discovering(&self) {
        if !self.discovers {
            return;
        }
        loop {
            let timings = self.timings();
            let next = match self.discover(self.deadline()).await {
                Ok(true) => timings.ttl * 10,
                Ok(false) => timings.retry_timeout,
                Err(failure) => {
                    let error = failure.into_error();
                    tracing::debug!(%error, "the nodes of the etcd cluster are not known");
                    timings.retry_timeout
                }
            };
            let _ = tokio::time::timeout(next, self.moved_on.notified()).await;
            // Failures come in bursts.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Asks for the nodes of the cluster and uses them from now on. `false`: some of them have not said yet where they are.
    async fn discover(&self, deadline: Moment) -> Result<bool, Failure> {
        let members = self
            .call(deadline, Kind::Repeatable, |client| async move {
                client.cluster_client().member_list().await
            })
            .await?;
        let mut urls: Vec<String> = members
            .members()
            .iter()
            .flat_map(|member| member.client_urls())
            .filter(|url| url.parse::<Uri>().is_ok_and(|uri| uri.host().is_some()))
            .map(|url| url.trim_end_matches('/').to_owned())
            .collect();
        let complete = members
            .members()
            .iter()
            .all(|member| !member.client_urls().is_empty());
        if urls.is_empty() {
            return Ok(false);
        }
        urls.sort_unstable();
        urls.dedup();
        urls.shuffle(&mut rand::rng());
        let mut nodes = unpoisoned(&self.nodes);
        let current = nodes.list.get(nodes.current).map(|node| node.url.clone());
        // The node that has just answered stays first, even if the cluster calls it by another name.
        if let Some(current) = current {
            urls.retain(|url| *url != current);
            urls.insert(0, current);
        }
        let known = std::mem::take(&mut nodes.list);
        nodes.list = urls
            .iter()
            .map(|url| {
                let same = known.iter().find(|node| node.url == *url);
                same.map_or_else(|| Node::new(url), Arc::clone)
            })
            .collect();
        nodes.current = 0;
        Ok(complete)
    }

    /// How long one attempt may take: several per node with few nodes, one with many (spec/dcs.md §5.2).
    fn share(&self, nodes: usize) -> Duration {
        let attempts = match nodes {
            0 | 1 => 3,
            2 => 4,
            many => u32::try_from(many).unwrap_or(u32::MAX),
        };
        (self.timings().retry_timeout / attempts).max(LEAST_SHARE)
    }

    pub(super) fn known_nodes(&self) -> usize {
        unpoisoned(&self.nodes).list.len()
    }

    fn current(&self) -> Arc<Node> {
        self.next_node().0
    }

    fn next_node(&self) -> (Arc<Node>, usize) {
        let nodes = unpoisoned(&self.nodes);
        let count = nodes.list.len();
        let node = nodes.list.get(nodes.current % count.max(1)).map(Arc::clone);
        // DNS has not named any node yet. The placeholder is no URL, so that nothing is sent and the error says why.
        (node.unwrap_or_else(|| Node::new(NO_NODE)), count)
    }

    /// Moves on from a node that failed, unless somebody else already has.
    fn leave(&self, failed: &Arc<Node>) {
        let mut nodes = unpoisoned(&self.nodes);
        let count = nodes.list.len().max(1);
        if nodes
            .list
            .get(nodes.current % count)
            .is_some_and(|node| Arc::ptr_eq(node, failed))
        {
            nodes.current = (nodes.current + 1) % count;
            self.moved_on.notify_one();
        }
    }

    /// After a round without success the configured hosts count again: the list may be of a cluster that has moved.
    fn all_failed(&self) {
        let mut nodes = unpoisoned(&self.nodes);
        for url in &self.configured {
            if !nodes.list.iter().any(|node| node.url == *url) {
                nodes.list.push(Node::new(url));
            }
        }
    }

    /// Adds what DNS knows, where DNS is what is configured.
    async fn look_up(&self, deadline: Moment) {
        let Some(srv) = &self.srv else {
            return;
        };
        let left = clock::now().until(deadline);
        let Ok(urls) = tokio::time::timeout(left, srv::urls(srv)).await else {
            return;
        };
        let mut nodes = unpoisoned(&self.nodes);
        for url in &urls {
            if !nodes.list.iter().any(|node| node.url == *url) {
                nodes.list.push(Node::new(url));
            }
        }
    }

    fn note(&self, stamp: Stamp, start_over: bool) {
        let mut seen = unpoisoned(&self.seen);
        if start_over || seen.cluster != stamp.cluster {
            if seen.cluster != 0 {
                tracing::warn!(
                    "the etcd cluster has been replaced or restored: its history starts anew"
                );
            }
            *seen = stamp;
            self.epoch.fetch_add(1, Ordering::Relaxed);
        } else {
            seen.term = seen.term.max(stamp.term);
            seen.revision = seen.revision.max(stamp.revision);
        }
    }
}

impl Node {
    fn new(url: &str) -> Arc<Self> {
        Arc::new(Node {
            url: url.to_owned(),
            connection: Mutex::new(None),
        })
    }

    fn disconnect(&self) {
        *unpoisoned(&self.connection) = None;
    }

    fn forget_token(&self) {
        if let Some(connection) = unpoisoned(&self.connection).as_mut() {
            connection.authenticated = false;
        }
    }
}

fn is_behind(answer: Stamp, before: Stamp) -> bool {
    answer.cluster == before.cluster
        && (answer.term < before.term || answer.revision < before.revision)
}

pub(super) fn error(url: &str, detail: &str) -> DcsError {
    DcsError {
        store: format!("etcd3 {url}").trim_end().to_owned(),
        detail: detail.to_owned(),
    }
}

fn message(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    }
}

/// The message and, for transport errors, the innermost reason ("Connection refused"), which is what helps people.
fn detailed(error: &Error) -> String {
    let mut text = message(error);
    let mut source = match error {
        Error::GRpcStatus(status) => status.source(),
        Error::TransportError(transport) => transport.source(),
        _ => None,
    };
    let mut innermost = None;
    while let Some(cause) = source {
        innermost = Some(cause.to_string());
        source = cause.source();
    }
    if let Some(reason) = innermost
        && !text.contains(&reason)
    {
        text = format!("{text}: {reason}");
    }
    text
}

/// Whether the request never left: the connection could not be made.
fn never_sent(error: &Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = match error {
        Error::GRpcStatus(status) => Some(status),
        Error::TransportError(transport) => Some(transport),
        _ => None,
    };
    while let Some(cause) = source {
        if cause.is::<tonic::ConnectError>() {
            return true;
        }
        source = cause.source();
    }
    false
}

/// What an error means for the request (spec/dcs.md §5.3, "Errors").
fn classify(error: &Error) -> Attempt {
    let text = detailed(error);
    let says = |phrase: &str| text.contains(phrase);
    if never_sent(error) {
        return Attempt::NotCarriedOut(text);
    }
    if says("lease not found") {
        return Attempt::LeaseGone;
    }
    let status = match error {
        Error::GRpcStatus(status) => status,
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
            return Attempt::Rejected(text);
        }
        _ => return Attempt::Ambiguous(text),
    };
    if says("authentication failed") {
        return Attempt::Rejected(text);
    }
    let login_may_help = says("user name is empty")
        || says("permission denied")
        || says("invalid auth token")
        || says("revision of auth store is old");
    if login_may_help || status.code() == Code::Unauthenticated {
        return Attempt::Unauthenticated(text);
    }
    if says("no leader") || says("not a primary lessor") || says("too many requests") {
        return Attempt::NotCarriedOut(text);
    }
    match status.code() {
        Code::FailedPrecondition => Attempt::NotCarriedOut(text),
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::OutOfRange
        | Code::ResourceExhausted
        | Code::Unimplemented => Attempt::Rejected(text),
        _ => Attempt::Ambiguous(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: Code, text: &str) -> Error {
        Error::GRpcStatus(tonic::Status::new(code, text))
    }

    #[test]
    fn only_proof_counts_as_not_carried_out() {
        let refused = Error::GRpcStatus(tonic::Status::from_error(Box::new(tonic::ConnectError(
            "connection refused".into(),
        ))));
        assert!(matches!(classify(&refused), Attempt::NotCarriedOut(_)));
        for text in [
            "etcdserver: request timed out",
            "etcdserver: request timed out, possibly due to previous leader failure",
            "etcdserver: leader changed",
            "connection reset",
        ] {
            assert!(
                matches!(
                    classify(&status(Code::Unavailable, text)),
                    Attempt::Ambiguous(_)
                ),
                "{text}"
            );
        }
        let no_leader = status(Code::Unavailable, "etcdserver: no leader");
        assert!(matches!(classify(&no_leader), Attempt::NotCarriedOut(_)));
    }

    #[test]
    fn answers_about_leases_and_logins_are_told_apart() {
        let gone = status(Code::NotFound, "etcdserver: requested lease not found");
        assert!(matches!(classify(&gone), Attempt::LeaseGone));
        let old = status(
            Code::InvalidArgument,
            "etcdserver: revision of auth store is old",
        );
        assert!(matches!(classify(&old), Attempt::Unauthenticated(_)));
        let wrong = "etcdserver: authentication failed, invalid user ID or password";
        assert!(matches!(
            classify(&status(Code::InvalidArgument, wrong)),
            Attempt::Rejected(_)
        ));
    }

    #[test]
    fn only_the_same_cluster_can_be_behind() {
        let before = Stamp {
            cluster: 1,
            term: 5,
            revision: 10,
        };
        assert!(is_behind(
            Stamp {
                revision: 9,
                ..before
            },
            before
        ));
        assert!(is_behind(Stamp { term: 4, ..before }, before));
        assert!(!is_behind(before, before));
        assert!(!is_behind(
            Stamp {
                cluster: 2,
                term: 1,
                revision: 1
            },
            before
        ));
    }
}
