//! Stopping a server: one signal, then waiting for events, with a ladder of harder signals when a deadline passes
//! (spec §4.1, ha.md §7.2).
//!
//! It reports two moments the caller may act on before the postmaster has gone: the safe point (no client can get a commit
//! acknowledged any more) and the shutdown checkpoint (the end of this primary's history is known). It never returns
//! success while any process of the server is left.

use std::time::Duration;

use async_trait::async_trait;
use rustix::process::Signal;

use super::Settings;
use super::control::{self, ControlData, ControlState};
use super::pidfile::{PidFile, Status};
use super::process::{self, Postmaster, Process};
use super::sql::{SqlError, Target};
use super::watch::Watch;
use crate::types::{Lsn, PgVersion};

/// How hard to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Wait for the clients (SIGTERM).
    Smart,
    /// End the clients, write a shutdown checkpoint (SIGINT).
    Fast,
    /// End everything at once; the next start recovers (SIGQUIT).
    Immediate,
}

impl Mode {
    /// As `pg_ctl` calls it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Mode::Smart => "smart",
            Mode::Fast => "fast",
            Mode::Immediate => "immediate",
        }
    }

    fn signal(self) -> Signal {
        match self {
            Mode::Smart => Signal::TERM,
            Mode::Fast => Signal::INT,
            Mode::Immediate => Signal::QUIT,
        }
    }
}

/// What the caller does at the moments a stop passes. The stop goes on only after a hook has returned.
#[async_trait]
pub trait Hooks: Send {
    /// Every client backend has ended and none can start: nothing is acknowledged any more. Called once, also when there was
    /// nothing to stop.
    async fn safepoint(&mut self) {}

    /// The control file says "shut down": the shutdown checkpoint is written and the postmaster is waiting for its WAL
    /// senders and archiver, or has just gone. Called at most once and only for a primary stopped smart or fast.
    async fn shut_down(&mut self, _control: &ControlData) {}
}

#[async_trait]
impl Hooks for () {}

/// How a stop ended. In every case no process of the server is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// In the mode that was asked for.
    AsAsked,
    /// Only after SIGQUIT.
    Immediate,
    /// Only after SIGKILL.
    Killed,
}

impl Stopped {
    /// What a log line about it adds.
    #[must_use]
    pub fn detour(self) -> &'static str {
        match self {
            Stopped::AsAsked => "",
            Stopped::Immediate => ", without a checkpoint",
            Stopped::Killed => ", killed",
        }
    }
}

/// The signal could not be sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot signal the postmaster (pid {pid}): {source}; it must run as the same user")]
pub struct StopError {
    /// The postmaster.
    pub pid: i32,
    /// Why.
    pub source: std::io::Error,
}

/// Stops a postmaster. `rung` bounds each step of the ladder (asked mode, immediate, kill); `None` waits for the asked mode
/// as long as it takes.
///
/// The time a hook takes counts for its rung, and a hook is dropped when the rung ends; a hook that must not be interrupted
/// hands its work to a task. Dropping the future leaves the server stopping.
///
/// # Errors
/// The postmaster may not be signalled; nothing has happened then.
pub async fn stop(
    settings: &Settings,
    postmaster: &Postmaster,
    mode: Mode,
    rung: Option<Duration>,
    hooks: &mut dyn Hooks,
) -> Result<Stopped, StopError> {
    let signal = |signal| {
        postmaster.signal(signal).map_err(|source| StopError {
            pid: postmaster.pid(),
            source,
        })
    };
    // A server that is still starting may have the last shutdown in its control file.
    let old_shutdown = match mode {
        Mode::Immediate => None,
        Mode::Smart | Mode::Fast => control::read(settings)
            .await
            .ok()
            .filter(|control| control.state == ControlState::ShutDown)
            .map(|control| control.checkpoint),
    };
    signal(mode.signal())?;

    let mut progress = Progress {
        safepoint: false,
        old_shutdown,
    };
    let stepwise = step(settings, postmaster, mode, hooks, &mut progress);
    let in_time = match rung {
        None => {
            stepwise.await;
            true
        }
        Some(limit) => tokio::time::timeout(limit, stepwise).await.is_ok(),
    };
    let mut how = Stopped::AsAsked;
    if !in_time {
        tracing::warn!(
            "PostgreSQL did not stop in time ({}), stopping it harder",
            mode.word()
        );
        if mode != Mode::Immediate {
            signal(Signal::QUIT)?;
            how = Stopped::Immediate;
        }
        let limit = rung.unwrap_or(Duration::from_secs(5));
        let exited = mode != Mode::Immediate
            && tokio::time::timeout(limit, postmaster.exited())
                .await
                .is_ok();
        if !exited {
            process::kill_tree(postmaster).await;
            how = Stopped::Killed;
        }
    }
    bury(settings).await;
    if !progress.safepoint {
        hooks.safepoint().await;
    }
    Ok(how)
}

/// Writes a checkpoint, so that the one the shutdown itself has to write is short (spec §4.1 step 2). The clients are served
/// meanwhile. A failure is no reason not to stop.
///
/// # Errors
/// The server refuses, or `limit` has passed (the checkpoint then goes on in the server).
pub async fn checkpoint_first(
    settings: &Settings,
    version: PgVersion,
    limit: Option<Duration>,
) -> Result<(), SqlError> {
    let work = async {
        let session = Target::local(settings)
            .statement_limit(None)
            .connect()
            .await?;
        session.checkpoint(version).await
    };
    match limit {
        None => work.await,
        Some(limit) => tokio::time::timeout(limit, work)
            .await
            .unwrap_or(Err(SqlError::Timeout("checkpoint"))),
    }
}

/// What is left of a server whose postmaster has ended, by itself or by us: waits a moment for its processes to notice, then
/// kills them. Returns when none is left; only then the node has stopped accepting writes.
pub async fn bury(settings: &Settings) {
    let left = process::survivors(settings);
    if left.is_empty() {
        return;
    }
    let gone = async {
        for process in &left {
            process.exited().await;
        }
    };
    if tokio::time::timeout(Duration::from_millis(100), gone)
        .await
        .is_ok()
    {
        return;
    }
    for _ in 0..100 {
        let left = process::survivors(settings);
        if left.is_empty() {
            return;
        }
        tracing::warn!(
            processes = left.len(),
            "killing what a dead postmaster left behind"
        );
        process::kill_all(&left).await;
    }
}

struct Progress {
    /// The hook has been called.
    safepoint: bool,
    /// The shutdown checkpoint the control file showed before the signal.
    old_shutdown: Option<Lsn>,
}

/// The first rung: safe point, shutdown checkpoint, exit.
async fn step(
    settings: &Settings,
    postmaster: &Postmaster,
    mode: Mode,
    hooks: &mut dyn Hooks,
    progress: &mut Progress,
) {
    heard(settings, postmaster).await;
    clients_gone(postmaster).await;
    if postmaster.is_alive() {
        // A dead postmaster proves nothing about its children: then the safe point comes after they are buried.
        progress.safepoint = true;
        hooks.safepoint().await;
    }
    if mode != Mode::Immediate
        && let Some(control) = written_down(settings, postmaster, progress.old_shutdown).await
    {
        if !progress.safepoint {
            // It was faster than we could look. A checkpointer that got this far has outlived every client.
            progress.safepoint = true;
            hooks.safepoint().await;
        }
        hooks.shut_down(&control).await;
    }
    postmaster.exited().await;
}

/// Waits until the postmaster has taken notice of the signal: before that it may still accept a client.
async fn heard(settings: &Settings, postmaster: &Postmaster) {
    let mut watch = Watch::new(&settings.data_dir, Duration::from_millis(10));
    while postmaster.is_alive() {
        match PidFile::read(&settings.data_dir).map(|file| file.status) {
            Some(Some(Status::Stopping)) | None => return,
            // Before 10 it leaves no sign; one more turn is all there is to give.
            Some(None) => return watch.changed().await,
            Some(Some(_)) => {}
        }
        tokio::select! {
            () = watch.changed() => {}
            () = postmaster.exited() => {}
        }
    }
}

/// Waits until the control file says "shut down" and returns it; `None` when there will be no such moment: a standby, or the
/// postmaster ended otherwise.
async fn written_down(
    settings: &Settings,
    postmaster: &Postmaster,
    old: Option<Lsn>,
) -> Option<ControlData> {
    let mut watch = control::watch(settings);
    loop {
        // Asked before the file is read: what a dead postmaster wrote is final.
        let alive = postmaster.is_alive();
        if let Ok(control) = control::read(settings).await {
            match control.state {
                ControlState::ShutDown if !alive || old != Some(control.checkpoint) => {
                    return Some(control);
                }
                ControlState::ShutDownInRecovery => return None,
                _ => {}
            }
        }
        if !alive {
            return None;
        }
        tokio::select! {
            () = watch.changed() => {}
            () = postmaster.exited() => {}
        }
    }
}

/// Waits until the postmaster has no client backend, or has ended itself. Meant for a server that has been told to stop and
/// so accepts no new ones.
pub async fn clients_gone(postmaster: &Postmaster) {
    let cluster_name = cluster_name(postmaster);
    while postmaster.is_alive() {
        let clients: Vec<Process> = postmaster
            .children()
            .into_iter()
            .filter(|child| {
                child
                    .command_line()
                    .is_some_and(|title| is_client(&title, cluster_name.as_deref()))
            })
            .collect();
        if clients.is_empty() {
            return;
        }
        let all = async {
            for client in &clients {
                client.exited().await;
            }
        };
        tokio::select! {
            () = all => {}
            () = postmaster.exited() => {}
        }
    }
}

/// `cluster_name` as the agent passed it on the command line; it is part of every title.
fn cluster_name(postmaster: &Postmaster) -> Option<String> {
    let line = postmaster.command_line()?;
    line.split('\0')
        .find_map(|argument| argument.strip_prefix("--cluster_name="))
        .map(str::to_owned)
}

/// Titles that are complete: nothing but a remark about progress can follow.
const AUXILIARY: [&str; 20] = [
    "archiver",
    "startup",
    "autovacuum launcher",
    "checkpointer",
    "logger",
    "stats collector",
    "walreceiver",
    "wal receiver process",
    "walwriter",
    "wal writer process",
    "background writer",
    "writer process",
    "walsender",
    "wal sender process",
    "logical replication launcher",
    "slotsync worker",
    "walsummarizer",
    "io worker",
    "datachecksums launcher",
    "datachecksums worker",
];

/// Auxiliary titles that go on with a name.
const AUXILIARY_WITH_NAME: [&str; 9] = [
    "autovacuum worker",
    "bgworker:",
    "logical replication worker",
    "logical replication tablesync",
    "logical replication parallel",
    "logical replication apply",
    "logger process",
    "syslogger",
    "checkpointer process",
];

/// Whether a child of the postmaster serves a client, by its title (spec §4.1 step 6). Anything unknown does: a child that has
/// not set its title yet may be about to.
fn is_client(title: &str, cluster_name: Option<&str>) -> bool {
    let title = title.trim_end_matches(['\0', ' ']);
    let Some(rest) = title.strip_prefix("postgres: ") else {
        return true;
    };
    let auxiliary = |rest: &str| {
        let known = AUXILIARY.iter().any(|name| {
            rest.strip_prefix(name)
                .is_some_and(|more| more.is_empty() || more.starts_with(' '))
        });
        known
            || AUXILIARY_WITH_NAME
                .iter()
                .any(|name| rest.starts_with(name))
    };
    let named = match cluster_name {
        Some(name) => rest
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix(": ")),
        None => rest.split_once(": ").map(|(_, rest)| rest),
    };
    !(auxiliary(rest) || named.is_some_and(auxiliary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles() {
        for title in [
            "postgres: checkpointer ",
            "postgres: walsender replicator 127.0.0.1(43210) streaming 0/3000148",
            "postgres: main: background writer ",
            "postgres: main: startup recovering 000000010000000000000003",
            "postgres: main: logical replication worker for subscription 16394 ",
            "postgres: autovacuum worker postgres",
            "postgres: checkpointer process   ",
            "postgres: archiver last was 000000010000000000000002",
        ] {
            assert!(!is_client(title, Some("main")), "{title}");
        }
        for title in [
            "postgres: main: app postgres [local] idle",
            "postgres: app postgres 127.0.0.1(1234) COMMIT",
            "/usr/lib/postgresql/15/bin/postgres\0-D\0/data\0",
            "postgres: main: walsenders db [local] idle",
        ] {
            assert!(is_client(title, Some("main")), "{title}");
        }
        assert!(!is_client("postgres: found: walwriter ", None));
    }
}
