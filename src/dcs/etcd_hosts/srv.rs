//! Finding etcd through DNS service records (`srv`, `srv_suffix`; spec/dcs.md §5.2): one question, one answer, over UDP.
//!
//! Not a resolver: no recursion of its own, no cache, no TCP. It asks the name servers of the system in their order. Records of
//! peers (`_etcd-server`) are not followed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Srv {
    /// The domain, as in `_etcd-client._tcp.<domain>`.
    pub(crate) domain: String,
    /// Appended to the service's name after a dash.
    pub(crate) suffix: Option<String>,
}

/// The services in the order in which they are tried, and what their targets speak.
const SERVICES: [(&str, &str); 4] = [
    ("_etcd-client-ssl", "https"),
    ("_etcd-client", "http"),
    ("_etcd-ssl", "https"),
    ("_etcd", "http"),
];

/// One name server gets this long for one question.
const PATIENCE: Duration = Duration::from_secs(1);

/// The URLs behind the first service that has any; empty when none has, or nobody answers.
pub(crate) async fn urls(srv: &Srv) -> Vec<String> {
    let servers = name_servers(
        &tokio::fs::read_to_string("/etc/resolv.conf")
            .await
            .unwrap_or_default(),
    );
    urls_from(srv, &servers).await
}

async fn urls_from(srv: &Srv, servers: &[SocketAddr]) -> Vec<String> {
    for (service, scheme) in SERVICES {
        let suffix = srv.suffix.as_deref().filter(|suffix| !suffix.is_empty());
        let suffix = suffix
            .map(|suffix| format!("-{suffix}"))
            .unwrap_or_default();
        let name = format!("{service}{suffix}._tcp.{}", srv.domain);
        for server in servers {
            match tokio::time::timeout(PATIENCE, ask(*server, &name)).await {
                Ok(Ok(mut targets)) => {
                    targets.sort_unstable();
                    if !targets.is_empty() {
                        return targets
                            .iter()
                            .map(|target| format!("{scheme}://{}:{}", target.host, target.port))
                            .collect();
                    }
                    // A server that knows of nothing has answered; the others know no more.
                    break;
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, %server, name, "no answer to a service lookup")
                }
                Err(_) => tracing::debug!(%server, name, "no answer to a service lookup in time"),
            }
        }
    }
    Vec::new()
}

fn name_servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let found: Vec<SocketAddr> = resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .collect();
    if found.is_empty() {
        return vec![SocketAddr::from(([127, 0, 0, 1], 53))];
    }
    found
}

/// One record; the order is that of preference.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    priority: u16,
    /// Larger is preferred.
    weight: std::cmp::Reverse<u16>,
    host: String,
    port: u16,
}

async fn ask(server: SocketAddr, name: &str) -> io::Result<Vec<Target>> {
    let any: IpAddr = if server.is_ipv4() {
        [0; 4].into()
    } else {
        [0_u16; 8].into()
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    let id: u16 = rand::random();
    let question = question(id, name).ok_or_else(|| io::Error::other("not a domain name"))?;
    socket.send(&question).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = &buffer[..length];
        // Anything but the answer to this question is somebody's guess.
        if answer.get(..2) == Some(&id.to_be_bytes())
            && answer.get(2).is_some_and(|flags| flags & 0x80 != 0)
        {
            return targets(answer).ok_or_else(|| io::Error::other("malformed answer"));
        }
    }
}

const SRV_RECORD: u16 = 33;

fn question(id: u16, name: &str) -> Option<Vec<u8>> {
    let mut message = id.to_be_bytes().to_vec();
    // Recursion desired; one question.
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(
            u8::try_from(label.len())
                .ok()
                .filter(|length| *length < 64)?,
        );
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(SRV_RECORD.to_be_bytes());
    message.extend([0, 1]);
    Some(message)
}

fn targets(message: &[u8]) -> Option<Vec<Target>> {
    let number = |at: usize| {
        Some(u16::from_be_bytes([
            *message.get(at)?,
            *message.get(at + 1)?,
        ]))
    };
    let (questions, answers) = (number(4)?, number(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = name(message, at)?.1 + 4;
    }
    let mut found = Vec::new();
    for _ in 0..answers {
        let record = name(message, at)?.1;
        let kind = number(record)?;
        let length = usize::from(number(record + 8)?);
        let data = record + 10;
        if kind == SRV_RECORD {
            found.push(Target {
                priority: number(data)?,
                weight: std::cmp::Reverse(number(data + 2)?),
                port: number(data + 4)?,
                host: name(message, data + 6)?.0,
            });
        }
        at = data + length;
    }
    // A single dot as target means that the service does not exist there.
    found.retain(|target| !target.host.is_empty());
    Some(found)
}

/// The name at an offset, and where what follows it begins.
fn name(message: &[u8], start: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = start;
    let mut end = None;
    // Each pointer must lead somewhere, and a chain of them must end.
    for _ in 0..128 {
        let length = *message.get(at)?;
        match length >> 6 {
            0 if length == 0 => {
                return Some((labels.join("."), end.unwrap_or(at + 1)));
            }
            0 => {
                let label = message.get(at + 1..at + 1 + usize::from(length))?;
                labels.push(String::from_utf8_lossy(label).into_owned());
                at += 1 + usize::from(length);
            }
            3 => {
                end = end.or(Some(at + 2));
                at = usize::from(u16::from_be_bytes([length & 0x3f, *message.get(at + 1)?]));
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers every question for `known` with two records whose names are compressed, others with none.
    async fn server(known: &'static str) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let mut answer = buffer[..length].to_vec();
                let asked = name(&answer, 12).unwrap().0;
                answer[2] |= 0x80;
                if asked == known {
                    answer[7] = 2;
                    for (priority, port, host) in [(2_u8, 1_u8, b"far"), (1, 2, b"one")] {
                        answer.extend([0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 9, 0, 12]);
                        answer.extend([0, priority, 0, 5, 0, port, 3]);
                        answer.extend(host);
                        // "example.org" begins behind "_etcd-client-x" and "_tcp" of the question.
                        answer.extend([0xc0, 12 + 15 + 5]);
                    }
                }
                socket.send_to(b"nonsense", from).await.unwrap();
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn the_first_service_with_targets_wins() {
        let address = server("_etcd-client-x._tcp.example.org").await;
        let srv = Srv {
            domain: "example.org".to_owned(),
            suffix: Some("x".to_owned()),
        };
        let urls = urls_from(&srv, &[address]).await;
        assert_eq!(
            urls,
            ["http://one.example.org:2", "http://far.example.org:1"]
        );
        let other = Srv {
            suffix: None,
            ..srv
        };
        assert!(urls_from(&other, &[address]).await.is_empty());
    }

    #[test]
    fn malformed_answers_are_nothing() {
        let mut endless = vec![0, 0, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 0];
        endless.extend([0xc0, 12]);
        for message in [
            &[][..],
            &[0; 7],
            &endless,
            &[0, 0, 0x80, 0, 0, 0, 0, 9, 0, 0, 0, 0],
        ] {
            assert_eq!(targets(message), None);
        }
        let long = "x".repeat(64);
        assert_eq!(question(1, &long), None);
    }

    #[test]
    fn name_servers_of_the_system() {
        let text =
            "# comment\nnameserver 10.0.0.2\nsearch x\nnameserver fd00::1\nnameserver nonsense\n";
        let found = name_servers(text);
        assert_eq!(
            found,
            [
                "10.0.0.2:53".parse().unwrap(),
                "[fd00::1]:53".parse().unwrap()
            ]
        );
        assert_eq!(name_servers(""), ["127.0.0.1:53".parse().unwrap()]);
    }
}
