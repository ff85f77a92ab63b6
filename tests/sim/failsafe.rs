//! Failsafe mode as histories with names, those of the bug catalogue included, and the planted faults for which a certain order of events
//! is needed.

use crate::catalogue::{history_of, number, other, ttl};
use crate::faults::Fault;
use crate::planted;
use crate::store::Dynamic;
use crate::world::{Core, World};

const FAILSAFE: Dynamic = Dynamic {
    failsafe: true,
    ..Dynamic::PLAIN
};

impl World {
    /// It goes on as the only writer for so long.
    fn goes_on(&mut self, leader: usize, millis: u64) {
        for _ in 0..millis / 100 {
            self.after(100);
            assert_eq!(
                self.writer(),
                Some(leader),
                "{}",
                self.trace[self.trace.len().saturating_sub(40)..].join("\n")
            );
        }
    }
}

#[test]
fn b06_failsafe_mode_begins_with_any_error_of_the_store() {
    history_of(3, FAILSAFE, |world, leader| {
        world.suffer(Fault::Errors {
            per_mille: 1000,
            millis: 3 * ttl(),
        });
        world.goes_on(leader, 3 * ttl() + 5000);
    });
}

#[test]
fn b07_the_primary_alone_loses_the_store_and_its_member_key() {
    history_of(3, FAILSAFE, |world, leader| {
        world.suffer(Fault::CutStore {
            node: number(leader),
            millis: 3 * ttl(),
        });
        world.goes_on(leader, 3 * ttl() + 5000);
        assert!(
            world.did("which leads in failsafe mode"),
            "no word was given"
        );
    });
}

#[test]
fn b08_a_promotion_shortly_after_failsafe_mode_lasts() {
    history_of(3, FAILSAFE, |world, leader| {
        world.suffer(Fault::CutStore {
            node: number(leader),
            millis: 4 * ttl(),
        });
        world.goes_on(leader, 2 * ttl());
        world.suffer(Fault::KillContainer {
            node: number(leader),
            back: 5000,
        });
        let new = world.next_writer(leader, 2 * ttl() + 6000);
        world.goes_on(new, 2 * ttl());
    });
}

#[test]
fn a_store_that_is_away_for_everybody_stops_nobody() {
    history_of(5, FAILSAFE, |world, leader| {
        world.suffer(Fault::Outage {
            millis: 4 * ttl(),
            extends: false,
        });
        world.goes_on(leader, 4 * ttl() + 5000);
        let standbys = world.nodes.iter().filter(|node| node.pg.streaming).count();
        assert_eq!(standbys, 4, "a standby was left without its upstream");
    });
}

#[test]
fn without_one_members_word_the_leader_stops_and_another_follows() {
    history_of(4, FAILSAFE, |world, leader| {
        world.suffer(Fault::Freeze {
            node: number(other(leader, 4)),
            millis: 4 * ttl(),
        });
        world.suffer(Fault::CutStore {
            node: number(leader),
            millis: 4 * ttl(),
        });
        world.after(ttl());
        assert_eq!(world.writer(), None, "it goes on without a member's word");
        world.next_writer(leader, ttl() + 6000);
    });
}

/// The history in which this core, and not the real one, lets two nodes write.
fn only_breaks(core: Core, story: impl Fn(&mut World, usize)) {
    for (under_test, breaks) in [(howdah::ha::decide as Core, false), (core, true)] {
        let mut world = World::calm(1, 4, FAILSAFE);
        world.after(15_000);
        let leader = world.writer().expect("a leader after the beginning");
        (world.core, world.core_alone) = (under_test, true);
        story(&mut world, leader);
        world.run_until(100_000);
        let rule = world.violation.as_ref().map(|violation| violation.rule);
        let expected = breaks.then_some("S1 one writer");
        assert_eq!(rule, expected, "{}", world.trace.join("\n"));
    }
}

fn cut_from_store(world: &mut World, leader: usize) {
    world.suffer(Fault::CutStore {
        node: number(leader),
        millis: 60_000,
    });
}

/// It reaches the store and nobody else, so that nobody objects to it.
fn alone_with_the_store(world: &mut World, member: usize) {
    world.suffer(Fault::Isolate {
        node: number(member),
        millis: 60_000,
    });
}

#[test]
fn planted_race_of_one_that_was_not_asked_is_found() {
    only_breaks(planted::races_unasked, |world, leader| {
        let absent = other(leader, 4);
        world.suffer(Fault::KillContainer {
            node: number(absent),
            back: 2 * ttl(),
        });
        world.after_regardless(2 * ttl() - 500);
        cut_from_store(world, leader);
        alone_with_the_store(world, absent);
    });
}

#[test]
fn planted_broken_word_is_found() {
    only_breaks(planted::breaks_its_word, |world, leader| {
        cut_from_store(world, leader);
        world.after_regardless(ttl() + 2000);
        alone_with_the_store(world, other(leader, 4));
    });
}
