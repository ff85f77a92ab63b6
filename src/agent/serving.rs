//! Looks, beside the loop, whether this node could serve as leader: free space, data directory, its own API (`ha::serving` decides
//! what follows).
//!
//! A file system that hangs must not hang the loop, so the looking is done elsewhere and only its last result is read here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, StatVfsMountFlags};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::config::dynamic::Dynamic;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(3);
/// How long a look at a file system may take.
const FILES_LIMIT: Duration = Duration::from_secs(5);
/// How long the own API may take to answer.
const API_LIMIT: Duration = Duration::from_secs(2);
/// The API counts as silent after so many unanswered requests in a row.
const API_MISSES: u32 = 3;

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checks {
    on: bool,
    free_space: u64,
    data_dir: PathBuf,
}

impl Checks {
    pub(super) fn of(dynamic: &Dynamic, data_dir: &Path) -> Checks {
        Checks {
            on: dynamic.candidate_checks,
            free_space: dynamic.candidate_free_space,
            data_dir: data_dir.to_owned(),
        }
    }
}

/// The last result, and what the next look is for.
pub(super) struct Serving {
    checks: watch::Sender<Checks>,
    ailment: watch::Receiver<Option<String>>,
}

impl Serving {
    /// Starts looking; needs a `LocalSet`. `api`: the address this node's API listens on.
    pub(super) fn start(api: SocketAddr, checks: Checks) -> Serving {
        let (checks, wanted) = watch::channel(checks);
        let (found, ailment) = watch::channel(None);
        tokio::task::spawn_local(look_again_and_again(reachable(api), wanted, found));
        Serving { checks, ailment }
    }

    pub(super) fn check(&self, checks: Checks) {
        self.checks.send_if_modified(|now| {
            let changed = *now != checks;
            *now = checks;
            changed
        });
    }

    /// What keeps this node from serving, in words.
    pub(super) fn ailment(&self) -> Option<String> {
        self.ailment.borrow().clone()
    }
}

/// A listener on all addresses is reached through the loopback one.
fn reachable(api: SocketAddr) -> SocketAddr {
    let ip = match api.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, api.port())
}

async fn look_again_and_again(
    api: SocketAddr,
    mut wanted: watch::Receiver<Checks>,
    found: watch::Sender<Option<String>>,
) {
    let mut misses = 0;
    loop {
        let checks = wanted.borrow_and_update().clone();
        let ailment = if checks.on {
            misses = if answers(api).await { 0 } else { misses + 1 };
            let api =
                (misses >= API_MISSES).then(|| format!("its REST API on {api} does not answer"));
            files(checks).await.or(api)
        } else {
            None
        };
        found.send_if_modified(|last| {
            let changed = *last != ailment;
            if changed {
                match &ailment {
                    Some(ailment) => {
                        tracing::warn!("this node could not serve as leader: {ailment}")
                    }
                    None => tracing::info!("this node could serve as leader again"),
                }
            }
            *last = ailment;
            changed
        });
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Any answer counts. The request is in plain text: a listener that wants TLS answers it with an alert, and needs no certificate of ours.
async fn answers(api: SocketAddr) -> bool {
    let exchange = async {
        let mut stream = TcpStream::connect(api).await?;
        stream.write_all(b"HEAD /liveness HTTP/1.0\r\n\r\n").await?;
        stream.read(&mut [0; 64]).await
    };
    matches!(tokio::time::timeout(API_LIMIT, exchange).await, Ok(Ok(_)))
}

async fn files(checks: Checks) -> Option<String> {
    let data_dir = checks.data_dir.clone();
    let look = tokio::task::spawn_blocking(move || wrong_with(&checks));
    match tokio::time::timeout(FILES_LIMIT, look).await {
        Ok(Ok(ailment)) => ailment,
        Ok(Err(error)) => Some(format!("looking at {} failed: {error}", data_dir.display())),
        Err(_) => Some(format!(
            "the file system of {} does not answer",
            data_dir.display()
        )),
    }
}

/// What is wrong with the directories; those that are not there yet are nobody's fault.
fn wrong_with(checks: &Checks) -> Option<String> {
    let wal = ["pg_wal", "pg_xlog"].map(|name| checks.data_dir.join(name));
    let directories = std::iter::once(&checks.data_dir).chain(&wal);
    directories
        .filter(|path| !matches!(path.try_exists(), Ok(false)))
        .find_map(|path| wrong_with_directory(path, checks.free_space))
}

fn wrong_with_directory(path: &Path, free_space: u64) -> Option<String> {
    let shown = path.display();
    let access = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    if let Err(error) = rustix::fs::access(path, access) {
        return Some(format!("{shown} cannot be read and written: {error}"));
    }
    let space = match rustix::fs::statvfs(path) {
        Ok(space) => space,
        Err(error) => {
            return Some(format!(
                "the file system of {shown} cannot be looked at: {error}"
            ));
        }
    };
    if space.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Some(format!("the file system of {shown} is read-only"));
    }
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    (free < free_space).then(|| {
        format!("{free} bytes are free for {shown}, less than candidate_free_space ({free_space})")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(data_dir: &Path, free_space: u64) -> Checks {
        Checks {
            on: true,
            free_space,
            data_dir: data_dir.to_owned(),
        }
    }

    #[test]
    fn too_little_space_is_named_with_its_place() {
        let here = tempfile::tempdir().unwrap();
        assert_eq!(wrong_with(&checks(here.path(), 1)), None);
        let wrong = wrong_with(&checks(here.path(), u64::MAX)).unwrap();
        assert!(wrong.contains("less than candidate_free_space"), "{wrong}");
        assert!(
            wrong.contains(&here.path().display().to_string()),
            "{wrong}"
        );
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_no_ailment() {
        let here = tempfile::tempdir().unwrap();
        let missing = here.path().join("data");
        assert_eq!(wrong_with(&checks(&missing, u64::MAX)), None);
    }

    #[tokio::test]
    async fn an_api_that_accepts_and_says_nothing_is_silent() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        assert!(!answers(silent.local_addr().unwrap()).await);
        let speaking = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = speaking.local_addr().unwrap();
        let serve = async {
            let (mut stream, _) = speaking.accept().await.unwrap();
            stream.write_all(b"HTTP/1.0 503 no\r\n\r\n").await.unwrap();
        };
        assert!(tokio::join!(answers(address), serve).0);
    }
}
