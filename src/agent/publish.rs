//! The end of a turn: what others see of this node. The member document, the status document, the view for the API, one log line.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::cluster::{CONTRACT_VERSION, Member, Status, Tags, wire};
use crate::dcs::{Document, Expect, Write};
use crate::ha::Why;
use crate::ha::observation::{Observation, Outcome, Position, Process, StoreView};
use crate::node::{Snapshot, ViewSettings};
use crate::restart::ScheduledRestart;
use crate::types::{Lsn, Moment, PgState, Role};

use super::Agent;

impl Agent {
    /// Publishes the member document (unless the store is silent) and the view, schedules the next turn, logs what changed.
    pub(super) async fn finish(&mut self, began: Moment, obs: &Observation, why: &Why) {
        let now = clock::now();
        let took = now.since(began);
        let period = self
            .settings
            .loop_wait
            .min(self.settings.ttl / 3)
            .max(Duration::from_millis(500));
        self.counters.turn_times.observe(took);
        self.time_failover(began, now, obs);
        if took > self.settings.loop_wait {
            self.counters.overruns += 1;
            tracing::warn!(
                ms = took.as_millis() as u64,
                "the turn took longer than loop_wait"
            );
        }
        // A moment that has passed already must not make the loop spin.
        let soonest = now + Duration::from_millis(20);
        self.next_turn = self
            .wake_at
            .take()
            .map_or(now + period, |at| at.max(soonest).min(now + period));
        self.log_turn(why);
        // The API first: it must not wait for the store.
        self.publish_view(obs, why);
        if matches!(obs.store, StoreView::Fresh(_)) {
            self.touch_member(obs).await;
        }
    }

    /// One line per decision. The same one again is a heartbeat: every `loop_wait`, unless `deduplicate_heartbeat_logs` is on. That a
    /// job goes on is for debugging only: its beginning and its end have lines.
    fn log_turn(&mut self, why: &Why) {
        let line = why.to_string();
        if matches!(why, Why::Busy { .. } | Why::BusyLeading { .. }) {
            tracing::debug!("{line}");
            return;
        }
        let now = clock::now();
        if let Some((last, at)) = &self.last_line
            && *last == line
        {
            // The timer of a turn and of a heartbeat may differ by a moment.
            let due = now.since(*at) + Duration::from_millis(100) >= self.settings.loop_wait;
            if self.loaded.config.log.deduplicate_heartbeat_logs || !due {
                tracing::debug!("{line}");
                return;
            }
        }
        tracing::info!("{line}");
        self.last_line = Some((line, now));
    }

    /// The member document of this moment.
    fn member(&self, obs: &Observation) -> Member {
        let local = &obs.postgres;
        let standby = match &local.position {
            Some(Position::Standby {
                received,
                replayed,
                replication,
                ..
            }) => Some((*received, *replayed, *replication)),
            Some(Position::Primary { .. }) | None => None,
        };
        Member {
            name: self.me.clone(),
            session: None,
            conn_url: Some(self.conn_url.clone()),
            api_url: Some(self.api_url.clone()),
            state: Some(local.state),
            role: Some(local.role),
            version: Some(CONTRACT_VERSION.to_owned()),
            proxy_url: self.proxy_url.clone(),
            checkpoint_after_promote: local.role != Role::Primary
                || self.instance.checkpointed_after_promote(),
            tags: self.member_tags(),
            pending_restart: self.instance.pending_restart(),
            xlog_location: local.position.as_ref().map(Position::lsn),
            replay_lsn: standby.and_then(|(_, replayed, _)| replayed.known()),
            receive_lsn: standby.and_then(|(received, _, _)| received.known()),
            replication_state: standby.and_then(|(_, _, state)| state),
            timeline: local.position.as_ref().and_then(Position::timeline),
            scheduled_restart: self
                .scheduled_restart
                .as_ref()
                .map(ScheduledRestart::published),
            pause: obs.settings.pause,
            cannot_serve: self.memory.cannot_serve().map(str::to_owned),
        }
    }

    /// My tags; a standby that wants to be released from synchronous duty says so (spec/ha.md §12.8).
    fn member_tags(&self) -> Tags {
        let mut tags = self.tags.clone();
        if self.memory.leaves_synchronous_duty() {
            tags.nosync = Some(true);
            tags.sync_priority = Some(0);
        }
        tags
    }

    async fn touch_member(&mut self, obs: &Observation) {
        let value = wire::member_text(&self.member(obs));
        let budget = self.budget(self.settings.retry_timeout.min(Duration::from_secs(2)));
        let sent = clock::now();
        match self.patiently(budget, self.store.put_member(&value)).await {
            Ok(Write::Done(())) => {
                self.counters.dcs_times.observe(clock::now().since(sent));
                self.announce_primary(obs.postgres.state, obs.postgres.role);
            }
            Ok(Write::Refused(refusal)) => {
                tracing::warn!(?refusal, "the store refuses my member key")
            }
            Ok(Write::Unknown(error)) => {
                self.counters.dcs_failures += 1;
                tracing::warn!("cannot write my member key: {error}");
            }
            Err(_) => {
                self.counters.dcs_failures += 1;
                tracing::warn!(
                    "cannot write my member key within {} ms",
                    budget.as_millis()
                );
            }
        }
    }

    /// Publishes the leader's position (and slots); only if it changed. A failure is no reason to step down (spec/dcs.md §4.2).
    pub(super) async fn publish_status(&mut self, obs: &Observation, at: Option<Lsn>) -> Outcome {
        let optime = at.or_else(|| obs.postgres.position.as_ref().map(Position::lsn));
        let Some(optime) = optime.and_then(Lsn::known) else {
            return Outcome::Refused;
        };
        let known = obs
            .cluster()
            .map(|cluster| cluster.status.clone())
            .unwrap_or_default();
        let retain_slots = if at.is_some() {
            known.retain_slots.clone()
        } else {
            self.retained_slots(obs, &known.retain_slots)
        };
        let mut slots = match self.instance.slot_positions() {
            Some(slots) if at.is_none() => slots,
            Some(_) | None => known.slots.clone(),
        };
        slots.insert(self.me.slot_name(), optime);
        if !self.instance.version().at_least(11) {
            slots.clear();
        } else if self.dynamic.member_slots_ttl.is_zero() {
            slots.retain(|name, _| self.dynamic.slots.contains_key(name));
        }
        let status = Status {
            optime,
            slots,
            retain_slots,
        };
        if status == known {
            return Outcome::Done;
        }
        let value = wire::status_text(&status);
        let budget = self.budget(Duration::from_secs(1));
        let writing = self.store.put(Document::Status, &value, Expect::Anything);
        match self.patiently(budget, writing).await {
            Ok(Write::Done(_)) => Outcome::Done,
            Ok(Write::Refused(refusal)) => {
                tracing::warn!(?refusal, "the store refuses the status key");
                Outcome::Refused
            }
            Ok(Write::Unknown(error)) => {
                tracing::warn!("cannot write the status key: {error}");
                Outcome::Unknown
            }
            Err(_) => {
                tracing::warn!(
                    "cannot write the status key within {} ms",
                    budget.as_millis()
                );
                Outcome::Unknown
            }
        }
    }

    /// Slots of absent members that must survive (spec/dcs.md §2.5).
    fn retained_slots(&mut self, obs: &Observation, known: &[String]) -> Vec<String> {
        let ttl = self.dynamic.member_slots_ttl;
        if ttl.is_zero() {
            return Vec::new();
        }
        let present = self.instance.slot_positions().unwrap_or_default();
        let backed: BTreeSet<String> = obs
            .cluster()
            .into_iter()
            .flat_map(|cluster| cluster.members.values())
            .filter(|member| member.name != self.me && !member.tags.nostream)
            .map(|member| member.name.slot_name())
            .filter(|slot| present.contains_key(slot))
            .collect();
        let permanent: BTreeSet<String> = self.dynamic.slots.keys().cloned().collect();
        let (kept, expired) = self
            .retention
            .update(&backed, known, &permanent, ttl, clock::now());
        for slot in expired {
            tracing::info!(
                "Replication slot '{slot}' for absent cluster member is expired after {} sec.",
                ttl.as_secs()
            );
        }
        kept
    }

    /// The view after a change of the snapshot alone.
    pub(super) fn publish_snapshot(&mut self) {
        let snapshot = self.snapshot();
        let seen = self.store_heard_wall;
        self.view.send_modify(|view| {
            let mut next = (**view).clone();
            next.snapshot = snapshot;
            next.dcs_last_seen = seen;
            *view = Arc::new(next);
        });
    }

    fn snapshot(&self) -> Option<Snapshot> {
        if self.store_error.is_some() {
            return None;
        }
        Some(Snapshot {
            cluster: Arc::clone(self.last_cluster.as_ref()?),
            read_at: self.store_heard?,
        })
    }

    fn publish_view(&mut self, obs: &Observation, why: &Why) {
        let snapshot = self.snapshot();
        let settings = self.view_settings();
        let local = &obs.postgres;
        let status = if matches!(local.process, Process::Up) {
            self.instance.status()
        } else {
            None
        };
        let abdicating = matches!(
            self.job.running(),
            Some(crate::ha::decision::Job::Stop { .. })
        );
        // From then on PostgreSQL is being stopped, by init if this process cannot.
        let leader_until = self
            .held
            .as_ref()
            .filter(|_| !abdicating)
            .map(|held| held.expires_less(self.settings.stop_margin));
        let tags = wire::tags_object(&self.tags);
        let mut next = (**self.view.borrow()).clone();
        next.state = local.state;
        next.role = local.role;
        next.postmaster_alive = !matches!(local.process, Process::Down { .. });
        next.postgres = status;
        next.system_id = self.instance.system_id();
        next.leader_until = leader_until;
        next.failsafe_until = self.failsafe_until(clock::now());
        next.failsafe_topology = self
            .last_cluster
            .as_ref()
            .and_then(|cluster| cluster.failsafe.clone())
            .map(Arc::new);
        next.snapshot = snapshot;
        next.dcs_last_seen = self.store_heard_wall;
        next.dcs_error = self.store_error.clone();
        next.settings = settings;
        next.tags = self.tags.clone();
        next.configured_tags = tags.clone();
        next.effective_tags = tags;
        next.pending_restart = self.instance.pending_restart();
        next.scheduled_restart = self.scheduled_restart.clone();
        next.watchdog_failed = !obs.watchdog.usable;
        next.cannot_serve = self.memory.cannot_serve().map(str::to_owned);
        next.explanation = crate::ha::explain::own(obs, why);
        next.last_turn = clock::now();
        next.next_turn = self.next_turn;
        next.reason = self
            .job
            .text()
            .map_or_else(|| why.to_string(), |text| format!("{why} ({text})"));
        next.counters = self.counters;
        next.job = self.job.in_numbers();
        next.log = crate::telemetry::backlog();
        self.view.send_replace(Arc::new(next));
    }

    /// The view right after the lease is gone or PostgreSQL is being stopped: health checks must not wait for the end of the turn.
    pub(super) fn publish_not_leader(&mut self) {
        self.view.send_modify(|view| {
            let mut next = (**view).clone();
            next.leader_until = None;
            *view = Arc::new(next);
        });
    }

    fn view_settings(&self) -> ViewSettings {
        use crate::ha::observation::Synchronous;
        use crate::node::SynchronousMode;
        ViewSettings {
            ttl: self.settings.ttl,
            loop_wait: self.settings.loop_wait,
            pause: self.settings.pause,
            standby_cluster: self.settings.standby_cluster.is_some(),
            synchronous_mode: match self.settings.synchronous {
                Synchronous::Off => SynchronousMode::Off,
                Synchronous::Priority { .. } => SynchronousMode::On,
                Synchronous::Quorum { .. } => SynchronousMode::Quorum,
            },
            failsafe_mode: self.settings.failsafe,
            primary_when_writable: self.loaded.config.restapi.primary_when_writable,
            maximum_lag_on_failover: self.settings.maximum_lag_on_failover,
            primary_start_timeout: self.settings.primary_start_timeout,
        }
    }
}

/// The published state while a job runs that the process table cannot show.
pub(super) fn state_during(job: Option<&crate::ha::decision::Job>, seen: PgState) -> PgState {
    use crate::ha::decision::Job;
    match job {
        Some(Job::Bootstrap) => PgState::InitializingNewCluster,
        Some(Job::Clone { .. } | Job::Replace { .. }) => PgState::CreatingReplica,
        Some(Job::Restart { .. }) => PgState::Restarting,
        Some(Job::Stop { .. }) if seen != PgState::Stopped => PgState::Stopping,
        Some(Job::Stop { .. }) => PgState::Stopped,
        Some(Job::StartPrimary { .. } | Job::StartStandby { .. } | Job::RestartToFollow { .. })
            if seen != PgState::Running =>
        {
            PgState::Starting
        }
        Some(
            Job::StartPrimary { .. }
            | Job::StartStandby { .. }
            | Job::RestartToFollow { .. }
            | Job::Promote
            | Job::CheckDivergence { .. }
            | Job::CopySlots { .. }
            | Job::CrashRecovery
            | Job::Rewind { .. },
        )
        | None => seen,
    }
}
