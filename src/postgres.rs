//! The local PostgreSQL: its processes, its files, and the few statements the agent runs in it (spec/postgres-management.md).
//!
//! Two halves that meet in [`Settings`]. The process half (`binaries`, `control`, `pidfile`, `process`, `ready`, `stop`, `promote`, `single_user`,
//! `sql`, `tls`, `observe`) starts, watches, queries and stops a server; it waits for events (pidfd, inotify, notifications
//! of the control file), never for a tool that polls. The configuration half writes files and builds data directories.
//!
//! Nothing here decides, reads the environment for settings, or talks to the store. There is no lock and no global: the
//! agent's one job and its observation call these functions.

pub mod binaries;
pub mod bootstrap;
pub mod changes;
pub mod citus;
pub mod clone;
pub mod conninfo;
pub mod control;
pub mod directory;
pub mod hooks;
pub mod inquire;
pub mod logical;
pub mod observe;
pub mod older_wal;
pub mod options;
pub mod params;
pub mod pidfile;
pub mod process;
pub mod promote;
pub mod quantity;
pub mod ready;
pub mod render;
pub mod rewind;
pub mod single_user;
pub mod slot_copy;
pub mod slots;
pub mod sql;
pub mod stop;
pub mod tls;
pub mod version_rules;
mod watch;
pub mod wire;
pub mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What the process and configuration halves need to know about this node's PostgreSQL; filled from the configuration.
///
/// Paths are absolute. Everything here is local to the node; GUCs and recovery settings come separately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `postgresql.data_dir`.
    pub data_dir: PathBuf,
    /// `postgresql.config_dir`; the data directory unless configured.
    pub config_dir: PathBuf,
    /// `postgresql.config_base_name`: the stem of `postgresql.conf`.
    pub config_base_name: String,
    /// `postgresql.bin_dir`; `None` = look the tools up in `PATH`.
    pub bin_dir: Option<PathBuf>,
    /// `postgresql.bin_name`: the tool's own name → the name it has here.
    pub bin_name: BTreeMap<String, String>,
    /// `postgresql.listen`: addresses, in order.
    pub listen_addresses: Vec<String>,
    /// `postgresql.listen`: port.
    pub port: u16,
    /// `parameters.unix_socket_directories`, split; `None` = not set (the server's compiled-in default applies).
    pub unix_socket_directories: Option<Vec<String>>,
    /// `postgresql.use_unix_socket`: superuser connections go through the socket.
    pub use_unix_socket: bool,
    /// `postgresql.use_unix_socket_repl`: local replication connections go through the socket.
    pub use_unix_socket_repl: bool,
    /// `postgresql.database`: where the agent connects.
    pub database: String,
    /// Administrative connections; may be without a name (then the operating system's user is used).
    pub superuser: Credentials,
    /// Replication connections.
    pub replication: Credentials,
    /// `authentication.rewind`; `None` = the superuser is used (also below 11).
    pub rewind: Option<Credentials>,
    /// `postgresql.pgpass`.
    pub pgpass: PathBuf,
    /// `postgresql.krbsrvname`.
    pub krbsrvname: Option<String>,
    /// `postgresql.pg_ctl_timeout`: how long a start may take.
    pub pg_ctl_timeout: Duration,
}

impl Settings {
    /// `<config_dir>/<config_base_name>.conf`.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.config_dir
            .join(format!("{}.conf", self.config_base_name))
    }

    /// The credentials for connections that rewind a node or read another node's files (spec §10.2: from 11 on).
    #[must_use]
    pub fn rewind_credentials(&self, version: crate::types::PgVersion) -> &Credentials {
        match &self.rewind {
            Some(rewind) if version.at_least(11) => rewind,
            _ => &self.superuser,
        }
    }

    /// The host of local TCP connections: `localhost` when an address covers it, else the first address
    /// (spec/configuration.md §3.3, "Connection addresses").
    #[must_use]
    pub fn local_tcp_host(&self) -> &str {
        const LOCAL: [&str; 4] = ["*", "localhost", "0.0.0.0", "127.0.0.1"];
        let covers = |address: &&String| LOCAL.contains(&address.as_str());
        match self.listen_addresses.iter().find(covers) {
            Some(_) => "localhost",
            None => self
                .listen_addresses
                .first()
                .map_or("localhost", String::as_str),
        }
    }

    /// Where superuser connections go.
    #[must_use]
    pub fn local_host(&self) -> LocalHost {
        self.pick_local_host(self.use_unix_socket)
    }

    /// Where local replication connections go.
    #[must_use]
    pub fn local_replication_host(&self) -> LocalHost {
        self.pick_local_host(self.use_unix_socket_repl)
    }

    fn pick_local_host(&self, unix: bool) -> LocalHost {
        let tcp = || LocalHost::Tcp(self.local_tcp_host().to_owned());
        if !unix {
            return tcp();
        }
        match &self.unix_socket_directories {
            None => LocalHost::DefaultSocket,
            Some(directories) => directories
                .iter()
                .find(|d| d.starts_with('/'))
                .map_or_else(tcp, |d| LocalHost::Socket(PathBuf::from(d))),
        }
    }
}

#[cfg(test)]
impl Settings {
    /// Settings that point nowhere.
    pub(crate) fn for_tests() -> Settings {
        Settings {
            data_dir: "/nonexistent/data".into(),
            config_dir: "/nonexistent/data".into(),
            config_base_name: "postgresql".to_owned(),
            bin_dir: Some("/usr/lib/postgresql/15/bin".into()),
            bin_name: BTreeMap::new(),
            listen_addresses: vec!["127.0.0.1".to_owned()],
            port: 5432,
            unix_socket_directories: None,
            use_unix_socket: false,
            use_unix_socket_repl: false,
            database: "postgres".to_owned(),
            superuser: Credentials::default(),
            replication: Credentials::default(),
            rewind: None,
            pgpass: "/nonexistent/pgpass".into(),
            krbsrvname: None,
            pg_ctl_timeout: Duration::from_secs(60),
        }
    }
}

/// How to reach the local server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalHost {
    /// TCP to this host name or address.
    Tcp(String),
    /// The socket in this directory.
    Socket(PathBuf),
    /// The socket in the directory the server was built with (`host` omitted in connection strings).
    DefaultSocket,
}

/// One entry of `postgresql.authentication` (spec/configuration.md §3.3). `None` = not configured.
#[derive(Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "libpq's own parameter names")]
pub struct Credentials {
    pub username: Option<String>,
    pub password: Option<String>,
    pub sslmode: Option<String>,
    pub sslcert: Option<String>,
    pub sslkey: Option<String>,
    pub sslpassword: Option<String>,
    pub sslrootcert: Option<String>,
    pub sslcrl: Option<String>,
    pub sslcrldir: Option<String>,
    pub gssencmode: Option<String>,
    pub channel_binding: Option<String>,
    pub sslnegotiation: Option<String>,
}

impl fmt::Debug for Credentials {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("sslmode", &self.sslmode)
            .finish_non_exhaustive()
    }
}
