//! The watchdog device: a timer in the kernel or the machine that resets the host unless it is told in time that all is well
//! (spec/ha.md §21). It is the last guard, for the case that the kernel, init or PostgreSQL itself cannot be stopped any more.
//!
//! When it is armed, kept alive and disarmed is decided elsewhere. This is the device with its rules: which timeouts are acceptable, what a
//! failure means in each mode, and that a device which has failed is left alone until its settings change.

mod device;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use device::Linux;

/// What the settings make of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The device.
    pub device: PathBuf,
    /// Without it this node does not lead.
    pub required: bool,
    /// How long after the last keepalive the host is reset; whole seconds.
    pub timeout: Duration,
    /// A device that fires sooner than that would reset hosts on which all is well.
    pub shortest: Duration,
}

/// An open device: the timer runs.
pub trait Device: fmt::Debug + Send {
    /// Sets the timeout; the device may round it.
    ///
    /// # Errors
    /// It cannot be set, or not to this.
    fn set_timeout(&mut self, timeout: Duration) -> io::Result<()>;

    /// The timeout in force.
    ///
    /// # Errors
    /// The device does not say.
    fn timeout(&mut self) -> io::Result<Duration>;

    /// Whether it can be disarmed once it has been opened.
    ///
    /// # Errors
    /// The device does not say.
    fn can_be_disarmed(&mut self) -> io::Result<bool>;

    /// Starts the timer anew.
    ///
    /// # Errors
    /// The device did not take it.
    fn keep_alive(&mut self) -> io::Result<()>;

    /// Stops the timer and closes the device. A device that is only dropped goes on counting.
    ///
    /// # Errors
    /// It goes on counting.
    fn disarm(self: Box<Self>) -> io::Result<()>;
}

/// Opens devices.
pub trait Driver: fmt::Debug + Send {
    /// Opens the device, which starts its timer.
    ///
    /// # Errors
    /// There is none, it is in use, or it may not be opened.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Device>>;

    /// Whether there is a device that may be opened. Does not open it, because that starts the timer.
    fn is_there(&self, path: &Path) -> bool;
}

/// The node's device.
#[derive(Debug)]
pub struct Watchdog {
    driver: Box<dyn Driver>,
    /// `None`: the mode is off.
    rules: Option<Rules>,
    state: State,
}

#[derive(Debug)]
enum State {
    Idle,
    /// An earlier agent died and left this device counting.
    Left(PathBuf),
    Armed {
        device: Box<dyn Device>,
        path: PathBuf,
        timeout: Duration,
    },
    /// Not tried again until the settings change.
    Failed,
}

/// Why the device is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("cannot open it: {0}")]
    Open(#[source] io::Error),
    #[error("it does not tell its timeout: {0}")]
    Mute(#[source] io::Error),
    #[error(
        "a timeout of {timeout} s is too short: at least {shortest} s are needed between two renewals of the leader key and for stopping \
         PostgreSQL; raise ttl or lower watchdog.safety_margin"
    )]
    TooShort { timeout: u64, shortest: u64 },
    #[error("its timeout is {actual} s and cannot be set to {wanted} s")]
    TooLong { actual: u64, wanted: u64 },
    #[error("it does not take keepalives: {0}")]
    KeepAlive(#[source] io::Error),
}

impl Watchdog {
    /// A device that is not armed. `left`: one that a dead predecessor had armed.
    #[must_use]
    pub fn new(driver: Box<dyn Driver>, rules: Option<Rules>, left: Option<PathBuf>) -> Self {
        Watchdog {
            driver,
            rules,
            state: left.map_or(State::Idle, State::Left),
        }
    }

    /// Other settings: the device is closed, to be armed anew by them, and one that has failed may be tried again.
    pub fn configure(&mut self, rules: Option<Rules>) {
        if self.rules == rules {
            return;
        }
        self.disarm();
        if matches!(self.state, State::Failed) {
            self.state = State::Idle;
        }
        self.rules = rules;
    }

    /// There is something to arm: the mode is not off, and the device is neither armed nor, in mode `automatic`, known not to work.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        match (&self.rules, &self.state) {
            (None, _) | (Some(_), State::Armed { .. }) => false,
            (Some(rules), State::Failed) => rules.required,
            (Some(_), State::Idle | State::Left(_)) => true,
        }
    }

    /// The mode is not `required`, or the device is armed or could be.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let Some(rules) = self.rules.as_ref().filter(|rules| rules.required) else {
            return true;
        };
        match &self.state {
            State::Armed { .. } => true,
            State::Failed => false,
            State::Idle | State::Left(_) => {
                rules.timeout >= rules.shortest && self.driver.is_there(&rules.device)
            }
        }
    }

    /// The armed device and how long after the last keepalive it fires.
    #[must_use]
    pub fn armed(&self) -> Option<(&Path, Duration)> {
        match &self.state {
            State::Armed { path, timeout, .. } => Some((path, *timeout)),
            State::Idle | State::Left(_) | State::Failed => None,
        }
    }

    /// Arms the device; that counts as the first keepalive. A failure is logged once, and the device is left alone from then on.
    pub fn arm(&mut self) {
        if !self.is_wanted() || matches!(self.state, State::Failed) {
            return;
        }
        let Some(rules) = self.rules.clone() else {
            return;
        };
        match self.open(&rules) {
            Ok((device, timeout)) => {
                tracing::info!(
                    device = %rules.device.display(),
                    "the watchdog is armed: it resets this host {} s after the last keepalive",
                    timeout.as_secs()
                );
                self.state = State::Armed {
                    device,
                    path: rules.device,
                    timeout,
                };
            }
            Err(reason) => self.give_up(&rules, &reason),
        }
    }

    fn open(&self, rules: &Rules) -> Result<(Box<dyn Device>, Duration), Unusable> {
        let too_short = |timeout: Duration| Unusable::TooShort {
            timeout: timeout.as_secs(),
            shortest: rules.shortest.as_secs_f64().ceil() as u64,
        };
        // Where there is no device, its timeout does not matter: opening says so.
        if rules.timeout < rules.shortest && self.driver.is_there(&rules.device) {
            return Err(too_short(rules.timeout));
        }
        let mut device = self.driver.open(&rules.device).map_err(Unusable::Open)?;
        if let Err(error) = device.set_timeout(rules.timeout) {
            tracing::warn!(device = %rules.device.display(), "the watchdog's timeout cannot be set: {error}");
        }
        let reason = match device.timeout() {
            Err(error) => Unusable::Mute(error),
            Ok(actual) if actual < rules.shortest => too_short(actual),
            Ok(actual) if actual > rules.timeout && rules.required => Unusable::TooLong {
                actual: actual.as_secs(),
                wanted: rules.timeout.as_secs(),
            },
            Ok(actual) => {
                if actual > rules.timeout {
                    tracing::warn!(
                        "the watchdog fires after {} s, not after {} s as its settings want",
                        actual.as_secs(),
                        rules.timeout.as_secs()
                    );
                }
                if !device.can_be_disarmed().unwrap_or(false) {
                    tracing::warn!(
                        "the watchdog cannot be disarmed (no magic close): when this node stops leading, the host is reset"
                    );
                }
                match device.keep_alive() {
                    Ok(()) => return Ok((device, actual)),
                    Err(error) => Unusable::KeepAlive(error),
                }
            }
        };
        close(device);
        Err(reason)
    }

    fn give_up(&mut self, rules: &Rules, reason: &Unusable) {
        let device = rules.device.display();
        let absent =
            matches!(reason, Unusable::Open(error) if error.kind() == io::ErrorKind::NotFound);
        if rules.required {
            tracing::error!(
                "the required watchdog {device} is unusable, this node does not lead: {reason}"
            );
        } else if absent {
            // The usual case in a container, and the mode's own meaning.
            tracing::info!("no watchdog: there is no device {device}");
        } else {
            tracing::warn!("going on without the watchdog {device}: {reason}");
        }
        self.state = State::Failed;
    }

    /// Starts the timer anew. Call it right after the leader key was confirmed, and for no other reason.
    pub fn keep_alive(&mut self) {
        let State::Armed { device, .. } = &mut self.state else {
            return;
        };
        if let (Err(error), Some(rules)) = (device.keep_alive(), self.rules.clone()) {
            self.disarm();
            self.give_up(&rules, &Unusable::KeepAlive(error));
        }
    }

    /// Stops the timer. Call it when PostgreSQL accepts no writes (any more).
    pub fn disarm(&mut self) {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Armed { device, .. } => {
                close(device);
                tracing::info!("the watchdog is disarmed");
            }
            State::Left(path) => match self.driver.open(&path) {
                Ok(device) => {
                    close(device);
                    tracing::info!("the watchdog that the last agent had armed is disarmed");
                }
                Err(error) => tracing::error!(
                    "cannot disarm the watchdog {} of the last agent, it will reset this host: {error}",
                    path.display()
                ),
            },
            State::Failed => self.state = State::Failed,
            State::Idle => {}
        }
    }

    /// A dead predecessor left a device counting.
    #[must_use]
    pub fn is_left(&self) -> bool {
        matches!(self.state, State::Left(_))
    }
}

fn close(device: Box<dyn Device>) {
    if let Err(error) = device.disarm() {
        tracing::error!("the watchdog cannot be disarmed, it will reset this host: {error}");
    }
}

#[cfg(test)]
mod tests;
