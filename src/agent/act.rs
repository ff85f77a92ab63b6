//! Carries a decision out; the only place that changes the world. What it learns goes back into the observation.

use std::time::Duration;

use crate::clock;
use crate::cluster::{FailoverRequest, wire};
use crate::dcs::{self, Document, Expect, Freshness};
use crate::ha::decision::{Asked, Job, Write};
use crate::ha::observation::{Observation, Outcome, Peer, StandbyNames};
use crate::ha::{Step, Why};
use crate::types::{Lsn, MemberName};

use super::callbacks::Known;
use super::lease::Held;
use super::run::outcome;
use super::{Agent, End};

/// What comes after a step.
pub(super) enum Next {
    /// Decide again.
    Again,
    /// The step is not carried out now; the turn ends.
    Later,
    /// Leave the loop.
    End(End),
}

impl Agent {
    /// Carries one step out.
    pub(super) async fn act(&mut self, step: Step, why: &Why, obs: &mut Observation) -> Next {
        match step {
            Step::Rest => {}
            Step::AskPeers { whom } => obs.peers = Some(self.ask_peers(&whom).await),
            Step::AskFailsafe { whom } => self.ask_failsafe(&whom, obs).await,
            Step::Reload => {
                obs.store = self.load(Freshness::Latest).await;
                obs.tried.reloaded = true;
            }
            Step::Renew => self.renew(obs).await,
            Step::Acquire => self.acquire(obs, Grant::Acquire).await,
            Step::Adopt => self.acquire(obs, Grant::Adopt).await,
            Step::Take => self.acquire(obs, Grant::Take).await,
            Step::Release { publish } => self.release(publish, why, obs).await,
            Step::HandOver { to, publish } => self.hand_over(&to, publish, obs).await,
            Step::ForgetLease => self.forget_lease(why),
            Step::Write(write) => self.write(write, obs).await,
            Step::Start(job) => {
                if let Some(at) = self.patience.not_before(&job, clock::now()) {
                    tracing::debug!(job = ?job, "has just failed; waiting");
                    self.wake_by(at);
                    return Next::Later;
                }
                self.start_job(job, why, obs);
                obs.job = self.job.view();
            }
            Step::CancelJob => {
                let job = self.job.running().map_or("nothing", Job::name);
                tracing::warn!("cancelling {job}: {why}");
                self.job.cancel();
                obs.job = self.job.view();
            }
            Step::Follow(upstream) => {
                self.follow(&upstream).await;
                obs.postgres = self.observe_postgres().await;
            }
            Step::ResumeReplay => {
                self.instance.resume_replay().await;
                obs.postgres.replay_paused = false;
            }
            Step::SetSynchronousNames(names) => {
                obs.tried.names = Some(self.set_synchronous_names(names).await);
                obs.postgres = self.observe_postgres().await;
            }
            Step::ArmWatchdog => self.arm_watchdog(obs),
            Step::Answer { result } => {
                self.answer(result);
                if !obs.requests.is_empty() {
                    obs.requests.remove(0);
                }
            }
            Step::Exit { failure } => {
                if failure {
                    tracing::error!("giving up: {why}");
                }
                return Next::End(if failure { End::Failure } else { End::Clean });
            }
        }
        Next::Again
    }

    /// Awaits a store call for no longer than the lease allows; past that its outcome is unknown.
    async fn bounded<T, F>(&self, call: F) -> dcs::Write<T>
    where
        F: Future<Output = dcs::Write<T>> + Send,
        T: Send,
    {
        let budget = self.store_budget();
        self.patiently(budget, call).await.unwrap_or_else(|waited| {
            dcs::Write::Unknown(dcs::DcsError {
                store: self.store.store().to_owned(),
                detail: format!("no answer within {} ms", waited.as_millis()),
            })
        })
    }

    fn note<T>(&mut self, what: &str, write: &dcs::Write<T>) {
        match write {
            dcs::Write::Done(_) => {}
            dcs::Write::Refused(dcs::Refusal::Precondition) => {
                tracing::debug!("{what}: refused, the store holds something else")
            }
            dcs::Write::Refused(dcs::Refusal::Rejected(text)) => {
                tracing::error!("{what}: rejected by the store: {text}")
            }
            dcs::Write::Unknown(error) => {
                self.counters.dcs_failures += 1;
                tracing::warn!("{what}: outcome unknown: {error}");
            }
        }
    }

    async fn renew(&mut self, obs: &mut Observation) {
        let Some(held) = &self.held else {
            obs.tried.renew = Some(Outcome::Refused);
            return;
        };
        let sent = clock::now();
        let stop_by = held.expires_less(self.settings.stop_margin);
        let reply = self.bounded(self.store.renew(&held.lease)).await;
        self.note("renew the leader key", &reply);
        obs.tried.renew = Some(renewal(&reply));
        if let dcs::Write::Done(()) = reply {
            let now = clock::now();
            self.counters.dcs_times.observe(now.since(sent));
            self.counters.lease_margins.observe(stop_by.since(now));
            let ttl = self.settings.ttl;
            if let Some(held) = &mut self.held {
                held.sent = sent;
                held.expires = sent + ttl;
            }
            self.heard_store(sent);
            self.end_agreement(obs);
            self.watchdog.keep_alive();
            obs.watchdog = self.watchdog_view();
            self.confirm_lease();
            self.publish_status(obs, None).await;
        }
    }

    /// The store holds for us again what the members have kept.
    fn end_agreement(&mut self, obs: &mut Observation) {
        if self.agreement.until.is_some() {
            tracing::info!("failsafe mode ends: the store has confirmed the lease");
        }
        self.agreement.end();
        obs.failsafe.agreed_until = None;
    }

    /// Tells everyone who depends on the lease how long it holds: the promotion job, init's guard, the API.
    pub(super) fn confirm_lease(&mut self) {
        let Some(held) = &self.held else { return };
        let margins = self.margins();
        self.authority.grant(held.expires_less(margins.stop));
        if !self.settings.pause {
            let until = held.expires_less(margins.fence);
            self.guard_armed = true;
            if let Err(error) = self.guard.promise(until) {
                tracing::error!("{error}");
            }
        }
    }

    /// Init guards PostgreSQL as long as it is, or may become, a primary: with or without a lease. The last promise stands until
    /// the opposite is proven, also when the lease is gone.
    pub(super) fn tend_guard(&mut self, obs: &Observation) {
        if self.settings.pause || !crate::ha::may_write(obs) {
            self.disarm_guard();
            self.disarm_watchdog();
        } else if !self.guard_armed {
            self.confirm_lease();
        }
    }

    /// Nothing here accepts writes (any more), or the cluster is paused.
    fn disarm_guard(&mut self) {
        if std::mem::take(&mut self.guard_armed)
            && let Err(error) = self.guard.release()
        {
            tracing::error!("{error}");
            self.guard_armed = true;
        }
    }

    async fn acquire(&mut self, obs: &mut Observation, grant: Grant) {
        let sent = clock::now();
        let leader = obs.cluster().and_then(|cluster| cluster.leader.clone());
        if !self.pledge.may_try(sent) {
            tracing::warn!(
                "not trying to get the leader key: another leader has this member's word"
            );
            obs.tried.acquire = Some(Outcome::Refused);
            return;
        }
        let reply = match (grant, leader) {
            (Grant::Acquire, _) => self.bounded(self.store.acquire()).await,
            (Grant::Take, _) => self.bounded(self.store.take()).await,
            (Grant::Adopt, Some(leader)) => self.bounded(self.store.adopt(&leader)).await,
            (Grant::Adopt, None) => dcs::Write::Refused(dcs::Refusal::Precondition),
        };
        self.note("take the leader key", &reply);
        obs.tried.acquire = Some(outcome(&reply));
        if let dcs::Write::Done(lease) = reply {
            self.held = Some(Held::new(lease, sent, self.settings.ttl));
            self.retention.forget();
            obs.tried.renew = Some(Outcome::Done);
            self.heard_store(sent);
            self.end_agreement(obs);
            self.confirm_lease();
        }
        if self.held.is_none() {
            self.pledge.lost();
        }
        // The decision to promote must use state at least as new as the acquisition (spec/ha.md §23.2).
        obs.store = self.load(Freshness::Latest).await;
        obs.lease = self.held.as_ref().map(Held::view);
    }

    /// Our record of the lease ends; nobody may act on it any more.
    fn forget_lease(&mut self, why: &Why) {
        if self.held.take().is_some() {
            tracing::warn!("the leader key is not ours any more: {why}");
        }
        self.agreement.end();
        self.pledge.lost();
        self.authority.revoke();
        self.publish_not_leader();
    }

    async fn release(&mut self, publish: Option<Lsn>, why: &Why, obs: &mut Observation) {
        self.authority.revoke();
        self.publish_not_leader();
        if *why == Why::FailedToStartLeading {
            self.instance.tell(Known::failed_to_lead);
        }
        if let Some(lsn) = publish {
            self.publish_status(obs, Some(lsn)).await;
        }
        let Some(held) = self.held.take() else { return };
        let reply = self.bounded(self.store.release(held.lease)).await;
        self.note("release the leader key", &reply);
        self.agreement.end();
        self.pledge.lost();
        if let dcs::Write::Done(()) = reply {
            tracing::info!("released the leader key: {why}");
            self.key_is_given_away();
        }
        if publish.is_some() {
            // The shutdown checkpoint is written: no commit can follow.
            self.disarm_guard();
            self.disarm_watchdog();
        }
        obs.tried.release = Some(outcome(&reply));
        obs.store = self.load(Freshness::Latest).await;
        obs.lease = None;
    }

    /// Callbacks of a server that is still shutting down learn that it leads no more.
    fn key_is_given_away(&self) {
        if matches!(self.job.running(), Some(Job::Stop { .. })) {
            self.instance.caller.known().gave_key_away();
        }
    }

    async fn hand_over(&mut self, to: &MemberName, publish: Lsn, obs: &mut Observation) {
        self.publish_status(obs, Some(publish)).await;
        let candidate = obs
            .cluster()
            .and_then(|cluster| cluster.members.get(to).cloned());
        let (Some(candidate), Some(held)) = (candidate, self.held.take()) else {
            obs.tried.hand_over = Some(Outcome::Refused);
            return;
        };
        self.authority.revoke();
        let (sent, expires) = (held.sent, held.expires);
        let budget = self.budget(self.settings.retry_timeout);
        let call = self.store.hand_over(held.lease, &candidate);
        let reply = match tokio::time::timeout(budget, call).await {
            Ok((reply, lease)) => {
                if let Some(lease) = lease {
                    self.held = Some(Held {
                        lease,
                        sent,
                        expires,
                    });
                }
                reply
            }
            Err(_) => dcs::Write::Unknown(dcs::DcsError {
                store: self.store.store().to_owned(),
                detail: format!("no answer within {} ms", budget.as_millis()),
            }),
        };
        self.note("hand the leader key over", &reply);
        if self.held.is_none() {
            self.pledge.lost();
        }
        if let dcs::Write::Done(()) = reply {
            tracing::info!(candidate = %to, "handed the leader key over");
            self.key_is_given_away();
            self.disarm_guard();
            self.disarm_watchdog();
        }
        obs.tried.hand_over = Some(outcome(&reply));
        obs.store = self.load(Freshness::Latest).await;
        obs.lease = self.held.as_ref().map(Held::view);
    }

    async fn write(&mut self, write: Write, obs: &mut Observation) {
        let Some(cluster) = obs.cluster().cloned() else {
            obs.tried.write = Some(Outcome::Unknown);
            return;
        };
        let reply = match write {
            Write::ClaimInitialize => self.put(Document::Initialize, "", Expect::Absent).await,
            Write::Initialize(id) => {
                self.put(Document::Initialize, id.as_str(), Expect::Anything)
                    .await
            }
            Write::CancelInitialize => {
                let reply = self
                    .bounded(self.store.delete(Document::Initialize, Expect::Anything))
                    .await;
                self.note("delete the initialize key", &reply);
                outcome(&reply)
            }
            Write::WithdrawClaim(revision) => {
                let expect = Expect::At(revision);
                let reply = self
                    .bounded(self.store.delete(Document::Initialize, expect))
                    .await;
                self.note("delete the abandoned initialize key", &reply);
                outcome(&reply)
            }
            Write::Config => {
                let value = wire::config_text(&self.dynamic.document);
                let expect = cluster.config_revision.map_or(Expect::Absent, Expect::At);
                self.put(Document::Config, &value, expect).await
            }
            Write::ClearFailover => {
                let expect = match (&cluster.failover, cluster.failover_revision) {
                    (Some(request), _) => Expect::At(request.revision),
                    (None, Some(revision)) => Expect::At(revision),
                    (None, None) => Expect::Absent,
                };
                self.put(Document::Failover, &wire::failover_text(None), expect)
                    .await
            }
            Write::FailoverWithoutLeader => match &cluster.failover {
                Some(request) => {
                    let without = FailoverRequest {
                        leader: None,
                        scheduled_at: None,
                        ..request.clone()
                    };
                    let value = wire::failover_text(Some(&without));
                    self.put(Document::Failover, &value, Expect::At(request.revision))
                        .await
                }
                None => Outcome::Refused,
            },
            Write::History => match self
                .instance
                .history(&self.me, &cluster, self.settings.max_timelines_history)
                .await
            {
                Some(history) => {
                    self.put(
                        Document::History,
                        &wire::history_text(&history),
                        Expect::Anything,
                    )
                    .await
                }
                None => Outcome::Unknown,
            },
            Write::Sync(sync) => {
                let expect = sync.revision.map_or(Expect::Absent, Expect::At);
                self.put(Document::Sync, &wire::sync_text(&sync), expect)
                    .await
            }
            Write::DropSync => {
                let expect = cluster.sync.revision.map_or(Expect::Anything, Expect::At);
                let reply = self
                    .bounded(self.store.delete(Document::Sync, expect))
                    .await;
                self.note("delete the sync key", &reply);
                outcome(&reply)
            }
            Write::Failsafe(topology) => {
                let value = wire::failsafe_text(&topology);
                self.put(Document::Failsafe, &value, Expect::Anything).await
            }
            Write::Status(at) => self.publish_status(obs, Some(at)).await,
        };
        obs.tried.write = Some(reply);
        obs.store = self.load(Freshness::Latest).await;
    }

    /// Writes `synchronous_standby_names` and waits a moment until a running server has it in force.
    async fn set_synchronous_names(&mut self, names: StandbyNames) -> Outcome {
        let text = self.instance.set_standby_names(names);
        let wanted = match text {
            Ok(wanted) => wanted,
            Err(error) => {
                tracing::error!("cannot set synchronous_standby_names: {error:#}");
                return Outcome::Refused;
            }
        };
        tracing::info!(
            "Assigning synchronous_standby_names to {}",
            if wanted.is_empty() { "None" } else { &wanted }
        );
        if self.instance.sample.is_none() {
            return Outcome::Done;
        }
        for _ in 0..25 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let limit = self.budget(Duration::from_secs(1));
            let seen = self.instance.take_sample(limit).await.is_ok();
            match &self.instance.sample {
                Some(sample) if sample.synchronous_standby_names == wanted => return Outcome::Done,
                Some(_) if seen => {}
                Some(_) | None => return Outcome::Unknown,
            }
        }
        tracing::warn!(
            "PostgreSQL has not taken up synchronous_standby_names; is it set by ALTER SYSTEM or on the command line?"
        );
        Outcome::Unknown
    }

    async fn put(&mut self, document: Document, value: &str, expect: Expect) -> Outcome {
        let reply = self.bounded(self.store.put(document, value, expect)).await;
        self.note(&format!("write the {} key", document.key()), &reply);
        outcome(&reply)
    }

    /// Asks members for their status, each no longer than its own patience and none longer than the lease allows.
    async fn ask_peers(&mut self, whom: &[Asked]) -> Vec<Peer> {
        let longest = self.budget(Duration::from_secs(2));
        self.peers.ask(whom, longest).await
    }
}

/// The three ways to come by the lease.
#[derive(Debug, Clone, Copy)]
enum Grant {
    Acquire,
    Adopt,
    Take,
}

/// What a job is called in logs and in answers to people ("restart already in progress").
pub(super) fn job_name(job: &Job) -> &'static str {
    match job {
        Job::Bootstrap => "bootstrap",
        Job::Clone { .. } => "bootstrap from leader",
        Job::StartPrimary { .. } => "starting primary after failure",
        Job::StartStandby { .. } => "restarting after failure",
        Job::RestartToFollow { .. } => "changing primary_conninfo and restarting",
        Job::Promote => "promote",
        Job::Stop { .. } => "demote",
        Job::Restart { .. } => "restart",
        Job::CheckDivergence { .. } => "checking timelines",
        Job::CopySlots { .. } => "copy_logical_slots",
        Job::CrashRecovery => "doing crash recovery in a single user mode",
        Job::Rewind { .. } => "running pg_rewind",
        Job::Replace { .. } => "reinitialize",
    }
}

/// What the answer to a renewal says of the lease. A store that rejects the request (a token that ran out, rights that were taken) has
/// not said that the key is somebody else's: the lease goes on to its end, and no error of a store ends it sooner.
fn renewal(reply: &dcs::Write) -> Outcome {
    match reply {
        dcs::Write::Refused(dcs::Refusal::Rejected(_)) => Outcome::Unknown,
        dcs::Write::Refused(dcs::Refusal::Precondition)
        | dcs::Write::Done(())
        | dcs::Write::Unknown(_) => outcome(reply),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_keys_own_answer_ends_a_lease_before_its_time() {
        let refused = |why| renewal(&dcs::Write::Refused(why));
        assert_eq!(refused(dcs::Refusal::Precondition), Outcome::Refused);
        let rejected = dcs::Refusal::Rejected("403: no such token".to_owned());
        assert_eq!(refused(rejected), Outcome::Unknown);
        assert_eq!(renewal(&dcs::Write::Done(())), Outcome::Done);
    }
}
