//! Failsafe mode (spec/ha.md §14): a leader that the store does not answer goes on as long as every member of the published topology
//! says yes. A member that says yes gives its word: it leaves the leader key alone for one ttl from the moment it was asked.
//!
//! That is as good as a renewal (S1): the agreement counts from when the question was SENT, nobody in the topology tries to get the key
//! before `sent + ttl`, and nobody outside of it may try at all.

use std::collections::BTreeMap;

use crate::cluster::{Cluster, Leader, Member, Tags};
use crate::types::{MemberName, PgState, Revision, Role};

use super::PASS;
use super::deadline;
use super::decision::{Asked, Job, Step, Why, Write};
use super::observation::{JobView, Outcome, PeerAnswer, Promise, StoreView};
use super::turn::{Choice, PATIENCE, Turn};

/// Name → api_url.
type Topology = BTreeMap<MemberName, String>;

// --- the leader ---------------------------------------------------------------------------------------------------------------

/// Keeps the published topology in step with the members, while the store answers.
pub(super) fn publish(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    settle_doubt(turn);
    if !turn.obs.settings.failsafe {
        return PASS;
    }
    // My own address is in my member document, which every turn writes.
    cluster.members.get(&turn.obs.me)?.api_url.as_ref()?;
    let wanted: Topology = cluster
        .members
        .values()
        .filter_map(|member| Some((member.name.clone(), member.api_url.clone()?)))
        .collect();
    if cluster.failsafe.as_ref() == Some(&wanted) {
        return PASS;
    }
    if turn.obs.tried.write.is_some() {
        turn.wake_in(200);
        return PASS;
    }
    turn.memory.failsafe_sent = Some(wanted.clone());
    Some((Step::Write(Write::Failsafe(wanted)), Why::WritingFailsafe))
}

/// A topology whose write was not answered may be the one that counts: those it names are asked as well.
fn settle_doubt(turn: &mut Turn<'_>) {
    let now = turn.obs.now;
    if let Some(sent) = turn.memory.failsafe_sent.take() {
        match turn.obs.tried.write {
            Some(Outcome::Done | Outcome::Refused) => {}
            Some(Outcome::Unknown) | None => {
                for (name, api_url) in sent {
                    turn.memory.failsafe_doubt.insert(name, (api_url, now));
                }
            }
        }
    }
    // No request travels longer than a lease lasts.
    let ttl = turn.obs.settings.ttl;
    turn.memory
        .failsafe_doubt
        .retain(|_, (_, since)| now.since(*since) <= ttl);
}

/// Asks the members whether this leader may go on: when the store has not answered and the lease is old enough to be renewed.
pub(super) fn ask(turn: &mut Turn<'_>) -> Choice {
    let lease = turn.obs.lease?;
    if turn.obs.tried.failsafe.is_some()
        || !deadline::renewal_due(&lease, &turn.obs.settings, turn.obs.now)
    {
        return PASS;
    }
    settle_doubt(turn);
    let whom = electors(turn)?;
    Some((Step::AskFailsafe { whom }, Why::AskingFailsafe))
}

/// All others of the topology; `None`: failsafe mode does not apply here and now.
fn electors(turn: &Turn<'_>) -> Option<Vec<Asked>> {
    let obs = turn.obs;
    let applies = obs.settings.failsafe
        && obs.settings.standby_cluster.is_none()
        && obs.lease.is_some()
        && !turn.paused()
        && !obs.stopping
        && deadline::may_write(turn);
    let gives_up = matches!(
        obs.job,
        JobView::Running {
            job: Job::Stop { .. },
            ..
        }
    );
    if !applies || gives_up {
        return None;
    }
    let topology = last_known(&obs.store)?.failsafe.as_ref()?;
    topology.get(&obs.me)?;
    let mut whom: Topology = turn
        .memory
        .failsafe_doubt
        .iter()
        .map(|(name, (api_url, _))| (name.clone(), api_url.clone()))
        .collect();
    whom.extend(topology.clone());
    whom.remove(&obs.me);
    let asked = |(name, api_url)| Asked {
        name,
        api_url,
        patience: PATIENCE,
    };
    Some(whom.into_iter().map(asked).collect())
}

/// The cluster as last heard, however long ago.
pub(super) fn last_known(store: &StoreView) -> Option<&Cluster> {
    match store {
        StoreView::Fresh(cluster) => Some(cluster),
        StoreView::Silent { last, .. } => last.as_deref(),
    }
}

/// What a leader in failsafe mode says of itself while the store does not answer.
pub(super) fn standing(turn: &mut Turn<'_>) -> Option<Why> {
    let until = turn.deadline()?;
    match turn.obs.tried.failsafe {
        Some(Outcome::Refused) => {
            turn.wake_in(500);
            return Some(Why::FailsafeRefused { until });
        }
        Some(Outcome::Done | Outcome::Unknown) | None => {}
    }
    is_agreed(turn).then_some(Why::FailsafeLeading { until })
}

/// The present lease rests on the members' word, given since the store last confirmed it.
pub(super) fn is_agreed(turn: &Turn<'_>) -> bool {
    turn.obs
        .failsafe
        .agreed_until
        .is_some_and(|until| turn.obs.now < until)
        && turn.obs.lease.is_some()
        && !turn.obs.stopping
        && deadline::may_write(turn)
}

/// The store answers again, and the key has expired meanwhile or does not hang on this node's session any more. Nobody else can have
/// had it rightfully: take it back while the members' word holds.
pub(super) fn take_back(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    if !is_agreed(turn) {
        return PASS;
    }
    let tried = &turn.obs.tried;
    let refused = tried.renew == Some(Outcome::Refused);
    if cluster.is_led_by(&turn.obs.me) && refused {
        return match tried.acquire {
            _ if !tried.reloaded => Some((Step::Reload, Why::FailsafeTakesKeyBack)),
            None => Some((Step::Adopt, Why::FailsafeTakesKeyBack)),
            Some(Outcome::Done | Outcome::Refused | Outcome::Unknown) => PASS,
        };
    }
    if !cluster.is_unlocked() {
        return PASS;
    }
    match tried.acquire {
        None => Some((Step::Acquire, Why::FailsafeTakesKeyBack)),
        Some(Outcome::Unknown) => {
            turn.wake_in(500);
            Some((Step::Rest, Why::RaceInDoubt))
        }
        Some(Outcome::Done | Outcome::Refused) => PASS,
    }
}

// --- the members --------------------------------------------------------------------------------------------------------------

/// The word in force.
pub(super) fn promise<'a>(turn: &Turn<'a>) -> Option<&'a Promise> {
    let promise = turn.obs.failsafe.promise.as_ref()?;
    (turn.obs.now < promise.until && promise.leader != turn.obs.me).then_some(promise)
}

/// The cluster as a member that has given its word sees it while nobody holds the key: led by whom it gave it to.
pub(super) fn led_by_promise(turn: &mut Turn<'_>, cluster: &Cluster) -> Option<Cluster> {
    let promise = promise(turn)?.clone();
    turn.wake_by(promise.until);
    if !cluster.is_unlocked() || turn.obs.lease.is_some() {
        return None;
    }
    let mut cluster = cluster.clone();
    cluster
        .members
        .entry(promise.leader.clone())
        .or_insert_with(|| as_member(&promise));
    cluster.leader = Some(Leader {
        name: promise.leader,
        revision: Revision(0),
        session: None,
    });
    Some(cluster)
}

fn as_member(promise: &Promise) -> Member {
    Member {
        name: promise.leader.clone(),
        session: None,
        conn_url: Some(promise.conn_url.clone()),
        api_url: Some(promise.api_url.clone()),
        state: Some(PgState::Running),
        role: Some(Role::Primary),
        version: None,
        proxy_url: None,
        checkpoint_after_promote: true,
        tags: Tags::default(),
        pending_restart: None,
        xlog_location: None,
        replay_lsn: None,
        receive_lsn: None,
        replication_state: None,
        timeline: None,
        scheduled_restart: None,
        pause: false,
        cannot_serve: None,
    }
}

/// Says of a member at rest that its leader is one by its word only.
pub(super) fn explain(turn: &Turn<'_>, step: &Step, why: Why) -> Why {
    match (step, promise(turn)) {
        (Step::Rest, Some(promise)) if matches!(why, Why::Following { .. }) => {
            Why::BoundByFailsafe {
                leader: promise.leader.clone(),
            }
        }
        (_, _) => why,
    }
}

/// Whoever is not in the published topology was not asked and may not lead. Still so for one ttl after the mode was switched off: a
/// leader without the store has not heard of that.
pub(super) fn is_left_out(turn: &Turn<'_>, cluster: &Cluster) -> bool {
    let obs = turn.obs;
    let in_force = obs.settings.failsafe
        || turn
            .memory
            .failsafe_on
            .is_some_and(|seen| obs.now.since(seen) < obs.settings.ttl);
    in_force
        && cluster
            .failsafe
            .as_ref()
            .is_some_and(|topology| !topology.is_empty() && !topology.contains_key(&obs.me))
}

/// An agent that has just been started does not know what its predecessor promised. For one ttl it races only if everybody in the
/// topology answers; a leader in failsafe mode would, and would say that it is a primary.
pub(super) fn forgotten_word(
    turn: &mut Turn<'_>,
    cluster: &Cluster,
    answers: &[(MemberName, PeerAnswer)],
) -> Choice {
    let until = turn.obs.agent_since + turn.obs.settings.ttl;
    if !turn.obs.settings.failsafe || turn.obs.now >= until {
        return PASS;
    }
    let silent = cluster.failsafe.as_ref()?.keys().find(|name| {
        **name != turn.obs.me && !answers.iter().any(|(answering, _)| answering == *name)
    })?;
    turn.wake_by(until);
    Some((
        Step::Rest,
        Why::FailsafeUncertain {
            silent: silent.clone(),
        },
    ))
}

/// Members of the topology that are neither in the snapshot nor in what was last known (spec/ha.md §6.1 row 12): whom to ask as well.
pub(super) fn more_voters(turn: &Turn<'_>, cluster: &Cluster, known: &[Asked]) -> Vec<Asked> {
    let topology = cluster
        .failsafe
        .as_ref()
        .filter(|_| turn.obs.settings.failsafe);
    topology
        .into_iter()
        .flatten()
        .filter(|(name, _)| **name != turn.obs.me)
        .filter(|(name, _)| !known.iter().any(|asked| asked.name == **name))
        .map(|(name, api_url)| Asked {
            name: name.clone(),
            api_url: api_url.clone(),
            patience: PATIENCE,
        })
        .collect()
}
