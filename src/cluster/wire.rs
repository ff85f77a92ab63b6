//! The documents in the store, both directions. Strict in what we write, lenient in what we read (spec/dcs.md §1.3, §2).
//!
//! Text to model and back, nothing else: no I/O, no clock, no decision. Reading never fails: what cannot be understood has the
//! empty value of its document. Writing is compact JSON in Patroni's key order.

mod schedule;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

pub use self::schedule::{ScheduleError, parse_schedule, schedule_text};
use super::{
    Cluster, ConfigDocument, FailoverRequest, History, HistoryEntry, Initialize, Leader, Member,
    PendingChange, Schedule, Status, SyncState, Tags,
};
use crate::dcs::keys;
use crate::types::{
    Lsn, MemberName, PgState, ReplicationState, Revision, Role, SystemId, Timeline,
};

/// One key below the cluster's path as a store returned it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The key relative to the cluster's path (`leader`, `members/node1`).
    pub key: &'a str,
    /// The value; a backend replaces invalid UTF-8 before.
    pub value: &'a str,
    /// What the store calls the version of this key.
    pub revision: Revision,
    /// The session the key hangs on, where the store has one.
    pub session: Option<&'a str>,
}

/// Builds the snapshot from everything below the cluster's path. Unknown keys are ignored.
pub fn assemble<'a>(entries: impl IntoIterator<Item = Entry<'a>>) -> Cluster {
    let mut cluster = Cluster::default();
    let mut status = None;
    let mut legacy_optime = None;
    for entry in entries {
        match entry.key {
            keys::LEADER => {
                cluster.leader = MemberName::new(entry.value).ok().map(|name| Leader {
                    name,
                    revision: entry.revision,
                    session: entry.session.map(str::to_owned),
                });
            }
            "initialize" => {
                cluster.initialize = parse_initialize(entry.value);
                cluster.initialize_revision = Some(entry.revision);
            }
            "config" => {
                cluster.config_revision = Some(entry.revision);
                cluster.config = parse_config(entry.value).map(|data| ConfigDocument {
                    data,
                    revision: entry.revision,
                });
            }
            "status" => status = Some(parse_status(entry.value)),
            "optime/leader" => legacy_optime = Some(parse_status(entry.value)),
            "sync" => cluster.sync = parse_sync(entry.value, Some(entry.revision)),
            "failover" => {
                cluster.failover_revision = Some(entry.revision);
                cluster.failover = parse_failover(entry.value, entry.revision);
            }
            "history" => cluster.history = parse_history(entry.value),
            "failsafe" => cluster.failsafe = parse_failsafe(entry.value),
            other => {
                if let Some(name) = keys::member_name(other) {
                    let member = parse_member(name.clone(), entry.session, entry.value);
                    cluster.members.insert(name, member);
                }
            }
        }
    }
    cluster.status = status.or(legacy_optime).unwrap_or_default();
    cluster
}

// --- roles and states -------------------------------------------------------------------------------------------------------

const ROLES: [(Role, &str); 6] = [
    (Role::Uninitialized, "uninitialized"),
    (Role::Replica, "replica"),
    (Role::Promoted, "promoted"),
    (Role::Primary, "primary"),
    (Role::StandbyLeader, "standby_leader"),
    (Role::Demoted, "demoted"),
];

const STATES: [(PgState, &str); 15] = [
    (PgState::InitializingNewCluster, "initializing new cluster"),
    (PgState::InitdbFailed, "initdb failed"),
    (
        PgState::RunningCustomBootstrap,
        "running custom bootstrap script",
    ),
    (PgState::CustomBootstrapFailed, "custom bootstrap failed"),
    (PgState::CreatingReplica, "creating replica"),
    (PgState::Running, "running"),
    (PgState::Starting, "starting"),
    (
        PgState::StartingAfterCustomBootstrap,
        "starting after custom bootstrap",
    ),
    (PgState::StartFailed, "start failed"),
    (PgState::Restarting, "restarting"),
    (PgState::RestartFailed, "restart failed"),
    (PgState::Stopping, "stopping"),
    (PgState::Stopped, "stopped"),
    (PgState::StopFailed, "stop failed"),
    (PgState::Crashed, "crashed"),
];

/// The spelling of a role (spec/ha.md §1.1).
#[must_use]
pub fn role_text(role: Role) -> &'static str {
    match role {
        Role::Uninitialized => "uninitialized",
        Role::Replica => "replica",
        Role::Promoted => "promoted",
        Role::Primary => "primary",
        Role::StandbyLeader => "standby_leader",
        Role::Demoted => "demoted",
    }
}

/// The role of a spelling; `master` is what old nodes call a primary.
#[must_use]
pub fn parse_role(text: &str) -> Option<Role> {
    if text == "master" {
        return Some(Role::Primary);
    }
    ROLES
        .iter()
        .find(|(_, spelled)| *spelled == text)
        .map(|(role, _)| *role)
}

/// The spelling of a state (spec/ha.md §1.2).
#[must_use]
pub fn state_text(state: PgState) -> &'static str {
    STATES
        .iter()
        .find(|(known, _)| *known == state)
        .map_or("", |(_, spelled)| spelled)
}

/// The state of a spelling.
#[must_use]
pub fn parse_state(text: &str) -> Option<PgState> {
    STATES
        .iter()
        .find(|(_, spelled)| *spelled == text)
        .map(|(state, _)| *state)
}

/// The spelling of `replication_state`.
#[must_use]
pub fn replication_state_text(state: ReplicationState) -> &'static str {
    match state {
        ReplicationState::Streaming => "streaming",
        ReplicationState::InArchiveRecovery => "in archive recovery",
    }
}

/// The replication state of a spelling.
#[must_use]
pub fn parse_replication_state(text: &str) -> Option<ReplicationState> {
    match text {
        "streaming" => Some(ReplicationState::Streaming),
        "in archive recovery" => Some(ReplicationState::InArchiveRecovery),
        _ => None,
    }
}

// --- initialize, config -----------------------------------------------------------------------------------------------------

/// Reads `initialize` (spec/dcs.md §2.1); the key is present.
#[must_use]
pub fn parse_initialize(text: &str) -> Initialize {
    if text.is_empty() {
        return Initialize::InProgress;
    }
    text.parse::<SystemId>()
        .map_or_else(|_| Initialize::Invalid(text.to_owned()), Initialize::Done)
}

/// Writes `initialize`. `Absent` has no text of its own and is written as the empty one.
#[must_use]
pub fn initialize_text(value: &Initialize) -> String {
    match value {
        Initialize::Absent | Initialize::InProgress => String::new(),
        Initialize::Done(id) => id.to_string(),
        Initialize::Invalid(text) => text.clone(),
    }
}

/// Reads `config` (spec/dcs.md §2.2): an object, or `None`.
#[must_use]
pub fn parse_config(text: &str) -> Option<Map<String, Value>> {
    object(text)
}

/// Writes `config`.
#[must_use]
pub fn config_text(data: &Map<String, Value>) -> String {
    compact(data)
}

// --- members ----------------------------------------------------------------------------------------------------------------

impl Member {
    /// A member of which only the name is known: every other field has its empty value.
    #[must_use]
    pub fn unknown(name: MemberName) -> Self {
        Member {
            name,
            session: None,
            conn_url: None,
            api_url: None,
            state: None,
            role: None,
            version: None,
            proxy_url: None,
            checkpoint_after_promote: true,
            tags: Tags::default(),
            pending_restart: None,
            xlog_location: None,
            replay_lsn: None,
            receive_lsn: None,
            replication_state: None,
            timeline: None,
            scheduled_restart: None,
            pause: false,
            cannot_serve: None,
        }
    }
}

/// Reads `members/<name>` (spec/dcs.md §2.4): JSON, or the URL that nodes of long ago wrote.
#[must_use]
pub fn parse_member(name: MemberName, session: Option<&str>, text: &str) -> Member {
    let mut member = Member::unknown(name);
    member.session = session.map(str::to_owned);
    let Some(data) = object(text) else {
        if text.starts_with("postgres") {
            (member.conn_url, member.api_url) = parse_legacy_url(text);
        }
        return member;
    };
    let string = |key: &str| data.get(key).and_then(Value::as_str);
    let owned = |key: &str| string(key).map(str::to_owned);
    let lsn = |key: &str| data.get(key).and_then(number).map(Lsn);
    member.conn_url = owned("conn_url");
    member.api_url = owned("api_url");
    member.state = string("state").and_then(parse_state);
    member.role = string("role").and_then(parse_role);
    member.version = owned("version");
    member.proxy_url = owned("proxy_url");
    member.checkpoint_after_promote = data.get("checkpoint_after_promote").is_none_or(truthy);
    member.tags = data
        .get("tags")
        .and_then(Value::as_object)
        .map(parse_tags)
        .unwrap_or_default();
    member.pending_restart = data
        .get("pending_restart")
        .is_some_and(truthy)
        .then(|| parse_pending_restart(data.get("pending_restart_reason")));
    member.xlog_location = lsn("xlog_location");
    member.replay_lsn = lsn("replay_lsn");
    member.receive_lsn = lsn("receive_lsn");
    member.replication_state = string("replication_state").and_then(parse_replication_state);
    member.timeline = data
        .get("timeline")
        .and_then(number)
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| *n != 0)
        .map(Timeline);
    member.scheduled_restart = data
        .get("scheduled_restart")
        .and_then(Value::as_object)
        .cloned();
    member.pause = data.get("pause").is_some_and(truthy);
    member.cannot_serve = owned("cannot_serve");
    member
}

/// Writes `members/<name>`: fields in the order of spec/dcs.md §2.4, absent ones left out.
#[must_use]
pub fn member_text(member: &Member) -> String {
    let mut data = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            data.insert(key.to_owned(), value);
        }
    };
    put("conn_url", member.conn_url.as_deref().map(Value::from));
    put("api_url", member.api_url.as_deref().map(Value::from));
    put("state", member.state.map(|s| state_text(s).into()));
    put("role", member.role.map(|r| role_text(r).into()));
    put("version", member.version.as_deref().map(Value::from));
    put("proxy_url", member.proxy_url.as_deref().map(Value::from));
    put(
        "checkpoint_after_promote",
        (!member.checkpoint_after_promote).then_some(Value::Bool(false)),
    );
    let tags = tags_object(&member.tags);
    put("tags", (!tags.is_empty()).then_some(Value::Object(tags)));
    if let Some(reasons) = &member.pending_restart {
        put("pending_restart", Some(Value::Bool(true)));
        put(
            "pending_restart_reason",
            Some(Value::Object(pending_restart_object(reasons))),
        );
    }
    put("xlog_location", member.xlog_location.map(|l| l.0.into()));
    put(
        "replay_lsn",
        member.replay_lsn.and_then(Lsn::known).map(|l| l.0.into()),
    );
    put(
        "receive_lsn",
        member.receive_lsn.and_then(Lsn::known).map(|l| l.0.into()),
    );
    put(
        "replication_state",
        member
            .replication_state
            .map(|s| replication_state_text(s).into()),
    );
    put(
        "timeline",
        member.timeline.filter(|t| t.0 != 0).map(|t| t.0.into()),
    );
    put(
        "scheduled_restart",
        member.scheduled_restart.clone().map(Value::Object),
    );
    put("pause", member.pause.then_some(Value::Bool(true)));
    put(
        "cannot_serve",
        member.cannot_serve.as_deref().map(Value::from),
    );
    compact(&data)
}

/// The connection URL and the API URL in `postgres://…?application_name=<API URL>`.
fn parse_legacy_url(text: &str) -> (Option<String>, Option<String>) {
    let (conn_url, query) = text.split_once('?').unwrap_or((text, ""));
    let api_url = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("application_name="))
        .map(percent_decoded);
    (Some(conn_url.to_owned()), api_url)
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => {
                let digit = |b: u8| {
                    char::from(b)
                        .to_digit(16)
                        .and_then(|d| u8::try_from(d).ok())
                };
                digit(*high).zip(digit(*low)).map(|(h, l)| h << 4 | l)
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = &rest[if escaped.is_some() { 3 } else { 1 }..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn parse_pending_restart(reasons: Option<&Value>) -> BTreeMap<String, PendingChange> {
    let text = |change: &Value, key: &str| change.get(key).map(plain).unwrap_or_default();
    reasons
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(setting, change)| {
            let change = PendingChange {
                old_value: text(change, "old_value"),
                new_value: text(change, "new_value"),
            };
            (setting.clone(), change)
        })
        .collect()
}

/// `pending_restart_reason` as an object, as the member document and the REST API show it.
#[must_use]
pub fn pending_restart_object(reasons: &BTreeMap<String, PendingChange>) -> Map<String, Value> {
    reasons
        .iter()
        .map(|(setting, change)| {
            let change = json!({"old_value": change.old_value, "new_value": change.new_value});
            (setting.clone(), change)
        })
        .collect()
}

/// Reads tags: a configuration's or a member document's.
#[must_use]
pub fn parse_tags(data: &Map<String, Value>) -> Tags {
    let mut tags = Tags::default();
    for (key, value) in data {
        match key.as_str() {
            "nofailover" => tags.nofailover = boolean(value),
            "failover_priority" => tags.failover_priority = integer(value),
            "nosync" => tags.nosync = boolean(value),
            "sync_priority" => tags.sync_priority = integer(value),
            "noloadbalance" => tags.noloadbalance = boolean(value).unwrap_or(false),
            "clonefrom" => tags.clonefrom = boolean(value).unwrap_or(false),
            "nostream" => tags.nostream = boolean(value).unwrap_or(false),
            "replicatefrom" => {
                tags.replicatefrom = MemberName::new(plain(value))
                    .ok()
                    .filter(|_| !value.is_null())
            }
            _ => {
                tags.custom.insert(key.clone(), value.clone());
            }
        }
    }
    tags
}

/// Tags as published: the known booleans only when set, `nofailover` and `nosync` also when their priority is (spec/dcs.md §2.4).
#[must_use]
pub fn tags_object(tags: &Tags) -> Map<String, Value> {
    let mut data = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            data.insert(key.to_owned(), value);
        }
    };
    let with_priority = |flag: Option<bool>, priority: Option<i64>| {
        flag.filter(|set| *set || priority.is_some())
            .map(Value::from)
    };
    put("clonefrom", tags.clonefrom.then_some(true.into()));
    put(
        "nofailover",
        with_priority(tags.nofailover, tags.failover_priority),
    );
    put("failover_priority", tags.failover_priority.map(Value::from));
    put("noloadbalance", tags.noloadbalance.then_some(true.into()));
    put("nosync", with_priority(tags.nosync, tags.sync_priority));
    put("sync_priority", tags.sync_priority.map(Value::from));
    put("nostream", tags.nostream.then_some(true.into()));
    put(
        "replicatefrom",
        tags.replicatefrom.as_ref().map(|n| n.as_str().into()),
    );
    for (key, value) in &tags.custom {
        data.insert(key.clone(), value.clone());
    }
    data
}

// --- status -----------------------------------------------------------------------------------------------------------------

/// Reads `status` or `optime/leader` (spec/dcs.md §2.5): an object, or a bare position.
#[must_use]
pub fn parse_status(text: &str) -> Status {
    let data = match serde_json::from_str(text) {
        Ok(Value::Object(data)) => data,
        Ok(other) => {
            return Status {
                optime: Lsn(number(&other).unwrap_or(0)),
                ..Status::default()
            };
        }
        Err(_) => return Status::default(),
    };
    let slots = match data.get("slots").map(unwrapped_json) {
        Some(Value::Object(slots)) => slots
            .iter()
            .map(|(name, lsn)| (name.clone(), Lsn(number(lsn).unwrap_or(0))))
            .collect(),
        _ => BTreeMap::new(),
    };
    let retain_slots = match data.get("retain_slots").map(unwrapped_json) {
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    };
    Status {
        optime: Lsn(data.get("optime").and_then(number).unwrap_or(0)),
        slots,
        retain_slots,
    }
}

/// Writes `status`; empty parts are left out, `retain_slots` is sorted.
#[must_use]
pub fn status_text(status: &Status) -> String {
    let mut data = Map::new();
    if let Some(optime) = status.optime.known() {
        data.insert("optime".to_owned(), optime.0.into());
    }
    if !status.slots.is_empty() {
        let slots: Map<_, _> = status
            .slots
            .iter()
            .map(|(name, lsn)| (name.clone(), lsn.0.into()))
            .collect();
        data.insert("slots".to_owned(), slots.into());
    }
    if !status.retain_slots.is_empty() {
        let mut names = status.retain_slots.clone();
        names.sort_unstable();
        data.insert("retain_slots".to_owned(), names.into());
    }
    compact(&data)
}

/// Writes `optime/leader`.
#[must_use]
pub fn legacy_optime_text(optime: Lsn) -> String {
    optime.0.to_string()
}

// --- sync -------------------------------------------------------------------------------------------------------------------

/// Reads `sync` (spec/dcs.md §2.6). No leader in it: everything but the revision is empty.
#[must_use]
pub fn parse_sync(text: &str, revision: Option<Revision>) -> SyncState {
    let data = object(text).unwrap_or_default();
    let leader = data
        .get("leader")
        .and_then(Value::as_str)
        .and_then(|name| MemberName::new(name).ok());
    if leader.is_none() {
        return SyncState {
            revision,
            ..SyncState::default()
        };
    }
    let mut standbys: Vec<_> = data
        .get("sync_standby")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .split(',')
        .filter_map(|name| MemberName::new(name.trim()).ok())
        .collect();
    standbys.sort_unstable();
    standbys.dedup();
    SyncState {
        revision,
        leader,
        quorum: data
            .get("quorum")
            .and_then(number)
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(0),
        standbys,
    }
}

/// Writes `sync`; `{}` without a leader, which is how some stores spell "deleted".
#[must_use]
pub fn sync_text(sync: &SyncState) -> String {
    let Some(leader) = &sync.leader else {
        return "{}".to_owned();
    };
    let mut names: Vec<_> = sync.standbys.iter().map(MemberName::as_str).collect();
    names.sort_unstable();
    let standbys = if names.is_empty() {
        Value::Null
    } else {
        names.join(",").into()
    };
    json!({"leader": leader.as_str(), "quorum": sync.quorum, "sync_standby": standbys}).to_string()
}

// --- failover ---------------------------------------------------------------------------------------------------------------

/// Reads `failover` (spec/dcs.md §2.7): JSON, or `leader:candidate` of old. `None`: no request in it.
#[must_use]
pub fn parse_failover(text: &str, revision: Revision) -> Option<FailoverRequest> {
    let name = |text: Option<&str>| text.and_then(|t| MemberName::new(t.trim()).ok());
    let (leader, candidate, scheduled_at) = match serde_json::from_str(text) {
        Ok(Value::Object(data)) => {
            let field = |key: &str| name(data.get(key).and_then(Value::as_str));
            let scheduled_at = data
                .get("scheduled_at")
                .map(plain)
                .filter(|t| !t.is_empty())
                .map(|t| parse_schedule(&t).map_or_else(|_| Schedule::Unreadable(t), Schedule::At));
            (field("leader"), field("member"), scheduled_at)
        }
        // A bare JSON value is no form that anybody wrote, except for a plain name, which is not JSON.
        Ok(_) => return None,
        Err(_) if text.starts_with(['{', '[', '"']) => return None,
        Err(_) => {
            let mut parts = text.split(':');
            (name(parts.next()), name(parts.next()), None)
        }
    };
    (leader.is_some() || candidate.is_some()).then_some(FailoverRequest {
        revision,
        leader,
        candidate,
        scheduled_at,
    })
}

/// Writes `failover`; `{}` clears it.
#[must_use]
pub fn failover_text(request: Option<&FailoverRequest>) -> String {
    let mut data = Map::new();
    if let Some(request) = request {
        if let Some(leader) = &request.leader {
            data.insert("leader".to_owned(), leader.as_str().into());
        }
        if let Some(candidate) = &request.candidate {
            data.insert("member".to_owned(), candidate.as_str().into());
        }
        match &request.scheduled_at {
            Some(Schedule::At(time)) => {
                data.insert("scheduled_at".to_owned(), schedule_text(*time).into());
            }
            Some(Schedule::Unreadable(text)) => {
                data.insert("scheduled_at".to_owned(), text.as_str().into());
            }
            None => {}
        }
    }
    compact(&data)
}

// --- history, failsafe ------------------------------------------------------------------------------------------------------

/// Reads `history` (spec/dcs.md §2.8). One unreadable entry makes the whole unreadable: the timeline is derived from it.
#[must_use]
pub fn parse_history(text: &str) -> Option<History> {
    let Ok(Value::Array(lines)) = serde_json::from_str(text) else {
        return None;
    };
    let entries = lines
        .iter()
        .map(parse_history_entry)
        .collect::<Option<_>>()?;
    Some(History { entries })
}

fn parse_history_entry(line: &Value) -> Option<HistoryEntry> {
    let line = line.as_array()?;
    Some(HistoryEntry {
        timeline: Timeline(u32::try_from(number(line.first()?)?).ok()?),
        lsn: Lsn(number(line.get(1)?)?),
        reason: line.get(2).map(plain).unwrap_or_default(),
        timestamp: line.get(3).and_then(Value::as_str).map(str::to_owned),
        new_leader: line
            .get(4)
            .and_then(Value::as_str)
            .and_then(|name| MemberName::new(name).ok()),
    })
}

/// Writes `history`: entries of 3, 4 or 5 elements. A new leader without a time cannot be expressed and is left out.
#[must_use]
pub fn history_text(history: &History) -> String {
    let lines = history.entries.iter().map(|entry| {
        let mut line = vec![
            Value::from(entry.timeline.0),
            Value::from(entry.lsn.0),
            Value::from(entry.reason.as_str()),
        ];
        if let Some(timestamp) = &entry.timestamp {
            line.push(timestamp.as_str().into());
            line.extend(entry.new_leader.as_ref().map(|name| name.as_str().into()));
        }
        Value::Array(line)
    });
    Value::Array(lines.collect()).to_string()
}

/// Reads `failsafe` (spec/dcs.md §2.9).
#[must_use]
pub fn parse_failsafe(text: &str) -> Option<BTreeMap<MemberName, String>> {
    let data = object(text)?;
    Some(
        data.iter()
            .filter_map(|(name, url)| {
                Some((
                    MemberName::new(name.as_str()).ok()?,
                    url.as_str()?.to_owned(),
                ))
            })
            .collect(),
    )
}

/// Writes `failsafe`.
#[must_use]
pub fn failsafe_text(members: &BTreeMap<MemberName, String>) -> String {
    let data: Map<_, _> = members
        .iter()
        .map(|(name, url)| (name.to_string(), url.as_str().into()))
        .collect();
    compact(&data)
}

// --- "changed?" -------------------------------------------------------------------------------------------------------------

/// Whether two texts of one document mean the same (spec/dcs.md §1.3), so that a rewrite would only be noise.
///
/// JSON objects: [`same_value`]; anything else byte for byte.
#[must_use]
pub fn same_text(left: &str, right: &str) -> bool {
    if left == right {
        return true;
    }
    match (serde_json::from_str(left), serde_json::from_str(right)) {
        (Ok(left @ (Value::Object(_) | Value::Array(_))), Ok(right)) => same_value(&left, &right),
        _ => false,
    }
}

/// Same keys, nested objects compared recursively, scalars and arrays by their text (`2` equals `"2"`).
#[must_use]
pub fn same_value(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, value)| {
                    right.get(key).is_some_and(|other| same_value(value, other))
                })
        }
        _ => left.is_null() == right.is_null() && plain(left) == plain(right),
    }
}

// --- reading JSON leniently -------------------------------------------------------------------------------------------------

fn object(text: &str) -> Option<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(data)) => Some(data),
        _ => None,
    }
}

fn compact(data: &Map<String, Value>) -> String {
    // `Display` of a `Value` is compact and cannot fail, unlike serialising a map; borrowed parts keep the whole uncloned.
    let mut text = String::from("{");
    for (index, (key, value)) in data.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(text, "{comma}{}:{value}", Value::from(key.as_str()));
    }
    text.push('}');
    text
}

/// A value as text: a string without its quotes, `null` as nothing, anything else as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// JSON inside a string, which is how one store keeps structured parts.
fn unwrapped_json(value: &Value) -> Value {
    match value {
        Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
        other => other.clone(),
    }
}

/// A non-negative integer, or a string of one.
fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(n) => n.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(n) => n.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// A flag as configuration files spell it.
fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::Number(n) => n.as_i64().map(|n| n != 0),
        Value::String(text) => match text.to_lowercase().as_str() {
            "on" | "true" | "yes" | "1" => Some(true),
            "off" | "false" | "no" | "0" | "" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

#[cfg(test)]
mod tests;
