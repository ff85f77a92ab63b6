//! ZooKeeper: one plain server, one with TLS and client certificates, Exhibitor in front of it, and cases of its own.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use howdah::dcs::zookeeper::{Settings, Zookeeper as Handle, connect, exhibitor};
use howdah::dcs::{Dcs, Document, Expect, Freshness, Identity, Refusal, Store, Write};
use howdah::types::MemberName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::{
    Backend, Case, Cut, Harness, acquired, distrusts, document, done, eventually, latest, name,
    one_leads, own, refused,
};
use crate::proxy::{Proxies, Proxy, each_goes_silent};
use crate::server::Certificates;
use crate::zookeeper_server::{Stranger, Zookeeper};

const TTL: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_secs(3);

/// The whole suite on one server.
pub(crate) struct OneServer {
    zookeeper: Rc<Zookeeper>,
    clusters: Cell<u32>,
}

pub(crate) async fn plain() -> anyhow::Result<Rc<dyn Backend>> {
    Ok(Rc::new(OneServer {
        zookeeper: Rc::new(Zookeeper::start(1, None).await?),
        clusters: Cell::new(0),
    }))
}

pub(crate) async fn secured() -> anyhow::Result<Rc<dyn Backend>> {
    let certificates = Certificates::make()?;
    Ok(Rc::new(OneServer {
        zookeeper: Rc::new(Zookeeper::start(1, Some(certificates)).await?),
        clusters: Cell::new(0),
    }))
}

#[async_trait(?Send)]
impl Backend for OneServer {
    async fn harness(&self, case: &str) -> anyhow::Result<Box<dyn Harness>> {
        self.clusters.set(self.clusters.get() + 1);
        Ok(Box::new(ZookeeperHarness {
            base: format!("/service/{case}-{}", self.clusters.get()),
            zookeeper: Rc::clone(&self.zookeeper),
            proxies: Proxies::default(),
        }))
    }

    /// Java has to warm up, and has two processors at best.
    fn at_once(&self) -> usize {
        5
    }

    fn own_cases(&self) -> Vec<Case> {
        if self.zookeeper.certificate("ca.pem").is_some() {
            return own![
                unknown_authority_is_an_error,
                encrypted_key_needs_its_password
            ];
        }
        own![
            what_python_nodes_see,
            python_holds_and_lets_go,
            a_loop_that_hangs_loses_its_keys,
            too_short_a_session_is_refused,
            nodes_of_others_are_protected,
            restarted_server,
            restart_amid_an_election,
            wiped_server,
            black_holed_server,
            server_after_server_fails,
            exhibitor_names_the_servers,
        ]
    }
}

fn settings(zookeeper: &Zookeeper) -> Settings {
    Settings {
        hosts: zookeeper.addresses(),
        use_ssl: zookeeper.certificate("ca.pem").is_some(),
        verify: true,
        cacert: zookeeper.certificate("ca.pem"),
        cert: zookeeper.certificate("client.pem"),
        key: zookeeper.certificate("client.key"),
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

struct ZookeeperHarness {
    zookeeper: Rc<Zookeeper>,
    base: String,
    proxies: Proxies,
}

impl ZookeeperHarness {
    async fn proxy(&self, name: &str) -> Rc<Proxy> {
        self.proxies.of(name, &self.zookeeper.address(0)).await
    }
}

#[async_trait(?Send)]
impl Harness for ZookeeperHarness {
    fn ttl(&self) -> Duration {
        TTL
    }

    fn retry_timeout(&self) -> Duration {
        RETRY
    }

    fn can_hand_over(&self) -> bool {
        false
    }

    fn folders_are_keys(&self) -> bool {
        true
    }

    async fn open(&self, name: &str) -> Store {
        let settings = Settings {
            hosts: vec![self.proxy(name).await.address.to_string()],
            ..settings(&self.zookeeper)
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
        let session = session.parse().unwrap();
        let address = self.zookeeper.admin_address();
        let owner = Stranger::impostor(&address, session).await.unwrap();
        owner.close().await.unwrap();
    }

    async fn put_raw(&self, relative: &str, value: &str) {
        // No path ends in a slash: such a key cannot be.
        if relative.ends_with('/') {
            return;
        }
        let mut stranger = Stranger::connect(&self.zookeeper.admin_address())
            .await
            .unwrap();
        let path = format!("{}/{relative}", self.base);
        stranger.put(&path, value, false).await.unwrap();
    }
}

type Outcome = anyhow::Result<()>;

async fn server() -> anyhow::Result<Zookeeper> {
    Zookeeper::start(1, None).await
}

/// Nodes, values and session as spec/dcs.md §5.5 has them.
async fn what_python_nodes_see() -> Outcome {
    let zookeeper = server().await?;
    let store = open("node1", &settings(&zookeeper));
    done(store.put_member(&document(1)).await)?;
    done(store.acquire().await)?;
    let first = done(
        store
            .put(Document::Config, "{\"ttl\":30}", Expect::Absent)
            .await,
    )?;
    done(
        store
            .put(Document::Config, "{\"ttl\":31}", Expect::At(first))
            .await,
    )?;
    done(
        store
            .put(Document::Sync, "{\"leader\":\"a\"}", Expect::Absent)
            .await,
    )?;
    done(store.delete(Document::Sync, Expect::Anything).await)?;
    let mut stranger = Stranger::connect(&zookeeper.admin_address()).await?;
    let mut see = async |relative: &str| stranger.get(&format!("/service/demo/{relative}")).await;
    let config = see("config").await?.context("no config")?;
    ensure!(config == ("{\"ttl\":31}".to_owned(), 1, 0), "{config:?}");
    let sync = see("sync").await?.context("no sync")?;
    ensure!(sync == ("{}".to_owned(), 1, 0), "{sync:?}");
    let leader = see("leader").await?.context("no leader")?;
    let member = see("members/node1").await?.context("no member")?;
    ensure!(
        leader.0 == "node1" && member.0 == document(1),
        "{leader:?} {member:?}"
    );
    ensure!(leader.2 != 0 && leader.2 == member.2, "two sessions");
    Ok(())
}

/// A Python node holds the lock, its session ends, and ours takes over at once.
async fn python_holds_and_lets_go() -> Outcome {
    let zookeeper = server().await?;
    let mut python = Stranger::connect(&zookeeper.admin_address()).await?;
    python
        .put(
            "/service/demo/members/python",
            "{\"role\": \"primary\"}",
            true,
        )
        .await?;
    python.put("/service/demo/leader", "python", true).await?;
    let store = open("node1", &settings(&zookeeper));
    let leader = store
        .load(Freshness::Latest)
        .await?
        .leader
        .context("no leader")?;
    ensure!(leader.name == name("python") && leader.session.is_some());
    refused(store.acquire().await)?;
    refused(store.adopt(&leader).await)?;
    eventually("the watch", async || {
        store.load(Freshness::Recent).await.ok()
    })
    .await?;
    let mut changes = store.changes();
    changes.borrow_and_update();
    python.close().await?;
    tokio::time::timeout(Duration::from_secs(2), changes.changed()).await??;
    let lease = done(store.acquire().await)?;
    done(store.renew(&lease).await)
}

/// A session that is not reopened ends, although the process lives, reads and watches.
async fn a_loop_that_hangs_loses_its_keys() -> Outcome {
    let zookeeper = server().await?;
    let (hung, other): (Store, Store) = (
        open("a", &settings(&zookeeper)),
        open("b", &settings(&zookeeper)),
    );
    done(hung.put_member(&document(1)).await)?;
    let lease = acquired(&hung).await?;
    let started = tokio::time::Instant::now();
    eventually("the end of the session", async || {
        // Something happens all the time, and the watch of the hung node reads it.
        let _ = other
            .put(Document::Status, "{\"optime\":1}", Expect::Anything)
            .await;
        let cluster = latest(&hung).await.ok()?;
        (cluster.is_unlocked() && cluster.members.is_empty()).then_some(())
    })
    .await?;
    ensure!(
        started.elapsed() < TTL * 2,
        "only after {:?}",
        started.elapsed()
    );
    refused(hung.renew(&lease).await)
}

/// The servers' longest session is shorter than ttl: nobody may lead on it.
async fn too_short_a_session_is_refused() -> Outcome {
    let zookeeper = server().await?;
    let mut identity = identity("a", "/service/demo");
    identity.ttl = Duration::from_secs(90);
    let store = connect(&identity, &settings(&zookeeper))?;
    let outcome = store.acquire().await;
    let Write::Refused(Refusal::Rejected(reason)) = &outcome else {
        anyhow::bail!("{outcome:?}");
    };
    ensure!(reason.contains("maxSessionTimeout"), "{reason}");
    ensure!(store.load(Freshness::Latest).await?.is_unlocked());
    Ok(())
}

/// `set_acls` and `auth_data`: a node of one user is closed to others.
async fn nodes_of_others_are_protected() -> Outcome {
    let zookeeper = server().await?;
    // sha1("howdah:secret") in base64, as DigestAuthenticationProvider makes it.
    let protected = Settings {
        set_acls: vec![(
            "digest:howdah:eT8GeJASu+xqB0jr7YH4QMkqLCU=".to_owned(),
            vec!["ALL".to_owned()],
        )],
        auth_data: vec![("digest".to_owned(), "howdah:secret".to_owned())],
        ..settings(&zookeeper)
    };
    let owner = open("a", &protected);
    done(owner.put(Document::Config, "{}", Expect::Absent).await)?;
    done(
        owner
            .put(Document::Config, "{\"ttl\":9}", Expect::Anything)
            .await,
    )?;
    let stranger = open("b", &settings(&zookeeper));
    let put = stranger.put(Document::Config, "{}", Expect::Anything).await;
    let Write::Refused(Refusal::Rejected(reason)) = &put else {
        anyhow::bail!("{put:?}");
    };
    ensure!(reason.contains("not permitted"), "{reason}");
    ensure!(stranger.load(Freshness::Latest).await.is_err());
    Ok(())
}

async fn restarted_server() -> Outcome {
    let zookeeper = server().await?;
    let store: Store = open("a", &settings(&zookeeper));
    store.set_timings(Duration::from_secs(20), RETRY);
    done(store.put_member(&document(1)).await)?;
    let lease = acquired(&store).await?;
    zookeeper.kill(0);
    ensure!(matches!(store.renew(&lease).await, Write::Unknown(_)));
    let error = latest(&store).await.err().context("read from nobody")?;
    ensure!(
        format!("{error:#}").contains(&zookeeper.address(0)),
        "{error:#}"
    );
    zookeeper.run(0)?;
    zookeeper.ready().await?;
    // A restarted server gives every session its full time again.
    eventually("renewal", async || {
        matches!(store.renew(&lease).await, Write::Done(())).then_some(())
    })
    .await?;
    let mut changes = store.changes();
    changes.borrow_and_update();
    let mut stranger = Stranger::connect(&zookeeper.admin_address()).await?;
    stranger.put("/service/demo/config", "{}", false).await?;
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
        server.kill(0);
        server.run(0)?;
        server.ready().await
    })
    .await
}

/// The server comes back empty, counting from the beginning.
async fn wiped_server() -> Outcome {
    let zookeeper = server().await?;
    let store: Store = open("a", &settings(&zookeeper));
    for _ in 0..20 {
        done(store.put(Document::Config, "{}", Expect::Anything).await)?;
    }
    let lease = acquired(&store).await?;
    zookeeper.kill(0);
    zookeeper.wipe(0)?;
    zookeeper.run(0)?;
    zookeeper.ready().await?;
    let cluster = eventually("a read", async || latest(&store).await.ok()).await?;
    ensure!(
        cluster == howdah::cluster::Cluster::default(),
        "{cluster:?}"
    );
    eventually("the refusal", async || {
        matches!(store.renew(&lease).await, Write::Refused(_)).then_some(())
    })
    .await?;
    done(store.put_member(&document(1)).await)?;
    acquired(&store).await?;
    eventually("a recent read", async || {
        let cluster = store.load(Freshness::Recent).await.ok()?;
        cluster.is_led_by(&name("a")).then_some(())
    })
    .await
}

/// Of two addresses one swallows everything: reads, renewals and the watch go on over the other, whichever it is.
async fn black_holed_server() -> Outcome {
    let server = server().await?;
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
        ..direct.clone()
    };
    let store: Store = open("a", &settings);
    let writer: Store = open("b", &direct);
    // The other one rests for longer than the usual time to live, too.
    for store in [&store, &writer] {
        store.set_timings(Duration::from_secs(30), RETRY * 2);
    }
    each_goes_silent(&store, &writer, &proxies).await
}

/// Three servers, each of them lost once, with whoever leads them.
async fn server_after_server_fails() -> Outcome {
    let zookeeper = Zookeeper::start(3, None).await?;
    let (a, b): (Store, Store) = (
        open("a", &settings(&zookeeper)),
        open("b", &settings(&zookeeper)),
    );
    for store in [&a, &b] {
        store.set_timings(Duration::from_secs(20), RETRY * 3);
    }
    let lease = acquired(&a).await?;
    for index in 0..3 {
        let (read, ()) = tokio::join!(a.load(Freshness::Latest), async { zookeeper.kill(index) });
        read.with_context(|| format!("server {index} dies under a read"))?;
        let put = format!("{{\"optime\":{}}}", index + 1);
        eventually("a renewal", async || {
            matches!(a.renew(&lease).await, Write::Done(())).then_some(())
        })
        .await
        .with_context(|| format!("server {index} is down"))?;
        eventually("a write", async || {
            matches!(
                a.put(Document::Status, &put, Expect::Anything).await,
                Write::Done(_)
            )
            .then_some(())
        })
        .await?;
        let wanted = u64::try_from(index)? + 1;
        eventually("the other member's view", async || {
            let cluster = b.load(Freshness::Recent).await.ok()?;
            (cluster.status.optime.0 == wanted).then_some(())
        })
        .await?;
        zookeeper.run(index)?;
        zookeeper.ready().await?;
    }
    refused(b.acquire().await)?;
    done(a.renew(&lease).await)
}

/// A stand-in for Exhibitor's one endpoint, which first names a server that is not there, in front of a real ZooKeeper.
async fn exhibitor_names_the_servers() -> Outcome {
    let zookeeper = server().await?;
    let real = zookeeper
        .address(0)
        .rsplit_once(':')
        .context("no port")?
        .1
        .to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let asked = Rc::new(Cell::new(0_u32));
    let count = Rc::clone(&asked);
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let known = request[..length].starts_with(b"GET /exhibitor/v1/cluster/list HTTP/1.1");
            count.set(count.get() + 1);
            let named = if count.get() == 1 { "1" } else { &real };
            let body = format!("{{\"servers\":[\"127.0.0.1\"],\"port\":{named}}}");
            let status = if known { "200 OK" } else { "404 Not Found" };
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let settings = exhibitor::Settings {
        hosts: vec!["127.0.0.1".to_owned()],
        port,
        poll_interval: Duration::from_secs(1),
        zookeeper: settings(&zookeeper),
    };
    let store: Store = exhibitor::connect(&identity("a", "/service/demo"), &settings)?;
    eventually("the right list", async || {
        matches!(
            store.put(Document::Config, "{}", Expect::Anything).await,
            Write::Done(_)
        )
        .then_some(())
    })
    .await?;
    ensure!(asked.get() >= 2, "asked {} times", asked.get());
    let lease = acquired(&store).await?;
    done(store.renew(&lease).await)?;
    ensure!(latest(&store).await?.is_led_by(&name("a")));
    Ok(())
}

async fn unknown_authority_is_an_error() -> Outcome {
    let zookeeper = Zookeeper::start(1, Some(Certificates::make()?)).await?;
    let others = Certificates::make()?;
    let stranger = Settings {
        cacert: Some(others.path("ca.pem")),
        ..settings(&zookeeper)
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

/// `key_password`: the client's key is kept encrypted.
async fn encrypted_key_needs_its_password() -> Outcome {
    let zookeeper = Zookeeper::start(1, Some(Certificates::make()?)).await?;
    let plain = settings(&zookeeper);
    let key = plain.key.clone().context("no key")?;
    let encrypted = key.with_extension("encrypted");
    let status = std::process::Command::new("openssl")
        .args(["pkcs8", "-topk8", "-passout", "pass:secret", "-in"])
        .arg(&key)
        .arg("-out")
        .arg(&encrypted)
        .status()
        .context("openssl is needed")?;
    ensure!(status.success(), "openssl pkcs8: {status}");
    let with = |password: Option<&str>| {
        let settings = Settings {
            key: Some(encrypted.clone()),
            key_password: password.map(str::to_owned),
            ..plain.clone()
        };
        connect(&identity("a", "/service/demo"), &settings)
    };
    for password in [None, Some("wrong")] {
        let error = with(password).err().context("connected without the key")?;
        ensure!(format!("{error:#}").contains("password"), "{error:#}");
    }
    let store = with(Some("secret"))?;
    eventually("a read", async || store.load(Freshness::Latest).await.ok()).await?;
    Ok(())
}
