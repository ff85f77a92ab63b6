//! Our own record of the lease: what the store granted, counted from before we asked, on a clock that also counts sleep.
//!
//! It tells three parties how long this node may lead: the core (through [`ha::observation::LeaseView`]), the promotion job
//! (through [`Authority`], read right before the point of no return) and init's guard (through the promise). None of them
//! asks the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::dcs;
use crate::ha::observation::LeaseView;
use crate::types::Moment;

/// The lease with the time until which it counts.
#[derive(Debug)]
pub(super) struct Held {
    /// The store's grant.
    pub(super) lease: dcs::Lease,
    /// When the last confirmed acquire or renewal was sent.
    pub(super) sent: Moment,
    /// `sent + ttl` as it was in force at that time.
    pub(super) expires: Moment,
}

impl Held {
    /// A grant that was asked for at `sent`.
    pub(super) fn new(lease: dcs::Lease, sent: Moment, ttl: Duration) -> Self {
        Held {
            lease,
            sent,
            expires: sent + ttl,
        }
    }

    /// The moment `margin` before its end.
    pub(super) fn expires_less(&self, margin: Duration) -> Moment {
        Moment(self.expires.0.saturating_sub(margin))
    }

    /// The core's view of it.
    pub(super) fn view(&self) -> LeaseView {
        LeaseView {
            sent: self.sent,
            expires: self.expires,
        }
    }
}

/// The right to lead, as other tasks may read it: a deadline that only moves forward while the lease is held, and is zero otherwise.
#[derive(Debug, Clone, Default)]
pub struct Authority(Arc<AtomicU64>);

impl Authority {
    /// Nobody's.
    #[must_use]
    pub fn new() -> Self {
        Authority::default()
    }

    /// Holds until `deadline`.
    pub(super) fn grant(&self, deadline: Moment) {
        let nanos = u64::try_from(deadline.0.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(nanos, Ordering::SeqCst);
    }

    /// Gone.
    pub(super) fn revoke(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    /// Whether it holds at `now`.
    #[must_use]
    pub fn holds(&self, now: Moment) -> bool {
        now.0 < Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_ends_at_its_deadline_and_at_once_when_revoked() {
        let at = |secs| Moment(Duration::from_secs(secs));
        let authority = Authority::new();
        assert!(!authority.holds(at(0)));
        authority.grant(at(10));
        assert!(authority.holds(at(9)));
        assert!(!authority.holds(at(10)));
        authority.grant(at(20));
        assert!(authority.holds(at(19)));
        authority.revoke();
        assert!(!authority.holds(at(1)));
    }
}
