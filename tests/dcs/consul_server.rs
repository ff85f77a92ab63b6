//! One real Consul server on free loopback ports, with and without TLS and access control.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::{Certificates, Process, free_port};

/// The token that may do everything where there is access control.
pub(crate) const MASTER: &str = "aaaaaaaa-0000-0000-0000-000000000001";

/// A server that keeps its data over a restart.
pub(crate) struct Consul {
    /// For the handles: HTTP, or HTTPS where there are certificates.
    port: u16,
    /// For the test itself: always HTTP.
    admin_port: u16,
    certificates: Option<Certificates>,
    configuration: Value,
    program: PathBuf,
    process: RefCell<Option<Process>>,
    directory: TempDir,
}

/// Debian's last package of it, unpacked. All stores share one thread: nobody waits while it is downloaded.
async fn binary() -> anyhow::Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dcs/fetch.sh");
    let output = tokio::process::Command::new(script)
        .args(["bullseye", "consul"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await?;
    ensure!(output.status.success(), "consul cannot be fetched");
    let folder = String::from_utf8(output.stdout)?;
    Ok(Path::new(folder.trim()).join("usr/bin/consul"))
}

impl Consul {
    /// `extra` is added to the server's configuration.
    pub(crate) async fn start(
        extra: Value,
        certificates: Option<Certificates>,
    ) -> anyhow::Result<Self> {
        let (admin_port, tls_port) = (free_port()?, free_port()?);
        let ports = |names: &[&str]| -> anyhow::Result<Value> {
            let mut ports = json!({ "http": admin_port, "https": -1, "dns": -1, "grpc": -1 });
            for name in names {
                ports[*name] = json!(free_port()?);
            }
            Ok(ports)
        };
        let mut configuration = json!({
            "server": true,
            "bootstrap": true,
            "node_name": "test",
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            // Its own lower limit is ten seconds.
            "session_ttl_min": "1s",
            "log_level": "WARN",
            "disable_update_check": true,
            // The cases of the suite are one client to it.
            "limits": { "http_max_conns_per_client": 5000 },
            "performance": { "raft_multiplier": 1 },
            "ports": ports(&["server", "serf_lan", "serf_wan"])?,
        });
        if let Some(certificates) = &certificates {
            configuration["ports"]["https"] = json!(tls_port);
            configuration["ca_file"] = json!(certificates.path("ca.pem"));
            configuration["cert_file"] = json!(certificates.path("server.pem"));
            configuration["key_file"] = json!(certificates.path("server.key"));
            configuration["verify_incoming_https"] = json!(true);
        }
        if let Some(extra) = extra.as_object() {
            for (key, value) in extra {
                configuration[key] = value.clone();
            }
        }
        let consul = Consul {
            port: if certificates.is_some() {
                tls_port
            } else {
                admin_port
            },
            admin_port,
            certificates,
            configuration,
            program: binary().await?,
            process: RefCell::new(None),
            directory: TempDir::new()?,
        };
        consul.run()?;
        consul.ready().await?;
        Ok(consul)
    }

    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let file = self.directory.path().join("consul.json");
        std::fs::write(&file, self.configuration.to_string())?;
        let log = std::fs::File::create(self.log())?;
        let mut command = Command::new(&self.program);
        command
            .arg("agent")
            .arg("-config-file")
            .arg(file)
            .arg("-data-dir")
            .arg(self.directory.path().join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let process = Process::of(&mut command).context("cannot start consul")?;
        *self.process.borrow_mut() = Some(process);
        Ok(())
    }

    /// Ends it as a power failure would.
    pub(crate) fn kill(&self) {
        self.process.borrow_mut().take();
    }

    /// Removes a stopped server's data.
    pub(crate) fn wipe(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_dir_all(self.directory.path().join("data"))?)
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("consul.log")
    }

    /// Waits until it serves a consistent read.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        for _ in 0..300 {
            if let Ok(answer) = self.ask("GET", "/v1/kv/none?consistent", "").await
                && answer.starts_with("HTTP/1.1 404")
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        anyhow::bail!("consul does not become ready: {log}")
    }

    /// `http(s)://host:port` for clients.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.certificates.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.address())
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn certificate(&self, name: &str) -> Option<PathBuf> {
        Some(self.certificates.as_ref()?.path(name))
    }

    /// A request without our code in between; the whole answer, head included.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let address = format!("127.0.0.1:{}", self.admin_port);
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(&address).await?;
            let length = body.len();
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: {address}\r\nX-Consul-Token: {MASTER}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, anyhow::Error>(answer)
        };
        tokio::time::timeout(Duration::from_secs(5), exchange).await?
    }

    /// The same, where only the body of a good answer matters.
    pub(crate) async fn json(&self, method: &str, path: &str, body: &str) -> anyhow::Result<Value> {
        let answer = self.ask(method, path, body).await?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        Ok(serde_json::from_str(body)?)
    }
}
