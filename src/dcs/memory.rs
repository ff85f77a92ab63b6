//! The reference store: what the trait means, in its shortest form. Tests and the simulator run on it; nobody deploys it.
//!
//! [`MemoryState`] and [`MemoryNode`] are plain data: every call takes the time, nothing blocks, nothing is shared. The simulator
//! uses them directly. [`MemoryStore`] puts them behind one mutex, a clock function and the async trait, with switches for the
//! faults that a real store shows. It never waits and never reads a clock of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::keys::{self, Keys};
use super::{
    Dcs, DcsError, Document, Expect, Freshness, Identity, Lease, LeaseToken, Refusal, Store, Write,
};
use crate::cluster::wire::{self, Entry};
use crate::cluster::{Cluster, Leader, Member};
use crate::types::{MemberName, Moment, Revision};

/// One value in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stored {
    value: String,
    revision: Revision,
    session: Option<u64>,
}

/// What keeps the ephemeral keys of one node alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Session {
    ttl: Duration,
    expires: Moment,
}

/// The whole store: keys with revisions, sessions with a time to live.
#[derive(Debug, Clone, Default)]
pub struct MemoryState {
    revision: u64,
    keys: BTreeMap<String, Stored>,
    last_session: u64,
    sessions: BTreeMap<u64, Session>,
}

/// What one node remembers between calls: who it is and which session is its own.
#[derive(Debug, Clone)]
pub struct MemoryNode {
    keys: Keys,
    name: Option<MemberName>,
    ttl: Duration,
    session: Option<u64>,
    /// The session before the last change of `ttl`: keys found on it are still this node's.
    previous_session: Option<u64>,
}

impl MemoryNode {
    /// A node that has not spoken to the store yet.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        MemoryNode {
            keys: Keys::of(identity),
            name: identity.name.clone(),
            ttl: identity.ttl,
            session: None,
            previous_session: None,
        }
    }

    /// A new time to live; takes effect with the next renewal, on a new session.
    pub fn set_ttl(&mut self, ttl: Duration) {
        self.ttl = ttl;
    }

    /// The session this node believes in, as it appears in snapshots.
    #[must_use]
    pub fn session(&self) -> Option<String> {
        self.session.map(|id| id.to_string())
    }

    fn owns(&self, session: Option<u64>) -> bool {
        session.is_some() && (session == self.session || session == self.previous_session)
    }

    fn lease(&self, revision: Revision) -> Lease {
        Lease {
            token: LeaseToken {
                session: self.session(),
                revision: Some(revision),
            },
        }
    }
}

/// A refusal for callers without a name (ctl), who own nothing.
fn nameless<T>() -> Write<T> {
    Write::Refused(Refusal::Rejected(
        "this connection has no member name, so it cannot own a key".to_owned(),
    ))
}

impl MemoryState {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        MemoryState::default()
    }

    /// Changes with every visible change of any key, expiries that were carried out included.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.revision
    }

    /// Removes what has expired by `now`. Every other call does it first; a watcher calls it to learn of expiries in time.
    pub fn expire(&mut self, now: Moment) {
        let dead: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.expires <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in dead {
            self.end_session(id);
        }
    }

    /// When the next session expires if nobody renews it.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Moment> {
        self.sessions.values().map(|session| session.expires).min()
    }

    /// Ends the session a snapshot shows (`Member::session`, `Leader::session`) at once; its keys go with it.
    pub fn kill_session(&mut self, session: &str) {
        if let Ok(id) = session.parse() {
            self.end_session(id);
        }
    }

    /// Writes any key below the node's path without conditions: what an operator's or a foreign program's client would do.
    pub fn put_raw(&mut self, node: &MemoryNode, relative: &str, value: &str) -> Revision {
        self.write(node.keys.absolute(relative), value, None)
    }

    /// The value of any key below the node's path.
    #[must_use]
    pub fn get_raw(&self, node: &MemoryNode, relative: &str) -> Option<&str> {
        let stored = self.keys.get(&node.keys.absolute(relative))?;
        Some(&stored.value)
    }

    /// See [`Dcs::load`].
    pub fn load(&mut self, now: Moment, node: &MemoryNode) -> Cluster {
        self.expire(now);
        self.read(&node.keys, |entries| wire::assemble(entries.to_vec()))
    }

    /// See [`Dcs::load_groups`].
    pub fn load_groups(&mut self, now: Moment, node: &MemoryNode) -> BTreeMap<u32, Cluster> {
        self.expire(now);
        self.read(&node.keys.of_all_groups(), |entries| {
            keys::assemble_groups(entries.to_vec())
        })
    }

    /// Everything below a path, in one form or another.
    fn read<T>(&self, keys: &Keys, form: impl FnOnce(&[Entry<'_>]) -> T) -> T {
        let sessions: Vec<_> = self
            .keys
            .range(keys.prefix().to_owned()..)
            .map_while(|(key, stored)| Some((keys.relative(key)?, stored)))
            .map(|(key, stored)| (key, stored, stored.session.map(|id| id.to_string())))
            .collect();
        let entries: Vec<Entry<'_>> = sessions
            .iter()
            .map(|(key, stored, session)| Entry {
                key,
                value: &stored.value,
                revision: stored.revision,
                session: session.as_deref(),
            })
            .collect();
        form(&entries)
    }

    /// See [`Dcs::acquire`].
    pub fn acquire(&mut self, now: Moment, node: &mut MemoryNode) -> Write<Lease> {
        let Some(name) = node.name.clone() else {
            return nameless();
        };
        let session = self.keep_session(now, node);
        let key = node.keys.leader();
        if let Some(held) = self.keys.get(&key) {
            // My own earlier request whose answer was lost is no lost race.
            let mine = held.value == name.as_str() && held.session == Some(session);
            return if mine {
                Write::Done(node.lease(held.revision))
            } else {
                Write::Refused(Refusal::Precondition)
            };
        }
        let revision = self.write(key, name.as_str(), Some(session));
        Write::Done(node.lease(revision))
    }

    /// See [`Dcs::adopt`].
    pub fn adopt(&mut self, now: Moment, node: &mut MemoryNode, leader: &Leader) -> Write<Lease> {
        let Some(name) = node.name.clone() else {
            return nameless();
        };
        let session = self.keep_session(now, node);
        let key = node.keys.leader();
        match self.keys.get(&key) {
            Some(held) if held.value == name.as_str() && held.revision == leader.revision => {
                let revision = if held.session == Some(session) {
                    held.revision
                } else {
                    self.write(key, name.as_str(), Some(session))
                };
                Write::Done(node.lease(revision))
            }
            _ => Write::Refused(Refusal::Precondition),
        }
    }

    /// See [`Dcs::take`].
    pub fn take(&mut self, now: Moment, node: &mut MemoryNode) -> Write<Lease> {
        let Some(name) = node.name.clone() else {
            return nameless();
        };
        let session = self.keep_session(now, node);
        let revision = self.write(node.keys.leader(), name.as_str(), Some(session));
        Write::Done(node.lease(revision))
    }

    /// See [`Dcs::renew`].
    pub fn renew(&mut self, now: Moment, node: &mut MemoryNode, lease: &Lease) -> Write {
        self.expire(now);
        if !self.holds(node, lease) {
            return Write::Refused(Refusal::Precondition);
        }
        let session = self.keep_session(now, node);
        let key = node.keys.leader();
        match self.keys.get(&key).cloned() {
            Some(held) if held.session != Some(session) => {
                self.write(key, &held.value, Some(session));
            }
            Some(_) => {}
            None => return Write::Refused(Refusal::Precondition),
        }
        Write::Done(())
    }

    /// See [`Dcs::release`].
    pub fn release(&mut self, now: Moment, node: &MemoryNode, lease: &Lease) -> Write {
        self.expire(now);
        if !self.holds(node, lease) {
            return Write::Refused(Refusal::Precondition);
        }
        self.remove(&node.keys.leader());
        Write::Done(())
    }

    /// See [`Dcs::hand_over`]. The lease comes back while it is still ours.
    pub fn hand_over(
        &mut self,
        now: Moment,
        node: &MemoryNode,
        lease: Lease,
        candidate: &Member,
    ) -> (Write, Option<Lease>) {
        self.expire(now);
        if !self.holds(node, &lease) {
            return (Write::Refused(Refusal::Precondition), None);
        }
        let session = candidate.session.as_deref().and_then(|id| id.parse().ok());
        match session {
            Some(session) if self.sessions.contains_key(&session) => {
                self.write(node.keys.leader(), candidate.name.as_str(), Some(session));
                (Write::Done(()), None)
            }
            _ => (Write::Refused(Refusal::Precondition), Some(lease)),
        }
    }

    /// See [`Dcs::put_member`].
    pub fn put_member(&mut self, now: Moment, node: &mut MemoryNode, value: &str) -> Write {
        let Some(name) = node.name.clone() else {
            return nameless();
        };
        let session = self.keep_session(now, node);
        let key = node.keys.member(&name);
        let unchanged = self.keys.get(&key).is_some_and(|held| {
            held.session == Some(session) && wire::same_text(&held.value, value)
        });
        if !unchanged {
            self.write(key, value, Some(session));
        }
        Write::Done(())
    }

    /// See [`Dcs::delete_member`].
    pub fn delete_member(&mut self, now: Moment, node: &MemoryNode) -> Write {
        self.expire(now);
        let Some(name) = &node.name else {
            return nameless();
        };
        self.remove(&node.keys.member(name));
        Write::Done(())
    }

    /// See [`Dcs::put`].
    pub fn put(
        &mut self,
        now: Moment,
        node: &MemoryNode,
        document: Document,
        value: &str,
        expect: Expect,
    ) -> Write<Revision> {
        self.expire(now);
        let key = node.keys.document(document);
        if !self.expectation_holds(&key, expect) {
            return Write::Refused(Refusal::Precondition);
        }
        Write::Done(self.write(key, value, None))
    }

    /// See [`Dcs::delete`].
    pub fn delete(
        &mut self,
        now: Moment,
        node: &MemoryNode,
        document: Document,
        expect: Expect,
    ) -> Write {
        self.expire(now);
        let key = node.keys.document(document);
        if !self.expectation_holds(&key, expect) {
            return Write::Refused(Refusal::Precondition);
        }
        self.remove(&key);
        Write::Done(())
    }

    /// See [`Dcs::delete_cluster`].
    pub fn delete_cluster(&mut self, now: Moment, node: &MemoryNode) -> Write {
        self.expire(now);
        let prefix = node.keys.prefix();
        let doomed: Vec<String> = self
            .keys
            .range(prefix.to_owned()..)
            .map(|(key, _)| key.clone())
            .take_while(|key| key.starts_with(prefix))
            .collect();
        for key in doomed {
            self.remove(&key);
        }
        Write::Done(())
    }

    /// Whether the leader key shows the node's name on a session that is, or with this lease was, the node's.
    fn holds(&self, node: &MemoryNode, lease: &Lease) -> bool {
        let Some(name) = &node.name else {
            return false;
        };
        self.keys.get(&node.keys.leader()).is_some_and(|held| {
            let on_lease = held.session.map(|id| id.to_string()) == lease.token.session;
            held.value == name.as_str() && (on_lease || node.owns(held.session))
        })
    }

    fn expectation_holds(&self, key: &str, expect: Expect) -> bool {
        match (expect, self.keys.get(key)) {
            (Expect::Anything, _) | (Expect::Absent, None) => true,
            (Expect::At(revision), Some(held)) => held.revision == revision,
            (Expect::Absent, Some(_)) | (Expect::At(_), None) => false,
        }
    }

    /// Renews the node's session; opens one when there is none, it has expired or its ttl has changed.
    fn keep_session(&mut self, now: Moment, node: &mut MemoryNode) -> u64 {
        self.expire(now);
        if let Some(id) = node.session
            && let Some(session) = self.sessions.get_mut(&id)
        {
            if session.ttl == node.ttl {
                session.expires = now + session.ttl;
                return id;
            }
            node.previous_session = Some(id);
        }
        self.last_session += 1;
        let session = Session {
            ttl: node.ttl,
            expires: now + node.ttl,
        };
        self.sessions.insert(self.last_session, session);
        node.session = Some(self.last_session);
        self.last_session
    }

    fn end_session(&mut self, id: u64) {
        self.sessions.remove(&id);
        let orphans: Vec<String> = self
            .keys
            .iter()
            .filter(|(_, stored)| stored.session == Some(id))
            .map(|(key, _)| key.clone())
            .collect();
        for key in orphans {
            self.remove(&key);
        }
    }

    fn write(&mut self, key: String, value: &str, session: Option<u64>) -> Revision {
        self.revision += 1;
        let revision = Revision(self.revision);
        let stored = Stored {
            value: value.to_owned(),
            revision,
            session,
        };
        self.keys.insert(key, stored);
        revision
    }

    fn remove(&mut self, key: &str) {
        if self.keys.remove(key).is_some() {
            self.revision += 1;
        }
    }
}

/// What goes wrong between one handle and the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Nothing arrives: reads fail, writes do not happen, their outcome is unknown.
    Unreachable,
    /// Requests arrive, answers are lost: reads fail, writes happen, their outcome is unknown.
    AnswersLost,
}

type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;

/// The store that many handles share.
#[derive(Clone)]
pub struct MemoryStore {
    clock: Clock,
    shared: Arc<Mutex<MemoryState>>,
    version: watch::Sender<u64>,
}

impl MemoryStore {
    /// An empty store that lives on the given clock.
    pub fn new(clock: impl Fn() -> Moment + Send + Sync + 'static) -> Self {
        MemoryStore {
            clock: Arc::new(clock),
            shared: Arc::default(),
            version: watch::Sender::new(0),
        }
    }

    /// A handle for one node. Each is a process of its own: a second one of the same name has another session.
    #[must_use]
    pub fn handle(&self, identity: &Identity) -> Arc<MemoryDcs> {
        Arc::new(MemoryDcs {
            store: self.clone(),
            node: Mutex::new(MemoryNode::new(identity)),
            fault: Mutex::new(Fault::None),
        })
    }

    /// The same as [`MemoryStore::handle`], as everybody holds it.
    #[must_use]
    pub fn open(&self, identity: &Identity) -> Store {
        self.handle(identity)
    }

    /// Direct access for tests: look, or change behind everybody's back.
    pub fn with<T>(&self, action: impl FnOnce(&mut MemoryState) -> T) -> T {
        let mut state = unpoisoned(&self.shared);
        let result = action(&mut state);
        self.publish(&state);
        result
    }

    /// Carries out expiries that are due, so that watchers learn of them. To be called after the clock has moved.
    pub fn tick(&self) {
        let now = (self.clock)();
        self.with(|state| state.expire(now));
    }

    fn publish(&self, state: &MemoryState) {
        let version = state.version();
        self.version.send_if_modified(|seen| {
            let changed = *seen != version;
            *seen = version;
            changed
        });
    }
}

/// One node's connection to a [`MemoryStore`].
pub struct MemoryDcs {
    store: MemoryStore,
    node: Mutex<MemoryNode>,
    fault: Mutex<Fault>,
}

impl MemoryDcs {
    /// Switches a fault of this connection on or off.
    pub fn set_fault(&self, fault: Fault) {
        *unpoisoned(&self.fault) = fault;
        if fault == Fault::None {
            // A watch that had to restart reports a change; so does this one.
            self.store.version.send_modify(|_| {});
        }
    }

    /// Runs `action` if the fault lets the request through; `Err` if the answer does not come back.
    fn request<T>(
        &self,
        action: impl FnOnce(&mut MemoryState, Moment, &mut MemoryNode) -> T,
    ) -> Result<T, DcsError> {
        let fault = *unpoisoned(&self.fault);
        let lost = |detail: &str| DcsError {
            store: "memory".to_owned(),
            detail: detail.to_owned(),
        };
        if fault == Fault::Unreachable {
            return Err(lost("unreachable"));
        }
        let now = (self.store.clock)();
        let mut node = unpoisoned(&self.node);
        let result = self.store.with(|state| action(state, now, &mut node));
        if fault == Fault::AnswersLost {
            return Err(lost("the answer was lost"));
        }
        Ok(result)
    }

    fn write<T>(
        &self,
        action: impl FnOnce(&mut MemoryState, Moment, &mut MemoryNode) -> Write<T>,
    ) -> Write<T> {
        self.request(action).unwrap_or_else(Write::Unknown)
    }
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves plain data behind, each call of which is complete or not begun.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Dcs for MemoryDcs {
    fn store(&self) -> &'static str {
        "memory"
    }

    async fn load(&self, _freshness: Freshness) -> Result<Cluster, DcsError> {
        self.request(|state, now, node| state.load(now, node))
    }

    async fn load_groups(&self) -> Result<BTreeMap<u32, Cluster>, DcsError> {
        self.request(|state, now, node| state.load_groups(now, node))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.store.version.subscribe()
    }

    async fn acquire(&self) -> Write<Lease> {
        self.write(MemoryState::acquire)
    }

    async fn adopt(&self, leader: &Leader) -> Write<Lease> {
        self.write(|state, now, node| state.adopt(now, node, leader))
    }

    async fn take(&self) -> Write<Lease> {
        self.write(MemoryState::take)
    }

    async fn renew(&self, lease: &Lease) -> Write {
        self.write(|state, now, node| state.renew(now, node, lease))
    }

    async fn release(&self, lease: Lease) -> Write {
        self.write(|state, now, node| state.release(now, node, &lease))
    }

    async fn hand_over(&self, lease: Lease, candidate: &Member) -> (Write, Option<Lease>) {
        let kept = Lease {
            token: lease.token.clone(),
        };
        // Unknown: the lease may still be ours; the next renewal tells.
        self.request(|state, now, node| state.hand_over(now, node, lease, candidate))
            .unwrap_or_else(|error| (Write::Unknown(error), Some(kept)))
    }

    async fn put_member(&self, value: &str) -> Write {
        self.write(|state, now, node| state.put_member(now, node, value))
    }

    async fn delete_member(&self) -> Write {
        self.write(|state, now, node| state.delete_member(now, node))
    }

    async fn put(&self, document: Document, value: &str, expect: Expect) -> Write<Revision> {
        self.write(|state, now, node| state.put(now, node, document, value, expect))
    }

    async fn delete(&self, document: Document, expect: Expect) -> Write {
        self.write(|state, now, node| state.delete(now, node, document, expect))
    }

    async fn delete_cluster(&self) -> Write {
        self.write(|state, now, node| state.delete_cluster(now, node))
    }

    fn set_timings(&self, ttl: Duration, _retry_timeout: Duration) {
        unpoisoned(&self.node).set_ttl(ttl);
    }
}
