//! The cluster as people see it: what `GET /cluster` and `patronictl list` show (spec/rest-api.md §8, spec/ctl.md §5).
//! A pure reading of one snapshot.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::cluster::{Cluster, Member, PendingChange, Schedule, wire};
use crate::config::value;
use crate::ha::explain::{Explanation, of_other};
use crate::ha::observation::Peer;
use crate::node::SynchronousMode;
use crate::types::{Lsn, MemberName, Role, Timeline};
use crate::{peers, timestamps};

/// A member's place in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Holds the lock.
    Leader,
    /// Holds the lock of a standby cluster.
    StandbyLeader,
    /// Listed as synchronous.
    SyncStandby,
    /// Listed as voter.
    QuorumStandby,
    /// Everyone else.
    Replica,
}

impl Place {
    /// `leader`, `sync_standby`, …
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Place::Leader => "leader",
            Place::StandbyLeader => "standby_leader",
            Place::SyncStandby => "sync_standby",
            Place::QuorumStandby => "quorum_standby",
            Place::Replica => "replica",
        }
    }

    /// `Leader`, `Sync Standby`, …
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Place::Leader => "Leader",
            Place::StandbyLeader => "Standby Leader",
            Place::SyncStandby => "Sync Standby",
            Place::QuorumStandby => "Quorum Standby",
            Place::Replica => "Replica",
        }
    }
}

/// A position and its distance from the leader's, `None` = unknown.
pub type Distance = Option<(Lsn, u64)>;

/// Distances of a member that is not the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// Of what it has received.
    pub receive: Distance,
    /// Of what it has replayed.
    pub replay: Distance,
    /// Of the larger of both, as it publishes it.
    pub any: Distance,
}

/// One member.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Name.
    pub name: MemberName,
    /// Place.
    pub place: Place,
    /// Replication state or PostgreSQL's state; may be empty.
    pub state: String,
    /// API address.
    pub api_url: Option<String>,
    /// PostgreSQL's address.
    pub address: Option<(String, u16)>,
    /// Timeline.
    pub timeline: Option<Timeline>,
    /// Settings that wait for a restart.
    pub pending_restart: Option<BTreeMap<String, PendingChange>>,
    /// A restart scheduled for later, as in the member document.
    pub scheduled_restart: Option<Map<String, Value>>,
    /// Tags.
    pub tags: Map<String, Value>,
    /// The member to stream from.
    pub replicatefrom: Option<MemberName>,
    /// Distances; `None` for the leader.
    pub lag: Option<Lag>,
}

/// One explanation as `GET /explain` and `patronictl explain` show it.
#[must_use]
pub fn explanation(explanation: &Explanation, role: Option<Role>, told_by: &MemberName) -> Value {
    json!({
        "member": explanation.member.as_str(),
        "role": role.map(wire::role_text),
        "leader": explanation.leads,
        "sentence": explanation.sentence,
        "waits_for": explanation.waits_for,
        "told_by": told_by.as_str(),
    })
}

/// The members other than `me`, as `me` sees them and by what they answered.
#[must_use]
pub fn explanations(cluster: &Cluster, me: &MemberName, answers: &[Peer]) -> Vec<Value> {
    let others = cluster.members.values().filter(|member| member.name != *me);
    others
        .map(|member| {
            let asked = answers.iter().find(|peer| peer.name == member.name);
            let seen = of_other(cluster, member, asked.map(|peer| peer.answer.as_ref()));
            explanation(&seen, member.role, me)
        })
        .collect()
}

/// The dynamic configuration says: standby cluster (spec/rest-api.md §4, SC).
#[must_use]
pub fn is_standby_cluster(cluster: &Cluster) -> bool {
    let section = setting(cluster, "standby_cluster").and_then(Value::as_object);
    section.is_some_and(|section| {
        ["host", "port", "restore_command"]
            .iter()
            .any(|key| section.get(*key).is_some_and(value::is_truthy))
    })
}

/// The dynamic configuration says: paused.
#[must_use]
pub fn is_paused(cluster: &Cluster) -> bool {
    setting(cluster, "pause")
        .and_then(value::parse_bool)
        .unwrap_or(false)
}

/// The synchronous mode of the dynamic configuration; off in a standby cluster.
#[must_use]
pub fn synchronous_mode(cluster: &Cluster) -> SynchronousMode {
    if is_standby_cluster(cluster) {
        return SynchronousMode::Off;
    }
    match setting(cluster, "synchronous_mode") {
        Some(Value::String(text)) if text.eq_ignore_ascii_case("quorum") => SynchronousMode::Quorum,
        Some(value) if value::parse_bool(value) == Some(true) => SynchronousMode::On,
        _ => SynchronousMode::Off,
    }
}

fn setting<'a>(cluster: &'a Cluster, key: &str) -> Option<&'a Value> {
    cluster.config.as_ref()?.data.get(key)
}

/// Whether the `/sync` document lists `name` as standby or voter.
#[must_use]
pub fn is_synchronous(cluster: &Cluster, name: &MemberName) -> bool {
    cluster.sync.leader.is_some()
        && cluster
            .sync
            .standbys
            .iter()
            .any(|listed| listed.matches(name))
}

/// All members, sorted by name.
#[must_use]
pub fn rows(cluster: &Cluster) -> Vec<Row> {
    let standby_cluster = is_standby_cluster(cluster);
    let mode = synchronous_mode(cluster);
    cluster
        .members
        .values()
        .map(|member| row(cluster, member, standby_cluster, mode))
        .collect()
}

fn row(cluster: &Cluster, member: &Member, standby_cluster: bool, mode: SynchronousMode) -> Row {
    let leads = cluster.is_led_by(&member.name);
    let place = match (leads, mode) {
        (true, _) if standby_cluster => Place::StandbyLeader,
        (true, _) => Place::Leader,
        (false, SynchronousMode::On) if is_synchronous(cluster, &member.name) => Place::SyncStandby,
        (false, SynchronousMode::Quorum) if is_synchronous(cluster, &member.name) => {
            Place::QuorumStandby
        }
        _ => Place::Replica,
    };
    let state = member
        .replication_state
        .filter(|_| place != Place::Leader)
        .map(wire::replication_state_text)
        .or_else(|| member.state.map(wire::state_text))
        .unwrap_or_default();
    let distance = |position: Option<Lsn>| {
        let position = position?.known()?;
        Some((position, cluster.status.optime.ahead_of(position)))
    };
    Row {
        name: member.name.clone(),
        place,
        state: state.to_owned(),
        api_url: member.api_url.clone(),
        address: member.conn_url.as_deref().and_then(postgres_address),
        timeline: member.timeline,
        pending_restart: member.pending_restart.clone(),
        scheduled_restart: member.scheduled_restart.clone(),
        tags: wire::tags_object(&member.tags),
        replicatefrom: member.tags.replicatefrom.clone(),
        lag: (!leads).then(|| Lag {
            receive: distance(member.receive_lsn),
            replay: distance(member.replay_lsn),
            any: distance(member.xlog_location),
        }),
    }
}

/// Host and port of a `conn_url`; port 5432 unless given.
#[must_use]
pub fn postgres_address(conn_url: &str) -> Option<(String, u16)> {
    let (host, port) = peers::address_of(conn_url)?;
    (!host.is_empty()).then_some((host, port.unwrap_or(5432)))
}

/// The body of `GET /cluster`.
#[must_use]
pub fn document(cluster: &Cluster, scope: &str) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert(
        "members".to_owned(),
        rows(cluster).iter().map(member_document).collect(),
    );
    if is_paused(cluster) {
        out.insert("pause".to_owned(), true.into());
    }
    if let Some((at, from, to)) = scheduled_switchover(cluster) {
        let mut switchover = Map::new();
        switchover.insert("at".to_owned(), at.into());
        for (key, name) in [("from", from), ("to", to)] {
            if let Some(name) = name {
                switchover.insert(key.to_owned(), name.as_str().into());
            }
        }
        out.insert("scheduled_switchover".to_owned(), switchover.into());
    }
    out.insert("scope".to_owned(), scope.into());
    out
}

/// Time (ISO 8601), from and to of a scheduled switchover.
#[must_use]
pub fn scheduled_switchover(
    cluster: &Cluster,
) -> Option<(String, Option<&MemberName>, Option<&MemberName>)> {
    let request = cluster.failover.as_ref()?;
    let at = match request.scheduled_at.as_ref()? {
        Schedule::At(at) => timestamps::iso_utc(*at),
        Schedule::Unreadable(text) => text.clone(),
    };
    Some((at, request.leader.as_ref(), request.candidate.as_ref()))
}

fn member_document(row: &Row) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("name", row.name.as_str().into());
    put("role", row.place.text().into());
    put("state", row.state.as_str().into());
    put("api_url", row.api_url.as_deref().into());
    if let Some((host, port)) = &row.address {
        put("host", host.as_str().into());
        put("port", (*port).into());
    }
    if let Some(timeline) = row.timeline {
        put("timeline", timeline.0.into());
    }
    if let Some(reasons) = &row.pending_restart {
        put("pending_restart", true.into());
        if !reasons.is_empty() {
            put(
                "pending_restart_reason",
                wire::pending_restart_object(reasons).into(),
            );
        }
    }
    if let Some(restart) = &row.scheduled_restart {
        put("scheduled_restart", restart.clone().into());
    }
    if !row.tags.is_empty() {
        put("tags", row.tags.clone().into());
    }
    if let Some(lag) = &row.lag {
        for (prefix, distance) in [
            ("receive_", lag.receive),
            ("replay_", lag.replay),
            ("", lag.any),
        ] {
            let (bytes, position) = match distance {
                Some((position, bytes)) => (json!(bytes), json!(position.to_string())),
                None => (json!("unknown"), json!("unknown")),
            };
            put(&format!("{prefix}lag"), bytes);
            put(&format!("{prefix}lsn"), position);
        }
    }
    out.into()
}

/// The body of `GET /history`: arrays of three to five elements, as written.
#[must_use]
pub fn history_rows(cluster: &Cluster) -> Vec<Vec<Value>> {
    let entries = cluster
        .history
        .as_ref()
        .map(|history| history.entries.as_slice())
        .unwrap_or_default();
    entries
        .iter()
        .map(|entry| {
            let mut row = vec![
                entry.timeline.0.into(),
                entry.lsn.0.into(),
                entry.reason.as_str().into(),
            ];
            if let Some(timestamp) = &entry.timestamp {
                row.push(timestamp.as_str().into());
                if let Some(leader) = &entry.new_leader {
                    row.push(leader.as_str().into());
                }
            }
            row
        })
        .collect()
}
