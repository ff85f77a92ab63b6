//! Member slots: once per turn the difference between wanted and present, in short statements with a limit.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::config::dynamic::{ClusterType, SlotKind};
use crate::ha::observation::{Observation, Position};
use crate::postgres::observe::Slot;
use crate::postgres::slots::{self, IgnoreSlot, PlanInputs, PresentSlot, SlotInputs, SlotMember};

use super::Agent;

/// How long the statements of one turn may take together.
const SLOT_LIMIT: Duration = Duration::from_secs(2);

impl Agent {
    /// Creates, advances and drops member slots of a running server (spec/ha.md §16.2).
    pub(super) async fn keep_slots(&mut self, obs: &Observation) {
        let word = self.pledge.word(obs.now);
        // In failsafe mode with what was last known (spec/ha.md §5.13); then nothing is dropped.
        let known = obs.cluster().or_else(|| {
            let agreed = self.agreement.until.is_some() || word.is_some();
            self.last_cluster.as_deref().filter(|_| agreed)
        });
        let Some(cluster) = known else { return };
        let stale = obs.cluster().is_none();
        let Some(sample) = self.instance.sample.clone() else {
            return;
        };
        let (Some(present), Some(position)) = (&sample.slots, &obs.postgres.position) else {
            return;
        };
        let members: Vec<SlotMember> = cluster
            .members
            .values()
            .map(|member| SlotMember {
                name: member.name.clone(),
                replicatefrom: member.tags.replicatefrom.clone(),
                nostream: member.tags.nostream,
                position: member
                    .xlog_location
                    .max(self.agreement.positions.get(&member.name).copied()),
            })
            .collect();
        let is_leader = self.held.is_some();
        let promised = word
            .as_ref()
            .filter(|_| stale || cluster.is_unlocked())
            .filter(|_| !is_leader);
        let inputs = SlotInputs {
            me: &self.me,
            is_leader,
            leader: promised
                .map(|word| &word.promise.leader)
                .or(cluster.leader.as_ref().map(|leader| &leader.name)),
            nofailover: self.tags.never_leads(),
            members: &members,
            use_slots: self.settings.use_slots,
            retain: !self.dynamic.member_slots_ttl.is_zero(),
            retained: &cluster.status.retain_slots,
            published: promised.map_or(&cluster.status.slots, |word| &word.slots),
            version: sample.version,
        };
        let mut desired = slots::desired(&inputs);
        let here = match self.dynamic.standby_cluster {
            Some(_) => ClusterType::Standby,
            None => ClusterType::Primary,
        };
        let wanted: Vec<String> = self
            .dynamic
            .slots
            .iter()
            .filter(|(_, slot)| matches!(slot.kind, SlotKind::Physical))
            .filter(|(_, slot)| slot.cluster_type.is_none_or(|kind| kind == here))
            .map(|(name, _)| name.clone())
            .collect();
        slots::add_permanent_physical(&mut desired, &inputs, &wanted);
        for (slot, names) in &desired.shared {
            tracing::error!(
                slot,
                ?names,
                "Following cluster members share a replication slot name"
            );
        }
        let present: Vec<PresentSlot> = present
            .iter()
            .filter(|slot| !slot.temporary)
            .map(present_slot)
            .collect();
        let permanent: BTreeSet<String> = self
            .dynamic
            .slots
            .keys()
            .filter(|name| !wanted.contains(name))
            .cloned()
            .collect();
        let ignored: Vec<IgnoreSlot> = self
            .dynamic
            .ignore_slots
            .iter()
            .map(|slot| IgnoreSlot {
                name: slot.name.clone(),
                slot_type: slot.slot_type.clone(),
                database: slot.database.clone(),
                plugin: slot.plugin.clone(),
            })
            .collect();
        let writable = matches!(position, Position::Primary { .. });
        let actions = slots::plan(&PlanInputs {
            present: &present,
            desired: &desired.slots,
            permanent: &permanent,
            ignored: &ignored,
            paused: self.settings.pause || stale,
            may_drop_xmin: !stale && !cluster.is_unlocked() && (!is_leader || writable),
            version: sample.version,
        });
        if actions.is_empty() {
            return;
        }
        let limit = self.budget(SLOT_LIMIT);
        let Some(session) = self.instance.session() else {
            return;
        };
        let work = async {
            for action in &actions {
                match slots::carry_out(session.client(), action, sample.version).await {
                    Ok(()) => tracing::debug!(?action, "slot"),
                    Err(error) => {
                        tracing::warn!(?action, "a replication slot could not be changed: {error}")
                    }
                }
            }
        };
        if tokio::time::timeout(limit, work).await.is_err() {
            tracing::warn!("replication slots are not in order yet; the next turn goes on");
        }
    }
}

fn present_slot(slot: &Slot) -> PresentSlot {
    PresentSlot {
        name: slot.name.clone(),
        physical: slot.physical,
        plugin: slot.plugin.clone(),
        database: slot.database.clone(),
        active: slot.active,
        restart_lsn: slot.restart_lsn,
        xmin: slot.xmin.is_some() || slot.catalog_xmin.is_some(),
        lost: slot.wal_status.as_deref() == Some("lost"),
        failover: slot.failover,
    }
}
