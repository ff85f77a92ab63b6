//! Failsafe mode in the agent (spec/ha.md §14): a leader asks, a member gives its word.
//!
//! A member answers although its loop may be waiting for the same store: a task ahead of the loop (the clerk) does it. [`Pledge`] is
//! the interlock between the two: whoever has given its word does not try to get the leader key, whoever tries gives no word.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::clock;
use crate::dcs::{Freshness, Store};
use crate::ha::ATTEMPTS;
use crate::ha::decision::Asked;
use crate::ha::observation::{FailsafeView, Observation, Outcome, Promise, StoreView};
use crate::node::{
    Command, CommandReceiver, FailsafeOutcome, FailsafePing, NodeView, ViewReceiver, Xlog,
};
use crate::types::{Lsn, MemberName, Moment, Role};

use super::Agent;

/// Pause between attempts to read the silent store while the members are asked.
const STORE_AGAIN: Duration = Duration::from_millis(200);

/// The word this node has given, and its own attempts to get the key.
#[derive(Debug, Clone, Default)]
pub(super) struct Pledge(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    word: Option<Word>,
    /// This node holds the key, or a request for it is on its way.
    races: bool,
    /// The longest ttl known: a leader without the store may not have heard of a shorter one.
    longest_ttl: Duration,
}

/// To whom, until when, and what it said of its slots.
#[derive(Debug, Clone)]
pub(super) struct Word {
    pub(super) promise: Promise,
    /// Slot name → position.
    pub(super) slots: BTreeMap<String, Lsn>,
}

impl Pledge {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the word. `None`: this node leads, or tries to; `Some(true)`: it had not given it before.
    fn give(&self, ping: FailsafePing, now: Moment, ttl: Duration) -> Option<bool> {
        let mut state = self.state();
        if state.races {
            return None;
        }
        state.longest_ttl = state.longest_ttl.max(ttl);
        let until = now + state.longest_ttl;
        let first = state
            .word
            .as_ref()
            .is_none_or(|word| word.promise.until <= now || word.promise.leader != ping.name);
        state.word = Some(Word {
            promise: Promise {
                leader: ping.name,
                conn_url: ping.conn_url,
                api_url: ping.api_url,
                until,
            },
            slots: ping.slots,
        });
        Some(first)
    }

    /// A ttl this node has seen in force.
    pub(super) fn note_ttl(&self, ttl: Duration) {
        let mut state = self.state();
        state.longest_ttl = state.longest_ttl.max(ttl);
    }

    /// Whether this node may try to get the key now; if so, no word is given until [`Pledge::lost`].
    pub(super) fn may_try(&self, now: Moment) -> bool {
        let mut state = self.state();
        let bound = state
            .word
            .as_ref()
            .is_some_and(|word| word.promise.until > now);
        state.races |= !bound;
        !bound
    }

    /// This node has not got the key, or has it no longer.
    pub(super) fn lost(&self) {
        self.state().races = false;
    }

    /// The word in force.
    pub(super) fn word(&self, now: Moment) -> Option<Word> {
        self.state()
            .word
            .clone()
            .filter(|word| word.promise.until > now)
    }
}

/// Answers `POST /failsafe` at once and hands everything else on to the loop.
pub(super) fn clerk(
    mut commands: CommandReceiver,
    pledge: Pledge,
    view: ViewReceiver,
) -> CommandReceiver {
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            let command = match command {
                Command::FailsafePing { ping, reply } => {
                    let (answer, first) =
                        answer(ping, &view.borrow().clone(), &pledge, clock::now());
                    if reply.send(answer).is_err() {
                        tracing::debug!("nobody waits for the failsafe answer any more");
                    }
                    if !first {
                        continue;
                    }
                    Command::Wake
                }
                other => other,
            };
            // A loop that is busy must not keep the next ping waiting.
            match sender.try_send(command) {
                Ok(()) | Err(mpsc::error::TrySendError::Full(Command::Wake)) => {}
                Err(mpsc::error::TrySendError::Full(_)) => {
                    tracing::warn!("too many requests wait for the agent; one is dropped");
                }
                Err(mpsc::error::TrySendError::Closed(_)) => return,
            }
        }
    });
    receiver
}

/// The answer to a leader that asks, and whether the loop has to hear of it.
fn answer(
    ping: FailsafePing,
    view: &NodeView,
    pledge: &Pledge,
    now: Moment,
) -> (FailsafeOutcome, bool) {
    if !view.settings.failsafe_mode {
        return (FailsafeOutcome::NotEnabled, false);
    }
    let primary = match view.role {
        Role::Primary | Role::Promoted => true,
        Role::Replica | Role::StandbyLeader | Role::Demoted | Role::Uninitialized => false,
    };
    if primary || ping.name == view.name {
        return (FailsafeOutcome::RunningAsLeader, false);
    }
    // The store tells this member that somebody else leads: whoever asks has been superseded.
    let other = view
        .snapshot
        .as_ref()
        .filter(|snapshot| now.since(snapshot.read_at) < view.settings.ttl)
        .and_then(|snapshot| snapshot.cluster.leader.as_ref())
        .filter(|leader| leader.name != ping.name);
    if let Some(leader) = other {
        return (FailsafeOutcome::AnotherLeads(leader.name.clone()), false);
    }
    let (name, ttl) = (ping.name.clone(), view.settings.ttl);
    let Some(first) = pledge.give(ping, now, ttl) else {
        return (FailsafeOutcome::RunningAsLeader, false);
    };
    if first {
        tracing::info!("failsafe mode: {name} goes on as the leader without the store");
    }
    let lsn = view.postgres.as_ref().and_then(|status| match status.xlog {
        Xlog::Standby {
            received, replayed, ..
        } => received.max(replayed).known(),
        Xlog::Primary { location } => location.known(),
    });
    (FailsafeOutcome::Accepted(lsn), first)
}

/// What the members' word means to this leader.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    /// All agreed: their word holds until then.
    pub(super) until: Option<Moment>,
    /// Some member may be bound until then.
    pub(super) bound_until: Option<Moment>,
    /// Positions they told.
    pub(super) positions: BTreeMap<MemberName, Lsn>,
}

impl Agreement {
    /// The store has confirmed the lease, or the lease is gone: the members' word is not needed any more.
    pub(super) fn end(&mut self) {
        self.until = None;
        self.positions.clear();
    }
}

impl Agent {
    /// Failsafe mode for the core.
    pub(super) fn failsafe_view(&self, now: Moment) -> FailsafeView {
        FailsafeView {
            promise: self.pledge.word(now).map(|word| word.promise),
            agreed_until: self.agreement.until,
            bound_until: self.agreement.bound_until.filter(|until| *until > now),
        }
    }

    /// Until when failsafe mode is active here, for people.
    pub(super) fn failsafe_until(&self, now: Moment) -> Option<Moment> {
        let word = self.pledge.word(now).map(|word| word.promise.until);
        self.agreement.until.max(word)
    }

    /// This leader depends on quick answers of the store, because it has to ask the members in time if there are none.
    pub(super) fn may_need_failsafe(&self) -> bool {
        let listed = self
            .last_cluster
            .as_ref()
            .and_then(|cluster| cluster.failsafe.as_ref())
            .is_some_and(|topology| topology.contains_key(&self.me));
        self.settings.failsafe && !self.settings.pause && self.held.is_some() && listed
    }

    /// Asks all members, and a silent store once more meanwhile. If every one of them says yes, the lease holds for another ttl from
    /// when they were asked.
    pub(super) async fn ask_failsafe(&mut self, whom: &[Asked], obs: &mut Observation) {
        let sent = clock::now();
        let attempt = whom.iter().map(|asked| asked.patience).max();
        let attempt = attempt.unwrap_or_default();
        let limit = self.budget(attempt * ATTEMPTS);
        let body = self.failsafe_body();
        let silent = matches!(obs.store, StoreView::Silent { .. });
        let store = Arc::clone(&self.store);
        let round = self.peers.agree(whom, &body, limit, attempt);
        let answers = tokio::select! {
            biased;
            answers = round => Ok(answers),
            cluster = comes_back(&store), if silent => Err(cluster),
        };
        let now = clock::now();
        self.agreement.bound_until = Some(now + self.settings.ttl);
        obs.failsafe.bound_until = self.agreement.bound_until;
        let answers = match answers {
            Ok(answers) => answers,
            Err(cluster) => {
                self.heard_store(sent);
                self.answers_again();
                self.remember(cluster.clone());
                obs.store = StoreView::Fresh(cluster);
                obs.tried.failsafe = Some(Outcome::Unknown);
                return;
            }
        };
        let mut agreed = true;
        for (name, answer) in answers {
            match answer {
                Ok(position) => {
                    if let Some(lsn) = position {
                        self.agreement.positions.insert(name, lsn);
                    }
                }
                Err(refusal) => {
                    tracing::warn!("member {name} does not agree to failsafe mode: {refusal}");
                    agreed = false;
                }
            }
        }
        obs.tried.failsafe = Some(if agreed {
            Outcome::Done
        } else {
            Outcome::Refused
        });
        if agreed {
            self.extend_by_agreement(sent);
        }
        obs.failsafe = self.failsafe_view(now);
    }

    fn extend_by_agreement(&mut self, sent: Moment) {
        let Some(held) = &mut self.held else { return };
        let until = sent + self.settings.ttl;
        if self.agreement.until.is_none() {
            tracing::warn!(
                "failsafe mode: all members agree that this leader goes on without the store"
            );
        }
        held.sent = held.sent.max(sent);
        held.expires = held.expires.max(until);
        self.agreement.until = Some(until);
        self.watchdog.keep_alive();
        self.confirm_lease();
    }

    /// `{"name", "conn_url", "api_url", "slots"}` (spec/rest-api.md §13).
    fn failsafe_body(&self) -> String {
        let mut slots = self.instance.slot_positions().unwrap_or_default();
        if let Some(status) = self.instance.status() {
            let at = match status.xlog {
                Xlog::Primary { location } => location,
                Xlog::Standby { .. } => Lsn::ZERO,
            };
            slots.insert(self.me.slot_name(), at);
        }
        crate::peers::failsafe_text(&FailsafePing {
            name: self.me.clone(),
            conn_url: self.conn_url.clone(),
            api_url: self.api_url.clone(),
            slots,
        })
    }
}

/// Resolves with a snapshot when the store answers again.
async fn comes_back(store: &Store) -> crate::cluster::Cluster {
    loop {
        if let Ok(cluster) = store.load(Freshness::Latest).await {
            return cluster;
        }
        tokio::time::sleep(STORE_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Moment {
        Moment(Duration::from_secs(secs))
    }

    fn ping(from: &str) -> FailsafePing {
        FailsafePing {
            name: MemberName::new(from).unwrap(),
            conn_url: format!("postgres://{from}"),
            api_url: format!("http://{from}/patroni"),
            slots: BTreeMap::new(),
        }
    }

    fn view() -> NodeView {
        let mut view = NodeView::starting(MemberName::new("a").unwrap(), "demo".to_owned(), at(0));
        view.settings.failsafe_mode = true;
        view.settings.ttl = Duration::from_secs(30);
        view.role = Role::Replica;
        view
    }

    #[test]
    fn a_word_binds_for_one_ttl_and_the_race_excludes_it() {
        let pledge = Pledge::default();
        let (answered, first) = answer(ping("b"), &view(), &pledge, at(100));
        assert_eq!((answered, first), (FailsafeOutcome::Accepted(None), true));
        let again = answer(ping("b"), &view(), &pledge, at(110));
        assert_eq!(again, (FailsafeOutcome::Accepted(None), false));
        assert!(!pledge.may_try(at(139)), "bound until 140");
        assert_eq!(pledge.word(at(139)).unwrap().promise.leader.as_str(), "b");
        assert!(pledge.may_try(at(140)) && pledge.word(at(140)).is_none());
        let racing = answer(ping("b"), &view(), &pledge, at(141));
        assert_eq!(racing.0, FailsafeOutcome::RunningAsLeader);
        pledge.lost();
        let (answered, _) = answer(ping("b"), &view(), &pledge, at(142));
        assert_eq!(answered, FailsafeOutcome::Accepted(None));
    }

    #[test]
    fn a_longer_ttl_that_was_in_force_counts() {
        let pledge = Pledge::default();
        pledge.note_ttl(Duration::from_secs(60));
        answer(ping("b"), &view(), &pledge, at(100));
        assert!(!pledge.may_try(at(159)) && pledge.may_try(at(160)));
    }

    #[test]
    fn who_is_refused() {
        let refused = |change: &dyn Fn(&mut NodeView)| {
            let mut view = view();
            change(&mut view);
            let pledge = Pledge::default();
            let outcome = answer(ping("b"), &view, &pledge, at(100)).0;
            assert!(pledge.word(at(100)).is_none(), "no word with {outcome:?}");
            outcome
        };
        assert_eq!(
            refused(&|view| view.settings.failsafe_mode = false),
            FailsafeOutcome::NotEnabled
        );
        for role in [Role::Primary, Role::Promoted] {
            assert_eq!(
                refused(&|view| view.role = role),
                FailsafeOutcome::RunningAsLeader
            );
        }
        let led_by = |who: &str| crate::node::Snapshot {
            cluster: Arc::new(crate::cluster::Cluster {
                leader: Some(crate::cluster::Leader {
                    name: MemberName::new(who).unwrap(),
                    revision: crate::types::Revision(1),
                    session: None,
                }),
                ..crate::cluster::Cluster::default()
            }),
            read_at: at(95),
        };
        assert_eq!(
            refused(&|view| view.snapshot = Some(led_by("c"))),
            FailsafeOutcome::AnotherLeads(MemberName::new("c").unwrap())
        );
        let mut view = view();
        view.snapshot = Some(led_by("b"));
        let accepted = answer(ping("b"), &view, &Pledge::default(), at(100)).0;
        assert_eq!(accepted, FailsafeOutcome::Accepted(None));
    }
}
