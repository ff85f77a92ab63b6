//! From a checked configuration to a running agent: passwords, API, store, PostgreSQL, in that order.
//!
//! The API port opens before the store is reachable, and says so.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, watch};

use crate::api;
use crate::clock;
use crate::config::dynamic::Dynamic;
use crate::config::effective::Effective;
use crate::config::{self, Config, Environment as _, Loaded};
use crate::dcs::{self, Freshness, Identity, Store};
use crate::init::Guard;
use crate::node::{Counters, NodeView};
use crate::peers::Client;
use crate::restart::ScheduledRestart;
use crate::types::{Role, WallTime};

use super::instance::Instance;
use super::job::JobSlot;
use super::lease::Authority;
use super::peers::Peers;
use super::plan::Plan;
use super::serving::{Checks, Serving};
use super::{Agent, End};

/// Where the cached dynamic configuration lies in the data directory (spec/configuration.md §2.3).
pub(super) const DYNAMIC_CACHE: &str = "patroni.dynamic.json";

/// Runs one node until its end. Must be called inside a `tokio::task::LocalSet`.
///
/// # Errors
/// What keeps it from starting: passwords, port, certificate, store settings, a name that is taken.
pub async fn start(mut loaded: Loaded, guard: Guard) -> anyhow::Result<End> {
    let origin = config::secrets::complete(&mut loaded.config)?;
    tracing::info!("{origin}");
    let config = loaded.config.clone();
    if let Err(error) = guard.data_dir(&config.postgresql.data_dir) {
        tracing::warn!("{error}");
    }

    // From here on to the end: a signal must not fall between two listeners.
    let mut signals = super::Signals::new().context("listen for signals")?;
    let now = clock::now();
    let view = NodeView::starting(config.name.clone(), config.scope.clone(), now);
    let instance_id = view.instance.clone();
    let (view, views) = watch::channel(Arc::new(view));
    let (sender, commands) = mpsc::channel(64);
    let (api_settings, api_watch) = watch::channel(Arc::new(api::Settings::from_config(&config)));
    let slot: api::StoreSlot = Arc::new(OnceLock::new());
    let bound = api::bind(api_watch, views, sender, Arc::clone(&slot)).await?;
    let own_api = bound.local_addr().context("the address of the REST API")?;
    tokio::spawn(async move {
        if let Err(error) = bound.serve().await {
            tracing::error!("the REST API ended: {error:#}");
        }
    });

    let initial =
        cached_dynamic(&config.postgresql.data_dir).unwrap_or_else(|| config.bootstrap.dcs.clone());
    let dynamic = match Dynamic::read(&initial) {
        Ok((dynamic, warnings)) => {
            for warning in warnings {
                tracing::warn!("initial dynamic configuration: {warning}");
            }
            dynamic
        }
        Err(error) => {
            tracing::error!("{error}");
            Dynamic::default()
        }
    };
    let identity = Identity {
        name: Some(config.name.clone()),
        base: config.base_path(),
        group: config.citus.as_ref().map(|citus| citus.group),
        ttl: dynamic.ttl,
        retry_timeout: dynamic.retry_timeout,
    };
    let store = tokio::select! {
        store = dcs::open(&config, identity) => store?,
        () = signals.stop() => return Ok(End::Clean),
    };
    if slot.set(Arc::clone(&store)).is_err() {
        anyhow::bail!("the store was opened twice");
    }
    let client = Client::new(&api::Settings::from_config(&config).client)
        .context("load the certificates of the REST client (ctl section)")?;
    let name = refuse_a_taken_name(&config, &store, &client, &instance_id);
    let scheduled_restart = tokio::select! {
        free = name => free?.and_then(|document| {
            let restart = ScheduledRestart::read(document.clone());
            if restart.is_none() {
                tracing::warn!(?document, "a scheduled restart that was published cannot be understood and is dropped");
            }
            restart
        }),
        () = signals.stop() => {
            tracing::info!("asked to stop while waiting for the store");
            return Ok(End::Clean);
        }
    };

    let (effective, warnings) = Effective::build(&config, &dynamic, None);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let plan = Plan {
        me: config.name.clone(),
        scope: config.scope.clone(),
        effective: effective.clone(),
        standby_cluster: dynamic.standby_cluster.clone(),
        bootstrap: config.bootstrap.clone(),
        known_names: None,
        synchronous: dynamic.synchronous_mode != config::dynamic::SynchronousMode::Off,
        standby_names: None,
        feedback: false,
        citus: super::plan::Citus::of(&config),
    };
    let instance = tokio::select! {
        instance = Instance::open(plan) => instance?,
        () = signals.stop() => {
            tracing::info!("asked to stop before PostgreSQL could be looked at");
            return Ok(End::Clean);
        }
    };
    let settings =
        super::settings::core_settings(&config, &dynamic, &effective, instance.rewindable());
    let checks = Checks::of(&dynamic, &config.postgresql.data_dir);
    let (live_settings, live_watch) = watch::channel(effective.settings.clone());
    let live = super::live::start(live_watch);
    view.send_modify(|view| {
        let mut next = (**view).clone();
        next.live = Some(live);
        *view = Arc::new(next);
    });
    let watchdog = crate::watchdog::Watchdog::new(
        Box::new(crate::watchdog::Linux),
        super::watchdog::rules(&config.watchdog, dynamic.ttl, dynamic.loop_wait),
        crate::init::watchdog_left_armed(),
    );
    let changes = store.changes();
    let leaving = Arc::clone(&store);
    let pledge = super::failsafe::Pledge::default();
    let commands = super::failsafe::clerk(commands, pledge.clone(), view.subscribe());
    let citus = config.citus.as_ref().map(|citus| {
        let (views, settings) = (view.subscribe(), live_settings.subscribe());
        super::citus::Citus::start(citus, &config.name, &store, &client, views, settings)
    });
    let agent = Agent {
        me: config.name.clone(),
        conn_url: config.postgresql.conn_url(),
        api_url: config.api_url(),
        proxy_url: config.postgresql.proxy_url(),
        tags: config.tags.clone(),
        systemd: crate::systemd::Notifier::new(
            config::ProcessEnvironment
                .variables()
                .remove("NOTIFY_SOCKET"),
        ),
        loaded,
        api_settings,
        dynamic,
        config_revision: None,
        compared_initial_settings: false,
        configured_for: None,
        settings,
        store,
        changes,
        last_cluster: None,
        store_heard: None,
        store_heard_wall: WallTime(0),
        store_error: None,
        instance,
        role: Role::Uninitialized,
        job: JobSlot::new(),
        patience: super::job::Patience::default(),
        job_plan: None,
        contact: super::contact::Contact::new(client.clone()),
        peers: Peers::new(client),
        pledge,
        agreement: super::failsafe::Agreement::default(),
        store_answered: None,
        standbys_heard: None,
        started: now,
        serving: Serving::start(own_api, checks),
        held: None,
        authority: Authority::new(),
        guard,
        guard_armed: true,
        watchdog,
        live_settings,
        memory: crate::ha::Memory::default(),
        view,
        commands,
        requests: VecDeque::new(),
        restarting: None,
        scheduled_restart,
        reload_requested: false,
        signals,
        stopping: false,
        leader_stops_since: None,
        next_turn: now,
        rests: false,
        wake_at: None,
        last_line: None,
        leaderless_since: None,
        sample_error: None,
        cached_document: None,
        citus,
        slots: super::slots::Slots::default(),
        retention: crate::postgres::slots::Retention::default(),
        counters: Counters::default(),
    };
    let end = agent.run().await;
    leaving.leave().await;
    Ok(end)
}

/// Two daemons of one name would share the leader key: if a member with my name answers, this one does not start
/// (spec/ha.md §2.1). Waits for the store, which may come up after this node. Returns the restart that the member of this name has
/// published as scheduled: it outlives the agent that took it (spec/ha.md §24).
async fn refuse_a_taken_name(
    config: &Config,
    store: &Store,
    client: &Client,
    instance: &str,
) -> anyhow::Result<Option<Map<String, Value>>> {
    let mut changes = store.changes();
    let mut said = None;
    loop {
        match store.load(Freshness::Latest).await {
            Ok(cluster) => {
                let namesake = cluster.members.get(&config.name);
                if let Some(api_url) = namesake.and_then(|member| member.api_url.clone())
                    && client.is_name_taken(&api_url, instance).await
                {
                    anyhow::bail!(
                        "a member named {:?} of cluster {:?} is already running at {api_url}; give this node another PATRONI_NAME",
                        config.name.as_str(),
                        config.scope
                    );
                }
                return Ok(namesake.and_then(|member| member.scheduled_restart.clone()));
            }
            Err(error) => {
                let line = error.to_string();
                if said.as_ref() != Some(&line) {
                    tracing::warn!("waiting for the store: {line}");
                    said = Some(line);
                }
                tokio::select! {
                    _ = changes.changed() => {}
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                }
            }
        }
    }
}

fn cached_dynamic(data_dir: &Path) -> Option<serde_json::Map<String, serde_json::Value>> {
    let path = data_dir.join(DYNAMIC_CACHE);
    let text = std::fs::read_to_string(&path).ok()?;
    match serde_json::from_str(&text) {
        Ok(serde_json::Value::Object(map)) => Some(map),
        _ => {
            tracing::warn!("{} is unreadable and is ignored", path.display());
            None
        }
    }
}
