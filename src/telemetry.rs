//! Logging: Patroni's line format (plain or JSON), to standard error or a rotated file (spec/configuration.md §3.2).
//!
//! The message is the event's message followed by its fields as `key=value`. `form` says what a line looks like, `queue` keeps the
//! loop from waiting for whoever reads the log. All settings can change while the process runs.

mod form;
mod queue;
mod rotated;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use chrono::Local;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use crate::config::{Log, LogFormat, LogLevel};
use form::{Form, Record};
pub use queue::Backlog;
use queue::{Queue, Sink};
use rotated::Rotated;

/// What the end of the process waits for its last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How to log.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// A template, or the fields of JSON lines.
    pub format: LogFormat,
    /// strftime; `None` = `YYYY-MM-DD HH:MM:SS,mmm`.
    pub dateformat: Option<String>,
    /// Upstream's level name: DEBUG, INFO, WARNING, ERROR, CRITICAL.
    pub level: String,
    /// Levels of single modules ("howdah::dcs" → "DEBUG").
    pub loggers: Vec<(String, String)>,
    /// Fields added to every JSON line.
    pub static_fields: Map<String, Value>,
    /// Lines that may wait to be written; 0 = any number.
    pub max_queue_size: usize,
    /// Where lines go.
    pub file: Option<LogFile>,
}

/// `log.dir` and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// Directory of `patroni.log`.
    pub dir: PathBuf,
    /// Rotated files kept.
    pub keep: u32,
    /// Bytes after which the file is rotated.
    pub size: u64,
    /// Permissions; `None` = by umask.
    pub mode: Option<u32>,
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
            format: log.format.clone(),
            dateformat: log.dateformat.clone(),
            level: word(log.level),
            loggers: log
                .loggers
                .iter()
                .map(|(module, level)| (module.clone(), word(*level)))
                .collect(),
            static_fields: log.static_fields.clone(),
            max_queue_size: log.max_queue_size,
            file: log.dir.clone().map(|dir| LogFile {
                dir,
                keep: log.file_num,
                size: log.file_size,
                mode: log.mode,
            }),
        }
    }

    fn targets(&self) -> anyhow::Result<Targets> {
        let mut filter = format!(
            "{},h2=warn,hyper=warn,tonic=warn,tower=warn,openraft=off",
            level(&self.level)
        );
        for (module, wanted) in &self.loggers {
            let _ = write!(filter, ",{module}={}", level(wanted));
        }
        Ok(filter.parse()?)
    }

    fn sink(&self) -> anyhow::Result<Sink> {
        match &self.file {
            None => Ok(Sink::Stderr),
            Some(file) => Rotated::open(&file.dir, file.keep, file.size, file.mode).map(Sink::File),
        }
    }

    fn form(&self) -> (Form, Vec<String>) {
        Form::new(
            &self.format,
            self.dateformat.as_deref(),
            &self.static_fields,
        )
    }
}

/// The process's logger, once installed.
struct Logger {
    settings: RwLock<Settings>,
    form: Arc<RwLock<Form>>,
    filter: reload::Handle<Targets, Registry>,
    queue: Arc<Queue>,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Writes the last lines when it is dropped; hold it until the process ends.
#[must_use]
#[derive(Debug)]
pub struct Installed(());

/// The exit status of a process that ended well while nobody read its log any more (spec/packaging.md §1.1).
pub const EXIT_LOG_QUEUE_FULL: u8 = 5;

impl Installed {
    /// Writes the last lines. `false`: they cannot be written, and as many wait as may.
    pub fn finish(self) -> bool {
        drop(self);
        LOGGER.get().is_none_or(|logger| !logger.queue.is_full())
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if let Some(logger) = LOGGER.get() {
            logger.queue.flush(LAST_LINES);
        }
    }
}

/// Installs the logger for the whole process.
///
/// # Errors
/// The log directory cannot be used, or a logger is installed already.
pub fn install(settings: &Settings) -> anyhow::Result<Installed> {
    let queue = Arc::new(Queue::start(settings.sink()?, settings.max_queue_size)?);
    let (form, warnings) = settings.form();
    let form = Arc::new(RwLock::new(form));
    let (filter, handle) = reload::Layer::new(settings.targets()?);
    let lines = Lines {
        form: Arc::clone(&form),
        queue: Arc::clone(&queue),
        started_ms: crate::clock::wall().0,
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()?;
    let logger = Logger {
        settings: RwLock::new(settings.clone()),
        form,
        filter: handle,
        queue,
    };
    let _ = LOGGER.set(logger);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(Installed(()))
}

/// Applies changed settings.
///
/// # Errors
/// A log directory that cannot be used; the old settings stay in force.
pub fn apply(settings: &Settings) -> anyhow::Result<()> {
    let Some(logger) = LOGGER.get() else {
        return Ok(());
    };
    let mut in_force = logger
        .settings
        .write()
        .unwrap_or_else(PoisonError::into_inner);
    if *in_force == *settings {
        return Ok(());
    }
    let targets = settings.targets()?;
    if settings.file != in_force.file {
        logger.queue.redirect(settings.sink()?);
    }
    logger.queue.limit_to(settings.max_queue_size);
    let (form, warnings) = settings.form();
    *logger.form.write().unwrap_or_else(PoisonError::into_inner) = form;
    logger.filter.reload(targets)?;
    *in_force = settings.clone();
    drop(in_force);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// What waits to be written.
#[must_use]
pub fn backlog() -> Backlog {
    LOGGER
        .get()
        .map_or_else(Backlog::default, |logger| logger.queue.backlog())
}

fn level(name: &str) -> &'static str {
    match name.to_ascii_uppercase().as_str() {
        "DEBUG" => "debug",
        "WARN" | "WARNING" => "warn",
        "ERROR" | "FATAL" | "CRITICAL" => "error",
        _ => "info",
    }
}

/// Events into lines.
struct Lines {
    form: Arc<RwLock<Form>>,
    queue: Arc<Queue>,
    started_ms: i64,
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

impl Lines {
    fn record(&self, level: Level, message: String) -> Record {
        let now_ms = crate::clock::wall().0;
        Record {
            at: chrono::DateTime::from_timestamp_millis(now_ms)
                .unwrap_or_default()
                .with_timezone(&Local),
            age_ms: now_ms - self.started_ms,
            level,
            name: module_path!().to_owned(),
            file: file!().to_owned(),
            line: line!(),
            message,
        }
    }

    fn push(&self, record: &Record) -> Option<u64> {
        let form = self.form.read().unwrap_or_else(PoisonError::into_inner);
        self.queue.push(form.render(record))
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        let metadata = event.metadata();
        let record = Record {
            name: metadata.target().to_owned(),
            file: metadata.file().unwrap_or_default().to_owned(),
            line: metadata.line().unwrap_or_default(),
            ..self.record(
                *metadata.level(),
                format!("{}{}", message.text, message.fields),
            )
        };
        if let Some(lost) = self.push(&record) {
            let lost = format!("QueueHandler has lost {lost} log records");
            self.push(&self.record(Level::WARN, lost));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The one test that installs the process's logger.
    #[test]
    fn a_changed_configuration_changes_the_log_of_the_running_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            format: LogFormat::Plain("%(levelname)s|%(message)s".to_owned()),
            dateformat: None,
            level: "WARNING".to_owned(),
            loggers: vec![("talkative".to_owned(), "DEBUG".to_owned())],
            static_fields: Map::new(),
            max_queue_size: 1000,
            file: Some(LogFile {
                dir: dir.path().to_owned(),
                keep: 1,
                size: 1_000_000,
                mode: None,
            }),
        };
        let installed = install(&settings).unwrap();
        tracing::info!(target: "telemetry_test", "zq hidden");
        tracing::debug!(target: "talkative", n = 1, "zq shown");
        tracing::warn!(target: "telemetry_test", "zq shown");
        settings.format = LogFormat::Json(vec![("message".to_owned(), "m".to_owned())]);
        settings.level = "INFO".to_owned();
        settings.loggers.clear();
        apply(&settings).unwrap();
        tracing::info!(target: "telemetry_test", "zq now");
        tracing::debug!(target: "talkative", "zq silent");
        settings.file = Some(LogFile {
            dir: "/nonexistent".into(),
            keep: 1,
            size: 1,
            mode: None,
        });
        let refused = apply(&settings).unwrap_err();
        assert!(
            format!("{refused:#}").contains("/nonexistent/patroni.log"),
            "{refused:#}"
        );
        drop(installed);
        let text = std::fs::read_to_string(dir.path().join("patroni.log")).unwrap();
        // Other tests of this process log as well.
        let ours: Vec<&str> = text.lines().filter(|line| line.contains("zq ")).collect();
        assert_eq!(
            ours,
            [
                "DEBUG|zq shown n=1",
                "WARNING|zq shown",
                "{\"m\":\"zq now\"}"
            ]
        );
        assert!(backlog().lost == 0);
    }
}
