//! What systemd is told when it started this process with `Type=notify` (spec/packaging.md §4). Without its socket: nothing.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A change that systemd wants to know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The loop runs, or a reload is over.
    Ready,
    /// A reload begins.
    Reloading {
        /// CLOCK_MONOTONIC in microseconds.
        at: u64,
    },
    /// The end begins.
    Stopping,
}

/// Where to tell it.
#[derive(Debug, Clone, Default)]
pub struct Notifier {
    socket: Option<String>,
}

impl Notifier {
    /// `NOTIFY_SOCKET`, if set: a path, or `@` and a name in the abstract namespace.
    #[must_use]
    pub fn new(socket: Option<String>) -> Notifier {
        Notifier {
            socket: socket.filter(|path| path.starts_with(['/', '@'])),
        }
    }

    /// Tells it. systemd that does not listen is no reason to stop.
    pub fn tell(&self, notice: Notice) {
        if let Err(error) = self.send(notice) {
            tracing::debug!("cannot notify systemd: {error}");
        }
    }

    fn send(&self, notice: Notice) -> io::Result<()> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let address = match socket.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(socket)?,
        };
        let text = match notice {
            Notice::Ready => "READY=1".to_owned(),
            Notice::Reloading { at } => format!("RELOADING=1\nMONOTONIC_USEC={at}"),
            Notice::Stopping => "STOPPING=1".to_owned(),
        };
        let sender = UnixDatagram::unbound()?;
        // The loop must not wait for a full socket.
        sender.set_nonblocking(true)?;
        sender.send_to_addr(text.as_bytes(), &address)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut buffer = [0; 128];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    #[test]
    fn systemd_hears_of_each_change_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.to_str().unwrap().to_owned()));
        for (notice, text) in [
            (Notice::Ready, "READY=1"),
            (Notice::Reloading { at: 5 }, "RELOADING=1\nMONOTONIC_USEC=5"),
            (Notice::Stopping, "STOPPING=1"),
        ] {
            notifier.tell(notice);
            assert_eq!(heard(&by_path), text);
        }
        let name = format!("howdah-test-{}", std::process::id());
        let by_name =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notifier::new(Some(format!("@{name}"))).tell(Notice::Ready);
        assert_eq!(heard(&by_name), "READY=1");
    }

    #[test]
    fn nobody_to_tell_is_no_error() {
        assert!(Notifier::default().send(Notice::Ready).is_ok());
        assert!(
            Notifier::new(Some("vsock:1:2".to_owned()))
                .send(Notice::Ready)
                .is_ok()
        );
        let gone = Notifier::new(Some("/nonexistent/notify".to_owned()));
        assert!(gone.send(Notice::Stopping).is_err());
        gone.tell(Notice::Stopping);
    }
}
