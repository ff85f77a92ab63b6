//! A throw-away PostgreSQL: made in a temporary directory, on a free port, without fsync, gone with the value.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use howdah::postgres::process::{self, Postmaster};
use howdah::postgres::ready::{self, Readiness};
use howdah::postgres::{Credentials, Settings};
use rustix::process::{Gid, Signal, Uid};
use tempfile::TempDir;

/// One server.
pub(crate) struct Cluster {
    pub(crate) settings: Settings,
    pub(crate) arguments: Vec<String>,
    _directory: TempDir,
}

/// PostgreSQL refuses to run as root: the calling thread, and with it everything it starts, becomes the user `postgres`.
/// Credentials belong to a thread, so other tests do not notice; an ordinary user stays what it is.
pub(crate) fn drop_root() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd
        .lines()
        .find(|l| l.starts_with("postgres:"))
        .expect("a user named postgres");
    let ids: Vec<u32> = line
        .split(':')
        .skip(2)
        .take(2)
        .map(|n| n.parse().unwrap())
        .collect();
    let (uid, gid) = (Uid::from_raw(ids[0]), Gid::from_raw(ids[1]));
    rustix::thread::set_thread_groups(&[gid]).unwrap();
    rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
    rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
}

/// Where the programs are: `PATH`, else the highest version Debian has installed.
fn bin_dir() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let debian = fs::read_dir("/usr/lib/postgresql")
                .into_iter()
                .flatten()
                .flatten();
            let mut debian: Vec<_> = debian.map(|e| e.path().join("bin")).collect();
            debian.sort();
            std::env::split_paths(&path)
                .chain(debian.into_iter().rev())
                .find(|d| {
                    ["postgres", "initdb", "pg_controldata", "pg_waldump", "psql"]
                        .iter()
                        .all(|p| d.join(p).exists())
                })
                .expect("PostgreSQL's server programs, in PATH or /usr/lib/postgresql")
        })
        .clone()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(bin_dir().join(program))
        .args(arguments)
        .current_dir("/")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Cluster {
    fn at(make: impl FnOnce(&Path)) -> Cluster {
        let directory = tempfile::Builder::new()
            .prefix("howdah-pg-")
            .tempdir_in("/tmp")
            .unwrap();
        let data = directory.path().join("data");
        make(&data);
        let port = free_port();
        let credentials = Credentials {
            username: Some("postgres".to_owned()),
            password: Some("secret:\\ word".to_owned()),
            ..Credentials::default()
        };
        let settings = Settings {
            data_dir: data.clone(),
            config_dir: data.clone(),
            config_base_name: "postgresql".to_owned(),
            bin_dir: Some(bin_dir()),
            bin_name: BTreeMap::new(),
            listen_addresses: vec!["127.0.0.1".to_owned()],
            port,
            unix_socket_directories: Some(vec![directory.path().display().to_string()]),
            use_unix_socket: true,
            use_unix_socket_repl: false,
            database: "postgres".to_owned(),
            superuser: credentials.clone(),
            replication: credentials,
            rewind: None,
            pgpass: directory.path().join("pgpass"),
            krbsrvname: None,
            pg_ctl_timeout: Duration::from_secs(60),
        };
        let arguments = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            format!("unix_socket_directories={}", directory.path().display()),
            "cluster_name=batman: the \"test\"".to_owned(),
            "fsync=off".to_owned(),
            "wal_level=replica".to_owned(),
            "hot_standby=on".to_owned(),
        ];
        Cluster {
            settings,
            arguments: arguments.iter().map(|a| format!("--{a}")).collect(),
            _directory: directory,
        }
    }

    /// A place for a cluster that a test makes itself.
    pub(crate) fn empty() -> Cluster {
        Cluster::at(|_| {})
    }

    /// A fresh cluster, not started. Passwords are asked for on TCP, not on the socket.
    pub(crate) fn create() -> Cluster {
        Cluster::at(|data| {
            let pwfile = data.with_extension("pw");
            fs::write(&pwfile, "secret:\\ word\n").unwrap();
            run(
                "initdb",
                &[
                    "-D",
                    data.to_str().unwrap(),
                    "--no-sync",
                    "--username=postgres",
                    "--auth-local=trust",
                    "--auth-host=scram-sha-256",
                    "--no-locale",
                    "--pwfile",
                    pwfile.to_str().unwrap(),
                ],
            );
        })
    }

    /// A standby of a running cluster, not started.
    #[allow(dead_code, reason = "used by some of the test files")]
    pub(crate) fn standby_of(primary: &Cluster) -> Cluster {
        let source = primary.conninfo();
        let standby = Cluster::at(|data| {
            run(
                "pg_basebackup",
                &[
                    "--no-sync",
                    "-c",
                    "fast",
                    "-X",
                    "stream",
                    "-d",
                    &source,
                    "-D",
                    data.to_str().unwrap(),
                ],
            );
        });
        standby.configure(&format!(
            "primary_conninfo = '{} application_name=standby'\n",
            source.replace('\'', "''")
        ));
        fs::write(standby.settings.data_dir.join("standby.signal"), "").unwrap();
        standby
    }

    /// How others connect to it: through its socket.
    pub(crate) fn conninfo(&self) -> String {
        let sockets = self.settings.unix_socket_directories.as_ref().unwrap();
        format!(
            "user=postgres host={} port={}",
            sockets[0], self.settings.port
        )
    }

    /// Replaces the part of the configuration that tests change.
    pub(crate) fn configure(&self, lines: &str) {
        fs::write(self.settings.data_dir.join("postgresql.auto.conf"), lines).unwrap();
    }

    /// Starts it and waits until it accepts connections.
    pub(crate) async fn start(&self) -> Postmaster {
        let postmaster = process::start(&self.settings, &self.arguments).unwrap();
        let ready = tokio::time::timeout(
            Duration::from_secs(30),
            ready::wait(&self.settings, &postmaster),
        )
        .await;
        assert_eq!(ready, Ok(Readiness::Accepting));
        postmaster
    }

    /// Runs one statement with psql, independent of the code under test.
    pub(crate) fn psql(&self, statement: &str) -> String {
        let output = Command::new(bin_dir().join("psql"))
            .args([
                "-XAtq",
                "-d",
                &format!("{} dbname=postgres", self.conninfo()),
                "-c",
                statement,
            ])
            .current_dir("/")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for _ in 0..200 {
            let left = process::survivors(&self.settings);
            if left.is_empty() {
                return;
            }
            for process in left {
                let _ = process.signal(Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Waits for a condition, with a deadline.
#[allow(dead_code, reason = "used by some of the test files")]
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap_or_else(|_| panic!("never happened: {what}"));
}
