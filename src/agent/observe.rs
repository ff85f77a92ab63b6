//! Builds the local half of the observation, and looks after what a job's end changed.

use std::time::Duration;

use crate::clock;
use crate::ha::Why;
use crate::ha::decision::{Job, StopPurpose};
use crate::ha::observation::{
    Acknowledged, Connection, Divergence, JobEnd, JobView, Local, Observation, Position, Process,
    Replication, Standing, Upstream,
};
use crate::postgres::hooks::Event;
use crate::postgres::observe::Sample;
use crate::postgres::ready::{self, Readiness};
use crate::types::{Moment, PgState, Role, Timeline};

use super::Agent;
use super::callbacks::Known;
use super::publish::state_during;
use super::work::Work;

/// How long one status query may hold up a turn, at most; with a short lease a quarter of it.
const SAMPLE_LIMIT: Duration = Duration::from_secs(3);
/// How often a standby looks at its own position while its leader stops.
const WHILE_LEADER_STOPS: Duration = Duration::from_millis(100);
/// After that it is no hand-over any more, and the timer will do.
const LEADER_STOPS_FOR: Duration = Duration::from_secs(10);
/// The same for statements that a turn ends with.
const UPKEEP_LIMIT: Duration = Duration::from_secs(2);

impl Agent {
    /// What the local PostgreSQL is doing now.
    pub(super) async fn observe_postgres(&mut self) -> Local {
        if self.instance.find_postmaster()
            && let Some(postmaster) = &self.instance.postmaster
            && let Err(error) = self.guard.watch(postmaster.pid())
        {
            tracing::warn!("{error}");
        }
        let directory = self.instance.directory().await;
        let process = self.observe_process().await;
        let position = self.instance.sample.as_ref().map(position_of);
        if matches!(position, Some(Position::Standby { .. })) {
            let cluster = self.last_cluster.clone();
            self.instance.derive_upstream(cluster.as_deref());
        }
        let standby_configured = self.instance.standby_configured();
        let role = self.observe_role(&directory, process, position.as_ref(), standby_configured);
        let seen = match process {
            Process::Up => PgState::Running,
            Process::Starting { .. } => PgState::Starting,
            Process::Down { crashed: true } => PgState::Crashed,
            Process::Down { crashed: false } if self.instance.start_failed => PgState::StartFailed,
            Process::Down { crashed: false } => PgState::Stopped,
        };
        let replay_paused = self
            .instance
            .sample
            .as_ref()
            .is_some_and(|sample| sample.in_recovery && sample.replay_paused);
        self.refresh_rewind();
        Local {
            directory,
            process,
            role,
            state: state_during(self.job.running(), seen),
            version: Some(self.instance.version()),
            standby_configured,
            position,
            follows: self.instance.follows.clone(),
            divergence: self.instance.divergence.clone(),
            replay_paused,
            standby_names: self.instance.plan().standby_names.clone(),
            replication: self.instance.sample.as_ref().map(replication_of),
            missing_slots: self.slots.missing().to_vec(),
        }
    }

    async fn observe_process(&mut self) -> Process {
        let Some(postmaster) = self.instance.postmaster.clone() else {
            if self.job.running().is_none() {
                self.instance.bury().await;
            }
            return Process::Down {
                crashed: self.instance.crashed,
            };
        };
        let stopping = matches!(
            self.job.running(),
            Some(
                Job::Stop { .. }
                    | Job::Restart { .. }
                    | Job::RestartToFollow { .. }
                    | Job::CopySlots { .. }
            )
        );
        let settings = self.instance.plan().effective.settings.clone();
        let starting = |instance: &mut super::instance::Instance| {
            let since = *instance.starting_since.get_or_insert_with(clock::now);
            Process::Starting { since }
        };
        // Releases before 10 are asked on the wire, which may take its time.
        let look = ready::now(&settings, &postmaster);
        let limit = self.budget(Duration::from_secs(1));
        match tokio::time::timeout(limit, look).await.unwrap_or(None) {
            None => starting(&mut self.instance),
            Some(Readiness::Exited) => {
                self.instance.forget_postmaster();
                self.instance.bury().await;
                Process::Down {
                    crashed: self.instance.crashed,
                }
            }
            Some(Readiness::Stopping | Readiness::Standby) => {
                self.instance.disconnect();
                Process::Up
            }
            Some(Readiness::Accepting) if stopping => {
                self.instance.disconnect();
                Process::Up
            }
            Some(Readiness::Accepting) => {
                self.instance.starting_since = None;
                let limit = self.budget(SAMPLE_LIMIT.min(self.settings.ttl / 4));
                let before = self.instance.sample.clone();
                match self.instance.take_sample(limit).await {
                    Ok(()) => {
                        self.hear_standbys(before.as_ref());
                        Process::Up
                    }
                    Err(error) if error.is_not_yet() => starting(&mut self.instance),
                    Err(error) => {
                        self.counters.postgres_failures += 1;
                        let line = format!("the status query failed: {error}");
                        if self.sample_error.as_ref() != Some(&line)
                            && !matches!(self.job.running(), Some(Job::Bootstrap))
                        {
                            tracing::warn!("{line}");
                        }
                        self.sample_error = Some(line);
                        Process::Up
                    }
                }
            }
        }
    }

    /// A standby that has confirmed more since the last look, or just reported, was heard after that look.
    fn hear_standbys(&mut self, before: Option<&Sample>) {
        let (Some(before), Some(now)) = (before, &self.instance.sample) else {
            return;
        };
        let spoke = now.walsenders.iter().any(|sender| {
            before
                .walsenders
                .iter()
                .any(|old| old.pid == sender.pid && old.has_spoken_since(sender))
        });
        if spoke {
            self.standbys_heard = self.standbys_heard.max(Some(before.at));
        }
    }

    fn observe_role(
        &mut self,
        directory: &crate::ha::observation::Directory,
        process: Process,
        position: Option<&Position>,
        standby_configured: bool,
    ) -> Role {
        use crate::ha::observation::Directory;
        let role = match (directory, process, position) {
            (Directory::Empty | Directory::Inaccessible(_), _, _) => Role::Uninitialized,
            (_, Process::Up, Some(Position::Primary { .. })) => Role::Primary,
            (_, Process::Up, Some(Position::Standby { .. })) if self.job.is_promoting() => {
                Role::Promoted
            }
            (_, Process::Up, Some(Position::Standby { .. })) => self.standby_role(),
            // It runs and does not answer: it is what it was.
            (_, Process::Up, None) if self.role != Role::Uninitialized => self.role,
            (_, _, _) if standby_configured => Role::Replica,
            (_, _, _) => Role::Demoted,
        };
        if role != self.role {
            tracing::debug!(from = ?self.role, to = ?role, "role");
            self.role = role;
        }
        role
    }

    /// What a standby here is to the cluster.
    fn standby_role(&self) -> Role {
        if self.held.is_some() && self.settings.standby_cluster.is_some() {
            Role::StandbyLeader
        } else {
            Role::Replica
        }
    }

    /// Begins a job the core decided on.
    pub(super) fn start_job(&mut self, job: Job, why: &Why, obs: &Observation) {
        tracing::info!("{why}");
        if matches!(
            job,
            Job::Promote | Job::StartPrimary { .. } | Job::Restart { .. }
        ) && self.held.is_some()
        {
            // The guard stands before PostgreSQL can accept its first write.
            self.confirm_lease();
        }
        match &job {
            Job::Stop { purpose, .. } => {
                self.instance.asked_to_stop = true;
                self.instance.disconnect();
                if !matches!(purpose, StopPurpose::Maintenance) {
                    self.publish_not_leader();
                }
            }
            Job::Restart { .. }
            | Job::RestartToFollow { .. }
            | Job::CopySlots { .. }
            | Job::Rewind { .. }
            | Job::Replace { .. } => {
                self.instance.asked_to_stop = true;
                self.instance.disconnect();
            }
            Job::Promote if !self.authority.holds(obs.now) => {
                tracing::error!(
                    "a promotion was decided without the leader key; the job will refuse it"
                );
            }
            Job::Bootstrap
            | Job::Clone { .. }
            | Job::StartPrimary { .. }
            | Job::StartStandby { .. }
            | Job::Promote
            | Job::CheckDivergence { .. }
            | Job::CrashRecovery => {}
        }
        self.slots.make_way(&job);
        match &job {
            Job::Bootstrap
            | Job::Clone { .. }
            | Job::StartPrimary { .. }
            | Job::StartStandby { .. }
            | Job::RestartToFollow { .. }
            | Job::CopySlots { .. }
            | Job::Promote
            | Job::Restart { .. }
            | Job::Rewind { .. }
            | Job::Replace { .. } => {
                self.instance.set_applied(None);
                self.job_plan = Some(self.instance.plan());
            }
            Job::Stop { .. } | Job::CheckDivergence { .. } | Job::CrashRecovery => {}
        }
        self.expect_callback(&job);
        let work = Work {
            plan: self.instance.plan(),
            caller: self.instance.caller.clone(),
            version: self.instance.version(),
            authority: self.authority.clone(),
            guard: self.guard.clone(),
            logical_slots: self.logical_slots(),
            restart_upstream: self.instance.follows.clone(),
            citus: self.herald_for(&job),
        };
        let task = job.clone();
        self.job.start(job, |reporter| work.run(task, reporter));
    }

    /// Which callback follows the job that begins, if its start of the server is not seen to its end. Those that stop a server first
    /// say so themselves, once it is down: until then it may all come to nothing.
    fn expect_callback(&self, job: &Job) {
        let mut known = self.instance.caller.known();
        known.taken(self.role);
        match job {
            Job::Bootstrap => known.created(),
            Job::StartPrimary { .. } | Job::StartStandby { .. } => known.starting(Event::OnStart),
            Job::Restart { .. }
            | Job::RestartToFollow { .. }
            | Job::CopySlots { .. }
            | Job::Clone { .. }
            | Job::Promote
            | Job::Stop { .. }
            | Job::CheckDivergence { .. }
            | Job::CrashRecovery
            | Job::Rewind { .. }
            | Job::Replace { .. } => {}
        }
    }

    /// What the end of a job changes in what this node knows of itself.
    pub(super) async fn settle_job(&mut self) {
        let standby_role = self.standby_role();
        let Some((job, ended)) = self.job.ended() else {
            return;
        };
        if let Some(divergence) = ended.divergence.clone() {
            self.instance.divergence = divergence;
        }
        if let Some(follows) = ended.follows.clone() {
            self.instance.follows = Some(follows);
        }
        if let Some(raised) = ended.raised.clone() {
            self.instance.set_pending(raised);
        }
        let done = matches!(ended.end, JobEnd::Done | JobEnd::StoppedAt(_));
        let failed = matches!(ended.end, JobEnd::Failed(_));
        self.patience.note(job, failed, clock::now());
        match job {
            Job::StartPrimary { .. }
            | Job::StartStandby { .. }
            | Job::RestartToFollow { .. }
            | Job::Restart { .. } => {
                self.instance.start_failed = !done;
            }
            Job::Bootstrap
            | Job::Clone { .. }
            | Job::Promote
            | Job::Stop { .. }
            | Job::CheckDivergence { .. }
            | Job::CopySlots { .. }
            | Job::CrashRecovery
            | Job::Rewind { .. }
            | Job::Replace { .. } => {}
        }
        let plan = self.job_plan.take();
        if let Job::StartStandby { .. } | Job::RestartToFollow { .. } = job
            && (done || failed)
        {
            let event = if matches!(job, Job::StartStandby { .. }) {
                Event::OnStart
            } else {
                Event::OnRestart
            };
            self.instance
                .tell(|known| known.followed(standby_role, event, done));
        }
        if !done {
            self.settle_restart();
            return;
        }
        match job {
            Job::Bootstrap
            | Job::StartPrimary { .. }
            | Job::StartStandby { .. }
            | Job::RestartToFollow { .. }
            | Job::CopySlots { .. }
            | Job::Promote
            | Job::Restart { .. } => self.instance.set_applied(plan),
            Job::Clone { .. }
            | Job::Stop { .. }
            | Job::CheckDivergence { .. }
            | Job::CrashRecovery
            | Job::Rewind { .. }
            | Job::Replace { .. } => {}
        }
        match job {
            Job::StartPrimary { .. } => self.instance.tell(Known::started_primary),
            Job::CopySlots { .. } => {
                self.instance
                    .tell(|known| known.followed(standby_role, Event::OnStart, true));
            }
            Job::Restart { .. } => self.instance.tell(Known::restarted),
            Job::Promote => self.instance.follows = None,
            // A standby that was stopped to be repaired is still known to have diverged.
            Job::Stop { purpose, .. } if *purpose != StopPurpose::Maintenance => {
                self.instance.divergence = Divergence::Unchecked;
            }
            Job::Clone { .. } | Job::Replace { .. } => self.instance.caller.known().replaced(),
            Job::Stop { .. }
            | Job::Bootstrap
            | Job::StartStandby { .. }
            | Job::RestartToFollow { .. }
            | Job::CheckDivergence { .. }
            | Job::CrashRecovery
            | Job::Rewind { .. } => {}
        }
        self.settle_restart();
    }

    /// Points a running standby elsewhere.
    pub(super) async fn follow(&mut self, upstream: &Upstream) {
        let role = self.standby_role();
        match self.instance.follow(upstream, role).await {
            Ok(()) => tracing::info!("receiving from {}", upstream_name(upstream)),
            Err(error) => tracing::error!("cannot follow {}: {error:#}", upstream_name(upstream)),
        }
    }

    /// Another member leads, and its PostgreSQL went down just now or is about to.
    fn leader_stops(&mut self, now: Moment) -> bool {
        let leader = self.last_cluster.as_ref().and_then(|cluster| {
            let leader = cluster.leader.as_ref().filter(|it| it.name != self.me)?;
            cluster.members.get(&leader.name)
        });
        let stops = leader.is_some_and(|leader| {
            matches!(leader.state, Some(PgState::Stopping | PgState::Stopped))
        });
        if !stops {
            self.leader_stops_since = None;
            return false;
        }
        let since = *self.leader_stops_since.get_or_insert(now);
        now.since(since) < LEADER_STOPS_FOR
    }

    /// What a turn does besides decisions: slots, the checkpoint after a promotion, the cached configuration.
    pub(super) async fn upkeep(&mut self, obs: &mut Observation) {
        self.scheduled_restart_due();
        if self.reload_requested {
            self.reload_local();
        }
        if self.job.running().is_none() {
            if self.instance.sample.is_some() {
                let (role, leads) = (self.role, self.held.is_some());
                self.instance.tell(|known| known.runs_as(role, leads));
            }
            self.follow_role();
            let limit = self.budget(UPKEEP_LIMIT);
            self.instance.settle_plan(clock::now(), limit).await;
            let limit = self.budget(UPKEEP_LIMIT);
            self.instance.ask_pending(clock::now(), limit).await;
            if let Some(at) = self.instance.ask_pending_at() {
                self.wake_by(at);
            }
        }
        if self.leader_stops(clock::now()) {
            // Its successor is who is seen to have received everything; nothing tells this node when the last of it has come.
            self.wake_by(clock::now() + WHILE_LEADER_STOPS);
        }
        if matches!(obs.postgres.position, Some(Position::Primary { .. })) && self.held.is_some() {
            self.instance.checkpoint_after_promote();
        }
        if matches!(
            obs.job,
            JobView::Idle
                | JobView::Finished { .. }
                | JobView::Running {
                    job: Job::Promote,
                    ..
                }
        ) {
            self.keep_slots(obs).await;
        }
        self.cache_configuration();
    }
}

/// For log lines.
fn upstream_name(upstream: &Upstream) -> String {
    match upstream {
        Upstream::Member { name, .. } => name.to_string(),
        Upstream::Remote { host, .. } => host.clone().unwrap_or_else(|| "the archive".to_owned()),
        Upstream::Nobody => "nobody".to_owned(),
    }
}

fn replication_of(sample: &Sample) -> Replication {
    let connection = |sender: &crate::postgres::observe::Sender| {
        let shown = &sender.shown;
        Some(Connection {
            name: shown.application_name.clone()?,
            streaming: shown.state.as_deref() == Some("streaming"),
            standing: match shown.sync_state.as_deref() {
                Some("sync") => Standing::Sync,
                Some("quorum") => Standing::Quorum,
                Some("potential") => Standing::Potential,
                Some(_) | None => Standing::Async,
            },
            written: sender.written,
            flushed: sender.flushed,
            replayed: sender.replayed,
        })
    };
    Replication {
        at: sample.at,
        names: sample.synchronous_standby_names.clone(),
        acknowledged: match sample.synchronous_commit.as_str() {
            "remote_apply" => Acknowledged::Replayed,
            "remote_write" => Acknowledged::Written,
            _ => Acknowledged::Flushed,
        },
        standbys: sample.walsenders.iter().filter_map(connection).collect(),
    }
}

fn position_of(sample: &Sample) -> Position {
    if sample.in_recovery {
        Position::Standby {
            timeline: sample.timeline(),
            received: sample.received_effectively(),
            replayed: sample.replayed,
            replication: sample.replication_state(),
        }
    } else {
        Position::Primary {
            timeline: sample.primary_timeline.unwrap_or(Timeline(1)),
            lsn: sample.flushed,
        }
    }
}
