//! Starts init with an agent, and lets a story look at it from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use howdah::clock;
use howdah::init::{self, Limits, Options};
use rustix::process::{Pid, Signal, kill_process};

/// Where init runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As PID 1 of a namespace of its own.
    Namespace,
    /// Under its ordinary pid.
    Subreaper,
}

/// The `init` part: `init DIR MODE…`.
pub(crate) fn play_init(args: &[String]) -> ExitCode {
    let agent = ["agent".to_owned()].into_iter().chain(args.iter().cloned());
    init::run(Options {
        program: std::env::current_exe().unwrap(),
        arg0: "agent-of-the-test".into(),
        args: agent.map(Into::into).collect(),
        data_dir: Some(Path::new(&args[0]).join("data")),
        container: None,
        limits: Limits {
            fast_stop: Duration::from_secs(2),
            ..Limits::default()
        },
    })
}

/// One running init.
pub(crate) struct Stage {
    outer: Child,
    pub(crate) dir: tempfile::TempDir,
    kind: Kind,
}

impl Stage {
    pub(crate) fn start(kind: Kind, mode: &[&str]) -> Stage {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        let me = std::env::current_exe().unwrap();
        let mut command = match kind {
            Kind::Subreaper => Command::new(&me),
            Kind::Namespace => {
                let mut unshare = Command::new("unshare");
                if !rustix::process::geteuid().is_root() {
                    unshare.args(["--user", "--map-root-user"]);
                }
                unshare
                    .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
                    .arg(&me);
                unshare
            }
        };
        let log = fs::File::create(dir.path().join("log")).unwrap();
        command
            .arg("init")
            .arg(dir.path())
            .args(mode)
            .stdin(Stdio::null())
            .stderr(log);
        Stage {
            outer: command.spawn().unwrap(),
            dir,
            kind,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Init's pid as seen from here.
    fn init(&self) -> Pid {
        let outer = i32::try_from(self.outer.id()).unwrap();
        let pid = match self.kind {
            Kind::Subreaper => outer,
            Kind::Namespace => only_child(outer),
        };
        Pid::from_raw(pid).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.init(), signal).unwrap();
    }

    /// Signals the agent itself, behind init's back.
    pub(crate) fn signal_agent(&self, signal: Signal) {
        let name = self.dir.path().to_str().unwrap().to_owned();
        let agents =
            processes(|line| line.starts_with("agent-of-the-test") && line.contains(&name));
        assert_eq!(agents.len(), 1, "one agent runs");
        kill_process(Pid::from_raw(agents[0]).unwrap(), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_until("init ends", 20, || self.outer.try_wait().unwrap().is_some());
        self.outer.wait().unwrap()
    }

    pub(crate) fn ends_with(&mut self, status: i32) {
        let ended = self.wait();
        assert_eq!(ended.code(), Some(status), "the log:\n{}", self.log());
    }

    /// Waits until the agent has left a whole line in a file of this name.
    pub(crate) fn await_file(&self, name: &str) {
        wait_until(&format!("{name} appears"), 20, || {
            fs::read_to_string(self.path(name)).is_ok_and(|text| text.ends_with('\n'))
        });
    }

    pub(crate) fn await_log(&self, text: &str) {
        wait_until(&format!("the log says {text:?}"), 20, || {
            self.log().contains(text)
        });
    }

    /// Whether a process of this story's fake PostgreSQL runs.
    pub(crate) fn postgres_runs(&self) -> bool {
        let name = self.path("data").to_str().unwrap().to_owned();
        !processes(|line| line.starts_with("sh") && line.contains(&name)).is_empty()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- log of init\n{}---", self.log());
        }
        // SIGKILL to PID 1 takes its namespace along; as a subreaper it leaves its children behind.
        let name = self.dir.path().to_str().unwrap().to_owned();
        let _ = self.outer.kill();
        let _ = self.outer.wait();
        let data = self.path("data");
        let strays = processes(|_| true).into_iter().filter(|pid| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|works_in| works_in == data)
        });
        for pid in strays.chain(processes(|line| line.contains(&name))) {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
    }
}

fn only_child(of: i32) -> i32 {
    let path = format!("/proc/{of}/task/{of}/children");
    wait_until("unshare starts init", 10, || {
        fs::read_to_string(&path).is_ok_and(|text| !text.trim().is_empty())
    });
    fs::read_to_string(path)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// The pids of the running processes whose command line (arguments joined by spaces) is wanted.
fn processes(wanted: impl Fn(&str) -> bool) -> Vec<i32> {
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        wanted(&String::from_utf8_lossy(&line).replace('\0', " "))
    })
    .collect()
}

pub(crate) fn wait_until(what: &str, seconds: u64, mut condition: impl FnMut() -> bool) {
    let end = clock::now() + Duration::from_secs(seconds);
    while !condition() {
        assert!(
            clock::now() < end,
            "waited {seconds} s in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
