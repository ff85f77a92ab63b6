//! Making a replica from another node or from a backup (spec/postgres-management.md §9).
//!
//! The driver tries the configured methods in order. It only empties a directory that is empty, unfinished work of ours, or that the
//! caller explicitly gave up. It does not choose the source, and does not start the server.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::io::AsyncReadExt;

use super::Settings;
use super::binaries::{CANCEL_GRACE, Leash, ToolError};
use super::conninfo::Conninfo;
use super::directory::{self, Contents, DirectoryError, Filling, Removal};
use super::hooks;
use super::options::{self, FORBIDDEN_BASEBACKUP, OptionProblem};
use super::write::{FileError, write_passwords};
use crate::config::value::{is_truthy, text};
use crate::types::PgVersion;

/// Between two attempts of pg_basebackup.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Attempts of pg_basebackup.
const ATTEMPTS: u32 = 2;

/// How far a clone is; shared with whoever shows it. Zero total: not known yet.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Bytes received and bytes expected (0: unknown). An estimate: the source keeps changing.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (
            self.done.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed),
        )
    }

    fn set(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }
}

/// Where the data comes from.
#[derive(Debug, Clone)]
pub struct Source {
    /// Connection with the replication credentials, without a password.
    pub conninfo: Conninfo,
    /// Lines for the password file.
    pub passwords: Option<String>,
}

/// One way to make a replica.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// pg_basebackup with these options.
    BaseBackup(Vec<String>),
    /// A configured command.
    Custom(CustomMethod),
}

/// Section `postgresql.<method>` (§9.3).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CustomMethod {
    /// Its name.
    pub name: String,
    /// The command to split into words.
    pub command: String,
    /// It wants to find the old data directory.
    pub keep_data: bool,
    /// It gets only its own keys.
    pub no_params: bool,
    /// It works without a running node.
    pub no_leader: bool,
    /// Its own keys, in order.
    pub arguments: Vec<(String, String)>,
}

/// Reads the configured methods. `section(name)`: `postgresql.<name>`. Without a source only methods that need none remain.
///
/// Problems with options of pg_basebackup are returned for the log; those options are left out.
#[must_use]
pub fn methods<'v>(
    names: &[String],
    section: impl Fn(&str) -> Option<&'v Value>,
    has_source: bool,
    version: PgVersion,
) -> (Vec<Method>, Vec<OptionProblem>) {
    let default = ["basebackup".to_owned()];
    let names = if names.is_empty() {
        &default[..]
    } else {
        names
    };
    let mut problems = Vec::new();
    let mut methods = Vec::new();
    for name in names {
        let value = section(name);
        if name == "basebackup" {
            let (options, found) = base_backup_options(value.unwrap_or(&Value::Null), version);
            problems.extend(found);
            if has_source {
                methods.push(Method::BaseBackup(options));
            }
        } else {
            let empty = Map::new();
            let method = custom_method(name, value.and_then(Value::as_object).unwrap_or(&empty));
            if has_source || method.no_leader {
                methods.push(Method::Custom(method));
            }
        }
    }
    (methods, problems)
}

/// Options of `postgresql.basebackup`. `compress` is allowed where the server compresses and the client stores plain files (15+).
fn base_backup_options(section: &Value, version: PgVersion) -> (Vec<String>, Vec<OptionProblem>) {
    let tool = "pg_basebackup";
    let (mut options, mut problems) = options::parse(tool, section, &FORBIDDEN_BASEBACKUP);
    options.retain(|option| {
        let Some(rest) = option.strip_prefix("--compress") else {
            return true;
        };
        let allowed = version.at_least(15) && rest.starts_with("=server");
        if !allowed {
            problems.push(OptionProblem::NotAllowed {
                tool,
                option: "compress".to_owned(),
            });
        }
        allowed
    });
    (options, problems)
}

fn custom_method(name: &str, section: &Map<String, Value>) -> CustomMethod {
    let no_params = section.get("no_params").is_some_and(is_truthy);
    // With no_params none of the marks is passed on; without it they are, as scripts rely on it.
    let passed = |key: &str| {
        key != "command" && !(no_params && matches!(key, "no_params" | "no_leader" | "keep_data"))
    };
    CustomMethod {
        name: name.to_owned(),
        command: section
            .get("command")
            .and_then(Value::as_str)
            .unwrap_or(name)
            .to_owned(),
        keep_data: section.get("keep_data").is_some_and(is_truthy),
        no_params,
        no_leader: section.get("no_leader").is_some_and(is_truthy),
        arguments: section
            .iter()
            .filter(|(key, _)| passed(key))
            .map(|(key, value)| (key.clone(), text(value)))
            .collect(),
    }
}

/// Why no method made a replica.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The directory has content that nobody gave up.
    #[error("{} is not empty, and nothing says that it may be replaced; reinitialize the member to clone it anew", data_dir.display())]
    Occupied {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// All methods failed.
    #[error("no replica could be made in {}: {}", data_dir.display(), failures.join("; "))]
    AllFailed {
        /// The data directory.
        data_dir: PathBuf,
        /// One text for each method.
        failures: Vec<String>,
    },
    /// It was cancelled; the directory has been emptied.
    #[error("making a replica was cancelled")]
    Cancelled,
    /// The data directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A file could not be written or removed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What to clone, how, and what may happen to what is there.
#[derive(Debug)]
pub struct CloneRequest<'a> {
    /// This node.
    pub settings: &'a Settings,
    /// Cluster name, for custom methods.
    pub scope: &'a str,
    /// In order of preference.
    pub methods: &'a [Method],
    /// `None`: only methods without a leader.
    pub source: Option<&'a Source>,
    /// Why the content of the data directory may be replaced; `None`: it must be empty or unfinished work of ours.
    pub replace: Option<Removal>,
    /// A diverged directory (replaced because the configuration says so) of no more bytes than this is renamed to `.diverged` if there
    /// is room; `None`: it is removed.
    pub keep_replaced: Option<u64>,
    /// Where the progress goes.
    pub progress: &'a Progress,
}

/// Runs the methods until one succeeds (§9.1). Returns the name of that method.
///
/// After success the directory carries no mark; configuration files are restored by the caller (`write::restore`).
///
/// # Errors
/// See [`CloneError`]. What a failed method left has been removed.
pub async fn clone(
    request: &CloneRequest<'_>,
    cancelled: impl Future<Output = ()>,
) -> Result<String, CloneError> {
    let settings = request.settings;
    let mut cancelled = std::pin::pin!(cancelled);
    if request.methods.is_empty() {
        // Nothing will be made, so nothing is given up.
        return Err(CloneError::AllFailed {
            data_dir: settings.data_dir.clone(),
            failures: vec![
                "no method is configured that works without a running source".to_owned(),
            ],
        });
    }
    let removal = may_replace(request)?;
    if let Some(passwords) = request
        .source
        .and_then(|source| source.passwords.as_deref())
    {
        write_passwords(&settings.pgpass, passwords)?;
    }
    let mut failures = Vec::new();
    let mut removal = removal;
    for method in request.methods {
        let keep = matches!(method, Method::Custom(custom) if custom.keep_data);
        if keep {
            tracing::info!("Leaving data directory uncleaned");
        } else {
            clear(request, removal)?;
            removal = Removal::OwnUnfinished;
        }
        let (name, result) = match method {
            Method::BaseBackup(options) => (
                "basebackup",
                base_backup(request, options, cancelled.as_mut()).await,
            ),
            Method::Custom(custom) => (
                custom.name.as_str(),
                run_custom(request, custom, cancelled.as_mut()).await,
            ),
        };
        match result {
            Ok(()) => {
                directory::mark_complete(&settings.data_dir)?;
                directory::close_to_others(&settings.data_dir)?;
                return Ok(name.to_owned());
            }
            Err(Failure::Cancelled) => {
                if !keep {
                    directory::remove(&settings.data_dir, Removal::OwnUnfinished)?;
                }
                return Err(CloneError::Cancelled);
            }
            Err(Failure::Failed(text)) => {
                tracing::error!(method = name, "making a replica failed: {text}");
                failures.push(format!("{name}: {text}"));
            }
        }
    }
    // Also after keep_data, as Patroni: a directory that a method worked on and failed is nothing to start from. S4: the caller gave it up.
    directory::remove(&settings.data_dir, removal)?;
    Err(CloneError::AllFailed {
        data_dir: settings.data_dir.clone(),
        failures,
    })
}

fn may_replace(request: &CloneRequest<'_>) -> Result<Removal, CloneError> {
    let data_dir = &request.settings.data_dir;
    match (directory::contents(data_dir)?, request.replace) {
        (_, Some(removal)) => Ok(removal),
        (Contents::Empty | Contents::Incomplete(_), None) => Ok(Removal::OwnUnfinished),
        (Contents::Cluster(_) | Contents::Unrecognised, None) => Err(CloneError::Occupied {
            data_dir: data_dir.clone(),
        }),
    }
}

fn clear(request: &CloneRequest<'_>, removal: Removal) -> Result<(), CloneError> {
    let data_dir = &request.settings.data_dir;
    let is_cluster = matches!(directory::contents(data_dir)?, Contents::Cluster(_));
    // A reinitialisation is an operator's explicit wish: the old content is no evidence of anything.
    if let Some(limit) = request.keep_replaced
        && is_cluster
        && removal == Removal::Configured
    {
        match directory::set_aside_diverged(data_dir, limit) {
            directory::SetAside::Kept(path) => {
                tracing::warn!(path = %path.display(), "the replaced data directory is kept until the next one");
                return Ok(());
            }
            directory::SetAside::NotKept { reason } => {
                tracing::warn!(reason, "the replaced data directory is not kept")
            }
        }
    }
    Ok(directory::remove(data_dir, removal)?)
}

enum Failure {
    Cancelled,
    Failed(String),
}

impl From<ToolError> for Failure {
    fn from(error: ToolError) -> Self {
        match error {
            ToolError::Cancelled { .. } => Failure::Cancelled,
            other => Failure::Failed(other.to_string()),
        }
    }
}

async fn base_backup(
    request: &CloneRequest<'_>,
    options: &[String],
    mut cancelled: impl Future<Output = ()> + Unpin,
) -> Result<(), Failure> {
    let settings = request.settings;
    let Some(source) = request.source else {
        return Err(Failure::Failed("no source".to_owned()));
    };
    let mut attempt = 1;
    loop {
        request.progress.set(0, 0);
        match base_backup_once(settings, source, options, request.progress, &mut cancelled).await {
            Err(Failure::Failed(text)) if attempt < ATTEMPTS => {
                tracing::error!("pg_basebackup failed, one more attempt follows: {text}");
            }
            result => return result,
        }
        attempt += 1;
        // What an attempt left is ours: the directory was empty before it.
        directory::remove(&settings.data_dir, Removal::OwnUnfinished)
            .map_err(|error| Failure::Failed(error.to_string()))?;
        tokio::select! {
            () = &mut cancelled => return Err(Failure::Cancelled),
            () = tokio::time::sleep(RETRY_DELAY) => {}
        }
    }
}

fn base_backup_arguments(settings: &Settings, source: &Source, options: &[String]) -> Vec<String> {
    let mut arguments = vec![
        format!("--pgdata={}", settings.data_dir.display()),
        "-X".to_owned(),
        "stream".to_owned(),
        format!("--dbname={}", source.conninfo),
    ];
    // The default, a spread checkpoint, makes a new replica wait for minutes on an idle primary.
    if !options
        .iter()
        .any(|option| option.starts_with("--checkpoint"))
    {
        arguments.push("--checkpoint=fast".to_owned());
    }
    if !options.iter().any(|option| option == "--progress") {
        arguments.push("--progress".to_owned());
    }
    arguments.extend(options.iter().cloned());
    arguments
}

async fn base_backup_once(
    settings: &Settings,
    source: &Source,
    options: &[String],
    progress: &Progress,
    cancelled: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let mut command = settings.tool("pg_basebackup");
    command
        .args(base_backup_arguments(settings, source, options))
        .env("PGPASSFILE", &settings.pgpass)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let failed = |error: std::io::Error| Failure::Failed(format!("pg_basebackup: {error}"));
    let mut child = command.spawn().map_err(failed)?;
    let mut leash = Leash::of(&child);
    let stderr = child.stderr.take();
    let mut messages = String::new();
    let ended = {
        let run = async {
            if let Some(stderr) = stderr {
                follow_messages(stderr, settings, progress, &mut messages).await;
            }
            child.wait().await
        };
        let mut run = std::pin::pin!(run);
        let ended = tokio::select! {
            ended = &mut run => Some(ended),
            () = cancelled => None,
        };
        match ended {
            Some(_) => leash.let_go(),
            None => {
                leash.end(CANCEL_GRACE).await;
                let _ = run.await;
            }
        }
        ended
    };
    match ended {
        None => Err(Failure::Cancelled),
        Some(status) => {
            let status = status.map_err(failed)?;
            if status.success() {
                let (done, total) = progress.bytes();
                progress.set(done.max(total), done.max(total));
                return Ok(());
            }
            Err(Failure::Failed(format!(
                "pg_basebackup ended with {status}: {}",
                messages.trim()
            )))
        }
    }
}

/// Reads what pg_basebackup writes until it ends. Its lines end with a carriage return while it reports progress.
async fn follow_messages(
    mut stderr: tokio::process::ChildStderr,
    settings: &Settings,
    progress: &Progress,
    messages: &mut String,
) {
    let mut buffer = [0_u8; 4096];
    let mut line = Vec::new();
    let mut marked = false;
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        for byte in &buffer[..count] {
            if !matches!(byte, b'\r' | b'\n') {
                line.push(*byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            line.clear();
            match parse_progress(&text) {
                Some((done, total)) => {
                    progress.set(done, total);
                    // Only now is the directory ours beyond doubt: pg_basebackup has found it empty.
                    if !marked && done > 0 {
                        marked =
                            directory::mark_incomplete(&settings.data_dir, Filling::Clone).is_ok();
                    }
                }
                None if !text.is_empty() => {
                    messages.push_str(&text);
                    messages.push('\n');
                }
                None => {}
            }
        }
    }
    messages.push_str(&String::from_utf8_lossy(&line));
}

/// `  23456/789012 kB (3%), 0/1 tablespace (…)` in bytes.
fn parse_progress(line: &str) -> Option<(u64, u64)> {
    let (numbers, _) = line.split_once(" kB (")?;
    let (done, total) = numbers.trim().split_once('/')?;
    Some((
        done.parse::<u64>().ok()?.saturating_mul(1024),
        total.parse::<u64>().ok()?.saturating_mul(1024),
    ))
}

async fn run_custom(
    request: &CloneRequest<'_>,
    method: &CustomMethod,
    cancelled: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let settings = request.settings;
    let arguments = custom_arguments(request, method);
    let environment = [("PGPASSFILE", settings.pgpass.display().to_string())];
    match hooks::run(
        "create_replica_methods",
        &method.command,
        &arguments,
        &environment,
        None,
        cancelled,
    )
    .await
    {
        Ok(()) => Ok(()),
        Err(hooks::HookError::NotRun { source, .. }) => Err(source.into()),
        Err(error) => Err(Failure::Failed(error.to_string())),
    }
}

fn custom_arguments(request: &CloneRequest<'_>, method: &CustomMethod) -> Vec<String> {
    let mut values: Vec<(String, String)> = Vec::new();
    if !method.no_params {
        let conninfo = request.source.map(|source| source.conninfo.to_string());
        values.push(("scope".into(), request.scope.to_owned()));
        values.push(("role".into(), "replica".into()));
        values.push((
            "datadir".into(),
            request.settings.data_dir.display().to_string(),
        ));
        values.push(("connstring".into(), conninfo.unwrap_or_default()));
    }
    let ours =
        |key: &str| !method.no_params && matches!(key, "scope" | "role" | "datadir" | "connstring");
    values.extend(
        method
            .arguments
            .iter()
            .filter(|(key, _)| !ours(key))
            .cloned(),
    );
    values
        .into_iter()
        .map(|(key, value)| format!("--{key}={value}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::write::tests::settings_in;
    use serde_json::json;
    use std::fs;

    const PG15: PgVersion = PgVersion(150_000);

    #[test]
    fn methods_are_read_from_their_sections() {
        let sections = json!({
            "basebackup": ["verbose", {"max-rate": "100M"}, {"pgdata": "/x"}, {"compress": "gzip"}],
            "wal_e": {"command": "wale --x", "no_leader": 1, "keep_data": true, "envdir": "/e"},
            "pgbackrest": {"command": "pgbackrest restore", "keep_data": true, "no_params": true, "delta": 1},
        });
        let section = |name: &str| sections.get(name);
        let names = ["wal_e", "pgbackrest", "bare", "basebackup"].map(str::to_owned);
        let (found, problems) = methods(&names, section, true, PG15);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert_eq!(
            found[3],
            Method::BaseBackup(vec!["--verbose".into(), "--max-rate=100M".into()])
        );
        let Method::Custom(bare) = &found[2] else {
            panic!()
        };
        assert_eq!((bare.command.as_str(), bare.no_leader), ("bare", false));
        let (without, _) = methods(&names, section, false, PG15);
        assert_eq!(without.len(), 1);
        let (default, _) = methods(&[], |_| None, true, PG15);
        assert_eq!(default, [Method::BaseBackup(vec![])]);
        let server = json!({"compress": "server-gzip"});
        assert_eq!(
            base_backup_options(&server, PG15).0,
            ["--compress=server-gzip"]
        );
        assert_eq!(base_backup_options(&server, PgVersion(140_000)).0, [""; 0]);
    }

    struct Scene {
        _root: tempfile::TempDir,
        settings: Settings,
        source: Source,
        progress: Progress,
    }

    impl Scene {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            Scene {
                settings: settings_in(root.path()),
                _root: root,
                source: Source {
                    conninfo: Conninfo::default().with("host", "a"),
                    passwords: Some("a:*:*:u:p\n".into()),
                },
                progress: Progress::default(),
            }
        }

        fn request<'a>(
            &'a self,
            methods: &'a [Method],
            replace: Option<Removal>,
        ) -> CloneRequest<'a> {
            CloneRequest {
                settings: &self.settings,
                scope: "demo",
                methods,
                source: Some(&self.source),
                replace,
                keep_replaced: None,
                progress: &self.progress,
            }
        }
    }

    fn custom(name: &str, command: &str) -> CustomMethod {
        CustomMethod {
            name: name.into(),
            command: command.into(),
            ..CustomMethod::default()
        }
    }

    #[test]
    fn arguments_follow_patronis_order() {
        let scene = Scene::new();
        let request = scene.request(&[], None);
        let mut method = custom("m", "m");
        method.arguments = vec![("k".into(), "v".into()), ("scope".into(), "x".into())];
        let text = custom_arguments(&request, &method).join(" ");
        let data = scene.settings.data_dir.display();
        assert_eq!(
            text,
            format!("--scope=demo --role=replica --datadir={data} --connstring=host=a --k=v")
        );
        method.no_params = true;
        assert_eq!(custom_arguments(&request, &method), ["--k=v", "--scope=x"]);
        let text = base_backup_arguments(
            &scene.settings,
            &scene.source,
            &["--checkpoint=spread".into()],
        )
        .join(" ");
        assert_eq!(
            text,
            format!("--pgdata={data} -X stream --dbname=host=a --progress --checkpoint=spread")
        );
    }

    #[test]
    fn progress_lines_are_understood() {
        assert_eq!(
            parse_progress("  1024/2048 kB (50%), 0/1 tablespace (...base/1/1)"),
            Some((1_048_576, 2_097_152))
        );
        assert_eq!(parse_progress("pg_basebackup: error: no"), None);
    }

    #[tokio::test]
    async fn a_foreign_directory_is_not_replaced_unless_it_is_given_up() {
        let scene = Scene::new();
        let precious = scene.settings.data_dir.join("precious");
        fs::write(&precious, "").unwrap();
        let methods = [Method::Custom(custom("m", "/bin/true"))];
        let never = std::future::pending::<()>;
        let refused = clone(&scene.request(&methods, None), never()).await;
        assert!(
            matches!(refused, Err(CloneError::Occupied { .. })),
            "{refused:?}"
        );
        assert!(precious.exists());
        let make = custom(
            "m",
            &format!("/bin/mkdir -p {}", scene.settings.data_dir.display()),
        );
        let make = CustomMethod {
            no_params: true,
            ..make
        };
        let done = clone(
            &scene.request(&[Method::Custom(make)], Some(Removal::Reinitialise)),
            never(),
        )
        .await;
        assert_eq!(done.unwrap(), "m");
        assert!(!precious.exists());
        let mode = fs::metadata(&scene.settings.data_dir)
            .unwrap()
            .permissions();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
            0o700
        );
        fs::write(&precious, "").unwrap();
        let nothing = clone(&scene.request(&[], Some(Removal::Reinitialise)), never()).await;
        assert!(
            matches!(nothing, Err(CloneError::AllFailed { .. })),
            "{nothing:?}"
        );
        assert!(precious.exists(), "no method, no loss");
    }

    #[tokio::test]
    async fn the_next_method_starts_with_a_clean_directory() {
        let scene = Scene::new();
        let data = scene.settings.data_dir.display().to_string();
        let first = custom(
            "first",
            &format!("/bin/sh -c 'mkdir -p {data}; touch {data}/junk; exit 1'"),
        );
        let second = custom(
            "second",
            &format!("/bin/sh -c 'test ! -e {data}/junk && mkdir -p {data} && touch {data}/good'"),
        );
        let methods = [Method::Custom(first.clone()), Method::Custom(second)];
        let done = clone(&scene.request(&methods, None), std::future::pending()).await;
        assert_eq!(done.unwrap(), "second");
        assert_eq!(directory::incomplete(&scene.settings.data_dir), None);
        let methods = [Method::Custom(first)];
        let failed = clone(
            &scene.request(&methods, Some(Removal::Configured)),
            std::future::pending(),
        )
        .await;
        assert!(
            matches!(failed, Err(CloneError::AllFailed { .. })),
            "{failed:?}"
        );
        assert!(!scene.settings.data_dir.exists());
        assert!(scene.settings.pgpass.exists());
    }

    #[tokio::test]
    async fn a_cancelled_clone_leaves_nothing() {
        let scene = Scene::new();
        let data = scene.settings.data_dir.display().to_string();
        let slow = custom(
            "slow",
            &format!("/bin/sh -c 'mkdir -p {data}; touch {data}/junk {data}.started; sleep 600'"),
        );
        let started = PathBuf::from(format!("{data}.started"));
        let cancel = async {
            while !started.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let result = clone(&scene.request(&[Method::Custom(slow)], None), cancel).await;
        assert!(matches!(result, Err(CloneError::Cancelled)), "{result:?}");
        assert!(!scene.settings.data_dir.exists());
    }
}
