//! Time passes: sessions end, clients commit, standbys receive.

use howdah::ha::observation::Upstream;

use super::{Event, TICK, World};
use crate::invariants;
use crate::postgres::Server;

impl World {
    pub(super) fn tick(&mut self) {
        self.at(TICK, Event::Tick);
        if self.store.expire(self.now) {
            self.notify_all();
        }
        for node in 0..self.nodes.len() {
            let n = &self.nodes[node];
            if n.pg.accepts_writes() && !n.pg.newborn {
                let bytes = self.rng.between(8, 200);
                self.nodes[node].pg.end += bytes;
                invariants::committed(self, node);
            }
            self.replicate(node);
        }
    }

    pub(super) fn replicate(&mut self, node: usize) {
        let n = &self.nodes[node];
        if n.pg.server != Server::Up || !n.pg.recovery {
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
        if self.nodes[node].slow && self.rng.per_mille(900) {
            return;
        }
        self.receive(node, source);
    }

    pub(super) fn receive(&mut self, node: usize, source: usize) {
        let (end, from) = (self.nodes[source].pg.end, self.nodes[source].pg.clone());
        if self.nodes[node].pg.end != end {
            self.nodes[node].moved = self.now;
        }
        self.nodes[node].pg.receive(&from, end);
    }
}
