//! Citus in a new cluster: the database, the extension, how the nodes of other groups log in (spec/ha.md §20).

use super::Settings;
use super::bootstrap::{QUIET, quote_identifier, quote_literal};
use super::conninfo::Conninfo;
use super::sql::{SqlError, Target};

/// SQLSTATE of a database that is there already.
const DUPLICATE_DATABASE: &str = "42P04";

/// Creates the database unless it is there, and Citus in it. `coordinator`: host and port under which the workers reach this node, if it
/// is of the coordinator's group. Waits for no standby: there is none yet.
///
/// # Errors
/// A statement failed, or the server cannot be reached.
pub async fn set_up(
    settings: &Settings,
    database: &str,
    coordinator: Option<(&str, u16)>,
) -> Result<(), SqlError> {
    let target = Target::local(settings)
        .named("Patroni citus")
        .statement_limit(None);
    if database != settings.database {
        let session = target.connect().await?;
        session.execute("SET synchronous_commit TO 'local'").await?;
        let create = format!("CREATE DATABASE {}", quote_identifier(database));
        match session.execute(&create).await {
            Err(error) if error.code() == Some(DUPLICATE_DATABASE) => {}
            created => created?,
        }
    }
    // What the log of the server must not show ends with the session.
    let session = target.database(database).connect().await?;
    let quiet: String = QUIET
        .iter()
        .map(|(name, value)| format!("SET {name} TO '{value}';"))
        .collect();
    session.execute(&quiet).await?;
    session
        .execute("SET synchronous_commit TO 'local'; CREATE EXTENSION IF NOT EXISTS citus")
        .await?;
    if let Some(login) = login(settings) {
        let insert = format!(
            "INSERT INTO pg_catalog.pg_dist_authinfo VALUES (0, pg_catalog.current_user(), {})",
            quote_literal(&login)
        );
        session.execute(&insert).await?;
    }
    if let Some((host, port)) = coordinator {
        let set = format!(
            "SELECT pg_catalog.citus_set_coordinator_host({}, {port}, 'primary', 'default')",
            quote_literal(host)
        );
        session.execute(&set).await?;
    }
    Ok(())
}

/// How nodes log in to each other as the superuser; `None`: without anything of their own.
fn login(settings: &Settings) -> Option<String> {
    let superuser = &settings.superuser;
    let parts = [
        ("password", &superuser.password),
        ("sslcert", &superuser.sslcert),
        ("sslkey", &superuser.sslkey),
    ];
    let login = parts
        .into_iter()
        .filter_map(|(key, value)| Some((key, value.as_deref()?)))
        .fold(Conninfo::default(), |login, (key, value)| {
            login.with(key, value)
        })
        .to_string();
    (!login.is_empty()).then_some(login)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_has_what_the_superuser_has() {
        let mut settings = Settings::for_tests();
        assert_eq!(login(&settings), None);
        settings.superuser.username = Some("postgres".to_owned());
        settings.superuser.password = Some("it's".to_owned());
        settings.superuser.sslkey = Some("/k".to_owned());
        let login = login(&settings).unwrap();
        assert!(login.starts_with("password="), "{login}");
        let read = Conninfo::parse(&login).unwrap();
        assert_eq!(read.get("password"), Some("it's"));
        assert_eq!(read.get("sslkey"), Some("/k"));
        assert_eq!(read.get("user"), None);
    }
}
