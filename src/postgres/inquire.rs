//! What the server's programs and its `pg_settings` say about settings (spec/configuration.md §5.5, §7).
//!
//! Reads only. What follows from the answers is decided in `params` and `changes`.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::Settings;
use super::binaries::{self, ToolError};
use super::changes::{SettingRow, pending_from_server};
use super::params::PendingRestart;
use crate::types::PgVersion;

/// The version of the `postgres` program, with its minor.
///
/// # Errors
/// It could not be run; `None`: it printed no version.
pub async fn programs_version(settings: &Settings) -> Result<Option<PgVersion>, ToolError> {
    let mut command = settings.tool("postgres");
    command.arg("--version");
    Ok(parse_version(&binaries::run_checked(command).await?))
}

/// `postgres (PostgreSQL) 15.4 (Debian 15.4-1)`, `postgres (PostgreSQL) 9.6.24`, `postgres (PostgreSQL) 18beta1`.
fn parse_version(text: &str) -> Option<PgVersion> {
    let version = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut numbers = version.split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    });
    let first = numbers.next()??;
    let second = numbers.next().flatten().unwrap_or(0);
    if first >= 10 {
        return Some(PgVersion(first * 10_000 + second));
    }
    Some(PgVersion(
        first * 10_000 + second * 100 + numbers.next().flatten().unwrap_or(0),
    ))
}

/// The names of all settings the `postgres` program knows, lower case.
///
/// # Errors
/// It could not be run.
pub async fn known_names(settings: &Settings) -> Result<BTreeSet<String>, ToolError> {
    let mut command = settings.tool("postgres");
    command.arg("--describe-config");
    let output = binaries::run_checked(command).await?;
    Ok(output
        .lines()
        .filter_map(|line| line.split('\t').next())
        .map(str::to_ascii_lowercase)
        .collect())
}

/// The value a setting has (or would have after a restart) by the configuration files; in the setting's unit.
///
/// # Errors
/// The program does not know the setting, or the files are broken.
pub async fn value_by_files(settings: &Settings, name: &str) -> Result<String, ToolError> {
    let mut command = settings.tool("postgres");
    command
        .arg("-D")
        .arg(&settings.data_dir)
        .args(["-C", name])
        .arg(format!(
            "--config-file={}",
            settings.config_file().display()
        ));
    Ok(binaries::run_checked(command)
        .await?
        .trim_end_matches('\n')
        .to_owned())
}

/// The columns of a [`SettingRow`].
const COLUMNS: &str =
    "SELECT name, setting, unit, vartype, context, sourcefile FROM pg_catalog.pg_settings";

/// The rows of `pg_settings` for these names (any case), for `changes::compare`; those it needs besides are added.
///
/// # Errors
/// The statement failed.
pub async fn rows(
    client: &Client,
    names: &[&str],
) -> Result<Vec<SettingRow>, tokio_postgres::Error> {
    let mut names: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
    names.extend(["shared_buffers", "wal_segment_size"].map(str::to_owned));
    let statement = format!("{COLUMNS} WHERE pg_catalog.lower(name) = ANY($1)");
    client
        .query(&statement, &[&names])
        .await?
        .iter()
        .map(row)
        .collect()
}

/// What waits for a restart by the server's own account (9.5+). Ask about a second after a reload.
///
/// # Errors
/// The statement failed.
pub async fn pending_restart(
    client: &Client,
    settings: &Settings,
) -> Result<PendingRestart, tokio_postgres::Error> {
    let found = client
        .query(&format!("{COLUMNS} WHERE pending_restart"), &[])
        .await?;
    let rows = found.iter().map(row).collect::<Result<Vec<_>, _>>()?;
    let mut new_values = BTreeMap::new();
    for row in &rows {
        match value_by_files(settings, &row.name).await {
            Ok(value) => {
                new_values.insert(row.name.clone(), value);
            }
            Err(error) => {
                tracing::warn!(setting = row.name, %error, "the value after a restart is not known")
            }
        }
    }
    Ok(pending_from_server(&rows, &new_values))
}

fn row(row: &tokio_postgres::Row) -> Result<SettingRow, tokio_postgres::Error> {
    Ok(SettingRow {
        name: row.try_get(0)?,
        setting: row.try_get::<_, Option<String>>(1)?.unwrap_or_default(),
        unit: row.try_get(2)?,
        vartype: row.try_get(3)?,
        context: row.try_get(4)?,
        sourcefile: row.try_get(5)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_version_is_read_in_all_its_forms() {
        let read = |text| parse_version(text).map(|version| version.0);
        assert_eq!(
            read("postgres (PostgreSQL) 15.4 (Debian 15.4-1.pgdg120+1)\n"),
            Some(150_004)
        );
        assert_eq!(read("postgres (PostgreSQL) 9.6.24"), Some(90_624));
        assert_eq!(read("postgres (PostgreSQL) 18beta1"), Some(180_000));
        assert_eq!(read("postgres"), None);
    }
}
