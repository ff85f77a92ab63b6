//! `host[:port]` as configurations spell it, and PostgreSQL's `addr[,addr…][:port]`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address: {reason}")]
pub struct BadAddress {
    text: String,
    reason: &'static str,
}

/// A host and perhaps a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Without brackets; may be empty or `*` in a listen address.
    pub host: String,
    /// The port, where one is given.
    pub port: Option<u16>,
}

impl HostPort {
    /// The same with this port where none is given.
    #[must_use]
    pub fn or_port(&self, port: u16) -> HostPort {
        HostPort {
            host: self.host.clone(),
            port: self.port.or(Some(port)),
        }
    }
}

impl FromStr for HostPort {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let (host, port) = split(text.trim())?;
        Ok(HostPort {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
        })
    }
}

impl fmt::Display for HostPort {
    /// As in a URL: IPv6 in brackets, no port when there is none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// Where PostgreSQL listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// `listen_addresses`, one by one, without brackets.
    pub addresses: Vec<String>,
    /// 5432 unless given.
    pub port: u16,
}

impl Listen {
    /// The value of `listen_addresses`.
    #[must_use]
    pub fn listen_addresses(&self) -> String {
        self.addresses.join(",")
    }
}

impl FromStr for Listen {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let (hosts, port) = split(text.trim())?;
        let addresses = hosts
            .split(',')
            .map(|host| host.trim().trim_matches(['[', ']']).to_owned())
            .filter(|h| !h.is_empty())
            .collect();
        Ok(Listen {
            addresses,
            port: port.unwrap_or(5432),
        })
    }
}

/// Splits the port off the end. A bare IPv6 address has none.
fn split(text: &str) -> Result<(&str, Option<u16>), BadAddress> {
    let bad = |reason| BadAddress {
        text: text.to_owned(),
        reason,
    };
    if text.is_empty() {
        return Err(bad("it is empty"));
    }
    let last = text.rsplit(',').next().unwrap_or(text).trim();
    if last.parse::<Ipv6Addr>().is_ok() || last.ends_with(']') {
        return Ok((text, None));
    }
    match text.rsplit_once(':') {
        None => Ok((text, None)),
        Some((host, port)) => match port.trim().parse::<u16>() {
            Ok(port) if port > 0 => Ok((host, Some(port))),
            _ => Err(bad("the port must be a number from 1 to 65535")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        for (text, host, port) in [
            ("h:5432", "h", Some(5432)),
            ("h", "h", None),
            ("10.0.0.1:1", "10.0.0.1", Some(1)),
            ("[::1]:8008", "::1", Some(8008)),
            ("::1", "::1", None),
            ("[::1]", "::1", None),
            ("*:8008", "*", Some(8008)),
            (":8008", "", Some(8008)),
        ] {
            assert_eq!(
                HostPort::from_str(text),
                Ok(HostPort {
                    host: host.to_owned(),
                    port
                }),
                "{text}"
            );
        }
        for text in ["", "h:", "h:0", "h:99999", "h:x"] {
            assert!(HostPort::from_str(text).is_err(), "{text}");
        }
        assert_eq!(
            HostPort::from_str("[::1]:8008").unwrap().to_string(),
            "[::1]:8008"
        );
    }

    #[test]
    fn several_listen_addresses() {
        let listen: Listen = "127.0.0.1, [::1],10.0.0.1:5433".parse().unwrap();
        assert_eq!(
            listen,
            Listen {
                addresses: vec!["127.0.0.1".into(), "::1".into(), "10.0.0.1".into()],
                port: 5433
            }
        );
        assert_eq!("127.0.0.1,::1".parse::<Listen>().unwrap().port, 5432);
    }
}
