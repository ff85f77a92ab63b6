//! What the Raft log means: keys with revision, owner and time to live, and the commands that change them.
//!
//! Pure and deterministic: no clock, no I/O. Time passes only through the log: the Raft leader proposes
//! [`Action::Expire`] and every node then removes the key at the same place in the history. What each node knows of times is
//! kept beside the state, in [`Renewals`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::Moment;

/// How many answered requests are remembered, so that a request sent twice (a Raft leader died before it could answer)
/// is carried out once.
const REMEMBERED: usize = 512;

/// Identifies one request of one process; a repetition carries the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RequestId {
    /// Random per process.
    pub(crate) origin: u64,
    /// Counts up.
    pub(crate) number: u64,
}

/// One entry of the Raft log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Command {
    /// For recognising repetitions.
    pub(crate) request: RequestId,
    /// What to do.
    pub(crate) action: Action,
}

/// What an entry does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Action {
    /// Gives the cluster its identity, once; nodes with another identity are refused from then on.
    Form {
        /// Random text.
        identity: String,
    },
    /// All changes if all guards hold, else nothing.
    Write {
        /// Preconditions.
        guards: Vec<Guard>,
        /// Changes, in order.
        changes: Vec<Change>,
    },
    /// Removes a key whose time is over, unless it has been renewed in between.
    Expire {
        /// The key.
        key: String,
        /// The renewal that the proposer saw.
        renewed: u64,
    },
}

/// One precondition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Guard {
    /// The key does not exist.
    Absent(String),
    /// The key exists and has what is named here.
    Holds {
        /// The key.
        key: String,
        /// Its value.
        value: Option<String>,
        /// Its revision.
        revision: Option<u64>,
        /// Its owner.
        owner: Option<String>,
    },
}

/// One change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// Creates or replaces.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: String,
        /// Lives that long without renewal, in milliseconds; `None` = for ever.
        ttl: Option<u64>,
        /// Who may renew it.
        owner: Option<String>,
        /// With the same value and owner as before this is only a renewal: the revision stays.
        renews: bool,
    },
    /// Another full time to live.
    Renew {
        /// The key.
        key: String,
        /// The new time to live, milliseconds.
        ttl: u64,
    },
    /// Removes a key, if it is there.
    Delete(String),
    /// Removes everything below a prefix.
    DeleteBelow(String),
}

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// It happened, at this place of the log.
    Done(u64),
    /// A guard did not hold; nothing changed.
    Refused,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its value.
    pub(crate) value: String,
    /// Log index of the last change of value or owner.
    pub(crate) revision: u64,
    /// Log index of the last renewal.
    pub(crate) renewed: u64,
    /// Milliseconds; `None` = for ever.
    pub(crate) ttl: Option<u64>,
    /// Who may renew it.
    pub(crate) owner: Option<String>,
}

/// What applying one command did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Applied {
    /// The answer.
    pub(crate) outcome: Outcome,
    /// Whether a reader can see a difference (a renewal alone is none).
    pub(crate) visible: bool,
}

/// Everything the log has built.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Identity of this cluster of nodes, once formed.
    pub(crate) identity: Option<String>,
    /// Full key → record.
    pub(crate) records: BTreeMap<String, Record>,
    answered: VecDeque<(RequestId, Outcome)>,
}

impl State {
    /// Applies one committed command found at `index`.
    pub(crate) fn apply(&mut self, index: u64, command: Command) -> Applied {
        let seen = self.answered.iter().find(|(id, _)| *id == command.request);
        if let Some((_, outcome)) = seen {
            return Applied {
                outcome: *outcome,
                visible: false,
            };
        }
        let applied = self.act(index, command.action);
        self.answered.push_back((command.request, applied.outcome));
        while self.answered.len() > REMEMBERED {
            self.answered.pop_front();
        }
        applied
    }

    fn act(&mut self, index: u64, action: Action) -> Applied {
        let mut visible = false;
        let outcome = match action {
            Action::Form { identity } => {
                if self.identity.is_none() {
                    self.identity = Some(identity);
                    Outcome::Done(index)
                } else {
                    Outcome::Refused
                }
            }
            Action::Expire { key, renewed } => {
                if self
                    .records
                    .get(&key)
                    .is_some_and(|r| r.ttl.is_some() && r.renewed == renewed)
                {
                    self.records.remove(&key);
                    visible = true;
                    Outcome::Done(index)
                } else {
                    Outcome::Refused
                }
            }
            Action::Write { guards, changes } => {
                if guards.iter().all(|guard| self.holds(guard)) {
                    for change in changes {
                        visible |= self.change(index, change);
                    }
                    Outcome::Done(index)
                } else {
                    Outcome::Refused
                }
            }
        };
        Applied { outcome, visible }
    }

    fn holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::Absent(key) => !self.records.contains_key(key),
            Guard::Holds {
                key,
                value,
                revision,
                owner,
            } => self.records.get(key).is_some_and(|record| {
                value.as_ref().is_none_or(|v| *v == record.value)
                    && revision.is_none_or(|r| r == record.revision)
                    && owner
                        .as_ref()
                        .is_none_or(|o| record.owner.as_ref() == Some(o))
            }),
        }
    }

    /// Whether a reader can see the difference.
    fn change(&mut self, index: u64, change: Change) -> bool {
        match change {
            Change::Put {
                key,
                value,
                ttl,
                owner,
                renews,
            } => {
                if renews
                    && let Some(record) = self.records.get_mut(&key)
                    && record.value == value
                    && record.owner == owner
                {
                    record.renewed = index;
                    record.ttl = ttl;
                    return false;
                }
                let record = Record {
                    value,
                    revision: index,
                    renewed: index,
                    ttl,
                    owner,
                };
                self.records.insert(key, record);
                true
            }
            Change::Renew { key, ttl } => {
                if let Some(record) = self.records.get_mut(&key) {
                    record.renewed = index;
                    record.ttl = Some(ttl);
                }
                false
            }
            Change::Delete(key) => self.records.remove(&key).is_some(),
            Change::DeleteBelow(prefix) => {
                let before = self.records.len();
                self.records.retain(|key, _| !key.starts_with(&prefix));
                self.records.len() != before
            }
        }
    }
}

/// When the renewals in the state happened, as far as this process can tell: each node keeps this for itself, whoever leads.
/// Volatile; on this node's own clock since boot, which is never compared with another node's.
///
/// Invariant: the time noted for a renewal is never before the renewal was sent. A node notes when it wrote the renewal's
/// entry to its log (the entry was sent before), or, if it did not see that (the entry was in the log when the process
/// started, or came in a snapshot), when it applied it. Hence no node thinks that a key is over earlier than its time to live
/// after its holder sent the renewal, and a new Raft leader needs no time of its own before it judges: what a lagging
/// node notes is later, and errs in favour of the holder. That a renewal which this node does not have yet may exist does no
/// harm: it either comes into the log before the [`Action::Expire`], which names the renewal it means and then does nothing,
/// or after it, and then it was never acknowledged and finds the key gone.
#[derive(Debug, Default)]
pub(crate) struct Renewals {
    seen: HashMap<String, (u64, Moment)>,
}

impl Renewals {
    /// Notes renewals that are new in `state` and forgets keys that are gone. Called after every application. `written`: when
    /// the entry at an index was written to the log here, where that is known; `now` where it is not.
    pub(crate) fn note(
        &mut self,
        state: &State,
        now: Moment,
        written: impl Fn(u64) -> Option<Moment>,
    ) {
        for (key, record) in state.records.iter().filter(|(_, r)| r.ttl.is_some()) {
            let seen = self.seen.get(key);
            if seen.is_none_or(|(renewed, _)| *renewed != record.renewed) {
                let at = written(record.renewed).unwrap_or(now);
                self.seen.insert(key.clone(), (record.renewed, at));
            }
        }
        self.seen
            .retain(|key, _| state.records.get(key).is_some_and(|r| r.ttl.is_some()));
    }

    /// What a Raft leader has to expire `now`, and when to look again.
    pub(crate) fn due(&self, state: &State, now: Moment) -> Due {
        let mut due = Due::default();
        for (key, record) in &state.records {
            let Some(ttl) = record.ttl else { continue };
            let start = match self.seen.get(key) {
                Some((renewed, at)) if *renewed == record.renewed => *at,
                _ => now,
            };
            let deadline = start + Duration::from_millis(ttl);
            if deadline <= now {
                due.expired.push((key.clone(), record.renewed));
            } else {
                due.next = Some(due.next.map_or(deadline, |n: Moment| n.min(deadline)));
            }
        }
        due
    }
}

/// See [`Renewals::due`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// Keys to expire, with the renewal they had.
    pub(crate) expired: Vec<(String, u64)>,
    /// The next deadline of the others.
    pub(crate) next: Option<Moment>,
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Run {
        state: State,
        index: u64,
    }

    impl Run {
        fn new() -> Self {
            Run {
                state: State::default(),
                index: 0,
            }
        }

        fn act(&mut self, action: Action) -> Applied {
            self.index += 1;
            let request = RequestId {
                origin: 1,
                number: self.index,
            };
            self.state.apply(self.index, Command { request, action })
        }

        fn write(&mut self, guards: Vec<Guard>, changes: Vec<Change>) -> Applied {
            self.act(Action::Write { guards, changes })
        }
    }

    fn put(key: &str, value: &str, ttl: Option<u64>, owner: Option<&str>) -> Change {
        Change::Put {
            key: key.into(),
            value: value.into(),
            ttl,
            owner: owner.map(Into::into),
            renews: true,
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    #[test]
    fn create_only_once() {
        let mut run = Run::new();
        let absent = || vec![Guard::Absent("leader".into())];
        let first = run.write(absent(), vec![put("leader", "a", Some(30), Some("x"))]);
        assert_eq!(first.outcome, Outcome::Done(1));
        assert!(first.visible);
        let second = run.write(absent(), vec![put("leader", "b", Some(30), Some("y"))]);
        assert_eq!(second.outcome, Outcome::Refused);
        assert!(!second.visible);
        assert_eq!(run.state.records["leader"].value, "a");
    }

    #[test]
    fn renewal_needs_the_owner_and_keeps_the_revision() {
        let mut run = Run::new();
        run.write(vec![], vec![put("leader", "a", Some(30), Some("x"))]);
        let guard = |owner: &str| {
            vec![Guard::Holds {
                key: "leader".into(),
                value: Some("a".into()),
                revision: None,
                owner: Some(owner.into()),
            }]
        };
        let renew = || {
            vec![Change::Renew {
                key: "leader".into(),
                ttl: 40,
            }]
        };
        assert_eq!(run.write(guard("y"), renew()).outcome, Outcome::Refused);
        let renewed = run.write(guard("x"), renew());
        assert_eq!(renewed.outcome, Outcome::Done(3));
        assert!(!renewed.visible);
        let record = &run.state.records["leader"];
        assert_eq!(
            (record.revision, record.renewed, record.ttl),
            (1, 3, Some(40))
        );
    }

    #[test]
    fn putting_the_same_again_is_a_renewal() {
        let mut run = Run::new();
        run.write(vec![], vec![put("m", "1", Some(30), Some("x"))]);
        assert!(
            !run.write(vec![], vec![put("m", "1", Some(30), Some("x"))])
                .visible
        );
        assert_eq!(run.state.records["m"].revision, 1);
        assert!(
            run.write(vec![], vec![put("m", "1", Some(30), Some("y"))])
                .visible
        );
        assert_eq!(run.state.records["m"].revision, 3);
    }

    #[test]
    fn expiry_spares_what_was_renewed_in_between() {
        let mut run = Run::new();
        run.write(vec![], vec![put("m", "1", Some(30), Some("x"))]);
        run.write(vec![], vec![put("m", "1", Some(30), Some("x"))]);
        let expire = |renewed| Action::Expire {
            key: "m".into(),
            renewed,
        };
        assert_eq!(run.act(expire(1)).outcome, Outcome::Refused);
        assert_eq!(run.act(expire(2)).outcome, Outcome::Done(4));
        assert!(run.state.records.is_empty());
    }

    #[test]
    fn a_repeated_request_is_carried_out_once() {
        let mut run = Run::new();
        let command = Command {
            request: RequestId {
                origin: 9,
                number: 1,
            },
            action: Action::Write {
                guards: vec![Guard::Absent("k".into())],
                changes: vec![put("k", "1", None, None)],
            },
        };
        assert_eq!(
            run.state.apply(1, command.clone()).outcome,
            Outcome::Done(1)
        );
        let again = run.state.apply(2, command);
        assert_eq!(again.outcome, Outcome::Done(1));
        assert!(!again.visible);
        assert_eq!(run.state.records["k"].revision, 1);
    }

    #[test]
    fn delete_below_leaves_neighbours() {
        let mut run = Run::new();
        run.write(
            vec![],
            vec![
                put("/service/a/config", "1", None, None),
                put("/service/ab/config", "2", None, None),
            ],
        );
        run.write(vec![], vec![Change::DeleteBelow("/service/a/".into())]);
        assert_eq!(
            run.state.records.keys().collect::<Vec<_>>(),
            ["/service/ab/config"]
        );
    }

    #[test]
    fn a_key_lives_its_full_time_since_its_last_renewal() {
        let mut run = Run::new();
        let mut renewals = Renewals::default();
        run.write(vec![], vec![put("leader", "a", Some(30_000), Some("x"))]);
        renewals.note(&run.state, at(100), |_| None);
        let due = |renewals: &Renewals, run: &Run, now| renewals.due(&run.state, at(now));
        assert_eq!(due(&renewals, &run, 129).next, Some(at(130)));
        assert_eq!(due(&renewals, &run, 130).expired, [("leader".into(), 1)]);
        // A renewal moves the deadline; noting again what is known does not.
        run.write(vec![], vec![put("leader", "a", Some(30_000), Some("x"))]);
        renewals.note(&run.state, at(125), |_| None);
        renewals.note(&run.state, at(139), |_| None);
        assert_eq!(due(&renewals, &run, 140).next, Some(at(155)));
        // Nothing known about the renewal: it counts from now.
        assert_eq!(
            Renewals::default().due(&run.state, at(500)).next,
            Some(at(530))
        );
    }

    #[test]
    fn a_node_that_lags_lets_keys_live_longer_never_shorter() {
        let mut run = Run::new();
        run.write(vec![], vec![put("leader", "a", Some(30_000), Some("x"))]);
        let deadline = |applied, written: Option<u64>| {
            let mut renewals = Renewals::default();
            renewals.note(&run.state, at(applied), |index| {
                assert_eq!(index, 1);
                written.map(at)
            });
            renewals.due(&run.state, at(100)).next
        };
        // The time of writing counts, however late it was applied: that it was committed was only learned later.
        assert_eq!(deadline(100, Some(100)), Some(at(130)));
        assert_eq!(deadline(109, Some(100)), Some(at(130)));
        // What was written late is over late.
        assert_eq!(deadline(109, Some(108)), Some(at(138)));
        // Nobody saw it written: when it was applied.
        assert_eq!(deadline(109, None), Some(at(139)));
    }
}
