//! The cluster's objects as they were last seen, and how long the leader has been seen to lead.
//!
//! Kubernetes ends no lease: every reader does, by its own clock. A record of the leader holds for its `ttl` from when this node has seen
//! it change; what time the record itself tells is never compared with anything, so no clock of another machine matters (spec/dcs.md §5.7).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::object::{Names, Object, Part, Record};
use crate::clock;
use crate::cluster::Cluster;
use crate::dcs::news;
use crate::types::{MemberName, Moment};

/// The two kinds of objects that are listed and watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// ConfigMaps or Endpoints.
    State,
    Pod,
}

/// All of one kind.
#[derive(Debug, Default)]
struct Collection {
    objects: BTreeMap<String, Object>,
    /// Everything up to this version is in `objects`.
    version: u64,
    /// When the watch last gave a sign of life; `None` while there is none.
    alive: Option<Moment>,
}

#[derive(Debug, Default)]
struct State {
    state: Collection,
    pods: Collection,
    /// The leader's record as last seen, and since when.
    seen: Option<(Record, Moment)>,
}

/// The copy, and who wants to hear of changes.
pub(super) struct Cache {
    me: Option<MemberName>,
    names: Names,
    state: Mutex<State>,
    ttl: Mutex<Duration>,
    changes: watch::Sender<u64>,
}

impl Cache {
    pub(super) fn new(me: Option<MemberName>, names: Names, ttl: Duration) -> Self {
        Cache {
            me,
            names,
            state: Mutex::default(),
            ttl: Mutex::new(ttl),
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

    /// The ttl of a record that tells none.
    pub(super) fn set_ttl(&self, ttl: Duration) {
        *self.ttl.lock().unwrap_or_else(PoisonError::into_inner) = ttl;
    }

    /// The watch of a kind has (not) given a sign of life.
    pub(super) fn set_alive(&self, kind: Kind, alive: bool) {
        self.state().of(kind).alive = alive.then(clock::now);
    }

    /// Both watches have given a sign of life within `silence`.
    pub(super) fn is_alive(&self, silence: Duration) -> bool {
        let state = self.state();
        let now = clock::now();
        [&state.state, &state.pods]
            .iter()
            .all(|kind| kind.alive.is_some_and(|at| now.since(at) <= silence))
    }

    /// The snapshot.
    pub(super) fn snapshot(&self) -> Cluster {
        self.assemble(&self.state())
    }

    /// One of the state's objects as last seen.
    pub(super) fn part(&self, part: Part) -> Option<Object> {
        let state = self.state();
        state.state.objects.get(&self.names.name(part)).cloned()
    }

    /// One pod as last seen.
    pub(super) fn pod(&self, name: &str) -> Option<Object> {
        self.state().pods.objects.get(name).cloned()
    }

    /// Whether the leader's record as last seen holds.
    pub(super) fn is_led(&self) -> bool {
        let state = self.state();
        self.holds_until(&state)
            .is_some_and(|until| clock::now() <= until)
    }

    /// When the leader's record ends if it is not renewed.
    pub(super) fn ends_at(&self) -> Option<Moment> {
        self.holds_until(&self.state())
    }

    /// Up to which version all of a kind are known; 0 when nothing was read yet.
    pub(super) fn version(&self, kind: Kind) -> u64 {
        self.state().of(kind).version
    }

    /// Puts a whole list in place of what there was, unless that is newer. `anew`: the versions have started again.
    pub(super) fn replace(&self, kind: Kind, list: Vec<Object>, version: u64, anew: bool) {
        self.change(kind, |collection| {
            if anew {
                collection.objects.clear();
            } else if version < collection.version {
                return;
            }
            collection.version = version;
            // What was written after the list was made stays.
            collection
                .objects
                .retain(|_, known| known.version > version);
            for object in list {
                insert(collection, object);
            }
        });
    }

    /// An object as it is now: an event of the watch, or the answer to an own write.
    pub(super) fn put(&self, kind: Kind, object: Object, by_watch: bool) {
        self.change(kind, |collection| {
            if by_watch {
                collection.version = collection.version.max(object.version);
            }
            insert(collection, object);
        });
    }

    /// An object is no more since `object.version`.
    pub(super) fn remove(&self, kind: Kind, object: &Object) {
        self.change(kind, |collection| {
            collection.version = collection.version.max(object.version);
            let known = collection.objects.get(&object.name);
            if known.is_some_and(|known| known.version <= object.version) {
                collection.objects.remove(&object.name);
            }
        });
    }

    fn change(&self, kind: Kind, change: impl FnOnce(&mut Collection)) {
        let mut state = self.state();
        let before = self.assemble(&state);
        change(state.of(kind));
        self.look_at_leader(&mut state);
        let after = self.assemble(&state);
        drop(state);
        let leads = self.me.as_ref().is_some_and(|me| before.is_led_by(me));
        // ctl wakes for nothing, and asks for nothing.
        if let Some(me) = &self.me
            && news::is_news_between(me, leads, &before, &after)
        {
            self.announce();
        }
    }

    fn look_at_leader(&self, state: &mut State) {
        let name = self.names.name(Part::Leader);
        let record = state.state.objects.get(&name).map(Record::of);
        match (record, &state.seen) {
            (None, _) => state.seen = None,
            (Some(record), Some((seen, _))) if record == *seen => {}
            (Some(record), _) => state.seen = Some((record, clock::now())),
        }
    }

    fn holds_until(&self, state: &State) -> Option<Moment> {
        let (record, since) = state.seen.as_ref()?;
        record.leader.as_ref()?;
        // Anybody with the right to can write there: no number may be too large to reckon with.
        let told = record.ttl.as_deref().and_then(|text| text.parse().ok());
        let ttl = told.map_or_else(
            || *self.ttl.lock().unwrap_or_else(PoisonError::into_inner),
            |seconds: u32| Duration::from_secs(seconds.into()),
        );
        Some(*since + ttl)
    }

    fn assemble(&self, state: &State) -> Cluster {
        let leads = self
            .holds_until(state)
            .is_some_and(|until| clock::now() <= until);
        self.names.assemble(
            state.state.objects.values(),
            state.pods.objects.values(),
            leads,
        )
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment after all that can fail: a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn of(&mut self, kind: Kind) -> &mut Collection {
        match kind {
            Kind::State => &mut self.state,
            Kind::Pod => &mut self.pods,
        }
    }
}

fn insert(collection: &mut Collection, object: Object) {
    let known = collection.objects.get(&object.name);
    if known.is_none_or(|known| known.version <= object.version) {
        collection.objects.insert(object.name.clone(), object);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cache() -> Cache {
        let names = Names {
            scope: "demo".to_owned(),
            group: None,
            use_endpoints: false,
            labels: BTreeMap::new(),
        };
        Cache::new(MemberName::new("me").ok(), names, Duration::from_secs(3600))
    }

    fn object(name: &str, version: u64, annotations: &serde_json::Value) -> Object {
        Object::parse(&json!({ "metadata": {
            "name": name, "resourceVersion": version.to_string(), "annotations": annotations,
        } }))
        .unwrap()
    }

    fn config(version: u64) -> Object {
        object("demo-config", version, &json!({ "config": "{}" }))
    }

    fn config_version(cache: &Cache) -> Option<u64> {
        cache.part(Part::Config).map(|object| object.version)
    }

    #[test]
    fn an_older_list_or_event_does_not_undo_an_own_write() {
        let cache = cache();
        cache.replace(Kind::State, vec![config(3)], 5, false);
        cache.put(Kind::State, config(9), false);
        cache.replace(Kind::State, vec![config(3)], 7, false);
        cache.put(Kind::State, config(8), true);
        cache.remove(Kind::State, &config(8));
        assert_eq!(config_version(&cache), Some(9));
        // The list was made before what the watch has told since.
        cache.put(Kind::State, config(12), true);
        cache.replace(Kind::State, Vec::new(), 11, false);
        assert_eq!(config_version(&cache), Some(12));
        cache.replace(Kind::State, Vec::new(), 13, false);
        assert_eq!(config_version(&cache), None);
    }

    #[test]
    fn versions_that_start_again_replace_everything() {
        let cache = cache();
        cache.replace(Kind::State, vec![config(900)], 900, false);
        cache.replace(Kind::State, vec![config(4)], 4, true);
        assert_eq!(
            (config_version(&cache), cache.version(Kind::State)),
            (Some(4), 4)
        );
    }

    #[test]
    fn a_leader_is_one_from_when_its_record_was_seen_to_change() {
        let cache = cache();
        let leads = |ttl: &str, optime: &str, version| {
            let said = json!({ "leader": "a", "ttl": ttl, "optime": optime });
            cache.put(Kind::State, object("demo-leader", version, &said), true);
            cache.ends_at()
        };
        let first = leads("30", "1", 1);
        assert!(first.is_some() && cache.is_led());
        assert_eq!(leads("30", "2", 2), first, "a position is no renewal");
        // Seen to change, and to hold for no time at all.
        assert!(leads("0", "2", 3) < first);
        let endless = u64::MAX.to_string();
        assert!(leads(&endless, "2", 4).is_some(), "as if it said nothing");
        let released = json!({ "transitions": "1" });
        cache.put(Kind::State, object("demo-leader", 5, &released), true);
        assert!(cache.ends_at().is_none() && !cache.is_led());
    }

    #[test]
    fn positions_and_renewals_wake_nobody_and_a_new_leader_does() {
        let cache = cache();
        let mut changes = cache.changes();
        let mut news = |annotations: serde_json::Value, version| {
            changes.borrow_and_update();
            let object = object("demo-leader", version, &annotations);
            cache.put(Kind::State, object, true);
            changes.has_changed().unwrap()
        };
        assert!(news(
            json!({ "leader": "a", "ttl": "30", "renewTime": "1" }),
            1
        ));
        assert!(!news(
            json!({ "leader": "a", "ttl": "30", "renewTime": "2" }),
            2
        ));
        assert!(news(
            json!({ "leader": "b", "ttl": "30", "renewTime": "3" }),
            3
        ));
        assert!(news(json!({ "ttl": "30" }), 4));
    }
}
