//! The status decisions of the health checks, liveness and readiness (spec/rest-api.md §4–§6): pure functions of the
//! published view, the time and the query. No lock, no store, no PostgreSQL.

use crate::cluster::{Cluster, wire};
use crate::node::{NodeView, SynchronousMode, Xlog};
use crate::types::{Lsn, MemberName, Moment, PgState, Role};

use super::values;

/// The decoded query of a request; the first value of a name counts, empty values are absent.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `a=1&b=2`, with `+` and `%xx`.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Query {
        let Some(text) = text else {
            return Query::default();
        };
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in text.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !name.is_empty() && !value.is_empty() {
                pairs.push((percent_decode(name), percent_decode(value)));
            }
        }
        Query(pairs)
    }

    /// The first value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn tag_filters(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("tag_")?, value.as_str())))
            // Only the first value of a repeated filter counts.
            .filter(|(tag, value)| self.get(&format!("tag_{tag}")) == Some(*value))
    }
}

fn percent_decode(text: &str) -> String {
    if !text.contains(['%', '+']) {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', _, _) => out.push(b' '),
            (other, _, _) => out.push(other),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `state` of the status JSON; `None` is spelled `unknown` (the query failed although PostgreSQL is said to run).
#[must_use]
pub fn json_state(view: &NodeView) -> Option<PgState> {
    (view.state != PgState::Running || view.postgres.is_some()).then_some(view.state)
}

/// `role` of the status JSON: what PostgreSQL says; in recovery of a standby cluster, and without an answer, what we remember.
#[must_use]
pub fn json_role(view: &NodeView) -> Role {
    match &view.postgres {
        Some(postgres) if postgres.is_writable() => Role::Primary,
        Some(_) if view.settings.standby_cluster => view.role,
        Some(_) => Role::Replica,
        None => view.role,
    }
}

/// Which of `sync_standby` and `quorum_standby` holds for this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncDuty {
    /// Neither.
    None,
    /// `sync_standby`.
    Sync,
    /// `quorum_standby`.
    Quorum,
}

/// The synchronous duty of a replica, from the `/sync` document (spec §7).
#[must_use]
pub fn sync_duty(view: &NodeView, cluster: Option<&Cluster>) -> SyncDuty {
    let listed = |cluster: &Cluster| {
        cluster.sync.leader.is_some() && is_listed(&cluster.sync.standbys, &view.name)
    };
    if json_role(view) != Role::Replica || !cluster.is_some_and(listed) {
        return SyncDuty::None;
    }
    match view.settings.synchronous_mode {
        SynchronousMode::Off => SyncDuty::None,
        SynchronousMode::On => SyncDuty::Sync,
        SynchronousMode::Quorum => SyncDuty::Quorum,
    }
}

fn is_listed(names: &[MemberName], name: &MemberName) -> bool {
    names.iter().any(|listed| listed.matches(name))
}

/// The best known position of the leader: its last publication, or what our WAL receiver was last told.
fn leader_optime(view: &NodeView, cluster: Option<&Cluster>) -> Lsn {
    let published = cluster.map_or(Lsn::ZERO, |cluster| cluster.status.optime);
    published.max(latest_end(view).unwrap_or_default())
}

fn latest_end(view: &NodeView) -> Option<Lsn> {
    match view.postgres.as_ref()?.xlog {
        Xlog::Standby { latest_end, .. } => latest_end,
        Xlog::Primary { .. } => None,
    }
}

/// `(received, replayed)`, zero if unknown.
fn standby_positions(view: &NodeView) -> (Lsn, Lsn) {
    match view.postgres.as_ref().map(|postgres| postgres.xlog) {
        Some(Xlog::Standby {
            received, replayed, ..
        }) => (received, replayed),
        _ => (Lsn::ZERO, Lsn::ZERO),
    }
}

fn replication_state_text(view: &NodeView) -> Option<&'static str> {
    view.postgres
        .as_ref()?
        .replication_state
        .map(wire::replication_state_text)
}

/// Whether a health check of this path answers 200 (else 503). Paths are matched by substring on purpose (spec §5.2).
#[must_use]
pub fn is_healthy(view: &NodeView, now: Moment, path: &str, query: &Query) -> bool {
    let cluster = view.current_cluster(now).map(AsRef::as_ref);
    let role = json_role(view);
    let state = json_state(view);
    let leads = view.is_leader(now);
    let (leader, primary, standby_leader) = if cluster.is_none() && view.settings.pause {
        (
            matches!(role, Role::Primary | Role::StandbyLeader),
            role == Role::Primary,
            role == Role::StandbyLeader,
        )
    } else if leads && view.settings.standby_cluster {
        (
            true,
            false,
            matches!(role, Role::Replica | Role::StandbyLeader),
        )
    } else {
        (leads, leads, false)
    };
    let primary = primary && (!view.settings.primary_when_writable || is_writable(view));
    // A standby leader by its lease is never a replica, whatever its role is called at the moment.
    let never_replica =
        leads && view.settings.standby_cluster && !(cluster.is_none() && view.settings.pause);
    let replica = || {
        !never_replica
            && !view.tags.noloadbalance
            && role == Role::Replica
            && state == Some(PgState::Running)
            && query
                .get("replication_state")
                .is_none_or(|wanted| replication_state_text(view) == Some(wanted))
            && !is_lagging(view, cluster, query)
    };

    let has = |part: &str| path.contains(part);
    if has("standby_leader") || has("standby-leader") {
        return standby_leader;
    }
    if has("leader") {
        return leader;
    }
    if path == "/" || has("master") || has("primary") || has("read-write") {
        return primary;
    }
    let answer = if has("replica") {
        replica()
    } else if has("read-only") && !has("sync") && !has("quorum") {
        primary || standby_leader || replica()
    } else if has("health") {
        state == Some(PgState::Running)
    } else if cluster.is_some() {
        let duty = || sync_duty(view, cluster);
        match path {
            "/sync" | "/synchronous" => duty() == SyncDuty::Sync && replica(),
            "/quorum" => duty() == SyncDuty::Quorum && replica(),
            "/async" | "/asynchronous" => duty() == SyncDuty::None && replica(),
            "/read-only-sync" | "/read-only-synchronous" => {
                primary || standby_leader || (duty() == SyncDuty::Sync && replica())
            }
            "/read-only-quorum" => {
                primary || standby_leader || (duty() == SyncDuty::Quorum && replica())
            }
            _ => false,
        }
    } else {
        false
    };
    answer
        && query
            .tag_filters()
            .all(|(tag, wanted)| has_tag(view, tag, wanted))
}

/// PostgreSQL said so when it was last asked; it is asked again as soon as it stops or ends its recovery.
fn is_writable(view: &NodeView) -> bool {
    view.postgres
        .as_ref()
        .is_some_and(|postgres| postgres.is_writable())
}

fn is_lagging(view: &NodeView, cluster: Option<&Cluster>, query: &Query) -> bool {
    let Some(limit) = query.get("lag").and_then(values::parse_bytes) else {
        return false;
    };
    let (_, replayed) = standby_positions(view);
    i128::from(leader_optime(view, cluster).0) > i128::from(replayed.0) + i128::from(limit)
        && leader_optime(view, cluster) > Lsn::ZERO
}

fn has_tag(view: &NodeView, tag: &str, wanted: &str) -> bool {
    match view.configured_tags.get(tag) {
        None => false,
        Some(serde_json::Value::String(text)) => text == wanted,
        Some(other) => other.to_string().to_lowercase() == wanted,
    }
}

/// `/liveness`: the loop is not overdue by more than `ttl` (running primary) or twice that, or management is paused.
#[must_use]
pub fn is_live(view: &NodeView, now: Moment) -> bool {
    let ttl = view.settings.ttl;
    let patience = if view.role == Role::Primary && view.postmaster_alive {
        ttl
    } else {
        ttl * 2
    };
    view.settings.pause || view.next_turn + patience > now
}

/// `/readiness`: leads, or streams closely enough. The error says why not, for the log.
///
/// # Errors
/// The first unmet condition of spec §6.
pub fn readiness(view: &NodeView, now: Moment, query: &Query) -> Result<(), String> {
    let cluster = view.current_cluster(now).map(AsRef::as_ref);
    if view.is_leader(now) {
        return Ok(());
    }
    if view.state != PgState::Running {
        return Err("PostgreSQL is not running".to_owned());
    }
    if replication_state_text(view) != Some("streaming") {
        return Err("PostgreSQL replication state is not streaming".to_owned());
    }
    if cluster.is_none() && latest_end(view).is_none() {
        return if view.failsafe_active(now) {
            Ok(())
        } else {
            Err("the store is not accessible and the leader's position is unknown".to_owned())
        };
    }
    let (received, replayed) = standby_positions(view);
    let (position, what) = match query.get("mode") {
        Some("write") => (received, "received"),
        _ => (replayed, "replayed"),
    };
    let limit = query
        .get("lag")
        .and_then(values::parse_bytes)
        .unwrap_or_else(|| {
            i64::try_from(view.settings.maximum_lag_on_failover).unwrap_or(i64::MAX)
        });
    let lag = leader_optime(view, cluster).ahead_of(position);
    if i128::from(lag) > i128::from(limit) {
        return Err(format!(
            "{what} position is {lag} bytes behind the leader, more than {limit}"
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "health/tests.rs"]
mod tests;
