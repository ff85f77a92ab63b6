//! A cluster from nothing, its replicas, and the return of a diverged node: configuration, initdb, clone, rewind.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use howdah::postgres::bootstrap;
use howdah::postgres::changes;
use howdah::postgres::clone::{self, CloneError, CloneRequest, Method, Progress, Source};
use howdah::postgres::conninfo::{Conninfo, PrimaryConninfo, Upstream, primary_conninfo};
use howdah::postgres::control;
use howdah::postgres::directory::{self, Contents, Removal};
use howdah::postgres::inquire;
use howdah::postgres::params::{
    self, FollowInputs, Parameters, ServerInputs, SynchronousNames, follow_settings,
    server_settings,
};
use howdah::postgres::process::{self, Postmaster};
use howdah::postgres::ready::{self, Readiness};
use howdah::postgres::render;
use howdah::postgres::rewind::{self, RewindRequest, Verdict};
use howdah::postgres::slots::{self, DesiredSlot, PlanInputs, SlotAction};
use howdah::postgres::stop::{self, Mode};
use howdah::postgres::write::{self, Recovery, Wanted};
use howdah::postgres::{Credentials, Settings};
use howdah::types::PgVersion;
use serde_json::json;

use crate::cluster::{Cluster, drop_root, eventually};

fn user(name: &str, password: &str) -> Credentials {
    Credentials {
        username: Some(name.to_owned()),
        password: Some(password.to_owned()),
        ..Credentials::default()
    }
}

/// An empty place for a node of a cluster whose users have passwords; connections go over TCP.
fn empty_node() -> Cluster {
    let mut node = Cluster::empty();
    node.settings.superuser = user("postgres", "super:\\ secret");
    node.settings.replication = user("replicator", "it's a $$ secret");
    node.settings.rewind = Some(user("rewinder", "rewind"));
    node.settings.use_unix_socket = false;
    node
}

fn major(node: &Cluster) -> PgVersion {
    directory::major_version(&node.settings.data_dir).unwrap()
}

/// Writes the configuration files as for a start; returns the postmaster's arguments.
fn configure(node: &Cluster, follow: Option<&Cluster>) -> Vec<String> {
    let settings = &node.settings;
    let version = major(node);
    let sockets = settings.unix_socket_directories.as_ref().unwrap()[0].clone();
    let configured: Parameters = [
        ("unix_socket_directories", sockets.as_str()),
        ("fsync", "off"),
        ("max_connections", "30"),
        ("log_line_prefix", "it's \\ %p "),
        ("no_such_setting", "1"),
    ]
    .into_iter()
    .collect();
    let server = server_settings(&ServerInputs {
        configured: &configured,
        listen_addresses: "127.0.0.1",
        port: settings.port,
        cluster_name: "demo",
        version,
        known_names: Some(&std::collections::BTreeSet::new()),
        synchronous_names: SynchronousNames::Configured,
        control: follow.map(|_| control::read_file(&settings.data_dir).unwrap().limits),
        without_hot_standby: false,
        force_feedback: false,
        citus_local_host: None,
    });
    assert_eq!(server.problems.len(), 1, "{:?}", server.problems);
    let (mut passwords, mut recovery) = (None, Recovery::Removed);
    if let Some(primary) = follow {
        let (conninfo, lines) = primary_conninfo(
            &upstream(primary),
            &PrimaryConninfo {
                credentials: &settings.replication,
                application_name: "node-2",
                database: "postgres",
                krbsrvname: None,
                passfile: settings.pgpass.to_str().unwrap(),
                version,
                read_write: false,
            },
        );
        passwords = lines;
        let recovered = follow_settings(&FollowInputs {
            major: version,
            recovery_conf: &Parameters::new(),
            configured: &configured,
            known_names: None,
            standby_cluster: None,
            primary_conninfo: Some(&conninfo.to_string()),
            primary_slot_name: Some("node_2"),
        });
        recovery = Recovery::Set(recovered);
    }
    let wanted = Wanted {
        major: version,
        parameters: server.parameters,
        custom_conf: None,
        hba: Some(vec![
            "local all all trust".into(),
            "host all all 127.0.0.1/32 scram-sha-256".into(),
            "host replication replicator 127.0.0.1/32 scram-sha-256".into(),
        ]),
        ident: Some(vec!["m a b".into()]),
        recovery,
        passwords,
        keep_auto_conf: false,
        bootstrap_hba: None,
    };
    write::write(settings, &wanted).unwrap();
    server
        .command_line
        .iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect()
}

/// The same for the recovery of a custom bootstrap.
fn configure_for_bootstrap(node: &Cluster, recovery_conf: &Parameters) -> Vec<String> {
    let settings = &node.settings;
    let version = major(node);
    let sockets = settings.unix_socket_directories.as_ref().unwrap()[0].clone();
    let configured: Parameters = [
        ("unix_socket_directories", sockets.as_str()),
        ("fsync", "off"),
    ]
    .into_iter()
    .collect();
    let server = server_settings(&ServerInputs {
        configured: &configured,
        listen_addresses: "127.0.0.1",
        port: settings.port,
        cluster_name: "demo",
        version,
        known_names: None,
        synchronous_names: SynchronousNames::Configured,
        control: None,
        without_hot_standby: true,
        force_feedback: false,
        citus_local_host: None,
    });
    let local = "127.0.0.1".parse().unwrap();
    let wanted = Wanted {
        major: version,
        parameters: server.parameters,
        custom_conf: None,
        hba: None,
        ident: None,
        recovery: Recovery::Set(params::bootstrap_recovery_settings(
            recovery_conf,
            version,
            None,
        )),
        passwords: None,
        keep_auto_conf: false,
        bootstrap_hba: Some(render::bootstrap_hba(
            "replicator",
            Some("postgres"),
            &[local],
        )),
    };
    write::write(settings, &wanted).unwrap();
    server
        .command_line
        .iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect()
}

fn upstream(node: &Cluster) -> Upstream {
    Upstream::from_url(&format!(
        "postgres://127.0.0.1:{}/postgres",
        node.settings.port
    ))
    .unwrap()
}

async fn start(settings: &Settings, arguments: &[String]) -> Postmaster {
    let postmaster = process::start(settings, arguments).unwrap();
    let ready =
        tokio::time::timeout(Duration::from_secs(30), ready::wait(settings, &postmaster)).await;
    assert_eq!(ready, Ok(Readiness::Accepting));
    postmaster
}

async fn halt(node: &Cluster, postmaster: &Postmaster) {
    stop::stop(
        &node.settings,
        postmaster,
        Mode::Fast,
        Some(Duration::from_secs(30)),
        &mut (),
    )
    .await
    .unwrap();
}

async fn client(node: &Cluster) -> tokio_postgres::Client {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(node.settings.port)
        .user("postgres")
        .password("super:\\ secret")
        .dbname("postgres");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A running primary with its users.
async fn primary() -> (Cluster, Postmaster) {
    let node = empty_node();
    bootstrap::initdb(
        &node.settings,
        &json!([{"encoding": "UTF8"}, "no-locale", "no-sync"]),
        std::future::pending(),
    )
    .await
    .unwrap();
    assert!(matches!(
        directory::contents(&node.settings.data_dir).unwrap(),
        Contents::Incomplete(_)
    ));
    let arguments = configure(&node, None);
    let postmaster = start(&node.settings, &arguments).await;
    bootstrap::create_users(&client(&node).await, &node.settings, major(&node))
        .await
        .unwrap();
    directory::mark_complete(&node.settings.data_dir).unwrap();
    write::back_up(&node.settings, &Parameters::new(), false).unwrap();
    (node, postmaster)
}

fn source(of: &Cluster, settings: &Settings) -> Source {
    let upstream = upstream(of);
    let user = settings.replication.username.as_deref().unwrap();
    let password = settings.replication.password.as_deref().unwrap();
    Source {
        conninfo: Conninfo::new(&upstream, &settings.replication, "postgres", major(of)),
        passwords: Some(render::pgpass(
            &upstream.host,
            &upstream.port,
            user,
            password,
        )),
    }
}

async fn clone_of(
    primary: &Cluster,
    node: &Cluster,
    methods: &[Method],
    replace: Option<Removal>,
) -> Result<String, CloneError> {
    let source = source(primary, &node.settings);
    let progress = Progress::default();
    let request = CloneRequest {
        settings: &node.settings,
        scope: "demo",
        methods,
        source: Some(&source),
        replace,
        keep_replaced: Some(u64::MAX),
        progress: &progress,
    };
    let done = clone::clone(&request, std::future::pending()).await;
    if done.is_ok() {
        let (bytes, total) = progress.bytes();
        assert!(bytes > 1_000_000 && bytes == total, "{bytes} of {total}");
    }
    done
}

/// The statement's only value, as text.
async fn value(client: &tokio_postgres::Client, statement: &str) -> String {
    client.query_one(statement, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_cluster_is_made_with_its_settings_and_users() {
    drop_root();
    let (node, postmaster) = primary().await;
    let client = client(&node).await;
    for (setting, expected) in [
        ("max_connections", "30"),
        ("cluster_name", "demo"),
        ("wal_level", "replica"),
        ("wal_keep_size", "128MB"),
        ("data_checksums", "on"),
        ("log_line_prefix", "it's \\ %p "),
        ("server_encoding", "UTF8"),
    ] {
        assert_eq!(
            value(&client, &format!("SELECT current_setting('{setting}')")).await,
            expected,
            "{setting}"
        );
    }
    let users = "SELECT string_agg(rolname || rolsuper::text || rolreplication::text, ',' ORDER BY rolname) FROM pg_roles WHERE rolcanlogin";
    assert_eq!(
        value(&client, users).await,
        "postgrestruetrue,replicatorfalsetrue,rewinderfalsefalse"
    );
    let allowed = "SELECT has_function_privilege('rewinder', 'pg_read_binary_file(text, bigint, bigint, boolean)', 'execute')::text";
    assert_eq!(value(&client, allowed).await, "true");
    assert_eq!(
        value(&client, "SELECT current_setting('log_statement')").await,
        "none"
    );
    // Again: the users exist already, one with another password.
    let mut changed = node.settings.clone();
    changed.replication.password = Some("other".into());
    bootstrap::create_users(&client, &changed, major(&node))
        .await
        .unwrap();
    let leftovers: Vec<PathBuf> = fs::read_dir(node.settings.pgpass.parent().unwrap())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert!(
        !leftovers
            .iter()
            .any(|p| p.to_string_lossy().contains("initdb")),
        "{leftovers:?}"
    );

    let refused = bootstrap::initdb(&node.settings, &json!(null), std::future::pending()).await;
    assert!(
        matches!(refused, Err(bootstrap::BootstrapError::NotEmpty { .. })),
        "{refused:?}"
    );
    halt(&node, &postmaster).await;
}

#[tokio::test]
async fn a_changed_setting_is_reloaded_or_waits_for_a_restart() {
    drop_root();
    let (node, postmaster) = primary().await;
    let settings = &node.settings;
    let client = client(&node).await;
    let programs = inquire::programs_version(settings).await.unwrap().unwrap();
    assert_eq!(
        value(&client, "SHOW server_version_num").await,
        programs.0.to_string()
    );
    let known = inquire::known_names(settings).await.unwrap();
    assert!(known.contains("shared_buffers") && known.contains("datestyle") && known.len() > 200);

    let previous: Parameters = [("work_mem", "4MB"), ("wal_buffers", "-1")]
        .into_iter()
        .collect();
    let wanted: Parameters = [
        ("work_mem", "8MB"),
        ("wal_buffers", "-1"),
        ("shared_buffers", "64MB"),
        ("nonsense", "1"),
    ]
    .into_iter()
    .collect();
    let rows = inquire::rows(
        &client,
        &["Work_Mem", "wal_buffers", "shared_buffers", "nonsense"],
    )
    .await
    .unwrap();
    let comparison = changes::compare(&wanted, &previous, &rows);
    let changed: Vec<_> = comparison
        .changes
        .iter()
        .map(|c| (c.name.as_str(), c.old_value.as_str(), c.new_value.as_str()))
        .collect();
    assert_eq!(
        changed,
        [
            ("shared_buffers", "128MB", "64MB"),
            ("work_mem", "4MB", "8MB")
        ]
    );
    assert_eq!(comparison.invalid, ["nonsense"]);

    let path = settings.config_file();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        format!("{text}shared_buffers = '64MB'\nwork_mem = '8MB'\n"),
    )
    .unwrap();
    assert!(process::reload(&postmaster).unwrap());
    eventually("the reload took effect", async || {
        value(&client, "SHOW work_mem").await == "8MB"
    })
    .await;
    let pending = inquire::pending_restart(&client, settings).await.unwrap();
    assert_eq!(pending, comparison.pending);
    halt(&node, &postmaster).await;
}

#[tokio::test]
async fn the_post_bootstrap_command_connects_with_what_it_is_given() {
    drop_root();
    let (node, postmaster) = primary().await;
    let psql = node.settings.program("psql");
    let command = format!(
        "/bin/sh -c '{} -d \"$0\" -c \"CREATE TABLE made_by_hook ()\"'",
        psql.display()
    );
    bootstrap::post_bootstrap(
        &node.settings,
        &command,
        major(&node),
        std::future::pending(),
    )
    .await
    .unwrap();
    assert_eq!(
        value(
            &client(&node).await,
            "SELECT to_regclass('made_by_hook')::text"
        )
        .await,
        "made_by_hook"
    );
    halt(&node, &postmaster).await;
}

/// A custom method takes a backup, recovery ends at its target by itself, and the temporary trust does not outlive the bootstrap.
#[tokio::test]
async fn a_custom_bootstrap_recovers_to_its_target() {
    drop_root();
    let (first, first_postmaster) = primary().await;
    let admin = client(&first).await;
    admin
        .batch_execute("CREATE TABLE kept (i int)")
        .await
        .unwrap();
    let node = empty_node();
    let settings = &node.settings;
    let from = source(&first, settings);
    write::write_passwords(&settings.pgpass, &from.passwords.unwrap()).unwrap();
    let command = format!(
        "/bin/sh -c 'PGPASSFILE={} exec {} -D \"${{1#--datadir=}}\" -c fast -d \"{}\" --no-sync'",
        settings.pgpass.display(),
        settings.program("pg_basebackup").display(),
        from.conninfo
    );
    let section = json!({"command": command, "recovery_conf": {}});
    bootstrap::custom(
        settings,
        section.as_object().unwrap(),
        "demo",
        std::future::pending(),
    )
    .await
    .unwrap();
    let contents = directory::contents(&settings.data_dir).unwrap();
    assert_eq!(
        contents,
        Contents::Incomplete(directory::Filling::Bootstrap)
    );

    let version = major(&node);
    let recovery_conf: Parameters = [
        ("recovery_target", "immediate"),
        ("recovery_target_action", "promote"),
        ("restore_command", "false"),
    ]
    .into_iter()
    .collect();
    assert!(params::bootstrap_without_hot_standby(
        false,
        Some(&recovery_conf),
        version
    ));
    write::restore(settings, &Parameters::new(), false).unwrap();
    write::remove_trigger_file(settings, &recovery_conf).unwrap();
    let arguments = configure_for_bootstrap(&node, &recovery_conf);
    assert!(
        arguments.contains(&"--hot_standby=off".to_owned()),
        "{arguments:?}"
    );
    let postmaster = process::start(settings, &arguments).unwrap();
    // Nobody can connect before the end of recovery; then everyone local can.
    eventually("recovery ended with the backup's content", async || {
        let conninfo = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres",
            settings.port
        );
        let mut psql = settings.tool("psql");
        psql.args(["-XAtqw", "-d", &conninfo, "-c"]);
        psql.arg("SELECT pg_is_in_recovery() || (SELECT count(*) FROM kept)::text");
        let output = psql.output().await.unwrap();
        String::from_utf8_lossy(&output.stdout).trim() == "false0"
    })
    .await;
    assert!(!settings.data_dir.join("recovery.signal").exists());

    bootstrap::create_users(&client(&node).await, settings, version)
        .await
        .unwrap();
    configure(&node, None);
    directory::mark_complete(&settings.data_dir).unwrap();
    assert!(process::reload(&postmaster).unwrap());
    eventually("passwords are asked for again", async || {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(settings.port)
            .user("postgres")
            .password("wrong")
            .dbname("postgres");
        config.connect(tokio_postgres::NoTls).await.is_err()
    })
    .await;
    let text = fs::read_to_string(settings.config_file()).unwrap();
    assert!(!text.contains("recovery_target"), "{text}");
    halt(&node, &postmaster).await;
    halt(&first, &first_postmaster).await;
}

#[tokio::test]
async fn a_clone_streams_from_its_primary_through_its_slot() {
    drop_root();
    let (first, first_postmaster) = primary().await;
    let client_of_first = client(&first).await;
    let version = major(&first);
    let desired = std::collections::BTreeMap::from([(
        "node_2".to_owned(),
        DesiredSlot {
            expected_active: true,
            advance_to: None,
        },
    )]);
    let plan = async || {
        let present = slots::read(&client_of_first, version).await.unwrap();
        slots::plan(&PlanInputs {
            present: &present,
            desired: &desired,
            logical: &Default::default(),
            follows: false,
            creates_logical: false,
            ignored: &[],
            paused: false,
            may_drop_xmin: true,
            version,
        })
    };
    let steps = plan().await;
    assert_eq!(
        steps,
        [SlotAction::Create {
            name: "node_2".into()
        }]
    );
    for step in &steps {
        slots::carry_out(&client_of_first, step, version)
            .await
            .unwrap();
        slots::carry_out(&client_of_first, step, version)
            .await
            .unwrap();
    }
    assert_eq!(plan().await, []);

    let second = empty_node();
    let methods = [Method::BaseBackup(vec!["--no-sync".into()])];
    assert_eq!(
        clone_of(&first, &second, &methods, None).await.unwrap(),
        "basebackup"
    );
    assert!(matches!(
        directory::contents(&second.settings.data_dir).unwrap(),
        Contents::Cluster(_)
    ));
    fs::remove_file(second.settings.data_dir.join("pg_hba.conf")).unwrap();
    write::restore(&second.settings, &Parameters::new(), false).unwrap();
    assert!(second.settings.data_dir.join("pg_hba.conf").exists());

    let arguments = configure(&second, Some(&first));
    let second_postmaster = start(&second.settings, &arguments).await;
    eventually("node-2 streams", async || {
        let state = "SELECT coalesce(string_agg(application_name || state || slot_name, ','), '') FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid";
        value(&client_of_first, state).await == "node-2streamingnode_2"
    })
    .await;
    let drop = SlotAction::Drop {
        name: "node_2".into(),
        reason: "test",
    };
    slots::carry_out(&client_of_first, &drop, version)
        .await
        .unwrap();
    assert_eq!(plan().await, [], "an active slot survives");
    let again = clone_of(&first, &second, &methods, None).await;
    assert!(
        matches!(again, Err(CloneError::Occupied { .. })),
        "{again:?}"
    );
    halt(&second, &second_postmaster).await;
    slots::carry_out(&client_of_first, &drop, version)
        .await
        .unwrap();
    assert_eq!(plan().await.len(), 1);

    // A wrong password: the failed clone leaves nothing, and says why.
    let mut wrong = empty_node();
    wrong.settings.replication.password = Some("wrong".into());
    let failed = clone_of(&first, &wrong, &methods, None)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        failed.contains("password authentication failed"),
        "{failed}"
    );
    assert!(!wrong.settings.data_dir.exists());
    halt(&first, &first_postmaster).await;
}

#[tokio::test]
async fn a_former_primary_rejoins_directly_or_by_rewind_as_its_history_demands() {
    drop_root();
    let (first, first_postmaster) = primary().await;
    let version = major(&first);
    let admin = client(&first).await;
    admin
        .batch_execute(
            "CREATE TABLE t (i int); SELECT pg_create_physical_replication_slot('node_2')",
        )
        .await
        .unwrap();
    let second = empty_node();
    clone_of(
        &first,
        &second,
        &[Method::BaseBackup(vec!["--no-sync".into()])],
        None,
    )
    .await
    .unwrap();
    let arguments = configure(&second, Some(&first));
    let second_postmaster = start(&second.settings, &arguments).await;
    let second_admin = client(&second).await;
    eventually("the standby caught up", async || {
        let caught_up = "SELECT count(*)::text FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()";
        value(&admin, caught_up).await == "1"
    })
    .await;

    // A clean stop sends everything to the standby: the old primary is a prefix.
    drop(admin);
    halt(&first, &first_postmaster).await;
    second_admin
        .batch_execute("SELECT pg_promote()")
        .await
        .unwrap();
    second_admin
        .batch_execute("CHECKPOINT; SELECT pg_create_physical_replication_slot('node_2')")
        .await
        .unwrap();
    let verdict = rewind::check(&first.settings, version, &upstream(&second), false).await;
    assert!(matches!(verdict, Verdict::Same { .. }), "{verdict:?}");

    // A life of its own after that: diverged.
    let arguments = configure(&first, None);
    let postmaster = start(&first.settings, &arguments).await;
    client(&first)
        .await
        .batch_execute("INSERT INTO t VALUES (1)")
        .await
        .unwrap();
    halt(&first, &postmaster).await;
    second_admin
        .batch_execute("INSERT INTO t VALUES (2)")
        .await
        .unwrap();
    let verdict = rewind::check(&first.settings, version, &upstream(&second), false).await;
    assert!(matches!(verdict, Verdict::Diverged { .. }), "{verdict:?}");

    assert!(
        rewind::source_is_ready(&first.settings, version, &upstream(&second))
            .await
            .unwrap()
    );
    let mut as_superuser = first.settings.clone();
    as_superuser.rewind = None;
    assert!(
        rewind::source_is_ready(&as_superuser, version, &upstream(&second))
            .await
            .unwrap()
    );

    let rewinder = first.settings.rewind.clone().unwrap();
    let from = upstream(&second);
    let passwords = render::pgpass(&from.host, &from.port, "rewinder", "rewind");
    let conninfo = Conninfo::new(&from, &rewinder, "postgres", major(&first));
    let request = RewindRequest {
        settings: &first.settings,
        version: major(&first),
        source: &conninfo,
        passwords: Some(&passwords),
        options: &["--no-sync".to_owned()],
        restore_command: None,
    };
    let cancelled = rewind::run(&request, std::future::ready(())).await;
    assert!(
        matches!(cancelled, Err(rewind::RewindError::NotRun(_))),
        "{cancelled:?}"
    );
    let needed = rewind::room_needed(&request, std::future::pending())
        .await
        .unwrap()
        .expect("the dry run tells");
    let megabytes = || directory::size(&first.settings.data_dir).div_ceil(1 << 20);
    let before = megabytes();
    rewind::run(&request, std::future::pending()).await.unwrap();
    let growth = megabytes().saturating_sub(before);
    // One segment of the new timeline was not here; those of the old one were overwritten. And 64 MB are for the start afterwards.
    assert!(
        (growth..64 + 32).contains(&needed),
        "{needed} MB needed, from {before} MB grown by {growth}"
    );
    let arguments = configure(&first, Some(&second));
    let postmaster = start(&first.settings, &arguments).await;
    let first_admin = client(&first).await;
    let verdict = rewind::check(&first.settings, version, &upstream(&second), true).await;
    assert!(matches!(verdict, Verdict::Same { .. }), "{verdict:?}");
    let verdict = rewind::check(&second.settings, version, &upstream(&first), true).await;
    assert!(
        matches!(verdict, Verdict::Undecided { .. }),
        "a standby is no leader: {verdict:?}"
    );
    eventually("the rewound node has the leader's row only", async || {
        value(
            &first_admin,
            "SELECT coalesce(string_agg(i::text, ','), '') FROM t",
        )
        .await
            == "2"
    })
    .await;
    halt(&first, &postmaster).await;

    // Replaced by a new clone: the old directory is kept beside it.
    fs::write(first.settings.data_dir.join("mark"), "").unwrap();
    clone_of(
        &second,
        &first,
        &[Method::BaseBackup(vec!["--no-sync".into()])],
        Some(Removal::Configured),
    )
    .await
    .unwrap();
    let kept = first.settings.data_dir.with_file_name("data.diverged");
    assert!(kept.join("mark").exists() && !first.settings.data_dir.join("mark").exists());
    halt(&second, &second_postmaster).await;
}
