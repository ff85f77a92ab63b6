//! The order of changes (spec/ha.md §12.3, §13): given who may acknowledge a commit, who may elect a leader and who is there, the one
//! next change of either, so that at every moment every acknowledging set meets every electing set.
//!
//! One rule for both modes; priority mode is the case in which every listed standby must confirm and any published one may lead alone.
//! It looks at the present state only: a change that was interrupted anywhere, by anybody, is simply continued.
//!
//! Upstream's quorum resolver lowers `quorum` on the word of a standby that has not caught up yet when another one disappears; here a
//! published state only ever gets weaker when the standbys it relies on hold everything that was acknowledged before.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use crate::types::MemberName;

/// A name as PostgreSQL compares it: case does not count.
#[derive(Debug, Clone)]
pub(in crate::ha) struct Node {
    folded: String,
    pub(in crate::ha) name: MemberName,
}

impl From<&MemberName> for Node {
    fn from(name: &MemberName) -> Node {
        Node {
            folded: name.as_str().to_lowercase(),
            name: name.clone(),
        }
    }
}

impl PartialEq for Node {
    fn eq(&self, other: &Node) -> bool {
        self.folded == other.folded
    }
}

impl Eq for Node {}

impl PartialOrd for Node {
    fn partial_cmp(&self, other: &Node) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Node {
    fn cmp(&self, other: &Node) -> Ordering {
        self.folded.cmp(&other.folded)
    }
}

/// A set of nodes.
pub(in crate::ha) type Nodes = BTreeSet<Node>;

/// What holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ha) struct State {
    /// The primary: this node.
    pub(in crate::ha) me: Node,
    /// Published: the owner of the synchronous state.
    pub(in crate::ha) leader: Node,
    /// Published: how many of the others a candidate must find not ahead of it.
    pub(in crate::ha) quorum: usize,
    /// Published: who is asked.
    pub(in crate::ha) voters: Nodes,
    /// In force here: how many of the listed must confirm a commit. One of nobody: nothing can be confirmed.
    pub(in crate::ha) needed: usize,
    /// In force here: who may confirm it.
    pub(in crate::ha) listed: Nodes,
}

impl State {
    /// Every set that can acknowledge a commit here meets every set that can elect a leader: |V ∪ {L} ∪ S ∪ {me}| ≤ q + n + 1, and one of
    /// the two groups contains the other. With nobody but this node published only this node can be elected.
    pub(in crate::ha) fn holds(&self) -> bool {
        if self.voters.is_empty() && self.leader == self.me {
            return true;
        }
        let mut electing = self.voters.clone();
        electing.insert(self.leader.clone());
        let mut acknowledging = self.listed.clone();
        acknowledging.insert(self.me.clone());
        let all = electing.union(&acknowledging).count();
        all <= self.quorum + self.needed + 1
            && (electing.is_subset(&acknowledging) || acknowledging.is_subset(&electing))
    }

    fn with_published(&self, quorum: usize, voters: Nodes) -> State {
        State {
            leader: self.me.clone(),
            quorum,
            voters,
            ..self.clone()
        }
    }

    fn with_required(&self, needed: usize, listed: Nodes) -> State {
        State {
            needed,
            listed,
            ..self.clone()
        }
    }
}

/// How the state is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ha) enum Style {
    /// A fixed number of named standbys, each with everything.
    Priority,
    /// Any `wanted` of all.
    Quorum,
}

/// The state, and what is wanted of it.
#[derive(Debug, Clone)]
pub(in crate::ha) struct Situation {
    pub(in crate::ha) state: State,
    pub(in crate::ha) style: Style,
    /// How many standbys shall confirm a commit.
    pub(in crate::ha) wanted: usize,
    /// Commits wait rather than run unreplicated.
    pub(in crate::ha) strict: bool,
    /// The standbys that are there and picked for duty.
    pub(in crate::ha) active: Nodes,
    /// Those of the listed that are known to hold everything acknowledged before the present list was in force.
    pub(in crate::ha) ready: Nodes,
    /// Listed standbys may still be on their way to this new primary: do not give them up yet.
    pub(in crate::ha) reconnecting: bool,
}

/// The next change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ha) enum Change {
    /// Publish this under my name.
    Publish { quorum: usize, voters: Nodes },
    /// Have commits confirmed like this. Nobody listed and some needed: nobody can confirm anything.
    Require { needed: usize, listed: Nodes },
    /// Not yet: a standby has to catch up, or to come back.
    Wait,
    /// As wanted.
    Settled,
}

/// Names the next change.
pub(in crate::ha) fn next(situation: &Situation) -> Change {
    let state = &situation.state;
    if state.leader != state.me {
        return take_over(situation);
    }
    if !state.holds() {
        // Somebody changed the setting or the document behind our back. What was acknowledged meanwhile is known here only.
        return publish(0, Nodes::new());
    }
    let active = &situation.active;
    if situation.reconnecting {
        return Change::Wait;
    }
    let wanted = match situation.style {
        Style::Priority => active.len(),
        Style::Quorum => situation.wanted.max(1).min(active.len()),
    };
    if active.is_empty() && situation.strict {
        return nobody_left(state);
    }
    if (state.needed, &state.listed) != (wanted, active) {
        let required = state.with_required(wanted, active.clone());
        if required.holds() {
            return Change::Require {
                needed: wanted,
                listed: active.clone(),
            };
        }
        return match situation.style {
            Style::Priority => reduce(situation),
            Style::Quorum => tighten(state, wanted, active),
        };
    }
    match situation.style {
        Style::Priority => publish_ready(situation),
        Style::Quorum => publish_voters(situation),
    }
}

fn publish(quorum: usize, voters: Nodes) -> Change {
    Change::Publish { quorum, voters }
}

/// The document is another leader's. In quorum mode its voters, and it, go on to be those who are asked; whatever this node requires
/// of commits was set so before it was promoted.
fn take_over(situation: &Situation) -> Change {
    let state = &situation.state;
    let mut voters = state.voters.clone();
    voters.remove(&state.me);
    voters.insert(state.leader.clone());
    let taken = state.with_published(state.quorum, voters);
    if situation.style == Style::Quorum && state.holds() && taken.holds() {
        publish(taken.quorum, taken.voters)
    } else {
        publish(0, Nodes::new())
    }
}

/// Strict mode and nobody there: commits wait for those who could also elect a leader.
fn nobody_left(state: &State) -> Change {
    let needed = state.voters.len().saturating_sub(state.quorum).max(1);
    let listed = state.voters.clone();
    if (state.needed, &state.listed) == (needed, &listed) {
        return Change::Wait;
    }
    Change::Require { needed, listed }
}

/// Priority mode, before a listed standby goes: publish only those who were and will be asked for every commit.
fn reduce(situation: &Situation) -> Change {
    let state = &situation.state;
    let kept: Nodes = state
        .voters
        .iter()
        .filter(|node| situation.active.contains(node) && state.listed.contains(node))
        .filter(|node| state.quorum == 0 || situation.ready.contains(node))
        .cloned()
        .collect();
    if state.with_published(0, kept.clone()).holds() {
        publish(0, kept)
    } else {
        publish(0, Nodes::new())
    }
}

/// Quorum mode, when neither order of the two changes is safe: ask more voters than either needs, then change the list, then come back.
fn tighten(state: &State, wanted: usize, active: &Nodes) -> Change {
    if active.is_empty() {
        return publish(0, Nodes::new());
    }
    let voters: Nodes = state
        .voters
        .iter()
        .chain(&state.listed)
        .chain(active)
        .cloned()
        .collect();
    let added = voters.difference(&state.voters).count();
    let quorum =
        (voters.len() - wanted.min(state.needed).min(voters.len())).max(state.quorum + added);
    if quorum < voters.len() && state.with_published(quorum, voters.clone()).holds() {
        publish(quorum, voters)
    } else {
        publish(0, Nodes::new())
    }
}

/// Priority mode with the list as wanted: whoever has everything is published.
fn publish_ready(situation: &Situation) -> Change {
    let state = &situation.state;
    let voters: Nodes = situation
        .active
        .iter()
        .filter(|node| {
            situation.ready.contains(node) || (state.quorum == 0 && state.voters.contains(node))
        })
        .cloned()
        .collect();
    if (state.quorum, &state.voters) != (0, &voters) {
        publish(0, voters)
    } else if voters == situation.active {
        Change::Settled
    } else {
        Change::Wait
    }
}

/// Quorum mode with the list as wanted: a candidate must ask so many that one of them has everything, also of what was acknowledged
/// under earlier lists. Either enough are known to have it, or it asks no fewer of the old voters than before.
fn publish_voters(situation: &Situation) -> Change {
    let (state, active) = (&situation.state, &situation.active);
    if active.is_empty() {
        return if state.voters.is_empty() {
            Change::Settled
        } else {
            publish(0, Nodes::new())
        };
    }
    let ready = active.intersection(&situation.ready).count();
    let by_ready = active.len() - ready;
    let as_before = state.quorum + active.difference(&state.voters).count();
    let settled = active.len() - state.needed.min(active.len());
    let quorum = if state.voters.is_empty() {
        by_ready.max(settled)
    } else {
        by_ready.min(as_before).max(settled)
    };
    if quorum >= active.len() {
        return Change::Wait;
    }
    if (state.quorum, &state.voters) != (quorum, active) {
        publish(quorum, active.clone())
    } else if quorum == settled {
        Change::Settled
    } else {
        Change::Wait
    }
}
