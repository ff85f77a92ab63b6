//! What PostgreSQL gets: dynamic configuration with local settings laid over it (spec/configuration.md §2.4, §2.5).
//!
//! Pure. Which settings are checked against the server's version is `postgres::params`' business.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::variables;
use super::{Callbacks, Config, Credentials, Dynamic, Raw, env, value};
use crate::postgres::Settings;
use crate::postgres::params::{Parameters, is_controlled};
use crate::types::Role;

/// Keys of `postgresql` that count only in the local configuration.
const LOCAL_ONLY: [&str; 7] = [
    "connect_address",
    "proxy_address",
    "listen",
    "config_dir",
    "data_dir",
    "pgpass",
    "authentication",
];

/// Keys of `postgresql` that count only in the dynamic configuration.
const DYNAMIC_ONLY: [&str; 1] = ["use_slots"];

/// The effective `postgresql` section.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// The node's addresses, paths, users and connection settings.
    pub settings: Settings,
    /// GUCs as configured, not yet checked against a version. Controlled ones come from the dynamic configuration only.
    pub parameters: Parameters,
    /// Lines of pg_hba.conf; `None` = the file is left alone.
    pub pg_hba: Option<Vec<String>>,
    /// Lines of pg_ident.conf; `None` = the file is left alone.
    pub pg_ident: Option<Vec<String>>,
    /// `recovery_conf`.
    pub recovery_conf: Parameters,
    /// `custom_conf`; may be set and empty (§6.1).
    pub custom_conf: Option<String>,
    /// Replication slots for members.
    pub use_slots: bool,
    /// Rejoin a former primary with pg_rewind.
    pub use_pg_rewind: bool,
    /// Options of pg_rewind, as configured; null = none.
    pub rewind: Value,
    /// Clone anew when pg_rewind fails.
    pub remove_data_directory_on_rewind_failure: bool,
    /// Clone anew when histories have diverged.
    pub remove_data_directory_on_diverged_timelines: bool,
    /// A data directory that is cloned anew is kept aside if it has no more bytes than this; `None`: never.
    pub keep_diverged: Option<u64>,
    /// Never empty.
    pub create_replica_methods: Vec<String>,
    /// Options of pg_basebackup, as configured; null = none.
    pub basebackup: Value,
    /// Callback commands.
    pub callbacks: Callbacks,
    /// Command before a promotion.
    pub pre_promote: Option<String>,
    /// Command before a stop.
    pub before_stop: Option<String>,
    /// The whole section, for comparing two of them and for the sections of replica methods.
    pub section: Raw,
}

impl Effective {
    /// Combines both configurations for a node in `role`; `None` before the role is known. Returns warnings too.
    #[must_use]
    pub fn build(
        config: &Config,
        dynamic: &Dynamic,
        role: Option<Role>,
    ) -> (Effective, Vec<String>) {
        let mut warnings = Vec::new();
        let local = config
            .local
            .0
            .get("postgresql")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        let mut section = combined(&dynamic.postgresql, &local);
        if let Some(role) = role {
            override_for(role, &mut section, &mut warnings);
        }
        let effective = typed(config, section, &mut warnings);
        (effective, warnings)
    }

    /// The section of a replica method: `postgresql.<method>`.
    #[must_use]
    pub fn method(&self, name: &str) -> Option<&Map<String, Value>> {
        self.section.0.get(name).and_then(Value::as_object)
    }
}

/// Dynamic section, then the local one over it.
fn combined(dynamic: &Map<String, Value>, local: &Map<String, Value>) -> Map<String, Value> {
    let mut section: Map<String, Value> = dynamic
        .iter()
        .filter(|(key, value)| !LOCAL_ONLY.contains(&key.as_str()) && !value.is_null())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for (key, value) in local {
        if key == "parameters" {
            let Value::Object(parameters) = value else {
                continue;
            };
            let merged = section.entry("parameters").or_insert_with(|| json!({}));
            if let Value::Object(merged) = merged {
                merge_parameters(merged, parameters, |_| {});
            }
        } else if !DYNAMIC_ONLY.contains(&key.as_str()) && !value.is_null() {
            // A local value hides the dynamic one completely: no deep merge.
            section.insert(key.clone(), value.clone());
        }
    }
    section
}

/// Lays parameters over others, names in any case; controlled ones stay as they are and are reported.
fn merge_parameters(
    target: &mut Map<String, Value>,
    over: &Map<String, Value>,
    mut refused: impl FnMut(&str),
) {
    for (name, value) in over {
        if is_controlled(name) {
            refused(name);
            continue;
        }
        target.retain(|existing, _| !existing.eq_ignore_ascii_case(name));
        target.insert(name.clone(), value.clone());
    }
}

/// The suffix of role-specific keys.
fn role_suffix(role: Role) -> Option<&'static str> {
    match role {
        Role::Primary | Role::Promoted => Some("primary"),
        Role::Replica | Role::Demoted => Some("replica"),
        Role::StandbyLeader => Some("standby_leader"),
        Role::Uninitialized => None,
    }
}

fn override_for(role: Role, section: &mut Map<String, Value>, warnings: &mut Vec<String>) {
    let Some(suffix) = role_suffix(role) else {
        return;
    };
    if let Some(Value::Object(over)) = section.get(&format!("parameters_{suffix}")).cloned() {
        let parameters = section.entry("parameters").or_insert_with(|| json!({}));
        if let Value::Object(parameters) = parameters {
            merge_parameters(parameters, &over, |name| {
                warnings.push(format!(
                    "Role-based config attempted to override protected parameter '{name}', ignoring"
                ));
            });
        }
    }
    for key in ["pg_hba", "pg_ident"] {
        if let Some(lines) = section.get(&format!("{key}_{suffix}")).cloned() {
            section.insert(key.to_owned(), lines);
        }
    }
}

/// Typed access to the section; what cannot be read falls to the default with a warning.
struct Typed<'a> {
    section: &'a Map<String, Value>,
    warnings: &'a mut Vec<String>,
}

impl Typed<'_> {
    fn preset(key: &str) -> Value {
        variables::by_key(&format!("postgresql.{key}"))
            .and_then(env::preset)
            .unwrap_or(Value::Null)
    }

    fn boolean(&mut self, key: &str) -> bool {
        let preset = Self::preset(key) == json!(true);
        let Some(given) = self.section.get(key) else {
            return preset;
        };
        value::parse_bool(given).unwrap_or_else(|| {
            self.warnings
                .push(format!("postgresql.{key} is not a boolean, using {preset}"));
            preset
        })
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.section.get(key)? {
            Value::String(text) if text.is_empty() => None,
            Value::Array(_) | Value::Object(_) => {
                self.warnings
                    .push(format!("postgresql.{key} is not a string and is ignored"));
                None
            }
            scalar => Some(value::text(scalar)),
        }
    }

    fn text_or_preset(&mut self, key: &str) -> String {
        self.text(key)
            .unwrap_or_else(|| value::text(&Self::preset(key)))
    }

    /// Lines of a file; what is not text is skipped (§6.2). An empty list counts as not configured.
    fn lines(&mut self, key: &str) -> Option<Vec<String>> {
        match self.section.get(key)? {
            Value::Array(items) if items.is_empty() => None,
            Value::Array(items) => Some(
                items
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
            ),
            _ => {
                self.warnings
                    .push(format!("postgresql.{key} is not a list and is ignored"));
                None
            }
        }
    }

    fn parameters(&mut self, key: &str) -> Parameters {
        let mut parameters = Parameters::new();
        match self.section.get(key) {
            Some(Value::Object(map)) => {
                for (name, value) in map {
                    match value {
                        Value::Null => {
                            parameters.remove(name);
                        }
                        Value::Array(_) | Value::Object(_) => {
                            self.warnings.push(format!("postgresql.{key}.{name} is a list or a map and is ignored; write it as text"));
                        }
                        scalar => parameters.set(name.clone(), value::text(scalar)),
                    }
                }
            }
            Some(other) if value::is_truthy(other) => self.warnings.push(format!(
                "postgresql.{key} is not a dictionary and is ignored"
            )),
            _ => {}
        }
        parameters
    }

    fn replica_methods(&mut self) -> Vec<String> {
        let given = ["create_replica_methods", "create_replica_method"]
            .iter()
            .find_map(|key| self.section.get(*key));
        let methods: Vec<String> = match given {
            Some(Value::Array(items)) => items
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            Some(Value::String(methods)) => methods
                .split(',')
                .map(|m| m.trim().to_owned())
                .filter(|m| !m.is_empty())
                .collect(),
            _ => Vec::new(),
        };
        if methods.is_empty() {
            vec!["basebackup".to_owned()]
        } else {
            methods
        }
    }

    /// Empty or 0 = 0; unreadable = 60 (§3.3).
    fn pg_ctl_timeout(&mut self) -> Duration {
        const PRESET: Duration = Duration::from_secs(60);
        let Some(given) = self.section.get("pg_ctl_timeout") else {
            return PRESET;
        };
        if !value::is_truthy(given) {
            return Duration::ZERO;
        }
        let seconds = value::parse_real(given, None).map(Duration::try_from_secs_f64);
        seconds.and_then(Result::ok).unwrap_or_else(|| {
            self.warnings
                .push("postgresql.pg_ctl_timeout is not a number of seconds, using 60".to_owned());
            PRESET
        })
    }

    /// `keep_diverged` and `keep_diverged_limit`.
    fn keep_diverged(&mut self) -> Option<u64> {
        if let Some(given) = self.section.get("keep_diverged") {
            match value::parse_bool(given) {
                Some(true) => {}
                Some(false) => return None,
                None => self
                    .warnings
                    .push("postgresql.keep_diverged is not a boolean, using true".to_owned()),
            }
        }
        let Some(given) = self.section.get("keep_diverged_limit") else {
            return Some(u64::MAX);
        };
        let bytes = value::parse_int(given, Some("B")).and_then(|bytes| u64::try_from(bytes).ok());
        if bytes.is_none() {
            self.warnings.push(
                "postgresql.keep_diverged_limit is not a size, so there is no limit".to_owned(),
            );
        }
        Some(bytes.filter(|bytes| *bytes > 0).unwrap_or(u64::MAX))
    }

    fn callbacks(&mut self) -> Callbacks {
        let map = self.section.get("callbacks").and_then(Value::as_object);
        let command = |name: &str| {
            map.and_then(|map| map.get(name))
                .and_then(Value::as_str)
                .filter(|c| !c.is_empty())
                .map(str::to_owned)
        };
        Callbacks {
            on_start: command("on_start"),
            on_stop: command("on_stop"),
            on_restart: command("on_restart"),
            on_reload: command("on_reload"),
            on_role_change: command("on_role_change"),
        }
    }
}

fn typed(config: &Config, section: Map<String, Value>, warnings: &mut Vec<String>) -> Effective {
    let local = &config.postgresql;
    let mut read = Typed {
        section: &section,
        warnings,
    };
    let parameters = read.parameters("parameters");
    let sockets = parameters.get("unix_socket_directories").map(|text| {
        text.split(',')
            .map(|directory| directory.trim().trim_matches('"').to_owned())
            .filter(|d| !d.is_empty())
            .collect()
    });
    let bin_name: BTreeMap<String, String> = match read.section.get("bin_name") {
        Some(Value::Object(map)) => map
            .iter()
            .map(|(tool, name)| (tool.clone(), value::text(name)))
            .collect(),
        _ => local.bin_name.clone(),
    };
    let settings = Settings {
        data_dir: local.data_dir.clone(),
        config_dir: local.config_dir.clone(),
        config_base_name: read.text_or_preset("config_base_name"),
        // The host's own directory stands behind what either configuration says; empty text means PATH.
        bin_dir: match read.section.get("bin_dir") {
            Some(_) => read.text("bin_dir").map(PathBuf::from),
            None => local.bin_dir.clone(),
        },
        bin_name,
        listen_addresses: local.listen.addresses.clone(),
        port: local.listen.port,
        unix_socket_directories: sockets,
        use_unix_socket: read.boolean("use_unix_socket"),
        use_unix_socket_repl: read.boolean("use_unix_socket_repl"),
        database: read.text_or_preset("database"),
        superuser: plain(&local.authentication.superuser),
        replication: plain(&local.authentication.replication),
        rewind: local.authentication.rewind.as_ref().map(plain),
        pgpass: local.pgpass.clone(),
        krbsrvname: read.text("krbsrvname"),
        pg_ctl_timeout: read.pg_ctl_timeout(),
    };
    Effective {
        settings,
        parameters,
        pg_hba: read.lines("pg_hba"),
        pg_ident: read.lines("pg_ident"),
        recovery_conf: read.parameters("recovery_conf"),
        custom_conf: read
            .section
            .get("custom_conf")
            .and_then(Value::as_str)
            .map(str::to_owned),
        use_slots: read
            .section
            .get("use_slots")
            .is_none_or(|given| value::parse_bool(given) != Some(false)),
        use_pg_rewind: read.boolean("use_pg_rewind"),
        rewind: read.section.get("rewind").cloned().unwrap_or(Value::Null),
        remove_data_directory_on_rewind_failure: read
            .boolean("remove_data_directory_on_rewind_failure"),
        remove_data_directory_on_diverged_timelines: read
            .boolean("remove_data_directory_on_diverged_timelines"),
        keep_diverged: read.keep_diverged(),
        create_replica_methods: read.replica_methods(),
        basebackup: read
            .section
            .get("basebackup")
            .cloned()
            .unwrap_or(Value::Null),
        callbacks: read.callbacks(),
        pre_promote: read.text("pre_promote"),
        before_stop: read.text("before_stop"),
        section: Raw(section),
    }
}

/// The users in the form of the code that connects.
fn plain(user: &Credentials) -> crate::postgres::Credentials {
    let option = |name: &str| user.options.get(name).cloned();
    crate::postgres::Credentials {
        username: user.username.clone(),
        password: user
            .password
            .as_ref()
            .map(|secret| secret.expose().to_owned()),
        sslmode: option("sslmode"),
        sslcert: option("sslcert"),
        sslkey: option("sslkey"),
        sslpassword: user
            .sslpassword
            .as_ref()
            .map(|secret| secret.expose().to_owned()),
        sslrootcert: option("sslrootcert"),
        sslcrl: option("sslcrl"),
        sslcrldir: option("sslcrldir"),
        gssencmode: option("gssencmode"),
        channel_binding: option("channel_binding"),
        sslnegotiation: option("sslnegotiation"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FakeEnvironment;

    fn build(local: &str, dynamic: &Value, role: Option<Role>) -> (Effective, Vec<String>) {
        let text = format!("{{scope: s, name: n, etcd: {{host: h}}, postgresql: {local}}}");
        let loaded = Config::load(
            None,
            &FakeEnvironment::new(&[("PATRONI_CONFIGURATION", &text)]),
        )
        .unwrap();
        let (dynamic, _) = Dynamic::read(dynamic.as_object().unwrap()).unwrap();
        Effective::build(&loaded.config, &dynamic, role)
    }

    #[test]
    fn local_over_dynamic_except_what_belongs_to_one_of_them() {
        let (effective, warnings) = build(
            "{listen: '1.2.3.4:5433', data_dir: /d, use_slots: false, pg_hba: [a, 5], callbacks: {on_start: x}, \
             parameters: {work_mem: 8MB, MAX_CONNECTIONS: 5, Shared_Buffers: 1GB, gone: null}}",
            &json!({"postgresql": {
                "listen": "9.9.9.9", "data_dir": "/other", "use_pg_rewind": true, "pg_hba": ["z"], "authentication": {"superuser": {}},
                "callbacks": {"on_stop": "y"}, "pg_ctl_timeout": "5", "use_unix_socket": "on", "basebackup": ["verbose"],
                "parameters": {"max_connections": 200, "shared_buffers": "2GB", "gone": 1, "fsync": true, "unix_socket_directories": "., /run/pg"}}}),
            None,
        );
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(
            (
                effective.settings.port,
                effective.settings.data_dir.as_path()
            ),
            (5433, std::path::Path::new("/d"))
        );
        assert_eq!(effective.pg_hba, Some(vec!["a".to_owned()]));
        assert_eq!(
            (
                effective.callbacks.on_start.as_deref(),
                effective.callbacks.on_stop.as_deref()
            ),
            (Some("x"), None)
        );
        assert!(
            effective.use_slots && effective.use_pg_rewind && effective.settings.use_unix_socket
        );
        assert_eq!(effective.settings.pg_ctl_timeout, Duration::from_secs(5));
        assert_eq!(effective.keep_diverged, Some(u64::MAX));
        assert_eq!(
            effective.settings.unix_socket_directories,
            Some(vec![".".to_owned(), "/run/pg".to_owned()])
        );
        let parameters: Vec<(&str, &str)> = effective.parameters.iter().collect();
        assert_eq!(
            parameters,
            [
                ("fsync", "True"),
                ("max_connections", "200"),
                ("Shared_Buffers", "1GB"),
                ("unix_socket_directories", "., /run/pg"),
                ("work_mem", "8MB")
            ]
        );
        assert_eq!(effective.create_replica_methods, ["basebackup"]);
        assert_eq!(effective.basebackup, json!(["verbose"]));
    }

    #[test]
    fn roles_override() {
        let local = "{parameters: {work_mem: 1MB}, parameters_replica: {work_mem: 2MB, max_connections: 7}, pg_hba_primary: [p]}";
        let dynamic =
            json!({"postgresql": {"pg_hba": ["all"], "parameters": {"max_connections": 100}}});
        let (replica, warnings) = build(local, &dynamic, Some(Role::Demoted));
        assert_eq!(
            (
                replica.parameters.get("work_mem"),
                replica.parameters.get("max_connections")
            ),
            (Some("2MB"), Some("100"))
        );
        assert_eq!(
            warnings,
            [
                "Role-based config attempted to override protected parameter 'max_connections', ignoring"
            ]
        );
        let (primary, _) = build(local, &dynamic, Some(Role::Promoted));
        assert_eq!(
            (primary.parameters.get("work_mem"), primary.pg_hba),
            (Some("1MB"), Some(vec!["p".to_owned()]))
        );
        let (none, warnings) = build(local, &dynamic, Some(Role::Uninitialized));
        assert_eq!(
            (none.pg_hba, warnings.len()),
            (Some(vec!["all".to_owned()]), 0)
        );
    }

    #[test]
    fn unreadable_values_fall_to_their_defaults() {
        let (effective, warnings) = build(
            "{pg_ctl_timeout: x, parameters: {a: [1]}, create_replica_method: [wal_e], wal_e: {command: c}}",
            &json!({"postgresql": {"use_pg_rewind": "perhaps"}}),
            None,
        );
        assert!(!effective.use_pg_rewind);
        assert_eq!(effective.settings.pg_ctl_timeout, Duration::from_secs(60));
        assert_eq!(effective.create_replica_methods, ["wal_e"]);
        assert_eq!(effective.method("wal_e").unwrap()["command"], "c");
        assert_eq!(warnings.len(), 3, "{warnings:?}");
    }
}
