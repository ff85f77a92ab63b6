//! Clusters of members as operators start them, and the questions operators ask them.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use crate::client;
use crate::docker::{
    Container, Lab, docker_output, etcd_image, image, store_image, wait_for, wait_until,
};

/// Enough for initdb and a clone on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
const SUPERUSER: &str = "super-secret";

/// Where the members keep what they agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Raft,
    Etcd,
    /// The same servers through their old API.
    Etcd2,
    Consul,
    Zookeeper,
}

/// One member.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) container: Container,
    pub(crate) password: String,
}

impl Node {
    pub(crate) fn name(&self) -> &str {
        &self.container.name
    }

    pub(crate) fn ip(&self) -> IpAddr {
        wait_for(
            "the container has an address",
            Duration::from_secs(10),
            || self.container.ip(),
        )
    }

    /// Status and body of a GET; `None` when nobody answers.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        client::http(self.container.ip()?, "GET", path, "")
    }

    pub(crate) fn answers(&self, path: &str, status: u16) -> bool {
        self.get(path).is_some_and(|(found, _)| found == status)
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> (u16, String) {
        client::http(self.ip(), "POST", path, body).unwrap()
    }

    pub(crate) fn patch(&self, path: &str, body: &str) -> (u16, String) {
        client::http(self.ip(), "PATCH", path, body).unwrap()
    }

    pub(crate) fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.get("/patroni")?.1).ok()
    }

    pub(crate) fn sql(&self, sql: &str) -> Result<String, String> {
        client::query(self.ip(), &self.password, sql)
    }

    pub(crate) fn is_primary(&self) -> bool {
        self.answers("/primary", 200)
    }

    /// Says so itself; a node that does not answer in time has said nothing.
    pub(crate) fn denies_being_primary(&self) -> bool {
        self.answers("/primary", 503)
    }

    pub(crate) fn await_primary(&self) {
        wait_until(&format!("{} is primary", self.name()), PATIENCE, || {
            self.is_primary()
        });
    }

    /// A standby that receives WAL.
    pub(crate) fn is_streaming(&self) -> bool {
        self.answers("/replica", 200)
            && self
                .status()
                .is_some_and(|status| status["replication_state"] == "streaming")
    }

    pub(crate) fn await_streaming(&self) {
        wait_until(
            &format!("{} is a streaming standby", self.name()),
            PATIENCE,
            || self.is_streaming(),
        );
    }
}

/// Some members over one store. The laboratory goes last.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) store: Store,
    /// The servers of an etcd; other stores' are not harmed one by one.
    pub(crate) etcd: Vec<Container>,
    pub(crate) lab: Lab,
}

impl Cluster {
    /// Starts `count` members and waits until one leads and the others stream. `extra` is more environment (`NAME=value`).
    pub(crate) fn start(story: &str, store: Store, count: usize, extra: &[&str]) -> Cluster {
        let cluster = Cluster::start_without_waiting(story, store, count, extra);
        cluster.await_healthy();
        cluster
    }

    pub(crate) fn start_without_waiting(
        story: &str,
        store: Store,
        count: usize,
        extra: &[&str],
    ) -> Cluster {
        let lab = Lab::new(story);
        let etcd = match store {
            Store::Etcd | Store::Etcd2 => start_etcd(&lab),
            Store::Consul => {
                start_consul(&lab);
                Vec::new()
            }
            Store::Zookeeper => {
                start_zookeeper(&lab);
                Vec::new()
            }
            Store::Raft => Vec::new(),
        };
        let mut cluster = Cluster {
            nodes: Vec::new(),
            store,
            etcd,
            lab,
        };
        for number in 1..=count {
            let node = cluster.start_member(number, count, extra);
            cluster.nodes.push(node);
        }
        cluster
    }

    /// Starts member `number` of `count`.
    pub(crate) fn start_member(&self, number: usize, count: usize, extra: &[&str]) -> Node {
        let mut settings = self.settings(number, count);
        settings.extend(extra.iter().map(|line| (*line).to_owned()));
        self.run_member(number, &settings, &[])
    }

    /// The same from another image, with further options of docker.
    pub(crate) fn start_member_of(
        &self,
        image: &str,
        number: usize,
        count: usize,
        extra: &[&str],
        more: &[&str],
    ) -> Node {
        let mut settings = self.settings(number, count);
        settings.extend(extra.iter().map(|line| (*line).to_owned()));
        self.run_member_of(image, number, &settings, more)
    }

    /// The environment of member `number` of `count`.
    pub(crate) fn settings(&self, number: usize, count: usize) -> Vec<String> {
        let name = format!("node{number}");
        let mut settings = vec![
            "PATRONI_SCOPE=demo".to_owned(),
            format!("PATRONI_NAME={name}"),
            format!("PATRONI_POSTGRESQL_CONNECT_ADDRESS={name}:5432"),
            format!("PATRONI_RESTAPI_CONNECT_ADDRESS={name}:8008"),
            format!("PATRONI_SUPERUSER_PASSWORD={SUPERUSER}"),
            "PATRONI_REPLICATION_PASSWORD=replication-secret".to_owned(),
            "PATRONI_TTL=5".to_owned(),
            "PATRONI_LOOP_WAIT=1".to_owned(),
            "PATRONI_RETRY_TIMEOUT=2".to_owned(),
        ];
        match self.store {
            Store::Etcd => {
                settings.push("PATRONI_ETCD3_HOSTS=etcd1:2379,etcd2:2379,etcd3:2379".to_owned())
            }
            Store::Etcd2 => {
                settings.push("PATRONI_ETCD_HOSTS=etcd1:2379,etcd2:2379,etcd3:2379".to_owned())
            }
            Store::Consul => settings.push(format!(
                "PATRONI_CONSUL_HOST=consul{}:8500",
                (number - 1) % 3 + 1
            )),
            Store::Zookeeper => settings.push(
                "PATRONI_ZOOKEEPER_HOSTS=zookeeper1:2181,zookeeper2:2181,zookeeper3:2181"
                    .to_owned(),
            ),
            Store::Raft => {
                let others = (1..=count)
                    .filter(|other| *other != number)
                    .map(|other| format!("node{other}:2222"));
                settings.push(format!("PATRONI_RAFT_SELF_ADDR={name}:2222"));
                settings.push("PATRONI_RAFT_BIND_ADDR=0.0.0.0:2222".to_owned());
                settings.push(format!(
                    "PATRONI_RAFT_PARTNER_ADDRS={}",
                    others.collect::<Vec<_>>().join(",")
                ));
            }
        }
        settings
    }

    /// Starts a member with this environment; `more` are further options of docker.
    pub(crate) fn run_member(&self, number: usize, settings: &[String], more: &[&str]) -> Node {
        self.run_member_of(&image(), number, settings, more)
    }

    fn run_member_of(
        &self,
        image: &str,
        number: usize,
        settings: &[String],
        more: &[&str],
    ) -> Node {
        let mut options = more.to_vec();
        for setting in settings {
            options.extend(["-e", setting.as_str()]);
        }
        let name = format!("node{number}");
        let container = self.lab.run(&name, image, &options, &[]);
        Node {
            container,
            password: SUPERUSER.to_owned(),
        }
    }

    pub(crate) fn await_healthy(&self) {
        wait_until(
            "one member leads and the others stream",
            PATIENCE * 2,
            || {
                let primaries = self.nodes.iter().filter(|node| node.is_primary()).count();
                let standbys = self.nodes.iter().filter(|node| node.is_streaming()).count();
                primaries == 1 && primaries + standbys == self.nodes.len()
            },
        );
    }

    /// The member that answers as primary now.
    pub(crate) fn primary(&self) -> &Node {
        wait_for("somebody is primary", PATIENCE, || {
            self.nodes.iter().find(|node| node.is_primary())
        })
    }

    pub(crate) fn others(&self, than: &Node) -> Vec<&Node> {
        self.nodes
            .iter()
            .filter(|node| node.name() != than.name())
            .collect()
    }

    pub(crate) fn all(&self) -> Vec<&Node> {
        self.nodes.iter().collect()
    }

    /// A primary other than this one.
    pub(crate) fn await_new_primary(&self, old: &Node) -> &Node {
        wait_for("another member is primary", PATIENCE, || {
            self.others(old).into_iter().find(|node| node.is_primary())
        })
    }
}

/// Three servers; at most two of them may be stopped at once only on purpose.
pub(crate) fn start_etcd(lab: &Lab) -> Vec<Container> {
    let members = (1..=3)
        .map(|n| format!("etcd{n}=http://etcd{n}:2380"))
        .collect::<Vec<_>>()
        .join(",");
    (1..=3)
        .map(|number| {
            let name = format!("etcd{number}");
            let arguments = format!(
                "etcd --name {name} --data-dir /var/lib/etcd/data --listen-peer-urls http://0.0.0.0:2380 --listen-client-urls \
                 http://0.0.0.0:2379 --initial-advertise-peer-urls http://{name}:2380 --advertise-client-urls http://{name}:2379 \
                 --initial-cluster {members} --unsafe-no-fsync --log-level warn --enable-v2=true"
            );
            lab.run(&name, &etcd_image(), &[], &arguments.split_whitespace().collect::<Vec<_>>())
        })
        .collect()
}

/// Three servers; a member asks one of them.
fn start_consul(lab: &Lab) {
    for number in 1..=3 {
        let command = [
            "consul",
            "agent",
            "-server",
            "-bootstrap-expect=3",
            "-data-dir=/var/lib/consul/data",
            "-client=0.0.0.0",
            "-retry-join=consul1",
            "-retry-join=consul2",
            "-retry-join=consul3",
            "-retry-interval=1s",
            "-log-level=warn",
            // Else no session is shorter than ten seconds.
            "-hcl=session_ttl_min = \"1s\"",
            "-hcl=performance { raft_multiplier = 1 }",
        ];
        lab.run(
            &format!("consul{number}"),
            &store_image("consul"),
            &[],
            &command,
        );
    }
}

fn start_zookeeper(lab: &Lab) {
    for number in 1..=3 {
        let id = format!("ZOOKEEPER_ID={number}");
        let options = [
            "-e",
            &id,
            "-e",
            "ZOOKEEPER_SERVERS=zookeeper1,zookeeper2,zookeeper3",
        ];
        let name = format!("zookeeper{number}");
        lab.run(&name, &store_image("zookeeper"), &options, &[]);
    }
}

/// What a container says that is expected to fail: its exit status and its log.
pub(crate) fn fails(container: &Container, limit: Duration) -> (i32, String) {
    let status = wait_for("the container gives up", limit, || container.exit_status());
    (status, container.logs())
}

/// Runs a one-off container of the image under test to its end.
pub(crate) fn one_off(arguments: &[&str]) -> (i32, String) {
    let mut args = vec!["run", "--rm"];
    args.extend(arguments);
    let output = docker_output(&args);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.code().unwrap_or(-1), text)
}
