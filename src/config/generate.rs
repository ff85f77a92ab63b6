//! `--generate-config`: a configuration that describes a running instance (spec/configuration.md §8.3).
//!
//! Reads settings over one superuser connection and a few files of the data directory; changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::sample::{self, FIXME};
use super::{Environment, Faults, HostPort, env, value};
use crate::postgres::Credentials;
use crate::postgres::conninfo::{Conninfo, Upstream};
use crate::postgres::params::is_controlled;
use crate::postgres::sql::{Session, SqlError, Target};
use crate::types::PgVersion;

/// Why there is no configuration; the texts are Patroni's.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The DSN cannot be read.
    #[error("Failed to parse DSN string")]
    Dsn,
    /// No connection.
    #[error("Failed to establish PostgreSQL connection: {0}")]
    Connection(SqlError),
    /// Not a superuser.
    #[error("The provided user does not have superuser privilege")]
    NotSuperuser,
    /// The environment has faults.
    #[error(transparent)]
    Environment(#[from] Faults),
    /// Anything else.
    #[error("Unexpected exception: {0}")]
    Other(String),
}

/// Settings that belong to the node although the cluster might have them: commands and paths.
const LOCAL_SETTINGS: [&str; 8] = [
    "archive_command",
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "ssl_passphrase_command",
    "hba_file",
    "ident_file",
    "config_file",
];

/// Connection options that go into the superuser's section: name, variable, default of a parsed DSN, since which server.
const OPTIONS: [(&str, &str, Option<&str>, u32); 10] = [
    ("sslmode", "PGSSLMODE", Some("prefer"), 0),
    ("sslcert", "PGSSLCERT", None, 0),
    ("sslkey", "PGSSLKEY", None, 0),
    ("sslpassword", "", None, 13),
    ("sslrootcert", "PGSSLROOTCERT", None, 0),
    ("sslcrl", "PGSSLCRL", None, 0),
    ("sslcrldir", "PGSSLCRLDIR", None, 14),
    ("gssencmode", "PGGSSENCMODE", Some("prefer"), 12),
    ("channel_binding", "PGCHANNELBINDING", Some("prefer"), 13),
    ("sslnegotiation", "PGSSLNEGOTIATION", Some("postgres"), 17),
];

/// Where and as whom to connect.
#[derive(Clone, PartialEq)]
struct Login {
    upstream: Upstream,
    user: Option<String>,
    password: Option<String>,
    options: BTreeMap<String, String>,
}

/// What the instance told about itself.
#[derive(Debug, Clone)]
struct Instance {
    version: PgVersion,
    user: String,
    settings: BTreeMap<String, String>,
    hba: Vec<String>,
    ident: Vec<String>,
    bin_dir: Option<PathBuf>,
}

/// Makes the configuration. `prompt` asks the user for a password when neither DSN nor environment has one.
///
/// # Errors
/// See [`GenerateError`]; all of them end with status 1.
pub async fn generate(
    dsn: Option<&str>,
    environment: &dyn Environment,
    prompt: &(dyn Fn() -> std::io::Result<String> + Sync),
) -> Result<String, GenerateError> {
    let variables = environment.variables();
    let mut login = login(dsn, &variables)?;
    if login.password.is_none() {
        let asked = prompt().map_err(|error| GenerateError::Other(error.to_string()))?;
        login.password = (!asked.is_empty()).then_some(asked);
    }
    let instance = inspect(&login).await?;
    render(environment, &login, &instance)
}

fn login(dsn: Option<&str>, variables: &BTreeMap<String, String>) -> Result<Login, GenerateError> {
    let named = |name: &str| variables.get(name).filter(|text| !text.is_empty()).cloned();
    let given = match dsn {
        Some(url) if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
            url_parts(url)?
        }
        Some(text) => conninfo_parts(text)?,
        None => BTreeMap::new(),
    };
    let part = |key: &str, variable: &str| given.get(key).cloned().or_else(|| named(variable));
    let mut options = BTreeMap::new();
    for (option, variable, preset, _) in OPTIONS {
        let found = part(option, variable).or_else(|| dsn.and(preset).map(str::to_owned));
        if let Some(found) = found {
            options.insert(option.to_owned(), found);
        }
    }
    Ok(Login {
        upstream: Upstream {
            host: part("host", "PGHOST").unwrap_or_default(),
            port: part("port", "PGPORT").unwrap_or_default(),
            dbname: part("dbname", "PGDATABASE"),
        },
        // Patroni: its own variables were meant to stand behind libpq's, and never did (§10).
        user: part("user", "PGUSER").or_else(|| named("PATRONI_SUPERUSER_USERNAME")),
        password: part("password", "PGPASSWORD").or_else(|| named("PATRONI_SUPERUSER_PASSWORD")),
        options,
    })
}

fn conninfo_parts(text: &str) -> Result<BTreeMap<String, String>, GenerateError> {
    let parsed = Conninfo::parse(text).map_err(|_| GenerateError::Dsn)?;
    let keys = ["host", "port", "user", "password", "dbname"]
        .into_iter()
        .chain(OPTIONS.iter().map(|(option, ..)| *option));
    Ok(keys
        .filter_map(|key| Some((key.to_owned(), parsed.get(key)?.to_owned())))
        .collect())
}

fn url_parts(url: &str) -> Result<BTreeMap<String, String>, GenerateError> {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let upstream = Upstream::from_url(base).map_err(|_| GenerateError::Dsn)?;
    let mut parts = BTreeMap::from([
        ("host".to_owned(), upstream.host),
        ("port".to_owned(), upstream.port),
    ]);
    parts.extend(upstream.dbname.map(|name| ("dbname".to_owned(), name)));
    let authority = base
        .split("://")
        .nth(1)
        .unwrap_or_default()
        .split('/')
        .next()
        .unwrap_or_default();
    if let Some((user, _)) = authority.rsplit_once('@') {
        let (user, password) = user
            .split_once(':')
            .map_or((user, None), |(user, password)| (user, Some(password)));
        parts.insert("user".to_owned(), super::stores::percent_decode(user));
        parts.extend(password.map(|password| {
            (
                "password".to_owned(),
                super::stores::percent_decode(password),
            )
        }));
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, text) = pair.split_once('=').ok_or(GenerateError::Dsn)?;
        parts.insert(key.to_owned(), super::stores::percent_decode(text));
    }
    parts.retain(|_, text| !text.is_empty());
    Ok(parts)
}

async fn inspect(login: &Login) -> Result<Instance, GenerateError> {
    let option = |name: &str| login.options.get(name).cloned();
    let credentials = Credentials {
        username: login.user.clone(),
        password: login.password.clone(),
        sslmode: option("sslmode"),
        sslcert: option("sslcert"),
        sslkey: option("sslkey"),
        sslpassword: option("sslpassword"),
        sslrootcert: option("sslrootcert"),
        sslcrl: option("sslcrl"),
        sslcrldir: option("sslcrldir"),
        gssencmode: option("gssencmode"),
        channel_binding: option("channel_binding"),
        sslnegotiation: option("sslnegotiation"),
    };
    let target = Target::remote(&login.upstream, "postgres", &credentials);
    let session = target.connect().await.map_err(GenerateError::Connection)?;
    let other = |error: SqlError| GenerateError::Other(error.to_string());
    let version = session.version().await.map_err(other)?;
    let role = session
        .simple(
            "SELECT current_user, rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user",
        )
        .await
        .map_err(other)?;
    let user = match role.first().map(Vec::as_slice) {
        Some([Some(user), Some(superuser)]) if superuser == "t" => user.clone(),
        _ => return Err(GenerateError::NotSuperuser),
    };
    let settings = settings(&session).await.map_err(other)?;
    let data_dir = settings
        .get("data_directory")
        .map(PathBuf::from)
        .unwrap_or_default();
    let access = |setting: &str, name: &str, wanted: &dyn Fn(&str) -> bool| {
        own_lines(&settings, &data_dir, setting, name, wanted)
    };
    let hba = access("hba_file", "pg_hba.conf", &|line| {
        is_hba_line(line, version)
    })?;
    let ident = access("ident_file", "pg_ident.conf", &|line| {
        !line.trim().is_empty() && !line.trim_start().starts_with('#')
    })?;
    let bin_dir = bin_dir(&data_dir).map_err(|error| GenerateError::Other(error.to_string()))?;
    Ok(Instance {
        version,
        user,
        settings,
        hba,
        ident,
        bin_dir,
    })
}

async fn settings(session: &Session) -> Result<BTreeMap<String, String>, SqlError> {
    let rows = session
        .simple(
            "SELECT name, pg_catalog.current_setting(name), \
             context <> 'internal' AND category NOT LIKE '%Recovery Target%' AND setting <> '(disabled)' \
             AND source IN ('configuration file', 'command line', 'environment variable') \
             FROM pg_catalog.pg_settings",
        )
        .await?;
    let mut settings = BTreeMap::new();
    for row in rows {
        if let [Some(name), Some(setting), Some(configured)] = row.as_slice() {
            let always = ["hba_file", "ident_file", "config_file", "data_directory"]
                .contains(&name.as_str())
                || is_controlled(name);
            if configured == "t" || always {
                settings.insert(name.clone(), setting.clone());
            }
        }
    }
    Ok(settings)
}

/// The lines of an access file, if it is the one in the data directory.
fn own_lines(
    settings: &BTreeMap<String, String>,
    data_dir: &Path,
    setting: &str,
    name: &str,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<String>, GenerateError> {
    let own = data_dir.join(name);
    if settings
        .get(setting)
        .is_none_or(|path| Path::new(path) != own)
    {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(&own)
        .map_err(|error| GenerateError::Other(format!("{}: {error}", own.display())))?;
    Ok(text
        .lines()
        .filter(|line| wanted(line))
        .map(|line| line.trim().to_owned())
        .collect())
}

fn is_hba_line(line: &str, version: PgVersion) -> bool {
    let first = line.split_whitespace().next().unwrap_or_default();
    match first {
        "local" | "host" | "hostssl" | "hostnossl" | "hostgssenc" | "hostnogssenc" => true,
        "include" | "include_if_exists" | "include_dir" => version.at_least(16),
        _ => false,
    }
}

/// The directory of the running server's program, from the process of postmaster.pid.
fn bin_dir(data_dir: &Path) -> std::io::Result<Option<PathBuf>> {
    let file = std::fs::read_to_string(data_dir.join("postmaster.pid"))?;
    let pid = file
        .lines()
        .next()
        .and_then(|line| line.trim().parse::<u32>().ok());
    let Some(pid) = pid else { return Ok(None) };
    let program = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    Ok(program.parent().map(Path::to_owned))
}

fn render(
    environment: &dyn Environment,
    login: &Login,
    instance: &Instance,
) -> Result<String, GenerateError> {
    let version = instance.version;
    let mut config = sample::template(environment, version);
    value::patch(&mut config, &sample::given(environment)?);
    let mut superuser = Map::from_iter([("username".to_owned(), json!(instance.user))]);
    superuser.extend(
        login
            .password
            .iter()
            .map(|password| ("password".to_owned(), json!(password))),
    );
    for (option, _, _, since) in OPTIONS {
        if version.at_least(since)
            && let Some(text) = login.options.get(option)
        {
            superuser.insert(option.to_owned(), json!(text));
        }
    }
    env::put(
        &mut config,
        "postgresql.authentication.superuser",
        Value::Null,
    );
    env::put(
        &mut config,
        "postgresql.authentication.superuser",
        Value::Object(superuser),
    );

    let setting = |name: &str| instance.settings.get(name).map(String::as_str);
    let (mut local, mut shared) = (Map::new(), Map::new());
    for (name, text) in &instance.settings {
        match name.as_str() {
            "data_directory" | "listen_addresses" | "port" | "cluster_name" => {}
            name if LOCAL_SETTINGS.contains(&name) => {
                local.insert(name.to_owned(), json!(text));
            }
            name => {
                shared.insert(name.to_owned(), json!(text));
            }
        }
    }
    if let Some(name) = setting("cluster_name").filter(|name| !name.is_empty()) {
        env::put(&mut config, "scope", json!(name));
    }
    let own_port = setting("port").unwrap_or("5432");
    let port = if login.upstream.port.is_empty() {
        own_port
    } else {
        &login.upstream.port
    };
    let address = environment.host_address().map_or_else(
        || FIXME.to_owned(),
        |ip| {
            HostPort {
                host: ip.to_string(),
                port: None,
            }
            .to_string()
        },
    );
    let hints = shared
        .get("wal_log_hints")
        .and_then(value::parse_bool)
        .unwrap_or(false);
    let replace = |config: &mut Map<String, Value>, key: &str, value: Value| {
        env::put(config, key, Value::Null);
        env::put(config, key, value);
    };
    replace(
        &mut config,
        "postgresql.data_dir",
        json!(setting("data_directory").unwrap_or(FIXME)),
    );
    replace(
        &mut config,
        "postgresql.listen",
        json!(format!(
            "{}:{own_port}",
            setting("listen_addresses").unwrap_or("*")
        )),
    );
    replace(
        &mut config,
        "postgresql.connect_address",
        json!(format!("{address}:{port}")),
    );
    replace(&mut config, "postgresql.parameters", Value::Object(local));
    replace(
        &mut config,
        "bootstrap.dcs.postgresql.parameters",
        Value::Object(shared),
    );
    replace(
        &mut config,
        "bootstrap.dcs.postgresql.use_pg_rewind",
        json!(hints),
    );
    if let Some(directory) = &instance.bin_dir {
        replace(
            &mut config,
            "postgresql.bin_dir",
            json!(directory.display().to_string()),
        );
    }
    for (key, lines) in [
        ("postgresql.pg_hba", &instance.hba),
        ("postgresql.pg_ident", &instance.ident),
    ] {
        if !lines.is_empty() {
            replace(&mut config, key, json!(lines));
        }
    }
    Ok(sample::text(&config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FakeEnvironment, yaml};

    fn login_of(dsn: Option<&str>, variables: &[(&str, &str)]) -> Login {
        login(dsn, &FakeEnvironment::new(variables).variables).unwrap()
    }

    #[test]
    fn dsn_and_variables() {
        let url = login_of(
            Some("postgres://me:p%40ss@db1:5433/x?sslmode=require"),
            &[("PGUSER", "other"), ("PGSSLCERT", "/c")],
        );
        assert_eq!(
            (url.user.as_deref(), url.password.as_deref()),
            (Some("me"), Some("p@ss"))
        );
        assert_eq!(
            (
                url.upstream.host.as_str(),
                url.upstream.port.as_str(),
                url.upstream.dbname.as_deref()
            ),
            ("db1", "5433", Some("x"))
        );
        assert_eq!(
            (
                url.options["sslmode"].as_str(),
                url.options["sslcert"].as_str(),
                url.options["gssencmode"].as_str()
            ),
            ("require", "/c", "prefer")
        );
        let pairs = login_of(
            Some("host=/run/pg password='a b'"),
            &[("PGPORT", "5434"), ("PATRONI_SUPERUSER_USERNAME", "boss")],
        );
        assert_eq!(
            (pairs.upstream.host.as_str(), pairs.upstream.port.as_str()),
            ("/run/pg", "5434")
        );
        assert_eq!(
            (pairs.user.as_deref(), pairs.password.as_deref()),
            (Some("boss"), Some("a b"))
        );
        assert!(login_of(None, &[]).options.is_empty());
        assert!(matches!(
            login(Some("nonsense"), &BTreeMap::new()),
            Err(GenerateError::Dsn)
        ));
    }

    #[test]
    fn settings_go_where_they_belong() {
        let settings = [
            ("data_directory", "/d"),
            ("cluster_name", "old"),
            ("listen_addresses", "*"),
            ("port", "5433"),
            ("hba_file", "/d/pg_hba.conf"),
            ("archive_command", "cp"),
            ("max_connections", "200"),
            ("wal_log_hints", "off"),
            ("work_mem", "8MB"),
        ];
        let instance = Instance {
            version: PgVersion(110_005),
            user: "boss".to_owned(),
            settings: settings
                .iter()
                .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
                .collect(),
            hba: vec!["local all all trust".to_owned()],
            ident: Vec::new(),
            bin_dir: Some("/bin".into()),
        };
        let login = login_of(Some("host=h password=pw"), &[]);
        let text = render(
            &FakeEnvironment::new(&[("PATRONI_ETCD3_HOST", "e")]),
            &login,
            &instance,
        )
        .unwrap();
        let Value::Object(config) = yaml::parse(&text).unwrap() else {
            panic!("{text}")
        };
        assert_eq!(config["scope"], "old");
        assert_eq!(config["etcd3"]["host"], "e");
        let postgresql = &config["postgresql"];
        assert_eq!(
            postgresql["authentication"]["superuser"],
            json!({"username": "boss", "password": "pw", "sslmode": "prefer"})
        );
        assert_eq!(
            postgresql["authentication"]["replication"]["password"],
            FIXME
        );
        assert_eq!(
            (&postgresql["listen"], &postgresql["connect_address"]),
            (&json!("*:5433"), &json!("10.0.0.1:5433"))
        );
        assert_eq!(
            postgresql["parameters"],
            json!({"archive_command": "cp", "hba_file": "/d/pg_hba.conf"})
        );
        assert_eq!(postgresql["pg_hba"], json!(["local all all trust"]));
        assert_eq!(
            (&postgresql["data_dir"], &postgresql["bin_dir"]),
            (&json!("/d"), &json!("/bin"))
        );
        let dcs = &config["bootstrap"]["dcs"]["postgresql"];
        assert_eq!(
            dcs["parameters"],
            json!({"max_connections": "200", "wal_log_hints": "off", "work_mem": "8MB"})
        );
        assert_eq!(dcs["use_pg_rewind"], false);
    }

    #[test]
    fn lines_of_access_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pg_hba.conf");
        std::fs::write(
            &path,
            "# c\nlocal all all trust\n\n  host all all all md5\ninclude x\n",
        )
        .unwrap();
        let settings = BTreeMap::from([("hba_file".to_owned(), path.display().to_string())]);
        let lines = |version| {
            own_lines(&settings, dir.path(), "hba_file", "pg_hba.conf", &|line| {
                is_hba_line(line, PgVersion(version))
            })
            .unwrap()
        };
        assert_eq!(
            lines(150_000),
            ["local all all trust", "host all all all md5"]
        );
        assert_eq!(lines(160_000).len(), 3);
        assert!(
            own_lines(
                &settings,
                Path::new("/elsewhere"),
                "hba_file",
                "pg_hba.conf",
                &|_| true
            )
            .unwrap()
            .is_empty()
        );
    }
}
