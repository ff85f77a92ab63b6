//! A TCP connection that can be broken in the ways networks break.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::harness::Cut;

/// One forwarded address. Connections that lived through a cut do not outlive it: what was swallowed stays swallowed.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    target: String,
    state: watch::Sender<State>,
    listening: Cell<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    cut: Option<Cut>,
    generation: u64,
}

impl Proxy {
    pub(crate) async fn start(target: &str) -> Rc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Rc::new(Proxy {
            address: listener.local_addr().unwrap(),
            target: target.to_owned(),
            state: watch::Sender::new(State {
                cut: None,
                generation: 0,
            }),
            listening: Cell::new(true),
        });
        proxy.accept(listener);
        proxy
    }

    pub(crate) fn cut(&self, how: Cut) {
        self.state.send_modify(|state| {
            state.cut = Some(how);
            if how == Cut::Refused {
                state.generation += 1;
            }
        });
        if how == Cut::Refused {
            self.listening.set(false);
        }
    }

    pub(crate) async fn mend(&self) {
        self.state.send_modify(|state| {
            state.cut = None;
            state.generation += 1;
        });
        if !self.listening.replace(true) {
            // The accepting task lets go of the port when it has seen the cut.
            let listener = loop {
                match TcpListener::bind(self.address).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            self.accept(listener);
        }
    }

    fn accept(&self, listener: TcpListener) {
        let (target, state) = (self.target.clone(), self.state.clone());
        let mut changes = state.subscribe();
        let generation = changes.borrow_and_update().generation;
        tokio::task::spawn_local(async move {
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((client, _)) = accepted else { return };
                        let (target, state) = (target.clone(), state.subscribe());
                        tokio::task::spawn_local(forward(client, target, state));
                    }
                    _ = changes.wait_for(|s| s.cut == Some(Cut::Refused) && s.generation != generation) => return,
                }
            }
        });
    }
}

async fn forward(client: TcpStream, target: String, mut state: watch::Receiver<State>) {
    let generation = state.borrow().generation;
    let Ok(server) = TcpStream::connect(&target).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let there = pipe(from_client, to_server, state.clone(), |cut| {
        cut == Some(Cut::AnswersLost)
    });
    let back = pipe(from_server, to_client, state.clone(), |_| false);
    tokio::select! {
        _ = there => {}
        _ = back => {}
        _ = state.wait_for(|s| s.generation != generation) => {}
    }
}

/// Forwards while the connection is whole, or while `passes` says that this direction is.
async fn pipe(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    passes: fn(Option<Cut>) -> bool,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        if state
            .wait_for(|s| s.cut.is_none() || passes(s.cut))
            .await
            .is_err()
        {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
