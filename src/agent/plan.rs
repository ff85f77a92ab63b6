//! What this node's PostgreSQL should look like: the effective configuration turned into files and arguments. No I/O.
//!
//! A plan is immutable; a change of configuration makes a new one. Jobs hold the plan they started with.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::effective::Effective;
use crate::config::{Bootstrap, Config, dynamic};
use crate::ha::observation::{StandbyNames, Upstream};
use crate::postgres::LocalHost;
use crate::postgres::conninfo::{self, PrimaryConninfo};
use crate::postgres::control::Limits;
use crate::postgres::params::{
    self, FollowInputs, Parameters, PendingRestart, ServerInputs, StandbyCluster, SynchronousNames,
};
use crate::postgres::render;
use crate::postgres::write::{Recovery, Wanted};
use crate::types::{MemberName, PgVersion};

/// Everything jobs and observation need to know about this node's PostgreSQL.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub(super) me: MemberName,
    pub(super) scope: String,
    pub(super) effective: Effective,
    pub(super) standby_cluster: Option<dynamic::StandbyCluster>,
    pub(super) bootstrap: Bootstrap,
    /// The settings that the `postgres` program knows.
    pub(super) known_names: Option<Arc<BTreeSet<String>>>,
    /// Synchronous mode is on.
    pub(super) synchronous: bool,
    /// What the core decided about `synchronous_standby_names`; `None`: nothing since the agent started.
    pub(super) standby_names: Option<StandbyNames>,
    /// This node, or one that streams through it, has logical slots: `hot_standby_feedback` is forced on.
    pub(super) feedback: bool,
    pub(super) citus: Option<Citus>,
}

/// What Citus asks of a server and of a new cluster.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Citus {
    pub(super) database: String,
    /// In the coordinator's group: where the workers reach this node.
    pub(super) coordinator: Option<(String, u16)>,
}

impl Citus {
    /// `None`: not configured.
    pub(super) fn of(config: &Config) -> Option<Citus> {
        let citus = config.citus.as_ref()?;
        let address = &config.postgresql.connect_address;
        let coordinator = (citus.group == crate::citus::COORDINATOR)
            .then(|| (address.host.clone(), address.port.unwrap_or(5432)));
        Some(Citus {
            database: citus.database.clone(),
            coordinator,
        })
    }
}

/// How the server is about to run.
#[derive(Debug, Clone)]
pub(super) enum Way<'a> {
    /// Out of recovery.
    Primary,
    /// As a standby of this server.
    Standby(&'a Upstream),
    /// As a primary that runs already: recovery settings it was started with stay on disk, because PostgreSQL reports them as
    /// errors and as waiting for a restart when they go.
    RunningPrimary,
    /// As a standby of whomever the recovery settings on disk name.
    AnyStandby,
    /// To the end of the recovery that a custom bootstrap has prepared (spec/postgres-management.md §7.3).
    Restored(&'a Restored),
}

/// The recovery of a custom bootstrap.
#[derive(Debug, Clone)]
pub(super) struct Restored {
    /// The section's own recovery settings, if it has any.
    pub(super) recovery_conf: Option<Parameters>,
    /// The method's recovery settings stay.
    pub(super) keep: bool,
    /// What the local replication host resolves to.
    pub(super) local_addresses: Vec<IpAddr>,
}

impl Restored {
    /// Nobody may connect before the end of recovery.
    pub(super) fn without_hot_standby(&self, version: PgVersion) -> bool {
        params::bootstrap_without_hot_standby(self.keep, self.recovery_conf.as_ref(), version)
    }
}

/// The files to write and how to start with them.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) wanted: Wanted,
    pub(super) arguments: Vec<String>,
    pub(super) raised: PendingRestart,
    pub(super) problems: Vec<String>,
}

impl Plan {
    /// The files and arguments for this way of running. `limits`: what pg_control demands of a standby.
    pub(super) fn layout(
        &self,
        version: PgVersion,
        way: &Way<'_>,
        limits: Option<Limits>,
    ) -> Layout {
        let major = PgVersion(version.0 / 10_000 * 10_000);
        let listen = self.effective.settings.listen_addresses.join(",");
        let local_host = match self.effective.settings.local_host() {
            LocalHost::Tcp(host) => host,
            LocalHost::Socket(directory) => directory.display().to_string(),
            LocalHost::DefaultSocket => "localhost".to_owned(),
        };
        let server = params::server_settings(&ServerInputs {
            configured: &self.effective.parameters,
            listen_addresses: &listen,
            port: self.effective.settings.port,
            cluster_name: &self.scope,
            version,
            known_names: self.known_names.as_deref(),
            synchronous_names: self.synchronous_names(),
            control: match way {
                Way::Primary | Way::RunningPrimary | Way::Restored(_) => None,
                Way::Standby(_) | Way::AnyStandby => limits,
            },
            without_hot_standby: match way {
                Way::Restored(restored) => restored.without_hot_standby(version),
                Way::Primary | Way::RunningPrimary | Way::Standby(_) | Way::AnyStandby => false,
            },
            force_feedback: self.feedback,
            citus_local_host: self.citus.as_ref().map(|_| local_host.as_str()),
        });
        let mut problems: Vec<String> = server.problems.iter().map(ToString::to_string).collect();
        let (recovery, passwords) = match way {
            Way::Primary => (Recovery::Removed, None),
            Way::RunningPrimary | Way::AnyStandby => (Recovery::Untouched, None),
            Way::Restored(Restored { keep: true, .. }) => (Recovery::Untouched, None),
            Way::Restored(Restored {
                recovery_conf: Some(recovery_conf),
                ..
            }) => {
                let names = self.known_names.as_deref();
                let settings = params::bootstrap_recovery_settings(recovery_conf, major, names);
                problems.extend(settings.problems.iter().map(ToString::to_string));
                (Recovery::Set(settings), None)
            }
            Way::Restored(_) => (Recovery::Removed, None),
            Way::Standby(upstream) => {
                let (settings, passwords) = self.recovery(major, upstream);
                problems.extend(settings.problems.iter().map(ToString::to_string));
                (Recovery::Set(settings), passwords)
            }
        };
        Layout {
            arguments: server
                .command_line
                .iter()
                .map(|(name, value)| format!("--{name}={value}"))
                .collect(),
            raised: server.raised,
            problems,
            wanted: Wanted {
                major,
                parameters: server.parameters,
                custom_conf: self.effective.custom_conf.clone(),
                hba: self.effective.pg_hba.clone(),
                ident: self.effective.pg_ident.clone(),
                recovery,
                passwords,
                keep_auto_conf: matches!(way, Way::Restored(Restored { keep: true, .. })),
                bootstrap_hba: match way {
                    Way::Restored(restored) => Some(self.bootstrap_hba(restored)),
                    Way::Primary | Way::RunningPrimary | Way::Standby(_) | Way::AnyStandby => None,
                },
            },
        }
    }

    fn bootstrap_hba(&self, restored: &Restored) -> String {
        let settings = &self.effective.settings;
        render::bootstrap_hba(
            settings.replication.username.as_deref().unwrap_or_default(),
            settings.superuser.username.as_deref(),
            &restored.local_addresses,
        )
    }

    /// `synchronous_standby_names` as decided. Undecided, the mode alone does not make commits wait for anybody.
    fn synchronous_names(&self) -> SynchronousNames<'_> {
        match &self.standby_names {
            Some(StandbyNames::Configured) => SynchronousNames::Configured,
            None if !self.synchronous => SynchronousNames::Configured,
            None => SynchronousNames::Managed {
                current: None,
                strict_primary: false,
            },
            Some(StandbyNames::Managed(names)) => SynchronousNames::Managed {
                current: names.as_deref(),
                strict_primary: false,
            },
        }
    }

    /// Recovery settings for following `upstream`, and the password file they need.
    pub(super) fn recovery(
        &self,
        major: PgVersion,
        upstream: &Upstream,
    ) -> (params::RecoverySettings, Option<String>) {
        let address = address_of(upstream);
        let slot = self.slot_on(upstream);
        let passfile = self.effective.settings.pgpass.display().to_string();
        let made = address.as_ref().map(|address| {
            conninfo::primary_conninfo(
                address,
                &PrimaryConninfo {
                    credentials: &self.effective.settings.replication,
                    application_name: self.me.as_str(),
                    database: &self.effective.settings.database,
                    krbsrvname: self.effective.settings.krbsrvname.as_deref(),
                    passfile: &passfile,
                    version: major,
                    read_write: matches!(upstream, Upstream::Remote { .. })
                        && address.host.contains(','),
                },
            )
        });
        let (primary_conninfo, passwords) = match made {
            Some((conninfo, passwords)) => (Some(conninfo.to_string()), passwords),
            None => (None, None),
        };
        let standby_cluster = self.standby_cluster.as_ref().map(|standby| StandbyCluster {
            restore_command: standby.restore_command.as_deref(),
            archive_cleanup_command: standby.archive_cleanup_command.as_deref(),
            recovery_min_apply_delay: standby.recovery_min_apply_delay.as_deref(),
            is_leader: matches!(upstream, Upstream::Remote { .. }),
        });
        let settings = params::follow_settings(&FollowInputs {
            major,
            recovery_conf: &self.effective.recovery_conf,
            configured: &self.effective.parameters,
            known_names: self.known_names.as_deref(),
            standby_cluster,
            primary_conninfo: primary_conninfo.as_deref(),
            primary_slot_name: slot.as_deref(),
        });
        (settings, passwords)
    }

    /// The slot this node uses on that server.
    pub(super) fn slot_on(&self, upstream: &Upstream) -> Option<String> {
        match upstream {
            Upstream::Member { .. } => self.effective.use_slots.then(|| self.me.slot_name()),
            Upstream::Remote { slot, .. } => slot.clone(),
            Upstream::Nobody => None,
        }
    }
}

/// Where a server is; `None`: nowhere to connect to.
pub(super) fn address_of(upstream: &Upstream) -> Option<conninfo::Upstream> {
    match upstream {
        Upstream::Member { conn_url, .. } => conninfo::Upstream::from_url(conn_url).ok(),
        Upstream::Remote {
            host: Some(host),
            port,
            ..
        } => Some(conninfo::Upstream {
            host: host.clone(),
            port: port.clone().unwrap_or_default(),
            dbname: None,
        }),
        Upstream::Remote { host: None, .. } | Upstream::Nobody => None,
    }
}
