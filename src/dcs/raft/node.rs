//! A Raft node at work: it forms or joins the cluster, serves its peers, passes requests on to the leader, and as the leader
//! measures when keys expire.
//!
//! A disk has a node id of its own. Whoever lost the disk is a new node to Raft and cannot vote twice; it votes again once the
//! leader has put it in the place of the old one. Only disks that were empty together, and have seen each other empty, found
//! a cluster.

mod formation;
mod network;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use openraft::error::{CheckIsLeaderError, ClientWriteError, InstallSnapshotError, RaftError};
use openraft::metrics::RaftServerMetrics;
use openraft::raft::{AppendEntriesResponse, InstallSnapshotRequest};
use openraft::{BasicNode, Raft, ServerState, SnapshotPolicy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::network::Network;
use super::Settings;
use super::disk::{Directory, LogStore, Machine, NodeFile, NodeId, Shared, TypeConfig, lock};
use super::peer::{Peer, PeerSettings, Troubles};
use super::state::{Action, Command, Due, Outcome, Record, RequestId};
use super::transport::{
    Connection, Credentials, Introduction, Numbered, Reply, Request, Stage, Status,
};
use crate::types::Moment;

/// One try to get a command through the present leader; then the leader is looked up again.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// A departing leader waits that long for each step of handing over.
const DEPARTURE: Duration = Duration::from_millis(600);
/// A node whose disk failed tries again after that.
const REVIVE: Duration = Duration::from_secs(5);
/// The log is compacted after that many entries.
const SNAPSHOT_EVERY: u64 = 500;
/// Entries kept behind the snapshot for followers that lag a little.
const KEEP_ENTRIES: u64 = 100;
/// Connections in the handshake; a further one replaces the oldest.
const GREETING: usize = 32;
/// Connections after the handshake.
const CONNECTIONS: usize = 128;
/// Requests of one connection that are worked on at the same time.
const PARALLEL: usize = 64;
/// An incoming connection without a request is closed after that.
const SILENT: Duration = Duration::from_secs(120);

/// The parts of a node that others may hold without keeping it alive.
struct Who {
    settings: Settings,
    id: Mutex<Option<NodeId>>,
    shared: Arc<Shared>,
}

impl Who {
    fn credentials(&self) -> Credentials {
        Credentials {
            introduction: Introduction {
                cluster: self.settings.cluster.clone(),
                formation: self.shared.read(|p| p.state.identity.clone()),
                node: *lock(&self.id),
                address: self.settings.self_addr.clone(),
                ..Introduction::default()
            },
            secret: (self.settings.password.as_ref()).map(|secret| secret.expose().to_owned()),
        }
    }
}

/// What this node last knew of the others, to judge whether its own state is recent.
#[derive(Default)]
struct Contact {
    /// As a follower: when the leader was last heard, and up to where it had committed then.
    leader: Option<(Moment, u64)>,
    /// As the leader: per node, when the last request was sent that it has acknowledged, and in which term.
    followers: HashMap<NodeId, (u64, Moment)>,
}

/// A node. Its tasks are in [`Running`].
pub(crate) struct Node {
    who: Arc<Who>,
    clock: fn() -> Moment,
    life: watch::Sender<Option<Raft<TypeConfig>>>,
    founder: Mutex<bool>,
    peers: Mutex<HashMap<(String, Option<NodeId>), Peer>>,
    troubles: Arc<Troubles>,
    contact: Mutex<Contact>,
    admission: tokio::sync::Mutex<()>,
    /// Set for good by [`Node::depart`]: as the leader this node takes nothing on any more.
    departing: AtomicBool,
    origin: u64,
    requests: AtomicU64,
}

/// A started node; dropping it stops everything the node does.
pub(crate) struct Running {
    /// The node.
    pub(crate) node: Arc<Node>,
    tasks: JoinSet<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.abort_all();
        lock(&self.node.peers).clear();
        let raft = self.node.life.send_replace(None);
        if let (Some(raft), Ok(runtime)) = (raft, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { raft.shutdown().await });
        }
    }
}

/// Starts a node: takes the directory, listens, and lets it find its cluster in the background.
///
/// # Errors
/// Settings that contradict each other, a directory that is not usable or in use, an address that cannot be bound.
pub(crate) async fn start(settings: Settings, clock: fn() -> Moment) -> anyhow::Result<Running> {
    settings.check()?;
    let data_dir = settings.data_dir.clone();
    let (directory, file) = tokio::task::spawn_blocking(move || {
        let directory = Directory::open(&data_dir)?;
        let file = directory.read_node()?;
        anyhow::Ok((directory, file))
    })
    .await??;
    let bind = settings.bind_addr.as_deref().unwrap_or(&settings.self_addr);
    let listener = TcpListener::bind(bind)
        .await
        .with_context(|| format!("cannot listen on {bind} (raft.bind_addr)"))?;
    if settings.password.is_none() && !settings.partners().is_empty() {
        tracing::warn!(
            "raft: no raft.password is set: every host that reaches {bind} can change the cluster"
        );
    }
    let shared = Shared::new(clock);
    let node = Arc::new(Node {
        who: Arc::new(Who {
            settings,
            id: Mutex::new(file.as_ref().map(|f| f.id)),
            shared,
        }),
        clock,
        life: watch::Sender::new(None),
        founder: Mutex::new(file.as_ref().is_some_and(|f| f.founder)),
        peers: Mutex::default(),
        troubles: Arc::default(),
        contact: Mutex::default(),
        admission: tokio::sync::Mutex::default(),
        departing: AtomicBool::new(false),
        origin: rand::random(),
        requests: AtomicU64::new(0),
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&node).listen(listener));
    tasks.spawn(Arc::clone(&node).live(Arc::new(directory), file));
    Ok(Running { node, tasks })
}

/// Where a request has to go.
enum Route {
    Here(Raft<TypeConfig>),
    There(NodeId, String),
    Nowhere(String),
}

impl Node {
    /// The settings it was started with.
    pub(crate) fn settings(&self) -> &Settings {
        &self.who.settings
    }

    /// The applied state.
    pub(crate) fn shared(&self) -> &Shared {
        &self.who.shared
    }

    fn id(&self) -> Option<NodeId> {
        *lock(&self.who.id)
    }

    fn raft(&self) -> Option<Raft<TypeConfig>> {
        self.life.borrow().clone()
    }

    /// Wraps an action into a command with a fresh request id.
    pub(crate) fn command(&self, action: Action) -> Command {
        Command {
            request: RequestId {
                origin: self.origin,
                number: self.requests.fetch_add(1, Ordering::Relaxed),
            },
            action,
        }
    }

    fn peer(&self, address: &str, wanted: Option<NodeId>) -> Peer {
        let mut peers = lock(&self.peers);
        let peer = peers
            .entry((address.to_owned(), wanted))
            .or_insert_with(|| {
                let who = Arc::clone(&self.who);
                let dialled = match &self.settings().detour {
                    Some(detour) => detour(address),
                    None => address.to_owned(),
                };
                let (peer, work) = Peer::new(PeerSettings {
                    address: address.to_owned(),
                    dialled,
                    wanted,
                    credentials: Arc::new(move || who.credentials()),
                    timeout: self.settings().connection_timeout,
                    clock: self.clock,
                    troubles: Arc::clone(&self.troubles),
                });
                tokio::spawn(work);
                peer
            });
        peer.clone()
    }

    async fn ask(&self, address: &str, request: &Request) -> Result<Reply, String> {
        let call = async { self.peer(address, None).call(request).await };
        match timeout(ATTEMPT, call).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("{address}: no answer in time")),
        }
    }

    // ------------------------------------------------------------------ life

    /// Finds out who this disk is and keeps its Raft running; a disk that fails is tried again.
    async fn live(self: Arc<Self>, directory: Arc<Directory>, file: Option<NodeFile>) {
        let me = match file {
            Some(file) => file,
            None => self.settle(&directory).await,
        };
        loop {
            match self.raise(&directory, &me).await {
                Ok(raft) => {
                    self.life.send_replace(Some(raft.clone()));
                    tokio::select! {
                        () = self.found(&raft, &me) => {}
                        () = self.seek_admission(&raft, &me) => {}
                        () = self.lead(&raft) => {}
                        error = failure(&raft) => tracing::error!("raft: this node has stopped: {error}"),
                    }
                    self.life.send_replace(None);
                    let _ = raft.shutdown().await;
                }
                Err(error) => tracing::error!("raft: this node cannot start: {error:#}"),
            }
            tracing::info!("raft: trying again in {} s", REVIVE.as_secs());
            sleep(REVIVE).await;
        }
    }

    /// Opens the disk and starts Raft on it.
    async fn raise(
        self: &Arc<Self>,
        directory: &Arc<Directory>,
        me: &NodeFile,
    ) -> anyhow::Result<Raft<TypeConfig>> {
        *lock(&self.contact) = Contact::default();
        let machine = Machine::open(directory, &self.who.shared).await?;
        let log = LogStore::open(directory, &self.who.shared).await?;
        let settings = self.settings();
        let milliseconds = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        #[expect(deprecated, reason = "the field has no other way to be filled")]
        let config = openraft::Config {
            cluster_name: settings.cluster.clone(),
            election_timeout_min: milliseconds(settings.min_timeout / 2),
            election_timeout_max: milliseconds(settings.max_timeout / 2),
            heartbeat_interval: milliseconds(settings.heartbeat()),
            install_snapshot_timeout: milliseconds(settings.connection_timeout),
            send_snapshot_timeout: 0,
            max_payload_entries: 64,
            replication_lag_threshold: SNAPSHOT_EVERY + KEEP_ENTRIES,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
            snapshot_max_chunk_size: 1 << 20,
            max_in_snapshot_log_to_keep: KEEP_ENTRIES,
            purge_batch_size: 1,
            enable_tick: true,
            enable_heartbeat: true,
            enable_elect: true,
        };
        let config = Arc::new(config.validate()?);
        let network = Network(Arc::clone(self));
        Ok(Raft::new(me.id, config, network, log, machine).await?)
    }

    /// What falls to the leader: giving the cluster an identity, and expiry. Never returns.
    async fn lead(&self, raft: &Raft<TypeConfig>) {
        let mut metrics = raft.server_metrics();
        let mut index = self.who.shared.index.subscribe();
        let mut known = None;
        loop {
            index.mark_unchanged();
            let (vote, alone) = {
                let metrics = metrics.borrow_and_update();
                if metrics.current_leader != known {
                    known = metrics.current_leader;
                    report_leader(&metrics);
                }
                let vote = (metrics.state == ServerState::Leader).then_some(metrics.vote);
                let nodes = metrics.membership_config.membership().nodes().count();
                (vote, vote.is_some() && nodes == 1)
            };
            // A leader without anybody else has no heartbeats to send.
            raft.runtime_config().tick(!alone);
            let now = (self.clock)();
            let mut actions = Vec::new();
            let mut next = None;
            if let Some(vote) = vote
                && !self.is_departing()
            {
                let term = vote.leader_id().term;
                let due = self.who.shared.read(|position| {
                    // Invariant: nothing is expired before the first entry of this node's own term is applied here: by then
                    // everything is that any leader before has committed, so no acknowledged renewal is overlooked.
                    if position.last.is_none_or(|last| last.leader_id.term != term) {
                        return Due::default();
                    }
                    if position.state.identity.is_none() {
                        let identity = format!("{:032x}", rand::random::<u128>());
                        actions.push(Action::Form { identity });
                    }
                    position.renewals.due(&position.state, now)
                });
                next = due.next;
                for (key, renewed) in due.expired {
                    tracing::info!("raft: {key} has expired");
                    actions.push(Action::Expire { key, renewed });
                }
            }
            for action in actions {
                match timeout(ATTEMPT, raft.client_write(self.command(action))).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) | Err(_) => next = Some(now),
                }
            }
            let wait = match next {
                Some(next) => (self.clock)().until(next).max(PAUSE / 4),
                None => Duration::from_secs(3600),
            };
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() { break },
                _ = index.changed(), if vote.is_some() => {}
                () = sleep(wait) => {}
            }
        }
        std::future::pending().await
    }

    fn is_departing(&self) -> bool {
        self.departing.load(Ordering::SeqCst)
    }

    /// Before a planned stop: if this node leads, the follower that has most of the log is asked to stand for election at once,
    /// so that the others need not wait for this node's silence. It needs no vote but the ones that Raft's rules give it; if
    /// it does not win, the others elect somebody in their time. Returns when there is another leader, or within three seconds.
    pub(crate) async fn depart(&self) {
        let (Some(raft), Some(me)) = (self.raft(), self.id()) else {
            return;
        };
        let mut metrics = raft.metrics();
        let (term, voters, successor) = {
            let metrics = metrics.borrow_and_update();
            if metrics.state != ServerState::Leader {
                return;
            }
            let membership = metrics.membership_config.membership();
            let voters: HashSet<NodeId> = membership.voter_ids().collect();
            let reached = |id: NodeId| metrics.replication.as_ref()?.get(&id).copied().flatten();
            let term = metrics.vote.leader_id().term;
            let contact = lock(&self.contact);
            let heard = |id: &NodeId| contact.followers.get(id).copied();
            let successor = (voters.iter().copied())
                .filter(|id| *id != me && heard(id).is_some_and(|(at, _)| at == term))
                .max_by_key(|id| (reached(*id), heard(id)))
                .and_then(|id| Some((id, membership.get_node(&id)?.addr.clone())));
            (term, voters, successor)
        };
        let Some((successor, address)) = successor else {
            return;
        };
        // What is taken on no more here is sent again by the others, to the next leader.
        self.departing.store(true, Ordering::SeqCst);
        if voters.len() > 3 {
            // This node's vote and the successor's are no majority, and the others grant none as long as they have heard a
            // leader within its lease.
            raft.runtime_config().heartbeat(false);
            sleep(self.settings().max_timeout / 2 + PAUSE).await;
        }
        let complete = metrics.wait_for(|m| {
            let replication = m.replication.as_ref();
            let reached = replication.and_then(|all| all.get(&successor).copied().flatten());
            m.state != ServerState::Leader || reached.map(|at| at.index) == m.last_log_index
        });
        let _ = timeout(DEPARTURE, complete).await;
        tracing::info!("raft: this node stops and asks {address} to lead the store");
        let peer = self.peer(&address, Some(successor));
        let _ = timeout(DEPARTURE, peer.call(&Request::Stand { term })).await;
        let followed = metrics.wait_for(|m| m.current_leader.is_some_and(|leader| leader != me));
        if !matches!(timeout(DEPARTURE, followed).await, Ok(Ok(_))) {
            tracing::info!("raft: {address} does not lead yet; stopping all the same");
        }
    }

    // ------------------------------------------------------------------ requests

    fn route(&self) -> Route {
        let Some(raft) = self.raft() else {
            return Route::Nowhere(
                "the Raft node has not joined its cluster yet, or its disk failed (see its log)"
                    .to_owned(),
            );
        };
        let metrics = raft.server_metrics();
        let metrics = metrics.borrow();
        match metrics.current_leader {
            None => Route::Nowhere(format!(
                "no Raft leader: a majority of {} is not reachable or an election is under way",
                voters(&metrics.membership_config)
            )),
            Some(leader) if Some(leader) == self.id() => {
                if self.is_departing() {
                    return Route::Nowhere("the Raft leader stops and hands over".to_owned());
                }
                Route::Here(raft.clone())
            }
            Some(leader) => match metrics.membership_config.membership().get_node(&leader) {
                Some(node) => Route::There(leader, node.addr.clone()),
                None => Route::Nowhere("the Raft leader is not known yet".to_owned()),
            },
        }
    }

    /// Resolves when the node this request was sent to leads no more (as far as this node knows).
    async fn deposed(&self, leader: Option<NodeId>) {
        let Some(raft) = self.raft() else { return };
        let mut metrics = raft.server_metrics();
        let _ = metrics.wait_for(|m| m.current_leader != leader).await;
    }

    /// A pause between two tries, cut short by a new leader.
    async fn breathe(&self) {
        let mut life = self.life.subscribe();
        let raft = life.borrow_and_update().clone();
        let news = async {
            match raft {
                Some(raft) => {
                    let mut metrics = raft.server_metrics();
                    let leader = metrics.borrow_and_update().current_leader;
                    let _ = metrics.wait_for(|m| m.current_leader != leader).await;
                }
                None => {
                    let _ = life.changed().await;
                }
            }
        };
        let _ = timeout(PAUSE, news).await;
    }

    /// Gets one command carried out by whoever leads. The same request id travels with every try, so that it is carried
    /// out once however often it is sent.
    ///
    /// # Errors
    /// Why there was no answer until `deadline`. The command may be carried out later.
    pub(crate) async fn submit(
        &self,
        command: &Command,
        deadline: Moment,
    ) -> Result<Outcome, String> {
        let mut why = None;
        loop {
            let left = (self.clock)().until(deadline);
            if left.is_zero() {
                return Err(why.unwrap_or_else(|| "no time left".to_owned()));
            }
            let attempt = left.min(ATTEMPT);
            match self.route() {
                Route::Here(raft) => {
                    let id = self.id();
                    let reply = tokio::select! {
                        reply = propose(&raft, command.clone(), attempt) => reply,
                        () = self.deposed(id) => Reply::NotLeader,
                    };
                    match reply {
                        Reply::Outcome(outcome) => return Ok(outcome),
                        Reply::Failed(text) => why = Some(text),
                        _ => why = Some("this node no longer leads".to_owned()),
                    }
                }
                Route::There(leader, address) => {
                    let request = Request::Propose {
                        command: command.clone(),
                        budget: u64::try_from(attempt.as_millis()).unwrap_or(u64::MAX),
                        forwarded: true,
                    };
                    let peer = self.peer(&address, Some(leader));
                    let reply = tokio::select! {
                        reply = timeout(attempt, peer.call(&request)) => reply,
                        () = self.deposed(Some(leader)) => continue,
                    };
                    why = Some(match reply {
                        Ok(Ok(Reply::Outcome(outcome))) => return Ok(outcome),
                        Ok(Ok(Reply::Failed(text))) => format!("the leader {address} says: {text}"),
                        Ok(Ok(_)) => format!("{address} no longer leads"),
                        Ok(Err(error)) => error.to_string(),
                        Err(_) => format!("the leader {address} did not answer in time"),
                    });
                }
                Route::Nowhere(text) => why = Some(text),
            }
            self.breathe().await;
        }
    }

    /// Waits until the state here is as new as the last write anywhere.
    ///
    /// # Errors
    /// Why that could not be established until `deadline`.
    pub(crate) async fn catch_up(&self, deadline: Moment) -> Result<(), String> {
        let mut why = None;
        loop {
            let left = (self.clock)().until(deadline);
            if left.is_zero() {
                return Err(why.unwrap_or_else(|| "no time left".to_owned()));
            }
            let attempt = left.min(ATTEMPT);
            let target = match self.route() {
                Route::Here(raft) => match timeout(attempt, read_index(&raft)).await {
                    Ok(Reply::Index(index)) => Ok(index),
                    Ok(Reply::Failed(text)) => Err(text),
                    _ => Err("this node no longer leads".to_owned()),
                },
                Route::There(leader, address) => {
                    let peer = self.peer(&address, Some(leader));
                    match timeout(attempt, peer.call(&Request::ReadIndex)).await {
                        Ok(Ok(Reply::Index(index))) => Ok(index),
                        Ok(Ok(Reply::Failed(text))) => {
                            Err(format!("the leader {address} says: {text}"))
                        }
                        Ok(Ok(_)) => Err(format!("{address} no longer leads")),
                        Ok(Err(error)) => Err(error.to_string()),
                        Err(_) => Err(format!("the leader {address} did not answer in time")),
                    }
                }
                Route::Nowhere(text) => Err(text),
            };
            match target {
                Ok(target) => {
                    let left = (self.clock)().until(deadline);
                    let mut index = self.who.shared.index.subscribe();
                    return match timeout(left, index.wait_for(|at| *at >= target)).await {
                        Ok(Ok(_)) => Ok(()),
                        _ => Err(format!("this node has not caught up with entry {target}")),
                    };
                }
                Err(text) => why = Some(text),
            }
            self.breathe().await;
        }
    }

    /// Whether the state here was complete a moment ago: the leader has been heard within its lease and everything it had
    /// committed by then is applied; or this node leads and a majority has confirmed it within the lease.
    pub(crate) fn is_recent(&self) -> bool {
        let Some(raft) = self.raft() else {
            return false;
        };
        // Voters grant no new leader a vote for that long after they heard the present one.
        let lease = self.settings().max_timeout / 2;
        let now = (self.clock)();
        let applied = self.who.shared.read(|p| p.last);
        let metrics = raft.server_metrics();
        let metrics = metrics.borrow();
        let contact = lock(&self.contact);
        if metrics.state == ServerState::Leader {
            let term = metrics.vote.leader_id().term;
            // Its own first entry is applied: so is everything that was committed before.
            if applied.is_none_or(|last| last.leader_id.term != term) {
                return false;
            }
            let confirmed = |id: &NodeId| {
                Some(*id) == self.id()
                    || contact
                        .followers
                        .get(id)
                        .is_some_and(|(t, sent)| *t == term && now.since(*sent) < lease)
            };
            metrics
                .membership_config
                .membership()
                .get_joint_config()
                .iter()
                .all(|config| config.iter().filter(|id| confirmed(id)).count() * 2 > config.len())
        } else {
            contact.leader.is_some_and(|(heard, committed)| {
                now.since(heard) < self.settings().max_timeout
                    && applied.map_or(0, |last| last.index) >= committed
            })
        }
    }

    #[cfg(test)]
    pub(super) fn leads(&self) -> bool {
        self.raft()
            .is_some_and(|raft| raft.server_metrics().borrow().state == ServerState::Leader)
    }

    /// Whether `other` knows this node as a voter.
    #[cfg(test)]
    pub(super) fn votes_for(&self, other: &Node) -> bool {
        let (Some(raft), Some(id)) = (other.raft(), self.id()) else {
            return false;
        };
        let metrics = raft.server_metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        formation::is_voter_at(membership, id, &self.settings().self_addr)
    }

    async fn answer(self: &Arc<Self>, request: Request) -> Reply {
        let Some(raft) = self.raft() else {
            return match request {
                Request::Status if self.id().is_none() => Reply::Status(Status {
                    stage: Stage::Empty,
                    configured: self.settings().configured(),
                }),
                _ => Reply::Failed("this node is not running yet, or its disk failed".to_owned()),
            };
        };
        let failed = |error: &dyn std::fmt::Display| Reply::Failed(error.to_string());
        match request {
            Request::Append(request) => {
                let heard = (self.clock)();
                let committed = request.leader_commit.map_or(0, |at| at.index);
                match raft.append_entries(request).await {
                    Ok(response) => {
                        if matches!(response, AppendEntriesResponse::Success) {
                            lock(&self.contact).leader = Some((heard, committed));
                        }
                        Reply::Append(response)
                    }
                    Err(error) => failed(&error),
                }
            }
            Request::Vote(request) => match raft.vote(request).await {
                Ok(response) => Reply::Vote(response),
                Err(error) => failed(&error),
            },
            Request::Snapshot(part) => match InstallSnapshotRequest::try_from(part) {
                Ok(request) => match raft.install_snapshot(request).await {
                    Ok(response) => Reply::Snapshot(response),
                    Err(RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch))) => {
                        Reply::SnapshotMismatch(mismatch)
                    }
                    Err(RaftError::Fatal(error)) => failed(&error),
                },
                Err(error) => failed(&error),
            },
            Request::Status => {
                let metrics = raft.metrics();
                let metrics = metrics.borrow();
                let formed = !*lock(&self.founder)
                    || metrics.last_log_index.is_some_and(|index| index > 0)
                    || metrics.vote.is_committed();
                Reply::Status(Status {
                    stage: if formed {
                        Stage::Formed
                    } else {
                        Stage::Founding
                    },
                    configured: self.settings().configured(),
                })
            }
            Request::Admit {
                id,
                address,
                forwarded,
            } => match self.route() {
                Route::Here(raft) => self.admit(&raft, id, &address).await,
                Route::There(_, leader) if !forwarded => {
                    let request = Request::Admit {
                        id,
                        address,
                        forwarded: true,
                    };
                    self.ask(&leader, &request)
                        .await
                        .unwrap_or_else(Reply::Failed)
                }
                Route::There(..) => Reply::NotLeader,
                Route::Nowhere(text) => Reply::Failed(text),
            },
            Request::Propose {
                command,
                budget,
                forwarded,
            } => {
                let budget = Duration::from_millis(budget);
                if forwarded {
                    if self.is_departing() {
                        return Reply::NotLeader;
                    }
                    return propose(&raft, command, budget.min(ATTEMPT)).await;
                }
                match self.submit(&command, (self.clock)() + budget).await {
                    Ok(outcome) => Reply::Outcome(outcome),
                    Err(text) => Reply::Failed(text),
                }
            }
            Request::ReadIndex => read_index(&raft).await,
            Request::Stand { term } => {
                let follows = {
                    let metrics = raft.server_metrics();
                    let metrics = metrics.borrow();
                    metrics.vote.is_committed() && metrics.vote.leader_id().term == term
                };
                if !follows {
                    return Reply::Failed("the term is over".to_owned());
                }
                match raft.trigger().elect().await {
                    Ok(()) => Reply::Standing,
                    Err(error) => failed(&error),
                }
            }
            Request::Watch { after } => {
                let mut changes = self.who.shared.changes.subscribe();
                if let Some(after) = after {
                    let _ = timeout(super::client::WATCH, changes.wait_for(|n| *n != after)).await;
                }
                Reply::Changes(*changes.borrow())
            }
            Request::Read { prefix, budget } => {
                let deadline = (self.clock)() + Duration::from_millis(budget);
                match self.catch_up(deadline).await {
                    Ok(()) => Reply::Records(self.records(&prefix)),
                    Err(text) => Reply::Failed(text),
                }
            }
        }
    }

    /// The records below a prefix, as applied here.
    pub(crate) fn records(&self, prefix: &str) -> Vec<(String, Record)> {
        self.who.shared.read(|position| {
            position
                .state
                .records
                .range(prefix.to_owned()..)
                .take_while(|(key, _)| key.starts_with(prefix))
                .map(|(key, record)| (key.clone(), record.clone()))
                .collect()
        })
    }

    // ------------------------------------------------------------------ server

    /// Accepts connections for ever.
    async fn listen(self: Arc<Self>, listener: TcpListener) {
        let mut greeting: VecDeque<(u64, tokio::task::AbortHandle)> = VecDeque::new();
        let mut connections = JoinSet::new();
        let (greeted, mut arrivals) = mpsc::channel::<u64>(GREETING);
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut number = 0;
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, from)) => {
                        // Whoever says nothing must not keep others out: the oldest stranger goes first.
                        if greeting.len() >= GREETING
                            && let Some((_, oldest)) = greeting.pop_front()
                        {
                            oldest.abort();
                        }
                        number += 1;
                        let work = Arc::clone(&self).receive(stream, from, number, greeted.clone(), Arc::clone(&slots));
                        greeting.push_back((number, connections.spawn(work)));
                    }
                    Err(error) => {
                        tracing::warn!("raft: cannot accept a connection: {error}");
                        sleep(PAUSE).await;
                    }
                },
                Some(done) = arrivals.recv() => greeting.retain(|(number, _)| *number != done),
                Some(_) = connections.join_next() => {}
            }
        }
    }

    async fn receive(
        self: Arc<Self>,
        stream: TcpStream,
        from: SocketAddr,
        number: u64,
        greeted: mpsc::Sender<u64>,
        slots: Arc<Semaphore>,
    ) {
        let credentials = self.who.credentials();
        let limit = self.settings().connection_timeout;
        let connection = timeout(limit, credentials.accept(stream)).await;
        let _ = greeted.send(number).await;
        let subject = format!("connection from {}", from.ip());
        match connection {
            Ok(Ok(connection)) => {
                let Ok(_slot) = slots.try_acquire() else {
                    let text = "refused: too many connections";
                    self.troubles.say(&subject, text, (self.clock)());
                    return;
                };
                if let Err(error) = self.serve(connection).await {
                    tracing::debug!("raft: {subject} ended: {error}");
                }
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                let text = format!("refused a wrong peer: {error}");
                self.troubles.say(&subject, &text, (self.clock)());
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                let text = format!("refused: {error}");
                self.troubles.say(&subject, &text, (self.clock)());
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }

    async fn serve(self: &Arc<Self>, connection: Connection) -> io::Result<()> {
        let Connection {
            mut reader,
            mut writer,
            peer,
        } = connection;
        tracing::debug!("raft: {:?} has connected", peer.address);
        let mut work = JoinSet::new();
        loop {
            tokio::select! {
                frame = reader.next(), if work.len() < PARALLEL => {
                    let Some(frame) = frame? else { return Ok(()) };
                    let request: Numbered<Request> = serde_json::from_slice(&frame)?;
                    let node = Arc::clone(self);
                    work.spawn(async move {
                        let body = node.answer(request.body).await;
                        serde_json::to_vec(&Numbered { number: request.number, body })
                    });
                }
                Some(done) = work.join_next() => {
                    let reply = done.map_err(io::Error::other)??;
                    timeout(self.settings().connection_timeout, writer.send(&reply)).await??;
                }
                () = sleep(SILENT), if work.is_empty() => return Ok(()),
            }
        }
    }
}

fn report_leader(metrics: &RaftServerMetrics<NodeId, BasicNode>) {
    let term = metrics.vote.leader_id().term;
    match metrics.current_leader {
        Some(leader) if leader == metrics.id => {
            tracing::info!("raft: this node leads the store (term {term})");
        }
        Some(leader) => {
            let membership = metrics.membership_config.membership();
            let address = membership
                .get_node(&leader)
                .map_or("?", |n| n.addr.as_str());
            tracing::info!("raft: {address} leads the store (term {term})");
        }
        None => tracing::info!("raft: the store has no leader (term {term})"),
    }
}

/// The voters' addresses, for messages.
fn voters(membership: &super::disk::Membership) -> String {
    let ids: HashSet<NodeId> = membership.voter_ids().collect();
    let mut addresses: Vec<&str> = membership
        .nodes()
        .filter(|(id, _)| ids.contains(id))
        .map(|(_, node)| node.addr.as_str())
        .collect();
    addresses.sort_unstable();
    format!("{addresses:?}")
}

async fn propose(raft: &Raft<TypeConfig>, command: Command, limit: Duration) -> Reply {
    match timeout(limit, raft.client_write(command)).await {
        Ok(Ok(response)) => Reply::Outcome(response.data),
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Reply::NotLeader,
        Ok(Err(error)) => Reply::Failed(error.to_string()),
        Err(_) => Reply::Failed("not committed in time: a majority does not answer".to_owned()),
    }
}

async fn read_index(raft: &Raft<TypeConfig>) -> Reply {
    match raft.get_read_log_id().await {
        Ok((read, _)) => Reply::Index(read.map_or(0, |at| at.index)),
        Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_))) => Reply::NotLeader,
        Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
            Reply::Failed("a majority does not answer".to_owned())
        }
        Err(RaftError::Fatal(error)) => Reply::Failed(error.to_string()),
    }
}

/// Resolves when Raft has stopped by itself.
async fn failure(raft: &Raft<TypeConfig>) -> String {
    let mut metrics = raft.metrics();
    match metrics.wait_for(|m| m.running_state.is_err()).await {
        Ok(metrics) => match &metrics.running_state {
            Err(error) => error.to_string(),
            Ok(()) => String::new(),
        },
        Err(_) => "its task has ended".to_owned(),
    }
}
