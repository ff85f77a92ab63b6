//! The store, in our own terms: one snapshot, one lease, a handful of documents. A backend is a file beside this one.
//!
//! Every write has three outcomes: done, refused (the store answered no), unknown (it may have happened).
//! Losing a race is a value, never an error. A backend never retries a write whose outcome is unknown; it reads back.
//!
//! Sessions: everything ephemeral of one node hangs on one session where the store has sessions. The session is renewed
//! only by [`Dcs::renew`] and [`Dcs::put_member`], never by a background task: a hung loop must lose its lock (spec/dcs.md §4.4).

#[cfg(feature = "consul")]
pub mod consul;
#[cfg(any(feature = "consul", feature = "etcd", feature = "zookeeper"))]
mod copy;
#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(feature = "etcd3")]
pub mod etcd3;
#[cfg(any(feature = "etcd", feature = "etcd3"))]
mod etcd_hosts;
#[cfg(any(
    feature = "consul",
    feature = "etcd",
    feature = "kubernetes",
    feature = "zookeeper"
))]
mod http;
pub mod keys;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod memory;
pub mod news;
mod open;
#[cfg(feature = "raft")]
pub mod raft;
#[cfg(any(
    feature = "consul",
    feature = "etcd",
    feature = "etcd3",
    feature = "kubernetes",
    feature = "zookeeper"
))]
mod tls;
#[cfg(feature = "zookeeper")]
pub mod zookeeper;

pub use open::{open, open_client};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::cluster::{Cluster, Leader, Member};
use crate::types::{MemberName, Revision};

/// The store could not answer. It says nothing about who leads.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{store}: {detail}")]
pub struct DcsError {
    /// Which store, with its address where one is known ("etcd3 http://10.0.0.1:2379").
    pub store: String,
    /// What happened, for people.
    pub detail: String,
}

/// The outcome of a write.
#[derive(Debug)]
pub enum Write<T = ()> {
    /// It happened.
    Done(T),
    /// The store answered: the precondition does not hold, or it is forbidden. Nothing was changed.
    Refused(Refusal),
    /// No answer in time, or an answer that does not tell: it may have happened. Read back before acting on it.
    Unknown(DcsError),
}

impl<T> Write<T> {
    /// The same outcome with another payload.
    pub(crate) fn map<U>(self, payload: impl FnOnce(T) -> U) -> Write<U> {
        match self {
            Write::Done(value) => Write::Done(payload(value)),
            Write::Refused(refusal) => Write::Refused(refusal),
            Write::Unknown(error) => Write::Unknown(error),
        }
    }
}

/// Why a write was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The key exists, or has another revision, owner or session than expected.
    Precondition,
    /// The store rejects the request itself (authentication, authorisation, malformed); the text is for the log.
    Rejected(String),
}

/// The documents that live as long as the cluster (spec/dcs.md §1.2); `members/*` and `leader` have calls of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Document {
    /// System identifier, or empty during bootstrap.
    Initialize,
    /// Dynamic configuration.
    Config,
    /// What the leader publishes.
    Status,
    /// Synchronous state.
    Sync,
    /// Switchover or failover request.
    Failover,
    /// Timeline history.
    History,
    /// Failsafe topology.
    Failsafe,
    /// Legacy position for members older than 2.1.0 (`optime/leader`).
    LegacyOptime,
}

impl Document {
    /// The relative key.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Document::Initialize => "initialize",
            Document::Config => "config",
            Document::Status => "status",
            Document::Sync => "sync",
            Document::Failover => "failover",
            Document::History => "history",
            Document::Failsafe => "failsafe",
            Document::LegacyOptime => "optime/leader",
        }
    }
}

/// The precondition of a document write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Unconditional; only where the specification says so.
    Anything,
    /// The document must not exist.
    Absent,
    /// The document must have this revision.
    At(Revision),
}

/// How fresh a snapshot must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// The watch-fed snapshot is good enough as long as the watch is known to be alive.
    Recent,
    /// As new as the last write anywhere (linearizable read).
    Latest,
}

/// The right to lead, as the store granted it. Only a backend makes one; it cannot be copied: renewing borrows it, releasing
/// consumes it, promotion requires it.
#[derive(Debug)]
pub struct Lease {
    /// The backend's proof of ownership (session, revision); opaque to everyone else.
    pub(crate) token: LeaseToken,
}

/// What a backend needs to prove ownership. `Revision`-only and session stores fill what they have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct LeaseToken {
    pub(crate) session: Option<String>,
    pub(crate) revision: Option<Revision>,
}

/// One connection to the store on behalf of one member of one cluster.
///
/// Every call returns within the `retry_timeout` that was last set (plus scheduling), success or not.
/// Durations: `ttl` whole seconds.
#[async_trait]
pub trait Dcs: Send + Sync {
    /// "etcd3", "raft", …: the section's name in the configuration.
    fn store(&self) -> &'static str;

    /// One consistent snapshot.
    async fn load(&self, freshness: Freshness) -> Result<Cluster, DcsError>;

    /// Every Citus group below the base path, whichever group this node is of, as new as the last write anywhere. Empty where there
    /// are no groups.
    async fn load_groups(&self) -> Result<BTreeMap<u32, Cluster>, DcsError>;

    /// A counter that changes whenever something relevant below the base path may have changed. Level-triggered: the
    /// receiver reloads; a missed intermediate value is no loss. A backend also bumps it when its watch had to restart.
    /// What counts as relevant is [`news::is_news`]; what every node writes in every turn does not.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Creates the leader key with my name on my session, only if absent.
    async fn acquire(&self) -> Write<Lease>;

    /// The lease for a leader key that the snapshot shows as mine: after an agent restart, or after a hand-over to me.
    /// Re-binds the key to my session where the store has sessions. Refused when it is not mine.
    async fn adopt(&self, leader: &Leader) -> Write<Lease>;

    /// Makes me leader right after bootstrap, over any stale key; create-only where the specification says so.
    async fn take(&self) -> Write<Lease>;

    /// Proves ownership and extends it for another `ttl`. `Refused` = definitely not mine any more.
    async fn renew(&self, lease: &Lease) -> Write;

    /// Deletes the leader key if it is mine.
    async fn release(&self, lease: Lease) -> Write;

    /// Puts the candidate's name into the leader key in one transaction, on the candidate's session (spec/ha.md §23.4).
    /// Refused where the store cannot or the candidate's session is gone; then the lease is still ours, as returned.
    async fn hand_over(&self, lease: Lease, candidate: &Member) -> (Write, Option<Lease>);

    /// Writes my member document on my session, creating or re-binding it; skips the write when nothing changed and the
    /// session is alive. Renews the session.
    async fn put_member(&self, value: &str) -> Write;

    /// Deletes my member document (clean shutdown of a node that is leaving; not part of the normal stop).
    async fn delete_member(&self) -> Write;

    /// Writes one document; returns its new revision.
    async fn put(&self, document: Document, value: &str, expect: Expect) -> Write<Revision>;

    /// Deletes one document.
    async fn delete(&self, document: Document, expect: Expect) -> Write;

    /// Removes the whole cluster from the store (`ctl remove`).
    async fn delete_cluster(&self) -> Write;

    /// New timings; take effect with the next renewal.
    fn set_timings(&self, ttl: Duration, retry_timeout: Duration);

    /// Takes leave before the process ends, after the last write: a store that runs inside this process hands its duties to
    /// the others. Takes three seconds at most; the keys stay as they are.
    async fn leave(&self) {}
}

/// The timings in force of one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timings {
    pub(crate) ttl: Duration,
    pub(crate) retry_timeout: Duration,
}

impl Identity {
    /// Those that a connection starts with.
    pub(crate) fn timings(&self) -> Timings {
        Timings {
            ttl: self.ttl,
            retry_timeout: self.retry_timeout,
        }
    }
}

/// The shared handle the agent, API and ctl hold.
pub type Store = Arc<dyn Dcs>;

/// Who and where this node is in the store.
#[derive(Debug, Clone)]
pub struct Identity {
    /// My name; `None` for ctl, which takes no session.
    pub name: Option<MemberName>,
    /// `/namespace/scope`, runs of slashes collapsed, no trailing slash (spec/dcs.md §1.1).
    pub base: String,
    /// Citus group, if any.
    pub group: Option<u32>,
    /// Initial ttl.
    pub ttl: Duration,
    /// Initial retry_timeout.
    pub retry_timeout: Duration,
}
