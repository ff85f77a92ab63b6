//! An empty data directory: create the cluster, copy a member, or wait (spec/ha.md §22, §5.4).

use std::time::Duration;

use crate::cluster::{Cluster, Initialize, Member};
use crate::types::{PgState, Role};

use super::decision::{Job, Step, StopPurpose, Why, Write};
use super::observation::{Bootstrap, Directory, JobView, Outcome, Position, Process, Upstream};
use super::turn::{Choice, Turn, as_upstream, named, stop};
use super::{PASS, recovery};

/// Nothing in the directory.
pub(super) fn empty(turn: &mut Turn<'_>, cluster: &Cluster) -> (Step, Why) {
    if turn.leads {
        return (Step::Release { publish: None }, Why::NoDataWithLock);
    }
    if let Some(detail) = turn.failed(|job| {
        matches!(
            job,
            Job::Clone { .. } | Job::Replace { .. } | Job::Bootstrap
        )
    }) {
        turn.wake_in(5000);
        return (
            Step::Rest,
            Why::JobFailed {
                job: "bootstrap",
                detail,
            },
        );
    }
    match &cluster.leader {
        Some(leader) => match clone_source(turn, cluster, cluster.members.get(&leader.name)) {
            Some(from) => {
                let why = Why::Cloning { from: named(&from) };
                (Step::Start(Job::Clone { from }), why)
            }
            None => (Step::Rest, Why::WaitingForLeader),
        },
        None => without_leader(turn, cluster),
    }
}

/// A running replica that wants to be copied from, else the leader.
pub(super) fn clone_source(
    turn: &Turn<'_>,
    cluster: &Cluster,
    leader: Option<&Member>,
) -> Option<Upstream> {
    let leader = leader?;
    // A leader that has not been promoted yet is no source: the copy would have to change its timeline on the way.
    match leader.role {
        Some(Role::Primary | Role::StandbyLeader) => {}
        Some(Role::Uninitialized | Role::Replica | Role::Promoted | Role::Demoted) | None => {
            return None;
        }
    }
    cluster
        .members
        .values()
        .filter(|member| {
            member.name != turn.obs.me && member.name != leader.name && member.tags.clonefrom
        })
        .filter(|member| member.state == Some(PgState::Running))
        .find_map(as_upstream)
        .or_else(|| as_upstream(leader))
}

fn without_leader(turn: &mut Turn<'_>, cluster: &Cluster) -> (Step, Why) {
    let obs = turn.obs;
    let may_create = obs.settings.may_bootstrap && !obs.tags.never_leads();
    match (&cluster.initialize, turn.memory.bootstrap) {
        (_, Bootstrap::Claiming) => match obs.tried.write {
            Some(Outcome::Done) => {
                turn.memory.bootstrap = Bootstrap::Claimed;
                create(turn)
            }
            Some(Outcome::Unknown) => {
                turn.memory.bootstrap = Bootstrap::InDoubt(obs.now);
                (Step::Rest, Why::BootstrapClaimInDoubt)
            }
            Some(Outcome::Refused) | None => {
                turn.memory.bootstrap = Bootstrap::None;
                (Step::Rest, Why::LostBootstrapRace)
            }
        },
        (_, Bootstrap::Claimed) => create(turn),
        // Whoever creates a cluster leads it.
        (Initialize::Absent, _)
            if may_create && obs.settings.watchdog_required && !obs.watchdog.usable =>
        {
            (Step::Rest, Why::WatchdogUnusable)
        }
        (Initialize::Absent, _) if may_create => {
            turn.memory.bootstrap = Bootstrap::Claiming;
            (Step::Write(Write::ClaimInitialize), Why::ClaimingBootstrap)
        }
        (Initialize::InProgress, Bootstrap::InDoubt(since)) if may_create => {
            in_doubt(turn, cluster, since)
        }
        (Initialize::InProgress, Bootstrap::None) if may_create => abandoned(turn, cluster),
        (Initialize::InProgress, _) | (Initialize::Absent, _) => {
            (Step::Rest, Why::WaitingForLeader)
        }
        (Initialize::Done(_) | Initialize::Invalid(_), _) => {
            if obs.settings.may_clone_without_leader && !obs.tags.never_leads() {
                (
                    Step::Start(Job::Clone {
                        from: Upstream::Nobody,
                    }),
                    Why::CloningWithoutLeader,
                )
            } else {
                (Step::Rest, Why::WaitingForLeader)
            }
        }
    }
}

/// The claim may be ours. If it is somebody else's, their member document says that they are at work; nobody at work for a whole
/// lease means that it is ours. Both at work would be caught when the second one finds another identifier in `initialize`.
fn in_doubt(turn: &mut Turn<'_>, cluster: &Cluster, since: crate::types::Moment) -> (Step, Why) {
    let obs = turn.obs;
    let wait: Duration = obs.settings.ttl + obs.settings.loop_wait;
    if somebody_creates(turn, cluster) || obs.now.since(since) < wait {
        return (Step::Rest, Why::BootstrapClaimInDoubt);
    }
    turn.memory.bootstrap = Bootstrap::Claimed;
    create(turn)
}

/// Somebody has claimed the creation of the cluster. Whoever is at it says so in its member document; if nobody does for longer than a
/// member key outlives its node, the claim's owner has died, and the claim with it: every node waits for it otherwise.
fn abandoned(turn: &mut Turn<'_>, cluster: &Cluster) -> (Step, Why) {
    let now = turn.obs.now;
    let revision = cluster.initialize_revision;
    if somebody_creates(turn, cluster) {
        turn.memory.claim_idle = None;
        return (Step::Rest, Why::WaitingForLeader);
    }
    let since = match turn.memory.claim_idle {
        Some((seen, since)) if seen == revision => since,
        Some(_) | None => now,
    };
    turn.memory.claim_idle = Some((revision, since));
    let until = since + turn.obs.settings.ttl + turn.obs.settings.loop_wait;
    match revision {
        Some(revision) if now >= until && turn.obs.tried.write.is_none() => {
            turn.memory.claim_idle = None;
            (
                Step::Write(Write::WithdrawClaim(revision)),
                Why::BootstrapClaimAbandoned,
            )
        }
        Some(_) | None => {
            if until > now {
                turn.wake_by(until);
            }
            (Step::Rest, Why::WaitingForLeader)
        }
    }
}

/// Another member creates the cluster, or has begun to run.
fn somebody_creates(turn: &Turn<'_>, cluster: &Cluster) -> bool {
    let creating = |member: &Member| match member.state {
        Some(
            PgState::InitializingNewCluster
            | PgState::RunningCustomBootstrap
            | PgState::StartingAfterCustomBootstrap
            | PgState::Starting
            | PgState::Running,
        ) => true,
        Some(
            PgState::InitdbFailed
            | PgState::CustomBootstrapFailed
            | PgState::CreatingReplica
            | PgState::StartFailed
            | PgState::Restarting
            | PgState::RestartFailed
            | PgState::Stopping
            | PgState::Stopped
            | PgState::StopFailed
            | PgState::Crashed,
        )
        | None => false,
    };
    cluster
        .members
        .values()
        .any(|member| member.name != turn.obs.me && creating(member))
}

fn create(turn: &Turn<'_>) -> (Step, Why) {
    match &turn.obs.settings.standby_cluster {
        Some(remote) => (
            Step::Start(Job::Clone {
                from: remote.clone(),
            }),
            Why::BootstrappingStandbyCluster,
        ),
        None => (Step::Start(Job::Bootstrap), Why::Bootstrapping),
    }
}

/// A cluster that this node creates: its documents and its key once the server runs, or the way back.
pub(super) fn finish(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    let obs = turn.obs;
    match turn.memory.bootstrap {
        Bootstrap::None | Bootstrap::Claiming | Bootstrap::InDoubt(_) => return PASS,
        Bootstrap::Failed => return Some(withdraw(turn, cluster)),
        Bootstrap::Claimed => {
            // A standby cluster is created by cloning: the server is started like any clone.
            let cloned = obs.settings.standby_cluster.is_some()
                && matches!(obs.postgres.directory, Directory::Present { .. });
            if !cloned {
                return PASS;
            }
            turn.memory.bootstrap = Bootstrap::Ready;
        }
        Bootstrap::Ready => {}
    }
    if turn.leads {
        turn.memory.bootstrap = Bootstrap::None;
        return PASS;
    }
    match (&obs.postgres.process, &obs.postgres.position) {
        (Process::Up, Some(Position::Primary { .. } | Position::Standby { .. })) => {
            Some(publish(turn, cluster))
        }
        (Process::Up, None) | (Process::Starting { .. }, _) => Some((Step::Rest, Why::Starting)),
        (Process::Down { .. }, _) => Some(match &obs.settings.standby_cluster {
            Some(remote) => (
                Step::Start(Job::StartStandby { of: remote.clone() }),
                Why::StartingAsSecondary { of: named(remote) },
            ),
            None => (
                Step::Start(Job::StartPrimary {
                    timeout: obs.settings.primary_start_timeout,
                }),
                Why::RestartingInPlace { crashed: true },
            ),
        }),
    }
}

fn publish(turn: &mut Turn<'_>, cluster: &Cluster) -> (Step, Why) {
    let obs = turn.obs;
    let mine = recovery::system_id(turn).cloned();
    let written = match (&cluster.initialize, &mine) {
        (Initialize::Done(theirs), Some(mine)) if theirs != mine => {
            return recovery::foreign(turn, mine.clone(), theirs.clone());
        }
        (Initialize::Done(_), _) | (_, None) => true,
        (Initialize::Absent | Initialize::InProgress | Initialize::Invalid(_), Some(_)) => false,
    };
    if turn.writes_fail() {
        return (Step::Rest, Why::CannotTakeKey);
    }
    if let Some(mine) = mine
        && !written
    {
        return (Step::Write(Write::Initialize(mine)), Why::WritingInitialize);
    }
    if cluster.config.is_none() {
        return (Step::Write(Write::Config), Why::WritingConfig);
    }
    if obs.tried.acquire.is_none() {
        return (Step::Take, Why::InitializedCluster);
    }
    turn.wake_in(500);
    (Step::Rest, Why::CannotTakeKey)
}

fn withdraw(turn: &mut Turn<'_>, cluster: &Cluster) -> (Step, Why) {
    let obs = turn.obs;
    if !matches!(obs.postgres.process, Process::Down { .. })
        && !matches!(obs.job, JobView::Running { .. })
    {
        return (
            stop(super::decision::StopMode::Immediate, StopPurpose::Shutdown),
            Why::BootstrapFailed,
        );
    }
    if cluster.initialize == Initialize::InProgress && obs.tried.write.is_none() {
        return (Step::Write(Write::CancelInitialize), Why::BootstrapFailed);
    }
    (
        Step::Exit {
            failure: !obs.stopping,
        },
        Why::BootstrapFailed,
    )
}
