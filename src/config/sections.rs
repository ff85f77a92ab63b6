//! The typed sections of the local configuration (spec/configuration.md §3.1–§3.6, §3.8–§3.10) and how they are read.
//!
//! Store sections are in `stores`. Reading collects faults; nothing here does I/O.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::reader::Reader;
use super::{Config, HostPort, Listen, Purpose, RESERVED_NAME, Raw, Secret, Source, stores, value};
use crate::cluster::Tags;
use crate::types::MemberName;

/// Whether init stops PostgreSQL when the agent misses its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// When the program is PID 1.
    Auto,
    /// Always: an init process is put before the agent.
    On,
    /// Never.
    Off,
}

/// Severity of log lines; Patroni's FATAL and CRITICAL are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Debug,
    Info,
    Warning,
    Error,
    Critical,
}

/// Form of the log (§3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogFormat {
    /// printf-style, `%(asctime)s …`.
    Plain(String),
    /// JSON records: (field, name it is shown under).
    Json(Vec<(String, String)>),
}

/// Section `log`.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// Form.
    pub format: LogFormat,
    /// Least severe level logged.
    pub level: LogLevel,
    /// Details of errors at every level (`false`: only at level DEBUG).
    pub traceback_at_error: bool,
    /// strftime; `None` = `YYYY-MM-DD HH:MM:SS,mmm`.
    pub dateformat: Option<String>,
    /// Fields added to JSON records.
    pub static_fields: Map<String, Value>,
    /// Records held.
    pub max_queue_size: usize,
    /// Directory of `patroni.log`; `None` = standard error.
    pub dir: Option<PathBuf>,
    /// Rotated files kept.
    pub file_num: u32,
    /// Bytes per file.
    pub file_size: u64,
    /// Mode of the file; `None` = by umask.
    pub mode: Option<u32>,
    /// Level per module.
    pub loggers: BTreeMap<String, LogLevel>,
    /// Leave out repeated heartbeat lines.
    pub deduplicate_heartbeat_logs: bool,
}

/// User and password of basic authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicAuth {
    /// User.
    pub username: String,
    /// Password.
    pub password: Secret,
}

/// Which requests need a client certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum VerifyClient {
    None,
    /// Unsafe requests.
    Optional,
    /// All.
    Required,
}

/// How much the `Server` header tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "Patroni's words")]
pub enum ServerTokens {
    Original,
    Minimal,
    ProductOnly,
}

/// Section `restapi`.
#[derive(Debug, Clone, PartialEq)]
pub struct RestApi {
    /// Host (`*` or empty = all) and port.
    pub listen: HostPort,
    /// Where others reach it; has a port.
    pub connect_address: HostPort,
    /// Credentials of unsafe requests.
    pub authentication: Option<BasicAuth>,
    /// Server certificate; `Some` = HTTPS.
    pub certfile: Option<PathBuf>,
    /// Server key.
    pub keyfile: Option<PathBuf>,
    /// Password of the key.
    pub keyfile_password: Option<Secret>,
    /// Authorities of client certificates.
    pub cafile: Option<PathBuf>,
    /// OpenSSL cipher list.
    pub ciphers: Option<String>,
    /// Client certificates.
    pub verify_client: VerifyClient,
    /// Who may send unsafe requests; empty = all.
    pub allowlist: Vec<String>,
    /// Members may.
    pub allowlist_include_members: bool,
    /// Headers of every answer.
    pub http_extra_headers: BTreeMap<String, String>,
    /// Headers of answers over TLS, besides the former.
    pub https_extra_headers: BTreeMap<String, String>,
    /// Backlog.
    pub request_queue_size: u32,
    /// `Server` header.
    pub server_tokens: ServerTokens,
    /// `/primary` needs PostgreSQL that takes writes; else the lock is enough, as in Patroni.
    pub primary_when_writable: bool,
}

/// Section `ctl`; credentials and authorities fall back to `restapi`'s.
#[derive(Debug, Clone, PartialEq)]
pub struct Ctl {
    /// Credentials.
    pub authentication: Option<BasicAuth>,
    /// Do not verify.
    pub insecure: bool,
    /// Authorities.
    pub cacert: Option<PathBuf>,
    /// Client certificate.
    pub certfile: Option<PathBuf>,
    /// Client key.
    pub keyfile: Option<PathBuf>,
    /// Password of the key.
    pub keyfile_password: Option<Secret>,
}

/// One user of PostgreSQL (§3.3).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// User; `None` = libpq's default.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// Other connection options by libpq's name: `sslmode`, `sslcert`, …; versions are filtered by the writer.
    pub options: BTreeMap<String, String>,
    /// `sslpassword`.
    pub sslpassword: Option<Secret>,
}

/// The three users.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Authentication {
    /// Administrative connections.
    pub superuser: Credentials,
    /// Replication connections.
    pub replication: Credentials,
    /// pg_rewind; `None` = superuser.
    pub rewind: Option<Credentials>,
}

/// Callback commands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "named after the actions")]
pub struct Callbacks {
    pub on_start: Option<String>,
    pub on_stop: Option<String>,
    pub on_restart: Option<String>,
    pub on_reload: Option<String>,
    pub on_role_change: Option<String>,
}

/// What is local to this node's PostgreSQL. Settings that dynamic configuration can change too are in
/// [`super::Config::local`] and come out of `effective`.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalPostgres {
    /// Where PostgreSQL listens.
    pub listen: Listen,
    /// Where others reach it.
    pub connect_address: HostPort,
    /// A proxy in front of it.
    pub proxy_address: Option<HostPort>,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Directory of the configuration files.
    pub config_dir: PathBuf,
    /// `postgresql` of `postgresql.conf`.
    pub config_base_name: String,
    /// Directory of the binaries; `None` = `PATH`.
    pub bin_dir: Option<PathBuf>,
    /// Renamed binaries.
    pub bin_name: BTreeMap<String, String>,
    /// Database of administrative connections.
    pub database: String,
    /// Password file.
    pub pgpass: PathBuf,
    /// Users.
    pub authentication: Authentication,
    /// Passwords of superuser and replication that are missing shall be generated (`secrets`).
    pub generate_passwords: bool,
}

impl LocalPostgres {
    /// The path of a binary: renamed by `bin_name`, in `bin_dir` or left to `PATH`.
    #[must_use]
    pub fn binary(&self, name: &str) -> PathBuf {
        let name = self.bin_name.get(name).map_or(name, String::as_str);
        self.bin_dir
            .as_ref()
            .map_or_else(|| PathBuf::from(name), |dir| dir.join(name))
    }

    /// `conn_url` of the member key (§3.3).
    #[must_use]
    pub fn conn_url(&self) -> String {
        format!("postgres://{}/{}", self.connect_address, self.database)
    }

    /// `proxy_url` of the member key.
    #[must_use]
    pub fn proxy_url(&self) -> Option<String> {
        self.proxy_address
            .as_ref()
            .map(|address| format!("postgres://{address}/{}", self.database))
    }

    /// The directory that holds the data directory; the embedded store and generated passwords live there too.
    #[must_use]
    pub fn parent_dir(&self) -> PathBuf {
        parent(&self.data_dir)
    }
}

/// Independent of a later change of the working directory.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn parent(data_dir: &Path) -> PathBuf {
    match data_dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Section `bootstrap` (§3.4).
#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrap {
    /// The whole initial dynamic configuration; always with explicit `ttl`, `loop_wait`, `retry_timeout`.
    pub dcs: Map<String, Value>,
    /// The part of `dcs` that the environment gave; see [`super::ignored_bootstrap_settings`].
    pub from_environment: Map<String, Value>,
    /// `initdb` or the name of a custom section that has a command.
    pub method: String,
    /// The custom section of `method`; `None` for initdb.
    pub custom: Option<Map<String, Value>>,
    /// initdb's options as given: strings and one-key maps.
    pub initdb: Vec<Value>,
    /// Lines appended to pg_hba.conf.
    pub pg_hba: Vec<String>,
    /// Command run once.
    pub post_bootstrap: Option<String>,
}

/// Use of the watchdog device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "Patroni's words")]
pub enum WatchdogMode {
    Off,
    Automatic,
    Required,
}

/// Section `watchdog` (§3.9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watchdog {
    /// Mode.
    pub mode: WatchdogMode,
    /// Device.
    pub device: PathBuf,
    /// Seconds before the end of the ttl; -1: half of it.
    pub safety_margin: i64,
    /// Driver.
    pub driver: String,
}

/// Section `citus` (§3.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Citus {
    /// 0 = coordinator.
    pub group: u32,
    /// Database.
    pub database: String,
}

/// Reads everything; `None` when something required is missing (a fault says what).
pub(crate) fn config(reader: &mut Reader<'_>, source: &Source) -> Option<Config> {
    let host = &source.host;
    if reader.layers.local.is_empty() {
        reader
            .warnings
            .push("nothing is configured: no file and no PATRONI_ variable".to_owned());
    }
    let scope = reader.text("scope");
    if scope.is_none() && source.purpose == Purpose::Member {
        let hint = if reader.layers.from_file {
            "scope"
        } else {
            "PATRONI_SCOPE"
        };
        reader.fault(hint, "is required: the name of the cluster");
    }
    let name = reader
        .text("name")
        .or_else(|| reader.text("postgresql.name"))
        .or_else(|| host.name.clone());
    if name.as_deref() == Some(RESERVED_NAME) {
        reader.fault(
            "name",
            format!("Node 'name' can't be set to '{RESERVED_NAME}'"),
        );
    }
    if name.is_none() {
        reader.fault("PATRONI_NAME", "is required: the name of this member");
    }
    let is_client = source.purpose == Purpose::Client;
    let restapi = rest_api(reader, host);
    let ctl = ctl(reader, restapi.as_ref());
    let checked = (reader.faults.len(), reader.warnings.len());
    let log = log(reader);
    let postgresql = postgres(reader, host);
    let tags = tags(reader);
    if is_client && postgresql.is_some() {
        reader.faults.truncate(checked.0);
        reader.warnings.truncate(checked.1);
    }
    let store = stores::section(
        reader,
        source,
        postgresql.as_ref().map(LocalPostgres::parent_dir),
    );
    let checked = (reader.faults.len(), reader.warnings.len());
    let bootstrap = bootstrap(reader, source, postgresql.as_ref());
    let watchdog = watchdog(reader);
    if is_client {
        reader.faults.truncate(checked.0);
        reader.warnings.truncate(checked.1);
    }
    let citus = citus(reader);
    for key in ["thread_pool_size", "restapi.thread_pool_size"] {
        reader.integer(key, i64::MIN, i64::MAX);
    }
    let guard = match reader
        .get("guard")
        .map(|guard| (value::parse_bool(guard), value::text(guard)))
    {
        Some((Some(true), _)) => Guard::On,
        Some((Some(false), _)) => Guard::Off,
        Some((None, word)) if word != "auto" => {
            reader.fault("guard", "must be auto, on or off");
            Guard::Auto
        }
        _ => Guard::Auto,
    };
    let mut config = Config {
        // A missing one is a fault already; going on finds the others.
        scope: scope.unwrap_or_default(),
        name: MemberName::new(name.unwrap_or_else(|| "unnamed".to_owned())).ok()?,
        namespace: reader.text("namespace")?,
        guard,
        log,
        restapi: restapi?,
        ctl,
        postgresql: postgresql?,
        bootstrap,
        watchdog,
        tags,
        citus,
        dcs: store?,
        local: Raw(reader.layers.local.clone()),
    };
    if !is_client {
        passwords(reader, &mut config);
    }
    if config.citus.is_some() {
        config
            .bootstrap
            .dcs
            .entry("synchronous_mode")
            .or_insert_with(|| json!("quorum"));
    }
    Some(config)
}

/// Passwords are generated only where no other member needs to know them. Who configures users in a file decides alone.
fn passwords(reader: &mut Reader<'_>, config: &mut Config) {
    if reader.layers.from_file {
        return;
    }
    let other_members = config.may_have_other_members();
    let kerberos = reader.is_given("postgresql.krbsrvname");
    let users = [
        (
            "superuser",
            "PATRONI_SUPERUSER_PASSWORD",
            &config.postgresql.authentication.superuser,
        ),
        (
            "replication",
            "PATRONI_REPLICATION_PASSWORD",
            &config.postgresql.authentication.replication,
        ),
    ];
    let mut generate = false;
    for (user, variable, credentials) in users {
        let by_other_means = kerberos || credentials.options.contains_key("sslcert");
        if credentials.password.is_some() || by_other_means {
            continue;
        }
        if other_members {
            reader.fault(
                variable,
                format!("is required: members of one cluster must know the same {user} password ({variable}_FILE reads it from a file)"),
            );
        } else {
            generate = true;
        }
    }
    config.postgresql.generate_passwords = generate;
}

const LEVELS: [(&str, LogLevel); 7] = [
    ("DEBUG", LogLevel::Debug),
    ("INFO", LogLevel::Info),
    ("WARN", LogLevel::Warning),
    ("WARNING", LogLevel::Warning),
    ("ERROR", LogLevel::Error),
    ("FATAL", LogLevel::Critical),
    ("CRITICAL", LogLevel::Critical),
];

fn log(reader: &mut Reader<'_>) -> Log {
    let json = reader
        .word("log.type", &[("plain", false), ("json", true)])
        .unwrap_or(false);
    let format = log_format(reader, json);
    let loggers: Vec<(String, Value)> = reader
        .map("log.loggers")
        .unwrap_or_default()
        .into_iter()
        .collect();
    let mut levels = BTreeMap::new();
    for (module, level) in loggers {
        let text = value::text(&level).to_uppercase();
        match LEVELS.iter().find(|(word, _)| *word == text) {
            Some((_, level)) => {
                levels.insert(module, *level);
            }
            None => reader.fault(
                "log.loggers",
                format!("{module}: {text:?} is not a log level"),
            ),
        }
    }
    Log {
        format,
        level: reader.word("log.level", &LEVELS).unwrap_or(LogLevel::Info),
        traceback_at_error: reader
            .word("log.traceback_level", &[("ERROR", true), ("DEBUG", false)])
            .unwrap_or(true),
        dateformat: reader.text("log.dateformat"),
        static_fields: reader.map("log.static_fields").unwrap_or_default(),
        max_queue_size: reader
            .unsigned("log.max_queue_size", 10_000_000)
            .unwrap_or(1000),
        dir: reader.path("log.dir"),
        file_num: reader.unsigned("log.file_num", 100_000).unwrap_or(4),
        file_size: reader
            .unsigned("log.file_size", i64::MAX)
            .unwrap_or(25_000_000),
        mode: reader.unsigned("log.mode", 0o777),
        loggers: levels,
        deduplicate_heartbeat_logs: reader
            .boolean("log.deduplicate_heartbeat_logs")
            .unwrap_or(false),
    }
}

fn log_format(reader: &mut Reader<'_>, json: bool) -> LogFormat {
    const DEFAULT: &str = "%(asctime)s %(levelname)s: %(message)s";
    let given = reader
        .get("log.format")
        .cloned()
        .unwrap_or_else(|| json!(DEFAULT));
    match given {
        Value::String(text) if !json => LogFormat::Plain(text),
        // A JSON log with a printf-style format takes the fields that it names.
        Value::String(text) => {
            let fields = text
                .split("%(")
                .skip(1)
                .filter_map(|rest| rest.split_once(')'))
                .map(|(field, _)| field.to_owned());
            let mut fields: Vec<String> = fields.collect();
            if fields.is_empty() {
                fields.push(text.trim().to_owned());
            }
            LogFormat::Json(
                fields
                    .into_iter()
                    .map(|field| (field.clone(), field))
                    .collect(),
            )
        }
        Value::Array(items) => {
            let mut fields = Vec::new();
            for item in &items {
                match item {
                    Value::String(field) => fields.push((field.clone(), field.clone())),
                    Value::Object(map) if map.len() == 1 => {
                        fields.extend(
                            map.iter()
                                .map(|(field, name)| (field.clone(), value::text(name))),
                        );
                    }
                    _ => reader.fault(
                        "log.format",
                        "each item must be a field name or one pair `field: name`",
                    ),
                }
            }
            if json {
                LogFormat::Json(fields)
            } else {
                let text: Vec<String> = fields
                    .iter()
                    .map(|(field, _)| format!("%({field})s"))
                    .collect();
                LogFormat::Plain(text.join(" "))
            }
        }
        _ => {
            reader.fault("log.format", "must be a text or a list of field names");
            LogFormat::Plain(DEFAULT.to_owned())
        }
    }
}

fn basic_auth(reader: &mut Reader<'_>, section: &str) -> Option<BasicAuth> {
    let (user_key, password_key) = (
        format!("{section}.authentication.username"),
        format!("{section}.authentication.password"),
    );
    match (reader.text(&user_key), reader.secret(&password_key)) {
        (Some(username), Some(password)) => Some(BasicAuth { username, password }),
        (None, None) => None,
        (Some(_), None) => {
            reader.fault(&user_key, format!("is given without {password_key}"));
            None
        }
        (None, Some(_)) => {
            reader.fault(&password_key, format!("is given without {user_key}"));
            None
        }
    }
}

/// An address that others can connect to, where the configuration names none.
fn connect_address(
    reader: &mut Reader<'_>,
    key: &str,
    listen_host: &str,
    port: u16,
    host: &super::Host,
) -> Option<HostPort> {
    if reader.get(key).is_some() {
        return reader.address(key).map(|address| address.or_port(port));
    }
    let wildcard = matches!(
        listen_host,
        "" | "*" | "0.0.0.0" | "::" | "localhost" | "127.0.0.1" | "::1"
    );
    let host = if wildcard {
        host.address.clone().or_else(|| host.name.clone())
    } else {
        Some(listen_host.to_owned())
    };
    match host {
        Some(host) => Some(HostPort {
            host,
            port: Some(port),
        }),
        None => {
            reader.fault(
                key,
                "is required: this host has no address that others could reach",
            );
            None
        }
    }
}

fn rest_api(reader: &mut Reader<'_>, host: &super::Host) -> Option<RestApi> {
    let listen = reader
        .address("restapi.listen")
        .map(|address| address.or_port(8008));
    let connect = listen.as_ref().and_then(|listen| {
        connect_address(
            reader,
            "restapi.connect_address",
            &listen.host,
            listen.port.unwrap_or(8008),
            host,
        )
    });
    let verify = [
        ("none", VerifyClient::None),
        ("optional", VerifyClient::Optional),
        ("required", VerifyClient::Required),
    ];
    let tokens = [
        ("original", ServerTokens::Original),
        ("minimal", ServerTokens::Minimal),
        ("productonly", ServerTokens::ProductOnly),
    ];
    let api = RestApi {
        listen: listen.unwrap_or(HostPort {
            host: String::new(),
            port: None,
        }),
        connect_address: connect.clone().unwrap_or(HostPort {
            host: String::new(),
            port: None,
        }),
        authentication: basic_auth(reader, "restapi"),
        certfile: reader.path("restapi.certfile"),
        keyfile: reader.path("restapi.keyfile"),
        keyfile_password: reader.secret("restapi.keyfile_password"),
        cafile: reader.path("restapi.cafile"),
        ciphers: reader.text("restapi.ciphers"),
        verify_client: reader
            .word("restapi.verify_client", &verify)
            .unwrap_or(VerifyClient::None),
        allowlist: reader.texts("restapi.allowlist").unwrap_or_default(),
        allowlist_include_members: reader
            .boolean("restapi.allowlist_include_members")
            .unwrap_or(false),
        http_extra_headers: reader
            .text_map("restapi.http_extra_headers")
            .unwrap_or_default(),
        https_extra_headers: reader
            .text_map("restapi.https_extra_headers")
            .unwrap_or_default(),
        request_queue_size: reader
            .unsigned("restapi.request_queue_size", 4096)
            .unwrap_or(5),
        server_tokens: reader
            .word("restapi.server_tokens", &tokens)
            .unwrap_or(ServerTokens::Original),
        primary_when_writable: reader
            .word(
                "restapi.primary_when",
                &[("lock", false), ("writable", true)],
            )
            .unwrap_or(false),
    };
    if api.keyfile.is_some() && api.certfile.is_none() {
        reader.fault("restapi.keyfile", "is given without restapi.certfile");
    }
    connect.map(|_| api)
}

fn ctl(reader: &mut Reader<'_>, restapi: Option<&RestApi>) -> Ctl {
    Ctl {
        authentication: basic_auth(reader, "ctl")
            .or_else(|| restapi.and_then(|api| api.authentication.clone())),
        insecure: reader.boolean("ctl.insecure").unwrap_or(false),
        cacert: reader
            .path("ctl.cacert")
            .or_else(|| restapi.and_then(|api| api.cafile.clone())),
        certfile: reader.path("ctl.certfile"),
        keyfile: reader.path("ctl.keyfile"),
        keyfile_password: reader.secret("ctl.keyfile_password"),
    }
}

/// Connection options besides name and passwords (§3.3).
const OPTIONS: [&str; 9] = [
    "sslmode",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "gssencmode",
    "channel_binding",
    "sslnegotiation",
];

fn credentials(reader: &mut Reader<'_>, key: &str) -> Credentials {
    let mut options = BTreeMap::new();
    for option in OPTIONS {
        if let Some(text) = reader.text(&format!("{key}.{option}")) {
            options.insert(option.to_owned(), text);
        }
    }
    Credentials {
        username: reader.text(&format!("{key}.username")),
        password: reader.secret(&format!("{key}.password")),
        sslpassword: reader.secret(&format!("{key}.sslpassword")),
        options,
    }
}

/// Users, in the present form or the one of old (§2.4): `postgresql.{superuser,replication,pg_rewind}`.
fn authentication(reader: &mut Reader<'_>) -> Authentication {
    let old = !reader.is_given("postgresql.authentication")
        && ["superuser", "replication", "pg_rewind"]
            .iter()
            .any(|user| reader.is_given(&format!("postgresql.{user}")));
    if old {
        let superuser = if reader.is_given("postgresql.superuser") {
            "postgresql.superuser"
        } else {
            "postgresql.pg_rewind"
        };
        return Authentication {
            superuser: credentials(reader, superuser),
            replication: credentials(reader, "postgresql.replication"),
            rewind: None,
        };
    }
    let key = "postgresql.authentication";
    let superuser = if !reader.is_given(&format!("{key}.superuser"))
        && reader.is_given("postgresql.pg_rewind")
    {
        "postgresql.pg_rewind".to_owned()
    } else {
        format!("{key}.superuser")
    };
    let rewind = reader
        .is_given(&format!("{key}.rewind"))
        .then(|| credentials(reader, &format!("{key}.rewind")));
    Authentication {
        superuser: credentials(reader, &superuser),
        replication: credentials(reader, &format!("{key}.replication")),
        rewind,
    }
}

fn postgres(reader: &mut Reader<'_>, host: &super::Host) -> Option<LocalPostgres> {
    let listen = reader
        .text("postgresql.listen")
        .and_then(|text| match Listen::from_str(&text) {
            Ok(listen) => Some(listen),
            Err(error) => {
                reader.fault("postgresql.listen", error.to_string());
                None
            }
        });
    let connect = listen.as_ref().and_then(|listen| {
        let first = listen.addresses.first().cloned().unwrap_or_default();
        connect_address(
            reader,
            "postgresql.connect_address",
            &first,
            listen.port,
            host,
        )
    });
    let proxy_address = reader.address("postgresql.proxy_address");
    let data_dir = reader.path("postgresql.data_dir").unwrap_or_else(|| {
        PathBuf::from(
            host.pgdata
                .clone()
                .unwrap_or_else(|| "/var/lib/postgresql/data".to_owned()),
        )
    });
    let data_dir = absolute(data_dir);
    for key in [
        "parameters",
        "parameters_primary",
        "parameters_replica",
        "parameters_standby_leader",
    ] {
        let key = format!("postgresql.{key}");
        if reader
            .get(&key)
            .is_some_and(|parameters| !parameters.is_object())
        {
            reader.fault(&key, format!("{key} is not a dictionary"));
        }
    }
    for option in ["use_unix_socket", "use_unix_socket_repl", "use_pg_rewind"] {
        reader.boolean(&format!("postgresql.{option}"));
    }
    Some(LocalPostgres {
        listen: listen?,
        connect_address: connect?,
        proxy_address,
        config_dir: reader
            .path("postgresql.config_dir")
            .map_or_else(|| data_dir.clone(), absolute),
        config_base_name: reader
            .text("postgresql.config_base_name")
            .unwrap_or_else(|| "postgresql".to_owned()),
        // A file that leaves `bin_dir` empty means PATH, as with Patroni; else the image's newest version is taken.
        bin_dir: if reader
            .layers
            .local
            .get("postgresql")
            .is_some_and(|p| p.get("bin_dir").is_some())
        {
            reader.path("postgresql.bin_dir")
        } else {
            host.bin_dir.clone()
        },
        bin_name: reader.text_map("postgresql.bin_name").unwrap_or_default(),
        database: reader
            .text("postgresql.database")
            .unwrap_or_else(|| "postgres".to_owned()),
        pgpass: reader
            .path("postgresql.pgpass")
            .unwrap_or_else(|| match &host.home {
                Some(home) => Path::new(home).join("pgpass"),
                None => parent(&data_dir).join("pgpass"),
            }),
        authentication: authentication(reader),
        generate_passwords: false,
        data_dir,
    })
}

fn bootstrap(
    reader: &mut Reader<'_>,
    source: &Source,
    postgresql: Option<&LocalPostgres>,
) -> Bootstrap {
    let from_environment = source
        .sources
        .environment
        .settings
        .get("bootstrap")
        .and_then(|bootstrap| bootstrap.get("dcs"))
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let configured_by_file = reader.layers.from_file;
    let mut dcs = reader.map("bootstrap.dcs").unwrap_or_default();
    for (key, reason) in super::dynamic::check(&dcs) {
        reader.fault(&format!("bootstrap.dcs.{key}"), reason);
    }
    super::dynamic::fill_timings(&mut dcs);
    if !configured_by_file {
        // Without pg_rewind a former primary would need a clone after every failover.
        let postgresql = dcs.entry("postgresql").or_insert_with(|| json!({}));
        if let Value::Object(map) = postgresql {
            map.entry("use_pg_rewind").or_insert(Value::Bool(true));
        }
    }
    let method = reader
        .text("bootstrap.method")
        .unwrap_or_else(|| "initdb".to_owned());
    let custom = reader
        .get(&format!("bootstrap.{method}"))
        .and_then(Value::as_object)
        .filter(|section| {
            method != "initdb" && section.get("command").is_some_and(value::is_truthy)
        })
        .cloned();
    if reader.get("bootstrap.users").is_some_and(value::is_truthy) {
        reader.warnings.push("bootstrap.users is ignored: creating users was removed in Patroni 4.0; use bootstrap.post_bootstrap".to_owned());
    }
    let initdb = match reader.get("bootstrap.initdb") {
        Some(Value::Array(items)) => items.clone(),
        Some(Value::Object(map)) => map
            .iter()
            .map(|(key, value)| json!({ key: value }))
            .collect(),
        None if !configured_by_file => vec![json!({"encoding": "UTF8"}), json!("data-checksums")],
        None => Vec::new(),
        Some(_) => {
            reader.fault("bootstrap.initdb", "must be a list or a map of options");
            Vec::new()
        }
    };
    let pg_hba = reader.lines("bootstrap.pg_hba").unwrap_or_else(|| {
        let user = postgresql
            .and_then(|p| p.authentication.replication.username.clone())
            .unwrap_or_else(|| "all".to_owned());
        if configured_by_file {
            Vec::new()
        } else {
            vec![
                format!("host replication {user} all scram-sha-256"),
                "host all all all scram-sha-256".to_owned(),
            ]
        }
    });
    Bootstrap {
        dcs,
        from_environment,
        method: if custom.is_some() {
            method
        } else {
            "initdb".to_owned()
        },
        custom,
        initdb,
        pg_hba,
        post_bootstrap: reader
            .text("bootstrap.post_bootstrap")
            .or_else(|| reader.text("bootstrap.post_init")),
    }
}

fn watchdog(reader: &mut Reader<'_>) -> Watchdog {
    let word = reader
        .get("watchdog.mode")
        .map(|mode| value::text(mode).to_lowercase())
        .unwrap_or_default();
    let mode = match word.as_str() {
        "off" | "disable" | "disabled" | "false" => WatchdogMode::Off,
        "auto" | "automatic" => WatchdogMode::Automatic,
        "require" | "required" => WatchdogMode::Required,
        other => {
            reader.warnings.push(format!(
                "watchdog.mode {other:?} is not off, automatic or required; the watchdog is off"
            ));
            WatchdogMode::Off
        }
    };
    Watchdog {
        mode,
        device: reader
            .path("watchdog.device")
            .unwrap_or_else(|| PathBuf::from("/dev/watchdog")),
        safety_margin: reader
            .integer("watchdog.safety_margin", -1, i64::MAX)
            .unwrap_or(5),
        driver: reader
            .text("watchdog.driver")
            .unwrap_or_else(|| "default".to_owned()),
    }
}

/// Tags (§3.10); unreadable values of known tags are dropped with a warning.
fn tags(reader: &mut Reader<'_>) -> Tags {
    let given = reader
        .layers
        .local
        .get("tags")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let mut tags = Tags::default();
    for (name, given) in given {
        if given.is_null() {
            continue;
        }
        let boolean = value::parse_bool(&given);
        let integer = value::parse_int(&given, None);
        let understood = match name.as_str() {
            "nofailover" => boolean.map(|value| tags.nofailover = Some(value)).is_some(),
            "failover_priority" => integer
                .map(|value| tags.failover_priority = Some(value))
                .is_some(),
            "nosync" => boolean.map(|value| tags.nosync = Some(value)).is_some(),
            "sync_priority" => integer
                .map(|value| tags.sync_priority = Some(value))
                .is_some(),
            "noloadbalance" => boolean.map(|value| tags.noloadbalance = value).is_some(),
            "clonefrom" => boolean.map(|value| tags.clonefrom = value).is_some(),
            "nostream" => boolean.map(|value| tags.nostream = value).is_some(),
            "replicatefrom" if !value::is_truthy(&given) => true,
            "replicatefrom" => MemberName::new(value::text(&given))
                .map(|value| tags.replicatefrom = Some(value))
                .is_ok(),
            _ => {
                tags.custom.insert(name.clone(), given.clone());
                true
            }
        };
        if !understood {
            reader.warnings.push(format!(
                "tag {name} has the unreadable value {} and is ignored",
                value::text(&given)
            ));
        }
    }
    let pairs = [
        (
            "nofailover",
            tags.nofailover,
            "failover_priority",
            tags.failover_priority,
        ),
        ("nosync", tags.nosync, "sync_priority", tags.sync_priority),
    ];
    for (boolean_name, boolean, priority_name, priority) in pairs {
        if let (Some(boolean), Some(priority)) = (boolean, priority)
            && boolean == (priority > 0)
        {
            let shown = value::text(&Value::Bool(boolean));
            reader.warnings.push(format!(
                "Conflicting configuration between {boolean_name}: {shown} and {priority_name}: {priority}. Defaulting to {boolean_name}: {shown}"
            ));
        }
    }
    tags
}

/// Only an integer group and a string database count (§2.4).
fn citus(reader: &mut Reader<'_>) -> Option<Citus> {
    let given = reader.get("citus")?;
    let group = given
        .get("group")
        .and_then(Value::as_u64)
        .and_then(|group| u32::try_from(group).ok());
    let database = given
        .get("database")
        .and_then(Value::as_str)
        .map(str::to_owned);
    match (group, database) {
        (Some(group), Some(database)) => Some(Citus { group, database }),
        _ => {
            reader
                .warnings
                .push("citus is ignored: it needs an integer group and a database".to_owned());
            None
        }
    }
}
