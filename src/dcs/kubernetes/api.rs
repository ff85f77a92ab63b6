//! Requests to Kubernetes' API servers: which of them, as whom, how often, and what their answers mean.
//!
//! Knows the retry budget (spec/dcs.md §4.3, §5.7), not what the objects are for.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Method;
use rand::Rng as _;
use serde_json::Value;

use super::access::{Access, Credential};
use super::object::{Object, version};
use crate::clock;
use crate::dcs::http::{Answer, Lines, NoAnswer, Request, Server, encode};
use crate::dcs::{DcsError, Timings};
use crate::types::Moment;

/// Content type of a change: null removes, lists without a key are replaced.
const PATCH: &str = "application/strategic-merge-patch+json";
/// How old a token from a file may get.
const TOKEN_AGE: Duration = Duration::from_secs(60);
/// Where the API servers say where they are.
const SERVERS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";

/// Why there is no usable answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// No answer in time, and nothing can have been carried out.
    Unreachable(DcsError),
    /// No answer that tells; it may have been carried out.
    Ambiguous(DcsError),
    /// The API server rejects the request itself (credentials, syntax).
    Rejected(String),
    /// It is not allowed.
    Forbidden(String),
    /// The version is not, or not any more, that of the object, or the object is there already.
    Conflict,
    /// There is no such object.
    Absent,
    /// The version to watch from is forgotten.
    Gone,
}

/// What may happen to a request besides being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Repeating it has no effect beyond the first time.
    Repeatable,
    /// Must not be repeated once it may have arrived.
    Once,
}

/// The API servers this node talks to.
pub(super) struct Api {
    access: Access,
    /// The one address in front of all of them.
    service: Arc<Server>,
    /// The one to ask first is the first.
    servers: Mutex<Vec<Arc<Server>>>,
    /// The token as last read, and when; without a time it is due to be read again.
    token: Mutex<Option<(String, Option<Moment>)>>,
    retriable: Vec<u16>,
    timings: Mutex<Timings>,
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is inside is put there whole.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Api {
    pub(super) fn new(access: Access, retriable: &[u16], timings: Timings) -> anyhow::Result<Self> {
        let service = Arc::new(Server::new(&access.server, 443, &access.tls)?);
        Ok(Api {
            servers: Mutex::new(vec![Arc::clone(&service)]),
            service,
            token: Mutex::default(),
            retriable: [500, 503, 504]
                .into_iter()
                .chain(retriable.iter().copied())
                .collect(),
            timings: Mutex::new(timings),
            access,
        })
    }

    pub(super) fn timings(&self) -> Timings {
        *lock(&self.timings)
    }

    pub(super) fn set_timings(&self, timings: Timings) {
        *lock(&self.timings) = timings;
    }

    /// The end of an operation that begins now.
    pub(super) fn deadline(&self) -> Moment {
        clock::now() + self.timings().retry_timeout
    }

    pub(super) fn describe(&self, detail: &str) -> DcsError {
        let server = lock(&self.servers).first().map(Arc::clone);
        let url = server
            .as_ref()
            .map_or(self.access.server.as_str(), |server| server.url());
        DcsError {
            store: format!("kubernetes {url}"),
            detail: detail.to_owned(),
        }
    }

    /// For callers to whom every failure is "the store could not answer".
    pub(super) fn error(&self, failure: Failure) -> DcsError {
        match failure {
            Failure::Unreachable(error) | Failure::Ambiguous(error) => error,
            Failure::Rejected(detail) | Failure::Forbidden(detail) => self.describe(&detail),
            Failure::Conflict => self.describe("conflict"),
            Failure::Absent => self.describe("no such object; is the namespace there?"),
            Failure::Gone => self.describe("the version to watch from is forgotten"),
        }
    }

    pub(super) fn servers(&self) -> Vec<String> {
        let servers = lock(&self.servers);
        servers.iter().map(|it| it.url().to_owned()).collect()
    }

    fn authorization(&self) -> Option<String> {
        let file = match &self.access.credential {
            Credential::None => return None,
            Credential::Token(token) => return Some(format!("Bearer {token}")),
            Credential::Basic(pair) => return Some(format!("Basic {pair}")),
            Credential::TokenFile(file) => file,
        };
        let now = clock::now();
        let mut known = lock(&self.token);
        let read = known.as_ref().and_then(|(_, read)| *read);
        if read.is_none_or(|read| now.since(read) > TOKEN_AGE) {
            match read_token(file) {
                Ok(token) => *known = Some((token, Some(now))),
                Err(error) => tracing::error!("cannot read the token {}: {error}", file.display()),
            }
        }
        known.as_ref().map(|(token, _)| format!("Bearer {token}"))
    }

    /// The next request reads the token anew; the old one goes on where that is not possible.
    fn doubt_token(&self) {
        if let Some((_, read)) = &mut *lock(&self.token) {
            *read = None;
        }
    }

    fn request(&self, method: Method, target: impl Into<String>) -> Request {
        let request = Request::new(method, target).header("accept", "application/json");
        match self.authorization() {
            Some(authorization) => request.header("authorization", authorization),
            None => request,
        }
    }

    /// Puts a server that did not answer behind the others.
    fn pass_over(&self, server: &Arc<Server>) {
        let mut servers = lock(&self.servers);
        if servers
            .first()
            .is_some_and(|first| Arc::ptr_eq(first, server))
        {
            servers.rotate_left(1);
        }
    }

    fn first(&self) -> Option<(Arc<Server>, usize)> {
        let servers = lock(&self.servers);
        Some((Arc::clone(servers.first()?), servers.len()))
    }

    /// How long one try may take, so that there is time for the other servers, and for reading back.
    fn attempt(&self, servers: usize) -> Duration {
        let whole = self.timings().retry_timeout;
        let one = match u32::try_from(servers) {
            Ok(servers @ 2..) => whole / (servers + 1),
            Ok(_) | Err(_) => whole * 2 / 3,
        };
        one.max(Duration::from_millis(500))
    }

    /// Asks until there is an answer that tells.
    async fn call(
        &self,
        deadline: Moment,
        kind: Kind,
        make: impl Fn(&Self) -> Request,
    ) -> Result<Answer, Failure> {
        let mut delay = Duration::from_millis(100);
        let mut renewed_token = false;
        loop {
            let Some((server, count)) = self.first() else {
                return Err(Failure::Unreachable(
                    self.describe("no API server is known"),
                ));
            };
            let request = make(self);
            let attempt = (clock::now() + self.attempt(count)).min(deadline);
            let mut pause = delay + Duration::from_millis(rand::rng().random_range(0..100));
            let detail = match server.ask(attempt, &request).await {
                Ok(answer) => match answer.status {
                    200..=299 => return Ok(answer),
                    404 => return Err(Failure::Absent),
                    409 => return Err(Failure::Conflict),
                    410 => return Err(Failure::Gone),
                    401 if !renewed_token => {
                        renewed_token = true;
                        self.doubt_token();
                        continue;
                    }
                    403 => return Err(Failure::Forbidden(rejection(&request, 403, &answer))),
                    // Nothing was done: too many requests at a time.
                    429 => {
                        pause = pause.max(retry_after(&answer));
                        answer.text()
                    }
                    // 408 and 5xx: whatever is in front of the API server did not hear its answer.
                    status
                        if matches!(status, 408 | 500..)
                            || self.retriable.contains(&status)
                            || answer.number("retry-after").is_some() =>
                    {
                        let text = format!("{status}: {}", reason(&answer));
                        if kind == Kind::Once {
                            return Err(Failure::Ambiguous(self.describe(&text)));
                        }
                        pause = pause.max(retry_after(&answer));
                        self.pass_over(&server);
                        text
                    }
                    status => return Err(Failure::Rejected(rejection(&request, status, &answer))),
                },
                Err(error) => {
                    self.pass_over(&server);
                    match error {
                        NoAnswer::Unanswered(detail) if kind == Kind::Once => {
                            return Err(Failure::Ambiguous(self.describe(&detail)));
                        }
                        // Another server may know more, at once.
                        error if count > 1 => {
                            pause = Duration::from_millis(10);
                            error.into_text()
                        }
                        error => error.into_text(),
                    }
                }
            };
            if clock::now().until(deadline) <= pause {
                return Err(Failure::Unreachable(self.describe(&detail)));
            }
            tokio::time::sleep(pause).await;
            delay = (delay * 2).min(Duration::from_secs(1));
        }
    }

    fn object(&self, answer: &Answer) -> Result<Object, Failure> {
        let parsed = answer.json().as_ref().and_then(Object::parse);
        parsed.ok_or_else(|| {
            Failure::Ambiguous(self.describe(&format!("not an object: {}", answer.text())))
        })
    }

    /// One object as it is now.
    pub(super) async fn get(
        &self,
        deadline: Moment,
        path: &str,
    ) -> Result<Option<Object>, Failure> {
        let make = |api: &Self| api.request(Method::GET, path);
        match self.call(deadline, Kind::Repeatable, make).await {
            Ok(answer) => Ok(Some(self.object(&answer)?)),
            Err(Failure::Absent) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// All objects of a selector as they are now, and the version of the list.
    pub(super) async fn list(
        &self,
        deadline: Moment,
        path: &str,
        selector: &str,
    ) -> Result<(Vec<Object>, u64), Failure> {
        let target = format!("{path}?labelSelector={}", encode(selector));
        let make = |api: &Self| api.request(Method::GET, target.as_str());
        let answer = self.call(deadline, Kind::Repeatable, make).await?;
        let list = answer.json().unwrap_or_default();
        let Some(version) = version(&list["metadata"]) else {
            return Err(Failure::Unreachable(
                self.describe(&format!("not a list: {}", answer.text())),
            ));
        };
        let items = list["items"].as_array().into_iter().flatten();
        Ok((items.filter_map(Object::parse).collect(), version))
    }

    /// Changes an object; sent once.
    pub(super) async fn patch(
        &self,
        deadline: Moment,
        path: &str,
        body: &Value,
    ) -> Result<Object, Failure> {
        let text = body.to_string();
        let make = |api: &Self| api.request(Method::PATCH, path).body(PATCH, text.as_str());
        let answer = self.call(deadline, Kind::Once, make).await?;
        self.object(&answer)
    }

    /// Creates an object; sent once.
    pub(super) async fn create(
        &self,
        deadline: Moment,
        path: &str,
        body: &Value,
    ) -> Result<Object, Failure> {
        let text = body.to_string();
        let make = |api: &Self| {
            api.request(Method::POST, path)
                .body("application/json", text.as_str())
        };
        let answer = self.call(deadline, Kind::Once, make).await?;
        self.object(&answer)
    }

    /// Deletes all objects of a selector.
    pub(super) async fn delete_all(
        &self,
        deadline: Moment,
        path: &str,
        selector: &str,
    ) -> Result<(), Failure> {
        let target = format!("{path}?labelSelector={}", encode(selector));
        let make = |api: &Self| api.request(Method::DELETE, target.as_str());
        let answer = self.call(deadline, Kind::Repeatable, make).await;
        answer.map(|_| ())
    }

    /// Events from a version on, for `lasts` at most.
    pub(super) async fn watch(
        &self,
        path: &str,
        selector: &str,
        from: u64,
        lasts: Duration,
    ) -> Result<Lines, Failure> {
        let target = format!(
            "{path}?labelSelector={}&watch=true&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds={}",
            encode(selector),
            lasts.as_secs().max(1)
        );
        let Some((server, count)) = self.first() else {
            return Err(Failure::Unreachable(
                self.describe("no API server is known"),
            ));
        };
        let request = self.request(Method::GET, target);
        let deadline = clock::now() + self.attempt(count).max(Duration::from_secs(2));
        match server.listen(deadline, &request).await {
            Ok(lines) => match lines.status {
                200 => Ok(lines),
                410 => Err(Failure::Gone),
                403 => Err(Failure::Forbidden(format!(
                    "watch {path}: 403; the Role of this pod's service account must allow it"
                ))),
                status => {
                    if status == 401 {
                        self.doubt_token();
                    }
                    Err(Failure::Unreachable(
                        self.describe(&format!("watch {path}: {status}")),
                    ))
                }
            },
            Err(error) => {
                self.pass_over(&server);
                Err(Failure::Unreachable(self.describe(&error.into_text())))
            }
        }
    }

    /// Learns where the API servers are, past the one address in front of them (`bypass_api_service`); whether it may.
    pub(super) async fn learn_servers(&self) -> bool {
        let make = |api: &Self| api.request(Method::GET, SERVERS);
        match self.call(self.deadline(), Kind::Repeatable, make).await {
            Ok(answer) => self.use_servers(&addresses(&answer.json().unwrap_or_default())),
            Err(Failure::Forbidden(detail)) => {
                tracing::warn!("bypass_api_service is switched off: {detail}");
                return false;
            }
            Err(failure) => {
                let error = self.error(failure);
                tracing::debug!(%error, "the API servers' addresses cannot be read");
            }
        }
        true
    }

    fn use_servers(&self, found: &[(String, u16)]) {
        let mut servers = lock(&self.servers);
        let mut known: Vec<Arc<Server>> = Vec::new();
        for (address, port) in found {
            let Ok(server) = Server::new(&self.access.server, 443, &self.access.tls) else {
                return;
            };
            let server = server.reached_at(address, *port);
            let same = servers.iter().find(|old| old.url() == server.url());
            known.push(same.map_or_else(|| Arc::new(server), Arc::clone));
        }
        if known.is_empty() {
            return;
        }
        // The address in front of them is the way back if all of them have moved.
        known.push(Arc::clone(&self.service));
        // The one in use stays the first: its connections are open.
        if let Some(first) = servers.first()
            && let Some(at) = known.iter().position(|server| Arc::ptr_eq(server, first))
        {
            known.rotate_left(at);
        }
        *servers = known;
    }
}

fn read_token(file: &Path) -> std::io::Result<String> {
    let text = std::fs::read_to_string(file)?;
    match text.trim() {
        "" => Err(std::io::Error::other("it is empty")),
        token => Ok(token.to_owned()),
    }
}

/// The addresses of the port `https` in an Endpoints object.
fn addresses(endpoints: &Value) -> Vec<(String, u16)> {
    let mut found = Vec::new();
    for subset in endpoints["subsets"].as_array().into_iter().flatten() {
        let ports = subset["ports"].as_array().into_iter().flatten();
        let port = ports
            .filter(|port| {
                port["name"] == "https" && port["protocol"].as_str().unwrap_or("TCP") == "TCP"
            })
            .find_map(|port| u16::try_from(port["port"].as_u64()?).ok());
        let Some(port) = port else { continue };
        for address in subset["addresses"].as_array().into_iter().flatten() {
            if let Some(ip) = address["ip"].as_str() {
                found.push((ip.to_owned(), port));
            }
        }
    }
    found
}

/// How long the server wants to be left alone.
fn retry_after(answer: &Answer) -> Duration {
    Duration::from_secs(answer.number("retry-after").unwrap_or(0))
}

/// What a status document says, or the text of the answer.
fn reason(answer: &Answer) -> String {
    let document = answer.json();
    let message = document.as_ref().and_then(|it| it["message"].as_str());
    message.map_or_else(|| answer.text(), str::to_owned)
}

fn rejection(request: &Request, status: u16, answer: &Answer) -> String {
    let path = request.target.split('?').next().unwrap_or_default();
    let advice = match status {
        401 => "; the token is not accepted",
        403 => "; the Role of this pod's service account must allow it",
        _ => "",
    };
    format!(
        "{} {path}: {status}: {}{advice}",
        request.method,
        reason(answer)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn servers_are_found_by_the_port_called_https() {
        let endpoints = json!({ "subsets": [
            { "addresses": [{ "ip": "10.0.0.1" }, { "ip": "10.0.0.2" }],
              "ports": [{ "name": "dns", "port": 53, "protocol": "UDP" }, { "name": "https", "port": 6443 }] },
            { "addresses": [{ "ip": "10.0.0.3" }], "ports": [{ "name": "http", "port": 80 }] },
        ] });
        let expected = [("10.0.0.1".to_owned(), 6443), ("10.0.0.2".to_owned(), 6443)];
        assert_eq!(addresses(&endpoints), expected);
    }
}
