//! Logical slots on standbys (spec/postgres-management.md §11.6, 11+): copied from the leader once ([`super::slot_copy`]), then moved along
//! with it, so that a consumer finds its slot after a failover. Nothing here decides when.

use std::collections::BTreeMap;

use super::Settings;
use super::conninfo::Upstream;
use super::slots::PresentSlot;
use super::sql::{Session, SqlError, Target};
use crate::types::{Lsn, PgVersion};

/// A session on the leader, with the rights to read its files.
pub(super) async fn ask_leader(
    settings: &Settings,
    version: PgVersion,
    leader: &Upstream,
) -> Result<Session, SqlError> {
    let credentials = settings.rewind_credentials(version);
    Target::remote(leader, &settings.database, credentials)
        .connect()
        .await
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
}
