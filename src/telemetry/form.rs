//! What a log line looks like: a printf-style template with Python's field names, or a JSON object (spec/configuration.md §3.2,
//! spec/packaging.md §3).

use std::fmt::Write as _;

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, Local};
use serde_json::{Map, Value, json};
use tracing::Level;

use crate::config::LogFormat;

/// Python's default, `2026-03-01 12:00:00,250`.
const DEFAULT_DATE: &str = "%Y-%m-%d %H:%M:%S,%3f";

/// Everything a line can show.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) at: DateTime<Local>,
    /// Milliseconds since the process started.
    pub(super) age_ms: i64,
    pub(super) level: Level,
    /// The logger: the module's path.
    pub(super) name: String,
    pub(super) file: String,
    pub(super) line: u32,
    pub(super) message: String,
}

/// How records are shown.
#[derive(Debug)]
pub(super) struct Form {
    layout: Layout,
    date: String,
    static_fields: Map<String, Value>,
}

#[derive(Debug)]
enum Layout {
    Plain(Vec<Piece>),
    Json(Vec<(String, String)>),
}

#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    Field {
        name: String,
        left: bool,
        width: usize,
    },
}

impl Form {
    /// The form that settings ask for, and what in them cannot be followed.
    pub(super) fn new(
        format: &LogFormat,
        dateformat: Option<&str>,
        static_fields: &Map<String, Value>,
    ) -> (Form, Vec<String>) {
        let mut warnings = Vec::new();
        let date = match dateformat {
            None | Some("") => DEFAULT_DATE.to_owned(),
            Some(date) if StrftimeItems::new(date).any(|item| item == Item::Error) => {
                warnings.push(format!(
                    "log.dateformat {date:?} is no strftime format; the default is used"
                ));
                DEFAULT_DATE.to_owned()
            }
            Some(date) => date.to_owned(),
        };
        let layout = match format {
            LogFormat::Plain(template) => Layout::Plain(pieces(template)),
            LogFormat::Json(fields) => Layout::Json(fields.clone()),
        };
        let names: Vec<&String> = match &layout {
            Layout::Plain(pieces) => pieces.iter().filter_map(Piece::field).collect(),
            Layout::Json(fields) => fields.iter().map(|(field, _)| field).collect(),
        };
        for name in names {
            if !FIELDS.contains(&name.as_str()) {
                warnings.push(format!("log.format: there is no field {name:?}"));
            }
        }
        let form = Form {
            layout,
            date,
            static_fields: static_fields.clone(),
        };
        (form, warnings)
    }

    /// One line, with its end.
    pub(super) fn render(&self, record: &Record) -> String {
        let mut line = match &self.layout {
            Layout::Plain(pieces) => {
                let mut line = String::with_capacity(record.message.len() + 48);
                for piece in pieces {
                    match piece {
                        Piece::Text(text) => line.push_str(text),
                        Piece::Field { name, left, width } => {
                            let shown = match self.value(record, name) {
                                Value::String(text) => text,
                                other => other.to_string(),
                            };
                            // Writing to a String cannot fail.
                            let _ = if *left {
                                write!(line, "{shown:<width$}")
                            } else {
                                write!(line, "{shown:>width$}")
                            };
                        }
                    }
                }
                line
            }
            Layout::Json(fields) => {
                let mut object: Map<String, Value> = fields
                    .iter()
                    .map(|(field, shown)| (shown.clone(), self.value(record, field)))
                    .collect();
                object.extend(self.static_fields.clone());
                Value::Object(object).to_string()
            }
        };
        line.push('\n');
        line
    }

    fn value(&self, record: &Record, field: &str) -> Value {
        let file_name = || {
            record
                .file
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        match field {
            "asctime" => {
                let mut text = String::new();
                let _ = write!(text, "{}", record.at.format(&self.date));
                text.into()
            }
            "created" => json!(record.at.timestamp_micros() as f64 / 1e6),
            "msecs" => json!(record.at.timestamp_subsec_millis()),
            "relativeCreated" => json!(record.age_ms),
            "levelname" => level_name(record.level).into(),
            "levelno" => level_number(record.level).into(),
            "message" => record.message.as_str().into(),
            "name" => record.name.as_str().into(),
            "module" => record.name.rsplit("::").next().unwrap_or_default().into(),
            "filename" => file_name().into(),
            "pathname" => record.file.as_str().into(),
            "lineno" => record.line.into(),
            "process" => std::process::id().into(),
            "processName" => "MainProcess".into(),
            "thread" => rustix::thread::gettid().as_raw_nonzero().get().into(),
            "threadName" => std::thread::current().name().unwrap_or("main").into(),
            // Functions are not recorded; unknown fields were warned about.
            _ => "".into(),
        }
    }
}

const FIELDS: [&str; 17] = [
    "asctime",
    "created",
    "filename",
    "funcName",
    "levelname",
    "levelno",
    "lineno",
    "message",
    "module",
    "msecs",
    "name",
    "pathname",
    "process",
    "processName",
    "relativeCreated",
    "thread",
    "threadName",
];

impl Piece {
    fn field(&self) -> Option<&String> {
        match self {
            Piece::Text(_) => None,
            Piece::Field { name, .. } => Some(name),
        }
    }
}

/// `%(name)-8s` and `%%`; whatever is neither stands for itself.
fn pieces(template: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("%%") {
            text.push('%');
            rest = after;
        } else if let Some((piece, after)) = field(rest) {
            if !text.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut text)));
            }
            pieces.push(piece);
            rest = after;
        } else {
            text.push('%');
            rest = &rest[1..];
        }
    }
    text.push_str(rest);
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
    pieces
}

/// One `%(name)` with flags, width, precision and conversion; and what follows it.
fn field(text: &str) -> Option<(Piece, &str)> {
    let (name, rest) = text.strip_prefix("%(")?.split_once(')')?;
    let end = rest.find(|c: char| c.is_ascii_alphabetic())?;
    let modifiers = &rest[..end];
    if modifiers.contains(|c: char| !c.is_ascii_digit() && !"-+ #.".contains(c)) {
        return None;
    }
    let digits = modifiers
        .split('.')
        .next()
        .unwrap_or_default()
        .trim_start_matches(['-', '+', ' ', '#', '0']);
    let piece = Piece::Field {
        name: name.to_owned(),
        left: modifiers.contains('-'),
        // A typing error must not ask for gigabytes of blanks.
        width: digits.parse::<usize>().unwrap_or(0).min(200),
    };
    Some((piece, &rest[end + 1..]))
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        _ => "DEBUG",
    }
}

fn level_number(level: Level) -> u8 {
    match level {
        Level::ERROR => 40,
        Level::WARN => 30,
        Level::INFO => 20,
        _ => 10,
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone as _;

    use super::*;

    fn record() -> Record {
        Record {
            at: Local.timestamp_millis_opt(1_700_000_000_250).unwrap(),
            age_ms: 1234,
            level: Level::WARN,
            name: "howdah::dcs::etcd3".to_owned(),
            file: "src/dcs/etcd3.rs".to_owned(),
            line: 7,
            message: "a \"b\"".to_owned(),
        }
    }

    fn plain(template: &str) -> (String, Vec<String>) {
        let format = LogFormat::Plain(template.to_owned());
        let (form, warnings) = Form::new(&format, Some("%Y"), &Map::new());
        (form.render(&record()), warnings)
    }

    #[test]
    fn a_template_shows_each_field() {
        for (template, shown) in [
            (
                "%(asctime)s %(levelname)s: %(message)s",
                "2023 WARNING: a \"b\"\n",
            ),
            ("[%(levelname)-9s|%(levelno)5d]", "[WARNING  |   30]\n"),
            ("%(name)s %(module)s", "howdah::dcs::etcd3 etcd3\n"),
            (
                "%(filename)s:%(lineno)d %(pathname)s",
                "etcd3.rs:7 src/dcs/etcd3.rs\n",
            ),
            (
                "%(created)f %(msecs)03d %(relativeCreated)d",
                "1700000000.25 250 1234\n",
            ),
            ("100%% % %(odd", "100% % %(odd\n"),
            ("%(processName)s", "MainProcess\n"),
        ] {
            assert_eq!(
                plain(template),
                (shown.to_owned(), Vec::new()),
                "{template}"
            );
        }
        assert_eq!(plain("%(process)d").0, format!("{}\n", std::process::id()));
        let (line, warnings) = plain("x%(nonsense)s");
        assert_eq!(
            (line.as_str(), warnings),
            (
                "x\n",
                vec!["log.format: there is no field \"nonsense\"".to_owned()]
            )
        );
    }

    #[test]
    fn json_has_the_fields_under_their_names_and_the_static_ones() {
        let pair = |field: &str, name: &str| (field.to_owned(), name.to_owned());
        let format = LogFormat::Json(vec![
            pair("levelname", "level"),
            pair("message", "message"),
            pair("lineno", "lineno"),
        ]);
        let fixed = json!({"app": "db", "n": 1}).as_object().unwrap().clone();
        let (form, warnings) = Form::new(&format, None, &fixed);
        assert_eq!(
            form.render(&record()),
            "{\"level\":\"WARNING\",\"message\":\"a \\\"b\\\"\",\"lineno\":7,\"app\":\"db\",\"n\":1}\n"
        );
        assert!(warnings.is_empty());
    }

    #[test]
    fn dates_have_milliseconds_unless_a_format_is_given() {
        let format = LogFormat::Plain("%(asctime)s".to_owned());
        let (form, _) = Form::new(&format, None, &Map::new());
        let line = form.render(&record());
        assert!(line.ends_with(":20,250\n") && line.len() == 24, "{line}");
        let (form, warnings) = Form::new(&format, Some("%Q"), &Map::new());
        assert_eq!(form.render(&record()), line);
        assert!(
            warnings[0].contains("log.dateformat \"%Q\""),
            "{warnings:?}"
        );
    }
}
