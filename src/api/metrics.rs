//! `GET /metrics` in Prometheus' text format (spec/rest-api.md §11). Names are a contract; help texts are ours.

use std::fmt::{Display, Write};

use crate::cluster::CONTRACT_VERSION;
use crate::node::{NodeView, PgTimestamp, Xlog};
use crate::types::{Lsn, Moment, PgState, ReplicationState, Role};

use super::health::{self, SyncDuty};

/// The states in the order of their numbers, as the metric's comment names them.
const STATE_NAMES: [&str; 15] = [
    "initdb",
    "initdb_failed",
    "custom_bootstrap",
    "custom_bootstrap_failed",
    "creating_replica",
    "running",
    "starting",
    "bootstrap_starting",
    "start_failed",
    "restarting",
    "restart_failed",
    "stopping",
    "stopped",
    "stop_failed",
    "crashed",
];

struct Page {
    labels: String,
    text: String,
}

impl Page {
    fn metric(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.metric_with_comment(name, kind, help, "", value);
    }

    fn metric_with_comment(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        comment: &str,
        value: impl Display,
    ) {
        let labels = &self.labels;
        // Writing to a String cannot fail.
        let _ = writeln!(
            self.text,
            "# HELP {name} {help}\n{comment}# TYPE {name} {kind}\n{name}{labels} {value}"
        );
    }

    fn flag(&mut self, name: &str, help: &str, value: bool) {
        self.metric(name, "gauge", help, u8::from(value));
    }
}

/// The whole page.
#[must_use]
pub(super) fn page(view: &NodeView, now: Moment) -> String {
    let cluster = view.current_cluster(now).map(AsRef::as_ref);
    let postgres = view.postgres.as_ref();
    let role = health::json_role(view);
    let state = health::json_state(view);
    let duty = health::sync_duty(view, cluster);
    let (mut location, mut received, mut replayed) = (Lsn::ZERO, Lsn::ZERO, Lsn::ZERO);
    let (mut replayed_at, mut replay_paused) = (None, false);
    match postgres.map(|postgres| postgres.xlog) {
        Some(Xlog::Primary { location: at }) => location = at,
        Some(Xlog::Standby {
            received: r,
            replayed: p,
            replayed_timestamp,
            paused,
            ..
        }) => {
            (received, replayed, replayed_at, replay_paused) = (r, p, replayed_timestamp, paused);
        }
        None => {}
    }
    let mut page = Page {
        labels: format!(
            "{{scope=\"{}\",name=\"{}\"}}",
            escape(&view.scope),
            escape(view.name.as_str())
        ),
        text: String::with_capacity(8192),
    };
    page.metric(
        "patroni_version",
        "gauge",
        "Version of the contract this node speaks, without dots.",
        version_number(),
    );
    page.flag(
        "patroni_postgres_running",
        "1 if PostgreSQL is running, 0 otherwise.",
        state == Some(PgState::Running),
    );
    page.metric(
        "patroni_postmaster_start_time",
        "gauge",
        "Epoch seconds since PostgreSQL started.",
        seconds(postgres.map(|postgres| postgres.postmaster_start_time)),
    );
    page.flag(
        "patroni_primary",
        "1 if this node is the primary, 0 otherwise.",
        role == Role::Primary,
    );
    page.metric(
        "patroni_xlog_location",
        "counter",
        "Current location of the WAL, 0 if this node is not the primary.",
        location.0,
    );
    page.flag(
        "patroni_standby_leader",
        "1 if this node is the standby leader, 0 otherwise.",
        role == Role::StandbyLeader,
    );
    page.flag(
        "patroni_replica",
        "1 if this node is a replica, 0 otherwise.",
        role == Role::Replica,
    );
    page.flag(
        "patroni_sync_standby",
        "1 if this node is a synchronous standby, 0 otherwise.",
        duty == SyncDuty::Sync,
    );
    page.flag(
        "patroni_quorum_standby",
        "1 if this node is a quorum standby, 0 otherwise.",
        duty == SyncDuty::Quorum,
    );
    page.metric(
        "patroni_xlog_received_location",
        "counter",
        "Received location of the WAL, 0 if this node is not in recovery.",
        received.0,
    );
    page.metric(
        "patroni_xlog_replayed_location",
        "counter",
        "Replayed location of the WAL, 0 if this node is not in recovery.",
        replayed.0,
    );
    page.metric(
        "patroni_xlog_replayed_timestamp",
        "gauge",
        "Time of the last replayed transaction, 0 if unknown.",
        seconds(replayed_at),
    );
    page.flag(
        "patroni_xlog_paused",
        "1 if WAL replay is paused, 0 otherwise.",
        replay_paused,
    );
    if let Some(postgres) = postgres.filter(|postgres| postgres.server_version.0 >= 90_600) {
        let is = |wanted| postgres.replication_state == Some(wanted);
        page.flag(
            "patroni_postgres_streaming",
            "1 if this node is streaming, 0 otherwise.",
            is(ReplicationState::Streaming),
        );
        page.flag(
            "patroni_postgres_in_archive_recovery",
            "1 if this node replays from an archive, 0 otherwise.",
            is(ReplicationState::InArchiveRecovery),
        );
    }
    page.metric(
        "patroni_postgres_server_version",
        "gauge",
        "Version of PostgreSQL, 0 if it is not running.",
        postgres.map_or(0, |postgres| postgres.server_version.0),
    );
    page.flag(
        "patroni_cluster_unlocked",
        "1 if nobody holds the leader lock, 0 otherwise.",
        cluster.is_none_or(|cluster| cluster.is_unlocked()),
    );
    page.flag(
        "patroni_failsafe_mode_is_active",
        "1 if failsafe mode is active, 0 otherwise.",
        view.failsafe_active(now),
    );
    page.flag(
        "patroni_failsafe_mode_enabled",
        "1 if failsafe mode is enabled, 0 otherwise.",
        view.settings.failsafe_mode,
    );
    let failsafe_member = cluster
        .and_then(|cluster| cluster.failsafe.as_ref())
        .is_some_and(|names| names.contains_key(&view.name));
    page.flag(
        "patroni_failsafe_member",
        "1 if this node is part of the failsafe topology, 0 otherwise.",
        failsafe_member,
    );
    page.metric(
        "patroni_postgres_timeline",
        "gauge",
        "Timeline of this node, 0 if PostgreSQL is not running.",
        postgres
            .and_then(|postgres| postgres.timeline)
            .map_or(0, |timeline| timeline.0),
    );
    page.metric(
        "patroni_dcs_last_seen",
        "gauge",
        "Epoch seconds when the store last answered.",
        view.dcs_last_seen.0 / 1000,
    );
    page.flag(
        "patroni_pending_restart",
        "1 if PostgreSQL needs a restart, 0 otherwise.",
        view.pending_restart.is_some(),
    );
    page.flag(
        "patroni_is_paused",
        "1 if management is paused, 0 otherwise.",
        view.settings.pause,
    );
    let values: Vec<String> = STATE_NAMES
        .iter()
        .enumerate()
        .map(|(number, name)| format!("{number}={name}"))
        .collect();
    page.metric_with_comment(
        "patroni_postgres_state",
        "gauge",
        "What PostgreSQL is doing, as a number.",
        &format!("# Values: {}\n", values.join(", ")),
        state.map_or(-1, |state| state as i32),
    );
    page.metric(
        "patroni_failover_priority",
        "gauge",
        "Failover priority of this node.",
        view.tags.leader_priority(),
    );

    // Ours, beyond upstream's.
    let counters = view.counters;
    page.metric(
        "howdah_loop_turns",
        "counter",
        "Finished turns of the loop.",
        counters.turns,
    );
    page.metric(
        "howdah_loop_overruns",
        "counter",
        "Turns that took longer than loop_wait.",
        counters.overruns,
    );
    page.metric(
        "howdah_dcs_failures",
        "counter",
        "Calls to the store that failed or stayed unanswered.",
        counters.dcs_failures,
    );
    page.metric(
        "howdah_postgres_failures",
        "counter",
        "Status queries that failed.",
        counters.postgres_failures,
    );
    let left = view
        .leader_until
        .map_or(0.0, |until| now.until(until).as_secs_f64());
    page.metric(
        "howdah_lease_seconds_left",
        "gauge",
        "Seconds this node may go on calling itself leader.",
        left,
    );
    page.text
}

/// `4.1.4` → `040104`.
fn version_number() -> String {
    CONTRACT_VERSION
        .split('.')
        .map(|part| format!("{part:0>2}"))
        .collect()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "microseconds since 1970 fit into 53 bits until 2255"
)]
fn seconds(at: Option<PgTimestamp>) -> String {
    at.map_or_else(|| "0".to_owned(), |at| format!("{}", at.0 as f64 / 1e6))
}

fn escape(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::MemberName;

    #[test]
    fn a_fresh_node() {
        let now = Moment(Duration::from_secs(5));
        let view = NodeView::starting(MemberName::new("a\"b").unwrap(), "demo", now);
        let text = page(&view, now);
        assert!(text.starts_with("# HELP patroni_version "));
        assert!(text.contains("\npatroni_version{scope=\"demo\",name=\"a\\\"b\"} 040104\n"));
        assert!(text.contains("\npatroni_postgres_state{scope=\"demo\",name=\"a\\\"b\"} 12\n"));
        assert!(text.contains("\n# Values: 0=initdb, 1=initdb_failed, "));
        assert!(text.contains(", 14=crashed\n# TYPE patroni_postgres_state gauge\n"));
        assert!(!text.contains("patroni_postgres_streaming"));
        assert!(text.contains("\npatroni_cluster_unlocked{scope=\"demo\",name=\"a\\\"b\"} 1\n"));
        assert!(text.ends_with('\n'));
    }
}
