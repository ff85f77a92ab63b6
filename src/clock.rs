//! The only reader of clocks. Everything else takes the time as an argument.

use std::time::Duration;

use crate::types::{Moment, WallTime};

/// Time since boot, suspension included (CLOCK_BOOTTIME): a lease must not survive a sleep that this node did not notice.
#[must_use]
pub fn now() -> Moment {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let secs = u64::try_from(t.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(t.tv_nsec).unwrap_or(0);
    Moment(Duration::new(secs, nanos))
}

/// CLOCK_MONOTONIC in microseconds, as systemd wants it.
#[must_use]
pub fn monotonic_micros() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0) / 1000
}

/// Wall-clock time, for display and scheduled actions only.
#[must_use]
pub fn wall() -> WallTime {
    WallTime(chrono::Utc::now().timestamp_millis())
}
