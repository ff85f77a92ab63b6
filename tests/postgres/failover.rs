//! Promotion right after the primary was lost.

use std::time::{Duration, Instant};

use howdah::postgres::process::reload;
use howdah::postgres::promote::{self, Promoted};
use howdah::postgres::{control, ready, stop};
use rustix::process::Signal;

use crate::cluster::{Cluster, drop_root, eventually};

/// A primary and a standby that streams from it.
async fn pair() -> (Cluster, Cluster) {
    let primary = Cluster::create();
    primary.start().await;
    let standby = Cluster::standby_of(&primary);
    standby.start().await;
    eventually("the standby streams", async || {
        primary.psql("select count(*) from pg_stat_replication where state = 'streaming'") == "1"
    })
    .await;
    (primary, standby)
}

/// Kills the primary, promotes the standby at once, and returns the time until it has accepted a write.
async fn fail_over(cut_first: bool) -> Duration {
    let (primary, standby) = pair().await;
    primary.psql("create table t(i int); insert into t values (1)");
    eventually("the write has arrived", async || {
        standby.psql("select count(*) from pg_class where relname = 't'") == "1"
    })
    .await;
    let old = match howdah::postgres::pidfile::find(&primary.settings) {
        howdah::postgres::pidfile::Found::Postmaster(old) => old,
        other => panic!("{other:?}"),
    };
    let new = match howdah::postgres::pidfile::find(&standby.settings) {
        howdah::postgres::pidfile::Found::Postmaster(new) => new,
        other => panic!("{other:?}"),
    };

    old.signal(Signal::KILL).unwrap();
    #[expect(clippy::disallowed_methods, reason = "measures")]
    let begin = Instant::now();
    old.exited().await;
    if cut_first {
        let rewrite = async {
            standby.configure("primary_conninfo = ''\n");
            Ok(())
        };
        assert!(promote::cut_receiver(&new, rewrite).await.unwrap());
        assert!(promote::receivers(&new).is_empty());
    }
    promote::promote(&standby.settings, &new).await.unwrap();
    let end = tokio::time::timeout(
        Duration::from_secs(20),
        promote::finished(&standby.settings, &new),
    )
    .await;
    assert_eq!(end, Ok(Promoted::InProduction));
    standby.psql("insert into t values (2)");
    let took = begin.elapsed();

    assert_eq!(standby.psql("select count(*) from t"), "2");
    assert!(!standby.settings.data_dir.join("promote").exists());
    stop::bury(&primary.settings).await;
    took
}

/// Without remedy about half of these take five seconds.
#[tokio::test]
async fn promoting_right_after_the_primary_died_takes_less_than_a_second() {
    drop_root();
    for round in 0..5 {
        for cut_first in [true, false] {
            let took = fail_over(cut_first).await;
            eprintln!("round {round}, receiver cut first: {cut_first}: {took:?}");
            assert!(
                took < Duration::from_secs(1),
                "round {round}, cut first: {cut_first}: {took:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_primary_is_not_promoted() {
    drop_root();
    let primary = Cluster::create();
    let postmaster = primary.start().await;
    let error = promote::promote(&primary.settings, &postmaster)
        .await
        .unwrap_err();
    assert!(
        matches!(error, promote::PromoteError::NotInRecovery(_)),
        "{error}"
    );
    assert!(!primary.settings.data_dir.join("promote").exists());
}

/// A stopped standby reports no shutdown checkpoint, and the server follows a reload.
#[tokio::test]
async fn a_standby_stops_without_a_checkpoint_of_its_own() {
    drop_root();
    let (_primary, standby) = pair().await;
    let postmaster = match howdah::postgres::pidfile::find(&standby.settings) {
        howdah::postgres::pidfile::Found::Postmaster(postmaster) => postmaster,
        other => panic!("{other:?}"),
    };
    assert!(reload(&postmaster).unwrap());
    assert_eq!(ready::ping(&standby.settings).await, ready::Ping::Accepting);
    stop::stop(
        &standby.settings,
        &postmaster,
        stop::Mode::Fast,
        None,
        &mut (),
    )
    .await
    .unwrap();
    let control = control::read(&standby.settings).await.unwrap();
    assert_eq!(control.state, control::ControlState::ShutDownInRecovery);
    assert!(control.min_recovery_end.known().is_some());
}
