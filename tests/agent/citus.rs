//! A coordinator and a worker group. Citus is not at hand here: an extension of its name stands in for it, with its table of nodes, the
//! functions that change it and nothing behind them, and a library of PostgreSQL's own under its library's name. What that cannot show
//! is said in ARCHITECTURE.md.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use howdah::clock;

use crate::cluster::{Cluster, Node, PATIENCE, PROGRAMS, wait_until};

/// What a program that looks for a file of PostgreSQL's expects relative to itself.
const LIBRARIES: &str = "usr/lib/postgresql/15/lib";
const SHARED: &str = "usr/share/postgresql/15";

/// PostgreSQL's programs in a tree of their own, in which there is an extension `citus`.
fn programs_with_the_stub(root: &Path) -> PathBuf {
    let tree = root.join("programs");
    let programs = tree.join(&PROGRAMS[1..]);
    fs::create_dir_all(&programs).unwrap();
    for program in entries(Path::new(PROGRAMS)) {
        fs::copy(&program, programs.join(program.file_name().unwrap())).unwrap();
    }
    let libraries = tree.join(LIBRARIES);
    link_all(&Path::new("/").join(LIBRARIES), &libraries);
    symlink("auto_explain.so", libraries.join("citus.so")).unwrap();
    let shared = Path::new("/").join(SHARED);
    link_all(&shared, &tree.join(SHARED));
    let extensions = tree.join(SHARED).join("extension");
    fs::remove_file(&extensions).unwrap();
    link_all(&shared.join("extension"), &extensions);
    fs::write(
        extensions.join("citus.control"),
        "default_version = '1.0'\n",
    )
    .unwrap();
    fs::write(
        extensions.join("citus--1.0.sql"),
        include_str!("citus/stub.sql"),
    )
    .unwrap();
    programs
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn link_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in entries(from) {
        symlink(&entry, to.join(entry.file_name().unwrap())).unwrap();
    }
}

/// The coordinator and the two members of the only worker group.
struct Groups {
    cluster: Cluster,
}

impl Groups {
    fn start() -> Groups {
        let mut cluster = Cluster::prepare(3);
        let root = cluster.nodes[0].dir.parent().unwrap().to_owned();
        let programs = programs_with_the_stub(&root);
        for (at, node) in cluster.nodes.iter_mut().enumerate() {
            let group = if at == 0 { "0" } else { "1" };
            for (name, value) in [
                ("PATRONI_CITUS_GROUP", group),
                ("PATRONI_CITUS_DATABASE", "app"),
                ("PATRONI_POSTGRESQL_BIN_DIR", programs.to_str().unwrap()),
            ] {
                node.environment.insert(name.to_owned(), value.to_owned());
            }
            node.start();
        }
        let groups = Groups { cluster };
        groups.await_workers();
        groups
    }

    fn coordinator(&self) -> &Node {
        &self.cluster.nodes[0]
    }

    fn workers(&self) -> &[Node] {
        &self.cluster.nodes[1..]
    }

    fn await_workers(&self) {
        wait_until("one worker leads, the other streams", PATIENCE, || {
            let workers = self.workers();
            self.coordinator().status_of("/health") == Some(200)
                && workers.iter().any(Node::is_primary)
                && workers.iter().any(Node::streams)
        });
    }

    /// The worker that leads, and the other one.
    fn leader_first(&self) -> (&Node, &Node) {
        let workers = self.workers();
        wait_until("a worker leads", PATIENCE, || {
            workers.iter().any(Node::is_primary)
        });
        if workers[0].is_primary() {
            (&workers[0], &workers[1])
        } else {
            (&workers[1], &workers[0])
        }
    }

    fn app(&self, statement: &str) -> String {
        let answer = self.coordinator().sql_in("app", statement);
        answer.unwrap_or_else(|error| panic!("{statement}: {error}"))
    }

    /// Waits until the table says exactly this: group, port and role in each line.
    #[track_caller]
    fn await_table(&self, wanted: &[(u32, &Node, &str)]) {
        let mut wanted: Vec<String> = wanted
            .iter()
            .map(|(group, node, role)| format!("{group}|127.0.0.1|{}|{role}", node.port))
            .collect();
        wanted.sort();
        let mut seen = Vec::new();
        let what = format!("the table says {wanted:?}");
        wait_until(&what, PATIENCE, || {
            let rows = self.coordinator().sql_in(
                "app",
                "SELECT groupid, nodename, nodeport, noderole FROM pg_dist_node",
            );
            let Ok(rows) = rows else { return false };
            let mut rows: Vec<String> = rows.lines().map(str::to_owned).collect();
            rows.sort();
            if rows != seen {
                println!("pg_dist_node: {rows:?}");
                seen.clone_from(&rows);
            }
            rows == wanted
        });
    }

    fn primary_row(&self) -> String {
        self.app("SELECT nodeid FROM pg_dist_node WHERE groupid = 1 AND noderole = 'primary'")
    }
}

/// Writes through the coordinator, as Citus does: looks up where the group's primary is and keeps that from changing until the write is
/// done.
struct Traffic {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<(String, Duration)>>,
}

impl Traffic {
    fn start(coordinator_port: u16) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut writes = Vec::new();
            while !told.load(Ordering::SeqCst) {
                let began = clock::now();
                let outcome = write_through(coordinator_port);
                writes.push((outcome, clock::now().since(began)));
            }
            writes
        });
        Traffic { stop, thread }
    }

    /// What each write said, and how long it took.
    fn finish(self) -> Vec<(String, Duration)> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

fn write_through(coordinator_port: u16) -> String {
    let script = format!(
        "BEGIN;\n\
         SELECT nodeport AS port FROM pg_dist_node WHERE groupid = 1 AND noderole = 'primary' FOR SHARE \\gset\n\
         \\setenv WORKER :port\n\
         \\! {PROGRAMS}/psql -XqAt -h 127.0.0.1 -p $WORKER -U postgres -d postgres -c \"INSERT INTO written VALUES (1) RETURNING 'written'\" 2>&1\n\
         COMMIT;\n"
    );
    let mut psql = Command::new(format!("{PROGRAMS}/psql"))
        .args(["-XqAt", "-v", "ON_ERROR_STOP=1"])
        .arg(format!(
            "host=127.0.0.1 port={coordinator_port} user=postgres dbname=app connect_timeout=2"
        ))
        .env("PGPASSWORD", "super")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = psql.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    let output = psql.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_worker_group_with_a_stub_in_place_of_citus() {
    let mut groups = Groups::start();
    what_bootstrap_leaves(&groups);
    let (old, new) = groups.leader_first();
    groups.await_table(&[
        (0, groups.coordinator(), "primary"),
        (1, old, "primary"),
        (1, new, "secondary"),
    ]);
    a_switchover_holds_the_traffic(&groups);
    a_restart_holds_the_traffic(&groups);
    its_slots_are_left_alone(&groups);
    a_promise_that_is_not_kept(&groups);
    a_failover(&mut groups);
}

fn what_bootstrap_leaves(groups: &Groups) {
    for node in &groups.cluster.nodes {
        for (setting, value) in [
            ("shared_preload_libraries", "citus"),
            ("wal_level", "logical"),
            ("max_prepared_transactions", "200"),
            ("citus.local_hostname", "localhost"),
        ] {
            assert_eq!(
                node.query(&format!("SHOW {setting}")),
                value,
                "{}",
                node.name
            );
        }
        let login = node.sql_in("app", "SELECT nodeid, authinfo FROM pg_dist_authinfo");
        assert_eq!(login.as_deref(), Ok("0|password=super"), "{}", node.name);
    }
    let calls = groups.app("SELECT call FROM citus_stub.calls ORDER BY number LIMIT 1");
    let port = groups.coordinator().port;
    assert_eq!(calls, format!("add {port} to 0 as primary"));
}

/// No write fails, because those that come meanwhile wait for the new primary.
fn a_switchover_holds_the_traffic(groups: &Groups) {
    let (old, new) = groups.leader_first();
    old.query("CREATE TABLE written (n int)");
    let row = groups.primary_row();
    let before = groups.app("SELECT max(number) FROM citus_stub.calls");
    let traffic = Traffic::start(groups.coordinator().port);
    let body = format!(
        r#"{{"leader": "{}", "candidate": "{}"}}"#,
        old.name, new.name
    );
    let answer = old.ask("POST", "/switchover", &body).expect("an answer");
    assert_eq!(answer.0, 200, "{}", answer.1);
    groups.await_workers();
    groups.await_table(&[
        (0, groups.coordinator(), "primary"),
        (1, new, "primary"),
        (1, old, "secondary"),
    ]);
    let writes = traffic.finish();
    assert!(new.is_primary());
    assert_eq!(groups.primary_row(), row, "shards refer to the row");
    assert_unharmed(&writes, "a switchover");
    let kept = new.query("SELECT count(*) FROM written");
    assert_eq!(kept, writes.len().to_string());

    // The moves that made it are one transaction, and their order is the one that never has two nodes at one place.
    let moves = groups.app(&format!(
        "SELECT call FROM citus_stub.calls WHERE transaction = (SELECT transaction FROM citus_stub.calls \
         WHERE number > {before} AND call LIKE '%-demoted:%' LIMIT 1) ORDER BY number"
    ));
    let moves: Vec<&str> = moves.lines().collect();
    let (from, to) = (old.port, new.port);
    assert_eq!(moves.len(), 3, "{moves:?}");
    assert_eq!(moves[0], format!("move {row} to 127.0.0.1-demoted:{from}"));
    assert!(
        moves[1].ends_with(&format!("to 127.0.0.1:{from}")),
        "{moves:?}"
    );
    assert_eq!(moves[2], format!("move {row} to 127.0.0.1:{to}"));
}

fn a_restart_holds_the_traffic(groups: &Groups) {
    let (leader, other) = groups.leader_first();
    let row = groups.primary_row();
    let traffic = Traffic::start(groups.coordinator().port);
    let answer = leader.ask("POST", "/restart", "{}");
    assert_eq!(answer, Some((200, "restarted successfully".to_owned())));
    groups.await_workers();
    assert_unharmed(&traffic.finish(), "a restart");
    assert_eq!(groups.primary_row(), row);
    groups.await_table(&[
        (0, groups.coordinator(), "primary"),
        (1, leader, "primary"),
        (1, other, "secondary"),
    ]);
}

fn assert_unharmed(writes: &[(String, Duration)], during: &str) {
    let longest = writes.iter().map(|(_, took)| *took).max().unwrap();
    println!(
        "{} writes through the coordinator during {during}, the longest took {} ms",
        writes.len(),
        longest.as_millis()
    );
    let failed: Vec<_> = writes
        .iter()
        .filter(|(said, _)| said != "written")
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}

fn its_slots_are_left_alone(groups: &Groups) {
    let own = "citus_shard_move_slot_1_10_3";
    for name in [own, "stray"] {
        groups.app(&format!(
            "SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
        ));
    }
    wait_until("a slot that nobody wants is dropped", PATIENCE, || {
        groups.app("SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'logical'") == own
    });
    groups.app(&format!("SELECT pg_drop_replication_slot('{own}')"));
}

/// A primary that says it stops and does not: its traffic is held for the time it has asked for, and goes on to it.
fn a_promise_that_is_not_kept(groups: &Groups) {
    let (leader, other) = groups.leader_first();
    let event = |who: &Node| {
        format!(
            r#"{{"type": "before_demote", "group": 1, "leader": "{}", "timeout": 3, "cooldown": 1}}"#,
            who.name
        )
    };
    let post = |who: &Node| {
        let answer = groups.coordinator().ask("POST", "/citus", &event(who));
        assert_eq!(answer, Some((200, "OK".to_owned())));
    };
    let waits = || {
        groups
            .coordinator()
            .sql_in(
                "app",
                "SET lock_timeout = 100; SELECT 1 FROM pg_dist_node WHERE groupid = 1 AND noderole = 'primary' FOR SHARE",
            )
            .is_err()
    };
    // Who does not lead has no say.
    post(other);
    assert!(!waits());
    post(leader);
    assert!(waits(), "the answer comes when the traffic waits");
    wait_until("the traffic goes on", PATIENCE, || !waits());
    groups.await_table(&[
        (0, groups.coordinator(), "primary"),
        (1, leader, "primary"),
        (1, other, "secondary"),
    ]);
}

/// Nobody has said goodbye.
fn a_failover(groups: &mut Groups) {
    let row = groups.primary_row();
    let dead = groups.leader_first().0.name.clone();
    let lost = |node: &&mut Node| node.name == dead;
    groups.cluster.nodes.iter_mut().find(lost).unwrap().kill();
    let alive = |node: &&Node| node.name != dead;
    let survivor = groups.workers().iter().find(alive).unwrap();
    groups.await_table(&[
        (0, groups.coordinator(), "primary"),
        (1, survivor, "primary"),
    ]);
    assert_eq!(groups.primary_row(), row);
    assert!(survivor.is_primary());
}
