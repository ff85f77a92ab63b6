//! Synchronous replication (spec/ha.md §12, §13): on a primary the order of changes to the `sync` document and to
//! `synchronous_standby_names`, before a promotion what must be in place, before a stop the way out of duty.
//!
//! It takes one change at a time and looks again; nothing is remembered that safety needs. Whom commits wait for is only ever changed
//! under a lease confirmed in the same turn, and never by a node that may have been superseded: a relaxed list acknowledges the commits
//! that wait. The rules themselves are in `plan`.

mod candidates;
mod election;
mod names;
mod plan;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::cluster::{Cluster, SyncState};
use crate::types::{Lsn, MemberName, PgState, PgVersion};

use super::PASS;
use super::decision::{Step, Why, Write};
use super::isolation;
use super::observation::{
    InForce, Outcome, Position, Replication, StandbyNames, Standing, Synchronous,
};
use super::turn::{Choice, Turn};
use candidates::Candidate;
pub(super) use election::electorate;
use names::{Method, Names};
use plan::{Change, Node, Nodes, Situation, State, Style};

/// After a reload every backend has taken the new value up within this time.
const TAKEN_UP: Duration = Duration::from_millis(100);
/// A standby that disappears is noticed within this time.
const LOOK_AGAIN_MILLIS: u64 = 1000;
/// Strict mode and nobody may confirm.
pub(super) const NOBODY: &str = "__patroni_strict_sync_replica_placeholder__";

/// The mode in the planner's terms.
struct Mode {
    style: Style,
    strict: bool,
    wanted: usize,
}

fn mode(turn: &Turn<'_>) -> Option<Mode> {
    let (style, strict, count) = match turn.obs.settings.synchronous {
        Synchronous::Off => return None,
        Synchronous::Priority { strict, count } => (Style::Priority, strict, count),
        Synchronous::Quorum { strict, count } => (Style::Quorum, strict, count),
    };
    let wanted = if style == Style::Priority && version(turn) < PgVersion(90_600) {
        1
    } else {
        usize::try_from(count.max(1)).unwrap_or(usize::MAX)
    };
    Some(Mode {
        style,
        strict,
        wanted,
    })
}

fn version(turn: &Turn<'_>) -> PgVersion {
    turn.obs.postgres.version.unwrap_or(PgVersion(100_000))
}

/// A running primary with the lease: the next step towards the wanted state.
pub(super) fn keep(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let obs = turn.obs;
    let Some(mode) = mode(turn) else {
        return switched_off(turn, cluster);
    };
    let (Some(replication), Some(Position::Primary { lsn, .. })) =
        (&obs.postgres.replication, &obs.postgres.position)
    else {
        return PASS;
    };
    let fresh = turn.memory.in_force.is_none();
    let in_force = observe_names(turn, replication, *lsn);
    turn.wake_in(LOOK_AGAIN_MILLIS);
    let doubt = in_doubt(turn, cluster, fresh);
    if turn.writes_fail() {
        return PASS;
    }
    if let Some(pending) = not_in_force(turn, replication) {
        turn.wake_in(LOOK_AGAIN_MILLIS);
        return require(turn, replication, pending);
    }
    let me = Node::from(&obs.me);
    let Some(leader) = cluster.sync.leader.as_ref().map(Node::from) else {
        return Some(publish(turn, cluster, 0, &Nodes::new()));
    };
    let names = names::parse(&replication.names);
    let found = candidates::candidates(
        &obs.me,
        cluster,
        replication,
        *lsn,
        obs.settings.maximum_lag_on_syncnode,
    );
    let active = match mode.style {
        Style::Priority => candidates::picked(&found, mode.wanted),
        Style::Quorum => candidates::all(&found, mode.wanted),
    };
    let (needed, listed) = required(names.as_ref());
    let situation = Situation {
        reconnecting: is_reconnecting(turn, cluster, &in_force, &listed, &found),
        ready: ready(&found, &in_force, &listed),
        state: State {
            me,
            leader,
            quorum: usize::try_from(cluster.sync.quorum).unwrap_or(usize::MAX / 4),
            voters: cluster.sync.standbys.iter().map(Node::from).collect(),
            needed,
            listed,
        },
        style: mode.style,
        wanted: mode.wanted,
        strict: mode.strict,
        active,
    };
    match plan::next(&situation) {
        Change::Publish { quorum, voters } => Some(publish(turn, cluster, quorum, &voters)),
        Change::Require { .. } | Change::Wait | Change::Settled if doubt => {
            let again = cluster.sync.clone();
            turn.memory.sync_sent = Some(again.revision);
            Some((Step::Write(Write::Sync(again)), Why::SettlingSync))
        }
        Change::Require { needed, listed } => {
            require(turn, replication, text(turn, mode.style, needed, &listed))
        }
        Change::Wait if situation.active.is_empty() && mode.strict => {
            turn.wake_in(200);
            Some((Step::Rest, Why::CommitsWait))
        }
        Change::Wait => {
            turn.wake_in(if in_force.reference.is_none() {
                50
            } else {
                200
            });
            PASS
        }
        Change::Settled => {
            let method = names.map(|names| names.method);
            let settled = text(
                turn,
                mode.style,
                situation.state.needed,
                &situation.state.listed,
            );
            if method.is_none()
                || method == names::parse(settled.as_deref().unwrap_or("")).map(|n| n.method)
            {
                return PASS;
            }
            require(turn, replication, settled)
        }
    }
}

/// The value that is written and that the server has not been seen to use. Nothing may be concluded from the one it still uses: it gives
/// that up at any moment.
fn not_in_force(turn: &Turn<'_>, replication: &Replication) -> Option<Option<String>> {
    match &turn.obs.postgres.standby_names {
        Some(StandbyNames::Managed(names))
            if names.as_deref().unwrap_or_default() != replication.names
                && names.as_deref() != Some(isolation::HELD) =>
        {
            Some(names.clone())
        }
        Some(StandbyNames::Managed(_) | StandbyNames::Configured) | None => None,
    }
}

/// Keeps track of the value in force and of what was acknowledged before it.
fn observe_names(turn: &mut Turn<'_>, replication: &Replication, lsn: Lsn) -> InForce {
    let at = replication.at;
    let primary_since = turn
        .memory
        .in_force
        .as_ref()
        .map_or(at, |known| known.primary_since);
    let mut in_force = turn
        .memory
        .in_force
        .take()
        .filter(|known| known.names == replication.names)
        .unwrap_or_else(|| InForce {
            names: replication.names.clone(),
            since: at,
            reference: None,
            primary_since,
        });
    if in_force.reference.is_none() && at.since(in_force.since) >= TAKEN_UP {
        in_force.reference = Some(lsn);
    }
    turn.memory.in_force = Some(in_force.clone());
    in_force
}

/// The listed standbys that hold everything acknowledged before they were listed.
fn ready(found: &[Candidate], in_force: &InForce, listed: &Nodes) -> Nodes {
    let Some(reference) = in_force.reference else {
        return Nodes::new();
    };
    found
        .iter()
        .filter(|candidate| listed.contains(&candidate.node) && candidate.holds >= reference)
        .filter(|candidate| match candidate.standing {
            Standing::Sync | Standing::Quorum => true,
            Standing::Async | Standing::Potential => false,
        })
        .map(|candidate| candidate.node.clone())
        .collect()
}

/// A fresh primary's standbys need a moment to connect; dropping and listing them again would only cost.
fn is_reconnecting(
    turn: &mut Turn<'_>,
    cluster: &Cluster,
    in_force: &InForce,
    listed: &Nodes,
    found: &[Candidate],
) -> bool {
    let until = in_force.primary_since + turn.obs.settings.loop_wait;
    let missing = cluster.members.values().any(|member| {
        let node = Node::from(&member.name);
        member.state == Some(PgState::Running)
            && member.name != turn.obs.me
            && !member.tags.never_sync()
            && listed.contains(&node)
            && !found.iter().any(|candidate| candidate.node == node)
    });
    missing && turn.obs.now < until
}

/// How many of whom must confirm a commit under this value.
fn required(names: Option<&Names>) -> (usize, Nodes) {
    let Some(names) = names else {
        return (0, Nodes::new());
    };
    let listed: Nodes = names
        .names
        .iter()
        .filter(|name| name.as_str() != NOBODY && name.as_str() != isolation::HELD)
        .filter_map(|name| MemberName::new(name.as_str()).ok())
        .map(|name| Node::from(&name))
        .collect();
    let needed = usize::try_from(names.count).unwrap_or(usize::MAX);
    if listed.is_empty() {
        (1, listed)
    } else {
        (needed.min(listed.len()), listed)
    }
}

/// The value that requires it.
fn text(turn: &Turn<'_>, style: Style, needed: usize, listed: &Nodes) -> Option<String> {
    if needed == 0 {
        return None;
    }
    let method = match style {
        Style::Priority if needed == listed.len() || listed.is_empty() => Method::First,
        Style::Priority | Style::Quorum => Method::Any,
    };
    let mut names: Vec<String> = listed.iter().map(|node| node.name.to_string()).collect();
    if names.is_empty() {
        names.push(NOBODY.to_owned());
    }
    let count = u32::try_from(needed.min(names.len())).unwrap_or(u32::MAX);
    names::render(
        &Names {
            method,
            count,
            names,
        },
        version(turn),
    )
}

fn document(turn: &Turn<'_>, cluster: &Cluster, quorum: usize, voters: &Nodes) -> SyncState {
    let mut standbys: Vec<MemberName> = voters.iter().map(|node| node.name.clone()).collect();
    standbys.sort_unstable();
    SyncState {
        revision: cluster.sync.revision,
        leader: Some(turn.obs.me.clone()),
        quorum: u32::try_from(quorum).unwrap_or(u32::MAX),
        standbys,
    }
}

fn publish(turn: &mut Turn<'_>, cluster: &Cluster, quorum: usize, voters: &Nodes) -> (Step, Why) {
    let sync = document(turn, cluster, quorum, voters);
    let why = if cluster.sync.leader.as_ref() == Some(&turn.obs.me) {
        Why::PublishingSync {
            quorum: sync.quorum,
            standbys: sync.standbys.clone(),
        }
    } else {
        Why::EnablingSync
    };
    turn.memory.sync_sent = Some(cluster.sync.revision);
    (Step::Write(Write::Sync(sync)), why)
}

/// A change of the value on a running primary: once per turn unless it was seen in force, and only under a lease confirmed in it.
fn require(turn: &mut Turn<'_>, replication: &Replication, names: Option<String>) -> Choice {
    let tried = &turn.obs.tried;
    match tried.names {
        Some(Outcome::Refused | Outcome::Unknown) => return PASS,
        Some(Outcome::Done) if replication.names == names.as_deref().unwrap_or("") => return PASS,
        Some(Outcome::Done) | None => {}
    }
    if !is_lease_confirmed(turn) {
        return tried
            .renew
            .is_none()
            .then_some((Step::Renew, Why::ConfirmingLease));
    }
    Some(assign(StandbyNames::Managed(names)))
}

fn assign(names: StandbyNames) -> (Step, Why) {
    let why = Why::AssigningNames {
        names: match &names {
            StandbyNames::Configured => Some("the configured value".to_owned()),
            StandbyNames::Managed(names) => names.clone(),
        },
    };
    (Step::SetSynchronousNames(names), why)
}

pub(super) fn is_lease_confirmed(turn: &Turn<'_>) -> bool {
    let done = |outcome| match outcome {
        Some(Outcome::Done) => true,
        None | Some(Outcome::Refused | Outcome::Unknown) => false,
    };
    turn.leads && (done(turn.obs.tried.renew) || done(turn.obs.tried.acquire))
}

/// A write of `sync` that was not answered may still happen, as long as nothing else has changed the revision it was based on. Until
/// then nothing is taken off the list that it might publish. `fresh`: nothing is known of earlier writes, this agent may have been
/// restarted in the middle of one.
fn in_doubt(turn: &mut Turn<'_>, cluster: &Cluster, fresh: bool) -> bool {
    if fresh && turn.memory.sync_sent.is_none() {
        turn.memory.sync_doubt = Some((cluster.sync.revision, turn.obs.now));
    }
    if let Some(based_on) = turn.memory.sync_sent.take() {
        match turn.obs.tried.write {
            Some(Outcome::Unknown) | None => {
                turn.memory.sync_doubt = Some((based_on, turn.obs.now));
            }
            Some(Outcome::Done | Outcome::Refused) => turn.memory.sync_doubt = None,
        }
    }
    // No request travels longer than a lease lasts.
    let ttl = turn.obs.settings.ttl;
    let (now, revision) = (turn.obs.now, cluster.sync.revision);
    turn.memory
        .sync_doubt
        .take_if(|(based_on, since)| *based_on != revision || now.since(*since) > ttl);
    turn.memory.sync_doubt.is_some()
}

/// Synchronous mode is off: the document first, then the list (spec/ha.md §12.7).
fn switched_off(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    if turn.writes_fail() {
        return PASS;
    }
    if cluster.sync.leader.is_some() {
        return (turn.obs.tried.write.is_none())
            .then_some((Step::Write(Write::DropSync), Why::DroppingSync));
    }
    match &turn.obs.postgres.standby_names {
        None | Some(StandbyNames::Configured) => PASS,
        Some(StandbyNames::Managed(_)) if turn.obs.tried.names.is_some() => PASS,
        Some(StandbyNames::Managed(_)) if !is_lease_confirmed(turn) => turn
            .obs
            .tried
            .renew
            .is_none()
            .then_some((Step::Renew, Why::ConfirmingLease)),
        Some(StandbyNames::Managed(_)) => Some(assign(StandbyNames::Configured)),
    }
}

/// Before this standby is promoted (spec/ha.md §12.6).
pub(super) fn before_promotion(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let Some(mode) = mode(turn) else {
        return match &turn.obs.postgres.standby_names {
            None | Some(StandbyNames::Configured) => PASS,
            Some(StandbyNames::Managed(_)) => Some(assign(StandbyNames::Configured)),
        };
    };
    let me = Node::from(&turn.obs.me);
    // A state that quorum mode has left behind keeps its quorum: not every voter of it has everything.
    let (quorum, others) = match mode.style {
        Style::Priority if !mode.strict => (0, Nodes::new()),
        Style::Priority | Style::Quorum => (cluster.sync.quorum, others(turn, cluster, &me)),
    };
    let begun = mode.style == Style::Priority || cluster.sync.leader.is_some();
    let quorum = usize::try_from(quorum).unwrap_or(usize::MAX / 4);
    let wanted = document(turn, cluster, quorum, &others);
    // Upstream leaves a quorum's document alone until after the promotion; then the old leader, which needs no votes, could take over
    // again without what this one has acknowledged. Written even if it says so already: an earlier write may still be on its way.
    if begun && (wanted != cluster.sync || turn.memory.sync_sent.is_none()) {
        return Some(match turn.obs.tried.write {
            None | Some(Outcome::Done) => publish(turn, cluster, quorum, &others),
            Some(Outcome::Refused | Outcome::Unknown) => {
                turn.wake_in(LOOK_AGAIN_MILLIS);
                (Step::Rest, Why::PromotionPostponed)
            }
        });
    }
    let names = match mode.style {
        Style::Priority => {
            let needed = if mode.strict { others.len().max(1) } else { 0 };
            text(turn, mode.style, needed, &others)
        }
        Style::Quorum => covering(turn, cluster, &mode),
    };
    if turn.obs.postgres.standby_names != Some(StandbyNames::Managed(names.clone())) {
        return Some(assign(StandbyNames::Managed(names)));
    }
    // What is in the files and not yet in force would let the first commits of the new primary through.
    let running = turn.obs.postgres.replication.as_ref();
    let in_force =
        running.is_none_or(|running| running.names == names.as_deref().unwrap_or_default());
    if !in_force {
        turn.wake_in(50);
        return Some((Step::Rest, Why::NamesNotInForce));
    }
    let taken_up = turn.memory.names_on_standby.as_ref()?.1 + TAKEN_UP;
    if turn.obs.now < taken_up {
        turn.wake_by(taken_up);
        return Some((Step::Rest, Why::NamesNotInForce));
    }
    PASS
}

/// Before a primary is started where it stands: what it will require of commits must go with what is published.
pub(super) fn before_start(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let Some(mode) = mode(turn) else {
        return PASS;
    };
    let kept = match &turn.obs.postgres.standby_names {
        Some(StandbyNames::Managed(names)) => {
            let (needed, listed) = required(names::parse(names.as_deref().unwrap_or("")).as_ref());
            let me = Node::from(&turn.obs.me);
            let leader = cluster.sync.leader.as_ref().map_or(me.clone(), Node::from);
            let state = State {
                me,
                leader,
                quorum: usize::try_from(cluster.sync.quorum).unwrap_or(usize::MAX / 4),
                voters: cluster.sync.standbys.iter().map(Node::from).collect(),
                needed,
                listed,
            };
            state.holds() && (needed > 0 || !mode.strict)
        }
        Some(StandbyNames::Configured) | None => false,
    };
    if kept {
        return PASS;
    }
    let names = covering(turn, cluster, &mode);
    if turn.obs.postgres.standby_names == Some(StandbyNames::Managed(names.clone())) {
        return PASS;
    }
    Some(assign(StandbyNames::Managed(names)))
}

/// The recorded leader and standbys without me.
fn others(turn: &Turn<'_>, cluster: &Cluster, me: &Node) -> Nodes {
    let mut others = members(cluster);
    others.remove(me);
    if version(turn) < PgVersion(90_600) && others.len() > 1 {
        let old = cluster.sync.leader.as_ref().map(Node::from);
        return old
            .filter(|old| others.contains(old))
            .or_else(|| others.first().cloned())
            .into_iter()
            .collect();
    }
    others
}

fn members(cluster: &Cluster) -> Nodes {
    match &cluster.sync.leader {
        None => Nodes::new(),
        Some(leader) => std::iter::once(leader)
            .chain(&cluster.sync.standbys)
            .map(Node::from)
            .collect(),
    }
}

/// As many of the published members as can elect nobody without one of them.
fn covering(turn: &Turn<'_>, cluster: &Cluster, mode: &Mode) -> Option<String> {
    let me = Node::from(&turn.obs.me);
    let mut others = members(cluster);
    let mut all = others.clone();
    all.insert(me.clone());
    others.remove(&me);
    let quorum = usize::try_from(cluster.sync.quorum).unwrap_or(usize::MAX / 4);
    let needed = all
        .len()
        .saturating_sub(quorum + 1)
        .max(usize::from(mode.strict));
    text(turn, mode.style, needed, &others)
}

/// A synchronous standby is about to stop: commits would wait for it, so it asks to be released first (spec/ha.md §12.8).
pub(super) fn leave(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let obs = turn.obs;
    let listed = obs.settings.synchronous != Synchronous::Off
        && !obs.tags.never_sync()
        && cluster
            .sync
            .standbys
            .iter()
            .any(|name| name.matches(&obs.me));
    let led = cluster.leader.as_ref().is_some_and(|leader| {
        leader.name != obs.me && cluster.sync.leader.as_ref() == Some(&leader.name)
    });
    let standby = matches!(obs.postgres.position, Some(Position::Standby { .. }));
    if !listed || !led || !standby || turn.paused() {
        return PASS;
    }
    let since = *turn.memory.leaving.get_or_insert(obs.now);
    let until = since + obs.settings.loop_wait * 2;
    if obs.now >= until {
        return PASS;
    }
    turn.wake_by(until);
    Some((Step::Rest, Why::LeavingSynchronousDuty))
}
