//! Divergence: whether this node's history is a prefix of the leader's, and pg_rewind when it is not
//! (spec/postgres-management.md §10.3, §10.5, §10.6).
//!
//! The judgement is pure and errs on the side of "diverged": a node is only said to be the same with proof (safety rule S3).
//! This module does not choose between rewinding and a new clone, and does not stop or start the server.

use std::fs;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::Settings;
use super::binaries::{self, ToolError};
use super::conninfo::{Conninfo, Upstream};
use super::control::{self, ControlData, ControlState};
use super::directory;
use super::sql::{Ancestor, SqlError, Target};
use super::write::{FileError, write_passwords};
use crate::types::{Lsn, Malformed, PgVersion, Timeline};

/// Where a node's history ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalPosition {
    /// Its timeline.
    pub timeline: Timeline,
    /// Replayed (running standby), minimum recovery end (stopped standby), or latest checkpoint (stopped primary).
    pub lsn: Lsn,
    /// `None`: in recovery, all WAL came from elsewhere. `Some`: a former primary, with the *end* of its shutdown checkpoint record; its
    /// `None` says that the end could not be found.
    pub former_primary: Option<Option<Lsn>>,
}

/// One line of a timeline history file: `timeline` ended at `switch_point`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The timeline that was left.
    pub timeline: Timeline,
    /// Where.
    pub switch_point: Lsn,
    /// What PostgreSQL wrote as the reason.
    pub reason: String,
}

impl From<Ancestor> for HistoryEntry {
    fn from(ancestor: Ancestor) -> Self {
        HistoryEntry {
            timeline: ancestor.timeline,
            switch_point: ancestor.switch,
            reason: ancestor.reason,
        }
    }
}

/// The judgement, with its reason in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This node's history is a prefix of the leader's: it can follow.
    Same {
        /// For the log.
        reason: String,
    },
    /// It is not: rewind or clone.
    Diverged {
        /// For the log.
        reason: String,
    },
    /// Not known now; ask again.
    Undecided {
        /// For the log.
        reason: String,
    },
}

/// Judges this node's history against the leader's (§10.3). `history`: content of the leader's history file, needed if its timeline is
/// higher than ours.
#[must_use]
pub fn judge(
    local: &LocalPosition,
    leader_timeline: Timeline,
    history: Option<&[HistoryEntry]>,
) -> Verdict {
    let mine = local.timeline;
    if mine > leader_timeline {
        return Verdict::Diverged {
            reason: format!(
                "local timeline {mine} is higher than the leader's timeline {leader_timeline}"
            ),
        };
    }
    if mine == leader_timeline {
        return Verdict::Same {
            reason: format!("both are on timeline {mine}"),
        };
    }
    let Some(history) = history else {
        return Verdict::Undecided {
            reason: format!("the history of the leader's timeline {leader_timeline} is not known"),
        };
    };
    let Some(fork) = history
        .iter()
        .find(|entry| entry.timeline >= mine)
        .filter(|entry| entry.timeline == mine)
    else {
        return Verdict::Diverged {
            reason: format!(
                "local timeline {mine} is not in the history of the leader's timeline {leader_timeline}"
            ),
        };
    };
    let (lsn, fork) = (local.lsn, fork.switch_point);
    let diverged = |reason: String| Verdict::Diverged { reason };
    let same = |reason: String| Verdict::Same { reason };
    match local.former_primary {
        None if lsn > fork => diverged(format!(
            "replayed {lsn} on timeline {mine}, which the leader left at {fork}"
        )),
        None => same(format!(
            "replayed {lsn} on timeline {mine}, not beyond {fork} where the leader left it"
        )),
        Some(_) if lsn >= fork => diverged(format!(
            "the last checkpoint {lsn} on timeline {mine} is not before {fork}, where the leader left it"
        )),
        Some(Some(end)) if end == fork => same(format!(
            "the shutdown checkpoint ends at {end}, exactly where the leader left timeline {mine}"
        )),
        Some(Some(end)) => diverged(format!(
            "the shutdown checkpoint ends at {end}, the leader left timeline {mine} at {fork}"
        )),
        Some(None) => diverged(format!(
            "the end of the shutdown checkpoint {lsn} is not known, the leader left timeline {mine} at {fork}"
        )),
    }
}

/// Compares this node's history with the leader's (§10.3): finds where ours ends, makes sure that the other side is a primary, asks for its
/// timeline and history, and judges. `running`: the local server accepts connections (or may: then a failure falls back to the control file).
///
/// Anything that cannot be found out makes it undecided.
pub async fn check(
    settings: &Settings,
    version: PgVersion,
    leader: &Upstream,
    running: bool,
) -> Verdict {
    let undecided = |reason: String| Verdict::Undecided { reason };
    let local = match local_position(settings, version, running).await {
        Ok(local) => local,
        Err(reason) => return undecided(reason),
    };
    tracing::info!("Local timeline={} lsn={}", local.timeline, local.lsn);
    match leader_history(settings, version, leader, local.timeline).await {
        Ok((timeline, history)) => {
            tracing::info!("primary_timeline={timeline}");
            // Around the fork; a long life has hundreds.
            for entry in history
                .iter()
                .filter(|e| e.timeline >= local.timeline)
                .take(3)
            {
                tracing::info!(
                    "primary: history={}\t{}\t{}",
                    entry.timeline,
                    entry.switch_point,
                    entry.reason
                );
            }
            judge(&local, timeline, Some(&history))
        }
        Err(error) => undecided(format!("the leader could not be asked: {error}")),
    }
}

async fn local_position(
    settings: &Settings,
    version: PgVersion,
    running: bool,
) -> Result<LocalPosition, String> {
    if running {
        match running_position(settings, version).await {
            Ok(position) => return Ok(position),
            Err(error) => tracing::debug!(
                "the running server does not tell its position, reading the control file: {error}"
            ),
        }
    }
    let control = control::read(settings)
        .await
        .map_err(|error| error.to_string())?;
    let mut position = stopped_position(&control).ok_or_else(|| {
        format!(
            "the control file of a server that was {:?} does not tell where its history ends",
            control.state
        )
    })?;
    if position.former_primary.is_some() {
        position.former_primary = Some(checkpoint_end(settings, &control, version).await);
    }
    Ok(position)
}

async fn running_position(
    settings: &Settings,
    version: PgVersion,
) -> Result<LocalPosition, SqlError> {
    let function = if version.at_least(10) {
        "pg_last_wal_replay_lsn"
    } else {
        "pg_last_xlog_replay_location"
    };
    let session = Target::local(settings).connect().await?;
    // The timeline first: should the server pass to the next one in between, the pair (old timeline, later position) is the careful one.
    let timeline = Target::local_replication(settings)
        .connect()
        .await?
        .identify_system()
        .await?
        .timeline;
    let rows = session
        .simple(&format!(
            "SELECT pg_catalog.{function}() WHERE pg_catalog.pg_is_in_recovery()"
        ))
        .await?;
    let replayed = rows
        .first()
        .and_then(|row| row.first()?.as_deref()?.parse().ok());
    let lsn = replayed.ok_or_else(|| {
        SqlError::Unexpected(
            "the local server is not in recovery, or has replayed nothing".to_owned(),
        )
    })?;
    Ok(LocalPosition {
        timeline,
        lsn,
        former_primary: None,
    })
}

/// The leader's timeline, and its history if that is above ours.
async fn leader_history(
    settings: &Settings,
    version: PgVersion,
    leader: &Upstream,
    local: Timeline,
) -> Result<(Timeline, Vec<HistoryEntry>), SqlError> {
    // Refuses a server that is in recovery: its timeline may still change.
    drop(
        Target::remote(
            leader,
            &settings.database,
            settings.rewind_credentials(version),
        )
        .writable()
        .connect()
        .await?,
    );
    let session = Target::remote(leader, &settings.database, &settings.replication)
        .replication()
        .connect()
        .await?;
    let timeline = session.identify_system().await?.timeline;
    let history = if local < timeline {
        session.timeline_history(timeline).await?
    } else {
        Vec::new()
    };
    Ok((
        timeline,
        history.into_iter().map(HistoryEntry::from).collect(),
    ))
}

/// Makes sure that the source's control file has the timeline it is on (§10.5): pg_rewind reads it there, and a primary that was just promoted
/// writes it with its next checkpoint. A superuser runs one; a rewind user can only look, `false` then says "not yet".
///
/// # Errors
/// The source could not be asked, or is in recovery.
pub async fn source_is_ready(
    settings: &Settings,
    version: PgVersion,
    source: &Upstream,
) -> Result<bool, SqlError> {
    let credentials = settings.rewind_credentials(version);
    let session = Target::remote(source, &settings.database, credentials)
        .writable()
        .statement_limit(None)
        .connect()
        .await?;
    if *credentials == settings.superuser {
        session.checkpoint(version).await?;
        return Ok(true);
    }
    let statement = "SELECT (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()) = \
                     ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int";
    let rows = session.simple(statement).await?;
    Ok(rows.first().is_some_and(|row| {
        row.first()
            .is_some_and(|value| value.as_deref() == Some("t"))
    }))
}

/// The position of a stopped server, or `None` if its control file does not tell one (it crashed: recover first). The end of a shutdown
/// checkpoint is not in the control file: ask [`checkpoint_end`].
#[must_use]
pub fn stopped_position(control: &ControlData) -> Option<LocalPosition> {
    let primary = Some(LocalPosition {
        timeline: control.timeline,
        lsn: control.checkpoint,
        former_primary: Some(None),
    });
    match control.state {
        ControlState::ShutDown => primary,
        ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery => match (
            control.min_recovery_end.known(),
            control.min_recovery_timeline,
        ) {
            (Some(lsn), Some(timeline)) if timeline.0 != 0 => Some(LocalPosition {
                timeline,
                lsn,
                former_primary: None,
            }),
            _ => primary,
        },
        _ => None,
    }
}

/// The end of the record at the latest checkpoint: pg_waldump is asked for two records and says where the second is missing.
pub async fn checkpoint_end(
    settings: &Settings,
    control: &ControlData,
    version: PgVersion,
) -> Option<Lsn> {
    let name = if version.at_least(10) {
        "pg_waldump"
    } else {
        "pg_xlogdump"
    };
    let wal = if version.at_least(10) {
        "pg_wal"
    } else {
        "pg_xlog"
    };
    let mut command = settings.tool(name);
    command
        .args([
            "-t",
            &control.timeline.to_string(),
            "-s",
            &control.checkpoint.to_string(),
            "-n",
            "2",
        ])
        .arg("-p")
        .arg(settings.data_dir.join(wal))
        .env("PGDATA", &settings.data_dir);
    let output = binaries::run(command).await.ok()?;
    parse_record_end(&output.stderr)
}

/// `… error in WAL record at 0/3000028: invalid record length at 0/30000A0: wanted 24, got 0`.
fn parse_record_end(text: &str) -> Option<Lsn> {
    let (_, after) = text.split_once("invalid record length at ")?;
    let position: String = after
        .chars()
        .take_while(|c| c.is_ascii_hexdigit() || *c == '/')
        .collect();
    position.parse().ok()
}

/// Reads a timeline history file: `<timeline>\t<position>\t<reason>` lines; blank lines and comments are skipped.
///
/// # Errors
/// A line that is neither: the history cannot be trusted.
pub fn parse_history(text: &str) -> Result<Vec<HistoryEntry>, Malformed> {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let err = || Malformed {
                kind: "timeline history line",
                text: line.to_owned(),
            };
            let mut parts = line.splitn(3, char::is_whitespace);
            let timeline = parts.next().and_then(|p| p.parse().ok()).ok_or_else(err)?;
            let switch_point = parts.next().and_then(|p| p.parse().ok()).ok_or_else(err)?;
            Ok(HistoryEntry {
                timeline: Timeline(timeline),
                switch_point,
                reason: parts.next().unwrap_or_default().trim().to_owned(),
            })
        })
        .collect()
}

/// What pg_rewind needs.
#[derive(Debug, Clone)]
pub struct RewindRequest<'a> {
    /// This node.
    pub settings: &'a Settings,
    /// Data directory's major.
    pub version: PgVersion,
    /// The leader, with the rewind credentials, without a password.
    pub source: &'a Conninfo,
    /// Lines for the password file.
    pub passwords: Option<&'a str>,
    /// `postgresql.rewind`, parsed.
    pub options: &'a [String],
    /// The effective `restore_command`.
    pub restore_command: Option<&'a str>,
}

/// Why a rewind did not succeed. After [`RewindError::Failed`] the directory may be unusable.
#[derive(Debug, thiserror::Error)]
pub enum RewindError {
    /// pg_rewind reported an error.
    #[error("pg_rewind of {} failed: {output}", data_dir.display())]
    Failed {
        /// The data directory.
        data_dir: PathBuf,
        /// The last lines it wrote.
        output: String,
    },
    /// There is no room for what it would copy; the directory is as it was.
    #[error("no room for pg_rewind: it needs {needed_mb} MB and {free_mb} MB are free in {}", data_dir.display())]
    NoRoom {
        /// The data directory.
        data_dir: PathBuf,
        /// What it would copy, and a little for the start afterwards.
        needed_mb: u64,
        /// What is free.
        free_mb: u64,
    },
    /// It could not be started, or was cancelled.
    #[error(transparent)]
    NotRun(#[from] ToolError),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Runs pg_rewind on the stopped server (§10.5). WAL that is missing locally is fetched with `restore_command`, by pg_rewind itself where
/// it can (13+), by us below.
///
/// # Errors
/// See [`RewindError`].
pub async fn run(
    request: &RewindRequest<'_>,
    cancelled: impl Future<Output = ()>,
) -> Result<(), RewindError> {
    let RewindRequest {
        settings, version, ..
    } = *request;
    if let Some(passwords) = request.passwords {
        write_passwords(&settings.pgpass, passwords)?;
    }
    let mut cancelled = std::pin::pin!(cancelled);
    let restores_itself = arguments(request)
        .iter()
        .any(|a| a == "--restore-target-wal");
    look_for_room(request, cancelled.as_mut()).await?;
    let mut fetched: Option<String> = None;
    loop {
        let command = command(request);
        let output = binaries::run_until(command, cancelled.as_mut()).await?;
        tracing::info!(status = %output.status, stdout = output.stdout.trim(), stderr = output.stderr.trim(), "pg_rewind");
        if output.status.success() {
            break;
        }
        let missing = missing_segment(&output.stderr).or_else(|| missing_segment(&output.stdout));
        let restore = request
            .restore_command
            .filter(|command| !command.is_empty() && !restores_itself);
        if let (Some(segment), Some(restore)) = (missing, restore)
            // The same segment twice: fetching it did not help.
            && fetched.as_ref() != Some(&segment)
            && fetch_segment(settings, version, restore, &segment, cancelled.as_mut()).await?
        {
            fetched = Some(segment);
            continue;
        }
        let text = if output.stderr.trim().is_empty() {
            output.stdout
        } else {
            output.stderr
        };
        return Err(RewindError::Failed {
            data_dir: settings.data_dir.clone(),
            output: last_lines(&text, 5),
        });
    }
    if !version.at_least(11) {
        // Slots copied from the source would hold back WAL on this node.
        directory::empty_directory(&settings.data_dir.join("pg_replslot"))?;
    }
    Ok(())
}

fn command(request: &RewindRequest<'_>) -> Command {
    let mut command = request.settings.tool("pg_rewind");
    command
        .args(arguments(request))
        .env("PGPASSFILE", &request.settings.pgpass)
        .env("PGOPTIONS", "-c statement_timeout=0");
    command
}

/// With this much there is no need to ask.
const PLENTY_MB: u64 = 1024;
/// For the server that starts afterwards: it writes WAL before anything else.
const SLACK_MB: u64 = 64;

/// A rewind that runs out of space leaves a directory that can neither be started nor rewound, so where little is left a dry run
/// says first how much it takes.
async fn look_for_room(
    request: &RewindRequest<'_>,
    cancelled: impl Future<Output = ()>,
) -> Result<(), RewindError> {
    let data_dir = &request.settings.data_dir;
    let Ok(free) = directory::free_space(data_dir) else {
        return Ok(());
    };
    let free_mb = free / (1024 * 1024);
    if free_mb >= PLENTY_MB {
        return Ok(());
    }
    match room_needed(request, cancelled).await? {
        Some(needed_mb) if needed_mb > free_mb => Err(RewindError::NoRoom {
            data_dir: data_dir.clone(),
            needed_mb,
            free_mb,
        }),
        Some(_) | None => Ok(()),
    }
}

/// The free megabytes that [`run`] asks for: what the directory grows by, and a little for the start afterwards. `None` if the dry run
/// that tells it failed: the rewind itself says why.
///
/// # Errors
/// pg_rewind could not be started, or was cancelled.
pub async fn room_needed(
    request: &RewindRequest<'_>,
    cancelled: impl Future<Output = ()>,
) -> Result<Option<u64>, ToolError> {
    let mut command = command(request);
    command.args(["--dry-run", "--progress", "--debug"]);
    let output = binaries::run_until(command, cancelled).await?;
    let growth = [output.stderr, output.stdout]
        .iter()
        .find_map(|said| growth(said, &request.settings.data_dir));
    Ok(growth.map(|bytes| bytes.div_ceil(1024 * 1024) + SLACK_MB))
}

/// `pg_rewind: need to copy 52 MB (total source directory size is 70 MB)`, less the WAL segments among it that are here already, of the
/// same size: `pg_rewind: pg_wal/000000010000000000000003 (COPY)`. Each is emptied when its turn comes, and then fetched. In bytes.
fn growth(said: &str, data_dir: &Path) -> Option<u64> {
    let (_, after) = said.split_once("need to copy ")?;
    let megabytes: u64 = after.split_once(" MB")?.0.trim().parse().ok()?;
    let overwritten: u64 = said
        .lines()
        .filter_map(|line| {
            let path = line.strip_suffix(" (COPY)")?.rsplit(": ").next()?;
            let segment = path
                .strip_prefix("pg_wal/")
                .or_else(|| path.strip_prefix("pg_xlog/"))?;
            let is_segment = segment.len() == 24 && segment.bytes().all(|c| c.is_ascii_hexdigit());
            is_segment.then_some(path)
        })
        .map(|path| std::fs::metadata(data_dir.join(path)).map_or(0, |file| file.len()))
        .sum();
    Some((megabytes * 1024 * 1024).saturating_sub(overwritten))
}

fn arguments(request: &RewindRequest<'_>) -> Vec<String> {
    let RewindRequest {
        settings, version, ..
    } = *request;
    let apart = settings.config_dir != settings.data_dir;
    let mut arguments = Vec::new();
    let has_restore = request
        .restore_command
        .is_some_and(|command| !command.is_empty());
    if has_restore && (version.at_least(15) || (version.at_least(13) && !apart)) {
        arguments.push("--restore-target-wal".to_owned());
    }
    // Also without a restore command: on an unclean directory pg_rewind starts a single-user server, which reads the file.
    if version.at_least(15) && apart {
        arguments.push(format!(
            "--config-file={}",
            settings.config_file().display()
        ));
    }
    arguments.extend(["-D".to_owned(), settings.data_dir.display().to_string()]);
    arguments.push(format!("--source-server={}", request.source));
    arguments.extend(request.options.iter().cloned());
    arguments
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("; ")
}

/// The segment that pg_rewind could not open: `could not open file "…/pg_wal/<24 hex>": …`.
fn missing_segment(output: &str) -> Option<String> {
    output
        .split("could not open file \"")
        .skip(1)
        .find_map(|after| {
            let (path, _) = after.split_once("\": ")?;
            let path = Path::new(path);
            let directory = path.parent()?.file_name()?.to_str()?;
            let name = path.file_name()?.to_str()?;
            ((directory == "pg_wal" || directory == "pg_xlog") && is_segment(name))
                .then(|| name.to_owned())
        })
}

fn is_segment(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

fn wal_dir(settings: &Settings, version: PgVersion) -> PathBuf {
    settings.data_dir.join(if version.at_least(10) {
        "pg_wal"
    } else {
        "pg_xlog"
    })
}

/// Runs a command of the configuration as PostgreSQL would: through the shell, in the data directory.
fn shell(settings: &Settings, command_line: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", command_line])
        .current_dir(&settings.data_dir)
        .env_clear()
        .envs(binaries::child_environment())
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    command
}

/// Replaces `%p`, `%f`, `%r` and `%%`.
fn substitute(template: &str, path: &str, name: &str, restart: &str) -> String {
    let mut result = String::new();
    let mut chars = template.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '%' { chars.clone().next() } else { None }) {
            ('%', Some(kind @ ('p' | 'f' | 'r' | '%'))) => {
                chars.next();
                result.push_str(match kind {
                    'p' => path,
                    'f' => name,
                    'r' => restart,
                    _ => "%",
                });
            }
            _ => result.push(c),
        }
    }
    result
}

async fn fetch_segment(
    settings: &Settings,
    version: PgVersion,
    restore_command: &str,
    segment: &str,
    cancelled: impl Future<Output = ()>,
) -> Result<bool, RewindError> {
    let path = wal_dir(settings, version).join(segment);
    let line = substitute(
        restore_command,
        &path.display().to_string(),
        segment,
        "000000010000000000000001",
    );
    let output = binaries::run_until(shell(settings, &line), cancelled).await?;
    let fetched = output.status.success() && path.exists();
    tracing::info!(segment, fetched, "Fetching WAL for pg_rewind");
    Ok(fetched)
}

/// Archives the WAL of a stopped server that is still waiting for it (§10.6), so that it is not lost with a rewind. Returns the names that
/// could not be archived. `archive_command`: the effective one, of a server with archiving on.
///
/// # Errors
/// The status directory could not be read, or the command was cancelled.
pub async fn archive_ready(
    settings: &Settings,
    version: PgVersion,
    archive_command: &str,
    cancelled: impl Future<Output = ()>,
) -> Result<Vec<String>, RewindError> {
    let mut cancelled = std::pin::pin!(cancelled);
    let wal = wal_dir(settings, version);
    let status = wal.join("archive_status");
    let mut names: Vec<String> = fs::read_dir(&status)
        .map_err(FileError::wrap("read", &status))?
        .flatten()
        .filter_map(|entry| {
            Some(
                entry
                    .file_name()
                    .to_str()?
                    .strip_suffix(".ready")?
                    .to_owned(),
            )
        })
        .filter(|name| {
            is_segment(name.strip_suffix(".partial").unwrap_or(name)) && wal.join(name).exists()
        })
        .collect();
    names.sort();
    let mut failed = Vec::new();
    for name in names {
        if !archive_one(settings, &wal, archive_command, &name, cancelled.as_mut()).await? {
            failed.push(name);
            continue;
        }
        let (ready, done) = (
            status.join(format!("{name}.ready")),
            status.join(format!("{name}.done")),
        );
        fs::rename(&ready, &done).map_err(FileError::wrap("rename", &ready))?;
    }
    Ok(failed)
}

/// The same, and then the segment `last` as far as it is filled, which PostgreSQL itself would not archive yet. The names of those that
/// the command refused.
///
/// # Errors
/// As above.
pub async fn archive_until(
    settings: &Settings,
    version: PgVersion,
    archive_command: &str,
    last: &str,
    cancelled: impl Future<Output = ()>,
) -> Result<Vec<String>, RewindError> {
    let mut cancelled = std::pin::pin!(cancelled);
    let mut failed = archive_ready(settings, version, archive_command, cancelled.as_mut()).await?;
    let wal = wal_dir(settings, version);
    let is_done = wal
        .join("archive_status")
        .join(format!("{last}.done"))
        .exists();
    let tried = failed.iter().any(|name| name == last);
    if !is_done
        && !tried
        && !archive_one(settings, &wal, archive_command, last, cancelled.as_mut()).await?
    {
        failed.push(last.to_owned());
    }
    Ok(failed)
}

/// Whether the command took it.
async fn archive_one(
    settings: &Settings,
    wal: &Path,
    archive_command: &str,
    name: &str,
    cancelled: impl Future<Output = ()>,
) -> Result<bool, RewindError> {
    let path = wal.join(name).display().to_string();
    let line = substitute(archive_command, &path, name, "");
    let output = binaries::run_until(shell(settings, &line), cancelled).await?;
    let taken = output.status.success();
    if !taken {
        tracing::error!(file = name, status = %output.status, stderr = output.stderr.trim(), "WAL could not be archived");
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::write::tests::settings_in;

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    const HISTORY: &str = "1\t0/5000000\tno recovery target specified\n\n# a comment\n2\t0/7000060\tbefore 2026-01-01 00:00:00+00\n";

    #[test]
    fn a_dry_run_says_how_much_the_directory_grows() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
        let segment = dir.path().join("pg_wal/000000010000000000000003");
        std::fs::write(segment, vec![0; 3 << 20]).unwrap();
        std::fs::write(dir.path().join("pg_wal/00000002.history"), "1").unwrap();
        let said = "pg_rewind: reading source file list\n\
             pg_rewind: pg_wal/000000010000000000000003 (COPY)\n\
             pg_rewind: pg_wal/000000010000000000000004 (COPY)\n\
             pg_rewind: pg_wal/00000002.history (COPY)\n\
             pg_rewind: base/5/1259 (NONE)\n\
             pg_rewind: need to copy 52 MB (total source directory size is 70 MB)\n";
        assert_eq!(growth(said, dir.path()), Some(49 << 20));
        assert_eq!(growth("pg_rewind: no rewind required", dir.path()), None);
    }

    #[test]
    fn history_files_are_read() {
        let history = parse_history(HISTORY).unwrap();
        assert_eq!(history.len(), 2);
        assert_eq!(
            (history[1].timeline, history[1].switch_point),
            (Timeline(2), lsn("0/7000060"))
        );
        assert_eq!(history[1].reason, "before 2026-01-01 00:00:00+00");
        assert!(parse_history("1 x").is_err());
        assert_eq!(parse_history("").unwrap(), []);
    }

    #[test]
    fn only_a_proven_prefix_is_the_same() {
        let history = parse_history(HISTORY).unwrap();
        let standby = |timeline, at| (timeline, at, None);
        let primary = |timeline, at, end: Option<&str>| (timeline, at, Some(end.map(lsn)));
        let cases = [
            (standby(4, "0/1"), 3, "diverged"),
            (standby(3, "0/9000000"), 3, "same"),
            (standby(2, "0/7000060"), 3, "same"),
            (standby(2, "0/7000061"), 3, "diverged"),
            (standby(1, "0/4000000"), 3, "same"),
            (primary(2, "0/7000060", Some("0/70000D8")), 3, "diverged"),
            (primary(2, "0/7000000", Some("0/7000060")), 3, "same"),
            (primary(2, "0/6000000", Some("0/6000070")), 3, "diverged"),
            (primary(2, "0/7000000", None), 3, "diverged"),
        ];
        for ((timeline, at, former_primary), leader, expected) in cases {
            let local = LocalPosition {
                timeline: Timeline(timeline),
                lsn: lsn(at),
                former_primary,
            };
            let verdict = match judge(&local, Timeline(leader), Some(&history)) {
                Verdict::Same { .. } => "same",
                Verdict::Diverged { .. } => "diverged",
                Verdict::Undecided { .. } => "undecided",
            };
            assert_eq!(verdict, expected, "{local:?}");
        }
        let local = LocalPosition {
            timeline: Timeline(2),
            lsn: lsn("0/1"),
            former_primary: None,
        };
        assert!(matches!(
            judge(&local, Timeline(3), None),
            Verdict::Undecided { .. }
        ));
        let other_branch = parse_history("1\t0/5\tx\n3\t0/6\ty\n").unwrap();
        assert!(matches!(
            judge(&local, Timeline(4), Some(&other_branch)),
            Verdict::Diverged { .. }
        ));
        assert!(matches!(
            judge(&local, Timeline(4), Some(&[])),
            Verdict::Diverged { .. }
        ));
    }

    #[test]
    fn waldump_tells_where_a_record_ends() {
        let text = "pg_waldump: error: error in WAL record at 0/3000028: invalid record length at 0/30000A0: wanted 24, got 0\n";
        assert_eq!(parse_record_end(text), Some(lsn("0/30000A0")));
        assert_eq!(
            parse_record_end("pg_waldump: error: could not find a valid record"),
            None
        );
    }

    #[test]
    fn the_missing_segment_is_found_in_the_output() {
        let text = "pg_rewind: servers diverged\npg_rewind: error: could not open file \"/d/pg_wal/00000001000000000000000A\": No such file\n";
        assert_eq!(
            missing_segment(text).as_deref(),
            Some("00000001000000000000000A")
        );
        assert_eq!(
            missing_segment("could not open file \"/d/base/1\": No such file"),
            None
        );
    }

    #[test]
    fn pg_rewinds_arguments_fit_the_version() {
        let root = tempfile::tempdir().unwrap();
        let mut settings = settings_in(root.path());
        let source = Conninfo::default().with("host", "a");
        let text = |settings: &Settings, version, restore_command| {
            arguments(&RewindRequest {
                settings,
                version: PgVersion(version),
                source: &source,
                passwords: None,
                options: &["--debug".into()],
                restore_command,
            })
            .join(" ")
            .replace(&root.path().display().to_string(), "")
        };
        assert_eq!(
            text(&settings, 150_000, None),
            "-D /data --source-server=host=a --debug"
        );
        assert_eq!(
            text(&settings, 130_000, Some("cp")),
            "--restore-target-wal -D /data --source-server=host=a --debug"
        );
        assert_eq!(
            text(&settings, 120_000, Some("cp")),
            "-D /data --source-server=host=a --debug"
        );
        settings.config_dir = root.path().join("conf");
        assert_eq!(
            text(&settings, 150_000, Some("cp")),
            "--restore-target-wal --config-file=/conf/postgresql.conf -D /data --source-server=host=a --debug"
        );
        assert_eq!(
            text(&settings, 130_000, Some("cp")),
            "-D /data --source-server=host=a --debug"
        );
    }

    #[tokio::test]
    async fn waiting_wal_is_archived_through_the_shell() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings_in(root.path());
        let status = settings.data_dir.join("pg_wal/archive_status");
        fs::create_dir_all(&status).unwrap();
        let names = [
            "000000010000000000000002",
            "000000010000000000000001",
            "000000010000000000000003.partial",
        ];
        for name in names {
            fs::write(status.join(format!("{name}.ready")), "").unwrap();
            fs::write(settings.data_dir.join("pg_wal").join(name), name).unwrap();
        }
        fs::write(status.join("00000002.history.ready"), "").unwrap();
        let archive = root.path().join("archive");
        fs::create_dir(&archive).unwrap();
        let command = format!(
            "test %f != {} && cp %p {}/%f && echo 100%% > /dev/null",
            names[0],
            archive.display()
        );
        let failed = archive_ready(
            &settings,
            PgVersion(150_000),
            &command,
            std::future::pending(),
        )
        .await
        .unwrap();
        assert_eq!(failed, [names[0]]);
        assert_eq!(
            fs::read_to_string(archive.join(names[1])).unwrap(),
            names[1]
        );
        assert!(status.join(format!("{}.done", names[2])).exists());
        assert!(status.join(format!("{}.ready", names[0])).exists());

        let last = "000000010000000000000009";
        fs::write(status.parent().unwrap().join(last), last).unwrap();
        let failed = archive_until(
            &settings,
            PgVersion(150_000),
            &command,
            last,
            std::future::pending(),
        )
        .await
        .unwrap();
        assert_eq!(failed, [names[0]]);
        assert_eq!(fs::read_to_string(archive.join(last)).unwrap(), last);
    }
}
