//! The store sections (spec/configuration.md §3.7): which one is used, and all its keys.
//!
//! Every section parses even where this build has no backend for it; the store's registry refuses later.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use super::reader::Reader;
use super::variables::STORE_SECTIONS;
use super::{Secret, Source, value};

/// The store in use.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "named after the stores")]
pub enum DcsSection {
    Consul(Consul),
    Etcd(Etcd),
    Etcd3(Etcd),
    Exhibitor(Exhibitor),
    Kubernetes(Kubernetes),
    Raft(Raft),
    Zookeeper(Zookeeper),
}

impl DcsSection {
    /// Patroni's name of the section.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            DcsSection::Consul(_) => "consul",
            DcsSection::Etcd(_) => "etcd",
            DcsSection::Etcd3(_) => "etcd3",
            DcsSection::Exhibitor(_) => "exhibitor",
            DcsSection::Kubernetes(_) => "kubernetes",
            DcsSection::Raft(_) => "raft",
            DcsSection::Zookeeper(_) => "zookeeper",
        }
    }
}

/// Files of a TLS client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// Trusted authorities.
    pub cacert: Option<PathBuf>,
    /// Client certificate.
    pub cert: Option<PathBuf>,
    /// Client key.
    pub key: Option<PathBuf>,
}

/// Sections `etcd` and `etcd3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// Base URLs in the order in which they are tried: `http://host:port`. From `proxy`, `url`, `hosts` or `host`.
    pub endpoints: Vec<String>,
    /// SRV discovery domain; tried first.
    pub srv: Option<String>,
    /// Suffix of the SRV service name.
    pub srv_suffix: Option<String>,
    /// `https` rather than `http`.
    pub https: bool,
    /// Use `endpoints` only, discover nothing.
    pub use_proxies: bool,
    /// User.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// TLS.
    pub tls: TlsFiles,
}

/// Section `consul`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consul {
    /// Base URL: `http://127.0.0.1:8500`.
    pub url: String,
    /// ACL token.
    pub token: Option<Secret>,
    /// Verify the certificate.
    pub verify: bool,
    /// TLS.
    pub tls: TlsFiles,
    /// Data centre.
    pub dc: Option<String>,
    /// `default`, `consistent` or `stale`.
    pub consistency: String,
    /// Checks of the session.
    pub checks: Vec<String>,
    /// Register the members.
    pub register_service: bool,
    /// Tags of the service.
    pub service_tags: Vec<String>,
    /// Interval of the check.
    pub service_check_interval: String,
    /// TLS server name of the check.
    pub service_check_tls_server_name: Option<String>,
}

/// Section `zookeeper`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zookeeper {
    /// Servers.
    pub hosts: Vec<String>,
    /// TLS.
    pub use_ssl: bool,
    /// Verify the certificate.
    pub verify: bool,
    /// TLS.
    pub tls: TlsFiles,
    /// Password of the key.
    pub key_password: Option<Secret>,
    /// Principal → permissions.
    pub set_acls: BTreeMap<String, Vec<String>>,
    /// Scheme → credential.
    pub auth_data: BTreeMap<String, Secret>,
}

/// Section `exhibitor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exhibitor {
    /// Exhibitor's hosts.
    pub hosts: Vec<String>,
    /// Its port.
    pub port: u16,
    /// Between polls.
    pub poll_interval: Duration,
    /// ZooKeeper's keys; `hosts` is empty.
    pub zookeeper: Zookeeper,
}

/// Section `kubernetes`.
#[derive(Debug, Clone, PartialEq)]
#[allow(
    missing_docs,
    reason = "the keys of the section; spec/configuration.md §3.7"
)]
pub struct Kubernetes {
    pub labels: BTreeMap<String, String>,
    pub scope_label: String,
    pub role_label: String,
    pub leader_label_value: String,
    pub follower_label_value: String,
    pub standby_leader_label_value: String,
    pub tmp_role_label: Option<String>,
    pub bootstrap_labels: BTreeMap<String, String>,
    pub namespace: String,
    pub context: String,
    pub use_endpoints: bool,
    pub pod_ip: Option<String>,
    /// `{name, port, protocol}` each.
    pub ports: Vec<Map<String, Value>>,
    pub bypass_api_service: bool,
    pub cacert: Option<PathBuf>,
    /// Besides 500, 503 and 504.
    pub retriable_http_codes: Vec<u16>,
}

/// Section `raft`: the embedded store.
#[derive(Debug, Clone, PartialEq)]
pub struct Raft {
    /// `host:port` of this member as the others see it.
    pub self_addr: String,
    /// `host:port` to listen on.
    pub bind_addr: String,
    /// The other members; empty = alone.
    pub partner_addrs: Vec<String>,
    /// Where the log lives.
    pub data_dir: PathBuf,
    /// Shared password.
    pub password: Option<Secret>,
    /// Shortest election timeout.
    pub min_timeout: Duration,
    /// Longest election timeout.
    pub max_timeout: Duration,
    /// A silent connection is lost after this.
    pub connection_timeout: Duration,
    /// Between heartbeats.
    pub append_entries_period: Duration,
    /// Between attempts to connect.
    pub connection_retry_time: Duration,
    /// A leader without a majority steps down after this.
    pub leader_fallback_timeout: Duration,
}

/// Reads the section in use. Without any, the environment alone gets an embedded store of one member.
pub(crate) fn section(
    reader: &mut Reader<'_>,
    source: &Source,
    parent_dir: Option<PathBuf>,
) -> Option<DcsSection> {
    // The old spelling: exhibitor inside zookeeper (§2.4).
    if reader.is_given("zookeeper.exhibitor") {
        return exhibitor(reader, "zookeeper.exhibitor").map(DcsSection::Exhibitor);
    }
    let present = STORE_SECTIONS.iter().find(|section| {
        reader
            .layers
            .local
            .get(**section)
            .is_some_and(|value| !value.is_null())
    });
    match present.copied() {
        Some("consul") => consul(reader).map(DcsSection::Consul),
        Some("etcd") => etcd(reader, "etcd").map(DcsSection::Etcd),
        Some("etcd3") => etcd(reader, "etcd3").map(DcsSection::Etcd3),
        Some("exhibitor") => exhibitor(reader, "exhibitor").map(DcsSection::Exhibitor),
        Some("kubernetes") => kubernetes(reader).map(DcsSection::Kubernetes),
        Some("zookeeper") => zookeeper(reader, "zookeeper", true).map(DcsSection::Zookeeper),
        Some(_) => raft(reader, source, parent_dir).map(DcsSection::Raft),
        None if reader.layers.from_file => {
            reader.fault(
                "configuration",
                format!("Can not find suitable configuration of distributed configuration store\nAvailable implementations: {}", STORE_SECTIONS.join(", ")),
            );
            None
        }
        None => match &source.sources.environment.misspelt_store {
            // Each member would otherwise become a cluster of its own.
            Some(name) => {
                reader.fault(
                    name,
                    "is not a known variable, and no other one names a store",
                );
                None
            }
            None => raft(reader, source, parent_dir).map(DcsSection::Raft),
        },
    }
}

fn tls(reader: &mut Reader<'_>, section: &str) -> TlsFiles {
    TlsFiles {
        cacert: reader.path(&format!("{section}.cacert")),
        cert: reader.path(&format!("{section}.cert")),
        key: reader.path(&format!("{section}.key")),
    }
}

/// `host[:port]` with the scheme before and the port behind; an own scheme is kept.
fn endpoint(scheme: &str, host: &str, port: u16) -> String {
    let host = host.trim().trim_matches(['\'', '"']);
    let (scheme, host) = host.split_once("://").unwrap_or((scheme, host));
    let host = host.trim_end_matches('/');
    match host.parse::<super::HostPort>() {
        Ok(address) => format!("{scheme}://{}", address.or_port(port)),
        Err(_) => format!("{scheme}://{host}"),
    }
}

/// Takes user and password out of a URL.
fn take_credentials(url: &str) -> (String, Option<(String, Option<Secret>)>) {
    let Some((scheme, rest)) = url.split_once("://") else {
        return (url.to_owned(), None);
    };
    let end = rest.find('/').unwrap_or(rest.len());
    let Some((user, host)) = rest[..end].rsplit_once('@') else {
        return (format!("{scheme}://{rest}"), None);
    };
    let (name, password) = match user.split_once(':') {
        Some((name, password)) => (name, Some(Secret::new(percent_decode(password)))),
        None => (user, None),
    };
    (
        format!("{scheme}://{host}{}", &rest[end..]),
        Some((percent_decode(name), password)),
    )
}

pub(super) fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail
            .get(..2)
            .and_then(|pair| std::str::from_utf8(pair).ok())
            .and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn etcd(reader: &mut Reader<'_>, section: &str) -> Option<Etcd> {
    let key = |name: &str| format!("{section}.{name}");
    let mut https = reader
        .word(&key("protocol"), &[("http", false), ("https", true)])
        .unwrap_or(false);
    let own_port = reader.is_given(&key("port"));
    let port = reader.port(&key("port")).unwrap_or(2379);
    let mut use_proxies = reader.boolean(&key("use_proxies")).unwrap_or(false);
    let mut username = reader.text(&key("username"));
    let mut password = reader.secret(&key("password"));
    let proxy = reader.text(&key("proxy"));
    use_proxies |= proxy.is_some();
    let srv = ["srv", "discovery_srv", "srv_domain"]
        .iter()
        .find_map(|name| reader.text(&key(name)));
    let tls = tls(reader, section);
    let scheme = if https { "https" } else { "http" };
    let endpoints = if let Some(url) = proxy.or_else(|| reader.text(&key("url"))) {
        let (url, credentials) = take_credentials(&url);
        // The user of the URL wins over the keys; without one in it the keys stay (§10 calls upstream's loss a defect).
        if let Some((name, secret)) = credentials {
            username = Some(name);
            password = secret;
        }
        https = url.starts_with("https://");
        vec![endpoint(scheme, &url, 2379)]
    } else if reader.get(&key("hosts")).is_some() {
        reader
            .texts(&key("hosts"))
            .unwrap_or_default()
            .iter()
            .map(|host| endpoint(scheme, host, port))
            .collect()
    } else if let Some(host) = reader.text(&key("host")) {
        let bare = host.parse::<super::HostPort>().map(|address| address.host);
        match bare {
            Ok(bare) if own_port => vec![endpoint(
                scheme,
                &super::HostPort {
                    host: bare,
                    port: Some(port),
                }
                .to_string(),
                port,
            )],
            _ => vec![endpoint(scheme, &host, port)],
        }
    } else {
        Vec::new()
    };
    if endpoints.is_empty() && srv.is_none() {
        reader.fault(section, "needs one of hosts, host, url, proxy, srv");
        return None;
    }
    Some(Etcd {
        endpoints,
        srv,
        srv_suffix: reader.text(&key("srv_suffix")),
        https,
        use_proxies,
        username,
        password,
        tls,
    })
}

fn consul(reader: &mut Reader<'_>) -> Option<Consul> {
    let tls = tls(reader, "consul");
    let scheme = reader
        .text("consul.scheme")
        .unwrap_or_else(|| "http".to_owned());
    let own_port = reader.port("consul.port");
    let url = match reader.text("consul.url") {
        Some(url) => endpoint(&scheme, &url, 8500),
        None => {
            let address = reader.address("consul.host")?;
            let port = own_port.or(address.port).unwrap_or(8500);
            format!(
                "{scheme}://{}",
                super::HostPort {
                    host: address.host,
                    port: Some(port)
                }
            )
        }
    };
    let words = [
        ("default", "default"),
        ("consistent", "consistent"),
        ("stale", "stale"),
    ];
    Some(Consul {
        url,
        token: reader.secret("consul.token"),
        verify: reader.boolean("consul.verify").unwrap_or(true),
        tls,
        dc: reader.text("consul.dc"),
        consistency: reader
            .word("consul.consistency", &words)
            .unwrap_or("default")
            .to_owned(),
        checks: reader.texts("consul.checks").unwrap_or_default(),
        register_service: reader.boolean("consul.register_service").unwrap_or(false),
        service_tags: reader.texts("consul.service_tags").unwrap_or_default(),
        service_check_interval: reader
            .text("consul.service_check_interval")
            .unwrap_or_else(|| "5s".to_owned()),
        service_check_tls_server_name: reader.text("consul.service_check_tls_server_name"),
    })
}

fn zookeeper(reader: &mut Reader<'_>, section: &str, own_hosts: bool) -> Option<Zookeeper> {
    let key = |name: &str| format!("{section}.{name}");
    let hosts = if own_hosts {
        reader.texts(&key("hosts")).unwrap_or_default()
    } else {
        Vec::new()
    };
    if own_hosts && hosts.is_empty() {
        reader.fault(&key("hosts"), "is required: the servers, host:port each");
        return None;
    }
    let mut set_acls = BTreeMap::new();
    for (principal, permissions) in reader.map(&key("set_acls")).unwrap_or_default() {
        let permissions = match &permissions {
            Value::Array(items) => items.iter().map(value::text).collect(),
            other => vec![value::text(other)],
        };
        const KNOWN: [&str; 6] = ["CREATE", "READ", "WRITE", "DELETE", "ADMIN", "ALL"];
        if let Some(unknown) = permissions
            .iter()
            .find(|permission: &&String| !KNOWN.contains(&permission.as_str()))
        {
            reader.fault(
                &key("set_acls"),
                format!("{unknown:?} is not one of {}", KNOWN.join(", ")),
            );
        }
        set_acls.insert(principal, permissions);
    }
    let auth_data = reader.text_map(&key("auth_data")).unwrap_or_default();
    Some(Zookeeper {
        hosts,
        use_ssl: reader.boolean(&key("use_ssl")).unwrap_or(false),
        verify: reader.boolean(&key("verify")).unwrap_or(true),
        tls: tls(reader, section),
        key_password: reader.secret(&key("key_password")),
        set_acls,
        auth_data: auth_data
            .into_iter()
            .map(|(scheme, credential)| (scheme, Secret::new(credential)))
            .collect(),
    })
}

fn exhibitor(reader: &mut Reader<'_>, section: &str) -> Option<Exhibitor> {
    let hosts = reader
        .texts(&format!("{section}.hosts"))
        .unwrap_or_default();
    let port = reader.port(&format!("{section}.port"));
    if hosts.is_empty() {
        reader.fault(&format!("{section}.hosts"), "is required");
    }
    if port.is_none() {
        reader.fault(&format!("{section}.port"), "is required");
    }
    Some(Exhibitor {
        hosts,
        port: port?,
        poll_interval: reader
            .seconds(&format!("{section}.poll_interval"))
            .unwrap_or(Duration::from_secs(300)),
        zookeeper: zookeeper(reader, section.split('.').next().unwrap_or(section), false)?,
    })
}

fn kubernetes(reader: &mut Reader<'_>) -> Option<Kubernetes> {
    let labels = reader.text_map("kubernetes.labels").unwrap_or_default();
    if labels.is_empty() {
        reader.fault(
            "kubernetes.labels",
            "is required: the labels of the cluster's objects",
        );
    }
    let use_endpoints = reader.boolean("kubernetes.use_endpoints").unwrap_or(false);
    let mut ports = Vec::new();
    match reader.get("kubernetes.ports") {
        Some(Value::Array(items)) => {
            for item in items {
                match item {
                    Value::Object(port) => ports.push(port.clone()),
                    _ => reader.fault(
                        "kubernetes.ports",
                        "each item must be a map with name, port and protocol",
                    ),
                }
            }
        }
        None => {}
        Some(_) => reader.fault("kubernetes.ports", "is not a list"),
    }
    let mut codes = Vec::new();
    for code in reader
        .texts("kubernetes.retriable_http_codes")
        .unwrap_or_default()
    {
        match code.parse::<u16>() {
            Ok(code) => codes.push(code),
            Err(_) => reader.fault(
                "kubernetes.retriable_http_codes",
                format!("{code:?} is not a status code"),
            ),
        }
    }
    // A top-level namespace that somebody gave wins (§2.4); its default must not.
    let own = if reader.is_given("namespace") {
        reader.text("namespace")
    } else {
        None
    };
    let namespace = own
        .or_else(|| reader.text("kubernetes.namespace"))
        .unwrap_or_else(|| "default".to_owned());
    let text = |reader: &mut Reader<'_>, name: &str, preset: &str| {
        reader
            .text(&format!("kubernetes.{name}"))
            .unwrap_or_else(|| preset.to_owned())
    };
    (!labels.is_empty()).then(|| Kubernetes {
        labels,
        scope_label: text(reader, "scope_label", "cluster-name"),
        role_label: text(reader, "role_label", "role"),
        leader_label_value: text(reader, "leader_label_value", "primary"),
        follower_label_value: text(reader, "follower_label_value", "replica"),
        standby_leader_label_value: text(reader, "standby_leader_label_value", "primary"),
        tmp_role_label: reader.text("kubernetes.tmp_role_label"),
        bootstrap_labels: reader
            .text_map("kubernetes.bootstrap_labels")
            .unwrap_or_default(),
        namespace,
        context: text(reader, "context", "kind-kind"),
        use_endpoints,
        pod_ip: reader.text("kubernetes.pod_ip"),
        ports,
        bypass_api_service: reader
            .boolean("kubernetes.bypass_api_service")
            .unwrap_or(false),
        cacert: reader.path("kubernetes.cacert"),
        retriable_http_codes: codes,
    })
}

/// Port of the embedded store where none is given.
const RAFT_PORT: u16 = 2222;

fn raft(reader: &mut Reader<'_>, source: &Source, parent_dir: Option<PathBuf>) -> Option<Raft> {
    let host = &source.host;
    let (self_addr, default_bind) = match reader.address("raft.self_addr") {
        Some(address) => (Some(address.or_port(RAFT_PORT).to_string()), None),
        None => match host.address.clone().or_else(|| host.name.clone()) {
            Some(host) => {
                let address = super::HostPort {
                    host,
                    port: Some(RAFT_PORT),
                };
                (
                    Some(address.to_string()),
                    Some(format!("0.0.0.0:{RAFT_PORT}")),
                )
            }
            None => {
                reader.fault(
                    "raft.self_addr",
                    "is required: this host has no address that others could reach",
                );
                (None, None)
            }
        },
    };
    let self_addr = self_addr?;
    let bind_addr = reader
        .address("raft.bind_addr")
        .map(|address| address.or_port(RAFT_PORT).to_string());
    let mut partner_addrs: Vec<String> = Vec::new();
    for partner in reader.texts("raft.partner_addrs").unwrap_or_default() {
        match partner.parse::<super::HostPort>() {
            Ok(address) => partner_addrs.push(address.or_port(RAFT_PORT).to_string()),
            Err(error) => reader.fault("raft.partner_addrs", error.to_string()),
        }
    }
    // One list for all members is convenient, so one's own address in it does no harm.
    partner_addrs.retain(|partner| *partner != self_addr);
    let mut seconds = |name: &str, preset: f64| {
        let given = reader.seconds(&format!("raft.{name}"));
        given.unwrap_or_else(|| Duration::from_secs_f64(preset))
    };
    let mut raft = Raft {
        bind_addr: bind_addr
            .or(default_bind)
            .unwrap_or_else(|| self_addr.clone()),
        self_addr,
        partner_addrs,
        data_dir: PathBuf::new(),
        password: None,
        min_timeout: seconds("min_timeout", 0.4),
        max_timeout: seconds("max_timeout", 1.4),
        connection_timeout: seconds("connection_timeout", 3.5),
        append_entries_period: seconds("append_entries_period", 0.1),
        connection_retry_time: seconds("connection_retry_time", 5.0),
        leader_fallback_timeout: seconds("leader_fallback_timeout", 30.0),
    };
    raft.password = reader.secret("raft.password");
    raft.data_dir = reader
        .path("raft.data_dir")
        .or_else(|| parent_dir.map(|dir| dir.join("raft")))
        .unwrap_or_else(|| PathBuf::from("raft"));
    raft_timeouts(reader, &raft);
    Some(raft)
}

/// The relations that the timeouts must keep (§3.7).
fn raft_timeouts(reader: &mut Reader<'_>, raft: &Raft) {
    let shown = |reader: &Reader<'_>, name: &str, value: Duration| {
        let given = reader.is_given(&format!("raft.{name}"));
        format!(
            "{name} ({:?}{})",
            value.as_secs_f64(),
            if given { "" } else { " (default)" }
        )
    };
    let period = raft.append_entries_period;
    let rules = [
        (
            "min_timeout",
            raft.min_timeout,
            "append_entries_period",
            period,
            raft.min_timeout > period * 3,
            "> 3 *",
        ),
        (
            "max_timeout",
            raft.max_timeout,
            "min_timeout",
            raft.min_timeout,
            raft.max_timeout > raft.min_timeout,
            ">",
        ),
        (
            "connection_timeout",
            raft.connection_timeout,
            "max_timeout",
            raft.max_timeout,
            raft.connection_timeout >= raft.max_timeout,
            ">=",
        ),
        (
            "leader_fallback_timeout",
            raft.leader_fallback_timeout,
            "append_entries_period",
            period,
            raft.leader_fallback_timeout > period,
            ">",
        ),
    ];
    for (left, left_value, right, right_value, holds, relation) in rules {
        if !holds {
            let left_shown = shown(reader, left, left_value);
            let right_shown = shown(reader, right, right_value);
            reader.fault(
                &format!("raft.{left}"),
                format!("{left_shown} must be {relation} {right_shown}"),
            );
        }
    }
}
