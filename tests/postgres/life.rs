//! Starting, finding, stopping, and what is left after a crash.

use std::fs;
use std::time::Duration;

use async_trait::async_trait;
use howdah::postgres::control::{self, ControlData, ControlState};
use howdah::postgres::pidfile::{self, Found};
use howdah::postgres::process::{self, Postmaster, Process, StartError};
use howdah::postgres::ready::{self, Ping, Readiness};
use howdah::postgres::stop::{self, Hooks, Mode, Stopped};
use howdah::types::PgVersion;
use rustix::process::Signal;

use crate::cluster::{Cluster, drop_root, eventually};

/// What a stop reported, in order.
#[derive(Default)]
struct Diary(Vec<&'static str>, Option<ControlData>);

#[async_trait]
impl Hooks for Diary {
    async fn safepoint(&mut self) {
        self.0.push("safe");
    }

    async fn shut_down(&mut self, control: &ControlData) {
        self.0.push("down");
        self.1 = Some(control.clone());
    }
}

#[tokio::test]
async fn start_find_and_stop() {
    drop_root();
    let cluster = Cluster::create();
    let settings = &cluster.settings;
    assert_eq!(pidfile::find(settings), Found::None);
    assert_eq!(ready::ping(settings).await, Ping::NoResponse);
    let fresh = control::read_file(&settings.data_dir).unwrap();
    assert_eq!(fresh.state, ControlState::ShutDown);

    let postmaster = cluster.start().await;
    assert_eq!(ready::ping(settings).await, Ping::Accepting);
    assert_eq!(
        pidfile::find(settings),
        Found::Postmaster(postmaster.clone())
    );
    assert!(matches!(
        process::start(settings, &[]),
        Err(StartError::AlreadyRunning(_))
    ));
    assert_eq!(cluster.psql("show cluster_name"), "batman: the \"test\"");

    let mut diary = Diary::default();
    let how = stop::stop(
        settings,
        &postmaster,
        Mode::Fast,
        Some(Duration::from_secs(30)),
        &mut diary,
    )
    .await
    .unwrap();
    assert_eq!(how, Stopped::AsAsked);
    assert_eq!(diary.0, ["safe", "down"]);
    assert_eq!(pidfile::find(settings), Found::None);
    assert!(
        Process::open(postmaster.pid()).unwrap().is_none(),
        "collected"
    );

    let control = control::read(settings).await.unwrap();
    assert_eq!(Some(&control), diary.1.as_ref());
    let positions = control::shutdown_positions(settings, &control, PgVersion(150_000))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(positions.checkpoint, control.checkpoint);
    assert_eq!(positions.published, control.checkpoint);
}

/// The control file read directly and the tool's output agree about a real cluster.
#[tokio::test]
async fn both_readers_of_the_control_file_agree() {
    drop_root();
    let cluster = Cluster::create();
    let mut tool = cluster.settings.tool("pg_controldata");
    tool.arg(&cluster.settings.data_dir);
    let output = howdah::postgres::binaries::run_checked(tool).await.unwrap();
    assert_eq!(
        control::parse(&output).unwrap(),
        control::read_file(&cluster.settings.data_dir).unwrap()
    );
}

#[tokio::test]
async fn with_archiving_the_published_position_is_the_switch() {
    drop_root();
    let cluster = Cluster::create();
    cluster.configure("archive_mode = on\narchive_command = 'true'\nwal_keep_size = '128MB'\n");
    let postmaster = cluster.start().await;
    cluster.psql("create table t()");
    stop::stop(&cluster.settings, &postmaster, Mode::Fast, None, &mut ())
        .await
        .unwrap();
    let control = control::read(&cluster.settings).await.unwrap();
    let positions = control::shutdown_positions(&cluster.settings, &control, PgVersion(150_000))
        .await
        .unwrap()
        .unwrap();
    assert!(positions.published < positions.checkpoint, "{positions:?}");
}

/// A busy archiver keeps the postmaster; the end of history is known and reported before it has gone.
#[tokio::test]
async fn the_shutdown_checkpoint_is_reported_while_the_archiver_works() {
    struct Alive(Postmaster, Option<bool>);
    #[async_trait]
    impl Hooks for Alive {
        async fn shut_down(&mut self, control: &ControlData) {
            assert_eq!(control.state, ControlState::ShutDown);
            self.1 = Some(self.0.is_alive());
        }
    }
    drop_root();
    let cluster = Cluster::create();
    cluster.configure("archive_mode = on\narchive_command = 'sleep 1'\n");
    let postmaster = cluster.start().await;
    cluster.psql("create table t()");
    stop::checkpoint_first(
        &cluster.settings,
        PgVersion(150_000),
        Some(Duration::from_secs(20)),
    )
    .await
    .unwrap();
    let mut hooks = Alive(postmaster.clone(), None);
    let how = stop::stop(&cluster.settings, &postmaster, Mode::Fast, None, &mut hooks)
        .await
        .unwrap();
    assert_eq!((how, hooks.1), (Stopped::AsAsked, Some(true)));
}

/// What another process started is found, watched and stopped like our own: so is a server that outlived an earlier agent.
#[tokio::test]
async fn a_server_somebody_else_started_is_adopted() {
    drop_root();
    let cluster = Cluster::create();
    let mut command = cluster.settings.tool("pg_ctl");
    command
        .args(["start", "-w", "-s", "-l", "/dev/null", "-D"])
        .arg(&cluster.settings.data_dir)
        .args([
            "-o",
            &format!(
                "-p {} -k {}",
                cluster.settings.port,
                cluster.settings.unix_socket_directories.as_ref().unwrap()[0]
            ),
        ]);
    assert!(command.status().await.unwrap().success());
    let Found::Postmaster(postmaster) = pidfile::find(&cluster.settings) else {
        panic!("not found");
    };
    assert_eq!(
        ready::now(&cluster.settings, &postmaster).await,
        Some(Readiness::Accepting)
    );
    let mut diary = Diary::default();
    stop::stop(&cluster.settings, &postmaster, Mode::Fast, None, &mut diary)
        .await
        .unwrap();
    assert_eq!(diary.0, ["safe", "down"]);
}

/// The safe point waits for a client that does not want to go, and comes before the checkpoint.
#[tokio::test]
async fn a_smart_stop_waits_for_its_clients_then_escalates() {
    drop_root();
    let cluster = Cluster::create();
    let postmaster = cluster.start().await;
    let _client = tokio::process::Command::new(cluster.settings.program("psql"))
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
        cluster.psql("select count(*) from pg_stat_activity where query like '%sleep(600)' and state = 'active' and pid <> pg_backend_pid()") == "1"
    })
    .await;
    let mut diary = Diary::default();
    let how = stop::stop(
        &cluster.settings,
        &postmaster,
        Mode::Smart,
        Some(Duration::from_millis(300)),
        &mut diary,
    )
    .await
    .unwrap();
    assert_eq!(how, Stopped::Immediate);
    assert_eq!(
        diary.0,
        ["safe"],
        "only after everything was gone, and there was no checkpoint"
    );
    assert_eq!(
        control::read(&cluster.settings).await.unwrap().state,
        ControlState::InProduction
    );
}

#[tokio::test]
async fn a_hanging_server_is_killed_with_all_its_children() {
    drop_root();
    let cluster = Cluster::create();
    let postmaster = cluster.start().await;
    let children = postmaster.children();
    assert!(children.len() >= 5);
    postmaster.signal(Signal::STOP).unwrap();
    let how = stop::stop(
        &cluster.settings,
        &postmaster,
        Mode::Fast,
        Some(Duration::from_millis(100)),
        &mut (),
    )
    .await;
    assert_eq!(how.unwrap(), Stopped::Killed);
    assert!(children.iter().all(|child| !child.is_alive()));
}

#[tokio::test]
async fn backends_that_outlive_their_postmaster_are_found_and_ended() {
    drop_root();
    let cluster = Cluster::create();
    let postmaster = cluster.start().await;
    let children = postmaster.children();
    for child in &children {
        child.signal(Signal::STOP).unwrap();
    }
    postmaster.signal(Signal::KILL).unwrap();
    postmaster.exited().await;
    assert!(matches!(
        pidfile::find(&cluster.settings),
        Found::Stale { alive: false, .. }
    ));
    assert!(
        matches!(process::start(&cluster.settings, &cluster.arguments), Err(StartError::Survivors(left)) if left.len() == children.len())
    );
    stop::bury(&cluster.settings).await;
    assert!(children.iter().all(|child| !child.is_alive()));
    // The stale lock file does not keep it from starting again.
    cluster.start().await;
}

/// A pid file left by an earlier container names a living stranger.
#[tokio::test]
async fn a_lock_file_that_names_a_stranger() {
    drop_root();
    let cluster = Cluster::create();
    let postmaster = cluster.start().await;
    stop::stop(
        &cluster.settings,
        &postmaster,
        Mode::Immediate,
        None,
        &mut (),
    )
    .await
    .unwrap();
    let file = cluster.settings.data_dir.join("postmaster.pid");
    let mut stranger = tokio::process::Command::new("/bin/sleep")
        .arg("600")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = stranger.id().unwrap();
    fs::write(
        &file,
        format!("{pid}\n{}\n1\n5432\n", cluster.settings.data_dir.display()),
    )
    .unwrap();
    assert_eq!(
        pidfile::find(&cluster.settings),
        Found::Stale {
            pid: i32::try_from(pid).unwrap(),
            alive: true
        }
    );
    cluster.start().await;
    assert!(stranger.try_wait().unwrap().is_none(), "the stranger lives");
}
