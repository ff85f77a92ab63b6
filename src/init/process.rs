//! Processes as /proc shows them: who is whose child, and a name for a process that a reused pid cannot take over.
//!
//! Reads only /proc; signals only through [`ProcessId::signal`], which checks first that the pid still means the same process.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// One process for good: its pid, and when it started (clock ticks since boot, field 22 of /proc/PID/stat).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId {
    /// Never 0 or negative.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start: u64,
}

impl ProcessId {
    /// The process that has this pid now; `None` when there is none (a zombie is none).
    #[must_use]
    pub fn of(pid: i32) -> Option<ProcessId> {
        let stat = Stat::read(pid)?;
        stat.runs().then_some(ProcessId {
            pid,
            start: stat.start,
        })
    }

    /// Whether this very process still runs; a zombie does not.
    #[must_use]
    pub fn is_alive(self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.runs() && stat.start == self.start)
    }

    /// Sends a signal if the process still runs; `false` when it does not, or may not be signalled.
    pub fn signal(self, signal: Signal) -> bool {
        self.is_alive()
            && Pid::from_raw(self.pid).is_some_and(|pid| kill_process(pid, signal).is_ok())
    }
}

/// What /proc/PID/stat says, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    state: char,
    parent: i32,
    start: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Stat> {
        Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The command's name may hold spaces and parentheses, so the fields count from the last `)`.
    fn parse(text: &str) -> Option<Stat> {
        let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        // Field 22; state is field 3, parent field 4.
        let start = fields.nth(17)?.parse().ok()?;
        Some(Stat {
            state,
            parent,
            start,
        })
    }

    fn runs(self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

/// All running children of a process.
pub(super) fn children_of(parent: i32) -> Vec<ProcessId> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let stat = Stat::read(pid)?;
            (stat.parent == parent && stat.runs()).then_some(ProcessId {
                pid,
                start: stat.start,
            })
        })
        .collect()
}

/// The running postmaster of a data directory, by its lock file; `None` unless the process it names works in that directory.
///
/// A postmaster changes into its data directory at start, which no other program with a reused pid does.
pub(super) fn postmaster_of(data_dir: &Path) -> Option<ProcessId> {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    // A standalone backend writes its pid with a minus sign.
    let pid = text
        .lines()
        .next()?
        .trim()
        .parse::<i32>()
        .ok()?
        .checked_abs()?;
    let process = ProcessId::of(pid)?;
    let works_in: PathBuf = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (works_in == fs::canonicalize(data_dir).ok()?).then_some(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_may_hold_anything() {
        let line = "77 (a) b (c) S 42 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 2 3";
        assert_eq!(
            Stat::parse(line),
            Some(Stat {
                state: 'S',
                parent: 42,
                start: 98765
            })
        );
        assert_eq!(Stat::parse("77 (x"), None);
    }

    #[test]
    fn this_process_is_alive_and_nobody_else_with_its_pid() {
        let me = i32::try_from(std::process::id()).unwrap();
        let id = ProcessId::of(me).unwrap();
        assert!(id.is_alive());
        assert!(
            !ProcessId {
                start: id.start + 1,
                ..id
            }
            .is_alive()
        );
    }

    #[test]
    fn a_lock_file_counts_only_if_its_process_works_in_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(postmaster_of(dir.path()), None);
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(dir.path())
            .spawn()
            .unwrap();
        let lock = dir.path().join("postmaster.pid");
        fs::write(&lock, format!("{}\n/somewhere\n", child.id())).unwrap();
        assert_eq!(
            postmaster_of(dir.path()).map(|p| p.pid.unsigned_abs()),
            Some(child.id())
        );
        fs::write(&lock, format!("{}\n", std::process::id())).unwrap();
        assert_eq!(postmaster_of(dir.path()), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
