//! The cases: what every store must do, in the words of the `Dcs` trait.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use howdah::cluster::Initialize;
use howdah::dcs::{Document, Expect, Freshness, Refusal, Write};

use crate::harness::{
    Case, Cut, Harness, Needs, acquired, document, done, latest, load_until, name, notified,
    refused, unknown,
};

type Outcome = anyhow::Result<()>;

macro_rules! cases {
    ($($(#[$needs:ident])? $case:ident),* $(,)?) => {
        vec![$(Case {
            name: stringify!($case),
            needs: cases!(@needs $($needs)?),
            run: |harness| Box::pin($case(harness)),
        }),*]
    };
    (@needs needs_sessions) => { Needs::Sessions };
    (@needs needs_expiry) => { Needs::Expiry };
    (@needs) => { Needs::Nothing };
}

pub(crate) fn cases() -> Vec<Case> {
    cases![
        acquire_race,
        acquire_sees_foreign_holder,
        #[needs_sessions]
        acquire_is_no_backdoor_for_a_namesake,
        take_replaces_a_stale_key,
        renew_keeps_my_key,
        renew_foreign_key_is_refused,
        renew_expired_key_is_refused,
        release_only_mine,
        release_then_acquire,
        adopt_after_restart,
        adopt_only_mine,
        hand_over_to_a_live_member,
        #[needs_expiry]
        hand_over_to_a_dead_session,
        hand_over_of_a_lost_key,
        put_anything,
        put_absent,
        put_at_revision,
        delete_conditions,
        initialize_race,
        #[needs_expiry]
        member_expires,
        member_is_kept_by_put_member,
        #[needs_sessions]
        member_is_rebound_after_session_loss,
        delete_member_removes_mine,
        ttl_change_at_run_time,
        watch_leader,
        watch_leader_expiry,
        watch_documents,
        watch_member,
        recent_contains_own_writes,
        recent_follows_others,
        latest_sees_others_at_once,
        groups_are_read_together,
        malformed_documents,
        ctl_has_no_keys,
        delete_cluster_removes_everything,
        unreachable_refused,
        unreachable_silent,
        answers_lost,
        notified_after_reconnect,
    ]
}

async fn acquire_race(h: &dyn Harness) -> Outcome {
    let mut stores = Vec::new();
    for index in 0..4 {
        stores.push(h.open(&format!("node{index}")).await);
    }
    let outcomes = join_all(stores.iter().map(|store| store.acquire())).await;
    let winners: Vec<_> = outcomes
        .iter()
        .enumerate()
        .filter(|(_, outcome)| matches!(outcome, Write::Done(_)))
        .map(|(index, _)| index)
        .collect();
    ensure!(winners.len() == 1, "{outcomes:?}");
    let losers = outcomes
        .iter()
        .filter(|o| matches!(o, Write::Refused(Refusal::Precondition)))
        .count();
    ensure!(losers == 3, "{outcomes:?}");
    for store in &stores {
        let cluster = latest(store).await?;
        ensure!(cluster.is_led_by(&name(&format!("node{}", winners[0]))));
    }
    Ok(())
}

async fn acquire_sees_foreign_holder(h: &dyn Harness) -> Outcome {
    let store = h.open("a").await;
    h.put_raw("leader", "somebody").await;
    refused(store.acquire().await)
}

async fn acquire_is_no_backdoor_for_a_namesake(h: &dyn Harness) -> Outcome {
    let first = h.open("a").await;
    let lease = acquired(&first).await?;
    refused(h.open("a").await.acquire().await)?;
    done(first.renew(&lease).await)
}

async fn take_replaces_a_stale_key(h: &dyn Harness) -> Outcome {
    let store = h.open("a").await;
    let lease = done(store.take().await)?;
    ensure!(latest(&store).await?.is_led_by(&name("a")));
    done(store.renew(&lease).await)
}

async fn renew_keeps_my_key(h: &dyn Harness) -> Outcome {
    let store = h.open("a").await;
    let lease = acquired(&store).await?;
    for _ in 0..4 {
        h.elapse(h.ttl() / 2).await;
        done(store.renew(&lease).await)?;
        ensure!(latest(&store).await?.is_led_by(&name("a")));
    }
    Ok(())
}

async fn renew_foreign_key_is_refused(h: &dyn Harness) -> Outcome {
    let store = h.open("a").await;
    let lease = acquired(&store).await?;
    h.put_raw("leader", "b").await;
    refused(store.renew(&lease).await)?;
    ensure!(latest(&store).await?.is_led_by(&name("b")));
    Ok(())
}

async fn renew_expired_key_is_refused(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    let lease = acquired(&a).await?;
    h.elapse(h.ttl() / 2).await;
    ensure!(latest(&b).await?.is_led_by(&name("a")), "gone too early");
    load_until(h, &b, h.ttl() * 2, "expiry", |c| c.is_unlocked()).await?;
    refused(a.renew(&lease).await)?;
    ensure!(
        latest(&a).await?.is_unlocked(),
        "renewing recreated the key"
    );
    let other = acquired(&b).await?;
    refused(a.renew(&lease).await)?;
    done(b.renew(&other).await)
}

async fn release_only_mine(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    let lease = acquired(&a).await?;
    load_until(h, &b, h.ttl() * 2, "expiry", |c| c.is_unlocked()).await?;
    acquired(&b).await?;
    refused(a.release(lease).await)?;
    ensure!(latest(&a).await?.is_led_by(&name("b")));
    Ok(())
}

async fn release_then_acquire(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    done(a.put_member(&document(1)).await)?;
    let lease = acquired(&a).await?;
    done(a.release(lease).await)?;
    let cluster = latest(&b).await?;
    ensure!(cluster.is_unlocked());
    ensure!(
        cluster.members.contains_key(&name("a")),
        "the member went with the lock"
    );
    let lease = acquired(&b).await?;
    done(b.release(lease).await)?;
    acquired(&a).await?;
    Ok(())
}

async fn adopt_after_restart(h: &dyn Harness) -> Outcome {
    let before = h.open("a").await;
    done(before.put_member(&document(1)).await)?;
    acquired(&before).await?;
    let after = h.open("a").await;
    let leader = latest(&after).await?.leader.context("no leader")?;
    let lease = done(after.adopt(&leader).await)?;
    for _ in 0..3 {
        // The process before is silent: only what hangs on the new one may survive.
        h.elapse(h.ttl() / 2).await;
        done(after.renew(&lease).await)?;
        done(after.put_member(&document(1)).await)?;
        let cluster = latest(&after).await?;
        ensure!(cluster.is_led_by(&name("a")) && cluster.leader_member().is_some());
    }
    done(after.release(lease).await)
}

async fn adopt_only_mine(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    let lease = acquired(&a).await?;
    let leader = latest(&b).await?.leader.context("no leader")?;
    refused(b.adopt(&leader).await)?;
    done(a.renew(&lease).await)?;
    done(a.release(lease).await)?;
    refused(a.adopt(&leader).await)?;
    ensure!(
        latest(&a).await?.is_unlocked(),
        "adopting recreated the key"
    );
    Ok(())
}

async fn hand_over_to_a_live_member(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    done(a.put_member(&document(1)).await)?;
    done(b.put_member(&document(2)).await)?;
    let lease = acquired(&a).await?;
    let candidate = latest(&a).await?.members[&name("b")].clone();
    let (outcome, lease) = a.hand_over(lease, &candidate).await;
    if !h.can_hand_over() {
        ensure!(matches!(outcome, Write::Refused(_)), "{outcome:?}");
        return done(a.renew(&lease.context("the lease is lost")?).await);
    }
    done(outcome)?;
    ensure!(lease.is_none());
    let leader = latest(&b).await?.leader.context("no leader")?;
    ensure!(leader.name == name("b"));
    let lease = done(b.adopt(&leader).await)?;
    for _ in 0..3 {
        h.elapse(h.ttl() / 2).await;
        done(b.renew(&lease).await)?;
        ensure!(latest(&a).await?.is_led_by(&name("b")));
    }
    done(b.release(lease).await)
}

async fn hand_over_to_a_dead_session(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    done(b.put_member(&document(2)).await)?;
    let mut lease = acquired(&a).await?;
    let candidate = latest(&a).await?.members[&name("b")].clone();
    if let Some(session) = &candidate.session {
        h.kill_session(session).await;
    } else {
        let mut waited = Duration::ZERO;
        while latest(&a).await?.members.contains_key(&name("b")) {
            h.elapse(h.ttl() / 4).await;
            waited += h.ttl() / 4;
            done(a.renew(&lease).await)?;
            ensure!(waited < h.ttl() * 3, "the member does not expire");
        }
    }
    for session in [candidate.session.clone(), None, Some("nonsense".to_owned())] {
        let mut dead = candidate.clone();
        dead.session = session;
        let (outcome, kept) = a.hand_over(lease, &dead).await;
        ensure!(matches!(outcome, Write::Refused(_)), "{outcome:?}");
        lease = kept.context("the lease is lost")?;
        done(a.renew(&lease).await)?;
    }
    ensure!(latest(&b).await?.is_led_by(&name("a")));
    Ok(())
}

async fn hand_over_of_a_lost_key(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    done(b.put_member(&document(2)).await)?;
    let lease = acquired(&a).await?;
    let candidate = latest(&a).await?.members[&name("b")].clone();
    h.put_raw("leader", "c").await;
    let (outcome, _) = a.hand_over(lease, &candidate).await;
    ensure!(matches!(outcome, Write::Refused(_)), "{outcome:?}");
    ensure!(latest(&b).await?.is_led_by(&name("c")));
    Ok(())
}

async fn put_anything(h: &dyn Harness) -> Outcome {
    let store = h.open("a").await;
    let first = done(
        store
            .put(Document::Status, r#"{"optime":1}"#, Expect::Anything)
            .await,
    )?;
    let second = done(
        store
            .put(Document::Status, r#"{"optime":2}"#, Expect::Anything)
            .await,
    )?;
    ensure!(first != second);
    ensure!(latest(&store).await?.status.optime.0 == 2);
    for document in [
        Document::Initialize,
        Document::Config,
        Document::Sync,
        Document::Failover,
        Document::History,
        Document::Failsafe,
        Document::LegacyOptime,
    ] {
        done(store.put(document, "{}", Expect::Anything).await).context(document.key())?;
    }
    Ok(())
}

async fn put_absent(h: &dyn Harness) -> Outcome {
    let store = h.open("a").await;
    done(
        store
            .put(Document::Sync, r#"{"leader":"a"}"#, Expect::Absent)
            .await,
    )?;
    refused(
        store
            .put(Document::Sync, r#"{"leader":"b"}"#, Expect::Absent)
            .await,
    )?;
    ensure!(latest(&store).await?.sync.leader == Some(name("a")));
    Ok(())
}

async fn put_at_revision(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    let first = done(
        a.put(Document::Config, r#"{"ttl":1}"#, Expect::Absent)
            .await,
    )?;
    ensure!(
        latest(&b).await?.config_revision == Some(first),
        "the returned revision is not the read one"
    );
    let second = done(
        b.put(Document::Config, r#"{"ttl":2}"#, Expect::At(first))
            .await,
    )?;
    refused(
        a.put(Document::Config, r#"{"ttl":3}"#, Expect::At(first))
            .await,
    )?;
    let config = latest(&a).await?.config.context("no config")?;
    ensure!(config.revision == second && config.data["ttl"] == 2);
    // Several dependent writes in one turn, as the synchronous state needs them.
    let third = done(
        a.put(Document::Config, r#"{"ttl":4}"#, Expect::At(second))
            .await,
    )?;
    done(
        a.put(Document::Config, r#"{"ttl":5}"#, Expect::At(third))
            .await,
    )?;
    refused(a.put(Document::History, "[]", Expect::At(third)).await)
        .context("a revision of nothing")
}

async fn delete_conditions(h: &dyn Harness) -> Outcome {
    let store = h.open("a").await;
    let first = done(
        store
            .put(Document::Sync, r#"{"leader":"a"}"#, Expect::Anything)
            .await,
    )?;
    let second = done(
        store
            .put(Document::Sync, r#"{"leader":"b"}"#, Expect::Anything)
            .await,
    )?;
    refused(store.delete(Document::Sync, Expect::At(first)).await)?;
    ensure!(latest(&store).await?.sync.leader == Some(name("b")));
    done(store.delete(Document::Sync, Expect::At(second)).await)?;
    ensure!(latest(&store).await?.sync.leader.is_none());
    done(store.put(Document::Initialize, "", Expect::Absent).await)?;
    ensure!(latest(&store).await?.initialize == Initialize::InProgress);
    done(store.delete(Document::Initialize, Expect::Anything).await)?;
    ensure!(latest(&store).await?.initialize == Initialize::Absent);
    Ok(())
}

async fn initialize_race(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    let outcomes = tokio::join!(
        a.put(Document::Initialize, "", Expect::Absent),
        b.put(Document::Initialize, "", Expect::Absent)
    );
    let won = [&outcomes.0, &outcomes.1]
        .iter()
        .filter(|outcome| matches!(outcome, Write::Done(_)))
        .count();
    ensure!(won == 1, "{outcomes:?}");
    Ok(())
}

async fn member_expires(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    done(a.put_member(&document(7)).await)?;
    let member = latest(&b)
        .await?
        .members
        .remove(&name("a"))
        .context("no member")?;
    ensure!(member.xlog_location.map(|l| l.0) == Some(7));
    h.elapse(h.ttl() / 2).await;
    ensure!(
        latest(&b).await?.members.contains_key(&name("a")),
        "gone too early"
    );
    load_until(h, &b, h.ttl() * 2, "expiry", |c| c.members.is_empty()).await?;
    done(a.put_member(&document(7)).await)?;
    ensure!(
        latest(&b).await?.members.contains_key(&name("a")),
        "not recreated"
    );
    Ok(())
}

async fn member_is_kept_by_put_member(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    for turn in 0..4 {
        // Changed only every other time: an unchanged document must be kept alive all the same.
        done(a.put_member(&document(1 + turn / 2)).await)?;
        h.elapse(h.ttl() / 2).await;
        ensure!(
            latest(&b).await?.members.contains_key(&name("a")),
            "lost in turn {turn}"
        );
    }
    let position = latest(&b).await?.members[&name("a")].xlog_location;
    ensure!(position.map(|l| l.0) == Some(2));
    Ok(())
}

async fn member_is_rebound_after_session_loss(h: &dyn Harness) -> Outcome {
    let a = h.open("a").await;
    done(a.put_member(&document(1)).await)?;
    let session = latest(&a).await?.members[&name("a")]
        .session
        .clone()
        .context("no session")?;
    h.kill_session(&session).await;
    load_until(h, &a, h.ttl(), "end of the session", |c| {
        c.members.is_empty()
    })
    .await?;
    for _ in 0..2 {
        // Patroni allows the turn that notices to fail; ours repairs at once, which the second pass does not undo.
        done(a.put_member(&document(1)).await)?;
        let cluster = latest(&a).await?;
        let member = cluster.members.get(&name("a")).context("not recreated")?;
        ensure!(member.session.as_ref() != Some(&session));
    }
    let lease = acquired(&a).await?;
    done(a.renew(&lease).await)
}

async fn delete_member_removes_mine(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    done(a.put_member(&document(1)).await)?;
    done(b.put_member(&document(1)).await)?;
    done(a.delete_member().await)?;
    let members = latest(&b).await?.members;
    ensure!(members.len() == 1 && members.contains_key(&name("b")));
    done(a.put_member(&document(1)).await)?;
    ensure!(latest(&b).await?.members.len() == 2);
    Ok(())
}

async fn ttl_change_at_run_time(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    done(a.put_member(&document(1)).await)?;
    let lease = acquired(&a).await?;
    let longer = h.ttl() * 3;
    a.set_timings(longer, h.retry_timeout());
    done(a.renew(&lease).await)?;
    done(a.put_member(&document(1)).await)?;
    h.elapse(h.ttl() * 2).await;
    let cluster = latest(&b).await?;
    ensure!(
        cluster.is_led_by(&name("a")),
        "the leader key kept its old ttl"
    );
    ensure!(
        cluster.members.contains_key(&name("a")),
        "the member kept its old ttl"
    );
    done(a.renew(&lease).await).context("with the lease from before")?;
    done(a.release(lease).await)
}

async fn watch_leader(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    let mut changes = watched(h, &b).await?;
    let lease = acquired(&a).await?;
    notified(h, &mut changes, h.ttl() / 2, "acquire").await?;
    done(a.release(lease).await)?;
    load_until(h, &b, h.ttl() / 2, "release", |c| c.is_unlocked()).await?;
    notified(h, &mut changes, h.ttl() / 2, "release").await
}

async fn watch_leader_expiry(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    acquired(&a).await?;
    let mut changes = watched(h, &b).await?;
    notified(h, &mut changes, h.ttl() * 3, "expiry").await?;
    let seen = b.load(Freshness::Recent).await?;
    ensure!(seen.is_unlocked(), "{:?}", seen.leader);
    Ok(())
}

async fn watch_documents(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    for document in [Document::Config, Document::Failover, Document::Sync] {
        let mut changes = watched(h, &b).await?;
        done(a.put(document, r#"{"leader":"a"}"#, Expect::Anything).await)?;
        notified(h, &mut changes, h.ttl() / 2, document.key()).await?;
    }
    let mut changes = watched(h, &b).await?;
    done(a.delete(Document::Sync, Expect::Anything).await)?;
    notified(h, &mut changes, h.ttl() / 2, "a deletion").await
}

async fn watch_member(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    let mut changes = watched(h, &b).await?;
    done(a.put_member(&document(1)).await)?;
    notified(h, &mut changes, h.ttl() / 2, "a new member").await?;
    // A position alone is no news: everybody writes one in every turn.
    let mut changes = watched(h, &b).await?;
    done(a.put_member(r#"{"state":"stopped"}"#).await)?;
    notified(h, &mut changes, h.ttl() / 2, "a changed member").await
}

/// A receiver of a watch that is known to run, with everything so far seen.
async fn watched(
    h: &dyn Harness,
    store: &howdah::dcs::Store,
) -> anyhow::Result<tokio::sync::watch::Receiver<u64>> {
    let mut changes = store.changes();
    // What happened before may still be on its way: it must not count as the answer to what comes next.
    let mut waited = Duration::ZERO;
    loop {
        let (recent, latest) = (store.load(Freshness::Recent).await?, latest(store).await?);
        if waited >= Duration::from_millis(200) && recent == latest {
            break;
        }
        ensure!(waited < h.ttl() * 3, "the watch is behind: {recent:?}");
        h.elapse(Duration::from_millis(20)).await;
        waited += Duration::from_millis(20);
    }
    changes.borrow_and_update();
    Ok(changes)
}

async fn recent_contains_own_writes(h: &dyn Harness) -> Outcome {
    let a = h.open("a").await;
    a.load(Freshness::Recent).await?;
    for turn in 0..20 {
        let text = format!(r#"{{"optime":{turn}}}"#);
        done(a.put(Document::Status, &text, Expect::Anything).await)?;
        let seen = a.load(Freshness::Recent).await?.status.optime.0;
        ensure!(seen == turn, "wrote {turn}, read {seen}");
    }
    let lease = acquired(&a).await?;
    ensure!(a.load(Freshness::Recent).await?.is_led_by(&name("a")));
    done(a.put_member(&document(5)).await)?;
    ensure!(a.load(Freshness::Recent).await?.members.len() == 1);
    done(a.release(lease).await)?;
    ensure!(a.load(Freshness::Recent).await?.is_unlocked());
    Ok(())
}

async fn recent_follows_others(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    for turn in 1..10 {
        let text = format!(r#"{{"optime":{turn}}}"#);
        done(a.put(Document::Status, &text, Expect::Anything).await)?;
        let mut waited = Duration::ZERO;
        while b.load(Freshness::Recent).await?.status.optime.0 != turn {
            h.elapse(crate::harness::STEP).await;
            waited += crate::harness::STEP;
            ensure!(waited < h.ttl(), "turn {turn} never seen");
        }
    }
    Ok(())
}

async fn latest_sees_others_at_once(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    for turn in 1..20 {
        let text = format!(r#"{{"optime":{turn}}}"#);
        done(a.put(Document::Status, &text, Expect::Anything).await)?;
        ensure!(latest(&b).await?.status.optime.0 == turn);
    }
    Ok(())
}

async fn malformed_documents(h: &dyn Harness) -> Outcome {
    let store = h.open("a").await;
    for key in [
        "initialize",
        "config",
        "status",
        "sync",
        "failover",
        "history",
        "failsafe",
        "members/b",
        "members/",
        "members/c/d",
        "optime/leader",
        "unknown",
        "deep/er/key",
    ] {
        h.put_raw(key, "\u{1}{[not json").await;
    }
    for freshness in [Freshness::Latest, Freshness::Recent] {
        let cluster = store.load(freshness).await?;
        ensure!(cluster.config.is_none() && cluster.config_revision.is_some());
        let members: Vec<&str> = cluster.members.keys().map(|name| name.as_str()).collect();
        // A key below a member's makes that member where there are no keys without the ones above them.
        let expected: &[&str] = if h.folders_are_keys() {
            &["b", "c"]
        } else {
            &["b"]
        };
        ensure!(members == expected, "{members:?}");
        ensure!(
            cluster
                .members
                .values()
                .all(|member| member.state.is_none())
        );
        ensure!(matches!(cluster.initialize, Initialize::Invalid(_)));
        ensure!(cluster.is_unlocked() && cluster.history.is_none() && cluster.failsafe.is_none());
    }
    let revision = latest(&store)
        .await?
        .config_revision
        .context("no revision")?;
    done(
        store
            .put(Document::Config, "{}", Expect::At(revision))
            .await,
    )?;
    Ok(())
}

async fn ctl_has_no_keys(h: &dyn Harness) -> Outcome {
    let (ctl, a) = (h.open("").await, h.open("a").await);
    acquired(&a).await?;
    ensure!(latest(&ctl).await?.is_led_by(&name("a")));
    done(
        ctl.put(Document::Failover, r#"{"member":"a"}"#, Expect::Anything)
            .await,
    )?;
    ensure!(matches!(
        ctl.acquire().await,
        Write::Refused(Refusal::Rejected(_))
    ));
    ensure!(matches!(
        ctl.take().await,
        Write::Refused(Refusal::Rejected(_))
    ));
    ensure!(matches!(
        ctl.put_member("{}").await,
        Write::Refused(Refusal::Rejected(_))
    ));
    ensure!(latest(&a).await?.failover.is_some());
    Ok(())
}

async fn groups_are_read_together(h: &dyn Harness) -> Outcome {
    let store = h.open("a").await;
    ensure!(store.load_groups().await?.is_empty());
    for (key, value) in [
        ("0/leader", "c1"),
        ("0/members/c1", r#"{"state":"running","role":"primary"}"#),
        ("12/leader", "w1"),
        ("12/members/w1", r#"{"state":"running","role":"primary"}"#),
        ("12/members/w2", r#"{"state":"running","role":"replica"}"#),
        // Not a group's, though it looks like one.
        ("012/leader", "x"),
        ("members/a", "{}"),
    ] {
        h.put_raw(key, value).await;
    }
    let groups = store.load_groups().await?;
    ensure!(groups.keys().eq([&0, &12]), "{groups:?}");
    ensure!(groups[&0].is_led_by(&name("c1")) && groups[&12].is_led_by(&name("w1")));
    ensure!(groups[&0].members.len() == 1 && groups[&12].members.len() == 2);
    ensure!(
        groups[&12]
            .leader_member()
            .is_some_and(|leader| { leader.role == Some(howdah::types::Role::Primary) })
    );
    Ok(())
}

async fn delete_cluster_removes_everything(h: &dyn Harness) -> Outcome {
    let (ctl, a) = (h.open("").await, h.open("a").await);
    done(a.put_member(&document(1)).await)?;
    let lease = acquired(&a).await?;
    done(a.put(Document::Config, "{}", Expect::Anything).await)?;
    done(ctl.delete_cluster().await)?;
    let cluster = latest(&a).await?;
    ensure!(
        cluster == howdah::cluster::Cluster::default(),
        "{cluster:?}"
    );
    refused(a.renew(&lease).await)?;
    done(a.put_member(&document(1)).await)?;
    acquired(&a).await?;
    Ok(())
}

async fn unreachable_refused(h: &dyn Harness) -> Outcome {
    unreachable(h, Cut::Refused).await
}

async fn unreachable_silent(h: &dyn Harness) -> Outcome {
    unreachable(h, Cut::Silent).await
}

async fn unreachable(h: &dyn Harness, how: Cut) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    done(
        a.put(Document::Status, r#"{"optime":1}"#, Expect::Anything)
            .await,
    )?;
    let lease = acquired(&a).await?;
    a.load(Freshness::Recent).await?;
    h.cut("a", how).await;
    let bound = h.retry_timeout() + Duration::from_secs(1);
    let limit = |what| format!("{what} takes longer than retry_timeout");
    let read = tokio::time::timeout(bound, a.load(Freshness::Latest))
        .await
        .context(limit("load"))?;
    ensure!(read.is_err(), "read through a broken connection");
    let write = a.put(Document::Status, r#"{"optime":2}"#, Expect::Anything);
    unknown(
        tokio::time::timeout(bound, write)
            .await
            .context(limit("put"))?,
    )?;
    unknown(
        tokio::time::timeout(bound, a.renew(&lease))
            .await
            .context(limit("renew"))?,
    )?;
    unknown(
        tokio::time::timeout(bound, a.put_member("{}"))
            .await
            .context(limit("put_member"))?,
    )?;
    let acquire = tokio::time::timeout(bound, a.acquire())
        .await
        .context(limit("acquire"))?;
    ensure!(
        !matches!(acquire, Write::Done(_)),
        "acquired through a broken connection"
    );
    latest(&b)
        .await
        .context("the other member's connection is whole")?;
    h.mend("a").await;
    let mut waited = Duration::ZERO;
    while a.load(Freshness::Latest).await.is_err() {
        h.elapse(Duration::from_millis(100)).await;
        waited += Duration::from_millis(100);
        ensure!(waited < Duration::from_secs(20), "does not recover");
    }
    done(
        a.put(Document::Status, r#"{"optime":3}"#, Expect::Anything)
            .await,
    )?;
    ensure!(a.load(Freshness::Recent).await?.status.optime.0 == 3);
    Ok(())
}

async fn answers_lost(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    done(a.put_member(&document(1)).await)?;
    h.cut("a", Cut::AnswersLost).await;
    unknown(a.acquire().await)?;
    h.mend("a").await;
    // Whatever came of it, and whenever: it may still happen after the answer was given up. One of the two leads afterwards.
    let mut waited = Duration::ZERO;
    let lease = loop {
        let answer = match a
            .load(Freshness::Latest)
            .await
            .map(|cluster| cluster.leader)
        {
            Ok(Some(leader)) => {
                ensure!(leader.name == name("a"));
                a.adopt(&leader).await
            }
            Ok(None) => a.acquire().await,
            Err(error) => Write::Unknown(error),
        };
        if let Write::Done(lease) = answer {
            break lease;
        }
        h.elapse(Duration::from_millis(100)).await;
        waited += Duration::from_millis(100);
        ensure!(waited < Duration::from_secs(20), "does not recover");
    };
    refused(b.acquire().await)?;
    done(a.renew(&lease).await)
}

async fn notified_after_reconnect(h: &dyn Harness) -> Outcome {
    let (a, b) = (h.open("a").await, h.open("b").await);
    done(
        a.put(Document::Status, r#"{"optime":1}"#, Expect::Anything)
            .await,
    )?;
    let mut changes = watched(h, &b).await?;
    h.cut("b", Cut::Refused).await;
    done(
        a.put(Document::Status, r#"{"optime":2}"#, Expect::Anything)
            .await,
    )?;
    h.elapse(Duration::from_millis(200)).await;
    h.mend("b").await;
    notified(
        h,
        &mut changes,
        Duration::from_secs(30),
        "what happened while the connection was broken",
    )
    .await?;
    let mut waited = Duration::ZERO;
    while !b
        .load(Freshness::Recent)
        .await
        .is_ok_and(|c| c.status.optime.0 == 2)
    {
        h.elapse(Duration::from_millis(100)).await;
        waited += Duration::from_millis(100);
        ensure!(waited < Duration::from_secs(20), "the change is never seen");
    }
    done(
        a.put(Document::Status, r#"{"optime":3}"#, Expect::Anything)
            .await,
    )?;
    notified(h, &mut changes, h.ttl(), "a change after the reconnect").await
}
