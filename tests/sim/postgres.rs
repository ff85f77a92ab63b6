//! A model of PostgreSQL: histories of timelines, positions, start, stop, promotion, streaming. No bytes, only what a decision can
//! get wrong.
//!
//! Every opened timeline carries a *branch*, unique in the world. PostgreSQL and pg_rewind see only its number; the invariants
//! see the branch.

use howdah::ha::observation::{Control, ControlState, Directory, Position, Process, Upstream};
use howdah::types::{Lsn, Moment, ReplicationState, SystemId, Timeline};

/// One timeline of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) timeline: u32,
    pub(crate) start: u64,
    pub(crate) branch: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    Down { crashed: bool },
    Starting { since: Moment },
    Up,
}

#[derive(Debug, Clone)]
pub(crate) struct Pg {
    pub(crate) present: bool,
    pub(crate) history: Vec<Segment>,
    pub(crate) end: u64,
    pub(crate) control: ControlState,
    pub(crate) checkpoint: u64,
    pub(crate) backup_label: bool,
    pub(crate) standby_signal: bool,
    pub(crate) follows: Option<Upstream>,
    pub(crate) server: Server,
    pub(crate) recovery: bool,
    pub(crate) streaming: bool,
    /// It was told to leave recovery: nothing but its end keeps it from opening a timeline.
    pub(crate) promoting: bool,
    /// Clients may commit (a stop ends it before the process ends).
    pub(crate) open: bool,
    /// Created by initdb and never led yet: no client knows it.
    pub(crate) newborn: bool,
    /// It was a primary, and has neither been copied or rewound since nor received as a prefix of its source.
    pub(crate) was_primary: bool,
    /// `synchronous_standby_names` in the files.
    pub(crate) names_on_disk: String,
    /// The same, as the running server has it.
    pub(crate) names: String,
    /// The value before, by which some of its processes may still go until then.
    pub(crate) names_before: Option<(String, Moment)>,
    /// Up to where clients were told that their commits are done.
    pub(crate) told: u64,
    /// Events of an older generation are void.
    pub(crate) generation: u64,
}

impl Pg {
    pub(crate) fn empty() -> Self {
        Pg {
            present: false,
            history: Vec::new(),
            end: 0,
            control: ControlState::ShutDown,
            checkpoint: 0,
            backup_label: false,
            standby_signal: false,
            follows: None,
            server: Server::Down { crashed: false },
            recovery: false,
            streaming: false,
            promoting: false,
            open: false,
            newborn: false,
            was_primary: false,
            names_on_disk: String::new(),
            names: String::new(),
            names_before: None,
            told: 0,
            generation: 0,
        }
    }

    pub(crate) fn initdb(&mut self, branch: u64) {
        let generation = self.generation + 1;
        *self = Pg {
            present: true,
            history: vec![Segment {
                timeline: 1,
                start: 0,
                branch,
            }],
            end: 100,
            checkpoint: 100,
            control: ControlState::InProduction,
            server: Server::Up,
            open: true,
            newborn: true,
            was_primary: true,
            generation,
            ..Pg::empty()
        };
    }

    /// A base backup of `source`, configured as its standby.
    pub(crate) fn copy_of(&mut self, source: &Pg, upstream: Upstream) {
        let generation = self.generation + 1;
        *self = Pg {
            present: true,
            history: source.history.clone(),
            end: source.end,
            checkpoint: source.checkpoint,
            control: ControlState::InProduction,
            backup_label: true,
            standby_signal: true,
            follows: Some(upstream),
            generation,
            ..Pg::empty()
        };
    }

    pub(crate) fn timeline(&self) -> u32 {
        self.history.last().map_or(0, |segment| segment.timeline)
    }

    pub(crate) fn accepts_writes(&self) -> bool {
        self.server == Server::Up && !self.recovery && self.open
    }

    /// The process ends without a shutdown checkpoint.
    pub(crate) fn kill(&mut self, crashed: bool) {
        self.generation += 1;
        if self.server == Server::Up {
            self.control = if self.recovery {
                ControlState::InArchiveRecovery
            } else {
                ControlState::InProduction
            };
        }
        self.server = Server::Down { crashed };
        self.streaming = false;
        self.promoting = false;
        self.open = false;
    }

    /// The process ends after its shutdown checkpoint.
    pub(crate) fn shut_down(&mut self) {
        self.generation += 1;
        self.control = if self.recovery {
            ControlState::ShutDownInRecovery
        } else {
            ControlState::ShutDown
        };
        self.checkpoint = self.end;
        self.server = Server::Down { crashed: false };
        self.streaming = false;
        self.promoting = false;
        self.open = false;
    }

    pub(crate) fn begin_start(&mut self, now: Moment) {
        self.generation += 1;
        self.names.clone_from(&self.names_on_disk);
        self.names_before = None;
        self.server = Server::Starting { since: now };
        self.recovery = self.standby_signal;
    }

    pub(crate) fn ready(&mut self) {
        self.server = Server::Up;
        self.recovery = self.standby_signal;
        self.open = !self.recovery;
        self.backup_label = false;
        self.checkpoint = self.end;
        self.control = if self.recovery {
            ControlState::InArchiveRecovery
        } else {
            ControlState::InProduction
        };
    }

    pub(crate) fn open_timeline(&mut self, branch: u64) {
        let timeline = self.timeline() + 1;
        self.history.push(Segment {
            timeline,
            start: self.end,
            branch,
        });
        self.recovery = false;
        self.was_primary = true;
        self.standby_signal = false;
        self.follows = None;
        self.streaming = false;
        self.promoting = false;
        self.open = true;
        self.checkpoint = self.end;
        self.control = ControlState::InProduction;
    }

    /// Both have a timeline of the same number, opened by different nodes.
    pub(crate) fn has_twin_timeline(&self, other: &Pg) -> bool {
        self.history.iter().any(|mine| {
            let is_twin =
                |theirs: &Segment| theirs.timeline == mine.timeline && theirs.branch != mine.branch;
            other.history.iter().any(is_twin)
        })
    }

    /// The truth: everything here is also there.
    pub(crate) fn is_prefix_of(&self, other: &Pg) -> bool {
        other.has(&self.history, self.end)
    }

    /// The truth: everything of this history up to this position is here.
    pub(crate) fn has(&self, history: &[Segment], end: u64) -> bool {
        let limit = self
            .history
            .get(history.len())
            .map_or(self.end, |next| next.start);
        self.history.starts_with(history) && end <= limit
    }

    /// The server's first process has read the files again; the others follow until then.
    pub(crate) fn take_up_names(&mut self, until: Moment) {
        if self.names != self.names_on_disk {
            let before = std::mem::replace(&mut self.names, self.names_on_disk.clone());
            self.names_before = Some((before, until));
        }
    }

    /// What PostgreSQL can tell: it knows timelines by number. On another history of the same number it stops at the first record
    /// that does not link to the one before.
    pub(crate) fn may_stream_from(&self, other: &Pg) -> bool {
        let Some(at) = other
            .history
            .iter()
            .position(|segment| segment.timeline == self.timeline())
        else {
            return false;
        };
        self.end
            <= other
                .history
                .get(at + 1)
                .map_or(other.end, |next| next.start)
    }

    /// Receives up to `end` of `other`.
    pub(crate) fn receive(&mut self, other: &Pg, end: u64) {
        self.receive_history(&other.history, end);
    }

    /// Receives up to `end` of this history.
    pub(crate) fn receive_history(&mut self, history: &[Segment], end: u64) {
        self.end = end.max(self.end);
        let reached = history
            .iter()
            .take_while(|segment| segment.start <= self.end)
            .count();
        if self.history.len() != reached {
            self.history = history[..reached].to_vec();
        }
    }

    /// pg_rewind's result: a copy of the source's state. It compares timelines by number and does nothing when they are equal.
    pub(crate) fn rewind_to(&mut self, source: &Pg, upstream: Upstream) {
        if self.timeline() != source.timeline() {
            self.history.clone_from(&source.history);
            self.end = source.end;
            self.checkpoint = source.end;
            self.was_primary = false;
        }
        self.backup_label = true;
        self.standby_signal = true;
        self.follows = Some(upstream);
        self.control = ControlState::InArchiveRecovery;
    }

    pub(crate) fn directory(&self, system_id: &SystemId) -> Directory {
        if !self.present {
            return Directory::Empty;
        }
        Directory::Present {
            system_id: Some(system_id.clone()),
            control: Some(Control {
                state: self.control,
                timeline: Timeline(self.timeline()),
                checkpoint: Lsn(self.checkpoint),
                backup_label: self.backup_label,
            }),
        }
    }

    pub(crate) fn process(&self) -> Process {
        match self.server {
            Server::Down { crashed } => Process::Down { crashed },
            Server::Starting { since } => Process::Starting { since },
            Server::Up => Process::Up,
        }
    }

    pub(crate) fn position(&self) -> Option<Position> {
        match self.server {
            Server::Up if self.recovery => Some(Position::Standby {
                timeline: Some(Timeline(self.timeline())),
                received: Lsn(self.end),
                replayed: Lsn(self.end),
                replication: self.streaming.then_some(ReplicationState::Streaming),
            }),
            Server::Up => Some(Position::Primary {
                timeline: Timeline(self.timeline()),
                lsn: Lsn(self.end),
            }),
            Server::Down { .. } | Server::Starting { .. } => None,
        }
    }
}
