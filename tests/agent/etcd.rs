//! One etcd, and for each member a way to it that can be cut.

use base64::Engine as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::cluster::{PATIENCE, free_port, wait_until};

/// It ends with this.
pub(crate) struct Etcd {
    process: Child,
    pub(crate) port: u16,
    _dir: tempfile::TempDir,
}

impl Etcd {
    pub(crate) fn start() -> Etcd {
        let dir = tempfile::Builder::new()
            .prefix("howdah-etcd-")
            .tempdir()
            .unwrap();
        let (port, peer) = (free_port(), free_port());
        let local = |port: u16| format!("http://127.0.0.1:{port}");
        let process = Command::new("etcd")
            .args(["--name", "etcd", "--data-dir"])
            .arg(dir.path())
            .args(["--listen-client-urls", &local(port)])
            .args(["--advertise-client-urls", &local(port)])
            .args(["--listen-peer-urls", &local(peer)])
            .args(["--initial-advertise-peer-urls", &local(peer)])
            .args(["--initial-cluster", &format!("etcd={}", local(peer))])
            .args(["--logger", "zap", "--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is installed");
        // It listens before it knows its cluster's version, without which Patroni's client fails for good.
        wait_until("etcd knows its cluster's version", PATIENCE, || {
            version(port)
                .is_some_and(|said| said.contains("etcdcluster") && !said.contains("not_decided"))
        });
        Etcd {
            process,
            port,
            _dir: dir,
        }
    }

    /// Writes a key behind everybody's back.
    pub(crate) fn put(&self, key: &str, value: &str) {
        let body = format!(
            r#"{{"key": "{}", "value": "{}"}}"#,
            coded(key),
            coded(value)
        );
        self.post("/v3/kv/put", &body);
    }

    /// Removes a key behind everybody's back.
    pub(crate) fn delete(&self, key: &str) {
        self.post(
            "/v3/kv/deleterange",
            &format!(r#"{{"key": "{}"}}"#, coded(key)),
        );
    }

    fn post(&self, path: &str, body: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(said.contains(" 200 OK"), "{said}");
    }

    /// A way of its own for one member.
    pub(crate) fn wire(&self) -> Wire {
        Wire::new(self.port)
    }
}

/// What it says at `/version`.
fn version(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET /version HTTP/1.0\r\n\r\n").ok()?;
    let mut said = String::new();
    stream.read_to_string(&mut said).ok()?;
    Some(said)
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A TCP connection to the store that swallows everything while it is cut. Connections that lived through a cut end when it is mended.
pub(crate) struct Wire {
    pub(crate) port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    now: Mutex<Cut>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cut {
    cut: bool,
    mended: u64,
}

impl State {
    /// Waits until it is whole.
    fn whole(&self) -> Cut {
        let now = self.now.lock().unwrap();
        *self.changed.wait_while(now, |now| now.cut).unwrap()
    }

    fn set(&self, change: impl FnOnce(&mut Cut)) {
        change(&mut self.now.lock().unwrap());
        self.changed.notify_all();
    }
}

impl Wire {
    fn new(target: u16) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for accepted in listener.incoming() {
                let (Ok(near), state) = (accepted, Arc::clone(&shared)) else {
                    return;
                };
                std::thread::spawn(move || join(&near, target, &state));
            }
        });
        Wire { port, state }
    }

    pub(crate) fn cut(&self) {
        self.state.set(|state| state.cut = true);
    }

    pub(crate) fn mend(&self) {
        self.state.set(|state| {
            *state = Cut {
                cut: false,
                mended: state.mended + 1,
            }
        });
    }
}

fn join(near: &TcpStream, target: u16, state: &Arc<State>) {
    let born = state.whole();
    let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else {
        return;
    };
    let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else {
        return;
    };
    let back = Arc::clone(state);
    std::thread::spawn(move || pump(&far_too, &near_too, &back, born));
    pump(near, &far, state, born);
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, state: &State, born: Cut) {
    let _ = from.set_read_timeout(Some(Duration::from_millis(50)));
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer);
        let now = state.whole();
        let done = match read {
            _ if now != born => true,
            Ok(0) => true,
            Ok(length) => to.write_all(&buffer[..length]).is_err(),
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        };
        if done {
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// As etcd's gateway wants keys and values.
fn coded(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}
