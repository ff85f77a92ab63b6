//! Crash recovery without a postmaster: brings a crashed data directory to a clean stop, which pg_rewind needs (spec §10.2).
//!
//! It never archives (the caller has archived what was left, §10.6) and never listens.

use std::fs;
use std::io;
use std::path::Path;

use super::Settings;
use super::binaries::{ToolError, run_until};
use crate::types::PgVersion;

/// Why the recovery did not end well.
#[derive(Debug, thiserror::Error)]
pub enum SingleUserError {
    /// A file could not be removed.
    #[error("cannot prepare crash recovery: {0}")]
    Io(#[from] io::Error),
    /// The server could not be run, or was cancelled.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The server failed.
    #[error("crash recovery in single-user mode ended with {status}: {output}")]
    Failed {
        /// How it ended.
        status: std::process::ExitStatus,
        /// Everything it wrote.
        output: String,
    },
}

/// Recovers a crashed data directory. `cancelled` ends the attempt (then the directory is as crashed as before).
///
/// # Errors
/// [`SingleUserError`].
pub async fn recover(
    settings: &Settings,
    version: PgVersion,
    cancelled: impl Future<Output = ()>,
) -> Result<(), SingleUserError> {
    let data = &settings.data_dir;
    let wal = if version.at_least(10) {
        "pg_wal"
    } else {
        "pg_xlog"
    };
    empty(&data.join(wal).join("archive_status"))?;
    for name in ["standby.signal", "recovery.signal", "recovery.conf"] {
        remove_if_there(&data.join(name))?;
    }

    let opts = fs::read_to_string(data.join("postmaster.opts")).unwrap_or_default();
    let mut options = parse_options(&opts);
    options.retain(|(name, _)| name != "archive_mode" && name != "archive_command");
    options.push(("archive_mode".to_owned(), "on".to_owned()));
    options.push(("archive_command".to_owned(), "false".to_owned()));
    options.sort();

    let mut command = settings.tool("postgres");
    command.arg("--single").arg("-D").arg(data);
    for (name, value) in options {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    command.arg("template1").current_dir(data);
    let output = run_until(command, cancelled).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(SingleUserError::Failed {
        status: output.status,
        output: format!("{}{}", output.stdout, output.stderr)
            .trim()
            .to_owned(),
    })
}

/// The settings of the last start from `postmaster.opts`: `program "-D" "dir" "--name=value" …`.
fn parse_options(text: &str) -> Vec<(String, String)> {
    let line = text.lines().next().unwrap_or_default();
    line.split(" \"")
        .skip(1)
        .filter_map(|argument| {
            let argument = argument.strip_suffix('"').unwrap_or(argument);
            let (name, value) = argument.strip_prefix("--")?.split_once('=')?;
            Some((name.replace('-', "_"), value.to_owned()))
        })
        .collect()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn empty(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        remove_if_there(&entry?.path())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_last_start() {
        let text = "/usr/lib/postgresql/15/bin/postgres \"-D\" \"/data\" \"--config-file=/data/postgresql.conf\" \"--cluster_name=a \\\"b\" \"--port=5432\"\n";
        let expected = [
            ("config_file", "/data/postgresql.conf"),
            ("cluster_name", "a \\\"b"),
            ("port", "5432"),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        assert_eq!(parse_options(text), expected);
    }
}
