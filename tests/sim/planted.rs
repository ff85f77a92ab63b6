//! Faults planted into the core: the simulator is worth something only if it finds them.

use std::time::Duration;

use howdah::ha::decide;
use howdah::ha::decision::{Decision, Job, Step, Why, Write};
use howdah::ha::observation::{
    Connection, JobView, Memory, Observation, Peer, Position, Process, StandbyNames, StoreView,
    Synchronous, Upstream,
};
use howdah::types::{MemberName, Moment};

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

/// Lowers the quorum as soon as a voter is gone, before those who stay hold what it alone had confirmed (spec/ha.md §13.3).
pub(crate) fn lowers_the_quorum_early(obs: &Observation, memory: &Memory) -> Decision {
    let mut decision = decide(obs, memory);
    let (Synchronous::Quorum { count, .. }, Some(cluster), Some(replication)) = (
        obs.settings.synchronous,
        obs.cluster(),
        obs.postgres.replication.as_ref(),
    ) else {
        return decision;
    };
    let connected = |name: &MemberName| {
        let streams = |standby: &Connection| standby.name == name.as_str();
        replication.standbys.iter().any(streams)
    };
    let mut sync = cluster.sync.clone();
    sync.standbys.retain(connected);
    let gone = sync.standbys.len() < cluster.sync.standbys.len();
    let forgotten = cluster
        .sync
        .standbys
        .iter()
        .all(|name| connected(name) || !replication.names.contains(name.as_str()));
    if decision.step == Step::Rest
        && obs.lease.is_some()
        && obs.tried.write.is_none()
        && cluster.sync.leader.as_ref() == Some(&obs.me)
        && gone
        && forgotten
    {
        let voters = u32::try_from(sync.standbys.len()).unwrap_or(0);
        sync.quorum = voters.saturating_sub(count);
        decision.step = Step::Write(Write::Sync(sync));
    }
    decision
}

/// Lets commits through that wait while the store is silent, in order not to keep clients waiting.
pub(crate) fn relaxes_without_the_store(obs: &Observation, memory: &Memory) -> Decision {
    let decision = decide(obs, memory);
    let waits = obs
        .postgres
        .replication
        .as_ref()
        .is_some_and(|replication| !replication.names.is_empty());
    let primary = matches!(obs.postgres.position, Some(Position::Primary { .. }));
    if decision.step == Step::Rest
        && matches!(obs.store, StoreView::Silent { .. })
        && primary
        && waits
        && obs.tried.names.is_none()
    {
        return Decision {
            step: Step::SetSynchronousNames(StandbyNames::Managed(None)),
            ..decision
        };
    }
    decision
}

/// Races without being synchronous, and without the votes.
pub(crate) fn leads_without_votes(obs: &Observation, memory: &Memory) -> Decision {
    let decision = decide(obs, memory);
    if matches!(decision.why, Why::NotSynchronous | Why::TooFewVotes { .. })
        && obs.tried.acquire.is_none()
    {
        return Decision {
            step: Step::Acquire,
            ..decision
        };
    }
    decision
}

/// Replaces a directory that it may not replace.
pub(crate) fn replaces_regardless(obs: &Observation, memory: &Memory) -> Decision {
    let mut obs = obs.clone();
    obs.settings.may_replace_diverged = true;
    decide(&obs, memory)
}

/// Never tries to lead.
pub(crate) fn never_races(obs: &Observation, memory: &Memory) -> Decision {
    let decision = decide(obs, memory);
    if decision.step == Step::Acquire {
        return Decision {
            step: Step::Rest,
            ..decision
        };
    }
    decision
}

/// Stops and starts PostgreSQL as if the cluster were not paused.
pub(crate) fn ignores_the_pause(obs: &Observation, memory: &Memory) -> Decision {
    let mut obs = obs.clone();
    obs.settings.pause = false;
    decide(&obs, memory)
}

/// Asks a majority of the members for their word instead of all.
pub(crate) fn asks_a_majority(obs: &Observation, memory: &Memory) -> Decision {
    let mut decision = decide(obs, memory);
    if let Step::AskFailsafe { whom } = &mut decision.step {
        let all = whom.len() + 1;
        whom.truncate(all / 2);
    }
    decision
}

/// Races although it has given its word to a leader.
pub(crate) fn breaks_its_word(obs: &Observation, memory: &Memory) -> Decision {
    let mut obs = obs.clone();
    obs.failsafe.promise = None;
    decide(&obs, memory)
}

/// Does not ask itself what it may have promised before it was restarted.
pub(crate) fn forgets_its_word(obs: &Observation, memory: &Memory) -> Decision {
    let mut obs = obs.clone();
    obs.agent_since = Moment(Duration::ZERO);
    decide(&obs, memory)
}

/// Races although no leader would have asked it for its word.
pub(crate) fn races_unasked(obs: &Observation, memory: &Memory) -> Decision {
    let mut obs = obs.clone();
    if let StoreView::Fresh(cluster) = &mut obs.store
        && let Some(topology) = &mut cluster.failsafe
        && obs.lease.is_none()
    {
        topology.insert(obs.me.clone(), format!("http://{}:8008/patroni", obs.me));
    }
    decide(&obs, memory)
}
