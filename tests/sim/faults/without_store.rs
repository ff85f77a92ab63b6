//! Histories in which a leader is without its store for longer than its lease, in clusters that are made for it: failsafe mode.
//!
//! Drawn from a stream of their own, so that they change nothing in the histories of clusters without.

use super::{BEGIN, Fault, HEAL, Pick, Plan};
use crate::rng::Rng;
use crate::world::TTL;

impl Plan {
    /// Some clusters have failsafe mode, and faults for it.
    pub(crate) fn without_store(&mut self, rng: &mut Rng, nodes: usize) {
        // Nobody looks after leases in pause.
        let paused = |(_, fault): &(u64, Fault)| matches!(fault, Fault::Pause(_));
        if !rng.per_mille(250) || self.faults.iter().any(paused) {
            return;
        }
        self.dynamic.failsafe = true;
        let ttl = u64::try_from(TTL.as_millis()).unwrap_or(0);
        for _ in 0..rng.between(1, 3) {
            let at = rng.between(BEGIN, HEAL - ttl);
            let long = rng.between(ttl / 2, 3 * ttl);
            let first = match rng.below(4) {
                0 | 1 => Fault::CutStore {
                    node: Pick::Leader,
                    millis: long,
                },
                2 => Fault::Outage {
                    millis: long,
                    extends: rng.per_mille(300),
                },
                _ => Fault::Errors {
                    per_mille: 1000,
                    millis: long,
                },
            };
            // Somebody was away for so long that the topology does without it, and comes back now.
            if rng.per_mille(300) {
                let back = rng.between(ttl, 2 * ttl);
                let node = Pick::Number(usize::try_from(rng.below(nodes as u64)).unwrap_or(0));
                let before = at.saturating_sub(back - rng.below(ttl / 2));
                self.faults
                    .push((before.max(BEGIN), Fault::KillContainer { node, back }));
            }
            self.faults.push((at, first));
            for _ in 0..rng.below(4) {
                self.faults
                    .push((at + rng.below(long), Self::meanwhile(rng, nodes)));
            }
        }
    }

    /// What happens to members that are asked.
    fn meanwhile(rng: &mut Rng, nodes: usize) -> Fault {
        let ttl = u64::try_from(TTL.as_millis()).unwrap_or(0);
        let node = Pick::Number(usize::try_from(rng.below(nodes as u64)).unwrap_or(0));
        let millis = rng.between(500, 2 * ttl);
        match rng.below(9) {
            0 => Fault::PeerLoss {
                per_mille: rng.between(50, 500),
                millis,
            },
            1 => Fault::PeerDelay {
                most: rng.between(200, 5000),
                millis,
            },
            2 => Fault::KillAgent { node },
            3 => Fault::KillContainer { node, back: millis },
            4 => Fault::Freeze { node, millis },
            5 => Fault::Halt { node, millis },
            6 => Fault::Cut {
                a: Pick::Leader,
                b: node,
                one_way: rng.per_mille(500),
                millis,
            },
            7 => Fault::CutStore { node, millis },
            _ => Fault::Failsafe(rng.per_mille(500)),
        }
    }
}
