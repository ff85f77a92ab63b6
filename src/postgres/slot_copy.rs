//! Copies of logical slots (spec/postgres-management.md §11.6): PostgreSQL has no statement that copies a slot between servers.
//!
//! A copy is all that decoding takes, so that it works whenever this server becomes the primary, also when nobody has moved the slot since:
//! - the slot's state file;
//! - the snapshot that the leader has written down at the slot's position, if there is one: without it, decoding begins only when all
//!   transactions that ran there have ended, and silently leaves out what was committed meanwhile;
//! - the WAL from that position on, as far as this server does not have it ([`older_wal`]).
//!
//! All of it is read while the server runs, and put in place while it is stopped. Nothing here decides when.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::conninfo::Upstream;
use super::control::ControlData;
use super::logical::ask_leader;
use super::older_wal::{self, Span, WalError};
use super::slots::LogicalSlot;
use super::sql::SqlError;
use super::write::FileError;
use super::{Settings, write};
use crate::types::{Lsn, PgVersion};

/// A snapshot is a few kilobytes; one of this size is not taken, in bytes.
const SNAPSHOT_LIMIT: usize = 16 << 20;

/// A slot as the leader has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Its name.
    pub name: String,
    /// The content of its state file.
    pub state: Vec<u8>,
    /// Where decoding begins.
    pub from: Lsn,
    /// The content of the snapshot that is written down for this position.
    pub snapshot: Option<Vec<u8>>,
}

/// Why nothing was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The leader cannot be asked.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// It is a standby (still): its slots are copies themselves.
    #[error("the leader is still in recovery")]
    InRecovery,
}

/// Reads the wanted slots from the leader. Those that it does not have, or has as something else, are left out; so are those whose WAL
/// cannot be had, and failover slots (17+), which PostgreSQL copies itself. What was fetched of the WAL stays for another try.
///
/// # Errors
/// [`CopyError`].
pub async fn read(
    settings: &Settings,
    version: PgVersion,
    leader: &Upstream,
    wanted: &BTreeMap<String, LogicalSlot>,
    here: &ControlData,
) -> Result<Vec<Copy>, CopyError> {
    let session = ask_leader(settings, version, leader).await?;
    if session.is_in_recovery().await? {
        return Err(CopyError::InRecovery);
    }
    let failover = if version.at_least(17) {
        "AND NOT failover"
    } else {
        ""
    };
    // 'pg_replslot' is a directory of slots by name, which are safe in a path; snapshots are named by their position.
    let statement = format!(
        "SELECT slot_name::text, database::text, plugin::text, restart_lsn::text, \
         pg_catalog.pg_read_binary_file('pg_replslot/' || slot_name || '/state'), \
         pg_catalog.pg_read_binary_file('pg_logical/snapshots/' || replace(restart_lsn::text, '/', '-') || '.snap', 0, {SNAPSHOT_LIMIT}, true) \
         FROM pg_catalog.pg_replication_slots \
         WHERE slot_type = 'logical' AND NOT temporary AND restart_lsn IS NOT NULL AND slot_name::text = ANY($1) {failover}"
    );
    let names: Vec<&str> = wanted.keys().map(String::as_str).collect();
    let mut copies = Vec::new();
    for row in session.query(&statement, &[&names]).await? {
        let field = |error| SqlError::Postgres(error);
        let name: String = row.try_get(0).map_err(field)?;
        let slot = LogicalSlot {
            database: row.try_get(1).map_err(field)?,
            plugin: row.try_get(2).map_err(field)?,
        };
        if wanted.get(&name) != Some(&slot) {
            tracing::warn!(
                slot = name,
                "the leader's slot has another database or plugin than configured; it is not copied yet"
            );
            continue;
        }
        let position: &str = row.try_get(3).map_err(field)?;
        let Ok(from) = position.parse() else { continue };
        let snapshot: Option<Vec<u8>> = row.try_get(5).map_err(field)?;
        match older_wal::fetch(&session, &settings.data_dir, Span::new(from, here)).await {
            Ok(()) => copies.push(Copy {
                name,
                state: row.try_get(4).map_err(field)?,
                from,
                snapshot: snapshot.filter(|content| content.len() < SNAPSHOT_LIMIT),
            }),
            Err(WalError::Sql(error)) => return Err(error.into()),
            Err(error @ (WalError::File(_) | WalError::TooMuch { .. } | WalError::Gone { .. })) => {
                tracing::warn!(slot = name, "the logical slot is not copied: {error}");
            }
        }
    }
    Ok(copies)
}

/// Puts the copies into the data directory of a stopped server, `here` its control file; one of the same name is replaced. Those whose WAL
/// was removed by the stop's checkpoint are left out.
///
/// # Errors
/// A file or directory cannot be written. What is half written has a name that PostgreSQL removes at its start.
pub fn install<'a>(
    data_dir: &Path,
    copies: &'a [Copy],
    here: &ControlData,
) -> Result<Vec<&'a str>, FileError> {
    older_wal::put_in_place(data_dir)?;
    let mut installed = Vec::new();
    for copy in copies {
        if older_wal::is_here(data_dir, Span::new(copy.from, here))? {
            place(data_dir, copy)?;
            installed.push(copy.name.as_str());
        } else {
            tracing::warn!(
                slot = copy.name,
                "the WAL from {} on was removed while the server stopped; the slot is copied later",
                copy.from
            );
        }
    }
    Ok(installed)
}

fn place(data_dir: &Path, copy: &Copy) -> Result<(), FileError> {
    let file_mode = write::file_mode(data_dir);
    if let Some(content) = &copy.snapshot {
        let snapshots = data_dir.join("pg_logical/snapshots");
        let name = copy.from.to_string().replace('/', "-");
        let place = snapshots.join(format!("{name}.snap"));
        // The name of PostgreSQL's own drafts, which it removes.
        let draft = snapshots.join(format!("{name}.snap.howdah.tmp"));
        write_new(&draft, content, file_mode)?;
        fs::rename(&draft, &place).map_err(FileError::wrap("rename", &draft))?;
        sync(&snapshots)?;
    }
    let slots = data_dir.join("pg_replslot");
    let directory_mode = if file_mode & 0o040 == 0 { 0o700 } else { 0o750 };
    let draft = slots.join(format!("{}.tmp", copy.name));
    let place = slots.join(&copy.name);
    remove(&draft)?;
    DirBuilder::new()
        .mode(directory_mode)
        .create(&draft)
        .map_err(FileError::wrap("create", &draft))?;
    write_new(&draft.join("state"), &copy.state, file_mode)?;
    sync(&draft)?;
    remove(&place)?;
    fs::rename(&draft, &place).map_err(FileError::wrap("rename", &draft))?;
    sync(&slots)
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        })
        .map_err(FileError::wrap("write", path))
}

fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::wrap("remove", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sync(directory: &Path) -> Result<(), FileError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(FileError::wrap("sync", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_put_in_place_whole_and_replace_what_was_there() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        fs::set_permissions(data, fs::Permissions::from_mode(0o700)).unwrap();
        let old = data.join("pg_replslot/p");
        fs::create_dir_all(&old).unwrap();
        fs::write(old.join("state"), "old").unwrap();
        fs::write(old.join("xid-1.spill"), "old").unwrap();
        // Left over from an attempt that was interrupted.
        fs::create_dir_all(data.join("pg_replslot/p.tmp/state")).unwrap();
        fs::create_dir_all(data.join("pg_logical/snapshots")).unwrap();
        let copy = Copy {
            name: "p".into(),
            state: b"new".to_vec(),
            from: Lsn(0x1_0174_27E8),
            snapshot: Some(b"transactions".to_vec()),
        };
        place(data, &copy).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(fs::read(old.join("state")).unwrap(), b"new");
        assert_eq!((mode(&old), mode(&old.join("state"))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&old).unwrap().count(), 1);
        assert_eq!(fs::read_dir(data.join("pg_replslot")).unwrap().count(), 1);
        let snapshot = data.join("pg_logical/snapshots/1-17427E8.snap");
        assert_eq!(fs::read(snapshot).unwrap(), b"transactions");
    }
}
