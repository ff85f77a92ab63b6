//! Open connections: what each is waiting for, how long it may, and which gives way when there are too many (spec/rest-api.md D3).
//!
//! A connection is silent until something arrives on it and begins until its first request is complete; then it is by turns answering
//! and idle. Those that have not asked yet give way first, of the silent ones and those that begin whichever are more, and the
//! longest-waiting of them: a crowd that says nothing ends no TLS handshake that has been noticed, and a crowd of handshakes that do not
//! end keeps nobody out. Then idle ones give way; one that is being answered never does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;

use crate::clock;
use crate::types::Moment;

/// Time for a TLS handshake and the head of the first request together.
pub(super) const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// Time for an answer, long calls excepted.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(30);
/// Time until the next request is complete; longer than a usual scrape interval of a minute.
const IDLE_DEADLINE: Duration = Duration::from_secs(75);

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Silent,
    Beginning,
    Idle,
    Answering,
    LongCall,
}

/// Phases need three bits; the moment of the last change, in microseconds, has the others.
const PHASE_BITS: u32 = 3;

/// Shared between a connection, its requests and the table.
#[derive(Debug)]
pub(crate) struct Mark {
    phase_and_since: AtomicU64,
    task: OnceLock<AbortHandle>,
}

impl Mark {
    /// A connection just accepted.
    pub(super) fn new() -> Arc<Mark> {
        let mark = Mark {
            phase_and_since: AtomicU64::new(0),
            task: OnceLock::new(),
        };
        mark.enter(Phase::Silent);
        Arc::new(mark)
    }

    fn enter(&self, phase: Phase) {
        self.enter_at(phase, clock::now());
    }

    fn enter_at(&self, phase: Phase, since: Moment) {
        let micros = u64::try_from(since.0.as_micros()).unwrap_or(0);
        self.phase_and_since
            .store(micros << PHASE_BITS | phase as u64, Ordering::Relaxed);
    }

    fn read(&self) -> (Phase, Moment) {
        let bits = self.phase_and_since.load(Ordering::Relaxed);
        let phase = match bits & ((1 << PHASE_BITS) - 1) {
            0 => Phase::Silent,
            1 => Phase::Beginning,
            2 => Phase::Idle,
            3 => Phase::Answering,
            _ => Phase::LongCall,
        };
        (phase, Moment(Duration::from_micros(bits >> PHASE_BITS)))
    }

    /// Something has arrived. The time for the first request counts from the connection's begin all the same.
    pub(super) fn begins(&self) {
        let (_, since) = self.read();
        self.enter_at(Phase::Beginning, since);
    }

    /// A request is complete; until the guard is dropped it is being answered.
    pub(super) fn answering(self: &Arc<Self>) -> Answering {
        self.enter(Phase::Answering);
        Answering(self.clone())
    }

    /// The request is a long call until the guard is dropped: it must not be cut off.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.enter(Phase::LongCall);
        Busy(self.clone())
    }

    /// When the connection has waited too long, as things stand.
    pub(super) fn deadline(&self) -> Moment {
        let (phase, since) = self.read();
        match phase {
            Phase::Silent | Phase::Beginning => since + HEAD_DEADLINE,
            Phase::Idle => since + IDLE_DEADLINE,
            Phase::Answering => since + EXCHANGE_DEADLINE,
            Phase::LongCall => clock::now() + EXCHANGE_DEADLINE,
        }
    }
}

/// See [`Mark::answering`].
pub(super) struct Answering(Arc<Mark>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.enter(Phase::Idle);
    }
}

/// See [`Mark::busy`].
pub(crate) struct Busy(Arc<Mark>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.enter(Phase::Answering);
    }
}

/// The table of open connections.
#[derive(Default)]
pub(super) struct Connections(Mutex<HashMap<u64, Arc<Mark>>>);

impl Connections {
    /// No other code runs while the table is locked: dropping a task locks it again.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Mark>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for one more below `cap`; `false` = every connection is being answered.
    pub(super) fn make_room(&self, cap: usize) -> bool {
        self.lock().len() < cap || self.close_one()
    }

    /// Closes the connection that can best be spared; `false` = there is none.
    pub(super) fn close_one(&self) -> bool {
        let spared = {
            let mut open = self.lock();
            let spared = Waiting::of(&open).spared();
            spared.and_then(|id| open.remove(&id))
        };
        let Some(mark) = spared else { return false };
        if let Some(task) = mark.task.get() {
            task.abort();
        }
        true
    }

    /// Runs a connection as a task of its own that is in the table while it lasts.
    pub(super) fn run(
        self: &Arc<Self>,
        id: u64,
        mark: Arc<Mark>,
        connection: impl Future<Output = ()> + Send + 'static,
    ) {
        self.lock().insert(id, mark.clone());
        let registered = Registered {
            connections: self.clone(),
            id,
        };
        let task = tokio::spawn(async move {
            let _registered = registered;
            connection.await;
        });
        let _ = mark.task.set(task.abort_handle());
    }
}

/// Who waits for the other side, by phase.
#[derive(Default)]
struct Waiting {
    silent: Queue,
    beginning: Queue,
    idle: Queue,
}

/// How many wait, and who of them for longest.
#[derive(Default)]
struct Queue {
    count: usize,
    first: Option<(Moment, u64)>,
}

impl Waiting {
    fn of(open: &HashMap<u64, Arc<Mark>>) -> Waiting {
        let mut waiting = Waiting::default();
        for (id, mark) in open {
            let (phase, since) = mark.read();
            let queue = match phase {
                Phase::Silent => &mut waiting.silent,
                Phase::Beginning => &mut waiting.beginning,
                Phase::Idle => &mut waiting.idle,
                Phase::Answering | Phase::LongCall => continue,
            };
            queue.count += 1;
            let candidate = (since, *id);
            queue.first = Some(queue.first.map_or(candidate, |first| first.min(candidate)));
        }
        waiting
    }

    fn spared(&self) -> Option<u64> {
        let unasked = if self.silent.count >= self.beginning.count {
            self.silent.first
        } else {
            self.beginning.first
        };
        unasked.or(self.idle.first).map(|(_, id)| id)
    }
}

/// Removes a connection from the table however its task ends.
struct Registered {
    connections: Arc<Connections>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(table: &Arc<Connections>, id: u64) -> Arc<Mark> {
        let mark = Mark::new();
        table.run(id, mark.clone(), std::future::pending());
        mark
    }

    fn ids(table: &Connections) -> Vec<u64> {
        let mut ids: Vec<u64> = table.lock().keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    #[tokio::test]
    async fn silent_connections_give_way_before_idle_ones_and_answers_never() {
        let table = Arc::new(Connections::default());
        let answered = open(&table, 1);
        let was_answered = open(&table, 2);
        drop(was_answered.answering());
        drop(open(&table, 3));
        let _answering = answered.answering();
        let _calling = open(&table, 4).busy();
        assert!(table.make_room(5), "there is room");
        assert_eq!(ids(&table), [1, 2, 3, 4]);
        assert!(table.make_room(4));
        assert_eq!(ids(&table), [1, 2, 4], "the silent one");
        assert!(table.make_room(3));
        assert_eq!(ids(&table), [1, 4], "the idle one");
        assert!(!table.make_room(2), "nobody is left who can be spared");
    }

    #[tokio::test]
    async fn a_silent_crowd_does_not_end_a_handshake() {
        let table = Arc::new(Connections::default());
        let handshake = open(&table, 0);
        handshake.begins();
        for id in 1..100 {
            assert!(table.make_room(10));
            open(&table, id);
        }
        assert!(ids(&table).contains(&0));
        let left = handshake.deadline().since(clock::now());
        assert!(left <= HEAD_DEADLINE, "it has no more time than others");
    }

    #[tokio::test]
    async fn handshakes_that_do_not_end_keep_nobody_out() {
        let table = Arc::new(Connections::default());
        for id in 0..9 {
            open(&table, id).begins();
        }
        let newcomer = open(&table, 9);
        assert!(table.make_room(10));
        assert_eq!(ids(&table).len(), 9);
        assert!(ids(&table).contains(&9), "{newcomer:?}");
    }

    #[tokio::test]
    async fn the_one_that_waited_longest_gives_way() {
        let table = Arc::new(Connections::default());
        let marks = [open(&table, 1), open(&table, 2), open(&table, 3)];
        for at in [0, 2, 1, 0] {
            let before = clock::now();
            while clock::now().0.as_micros() == before.0.as_micros() {}
            drop(marks[at].answering());
        }
        assert!(table.close_one());
        assert_eq!(ids(&table), [1, 2], "the third had not asked for longest");
        assert!(table.close_one());
        assert_eq!(ids(&table), [1]);
    }

    #[test]
    fn deadlines_follow_the_phase() {
        let mark = Mark::new();
        let left = || mark.deadline().since(clock::now());
        assert!(left() <= HEAD_DEADLINE);
        let answering = mark.answering();
        assert!(left() > HEAD_DEADLINE && left() <= EXCHANGE_DEADLINE);
        drop(answering);
        assert!(left() > EXCHANGE_DEADLINE && left() <= IDLE_DEADLINE);
    }
}
