//! Promoting a standby, as `pg_ctl promote` does it, and seeing it through (spec §5).
//!
//! One trap shapes this file. The startup process of a standby that has just lost its primary can swallow the wake-up of a
//! promotion and then sleep a whole `wal_retrieve_retry_interval` (5 s by default). Two remedies, both harmless: stop
//! the WAL receiver before promoting ([`cut_receiver`]), and nudge the startup process until the promotion shows
//! ([`finished`]). Neither needs a connection to the server.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::Signal;

use super::Settings;
use super::control::{self, ControlState};
use super::process::{self, Postmaster, Process};

/// How long [`cut_receiver`] waits for the WAL receiver to go.
pub const CUT_LIMIT: Duration = Duration::from_millis(500);

/// The first nudge comes after this time, the next ones after twice the time before, up to a second.
const NUDGE: Duration = Duration::from_millis(20);

/// The file that tells a signalled postmaster to promote.
const TRIGGER: &str = "promote";

/// Why a promotion did not start.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// The postmaster has ended.
    #[error("cannot promote: PostgreSQL is not running")]
    NotRunning,
    /// It is no standby.
    #[error("cannot promote: PostgreSQL is not in recovery ({0:?})")]
    NotInRecovery(ControlState),
    /// The control file cannot be read.
    #[error("cannot promote: {0}")]
    Control(#[from] control::ControlError),
    /// The trigger file cannot be written or the postmaster not be signalled.
    #[error("cannot promote: {0}")]
    Io(#[from] io::Error),
}

/// How a promotion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promoted {
    /// The control file says "in production": it accepts writes.
    InProduction,
    /// The postmaster has ended.
    Exited,
}

/// Tells the server to leave recovery. Returns as soon as it has been told; from then on it cannot be taken back.
///
/// # Errors
/// [`PromoteError`]; the server goes on as a standby then.
pub async fn promote(settings: &Settings, postmaster: &Postmaster) -> Result<(), PromoteError> {
    let control = control::read(settings).await?;
    if control.state != ControlState::InArchiveRecovery {
        return Err(PromoteError::NotInRecovery(control.state));
    }
    let trigger = settings.data_dir.join(TRIGGER);
    fs::write(&trigger, "")?;
    let told = postmaster.signal(Signal::USR1);
    if !matches!(told, Ok(true)) {
        // Left in place it would promote the standby at its next start.
        let _ = fs::remove_file(&trigger);
    }
    match told? {
        true => Ok(()),
        false => Err(PromoteError::NotRunning),
    }
}

/// Waits until a promotion that was started is through. How long that takes depends on how much there is to replay: bound
/// it with a timeout; dropping it does not stop the promotion.
pub async fn finished(settings: &Settings, postmaster: &Postmaster) -> Promoted {
    let mut watch = control::watch(settings);
    let mut pause = NUDGE;
    let mut nudge = std::pin::pin!(tokio::time::sleep(pause));
    loop {
        let alive = postmaster.is_alive();
        if control::read(settings)
            .await
            .is_ok_and(|control| control.state == ControlState::InProduction)
        {
            return Promoted::InProduction;
        }
        if !alive {
            return Promoted::Exited;
        }
        tokio::select! {
            () = watch.changed() => {}
            () = postmaster.exited() => {}
            () = &mut nudge => {
                // Re-reading its configuration wakes it; where it was not asleep nothing else happens.
                for startup in titled(postmaster, "startup") {
                    let _ = startup.signal(Signal::HUP);
                }
                pause = (pause * 2).min(Duration::from_secs(1));
                nudge.set(tokio::time::sleep(pause));
            }
        }
    }
}

/// Stops a standby's WAL receiver for good: `rewrite` removes `primary_conninfo` from the configuration, the server
/// re-reads it, and the receiver goes. Returns whether it has gone within [`CUT_LIMIT`].
///
/// From 13 on; older servers need a restart for this setting.
///
/// # Errors
/// Whatever `rewrite` returns, or the postmaster may not be signalled.
pub async fn cut_receiver(
    postmaster: &Postmaster,
    rewrite: impl Future<Output = io::Result<()>>,
) -> io::Result<bool> {
    rewrite.await?;
    if !process::reload(postmaster)? {
        return Ok(true);
    }
    let gone = async {
        let mut quiet = 0;
        // Seen gone twice: one that was already being started with the old setting appears in between.
        while quiet < 2 {
            let receivers = receivers(postmaster);
            quiet = if receivers.is_empty() { quiet + 1 } else { 0 };
            for receiver in receivers {
                receiver.exited().await;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    Ok(tokio::time::timeout(CUT_LIMIT, gone).await.is_ok())
}

/// The WAL receiver's process; more than one only for an instant.
#[must_use]
pub fn receivers(postmaster: &Postmaster) -> Vec<Process> {
    let mut found = titled(postmaster, "walreceiver");
    found.extend(titled(postmaster, "wal receiver process"));
    found
}

/// The postmaster's children with this title.
fn titled(postmaster: &Postmaster, name: &str) -> Vec<Process> {
    let is_titled = |child: &Process| {
        child.command_line().is_some_and(|title| {
            title.strip_prefix("postgres: ").is_some_and(|rest| {
                let mut at_part = std::iter::once(rest).chain(
                    rest.match_indices(": ")
                        .filter_map(|(at, _)| rest.get(at + 2..)),
                );
                at_part.any(|part| {
                    part.strip_prefix(name)
                        .is_some_and(|more| matches!(more.chars().next(), None | Some(' ' | '\0')))
                })
            })
        })
    };
    let mut children = postmaster.children();
    children.retain(is_titled);
    children
}
