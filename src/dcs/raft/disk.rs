//! What a Raft node keeps on disk: who it is, its log with votes, and one snapshot.
//!
//! Everything that Raft must not forget is synced before it is acknowledged. A write that a crash cut off at the end of the
//! log was never acknowledged and is dropped at the next start; damage anywhere else is an error, never skipped.
//! Blocking calls run on the blocking pool, never on the runtime.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::ops::{Bound, RangeBounds};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Context as _;
use openraft::storage::{LogFlushed, LogState, RaftLogStorage, RaftStateMachine};
use openraft::{
    EntryPayload, ErrorSubject, ErrorVerb, LogId, RaftLogReader, RaftSnapshotBuilder, Snapshot,
    SnapshotMeta, StorageError, StoredMembership, Vote,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot, watch};

use super::state::{Command, Outcome, Renewals, State};
use crate::types::Moment;

openraft::declare_raft_types!(
    /// The types of our Raft.
    pub(crate) TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = u64,
        Node = openraft::BasicNode,
        SnapshotData = Cursor<Vec<u8>>,
);

pub(crate) type NodeId = u64;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type Membership = StoredMembership<NodeId, openraft::BasicNode>;
type Result<T, E = StorageError<NodeId>> = std::result::Result<T, E>;

/// Replication and restart read at most that much of the log at once (it has to fit into a frame).
const READ_BYTES: usize = 1 << 20;
/// The log file is rewritten with what is still needed when it has grown by that much.
const FILE_BYTES: usize = 4 << 20;
const MAGIC: &[u8; 4] = b"HWR1";
const HEADER: usize = 16;

/// Locks a mutex; a panic elsewhere does not make the data unusable, every section leaves it consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn storage_error(
    subject: ErrorSubject<NodeId>,
    verb: ErrorVerb,
    error: io::Error,
) -> StorageError<NodeId> {
    StorageError::from_io_error(subject, verb, error)
}

/// Runs blocking work off the runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| io::Error::other(error.to_string()))?
}

fn io_corrupt(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The directory of one node, held by one process.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

/// Who this disk is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeFile {
    /// The Raft node id; belongs to this disk, not to the address.
    pub(crate) id: NodeId,
    /// The address at the time.
    pub(crate) address: String,
    /// Whether this disk took part in the first formation; else it was admitted later, with an id of its own.
    pub(crate) founder: bool,
}

impl Directory {
    /// Creates and locks the node's directory below `data_dir`. Blocking.
    ///
    /// # Errors
    /// The directory cannot be written, or another process has it.
    pub(crate) fn open(data_dir: &Path) -> anyhow::Result<Directory> {
        let path = data_dir.join("howdah.raft");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot create the Raft directory {}", path.display()))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| format!("cannot open {}", lock_path.display()))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("the Raft directory {} is in use by another process; stop it or set raft.data_dir", path.display()))?;
        Ok(Directory { path, _lock: lock })
    }

    /// The directory's path, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Who this disk is; `None` = an empty disk. Blocking.
    pub(crate) fn read_node(&self) -> anyhow::Result<Option<NodeFile>> {
        let path = self.path.join("node.json");
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).with_context(|| {
                format!("{} is damaged; remove the directory to let this node join again with an empty disk", path.display())
            })?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Makes `node` durable. Blocking.
    pub(crate) fn write_node(&self, node: &NodeFile) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec(node)?;
        replace(&self.path, "node.json", &bytes)
            .with_context(|| format!("cannot write {}/node.json", self.path.display()))
    }
}

/// Replaces a file as a whole and durably: after a crash it has the old or the new content. Blocking.
fn replace(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.new"));
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, directory.join(name))?;
    File::open(directory)?.sync_all()
}

/// One record of the log file.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    /// A vote.
    Vote(Vote<NodeId>),
    /// Entries, consecutive.
    Append(Vec<Entry>),
    /// Entries from this one on are void.
    Truncate(LogId<NodeId>),
    /// Entries up to this one are in the snapshot.
    Purge(LogId<NodeId>),
    /// Everything up to here was committed when the next record was written.
    Committed(LogId<NodeId>),
}

fn frame(line: &Line, into: &mut Vec<u8>) -> io::Result<()> {
    let payload = serde_json::to_vec(line)?;
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    into.extend_from_slice(MAGIC);
    into.extend_from_slice(&length.to_be_bytes());
    into.extend_from_slice(&Sha256::digest(&payload)[..8]);
    into.extend_from_slice(&payload);
    Ok(())
}

/// The payload of the record at the beginning of `bytes`, if it is whole.
fn unframe(bytes: &[u8]) -> Option<&[u8]> {
    let header = bytes.get(..HEADER)?;
    let length = u32::from_be_bytes(header.get(4..8)?.try_into().ok()?) as usize;
    let payload = bytes.get(HEADER..HEADER.checked_add(length)?)?;
    (header.starts_with(MAGIC) && Sha256::digest(payload)[..8] == header[8..16]).then_some(payload)
}

/// What the log file says, in memory.
#[derive(Debug, Default)]
struct LogMemory {
    vote: Option<Vote<NodeId>>,
    committed: Option<LogId<NodeId>>,
    purged: Option<LogId<NodeId>>,
    entries: BTreeMap<u64, Entry>,
    /// Size of the file as far as this process has written it.
    file_bytes: usize,
    /// Its size after the last rewrite: what was needed then.
    rewritten_bytes: usize,
    /// `committed` as the file has it.
    committed_on_disk: Option<LogId<NodeId>>,
}

impl LogMemory {
    fn take(&mut self, line: Line) {
        match line {
            Line::Vote(vote) => self.vote = Some(vote),
            Line::Append(entries) => {
                for entry in entries {
                    self.entries.insert(entry.log_id.index, entry);
                }
            }
            Line::Truncate(from) => {
                self.entries.split_off(&from.index);
            }
            Line::Purge(upto) => {
                self.entries = self.entries.split_off(&(upto.index + 1));
                self.purged = Some(upto);
            }
            Line::Committed(at) => {
                self.committed = Some(at);
                self.committed_on_disk = Some(at);
            }
        }
    }

    /// The whole content as a fresh file.
    fn rewritten(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Some(vote) = self.vote {
            frame(&Line::Vote(vote), &mut bytes)?;
        }
        if let Some(purged) = self.purged {
            frame(&Line::Purge(purged), &mut bytes)?;
        }
        for entry in self.entries.values() {
            frame(&Line::Append(vec![entry.clone()]), &mut bytes)?;
        }
        if let Some(committed) = self.committed {
            frame(&Line::Committed(committed), &mut bytes)?;
        }
        self.committed_on_disk = self.committed;
        self.file_bytes = bytes.len();
        self.rewritten_bytes = bytes.len();
        Ok(bytes)
    }

    /// The bytes for one more record, and whether they replace the file.
    fn next(&mut self, line: Line) -> io::Result<(bool, Vec<u8>)> {
        let mut bytes = Vec::new();
        if self.committed != self.committed_on_disk
            && let Some(committed) = self.committed
        {
            frame(&Line::Committed(committed), &mut bytes)?;
            self.committed_on_disk = self.committed;
        }
        frame(&line, &mut bytes)?;
        let shrink = matches!(line, Line::Purge(_));
        self.take(line);
        if shrink || self.file_bytes + bytes.len() > self.rewritten_bytes + FILE_BYTES {
            return Ok((true, self.rewritten()?));
        }
        self.file_bytes += bytes.len();
        Ok((false, bytes))
    }
}

/// Reads the log file; drops a record cut off at the end. Blocking.
fn read_log(file: &mut File, path: &Path) -> io::Result<LogMemory> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let mut memory = LogMemory::default();
    let mut at = 0;
    while at < bytes.len() {
        let Some(payload) = unframe(&bytes[at..]) else {
            // A crash cuts off the last write only. Anything whole after the damage means that acknowledged data is lost.
            let whole_after = (at + 1..bytes.len().saturating_sub(HEADER))
                .any(|next| bytes[next..].starts_with(MAGIC) && unframe(&bytes[next..]).is_some());
            if whole_after {
                return Err(io_corrupt(format!(
                    "the Raft log {} is damaged at byte {at}; remove the directory to let this node join again with an empty disk",
                    path.display()
                )));
            }
            tracing::warn!(
                "raft: the last write to {} was cut off at byte {at}; it was never acknowledged and is dropped",
                path.display()
            );
            file.set_len(at as u64)?;
            file.sync_all()?;
            break;
        };
        let line = serde_json::from_slice(payload)
            .map_err(|error| io_corrupt(format!("{} at byte {at}: {error}", path.display())))?;
        memory.take(line);
        at += HEADER + payload.len();
    }
    file.seek(SeekFrom::Start(at as u64))?;
    memory.file_bytes = at;
    Ok(memory)
}

enum Done {
    Entries(LogFlushed<TypeConfig>),
    Other(oneshot::Sender<io::Result<()>>),
}

struct Job {
    replaces: bool,
    bytes: Vec<u8>,
    done: Done,
}

/// The log with votes. Cheap to clone; all clones are the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    memory: Arc<Mutex<LogMemory>>,
    jobs: mpsc::UnboundedSender<Job>,
    shared: Arc<Shared>,
}

impl LogStore {
    /// Reads the log of `directory` and starts its writer. `shared` is told when entries are written.
    pub(crate) async fn open(
        directory: &Arc<Directory>,
        shared: &Arc<Shared>,
    ) -> io::Result<LogStore> {
        let directory = Arc::clone(directory);
        let (directory, file, memory) = blocking(move || {
            let path = directory.path.join("log");
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            File::open(&directory.path)?.sync_all()?;
            let memory = read_log(&mut file, &path)?;
            Ok((directory, file, memory))
        })
        .await?;
        let (jobs, queue) = mpsc::unbounded_channel();
        tokio::spawn(write_log(directory, file, queue));
        Ok(LogStore {
            memory: Arc::new(Mutex::new(memory)),
            jobs,
            shared: Arc::clone(shared),
        })
    }

    /// Queues one record. The memory changes at once, in the order of the queue.
    fn queue(&self, line: Line, done: Done) -> io::Result<()> {
        let mut memory = lock(&self.memory);
        let (replaces, bytes) = memory.next(line)?;
        self.jobs
            .send(Job {
                replaces,
                bytes,
                done,
            })
            .map_err(|_| io::Error::other("the log's writer has stopped"))
    }

    async fn write(&self, line: Line) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        self.queue(line, Done::Other(done))?;
        written
            .await
            .map_err(|_| io::Error::other("the log's writer has stopped"))?
    }
}

/// Carries out the writes, in order, one sync for all that are waiting. After one failure nothing is written any more: what
/// the disk holds is unknown until it is read again.
async fn write_log(directory: Arc<Directory>, file: File, mut queue: mpsc::UnboundedReceiver<Job>) {
    let mut jobs = Vec::new();
    let mut idle = Some(file);
    while queue.recv_many(&mut jobs, 64).await > 0 {
        let Some(mut file) = idle.take() else { return };
        let mut done = Vec::with_capacity(jobs.len());
        let mut work = Vec::with_capacity(jobs.len());
        for job in jobs.drain(..) {
            done.push(job.done);
            work.push((job.replaces, job.bytes));
        }
        let held = Arc::clone(&directory);
        let result = blocking(move || {
            let mut dirty = false;
            for (replaces, bytes) in work {
                if replaces {
                    replace(&held.path, "log", &bytes)?;
                    file = OpenOptions::new().write(true).open(held.path.join("log"))?;
                    file.seek(SeekFrom::End(0))?;
                    dirty = false;
                } else {
                    file.write_all(&bytes)?;
                    dirty = true;
                }
            }
            if dirty {
                file.sync_data()?;
            }
            Ok(file)
        })
        .await;
        let failure = match result {
            Ok(file) => {
                idle = Some(file);
                None
            }
            Err(error) => {
                tracing::error!(
                    "raft: cannot write the log in {}: {error}; this node stops taking part until it can",
                    directory.path.display()
                );
                Some((error.kind(), error.to_string()))
            }
        };
        let answer = || match &failure {
            None => Ok(()),
            Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
        };
        for done in done {
            match done {
                Done::Entries(callback) => callback.log_io_completed(answer()),
                Done::Other(sender) => {
                    let _ = sender.send(answer());
                }
            }
        }
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>> {
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        if is_empty(&bounds) {
            return Ok(Vec::new());
        }
        let memory = lock(&self.memory);
        Ok(memory
            .entries
            .range(bounds)
            .map(|(_, e)| e.clone())
            .collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        let memory = lock(&self.memory);
        let mut size = 0;
        let mut entries = Vec::new();
        for entry in memory.entries.range(start..end).map(|(_, e)| e) {
            size += weight(entry);
            if size > READ_BYTES && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }
}

/// `BTreeMap::range` refuses a range whose end is before its start.
fn is_empty(bounds: &(Bound<u64>, Bound<u64>)) -> bool {
    let start = match bounds.0 {
        Bound::Included(n) => n,
        Bound::Excluded(n) => n.saturating_add(1),
        Bound::Unbounded => 0,
    };
    match bounds.1 {
        Bound::Included(end) => end < start,
        Bound::Excluded(end) => end <= start,
        Bound::Unbounded => false,
    }
}

/// Roughly how many bytes an entry takes in a frame.
fn weight(entry: &Entry) -> usize {
    use super::state::{Action, Change};
    let payload = match &entry.payload {
        EntryPayload::Normal(Command {
            action: Action::Write { changes, .. },
            ..
        }) => changes
            .iter()
            .map(|change| match change {
                Change::Put { key, value, .. } => key.len() + value.len(),
                _ => 64,
            })
            .sum(),
        _ => 64,
    };
    // JSON inside JSON: quotes are escaped.
    256 + payload * 2
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>> {
        let memory = lock(&self.memory);
        let last = memory.entries.last_key_value().map(|(_, e)| e.log_id);
        Ok(LogState {
            last_purged_log_id: memory.purged,
            last_log_id: last.or(memory.purged),
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<NodeId>) -> Result<()> {
        self.write(Line::Vote(*vote))
            .await
            .map_err(|e| storage_error(ErrorSubject::Vote, ErrorVerb::Write, e))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<NodeId>>> {
        Ok(lock(&self.memory).vote)
    }

    /// Only in memory: it rides on the next record. What a crash loses of it, the next leader tells again.
    async fn save_committed(&mut self, committed: Option<LogId<NodeId>>) -> Result<()> {
        lock(&self.memory).committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<NodeId>>> {
        let memory = lock(&self.memory);
        let last = memory.entries.last_key_value().map(|(_, e)| e.log_id);
        // Never beyond what the log holds.
        Ok(memory.committed.min(last.or(memory.purged)))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.shared.written(&entries);
        self.queue(Line::Append(entries), Done::Entries(callback))
            .map_err(|e| storage_error(ErrorSubject::Logs, ErrorVerb::Write, e))
    }

    async fn truncate(&mut self, log_id: LogId<NodeId>) -> Result<()> {
        self.write(Line::Truncate(log_id))
            .await
            .map_err(|e| storage_error(ErrorSubject::Logs, ErrorVerb::Delete, e))
    }

    async fn purge(&mut self, log_id: LogId<NodeId>) -> Result<()> {
        self.write(Line::Purge(log_id))
            .await
            .map_err(|e| storage_error(ErrorSubject::Logs, ErrorVerb::Delete, e))
    }
}

/// The applied state, for everyone who reads it.
pub(crate) struct Shared {
    applied: Mutex<Position>,
    /// When entries that are not applied yet were written here, by index.
    written: Mutex<BTreeMap<u64, (LogId<NodeId>, Moment)>>,
    clock: fn() -> Moment,
    /// Counts what a reader can see.
    pub(crate) changes: watch::Sender<u64>,
    /// Index up to which the log is applied.
    pub(crate) index: watch::Sender<u64>,
}

/// The state and where it stands.
#[derive(Default)]
pub(crate) struct Position {
    /// The keys.
    pub(crate) state: State,
    /// When renewals happened, as this node can tell.
    pub(crate) renewals: Renewals,
    /// The last entry in `state`.
    pub(crate) last: Option<LogId<NodeId>>,
    membership: Membership,
}

impl Shared {
    /// An empty state.
    pub(crate) fn new(clock: fn() -> Moment) -> Arc<Shared> {
        Arc::new(Shared {
            applied: Mutex::default(),
            written: Mutex::default(),
            clock,
            changes: watch::Sender::new(0),
            index: watch::Sender::new(0),
        })
    }

    /// A look at the state; keep it short.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Position) -> T) -> T {
        look(&lock(&self.applied))
    }

    /// Remembers when entries were written to the log, until they are applied.
    fn written(&self, entries: &[Entry]) {
        let now = (self.clock)();
        let mut written = lock(&self.written);
        for entry in entries {
            written.insert(entry.log_id.index, (entry.log_id, now));
        }
    }

    /// Changes the position, notes renewals and wakes whoever waits. `change` says how much of the difference a reader can see.
    /// `entries`: the entries that it applies, each of which may have been written here; empty for a snapshot.
    fn update(&self, entries: &[LogId<NodeId>], change: impl FnOnce(&mut Position) -> u64) {
        let index = {
            let mut position = lock(&self.applied);
            let seen = change(&mut position);
            let Position {
                state,
                renewals,
                last,
                ..
            } = &mut *position;
            let index = last.map_or(0, |last| last.index);
            let mut written = lock(&self.written);
            // Invariant: only the very entry that is applied counts, not one of another term that was written in its place
            // before and has been replaced: that one may be older than the renewal.
            renewals.note(state, (self.clock)(), |renewed| {
                let (id, at) = written.get(&renewed)?;
                entries.contains(id).then_some(*at)
            });
            *written = written.split_off(&(index + 1));
            if seen > 0 {
                self.changes.send_modify(|n| *n = n.wrapping_add(seen));
            }
            index
        };
        self.index.send_replace(index);
    }
}

/// A snapshot as the file holds it.
#[derive(Serialize, Deserialize)]
struct SnapshotFile {
    meta: SnapshotMeta<NodeId, openraft::BasicNode>,
    state: State,
}

/// The state machine of one life of the node.
pub(crate) struct Machine {
    shared: Arc<Shared>,
    directory: Arc<Directory>,
}

impl Machine {
    /// Puts the snapshot on disk into `shared`.
    pub(crate) async fn open(
        directory: &Arc<Directory>,
        shared: &Arc<Shared>,
    ) -> io::Result<Machine> {
        let machine = Machine {
            shared: Arc::clone(shared),
            directory: Arc::clone(directory),
        };
        let stored = machine.load().await?;
        machine.restore(stored.map(|(stored, _)| stored));
        Ok(machine)
    }

    fn restore(&self, stored: Option<SnapshotFile>) {
        self.shared.update(&[], |position| {
            *position = match stored {
                Some(stored) => Position {
                    state: stored.state,
                    renewals: Renewals::default(),
                    last: stored.meta.last_log_id,
                    membership: stored.meta.last_membership,
                },
                None => Position::default(),
            };
            1
        });
    }

    async fn load(&self) -> io::Result<Option<(SnapshotFile, Vec<u8>)>> {
        let path = self.directory.path.join("snapshot");
        blocking(move || {
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            let payload = unframe(&bytes).ok_or_else(|| {
                io_corrupt(format!(
                    "the Raft snapshot {} is damaged; remove the directory to let this node join again with an empty disk",
                    path.display()
                ))
            })?;
            let stored = serde_json::from_slice(payload)?;
            Ok(Some((stored, payload.to_vec())))
        })
        .await
    }
}

/// Writes a snapshot durably and returns its bytes as they travel.
async fn save_snapshot(directory: Arc<Directory>, stored: SnapshotFile) -> io::Result<Vec<u8>> {
    blocking(move || {
        let payload = serde_json::to_vec(&stored)?;
        let mut bytes = Vec::with_capacity(payload.len() + HEADER);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(
            &u32::try_from(payload.len())
                .map_err(io::Error::other)?
                .to_be_bytes(),
        );
        bytes.extend_from_slice(&Sha256::digest(&payload)[..8]);
        bytes.extend_from_slice(&payload);
        replace(&directory.path, "snapshot", &bytes)?;
        Ok(payload)
    })
    .await
}

/// Builds one snapshot of the state as it was when this was made.
pub(crate) struct Builder {
    directory: Arc<Directory>,
    stored: Option<SnapshotFile>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>> {
        let stored = self.stored.take().ok_or_else(|| {
            storage_error(
                ErrorSubject::StateMachine,
                ErrorVerb::Read,
                io::Error::other("this snapshot was built before"),
            )
        })?;
        let meta = stored.meta.clone();
        let payload = save_snapshot(Arc::clone(&self.directory), stored)
            .await
            .map_err(|e| storage_error(ErrorSubject::Snapshot(None), ErrorVerb::Write, e))?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(payload)),
        })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId<NodeId>>, Membership)> {
        Ok(self
            .shared
            .read(|position| (position.last, position.membership.clone())))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let ids: Vec<LogId<NodeId>> = entries.iter().map(|entry| entry.log_id).collect();
        let mut outcomes = Vec::with_capacity(entries.len());
        self.shared.update(&ids, |position| {
            let mut visible = 0;
            for entry in entries {
                position.last = Some(entry.log_id);
                outcomes.push(match entry.payload {
                    EntryPayload::Blank => Outcome::Done(entry.log_id.index),
                    EntryPayload::Membership(membership) => {
                        position.membership = StoredMembership::new(Some(entry.log_id), membership);
                        Outcome::Done(entry.log_id.index)
                    }
                    EntryPayload::Normal(command) => {
                        let applied = position.state.apply(entry.log_id.index, command);
                        visible += u64::from(applied.visible);
                        applied.outcome
                    }
                });
            }
            visible
        });
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let stored = self.shared.read(|position| SnapshotFile {
            meta: SnapshotMeta {
                last_log_id: position.last,
                last_membership: position.membership.clone(),
                snapshot_id: position
                    .last
                    .map_or_else(|| "empty".to_owned(), |last| last.to_string()),
            },
            state: position.state.clone(),
        });
        Builder {
            directory: Arc::clone(&self.directory),
            stored: Some(stored),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<NodeId, openraft::BasicNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<()> {
        let failed = |e| storage_error(ErrorSubject::Snapshot(None), ErrorVerb::Write, e);
        let stored: SnapshotFile =
            serde_json::from_slice(snapshot.get_ref()).map_err(|e| failed(e.into()))?;
        let stored = SnapshotFile {
            meta: meta.clone(),
            state: stored.state,
        };
        let kept = SnapshotFile {
            meta: meta.clone(),
            state: stored.state.clone(),
        };
        save_snapshot(Arc::clone(&self.directory), stored)
            .await
            .map_err(failed)?;
        self.restore(Some(kept));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>> {
        let stored = self
            .load()
            .await
            .map_err(|e| storage_error(ErrorSubject::Snapshot(None), ErrorVerb::Read, e))?;
        Ok(stored.map(|(stored, payload)| Snapshot {
            meta: stored.meta,
            snapshot: Box::new(Cursor::new(payload)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use openraft::testing::{StoreBuilder, Suite};

    use super::*;
    use crate::dcs::raft::state::{Action, Change, RequestId};

    struct Fresh;

    impl StoreBuilder<TypeConfig, LogStore, Machine, tempfile::TempDir> for Fresh {
        async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine)> {
            let scratch = tempfile::tempdir().unwrap();
            let (log, machine) = open(scratch.path()).await.unwrap();
            Ok((scratch, log, machine))
        }
    }

    async fn open(path: &Path) -> anyhow::Result<(LogStore, Machine)> {
        let directory = Arc::new(Directory::open(path)?);
        let shared = Shared::new(crate::clock::now);
        let machine = Machine::open(&directory, &shared).await?;
        Ok((LogStore::open(&directory, &shared).await?, machine))
    }

    /// openraft's own conformance suite for storage.
    #[test]
    fn suite() {
        Suite::test_all(Fresh).unwrap();
    }

    fn entry(index: u64, value: &str) -> Entry {
        let request = RequestId {
            origin: 1,
            number: index,
        };
        let changes = vec![Change::Put {
            key: "k".into(),
            value: value.into(),
            ttl: None,
            owner: None,
            renews: false,
        }];
        Entry {
            log_id: LogId::new(openraft::CommittedLeaderId::new(1, 1), index),
            payload: EntryPayload::Normal(Command {
                request,
                action: Action::Write {
                    guards: vec![],
                    changes,
                },
            }),
        }
    }

    async fn append(log: &LogStore, entries: Vec<Entry>) {
        log.write(Line::Append(entries)).await.unwrap();
    }

    fn log_path(scratch: &Path) -> PathBuf {
        scratch.join("howdah.raft/log")
    }

    /// Reopens the log; the old writer has to let go of the directory first.
    async fn reopen(scratch: &Path, old: Option<(LogStore, Machine)>) -> anyhow::Result<LogStore> {
        drop(old);
        let mut tries = 0;
        loop {
            tries += 1;
            match open(scratch).await {
                Err(error) if tries < 500 && error.to_string().contains("in use") => {
                    tokio::task::yield_now().await;
                }
                other => return other.map(|(log, _)| log),
            }
        }
    }

    async fn indexes(log: &mut LogStore) -> Vec<u64> {
        let entries = log.try_get_log_entries(..).await.unwrap();
        entries.iter().map(|e| e.log_id.index).collect()
    }

    #[tokio::test]
    async fn votes_and_entries_survive_a_restart() {
        let scratch = tempfile::tempdir().unwrap();
        let (mut log, machine) = open(scratch.path()).await.unwrap();
        log.save_vote(&Vote::new(7, 3)).await.unwrap();
        append(&log, vec![entry(0, "a"), entry(1, "b"), entry(2, "c")]).await;
        log.truncate(entry(2, "").log_id).await.unwrap();
        log.purge(entry(0, "").log_id).await.unwrap();
        let mut log = reopen(scratch.path(), Some((log, machine))).await.unwrap();
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(7, 3)));
        assert_eq!(indexes(&mut log).await, [1]);
        assert_eq!(
            log.get_log_state().await.unwrap().last_purged_log_id,
            Some(entry(0, "").log_id)
        );
    }

    #[tokio::test]
    async fn a_write_cut_off_by_a_crash_is_dropped() {
        let scratch = tempfile::tempdir().unwrap();
        let (log, machine) = open(scratch.path()).await.unwrap();
        append(&log, vec![entry(0, "a")]).await;
        let whole = std::fs::metadata(log_path(scratch.path())).unwrap().len();
        append(&log, vec![entry(1, "b")]).await;
        let full = std::fs::read(log_path(scratch.path())).unwrap();
        let mut old = Some((log, machine));
        for cut in whole + 1..full.len() as u64 {
            std::fs::write(log_path(scratch.path()), &full[..cut as usize]).unwrap();
            let mut log = reopen(scratch.path(), old.take()).await.unwrap();
            assert_eq!(indexes(&mut log).await, [0], "cut at {cut}");
            assert_eq!(
                std::fs::metadata(log_path(scratch.path())).unwrap().len(),
                whole
            );
        }
    }

    #[tokio::test]
    async fn damage_before_the_end_is_an_error() {
        let scratch = tempfile::tempdir().unwrap();
        let (log, machine) = open(scratch.path()).await.unwrap();
        append(&log, vec![entry(0, "a")]).await;
        append(&log, vec![entry(1, "b")]).await;
        let mut bytes = std::fs::read(log_path(scratch.path())).unwrap();
        bytes[HEADER + 3] ^= 1;
        std::fs::write(log_path(scratch.path()), bytes).unwrap();
        let error = reopen(scratch.path(), Some((log, machine)))
            .await
            .err()
            .unwrap();
        assert!(error.to_string().contains("damaged"), "{error}");
    }

    #[tokio::test]
    async fn the_file_does_not_grow_with_votes() {
        let scratch = tempfile::tempdir().unwrap();
        let (log, _machine) = open(scratch.path()).await.unwrap();
        let mut written = 0;
        // Votes only: what a node without quorum writes for days.
        let mut memory = lock(&log.memory);
        for term in 0..200_000 {
            let (replaces, bytes) = memory.next(Line::Vote(Vote::new(term, 1))).unwrap();
            written = if replaces {
                bytes.len()
            } else {
                written + bytes.len()
            };
            assert!(written <= FILE_BYTES + 1024);
        }
    }

    #[tokio::test]
    async fn one_process_per_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let _first = Directory::open(scratch.path()).unwrap();
        let error = Directory::open(scratch.path()).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
    }

    #[tokio::test]
    async fn a_snapshot_survives_and_is_checked() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Arc::new(Directory::open(scratch.path()).unwrap());
        let shared = Shared::new(crate::clock::now);
        let mut machine = Machine::open(&directory, &shared).await.unwrap();
        machine.apply([entry(1, "a")]).await.unwrap();
        let mut builder = machine.get_snapshot_builder().await;
        builder.build_snapshot().await.unwrap();

        let again = Shared::new(crate::clock::now);
        Machine::open(&directory, &again).await.unwrap();
        assert_eq!(
            again.read(|p| p.state.clone()),
            shared.read(|p| p.state.clone())
        );
        assert_eq!(again.read(|p| p.last), Some(entry(1, "").log_id));

        let path = directory.path.join("snapshot");
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = Machine::open(&directory, &again).await.err().unwrap();
        assert!(error.to_string().contains("damaged"), "{error}");
    }

    /// A clock that the tests set.
    static SECONDS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

    fn set_clock(seconds: u64) {
        SECONDS.store(seconds, std::sync::atomic::Ordering::SeqCst);
    }

    #[tokio::test]
    async fn a_renewal_counts_from_when_its_entry_was_written_here() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Arc::new(Directory::open(scratch.path()).unwrap());
        let clock = || {
            let seconds = SECONDS.load(std::sync::atomic::Ordering::SeqCst);
            Moment(std::time::Duration::from_secs(seconds))
        };
        let shared = Shared::new(clock);
        let mut machine = Machine::open(&directory, &shared).await.unwrap();
        let entry = |term: u64, index: u64| {
            let mut entry = entry(index, "v");
            entry.log_id = LogId::new(openraft::CommittedLeaderId::new(term, 1), index);
            if let EntryPayload::Normal(command) = &mut entry.payload {
                command.request.origin = term;
                command.action = Action::Write {
                    guards: vec![],
                    changes: vec![Change::Put {
                        key: "k".into(),
                        value: "v".into(),
                        ttl: Some(30_000),
                        owner: None,
                        renews: true,
                    }],
                };
            }
            entry
        };
        let next = |now: u64| {
            let now = Moment(std::time::Duration::from_secs(now));
            let next = shared.read(|position| position.renewals.due(&position.state, now).next);
            next.map(|at| at.0.as_secs())
        };
        // Written at 100; that it is committed is learned later.
        set_clock(100);
        shared.written(&[entry(1, 1)]);
        set_clock(107);
        machine.apply([entry(1, 1)]).await.unwrap();
        assert_eq!(next(107), Some(130));
        // An entry that was replaced by that of another leader leaves no trace.
        set_clock(110);
        shared.written(&[entry(1, 2)]);
        set_clock(118);
        machine.apply([entry(2, 2)]).await.unwrap();
        assert_eq!(next(118), Some(148));
        set_clock(119);
        shared.written(&[entry(1, 3)]);
        set_clock(120);
        shared.written(&[entry(2, 3)]);
        set_clock(121);
        machine.apply([entry(2, 3)]).await.unwrap();
        assert_eq!(next(121), Some(150));
        assert!(lock(&shared.written).is_empty());
        // After a restart everything counts from then on.
        let snapshot = machine
            .get_snapshot_builder()
            .await
            .build_snapshot()
            .await
            .unwrap();
        set_clock(130);
        machine
            .install_snapshot(&snapshot.meta, snapshot.snapshot)
            .await
            .unwrap();
        assert_eq!(next(130), Some(160));
    }
}
