//! Consul: one plain server, one with TLS, client certificates and access control, and cases of its own.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use howdah::dcs::consul::{Consul as Handle, ServiceSettings, Settings, connect};
use howdah::dcs::{Dcs, Document, Expect, Freshness, Identity, Refusal, Store, Write};
use howdah::types::MemberName;
use serde_json::{Value, json};

use crate::consul_server::{Consul, MASTER};
use crate::harness::{
    Backend, Case, Cut, Harness, acquired, distrusts, document, done, eventually, latest, name,
    one_leads, own, refused,
};
use crate::proxy::{Proxies, Proxy};
use crate::server::Certificates;

const TTL: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_secs(3);

/// The whole suite on one server.
pub(crate) struct OneServer {
    consul: Rc<Consul>,
    clusters: Cell<u32>,
}

pub(crate) async fn plain() -> anyhow::Result<Rc<dyn Backend>> {
    Ok(Rc::new(OneServer {
        consul: Rc::new(Consul::start(json!({}), None).await?),
        clusters: Cell::new(0),
    }))
}

pub(crate) async fn secured() -> anyhow::Result<Rc<dyn Backend>> {
    Ok(Rc::new(OneServer {
        consul: Rc::new(secured_server().await?),
        clusters: Cell::new(0),
    }))
}

/// TLS both ways, and nobody may do anything without a token.
async fn secured_server() -> anyhow::Result<Consul> {
    let acl = json!({ "acl": {
        "enabled": true,
        "default_policy": "deny",
        "tokens": { "master": MASTER },
    } });
    Consul::start(acl, Some(Certificates::make()?)).await
}

#[async_trait(?Send)]
impl Backend for OneServer {
    async fn harness(&self, case: &str) -> anyhow::Result<Box<dyn Harness>> {
        self.clusters.set(self.clusters.get() + 1);
        Ok(Box::new(ConsulHarness {
            base: format!("/service/{case}-{}", self.clusters.get()),
            consul: Rc::clone(&self.consul),
            proxies: Proxies::default(),
        }))
    }

    /// Every write of its single server goes to the disk on its own.
    fn at_once(&self) -> usize {
        12
    }

    fn own_cases(&self) -> Vec<Case> {
        if self.consul.certificate("ca.pem").is_some() {
            return own![
                without_a_token_everything_is_rejected,
                unknown_authority_is_an_error,
            ];
        }
        own![
            what_python_nodes_see,
            python_holds_and_lets_go,
            a_lock_delay_is_waited_for,
            too_short_a_session_is_made_longer,
            restarted_server,
            restart_amid_an_election,
            wiped_server,
            services_follow_the_member,
            lost_answer_is_read_back,
        ]
    }
}

fn settings(consul: &Consul) -> Settings {
    let secured = consul.certificate("ca.pem").is_some();
    Settings {
        url: consul.url(),
        token: secured.then(|| MASTER.to_owned()),
        verify: true,
        cacert: consul.certificate("ca.pem"),
        cert: consul.certificate("client.pem"),
        key: consul.certificate("client.key"),
        dc: None,
        consistency: "default".to_owned(),
        checks: Vec::new(),
        scope: "demo".to_owned(),
        service: None,
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

struct ConsulHarness {
    consul: Rc<Consul>,
    base: String,
    proxies: Proxies,
}

impl ConsulHarness {
    async fn proxy(&self, name: &str) -> Rc<Proxy> {
        self.proxies.of(name, &self.consul.address()).await
    }
}

#[async_trait(?Send)]
impl Harness for ConsulHarness {
    fn ttl(&self) -> Duration {
        TTL
    }

    fn retry_timeout(&self) -> Duration {
        RETRY
    }

    async fn open(&self, name: &str) -> Store {
        let proxy = self.proxy(name).await;
        let whole = settings(&self.consul);
        let scheme = whole.url.split_once("://").unwrap().0.to_owned();
        let settings = Settings {
            url: format!("{scheme}://{}", proxy.address),
            ..whole
        };
        connect(&identity(name, &self.base), &settings).unwrap()
    }

    async fn cut(&self, name: &str, how: Cut) {
        self.proxy(name).await.cut(how);
    }

    async fn mend(&self, name: &str) {
        self.proxy(name).await.mend().await;
    }

    async fn kill_session(&self, session: &str) {
        let path = format!("/v1/session/destroy/{session}");
        self.consul.ask("PUT", &path, "").await.unwrap();
    }

    async fn put_raw(&self, relative: &str, value: &str) {
        // A plain write leaves the lock of a key where it is; a stranger's key has none.
        let path = format!("/v1/kv{}/{relative}", self.base);
        self.consul.ask("DELETE", &path, "").await.unwrap();
        self.consul.ask("PUT", &path, value).await.unwrap();
    }
}

type Outcome = anyhow::Result<()>;

async fn server() -> anyhow::Result<Consul> {
    Consul::start(json!({}), None).await
}

/// Keys, values and session as spec/dcs.md §5.4 has them.
async fn what_python_nodes_see() -> Outcome {
    let consul = server().await?;
    let store = open("node1", &settings(&consul));
    done(store.put_member(&document(1)).await)?;
    done(store.acquire().await)?;
    done(
        store
            .put(Document::Config, "{\"ttl\":30}", Expect::Absent)
            .await,
    )?;
    let all = consul
        .json("GET", "/v1/kv/service/demo/?recurse=1", "")
        .await?;
    let seen: Vec<_> = all
        .as_array()
        .context("no list")?
        .iter()
        .map(|entry| (entry["Key"].as_str(), entry["Session"].is_string()))
        .collect();
    let expected = [
        (Some("service/demo/config"), false),
        (Some("service/demo/leader"), true),
        (Some("service/demo/members/node1"), true),
    ];
    ensure!(seen == expected, "{all}");
    ensure!(all[1]["Session"] == all[2]["Session"], "two sessions");
    let sessions = consul.json("GET", "/v1/session/list", "").await?;
    let session = &sessions[0];
    ensure!(session["Name"] == "demo-node1", "{sessions}");
    ensure!(session["Behavior"] == "delete", "{sessions}");
    ensure!(session["TTL"] == "2000ms", "{sessions}");
    ensure!(session["LockDelay"] == 1_000_000, "{sessions}");
    ensure!(session["NodeChecks"] == json!([]), "{sessions}");
    Ok(())
}

/// A Python node acquires the way it does, its session ends, and ours takes over at once.
async fn python_holds_and_lets_go() -> Outcome {
    let consul = server().await?;
    let body = r#"{"Name":"demo-python","TTL":"60s","Behavior":"delete","LockDelay":"0.001s","Checks":[]}"#;
    let session = consul.json("PUT", "/v1/session/create", body).await?;
    let session = session["ID"].as_str().context("no session")?;
    for (key, value) in [
        ("members/python", "{\"role\": \"primary\"}"),
        ("leader", "python"),
    ] {
        let path = format!("/v1/kv/service/demo/{key}?acquire={session}");
        ensure!(consul.json("PUT", &path, value).await? == json!(true));
    }
    let store = open("node1", &settings(&consul));
    let cluster = store.load(Freshness::Latest).await?;
    let leader = cluster.leader.clone().context("no leader")?;
    ensure!(leader.session.as_deref() == Some(session));
    refused(store.acquire().await)?;
    refused(store.adopt(&leader).await)?;
    eventually("the watch", async || {
        store.load(Freshness::Recent).await.ok()
    })
    .await?;
    let mut changes = store.changes();
    changes.borrow_and_update();
    consul
        .ask("PUT", &format!("/v1/session/destroy/{session}"), "")
        .await?;
    tokio::time::timeout(Duration::from_secs(2), changes.changed()).await??;
    let lease = done(store.acquire().await)?;
    // And the way back: Python cannot acquire what is held here.
    let body = consul.json("PUT", "/v1/session/create", body).await?;
    let other = body["ID"].as_str().context("no session")?;
    let path = format!("/v1/kv/service/demo/leader?acquire={other}");
    ensure!(consul.json("PUT", &path, "python").await? == json!(false));
    done(store.release(lease).await)?;
    ensure!(consul.json("PUT", &path, "python").await? == json!(true));
    Ok(())
}

/// Consul keeps a key from everybody for a while after the session that held it: that is no other leader.
async fn a_lock_delay_is_waited_for() -> Outcome {
    let consul = server().await?;
    let store = open("node1", &settings(&consul));
    let body = r#"{"TTL":"60s","Behavior":"delete","LockDelay":"0.3s","Checks":[]}"#;
    for key in ["leader", "members/node1"] {
        let session = consul.json("PUT", "/v1/session/create", body).await?;
        let session = session["ID"].as_str().context("no session")?;
        let path = format!("/v1/kv/service/demo/{key}?acquire={session}");
        ensure!(consul.json("PUT", &path, "python").await? == json!(true));
        consul
            .ask("PUT", &format!("/v1/session/destroy/{session}"), "")
            .await?;
        if key == "leader" {
            done(store.acquire().await)?;
        } else {
            done(store.put_member(&document(1)).await)?;
        }
    }
    Ok(())
}

async fn too_short_a_session_is_made_longer() -> Outcome {
    let consul = Consul::start(json!({ "session_ttl_min": "10s" }), None).await?;
    let store = open("a", &settings(&consul));
    let lease = done(store.acquire().await)?;
    done(store.renew(&lease).await)?;
    let sessions = consul.json("GET", "/v1/session/list", "").await?;
    ensure!(
        sessions.as_array().is_some_and(|list| list.len() == 1),
        "{sessions}"
    );
    ensure!(sessions[0]["TTL"] == "10000ms", "{sessions}");
    Ok(())
}

async fn restarted_server() -> Outcome {
    let consul = server().await?;
    let store: Store = open("a", &settings(&consul));
    done(store.put_member(&document(1)).await)?;
    let lease = acquired(&store).await?;
    consul.kill();
    ensure!(matches!(store.renew(&lease).await, Write::Unknown(_)));
    let error = latest(&store).await.err().context("read from nobody")?;
    ensure!(
        format!("{error:#}").contains(&consul.address()),
        "{error:#}"
    );
    consul.run()?;
    consul.ready().await?;
    // A restarted server gives every session its full time again.
    eventually("renewal", async || {
        matches!(store.renew(&lease).await, Write::Done(())).then_some(())
    })
    .await?;
    let mut changes = store.changes();
    changes.borrow_and_update();
    consul
        .ask("PUT", "/v1/kv/service/demo/config", "{}")
        .await?;
    tokio::time::timeout(Duration::from_secs(15), changes.changed()).await??;
    eventually("the new config", async || {
        store.load(Freshness::Recent).await.ok()?.config
    })
    .await?;
    Ok(())
}

/// The server dies under an election and comes back.
async fn restart_amid_an_election() -> Outcome {
    let server = server().await?;
    let contenders = ["a", "b", "c"].map(|name| -> Store { open(name, &settings(&server)) });
    one_leads(contenders, RETRY, async {
        server.kill();
        server.run()?;
        server.ready().await
    })
    .await
}

/// The server comes back empty, counting from the beginning.
async fn wiped_server() -> Outcome {
    let consul = server().await?;
    let store: Store = open("a", &settings(&consul));
    for _ in 0..20 {
        done(store.put(Document::Config, "{}", Expect::Anything).await)?;
    }
    let lease = acquired(&store).await?;
    consul.kill();
    consul.wipe()?;
    consul.run()?;
    consul.ready().await?;
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

async fn services_follow_the_member() -> Outcome {
    let consul = server().await?;
    let settings = Settings {
        scope: "My_demo".to_owned(),
        service: Some(ServiceSettings {
            tags: vec!["blue".to_owned()],
            check_interval: "5s".to_owned(),
            check_tls_server_name: None,
        }),
        ..settings(&consul)
    };
    let store = open("pg1", &settings);
    let document = |state: &str, role: &str| {
        json!({
            "conn_url": "postgres://10.0.0.1:5433/postgres",
            "api_url": "http://10.0.0.1:8008/patroni",
            "state": state,
            "role": role,
        })
        .to_string()
    };
    let service = async || -> anyhow::Result<Value> {
        let services = consul.json("GET", "/v1/agent/services", "").await?;
        Ok(services["My_demo/pg1"].clone())
    };
    done(store.put_member(&document("running", "replica")).await)?;
    let seen = service().await?;
    ensure!(
        seen["Service"] == "my-demo" && seen["Port"] == 5433,
        "{seen}"
    );
    ensure!(seen["Tags"] == json!(["blue", "replica"]), "{seen}");
    done(store.put_member(&document("running", "primary")).await)?;
    let seen = service().await?;
    ensure!(
        seen["Tags"] == json!(["blue", "master", "primary"]),
        "{seen}"
    );
    let checks = consul.json("GET", "/v1/agent/checks", "").await?;
    ensure!(
        checks.as_object().is_some_and(|checks| checks.len() == 1),
        "{checks}"
    );
    done(store.put_member(&document("stopped", "replica")).await)?;
    ensure!(service().await?.is_null(), "still registered");
    Ok(())
}

/// A write whose answer is lost is read back where that proves something, and never repeated.
async fn lost_answer_is_read_back() -> Outcome {
    let consul = server().await?;
    let proxy = Proxy::start(&consul.address()).await;
    let settings = Settings {
        url: format!("http://{}", proxy.address),
        ..settings(&consul)
    };
    let store = open("a", &settings);
    let first = done(
        store
            .put(Document::Config, "{\"v\":1}", Expect::Absent)
            .await,
    )?;
    proxy.cut(Cut::AnswersLost);
    let second = store
        .put(Document::Config, "{\"v\":2}", Expect::At(first))
        .await;
    ensure!(matches!(second, Write::Unknown(_)), "{second:?}");
    proxy.mend().await;
    let config = eventually("a read", async || {
        store.load(Freshness::Latest).await.ok()?.config
    })
    .await?;
    ensure!(config.data["v"] == 2 && config.revision != first);
    refused(
        store
            .put(Document::Config, "{\"v\":3}", Expect::At(first))
            .await,
    )
}

async fn without_a_token_everything_is_rejected() -> Outcome {
    let consul = secured_server().await?;
    let settings = Settings {
        token: None,
        ..settings(&consul)
    };
    let store = open("a", &settings);
    let put = store.put(Document::Config, "{}", Expect::Anything).await;
    let Write::Refused(Refusal::Rejected(reason)) = &put else {
        anyhow::bail!("{put:?}");
    };
    ensure!(reason.contains("Permission denied"), "{reason}");
    // Reads are filtered by Consul, not refused: without rights there is nothing to see.
    let acquired = store.acquire().await;
    ensure!(
        matches!(acquired, Write::Refused(Refusal::Rejected(_))),
        "{acquired:?}"
    );
    Ok(())
}

async fn unknown_authority_is_an_error() -> Outcome {
    let consul = secured_server().await?;
    let others = Certificates::make()?;
    let stranger = Settings {
        cacert: Some(others.path("ca.pem")),
        ..settings(&consul)
    };
    let store: Store = open("a", &stranger);
    distrusts(&store).await?;
    let unverified = Settings {
        verify: false,
        ..stranger
    };
    let store = open("b", &unverified);
    eventually("a read", async || store.load(Freshness::Latest).await.ok()).await?;
    Ok(())
}
