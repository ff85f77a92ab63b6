//! Failsafe mode (spec/ha.md §14): a leader that the store does not answer goes on as long as every member of the published topology
//! says yes. A member that says yes gives its word: it leaves the leader key alone for one ttl from the moment it was asked.
//!
//! That is as good as a renewal (S1): the agreement counts from when the question was SENT, nobody in the topology tries to get the key
//! before `sent + ttl`, and nobody outside of it may try at all.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::{Cluster, Leader, Member, Tags};
use crate::types::{MemberName, PgState, Revision, Role};

use super::decision::{Asked, Job, Step, Why, Write};
use super::observation::{JobView, Outcome, PeerAnswer, Promise, StoreView};
use super::turn::{Choice, PATIENCE, Turn};
use super::{PASS, deadline, isolation};

/// How often a member is asked for its word before it counts as silent (spec/rest-api.md §15); each time as long as its `patience` says.
pub const ATTEMPTS: u32 = 2;
/// The shortest patience: nobody else has been heard for so long that commits are about to be held, and holding them must not wait for
/// answers that do not come. Once they are held there is time.
const PATIENCE_ALONE: Duration = Duration::from_millis(100);

/// Name → api_url.
type Topology = BTreeMap<MemberName, String>;

// --- the leader ---------------------------------------------------------------------------------------------------------------

/// Keeps the published topology in step with the members, while the store answers.
pub(super) fn publish(turn: &mut Turn<'_>, cluster: &Cluster) -> Choice {
    settle_doubt(turn);
    turn.memory.failsafe_patient = false;
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
    let hurry = if turn.memory.failsafe_patient && isolation::hears_a_member(turn) {
        None
    } else {
        isolation::silence_in(turn)
    };
    let patience = hurry.map_or(PATIENCE, |left| {
        (left / ATTEMPTS).clamp(PATIENCE_ALONE, PATIENCE)
    });
    let asked = |(name, api_url)| Asked {
        name,
        api_url,
        patience,
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
            // Somebody answers and somebody does not: there is no silence to notice, but perhaps a member that is slow.
            turn.memory.failsafe_patient = isolation::hears_a_member(turn);
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

/// Takes into the memory that the mode is on: also while the store is silent, because what happens then is what counts afterwards.
pub(super) fn note(turn: &mut Turn<'_>) {
    if turn.obs.settings.failsafe {
        turn.memory.failsafe_on = Some(turn.obs.now);
    }
}

/// A leader without the store may be in failsafe mode: the mode is on, or it was until one ttl ago (such a leader has not heard that it
/// was switched off), or this agent has not been there for long enough to know.
fn may_be_in_force(turn: &Turn<'_>) -> bool {
    let obs = turn.obs;
    obs.settings.failsafe
        || is_new(turn)
        || turn
            .memory
            .failsafe_on
            .is_some_and(|seen| obs.now.since(seen) < obs.settings.ttl)
}

/// This agent has been there for less than one ttl: it does not know what its predecessor promised.
fn is_new(turn: &Turn<'_>) -> bool {
    turn.obs.now < turn.obs.agent_since + turn.obs.settings.ttl
}

/// Whoever is not in the published topology was not asked and may not lead.
pub(super) fn leaves_out(turn: &Turn<'_>, cluster: &Cluster, member: &MemberName) -> bool {
    may_be_in_force(turn)
        && cluster
            .failsafe
            .as_ref()
            .is_some_and(|topology| !topology.is_empty() && !topology.contains_key(member))
}

/// Whether [`forgotten_word`] has something to say; before anybody is asked.
pub(super) fn may_have_forgotten(turn: &Turn<'_>, cluster: &Cluster) -> bool {
    is_new(turn) && cluster.failsafe.is_some()
}

/// An agent that has just been started does not know what its predecessor promised, nor whether the mode was on a moment ago. For one
/// ttl it races only if everybody in the topology answers; a leader in failsafe mode would, and would say that it is a primary.
pub(super) fn forgotten_word(
    turn: &mut Turn<'_>,
    cluster: &Cluster,
    answers: &[(MemberName, PeerAnswer)],
) -> Choice {
    if !may_have_forgotten(turn, cluster) {
        return PASS;
    }
    let silent = cluster.failsafe.as_ref()?.keys().find(|name| {
        **name != turn.obs.me && !answers.iter().any(|(answering, _)| answering == *name)
    })?;
    turn.wake_by(turn.obs.agent_since + turn.obs.settings.ttl);
    Some((
        Step::Rest,
        Why::FailsafeUncertain {
            silent: silent.clone(),
        },
    ))
}

/// Members of the topology that are neither in the snapshot nor in what was last known (spec/ha.md §6.1 row 12): whom to ask as well.
pub(super) fn more_voters(turn: &Turn<'_>, cluster: &Cluster, known: &[Asked]) -> Vec<Asked> {
    let topology = cluster.failsafe.as_ref().filter(|_| may_be_in_force(turn));
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
