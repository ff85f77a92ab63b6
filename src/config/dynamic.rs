//! Dynamic configuration: the store's `/config` as a typed value (spec/configuration.md §4).
//!
//! Pure. Lenient where Patroni is: what cannot be read falls to its default with a warning, except the few things that make
//! a whole document unacceptable, after which the previous one stays in force.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::value;

/// Why a document is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the dynamic configuration is not accepted, the previous one stays in force: {0}")]
pub struct Unacceptable(pub String);

/// Synchronous replication, as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SynchronousMode {
    /// Asynchronous.
    #[default]
    Off,
    /// The first `node_count` healthy standbys by priority.
    Priority,
    /// Any `node_count` of the voters.
    Quorum,
}

/// On which kind of cluster a permanent slot exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "Patroni's words")]
pub enum ClusterType {
    Primary,
    Standby,
}

/// What kind of slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotKind {
    /// Physical.
    Physical,
    /// Logical.
    Logical {
        /// Its database.
        database: String,
        /// Its output plugin.
        plugin: String,
    },
}

/// A permanent slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermanentSlot {
    /// Kind.
    pub kind: SlotKind,
    /// Only on this type of cluster.
    pub cluster_type: Option<ClusterType>,
}

/// Slots left alone: all given properties must match.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the properties of a slot")]
pub struct IgnoreSlot {
    pub name: Option<String>,
    pub slot_type: Option<String>,
    pub database: Option<String>,
    pub plugin: Option<String>,
}

/// `standby_cluster`, when it makes this a standby cluster: at least one of host, port, restore_command.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StandbyCluster {
    /// May be a comma-separated list.
    pub host: Option<String>,
    /// May be a comma-separated list too.
    pub port: Option<String>,
    /// Already in the form of a slot name; `None` = no slot.
    pub primary_slot_name: Option<String>,
    /// Methods of creating the standby leader.
    pub create_replica_methods: Vec<String>,
    /// Restore command.
    pub restore_command: Option<String>,
    /// Archive clean-up command.
    pub archive_cleanup_command: Option<String>,
    /// PostgreSQL's text.
    pub recovery_min_apply_delay: Option<String>,
}

/// The accepted dynamic configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Dynamic {
    /// Lease of the leader key.
    pub ttl: Duration,
    /// Between turns when nothing happens.
    pub loop_wait: Duration,
    /// Budget of retries.
    pub retry_timeout: Duration,
    /// Bytes.
    pub maximum_lag_on_failover: u64,
    /// Bytes; `None` = lagging synchronous standbys are kept.
    pub maximum_lag_on_syncnode: Option<u64>,
    /// Entries kept in the history; 0 = all.
    pub max_timelines_history: usize,
    /// Refuse candidates behind the cluster's timeline.
    pub check_timeline: bool,
    /// How long a failed primary may recover; zero = fail over at once.
    pub primary_start_timeout: Duration,
    /// Limit of a primary's stop in synchronous mode; `None` = none.
    pub primary_stop_timeout: Option<Duration>,
    /// A running primary that answers no query for so long has failed; zero = never (new beyond Patroni).
    pub primary_answer_timeout: Duration,
    /// A member that could not serve is no candidate while another can (new beyond Patroni).
    pub candidate_checks: bool,
    /// Bytes that must be free for data and WAL for that; zero = any (new beyond Patroni).
    pub candidate_free_space: u64,
    /// The race waits this long while WAL still advances.
    pub primary_race_backoff: Duration,
    /// Failsafe mode.
    pub failsafe_mode: bool,
    /// A leader that hears neither the store nor any member lets its commits wait. Howdah's own.
    pub isolation_hold: bool,
    /// Maintenance mode.
    pub pause: bool,
    /// `Off` in a standby cluster, whatever is asked for.
    pub synchronous_mode: SynchronousMode,
    /// Strict.
    pub synchronous_mode_strict: bool,
    /// At least 1 if strict.
    pub synchronous_node_count: u32,
    /// How long a lost member's slot is kept; zero = not at all.
    pub member_slots_ttl: Duration,
    /// Permanent slots by name.
    pub slots: BTreeMap<String, PermanentSlot>,
    /// Slots left alone.
    pub ignore_slots: Vec<IgnoreSlot>,
    /// Standby cluster.
    pub standby_cluster: Option<StandbyCluster>,
    /// Section `postgresql`, raw; `effective` reads it.
    pub postgresql: Map<String, Value>,
    /// The whole accepted document, timeouts adjusted: what is cached, published again and shown.
    pub document: Map<String, Value>,
}

impl Default for Dynamic {
    /// What an empty document means: Patroni's defaults.
    fn default() -> Self {
        Dynamic {
            ttl: Duration::from_secs(30),
            loop_wait: Duration::from_secs(10),
            retry_timeout: Duration::from_secs(10),
            maximum_lag_on_failover: 1_048_576,
            maximum_lag_on_syncnode: None,
            max_timelines_history: 0,
            check_timeline: false,
            primary_start_timeout: Duration::from_secs(300),
            primary_stop_timeout: None,
            primary_answer_timeout: Duration::from_secs(120),
            candidate_checks: true,
            candidate_free_space: FREE_SPACE,
            primary_race_backoff: Duration::ZERO,
            failsafe_mode: false,
            isolation_hold: true,
            pause: false,
            synchronous_mode: SynchronousMode::Off,
            synchronous_mode_strict: false,
            synchronous_node_count: 1,
            member_slots_ttl: Duration::from_secs(1800),
            slots: BTreeMap::new(),
            ignore_slots: Vec::new(),
            standby_cluster: None,
            postgresql: Map::new(),
            document: Map::new(),
        }
    }
}

/// Two WAL segments of the usual size: with less PostgreSQL is about to stop by itself.
const FREE_SPACE: u64 = 32 << 20;

/// Timings with default and smallest value. Patroni: the smallest values are 20, 1 and 3.
const TIMINGS: [(&str, i64, i64); 3] = [
    ("loop_wait", 10, 1),
    ("retry_timeout", 10, 1),
    ("ttl", 30, 3),
];

impl Dynamic {
    /// Reads a document; returns it with warnings.
    ///
    /// # Errors
    /// A timing that is no integer, or a section of the wrong shape: keep the previous configuration.
    pub fn read(document: &Map<String, Value>) -> Result<(Dynamic, Vec<String>), Unacceptable> {
        if let Some((key, reason)) = check(document).into_iter().next() {
            return Err(Unacceptable(format!("{key} {reason}")));
        }
        let mut warnings = Vec::new();
        let mut document = document.clone();
        adjust_timings(&mut document, &mut warnings);
        let mut read = Lenient {
            document: &document,
            warnings,
        };
        let standby_cluster = read.standby_cluster();
        let strict = read.boolean("synchronous_mode_strict");
        let node_count = read
            .integer("synchronous_node_count", 1)
            .max(i64::from(strict));
        let dynamic = Dynamic {
            ttl: read.seconds("ttl", 30),
            loop_wait: read.seconds("loop_wait", 10),
            retry_timeout: read.seconds("retry_timeout", 10),
            maximum_lag_on_failover: u64::try_from(
                read.integer("maximum_lag_on_failover", 1_048_576),
            )
            .unwrap_or(0),
            maximum_lag_on_syncnode: u64::try_from(read.integer("maximum_lag_on_syncnode", -1))
                .ok()
                .filter(|lag| *lag > 0),
            max_timelines_history: usize::try_from(read.integer("max_timelines_history", 0))
                .unwrap_or(0),
            check_timeline: read.boolean("check_timeline"),
            primary_start_timeout: read.seconds_alias(
                "primary_start_timeout",
                "master_start_timeout",
                300,
            ),
            primary_stop_timeout: Some(read.seconds_alias(
                "primary_stop_timeout",
                "master_stop_timeout",
                0,
            ))
            .filter(|t| !t.is_zero()),
            primary_answer_timeout: read.seconds("primary_answer_timeout", 120),
            candidate_checks: read.boolean_or("candidate_checks", true),
            candidate_free_space: u64::try_from(
                read.integer("candidate_free_space", FREE_SPACE as i64),
            )
            .unwrap_or(0),
            primary_race_backoff: read.seconds("primary_race_backoff", 0),
            failsafe_mode: read.boolean("failsafe_mode"),
            isolation_hold: read.boolean_or("isolation_hold", true),
            pause: read.boolean("pause"),
            synchronous_mode: if standby_cluster.is_some() {
                SynchronousMode::Off
            } else {
                read.synchronous_mode()
            },
            synchronous_mode_strict: strict,
            synchronous_node_count: u32::try_from(node_count.max(0)).unwrap_or(u32::MAX),
            member_slots_ttl: read.member_slots_ttl(),
            slots: read.slots(),
            ignore_slots: read.ignore_slots(),
            standby_cluster,
            postgresql: document
                .get("postgresql")
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default(),
            document: Map::new(),
        };
        let warnings = read.warnings;
        Ok((
            Dynamic {
                document,
                ..dynamic
            },
            warnings,
        ))
    }
}

/// What makes a document unacceptable: (key, reason).
pub(crate) fn check(document: &Map<String, Value>) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (key, _, _) in TIMINGS {
        if let Some(value) = document.get(key)
            && value::to_integer(value).is_none()
        {
            found.push((
                key.to_owned(),
                format!("is not an integer: {}", value::text(value)),
            ));
        }
    }
    match document.get("postgresql") {
        None | Some(Value::Null) => {}
        Some(Value::Object(postgresql)) => {
            for key in [
                "parameters",
                "parameters_primary",
                "parameters_replica",
                "parameters_standby_leader",
            ] {
                if postgresql
                    .get(key)
                    .is_some_and(|parameters| !parameters.is_object() && !parameters.is_null())
                {
                    found.push((
                        format!("postgresql.{key}"),
                        "is not a dictionary".to_owned(),
                    ));
                }
            }
        }
        Some(_) => found.push(("postgresql".to_owned(), "is not a dictionary".to_owned())),
    }
    found
}

/// Completes the initial configuration with explicit timings, so that all agents of the cluster agree on them. With a `ttl`
/// alone the others follow from it.
pub(crate) fn fill_timings(document: &mut Map<String, Value>) {
    let ttl = document
        .get("ttl")
        .and_then(value::to_integer)
        .unwrap_or(30)
        .max(3);
    let loop_wait = document
        .get("loop_wait")
        .and_then(value::to_integer)
        .unwrap_or((ttl / 3).clamp(1, 10));
    let retry_timeout = ((ttl - loop_wait) / 2).clamp(1, 10);
    for (key, preset) in [
        ("ttl", ttl),
        ("loop_wait", loop_wait),
        ("retry_timeout", retry_timeout),
    ] {
        document.entry(key).or_insert_with(|| json!(preset));
    }
}

/// Raises what is too small and restores `loop_wait + 2*retry_timeout <= ttl` (§4.2).
fn adjust_timings(document: &mut Map<String, Value>, warnings: &mut Vec<String>) {
    let mut values = [0; 3];
    for (slot, (key, preset, least)) in values.iter_mut().zip(TIMINGS) {
        let given = document.get(key).and_then(value::to_integer);
        *slot = given.unwrap_or(preset);
        if document.get(key).is_some_and(|value| !value.is_i64()) {
            document.insert(key.to_owned(), json!(*slot));
        }
        if *slot < least {
            warnings.push(format!(
                "{key}={slot} can't be smaller than {least}, adjusting..."
            ));
            *slot = least;
            document.insert(key.to_owned(), json!(least));
        }
    }
    let [loop_wait, retry_timeout, ttl] = values;
    let rule =
        format!("Violated the rule \"loop_wait + 2*retry_timeout <= ttl\", where ttl={ttl}.");
    if 1_i64.saturating_add(retry_timeout.saturating_mul(2)) > ttl {
        let shorter = ((ttl - 1) / 2).max(1);
        warnings.push(format!("{rule} Adjusting loop_wait from {loop_wait} to 1 and retry_timeout from {retry_timeout} to {shorter}"));
        document.insert("loop_wait".to_owned(), json!(1));
        document.insert("retry_timeout".to_owned(), json!(shorter));
    } else if loop_wait.saturating_add(2 * retry_timeout) > ttl {
        let shorter = ttl - 2 * retry_timeout;
        warnings.push(format!(
            "{rule} Adjusting loop_wait from {loop_wait} to {shorter}"
        ));
        document.insert("loop_wait".to_owned(), json!(shorter));
    }
}

/// Reads single keys; what is unreadable falls to the default with a warning.
struct Lenient<'a> {
    document: &'a Map<String, Value>,
    warnings: Vec<String>,
}

impl<'a> Lenient<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.document.get(key).filter(|value| !value.is_null())
    }

    fn integer(&mut self, key: &str, preset: i64) -> i64 {
        let Some(given) = self.get(key) else {
            return preset;
        };
        match value::parse_int(given, None) {
            Some(number) => number,
            None => {
                let shown = value::text(given);
                self.warnings
                    .push(format!("{key}={shown} is not an integer, using {preset}"));
                preset
            }
        }
    }

    fn seconds(&mut self, key: &str, preset: i64) -> Duration {
        Duration::from_secs(u64::try_from(self.integer(key, preset)).unwrap_or(0))
    }

    fn seconds_alias(&mut self, key: &str, old: &str, preset: i64) -> Duration {
        let key = if self.get(key).is_none() && self.get(old).is_some() {
            old
        } else {
            key
        };
        self.seconds(key, preset)
    }

    /// A "mode": anything unreadable is off (§1.2).
    fn boolean(&mut self, key: &str) -> bool {
        self.boolean_or(key, false)
    }

    fn boolean_or(&mut self, key: &str, default: bool) -> bool {
        let Some(given) = self.get(key) else {
            return default;
        };
        value::parse_bool(given).unwrap_or_else(|| {
            let shown = value::text(given);
            let instead = if default { "on" } else { "off" };
            self.warnings
                .push(format!("{key}={shown} is not a boolean, using {instead}"));
            default
        })
    }

    fn synchronous_mode(&mut self) -> SynchronousMode {
        let is_quorum = self
            .get("synchronous_mode")
            .is_some_and(|mode| value::text(mode).eq_ignore_ascii_case("quorum"));
        if is_quorum {
            SynchronousMode::Quorum
        } else if self.boolean("synchronous_mode") {
            SynchronousMode::Priority
        } else {
            SynchronousMode::Off
        }
    }

    fn member_slots_ttl(&mut self) -> Duration {
        const PRESET: i64 = 1800;
        let Some(given) = self.get("member_slots_ttl") else {
            return Duration::from_secs(PRESET.unsigned_abs());
        };
        let seconds = value::parse_int(given, Some("s")).unwrap_or_else(|| {
            let shown = value::text(given);
            self.warnings.push(format!(
                "member_slots_ttl={shown} is not a time, using {PRESET}"
            ));
            PRESET
        });
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    fn slots(&mut self) -> BTreeMap<String, PermanentSlot> {
        let mut slots = BTreeMap::new();
        let names = ["permanent_replication_slots", "permanent_slots", "slots"];
        let Some(given) = names
            .iter()
            .find_map(|key| self.get(key).filter(|value| value::is_truthy(value)))
        else {
            return slots;
        };
        let Some(given) = given.as_object().cloned() else {
            self.warnings
                .push("slots is not a dictionary and is ignored".to_owned());
            return slots;
        };
        for (name, spec) in given {
            match permanent_slot(&name, &spec) {
                Ok(slot) => {
                    slots.insert(name, slot);
                }
                Err(reason) => self
                    .warnings
                    .push(format!("the permanent slot {name:?} is ignored: {reason}")),
            }
        }
        slots
    }

    fn ignore_slots(&mut self) -> Vec<IgnoreSlot> {
        let Some(given) = self.get("ignore_slots").cloned() else {
            return Vec::new();
        };
        let Some(items) = given.as_array() else {
            self.warnings
                .push("ignore_slots is not a list and is ignored".to_owned());
            return Vec::new();
        };
        let mut found = Vec::new();
        for item in items {
            let property = |name: &str| {
                item.get(name)
                    .filter(|value| !value.is_null())
                    .map(value::text)
            };
            let slot = IgnoreSlot {
                name: property("name"),
                slot_type: property("type"),
                database: property("database"),
                plugin: property("plugin"),
            };
            // An entry without any property would match every slot there is.
            if slot == IgnoreSlot::default() {
                self.warnings.push("an item of ignore_slots has none of name, type, database, plugin and is ignored".to_owned());
            } else {
                found.push(slot);
            }
        }
        found
    }

    fn standby_cluster(&mut self) -> Option<StandbyCluster> {
        let given = self.get("standby_cluster")?.as_object()?.clone();
        if !["host", "port", "restore_command"]
            .iter()
            .any(|key| given.get(*key).is_some_and(value::is_truthy))
        {
            return None;
        }
        let text = |key: &str| {
            given
                .get(key)
                .filter(|value| value::is_truthy(value))
                .map(value::text)
        };
        let slot = text("primary_slot_name")
            .and_then(|name| crate::types::MemberName::new(name).ok())
            .map(|name| name.slot_name());
        let methods = match given.get("create_replica_methods") {
            Some(Value::Array(items)) => items
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            Some(Value::String(method)) if !method.is_empty() => vec![method.clone()],
            _ => Vec::new(),
        };
        Some(StandbyCluster {
            host: text("host"),
            port: text("port"),
            primary_slot_name: slot,
            create_replica_methods: methods,
            restore_command: text("restore_command"),
            archive_cleanup_command: text("archive_cleanup_command"),
            recovery_min_apply_delay: text("recovery_min_apply_delay"),
        })
    }
}

fn permanent_slot(name: &str, spec: &Value) -> Result<PermanentSlot, String> {
    let valid = (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !valid {
        return Err("the name must be 1 to 63 of a-z, 0-9 and _".to_owned());
    }
    let empty = Map::new();
    let spec = match spec {
        Value::Null => &empty,
        Value::Object(map) => map,
        other if !value::is_truthy(other) => &empty,
        other => return Err(format!("{} is not a dictionary", value::text(other))),
    };
    let text = |key: &str| {
        spec.get(key)
            .filter(|value| value::is_truthy(value))
            .map(value::text)
    };
    let cluster_type = match text("cluster_type").as_deref() {
        None => None,
        Some("primary") => Some(ClusterType::Primary),
        Some("standby") => Some(ClusterType::Standby),
        Some(other) => {
            return Err(format!(
                "cluster_type {other:?} is neither primary nor standby"
            ));
        }
    };
    let kind = match (text("type").as_deref(), text("database"), text("plugin")) {
        (Some("logical") | None, Some(database), Some(plugin)) => {
            SlotKind::Logical { database, plugin }
        }
        (Some("physical"), ..) => SlotKind::Physical,
        (None, None, None) => SlotKind::Physical,
        (Some("logical") | None, ..) => {
            return Err("a logical slot needs database and plugin".to_owned());
        }
        (Some(other), ..) => return Err(format!("type {other:?} is neither physical nor logical")),
    };
    Ok(PermanentSlot { kind, cluster_type })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(document: Value) -> (Dynamic, Vec<String>) {
        Dynamic::read(document.as_object().unwrap()).unwrap()
    }

    #[test]
    fn nothing_means_patronis_defaults() {
        let (dynamic, warnings) = read(json!({}));
        assert_eq!(dynamic, Dynamic::default());
        assert!(warnings.is_empty());
    }

    #[test]
    fn lenient_values() {
        let (dynamic, warnings) = read(json!({
            "ttl": "40", "loop_wait": 5.9, "maximum_lag_on_failover": "much", "pause": "on", "failsafe_mode": "perhaps",
            "synchronous_mode": "QUORUM", "synchronous_mode_strict": true, "synchronous_node_count": 0,
            "master_start_timeout": 0, "member_slots_ttl": "1h", "maximum_lag_on_syncnode": 4096, "unknown": [1],
        }));
        assert_eq!(
            (dynamic.ttl, dynamic.loop_wait),
            (Duration::from_secs(40), Duration::from_secs(5))
        );
        assert_eq!(dynamic.maximum_lag_on_failover, 1_048_576);
        assert!(dynamic.pause && !dynamic.failsafe_mode && dynamic.synchronous_mode_strict);
        assert!(dynamic.isolation_hold, "on unless it is switched off");
        assert_eq!(dynamic.synchronous_mode, SynchronousMode::Quorum);
        assert_eq!(dynamic.synchronous_node_count, 1);
        assert_eq!(dynamic.primary_start_timeout, Duration::ZERO);
        assert_eq!(dynamic.primary_stop_timeout, None);
        assert_eq!(dynamic.member_slots_ttl, Duration::from_secs(3600));
        assert_eq!(dynamic.maximum_lag_on_syncnode, Some(4096));
        assert_eq!(dynamic.document["unknown"], json!([1]));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn new_names_win_over_old_ones() {
        let (dynamic, _) = read(
            json!({"primary_start_timeout": 5, "master_start_timeout": 7, "master_stop_timeout": 9}),
        );
        assert_eq!(dynamic.primary_start_timeout, Duration::from_secs(5));
        assert_eq!(dynamic.primary_stop_timeout, Some(Duration::from_secs(9)));
    }

    #[test]
    fn the_checks_of_candidates_can_be_changed_and_switched_off() {
        let (preset, _) = read(json!({"candidate_checks": "perhaps"}));
        assert_eq!(
            (preset.candidate_checks, preset.candidate_free_space),
            (true, 32 << 20)
        );
        let (dynamic, warnings) = read(
            json!({"candidate_checks": "off", "candidate_free_space": "1GB", "primary_answer_timeout": 0}),
        );
        assert!(!dynamic.candidate_checks && dynamic.primary_answer_timeout.is_zero());
        assert_eq!(
            dynamic.candidate_free_space,
            32 << 20,
            "a plain number of bytes, as the lags are"
        );
        assert_eq!(warnings.len(), 1, "{warnings:?}");
    }

    #[test]
    fn timings_are_adjusted() {
        let timings = |document: Value| {
            let (dynamic, warnings) = read(document);
            (
                (
                    dynamic.ttl.as_secs(),
                    dynamic.loop_wait.as_secs(),
                    dynamic.retry_timeout.as_secs(),
                ),
                warnings,
            )
        };
        assert_eq!(
            timings(json!({"ttl": 3, "loop_wait": 1, "retry_timeout": 1})),
            ((3, 1, 1), vec![])
        );
        let (values, warnings) = timings(json!({"ttl": 1, "loop_wait": 0, "retry_timeout": 0}));
        assert_eq!(values, (3, 1, 1));
        assert_eq!(
            warnings[0],
            "loop_wait=0 can't be smaller than 1, adjusting..."
        );
        assert_eq!(warnings[2], "ttl=1 can't be smaller than 3, adjusting...");
        let (values, warnings) = timings(json!({"ttl": 20, "loop_wait": 10, "retry_timeout": 10}));
        assert_eq!(values, (20, 1, 9));
        assert_eq!(
            warnings,
            [
                "Violated the rule \"loop_wait + 2*retry_timeout <= ttl\", where ttl=20. Adjusting loop_wait from 10 to 1 and retry_timeout from 10 to 9"
            ]
        );
        let (values, _) = timings(json!({"ttl": 25, "loop_wait": 10, "retry_timeout": 10}));
        assert_eq!(values, (25, 5, 10));
    }

    #[test]
    fn the_initial_document_has_timings_that_fit() {
        for ttl in [3, 5, 9, 20, 30, 60] {
            let mut document = json!({"ttl": ttl}).as_object().cloned().unwrap();
            fill_timings(&mut document);
            let (_, warnings) = Dynamic::read(&document).unwrap();
            assert!(warnings.is_empty(), "{ttl}: {warnings:?}");
        }
        let mut document = Map::new();
        fill_timings(&mut document);
        assert_eq!(
            Value::Object(document),
            json!({"ttl": 30, "loop_wait": 10, "retry_timeout": 10})
        );
    }

    #[test]
    fn unacceptable_documents() {
        for document in [
            json!({"ttl": "soon"}),
            json!({"postgresql": {"parameters": [1]}}),
            json!({"postgresql": 5}),
        ] {
            assert!(
                Dynamic::read(document.as_object().unwrap()).is_err(),
                "{document}"
            );
        }
    }

    #[test]
    fn slots_and_standby_cluster() {
        let (dynamic, warnings) = read(json!({
            "slots": {"a": null, "b": {"type": "physical", "cluster_type": "standby"}, "c": {"database": "d", "plugin": "p", "lsn": 5},
                      "Bad": {}, "e": {"type": "logical"}},
            "ignore_slots": [{"name": "x", "type": "logical"}, {}],
            "synchronous_mode": true,
            "standby_cluster": {"host": "h1,h2", "port": 5432, "primary_slot_name": "My-Slot"},
        }));
        assert_eq!(dynamic.slots.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(dynamic.slots["b"].cluster_type, Some(ClusterType::Standby));
        assert_eq!(
            dynamic.slots["c"].kind,
            SlotKind::Logical {
                database: "d".into(),
                plugin: "p".into()
            }
        );
        assert_eq!(dynamic.ignore_slots.len(), 1);
        let standby = dynamic.standby_cluster.unwrap();
        assert_eq!(
            (
                standby.port.as_deref(),
                standby.primary_slot_name.as_deref()
            ),
            (Some("5432"), Some("my_slot"))
        );
        assert_eq!(dynamic.synchronous_mode, SynchronousMode::Off);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(
            read(json!({"standby_cluster": {"host": "", "primary_slot_name": "x"}}))
                .0
                .standby_cluster
                .is_none()
        );
    }
}
