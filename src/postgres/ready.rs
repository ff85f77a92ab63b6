//! Knowing when a server accepts connections, within milliseconds.
//!
//! From 10 on the server itself writes its progress into `postmaster.pid`; that file is watched. For older ones, and for a
//! server found running, [`ping`] asks on the wire what `pg_isready` would ask. Nothing here needs a password.

use std::time::Duration;

use super::pidfile::{PidFile, Status};
use super::process::Postmaster;
use super::watch::Watch;
use super::wire::{self, Address};
use super::{LocalHost, Settings};
use crate::types::PgVersion;

/// What a server says to a newcomer (spec §2, `pg_isready`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ping {
    /// It would let a client in, given the right credentials.
    Accepting,
    /// It is there and refuses everybody: starting, stopping, in recovery without hot standby.
    Rejecting,
    /// Nobody answers.
    NoResponse,
}

/// How a wait for readiness ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It accepts connections.
    Accepting,
    /// It is up, in recovery, and accepts no connections before it is promoted (`hot_standby` off).
    Standby,
    /// It is going down.
    Stopping,
    /// The process has ended.
    Exited,
}

/// Asks the local server whether it accepts connections.
pub async fn ping(settings: &Settings) -> Ping {
    let address = local_address(settings, &settings.local_host());
    // A name the server knows keeps its log quiet.
    let user = settings.superuser.username.as_deref().unwrap_or("postgres");
    let asked = wire::ping(&address, user, &settings.database);
    match tokio::time::timeout(Duration::from_secs(3), asked).await {
        Ok(ping) => ping,
        Err(_) => Ping::NoResponse,
    }
}

/// Where a local server listens; the compiled-in socket directory is taken from `postmaster.pid`.
#[must_use]
pub fn local_address(settings: &Settings, host: &LocalHost) -> Address {
    let port = settings.port;
    match host {
        LocalHost::Tcp(host) => Address::Tcp(host.clone(), port),
        LocalHost::Socket(directory) => Address::Unix(directory.clone(), port),
        LocalHost::DefaultSocket => {
            let directory = PidFile::read(&settings.data_dir)
                .and_then(|file| file.socket_dir)
                .unwrap_or_else(|| "/var/run/postgresql".into());
            Address::Unix(directory, port)
        }
    }
}

/// How far the server is now; `None` = still starting.
async fn look(settings: &Settings, postmaster: &Postmaster) -> Option<Readiness> {
    if !postmaster.is_alive() {
        return Some(Readiness::Exited);
    }
    let file = PidFile::read(&settings.data_dir).filter(|file| file.pid == postmaster.pid())?;
    match file.status {
        Some(Status::Ready) => Some(Readiness::Accepting),
        Some(Status::Standby) => Some(Readiness::Standby),
        Some(Status::Stopping) => Some(Readiness::Stopping),
        Some(Status::Starting) => None,
        None if writes_status(settings) => None,
        None => match ping(settings).await {
            Ping::Accepting => Some(Readiness::Accepting),
            Ping::Rejecting | Ping::NoResponse => None,
        },
    }
}

/// Whether this release writes its progress into `postmaster.pid`: then a file without it is not complete yet.
fn writes_status(settings: &Settings) -> bool {
    std::fs::read_to_string(settings.data_dir.join("PG_VERSION"))
        .is_ok_and(|text| PgVersion::from_major(&text).is_ok_and(|version| version.at_least(10)))
}

/// Waits until the start-up has an outcome. Without one it waits forever: bound it with a timeout, and dropping it has no
/// effect on the server.
pub async fn wait(settings: &Settings, postmaster: &Postmaster) -> Readiness {
    let mut watch = Watch::new(&settings.data_dir, Duration::from_millis(50));
    loop {
        if let Some(readiness) = look(settings, postmaster).await {
            return readiness;
        }
        tokio::select! {
            () = watch.changed() => {}
            () = postmaster.exited() => {}
        }
    }
}

/// The same as one look, without waiting: for an observation while the server starts.
pub async fn now(settings: &Settings, postmaster: &Postmaster) -> Option<Readiness> {
    look(settings, postmaster).await
}
