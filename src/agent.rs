//! The agent: wires the store, the local PostgreSQL, the peers and the API together and runs the loop.
//!
//! Reading order: `run` (one turn), `observe` (the picture), `act` (the only place that changes the world), `work` (the long jobs),
//! `publish` (what others see). Nothing here decides who leads: that is `ha`.

mod act;
mod callbacks;
mod citus;
mod commands;
mod contact;
mod failsafe;
mod instance;
mod job;
mod lease;
mod live;
mod measure;
mod observe;
mod peers;
mod plan;
mod publish;
mod run;
mod serving;
mod settings;
mod slots;
mod start;
mod watchdog;
mod work;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::cluster::{Cluster, Tags};
use crate::config;
use crate::dcs::Store;
use crate::ha;
use crate::init::Guard;
use crate::node::{CommandReceiver, Counters, RestartOutcome, ViewSender};
use crate::restart::ScheduledRestart;
use crate::types::{MemberName, Moment, Role, WallTime};

pub use lease::Authority;
pub use start::start;

/// How the agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was told to stop, and PostgreSQL is stopped (or left alone in pause).
    Clean,
    /// It gave up; the log says why.
    Failure,
}

/// One node's agent.
pub struct Agent {
    me: MemberName,
    conn_url: String,
    api_url: String,
    proxy_url: Option<String>,
    tags: Tags,

    loaded: config::Loaded,
    api_settings: watch::Sender<Arc<crate::api::Settings>>,
    dynamic: config::dynamic::Dynamic,
    config_revision: Option<crate::types::Revision>,
    compared_initial_settings: bool,
    /// The role for which the settings in force were put together.
    configured_for: Option<Role>,
    settings: ha::observation::Settings,
    /// Where the loop tells systemd how it is.
    systemd: crate::systemd::Notifier,

    store: Store,
    changes: watch::Receiver<u64>,
    last_cluster: Option<Arc<Cluster>>,
    store_heard: Option<Moment>,
    store_heard_wall: WallTime,
    store_error: Option<String>,

    instance: instance::Instance,
    role: Role,
    job: job::JobSlot,
    patience: job::Patience,
    /// The plan that the running job writes.
    job_plan: Option<Arc<plan::Plan>>,
    peers: peers::Peers,
    /// The word given to a leader in failsafe mode.
    pledge: failsafe::Pledge,
    /// The members' word given to this leader.
    agreement: failsafe::Agreement,
    contact: contact::Contact,
    /// When the store last answered a question that no cache can answer: when it was asked.
    store_answered: Option<Moment>,
    /// When a standby's WAL receiver was last seen to have said something.
    standbys_heard: Option<Moment>,
    started: Moment,
    serving: serving::Serving,

    held: Option<lease::Held>,
    authority: Authority,
    guard: Guard,
    /// Init may hold a promise, perhaps one of this agent's predecessor.
    guard_armed: bool,
    watchdog: crate::watchdog::Watchdog,
    memory: ha::Memory,

    live_settings: watch::Sender<crate::postgres::Settings>,
    view: ViewSender,
    commands: CommandReceiver,
    requests: VecDeque<commands::Pending>,
    restarting: Option<oneshot::Sender<RestartOutcome>>,
    scheduled_restart: Option<ScheduledRestart>,
    reload_requested: bool,
    signals: Signals,
    stopping: bool,

    /// Since when the leader's PostgreSQL goes down.
    leader_stops_since: Option<Moment>,
    next_turn: Moment,
    /// Nothing but the timer woke the loop since the code was last given back.
    rests: bool,
    wake_at: Option<Moment>,
    /// The last reason logged, and when.
    last_line: Option<(String, Moment)>,
    /// Since when this node saw that nobody leads, or had the key without taking writes.
    leaderless_since: Option<Moment>,
    sample_error: Option<String>,
    cached_document: Option<serde_json::Map<String, serde_json::Value>>,
    /// `None`: no Citus here.
    citus: Option<citus::Citus>,
    slots: slots::Slots,
    retention: crate::postgres::slots::Retention,
    counters: Counters,
}

impl Agent {
    /// A turn no later than this.
    fn wake_by(&mut self, at: Moment) {
        self.wake_at = Some(self.wake_at.map_or(at, |sooner| sooner.min(at)));
    }
}

/// The signals an agent listens to (spec/ha.md §2.4); the others keep their default action.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

/// What a signal asks for.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Stop,
    Reload,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
        }
    }

    /// Resolves when told to stop; a reload meanwhile has nothing to reload yet.
    async fn stop(&mut self) {
        while self.next().await != Told::Stop {}
    }
}

/// How long PostgreSQL may take to stop before its lease ends: a fifth of the ttl, at least one second, at most five. Init acts
/// in the second half of it.
fn stop_margin(ttl: Duration) -> Duration {
    (ttl / 5).clamp(Duration::from_secs(1), Duration::from_secs(5))
}
