//! The member table (spec/ctl.md §5): `list`, `topology`, and what most commands print first.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Local};
use serde_json::{Map, Value};

use crate::clock;
use crate::cluster::{Cluster, Initialize, PendingChange};
use crate::topology::{self, Distance, Row};
use crate::types::MemberName;

use super::table::{self, Column, Format, column, numbers};
use super::{Done, Failure, Session, Target, yaml};

/// How a table is to look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) format: Format,
    pub(super) extended: bool,
    pub(super) timestamp: bool,
    pub(super) colours: bool,
}

impl Session<'_> {
    pub(super) async fn list(
        &mut self,
        clusters: Vec<String>,
        group: Option<u32>,
        options: Options,
        pause: Option<Duration>,
    ) -> Done {
        let mut targets = Vec::new();
        if clusters.is_empty() {
            match self.open(None, group).await {
                Ok(target) => targets.push(target),
                Err(Failure::Unnamed) => {
                    self.screen
                        .complain("Listing members: No cluster names were provided");
                    return Ok(());
                }
                Err(failure) => return Err(failure),
            }
        }
        for name in &clusters {
            targets.push(self.open(Some(name), group).await?);
        }
        let live = pause.is_some() && self.screen.is_terminal;
        if live {
            self.screen.text("\x1b[2J")?;
        }
        loop {
            let mut text = String::new();
            if options.timestamp {
                text.push_str(&format!("{}\n", local_time(0)));
            }
            for target in &targets {
                match target.load().await {
                    Ok(cluster) => text.push_str(&render(target, &cluster, options)),
                    // A store that is away for a moment does not end the watch.
                    Err(Failure::Error(why)) if live => {
                        text.push_str(&format!("Error: {}: {why}\n", target.name));
                    }
                    Err(Failure::Error(why)) if pause.is_some() => {
                        self.screen
                            .complain(&format!("Error: {}: {why}", target.name));
                    }
                    Err(failure) => return Err(failure),
                }
            }
            self.screen
                .text(&if live { in_place(&text) } else { text })?;
            match pause {
                None => return Ok(()),
                Some(pause) => tokio::time::sleep(pause).await,
            }
        }
    }

    /// The plain table.
    pub(super) fn print_members(&mut self, target: &Target, cluster: &Cluster) -> Done {
        let options = Options {
            format: Format::Pretty,
            extended: false,
            timestamp: false,
            colours: self.screen.colours,
        };
        let text = render(target, cluster, options);
        self.screen.text(&text)
    }
}

/// Local time with this many digits of its fraction.
pub(super) fn local_time(digits: usize) -> String {
    let now = DateTime::from_timestamp_millis(clock::wall().0)
        .unwrap_or_default()
        .with_timezone(&Local);
    let whole = now.format("%Y-%m-%d %H:%M:%S").to_string();
    if digits == 0 {
        whole
    } else {
        format!("{whole}.{:06}", now.timestamp_subsec_micros())
            .chars()
            .take(20 + digits)
            .collect()
    }
}

/// Text that is written over what stands on the terminal, so that nothing flickers: line by line, then the rest is emptied.
fn in_place(text: &str) -> String {
    let lines: String = text.lines().map(|line| format!("{line}\x1b[K\n")).collect();
    format!("\x1b[H{lines}\x1b[J")
}

/// What is well is green, what is under way or asked for yellow, what is broken red.
fn colour(heading: &str, text: &str) -> Option<&'static str> {
    match (heading, text) {
        (_, "") => None,
        ("Role", "Leader" | "Standby Leader") => Some("1;32"),
        ("State", "running" | "streaming" | "in archive recovery") => Some("32"),
        ("State", "stopped" | "crashed" | "unknown") => Some("31"),
        ("State", text) if text.ends_with("failed") => Some("31"),
        ("State" | "Pending restart", _) => Some("33"),
        _ => None,
    }
}

/// The table and its footer.
pub(super) fn render(target: &Target, cluster: &Cluster, options: Options) -> String {
    table_of(&target.name, target.group, cluster, options)
}

pub(super) fn table_of(
    name: &str,
    group: Option<u32>,
    cluster: &Cluster,
    options: Options,
) -> String {
    let boxed = matches!(options.format, Format::Pretty | Format::Topology);
    let rows = topology::rows(cluster);
    let rows: Vec<(String, Row)> = if options.format == Format::Topology {
        as_tree(rows)
    } else {
        rows.into_iter()
            .map(|row| (row.name.to_string(), row))
            .collect()
    };
    let with_host = || {
        rows.iter()
            .filter(|(_, row)| row.address.is_some())
            .map(|(_, row)| row)
    };
    let show_ports = {
        let hosts: BTreeSet<&str> = with_host()
            .filter_map(|row| row.address.as_ref())
            .map(|(host, _)| host.as_str())
            .collect();
        hosts.len() < with_host().count()
            || with_host().any(|row| row.address.as_ref().is_some_and(|(_, port)| *port != 5432))
    };
    let mut columns: Vec<Column> = Vec::new();
    if !boxed {
        columns.push(column("Cluster"));
        if group.is_some() {
            columns.push(numbers("Group"));
        }
    }
    let lag = |heading| numbers(if boxed { "Lag" } else { heading });
    columns.extend([
        column("Member"),
        column("Host"),
        column("Role"),
        column("State"),
        numbers("TL"),
    ]);
    columns.extend([
        numbers("Receive LSN"),
        lag("Receive Lag"),
        numbers("Replay LSN"),
        lag("Replay Lag"),
    ]);
    let pending = options.extended || with_host().any(|row| row.pending_restart.is_some());
    let reasons = options.extended
        || with_host().any(|row| {
            row.pending_restart
                .as_ref()
                .is_some_and(|reasons| !reasons.is_empty())
        });
    let scheduled = options.extended || with_host().any(|row| row.scheduled_restart.is_some());
    let tags = options.extended || with_host().any(|row| !row.tags.is_empty());
    for (shown, heading) in [
        (pending, "Pending restart"),
        (reasons, "Pending restart reason"),
        (scheduled, "Scheduled restart"),
        (tags, "Tags"),
    ] {
        if shown {
            columns.push(column(heading));
        }
    }
    let cells: Vec<Vec<Value>> = rows
        .iter()
        .map(|(label, row)| {
            let mut cells: Vec<Value> = Vec::new();
            if !boxed {
                cells.push(name.into());
                cells.extend(group.map(Value::from));
            }
            cells.push(label.as_str().into());
            cells.push(match &row.address {
                Some((host, port)) if show_ports => format!("{host}:{port}").into(),
                Some((host, _)) => host.as_str().into(),
                None => "".into(),
            });
            cells.push(row.place.title().into());
            cells.push(row.state.as_str().into());
            cells.push(
                row.timeline
                    .map_or_else(|| "".into(), |timeline| timeline.0.into()),
            );
            cells.extend(lag_cells(row));
            if pending {
                cells.push(if row.pending_restart.is_some() {
                    "*".into()
                } else {
                    "".into()
                });
            }
            if reasons {
                cells.push(reasons_text(row, boxed).into());
            }
            if scheduled {
                cells.push(
                    row.scheduled_restart
                        .as_ref()
                        .map(scheduled_text)
                        .unwrap_or_default()
                        .into(),
                );
            }
            if tags {
                cells.push(tags_cell(&row.tags, options.format));
            }
            cells
        })
        .collect();
    match options.format {
        Format::Pretty | Format::Topology => {
            let texts: Vec<Vec<String>> = cells
                .iter()
                .map(|row| row.iter().map(table::plain).collect())
                .collect();
            let paint = if options.colours {
                colour
            } else {
                table::PLAIN
            };
            table::boxed(&columns, &texts, Some(&title(name, group, cluster)), paint)
                + &footer(cluster)
        }
        Format::Tsv => table::render(&columns, &cells, Format::Tsv, "\t"),
        format => {
            // Empty texts are dropped here, and only here.
            let objects = cells.iter().map(|row| {
                let pairs = columns
                    .iter()
                    .zip(row)
                    .filter(|(_, value)| value.as_str() != Some(""));
                Value::Object(
                    pairs
                        .map(|(column, value)| (column.heading.clone().into_owned(), value.clone()))
                        .collect::<Map<_, _>>(),
                )
            });
            let array: Value = objects.collect();
            if format == Format::Json {
                crate::json_text::render(&array) + "\n"
            } else {
                yaml::document(&array) + "\n"
            }
        }
    }
}

fn lag_cells(row: &Row) -> [Value; 4] {
    let Some(lag) = &row.lag else {
        return ["", "", "", ""].map(Value::from);
    };
    let (mut receive, mut replay) = (lag.receive, lag.replay);
    if receive.is_none() && replay.is_none() {
        // Written by an agent that publishes one position only.
        if row.state == "streaming" {
            receive = lag.any
        } else {
            replay = lag.any
        }
    }
    let lsn = |distance: Distance| {
        distance.map_or_else(|| "unknown".into(), |(lsn, _)| Value::from(lsn.to_string()))
    };
    let megabytes = |distance: Distance| {
        distance.map_or_else(
            || "".into(),
            |(_, bytes)| Value::from(round_to_megabytes(bytes)),
        )
    };
    [
        lsn(receive),
        megabytes(receive),
        lsn(replay),
        megabytes(replay),
    ]
}

/// Half to even.
fn round_to_megabytes(bytes: u64) -> u64 {
    let (whole, rest) = (bytes >> 20, bytes & 0xf_ffff);
    whole + u64::from(rest > 0x8_0000 || (rest == 0x8_0000 && whole % 2 == 1))
}

fn reasons_text(row: &Row, boxed: bool) -> String {
    let Some(reasons) = &row.pending_restart else {
        return String::new();
    };
    let line = |(name, change): (&String, &PendingChange)| {
        let text = format!("{name}: {}->{}", change.old_value, change.new_value);
        if boxed && text.chars().count() > 50 {
            format!("{name}: [hidden - too long]")
        } else {
            text
        }
    };
    reasons.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn scheduled_text(restart: &Map<String, Value>) -> String {
    let text = |key: &str| restart.get(key).map(table::plain);
    let version = text("postgres_version")
        .map(|version| format!(" if version < {version}"))
        .unwrap_or_default();
    text("schedule").unwrap_or_default() + &version
}

fn tags_cell(tags: &Map<String, Value>, format: Format) -> Value {
    if tags.is_empty() {
        return "".into();
    }
    let tags = Value::Object(tags.clone());
    match format {
        Format::Pretty => yaml::document(&tags).trim_end().into(),
        Format::Topology | Format::Tsv => yaml::flow(&tags).into(),
        Format::Json | Format::Yaml => tags,
    }
}

fn title(name: &str, group: Option<u32>, cluster: &Cluster) -> String {
    let id = match &cluster.initialize {
        Initialize::Absent => "uninitialized",
        Initialize::InProgress => "initializing",
        Initialize::Done(id) => id.as_str(),
        Initialize::Invalid(text) => text,
    };
    match group {
        Some(group) => format!(" Citus cluster: {name} (group: {group}, {id}) "),
        None => format!(" Cluster: {name} ({id}) "),
    }
}

fn footer(cluster: &Cluster) -> String {
    let mut out = String::new();
    if topology::is_paused(cluster) {
        out.push_str(" Maintenance mode: on\n");
    }
    if let Some((at, from, to)) = topology::scheduled_switchover(cluster) {
        out.push_str(&format!(" Switchover scheduled at: {at}\n"));
        for (label, name) in [("from", from), ("to", to)] {
            if let Some(name) = name {
                out.push_str(&format!(" {label:>23}: {name}\n"));
            }
        }
    }
    out
}

/// Replicas below the member they stream from; `(label, row)` in display order.
fn as_tree(rows: Vec<Row>) -> Vec<(String, Row)> {
    let is_leader = |row: &Row| row.lag.is_none();
    let (leaders, mut replicas): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(is_leader);
    let known: BTreeSet<MemberName> = replicas.iter().map(|row| row.name.clone()).collect();
    let parent = |row: &Row| {
        row.replicatefrom
            .clone()
            .filter(|from| *from != row.name && known.contains(from))
    };
    let mut out: Vec<(String, Row)> = leaders
        .into_iter()
        .map(|row| (row.name.to_string(), row))
        .collect();
    place_below(None, 1, &mut replicas, &parent, &mut out);
    // What is left streams in a circle; it is shown all the same.
    while !replicas.is_empty() {
        let row = replicas.remove(0);
        let name = row.name.clone();
        out.push((label(&row, 1), row));
        place_below(Some(&name), 2, &mut replicas, &parent, &mut out);
    }
    out
}

fn place_below(
    above: Option<&MemberName>,
    level: usize,
    rest: &mut Vec<Row>,
    parent: &impl Fn(&Row) -> Option<MemberName>,
    out: &mut Vec<(String, Row)>,
) {
    let (below, others): (Vec<Row>, Vec<Row>) = std::mem::take(rest)
        .into_iter()
        .partition(|row| parent(row).as_ref() == above);
    *rest = others;
    for row in below {
        let name = row.name.clone();
        out.push((label(&row, level), row));
        place_below(Some(&name), level + 1, rest, parent, out);
    }
}

fn label(row: &Row, level: usize) -> String {
    format!("{}+ {}", " ".repeat(2 * (level - 1)), row.name)
}
