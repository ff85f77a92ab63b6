//! Waiting for a file to change: inotify, with a timer as the fallback for file systems that do not report changes.
//!
//! It says only that it is time to look again; what changed is the caller's to read.

use std::path::Path;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers an owned descriptor with the runtime.
#[expect(
    deprecated,
    reason = "the safe constructor is only unsound for types that do not own their descriptor; OwnedFd does"
)]
pub(super) fn readable(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// A watch on one path. For a directory: its entries coming, changing and going.
pub(super) struct Watch {
    inotify: Option<AsyncFd<OwnedFd>>,
    fallback: Duration,
}

impl Watch {
    /// Watches `path`; if that is impossible the fallback alone wakes. Only changes after this call count, so the first
    /// look belongs after it.
    pub(super) fn new(path: &Path, fallback: Duration) -> Watch {
        let open = || -> std::io::Result<AsyncFd<OwnedFd>> {
            let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let events = inotify::WatchFlags::MODIFY
                | inotify::WatchFlags::CREATE
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::DELETE
                | inotify::WatchFlags::CLOSE_WRITE;
            inotify::add_watch(&fd, path, events)?;
            readable(fd)
        };
        Watch {
            inotify: open().ok(),
            fallback,
        }
    }

    /// Returns at the next change, or after the fallback.
    pub(super) async fn changed(&mut self) {
        let Some(inotify) = &mut self.inotify else {
            return tokio::time::sleep(self.fallback).await;
        };
        let Ok(Ok(mut guard)) = tokio::time::timeout(self.fallback, inotify.readable()).await
        else {
            return;
        };
        let mut buffer = [0_u8; 4096];
        while rustix::io::read(guard.get_inner(), &mut buffer).is_ok_and(|n| n > 0) {}
        guard.clear_ready();
    }
}
