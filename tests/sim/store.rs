//! The store of the simulated world: sessions with a time to live, one leader key, documents; every write a compare-and-set.

use std::collections::BTreeMap;
use std::time::Duration;

use howdah::cluster::{
    Cluster, ConfigDocument, FailoverRequest, History, HistoryEntry, Initialize, Leader, Member,
    Schedule, SyncState,
};
use howdah::ha::decision::Write;
use howdah::ha::observation::{Outcome, Synchronous};
use howdah::types::{Lsn, MemberName, Moment, Revision, SystemId, Timeline, WallTime};

/// The settings in the store that change during a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dynamic {
    pub(crate) pause: bool,
    pub(crate) synchronous: Synchronous,
    pub(crate) standby_cluster: bool,
    pub(crate) failsafe: bool,
}

impl Dynamic {
    pub(crate) const PLAIN: Dynamic = Dynamic {
        pause: false,
        synchronous: Synchronous::Off,
        standby_cluster: false,
        failsafe: false,
    };
}

impl Default for Dynamic {
    fn default() -> Self {
        Dynamic::PLAIN
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    Load {
        /// As new as any write before; else what the watch has shown.
        latest: bool,
    },
    Acquire,
    Adopt,
    Take,
    Renew {
        session: u64,
        publish: Option<Lsn>,
    },
    Release {
        session: u64,
        publish: Option<Lsn>,
    },
    HandOver {
        session: u64,
        to: MemberName,
        publish: Lsn,
    },
    PutMember(Box<Member>),
    Write {
        write: Write,
        seen: Box<Cluster>,
        history: Vec<HistoryEntry>,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) outcome: Outcome,
    pub(crate) session: u64,
    pub(crate) cluster: Cluster,
    pub(crate) dynamic: Dynamic,
}

#[derive(Debug)]
struct Session {
    id: u64,
    expires: Moment,
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) cluster: Cluster,
    pub(crate) dynamic: Dynamic,
    /// Planted: writes go without their precondition.
    pub(crate) unconditional: bool,
    /// A write that replaced what its writer had not seen.
    pub(crate) overwrote: Option<String>,
    sessions: BTreeMap<MemberName, Session>,
    leader_session: u64,
    last: u64,
}

impl Store {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Ends sessions whose time is over; true when something changed.
    pub(crate) fn expire(&mut self, now: Moment) -> bool {
        let over: Vec<MemberName> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.expires <= now)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &over {
            if let Some(session) = self.sessions.remove(name) {
                self.cluster.members.remove(name);
                if self.leader_session == session.id {
                    self.cluster.leader = None;
                    self.leader_session = 0;
                }
            }
        }
        !over.is_empty()
    }

    /// The store has forgotten this member's session.
    pub(crate) fn end_session(&mut self, name: &MemberName) {
        self.sessions.remove(name);
        self.cluster.members.remove(name);
    }

    /// After an outage every session gets a fresh time to live, as in etcd after a leader change.
    pub(crate) fn extend(&mut self, now: Moment, ttl: Duration) {
        for session in self.sessions.values_mut() {
            session.expires = session.expires.max(now + ttl);
        }
    }

    /// The session of `node`, renewed or new. An agent that restarted has forgotten its session.
    fn session(&mut self, node: &MemberName, known: u64, now: Moment, ttl: Duration) -> u64 {
        let expires = now + ttl;
        if let Some(session) = self.sessions.get_mut(node)
            && session.id == known
        {
            session.expires = session.expires.max(expires);
            return known;
        }
        let id = self.next();
        if let Some(old) = self.sessions.insert(node.clone(), Session { id, expires })
            && old.id == self.leader_session
            && self.cluster.is_led_by(node)
        {
            // The old session dies on its own time in a real store; binding the key to the new one is `Adopt`. Keep it alive here.
            self.leader_session = id;
        }
        id
    }

    fn lead(&mut self, node: &MemberName, session: u64) {
        let revision = Revision(self.next());
        self.leader_session = session;
        self.cluster.leader = Some(Leader {
            name: node.clone(),
            revision,
            session: Some(session.to_string()),
        });
    }

    fn publish(&mut self, at: Option<Lsn>) {
        if let Some(at) = at {
            self.cluster.status.optime = at;
        }
    }

    pub(crate) fn request(
        &mut self,
        leader: Option<MemberName>,
        candidate: Option<MemberName>,
        scheduled_at: Option<WallTime>,
    ) {
        let revision = Revision(self.next());
        self.cluster.failover_revision = Some(revision);
        self.cluster.failover = Some(FailoverRequest {
            revision,
            leader,
            candidate,
            scheduled_at: scheduled_at.map(Schedule::At),
        });
    }

    /// Applies one operation. `known` is the session the node believes to have.
    pub(crate) fn apply(
        &mut self,
        node: &MemberName,
        known: u64,
        op: Op,
        now: Moment,
        ttl: Duration,
    ) -> Reply {
        self.expire(now);
        let mut session = known;
        let owns = |store: &Store, session: u64| {
            store.cluster.is_led_by(node) && store.leader_session == session
        };
        let done = match op {
            Op::Load { .. } => true,
            Op::Acquire | Op::Take => {
                session = self.session(node, known, now, ttl);
                let free = self.cluster.leader.is_none() || self.unconditional;
                if free {
                    if let Some(before) = &self.cluster.leader {
                        self.overwrote = Some(format!("{node} took the key from {}", before.name));
                    }
                    self.lead(node, session);
                }
                free
            }
            Op::Adopt => {
                let mine = self.cluster.is_led_by(node);
                if mine {
                    session = self.session(node, known, now, ttl);
                    self.lead(node, session);
                }
                mine
            }
            Op::Renew {
                session: lease,
                publish,
            } => {
                let mine = owns(self, lease);
                if mine {
                    session = self.session(node, lease, now, ttl);
                    self.publish(publish);
                }
                mine
            }
            Op::Release {
                session: lease,
                publish,
            } => {
                let mine = owns(self, lease);
                if mine {
                    self.publish(publish);
                    self.cluster.leader = None;
                    self.leader_session = 0;
                }
                mine
            }
            Op::HandOver {
                session: lease,
                to,
                publish,
            } => {
                let target = self.sessions.get(&to).map(|s| s.id);
                match target {
                    Some(target) if owns(self, lease) && self.cluster.members.contains_key(&to) => {
                        self.publish(Some(publish));
                        self.lead(&to, target);
                        true
                    }
                    Some(_) | None => false,
                }
            }
            Op::PutMember(member) => {
                session = self.session(node, known, now, ttl);
                self.cluster.members.insert(node.clone(), *member);
                true
            }
            Op::Write {
                write,
                seen,
                history,
            } => self.write(node, write, &seen, history),
        };
        let outcome = if done {
            Outcome::Done
        } else {
            Outcome::Refused
        };
        Reply {
            outcome,
            session,
            cluster: self.cluster.clone(),
            dynamic: self.dynamic,
        }
    }

    fn write(
        &mut self,
        node: &MemberName,
        write: Write,
        seen: &Cluster,
        history: Vec<HistoryEntry>,
    ) -> bool {
        let revision = Revision(self.next());
        match write {
            Write::ClaimInitialize => {
                let free = self.cluster.initialize == Initialize::Absent;
                if free {
                    self.cluster.initialize = Initialize::InProgress;
                    self.cluster.initialize_revision = Some(revision);
                }
                free
            }
            Write::Status(at) => {
                self.cluster.status.optime = at;
                true
            }
            Write::WithdrawClaim(claimed) => {
                let same = self.cluster.initialize == Initialize::InProgress
                    && self.cluster.initialize_revision == Some(claimed);
                if same {
                    self.cluster.initialize = Initialize::Absent;
                }
                same
            }
            Write::Initialize(id) => self.cas_initialize(seen, Initialize::Done(id)),
            Write::CancelInitialize => self.cas_initialize(seen, Initialize::Absent),
            Write::Config => {
                let free = self.cluster.config.is_none();
                if free {
                    self.cluster.config = Some(ConfigDocument {
                        data: serde_json::Map::new(),
                        revision,
                    });
                }
                free
            }
            Write::ClearFailover | Write::FailoverWithoutLeader => {
                let same = self.cluster.failover_revision == seen.failover_revision;
                if same {
                    self.cluster.failover = None;
                    self.cluster.failover_revision = Some(revision);
                }
                same
            }
            Write::History => {
                let mut entries = history;
                if let Some(last) = entries.last_mut() {
                    last.timestamp = Some("now".to_owned());
                    last.new_leader = Some(node.clone());
                }
                let old = self.cluster.history.take().unwrap_or_default().entries;
                for entry in &mut entries {
                    let known = old
                        .iter()
                        .find(|o| o.timeline == entry.timeline && o.lsn == entry.lsn);
                    if entry.new_leader.is_none() {
                        entry.new_leader = known.and_then(|o| o.new_leader.clone());
                    }
                }
                self.cluster.history = Some(History { entries });
                true
            }
            Write::Sync(sync) => {
                let based_on = sync.revision;
                let value = SyncState {
                    revision: Some(revision),
                    ..sync
                };
                self.replace_sync(node, based_on, value)
            }
            Write::DropSync => self.replace_sync(node, seen.sync.revision, SyncState::default()),
            Write::Failsafe(topology) => {
                self.cluster.failsafe = Some(topology);
                true
            }
        }
    }

    /// Compare and set.
    fn replace_sync(
        &mut self,
        node: &MemberName,
        based_on: Option<Revision>,
        value: SyncState,
    ) -> bool {
        let same = self.cluster.sync.revision == based_on;
        if same || self.unconditional {
            self.cluster.sync = value;
        }
        if !same && self.unconditional {
            self.overwrote = Some(format!("{node} replaced a sync document it had not read"));
        }
        same || self.unconditional
    }

    fn cas_initialize(&mut self, seen: &Cluster, value: Initialize) -> bool {
        let same = self.cluster.initialize == seen.initialize;
        if same {
            self.cluster.initialize = value;
        }
        same
    }
}

/// The history document's entries of a server.
pub(crate) fn entries(segments: &[crate::postgres::Segment]) -> Vec<HistoryEntry> {
    segments
        .windows(2)
        .map(|pair| HistoryEntry {
            timeline: Timeline(pair[0].timeline),
            lsn: Lsn(pair[1].start),
            reason: "no recovery target specified".to_owned(),
            timestamp: None,
            new_leader: None,
        })
        .collect()
}

/// The one system identifier of the world.
pub(crate) fn system_id() -> SystemId {
    "7000000000000000001".parse().expect("digits")
}
