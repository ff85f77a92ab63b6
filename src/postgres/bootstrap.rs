//! Making a new cluster: initdb or a custom method, then the users it needs (spec/postgres-management.md §7.2 – §7.5).
//!
//! Each step is a function; the caller starts and stops the server between them and decides when the new cluster counts. While it does
//! not, the directory carries our mark, so that a bootstrap that was cut off can be recognised and cleaned up.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use serde_json::{Map, Value};
use tokio_postgres::Client;

use super::binaries::{self, ToolError, child_environment};
use super::conninfo::{Conninfo, Upstream};
use super::directory::{self, DirectoryError, Filling, Removal};
use super::hooks::{self, HookError};
use super::options::{self, FORBIDDEN_INITDB, OptionProblem};
use super::write::{FileError, ManagedFiles, place_bytes, write_passwords};
use super::{Credentials, Settings};
use crate::config::value::{is_truthy, text};
use crate::types::PgVersion;

/// Why a bootstrap failed.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// An option of `bootstrap.initdb` cannot be used.
    #[error("bootstrap.initdb: {0}")]
    Option(#[from] OptionProblem),
    /// initdb failed.
    #[error("initdb of {} failed: {output}", data_dir.display())]
    Initdb {
        /// The data directory.
        data_dir: PathBuf,
        /// What it wrote to standard error.
        output: String,
    },
    /// The custom method or the post_bootstrap command failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// initdb could not be started, or was cancelled.
    #[error(transparent)]
    NotRun(#[from] ToolError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A statement failed.
    #[error("creating the user {user} failed: {source}")]
    User {
        /// Whom.
        user: String,
        /// Why.
        source: tokio_postgres::Error,
    },
    /// The directory has content that a bootstrap would destroy.
    #[error("{} is not empty; a new cluster needs an empty data directory", data_dir.display())]
    NotEmpty {
        /// The data directory.
        data_dir: PathBuf,
    },
}

/// Runs initdb on an empty directory (§7.2). `section`: `bootstrap.initdb`. A directory left by a bootstrap of ours is emptied first.
///
/// Ours by default, unless the section says otherwise: data checksums (pg_rewind needs them), and with a superuser password no trust over
/// TCP.
///
/// # Errors
/// See [`BootstrapError`]; the directory may then hold an unfinished cluster, to be given to [`clean_up`].
pub async fn initdb(
    settings: &Settings,
    section: &Value,
    cancelled: impl Future<Output = ()>,
) -> Result<(), BootstrapError> {
    let (mut arguments, problems) = options::parse("initdb", section, &FORBIDDEN_INITDB);
    if let Some(problem) = problems.into_iter().next() {
        return Err(problem.into());
    }
    prepare(settings)?;
    add_defaults(&mut arguments, &settings.superuser);
    let mut command = settings.tool("initdb");
    // The locale of the new cluster comes from the environment.
    for name in ["LANG", "LC_ALL"] {
        command.env_remove(name);
    }
    command.envs(
        child_environment()
            .into_iter()
            .filter(|(name, _)| name == "LANG" || name == "LC_ALL"),
    );
    command.args(&arguments);
    if let Some(user) = &settings.superuser.username {
        command.arg(format!("--username={user}"));
    }
    let mut password_file = None;
    if let Some(password) = &settings.superuser.password {
        let file = PasswordFile::create(settings, password)?;
        command.arg(format!("--pwfile={}", file.0.display()));
        password_file = Some(file);
    }
    command.arg(&settings.data_dir);
    let output = binaries::run_until(command, cancelled).await;
    drop(password_file);
    let output = output?;
    tracing::info!(status = %output.status, "initdb\n{}", output.stdout.trim());
    if !output.status.success() {
        return Err(BootstrapError::Initdb {
            data_dir: settings.data_dir.clone(),
            output: output.stderr.trim().to_owned(),
        });
    }
    directory::mark_incomplete(&settings.data_dir, Filling::Bootstrap)?;
    Ok(())
}

fn add_defaults(arguments: &mut Vec<String>, superuser: &Credentials) {
    let mentions = |names: &[&str]| {
        arguments.iter().any(|a| {
            names.contains(
                &a.trim_start_matches('-')
                    .split('=')
                    .next()
                    .unwrap_or_default(),
            )
        })
    };
    let checksums = !mentions(&["data-checksums", "no-data-checksums", "k"]);
    let authentication =
        superuser.password.is_some() && !mentions(&["auth", "auth-host", "auth-local", "A"]);
    if checksums {
        arguments.push("--data-checksums".to_owned());
    }
    if authentication {
        arguments.extend([
            "--auth-local=trust".to_owned(),
            "--auth-host=scram-sha-256".to_owned(),
        ]);
    }
}

/// initdb and pg_basebackup insist on an empty directory; remains of our own unfinished work may go.
fn prepare(settings: &Settings) -> Result<(), BootstrapError> {
    match directory::contents(&settings.data_dir)? {
        directory::Contents::Empty => Ok(()),
        directory::Contents::Incomplete(_) => Ok(directory::remove(
            &settings.data_dir,
            Removal::OwnUnfinished,
        )?),
        directory::Contents::Cluster(_) | directory::Contents::Unrecognised => {
            Err(BootstrapError::NotEmpty {
                data_dir: settings.data_dir.clone(),
            })
        }
    }
}

/// The file through which initdb gets the superuser's password; gone with the value.
struct PasswordFile(PathBuf);

impl PasswordFile {
    fn create(settings: &Settings, password: &str) -> Result<Self, FileError> {
        let mut name = settings.pgpass.as_os_str().to_owned();
        name.push(format!(".initdb-{}", std::process::id()));
        let path = PathBuf::from(name);
        let _ = fs::remove_file(&path);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(password.as_bytes()));
        let file = PasswordFile(path.clone());
        written.map_err(FileError::wrap("write", &path))?;
        Ok(file)
    }
}

impl Drop for PasswordFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Appends `bootstrap.pg_hba` to the file initdb made (§7.2). Only when neither `parameters.hba_file` nor `postgresql.pg_hba` is set.
///
/// # Errors
/// The file could not be read or written.
pub fn append_hba(settings: &Settings, lines: &[String]) -> Result<(), FileError> {
    if lines.is_empty() {
        return Ok(());
    }
    let path = ManagedFiles::of(settings).hba;
    let mut text = fs::read_to_string(&path).map_err(FileError::wrap("read", &path))?;
    text.push('\n');
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    place_bytes(settings, &path, text.as_bytes()).map(|_| ())
}

/// Keys of a custom section that are ours.
const NOT_PASSED: [&str; 6] = [
    "command",
    "no_params",
    "keep_existing_recovery_conf",
    "recovery_conf",
    "scope",
    "datadir",
];

/// Arguments for a custom bootstrap, besides the words of its command (§7.3).
#[must_use]
pub fn custom_arguments(
    section: &Map<String, Value>,
    scope: &str,
    settings: &Settings,
) -> Vec<String> {
    let mut arguments = Vec::new();
    if !section.get("no_params").is_some_and(is_truthy) {
        arguments.push(format!("--scope={scope}"));
        arguments.push(format!("--datadir={}", settings.data_dir.display()));
    }
    let own = section
        .iter()
        .filter(|(key, _)| !NOT_PASSED.contains(&key.as_str()));
    arguments.extend(own.map(|(key, value)| format!("--{key}={}", text(value))));
    arguments
}

/// Runs a custom bootstrap method (§7.3). It does not fall back to initdb.
///
/// # Errors
/// See [`BootstrapError`].
pub async fn custom(
    settings: &Settings,
    section: &Map<String, Value>,
    scope: &str,
    cancelled: impl Future<Output = ()>,
) -> Result<(), BootstrapError> {
    prepare(settings)?;
    let command = section
        .get("command")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let arguments = custom_arguments(section, scope, settings);
    hooks::run(
        "bootstrap.method",
        command,
        &arguments,
        &[],
        None,
        cancelled,
    )
    .await?;
    directory::mark_incomplete(&settings.data_dir, Filling::Bootstrap)?;
    Ok(())
}

/// Creates or changes the users the configuration names: superuser, replication, rewind with its grants (§7.4). `client`: an administrative
/// connection to the new primary.
///
/// # Errors
/// The first statement that failed.
pub async fn create_users(
    client: &Client,
    settings: &Settings,
    version: PgVersion,
) -> Result<(), BootstrapError> {
    create_superuser(client, settings).await?;
    create_replication_users(client, settings, version).await
}

/// The superuser, with its password: before the post_bootstrap command, which connects as it.
///
/// # Errors
/// The statement failed.
pub async fn create_superuser(client: &Client, settings: &Settings) -> Result<(), BootstrapError> {
    let superuser = &settings.superuser;
    match (&superuser.username, &superuser.password) {
        (Some(user), Some(_)) => create_user(client, user, superuser, "SUPERUSER").await,
        _ => Ok(()),
    }
}

/// The replication and rewind users: after the post_bootstrap command.
///
/// # Errors
/// The first statement that failed.
pub async fn create_replication_users(
    client: &Client,
    settings: &Settings,
    version: PgVersion,
) -> Result<(), BootstrapError> {
    if let Some(user) = &settings.replication.username {
        create_user(client, user, &settings.replication, "REPLICATION").await?;
    }
    let rewind = settings.rewind_credentials(version);
    if *rewind != settings.superuser
        && let Some(user) = &rewind.username
    {
        create_user(client, user, rewind, "").await?;
        let grants = grants_for_rewind(user);
        client
            .batch_execute(&grants)
            .await
            .map_err(|source| BootstrapError::User {
                user: user.clone(),
                source,
            })?;
    }
    Ok(())
}

/// Settings that keep a statement with a password out of the server's log.
pub(super) const QUIET: [(&str, &str); 5] = [
    ("log_statement", "none"),
    ("log_min_duration_statement", "-1"),
    ("log_min_error_statement", "log"),
    ("pg_stat_statements.track_utility", "off"),
    ("pgaudit.log", "none"),
];

async fn create_user(
    client: &Client,
    user: &str,
    credentials: &Credentials,
    attributes: &str,
) -> Result<(), BootstrapError> {
    let sets: String = QUIET
        .iter()
        .map(|(name, value)| format!("SET {name} TO '{value}';"))
        .collect();
    let resets: String = QUIET
        .iter()
        .map(|(name, _)| format!("RESET {name};"))
        .collect();
    let create = async {
        client.batch_execute(&sets).await?;
        let created = client
            .batch_execute(&user_statement(
                user,
                credentials.password.as_deref(),
                attributes,
            ))
            .await;
        // Also after a failure: the connection is used for other things.
        client.batch_execute(&resets).await?;
        created
    };
    create.await.map_err(|source| BootstrapError::User {
        user: user.to_owned(),
        source,
    })
}

/// A statement that creates the user, or changes an existing one. It does not wait for standbys, which do not exist yet.
#[must_use]
pub fn user_statement(user: &str, password: Option<&str>, attributes: &str) -> String {
    let password = password.map_or_else(String::new, |password| {
        format!(" PASSWORD {}", quote_literal(password))
    });
    let space = if attributes.is_empty() { "" } else { " " };
    let attributes = format!("{attributes}{space}LOGIN{password}");
    let name = quote_identifier(user);
    let literal = quote_literal(user);
    let body = format!(
        "\nBEGIN\n    SET LOCAL synchronous_commit = 'local';\n    \
         PERFORM 1 FROM pg_catalog.pg_authid WHERE rolname = {literal};\n    \
         IF FOUND THEN\n        ALTER ROLE {name} WITH {attributes};\n    \
         ELSE\n        CREATE ROLE {name} WITH {attributes};\n    END IF;\nEND;\n"
    );
    let tag = dollar_tag(&body);
    format!("DO {tag}{body}{tag}")
}

/// What pg_rewind reads through SQL, for a user that is no superuser (11+).
#[must_use]
pub fn grants_for_rewind(user: &str) -> String {
    let user = quote_identifier(user);
    let functions = [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
    ];
    let mut statements = "SET synchronous_commit TO 'local';".to_owned();
    for function in functions {
        statements.push_str(&format!(
            "GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {user};"
        ));
    }
    statements.push_str("RESET synchronous_commit;");
    statements
}

pub(super) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Safe with `standard_conforming_strings` on and off.
pub(super) fn quote_literal(text: &str) -> String {
    let escape = if text.contains('\\') { " E" } else { "" };
    format!(
        "{escape}'{}'",
        text.replace('\\', "\\\\").replace('\'', "''")
    )
}

/// A dollar quote that does not occur in the text.
fn dollar_tag(text: &str) -> String {
    let mut number = 0_u32;
    loop {
        let tag = format!("$h{number}$");
        if !text.contains(&tag) {
            return tag;
        }
        number += 1;
    }
}

/// Runs `post_bootstrap` with the connection string of the new cluster as its last argument (§7.4).
///
/// # Errors
/// It failed; so did the bootstrap.
pub async fn post_bootstrap(
    settings: &Settings,
    command: &str,
    version: PgVersion,
    cancelled: impl Future<Output = ()>,
) -> Result<(), BootstrapError> {
    let local = Upstream::local(&settings.local_host(), settings.port);
    let conninfo = Conninfo::new(&local, &settings.superuser, &settings.database, version);
    let mut environment = vec![(
        "PGOPTIONS",
        "-c synchronous_commit=local -c statement_timeout=0".to_owned(),
    )];
    if let Some(password) = &settings.superuser.password {
        let user = settings.superuser.username.as_deref().unwrap_or_default();
        write_passwords(
            &settings.pgpass,
            &super::render::pgpass(&local.host, &local.port, user, password),
        )?;
        environment.push(("PGPASSFILE", settings.pgpass.display().to_string()));
    }
    hooks::run(
        "bootstrap.post_bootstrap",
        command,
        &[conninfo.to_string()],
        &environment,
        None,
        cancelled,
    )
    .await?;
    Ok(())
}

/// What became of the directory of a failed bootstrap.
#[derive(Debug)]
pub enum CleanUp {
    /// There was nothing.
    Nothing,
    /// It is kept for inspection under another name.
    Moved(PathBuf),
    /// It could not be moved (a mount point) and was ours: removed.
    Removed,
    /// It is not the work of this bootstrap: left alone.
    LeftAlone,
}

/// Clears the way after a failed bootstrap (§7.5): the stopped server's directory is renamed to `.failed`. A directory that cannot be
/// renamed is removed if it carries our mark.
///
/// # Errors
/// It could not be removed either.
pub fn clean_up(settings: &Settings) -> Result<CleanUp, BootstrapError> {
    let data_dir = &settings.data_dir;
    match directory::contents(data_dir)? {
        directory::Contents::Empty => Ok(CleanUp::Nothing),
        // A custom method that failed leaves no mark; its result may be worth a look, and is never removed.
        contents => match directory::move_aside(data_dir) {
            Ok(path) => Ok(CleanUp::Moved(path)),
            Err(error) if matches!(contents, directory::Contents::Incomplete(_)) => {
                tracing::warn!(%error, "the failed data directory cannot be kept; removing it");
                directory::remove(data_dir, Removal::OwnUnfinished)?;
                Ok(CleanUp::Removed)
            }
            Err(error) => {
                tracing::error!(%error, "the failed data directory cannot be moved; move or remove it by hand");
                Ok(CleanUp::LeftAlone)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::write::tests::settings_in;
    use serde_json::json;

    #[test]
    fn users_are_created_or_changed_by_one_quoted_statement() {
        assert_eq!(
            user_statement("re\"p", Some("it's \\ $h0$"), "REPLICATION"),
            "DO $h1$\nBEGIN\n    SET LOCAL synchronous_commit = 'local';\n    \
             PERFORM 1 FROM pg_catalog.pg_authid WHERE rolname = 're\"p';\n    \
             IF FOUND THEN\n        ALTER ROLE \"re\"\"p\" WITH REPLICATION LOGIN PASSWORD  E'it''s \\\\ $h0$';\n    \
             ELSE\n        CREATE ROLE \"re\"\"p\" WITH REPLICATION LOGIN PASSWORD  E'it''s \\\\ $h0$';\n    END IF;\nEND;\n$h1$"
        );
        assert!(user_statement("r", None, "").contains("CREATE ROLE \"r\" WITH LOGIN;"));
    }

    #[test]
    fn our_defaults_yield_to_the_configuration() {
        let with_password = Credentials {
            password: Some("x".into()),
            ..Credentials::default()
        };
        let after = |given: &[&str], superuser: &Credentials| {
            let mut arguments: Vec<String> = given.iter().map(ToString::to_string).collect();
            add_defaults(&mut arguments, superuser);
            arguments.join(" ")
        };
        assert_eq!(
            after(&[], &with_password),
            "--data-checksums --auth-local=trust --auth-host=scram-sha-256"
        );
        assert_eq!(
            after(&["--auth=md5", "--no-data-checksums"], &with_password),
            "--auth=md5 --no-data-checksums"
        );
        assert_eq!(
            after(&["--data-checksums"], &Credentials::default()),
            "--data-checksums"
        );
    }

    #[test]
    fn a_custom_method_gets_its_own_keys() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings_in(root.path());
        let section = json!({"command": "x", "source": "s3", "deep": true, "scope": "no", "recovery_conf": {"a": "b"}});
        let section = section.as_object().unwrap();
        let text = custom_arguments(section, "demo", &settings).join(" ");
        assert_eq!(
            text.replace(&root.path().display().to_string(), ""),
            "--scope=demo --datadir=/data --source=s3 --deep=True"
        );
        let section = json!({"no_params": 1, "k": 2});
        assert_eq!(
            custom_arguments(section.as_object().unwrap(), "demo", &settings),
            ["--k=2"]
        );
    }

    #[tokio::test]
    async fn a_directory_with_content_is_never_initialised() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings_in(root.path());
        fs::write(settings.data_dir.join("precious"), "").unwrap();
        let never = std::future::pending::<()>;
        let refused = initdb(&settings, &Value::Null, never()).await;
        assert!(
            matches!(refused, Err(BootstrapError::NotEmpty { .. })),
            "{refused:?}"
        );
        let refused = initdb(&settings, &json!([{"pgdata": "/x"}]), never()).await;
        assert!(
            matches!(refused, Err(BootstrapError::Option(_))),
            "{refused:?}"
        );
        assert!(settings.data_dir.join("precious").exists());
    }

    #[tokio::test]
    async fn a_failed_custom_method_is_kept_for_inspection() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings_in(root.path());
        let section = json!({"command": "/bin/sh -c 'touch ${1#--datadir=}/part; exit 1'"});
        let result = custom(
            &settings,
            section.as_object().unwrap(),
            "demo",
            std::future::pending(),
        )
        .await;
        assert!(matches!(result, Err(BootstrapError::Hook(_))), "{result:?}");
        let CleanUp::Moved(path) = clean_up(&settings).unwrap() else {
            panic!("not moved")
        };
        assert!(path.join("part").exists());
        assert!(matches!(clean_up(&settings).unwrap(), CleanUp::Nothing));
    }
}
