//! One connection to one ZooKeeper server on one session: frames in, frames out.
//!
//! It never pings by itself: what keeps a session alive is a decision of the caller.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::seq::SliceRandom as _;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::proto::{Code, EVENT, Header, Reply, Request, Session, header};
use crate::clock;
use crate::types::Moment;

/// A frame that claims to be longer is no ZooKeeper's (its own limit is one megabyte).
const FRAME_LIMIT: usize = 8 << 20;

trait Wire: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Wire for T {}

/// Where the servers are and how to talk to them.
pub(super) struct Servers {
    addresses: Mutex<Vec<String>>,
    tls: Option<Arc<ClientConfig>>,
    auth: Vec<(String, String)>,
    /// Why the last attempt to connect failed; empty after one that did not.
    trouble: Mutex<String>,
}

/// Why a connection did not come about.
#[derive(Debug)]
pub(super) enum NotConnected {
    /// The servers say that the session is over.
    Expired,
    /// No server answered; the text names the last one.
    Unreachable(String),
}

/// An answered request: the change it saw or made, and what it says.
pub(super) type Answered = (i64, Result<Reply, Code>);

impl Servers {
    pub(super) fn new(
        mut addresses: Vec<String>,
        tls: Option<Arc<ClientConfig>>,
        auth: Vec<(String, String)>,
    ) -> Self {
        // Not everybody on the first server.
        addresses.shuffle(&mut rand::rng());
        Servers {
            addresses: Mutex::new(addresses),
            tls,
            auth,
            trouble: Mutex::default(),
        }
    }

    /// Why the last attempt to connect failed; `None` after one that did not.
    pub(super) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        (!trouble.is_empty()).then(|| trouble.clone())
    }

    fn note(&self, trouble: &str) {
        trouble.clone_into(&mut self.trouble.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The list, for messages.
    pub(super) fn describe(&self) -> String {
        let mut addresses = self.addresses();
        addresses.sort();
        addresses.join(",")
    }

    fn addresses(&self) -> Vec<String> {
        let addresses = self.addresses.lock();
        addresses.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A new list; connections that stand go on.
    pub(super) fn replace(&self, addresses: Vec<String>) {
        *self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// The next attempt begins with another server.
    fn rotate(&self, failed: &str) {
        let mut addresses = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if addresses.first().is_some_and(|first| first == failed) {
            addresses.rotate_left(1);
        }
    }

    /// Connects on `session`, server after server, again and again until `deadline`.
    pub(super) async fn connect(
        &self,
        session: &Session,
        seen: i64,
        deadline: Moment,
    ) -> Result<Connection, NotConnected> {
        let mut last = "no server is configured".to_owned();
        loop {
            let addresses = self.addresses();
            for address in &addresses {
                let left = clock::now().until(deadline);
                if left.is_zero() {
                    return Err(NotConnected::Unreachable(last));
                }
                let share = left / u32::try_from(addresses.len()).unwrap_or(1).max(1);
                let patience = share.max(Duration::from_secs(1)).min(left);
                let attempt = self.open(address, session, seen);
                match tokio::time::timeout(patience, attempt).await {
                    Ok(Ok(connection)) => {
                        self.note("");
                        return Ok(connection);
                    }
                    Ok(Err(NotConnected::Expired)) => return Err(NotConnected::Expired),
                    Ok(Err(NotConnected::Unreachable(detail))) => {
                        last = format!("{address}: {detail}");
                    }
                    Err(_) => last = format!("{address}: no answer in time"),
                }
                self.note(&last);
                self.rotate(address);
            }
            if clock::now().until(deadline) < Duration::from_millis(100) {
                return Err(NotConnected::Unreachable(last));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn open(
        &self,
        address: &str,
        session: &Session,
        seen: i64,
    ) -> Result<Connection, NotConnected> {
        let wire = self
            .wire(address)
            .await
            .map_err(|error| NotConnected::Unreachable(error.to_string()))?;
        let mut connection = Connection {
            wire,
            address: address.to_owned(),
            session: session.clone(),
            next: 1,
            read: Vec::new(),
            fired: false,
        };
        let lost = |lost: Lost| NotConnected::Unreachable(lost.0);
        connection
            .write(&session.connect(seen))
            .await
            .map_err(lost)?;
        let answer = connection.frame().await.map_err(lost)?;
        connection.session = match Session::connected(&answer) {
            Some(Some(session)) => session,
            Some(None) => return Err(NotConnected::Expired),
            None => {
                return Err(NotConnected::Unreachable(
                    "not the answer of a ZooKeeper server".to_owned(),
                ));
            }
        };
        for (scheme, credential) in &self.auth {
            let auth = Request::Auth {
                scheme: scheme.clone(),
                credential: credential.clone(),
            };
            let answers = connection.exchange(&[auth]).await.map_err(lost)?;
            if let Some((_, Err(code))) = answers.first() {
                return Err(NotConnected::Unreachable(format!(
                    "the credential for scheme {scheme:?} is not accepted ({code:?})"
                )));
            }
        }
        Ok(connection)
    }

    async fn wire(&self, address: &str) -> std::io::Result<Pin<Box<dyn Wire>>> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(Box::pin(tcp));
        };
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))?;
        let tls = TlsConnector::from(Arc::clone(tls))
            .connect(name, tcp)
            .await?;
        Ok(Box::pin(tls))
    }
}

/// The connection broke; what was asked may have been carried out.
#[derive(Debug)]
pub(super) struct Lost(pub(super) String);

/// An open connection.
pub(super) struct Connection {
    wire: Pin<Box<dyn Wire>>,
    address: String,
    session: Session,
    next: i32,
    /// Bytes that are no whole frame yet; survives a read that is given up.
    read: Vec<u8>,
    fired: bool,
}

impl Connection {
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Whether a watch has fired since this was last asked.
    pub(super) fn take_fired(&mut self) -> bool {
        std::mem::take(&mut self.fired)
    }

    /// Sends all requests at once and waits for their answers, which come in order.
    pub(super) async fn exchange(&mut self, requests: &[Request]) -> Result<Vec<Answered>, Lost> {
        let mut numbers = Vec::with_capacity(requests.len());
        let mut bytes = Vec::new();
        for request in requests {
            let number = request.number(self.next);
            self.next = self.next.checked_add(1).unwrap_or(1);
            bytes.extend(request.frame(number));
            numbers.push(number);
        }
        self.write(&bytes).await?;
        let mut answers = Vec::with_capacity(requests.len());
        while let (Some(request), Some(number)) =
            (requests.get(answers.len()), numbers.get(answers.len()))
        {
            let frame = self.frame().await?;
            let Some((head, body)) = header(&frame) else {
                return Err(Lost("a truncated answer".to_owned()));
            };
            match head {
                Header { number: EVENT, .. } => self.fired = true,
                Header { number: got, .. } if got != *number => {
                    return Err(Lost("answers out of order".to_owned()));
                }
                Header {
                    failure: Some(code),
                    zxid,
                    ..
                } => answers.push((zxid, Err(code))),
                Header { zxid, .. } => {
                    let answer = request.answer(body);
                    let answer = answer.ok_or_else(|| Lost("a truncated answer".to_owned()))?;
                    answers.push((zxid, answer));
                }
            }
        }
        Ok(answers)
    }

    /// Waits for a message that nobody asked for. May be given up at any time.
    pub(super) async fn listen(&mut self) -> Result<(), Lost> {
        let frame = self.frame().await?;
        match header(&frame) {
            Some((Header { number: EVENT, .. }, _)) => {
                self.fired = true;
                Ok(())
            }
            _ => Err(Lost("an answer to no question".to_owned())),
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        let written = self.wire.write_all(bytes).await;
        written.map_err(|error| Lost(error.to_string()))?;
        self.wire
            .flush()
            .await
            .map_err(|error| Lost(error.to_string()))
    }

    /// The next whole frame, without its length.
    async fn frame(&mut self) -> Result<Vec<u8>, Lost> {
        loop {
            if let Some((length, rest)) = self.read.split_first_chunk::<4>() {
                let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
                if length > FRAME_LIMIT {
                    return Err(Lost("not the answer of a ZooKeeper server".to_owned()));
                }
                if let Some(frame) = rest.get(..length) {
                    let frame = frame.to_vec();
                    self.read.drain(..length + 4);
                    return Ok(frame);
                }
            }
            let mut buffer = [0; 4096];
            match self.wire.read(&mut buffer).await {
                Ok(0) => return Err(Lost("the server has closed the connection".to_owned())),
                Ok(count) => self.read.extend_from_slice(&buffer[..count]),
                Err(error) => return Err(Lost(error.to_string())),
            }
        }
    }
}
