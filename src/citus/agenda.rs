//! The order in which the coordinator serves events (spec/ha.md §20). Pure; the time comes as an argument.
//!
//! There is one transaction at a time, and while it is open only its own group is served: changes of the table exclude each other.

use std::collections::BTreeMap;
use std::time::Duration;

use super::COORDINATOR;
use crate::types::{MemberName, Moment};

/// What happens in a worker's group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its primary is about to stop.
    BeforeDemote,
    /// A standby is about to be promoted.
    BeforePromote,
    /// Its primary accepts writes.
    AfterPromote,
}

impl Phase {
    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::BeforeDemote => "before_demote",
            Phase::BeforePromote => "before_promote",
            Phase::AfterPromote => "after_promote",
        }
    }

    /// By its name; `None`: an event of a kind that nothing is done about.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Phase> {
        [
            Phase::BeforeDemote,
            Phase::BeforePromote,
            Phase::AfterPromote,
        ]
        .into_iter()
        .find(|phase| phase.name() == name)
    }
}

/// What a worker's leader says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happens.
    pub phase: Phase,
    /// In which group.
    pub group: u32,
    /// Who says so; counts only while it is the group's leader.
    pub leader: MemberName,
    /// How long traffic may be held.
    pub timeout: Duration,
    /// How long a change waits for queries that are running.
    pub cooldown: Duration,
}

/// What is to be done now.
#[derive(Debug, PartialEq)]
pub enum Next<T> {
    /// The open transaction has had its time: traffic goes on as before.
    RollBack,
    /// Serve this event, until then at the latest.
    Serve(Event, Moment, T),
    /// Nothing before that moment.
    Nothing(Option<Moment>),
}

/// Events that wait, and the transaction that is open. `T` goes with an event and is dropped with it when its time is over.
#[derive(Debug)]
pub struct Agenda<T> {
    waiting: Vec<(Event, Moment, T)>,
    open: Option<(u32, Moment)>,
    /// Groups in which something is going on, until then.
    busy: BTreeMap<u32, Moment>,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Agenda {
            waiting: Vec::new(),
            open: None,
            busy: BTreeMap::new(),
        }
    }
}

impl<T> Agenda<T> {
    /// Takes an event in.
    pub fn add(&mut self, event: Event, ticket: T, now: Moment) {
        let until = now + event.timeout;
        self.busy.insert(event.group, until);
        self.waiting.push((event, until, ticket));
    }

    /// What comes next: the end of a transaction that has had its time, then events of its group, of the coordinator's, the oldest.
    pub fn next(&mut self, now: Moment) -> Next<T> {
        if self.open.is_some_and(|(_, until)| until <= now) {
            return Next::RollBack;
        }
        self.waiting.retain(|(_, until, _)| *until > now);
        self.busy.retain(|_, until| *until > now);
        let chosen = match self.open {
            Some((open, _)) => self.position(open),
            None => self
                .position(COORDINATOR)
                .or((!self.waiting.is_empty()).then_some(0)),
        };
        if let Some(at) = chosen {
            let (event, until, ticket) = self.waiting.remove(at);
            return Next::Serve(event, until, ticket);
        }
        Next::Nothing(self.open.map(|(_, until)| until))
    }

    fn position(&self, group: u32) -> Option<usize> {
        self.waiting
            .iter()
            .position(|(event, _, _)| event.group == group)
    }

    /// A transaction holds the traffic to this group until then.
    pub fn opened(&mut self, group: u32, until: Moment) {
        self.open = Some((group, until));
    }

    /// The group whose transaction is open.
    #[must_use]
    pub fn open(&self) -> Option<u32> {
        self.open.map(|(group, _)| group)
    }

    /// No transaction is open any more. What goes on in its group is over.
    pub fn closed(&mut self) {
        if let Some((group, _)) = self.open.take() {
            self.over(group);
        }
    }

    /// Nothing goes on in this group any more, unless an event of it waits.
    pub fn over(&mut self, group: u32) {
        if self.position(group).is_none() {
            self.busy.remove(&group);
        }
    }

    /// Whether the group may be brought up to date without an event.
    #[must_use]
    pub fn may_settle(&self, group: u32, now: Moment) -> bool {
        self.open.is_none() && self.busy.get(&group).is_none_or(|until| *until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Moment {
        Moment(Duration::from_secs(secs))
    }

    fn event(phase: Phase, group: u32) -> Event {
        Event {
            phase,
            group,
            leader: MemberName::new("w").unwrap(),
            timeout: Duration::from_secs(30),
            cooldown: Duration::from_secs(10),
        }
    }

    fn served(agenda: &mut Agenda<u32>, now: u64) -> Option<u32> {
        match agenda.next(at(now)) {
            Next::Serve(_, _, ticket) => Some(ticket),
            Next::RollBack | Next::Nothing(_) => None,
        }
    }

    #[test]
    fn the_open_group_goes_first_then_the_coordinator_then_the_oldest() {
        let mut agenda = Agenda::default();
        for (ticket, group) in [(1, 2), (2, 1), (3, 0), (4, 2)] {
            agenda.add(event(Phase::BeforeDemote, group), ticket, at(0));
        }
        assert_eq!(served(&mut agenda, 1), Some(3));
        assert_eq!(served(&mut agenda, 1), Some(1));
        agenda.opened(2, at(30));
        assert_eq!(served(&mut agenda, 1), Some(4));
        assert_eq!(agenda.next(at(1)), Next::Nothing(Some(at(30))));
        agenda.closed();
        assert_eq!(served(&mut agenda, 1), Some(2));
        assert_eq!(agenda.next(at(1)), Next::Nothing(None));
    }

    #[test]
    fn a_transaction_and_an_event_have_their_time() {
        let mut agenda = Agenda::default();
        agenda.opened(1, at(30));
        agenda.add(event(Phase::BeforeDemote, 2), 7, at(10));
        assert_eq!(agenda.next(at(29)), Next::Nothing(Some(at(30))));
        assert_eq!(agenda.next(at(30)), Next::RollBack);
        agenda.closed();
        assert_eq!(agenda.next(at(40)), Next::Nothing(None), "too late for it");
    }

    #[test]
    fn a_group_is_left_alone_until_its_event_is_over() {
        let mut agenda = Agenda::default();
        agenda.add(event(Phase::BeforePromote, 1), 1, at(0));
        assert_eq!(served(&mut agenda, 0), Some(1));
        assert!(!agenda.may_settle(1, at(29)) && agenda.may_settle(1, at(30)));
        assert!(agenda.may_settle(2, at(0)));
        agenda.opened(1, at(30));
        assert!(!agenda.may_settle(2, at(0)), "one transaction at a time");
        agenda.add(event(Phase::AfterPromote, 1), 2, at(5));
        agenda.closed();
        assert!(!agenda.may_settle(1, at(6)), "another event waits");
        assert_eq!(served(&mut agenda, 6), Some(2));
        agenda.over(1);
        assert!(agenda.may_settle(1, at(6)));
    }

    #[test]
    fn names_on_the_wire() {
        for phase in [
            Phase::BeforeDemote,
            Phase::BeforePromote,
            Phase::AfterPromote,
        ] {
            assert_eq!(Phase::by_name(phase.name()), Some(phase));
        }
        assert_eq!(Phase::by_name("after_demote"), None);
    }
}
