//! ZooKeeper's records as bytes: the handful of requests this program sends and their answers. No I/O.
//!
//! The layout is ZooKeeper's `zookeeper.jute`: big-endian integers, texts and byte strings with a length before them.

/// What a request failed with, as far as it matters here (`KeeperException.Code`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    NoNode,
    NodeExists,
    BadVersion,
    NotEmpty,
    SessionExpired,
    /// The session has moved to another connection.
    SessionMoved,
    NoAuth,
    AuthFailed,
    Other(i32),
}

impl Code {
    fn of(number: i32) -> Option<Code> {
        Some(match number {
            0 => return None,
            -101 => Code::NoNode,
            -102 => Code::NoAuth,
            -103 => Code::BadVersion,
            -110 => Code::NodeExists,
            -111 => Code::NotEmpty,
            -112 => Code::SessionExpired,
            -115 => Code::AuthFailed,
            -118 => Code::SessionMoved,
            other => Code::Other(other),
        })
    }
}

/// A step of a transaction that was rolled back because of another step.
const ROLLED_BACK: i32 = -2;

/// Any version.
pub(super) const ANY: i32 = -1;

/// Who may do what with a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acl {
    pub(super) permissions: i32,
    pub(super) scheme: String,
    pub(super) id: String,
}

impl Acl {
    /// Everything for everybody.
    pub(super) fn open() -> Vec<Acl> {
        vec![Acl {
            permissions: 31,
            scheme: "world".to_owned(),
            id: "anyone".to_owned(),
        }]
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Create {
        path: String,
        data: String,
        ephemeral: bool,
        acl: Vec<Acl>,
    },
    Delete {
        path: String,
        version: i32,
    },
    /// A watch of it also fires when the node comes into being.
    Exists {
        path: String,
        watch: bool,
    },
    Get {
        path: String,
        watch: bool,
    },
    Set {
        path: String,
        data: String,
        version: i32,
    },
    Children {
        path: String,
        watch: bool,
    },
    /// Makes the server catch up with its leader before it answers what comes after.
    Sync {
        path: String,
    },
    /// All or nothing.
    Multi(Vec<Request>),
    Ping,
    Auth {
        scheme: String,
        credential: String,
    },
}

/// What is known of a node besides its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stat {
    pub(super) version: i32,
    /// The session it ends with; 0 for none.
    pub(super) owner: i64,
}

/// A good answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Data(String, Stat),
    Stat(Stat),
    Children(Vec<String>),
    Nothing,
}

impl Request {
    fn opcode(&self) -> i32 {
        match self {
            Request::Create { .. } => 1,
            Request::Delete { .. } => 2,
            Request::Exists { .. } => 3,
            Request::Get { .. } => 4,
            Request::Set { .. } => 5,
            Request::Children { .. } => 8,
            Request::Sync { .. } => 9,
            Request::Ping => 11,
            Request::Multi(_) => 14,
            Request::Auth { .. } => 100,
        }
    }

    /// The number by which the answer is recognised; some requests have one of their own.
    pub(super) fn number(&self, next: i32) -> i32 {
        match self {
            Request::Ping => -2,
            Request::Auth { .. } => -4,
            _ => next,
        }
    }

    /// The whole frame.
    pub(super) fn frame(&self, number: i32) -> Vec<u8> {
        let mut out = Out::default();
        out.int(number);
        out.int(self.opcode());
        self.body(&mut out);
        out.frame()
    }

    fn body(&self, out: &mut Out) {
        match self {
            Request::Create {
                path,
                data,
                ephemeral,
                acl,
            } => {
                out.text(path);
                out.text(data);
                out.int(i32::try_from(acl.len()).unwrap_or(0));
                for entry in acl {
                    out.int(entry.permissions);
                    out.text(&entry.scheme);
                    out.text(&entry.id);
                }
                out.int(i32::from(*ephemeral));
            }
            Request::Delete { path, version } => {
                out.text(path);
                out.int(*version);
            }
            Request::Exists { path, watch }
            | Request::Get { path, watch }
            | Request::Children { path, watch } => {
                out.text(path);
                out.flag(*watch);
            }
            Request::Set {
                path,
                data,
                version,
            } => {
                out.text(path);
                out.text(data);
                out.int(*version);
            }
            Request::Sync { path } => out.text(path),
            Request::Multi(steps) => {
                for step in steps {
                    out.int(step.opcode());
                    out.flag(false);
                    out.int(-1);
                    step.body(out);
                }
                out.int(-1);
                out.flag(true);
                out.int(-1);
            }
            Request::Auth { scheme, credential } => {
                out.int(0);
                out.text(scheme);
                out.text(credential);
            }
            Request::Ping => {}
        }
    }

    /// Reads the body of this request's good answer.
    pub(super) fn answer(&self, bytes: &[u8]) -> Option<Result<Reply, Code>> {
        let mut input = In(bytes);
        Some(Ok(match self {
            Request::Get { .. } => {
                let data = input.text()?;
                Reply::Data(data, input.stat()?)
            }
            Request::Set { .. } | Request::Exists { .. } => Reply::Stat(input.stat()?),
            Request::Children { .. } => {
                let count = input.int()?;
                let names = (0..count.max(0)).map(|_| input.text());
                Reply::Children(names.collect::<Option<_>>()?)
            }
            Request::Multi(_) => return input.steps(),
            _ => Reply::Nothing,
        }))
    }
}

/// The beginning of every answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) number: i32,
    /// The change up to which the answering server is complete, or the change that was made.
    pub(super) zxid: i64,
    pub(super) failure: Option<Code>,
}

/// The number of messages nobody asked for: a watch has fired.
pub(super) const EVENT: i32 = -1;

/// Splits a frame's bytes into header and body.
pub(super) fn header(bytes: &[u8]) -> Option<(Header, &[u8])> {
    let mut input = In(bytes);
    let header = Header {
        number: input.int()?,
        zxid: input.long()?,
        failure: Code::of(input.int()?),
    };
    Some((header, input.0))
}

/// A session as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) id: i64,
    pub(super) password: Vec<u8>,
    /// Milliseconds, as agreed.
    pub(super) timeout: i32,
}

impl Session {
    /// What asks for a new session of this many milliseconds.
    pub(super) fn fresh(timeout: i32) -> Self {
        Session {
            id: 0,
            password: vec![0; 16],
            timeout,
        }
    }

    /// The frame that opens a connection on this session; `seen`: the newest change this client knows of.
    pub(super) fn connect(&self, seen: i64) -> Vec<u8> {
        let mut out = Out::default();
        out.int(0);
        out.long(seen);
        out.int(self.timeout);
        out.long(self.id);
        out.bytes(&self.password);
        out.flag(false);
        out.frame()
    }

    /// The answer to [`Session::connect`]; `None` inside: the session has expired.
    pub(super) fn connected(bytes: &[u8]) -> Option<Option<Session>> {
        let mut input = In(bytes);
        input.int()?;
        let timeout = input.int()?;
        let id = input.long()?;
        let password = input.bytes()?.to_vec();
        Some((timeout > 0 && id != 0).then_some(Session {
            id,
            password,
            timeout,
        }))
    }
}

#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn int(&mut self, value: i32) {
        self.0.extend(value.to_be_bytes());
    }

    fn long(&mut self, value: i64) {
        self.0.extend(value.to_be_bytes());
    }

    fn flag(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    fn bytes(&mut self, value: &[u8]) {
        self.int(i32::try_from(value.len()).unwrap_or(i32::MAX));
        self.0.extend(value);
    }

    fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    fn frame(self) -> Vec<u8> {
        let mut frame = Out(Vec::with_capacity(self.0.len() + 4));
        frame.bytes(&self.0);
        frame.0
    }
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn int(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn long(&mut self) -> Option<i64> {
        Some(i64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    /// A missing byte string counts as an empty one.
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.int()?;
        self.take(usize::try_from(length).unwrap_or(0))
    }

    fn text(&mut self) -> Option<String> {
        Some(String::from_utf8_lossy(self.bytes()?).into_owned())
    }

    fn stat(&mut self) -> Option<Stat> {
        // czxid, mzxid, ctime, mtime
        self.take(32)?;
        let version = self.int()?;
        // cversion, aversion
        self.take(8)?;
        let owner = self.long()?;
        // dataLength, numChildren, pzxid
        self.take(16)?;
        Some(Stat { version, owner })
    }

    /// The answers to the steps of a transaction; one that failed stands for all.
    fn steps(&mut self) -> Option<Result<Reply, Code>> {
        let mut failure = None;
        loop {
            let kind = self.int()?;
            let done = self.take(1)? != [0];
            self.int()?;
            match kind {
                _ if done => break,
                -1 => {
                    let number = self.int()?;
                    if number != ROLLED_BACK {
                        failure = failure.or(Code::of(number));
                    }
                }
                1 => {
                    self.bytes()?;
                }
                5 => {
                    self.stat()?;
                }
                _ => {}
            }
        }
        Some(match failure {
            Some(code) => Err(code),
            None => Ok(Reply::Nothing),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_framed() {
        let request = Request::Delete {
            path: "/a".to_owned(),
            version: 3,
        };
        let bytes = [
            0, 0, 0, 18, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0, 2, b'/', b'a', 0, 0, 0, 3,
        ];
        assert_eq!(request.frame(7), bytes);
        assert_eq!((Request::Ping.number(7), request.number(7)), (-2, 7));
    }

    #[test]
    fn a_failed_transaction_tells_the_step_that_failed() {
        let mut out = Out::default();
        for error in [0, -110, ROLLED_BACK] {
            out.int(-1);
            out.flag(false);
            out.int(error);
            out.int(error);
        }
        out.int(-1);
        out.flag(true);
        out.int(-1);
        let answer = Request::Multi(Vec::new()).answer(&out.0);
        assert_eq!(answer, Some(Err(Code::NodeExists)));
    }

    #[test]
    fn an_expired_session_is_told() {
        let mut out = Out::default();
        out.int(0);
        out.int(0);
        out.long(0);
        out.bytes(&[0; 16]);
        assert_eq!(Session::connected(&out.0), Some(None));
        assert_eq!(Session::connected(&out.0[..10]), None);
    }

    #[test]
    fn truncated_answers_are_no_answers() {
        let request = Request::Get {
            path: "/a".to_owned(),
            watch: false,
        };
        assert_eq!(request.answer(&[0, 0, 0, 9, 1]), None);
        assert_eq!(header(&[0; 15]), None);
    }
}
