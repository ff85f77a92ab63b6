//! The watchdog device of a dead agent. Init never arms one and never keeps one alive: that would say that all is well, which it cannot know.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens the device and closes it with its magic character. Never waits.
///
/// # Errors
/// It cannot be opened or written: it goes on counting.
pub(super) fn disarm(device: &Path) -> io::Result<()> {
    let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let device = OpenOptions::new()
        .write(true)
        .custom_flags(nonblock)
        .open(device);
    device?.write_all(b"V")
}
