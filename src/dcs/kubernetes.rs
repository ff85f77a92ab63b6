//! Kubernetes itself as the store: ConfigMaps or Endpoints for the cluster's state, pods for its members (spec/dcs.md §5.7).
//!
//! Nothing expires in Kubernetes. Whoever reads judges the leader's lease by its own clock ([`cache`]), and whoever writes names the
//! version that its decision was made on; of two at a time one gets a conflict ([`leader`]).
//!
//! No client library is used: the maintained one brings a framework of its own and hides which requests may have been carried out and
//! which server was asked.

pub mod access;
mod api;
mod cache;
mod leader;
mod object;
mod watcher;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::access::Access;
use self::api::{Api, Failure};
use self::cache::{Cache, Kind};
use self::object::{Annotations, Names, Object, Part, Record, RoleLabels};
use self::watcher::Source;
use super::{Dcs, DcsError, Document, Expect, Freshness, Identity, Lease, Refusal, Timings, Write};
use crate::clock;
use crate::cluster::{Cluster, Leader, Member, wire};
use crate::types::{MemberName, Moment, Revision};

/// The `kubernetes` section of the configuration, names and meanings as Patroni has them.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The API server and the credentials.
    pub access: Access,
    /// Where all objects are.
    pub namespace: String,
    /// The cluster's name.
    pub scope: String,
    /// Endpoints instead of ConfigMaps.
    pub use_endpoints: bool,
    /// Of all objects.
    pub labels: BTreeMap<String, String>,
    /// The label that has the cluster's name.
    pub scope_label: String,
    /// The label that has a pod's role.
    pub role_label: String,
    /// Its value on the leader.
    pub leader_label_value: String,
    /// Its value on a replica.
    pub follower_label_value: String,
    /// Its value on the leader of a standby cluster.
    pub standby_leader_label_value: String,
    /// A second label that has the role.
    pub tmp_role_label: Option<String>,
    /// Of a pod while its data directory is being made.
    pub bootstrap_labels: BTreeMap<String, String>,
    /// The pod's address; without one as Kubernetes says.
    pub pod_ip: Option<String>,
    /// Ports of the leader's Endpoints, `{name, port, protocol}` each; none means 5432.
    pub ports: Vec<Value>,
    /// Asks the API servers themselves, past the address in front of them.
    pub bypass_api_service: bool,
    /// Statuses that are tried again besides 500, 503 and 504.
    pub retriable_http_codes: Vec<u16>,
}

/// Opens the store. Nothing is sent yet: unreachable API servers show with the first call. Needs a running tokio runtime.
///
/// # Errors
/// Settings that can never work: no URL of a server.
pub fn connect(identity: &Identity, settings: &Settings) -> anyhow::Result<Arc<Kubernetes>> {
    // ctl asks once or twice; finding the servers would be half of that.
    let bypass = settings.bypass_api_service && identity.name.is_some();
    let api = Arc::new(Api::new(
        settings.access.clone(),
        &settings.retriable_http_codes,
        identity.timings(),
    )?);
    let mut labels = settings.labels.clone();
    labels.insert(settings.scope_label.clone(), settings.scope.clone());
    let names = Names {
        scope: settings.scope.clone(),
        group: identity.group,
        use_endpoints: settings.use_endpoints,
        labels,
    };
    let cache = Arc::new(Cache::new(
        identity.name.clone(),
        names.clone(),
        identity.ttl,
    ));
    let base = format!("/api/v1/namespaces/{}", settings.namespace);
    let state = if settings.use_endpoints {
        "endpoints"
    } else {
        "configmaps"
    };
    let source = |kind, plural: &str| Source {
        kind,
        path: format!("{base}/{plural}"),
        selector: names.selector(),
    };
    let sources = [source(Kind::State, state), source(Kind::Pod, "pods")];
    let mut tasks = Vec::new();
    if identity.name.is_some() {
        for source in &sources {
            let (api, cache) = (Arc::clone(&api), Arc::clone(&cache));
            tasks.push(tokio::spawn(watcher::run(api, cache, source.clone())));
        }
        tasks.push(tokio::spawn(watcher::watch_the_lease(Arc::clone(&cache))));
        if bypass {
            tasks.push(tokio::spawn(watcher::watch_the_servers(Arc::clone(&api))));
        }
    }
    let ports = if settings.ports.is_empty() {
        vec![json!({ "port": 5432 })]
    } else {
        settings.ports.clone()
    };
    let [state, pods] = sources;
    Ok(Arc::new(Kubernetes {
        name: identity.name.clone(),
        api,
        cache,
        names,
        state,
        pods,
        services: format!("{base}/services"),
        namespace: settings.namespace.clone(),
        pod_ip: settings.pod_ip.clone(),
        ports,
        role_labels: RoleLabels {
            role: settings.role_label.clone(),
            leader: settings.leader_label_value.clone(),
            follower: settings.follower_label_value.clone(),
            standby_leader: settings.standby_leader_label_value.clone(),
            temporary: settings.tmp_role_label.clone(),
            bootstrap: settings.bootstrap_labels.clone(),
        },
        has_service: AtomicBool::new(!settings.use_endpoints),
        tasks,
    }))
}

/// One node's connection to Kubernetes.
pub struct Kubernetes {
    name: Option<MemberName>,
    api: Arc<Api>,
    cache: Arc<Cache>,
    names: Names,
    state: Source,
    pods: Source,
    services: String,
    namespace: String,
    pod_ip: Option<String>,
    ports: Vec<Value>,
    role_labels: RoleLabels,
    /// The Service that keeps the config Endpoints from being cleared away is there, or nobody may make it.
    has_service: AtomicBool,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// How long after a sign of life of both watches the cache is as good as a read.
const SILENCE: Duration = Duration::from_secs(5);
/// What is left for the steps of one call (spec/dcs.md §4.3: a later step wants at least half a second).
const LEAST_STEP: Duration = Duration::from_millis(500);
/// Conflicts with writers of neighbouring annotations in one call.
const TRIES: u32 = 4;

/// The outcome of a write that ended in `failure`, when nothing can be learned by reading back.
fn failed<T>(failure: Failure) -> Write<T> {
    match failure {
        Failure::Unreachable(error) | Failure::Ambiguous(error) => Write::Unknown(error),
        Failure::Rejected(detail) | Failure::Forbidden(detail) => {
            Write::Refused(Refusal::Rejected(detail))
        }
        Failure::Conflict | Failure::Absent | Failure::Gone => {
            Write::Refused(Refusal::Precondition)
        }
    }
}

impl Kubernetes {
    fn me(&self) -> Result<&MemberName, Refusal> {
        self.name.as_ref().ok_or_else(|| {
            Refusal::Rejected(
                "this connection has no member name, so it cannot own a key".to_owned(),
            )
        })
    }

    /// The API servers that are asked, the first one first; for people.
    #[must_use]
    pub fn servers(&self) -> Vec<String> {
        self.api.servers()
    }

    fn path(&self, part: Part) -> String {
        format!("{}/{}", self.state.path, self.names.name(part))
    }

    /// Everything, newer than any write before, and kept in the cache.
    async fn read_all(&self, deadline: Moment) -> Result<Cluster, Failure> {
        tokio::try_join!(
            watcher::refresh(&self.api, &self.cache, &self.state, deadline),
            watcher::refresh(&self.api, &self.cache, &self.pods, deadline),
        )?;
        Ok(self.cache.snapshot())
    }

    /// One of the state's objects as it is now.
    async fn read(&self, deadline: Moment, part: Part) -> Result<Option<Object>, Failure> {
        let found = self.api.get(deadline, &self.path(part)).await?;
        if let Some(object) = &found {
            self.cache.put(Kind::State, object.clone(), false);
        }
        Ok(found)
    }

    async fn read_back(&self, deadline: Moment, part: Part) -> Option<Option<Object>> {
        if clock::now().until(deadline) < LEAST_STEP / 2 {
            return None;
        }
        self.read(deadline, part).await.ok()
    }

    async fn patch(
        &self,
        deadline: Moment,
        part: Part,
        annotations: &Annotations,
        version: Option<u64>,
        subsets: Option<&Value>,
    ) -> Result<Object, Failure> {
        let name = self.names.name(part);
        let labels = self.names.own_labels();
        let body = object::body(&name, &labels, annotations, version, subsets);
        let object = self.api.patch(deadline, &self.path(part), &body).await?;
        self.cache.put(Kind::State, object.clone(), false);
        Ok(object)
    }

    async fn create(
        &self,
        deadline: Moment,
        part: Part,
        annotations: &Annotations,
        subsets: Option<&Value>,
    ) -> Result<Object, Failure> {
        let name = self.names.name(part);
        let present: Annotations = annotations
            .iter()
            .filter(|(_, value)| value.is_some())
            .map(|(name, value)| (*name, value.clone()))
            .collect();
        let labels = self.names.own_labels();
        let body = object::body(&name, &labels, &present, None, subsets);
        let created = self.api.create(deadline, &self.state.path, &body).await;
        let object = created.map_err(|failure| match failure {
            Failure::Absent => Failure::Rejected(format!(
                "there is no namespace {}; see kubernetes.namespace",
                self.namespace
            )),
            other => other,
        })?;
        self.cache.put(Kind::State, object.clone(), false);
        if part == Part::Config {
            self.keep_config(deadline).await;
        }
        Ok(object)
    }

    /// Endpoints without a Service of their name are cleared away by Kubernetes' controller (spec/dcs.md §5.7).
    async fn keep_config(&self, deadline: Moment) {
        if self.has_service.load(Ordering::Relaxed) || self.cache.part(Part::Config).is_none() {
            return;
        }
        let body = json!({
            "metadata": { "name": self.names.name(Part::Config), "labels": self.names.own_labels() },
            "spec": { "clusterIP": "None" },
        });
        match self.api.create(deadline, &self.services, &body).await {
            Ok(_) | Err(Failure::Conflict) => self.has_service.store(true, Ordering::Relaxed),
            Err(Failure::Rejected(detail) | Failure::Forbidden(detail)) => {
                tracing::warn!("cannot create the Service that keeps the configuration: {detail}");
                self.has_service.store(true, Ordering::Relaxed);
            }
            Err(failure) => {
                let error = self.api.error(failure);
                tracing::debug!(%error, "the Service that keeps the configuration is not made yet");
            }
        }
    }

    /// Annotations and labels of this node's pod.
    async fn patch_pod(
        &self,
        deadline: Moment,
        name: &str,
        status: Option<&str>,
        labels: &BTreeMap<String, Option<String>>,
    ) -> Result<(), Failure> {
        let body = json!({
            "metadata": { "name": name, "labels": labels, "annotations": { "status": status } },
        });
        let path = format!("{}/{name}", self.pods.path);
        let pod = self.api.patch(deadline, &path, &body).await?;
        self.cache.put(Kind::Pod, pod, false);
        Ok(())
    }

    fn no_pod(name: &str) -> Refusal {
        Refusal::Rejected(format!(
            "there is no pod {name}: with kubernetes, a member's name must be its pod's"
        ))
    }

    /// Creates the object or adds to it; `version`: only if that is its version, or, with `None`, whatever it is.
    async fn write(
        &self,
        deadline: Moment,
        part: Part,
        annotations: &Annotations,
        version: Option<u64>,
    ) -> Result<Object, Failure> {
        for _ in 0..TRIES {
            match self.patch(deadline, part, annotations, version, None).await {
                Err(Failure::Absent) if version.is_none() => {}
                // Without a condition a conflict is one between the API server and its own store.
                Err(Failure::Conflict) if version.is_none() => continue,
                other => return other,
            }
            match self.create(deadline, part, annotations, None).await {
                Err(Failure::Conflict) => {}
                other => return other,
            }
        }
        Err(Failure::Ambiguous(self.api.describe(
            "the object changes faster than it can be written",
        )))
    }

    /// Writes a document that must not exist.
    async fn write_new(
        &self,
        deadline: Moment,
        document: Document,
        part: Part,
        annotations: &Annotations,
    ) -> Result<Object, Failure> {
        match self.read(deadline, part).await? {
            None => self.create(deadline, part, annotations, None).await,
            Some(object) if object::holds(&object, document) => Err(Failure::Conflict),
            Some(object) => {
                let version = Some(object.version);
                self.patch(deadline, part, annotations, version, None).await
            }
        }
    }
}

/// Whether a write that was not answered has happened, as far as the object tells.
fn is_as_written(object: &Object, annotations: &Annotations) -> bool {
    annotations
        .iter()
        .all(|(name, value)| object.annotation(name) == value.as_deref())
}

#[async_trait]
impl Dcs for Kubernetes {
    fn store(&self) -> &'static str {
        "kubernetes"
    }

    async fn load(&self, freshness: Freshness) -> Result<Cluster, DcsError> {
        if freshness == Freshness::Recent && self.cache.is_alive(SILENCE) {
            return Ok(self.cache.snapshot());
        }
        let loaded = self.read_all(self.api.deadline()).await;
        loaded.map_err(|failure| self.api.error(failure))
    }

    async fn load_groups(&self) -> Result<BTreeMap<u32, Cluster>, DcsError> {
        let deadline = self.api.deadline();
        let listed = tokio::try_join!(
            self.api
                .list(deadline, &self.state.path, &self.state.selector),
            self.api
                .list(deadline, &self.pods.path, &self.pods.selector),
        );
        listed
            .map(|(state, pods)| self.names.assemble_groups(&state.0, &pods.0))
            .map_err(|failure| self.api.error(failure))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.cache.changes()
    }

    async fn acquire(&self) -> Write<Lease> {
        self.claim().await
    }

    async fn adopt(&self, leader: &Leader) -> Write<Lease> {
        self.take_up(leader).await
    }

    /// By the create-only path, as Patroni (spec/dcs.md §4.1).
    async fn take(&self) -> Write<Lease> {
        self.claim().await
    }

    async fn renew(&self, lease: &Lease) -> Write {
        self.prolong(lease).await
    }

    async fn release(&self, lease: Lease) -> Write {
        self.let_go(&lease).await
    }

    async fn hand_over(&self, lease: Lease, candidate: &Member) -> (Write, Option<Lease>) {
        match self.give(&lease, &candidate.name).await {
            Write::Refused(Refusal::Precondition) => (Write::Refused(Refusal::Precondition), None),
            Write::Done(()) => (Write::Done(()), None),
            other => (other, Some(lease)),
        }
    }

    async fn put_member(&self, value: &str) -> Write {
        let me = match self.me() {
            Ok(me) => me.clone(),
            Err(refusal) => return Write::Refused(refusal),
        };
        let deadline = self.api.deadline();
        self.keep_config(deadline).await;
        let leads = self.cache.is_led()
            && self
                .cache
                .part(Part::Leader)
                .is_some_and(|object| Record::of(&object).leader.as_deref() == Some(me.as_str()));
        let member = wire::parse_member(me.clone(), None, value);
        let labels = self.role_labels.labels(&member, leads);
        // A watch that died silently must not keep this node from writing.
        let known = self
            .cache
            .pod(me.as_str())
            .filter(|_| self.cache.is_alive(SILENCE));
        let same = known.is_some_and(|pod| {
            let labelled = labels
                .iter()
                .all(|(name, value)| pod.labels.get(name) == value.as_ref());
            let said = pod.annotation("status");
            labelled && said.is_some_and(|said| wire::same_text(said, value))
        });
        if same {
            return Write::Done(());
        }
        match self
            .patch_pod(deadline, me.as_str(), Some(value), &labels)
            .await
        {
            Ok(()) => Write::Done(()),
            Err(Failure::Absent) => Write::Refused(Self::no_pod(me.as_str())),
            Err(failure) => failed(failure),
        }
    }

    async fn delete_member(&self) -> Write {
        let me = match self.me() {
            Ok(me) => me.clone(),
            Err(refusal) => return Write::Refused(refusal),
        };
        let deadline = self.api.deadline();
        let labels = BTreeMap::from([(self.role_labels.role.clone(), None)]);
        match self.patch_pod(deadline, me.as_str(), None, &labels).await {
            Ok(()) | Err(Failure::Absent) => Write::Done(()),
            Err(failure) => failed(failure),
        }
    }

    async fn put(&self, document: Document, value: &str, expect: Expect) -> Write<Revision> {
        let Some(part) = object::part_of(document) else {
            return Write::Done(Revision(0));
        };
        let annotations = match object::split(document, value) {
            Ok(annotations) => annotations,
            Err(detail) => return Write::Refused(Refusal::Rejected(detail)),
        };
        let deadline = self.api.deadline();
        let written = match expect {
            Expect::Anything => self.write(deadline, part, &annotations, None).await,
            Expect::At(revision) => {
                self.write(deadline, part, &annotations, Some(revision.0))
                    .await
            }
            Expect::Absent => self.write_new(deadline, document, part, &annotations).await,
        };
        match written {
            Ok(object) => Write::Done(Revision(object.version)),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, part).await {
                Some(Some(object))
                    if is_as_written(&object, &annotations) && may_be_ours(&object, expect) =>
                {
                    Write::Done(Revision(object.version))
                }
                _ => Write::Unknown(error),
            },
            Err(failure) => failed(failure),
        }
    }

    async fn delete(&self, document: Document, expect: Expect) -> Write {
        let Some(part) = object::part_of(document) else {
            return Write::Done(());
        };
        let annotations = object::nothing(document);
        let deadline = self.api.deadline();
        let version = match expect {
            Expect::Anything => None,
            Expect::At(revision) => Some(revision.0),
            Expect::Absent => return Write::Refused(Refusal::Precondition),
        };
        match self
            .patch(deadline, part, &annotations, version, None)
            .await
        {
            Ok(_) => Write::Done(()),
            Err(Failure::Absent) if version.is_none() => Write::Done(()),
            Err(Failure::Ambiguous(error)) => match self.read_back(deadline, part).await {
                Some(None) => Write::Done(()),
                Some(Some(object)) if is_as_written(&object, &annotations) => Write::Done(()),
                _ => Write::Unknown(error),
            },
            Err(failure) => failed(failure),
        }
    }

    /// The objects, and what the members have said in their pods; the pods themselves are their owner's.
    async fn delete_cluster(&self) -> Write {
        let deadline = self.api.deadline();
        let selector = self.names.own_selector();
        let deleted = self.api.delete_all(deadline, &self.state.path, &selector);
        if let Err(failure) = deleted.await {
            return failed(failure);
        }
        let pods = match self.api.list(deadline, &self.pods.path, &selector).await {
            Ok((pods, _)) => pods,
            Err(failure) => return failed(failure),
        };
        let labels = BTreeMap::from([(self.role_labels.role.clone(), None)]);
        for pod in pods.iter().filter(|pod| pod.annotation("status").is_some()) {
            match self.patch_pod(deadline, &pod.name, None, &labels).await {
                Ok(()) | Err(Failure::Absent) => {}
                Err(failure) => return failed(failure),
            }
        }
        match self.read_all(deadline).await {
            Ok(_) => Write::Done(()),
            Err(failure) => Write::Unknown(self.api.error(failure)),
        }
    }

    fn set_timings(&self, ttl: Duration, retry_timeout: Duration) {
        self.cache.set_ttl(ttl);
        self.api.set_timings(Timings { ttl, retry_timeout });
    }
}

/// Whether a document read back proves that a write with this condition has happened: nobody else can have put it there, or it does
/// not matter who did.
fn may_be_ours(object: &Object, expect: Expect) -> bool {
    match expect {
        Expect::Anything => true,
        Expect::At(revision) => object.version > revision.0,
        // A race for creation: the others write the same value (`initialize` is empty), so finding it proves nothing.
        Expect::Absent => false,
    }
}
