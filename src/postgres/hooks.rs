//! Commands that the operator configured for events: callbacks, `pre_promote`, `before_stop` (spec/postgres-management.md §13, §5, §4.1).
//!
//! Callbacks run beside everything else, one at a time; nobody waits for them. The other two are waited for. A hook never sees the
//! agent's own settings in its environment.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::binaries::{self, ToolError, child_environment};
use super::options::shell_split;
use super::process::{Process, kill_tree};
use crate::types::Malformed;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "Patroni's own event names")]
pub enum Event {
    OnStart,
    OnStop,
    OnRestart,
    OnReload,
    OnRoleChange,
}

impl Event {
    /// As it is configured and handed to the command.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Event::OnStart => "on_start",
            Event::OnStop => "on_stop",
            Event::OnRestart => "on_restart",
            Event::OnReload => "on_reload",
            Event::OnRoleChange => "on_role_change",
        }
    }
}

/// One call of a callback.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    arguments: Vec<String>,
}

/// Runs callbacks: a new one ends the one that still runs; of several that come at once only the last runs. `on_reload` has a place of its
/// own, so that a reload never ends another callback.
///
/// Dropping it ends the tasks, not the commands.
#[derive(Debug)]
pub struct Callbacks {
    events: watch::Sender<Option<Call>>,
    reloads: watch::Sender<Option<Call>>,
}

impl Callbacks {
    /// Starts the two tasks; needs a running tokio.
    #[must_use]
    pub fn new() -> Self {
        let (events, event_calls) = watch::channel(None);
        let (reloads, reload_calls) = watch::channel(None);
        tokio::spawn(run_calls(event_calls, false));
        tokio::spawn(run_calls(reload_calls, true));
        Callbacks { events, reloads }
    }

    /// Calls `<command> <event> <role> <scope>`. `role`: Patroni's word; a promoted node is told `primary`.
    ///
    /// # Errors
    /// The command cannot be split into words.
    pub fn call(
        &self,
        command: &str,
        event: Event,
        role: &str,
        scope: &str,
    ) -> Result<(), Malformed> {
        let mut arguments = shell_split(command)?;
        arguments.extend([event.as_str().to_owned(), role.to_owned(), scope.to_owned()]);
        let slot = if event == Event::OnReload {
            &self.reloads
        } else {
            &self.events
        };
        slot.send_replace(Some(Call { arguments }));
        Ok(())
    }
}

impl Default for Callbacks {
    fn default() -> Self {
        Callbacks::new()
    }
}

/// Runs the calls of one slot until the sender is gone. A call that does not end when told to makes the next one wait.
async fn run_calls(mut calls: watch::Receiver<Option<Call>>, is_reload: bool) {
    let mut running: Option<(Child, Process)> = None;
    loop {
        let changed = match &mut running {
            Some((child, _)) => tokio::select! {
                status = child.wait() => {
                    tracing::debug!(?status, "callback ended");
                    running = None;
                    continue;
                }
                changed = calls.changed() => changed,
            },
            None => calls.changed().await,
        };
        if changed.is_err() {
            return;
        }
        if let Some((mut child, process)) = running.take() {
            if is_reload {
                let _ = process.signal(Signal::TERM);
            }
            tracing::warn!(
                pid = process.pid(),
                "a callback is still running; it is killed for the next one"
            );
            kill_tree(&process).await;
            let _ = child.wait().await;
        }
        let call = calls.borrow_and_update().clone();
        if let Some(call) = call {
            running = start(&call);
        }
    }
}

fn start(call: &Call) -> Option<(Child, Process)> {
    let mut command = command_of(&call.arguments)?;
    command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
    match command.spawn() {
        Ok(child) => {
            let process = child
                .id()
                .and_then(|pid| i32::try_from(pid).ok())
                .and_then(|pid| Process::open(pid).ok().flatten());
            process.map(|process| (child, process))
        }
        Err(error) => {
            tracing::warn!(callback = ?call.arguments, %error, "callback could not be started; check postgresql.callbacks");
            None
        }
    }
}

fn command_of(arguments: &[String]) -> Option<Command> {
    let (program, rest) = arguments.split_first()?;
    let mut command = Command::new(program);
    command
        .args(rest)
        .env_clear()
        .envs(child_environment())
        .stdin(Stdio::null());
    Some(command)
}

/// Why a hook that is waited for did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The configured text is no command.
    #[error("{setting}: {source}")]
    NoCommand {
        /// Which setting.
        setting: &'static str,
        /// What is wrong with it.
        source: Malformed,
    },
    /// It could not be started, or was cancelled.
    #[error("{setting}: {source}")]
    NotRun {
        /// Which setting.
        setting: &'static str,
        /// Why.
        source: ToolError,
    },
    /// It ended with an error.
    #[error("{setting}: the command ended with {status}: {stderr}")]
    Failed {
        /// Which setting.
        setting: &'static str,
        /// Exit code or signal.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// It took too long and was ended.
    #[error("{setting}: the command took longer than {} s and was ended", limit.as_secs_f32())]
    TooSlow {
        /// Which setting.
        setting: &'static str,
        /// The limit.
        limit: Duration,
    },
}

/// Runs a configured command and waits for its success. `extra`: arguments after the configured ones; `environment`: added variables.
///
/// It ends when `cancelled` completes or after `limit`, with all that it started.
///
/// # Errors
/// Anything but exit status 0.
pub async fn run(
    setting: &'static str,
    command: &str,
    extra: &[String],
    environment: &[(&str, String)],
    limit: Option<Duration>,
    cancelled: impl Future<Output = ()>,
) -> Result<(), HookError> {
    let mut arguments =
        shell_split(command).map_err(|source| HookError::NoCommand { setting, source })?;
    arguments.extend(extra.iter().cloned());
    let Some(mut prepared) = command_of(&arguments) else {
        let source = Malformed {
            kind: "command",
            text: command.to_owned(),
        };
        return Err(HookError::NoCommand { setting, source });
    };
    for (name, value) in environment {
        prepared.env(name, value);
    }
    let mut too_slow = false;
    let stop = async {
        match limit {
            Some(limit) => too_slow = tokio::time::timeout(limit, cancelled).await.is_err(),
            None => cancelled.await,
        }
    };
    let result = binaries::run_until(prepared, stop).await;
    match (result, limit) {
        (Ok(output), _) if output.status.success() => Ok(()),
        (Ok(output), _) => Err(HookError::Failed {
            setting,
            status: output.status,
            stderr: output.stderr.trim().to_owned(),
        }),
        (Err(ToolError::Cancelled { .. }), Some(limit)) if too_slow => {
            Err(HookError::TooSlow { setting, limit })
        }
        (Err(source), _) => Err(HookError::NotRun { setting, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..500 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never happened: {what}");
    }

    fn content(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    #[tokio::test]
    async fn a_callback_gets_event_role_and_scope() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        let callbacks = Callbacks::new();
        let command = format!("/bin/sh -c 'echo \"$0 $1 $2\" > {}'", out.display());
        callbacks
            .call(&command, Event::OnRoleChange, "primary", "demo")
            .unwrap();
        eventually("the callback wrote", || {
            content(&out) == "on_role_change primary demo\n"
        })
        .await;
        assert!(
            callbacks
                .call("'", Event::OnStart, "replica", "demo")
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_new_callback_ends_the_running_one_but_not_a_reload() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let callbacks = Callbacks::new();
        let slow = |name: &str| {
            format!(
                "/bin/sh -c 'echo $$ > {}; sleep 600 & wait'",
                path(name).display()
            )
        };
        let pid = |name: &str| content(&path(name)).trim().parse::<i32>().ok();
        callbacks
            .call(&slow("reload"), Event::OnReload, "primary", "demo")
            .unwrap();
        callbacks
            .call(&slow("start"), Event::OnStart, "primary", "demo")
            .unwrap();
        eventually("both run", || {
            pid("reload").is_some() && pid("start").is_some()
        })
        .await;
        let quick = format!("/bin/sh -c 'echo done > {}'", path("stop").display());
        callbacks
            .call(&quick, Event::OnStop, "primary", "demo")
            .unwrap();
        eventually("the last one ran", || content(&path("stop")) == "done\n").await;
        let is_alive = |name: &str| {
            Process::open(pid(name).unwrap())
                .unwrap()
                .is_some_and(|p| p.is_alive())
        };
        assert!(!is_alive("start"));
        assert!(is_alive("reload"));
        let reload = Process::open(pid("reload").unwrap()).unwrap().unwrap();
        kill_tree(&reload).await;
    }

    #[tokio::test]
    async fn a_hook_that_is_waited_for_reports_how_it_ended() {
        let never = std::future::pending::<()>;
        assert!(
            run("pre_promote", "/bin/true", &[], &[], None, never())
                .await
                .is_ok()
        );
        let environment = [("X", "y".to_owned())];
        assert!(
            run(
                "pre_promote",
                "/bin/sh -c 'test $X = y -a $0 = z'",
                &["z".into()],
                &environment,
                None,
                never()
            )
            .await
            .is_ok()
        );
        let failed = run(
            "pre_promote",
            "/bin/sh -c 'echo why >&2; exit 2'",
            &[],
            &[],
            None,
            never(),
        )
        .await
        .unwrap_err();
        assert!(
            failed
                .to_string()
                .contains("pre_promote: the command ended with exit status: 2: why"),
            "{failed}"
        );
        assert!(matches!(
            run("x", "/no/such/program", &[], &[], None, never()).await,
            Err(HookError::NotRun { .. })
        ));
        assert!(matches!(
            run("x", " ", &[], &[], None, never()).await,
            Err(HookError::NoCommand { .. })
        ));
        let limit = Some(Duration::from_millis(50));
        let slow = run("before_stop", "/bin/sleep 600", &[], &[], limit, never()).await;
        assert!(matches!(slow, Err(HookError::TooSlow { .. })), "{slow:?}");
        let cancelled = run(
            "before_stop",
            "/bin/sleep 600",
            &[],
            &[],
            None,
            std::future::ready(()),
        )
        .await;
        assert!(
            matches!(
                cancelled,
                Err(HookError::NotRun {
                    source: ToolError::Cancelled { .. },
                    ..
                })
            ),
            "{cancelled:?}"
        );
    }
}
