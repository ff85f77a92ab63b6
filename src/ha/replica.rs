//! A running standby whose leader is somebody else: receive from the right server, with proof that its history is ours
//! (spec/ha.md §5.10).

use crate::cluster::{Cluster, Member};
use crate::types::{MemberName, ReplicationState, Role};

use super::decision::{Job, Step, StopMode, StopPurpose, Why};
use super::observation::{Position, Upstream};
use super::recovery::Reference;
use super::turn::{Choice, Turn, as_upstream, named, stop};
use super::{PASS, recovery, standby};

/// Follows `name`.
pub(super) fn follow(turn: &mut Turn<'_>, cluster: &Cluster, name: &MemberName) -> (Step, Why) {
    turn.memory.abdicating = false;
    turn.memory.race_backoff = None;
    let steady = Why::Following {
        me: turn.obs.me.clone(),
        leader: name.clone(),
    };
    let (Some(leader), Some(upstream)) = (cluster.members.get(name), turn.upstream(cluster, name))
    else {
        return (
            Step::Rest,
            Why::LeaderUnknown {
                leader: name.clone(),
            },
        );
    };
    if turn.obs.postgres.replay_paused && !turn.paused() && !turn.memory.replay_resumed {
        turn.memory.replay_resumed = true;
        return (Step::ResumeReplay, Why::ResumingReplay);
    }
    if let Some(choice) = standby::follow(turn, cluster, &upstream) {
        return choice;
    }
    let pointed = turn.obs.postgres.follows.as_ref() == Some(&upstream);
    if pointed && (is_streaming(turn) || turn.obs.tags.nostream) {
        // PostgreSQL itself refuses to stream from a server whose history is not a continuation of this one.
        turn.memory.was_primary_on = None;
        turn.memory.diverged = None;
        let opener = turn
            .my_timeline()
            .and_then(|mine| Some((mine, recovery::opener_of(cluster, mine)?.clone())));
        if turn.my_timeline() == leader.timeline && opener.is_some() {
            turn.memory.opened_by = opener;
        }
        return copy_slots(turn, leader).unwrap_or((Step::Rest, steady));
    }
    let reference = Reference::of(leader);
    if let Some(diverged) = recovery::verdict(turn, cluster, &reference) {
        let repairable = recovery::can_repair(turn, &diverged);
        let detail = diverged.detail;
        return if turn.paused() || !repairable {
            (
                Step::Rest,
                Why::CannotRejoin {
                    leader: name.clone(),
                    detail,
                },
            )
        } else {
            (
                stop(StopMode::Fast, StopPurpose::Maintenance),
                Why::StoppingToRepair { detail },
            )
        };
    }
    if !recovery::proven(turn, &reference) {
        return if pointed && !reference.is_ready {
            (Step::Rest, steady)
        } else {
            recovery::prove(turn, &reference)
        };
    }
    if pointed {
        return wait_or_compare_again(turn, &reference, upstream, steady);
    }
    point(turn, upstream, name, steady)
}

/// A standby in good order that lacks logical slots of its leader: it gets them now, while no failover is due.
fn copy_slots(turn: &Turn<'_>, leader: &Member) -> Choice {
    let slots = &turn.obs.postgres.missing_slots;
    if slots.is_empty() || turn.paused() || leader.role != Some(Role::Primary) {
        return PASS;
    }
    let job = Job::CopySlots {
        from: as_upstream(leader)?,
        slots: slots.clone(),
    };
    let leader = leader.name.clone();
    Some((Step::Start(job), Why::CopyingSlots { leader }))
}

/// Pointed at the leader, proven, and still not streaming on its timeline: the old upstream may have sent more after the comparison.
fn wait_or_compare_again(
    turn: &mut Turn<'_>,
    leader: &Reference,
    upstream: Upstream,
    steady: Why,
) -> (Step, Why) {
    let behind = turn.my_timeline() != leader.timeline && leader.is_ready && !turn.paused();
    let now = turn.obs.now;
    let waited = turn
        .memory
        .followed
        .as_ref()
        .filter(|(last, _)| *last == upstream)
        .map(|(_, since)| now.since(*since));
    match waited {
        Some(waited) if behind && waited >= turn.obs.settings.loop_wait => {}
        Some(_) => return (Step::Rest, steady),
        None => {
            turn.memory.followed = Some((upstream, now));
            return (Step::Rest, steady);
        }
    }
    turn.memory.followed = Some((upstream, now));
    recovery::prove(turn, leader)
}

/// Changes the upstream of a proven standby.
pub(super) fn point(
    turn: &mut Turn<'_>,
    upstream: Upstream,
    leader: &MemberName,
    steady: Why,
) -> (Step, Why) {
    let words = named(&upstream);
    if let Some((last, at)) = &turn.memory.followed
        && *last == upstream
        && turn.obs.now.since(*at) < turn.obs.settings.loop_wait
    {
        return (Step::Rest, steady);
    }
    turn.memory.followed = Some((upstream.clone(), turn.obs.now));
    // primary_conninfo can be reloaded since PostgreSQL 13.
    let reloadable = turn
        .obs
        .postgres
        .version
        .is_none_or(|version| version.at_least(13));
    if reloadable {
        let why = Why::FollowingDifferent {
            leader: leader.clone(),
            upstream: words,
        };
        (Step::Follow(upstream), why)
    } else {
        (
            Step::Start(Job::RestartToFollow { of: upstream }),
            Why::RestartingToFollow { upstream: words },
        )
    }
}

pub(super) fn is_streaming(turn: &Turn<'_>) -> bool {
    match &turn.obs.postgres.position {
        Some(Position::Standby { replication, .. }) => {
            *replication == Some(ReplicationState::Streaming)
        }
        Some(Position::Primary { .. }) | None => false,
    }
}
