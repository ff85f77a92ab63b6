//! The watchdog device in the agent's hands (spec/ha.md §21): what the settings make of it, and how it fits between the other two guards.
//!
//! The agent stops PostgreSQL first, init second, and only what both could not do is left to the device. So with an armed device everything
//! that depends on the lease's end happens earlier, by the time between the device's reset and that end.

use std::time::Duration;

use crate::config::{self, WatchdogMode};
use crate::ha::observation::{Observation, WatchdogView};
use crate::init::QUIT_LEAD;
use crate::watchdog::Rules;

use super::{Agent, stop_margin};

/// What the settings make of the device; `None`: off.
pub(super) fn rules(
    watchdog: &config::Watchdog,
    ttl: Duration,
    loop_wait: Duration,
) -> Option<Rules> {
    let required = match watchdog.mode {
        WatchdogMode::Off => return None,
        WatchdogMode::Automatic => false,
        WatchdogMode::Required => true,
    };
    let timeout = match u64::try_from(watchdog.safety_margin) {
        Ok(margin) => ttl.as_secs().saturating_sub(margin),
        Err(_) => ttl.as_secs() / 2,
    };
    // The lease is renewed at this interval, and what follows a renewal that fails must fit in before the device fires.
    let renewal = loop_wait.min(ttl / 3);
    let to_stop = stop_margin(Duration::from_secs(timeout));
    Some(Rules {
        device: watchdog.device.clone(),
        required,
        timeout: Duration::from_secs(timeout),
        shortest: loop_wait.max(renewal + to_stop),
    })
}

/// How long before the lease's end things happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Margins {
    /// The agent begins to stop PostgreSQL.
    pub(super) stop: Duration,
    /// Init's promise is over: PostgreSQL is gone.
    pub(super) fence: Duration,
}

/// The margins under a device that fires `timeout` after the last renewal; `None`: there is none.
pub(super) fn margins(ttl: Duration, timeout: Option<Duration>) -> Margins {
    let lead = timeout.map_or(Duration::ZERO, |timeout| ttl.saturating_sub(timeout));
    let stop = stop_margin(ttl - lead);
    // Init acts in the second half of the margin: the agent itself has the first.
    let reserve = (stop / 2).saturating_sub(QUIT_LEAD);
    Margins {
        stop: lead + stop,
        fence: lead + reserve.max(Duration::from_millis(100)),
    }
}

impl Agent {
    pub(super) fn watchdog_view(&self) -> WatchdogView {
        WatchdogView {
            armed: !self.watchdog.is_wanted(),
            usable: self.watchdog.is_usable(),
        }
    }

    pub(super) fn margins(&self) -> Margins {
        let timeout = self.watchdog.armed().map(|(_, timeout)| timeout);
        margins(self.settings.ttl, timeout)
    }

    /// The settings in force for the device, and what follows from it.
    pub(super) fn configure_watchdog(&mut self) {
        let (ttl, loop_wait) = (self.settings.ttl, self.settings.loop_wait);
        let rules = rules(&self.loaded.config.watchdog, ttl, loop_wait);
        let was_armed = self.watchdog.armed().is_some();
        self.watchdog.configure(rules);
        if was_armed {
            self.tell_guard_of_watchdog();
        }
        self.settings.stop_margin = self.margins().stop;
    }

    /// Arms the device; only right after the lease was confirmed.
    pub(super) fn arm_watchdog(&mut self, obs: &mut Observation) {
        self.watchdog.arm();
        self.tell_guard_of_watchdog();
        self.settings.stop_margin = self.margins().stop;
        obs.settings.stop_margin = self.settings.stop_margin;
        obs.watchdog = self.watchdog_view();
        // Whoever depends on the lease has less time now.
        self.confirm_lease();
    }

    /// Nothing here accepts writes (any more), or the cluster is paused.
    pub(super) fn disarm_watchdog(&mut self) {
        if self.watchdog.armed().is_none() && !self.watchdog.is_left() {
            return;
        }
        self.watchdog.disarm();
        self.tell_guard_of_watchdog();
        self.settings.stop_margin = self.margins().stop;
    }

    fn tell_guard_of_watchdog(&self) {
        let armed = self.watchdog.armed().map(|(device, _)| device);
        if let Err(error) = self.guard.watchdog(armed) {
            tracing::error!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn with(mode: WatchdogMode, safety_margin: i64, ttl: u64, loop_wait: u64) -> Option<Rules> {
        let watchdog = config::Watchdog {
            mode,
            device: "/dev/watchdog".into(),
            safety_margin,
            driver: "default".to_owned(),
        };
        rules(&watchdog, seconds(ttl), seconds(loop_wait))
    }

    #[test]
    fn the_timeout_follows_from_ttl_and_margin() {
        let timeout = |margin, ttl, loop_wait| {
            let rules = with(WatchdogMode::Automatic, margin, ttl, loop_wait).unwrap();
            (rules.timeout.as_secs(), rules.timeout >= rules.shortest)
        };
        assert_eq!(timeout(5, 30, 10), (25, true));
        assert_eq!(timeout(-1, 30, 10), (15, true));
        assert_eq!(timeout(-1, 21, 10), (10, true));
        assert_eq!(timeout(0, 30, 10), (30, true));
        // Not even one turn fits, or no time is left to stop PostgreSQL in.
        assert_eq!(timeout(25, 30, 10), (5, false));
        assert_eq!(timeout(20, 30, 10), (10, false));
        assert_eq!(timeout(40, 30, 10), (0, false));
        assert_eq!(with(WatchdogMode::Off, 5, 30, 10), None);
        let required = with(WatchdogMode::Required, 5, 30, 10).unwrap();
        assert!(required.required);
    }

    #[test]
    fn agent_then_init_then_the_device() {
        let plain = margins(seconds(30), None);
        assert_eq!(plain.stop, seconds(5));
        assert_eq!(plain.fence, seconds(2));
        for (ttl, timeout) in [(30, 25), (30, 15), (20, 15), (10, 7)] {
            let margins = margins(seconds(ttl), Some(seconds(timeout)));
            let fires = seconds(ttl - timeout);
            assert!(margins.stop > margins.fence + QUIT_LEAD, "{ttl} {timeout}");
            assert!(margins.fence > fires, "init is done before the reset");
        }
        let late = margins(seconds(30), Some(seconds(60)));
        assert_eq!(
            late, plain,
            "a device that fires after the lease's end changes nothing"
        );
    }
}
