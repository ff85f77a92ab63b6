//! Who may call what (spec/rest-api.md §3): allowlist, client certificate, basic credentials, in this order.

use std::net::IpAddr;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine;

use crate::node::NodeView;
use crate::types::Moment;

use super::{Settings, VerifyClient};

/// A CIDR network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// `10.0.0.0/8`, host bits tolerated; a plain address is a network of one.
    pub(crate) fn parse(text: &str) -> Option<Network> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().trim_matches(['[', ']']).parse().ok()?;
        let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix
            .map_or(Some(bits), |prefix| prefix.trim().parse().ok())
            .filter(|prefix| *prefix <= bits)?;
        // Peers are compared as IPv4 where they are that; a network spelled as mapped addresses must match them, too (D2).
        Some(match address.to_canonical() {
            IpAddr::V4(mapped) if bits == 128 && prefix >= 96 => Network {
                address: mapped.into(),
                prefix: prefix - 96,
            },
            _ => Network { address, prefix },
        })
    }

    pub(crate) fn contains(&self, peer: IpAddr) -> bool {
        let common = |a: u128, b: u128, width: u8| {
            let drop = u32::from(width - self.prefix);
            a.checked_shr(drop).unwrap_or(0) == b.checked_shr(drop).unwrap_or(0)
        };
        match (self.address, peer) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                common(u128::from(a.to_bits()), u128::from(b.to_bits()), 32)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => common(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}

/// Resolves the allowlist once per configuration; bad items are logged and left out.
pub(crate) async fn resolve_allowlist(items: &[String]) -> Vec<Network> {
    let mut networks = Vec::new();
    for item in items
        .iter()
        .map(|item| item.trim())
        .filter(|item| !item.is_empty())
    {
        if let Some(network) = Network::parse(item) {
            networks.push(network);
        } else if item.contains('/') {
            tracing::error!(
                "Invalid value \"{item}\" in the allowlist: not a network; it is ignored"
            );
        } else {
            let found = resolve(item).await;
            if found.is_empty() {
                tracing::error!("Failed to resolve \"{item}\" from the allowlist; it is ignored");
            }
            networks.extend(found);
        }
    }
    networks
}

async fn resolve(host: &str) -> Vec<Network> {
    let lookup = tokio::net::lookup_host((host, 0));
    match tokio::time::timeout(std::time::Duration::from_secs(2), lookup).await {
        Ok(Ok(found)) => found
            .filter_map(|at| Network::parse(&at.ip().to_canonical().to_string()))
            .collect(),
        _ => Vec::new(),
    }
}

/// A refusal: the status and the text of spec §3.2.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) u16, pub(crate) &'static str);

/// What is known about the caller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) address: IpAddr,
    pub(crate) has_certificate: bool,
}

/// The rules in force.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) allowed: Vec<Network>,
    allowlist_given: bool,
    include_members: bool,
    certificate_wanted: bool,
    /// The whole header value that must be sent.
    expected: Option<String>,
}

impl Rules {
    pub(crate) async fn new(settings: &Settings) -> Rules {
        let expected = settings
            .authentication
            .as_ref()
            .map(|credentials| credentials.header());
        let verify = settings
            .tls
            .as_ref()
            .map_or(VerifyClient::None, |tls| tls.verify_client);
        Rules {
            allowed: resolve_allowlist(&settings.allowlist).await,
            allowlist_given: !settings.allowlist.is_empty(),
            include_members: settings.allowlist_include_members,
            certificate_wanted: verify != VerifyClient::None,
            expected,
        }
    }

    /// Guarded calls need a user and a password.
    pub(crate) fn asks_password(&self) -> bool {
        self.expected.is_some()
    }

    /// Guarded calls need a client certificate.
    pub(crate) fn asks_certificate(&self) -> bool {
        self.certificate_wanted
    }

    /// Whether a guarded call may proceed. `friends`: whose addresses count as allowed where the settings say so.
    pub(crate) async fn check(
        &self,
        caller: Caller,
        headers: &HeaderMap,
        view: &NodeView,
        now: Moment,
        friends: Friends,
    ) -> Result<(), Refused> {
        // Without an allowlist a leader in need must not be turned away from a door that is open to everybody else.
        let members_count = self.include_members
            && match friends {
                Friends::Members => true,
                Friends::FailsafeTopology => self.allowlist_given,
            };
        if self.allowlist_given || members_count {
            let peer = caller.address.to_canonical();
            let listed = self.allowed.iter().any(|network| network.contains(peer));
            let allowed = listed || (members_count && friends.include(view, now, peer).await);
            if !allowed {
                return Err(Refused(403, "Access is denied"));
            }
        }
        // Also over a connection without TLS, of before it was switched on: it fails closed.
        if self.certificate_wanted && !caller.has_certificate {
            return Err(Refused(403, "client certificate required"));
        }
        let Some(expected) = &self.expected else {
            return Ok(());
        };
        match headers.get(AUTHORIZATION) {
            None => Err(Refused(401, "no auth header received")),
            Some(given) if equal_in_constant_time(given.as_bytes(), expected.as_bytes()) => Ok(()),
            Some(_) => Err(Refused(401, "not authenticated")),
        }
    }
}

/// Who may call besides the allowlist, if `allowlist_include_members` is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Friends {
    /// The members, as the store tells now.
    Members,
    /// The members of failsafe mode: they are asked by a leader while the store tells nothing (spec/ha.md §24 row 23).
    FailsafeTopology,
}

impl Friends {
    async fn include(self, view: &NodeView, now: Moment, peer: IpAddr) -> bool {
        let urls: Vec<&str> = match self {
            Friends::Members => view
                .current_cluster(now)
                .into_iter()
                .flat_map(|cluster| cluster.members.values())
                .filter_map(|member| member.api_url.as_deref())
                .collect(),
            Friends::FailsafeTopology => view
                .failsafe_topology
                .iter()
                .flat_map(|topology| topology.values())
                .map(String::as_str)
                .collect(),
        };
        for host in urls.into_iter().filter_map(crate::peers::host_of) {
            let networks = match Network::parse(&host) {
                Some(network) => vec![network],
                None => resolve(&host).await,
            };
            if networks.iter().any(|network| network.contains(peer)) {
                return true;
            }
        }
        false
    }
}

/// Takes as long for a wrong first byte as for a wrong last one.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    std::hint::black_box(
        a.iter()
            .zip(b)
            .fold(0, |difference, (x, y)| difference | (x ^ y)),
    ) == 0
}

/// User name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

impl Credentials {
    /// As configured.
    #[must_use]
    pub fn from_config(auth: &crate::config::BasicAuth) -> Credentials {
        Credentials {
            username: auth.username.clone(),
            password: auth.password.expose().to_owned(),
        }
    }

    /// The `Authorization` header: `Basic …`.
    #[must_use]
    pub fn header(&self) -> String {
        let pair = format!("{}:{}", self.username, self.password);
        format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(pair)
        )
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::MemberName;

    fn settings() -> Settings {
        Settings {
            authentication: Some(Credentials {
                username: "u".into(),
                password: "p".into(),
            }),
            allowlist: vec!["10.1.2.3/16".into(), "::1".into(), "bad/99".into()],
            ..Settings::default()
        }
    }

    async fn check(rules: &Rules, peer: &str, header: Option<&str>) -> Result<(), Refused> {
        let now = Moment(Duration::ZERO);
        let view = NodeView::starting(MemberName::new("a").unwrap(), "s", now);
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert(AUTHORIZATION, header.parse().unwrap());
        }
        let caller = Caller {
            address: peer.parse().unwrap(),
            has_certificate: false,
        };
        rules
            .check(caller, &headers, &view, now, Friends::Members)
            .await
    }

    #[tokio::test]
    async fn a_certificate_that_is_asked_for_is_asked_for_without_tls_too() {
        let mut settings = Settings {
            authentication: None,
            allowlist: Vec::new(),
            ..settings()
        };
        let open = Rules::new(&settings).await;
        assert_eq!(check(&open, "10.1.2.3", None).await, Ok(()));
        settings.tls = Some(crate::api::TlsSettings {
            certfile: "/node.pem".to_owned(),
            keyfile: None,
            keyfile_password: None,
            cafile: None,
            verify_client: VerifyClient::Required,
        });
        let closed = Rules::new(&settings).await;
        assert_eq!(
            check(&closed, "10.1.2.3", None).await,
            Err(Refused(403, "client certificate required"))
        );
    }

    #[tokio::test]
    async fn members_of_failsafe_mode_may_ask_whatever_the_store_tells() {
        let now = Moment(Duration::ZERO);
        let mut view = NodeView::starting(MemberName::new("a").unwrap(), "s", now);
        let leader = MemberName::new("b").unwrap();
        let topology = [(leader, "http://192.168.0.2:8008/patroni".to_owned())];
        view.failsafe_topology = Some(std::sync::Arc::new(topology.into_iter().collect()));
        let asks = async |peer: &str, include_members, friends| {
            let settings = Settings {
                authentication: None,
                allowlist_include_members: include_members,
                ..settings()
            };
            let rules = Rules::new(&settings).await;
            let caller = Caller {
                address: peer.parse().unwrap(),
                has_certificate: false,
            };
            let headers = HeaderMap::new();
            rules.check(caller, &headers, &view, now, friends).await
        };
        let denied = Err(Refused(403, "Access is denied"));
        let topology = Friends::FailsafeTopology;
        assert_eq!(asks("192.168.0.2", true, topology).await, Ok(()));
        assert_eq!(asks("192.168.0.3", true, topology).await, denied);
        assert_eq!(asks("192.168.0.2", false, topology).await, denied);
        assert_eq!(asks("192.168.0.2", true, Friends::Members).await, denied);
        assert_eq!(asks("10.1.0.1", true, topology).await, Ok(()));
    }

    #[tokio::test]
    async fn checks_in_order() {
        let rules = Rules::new(&settings()).await;
        let good = Some("Basic dTpw");
        assert_eq!(check(&rules, "10.1.9.9", good).await, Ok(()));
        assert_eq!(
            check(&rules, "::ffff:10.1.9.9", good).await,
            Ok(()),
            "D2: mapped addresses"
        );
        assert_eq!(check(&rules, "::1", good).await, Ok(()));
        assert_eq!(
            check(&rules, "10.2.0.1", good).await,
            Err(Refused(403, "Access is denied"))
        );
        assert_eq!(
            check(&rules, "10.1.0.1", None).await,
            Err(Refused(401, "no auth header received"))
        );
        for wrong in ["Basic dTpx", "Basic", "basic dTpw", "Bearer dTpw"] {
            assert_eq!(
                check(&rules, "10.1.0.1", Some(wrong)).await,
                Err(Refused(401, "not authenticated")),
                "{wrong}"
            );
        }
    }

    #[test]
    fn networks() {
        let all = Network::parse("0.0.0.0/0").unwrap();
        assert!(all.contains("1.2.3.4".parse().unwrap()) && !all.contains("::1".parse().unwrap()));
        let v6 = Network::parse("fd00::/8").unwrap();
        assert!(
            v6.contains("fdab::1".parse().unwrap()) && !v6.contains("fe80::1".parse().unwrap())
        );
        assert!(
            Network::parse("::/0")
                .unwrap()
                .contains("::1".parse().unwrap())
        );
        assert_eq!(Network::parse("10.0.0.0/33"), None);
        assert_eq!(
            Network::parse("::ffff:10.0.0.0/104"),
            Network::parse("10.0.0.0/8"),
            "D2: spelled the other way round"
        );
    }
}
