//! Settings: where they come from, what they mean, and all their faults at once (spec/configuration.md).
//!
//! [`Config::load`] reads files and environment into one typed, checked struct and touches nothing else. Dynamic
//! configuration (the store's `/config`) is [`dynamic::Dynamic`]; `effective` combines both into what PostgreSQL gets.
//! Nothing here talks to the store or to PostgreSQL.

pub mod address;
pub mod dynamic;
pub mod effective;
pub mod env;
pub mod generate;
mod layers;
mod reader;
pub mod sample;
pub mod secrets;
pub mod sections;
mod stores;
pub mod validate;
pub mod value;
pub mod variables;
pub mod yaml;

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use address::{HostPort, Listen};
pub use dynamic::Dynamic;
pub use effective::Effective;
pub use env::{Environment, FakeEnvironment, ProcessEnvironment};
pub use sections::{
    Authentication, BasicAuth, Bootstrap, Callbacks, Citus, Credentials, Ctl, Guard, LocalPostgres,
    Log, LogFormat, LogLevel, RestApi, ServerTokens, VerifyClient, Watchdog, WatchdogMode,
};
pub use stores::{Consul, DcsSection, Etcd, Exhibitor, Kubernetes, Raft, TlsFiles, Zookeeper};

use crate::cluster::Tags;
use crate::types::MemberName;
use reader::Reader;

/// The name that stands for "no synchronous standby" in strict mode; no member may have it.
pub const RESERVED_NAME: &str = "__patroni_strict_sync_replica_placeholder__";

/// Exit status for a configuration that cannot be used (EX_USAGE).
pub const EXIT_BAD_CONFIGURATION: u8 = 64;

/// A text that never shows in logs: `Debug` prints `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself, for the place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A raw map of settings; may hold secrets, therefore `Debug` prints only its keys.
#[derive(Clone, PartialEq, Default)]
pub struct Raw(pub Map<String, Value>);

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// One thing wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The variable, the key (with its file), or the file.
    pub name: String,
    /// What is wrong and what is expected.
    pub reason: String,
}

impl Fault {
    pub(crate) fn new(name: &str, reason: impl Into<String>) -> Self {
        Fault {
            name: name.to_owned(),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// Everything wrong with the configuration; prints one line each. Exit with [`EXIT_BAD_CONFIGURATION`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, fault) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// The checked local configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Name of the cluster.
    pub scope: String,
    /// Name of this member.
    pub name: MemberName,
    /// Part of the path in the store; see [`Config::base_path`].
    pub namespace: String,
    /// Whether init guards PostgreSQL with a software watchdog.
    pub guard: Guard,
    /// Log.
    pub log: Log,
    /// REST API.
    pub restapi: RestApi,
    /// Command line and this agent's own REST client.
    pub ctl: Ctl,
    /// PostgreSQL's local settings.
    pub postgresql: LocalPostgres,
    /// How a new cluster is made.
    pub bootstrap: Bootstrap,
    /// Hardware or kernel watchdog.
    pub watchdog: Watchdog,
    /// This member's tags.
    pub tags: Tags,
    /// Citus.
    pub citus: Option<Citus>,
    /// The store.
    pub dcs: DcsSection,
    /// What files and environment say, merged, without defaults.
    pub local: Raw,
}

/// A configuration and what it takes to read it again.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// To be logged once logging runs.
    pub warnings: Vec<String>,
    source: Source,
}

/// Where the configuration came from; the environment is read once and kept. Holds secrets.
#[derive(Clone)]
pub(crate) struct Source {
    sources: layers::Sources,
    host: Host,
    purpose: Purpose,
}

/// Who reads the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A member of the cluster: everything must be right.
    Member,
    /// The command line or a voting-only member of the store: `scope` may be missing (empty), passwords of PostgreSQL are
    /// not needed, and faults of sections that only a member uses do not count.
    Client,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("path", &self.sources.path)
            .finish_non_exhaustive()
    }
}

/// What defaults need to know about the host, asked once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    name: Option<String>,
    address: Option<String>,
    bin_dir: Option<PathBuf>,
    pgdata: Option<String>,
    home: Option<String>,
}

impl Loaded {
    /// Reads the files again under the same environment (SIGHUP, `POST /reload`).
    ///
    /// # Errors
    /// All faults; the caller keeps its old configuration.
    pub fn reload(&self) -> Result<Loaded, Faults> {
        let mut loaded = build(self.source.clone(), Vec::new())?;
        // Generated passwords are in no source; they stay.
        if loaded.config.postgresql.generate_passwords {
            let (new, old) = (
                &mut loaded.config.postgresql.authentication,
                &self.config.postgresql.authentication,
            );
            for (new, old) in [
                (&mut new.superuser, &old.superuser),
                (&mut new.replication, &old.replication),
            ] {
                if new.password.is_none() {
                    new.password.clone_from(&old.password);
                }
            }
        }
        Ok(loaded)
    }
}

impl Config {
    /// Reads and checks the whole configuration; changes nothing anywhere.
    ///
    /// `path` is the command line's file or directory. Without one, `PATRONI_CONFIGURATION` stands for it. Environment
    /// variables win over both.
    ///
    /// # Errors
    /// All faults together.
    pub fn load(path: Option<&Path>, environment: &dyn Environment) -> Result<Loaded, Faults> {
        Config::load_for(Purpose::Member, path, environment)
    }

    /// As [`Config::load`], for somebody else than a member.
    ///
    /// # Errors
    /// All faults together.
    pub fn load_for(
        purpose: Purpose,
        path: Option<&Path>,
        environment: &dyn Environment,
    ) -> Result<Loaded, Faults> {
        let mut faults = Vec::new();
        let reading = env::read(environment, &mut faults);
        let all = environment.variables();
        let named = |name: &str| all.get(name).filter(|text| !text.is_empty()).cloned();
        let host = Host {
            name: environment.host_name(),
            address: environment
                .host_address()
                .map(|address| address.to_string())
                // A client listens nowhere; it must not fail for want of an address.
                .or_else(|| (purpose == Purpose::Client).then(|| "localhost".to_owned())),
            bin_dir: environment.postgres_bin_dir(),
            pgdata: named("PGDATA"),
            home: named("HOME"),
        };
        let sources = layers::Sources {
            path: path.map(Path::to_owned),
            environment: reading,
        };
        build(
            Source {
                sources,
                host,
                purpose,
            },
            faults,
        )
    }

    /// `/namespace/scope` with runs of slashes collapsed (spec/dcs.md §1.1); the group of Citus is not part of it.
    #[must_use]
    pub fn base_path(&self) -> String {
        let joined = format!("{}/{}", self.namespace, self.scope);
        let parts: Vec<&str> = joined.split('/').filter(|part| !part.is_empty()).collect();
        format!("/{}", parts.join("/"))
    }

    /// The URL path of this member's REST API for the member key: `http(s)://host:port/patroni`.
    #[must_use]
    pub fn api_url(&self) -> String {
        let scheme = if self.restapi.certfile.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}/patroni", self.restapi.connect_address)
    }

    /// Whether other members may exist that must know the same passwords: any store but an embedded one without partners.
    #[must_use]
    pub fn may_have_other_members(&self) -> bool {
        !matches!(&self.dcs, DcsSection::Raft(raft) if raft.partner_addrs.is_empty())
    }
}

fn build(source: Source, mut faults: Vec<Fault>) -> Result<Loaded, Faults> {
    let layers = layers::merge(&source.sources, &mut faults);
    let mut reader = Reader::new(&layers);
    let config = sections::config(&mut reader, &source);
    faults.append(&mut reader.faults);
    let mut warnings = source.sources.environment.warnings.clone();
    if source.sources.path.is_some() && source.sources.environment.document.is_some() {
        warnings.push("PATRONI_CONFIGURATION is ignored: a configuration file is given".to_owned());
    }
    warnings.append(&mut reader.warnings);
    match config {
        Some(config) if faults.is_empty() => Ok(Loaded {
            config,
            warnings,
            source,
        }),
        _ => Err(Faults(faults)),
    }
}

/// The warning about initial settings that came too late: the cluster exists and has other values.
///
/// `wanted` is [`Bootstrap::from_environment`], `existing` the store's `/config`. `None` when nothing differs.
#[must_use]
pub fn ignored_bootstrap_settings(
    wanted: &Map<String, Value>,
    existing: &Map<String, Value>,
) -> Option<String> {
    let mut differing = Vec::new();
    collect_differences("", wanted, Some(existing), &mut differing);
    (!differing.is_empty()).then(|| {
        format!(
            "the cluster already exists, so these settings of the environment are not used: {}. Change them in the cluster with \
             `howdah ctl edit-config`, or make the environment agree",
            differing.join(", ")
        )
    })
}

fn collect_differences(
    prefix: &str,
    wanted: &Map<String, Value>,
    existing: Option<&Map<String, Value>>,
    found: &mut Vec<String>,
) {
    for (key, value) in wanted {
        let other = existing.and_then(|map| map.get(key));
        let path = format!("{prefix}{key}");
        match (value, other) {
            (Value::Object(inner), other) => collect_differences(
                &format!("{path}."),
                inner,
                other.and_then(Value::as_object),
                found,
            ),
            (value, Some(other)) if same_setting(value, other) => {}
            (value, Some(other)) => found.push(format!(
                "{path} = {} (the cluster has {})",
                shown(value),
                shown(other)
            )),
            (value, None) => {
                found.push(format!("{path} = {} (the cluster has none)", shown(value)))
            }
        }
    }
}

/// Equal as a setting: `on` and true, `2` and "2" are the same.
fn same_setting(left: &Value, right: &Value) -> bool {
    value::same(left, right)
        || (value::parse_bool(left).is_some()
            && value::parse_bool(left) == value::parse_bool(right))
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
