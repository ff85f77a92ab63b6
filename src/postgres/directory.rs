//! The data directory as a thing on disk: what is in it, whose it is, moving it aside, removing it
//! (spec/postgres-management.md §1.3, §14).
//!
//! Nothing is removed here without a [`Removal`] that says why it may be (safety rule S4). Contents of files other than
//! `PG_VERSION` and our own marker are not read.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::write::{FileError, sync_directory};
use crate::types::{PgVersion, SystemId};

/// In a directory that is being filled by us: it is incomplete, and may be removed.
///
/// The leading dot keeps a directory that has nothing else "empty" (§1.3).
const MARKER: &str = ".howdah-incomplete";

/// Why this node cannot use its data directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Something else has this name.
    #[error("{} is not a directory; set postgresql.data_dir to one", path.display())]
    NotADirectory {
        /// The data directory.
        path: PathBuf,
    },
    /// PostgreSQL would refuse it.
    #[error("{} belongs to user {owner}, but PostgreSQL runs as user {me}; change its owner (chown -R {me})", path.display())]
    WrongOwner {
        /// The data directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who PostgreSQL is going to run as.
        me: u32,
    },
    /// PostgreSQL would refuse it.
    #[error("{} has permissions {mode:04o}; PostgreSQL demands 0700 or 0750 (chmod it)", path.display())]
    TooOpen {
        /// The data directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It was made by another major version.
    #[error("{} was made by PostgreSQL {found}, the programs are {programs}; use an image with PostgreSQL {found}, or upgrade with pg_upgrade",
        path.display())]
    OtherMajor {
        /// The data directory.
        path: PathBuf,
        /// `PG_VERSION`.
        found: String,
        /// Major of the binaries.
        programs: String,
    },
    /// It belongs to another cluster; joining would destroy one of the two.
    #[error("system ID mismatch, node {node} belongs to a different cluster: {cluster} != {found}")]
    OtherCluster {
        /// This member.
        node: String,
        /// `/initialize`.
        cluster: SystemId,
        /// pg_control.
        found: SystemId,
    },
    /// It has content, but is no data directory.
    #[error(
        "data dir for the cluster is not empty, but system ID is invalid; consider doing reinitialize"
    )]
    Unrecognised,
    /// An operation of the file system failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A directory that the server needs, and why it cannot have it (spec/configuration.md §6.4).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is defined in {setting}, {why}", path.display())]
pub struct SupportError {
    /// The directory.
    pub path: PathBuf,
    /// The setting that names it.
    pub setting: &'static str,
    /// `couldn't create the directory`, `the directory is not writable`, `is not a directory`.
    pub why: &'static str,
}

/// Checks, and creates where missing, the directories the server and its tools need: sockets, statistics, the password file's parent.
/// Relative ones are in the data directory, and are only made there once it has content.
///
/// # Errors
/// The first that cannot be used; the server would not start.
pub fn ensure_support(
    settings: &super::Settings,
    stats_temp_directory: Option<&str>,
) -> Result<(), SupportError> {
    let data_dir = &settings.data_dir;
    let sockets = settings.unix_socket_directories.iter().flatten();
    // `@name` is a socket without a file.
    let sockets = sockets.filter(|directory| !directory.is_empty() && !directory.starts_with('@'));
    let mut needed: Vec<(&'static str, PathBuf)> = sockets
        .map(|d| ("unix_socket_directories", data_dir.join(d)))
        .collect();
    needed.extend(stats_temp_directory.map(|d| ("stats_temp_directory", data_dir.join(d))));
    if settings.krbsrvname.is_none() {
        needed.extend(
            settings
                .pgpass
                .parent()
                .map(|d| ("postgresql.pgpass", d.to_owned())),
        );
    }
    let has_content = !matches!(is_empty(data_dir), Ok(true));
    for (setting, path) in needed {
        let fail = |why| SupportError {
            path: path.clone(),
            setting,
            why,
        };
        if path.starts_with(data_dir) && !has_content {
            continue;
        }
        if !path.exists() {
            fs::create_dir_all(&path).map_err(|_| fail("couldn't create the directory"))?;
        } else if !path.is_dir() {
            return Err(fail("is not a directory"));
        } else if rustix::fs::access(
            &path,
            rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
        )
        .is_err()
        {
            return Err(fail("the directory is not writable"));
        }
    }
    Ok(())
}

/// What the data directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Missing, or nothing but hidden files and `lost+found`.
    Empty,
    /// We were filling it and did not finish: it may be removed.
    Incomplete(Filling),
    /// Made by this major.
    Cluster(PgVersion),
    /// Files, but no `PG_VERSION` or `global/pg_control`: made by somebody else, never removed unasked.
    Unrecognised,
}

/// What fills a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filling {
    /// initdb or a custom bootstrap.
    Bootstrap,
    /// A replica method.
    Clone,
}

impl Filling {
    fn word(self) -> &'static str {
        match self {
            Filling::Bootstrap => "bootstrap",
            Filling::Clone => "clone",
        }
    }
}

/// Looks what is in the directory.
///
/// # Errors
/// It exists and cannot be read.
pub fn contents(data_dir: &Path) -> Result<Contents, DirectoryError> {
    if is_empty(data_dir)? {
        return Ok(Contents::Empty);
    }
    if let Some(filling) = incomplete(data_dir) {
        return Ok(Contents::Incomplete(filling));
    }
    match major_version(data_dir) {
        Some(version) if data_dir.join("global/pg_control").exists() => {
            Ok(Contents::Cluster(version))
        }
        _ => Ok(Contents::Unrecognised),
    }
}

/// §1.3: not empty with `global/pg_control`; else empty if missing or with nothing but hidden names and `lost+found`.
///
/// # Errors
/// It exists and cannot be read, or is no directory.
pub fn is_empty(data_dir: &Path) -> Result<bool, DirectoryError> {
    if data_dir.join("global/pg_control").exists() {
        return Ok(false);
    }
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(DirectoryError::NotADirectory {
                path: data_dir.to_owned(),
            });
        }
        Err(error) => return Err(FileError::wrap("read", data_dir)(error).into()),
    };
    for entry in entries {
        let name = entry
            .map_err(FileError::wrap("read", data_dir))?
            .file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') && name != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The major version the directory was made by; `None` if missing or unreadable.
#[must_use]
pub fn major_version(data_dir: &Path) -> Option<PgVersion> {
    PgVersion::from_major(&fs::read_to_string(data_dir.join("PG_VERSION")).ok()?).ok()
}

/// Marks the directory as being filled by us. Creates it if missing.
///
/// # Errors
/// It could not be written.
pub fn mark_incomplete(data_dir: &Path, filling: Filling) -> Result<(), FileError> {
    let path = data_dir.join(MARKER);
    fs::write(&path, filling.word()).map_err(FileError::wrap("write", &path))
}

/// Takes the mark away: the directory is complete.
///
/// # Errors
/// It could not be removed; the directory would later be taken for incomplete.
pub fn mark_complete(data_dir: &Path) -> Result<(), FileError> {
    let path = data_dir.join(MARKER);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::wrap("remove", &path)(error))
        }
        _ => sync_directory(data_dir).map_err(FileError::wrap("sync", data_dir)),
    }
}

/// Whether the directory carries our mark.
#[must_use]
pub fn incomplete(data_dir: &Path) -> Option<Filling> {
    match fs::read_to_string(data_dir.join(MARKER)).ok()?.trim() {
        "bootstrap" => Some(Filling::Bootstrap),
        _ => Some(Filling::Clone),
    }
}

/// Checks what PostgreSQL checks at its start, so that the message can say what to do. `user`: who PostgreSQL is going to run as.
///
/// # Errors
/// Wrong owner, too open permissions, no directory. A missing directory is fine.
pub fn check_access(data_dir: &Path, user: u32) -> Result<(), DirectoryError> {
    let metadata = match fs::metadata(data_dir) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FileError::wrap("read", data_dir)(error).into()),
    };
    let path = data_dir.to_owned();
    if !metadata.is_dir() {
        return Err(DirectoryError::NotADirectory { path });
    }
    if metadata.uid() != user {
        return Err(DirectoryError::WrongOwner {
            path,
            owner: metadata.uid(),
            me: user,
        });
    }
    let mode = metadata.mode() & 0o7777;
    // An empty directory gets its permissions from initdb or pg_basebackup.
    if mode & 0o027 != 0 && !is_empty(data_dir)? {
        return Err(DirectoryError::TooOpen { path, mode });
    }
    Ok(())
}

/// Takes permissions away that PostgreSQL would refuse: a mount point keeps those it had when a tool fills it. What the group may read
/// by PostgreSQL's rules (0750) stays.
///
/// # Errors
/// They could not be changed.
pub fn close_to_others(data_dir: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(data_dir).map_err(FileError::wrap("read", data_dir))?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o027 == 0 {
        return Ok(());
    }
    fs::set_permissions(data_dir, fs::Permissions::from_mode(0o700))
        .map_err(FileError::wrap("change the permissions of", data_dir))
}

/// Checks that the directory fits the programs. An empty one always does.
///
/// # Errors
/// [`DirectoryError::OtherMajor`].
pub fn check_major(data_dir: &Path, programs: PgVersion) -> Result<(), DirectoryError> {
    match major_version(data_dir) {
        Some(found) if found.major() != programs.major() => Err(DirectoryError::OtherMajor {
            path: data_dir.to_owned(),
            found: found.major(),
            programs: programs.major(),
        }),
        _ => Ok(()),
    }
}

/// Checks that the directory belongs to this cluster.
///
/// # Errors
/// [`DirectoryError::OtherCluster`].
pub fn check_cluster(
    node: &str,
    cluster: &SystemId,
    found: &SystemId,
) -> Result<(), DirectoryError> {
    if cluster == found {
        return Ok(());
    }
    Err(DirectoryError::OtherCluster {
        node: node.to_owned(),
        cluster: cluster.clone(),
        found: found.clone(),
    })
}

/// The links that lead out of the data directory, and where they lead: the WAL directory and the tablespaces.
///
/// # Errors
/// A directory or link could not be read.
pub fn outside_links(data_dir: &Path) -> Result<Vec<(PathBuf, PathBuf)>, FileError> {
    let mut candidates = vec![data_dir.join("pg_wal"), data_dir.join("pg_xlog")];
    let tablespaces = data_dir.join("pg_tblspc");
    match fs::read_dir(&tablespaces) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(FileError::wrap("read", &tablespaces))?;
                if entry
                    .file_name()
                    .to_string_lossy()
                    .bytes()
                    .all(|b| b.is_ascii_digit())
                {
                    candidates.push(entry.path());
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(FileError::wrap("read", &tablespaces)(error)),
    }
    let mut links = Vec::new();
    for link in candidates {
        if link.is_symlink() {
            let target = fs::read_link(&link).map_err(FileError::wrap("read", &link))?;
            let target = link.parent().unwrap_or(data_dir).join(target);
            links.push((link, target));
        }
    }
    Ok(links)
}

/// Bytes free for this user on the file system of `path` (or of its nearest existing parent).
///
/// # Errors
/// The file system could not be asked.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let existing = path
        .ancestors()
        .find(|p| p.exists())
        .unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes of all files below `path`; links are not followed; what vanishes meanwhile does not count.
#[must_use]
pub fn size(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    if !metadata.is_dir() {
        return metadata.len();
    }
    let Ok(entries) = fs::read_dir(path) else {
        return 0;
    };
    entries.flatten().map(|entry| size(&entry.path())).sum()
}

/// Why a data directory may be removed (S4). Whoever calls [`remove`] states one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// A bootstrap or clone of ours that did not finish.
    OwnUnfinished,
    /// An operator asked for a reinitialisation.
    Reinitialise,
    /// `remove_data_directory_on_rewind_failure` or `remove_data_directory_on_diverged_timelines` is set.
    Configured,
}

/// Moves a failed data directory to `<data_dir>.failed`, and with it the WAL directory and tablespaces outside of it. Only for a
/// stopped server. An older `.failed` is removed first.
///
/// # Errors
/// The first step that failed. A mount point cannot be moved (resource busy).
pub fn move_aside(data_dir: &Path) -> Result<PathBuf, FileError> {
    rename_with_links(data_dir, ".failed")
}

/// What became of a diverged directory that is about to be replaced.
#[derive(Debug)]
pub enum SetAside {
    /// It is kept here, until the next one.
    Kept(PathBuf),
    /// It was not kept; the directory is as it was.
    NotKept {
        /// In words, for the log.
        reason: String,
    },
}

/// Renames a diverged data directory to `<data_dir>.diverged` before a clone replaces it, if the clone will fit beside it: commits that
/// only this node had can still be looked up. One is kept. `limit`: bytes above which it is not.
#[must_use]
pub fn set_aside_diverged(data_dir: &Path, limit: u64) -> SetAside {
    let size = size(data_dir);
    if size > limit {
        return SetAside::NotKept {
            reason: format!(
                "it has {size} bytes, more than postgresql.keep_diverged_limit = {limit}"
            ),
        };
    }
    let free = match free_space(data_dir) {
        Ok(free) => free.saturating_add(self::size(&with_suffix(data_dir, ".diverged"))),
        Err(error) => {
            return SetAside::NotKept {
                reason: format!("the free space is unknown: {error}"),
            };
        }
    };
    if free < size.saturating_add(size / 10) {
        return SetAside::NotKept {
            reason: format!("{free} bytes free are too few for a second directory of {size} bytes"),
        };
    }
    match rename_with_links(data_dir, ".diverged") {
        Ok(path) => SetAside::Kept(path),
        Err(error) => SetAside::NotKept {
            reason: error.to_string(),
        },
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// All or nothing: if one directory cannot be renamed (a mount point), those before it get their names back.
fn rename_with_links(data_dir: &Path, suffix: &str) -> Result<PathBuf, FileError> {
    let links = outside_links(data_dir)?;
    let outside = links
        .iter()
        .map(|(_, target)| target.as_path())
        .filter(|target| target.exists());
    let mut renamed: Vec<(&Path, PathBuf)> = Vec::new();
    for directory in outside.chain([data_dir]) {
        let new = with_suffix(directory, suffix);
        let done = remove_tree(&new).and_then(|()| {
            fs::rename(directory, &new).map_err(FileError::wrap("rename", directory))
        });
        if let Err(error) = done {
            for (old, new) in renamed.iter().rev() {
                fs::rename(new, old).map_err(FileError::wrap("rename back", new))?;
            }
            return Err(error);
        }
        renamed.push((directory, new));
    }
    let kept = with_suffix(data_dir, suffix);
    for (link, target) in &links {
        let link = kept.join(link.strip_prefix(data_dir).unwrap_or(link));
        if let Some((_, new)) = renamed.iter().find(|(old, _)| old == target) {
            fs::remove_file(&link).map_err(FileError::wrap("remove", &link))?;
            std::os::unix::fs::symlink(new, &link).map_err(FileError::wrap("link", &link))?;
        }
    }
    Ok(kept)
}

/// Removes the data directory with the WAL directory and tablespaces that its links lead to. A link or a file in its place is
/// just removed. A mount point stays, empty.
///
/// # Errors
/// Something could not be removed; the caller may then [`move_aside`].
pub fn remove(data_dir: &Path, why: Removal) -> Result<(), FileError> {
    tracing::info!(directory = %data_dir.display(), ?why, "Removing data directory");
    if data_dir.is_symlink() || data_dir.is_file() {
        return fs::remove_file(data_dir).map_err(FileError::wrap("remove", data_dir));
    }
    if !data_dir.exists() {
        return Ok(());
    }
    for (link, target) in outside_links(data_dir)? {
        let is_wal = link.parent() == Some(data_dir);
        match empty_directory(&target) {
            Err(error) if is_wal => return Err(error),
            Err(error) => tracing::warn!(%error, "a tablespace could not be removed"),
            Ok(()) => {}
        }
    }
    remove_tree(data_dir)
}

/// Empties a data directory that stays, for a tool that wants to find it empty.
///
/// # Errors
/// Something could not be removed.
pub fn empty_directory(directory: &Path) -> Result<(), FileError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FileError::wrap("read", directory)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(FileError::wrap("read", directory))?;
        if entry.file_name() == "lost+found" {
            continue;
        }
        let path = entry.path();
        let is_directory = entry
            .file_type()
            .map_err(FileError::wrap("read", &path))?
            .is_dir();
        let removed = if is_directory {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(FileError::wrap("remove", &path))?;
    }
    Ok(())
}

/// Removes a directory; one that cannot go because it is a mount point or its parent is not ours stays empty.
fn remove_tree(directory: &Path) -> Result<(), FileError> {
    empty_directory(directory)?;
    match fs::remove_dir(directory) {
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::ResourceBusy
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::DirectoryNotEmpty => Ok(()),
            _ => Err(FileError::wrap("remove", directory)(error)),
        },
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn cluster(root: &Path) -> PathBuf {
        let data = root.join("data");
        fs::create_dir_all(data.join("global")).unwrap();
        fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        fs::write(data.join("global/pg_control"), "x").unwrap();
        fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        data
    }

    #[test]
    fn hidden_names_do_not_fill_a_directory() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("data");
        assert_eq!(contents(&data).unwrap(), Contents::Empty);
        fs::create_dir_all(data.join("lost+found")).unwrap();
        fs::write(data.join(".x"), "").unwrap();
        assert_eq!(contents(&data).unwrap(), Contents::Empty);
        fs::write(data.join("PG_VERSION"), "15").unwrap();
        assert_eq!(contents(&data).unwrap(), Contents::Unrecognised);
        mark_incomplete(&data, Filling::Clone).unwrap();
        assert_eq!(
            contents(&data).unwrap(),
            Contents::Incomplete(Filling::Clone)
        );
        mark_complete(&data).unwrap();
        cluster(root.path());
        assert_eq!(
            contents(&data).unwrap(),
            Contents::Cluster(PgVersion(150_000))
        );
        fs::write(root.path().join("file"), "").unwrap();
        assert!(matches!(
            contents(&root.path().join("file")),
            Err(DirectoryError::NotADirectory { .. })
        ));
    }

    #[test]
    fn what_postgresql_would_refuse_is_said_before() {
        let root = tempfile::tempdir().unwrap();
        let data = cluster(root.path());
        let me = fs::metadata(&data).unwrap().uid();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(
            check_access(&data, me),
            Err(DirectoryError::TooOpen { mode: 0o755, .. })
        ));
        fs::set_permissions(&data, fs::Permissions::from_mode(0o750)).unwrap();
        assert!(check_access(&data, me).is_ok());
        assert!(matches!(
            check_access(&data, me + 1),
            Err(DirectoryError::WrongOwner { .. })
        ));
        assert!(check_major(&data, PgVersion(150_004)).is_ok());
        let error = check_major(&data, PgVersion(170_000))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("made by PostgreSQL 15, the programs are 17"),
            "{error}"
        );
    }

    #[test]
    fn directories_of_the_server_are_made_where_they_are_missing() {
        let root = tempfile::tempdir().unwrap();
        let mut settings = crate::postgres::write::tests::settings_in(root.path());
        let sockets = root.path().join("run/pg");
        settings.unix_socket_directories = Some(vec![
            sockets.display().to_string(),
            "inside".into(),
            "@abstract".into(),
        ]);
        ensure_support(&settings, Some("stats")).unwrap();
        assert!(sockets.is_dir() && !settings.data_dir.join("inside").exists());
        cluster(root.path());
        ensure_support(&settings, Some("stats")).unwrap();
        assert!(
            settings.data_dir.join("inside").is_dir() && settings.data_dir.join("stats").is_dir()
        );
        settings.unix_socket_directories = Some(vec![
            settings.data_dir.join("PG_VERSION").display().to_string(),
        ]);
        let error = ensure_support(&settings, None).unwrap_err().to_string();
        assert!(
            error
                .ends_with("PG_VERSION' is defined in unix_socket_directories, is not a directory"),
            "{error}"
        );
    }

    #[test]
    fn another_clusters_directory_is_refused_in_patronis_words() {
        let id = |text: &str| text.parse::<SystemId>().unwrap();
        assert!(check_cluster("n", &id("1234567890"), &id("1234567890")).is_ok());
        assert_eq!(
            check_cluster("n", &id("1234567890"), &id("1234567891"))
                .unwrap_err()
                .to_string(),
            "system ID mismatch, node n belongs to a different cluster: 1234567890 != 1234567891"
        );
    }

    #[test]
    fn moving_aside_takes_wal_and_tablespaces_along() {
        let root = tempfile::tempdir().unwrap();
        let data = cluster(root.path());
        let (wal, space) = (root.path().join("wal"), root.path().join("space"));
        fs::create_dir(&wal).unwrap();
        fs::write(wal.join("segment"), "").unwrap();
        fs::create_dir(&space).unwrap();
        symlink(&wal, data.join("pg_wal")).unwrap();
        symlink(&space, data.join("pg_tblspc/16384")).unwrap();
        fs::create_dir_all(root.path().join("data.failed/old")).unwrap();
        let failed = move_aside(&data).unwrap();
        assert!(!data.exists() && !wal.exists() && !space.exists());
        assert!(!failed.join("old").exists());
        assert!(failed.join("pg_wal/segment").exists());
        assert_eq!(
            fs::read_link(failed.join("pg_tblspc/16384")).unwrap(),
            root.path().join("space.failed")
        );
    }

    #[test]
    fn removing_takes_wal_and_tablespaces_along() {
        let root = tempfile::tempdir().unwrap();
        let data = cluster(root.path());
        let wal = root.path().join("wal");
        fs::create_dir(&wal).unwrap();
        fs::write(wal.join("segment"), "").unwrap();
        symlink(&wal, data.join("pg_wal")).unwrap();
        remove(&data, Removal::OwnUnfinished).unwrap();
        assert!(!data.exists());
        assert!(!wal.join("segment").exists());
        let link = root.path().join("link");
        symlink(&wal, &link).unwrap();
        remove(&link, Removal::Reinitialise).unwrap();
        assert!(!link.is_symlink() && wal.exists());
    }

    #[test]
    fn a_diverged_directory_is_kept_once() {
        let root = tempfile::tempdir().unwrap();
        for content in ["one", "two"] {
            let data = cluster(root.path());
            fs::write(data.join("which"), content).unwrap();
            let SetAside::Kept(path) = set_aside_diverged(&data, u64::MAX) else {
                panic!("not kept")
            };
            assert_eq!(path, root.path().join("data.diverged"));
            assert!(!data.exists());
            assert_eq!(fs::read_to_string(path.join("which")).unwrap(), content);
        }
        let data = cluster(root.path());
        fs::write(data.join("much"), [0; 100]).unwrap();
        let SetAside::NotKept { reason } = set_aside_diverged(&data, 99) else {
            panic!("kept")
        };
        assert!(reason.contains("keep_diverged_limit"), "{reason}");
        assert!(data.exists());
    }
}
