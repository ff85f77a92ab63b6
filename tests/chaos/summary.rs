//! The table at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::plan::Mode;

/// One round.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) mode: Mode,
    /// The longest time without a write.
    pub(crate) outage: Duration,
    /// From the end of the harm until everything was well.
    pub(crate) recovery: Duration,
    /// Acknowledged.
    pub(crate) rows: usize,
    pub(crate) lost: usize,
    /// Acknowledged by a node that had been frozen, after another had taken over.
    pub(crate) late: usize,
}

#[derive(Default)]
pub(crate) struct Summary(Vec<Entry>);

impl Summary {
    pub(crate) fn add(&mut self, entry: Entry) {
        self.0.push(entry);
    }

    pub(crate) fn rounds(&self) -> usize {
        self.0.len()
    }

    /// Seconds, in Markdown.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from(
            "| fault | rounds | outage p50 | p99 | max | well again, max | rows acknowledged | rows lost |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        let mut kinds: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for entry in &self.0 {
            kinds.entry(&entry.name).or_default().push(entry);
        }
        for (kind, entries) in kinds {
            table.push_str(&line(kind, &entries));
        }
        for (name, mode) in [
            ("**all, synchronous_mode on**", Mode::Priority),
            ("**all, quorum**", Mode::Quorum),
            ("**all, asynchronous**", Mode::Asynchronous),
        ] {
            let entries: Vec<&Entry> = self.0.iter().filter(|entry| entry.mode == mode).collect();
            table.push_str(&line(name, &entries));
        }
        let late: usize = self.0.iter().map(|entry| entry.late).sum();
        let _ = writeln!(
            table,
            "\nacknowledged by a thawed leader after another took over (asynchronous only): {late}"
        );
        table
    }
}

fn line(name: &str, entries: &[&Entry]) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let mut outages: Vec<Duration> = entries.iter().map(|entry| entry.outage).collect();
    outages.sort();
    let recovery = entries
        .iter()
        .map(|entry| entry.recovery)
        .max()
        .unwrap_or_default();
    let rows: usize = entries.iter().map(|entry| entry.rows).sum();
    let lost: usize = entries.iter().map(|entry| entry.lost).sum();
    format!(
        "| {name} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {rows} | {lost} |\n",
        entries.len(),
        percentile(&outages, 50).as_secs_f64(),
        percentile(&outages, 99).as_secs_f64(),
        percentile(&outages, 100).as_secs_f64(),
        recovery.as_secs_f64(),
    )
}

/// By nearest rank; in order, and not empty.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted[rank.max(1) - 1]
}

#[test]
fn the_table_counts() {
    let mut summary = Summary::default();
    for (seconds, lost) in [(1, 0), (9, 0), (2, 3)] {
        summary.add(Entry {
            name: "disk full: leader".to_owned(),
            mode: if lost > 0 {
                Mode::Asynchronous
            } else {
                Mode::Quorum
            },
            outage: Duration::from_secs(seconds),
            recovery: Duration::from_secs(4),
            rows: 100,
            lost,
            late: 0,
        });
    }
    let table = summary.table();
    assert!(
        table.contains("| disk full: leader | 3 | 2.0 | 9.0 | 9.0 | 4.0 | 300 | 3 |"),
        "{table}"
    );
    assert!(
        table.contains("| **all, quorum** | 2 | 1.0 | 9.0 | 9.0 | 4.0 | 200 | 0 |"),
        "{table}"
    );
}
