//! Puts configuration files in place: atomically, with the right modes, and only if their content changes
//! (spec/configuration.md §6, §6.4).
//!
//! What goes into the files is decided elsewhere (`params`, `render`). This module never reloads or starts the server; it says what
//! the server needs to notice the change.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Settings;
use super::changes::Need;
use super::params::{Parameters, RecoverySettings, Signal};
use super::render;
use crate::types::PgVersion;

/// What to do about recovery files.
#[derive(Debug, Clone, PartialEq)]
pub enum Recovery {
    /// Leave recovery settings, signal files and recovery.conf as they are (a running server; a bootstrap that brought its own).
    Untouched,
    /// Remove them: the next start is as a primary.
    Removed,
    /// Write these settings and the signal file.
    Set(RecoverySettings),
}

/// Everything that goes into the managed files.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Data directory's major; decides where recovery settings go.
    pub major: PgVersion,
    /// Settings of postgresql.conf.
    pub parameters: Parameters,
    /// `postgresql.custom_conf`: included instead of the original file.
    pub custom_conf: Option<String>,
    /// Lines of pg_hba.conf; `None`: not ours.
    pub hba: Option<Vec<String>>,
    /// Lines of pg_ident.conf; `None`: not ours.
    pub ident: Option<Vec<String>>,
    /// Recovery files.
    pub recovery: Recovery,
    /// Content of the password file that `primary_conninfo` names; `None`: leave it.
    pub passwords: Option<String>,
    /// A custom bootstrap asked to keep its recovery settings in postgresql.auto.conf.
    pub keep_auto_conf: bool,
    /// Text of pg_hba.conf while a custom bootstrap runs; overrides `hba` and the `hba_file` setting.
    pub bootstrap_hba: Option<String>,
}

/// Which files have a new content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "one flag per file")]
pub struct Written {
    pub postgresql_conf: bool,
    pub auto_conf: bool,
    pub hba: bool,
    pub ident: bool,
    pub passwords: bool,
    /// A signal file or recovery.conf was created, removed or changed.
    pub recovery: bool,
}

impl Written {
    /// What the running server needs to take notice of the files. Whether a changed setting also needs a restart is `changes`' to say.
    #[must_use]
    pub fn need(self) -> Need {
        if self.recovery {
            Need::Restart
        } else if self.postgresql_conf || self.auto_conf || self.hba || self.ident || self.passwords
        {
            Need::Reload
        } else {
            Need::Nothing
        }
    }
}

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    /// What was tried ("write", "rename", …).
    pub action: &'static str,
    /// Which file.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl FileError {
    pub(super) fn wrap(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
        let path = path.to_owned();
        move |source| FileError {
            action,
            path,
            source,
        }
    }
}

/// Names of the managed files of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the files' own names")]
pub struct ManagedFiles {
    pub data_dir: PathBuf,
    pub postgresql_conf: PathBuf,
    pub base_conf: PathBuf,
    pub hba: PathBuf,
    pub ident: PathBuf,
}

impl ManagedFiles {
    /// Where the files of this node are.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        let base = &settings.config_base_name;
        ManagedFiles {
            data_dir: settings.data_dir.clone(),
            postgresql_conf: settings.config_file(),
            base_conf: settings.config_dir.join(format!("{base}.base.conf")),
            hba: settings.config_dir.join("pg_hba.conf"),
            ident: settings.config_dir.join("pg_ident.conf"),
        }
    }

    /// The files that are copied to `<data_dir>/<name>.backup`, without those that the configuration places elsewhere.
    fn backed_up(&self, parameters: &Parameters, custom_conf: bool) -> Vec<&Path> {
        let mut files = vec![self.postgresql_conf.as_path()];
        if !custom_conf {
            files.push(&self.base_conf);
        }
        if parameters.get("hba_file").is_none() {
            files.push(&self.hba);
        }
        if parameters.get("ident_file").is_none() {
            files.push(&self.ident);
        }
        files
    }

    fn backup_of(&self, file: &Path) -> PathBuf {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(".backup");
        self.data_dir.join(name)
    }
}

/// Writes the managed files; unchanged ones keep their time of modification.
///
/// # Errors
/// The first file that could not be written; those before it are in place.
pub fn write(settings: &Settings, wanted: &Wanted) -> Result<Written, FileError> {
    let files = ManagedFiles::of(settings);
    let mut written = Written::default();
    // A generated file is no original: it would include itself.
    let is_original = || {
        fs::read(&files.postgresql_conf)
            .is_ok_and(|text| !text.starts_with(render::HEADER.as_bytes()))
    };
    if wanted.custom_conf.is_none() && !files.base_conf.exists() && is_original() {
        fs::rename(&files.postgresql_conf, &files.base_conf)
            .map_err(FileError::wrap("rename", &files.postgresql_conf))?;
    }
    let mut parameters = wanted.parameters.clone();
    if wanted.bootstrap_hba.is_some() {
        parameters.remove("hba_file");
    }
    for name in ["hba_file", "ident_file"] {
        if let Some(path) = parameters.remove(name) {
            parameters.set(name, settings.config_dir.join(path).display().to_string());
        }
    }
    let include = match wanted.custom_conf.as_deref() {
        Some(path) if !path.is_empty() => path.to_owned(),
        _ => format!("{}.base.conf", settings.config_base_name),
    };
    ensure_include(&files, wanted)?;
    let recovery = match &wanted.recovery {
        Recovery::Set(recovery) if wanted.major.at_least(12) => Some(&recovery.parameters),
        _ => None,
    };
    let kept = match &wanted.recovery {
        Recovery::Untouched => recovery_section(&files.postgresql_conf),
        _ => String::new(),
    };
    let hba_path = files.hba.display().to_string();
    let mut text = render::postgresql_conf(
        &include,
        &parameters,
        &hba_path,
        &files.ident.display().to_string(),
        recovery,
    );
    text.push_str(&kept);
    written.postgresql_conf = place(settings, &files.postgresql_conf, &text)?;
    if wanted.major.at_least(12) && !wanted.keep_auto_conf {
        written.auto_conf = clean_auto_conf(settings)?;
    }
    let ours = |parameter: Option<&str>, path: &Path| {
        parameter.is_none_or(|value| Path::new(value) == path)
    };
    if let Some(text) = &wanted.bootstrap_hba {
        written.hba = place(settings, &files.hba, text)?;
    } else if let Some(lines) = wanted
        .hba
        .as_ref()
        .filter(|_| ours(parameters.get("hba_file"), &files.hba))
    {
        written.hba = place(settings, &files.hba, &render::access_file(lines))?;
    }
    if let Some(lines) = wanted
        .ident
        .as_ref()
        .filter(|_| ours(parameters.get("ident_file"), &files.ident))
    {
        written.ident = place(settings, &files.ident, &render::access_file(lines))?;
    }
    if let Some(passwords) = &wanted.passwords {
        written.passwords = write_passwords(&settings.pgpass, passwords)?;
    }
    // Last: a node must not start as a standby without the settings that say of whom.
    written.recovery = place_recovery(settings, wanted)?;
    Ok(written)
}

/// The recovery settings in a file we wrote, as they stand there: a standby whose following does not change keeps them.
fn recovery_section(postgresql_conf: &Path) -> String {
    let text = fs::read_to_string(postgresql_conf).unwrap_or_default();
    let start = text
        .find(render::RECOVERY_HEADING)
        .filter(|_| text.starts_with(render::HEADER));
    start.map(|at| text[at..].to_owned()).unwrap_or_default()
}

/// The password file, readable by its owner only.
///
/// # Errors
/// The file could not be written.
pub fn write_passwords(path: &Path, content: &str) -> Result<bool, FileError> {
    let owner = path.parent().and_then(owner_to_give);
    replace(path, content.as_bytes(), Some(0o600), owner).map_err(FileError::wrap("write", path))
}

/// A missing included file would keep the server from starting: base backups taken of a node with another layout lack it.
fn ensure_include(files: &ManagedFiles, wanted: &Wanted) -> Result<(), FileError> {
    if wanted
        .custom_conf
        .as_deref()
        .is_some_and(|path| !path.is_empty())
        || files.base_conf.exists()
    {
        return Ok(());
    }
    let mode = file_mode(&files.data_dir);
    replace(
        &files.base_conf,
        b"",
        Some(mode),
        owner_to_give(&files.data_dir),
    )
    .map(|_| ())
    .map_err(FileError::wrap("write", &files.base_conf))
}

fn clean_auto_conf(settings: &Settings) -> Result<bool, FileError> {
    let path = settings.data_dir.join("postgresql.auto.conf");
    let text = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(FileError::wrap("read", &path)(error)),
    };
    match render::auto_conf_without_recovery(&text) {
        Some(cleaned) => place(settings, &path, &cleaned),
        None => Ok(false),
    }
}

fn place_recovery(settings: &Settings, wanted: &Wanted) -> Result<bool, FileError> {
    let in_data = |name: &str| settings.data_dir.join(name);
    let (standby, recovery, old) = (
        in_data("standby.signal"),
        in_data("recovery.signal"),
        in_data("recovery.conf"),
    );
    match &wanted.recovery {
        Recovery::Untouched => Ok(false),
        Recovery::Removed => {
            let mut removed = false;
            for path in [&standby, &recovery, &old] {
                removed |= remove_if_exists(path)?;
            }
            Ok(removed)
        }
        Recovery::Set(settings_wanted) if wanted.major.at_least(12) => {
            let (wanted_file, other) = match settings_wanted.signal {
                Signal::Standby => (&standby, &recovery),
                Signal::Recovery => (&recovery, &standby),
            };
            // 12+ refuses to start if there is a recovery.conf.
            let mut changed = remove_if_exists(&old)?;
            changed |= place(settings, wanted_file, "")?;
            changed |= remove_if_exists(other)?;
            Ok(changed)
        }
        Recovery::Set(settings_wanted) => place(
            settings,
            &old,
            &render::recovery_conf(&settings_wanted.parameters),
        ),
    }
}

/// Copies the configuration files to `<data_dir>/<name>.backup`: after initialisation and after every start. A clone finds them.
///
/// # Errors
/// The first file that could not be copied.
pub fn back_up(
    settings: &Settings,
    parameters: &Parameters,
    custom_conf: bool,
) -> Result<(), FileError> {
    let files = ManagedFiles::of(settings);
    for file in files.backed_up(parameters, custom_conf) {
        let content = match fs::read(file) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(FileError::wrap("read", file)(error)),
        };
        place_bytes(settings, &files.backup_of(file), &content)?;
    }
    Ok(())
}

/// Brings missing configuration files back from their `.backup` (after a clone or a custom bootstrap) and makes sure that
/// pg_ident.conf exists.
///
/// # Errors
/// The first file that could not be written.
pub fn restore(
    settings: &Settings,
    parameters: &Parameters,
    custom_conf: bool,
) -> Result<(), FileError> {
    let files = ManagedFiles::of(settings);
    for file in files.backed_up(parameters, custom_conf) {
        if file.exists() {
            continue;
        }
        let backup = files.backup_of(file);
        match fs::read(&backup) {
            Ok(content) => {
                place_bytes(settings, file, &content)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(FileError::wrap("read", &backup)(error)),
        }
    }
    if parameters.get("ident_file").is_none() && !files.ident.exists() {
        place(settings, &files.ident, "")?;
    }
    Ok(())
}

/// Removes the file that would promote a standby as soon as it runs: a copied data directory may contain one (§9.1 of
/// postgres-management.md). `recovery_conf`: `postgresql.recovery_conf`, or the bootstrap section's.
///
/// # Errors
/// It is there and could not be removed.
pub fn remove_trigger_file(
    settings: &Settings,
    recovery_conf: &Parameters,
) -> Result<bool, FileError> {
    let configured = recovery_conf
        .get("promote_trigger_file")
        .or(recovery_conf.get("trigger_file"));
    let name = configured
        .filter(|name| !name.is_empty())
        .unwrap_or("promote");
    remove_if_exists(&settings.data_dir.join(name))
}

/// 0640 if the data directory is readable by its group, else 0600.
#[must_use]
pub fn file_mode(data_dir: &Path) -> u32 {
    match fs::metadata(data_dir) {
        Ok(metadata) if metadata.mode() & 0o050 == 0o050 => 0o640,
        _ => 0o600,
    }
}

/// When this process is root, files go to the owner of the data directory: the server, which is never root, must read them.
fn owner_to_give(directory: &Path) -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    fs::metadata(directory)
        .ok()
        .map(|metadata| (metadata.uid(), metadata.gid()))
}

fn place(settings: &Settings, path: &Path, content: &str) -> Result<bool, FileError> {
    place_bytes(settings, path, content.as_bytes())
}

/// Writes one managed file if its content differs. `true`: it did.
pub(super) fn place_bytes(
    settings: &Settings,
    path: &Path,
    content: &[u8],
) -> Result<bool, FileError> {
    let inside = path.starts_with(&settings.data_dir);
    let mode = inside.then(|| file_mode(&settings.data_dir));
    replace(path, content, mode, owner_to_give(&settings.data_dir))
        .map_err(FileError::wrap("write", path))
}

/// `mode` `None`: what the umask leaves of 0666.
fn replace(
    path: &Path,
    content: &[u8],
    mode: Option<u32>,
    owner: Option<(u32, u32)>,
) -> io::Result<bool> {
    if fs::read(path).is_ok_and(|existing| existing == content) {
        if let Some(mode) = mode
            && fs::metadata(path)?.mode() & 0o7777 != mode
        {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        return Ok(false);
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".howdah-new");
    let temporary = PathBuf::from(temporary);
    let fill = |file: &mut File| -> io::Result<()> {
        if let Some(mode) = mode {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::fchown(&*file, Some(uid), Some(gid))?;
        }
        file.write_all(content)?;
        file.sync_all()
    };
    let open = |path: &Path| {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode.unwrap_or(0o666))
            .open(path)
    };
    let atomic = open(&temporary)
        .and_then(|mut file| fill(&mut file))
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = atomic {
        let _ = fs::remove_file(&temporary);
        // A file mounted on its own cannot be replaced, only overwritten.
        if !matches!(
            error.kind(),
            io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices
        ) {
            return Err(error);
        }
        fill(&mut open(path)?)?;
    }
    if let Some(directory) = path.parent() {
        sync_directory(directory)?;
    }
    Ok(true)
}

/// Makes a rename or removal in this directory survive a power failure.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn remove_if_exists(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::wrap("remove", path)(error)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    /// Settings of a node whose data directory is `<root>/data`.
    pub(crate) fn settings_in(root: &Path) -> Settings {
        let data_dir = root.join("data");
        fs::create_dir_all(&data_dir).unwrap();
        fs::set_permissions(&data_dir, fs::Permissions::from_mode(0o700)).unwrap();
        Settings {
            config_dir: data_dir.clone(),
            data_dir,
            config_base_name: "postgresql".into(),
            bin_dir: None,
            bin_name: BTreeMap::new(),
            listen_addresses: vec!["127.0.0.1".into()],
            port: 5432,
            unix_socket_directories: None,
            use_unix_socket: false,
            use_unix_socket_repl: false,
            database: "postgres".into(),
            superuser: super::super::Credentials::default(),
            replication: super::super::Credentials::default(),
            rewind: None,
            pgpass: root.join("pgpass"),
            krbsrvname: None,
            pg_ctl_timeout: Duration::from_secs(60),
        }
    }

    fn wanted(major: u32, recovery: Recovery) -> Wanted {
        Wanted {
            major: PgVersion(major),
            parameters: [("work_mem", "4MB")].into_iter().collect(),
            custom_conf: None,
            hba: Some(vec!["local all all trust".into()]),
            ident: None,
            recovery,
            passwords: None,
            keep_auto_conf: false,
            bootstrap_hba: None,
        }
    }

    fn standby() -> Recovery {
        Recovery::Set(RecoverySettings {
            parameters: [("primary_conninfo", "host=a")].into_iter().collect(),
            signal: Signal::Standby,
            problems: Vec::new(),
        })
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn the_original_file_is_kept_and_the_second_write_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings_in(root.path());
        let data = &settings.data_dir;
        fs::write(data.join("postgresql.conf"), "original\n").unwrap();
        fs::write(
            data.join("postgresql.auto.conf"),
            "recovery_target = 'immediate'\nport = 1\n",
        )
        .unwrap();
        let wanted = wanted(150_000, standby());
        let first = write(&settings, &wanted).unwrap();
        assert!(
            first.postgresql_conf && first.auto_conf && first.hba && first.recovery && !first.ident
        );
        assert_eq!(first.need(), Need::Restart);
        assert_eq!(
            fs::read_to_string(data.join("postgresql.base.conf")).unwrap(),
            "original\n"
        );
        assert_eq!(
            fs::read_to_string(data.join("postgresql.auto.conf")).unwrap(),
            "port = 1\n"
        );
        assert!(
            fs::read_to_string(data.join("postgresql.conf"))
                .unwrap()
                .contains("primary_conninfo = 'host=a'")
        );
        assert!(data.join("standby.signal").exists());
        assert_eq!(mode(&data.join("postgresql.conf")), 0o600);
        assert_eq!(write(&settings, &wanted).unwrap().need(), Need::Nothing);
        assert_eq!(
            fs::read_to_string(data.join("postgresql.base.conf")).unwrap(),
            "original\n"
        );
        let leftovers: Vec<_> = fs::read_dir(data)
            .unwrap()
            .filter(|e| {
                e.as_ref()
                    .unwrap()
                    .path()
                    .to_string_lossy()
                    .contains("howdah")
            })
            .collect();
        assert!(leftovers.is_empty());
    }

    #[test]
    fn following_another_node_is_a_reload() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings_in(root.path());
        write(&settings, &wanted(150_000, standby())).unwrap();
        let mut other = wanted(150_000, standby());
        if let Recovery::Set(recovery) = &mut other.recovery {
            recovery.parameters.set("primary_conninfo", "host=b");
        }
        assert_eq!(write(&settings, &other).unwrap().need(), Need::Reload);
        let primary = wanted(150_000, Recovery::Removed);
        assert_eq!(write(&settings, &primary).unwrap().need(), Need::Restart);
        assert!(!settings.data_dir.join("standby.signal").exists());
    }

    #[test]
    fn a_standby_that_is_reconfigured_keeps_following() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings_in(root.path());
        write(&settings, &wanted(150_000, standby())).unwrap();
        let untouched = wanted(150_000, Recovery::Untouched);
        assert_eq!(write(&settings, &untouched).unwrap().need(), Need::Nothing);
        let mut changed = untouched;
        changed.parameters.set("work_mem", "8MB");
        assert_eq!(write(&settings, &changed).unwrap().need(), Need::Reload);
        let text = fs::read_to_string(settings.config_file()).unwrap();
        assert!(
            text.contains("work_mem = '8MB'")
                && text.ends_with("# recovery.conf\nprimary_conninfo = 'host=a'\n"),
            "{text}"
        );
    }

    #[test]
    fn below_12_recovery_settings_have_their_own_file() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings_in(root.path());
        write(&settings, &wanted(110_000, standby())).unwrap();
        let data = &settings.data_dir;
        assert_eq!(
            fs::read_to_string(data.join("recovery.conf")).unwrap(),
            "primary_conninfo = 'host=a'\n"
        );
        assert!(!data.join("standby.signal").exists());
        assert!(
            !fs::read_to_string(data.join("postgresql.conf"))
                .unwrap()
                .contains("primary_conninfo")
        );
    }

    #[test]
    fn a_recovery_to_a_target_has_its_own_signal() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings_in(root.path());
        write(&settings, &wanted(150_000, standby())).unwrap();
        let mut target = wanted(150_000, standby());
        if let Recovery::Set(recovery) = &mut target.recovery {
            recovery.signal = Signal::Recovery;
        }
        assert_eq!(write(&settings, &target).unwrap().need(), Need::Restart);
        assert!(settings.data_dir.join("recovery.signal").exists());
        assert!(!settings.data_dir.join("standby.signal").exists());
    }

    #[test]
    fn group_access_is_passed_on_and_passwords_never() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings_in(root.path());
        fs::set_permissions(&settings.data_dir, fs::Permissions::from_mode(0o750)).unwrap();
        let mut wanted = wanted(150_000, Recovery::Untouched);
        wanted.passwords = Some("h:1:*:u:p\n".into());
        write(&settings, &wanted).unwrap();
        assert_eq!(mode(&settings.data_dir.join("postgresql.conf")), 0o640);
        assert_eq!(mode(&settings.pgpass), 0o600);
    }

    #[test]
    fn a_foreign_hba_file_is_not_written_and_relative_paths_are_resolved() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings_in(root.path());
        let mut wanted = wanted(150_000, Recovery::Untouched);
        wanted.parameters.set("hba_file", "mine.conf");
        assert!(!write(&settings, &wanted).unwrap().hba);
        let text = fs::read_to_string(settings.config_file()).unwrap();
        assert!(
            text.contains(&format!(
                "hba_file = '{}'",
                settings.config_dir.join("mine.conf").display()
            )),
            "{text}"
        );
        wanted.parameters.set("hba_file", "pg_hba.conf");
        assert!(write(&settings, &wanted).unwrap().hba);
    }

    #[test]
    fn a_trigger_file_does_not_survive_a_copy() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings_in(root.path());
        fs::write(settings.data_dir.join("promote"), "").unwrap();
        fs::write(root.path().join("trigger"), "").unwrap();
        let none = Parameters::new();
        assert!(remove_trigger_file(&settings, &none).unwrap());
        assert!(!remove_trigger_file(&settings, &none).unwrap());
        let configured: Parameters = [(
            "trigger_file",
            root.path().join("trigger").display().to_string(),
        )]
        .into_iter()
        .collect();
        assert!(remove_trigger_file(&settings, &configured).unwrap());
    }

    #[test]
    fn backups_bring_missing_files_back() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings_in(root.path());
        let data = &settings.data_dir;
        write(&settings, &wanted(150_000, Recovery::Untouched)).unwrap();
        back_up(&settings, &Parameters::new(), false).unwrap();
        fs::remove_file(data.join("pg_hba.conf")).unwrap();
        fs::write(data.join("postgresql.base.conf"), "other").unwrap();
        restore(&settings, &Parameters::new(), false).unwrap();
        assert!(
            fs::read_to_string(data.join("pg_hba.conf"))
                .unwrap()
                .contains("local all all trust")
        );
        assert_eq!(
            fs::read_to_string(data.join("postgresql.base.conf")).unwrap(),
            "other"
        );
        assert_eq!(fs::read_to_string(data.join("pg_ident.conf")).unwrap(), "");
    }
}
