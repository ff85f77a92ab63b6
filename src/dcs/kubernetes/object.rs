//! What the cluster's state looks like in Kubernetes (spec/dcs.md §5.7): which object and which annotations a document lives in. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::cluster::wire::{self, Entry};
use crate::cluster::{Cluster, Member};
use crate::dcs::{Document, keys};
use crate::types::{PgState, Revision, Role, WallTime};

/// The Citus group of an object.
const GROUP_LABEL: &str = "citus-group";

/// One object as the API server has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Object {
    pub(super) name: String,
    pub(super) version: u64,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    /// Of Endpoints.
    pub(super) subsets: Option<Value>,
    /// Of a pod: what its address in Endpoints says of it.
    pub(super) pod: Option<Pod>,
}

/// Where a pod is.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Pod {
    pub(super) uid: String,
    pub(super) ip: Option<String>,
    pub(super) hostname: Option<String>,
    pub(super) node: Option<String>,
}

impl Object {
    /// `None`: not an object with a name and a version.
    pub(super) fn parse(value: &Value) -> Option<Self> {
        let metadata = &value["metadata"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let is_pod = value["spec"].is_object() || value["kind"] == "Pod";
        Some(Object {
            name: text(&metadata["name"])?,
            version: version(metadata)?,
            labels: texts(&metadata["labels"]),
            annotations: texts(&metadata["annotations"]),
            subsets: value.get("subsets").filter(|it| !it.is_null()).cloned(),
            pod: is_pod.then(|| Pod {
                uid: text(&metadata["uid"]).unwrap_or_default(),
                ip: text(&value["status"]["podIP"]).filter(|ip| !ip.is_empty()),
                hostname: text(&value["spec"]["hostname"]).filter(|it| !it.is_empty()),
                node: text(&value["spec"]["nodeName"]).filter(|it| !it.is_empty()),
            }),
        })
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).map(String::as_str)
    }

    /// Its Citus group, `Some(None)` without one; `None` for what is no group's name.
    fn group(&self) -> Option<Option<u32>> {
        let Some(label) = self.labels.get(GROUP_LABEL) else {
            return Some(None);
        };
        let (group, _) = keys::split_group(&format!("{label}/"))?;
        Some(Some(group))
    }

    fn has_subsets(&self) -> bool {
        self.subsets
            .as_ref()
            .and_then(Value::as_array)
            .is_some_and(|subsets| !subsets.is_empty())
    }
}

/// The version that the metadata of an object or of a list tells.
pub(super) fn version(metadata: &Value) -> Option<u64> {
    metadata["resourceVersion"].as_str()?.parse().ok()
}

fn texts(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// What annotations are to become; `None` removes one.
pub(super) type Annotations = BTreeMap<&'static str, Option<String>>;

/// Text for people and for Patroni: UTC with microseconds and offset.
pub(super) fn time_text(at: WallTime) -> String {
    chrono::DateTime::from_timestamp_millis(at.0)
        .unwrap_or_default()
        .format("%Y-%m-%dT%H:%M:%S%.6f+00:00")
        .to_string()
}

// --- the leader ---------------------------------------------------------------------------------------------------------------

/// The annotations that tell who leads. They change with each renewal, and their age by this node's clock is the lease's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Record {
    pub(super) leader: Option<String>,
    pub(super) acquired: Option<String>,
    pub(super) renewed: Option<String>,
    pub(super) ttl: Option<String>,
    pub(super) transitions: Option<String>,
}

impl Record {
    pub(super) fn of(object: &Object) -> Self {
        let text = |name| object.annotation(name).map(str::to_owned);
        Record {
            leader: text("leader").filter(|name| !name.is_empty()),
            acquired: text("acquireTime"),
            renewed: text("renewTime"),
            ttl: text("ttl"),
            transitions: text("transitions"),
        }
    }

    /// The same leader has held the key since then; it may have renewed it.
    pub(super) fn is_same_tenure(&self, other: &Record) -> bool {
        self.leader == other.leader && self.acquired == other.acquired
    }

    /// What whoever takes the key writes after this record.
    pub(super) fn claimed(&self, me: &str, ttl: u64, now: WallTime) -> Record {
        let now = time_text(now);
        let again = self.leader.as_deref() == Some(me);
        let before = self.transitions.as_deref().and_then(|it| it.parse().ok());
        let transitions = before.map_or(0, |count: u64| count.saturating_add(u64::from(!again)));
        Record {
            leader: Some(me.to_owned()),
            acquired: self
                .acquired
                .clone()
                .filter(|_| again)
                .or_else(|| Some(now.clone())),
            renewed: Some(now),
            ttl: Some(ttl.to_string()),
            transitions: Some(transitions.to_string()),
        }
    }

    /// The same tenure, renewed.
    pub(super) fn renewed(&self, ttl: u64, now: WallTime) -> Record {
        Record {
            renewed: Some(time_text(now)),
            ttl: Some(ttl.to_string()),
            ..self.clone()
        }
    }

    pub(super) fn annotations(&self) -> Annotations {
        Annotations::from([
            ("leader", self.leader.clone()),
            ("acquireTime", self.acquired.clone()),
            ("renewTime", self.renewed.clone()),
            ("ttl", self.ttl.clone()),
            ("transitions", self.transitions.clone()),
        ])
    }
}

// --- documents ----------------------------------------------------------------------------------------------------------------

/// The objects of a cluster besides its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Leader,
    Config,
    Failover,
    Sync,
}

/// Where a document lives; `None`: nowhere (its content is elsewhere).
pub(super) fn part_of(document: Document) -> Option<Part> {
    match document {
        Document::Status | Document::Failsafe => Some(Part::Leader),
        Document::Initialize | Document::Config | Document::History => Some(Part::Config),
        Document::Failover => Some(Part::Failover),
        Document::Sync => Some(Part::Sync),
        // The position is an annotation of the leader object since the first version.
        Document::LegacyOptime => None,
    }
}

/// The annotations of a document.
fn names(document: Document) -> &'static [&'static str] {
    match document {
        Document::Initialize => &["initialize"],
        Document::Config => &["config"],
        Document::Status => &["optime", "slots", "retain_slots"],
        Document::Sync => &["leader", "sync_standby", "quorum"],
        Document::Failover => &["leader", "member", "scheduled_at"],
        Document::History => &["history"],
        Document::Failsafe => &["failsafe"],
        Document::LegacyOptime => &[],
    }
}

/// The annotations that say nothing.
pub(super) fn nothing(document: Document) -> Annotations {
    names(document).iter().map(|name| (*name, None)).collect()
}

/// Whether an object has a document in it.
pub(super) fn holds(object: &Object, document: Document) -> bool {
    names(document)
        .iter()
        .any(|name| object.annotations.contains_key(*name))
}

/// A document's value as annotations.
///
/// # Errors
/// Of those that are split up, what is no JSON object.
pub(super) fn split(document: Document, value: &str) -> Result<Annotations, String> {
    match document {
        Document::Initialize | Document::Config | Document::History => {
            let name = names(document)[0];
            Ok(Annotations::from([(name, Some(value.to_owned()))]))
        }
        Document::Failsafe => {
            let empty = value.is_empty() || value == "{}";
            let value = (!empty).then(|| value.to_owned());
            Ok(Annotations::from([("failsafe", value)]))
        }
        Document::Status | Document::Sync | Document::Failover => {
            let Ok(Value::Object(fields)) = serde_json::from_str(value) else {
                return Err(format!("{} is not a JSON object", document.key()));
            };
            let mut annotations = nothing(document);
            for (name, annotation) in &mut annotations {
                *annotation = fields.get(*name).and_then(plain);
            }
            Ok(annotations)
        }
        Document::LegacyOptime => Ok(Annotations::new()),
    }
}

/// Text as it is, anything else as JSON, null and empty as nothing.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => (!text.is_empty()).then(|| text.clone()),
        other => Some(other.to_string()),
    }
}

fn joined(object: &Object, document: Document) -> String {
    let mut fields = Map::new();
    for name in names(document) {
        if let Some(text) = object.annotation(name) {
            let number = (*name == "quorum").then(|| text.parse::<u64>().ok());
            let value = number.flatten().map_or_else(|| json!(text), Value::from);
            fields.insert((*name).to_owned(), value);
        }
    }
    Value::Object(fields).to_string()
}

// --- names and the snapshot ---------------------------------------------------------------------------------------------------

/// How the objects of one cluster are called and found.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) scope: String,
    pub(super) group: Option<u32>,
    pub(super) use_endpoints: bool,
    /// Of every object, the scope's among them.
    pub(super) labels: BTreeMap<String, String>,
}

impl Names {
    fn prefix(&self, group: Option<u32>) -> String {
        match group {
            Some(group) => format!("{}-{group}", self.scope),
            None => self.scope.clone(),
        }
    }

    pub(super) fn name(&self, part: Part) -> String {
        self.name_in(part, self.group)
    }

    fn name_in(&self, part: Part, group: Option<u32>) -> String {
        let prefix = self.prefix(group);
        match part {
            // Traffic goes through the Service of this name.
            Part::Leader if self.use_endpoints => prefix,
            Part::Leader => format!("{prefix}-leader"),
            Part::Config => format!("{prefix}-config"),
            Part::Failover => format!("{prefix}-failover"),
            Part::Sync => format!("{prefix}-sync"),
        }
    }

    /// The labels of what is created here.
    pub(super) fn own_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        if let Some(group) = self.group {
            labels.insert(GROUP_LABEL.to_owned(), group.to_string());
        }
        labels
    }

    /// Finds the objects of all groups.
    pub(super) fn selector(&self) -> String {
        selector(&self.labels)
    }

    /// Finds the objects of this group only.
    pub(super) fn own_selector(&self) -> String {
        selector(&self.own_labels())
    }

    fn is_mine(&self, object: &Object) -> bool {
        object.group() == Some(self.group)
    }

    /// The snapshot that these objects make. `leads`: the leader's name counts.
    pub(super) fn assemble<'a>(
        &self,
        objects: impl Iterator<Item = &'a Object>,
        pods: impl Iterator<Item = &'a Object>,
        leads: bool,
    ) -> Cluster {
        let objects = objects.filter(|object| self.is_mine(object));
        let pods = pods.filter(|pod| self.is_mine(pod));
        self.assemble_group(self.group, objects, pods, leads)
    }

    /// The snapshots of all groups. Their leaders are taken at face value: nobody here looks after their leases.
    pub(super) fn assemble_groups(
        &self,
        objects: &[Object],
        pods: &[Object],
    ) -> BTreeMap<u32, Cluster> {
        let groups = objects.iter().chain(pods).filter_map(Object::group);
        let mut found: BTreeMap<u32, Cluster> = BTreeMap::new();
        for group in groups.flatten() {
            found.entry(group).or_insert_with(|| {
                let of = |object: &&Object| object.group() == Some(Some(group));
                let (objects, pods) = (objects.iter().filter(of), pods.iter().filter(of));
                self.assemble_group(Some(group), objects, pods, true)
            });
        }
        found
    }

    fn assemble_group<'a>(
        &self,
        group: Option<u32>,
        objects: impl Iterator<Item = &'a Object>,
        pods: impl Iterator<Item = &'a Object>,
        leads: bool,
    ) -> Cluster {
        let mut entries: Vec<(String, String, u64)> = Vec::new();
        let mut add = |document: Document, value: String, object: &Object| {
            entries.push((document.key().to_owned(), value, object.version));
        };
        let mut leader = None;
        for object in objects {
            let is = |part| object.name == self.name_in(part, group);
            if is(Part::Leader) {
                leader = Record::of(object).leader.map(|name| (name, object.version));
                if holds(object, Document::Status) {
                    add(Document::Status, joined(object, Document::Status), object);
                }
                if let Some(text) = object.annotation("failsafe") {
                    add(Document::Failsafe, text.to_owned(), object);
                }
            } else if is(Part::Config) {
                for document in [Document::Config, Document::Initialize, Document::History] {
                    if let Some(text) = object.annotation(names(document)[0]) {
                        add(document, text.to_owned(), object);
                    }
                }
            } else if is(Part::Failover) {
                add(
                    Document::Failover,
                    joined(object, Document::Failover),
                    object,
                );
            } else if is(Part::Sync) {
                add(Document::Sync, joined(object, Document::Sync), object);
            }
        }
        if let Some((name, version)) = leader.filter(|_| leads) {
            entries.push((keys::LEADER.to_owned(), name, version));
        }
        for pod in pods {
            // One that has never written is not there yet.
            if let Some(status) = pod.annotation("status") {
                let key = format!("{}{}", keys::MEMBERS, pod.name);
                entries.push((key, status.to_owned(), pod.version));
            }
        }
        wire::assemble(entries.iter().map(|(key, value, version)| Entry {
            key,
            value,
            revision: Revision(*version),
            session: None,
        }))
    }
}

fn selector(labels: &BTreeMap<String, String>) -> String {
    let pairs = labels.iter().map(|(name, value)| format!("{name}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}

// --- requests -----------------------------------------------------------------------------------------------------------------

/// The body that changes an object, or creates it where null counts for nothing.
pub(super) fn body(
    name: &str,
    labels: &BTreeMap<String, String>,
    annotations: &Annotations,
    version: Option<u64>,
    subsets: Option<&Value>,
) -> Value {
    let mut metadata = json!({ "name": name, "labels": labels, "annotations": annotations });
    if let Some(version) = version {
        metadata["resourceVersion"] = version.to_string().into();
    }
    let mut body = json!({ "metadata": metadata });
    if let Some(subsets) = subsets {
        body["subsets"] = subsets.clone();
    }
    body
}

/// What Services route to the leader by: its pod's address and the ports. `None`: they are as they should be, or the address is unknown.
pub(super) fn subsets(
    current: Option<&Object>,
    pod: &Object,
    own_ip: Option<&str>,
    namespace: &str,
    ports: &[Value],
) -> Option<Value> {
    let of_pod = pod.pod.clone().unwrap_or_default();
    let ip = own_ip.or(of_pod.ip.as_deref())?;
    let mut address = json!({
        "ip": ip,
        "targetRef": {
            "kind": "Pod",
            "name": pod.name,
            "namespace": namespace,
            "uid": of_pod.uid,
            "resourceVersion": pod.version.to_string(),
        },
    });
    if let Some(hostname) = &of_pod.hostname {
        address["hostname"] = hostname.as_str().into();
    }
    if let Some(node) = &of_pod.node {
        address["nodeName"] = node.as_str().into();
    }
    let wanted = json!([{ "addresses": [address], "ports": ports }]);
    let now = current.and_then(|object| object.subsets.as_ref());
    (!now.is_some_and(|now| same_subsets(now, &wanted))).then_some(wanted)
}

/// The version of the pod in an address changes with each of its status reports and says nothing.
fn same_subsets(left: &Value, right: &Value) -> bool {
    let essence = |subsets: &Value| -> Option<(Value, Value, Vec<Value>)> {
        let [subset] = subsets.as_array()?.as_slice() else {
            return None;
        };
        let [address] = subset["addresses"].as_array()?.as_slice() else {
            return None;
        };
        let ports = subset["ports"].as_array()?.iter().map(|port| {
            json!([
                port["name"],
                port["port"],
                port["protocol"].as_str().unwrap_or("TCP")
            ])
        });
        let target = json!([address["targetRef"]["name"], address["targetRef"]["uid"]]);
        Some((address["ip"].clone(), target, ports.collect()))
    };
    essence(left).is_some() && essence(left) == essence(right)
}

/// The empty list where Services are to route nowhere; `None`: they do not.
pub(super) fn no_subsets(object: &Object) -> Option<Value> {
    object.has_subsets().then(|| json!([]))
}

/// How pods are labelled by role.
#[derive(Debug, Clone, Default)]
pub(super) struct RoleLabels {
    pub(super) role: String,
    pub(super) leader: String,
    pub(super) follower: String,
    pub(super) standby_leader: String,
    pub(super) temporary: Option<String>,
    /// Only while a data directory is being made.
    pub(super) bootstrap: BTreeMap<String, String>,
}

impl RoleLabels {
    /// The labels of a pod whose member says this of itself; `None` removes one.
    pub(super) fn labels(&self, member: &Member, leads: bool) -> BTreeMap<String, Option<String>> {
        let role = member.role;
        let running = member.state == Some(PgState::Running);
        let (value, temporary) = if leads {
            let value = match role {
                Some(Role::StandbyLeader) => &self.standby_leader,
                _ => &self.leader,
            };
            (Some(value.clone()), Some("primary".to_owned()))
        } else if running && role != Some(Role::Primary) {
            let text = role.map(wire::role_text).map(str::to_owned);
            let value = match role {
                Some(Role::Replica) => Some(self.follower.clone()),
                _ => text.clone(),
            };
            (value, text)
        } else {
            (None, None)
        };
        let mut labels = BTreeMap::from([(self.role.clone(), value)]);
        if let Some(name) = &self.temporary {
            labels.insert(name.clone(), temporary);
        }
        let making = matches!(
            member.state,
            Some(
                PgState::InitializingNewCluster
                    | PgState::RunningCustomBootstrap
                    | PgState::StartingAfterCustomBootstrap
                    | PgState::CreatingReplica
            )
        );
        for (name, value) in &self.bootstrap {
            labels.insert(name.clone(), making.then(|| value.clone()));
        }
        labels
    }
}

#[cfg(test)]
mod tests;
