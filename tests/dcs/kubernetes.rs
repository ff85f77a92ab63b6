//! Kubernetes as the store, with ConfigMaps and with Endpoints, against a real API server; and cases of its own.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use howdah::dcs::kubernetes::access::Access;
use howdah::dcs::kubernetes::{Kubernetes as Handle, Settings, connect};
use howdah::dcs::{Document, Expect, Freshness, Identity, Refusal, Store, Write};
use howdah::types::MemberName;
use serde_json::{Value, json};

use crate::harness::{
    Backend, Case, Cut, Harness, acquired, distrusts, document, done, eventually, latest,
    load_until, name, one_leads, own, refused,
};
use crate::kubernetes_server::{ADMIN, Kind, Kubernetes, Options, STRANGER};
use crate::proxy::{Proxies, Proxy};
use crate::server::Certificates;

type Outcome = anyhow::Result<()>;

const TTL: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_secs(3);

/// The whole suite on one server, each case in a namespace of its own.
struct OneServer {
    kubernetes: Rc<Kubernetes>,
    kind: Kind,
    cases: Cell<u32>,
}

async fn backend(kind: Kind) -> anyhow::Result<Rc<dyn Backend>> {
    Ok(Rc::new(OneServer {
        kubernetes: Kubernetes::shared().await?,
        kind,
        cases: Cell::new(0),
    }))
}

pub(crate) async fn configmaps() -> anyhow::Result<Rc<dyn Backend>> {
    backend(Kind::ConfigMaps).await
}

pub(crate) async fn endpoints() -> anyhow::Result<Rc<dyn Backend>> {
    backend(Kind::Endpoints).await
}

#[async_trait(?Send)]
impl Backend for OneServer {
    async fn harness(&self, _case: &str) -> anyhow::Result<Box<dyn Harness>> {
        self.cases.set(self.cases.get() + 1);
        let namespace = format!("suite-{}-{}", self.kind.plural(), self.cases.get());
        self.kubernetes.namespace(&namespace).await?;
        Ok(Box::new(InNamespace {
            kubernetes: Rc::clone(&self.kubernetes),
            kind: self.kind,
            namespace,
            proxies: Proxies::default(),
            pods: RefCell::default(),
        }))
    }

    /// Each object of its single server goes to etcd's disk on its own.
    fn at_once(&self) -> usize {
        5
    }

    fn own_cases(&self) -> Vec<Case> {
        match self.kind {
            Kind::ConfigMaps => own![
                what_patroni_sees,
                patroni_holds_and_lets_go,
                clocks_of_others_do_not_matter,
                versions_of_the_decision_count,
                rights_of_the_manifests_suffice,
                without_rights_everything_is_rejected,
                unknown_authority_is_an_error,
                a_new_token_is_read,
                forgotten_versions_are_no_end,
                restart_amid_an_election,
            ],
            Kind::Endpoints => own![
                services_follow_the_leader,
                rights_of_the_manifests_suffice_with_endpoints,
                one_of_two_servers_dies,
                one_of_two_servers_stands_still,
            ],
        }
    }
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("application".to_owned(), "howdah".to_owned())])
}

/// The labels of everything in the cluster.
fn all_labels(group: Option<&str>) -> Value {
    let mut all = json!({ "application": "howdah", "cluster-name": "demo" });
    if let Some(group) = group {
        all["citus-group"] = group.into();
    }
    all
}

fn settings(access: Access, kind: Kind, namespace: &str) -> Settings {
    Settings {
        access,
        namespace: namespace.to_owned(),
        scope: "demo".to_owned(),
        use_endpoints: kind == Kind::Endpoints,
        labels: labels(),
        scope_label: "cluster-name".to_owned(),
        role_label: "role".to_owned(),
        leader_label_value: "primary".to_owned(),
        follower_label_value: "replica".to_owned(),
        standby_leader_label_value: "primary".to_owned(),
        tmp_role_label: None,
        bootstrap_labels: BTreeMap::new(),
        pod_ip: None,
        ports: vec![json!({ "name": "postgresql", "port": 5432 })],
        bypass_api_service: false,
        retriable_http_codes: Vec::new(),
    }
}

fn access(kubernetes: &Kubernetes, server: &str, token: &str) -> anyhow::Result<Access> {
    let authority = kubernetes.certificate("ca.pem");
    let access = Access::with_token_file(server, &authority, &authority)?;
    Ok(access.with_token(token))
}

fn identity(name: &str) -> Identity {
    Identity {
        name: MemberName::new(name).ok(),
        base: "/service/demo".to_owned(),
        group: None,
        ttl: TTL,
        retry_timeout: RETRY,
    }
}

struct InNamespace {
    kubernetes: Rc<Kubernetes>,
    kind: Kind,
    namespace: String,
    proxies: Proxies,
    pods: RefCell<BTreeSet<String>>,
}

impl InNamespace {
    async fn new(kubernetes: &Rc<Kubernetes>, kind: Kind, namespace: &str) -> anyhow::Result<Self> {
        kubernetes.namespace(namespace).await?;
        Ok(InNamespace {
            kubernetes: Rc::clone(kubernetes),
            kind,
            namespace: namespace.to_owned(),
            proxies: Proxies::default(),
            pods: RefCell::default(),
        })
    }

    async fn proxy(&self, name: &str) -> Rc<Proxy> {
        self.proxies.of(name, &self.kubernetes.address(0)).await
    }

    /// The pod of this member, made where there is none.
    async fn pod(&self, name: &str, group: Option<&str>) -> Outcome {
        if !self.pods.borrow_mut().insert(name.to_owned()) {
            return Ok(());
        }
        let labels = all_labels(group);
        let address = Some("10.1.2.3");
        self.kubernetes
            .pod(&self.namespace, name, &labels, address)
            .await
    }

    fn path(&self, plural: &str, name: &str) -> String {
        format!("/api/v1/namespaces/{}/{plural}/{name}", self.namespace)
    }

    /// One of the state's objects.
    async fn object(&self, name: &str) -> anyhow::Result<Value> {
        let path = self.path(self.kind.plural(), name);
        self.kubernetes.ask(ADMIN, "GET", &path, None).await?.good()
    }

    /// Writes annotations as somebody else would.
    async fn annotate(&self, name: &str, annotations: Value, group: Option<&str>) -> Outcome {
        let body = json!({ "metadata": {
            "name": name, "labels": all_labels(group), "annotations": annotations,
        } });
        let path = self.path(self.kind.plural(), name);
        let answer = self
            .kubernetes
            .ask(ADMIN, "PATCH", &path, Some(body.clone()))
            .await?;
        if answer.status == 404 {
            let path = path.rsplit_once('/').context("no path")?.0;
            self.kubernetes
                .ask(ADMIN, "POST", path, Some(body))
                .await?
                .good()?;
        } else {
            answer.good()?;
        }
        Ok(())
    }

    fn leader_name(&self, prefix: &str) -> String {
        match self.kind {
            Kind::ConfigMaps => format!("{prefix}-leader"),
            Kind::Endpoints => prefix.to_owned(),
        }
    }

    async fn handle(&self, name: &str) -> anyhow::Result<Arc<Handle>> {
        if !name.is_empty() {
            self.pod(name, None).await?;
        }
        let server = format!("https://{}", self.proxy(name).await.address);
        let access = access(&self.kubernetes, &server, ADMIN)?;
        connect(
            &identity(name),
            &settings(access, self.kind, &self.namespace),
        )
    }
}

#[async_trait(?Send)]
impl Harness for InNamespace {
    fn ttl(&self) -> Duration {
        TTL
    }

    fn retry_timeout(&self) -> Duration {
        RETRY
    }

    fn has_sessions(&self) -> bool {
        false
    }

    fn members_expire(&self) -> bool {
        false
    }

    async fn open(&self, name: &str) -> Store {
        self.handle(name).await.unwrap()
    }

    async fn cut(&self, name: &str, how: Cut) {
        self.proxy(name).await.cut(how);
    }

    async fn mend(&self, name: &str) {
        self.proxy(name).await.mend().await;
    }

    async fn kill_session(&self, _session: &str) {}

    async fn put_raw(&self, relative: &str, value: &str) {
        let (group, key) = match relative.split_once('/') {
            Some((group, key)) if group.bytes().all(|byte| byte.is_ascii_digit()) => {
                (Some(group), key)
            }
            _ => (None, relative),
        };
        let prefix = group.map_or_else(|| "demo".to_owned(), |group| format!("demo-{group}"));
        let (object, annotations) = match key {
            "leader" => (self.leader_name(&prefix), json!({ "leader": value })),
            "status" => (self.leader_name(&prefix), json!({ "optime": value })),
            "failsafe" => (self.leader_name(&prefix), json!({ "failsafe": value })),
            "config" | "initialize" | "history" => {
                (format!("{prefix}-config"), json!({ key: value }))
            }
            "sync" | "failover" => (format!("{prefix}-{key}"), json!({ "leader": value })),
            _ => {
                let name = key.strip_prefix("members/").unwrap_or_default();
                // Other keys have no place.
                if !name.is_empty() && !name.contains('/') {
                    self.pod(name, group).await.unwrap();
                    let body = json!({ "metadata": { "annotations": { "status": value } } });
                    let path = self.path("pods", name);
                    let answer = self.kubernetes.ask(ADMIN, "PATCH", &path, Some(body)).await;
                    answer.unwrap().good().unwrap();
                }
                return;
            }
        };
        self.annotate(&object, annotations, group).await.unwrap();
    }
}

/// A namespace of its own on the shared server.
async fn alone(namespace: &str, kind: Kind) -> anyhow::Result<InNamespace> {
    InNamespace::new(&Kubernetes::shared().await?, kind, namespace).await
}

/// Objects, annotations and labels are those that Patroni writes.
async fn what_patroni_sees() -> Outcome {
    let here = alone("seen", Kind::ConfigMaps).await?;
    let store = here.open("a").await;
    let status = r#"{"optime":67108960,"slots":{"b":67108960},"retain_slots":["b"]}"#;
    let lease = acquired(&store).await?;
    done(store.put(Document::Status, status, Expect::Anything).await)?;
    done(
        store
            .put(Document::Config, r#"{"ttl":30}"#, Expect::Absent)
            .await,
    )?;
    done(
        store
            .put(Document::Initialize, "7000", Expect::Anything)
            .await,
    )?;
    let sync = r#"{"leader":"a","quorum":1,"sync_standby":"b"}"#;
    done(store.put(Document::Sync, sync, Expect::Absent).await)?;
    done(
        store
            .put_member(r#"{"state":"running","role":"primary"}"#)
            .await,
    )?;
    let leader = here.object("demo-leader").await?;
    let said = &leader["metadata"]["annotations"];
    for (annotation, value) in [
        ("leader", "a"),
        ("ttl", "4"),
        ("transitions", "0"),
        ("optime", "67108960"),
        ("slots", r#"{"b":67108960}"#),
        ("retain_slots", r#"["b"]"#),
    ] {
        ensure!(said[annotation] == value, "{annotation}: {said}");
    }
    let acquired_at = said["acquireTime"].as_str().context("no acquireTime")?;
    ensure!(
        acquired_at.len() == 32 && acquired_at.ends_with("+00:00"),
        "{acquired_at}"
    );
    let labels = &leader["metadata"]["labels"];
    ensure!(labels["cluster-name"] == "demo" && labels["application"] == "howdah");
    let config = here.object("demo-config").await?;
    let said = &config["metadata"]["annotations"];
    ensure!(said["config"] == r#"{"ttl":30}"# && said["initialize"] == "7000");
    let sync = here.object("demo-sync").await?;
    ensure!(sync["metadata"]["annotations"]["quorum"] == "1");
    let pod = here
        .kubernetes
        .ask(ADMIN, "GET", &here.path("pods", "a"), None)
        .await?
        .good()?;
    ensure!(pod["metadata"]["labels"]["role"] == "primary", "{pod}");
    done(store.renew(&lease).await)?;
    let renewed = here.object("demo-leader").await?;
    let renewed = &renewed["metadata"]["annotations"];
    ensure!(renewed["acquireTime"] == acquired_at && renewed["optime"] == "67108960");
    done(store.release(lease).await)?;
    done(
        store
            .put_member(r#"{"state":"running","role":"replica"}"#)
            .await,
    )?;
    let released = here.object("demo-leader").await?;
    ensure!(released["metadata"]["annotations"]["leader"].is_null());
    let pod = here
        .kubernetes
        .ask(ADMIN, "GET", &here.path("pods", "a"), None)
        .await?
        .good()?;
    ensure!(pod["metadata"]["labels"]["role"] == "replica", "{pod}");
    acquired(&store).await?;
    let again = here.object("demo-leader").await?;
    ensure!(again["metadata"]["annotations"]["transitions"] == "1");
    Ok(())
}

/// A Patroni node leads, renews and goes; this one sees each of it and takes over.
async fn patroni_holds_and_lets_go() -> Outcome {
    let here = alone("patroni", Kind::ConfigMaps).await?;
    let store = here.open("a").await;
    for turn in 0..6 {
        here.annotate(
            "demo-leader",
            json!({
                "leader": "python", "ttl": "4", "transitions": "2",
                "acquireTime": "2026-01-01T00:00:00.000000+00:00",
                "renewTime": format!("2026-01-01T00:00:{turn:02}.000000+00:00"),
                "optime": turn.to_string(),
            }),
            None,
        )
        .await?;
        let seen = latest(&store).await?;
        ensure!(seen.is_led_by(&name("python")), "turn {turn}: {seen:?}");
        refused(store.acquire().await)?;
        here.elapse(TTL / 4).await;
    }
    here.annotate("demo-leader", json!({ "leader": null }), None)
        .await?;
    ensure!(latest(&store).await?.is_unlocked());
    acquired(&store).await?;
    let said = here.object("demo-leader").await?;
    ensure!(said["metadata"]["annotations"]["transitions"] == "3");
    Ok(())
}

/// What time a record tells says nothing: only when this node has seen it change.
async fn clocks_of_others_do_not_matter() -> Outcome {
    let here = alone("clocks", Kind::ConfigMaps).await?;
    for (who, year) in [("a", 1999), ("b", 2099)] {
        let store = here.open(who).await;
        let at = format!("{year}-01-01T00:00:00.000000+00:00");
        let record = json!({
            "leader": "python", "ttl": "4", "transitions": "0", "acquireTime": at, "renewTime": at,
        });
        here.annotate("demo-leader", record, None).await?;
        ensure!(latest(&store).await?.is_led_by(&name("python")), "{year}");
        refused(store.acquire().await)?;
        here.elapse(TTL / 2).await;
        refused(store.acquire().await).context("too early")?;
        load_until(&here, &store, TTL * 2, "expiry", |c| c.is_unlocked()).await?;
        let lease = acquired(&store).await?;
        done(store.release(lease).await)?;
    }
    Ok(())
}

/// Of two that decide on the same version one wins, and a neighbour's write is no lost race.
async fn versions_of_the_decision_count() -> Outcome {
    let here = alone("versions", Kind::ConfigMaps).await?;
    let (a, b) = (here.open("a").await, here.open("b").await);
    let lease = acquired(&a).await?;
    let seen = latest(&b).await?;
    ensure!(seen.is_led_by(&name("a")));
    for turn in 0..10 {
        // Somebody writes beside the lease all the time.
        let status = format!(r#"{{"optime":{turn}}}"#);
        let (written, renewed) = tokio::join!(
            b.put(Document::Status, &status, Expect::Anything),
            a.renew(&lease)
        );
        done(written)?;
        done(renewed).with_context(|| format!("turn {turn}"))?;
    }
    // An own renewal that was long on its way arrives before the next one: the same tenure.
    for turn in 0..10 {
        let late = json!({ "renewTime": format!("2026-01-01T00:00:{turn:02}.000000+00:00") });
        let (arrived, renewed) =
            tokio::join!(here.annotate("demo-leader", late, None), a.renew(&lease));
        arrived?;
        done(renewed).with_context(|| format!("late renewal {turn}"))?;
    }
    let first = done(
        b.put(Document::Sync, r#"{"leader":"a"}"#, Expect::Absent)
            .await,
    )?;
    done(
        a.put(Document::Sync, r#"{"leader":"b"}"#, Expect::At(first))
            .await,
    )?;
    latest(&b).await?;
    refused(
        b.put(Document::Sync, r#"{"leader":"c"}"#, Expect::At(first))
            .await,
    )?;
    ensure!(latest(&a).await?.sync.leader == Some(name("b")));
    Ok(())
}

/// Everything a member does, with no more rights than the manifests give it.
async fn a_members_day(kind: Kind, namespace: &str) -> Outcome {
    let kubernetes = Kubernetes::shared().await?;
    let here = InNamespace::new(&kubernetes, kind, namespace).await?;
    let token = kubernetes.member(namespace, kind).await?;
    here.pod("a", None).await?;
    let access = access(&kubernetes, &kubernetes.url(0), &token)?;
    let store: Store = connect(&identity("a"), &settings(access, kind, namespace))?;
    // Rights are the subject, not how busy the machine is.
    store.set_timings(TTL * 10, RETRY * 3);
    ensure!(latest(&store).await?.is_unlocked());
    done(store.put(Document::Initialize, "", Expect::Absent).await)?;
    done(store.put(Document::Config, "{}", Expect::Anything).await)?;
    let lease = acquired(&store).await?;
    done(store.put_member(&document(1)).await)?;
    done(store.renew(&lease).await)?;
    done(
        store
            .put(Document::Status, r#"{"optime":1}"#, Expect::Anything)
            .await,
    )?;
    let mut changes = store.changes();
    eventually("a living watch", async || {
        store
            .load(Freshness::Recent)
            .await
            .ok()
            .filter(|c| c.is_led_by(&name("a")))
    })
    .await?;
    changes.borrow_and_update();
    here.annotate("demo-failover", json!({ "member": "b" }), None)
        .await?;
    tokio::time::timeout(Duration::from_secs(5), changes.changed()).await??;
    done(store.delete(Document::Failover, Expect::Anything).await)?;
    done(store.release(lease).await)?;
    done(store.delete_cluster().await)
}

async fn rights_of_the_manifests_suffice() -> Outcome {
    a_members_day(Kind::ConfigMaps, "member-configmaps").await
}

async fn rights_of_the_manifests_suffice_with_endpoints() -> Outcome {
    a_members_day(Kind::Endpoints, "member-endpoints").await
}

async fn without_rights_everything_is_rejected() -> Outcome {
    let here = alone("stranger", Kind::ConfigMaps).await?;
    let access = access(&here.kubernetes, &here.kubernetes.url(0), STRANGER)?;
    let store: Store = connect(
        &identity("a"),
        &settings(access, Kind::ConfigMaps, "stranger"),
    )?;
    let error = store.load(Freshness::Latest).await.unwrap_err().to_string();
    ensure!(error.contains("403") && error.contains("Role"), "{error}");
    match store.put(Document::Config, "{}", Expect::Anything).await {
        Write::Refused(Refusal::Rejected(reason)) => {
            ensure!(reason.contains("demo-config"), "{reason}");
        }
        other => anyhow::bail!("{other:?}"),
    }
    match store.acquire().await {
        Write::Refused(Refusal::Rejected(_)) => Ok(()),
        other => anyhow::bail!("{other:?}"),
    }
}

async fn unknown_authority_is_an_error() -> Outcome {
    let here = alone("authority", Kind::ConfigMaps).await?;
    let others = Certificates::make()?;
    let authority = others.path("ca.pem");
    let access = Access::with_token_file(&here.kubernetes.url(0), &authority, &authority)?;
    let store: Store = connect(
        &identity("a"),
        &settings(access.with_token(ADMIN), Kind::ConfigMaps, "authority"),
    )?;
    distrusts(&store).await
}

/// Kubernetes replaces the token in a pod's file before it runs out; one that is not accepted any more is read again at once.
async fn a_new_token_is_read() -> Outcome {
    let here = alone("token", Kind::ConfigMaps).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("token");
    std::fs::write(&file, "not a token\n")?;
    let authority = here.kubernetes.certificate("ca.pem");
    let access = Access::with_token_file(&here.kubernetes.url(0), &file, &authority)?;
    let store: Store = connect(&identity("a"), &settings(access, Kind::ConfigMaps, "token"))?;
    let error = store.load(Freshness::Latest).await.unwrap_err().to_string();
    ensure!(error.contains("401"), "{error}");
    std::fs::write(&file, format!("{ADMIN}\n"))?;
    ensure!(latest(&store).await?.is_unlocked());
    Ok(())
}

/// A watch from a version that is forgotten (410) begins with a list again.
async fn forgotten_versions_are_no_end() -> Outcome {
    let flags = vec!["--watch-cache=false", "--min-request-timeout=1"];
    let kubernetes = Rc::new(Kubernetes::start(Options { servers: 1, flags }).await?);
    let here = InNamespace::new(&kubernetes, Kind::ConfigMaps, "gone").await?;
    let (a, b) = (here.open("a").await, here.open("b").await);
    done(
        a.put(Document::Config, r#"{"ttl":1}"#, Expect::Anything)
            .await,
    )?;
    eventually("a living watch", async || {
        b.load(Freshness::Recent)
            .await
            .ok()
            .filter(|c| c.config.is_some())
    })
    .await?;
    // What happens elsewhere moves the server's version on, and nobody tells this watch. When the server ends it after its time, it
    // begins again from a version that is forgotten.
    let elsewhere = InNamespace::new(&kubernetes, Kind::ConfigMaps, "elsewhere").await?;
    for turn in 0..4 {
        let turn = json!({ "config": turn.to_string() });
        elsewhere.annotate("demo-config", turn, None).await?;
    }
    kubernetes.compact().await?;
    let mut changes = b.changes();
    changes.borrow_and_update();
    tokio::time::timeout(Duration::from_secs(40), changes.changed())
        .await
        .context("no list after a forgotten version")??;
    done(
        a.put(Document::Config, r#"{"ttl":5}"#, Expect::Anything)
            .await,
    )?;
    eventually("the change after it", async || {
        let recent = b.load(Freshness::Recent).await.ok()?;
        recent.config.filter(|config| config.data["ttl"] == 5)
    })
    .await?;
    Ok(())
}

async fn restart_amid_an_election() -> Outcome {
    let kubernetes = Rc::new(Kubernetes::start(Options::default()).await?);
    let here = InNamespace::new(&kubernetes, Kind::ConfigMaps, "election").await?;
    let contenders = [
        here.open("a").await,
        here.open("b").await,
        here.open("c").await,
    ];
    one_leads(contenders, RETRY, async {
        kubernetes.kill(0);
        kubernetes.run(0)?;
        kubernetes.ready().await
    })
    .await
}

/// The Endpoints of the leader's Service name its pod and nobody else, and the settings have the Service that keeps them.
async fn services_follow_the_leader() -> Outcome {
    let here = alone("subsets", Kind::Endpoints).await?;
    let (a, b) = (here.handle("a").await?, here.open("b").await);
    ensure!(latest(&(Arc::clone(&a) as Store)).await?.is_unlocked());
    latest(&b).await?;
    let store: Store = a;
    let lease = acquired(&store).await?;
    let routed = |object: &Value| {
        let address = &object["subsets"][0]["addresses"][0];
        (address["ip"].clone(), address["targetRef"]["name"].clone())
    };
    let object = here.object("demo").await?;
    ensure!(
        routed(&object) == (json!("10.1.2.3"), json!("a")),
        "{object}"
    );
    ensure!(object["subsets"][0]["ports"][0]["port"] == 5432);
    done(store.put_member(&document(1)).await)?;
    done(b.put_member(&document(1)).await)?;
    let candidate = latest(&store).await?.members[&name("b")].clone();
    done(store.hand_over(lease, &candidate).await.0)?;
    let object = here.object("demo").await?;
    ensure!(object["subsets"].is_null(), "{object}");
    let leader = latest(&b).await?.leader.context("no leader")?;
    let lease = done(b.adopt(&leader).await)?;
    let object = here.object("demo").await?;
    ensure!(routed(&object).1 == "b", "{object}");
    done(b.release(lease).await)?;
    ensure!(here.object("demo").await?["subsets"].is_null());
    done(store.put(Document::Config, "{}", Expect::Anything).await)?;
    let path = here.path("services", "demo-config");
    let service = here
        .kubernetes
        .ask(ADMIN, "GET", &path, None)
        .await?
        .good()?;
    ensure!(service["spec"]["clusterIP"] == "None", "{service}");
    Ok(())
}

/// A leader keeps its lease while one of the API servers is out of order, and after that.
async fn outlives(
    namespace: &str,
    harm: impl Fn(&Kubernetes) -> Outcome,
    heal: impl Fn(&Kubernetes) -> Outcome,
) -> Outcome {
    let kubernetes = Rc::new(
        Kubernetes::start(Options {
            servers: 2,
            flags: Vec::new(),
        })
        .await?,
    );
    kubernetes.publish(&kubernetes.addresses()).await?;
    let here = InNamespace::new(&kubernetes, Kind::Endpoints, namespace).await?;
    here.pod("a", None).await?;
    let access = access(&kubernetes, &kubernetes.url(0), ADMIN)?;
    let settings = Settings {
        bypass_api_service: true,
        ..settings(access, Kind::Endpoints, namespace)
    };
    let handle = connect(&identity("a"), &settings)?;
    let store: Store = Arc::clone(&handle) as Store;
    // What counts here is that no call fails, not how late it comes on a busy machine.
    store.set_timings(TTL * 5, RETRY);
    latest(&store).await?;
    let lease = acquired(&store).await?;
    done(store.renew(&lease).await)?;
    eventually("both servers are known", async || {
        // They, and the address in front of them.
        (handle.servers().len() == 3).then_some(())
    })
    .await?;
    harm(&kubernetes)?;
    for turn in 0..4 {
        done(store.renew(&lease).await).with_context(|| format!("turn {turn}"))?;
        ensure!(latest(&store).await?.is_led_by(&name("a")));
    }
    heal(&kubernetes)?;
    kubernetes.ready().await?;
    done(store.renew(&lease).await)?;
    done(store.release(lease).await)
}

async fn one_of_two_servers_dies() -> Outcome {
    let kill = |kubernetes: &Kubernetes| {
        kubernetes.kill(0);
        Ok(())
    };
    outlives("dies", kill, |kubernetes| kubernetes.run(0)).await
}

async fn one_of_two_servers_stands_still() -> Outcome {
    outlives("still", |it| it.pause(0), |it| it.resume(0)).await
}
