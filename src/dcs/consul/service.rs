//! Which service Consul should have for this member (spec/dcs.md §5.4, "Service registration"); plans only, sends nothing.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::ServiceSettings;
use crate::types::MemberName;

/// What the agent is asked to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Request {
    /// The service as Consul's API spells it.
    Register(Value),
    /// The id of the service to remove.
    Deregister(String),
}

/// The service of one member, and what the agent was last told.
pub(super) struct Registration {
    name: String,
    id: String,
    settings: ServiceSettings,
    told: Option<Request>,
}

impl Registration {
    pub(super) fn new(scope: &str, member: &MemberName, settings: ServiceSettings) -> Self {
        Registration {
            name: service_name(scope),
            id: format!("{scope}/{member}"),
            settings,
            told: None,
        }
    }

    /// What has to be sent now that the member publishes `document`; `None`: nothing.
    pub(super) fn due(&self, document: &str, ttl: Duration) -> Option<Request> {
        let document: Value = serde_json::from_str(document).ok()?;
        let request = match document["state"].as_str()? {
            "stopped" => Request::Deregister(self.id.clone()),
            "running" => Request::Register(self.service(&document, ttl)?),
            _ => return None,
        };
        (self.told.as_ref() != Some(&request)).then_some(request)
    }

    pub(super) fn done(&mut self, request: Request) {
        self.told = Some(request);
    }

    fn service(&self, document: &Value, ttl: Duration) -> Option<Value> {
        let role = match document["role"].as_str()? {
            role @ ("primary" | "replica") => role,
            "standby_leader" => "standby-leader",
            other => {
                tracing::warn!("no service is registered for the role {other:?}");
                return None;
            }
        };
        let (host, port) = host_and_port(document["conn_url"].as_str()?)?;
        let api = document["api_url"].as_str()?;
        let scheme_end = api.find("://")? + 3;
        let path = api[scheme_end..]
            .find('/')
            .map_or(api.len(), |at| scheme_end + at);
        let mut tags = self.settings.tags.clone();
        tags.push(role.to_owned());
        if role == "primary" {
            tags.push("master".to_owned());
        }
        tags.sort();
        let mut check = json!({
            "HTTP": format!("{}/{role}", &api[..path]),
            "Interval": self.settings.check_interval,
            "DeregisterCriticalServiceAfter": format!("{}s", 10.0 * ttl.as_secs_f64() / 2.0),
        });
        if let Some(name) = &self.settings.check_tls_server_name {
            check["TLSServerName"] = json!(name);
        }
        Some(json!({
            "ID": self.id,
            "Name": self.name,
            "Address": host,
            "Port": port,
            "Tags": tags,
            "EnableTagOverride": true,
            "Check": check,
        }))
    }
}

/// The scope as a DNS label can spell it, 230 characters at most.
fn service_name(scope: &str) -> String {
    let mut name = String::new();
    for letter in scope.chars().flat_map(char::to_lowercase) {
        match letter {
            'a'..='z' | '0'..='9' | '-' => name.push(letter),
            '.' | '_' | ' ' => name.push('-'),
            other => {
                let _ = write!(name, "u{:04}", u32::from(other));
            }
        }
    }
    name.chars().take(230).collect()
}

/// Host and port of `postgres://host:port/database`.
fn host_and_port(url: &str) -> Option<(String, u16)> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let authority = authority.rsplit('@').next()?;
    let (host, port) = authority.rsplit_once(':')?;
    Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    fn registration() -> Registration {
        let settings = ServiceSettings {
            tags: vec!["zone-b".to_owned()],
            check_interval: "5s".to_owned(),
            check_tls_server_name: None,
        };
        Registration::new("My_Batman.é", &MemberName::new("pg1").unwrap(), settings)
    }

    fn document(state: &str, role: &str) -> String {
        json!({
            "state": state,
            "role": role,
            "conn_url": "postgres://10.0.0.1:5433/postgres",
            "api_url": "http://10.0.0.1:8008/patroni",
        })
        .to_string()
    }

    #[test]
    fn a_running_primary_is_registered_once() {
        let mut registration = registration();
        let request = registration
            .due(&document("running", "primary"), TTL)
            .unwrap();
        let Request::Register(body) = &request else {
            panic!("{request:?}")
        };
        let expected = json!({
            "ID": "My_Batman.é/pg1",
            "Name": "my-batman-u0233",
            "Address": "10.0.0.1",
            "Port": 5433,
            "Tags": ["master", "primary", "zone-b"],
            "EnableTagOverride": true,
            "Check": {
                "HTTP": "http://10.0.0.1:8008/primary",
                "Interval": "5s",
                "DeregisterCriticalServiceAfter": "150s",
            },
        });
        assert_eq!(*body, expected);
        registration.done(request);
        assert_eq!(registration.due(&document("running", "primary"), TTL), None);
        let replica = registration.due(&document("running", "replica"), TTL);
        assert!(matches!(replica, Some(Request::Register(_))));
    }

    #[test]
    fn a_stopped_member_is_deregistered_and_one_in_between_left_alone() {
        let registration = registration();
        assert_eq!(
            registration.due(&document("starting", "replica"), TTL),
            None
        );
        assert_eq!(registration.due("nonsense", TTL), None);
        let stopped = registration.due(&document("stopped", "replica"), TTL);
        assert_eq!(
            stopped,
            Some(Request::Deregister("My_Batman.é/pg1".to_owned()))
        );
    }

    #[test]
    fn addresses_of_any_kind() {
        assert_eq!(
            host_and_port("postgres://[fd00::1]:5432/postgres"),
            Some(("fd00::1".to_owned(), 5432))
        );
        assert_eq!(host_and_port("nonsense"), None);
    }
}
