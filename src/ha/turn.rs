//! One call of the core: the observation, the memory being rewritten, and the questions every concern asks of them.

use std::time::Duration;

use crate::cluster::{Cluster, Initialize, Member};
use crate::types::{Lsn, MemberName, Moment, Timeline};

use super::decision::{Asked, Decision, Job, Step, StopMode, StopPurpose, Why};
use super::observation::{
    Control, ControlState, Directory, JobEnd, JobView, Memory, Observation, Outcome, PeerAnswer,
    Position, Process, Synchronous, Upstream,
};
use super::{deadline, sync};

/// What a concern says: the step and its reason, or nothing.
pub(super) type Choice = Option<(Step, Why)>;

/// How long a living member may take to answer (spec/ha.md §6.2).
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// The same for a member whose key is gone: most likely it is dead, and the election waits for it.
const PATIENCE_ABSENT: Duration = Duration::from_millis(100);

/// One call of the core.
pub(super) struct Turn<'a> {
    pub(super) obs: &'a Observation,
    pub(super) memory: Memory,
    /// We hold the lease and the snapshot agrees.
    pub(super) leads: bool,
    wake_at: Option<Moment>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(obs: &'a Observation, memory: &Memory) -> Self {
        let leads = obs.lease.is_some()
            && obs
                .cluster()
                .is_some_and(|cluster| cluster.is_led_by(&obs.me));
        Turn {
            obs,
            memory: memory.clone(),
            leads,
            wake_at: None,
        }
    }

    pub(super) fn decide(self, step: Step, why: Why) -> Decision {
        Decision {
            step,
            why,
            memory: self.memory,
            wake_at: self.wake_at,
        }
    }

    /// Updates what later turns need to know of this one.
    pub(super) fn remember(&mut self, cluster: &Cluster) {
        if let Some(leader) = &cluster.leader {
            if self.memory.last_led != cluster.members {
                self.memory.last_led.clone_from(&cluster.members);
            }
            if self.memory.last_leader.as_ref() != Some(&leader.name) {
                self.memory.last_leader = Some(leader.name.clone());
            }
            self.memory.race_backoff = None;
            self.memory.yield_until = None;
            self.memory.replay_awaited = None;
            self.memory.preferred_awaited = None;
        }
        self.memory.belongs |= cluster.leader.is_some()
            || cluster.initialize != Initialize::Absent
            || self.obs.postgres.process != Process::Up;
        if self.obs.lease.is_none() {
            self.memory.failsafe_sent = None;
            self.memory.failsafe_doubt.clear();
            self.memory.watchdog_tried = false;
            self.memory.sync_sent = None;
        }
        // Once this is no standby cluster any more, or has another source, its former source says nothing about who may lead.
        let remote = self.obs.settings.standby_cluster.as_ref();
        let other = |from: &mut MemberName| {
            Upstream::is_remote(from) && remote.and_then(Upstream::name).as_ref() != Some(from)
        };
        self.memory.diverged.take_if(other);
        if !self.leads || self.obs.postgres.follows != Some(Upstream::Nobody) {
            self.memory.handing_on = None;
        }
        if !self.obs.postgres.replay_paused {
            self.memory.replay_resumed = false;
        }
        if self.paused() || !self.is_restarting() {
            self.memory.start_limit = None;
        }
        if self.obs.postgres.position.is_some() || self.obs.postgres.process != Process::Up {
            self.memory.silent_since = None;
        }
        match self.obs.postgres.process {
            Process::Up => self.remember_running(),
            Process::Starting { .. } => {}
            Process::Down { .. } => {
                self.memory.in_force = None;
                if let Some(control) = self.control()
                    && !self.memory.fresh
                    && self.was_primary_by_control()
                {
                    self.memory.was_primary_on = Some(control.timeline);
                    self.memory.opened_by = Some((control.timeline, self.obs.me.clone()));
                }
            }
        }
    }

    /// A restart is at work, or its start goes on by itself.
    fn is_restarting(&self) -> bool {
        let at_work = matches!(
            &self.obs.job,
            JobView::Running {
                job: Job::Restart { .. },
                ..
            }
        );
        at_work || matches!(self.obs.postgres.process, Process::Starting { .. })
    }

    fn remember_running(&mut self) {
        let memory = &mut self.memory;
        match &self.obs.postgres.position {
            None => return,
            Some(Position::Primary { timeline, .. }) => {
                memory.was_primary_on = Some(*timeline);
                memory.opened_by = Some((*timeline, self.obs.me.clone()));
                memory.compared_with = None;
                memory.diverged = None;
                memory.names_on_standby = None;
                if matches!(self.obs.job, JobView::Idle) {
                    memory.successors.clear();
                }
                memory.switching =
                    matches!(self.obs.job, JobView::Running { .. }) && memory.switching;
            }
            Some(Position::Standby { .. }) => {
                memory.switching = false;
                memory.in_force = None;
                if let Some(running) = &self.obs.postgres.replication {
                    let known = memory.names_on_standby.as_ref();
                    if known.is_none_or(|(names, _)| *names != running.names) {
                        memory.names_on_standby = Some((running.names.clone(), running.at));
                    }
                }
            }
        }
        memory.fresh = false;
        memory.crash_recovery_done = false;
        memory.stopped_at = None;
        memory.ended_at = None;
    }

    /// Observe again no later than this.
    pub(super) fn wake_by(&mut self, at: Moment) {
        self.wake_at = Some(self.wake_at.map_or(at, |sooner| sooner.min(at)));
    }

    pub(super) fn wake_in(&mut self, millis: u64) {
        self.wake_by(self.obs.now + Duration::from_millis(millis));
    }

    pub(super) fn paused(&self) -> bool {
        self.obs.settings.pause
    }

    pub(super) fn control(&self) -> Option<Control> {
        match &self.obs.postgres.directory {
            Directory::Present { control, .. } => *control,
            Directory::Empty | Directory::Inaccessible(_) => None,
        }
    }

    /// The control file was last written by a primary, not by a standby or an unfinished base backup.
    pub(super) fn was_primary_by_control(&self) -> bool {
        self.control().is_some_and(|control| {
            !control.backup_label
                && match control.state {
                    ControlState::StartingUp
                    | ControlState::ShutDown
                    | ControlState::ShuttingDown
                    | ControlState::InCrashRecovery
                    | ControlState::InProduction
                    | ControlState::Unknown => true,
                    ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery => false,
                }
        })
    }

    /// PostgreSQL was a primary and its history has not been compared with a leader's since (S3). Survives an agent restart: a
    /// server that was started read-only without an upstream still shows it in its configuration.
    pub(super) fn is_former_primary(&self) -> bool {
        !self.memory.fresh
            && (self.was_primary_by_control()
                || self.memory.was_primary_on.is_some()
                || self.obs.postgres.follows == Some(Upstream::Nobody))
    }

    pub(super) fn my_timeline(&self) -> Option<Timeline> {
        self.obs
            .postgres
            .position
            .as_ref()
            .and_then(Position::timeline)
    }

    pub(super) fn my_lsn(&self) -> Lsn {
        self.obs
            .postgres
            .position
            .as_ref()
            .map_or(Lsn::ZERO, Position::lsn)
    }

    /// A write was refused or unanswered in this turn: no further writes of documents until the next.
    pub(super) fn writes_fail(&self) -> bool {
        match self.obs.tried.write {
            None | Some(Outcome::Done) => false,
            Some(Outcome::Refused | Outcome::Unknown) => true,
        }
    }

    /// How a job that ended in this turn failed.
    pub(super) fn failed(&self, which: impl Fn(&Job) -> bool) -> Option<String> {
        match &self.obs.job {
            JobView::Finished { job, end } if which(job) => match end {
                JobEnd::Failed(detail) => Some(detail.clone()),
                JobEnd::Cancelled => Some("cancelled".to_owned()),
                JobEnd::Done | JobEnd::StoppedAt(_) => None,
            },
            JobView::Finished { .. } | JobView::Running { .. } | JobView::Idle => None,
        }
    }

    /// The stop of a primary that must not be one: immediate, because nobody may get a commit acknowledged any more.
    pub(super) fn stop_for_lost_lease(&mut self) -> Step {
        stop(StopMode::Immediate, StopPurpose::LostLease)
    }

    /// What the leader (or the tags) say to receive WAL from, when `leader` leads (spec/ha.md §5.10).
    pub(super) fn upstream(&self, cluster: &Cluster, leader: &MemberName) -> Option<Upstream> {
        if self.obs.tags.nostream {
            return Some(Upstream::Nobody);
        }
        let wanted = self
            .obs
            .tags
            .replicatefrom
            .as_ref()
            .filter(|name| **name != self.obs.me);
        let member = wanted
            .and_then(|name| cluster.members.get(name))
            .or_else(|| cluster.members.get(leader))?;
        as_upstream(member)
    }

    /// Those who could lead instead of this node, as the documents say; only `named` if given.
    pub(super) fn candidates(&self, cluster: &Cluster, named: Option<&MemberName>) -> Vec<Asked> {
        cluster
            .members
            .values()
            .filter(|member| named.is_none_or(|name| *name == member.name))
            .filter(|member| !member.tags.never_leads())
            .filter_map(|member| self.asked(member, true))
            .collect()
    }

    /// How to ask this member; `None` for myself and for one without an address.
    pub(super) fn asked(&self, member: &Member, alive: bool) -> Option<Asked> {
        if member.name == self.obs.me {
            return None;
        }
        Some(Asked {
            name: member.name.clone(),
            api_url: member.api_url.clone()?,
            patience: if alive { PATIENCE } else { PATIENCE_ABSENT },
        })
    }

    /// The answers of `whom`, if all of them were asked in this turn.
    pub(super) fn answers(&self, whom: &[Asked]) -> Option<Vec<(MemberName, PeerAnswer)>> {
        if whom.is_empty() {
            return Some(Vec::new());
        }
        let peers = self.obs.peers.as_ref()?;
        let mut answers = Vec::new();
        for asked in whom {
            let peer = peers.iter().find(|peer| peer.name == asked.name)?;
            if let Some(answer) = &peer.answer {
                answers.push((peer.name.clone(), answer.clone()));
            }
        }
        Some(answers)
    }

    /// Who could take over now (spec/ha.md §6.6): `Err` = ask first. With `at`: only those who have received everything up to it. While
    /// the synchronous state is published only those whom it allows, unless a manual failover names somebody.
    pub(super) fn able_to_lead(
        &self,
        cluster: &Cluster,
        whom: Vec<Asked>,
        at: Option<Lsn>,
    ) -> Result<Vec<(MemberName, PeerAnswer)>, Vec<Asked>> {
        let Some(answers) = self.answers(&whom) else {
            return Err(whom);
        };
        let settings = &self.obs.settings;
        let needed = at.unwrap_or_else(|| {
            let mine = self.my_lsn().max(cluster.status.optime);
            Lsn(mine.0.saturating_sub(settings.maximum_lag_on_failover))
        });
        let behind = |answer: &PeerAnswer| {
            settings.check_timeline
                && cluster
                    .timeline()
                    .is_some_and(|timeline| answer.timeline < Some(timeline))
        };
        let able = answers
            .into_iter()
            .filter(|(_, answer)| answer.in_recovery && limitation(answer).is_none())
            .filter(|(_, answer)| answer.lsn >= needed && !behind(answer))
            .collect();
        let request = cluster.failover.as_ref();
        Ok(match sync::electorate(self, cluster) {
            Some(electorate) if request.is_none_or(|request| request.leader.is_some()) => {
                let named = request.is_some_and(|request| request.candidate.is_some());
                electorate.successors(able, named)
            }
            Some(_) | None => able,
        })
    }

    /// Bound of a clean stop here: a primary's in the synchronous modes (spec/ha.md §7.2), where nothing acknowledged is lost by it.
    pub(super) fn stop_bound(&self) -> Option<Duration> {
        let settings = &self.obs.settings;
        let synchronous = match settings.synchronous {
            Synchronous::Off => false,
            Synchronous::Priority { .. } | Synchronous::Quorum { .. } => true,
        };
        let bounded =
            synchronous && !settings.primary_stop_timeout.is_zero() && deadline::may_write(self);
        bounded.then_some(settings.primary_stop_timeout)
    }

    /// The time at which PostgreSQL must be down; `None` without a lease.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.obs
            .lease
            .map(|lease| deadline::serve_until(&lease, &self.obs.settings))
    }
}

/// Why a member that answers may not lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limitation {
    NoFailover,
    Watchdog,
    CannotServe,
}

/// Limitation of a peer (spec/ha.md §6.2).
pub(super) fn limitation(answer: &PeerAnswer) -> Option<Limitation> {
    if answer.tags.never_leads() {
        Some(Limitation::NoFailover)
    } else if answer.watchdog_failed {
        Some(Limitation::Watchdog)
    } else if answer.cannot_serve {
        Some(Limitation::CannotServe)
    } else {
        None
    }
}

/// The member as a server to receive WAL from.
pub(super) fn as_upstream(member: &Member) -> Option<Upstream> {
    Some(Upstream::Member {
        name: member.name.clone(),
        conn_url: member.conn_url.clone()?,
    })
}

/// A stop without bound and checkpoint.
pub(super) fn stop(mode: StopMode, purpose: StopPurpose) -> Step {
    Step::Start(Job::Stop {
        mode,
        bound: None,
        checkpoint: false,
        purpose,
    })
}

/// The upstream in words.
pub(super) fn named(upstream: &Upstream) -> String {
    match upstream {
        Upstream::Member { name, .. } => name.to_string(),
        Upstream::Remote {
            host: Some(host), ..
        } => format!("the remote primary {host}"),
        Upstream::Remote { host: None, .. } => "the remote archive".to_owned(),
        Upstream::Nobody => "nobody".to_owned(),
    }
}
