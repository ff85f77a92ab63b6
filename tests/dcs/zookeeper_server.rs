//! Real ZooKeeper servers on free loopback ports, with and without TLS.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::server::{Certificates, Process, free_port};

/// Where Debian's package libzookeeper-java puts what the server consists of; of several ways of logging the first one is taken.
const CLASSES: &str = "/usr/share/java/slf4j-simple.jar:/usr/share/java/*";
/// Password of the stores of keys, which Java wants to have one.
const PASSWORD: &str = "password";

/// A cluster of servers that keep their data over a restart.
pub(crate) struct Zookeeper {
    nodes: Vec<Node>,
    certificates: Option<Certificates>,
    directory: TempDir,
}

struct Node {
    /// For the handles: plain, or TLS where there are certificates.
    port: u16,
    /// For the test itself: always plain.
    admin_port: u16,
    peer_ports: [u16; 2],
    process: RefCell<Option<Process>>,
}

impl Zookeeper {
    pub(crate) async fn start(
        nodes: usize,
        certificates: Option<Certificates>,
    ) -> anyhow::Result<Self> {
        let nodes = (0..nodes)
            .map(|_| {
                let admin_port = free_port()?;
                Ok(Node {
                    port: if certificates.is_some() {
                        free_port()?
                    } else {
                        admin_port
                    },
                    admin_port,
                    peer_ports: [free_port()?, free_port()?],
                    process: RefCell::new(None),
                })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let zookeeper = Zookeeper {
            nodes,
            certificates,
            directory: TempDir::new()?,
        };
        for index in 0..zookeeper.nodes.len() {
            zookeeper.run(index)?;
        }
        zookeeper.ready().await?;
        Ok(zookeeper)
    }

    fn folder(&self, index: usize) -> PathBuf {
        self.directory.path().join(index.to_string())
    }

    fn configuration(&self, index: usize) -> anyhow::Result<String> {
        let folder = self.folder(index);
        let mut text = format!(
            "tickTime=500\ninitLimit=20\nsyncLimit=4\ndataDir={}\nclientPort={}\nadmin.enableServer=false\n4lw.commands.whitelist=*\n\
             maxClientCnxns=0\nmaxSessionTimeout=60000\nauthProvider.x=org.apache.zookeeper.server.auth.DigestAuthenticationProvider\n",
            folder.display(),
            self.nodes[index].admin_port,
        );
        if self.nodes.len() > 1 {
            for (number, node) in self.nodes.iter().enumerate() {
                let [peers, election] = node.peer_ports;
                writeln!(text, "server.{}=127.0.0.1:{peers}:{election}", number + 1)?;
            }
        }
        if let Some(certificates) = &self.certificates {
            writeln!(
                text,
                "secureClientPort={}\nserverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
                 ssl.keyStore.location={}\nssl.keyStore.password={PASSWORD}\nssl.keyStore.type=PKCS12\n\
                 ssl.trustStore.location={}\nssl.trustStore.password={PASSWORD}\nssl.trustStore.type=PKCS12\n\
                 authProvider.x509=org.apache.zookeeper.server.auth.X509AuthenticationProvider",
                self.nodes[index].port,
                self.key_store(certificates)?.display(),
                self.trust_store(certificates)?.display(),
            )?;
        }
        Ok(text)
    }

    /// Java reads PKCS12, which openssl writes.
    fn key_store(&self, certificates: &Certificates) -> anyhow::Result<PathBuf> {
        let store = self.directory.path().join("server.p12");
        let status = Command::new("openssl")
            .args([
                "pkcs12",
                "-export",
                "-passout",
                &format!("pass:{PASSWORD}"),
                "-in",
            ])
            .arg(certificates.path("server.pem"))
            .arg("-inkey")
            .arg(certificates.path("server.key"))
            .arg("-out")
            .arg(&store)
            .status()
            .context("openssl is needed")?;
        ensure!(status.success(), "openssl pkcs12: {status}");
        Ok(store)
    }

    fn trust_store(&self, certificates: &Certificates) -> anyhow::Result<PathBuf> {
        let store = self.directory.path().join("trust.p12");
        let _ = std::fs::remove_file(&store);
        let status = Command::new("keytool")
            .args([
                "-importcert",
                "-noprompt",
                "-alias",
                "ca",
                "-storetype",
                "PKCS12",
                "-storepass",
                PASSWORD,
            ])
            .arg("-file")
            .arg(certificates.path("ca.pem"))
            .arg("-keystore")
            .arg(&store)
            .stderr(Stdio::null())
            .status()
            .context("keytool is needed")?;
        ensure!(status.success(), "keytool: {status}");
        Ok(store)
    }

    pub(crate) fn run(&self, index: usize) -> anyhow::Result<()> {
        let folder = self.folder(index);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("myid"), (index + 1).to_string())?;
        let file = folder.join("zoo.cfg");
        std::fs::write(&file, self.configuration(index)?)?;
        let log = std::fs::File::create(folder.join("log"))?;
        let mut command = Command::new("java");
        command
            .args([
                "-Xmx128m",
                "-XX:TieredStopAtLevel=1",
                "-XX:+UseSerialGC",
                "-cp",
                CLASSES,
            ])
            .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
            .arg("-Dzookeeper.forceSync=no")
            .arg("-Djava.net.preferIPv4Stack=true")
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let process =
            Process::of(&mut command).context("cannot start ZooKeeper; is java installed?")?;
        *self.nodes[index].process.borrow_mut() = Some(process);
        Ok(())
    }

    /// Ends a server as a power failure would.
    pub(crate) fn kill(&self, index: usize) {
        self.nodes[index].process.borrow_mut().take();
    }

    /// Removes a stopped server's data.
    pub(crate) fn wipe(&self, index: usize) -> anyhow::Result<()> {
        Ok(std::fs::remove_dir_all(
            self.folder(index).join("version-2"),
        )?)
    }

    /// Waits until every running server serves.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        for (index, node) in self.nodes.iter().enumerate() {
            let mut tries = 0;
            while node.process.borrow().is_some() && self.mode(index).await.is_none() {
                tries += 1;
                let log =
                    std::fs::read_to_string(self.folder(index).join("log")).unwrap_or_default();
                ensure!(tries < 400, "zookeeper does not become ready: {log}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// `leader`, `follower` or `standalone`.
    pub(crate) async fn mode(&self, index: usize) -> Option<String> {
        let address = format!("127.0.0.1:{}", self.nodes[index].admin_port);
        let asking = async {
            let mut stream = TcpStream::connect(address).await.ok()?;
            stream.write_all(b"srvr").await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            answer
                .lines()
                .find_map(|line| line.strip_prefix("Mode: ").map(str::to_owned))
        };
        tokio::time::timeout(Duration::from_secs(2), asking)
            .await
            .ok()?
    }

    /// `host:port` of a server for its clients.
    pub(crate) fn address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[index].port)
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        (0..self.nodes.len())
            .map(|index| self.address(index))
            .collect()
    }

    /// `host:port` without TLS.
    pub(crate) fn admin_address(&self) -> String {
        format!("127.0.0.1:{}", self.nodes[0].admin_port)
    }

    pub(crate) fn certificate(&self, name: &str) -> Option<PathBuf> {
        Some(self.certificates.as_ref()?.path(name))
    }
}

/// Somebody else's hands: a few requests as bytes, so that no line of the code under test is in between.
pub(crate) struct Stranger {
    stream: TcpStream,
    number: i32,
}

impl Stranger {
    /// Connects on a session of its own.
    pub(crate) async fn connect(address: &str) -> anyhow::Result<Self> {
        Self::on_session(address, 0, [0; 16]).await
    }

    /// Connects on somebody's session: its password is made from its id (`ZooKeeperServer.generatePasswd`).
    pub(crate) async fn impostor(address: &str, session: i64) -> anyhow::Result<Self> {
        const SUPER_SECRET: i64 = 0xB341_5C00;
        const FACTOR: i64 = 0x5_DEEC_E66D;
        const MASK: i64 = (1 << 48) - 1;
        // java.util.Random
        let mut state = ((session ^ SUPER_SECRET) ^ FACTOR) & MASK;
        let mut password = [0; 16];
        for word in password.chunks_mut(4) {
            state = (state.wrapping_mul(FACTOR) + 0xB) & MASK;
            word.copy_from_slice(&u32::try_from(state >> 16)?.to_le_bytes());
        }
        Self::on_session(address, session, password).await
    }

    async fn on_session(address: &str, session: i64, password: [u8; 16]) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        let mut body = Vec::new();
        body.extend(0_i32.to_be_bytes());
        body.extend(0_i64.to_be_bytes());
        body.extend(30_000_i32.to_be_bytes());
        body.extend(session.to_be_bytes());
        body.extend(16_i32.to_be_bytes());
        body.extend(password);
        body.push(0);
        write(&mut stream, &body).await?;
        let answer = read(&mut stream).await?;
        ensure!(answer.get(8..16) != Some(&[0; 8]), "the session is refused");
        Ok(Stranger { stream, number: 0 })
    }

    /// The error of the answer, and its body.
    async fn ask(&mut self, opcode: i32, body: &[u8]) -> anyhow::Result<(i32, Vec<u8>)> {
        self.number += 1;
        let mut bytes = Vec::from(self.number.to_be_bytes());
        bytes.extend(opcode.to_be_bytes());
        bytes.extend(body);
        write(&mut self.stream, &bytes).await?;
        let answer = read(&mut self.stream).await?;
        let error = answer.get(12..16).context("short answer")?;
        Ok((i32::from_be_bytes(error.try_into()?), answer[16..].to_vec()))
    }

    fn text(text: &str) -> Vec<u8> {
        let mut bytes = Vec::from(u32::try_from(text.len()).unwrap().to_be_bytes());
        bytes.extend(text.as_bytes());
        bytes
    }

    async fn create(&mut self, path: &str, value: &str, ephemeral: bool) -> anyhow::Result<i32> {
        let mut body = [Self::text(path), Self::text(value)].concat();
        body.extend(1_i32.to_be_bytes());
        body.extend(31_i32.to_be_bytes());
        body.extend([Self::text("world"), Self::text("anyone")].concat());
        body.extend(i32::from(ephemeral).to_be_bytes());
        Ok(self.ask(1, &body).await?.0)
    }

    /// Creates a node in place of whatever is there, with its parents.
    pub(crate) async fn put(
        &mut self,
        path: &str,
        value: &str,
        ephemeral: bool,
    ) -> anyhow::Result<()> {
        for (at, _) in path.match_indices('/').skip(1) {
            self.create(&path[..at], "", false).await?;
        }
        let any = [Self::text(path), Vec::from((-1_i32).to_be_bytes())].concat();
        self.ask(2, &any).await?;
        let error = self.create(path, value, ephemeral).await?;
        ensure!(error == 0, "{path}: {error}");
        Ok(())
    }

    /// Value, version and owning session; `None`: no such node.
    pub(crate) async fn get(&mut self, path: &str) -> anyhow::Result<Option<(String, i32, i64)>> {
        let body = [Self::text(path), vec![0]].concat();
        let (error, answer) = self.ask(4, &body).await?;
        if error != 0 {
            return Ok(None);
        }
        let length = usize::try_from(i32::from_be_bytes(answer[..4].try_into()?)).unwrap_or(0);
        let stat = &answer[4 + length..];
        Ok(Some((
            String::from_utf8_lossy(&answer[4..4 + length]).into_owned(),
            i32::from_be_bytes(stat[32..36].try_into()?),
            i64::from_be_bytes(stat[44..52].try_into()?),
        )))
    }

    /// Ends this session, and every node it owns.
    pub(crate) async fn close(mut self) -> anyhow::Result<()> {
        self.ask(-11, &[]).await?;
        Ok(())
    }
}

async fn write(stream: &mut TcpStream, body: &[u8]) -> anyhow::Result<()> {
    let mut frame = Vec::from(u32::try_from(body.len())?.to_be_bytes());
    frame.extend(body);
    Ok(stream.write_all(&frame).await?)
}

async fn read(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let reading = async {
        let length = stream.read_u32().await?;
        let mut frame = vec![0; usize::try_from(length)?];
        stream.read_exact(&mut frame).await?;
        Ok::<_, anyhow::Error>(frame)
    };
    tokio::time::timeout(Duration::from_secs(5), reading).await?
}
