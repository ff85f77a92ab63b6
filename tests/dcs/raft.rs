//! The embedded store, twice: each member on a Raft node of its own (three nodes, cut off from each other where a case breaks
//! connections), and members as clients of a single node.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use howdah::dcs::raft::{self, Foreigner, RaftNode, Settings};
use howdah::dcs::{Freshness, Identity, Store};
use howdah::types::MemberName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::harness::{Backend, Cut, Harness};

const BASE: &str = "/service/demo";
const TTL: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_secs(4);

/// Clusters of `nodes` nodes; not all cases at the same time, elections need processor time.
pub(crate) struct Raft {
    nodes: usize,
    permits: Arc<Semaphore>,
}

impl Raft {
    pub(crate) fn of(nodes: usize) -> Rc<Raft> {
        Rc::new(Raft {
            nodes,
            permits: Arc::new(Semaphore::new(8)),
        })
    }
}

#[async_trait(?Send)]
impl Backend for Raft {
    async fn harness(&self, _case: &str) -> anyhow::Result<Box<dyn Harness>> {
        let permit = Arc::clone(&self.permits).acquire_owned().await?;
        let mut addresses = Vec::new();
        for _ in 0..self.nodes {
            addresses.push(free_address().await);
        }
        let mut harness = RaftHarness {
            nodes: Vec::new(),
            links: BTreeMap::new(),
            clients: Mutex::default(),
            foreigner: Foreigner::new(addresses.clone(), None),
            addresses: addresses.clone(),
            disks: Vec::new(),
            _permit: permit,
        };
        for (from, address) in addresses.iter().enumerate() {
            let mut detours = BTreeMap::new();
            for (to, target) in addresses.iter().enumerate().filter(|(to, _)| *to != from) {
                let link = Link::open(target.clone()).await?;
                detours.insert(target.clone(), link.address.clone());
                harness.links.insert((from, to), link);
            }
            let disk = tempfile::tempdir()?;
            let settings = Settings {
                partner_addrs: addresses.clone(),
                detour: Some(Arc::new(move |to| detours[to].clone())),
                ..Settings::new(BASE, address, disk.path().to_owned())
            };
            harness.nodes.push(RaftNode::start(settings).await?);
            harness.disks.push(disk);
        }
        let store = harness.nodes[0].store(&identity(""));
        for _ in 0..10 {
            if store.load(Freshness::Latest).await.is_ok() {
                return Ok(Box::new(harness));
            }
        }
        anyhow::bail!("the cluster of {} nodes is not formed", self.nodes)
    }
}

/// An address nobody listens on at the moment, below the ports that outgoing connections get.
async fn free_address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (std::process::id() * 101 + number) % 20_000;
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).await.is_ok() {
            return address;
        }
    }
}

fn identity(name: &str) -> Identity {
    Identity {
        name: MemberName::new(name).ok(),
        base: BASE.to_owned(),
        group: None,
        ttl: TTL,
        retry_timeout: RETRY,
    }
}

struct RaftHarness {
    // In this order: nodes stop before their disks go.
    nodes: Vec<RaftNode>,
    /// (from, to) among the nodes.
    links: BTreeMap<(usize, usize), Link>,
    /// Per member, where members are clients.
    clients: Mutex<BTreeMap<String, Link>>,
    foreigner: Foreigner,
    addresses: Vec<String>,
    disks: Vec<TempDir>,
    _permit: OwnedSemaphorePermit,
}

impl RaftHarness {
    fn node_of(&self, name: &str) -> usize {
        let last = self.nodes.len() - 1;
        match name {
            "a" => 0,
            "b" => last.min(1),
            _ => last,
        }
    }

    fn set(&self, name: &str, mode: Option<Cut>) {
        if let Some(link) = self.clients.lock().unwrap().get(name) {
            link.mode.send_replace(mode);
        }
        let node = self.node_of(name);
        for ((from, to), link) in &self.links {
            // What is lost are the answers to this member; it still hears the others.
            let incoming = *to == node && mode != Some(Cut::AnswersLost);
            if *from == node || incoming {
                link.mode.send_replace(mode);
            }
        }
    }
}

#[async_trait(?Send)]
impl Harness for RaftHarness {
    fn ttl(&self) -> Duration {
        TTL
    }

    fn retry_timeout(&self) -> Duration {
        RETRY
    }

    fn has_sessions(&self) -> bool {
        false
    }

    async fn open(&self, name: &str) -> Store {
        if self.nodes.len() > 1 && !name.is_empty() {
            return self.nodes[self.node_of(name)].store(&identity(name));
        }
        let known = self
            .clients
            .lock()
            .unwrap()
            .get(name)
            .map(|link| link.address.clone());
        let address = match known {
            Some(address) => address,
            None => {
                let target = self.addresses[self.node_of(name)].clone();
                let link = Link::open(target).await.unwrap();
                let address = link.address.clone();
                self.clients.lock().unwrap().insert(name.to_owned(), link);
                address
            }
        };
        raft::client(vec![address], None, &identity(name))
    }

    async fn cut(&self, name: &str, how: Cut) {
        self.set(name, Some(how));
    }

    async fn mend(&self, name: &str) {
        self.set(name, None);
    }

    async fn kill_session(&self, session: &str) {
        self.foreigner.end_session(session).await.unwrap();
    }

    async fn put_raw(&self, relative: &str, value: &str) {
        let key = format!("{BASE}/{relative}");
        self.foreigner.put(&key, value).await.unwrap();
    }
}

/// A network path that can be broken.
struct Link {
    address: String,
    mode: watch::Sender<Option<Cut>>,
}

impl Link {
    async fn open(target: String) -> anyhow::Result<Link> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let mode = watch::Sender::new(None);
        let modes = mode.subscribe();
        tokio::spawn(async move {
            let mut closed = modes.clone();
            let accept = async {
                while let Ok((near, _)) = listener.accept().await {
                    if *modes.borrow() == Some(Cut::Refused) {
                        continue;
                    }
                    let (target, modes) = (target.clone(), modes.clone());
                    tokio::spawn(async move { carry(near, &target, modes).await });
                }
            };
            tokio::select! {
                () = accept => {}
                () = async { while closed.changed().await.is_ok() {} } => {}
            }
        });
        Ok(Link { address, mode })
    }
}

async fn carry(
    near: TcpStream,
    target: &str,
    modes: watch::Receiver<Option<Cut>>,
) -> anyhow::Result<()> {
    let far = TcpStream::connect(target).await.context("connect")?;
    let (near_reader, near_writer) = near.into_split();
    let (far_reader, far_writer) = far.into_split();
    let requests = pump(near_reader, far_writer, modes.clone(), false);
    let answers = pump(far_reader, near_writer, modes, true);
    tokio::select! {
        done = requests => done,
        done = answers => done,
    }
}

/// Carries bytes one way until the path breaks; a path that has lost anything breaks at the latest when it is mended.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut modes: watch::Receiver<Option<Cut>>,
    answers: bool,
) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 14];
    let mut lossy = false;
    loop {
        let mode = *modes.borrow_and_update();
        match mode {
            Some(Cut::Refused) => return Ok(()),
            None if lossy => return Ok(()),
            _ => {}
        }
        tokio::select! {
            changed = modes.changed() => changed?,
            read = from.read(&mut buffer) => {
                let count = read?;
                if count == 0 {
                    return Ok(());
                }
                if mode == Some(Cut::Silent) || (answers && mode == Some(Cut::AnswersLost)) {
                    lossy = true;
                } else {
                    to.write_all(&buffer[..count]).await?;
                }
            }
        }
    }
}
