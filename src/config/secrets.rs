//! Passwords nobody gave: made once, kept in a file beside the data directory, so that a node needs no configuration to be safe.
//!
//! Only a node without other members does this (`Config::may_have_other_members`); members of a larger cluster must be told the
//! same passwords, and `Config::load` insists on it. The file is never overwritten and never logged.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rand::Rng;
use rand::distr::Alphanumeric;
use serde_json::{Map, Value};

use super::{Config, Secret};

/// Name of the file beside the data directory.
pub const FILE_NAME: &str = "howdah-secrets.json";

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// It cannot be read or written.
    #[error(
        "cannot {doing} the generated passwords in {path}: {source}; give PATRONI_SUPERUSER_PASSWORD and PATRONI_REPLICATION_PASSWORD instead, or make the directory writable"
    )]
    Io {
        /// "read" or "write".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what was written.
    #[error(
        "{0} does not hold passwords as this program writes them; restore it, or give the passwords by environment"
    )]
    Malformed(PathBuf),
}

/// Where the missing passwords came from; log it once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nothing was missing.
    Given,
    /// Read from the file of an earlier start.
    Kept(PathBuf),
    /// Made now.
    Made(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Given => f.write_str("all passwords are configured"),
            Origin::Kept(path) => write!(
                f,
                "passwords that are not configured are taken from {}",
                path.display()
            ),
            Origin::Made(path) => write!(
                f,
                "no passwords were configured; new ones are in {}",
                path.display()
            ),
        }
    }
}

/// Fills in the passwords of superuser and replication that are missing and may be generated.
///
/// # Errors
/// The file cannot be read, written or understood.
pub fn complete(config: &mut Config) -> Result<Origin, SecretsError> {
    if !config.postgresql.generate_passwords {
        return Ok(Origin::Given);
    }
    let path = config.postgresql.parent_dir().join(FILE_NAME);
    let mut kept = match fs::read_to_string(&path) {
        Ok(text) => match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => Some(map),
            _ => return Err(SecretsError::Malformed(path)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => {
            return Err(SecretsError::Io {
                doing: "read",
                path,
                source,
            });
        }
    };
    let made = kept.is_none();
    if made {
        let fresh = Map::from_iter(
            ["superuser", "replication"].map(|user| (user.to_owned(), Value::String(password()))),
        );
        write(&path, &fresh).map_err(|source| SecretsError::Io {
            doing: "write",
            path: path.clone(),
            source,
        })?;
        kept = Some(fresh);
    }
    let kept = kept.unwrap_or_default();
    let users = &mut config.postgresql.authentication;
    for (user, credentials) in [
        ("superuser", &mut users.superuser),
        ("replication", &mut users.replication),
    ] {
        if credentials.password.is_none() {
            match kept.get(user).and_then(Value::as_str) {
                Some(text) => credentials.password = Some(Secret::new(text)),
                None => return Err(SecretsError::Malformed(path)),
            }
        }
    }
    Ok(if made {
        Origin::Made(path)
    } else {
        Origin::Kept(path)
    })
}

/// 32 letters and digits from the system's random source.
fn password() -> String {
    rand::rng()
        .sample_iter(Alphanumeric)
        .take(32)
        .map(char::from)
        .collect()
}

/// Written beside and linked into place: a crash leaves no half file, and two starts cannot both win.
fn write(path: &Path, passwords: &Map<String, Value>) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let temporary = path.with_extension(format!("json.{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(Value::Object(passwords.clone()).to_string().as_bytes())?;
    file.sync_all()?;
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    linked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FakeEnvironment;
    use std::os::unix::fs::PermissionsExt;

    fn config(data_dir: &Path, more: &[(&str, &str)]) -> Config {
        let mut variables = vec![
            ("PATRONI_SCOPE", "s"),
            ("PATRONI_POSTGRESQL_DATA_DIR", data_dir.to_str().unwrap()),
        ];
        variables.extend(more);
        Config::load(None, &FakeEnvironment::new(&variables))
            .unwrap()
            .config
    }

    fn passwords(config: &Config) -> (String, String) {
        let users = &config.postgresql.authentication;
        let text = |secret: &Option<Secret>| secret.as_ref().unwrap().expose().to_owned();
        (
            text(&users.superuser.password),
            text(&users.replication.password),
        )
    }

    #[test]
    fn made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("volume/data");
        let mut first = config(&data_dir, &[]);
        let file = dir.path().join("volume").join(FILE_NAME);
        assert_eq!(complete(&mut first).unwrap(), Origin::Made(file.clone()));
        let (superuser, replication) = passwords(&first);
        assert!(superuser.len() == 32 && replication.len() == 32 && superuser != replication);
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );

        let mut second = config(&data_dir, &[("PATRONI_SUPERUSER_PASSWORD", "mine")]);
        assert_eq!(complete(&mut second).unwrap(), Origin::Kept(file.clone()));
        assert_eq!(passwords(&second), ("mine".to_owned(), replication));

        fs::write(&file, "[]").unwrap();
        assert!(matches!(
            complete(&mut config(&data_dir, &[])),
            Err(SecretsError::Malformed(_))
        ));
    }

    #[test]
    fn nothing_is_written_when_all_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        let mut config = config(
            &data_dir,
            &[
                ("PATRONI_SUPERUSER_PASSWORD", "a"),
                ("PATRONI_REPLICATION_PASSWORD", "b"),
            ],
        );
        assert_eq!(complete(&mut config).unwrap(), Origin::Given);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
