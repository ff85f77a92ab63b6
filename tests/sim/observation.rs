//! What an agent of this world sees, apart from what changes: an observation of nothing in particular, to be filled in.

use std::time::Duration;

use howdah::cluster::{Member, Tags};
use howdah::ha::observation::{
    Divergence, FailsafeView, Heard, JobView, Local, Observation, Settings, StoreView, Tried,
    Upstream, WatchdogView,
};
use howdah::types::{Lsn, MemberName, Moment, PgState, PgVersion, Role, Timeline, WallTime};

use crate::postgres::Pg;
use crate::store::{Dynamic, system_id};
use crate::world::{Allowed, LOOP_WAIT, RETRY, STOP_MARGIN, TTL};

/// The store silent, no lease, no job, an empty directory.
pub(crate) fn plain(
    me: MemberName,
    now: Moment,
    dynamic: Dynamic,
    allowed: Allowed,
) -> Observation {
    Observation {
        me,
        now,
        wall: WallTime(0),
        settings: settings(dynamic, allowed),
        tags: Tags::default(),
        store: StoreView::Silent {
            since: None,
            last: None,
        },
        lease: None,
        tried: Tried::default(),
        postgres: server(&Pg::empty()),
        job: JobView::Idle,
        peers: None,
        watchdog: WatchdogView {
            armed: true,
            usable: true,
        },
        requests: Vec::new(),
        stopping: false,
        failsafe: FailsafeView::default(),
        heard: Heard::default(),
        agent_since: Moment(Duration::ZERO),
        ailment: None,
    }
}

/// The local server as one reading of it shows it.
pub(crate) fn server(pg: &Pg) -> Local {
    Local {
        directory: pg.directory(&system_id()),
        process: pg.process(),
        role: Role::Replica,
        state: PgState::Running,
        version: Some(PgVersion(150_000)),
        standby_configured: pg.standby_signal,
        position: pg.position(),
        follows: pg.follows.clone().filter(|_| pg.standby_signal),
        divergence: Divergence::Unchecked,
        replay_paused: false,
        standby_names: None,
        missing_slots: Vec::new(),
        replication: None,
    }
}

fn settings(dynamic: Dynamic, allowed: Allowed) -> Settings {
    Settings {
        ttl: TTL,
        loop_wait: LOOP_WAIT,
        retry_timeout: RETRY,
        maximum_lag_on_failover: 1_048_576,
        maximum_lag_on_syncnode: allowed.lag,
        primary_start_timeout: Duration::from_secs(6),
        primary_stop_timeout: Duration::ZERO,
        primary_answer_timeout: Duration::from_secs(120),
        primary_race_backoff: Duration::ZERO,
        check_timeline: false,
        pause: dynamic.pause,
        synchronous: dynamic.synchronous,
        failsafe: dynamic.failsafe,
        isolation_hold: false,
        max_timelines_history: 0,
        standby_cluster: dynamic.standby_cluster.then(remote),
        may_bootstrap: true,
        may_rewind: allowed.rewind,
        may_replace_diverged: allowed.replace,
        may_replace_unrewindable: allowed.replace,
        may_clone_without_leader: false,
        watchdog_required: false,
        use_slots: true,
        hand_over: allowed.hand_over,
        stop_margin: STOP_MARGIN,
    }
}

/// The remote primary of a standby cluster.
pub(crate) fn remote() -> Upstream {
    Upstream::Remote {
        host: Some("elsewhere".to_owned()),
        port: None,
        slot: None,
        restore_command: None,
    }
}

pub(crate) fn member(
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
