//! What operators rely on PID 1 for.

use std::fs;
use std::time::Duration;

use howdah::clock;
use rustix::process::Signal;

use crate::stage::{Kind, Stage, wait_until};

type Story = fn(Kind);

pub(crate) const ALL: [(&str, Story); 18] = [
    (
        "the_agents_status_is_the_containers",
        the_agents_status_is_the_containers,
    ),
    (
        "orphans_are_reaped_and_reported",
        orphans_are_reaped_and_reported,
    ),
    ("signals_reach_the_agent", signals_reach_the_agent),
    (
        "a_stopped_agent_is_woken_to_stop",
        a_stopped_agent_is_woken_to_stop,
    ),
    (
        "a_killed_agent_is_started_again",
        a_killed_agent_is_started_again,
    ),
    (
        "a_failure_that_leaves_postgres_running_is_a_crash",
        a_failure_that_leaves_postgres_running_is_a_crash,
    ),
    ("giving_up_stops_postgres", giving_up_stops_postgres),
    (
        "a_failure_without_postgres_is_final",
        a_failure_without_postgres_is_final,
    ),
    (
        "postgres_left_over_at_a_normal_end",
        postgres_left_over_at_a_normal_end,
    ),
    (
        "the_guard_fires_on_a_frozen_agent",
        the_guard_fires_on_a_frozen_agent,
    ),
    (
        "the_guard_fires_on_a_slow_agent",
        the_guard_fires_on_a_slow_agent,
    ),
    (
        "the_guard_kills_what_does_not_listen",
        the_guard_kills_what_does_not_listen,
    ),
    (
        "the_guard_finds_an_unannounced_postmaster",
        the_guard_finds_an_unannounced_postmaster,
    ),
    (
        "the_watchdog_of_a_frozen_agent_is_disarmed",
        the_watchdog_of_a_frozen_agent_is_disarmed,
    ),
    (
        "the_watchdog_of_a_dead_agent_counts_for_the_next",
        the_watchdog_of_a_dead_agent_counts_for_the_next,
    ),
    ("released_means_released", released_means_released),
    ("renewing_keeps_postgres", renewing_keeps_postgres),
    (
        "a_fence_without_recovery_shows_in_the_status",
        a_fence_without_recovery_shows_in_the_status,
    ),
];

fn the_agents_status_is_the_containers(kind: Kind) {
    for status in ["0", "64", "1", "2"] {
        let mut stage = Stage::start(kind, &["exit", status]);
        stage.ends_with(status.parse().unwrap());
        assert_eq!(
            fs::read_to_string(stage.path("starts"))
                .unwrap()
                .lines()
                .count(),
            1
        );
    }
}

fn orphans_are_reaped_and_reported(kind: Kind) {
    let mut stage = Stage::start(kind, &["orphan"]);
    stage.await_log("exited with status 3");
    stage.await_log("was killed by signal 9");
    stage.signal(Signal::TERM);
    stage.ends_with(0);
}

fn signals_reach_the_agent(kind: Kind) {
    let mut stage = Stage::start(kind, &["signals"]);
    stage.await_file("ready");
    let mut expected = String::new();
    for signal in [
        Signal::HUP,
        Signal::INT,
        Signal::USR1,
        Signal::USR2,
        Signal::TERM,
    ] {
        stage.signal(signal);
        expected.push_str(&format!("{}\n", signal.as_raw()));
        wait_until("the agent notes the signal", 10, || {
            fs::read_to_string(stage.path("signals")).is_ok_and(|noted| noted == expected)
        });
    }
    stage.ends_with(0);
}

fn a_stopped_agent_is_woken_to_stop(kind: Kind) {
    let mut stage = Stage::start(kind, &["signals"]);
    stage.await_file("ready");
    stage.signal_agent(Signal::STOP);
    stage.signal(Signal::TERM);
    stage.ends_with(0);
}

fn a_killed_agent_is_started_again(kind: Kind) {
    let mut stage = Stage::start(kind, &["kill-once"]);
    stage.await_file("ready");
    stage.await_log("PostgreSQL keeps running");
    assert!(stage.postgres_runs());
    stage.signal(Signal::TERM);
    stage.ends_with(0);
}

fn a_failure_that_leaves_postgres_running_is_a_crash(kind: Kind) {
    let mut stage = Stage::start(kind, &["fail-once", "1"]);
    stage.await_file("ready");
    assert!(stage.postgres_runs());
    stage.signal(Signal::TERM);
    stage.ends_with(0);
}

fn giving_up_stops_postgres(kind: Kind) {
    let mut stage = Stage::start(kind, &["kill-always"]);
    stage.ends_with(137);
    assert_eq!(
        fs::read_to_string(stage.path("starts"))
            .unwrap()
            .lines()
            .count(),
        5
    );
    stage.await_log("giving up");
    stage.await_log("stopping it fast");
    assert!(!stage.postgres_runs());
}

fn a_failure_without_postgres_is_final(kind: Kind) {
    let mut stage = Stage::start(kind, &["exit", "3"]);
    stage.ends_with(3);
    assert!(!stage.log().contains("again"));
}

fn postgres_left_over_at_a_normal_end(kind: Kind) {
    let mut stage = Stage::start(kind, &["end-with-postgres"]);
    stage.ends_with(0);
    // In pause the agent leaves PostgreSQL alone; only a container takes it along, and then gently.
    assert_eq!(stage.postgres_runs(), kind == Kind::Subreaper);
    assert_eq!(
        stage.log().contains("stopping it fast"),
        kind == Kind::Namespace
    );
}

fn the_guard_fires_on_a_frozen_agent(kind: Kind) {
    let mut stage = Stage::start(kind, &["promise", "2000"]);
    let begin = clock::now();
    stage.await_file("ready");
    stage.signal_agent(Signal::STOP);
    assert!(stage.postgres_runs(), "the guard waits for the deadline");
    wait_until("PostgreSQL is stopped", 10, || !stage.postgres_runs());
    stage.await_log("PostgreSQL is stopped, because");
    assert!(
        clock::now().since(begin) > Duration::from_millis(1000),
        "not long before the deadline"
    );
    // The agent wakes up, and all goes on.
    stage.signal_agent(Signal::CONT);
    stage.signal(Signal::TERM);
    stage.ends_with(0);
}

fn the_guard_fires_on_a_slow_agent(kind: Kind) {
    let mut stage = Stage::start(kind, &["promise", "1500"]);
    stage.await_file("ready");
    let promised = clock::now() + Duration::from_millis(1500);
    wait_until("PostgreSQL is stopped", 10, || !stage.postgres_runs());
    assert!(clock::now() < promised, "stopped before the deadline");
    stage.signal(Signal::TERM);
    stage.ends_with(0);
}

fn the_guard_kills_what_does_not_listen(kind: Kind) {
    let mut stage = Stage::start(kind, &["promise-stubborn", "1500"]);
    stage.await_file("ready");
    let promised = clock::now() + Duration::from_millis(1500);
    wait_until("PostgreSQL and its children are gone", 10, || {
        !stage.postgres_runs()
    });
    assert!(clock::now() < promised, "gone before the deadline");
    stage.signal(Signal::TERM);
    stage.ends_with(0);
}

fn the_guard_finds_an_unannounced_postmaster(kind: Kind) {
    let mut stage = Stage::start(kind, &["promise-unannounced", "1000"]);
    wait_until("PostgreSQL is stopped", 10, || {
        stage.log().contains("PostgreSQL is stopped, because")
    });
    assert!(!stage.postgres_runs());
    stage.signal(Signal::TERM);
    stage.ends_with(0);
}

fn the_watchdog_of_a_frozen_agent_is_disarmed(kind: Kind) {
    let mut stage = Stage::start(kind, &["watchdog", "1500"]);
    stage.await_file("ready");
    stage.signal_agent(Signal::STOP);
    stage.await_log("PostgreSQL is stopped, because");
    // The frozen agent holds the device.
    stage.await_log("killing the agent");
    stage.await_log("disarmed the watchdog");
    assert!(!stage.postgres_runs());
    assert_eq!(fs::read_to_string(stage.path("device")).unwrap(), "V");
    stage.await_file("left");
    assert_eq!(fs::read_to_string(stage.path("left")).unwrap(), "nothing\n");
    stage.signal(Signal::TERM);
    stage.ends_with(0);
}

fn the_watchdog_of_a_dead_agent_counts_for_the_next(kind: Kind) {
    let mut stage = Stage::start(kind, &["watchdog", "60000"]);
    stage.await_file("ready");
    stage.signal_agent(Signal::KILL);
    stage.await_file("left");
    let device = stage.path("device");
    assert_eq!(
        fs::read_to_string(stage.path("left")).unwrap(),
        format!("{}\n", device.display())
    );
    assert!(stage.postgres_runs());
    assert_eq!(
        fs::read_to_string(&device).unwrap(),
        "",
        "PostgreSQL may write: nobody disarms it"
    );
    stage.signal(Signal::TERM);
    stage.ends_with(0);
    // Only where PostgreSQL is gone with PID 1.
    let stopped = !stage.postgres_runs();
    assert_eq!(stopped, kind == Kind::Namespace);
    let written = fs::read_to_string(&device).unwrap();
    assert_eq!(written, if stopped { "V" } else { "" });
}

fn released_means_released(kind: Kind) {
    let mut stage = Stage::start(kind, &["release", "800"]);
    stage.await_file("ready");
    let past = clock::now() + Duration::from_millis(1200);
    wait_until("the deadline is past", 10, || {
        assert!(stage.postgres_runs());
        clock::now() > past
    });
    stage.signal(Signal::TERM);
    stage.ends_with(0);
}

fn renewing_keeps_postgres(kind: Kind) {
    let stage = Stage::start(kind, &["renew", "1000"]);
    stage.await_file("ready");
    let past = clock::now() + Duration::from_millis(1500);
    wait_until("one and a half leases are past", 10, || {
        assert!(stage.postgres_runs());
        clock::now() > past
    });
    // A dead agent renews nothing: its last promise stands, and the next incarnation comes at once to keep it.
    stage.signal_agent(Signal::KILL);
    stage.await_log("starting it again in 0 ms");
    let past = clock::now() + Duration::from_millis(1500);
    wait_until("PostgreSQL survives the restart", 10, || {
        clock::now() > past
    });
    assert!(stage.postgres_runs());
}

fn a_fence_without_recovery_shows_in_the_status(kind: Kind) {
    let mut stage = Stage::start(kind, &["fenced", "800"]);
    stage.ends_with(howdah::init::EXIT_FENCED.into());
    assert!(!stage.postgres_runs());
}
