//! `log.dir`: a file that is rotated by size.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// `patroni.log`, `patroni.log.1`, … in one directory.
pub(super) struct Rotated {
    path: PathBuf,
    file: File,
    size: u64,
    keep: u32,
    limit: u64,
    mode: Option<u32>,
}

impl Rotated {
    /// # Errors
    /// A directory that is missing or not writable.
    pub(super) fn open(
        dir: &Path,
        keep: u32,
        limit: u64,
        mode: Option<u32>,
    ) -> anyhow::Result<Self> {
        let path = dir.join("patroni.log");
        let file = create(&path, mode).with_context(|| {
            format!(
                "open the log file {}; log.dir must be an existing, writable directory",
                path.display()
            )
        })?;
        let size = file.metadata().map(|meta| meta.len()).unwrap_or(0);
        Ok(Rotated {
            path,
            file,
            size,
            keep,
            limit,
            mode,
        })
    }

    pub(super) fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + line.len() as u64 > self.limit && self.limit > 0 {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |n: u32| PathBuf::from(format!("{}.{n}", self.path.display()));
        for n in (1..self.keep).rev() {
            match std::fs::rename(numbered(n), numbered(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.keep > 0 {
            std::fs::rename(&self.path, numbered(1))?;
        }
        self.file = create(&self.path, self.mode)?;
        self.file.set_len(0)?;
        self.size = 0;
        Ok(())
    }
}

/// The umask has no say in a mode that was asked for.
fn create(path: &Path, mode: Option<u32>) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    if let Some(mode) = mode {
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_rotated_and_only_so_many_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Rotated::open(dir.path(), 2, 10, Some(0o640)).unwrap();
        for line in ["11111111\n", "22222222\n", "33333333\n", "44444444\n"] {
            log.write_line(line.as_bytes()).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).ok();
        assert_eq!(read("patroni.log").as_deref(), Some("44444444\n"));
        assert_eq!(read("patroni.log.1").as_deref(), Some("33333333\n"));
        assert_eq!(read("patroni.log.2").as_deref(), Some("22222222\n"));
        assert_eq!(read("patroni.log.3"), None);
        for name in ["patroni.log", "patroni.log.1"] {
            let mode = dir.path().join(name).metadata().unwrap().permissions();
            assert_eq!(mode.mode() & 0o777, 0o640);
        }
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = Rotated::open(Path::new("/nonexistent/logs"), 2, 10, None)
            .err()
            .unwrap();
        assert!(
            format!("{error:#}").contains("/nonexistent/logs/patroni.log"),
            "{error:#}"
        );
    }
}
