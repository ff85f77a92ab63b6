//! A TCP connection that can be broken in the ways networks break.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::Context as _;
use howdah::dcs::{Document, Expect, Freshness, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::harness::Cut;
use crate::harness::{acquired, done, eventually, latest};

/// A connection of its own to one server for each member, so that each can be broken alone.
#[derive(Default)]
pub(crate) struct Proxies(RefCell<BTreeMap<String, Rc<Proxy>>>);

impl Proxies {
    pub(crate) async fn of(&self, member: &str, target: &str) -> Rc<Proxy> {
        if let Some(proxy) = self.0.borrow().get(member) {
            return Rc::clone(proxy);
        }
        let proxy = Proxy::start(target).await;
        let mut proxies = self.0.borrow_mut();
        Rc::clone(proxies.entry(member.to_owned()).or_insert(proxy))
    }
}

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

/// A store behind these proxies is used while each of them in turn carries nothing and says so to nobody; `writer` has a way of its own.
pub(crate) async fn each_goes_silent(
    store: &Store,
    writer: &Store,
    proxies: &[Rc<Proxy>],
) -> anyhow::Result<()> {
    let lease = acquired(store).await?;
    for (turn, proxy) in proxies.iter().enumerate() {
        proxy.cut(Cut::Silent);
        done(store.renew(&lease).await).with_context(|| format!("turn {turn}"))?;
        latest(store)
            .await
            .with_context(|| format!("turn {turn}"))?;
        let wanted = u64::try_from(turn)? + 1;
        let text = format!("{{\"optime\":{wanted}}}");
        done(writer.put(Document::Status, &text, Expect::Anything).await)?;
        eventually("the other member's write", async || {
            let cluster = store.load(Freshness::Recent).await.ok()?;
            (cluster.status.optime.0 == wanted).then_some(())
        })
        .await?;
        proxy.mend().await;
    }
    Ok(())
}
