//! The agents of the stories: `agent DIR MODE…`. Each leaves files in DIR to tell how far it is.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use howdah::clock;
use howdah::init::{Guard, ProcessId};
use rustix::process::{Signal, getpid, kill_process};
use signal_hook::iterator::Signals;

use crate::stage::wait_until;

/// Stops with its child when asked.
const OBEDIENT: &str = "trap 'kill $!; exit' QUIT INT TERM; sleep 60 & wait";
/// Neither it nor its child can be asked.
const STUBBORN: &str = "trap '' QUIT INT TERM; sh -c \"while :; do sleep 1; done; : $PWD\" & while :; do sleep 1; done";

pub(crate) fn play(args: &[String]) -> ExitCode {
    let dir = Path::new(&args[0]);
    let guard = Guard::from_env().unwrap();
    assert!(guard.is_active(), "the agent is guarded");
    note(dir, "starts", "start");
    let number = |at: usize| args.get(at).map_or(0, |text| text.parse::<u64>().unwrap());
    match args[1].as_str() {
        "exit" => return ExitCode::from(u8::try_from(number(2)).unwrap()),
        // Fails with this status while PostgreSQL runs; the second incarnation stays.
        "fail-once" => {
            if starts(dir) == 1 {
                start_postgres(dir, &guard, OBEDIENT);
                return ExitCode::from(u8::try_from(number(2)).unwrap());
            }
        }
        "kill-once" => {
            if starts(dir) == 1 {
                start_postgres(dir, &guard, OBEDIENT);
                kill_process(getpid(), Signal::KILL).unwrap();
            }
        }
        "kill-always" => {
            if starts(dir) == 1 {
                start_postgres(dir, &guard, OBEDIENT);
            }
            kill_process(getpid(), Signal::KILL).unwrap();
        }
        "orphan" => {
            let script = "(sleep 0.05; exit 3) & (sleep 0.05; kill -9 $BASHPID) & true";
            Command::new("bash")
                .args(["-c", script])
                .stdin(Stdio::null())
                .status()
                .unwrap();
        }
        "signals" => {
            let mut signals = Signals::new([1, 2, 10, 12, 15]).unwrap();
            note(dir, "ready", "");
            for signal in signals.forever() {
                note(dir, "signals", &signal.to_string());
                if signal == 15 {
                    return ExitCode::from(0);
                }
            }
        }
        "end-with-postgres" => {
            start_postgres(dir, &guard, OBEDIENT);
            return ExitCode::from(0);
        }
        // A primary: promises once, for this many milliseconds.
        "promise" => {
            start_postgres(dir, &guard, OBEDIENT);
            guard
                .promise(clock::now() + Duration::from_millis(number(2)))
                .unwrap();
        }
        // The same with a PostgreSQL that cannot be asked, and has a child that cannot either.
        "promise-stubborn" => {
            start_postgres(dir, &guard, STUBBORN);
            guard
                .promise(clock::now() + Duration::from_millis(number(2)))
                .unwrap();
        }
        // Never announces the postmaster; init must find it by its lock file.
        "promise-unannounced" => {
            start_postgres(dir, &Guard::none(), OBEDIENT);
            guard
                .promise(clock::now() + Duration::from_millis(number(2)))
                .unwrap();
        }
        // Loses PostgreSQL to the guard, and then never comes back for longer than a moment.
        "fenced" => {
            if starts(dir) == 1 {
                start_postgres(dir, &guard, OBEDIENT);
                guard
                    .promise(clock::now() + Duration::from_millis(number(2)))
                    .unwrap();
                wait_until("the guard has fired", 10, || {
                    ProcessId::of(postmaster(dir)).is_none()
                });
            }
            kill_process(getpid(), Signal::KILL).unwrap();
        }
        // A primary with an armed watchdog, for which a file stands; the next one tells what it was left.
        "watchdog" => {
            if starts(dir) == 1 {
                start_postgres(dir, &guard, OBEDIENT);
                let device = dir.join("device");
                fs::write(&device, "").unwrap();
                guard.watchdog(Some(&device)).unwrap();
                guard
                    .promise(clock::now() + Duration::from_millis(number(2)))
                    .unwrap();
            } else {
                let left = howdah::init::watchdog_left_armed();
                let left = left.map_or("nothing".to_owned(), |path| path.display().to_string());
                note(dir, "left", &left);
            }
        }
        "release" => {
            start_postgres(dir, &guard, OBEDIENT);
            guard
                .promise(clock::now() + Duration::from_millis(number(2)))
                .unwrap();
            guard.release().unwrap();
        }
        "renew" => {
            start_postgres(dir, &guard, OBEDIENT);
            note(dir, "ready", "");
            loop {
                guard
                    .promise(clock::now() + Duration::from_millis(number(2)))
                    .unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        other => panic!("no such agent: {other}"),
    }
    note(dir, "ready", "");
    let mut signals = Signals::new([15]).unwrap();
    signals.forever().next();
    ExitCode::from(0)
}

/// A process that looks like a postmaster: an orphan that works in the data directory, with a lock file and a child.
fn start_postgres(dir: &Path, guard: &Guard, script: &str) {
    let data = dir.join("data");
    // The path at the end is never reached; it lets the story find the process.
    let script = format!(
        "echo $$ > postmaster.new; mv postmaster.new postmaster.pid; {script}; : {}",
        data.display()
    );
    let mut setsid = Command::new("setsid");
    setsid
        .args(["--fork", "sh", "-c", &script])
        .current_dir(&data)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    setsid.status().unwrap();
    let lock = data.join("postmaster.pid");
    wait_until("the fake postmaster is up", 10, || lock.exists());
    guard.watch(postmaster(dir)).unwrap();
}

fn postmaster(dir: &Path) -> i32 {
    fs::read_to_string(dir.join("data/postmaster.pid"))
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

fn note(dir: &Path, file: &str, line: &str) {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join(file))
        .unwrap();
    writeln!(file, "{line}").unwrap();
}

fn starts(dir: &Path) -> usize {
    fs::read_to_string(dir.join("starts"))
        .unwrap_or_default()
        .lines()
        .count()
}
