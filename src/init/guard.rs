//! The agent's side of the guard: it promises a deadline after every confirmed renewal of its lease, and init stops
//! PostgreSQL when the deadline comes without a new promise, whatever state the agent is in by then.
//!
//! Nothing here blocks: a full pipe means that init does not read, which is an error to report, not to wait for.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;

use super::message::Message;
use super::process::ProcessId;
use crate::types::Moment;

/// Tells the agent that its standard input is the guard's pipe; the value is init's pid, so that a stray copy of the
/// variable in some grandchild means nothing. A contract between two halves of one program, not a setting.
pub(super) const VARIABLE: &str = "HOWDAH_GUARD_PID";

/// Tells an agent which watchdog device its dead predecessor had armed. As private as the other one.
pub(super) const WATCHDOG_VARIABLE: &str = "HOWDAH_GUARD_WATCHDOG";

/// The watchdog device that this agent's predecessor died with: it counts on until somebody takes it over or disarms it.
#[must_use]
pub fn watchdog_left_armed() -> Option<PathBuf> {
    is_guarded()
        .then(|| std::env::var_os(WATCHDOG_VARIABLE))
        .flatten()
        .map(PathBuf::from)
}

/// Whether this process is an agent that init started: its parent is the process that the variable names.
#[must_use]
pub fn is_guarded() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|value| names_parent(&value))
}

fn names_parent(value: &OsStr) -> bool {
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
    parent.is_some_and(|parent| value == parent.as_str())
}

/// A promise that could not be handed over: init is gone or does not read.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach the guarding init process: {0}")]
pub struct GuardError(#[from] io::Error);

/// The handle on init. Cheap to clone; without init every call succeeds and does nothing.
#[derive(Debug, Clone)]
pub struct Guard {
    pipe: Option<Arc<Mutex<File>>>,
}

impl Guard {
    /// The guard of this process; call it first thing in the agent, before any child is started.
    ///
    /// Takes the pipe off standard input and puts /dev/null there, so that no child of the agent holds it.
    ///
    /// # Errors
    /// The pipe that init announced cannot be used.
    pub fn from_env() -> Result<Guard, GuardError> {
        if !is_guarded() {
            return Ok(Guard::none());
        }
        let pipe = io::stdin().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdin(File::open("/dev/null")?).map_err(io::Error::from)?;
        Guard::on(pipe)
    }

    /// No init above this process: nothing is guarded.
    #[must_use]
    pub fn none() -> Guard {
        Guard { pipe: None }
    }

    fn on(pipe: OwnedFd) -> Result<Guard, GuardError> {
        let flags = rustix::fs::fcntl_getfl(&pipe).map_err(io::Error::from)?;
        rustix::fs::fcntl_setfl(&pipe, flags | OFlags::NONBLOCK).map_err(io::Error::from)?;
        Ok(Guard {
            pipe: Some(Arc::new(Mutex::new(File::from(pipe)))),
        })
    }

    /// Whether somebody guards this process.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.pipe.is_some()
    }

    /// PostgreSQL may stay writable until `deadline`, and not longer. Arms the guard, or moves its deadline.
    ///
    /// `deadline` is the lease's end minus the margin for clock drift: the time the confirmed renewal was SENT + ttl − margin.
    /// The stop is complete before it: it begins [`super::QUIT_LEAD`] earlier.
    ///
    /// # Errors
    /// The promise was not handed over; the earlier one stands.
    pub fn promise(&self, deadline: Moment) -> Result<(), GuardError> {
        self.send(&Message::Promise(deadline))
    }

    /// This node is no primary any more (PostgreSQL is stopped or read-only): disarms the guard.
    ///
    /// # Errors
    /// Not handed over: the guard may still fire.
    pub fn release(&self) -> Result<(), GuardError> {
        self.send(&Message::Release)
    }

    /// The postmaster to stop. Call it whenever one has been started or found running.
    ///
    /// # Errors
    /// Not handed over, or no such process.
    pub fn watch(&self, postmaster: i32) -> Result<(), GuardError> {
        if self.pipe.is_none() {
            return Ok(());
        }
        let gone = || {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("no postmaster with pid {postmaster} runs"),
            )
        };
        self.send(&Message::Postmaster(
            ProcessId::of(postmaster).ok_or_else(gone)?,
        ))
    }

    /// Where the postmaster's lock file is, for the case that the agent dies before it can announce the postmaster.
    ///
    /// # Errors
    /// Not handed over.
    pub fn data_dir(&self, path: &Path) -> Result<(), GuardError> {
        self.send(&Message::DataDir(path.to_owned()))
    }

    /// The watchdog device that is armed now. If the agent dies and PostgreSQL is gone, init disarms it.
    ///
    /// # Errors
    /// Not handed over.
    pub fn watchdog(&self, armed: Option<&Path>) -> Result<(), GuardError> {
        self.send(&Message::Watchdog(armed.map(Path::to_owned)))
    }

    fn send(&self, message: &Message) -> Result<(), GuardError> {
        let Some(pipe) = &self.pipe else {
            return Ok(());
        };
        // One write: below PIPE_BUF a pipe takes all of it or nothing.
        let mut pipe = pipe.lock().unwrap_or_else(PoisonError::into_inner);
        pipe.write_all(format!("{message}\n").as_bytes())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::*;

    #[test]
    fn without_init_nothing_happens() {
        let guard = Guard::none();
        assert!(!guard.is_active());
        assert!(guard.promise(Moment(Duration::from_secs(1))).is_ok());
        assert!(guard.watch(i32::MAX).is_ok());
    }

    #[test]
    fn messages_arrive_as_lines_and_a_full_pipe_is_an_error() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let guard = Guard::on(write).unwrap();
        guard.promise(Moment(Duration::from_nanos(7))).unwrap();
        guard.release().unwrap();
        assert!(guard.watch(i32::MAX).is_err());
        let mut buffer = [0; 64];
        let mut read = File::from(read);
        let count = read.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"promise 7\nrelease\n");
        let full = (0..100_000)
            .find_map(|_| guard.release().err())
            .expect("an unread pipe fills up");
        assert_eq!(full.0.kind(), io::ErrorKind::WouldBlock);
        drop(read);
        assert_eq!(
            guard.release().unwrap_err().0.kind(),
            io::ErrorKind::BrokenPipe
        );
    }
}
