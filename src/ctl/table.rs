//! Output formats (spec/ctl.md §4): the boxed table, tsv, one-line JSON, YAML.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::json_text;

use super::yaml;

/// `-f/--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Format {
    /// Boxed table.
    #[default]
    Pretty,
    /// Tab-separated.
    Tsv,
    /// One line of JSON.
    Json,
    /// YAML.
    #[value(alias = "yml")]
    Yaml,
    /// Boxed table in tree form.
    #[value(skip)]
    Topology,
}

/// A heading and how its column is aligned.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) heading: Cow<'static, str>,
    pub(super) right: bool,
}

/// A left-aligned column.
pub(super) fn column(heading: impl Into<Cow<'static, str>>) -> Column {
    Column {
        heading: heading.into(),
        right: false,
    }
}

/// A right-aligned column.
pub(super) fn numbers(heading: &'static str) -> Column {
    Column {
        heading: heading.into(),
        right: true,
    }
}

/// The colour of a cell (parameters of SGR) by its heading and text.
pub(super) type Paint = fn(&str, &str) -> Option<&'static str>;

/// No colours.
pub(super) const PLAIN: Paint = |_, _| None;

/// Text of a value in tsv and in a box.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => text.clone(),
        Value::Object(_) | Value::Array(_) => yaml::flow(value),
        Value::Number(number) => number.to_string(),
    }
}

/// Renders rows without a title.
pub(super) fn render(
    columns: &[Column],
    rows: &[Vec<Value>],
    format: Format,
    delimiter: &str,
) -> String {
    match format {
        Format::Pretty | Format::Topology => {
            let texts: Vec<Vec<String>> = rows
                .iter()
                .map(|row| row.iter().map(plain).collect())
                .collect();
            boxed(columns, &texts, None, PLAIN)
        }
        Format::Tsv => {
            let mut out = columns
                .iter()
                .map(|column| column.heading.as_ref())
                .collect::<Vec<_>>()
                .join(delimiter);
            out.push('\n');
            for row in rows {
                out.push_str(&row.iter().map(plain).collect::<Vec<_>>().join(delimiter));
                out.push('\n');
            }
            out
        }
        Format::Json => json_text::render(&objects(columns, rows)) + "\n",
        Format::Yaml => yaml::document(&objects(columns, rows).into()) + "\n",
    }
}

fn objects(columns: &[Column], rows: &[Vec<Value>]) -> Vec<Value> {
    let object = |row: &Vec<Value>| -> Value {
        let pairs = columns
            .iter()
            .zip(row)
            .map(|(column, value)| (column.heading.clone().into_owned(), value.clone()));
        Value::Object(pairs.collect::<Map<_, _>>())
    };
    rows.iter().map(object).collect()
}

/// The boxed table. The title overwrites the top rule from its second character.
pub(super) fn boxed(
    columns: &[Column],
    rows: &[Vec<String>],
    title: Option<&str>,
    paint: Paint,
) -> String {
    let mut widths: Vec<usize> = columns
        .iter()
        .map(|column| display_width(&column.heading))
        .collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell
                .split('\n')
                .map(display_width)
                .max()
                .unwrap_or(0)
                .max(*width);
        }
    }
    let rule = widths.iter().fold("+".to_owned(), |rule, width| {
        rule + &"-".repeat(width + 2) + "+"
    });
    let every_row = rows.iter().flatten().any(|cell| cell.contains('\n'));
    let mut out = match title {
        None => rule.clone(),
        Some(title) => {
            let title: String = title.chars().take(rule.len() - 2).collect();
            let rest: String = rule.chars().skip(1 + display_width(&title)).collect();
            format!("+{title}{rest}")
        }
    };
    out.push('\n');
    let headings: Vec<String> = columns
        .iter()
        .map(|column| column.heading.clone().into_owned())
        .collect();
    push_row(&mut out, columns, &widths, &headings, PLAIN);
    out.push_str(&rule);
    out.push('\n');
    for (number, row) in rows.iter().enumerate() {
        push_row(&mut out, columns, &widths, row, paint);
        if every_row && number + 1 < rows.len() {
            out.push_str(&rule);
            out.push('\n');
        }
    }
    out.push_str(&rule);
    out.push('\n');
    out
}

fn push_row(out: &mut String, columns: &[Column], widths: &[usize], row: &[String], paint: Paint) {
    let lines = row
        .iter()
        .map(|cell| cell.split('\n').count())
        .max()
        .unwrap_or(1);
    for number in 0..lines {
        out.push('|');
        for ((column, width), cell) in columns.iter().zip(widths).zip(row) {
            let text = cell.split('\n').nth(number).unwrap_or("");
            let pad = " ".repeat(width - display_width(text));
            let (before, after) = if column.right {
                (pad.as_str(), "")
            } else {
                ("", pad.as_str())
            };
            match paint(&column.heading, text) {
                Some(colour) => {
                    out.push_str(&format!(" {before}\x1b[{colour}m{text}\x1b[0m{after} |"));
                }
                None => out.push_str(&format!(" {before}{text}{after} |")),
            }
        }
        out.push('\n');
    }
}

/// Columns of a terminal that a text takes: wide East Asian characters two, combining marks none.
fn display_width(text: &str) -> usize {
    let width = |c: char| match u32::from(c) {
        0x0300..=0x036f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    };
    text.chars().map(width).sum()
}
