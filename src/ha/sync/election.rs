//! Elections while the synchronous state is published (spec/ha.md §6.3, §6.5 – §6.7, §13.5): who may stand, and how many of whom must
//! not be ahead.
//!
//! The published `quorum` counts in both modes: a state of quorum mode is not to be read with the rules of priority mode while the
//! cluster changes over. A voter that never leads still votes: what counts is what it holds.

use crate::cluster::{Cluster, SyncState};
use crate::types::{Lsn, MemberName};

use super::super::decision::Why;
use super::super::observation::{PeerAnswer, Synchronous};
use super::super::turn::{Turn, limitation};

/// The published electorate.
#[derive(Debug, Clone, Copy)]
pub(in crate::ha) struct Electorate<'a> {
    leader: &'a MemberName,
    sync: &'a SyncState,
    /// A member that is not in it may stand, with one vote more.
    outsiders: bool,
}

/// The electorate; `None`: synchronous mode is off or has not begun.
pub(in crate::ha) fn electorate<'a>(
    turn: &Turn<'_>,
    cluster: &'a Cluster,
) -> Option<Electorate<'a>> {
    let outsiders = match turn.obs.settings.synchronous {
        Synchronous::Off => return None,
        Synchronous::Priority { .. } => false,
        Synchronous::Quorum { .. } => true,
    };
    Some(Electorate {
        leader: cluster.sync.leader.as_ref()?,
        sync: &cluster.sync,
        outsiders,
    })
}

impl Electorate<'_> {
    /// It is the recorded leader or a voter.
    pub(in crate::ha) fn includes(&self, name: &MemberName) -> bool {
        self.leader.matches(name) || self.votes(name)
    }

    fn votes(&self, name: &MemberName) -> bool {
        self.sync.standbys.iter().any(|voter| voter.matches(name))
    }

    /// It may stand at all.
    pub(in crate::ha) fn may_stand(&self, name: &MemberName) -> bool {
        self.outsiders || self.includes(name)
    }

    /// The first thing that speaks against this member, a mere preference last; a running primary was looked for before.
    pub(in crate::ha) fn objection(
        &self,
        turn: &Turn<'_>,
        answers: &[(MemberName, PeerAnswer)],
        ahead: impl Fn(&PeerAnswer) -> bool,
    ) -> Option<Why> {
        let me = &turn.obs.me;
        if !self.may_stand(me) {
            return Some(Why::NotSynchronous);
        }
        let (mut votes, mut behind, mut preference) = (0u32, false, None);
        for (peer, answer) in answers.iter().filter(|(peer, _)| self.includes(peer)) {
            let eligible = limitation(answer).is_none();
            let former = self.leader.matches(peer);
            if ahead(answer) {
                // The former leader may have more than was ever acknowledged.
                if eligible && !former {
                    return Some(Why::PeerAhead {
                        peer: peer.clone(),
                        lsn: answer.lsn,
                    });
                }
                behind = true;
            } else if answer.lsn > Lsn::ZERO && !answer.replaying {
                let equal = answer.lsn == turn.my_lsn();
                let preferred = turn.obs.tags.leader_priority() < answer.tags.leader_priority();
                if eligible
                    && equal
                    && preferred
                    && !former
                    && turn.memory.last_leader.as_ref() != Some(peer)
                {
                    preference = Some(Why::PeerPreferred { peer: peer.clone() });
                }
                votes += 1;
            }
        }
        if self.leader.matches(me) && !behind {
            return preference;
        }
        let needed = self.sync.quorum + u32::from(!self.includes(me));
        if votes < needed {
            return Some(Why::TooFewVotes { votes, needed });
        }
        preference
    }

    /// Of those who could take over, those who may while this leader goes of its own will (spec/ha.md §6.6). `named`: only one was asked.
    pub(in crate::ha) fn successors(
        &self,
        mut able: Vec<(MemberName, PeerAnswer)>,
        named: bool,
    ) -> Vec<(MemberName, PeerAnswer)> {
        if named && self.outsiders {
            return able;
        }
        able.retain(|(name, _)| self.votes(name));
        let others = able.len().saturating_sub(1);
        if !named && u32::try_from(others).is_ok_and(|others| others < self.sync.quorum) {
            able.clear();
        }
        able
    }
}
