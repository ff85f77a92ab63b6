//! The one long job: start, progress, cancel, result. The loop goes on renewing the lease while it runs.
//!
//! A job is a task on the agent's own thread (it needs a `LocalSet`). Cancelling aborts it: every job is written so that it can be dropped between two awaits (child processes are
//! killed on drop with all that they started: `postgres::binaries`; the point of no return of a promotion has no await in it).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::clock;
use crate::ha::decision::Job;
use crate::ha::observation::{Divergence, JobEnd, JobView, Upstream};
use crate::node::RunningJob;
use crate::postgres::params::PendingRestart;
use crate::types::{Lsn, Moment};

/// What a running job reports.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Progress {
    /// The stop's safe point: the shutdown checkpoint is written here.
    pub(super) shut_down_at: Option<Lsn>,
    /// PostgreSQL was told to leave recovery; it cannot be taken back.
    pub(super) promoting: bool,
    /// One line for people ("base backup: 42 %").
    pub(super) text: Option<String>,
    /// Bytes copied, and to be copied in all.
    pub(super) bytes: Option<(u64, u64)>,
}

/// How a job ended, and what it learned on the way that the next observation needs.
#[derive(Debug)]
pub(super) struct Ended {
    /// How.
    pub(super) end: JobEnd,
    /// Result of a comparison of histories.
    pub(super) divergence: Option<Divergence>,
    /// Whom the configuration on disk follows now.
    pub(super) follows: Option<Upstream>,
    /// Settings that a start raised to pg_control's values.
    pub(super) raised: Option<PendingRestart>,
}

impl From<JobEnd> for Ended {
    fn from(end: JobEnd) -> Self {
        Ended {
            end,
            divergence: None,
            follows: None,
            raised: None,
        }
    }
}

/// Where a job reports to.
pub(super) type Reporter = watch::Sender<Progress>;

/// At most one job, and the result of the last one until the turn that shows it has ended.
#[derive(Debug)]
pub(super) struct JobSlot {
    running: Option<Running>,
    finished: Option<(Job, Ended)>,
    wake: Arc<Notify>,
}

#[derive(Debug)]
struct Running {
    job: Job,
    since: Moment,
    task: JoinHandle<Ended>,
    progress: watch::Receiver<Progress>,
    cancelled: bool,
}

impl JobSlot {
    pub(super) fn new() -> Self {
        JobSlot {
            running: None,
            finished: None,
            wake: Arc::new(Notify::new()),
        }
    }

    /// Begins a job. The core never starts a second one; if it did, the first would be aborted.
    pub(super) fn start<F>(&mut self, job: Job, work: impl FnOnce(Reporter) -> F)
    where
        F: Future<Output = Ended> + 'static,
    {
        if let Some(old) = self.running.take() {
            tracing::warn!("{} makes way for {}", old.job.name(), job.name());
            old.task.abort();
        }
        let (reporter, progress) = watch::channel(Progress::default());
        let future = work(reporter);
        let wake = Arc::clone(&self.wake);
        let task = tokio::task::spawn_local(async move {
            let end = future.await;
            wake.notify_one();
            end
        });
        // Progress wakes the loop too: the safe point of a stop is an event.
        let mut watched = progress.clone();
        let wake = Arc::clone(&self.wake);
        tokio::spawn(async move {
            while watched.changed().await.is_ok() {
                wake.notify_one();
            }
            // The reporter is gone and with it the job, also when it was aborted.
            wake.notify_one();
        });
        self.running = Some(Running {
            job,
            since: clock::now(),
            task,
            progress,
            cancelled: false,
        });
    }

    /// Resolves when the job ended or reported progress.
    pub(super) async fn changed(&self) {
        self.wake.notified().await;
    }

    /// Collects an ended job; call at the beginning of a turn. Forgets the result shown in the previous turn.
    pub(super) async fn collect(&mut self) {
        self.finished = None;
        // Without its reporter a task has ended or is about to.
        if self.running.as_ref().is_some_and(|running| {
            running.task.is_finished() || running.progress.has_changed().is_err()
        }) && let Some(running) = self.running.take()
        {
            let ended = match running.task.await {
                Ok(ended) => ended,
                Err(error) if error.is_cancelled() => JobEnd::Cancelled.into(),
                Err(error) => {
                    JobEnd::Failed(format!("the job stopped unexpectedly: {error}")).into()
                }
            };
            let took = clock::now().since(running.since).as_millis();
            let name = running.job.name();
            match &ended.end {
                JobEnd::Done | JobEnd::StoppedAt(_) => {
                    tracing::info!("{name}: done in {took} ms");
                }
                JobEnd::Cancelled => tracing::info!("{name}: cancelled"),
                // Every standby asks a leader that has just died, and the turn says what came of it.
                JobEnd::Failed(reason) if matches!(running.job, Job::CheckDivergence { .. }) => {
                    tracing::debug!("{name}: failed: {reason}");
                }
                JobEnd::Failed(reason) => {
                    tracing::error!("{name}: failed: {reason}")
                }
            }
            self.finished = Some((running.job, ended));
        }
    }

    /// Aborts the running job.
    pub(super) fn cancel(&mut self) {
        if let Some(running) = &mut self.running {
            running.cancelled = true;
            running.task.abort();
            // The abort is seen by `collect`; make sure a turn comes.
            self.wake.notify_one();
        }
    }

    /// PostgreSQL was told to leave recovery, and the job is not done yet.
    pub(super) fn is_promoting(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| running.progress.borrow().promoting)
    }

    /// The core's view.
    pub(super) fn view(&self) -> JobView {
        if let Some(running) = &self.running {
            return JobView::Running {
                job: running.job.clone(),
                since: running.since,
                shut_down_at: running.progress.borrow().shut_down_at,
                cancelled: running.cancelled,
            };
        }
        match &self.finished {
            Some((job, ended)) => JobView::Finished {
                job: job.clone(),
                end: ended.end.clone(),
            },
            None => JobView::Idle,
        }
    }

    /// The running job.
    pub(super) fn running(&self) -> Option<&Job> {
        self.running.as_ref().map(|running| &running.job)
    }

    /// How the last job ended, in the turn that shows it.
    pub(super) fn ended(&self) -> Option<&(Job, Ended)> {
        self.finished.as_ref()
    }

    /// The running job as `/metrics` shows it.
    pub(super) fn in_numbers(&self) -> Option<RunningJob> {
        let running = self.running.as_ref()?;
        Some(RunningJob {
            name: super::measure::name(&running.job),
            since: running.since,
            bytes: running.progress.borrow().bytes,
        })
    }

    /// One line about the running job, for people.
    pub(super) fn text(&self) -> Option<String> {
        self.running
            .as_ref()
            .and_then(|running| running.progress.borrow().text.clone())
    }
}

/// A job that failed is not begun again at once, whoever wakes the loop: twice the time after each failure, up to a limit.
/// Stops and promotions never wait.
#[derive(Debug, Default)]
pub(super) struct Patience {
    failed: Option<(std::mem::Discriminant<Job>, Moment, Duration)>,
}

impl Patience {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(10);

    /// Takes the end of a job into account.
    pub(super) fn note(&mut self, job: &Job, failed: bool, now: Moment) {
        let kind = std::mem::discriminant(job);
        let before = self.failed.filter(|(which, ..)| *which == kind);
        if failed {
            let wait = before.map_or(Self::FIRST, |(.., wait)| (wait * 2).min(Self::LONGEST));
            self.failed = Some((kind, now + wait, wait));
        } else if before.is_some() {
            self.failed = None;
        }
    }

    /// Until when this job has to wait.
    pub(super) fn not_before(&self, job: &Job, now: Moment) -> Option<Moment> {
        if matches!(job, Job::Stop { .. } | Job::Promote) {
            return None;
        }
        let (kind, until, _) = self.failed?;
        (kind == std::mem::discriminant(job) && until > now).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::decision::{StopMode, StopPurpose};

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    #[test]
    fn what_fails_waits_longer_each_time_and_other_work_does_not_wait() {
        let start = Job::StartStandby {
            of: Upstream::Nobody,
        };
        let stop = Job::Stop {
            mode: StopMode::Fast,
            bound: None,
            checkpoint: false,
            purpose: StopPurpose::Shutdown,
        };
        let mut patience = Patience::default();
        assert_eq!(patience.not_before(&start, at(0)), None);
        patience.note(&start, true, at(0));
        assert_eq!(patience.not_before(&start, at(10)), Some(at(1000)));
        assert_eq!(patience.not_before(&Job::CrashRecovery, at(10)), None);
        assert_eq!(patience.not_before(&start, at(1000)), None);
        patience.note(&start, true, at(1000));
        assert_eq!(patience.not_before(&start, at(1001)), Some(at(3000)));
        for _ in 0..8 {
            patience.note(&start, true, at(3000));
        }
        assert_eq!(patience.not_before(&start, at(3000)), Some(at(13000)));
        patience.note(&start, false, at(3000));
        assert_eq!(patience.not_before(&start, at(3000)), None);
        patience.note(&stop, true, at(0));
        assert_eq!(patience.not_before(&stop, at(0)), None);
    }

    #[tokio::test]
    async fn the_end_of_an_aborted_job_is_an_event() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let mut slot = JobSlot::new();
                slot.start(Job::CrashRecovery, |_reporter| async move {
                    let _held = _reporter;
                    std::future::pending::<Ended>().await
                });
                tokio::task::yield_now().await;
                slot.cancel();
                let ended = async {
                    while slot.ended().is_none() {
                        slot.changed().await;
                        slot.collect().await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(5), ended)
                    .await
                    .unwrap();
                assert_eq!(slot.ended().unwrap().1.end, JobEnd::Cancelled);
            })
            .await;
    }
}
