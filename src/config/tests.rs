use std::time::Duration;

use serde_json::json;

use super::*;
use crate::config::env::FakeEnvironment;

fn load(variables: &[(&str, &str)]) -> Result<Loaded, Faults> {
    Config::load(None, &FakeEnvironment::new(variables))
}

fn load_yaml(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, Faults> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yml");
    std::fs::write(&path, text).unwrap();
    Config::load(Some(&path), &FakeEnvironment::new(variables))
}

const FILE: &str = "
scope: batman
name: postgresql0
restapi: {listen: 127.0.0.1:8008, connect_address: 127.0.0.1:8008}
etcd3: {host: 127.0.0.1:2379}
bootstrap:
  dcs: {ttl: 40, loop_wait: 10, retry_timeout: 10}
  initdb:
  - encoding: UTF8
  - data-checksums
postgresql:
  listen: 127.0.0.1:5432
  connect_address: 127.0.0.1:5432
  data_dir: data/postgresql0
  pgpass: /tmp/pgpass0
  authentication:
    replication: {username: replicator, password: rep-pass, nonsense: 1}
    superuser: {username: postgres, password: zalando}
    rewind: {username: rewind_user, password: rewind_password}
  parameters: {unix_socket_directories: '..', hot_standby: on}
tags: {noloadbalance: false, clonefrom: off, nostream: no, zone: a}
";

#[test]
fn scope_and_name_are_enough() {
    let loaded = load(&[("PATRONI_SCOPE", "demo"), ("PATRONI_NAME", "n1")]).unwrap();
    let config = &loaded.config;
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    assert_eq!(config.base_path(), "/service/demo");
    assert_eq!(config.postgresql.listen.listen_addresses(), "0.0.0.0");
    assert_eq!(
        config.postgresql.conn_url(),
        "postgres://10.0.0.1:5432/postgres"
    );
    assert_eq!(config.api_url(), "http://10.0.0.1:8008/patroni");
    assert_eq!(
        config.postgresql.data_dir,
        Path::new("/var/lib/postgresql/data")
    );
    assert_eq!(
        config.postgresql.binary("pg_ctl"),
        Path::new("/usr/lib/postgresql/17/bin/pg_ctl")
    );
    let DcsSection::Raft(raft) = &config.dcs else {
        panic!("{:?}", config.dcs)
    };
    assert_eq!(
        (raft.self_addr.as_str(), raft.bind_addr.as_str()),
        ("10.0.0.1:2222", "0.0.0.0:2222")
    );
    assert_eq!(raft.data_dir, Path::new("/var/lib/postgresql/raft"));
    assert!(raft.partner_addrs.is_empty() && config.postgresql.generate_passwords);
    assert_eq!(
        Value::Object(config.bootstrap.dcs.clone()),
        json!({"ttl": 30, "loop_wait": 10, "retry_timeout": 10, "postgresql": {"use_pg_rewind": true}})
    );
    assert_eq!(
        config.bootstrap.initdb,
        [json!({"encoding": "UTF8"}), json!("data-checksums")]
    );
    assert!(config.bootstrap.from_environment.is_empty());
}

#[test]
fn a_file_of_patroni() {
    let config = load_yaml(FILE, &[]).unwrap().config;
    assert_eq!(config.name.as_str(), "postgresql0");
    let DcsSection::Etcd3(etcd) = &config.dcs else {
        panic!("{:?}", config.dcs)
    };
    assert_eq!(etcd.endpoints, ["http://127.0.0.1:2379"]);
    assert_eq!(config.bootstrap.dcs["ttl"], 40);
    assert!(config.bootstrap.pg_hba.is_empty());
    assert_eq!(
        config
            .postgresql
            .authentication
            .rewind
            .as_ref()
            .unwrap()
            .username
            .as_deref(),
        Some("rewind_user")
    );
    assert_eq!(
        config
            .postgresql
            .authentication
            .replication
            .password
            .as_ref()
            .unwrap()
            .expose(),
        "rep-pass"
    );
    assert_eq!(
        config.local.0["postgresql"]["parameters"]["hot_standby"],
        true
    );
    assert_eq!(config.tags.custom["zone"], "a");
    assert!(!config.tags.clonefrom && !config.postgresql.generate_passwords);
}

#[test]
fn environment_wins_over_the_file() {
    let variables = [
        ("PATRONI_NAME", "other"),
        ("PATRONI_REPLICATION_PASSWORD", "new"),
        ("PATRONI_TTL", "20"),
        ("PATRONI_ETCD3_HOSTS", "a:1,b"),
        ("PATRONI_POSTGRESQL_CONNECT_ADDRESS", "db1"),
    ];
    let config = load_yaml(FILE, &variables).unwrap().config;
    assert_eq!(config.name.as_str(), "other");
    let replication = &config.postgresql.authentication.replication;
    assert_eq!(
        (
            replication.username.as_deref(),
            replication.password.as_ref().unwrap().expose()
        ),
        (Some("replicator"), "new")
    );
    assert_eq!(config.bootstrap.dcs["ttl"], 20);
    assert_eq!(
        Value::Object(config.bootstrap.from_environment.clone()),
        json!({"ttl": 20})
    );
    assert_eq!(config.postgresql.connect_address.to_string(), "db1:5432");
    let DcsSection::Etcd3(etcd) = &config.dcs else {
        panic!("{:?}", config.dcs)
    };
    assert_eq!(etcd.endpoints, ["http://a:1", "http://b:2379"]);
}

#[test]
fn patroni_configuration_stands_for_the_file_and_merges() {
    let config = load(&[("PATRONI_CONFIGURATION", FILE), ("PATRONI_SCOPE", "robin")])
        .unwrap()
        .config;
    assert_eq!(
        (config.scope.as_str(), config.name.as_str()),
        ("robin", "postgresql0")
    );
}

#[test]
fn a_directory_is_patched_in_order_and_null_deletes() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("1.yml"), FILE).unwrap();
    std::fs::write(
        dir.path().join("2.yaml"),
        "etcd3: null\nconsul: {host: c}\npostgresql: {parameters: {hot_standby: null, a: 1}}",
    )
    .unwrap();
    std::fs::write(dir.path().join("3.txt"), "scope: [").unwrap();
    let loaded = Config::load(Some(dir.path()), &FakeEnvironment::default()).unwrap();
    let DcsSection::Consul(consul) = &loaded.config.dcs else {
        panic!()
    };
    assert_eq!(consul.url, "http://c:8500");
    assert_eq!(
        loaded.config.local.0["postgresql"]["parameters"],
        json!({"unix_socket_directories": "..", "a": 1})
    );
    std::fs::write(dir.path().join("9.yml"), "scope: changed").unwrap();
    assert_eq!(loaded.reload().unwrap().config.scope, "changed");
    std::fs::write(dir.path().join("9.yml"), "- x").unwrap();
    assert!(
        loaded
            .reload()
            .unwrap_err()
            .to_string()
            .contains("9.yml: invalid config file")
    );
}

#[test]
fn faults_of_all_sources_come_together() {
    let text = "name: __patroni_strict_sync_replica_placeholder__\nlog: {level: LOUD}\npostgresql: {parameters: [1]}\nrestapi: {listen: 'h:x'}\nraft: {self_addr: 'h:1', min_timeout: 2}\n";
    let faults = load_yaml(
        text,
        &[
            ("PATRONI_RESTAPI_USERNAME", "u"),
            ("PATRONI_LOG_FILE_NUM", "many"),
        ],
    )
    .unwrap_err();
    let shown = faults.to_string();
    for expected in [
        "PATRONI_LOG_FILE_NUM: \"many\" is not an integer",
        "scope: is required",
        "Node 'name' can't be set to '__patroni_strict_sync_replica_placeholder__'",
        "c.yml): is not one of DEBUG, INFO",
        "PATRONI_RESTAPI_USERNAME: is given without restapi.authentication.password",
        "postgresql.parameters is not a dictionary",
        "c.yml): \"h:x\" is not an address",
        "max_timeout (1.4 (default)) must be > min_timeout (2.0)",
    ] {
        assert!(shown.contains(expected), "{expected}\n--\n{shown}");
    }
    assert_eq!(shown.lines().count(), faults.0.len());
}

#[test]
fn files_that_cannot_be_used() {
    assert!(
        load_yaml("", &[])
            .unwrap_err()
            .to_string()
            .contains("does not contain a map")
    );
    assert!(
        load_yaml("a: [", &[])
            .unwrap_err()
            .to_string()
            .contains("line ")
    );
    let missing = Config::load(
        Some(Path::new("/nonexistent/c.yml")),
        &FakeEnvironment::default(),
    )
    .unwrap_err();
    assert!(
        missing
            .to_string()
            .contains("/nonexistent/c.yml: cannot read the configuration"),
        "{missing}"
    );
    assert!(
        load_yaml("scope: a\nname: b\n", &[])
            .unwrap_err()
            .to_string()
            .contains("Can not find suitable configuration")
    );
}

#[test]
fn members_of_one_cluster_need_given_passwords() {
    let variables = [
        ("PATRONI_SCOPE", "demo"),
        ("PATRONI_NAME", "n1"),
        ("PATRONI_RAFT_PARTNER_ADDRS", "10.0.0.1,10.0.0.2:2222"),
    ];
    let faults = load(&variables).unwrap_err().to_string();
    assert!(
        faults.contains("PATRONI_REPLICATION_PASSWORD: is required")
            && faults.contains("PATRONI_SUPERUSER_PASSWORD: is required")
    );
    let without_scope = load(&variables[1..]).unwrap_err().to_string();
    assert!(
        without_scope.contains("PATRONI_SCOPE: is required")
            && without_scope.contains("PATRONI_REPLICATION_PASSWORD: is required"),
        "all at once: {without_scope}"
    );
    let mut variables = variables.to_vec();
    variables.extend([
        ("PATRONI_SUPERUSER_PASSWORD", "a"),
        ("PATRONI_REPLICATION_PASSWORD", "b"),
    ]);
    let config = load(&variables).unwrap().config;
    let DcsSection::Raft(raft) = &config.dcs else {
        panic!()
    };
    assert_eq!(raft.partner_addrs, ["10.0.0.2:2222"]);
    assert!(!config.postgresql.generate_passwords);
}

#[test]
fn a_misspelt_store_is_not_replaced_by_the_default_one() {
    let faults = load(&[("PATRONI_SCOPE", "demo"), ("PATRONI_ETDC3_HOSTS", "h")]).unwrap_err();
    assert!(
        faults.to_string().starts_with("PATRONI_ETDC3_HOSTS: "),
        "{faults}"
    );
}

#[test]
fn secrets_do_not_show() {
    let loaded = load_yaml(
        FILE,
        &[
            ("PATRONI_RESTAPI_USERNAME", "u"),
            ("PATRONI_RESTAPI_PASSWORD", "hush"),
        ],
    )
    .unwrap();
    let shown = format!("{loaded:?}");
    for secret in ["rep-pass", "zalando", "rewind_password", "hush"] {
        assert!(!shown.contains(secret), "{secret}");
    }
    assert!(shown.contains("***"));
}

#[test]
fn late_bootstrap_settings_are_told() {
    let wanted = json!({"ttl": 20, "pause": "on", "synchronous_mode": true, "postgresql": {"parameters": {"max_connections": "200", "x": 1}}});
    let existing = json!({"ttl": 30, "pause": true, "synchronous_mode": "on", "postgresql": {"parameters": {"max_connections": 200}}});
    let warning =
        ignored_bootstrap_settings(wanted.as_object().unwrap(), existing.as_object().unwrap())
            .unwrap();
    assert!(
        warning.contains(
            "ttl = 20 (the cluster has 30), postgresql.parameters.x = 1 (the cluster has none)"
        ),
        "{warning}"
    );
    assert!(
        !warning.contains("pause") && !warning.contains("max_connections"),
        "{warning}"
    );
    assert_eq!(
        ignored_bootstrap_settings(existing.as_object().unwrap(), existing.as_object().unwrap()),
        None
    );
}

#[test]
fn every_store_section_parses() {
    let base = "scope: s\nname: n\n";
    let with = |section: &str| {
        load_yaml(&format!("{base}{section}"), &[])
            .unwrap()
            .config
            .dcs
    };
    let DcsSection::Etcd(etcd) = with("etcd: {url: 'https://u:p%40x@h:1/'}") else {
        panic!()
    };
    assert_eq!(
        (etcd.endpoints, etcd.username.as_deref(), etcd.https),
        (vec!["https://h:1".to_owned()], Some("u"), true)
    );
    assert_eq!(etcd.password.unwrap().expose(), "p@x");
    let DcsSection::Etcd3(etcd) = with("etcd3: {host: 'h:1', port: 5, protocol: https}") else {
        panic!()
    };
    assert_eq!(etcd.endpoints, ["https://h:5"]);
    let DcsSection::Etcd3(etcd) = with("etcd3: {proxy: 'http://p'}") else {
        panic!()
    };
    assert!(etcd.use_proxies && etcd.endpoints == ["http://p:2379"]);
    let DcsSection::Etcd3(etcd) = with("etcd3: {srv_domain: example.org, hosts: 'a:1, b:2'}")
    else {
        panic!()
    };
    assert_eq!(
        (etcd.srv.as_deref(), etcd.endpoints.len()),
        (Some("example.org"), 2)
    );
    let DcsSection::Consul(consul) =
        with("consul: {host: '1.2.3.4:1', port: 2, token: t, verify: 'off', checks: [a]}")
    else {
        panic!()
    };
    assert_eq!(
        (consul.url.as_str(), consul.verify, consul.checks.len()),
        ("http://1.2.3.4:2", false, 1)
    );
    let DcsSection::Zookeeper(zookeeper) =
        with("zookeeper: {hosts: ['a:2181', 'b:2181'], use_ssl: on, set_acls: {CN=x: [ALL]}}")
    else {
        panic!()
    };
    assert!(zookeeper.use_ssl && zookeeper.hosts.len() == 2);
    let DcsSection::Exhibitor(exhibitor) = with("zookeeper: {exhibitor: {hosts: [e], port: 8181}}")
    else {
        panic!()
    };
    assert_eq!(
        (exhibitor.port, exhibitor.poll_interval),
        (8181, Duration::from_secs(300))
    );
    let DcsSection::Kubernetes(kubernetes) = with(
        "namespace: x\nkubernetes: {labels: {app: p}, namespace: y, retriable_http_codes: '401,403'}",
    ) else {
        panic!()
    };
    assert_eq!(
        (
            kubernetes.namespace.as_str(),
            kubernetes.retriable_http_codes
        ),
        ("x", vec![401, 403])
    );
    let DcsSection::Raft(raft) =
        with("raft: {self_addr: '10.0.0.1:2222', partner_addrs: ['10.0.0.2:2222'], data_dir: /r}")
    else {
        panic!()
    };
    assert_eq!(
        (raft.bind_addr.as_str(), raft.min_timeout),
        ("10.0.0.1:2222", Duration::from_millis(400))
    );
    // The first one in Patroni's order wins.
    assert_eq!(
        with("raft: {self_addr: 'h:1'}\nconsul: {host: h}").name(),
        "consul"
    );
}

#[test]
fn tags_and_their_conflicts() {
    let loaded = load(&[
        ("PATRONI_SCOPE", "demo"),
        ("PATRONI_TAGS", "nofailover: true, failover_priority: 2, nosync: true, sync_priority: 0, nostream: maybe"),
    ])
    .unwrap();
    assert_eq!(loaded.config.tags.leader_priority(), 0);
    assert_eq!(
        loaded.warnings,
        [
            "tag nostream has the unreadable value maybe and is ignored",
            "Conflicting configuration between nofailover: True and failover_priority: 2. Defaulting to nofailover: True",
        ]
    );
}

#[test]
fn users_in_the_old_form() {
    let text = "scope: s\nname: n\netcd: {host: h}\npostgresql:\n  replication: {username: r, password: a}\n  superuser: {username: s, password: b}\n";
    let users = load_yaml(text, &[])
        .unwrap()
        .config
        .postgresql
        .authentication;
    assert_eq!(
        (
            users.superuser.username.as_deref(),
            users.replication.username.as_deref(),
            users.rewind
        ),
        (Some("s"), Some("r"), None)
    );
}

#[test]
fn log_settings() {
    let log = |variables: &[(&str, &str)]| {
        let mut all = vec![("PATRONI_SCOPE", "s")];
        all.extend(variables);
        load(&all).unwrap().config.log
    };
    let json_log = log(&[
        ("PATRONI_LOG_TYPE", "json"),
        ("PATRONI_LOG_FORMAT", "message, levelname: level"),
        ("PATRONI_LOG_LOGGERS", "a.b: debug"),
    ]);
    assert_eq!(
        json_log.format,
        LogFormat::Json(vec![
            ("message".into(), "message".into()),
            ("levelname".into(), "level".into())
        ])
    );
    assert_eq!(json_log.loggers["a.b"], LogLevel::Debug);
    let plain = log(&[("PATRONI_LOG_MODE", "0640"), ("PATRONI_LOG_LEVEL", "warn")]);
    assert_eq!((plain.mode, plain.level), (Some(0o640), LogLevel::Warning));
    let fields = log(&[("PATRONI_LOG_TYPE", "json")]).format;
    assert_eq!(
        fields,
        LogFormat::Json(
            ["asctime", "levelname", "message"]
                .map(|f| (f.to_owned(), f.to_owned()))
                .to_vec()
        )
    );
}

#[test]
fn a_client_needs_less() {
    let client = |text: &str, variables: &[(&str, &str)]| {
        let mut all = vec![("PATRONI_CONFIGURATION", text)];
        all.extend(variables);
        Config::load_for(Purpose::Client, None, &FakeEnvironment::new(&all))
    };
    let config = client(
        "etcd3: {host: h}\nlog: {level: LOUD}\nwatchdog: {safety_margin: x}\nctl: {insecure: on}\n",
        &[],
    )
    .unwrap()
    .config;
    assert_eq!(
        (
            config.scope.as_str(),
            config.dcs.name(),
            config.ctl.insecure
        ),
        ("", "etcd3", true)
    );
    let variables = [("PATRONI_SCOPE", "s"), ("PATRONI_ETCD3_HOST", "h")];
    let alone = Config::load_for(Purpose::Client, None, &FakeEnvironment::new(&variables))
        .unwrap()
        .config;
    assert!(!alone.postgresql.generate_passwords);
    let faults = client("etcd3: {}\nctl: {insecure: perhaps}\n", &[])
        .unwrap_err()
        .to_string();
    assert!(
        faults.contains("ctl.insecure") && faults.contains("etcd3"),
        "{faults}"
    );
    assert!(
        client("scope: s", &[])
            .unwrap_err()
            .to_string()
            .contains("Can not find suitable configuration")
    );
}

#[test]
fn generated_passwords_survive_a_reload() {
    let mut loaded = load(&[("PATRONI_SCOPE", "demo")]).unwrap();
    loaded.config.postgresql.authentication.superuser.password = Some(Secret::new("a"));
    loaded.config.postgresql.authentication.replication.password = Some(Secret::new("b"));
    assert_eq!(loaded.reload().unwrap().config, loaded.config);
}
