//! The node status JSON of spec/rest-api.md §7: the body of `GET /patroni` and of every health check.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::cluster::{CONTRACT_VERSION, Cluster, PendingChange, wire};
use crate::node::{NodeView, PostgresStatus, Xlog};
use crate::timestamps::of_postgres;
use crate::types::Moment;

use super::health::{self, SyncDuty};

/// The object, keys in upstream's order.
#[must_use]
pub fn document(view: &NodeView, now: Moment) -> Map<String, Value> {
    let cluster: Option<&Cluster> = view.current_cluster(now).map(AsRef::as_ref);
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put(
        "state",
        health::json_state(view)
            .map_or("unknown", wire::state_text)
            .into(),
    );
    if let Some(postgres) = &view.postgres {
        put(
            "postmaster_start_time",
            of_postgres(postgres.postmaster_start_time).into(),
        );
    }
    put("role", wire::role_text(health::json_role(view)).into());
    if let Some(postgres) = &view.postgres {
        put("server_version", postgres.server_version.0.into());
        put("xlog", xlog(postgres));
    }
    match health::sync_duty(view, cluster) {
        SyncDuty::None => {}
        SyncDuty::Sync => put("sync_standby", true.into()),
        SyncDuty::Quorum => put("quorum_standby", true.into()),
    }
    if let Some(postgres) = &view.postgres {
        put(
            "timeline",
            postgres.timeline.map(|timeline| timeline.0).into(),
        );
        if let Some(state) = postgres.replication_state {
            put(
                "replication_state",
                wire::replication_state_text(state).into(),
            );
        }
        if !postgres.replication.is_empty() {
            put("replication", walsenders(postgres));
        }
    }
    if view.settings.pause {
        put("pause", true.into());
    }
    if cluster.is_none_or(Cluster::is_unlocked) {
        put("cluster_unlocked", true.into());
    }
    if view.failsafe_active(now) {
        put("failsafe_mode_is_active", true.into());
    }
    put("dcs_last_seen", (view.dcs_last_seen.0 / 1000).into());
    if !view.effective_tags.is_empty() {
        put("tags", view.effective_tags.clone().into());
    }
    if let Some(system_id) = &view.system_id {
        put("database_system_identifier", system_id.as_str().into());
    }
    if let Some(reasons) = &view.pending_restart {
        put("pending_restart", true.into());
        put("pending_restart_reason", pending_reasons(reasons));
    }
    put(
        "patroni",
        json!({"version": CONTRACT_VERSION, "scope": view.scope, "name": view.name.as_str()}),
    );
    if let Some(restart) = &view.scheduled_restart {
        put("scheduled_restart", restart.document.clone().into());
    }
    if view.watchdog_failed {
        put("watchdog_failed", true.into());
    }
    if let Some(because) = &view.cannot_serve {
        put("cannot_serve", because.as_str().into());
    }
    if view
        .postgres
        .as_ref()
        .is_some_and(|postgres| postgres.replaying)
    {
        put("replaying", true.into());
    }
    if view.log.queued > 2 {
        put("logger_queue_size", view.log.queued.into());
        if view.log.lost > 0 {
            put("logger_records_lost", view.log.lost.into());
        }
    }
    out
}

fn xlog(postgres: &PostgresStatus) -> Value {
    match postgres.xlog {
        Xlog::Primary { location } => json!({"location": location.0}),
        Xlog::Standby {
            received,
            replayed,
            replayed_timestamp,
            paused,
            ..
        } => json!({
            "received_location": received.0,
            "replayed_location": replayed.0,
            "replayed_timestamp": replayed_timestamp.map(of_postgres),
            "paused": paused,
        }),
    }
}

fn walsenders(postgres: &PostgresStatus) -> Value {
    let row = |sender: &crate::node::Walsender| {
        json!({
            "usename": sender.usename,
            "application_name": sender.application_name,
            "client_addr": sender.client_addr,
            "state": sender.state,
            "sync_state": sender.sync_state,
            "sync_priority": sender.sync_priority,
        })
    };
    postgres.replication.iter().map(row).collect()
}

/// `{param: {"old_value": …, "new_value": …}}`, `?` for an unknown value (spec §7; the store keeps it empty).
fn pending_reasons(reasons: &BTreeMap<String, PendingChange>) -> Value {
    let known = |value: &str| {
        if value.is_empty() {
            "?".to_owned()
        } else {
            value.to_owned()
        }
    };
    let shown = reasons.iter().map(|(name, change)| {
        let change = PendingChange {
            old_value: known(&change.old_value),
            new_value: known(&change.new_value),
        };
        (name.clone(), change)
    });
    wire::pending_restart_object(&shown.collect()).into()
}
