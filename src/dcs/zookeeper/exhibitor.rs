//! ZooKeeper whose servers an Exhibitor names (spec/dcs.md §5.6): asks for the list again and again, nothing else.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use rand::seq::SliceRandom as _;
use rustls::ClientConfig;

use super::connection::Servers;
use super::{Identity, Settings as Zookeeper};
use crate::clock;
use crate::dcs::http::{Request, Server};
use crate::dcs::tls::{self, Trust};

/// The `exhibitor` section of the configuration, names and meanings as Patroni has them.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Hosts that are asked first.
    pub hosts: Vec<String>,
    /// Port of Exhibitor on every host.
    pub port: u16,
    /// Time between two questions.
    pub poll_interval: Duration,
    /// How to talk to the ZooKeeper servers; its `hosts` are found.
    pub zookeeper: Zookeeper,
}

/// How long one Exhibitor may take to answer.
const PATIENCE: Duration = Duration::from_millis(3100);
/// The time between two rounds in which nobody answered.
const PAUSE: Duration = Duration::from_secs(5);

/// Opens the store. No server is known until an Exhibitor has answered. Needs a running tokio runtime.
///
/// # Errors
/// Settings that can never work; see [`super::connect`].
pub fn connect(identity: &Identity, settings: &Settings) -> anyhow::Result<Arc<super::Zookeeper>> {
    let unknown = Zookeeper {
        // Never connected to: the list is emptied before anybody can ask.
        hosts: vec!["localhost:2181".to_owned()],
        ..settings.zookeeper.clone()
    };
    let tls = tls::client(Trust::Anybody, None, None, None)?;
    let settings = settings.clone();
    super::connect_with(identity, &unknown, |servers| {
        servers.replace(Vec::new());
        Some(tokio::spawn(discover(Arc::clone(servers), settings, tls)))
    })
}

async fn discover(servers: Arc<Servers>, settings: Settings, tls: Arc<ClientConfig>) {
    let mut known: Vec<String> = Vec::new();
    loop {
        let mut pause = PAUSE;
        let mut failure = String::new();
        for hosts in [known.clone(), settings.hosts.clone()] {
            match ask_any(&hosts, settings.port, &tls).await {
                Ok((names, port)) => {
                    let mut addresses: Vec<String> =
                        names.iter().map(|name| format!("{name}:{port}")).collect();
                    addresses.shuffle(&mut rand::rng());
                    servers.replace(addresses);
                    known = names;
                    pause = settings.poll_interval;
                    failure.clear();
                    break;
                }
                Err(detail) => failure = detail,
            }
        }
        if !failure.is_empty() {
            tracing::warn!(
                "exhibitor: {failure}; the ZooKeeper servers that are known stay in use"
            );
        }
        tokio::time::sleep(pause).await;
    }
}

/// The names of the ZooKeeper servers, sorted, and their port, from the first host that tells.
async fn ask_any(
    hosts: &[String],
    port: u16,
    tls: &Arc<ClientConfig>,
) -> Result<(Vec<String>, u16), String> {
    let mut hosts = hosts.to_vec();
    hosts.shuffle(&mut rand::rng());
    let mut failure = "no host to ask".to_owned();
    for host in hosts {
        match ask(&host, port, tls).await {
            Ok(list) => return Ok(list),
            Err(detail) => failure = format!("{host}:{port}: {detail}"),
        }
    }
    Err(failure)
}

async fn ask(host: &str, port: u16, tls: &Arc<ClientConfig>) -> Result<(Vec<String>, u16), String> {
    let server = Server::new(&format!("http://{host}:{port}"), port, tls)
        .map_err(|error| error.to_string())?;
    let request = Request::new(Method::GET, "/exhibitor/v1/cluster/list");
    let answer = server.ask(clock::now() + PATIENCE, &request).await;
    let answer = answer.map_err(super::super::http::NoAnswer::into_text)?;
    list(&answer.body).ok_or_else(|| format!("{}: {}", answer.status, answer.text()))
}

fn list(body: &[u8]) -> Option<(Vec<String>, u16)> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let names = body["servers"].as_array()?;
    let mut names: Vec<String> = names
        .iter()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    names.sort();
    let port = u16::try_from(body["port"].as_u64()?).ok()?;
    (!names.is_empty()).then_some((names, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_names_servers_and_their_port() {
        let body = br#"{"servers":["zk2","zk1"],"port":2182}"#;
        assert_eq!(
            list(body),
            Some((vec!["zk1".to_owned(), "zk2".to_owned()], 2182))
        );
        for other in [
            &b"{}"[..],
            b"[]",
            b"<html>",
            br#"{"servers":[],"port":2181}"#,
        ] {
            assert_eq!(list(other), None);
        }
    }
}
