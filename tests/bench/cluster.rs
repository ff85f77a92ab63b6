//! `make bench`: how long things take and what they cost, measured from outside on real containers. Prints a table, writes it and
//! a JSON document to bench-results/. IMAGE names another image, RUNS the repetitions (5), ROWS a filter.
//!
//! Everything is a median. The clients connect to the members directly, so no proxy's check interval is in the numbers.

#![allow(
    missing_docs,
    reason = "a test program has no readers of its interface"
)]
#![allow(clippy::unwrap_used, reason = "a failed measurement is a failed run")]
#![allow(clippy::print_stdout, reason = "the table is the output")]
#![allow(dead_code, reason = "shares the harness of the stories, not all of it")]

#[path = "../containers/client.rs"]
mod client;
#[path = "../containers/cluster.rs"]
mod cluster;
mod crowd;
#[path = "../containers/docker.rs"]
mod docker;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use howdah::clock;
use howdah::types::Moment;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use client::{Recorder, longest_gap};
use cluster::{Cluster, Node, PATIENCE, Store};
use docker::{Container, Lab, docker, image, wait_until};

/// What one run of a row yields, in the row's unit.
type Row = (&'static str, &'static str, fn(usize) -> Vec<f64>);

const ROWS: [Row; 19] = [
    (
        "docker run until the first write, one member",
        "s",
        first_write,
    ),
    (
        "first member leads until both standbys stream",
        "s",
        standbys_stream,
    ),
    (
        "postmaster killed until a write anywhere",
        "s",
        postmaster_killed,
    ),
    (
        "planned switchover, longest time without a write",
        "s",
        switchover,
    ),
    (
        "leader's container killed until a write, ttl 5",
        "s",
        container_killed,
    ),
    (
        "leader's container killed until a write, ttl 5, raft",
        "s",
        container_killed_raft,
    ),
    (
        "leader's container killed until a write, ttl 5, consul",
        "s",
        container_killed_consul,
    ),
    (
        "leader's container killed until a write, ttl 5, etcd v2",
        "s",
        container_killed_etcd2,
    ),
    (
        "leader's container killed until a write, ttl 5, zookeeper",
        "s",
        container_killed_zookeeper,
    ),
    (
        "leader's key gone until a write, ttl 30",
        "s",
        after_the_key,
    ),
    ("memory of the idle leader without PostgreSQL", "MB", memory),
    (
        "processor time of the idle leader without PostgreSQL",
        "ms/min",
        processor_time,
    ),
    ("image", "MB", image_size),
    ("image above base and PostgreSQL", "MB", image_own_size),
    (
        "GET /primary, 64 clients, a connection each",
        "1/s",
        rest_rate,
    ),
    (
        "GET /primary, 64 clients, 99 of 100 within",
        "ms",
        rest_slowest,
    ),
    (
        "GET /primary, 64 clients that keep their connection",
        "1/s",
        rest_kept_rate,
    ),
    (
        "slowest health check in a crowd of 10,000, over TLS",
        "ms",
        rest_crowd_slowest,
    ),
    (
        "memory of the member in a crowd of 10,000, over TLS",
        "MB",
        rest_crowd_memory,
    ),
];

fn main() {
    let setting = |name: &str| std::env::var_os(name).and_then(|value| value.into_string().ok());
    let runs = setting("RUNS")
        .and_then(|text| text.parse().ok())
        .unwrap_or(5);
    let filter = setting("ROWS").unwrap_or_default();
    let mut rows = Vec::new();
    println!("image {}, medians of {runs}\n", image());
    for (name, unit, measure) in ROWS.into_iter().filter(|(name, ..)| name.contains(&filter)) {
        let mut values = measure(runs);
        values.sort_by(f64::total_cmp);
        let Some(median) = values.get(values.len() / 2).copied() else {
            println!("| {name} | not measurable with this image |");
            continue;
        };
        println!(
            "| {name} | {median:.2} {unit} | {:.2} … {:.2} |",
            values[0],
            values[values.len() - 1]
        );
        rows.push(json!({"row": name, "unit": unit, "median": median, "values": values}));
    }
    save(&image(), runs, &rows);
}

fn save(image: &str, runs: usize, rows: &[Value]) {
    let slug: String = image
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    fs::create_dir_all("bench-results").unwrap();
    let document = json!({"image": image, "runs": runs, "at_ms": clock::wall().0, "rows": rows});
    fs::write(
        format!("bench-results/{slug}.json"),
        format!("{document:#}\n"),
    )
    .unwrap();
    let mut table = format!(
        "Image {image}, medians of {runs}\n\n| what | median | from … to |\n| --- | --- | --- |\n"
    );
    for row in rows {
        let values: Vec<f64> = row["values"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_f64)
            .collect();
        let (first, last) = (values[0], values[values.len() - 1]);
        let (name, unit) = (row["row"].as_str().unwrap(), row["unit"].as_str().unwrap());
        table.push_str(&format!(
            "| {name} | {:.2} {unit} | {first:.2} … {last:.2} |\n",
            row["median"].as_f64().unwrap()
        ));
    }
    fs::write(format!("bench-results/{slug}.md"), table).unwrap();
    println!("\nkept as bench-results/{slug}.json and .md");
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

fn first_write(runs: usize) -> Vec<f64> {
    let password = "bench-secret";
    let measure = |_| {
        let lab = Lab::new("bench-first");
        let secret = format!("PATRONI_SUPERUSER_PASSWORD={password}");
        let begin = clock::now();
        let options = [
            "-e",
            "PATRONI_SCOPE=b",
            "-e",
            "PATRONI_NAME=one",
            "-e",
            &secret,
            "-e",
            "PATRONI_REPLICATION_PASSWORD=r",
        ];
        let container = lab.run("one", &image(), &options, &[]);
        let node = Node {
            container,
            password: password.to_owned(),
        };
        wait_until("the first write", PATIENCE, || {
            node.sql("create table t (v int)").is_ok()
        });
        seconds(clock::now().since(begin))
    };
    (0..runs).map(measure).collect()
}

fn standbys_stream(runs: usize) -> Vec<f64> {
    let measure = |_| {
        let cluster = Cluster::start_without_waiting("bench-clone", Store::Etcd, 3, &[]);
        cluster.primary();
        let begin = clock::now();
        cluster.await_healthy();
        seconds(clock::now().since(begin))
    };
    (0..runs).map(measure).collect()
}

/// Harms a three-member cluster again and again; the time from the harm to the next write that anybody takes.
fn harmed(
    runs: usize,
    story: &str,
    store: Store,
    extra: &[&str],
    harm: impl Fn(&Cluster),
    mend: impl Fn(&Cluster),
) -> Vec<f64> {
    let cluster = Cluster::start(story, store, 3, extra);
    let recorder = Recorder::start(cluster.primary(), &cluster.all());
    let measure = |_| {
        recorder.written_after(clock::now(), PATIENCE);
        let begin = clock::now();
        harm(&cluster);
        // Docker can take a while to do the harm: the outage counts from the last write before it, not from the command.
        let harmed = clock::now().max(begin + Duration::from_millis(100));
        let first = recorder.written_after(harmed, PATIENCE * 2);
        mend(&cluster);
        cluster.await_healthy();
        seconds(longest_gap(&recorder.between(begin, first.acknowledged)))
    };
    let values = (0..runs).map(measure).collect();
    recorder.finish();
    values
}

fn postmaster_killed(runs: usize) -> Vec<f64> {
    harmed(
        runs,
        "bench-postmaster",
        Store::Etcd,
        &[],
        |cluster| cluster.primary().container.signal_postmaster("KILL"),
        |_| (),
    )
}

fn start_stopped(cluster: &Cluster) {
    for node in cluster
        .nodes
        .iter()
        .filter(|node| !node.container.is_running())
    {
        node.container.start();
    }
}

fn container_killed(runs: usize) -> Vec<f64> {
    container_killed_over(Store::Etcd, runs)
}

fn container_killed_raft(runs: usize) -> Vec<f64> {
    container_killed_over(Store::Raft, runs)
}

fn container_killed_consul(runs: usize) -> Vec<f64> {
    container_killed_over(Store::Consul, runs)
}

fn container_killed_etcd2(runs: usize) -> Vec<f64> {
    container_killed_over(Store::Etcd2, runs)
}

fn container_killed_zookeeper(runs: usize) -> Vec<f64> {
    container_killed_over(Store::Zookeeper, runs)
}

fn container_killed_over(store: Store, runs: usize) -> Vec<f64> {
    harmed(
        runs,
        "bench-kill",
        store,
        &[],
        |cluster| cluster.primary().container.kill(),
        start_stopped,
    )
}

fn switchover(runs: usize) -> Vec<f64> {
    let cluster = Cluster::start("bench-switch", Store::Etcd, 3, &[]);
    let measure = |_| {
        let recorder = Recorder::start(cluster.primary(), &cluster.all());
        recorder.written_after(clock::now(), PATIENCE);
        let old = cluster.primary().clone();
        let target = cluster.others(&old)[0].name().to_owned();
        let (status, answer) = old.post(
            "/switchover",
            &json!({"leader": old.name(), "candidate": target}).to_string(),
        );
        assert_eq!(status, 200, "{answer}");
        recorder.written_after(clock::now(), PATIENCE);
        let gap = longest_gap(&recorder.finish());
        cluster.await_healthy();
        seconds(gap)
    };
    (0..runs).map(measure).collect()
}

/// The lease itself is a setting; what comes after it is ours.
fn after_the_key(runs: usize) -> Vec<f64> {
    let timings = [
        "PATRONI_TTL=30",
        "PATRONI_LOOP_WAIT=10",
        "PATRONI_RETRY_TIMEOUT=10",
    ];
    let cluster = Cluster::start("bench-key", Store::Etcd, 3, &timings);
    let recorder = Recorder::start(cluster.primary(), &cluster.all());
    let measure = |_| {
        recorder.written_after(clock::now(), PATIENCE);
        let watch = DeletionWatch::start(&cluster.etcd[0]);
        cluster.primary().container.kill();
        let gone = watch.wait();
        let first = recorder.written_after(gone, PATIENCE);
        start_stopped(&cluster);
        cluster.await_healthy();
        seconds(first.acknowledged.since(gone))
    };
    let values = (0..runs).map(measure).collect();
    recorder.finish();
    values
}

/// The moment at which etcd deletes the leader's key; polling would miss it, so quickly is it taken again.
struct DeletionWatch(Child, BufReader<ChildStdout>);

impl DeletionWatch {
    fn start(etcd: &Container) -> DeletionWatch {
        let id = etcd.inspect("{{.Id}}");
        let mut docker = Command::new("docker");
        docker.args(["exec", &id, "etcdctl", "watch", "/service/demo/leader"]);
        let mut child = docker
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        DeletionWatch(child, output)
    }

    fn wait(mut self) -> Moment {
        let mut line = String::new();
        while line.trim() != "DELETE" {
            line.clear();
            assert!(self.1.read_line(&mut line).unwrap() > 0, "the watch ended");
        }
        let now = clock::now();
        let _ = self.0.kill();
        let _ = self.0.wait();
        now
    }
}

/// The processes of a container that are not PostgreSQL's, as this machine numbers them.
fn agents(container: &Container) -> Vec<i32> {
    let group = docker(&["top", &container.inspect("{{.Id}}"), "-eo", "pid,comm"]);
    let lines = group
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().collect::<Vec<_>>().try_into().ok());
    lines
        .filter(|[_, command]: &[&str; 2]| *command != "postgres")
        .map(|[pid, _]| pid.parse().unwrap())
        .collect()
}

fn idle_leader(story: &str) -> Cluster {
    let cluster = Cluster::start(
        story,
        Store::Etcd,
        3,
        &[
            "PATRONI_TTL=30",
            "PATRONI_LOOP_WAIT=10",
            "PATRONI_RETRY_TIMEOUT=10",
        ],
    );
    let settled = clock::now() + Duration::from_secs(20);
    wait_until("it has settled", PATIENCE, || clock::now() > settled);
    cluster
}

fn memory(runs: usize) -> Vec<f64> {
    let cluster = idle_leader("bench-memory");
    let sample = |_| {
        let total: u64 = agents(&cluster.primary().container)
            .into_iter()
            .map(resident_kib)
            .sum();
        total as f64 * 1024.0 / 1e6
    };
    (0..runs).map(sample).collect()
}

fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

fn processor_time(_: usize) -> Vec<f64> {
    let cluster = idle_leader("bench-cpu");
    let pids = agents(&cluster.primary().container);
    let spent = || pids.iter().map(|pid| ticks(*pid)).sum::<u64>();
    let (before, begin) = (spent(), clock::now());
    wait_until("a minute is over", PATIENCE, || {
        clock::now().since(begin) >= Duration::from_secs(60)
    });
    // A tick is 10 ms on every Linux that runs containers.
    vec![(spent() - before) as f64 * 10.0]
}

fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    [11, 12]
        .iter()
        .filter_map(|at| fields.get(*at)?.parse::<u64>().ok())
        .sum()
}

fn image_size(_: usize) -> Vec<f64> {
    vec![
        docker(&["image", "inspect", "-f", "{{.Size}}", &image()])
            .parse::<f64>()
            .unwrap()
            / 1e6,
    ]
}

/// Every layer above the one that installs PostgreSQL; for an image of ours only.
fn image_own_size(_: usize) -> Vec<f64> {
    let layers = docker(&[
        "history",
        "--no-trunc",
        "--human=false",
        "--format",
        "{{.Size}}\t{{.CreatedBy}}",
        &image(),
    ]);
    if !layers.contains("postgresql-$PG_MAJOR") {
        return Vec::new();
    }
    let own = layers
        .lines()
        .take_while(|line| !line.contains("postgresql-$PG_MAJOR"));
    let bytes: f64 = own
        .filter_map(|line| line.split('\t').next()?.parse::<f64>().ok())
        .sum();
    vec![bytes / 1e6]
}

/// Requests a second.
fn rest_rate(runs: usize) -> Vec<f64> {
    rest(runs, |times, took| times.len() as f64 / took)
}

/// The time within which 99 of 100 requests are answered, connection included.
fn rest_slowest(runs: usize) -> Vec<f64> {
    rest(runs, |times, _| {
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        times[times.len() * 99 / 100] * 1000.0
    })
}

/// What `ab -c 64` does to one member for three seconds; `of` sees each request's seconds and the whole time.
fn rest(runs: usize, of: fn(&[f64], f64) -> f64) -> Vec<f64> {
    const CLIENTS: usize = 64;
    let cluster = Cluster::start("bench-rest", Store::Etcd, 1, &[]);
    let to = SocketAddr::new(cluster.primary().ip(), 8008);
    let measure = |_| {
        let begin = clock::now();
        let end = begin + Duration::from_secs(3);
        let clients = futures_util::future::join_all((0..CLIENTS).map(|_| ask_until(to, end)));
        let times = client::block_on(clients).concat();
        of(&times, seconds(clock::now().since(begin)))
    };
    (0..runs).map(measure).collect()
}

fn rest_kept_rate(runs: usize) -> Vec<f64> {
    let cluster = Cluster::start("bench-kept", Store::Etcd, 1, &[]);
    let to = SocketAddr::new(cluster.primary().ip(), 8008);
    (0..runs).map(|_| crowd::kept_rate(to)).collect()
}

fn rest_crowd_slowest(runs: usize) -> Vec<f64> {
    in_a_crowd(runs, |(slowest, _)| slowest)
}

fn rest_crowd_memory(runs: usize) -> Vec<f64> {
    in_a_crowd(runs, |(_, memory)| memory)
}

/// One member with TLS, and far more callers than it takes connections.
fn in_a_crowd(runs: usize, of: fn((f64, f64)) -> f64) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key, connector) = crowd::identity();
    // Whoever the member runs as in its container reads them.
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.path().join("node.pem"), certificate + &key).unwrap();
    let lab = Lab::new("bench-crowd");
    let volume = format!("{}:/tls:ro", folder.path().display());
    let options = [
        "-v",
        &volume,
        "-e",
        "PATRONI_SCOPE=b",
        "-e",
        "PATRONI_NAME=one",
        "-e",
        "PATRONI_SUPERUSER_PASSWORD=bench-secret",
        "-e",
        "PATRONI_REPLICATION_PASSWORD=r",
        "-e",
        "PATRONI_RESTAPI_CERTFILE=/tls/node.pem",
    ];
    let container = lab.run("one", &image(), &options, &[]);
    let node = Node {
        container,
        password: "bench-secret".to_owned(),
    };
    wait_until("the first write", PATIENCE, || {
        node.sql("create table t (v int)").is_ok()
    });
    let to = SocketAddr::new(node.ip(), 8008);
    let pids = agents(&node.container);
    let memory = || pids.iter().map(|pid| resident_kib(*pid)).sum::<u64>() as f64 * 1024.0 / 1e6;
    (0..runs)
        .map(|_| of(crowd::slowest_check(to, &connector, memory)))
        .collect()
}

/// Asks again and again, a connection each, and returns how long each took. It reads until the server closes: the side that
/// closes first keeps the port for a minute, and this one has but 28,000 of them.
async fn ask_until(to: SocketAddr, end: Moment) -> Vec<f64> {
    let mut times = Vec::new();
    let mut answer = Vec::new();
    loop {
        let begin = clock::now();
        if begin > end {
            return times;
        }
        let mut connection = TcpStream::connect(to).await.unwrap();
        connection
            .write_all(b"GET /primary HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        answer.clear();
        connection.read_to_end(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(b"HTTP/1.1 200") || answer.starts_with(b"HTTP/1.0 200"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        times.push(seconds(clock::now().since(begin)));
    }
}
