//! Triggers of bugs that other managers of PostgreSQL have had, as histories with names. Everything in them is given but small delays;
//! the rules of every run hold here, too.
//!
//! What of the list is not here, and why:
//!
//! - conflicting write between decision and write: every run, as rule S5, with the planted fault "unconditional writes";
//! - failsafe topology, promotion after failsafe (B6, B7, B8): `failsafe.rs`;
//! - watchdog outlives the stop, children survive the postmaster, signals while spawning: `tests/pid1` and `tests/postgres`, real processes;
//! - two members of one name: decided before an agent has a turn at all;
//! - timeline raised by hand while standbys are cut off, status queries that time out: `tests/stories`;
//! - logical slots after a promotion: real servers only;
//! - full disk: a promotion or start that fails, in every run at random;
//! - slow clients of the REST API: `src/api`.

use std::time::Duration;

use howdah::ha::observation::Synchronous;

use crate::faults::{Fault, Pick};
use crate::invariants;
use crate::store::Dynamic;
use crate::world::{TTL, World};

const QUORUM: Synchronous = Synchronous::Quorum {
    strict: false,
    count: 1,
};
const PRIORITY: Synchronous = Synchronous::Priority {
    strict: true,
    count: 1,
};
/// Delays differ by seed; the story does not.
const SEEDS: u64 = 3;

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl World {
    /// That time passes, whatever rule is broken in it.
    pub(crate) fn after_regardless(&mut self, time: u64) {
        let now = millis(self.now.0) - 1_000_000;
        self.run_until(now + time);
    }

    pub(crate) fn after(&mut self, time: u64) {
        self.after_regardless(time);
        let violation = self.violation.as_ref();
        assert!(
            violation.is_none(),
            "{violation:?}\n{}",
            self.trace.join("\n")
        );
    }

    pub(crate) fn suffer(&mut self, fault: Fault) {
        fault.apply(self);
    }

    pub(crate) fn writer(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|node| self.writes(*node))
    }

    pub(crate) fn did(&self, what: &str) -> bool {
        self.trace.iter().any(|line| line.contains(what))
    }

    /// Waits for a writer other than this one.
    pub(crate) fn next_writer(&mut self, old: usize, within: u64) -> usize {
        for _ in 0..within / 100 {
            self.after(100);
            if let Some(new) = self.writer().filter(|new| *new != old) {
                return new;
            }
        }
        panic!("nobody else leads\n{}", self.trace.join("\n"))
    }
}

/// A settled cluster, its story, and a good end: everybody back, nothing lost.
fn history(nodes: usize, synchronous: Synchronous, story: impl Fn(&mut World, usize)) {
    let dynamic = Dynamic {
        synchronous,
        ..Dynamic::default()
    };
    history_of(nodes, dynamic, story);
}

/// The same with other settings.
pub(crate) fn history_of(nodes: usize, dynamic: Dynamic, story: impl Fn(&mut World, usize)) {
    for seed in 0..SEEDS {
        let mut world = World::calm(seed, nodes, dynamic);
        world.after(15_000);
        let leader = world.writer().expect("a leader after the beginning");
        story(&mut world, leader);
        world.heal();
        world.after(60_000);
        invariants::at_the_end(&mut world);
        world.after(0);
    }
}

pub(crate) fn other(leader: usize, of: usize) -> usize {
    (0..of).find(|node| *node != leader).unwrap_or(leader)
}

pub(crate) fn ttl() -> u64 {
    millis(TTL)
}

pub(crate) fn number(node: usize) -> Pick {
    Pick::Number(node)
}

#[test]
fn b02_a_starved_agent_wakes_after_somebody_else_has_led() {
    history(3, Synchronous::Off, |world, leader| {
        world.suffer(Fault::Freeze {
            node: number(leader),
            millis: 2 * ttl(),
        });
        let new = world.next_writer(leader, ttl() + 5000);
        world.after(2 * ttl());
        assert_eq!(world.writer(), Some(new), "the one that woke up took over");
    });
}

#[test]
fn b03_members_lead_in_turns_while_the_other_is_dead() {
    history(2, Synchronous::Off, |world, first| {
        let second = 1 - first;
        world.suffer(Fault::KillContainer {
            node: number(first),
            back: 60_000,
        });
        world.next_writer(first, ttl() + 5000);
        world.suffer(Fault::KillContainer {
            node: number(second),
            back: 60_000,
        });
        world.boot(first, 10);
        world.after(ttl() + 8000);
    });
}

#[test]
fn b04_a_zone_is_cut_off_and_comes_back_with_old_readings() {
    history(5, QUORUM, |world, leader| {
        world.suffer(Fault::Isolate {
            node: number(leader),
            millis: 25_000,
        });
        world.suffer(Fault::CutStore {
            node: number(leader),
            millis: 25_000,
        });
        let new = world.next_writer(leader, ttl() + 5000);
        world.after(12_000);
        for node in 0..5 {
            world.stop_watch(node, 1500);
        }
        world.after(6000);
        assert_eq!(world.writer(), Some(new), "the new leader was demoted");
    });
}

#[test]
fn b05_watches_are_cancelled_without_a_word() {
    history(3, Synchronous::Off, |world, leader| {
        for node in 0..3 {
            world.suffer(Fault::Deaf {
                node: number(node),
                millis: 60_000,
            });
        }
        world.suffer(Fault::KillContainer {
            node: number(leader),
            back: 60_000,
        });
        world.next_writer(leader, ttl() + 6000);
    });
}

#[test]
fn b06_the_store_answers_with_errors_of_no_meaning() {
    history(3, Synchronous::Off, |world, leader| {
        world.suffer(Fault::Errors {
            per_mille: 1000,
            millis: 4000,
        });
        for _ in 0..60 {
            world.after(100);
            assert_eq!(
                world.writer(),
                Some(leader),
                "a healthy primary was demoted"
            );
        }
    });
}

#[test]
fn b07_the_primary_alone_loses_the_store() {
    history(3, QUORUM, |world, leader| {
        world.suffer(Fault::CutStore {
            node: number(leader),
            millis: 2 * ttl(),
        });
        world.next_writer(leader, ttl() + 5000);
    });
}

#[test]
fn b09_all_sessions_vanish_at_once() {
    history(3, Synchronous::Off, |world, leader| {
        for node in 0..3 {
            let name = world.nodes[node].name.clone();
            world.store.end_session(&name);
        }
        world.store.cluster.leader = None;
        world.notify_all();
        world.after(8000);
        assert!(world.writer().is_some(), "nobody was eligible");
        let _ = leader;
    });
}

#[test]
fn b10_a_reading_of_the_synchronous_state_is_out_of_date() {
    history(4, QUORUM, |world, leader| {
        let standby = other(leader, 4);
        for _ in 0..3 {
            world.stop_watch(leader, 1500);
            world.suffer(Fault::KillContainer {
                node: number(standby),
                back: 2500,
            });
            world.after(4000);
        }
    });
}

#[test]
fn b11_store_operations_are_refused_and_the_watch_hangs() {
    history(3, PRIORITY, |world, leader| {
        for node in 0..3 {
            world.suffer(Fault::Deaf {
                node: number(node),
                millis: 20_000,
            });
        }
        world.suffer(Fault::Errors {
            per_mille: 500,
            millis: 6000,
        });
        world.after(10_000);
        assert_eq!(
            world.writer(),
            Some(leader),
            "a healthy primary was demoted"
        );
    });
}

#[test]
fn b13_the_postmaster_is_killed_again_and_again() {
    history(3, Synchronous::Off, |world, leader| {
        for _ in 0..3 {
            world.crash_postgres(leader);
            world.after(7000);
        }
        assert!(world.writer().is_some(), "a restart loop");
    });
}

#[test]
fn b15_a_slow_start_in_synchronous_mode_without_synchronous_members() {
    history(3, PRIORITY, |world, leader| {
        for node in (0..3).filter(|node| *node != leader) {
            world.nodes[node].tags.nosync = Some(true);
        }
        world.after(8000);
        for _ in 0..4 {
            world.crash_postgres(leader);
            world.after(3000);
            let elsewhere = world.writer().is_some_and(|node| node != leader);
            assert!(!elsewhere, "a member without the commits was promoted");
        }
        for node in &mut world.nodes {
            node.tags.nosync = None;
        }
    });
}

#[test]
fn b16_standbys_come_and_go_around_a_switchover() {
    history(4, QUORUM, |world, leader| {
        let standby = other(leader, 4);
        world.suffer(Fault::KillContainer {
            node: number(standby),
            back: 600,
        });
        world.after(300);
        world.suffer(Fault::Switchover {
            candidate: None,
            leader: true,
            scheduled: None,
        });
        world.after(1500);
        world.suffer(Fault::KillContainer {
            node: number(standby),
            back: 600,
        });
        world.after(10_000);
    });
}

#[test]
fn b18_the_source_dies_during_the_rewind() {
    history(3, Synchronous::Off, |world, leader| {
        world.suffer(Fault::Isolate {
            node: number(leader),
            millis: 2 * ttl(),
        });
        world.suffer(Fault::CutStore {
            node: number(leader),
            millis: 2 * ttl(),
        });
        let new = world.next_writer(leader, ttl() + 5000);
        for _ in 0..200 {
            world.after(100);
            if world.did("Start(Rewind") {
                break;
            }
        }
        world.suffer(Fault::KillContainer {
            node: number(new),
            back: 2 * ttl(),
        });
        world.after(5000);
        assert!(
            world.nodes[leader].pg.present,
            "the directory was removed because its source died"
        );
    });
}

#[test]
fn b19_b20_nobody_is_wiped_who_has_not_diverged() {
    history(4, QUORUM, |world, leader| {
        world.suffer(Fault::Lag {
            node: number(other(leader, 4)),
            millis: 5000,
        });
        world.suffer(Fault::KillContainer {
            node: number(leader),
            back: 3 * ttl(),
        });
        world.next_writer(leader, ttl() + 6000);
        world.after(8000);
        assert!(!world.did("Start(Replace"), "a standby was wiped");
        assert!(!world.did("Start(Rewind"), "a standby was rewound");
    });
}

#[test]
fn b21_the_store_is_gone_for_a_moment() {
    history(3, Synchronous::Off, |world, leader| {
        world.suffer(Fault::Outage {
            millis: 2500,
            extends: false,
        });
        world.after(6000);
        assert_eq!(world.writer(), Some(leader));
        let standbys = world.nodes.iter().filter(|node| node.pg.streaming).count();
        assert_eq!(standbys, 2, "a standby was left without its upstream");
    });
}

#[test]
fn b24_the_store_hangs_for_long() {
    history(3, QUORUM, |world, leader| {
        world.suffer(Fault::Outage {
            millis: 3 * ttl(),
            extends: false,
        });
        world.after(ttl());
        for _ in 0..20 {
            world.after(500);
            assert_eq!(world.writer(), None, "n{leader} goes on without the store");
        }
    });
}

#[test]
fn b25_outages_in_an_order_that_leaves_an_old_standby() {
    for mode in [QUORUM, PRIORITY] {
        history(3, mode, |world, leader| {
            let (one, two) = match leader {
                0 => (1, 2),
                1 => (0, 2),
                _ => (0, 1),
            };
            world.suffer(Fault::Isolate {
                node: number(one),
                millis: 6000,
            });
            world.after(5900);
            world.suffer(Fault::Isolate {
                node: number(two),
                millis: 3 * ttl(),
            });
            world.suffer(Fault::KillContainer {
                node: number(leader),
                back: 3 * ttl(),
            });
            world.after(2 * ttl());
        });
    }
}

#[test]
fn b26_the_primarys_node_is_cut_off_from_everything() {
    history(3, Synchronous::Off, |world, leader| {
        world.suffer(Fault::Isolate {
            node: number(leader),
            millis: 3 * ttl(),
        });
        world.suffer(Fault::CutStore {
            node: number(leader),
            millis: 3 * ttl(),
        });
        world.after(ttl() + 100);
        assert!(!world.writes(leader), "it goes on accepting writes");
        world.next_writer(leader, 5000);
    });
}

#[test]
fn b27_the_leader_dies_while_a_standby_is_copied() {
    history(3, QUORUM, |world, leader| {
        let copied = other(leader, 3);
        world.suffer(Fault::Ask {
            node: number(copied),
            reinitialize: true,
            force: true,
        });
        world.after(500);
        world.suffer(Fault::KillContainer {
            node: number(leader),
            back: 2 * ttl(),
        });
        world.after(ttl() + 6000);
        assert_ne!(world.writer(), Some(copied), "a half copy leads");
    });
}

#[test]
fn b30_a_member_that_does_not_answer_does_not_hold_up_the_election() {
    history(4, Synchronous::Off, |world, leader| {
        world.suffer(Fault::Freeze {
            node: number(other(leader, 4)),
            millis: 3 * ttl(),
        });
        world.suffer(Fault::KillContainer {
            node: number(leader),
            back: 3 * ttl(),
        });
        world.next_writer(leader, ttl() + 6000);
    });
}
