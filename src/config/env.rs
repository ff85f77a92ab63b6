//! The only reader of the environment: `PATRONI_*` by the table of `variables`, and what the host says about itself.
//!
//! Reads everything, then reports all faults together. Never changes the environment: children are started with
//! what [`child_environment`] leaves of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::variables::{self, Kind, PARAMETER_PREFIX, Variable};
use super::{Fault, value, yaml};

/// What configuration may ask of its surroundings; tests use [`FakeEnvironment`].
pub trait Environment {
    /// All variables of the process that are valid text.
    fn variables(&self) -> BTreeMap<String, String>;
    /// The text of a file.
    ///
    /// # Errors
    /// As the file system says.
    fn read(&self, path: &Path) -> std::io::Result<String>;
    /// The host's name.
    fn host_name(&self) -> Option<String>;
    /// An address of this host that others can reach, IPv4 preferred.
    fn host_address(&self) -> Option<IpAddr>;
    /// The newest of `/usr/lib/postgresql/*/bin`.
    fn postgres_bin_dir(&self) -> Option<PathBuf>;
}

/// The real one.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn variables(&self) -> BTreeMap<String, String> {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    fn read(&self, path: &Path) -> std::io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn host_name(&self) -> Option<String> {
        let name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        (!name.is_empty()).then_some(name)
    }

    fn host_address(&self) -> Option<IpAddr> {
        let usable = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified();
        let mut found: Vec<IpAddr> = self
            .host_name()
            .and_then(|name| (name.as_str(), 0).to_socket_addrs().ok())
            .map(|addresses| {
                addresses
                    .map(|address| address.ip())
                    .filter(usable)
                    .collect()
            })
            .unwrap_or_default();
        found.sort_by_key(|ip| !ip.is_ipv4());
        // The address a packet to elsewhere would leave from; nothing is sent.
        found.into_iter().next().or_else(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
            socket.connect(("10.255.255.255", 9)).ok()?;
            Some(socket.local_addr().ok()?.ip()).filter(usable)
        })
    }

    fn postgres_bin_dir(&self) -> Option<PathBuf> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        versions
            .filter_map(Result::ok)
            .filter_map(|entry| {
                Some((
                    entry.file_name().to_str()?.parse::<u32>().ok()?,
                    entry.path().join("bin"),
                ))
            })
            .filter(|(_, dir)| dir.join("postgres").exists())
            .max()
            .map(|(_, dir)| dir)
    }
}

/// An environment made of maps, for tests and the simulator.
#[derive(Debug, Clone, Default)]
pub struct FakeEnvironment {
    /// Variables.
    pub variables: BTreeMap<String, String>,
    /// Files besides those of the file system.
    pub files: BTreeMap<PathBuf, String>,
}

impl FakeEnvironment {
    /// With these variables.
    #[must_use]
    pub fn new(variables: &[(&str, &str)]) -> Self {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        FakeEnvironment {
            variables,
            files: BTreeMap::new(),
        }
    }
}

impl Environment for FakeEnvironment {
    fn variables(&self) -> BTreeMap<String, String> {
        self.variables.clone()
    }

    fn read(&self, path: &Path) -> std::io::Result<String> {
        self.files
            .get(path)
            .cloned()
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))
    }

    fn host_name(&self) -> Option<String> {
        Some("host1".to_owned())
    }

    fn host_address(&self) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, 1]))
    }

    fn postgres_bin_dir(&self) -> Option<PathBuf> {
        Some(PathBuf::from("/usr/lib/postgresql/17/bin"))
    }
}

/// What a child process inherits of this one's environment (spec/configuration.md §2.2): everything but the agent's own settings,
/// with `PG_MALLOC_ARENA_MAX` under the name the C library knows.
#[must_use]
pub fn child_environment() -> Vec<(OsString, OsString)> {
    filtered(std::env::vars_os())
}

fn filtered(all: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let is_private = |name: &OsString| {
        let name = name.as_bytes();
        name == b"NOTIFY_SOCKET"
            || name.starts_with(b"PATRONI_")
            || name.starts_with(b"KUBERNETES_")
    };
    all.filter(|(name, _)| !is_private(name))
        .map(|(name, value)| match name.as_bytes() {
            b"PG_MALLOC_ARENA_MAX" => ("MALLOC_ARENA_MAX".into(), value),
            _ => (name, value),
        })
        .collect()
}

/// The directories of `PATH`.
pub(crate) fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect())
        .unwrap_or_default()
}

/// What the `PATRONI_*` variables say.
#[derive(Clone, Default)]
pub(crate) struct Reading {
    /// `PATRONI_CONFIGURATION`, parsed.
    pub document: Option<Map<String, Value>>,
    /// Everything else, as a configuration.
    pub settings: Map<String, Value>,
    /// Which variable set which key.
    pub origins: BTreeMap<String, String>,
    /// Unknown variables.
    pub warnings: Vec<String>,
    /// Unknown names whose nearest known name belongs to a store: no store may be chosen by default then.
    pub misspelt_store: Option<String>,
}

/// Reads all `PATRONI_*` variables; an empty value counts as not set.
pub(crate) fn read(environment: &dyn Environment, faults: &mut Vec<Fault>) -> Reading {
    let mut reading = Reading::default();
    let mut given: BTreeMap<String, String> = environment
        .variables()
        .into_iter()
        .filter(|(name, text)| is_setting(name, text))
        .collect();
    for row in variables::table() {
        let plain = given.remove(&row.name);
        let file = if row.secret {
            given.remove(&format!("{}_FILE", row.name))
        } else {
            None
        };
        let (name, text) = match (plain, file) {
            (None, None) => continue,
            (Some(_), Some(_)) => {
                faults.push(Fault::new(
                    &row.name,
                    format!(
                        "is given twice: also as {}_FILE; remove one of them",
                        row.name
                    ),
                ));
                continue;
            }
            (Some(text), None) => (row.name.clone(), text),
            (None, Some(path)) => {
                let name = format!("{}_FILE", row.name);
                match environment.read(Path::new(&path)) {
                    Ok(text) => (
                        name,
                        text.strip_suffix('\n')
                            .map(|t| t.strip_suffix('\r').unwrap_or(t))
                            .unwrap_or(&text)
                            .to_owned(),
                    ),
                    Err(error) => {
                        faults.push(Fault::new(&name, format!("cannot read {path}: {error}")));
                        continue;
                    }
                }
            }
        };
        // An alias stands behind the right name, which the table has first.
        if row.alias.is_some() && reading.origins.contains_key(&row.key) {
            continue;
        }
        match parse(row.kind, &text) {
            Ok(Value::Object(document)) if row.key.is_empty() => reading.document = Some(document),
            Ok(value) => {
                reading.origins.insert(row.key.clone(), name);
                set(&mut reading.settings, &row.key, value);
            }
            Err(reason) if row.secret => faults.push(Fault::new(&name, hide(&reason))),
            Err(reason) => faults.push(Fault::new(&name, reason)),
        }
    }
    for (name, text) in &given {
        let parameter = name
            .strip_prefix(PARAMETER_PREFIX)
            .unwrap_or_default()
            .to_lowercase()
            .replace("__", ".");
        if !parameter.is_empty() {
            let key = "bootstrap.dcs.postgresql.parameters";
            at(&mut reading.settings, key).insert(parameter.clone(), Value::String(text.clone()));
            reading
                .origins
                .insert(format!("{key}.{parameter}"), name.clone());
        }
    }
    given.retain(|name, _| {
        !name.starts_with(PARAMETER_PREFIX) || name.len() == PARAMETER_PREFIX.len()
    });
    for name in given.into_keys() {
        unknown(&name, &mut reading);
    }
    reading
}

fn is_setting(name: &str, text: &str) -> bool {
    name.starts_with("PATRONI_") && !text.is_empty() && !is_service_link(name, text)
}

/// A fault in a secret must not repeat the text.
fn hide(reason: &str) -> String {
    reason
        .split('"')
        .next()
        .unwrap_or_default()
        .trim_end_matches([' ', ':'])
        .to_owned()
        + " (the text is not shown)"
}

fn parse(kind: Kind, text: &str) -> Result<Value, String> {
    let trimmed = text.trim();
    let wrong = |what: &str| format!("{text:?} is not {what}");
    match kind {
        Kind::Text => Ok(Value::String(text.to_owned())),
        Kind::Choice(words) => {
            if words.iter().any(|word| word.eq_ignore_ascii_case(trimmed)) {
                Ok(Value::String(trimmed.to_owned()))
            } else {
                Err(format!("{text:?} is not one of {}", words.join(", ")))
            }
        }
        Kind::Integer => value::parse_int(&Value::String(trimmed.to_owned()), None)
            .map(Value::from)
            .ok_or_else(|| wrong("an integer")),
        Kind::Amount(unit) => value::parse_int(&Value::String(trimmed.to_owned()), Some(unit))
            .map(|_| {
                trimmed
                    .parse::<i64>()
                    .map_or_else(|_| Value::String(trimmed.to_owned()), Value::from)
            })
            .ok_or_else(|| {
                format!("{text:?} is not an integer with an optional unit (base unit {unit})")
            }),
        Kind::Real => trimmed
            .parse::<f64>()
            .ok()
            .and_then(serde_json::Number::from_f64)
            .map(Value::Number)
            .ok_or_else(|| wrong("a number")),
        Kind::Boolean => value::parse_bool_text(trimmed)
            .map(Value::Bool)
            .ok_or_else(|| wrong("a boolean (on, off, true, false, yes, no, 1, 0)")),
        Kind::BooleanOr(words) => match value::parse_bool_text(trimmed) {
            Some(boolean) => Ok(Value::Bool(boolean)),
            None if words.iter().any(|word| word.eq_ignore_ascii_case(trimmed)) => {
                Ok(Value::String(trimmed.to_lowercase()))
            }
            None => Err(format!(
                "{text:?} is neither a boolean nor one of {}",
                words.join(", ")
            )),
        },
        Kind::List => list(trimmed),
        Kind::Lines if trimmed.starts_with('[') || trimmed.starts_with("- ") => list(trimmed),
        Kind::Lines => {
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            Ok(Value::Array(
                lines.map(|line| Value::String(line.to_owned())).collect(),
            ))
        }
        Kind::Dict => {
            let wrapped = if trimmed.starts_with('{') {
                trimmed.to_owned()
            } else {
                format!("{{{trimmed}}}")
            };
            // A block map over several lines is as good as the flow form that Patroni asks for.
            match (yaml::parse(&wrapped), yaml::parse(text)) {
                (Ok(Value::Object(map)), _) | (Err(_), Ok(Value::Object(map))) => {
                    Ok(Value::Object(map))
                }
                (Err(error), _) => Err(format!("is not a map: {error}")),
                _ => Err("is not a map".to_owned()),
            }
        }
        Kind::Format if has_placeholder(text) => Ok(Value::String(text.to_owned())),
        Kind::Format => list(trimmed),
        Kind::Document => match yaml::parse(text) {
            Ok(Value::Object(map)) => Ok(Value::Object(map)),
            Ok(_) => Err("is not a map".to_owned()),
            Err(error) => Err(format!("is not YAML: {error}")),
        },
    }
}

/// `%(word)`.
fn has_placeholder(text: &str) -> bool {
    text.split("%(").skip(1).any(|rest| {
        rest.find(')').is_some_and(|end| {
            end > 0
                && rest[..end]
                    .bytes()
                    .all(|b| b == b'_' || b.is_ascii_alphanumeric())
        })
    })
}

/// List syntax of §3.11: YAML as it is when it starts with `-` or contains `[`, otherwise the inside of a list.
fn list(trimmed: &str) -> Result<Value, String> {
    let as_is = trimmed.starts_with('-') || trimmed.contains('[');
    let text = if as_is {
        trimmed.to_owned()
    } else {
        format!("[{trimmed}]")
    };
    match yaml::parse(&text) {
        Ok(Value::Array(items)) => Ok(Value::Array(items)),
        Ok(_) => Err(format!(
            "{trimmed:?} is not a list; quote items that contain brackets"
        )),
        Err(error) => Err(format!("{trimmed:?} is not a list: {error}")),
    }
}

/// The map at a dotted path, made where it is missing.
fn at<'a>(map: &'a mut Map<String, Value>, path: &str) -> &'a mut Map<String, Value> {
    let mut map = map;
    for part in path.split('.') {
        let slot = map.entry(part).or_insert_with(|| Value::Object(Map::new()));
        if !slot.is_object() {
            *slot = Value::Object(Map::new());
        }
        map = match slot {
            Value::Object(inner) => inner,
            _ => unreachable!("made an object above"),
        };
    }
    map
}

/// Sets one key; a map laid on a map keeps what single variables have set before.
fn set(settings: &mut Map<String, Value>, key: &str, value: Value) {
    let (map, last) = match key.rsplit_once('.') {
        Some((parent, last)) => (at(settings, parent), last),
        None => (settings, key),
    };
    match (map.get_mut(last), value) {
        (Some(Value::Object(old)), Value::Object(new)) => {
            value::patch(old, &new);
        }
        (_, value) => {
            map.insert(last.to_owned(), value);
        }
    }
}

fn unknown(name: &str, reading: &mut Reading) {
    let nearest = variables::table()
        .iter()
        .flat_map(|row| {
            let file = row.secret.then(|| format!("{}_FILE", row.name));
            std::iter::once((row.name.clone(), row)).chain(file.map(|file| (file, row)))
        })
        .map(|(known, row)| (distance(name, &known), known, row))
        .min_by_key(|(distance, _, _)| *distance);
    let close = nearest.filter(|(distance, known, _)| *distance <= (known.len() / 5).max(2));
    match close {
        Some((_, known, row)) => {
            reading.warnings.push(format!(
                "{name} is not a known variable and is ignored; did you mean {known}?"
            ));
            if is_store(row) {
                reading.misspelt_store = Some(name.to_owned());
            }
        }
        // Patroni before 4.0 created users from these; entry scripts still export them.
        None if name.ends_with("_PASSWORD") || name.ends_with("_OPTIONS") => {
            reading.warnings.push(format!(
                "{name} is ignored: users are not created from the environment since Patroni 4.0"
            ));
        }
        None => reading
            .warnings
            .push(format!("{name} is not a known variable and is ignored")),
    }
}

fn is_store(row: &Variable) -> bool {
    row.key
        .split('.')
        .next()
        .is_some_and(|section| variables::STORE_SECTIONS.contains(&section))
}

/// What Kubernetes and old Docker links export for a service called `patroni…`; `PATRONI_ETCD_PORT=tcp://…` among it.
fn is_service_link(name: &str, text: &str) -> bool {
    let has_numbered_port = ["_TCP", "_UDP"].iter().any(|protocol| {
        name.find(protocol).is_some_and(|end| {
            let number = name[..end].rsplit('_').next().unwrap_or_default();
            !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
        })
    });
    let is_link =
        name.ends_with("_PORT") && (text.starts_with("tcp://") || text.starts_with("udp://"));
    is_link
        || has_numbered_port
        || name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
}

/// Edits between two names: insert, delete, replace, swap of neighbours.
fn distance(left: &str, right: &str) -> usize {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let mut best = (row[j] + usize::from(a != b))
                .min(row[j + 1] + 1)
                .min(next[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                best = best.min(before[j - 1] + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[right.len()]
}

/// The default of a row as a value.
pub(crate) fn preset(row: &Variable) -> Option<Value> {
    match row.preset {
        variables::Preset::Is(text) => parse(row.kind, text).ok(),
        _ => None,
    }
}

/// Sets one key of a configuration map.
pub(crate) fn put(settings: &mut Map<String, Value>, key: &str, value: Value) {
    set(settings, key, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_ok(variables: &[(&str, &str)]) -> Reading {
        let mut faults = Vec::new();
        let reading = read(&FakeEnvironment::new(variables), &mut faults);
        assert!(faults.is_empty(), "{faults:?}");
        reading
    }

    fn faults_of(environment: &FakeEnvironment) -> Vec<String> {
        let mut faults = Vec::new();
        read(environment, &mut faults);
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_default_in_the_table_parses() {
        for row in variables::table() {
            if matches!(row.preset, variables::Preset::Is(_)) {
                assert!(preset(row).is_some(), "{}", row.name);
            }
        }
    }

    #[test]
    fn types() {
        let reading = read_ok(&[
            ("PATRONI_ETCD3_HOSTS", "h1:2379,'h2:2379'"),
            ("PATRONI_CONSUL_CHECKS", "[\"a\", b]"),
            ("PATRONI_KUBERNETES_LABELS", "app: patroni, tier: db"),
            ("PATRONI_LOG_MODE", "0644"),
            ("PATRONI_LOG_FORMAT", "%(message)s"),
            ("PATRONI_ZOOKEEPER_USE_SSL", "false"),
            ("PATRONI_RAFT_MIN_TIMEOUT", "0.5"),
            ("PATRONI_SYNCHRONOUS_MODE", "Quorum"),
            ("PATRONI_MEMBER_SLOTS_TTL", "1h"),
            (
                "PATRONI_POSTGRESQL_PG_HBA",
                "local all all trust\n\nhost all all all md5\n",
            ),
            ("PATRONI_POSTGRESQL_PARAMETERS", "max_connections: 200"),
            ("PATRONI_POSTGRESQL_PARAMETERS_WORK_MEM", "8MB"),
            (
                "PATRONI_POSTGRESQL_PARAMETERS_PG_STAT_STATEMENTS__MAX",
                "100",
            ),
            ("PATRONI_TAGS", "{zone: a, nofailover: false}"),
            ("PATRONI_TAGS_NOFAILOVER", "on"),
            ("PATRONI_NAME", "007"),
            ("PATRONI_LOG_DIR", ""),
        ]);
        assert_eq!(
            Value::Object(reading.settings),
            json!({
                "name": "007",
                "log": {"format": "%(message)s", "mode": 420},
                "postgresql": {"pg_hba": ["local all all trust", "host all all all md5"]},
                "bootstrap": {"dcs": {
                    "synchronous_mode": "quorum", "member_slots_ttl": "1h",
                    "postgresql": {"parameters": {"max_connections": 200, "work_mem": "8MB", "pg_stat_statements.max": "100"}},
                }},
                "tags": {"zone": "a", "nofailover": true},
                "raft": {"min_timeout": 0.5},
                "etcd3": {"hosts": ["h1:2379", "h2:2379"]},
                "consul": {"checks": ["a", "b"]},
                "zookeeper": {"use_ssl": false},
                "kubernetes": {"labels": {"app": "patroni", "tier": "db"}},
            })
        );
    }

    #[test]
    fn json_log_format_is_a_list() {
        let reading = read_ok(&[("PATRONI_LOG_FORMAT", "message, levelname: level")]);
        assert_eq!(
            reading.settings["log"]["format"],
            json!(["message", {"levelname": "level"}])
        );
    }

    #[test]
    fn faults_come_together_and_name_the_variable() {
        let faults = faults_of(&FakeEnvironment::new(&[
            ("PATRONI_TTL", "soon"),
            ("PATRONI_LOG_TYPE", "xml"),
            ("PATRONI_CTL_INSECURE", "perhaps"),
            ("PATRONI_ETCD_HOSTS", "[::1]:2379"),
        ]));
        assert_eq!(
            faults[..3],
            [
                "PATRONI_LOG_TYPE: \"xml\" is not one of plain, json",
                "PATRONI_CTL_INSECURE: \"perhaps\" is not a boolean (on, off, true, false, yes, no, 1, 0)",
                "PATRONI_TTL: \"soon\" is not an integer",
            ]
        );
        assert!(faults[3].starts_with("PATRONI_ETCD_HOSTS: "), "{faults:?}");
    }

    #[test]
    fn secrets_from_files() {
        let mut environment = FakeEnvironment::new(&[
            ("PATRONI_REPLICATION_PASSWORD_FILE", "/run/secrets/r"),
            ("PATRONI_SUPERUSER_PASSWORD_FILE", "/run/secrets/absent"),
            ("PATRONI_RAFT_PASSWORD_FILE", "/run/secrets/r"),
            ("PATRONI_RAFT_PASSWORD", "x"),
        ]);
        environment
            .files
            .insert("/run/secrets/r".into(), "s3cret \n".to_owned());
        let mut faults = Vec::new();
        let reading = read(&environment, &mut faults);
        assert_eq!(
            reading.settings["postgresql"]["authentication"]["replication"]["password"],
            "s3cret "
        );
        assert_eq!(
            reading.origins["postgresql.authentication.replication.password"],
            "PATRONI_REPLICATION_PASSWORD_FILE"
        );
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(faults.len(), 2);
        assert!(
            faults[0]
                .starts_with("PATRONI_SUPERUSER_PASSWORD_FILE: cannot read /run/secrets/absent"),
            "{faults:?}"
        );
        assert!(
            faults[1].starts_with("PATRONI_RAFT_PASSWORD: is given twice"),
            "{faults:?}"
        );
    }

    #[test]
    fn aliases_stand_behind_the_right_name() {
        assert_eq!(
            read_ok(&[("PATRONI_LOGLEVEL", "DEBUG")]).settings["log"]["level"],
            "DEBUG"
        );
        let both = read_ok(&[
            ("PATRONI_LOGLEVEL", "DEBUG"),
            ("PATRONI_LOG_LEVEL", "ERROR"),
        ]);
        assert_eq!(both.settings["log"]["level"], "ERROR");
    }

    #[test]
    fn unknown_names_are_warnings_with_the_nearest() {
        let reading = read_ok(&[
            ("PATRONI_REPLICATON_PASSWORD", "x"),
            ("PATRONI_ETCD3_HOST_S", "x"),
            ("PATRONI_admin_PASSWORD", "x"),
            ("PATRONI_COMPLETELY_DIFFERENT", "x"),
            ("PATRONI_DEMO_SERVICE_HOST", "10.0.0.1"),
            ("PATRONI_DEMO_PORT_8008_TCP_ADDR", "10.0.0.1"),
            ("PATRONI_ETCD_PORT", "tcp://10.0.0.1:2379"),
            ("HOME", "/"),
        ]);
        assert_eq!(
            reading.warnings,
            [
                "PATRONI_COMPLETELY_DIFFERENT is not a known variable and is ignored",
                "PATRONI_ETCD3_HOST_S is not a known variable and is ignored; did you mean PATRONI_ETCD3_HOSTS?",
                "PATRONI_REPLICATON_PASSWORD is not a known variable and is ignored; did you mean PATRONI_REPLICATION_PASSWORD?",
                "PATRONI_admin_PASSWORD is ignored: users are not created from the environment since Patroni 4.0",
            ]
        );
        assert_eq!(
            reading.misspelt_store.as_deref(),
            Some("PATRONI_ETCD3_HOST_S")
        );
    }

    #[test]
    fn settings_do_not_leak_into_children() {
        let all = [
            ("PATH", "/bin"),
            ("PATRONI_SUPERUSER_PASSWORD", "x"),
            ("KUBERNETES_SERVICE_HOST", "x"),
            ("NOTIFY_SOCKET", "x"),
            ("PG_MALLOC_ARENA_MAX", "1"),
        ];
        let kept = filtered(all.iter().map(|(k, v)| ((*k).into(), (*v).into())));
        let names: Vec<_> = kept.iter().map(|(k, _)| k.to_str().unwrap()).collect();
        assert_eq!(names, ["PATH", "MALLOC_ARENA_MAX"]);
    }
}
