//! What a container's surroundings need before the agent starts: the volume's owner, an unprivileged user with a name, and
//! a directory for sockets. Only PID 1 does this. It never touches the content of a data directory that has an owner.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use rustix::process::{getegid, geteuid};

/// The container as the image lays it out.
#[derive(Debug, Clone)]
pub struct Container {
    /// PostgreSQL's data directory; its parent is the volume, or lies in it.
    pub data_dir: PathBuf,
    /// Whom to become when started as root and the data directory has no owner yet.
    pub user: String,
    /// PostgreSQL's socket directory; a dangling link to a directory that does not exist yet is fine.
    pub socket_dir: PathBuf,
}

/// Where Debian puts the library that gives a uid a name without touching /etc/passwd.
const NSS_WRAPPER_PLACES: [&str; 4] = [
    "/usr/lib/libnss_wrapper.so",
    "/usr/lib/x86_64-linux-gnu/libnss_wrapper.so",
    "/usr/lib/aarch64-linux-gnu/libnss_wrapper.so",
    "/usr/lib/howdah/libnss_wrapper.so",
];

/// A user as /etc/passwd has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: PathBuf,
}

fn users(passwd: &str) -> impl Iterator<Item = User> + '_ {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields.as_slice() else {
            return None;
        };
        Some(User {
            name: (*name).to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: PathBuf::from(home),
        })
    })
}

impl Container {
    /// Everything before the agent's start; the result is what to add to its environment.
    ///
    /// As root it hands the volume over and replaces this process by the same program as an unprivileged user, so it
    /// returns only if that fails.
    ///
    /// # Errors
    /// Root without the right to change the user; a volume that cannot be handed over.
    pub(super) fn prepare(
        &self,
        arg0: &OsString,
        args: &[OsString],
    ) -> anyhow::Result<Vec<(OsString, OsString)>> {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        if geteuid().is_root() {
            return Err(self.step_down(&passwd, arg0, args));
        }
        // Failing here is no reason to stop: PostgreSQL names the directory it misses.
        let _ = make_socket_dir(&self.socket_dir);
        if users(&passwd).any(|user| user.uid == geteuid().as_raw()) {
            return Ok(Vec::new());
        }
        Ok(self.name_for_nameless(&passwd))
    }

    fn step_down(&self, passwd: &str, arg0: &OsString, args: &[OsString]) -> anyhow::Error {
        match self.try_step_down(passwd, arg0, args) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn try_step_down(
        &self,
        passwd: &str,
        arg0: &OsString,
        args: &[OsString],
    ) -> anyhow::Result<std::convert::Infallible> {
        let Some(standard) = users(passwd).find(|user| user.name == self.user) else {
            bail!(
                "started as root, and /etc/passwd has no user {:?} to become: start the container with --user",
                self.user
            );
        };
        let user = match fs::metadata(self.data_dir.join("PG_VERSION")) {
            // An existing cluster is run by whoever owns it.
            Ok(found) if found.uid() != 0 => User {
                uid: found.uid(),
                gid: found.gid(),
                ..standard
            },
            _ => standard,
        };
        hand_over(&self.data_dir, &user)?;
        let failed = Command::new("/proc/self/exe")
            .arg0(arg0)
            .args(args)
            .uid(user.uid)
            .gid(user.gid)
            .env("HOME", &user.home)
            .env("USER", &user.name)
            .exec();
        Err(failed).with_context(|| {
            let User { uid, gid, .. } = user;
            format!(
                "become user {uid} (group {gid}): PostgreSQL does not run as root; start the container with --user {uid}:{gid}, or \
                 leave it the capabilities SETUID and SETGID"
            )
        })
    }

    /// PostgreSQL's programs insist on a name for their uid. The name comes from a private copy of the user list that only
    /// the agent and its children see.
    fn name_for_nameless(&self, passwd: &str) -> Vec<(OsString, OsString)> {
        let Some(library) = NSS_WRAPPER_PLACES
            .iter()
            .find(|place| Path::new(place).exists())
        else {
            return Vec::new();
        };
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let home = self
            .data_dir
            .parent()
            .unwrap_or(Path::new("/"))
            .display()
            .to_string();
        // The name must be new in the list, or the first entry would win.
        let others: String = passwd
            .lines()
            .filter(|line| !line.starts_with("postgres:"))
            .map(|line| format!("{line}\n"))
            .collect();
        let passwd = format!("{others}postgres:x:{uid}:{gid}:PostgreSQL:{home}:/bin/sh\n");
        let group = fs::read_to_string("/etc/group").unwrap_or_default();
        let named = group
            .lines()
            .any(|line| line.split(':').nth(2) == Some(gid.to_string().as_str()));
        let group = if named {
            group
        } else {
            format!("{group}howdah:x:{gid}:\n")
        };
        for dir in [
            self.socket_dir.as_path(),
            Path::new("/tmp"),
            Path::new("/dev/shm"),
        ] {
            let (users, groups) = (
                dir.join(format!("howdah-passwd-{uid}")),
                dir.join(format!("howdah-group-{uid}")),
            );
            if fs::write(&users, &passwd).is_ok() && fs::write(&groups, &group).is_ok() {
                return vec![
                    ("LD_PRELOAD".into(), (*library).into()),
                    ("NSS_WRAPPER_PASSWD".into(), users.into()),
                    ("NSS_WRAPPER_GROUP".into(), groups.into()),
                    ("HOME".into(), home.into()),
                ];
            }
        }
        Vec::new()
    }
}

fn make_socket_dir(path: &Path) -> io::Result<()> {
    // create_dir does not follow a dangling link.
    let target = fs::read_link(path).unwrap_or_else(|_| path.to_owned());
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o775)
        .create(target)
}

/// Gives the data directory, and the volume it lies in, to the user, as far as they belong to root.
fn hand_over(data_dir: &Path, user: &User) -> anyhow::Result<()> {
    let parent = data_dir.parent().unwrap_or(Path::new("/"));
    let parent_is_new = !parent.exists();
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    if !data_dir.exists() {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(data_dir)
            .with_context(|| format!("create {}", data_dir.display()))?;
    }
    if parent_is_new || is_mount_point(parent) {
        give(parent, user)?;
    }
    give_tree(data_dir, user)
}

fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    path.parent()
        .is_some_and(|above| device(above) != device(path))
}

fn give(path: &Path, user: &User) -> anyhow::Result<bool> {
    let found =
        fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
    // A directory that everybody may write is already as open as it needs to be.
    if found.uid() != 0 || (found.is_dir() && found.permissions().mode() & 0o002 != 0) {
        return Ok(false);
    }
    std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid)).with_context(|| {
        format!("give {} to user {}: start the container with --user {}:{}, or leave it the capability CHOWN", path.display(), user.uid, user.uid, user.gid)
    })?;
    Ok(true)
}

/// Descends only where root was the owner: a directory that already belongs to somebody is left as it is.
fn give_tree(path: &Path, user: &User) -> anyhow::Result<()> {
    if !give(path, user)? || !fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        give_tree(
            &entry
                .with_context(|| format!("read {}", path.display()))?
                .path(),
            user,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_list_is_read_line_by_line() {
        let found: Vec<User> = users("root:x:0:0:root:/root:/bin/sh\nbroken\npostgres:x:999:998::/var/lib/postgresql:/bin/sh\n").collect();
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[1],
            User {
                name: "postgres".into(),
                uid: 999,
                gid: 998,
                home: "/var/lib/postgresql".into()
            }
        );
    }

    #[test]
    fn a_dangling_socket_directory_gets_its_target() {
        let dir = tempfile::tempdir().unwrap();
        let (link, target) = (dir.path().join("link"), dir.path().join("target/deep"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        make_socket_dir(&link).unwrap();
        assert!(target.is_dir());
        make_socket_dir(&link).unwrap();
    }
}
