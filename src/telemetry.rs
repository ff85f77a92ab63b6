//! Logging: Patroni's line format (plain or JSON) on tracing-subscriber, to standard error or a rotated file.
//!
//! spec/configuration.md §3.2. The message is the event's message followed by its fields as `key=value`.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat, LogLevel};

/// How to log.
#[derive(Debug, Clone)]
pub struct Settings {
    /// One JSON object per line instead of text.
    pub json: bool,
    /// Upstream's level name: DEBUG, INFO, WARNING, ERROR, CRITICAL.
    pub level: String,
    /// Levels of single modules ("howdah::dcs" → "DEBUG").
    pub loggers: Vec<(String, String)>,
    /// Fields added to every JSON line.
    pub static_fields: Map<String, Value>,
    /// Directory of `patroni.log`; `None` = standard error.
    pub dir: Option<PathBuf>,
    /// Rotated files kept.
    pub file_num: u32,
    /// Bytes after which the file is rotated.
    pub file_size: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            json: false,
            level: "INFO".to_owned(),
            loggers: Vec::new(),
            static_fields: Map::new(),
            dir: None,
            file_num: 4,
            file_size: 25_000_000,
        }
    }
}

impl Settings {
    /// From the section `log`.
    #[must_use]
    pub fn from_config(log: &Log) -> Settings {
        let word = |level: LogLevel| {
            match level {
                LogLevel::Debug => "DEBUG",
                LogLevel::Info => "INFO",
                LogLevel::Warning => "WARNING",
                LogLevel::Error => "ERROR",
                LogLevel::Critical => "CRITICAL",
            }
            .to_owned()
        };
        Settings {
            json: matches!(log.format, LogFormat::Json(_)),
            level: word(log.level),
            loggers: log
                .loggers
                .iter()
                .map(|(module, level)| (module.clone(), word(*level)))
                .collect(),
            static_fields: log.static_fields.clone(),
            dir: log.dir.clone(),
            file_num: log.file_num,
            file_size: log.file_size,
        }
    }
}

/// Installs the logger for the whole process.
///
/// # Errors
/// The log directory cannot be used, or a logger is installed already.
pub fn install(settings: &Settings) -> anyhow::Result<()> {
    let sink = match &settings.dir {
        None => Sink::Stderr,
        Some(dir) => Sink::File(Arc::new(Mutex::new(Rotated::open(
            dir,
            settings.file_num,
            settings.file_size,
        )?))),
    };
    let mut filter = format!(
        "{},h2=warn,hyper=warn,tonic=warn,tower=warn,openraft=off",
        level(&settings.level)
    );
    for (module, wanted) in &settings.loggers {
        let _ = write!(filter, ",{module}={}", level(wanted));
    }
    let format = Lines {
        json: settings.json,
        static_fields: settings.static_fields.clone(),
    };
    tracing_subscriber::registry()
        .with(filter.parse::<Targets>()?)
        .with(
            tracing_subscriber::fmt::layer()
                .event_format(format)
                .with_writer(sink),
        )
        .try_init()?;
    Ok(())
}

fn level(name: &str) -> &'static str {
    match name.to_ascii_uppercase().as_str() {
        "DEBUG" => "debug",
        "WARN" | "WARNING" => "warn",
        "ERROR" | "FATAL" | "CRITICAL" => "error",
        _ => "info",
    }
}

fn upstream_level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        _ => "DEBUG",
    }
}

struct Lines {
    json: bool,
    static_fields: Map<String, Value>,
}

#[derive(Default)]
struct Message {
    text: String,
    fields: String,
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.text, "{value:?}");
        } else if !field.name().starts_with("log.") {
            let _ = write!(self.fields, " {}={value:?}", field.name());
        }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let mut message = Message::default();
        event.record(&mut message);
        let time = chrono::DateTime::from_timestamp_millis(crate::clock::wall().0)
            .unwrap_or_default()
            .with_timezone(&chrono::Local)
            .format("%Y-%m-%d %H:%M:%S,%3f")
            .to_string();
        let level = upstream_level(*event.metadata().level());
        let text = format!("{}{}", message.text, message.fields);
        if self.json {
            let mut line = Map::new();
            line.insert("asctime".to_owned(), json!(time));
            line.insert("levelname".to_owned(), json!(level));
            line.insert("message".to_owned(), json!(text));
            line.extend(self.static_fields.clone());
            writeln!(out, "{}", Value::Object(line))
        } else {
            writeln!(out, "{time} {level}: {text}")
        }
    }
}

#[derive(Clone)]
enum Sink {
    Stderr,
    File(Arc<Mutex<Rotated>>),
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = SinkWriter;

    fn make_writer(&'a self) -> SinkWriter {
        SinkWriter(self.clone())
    }
}

struct SinkWriter(Sink);

impl Write for SinkWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Sink::Stderr => io::stderr().write(line),
            Sink::File(file) => match file.lock() {
                Ok(mut file) => file.write_line(line),
                Err(_) => io::stderr().write(line),
            },
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `patroni.log`, `patroni.log.1`, … in one directory.
struct Rotated {
    path: PathBuf,
    file: File,
    size: u64,
    keep: u32,
    limit: u64,
}

impl Rotated {
    fn open(dir: &Path, keep: u32, limit: u64) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let path = dir.join("patroni.log");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| {
                format!(
                    "open the log file {}; log.dir must be an existing, writable directory",
                    path.display()
                )
            })?;
        let size = file.metadata().map(|meta| meta.len()).unwrap_or(0);
        Ok(Rotated {
            path,
            file,
            size,
            keep,
            limit,
        })
    }

    fn write_line(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.size > 0 && self.size + line.len() as u64 > self.limit && self.limit > 0 {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        Ok(line.len())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |n: u32| PathBuf::from(format!("{}.{n}", self.path.display()));
        for n in (1..self.keep).rev() {
            match std::fs::rename(numbered(n), numbered(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.keep > 0 {
            std::fs::rename(&self.path, numbered(1))?;
        }
        self.file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_rotated_and_only_so_many_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Rotated::open(dir.path(), 2, 10).unwrap();
        for line in ["11111111\n", "22222222\n", "33333333\n", "44444444\n"] {
            log.write_line(line.as_bytes()).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).ok();
        assert_eq!(read("patroni.log").as_deref(), Some("44444444\n"));
        assert_eq!(read("patroni.log.1").as_deref(), Some("33333333\n"));
        assert_eq!(read("patroni.log.2").as_deref(), Some("22222222\n"));
        assert_eq!(read("patroni.log.3"), None);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = Rotated::open(Path::new("/nonexistent/logs"), 2, 10)
            .err()
            .unwrap();
        assert!(
            format!("{error:#}").contains("/nonexistent/logs/patroni.log"),
            "{error:#}"
        );
    }
}
