//! Finding PostgreSQL's programs and running the short-lived ones.
//!
//! A program never sees the agent's settings: `PATRONI_*`, `KUBERNETES_*` and `NOTIFY_SOCKET` are removed from what it
//! inherits. Passwords never appear on a command line (spec §2.2). Nothing here interprets a program's output.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};

pub use crate::config::env::child_environment;

use super::Settings;
use super::process::{self, Process};

/// How long a cancelled program may take to end by itself after SIGTERM (spec §15).
pub const CANCEL_GRACE: Duration = Duration::from_secs(10);

impl Settings {
    /// The path of a PostgreSQL program: `bin_dir` + its configured or own name; without `bin_dir` the bare name, which
    /// `PATH` resolves (spec §2).
    #[must_use]
    pub fn program(&self, tool: &str) -> PathBuf {
        let name = self.bin_name.get(tool).map_or(tool, String::as_str);
        match &self.bin_dir {
            Some(directory) => directory.join(name),
            None => PathBuf::from(name),
        }
    }

    /// A command for a short-lived program, with the filtered environment, untranslated messages and no standard input.
    /// It is killed if its future is dropped.
    #[must_use]
    pub fn tool(&self, tool: &str) -> Command {
        let mut command = Command::new(self.program(tool));
        command
            .env_clear()
            .envs(child_environment())
            .env("LANG", "C")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

/// Why a program has no output to show.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started.
    #[error("cannot run {program}: {source}; check postgresql.bin_dir")]
    Unstartable {
        /// Its path or name.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It failed.
    #[error("{program} ended with {status}: {stderr}")]
    Failed {
        /// Its path or name.
        program: String,
        /// Exit code or signal.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// It was cancelled.
    #[error("{program} was cancelled")]
    Cancelled {
        /// Its path or name.
        program: String,
    },
}

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct ToolOutput {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output; invalid UTF-8 replaced.
    pub stdout: String,
    /// Its standard error; invalid UTF-8 replaced.
    pub stderr: String,
}

fn name_of(command: &Command) -> String {
    command
        .as_std()
        .get_program()
        .to_string_lossy()
        .into_owned()
}

/// Runs a program to its end and captures what it writes, whatever its exit status.
///
/// # Errors
/// [`ToolError::Unstartable`].
pub async fn run(command: Command) -> Result<ToolOutput, ToolError> {
    run_until(command, std::future::pending()).await
}

/// Like [`run`]; a non-zero exit is an error too. Returns the standard output.
///
/// # Errors
/// [`ToolError::Unstartable`], [`ToolError::Failed`].
pub async fn run_checked(command: Command) -> Result<String, ToolError> {
    let program = name_of(&command);
    let output = run(command).await?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(ToolError::Failed {
            program,
            status: output.status,
            stderr: output.stderr.trim().to_owned(),
        })
    }
}

/// Like [`run`], but ends the program when `cancelled` completes: SIGTERM, [`CANCEL_GRACE`], then SIGKILL for it and all
/// its descendants (spec §15).
///
/// # Errors
/// [`ToolError::Unstartable`], [`ToolError::Cancelled`].
pub async fn run_until(
    mut command: Command,
    cancelled: impl Future<Output = ()>,
) -> Result<ToolOutput, ToolError> {
    let program = name_of(&command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|source| ToolError::Unstartable {
        program: program.clone(),
        source,
    })?;
    let mut leash = Leash::of(&child);
    let mut output = std::pin::pin!(child.wait_with_output());
    tokio::select! {
        result = &mut output => {
            leash.let_go();
            let output = result.map_err(|source| ToolError::Unstartable { program, source })?;
            Ok(ToolOutput {
                status: output.status,
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            })
        }
        () = cancelled => {
            leash.end(CANCEL_GRACE).await;
            Err(ToolError::Cancelled { program })
        }
    }
}

/// A child that does not outlive whoever waits for it. A job that is cancelled is dropped between two awaits: whatever it had started
/// would go on beside its successor, in the same directory. Dropped before [`Leash::let_go`] or [`Leash::end`], this kills the child
/// and everything below it at once.
pub(super) struct Leash(Option<Process>);

impl Leash {
    /// How long a dropped one waits for what it has killed.
    const GONE: Duration = Duration::from_millis(200);

    /// Of a child that has just been started.
    pub(super) fn of(child: &Child) -> Leash {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        Leash(pid.and_then(|pid| Process::open(pid).ok().flatten()))
    }

    /// The child has ended; what it left in the background is its own affair.
    pub(super) fn let_go(&mut self) {
        self.0 = None;
    }

    /// Ends the child as [`end`] does.
    pub(super) async fn end(&mut self, grace: Duration) {
        if let Some(process) = &self.0 {
            end(process, grace).await;
        }
        self.let_go();
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        if let Some(process) = self.0.take() {
            process::kill_tree_now(&process, Leash::GONE);
        }
    }
}

/// Ends a process: SIGTERM, `grace` to comply, then it is killed with all that it has started; also what it has left behind when it
/// complied. Returns when all are gone.
pub async fn end(process: &Process, grace: Duration) {
    use rustix::process::Signal;
    // Listed while it stands still: once it has ended, nothing shows any more whose children these were.
    let _ = process.signal(Signal::STOP);
    let below = process.descendants();
    let _ = process.signal(Signal::TERM);
    let _ = process.signal(Signal::CONT);
    if tokio::time::timeout(grace, process.exited()).await.is_err() {
        process::kill_tree(process).await;
    }
    process::kill_all(&below).await;
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock;

    /// A shell with a child of its own; both pids are in the file once they run.
    fn family(file: &Path) -> Command {
        let mut command = Command::new("/bin/sh");
        let file = file.display();
        command.args([
            "-c",
            &format!("sleep 600 & echo $$ $! > {file}.new; mv {file}.new {file}; wait"),
        ]);
        command
    }

    /// Completes when the family runs.
    async fn members(file: &Path) -> Vec<Process> {
        let until = clock::now() + Duration::from_secs(20);
        loop {
            if let Ok(text) = std::fs::read_to_string(file) {
                let open = |pid: &str| Process::open(pid.parse().unwrap()).unwrap().unwrap();
                return text.split_whitespace().map(open).collect();
            }
            assert!(clock::now() < until, "the program does not start");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn cancelling_ends_a_program_and_its_children() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("pids");
        let mut family_members = Vec::new();
        let cancelled = async { family_members = members(&file).await };
        let result = run_until(family(&file), cancelled).await;
        assert!(matches!(result, Err(ToolError::Cancelled { .. })));
        assert_eq!(family_members.len(), 2);
        assert!(family_members.iter().all(|member| !member.is_alive()));
    }

    #[tokio::test]
    async fn a_program_does_not_outlive_whoever_waits_for_it() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("pids");
        let family_members = tokio::select! {
            ended = run(family(&file)) => panic!("{ended:?}"),
            members = members(&file) => members,
        };
        assert_eq!(family_members.len(), 2);
        assert!(family_members.iter().all(|member| !member.is_alive()));
    }

    #[tokio::test]
    async fn failure_carries_what_the_program_said() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo no >&2; exit 3"]);
        let error = run_checked(command).await.unwrap_err();
        assert!(error.to_string().ends_with(": no"), "{error}");
    }
}
