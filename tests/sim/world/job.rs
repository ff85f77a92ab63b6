//! The agent's one long job, in stages.

use howdah::ha::decision::Job;
use howdah::ha::observation::{Divergence, JobEnd, Upstream};
use howdah::types::{Lsn, Moment, Role};

use super::agent::AgentEvent;
use super::server::PgEvent;
use super::{Event, STOP_MARGIN, World};
use crate::invariants;
use crate::postgres::{Pg, Server};

#[derive(Debug)]
pub(super) struct Running {
    pub(super) id: u64,
    pub(super) job: Job,
    pub(super) since: Moment,
    pub(super) shut_down_at: Option<Lsn>,
    pub(super) cancelled: bool,
    pub(super) end: Option<JobEnd>,
}

impl World {
    pub(super) fn start_job(&mut self, node: usize, job: Job) {
        self.order += 1;
        let id = self.order;
        let since = self.local(node);
        if let Some(agent) = self.nodes[node].agent.as_mut() {
            agent.job = Some(Running {
                id,
                job: job.clone(),
                since,
                shut_down_at: None,
                cancelled: false,
                end: None,
            });
        }
        match job {
            Job::Bootstrap => self.stage(node, id, 1, 400, 900),
            Job::Clone { .. } => {
                if self.nodes[node].pg.present {
                    self.fail(
                        "S4",
                        format!("n{node} clones into a directory that is not empty"),
                    );
                }
                self.stage(node, id, 1, 200, 800);
            }
            Job::StartPrimary { timeout } => {
                if self.nodes[node].pg.standby_signal {
                    self.finish(node, JobEnd::Failed("standby.signal is there".to_owned()));
                    return;
                }
                self.start_postgres(node);
                let millis = u64::try_from(timeout.as_millis()).unwrap_or(0);
                self.stage(node, id, 9, millis, millis);
            }
            Job::StartStandby { of } => {
                invariants::pointed(self, node, &of);
                let pg = &mut self.nodes[node].pg;
                pg.standby_signal = true;
                pg.follows = Some(of);
                self.start_postgres(node);
            }
            Job::RestartToFollow { of } => {
                self.nodes[node].pg.follows = Some(of);
                self.finish(node, JobEnd::Done);
            }
            Job::Promote => self.stage(node, id, 1, 5, 20),
            Job::Stop {
                mode,
                bound,
                purpose,
                ..
            } => self.stop_postgres(node, id, mode, bound, purpose),
            Job::Restart { .. } => {
                self.nodes[node].pg.shut_down();
                self.start_postgres(node);
            }
            Job::CheckDivergence { .. } | Job::CopySlots { .. } => {
                self.stage(node, id, 1, 20, 60);
            }
            Job::CrashRecovery => self.stage(node, id, 1, 100, 300),
            Job::Rewind { .. } => self.stage(node, id, 1, 200, 600),
            Job::Replace { .. } => {
                if !self.allowed.replace && !self.reinit_requested(node) {
                    self.fail(
                        "S4",
                        format!("n{node} replaces its directory although that is not allowed"),
                    );
                }
                self.stage(node, id, 1, 300, 900);
            }
        }
    }

    pub(super) fn reinit_requested(&self, node: usize) -> bool {
        self.nodes[node].agent.as_ref().is_some_and(|agent| {
            matches!(
                &agent.job,
                Some(Running {
                    job: Job::Replace { because, .. },
                    ..
                }) if because.on_request()
            )
        })
    }

    pub(super) fn stage(&mut self, node: usize, job: u64, stage: u8, low: u64, high: u64) {
        let millis = self.rng.between(low, high);
        let incarnation = self.nodes[node].incarnation;
        self.at(
            millis,
            Event::Agent {
                node,
                incarnation,
                what: AgentEvent::Stage { job, stage },
            },
        );
    }

    pub(super) fn finish(&mut self, node: usize, end: JobEnd) {
        if let Some(job) = self.nodes[node]
            .agent
            .as_mut()
            .and_then(|agent| agent.job.as_mut())
        {
            job.end = Some(end);
        }
        self.wake(node);
    }

    /// A node that can be copied from or compared with.
    pub(super) fn source(&self, node: usize, upstream: &Upstream) -> Option<usize> {
        let Upstream::Member { name, .. } = upstream else {
            return None;
        };
        let source = self.index(name)?;
        (source != node && self.reaches(node, source) && self.nodes[source].pg.server == Server::Up)
            .then_some(source)
    }

    pub(super) fn job_stage(&mut self, node: usize, id: u64, stage: u8) {
        let Some(agent) = self.nodes[node].agent.as_ref() else {
            return;
        };
        let Some(running) = agent
            .job
            .as_ref()
            .filter(|job| job.id == id && job.end.is_none())
        else {
            return;
        };
        let job = running.job.clone();
        let serve_until = agent
            .held
            .as_ref()
            .map(|held| Moment(held.expires.0.saturating_sub(STOP_MARGIN)));
        match job {
            Job::Bootstrap => {
                if self.rng.per_mille(50) {
                    self.nodes[node].pg = Pg::empty();
                    self.finish(node, JobEnd::Failed("initdb failed".to_owned()));
                } else {
                    self.nodes[node].pg.initdb(id);
                    self.finish(node, JobEnd::Done);
                    self.postgres_changed(node);
                }
            }
            Job::Clone { from } | Job::Replace { from, .. } => match self.source(node, &from) {
                None if matches!(from, Upstream::Remote { .. }) && !self.rng.per_mille(50) => {
                    let copy = self.remote.clone();
                    self.nodes[node].pg.copy_of(&copy, from);
                    self.set_divergence(node, Divergence::Unchecked);
                    self.finish(node, JobEnd::Done);
                }
                Some(source) if !self.rng.per_mille(50) => {
                    let copy = self.nodes[source].pg.clone();
                    self.nodes[node].pg.copy_of(&copy, from);
                    self.set_divergence(node, Divergence::Unchecked);
                    self.finish(node, JobEnd::Done);
                }
                Some(_) | None => {
                    self.nodes[node].pg = Pg::empty();
                    self.finish(node, JobEnd::Failed("base backup failed".to_owned()));
                }
            },
            Job::StartPrimary { .. } => {
                if stage == 9 {
                    self.finish(node, JobEnd::Failed("not up in time".to_owned()));
                }
            }
            Job::Promote => self.promote_stage(node, id, stage, serve_until),
            Job::Stop { .. } => {
                self.nodes[node].pg.kill(false);
                self.postgres_changed(node);
            }
            Job::CheckDivergence { with } => self.compare(node, &with),
            Job::CrashRecovery => {
                let pg = &mut self.nodes[node].pg;
                pg.control = howdah::ha::observation::ControlState::ShutDown;
                pg.checkpoint = pg.end;
                self.finish(node, JobEnd::Done);
            }
            Job::Rewind { from } => self.rewind(node, &from),
            // No simulated server lacks logical slots.
            Job::StartStandby { .. }
            | Job::RestartToFollow { .. }
            | Job::Restart { .. }
            | Job::CopySlots { .. } => {}
        }
    }

    pub(super) fn promote_stage(
        &mut self,
        node: usize,
        id: u64,
        stage: u8,
        serve_until: Option<Moment>,
    ) {
        if stage == 1 {
            let pg = &mut self.nodes[node].pg;
            pg.follows = Some(Upstream::Nobody);
            pg.streaming = false;
            if self.rng.per_mille(20) {
                self.finish(node, JobEnd::Failed("pre_promote failed".to_owned()));
            } else {
                self.stage(node, id, 2, 10, 100);
            }
            return;
        }
        if !self.core_alone && serve_until.is_none_or(|until| self.local(node) >= until) {
            self.finish(node, JobEnd::Failed("no authority to promote".to_owned()));
        } else {
            let millis = self.rng.between(10, 150);
            self.nodes[node].pg.promoting = true;
            self.pg_at(node, millis, PgEvent::Opened);
            if let Some(agent) = self.nodes[node].agent.as_mut() {
                agent.role = Role::Promoted;
            }
        }
    }

    /// The server there, if it answers and is a primary.
    fn primary_at(&mut self, node: usize, upstream: &Upstream) -> Option<Pg> {
        let pg = match upstream {
            Upstream::Remote { .. } if self.rng.per_mille(50) => return None,
            Upstream::Remote { .. } => &self.remote,
            Upstream::Member { .. } | Upstream::Nobody => {
                &self.nodes[self.source(node, upstream)?].pg
            }
        };
        (!pg.recovery).then(|| pg.clone())
    }

    /// What pg_controldata, IDENTIFY_SYSTEM and TIMELINE_HISTORY can tell: numbers.
    pub(super) fn compare(&mut self, node: usize, with: &Upstream) {
        let Some(theirs) = self.primary_at(node, with) else {
            self.finish(
                node,
                JobEnd::Failed("the leader does not answer".to_owned()),
            );
            return;
        };
        let (mine, theirs) = (&self.nodes[node].pg, &theirs);
        let known = match mine.control {
            howdah::ha::observation::ControlState::InProduction if mine.server != Server::Up => {
                mine.checkpoint
            }
            _ => mine.end,
        };
        let at = theirs
            .history
            .iter()
            .position(|segment| segment.timeline == mine.timeline());
        let number = |segment: &crate::postgres::Segment| (segment.timeline, segment.start);
        let forked = mine
            .history
            .iter()
            .zip(&theirs.history)
            .any(|(a, b)| number(a) != number(b));
        let diverged = match at {
            None => true,
            Some(_) if forked => true,
            Some(at) => theirs
                .history
                .get(at + 1)
                .is_some_and(|next| known > next.start),
        };
        let Some(name) = with.name() else {
            return;
        };
        let source = name.clone();
        let verdict = if diverged {
            Divergence::Diverged {
                from: name,
                detail: "timelines forked".to_owned(),
            }
        } else {
            Divergence::Prefix { of: name }
        };
        self.say(|| format!("n{node}: compared with {source}: {verdict:?}"));
        self.set_divergence(node, verdict);
        self.finish(node, JobEnd::Done);
    }

    pub(super) fn rewind(&mut self, node: usize, from: &Upstream) {
        if !self.allowed.rewind {
            self.fail(
                "S4",
                format!("n{node} rewinds although that is not possible"),
            );
        }
        let (Some(copy), Some(name)) = (self.primary_at(node, from), from.name()) else {
            self.finish(
                node,
                JobEnd::Failed("the leader does not answer".to_owned()),
            );
            return;
        };
        if self.rng.per_mille(100) {
            let from = name;
            self.set_divergence(node, Divergence::RewindFailed { from });
            self.finish(node, JobEnd::Failed("pg_rewind failed".to_owned()));
            return;
        }
        self.nodes[node].pg.rewind_to(&copy, from.clone());
        self.set_divergence(node, Divergence::Unchecked);
        self.finish(node, JobEnd::Done);
    }

    pub(super) fn set_divergence(&mut self, node: usize, verdict: Divergence) {
        if let Some(agent) = self.nodes[node].agent.as_mut() {
            agent.divergence = verdict;
        }
    }
}
