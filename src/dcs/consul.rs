//! Consul through its HTTP API: one agent, one session per node, transactions (spec/dcs.md §5.4).
//!
//! Python nodes see the same keys, sessions and indexes. Where they write in two steps and trust the second, this side uses one
//! transaction: moving a key from an old session to a new one, giving the leader key away, creating a document that must not exist.
//!
//! No client library is used: the maintained ones hide which requests may have been carried out, and bring an HTTP stack of their own.

mod agent;
mod service;
mod watcher;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use self::agent::{Agent, Failure, Found, Op, Outcome};
use self::service::Registration;
use super::copy::{self, Copy, Stored};
use super::keys::{self, Keys};
use super::tls::{self, Trust};
use super::{
    Dcs, DcsError, Document, Expect, Freshness, Identity, Lease, LeaseToken, Refusal, Write,
};
use crate::clock;
use crate::cluster::{Cluster, Leader, Member, wire};
use crate::types::{MemberName, Moment, Revision};

/// The `consul` section of the configuration, names and meanings as Patroni has them.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The agent: `http(s)://host[:port]`.
    pub url: String,
    /// ACL token.
    pub token: Option<String>,
    /// Whether the agent's certificate is verified.
    pub verify: bool,
    /// Authorities of that certificate; without one the system's.
    pub cacert: Option<PathBuf>,
    /// Client certificate; without `key` a PEM file that holds both.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Data centre; without one the agent's.
    pub dc: Option<String>,
    /// How the watch reads: `default`, `consistent` or `stale`. What must be new is read consistently in any case.
    pub consistency: String,
    /// Health checks the session hangs on besides its own time to live.
    pub checks: Vec<String>,
    /// The cluster's name, for the session and the service.
    pub scope: String,
    /// Registers the members as a service, if wanted.
    pub service: Option<ServiceSettings>,
}

/// How members are registered as a service.
#[derive(Debug, Clone, Default)]
pub struct ServiceSettings {
    /// Tags besides the role.
    pub tags: Vec<String>,
    /// Interval of the health check (`5s`).
    pub check_interval: String,
    /// Server name the check expects in the API's certificate.
    pub check_tls_server_name: Option<String>,
}

/// Opens the store. Nothing is sent yet: an unreachable agent shows with the first call. Needs a running tokio runtime.
///
/// # Errors
/// Settings that can never work: no URL, an unreadable certificate.
pub fn connect(identity: &Identity, settings: &Settings) -> anyhow::Result<Arc<Consul>> {
    let trust = match &settings.cacert {
        _ if !settings.verify => Trust::Anybody,
        Some(path) => Trust::Authorities(path),
        None => Trust::System,
    };
    let tls = tls::client(
        trust,
        settings.cert.as_deref(),
        settings.key.as_deref(),
        None,
    )?;
    let agent = Arc::new(Agent::new(settings, &tls, identity)?);
    let keys = Keys::of(identity);
    let copy = Arc::new(Copy::new(identity.name.clone()));
    // ctl reads once or twice and always the latest: no watch for it.
    let watching = identity.name.is_some().then(|| {
        tokio::spawn(watcher::run(
            Arc::clone(&agent),
            Arc::clone(&copy),
            keys.clone(),
        ))
    });
    let registration = settings
        .service
        .clone()
        .zip(identity.name.clone())
        .map(|(service, name)| Registration::new(&settings.scope, &name, service));
    Ok(Arc::new(Consul {
        keys,
        name: identity.name.clone(),
        scope: settings.scope.clone(),
        checks: settings.checks.clone(),
        agent,
        copy,
        session: Mutex::new(Session::default()),
        registration: Mutex::new(registration),
        watching,
    }))
}

/// One node's connection to Consul.
pub struct Consul {
    keys: Keys,
    name: Option<MemberName>,
    scope: String,
    checks: Vec<String>,
    agent: Arc<Agent>,
    copy: Arc<Copy>,
    session: Mutex<Session>,
    registration: Mutex<Option<Registration>>,
    watching: Option<JoinHandle<()>>,
}

impl Drop for Consul {
    fn drop(&mut self) {
        if let Some(watching) = &self.watching {
            watching.abort();
        }
    }
}

/// The node's session as it is known here.
#[derive(Debug, Default)]
struct Session {
    /// Its id, and the ttl of the cluster when it was made.
    id: Option<(String, Duration)>,
    /// The session before a change of ttl: keys found on it are still this node's.
    previous: Option<String>,
    /// When the last successful renewal was sent.
    renewed: Option<Moment>,
    /// The shortest session the servers allow, once they have refused a shorter one.
    shortest: Option<Duration>,
}

impl Session {
    fn owns(&self, session: Option<&str>, token: &LeaseToken) -> bool {
        let mine = [
            self.id.as_ref().map(|(id, _)| id.as_str()),
            self.previous.as_deref(),
            token.session.as_deref(),
        ];
        session.is_some() && mine.contains(&session)
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

fn lease(session: &str, revision: u64) -> Lease {
    Lease {
        token: LeaseToken {
            session: Some(session.to_owned()),
            revision: Some(Revision(revision)),
        },
    }
}

impl Consul {
    fn me(&self) -> Result<&MemberName, Refusal> {
        self.name.as_ref().ok_or_else(|| {
            Refusal::Rejected(
                "this connection has no member name, so it cannot own a key".to_owned(),
            )
        })
    }

    fn silence(&self) -> Duration {
        copy::silence(self.agent.timings().retry_timeout)
    }

    /// Consul's keys have no slash in front.
    fn key<'a>(&self, absolute: &'a str) -> &'a str {
        absolute.trim_start_matches('/')
    }

    fn document_key(&self, document: Document) -> String {
        self.key(&self.keys.document(document)).to_owned()
    }

    fn leader_key(&self) -> String {
        self.key(&self.keys.leader()).to_owned()
    }

    /// Everything, newer than any write before, and kept as the copy.
    async fn read_all(&self, deadline: Moment) -> Result<Cluster, Failure> {
        let before = self.copy.index();
        let (contents, index) = self.agent.list(deadline, self.keys.prefix(), None).await?;
        let cluster = copy::assemble(&contents);
        self.copy.replace(contents, index, index < before);
        Ok(cluster)
    }

    async fn read_back(&self, deadline: Moment, key: &str) -> Option<Option<Found>> {
        if clock::now().until(deadline) < LEAST_STEP / 2 {
            return None;
        }
        self.agent.get(deadline, key).await.ok()
    }

    /// After a deletion, whose count no answer tells: reads everything, so that the copy cannot show the deleted key again.
    async fn forget_deleted(&self, deadline: Moment) {
        if self.watching.is_some() && self.read_all(deadline).await.is_err() {
            self.copy.set_alive(false);
        }
    }

    /// Notes an own write in the copy.
    fn note(&self, relative: &str, value: &str, revision: u64, session: Option<&str>) {
        let stored = Stored {
            value: value.to_owned(),
            revision,
            session: session.map(str::to_owned),
        };
        self.copy.wrote(relative, Some(stored), revision);
    }

    /// A new session in place of the one there was.
    async fn create(&self, deadline: Moment, session: &mut Session) -> Result<String, Failure> {
        let ttl = self.agent.timings().ttl;
        let me = self.name.as_ref().map_or("ctl", MemberName::as_str);
        let name = format!("{}-{me}", self.scope);
        // Consul ends a session after twice its ttl at the latest, and its servers take that time.
        let wanted = |session: &Session| (ttl / 2).max(session.shortest.unwrap_or_default());
        let sent = clock::now();
        let mut lasts = wanted(session);
        let id = match self
            .agent
            .create_session(deadline, &name, &self.checks, lasts)
            .await?
        {
            Ok(id) => id,
            Err(shortest) => {
                tracing::warn!(
                    "consul allows no session shorter than {shortest:?}: a leader that vanishes is noticed after {:?}, not after ttl {ttl:?}; see session_ttl_min in consul's configuration",
                    shortest * 2
                );
                session.shortest = Some(shortest);
                lasts = wanted(session);
                let again = self
                    .agent
                    .create_session(deadline, &name, &self.checks, lasts);
                again.await?.map_err(|shortest| {
                    Failure::Rejected(format!(
                        "consul refuses sessions of {lasts:?}, it wants {shortest:?}"
                    ))
                })?
            }
        };
        if let Some((before, _)) = session.id.take() {
            session.previous = Some(before);
        }
        session.id = Some((id.clone(), ttl));
        session.renewed = Some(sent);
        Ok(id)
    }

    /// The node's session, just renewed; a new one if there is none, it is gone, or `ttl` has changed.
    async fn renewed(&self, deadline: Moment, session: &mut Session) -> Result<String, Failure> {
        let current = match &session.id {
            Some((id, ttl)) if *ttl == self.agent.timings().ttl => Some(id.clone()),
            _ => None,
        };
        let sent = clock::now();
        match current {
            Some(id) if self.agent.renew_session(deadline, &id).await? => {
                session.renewed = Some(sent);
                Ok(id)
            }
            _ => self.create(deadline, session).await,
        }
    }

    /// Puts my name on my session into the leader key, after `conditions` in the same transaction.
    async fn claim(&self, conditions: impl Fn(&str) -> Vec<Op>) -> Write<Lease> {
        let me = match self.me() {
            Ok(me) => me.as_str(),
            Err(refusal) => return Write::Refused(refusal),
        };
        let deadline = self.agent.deadline();
        let mut session = self.session.lock().await;
        let key = self.leader_key();
        let mut id = match self.renewed(deadline, &mut session).await {
            Ok(id) => id,
            // Nothing but a session was asked for: the leader key is as it was.
            Err(failure) => return failed(failure),
        };
        for last_try in [false, true] {
            let mut ops = conditions(&key);
            ops.push(Op::lock(&key, me, &id));
            match self.agent.transaction(deadline, &ops).await {
                Ok(Outcome::Done(revision)) => {
                    self.note(keys::LEADER, me, revision, Some(&id));
                    return Write::Done(lease(&id, revision));
                }
                Ok(Outcome::SessionGone) if !last_try => {
                    // It ended between its renewal and now.
                    session.id = None;
                    id = match self.create(deadline, &mut session).await {
                        Ok(id) => id,
                        Err(failure) => return failed(failure),
                    };
                }
                Ok(Outcome::SessionGone) => break,
                Ok(Outcome::Conflict) => {
                    // A key that already has my name on my session is my own request, whose answer was lost.
                    return match self.agent.get(deadline, &key).await {
                        Ok(Some(found)) if found.is(me, &id) => {
                            Write::Done(lease(&id, found.revision))
                        }
                        Ok(_) => Write::Refused(Refusal::Precondition),
                        Err(failure) => failed(failure),
                    };
                }
                Err(Failure::Ambiguous(error)) => {
                    // Absent or somebody else's proves nothing yet: the request may still be on its way.
                    return match self.read_back(deadline, &key).await {
                        Some(Some(found)) if found.is(me, &id) => {
                            Write::Done(lease(&id, found.revision))
                        }
                        _ => Write::Unknown(error),
                    };
                }
                Err(failure) => return failed(failure),
            }
        }
        Write::Refused(Refusal::Precondition)
    }

    /// The leader key if it is mine by `token`, as of now.
    async fn owned(&self, deadline: Moment, token: &LeaseToken) -> Result<Option<Found>, Failure> {
        let Some(me) = &self.name else {
            return Ok(None);
        };
        let session = self.session.lock().await;
        let found = self.agent.get(deadline, &self.leader_key()).await?;
        Ok(found.filter(|found| {
            found.value == me.as_str() && session.owns(found.session.as_deref(), token)
        }))
    }

    async fn renew_within(&self, deadline: Moment, token: &LeaseToken) -> Write {
        let me = match self.me() {
            Ok(me) => me.as_str(),
            Err(refusal) => return Write::Refused(refusal),
        };
        let mut session = self.session.lock().await;
        let key = self.leader_key();
        let current = match &session.id {
            Some((id, ttl)) if *ttl == self.agent.timings().ttl => Some(id.clone()),
            _ => None,
        };
        let sent = clock::now();
        let (kept, found) = tokio::join!(
            async {
                match &current {
                    Some(id) => self.agent.renew_session(deadline, id).await,
                    None => Ok(false),
                }
            },
            self.agent.get(deadline, &key)
        );
        let kept = match kept {
            Ok(kept) => kept,
            Err(failure) => return failed(failure),
        };
        if kept {
            session.renewed = Some(sent);
        }
        let held = match found {
            Ok(Some(found))
                if found.value == me && session.owns(found.session.as_deref(), token) =>
            {
                found
            }
            // Gone, somebody else's, or a namesake's on a session that was never ours.
            Ok(_) => return Write::Refused(Refusal::Precondition),
            Err(failure) => return failed(failure),
        };
        if kept && held.session == current {
            return Write::Done(());
        }
        // The key goes with the session that is gone; on another one of ours it is moved to a new session.
        if !kept && held.session == current {
            session.id = None;
            return Write::Refused(Refusal::Precondition);
        }
        let id = match current.filter(|_| kept) {
            Some(id) => id,
            None => match self.create(deadline, &mut session).await {
                Ok(id) => id,
                Err(failure) => return failed(failure),
            },
        };
        let ops = [
            Op::at(&key, held.revision),
            Op::delete(&key),
            Op::lock(&key, me, &id),
        ];
        match self.agent.transaction(deadline, &ops).await {
            Ok(Outcome::Done(revision)) => {
                self.note(keys::LEADER, me, revision, Some(&id));
                Write::Done(())
            }
            Ok(_) => Write::Refused(Refusal::Precondition),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, &key).await {
                Some(Some(found)) if found.is(me, &id) => Write::Done(()),
                _ => Write::Unknown(error),
            },
            Err(failure) => failed(failure),
        }
    }

    /// Registers or deregisters this node's service if what it publishes has changed. A failure is tried again with the next turn.
    async fn register(&self, deadline: Moment, value: &str) {
        let mut registration = self.registration.lock().await;
        let Some(registration) = registration.as_mut() else {
            return;
        };
        let Some(request) = registration.due(value, self.agent.timings().ttl) else {
            return;
        };
        match self.agent.service(deadline, &request).await {
            Ok(()) => registration.done(request),
            Err(error) => tracing::warn!(
                "cannot keep the service of this member in consul up to date: {error}"
            ),
        }
    }
}

fn conditions(key: &str, expect: Expect) -> Vec<Op> {
    match expect {
        Expect::Anything => Vec::new(),
        Expect::Absent => vec![Op::absent(key)],
        Expect::At(revision) => vec![Op::at(key, revision.0)],
    }
}

#[async_trait]
impl Dcs for Consul {
    fn store(&self) -> &'static str {
        "consul"
    }

    async fn load(&self, freshness: Freshness) -> Result<Cluster, DcsError> {
        if freshness == Freshness::Recent
            && let Some(cluster) = self.copy.recent(self.silence())
        {
            return Ok(cluster);
        }
        let loaded = self.read_all(self.agent.deadline()).await;
        loaded.map_err(|failure| self.agent.error(failure))
    }

    async fn load_groups(&self) -> Result<BTreeMap<u32, Cluster>, DcsError> {
        let all = self.keys.of_all_groups();
        let deadline = self.agent.deadline();
        let listed = self.agent.list(deadline, all.prefix(), None).await;
        listed
            .map(|(contents, _)| copy::assemble_groups(&contents))
            .map_err(|failure| self.agent.error(failure))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.copy.changes()
    }

    async fn acquire(&self) -> Write<Lease> {
        self.claim(|key| vec![Op::absent(key)]).await
    }

    async fn adopt(&self, leader: &Leader) -> Write<Lease> {
        if self.name.as_ref() != Some(&leader.name) {
            return Write::Refused(Refusal::Precondition);
        }
        self.claim(|key| vec![Op::at(key, leader.revision.0), Op::delete(key)])
            .await
    }

    async fn take(&self) -> Write<Lease> {
        self.claim(|key| vec![Op::delete(key)]).await
    }

    async fn renew(&self, lease: &Lease) -> Write {
        self.renew_within(self.agent.deadline(), &lease.token).await
    }

    async fn release(&self, lease: Lease) -> Write {
        let deadline = self.agent.deadline();
        let held = match self.owned(deadline, &lease.token).await {
            Ok(Some(found)) => found,
            Ok(None) => return Write::Refused(Refusal::Precondition),
            Err(failure) => return failed(failure),
        };
        let key = self.leader_key();
        let ops = [Op::at(&key, held.revision), Op::delete(&key)];
        match self.agent.transaction(deadline, &ops).await {
            Ok(Outcome::Done(_)) => {
                self.forget_deleted(deadline).await;
                Write::Done(())
            }
            Ok(_) => Write::Refused(Refusal::Precondition),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, &key).await {
                Some(Some(found)) if found.revision == held.revision => Write::Unknown(error),
                Some(_) => {
                    self.forget_deleted(deadline).await;
                    Write::Done(())
                }
                None => Write::Unknown(error),
            },
            Err(failure) => failed(failure),
        }
    }

    async fn hand_over(&self, lease: Lease, candidate: &Member) -> (Write, Option<Lease>) {
        let Some(session) = &candidate.session else {
            return (Write::Refused(Refusal::Precondition), Some(lease));
        };
        let deadline = self.agent.deadline();
        let held = match self.owned(deadline, &lease.token).await {
            Ok(Some(found)) => found,
            Ok(None) => return (Write::Refused(Refusal::Precondition), None),
            Err(failure) => return (failed(failure), Some(lease)),
        };
        let (key, name) = (self.leader_key(), candidate.name.as_str());
        let ops = [
            Op::at(&key, held.revision),
            Op::delete(&key),
            Op::lock(&key, name, session),
        ];
        match self.agent.transaction(deadline, &ops).await {
            Ok(Outcome::Done(revision)) => {
                self.note(keys::LEADER, name, revision, Some(session));
                (Write::Done(()), None)
            }
            Ok(Outcome::SessionGone) => (Write::Refused(Refusal::Precondition), Some(lease)),
            Ok(Outcome::Conflict) => (Write::Refused(Refusal::Precondition), None),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, &key).await {
                Some(Some(found)) if found.is(name, session) => (Write::Done(()), None),
                _ => (Write::Unknown(error), Some(lease)),
            },
            Err(failure) => (failed(failure), Some(lease)),
        }
    }

    async fn put_member(&self, value: &str) -> Write {
        let me = match self.me() {
            Ok(me) => me,
            Err(refusal) => return Write::Refused(refusal),
        };
        let deadline = self.agent.deadline();
        let relative = format!("{}{me}", keys::MEMBERS);
        let absolute = self.keys.member(me);
        let key = self.key(&absolute);
        let mut session = self.session.lock().await;
        let ttl = self.agent.timings().ttl;
        let just_renewed = session
            .renewed
            .is_some_and(|at| clock::now().since(at) < ttl / 10);
        let mut id = match &session.id {
            // The leader has renewed its session in this very turn.
            Some((id, granted)) if just_renewed && *granted == ttl => id.clone(),
            _ => match self.renewed(deadline, &mut session).await {
                Ok(id) => id,
                Err(failure) => return failed(failure),
            },
        };
        self.register(deadline, value).await;
        let known = self.copy.recent_key(&relative, self.silence());
        let mine = |known: &Stored, id: &str| known.session.as_deref() == Some(id);
        if known
            .as_ref()
            .is_some_and(|known| mine(known, &id) && wire::same_text(&known.value, value))
        {
            return Write::Done(());
        }
        for last_try in [false, true] {
            let mut ops = Vec::new();
            // A key on another session cannot be locked; it goes in the same transaction.
            if !known.as_ref().is_some_and(|known| mine(known, &id)) {
                ops.push(Op::delete(key));
            }
            ops.push(Op::lock(key, value, &id));
            match self.agent.transaction(deadline, &ops).await {
                Ok(Outcome::Done(revision)) => {
                    self.note(&relative, value, revision, Some(&id));
                    return Write::Done(());
                }
                Ok(Outcome::SessionGone) if !last_try => {
                    session.id = None;
                    id = match self.create(deadline, &mut session).await {
                        Ok(id) => id,
                        Err(failure) => return failed(failure),
                    };
                }
                Ok(_) => return Write::Refused(Refusal::Precondition),
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
        let deadline = self.agent.deadline();
        let ops = [Op::delete(self.key(&self.keys.member(me)))];
        // Only this node writes the key, and it waits for this call: deleting twice is deleting once.
        match self.agent.repeatable(deadline, &ops).await {
            Ok(_) => {
                self.forget_deleted(deadline).await;
                Write::Done(())
            }
            Err(failure) => failed(failure),
        }
    }

    async fn put(&self, document: Document, value: &str, expect: Expect) -> Write<Revision> {
        let deadline = self.agent.deadline();
        let key = self.document_key(document);
        let mut ops = conditions(&key, expect);
        ops.push(Op::set(&key, value));
        match self.agent.transaction(deadline, &ops).await {
            Ok(Outcome::Done(revision)) => {
                self.note(document.key(), value, revision, None);
                Write::Done(Revision(revision))
            }
            Ok(_) => Write::Refused(Refusal::Precondition),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, &key).await {
                Some(Some(found)) if found.value == value && may_be_ours(&found, expect) => {
                    self.note(document.key(), value, found.revision, None);
                    Write::Done(Revision(found.revision))
                }
                _ => Write::Unknown(error),
            },
            Err(failure) => failed(failure),
        }
    }

    async fn delete(&self, document: Document, expect: Expect) -> Write {
        let deadline = self.agent.deadline();
        let key = self.document_key(document);
        let mut ops = conditions(&key, expect);
        ops.push(Op::delete(&key));
        match self.agent.transaction(deadline, &ops).await {
            Ok(Outcome::Done(_)) => {
                self.forget_deleted(deadline).await;
                Write::Done(())
            }
            Ok(_) => Write::Refused(Refusal::Precondition),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, &key).await {
                Some(None) => {
                    self.forget_deleted(deadline).await;
                    Write::Done(())
                }
                _ => Write::Unknown(error),
            },
            Err(failure) => failed(failure),
        }
    }

    async fn delete_cluster(&self) -> Write {
        let deadline = self.agent.deadline();
        let prefix = self.keys.prefix();
        let ops = [Op::delete_tree(self.key(prefix))];
        match self.agent.repeatable(deadline, &ops).await {
            Ok(_) => {
                self.forget_deleted(deadline).await;
                Write::Done(())
            }
            Err(failure) => failed(failure),
        }
    }

    fn set_timings(&self, ttl: Duration, retry_timeout: Duration) {
        self.agent.set_timings(ttl, retry_timeout);
    }
}

/// Whether a value read back proves that a write with this condition has happened: nobody else can have put it there, or it does
/// not matter who did.
fn may_be_ours(found: &Found, expect: Expect) -> bool {
    match expect {
        Expect::Anything => true,
        Expect::At(revision) => found.revision > revision.0,
        // A race for creation: the others write the same value (`initialize` is empty), so finding it proves nothing.
        Expect::Absent => false,
    }
}
