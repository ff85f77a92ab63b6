//! etcd through its old v2 API (spec/dcs.md §5.2): every key has a time to live of its own, there are no sessions.
//!
//! etcd has had this API switched off since 3.4 (`--enable-v2=true` brings it back) and without since 3.6; new clusters want `etcd3`.
//! A key is mine when it holds my name. No client library is used: the only one is no longer kept.

mod pool;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hyper::Method;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::pool::{Failure, Kind, Known, Pool, Told};
use super::copy::{self, Contents, Copy, Stored};
use super::etcd_hosts::address;
use super::etcd_hosts::srv::Srv;
use super::http::encode;
use super::keys::{self, Keys};
use super::tls::{self, Trust};
use super::{
    Dcs, DcsError, Document, Expect, Freshness, Identity, Lease, LeaseToken, Refusal, Timings,
    Write,
};
use crate::clock;
use crate::cluster::{Cluster, Leader, Member};
use crate::types::{MemberName, Moment, Revision};

/// The `etcd` section of the configuration, names and meanings as Patroni has them.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `host`, `host:port`, `[::1]:2379` or whole URLs; from `host`, `hosts`, `url` or `proxy`.
    pub hosts: Vec<String>,
    /// Domain whose service records name the hosts (`srv`, `discovery_srv`, `srv_domain`); tried before `hosts`.
    pub srv: Option<String>,
    /// Suffix of the service's name (`srv_suffix`).
    pub srv_suffix: Option<String>,
    /// `http` (the default when empty) or `https`, for hosts without a scheme.
    pub protocol: String,
    /// User, if etcd has authentication on.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// Turns on the verification of the server.
    pub cacert: Option<PathBuf>,
    /// Client certificate; without `key` a PEM file that holds both.
    pub cert: Option<PathBuf>,
    /// Key of the client certificate.
    pub key: Option<PathBuf>,
    /// Use the configured hosts only, do not ask the cluster for its nodes; `proxy` implies it.
    pub use_proxies: bool,
}

/// Opens the store. Nothing is sent yet: an unreachable store shows with the first call. Needs a running tokio runtime.
///
/// # Errors
/// Settings that can never work: no host, a host that is no address, an unreadable certificate.
pub fn connect(identity: &Identity, settings: &Settings) -> anyhow::Result<Arc<Etcd>> {
    let srv = settings.srv.as_ref().map(|domain| Srv {
        domain: domain.clone(),
        suffix: settings.srv_suffix.clone(),
    });
    let urls = if srv.is_some() && settings.hosts.is_empty() {
        Vec::new()
    } else {
        address::urls(&settings.hosts, &settings.protocol)?
    };
    let trust = settings
        .cacert
        .as_deref()
        .map_or(Trust::Anybody, Trust::Authorities);
    let tls = tls::client(
        trust,
        settings.cert.as_deref(),
        settings.key.as_deref(),
        None,
    )?;
    let credentials = settings.username.clone().zip(settings.password.clone());
    let discovers = !settings.use_proxies;
    let pool = Arc::new(Pool::new(urls, srv, discovers, tls, credentials, identity)?);
    let keys = Keys::of(identity);
    let copy = Arc::new(Copy::new(identity.name.clone()));
    // ctl reads once or twice and always the latest: no watch for it.
    let watching = identity.name.is_some().then(|| {
        let watcher = Watcher {
            pool: Arc::clone(&pool),
            copy: Arc::clone(&copy),
            keys: keys.clone(),
        };
        tokio::spawn(async move { tokio::join!(watcher.run(), watcher.pool.keep_discovering()).0 })
    });
    Ok(Arc::new(Etcd {
        keys,
        name: identity.name.clone(),
        pool,
        copy,
        watching,
    }))
}

/// One node's connection to etcd.
pub struct Etcd {
    keys: Keys,
    name: Option<MemberName>,
    pool: Arc<Pool>,
    copy: Arc<Copy>,
    watching: Option<JoinHandle<()>>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(watching) = &self.watching {
            watching.abort();
        }
    }
}

/// What is left for the steps of one call (spec/dcs.md §4.3: a later step wants at least half a second).
const LEAST_STEP: Duration = Duration::from_millis(500);

/// The outcome of a write that ended in `failure`, when nothing can be learned by reading back.
fn failed<T>(failure: Failure) -> Write<T> {
    match failure {
        Failure::Unreachable(error) | Failure::Ambiguous(error) => Write::Unknown(error),
        Failure::Rejected(detail) => Write::Refused(Refusal::Rejected(detail)),
    }
}

fn path(key: &str) -> String {
    format!("/v2/keys{}", encode(key))
}

fn form(fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .collect();
    fields.join("&")
}

/// Value and modification index of the node in an answer.
fn node(document: &Value) -> Option<(String, u64)> {
    let node = &document["node"];
    let value = node["value"].as_str().unwrap_or_default();
    Some((value.to_owned(), node["modifiedIndex"].as_u64()?))
}

fn lease(index: u64) -> Lease {
    Lease {
        token: LeaseToken {
            session: None,
            revision: Some(Revision(index)),
        },
    }
}

/// Everything below a folder of an answer, by relative key.
fn collect(keys: &Keys, node: &Value, contents: &mut Contents) {
    if let Some(children) = node["nodes"].as_array() {
        for child in children {
            collect(keys, child, contents);
        }
    } else if let (Some(key), Some(index)) = (node["key"].as_str(), node["modifiedIndex"].as_u64())
        && let Some(relative) = keys.relative(key)
        && node["dir"] != Value::Bool(true)
    {
        let stored = Stored {
            value: node["value"].as_str().unwrap_or_default().to_owned(),
            revision: index,
            session: None,
        };
        contents.insert(relative.to_owned(), stored);
    }
}

/// The folder of the cluster.
fn folder(keys: &Keys) -> &str {
    keys.prefix().trim_end_matches('/')
}

/// Reads everything, newer than any write before, and keeps it as the copy.
async fn read_all(
    pool: &Pool,
    copy: &Copy,
    keys: &Keys,
    deadline: Moment,
) -> Result<(Cluster, u64), Failure> {
    let before = copy.index();
    let (contents, index) = list(pool, keys, deadline).await?;
    let cluster = copy::assemble(&contents);
    // Nodes that are behind answer from their leader, so a count that went back is a store that came back empty.
    copy.replace(contents, index, index < before);
    Ok((cluster, index))
}

/// Everything below a path, newer than any write before, and the count it is complete up to.
async fn list(pool: &Pool, keys: &Keys, deadline: Moment) -> Result<(Contents, u64), Failure> {
    let target = format!("{}/?recursive=true&quorum=true", path(folder(keys)));
    let known = pool
        .call(deadline, Kind::Repeatable, Method::GET, &target, None)
        .await?;
    let mut contents = Contents::new();
    match known.told {
        Told::Yes(document) => collect(keys, &document["node"], &mut contents),
        Told::Absent => {}
        Told::Conflict | Told::Cleared => {
            return Err(Failure::Rejected(
                "an answer to another question".to_owned(),
            ));
        }
    }
    Ok((contents, known.index))
}

struct Watcher {
    pool: Arc<Pool>,
    copy: Arc<Copy>,
    keys: Keys,
}

impl Watcher {
    async fn run(&self) {
        let mut restarted = false;
        loop {
            if let Err(failure) = self.follow(restarted).await {
                let error = failure.into_error();
                tracing::debug!(%error, "the watch cannot be kept up, starting it again");
            }
            self.copy.set_alive(false);
            restarted = true;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// From a first read to the first failure.
    async fn follow(&self, restarted: bool) -> Result<(), Failure> {
        let read = async || {
            let (_, index) =
                read_all(&self.pool, &self.copy, &self.keys, self.pool.deadline()).await?;
            self.copy.set_alive(true);
            Ok::<u64, Failure>(index)
        };
        let mut index = read().await?;
        if restarted {
            self.copy.announce();
        }
        loop {
            let target = format!(
                "{}/?wait=true&recursive=true&waitIndex={}",
                path(folder(&self.keys)),
                index + 1
            );
            let patience = copy::heartbeat(self.pool.timings().retry_timeout);
            self.pool.wait(clock::now() + patience, &target).await?;
            // Whatever has happened, or whether nothing has: a read tells, and shows that the node still has its leader.
            index = read().await?;
        }
    }
}

impl Etcd {
    /// How many nodes of the etcd cluster requests can go to.
    #[must_use]
    pub fn known_nodes(&self) -> usize {
        self.pool.known_nodes()
    }

    fn me(&self) -> Result<&MemberName, Refusal> {
        self.name.as_ref().ok_or_else(|| {
            Refusal::Rejected(
                "this connection has no member name, so it cannot own a key".to_owned(),
            )
        })
    }

    fn ttl(&self) -> String {
        self.pool.timings().ttl.as_secs().max(1).to_string()
    }

    async fn write(
        &self,
        deadline: Moment,
        kind: Kind,
        key: &str,
        fields: &[(&str, String)],
    ) -> Result<Known, Failure> {
        let body = form(fields);
        self.pool
            .call(deadline, kind, Method::PUT, &path(key), Some(&body))
            .await
    }

    async fn remove(&self, deadline: Moment, key: &str, condition: &str) -> Result<Known, Failure> {
        let target = format!("{}{condition}", path(key));
        self.pool
            .call(deadline, Kind::Once, Method::DELETE, &target, None)
            .await
    }

    /// Value and index of one key as of now.
    async fn get(&self, deadline: Moment, key: &str) -> Result<Option<(String, u64)>, Failure> {
        let target = format!("{}?quorum=true", path(key));
        let known = self
            .pool
            .call(deadline, Kind::Repeatable, Method::GET, &target, None)
            .await?;
        Ok(match known.told {
            Told::Yes(document) => node(&document),
            Told::Absent | Told::Conflict | Told::Cleared => None,
        })
    }

    async fn read_back(&self, deadline: Moment, key: &str) -> Option<Option<(String, u64)>> {
        if clock::now().until(deadline) < LEAST_STEP / 2 {
            return None;
        }
        self.get(deadline, key).await.ok()
    }

    /// Notes an own write in the copy.
    fn note(&self, relative: &str, value: &str, index: u64) {
        let stored = Stored {
            value: value.to_owned(),
            revision: index,
            session: None,
        };
        self.copy.wrote(relative, Some(stored), index);
    }

    /// After a deletion: its index is in the answer.
    fn forget(&self, relative: &str, document: &Value) {
        if let Some((_, index)) = node(document) {
            self.copy.wrote(relative, None, index);
        }
    }

    /// Writes `name` with a time to live into the leader key, under a condition; the index of the write.
    async fn claim(&self, name: &MemberName, condition: Option<(&str, String)>) -> Write<u64> {
        let deadline = self.pool.deadline();
        let key = self.keys.leader();
        let before = match (&condition, self.copy.index()) {
            // Only then can a read tell an own creation from an older key of the same name.
            (Some((name, _)), index) if *name == "prevExist" => Some(index),
            _ => None,
        };
        let mut fields = vec![("value", name.to_string()), ("ttl", self.ttl())];
        fields.extend(condition);
        match self.write(deadline, Kind::Once, &key, &fields).await {
            Ok(known) => match known.told {
                Told::Yes(document) => {
                    let index = node(&document).map_or(known.index, |(_, index)| index);
                    self.note(keys::LEADER, name.as_str(), index);
                    Write::Done(index)
                }
                _ => Write::Refused(Refusal::Precondition),
            },
            Err(Failure::Ambiguous(error)) => {
                match (before, self.read_back(deadline, &key).await) {
                    (Some(before), Some(Some((value, index))))
                        if value == name.as_str() && index > before =>
                    {
                        Write::Done(index)
                    }
                    _ => Write::Unknown(error),
                }
            }
            Err(failure) => failed(failure),
        }
    }

    async fn claim_for_me(&self, condition: Option<(&str, String)>) -> Write<Lease> {
        let me = match self.me() {
            Ok(me) => me.clone(),
            Err(refusal) => return Write::Refused(refusal),
        };
        match self.claim(&me, condition).await {
            Write::Done(index) => Write::Done(lease(index)),
            Write::Refused(refusal) => Write::Refused(refusal),
            Write::Unknown(error) => Write::Unknown(error),
        }
    }
}

#[async_trait]
impl Dcs for Etcd {
    fn store(&self) -> &'static str {
        "etcd"
    }

    async fn load(&self, freshness: Freshness) -> Result<Cluster, DcsError> {
        let silence = copy::silence(self.pool.timings().retry_timeout);
        if freshness == Freshness::Recent
            && let Some(cluster) = self.copy.recent(silence)
        {
            return Ok(cluster);
        }
        let read = read_all(&self.pool, &self.copy, &self.keys, self.pool.deadline()).await;
        read.map(|(cluster, _)| cluster)
            .map_err(Failure::into_error)
    }

    async fn load_groups(&self) -> Result<BTreeMap<u32, Cluster>, DcsError> {
        let listed = list(&self.pool, &self.keys.of_all_groups(), self.pool.deadline()).await;
        listed
            .map(|(contents, _)| copy::assemble_groups(&contents))
            .map_err(Failure::into_error)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.copy.changes()
    }

    async fn acquire(&self) -> Write<Lease> {
        self.claim_for_me(Some(("prevExist", "false".to_owned())))
            .await
    }

    async fn adopt(&self, leader: &Leader) -> Write<Lease> {
        if self.name.as_ref() != Some(&leader.name) {
            return Write::Refused(Refusal::Precondition);
        }
        self.claim_for_me(Some(("prevIndex", leader.revision.0.to_string())))
            .await
    }

    async fn take(&self) -> Write<Lease> {
        self.claim_for_me(None).await
    }

    async fn renew(&self, _lease: &Lease) -> Write {
        let me = match self.me() {
            Ok(me) => me.to_string(),
            Err(refusal) => return Write::Refused(refusal),
        };
        let deadline = self.pool.deadline();
        let key = self.keys.leader();
        let fields = [
            ("value", me.clone()),
            ("ttl", self.ttl()),
            ("prevValue", me.clone()),
        ];
        // Renewing twice is renewing later: harmless, the lease counts from when the call began.
        match self.write(deadline, Kind::Repeatable, &key, &fields).await {
            Ok(Known {
                told: Told::Yes(document),
                ..
            }) => {
                if let Some((_, index)) = node(&document) {
                    self.note(keys::LEADER, &me, index);
                }
                Write::Done(())
            }
            Ok(_) => Write::Refused(Refusal::Precondition),
            Err(failure) => failed(failure),
        }
    }

    async fn release(&self, _lease: Lease) -> Write {
        let me = match self.me() {
            Ok(me) => me.as_str(),
            Err(refusal) => return Write::Refused(refusal),
        };
        let deadline = self.pool.deadline();
        let key = self.keys.leader();
        let condition = format!("?prevValue={}", encode(me));
        match self.remove(deadline, &key, &condition).await {
            Ok(Known {
                told: Told::Yes(document),
                ..
            }) => {
                self.forget(keys::LEADER, &document);
                Write::Done(())
            }
            Ok(_) => Write::Refused(Refusal::Precondition),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, &key).await {
                Some(None) => Write::Done(()),
                Some(Some((value, _))) if value != me => Write::Done(()),
                _ => Write::Unknown(error),
            },
            Err(failure) => failed(failure),
        }
    }

    /// There is no session to give the key to: it goes to a candidate whose own key has not expired.
    async fn hand_over(&self, lease: Lease, candidate: &Member) -> (Write, Option<Lease>) {
        let deadline = self.pool.deadline();
        let refused = Write::Refused(Refusal::Precondition);
        let Some(me) = &self.name else {
            return (refused, Some(lease));
        };
        if candidate.session.is_some() {
            return (refused, Some(lease));
        }
        match self.get(deadline, &self.keys.member(&candidate.name)).await {
            Ok(Some(_)) => {}
            Ok(None) => return (refused, Some(lease)),
            Err(failure) => return (failed(failure), Some(lease)),
        }
        let condition = ("prevValue", me.to_string());
        match self.claim(&candidate.name, Some(condition)).await {
            Write::Done(_) => (Write::Done(()), None),
            Write::Refused(refusal) => (Write::Refused(refusal), None),
            Write::Unknown(error) => match self.read_back(deadline, &self.keys.leader()).await {
                Some(Some((value, _))) if value == candidate.name.as_str() => {
                    (Write::Done(()), None)
                }
                _ => (Write::Unknown(error), Some(lease)),
            },
        }
    }

    async fn put_member(&self, value: &str) -> Write {
        let me = match self.me() {
            Ok(me) => me,
            Err(refusal) => return Write::Refused(refusal),
        };
        // Written even when nothing has changed: the key lives as long as it is written.
        let fields = [("value", value.to_owned()), ("ttl", self.ttl())];
        let deadline = self.pool.deadline();
        match self
            .write(deadline, Kind::Repeatable, &self.keys.member(me), &fields)
            .await
        {
            Ok(Known {
                told: Told::Yes(document),
                ..
            }) => {
                if let Some((_, index)) = node(&document) {
                    self.note(&format!("{}{me}", keys::MEMBERS), value, index);
                }
                Write::Done(())
            }
            Ok(_) => Write::Refused(Refusal::Precondition),
            Err(failure) => failed(failure),
        }
    }

    async fn delete_member(&self) -> Write {
        let me = match self.me() {
            Ok(me) => me,
            Err(refusal) => return Write::Refused(refusal),
        };
        match self
            .remove(self.pool.deadline(), &self.keys.member(me), "")
            .await
        {
            Ok(Known {
                told: Told::Yes(document),
                ..
            }) => {
                self.forget(&format!("{}{me}", keys::MEMBERS), &document);
                Write::Done(())
            }
            Ok(_) => Write::Done(()),
            Err(failure) => failed(failure),
        }
    }

    async fn put(&self, document: Document, value: &str, expect: Expect) -> Write<Revision> {
        let deadline = self.pool.deadline();
        let key = self.keys.document(document);
        let mut fields = vec![("value", value.to_owned())];
        match expect {
            Expect::Anything => {}
            Expect::Absent => fields.push(("prevExist", "false".to_owned())),
            Expect::At(revision) => fields.push(("prevIndex", revision.0.to_string())),
        }
        match self.write(deadline, Kind::Once, &key, &fields).await {
            Ok(Known {
                told: Told::Yes(answer),
                index,
            }) => {
                let index = node(&answer).map_or(index, |(_, index)| index);
                self.note(document.key(), value, index);
                Write::Done(Revision(index))
            }
            Ok(_) => Write::Refused(Refusal::Precondition),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, &key).await {
                Some(Some((found, index))) if found == value && may_be_ours(index, expect) => {
                    self.note(document.key(), value, index);
                    Write::Done(Revision(index))
                }
                _ => Write::Unknown(error),
            },
            Err(failure) => failed(failure),
        }
    }

    async fn delete(&self, document: Document, expect: Expect) -> Write {
        let deadline = self.pool.deadline();
        let key = self.keys.document(document);
        let condition = match expect {
            Expect::At(revision) => format!("?prevIndex={}", revision.0),
            Expect::Anything | Expect::Absent => String::new(),
        };
        match self.remove(deadline, &key, &condition).await {
            Ok(Known {
                told: Told::Yes(answer),
                ..
            }) => {
                self.forget(document.key(), &answer);
                Write::Done(())
            }
            Ok(Known {
                told: Told::Absent, ..
            }) if !matches!(expect, Expect::At(_)) => Write::Done(()),
            Ok(_) => Write::Refused(Refusal::Precondition),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, &key).await {
                Some(None) => Write::Done(()),
                _ => Write::Unknown(error),
            },
            Err(failure) => failed(failure),
        }
    }

    async fn delete_cluster(&self) -> Write {
        let target = format!("{}?recursive=true", path(folder(&self.keys)));
        let deadline = self.pool.deadline();
        let deleted = self
            .pool
            .call(deadline, Kind::Repeatable, Method::DELETE, &target, None)
            .await;
        self.copy.set_alive(false);
        match deleted {
            Ok(_) => Write::Done(()),
            Err(failure) => failed(failure),
        }
    }

    fn set_timings(&self, ttl: Duration, retry_timeout: Duration) {
        self.pool.set_timings(Timings { ttl, retry_timeout });
    }
}

/// Whether a value read back proves that a write with this condition has happened: nobody else can have put it there, or it does
/// not matter who did.
fn may_be_ours(index: u64, expect: Expect) -> bool {
    match expect {
        Expect::Anything => true,
        Expect::At(revision) => index > revision.0,
        // A race for creation: the others write the same value (`initialize` is empty), so finding it proves nothing.
        Expect::Absent => false,
    }
}
