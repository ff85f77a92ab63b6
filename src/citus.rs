//! Citus: what the coordinator's table of nodes should say, and the statements that make it so (spec/ha.md §20). Pure: no I/O, no clock.
//!
//! A group is one PostgreSQL cluster of its own; group 0 is the coordinator's. The row of a group's primary keeps its `nodeid` for ever,
//! because shards refer to it: a change of the primary moves addresses between rows. `host:port` is unique in the table, so two rows
//! swap theirs by way of a host that does not exist (`-demoted`); while a transaction has moved a primary, Citus lets queries to that
//! group wait, which is what pauses the traffic.
//!
//! [`agenda`] says what is done when; `agent::citus` does it.

pub mod agenda;

use std::collections::BTreeSet;
use std::fmt;

use crate::cluster::{Cluster, Member};
use crate::types::{MemberName, PgState, Role};

/// The coordinator's group.
pub const COORDINATOR: u32 = 0;

/// What the name of a primary that is about to stop ends in.
const DEMOTED: &str = "-demoted";

/// Reads the table: `nodeid`, `groupid`, `nodename`, `nodeport`, whether it is the primary's row.
pub const READ: &str = "SELECT nodeid, groupid, nodename, nodeport, noderole::pg_catalog.text = 'primary' \
     FROM pg_catalog.pg_dist_node WHERE nodecluster = 'default' ORDER BY nodeid";

/// Where a server is reached; unique in the table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Address {
    /// The address in a member's `conn_url`; `None`: it has none, or several.
    #[must_use]
    pub fn of(member: &Member) -> Option<Address> {
        let url =
            crate::postgres::conninfo::Upstream::from_url(member.conn_url.as_deref()?).ok()?;
        let port = match url.port.as_str() {
            "" => 5432,
            port => port.parse().ok()?,
        };
        (!url.host.contains(',')).then_some(Address {
            host: url.host,
            port,
        })
    }

    fn demoted(&self) -> Address {
        Address {
            host: format!("{}{DEMOTED}", self.host),
            port: self.port,
        }
    }

    /// The real address of a primary that was about to stop.
    fn undemoted(&self) -> Address {
        let host = self.host.strip_suffix(DEMOTED).unwrap_or(&self.host);
        Address {
            host: host.to_owned(),
            port: self.port,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// One row of `pg_dist_node`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// `nodeid`.
    pub id: i32,
    /// `groupid`.
    pub group: u32,
    /// `nodename` and `nodeport`.
    pub address: Address,
    /// `noderole`.
    pub primary: bool,
}

/// What a group's rows should say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Where writes go.
    pub primary: Address,
    /// Where reads may go.
    pub secondaries: BTreeSet<Address>,
}

/// What the group's part of the store asks for: its leader, if that runs as a primary, and every running standby that may serve reads.
#[must_use]
pub fn wanted(cluster: &Cluster) -> Option<Wanted> {
    let leader = cluster.leader_member()?;
    let runs = |member: &&Member| member.state == Some(PgState::Running);
    let leads = runs(&leader) && leader.role == Some(Role::Primary);
    let primary = Address::of(leader).filter(|_| leads)?;
    let secondaries = cluster
        .members
        .values()
        .filter(runs)
        .filter(|member| member.role == Some(Role::Replica) && !member.tags.noloadbalance)
        .filter(|member| member.name != leader.name)
        .filter_map(Address::of)
        .filter(|address| *address != primary)
        .collect();
    Some(Wanted {
        primary,
        secondaries,
    })
}

/// Where the group's leader is, if it is this one.
#[must_use]
pub fn leader_address(cluster: &Cluster, leader: &MemberName) -> Option<Address> {
    let member = cluster.leader_member()?;
    Address::of(member).filter(|_| member.name == *leader)
}

/// One change of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new row.
    Add {
        /// The server.
        address: Address,
        /// Its group.
        group: u32,
        /// As its primary.
        primary: bool,
    },
    /// Another address for a row.
    Move {
        /// The row.
        id: i32,
        /// The new address.
        to: Address,
    },
    /// A row less.
    Remove {
        /// The server.
        address: Address,
    },
}

impl Change {
    /// The statement. `cooldown_ms`: how long a change of a primary waits for queries that are running before it ends them.
    #[must_use]
    pub fn sql(&self, cooldown_ms: u32) -> String {
        let place = |address: &Address| format!("{}, {}", literal(&address.host), address.port);
        match self {
            Change::Add {
                address,
                group,
                primary,
            } => format!(
                "SELECT pg_catalog.citus_add_node({}, {group}, '{}', 'default')",
                place(address),
                if *primary { "primary" } else { "secondary" }
            ),
            Change::Move { id, to } => format!(
                "SELECT pg_catalog.citus_update_node({id}, {}, true, {cooldown_ms})",
                place(to)
            ),
            Change::Remove { address } => {
                format!("SELECT pg_catalog.citus_remove_node({})", place(address))
            }
        }
    }
}

/// A text as SQL, whatever `standard_conforming_strings` says.
fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// Before a primary stops: its row leads nowhere, queries to the group wait as long as the transaction is open.
#[must_use]
pub fn pause(rows: &[Row]) -> Vec<Change> {
    let holder = rows.iter().find(|row| row.primary);
    let parked = holder.map(|row| (row.id, row.address.undemoted().demoted()));
    parked
        .filter(|(_, to)| !taken(rows, to))
        .map(|(id, to)| Change::Move { id, to })
        .into_iter()
        .collect()
}

/// The primary's row gets this address, and whoever had it is a secondary now. Nothing if that is so already.
#[must_use]
pub fn swap(rows: &[Row], group: u32, primary: &Address) -> Vec<Change> {
    let candidate = rows
        .iter()
        .find(|row| !row.primary && row.address == *primary);
    let remove = |row: &Row| Change::Remove {
        address: row.address.clone(),
    };
    let Some(holder) = rows.iter().find(|row| row.primary) else {
        let add = Change::Add {
            address: primary.clone(),
            group,
            primary: true,
        };
        return candidate.map(remove).into_iter().chain([add]).collect();
    };
    if holder.address == *primary {
        return Vec::new();
    }
    let promote = Change::Move {
        id: holder.id,
        to: primary.clone(),
    };
    let Some(candidate) = candidate else {
        return vec![promote];
    };
    let former = holder.address.undemoted();
    let parked = (holder.address == former).then(|| former.demoted());
    let in_the_way = match &parked {
        Some(parked) => taken(rows, parked),
        None => taken(rows, &former),
    };
    if in_the_way {
        // Rows that no sequence of events here leaves behind: the one that must go is the candidate's, which no shard refers to.
        return vec![remove(candidate), promote];
    }
    let park = parked.map(|to| Change::Move { id: holder.id, to });
    let demote = Change::Move {
        id: candidate.id,
        to: former,
    };
    park.into_iter().chain([demote, promote]).collect()
}

/// Everything as wanted. A step that changes the primary leaves the rest for the next one: rows are added and removed only while the
/// table tells the truth about the primary. Rows of secondaries that are gone are used again for new ones.
#[must_use]
pub fn settle(rows: &[Row], group: u32, wanted: &Wanted) -> Vec<Change> {
    let changes = swap(rows, group, &wanted.primary);
    if !changes.is_empty() {
        return changes;
    }
    let mut gone = rows
        .iter()
        .filter(|row| !row.primary && !wanted.secondaries.contains(&row.address));
    let new = wanted
        .secondaries
        .iter()
        .filter(|address| !taken(rows, address));
    let mut changes = Vec::new();
    let mut added = Vec::new();
    for address in new {
        match gone.next() {
            Some(row) => changes.push(Change::Move {
                id: row.id,
                to: address.clone(),
            }),
            None => added.push(Change::Add {
                address: address.clone(),
                group,
                primary: false,
            }),
        }
    }
    changes.extend(gone.map(|row| Change::Remove {
        address: row.address.clone(),
    }));
    changes.extend(added);
    changes
}

fn taken(rows: &[Row], address: &Address) -> bool {
    rows.iter().any(|row| row.address == *address)
}

/// Citus makes slots of its own while it moves or splits shards; nobody else drops them (spec/postgres-management.md §11.5).
#[must_use]
pub fn is_own_slot(name: &str, plugin: Option<&str>) -> bool {
    match plugin {
        Some("pgoutput") => name.starts_with("citus_shard_move_slot_"),
        Some("citus") => name.starts_with("citus_shard_split_slot_"),
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests;
