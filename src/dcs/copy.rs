//! A copy of the cluster's keys that a watch keeps fed, for the stores whose answers carry a counter that grows with every change.
//!
//! The copy counts only while its watch is known to be alive and while it is not older than what this node has written itself.
//! Whoever reads decides what to do otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::{keys, news};
use crate::clock;
use crate::cluster::Cluster;
use crate::cluster::wire::{self, Entry};
use crate::types::{MemberName, Moment, Revision};

/// One key as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) value: String,
    pub(super) revision: u64,
    pub(super) session: Option<String>,
}

/// Everything below the cluster's path, by relative key.
pub(super) type Contents = BTreeMap<String, Stored>;

/// The snapshot that these keys make.
pub(super) fn assemble(keys: &Contents) -> Cluster {
    wire::assemble(entries(keys))
}

/// The snapshots that these keys of all groups make.
pub(super) fn assemble_groups(keys: &Contents) -> BTreeMap<u32, Cluster> {
    keys::assemble_groups(entries(keys))
}

fn entries(keys: &Contents) -> impl Iterator<Item = Entry<'_>> {
    keys.iter().map(|(key, stored)| Entry {
        key,
        value: &stored.value,
        revision: Revision(stored.revision),
        session: stored.session.as_deref(),
    })
}

#[derive(Debug, Default)]
struct State {
    keys: Contents,
    /// Everything up to this count is in `keys`.
    index: u64,
    /// The count of this node's last own change.
    wanted: u64,
    /// When the watch last gave a sign of life; `None` while there is none.
    alive: Option<Moment>,
}

/// The copy, and who wants to hear of changes.
pub(super) struct Copy {
    me: Option<MemberName>,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

impl Copy {
    pub(super) fn new(me: Option<MemberName>) -> Self {
        Copy {
            me,
            state: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn announce(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// The snapshot, if the watch has given a sign of life within `silence`.
    pub(super) fn recent(&self, silence: Duration) -> Option<Cluster> {
        let state = self.state();
        state.counts(silence).then(|| assemble(&state.keys))
    }

    /// One key, under the condition of [`Copy::recent`].
    pub(super) fn recent_key(&self, relative: &str, silence: Duration) -> Option<Stored> {
        let state = self.state();
        let stored = state.keys.get(relative)?;
        state.counts(silence).then(|| stored.clone())
    }

    /// Up to which count the copy is complete; 0 when nothing was read yet.
    pub(super) fn index(&self) -> u64 {
        self.state().index
    }

    /// Puts a whole read in place of the copy, unless the copy is newer. `anew`: the store's count has started again.
    pub(super) fn replace(&self, fresh: Contents, index: u64, anew: bool) {
        let mut state = self.state();
        if anew {
            state.wanted = 0;
        } else if index < state.index || index < state.wanted {
            return;
        }
        let names: BTreeSet<&String> = fresh.keys().chain(state.keys.keys()).collect();
        let news = names
            .into_iter()
            .any(|key| self.is_news(&state, key, fresh.get(key)));
        state.keys = fresh;
        state.index = index;
        drop(state);
        if news {
            self.announce();
        }
    }

    /// What this node has written (`None`: deleted) itself as change `index`: readers of the copy see it at once, and no older
    /// read undoes it.
    pub(super) fn wrote(&self, relative: &str, stored: Option<Stored>, index: u64) {
        let mut state = self.state();
        if index <= state.index || index <= state.wanted {
            return;
        }
        state.wanted = index;
        let news = self.is_news(&state, relative, stored.as_ref());
        match stored {
            Some(stored) => state.keys.insert(relative.to_owned(), stored),
            None => state.keys.remove(relative),
        };
        drop(state);
        if news {
            self.announce();
        }
    }

    /// The watch has (not) given a sign of life.
    pub(super) fn set_alive(&self, alive: bool) {
        self.state().alive = alive.then(clock::now);
    }

    fn is_news(&self, state: &State, key: &str, new: Option<&Stored>) -> bool {
        let value = |stored: Option<&Stored>| stored.map(|stored| stored.value.clone());
        let leader = value(state.keys.get(keys::LEADER));
        let me = self.me.as_ref();
        let i_lead = me.is_some_and(|me| leader.as_deref() == Some(me.as_str()));
        let (old, new) = (value(state.keys.get(key)), value(new));
        news::is_news(me, i_lead, key, old.as_deref(), new.as_deref())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment after all that can fail: a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn counts(&self, silence: Duration) -> bool {
        let fresh = self
            .alive
            .is_some_and(|at| clock::now().since(at) <= silence);
        fresh && self.index.max(self.wanted) > 0
    }
}

/// How long one wait for changes may take before the watch shows that it lives.
pub(super) fn heartbeat(retry_timeout: Duration) -> Duration {
    (retry_timeout / 4).clamp(Duration::from_millis(500), Duration::from_millis(2500))
}

/// How long a watch may be silent and still count as alive.
pub(super) fn silence(retry_timeout: Duration) -> Duration {
    heartbeat(retry_timeout) * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn stored(value: &str, revision: u64) -> Stored {
        Stored {
            value: value.to_owned(),
            revision,
            session: None,
        }
    }

    fn contents(value: &str, revision: u64) -> Contents {
        Contents::from([("config".to_owned(), stored(value, revision))])
    }

    #[test]
    fn an_older_read_does_not_undo_an_own_write() {
        let copy = Copy::new(None);
        copy.set_alive(true);
        copy.replace(contents("{\"a\":1}", 3), 3, false);
        copy.wrote("config", Some(stored("{\"a\":2}", 7)), 7);
        copy.replace(contents("{\"a\":1}", 3), 5, false);
        let seen = copy.recent_key("config", LONG).unwrap();
        assert_eq!(seen, stored("{\"a\":2}", 7));
        copy.replace(contents("{\"a\":3}", 9), 9, false);
        assert_eq!(copy.recent_key("config", LONG).unwrap().revision, 9);
        copy.wrote("config", None, 12);
        copy.replace(contents("{\"a\":3}", 9), 11, false);
        assert_eq!(copy.recent_key("config", LONG), None);
    }

    #[test]
    fn a_count_that_starts_anew_replaces_everything() {
        let copy = Copy::new(None);
        copy.set_alive(true);
        copy.replace(contents("{}", 900), 900, false);
        copy.replace(Contents::new(), 4, true);
        assert!(copy.recent(LONG).unwrap().config.is_none());
        assert_eq!(copy.index(), 4);
    }

    #[test]
    fn a_silent_watch_is_no_source() {
        let copy = Copy::new(None);
        assert!(copy.recent(LONG).is_none());
        copy.replace(contents("{}", 1), 1, false);
        assert!(copy.recent(LONG).is_none());
        copy.set_alive(true);
        assert!(copy.recent(LONG).is_some());
        copy.set_alive(false);
        assert!(copy.recent(LONG).is_none());
    }

    #[test]
    fn own_member_documents_wake_nobody() {
        let copy = Copy::new(MemberName::new("me").ok());
        let mut changes = copy.changes();
        copy.wrote("members/me", Some(stored("{\"state\":\"running\"}", 1)), 1);
        assert!(!changes.has_changed().unwrap());
        copy.wrote("leader", Some(stored("other", 2)), 2);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
    }
}
