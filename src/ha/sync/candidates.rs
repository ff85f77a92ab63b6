//! Who may do synchronous duty, best first (spec/ha.md §12.2).

use std::collections::BTreeSet;

use crate::cluster::{Cluster, Member};
use crate::types::{Lsn, MemberName, PgState};

use super::super::observation::{Acknowledged, Connection, Replication, Standing};
use super::plan::{Node, Nodes};

/// A standby that streams from this primary and may be synchronous.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ha) struct Candidate {
    pub(in crate::ha) node: Node,
    pub(in crate::ha) never_leads: bool,
    priority: i64,
    pub(in crate::ha) standing: Standing,
    lsn: Lsn,
    /// Up to here it holds everything: flushed, or only written where commits wait for no more.
    pub(in crate::ha) holds: Lsn,
}

/// All candidates, best first. `at`: the primary's own position; `lag`: what they may be behind.
pub(in crate::ha) fn candidates(
    me: &MemberName,
    cluster: &Cluster,
    replication: &Replication,
    at: Lsn,
    lag: Option<u64>,
) -> Vec<Candidate> {
    let connected: BTreeSet<String> = replication
        .standbys
        .iter()
        .map(|standby| standby.name.to_lowercase())
        .collect();
    let mut found: Vec<Candidate> = cluster
        .members
        .values()
        .filter(|member| member.name != *me && member.state == Some(PgState::Running))
        .filter(|member| !member.tags.never_sync() && !cascades(me, cluster, member, &connected))
        .filter_map(|member| candidate(member, replication))
        .collect();
    let highest = found.iter().map(|candidate| candidate.lsn).max();
    let reference = match highest {
        Some(highest) if found.len() > 1 => highest,
        Some(_) | None => at,
    };
    if let Some(lag) = lag.filter(|lag| *lag > 0) {
        found.retain(|candidate| reference.ahead_of(candidate.lsn) <= lag);
    }
    found.sort_by_key(|candidate| {
        let rank = (candidate.priority, candidate.standing, candidate.lsn);
        (candidate.never_leads, std::cmp::Reverse(rank))
    });
    found
}

/// The member as its connection shows it. Of several connections in its name the one that is furthest behind counts.
fn candidate(member: &Member, replication: &Replication) -> Option<Candidate> {
    let folded = member.name.as_str().to_lowercase();
    let shown = |connection: &Connection| match replication.acknowledged {
        Acknowledged::Written => connection.written,
        Acknowledged::Flushed => connection.flushed,
        Acknowledged::Replayed => connection.replayed,
    };
    replication
        .standbys
        .iter()
        .filter(|connection| connection.streaming && connection.name.to_lowercase() == folded)
        .filter_map(|connection| {
            // What is replayed matters to readers; what is flushed survives.
            let holds = match replication.acknowledged {
                Acknowledged::Written => connection.written?,
                Acknowledged::Flushed | Acknowledged::Replayed => connection.flushed?,
            };
            Some(Candidate {
                node: Node::from(&member.name),
                never_leads: member.tags.never_leads(),
                priority: member.tags.sync_priority.unwrap_or(1),
                standing: connection.standing,
                lsn: shown(connection)?,
                holds,
            })
        })
        .min_by_key(|candidate| candidate.holds)
}

/// It is meant to receive from another standby: its chain of `replicatefrom` leads to a member that is connected here.
fn cascades(
    me: &MemberName,
    cluster: &Cluster,
    member: &Member,
    connected: &BTreeSet<String>,
) -> bool {
    let mut seen = BTreeSet::from([&member.name]);
    let mut from = member.tags.replicatefrom.as_ref();
    while let Some(name) = from.filter(|name| *name != me) {
        let Some(upstream) = cluster.members.get(name) else {
            return false;
        };
        if !seen.insert(name) {
            return false;
        }
        if connected.contains(&name.as_str().to_lowercase()) {
            return true;
        }
        from = upstream.tags.replicatefrom.as_ref();
    }
    false
}

/// Priority mode: the first `count`.
pub(in crate::ha) fn picked(candidates: &[Candidate], count: usize) -> Nodes {
    candidates
        .iter()
        .take(count.max(1))
        .map(|candidate| candidate.node.clone())
        .collect()
}

/// Quorum mode: all, those that never lead only to fill up to `count`.
pub(in crate::ha) fn all(candidates: &[Candidate], count: usize) -> Nodes {
    let mut nodes = Nodes::new();
    for candidate in candidates {
        if !candidate.never_leads || nodes.len() < count {
            nodes.insert(candidate.node.clone());
        }
    }
    nodes
}
