//! WAL from before this standby was copied. Its own begins at its base backup; a logical slot that it takes over may have to decode from
//! further back. Those segments are read from the leader, which keeps them for the same slot, while the server runs, and put in place while
//! it is stopped and nothing can remove them.
//!
//! Until then they lie in `pg_wal` under names that PostgreSQL takes for its own drafts: it removes them after a crash and never reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tokio::io::AsyncWriteExt as _;

use super::control::ControlData;
use super::sql::{Session, SqlError};
use super::write::{FileError, sync_directory};
use super::{directory, write};
use crate::types::Lsn;

/// More than this is not fetched, in bytes: the slot is copied once its consumer has moved on.
const LIMIT: u64 = 1 << 30;
/// Read at once, in bytes.
const CHUNK: u32 = 4 << 20;
const DRAFT: &str = "xlogtemp.howdah.";
const UNFINISHED: &str = "xlogtemp.howdah-unfinished";

/// WAL that decoding takes, as far as a server may lack it: what is after its last checkpoint is there, or it could not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where the slot decodes from.
    pub from: Lsn,
    /// Where this server's last checkpoint begins.
    redo: Lsn,
    segment_size: u32,
}

impl Span {
    /// From there to the last checkpoint of this server.
    #[must_use]
    pub fn new(from: Lsn, here: &ControlData) -> Span {
        Span {
            from,
            redo: here.redo,
            segment_size: here.wal_segment_size.max(1),
        }
    }

    /// A segment's place in the history of the cluster, whatever its timeline; `None`: not the name of a segment.
    fn number_of(&self, name: &str) -> Option<u64> {
        if name.len() != 24 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let part = |range| u64::from_str_radix(name.get(range)?, 16).ok();
        let per_id = (0x1_0000_0000 / u64::from(self.segment_size)).max(1);
        part(8..16)?.checked_mul(per_id)?.checked_add(part(16..24)?)
    }

    /// The segments that are neither there nor fetched, by number.
    fn missing(&self, names: &[String]) -> BTreeSet<u64> {
        let size = u64::from(self.segment_size);
        let present: BTreeSet<u64> = names
            .iter()
            .map(|name| name.strip_prefix(DRAFT).unwrap_or(name))
            .filter_map(|name| self.number_of(name))
            .collect();
        (self.from.0 / size..=self.redo.0 / size)
            .filter(|number| !present.contains(number))
            .collect()
    }
}

/// Why WAL was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The leader cannot be asked.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// A file here cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It would be too much.
    #[error(
        "its position {from} is {} MB before the first WAL of this server; at most {} MB are fetched from the leader, and no more than half \
         of what is free here: it is copied when its consumer has moved on", bytes >> 20, limit >> 20
    )]
    TooMuch {
        /// Where the slot decodes from.
        from: Lsn,
        /// What is missing here.
        bytes: u64,
        /// What may be fetched.
        limit: u64,
    },
    /// The leader has removed it.
    #[error("the leader has no WAL from {from} on any more")]
    Gone {
        /// Where the slot decodes from.
        from: Lsn,
    },
}

fn names_in(directory: &Path) -> Result<Vec<String>, FileError> {
    let read = || -> io::Result<Vec<String>> {
        fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    read().map_err(FileError::wrap("read", directory))
}

/// Whether all of it is here, or fetched.
///
/// # Errors
/// `pg_wal` cannot be read.
pub fn is_here(data_dir: &Path, span: Span) -> Result<bool, FileError> {
    let names = names_in(&data_dir.join("pg_wal"))?;
    Ok(span.missing(&names).is_empty())
}

/// Fetches what is missing. When it is dropped half-way, the whole segments stay, and the next call goes on after them.
///
/// # Errors
/// [`WalError`].
pub async fn fetch(session: &Session, data_dir: &Path, span: Span) -> Result<(), WalError> {
    let from = span.from;
    let wal = data_dir.join("pg_wal");
    let missing = span.missing(&names_in(&wal)?);
    if missing.is_empty() {
        return Ok(());
    }
    let bytes = missing.len() as u64 * u64::from(span.segment_size);
    let free =
        directory::free_space(&wal).map_err(FileError::wrap("ask for free space of", &wal))?;
    let limit = LIMIT.min(free / 2);
    if bytes > limit {
        return Err(WalError::TooMuch { from, bytes, limit });
    }
    // A segment may be there once for each timeline; the server picks by its history.
    let mut on_leader: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    let list = "SELECT pg_catalog.pg_ls_dir('pg_wal', false, false)";
    for name in session.simple(list).await?.into_iter().flatten().flatten() {
        if let Some(number) = span.number_of(&name) {
            on_leader.entry(number).or_default().push(name);
        }
    }
    for number in &missing {
        let names = on_leader.get(number).ok_or(WalError::Gone { from })?;
        for name in names {
            let whole = fetch_one(
                session,
                &wal,
                name,
                span.segment_size,
                write::file_mode(data_dir),
            );
            if !whole.await? {
                return Err(WalError::Gone { from });
            }
        }
    }
    tracing::info!(
        segments = missing.len(),
        "fetched the WAL from {from} on from the leader, for a logical slot that is older than this server"
    );
    Ok(())
}

/// Whether it was there in its whole length.
async fn fetch_one(
    session: &Session,
    wal: &Path,
    name: &str,
    size: u32,
    mode: u32,
) -> Result<bool, WalError> {
    let path = wal.join(UNFINISHED);
    let wrap = |action| FileError::wrap(action, &path);
    let mut file = tokio::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&path)
        .await
        .map_err(wrap("create"))?;
    let statement =
        format!("SELECT pg_catalog.pg_read_binary_file('pg_wal/{name}', $1, $2, false)");
    for offset in (0..size).step_by(CHUNK as usize) {
        let length = CHUNK.min(size - offset);
        let row = session
            .query_one(&statement, &[&i64::from(offset), &i64::from(length)])
            .await?;
        let chunk: &[u8] = row.try_get(0).map_err(SqlError::Postgres)?;
        if chunk.len() != length as usize {
            return Ok(false);
        }
        file.write_all(chunk).await.map_err(wrap("write"))?;
    }
    file.sync_all().await.map_err(wrap("sync"))?;
    let draft = wal.join(format!("{DRAFT}{name}"));
    fs::rename(&path, &draft).map_err(wrap("rename"))?;
    Ok(true)
}

/// Puts what was fetched in place, in the data directory of a stopped server: for its archiver it is done, as after a base backup
/// (`pg_receivewal` and `pg_basebackup` mark theirs alike).
///
/// # Errors
/// A file cannot be renamed or written.
pub fn put_in_place(data_dir: &Path) -> Result<(), FileError> {
    let wal = data_dir.join("pg_wal");
    let status = wal.join("archive_status");
    let mut placed = false;
    for name in names_in(&wal)? {
        let Some(segment) = name.strip_prefix(DRAFT) else {
            continue;
        };
        let (draft, place) = (wal.join(&name), wal.join(segment));
        if place.exists() {
            fs::remove_file(&draft).map_err(FileError::wrap("remove", &draft))?;
            continue;
        }
        let done: PathBuf = status.join(format!("{segment}.done"));
        File::create(&done).map_err(FileError::wrap("create", &done))?;
        fs::rename(&draft, &place).map_err(FileError::wrap("rename", &draft))?;
        placed = true;
    }
    if placed {
        for directory in [&status, &wal] {
            sync_directory(directory).map_err(FileError::wrap("sync", directory))?;
        }
    }
    Ok(())
}

/// Removes what was fetched and is of no use any more.
///
/// # Errors
/// A file cannot be removed.
pub fn discard(data_dir: &Path) -> Result<(), FileError> {
    let wal = data_dir.join("pg_wal");
    for name in names_in(&wal)? {
        if name.starts_with(DRAFT) || name == UNFINISHED {
            let path = wal.join(name);
            fs::remove_file(&path).map_err(FileError::wrap("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u32 = 16 << 20;

    fn span(from: u64, redo: u64, segment_size: u32) -> Span {
        let at = |number: u64| Lsn(number * u64::from(segment_size) + 40);
        Span {
            from: at(from),
            redo: at(redo),
            segment_size,
        }
    }

    #[test]
    fn names_of_segments() {
        let number_of = |name, size| span(0, 0, size).number_of(name);
        assert_eq!(number_of("000000010000000000000002", SIZE), Some(2));
        assert_eq!(number_of("0000000300000002000000FF", SIZE), Some(0x2FF));
        assert_eq!(number_of("000000010000000100000003", 1 << 30), Some(7));
        for other in ["00000002.history", "000000010000000000000002.partial", ""] {
            assert_eq!(number_of(other, SIZE), None, "{other}");
        }
    }

    #[test]
    fn what_is_missing_reaches_from_the_slot_to_the_checkpoint() {
        let names = [
            "000000010000000000000005",
            "000000020000000000000006",
            "xlogtemp.howdah.000000010000000000000003",
            "archive_status",
        ]
        .map(str::to_owned);
        let missing = |from| Vec::from_iter(span(from, 6, SIZE).missing(&names));
        assert_eq!(missing(2), [2, 4]);
        assert_eq!(missing(3), [4]);
        assert_eq!(missing(5), [0; 0]);
        assert_eq!(missing(9), [0; 0], "after the checkpoint");
    }

    #[test]
    fn what_was_fetched_is_put_in_place_once_and_never_archived() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("pg_wal");
        fs::create_dir_all(wal.join("archive_status")).unwrap();
        let (new, there) = ("000000010000000000000002", "000000010000000000000003");
        fs::write(wal.join(format!("{DRAFT}{new}")), "fetched").unwrap();
        fs::write(wal.join(format!("{DRAFT}{there}")), "fetched").unwrap();
        fs::write(wal.join(there), "own").unwrap();
        fs::write(wal.join(UNFINISHED), "half").unwrap();
        put_in_place(dir.path()).unwrap();
        discard(dir.path()).unwrap();
        let mut names = names_in(&wal).unwrap();
        names.sort();
        assert_eq!(names, [new, there, "archive_status"]);
        assert_eq!(fs::read_to_string(wal.join(new)).unwrap(), "fetched");
        assert_eq!(fs::read_to_string(wal.join(there)).unwrap(), "own");
        let done = names_in(&wal.join("archive_status")).unwrap();
        assert_eq!(done, [format!("{new}.done")]);
    }
}
