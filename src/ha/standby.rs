//! Standby clusters: the leader follows a remote primary and never promotes (spec/ha.md §17).

use crate::cluster::Cluster;

use super::PASS;
use super::decision::{Job, Step, StopMode, StopPurpose, Why};
use super::observation::{Divergence, JobView, Upstream};
use super::turn::{Choice, Turn, named, stop};
use super::{leader, replica, switchover};

/// A primary in a standby cluster is stopped and comes back as a standby.
pub(super) fn no_primary_here(turn: &mut Turn<'_>) -> Choice {
    turn.obs.settings.standby_cluster.as_ref()?;
    Some((
        stop(StopMode::Fast, StopPurpose::DemoteCluster),
        Why::BecameStandbyCluster,
    ))
}

/// The leader of a standby cluster: receive from the remote server instead of promoting.
pub(super) fn lead(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let remote = turn.obs.settings.standby_cluster.clone()?;
    let steady = Why::LeadingStandbyCluster {
        me: turn.obs.me.clone(),
    };
    if let Some(choice) =
        leader::repair(turn, cluster).or_else(|| switchover::on_request(turn, cluster))
    {
        return Some(choice);
    }
    if turn.obs.postgres.follows.as_ref() == Some(&remote) {
        return Some((Step::Rest, steady));
    }
    let me = turn.obs.me.clone();
    Some(replica::point(turn, remote, &me, steady))
}

/// A member of a standby cluster below its leader: PostgreSQL's own checks decide whether it can stream.
pub(super) fn follow(turn: &mut Turn<'_>, upstream: &Upstream) -> Choice {
    turn.obs.settings.standby_cluster.as_ref()?;
    let leader = turn.memory.last_leader.clone()?;
    let steady = Why::Following {
        me: turn.obs.me.clone(),
        leader: leader.clone(),
    };
    if turn.obs.postgres.follows.as_ref() == Some(upstream) {
        return Some((Step::Rest, steady));
    }
    Some(replica::point(turn, upstream.clone(), &leader, steady))
}

/// A server that is down in a standby cluster: the leader, and everyone while nobody leads, starts behind the remote server. One that
/// was a primary is compared with the remote server first (S3).
pub(super) fn start(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let remote = turn.obs.settings.standby_cluster.clone()?;
    let compared = match &turn.obs.postgres.divergence {
        Divergence::Prefix { .. } => true,
        Divergence::Unchecked | Divergence::Diverged { .. } | Divergence::RewindFailed { .. } => {
            false
        }
    };
    if turn.leads && turn.memory.abdicating {
        return PASS;
    }
    if turn.is_former_primary() && !compared && (turn.leads || cluster.is_unlocked()) {
        return Some(compare(turn, remote));
    }
    if !turn.leads && !cluster.is_unlocked() {
        return PASS;
    }
    let why = Why::StartingAsSecondary { of: named(&remote) };
    Some((Step::Start(Job::StartStandby { of: remote }), why))
}

fn compare(turn: &mut Turn<'_>, remote: Upstream) -> (Step, Why) {
    let with = named(&remote);
    if matches!(
        turn.obs.job,
        JobView::Finished {
            job: Job::CheckDivergence { .. },
            ..
        }
    ) {
        turn.wake_in(5000);
        let detail = match &turn.obs.postgres.divergence {
            Divergence::Diverged { detail, .. } => detail.clone(),
            Divergence::RewindFailed { .. } => "pg_rewind failed".to_owned(),
            Divergence::Unchecked | Divergence::Prefix { .. } => "no verdict".to_owned(),
        };
        return (
            Step::Rest,
            Why::JobFailed {
                job: "comparing histories",
                detail,
            },
        );
    }
    (
        Step::Start(Job::CheckDivergence { with: remote }),
        Why::Comparing { with },
    )
}

/// Nobody leads in a standby cluster: members may follow the remote server directly.
pub(super) fn without_leader(turn: &mut Turn<'_>) -> Choice {
    let remote = turn.obs.settings.standby_cluster.clone()?;
    if turn.obs.postgres.follows.as_ref() == Some(&remote) {
        return PASS;
    }
    let me = turn.obs.me.clone();
    match replica::point(turn, remote, &me, Why::FollowingRemote) {
        (Step::Rest, _) => PASS,
        (step, _) => Some((step, Why::FollowingRemote)),
    }
}
