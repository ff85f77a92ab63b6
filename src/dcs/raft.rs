//! The embedded store: a replicated log among the agents themselves (and witnesses), on openraft. No server besides them.
//!
//! Every member that has `raft.self_addr` is a Raft node with a directory of its own; `ctl` is a client of one. Wherever a call
//! arrives it is passed on to the Raft leader, and reads are linearizable unless a recent copy is good enough. Each ephemeral key
//! has its own time to live (spec/dcs.md §4.4): every node measures it for itself, the Raft leader proposes what is over, so that
//! a new one goes on where the last one was. Patroni's own Raft protocol is not spoken
//! (spec/dcs.md §5.8): members of both kinds cannot share one cluster.
//!
//! The leader key carries its holder's name and a random token of the process, so that two processes with one name do not share
//! a lock. Nothing is renewed by itself: a hung loop loses its lock.

mod client;
mod disk;
mod node;
mod peer;
mod state;
#[cfg(test)]
mod tests;
mod transport;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use self::client::Client;
use self::disk::lock;
use self::node::Running;
use self::state::{Action, Change, Command, Guard, Outcome, Record};
use super::keys::{self, Keys};
use super::{
    Dcs, DcsError, Document, Expect, Freshness, Identity, Lease, LeaseToken, Refusal, Store, Write,
};
use crate::cluster::wire::{self, Entry};
use crate::cluster::{Cluster, Leader, Member};
use crate::config::{self, Secret};
use crate::types::{Moment, Revision};

/// No document may be larger; Raft carries each one in memory several times.
const LARGEST_VALUE: usize = 1 << 20;

/// `min_timeout`, `max_timeout`, `append_entries_period` as Patroni's defaults.
const DEFAULT_TIMES: (Duration, Duration, Duration) = (
    Duration::from_millis(400),
    Duration::from_millis(1400),
    Duration::from_millis(100),
);

/// Translates an address before it is dialled; tests put broken networks in between.
#[doc(hidden)]
pub type Detour = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// How a node takes part. Names as in the `raft` section (spec/dcs.md §5.8).
#[derive(Clone)]
pub struct Settings {
    /// Base path of the PostgreSQL cluster (`/namespace/scope`); nodes of another one are refused. Empty for a witness, which
    /// serves any.
    pub cluster: String,
    /// `host:port` of this node as the others reach it.
    pub self_addr: String,
    /// `host:port` to listen on; `None` = `self_addr`.
    pub bind_addr: Option<String>,
    /// The other nodes. Every node is configured with the same set of addresses.
    pub partner_addrs: Vec<String>,
    /// Where the log lives, in a directory `howdah.raft` of its own.
    pub data_dir: PathBuf,
    /// The shared secret.
    pub password: Option<Secret>,
    /// An election begins when the leader has been silent for a time between this …
    pub min_timeout: Duration,
    /// … and this.
    pub max_timeout: Duration,
    /// Limit for connecting and for silence on a connection.
    pub connection_timeout: Duration,
    /// Pause between two heartbeats.
    pub append_entries_period: Duration,
    /// For tests.
    #[doc(hidden)]
    pub detour: Option<Detour>,
}

impl Settings {
    /// The settings of one node, times as Patroni's defaults.
    #[must_use]
    pub fn new(
        cluster: impl Into<String>,
        self_addr: impl Into<String>,
        data_dir: PathBuf,
    ) -> Self {
        Settings {
            cluster: cluster.into(),
            self_addr: self_addr.into(),
            bind_addr: None,
            partner_addrs: Vec::new(),
            data_dir,
            password: None,
            min_timeout: DEFAULT_TIMES.0,
            max_timeout: DEFAULT_TIMES.1,
            connection_timeout: Duration::from_millis(3500),
            append_entries_period: DEFAULT_TIMES.2,
            detour: None,
        }
    }

    /// The settings that the section `raft` asks for; `cluster` is the base path, empty for a witness.
    #[must_use]
    pub fn from_section(section: &config::Raft, cluster: &str) -> Self {
        Settings {
            bind_addr: Some(section.bind_addr.clone()),
            partner_addrs: section.partner_addrs.clone(),
            password: section.password.clone(),
            min_timeout: section.min_timeout,
            max_timeout: section.max_timeout,
            connection_timeout: section.connection_timeout,
            append_entries_period: section.append_entries_period,
            ..Settings::new(cluster, &section.self_addr, section.data_dir.clone())
        }
    }

    /// The interval of heartbeats that Raft is given. It sends them by a clock that ticks at one and a half of it.
    ///
    /// With all times at their defaults there is no need for Patroni's 0.1 s: elections begin 0.9 s after the last heartbeat
    /// at the earliest, so one each 0.25 s leaves room for two lost ones, and an idle cluster does less. Chosen times are kept.
    fn heartbeat(&self) -> Duration {
        let times = (
            self.min_timeout,
            self.max_timeout,
            self.append_entries_period,
        );
        if times == DEFAULT_TIMES {
            Duration::from_millis(166)
        } else {
            self.append_entries_period
        }
    }

    /// The other nodes, sorted; one's own address in the list does no harm.
    fn partners(&self) -> Vec<String> {
        let mut partners: Vec<String> = self
            .partner_addrs
            .iter()
            .map(|address| address.trim().to_owned())
            .filter(|address| !address.is_empty() && *address != self.self_addr)
            .collect();
        partners.sort();
        partners.dedup();
        partners
    }

    /// All nodes, sorted.
    fn configured(&self) -> Vec<String> {
        let mut all = self.partners();
        all.push(self.self_addr.clone());
        all.sort();
        all
    }

    /// Refuses times that cannot work together (spec/dcs.md §5.8).
    fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.append_entries_period >= Duration::from_millis(10),
            "raft.append_entries_period must be at least 0.01"
        );
        anyhow::ensure!(
            self.min_timeout > self.append_entries_period * 3,
            "raft.min_timeout must be more than three times raft.append_entries_period"
        );
        anyhow::ensure!(
            self.max_timeout > self.min_timeout,
            "raft.max_timeout must be more than raft.min_timeout"
        );
        anyhow::ensure!(
            self.connection_timeout >= self.max_timeout,
            "raft.connection_timeout must not be less than raft.max_timeout"
        );
        Ok(())
    }
}

/// A running Raft node. It stops with the last clone and the last store on it.
#[derive(Clone)]
pub struct RaftNode(Arc<Running>);

impl RaftNode {
    /// Starts a node; it finds its cluster in the background.
    ///
    /// # Errors
    /// Contradictory settings, a directory that is not usable or in use, an address that cannot be bound.
    pub async fn start(settings: Settings) -> anyhow::Result<RaftNode> {
        let running = node::start(settings, crate::clock::now).await?;
        Ok(RaftNode(Arc::new(running)))
    }

    /// The store as one member sees it from this node.
    #[must_use]
    pub fn store(&self, identity: &Identity) -> Store {
        let address = &self.0.node.settings().self_addr;
        Arc::new(RaftStore::new(
            Access::Member(Arc::clone(&self.0)),
            identity,
            format!("raft {address}"),
        ))
    }
}

/// Starts this member's Raft node and returns the store on it. Returns before a cluster is found: calls wait for it within
/// their time.
///
/// # Errors
/// As [`RaftNode::start`].
pub async fn open(settings: Settings, identity: &Identity) -> anyhow::Result<Store> {
    Ok(RaftNode::start(settings).await?.store(identity))
}

/// The store as seen by somebody who is no Raft node (`ctl`). Connects at the first call, to whichever address answers.
#[must_use]
pub fn client(addresses: Vec<String>, password: Option<Secret>, identity: &Identity) -> Store {
    let name = format!("raft {}", addresses.join(","));
    let client = Client::new(addresses, password, identity.base.clone());
    Arc::new(RaftStore::new(Access::Client(client), identity, name))
}

/// A voter without PostgreSQL: runs a Raft node until `shutdown` resolves.
///
/// # Errors
/// As [`RaftNode::start`].
pub async fn witness(settings: Settings, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let address = settings.self_addr.clone();
    let node = RaftNode::start(settings).await?;
    tracing::info!("raft: witness {address} is running");
    shutdown.await;
    tracing::info!("raft: witness {address} stops");
    node.0.node.depart().await;
    drop(node);
    Ok(())
}

/// How a store reaches the nodes.
enum Access {
    Member(Arc<Running>),
    Client(Client),
}

impl Access {
    fn command(&self, action: Action) -> Command {
        match self {
            Access::Member(running) => running.node.command(action),
            Access::Client(client) => client.command(action),
        }
    }

    async fn submit(&self, command: &Command, deadline: Moment) -> Result<Outcome, String> {
        match self {
            Access::Member(running) => {
                let outcome = running.node.submit(command, deadline).await?;
                if let Outcome::Done(index) = outcome {
                    // What one has written one sees, on a follower too.
                    let left = crate::clock::now().until(deadline);
                    let mut applied = running.node.shared().index.subscribe();
                    let _ = tokio::time::timeout(left, applied.wait_for(|at| *at >= index)).await;
                }
                Ok(outcome)
            }
            Access::Client(client) => client.submit(command, deadline).await,
        }
    }

    async fn records(
        &self,
        prefix: &str,
        freshness: Freshness,
        deadline: Moment,
    ) -> Result<Vec<(String, Record)>, String> {
        match self {
            Access::Member(running) => {
                if freshness == Freshness::Latest || !running.node.is_recent() {
                    running.node.catch_up(deadline).await?;
                }
                Ok(running.node.records(prefix))
            }
            Access::Client(client) => client.records(prefix, deadline).await,
        }
    }
}

/// The trait, in terms of commands.
struct RaftStore {
    access: Access,
    keys: Keys,
    name: Option<crate::types::MemberName>,
    /// Random per process: whoever has it owns the keys of this store.
    owner: String,
    timings: Mutex<(Duration, Duration)>,
    /// For messages.
    store: String,
}

/// A refusal for callers without a name (ctl), who own nothing.
fn nameless<T>() -> Write<T> {
    Write::Refused(Refusal::Rejected(
        "this connection has no member name, so it cannot own a key".to_owned(),
    ))
}

impl RaftStore {
    fn new(access: Access, identity: &Identity, store: String) -> Self {
        RaftStore {
            access,
            keys: Keys::of(identity),
            name: identity.name.clone(),
            owner: format!("{:016x}", rand::random::<u64>()),
            timings: Mutex::new((identity.ttl, identity.retry_timeout)),
            store,
        }
    }

    fn ttl(&self) -> u64 {
        u64::try_from(lock(&self.timings).0.as_millis()).unwrap_or(u64::MAX)
    }

    fn deadline(&self) -> Moment {
        crate::clock::now() + lock(&self.timings).1
    }

    fn error(&self, detail: String) -> DcsError {
        DcsError {
            store: self.store.clone(),
            detail,
        }
    }

    async fn records(
        &self,
        keys: &Keys,
        freshness: Freshness,
    ) -> Result<Vec<(String, Record)>, DcsError> {
        self.access
            .records(keys.prefix(), freshness, self.deadline())
            .await
            .map_err(|detail| self.error(detail))
    }

    async fn write(&self, guards: Vec<Guard>, changes: Vec<Change>) -> Write<Revision> {
        for change in &changes {
            if let Change::Put { key, value, .. } = change
                && value.len() > LARGEST_VALUE
            {
                return Write::Refused(Refusal::Rejected(format!(
                    "{key} has {} bytes; the Raft store takes up to {LARGEST_VALUE}",
                    value.len()
                )));
            }
        }
        let command = self.access.command(Action::Write { guards, changes });
        match self.access.submit(&command, self.deadline()).await {
            Ok(Outcome::Done(index)) => Write::Done(Revision(index)),
            Ok(Outcome::Refused) => Write::Refused(Refusal::Precondition),
            Err(detail) => Write::Unknown(self.error(detail)),
        }
    }

    fn put_leader(&self, name: &str, owner: &str, renews: bool) -> Change {
        Change::Put {
            key: self.keys.leader(),
            value: name.to_owned(),
            ttl: Some(self.ttl()),
            owner: Some(owner.to_owned()),
            renews,
        }
    }

    /// The leader key is mine, as this lease says.
    fn mine(&self, lease: &Lease) -> Option<Guard> {
        Some(Guard::Holds {
            key: self.keys.leader(),
            value: Some(self.name.as_ref()?.as_str().to_owned()),
            revision: None,
            owner: Some(lease.token.session.clone()?),
        })
    }

    fn lease(&self, revision: Option<Revision>) -> Lease {
        Lease {
            token: LeaseToken {
                session: Some(self.owner.clone()),
                revision,
            },
        }
    }

    fn expected(key: &str, expect: Expect) -> Vec<Guard> {
        match expect {
            Expect::Anything => Vec::new(),
            Expect::Absent => vec![Guard::Absent(key.to_owned())],
            Expect::At(revision) => vec![Guard::Holds {
                key: key.to_owned(),
                value: None,
                revision: Some(revision.0),
                owner: None,
            }],
        }
    }
}

fn entries<'a>(keys: &'a Keys, records: &'a [(String, Record)]) -> impl Iterator<Item = Entry<'a>> {
    records.iter().filter_map(|(key, record)| {
        Some(Entry {
            key: keys.relative(key)?,
            value: &record.value,
            revision: Revision(record.revision),
            session: record.owner.as_deref(),
        })
    })
}

fn forget<T>(write: Write<T>) -> Write {
    match write {
        Write::Done(_) => Write::Done(()),
        Write::Refused(refusal) => Write::Refused(refusal),
        Write::Unknown(error) => Write::Unknown(error),
    }
}

#[async_trait]
impl Dcs for RaftStore {
    fn store(&self) -> &'static str {
        "raft"
    }

    async fn load(&self, freshness: Freshness) -> Result<Cluster, DcsError> {
        let records = self.records(&self.keys, freshness).await?;
        Ok(wire::assemble(entries(&self.keys, &records)))
    }

    async fn load_groups(&self) -> Result<BTreeMap<u32, Cluster>, DcsError> {
        let all = self.keys.of_all_groups();
        let records = self.records(&all, Freshness::Latest).await?;
        Ok(keys::assemble_groups(entries(&all, &records)))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        match &self.access {
            Access::Member(running) => running.node.shared().changes.subscribe(),
            Access::Client(client) => client.changes(),
        }
    }

    async fn acquire(&self) -> Write<Lease> {
        let Some(name) = &self.name else {
            return nameless();
        };
        let absent = vec![Guard::Absent(self.keys.leader())];
        let change = self.put_leader(name.as_str(), &self.owner, false);
        match self.write(absent, vec![change]).await {
            Write::Done(revision) => Write::Done(self.lease(Some(revision))),
            Write::Refused(Refusal::Precondition) => {
                // My own earlier request whose answer was lost is no lost race.
                let mine = vec![Guard::Holds {
                    key: self.keys.leader(),
                    value: Some(name.as_str().to_owned()),
                    revision: None,
                    owner: Some(self.owner.clone()),
                }];
                let renewal = Change::Renew {
                    key: self.keys.leader(),
                    ttl: self.ttl(),
                };
                match self.write(mine, vec![renewal]).await {
                    Write::Done(_) => Write::Done(self.lease(None)),
                    Write::Refused(refusal) => Write::Refused(refusal),
                    Write::Unknown(error) => Write::Unknown(error),
                }
            }
            Write::Refused(refusal) => Write::Refused(refusal),
            Write::Unknown(error) => Write::Unknown(error),
        }
    }

    async fn adopt(&self, leader: &Leader) -> Write<Lease> {
        let Some(name) = &self.name else {
            return nameless();
        };
        let mine = vec![Guard::Holds {
            key: self.keys.leader(),
            value: Some(name.as_str().to_owned()),
            revision: Some(leader.revision.0),
            owner: None,
        }];
        let change = self.put_leader(name.as_str(), &self.owner, true);
        match self.write(mine, vec![change]).await {
            Write::Done(revision) => Write::Done(self.lease(Some(revision))),
            Write::Refused(refusal) => Write::Refused(refusal),
            Write::Unknown(error) => Write::Unknown(error),
        }
    }

    async fn take(&self) -> Write<Lease> {
        let Some(name) = &self.name else {
            return nameless();
        };
        let change = self.put_leader(name.as_str(), &self.owner, false);
        match self.write(Vec::new(), vec![change]).await {
            Write::Done(revision) => Write::Done(self.lease(Some(revision))),
            Write::Refused(refusal) => Write::Refused(refusal),
            Write::Unknown(error) => Write::Unknown(error),
        }
    }

    async fn renew(&self, lease: &Lease) -> Write {
        let Some(mine) = self.mine(lease) else {
            return nameless();
        };
        let renewal = Change::Renew {
            key: self.keys.leader(),
            ttl: self.ttl(),
        };
        forget(self.write(vec![mine], vec![renewal]).await)
    }

    async fn release(&self, lease: Lease) -> Write {
        let Some(mine) = self.mine(&lease) else {
            return nameless();
        };
        let change = Change::Delete(self.keys.leader());
        forget(self.write(vec![mine], vec![change]).await)
    }

    async fn hand_over(&self, lease: Lease, candidate: &Member) -> (Write, Option<Lease>) {
        let (Some(mine), Some(session)) = (self.mine(&lease), &candidate.session) else {
            return (Write::Refused(Refusal::Precondition), Some(lease));
        };
        let alive = Guard::Holds {
            key: self.keys.member(&candidate.name),
            value: None,
            revision: None,
            owner: Some(session.clone()),
        };
        let change = self.put_leader(candidate.name.as_str(), session, false);
        match self.write(vec![mine, alive], vec![change]).await {
            Write::Done(_) => (Write::Done(()), None),
            // Unknown: renewing tells whose it is.
            other => (forget(other), Some(lease)),
        }
    }

    async fn put_member(&self, value: &str) -> Write {
        let Some(name) = &self.name else {
            return nameless();
        };
        let change = Change::Put {
            key: self.keys.member(name),
            value: value.to_owned(),
            ttl: Some(self.ttl()),
            owner: Some(self.owner.clone()),
            renews: true,
        };
        forget(self.write(Vec::new(), vec![change]).await)
    }

    async fn delete_member(&self) -> Write {
        let Some(name) = &self.name else {
            return nameless();
        };
        let change = Change::Delete(self.keys.member(name));
        forget(self.write(Vec::new(), vec![change]).await)
    }

    async fn put(&self, document: Document, value: &str, expect: Expect) -> Write<Revision> {
        let key = self.keys.document(document);
        let guards = Self::expected(&key, expect);
        let change = Change::Put {
            key,
            value: value.to_owned(),
            ttl: None,
            owner: None,
            renews: false,
        };
        self.write(guards, vec![change]).await
    }

    async fn delete(&self, document: Document, expect: Expect) -> Write {
        let key = self.keys.document(document);
        let guards = Self::expected(&key, expect);
        forget(self.write(guards, vec![Change::Delete(key)]).await)
    }

    async fn delete_cluster(&self) -> Write {
        let change = Change::DeleteBelow(self.keys.prefix().to_owned());
        forget(self.write(Vec::new(), vec![change]).await)
    }

    fn set_timings(&self, ttl: Duration, retry_timeout: Duration) {
        *lock(&self.timings) = (ttl, retry_timeout);
    }

    async fn leave(&self) {
        if let Access::Member(running) = &self.access {
            running.node.depart().await;
        }
    }
}

/// Somebody else's hands, for the suite that checks every store.
#[doc(hidden)]
pub struct Foreigner(Client);

#[doc(hidden)]
impl Foreigner {
    #[must_use]
    pub fn new(addresses: Vec<String>, password: Option<Secret>) -> Self {
        Foreigner(Client::new(addresses, password, String::new()))
    }

    async fn act(&self, changes: Vec<Change>) -> Result<(), String> {
        let guards = Vec::new();
        let command = self.0.command(Action::Write { guards, changes });
        let deadline = crate::clock::now() + Duration::from_secs(20);
        self.0.submit(&command, deadline).await.map(|_| ())
    }

    /// Writes a key behind everybody's back.
    ///
    /// # Errors
    /// No answer within 20 s.
    pub async fn put(&self, key: &str, value: &str) -> Result<(), String> {
        self.act(vec![Change::Put {
            key: key.to_owned(),
            value: value.to_owned(),
            ttl: None,
            owner: None,
            renews: false,
        }])
        .await
    }

    /// Removes every key with this owner.
    ///
    /// # Errors
    /// No answer within 20 s.
    pub async fn end_session(&self, owner: &str) -> Result<(), String> {
        let deadline = crate::clock::now() + Duration::from_secs(20);
        let records = self.0.records("/", deadline).await?;
        let owned = records
            .into_iter()
            .filter(|(_, record)| record.owner.as_deref() == Some(owner))
            .map(|(key, _)| Change::Delete(key))
            .collect();
        self.act(owned).await
    }
}
