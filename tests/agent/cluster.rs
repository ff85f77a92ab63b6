//! Clusters of real daemons on loopback with the embedded store: started, asked, hurt and removed again.
//!
//! PostgreSQL refuses root, so the daemons run as `postgres` when the tests run as root. Everything of a cluster lies below one
//! temporary directory, by which its processes are found again at the end.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use howdah::clock;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::etcd::{Etcd, Wire};

/// PostgreSQL's programs.
pub(crate) const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";

/// How long anything that is not itself the measured thing may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// The timings of these clusters: short, and within the rule `loop_wait + 2 * retry_timeout <= ttl`.
pub(crate) const TTL: Duration = Duration::from_secs(5);
const TIMINGS: &str = "{ttl: 5, loop_wait: 1, retry_timeout: 2, maximum_lag_on_failover: 1048576, postgresql: {use_pg_rewind: true}}";

/// Waits for a condition; the only way to wait here.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let began = clock::now();
    while !condition() {
        assert!(
            clock::now().since(began) < limit,
            "not within {limit:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(25));
    }
}

/// A port that nobody uses, below those the kernel gives to outgoing connections: a node must find its own free again after a restart.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 10_000).unwrap_or_default();
    loop {
        let step = NEXT.fetch_add(1, Ordering::SeqCst);
        let port = 21_000 + (start + step) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// User and group of `postgres`, when this process may become it.
fn database_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .expect("there is a user postgres");
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

/// Gives a path to the user that the daemons run as.
pub(crate) fn give(path: &Path) {
    if let Some((uid, gid)) = database_user() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    }
}

fn as_database_user(command: &mut Command) -> &mut Command {
    if let Some((uid, gid)) = database_user() {
        command.uid(uid).gid(gid);
    }
    command
}

/// One member: its ports and directories, and its daemon while it runs.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) port: u16,
    pub(crate) rest: u16,
    raft: u16,
    pub(crate) environment: BTreeMap<String, String>,
    /// A program with its arguments that is started instead of our binary with its variables; it gets `environment` alone.
    pub(crate) program: Option<Vec<PathBuf>>,
    daemon: Option<Child>,
}

impl Node {
    fn new(number: usize, root: &Path) -> Node {
        let name = format!("n{number}");
        let dir = root.join(&name);
        fs::create_dir(&dir).unwrap();
        give(&dir);
        Node {
            name,
            dir,
            port: free_port(),
            rest: free_port(),
            raft: free_port(),
            environment: BTreeMap::new(),
            program: None,
            daemon: None,
        }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// What its daemon is started with, as a user would write it.
    fn variables(&self) -> BTreeMap<String, String> {
        let local = |port: u16| format!("127.0.0.1:{port}");
        let dir = self.dir.display();
        let mut variables: BTreeMap<String, String> = [
            ("SCOPE", "demo".to_owned()),
            ("NAME", self.name.clone()),
            ("POSTGRESQL_DATA_DIR", format!("{dir}/data")),
            ("POSTGRESQL_BIN_DIR", PROGRAMS.to_owned()),
            ("POSTGRESQL_LISTEN", local(self.port)),
            ("POSTGRESQL_CONNECT_ADDRESS", local(self.port)),
            ("POSTGRESQL_PGPASS", format!("{dir}/pgpass")),
            (
                "POSTGRESQL_LOCAL_PARAMETERS",
                format!("{{unix_socket_directories: '{dir}', fsync: 'off', shared_buffers: 16MB}}"),
            ),
            ("RESTAPI_LISTEN", local(self.rest)),
            ("RESTAPI_CONNECT_ADDRESS", local(self.rest)),
            ("RAFT_DATA_DIR", dir.to_string()),
            ("RAFT_SELF_ADDR", local(self.raft)),
            ("RAFT_PASSWORD", "raft".to_owned()),
            ("SUPERUSER_PASSWORD", "super".to_owned()),
            ("REPLICATION_PASSWORD", "replication".to_owned()),
            ("BOOTSTRAP_DCS", TIMINGS.to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (format!("PATRONI_{name}"), value))
        .collect();
        variables.extend(self.environment.clone());
        if variables.contains_key("PATRONI_ETCD3_PROXY") {
            variables.retain(|name, _| !name.starts_with("PATRONI_RAFT_"));
        }
        variables
    }

    pub(crate) fn start(&mut self) {
        assert!(self.daemon.is_none(), "{} is already started", self.name);
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        let (program, variables) = match &self.program {
            Some(program) => (program.clone(), self.environment.clone()),
            None => (
                vec![PathBuf::from(env!("CARGO_BIN_EXE_howdah"))],
                self.variables(),
            ),
        };
        let mut command = Command::new(&program[0]);
        command
            .args(&program[1..])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .envs(variables)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .current_dir(&self.dir);
        self.daemon = Some(as_database_user(&mut command).spawn().unwrap());
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn await_log(&self, text: &str) {
        wait_until(
            &format!("the log of {} says {text:?}", self.name),
            PATIENCE,
            || self.log().contains(text),
        );
    }

    fn pid(&self) -> Pid {
        let daemon = self.daemon.as_ref().expect("the daemon runs");
        Pid::from_child(daemon)
    }

    /// Signals the process that was started: the agent itself, or its init.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// The agent below an init.
    pub(crate) fn guarded_agent(&self) -> Pid {
        self.find_guarded_agent().expect("init has an agent")
    }

    pub(crate) fn find_guarded_agent(&self) -> Option<Pid> {
        let init = self.pid().as_raw_nonzero().get();
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
        let agent = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .find(|pid: &i32| {
                fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|comm| comm.trim() == "howdah")
            });
        Pid::from_raw(agent?)
    }

    pub(crate) fn postmaster(&self) -> Option<Pid> {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        let pid = file.lines().next()?.trim().parse().ok()?;
        fs::exists(format!("/proc/{pid}")).ok()?.then_some(())?;
        Pid::from_raw(pid)
    }

    /// Waits for the daemon's own end.
    #[track_caller]
    pub(crate) fn ended(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name.clone();
        let daemon = self.daemon.as_mut().expect("the daemon was started");
        wait_until(&format!("{name} ends"), limit, || {
            daemon.try_wait().unwrap().is_some()
        });
        let status = daemon.wait().unwrap();
        self.daemon = None;
        status
    }

    /// SIGTERM, and its status.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended(PATIENCE)
    }

    /// The machine is gone: nothing of this node runs on.
    pub(crate) fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // Postmaster first, so that it starts nothing new.
        if let Some(postmaster) = self.postmaster() {
            let _ = kill_process(postmaster, Signal::KILL);
        }
        wait_until("everything of the node is gone", PATIENCE, || {
            self.signal_all(Signal::KILL) == 0
        });
    }

    /// Signals every process of this node; how many there are.
    pub(crate) fn signal_all(&self, signal: Signal) -> usize {
        let dir = fs::canonicalize(&self.dir).unwrap_or(self.dir.clone());
        let everything: Vec<i32> = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid: &i32| {
                fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&dir))
            })
            .collect();
        for pid in &everything {
            let _ = kill_process(Pid::from_raw(*pid).unwrap(), signal);
        }
        everything.len()
    }

    /// One HTTP request; `None`: no answer.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], self.rest));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split_whitespace().nth(1)?.parse().ok()?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Some((status, body.to_owned()))
    }

    pub(crate) fn status_of(&self, path: &str) -> Option<u16> {
        self.ask("GET", path, "").map(|(status, _)| status)
    }

    pub(crate) fn is_primary(&self) -> bool {
        self.status_of("/primary") == Some(200)
    }

    /// `GET /patroni`.
    pub(crate) fn about(&self) -> Value {
        let answer = self.ask("GET", "/patroni", "");
        answer
            .and_then(|(_, body)| serde_json::from_str(&body).ok())
            .unwrap_or(Value::Null)
    }

    /// Runs SQL as superuser; the error is psql's.
    pub(crate) fn sql(&self, statement: &str) -> Result<String, String> {
        self.session().run(statement)
    }

    /// The same in this database.
    pub(crate) fn sql_in(&self, database: &str, statement: &str) -> Result<String, String> {
        self.session().run_in(database, statement)
    }

    /// The way to run SQL here, also on another thread.
    pub(crate) fn session(&self) -> Session {
        Session { port: self.port }
    }

    #[track_caller]
    pub(crate) fn query(&self, statement: &str) -> String {
        self.sql(statement)
            .unwrap_or_else(|error| panic!("{}: {statement}: {error}", self.name))
    }

    /// Streams, and has seen for itself that the start is over: Patroni ignores a changed setting until then.
    pub(crate) fn streams(&self) -> bool {
        let about = self.about();
        about["role"] == "replica"
            && about["replication_state"] == "streaming"
            && about["state"] == "running"
    }
}

/// Runs SQL on one member as superuser.
pub(crate) struct Session {
    port: u16,
}

impl Session {
    /// One statement in a connection of its own; the error is psql's.
    pub(crate) fn run(&self, statement: &str) -> Result<String, String> {
        self.run_in("postgres", statement)
    }

    /// The same in this database.
    pub(crate) fn run_in(&self, database: &str, statement: &str) -> Result<String, String> {
        let output = Command::new(format!("{PROGRAMS}/psql"))
            .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement])
            .arg(format!(
                "host=127.0.0.1 port={} user=postgres dbname={database} connect_timeout=2",
                self.port
            ))
            .env("PGPASSWORD", "super")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }
}

/// Members of one scope.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// Members with their directories, none started.
    pub(crate) fn prepare(count: usize) -> Cluster {
        let dir = tempfile::Builder::new()
            .prefix("howdah-agent-")
            .tempdir()
            .unwrap();
        give(dir.path());
        let root = fs::canonicalize(dir.path()).unwrap();
        let mut nodes: Vec<Node> = (1..=count).map(|number| Node::new(number, &root)).collect();
        let addresses: Vec<String> = nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.raft))
            .collect();
        for (at, node) in nodes.iter_mut().enumerate() {
            let others: Vec<&str> = (0..count)
                .filter(|other| *other != at)
                .map(|other| addresses[other].as_str())
                .collect();
            if !others.is_empty() {
                node.environment
                    .insert("PATRONI_RAFT_PARTNER_ADDRS".to_owned(), others.join(","));
            }
        }
        Cluster { nodes, _dir: dir }
    }

    /// A healthy cluster.
    pub(crate) fn start(count: usize) -> Cluster {
        Cluster::start_with(count, &[])
    }

    /// The same, with more variables for each member.
    pub(crate) fn start_with(count: usize, variables: &[(&str, &str)]) -> Cluster {
        let mut cluster = Cluster::prepare(count);
        for node in &mut cluster.nodes {
            for (name, value) in variables {
                node.environment
                    .insert((*name).to_owned(), (*value).to_owned());
            }
            node.start();
        }
        cluster.await_healthy();
        cluster
    }

    /// The same over etcd, with a way to it for each member.
    pub(crate) fn start_over(
        etcd: &Etcd,
        count: usize,
        variables: &[(&str, &str)],
    ) -> (Cluster, Vec<Wire>) {
        let mut cluster = Cluster::prepare(count);
        let mut wires = Vec::new();
        for node in &mut cluster.nodes {
            let wire = etcd.wire();
            let proxy = format!("http://127.0.0.1:{}", wire.port);
            wires.push(wire);
            node.environment
                .insert("PATRONI_ETCD3_PROXY".to_owned(), proxy);
            for (name, value) in variables {
                node.environment
                    .insert((*name).to_owned(), (*value).to_owned());
            }
            node.start();
        }
        cluster.await_healthy();
        (cluster, wires)
    }

    /// The index of the one who says that it leads.
    pub(crate) fn primary(&self) -> Option<usize> {
        self.nodes.iter().position(Node::is_primary)
    }

    #[track_caller]
    pub(crate) fn await_primary(&self) -> usize {
        wait_until("somebody leads", PATIENCE, || self.primary().is_some());
        self.primary().expect("somebody leads")
    }

    /// Waits until somebody other than `old` leads.
    #[track_caller]
    pub(crate) fn await_other(&self, old: usize, limit: Duration) -> usize {
        let mut new = old;
        wait_until("somebody else leads", limit, || {
            let found = (0..self.nodes.len()).find(|at| *at != old && self.nodes[*at].is_primary());
            new = found.unwrap_or(old);
            found.is_some()
        });
        new
    }

    /// One primary, and everybody else streams from it.
    #[track_caller]
    pub(crate) fn await_healthy(&self) {
        let running: Vec<usize> = (0..self.nodes.len())
            .filter(|at| self.nodes[*at].daemon.is_some())
            .collect();
        wait_until("one leads and the others stream", PATIENCE, || {
            self.primary().is_some_and(|leader| {
                // `/primary` follows the leader key alone.
                self.nodes[leader].status_of("/health") == Some(200)
                    && running
                        .iter()
                        .all(|at| *at == leader || self.nodes[*at].streams())
            })
        });
    }

    pub(crate) fn others(&self, than: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|at| *at != than).collect()
    }

    /// `POST /switchover`, asked of the leader; what it answers.
    #[track_caller]
    pub(crate) fn switchover(&self, to: usize) -> String {
        let leader = &self.nodes[self.await_primary()];
        let body = format!(
            r#"{{"leader": "{}", "candidate": "{}"}}"#,
            leader.name, self.nodes[to].name
        );
        let answer = leader.ask("POST", "/switchover", &body);
        let (status, text) = answer.expect("an answer");
        assert_eq!(status, 200, "{text}");
        text
    }

    /// `PATCH /config`.
    #[track_caller]
    pub(crate) fn configure(&self, change: &str) {
        self.configure_at(self.await_primary(), change);
    }

    /// The same, asked of this member.
    #[track_caller]
    pub(crate) fn configure_at(&self, at: usize, change: &str) {
        let answer = self.nodes[at].ask("PATCH", "/config", change);
        let (status, body) = answer.expect("an answer");
        assert_eq!(status, 200, "{body}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        if std::thread::panicking() || std::env::var_os("HOWDAH_TEST_LOGS").is_some() {
            for node in &self.nodes {
                let log = node.log();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(120)..].join("\n");
                println!("--- log of {}\n{tail}\n---", node.name);
            }
        }
    }
}
