//! Frames between Raft nodes and clients over TCP: a handshake that proves the shared secret on both sides, then requests and
//! replies, encrypted and authenticated (ChaCha20-Poly1305) with keys of this connection. Without a secret all is plain.
//!
//! The keys come from the secret and two random numbers: a weak secret can be guessed by whoever has recorded a connection.
//! Nothing is believed before the handshake is complete; sizes and times are bounded throughout.

use std::io;
use std::time::Duration;

use hmac::{Hmac, Mac};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{SnapshotMeta, Vote};
use rand::RngCore as _;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::disk::{NodeId, TypeConfig};
use super::state::{Command, Outcome, Record};

/// The first word of a connection; the number changes with the protocol.
const PROTOCOL: &str = "howdah-raft/1";
/// Limit of a frame before the peer is known.
const GREETING_BYTES: usize = 4096;
/// Limit of a frame after that.
const FRAME_BYTES: usize = 16 << 20;

/// What one side says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Introduction {
    /// [`PROTOCOL`].
    pub(crate) protocol: String,
    /// Base path of the PostgreSQL cluster; empty = serves any (a witness).
    pub(crate) cluster: String,
    /// Identity of the cluster of nodes, once known.
    pub(crate) formation: Option<String>,
    /// Raft node id; `None`: a client, or a node that has none yet.
    pub(crate) node: Option<NodeId>,
    /// Its `self_addr`, or a word for a client.
    pub(crate) address: String,
    /// The node the caller wants to speak to, where it must be that one.
    pub(crate) wanted: Option<NodeId>,
    /// Whether it has a secret.
    pub(crate) secured: bool,
    /// Random, fresh.
    pub(crate) nonce: String,
}

/// The second and fourth message of the handshake.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Introduction(Introduction),
    Proof(String),
    Refused(String),
}

/// Who this side is and what it insists on.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    /// As said to the other side; nonce and protocol are filled in.
    pub(crate) introduction: Introduction,
    /// The shared secret.
    pub(crate) secret: Option<String>,
}

/// What one node asks another.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Raft.
    Append(AppendEntriesRequest<TypeConfig>),
    /// Raft.
    Vote(VoteRequest<NodeId>),
    /// Raft.
    Snapshot(SnapshotPart),
    /// Where are you in forming a cluster?
    Status,
    /// Make me a voter.
    Admit {
        /// Who asks.
        id: NodeId,
        /// Where it listens.
        address: String,
        /// Already passed on once.
        forwarded: bool,
    },
    /// Carry out a command.
    Propose {
        /// The command.
        command: Command,
        /// How long the caller waits, milliseconds.
        budget: u64,
        /// Already passed on once.
        forwarded: bool,
    },
    /// I lead in this term and stop: stand for election.
    Stand {
        /// The term.
        term: u64,
    },
    /// Up to which index must I have applied the log to read the latest state?
    ReadIndex,
    /// Tell when something visible has changed since `after`; `None` = at once.
    Watch {
        /// The number of the last answer.
        after: Option<u64>,
    },
    /// The records below a prefix.
    Read {
        /// The prefix.
        prefix: String,
        /// How long the caller waits, milliseconds.
        budget: u64,
    },
}

/// A part of a snapshot; `data` as base64.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotPart {
    vote: Vote<NodeId>,
    meta: SnapshotMeta<NodeId, openraft::BasicNode>,
    offset: u64,
    data: String,
    done: bool,
}

impl From<InstallSnapshotRequest<TypeConfig>> for SnapshotPart {
    fn from(request: InstallSnapshotRequest<TypeConfig>) -> Self {
        use base64::Engine as _;
        SnapshotPart {
            vote: request.vote,
            meta: request.meta,
            offset: request.offset,
            data: base64::engine::general_purpose::STANDARD.encode(&request.data),
            done: request.done,
        }
    }
}

impl TryFrom<SnapshotPart> for InstallSnapshotRequest<TypeConfig> {
    type Error = base64::DecodeError;

    fn try_from(part: SnapshotPart) -> Result<Self, Self::Error> {
        use base64::Engine as _;
        Ok(InstallSnapshotRequest {
            vote: part.vote,
            meta: part.meta,
            offset: part.offset,
            data: base64::engine::general_purpose::STANDARD.decode(&part.data)?,
            done: part.done,
        })
    }
}

/// How far a node is in forming a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// Its disk is empty.
    Empty,
    /// It has taken its place in the first formation and waits for the others.
    Founding,
    /// It is part of a cluster that has had a leader.
    Formed,
}

/// The answer to [`Request::Status`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    /// How far it is.
    pub(crate) stage: Stage,
    /// `self_addr` and `partner_addrs` of its configuration, sorted.
    pub(crate) configured: Vec<String>,
}

/// What a node answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// To `Append`.
    Append(AppendEntriesResponse<NodeId>),
    /// To `Vote`.
    Vote(VoteResponse<NodeId>),
    /// To `Snapshot`.
    Snapshot(InstallSnapshotResponse<NodeId>),
    /// To `Snapshot`: the parts do not fit together; the sender starts over.
    SnapshotMismatch(openraft::error::SnapshotMismatch),
    /// To `Status`.
    Status(Status),
    /// To `Admit`: done.
    Admitted,
    /// To `Admit`: not yet, because of this.
    Pending(String),
    /// To `Propose`.
    Outcome(Outcome),
    /// To `Stand`: the election has begun.
    Standing,
    /// To `ReadIndex`.
    Index(u64),
    /// To `Watch`: the number to wait for the next change with.
    Changes(u64),
    /// To `Read`.
    Records(Vec<(String, Record)>),
    /// This node does not lead; the request was not carried out.
    NotLeader,
    /// It could not be done, or it is unknown whether it was.
    Failed(String),
}

/// A request or reply with the number that connects them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Numbered<T> {
    /// Number of the request.
    pub(crate) number: u64,
    /// The content.
    pub(crate) body: T,
}

/// The other side refused, or is not who it should be.
fn refused(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text.into())
}

fn invalid(text: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_string())
}

fn mac(key: &[u8], parts: &[&[u8]]) -> io::Result<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(invalid)?;
    for part in parts {
        mac.update(part);
    }
    Ok(mac)
}

fn derive(key: &[u8], label: &str, parts: &[&[u8]]) -> io::Result<Vec<u8>> {
    let mut all = vec![label.as_bytes()];
    all.extend_from_slice(parts);
    Ok(mac(key, &all)?.finalize().into_bytes().to_vec())
}

/// One direction's key. The frame's number is its nonce, so that frames cannot be repeated, dropped or reordered either.
fn cipher(session: &[u8], label: &str) -> io::Result<Option<LessSafeKey>> {
    let key = derive(session, label, &[])?;
    let key = UnboundKey::new(&CHACHA20_POLY1305, &key).map_err(invalid)?;
    Ok(Some(LessSafeKey::new(key)))
}

fn nonce(count: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&count.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// The receiving half. `next` may be cancelled and called again.
pub(crate) struct FrameReader {
    stream: OwnedReadHalf,
    buffer: Vec<u8>,
    key: Option<LessSafeKey>,
    count: u64,
    limit: usize,
}

/// The sending half.
pub(crate) struct FrameWriter {
    stream: OwnedWriteHalf,
    key: Option<LessSafeKey>,
    count: u64,
}

impl FrameReader {
    /// The next frame; `None` = closed by the other side.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(4096);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn take(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(header) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*header) as usize;
        if length > self.limit {
            return Err(invalid(format!(
                "a frame of {length} bytes; not a Raft node, or another version"
            )));
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        let mut frame: Vec<u8> = self.buffer.drain(..4 + length).skip(4).collect();
        if self.buffer.is_empty() && self.buffer.capacity() > 1 << 16 {
            self.buffer = Vec::new();
        }
        if let Some(key) = &self.key {
            let length = key
                .open_in_place(nonce(self.count), Aad::empty(), &mut frame)
                .map_err(|_| invalid("a frame that was not made with the keys of this connection"))?
                .len();
            frame.truncate(length);
        }
        self.count += 1;
        Ok(Some(frame))
    }

    async fn greeting<T: DeserializeOwned>(&mut self) -> io::Result<(T, Vec<u8>)> {
        let bytes = self
            .next()
            .await?
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|_| invalid("not a Raft node, or another version"))?;
        Ok((value, bytes))
    }
}

impl FrameWriter {
    /// Sends one frame.
    pub(crate) async fn send(&mut self, payload: &[u8]) -> io::Result<()> {
        let mut frame = vec![0; 4];
        match &self.key {
            Some(key) => {
                let mut sealed = payload.to_vec();
                key.seal_in_place_append_tag(nonce(self.count), Aad::empty(), &mut sealed)
                    .map_err(invalid)?;
                frame.append(&mut sealed);
            }
            None => frame.extend_from_slice(payload),
        }
        let length = frame.len() - 4;
        if length > FRAME_BYTES {
            return Err(invalid(format!("a message of {length} bytes is too large")));
        }
        frame[..4].copy_from_slice(&u32::try_from(length).map_err(invalid)?.to_be_bytes());
        self.count += 1;
        self.stream.write_all(&frame).await
    }

    async fn greet<T: Serialize>(&mut self, value: &T) -> io::Result<Vec<u8>> {
        let bytes = serde_json::to_vec(value)?;
        self.send(&bytes).await?;
        Ok(bytes)
    }
}

/// One connection after the handshake.
pub(crate) struct Connection {
    /// Receives.
    pub(crate) reader: FrameReader,
    /// Sends.
    pub(crate) writer: FrameWriter,
    /// Who is at the other end.
    pub(crate) peer: Introduction,
}

fn split(stream: TcpStream) -> io::Result<(FrameReader, FrameWriter)> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    Ok((
        FrameReader {
            stream: reader,
            buffer: Vec::new(),
            key: None,
            count: 0,
            limit: GREETING_BYTES,
        },
        FrameWriter {
            stream: writer,
            key: None,
            count: 0,
        },
    ))
}

impl Credentials {
    fn introduction(&self) -> Introduction {
        let mut nonce = [0; 32];
        rand::rng().fill_bytes(&mut nonce);
        Introduction {
            protocol: PROTOCOL.to_owned(),
            secured: self.secret.is_some(),
            nonce: hex(&nonce),
            ..self.introduction.clone()
        }
    }

    /// Why the other side is not one of ours.
    fn objection(&self, peer: &Introduction) -> Option<String> {
        let mine = &self.introduction;
        if peer.protocol != PROTOCOL {
            return Some(format!("it speaks {:?}, not {PROTOCOL:?}", peer.protocol));
        }
        match (self.secret.is_some(), peer.secured) {
            (true, false) => {
                return Some("it has no secret (raft.password) and this side has one".to_owned());
            }
            (false, true) => {
                return Some("it has a secret (raft.password) and this side has none".to_owned());
            }
            _ => {}
        }
        if !mine.cluster.is_empty() && !peer.cluster.is_empty() && mine.cluster != peer.cluster {
            return Some(format!(
                "it belongs to another cluster, {:?}; this is {:?}",
                peer.cluster, mine.cluster
            ));
        }
        match (&mine.formation, &peer.formation) {
            (Some(a), Some(b)) if a != b => Some(
                "it belongs to another Raft cluster (formed separately); one of the two data directories is stale"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// The caller's side of the handshake. `wanted`: the node that must answer.
    ///
    /// # Errors
    /// `PermissionDenied` when one side refuses the other; the text says which and why.
    pub(crate) async fn connect(
        &self,
        stream: TcpStream,
        wanted: Option<NodeId>,
    ) -> io::Result<Connection> {
        let (mut reader, mut writer) = split(stream)?;
        let mut mine = self.introduction();
        mine.wanted = wanted;
        let first = writer.greet(&mine).await?;
        let (answer, second) = reader.greeting::<Answer>().await?;
        let peer = match answer {
            Answer::Introduction(peer) => peer,
            Answer::Refused(why) => {
                return Err(refused(format!(
                    "it refuses this node, saying: {}",
                    printable(&why)
                )));
            }
            Answer::Proof(_) => return Err(invalid("out of order")),
        };
        if let Some(why) = self.objection(&peer) {
            return Err(refused(why));
        }
        if let Some(wanted) = wanted
            && peer.node != Some(wanted)
        {
            return Err(refused(format!(
                "another node answers at this address (expected id {wanted:x})"
            )));
        }
        if let Some(secret) = &self.secret {
            let session = derive(secret.as_bytes(), "session", &[&first, &second])?;
            writer
                .greet(&hex(&derive(&session, "caller's proof", &[])?))
                .await?;
            match reader.greeting::<Answer>().await?.0 {
                Answer::Proof(proof) => check(&session, "callee's proof", &proof)?,
                Answer::Refused(why) => {
                    return Err(refused(format!(
                        "it refuses this node, saying: {}",
                        printable(&why)
                    )));
                }
                Answer::Introduction(_) => return Err(invalid("out of order")),
            }
            (writer.key, writer.count) = (cipher(&session, "caller")?, 0);
            (reader.key, reader.count) = (cipher(&session, "callee")?, 0);
        }
        reader.limit = FRAME_BYTES;
        Ok(Connection {
            reader,
            writer,
            peer,
        })
    }

    /// The other side of the handshake.
    ///
    /// # Errors
    /// As [`Credentials::connect`]; the caller has been told why.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<Connection> {
        let (mut reader, mut writer) = split(stream)?;
        let (peer, first) = reader.greeting::<Introduction>().await?;
        let mine = self.introduction();
        let mut why = self.objection(&peer);
        if why.is_none() && peer.wanted.is_some() && peer.wanted != mine.node {
            why = Some("it looks for another node at this address".to_owned());
        }
        if let Some(why) = why {
            // The text speaks about the other side; for its reader "it" is this node's view of it.
            writer.greet(&Answer::Refused(why.clone())).await?;
            return Err(refused(format!("{:?}: {why}", printable(&peer.address))));
        }
        let second = writer.greet(&Answer::Introduction(mine)).await?;
        if let Some(secret) = &self.secret {
            let session = derive(secret.as_bytes(), "session", &[&first, &second])?;
            let (proof, _) = reader.greeting::<String>().await?;
            if let Err(error) = check(&session, "caller's proof", &proof) {
                let told = Answer::Refused("its secret (raft.password) is another one".to_owned());
                writer.greet(&told).await?;
                return Err(refused(format!("{:?}: {error}", printable(&peer.address))));
            }
            writer
                .greet(&Answer::Proof(hex(&derive(
                    &session,
                    "callee's proof",
                    &[],
                )?)))
                .await?;
            (writer.key, writer.count) = (cipher(&session, "callee")?, 0);
            (reader.key, reader.count) = (cipher(&session, "caller")?, 0);
        }
        reader.limit = FRAME_BYTES;
        Ok(Connection {
            reader,
            writer,
            peer,
        })
    }
}

fn check(session: &[u8], label: &str, proof: &str) -> io::Result<()> {
    let proof = unhex(proof).ok_or_else(|| invalid("not a proof"))?;
    mac(session, &[label.as_bytes()])?
        .verify_slice(&proof)
        .map_err(|_| refused("its secret (raft.password) is another one"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    digits?
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(high * 16 + low).ok(),
            _ => None,
        })
        .collect()
}

/// Text from the other side, fit for a log line.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Connects to `host:port`; the name is resolved anew each time, every address is tried.
///
/// # Errors
/// The last address's error, or that the name has none.
pub(crate) async fn dial(address: &str, limit: Duration) -> io::Result<TcpStream> {
    let attempt = async {
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
        for resolved in tokio::net::lookup_host(address).await? {
            match TcpStream::connect(resolved).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    tokio::time::timeout(limit, attempt)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn credentials(cluster: &str, secret: Option<&str>) -> Credentials {
        Credentials {
            introduction: Introduction {
                cluster: cluster.into(),
                node: Some(7),
                address: "me:1".into(),
                ..Introduction::default()
            },
            secret: secret.map(Into::into),
        }
    }

    async fn meet(
        caller: Credentials,
        callee: Credentials,
        wanted: Option<NodeId>,
    ) -> (io::Result<Connection>, io::Result<Connection>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let accept = async { callee.accept(listener.accept().await.unwrap().0).await };
        let connect = async {
            let stream = dial(&address, Duration::from_secs(5)).await.unwrap();
            caller.connect(stream, wanted).await
        };
        tokio::join!(connect, accept)
    }

    #[tokio::test]
    async fn frames_travel_both_ways() {
        for secret in [None, Some("s3cret")] {
            let (caller, callee) = meet(
                credentials("/a", secret),
                credentials("/a", secret),
                Some(7),
            )
            .await;
            let (mut caller, mut callee) = (caller.unwrap(), callee.unwrap());
            for text in ["one", "two"] {
                caller.writer.send(text.as_bytes()).await.unwrap();
                assert_eq!(
                    callee.reader.next().await.unwrap().unwrap(),
                    text.as_bytes()
                );
            }
            callee.writer.send(b"three").await.unwrap();
            assert_eq!(caller.reader.next().await.unwrap().unwrap(), b"three");
            drop(callee);
            assert!(caller.reader.next().await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn strangers_are_refused_on_both_sides_with_the_reason() {
        let plain = |cluster: &str| credentials(cluster, None);
        let stale = |formation: &str| {
            let mut it = credentials("/a", None);
            it.introduction.formation = Some(formation.into());
            it
        };
        let cases = [
            (
                credentials("/a", Some("x")),
                credentials("/a", Some("y")),
                None,
                "another one",
            ),
            (
                credentials("/a", Some("x")),
                plain("/a"),
                None,
                "has a secret",
            ),
            (
                plain("/a"),
                credentials("/a", Some("x")),
                None,
                "has no secret",
            ),
            (plain("/a"), plain("/b"), None, "another cluster"),
            (stale("1"), stale("2"), None, "another Raft cluster"),
            (plain("/a"), plain("/a"), Some(8), "another node"),
        ];
        for (caller, callee, wanted, reason) in cases {
            let (caller, callee) = meet(caller, callee, wanted).await;
            for side in [caller, callee] {
                let error = side.err().unwrap();
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
                assert!(error.to_string().contains(reason), "{error} / {reason}");
            }
        }
    }

    #[tokio::test]
    async fn a_witness_serves_any_cluster() {
        let (caller, callee) = meet(credentials("/a", None), credentials("", None), None).await;
        assert!(caller.is_ok() && callee.is_ok());
    }

    #[tokio::test]
    async fn changed_and_repeated_frames_are_noticed() {
        let secret = Some("s3cret");
        let (caller, callee) = meet(credentials("", secret), credentials("", secret), None).await;
        let (mut caller, mut callee) = (caller.unwrap(), callee.unwrap());
        caller.writer.send(b"one").await.unwrap();
        callee.reader.next().await.unwrap();
        caller.writer.count -= 1;
        caller.writer.send(b"one").await.unwrap();
        let error = callee.reader.next().await.unwrap_err();
        assert!(error.to_string().contains("keys of this"), "{error}");
    }

    #[tokio::test]
    async fn garbage_is_refused_before_it_takes_memory() {
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0, 0, 2, b'h', b'i']] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut stream = TcpStream::connect(listener.local_addr().unwrap())
                .await
                .unwrap();
            stream.write_all(garbage).await.unwrap();
            let accepted = credentials("", None)
                .accept(listener.accept().await.unwrap().0)
                .await;
            assert_eq!(accepted.err().unwrap().kind(), io::ErrorKind::InvalidData);
        }
    }
}
