//! Standby clusters: the leader follows a remote primary and never promotes (spec/ha.md §17).
//!
//! Histories are compared with the remote primary's, by every member. The remote server need not be a primary yet: after the order to
//! turn both sites round each may be a standby of the other for a while. So the leader starts without a verdict when none can be had;
//! PostgreSQL itself does not stream what does not continue its history, and a server that does not stream is compared while it runs. A
//! former primary does not follow another member without a verdict (S3).

use crate::cluster::Cluster;
use crate::types::{MemberName, PgState};

use super::PASS;
use super::decision::{Job, Step, StopMode, StopPurpose, Why, Write};
use super::observation::{JobEnd, JobView, Outcome, Upstream};
use super::recovery::Reference;
use super::turn::{Choice, Turn, named, stop};
use super::{leader, recovery, replica, switchover};

/// A write that failed is repeated after so long.
const TRY_AGAIN_MILLIS: u64 = 1000;

/// A primary in a standby cluster is stopped and comes back as a standby. One without the key is stopped as everywhere.
pub(super) fn no_primary_here(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    turn.obs.settings.standby_cluster.as_ref()?;
    if !turn.leads && !cluster.is_unlocked() {
        return PASS;
    }
    Some((
        stop(StopMode::Fast, StopPurpose::DemoteCluster),
        Why::BecameStandbyCluster,
    ))
}

/// The leader of a standby cluster: receive from the remote server instead of promoting.
pub(super) fn lead(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let remote = turn.obs.settings.standby_cluster.clone()?;
    let me = turn.obs.me.clone();
    let steady = Why::LeadingStandbyCluster { me: me.clone() };
    if let Some(choice) =
        leader::repair(turn, cluster).or_else(|| switchover::on_request(turn, cluster))
    {
        return Some(choice);
    }
    Some(receive(turn, cluster, remote, &me, steady))
}

/// A member of a standby cluster below its leader.
pub(super) fn follow(turn: &mut Turn<'_>, cluster: &Cluster, upstream: &Upstream) -> Choice {
    turn.obs.settings.standby_cluster.as_ref()?;
    let leader = turn.memory.last_leader.clone()?;
    let steady = Why::Following {
        me: turn.obs.me.clone(),
        leader: leader.clone(),
    };
    Some(receive(turn, cluster, upstream.clone(), &leader, steady))
}

/// Receives from `upstream`; repairs what keeps it from doing so.
fn receive(
    turn: &mut Turn<'_>,
    cluster: &Cluster,
    upstream: Upstream,
    leader: &MemberName,
    steady: Why,
) -> (Step, Why) {
    let pointed = turn.obs.postgres.follows.as_ref() == Some(&upstream);
    if pointed && (replica::is_streaming(turn) || turn.obs.tags.nostream) {
        turn.memory.was_primary_on = None;
        turn.memory.diverged = None;
        turn.memory.followed = None;
        return (Step::Rest, steady);
    }
    if let Some(choice) = stop_to_repair(turn, cluster) {
        return choice;
    }
    // One that was a primary follows another member only after a comparison.
    if !pointed
        && !turn.leads
        && turn.memory.was_primary_on.is_some()
        && let Some(reference) = reference(turn)
        && !recovery::proven(turn, &reference)
        && !turn.paused()
    {
        return recovery::prove(turn, &reference);
    }
    if !pointed {
        return replica::point(turn, upstream, leader, steady);
    }
    compare_if_it_waits(turn, upstream).unwrap_or((Step::Rest, steady))
}

/// A running server that is known to have diverged from the remote primary.
fn stop_to_repair(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let reference = reference(turn)?;
    let diverged = recovery::verdict(turn, cluster, &reference)?;
    let repairable = recovery::can_repair(turn, &diverged);
    let detail = diverged.detail;
    Some(if turn.paused() || !repairable {
        let leader = reference.name;
        (Step::Rest, Why::CannotRejoin { leader, detail })
    } else {
        (
            stop(StopMode::Fast, StopPurpose::Maintenance),
            Why::StoppingToRepair { detail },
        )
    })
}

/// Pointed at the right server and not streaming from it for a while: the histories may be why.
fn compare_if_it_waits(turn: &mut Turn<'_>, upstream: Upstream) -> Choice {
    let reference = reference(turn)?;
    if turn.paused() {
        return PASS;
    }
    let (now, patience) = (turn.obs.now, turn.obs.settings.loop_wait);
    let since = match &turn.memory.followed {
        Some((last, since)) if *last == upstream => *since,
        Some(_) | None => {
            turn.memory.followed = Some((upstream.clone(), now));
            now
        }
    };
    turn.wake_by(since + patience);
    if now.since(since) < patience {
        return PASS;
    }
    turn.memory.followed = Some((upstream, now));
    Some(recovery::prove(turn, &reference))
}

/// A server that is down in a standby cluster: the leader, and everyone while nobody leads, starts behind the remote server, the others
/// behind their leader. One that was a primary is compared first, if that is possible (S3).
pub(super) fn start(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let remote = turn.obs.settings.standby_cluster.clone()?;
    let of = match &cluster.leader {
        _ if turn.leads && turn.memory.abdicating => return PASS,
        Some(leader) if !turn.leads => {
            turn.memory.abdicating = false;
            turn.memory.ended_at = None;
            let leader = leader.name.clone();
            match turn.upstream(cluster, &leader) {
                Some(upstream) => upstream,
                None => return Some((Step::Rest, Why::LeaderUnknown { leader })),
            }
        }
        Some(_) | None => {
            turn.memory.abdicating &= turn.leads;
            remote
        }
    };
    if let Some(choice) = publish_end(turn, cluster) {
        return Some(choice);
    }
    let below_the_remote = matches!(of, Upstream::Remote { .. });
    if let Some(choice) = repair(turn, cluster, below_the_remote || never_wrote(turn)) {
        return Some(choice);
    }
    let why = Why::StartingAsSecondary { of: named(&of) };
    Some((Step::Start(Job::StartStandby { of }), why))
}

/// Where the history of this former primary ends: whoever moves the writes to the other site waits for it (spec/ha.md §17). A store that
/// does not take it is asked again, for one lease at most.
fn publish_end(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let (at, since) = turn.memory.ended_at?;
    let late = turn.obs.now.since(since) >= turn.obs.settings.ttl;
    let written = cluster.status.optime == at || turn.obs.tried.write == Some(Outcome::Done);
    if !turn.leads || written || late {
        turn.memory.ended_at = None;
        return PASS;
    }
    let step = if turn.writes_fail() {
        turn.wake_in(TRY_AGAIN_MILLIS);
        Step::Rest
    } else {
        Step::Write(Write::Status(at))
    };
    Some((step, Why::PublishingEnd { at }))
}

/// A standby that nothing shows to have been a primary, as far as a former primary could be told from it.
fn never_wrote(turn: &Turn<'_>) -> bool {
    let alone = turn.obs.postgres.follows == Some(Upstream::Nobody) && !turn.obs.tags.nostream;
    !turn.was_primary_by_control() && turn.memory.was_primary_on.is_none() && !alone
}

/// What the remote primary's history asks for before a start. `unproven`: a comparison that comes to no verdict does not prevent it.
fn repair(turn: &mut Turn<'_>, cluster: &Cluster, unproven: bool) -> Choice {
    let reference = reference(turn)?;
    if let Some(diverged) = recovery::verdict(turn, cluster, &reference) {
        if recovery::can_repair(turn, &diverged) {
            return Some(recovery::repair(turn, &reference, diverged));
        }
        let detail = diverged.detail;
        let leader = reference.name;
        return Some((Step::Rest, Why::CannotRejoin { leader, detail }));
    }
    let could_not_start = turn.obs.postgres.state == PgState::StartFailed;
    if !turn.is_former_primary() && !could_not_start || recovery::proven(turn, &reference) {
        return PASS;
    }
    if unproven && is_undecided(turn) {
        return PASS;
    }
    Some(recovery::prove(turn, &reference))
}

/// A comparison with the remote primary has ended without a verdict. One that was cancelled says nothing.
fn is_undecided(turn: &Turn<'_>) -> bool {
    let JobView::Finished { job, end } = &turn.obs.job else {
        return false;
    };
    let compared = match job {
        Job::CheckDivergence { with } => matches!(with, Upstream::Remote { .. }),
        _ => false,
    };
    match end {
        JobEnd::Failed(_) => compared || *job == Job::CrashRecovery,
        JobEnd::Done | JobEnd::StoppedAt(_) => compared,
        JobEnd::Cancelled => false,
    }
}

/// Nobody leads in a standby cluster: members may follow the remote server directly.
pub(super) fn without_leader(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let remote = turn.obs.settings.standby_cluster.clone()?;
    if let Some(choice @ (Step::Start(_), _)) = stop_to_repair(turn, cluster) {
        return Some(choice);
    }
    if turn.obs.postgres.follows.as_ref() == Some(&remote) {
        return PASS;
    }
    let me = turn.obs.me.clone();
    match replica::point(turn, remote, &me, Why::FollowingRemote) {
        (Step::Rest, _) => PASS,
        (step, _) => Some((step, Why::FollowingRemote)),
    }
}

/// The remote primary, to compare histories with; `None`: there is only its archive.
fn reference(turn: &Turn<'_>) -> Option<Reference> {
    let remote = turn.obs.settings.standby_cluster.as_ref()?;
    match remote {
        Upstream::Remote { host: Some(_), .. } => {}
        Upstream::Remote { host: None, .. } | Upstream::Member { .. } | Upstream::Nobody => {
            return None;
        }
    }
    Some(Reference {
        name: remote.name()?,
        timeline: None,
        is_ready: true,
        has_checkpoint: true,
        server: Some(remote.clone()),
    })
}
