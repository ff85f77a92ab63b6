//! etcd through its native v3 API. Python nodes that use the JSON gateway see the same keys, values, leases and revisions
//! (spec/dcs.md §5.3).
//!
//! One lease per node carries its member key and the leader key. It is renewed in [`Dcs::renew`] and [`Dcs::put_member`] and
//! when the leader key is created or adopted, nowhere else: the background task only watches.
//!
//! A write that was not answered is not repeated; what it wrote is read back once if there is time, and is unknown otherwise.

mod pool;
mod transport;
mod watcher;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Compare, CompareOp, DeleteOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::pool::{Failure, Kind, Pool};
use self::watcher::{Cache, model_revision};
use super::etcd_hosts::address;
use super::etcd_hosts::srv::Srv;
use super::keys::{self, Keys};
use super::tls::{self, Trust};
use super::{
    Dcs, DcsError, Document, Expect, Freshness, Identity, Lease, LeaseToken, Refusal, Timings,
    Write,
};
use crate::clock;
use crate::cluster::{Cluster, Leader, Member};
use crate::types::{MemberName, Moment, Revision};

/// The `etcd3` section of the configuration, names and meanings as Patroni has them.
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
pub fn connect(identity: &Identity, settings: &Settings) -> anyhow::Result<Arc<Etcd3>> {
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
    let tls = transport::http2(&tls);
    let credentials = settings.username.clone().zip(settings.password.clone());
    let pool = Arc::new(Pool::new(
        urls,
        srv,
        !settings.use_proxies,
        tls,
        credentials,
        identity.timings(),
    ));
    let keys = Keys::of(identity);
    let cache = Arc::new(Cache::new(keys.clone(), identity.name.clone()));
    // ctl reads once or twice and always the latest: no watch for it.
    let watching = identity
        .name
        .is_some()
        .then(|| tokio::spawn(watcher::run(Arc::clone(&pool), Arc::clone(&cache))));
    Ok(Arc::new(Etcd3 {
        keys,
        name: identity.name.clone(),
        pool,
        cache,
        session: tokio::sync::Mutex::new(Session::default()),
        watching,
    }))
}

/// One node's connection to etcd.
pub struct Etcd3 {
    keys: Keys,
    name: Option<MemberName>,
    pool: Arc<Pool>,
    cache: Arc<Cache>,
    session: tokio::sync::Mutex<Session>,
    watching: Option<JoinHandle<()>>,
}

impl Drop for Etcd3 {
    fn drop(&mut self) {
        if let Some(watching) = &self.watching {
            watching.abort();
        }
    }
}

/// The node's lease as it is known here.
#[derive(Debug, Default)]
struct Session {
    /// The lease, and the ttl it was granted with.
    lease: Option<(i64, Duration)>,
    /// The lease before a change of ttl: keys found on it are still this node's.
    previous: Option<i64>,
    /// When the last successful renewal was sent.
    renewed: Option<Moment>,
}

impl Session {
    fn owns(&self, lease: i64, token: &LeaseToken) -> bool {
        lease != 0
            && (self.lease.is_some_and(|(mine, _)| mine == lease)
                || self.previous == Some(lease)
                || lease_id(token.session.as_deref()) == Some(lease))
    }
}

fn lease_id(session: Option<&str>) -> Option<i64> {
    session?.parse().ok().filter(|id| *id != 0)
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the mutexes here guard is replaced as a whole, so a panic elsewhere leaves it usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is left for the steps of one call (spec/dcs.md §4.3: a later step wants at least half a second).
const LEAST_STEP: Duration = Duration::from_millis(500);

/// The outcome of a write that ended in `failure`, when nothing can be learned by reading back.
fn failed<T>(failure: Failure) -> Write<T> {
    match failure {
        Failure::Unreachable(error) | Failure::Ambiguous(error) => Write::Unknown(error),
        Failure::LeaseGone => Write::Refused(Refusal::Precondition),
        Failure::Rejected(detail) => Write::Refused(Refusal::Rejected(detail)),
    }
}

impl Etcd3 {
    /// New credentials (reload of the configuration); the next request logs in with them.
    pub fn set_credentials(&self, username: Option<String>, password: Option<String>) {
        self.pool.set_credentials(username.zip(password));
    }

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

    fn silence(&self) -> Duration {
        watcher::silence(self.pool.timings().retry_timeout)
    }

    async fn txn(&self, deadline: Moment, kind: Kind, txn: &Txn) -> Result<TxnResponse, Failure> {
        let answer = self
            .pool
            .call(deadline, kind, |client| {
                let txn = txn.clone();
                async move { client.kv_client().txn(txn).await }
            })
            .await?;
        // Done or not, the copy must be at least as new as what this answer is based on.
        self.cache.require(header_revision(&answer));
        Ok(answer)
    }

    /// One key as of now, or as of any later moment before `deadline`.
    async fn get(&self, deadline: Moment, key: &str) -> Result<Option<KeyValue>, Failure> {
        let answer = self
            .pool
            .call(deadline, Kind::Read, |client| async move {
                client.kv_client().get(key, None).await
            })
            .await?;
        Ok(answer.kvs().first().cloned())
    }

    /// Reads a key back after a write that was not answered; `None` when there is no time or no answer.
    async fn read_back(&self, deadline: Moment, key: &str) -> Option<Option<KeyValue>> {
        if clock::now().until(deadline) < LEAST_STEP / 2 {
            return None;
        }
        self.get(deadline, key).await.ok()
    }

    async fn keep_alive(&self, deadline: Moment, lease: i64) -> Result<(), Failure> {
        self.pool
            .call(deadline, Kind::Repeatable, |client| async move {
                // The stream serves this one renewal and is dropped: whoever wants another one has to come here again.
                client.lease_client().keep_alive(lease).await.map(|_| ())
            })
            .await
    }

    async fn grant(&self, deadline: Moment, session: &mut Session) -> Result<i64, Failure> {
        let ttl = self.pool.timings().ttl;
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let sent = clock::now();
        // An orphan of a request that was repeated expires by itself.
        let answer = self
            .pool
            .call(deadline, Kind::Repeatable, |client| async move {
                client.lease_client().grant(seconds, None).await
            })
            .await?;
        if let Some((before, _)) = session.lease {
            session.previous = Some(before);
        }
        session.lease = Some((answer.id(), ttl));
        session.renewed = Some(sent);
        Ok(answer.id())
    }

    /// The node's lease, just renewed; a new one if there is none, it is gone, or `ttl` has changed.
    async fn renewed(&self, deadline: Moment, session: &mut Session) -> Result<i64, Failure> {
        let sent = clock::now();
        match session.lease {
            Some((lease, ttl)) if ttl == self.pool.timings().ttl => {
                match self.keep_alive(deadline, lease).await {
                    Ok(()) => {
                        session.renewed = Some(sent);
                        Ok(lease)
                    }
                    Err(Failure::LeaseGone) => self.grant(deadline, session).await,
                    Err(failure) => Err(failure),
                }
            }
            _ => self.grant(deadline, session).await,
        }
    }

    fn lease(&self, session: i64, revision: i64) -> Lease {
        Lease {
            token: LeaseToken {
                session: Some(session.to_string()),
                revision: Some(model_revision(revision)),
            },
        }
    }

    /// Puts my name on my lease into the leader key if `compares` hold.
    async fn claim(&self, compares: Vec<Compare>) -> Write<Lease> {
        let me = match self.me() {
            Ok(me) => me.as_str(),
            Err(refusal) => return Write::Refused(refusal),
        };
        let deadline = self.pool.deadline();
        let mut session = self.session.lock().await;
        let key = self.keys.leader();
        let mut lease = match self.renewed(deadline, &mut session).await {
            Ok(lease) => lease,
            // Nothing but a lease was asked for: the leader key is as it was.
            Err(failure) => return failed(failure),
        };
        for last_try in [false, true] {
            let txn = Txn::new()
                .when(compares.clone())
                .and_then([put_op(&key, me, lease)])
                .or_else([TxnOp::get(key.as_str(), None)]);
            match self.txn(deadline, Kind::Once, &txn).await {
                Ok(answer) if answer.succeeded() => {
                    return Write::Done(self.lease(lease, header_revision(&answer)));
                }
                Ok(answer) => return self.mine_already(me, lease, got(&answer).as_ref()),
                Err(Failure::LeaseGone) if !last_try => {
                    // It expired between its renewal and now.
                    session.lease = None;
                    lease = match self.grant(deadline, &mut session).await {
                        Ok(lease) => lease,
                        Err(failure) => return failed(failure),
                    };
                }
                Err(Failure::Ambiguous(error)) => {
                    // Absent or somebody else's proves nothing yet: the request may still be on its way.
                    return match self.read_back(deadline, &key).await {
                        Some(Some(kv)) if is(&kv, me, lease) => {
                            Write::Done(self.lease(lease, kv.mod_revision()))
                        }
                        _ => Write::Unknown(error),
                    };
                }
                Err(failure) => return failed(failure),
            }
        }
        Write::Refused(Refusal::Precondition)
    }

    /// A key that already has my name on my lease is no lost race but my own request, whose answer was lost.
    fn mine_already(&self, me: &str, lease: i64, found: Option<&KeyValue>) -> Write<Lease> {
        match found {
            Some(kv) if is(kv, me, lease) => Write::Done(self.lease(lease, kv.mod_revision())),
            _ => Write::Refused(Refusal::Precondition),
        }
    }

    async fn renew_within(&self, deadline: Moment, token: &LeaseToken) -> Write {
        let me = match self.me() {
            Ok(me) => me.as_str(),
            Err(refusal) => return Write::Refused(refusal),
        };
        let mut session = self.session.lock().await;
        let key = self.keys.leader();
        let sent = clock::now();
        let current = session
            .lease
            .filter(|(_, ttl)| *ttl == self.pool.timings().ttl)
            .map(|(lease, _)| lease);
        let (kept, found) = tokio::join!(
            async {
                match current {
                    Some(lease) => self.keep_alive(deadline, lease).await,
                    None => Err(Failure::LeaseGone),
                }
            },
            self.get(deadline, &key)
        );
        if kept.is_ok() {
            session.renewed = Some(sent);
        }
        let held = match found {
            Ok(Some(kv)) if kv.value() == me.as_bytes() && session.owns(kv.lease(), token) => kv,
            // Gone, somebody else's, or a namesake's on a lease that was never ours.
            Ok(_) => return Write::Refused(Refusal::Precondition),
            Err(failure) => return failed(failure),
        };
        let lease = match (kept, current) {
            (Ok(()), Some(lease)) if held.lease() == lease => return Write::Done(()),
            (Ok(()), Some(lease)) => lease,
            (Err(Failure::LeaseGone), _) => {
                // The key goes with the lease that is gone; on another one of ours it is moved to a new lease.
                if current == Some(held.lease()) {
                    session.lease = None;
                    return Write::Refused(Refusal::Precondition);
                }
                match self.grant(deadline, &mut session).await {
                    Ok(lease) => lease,
                    Err(failure) => return failed(failure),
                }
            }
            (Ok(()), None) => return Write::Refused(Refusal::Precondition),
            (Err(failure), _) => return failed(failure),
        };
        let txn = Txn::new()
            .when([
                Compare::value(key.as_str(), CompareOp::Equal, me),
                Compare::mod_revision(key.as_str(), CompareOp::Equal, held.mod_revision()),
            ])
            .and_then([put_op(&key, me, lease)]);
        match self.txn(deadline, Kind::Once, &txn).await {
            Ok(answer) if answer.succeeded() => Write::Done(()),
            Ok(_) => Write::Refused(Refusal::Precondition),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, &key).await {
                Some(Some(kv)) if is(&kv, me, lease) => Write::Done(()),
                _ => Write::Unknown(error),
            },
            Err(failure) => failed(failure),
        }
    }

    /// The leader key if it is mine by `token`, as of now.
    async fn owned(
        &self,
        deadline: Moment,
        token: &LeaseToken,
    ) -> Result<Option<KeyValue>, Failure> {
        let Some(me) = &self.name else {
            return Ok(None);
        };
        let session = self.session.lock().await;
        let found = self.get(deadline, &self.keys.leader()).await?;
        Ok(found
            .filter(|kv| kv.value() == me.as_str().as_bytes() && session.owns(kv.lease(), token)))
    }
}

fn put_op(key: &str, value: &str, lease: i64) -> TxnOp {
    TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
}

fn is(kv: &KeyValue, value: &str, lease: i64) -> bool {
    kv.value() == value.as_bytes() && kv.lease() == lease
}

fn header_revision(answer: &TxnResponse) -> i64 {
    answer.header().map_or(0, |header| header.revision())
}

/// The key that the "else" branch of a transaction has read.
fn got(answer: &TxnResponse) -> Option<KeyValue> {
    answer
        .op_responses()
        .into_iter()
        .find_map(|response| match response {
            TxnOpResponse::Get(get) => get.kvs().first().cloned(),
            _ => None,
        })
}

fn conditions(key: &str, expect: Expect) -> Vec<Compare> {
    match expect {
        Expect::Anything => Vec::new(),
        Expect::Absent => vec![Compare::create_revision(key, CompareOp::Equal, 0)],
        Expect::At(revision) => vec![Compare::mod_revision(
            key,
            CompareOp::Equal,
            store_revision(revision),
        )],
    }
}

fn store_revision(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

#[async_trait]
impl Dcs for Etcd3 {
    fn store(&self) -> &'static str {
        "etcd3"
    }

    async fn load(&self, freshness: Freshness) -> Result<Cluster, DcsError> {
        if freshness == Freshness::Recent
            && let Some(cluster) = self.cache.recent(self.silence())
        {
            return Ok(cluster);
        }
        self.cache.load(&self.pool, self.pool.deadline()).await
    }

    async fn load_groups(&self) -> Result<BTreeMap<u32, Cluster>, DcsError> {
        self.cache
            .load_groups(&self.pool, self.pool.deadline())
            .await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.cache.changes()
    }

    async fn acquire(&self) -> Write<Lease> {
        let key = self.keys.leader();
        self.claim(conditions(&key, Expect::Absent)).await
    }

    async fn adopt(&self, leader: &Leader) -> Write<Lease> {
        let Some(me) = &self.name else {
            return self.claim(Vec::new()).await;
        };
        let key = self.keys.leader();
        self.claim(vec![
            Compare::value(key.as_str(), CompareOp::Equal, me.as_str()),
            Compare::mod_revision(
                key.as_str(),
                CompareOp::Equal,
                store_revision(leader.revision),
            ),
        ])
        .await
    }

    async fn take(&self) -> Write<Lease> {
        self.claim(Vec::new()).await
    }

    async fn renew(&self, lease: &Lease) -> Write {
        self.renew_within(self.pool.deadline(), &lease.token).await
    }

    async fn release(&self, lease: Lease) -> Write {
        let deadline = self.pool.deadline();
        let held = match self.owned(deadline, &lease.token).await {
            Ok(Some(kv)) => kv,
            Ok(None) => return Write::Refused(Refusal::Precondition),
            Err(failure) => return failed(failure),
        };
        let key = self.keys.leader();
        let txn = Txn::new()
            .when([
                Compare::value(key.as_str(), CompareOp::Equal, held.value()),
                Compare::mod_revision(key.as_str(), CompareOp::Equal, held.mod_revision()),
            ])
            .and_then([TxnOp::delete(key.as_str(), None)]);
        match self.txn(deadline, Kind::Once, &txn).await {
            Ok(answer) if answer.succeeded() => Write::Done(()),
            Ok(_) => Write::Refused(Refusal::Precondition),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, &key).await {
                Some(Some(kv)) if kv.mod_revision() == held.mod_revision() => Write::Unknown(error),
                Some(_) => Write::Done(()),
                None => Write::Unknown(error),
            },
            Err(failure) => failed(failure),
        }
    }

    async fn hand_over(&self, lease: Lease, candidate: &Member) -> (Write, Option<Lease>) {
        let Some(session) = lease_id(candidate.session.as_deref()) else {
            return (Write::Refused(Refusal::Precondition), Some(lease));
        };
        let deadline = self.pool.deadline();
        let held = match self.owned(deadline, &lease.token).await {
            Ok(Some(kv)) => kv,
            Ok(None) => return (Write::Refused(Refusal::Precondition), None),
            Err(failure) => return (failed(failure), Some(lease)),
        };
        let key = self.keys.leader();
        let txn = Txn::new()
            .when([
                Compare::value(key.as_str(), CompareOp::Equal, held.value()),
                Compare::mod_revision(key.as_str(), CompareOp::Equal, held.mod_revision()),
            ])
            .and_then([put_op(&key, candidate.name.as_str(), session)]);
        match self.txn(deadline, Kind::Once, &txn).await {
            Ok(answer) if answer.succeeded() => (Write::Done(()), None),
            Ok(_) => (Write::Refused(Refusal::Precondition), None),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, &key).await {
                Some(Some(kv)) if is(&kv, candidate.name.as_str(), session) => {
                    (Write::Done(()), None)
                }
                _ => (Write::Unknown(error), Some(lease)),
            },
            // The candidate's lease is gone, or the store will not have it: nothing has changed.
            Err(failure) => (failed(failure), Some(lease)),
        }
    }

    async fn put_member(&self, value: &str) -> Write {
        let me = match self.me() {
            Ok(me) => me,
            Err(refusal) => return Write::Refused(refusal),
        };
        let deadline = self.pool.deadline();
        let key = self.keys.member(me);
        let relative = format!("{}{me}", keys::MEMBERS);
        let mut session = self.session.lock().await;
        let ttl = self.pool.timings().ttl;
        let just_renewed = session
            .renewed
            .is_some_and(|at| clock::now().since(at) < ttl / 10);
        let mut lease = match session.lease {
            // The leader has renewed its lease in this very turn.
            Some((lease, granted)) if just_renewed && granted == ttl => lease,
            _ => match self.renewed(deadline, &mut session).await {
                Ok(lease) => lease,
                Err(failure) => return failed(failure),
            },
        };
        if self.cache.has(&relative, value, lease, self.silence()) {
            return Write::Done(());
        }
        for last_try in [false, true] {
            let txn = Txn::new().and_then([put_op(&key, value, lease)]);
            match self.txn(deadline, Kind::Once, &txn).await {
                Ok(_) => return Write::Done(()),
                Err(Failure::LeaseGone) if !last_try => {
                    session.lease = None;
                    lease = match self.grant(deadline, &mut session).await {
                        Ok(lease) => lease,
                        Err(failure) => return failed(failure),
                    };
                }
                Err(failure) => return failed(failure),
            }
        }
        Write::Refused(Refusal::Precondition)
    }

    async fn delete_member(&self) -> Write {
        let me = match self.me() {
            Ok(me) => me,
            Err(refusal) => return Write::Refused(refusal),
        };
        let txn = Txn::new().and_then([TxnOp::delete(self.keys.member(me), None)]);
        // Only this node writes the key, and it waits for this call: deleting twice is deleting once.
        match self.txn(self.pool.deadline(), Kind::Repeatable, &txn).await {
            Ok(_) => Write::Done(()),
            Err(failure) => failed(failure),
        }
    }

    async fn put(&self, document: Document, value: &str, expect: Expect) -> Write<Revision> {
        let deadline = self.pool.deadline();
        let key = self.keys.document(document);
        let txn = Txn::new()
            .when(conditions(&key, expect))
            .and_then([TxnOp::put(key.as_str(), value, None)]);
        match self.txn(deadline, Kind::Once, &txn).await {
            Ok(answer) if answer.succeeded() => {
                Write::Done(model_revision(header_revision(&answer)))
            }
            Ok(_) => Write::Refused(Refusal::Precondition),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, &key).await {
                Some(Some(kv)) if kv.value() == value.as_bytes() && may_be_ours(&kv, expect) => {
                    self.cache.require(kv.mod_revision());
                    Write::Done(model_revision(kv.mod_revision()))
                }
                _ => Write::Unknown(error),
            },
            Err(failure) => failed(failure),
        }
    }

    async fn delete(&self, document: Document, expect: Expect) -> Write {
        let deadline = self.pool.deadline();
        let key = self.keys.document(document);
        let txn = Txn::new()
            .when(conditions(&key, expect))
            .and_then([TxnOp::delete(key.as_str(), None)]);
        match self.txn(deadline, Kind::Once, &txn).await {
            Ok(answer) if answer.succeeded() => Write::Done(()),
            Ok(_) => Write::Refused(Refusal::Precondition),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, &key).await {
                Some(None) => Write::Done(()),
                _ => Write::Unknown(error),
            },
            Err(failure) => failed(failure),
        }
    }

    async fn delete_cluster(&self) -> Write {
        let prefix = self.keys.prefix();
        let deleted = self
            .pool
            .call(
                self.pool.deadline(),
                Kind::Repeatable,
                |client| async move {
                    let options = DeleteOptions::new().with_prefix();
                    client.kv_client().delete(prefix, Some(options)).await
                },
            )
            .await;
        match deleted {
            Ok(answer) => {
                self.cache
                    .require(answer.header().map_or(0, |header| header.revision()));
                Write::Done(())
            }
            Err(failure) => failed(failure),
        }
    }

    fn set_timings(&self, ttl: Duration, retry_timeout: Duration) {
        self.pool.set_timings(Timings { ttl, retry_timeout });
    }
}

/// Whether a value read back proves that a write with this condition has happened: nobody else can have put it there, or it does
/// not matter who did.
fn may_be_ours(kv: &KeyValue, expect: Expect) -> bool {
    match expect {
        Expect::Anything => true,
        Expect::At(revision) => kv.mod_revision() > store_revision(revision),
        // A race for creation: the others write the same value (`initialize` is empty), so finding it proves nothing.
        Expect::Absent => false,
    }
}
