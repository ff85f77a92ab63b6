//! The control file: what PostgreSQL last wrote about itself (spec §8).
//!
//! Two readers of one type. [`read_file`] decodes `global/pg_control` itself, for the layouts it knows (13 to 18) and only
//! when the checksum fits; it costs microseconds, so a promotion or shutdown can be followed closely. [`parse`] understands
//! what `pg_controldata` of any supported release prints. [`read`] prefers the first and falls back to the second.
//! Nothing here writes to the data directory.

use std::path::Path;
use std::time::Duration;

use super::Settings;
use super::binaries::{ToolError, run_checked};
use super::watch::Watch;
pub use crate::ha::observation::ControlState;
use crate::types::{Lsn, PgVersion, SystemId, Timeline};

/// The control file's facts. `None`: this release does not record it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlData {
    /// The database system identifier.
    pub system_id: SystemId,
    /// What the server was last doing.
    pub state: ControlState,
    /// Position of the latest checkpoint record.
    pub checkpoint: Lsn,
    /// Where recovery from it would begin.
    pub redo: Lsn,
    /// Timeline of the latest checkpoint.
    pub timeline: Timeline,
    /// The WAL file that holds `redo`.
    pub redo_wal_file: String,
    /// A stopped standby must replay to here before it is consistent; zero on a primary.
    pub min_recovery_end: Lsn,
    /// The timeline of `min_recovery_end`; `None` when the position is zero.
    pub min_recovery_timeline: Option<Timeline>,
    /// `wal_log_hints`.
    pub wal_log_hints: Option<bool>,
    /// Data pages carry checksums.
    pub data_checksums: bool,
    /// The `max_*` settings the WAL was written with (spec/configuration.md §5.2).
    pub limits: Limits,
    /// Size of a WAL segment in bytes.
    pub wal_segment_size: u32,
}

/// Settings a standby must not have lower than its primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names of the settings")]
pub struct Limits {
    pub max_connections: Option<u32>,
    pub max_prepared_transactions: Option<u32>,
    pub max_locks_per_transaction: Option<u32>,
    pub max_worker_processes: Option<u32>,
    pub max_wal_senders: Option<u32>,
}

impl ControlData {
    /// pg_rewind can work on this directory (spec §10.3).
    #[must_use]
    pub fn rewindable(&self) -> bool {
        self.data_checksums || self.wal_log_hints == Some(true)
    }
}

/// Why there are no facts.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A layout this program does not know.
    #[error("pg_control has the unknown layout version {0}")]
    UnknownLayout(u32),
    /// The checksum does not fit: damaged, or caught in the middle of a write.
    #[error("pg_control has a wrong checksum")]
    Checksum,
    /// `pg_controldata` could not be run.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// `pg_controldata` left out something needed.
    #[error("pg_controldata does not say {0:?}")]
    Missing(&'static str),
}

/// Decodes `global/pg_control`.
///
/// # Errors
/// Unreadable, unknown layout, wrong checksum (try again: the server may have been writing).
pub fn read_file(data_dir: &Path) -> Result<ControlData, ControlError> {
    let path = data_dir.join("global/pg_control");
    let bytes = std::fs::read(&path).map_err(|source| ControlError::Unreadable {
        path: path.display().to_string(),
        source,
    })?;
    decode(&bytes)
}

/// Reads the control file, whatever the release.
///
/// # Errors
/// Neither way worked; the error is the one of `pg_controldata`.
pub async fn read(settings: &Settings) -> Result<ControlData, ControlError> {
    for _ in 0..5 {
        match read_file(&settings.data_dir) {
            Ok(data) => return Ok(data),
            Err(ControlError::Checksum) => tokio::time::sleep(Duration::from_millis(2)).await,
            Err(ControlError::UnknownLayout(_)) => break,
            Err(error) => return Err(error),
        }
    }
    let mut command = settings.tool("pg_controldata");
    command.arg(&settings.data_dir);
    parse(&run_checked(command).await?)
}

/// Watches the control file.
pub(super) fn watch(settings: &Settings) -> Watch {
    Watch::new(
        &settings.data_dir.join("global/pg_control"),
        Duration::from_millis(20),
    )
}

/// The fixed positions of the layouts 1300 (PostgreSQL 13 to 16), 1700 and 1800, on the 64-bit little- or big-endian
/// machine that wrote them, which is this one.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at + N)?.try_into().ok()
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_ne_bytes)
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_ne_bytes)
    }
}

fn decode(bytes: &[u8]) -> Result<ControlData, ControlError> {
    let fields = Bytes(bytes);
    let version = fields.u32(8).ok_or(ControlError::Checksum)?;
    // Layout 1800 has one more byte before the nonce.
    let checksum_at = match version {
        1300 | 1700 => 288,
        1800 => 292,
        other => return Err(ControlError::UnknownLayout(other)),
    };
    let covered = bytes.get(..checksum_at).ok_or(ControlError::Checksum)?;
    if fields.u32(checksum_at) != Some(crc32c(covered)) {
        return Err(ControlError::Checksum);
    }
    fields_of(&fields).ok_or(ControlError::Checksum)
}

fn fields_of(fields: &Bytes<'_>) -> Option<ControlData> {
    let state = match fields.u32(16)? {
        0 => ControlState::StartingUp,
        1 => ControlState::ShutDown,
        2 => ControlState::ShutDownInRecovery,
        3 => ControlState::ShuttingDown,
        4 => ControlState::InCrashRecovery,
        5 => ControlState::InArchiveRecovery,
        6 => ControlState::InProduction,
        _ => ControlState::Unknown,
    };
    let redo = Lsn(fields.u64(40)?);
    let timeline = Timeline(fields.u32(48)?);
    let min_recovery_end = Lsn(fields.u64(136)?);
    let wal_segment_size = fields.u32(228)?;
    let limit = |at| fields.u32(at);
    Some(ControlData {
        system_id: fields.u64(0)?.to_string().parse().ok()?,
        state,
        checkpoint: Lsn(fields.u64(32)?),
        redo,
        timeline,
        redo_wal_file: wal_file(timeline, redo, wal_segment_size),
        min_recovery_end,
        min_recovery_timeline: timeline_of(fields.u32(144)?),
        wal_log_hints: Some(fields.0.get(176)? & 1 == 1),
        data_checksums: fields.u32(252)? != 0,
        limits: Limits {
            max_connections: limit(180),
            max_worker_processes: limit(184),
            max_wal_senders: limit(188),
            max_prepared_transactions: limit(192),
            max_locks_per_transaction: limit(196),
        },
        wal_segment_size,
    })
}

fn timeline_of(number: u32) -> Option<Timeline> {
    (number != 0).then_some(Timeline(number))
}

/// The name of the WAL file that holds a position.
#[must_use]
pub fn wal_file(timeline: Timeline, lsn: Lsn, segment_size: u32) -> String {
    let size = u64::from(segment_size.max(1));
    let segment = lsn.0 / size;
    let per_id = (0x1_0000_0000 / size).max(1);
    format!(
        "{:08X}{:08X}{:08X}",
        timeline.0,
        segment / per_id,
        segment % per_id
    )
}

/// CRC-32C (Castagnoli), as PostgreSQL computes it. A few hundred bytes at a time: no table needed.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg())
        })
    })
}

/// Understands the output of `pg_controldata` (run untranslated) of 9.3 to 18.
///
/// # Errors
/// [`ControlError::Missing`]: a line that every release prints is not there or unreadable.
pub fn parse(output: &str) -> Result<ControlData, ControlError> {
    let text = |key: &'static str| -> Option<&str> {
        output.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            // Below 9.5 some settings are printed as "Current … setting".
            let name = name.strip_prefix("Current ").unwrap_or(name);
            (name.trim_end() == key).then(|| value.trim())
        })
    };
    let need = |key: &'static str| text(key).ok_or(ControlError::Missing(key));
    fn value<T: std::str::FromStr>(key: &'static str, text: &str) -> Result<T, ControlError> {
        text.parse().map_err(|_| ControlError::Missing(key))
    }
    fn get<T: std::str::FromStr>(found: Option<&str>) -> Option<T> {
        found.and_then(|text| text.parse().ok())
    }

    const SYSTEM_ID: &str = "Database system identifier";
    const CHECKPOINT: &str = "Latest checkpoint location";
    const REDO: &str = "Latest checkpoint's REDO location";
    const TIMELINE: &str = "Latest checkpoint's TimeLineID";
    const SEGMENT: &str = "Bytes per WAL segment";
    let state = match need("Database cluster state")? {
        "starting up" => ControlState::StartingUp,
        "shut down" => ControlState::ShutDown,
        "shut down in recovery" => ControlState::ShutDownInRecovery,
        "shutting down" => ControlState::ShuttingDown,
        "in crash recovery" => ControlState::InCrashRecovery,
        "in archive recovery" => ControlState::InArchiveRecovery,
        "in production" => ControlState::InProduction,
        _ => ControlState::Unknown,
    };
    let redo = value(REDO, need(REDO)?)?;
    let timeline = Timeline(value(TIMELINE, need(TIMELINE)?)?);
    let wal_segment_size = value(SEGMENT, need(SEGMENT)?)?;
    Ok(ControlData {
        system_id: value(SYSTEM_ID, need(SYSTEM_ID)?)?,
        state,
        checkpoint: value(CHECKPOINT, need(CHECKPOINT)?)?,
        redo,
        timeline,
        redo_wal_file: text("Latest checkpoint's REDO WAL file")
            .map_or_else(|| wal_file(timeline, redo, wal_segment_size), str::to_owned),
        min_recovery_end: get(text("Minimum recovery ending location")).unwrap_or(Lsn::ZERO),
        min_recovery_timeline: get(text("Min recovery ending loc's timeline"))
            .and_then(timeline_of),
        wal_log_hints: text("wal_log_hints setting").map(|v| v == "on"),
        data_checksums: text("Data page checksum version").is_some_and(|v| v != "0"),
        limits: Limits {
            max_connections: get(text("max_connections setting")),
            max_prepared_transactions: get(text("max_prepared_xacts setting")),
            max_locks_per_transaction: get(text("max_locks_per_xact setting")),
            max_worker_processes: get(text("max_worker_processes setting")),
            max_wal_senders: get(text("max_wal_senders setting")),
        },
        wal_segment_size,
    })
}

/// Where a primary that was shut down cleanly ends (spec §8.2, ha.md §7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownPositions {
    /// The shutdown checkpoint.
    pub checkpoint: Lsn,
    /// What every standby must have received: the segment switch right before the checkpoint if there is one (with
    /// archiving), else the checkpoint itself.
    pub published: Lsn,
}

/// The positions of a cleanly stopped (or just stopping) primary; `None` if it is not in state "shut down" or its last
/// record is no shutdown checkpoint.
///
/// # Errors
/// The WAL dump tool failed.
pub async fn shutdown_positions(
    settings: &Settings,
    control: &ControlData,
    version: PgVersion,
) -> Result<Option<ShutdownPositions>, ToolError> {
    if control.state != ControlState::ShutDown {
        return Ok(None);
    }
    let last = wal_record(settings, control.timeline, control.checkpoint, version).await?;
    let Some(last) =
        last.filter(|r| r.is_xlog && r.description.to_lowercase().contains("checkpoint"))
    else {
        return Ok(None);
    };
    if !last.description.to_lowercase().contains("shutdown") {
        return Ok(None);
    }
    let checkpoint = control.checkpoint;
    // With little WAL kept, its file may be gone already; the checkpoint is the stricter answer.
    let before = wal_record(settings, control.timeline, last.previous, version)
        .await
        .unwrap_or_else(|error| {
            tracing::debug!(%error, "the record before the shutdown checkpoint cannot be read");
            None
        });
    let switch = before
        .is_some_and(|r| r.is_xlog && matches!(r.description.trim(), "SWITCH" | "xlog switch"));
    Ok(Some(ShutdownPositions {
        checkpoint,
        published: if switch { last.previous } else { checkpoint },
    }))
}

/// One record as the WAL dump tool prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct WalRecord {
    is_xlog: bool,
    previous: Lsn,
    description: String,
}

async fn wal_record(
    settings: &Settings,
    timeline: Timeline,
    lsn: Lsn,
    version: PgVersion,
) -> Result<Option<WalRecord>, ToolError> {
    let tool = if version.at_least(10) {
        "pg_waldump"
    } else {
        "pg_xlogdump"
    };
    let mut command = settings.tool(tool);
    command.env("PGDATA", &settings.data_dir).args([
        "-t",
        &timeline.to_string(),
        "-s",
        &lsn.to_string(),
        "-n",
        "1",
    ]);
    Ok(run_checked(command)
        .await?
        .lines()
        .find_map(parse_wal_record))
}

/// `rmgr: XLOG len (rec/tot): 114/114, tx: 0, lsn: 0/01500718, prev 0/015006A0, desc: CHECKPOINT_SHUTDOWN redo …`
/// (before 9.5 `prev 0/…, bkp: 0000, desc: checkpoint: redo …; shutdown`).
fn parse_wal_record(line: &str) -> Option<WalRecord> {
    let manager = line
        .strip_prefix("rmgr:")?
        .split_ascii_whitespace()
        .next()?;
    let (_, rest) = line.split_once("prev ")?;
    let (previous, _) = rest.split_once(',')?;
    let (_, description) = line.split_once("desc: ")?;
    Some(WalRecord {
        is_xlog: manager == "XLOG",
        previous: previous.parse().ok()?,
        description: description.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What 15 prints for a fresh cluster, shortened to the lines in use and some around them.
    const FIFTEEN: &str = "\
pg_control version number:            1300
Database system identifier:           7711102281755614750
Database cluster state:               in archive recovery
pg_control last modified:             Sun Nov 22 20:55:07 2026
Latest checkpoint location:           0/1500718
Latest checkpoint's REDO location:    0/15006E0
Latest checkpoint's REDO WAL file:    000000020000000000000001
Latest checkpoint's TimeLineID:       2
Latest checkpoint's PrevTimeLineID:   2
Minimum recovery ending location:     0/3000060
Min recovery ending loc's timeline:   2
wal_level setting:                    replica
wal_log_hints setting:                on
max_connections setting:              100
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
Bytes per WAL segment:                16777216
Data page checksum version:           0
";

    fn fifteen() -> ControlData {
        ControlData {
            system_id: "7711102281755614750".parse().unwrap(),
            state: ControlState::InArchiveRecovery,
            checkpoint: Lsn(0x150_0718),
            redo: Lsn(0x150_06E0),
            timeline: Timeline(2),
            redo_wal_file: "000000020000000000000001".to_owned(),
            min_recovery_end: Lsn(0x300_0060),
            min_recovery_timeline: Some(Timeline(2)),
            wal_log_hints: Some(true),
            data_checksums: false,
            limits: Limits {
                max_connections: Some(100),
                max_prepared_transactions: Some(0),
                max_locks_per_transaction: Some(64),
                max_worker_processes: Some(8),
                max_wal_senders: Some(10),
            },
            wal_segment_size: 16_777_216,
        }
    }

    #[test]
    fn output_of_15() {
        assert_eq!(parse(FIFTEEN).unwrap(), fifteen());
        assert!(fifteen().rewindable());
    }

    /// 12 added `max_wal_senders`, 9.5 `track_commit_timestamp`; the other lines kept their names.
    #[test]
    fn output_of_older_releases() {
        let twelve_less: String = FIFTEEN
            .lines()
            .filter(|l| !l.starts_with("max_wal_senders"))
            .map(|l| format!("{l}\n"))
            .collect();
        let data = parse(&twelve_less).unwrap();
        assert_eq!(data.limits.max_wal_senders, None);

        // 9.3 and 9.4: "Current … setting"; 9.3 has neither wal_log_hints nor max_worker_processes.
        let nine_three: String = twelve_less
            .lines()
            .filter(|l| !l.starts_with("wal_log_hints") && !l.starts_with("max_worker"))
            .map(|l| match l.split_once(" setting:") {
                Some((name, value)) => format!("Current {name} setting:{value}\n"),
                None => format!("{l}\n"),
            })
            .collect();
        let data = parse(&nine_three).unwrap();
        assert_eq!(data.limits.max_connections, Some(100));
        assert_eq!(
            (data.wal_log_hints, data.limits.max_worker_processes),
            (None, None)
        );
        assert!(!data.rewindable());
    }

    #[test]
    fn output_of_18_ends_with_more_lines() {
        let eighteen = FIFTEEN.replace(
            "checksum version:           0",
            "checksum version:           1",
        ) + "Default char data signedness:         signed\n";
        assert!(parse(&eighteen).unwrap().data_checksums);
    }

    #[test]
    fn missing_lines_are_named() {
        let error = parse("pg_control version number: 1300\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "pg_controldata does not say \"Database cluster state\""
        );
    }

    /// A file of the given layout with the values of [`fifteen`].
    fn file(version: u32, checksum_at: usize) -> Vec<u8> {
        let mut bytes = vec![0_u8; 8192];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &7_711_102_281_755_614_750_u64.to_ne_bytes());
        put(8, &version.to_ne_bytes());
        put(16, &5_u32.to_ne_bytes());
        put(32, &0x150_0718_u64.to_ne_bytes());
        put(40, &0x150_06E0_u64.to_ne_bytes());
        put(48, &2_u32.to_ne_bytes());
        put(136, &0x300_0060_u64.to_ne_bytes());
        put(144, &2_u32.to_ne_bytes());
        put(176, &[1]);
        for (at, value) in [
            (180, 100),
            (184, 8),
            (188, 10),
            (192, 0),
            (196, 64),
            (228, 16_777_216_u32),
        ] {
            put(at, &value.to_ne_bytes());
        }
        let crc = crc32c(&bytes[..checksum_at]);
        bytes[checksum_at..checksum_at + 4].copy_from_slice(&crc.to_ne_bytes());
        bytes
    }

    #[test]
    fn the_file_and_the_tool_say_the_same() {
        for (version, checksum_at) in [(1300, 288), (1700, 288), (1800, 292)] {
            assert_eq!(
                decode(&file(version, checksum_at)).unwrap(),
                fifteen(),
                "layout {version}"
            );
        }
    }

    #[test]
    fn a_torn_write_and_an_unknown_layout_are_noticed() {
        let mut torn = file(1300, 288);
        torn[16] = 6;
        assert!(matches!(decode(&torn), Err(ControlError::Checksum)));
        assert!(matches!(
            decode(&file(1201, 288)),
            Err(ControlError::UnknownLayout(1201))
        ));
        assert!(matches!(decode(&[0; 4]), Err(ControlError::Checksum)));
    }

    #[test]
    fn checksum_of_the_standard_text() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn records_of_the_wal_dump() {
        let line = "rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/01500718, prev 0/015006A0, desc: CHECKPOINT_SHUTDOWN redo 0/1500718; tli 1";
        let record = parse_wal_record(line).unwrap();
        assert_eq!((record.is_xlog, record.previous), (true, Lsn(0x150_06A0)));
        assert!(record.description.starts_with("CHECKPOINT_SHUTDOWN"));
        let line = "rmgr: XLOG        len (rec/tot):     24/    24, tx:          0, lsn: 0/02000150, prev 0/02000118, desc: SWITCH ";
        assert_eq!(parse_wal_record(line).unwrap().description.trim(), "SWITCH");
    }

    #[test]
    fn wal_file_names() {
        assert_eq!(
            wal_file(Timeline(10), Lsn(0x1_2345_6789), 16 << 20),
            "0000000A0000000100000023"
        );
        assert_eq!(
            wal_file(Timeline(1), Lsn(0x1_8000_0000), 1 << 30),
            "000000010000000100000002"
        );
    }
}
