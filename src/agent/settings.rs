//! Configuration as it changes at run time: the store's dynamic document, the local files on SIGHUP, and what follows for the core and
//! for PostgreSQL.

use std::sync::Arc;

use crate::cluster::Cluster;
use crate::config::dynamic::{Dynamic, SynchronousMode};
use crate::config::effective::Effective;
use crate::config::{Config, WatchdogMode};
use crate::ha::observation::{Settings, Synchronous, Upstream};
use crate::types::Role;

use super::plan::Plan;
use super::serving::Checks;
use super::{Agent, stop_margin};

/// The core's settings.
pub(super) fn core_settings(
    config: &Config,
    dynamic: &Dynamic,
    effective: &Effective,
    may_rewind: bool,
) -> Settings {
    let strict = dynamic.synchronous_mode_strict;
    let count = dynamic.synchronous_node_count;
    Settings {
        ttl: dynamic.ttl,
        loop_wait: dynamic.loop_wait,
        retry_timeout: dynamic.retry_timeout,
        maximum_lag_on_failover: dynamic.maximum_lag_on_failover,
        maximum_lag_on_syncnode: dynamic.maximum_lag_on_syncnode,
        primary_start_timeout: dynamic.primary_start_timeout,
        primary_stop_timeout: dynamic.primary_stop_timeout.unwrap_or_default(),
        primary_answer_timeout: dynamic.primary_answer_timeout,
        primary_race_backoff: dynamic.primary_race_backoff,
        check_timeline: dynamic.check_timeline,
        pause: dynamic.pause,
        synchronous: match dynamic.synchronous_mode {
            SynchronousMode::Off => Synchronous::Off,
            SynchronousMode::Priority => Synchronous::Priority { strict, count },
            SynchronousMode::Quorum => Synchronous::Quorum { strict, count },
        },
        failsafe: dynamic.failsafe_mode,
        isolation_hold: dynamic.isolation_hold,
        max_timelines_history: dynamic.max_timelines_history,
        standby_cluster: dynamic
            .standby_cluster
            .as_ref()
            .map(|standby| Upstream::Remote {
                host: standby.host.clone(),
                port: standby.port.clone(),
                slot: standby.primary_slot_name.clone(),
                restore_command: standby.restore_command.clone(),
            }),
        may_bootstrap: true,
        may_rewind: effective.use_pg_rewind && may_rewind,
        may_replace_diverged: effective.remove_data_directory_on_diverged_timelines,
        may_replace_unrewindable: effective.remove_data_directory_on_rewind_failure,
        may_clone_without_leader: effective
            .create_replica_methods
            .iter()
            .filter_map(|name| effective.method(name)?.get("no_leader"))
            .any(|value| crate::config::value::parse_bool(value) == Some(true)),
        watchdog_required: config.watchdog.mode == WatchdogMode::Required,
        use_slots: effective.use_slots,
        hand_over: true,
        stop_margin: stop_margin(dynamic.ttl),
    }
}

impl Agent {
    /// Accepts a changed dynamic configuration; one that cannot be processed leaves the previous one in force.
    pub(super) fn take_dynamic_configuration(&mut self, cluster: &Cluster) {
        let Some(document) = &cluster.config else {
            return;
        };
        if self.config_revision == Some(document.revision) {
            return;
        }
        self.config_revision = Some(document.revision);
        if !self.compared_initial_settings {
            self.compared_initial_settings = true;
            let wanted = &self.loaded.config.bootstrap.from_environment;
            if let Some(warning) = crate::config::ignored_bootstrap_settings(wanted, &document.data)
            {
                tracing::warn!("{warning}");
            }
        }
        match Dynamic::read(&document.data) {
            Ok((dynamic, warnings)) => {
                if dynamic == self.dynamic {
                    return;
                }
                for warning in warnings {
                    tracing::warn!("dynamic configuration: {warning}");
                }
                self.dynamic = dynamic;
                self.apply_configuration();
            }
            Err(error) => tracing::error!("{error}"),
        }
    }

    /// SIGHUP, `POST /reload`: reads the local files again; faults leave the old configuration in force.
    pub(super) fn reload_local(&mut self) {
        self.reload_requested = false;
        match self.loaded.reload() {
            Ok(loaded) if loaded.config == self.loaded.config => {
                tracing::info!("No local configuration items changed.")
            }
            Ok(mut loaded) => {
                if let Err(error) = crate::config::secrets::complete(&mut loaded.config) {
                    tracing::error!("the configuration is not reloaded: {error}");
                    return;
                }
                for warning in &loaded.warnings {
                    tracing::warn!("{warning}");
                }
                self.loaded = loaded;
                self.tags = self.loaded.config.tags.clone();
                let log = crate::telemetry::Settings::from_config(&self.loaded.config.log);
                if let Err(error) = crate::telemetry::apply(&log) {
                    tracing::error!("the log stays as it is: {error:#}");
                }
                self.api_settings.send_if_modified(|settings| {
                    let next = crate::api::Settings::from_config(&self.loaded.config);
                    let changed = **settings != next;
                    *settings = Arc::new(next);
                    changed
                });
            }
            Err(faults) => {
                for fault in faults.0 {
                    tracing::error!("the configuration is not reloaded: {fault}");
                }
                return;
            }
        }
        self.apply_configuration();
    }

    /// What follows from the configuration in force: the core's settings, the store's timings, PostgreSQL's files.
    pub(super) fn apply_configuration(&mut self) {
        self.configured_for = self.known_role();
        let (effective, warnings) =
            Effective::build(&self.loaded.config, &self.dynamic, self.configured_for);
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        let may_rewind = self.instance.rewindable();
        self.settings = core_settings(&self.loaded.config, &self.dynamic, &effective, may_rewind);
        self.configure_watchdog();
        self.serving.check(Checks::of(
            &self.dynamic,
            &self.loaded.config.postgresql.data_dir,
        ));
        self.store
            .set_timings(self.settings.ttl, self.settings.retry_timeout);
        self.live_settings.send_if_modified(|settings| {
            let changed = *settings != effective.settings;
            settings.clone_from(&effective.settings);
            changed
        });
        let plan = Plan {
            me: self.me.clone(),
            scope: self.loaded.config.scope.clone(),
            effective,
            standby_cluster: self.dynamic.standby_cluster.clone(),
            bootstrap: self.loaded.config.bootstrap.clone(),
            known_names: self.instance.plan().known_names.clone(),
            synchronous: self.dynamic.synchronous_mode != SynchronousMode::Off,
            standby_names: self.instance.plan().standby_names.clone(),
            feedback: self.instance.plan().feedback,
            citus: super::plan::Citus::of(&self.loaded.config),
        };
        self.instance.set_plan(plan);
    }

    fn known_role(&self) -> Option<Role> {
        (self.role != Role::Uninitialized).then_some(self.role)
    }

    /// Settings may depend on the role (`parameters_primary` and the like): another role, another configuration.
    pub(super) fn follow_role(&mut self) {
        if self.known_role() != self.configured_for {
            self.apply_configuration();
        }
    }

    /// Whether pg_rewind is usable is known only once the control file is; keeps the core's setting true to it.
    pub(super) fn refresh_rewind(&mut self) {
        self.settings.may_rewind =
            self.instance.plan().effective.use_pg_rewind && self.instance.rewindable();
    }
}

impl Agent {
    /// Keeps the accepted dynamic configuration beside the data, for a start without the store's copy (spec/configuration.md §2.3).
    pub(super) fn cache_configuration(&mut self) {
        if self.role == Role::Uninitialized
            || self.cached_document.as_ref() == Some(&self.dynamic.document)
        {
            return;
        }
        let data_dir = self.instance.plan().effective.settings.data_dir.clone();
        if !data_dir.join("PG_VERSION").exists() || self.job.running().is_some() {
            return;
        }
        let path = data_dir.join(super::start::DYNAMIC_CACHE);
        let text = serde_json::Value::Object(self.dynamic.document.clone()).to_string();
        match write_beside(&path, &text, crate::postgres::write::file_mode(&data_dir)) {
            Ok(()) => self.cached_document = Some(self.dynamic.document.clone()),
            Err(error) => tracing::warn!("cannot write {}: {error}", path.display()),
        }
    }
}

fn write_beside(path: &std::path::Path, text: &str, mode: u32) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let draft = path.with_extension("json.new");
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(mode)
        .open(&draft)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&draft, path)
}
