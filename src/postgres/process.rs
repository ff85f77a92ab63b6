//! Processes by handle: a pid, its start time and a pidfd, so that a reused pid is never mistaken or signalled.
//!
//! The postmaster is a plain child in a process group of its own, started through the standard library and never waited
//! for by the runtime. That is enough for it to outlive the agent: an orphan is adopted by init, nothing kills it, and
//! terminal signals do not reach its group. While the agent lives, the exit of its own child is collected here
//! ([`Process::exited`], [`Process::is_alive`]) through the pidfd; for an adopted postmaster that call finds no child and
//! is harmless. So one handle serves both kinds, and no intermediate process, no `setsid` and no unsafe code is needed.
//!
//! The server sets its own umask from the data directory's mode (spec §2.2), so none is passed on.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use super::Settings;
use super::binaries::child_environment;
use super::pidfile::{self, Found};
use super::watch;
use crate::clock;
use crate::types::Moment;

/// One process, child or not.
#[derive(Debug, Clone)]
pub struct Process {
    pid: Pid,
    started: u64,
    pidfd: Arc<OwnedFd>,
    collect: bool,
}

/// The postmaster is a process like others; the name says which one a function wants.
pub type Postmaster = Process;

impl PartialEq for Process {
    /// Same pid and same start time.
    fn eq(&self, other: &Self) -> bool {
        self.pid == other.pid && self.started == other.started
    }
}

impl Eq for Process {}

impl Process {
    /// A handle of a live process; `None` if there is none (a zombie counts as none).
    ///
    /// # Errors
    /// The kernel refuses a pidfd for another reason (descriptor limit, too old).
    pub fn open(pid: i32) -> io::Result<Option<Process>> {
        let Some(pid) = Pid::from_raw(pid).filter(|pid| pid.as_raw_nonzero().get() > 0) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Read after the pidfd was opened: as long as the process lives, this is its own start time.
        let Some(stat) = Stat::read(pid.as_raw_nonzero().get()) else {
            return Ok(None);
        };
        let process = Process {
            pid,
            started: stat.started,
            pidfd: Arc::new(pidfd),
            collect: false,
        };
        Ok(process.is_alive().then_some(process))
    }

    /// The same, collecting the exit status if it turns out to be our child. Not for children that somebody waits for.
    #[must_use]
    pub(super) fn collecting(mut self) -> Process {
        self.collect = true;
        self
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Start time in clock ticks since boot, as `/proc` counts them.
    #[must_use]
    pub fn started(&self) -> u64 {
        self.started
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&*self.pidfd, PollFlags::IN)];
        let now = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let ended = poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0);
        if ended {
            self.collect();
        }
        !ended
    }

    /// Blocks until it has ended, or until then; whether it has.
    fn gone_by(&self, until: Moment) -> bool {
        let left = until.since(clock::now());
        let left = rustix::time::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&*self.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&left)).is_ok_and(|ready| ready > 0)
    }

    /// Completes when it has ended; at once if it already has.
    pub async fn exited(&self) {
        // A descriptor of its own per waiter: epoll accepts one registration per descriptor.
        let registered = self.pidfd.try_clone().and_then(watch::readable);
        if let Ok(fd) = registered {
            while self.is_alive() {
                match fd.readable().await {
                    Ok(mut guard) => guard.clear_ready(),
                    Err(_) => break,
                }
            }
        }
        // Only reached with work to do when the descriptor could not be registered.
        while self.is_alive() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends a signal; `false` if it has already ended.
    ///
    /// # Errors
    /// Not permitted.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        match pidfd_send_signal(&*self.pidfd, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Its command line as `/proc` shows it: for PostgreSQL's children their title. Arguments separated by NUL.
    #[must_use]
    pub fn command_line(&self) -> Option<String> {
        let raw = fs::read(format!("/proc/{}/cmdline", self.pid())).ok()?;
        self.is_alive()
            .then(|| String::from_utf8_lossy(&raw).into_owned())
    }

    /// Its living children.
    #[must_use]
    pub fn children(&self) -> Vec<Process> {
        scan()
            .into_iter()
            .filter(|stat| stat.parent == self.pid())
            .filter_map(|stat| stat.handle())
            .collect()
    }

    /// Its living descendants, nearest first.
    #[must_use]
    pub fn descendants(&self) -> Vec<Process> {
        let all = scan();
        let mut parents = vec![self.pid()];
        let mut found = Vec::new();
        let mut next = 0;
        while let Some(parent) = parents.get(next).copied() {
            next += 1;
            for stat in all.iter().filter(|stat| stat.parent == parent) {
                if !parents.contains(&stat.pid) {
                    parents.push(stat.pid);
                    found.extend(stat.handle());
                }
            }
        }
        found
    }

    /// Collects the exit status if it is our child, so that no zombie stays.
    fn collect(&self) {
        if !self.collect {
            return;
        }
        use rustix::fd::AsFd;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), options);
    }
}

/// The part of `/proc/<pid>/stat` that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) state: char,
    pub(super) started: u64,
}

impl Stat {
    pub(super) fn read(pid: i32) -> Option<Stat> {
        let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Stat::parse(&String::from_utf8_lossy(&text))
    }

    /// `pid (name) state parent …`; the name may hold blanks and parentheses.
    fn parse(text: &str) -> Option<Stat> {
        let (pid, rest) = text.split_once(" (")?;
        let (_, rest) = rest.rsplit_once(") ")?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let started = fields.nth(17)?.parse().ok()?;
        Some(Stat {
            pid: pid.parse().ok()?,
            parent,
            state,
            started,
        })
    }

    fn handle(&self) -> Option<Process> {
        let process = Process::open(self.pid).ok().flatten()?;
        (process.started == self.started).then_some(process)
    }
}

/// All processes that are not zombies.
fn scan() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Stat::read)
        .filter(|stat| stat.state != 'Z' && stat.state != 'X')
        .collect()
}

/// Kills a process and everything below it, and waits until all are gone. The process is stopped first, so that it
/// cannot start more while its descendants are listed (spec §15).
pub async fn kill_tree(process: &Process) {
    let _ = process.signal(Signal::STOP);
    let below = process.descendants();
    let _ = process.signal(Signal::KILL);
    kill_all(&below).await;
    process.exited().await;
}

/// Like [`kill_tree`] for where nobody can wait, as in a destructor: blocks until all are gone, at most for `limit`. What is killed
/// ends within milliseconds, unless a disk does not answer it.
pub(super) fn kill_tree_now(process: &Process, limit: Duration) {
    let _ = process.signal(Signal::STOP);
    let mut all = process.descendants();
    all.push(process.clone());
    for process in &all {
        let _ = process.signal(Signal::KILL);
    }
    let until = clock::now() + limit;
    for process in &all {
        process.gone_by(until);
    }
}

/// Kills all of them and waits until they are gone.
pub async fn kill_all(processes: &[Process]) {
    for process in processes {
        let _ = process.signal(Signal::KILL);
    }
    for process in processes {
        process.exited().await;
    }
}

/// Processes of a server on this data directory that no postmaster of ours accounts for: what a killed postmaster leaves
/// behind. A backend that is busy does not notice the death of its postmaster at once and may still commit, so a node is
/// not down before this list is empty.
///
/// Recognised by their working directory (the server and all its children live in the data directory) and by running the
/// same program as configured or a program called `postgres`.
#[must_use]
pub fn survivors(settings: &Settings) -> Vec<Process> {
    let Some(home) = Identity::of(&settings.data_dir) else {
        return Vec::new();
    };
    scan()
        .into_iter()
        .filter(|stat| {
            Identity::of(Path::new(&format!("/proc/{}/cwd", stat.pid))) == Some(home)
                && executable(stat.pid).is_some_and(|exe| is_server(settings, &exe))
        })
        .filter_map(|stat| stat.handle())
        .collect()
}

/// Which directory a path leads to, however it is spelled or mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity(u64, u64);

impl Identity {
    pub(super) fn of(path: &Path) -> Option<Identity> {
        let metadata = fs::metadata(path).ok()?;
        Some(Identity(metadata.dev(), metadata.ino()))
    }
}

/// The program a process runs, without the mark of a replaced file.
pub(super) fn executable(pid: i32) -> Option<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    match path.to_str().and_then(|p| p.strip_suffix(" (deleted)")) {
        Some(path) => Some(PathBuf::from(path)),
        None => Some(path),
    }
}

/// Whether a program is a PostgreSQL server by its name.
pub(super) fn is_server(settings: &Settings, program: &Path) -> bool {
    let configured = settings.program("postgres");
    program.file_name().is_some_and(|name| {
        Some(name) == configured.file_name() || name == "postgres" || name == "postmaster"
    })
}

/// Why no postmaster was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// One is running on this data directory.
    #[error("PostgreSQL is already running on this data directory (pid {})", .0.pid())]
    AlreadyRunning(Postmaster),
    /// A single-user server holds the data directory.
    #[error("a single-user PostgreSQL (pid {0}) holds the data directory; wait for it or end it")]
    SingleUser(i32),
    /// Processes of an earlier postmaster are still there.
    #[error("{} processes of an earlier postmaster still run in the data directory", .0.len())]
    Survivors(Vec<Process>),
    /// The program could not be started.
    #[error("cannot start {program}: {source}; check postgresql.bin_dir")]
    Unstartable {
        /// Its path.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Starts a postmaster: `postgres -D <data_dir> --config-file=<…>` and `arguments` (`--name=value`, spec/configuration.md
/// §5.1). Returns as soon as the process exists; `ready` says when it accepts connections.
///
/// The server's output goes where the agent's goes. If the agent protects itself from the kernel's memory killer, the
/// postmaster inherits that, and the backends are told to give it up.
///
/// # Errors
/// [`StartError`]; nothing was started then.
pub fn start(settings: &Settings, arguments: &[String]) -> Result<Postmaster, StartError> {
    let stale = match pidfile::find(settings) {
        Found::Postmaster(running) => return Err(StartError::AlreadyRunning(running)),
        Found::SingleUser(pid) => return Err(StartError::SingleUser(pid)),
        Found::Stale { alive: true, pid } => Some(pid),
        Found::Stale { alive: false, .. } | Found::None => None,
    };
    let survivors = survivors(settings);
    if !survivors.is_empty() {
        return Err(StartError::Survivors(survivors));
    }

    let program = settings.program("postgres");
    let mut command = std::process::Command::new(&program);
    command
        .arg("-D")
        .arg(&settings.data_dir)
        .arg(format!(
            "--config-file={}",
            settings.config_file().display()
        ))
        .args(arguments)
        .env_clear()
        .envs(child_environment())
        .stdin(Stdio::null())
        .process_group(0);
    if let Some(pid) = stale {
        // The lock file names a living stranger: the server ignores a lock held by its "grandparent" (spec §3.3).
        command.env("PG_GRANDPARENT_PID", pid.to_string());
    }
    let protected = fs::read_to_string("/proc/self/oom_score_adj")
        .is_ok_and(|text| text.trim().parse::<i32>().is_ok_and(|score| score < 0));
    if protected {
        command.env("PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj");
        command.env("PG_OOM_ADJUST_VALUE", "0");
    }

    let failed = |source| StartError::Unstartable {
        program: program.clone(),
        source,
    };
    let child = command.spawn().map_err(failed)?;
    // Not collected before this handle exists, so the pid cannot have been reused.
    let pid = i32::try_from(child.id()).map_err(|e| failed(io::Error::other(e)))?;
    match Process::open(pid).map_err(failed)? {
        Some(postmaster) => {
            tracing::info!(pid, "postmaster started");
            Ok(postmaster.collecting())
        }
        None => Err(failed(io::Error::other(
            "it ended at once; see its log output",
        ))),
    }
}

/// Asks a postmaster to re-read its configuration; `false` if it has ended.
///
/// # Errors
/// Not permitted.
pub fn reload(postmaster: &Postmaster) -> io::Result<bool> {
    postmaster.signal(Signal::HUP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_wicked_name() {
        let line = "42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(
            (stat.pid, stat.parent, stat.state, stat.started),
            (42, 7, 'S', 98765)
        );
    }

    #[tokio::test]
    #[expect(clippy::zombie_processes, reason = "that none stays is what is tested")]
    async fn a_child_is_collected_through_its_pidfd() {
        let child = std::process::Command::new("/bin/sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let process = Process::open(child.id() as i32)
            .unwrap()
            .unwrap()
            .collecting();
        assert!(process.is_alive());
        assert!(process.signal(Signal::KILL).unwrap());
        process.exited().await;
        assert!(Stat::read(process.pid()).is_none(), "no zombie stays");
        assert!(!process.signal(Signal::KILL).unwrap());
        assert!(Process::open(process.pid()).unwrap().is_none());
    }

    #[tokio::test]
    #[expect(clippy::zombie_processes, reason = "collected through the pidfd")]
    async fn the_whole_tree_is_killed() {
        let child = std::process::Command::new("/bin/sh")
            .args(["-c", "sh -c 'sleep 600; true' & sleep 600; true"])
            .spawn()
            .unwrap();
        let process = Process::open(child.id() as i32)
            .unwrap()
            .unwrap()
            .collecting();
        let mut below = process.descendants();
        while below.len() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            below = process.descendants();
        }
        kill_tree(&process).await;
        assert!(below.iter().all(|p| !p.is_alive()));
    }
}
