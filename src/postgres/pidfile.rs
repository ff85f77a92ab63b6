//! `postmaster.pid`: what it says, and whether the process it names is our postmaster (spec §3.1).
//!
//! The file outlives a crash, and in a container the pids of the next run start from 1 again, so the pid alone proves
//! nothing. The proof is the working directory: a server lives in its data directory from before it writes the file.
//! The file is never deleted here.

use std::fs;
use std::path::{Path, PathBuf};

use super::Settings;
use super::process::{Identity, Postmaster, Process, Stat, executable, is_server};

/// How far the recorded start time may be from the process's own (spec §3.1).
const START_TIME_TOLERANCE: i64 = 3;

/// The lines of `postmaster.pid`; those the server has not written yet are `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PidFile {
    /// The postmaster, or a single-user server (recorded as a negative number).
    pub pid: i32,
    /// It is a single-user server.
    pub single_user: bool,
    /// Its data directory as it was given.
    pub data_dir: Option<PathBuf>,
    /// Start time in seconds since 1970.
    pub start_time: Option<i64>,
    /// Its port.
    pub port: Option<u16>,
    /// The first Unix socket directory, if any.
    pub socket_dir: Option<PathBuf>,
    /// The first listen address, if any.
    pub listen_address: Option<String>,
    /// How far it is; from 10 on.
    pub status: Option<Status>,
}

/// The last line of `postmaster.pid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Not accepting connections yet.
    Starting,
    /// In recovery with `hot_standby` off: up, and will not accept connections before it is promoted.
    Standby,
    /// Accepts connections.
    Ready,
    /// Asked to stop.
    Stopping,
}

impl PidFile {
    /// Reads it; `None` if there is none or it has no pid (yet).
    #[must_use]
    pub fn read(data_dir: &Path) -> Option<PidFile> {
        PidFile::parse(&fs::read_to_string(data_dir.join("postmaster.pid")).ok()?)
    }

    fn parse(text: &str) -> Option<PidFile> {
        let mut lines = text.lines().map(str::trim_end);
        let pid: i32 = lines.next()?.trim().parse().ok()?;
        let mut line = || lines.next().filter(|line| !line.is_empty());
        let data_dir = line().map(PathBuf::from);
        let start_time = line().and_then(|l| l.parse().ok());
        let port = line().and_then(|l| l.parse().ok());
        let socket_dir = line().map(PathBuf::from);
        let listen_address = line().map(str::to_owned);
        let _shared_memory = line();
        let status = match line() {
            Some("starting") => Some(Status::Starting),
            Some("standby") => Some(Status::Standby),
            Some("ready") => Some(Status::Ready),
            Some("stopping") => Some(Status::Stopping),
            _ => None,
        };
        (pid != 0).then_some(PidFile {
            pid: pid.checked_abs()?,
            single_user: pid < 0,
            data_dir,
            start_time,
            port,
            socket_dir,
            listen_address,
            status,
        })
    }
}

/// Who holds the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nobody: there is no lock file.
    None,
    /// The lock file was left behind.
    Stale {
        /// The pid in it.
        pid: i32,
        /// Some other process has that pid now.
        alive: bool,
    },
    /// A single-user server.
    SingleUser(i32),
    /// Our postmaster.
    Postmaster(Postmaster),
}

/// Finds the postmaster of this data directory, whoever started it.
#[must_use]
pub fn find(settings: &Settings) -> Found {
    let Some(file) = PidFile::read(&settings.data_dir) else {
        return Found::None;
    };
    let stale = |alive| Found::Stale {
        pid: file.pid,
        alive,
    };
    let process = match Process::open(file.pid) {
        Ok(Some(process)) => process,
        Ok(None) => return stale(false),
        Err(error) => {
            tracing::warn!(pid = file.pid, %error, "cannot open the process named by postmaster.pid");
            return stale(true);
        }
    };
    if !is_ours(settings, &file, &process) {
        stale(true)
    } else if file.single_user {
        Found::SingleUser(file.pid)
    } else {
        Found::Postmaster(process.collecting())
    }
}

fn is_ours(settings: &Settings, file: &PidFile, process: &Process) -> bool {
    let pid = process.pid();
    let myself = std::process::id();
    let family = [Some(myself), Some(std::os::unix::process::parent_id())];
    if family.contains(&u32::try_from(pid).ok()) {
        return false;
    }
    let same_start = file
        .start_time
        .zip(start_time(pid))
        .is_some_and(|(recorded, actual)| (recorded - actual).abs() < START_TIME_TOLERANCE);
    let server = executable(pid).map(|program| is_server(settings, &program));
    let directory = Identity::of(Path::new(&format!("/proc/{pid}/cwd")));
    match (directory, server) {
        (Some(directory), server) => {
            Identity::of(&settings.data_dir) == Some(directory)
                && (same_start || server == Some(true))
        }
        (None, Some(true)) if !same_start => {
            tracing::warn!(
                pid,
                "postmaster.pid names a PostgreSQL server whose working directory cannot be read; taking it for ours"
            );
            true
        }
        (None, _) => same_start,
    }
}

/// When a process started, in seconds since 1970.
fn start_time(pid: i32) -> Option<i64> {
    let stat = Stat::read(pid)?;
    let boot: i64 = fs::read_to_string("/proc/stat")
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    Some(boot + i64::try_from(stat.started / ticks).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str =
        "4711\n/data/pg\n1763845507\n5433\n/run/postgresql\n*\n  1234567    98304\nready   \n";

    #[test]
    fn a_complete_file() {
        let file = PidFile::parse(FULL).unwrap();
        assert_eq!(
            (file.pid, file.single_user, file.port),
            (4711, false, Some(5433))
        );
        assert_eq!(file.data_dir.as_deref(), Some(Path::new("/data/pg")));
        assert_eq!(
            (file.start_time, file.status),
            (Some(1_763_845_507), Some(Status::Ready))
        );
    }

    #[test]
    fn a_file_in_the_making_or_an_old_one() {
        let file = PidFile::parse("4711\n/data/pg\n1763845507\n5433\n\n\n").unwrap();
        assert_eq!((file.socket_dir, file.status), (None, None));
        assert!(PidFile::parse("").is_none());
        let single = PidFile::parse("-4711\n/data/pg\n").unwrap();
        assert!(single.single_user && single.pid == 4711);
    }

    #[test]
    fn a_process_elsewhere_is_not_our_postmaster() {
        let home = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let pid = child.id();
        let now = start_time(pid as i32).unwrap();
        let settings = Settings {
            data_dir: home.path().to_owned(),
            ..Settings::for_tests()
        };
        fs::write(
            home.path().join("postmaster.pid"),
            format!("{pid}\n{}\n{now}\n", home.path().display()),
        )
        .unwrap();
        let found = find(&settings);
        let me = std::process::id();
        fs::write(home.path().join("postmaster.pid"), format!("{me}\n")).unwrap();
        let myself = find(&settings);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(
            found,
            Found::Stale {
                pid: pid as i32,
                alive: true
            },
            "same start time, other directory"
        );
        assert_eq!(
            myself,
            Found::Stale {
                pid: me as i32,
                alive: true
            }
        );
    }
}
