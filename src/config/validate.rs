//! `--validate-config`: the schema of spec/configuration.md §8.1, one line per problem: `<dotted.path> <value> <message>`.
//!
//! Unlike `Config::load` it also tries: sockets, directories and binaries, through [`Probes`]. It changes nothing.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Map, Value};

use super::variables::STORE_SECTIONS;
use super::{Config, Environment, HostPort, Listen, RESERVED_NAME, env, layers, value, yaml};

/// What the command line asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// A port in use is no problem (`-i`).
    pub ignore_listen_port: bool,
    /// Also give the merged configuration as YAML (`-p`).
    pub print: bool,
}

/// What the schema tries outside of this process.
pub trait Probes {
    /// Whether a TCP connection to this address succeeds.
    fn connects(&self, address: &HostPort) -> bool;
    /// Whether a program exists in a directory, or in `PATH`.
    fn has_program(&self, directory: Option<&Path>, name: &str) -> bool;
    /// Major version that `postgres --version` prints: `17`, `9.6`.
    fn postgres_major(&self, program: &Path) -> Option<String>;
}

/// The real ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemProbes {
    /// Longest wait for a connection.
    pub patience: Duration,
}

impl Probes for SystemProbes {
    fn connects(&self, address: &HostPort) -> bool {
        let patience = if self.patience.is_zero() {
            Duration::from_secs(3)
        } else {
            self.patience
        };
        let host = match address.host.as_str() {
            "" | "*" | "0.0.0.0" => "127.0.0.1",
            "::" => "::1",
            host => host,
        };
        let Ok(mut found) = (host, address.port.unwrap_or(0)).to_socket_addrs() else {
            return false;
        };
        found.any(|address| TcpStream::connect_timeout(&address, patience).is_ok())
    }

    fn has_program(&self, directory: Option<&Path>, name: &str) -> bool {
        match directory {
            Some(directory) => is_program(&directory.join(name)),
            None => env::search_path()
                .iter()
                .any(|directory| is_program(&directory.join(name))),
        }
    }

    fn postgres_major(&self, program: &Path) -> Option<String> {
        postgres_version(program)
            .ok()
            .map(|version| version.major())
    }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// The version of a `postgres` program, asked with `--version`.
pub(crate) fn postgres_version(program: &Path) -> Result<crate::types::PgVersion, String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "postgres (PostgreSQL) 17.2 (Debian 17.2-1)"; betas and release candidates are "18beta1", "18rc1".
    let word = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or_default();
    let numbers: String = word
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    crate::types::PgVersion::from_major(&numbers)
        .map_err(|_| format!("{} --version printed {:?}", program.display(), text.trim()))
}

/// The outcome of a validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validation {
    /// Problems, one line each; for standard error. Empty = valid.
    pub errors: Vec<String>,
    /// The merged local configuration; for standard output.
    pub document: Option<String>,
}

/// Validates a configuration with everything that `Config::load` and the schema know.
#[must_use]
pub fn run(
    path: Option<&Path>,
    environment: &dyn Environment,
    probes: &dyn Probes,
    options: Options,
) -> Validation {
    let mut faults = Vec::new();
    let environment_layer = env::read(environment, &mut faults);
    let sources = layers::Sources {
        path: path.map(Path::to_owned),
        environment: environment_layer,
    };
    let layers = layers::merge(&sources, &mut faults);
    if !faults.is_empty() {
        return Validation {
            errors: faults.iter().map(ToString::to_string).collect(),
            document: None,
        };
    }
    let mut document = layers.local.clone();
    if !layers.from_file {
        add_own_defaults(&mut document, path, environment);
    }
    let mut errors = check(&document, probes, options);
    if errors.is_empty()
        && let Err(faults) = Config::load(path, environment)
    {
        errors = faults.0.iter().map(ToString::to_string).collect();
    }
    let printed = (options.print && errors.is_empty()).then(|| {
        if let Some(Value::Object(postgresql)) = document.get_mut("postgresql") {
            postgresql
                .entry("bin_dir")
                .or_insert_with(|| Value::String(String::new()));
        }
        yaml::emit(&sorted(&Value::Object(document)))
    });
    Validation {
        errors,
        document: printed,
    }
}

/// What this program adds when the environment alone configures it; the schema requires these keys.
fn add_own_defaults(
    document: &mut Map<String, Value>,
    path: Option<&Path>,
    environment: &dyn Environment,
) {
    let Ok(loaded) = Config::load(path, environment) else {
        return;
    };
    let config = loaded.config;
    let mut add = |key: &str, text: String| {
        if look(document, key).is_none() {
            env::put(document, key, Value::String(text));
        }
    };
    let user = |user: &super::Credentials| user.username.clone().unwrap_or_default();
    let postgresql = &config.postgresql;
    add("name", config.name.to_string());
    add("restapi.listen", config.restapi.listen.to_string());
    add(
        "restapi.connect_address",
        config.restapi.connect_address.to_string(),
    );
    add(
        "postgresql.listen",
        format!(
            "{}:{}",
            postgresql.listen.listen_addresses(),
            postgresql.listen.port
        ),
    );
    add(
        "postgresql.connect_address",
        postgresql.connect_address.to_string(),
    );
    add(
        "postgresql.data_dir",
        postgresql.data_dir.display().to_string(),
    );
    add(
        "postgresql.authentication.superuser.username",
        user(&postgresql.authentication.superuser),
    );
    add(
        "postgresql.authentication.replication.username",
        user(&postgresql.authentication.replication),
    );
    if let Some(directory) = &postgresql.bin_dir {
        add("postgresql.bin_dir", directory.display().to_string());
    }
    if let super::DcsSection::Raft(raft) = &config.dcs {
        add("raft.self_addr", raft.self_addr.clone());
        if look(document, "raft.partner_addrs").is_none() {
            env::put(document, "raft.partner_addrs", Value::Array(Vec::new()));
        }
    }
}

/// The same with the keys of all maps in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            Value::Object(
                keys.into_iter()
                    .map(|key| (key.clone(), sorted(&map[key])))
                    .collect(),
            )
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

fn look<'a>(document: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let mut parts = key.split('.');
    let mut value = document.get(parts.next()?)?;
    for part in parts {
        value = match value {
            Value::Object(map) => map.get(part)?,
            Value::Array(items) => items.get(part.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(value)
}

/// What a value must be.
#[derive(Clone, Copy)]
enum Must<'a> {
    Text,
    Integer(i64, i64),
    Boolean,
    Dictionary,
    /// Non-empty list of texts.
    Texts,
    /// List of texts or maps.
    TextsOrMaps,
    /// Exactly one of these words.
    Word(&'a [&'a str]),
}

struct Checker<'a> {
    document: &'a Map<String, Value>,
    probes: &'a dyn Probes,
    options: Options,
    errors: Vec<String>,
}

/// Runs the schema over a merged local configuration.
#[must_use]
pub fn check(document: &Map<String, Value>, probes: &dyn Probes, options: Options) -> Vec<String> {
    let mut checker = Checker {
        document,
        probes,
        options,
        errors: Vec::new(),
    };
    checker.top_level();
    checker.log();
    checker.bootstrap();
    checker.restapi();
    checker.store();
    checker.postgresql();
    checker.watchdog_and_tags();
    checker.errors
}

impl<'a> Checker<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        look(self.document, key)
    }

    fn error(&mut self, key: &str, value: &str, message: &str) {
        self.errors.push(format!("{key} {value} {message}"));
    }

    fn invalid(&mut self, key: &str, why: &str) {
        let shown = self.get(key).map(value::text).unwrap_or_default();
        self.error(key, &shown, &format!("didn't pass validation: {why}"));
    }

    fn undefined(&mut self, key: &str) {
        self.error(key, "", "is not defined.");
    }

    /// A section that must be a map when present; whether it can be looked into.
    fn section(&mut self, key: &str, required: bool) -> bool {
        match self.get(key) {
            Some(Value::Object(_)) => true,
            Some(_) => {
                self.error(key, "", "is not a dictionary");
                false
            }
            None => {
                if required {
                    self.undefined(key);
                }
                false
            }
        }
    }

    fn required(&mut self, key: &str, must: Must<'_>) -> bool {
        if self.get(key).is_none() {
            self.undefined(key);
            return false;
        }
        self.optional(key, must)
    }

    /// Whether the value is present and right.
    fn optional(&mut self, key: &str, must: Must<'_>) -> bool {
        let Some(given) = self.get(key) else {
            return false;
        };
        let shown = match given {
            Value::Object(_) | Value::Array(_) => String::new(),
            scalar => value::text(scalar),
        };
        let problem = match must {
            Must::Text if !given.is_string() => Some("is not a string"),
            Must::Text => None,
            // Booleans pass, as they do in Python.
            Must::Integer(least, most) => match given {
                Value::Bool(_) => None,
                Value::Number(number) if number.is_i64() => {
                    let fits = number
                        .as_i64()
                        .is_some_and(|number| (least..=most).contains(&number));
                    (!fits).then_some("didn't pass validation: Wrong value")
                }
                Value::String(_) => match value::parse_int(given, None) {
                    Some(number) if (least..=most).contains(&number) => None,
                    Some(_) => Some("didn't pass validation: Wrong value"),
                    None => Some("is not an integer"),
                },
                _ => Some("is not an integer"),
            },
            Must::Boolean => (!given.is_boolean()).then_some("is not a boolean"),
            Must::Dictionary => (!given.is_object()).then_some("is not a dictionary"),
            Must::Word(words) => match given {
                Value::Bool(false) if words.contains(&"false") => None,
                Value::String(text) if words.contains(&text.as_str()) => None,
                Value::String(_) | Value::Bool(_) => {
                    Some("didn't pass validation: contains a wrong value")
                }
                _ => Some("is not a string"),
            },
            Must::Texts | Must::TextsOrMaps => return self.list(key, given, must),
        };
        if let Some(problem) = problem {
            self.error(key, &shown, problem);
        }
        problem.is_none()
    }

    fn list(&mut self, key: &str, given: &Value, must: Must<'_>) -> bool {
        let Value::Array(items) = given else {
            self.error(key, "", "is not a list");
            return false;
        };
        if items.is_empty() && matches!(must, Must::Texts) {
            self.error(key, "", "is an empty list");
            return false;
        }
        let before = self.errors.len();
        for (position, item) in items.iter().enumerate() {
            let fits = item.is_string() || (matches!(must, Must::TextsOrMaps) && item.is_object());
            if !fits {
                self.error(
                    &format!("{key}.{position}"),
                    &value::text(item),
                    "is not a string",
                );
            }
        }
        self.errors.len() == before
    }

    /// The texts of a list, or of a comma-separated text, with the path of each.
    fn items(&self, key: &str) -> Vec<(String, String)> {
        match self.get(key) {
            Some(Value::Array(items)) => items
                .iter()
                .enumerate()
                .filter_map(|(position, item)| {
                    Some((format!("{key}.{position}"), item.as_str()?.to_owned()))
                })
                .collect(),
            Some(Value::String(text)) => text
                .split(',')
                .map(|item| (key.to_owned(), item.trim().to_owned()))
                .collect(),
            _ => Vec::new(),
        }
    }

    fn top_level(&mut self) {
        if self.required("name", Must::Text)
            && self.get("name").and_then(Value::as_str) == Some(RESERVED_NAME)
        {
            self.invalid(
                "name",
                &format!("Node 'name' can't be set to '{RESERVED_NAME}'"),
            );
        }
        self.required("scope", Must::Text);
        self.optional("thread_pool_size", Must::Integer(5, i64::MAX));
        if let Some(size) = self.get("thread_stack_size") {
            // Patroni asks for a multiple of 65535 and refuses its own default; the run-time rule is meant.
            if value::parse_int(size, Some("B")).is_none_or(|size| size < 65_536) {
                self.invalid("thread_stack_size", "Wrong value");
            }
        }
    }

    fn log(&mut self) {
        if !self.section("log", false) {
            return;
        }
        self.optional("log.type", Must::Word(&["plain", "json"]));
        self.optional(
            "log.level",
            Must::Word(&[
                "DEBUG", "INFO", "WARN", "WARNING", "ERROR", "FATAL", "CRITICAL",
            ]),
        );
        if let Some(level) = self.get("log.traceback_level")
            && !["debug", "error"].contains(&value::text(level).to_lowercase().as_str())
        {
            self.invalid("log.traceback_level", "contains a wrong value");
        }
        match self.get("log.format") {
            None | Some(Value::String(_)) => {}
            Some(Value::Array(items)) if items.is_empty() => {
                self.invalid("log.format", "should contain at least one item")
            }
            Some(Value::Array(items)) => {
                let fits = |item: &Value| match item {
                    Value::String(_) => true,
                    Value::Object(map) => map.len() == 1 && map.values().all(Value::is_string),
                    _ => false,
                };
                if !items.iter().all(fits) {
                    self.error("log.format", "", "didn't pass validation: each item should be a string or a dictionary with string values");
                }
            }
            Some(_) => self.error(
                "log.format",
                "",
                "didn't pass validation: Should be a string or a list",
            ),
        }
        for (key, must) in [
            ("dateformat", Must::Text),
            ("static_fields", Must::Dictionary),
            ("max_queue_size", Must::Integer(i64::MIN, i64::MAX)),
            ("dir", Must::Text),
            ("file_num", Must::Integer(i64::MIN, i64::MAX)),
            ("file_size", Must::Integer(i64::MIN, i64::MAX)),
            ("mode", Must::Integer(0, 511)),
            ("loggers", Must::Dictionary),
            ("deduplicate_heartbeat_logs", Must::Boolean),
        ] {
            self.optional(&format!("log.{key}"), must);
        }
    }

    fn bootstrap(&mut self) {
        if !self.section("bootstrap", false) || !self.section("bootstrap.dcs", true) {
            return;
        }
        for (key, least) in [
            // This program's smallest timings; Patroni asks for 20, 1 and 3.
            ("ttl", 3),
            ("loop_wait", 1),
            ("retry_timeout", 1),
            ("maximum_lag_on_failover", 0),
            ("maximum_lag_on_syncnode", -1),
            ("primary_start_timeout", 0),
            ("primary_stop_timeout", 0),
            ("primary_answer_timeout", 0),
            ("candidate_free_space", 0),
            ("synchronous_node_count", 1),
        ] {
            self.optional(
                &format!("bootstrap.dcs.{key}"),
                Must::Integer(least, i64::MAX),
            );
        }
        self.optional("bootstrap.dcs.isolation_hold", Must::Boolean);
        self.optional("bootstrap.dcs.synchronous_mode_strict", Must::Boolean);
        self.optional("bootstrap.dcs.candidate_checks", Must::Boolean);
        if let Some(ttl) = self.get("bootstrap.dcs.member_slots_ttl")
            && value::parse_int(ttl, Some("s")).is_none_or(|ttl| ttl < 0)
        {
            self.invalid("bootstrap.dcs.member_slots_ttl", "Wrong value");
        }
        if let Some(mode) = self.get("bootstrap.dcs.synchronous_mode")
            && value::parse_bool(mode).is_none()
            && !value::text(mode).eq_ignore_ascii_case("quorum")
        {
            self.invalid(
                "bootstrap.dcs.synchronous_mode",
                "invalid value for synchronous_mode",
            );
        }
        if self.section("bootstrap.dcs.standby_cluster", false) {
            let key = "bootstrap.dcs.standby_cluster";
            let parts = ["host", "port", "restore_command"];
            if !parts
                .iter()
                .any(|part| self.get(&format!("{key}.{part}")).is_some())
            {
                self.error(
                    key,
                    "",
                    "didn't pass validation: should contain at least one item",
                );
            }
            self.optional(&format!("{key}.host"), Must::Text);
            self.optional(&format!("{key}.port"), Must::Integer(1, 65_535));
            self.optional(&format!("{key}.restore_command"), Must::Text);
        }
        if self.section("bootstrap.dcs.postgresql", false) {
            let key = "bootstrap.dcs.postgresql";
            if self.section(&format!("{key}.parameters"), false) {
                for (name, least, most) in [
                    ("max_connections", 1, 262_143),
                    ("max_locks_per_transaction", 10, 2_147_483_647),
                    ("max_prepared_transactions", 0, 262_143),
                    ("max_replication_slots", 0, 262_143),
                    ("max_wal_senders", 0, 262_143),
                    ("max_worker_processes", 0, 262_143),
                ] {
                    self.optional(
                        &format!("{key}.parameters.{name}"),
                        Must::Integer(least, most),
                    );
                }
            }
            self.optional(&format!("{key}.use_slots"), Must::Boolean);
            self.shared_postgresql(key);
        }
    }

    /// Keys that both configurations may have.
    fn shared_postgresql(&mut self, section: &str) {
        self.optional(&format!("{section}.use_pg_rewind"), Must::Boolean);
        self.optional(
            &format!("{section}.pg_ctl_timeout"),
            Must::Integer(0, i64::MAX),
        );
        for key in ["rewind", "basebackup"] {
            let key = format!("{section}.{key}");
            if !self.get(&key).is_some_and(Value::is_object) {
                self.optional(&key, Must::TextsOrMaps);
            }
        }
        for key in ["pg_hba", "pg_ident"] {
            self.optional(&format!("{section}.{key}"), Must::Texts);
        }
    }

    fn restapi(&mut self) {
        if self.section("restapi", true) {
            if self.required("restapi.listen", Must::Text) {
                self.listens("restapi.listen", false);
            }
            if self.required("restapi.connect_address", Must::Text) {
                self.reachable_by_others("restapi.connect_address");
            }
            for key in [
                "certfile",
                "keyfile",
                "keyfile_password",
                "cafile",
                "ciphers",
            ] {
                self.optional(&format!("restapi.{key}"), Must::Text);
            }
            self.optional(
                "restapi.verify_client",
                Must::Word(&["none", "optional", "required"]),
            );
            self.optional("restapi.allowlist", Must::Texts);
            self.optional("restapi.allowlist_include_members", Must::Boolean);
            self.optional("restapi.http_extra_headers", Must::Dictionary);
            self.optional("restapi.https_extra_headers", Must::Dictionary);
            self.optional("restapi.request_queue_size", Must::Integer(0, 4096));
            self.optional("restapi.primary_when", Must::Word(&["lock", "writable"]));
            self.optional("restapi.thread_pool_size", Must::Integer(5, i64::MAX));
            if let Some(tokens) = self.get("restapi.server_tokens")
                && !["original", "minimal", "productonly"]
                    .contains(&value::text(tokens).to_lowercase().as_str())
            {
                self.invalid("restapi.server_tokens", "contains a wrong value");
            }
            self.basic_auth("restapi");
        }
        if self.section("ctl", false) {
            self.optional("ctl.insecure", Must::Boolean);
            for key in ["cacert", "certfile", "keyfile", "keyfile_password"] {
                self.optional(&format!("ctl.{key}"), Must::Text);
            }
            self.basic_auth("ctl");
        }
    }

    fn basic_auth(&mut self, section: &str) {
        if self.section(&format!("{section}.authentication"), false) {
            self.required(&format!("{section}.authentication.username"), Must::Text);
            self.required(&format!("{section}.authentication.password"), Must::Text);
        }
    }

    /// An address to listen on; its port must be free.
    fn listens(&mut self, key: &str, several: bool) {
        let text = self.get(key).map(value::text).unwrap_or_default();
        let Ok(listen) = text.parse::<Listen>() else {
            return self.invalid(key, "contains a wrong value");
        };
        let hosts = if listen.addresses.is_empty() {
            vec!["*".to_owned()]
        } else {
            listen.addresses
        };
        if hosts.len() > 1 && hosts.iter().any(|host| host == "*") {
            return self.invalid(key, "expecting '*' alone");
        }
        if !several && hosts.len() > 1 {
            return self.invalid(key, "contains a wrong value");
        }
        for host in hosts {
            let address = HostPort {
                host,
                port: Some(listen.port),
            };
            if !self.options.ignore_listen_port && self.probes.connects(&address) {
                return self.invalid(key, &format!("Port {} is already in use.", listen.port));
            }
        }
    }

    fn reachable_by_others(&mut self, key: &str) {
        let text = self.get(key).map(value::text).unwrap_or_default();
        match text.parse::<HostPort>() {
            Err(_) => self.invalid(key, "contains a wrong value"),
            Ok(address)
                if ["127.0.0.1", "0.0.0.0", "*", "::1", "localhost"]
                    .contains(&address.host.as_str()) =>
            {
                self.invalid(
                    key,
                    "must not contain \"127.0.0.1\", \"0.0.0.0\", \"*\", \"::1\", \"localhost\"",
                );
            }
            Ok(_) => {}
        }
    }

    fn answers(&mut self, key: &str, text: &str, port: u16) {
        let text = text.trim().trim_matches(['\'', '"']);
        let problem = match text.parse::<HostPort>() {
            Err(_) => Some("contains a wrong value".to_owned()),
            Ok(address) => {
                let address = address.or_port(port);
                (!self.probes.connects(&address)).then(|| format!("{address} is not reachable"))
            }
        };
        if let Some(problem) = problem {
            self.error(key, text, &format!("didn't pass validation: {problem}"));
        }
    }

    fn store(&mut self) {
        let Some(section) = STORE_SECTIONS
            .into_iter()
            .find(|section| self.document.contains_key(*section))
        else {
            self.undefined(&STORE_SECTIONS.join(" "));
            return;
        };
        if !self.section(section, true) {
            return;
        }
        match section {
            "etcd" | "etcd3" => self.etcd(section),
            "consul" => {
                if self.get("consul.url").is_some() {
                    self.optional("consul.url", Must::Text);
                } else if self.required("consul.host", Must::Text) {
                    let host = self.get("consul.host").map(value::text).unwrap_or_default();
                    self.answers("consul.host", &host, 8500);
                }
                for key in [
                    "scheme",
                    "token",
                    "cacert",
                    "cert",
                    "key",
                    "dc",
                    "service_check_interval",
                ] {
                    self.optional(&format!("consul.{key}"), Must::Text);
                }
                self.optional("consul.port", Must::Integer(1, 65_535));
                self.optional("consul.register_service", Must::Boolean);
            }
            "zookeeper" if self.get("zookeeper.exhibitor").is_some() => {
                self.exhibitor("zookeeper.exhibitor")
            }
            "zookeeper" => {
                if self.get("zookeeper.hosts").is_none() {
                    self.undefined("zookeeper.hosts");
                }
                for (key, host) in self.items("zookeeper.hosts") {
                    self.answers(&key, &host, 2181);
                }
                self.optional("zookeeper.use_ssl", Must::Boolean);
                self.optional("zookeeper.set_acls", Must::Dictionary);
                self.optional("zookeeper.auth_data", Must::Dictionary);
            }
            "exhibitor" => self.exhibitor("exhibitor"),
            "kubernetes" => {
                self.required("kubernetes.labels", Must::Dictionary);
                for key in [
                    "namespace",
                    "scope_label",
                    "role_label",
                    "pod_ip",
                    "cacert",
                    "tmp_role_label",
                ] {
                    self.optional(&format!("kubernetes.{key}"), Must::Text);
                }
                self.optional("kubernetes.use_endpoints", Must::Boolean);
                self.optional("kubernetes.bypass_api_service", Must::Boolean);
                self.optional("kubernetes.bootstrap_labels", Must::Dictionary);
            }
            _ => {
                self.required("raft.self_addr", Must::Text);
                if self.get("raft.partner_addrs").is_none() {
                    self.undefined("raft.partner_addrs");
                }
                if self.optional("raft.bind_addr", Must::Text) {
                    self.listens("raft.bind_addr", false);
                }
                for (key, partner) in self.items("raft.partner_addrs") {
                    self.answers(&key, &partner, 2222);
                }
                self.optional("raft.data_dir", Must::Text);
                self.optional("raft.password", Must::Text);
            }
        }
        if self.section("citus", false) {
            self.required("citus.database", Must::Text);
            self.required("citus.group", Must::Integer(0, i64::MAX));
        }
    }

    fn etcd(&mut self, section: &str) {
        let key = |name: &str| format!("{section}.{name}");
        let ways = ["host", "hosts", "srv", "url", "proxy"];
        if !ways.iter().any(|name| self.get(&key(name)).is_some()) {
            self.undefined(&ways.map(key).join(" "));
        }
        let port = self
            .get(&key("port"))
            .and_then(value::to_integer)
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(2379);
        for (path, host) in self.items(&key("hosts")) {
            self.answers(&path, &host, port);
        }
        if self.get(&key("hosts")).is_none() && self.optional(&key("host"), Must::Text) {
            let host = self.get(&key("host")).map(value::text).unwrap_or_default();
            self.answers(&key("host"), &host, port);
        }
        for name in [
            "srv", "url", "proxy", "protocol", "username", "password", "cacert", "cert", "key",
        ] {
            self.optional(&key(name), Must::Text);
        }
    }

    fn exhibitor(&mut self, section: &str) {
        self.required(&format!("{section}.hosts"), Must::Texts);
        self.required(&format!("{section}.port"), Must::Integer(1, 65_535));
    }

    fn postgresql(&mut self) {
        if !self.section("postgresql", true) {
            return;
        }
        if self.required("postgresql.listen", Must::Text) {
            self.listens("postgresql.listen", true);
        }
        if self.required("postgresql.connect_address", Must::Text) {
            self.reachable_by_others("postgresql.connect_address");
        }
        if self.optional("postgresql.proxy_address", Must::Text) {
            self.reachable_by_others("postgresql.proxy_address");
        }
        if self.section("postgresql.authentication", true) {
            for user in ["replication", "superuser", "rewind"] {
                let key = format!("postgresql.authentication.{user}");
                if self.section(&key, user != "rewind") {
                    self.required(&format!("{key}.username"), Must::Text);
                    self.optional(&format!("{key}.password"), Must::Text);
                }
            }
        }
        self.programs();
        if self.required("postgresql.data_dir", Must::Text) {
            self.data_dir();
        }
        for key in ["config_dir", "pgpass", "custom_conf"] {
            self.optional(&format!("postgresql.{key}"), Must::Text);
        }
        self.optional("postgresql.parameters", Must::Dictionary);
        self.shared_postgresql("postgresql");
    }

    fn bin_dir(&self) -> Option<PathBuf> {
        self.get("postgresql.bin_dir")
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
            .map(PathBuf::from)
    }

    fn program(&self, name: &str) -> String {
        self.get(&format!("postgresql.bin_name.{name}"))
            .map_or_else(|| name.to_owned(), value::text)
    }

    fn programs(&mut self) {
        let directory = self.bin_dir();
        let shown = directory
            .as_ref()
            .map(|directory| directory.display().to_string());
        if let (Some(directory), Some(shown)) = (&directory, &shown) {
            let problem = match std::fs::metadata(directory) {
                Ok(metadata) if metadata.is_dir() => None,
                Ok(_) => Some(format!("'{shown}' is not a directory.")),
                Err(_) => Some(format!("Directory '{shown}' does not exist.")),
            };
            if let Some(problem) = problem {
                self.error("postgresql.bin_dir", shown, &problem);
                return;
            }
        }
        for name in [
            "pg_ctl",
            "initdb",
            "pg_controldata",
            "pg_basebackup",
            "postgres",
            "pg_isready",
        ] {
            let program = self.program(name);
            if !self.probes.has_program(directory.as_deref(), &program) {
                let place = shown.clone().unwrap_or_else(|| "$PATH".to_owned());
                self.error(
                    "postgresql.bin_dir",
                    shown.as_deref().unwrap_or_default(),
                    &format!("does not contain '{program}' in '{place}'"),
                );
            }
        }
    }

    fn data_dir(&mut self) {
        let key = "postgresql.data_dir";
        let text = self.get(key).map(value::text).unwrap_or_default();
        if text.is_empty() {
            return self.invalid(key, "is an empty string");
        }
        let directory = PathBuf::from(&text);
        let Ok(metadata) = std::fs::metadata(&directory) else {
            return;
        };
        if !metadata.is_dir() {
            return self.invalid(key, "is not a directory");
        }
        let counts = |entry: &std::fs::DirEntry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            !name.starts_with('.') && name != "lost+found"
        };
        let filled = std::fs::read_dir(&directory)
            .is_ok_and(|entries| entries.filter_map(Result::ok).any(|entry| counts(&entry)));
        if !filled {
            return;
        }
        let Ok(version) = std::fs::read_to_string(directory.join("PG_VERSION")) else {
            return self.invalid(key, "doesn't look like a valid data directory");
        };
        let version = version.trim().to_owned();
        let wal = if version.parse::<f64>().is_ok_and(|version| version >= 10.0) {
            "pg_wal"
        } else {
            "pg_xlog"
        };
        if !directory.join(wal).is_dir() {
            return self.invalid(
                key,
                &format!(
                    "data dir for the cluster is not empty, but doesn't contain \"{wal}\" directory"
                ),
            );
        }
        let program = self.program("postgres");
        let program = self
            .bin_dir()
            .map_or_else(|| PathBuf::from(&program), |bin_dir| bin_dir.join(&program));
        if let Some(own) = self.probes.postgres_major(&program)
            && own != version
        {
            let why = format!(
                "data_dir directory postgresql version ({version}) doesn't match with 'postgres --version' output ({own})"
            );
            self.invalid(key, &why);
        }
    }

    fn watchdog_and_tags(&mut self) {
        if self.section("watchdog", false) {
            self.optional(
                "watchdog.mode",
                Must::Word(&["off", "automatic", "required", "false"]),
            );
            self.optional("watchdog.device", Must::Text);
            self.optional("watchdog.safety_margin", Must::Integer(-1, i64::MAX));
        }
        if !self.section("tags", false) {
            return;
        }
        for (boolean, priority) in [
            ("nofailover", "failover_priority"),
            ("nosync", "sync_priority"),
        ] {
            let (left, right) = (format!("tags.{boolean}"), format!("tags.{priority}"));
            if self.get(&left).is_some() && self.get(&right).is_some() {
                self.error(
                    "tags",
                    "",
                    &format!("Multiple of ('{boolean}', '{priority}') provided"),
                );
            }
            self.optional(&left, Must::Boolean);
            self.optional(&right, Must::Integer(0, i64::MAX));
        }
        for (key, must) in [
            ("noloadbalance", Must::Boolean),
            ("clonefrom", Must::Boolean),
            ("replicatefrom", Must::Text),
            ("nostream", Must::Boolean),
        ] {
            self.optional(&format!("tags.{key}"), must);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FakeEnvironment;

    /// Ports below 1000 answer, all programs exist.
    struct Fake;

    impl Probes for Fake {
        fn connects(&self, address: &HostPort) -> bool {
            address.port.is_some_and(|port| port < 1000)
        }
        fn has_program(&self, _: Option<&Path>, name: &str) -> bool {
            name != "missing"
        }
        fn postgres_major(&self, _: &Path) -> Option<String> {
            Some("17".to_owned())
        }
    }

    const GOOD: &str = "
scope: s
name: n
restapi: {listen: '127.0.0.1:8008', connect_address: '10.0.0.1:8008'}
etcd3: {hosts: ['h:1', 'h:2']}
bootstrap: {dcs: {ttl: 30}}
postgresql:
  listen: '*:5432'
  connect_address: 10.0.0.1:5432
  data_dir: /nonexistent/data
  authentication: {superuser: {username: a}, replication: {username: b}}
";

    fn errors(change: &str) -> Vec<String> {
        let Value::Object(mut document) = yaml::parse(GOOD).unwrap() else {
            panic!()
        };
        let Value::Object(change) = yaml::parse(change).unwrap() else {
            panic!()
        };
        value::patch(&mut document, &change);
        check(&document, &Fake, Options::default())
    }

    #[test]
    fn a_good_one_has_no_errors() {
        assert_eq!(errors("{}"), Vec::<String>::new());
    }

    #[test]
    fn lines() {
        for (change, expected) in [
            ("postgresql: null", "postgresql  is not defined."),
            ("scope: null", "scope  is not defined."),
            ("name: 5", "name 5 is not a string"),
            (
                "restapi: {listen: '*:80'}",
                "restapi.listen *:80 didn't pass validation: Port 80 is already in use.",
            ),
            (
                "restapi: {connect_address: 'localhost:8008'}",
                "restapi.connect_address localhost:8008 didn't pass validation: must not contain \"127.0.0.1\", \"0.0.0.0\", \"*\", \"::1\", \"localhost\"",
            ),
            (
                "etcd3: {hosts: ['h:5000']}",
                "etcd3.hosts.0 h:5000 didn't pass validation: h:5000 is not reachable",
            ),
            (
                "log: {level: loud}",
                "log.level loud didn't pass validation: contains a wrong value",
            ),
            (
                "log: {format: []}",
                "log.format [] didn't pass validation: should contain at least one item",
            ),
            ("log: {mode: '0o9'}", "log.mode 0o9 is not an integer"),
            ("bootstrap: {dcs: null}", "bootstrap.dcs  is not defined."),
            (
                "bootstrap: {dcs: {ttl: 2}}",
                "bootstrap.dcs.ttl 2 didn't pass validation: Wrong value",
            ),
            (
                "bootstrap: {dcs: {synchronous_mode: x}}",
                "bootstrap.dcs.synchronous_mode x didn't pass validation: invalid value for synchronous_mode",
            ),
            (
                "postgresql: {listen: '*,1.1.1.1:5432'}",
                "postgresql.listen *,1.1.1.1:5432 didn't pass validation: expecting '*' alone",
            ),
            (
                "postgresql: {bin_dir: /nonexistent}",
                "postgresql.bin_dir /nonexistent Directory '/nonexistent' does not exist.",
            ),
            (
                "postgresql: {bin_name: {pg_ctl: missing}}",
                "postgresql.bin_dir  does not contain 'missing' in '$PATH'",
            ),
            (
                "postgresql: {pg_hba: []}",
                "postgresql.pg_hba  is an empty list",
            ),
            (
                "postgresql: {authentication: {superuser: {username: null}}}",
                "postgresql.authentication.superuser.username  is not defined.",
            ),
            (
                "tags: {nosync: false, sync_priority: 1}",
                "tags  Multiple of ('nosync', 'sync_priority') provided",
            ),
            (
                "watchdog: {mode: auto}",
                "watchdog.mode auto didn't pass validation: contains a wrong value",
            ),
            ("tags: 5", "tags  is not a dictionary"),
        ] {
            assert_eq!(errors(change), [expected], "{change}");
        }
        assert_eq!(errors("watchdog: {mode: off}"), Vec::<String>::new());
    }

    #[test]
    fn data_directories() {
        let dir = tempfile::tempdir().unwrap();
        let change = format!("postgresql: {{data_dir: '{}'}}", dir.path().display());
        assert_eq!(errors(&change), Vec::<String>::new());
        std::fs::write(dir.path().join("x"), "").unwrap();
        assert!(errors(&change)[0].ends_with("doesn't look like a valid data directory"));
        std::fs::write(dir.path().join("PG_VERSION"), "15\n").unwrap();
        assert!(errors(&change)[0].ends_with("doesn't contain \"pg_wal\" directory"));
        std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
        assert!(
            errors(&change)[0]
                .ends_with("(15) doesn't match with 'postgres --version' output (17)")
        );
    }

    #[test]
    fn environment_alone_and_print() {
        let environment =
            FakeEnvironment::new(&[("PATRONI_CONFIGURATION", GOOD), ("PATRONI_SCOPE", "robin")]);
        let options = Options {
            print: true,
            ..Options::default()
        };
        let validation = run(None, &environment, &Fake, options);
        assert_eq!(validation.errors, Vec::<String>::new());
        let document = validation.document.unwrap();
        assert!(
            document.starts_with("bootstrap:\n  dcs:\n    ttl: 30\netcd3:\n  hosts:\n  - h:1\n"),
            "{document}"
        );
        assert!(
            document.contains("\nscope: robin\n") && document.contains("  bin_dir: ''\n"),
            "{document}"
        );

        let alone =
            FakeEnvironment::new(&[("PATRONI_SCOPE", "s"), ("PATRONI_POSTGRESQL_BIN_DIR", "/")]);
        assert_eq!(
            run(None, &alone, &Fake, Options::default()).errors,
            Vec::<String>::new()
        );
        let wrong = FakeEnvironment::new(&[("PATRONI_TTL", "x")]);
        assert_eq!(
            run(None, &wrong, &Fake, options),
            Validation {
                errors: vec!["PATRONI_TTL: \"x\" is not an integer".to_owned()],
                document: None
            }
        );
    }

    #[test]
    fn real_sockets_and_programs() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let probes = SystemProbes::default();
        assert!(probes.connects(&HostPort {
            host: "*".to_owned(),
            port: Some(port)
        }));
        drop(listener);
        assert!(!probes.connects(&HostPort {
            host: "127.0.0.1".to_owned(),
            port: Some(port)
        }));
        assert!(
            probes.has_program(None, "sh")
                && !probes.has_program(Some(Path::new("/nonexistent")), "sh")
        );
    }
}
