//! `GET /metrics` in Prometheus' text format (spec/rest-api.md §11). Names are a contract; help texts are ours.

use std::fmt::{Display, Write};

use crate::cluster::CONTRACT_VERSION;
use crate::histogram::Histogram;
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

    /// A gauge with a label of its own.
    fn labelled(&mut self, name: &str, help: &str, label: &str, value: impl Display) {
        let labels = self.labels_and(label);
        let _ = writeln!(
            self.text,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{labels} {value}"
        );
    }

    fn histogram(&mut self, name: &str, help: &str, seen: &Histogram) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (bound, count) in seen.cumulative() {
            let labels = self.labels_and(&format!("le=\"{bound}\""));
            let _ = writeln!(self.text, "{name}_bucket{labels} {count}");
        }
        let (infinite, labels) = (self.labels_and("le=\"+Inf\""), &self.labels);
        let (count, sum) = (seen.count(), seen.sum().as_secs_f64());
        let _ = writeln!(
            self.text,
            "{name}_bucket{infinite} {count}\n{name}_sum{labels} {sum}\n{name}_count{labels} {count}"
        );
    }

    fn labels_and(&self, label: &str) -> String {
        format!("{},{label}}}", self.labels.trim_end_matches('}'))
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

    own(&mut page, view, now);
    page.text
}

/// Ours, beyond upstream's.
fn own(page: &mut Page, view: &NodeView, now: Moment) {
    let counters = &view.counters;
    page.metric(
        "howdah_loop_turns_total",
        "counter",
        "Finished turns of the loop.",
        counters.turns,
    );
    page.metric(
        "howdah_loop_overruns_total",
        "counter",
        "Turns that took longer than loop_wait.",
        counters.overruns,
    );
    page.metric(
        "howdah_dcs_failures_total",
        "counter",
        "Calls to the store that failed or stayed unanswered.",
        counters.dcs_failures,
    );
    page.metric(
        "howdah_postgres_failures_total",
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
    page.histogram(
        "howdah_failover_duration_seconds",
        "Take-overs by this node: from seeing that nobody leads, or being handed the key, until PostgreSQL takes writes.",
        &counters.failovers,
    );
    page.histogram(
        "howdah_loop_duration_seconds",
        "Turns of the loop.",
        &counters.turn_times,
    );
    page.histogram(
        "howdah_dcs_request_duration_seconds",
        "Calls to the store that were answered.",
        &counters.dcs_times,
    );
    page.histogram(
        "howdah_lease_margin_seconds",
        "What was left of the lease, up to the moment in which PostgreSQL is stopped, when it was renewed.",
        &counters.lease_margins,
    );
    if let Some(job) = &view.job {
        let label = format!("job=\"{}\"", job.name);
        page.labelled(
            "howdah_job_running_seconds",
            "For how long the running job has run.",
            &label,
            now.since(job.since).as_secs_f64(),
        );
        if let Some((done, total)) = job.bytes {
            page.labelled(
                "howdah_job_done_bytes",
                "Bytes that the running job has copied.",
                &label,
                done,
            );
            page.labelled(
                "howdah_job_expected_bytes",
                "Bytes that the running job has to copy in all, as estimated.",
                &label,
                total,
            );
        }
    }
    page.metric(
        "howdah_log_lines_lost_total",
        "counter",
        "Log lines dropped because whoever reads the log does not keep up.",
        view.log.lost,
    );
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

    /// One sample: name, labels, value.
    fn sample(line: &str) -> (&str, std::collections::BTreeMap<&str, String>, f64) {
        let (name, rest) = line.split_once('{').unwrap();
        let (labels, value) = rest.rsplit_once("} ").unwrap();
        let mut found = std::collections::BTreeMap::new();
        let mut rest = labels;
        while !rest.is_empty() {
            let (key, after) = rest.split_once("=\"").unwrap();
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().expect("a closing quote") {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next().unwrap().1 {
                        'n' => value.push('\n'),
                        other => value.push(other),
                    },
                    (_, other) => value.push(other),
                }
            };
            assert_eq!(
                found.insert(key, value),
                None,
                "label {key} twice in {line}"
            );
            rest = after[end + 1..]
                .strip_prefix(',')
                .unwrap_or(&after[end + 1..]);
        }
        (
            name,
            found,
            value
                .parse()
                .unwrap_or_else(|_| panic!("no number: {line}")),
        )
    }

    fn is_a_name(name: &str) -> bool {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    }

    /// Prometheus' text format, as strictly as its own parser and `promtool check metrics` take it.
    #[test]
    fn each_metric_has_one_type_one_help_and_samples_that_fit() {
        use std::collections::{BTreeMap, BTreeSet};
        let now = Moment(Duration::from_secs(50));
        let mut view = NodeView::starting(MemberName::new("a\"b\\c").unwrap(), "demo", now);
        for millis in [3, 700, 100_000] {
            let took = Duration::from_millis(millis);
            view.counters.failovers.observe(took);
            view.counters.turn_times.observe(took);
        }
        view.job = Some(crate::node::RunningJob {
            name: "clone",
            since: Moment(Duration::from_secs(48)),
            bytes: Some((10, 100)),
        });
        let text = page(&view, now);
        let (mut types, mut helps, mut samples) =
            (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let mut current = "";
        let mut buckets: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(help.ends_with('.') && helps.insert(name), "{line}");
                current = name;
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert!(["gauge", "counter", "histogram"].contains(&kind), "{line}");
                assert!(
                    name == current && types.insert(name, kind).is_none(),
                    "{line}"
                );
            } else if !line.starts_with('#') {
                let (name, labels, value) = sample(line);
                assert!(
                    is_a_name(name) && labels.keys().all(|key| is_a_name(key)),
                    "{line}"
                );
                assert_eq!(
                    (labels["scope"].as_str(), labels["name"].as_str()),
                    ("demo", "a\"b\\c")
                );
                assert!(samples.insert((name, labels.clone())), "twice: {line}");
                let kind = types
                    .get(current)
                    .unwrap_or_else(|| panic!("no type before {line}"));
                let ending = name
                    .strip_prefix(current)
                    .unwrap_or_else(|| panic!("below {current}: {line}"));
                match (*kind, ending) {
                    ("histogram", "_bucket") => {
                        let bound = labels["le"].parse().unwrap();
                        buckets.entry(current).or_default().push((bound, value));
                    }
                    ("histogram", "_count") => drop(counts.insert(current, value)),
                    ("histogram", "_sum") | ("gauge" | "counter", "") => {}
                    other => panic!("{other:?}: {line}"),
                }
                // The others are upstream's, which are older than the convention.
                if *kind == "counter" && name.starts_with("howdah_") {
                    assert!(name.ends_with("_total"), "{line}");
                }
            }
        }
        assert_eq!(buckets.len(), 4);
        for (name, buckets) in buckets {
            assert!(
                buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
                "{name}: {buckets:?}"
            );
            assert_eq!(
                buckets.last(),
                Some(&(f64::INFINITY, counts[name])),
                "{name}"
            );
        }
        assert_eq!(counts["howdah_failover_duration_seconds"], 3.0);
        assert!(
            text.contains(
                "howdah_job_running_seconds{scope=\"demo\",name=\"a\\\"b\\\\c\",job=\"clone\"} 2\n"
            ),
            "{text}"
        );
        assert!(text.contains(",job=\"clone\"} 10\n") && text.contains(",job=\"clone\"} 100\n"));
    }
}
