//! What the running server says about itself: one statement per turn, on one connection that is kept (spec §2.1).
//!
//! Observing never changes anything and never waits longer than the limits of `sql`.

use serde_json::{Map, Value};

use super::Settings;
use super::sql::{Session, SqlError, Target};
use crate::clock;
use crate::node::{PgTimestamp, PostgresStatus, Walsender, Xlog};
use crate::types::{Lsn, Moment, PgVersion, ReplicationState, Timeline};

/// What a sample shall contain beyond the positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wants {
    /// The replication slots.
    pub slots: bool,
}

/// The server at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// When it was asked for.
    pub at: Moment,
    /// `server_version_num`.
    pub version: PgVersion,
    /// When the postmaster started: tells one postmaster from the next.
    pub postmaster_start_time: PgTimestamp,
    /// It is a standby.
    pub in_recovery: bool,
    /// A primary's own timeline, from the name of its current WAL file.
    pub primary_timeline: Option<Timeline>,
    /// The last timeline a standby is known to have received or replayed, for when it has no receiver.
    pub known_timeline: Option<Timeline>,
    /// The timeline of the last checkpoint; from 9.6 on.
    pub checkpoint_timeline: Option<Timeline>,
    /// A primary's flush position; zero on a standby.
    pub flushed: Lsn,
    /// `pg_last_wal_receive_lsn`: flushed by the WAL receiver; zero if it never ran.
    pub received: Lsn,
    /// Last replayed position; zero on a primary.
    pub replayed: Lsn,
    /// Commit time of the last replayed transaction.
    pub replayed_timestamp: Option<PgTimestamp>,
    /// Replay is paused.
    pub replay_paused: bool,
    /// The WAL receiver; from 9.6 on.
    pub receiver: Option<Receiver>,
    /// Replay has not come to the end of what was on disk when the standby was started, so its positions say less than it has; from 10
    /// on. The WAL receiver is asked for more only after that end; without an upstream replay then sleeps between attempts.
    pub replaying: bool,
    /// `restore_command` is set; from 12 on, before always `false` here.
    pub restores: bool,
    /// `synchronous_commit`.
    pub synchronous_commit: String,
    /// `synchronous_standby_names`.
    pub synchronous_standby_names: String,
    /// `pg_stat_replication`, in its order.
    pub walsenders: Vec<Sender>,
    /// The replication slots, if asked for.
    pub slots: Option<Vec<Slot>>,
}

/// The WAL receiver of a standby.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Receiver {
    /// `streaming`, `waiting`, …
    pub status: String,
    /// The timeline it has flushed; `None` before the first message of its upstream.
    pub timeline: Option<Timeline>,
    /// Written, not necessarily flushed; from 13 on.
    pub written: Option<Lsn>,
    /// What the upstream last said it has.
    pub latest_end: Option<Lsn>,
    /// The slot it uses.
    pub slot_name: Option<String>,
    /// Its connection string, passwords hidden.
    pub conninfo: String,
}

/// One row of `pg_stat_replication`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The columns that are shown.
    pub shown: Walsender,
    /// Its process.
    pub pid: i64,
    /// Positions the standby has confirmed.
    pub written: Option<Lsn>,
    /// Flushed there.
    pub flushed: Option<Lsn>,
    /// Replayed there.
    pub replayed: Option<Lsn>,
    /// When its last message was sent, by its own clock; from 12 on.
    pub replied: Option<String>,
}

impl Sender {
    /// A later row of the same process tells of a message that has come in between.
    #[must_use]
    pub fn has_spoken_since(&self, later: &Sender) -> bool {
        let said = |sender: &Sender| {
            (
                sender.written,
                sender.flushed,
                sender.replayed,
                sender.replied.clone(),
            )
        };
        said(self) != said(later)
    }
}

/// One row of `pg_replication_slots`. `None`: null, or this release has no such column.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the view's own columns")]
pub struct Slot {
    pub name: String,
    pub physical: bool,
    pub database: Option<String>,
    pub plugin: Option<String>,
    pub active: bool,
    pub temporary: bool,
    pub restart_lsn: Option<Lsn>,
    pub confirmed_flush_lsn: Option<Lsn>,
    pub xmin: Option<u64>,
    pub catalog_xmin: Option<u64>,
    pub wal_status: Option<String>,
    pub failover: bool,
    pub synced: bool,
}

impl Sample {
    /// Effective received position: written or flushed by the receiver, whichever is further (spec §2.1).
    #[must_use]
    pub fn received_effectively(&self) -> Lsn {
        let written = self
            .receiver
            .as_ref()
            .and_then(|r| r.written)
            .unwrap_or(Lsn::ZERO);
        self.received.max(written)
    }

    /// The timeline as published: a primary's own; a standby's received one, else the last it is known to have received or
    /// replayed. The one of its last checkpoint does not count: it may be older than what was received since.
    #[must_use]
    pub fn timeline(&self) -> Option<Timeline> {
        match self.in_recovery {
            false => self.primary_timeline,
            true => self
                .receiver
                .as_ref()
                .and_then(|r| r.timeline)
                .or(self.known_timeline),
        }
    }

    /// How a standby gets its WAL (spec §2.1).
    #[must_use]
    pub fn replication_state(&self) -> Option<ReplicationState> {
        if !self.in_recovery {
            return None;
        }
        match &self.receiver {
            Some(receiver) if receiver.status == "streaming" => Some(ReplicationState::Streaming),
            _ => self.restores.then_some(ReplicationState::InArchiveRecovery),
        }
    }

    /// The same, as the surface shows it.
    #[must_use]
    pub fn status(&self) -> PostgresStatus {
        let xlog = match self.in_recovery {
            false => Xlog::Primary {
                location: self.flushed,
            },
            true => Xlog::Standby {
                received: self.received_effectively(),
                replayed: self.replayed,
                replayed_timestamp: self.replayed_timestamp,
                paused: self.replay_paused,
                latest_end: self.receiver.as_ref().and_then(|r| r.latest_end),
            },
        };
        PostgresStatus {
            server_version: self.version,
            postmaster_start_time: self.postmaster_start_time,
            timeline: self.timeline(),
            xlog,
            replication_state: self.replication_state(),
            replication: self
                .walsenders
                .iter()
                .map(|sender| sender.shown.clone())
                .collect(),
            replaying: self.replaying,
        }
    }
}

/// Keeps the connection between turns.
#[derive(Default)]
pub struct Observer {
    session: Option<(Session, PgVersion)>,
    /// The last timeline received by the standby that started at this time.
    received: Option<(PgTimestamp, Timeline)>,
}

impl Observer {
    /// Without a connection yet.
    #[must_use]
    pub fn new() -> Observer {
        Observer::default()
    }

    /// The kept connection, if there is one: for statements of the same turn.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref().map(|(session, _)| session)
    }

    /// Closes the connection. To be called before a start (spec §2) and after the settings have changed.
    pub fn forget(&mut self) {
        self.session = None;
    }

    /// Asks the server. If the kept connection turns out to be broken, a new one is tried once. A standby without a receiver may
    /// cost one replication connection in its life.
    ///
    /// # Errors
    /// [`SqlError`]: see [`SqlError::is_not_yet`] and [`SqlError::is_cancelled`] for what the loop tells apart.
    pub async fn observe(&mut self, settings: &Settings, wants: Wants) -> Result<Sample, SqlError> {
        let mut sample = self.ask(settings, wants).await?;
        if sample.in_recovery {
            sample.known_timeline = self.standby_timeline(settings, &sample).await;
        }
        Ok(sample)
    }

    /// Remembers what the receiver says; without one, what it last said, or what the server replays.
    async fn standby_timeline(&mut self, settings: &Settings, sample: &Sample) -> Option<Timeline> {
        let started = sample.postmaster_start_time;
        if let Some(timeline) = sample
            .receiver
            .as_ref()
            .and_then(|receiver| receiver.timeline)
        {
            self.received = Some((started, timeline));
            return Some(timeline);
        }
        if let Some((of, timeline)) = self.received
            && of == started
        {
            return Some(timeline);
        }
        let identify = async {
            Target::local_replication(settings)
                .connect()
                .await?
                .identify_system()
                .await
        };
        let timeline = identify.await.ok()?.timeline;
        self.received = Some((started, timeline));
        Some(timeline)
    }

    /// One statement; if the kept connection turns out to be broken, a new one is tried once.
    async fn ask(&mut self, settings: &Settings, wants: Wants) -> Result<Sample, SqlError> {
        if let Some((session, version)) = self.session.take() {
            match sample(&session, version, wants).await {
                Ok(sample) => {
                    self.session = Some((session, version));
                    return Ok(sample);
                }
                Err(error) if error.is_connection() && !matches!(error, SqlError::Timeout(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let session = Target::local(settings)
            .named("Patroni heartbeat")
            .connect()
            .await?;
        let version = session.version().await?;
        let sample = sample(&session, version, wants).await?;
        self.session = Some((session, version));
        Ok(sample)
    }
}

/// The statement for one release. Every column is text; JSON where there are several values.
fn statement(version: PgVersion, wants: Wants) -> String {
    let ten = version.at_least(10);
    let nine_six = version >= PgVersion(90_600);
    let (flush, receive, replay, paused, file) = match (ten, nine_six) {
        (true, _) => (
            "pg_current_wal_flush_lsn()",
            "pg_last_wal_receive_lsn()",
            "pg_last_wal_replay_lsn()",
            "pg_is_wal_replay_paused()",
            "pg_walfile_name(pg_current_wal_lsn())",
        ),
        (false, true) => (
            "pg_current_xlog_flush_location()",
            "pg_last_xlog_receive_location()",
            "pg_last_xlog_replay_location()",
            "pg_is_xlog_replay_paused()",
            "pg_xlogfile_name(pg_current_xlog_location())",
        ),
        (false, false) => (
            "pg_current_xlog_location()",
            "pg_last_xlog_receive_location()",
            "pg_last_xlog_replay_location()",
            "pg_is_xlog_replay_paused()",
            "pg_xlogfile_name(pg_current_xlog_location())",
        ),
    };
    let or_null = |there: bool, expression: &'static str| if there { expression } else { "NULL" };
    let checkpoint = or_null(
        nine_six,
        "(SELECT timeline_id FROM pg_control_checkpoint())",
    );
    let receiver = or_null(
        nine_six,
        "(SELECT row_to_json(r) FROM pg_stat_get_wal_receiver() r)",
    );
    let restore = or_null(version.at_least(12), "current_setting('restore_command')");
    let slots = or_null(
        wants.slots && version >= PgVersion(90_400),
        "(SELECT COALESCE(json_agg(row_to_json(s)), '[]') FROM pg_replication_slots s)",
    );
    // Whoever may not look into pg_stat_activity finds no such row, and knows nothing.
    let replaying = match version.at_least(10) {
        true => format!(
            "CASE WHEN in_recovery AND {receive} IS NULL THEN \
             (SELECT COALESCE(wait_event, '') NOT IN ('RecoveryWalStream', 'RecoveryWalAll', 'RecoveryRetrieveRetryInterval') \
             FROM pg_stat_activity WHERE backend_type = 'startup') END"
        ),
        false => "NULL".to_owned(),
    };
    format!(
        "SELECT in_recovery, \
         (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, \
         CASE WHEN NOT in_recovery THEN {file} END, \
         {checkpoint}, \
         CASE WHEN NOT in_recovery THEN {flush} END, \
         CASE WHEN in_recovery THEN {receive} END, \
         CASE WHEN in_recovery THEN {replay} END, \
         (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint, \
         CASE WHEN in_recovery THEN {paused} END, \
         {receiver}, \
         {restore}, \
         current_setting('synchronous_commit'), \
         current_setting('synchronous_standby_names'), \
         (SELECT COALESCE(json_agg(row_to_json(w)), '[]') FROM pg_stat_replication w), \
         {slots}, \
         {replaying} \
         FROM (SELECT pg_is_in_recovery() AS in_recovery) q"
    )
}

async fn sample(session: &Session, version: PgVersion, wants: Wants) -> Result<Sample, SqlError> {
    let at = clock::now();
    let rows = session.simple(&statement(version, wants)).await?;
    let row = rows.into_iter().next().unwrap_or_default();
    understand(at, version, &row)
        .ok_or_else(|| SqlError::Unexpected(format!("monitoring query: {row:?}")))
}

fn understand(at: Moment, version: PgVersion, row: &[Option<String>]) -> Option<Sample> {
    let text = |n: usize| row.get(n).and_then(Option::as_deref);
    let lsn = |n| text(n).and_then(|t| t.parse().ok()).unwrap_or(Lsn::ZERO);
    let rows = |n| -> Option<Vec<Map<String, Value>>> { serde_json::from_str(text(n)?).ok() };
    Some(Sample {
        at,
        version,
        postmaster_start_time: PgTimestamp(text(1)?.parse().ok()?),
        in_recovery: text(0)? == "t",
        primary_timeline: text(2)
            .and_then(|file| file.get(..8))
            .and_then(|hex| u32::from_str_radix(hex, 16).ok())
            .map(Timeline),
        known_timeline: None,
        checkpoint_timeline: text(3).and_then(|t| t.parse().ok()).map(Timeline),
        flushed: lsn(4),
        received: lsn(5),
        replayed: lsn(6),
        replayed_timestamp: text(7).and_then(|t| t.parse().ok()).map(PgTimestamp),
        replay_paused: text(8) == Some("t"),
        receiver: text(9)
            .and_then(|t| serde_json::from_str(t).ok())
            .and_then(|r| receiver(&r)),
        restores: text(10).is_some_and(|command| !command.is_empty()),
        synchronous_commit: text(11)?.to_owned(),
        synchronous_standby_names: text(12)?.to_owned(),
        walsenders: rows(13)?.iter().map(sender).collect(),
        slots: rows(14).map(|slots| slots.iter().map(slot).collect()),
        replaying: text(15) == Some("t"),
    })
}

fn string(row: &Map<String, Value>, column: &str) -> Option<String> {
    row.get(column)?.as_str().map(str::to_owned)
}

fn position(row: &Map<String, Value>, column: &str) -> Option<Lsn> {
    row.get(column)?.as_str()?.parse().ok()
}

fn number(row: &Map<String, Value>, column: &str) -> Option<u64> {
    let value = row.get(column)?;
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn flag(row: &Map<String, Value>, column: &str) -> bool {
    row.get(column).and_then(Value::as_bool).unwrap_or(false)
}

fn receiver(row: &Map<String, Value>) -> Option<Receiver> {
    number(row, "pid")?;
    let latest_end = position(row, "latest_end_lsn");
    let timeline = number(row, "received_tli").and_then(|n| u32::try_from(n).ok());
    Some(Receiver {
        status: string(row, "status").unwrap_or_default(),
        // Before its upstream has spoken this is only the timeline it asked for.
        timeline: latest_end.and(timeline).filter(|n| *n != 0).map(Timeline),
        written: position(row, "written_lsn"),
        latest_end,
        slot_name: string(row, "slot_name").filter(|name| !name.is_empty()),
        conninfo: string(row, "conninfo").unwrap_or_default(),
    })
}

fn sender(row: &Map<String, Value>) -> Sender {
    let either = |new, old| position(row, new).or_else(|| position(row, old));
    Sender {
        shown: Walsender {
            usename: string(row, "usename"),
            application_name: string(row, "application_name"),
            client_addr: string(row, "client_addr"),
            state: string(row, "state"),
            sync_state: string(row, "sync_state"),
            sync_priority: number(row, "sync_priority").and_then(|n| i32::try_from(n).ok()),
        },
        pid: number(row, "pid")
            .and_then(|n| i64::try_from(n).ok())
            .unwrap_or_default(),
        written: either("write_lsn", "write_location"),
        flushed: either("flush_lsn", "flush_location"),
        replayed: either("replay_lsn", "replay_location"),
        replied: string(row, "reply_time"),
    }
}

fn slot(row: &Map<String, Value>) -> Slot {
    Slot {
        name: string(row, "slot_name").unwrap_or_default(),
        physical: string(row, "slot_type").as_deref() == Some("physical"),
        database: string(row, "database"),
        plugin: string(row, "plugin"),
        active: flag(row, "active"),
        temporary: flag(row, "temporary"),
        restart_lsn: position(row, "restart_lsn"),
        confirmed_flush_lsn: position(row, "confirmed_flush_lsn"),
        xmin: number(row, "xmin"),
        catalog_xmin: number(row, "catalog_xmin"),
        wal_status: string(row, "wal_status"),
        failover: flag(row, "failover"),
        synced: flag(row, "synced"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: [Option<&str>; 15]) -> Vec<Option<String>> {
        values.iter().map(|v| v.map(str::to_owned)).collect()
    }

    #[test]
    fn a_standby() {
        let receiver = r#"{"pid":7,"status":"streaming","received_tli":3,"written_lsn":"0/3000200","latest_end_lsn":"0/3000300","slot_name":"b","conninfo":"user=r"}"#;
        let values = [
            Some("t"),
            Some("1700000000000001"),
            None,
            Some("2"),
            None,
            Some("0/3000100"),
            Some("0/3000080"),
            None,
            Some("f"),
            Some(receiver),
            Some(""),
            Some("on"),
            Some(""),
            Some("[]"),
            None,
        ];
        let sample = understand(
            Moment(std::time::Duration::ZERO),
            PgVersion(170_002),
            &row(values),
        )
        .unwrap();
        assert_eq!(sample.timeline(), Some(Timeline(3)));
        assert_eq!(sample.received_effectively(), Lsn(0x300_0200));
        assert_eq!(
            sample.replication_state(),
            Some(ReplicationState::Streaming)
        );
        assert_eq!(sample.slots, None);
        assert!(!sample.status().is_writable());
    }

    #[test]
    fn a_standby_without_receiver_shows_what_is_known_and_its_archive() {
        // What the receiver function returns when there is none: a row of nulls.
        let values = [
            Some("t"),
            Some("1"),
            None,
            Some("2"),
            None,
            None,
            Some("0/3000080"),
            None,
            Some("t"),
            Some(r#"{"pid":null,"status":null}"#),
            Some("cp"),
            Some("on"),
            Some(""),
            Some("[]"),
            Some("[]"),
        ];
        let mut sample = understand(
            Moment(std::time::Duration::ZERO),
            PgVersion(150_000),
            &row(values),
        )
        .unwrap();
        assert_eq!(sample.receiver, None);
        assert_eq!(
            (sample.timeline(), sample.checkpoint_timeline),
            (None, Some(Timeline(2))),
            "a checkpoint may be older than what was received since"
        );
        sample.known_timeline = Some(Timeline(3));
        assert_eq!(sample.timeline(), Some(Timeline(3)));
        assert_eq!(
            sample.replication_state(),
            Some(ReplicationState::InArchiveRecovery)
        );
        assert!(sample.replay_paused && sample.slots.as_ref().is_some_and(Vec::is_empty));
    }

    #[test]
    fn a_receiver_that_has_heard_nothing_has_no_timeline() {
        let row = serde_json::from_str(
            r#"{"pid":7,"status":"starting","received_tli":1,"latest_end_lsn":null}"#,
        )
        .unwrap();
        assert_eq!(receiver(&row).unwrap().timeline, None);
    }

    #[test]
    fn old_releases_are_asked_in_their_own_words() {
        let old = statement(PgVersion(90_500), Wants { slots: true });
        assert!(
            old.contains("pg_current_xlog_location()")
                && !old.contains("_flush_")
                && old.contains("pg_replication_slots")
        );
        assert!(!old.contains("wal_receiver") && !old.contains("restore_command"));
        let new = statement(PgVersion(180_000), Wants::default());
        assert!(
            new.contains("pg_current_wal_flush_lsn()")
                && !new.contains("xlog")
                && !new.contains("pg_replication_slots")
        );
    }
}
