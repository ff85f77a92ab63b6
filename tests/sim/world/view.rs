//! What an agent sees: the observation, its settings, peers' answers.

use std::time::Duration;

use howdah::cluster::{Member, Tags};
use howdah::ha::observation::{
    FailsafeView, Heard, Local, Observation, Settings, StoreView, Synchronous, Tried, WatchdogView,
};
use howdah::types::{Lsn, MemberName, Moment, PgState, PgVersion, Role, Timeline, WallTime};

use super::{LOOP_WAIT, RETRY, STOP_MARGIN, TTL, World};
use crate::store::system_id;

impl World {
    pub(super) fn observe(&self, node: usize, store: StoreView) -> Observation {
        let n = &self.nodes[node];
        let Some(agent) = n.agent.as_ref() else {
            unreachable!("an agent observes")
        };
        Observation {
            me: n.name.clone(),
            now: self.now,
            wall: WallTime(0),
            settings: self.settings(agent.pause),
            tags: n.tags.clone(),
            store,
            lease: agent.lease(),
            tried: Tried::default(),
            postgres: Local {
                directory: n.pg.directory(&system_id()),
                process: n.pg.process(),
                role: agent.role,
                state: PgState::Running,
                version: Some(PgVersion(150_000)),
                standby_configured: n.pg.standby_signal,
                position: n.pg.position(),
                follows: if n.pg.standby_signal {
                    n.pg.follows.clone()
                } else {
                    None
                },
                divergence: agent.divergence.clone(),
                replay_paused: false,
                standby_names: None,
                missing_slots: Vec::new(),
                replication: None,
            },
            job: agent.job_view(),
            peers: None,
            watchdog: WatchdogView {
                armed: true,
                usable: true,
            },
            requests: agent.requests.clone(),
            stopping: agent.stopping,
            failsafe: FailsafeView::default(),
            heard: Heard::default(),
            agent_since: Moment(Duration::ZERO),
            ailment: None,
        }
    }

    pub(super) fn settings(&self, pause: bool) -> Settings {
        Settings {
            ttl: TTL,
            loop_wait: LOOP_WAIT,
            retry_timeout: RETRY,
            maximum_lag_on_failover: 1_048_576,
            maximum_lag_on_syncnode: None,
            primary_start_timeout: Duration::from_secs(6),
            primary_stop_timeout: Duration::ZERO,
            primary_answer_timeout: Duration::from_secs(120),
            primary_race_backoff: Duration::ZERO,
            check_timeline: false,
            pause,
            synchronous: Synchronous::Off,
            failsafe: false,
            isolation_hold: false,
            max_timelines_history: 0,
            standby_cluster: None,
            may_bootstrap: true,
            may_rewind: self.allowed.rewind,
            may_replace_diverged: self.allowed.replace,
            may_replace_unrewindable: self.allowed.replace,
            may_clone_without_leader: false,
            watchdog_required: false,
            use_slots: true,
            hand_over: self.allowed.hand_over,
            stop_margin: STOP_MARGIN,
        }
    }
}

pub(super) fn member(
    name: &MemberName,
    role: Role,
    state: PgState,
    timeline: Option<Timeline>,
    tags: Tags,
    lsn: Lsn,
) -> Member {
    Member {
        name: name.clone(),
        session: None,
        conn_url: Some(format!("postgres://{name}:5432/postgres")),
        api_url: Some(format!("http://{name}:8008/patroni")),
        state: Some(state),
        role: Some(role),
        version: None,
        proxy_url: None,
        checkpoint_after_promote: true,
        tags,
        pending_restart: None,
        xlog_location: Some(lsn),
        replay_lsn: None,
        receive_lsn: None,
        replication_state: None,
        timeline,
        scheduled_restart: None,
        pause: false,
        cannot_serve: None,
    }
}
