//! Faults planted into the core: the simulator is worth something only if it finds them.

use std::time::Duration;

use howdah::ha::decide;
use howdah::ha::decision::{Decision, Job, Step, Why};
use howdah::ha::observation::{JobView, Memory, Observation, Peer, Process, Upstream};

/// Believes that its lease never ends.
pub(crate) fn endless_lease(obs: &Observation, memory: &Memory) -> Decision {
    let mut obs = obs.clone();
    if let Some(lease) = obs.lease.as_mut() {
        lease.expires = lease.expires + Duration::from_secs(3600);
    }
    decide(&obs, memory)
}

/// Asks nobody before it takes the key.
pub(crate) fn asks_nobody(obs: &Observation, memory: &Memory) -> Decision {
    let mut obs = obs.clone();
    if let Some(peers) = obs.peers.as_mut() {
        for peer in peers {
            *peer = Peer {
                name: peer.name.clone(),
                answer: None,
            };
        }
    }
    decide(&obs, memory)
}

/// Follows the leader without comparing histories.
pub(crate) fn compares_nothing(obs: &Observation, memory: &Memory) -> Decision {
    let mut decision = decide(obs, memory);
    let leader = obs
        .cluster()
        .and_then(|cluster| cluster.leader_member())
        .and_then(|member| {
            Some(Upstream::Member {
                name: member.name.clone(),
                conn_url: member.conn_url.clone()?,
            })
        });
    if let (Step::Start(Job::CheckDivergence { .. } | Job::CrashRecovery), Some(of)) =
        (&decision.step, leader)
    {
        decision.step = match obs.postgres.process {
            Process::Down { .. } => Step::Start(Job::StartStandby { of }),
            Process::Up | Process::Starting { .. }
                if obs.postgres.follows.as_ref() != Some(&of) =>
            {
                Step::Follow(of)
            }
            Process::Up | Process::Starting { .. } => Step::Rest,
        };
    }
    decision
}

/// Promotes without the key.
pub(crate) fn promotes_without_the_key(obs: &Observation, memory: &Memory) -> Decision {
    let decision = decide(obs, memory);
    if decision.why == Why::LostBeforePromote {
        return Decision {
            step: Step::Rest,
            ..decision
        };
    }
    if decision.why == Why::Racing && obs.job == JobView::Idle {
        return Decision {
            step: Step::Start(Job::Promote),
            ..decision
        };
    }
    decision
}

/// Gives the key away as soon as the stop has begun.
pub(crate) fn releases_early(obs: &Observation, memory: &Memory) -> Decision {
    let decision = decide(obs, memory);
    if decision.why == Why::StoppingForSwitchover && obs.tried.release.is_none() {
        return Decision {
            step: Step::Release { publish: None },
            ..decision
        };
    }
    decision
}

/// Goes on as a primary while somebody else leads.
pub(crate) fn ignores_the_other_leader(obs: &Observation, memory: &Memory) -> Decision {
    let mut decision = endless_lease(obs, memory);
    match decision.why {
        Why::SomebodyElseLeads { .. }
        | Why::KeyTaken { .. }
        | Why::KeyGone
        | Why::RenewalRefused => decision.step = Step::Rest,
        _ => {}
    }
    decision
}

/// Starts a former primary in place whoever leads.
pub(crate) fn restarts_in_place(obs: &Observation, memory: &Memory) -> Decision {
    let decision = decide(obs, memory);
    if let Step::Start(Job::CheckDivergence { .. } | Job::CrashRecovery | Job::StartStandby { .. }) =
        decision.step
        && matches!(obs.postgres.process, Process::Down { .. })
        && !obs.postgres.standby_configured
    {
        let timeout = obs.settings.primary_start_timeout;
        return Decision {
            step: Step::Start(Job::StartPrimary { timeout }),
            ..decision
        };
    }
    decision
}
