//! Time passes: sessions end, clients commit and are told, standbys receive.

use std::collections::BTreeMap;

use howdah::ha::observation::{
    Acknowledged, Connection, Replication, Standing, Synchronous, Upstream,
};
use howdah::types::{Lsn, Moment};

use super::{Event, TICK, World};
use crate::invariants;
use crate::postgres::{Pg, Server};
use crate::synchronous::Rule;

/// A connection as the sending server has it: it may outlive the receiver.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sender {
    flushed: u64,
    /// The receiver is gone; the server notices it then.
    noticed: Option<Moment>,
}

impl World {
    pub(super) fn tick(&mut self) {
        self.at(TICK, Event::Tick);
        if self.store.expire(self.now) {
            self.notify_all();
        }
        for node in 0..self.nodes.len() {
            if self.writes(node) {
                let bytes = self.rng.between(8, 200);
                self.nodes[node].pg.end += bytes;
            }
            self.replicate(node);
        }
        self.tend_remote();
        for node in 0..self.nodes.len() {
            if self.nodes[node].pg.server == Server::Up {
                self.tend_senders(node);
                if self.writes(node) {
                    self.acknowledge(node);
                }
            }
        }
    }

    /// It accepts writes from clients now.
    pub(crate) fn writes(&self, node: usize) -> bool {
        let n = &self.nodes[node];
        n.pg.accepts_writes() && !n.pg.newborn && self.now >= n.halted_until
    }

    fn replicate(&mut self, node: usize) {
        let n = &self.nodes[node];
        if n.pg.server != Server::Up || !n.pg.recovery || self.now < n.halted_until {
            return;
        }
        if let Some(Upstream::Remote { .. }) = &n.pg.follows {
            self.receive_from_remote(node);
            return;
        }
        let source = match &n.pg.follows {
            Some(Upstream::Member { name, .. }) => self.index(name),
            Some(Upstream::Remote { .. } | Upstream::Nobody) | None => None,
        };
        let ready = source.filter(|source| {
            let s = &self.nodes[*source];
            *source != node
                && self.reaches(node, *source)
                && s.pg.server == Server::Up
                && self.now >= s.halted_until
                && n.pg.may_stream_from(&s.pg)
        });
        let Some(source) = ready else {
            self.nodes[node].pg.streaming = false;
            return;
        };
        if !n.pg.is_prefix_of(&self.nodes[source].pg) {
            self.nodes[node].pg.streaming = false;
            return;
        }
        let pg = &mut self.nodes[node].pg;
        (pg.streaming, pg.was_primary) = (true, false);
        if self.now < self.nodes[node].lags_until
            || (self.nodes[node].slow && self.rng.per_mille(900))
        {
            return;
        }
        let end = self.nodes[source].pg.end;
        let part = match self.rng.below(8) {
            0 => return,
            1 | 2 => {
                let missing = end.saturating_sub(self.nodes[node].pg.end);
                end - self.rng.below(missing + 1)
            }
            _ => end,
        };
        self.receive(node, source, part);
    }

    /// The other cluster: its primary writes; one that is still a standby of ours receives.
    fn tend_remote(&mut self) {
        if !self.remote.recovery {
            self.remote.end += 50;
            return;
        }
        let Some(leader) = self.leader().filter(|leader| self.nodes[*leader].up) else {
            return;
        };
        let pg = &self.nodes[leader].pg;
        if pg.server == Server::Up && self.remote.is_prefix_of(pg) {
            let pg = pg.clone();
            self.remote.receive(&pg, pg.end);
        }
    }

    /// The cluster becomes a standby cluster of one that has been its own standby, up to here, or of one that still is.
    pub(crate) fn demote_cluster(&mut self, promoted: bool, behind: u64) {
        let Some(leader) = self.leader() else {
            return;
        };
        let generation = self.remote.generation;
        let source = self.nodes[leader].pg.clone();
        let begin = source.history.last().map_or(0, |segment| segment.start);
        self.remote = Pg {
            server: Server::Up,
            recovery: true,
            end: source.end.saturating_sub(behind).max(begin),
            generation,
            ..source
        };
        if promoted {
            self.promote_remote();
        }
        self.planned = None;
        self.store.dynamic.standby_cluster = true;
        self.converted = Some(self.now);
        self.notify_all();
    }

    /// The other site takes over. Its timeline has a number that none of this cluster's gets: two of one number cannot be told apart.
    pub(crate) fn promote_remote(&mut self) {
        if self.remote.recovery {
            self.order += 1;
            let branch = self.order;
            self.remote.open_timeline(branch);
            if let Some(opened) = self.remote.history.last_mut() {
                opened.timeline += 20;
            }
        }
    }

    /// The cluster becomes one of its own.
    pub(crate) fn promote_cluster(&mut self) {
        self.planned = None;
        self.store.dynamic.standby_cluster = false;
        self.converted = Some(self.now);
        self.notify_all();
    }

    fn receive_from_remote(&mut self, node: usize) {
        let (pg, remote) = (&mut self.nodes[node].pg, &self.remote);
        pg.streaming = pg.is_prefix_of(remote) && pg.may_stream_from(remote);
        if pg.streaming {
            pg.was_primary = false;
            if pg.end < remote.end {
                self.nodes[node].moved = self.now;
            }
            self.nodes[node].pg.receive(&self.remote, self.remote.end);
        }
    }

    /// Receives up to this position of the source's.
    pub(super) fn receive(&mut self, node: usize, source: usize, upto: u64) {
        if self.nodes[node].pg.end < upto {
            self.nodes[node].moved = self.now;
        }
        let history = std::mem::take(&mut self.nodes[source].pg.history);
        self.nodes[node].pg.receive_history(&history, upto);
        self.nodes[source].pg.history = history;
    }

    fn tend_senders(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            let (o, name) = (&self.nodes[other], &self.nodes[node].name);
            let connected = other != node
                && o.pg.streaming
                && matches!(&o.pg.follows, Some(Upstream::Member { name: n, .. }) if n == name);
            let (flushed, reset) = (o.pg.end, o.up && self.reaches(other, node));
            if connected {
                let noticed = None;
                self.nodes[node]
                    .senders
                    .insert(other, Sender { flushed, noticed });
                continue;
            }
            let Some(sender) = self.nodes[node].senders.get(&other).copied() else {
                continue;
            };
            // A closed connection is seen at once; a silent one after wal_sender_timeout, at the latest.
            let noticed = match sender.noticed {
                Some(noticed) => noticed,
                None => self.now + std::time::Duration::from_millis(self.rng.between(0, 6000)),
            };
            if reset || self.now >= noticed {
                self.nodes[node].senders.remove(&other);
            } else {
                let noticed = Some(noticed);
                self.nodes[node]
                    .senders
                    .insert(other, Sender { noticed, ..sender });
            }
        }
    }

    /// Tells clients of what is confirmed.
    pub(super) fn acknowledge(&mut self, node: usize) {
        let n = &self.nodes[node];
        let flushed = self.flushed(node);
        let confirmed = |names: &str| match Rule::read(names) {
            None => Some(n.pg.end),
            Some(rule) => rule.confirmed(&flushed),
        };
        let mut upto = confirmed(&n.pg.names);
        // A server process that has not read the new value yet goes by the one before.
        if let Some((names, until)) = &n.pg.names_before
            && self.now < *until
        {
            upto = upto.max(confirmed(names));
        }
        let upto = upto.map_or(0, |upto| upto.min(n.pg.end));
        if upto > n.pg.told {
            self.nodes[node].pg.told = upto;
            invariants::committed(self, node);
            invariants::acknowledged(self, node, upto);
        }
    }

    fn flushed(&self, node: usize) -> BTreeMap<&str, u64> {
        self.nodes[node]
            .senders
            .iter()
            .map(|(other, sender)| (self.nodes[*other].name.as_str(), sender.flushed))
            .collect()
    }

    /// What a query of `pg_stat_replication` and of the setting shows.
    pub(super) fn replication(&self, node: usize) -> Option<Replication> {
        let pg = &self.nodes[node].pg;
        if pg.server != Server::Up {
            return None;
        }
        let (flushed, rule) = (self.flushed(node), Rule::read(&pg.names));
        let standbys = flushed
            .iter()
            .map(|(name, position)| Connection {
                name: (*name).to_owned(),
                streaming: true,
                standing: rule
                    .as_ref()
                    .map_or(Standing::Async, |rule| rule.standing(name, &flushed)),
                written: Some(Lsn(*position)),
                flushed: Some(Lsn(*position)),
                replayed: Some(Lsn(*position)),
            })
            .collect();
        Some(Replication {
            at: self.nodes[node].clock.read(self.now),
            names: pg.names.clone(),
            acknowledged: Acknowledged::Flushed,
            standbys,
        })
    }

    /// The first sends to the second.
    pub(crate) fn sends_to(&self, from: usize, to: usize) -> bool {
        let sender = self.nodes[from].senders.get(&to);
        sender.is_some_and(|sender| sender.noticed.is_none())
    }

    /// The cluster is synchronous, by the operator's word.
    pub(crate) fn is_synchronous(&self) -> bool {
        self.store.dynamic.synchronous != Synchronous::Off
    }
}
