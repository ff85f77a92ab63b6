//! ZooKeeper through its own protocol (spec/dcs.md §5.5).
//!
//! Two sessions. One reads and watches ([`reader`]). The other owns this node's ephemeral nodes and is kept alive by the loop
//! alone: it never pings, it is *reopened* by [`Dcs::renew`] and [`Dcs::put_member`]. Reopening is what the servers pass on to their
//! leader before they answer, so an answer proves that the session has its whole time again; a ping to a follower proves only that
//! the follower is there. Client libraries ping by themselves, which would keep the lock of a loop that hangs.
//!
//! An ephemeral node cannot be given to another session, so the leader key is released and taken, not handed over.

mod connection;
pub mod exhibitor;
mod proto;
mod reader;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as Blocking, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::connection::{Answered, Connection, NotConnected, Servers};
use self::proto::{ANY, Acl, Code, Reply, Request, Session, Stat};
use self::reader::{Asked, Reader};
use super::copy::{self, Copy, Stored};
use super::keys::{self, Keys};
use super::tls::{self, Trust};
use super::{
    Dcs, DcsError, Document, Expect, Freshness, Identity, Lease, LeaseToken, Refusal, Timings,
    Write,
};
use crate::clock;
use crate::cluster::{Cluster, Leader, Member, wire};
use crate::types::{MemberName, Moment, Revision};

/// The `zookeeper` section of the configuration, names and meanings as Patroni has them.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `host:port` each; the last one may end in a path below which everything lives.
    pub hosts: Vec<String>,
    /// Whether to use TLS.
    pub use_ssl: bool,
    /// Whether the servers' certificates are verified.
    pub verify: bool,
    /// Authorities of those certificates; without one the system's.
    pub cacert: Option<PathBuf>,
    /// Client certificate; without `key` a PEM file that holds both.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Password of an encrypted key.
    pub key_password: Option<String>,
    /// Principal → permissions of every node that this member makes.
    pub set_acls: Vec<(String, Vec<String>)>,
    /// Scheme → credential, sent when a connection is made.
    pub auth_data: Vec<(String, String)>,
}

/// Opens the store. Nothing is sent yet: unreachable servers show with the first call. Needs a running tokio runtime.
///
/// # Errors
/// Settings that can never work: no host, an unreadable certificate, an unknown permission.
pub fn connect(identity: &Identity, settings: &Settings) -> anyhow::Result<Arc<Zookeeper>> {
    connect_with(identity, settings, |_| None)
}

/// The same, with a task that keeps the list of servers right.
fn connect_with(
    identity: &Identity,
    settings: &Settings,
    discover: impl FnOnce(&Arc<Servers>) -> Option<JoinHandle<()>>,
) -> anyhow::Result<Arc<Zookeeper>> {
    let (hosts, chroot) = addresses(&settings.hosts)?;
    let tls = if settings.use_ssl {
        let trust = match &settings.cacert {
            _ if !settings.verify => Trust::Anybody,
            Some(path) => Trust::Authorities(path),
            None => Trust::System,
        };
        let (cert, key) = (settings.cert.as_deref(), settings.key.as_deref());
        Some(tls::client(
            trust,
            cert,
            key,
            settings.key_password.as_deref(),
        )?)
    } else {
        None
    };
    let servers = Arc::new(Servers::new(hosts, tls, settings.auth_data.clone()));
    let discovering = discover(&servers);
    let keys = Keys::new(&format!("{chroot}{}", identity.base), identity.group);
    let copy = Arc::new(Copy::new(identity.name.clone()));
    let timings = Arc::new(Blocking::new(identity.timings()));
    let (asking, asked) = mpsc::channel(16);
    let reader = Reader {
        servers: Arc::clone(&servers),
        copy: Arc::clone(&copy),
        base: keys.prefix().trim_end_matches('/').to_owned(),
        above_groups: keys
            .of_all_groups()
            .prefix()
            .trim_end_matches('/')
            .to_owned(),
        watches: identity.name.is_some(),
        retry_timeout: {
            let timings = Arc::clone(&timings);
            Arc::new(move || current(&timings).retry_timeout)
        },
    };
    Ok(Arc::new(Zookeeper {
        keys,
        name: identity.name.clone(),
        acl: acls(&settings.set_acls)?,
        servers,
        copy,
        timings,
        owner: Mutex::new(Owner::default()),
        asking,
        reading: tokio::spawn(reader.run(asked)),
        discovering,
    }))
}

/// The servers, and the path behind the last of them.
fn addresses(hosts: &[String]) -> anyhow::Result<(Vec<String>, String)> {
    let mut chroot = String::new();
    let mut addresses = Vec::new();
    for host in hosts {
        let (host, path) = host
            .find('/')
            .map_or((host.as_str(), ""), |at| host.split_at(at));
        path.trim_end_matches('/').clone_into(&mut chroot);
        let address: crate::config::HostPort = host
            .trim()
            .parse()
            .map_err(|_| anyhow::anyhow!("{host:?} is not a ZooKeeper server (host:port)"))?;
        addresses.push(address.or_port(2181).to_string());
    }
    if addresses.is_empty() {
        bail!("no ZooKeeper server is configured (zookeeper.hosts)");
    }
    Ok((addresses, chroot))
}

/// Patroni's principals: `scheme:credential`, or a certificate's name.
fn acls(settings: &[(String, Vec<String>)]) -> anyhow::Result<Vec<Acl>> {
    if settings.is_empty() {
        return Ok(Acl::open());
    }
    let bit = |permission: &String| match permission.to_ascii_uppercase().as_str() {
        "READ" => Ok(1),
        "WRITE" => Ok(2),
        "CREATE" => Ok(4),
        "DELETE" => Ok(8),
        "ADMIN" => Ok(16),
        "ALL" => Ok(31),
        other => bail!("{other:?} in zookeeper.set_acls is no permission"),
    };
    settings
        .iter()
        .map(|(principal, permissions)| {
            let (scheme, id) = principal.split_once(':').unwrap_or(("x509", principal));
            let bits = permissions
                .iter()
                .map(bit)
                .collect::<anyhow::Result<Vec<i32>>>();
            Ok(Acl {
                permissions: bits?.into_iter().fold(0, |all, bit| all | bit),
                scheme: scheme.to_owned(),
                id: id.to_owned(),
            })
        })
        .collect::<anyhow::Result<_>>()
        .context("zookeeper.set_acls")
}

fn current(timings: &Blocking<Timings>) -> Timings {
    *timings.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One node's connections to ZooKeeper.
pub struct Zookeeper {
    keys: Keys,
    name: Option<MemberName>,
    acl: Vec<Acl>,
    servers: Arc<Servers>,
    copy: Arc<Copy>,
    timings: Arc<Blocking<Timings>>,
    owner: Mutex<Owner>,
    asking: mpsc::Sender<Asked>,
    reading: JoinHandle<()>,
    discovering: Option<JoinHandle<()>>,
}

impl Drop for Zookeeper {
    fn drop(&mut self) {
        self.reading.abort();
        if let Some(discovering) = &self.discovering {
            discovering.abort();
        }
    }
}

/// The session that owns this node's ephemeral nodes.
#[derive(Default)]
struct Owner {
    session: Option<Session>,
    connection: Option<Connection>,
    /// When the last successful reopening was sent.
    renewed: Option<Moment>,
    /// The newest change this session has seen; no server that is behind it may serve it.
    seen: i64,
}

impl Owner {
    fn id(&self) -> i64 {
        self.session.as_ref().map_or(0, |session| session.id)
    }

    fn owns(&self, owner: i64, token: &LeaseToken) -> bool {
        let granted = token.session.as_deref().and_then(|id| id.parse().ok());
        owner != 0 && (owner == self.id() || granted == Some(owner))
    }
}

/// Why there is no usable answer.
#[derive(Debug)]
enum Failure {
    /// Nothing can have been carried out.
    Unreachable(DcsError),
    /// It may have been carried out.
    Ambiguous(DcsError),
    /// The session is over, and with it everything it owned.
    SessionGone,
    /// The servers reject the request itself.
    Rejected(String),
}

/// What is left for the steps of one call (spec/dcs.md §4.3: a later step wants at least half a second).
const LEAST_STEP: Duration = Duration::from_millis(500);

/// The outcome of a write that ended in `failure`, when nothing can be learned by reading back.
fn failed<T>(failure: Failure) -> Write<T> {
    match failure {
        Failure::Unreachable(error) | Failure::Ambiguous(error) => Write::Unknown(error),
        Failure::SessionGone => Write::Refused(Refusal::Precondition),
        Failure::Rejected(detail) => Write::Refused(Refusal::Rejected(detail)),
    }
}

/// A refusal as the trait has it.
fn refusal<T>(code: Code) -> Write<T> {
    Write::Refused(match code {
        Code::NoNode | Code::NodeExists | Code::BadVersion | Code::NotEmpty => {
            Refusal::Precondition
        }
        Code::NoAuth => Refusal::Rejected(
            "zookeeper: not permitted (NoAuth); see zookeeper.auth_data and the nodes' ACLs"
                .to_owned(),
        ),
        other => Refusal::Rejected(format!("zookeeper: {other:?}")),
    })
}

fn index(zxid: i64) -> u64 {
    u64::try_from(zxid).unwrap_or(0)
}

/// The version of a node that a revision stands for; none stands for it beyond ZooKeeper's own numbers.
fn version(revision: Revision) -> i32 {
    i32::try_from(revision.0).unwrap_or(i32::MAX)
}

fn revision(version: i32) -> Revision {
    Revision(u64::try_from(version).unwrap_or(0))
}

fn lease(session: i64) -> Lease {
    Lease {
        token: LeaseToken {
            session: Some(session.to_string()),
            revision: Some(Revision(0)),
        },
    }
}

impl Zookeeper {
    fn timings(&self) -> Timings {
        current(&self.timings)
    }

    fn deadline(&self) -> Moment {
        clock::now() + self.timings().retry_timeout
    }

    fn silence(&self) -> Duration {
        copy::silence(self.timings().retry_timeout)
    }

    fn me(&self) -> Result<&MemberName, Refusal> {
        self.name.as_ref().ok_or_else(|| {
            Refusal::Rejected(
                "this connection has no member name, so it cannot own a key".to_owned(),
            )
        })
    }

    fn error(&self, detail: impl Into<String>) -> DcsError {
        DcsError {
            store: format!("zookeeper {}", self.servers.describe()),
            detail: detail.into(),
        }
    }

    /// Asks the reader.
    async fn read<T>(
        &self,
        what: impl FnOnce(oneshot::Sender<Result<T, String>>) -> reader::Answer,
    ) -> Result<T, DcsError> {
        let deadline = self.deadline();
        let (answer, answered) = oneshot::channel();
        let asking = async {
            let gone = || "the reader has ended".to_owned();
            self.asking
                .send((deadline, what(answer)))
                .await
                .map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        };
        match tokio::time::timeout(clock::now().until(deadline), asking).await {
            Ok(read) => read.map_err(|detail| self.error(detail)),
            Err(_) => {
                let why = self.servers.trouble();
                Err(self.error(why.unwrap_or_else(|| "no answer in time".to_owned())))
            }
        }
    }

    /// Reopens the owner's session, or opens a new one; after this it has its whole time.
    async fn reopen(&self, deadline: Moment, owner: &mut Owner) -> Result<(), Failure> {
        let timeout = i32::try_from(self.timings().ttl.as_millis()).unwrap_or(i32::MAX);
        loop {
            owner.connection = None;
            let mut wanted = owner
                .session
                .clone()
                .unwrap_or_else(|| Session::fresh(timeout));
            wanted.timeout = timeout;
            let sent = clock::now();
            match self.servers.connect(&wanted, owner.seen, deadline).await {
                Ok(connection) => {
                    let agreed = connection.session().clone();
                    if owner.session.is_none() && agreed.timeout > timeout {
                        tracing::warn!(
                            "zookeeper allows no session shorter than {} ms: a leader that vanishes is noticed after that, not after ttl; see minSessionTimeout",
                            agreed.timeout
                        );
                    }
                    owner.session = Some(agreed);
                    owner.connection = Some(connection);
                    owner.renewed = Some(sent);
                    return Ok(());
                }
                Err(NotConnected::Expired) if owner.session.is_some() => owner.session = None,
                Err(NotConnected::Expired) => {
                    return Err(Failure::Unreachable(self.error("a new session is refused")));
                }
                Err(NotConnected::Unreachable(detail)) => {
                    // A server that was wiped refuses whoever has seen more than it has. What this session owned is over by now.
                    let ttl = self.timings().ttl;
                    if owner.renewed.is_none_or(|at| clock::now().since(at) > ttl) {
                        owner.session = None;
                        owner.seen = 0;
                    }
                    return Err(Failure::Unreachable(self.error(detail)));
                }
            }
        }
    }

    /// A session that ends before `ttl` would let another node lead while this one still believes in its lease.
    fn long_enough(&self, owner: &Owner) -> Result<(), Failure> {
        let agreed = owner.session.as_ref().map_or(0, |session| session.timeout);
        let ttl = self.timings().ttl;
        if u128::try_from(agreed).unwrap_or(0) >= ttl.as_millis() {
            return Ok(());
        }
        Err(Failure::Rejected(format!(
            "zookeeper allows no session longer than {agreed} ms, ttl is {} s: lower ttl or raise maxSessionTimeout",
            ttl.as_secs()
        )))
    }

    /// Sends requests on the owner's session; one answer each.
    async fn ask(
        &self,
        deadline: Moment,
        owner: &mut Owner,
        requests: &[Request],
    ) -> Result<Vec<Answered>, Failure> {
        if owner.connection.is_none() {
            self.reopen(deadline, owner).await?;
        }
        let Some(connection) = &mut owner.connection else {
            return Err(Failure::Unreachable(self.error("not connected")));
        };
        // What is left after this is for reading back.
        let left = clock::now().until(deadline);
        let patience = left.saturating_sub(LEAST_STEP).max(left / 2);
        let exchange = tokio::time::timeout(patience, connection.exchange(requests));
        let detail = match exchange.await {
            Ok(Ok(answers)) => {
                let gone = |code: &Code| matches!(code, Code::SessionExpired);
                let moved = |code: &Code| matches!(code, Code::SessionMoved | Code::AuthFailed);
                let codes = || {
                    answers
                        .iter()
                        .filter_map(|(_, answer)| answer.as_ref().err())
                };
                if codes().any(gone) {
                    owner.connection = None;
                    owner.session = None;
                    return Err(Failure::SessionGone);
                }
                if codes().any(moved) {
                    owner.connection = None;
                    return Err(Failure::Ambiguous(self.error("the session has moved")));
                }
                let newest = answers.iter().map(|(zxid, _)| *zxid).max();
                owner.seen = owner.seen.max(newest.unwrap_or(0));
                return Ok(answers);
            }
            Ok(Err(lost)) => format!("{}: {}", connection.address(), lost.0),
            Err(_) => format!("{}: no answer in time", connection.address()),
        };
        owner.connection = None;
        Err(Failure::Ambiguous(self.error(detail)))
    }

    /// One request; the change it made or saw, and the answer.
    async fn one(
        &self,
        deadline: Moment,
        owner: &mut Owner,
        request: Request,
    ) -> Result<Answered, Failure> {
        let mut answers = self.ask(deadline, owner, &[request]).await?;
        answers
            .pop()
            .ok_or_else(|| Failure::Ambiguous(self.error("no answer")))
    }

    /// A node as the servers' leader has it.
    async fn get(
        &self,
        deadline: Moment,
        owner: &mut Owner,
        path: &str,
    ) -> Result<Option<(String, Stat)>, Failure> {
        let requests = [
            Request::Sync {
                path: path.to_owned(),
            },
            Request::Get {
                path: path.to_owned(),
                watch: false,
            },
        ];
        // Nothing is changed by it, so a broken connection is tried again.
        let mut answers = match self.ask(deadline, owner, &requests).await {
            Err(Failure::Ambiguous(_)) => self.ask(deadline, owner, &requests).await?,
            other => other?,
        };
        match answers.pop() {
            Some((_, Ok(Reply::Data(value, stat)))) => Ok(Some((value, stat))),
            Some((_, Err(Code::NoNode))) => Ok(None),
            other => Err(Failure::Rejected(format!("zookeeper: {other:?}"))),
        }
    }

    async fn read_back(
        &self,
        deadline: Moment,
        owner: &mut Owner,
        path: &str,
    ) -> Option<Option<(String, Stat)>> {
        if clock::now().until(deadline) < LEAST_STEP / 2 {
            return None;
        }
        self.get(deadline, owner, path).await.ok()
    }

    fn create_request(&self, path: &str, data: &str, ephemeral: bool) -> Request {
        Request::Create {
            path: path.to_owned(),
            data: data.to_owned(),
            ephemeral,
            acl: self.acl.clone(),
        }
    }

    /// Creates a node, its parents first where they are missing.
    async fn create(
        &self,
        deadline: Moment,
        owner: &mut Owner,
        path: &str,
        data: &str,
        ephemeral: bool,
    ) -> Result<Answered, Failure> {
        let node = self.create_request(path, data, ephemeral);
        let answer = self.one(deadline, owner, node.clone()).await?;
        if !matches!(answer, (_, Err(Code::NoNode))) {
            return Ok(answer);
        }
        let parents: Vec<Request> = path
            .match_indices('/')
            .skip(1)
            .filter_map(|(at, _)| path.get(..at))
            .map(|parent| self.create_request(parent, "", false))
            .collect();
        for (_, answer) in self.ask(deadline, owner, &parents).await? {
            if let Err(code @ (Code::NoAuth | Code::Other(_))) = answer {
                return Ok((0, Err(code)));
            }
        }
        self.one(deadline, owner, node).await
    }

    /// The owner's session, just renewed.
    async fn renewed(&self, deadline: Moment) -> Result<MutexGuard<'_, Owner>, Failure> {
        let mut owner = self.owner.lock().await;
        self.reopen(deadline, &mut owner).await?;
        Ok(owner)
    }

    /// Notes an own write in the copy.
    fn note(&self, relative: &str, value: &str, version: i32, session: i64, zxid: i64) {
        let stored = Stored {
            value: value.to_owned(),
            revision: revision(version).0,
            session: (session != 0).then(|| session.to_string()),
        };
        self.copy.wrote(relative, Some(stored), index(zxid));
    }

    /// Makes the leader node with my name on my session, in place of the version `over` where one is given.
    async fn claim(&self, over: Option<i32>) -> Write<Lease> {
        let me = match self.me() {
            Ok(me) => me.as_str(),
            Err(refusal) => return Write::Refused(refusal),
        };
        let deadline = self.deadline();
        let path = self.keys.leader();
        let mut owner = match self.renewed(deadline).await {
            Ok(owner) => owner,
            // Nothing but a session was asked for: the leader key is as it was.
            Err(failure) => return failed(failure),
        };
        if let Err(failure) = self.long_enough(&owner) {
            return failed(failure);
        }
        let answer = match over {
            None => self.create(deadline, &mut owner, &path, me, true).await,
            Some(version) => {
                let steps = vec![
                    Request::Delete {
                        path: path.clone(),
                        version,
                    },
                    self.create_request(&path, me, true),
                ];
                self.one(deadline, &mut owner, Request::Multi(steps)).await
            }
        };
        let session = owner.id();
        let mine = |found: Option<&(String, Stat)>| {
            found.is_some_and(|(value, stat)| value == me && stat.owner == session)
        };
        match answer {
            Ok((zxid, Ok(_))) => {
                self.note(keys::LEADER, me, 0, session, zxid);
                Write::Done(lease(session))
            }
            Ok((_, Err(Code::NodeExists | Code::NoNode | Code::BadVersion))) => {
                // A node that already has my name on my session is my own request, whose answer was lost.
                match self.get(deadline, &mut owner, &path).await {
                    Ok(found) if mine(found.as_ref()) => Write::Done(lease(session)),
                    Ok(_) => Write::Refused(Refusal::Precondition),
                    Err(failure) => failed(failure),
                }
            }
            Ok((_, Err(code))) => refusal(code),
            Err(Failure::Ambiguous(error)) => {
                // Absent or somebody else's proves nothing yet: the request may still be on its way.
                match self.read_back(deadline, &mut owner, &path).await {
                    Some(found) if mine(found.as_ref()) => Write::Done(lease(session)),
                    _ => Write::Unknown(error),
                }
            }
            Err(failure) => failed(failure),
        }
    }
}

#[async_trait]
impl Dcs for Zookeeper {
    fn store(&self) -> &'static str {
        "zookeeper"
    }

    async fn load(&self, freshness: Freshness) -> Result<Cluster, DcsError> {
        if freshness == Freshness::Recent
            && let Some(cluster) = self.copy.recent(self.silence())
        {
            return Ok(cluster);
        }
        self.read(reader::Answer::Cluster).await
    }

    async fn load_groups(&self) -> Result<BTreeMap<u32, Cluster>, DcsError> {
        self.read(reader::Answer::Groups).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.copy.changes()
    }

    async fn acquire(&self) -> Write<Lease> {
        self.claim(None).await
    }

    async fn adopt(&self, leader: &Leader) -> Write<Lease> {
        if self.name.as_ref() != Some(&leader.name) {
            return Write::Refused(Refusal::Precondition);
        }
        let deadline = self.deadline();
        let found = {
            let mut owner = self.owner.lock().await;
            match self.get(deadline, &mut owner, &self.keys.leader()).await {
                Ok(found) => found,
                Err(failure) => return failed(failure),
            }
        };
        // Versions of ephemeral nodes start again with each of them: the session tells them apart.
        match found {
            Some((value, stat))
                if value == leader.name.as_str()
                    && (stat.owner != 0).then(|| stat.owner.to_string()) == leader.session =>
            {
                self.claim(Some(stat.version)).await
            }
            _ => Write::Refused(Refusal::Precondition),
        }
    }

    async fn take(&self) -> Write<Lease> {
        let deadline = self.deadline();
        loop {
            let found = {
                let mut owner = self.owner.lock().await;
                match self.get(deadline, &mut owner, &self.keys.leader()).await {
                    Ok(found) => found,
                    Err(failure) => return failed(failure),
                }
            };
            let claimed = self.claim(found.map(|(_, stat)| stat.version)).await;
            let lost_a_race = matches!(claimed, Write::Refused(Refusal::Precondition));
            if !lost_a_race || clock::now().until(deadline) < LEAST_STEP {
                return claimed;
            }
        }
    }

    async fn renew(&self, lease: &Lease) -> Write {
        let me = match self.me() {
            Ok(me) => me.as_str(),
            Err(refusal) => return Write::Refused(refusal),
        };
        let deadline = self.deadline();
        let path = self.keys.leader();
        let mut owner = match self.renewed(deadline).await {
            Ok(owner) => owner,
            Err(failure) => return failed(failure),
        };
        if let Err(failure) = self.long_enough(&owner) {
            return failed(failure);
        }
        let (value, stat) = match self.get(deadline, &mut owner, &path).await {
            Ok(Some(found)) => found,
            Ok(None) => return Write::Refused(Refusal::Precondition),
            Err(failure) => return failed(failure),
        };
        // Somebody else's, or a namesake's on a session that was never ours.
        if value == me && stat.owner == owner.id() && owner.owns(stat.owner, &lease.token) {
            Write::Done(())
        } else {
            Write::Refused(Refusal::Precondition)
        }
    }

    async fn release(&self, lease: Lease) -> Write {
        let me = match self.me() {
            Ok(me) => me.as_str(),
            Err(refusal) => return Write::Refused(refusal),
        };
        let deadline = self.deadline();
        let path = self.keys.leader();
        let mut owner = self.owner.lock().await;
        let held = match self.get(deadline, &mut owner, &path).await {
            Ok(Some((value, stat))) if value == me && owner.owns(stat.owner, &lease.token) => stat,
            Ok(_) => return Write::Refused(Refusal::Precondition),
            Err(failure) => return failed(failure),
        };
        let delete = Request::Delete {
            path: path.clone(),
            version: held.version,
        };
        match self.one(deadline, &mut owner, delete).await {
            Ok((zxid, Ok(_))) => {
                self.copy.wrote(keys::LEADER, None, index(zxid));
                Write::Done(())
            }
            Ok((_, Err(code))) => refusal(code),
            Err(Failure::Ambiguous(error)) => {
                match self.read_back(deadline, &mut owner, &path).await {
                    Some(Some((_, stat))) if stat.owner == held.owner => Write::Unknown(error),
                    Some(_) => Write::Done(()),
                    None => Write::Unknown(error),
                }
            }
            // The node goes with its session.
            Err(Failure::SessionGone) => Write::Done(()),
            Err(failure) => failed(failure),
        }
    }

    async fn hand_over(&self, lease: Lease, _candidate: &Member) -> (Write, Option<Lease>) {
        (Write::Refused(Refusal::Precondition), Some(lease))
    }

    async fn put_member(&self, value: &str) -> Write {
        let me = match self.me() {
            Ok(me) => me,
            Err(refusal) => return Write::Refused(refusal),
        };
        let deadline = self.deadline();
        let relative = format!("{}{me}", keys::MEMBERS);
        let path = self.keys.member(me);
        let mut owner = self.owner.lock().await;
        let ttl = self.timings().ttl;
        // The leader has renewed its session in this very turn.
        let just_renewed = owner.connection.is_some()
            && owner
                .renewed
                .is_some_and(|at| clock::now().since(at) < ttl / 10);
        if !just_renewed && let Err(failure) = self.reopen(deadline, &mut owner).await {
            return failed(failure);
        }
        let known = self.copy.recent_key(&relative, self.silence());
        let session = owner.id();
        if known.is_some_and(|known| {
            known.session == Some(session.to_string()) && wire::same_text(&known.value, value)
        }) {
            return Write::Done(());
        }
        let found = match self.get(deadline, &mut owner, &path).await {
            Ok(found) => found,
            Err(failure) => return failed(failure),
        };
        let answer = match found {
            None => self.create(deadline, &mut owner, &path, value, true).await,
            Some((held, stat)) if stat.owner == session => {
                if wire::same_text(&held, value) {
                    return Write::Done(());
                }
                let set = Request::Set {
                    path,
                    data: value.to_owned(),
                    version: ANY,
                };
                self.one(deadline, &mut owner, set).await
            }
            Some((_, stat)) => {
                let steps = vec![
                    Request::Delete {
                        path: path.clone(),
                        version: stat.version,
                    },
                    self.create_request(&path, value, true),
                ];
                self.one(deadline, &mut owner, Request::Multi(steps)).await
            }
        };
        match answer {
            Ok((zxid, Ok(reply))) => {
                let version = match reply {
                    Reply::Stat(stat) => stat.version,
                    _ => 0,
                };
                self.note(&relative, value, version, session, zxid);
                Write::Done(())
            }
            Ok((_, Err(code))) => refusal(code),
            Err(failure) => failed(failure),
        }
    }

    async fn delete_member(&self) -> Write {
        let me = match self.me() {
            Ok(me) => me,
            Err(refusal) => return Write::Refused(refusal),
        };
        let deadline = self.deadline();
        let mut owner = self.owner.lock().await;
        let delete = Request::Delete {
            path: self.keys.member(me),
            version: ANY,
        };
        match self.one(deadline, &mut owner, delete).await {
            Ok((zxid, Ok(_))) => {
                let relative = format!("{}{me}", keys::MEMBERS);
                self.copy.wrote(&relative, None, index(zxid));
                Write::Done(())
            }
            Ok((_, Err(Code::NoNode))) => Write::Done(()),
            Ok((_, Err(code))) => refusal(code),
            Err(failure) => failed(failure),
        }
    }

    async fn put(&self, document: Document, value: &str, expect: Expect) -> Write<Revision> {
        let deadline = self.deadline();
        let path = self.keys.document(document);
        let mut owner = self.owner.lock().await;
        let set = |version: i32| Request::Set {
            path: path.clone(),
            data: value.to_owned(),
            version,
        };
        let answer = match expect {
            Expect::Absent => self.create(deadline, &mut owner, &path, value, false).await,
            Expect::At(at) => self.one(deadline, &mut owner, set(version(at))).await,
            Expect::Anything => match self.one(deadline, &mut owner, set(ANY)).await {
                Ok((_, Err(Code::NoNode))) => {
                    match self.create(deadline, &mut owner, &path, value, false).await {
                        Ok((_, Err(Code::NodeExists))) => {
                            self.one(deadline, &mut owner, set(ANY)).await
                        }
                        other => other,
                    }
                }
                other => other,
            },
        };
        match answer {
            Ok((zxid, Ok(reply))) => {
                let version = match reply {
                    Reply::Stat(stat) => stat.version,
                    _ => 0,
                };
                self.note(document.key(), value, version, 0, zxid);
                Write::Done(revision(version))
            }
            Ok((_, Err(code))) => refusal(code),
            Err(Failure::Ambiguous(error)) => {
                match self.read_back(deadline, &mut owner, &path).await {
                    Some(Some((found, stat))) if found == value && may_be_ours(stat, expect) => {
                        Write::Done(revision(stat.version))
                    }
                    _ => Write::Unknown(error),
                }
            }
            Err(failure) => failed(failure),
        }
    }

    /// `sync` is emptied instead, as the reference does it: its version goes on counting.
    async fn delete(&self, document: Document, expect: Expect) -> Write {
        if document == Document::Sync && expect != Expect::Absent {
            return match self.put(document, "{}", expect).await {
                Write::Done(_) => Write::Done(()),
                Write::Refused(refusal) => Write::Refused(refusal),
                Write::Unknown(error) => Write::Unknown(error),
            };
        }
        let deadline = self.deadline();
        let path = self.keys.document(document);
        let mut owner = self.owner.lock().await;
        let delete = Request::Delete {
            path: path.clone(),
            version: match expect {
                Expect::At(at) => version(at),
                Expect::Anything | Expect::Absent => ANY,
            },
        };
        match self.one(deadline, &mut owner, delete).await {
            Ok((zxid, Ok(_))) => {
                self.copy.wrote(document.key(), None, index(zxid));
                Write::Done(())
            }
            Ok((_, Err(Code::NoNode))) if !matches!(expect, Expect::At(_)) => Write::Done(()),
            Ok((_, Err(code))) => refusal(code),
            Err(Failure::Ambiguous(error)) => {
                match self.read_back(deadline, &mut owner, &path).await {
                    Some(None) => Write::Done(()),
                    _ => Write::Unknown(error),
                }
            }
            Err(failure) => failed(failure),
        }
    }

    async fn delete_cluster(&self) -> Write {
        let deadline = self.deadline();
        let base = self.keys.prefix().trim_end_matches('/').to_owned();
        let mut owner = self.owner.lock().await;
        // Depth first; what members write in the meantime is found in the next pass.
        loop {
            let mut open = vec![base.clone()];
            let mut found = Vec::new();
            while let Some(path) = open.pop() {
                let children = Request::Children {
                    path: path.clone(),
                    watch: false,
                };
                match self.one(deadline, &mut owner, children).await {
                    Ok((_, Ok(Reply::Children(names)))) => {
                        open.extend(names.iter().map(|name| format!("{path}/{name}")));
                        found.push(path);
                    }
                    Ok((_, Ok(_) | Err(Code::NoNode))) => {}
                    Ok((_, Err(code))) => return refusal(code),
                    Err(failure) => return failed(failure),
                }
            }
            if found.is_empty() {
                self.copy.set_alive(false);
                return Write::Done(());
            }
            let deletions: Vec<Request> = found
                .into_iter()
                .rev()
                .map(|path| Request::Delete { path, version: ANY })
                .collect();
            match self.ask(deadline, &mut owner, &deletions).await {
                Ok(answers) => {
                    let denied = answers.into_iter().find_map(|(_, answer)| match answer {
                        Err(code @ (Code::NoAuth | Code::Other(_))) => Some(code),
                        _ => None,
                    });
                    if let Some(code) = denied {
                        return refusal(code);
                    }
                }
                Err(failure) => return failed(failure),
            }
        }
    }

    fn set_timings(&self, ttl: Duration, retry_timeout: Duration) {
        *self.timings.lock().unwrap_or_else(PoisonError::into_inner) =
            Timings { ttl, retry_timeout };
    }

    /// Ends nothing: the keys of a member that stops stay until its session ends.
    async fn leave(&self) {
        self.owner.lock().await.connection = None;
    }
}

/// Whether a value read back proves that a write with this condition has happened: nobody else can have put it there, or it does
/// not matter who did.
fn may_be_ours(found: Stat, expect: Expect) -> bool {
    match expect {
        Expect::Anything => true,
        Expect::At(revision) => found.version > version(revision),
        // A race for creation: the others write the same value (`initialize` is empty), so finding it proves nothing.
        Expect::Absent => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_ports_and_a_path() {
        let hosts = ["zk1", "zk2:2182", "[fd00::1]:2181/patroni"].map(str::to_owned);
        let (addresses, chroot) = addresses(&hosts).unwrap();
        assert_eq!(addresses, ["zk1:2181", "zk2:2182", "[fd00::1]:2181"]);
        assert_eq!(chroot, "/patroni");
        assert!(super::addresses(&[]).is_err());
    }

    #[test]
    fn permissions_of_principals() {
        let settings = [
            ("CN=pg".to_owned(), vec!["ALL".to_owned()]),
            (
                "digest:u:hash".to_owned(),
                vec!["read".to_owned(), "WRITE".to_owned()],
            ),
        ];
        let acls = acls(&settings).unwrap();
        assert_eq!((acls[0].scheme.as_str(), acls[0].permissions), ("x509", 31));
        assert_eq!(
            (acls[1].scheme.as_str(), acls[1].id.as_str()),
            ("digest", "u:hash")
        );
        assert_eq!(acls[1].permissions, 3);
        let unknown = [("x".to_owned(), vec!["FLY".to_owned()])];
        assert!(super::acls(&unknown).is_err());
    }
}
