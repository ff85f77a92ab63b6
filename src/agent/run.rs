//! One turn: load, observe, decide, act, publish. The loop wakes on events; the timer is only the fallback.
//!
//! Every await in a turn has a deadline, and none outlives the time in which PostgreSQL must be stopped before the lease ends.

use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::cluster::Cluster;
use crate::dcs::{Freshness, news};
use crate::ha::observation::{Heard, Observation, Outcome, StoreView, Tried};
use crate::ha::{self, Step};
use crate::resident;
use crate::systemd::Notice;
use crate::types::Moment;

use super::act::Next;
use super::{Agent, End};

/// A turn that has not come to rest after this many steps is a bug in the core; it ends, says so, and the next turn starts afresh.
const STEPS_MAX: u32 = 24;

/// How much longer a call of the store is waited for when every other member is silent.
const WHEN_ALONE: Duration = Duration::from_millis(500);

/// What woke the loop. Closed: everything that can start a turn is in this list.
#[derive(Debug)]
enum Wake {
    /// The regular turn, or a moment the core asked for.
    Timer,
    /// Something below the base path changed.
    Store,
    /// The postmaster is gone.
    PostmasterExit,
    /// The job ended or reached its safe point.
    Job,
    /// A command from the API.
    Command(crate::node::Command),
    /// SIGHUP.
    Reload,
    /// SIGTERM or SIGINT.
    Stop,
    /// No other member answers any more.
    Silence,
}

impl Agent {
    /// Runs until told to stop or until going on would be wrong.
    pub async fn run(mut self) -> End {
        self.systemd.tell(Notice::Ready);
        loop {
            if let Some(end) = self.turn().await {
                return end;
            }
            loop {
                let wake = self.wait().await;
                self.rest(&wake);
                if self.absorb(wake).await {
                    break;
                }
            }
        }
    }

    /// After a wait in which nothing happened, the code of what happened before it need not stay in memory.
    fn rest(&mut self, wake: &Wake) {
        match wake {
            Wake::Timer if self.job.running().is_none() => {
                if !std::mem::replace(&mut self.rests, true) {
                    resident::forget_code();
                }
            }
            Wake::Store | Wake::Timer => {}
            Wake::PostmasterExit
            | Wake::Job
            | Wake::Command(_)
            | Wake::Reload
            | Wake::Stop
            | Wake::Silence => self.rests = false,
        }
    }

    /// Sleeps until something happens.
    async fn wait(&mut self) -> Wake {
        let now = clock::now();
        let mut until = self.next_turn;
        if let Some(held) = &self.held {
            let act_by = held.expires_less(self.settings.stop_margin);
            if act_by > now {
                until = until.min(act_by);
            }
        }
        let postmaster = self.instance.postmaster_exit();
        tokio::select! {
            biased;
            told = self.signals.next() => match told {
                super::Told::Stop => Wake::Stop,
                super::Told::Reload => Wake::Reload,
            },
            () = postmaster => Wake::PostmasterExit,
            () = self.job.changed() => Wake::Job,
            () = self.contact.fell_silent() => Wake::Silence,
            Some(command) = self.commands.recv() => Wake::Command(command),
            changed = self.changes.changed() => {
                if changed.is_err() {
                    // The store's watch task is gone for good; the timer still works.
                    tokio::time::sleep(until.since(now)).await;
                }
                Wake::Store
            }
            () = tokio::time::sleep(until.since(now)) => Wake::Timer,
        }
    }

    /// Takes the event in; `true` = a turn is due.
    async fn absorb(&mut self, wake: Wake) -> bool {
        match wake {
            Wake::Timer | Wake::Job | Wake::Silence => true,
            Wake::PostmasterExit => {
                self.instance.forget_postmaster();
                true
            }
            Wake::Store => self.store_change_matters().await,
            Wake::Command(command) => self.accept(command),
            Wake::Reload => {
                let at = clock::monotonic_micros();
                self.systemd.tell(Notice::Reloading { at });
                self.reload_local();
                self.systemd.tell(Notice::Ready);
                true
            }
            Wake::Stop => {
                if !self.stopping {
                    self.systemd.tell(Notice::Stopping);
                    tracing::info!("asked to stop");
                }
                self.stopping = true;
                true
            }
        }
    }

    /// Positions and timestamps change all the time; a turn is due only for what a decision can depend on.
    async fn store_change_matters(&mut self) -> bool {
        let budget = self.budget(self.settings.retry_timeout);
        match tokio::time::timeout(budget, self.store.load(Freshness::Recent)).await {
            Ok(Ok(cluster)) => {
                let matters = self.last_cluster.as_deref().is_none_or(|last| {
                    news::is_news_between(&self.me, self.held.is_some(), last, &cluster)
                });
                if !matters {
                    self.remember(cluster);
                    self.publish_snapshot();
                }
                matters
            }
            _ => true,
        }
    }

    /// The longest time an await may take now: `wanted`, less if PostgreSQL must be stopped earlier.
    pub(super) fn budget(&self, wanted: Duration) -> Duration {
        let Some(held) = &self.held else {
            return wanted;
        };
        let now = clock::now();
        let act_by = held.expires_less(self.settings.stop_margin);
        if act_by > now {
            wanted.min(act_by.since(now))
        } else {
            wanted.min(Duration::from_millis(200))
        }
    }

    /// The same for one call of the store. A leader that may have to ask the members instead keeps two thirds of its time for that.
    pub(super) fn store_budget(&self) -> Duration {
        let wanted = self.settings.retry_timeout;
        match &self.held {
            Some(held) if self.may_need_failsafe() => {
                let act_by = held.expires_less(self.settings.stop_margin);
                let third = act_by.since(clock::now()) / 3;
                self.budget(wanted.min(third.max(Duration::from_millis(200))))
            }
            Some(_) | None => self.budget(wanted),
        }
    }

    /// Awaits a call of the store within `budget`; only a moment longer once every other member has fallen silent as well: then this
    /// leader may be alone, and its commits are at stake. `Err`: the time waited.
    pub(super) async fn patiently<F: Future>(
        &self,
        budget: Duration,
        call: F,
    ) -> Result<F::Output, Duration> {
        let began = clock::now();
        let alone = async {
            self.contact.silence().await;
            tokio::time::sleep(WHEN_ALONE).await;
        };
        tokio::select! {
            biased;
            answer = call => Ok(answer),
            () = tokio::time::sleep(budget) => Err(clock::now().since(began)),
            () = alone => Err(clock::now().since(began)),
        }
    }

    /// Reads the store.
    pub(super) async fn load(&mut self, freshness: Freshness) -> StoreView {
        let asked = clock::now();
        let budget = self.store_budget();
        let loading = self.patiently(budget, self.store.load(freshness)).await;
        let error = match loading {
            Ok(Ok(cluster)) => {
                if freshness == Freshness::Latest {
                    self.heard_store(asked);
                    // A recent copy may be at hand without asking anybody.
                    self.counters.dcs_times.observe(clock::now().since(asked));
                }
                self.answers_again();
                self.remember(cluster.clone());
                return StoreView::Fresh(cluster);
            }
            Ok(Err(error)) => error.to_string(),
            Err(waited) => format!(
                "{}: no answer within {} ms",
                self.store.store(),
                waited.as_millis()
            ),
        };
        self.counters.dcs_failures += 1;
        if self.store_error.as_ref() != Some(&error) {
            tracing::warn!("the store does not answer: {error}");
            self.store_error = Some(error);
        }
        self.silent()
    }

    /// The store itself answered what it was asked then.
    pub(super) fn heard_store(&mut self, asked: Moment) {
        self.store_answered = self.store_answered.max(Some(asked));
    }

    pub(super) fn answers_again(&mut self) {
        if self.store_error.take().is_some() {
            tracing::info!(store = self.store.store(), "the store answers again");
        }
    }

    /// The store as silent since it last answered.
    pub(super) fn silent(&self) -> StoreView {
        StoreView::Silent {
            since: self.store_heard,
            last: self.last_cluster.as_deref().cloned().map(Box::new),
        }
    }

    pub(super) fn remember(&mut self, cluster: Cluster) {
        self.store_heard = Some(clock::now());
        self.store_heard_wall = clock::wall();
        self.last_cluster = Some(Arc::new(cluster));
    }

    /// One pass of the loop. `Some` = the end.
    async fn turn(&mut self) -> Option<End> {
        let began = clock::now();
        self.counters.turns += 1;
        self.pledge.note_ttl(self.settings.ttl);
        self.job.collect().await;
        self.settle_job().await;
        let leading = self.held.is_some();
        let led = self
            .last_cluster
            .as_ref()
            .is_some_and(|cluster| !cluster.is_unlocked());
        let freshness = if (leading || led) && !self.contact.is_silent() {
            Freshness::Recent
        } else {
            Freshness::Latest
        };
        let store = self.load(freshness).await;
        if let StoreView::Fresh(cluster) = &store {
            let cluster = cluster.clone();
            self.take_dynamic_configuration(&cluster);
        }
        let mut obs = self.observation(store).await;
        let mut end = None;
        let mut why;
        let mut wake_at;
        loop {
            obs.now = clock::now();
            obs.wall = clock::wall();
            obs.lease = self.held.as_ref().map(super::lease::Held::view);
            obs.failsafe = self.failsafe_view(obs.now);
            obs.heard = self.heard();
            let decision = ha::decide(&obs, &self.memory);
            self.memory = decision.memory;
            why = decision.why;
            // Only the last word counts: a renewal that was due has been made by then.
            wake_at = decision.wake_at;
            if decision.step == Step::Rest {
                break;
            }
            tracing::debug!(step = ?decision.step, why = %why, "step");
            obs.tried.steps += 1;
            if obs.tried.steps > STEPS_MAX {
                tracing::error!(step = ?decision.step, why = %why, "the turn does not come to rest; starting over");
                self.wake_by(clock::now() + Duration::from_millis(500));
                break;
            }
            match self.act(decision.step, &why, &mut obs).await {
                Next::Again => {}
                Next::Later => break,
                Next::End(what) => {
                    end = Some(what);
                    break;
                }
            }
        }
        if let Some(at) = wake_at {
            self.wake_by(at);
        }
        self.tend_guard(&obs);
        self.contact.listen_to(ha::company(&obs));
        self.finish(began, &obs, &why).await;
        if end.is_none() {
            self.upkeep(&mut obs).await;
            if let Some(at) = self.wake_at.take() {
                self.next_turn = self.next_turn.min(at);
            }
        }
        end
    }

    /// Builds the picture of this moment.
    async fn observation(&mut self, store: StoreView) -> Observation {
        let postgres = self.observe_postgres().await;
        Observation {
            me: self.me.clone(),
            now: clock::now(),
            wall: clock::wall(),
            settings: self.settings.clone(),
            tags: self.tags.clone(),
            store,
            lease: self.held.as_ref().map(super::lease::Held::view),
            tried: Tried::default(),
            postgres,
            job: self.job.view(),
            peers: None,
            watchdog: self.watchdog_view(),
            requests: self
                .requests
                .iter()
                .map(|pending| pending.request.clone())
                .collect(),
            stopping: self.stopping,
            failsafe: self.failsafe_view(clock::now()),
            heard: self.heard(),
            agent_since: self.started,
            ailment: self.serving.ailment(),
        }
    }

    fn heard(&self) -> Heard {
        Heard {
            store: self.store_answered,
            members: self.contact.heard(),
            standbys: self.standbys_heard,
        }
    }
}

/// The outcome of a store write, without its payload.
pub(super) fn outcome<T>(write: &crate::dcs::Write<T>) -> Outcome {
    match write {
        crate::dcs::Write::Done(_) => Outcome::Done,
        crate::dcs::Write::Refused(_) => Outcome::Refused,
        crate::dcs::Write::Unknown(_) => Outcome::Unknown,
    }
}
