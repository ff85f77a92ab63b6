//! Local requests from the REST API: restart and reinitialize (spec/ha.md §10).

use crate::cluster::Cluster;

use super::PASS;
use super::bootstrap;
use super::decision::{Job, Refused, ReplaceReason, Step, StopMode, StopPurpose, Why};
use super::observation::{JobView, Process, Request};
use super::turn::{Choice, Turn, as_upstream, named, stop};

/// Answers the oldest request, then begins what was accepted.
pub(super) fn serve(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    if let Some(accepted) = turn.memory.accepted.clone() {
        return begin(turn, cluster, &accepted);
    }
    let request = turn.obs.requests.first()?;
    let result = judge(turn, cluster, request);
    if result.is_ok() {
        turn.memory.accepted = Some(request.clone());
    }
    Some((
        Step::Answer { result },
        Why::Answering {
            accepted: result.is_ok(),
        },
    ))
}

fn judge(turn: &Turn<'_>, cluster: &Cluster, request: &Request) -> Result<(), Refused> {
    if matches!(turn.obs.job, JobView::Running { .. }) {
        return Err(Refused::JobRunning);
    }
    match request {
        Request::Restart { .. } => match turn.obs.postgres.process {
            Process::Up | Process::Starting { .. } => Ok(()),
            Process::Down { .. } => Err(Refused::NotRunning),
        },
        Request::Reinitialize { .. } => match &cluster.leader {
            None => Err(Refused::NoLeader),
            Some(leader) if leader.name == turn.obs.me => Err(Refused::IAmLeader),
            Some(_) => Ok(()),
        },
    }
}

fn begin(turn: &mut Turn<'_>, cluster: &Cluster, request: &Request) -> Choice {
    match request {
        Request::Restart { timeout } => {
            if let Some(choice) = super::sync::leave(turn, cluster) {
                return Some(choice);
            }
            turn.memory.leaving = None;
            turn.memory.accepted = None;
            turn.memory.start_limit = *timeout;
            let timeout = timeout.unwrap_or(turn.obs.settings.primary_start_timeout);
            Some((Step::Start(Job::Restart { timeout }), Why::Restarting))
        }
        Request::Reinitialize { from_leader, .. } => {
            let leader = cluster
                .leader_member()
                .filter(|leader| leader.name != turn.obs.me);
            let preferred = match from_leader {
                true => None,
                false => bootstrap::clone_source(turn, cluster, leader),
            };
            let Some(from) = preferred.or_else(|| as_upstream(leader?)) else {
                turn.memory.accepted = None;
                return PASS;
            };
            match turn.obs.postgres.process {
                Process::Up | Process::Starting { .. } => Some((
                    stop(StopMode::Immediate, StopPurpose::Maintenance),
                    Why::StoppingToReinitialize,
                )),
                Process::Down { .. } => {
                    turn.memory.accepted = None;
                    let because = match from_leader {
                        true => ReplaceReason::RequestedFromLeader,
                        false => ReplaceReason::Requested,
                    };
                    let why = Why::Recloning {
                        from: named(&from),
                        because,
                    };
                    Some((Step::Start(Job::Replace { from, because }), why))
                }
            }
        }
    }
}
