//! Logical slots on standbys (spec/postgres-management.md §11.6, 11+): copied from the leader once, then moved along with it, so that a
//! consumer finds its slot after a failover.
//!
//! PostgreSQL has no statement that copies a slot between servers: its state file is read from the leader and put into the stopped
//! standby's `pg_replslot`. Nothing here decides when.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::conninfo::Upstream;
use super::slots::{LogicalSlot, PresentSlot};
use super::sql::{Session, SqlError, Target};
use super::write::FileError;
use super::{Settings, write};
use crate::types::{Lsn, PgVersion};

/// A slot as the leader has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Its name.
    pub name: String,
    /// The content of its state file.
    pub state: Vec<u8>,
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

async fn ask_leader(
    settings: &Settings,
    version: PgVersion,
    leader: &Upstream,
) -> Result<Session, SqlError> {
    let credentials = settings.rewind_credentials(version);
    Target::remote(leader, &settings.database, credentials)
        .connect()
        .await
}

/// Reads the wanted slots from the leader. Those that it does not have, or has as something else, are left out; so are failover slots
/// (17+), which PostgreSQL copies itself.
///
/// # Errors
/// [`CopyError`].
pub async fn read(
    settings: &Settings,
    version: PgVersion,
    leader: &Upstream,
    wanted: &BTreeMap<String, LogicalSlot>,
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
    // 'pg_replslot' is a directory of slots by name, which are safe in a path.
    let statement = format!(
        "SELECT slot_name::text, database::text, plugin::text, \
         pg_catalog.pg_read_binary_file('pg_replslot/' || slot_name || '/state') \
         FROM pg_catalog.pg_replication_slots \
         WHERE slot_type = 'logical' AND NOT temporary AND slot_name::text = ANY($1) {failover}"
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
        if wanted.get(&name) == Some(&slot) {
            let state = row.try_get(3).map_err(field)?;
            copies.push(Copy { name, state });
        } else {
            tracing::warn!(
                slot = name,
                "the leader's slot has another database or plugin than configured; it is not copied yet"
            );
        }
    }
    Ok(copies)
}

/// Puts the copies into the data directory of a stopped server; one of the same name is replaced.
///
/// # Errors
/// A file or directory cannot be written. What is half written has a name that PostgreSQL removes at its start.
pub fn install(data_dir: &Path, copies: &[Copy]) -> Result<(), FileError> {
    let slots = data_dir.join("pg_replslot");
    let file_mode = write::file_mode(data_dir);
    let directory_mode = if file_mode & 0o040 == 0 { 0o700 } else { 0o750 };
    for copy in copies {
        let draft = slots.join(format!("{}.tmp", copy.name));
        let place = slots.join(&copy.name);
        remove(&draft)?;
        DirBuilder::new()
            .mode(directory_mode)
            .create(&draft)
            .map_err(FileError::wrap("create", &draft))?;
        let path = draft.join("state");
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(file_mode)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(&copy.state)?;
                file.sync_all()
            });
        written.map_err(FileError::wrap("write", &path))?;
        sync(&draft)?;
        remove(&place)?;
        fs::rename(&draft, &place).map_err(FileError::wrap("rename", &draft))?;
        sync(&slots)?;
    }
    Ok(())
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

/// Moves a copy along.
///
/// # Errors
/// [`SqlError`]; see [`is_broken`].
pub async fn advance(
    settings: &Settings,
    name: &str,
    database: &str,
    to: Lsn,
) -> Result<(), SqlError> {
    // Decoding from where the slot is may take its time.
    let session = Target::local(settings)
        .named("Patroni slots")
        .database(database)
        .statement_limit(None)
        .connect()
        .await?;
    let statement = "SELECT pg_catalog.pg_replication_slot_advance(slot_name, $2::text::pg_lsn) FROM pg_catalog.pg_replication_slots \
                     WHERE slot_name = $1::text AND NOT active AND confirmed_flush_lsn < $2::text::pg_lsn";
    session.query(statement, &[&name, &to.to_string()]).await?;
    Ok(())
}

/// The slot's WAL is gone (58P01) or the slot is invalidated (55000): only a new copy helps.
#[must_use]
pub fn is_broken(error: &SqlError) -> bool {
    matches!(error.code(), Some("58P01" | "55000"))
}

/// The oldest catalog transactions that slots on the leader keep, by slot. Empty if it is in recovery.
///
/// # Errors
/// [`SqlError`].
pub async fn catalog_horizons(
    settings: &Settings,
    version: PgVersion,
    leader: &Upstream,
) -> Result<BTreeMap<String, Option<u32>>, SqlError> {
    let session = ask_leader(settings, version, leader).await?;
    let statement = "SELECT slot_name::text, catalog_xmin::text FROM pg_catalog.pg_replication_slots WHERE NOT pg_catalog.pg_is_in_recovery()";
    let rows = session.simple(statement).await?;
    let horizon = |row: Vec<Option<String>>| {
        let mut row = row.into_iter();
        Some((row.next()??, row.next()?.and_then(|xid| xid.parse().ok())))
    };
    Ok(rows.into_iter().filter_map(horizon).collect())
}

/// Which copies a consumer could use after a failover (spec/ha.md §16.3). A new copy may need catalog rows that the leader has already
/// removed; it is ready once this node's feedback has held them back on the leader since before the slot's own horizon.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Readiness {
    /// Slots that are not ready; with the slot's horizon on the leader once feedback has reached it.
    waiting: BTreeMap<String, Option<u32>>,
    ready: std::collections::BTreeSet<String>,
}

/// What a look at the leader showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// These have become ready.
    Ready(Vec<String>),
    /// The leader's physical slot for this node holds no catalog rows back: feedback has not arrived.
    NoFeedback,
}

impl Readiness {
    /// The server was started again, or is another: nothing is known of its slots.
    pub fn forget(&mut self) {
        self.waiting.clear();
        self.ready.clear();
    }

    /// Takes in which copies there are; new ones are not ready.
    pub fn observe<'a>(&mut self, copies: impl Iterator<Item = &'a str> + Clone) {
        let there = |name: &String| copies.clone().any(|copy| copy == name);
        self.waiting.retain(|name, _| there(name));
        self.ready.retain(there);
        for copy in copies {
            if !self.ready.contains(copy) && !self.waiting.contains_key(copy) {
                self.waiting.insert(copy.to_owned(), None);
            }
        }
    }

    /// Those that are not ready.
    pub fn waiting(&self) -> impl Iterator<Item = &str> {
        self.waiting.keys().map(String::as_str)
    }

    /// Takes in what the leader holds back. `feedback_slot`: the physical slot on the leader that this node's feedback reaches.
    pub fn look(
        &mut self,
        on_leader: &BTreeMap<String, Option<u32>>,
        feedback_slot: &str,
        present: &[PresentSlot],
    ) -> Seen {
        let Some(Some(held)) = on_leader.get(feedback_slot) else {
            return Seen::NoFeedback;
        };
        for (name, remembered) in &mut self.waiting {
            if remembered.is_none() {
                *remembered = on_leader.get(name).copied().flatten();
            }
        }
        let local = |name: &String| {
            let slot = present.iter().find(|slot| slot.name == *name)?;
            slot.catalog_xmin
        };
        let ready: Vec<String> = self
            .waiting
            .iter()
            .filter(|(name, remembered)| {
                remembered.is_some_and(|remembered| not_after(remembered, *held))
                    && local(name).is_some_and(|mine| not_after(*held, mine))
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in &ready {
            self.waiting.remove(name);
            self.ready.insert(name.clone());
        }
        Seen::Ready(ready)
    }
}

/// Transaction numbers wrap around.
fn not_after(earlier: u32, later: u32) -> bool {
    later.wrapping_sub(earlier) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(catalog_xmin: u32) -> [PresentSlot; 1] {
        [PresentSlot {
            name: "p".into(),
            catalog_xmin: Some(catalog_xmin),
            ..PresentSlot::default()
        }]
    }

    fn leader(physical: Option<u32>, logical: u32) -> BTreeMap<String, Option<u32>> {
        BTreeMap::from([("me".to_owned(), physical), ("p".to_owned(), Some(logical))])
    }

    fn waiting(readiness: &Readiness) -> Vec<&str> {
        readiness.waiting().collect()
    }

    #[test]
    fn a_copy_is_ready_once_feedback_has_held_back_what_it_needs() {
        let mut readiness = Readiness::default();
        readiness.observe(["p"].into_iter());
        assert_eq!(waiting(&readiness), ["p"]);
        assert_eq!(
            readiness.look(&leader(None, 700), "me", &local(700)),
            Seen::NoFeedback
        );
        assert_eq!(
            readiness.look(&leader(Some(650), 700), "other", &local(700)),
            Seen::NoFeedback
        );
        // Feedback is there: from now on the slot's horizon on the leader counts.
        let none = Seen::Ready(vec![]);
        assert_eq!(
            readiness.look(&leader(Some(650), 700), "me", &local(700)),
            none
        );
        // It moves on there, this node's feedback follows, the copy is still behind it.
        assert_eq!(
            readiness.look(&leader(Some(720), 800), "me", &local(710)),
            none
        );
        let ready = Seen::Ready(vec!["p".to_owned()]);
        assert_eq!(
            readiness.look(&leader(Some(720), 800), "me", &local(720)),
            ready
        );
        readiness.observe(["p"].into_iter());
        assert_eq!(waiting(&readiness), [""; 0], "it stays ready");
        readiness.forget();
        readiness.observe(["p"].into_iter());
        assert_eq!(
            waiting(&readiness),
            ["p"],
            "until the server is started again"
        );
        readiness.observe(std::iter::empty());
        assert_eq!(waiting(&readiness), [""; 0]);
    }

    #[test]
    fn transaction_numbers_wrap_around() {
        let mut readiness = Readiness::default();
        readiness.observe(["p"].into_iter());
        let near_end = u32::MAX - 5;
        assert_eq!(
            readiness.look(&leader(Some(3), near_end), "me", &local(10)),
            Seen::Ready(vec!["p".to_owned()])
        );
    }

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
        let copy = Copy {
            name: "p".into(),
            state: b"new".to_vec(),
        };
        install(data, &[copy]).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(fs::read(old.join("state")).unwrap(), b"new");
        assert_eq!((mode(&old), mode(&old.join("state"))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&old).unwrap().count(), 1);
        assert_eq!(fs::read_dir(data.join("pg_replslot")).unwrap().count(), 1);
    }
}
