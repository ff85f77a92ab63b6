//! A way to another container on which every byte takes its time.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use howdah::clock;

use crate::docker::{Container, Lab};

/// Listens on this machine's address in the network of the laboratory, as long as the test program runs.
pub(crate) struct SlowWay {
    address: SocketAddr,
    delay_ms: Arc<AtomicU64>,
}

impl SlowWay {
    /// A way to a port of a container, without delay at first.
    pub(crate) fn to(lab: &Lab, container: &Container, port: u16) -> SlowWay {
        let listener = TcpListener::bind((lab.gateway(), 0)).unwrap();
        let way = SlowWay {
            address: listener.local_addr().unwrap(),
            delay_ms: Arc::default(),
        };
        let (container, delay_ms) = (container.clone(), way.delay_ms.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Some(ip)) = (client, container.ip()) else {
                    continue;
                };
                let Ok(server) = TcpStream::connect((ip, port)) else {
                    continue;
                };
                forward(&client, &server, &delay_ms);
                forward(&server, &client, &delay_ms);
            }
        });
        way
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How long every byte travels from now on, in each direction.
    pub(crate) fn delay(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).unwrap();
        self.delay_ms.store(millis, Ordering::Relaxed);
    }
}

/// One direction: read at once, handed on when its time has come, in order.
fn forward(from: &TcpStream, to: &TcpStream, delay_ms: &Arc<AtomicU64>) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let delay_ms = delay_ms.clone();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let travel = Duration::from_millis(delay_ms.load(Ordering::Relaxed));
            if sender
                .send((clock::now() + travel, buffer[..count].to_vec()))
                .is_err()
            {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        while let Ok((arrival, bytes)) = receiver.recv() {
            std::thread::sleep(arrival.since(clock::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
