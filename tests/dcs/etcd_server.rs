//! Real etcd processes on free loopback ports, with and without TLS.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::server::{Certificates, free_port};

/// How a cluster of etcd is started.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) nodes: usize,
    pub(crate) certificates: Option<Certificates>,
    pub(crate) flags: Vec<&'static str>,
}

/// A cluster of etcd processes. They end with it.
pub(crate) struct Etcd {
    nodes: Vec<Node>,
    options: Options,
    directory: TempDir,
}

struct Node {
    /// For the handles: HTTP, or HTTPS where there are certificates.
    port: u16,
    /// For the test itself: always HTTP.
    admin_port: u16,
    peer_port: u16,
    process: RefCell<Option<Child>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.borrow_mut().take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Etcd {
    pub(crate) async fn start(options: Options) -> anyhow::Result<Self> {
        let etcd = Self::prepare(options)?;
        for index in 0..etcd.nodes.len() {
            etcd.run(index)?;
        }
        etcd.ready().await?;
        Ok(etcd)
    }

    /// Everything but the processes.
    pub(crate) fn prepare(options: Options) -> anyhow::Result<Self> {
        let nodes = (0..options.nodes.max(1))
            .map(|_| {
                Ok(Node {
                    port: free_port()?,
                    admin_port: free_port()?,
                    peer_port: free_port()?,
                    process: RefCell::new(None),
                })
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Etcd {
            nodes,
            options,
            directory: TempDir::new()?,
        })
    }

    pub(crate) fn run(&self, index: usize) -> anyhow::Result<()> {
        let node = &self.nodes[index];
        let scheme = if self.options.certificates.is_some() {
            "https"
        } else {
            "http"
        };
        let client = format!("{scheme}://127.0.0.1:{}", node.port);
        let peer = format!("http://127.0.0.1:{}", node.peer_port);
        let cluster: Vec<_> = self
            .nodes
            .iter()
            .enumerate()
            .map(|(index, node)| format!("n{index}=http://127.0.0.1:{}", node.peer_port))
            .collect();
        let log = std::fs::File::create(self.directory.path().join(format!("n{index}.log")))?;
        let mut command = Command::new("etcd");
        command
            .args(["--name", &format!("n{index}")])
            .arg("--data-dir")
            .arg(self.data(index))
            .args([
                "--listen-client-urls",
                &format!("{client},http://127.0.0.1:{}", node.admin_port),
            ])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--heartbeat-interval", "100", "--election-timeout", "1000"])
            .args(["--logger", "zap", "--log-level", "error"])
            .args(&self.options.flags)
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null());
        if let Some(certificates) = &self.options.certificates {
            command
                .arg("--cert-file")
                .arg(certificates.path("server.pem"))
                .arg("--key-file")
                .arg(certificates.path("server.key"))
                .arg("--trusted-ca-file")
                .arg(certificates.path("ca.pem"))
                .arg("--client-cert-auth");
        }
        let process = command
            .spawn()
            .context("cannot start etcd; is the binary installed?")?;
        *node.process.borrow_mut() = Some(process);
        Ok(())
    }

    /// Ends a node as a power failure would.
    pub(crate) fn kill(&self, index: usize) {
        if let Some(mut process) = self.nodes[index].process.borrow_mut().take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Removes a stopped node's data.
    pub(crate) fn wipe(&self, index: usize) {
        std::fs::remove_dir_all(self.data(index)).unwrap();
    }

    fn data(&self, index: usize) -> PathBuf {
        self.directory.path().join(format!("n{index}"))
    }

    /// Waits until every running node serves a linearizable read.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        for (index, node) in self.nodes.iter().enumerate() {
            if node.process.borrow().is_none() {
                continue;
            }
            let mut tries = 0;
            while !self.serves(index).await {
                tries += 1;
                let log = self.directory.path().join(format!("n{index}.log"));
                ensure!(
                    tries < 300,
                    "etcd does not become ready: {}",
                    std::fs::read_to_string(log).unwrap_or_default()
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// The server's own word for it needs a read that the whole cluster agrees on.
    async fn serves(&self, index: usize) -> bool {
        let address = self.admin_address(index);
        let asking = async {
            let mut stream = TcpStream::connect(address).await.ok()?;
            stream
                .write_all(b"GET /health HTTP/1.0\r\n\r\n")
                .await
                .ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            answer.contains(r#""health":"true""#).then_some(())
        };
        let answer = tokio::time::timeout(Duration::from_secs(2), asking).await;
        answer.is_ok_and(|healthy| healthy.is_some())
    }

    /// `host:port` of a node for its clients.
    pub(crate) fn address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[index].port)
    }

    /// `host:port` of a node without TLS.
    pub(crate) fn admin_address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[index].admin_port)
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        (0..self.nodes.len())
            .map(|index| self.address(index))
            .collect()
    }

    /// A client without our code in between.
    #[cfg(feature = "etcd3")]
    pub(crate) async fn admin_of(&self, index: usize) -> anyhow::Result<etcd_client::Client> {
        let url = format!("http://127.0.0.1:{}", self.nodes[index].admin_port);
        Ok(etcd_client::Client::connect([url], None).await?)
    }

    #[cfg(feature = "etcd3")]
    pub(crate) async fn admin_as(
        &self,
        user: &str,
        password: &str,
    ) -> anyhow::Result<etcd_client::Client> {
        let url = format!("http://127.0.0.1:{}", self.nodes[0].admin_port);
        let options = etcd_client::ConnectOptions::new()
            .with_user(user, password)
            .with_auto_token_refresh(true);
        Ok(etcd_client::Client::connect([url], Some(options)).await?)
    }

    pub(crate) fn certificate(&self, name: &str) -> Option<PathBuf> {
        Some(self.options.certificates.as_ref()?.path(name))
    }

    #[allow(dead_code, reason = "for looking at a failing case")]
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }
}
