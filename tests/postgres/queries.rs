//! Connections, the monitoring query, replication commands and crash recovery.

use std::time::Duration;

use howdah::postgres::conninfo::Upstream;
use howdah::postgres::control::{self, ControlState};
use howdah::postgres::observe::{Observer, Wants};
use howdah::postgres::promote;
use howdah::postgres::single_user;
use howdah::postgres::sql::Target;
use howdah::postgres::stop::{self, Mode};
use howdah::postgres::{Credentials, Settings};
use howdah::types::{Lsn, PgVersion, ReplicationState, Timeline};
use rustix::process::Signal;

use crate::cluster::{Cluster, drop_root, eventually};

/// The same server, over TCP, where it asks for a password.
fn over_tcp(cluster: &Cluster) -> Settings {
    Settings {
        use_unix_socket: false,
        ..cluster.settings.clone()
    }
}

#[tokio::test]
async fn a_primary_and_its_standby_are_observed() {
    drop_root();
    let primary = Cluster::create();
    primary.start().await;
    primary.psql("select pg_create_physical_replication_slot('standby')");
    let standby = Cluster::standby_of(&primary);
    let conninfo = format!("{} application_name=standby", primary.conninfo());
    standby.configure(&format!(
        "primary_conninfo = '{conninfo}'\nprimary_slot_name = 'standby'\n"
    ));
    standby.start().await;
    let (mut here, mut there) = (Observer::new(), Observer::new());
    let wants = Wants { slots: true };
    eventually("the standby streams", async || {
        let sample = there.observe(&standby.settings, wants).await.unwrap();
        sample.replication_state() == Some(ReplicationState::Streaming)
            && sample.timeline() == Some(Timeline(1))
    })
    .await;

    let sample = here.observe(&primary.settings, wants).await.unwrap();
    assert!(!sample.in_recovery && sample.flushed > Lsn::ZERO);
    assert_eq!(
        (sample.timeline(), sample.checkpoint_timeline),
        (Some(Timeline(1)), Some(Timeline(1)))
    );
    assert_eq!(sample.walsenders.len(), 1);
    let sender = &sample.walsenders[0];
    assert_eq!(sender.shown.application_name.as_deref(), Some("standby"));
    assert_eq!(sender.shown.state.as_deref(), Some("streaming"));
    let slots = sample.slots.as_ref().unwrap();
    assert!(
        slots.len() == 1 && slots[0].physical && slots[0].active,
        "{slots:?}"
    );
    assert!(sample.status().is_writable());

    let sample = there.observe(&standby.settings, wants).await.unwrap();
    assert!(
        sample.in_recovery
            && sample.received_effectively() > Lsn::ZERO
            && sample.replayed > Lsn::ZERO
    );
    let receiver = sample.receiver.unwrap();
    assert_eq!(receiver.slot_name.as_deref(), Some("standby"));
    assert!(receiver.conninfo.contains("application_name=standby"));
}

#[tokio::test]
async fn a_restart_costs_the_observer_one_connection() {
    drop_root();
    let cluster = Cluster::create();
    let first = cluster.start().await;
    let settings = over_tcp(&cluster);
    let mut observer = Observer::new();
    let before = observer.observe(&settings, Wants::default()).await.unwrap();
    stop::stop(&cluster.settings, &first, Mode::Fast, None, &mut ())
        .await
        .unwrap();
    let error = observer
        .observe(&settings, Wants::default())
        .await
        .unwrap_err();
    assert!(error.is_connection(), "{error}");
    cluster.start().await;
    let after = observer.observe(&settings, Wants::default()).await.unwrap();
    assert!(after.postmaster_start_time > before.postmaster_start_time);
    assert_eq!(
        cluster.psql(
            "select count(*) from pg_stat_activity where application_name = 'Patroni heartbeat'"
        ),
        "1"
    );
}

#[tokio::test]
async fn a_server_that_does_not_answer_costs_a_bounded_time() {
    drop_root();
    let cluster = Cluster::create();
    let postmaster = cluster.start().await;
    let mut observer = Observer::new();
    observer
        .observe(&cluster.settings, Wants::default())
        .await
        .unwrap();
    for child in postmaster.children() {
        child.signal(Signal::STOP).unwrap();
    }
    let asked = tokio::time::timeout(
        Duration::from_secs(10),
        observer.observe(&cluster.settings, Wants::default()),
    );
    assert!(asked.await.expect("within its limits").is_err());
}

#[tokio::test]
async fn replication_commands_and_timeline_history() {
    drop_root();
    let primary = Cluster::create();
    primary.start().await;
    let standby = Cluster::standby_of(&primary);
    let new = standby.start().await;
    promote::promote(&standby.settings, &new).await.unwrap();
    promote::finished(&standby.settings, &new).await;

    let session = Target::local_replication(&standby.settings)
        .connect()
        .await
        .unwrap();
    let system = session.identify_system().await.unwrap();
    let control = control::read(&primary.settings).await.unwrap();
    assert_eq!(
        (&system.system_id, system.timeline),
        (&control.system_id, Timeline(2))
    );
    let history = session.timeline_history(Timeline(2)).await.unwrap();
    assert_eq!(history.len(), 1);
    assert!(
        history[0].timeline == Timeline(1) && history[0].switch <= system.position,
        "{history:?}"
    );
    let error = session.timeline_history(Timeline(7)).await.unwrap_err();
    assert_eq!(error.code(), Some("58P01"), "{error}");
}

#[tokio::test]
async fn only_a_writable_server_will_do() {
    drop_root();
    let primary = Cluster::create();
    primary.start().await;
    let standby = Cluster::standby_of(&primary);
    standby.start().await;
    let upstream = Upstream {
        host: "127.0.0.1,127.0.0.1".to_owned(),
        port: format!("{},{}", standby.settings.port, primary.settings.port),
        dbname: None,
    };
    let target = Target::remote(&upstream, "postgres", &primary.settings.superuser);
    assert!(
        target
            .connect()
            .await
            .unwrap()
            .is_in_recovery()
            .await
            .unwrap()
    );
    assert!(
        !target
            .writable()
            .connect()
            .await
            .unwrap()
            .is_in_recovery()
            .await
            .unwrap()
    );

    let wrong = Credentials {
        password: Some("wrong".to_owned()),
        ..primary.settings.superuser.clone()
    };
    let error = Target::remote(&upstream, "postgres", &wrong)
        .connect()
        .await
        .err()
        .unwrap();
    assert_eq!(error.code(), Some("28P01"), "{error}");
}

/// TLS in each mode that checks something, with a certificate made for another name.
#[tokio::test]
async fn certificates_are_checked_as_libpq_does() {
    drop_root();
    let cluster = Cluster::create();
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["db.example".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let other_authority = rcgen::generate_simple_self_signed(vec!["other".to_owned()]).unwrap();
    let file = |name: &str, text: String| {
        use std::os::unix::fs::PermissionsExt;
        let path = cluster.settings.data_dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    file("server.crt", certificate.pem());
    file("server.key", key.serialize_pem());
    let root = file("root.crt", authority_certificate.pem());
    let other = file("other.crt", other_authority.cert.pem());
    cluster.configure("ssl = on\n");
    cluster.start().await;

    let connect = async |mode: &str, root: Option<&String>| {
        let mut settings = over_tcp(&cluster);
        settings.superuser.sslmode = Some(mode.to_owned());
        settings.superuser.sslrootcert = root.cloned();
        let session = Target::local(&settings)
            .connect()
            .await
            .map_err(|error| error.to_string())?;
        let rows = session
            .simple("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
            .await
            .unwrap();
        Ok::<_, String>(rows[0][0].clone())
    };
    let encrypted = Ok(Some("t".to_owned()));
    assert_eq!(connect("disable", None).await, Ok(Some("f".to_owned())));
    assert_eq!(connect("prefer", None).await, encrypted);
    assert_eq!(connect("require", None).await, encrypted);
    assert_eq!(connect("verify-ca", Some(&root)).await, encrypted);
    assert!(
        connect("verify-full", Some(&root)).await.is_err(),
        "another name"
    );
    assert!(
        connect("verify-ca", Some(&other)).await.is_err(),
        "another authority"
    );
    assert!(
        connect("verify-ca", None).await.is_err(),
        "nothing to check against"
    );

    let mut replication = over_tcp(&cluster);
    replication.replication.sslmode = Some("require".to_owned());
    let session = Target::local_replication(&replication).connect().await;
    // The shipped rules let replication in by TCP with a password.
    assert_eq!(
        session.unwrap().identify_system().await.unwrap().timeline,
        Timeline(1)
    );
}

#[tokio::test]
async fn clients_are_terminated_and_the_observer_stays() {
    drop_root();
    let cluster = Cluster::create();
    cluster.start().await;
    let mut client = tokio::process::Command::new(cluster.settings.program("psql"))
        .args([
            "-d",
            &format!("{} dbname=postgres", cluster.conninfo()),
            "-c",
            "select pg_sleep(600)",
        ])
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    eventually("the client is busy", async || {
        cluster.psql("select count(*) from pg_stat_activity where query = 'select pg_sleep(600)'")
            == "1"
    })
    .await;
    let mut observer = Observer::new();
    observer
        .observe(&cluster.settings, Wants::default())
        .await
        .unwrap();
    let session = observer.session().unwrap();
    assert!(session.terminate_clients().await.unwrap() >= 1);
    assert!(!client.wait().await.unwrap().success());
    assert!(!session.is_in_recovery().await.unwrap());
    session.checkpoint(PgVersion(150_000)).await.unwrap();
}

#[tokio::test]
async fn crash_recovery_without_a_postmaster() {
    drop_root();
    let cluster = Cluster::create();
    let postmaster = cluster.start().await;
    cluster.psql("create table t(i int); insert into t values (1)");
    stop::stop(
        &cluster.settings,
        &postmaster,
        Mode::Immediate,
        None,
        &mut (),
    )
    .await
    .unwrap();
    assert_eq!(
        control::read(&cluster.settings).await.unwrap().state,
        ControlState::InProduction
    );
    single_user::recover(
        &cluster.settings,
        PgVersion(150_000),
        std::future::pending(),
    )
    .await
    .unwrap();
    assert_eq!(
        control::read(&cluster.settings).await.unwrap().state,
        ControlState::ShutDown
    );
    cluster.start().await;
    assert_eq!(cluster.psql("select count(*) from t"), "1");
}
