//! What the suite needs from a store besides the store itself: many members, time, faults and somebody else's hands.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, bail};
use async_trait::async_trait;
use howdah::cluster::{Cluster, Member, wire};
use howdah::dcs::{Freshness, Lease, Refusal, Store, Write};
use howdah::types::MemberName;
use tokio::sync::watch;

/// A server, or several, on which clusters can be made.
#[async_trait(?Send)]
pub(crate) trait Backend {
    /// A fresh cluster for one case.
    async fn harness(&self, case: &str) -> anyhow::Result<Box<dyn Harness>>;

    /// How many cases its server can bear at a time.
    fn at_once(&self) -> usize {
        1000
    }

    /// Whether the suite runs on it. What is no store has only cases of its own.
    fn is_store(&self) -> bool {
        true
    }

    /// Cases of this store alone.
    fn own_cases(&self) -> Vec<Case> {
        Vec::new()
    }
}

/// How a connection is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Connections are refused or reset.
    Refused,
    /// Nothing comes through, nobody says so.
    Silent,
    /// Requests arrive, answers do not come back.
    AnswersLost,
}

/// One cluster in a store.
#[async_trait(?Send)]
pub(crate) trait Harness {
    /// The time to live that handles start with.
    fn ttl(&self) -> Duration;

    /// The bound of every call.
    fn retry_timeout(&self) -> Duration;

    /// Whether the ephemeral keys of a node hang on one session.
    fn has_sessions(&self) -> bool {
        true
    }

    /// Whether members that are silent for long are no more.
    fn members_expire(&self) -> bool {
        true
    }

    /// Whether the leader key can be given away in one transaction.
    fn can_hand_over(&self) -> bool {
        true
    }

    /// Whether what lies above a key is a key too.
    fn folders_are_keys(&self) -> bool {
        false
    }

    /// A new process of this member; an empty name is ctl.
    async fn open(&self, name: &str) -> Store;

    /// Lets time pass; a real server's clock is the real one.
    async fn elapse(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }

    /// Breaks the connections of all processes of this member.
    async fn cut(&self, name: &str, how: Cut);

    /// Repairs them.
    async fn mend(&self, name: &str);

    /// Ends a session as it appears in a snapshot.
    async fn kill_session(&self, session: &str);

    /// Writes a key behind everybody's back.
    async fn put_raw(&self, relative: &str, value: &str);
}

pub(crate) type Run =
    for<'a> fn(&'a dyn Harness) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// What a case is about that not every store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    /// The ephemeral keys of a node hang on one session.
    Sessions,
    /// A member that is silent for long is no more.
    Expiry,
}

/// One case of the suite.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) run: Run,
}

/// The steps in which waiting looks again.
pub(crate) const STEP: Duration = Duration::from_millis(50);

pub(crate) fn name(text: &str) -> MemberName {
    MemberName::new(text).unwrap()
}

/// A member document with only a position in it.
pub(crate) fn document(position: u64) -> String {
    let mut member = Member::unknown(name("unused"));
    member.xlog_location = Some(howdah::types::Lsn(position));
    wire::member_text(&member)
}

/// The value of a write that must have happened.
pub(crate) fn done<T>(write: Write<T>) -> anyhow::Result<T> {
    match write {
        Write::Done(value) => Ok(value),
        Write::Refused(refusal) => bail!("refused ({refusal:?}) instead of done"),
        Write::Unknown(error) => bail!("unknown ({error}) instead of done"),
    }
}

/// A write that must have been refused because the precondition does not hold.
pub(crate) fn refused<T>(write: Write<T>) -> anyhow::Result<()> {
    match write {
        Write::Refused(Refusal::Precondition) => Ok(()),
        Write::Refused(other) => bail!("refused for the wrong reason: {other:?}"),
        Write::Done(_) => bail!("done instead of refused"),
        Write::Unknown(error) => bail!("unknown ({error}) instead of refused"),
    }
}

/// A write whose outcome must be unknown.
pub(crate) fn unknown<T>(write: Write<T>) -> anyhow::Result<()> {
    match write {
        Write::Unknown(_) => Ok(()),
        Write::Done(_) => bail!("done instead of unknown"),
        Write::Refused(refusal) => bail!("refused ({refusal:?}) instead of unknown"),
    }
}

/// Acquires the leader key, which must succeed.
pub(crate) async fn acquired(store: &Store) -> anyhow::Result<Lease> {
    done(store.acquire().await).context("acquire")
}

/// A linearizable snapshot.
pub(crate) async fn latest(store: &Store) -> anyhow::Result<Cluster> {
    Ok(store.load(Freshness::Latest).await?)
}

/// Looks again until the snapshot is as wanted.
pub(crate) async fn load_until(
    harness: &dyn Harness,
    store: &Store,
    within: Duration,
    what: &str,
    wanted: impl Fn(&Cluster) -> bool,
) -> anyhow::Result<Cluster> {
    let mut waited = Duration::ZERO;
    loop {
        let cluster = latest(store).await?;
        if wanted(&cluster) {
            return Ok(cluster);
        }
        if waited > within {
            bail!("no {what} within {within:?}: {cluster:?}");
        }
        harness.elapse(STEP).await;
        waited += STEP;
    }
}

/// Waits for a notification that nobody has seen yet.
pub(crate) async fn notified(
    harness: &dyn Harness,
    changes: &mut watch::Receiver<u64>,
    within: Duration,
    what: &str,
) -> anyhow::Result<()> {
    let mut waited = Duration::ZERO;
    while !changes.has_changed()? {
        if waited > within {
            bail!("no notification of {what} within {within:?}");
        }
        harness.elapse(STEP).await;
        waited += STEP;
    }
    changes.mark_unchanged();
    changes.borrow_and_update();
    Ok(())
}

/// Waits for what must come about sooner or later.
pub(crate) async fn eventually<T>(
    what: &str,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> anyhow::Result<T> {
    for _ in 0..300 {
        if let Some(value) = probe().await {
            return Ok(value);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("{what} does not come about")
}

/// Reads until the reason for not reading is the server's certificate; on a busy machine a first handshake takes longer than a call.
pub(crate) async fn distrusts(store: &Store) -> anyhow::Result<()> {
    let mut reasons = Vec::new();
    for _ in 0..10 {
        match store.load(Freshness::Latest).await {
            Ok(_) => bail!("trusted a stranger"),
            Err(error) if error.to_string().contains("certificate") => return Ok(()),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    bail!("the certificate is never named as the reason: {reasons:?}")
}

/// An election while the server goes away and comes back: each contender asks until it knows, and exactly one of them leads.
pub(crate) async fn one_leads(
    contenders: [Store; 3],
    retry: Duration,
    restart: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    for store in &contenders {
        store.set_timings(Duration::from_secs(30), retry);
        // Its connections are open.
        latest(store).await?;
    }
    let asking = futures_util::future::join_all(contenders.iter().map(wins));
    // Before their requests are sent, amid them, or after their answers: each run finds another moment.
    let delay = Duration::from_millis(rand::random_range(0..20));
    let restart = async {
        tokio::time::sleep(delay).await;
        restart.await
    };
    let limit = Duration::from_secs(60);
    let (verdicts, restarted) =
        tokio::time::timeout(limit, async { tokio::join!(asking, restart) })
            .await
            .with_context(|| format!("the server died after {delay:?}"))?;
    restarted?;
    let verdicts: Vec<Option<Lease>> = verdicts.into_iter().collect::<anyhow::Result<_>>()?;
    let won: Vec<usize> = (0..verdicts.len())
        .filter(|index| verdicts[*index].is_some())
        .collect();
    anyhow::ensure!(
        won.len() == 1,
        "{won:?} have won; the server died after {delay:?}"
    );
    for (store, lease) in contenders.iter().zip(&verdicts) {
        match lease {
            Some(lease) => done(store.renew(lease).await).context("the winner renews")?,
            None => refused(store.acquire().await)?,
        }
    }
    Ok(())
}

/// Takes part until it is known who leads; the lease if it is this one.
async fn wins(store: &Store) -> anyhow::Result<Option<Lease>> {
    loop {
        match store.acquire().await {
            Write::Done(lease) => return Ok(Some(lease)),
            Write::Refused(Refusal::Rejected(reason)) => bail!("rejected: {reason}"),
            // It may have been this one, in a try whose answer is lost.
            Write::Refused(Refusal::Precondition) | Write::Unknown(_) => {}
        }
        if let Ok(cluster) = store.load(Freshness::Latest).await
            && let Some(leader) = cluster.leader
        {
            match store.adopt(&leader).await {
                Write::Done(lease) => return Ok(Some(lease)),
                Write::Refused(_) => return Ok(None),
                Write::Unknown(_) => {}
            }
        }
        tokio::time::sleep(STEP).await;
    }
}

/// The cases of one store alone, which bring their own servers.
macro_rules! own {
    ($($case:ident),* $(,)?) => {
        vec![$(Case {
            name: stringify!($case),
            needs: $crate::harness::Needs::Nothing,
            run: |_| Box::pin($case()),
        }),*]
    };
}
pub(crate) use own;
