//! The settings PostgreSQL runs with: controlled settings, per-version filtering, values demanded by pg_controldata, recovery settings.
//!
//! Pure. What had to be changed or dropped comes back as data ([`Problem`]); nothing here logs, reads files or talks to a server.
//! spec/configuration.md §5.

use std::collections::{BTreeMap, BTreeSet};

use super::control::Limits;
use super::quantity;
use super::version_rules::{self, Problem, Verdict};
use crate::types::PgVersion;

/// What strict synchronous mode puts into `synchronous_standby_names` when no standby may confirm commits.
pub const STRICT_PLACEHOLDER: &str = "__patroni_strict_sync_replica_placeholder__";

/// Settings by name. Names are compared without regard to case; the last written spelling is kept; iteration is in order of names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters(BTreeMap<String, (String, String)>);

impl Parameters {
    /// No settings.
    #[must_use]
    pub fn new() -> Self {
        Parameters::default()
    }

    /// Sets one value.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let name = name.into();
        self.0
            .insert(name.to_ascii_lowercase(), (name, value.into()));
    }

    /// The value of a setting.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(&name.to_ascii_lowercase())
            .map(|(_, value)| value.as_str())
    }

    /// Takes a setting out.
    pub fn remove(&mut self, name: &str) -> Option<String> {
        self.0
            .remove(&name.to_ascii_lowercase())
            .map(|(_, value)| value)
    }

    /// (name, value), sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .values()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether there is no setting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Parameters {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(items: I) -> Self {
        let mut parameters = Parameters::new();
        for (name, value) in items {
            parameters.set(name, value);
        }
        parameters
    }
}

/// The check of a controlled setting.
#[derive(Debug, Clone, Copy)]
enum Valid {
    /// Comes from elsewhere than `parameters`.
    NotSettable,
    WalLevel,
    True,
    Bool,
    AtLeast(i64),
    AtLeastMegabytes(i64),
}

struct Controlled {
    name: &'static str,
    default: &'static str,
    valid: Valid,
    since: PgVersion,
    command_line: bool,
}

const fn controlled(
    name: &'static str,
    default: &'static str,
    valid: Valid,
    since: u32,
) -> Controlled {
    Controlled {
        name,
        default,
        valid,
        since: PgVersion(since),
        command_line: !matches!(name.as_bytes(), b"wal_keep_segments" | b"wal_keep_size"),
    }
}

/// spec/configuration.md §5.1; the order is that of the postmaster's arguments.
const CONTROLLED: [Controlled; 15] = [
    controlled("listen_addresses", "", Valid::NotSettable, 0),
    controlled("port", "5432", Valid::NotSettable, 0),
    controlled("cluster_name", "", Valid::NotSettable, 90_500),
    controlled("wal_level", "hot_standby", Valid::WalLevel, 0),
    controlled("hot_standby", "on", Valid::True, 0),
    controlled("max_connections", "100", Valid::AtLeast(25), 0),
    controlled("max_wal_senders", "10", Valid::AtLeast(3), 0),
    controlled("wal_keep_segments", "8", Valid::AtLeast(1), 0),
    controlled(
        "wal_keep_size",
        "128MB",
        Valid::AtLeastMegabytes(16),
        130_000,
    ),
    controlled("max_prepared_transactions", "0", Valid::AtLeast(0), 0),
    controlled("max_locks_per_transaction", "64", Valid::AtLeast(32), 0),
    controlled("track_commit_timestamp", "off", Valid::Bool, 90_500),
    controlled("max_replication_slots", "10", Valid::AtLeast(4), 90_400),
    controlled("max_worker_processes", "8", Valid::AtLeast(2), 90_400),
    controlled("wal_log_hints", "on", Valid::Bool, 90_400),
];

/// Whether the cluster controls this setting: it is taken from the dynamic configuration only, and goes on the command line.
#[must_use]
pub fn is_controlled(name: &str) -> bool {
    CONTROLLED.iter().any(|c| c.name.eq_ignore_ascii_case(name))
}

/// How `synchronous_standby_names` is decided (§5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynchronousNames<'a> {
    /// Synchronous mode is off: the configured value, if any, is used.
    Configured,
    /// Synchronous mode is on.
    Managed {
        /// The value set last by the agent.
        current: Option<&'a str>,
        /// Strict mode, and this node is (being made) the primary.
        strict_primary: bool,
    },
}

/// All that decides the settings of the server.
#[derive(Debug, Clone)]
pub struct ServerInputs<'a> {
    /// `postgresql.parameters` of the effective configuration.
    pub configured: &'a Parameters,
    /// Host part of `postgresql.listen`.
    pub listen_addresses: &'a str,
    /// Port part of `postgresql.listen`.
    pub port: u16,
    /// `scope`.
    pub cluster_name: &'a str,
    /// The server's version with its minor, or the binary's if its major is the data directory's, else that major (§5.5).
    pub version: PgVersion,
    /// The names `postgres --describe-config` printed, lower case; `None`: unknown, then nothing without a rule is dropped.
    pub known_names: Option<&'a BTreeSet<String>>,
    /// Who decides `synchronous_standby_names`.
    pub synchronous_names: SynchronousNames<'a>,
    /// pg_controldata's values; `None` when a primary is started.
    pub control: Option<Limits>,
    /// `hot_standby` is off while a custom bootstrap recovers ([`bootstrap_without_hot_standby`]).
    pub without_hot_standby: bool,
    /// `hot_standby_feedback` is forced on (this node protects logical slots).
    pub force_feedback: bool,
    /// Citus is configured: the host of the local connection.
    pub citus_local_host: Option<&'a str>,
}

/// A setting whose running value differs from the one after a restart (`pending_restart_reason`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingReason {
    /// Running value (§5.2: pg_controldata's), in its largest exact unit; empty: unset.
    pub old_value: String,
    /// Value after a restart.
    pub new_value: String,
}

/// Pending restart: why, by setting.
pub type PendingRestart = BTreeMap<String, PendingReason>;

/// The settings of the server and what had to be changed.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerSettings {
    /// What goes into postgresql.conf. Values whose name is a recovery setting are not here.
    pub parameters: Parameters,
    /// The postmaster's `--name=value` arguments, in order.
    pub command_line: Vec<(String, String)>,
    /// What was dropped, clamped or replaced by its default.
    pub problems: Vec<Problem>,
    /// Settings raised to pg_controldata's value; replaces the pending-restart set at a start.
    pub raised: PendingRestart,
}

/// Computes the settings of the server (§5.1 – §5.5). Independent of the role, except through the fields of the inputs.
#[must_use]
pub fn server_settings(inputs: &ServerInputs<'_>) -> ServerSettings {
    let mut problems = Vec::new();
    let mut parameters = controlled_settings(inputs, &mut problems);
    add_ordinary(inputs, &mut parameters, &mut problems);
    if let Some(host) = inputs.citus_local_host {
        apply_citus(&mut parameters, host);
    }
    let raised = raise_to_control(inputs, &mut parameters);
    if inputs.without_hot_standby {
        parameters.set("hot_standby", "off");
    }
    if inputs.force_feedback {
        parameters.set("hot_standby_feedback", "on");
    }
    if let SynchronousNames::Managed {
        current,
        strict_primary,
    } = inputs.synchronous_names
    {
        match current.or(strict_primary.then_some(STRICT_PLACEHOLDER)) {
            Some(names) => parameters.set("synchronous_standby_names", names),
            None => {
                parameters.remove("synchronous_standby_names");
            }
        }
    }
    let command_line = CONTROLLED
        .iter()
        .filter(|c| c.command_line)
        .filter_map(|c| Some((c.name.to_owned(), parameters.get(c.name)?.to_owned())))
        .collect();
    ServerSettings {
        parameters,
        command_line,
        problems,
        raised,
    }
}

fn controlled_settings(inputs: &ServerInputs<'_>, problems: &mut Vec<Problem>) -> Parameters {
    let mut parameters = Parameters::new();
    for c in &CONTROLLED {
        let value = match (c.name, inputs.configured.get(c.name)) {
            ("listen_addresses", _) => inputs.listen_addresses.to_owned(),
            ("port", _) => inputs.port.to_string(),
            ("cluster_name", _) => inputs.cluster_name.to_owned(),
            // Kept unset here unless configured: each is the other's default (see `convert_wal_keep`).
            ("wal_keep_segments" | "wal_keep_size", None) => continue,
            (_, None) => c.default.to_owned(),
            (_, Some(value)) => normalised(c.valid, value).unwrap_or_else(|| {
                problems.push(Problem::Controlled {
                    name: c.name.to_owned(),
                    value: value.to_owned(),
                    default: c.default.to_owned(),
                });
                c.default.to_owned()
            }),
        };
        parameters.set(c.name, value);
    }
    convert_wal_keep(&mut parameters, inputs.version);
    for c in CONTROLLED.iter().filter(|c| inputs.version < c.since) {
        parameters.remove(c.name);
    }
    let replica_level = if inputs.version.0 >= 90_600 {
        "replica"
    } else {
        "hot_standby"
    };
    if parameters
        .get("wal_level")
        .is_some_and(|level| level == "replica" || level == "hot_standby")
    {
        parameters.set("wal_level", replica_level);
    }
    parameters
}

/// The value to write, or `None` if it is not acceptable for this controlled setting.
fn normalised(valid: Valid, value: &str) -> Option<String> {
    match valid {
        Valid::NotSettable => None,
        Valid::WalLevel => {
            let level = value.to_ascii_lowercase();
            ["hot_standby", "replica", "logical"]
                .contains(&level.as_str())
                .then_some(level)
        }
        Valid::True => (quantity::parse_bool(value) == Some(true)).then(|| value.to_owned()),
        Valid::Bool => quantity::parse_bool(value).map(|_| value.to_owned()),
        Valid::AtLeast(min) => quantity::parse_integer(value, None)
            .filter(|n| *n >= min)
            .map(|n| n.to_string()),
        Valid::AtLeastMegabytes(min) => quantity::parse_integer(value, Some("MB"))
            .filter(|n| *n >= min)
            .map(|_| value.to_owned()),
    }
}

fn convert_wal_keep(parameters: &mut Parameters, version: PgVersion) {
    if version.at_least(13) {
        let segments = parameters.remove("wal_keep_segments");
        if parameters.get("wal_keep_size").is_none() {
            let segments = segments.and_then(|s| s.parse::<i64>().ok()).unwrap_or(8);
            parameters.set(
                "wal_keep_size",
                format!("{}MB", segments.saturating_mul(16)),
            );
        }
    } else {
        let size = parameters.remove("wal_keep_size");
        if parameters.get("wal_keep_segments").is_none() {
            let megabytes = size
                .and_then(|s| quantity::parse_integer(&s, Some("MB")))
                .unwrap_or(128);
            parameters.set(
                "wal_keep_segments",
                (megabytes.saturating_add(8) / 16).to_string(),
            );
        }
    }
}

fn add_ordinary(
    inputs: &ServerInputs<'_>,
    parameters: &mut Parameters,
    problems: &mut Vec<Problem>,
) {
    for (name, value) in inputs.configured.iter() {
        if is_controlled(name) || version_rules::is_recovery(name) {
            continue;
        }
        match version_rules::check(name, value, inputs.version) {
            Verdict::Keep => parameters.set(name, value),
            Verdict::Clamp { value, problem } => {
                parameters.set(name, value);
                problems.push(problem);
            }
            Verdict::Drop(problem) => problems.push(problem),
            Verdict::NoRule if name.contains('.') || is_known(inputs.known_names, name) => {
                parameters.set(name, value)
            }
            Verdict::NoRule => problems.push(Problem::Unexpected {
                name: name.to_owned(),
                value: value.to_owned(),
            }),
        }
    }
}

fn is_known(names: Option<&BTreeSet<String>>, name: &str) -> bool {
    names.is_none_or(|names| names.contains(&name.to_ascii_lowercase()))
}

fn apply_citus(parameters: &mut Parameters, local_host: &str) {
    let mut libraries = vec!["citus"];
    let configured = parameters
        .get("shared_preload_libraries")
        .unwrap_or_default()
        .to_owned();
    libraries.extend(
        configured
            .split(',')
            .map(str::trim)
            .filter(|l| !l.is_empty() && *l != "citus"),
    );
    parameters.set("shared_preload_libraries", libraries.join(","));
    if parameters.get("max_prepared_transactions") == Some("0") {
        let connections = parameters
            .get("max_connections")
            .and_then(|n| n.parse::<i64>().ok())
            .unwrap_or(100);
        parameters.set("max_prepared_transactions", (2 * connections).to_string());
    }
    parameters.set("wal_level", "logical");
    parameters.set("citus.local_hostname", local_host);
}

fn raise_to_control(inputs: &ServerInputs<'_>, parameters: &mut Parameters) -> PendingRestart {
    let mut raised = PendingRestart::new();
    let Some(control) = inputs.control else {
        return raised;
    };
    let demands = [
        ("max_connections", control.max_connections, 0),
        (
            "max_prepared_transactions",
            control.max_prepared_transactions,
            0,
        ),
        (
            "max_locks_per_transaction",
            control.max_locks_per_transaction,
            0,
        ),
        ("max_worker_processes", control.max_worker_processes, 90_400),
        ("max_wal_senders", control.max_wal_senders, 120_000),
    ];
    for (name, demanded, since) in demands {
        let configured = parameters
            .get(name)
            .and_then(|value| quantity::parse_integer(value, None));
        let (Some(demanded), Some(configured)) = (demanded.map(i64::from), configured) else {
            continue;
        };
        if demanded > configured && inputs.version.0 >= since {
            parameters.set(name, demanded.to_string());
            let reason = PendingReason {
                old_value: demanded.to_string(),
                new_value: configured.to_string(),
            };
            raised.insert(name.to_owned(), reason);
        }
    }
    raised
}

/// Whether `hot_standby` must be off while a custom bootstrap recovers (§5.2): a hot standby would refuse to recover if a setting of the
/// original cluster was larger than ours. `recovery_conf` is the bootstrap section's, if it has one.
#[must_use]
pub fn bootstrap_without_hot_standby(
    keep_existing_recovery_conf: bool,
    recovery_conf: Option<&Parameters>,
    version: PgVersion,
) -> bool {
    if keep_existing_recovery_conf {
        return true;
    }
    let Some(recovery) = recovery_conf.filter(|conf| !conf.is_empty()) else {
        return false;
    };
    let pause = recovery
        .get("pause_at_recovery_target")
        .and_then(quantity::parse_bool);
    let default_action = if pause == Some(false) {
        "promote"
    } else {
        "pause"
    };
    let action = recovery
        .get("recovery_target_action")
        .unwrap_or(default_action);
    version.0 >= 90_500 && action.eq_ignore_ascii_case("promote")
}

/// Settings of a standby cluster that override `recovery_conf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "named as the settings")]
pub struct StandbyCluster<'a> {
    pub restore_command: Option<&'a str>,
    pub archive_cleanup_command: Option<&'a str>,
    pub recovery_min_apply_delay: Option<&'a str>,
    /// This node is the standby leader; only there the delay applies.
    pub is_leader: bool,
}

/// All that decides the recovery settings of a standby.
#[derive(Debug, Clone)]
pub struct FollowInputs<'a> {
    /// The data directory's major.
    pub major: PgVersion,
    /// `postgresql.recovery_conf`.
    pub recovery_conf: &'a Parameters,
    /// `postgresql.parameters`; recovery settings in it replace the whole `recovery_conf`.
    pub configured: &'a Parameters,
    /// The names `postgres --describe-config` printed, lower case.
    pub known_names: Option<&'a BTreeSet<String>>,
    /// `None`: not a standby cluster.
    pub standby_cluster: Option<StandbyCluster<'a>>,
    /// `None`: follow nobody.
    pub primary_conninfo: Option<&'a str>,
    /// Only used together with `primary_conninfo`.
    pub primary_slot_name: Option<&'a str>,
}

/// Which file tells PostgreSQL to recover (12+); below 12 recovery.conf says it with `standby_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// `standby.signal`: recover for ever.
    Standby,
    /// `recovery.signal`: recover to a target, then become a primary.
    Recovery,
}

/// The recovery settings to write.
#[derive(Debug, Clone, PartialEq)]
pub struct RecoverySettings {
    /// All settings; below 12 with `standby_mode`.
    pub parameters: Parameters,
    /// What kind of recovery.
    pub signal: Signal,
    /// What was dropped or clamped.
    pub problems: Vec<Problem>,
}

/// Settings of a node that follows another one, or replays from an archive only (§5.6).
#[must_use]
pub fn follow_settings(inputs: &FollowInputs<'_>) -> RecoverySettings {
    let in_parameters: Parameters = inputs
        .configured
        .iter()
        .filter(|(name, _)| version_rules::is_recovery(name))
        .collect();
    let source = if in_parameters.is_empty() {
        inputs.recovery_conf
    } else {
        &in_parameters
    };
    let ours = |name: &str| {
        let name = name.to_ascii_lowercase();
        name == "primary_conninfo"
            || name == "primary_slot_name"
            || name == "standby_mode"
            || name.starts_with("recovery_target")
    };
    let user: Parameters = source.iter().filter(|(name, _)| !ours(name)).collect();
    let mut problems = Vec::new();
    let mut parameters = valid_recovery(&user, inputs.major, inputs.known_names, &mut problems);
    if let Some(standby) = inputs.standby_cluster {
        let delay = standby
            .recovery_min_apply_delay
            .filter(|_| standby.is_leader);
        let overrides = [
            ("restore_command", standby.restore_command),
            ("archive_cleanup_command", standby.archive_cleanup_command),
            ("recovery_min_apply_delay", delay),
        ];
        for (name, value) in overrides {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                parameters.set(name, value);
            }
        }
    }
    parameters.set("recovery_target_timeline", "latest");
    if inputs.major.at_least(12) {
        for target in [
            "recovery_target",
            "recovery_target_name",
            "recovery_target_time",
            "recovery_target_xid",
            "recovery_target_lsn",
        ] {
            parameters.set(target, "");
        }
    } else {
        parameters.set("standby_mode", "on");
    }
    if let Some(conninfo) = inputs.primary_conninfo {
        parameters.set("primary_conninfo", conninfo);
        if let Some(slot) = inputs
            .primary_slot_name
            .filter(|_| inputs.major.0 >= 90_400)
        {
            parameters.set("primary_slot_name", slot);
        }
    }
    RecoverySettings {
        parameters,
        signal: Signal::Standby,
        problems,
    }
}

/// Settings of a custom bootstrap that recovers to a target: all of the section's `recovery_conf` (postgres-management.md §7.3).
#[must_use]
pub fn bootstrap_recovery_settings(
    recovery_conf: &Parameters,
    major: PgVersion,
    known_names: Option<&BTreeSet<String>>,
) -> RecoverySettings {
    let mut problems = Vec::new();
    let mut source = recovery_conf.clone();
    let standby = source.get("standby_mode").and_then(quantity::parse_bool) == Some(true);
    if major.at_least(12) {
        source.remove("standby_mode");
    }
    RecoverySettings {
        parameters: valid_recovery(&source, major, known_names, &mut problems),
        signal: if standby {
            Signal::Standby
        } else {
            Signal::Recovery
        },
        problems,
    }
}

/// Renames what other versions called differently and keeps what this version takes.
fn valid_recovery(
    source: &Parameters,
    major: PgVersion,
    known: Option<&BTreeSet<String>>,
    problems: &mut Vec<Problem>,
) -> Parameters {
    let mut source = source.clone();
    let (old, new) = if major.at_least(12) {
        ("trigger_file", "promote_trigger_file")
    } else {
        ("promote_trigger_file", "trigger_file")
    };
    if let Some(path) = source.remove(old)
        && source.get(new).is_none()
    {
        source.set(new, path);
    }
    if major.0 >= 90_500 {
        if let Some(pause) = source
            .remove("pause_at_recovery_target")
            .as_deref()
            .and_then(quantity::parse_bool)
            && source.get("recovery_target_action").is_none()
        {
            source.set(
                "recovery_target_action",
                if pause { "pause" } else { "promote" },
            );
        }
    } else if source
        .remove("recovery_target_action")
        .is_some_and(|action| action.eq_ignore_ascii_case("promote"))
    {
        source.set("pause_at_recovery_target", "false");
    }
    let mut parameters = Parameters::new();
    for (name, value) in source.iter() {
        let acceptable = if major.at_least(12) {
            is_known(known, name)
        } else {
            version_rules::is_recovery(name)
        };
        match version_rules::check_recovery(name, value, major) {
            Verdict::Keep => parameters.set(name, value),
            Verdict::Clamp { value, problem } => {
                parameters.set(name, value);
                problems.push(problem);
            }
            Verdict::Drop(problem) => problems.push(problem),
            // Without the server's list a name is kept only if some version had it as a recovery setting.
            Verdict::NoRule if acceptable && (known.is_some() || !major.at_least(12)) => {
                parameters.set(name, value)
            }
            Verdict::NoRule => problems.push(Problem::Unexpected {
                name: name.to_owned(),
                value: value.to_owned(),
            }),
        }
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(configured: &Parameters, version: u32) -> ServerInputs<'_> {
        ServerInputs {
            configured,
            listen_addresses: "0.0.0.0",
            port: 5432,
            cluster_name: "demo",
            version: PgVersion(version),
            known_names: None,
            synchronous_names: SynchronousNames::Configured,
            control: None,
            without_hot_standby: false,
            force_feedback: false,
            citus_local_host: None,
        }
    }

    fn arguments(settings: &ServerSettings) -> String {
        settings
            .command_line
            .iter()
            .map(|(n, v)| format!("--{n}={v}"))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn the_postmasters_arguments_come_in_table_order_and_fit_the_version() {
        let none = Parameters::new();
        assert_eq!(
            arguments(&server_settings(&inputs(&none, 150_004))),
            "--listen_addresses=0.0.0.0 --port=5432 --cluster_name=demo --wal_level=replica --hot_standby=on --max_connections=100 \
             --max_wal_senders=10 --max_prepared_transactions=0 --max_locks_per_transaction=64 --track_commit_timestamp=off \
             --max_replication_slots=10 --max_worker_processes=8 --wal_log_hints=on"
        );
        assert_eq!(
            arguments(&server_settings(&inputs(&none, 90_300))),
            "--listen_addresses=0.0.0.0 --port=5432 --wal_level=hot_standby --hot_standby=on --max_connections=100 \
             --max_wal_senders=10 --max_prepared_transactions=0 --max_locks_per_transaction=64"
        );
    }

    #[test]
    fn controlled_settings_fall_back_to_their_default_when_invalid() {
        let configured: Parameters = [
            ("max_connections", "24"),
            ("hot_standby", "off"),
            ("Max_Wal_Senders", "0x20"),
            ("wal_level", "Logical"),
            ("port", "1"),
        ]
        .into_iter()
        .collect();
        let settings = server_settings(&inputs(&configured, 150_000));
        assert_eq!(settings.parameters.get("max_connections"), Some("100"));
        assert_eq!(settings.parameters.get("hot_standby"), Some("on"));
        assert_eq!(settings.parameters.get("max_wal_senders"), Some("32"));
        assert_eq!(settings.parameters.get("wal_level"), Some("logical"));
        assert_eq!(settings.parameters.get("port"), Some("5432"));
        let texts: Vec<String> = settings.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "postgresql parameter hot_standby=off failed validation, defaulting to on",
                "postgresql parameter max_connections=24 failed validation, defaulting to 100"
            ]
        );
    }

    #[test]
    fn wal_keep_is_converted_to_the_versions_spelling() {
        let cases = [
            (vec![], 150_000, Some("128MB"), None),
            (
                vec![("wal_keep_segments", "20")],
                150_000,
                Some("320MB"),
                None,
            ),
            (
                vec![("wal_keep_segments", "20"), ("wal_keep_size", "1GB")],
                150_000,
                Some("1GB"),
                None,
            ),
            (vec![], 120_000, None, Some("8")),
            (vec![("wal_keep_size", "1GB")], 120_000, None, Some("64")),
            (vec![("wal_keep_size", "1MB")], 150_000, Some("128MB"), None),
        ];
        for (configured, version, size, segments) in cases {
            let configured: Parameters = configured.into_iter().collect();
            let settings = server_settings(&inputs(&configured, version));
            assert_eq!(
                settings.parameters.get("wal_keep_size"),
                size,
                "{configured:?} {version}"
            );
            assert_eq!(
                settings.parameters.get("wal_keep_segments"),
                segments,
                "{configured:?} {version}"
            );
            assert!(!arguments(&settings).contains("wal_keep"));
        }
    }

    #[test]
    fn a_standby_runs_with_at_least_what_pg_control_demands() {
        let configured: Parameters = [("max_connections", "50")].into_iter().collect();
        let mut given = inputs(&configured, 110_000);
        given.control = Some(Limits {
            max_connections: Some(200),
            max_wal_senders: Some(99),
            max_worker_processes: Some(4),
            ..Limits::default()
        });
        let settings = server_settings(&given);
        assert!(
            arguments(&settings).contains("--max_connections=200 --max_wal_senders=10"),
            "senders count from 12 only"
        );
        assert_eq!(settings.raised.len(), 1);
        assert_eq!(settings.raised["max_connections"].old_value, "200");
        assert_eq!(settings.raised["max_connections"].new_value, "50");
    }

    #[test]
    fn ordinary_settings_are_filtered_by_version() {
        let configured: Parameters = [
            ("work_mem", "1kB"),
            ("checkpoint_segments", "3"),
            ("auto_explain.log_min_duration", "5"),
            ("restore_command", "cp"),
            ("fsync", "perhaps"),
            ("DateStyle", "ISO"),
            ("brand_new", "1"),
        ]
        .into_iter()
        .collect();
        let known = BTreeSet::from(["brand_new".to_owned()]);
        let mut given = inputs(&configured, 150_000);
        given.known_names = Some(&known);
        let settings = server_settings(&given);
        assert_eq!(settings.parameters.get("work_mem"), Some("64"));
        assert_eq!(settings.parameters.get("checkpoint_segments"), None);
        assert_eq!(
            settings.parameters.get("auto_explain.log_min_duration"),
            Some("5")
        );
        assert_eq!(settings.parameters.get("restore_command"), None);
        assert_eq!(settings.parameters.get("fsync"), None);
        assert_eq!(settings.parameters.get("brand_new"), Some("1"));
        assert!(
            settings
                .parameters
                .iter()
                .any(|(name, _)| name == "DateStyle")
        );
        assert_eq!(settings.problems.len(), 3, "{:?}", settings.problems);
    }

    #[test]
    fn synchronous_mode_owns_the_list_of_standbys() {
        let configured: Parameters = [("synchronous_standby_names", "mine")]
            .into_iter()
            .collect();
        let value = |names| {
            let mut given = inputs(&configured, 150_000);
            given.synchronous_names = names;
            server_settings(&given)
                .parameters
                .get("synchronous_standby_names")
                .map(str::to_owned)
        };
        assert_eq!(value(SynchronousNames::Configured).as_deref(), Some("mine"));
        assert_eq!(
            value(SynchronousNames::Managed {
                current: None,
                strict_primary: false
            }),
            None
        );
        assert_eq!(
            value(SynchronousNames::Managed {
                current: Some("a"),
                strict_primary: true
            })
            .as_deref(),
            Some("a")
        );
        assert_eq!(
            value(SynchronousNames::Managed {
                current: None,
                strict_primary: true
            })
            .as_deref(),
            Some(STRICT_PLACEHOLDER)
        );
    }

    #[test]
    fn citus_demands_its_library_and_prepared_transactions() {
        let configured: Parameters = [("shared_preload_libraries", "pg_stat_statements, citus")]
            .into_iter()
            .collect();
        let mut given = inputs(&configured, 150_000);
        given.citus_local_host = Some("localhost");
        let settings = server_settings(&given);
        assert_eq!(
            settings.parameters.get("shared_preload_libraries"),
            Some("citus,pg_stat_statements")
        );
        assert_eq!(
            settings.parameters.get("max_prepared_transactions"),
            Some("200")
        );
        assert!(arguments(&settings).contains("--wal_level=logical"));
    }

    fn follow<'a>(
        major: u32,
        recovery_conf: &'a Parameters,
        configured: &'a Parameters,
    ) -> FollowInputs<'a> {
        FollowInputs {
            major: PgVersion(major),
            recovery_conf,
            configured,
            known_names: None,
            standby_cluster: None,
            primary_conninfo: Some("host=a"),
            primary_slot_name: Some("me"),
        }
    }

    fn text(parameters: &Parameters) -> String {
        parameters
            .iter()
            .map(|(n, v)| format!("{n}={v}"))
            .collect::<Vec<_>>()
            .join(";")
    }

    #[test]
    fn followers_always_follow_the_latest_timeline_and_have_no_target() {
        let recovery: Parameters = [
            ("restore_command", "cp %f %p"),
            ("recovery_target_time", "now"),
            ("primary_conninfo", "x"),
            ("trigger_file", "/t"),
        ]
        .into_iter()
        .collect();
        let none = Parameters::new();
        let settings = follow_settings(&follow(150_000, &recovery, &none));
        assert_eq!(
            text(&settings.parameters),
            "primary_conninfo=host=a;primary_slot_name=me;promote_trigger_file=/t;recovery_target=;recovery_target_lsn=;\
             recovery_target_name=;recovery_target_time=;recovery_target_timeline=latest;recovery_target_xid=;restore_command=cp %f %p"
        );
        assert_eq!(
            text(&follow_settings(&follow(90_300, &recovery, &none)).parameters),
            "primary_conninfo=host=a;recovery_target_timeline=latest;restore_command=cp %f %p;standby_mode=on;trigger_file=/t"
        );
        let dropped = follow_settings(&follow(160_000, &recovery, &none));
        assert_eq!(dropped.parameters.get("promote_trigger_file"), None);
        assert_eq!(dropped.problems.len(), 1);
    }

    #[test]
    fn recovery_settings_among_the_parameters_replace_recovery_conf() {
        let recovery: Parameters = [("restore_command", "one"), ("recovery_end_command", "end")]
            .into_iter()
            .collect();
        let configured: Parameters = [("restore_command", "two"), ("work_mem", "1MB")]
            .into_iter()
            .collect();
        let mut given = follow(150_000, &recovery, &configured);
        given.primary_conninfo = None;
        let settings = follow_settings(&given).parameters;
        assert_eq!(settings.get("restore_command"), Some("two"));
        assert_eq!(settings.get("recovery_end_command"), None);
        assert_eq!(settings.get("primary_slot_name"), None);
    }

    #[test]
    fn a_standby_cluster_overrides_the_archive_commands_and_delays_its_leader_only() {
        let recovery: Parameters = [("restore_command", "one")].into_iter().collect();
        let none = Parameters::new();
        let mut given = follow(150_000, &recovery, &none);
        let standby = StandbyCluster {
            restore_command: Some("remote"),
            archive_cleanup_command: Some(""),
            recovery_min_apply_delay: Some("5min"),
            is_leader: false,
        };
        given.standby_cluster = Some(standby);
        let settings = follow_settings(&given).parameters;
        assert_eq!(settings.get("restore_command"), Some("remote"));
        assert_eq!(settings.get("archive_cleanup_command"), None);
        assert_eq!(settings.get("recovery_min_apply_delay"), None);
        given.standby_cluster = Some(StandbyCluster {
            is_leader: true,
            ..standby
        });
        assert_eq!(
            follow_settings(&given)
                .parameters
                .get("recovery_min_apply_delay"),
            Some("5min")
        );
    }

    #[test]
    fn a_custom_bootstrap_keeps_its_target() {
        let recovery: Parameters = [
            ("recovery_target_time", "2026-01-01"),
            ("pause_at_recovery_target", "off"),
            ("standby_mode", "false"),
        ]
        .into_iter()
        .collect();
        let settings = bootstrap_recovery_settings(&recovery, PgVersion(150_000), None);
        assert_eq!(settings.signal, Signal::Recovery);
        assert_eq!(
            text(&settings.parameters),
            "recovery_target_action=promote;recovery_target_time=2026-01-01"
        );
        assert!(bootstrap_without_hot_standby(
            false,
            Some(&recovery),
            PgVersion(150_000)
        ));
        assert!(!bootstrap_without_hot_standby(
            false,
            None,
            PgVersion(150_000)
        ));
        assert!(bootstrap_without_hot_standby(
            true,
            None,
            PgVersion(150_000)
        ));
        let old = bootstrap_recovery_settings(
            &[("recovery_target_action", "promote")]
                .into_iter()
                .collect(),
            PgVersion(90_400),
            None,
        );
        assert_eq!(text(&old.parameters), "pause_at_recovery_target=false");
    }
}
