//! The vocabulary: small types that are parsed once at the border and trusted inside.
//!
//! Nothing here does I/O, reads a clock or knows a wire format beyond the text form of one value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A text that is not what it should be: which kind of value, and the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind}")]
pub struct Malformed {
    /// What was expected, in words ("LSN", "member name").
    pub kind: &'static str,
    /// The offending text.
    pub text: String,
}

fn malformed(kind: &'static str, text: &str) -> Malformed {
    Malformed {
        kind,
        text: text.to_owned(),
    }
}

/// A position in the write-ahead log, in bytes since the beginning of the cluster's history.
///
/// PostgreSQL prints it as two hexadecimal halves (`0/3000060`); Patroni's documents carry the plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// "Unknown" in Patroni's documents.
    pub const ZERO: Lsn = Lsn(0);

    /// Bytes by which `self` is ahead of `other`; 0 when it is not ahead.
    #[must_use]
    pub fn ahead_of(self, other: Lsn) -> u64 {
        self.0.saturating_sub(other.0)
    }

    /// `None` for the zero position.
    #[must_use]
    pub fn known(self) -> Option<Lsn> {
        (self.0 != 0).then_some(self)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = Malformed;

    /// Parses PostgreSQL's `X/Y` form.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let err = || malformed("LSN", text);
        let (high, low) = text.trim().split_once('/').ok_or_else(err)?;
        let half = |part: &str| u32::from_str_radix(part, 16).map_err(|_| err());
        Ok(Lsn((u64::from(half(high)?) << 32) | u64::from(half(low)?)))
    }
}

/// A PostgreSQL timeline; raised by one at each promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// PostgreSQL's database system identifier: decides whether two data directories belong to one cluster.
///
/// Valid: at least 10 characters, digits only (spec/dcs.md §2.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(String);

impl SystemId {
    /// The decimal text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SystemId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() >= 10 && text.bytes().all(|b| b.is_ascii_digit()) {
            Ok(SystemId(text.to_owned()))
        } else {
            Err(malformed("database system identifier", text))
        }
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a member: the value of the leader key, the last part of the member key, the `application_name` of its walreceiver.
///
/// Compared byte for byte, except where PostgreSQL compares it (synchronous names: [`MemberName::matches`]).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberName(String);

impl MemberName {
    /// Any non-empty text; the DCS may hold names that this program would not accept for itself.
    ///
    /// # Errors
    /// An empty name.
    pub fn new(name: impl Into<String>) -> Result<Self, Malformed> {
        let name = name.into();
        if name.is_empty() {
            Err(malformed("member name", &name))
        } else {
            Ok(MemberName(name))
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Case-insensitive comparison, as PostgreSQL compares `synchronous_standby_names`.
    #[must_use]
    pub fn matches(&self, other: &MemberName) -> bool {
        self.0.to_lowercase() == other.0.to_lowercase()
    }

    /// The replication slot of this member (spec/dcs.md §2.5): lower case, `-` and `.` become `_`, anything else outside
    /// `[a-z0-9_]` becomes `u` and its code point in at least four digits; cut to 63 characters.
    #[must_use]
    pub fn slot_name(&self) -> String {
        let mut slot = String::new();
        for c in self.0.to_lowercase().chars() {
            match c {
                'a'..='z' | '0'..='9' | '_' => slot.push(c),
                '-' | '.' => slot.push('_'),
                other => slot.push_str(&format!("u{:04}", other as u32)),
            }
        }
        slot.truncate(63);
        slot
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for MemberName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        MemberName::new(text)
    }
}

/// What a store calls the version of one document (etcd revision, Consul index, znode version, resourceVersion).
///
/// Opaque: it is only handed back to the store that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// PostgreSQL's version as `server_version_num` counts it: `170002` is 17.2, `90624` is 9.6.24.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgVersion(pub u32);

impl PgVersion {
    /// The first release of a major given as PostgreSQL's `PG_VERSION` file spells it: `17`, `9.6`.
    ///
    /// # Errors
    /// Text that is no version.
    pub fn from_major(text: &str) -> Result<Self, Malformed> {
        let err = || malformed("PostgreSQL version", text);
        let mut parts = text.trim().split('.');
        let first: u32 = parts.next().and_then(|p| p.parse().ok()).ok_or_else(err)?;
        if first >= 10 {
            return Ok(PgVersion(first * 10_000));
        }
        let second: u32 = parts.next().and_then(|p| p.parse().ok()).ok_or_else(err)?;
        Ok(PgVersion(first * 10_000 + second * 100))
    }

    /// `17`, `9.6`.
    #[must_use]
    pub fn major(self) -> String {
        if self.0 >= 100_000 {
            (self.0 / 10_000).to_string()
        } else {
            format!("{}.{}", self.0 / 10_000, self.0 / 100 % 100)
        }
    }

    /// Whether this is `major` or later; `major` as in `from_major` (`at_least(13)`; for the old ones `PgVersion(90_600)`).
    #[must_use]
    pub fn at_least(self, major: u32) -> bool {
        self.0 >= major * 10_000
    }
}

/// The role of a member as its own agent sees it (spec/ha.md §1.1). The spelling lives in `cluster::wire`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// No usable data directory.
    Uninitialized,
    /// A standby.
    Replica,
    /// The promote command was accepted, PostgreSQL has not left recovery yet.
    Promoted,
    /// Read-write.
    Primary,
    /// Holds the lock of a standby cluster.
    StandbyLeader,
    /// Was primary; is being or has been stopped.
    Demoted,
}

/// What the local PostgreSQL is doing (spec/ha.md §1.2). The number is the metric's; the spelling lives in `cluster::wire`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it; spec/ha.md §1.2 lists them")]
pub enum PgState {
    InitializingNewCluster = 0,
    InitdbFailed = 1,
    RunningCustomBootstrap = 2,
    CustomBootstrapFailed = 3,
    CreatingReplica = 4,
    Running = 5,
    Starting = 6,
    StartingAfterCustomBootstrap = 7,
    StartFailed = 8,
    Restarting = 9,
    RestartFailed = 10,
    Stopping = 11,
    Stopped = 12,
    StopFailed = 13,
    Crashed = 14,
}

/// How a member receives WAL (`replication_state` of the member key).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicationState {
    /// A live WAL receiver.
    Streaming,
    /// Replays from an archive.
    InArchiveRecovery,
}

/// A moment on the clock that also counts while the machine sleeps (CLOCK_BOOTTIME), as time since boot.
///
/// All deadlines use it. Only `clock` and the simulator make one from nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub Duration);

impl Moment {
    /// Time from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Time from `self` until `later`; zero if it has passed.
    #[must_use]
    pub fn until(self, later: Moment) -> Duration {
        later.since(self)
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, by: Duration) -> Moment {
        Moment(self.0 + by)
    }
}

/// Wall-clock time in milliseconds since 1970 (UTC); for display and scheduled actions only, never for deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(pub i64);
