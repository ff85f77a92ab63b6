//! The long jobs: what happens to the data directory and the postmaster, one function each. They run beside the loop and may be dropped
//! at any await; they never write to the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use async_trait::async_trait;
use serde_json::Value;

use crate::citus::agenda::Phase;
use crate::clock;
use crate::ha::decision::{Job, ReplaceReason, StopMode, StopPurpose};
use crate::ha::observation::{ControlState, Divergence, JobEnd, Upstream};
use crate::init::Guard;
use crate::postgres::clone::{self, CloneRequest};
use crate::postgres::conninfo::Conninfo;
use crate::postgres::control::{self, ControlData, ShutdownPositions};
use crate::postgres::directory::{self, Removal};
use crate::postgres::hooks::Event;
use crate::postgres::params::{Parameters, PendingRestart};
use crate::postgres::pidfile::{self, Found};
use crate::postgres::process::{self, Postmaster, StartError};
use crate::postgres::promote::{self, Promoted};
use crate::postgres::ready::{self, Readiness};
use crate::postgres::rewind::{self, RewindError, RewindRequest, Verdict};
use crate::postgres::slot_copy;
use crate::postgres::slots::LogicalSlot;
use crate::postgres::sql::{Session, Target};
use crate::postgres::stop::{self, Hooks, Mode};
use crate::postgres::{
    self, LocalHost, Settings, bootstrap, hooks, options, render, single_user, write,
};
use crate::types::{Lsn, MemberName, PgVersion};

use super::Authority;
use super::callbacks::{Caller, Known};
use super::citus::Herald;
use super::job::{Ended, Reporter};
use super::plan::{Layout, Plan, Restored, Way, address_of};

/// A start that takes longer than this without a timeout of its own is given up (spec/postgres-management.md §3.3: pg_ctl_timeout).
const CRASH_RECOVERY_LIMIT: Duration = Duration::from_secs(300);

/// How long the leader may take to hand out its slots.
const COPY_LIMIT: Duration = Duration::from_secs(5);
/// For the archive command to take what a primary left behind.
const ARCHIVE_LIMIT: Duration = Duration::from_secs(600);

/// Everything a job may use.
#[derive(Clone)]
pub(super) struct Work {
    pub(super) plan: Arc<Plan>,
    /// Calls back in the moments that are the jobs' own.
    pub(super) caller: Caller,
    pub(super) version: PgVersion,
    pub(super) authority: Authority,
    pub(super) guard: Guard,
    /// Whom the configuration on disk follows: a restart keeps it.
    pub(super) restart_upstream: Option<Upstream>,
    /// The permanent logical slots of the configuration.
    pub(super) logical_slots: BTreeMap<String, LogicalSlot>,
    /// A worker's leader tells the coordinator what this job does.
    pub(super) citus: Option<Herald>,
}

impl Work {
    /// Carries a job out.
    pub(super) async fn run(self, job: Job, reporter: Reporter) -> Ended {
        let result = match job {
            Job::Bootstrap => self.bootstrap().await,
            Job::Clone { from } => self.copy_from(&from, None, &reporter).await,
            Job::StartPrimary { timeout } => self.start_primary(timeout).await,
            Job::StartStandby { of } => self.start_standby(&of).await,
            Job::RestartToFollow { of } => self.restart_to_follow(&of).await,
            Job::Promote => self.promote(&reporter).await,
            Job::Stop {
                mode,
                bound,
                checkpoint,
                purpose,
            } => {
                let mut stopped = self.stop(mode, bound, checkpoint, &reporter).await;
                if purpose == StopPurpose::DemoteCluster
                    && let Ok(ended) = &mut stopped
                {
                    self.archive_the_end().await;
                    // Whoever waits for this end before another site is promoted needs the checkpoint itself (spec/ha.md §7.3).
                    if let Some(positions) = self.shutdown_positions().await {
                        ended.end = JobEnd::StoppedAt(positions.checkpoint);
                    }
                }
                stopped
            }
            Job::Restart { timeout } => self.restart(timeout).await,
            Job::CopySlots { from, slots } => self.copy_slots(&from, &slots).await,
            Job::CheckDivergence { with } => self.check_divergence(&with).await,
            Job::CrashRecovery => self.crash_recovery().await,
            Job::Rewind { from } => self.rewind(&from).await,
            Job::Replace { from, because } => self.replace(&from, because, &reporter).await,
        };
        result.unwrap_or_else(|error| JobEnd::Failed(format!("{error:#}")).into())
    }

    fn settings(&self) -> &Settings {
        &self.plan.effective.settings
    }

    fn postmaster(&self) -> Option<Postmaster> {
        match pidfile::find(self.settings()) {
            Found::Postmaster(postmaster) => Some(postmaster),
            Found::None | Found::Stale { .. } | Found::SingleUser(_) => None,
        }
    }

    /// Writes the files and starts the server; returns when it accepts connections.
    async fn start(&self, way: &Way<'_>, limit: Duration) -> anyhow::Result<PendingRestart> {
        let settings = self.settings();
        let limits = control::read(settings)
            .await
            .ok()
            .map(|control| control.limits);
        let layout = self.plan.layout(self.version, way, limits);
        self.launch(&layout, limit).await?;
        Ok(layout.raised)
    }

    async fn launch(&self, layout: &Layout, limit: Duration) -> anyhow::Result<()> {
        let settings = self.settings();
        for problem in &layout.problems {
            tracing::warn!("{problem}");
        }
        directory::close_to_others(&settings.data_dir)?;
        directory::ensure_support(
            settings,
            layout.wanted.parameters.get("stats_temp_directory"),
        )?;
        write::restore(
            settings,
            &layout.wanted.parameters,
            layout.wanted.custom_conf.is_some(),
        )?;
        write::write(settings, &layout.wanted)?;
        let postmaster = match process::start(settings, &layout.arguments) {
            Err(StartError::Survivors(_)) => {
                stop::bury(settings).await;
                process::start(settings, &layout.arguments)?
            }
            started => started?,
        };
        if let Err(error) = self.guard.watch(postmaster.pid()) {
            tracing::warn!("{error}");
        }
        match tokio::time::timeout(limit, ready::wait(settings, &postmaster)).await {
            Ok(Readiness::Accepting | Readiness::Standby) => {
                write::back_up(
                    settings,
                    &layout.wanted.parameters,
                    layout.wanted.custom_conf.is_some(),
                )?;
                Ok(())
            }
            Ok(Readiness::Stopping | Readiness::Exited) => {
                bail!("PostgreSQL ended while starting; its reason is in its log output above")
            }
            Err(_) => bail!(
                "PostgreSQL is not ready after {} s; it goes on starting",
                limit.as_secs()
            ),
        }
    }

    async fn bootstrap(&self) -> anyhow::Result<Ended> {
        match self.create_cluster().await {
            Ok(raised) => Ok(Ended {
                raised: Some(raised),
                ..JobEnd::Done.into()
            }),
            Err(error) => {
                if let Some(postmaster) = self.postmaster() {
                    stop::stop(
                        self.settings(),
                        &postmaster,
                        Mode::Immediate,
                        Some(Duration::from_secs(10)),
                        &mut (),
                    )
                    .await?;
                }
                match bootstrap::clean_up(self.settings()) {
                    Ok(cleaned) => {
                        tracing::info!(?cleaned, "cleaned up after the failed bootstrap")
                    }
                    Err(error) => {
                        tracing::error!("cannot clean up after the failed bootstrap: {error}")
                    }
                }
                Err(error)
            }
        }
    }

    async fn create_cluster(&self) -> anyhow::Result<PendingRestart> {
        let settings = self.settings();
        let never = std::future::pending::<()>;
        match &self.plan.bootstrap.custom {
            Some(section) => {
                bootstrap::custom(settings, section, &self.plan.scope, never()).await?
            }
            None => {
                bootstrap::initdb(
                    settings,
                    &Value::Array(self.plan.bootstrap.initdb.clone()),
                    never(),
                )
                .await?
            }
        }
        if let Some(section) = &self.plan.bootstrap.custom {
            return self.finish_custom(section).await;
        }
        let hba_is_ours = self.plan.effective.pg_hba.is_some()
            || self.plan.effective.parameters.get("hba_file").is_some();
        if !hba_is_ours {
            bootstrap::append_hba(settings, &self.plan.bootstrap.pg_hba)?;
        }
        let raised = self
            .start(
                &Way::Primary,
                settings.pg_ctl_timeout.max(Duration::from_secs(60)),
            )
            .await?;
        let session = Target::local(settings)
            .named("Patroni")
            .statement_limit(None)
            .connect()
            .await
            .context("connect to the new cluster")?;
        self.populate(&session).await?;
        if let Some(citus) = &self.plan.citus {
            let coordinator = citus.coordinator.as_ref();
            let coordinator = coordinator.map(|(host, port)| (host.as_str(), *port));
            postgres::citus::set_up(settings, &citus.database, coordinator)
                .await
                .with_context(|| format!("set Citus up in database {:?}", citus.database))?;
        }
        directory::mark_complete(&settings.data_dir)?;
        Ok(raised)
    }

    /// Users and the hook (spec/postgres-management.md §7.4).
    async fn populate(&self, session: &Session) -> anyhow::Result<()> {
        let settings = self.settings();
        bootstrap::create_superuser(session.client(), settings).await?;
        if let Some(command) = &self.plan.bootstrap.post_bootstrap {
            let never = std::future::pending::<()>();
            bootstrap::post_bootstrap(settings, command, self.version, never).await?;
        }
        bootstrap::create_replication_users(session.client(), settings, self.version).await?;
        Ok(())
    }

    /// What a custom method has brought is recovered, with access for this machine only, and then configured like any other primary.
    async fn finish_custom(
        &self,
        section: &serde_json::Map<String, Value>,
    ) -> anyhow::Result<PendingRestart> {
        let settings = self.settings();
        let recovery_conf = section
            .get("recovery_conf")
            .and_then(Value::as_object)
            .map(|map| {
                map.iter()
                    .filter(|(_, value)| !value.is_null())
                    .map(|(name, value)| match value {
                        Value::String(text) => (name.clone(), text.clone()),
                        other => (name.clone(), other.to_string()),
                    })
                    .collect::<Parameters>()
            });
        let restored = Restored {
            keep: section
                .get("keep_existing_recovery_conf")
                .is_some_and(|value| crate::config::value::parse_bool(value) == Some(true)),
            recovery_conf: recovery_conf.filter(|settings| !settings.is_empty()),
            local_addresses: local_addresses(settings).await,
        };
        write::remove_trigger_file(
            settings,
            restored
                .recovery_conf
                .as_ref()
                .unwrap_or(&Parameters::new()),
        )?;
        let layout = self
            .plan
            .layout(self.version, &Way::Restored(&restored), None);
        let limit = settings.pg_ctl_timeout.max(Duration::from_secs(60));
        self.launch(&layout, limit).await?;
        let session = self.end_of_recovery().await?;
        self.populate(&session).await?;
        drop(session);

        let restart = restored.without_hot_standby(self.version)
            || self.plan.effective.parameters.get("hba_file").is_some()
            || !layout.raised.is_empty();
        let postmaster = self
            .postmaster()
            .ok_or_else(|| anyhow!("PostgreSQL has ended after its recovery"))?;
        let raised = if restart {
            stop::stop(settings, &postmaster, Mode::Fast, None, &mut ()).await?;
            self.start(&Way::Primary, limit).await?
        } else {
            let layout = self.plan.layout(self.version, &Way::Primary, None);
            write::write(settings, &layout.wanted)?;
            process::reload(&postmaster)?;
            layout.raised
        };
        directory::mark_complete(&settings.data_dir)?;
        Ok(raised)
    }

    /// Waits as long as the recovery takes; a session on the server that has left it.
    async fn end_of_recovery(&self) -> anyhow::Result<Session> {
        tracing::info!("waiting for end of recovery after bootstrap");
        loop {
            if self.postmaster().is_none() {
                bail!(
                    "PostgreSQL ended during its recovery; its reason is in its log output above"
                );
            }
            let target = Target::local(self.settings())
                .named("Patroni")
                .statement_limit(None);
            if let Ok(session) = target.connect().await
                && !session.is_in_recovery().await?
            {
                return Ok(session);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn copy_from(
        &self,
        from: &Upstream,
        because: Option<ReplaceReason>,
        reporter: &Reporter,
    ) -> anyhow::Result<Ended> {
        let settings = self.settings();
        let effective = &self.plan.effective;
        let section = |name: &str| effective.section.0.get(name);
        let names = match (&self.plan.standby_cluster, from) {
            // None means a base backup.
            _ if because == Some(ReplaceReason::RequestedFromLeader) => &Vec::new(),
            (Some(standby), Upstream::Remote { .. })
                if !standby.create_replica_methods.is_empty() =>
            {
                &standby.create_replica_methods
            }
            _ => &effective.create_replica_methods,
        };
        let replace = because.map(|because| match because.on_request() {
            true => Removal::Reinitialise,
            false => Removal::Configured,
        });
        let source = address_of(from).map(|address| clone::Source {
            conninfo: Conninfo::new(
                &address,
                &settings.replication,
                &settings.database,
                self.version,
            )
            .with("application_name", self.plan.me.as_str()),
            passwords: passwords(&address, &settings.replication),
        });
        let (methods, problems) = clone::methods(names, section, source.is_some(), self.version);
        for problem in problems {
            tracing::warn!("{problem}");
        }
        let progress = clone::Progress::default();
        let request = CloneRequest {
            settings,
            scope: &self.plan.scope,
            methods: &methods,
            source: source.as_ref(),
            replace,
            keep_replaced: effective.keep_diverged,
            progress: &progress,
        };
        let copying = clone::clone(&request, std::future::pending::<()>());
        let mut copying = std::pin::pin!(copying);
        let method = loop {
            tokio::select! {
                done = &mut copying => break done?,
                () = tokio::time::sleep(Duration::from_secs(1)) => {
                    let (done, total) = progress.bytes();
                    if let Some(percent) = (done * 100).checked_div(total) {
                        reporter.send_if_modified(|report| {
                            let text = Some(format!("copying: {} of {} MB, {} %", done >> 20, total >> 20, percent.min(100)));
                            let changed = report.text != text;
                            report.text = text;
                            report.bytes = Some((done, total));
                            changed
                        });
                    }
                }
            }
        };
        tracing::info!(method, "replica created");
        let layout = self.plan.layout(self.version, &Way::Standby(from), None);
        write::restore(
            settings,
            &layout.wanted.parameters,
            layout.wanted.custom_conf.is_some(),
        )?;
        write::write(settings, &layout.wanted)?;
        Ok(Ended {
            follows: Some(from.clone()),
            divergence: Some(Divergence::Unchecked),
            ..JobEnd::Done.into()
        })
    }

    async fn start_primary(&self, limit: Duration) -> anyhow::Result<Ended> {
        let raised = self.start(&Way::Primary, limit).await?;
        Ok(Ended {
            raised: Some(raised),
            ..JobEnd::Done.into()
        })
    }

    async fn start_standby(&self, of: &Upstream) -> anyhow::Result<Ended> {
        let limit = self.settings().pg_ctl_timeout.max(CRASH_RECOVERY_LIMIT);
        let raised = self.start(&Way::Standby(of), limit).await?;
        Ok(Ended {
            raised: Some(raised),
            follows: Some(of.clone()),
            ..JobEnd::Done.into()
        })
    }

    async fn restart_to_follow(&self, of: &Upstream) -> anyhow::Result<Ended> {
        if let Some(postmaster) = self.postmaster() {
            self.checkpoint_before_stop().await;
            self.stop_server(&postmaster, Mode::Fast, None, &mut ())
                .await?;
        }
        self.caller.known().starting(Event::OnRestart);
        self.start_standby(of).await
    }

    async fn restart(&self, limit: Duration) -> anyhow::Result<Ended> {
        let settings = self.settings();
        let standby = ["standby.signal", "recovery.signal", "recovery.conf"]
            .iter()
            .any(|name| settings.data_dir.join(name).exists());
        if let Some(postmaster) = self.postmaster() {
            self.checkpoint_before_stop().await;
            self.stop_server(&postmaster, Mode::Fast, None, &mut ())
                .await?;
        }
        let way = match (&self.restart_upstream, standby) {
            (_, false) => Way::Primary,
            (Some(upstream), true) => Way::Standby(upstream),
            (None, true) => Way::AnyStandby,
        };
        self.caller.known().starting(Event::OnRestart);
        let raised = self.start(&way, limit).await?;
        Ok(Ended {
            raised: Some(raised),
            ..JobEnd::Done.into()
        })
    }

    /// Reads the slots first: without them nothing is stopped (spec/postgres-management.md §11.6).
    async fn copy_slots(&self, from: &Upstream, slots: &[String]) -> anyhow::Result<Ended> {
        let settings = self.settings();
        let address = address_of(from).ok_or_else(|| anyhow!("no address to copy slots from"))?;
        let mut wanted = self.logical_slots.clone();
        wanted.retain(|name, _| slots.contains(name));
        let here = control::read(settings).await?;
        let reading = slot_copy::read(settings, self.version, &address, &wanted, &here);
        let copies = tokio::time::timeout(COPY_LIMIT, reading)
            .await
            .with_context(|| {
                let limit = COPY_LIMIT.as_secs();
                format!("not done within {limit} s; the next try goes on with the WAL")
            })
            .and_then(|copies| Ok(copies?))
            .with_context(|| format!("read slots from {}", address.host))?;
        if copies.is_empty() {
            bail!(
                "nothing to copy on {} for the slots {}",
                address.host,
                slots.join(", ")
            );
        }
        if let Some(postmaster) = self.postmaster() {
            self.checkpoint_before_stop().await;
            self.stop_server(&postmaster, Mode::Fast, None, &mut ())
                .await?;
            self.caller.tell(&self.plan, Known::stopped);
        }
        self.caller.known().starting(Event::OnStart);
        let installed = match control::read(settings).await {
            Ok(here) => slot_copy::install(&settings.data_dir, &copies, &here).map_err(Into::into),
            Err(error) => Err(anyhow::Error::from(error)),
        };
        let way = match &self.restart_upstream {
            Some(upstream) => Way::Standby(upstream),
            None => Way::AnyStandby,
        };
        let limit = settings.pg_ctl_timeout.max(CRASH_RECOVERY_LIMIT);
        let raised = self.start(&way, limit).await?;
        tracing::info!(slots = ?installed?, "copied logical replication slots");
        Ok(Ended {
            raised: Some(raised),
            ..JobEnd::Done.into()
        })
    }

    /// A stop is as long as its checkpoint; most of that can be done while clients are still served.
    async fn checkpoint_before_stop(&self) {
        let checkpoint = async {
            Target::local(self.settings())
                .named("Patroni")
                .statement_limit(None)
                .connect()
                .await?
                .checkpoint(self.version)
                .await
        };
        match tokio::time::timeout(Duration::from_secs(60), checkpoint).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("no checkpoint before the stop: {error}"),
            Err(_) => tracing::warn!(
                "the checkpoint before the stop takes more than 60 s; stopping anyway"
            ),
        }
    }

    async fn promote(&self, reporter: &Reporter) -> anyhow::Result<Ended> {
        let settings = self.settings();
        let postmaster = self
            .postmaster()
            .ok_or_else(|| anyhow!("PostgreSQL is not running"))?;
        if let Some(command) = &self.plan.effective.pre_promote {
            hooks::run(
                "postgresql.pre_promote",
                command,
                &[],
                &[],
                None,
                std::future::pending::<()>(),
            )
            .await?;
        }
        let told = self.tell_citus(Phase::BeforePromote);
        let (cut, ()) = tokio::join!(self.cut_receiver(&postmaster), told);
        cut?;
        // The point of no return. Nothing may come between this check and the signal.
        if !self.authority.holds(clock::now()) {
            bail!("the leader key is not ours any more; not promoting");
        }
        promote::promote(settings, &postmaster).await?;
        self.caller.tell(&self.plan, Known::promoted);
        reporter.send_modify(|report| report.promoting = true);
        match promote::finished(settings, &postmaster).await {
            Promoted::InProduction => {}
            Promoted::Exited => bail!("PostgreSQL ended while it was being promoted"),
        }
        let layout = self.plan.layout(self.version, &Way::RunningPrimary, None);
        write::write(settings, &layout.wanted)?;
        process::reload(&postmaster)?;
        Ok(Ended {
            follows: None,
            divergence: Some(Divergence::Unchecked),
            raised: Some(PendingRestart::new()),
            end: JobEnd::Done,
        })
    }

    /// A standby that is promoted must not wait for its receiver to notice it (13+).
    async fn cut_receiver(&self, postmaster: &Postmaster) -> anyhow::Result<()> {
        if !self.version.at_least(13) {
            return Ok(());
        }
        let settings = self.settings();
        let layout = self.plan.layout(
            self.version,
            &Way::Standby(&Upstream::Nobody),
            control::read(settings).await.ok().map(|c| c.limits),
        );
        let rewrite = async {
            write::write(settings, &layout.wanted)
                .map(|_| ())
                .map_err(std::io::Error::other)
        };
        if !promote::cut_receiver(postmaster, rewrite).await? {
            tracing::warn!("the WAL receiver is still there; promoting anyway");
        }
        Ok(())
    }

    async fn stop(
        &self,
        mode: StopMode,
        bound: Option<Duration>,
        checkpoint: bool,
        reporter: &Reporter,
    ) -> anyhow::Result<Ended> {
        let settings = self.settings();
        let Some(postmaster) = self.postmaster() else {
            stop::bury(settings).await;
            return Ok(self.stopped(None).await);
        };
        let mode = match mode {
            StopMode::Fast => Mode::Fast,
            StopMode::Immediate => Mode::Immediate,
        };
        tracing::info!("stopping PostgreSQL ({})", mode.word());
        if checkpoint {
            self.checkpoint_before_stop().await;
        }
        let mut moments = Moments {
            work: self,
            reporter,
            published: None,
        };
        let how = self
            .stop_server(&postmaster, mode, bound, &mut moments)
            .await?;
        self.caller.tell(&self.plan, Known::stopped);
        tracing::info!("PostgreSQL is stopped{}", how.detour());
        let published = moments.published;
        Ok(self.stopped(published).await)
    }

    /// Stops a running server; before that the operator's script has its time (spec/postgres-management.md §4.1), whatever it stops for,
    /// within the `bound` of the whole. Not in an immediate stop, where Patroni runs it, too: whoever lost the key stops at once.
    async fn stop_server(
        &self,
        postmaster: &Postmaster,
        mode: Mode,
        bound: Option<Duration>,
        moments: &mut impl Hooks,
    ) -> anyhow::Result<stop::Stopped> {
        let began = clock::now();
        // An immediate stop is for a server that must take no write any more: it waits for nobody.
        if mode == Mode::Immediate {
            return Ok(stop::stop(self.settings(), postmaster, mode, bound, moments).await?);
        }
        if let Some(command) = &self.plan.effective.before_stop {
            let limit = bound.unwrap_or(Duration::from_secs(60));
            let none = std::future::pending::<()>();
            if let Err(error) = hooks::run(
                "postgresql.before_stop",
                command,
                &[],
                &[],
                Some(limit),
                none,
            )
            .await
            {
                tracing::warn!("{error}");
            }
        }
        // Then, and not before the script: the traffic that waits can wait only so long (spec/ha.md §7.2).
        self.tell_citus(Phase::BeforeDemote).await;
        let bound = bound.map(|bound| bound.saturating_sub(clock::now().since(began)));
        Ok(stop::stop(self.settings(), postmaster, mode, bound, moments).await?)
    }

    /// Whatever comes of it, the job goes on.
    async fn tell_citus(&self, phase: Phase) {
        if let Some(herald) = &self.citus {
            herald.tell(phase).await;
        }
    }

    /// The command that archives WAL, when archiving is on.
    fn archive_command(&self) -> Option<&str> {
        let parameters = &self.plan.effective.parameters;
        let command = parameters.get("archive_command")?;
        (!command.is_empty()).then_some(command)
    }

    /// Whoever continues from the archive of a cluster that has become a standby cluster needs its very last record too: with it no
    /// rewind is needed here later (spec/postgres-management.md §4.4).
    async fn archive_the_end(&self) {
        let mode = self.plan.effective.parameters.get("archive_mode");
        let on = mode.is_some_and(|mode| {
            mode == "always" || crate::config::value::parse_bool(&Value::from(mode)) == Some(true)
        });
        let (Some(command), true) = (self.archive_command(), on) else {
            return;
        };
        let settings = self.settings();
        let file = match control::read(settings).await {
            Ok(control) if control.state == ControlState::ShutDown => control.redo_wal_file,
            Ok(control) => {
                tracing::warn!(state = ?control.state, "the last WAL is not archived: PostgreSQL was not shut down cleanly");
                return;
            }
            Err(error) => {
                tracing::warn!("the last WAL is not archived: {error}");
                return;
            }
        };
        // An archive that stands still must not keep the cluster's only leader from coming back.
        let late = tokio::time::sleep(ARCHIVE_LIMIT);
        match rewind::archive_until(settings, self.version, command, &file, late).await {
            Ok(failed) if failed.is_empty() => {
                tracing::info!(file, "archived the WAL up to the shutdown checkpoint");
            }
            Ok(failed) => tracing::warn!(?failed, "the last WAL could not be archived"),
            Err(error) => tracing::warn!("the last WAL is not archived: {error}"),
        }
    }

    async fn stopped(&self, published: Option<Lsn>) -> Ended {
        let lsn = match published {
            Some(lsn) => Some(lsn),
            None => self
                .shutdown_positions()
                .await
                .map(|positions| positions.published),
        };
        lsn.map_or(JobEnd::Done, JobEnd::StoppedAt).into()
    }

    async fn shutdown_positions(&self) -> Option<ShutdownPositions> {
        let control = control::read(self.settings()).await.ok()?;
        control::shutdown_positions(self.settings(), &control, self.version)
            .await
            .ok()?
    }

    async fn crash_recovery(&self) -> anyhow::Result<Ended> {
        stop::bury(self.settings()).await;
        single_user::recover(self.settings(), self.version, std::future::pending::<()>()).await?;
        Ok(JobEnd::Done.into())
    }

    /// Compares histories (spec/ha.md §15, spec/postgres-management.md §10.3).
    async fn check_divergence(&self, with: &Upstream) -> anyhow::Result<Ended> {
        let name = self.upstream_name(with)?;
        let address = address_of(with)
            .ok_or_else(|| anyhow!("{name} has no address to compare histories with"))?;
        let running = self.postmaster().is_some();
        let verdict = rewind::check(self.settings(), self.version, &address, running).await;
        let divergence = match verdict {
            Verdict::Same { reason } => {
                tracing::info!(leader = %name, "histories agree: {reason}");
                Divergence::Prefix { of: name }
            }
            Verdict::Diverged { reason } => {
                tracing::warn!(leader = %name, "histories have diverged: {reason}");
                Divergence::Diverged {
                    from: name,
                    detail: reason,
                }
            }
            Verdict::Undecided { reason } => {
                bail!("cannot compare histories with {name} yet: {reason}")
            }
        };
        Ok(Ended {
            divergence: Some(divergence),
            ..JobEnd::Done.into()
        })
    }

    async fn rewind(&self, from: &Upstream) -> anyhow::Result<Ended> {
        let settings = self.settings();
        let address = address_of(from).ok_or_else(|| anyhow!("no address to rewind from"))?;
        let credentials = settings.rewind_credentials(self.version);
        match rewind::source_is_ready(settings, self.version, &address).await {
            Ok(true) => {}
            Ok(false) => {
                bail!(
                    "{} has not written a checkpoint of its timeline yet",
                    self.upstream_name(from)?
                )
            }
            Err(error) => bail!(
                "{} is no source of a rewind now: {error}",
                self.upstream_name(from)?
            ),
        }
        if let Some(postmaster) = self.postmaster() {
            self.stop_server(&postmaster, Mode::Fast, None, &mut ())
                .await?;
            self.caller.tell(&self.plan, Known::stopped);
        }
        if let Some(command) = self.archive_command() {
            let never = std::future::pending::<()>();
            match rewind::archive_ready(settings, self.version, command, never).await {
                Ok(failed) if failed.is_empty() => {}
                Ok(failed) => tracing::warn!(segments = failed.len(), "WAL could not be archived"),
                Err(error) => tracing::warn!("cannot archive the WAL that waits: {error}"),
            }
        }
        let source = Conninfo::new(&address, credentials, &settings.database, self.version);
        let lines = passwords(&address, credentials);
        let (options, problems) = options::parse("pg_rewind", &self.plan.effective.rewind, &[]);
        for problem in problems {
            tracing::warn!("{problem}");
        }
        let restore_command = self
            .plan
            .effective
            .recovery_conf
            .get("restore_command")
            .map(str::to_owned);
        let request = RewindRequest {
            settings,
            version: self.version,
            source: &source,
            passwords: lines.as_deref(),
            options: &options,
            restore_command: restore_command.as_deref(),
        };
        tracing::info!(from = %self.upstream_name(from)?, "running pg_rewind");
        match rewind::run(&request, std::future::pending::<()>()).await {
            Ok(()) => {
                let of = self.upstream_name(from)?;
                Ok(Ended {
                    divergence: Some(Divergence::Prefix { of }),
                    ..JobEnd::Done.into()
                })
            }
            // It did not run: that says nothing about the directory.
            Err(
                error
                @ (RewindError::NoRoom { .. } | RewindError::NotRun(_) | RewindError::File(_)),
            ) => Err(error.into()),
            Err(error @ RewindError::Failed { .. }) => {
                let from = self.upstream_name(from)?;
                Ok(Ended {
                    divergence: Some(Divergence::RewindFailed { from }),
                    ..JobEnd::Failed(error.to_string()).into()
                })
            }
        }
    }

    fn upstream_name(&self, upstream: &Upstream) -> anyhow::Result<MemberName> {
        upstream
            .name()
            .ok_or_else(|| anyhow!("there is no server to compare histories with"))
    }

    async fn replace(
        &self,
        from: &Upstream,
        because: ReplaceReason,
        reporter: &Reporter,
    ) -> anyhow::Result<Ended> {
        if let Some(postmaster) = self.postmaster() {
            let limit = Some(Duration::from_secs(10));
            self.stop_server(&postmaster, Mode::Immediate, limit, &mut ())
                .await?;
            self.caller.tell(&self.plan, Known::stopped);
        }
        self.copy_from(from, Some(because), reporter).await
    }
}

/// What the local replication host resolves to; nothing if that is a socket.
async fn local_addresses(settings: &Settings) -> Vec<std::net::IpAddr> {
    let LocalHost::Tcp(host) = settings.local_replication_host() else {
        return Vec::new();
    };
    let found = tokio::net::lookup_host((host.as_str(), settings.port)).await;
    found
        .map(|addresses| addresses.map(|address| address.ip()).collect())
        .unwrap_or_default()
}

/// Lines of the password file for a connection.
fn passwords(
    address: &crate::postgres::conninfo::Upstream,
    credentials: &crate::postgres::Credentials,
) -> Option<String> {
    let password = credentials
        .password
        .as_deref()
        .filter(|password| !password.is_empty())?;
    Some(render::pgpass(
        &address.host,
        &address.port,
        credentials.username.as_deref().unwrap_or_default(),
        password,
    ))
}

/// Reports the shutdown checkpoint as soon as it is written.
struct Moments<'a> {
    work: &'a Work,
    reporter: &'a Reporter,
    published: Option<Lsn>,
}

#[async_trait]
impl Hooks for Moments<'_> {
    async fn shut_down(&mut self, control: &ControlData) {
        let found =
            control::shutdown_positions(self.work.settings(), control, self.work.version).await;
        self.published = match found {
            Ok(positions) => positions.map(|positions| positions.published),
            Err(error) => {
                tracing::warn!("cannot read the shutdown checkpoint: {error}");
                None
            }
        };
        if let Some(lsn) = self.published {
            tracing::info!(%lsn, "the shutdown checkpoint is written");
            self.reporter
                .send_modify(|report| report.shut_down_at = Some(lsn));
        }
    }
}
