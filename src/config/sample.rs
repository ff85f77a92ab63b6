//! `--generate-sample-config`: a commented configuration to start from (spec/configuration.md §8.2).
//!
//! Values come from the environment where it has them; what only the user can know is `#FIXME`.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::{Environment, Faults, env, validate, value, variables, yaml};
use crate::types::PgVersion;

/// What stands where only the user knows the value.
pub(super) const FIXME: &str = "#FIXME";

/// Sections in the order of the output; other top-level keys are not printed.
const ORDER: [&str; 18] = [
    "scope",
    "namespace",
    "name",
    "log",
    "restapi",
    "ctl",
    "citus",
    "consul",
    "etcd",
    "etcd3",
    "exhibitor",
    "kubernetes",
    "raft",
    "zookeeper",
    "bootstrap",
    "postgresql",
    "watchdog",
    "tags",
];

/// Why there is no sample.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// PostgreSQL's version decides some settings.
    #[error("Failed to get postgres version: {0}")]
    Version(String),
    /// The environment has faults.
    #[error(transparent)]
    Environment(#[from] Faults),
}

/// Makes the sample; asks the configured `postgres` program for its version.
///
/// # Errors
/// Faults in the environment, or no usable `postgres`.
pub fn generate(environment: &dyn Environment) -> Result<String, SampleError> {
    let given = given(environment)?;
    let text = |path: [&str; 2]| {
        given
            .get("postgresql")?
            .get(path[0])
            .and_then(|v| {
                if path[1].is_empty() {
                    Some(v)
                } else {
                    v.get(path[1])
                }
            })?
            .as_str()
            .map(str::to_owned)
    };
    let name = text(["bin_name", "postgres"]).unwrap_or_else(|| "postgres".to_owned());
    let directory = text(["bin_dir", ""])
        .filter(|d| !d.is_empty())
        .map(PathBuf::from)
        .or_else(|| environment.postgres_bin_dir());
    let program = directory.map_or_else(|| PathBuf::from(&name), |directory| directory.join(&name));
    let version = validate::postgres_version(&program).map_err(SampleError::Version)?;
    render(environment, version)
}

/// Everything the environment says, as a configuration.
pub(super) fn given(environment: &dyn Environment) -> Result<Map<String, Value>, Faults> {
    let mut faults = Vec::new();
    let reading = env::read(environment, &mut faults);
    if !faults.is_empty() {
        return Err(Faults(faults));
    }
    let mut given = reading.document.unwrap_or_default();
    value::patch(&mut given, &reading.settings);
    Ok(given)
}

/// The sample for a version of PostgreSQL; no trailing newline.
///
/// # Errors
/// Faults in the environment.
pub fn render(environment: &dyn Environment, version: PgVersion) -> Result<String, SampleError> {
    let mut config = template(environment, version);
    value::patch(&mut config, &given(environment)?);
    fill_dependent(&mut config, version);
    Ok(text(&config))
}

/// The text of a configuration in the order of the sample; no trailing newline.
pub(super) fn text(config: &Map<String, Value>) -> String {
    let mut text = String::new();
    for key in ORDER {
        let Some(section) = config.get(key) else {
            continue;
        };
        if section.is_object() {
            text.push('\n');
        }
        match (key, section) {
            ("bootstrap", Value::Object(bootstrap)) => text.push_str(&bootstrap_text(bootstrap)),
            _ => text.push_str(&yaml::emit(&json!({ key: section }))),
        }
    }
    text.trim_end().to_owned()
}

pub(super) fn template(environment: &dyn Environment, version: PgVersion) -> Map<String, Value> {
    let address = environment.host_address().map_or_else(
        || FIXME.to_owned(),
        |address| {
            super::HostPort {
                host: address.to_string(),
                port: None,
            }
            .to_string()
        },
    );
    let name = environment.host_name().unwrap_or_else(|| FIXME.to_owned());
    let log = |key: &str| {
        variables::by_key(&format!("log.{key}"))
            .and_then(env::preset)
            .unwrap_or(Value::Null)
    };
    let template = json!({
        "scope": FIXME,
        "name": name,
        "log": {"type": log("type"), "level": log("level"), "traceback_level": log("traceback_level"), "format": log("format"), "max_queue_size": log("max_queue_size")},
        "restapi": {"connect_address": format!("{address}:8008"), "listen": format!("{address}:8008")},
        "bootstrap": {"dcs": {
            "loop_wait": 10, "retry_timeout": 10, "ttl": 30,
            "postgresql": {
                "parameters": {
                    "hot_standby": "on", "max_connections": 100, "max_locks_per_transaction": 64, "max_prepared_transactions": 0,
                    "max_replication_slots": 10, "max_wal_senders": 10, "max_worker_processes": 8, "track_commit_timestamp": "off",
                    "wal_log_hints": "on",
                },
                "use_slots": true,
            },
        }},
        "postgresql": {
            "authentication": {
                "replication": {"username": "replicator", "password": FIXME},
                "superuser": {"username": "postgres", "password": FIXME},
            },
            "bin_dir": "",
            "connect_address": format!("{address}:5432"),
            "data_dir": FIXME,
            "listen": format!("{address}:5432"),
            "parameters": {"password_encryption": encryption(version)},
        },
        // Patroni's sample also has `nosync`, which its own check refuses beside `sync_priority`.
        "tags": {"failover_priority": 1, "sync_priority": 1, "noloadbalance": false, "clonefrom": true, "nostream": false},
    });
    let mut template = template.as_object().cloned().unwrap_or_default();
    let (keep, amount) = if version.at_least(13) {
        ("wal_keep_size", json!("128MB"))
    } else {
        ("wal_keep_segments", json!(8))
    };
    let wal_level = if version >= PgVersion(90_600) {
        "replica"
    } else {
        "hot_standby"
    };
    env::put(
        &mut template,
        &format!("bootstrap.dcs.postgresql.parameters.{keep}"),
        amount,
    );
    env::put(
        &mut template,
        "bootstrap.dcs.postgresql.parameters.wal_level",
        json!(wal_level),
    );
    if version.at_least(11) {
        env::put(
            &mut template,
            "postgresql.authentication.rewind",
            json!({"username": "rewind_user", "password": FIXME}),
        );
    }
    template
}

fn encryption(version: PgVersion) -> &'static str {
    if version.at_least(10) {
        "scram-sha-256"
    } else {
        "md5"
    }
}

/// What follows from values that the environment may have set.
fn fill_dependent(config: &mut Map<String, Value>, version: PgVersion) {
    let look = |path: &str| {
        let mut parts = path.split('.');
        let first = config.get(parts.next()?)?;
        parts
            .try_fold(first, |value, part| value.get(part))
            .cloned()
    };
    let user = look("postgresql.authentication.replication.username")
        .map_or_else(|| "replicator".to_owned(), |user| value::text(&user));
    let hints = look("bootstrap.dcs.postgresql.parameters.wal_log_hints")
        .and_then(|hints| value::parse_bool(&hints))
        .unwrap_or(false);
    let (has_hba, has_rewind) = (
        look("postgresql.pg_hba").is_some(),
        look("bootstrap.dcs.postgresql.use_pg_rewind").is_some(),
    );
    let method = encryption(version);
    if !has_hba {
        env::put(
            config,
            "postgresql.pg_hba",
            json!([
                format!("host all all all {method}"),
                format!("host replication {user} all {method}")
            ]),
        );
    }
    if !has_rewind {
        env::put(
            config,
            "bootstrap.dcs.postgresql.use_pg_rewind",
            Value::Bool(hints),
        );
    }
}

fn bootstrap_text(bootstrap: &Map<String, Value>) -> String {
    let mut text = String::from(
        "# Used once, by the node that creates the cluster; later changes here have no effect.\nbootstrap:\n\
         \x20 # Becomes the dynamic configuration of the whole cluster, kept in the store.\n\
         \x20 # Change it later with `howdah ctl edit-config` or PATCH /config.\n",
    );
    let mut ordered = bootstrap.clone();
    if let Some(Value::Object(dcs)) = bootstrap.get("dcs") {
        let first = ["loop_wait", "retry_timeout", "ttl"];
        let mut sorted: Map<String, Value> = first
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), dcs.get(*key)?.clone())))
            .collect();
        sorted.extend(
            dcs.iter()
                .filter(|(key, _)| !first.contains(&key.as_str()))
                .map(|(key, value)| (key.clone(), value.clone())),
        );
        let dcs = ordered
            .shift_remove("dcs")
            .map(|_| sorted)
            .unwrap_or_default();
        text.push_str(&indented(&yaml::emit(&json!({ "dcs": dcs }))));
    }
    if !ordered.is_empty() {
        text.push_str("  # How the new cluster is made.\n");
        text.push_str(&indented(&yaml::emit(&Value::Object(ordered))));
    }
    text
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FakeEnvironment;

    #[test]
    fn the_sample_is_yaml_that_the_schema_accepts() {
        let environment = FakeEnvironment::new(&[
            ("PATRONI_SCOPE", "demo"),
            ("PATRONI_ETCD3_HOSTS", "h:2379"),
            ("PATRONI_SUPERUSER_PASSWORD", "on"),
            ("PATRONI_REPLICATION_USERNAME", "rep"),
            ("PATRONI_TTL", "20"),
        ]);
        let text = render(&environment, PgVersion(170_000)).unwrap();
        assert!(
            !text.ends_with('\n')
                && text.starts_with("scope: demo\nname: host1\n\nlog:\n  type: plain\n"),
            "{text}"
        );
        let Value::Object(config) = yaml::parse(&text).unwrap() else {
            panic!("{text}")
        };
        assert_eq!(
            config["postgresql"]["authentication"]["superuser"]["password"],
            "on"
        );
        assert_eq!(
            config["postgresql"]["pg_hba"],
            json!([
                "host all all all scram-sha-256",
                "host replication rep all scram-sha-256"
            ])
        );
        assert_eq!(config["bootstrap"]["dcs"]["ttl"], 20);
        assert_eq!(
            config["bootstrap"]["dcs"]["postgresql"]["use_pg_rewind"],
            true
        );
        assert_eq!(
            config["bootstrap"]["dcs"]["postgresql"]["parameters"]["wal_keep_size"],
            "128MB"
        );
        let order: Vec<&str> = config.keys().map(String::as_str).collect();
        assert_eq!(
            order,
            [
                "scope",
                "name",
                "log",
                "restapi",
                "etcd3",
                "bootstrap",
                "postgresql",
                "tags"
            ]
        );
        let first: Vec<&str> = config["bootstrap"]["dcs"]
            .as_object()
            .unwrap()
            .keys()
            .take(3)
            .map(String::as_str)
            .collect();
        assert_eq!(first, ["loop_wait", "retry_timeout", "ttl"]);

        struct Nothing;
        impl validate::Probes for Nothing {
            fn connects(&self, address: &crate::config::HostPort) -> bool {
                address.port == Some(2379)
            }
            fn has_program(&self, _: Option<&std::path::Path>, _: &str) -> bool {
                true
            }
            fn postgres_major(&self, _: &std::path::Path) -> Option<String> {
                None
            }
        }
        assert_eq!(
            validate::check(&config, &Nothing, validate::Options::default()),
            Vec::<String>::new()
        );
    }

    #[test]
    fn old_versions() {
        let text = render(&FakeEnvironment::default(), PgVersion(90_500)).unwrap();
        for expected in [
            "wal_keep_segments: 8",
            "wal_level: hot_standby",
            "password_encryption: md5",
            "data_dir: '#FIXME'",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert!(!text.contains("rewind_user"));
    }

    #[test]
    fn without_a_server_there_is_none() {
        let environment = FakeEnvironment::new(&[("PATRONI_POSTGRESQL_BIN_DIR", "/nonexistent")]);
        let error = generate(&environment).unwrap_err().to_string();
        assert!(
            error.starts_with("Failed to get postgres version: /nonexistent/postgres: "),
            "{error}"
        );
    }
}
