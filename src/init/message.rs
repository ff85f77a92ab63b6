//! What the agent tells init over the guard's pipe: one line of text each, far below PIPE_BUF, so that no line is ever torn.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::process::ProcessId;
use crate::types::Moment;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// PostgreSQL may be writable until this moment; by then it is stopped or the promise has been renewed.
    Promise(Moment),
    /// This node is not the primary any more: nothing to guard.
    Release,
    /// The postmaster that the promise is about.
    Postmaster(ProcessId),
    /// Where to look for a postmaster that the agent had no time to announce.
    DataDir(PathBuf),
    /// The watchdog device that the agent has armed; `None`: none any more.
    Watchdog(Option<PathBuf>),
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Promise(deadline) => write!(f, "promise {}", deadline.0.as_nanos()),
            Message::Release => f.write_str("release"),
            Message::Postmaster(process) => {
                write!(f, "postmaster {} {}", process.pid, process.start)
            }
            Message::DataDir(path) => write!(f, "data {}", path.display()),
            Message::Watchdog(Some(path)) => write!(f, "watchdog {}", path.display()),
            Message::Watchdog(None) => f.write_str("watchdog"),
        }
    }
}

impl Message {
    /// `None` for anything else; the sender is our own binary, so that is a defect worth a line in the log, no more.
    pub(super) fn parse(line: &str) -> Option<Message> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "promise" => Some(Message::Promise(Moment(Duration::from_nanos(
                rest.parse().ok()?,
            )))),
            "release" => Some(Message::Release),
            "postmaster" => {
                let (pid, start) = rest.split_once(' ')?;
                let pid = pid.parse().ok().filter(|pid| *pid > 0)?;
                Some(Message::Postmaster(ProcessId {
                    pid,
                    start: start.parse().ok()?,
                }))
            }
            "watchdog" => Some(Message::Watchdog(
                (!rest.is_empty()).then(|| PathBuf::from(rest)),
            )),
            "data" => Some(Message::DataDir(PathBuf::from(rest))),
            _ => None,
        }
    }
}

/// Turns the bytes of a pipe into messages; keeps an unfinished line for the next call.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// The complete lines in what was left over and `bytes`.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(bytes);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let unfinished = self.rest.split_off(end + 1);
        let complete = std::mem::replace(&mut self.rest, unfinished);
        String::from_utf8_lossy(&complete)
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_reads_back() {
        for message in [
            Message::Promise(Moment(Duration::new(77, 5))),
            Message::Release,
            Message::Postmaster(ProcessId { pid: 12, start: 34 }),
            Message::DataDir(PathBuf::from("/var/lib/my data")),
            Message::Watchdog(Some(PathBuf::from("/dev/watchdog"))),
            Message::Watchdog(None),
        ] {
            assert_eq!(Message::parse(&message.to_string()), Some(message));
        }
        for wrong in [
            "",
            "promise",
            "promise x",
            "postmaster 0 1",
            "postmaster -5 1",
            "postmaster 5",
            "hello",
        ] {
            assert_eq!(Message::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_line_may_arrive_in_pieces() {
        let mut lines = Lines::default();
        assert!(lines.feed(b"rel").is_empty());
        assert_eq!(
            lines.feed(b"ease\npromise 5\npro"),
            ["release", "promise 5"]
        );
        assert_eq!(lines.feed(b"mise 6\n"), ["promise 6"]);
    }
}
