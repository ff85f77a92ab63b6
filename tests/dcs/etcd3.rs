//! etcd: one plain node, one with TLS, client certificates and authentication, and cases with clusters of their own.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use etcd_client::{GetOptions, Permission};
use howdah::dcs::etcd3::{Etcd3, Settings, connect};
use howdah::dcs::{Dcs, Document, Expect, Freshness, Identity, Refusal, Store, Write};
use howdah::types::MemberName;

use crate::etcd_server::{Etcd, Options};
use crate::harness::{
    Backend, Case, Cut, Harness, acquired, distrusts, document, done, eventually, latest, name,
    one_leads, own, refused,
};
use crate::proxy::{Proxies, Proxy};
use crate::server::Certificates;

const TTL: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_secs(3);
const BASE: &str = "/service/demo";

/// The whole suite on one server.
pub(crate) struct OneNode {
    etcd: Rc<Etcd>,
    user: Option<(&'static str, &'static str)>,
    clusters: Cell<u32>,
}

pub(crate) async fn plain() -> anyhow::Result<Rc<dyn Backend>> {
    Ok(Rc::new(OneNode {
        etcd: Rc::new(Etcd::start(Options::default()).await?),
        user: None,
        clusters: Cell::new(0),
    }))
}

pub(crate) async fn secured() -> anyhow::Result<Rc<dyn Backend>> {
    let etcd = secured_server().await?;
    Ok(Rc::new(OneNode {
        etcd: Rc::new(etcd),
        user: Some(("howdah", "secret")),
        clusters: Cell::new(0),
    }))
}

/// TLS both ways and authentication, with tokens that last for seconds only: every case sees several of them.
async fn secured_server() -> anyhow::Result<Etcd> {
    let etcd = Etcd::start(Options {
        certificates: Some(Certificates::make()?),
        flags: vec!["--auth-token-ttl", "3", "--bcrypt-cost", "4"],
        ..Options::default()
    })
    .await?;
    let mut admin = etcd.admin_of(0).await?;
    admin.user_add("root", "root", None).await?;
    admin.user_grant_role("root", "root").await?;
    admin.role_add("patroni").await?;
    let everything = Permission::read_write("/service/").with_prefix();
    admin.role_grant_permission("patroni", everything).await?;
    admin.user_add("howdah", "secret", None).await?;
    admin.user_grant_role("howdah", "patroni").await?;
    admin.auth_enable().await?;
    Ok(etcd)
}

impl OneNode {
    async fn admin(&self) -> anyhow::Result<etcd_client::Client> {
        match self.user {
            Some(_) => self.etcd.admin_as("root", "root").await,
            None => self.etcd.admin_of(0).await,
        }
    }
}

#[async_trait(?Send)]
impl Backend for OneNode {
    async fn harness(&self, case: &str) -> anyhow::Result<Box<dyn Harness>> {
        self.clusters.set(self.clusters.get() + 1);
        Ok(Box::new(EtcdHarness {
            base: format!("/service/{case}-{}", self.clusters.get()),
            settings: settings(&self.etcd, self.user),
            etcd: Rc::clone(&self.etcd),
            admin: self.admin().await?,
            proxies: Proxies::default(),
        }))
    }

    fn own_cases(&self) -> Vec<Case> {
        if self.user.is_some() {
            return own![
                token_of_a_restarted_server,
                wrong_password_is_an_error,
                forbidden_write_is_rejected,
                unknown_authority_is_an_error,
                no_cacert_means_no_verification,
                unreadable_certificate_is_a_setting_error,
                service_records_that_do_not_exist,
            ];
        }
        own![
            what_python_nodes_see,
            python_rebinds_and_takes_over,
            starts_before_the_store,
            restarted_node,
            restart_amid_an_election,
            wiped_store,
            node_after_node_fails,
            nodes_are_discovered,
            lost_quorum,
            compaction_while_away,
            lost_answer_is_read_back,
        ]
    }
}

fn settings(etcd: &Etcd, user: Option<(&str, &str)>) -> Settings {
    let secured = etcd.certificate("ca.pem").is_some();
    Settings {
        hosts: etcd.addresses(),
        srv: None,
        srv_suffix: None,
        protocol: if secured { "https" } else { "http" }.to_owned(),
        username: user.map(|(name, _)| name.to_owned()),
        password: user.map(|(_, password)| password.to_owned()),
        cacert: etcd.certificate("ca.pem"),
        cert: etcd.certificate("client.pem"),
        key: etcd.certificate("client.key"),
        use_proxies: false,
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

fn open(name: &str, settings: &Settings) -> Arc<Etcd3> {
    connect(&identity(name, BASE), settings).unwrap()
}

struct EtcdHarness {
    etcd: Rc<Etcd>,
    base: String,
    settings: Settings,
    admin: etcd_client::Client,
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

    async fn open(&self, name: &str) -> Store {
        let proxy = self.proxy(name).await;
        let settings = Settings {
            hosts: vec![proxy.address.to_string()],
            use_proxies: true,
            ..self.settings.clone()
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
        let lease = session.parse().unwrap();
        self.admin.lease_client().revoke(lease).await.unwrap();
    }

    async fn put_raw(&self, relative: &str, value: &str) {
        let key = format!("{}/{relative}", self.base);
        self.admin.kv_client().put(key, value, None).await.unwrap();
    }
}

type Outcome = anyhow::Result<()>;

async fn nodes(count: usize) -> anyhow::Result<Etcd> {
    Etcd::start(Options {
        nodes: count,
        ..Options::default()
    })
    .await
}

/// Keys, values and leases as spec/dcs.md §5.3 has them.
async fn what_python_nodes_see() -> Outcome {
    let etcd = nodes(1).await?;
    let store = open("node1", &settings(&etcd, None));
    done(store.put_member(&document(1)).await)?;
    done(store.acquire().await)?;
    done(
        store
            .put(Document::Config, "{\"ttl\":30}", Expect::Absent)
            .await,
    )?;
    done(
        store
            .put(Document::LegacyOptime, "17", Expect::Anything)
            .await,
    )?;
    let mut admin = etcd.admin_of(0).await?;
    let all = admin
        .get("", Some(GetOptions::new().with_all_keys()))
        .await?;
    let seen: Vec<_> = all
        .kvs()
        .iter()
        .map(|kv| {
            (
                kv.key_str().unwrap(),
                kv.value_str().unwrap(),
                kv.lease() != 0,
            )
        })
        .collect();
    let member = document(1);
    let expected = [
        ("/service/demo/config", "{\"ttl\":30}", false),
        ("/service/demo/leader", "node1", true),
        ("/service/demo/members/node1", member.as_str(), true),
        ("/service/demo/optime/leader", "17", false),
    ];
    ensure!(seen == expected, "{seen:?}");
    ensure!(all.kvs()[1].lease() == all.kvs()[2].lease(), "two leases");
    let lease = admin
        .lease_client()
        .time_to_live(all.kvs()[1].lease(), None)
        .await?;
    ensure!(
        lease.granted_ttl() == 4,
        "granted {} s",
        lease.granted_ttl()
    );
    Ok(())
}

/// A Python node acquires, its leader key expires with its lease, and ours takes over at once.
async fn python_rebinds_and_takes_over() -> Outcome {
    let etcd = nodes(1).await?;
    let mut admin = etcd.admin_of(0).await?;
    let lease = admin.lease_grant(60, None).await?.id();
    let on_lease = etcd_client::PutOptions::new().with_lease(lease);
    admin
        .put(
            "/service/demo/members/python",
            "{\"role\": \"primary\"}",
            Some(on_lease.clone()),
        )
        .await?;
    admin
        .put("/service/demo/leader", "python", Some(on_lease))
        .await?;
    let store = open("node1", &settings(&etcd, None));
    let cluster = store.load(Freshness::Recent).await?;
    let leader = cluster.leader.clone().context("no leader")?;
    ensure!(leader.session == cluster.members[&name("python")].session && leader.session.is_some());
    refused(store.acquire().await)?;
    refused(store.adopt(&leader).await)?;
    let mut changes = store.changes();
    changes.borrow_and_update();
    admin.lease_revoke(lease).await?;
    tokio::time::timeout(Duration::from_secs(2), changes.changed()).await??;
    let cluster = store.load(Freshness::Recent).await?;
    ensure!(cluster.is_unlocked() && cluster.members.is_empty());
    // Given back the way Patroni's hand-over would: our name on the lease of our member key.
    done(store.put_member(&document(1)).await)?;
    let ours = store.load(Freshness::Latest).await?.members[&name("node1")]
        .session
        .clone();
    let ours: i64 = ours.context("no session")?.parse()?;
    let on_ours = etcd_client::PutOptions::new().with_lease(ours);
    admin
        .put("/service/demo/leader", "node1", Some(on_ours))
        .await?;
    let leader = store
        .load(Freshness::Latest)
        .await?
        .leader
        .context("no leader")?;
    let lease = done(store.adopt(&leader).await)?;
    done(store.renew(&lease).await)
}

async fn starts_before_the_store() -> Outcome {
    let etcd = Etcd::prepare(Options::default())?;
    let store: Store = open("a", &settings(&etcd, None));
    let error = latest(&store).await.err().context("read from nobody")?;
    ensure!(
        format!("{error:#}").contains(&etcd.address(0)),
        "no address in {error:#}"
    );
    ensure!(
        format!("{error:#}").contains("refused"),
        "no reason in {error:#}"
    );
    let mut changes = store.changes();
    etcd.run(0)?;
    eventually("the first read", async || latest(&store).await.ok()).await?;
    let lease = acquired(&store).await?;
    done(store.renew(&lease).await)?;
    etcd.admin_of(0)
        .await?
        .put("/service/demo/config", "{}", None)
        .await?;
    tokio::time::timeout(Duration::from_secs(10), changes.changed()).await??;
    Ok(())
}

async fn restarted_node() -> Outcome {
    let etcd = nodes(1).await?;
    let store: Store = open("a", &settings(&etcd, None));
    done(store.put_member(&document(1)).await)?;
    let lease = acquired(&store).await?;
    store.load(Freshness::Recent).await?;
    etcd.kill(0);
    ensure!(matches!(store.renew(&lease).await, Write::Unknown(_)));
    etcd.run(0)?;
    etcd.ready().await?;
    // A restarted etcd gives every lease its full time again.
    eventually("renewal", async || {
        matches!(store.renew(&lease).await, Write::Done(())).then_some(())
    })
    .await?;
    let mut changes = store.changes();
    etcd.admin_of(0)
        .await?
        .put("/service/demo/config", "{}", None)
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
    let server = nodes(1).await?;
    let contenders = ["a", "b", "c"].map(|name| -> Store { open(name, &settings(&server, None)) });
    one_leads(contenders, RETRY, async {
        server.kill(0);
        server.run(0)?;
        server.ready().await
    })
    .await
}

/// The store comes back empty: history starts anew, with smaller revisions and perhaps the same cluster id.
async fn wiped_store() -> Outcome {
    let etcd = nodes(1).await?;
    let store: Store = open("a", &settings(&etcd, None));
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

async fn node_after_node_fails() -> Outcome {
    let etcd = nodes(3).await?;
    let (a, b): (Store, Store) = (
        open("a", &settings(&etcd, None)),
        open("b", &settings(&etcd, None)),
    );
    // The node that dies may be the one that leads etcd, whose election takes a second or two.
    for store in [&a, &b] {
        store.set_timings(TTL * 5, RETRY * 2);
    }
    let lease = acquired(&a).await?;
    for index in 0..3 {
        etcd.kill(index);
        done(a.renew(&lease).await).with_context(|| format!("node {index} is down"))?;
        let text = format!("{{\"optime\":{}}}", index + 1);
        let wanted = u64::try_from(index)? + 1;
        match a.put(Document::Status, &text, Expect::Anything).await {
            Write::Done(_) => {}
            Write::Unknown(_) => {
                done(a.put(Document::Status, &text, Expect::Anything).await)?;
            }
            Write::Refused(refusal) => anyhow::bail!("{refusal:?}"),
        }
        ensure!(a.load(Freshness::Recent).await?.status.optime.0 == wanted);
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
        ..settings(&etcd, None)
    };
    let (knowing, unknowing) = (open("a", &one), {
        let proxies = Settings {
            use_proxies: true,
            ..one.clone()
        };
        open("b", &proxies)
    });
    for store in [&knowing, &unknowing] {
        store.set_timings(TTL * 5, RETRY * 2);
        store.load(Freshness::Latest).await?;
    }
    eventually("discovery", async || {
        (knowing.known_nodes() == 3).then_some(())
    })
    .await?;
    etcd.kill(0);
    done(knowing.put(Document::Config, "{}", Expect::Anything).await)
        .or_else(|_| Ok::<_, anyhow::Error>(howdah::types::Revision(0)))?;
    knowing.load(Freshness::Latest).await?;
    ensure!(unknowing.load(Freshness::Latest).await.is_err());
    Ok(())
}

/// A node that lost its quorum must not serve its old copy, neither by read nor by watch.
async fn lost_quorum() -> Outcome {
    let etcd = nodes(3).await?;
    let store: Store = open("a", &settings(&etcd, None));
    let lease = acquired(&store).await?;
    store.load(Freshness::Recent).await?;
    etcd.kill(1);
    etcd.kill(2);
    ensure!(latest(&store).await.is_err());
    ensure!(!matches!(store.renew(&lease).await, Write::Done(())));
    eventually("the end of the recent copy", async || {
        store.load(Freshness::Recent).await.err()
    })
    .await?;
    let put = store.put(Document::Config, "{}", Expect::Anything).await;
    ensure!(matches!(put, Write::Unknown(_)), "{put:?}");
    etcd.run(1)?;
    eventually("recovery", async || latest(&store).await.ok()).await?;
    eventually("a write", async || {
        matches!(
            store.put(Document::Config, "{}", Expect::Anything).await,
            Write::Done(_)
        )
        .then_some(())
    })
    .await
}

async fn compaction_while_away() -> Outcome {
    let etcd = nodes(1).await?;
    let proxy = Proxy::start(&etcd.address(0)).await;
    let settings = Settings {
        hosts: vec![proxy.address.to_string()],
        use_proxies: true,
        ..settings(&etcd, None)
    };
    let store: Store = open("a", &settings);
    store.load(Freshness::Recent).await?;
    let mut changes = store.changes();
    let mut admin = etcd.admin_of(0).await?;
    proxy.cut(Cut::Silent);
    let mut revision = 0;
    for turn in 0..50 {
        let put = admin
            .put(
                "/service/demo/failover",
                format!("{{\"member\":\"m{turn}\"}}"),
                None,
            )
            .await?;
        revision = put.header().context("no header")?.revision();
    }
    admin.delete("/service/demo/failover", None).await?;
    admin
        .put("/service/demo/config", "{\"turn\":50}", None)
        .await?;
    admin.compact(revision + 1, None).await?;
    // Long enough for the silence to count as the end of the watch.
    eventually("the end of the recent copy", async || {
        store.load(Freshness::Recent).await.err()
    })
    .await?;
    changes.borrow_and_update();
    proxy.mend().await;
    tokio::time::timeout(Duration::from_secs(20), changes.changed()).await??;
    let cluster = eventually("a recent read", async || {
        store.load(Freshness::Recent).await.ok()
    })
    .await?;
    ensure!(cluster.failover.is_none() && cluster.config.is_some());
    Ok(())
}

/// A write whose answer is lost is read back through another node, not repeated.
async fn lost_answer_is_read_back() -> Outcome {
    let etcd = nodes(1).await?;
    let through = async || {
        let first = Proxy::start(&etcd.address(0)).await;
        let second = Proxy::start(&etcd.address(0)).await;
        let settings = Settings {
            hosts: vec![first.address.to_string(), second.address.to_string()],
            use_proxies: true,
            ..settings(&etcd, None)
        };
        (first, second, open("a", &settings))
    };
    let mut admin = etcd.admin_of(0).await?;

    let (proxy, _other, store) = through().await;
    let first = done(
        store
            .put(Document::Config, "{\"v\":1}", Expect::Absent)
            .await,
    )?;
    proxy.cut(Cut::AnswersLost);
    let second = done(
        store
            .put(Document::Config, "{\"v\":2}", Expect::At(first))
            .await,
    )?;
    let stored = admin.get("/service/demo/config", None).await?;
    let stored = stored.kvs().first().context("no config")?;
    ensure!(stored.version() == 2, "written {} times", stored.version());
    ensure!(stored.mod_revision() == i64::try_from(second.0)?);

    // The empty `initialize` could be anybody's: finding it proves nothing.
    let (proxy, _other, store) = through().await;
    store.load(Freshness::Latest).await?;
    proxy.cut(Cut::AnswersLost);
    let claim = store.put(Document::Initialize, "", Expect::Absent).await;
    ensure!(matches!(claim, Write::Unknown(_)), "{claim:?}");
    ensure!(
        admin
            .get("/service/demo/initialize", None)
            .await?
            .kvs()
            .len()
            == 1
    );

    // Reads and renewals go to the next node by themselves.
    let (proxy, _other, store) = through().await;
    let lease = done(store.acquire().await)?;
    proxy.cut(Cut::AnswersLost);
    done(store.renew(&lease).await)?;
    done(store.release(lease).await)?;
    ensure!(
        admin
            .get("/service/demo/leader", None)
            .await?
            .kvs()
            .is_empty()
    );
    Ok(())
}

async fn token_of_a_restarted_server() -> Outcome {
    let etcd = secured_server().await?;
    let store: Store = open("a", &settings(&etcd, Some(("howdah", "secret"))));
    let lease = acquired(&store).await?;
    // The server forgets all tokens.
    etcd.kill(0);
    etcd.run(0)?;
    etcd.ready().await?;
    eventually("renewal", async || {
        matches!(store.renew(&lease).await, Write::Done(())).then_some(())
    })
    .await?;
    done(store.put(Document::Config, "{}", Expect::Anything).await)?;
    let mut admin = etcd.admin_as("root", "root").await?;
    admin
        .put("/service/demo/failover", "{\"member\":\"a\"}", None)
        .await?;
    eventually("the watch", async || {
        store.load(Freshness::Recent).await.ok()?.failover
    })
    .await?;
    Ok(())
}

async fn wrong_password_is_an_error() -> Outcome {
    let etcd = secured_server().await?;
    let store = open("a", &settings(&etcd, Some(("howdah", "wrong"))));
    let error = store
        .load(Freshness::Latest)
        .await
        .err()
        .context("read without a login")?;
    ensure!(
        error.to_string().contains("authentication failed"),
        "{error}"
    );
    ensure!(error.to_string().contains(&etcd.address(0)), "{error}");
    let put = store.put(Document::Config, "{}", Expect::Anything).await;
    ensure!(
        matches!(put, Write::Refused(Refusal::Rejected(_))),
        "{put:?}"
    );
    // A reload of the configuration brings the right one.
    store.set_credentials(Some("howdah".to_owned()), Some("secret".to_owned()));
    done(store.put(Document::Config, "{}", Expect::Anything).await)?;
    Ok(())
}

async fn forbidden_write_is_rejected() -> Outcome {
    let etcd = secured_server().await?;
    let settings = settings(&etcd, Some(("howdah", "secret")));
    let store = connect(&identity("a", "/elsewhere/demo"), &settings)?;
    let put = store.put(Document::Config, "{}", Expect::Anything).await;
    let Write::Refused(Refusal::Rejected(reason)) = &put else {
        anyhow::bail!("{put:?}");
    };
    ensure!(reason.contains("permission denied"), "{reason}");
    ensure!(store.load(Freshness::Latest).await.is_err());
    Ok(())
}

async fn unknown_authority_is_an_error() -> Outcome {
    let etcd = secured_server().await?;
    let others = Certificates::make()?;
    let settings = Settings {
        cacert: Some(others.path("ca.pem")),
        ..settings(&etcd, Some(("howdah", "secret")))
    };
    let store: Store = open("a", &settings);
    distrusts(&store).await
}

async fn no_cacert_means_no_verification() -> Outcome {
    let etcd = secured_server().await?;
    let settings = Settings {
        cacert: None,
        cert: etcd.certificate("client-both.pem"),
        key: None,
        ..settings(&etcd, Some(("howdah", "secret")))
    };
    open("a", &settings).load(Freshness::Latest).await?;
    // Without its client certificate nobody gets in.
    let settings = Settings {
        cert: None,
        ..settings
    };
    ensure!(open("a", &settings).load(Freshness::Latest).await.is_err());
    Ok(())
}

async fn unreadable_certificate_is_a_setting_error() -> Outcome {
    let settings = Settings {
        hosts: vec!["127.0.0.1".to_owned()],
        cacert: Some("/nonexistent/ca.pem".into()),
        ..Settings::default()
    };
    let error = connect(&identity("a", BASE), &settings)
        .err()
        .context("connected")?;
    ensure!(
        format!("{error:#}").contains("/nonexistent/ca.pem"),
        "{error:#}"
    );
    Ok(())
}

async fn service_records_that_do_not_exist() -> Outcome {
    let settings = Settings {
        srv: Some("nowhere.invalid".to_owned()),
        ..Settings::default()
    };
    let load = connect(&identity("a", BASE), &settings)?;
    let bound = RETRY + Duration::from_secs(1);
    let error = tokio::time::timeout(bound, load.load(Freshness::Latest)).await?;
    let error = error.err().context("read from nobody")?;
    ensure!(error.to_string().contains("no service record"), "{error}");
    Ok(())
}
