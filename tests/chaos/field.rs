//! Three members with small disks over three etcd servers, and what can be asked of them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use howdah::clock;
use serde_json::{Value, json};

use crate::client;
use crate::cluster::{Cluster, Node, Store, start_etcd};
use crate::docker::{Container, Lab, docker, image};
use crate::judge::Rows;
use crate::plan::Mode;
use crate::recorder::Addresses;

const MEMBERS: usize = 3;

pub(crate) struct Field {
    pub(crate) cluster: Cluster,
    /// Holds every member's disk, also while the member does not run.
    pub(crate) disks: Container,
    pub(crate) addresses: Addresses,
}

impl Field {
    /// Starts everything, for a run of so many minutes.
    pub(crate) fn start(minutes: f64) -> Field {
        let lab = Lab::new("chaos");
        let etcd = start_etcd(&lab);
        // In memory, and therefore quickly filled; longer runs write more rows.
        let size = 700 + (minutes * 2.0) as usize;
        let volumes: Vec<String> = (1..=MEMBERS)
            .map(|number| memory_volume(&lab, number, size))
            .collect();
        let mut options = vec![
            "--user".to_owned(),
            "0".to_owned(),
            "--no-healthcheck".to_owned(),
        ];
        for (number, volume) in volumes.iter().enumerate() {
            options.extend([
                "-v".to_owned(),
                format!("{volume}:/disks/node{}", number + 1),
            ]);
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let disks = lab.run("disks", &image(), &options, &["sleep", "infinity"]);
        let mut cluster = Cluster {
            nodes: Vec::new(),
            store: Store::Etcd,
            etcd,
            lab,
        };
        for (number, volume) in (1..).zip(&volumes) {
            let mut settings = cluster.settings(number, MEMBERS);
            settings.extend(
                [
                    "PATRONI_POSTGRESQL_USE_PG_REWIND=true",
                    "PATRONI_POSTGRESQL_PARAMETERS_MIN_WAL_SIZE=48MB",
                    "PATRONI_POSTGRESQL_PARAMETERS_MAX_WAL_SIZE=128MB",
                    "PATRONI_POSTGRESQL_PARAMETERS_WAL_KEEP_SIZE=64MB",
                ]
                .map(str::to_owned),
            );
            let mount = format!("{volume}:/var/lib/postgresql");
            let node = cluster.run_member(number, &settings, &["-v", &mount]);
            cluster.nodes.push(node);
        }
        cluster.await_healthy();
        let field = Field {
            cluster,
            disks,
            addresses: Arc::new(Mutex::new(Vec::new())),
        };
        field.find_addresses();
        let primary = field.leader().expect("a healthy cluster has a leader");
        primary
            .sql("create table chaos (id bigint primary key, node text)")
            .unwrap();
        field
    }

    /// A container has another address after a start.
    pub(crate) fn find_addresses(&self) {
        let nodes = self.cluster.nodes.iter();
        let found: Vec<_> = nodes
            .map(|node| node.container.ip().unwrap_or([127, 0, 0, 2].into()))
            .collect();
        *self.addresses.lock().unwrap() = found;
    }

    fn get(&self, member: usize, path: &str) -> Option<(u16, Value)> {
        let address = self.addresses.lock().unwrap()[member];
        let (status, body) = client::http(address, "GET", path, "")?;
        Some((status, serde_json::from_str(&body).unwrap_or_default()))
    }

    fn leads(&self, member: usize) -> bool {
        self.get(member, "/primary")
            .is_some_and(|(status, _)| status == 200)
    }

    pub(crate) fn leader(&self) -> Option<&Node> {
        let member = (0..MEMBERS).find(|member| self.leads(*member))?;
        Some(&self.cluster.nodes[member])
    }

    /// What keeps the cluster from being as it should be in this mode; `None` when it is well.
    pub(crate) fn ailment(&self, mode: Mode) -> Option<String> {
        let leaders: Vec<usize> = (0..MEMBERS).filter(|member| self.leads(*member)).collect();
        let [leader] = leaders[..] else {
            return Some(format!("{} leaders", leaders.len()));
        };
        for member in (0..MEMBERS).filter(|member| *member != leader) {
            let name = self.cluster.nodes[member].name();
            let Some((_, status)) = self.get(member, "/patroni") else {
                return Some(format!("{name} does not answer"));
            };
            if status["replication_state"] != "streaming" {
                return Some(format!("{name} does not stream: {status}"));
            }
        }
        let (_, view) = self.get(leader, "/cluster")?;
        let on_duty = |role: &str| {
            let members = view["members"].as_array().into_iter().flatten();
            members.filter(|member| member["role"] == role).count()
        };
        let duties = (on_duty("sync_standby"), on_duty("quorum_standby"));
        let wanted = match mode {
            Mode::Priority => (1, 0),
            Mode::Quorum => (0, 2),
            Mode::Asynchronous => (0, 0),
        };
        (duties != wanted)
            .then(|| format!("synchronous standbys are {duties:?} instead of {wanted:?}: {view}"))
    }

    /// Waits until the cluster is well; how long that took, or what was still wrong at the end.
    pub(crate) fn heals(&self, mode: Mode, limit: Duration) -> Result<Duration, String> {
        let begin = clock::now();
        loop {
            let Some(ailment) = self.ailment(mode) else {
                return Ok(clock::now().since(begin));
            };
            if clock::now().since(begin) > limit {
                return Err(format!("not well after {} s: {ailment}", limit.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub(crate) fn change_mode(&self, mode: Mode) -> Result<(), String> {
        let leader = self.leader().ok_or("nobody leads")?;
        let wish = json!({ "synchronous_mode": mode.setting() }).to_string();
        match leader.patch("/config", &wish) {
            (200, _) => Ok(()),
            (status, answer) => Err(format!("PATCH /config: {status} {answer}")),
        }
    }

    pub(crate) fn rows(&self, node: &Node) -> Result<Rows, String> {
        let answer = node.sql(Rows::QUERY);
        Ok(Rows::read(
            &answer.map_err(|error| format!("{}: {error}", node.name()))?,
        ))
    }

    pub(crate) fn containers(&self) -> impl Iterator<Item = &Container> {
        let members = self.cluster.nodes.iter().map(|node| &node.container);
        members.chain(&self.cluster.etcd)
    }
}

fn memory_volume(lab: &Lab, number: usize, megabytes: usize) -> String {
    let run = docker(&[
        "network",
        "inspect",
        "-f",
        "{{index .Labels \"howdah.test\"}}",
        lab.network(),
    ]);
    docker(&[
        "volume",
        "create",
        "--label",
        &format!("howdah.test={run}"),
        "--opt",
        "type=tmpfs",
        "--opt",
        "device=tmpfs",
        "--opt",
        &format!("o=size={megabytes}m,mode=1777"),
        &format!("{}-disk{number}", lab.network()),
    ])
}
