//! Linux' watchdog devices (Documentation/watchdog/watchdog-api.rst of the kernel).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::Access;

use super::{Device, Driver};

/// `/dev/watchdog` and its like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Linux;

impl Driver for Linux {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Device>> {
        Ok(Box::new(OpenDevice(open(path)?)))
    }

    fn is_there(&self, path: &Path) -> bool {
        rustix::fs::access(path, Access::WRITE_OK).is_ok()
    }
}

/// Write-only, and without waiting for whatever may be there instead of a device.
fn open(path: &Path) -> io::Result<File> {
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    OpenOptions::new()
        .write(true)
        .custom_flags(nonblock)
        .open(path)
}

#[derive(Debug)]
struct OpenDevice(File);

impl Device for OpenDevice {
    fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        let seconds = i32::try_from(timeout.as_secs()).unwrap_or(i32::MAX);
        control::set_timeout(self.0.as_fd(), seconds).map(drop)
    }

    fn timeout(&mut self) -> io::Result<Duration> {
        let seconds = control::timeout(self.0.as_fd())?;
        Ok(Duration::from_secs(
            u64::try_from(seconds).unwrap_or_default(),
        ))
    }

    fn can_be_disarmed(&mut self) -> io::Result<bool> {
        /// The device stops when `V` was the last thing written to it.
        const MAGIC_CLOSE: u32 = 0x0100;
        Ok(control::options(self.0.as_fd())? & MAGIC_CLOSE != 0)
    }

    fn keep_alive(&mut self) -> io::Result<()> {
        self.0.write_all(b"1")
    }

    fn disarm(mut self: Box<Self>) -> io::Result<()> {
        self.0.write_all(b"V")
    }
}

/// The three requests. The only place of this program where the compiler has to take our word: what the kernel writes for each request
/// is the type named here, by <linux/watchdog.h>.
#[allow(
    unsafe_code,
    reason = "rustix offers ioctl only so; no well-kept crate drives watchdogs"
)]
mod control {
    use std::io;
    use std::os::fd::BorrowedFd;

    use rustix::ioctl::{Getter, Updater, ioctl, opcode};

    /// `struct watchdog_info`.
    #[repr(C)]
    struct Info {
        options: u32,
        firmware_version: u32,
        identity: [u8; 32],
    }

    /// `WDIOC_SETTIMEOUT`; the kernel answers with what it has set.
    pub(super) fn set_timeout(device: BorrowedFd<'_>, seconds: i32) -> io::Result<i32> {
        const REQUEST: u32 = opcode::read_write::<i32>(b'W', 6);
        let mut value = seconds;
        // SAFETY: the request reads and writes one int.
        unsafe { ioctl(device, Updater::<REQUEST, i32>::new(&mut value)) }?;
        Ok(value)
    }

    /// `WDIOC_GETTIMEOUT`.
    pub(super) fn timeout(device: BorrowedFd<'_>) -> io::Result<i32> {
        const REQUEST: u32 = opcode::read::<i32>(b'W', 7);
        // SAFETY: the request writes one int.
        Ok(unsafe { ioctl(device, Getter::<REQUEST, i32>::new()) }?)
    }

    /// `WDIOC_GETSUPPORT`: what the device can do.
    pub(super) fn options(device: BorrowedFd<'_>) -> io::Result<u32> {
        const REQUEST: u32 = opcode::read::<Info>(b'W', 0);
        // SAFETY: the request writes one struct watchdog_info.
        let info: Info = unsafe { ioctl(device, Getter::<REQUEST, Info>::new()) }?;
        Ok(info.options)
    }
}
