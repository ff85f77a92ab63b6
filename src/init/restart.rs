//! When a dead agent is started again, and when not: pure, the caller gives the time.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::Moment;

/// How the agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It returned this status.
    Status(u8),
    /// A signal killed it.
    Signal(i32),
}

impl Ended {
    /// The status by which a shell, and so the container, reports it.
    pub(super) fn status(self) -> u8 {
        match self {
            Ended::Status(status) => status,
            Ended::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        }
    }

    /// Whether this was an accident. A panic and a signal always are. Any other failure is one only if it left PostgreSQL
    /// running: an agent that gives up on purpose (wrong configuration, foreign data directory) stops PostgreSQL first.
    pub(super) fn is_crash(self, postgres_runs: bool) -> bool {
        const PANIC: u8 = 101;
        const USAGE: u8 = 64;
        match self {
            Ended::Signal(_) | Ended::Status(PANIC) => true,
            Ended::Status(0 | USAGE) => false,
            Ended::Status(_) => postgres_runs,
        }
    }
}

/// The crashes of the recent past.
#[derive(Debug)]
pub(super) struct Crashes {
    limit: usize,
    window: Duration,
    recent: VecDeque<Moment>,
}

impl Crashes {
    /// Gives up at the `limit`-th crash within `window`.
    pub(super) fn new(limit: usize, window: Duration) -> Crashes {
        Crashes {
            limit,
            window,
            recent: VecDeque::new(),
        }
    }

    /// Counts a crash; returns how long to wait before the next start, `None` to give up.
    ///
    /// The first restart comes at once, since a lease is running out meanwhile; then 0.5 s, doubling up to 4 s.
    pub(super) fn count(&mut self, now: Moment) -> Option<Duration> {
        self.recent.push_back(now);
        while self
            .recent
            .front()
            .is_some_and(|first| now.since(*first) > self.window)
        {
            self.recent.pop_front();
        }
        let crashes = self.recent.len();
        if crashes >= self.limit {
            return None;
        }
        let doublings = u32::try_from(crashes)
            .unwrap_or(u32::MAX)
            .saturating_sub(2)
            .min(3);
        Some(if crashes <= 1 {
            Duration::ZERO
        } else {
            Duration::from_millis(500) * 2u32.pow(doublings)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    #[test]
    fn the_fifth_crash_within_the_window_is_the_last() {
        let mut crashes = Crashes::new(5, Duration::from_secs(60));
        let waits: Vec<_> = (0..5)
            .map(|n| crashes.count(at(n)).map(|wait| wait.as_millis()))
            .collect();
        assert_eq!(waits, [Some(0), Some(500), Some(1000), Some(2000), None]);
    }

    #[test]
    fn old_crashes_are_forgotten() {
        let mut crashes = Crashes::new(2, Duration::from_secs(60));
        for hour in 0..5 {
            assert_eq!(crashes.count(at(hour * 3600)), Some(Duration::ZERO));
        }
    }

    #[test]
    fn giving_up_on_purpose_is_no_crash() {
        assert!(Ended::Signal(9).is_crash(false));
        assert!(Ended::Status(101).is_crash(false));
        assert!(!Ended::Status(1).is_crash(false));
        assert!(Ended::Status(1).is_crash(true));
        assert!(!Ended::Status(64).is_crash(true));
        assert!(!Ended::Status(0).is_crash(true));
        assert_eq!(Ended::Signal(9).status(), 137);
    }
}
