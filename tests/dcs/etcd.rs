//! etcd's v2 API: one plain node, one with TLS, client certificates and authentication, and cases of its own.
//!
//! Behind this API etcd compares passwords with bcrypt in every single request, a tenth of a second of processor time each. The suite
//! therefore comes as the user whom the client's certificate names; the cases of its own have passwords.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use howdah::dcs::etcd::{Etcd as Handle, Settings, connect};
use howdah::dcs::{Dcs, Document, Expect, Freshness, Identity, Refusal, Store, Write};
use howdah::types::MemberName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::etcd_server::{Etcd, Options};
use crate::harness::{
    Backend, Case, Cut, Harness, acquired, distrusts, document, done, eventually, latest, name,
    one_leads, own, refused,
};
use crate::proxy::{Proxies, Proxy, each_goes_silent};
use crate::server::Certificates;

const TTL: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_secs(3);

/// The whole suite on one server.
pub(crate) struct OneNode {
    etcd: Rc<Etcd>,
    clusters: Cell<u32>,
}

pub(crate) async fn plain() -> anyhow::Result<Rc<dyn Backend>> {
    Ok(Rc::new(OneNode {
        etcd: Rc::new(nodes(1).await?),
        clusters: Cell::new(0),
    }))
}

pub(crate) async fn secured() -> anyhow::Result<Rc<dyn Backend>> {
    Ok(Rc::new(OneNode {
        etcd: Rc::new(secured_server().await?),
        clusters: Cell::new(0),
    }))
}

async fn nodes(count: usize) -> anyhow::Result<Etcd> {
    Etcd::start(Options {
        nodes: count,
        flags: vec!["--enable-v2=true"],
        ..Options::default()
    })
    .await
}

/// TLS both ways; only the user "howdah" may touch `/service`.
async fn secured_server() -> anyhow::Result<Etcd> {
    let etcd = Etcd::start(Options {
        certificates: Some(Certificates::make()?),
        flags: vec!["--enable-v2=true"],
        ..Options::default()
    })
    .await?;
    let everything = json!({ "kv": { "read": ["/service/*"], "write": ["/service/*"] } });
    let steps = [
        ("users/root", json!({ "user": "root", "password": "root" })),
        (
            "roles/patroni",
            json!({ "role": "patroni", "permissions": everything }),
        ),
        (
            "users/howdah",
            json!({ "user": "howdah", "password": "secret", "roles": ["patroni"] }),
        ),
        ("enable", Value::Null),
    ];
    for (what, body) in steps {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        ask(&etcd, "PUT", &format!("/v2/auth/{what}"), &body).await?;
    }
    Ok(etcd)
}

/// A request without our code in between; the answer's document, `null` where there is none.
async fn ask(etcd: &Etcd, method: &str, path: &str, body: &str) -> anyhow::Result<Value> {
    let address = etcd.admin_address(0);
    let exchange = async {
        let mut stream = TcpStream::connect(&address).await?;
        let kind = if path.starts_with("/v2/auth") {
            "application/json"
        } else {
            "application/x-www-form-urlencoded"
        };
        // root:root, which a server without authentication does not mind.
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Basic cm9vdDpyb290\r\nConnection: close\r\n\
             Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, anyhow::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), exchange).await??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
    ensure!(
        head.starts_with("HTTP/1.1 2") || head.starts_with("HTTP/1.1 404"),
        "{answer}"
    );
    Ok(serde_json::from_str(body).unwrap_or_default())
}

#[async_trait(?Send)]
impl Backend for OneNode {
    async fn harness(&self, case: &str) -> anyhow::Result<Box<dyn Harness>> {
        self.clusters.set(self.clusters.get() + 1);
        Ok(Box::new(EtcdHarness {
            base: format!("/service/{case}-{}", self.clusters.get()),
            etcd: Rc::clone(&self.etcd),
            proxies: Proxies::default(),
        }))
    }

    fn own_cases(&self) -> Vec<Case> {
        if self.etcd.certificate("ca.pem").is_some() {
            return own![
                password_counts_more_than_certificate,
                forbidden_write_is_rejected,
                unknown_authority_is_an_error,
            ];
        }
        own![
            what_python_nodes_see,
            python_holds_and_lets_go,
            restarted_node,
            restart_amid_an_election,
            wiped_store,
            black_holed_node,
            node_after_node_fails,
            nodes_are_discovered,
            lost_answer_is_read_back,
        ]
    }
}

fn settings(etcd: &Etcd) -> Settings {
    let secured = etcd.certificate("ca.pem").is_some();
    Settings {
        hosts: etcd.addresses(),
        protocol: if secured { "https" } else { "http" }.to_owned(),
        cacert: etcd.certificate("ca.pem"),
        cert: etcd.certificate("client.pem"),
        key: etcd.certificate("client.key"),
        ..Settings::default()
    }
}

fn identity(name: &str, base: &str) -> Identity {
    Identity {
        name: MemberName::new(name).ok(),
        base: base.to_owned(),
        group: None,
        ttl: TTL,
        retry_timeout: RETRY,
    }
}

fn open(name: &str, settings: &Settings) -> Arc<Handle> {
    connect(&identity(name, "/service/demo"), settings).unwrap()
}

struct EtcdHarness {
    etcd: Rc<Etcd>,
    base: String,
    proxies: Proxies,
}

impl EtcdHarness {
    async fn proxy(&self, name: &str) -> Rc<Proxy> {
        self.proxies.of(name, &self.etcd.address(0)).await
    }
}

#[async_trait(?Send)]
impl Harness for EtcdHarness {
    fn ttl(&self) -> Duration {
        TTL
    }

    fn retry_timeout(&self) -> Duration {
        RETRY
    }

    fn has_sessions(&self) -> bool {
        false
    }

    async fn open(&self, name: &str) -> Store {
        let settings = Settings {
            hosts: vec![self.proxy(name).await.address.to_string()],
            use_proxies: true,
            ..settings(&self.etcd)
        };
        connect(&identity(name, &self.base), &settings).unwrap()
    }

    async fn cut(&self, name: &str, how: Cut) {
        self.proxy(name).await.cut(how);
    }

    async fn mend(&self, name: &str) {
        self.proxy(name).await.mend().await;
    }

    async fn kill_session(&self, _session: &str) {}

    async fn put_raw(&self, relative: &str, value: &str) {
        let path = format!("/v2/keys{}/{relative}", self.base);
        let encoded: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
        // A folder cannot hold a value: what looks like one is left out.
        if !relative.ends_with('/') {
            ask(&self.etcd, "PUT", &path, &format!("value={encoded}"))
                .await
                .unwrap();
        }
    }
}

type Outcome = anyhow::Result<()>;

/// Keys, values and times to live as spec/dcs.md §5.2 has them.
async fn what_python_nodes_see() -> Outcome {
    let etcd = nodes(1).await?;
    let store = open("node1", &settings(&etcd));
    done(store.put_member(&document(1)).await)?;
    done(store.acquire().await)?;
    let odd = "{\"a b\":\"c&d=é+%\"}";
    done(store.put(Document::Config, odd, Expect::Absent).await)?;
    let seen = async |key: &str| -> anyhow::Result<Value> {
        let path = format!("/v2/keys/service/demo/{key}");
        Ok(ask(&etcd, "GET", &path, "").await?["node"].clone())
    };
    let leader = seen("leader").await?;
    ensure!(leader["value"] == "node1", "{leader}");
    ensure!(
        leader["ttl"]
            .as_u64()
            .is_some_and(|ttl| (3..=4).contains(&ttl)),
        "{leader}"
    );
    let member = seen("members/node1").await?;
    ensure!(
        member["value"] == document(1).as_str() && member["ttl"].is_number(),
        "{member}"
    );
    let config = seen("config").await?;
    ensure!(
        config["value"] == odd && config["ttl"].is_null(),
        "{config}"
    );
    Ok(())
}

/// A Python node holds the lock and lets go, and ours takes over at once.
async fn python_holds_and_lets_go() -> Outcome {
    let etcd = nodes(1).await?;
    let leader = "/v2/keys/service/demo/leader";
    ask(&etcd, "PUT", leader, "value=python&ttl=60&prevExist=false").await?;
    let store = open("node1", &settings(&etcd));
    let cluster = store.load(Freshness::Latest).await?;
    refused(store.acquire().await)?;
    refused(store.adopt(&cluster.leader.context("no leader")?).await)?;
    eventually("the watch", async || {
        store.load(Freshness::Recent).await.ok()
    })
    .await?;
    let mut changes = store.changes();
    changes.borrow_and_update();
    ask(&etcd, "DELETE", &format!("{leader}?prevValue=python"), "").await?;
    tokio::time::timeout(Duration::from_secs(2), changes.changed()).await??;
    let lease = done(store.acquire().await)?;
    done(store.renew(&lease).await)
}

async fn restarted_node() -> Outcome {
    let etcd = nodes(1).await?;
    let store: Store = open("a", &settings(&etcd));
    store.set_timings(Duration::from_secs(30), RETRY);
    done(store.put_member(&document(1)).await)?;
    let lease = acquired(&store).await?;
    etcd.kill(0);
    ensure!(matches!(store.renew(&lease).await, Write::Unknown(_)));
    let error = latest(&store).await.err().context("read from nobody")?;
    ensure!(format!("{error:#}").contains(&etcd.address(0)), "{error:#}");
    etcd.run(0)?;
    etcd.ready().await?;
    eventually("renewal", async || {
        matches!(store.renew(&lease).await, Write::Done(())).then_some(())
    })
    .await?;
    let mut changes = store.changes();
    changes.borrow_and_update();
    ask(&etcd, "PUT", "/v2/keys/service/demo/config", "value={}").await?;
    tokio::time::timeout(Duration::from_secs(15), changes.changed()).await??;
    eventually("the new config", async || {
        store.load(Freshness::Recent).await.ok()?.config
    })
    .await?;
    Ok(())
}

/// The server dies under an election and comes back.
async fn restart_amid_an_election() -> Outcome {
    let server = nodes(1).await?;
    let contenders = ["a", "b", "c"].map(|name| -> Store { open(name, &settings(&server)) });
    one_leads(contenders, RETRY, async {
        server.kill(0);
        server.run(0)?;
        server.ready().await
    })
    .await
}

/// The store comes back empty, counting from the beginning.
async fn wiped_store() -> Outcome {
    let etcd = nodes(1).await?;
    let store: Store = open("a", &settings(&etcd));
    for _ in 0..20 {
        done(store.put(Document::Config, "{}", Expect::Anything).await)?;
    }
    let lease = acquired(&store).await?;
    etcd.kill(0);
    etcd.wipe(0);
    etcd.run(0)?;
    etcd.ready().await?;
    let cluster = eventually("a read", async || latest(&store).await.ok()).await?;
    ensure!(
        cluster == howdah::cluster::Cluster::default(),
        "{cluster:?}"
    );
    refused(store.renew(&lease).await)?;
    done(store.put_member(&document(1)).await)?;
    acquired(&store).await?;
    eventually("a recent read", async || {
        let cluster = store.load(Freshness::Recent).await.ok()?;
        cluster.is_led_by(&name("a")).then_some(())
    })
    .await
}

/// Of two addresses one swallows everything: reads, renewals and the watch go on over the other, whichever it is.
async fn black_holed_node() -> Outcome {
    let server = nodes(1).await?;
    let proxies = [
        Proxy::start(&server.address(0)).await,
        Proxy::start(&server.address(0)).await,
    ];
    let direct = settings(&server);
    let settings = Settings {
        hosts: proxies
            .iter()
            .map(|proxy| proxy.address.to_string())
            .collect(),
        use_proxies: true,
        ..direct.clone()
    };
    let store: Store = open("a", &settings);
    let writer: Store = open("b", &direct);
    store.set_timings(Duration::from_secs(30), RETRY * 2);
    each_goes_silent(&store, &writer, &proxies).await
}

async fn node_after_node_fails() -> Outcome {
    let etcd = nodes(3).await?;
    let (a, b): (Store, Store) = (open("a", &settings(&etcd)), open("b", &settings(&etcd)));
    for store in [&a, &b] {
        store.set_timings(TTL * 5, RETRY * 2);
    }
    let lease = acquired(&a).await?;
    for index in 0..3 {
        etcd.kill(index);
        eventually("a renewal", async || {
            matches!(a.renew(&lease).await, Write::Done(())).then_some(())
        })
        .await
        .with_context(|| format!("node {index} is down"))?;
        let wanted = u64::try_from(index)? + 1;
        let text = format!("{{\"optime\":{wanted}}}");
        eventually("a write", async || {
            matches!(
                a.put(Document::Status, &text, Expect::Anything).await,
                Write::Done(_)
            )
            .then_some(())
        })
        .await?;
        eventually("the other member's view", async || {
            let cluster = b.load(Freshness::Recent).await.ok()?;
            (cluster.status.optime.0 == wanted).then_some(())
        })
        .await?;
        etcd.run(index)?;
        etcd.ready().await?;
    }
    refused(b.acquire().await)?;
    done(a.renew(&lease).await)
}

async fn nodes_are_discovered() -> Outcome {
    let etcd = nodes(3).await?;
    let one = Settings {
        hosts: vec![etcd.address(0)],
        ..settings(&etcd)
    };
    let knowing = open("a", &one);
    knowing.load(Freshness::Latest).await?;
    eventually("discovery", async || {
        (knowing.known_nodes() == 3).then_some(())
    })
    .await?;
    let unknowing = open(
        "b",
        &Settings {
            use_proxies: true,
            ..one
        },
    );
    unknowing.load(Freshness::Latest).await?;
    etcd.kill(0);
    eventually("a read", async || {
        knowing.load(Freshness::Latest).await.ok()
    })
    .await?;
    ensure!(unknowing.load(Freshness::Latest).await.is_err());
    Ok(())
}

/// A write whose answer is lost is read back where that proves something, and never repeated.
async fn lost_answer_is_read_back() -> Outcome {
    let etcd = nodes(1).await?;
    let first = Proxy::start(&etcd.address(0)).await;
    let second = Proxy::start(&etcd.address(0)).await;
    let settings = Settings {
        hosts: vec![first.address.to_string(), second.address.to_string()],
        use_proxies: true,
        ..settings(&etcd)
    };
    // Nobody's watch moves on to the second node before the write does.
    let store = connect(
        &Identity {
            name: None,
            ..identity("ctl", "/service/demo")
        },
        &settings,
    )?;
    let one = done(
        store
            .put(Document::Config, "{\"v\":1}", Expect::Absent)
            .await,
    )?;
    first.cut(Cut::AnswersLost);
    let two = done(
        store
            .put(Document::Config, "{\"v\":2}", Expect::At(one))
            .await,
    )?;
    let seen = ask(&etcd, "GET", "/v2/keys/service/demo/config", "").await?;
    ensure!(seen["node"]["modifiedIndex"] == two.0, "{seen}");
    first.mend().await;
    refused(
        store
            .put(Document::Config, "{\"v\":3}", Expect::At(one))
            .await,
    )
}

async fn password_counts_more_than_certificate() -> Outcome {
    let etcd = secured_server().await?;
    let with = |password: &str| Settings {
        username: Some("howdah".to_owned()),
        password: Some(password.to_owned()),
        ..settings(&etcd)
    };
    let put = open("a", &with("wrong"))
        .put(Document::Config, "{}", Expect::Anything)
        .await;
    let Write::Refused(Refusal::Rejected(reason)) = &put else {
        anyhow::bail!("{put:?}");
    };
    ensure!(reason.contains("401"), "{reason}");
    let store = open("a", &with("secret"));
    done(store.put(Document::Config, "{}", Expect::Anything).await)?;
    let lease = done(store.acquire().await)?;
    done(store.renew(&lease).await)?;
    ensure!(store.load(Freshness::Latest).await?.config.is_some());
    Ok(())
}

async fn forbidden_write_is_rejected() -> Outcome {
    let etcd = secured_server().await?;
    let store = connect(&identity("a", "/elsewhere/demo"), &settings(&etcd))?;
    let put = store.put(Document::Config, "{}", Expect::Anything).await;
    ensure!(
        matches!(put, Write::Refused(Refusal::Rejected(_))),
        "{put:?}"
    );
    Ok(())
}

async fn unknown_authority_is_an_error() -> Outcome {
    let etcd = secured_server().await?;
    let others = Certificates::make()?;
    let stranger = Settings {
        cacert: Some(others.path("ca.pem")),
        ..settings(&etcd)
    };
    let store: Store = open("a", &stranger);
    distrusts(&store).await?;
    Ok(())
}
