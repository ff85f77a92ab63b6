//! What a new configuration means for a running server: nothing, a reload, or a restart that is pending
//! (spec/configuration.md §7, spec/postgres-management.md §6.4).
//!
//! Pure: compares wanted settings with rows of `pg_settings`. It neither reads them nor carries anything out.

use std::collections::BTreeMap;

use super::conninfo::Conninfo;
use super::params::{Parameters, PendingReason, PendingRestart};
use super::quantity;
use super::version_rules;
use crate::types::PgVersion;

/// One row of `pg_settings`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the view's own columns")]
pub struct SettingRow {
    pub name: String,
    /// In `unit`.
    pub setting: String,
    pub unit: Option<String>,
    pub vartype: String,
    pub context: String,
    /// Where the value comes from; `None` if not from a file.
    pub sourcefile: Option<String>,
}

/// One setting that differs from the running value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Setting.
    pub name: String,
    /// Running value; empty: unset.
    pub old_value: String,
    /// Wanted value; empty: taken out of the configuration.
    pub new_value: String,
    /// Only a restart applies it.
    pub restart: bool,
}

/// The result of comparing a configuration with the running server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// Settings that differ, for the log.
    pub changes: Vec<Change>,
    /// Of these, the ones that wait for a restart.
    pub pending: PendingRestart,
    /// postgresql.conf is to be rewritten and the server reloaded.
    pub rewrite: bool,
    /// Wanted names that the server does not know; they must not be written.
    pub invalid: Vec<String>,
}

/// Compares what is wanted with what runs. `previous`: what the last written configuration wanted.
///
/// `rows` must contain the rows of all wanted and previous names, and `shared_buffers` (for automatic `wal_buffers`).
#[must_use]
pub fn compare(wanted: &Parameters, previous: &Parameters, rows: &[SettingRow]) -> Comparison {
    let mut comparison = Comparison::default();
    // hot_standby is only ever changed around a custom bootstrap, which restarts the server itself.
    let skipped =
        |name: &str| name.eq_ignore_ascii_case("hot_standby") || version_rules::is_recovery(name);
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    for (name, _) in previous
        .iter()
        .chain(wanted.iter())
        .filter(|(name, _)| !skipped(name))
    {
        names.insert(name.to_ascii_lowercase(), name);
    }
    for name in names.into_values() {
        let (new, old) = (wanted.get(name), previous.get(name));
        match rows.iter().find(|row| row.name.eq_ignore_ascii_case(name)) {
            Some(row) if row.context == "internal" => {}
            Some(row) => compare_known(row, new, old, rows, &mut comparison),
            None if name.contains('.') => comparison.rewrite |= new != old,
            None if new.is_some() => comparison.invalid.push(name.to_owned()),
            None => {}
        }
    }
    comparison
}

fn compare_known(
    row: &SettingRow,
    new: Option<&str>,
    previous: Option<&str>,
    rows: &[SettingRow],
    comparison: &mut Comparison,
) {
    let automatic = if row.name == "wal_buffers" && new.is_none_or(|v| v.trim() == "-1") {
        automatic_wal_buffers(rows)
    } else {
        None
    };
    let effective = automatic.as_deref().or(new);
    let differs = match effective {
        None => true,
        Some(value) => !same_value(row, value),
    };
    if !differs {
        comparison.rewrite |= new != previous;
        return;
    }
    comparison.rewrite = true;
    let restart = row.context == "postmaster";
    let change = Change {
        name: row.name.clone(),
        old_value: shown(row, &row.setting),
        new_value: new.map(|value| shown(row, value)).unwrap_or_default(),
        restart,
    };
    if restart {
        let reason = PendingReason {
            old_value: change.old_value.clone(),
            new_value: change.new_value.clone(),
        };
        comparison.pending.insert(row.name.clone(), reason);
    }
    comparison.changes.push(change);
}

/// 1/32 of shared_buffers, at least 64 kB, at most one segment of 16 MB; in blocks of 8 kB.
fn automatic_wal_buffers(rows: &[SettingRow]) -> Option<String> {
    let number = |name: &str| {
        rows.iter()
            .find(|row| row.name == name)?
            .setting
            .parse::<i64>()
            .ok()
    };
    let segment_blocks = number("wal_segment_size")
        .filter(|bytes| *bytes > 8192)
        .map_or(2048, |bytes| bytes / 8192);
    Some(
        (number("shared_buffers")? / 32)
            .clamp(8, segment_blocks)
            .to_string(),
    )
}

/// Whether a text of the configuration means the running value.
fn same_value(row: &SettingRow, value: &str) -> bool {
    let unit = row.unit.as_deref();
    match row.vartype.as_str() {
        "bool" => quantity::parse_bool(value)
            .is_some_and(|v| Some(v) == quantity::parse_bool(&row.setting)),
        "integer" => quantity::parse_integer(value, unit)
            .is_some_and(|v| Some(v) == quantity::parse_integer(&row.setting, unit)),
        "real" => quantity::parse_real(value, unit)
            .is_some_and(|v| Some(v) == quantity::parse_real(&row.setting, unit)),
        "enum" => value.eq_ignore_ascii_case(&row.setting),
        _ => value == row.setting,
    }
}

/// A value as it is published: numbers in their largest exact unit.
fn shown(row: &SettingRow, value: &str) -> String {
    let unit = row.unit.as_deref();
    match (row.vartype.as_str(), unit) {
        ("integer", Some(_)) => quantity::parse_integer(value, unit).map_or_else(
            || value.to_owned(),
            |number| quantity::with_largest_unit(number, unit),
        ),
        _ => value.to_owned(),
    }
}

/// The pending restart as the server sees it after a reload (9.5+): `rows` are those with `pending_restart`; `new_values` what
/// `postgres -C` prints for each (`?` if it could not be asked).
#[must_use]
pub fn pending_from_server(
    rows: &[SettingRow],
    new_values: &BTreeMap<String, String>,
) -> PendingRestart {
    rows.iter()
        .map(|row| {
            let new_value = new_values
                .get(&row.name)
                .map_or_else(|| "?".to_owned(), |value| shown(row, value));
            let reason = PendingReason {
                old_value: shown(row, &row.setting),
                new_value,
            };
            (row.name.clone(), reason)
        })
        .collect()
}

/// What a standby needs so that its recovery settings take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// All is as wanted.
    Nothing,
    /// A reload is enough.
    Reload,
    /// The server must be restarted.
    Restart,
}

/// What runs on a standby.
#[derive(Debug, Clone, Copy)]
pub struct RunningRecovery<'a> {
    /// standby.signal (12+) or recovery.conf exists.
    pub has_signal: bool,
    /// Recovery settings: rows of `pg_settings` (12+), or the parsed recovery.conf with any context.
    pub rows: &'a [SettingRow],
    /// `conninfo` and `slot_name` of the running WAL receiver; `None`: no receiver or not allowed to see.
    pub receiver: Option<(&'a str, &'a str)>,
    /// The password file has exactly the lines that the wanted connection needs.
    pub passwords_match: bool,
    /// The file that we write; settings of other files may be left alone.
    pub managed_file: &'a str,
}

/// Compares the wanted recovery settings of a standby with the running ones (spec/postgres-management.md §6.4).
#[must_use]
pub fn recovery_need(wanted: &Parameters, running: &RunningRecovery<'_>, major: PgVersion) -> Need {
    const IGNORED: [&str; 4] = [
        "pause_at_recovery_target",
        "recovery_target_inclusive",
        "recovery_target_action",
        "standby_mode",
    ];
    const LEFT_ALONE: [&str; 5] = [
        "archive_cleanup_command",
        "promote_trigger_file",
        "recovery_end_command",
        "recovery_min_apply_delay",
        "restore_command",
    ];
    if !running.has_signal {
        return Need::Restart;
    }
    let mut need = Need::Nothing;
    for name in version_rules::recovery_names().filter(|name| !IGNORED.contains(name)) {
        let row = running
            .rows
            .iter()
            .find(|row| row.name.eq_ignore_ascii_case(name));
        let want = wanted.get(name);
        let foreign = row
            .and_then(|row| row.sourcefile.as_deref())
            .is_some_and(|file| file != running.managed_file);
        if want.is_none() && foreign && LEFT_ALONE.contains(&name) {
            continue;
        }
        let matches = match name {
            "primary_conninfo" => conninfo_matches(want, row, running, major),
            "primary_slot_name" if wanted.get("primary_conninfo").is_none() => true,
            "primary_slot_name" => {
                let live = running
                    .receiver
                    .map(|(_, slot)| slot)
                    .or(row.map(|row| row.setting.as_str()));
                live.unwrap_or_default() == want.unwrap_or_default()
            }
            _ => match row {
                Some(row) if want.is_none() => {
                    row.setting.is_empty() || (row.vartype == "integer" && row.setting == "0")
                }
                Some(row) => want.is_some_and(|want| same_value(row, want)),
                None => want.is_none_or(str::is_empty),
            },
        };
        if !matches {
            need = need.max(need_of(name, row, major));
        }
    }
    need
}

fn need_of(name: &str, row: Option<&SettingRow>, major: PgVersion) -> Need {
    let by_version = match name {
        _ if !major.at_least(12) => Need::Restart,
        "primary_conninfo" | "primary_slot_name" if !major.at_least(13) => Need::Restart,
        "restore_command" if !major.at_least(14) => Need::Restart,
        _ => Need::Reload,
    };
    match row {
        Some(row) if row.context == "postmaster" => Need::Restart,
        _ => by_version,
    }
}

fn conninfo_matches(
    want: Option<&str>,
    row: Option<&SettingRow>,
    running: &RunningRecovery<'_>,
    major: PgVersion,
) -> bool {
    let configured = row.map(|row| row.setting.as_str()).unwrap_or_default();
    let Some(want) = want else {
        return configured.is_empty();
    };
    let (Ok(want), Ok(configured)) = (Conninfo::parse(want), Conninfo::parse(configured)) else {
        return false;
    };
    let live = match running
        .receiver
        .map(|(conninfo, _)| Conninfo::parse(conninfo))
    {
        // The view hides the password and reports a database of its own.
        Some(Ok(live)) => live
            .with("password", configured.get("password").unwrap_or_default())
            .with("dbname", configured.get("dbname").unwrap_or_default()),
        _ => configured,
    };
    want.is_satisfied_by(&live, major)
        && (want.get("passfile").is_none() || running.passwords_match)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(
        name: &str,
        setting: &str,
        unit: Option<&str>,
        vartype: &str,
        context: &str,
    ) -> SettingRow {
        SettingRow {
            name: name.into(),
            setting: setting.into(),
            unit: unit.map(str::to_owned),
            vartype: vartype.into(),
            context: context.into(),
            sourcefile: None,
        }
    }

    fn rows() -> Vec<SettingRow> {
        vec![
            row("max_connections", "100", None, "integer", "postmaster"),
            row(
                "shared_buffers",
                "16384",
                Some("8kB"),
                "integer",
                "postmaster",
            ),
            row("wal_buffers", "512", Some("8kB"), "integer", "postmaster"),
            row("work_mem", "4096", Some("kB"), "integer", "user"),
            row("fsync", "on", None, "bool", "sighup"),
            row("wal_level", "replica", None, "enum", "postmaster"),
            row("server_version", "15", None, "string", "internal"),
            row("TimeZone", "UTC", None, "string", "user"),
            row("hot_standby", "on", None, "bool", "postmaster"),
        ]
    }

    fn parameters(items: &[(&str, &str)]) -> Parameters {
        items.iter().copied().collect()
    }

    #[test]
    fn equal_values_in_another_spelling_need_nothing() {
        let wanted = parameters(&[
            ("max_connections", "100"),
            ("shared_buffers", "128MB"),
            ("work_mem", "4MB"),
            ("fsync", "True"),
            ("wal_level", "REPLICA"),
            ("timezone", "UTC"),
            ("wal_buffers", "-1"),
            ("hot_standby", "off"),
            ("restore_command", "x"),
        ]);
        assert_eq!(compare(&wanted, &wanted, &rows()), Comparison::default());
    }

    #[test]
    fn postmaster_settings_wait_for_a_restart() {
        let previous = parameters(&[("shared_buffers", "128MB")]);
        let wanted = parameters(&[
            ("shared_buffers", "256MB"),
            ("work_mem", "8MB"),
            ("server_version", "16"),
        ]);
        let comparison = compare(&wanted, &previous, &rows());
        assert!(comparison.rewrite);
        assert_eq!(
            comparison.pending,
            PendingRestart::from([(
                "shared_buffers".into(),
                PendingReason {
                    old_value: "128MB".into(),
                    new_value: "256MB".into()
                }
            )])
        );
        let names: Vec<_> = comparison
            .changes
            .iter()
            .map(|c| (c.name.as_str(), c.restart))
            .collect();
        assert_eq!(names, [("shared_buffers", true), ("work_mem", false)]);
    }

    #[test]
    fn a_removed_setting_is_a_change_and_an_unknown_one_is_invalid() {
        let previous = parameters(&[("work_mem", "4MB"), ("gone", "1")]);
        let wanted = parameters(&[("no_such_setting", "1")]);
        let comparison = compare(&wanted, &previous, &rows());
        assert_eq!(comparison.changes.len(), 1);
        assert_eq!(comparison.changes[0].new_value, "");
        assert_eq!(comparison.invalid, ["no_such_setting"]);
    }

    #[test]
    fn a_value_that_already_runs_is_still_written() {
        let previous = parameters(&[("work_mem", "1MB")]);
        let wanted = parameters(&[("work_mem", "4MB")]);
        let comparison = compare(&wanted, &previous, &rows());
        assert!(comparison.rewrite && comparison.changes.is_empty());
        let comparison = compare(&parameters(&[("x.y", "1")]), &parameters(&[]), &rows());
        assert!(comparison.rewrite && comparison.invalid.is_empty());
    }

    #[test]
    fn the_servers_own_view_of_pending_settings() {
        let pending = pending_from_server(
            &rows()[..2],
            &BTreeMap::from([("shared_buffers".to_owned(), "32768".to_owned())]),
        );
        assert_eq!(pending["shared_buffers"].new_value, "256MB");
        assert_eq!(pending["max_connections"].new_value, "?");
    }

    const CONNINFO: &str = "user=rep host=a port=5432 sslmode=prefer";

    fn standby_rows() -> Vec<SettingRow> {
        vec![
            row("primary_conninfo", CONNINFO, None, "string", "sighup"),
            row("primary_slot_name", "me", None, "string", "sighup"),
            row(
                "recovery_target_timeline",
                "latest",
                None,
                "string",
                "postmaster",
            ),
            row("recovery_target_time", "", None, "string", "postmaster"),
            row(
                "recovery_min_apply_delay",
                "0",
                Some("ms"),
                "integer",
                "sighup",
            ),
            row("restore_command", "", None, "string", "sighup"),
        ]
    }

    fn need(
        wanted: &[(&str, &str)],
        change: impl FnOnce(&mut Vec<SettingRow>),
        receiver: Option<(&str, &str)>,
        major: u32,
    ) -> Need {
        let mut rows = standby_rows();
        change(&mut rows);
        let mut all = parameters(&[
            ("recovery_target_timeline", "latest"),
            ("recovery_target_time", ""),
        ]);
        for (name, value) in wanted {
            all.set(*name, *value);
        }
        let running = RunningRecovery {
            has_signal: true,
            rows: &rows,
            receiver,
            passwords_match: true,
            managed_file: "/d/postgresql.conf",
        };
        recovery_need(&all, &running, PgVersion(major * 10_000))
    }

    #[test]
    fn a_standby_that_follows_the_wanted_node_needs_nothing() {
        let wanted = [("primary_conninfo", CONNINFO), ("primary_slot_name", "me")];
        assert_eq!(need(&wanted, |_| {}, None, 15), Need::Nothing);
        let live = format!("{CONNINFO} dbname=replication password=********");
        assert_eq!(
            need(&wanted, |_| {}, Some((&live, "me")), 17),
            Need::Nothing
        );
        assert_eq!(
            need(&wanted, |_| {}, Some(("host=other", "me")), 15),
            Need::Reload
        );
    }

    #[test]
    fn another_primary_is_a_reload_from_13_on() {
        let wanted = [
            ("primary_conninfo", "user=rep host=b port=5432"),
            ("primary_slot_name", "me"),
        ];
        assert_eq!(need(&wanted, |_| {}, None, 15), Need::Reload);
        assert_eq!(need(&wanted, |_| {}, None, 12), Need::Restart);
        assert_eq!(need(&[], |_| {}, None, 15), Need::Reload, "follow nobody");
        assert_eq!(
            need(
                &[("primary_conninfo", CONNINFO), ("restore_command", "cp")],
                |_| {},
                None,
                13
            ),
            Need::Restart
        );
    }

    #[test]
    fn foreign_archive_settings_stay() {
        let wanted = [("primary_conninfo", CONNINFO), ("primary_slot_name", "me")];
        let set_restore = |file: &'static str| {
            move |rows: &mut Vec<SettingRow>| {
                rows[5].setting = "cp".into();
                rows[5].sourcefile = Some(file.into());
            }
        };
        assert_eq!(
            need(&wanted, set_restore("/d/conf.d/x.conf"), None, 15),
            Need::Nothing
        );
        assert_eq!(
            need(&wanted, set_restore("/d/postgresql.conf"), None, 15),
            Need::Reload
        );
        assert_eq!(
            need(&wanted, |rows| rows[3].setting = "2026".into(), None, 15),
            Need::Restart
        );
    }

    #[test]
    fn without_the_signal_file_the_server_restarts() {
        let running = RunningRecovery {
            has_signal: false,
            rows: &[],
            receiver: None,
            passwords_match: true,
            managed_file: "",
        };
        assert_eq!(
            recovery_need(&Parameters::new(), &running, PgVersion(150_000)),
            Need::Restart
        );
    }
}
