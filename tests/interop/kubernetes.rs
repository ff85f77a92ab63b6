//! Howdah's and Patroni's members in one cluster whose state Kubernetes keeps: our manifests' rights, a pod for each member.
//!
//! No node runs those pods: each is an object, with an address that only stands in documents, and its member is a process here.

use std::fs;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Node, PATIENCE, give, wait_until};
use crate::kubernetes_server::{Kind, Kubernetes, Options};
use crate::members::{self, Kind::Howdah, Kind::Patroni};
use crate::writer::{Writer, assert_one_writer, missing};

/// The `ttl` of these clusters, with the time an election takes.
const ELECTION: Duration = Duration::from_secs(35);
/// Namespace of the objects.
const NAMESPACE: &str = "demo";

#[test]
fn a_mixed_cluster_over_config_maps() {
    mixed(Kind::ConfigMaps);
}

#[test]
fn a_mixed_cluster_over_endpoints() {
    mixed(Kind::Endpoints);
}

fn mixed(kind: Kind) {
    let server = Server::start(kind);
    let mut cluster = members::start_over(&[Howdah, Patroni, Howdah], |at, node| {
        server.section(at, node)
    });
    server.await_roles(&cluster);
    let writer = Writer::start(&cluster);

    for to in [1, 2] {
        let answer = cluster.switchover(to);
        let name = &cluster.nodes[to].name;
        assert_eq!(answer, format!("Successfully switched over to \"{name}\""));
        cluster.await_healthy();
        assert_eq!(cluster.primary(), Some(to));
        server.await_roles(&cluster);
        cluster.configure(&format!(
            r#"{{"postgresql": {{"parameters": {{"work_mem": "{to}MB"}}}}}}"#
        ));
        for node in &cluster.nodes {
            wait_until("the setting is taken up", PATIENCE, || {
                node.sql("SHOW work_mem").as_deref() == Ok(format!("{to}MB").as_str())
            });
        }
    }

    // From here on whoever follows has every row that was acknowledged.
    cluster.configure(r#"{"synchronous_mode": "quorum"}"#);
    await_voters(&cluster);

    // Nobody deletes the pod of a leader whose machine is gone.
    cluster.nodes[2].kill();
    let next = cluster.await_other(2, ELECTION);
    cluster.nodes[2].start();
    cluster.await_healthy();
    await_voters(&cluster);
    server.await_roles(&cluster);

    // Patroni's leader dies, too; or it dies as a replica.
    cluster.nodes[1].kill();
    if next == 1 {
        cluster.await_other(1, ELECTION);
    }
    cluster.nodes[1].start();
    cluster.await_healthy();
    server.await_roles(&cluster);

    let acks = writer.finish();
    assert_one_writer(&acks);
    let leader = cluster.await_primary();
    assert_eq!(missing(&acks, &cluster.nodes[leader]), Vec::<i64>::new());
}

/// Waits until the cluster says that both standbys vote.
#[track_caller]
fn await_voters(cluster: &Cluster) {
    let leader = &cluster.nodes[cluster.await_primary()];
    wait_until("both standbys vote", PATIENCE, || {
        let Some((_, body)) = leader.ask("GET", "/cluster", "") else {
            return false;
        };
        let told: Value = serde_json::from_str(&body).unwrap_or_default();
        let members = told["members"].as_array().cloned().unwrap_or_default();
        let votes = |member: &&Value| member["role"] == "quorum_standby";
        members.iter().filter(votes).count() == 2
    });
}

/// The API server, with what a cluster of three finds there.
struct Server {
    // In the order in which they have to end.
    kubernetes: Kubernetes,
    kind: Kind,
    token: String,
    local: tokio::task::LocalSet,
    runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start(kind: Kind) -> Server {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let local = tokio::task::LocalSet::new();
        let (kubernetes, token) = local
            .block_on(&runtime, async {
                let kubernetes = Kubernetes::start(Options::default()).await?;
                let token = kubernetes.member(NAMESPACE, kind).await?;
                let labels = json!({"application": "howdah", "cluster-name": "demo"});
                for number in 1..=3 {
                    let (name, address) = (format!("n{number}"), address(number));
                    kubernetes
                        .pod(NAMESPACE, &name, &labels, Some(&address))
                        .await?;
                }
                anyhow::Ok((kubernetes, token))
            })
            .unwrap();
        Server {
            kubernetes,
            kind,
            token,
            local,
            runtime,
        }
    }

    /// Of the file of a member; the way to the server is in a kubeconfig, as somebody outside of Kubernetes has it.
    fn section(&self, at: usize, node: &mut Node) -> String {
        let authority = fs::read(self.kubernetes.certificate("ca.pem")).unwrap();
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "demo",
            "contexts": [{"name": "demo", "context": {"cluster": "demo", "user": "member"}}],
            "clusters": [{"name": "demo", "cluster": {
                "server": self.kubernetes.url(0),
                "certificate-authority-data": BASE64.encode(authority),
            }}],
            "users": [{"name": "member", "user": {"token": self.token}}],
        });
        let file = node.dir.join("kubeconfig");
        fs::write(&file, config.to_string()).unwrap();
        give(&file);
        node.environment
            .insert("KUBECONFIG".to_owned(), file.display().to_string());
        let endpoints = match self.kind {
            Kind::ConfigMaps => String::new(),
            Kind::Endpoints => format!(
                "  use_endpoints: true\n  pod_ip: {}\n  ports: [{{name: postgresql, port: 5432}}]\n",
                address(at + 1)
            ),
        };
        format!(
            "\
kubernetes:
  namespace: {NAMESPACE}
  context: demo
  labels: {{application: howdah}}
  role_label: role
  scope_label: cluster-name
{endpoints}"
        )
    }

    fn get(&self, path: &str) -> Value {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/{path}");
        let ask = self
            .kubernetes
            .ask(crate::kubernetes_server::ADMIN, "GET", &path, None);
        let answer = self.local.block_on(&self.runtime, ask).unwrap();
        answer.good().unwrap()
    }

    /// What Services go by: the pods' labels, or the address in the leader's Endpoints.
    #[track_caller]
    fn await_roles(&self, cluster: &Cluster) {
        let leader = cluster.await_primary();
        for (at, node) in cluster.nodes.iter().enumerate() {
            let role = if at == leader { "primary" } else { "replica" };
            let what = format!("the pod {} is labelled {role}", node.name);
            wait_until(&what, PATIENCE, || {
                self.get(&format!("pods/{}", node.name))["metadata"]["labels"]["role"] == role
            });
        }
        let name = &cluster.nodes[leader].name;
        let object = match self.kind {
            Kind::ConfigMaps => "configmaps/demo-leader",
            Kind::Endpoints => "endpoints/demo",
        };
        wait_until("the leader is written down", PATIENCE, || {
            let object = self.get(object);
            let named = object["metadata"]["annotations"]["leader"] == name.as_str();
            let led = match self.kind {
                Kind::ConfigMaps => true,
                Kind::Endpoints => {
                    object["subsets"][0]["addresses"][0]["ip"] == address(leader + 1)
                }
            };
            named && led
        });
    }
}

/// Of a pod; nobody listens there.
fn address(number: usize) -> String {
    format!("10.77.0.{number}")
}
