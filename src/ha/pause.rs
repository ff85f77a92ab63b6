//! Maintenance: touch nothing (spec/ha.md §11). The key follows what PostgreSQL is, never the other way round.

use crate::cluster::{Cluster, Initialize};
use crate::types::{Role, Timeline};

use super::PASS;
use super::decision::{Step, Why};
use super::observation::{Directory, Position, Process};
use super::turn::{Choice, Turn};
use super::{leader, race, recovery, replica, standby, switchover};

/// Everything that happens while paused.
pub(super) fn paused(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    if !turn.paused() {
        return PASS;
    }
    // A leader that a switchover has stopped comes back as if there were no pause.
    let returning =
        turn.memory.switching && matches!(turn.obs.postgres.process, Process::Down { .. });
    if returning && matches!(turn.obs.postgres.directory, Directory::Present { .. }) {
        return PASS;
    }
    Some(
        match (&turn.obs.postgres.directory, turn.obs.postgres.process) {
            (Directory::Empty | Directory::Inaccessible(_), _) => {
                down(turn, Why::EmptyDirectoryPaused)
            }
            (Directory::Present { .. }, Process::Down { .. }) => down(turn, Why::DownPaused),
            (Directory::Present { .. }, Process::Starting { .. }) => (Step::Rest, Why::Starting),
            (Directory::Present { .. }, Process::Up) => match &turn.obs.postgres.position {
                None => (Step::Rest, Why::NoAnswer),
                Some(Position::Primary { timeline, .. }) => primary(turn, cluster, *timeline),
                Some(Position::Standby { .. }) => standby(turn, cluster),
            },
        },
    )
}

fn down(turn: &Turn<'_>, why: Why) -> (Step, Why) {
    if turn.leads {
        (Step::Release { publish: None }, Why::DownPausedWithLock)
    } else {
        (Step::Rest, why)
    }
}

fn primary(turn: &mut Turn<'_>, cluster: &Cluster, timeline: Timeline) -> (Step, Why) {
    let ours = match (&cluster.initialize, recovery::system_id(turn)) {
        (Initialize::Done(theirs), Some(mine)) => theirs == mine,
        (Initialize::Done(_), None) => false,
        (Initialize::Absent | Initialize::InProgress | Initialize::Invalid(_), _) => true,
    };
    match &cluster.leader {
        _ if turn.leads && !ours => (Step::Release { publish: None }, Why::NotPrimaryPaused),
        _ if turn.leads => leader::steady(turn, cluster, timeline).unwrap_or_else(|| {
            (
                Step::Rest,
                Why::LeadingPaused {
                    me: turn.obs.me.clone(),
                },
            )
        }),
        None if ours && turn.obs.tried.acquire.is_none() && turn.obs.tried.release.is_none() => {
            (Step::Acquire, Why::PrimaryTakesFreeKey)
        }
        None | Some(_) => (Step::Rest, Why::PrimaryWithoutLockPaused),
    }
}

fn standby(turn: &mut Turn<'_>, cluster: &Cluster) -> (Step, Why) {
    let request = switchover::in_force(turn, cluster);
    let named = request.is_some_and(|request| request.candidate.as_ref() == Some(&turn.obs.me));
    match &cluster.leader {
        _ if turn.leads => {
            if let Some(choice) = standby::lead(turn, cluster) {
                return choice;
            }
            match turn.obs.postgres.role {
                Role::Promoted => (Step::Rest, Why::PromotionUnderWay),
                Role::Uninitialized
                | Role::Replica
                | Role::Primary
                | Role::StandbyLeader
                | Role::Demoted
                    if named =>
                {
                    leader::promote(turn, cluster)
                }
                Role::Uninitialized
                | Role::Replica
                | Role::Primary
                | Role::StandbyLeader
                | Role::Demoted => (Step::Release { publish: None }, Why::NotPrimaryPaused),
            }
        }
        Some(leader) if leader.name != turn.obs.me => replica::follow(turn, cluster, &leader.name),
        Some(_) => (Step::Rest, Why::KeyNotConfirmed),
        None if named
            && !turn.obs.tags.never_leads()
            && turn.obs.tried.acquire.is_none()
            && turn.obs.tried.release.is_none() =>
        {
            race::as_named(turn, cluster)
        }
        None => (Step::Rest, Why::Paused),
    }
}
