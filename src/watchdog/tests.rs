use super::*;
use std::sync::{Arc, Mutex};

/// A device that writes down what happens to it.
#[derive(Debug, Clone, Default)]
struct Fake(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    events: Vec<String>,
    absent: bool,
    /// Whatever is set, this is what it has.
    fixed: Option<u64>,
    timeout: u64,
    deaf: bool,
}

impl Fake {
    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.0.lock().unwrap());
    }

    fn events(&self) -> String {
        std::mem::take(&mut self.0.lock().unwrap().events).join(" ")
    }
}

impl Driver for Fake {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Device>> {
        let mut inner = self.0.lock().unwrap();
        if inner.absent {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.events.push(format!("open:{}", path.display()));
        Ok(Box::new(self.clone()))
    }

    fn is_there(&self, _path: &Path) -> bool {
        !self.0.lock().unwrap().absent
    }
}

impl Device for Fake {
    fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.timeout = timeout.as_secs();
        match inner.fixed {
            Some(_) => Err(io::ErrorKind::Unsupported.into()),
            None => Ok(()),
        }
    }

    fn timeout(&mut self) -> io::Result<Duration> {
        let inner = self.0.lock().unwrap();
        Ok(Duration::from_secs(inner.fixed.unwrap_or(inner.timeout)))
    }

    fn can_be_disarmed(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn keep_alive(&mut self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        if inner.deaf {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        inner.events.push("1".to_owned());
        Ok(())
    }

    fn disarm(self: Box<Self>) -> io::Result<()> {
        self.0.lock().unwrap().events.push("V".to_owned());
        Ok(())
    }
}

fn rules(required: bool, timeout: u64) -> Option<Rules> {
    Some(Rules {
        device: "w".into(),
        required,
        timeout: Duration::from_secs(timeout),
        shortest: Duration::from_secs(12),
    })
}

fn watchdog(rules: Option<Rules>) -> (Fake, Watchdog) {
    let fake = Fake::default();
    let watchdog = Watchdog::new(Box::new(fake.clone()), rules, None);
    (fake, watchdog)
}

#[test]
fn it_is_armed_kept_alive_and_disarmed() {
    let (fake, mut watchdog) = watchdog(rules(true, 25));
    assert!(watchdog.is_wanted() && watchdog.is_usable());
    // Nothing is kept alive that was not armed.
    watchdog.keep_alive();
    assert_eq!(fake.events(), "");
    watchdog.arm();
    assert_eq!(
        watchdog.armed(),
        Some((Path::new("w"), Duration::from_secs(25)))
    );
    assert!(!watchdog.is_wanted());
    watchdog.arm();
    watchdog.keep_alive();
    assert_eq!(fake.events(), "open:w 1 1");
    watchdog.disarm();
    watchdog.disarm();
    assert_eq!(fake.events(), "V");
    assert!(watchdog.is_wanted() && watchdog.armed().is_none());
}

#[test]
fn it_is_not_disarmed_by_being_dropped() {
    let (fake, mut watchdog) = watchdog(rules(false, 25));
    watchdog.arm();
    drop(watchdog);
    assert_eq!(fake.events(), "open:w 1", "the host is reset");
}

#[test]
fn off_means_off() {
    let (fake, mut watchdog) = watchdog(None);
    assert!(!watchdog.is_wanted() && watchdog.is_usable());
    watchdog.arm();
    assert_eq!(fake.events(), "");
}

#[test]
fn what_is_missing_matters_only_when_it_is_required() {
    for required in [false, true] {
        let (fake, mut watchdog) = watchdog(rules(required, 25));
        fake.change(|device| device.absent = true);
        assert_eq!(watchdog.is_usable(), !required);
        watchdog.arm();
        assert_eq!(watchdog.is_wanted(), required);
        // It has failed: it is not tried again, although it is there now …
        fake.change(|device| device.absent = false);
        watchdog.arm();
        assert_eq!(watchdog.is_usable(), !required);
        assert_eq!(fake.events(), "");
        // … until its settings change.
        watchdog.configure(rules(required, 24));
        assert!(watchdog.is_usable());
        watchdog.arm();
        assert_eq!(fake.events(), "open:w 1");
    }
}

#[test]
fn a_timeout_must_leave_time_to_stop_postgres() {
    let (fake, mut watchdog) = watchdog(rules(true, 11));
    assert!(!watchdog.is_usable());
    watchdog.arm();
    assert_eq!(fake.events(), "", "it was not even opened");

    // A device that has its own mind.
    let cases = [
        (false, 11, "open:w V", false),
        (false, 60, "open:w 1", true),
        (true, 60, "open:w V", false),
        (true, 20, "open:w 1", true),
    ];
    for (required, fixed, events, armed) in cases {
        let (fake, mut watchdog) = self::watchdog(rules(required, 25));
        fake.change(|device| device.fixed = Some(fixed));
        watchdog.arm();
        assert_eq!(fake.events(), events, "{required} {fixed}");
        assert_eq!(watchdog.armed().is_some(), armed, "{required} {fixed}");
    }
}

#[test]
fn a_device_that_takes_no_keepalive_has_failed() {
    let (fake, mut watchdog) = watchdog(rules(true, 25));
    watchdog.arm();
    fake.change(|device| device.deaf = true);
    watchdog.keep_alive();
    assert!(watchdog.is_wanted() && !watchdog.is_usable());
    assert_eq!(fake.events(), "open:w 1 V");
}

#[test]
fn other_settings_arm_it_anew() {
    let (fake, mut watchdog) = watchdog(rules(false, 25));
    watchdog.arm();
    watchdog.configure(rules(false, 25));
    assert_eq!(fake.events(), "open:w 1", "the same settings");
    watchdog.configure(rules(false, 20));
    assert!(watchdog.is_wanted());
    watchdog.arm();
    assert_eq!(
        watchdog.armed(),
        Some((Path::new("w"), Duration::from_secs(20)))
    );
    watchdog.configure(None);
    assert_eq!(fake.events(), "V open:w 1 V");
}

#[test]
fn what_a_dead_agent_left_counting_is_disarmed_or_taken_over() {
    let fake = Fake::default();
    let left = || Watchdog::new(Box::new(fake.clone()), rules(false, 25), Some("w".into()));
    let mut watchdog = left();
    watchdog.disarm();
    watchdog.disarm();
    assert_eq!(fake.events(), "open:w V");
    let mut watchdog = left();
    watchdog.arm();
    assert_eq!(fake.events(), "open:w 1");
}

#[test]
fn a_file_that_is_no_device_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("watchdog");
    assert!(!Linux.is_there(&path));
    std::fs::write(&path, "").unwrap();
    assert!(Linux.is_there(&path));
    let arm = |required| {
        let rules = rules(required, 25).map(|rules| Rules {
            device: path.clone(),
            ..rules
        });
        let mut watchdog = Watchdog::new(Box::new(Linux), rules, None);
        watchdog.arm();
        watchdog
    };
    assert!(!arm(true).is_usable());
    assert!(!arm(false).is_wanted());
    // Its last words: whatever it is, it was told to stop.
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "V");
}

#[test]
fn a_pipe_shows_what_is_written_to_a_device() {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("watchdog");
    let status = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(status.unwrap().success());
    // Nobody there: an error, not a wait.
    assert!(Linux.open(&path).is_err());
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut reader = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nonblock)
        .open(&path)
        .unwrap();
    let mut device = Linux.open(&path).unwrap();
    assert!(device.set_timeout(Duration::from_secs(25)).is_err());
    assert!(device.timeout().is_err() && device.can_be_disarmed().is_err());
    device.keep_alive().unwrap();
    device.disarm().unwrap();
    let mut written = String::new();
    reader.read_to_string(&mut written).unwrap();
    assert_eq!(written, "1V");
}
