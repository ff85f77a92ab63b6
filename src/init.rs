//! PID 1: starts the agent, reaps every orphan, forwards signals, starts a crashed agent again without touching PostgreSQL,
//! and guards the agent's lease: when the promised deadline comes without a new promise, PostgreSQL is stopped before it,
//! whether the agent is slow, stopped, dead or wedged.
//!
//! One thread, no runtime, no configuration, no network, no memory that grows. It never starts PostgreSQL and never decides
//! who leads. Outside a container the agent runs alone under its own pid, unless the guard is asked for; then init is a
//! subreaper and otherwise does the same.
//!
//! How the container ends: see [`run`].

mod container;
mod fence;
mod guard;
mod message;
mod process;
mod restart;
mod watchdog;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use signal_hook::consts::signal as number;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

pub use container::Container;
pub use fence::{KILL_LEAD, QUIT_LEAD};
pub use guard::{Guard, GuardError, is_guarded, watchdog_left_armed};
pub use process::ProcessId;

use crate::clock;
use crate::types::Moment;
use fence::Stop;
use message::{Lines, Message};
use restart::{Crashes, Ended};

/// The container's status when the guard had to stop PostgreSQL and no agent came back to take charge of it.
pub const EXIT_FENCED: u8 = 75;
/// The status when init itself cannot work.
const EXIT_INIT_FAILED: u8 = 70;

/// What is passed on to the agent (spec/packaging.md §1.2).
const FORWARDED: [(i32, Signal, &str); 7] = [
    (number::SIGHUP, Signal::HUP, "SIGHUP"),
    (number::SIGQUIT, Signal::QUIT, "SIGQUIT"),
    (number::SIGUSR1, Signal::USR1, "SIGUSR1"),
    (number::SIGUSR2, Signal::USR2, "SIGUSR2"),
    (number::SIGINT, Signal::INT, "SIGINT"),
    (number::SIGABRT, Signal::ABORT, "SIGABRT"),
    (number::SIGTERM, Signal::TERM, "SIGTERM"),
];

/// What to run and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The agent's program: as a rule this very binary (`std::env::current_exe`).
    pub program: PathBuf,
    /// The name to call it by, which decides what it is.
    pub arg0: OsString,
    /// Its arguments, without the name.
    pub args: Vec<OsString>,
    /// PostgreSQL's data directory, if known already; the agent tells it otherwise.
    pub data_dir: Option<PathBuf>,
    /// The container's layout; only with it are owners changed, privileges dropped and directories made.
    pub container: Option<Container>,
    /// Bounds.
    pub limits: Limits,
}

/// The bounds of restarting and stopping.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The crash within `crash_window` at which init gives up.
    pub crashes: usize,
    /// See `crashes`.
    pub crash_window: Duration,
    /// How long a fast stop of a PostgreSQL without an agent may take before it is killed.
    pub fast_stop: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            crashes: 5,
            crash_window: Duration::from_secs(60),
            fast_stop: Duration::from_secs(60),
        }
    }
}

/// Runs the agent until it is finished, and returns what the container ends with:
///
/// | status | meaning |
/// | --- | --- |
/// | 0 | the agent ended normally |
/// | the agent's own | it gave up (64: a configuration that cannot be used, 1: foreign data directory, …), or crashed too often |
/// | 128 + signal | the agent was killed by that signal, too often or while stopping |
/// | 75 | the guard stopped PostgreSQL, and no agent recovered |
/// | 70 | init itself could not work |
///
/// A PostgreSQL that is left running is stopped fast before PID 1 ends, since the kernel would kill it otherwise.
#[must_use]
pub fn run(options: Options) -> ExitCode {
    match Init::new(options).and_then(|mut init| init.run()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            say("ERROR", &format!("init cannot work: {error:#}"));
            ExitCode::from(EXIT_INIT_FAILED)
        }
    }
}

/// One line in the log's default format. Init has no logger of its own, so that it depends on nothing.
fn say(level: &str, text: &str) {
    let now = chrono::DateTime::from_timestamp_millis(clock::wall().0).unwrap_or_default();
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(
        io::stderr(),
        "{} {level}: {text}",
        now.format("%Y-%m-%d %H:%M:%S,%3f")
    );
}

#[derive(Debug)]
enum Agent {
    Running(Pid),
    /// Dead, to be started again at this moment.
    Due(Moment),
    Gone,
}

/// The end: the status, and PostgreSQL's stop as long as it takes.
#[derive(Debug)]
struct End {
    status: u8,
    stop: Option<Stop>,
}

struct Init {
    options: Options,
    environment: Vec<(OsString, OsString)>,
    is_pid1: bool,
    signals: SignalDelivery<UnixStream, SignalOnly>,
    timer: OwnedFd,
    agent: Agent,
    /// The read end; a new one for each agent, so that no half line of a dead one is left over.
    pipe: Option<File>,
    lines: Lines,
    crashes: Crashes,
    postmaster: Option<ProcessId>,
    data_dir: Option<PathBuf>,
    /// The watchdog device that the agent has armed.
    watchdog: Option<PathBuf>,
    /// The promise in force.
    deadline: Option<Moment>,
    fencing: Option<Stop>,
    /// The guard fired, and nobody has taken charge since.
    fenced: bool,
    /// SIGTERM or SIGINT has come: whatever dies now is not started again.
    told_to_stop: bool,
    end: Option<End>,
}

impl Init {
    fn new(options: Options) -> anyhow::Result<Init> {
        let is_pid1 = std::process::id() == 1;
        let (read, write) = UnixStream::pair()?;
        let wanted = FORWARDED
            .iter()
            .map(|(number, ..)| *number)
            .chain([number::SIGCHLD]);
        let signals = SignalDelivery::with_pipe(read, write, SignalOnly, wanted)?;
        let environment = match &options.container {
            Some(container) => container.prepare(&options.arg0, &options.args)?,
            None => Vec::new(),
        };
        if !is_pid1 {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        }
        Ok(Init {
            crashes: Crashes::new(options.limits.crashes, options.limits.crash_window),
            data_dir: options.data_dir.clone(),
            options,
            environment,
            is_pid1,
            signals,
            timer: timerfd_create(
                TimerfdClockId::Boottime,
                TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
            )?,
            agent: Agent::Due(clock::now()),
            pipe: None,
            lines: Lines::default(),
            postmaster: None,
            watchdog: None,
            deadline: None,
            fencing: None,
            fenced: false,
            told_to_stop: false,
            end: None,
        })
    }

    fn run(&mut self) -> anyhow::Result<u8> {
        loop {
            // What the agent said last counts before its death does, and its death before the clock does.
            self.hear();
            let pending: Vec<i32> = self.signals.pending().collect();
            self.forward(&pending);
            self.reap()?;
            if let Some(status) = self.advance(clock::now()) {
                return Ok(status);
            }
            self.sleep()?;
        }
    }

    /// Waits for a signal, a message or the next deadline. The clock counts suspension, so that a machine that slept over a
    /// deadline acts on it at once.
    fn sleep(&mut self) -> anyhow::Result<()> {
        let at = self
            .next_deadline()
            .map_or(Duration::ZERO, |at| at.0.max(Duration::from_nanos(1)));
        let at = Timespec {
            tv_sec: i64::try_from(at.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: at.subsec_nanos().into(),
        };
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: at,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        let mut sources = vec![
            PollFd::new(self.signals.get_read(), PollFlags::IN),
            PollFd::new(&self.timer, PollFlags::IN),
        ];
        if let Some(pipe) = &self.pipe {
            sources.push(PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN));
        }
        match poll(&mut sources, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn next_deadline(&self) -> Option<Moment> {
        let now = clock::now();
        let restart = match self.agent {
            Agent::Due(at) => Some(at),
            Agent::Running(_) | Agent::Gone => None,
        };
        let fence = match &self.fencing {
            Some(stop) => Some(stop.next_look(now)),
            None => self.deadline.map(|deadline| before(deadline, QUIT_LEAD)),
        };
        let end = self
            .end
            .as_ref()
            .and_then(|end| end.stop.as_ref())
            .map(|stop| stop.next_look(now));
        [restart, fence, end].into_iter().flatten().min()
    }

    /// Reads everything the agent has said.
    fn hear(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    for line in self.lines.feed(&buffer[..count]) {
                        match Message::parse(&line) {
                            Some(message) => self.learn(message),
                            None => say(
                                "ERROR",
                                &format!(
                                    "the agent sent {line:?}, which the guard does not understand"
                                ),
                            ),
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn learn(&mut self, message: Message) {
        match message {
            Message::Promise(deadline) => {
                self.deadline = Some(deadline);
                self.fenced = false;
            }
            Message::Release => {
                self.deadline = None;
                self.fenced = false;
            }
            Message::Postmaster(process) => self.postmaster = Some(process),
            Message::DataDir(path) => self.data_dir = Some(path),
            Message::Watchdog(armed) => self.watchdog = armed,
        }
    }

    fn forward(&mut self, pending: &[i32]) {
        for (_, signal, name) in FORWARDED
            .iter()
            .filter(|(number, ..)| pending.contains(number))
        {
            let stops = matches!(*signal, Signal::TERM | Signal::INT);
            self.told_to_stop |= stops;
            match self.agent {
                Agent::Running(pid) => {
                    say(
                        "INFO",
                        &format!("{name}: passed on to the agent (pid {pid})"),
                    );
                    // It is our child and not yet reaped, so the pid is still its own.
                    let _ = rustix::process::kill_process(pid, *signal);
                    if stops {
                        // A stopped agent could not stop.
                        let _ = rustix::process::kill_process(pid, Signal::CONT);
                    }
                }
                Agent::Due(_) if stops => {
                    say(
                        "INFO",
                        &format!("{name}: the agent is not running, and is not started again"),
                    );
                    self.finish(0, clock::now());
                }
                Agent::Due(_) | Agent::Gone => {}
            }
        }
    }

    /// Collects every child that has ended, ours or inherited.
    fn reap(&mut self) -> anyhow::Result<()> {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.ended(pid, status),
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus) {
        let Some(ended) = how(status) else {
            return;
        };
        if matches!(self.agent, Agent::Running(agent) if agent == pid) {
            self.agent = Agent::Gone;
            // The pipe may hold its last words.
            self.hear();
            self.pipe = None;
            self.agent_ended(ended, clock::now());
        } else if self
            .postmaster
            .is_some_and(|postmaster| postmaster.pid == pid.as_raw_nonzero().get())
        {
            let level = if ended == Ended::Status(0) {
                "INFO"
            } else {
                "WARNING"
            };
            say(
                level,
                &format!("PostgreSQL's postmaster (pid {pid}) {}", in_words(ended)),
            );
            self.postmaster = None;
        } else if ended != Ended::Status(0) {
            say(
                "INFO",
                &format!("orphaned process {pid} {}", in_words(ended)),
            );
        }
    }

    fn agent_ended(&mut self, ended: Ended, now: Moment) {
        let postgres_runs = fence::find(self.postmaster, self.data_dir.as_deref()).is_some();
        if self.fenced && self.fencing.is_none() {
            self.disarm_watchdog();
        }
        if !ended.is_crash(postgres_runs) {
            say("INFO", &format!("the agent {}", in_words(ended)));
            return self.finish(ended.status(), now);
        }
        if self.told_to_stop {
            say(
                "ERROR",
                &format!("the agent {} while stopping", in_words(ended)),
            );
            return self.finish(ended.status(), now);
        }
        match self.crashes.count(now) {
            Some(wait) => {
                let postgres = if postgres_runs {
                    "; PostgreSQL keeps running"
                } else {
                    ""
                };
                say(
                    "ERROR",
                    &format!(
                        "the agent {}: starting it again in {} ms{postgres}",
                        in_words(ended),
                        wait.as_millis()
                    ),
                );
                self.agent = Agent::Due(now + wait);
            }
            None => {
                let Limits {
                    crashes,
                    crash_window,
                    ..
                } = self.options.limits;
                let seconds = crash_window.as_secs();
                say(
                    "ERROR",
                    &format!(
                        "the agent {}, {crashes} crashes within {seconds} s: giving up",
                        in_words(ended)
                    ),
                );
                self.finish(
                    if self.fenced {
                        EXIT_FENCED
                    } else {
                        ended.status()
                    },
                    now,
                );
            }
        }
    }

    /// Ends with this status, once a PostgreSQL that would be left without an agent has stopped.
    fn finish(&mut self, status: u8, now: Moment) {
        self.agent = Agent::Gone;
        // Outside a container PostgreSQL may outlive a normal end: in pause that is what the operator asked for.
        let left = fence::find(self.postmaster, self.data_dir.as_deref())
            .filter(|_| self.is_pid1 || status != 0);
        let stop = left.map(|postmaster| {
            say(
                "WARNING",
                &format!(
                    "PostgreSQL (pid {}) has no agent any more: stopping it fast",
                    postmaster.pid
                ),
            );
            Stop::begin(postmaster, Signal::INT, now + self.options.limits.fast_stop)
        });
        self.end = Some(End { status, stop });
    }

    /// Does what is due; returns the final status when there is nothing left to wait for.
    fn advance(&mut self, now: Moment) -> Option<u8> {
        if let Agent::Due(at) = self.agent
            && now >= at
            && self.end.is_none()
        {
            self.start_agent(now);
        }
        self.keep_promise(now);
        let end = self.end.as_mut()?;
        let stopped = end.stop.as_mut().is_none_or(|stop| stop.is_complete(now));
        let status = if self.fenced && end.status != 0 {
            EXIT_FENCED
        } else {
            end.status
        };
        if !stopped {
            return None;
        }
        self.disarm_watchdog();
        Some(status)
    }

    /// The agent is dead and PostgreSQL stopped: the device that the agent had armed would reset the machine for nothing.
    fn disarm_watchdog(&mut self) {
        let stopped = fence::find(self.postmaster, self.data_dir.as_deref()).is_none();
        let Some(device) = self.watchdog.take_if(|_| stopped) else {
            return;
        };
        match watchdog::disarm(&device) {
            Ok(()) => say(
                "WARNING",
                &format!(
                    "disarmed the watchdog {}: PostgreSQL is stopped",
                    device.display()
                ),
            ),
            Err(error) => say(
                "ERROR",
                &format!(
                    "cannot disarm the watchdog {}, it will reset this host: {error}",
                    device.display()
                ),
            ),
        }
    }

    /// The guard: stops PostgreSQL so that it is gone by the promised deadline.
    fn keep_promise(&mut self, now: Moment) {
        if self.fencing.is_none() {
            let Some(deadline) = self
                .deadline
                .filter(|deadline| now >= before(*deadline, QUIT_LEAD))
            else {
                return;
            };
            self.deadline = None;
            let Some(postmaster) = fence::find(self.postmaster, self.data_dir.as_deref()) else {
                say(
                    "WARNING",
                    "the agent's lease runs out and was not renewed; PostgreSQL does not run",
                );
                return;
            };
            let left = now.until(deadline).as_millis();
            say(
                "ERROR",
                &format!(
                    "the agent's lease ends in {left} ms and was not renewed: stopping PostgreSQL (pid {})",
                    postmaster.pid
                ),
            );
            self.fenced = true;
            self.fencing = Some(Stop::begin(
                postmaster,
                Signal::QUIT,
                before(deadline, KILL_LEAD),
            ));
        }
        if let Some(stop) = &mut self.fencing
            && stop.is_complete(now)
        {
            say(
                "ERROR",
                "PostgreSQL is stopped, because nobody could say that this node still leads",
            );
            self.fencing = None;
            match self.agent {
                // It holds the device, and nobody else can disarm it.
                Agent::Running(agent) if self.watchdog.is_some() => {
                    say(
                        "ERROR",
                        &format!(
                            "killing the agent (pid {agent}), which would let the watchdog reset this host"
                        ),
                    );
                    let _ = rustix::process::kill_process(agent, Signal::KILL);
                }
                Agent::Running(_) => {}
                Agent::Due(_) | Agent::Gone => self.disarm_watchdog(),
            }
        }
    }

    fn start_agent(&mut self, now: Moment) {
        match self.spawn() {
            Ok(pid) => self.agent = Agent::Running(pid),
            Err(error) => {
                say(
                    "ERROR",
                    &format!("cannot start {}: {error}", self.options.program.display()),
                );
                self.agent = Agent::Gone;
                self.agent_ended(Ended::Status(101), now);
            }
        }
    }

    fn spawn(&mut self) -> io::Result<Pid> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&read, rustix::fs::OFlags::NONBLOCK)?;
        let mut command = Command::new(&self.options.program);
        match &self.watchdog {
            Some(device) => command.env(guard::WATCHDOG_VARIABLE, device),
            None => command.env_remove(guard::WATCHDOG_VARIABLE),
        };
        let child = command
            .arg0(&self.options.arg0)
            .args(&self.options.args)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env(guard::VARIABLE, std::process::id().to_string())
            .stdin(Stdio::from(write))
            .spawn()?;
        self.pipe = Some(File::from(read));
        self.lines = Lines::default();
        i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("the kernel gave an impossible pid"))
    }
}

fn before(deadline: Moment, lead: Duration) -> Moment {
    Moment(deadline.0.saturating_sub(lead))
}

fn how(status: WaitStatus) -> Option<Ended> {
    let by_status = status
        .exit_status()
        .map(|status| Ended::Status(u8::try_from(status).unwrap_or(u8::MAX)));
    by_status.or_else(|| status.terminating_signal().map(Ended::Signal))
}

fn in_words(ended: Ended) -> String {
    match ended {
        Ended::Status(0) => "ended normally".to_owned(),
        Ended::Status(status) => format!("exited with status {status}"),
        Ended::Signal(signal) => format!("was killed by signal {signal}"),
    }
}
