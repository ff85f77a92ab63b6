//! Requests to one Consul agent: keys, transactions, sessions, and what their answers mean.
//!
//! Knows Consul's API and the retry budget (spec/dcs.md §4.3), not what the keys are for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use rand::Rng as _;
use rustls::ClientConfig;
use serde_json::{Value, json};

use super::Settings;
use super::service::Request as ServiceRequest;
use crate::clock;
use crate::dcs::copy::{Contents, Stored};
use crate::dcs::http::{Answer, NoAnswer, Request, Server, encode};
use crate::dcs::{DcsError, Identity, Timings};
use crate::types::Moment;

/// Why there is no usable answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// No answer in time, and nothing can have been carried out.
    Unreachable(DcsError),
    /// No answer that tells; it may have been carried out.
    Ambiguous(DcsError),
    /// Consul rejects the request itself (token, syntax).
    Rejected(String),
}

/// How a transaction that was answered ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All of it happened; the revision of the last key it wrote, 0 when it only deleted.
    Done(u64),
    /// A condition does not hold; nothing happened.
    Conflict,
    /// The session to lock with does not exist; nothing happened.
    SessionGone,
}

/// How a transaction that was answered was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Conflict,
    SessionGone,
    /// The session that held the key has ended just now, and its `LockDelay` is not over: Consul turns every lock of the key away
    /// before it looks at anything else.
    LockDelay,
}

/// For how long a key may be kept from everybody after the session that held it: Patroni's sessions and ours ask for 1 ms. A key on a
/// session with Consul's own delay (15 s) is tried for again in later turns.
const LOCK_DELAY: Duration = Duration::from_secs(1);

/// One key as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) value: String,
    pub(super) revision: u64,
    pub(super) session: Option<String>,
}

impl Found {
    pub(super) fn is(&self, value: &str, session: &str) -> bool {
        self.value == value && self.session.as_deref() == Some(session)
    }
}

/// One step of a transaction.
#[derive(Debug, Clone)]
pub(super) struct Op(Value);

impl Op {
    fn new(verb: &str, key: &str) -> Self {
        Op(json!({ "Verb": verb, "Key": key }))
    }

    fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0[field] = value.into();
        self
    }

    pub(super) fn absent(key: &str) -> Self {
        Op::new("check-not-exists", key)
    }

    /// The key exists with this revision.
    pub(super) fn at(key: &str, revision: u64) -> Self {
        Op::new("check-index", key).with("Index", revision)
    }

    pub(super) fn set(key: &str, value: &str) -> Self {
        Op::new("set", key).with("Value", STANDARD.encode(value))
    }

    /// Writes the key on a session; fails when another session holds it.
    pub(super) fn lock(key: &str, value: &str, session: &str) -> Self {
        Op::new("lock", key)
            .with("Value", STANDARD.encode(value))
            .with("Session", session)
    }

    pub(super) fn delete(key: &str) -> Self {
        Op::new("delete", key)
    }

    pub(super) fn delete_tree(prefix: &str) -> Self {
        Op::new("delete-tree", prefix)
    }
}

/// What may happen to a request besides being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Repeating it has no effect beyond the first time.
    Repeatable,
    /// Must not be repeated once it may have arrived.
    Once,
}

/// The agent this node talks to.
pub(super) struct Agent {
    server: Server,
    token: Option<String>,
    dc: Option<String>,
    consistency: String,
    timings: Mutex<Timings>,
}

impl Agent {
    pub(super) fn new(
        settings: &Settings,
        tls: &Arc<ClientConfig>,
        identity: &Identity,
    ) -> anyhow::Result<Self> {
        Ok(Agent {
            server: Server::new(&settings.url, 8500, tls)?,
            token: settings.token.clone(),
            dc: settings.dc.clone(),
            consistency: settings.consistency.clone(),
            timings: Mutex::new(identity.timings()),
        })
    }

    pub(super) fn timings(&self) -> Timings {
        *self.timings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_timings(&self, ttl: Duration, retry_timeout: Duration) {
        *self.timings.lock().unwrap_or_else(PoisonError::into_inner) =
            Timings { ttl, retry_timeout };
    }

    /// The end of an operation that begins now.
    pub(super) fn deadline(&self) -> Moment {
        clock::now() + self.timings().retry_timeout
    }

    pub(super) fn describe(&self, detail: &str) -> DcsError {
        DcsError {
            store: format!("consul {}", self.server.url()),
            detail: detail.to_owned(),
        }
    }

    /// For callers to whom every failure is "the store could not answer".
    pub(super) fn error(&self, failure: Failure) -> DcsError {
        match failure {
            Failure::Unreachable(error) | Failure::Ambiguous(error) => error,
            Failure::Rejected(detail) => self.describe(&detail),
        }
    }

    fn request(&self, method: Method, path: &str, query: &[(&str, &str)]) -> Request {
        let mut target = path.to_owned();
        let dc = self.dc.as_deref().map(|dc| ("dc", dc));
        for (number, (name, value)) in query.iter().copied().chain(dc).enumerate() {
            target.push(if number == 0 { '?' } else { '&' });
            target.push_str(name);
            if !value.is_empty() {
                target.push('=');
                target.push_str(&encode(value));
            }
        }
        let request = Request::new(method, target);
        match &self.token {
            Some(token) => request.header("x-consul-token", token),
            None => request,
        }
    }

    /// Asks until there is an answer that tells. Statuses other than 200, 404 and 409 are failures.
    async fn call(
        &self,
        deadline: Moment,
        kind: Kind,
        request: &Request,
    ) -> Result<Answer, Failure> {
        let mut delay = Duration::from_millis(100);
        loop {
            let attempt =
                clock::now() + (self.timings().retry_timeout / 3).max(Duration::from_secs(1));
            let detail = match self.server.ask(attempt.min(deadline), request).await {
                Ok(answer) => match answer.status {
                    200 | 404 | 409 => return Ok(answer),
                    500.. => {
                        let text = answer.text();
                        let untouched = text.contains("No cluster leader");
                        if kind == Kind::Once && !untouched {
                            return Err(Failure::Ambiguous(self.describe(&text)));
                        }
                        text
                    }
                    status => {
                        return Err(Failure::Rejected(format!("{status}: {}", answer.text())));
                    }
                },
                Err(NoAnswer::Unanswered(detail)) if kind == Kind::Once => {
                    return Err(Failure::Ambiguous(self.describe(&detail)));
                }
                Err(error) => error.into_text(),
            };
            let pause = delay + Duration::from_millis(rand::rng().random_range(0..100));
            if clock::now() + pause >= deadline {
                return Err(Failure::Unreachable(self.describe(&detail)));
            }
            tokio::time::sleep(pause).await;
            delay = (delay * 2).min(Duration::from_secs(1));
        }
    }

    /// One key, read consistently.
    pub(super) async fn get(&self, deadline: Moment, key: &str) -> Result<Option<Found>, Failure> {
        let path = format!("/v1/kv/{}", encode(key));
        let request = self.request(Method::GET, &path, &[("consistent", "")]);
        let answer = self.call(deadline, Kind::Repeatable, &request).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        let entries = self.entries(&answer)?;
        Ok(entries.first().and_then(found).map(|(_, found)| found))
    }

    /// Everything below a prefix, and the count it is complete up to. `wait`: answers once the count has passed the first
    /// number, or after the time, read as configured; without it at once and consistently.
    pub(super) async fn list(
        &self,
        deadline: Moment,
        prefix: &str,
        wait: Option<(u64, Duration)>,
    ) -> Result<(Contents, u64), Failure> {
        let bare = prefix.trim_start_matches('/');
        let path = format!("/v1/kv/{}", encode(bare));
        let (index, time);
        let mut query = vec![("recurse", "1")];
        match wait {
            None => query.push(("consistent", "")),
            Some((after, patience)) => {
                index = after.to_string();
                time = format!("{}ms", patience.as_millis());
                query.extend([("index", index.as_str()), ("wait", time.as_str())]);
                if self.consistency != "default" {
                    query.push((&self.consistency, ""));
                }
            }
        }
        let request = self.request(Method::GET, &path, &query);
        let answer = match wait {
            None => self.call(deadline, Kind::Repeatable, &request).await?,
            Some(_) => self.wait(deadline, &request).await?,
        };
        let count = answer.number("x-consul-index").unwrap_or(0);
        if answer.status == 404 {
            return Ok((Contents::new(), count));
        }
        let entries = self.entries(&answer)?;
        let contents = entries.iter().filter_map(found).filter_map(|(key, found)| {
            let relative = key.strip_prefix(bare)?;
            let stored = Stored {
                value: found.value,
                revision: found.revision,
                session: found.session,
            };
            (!relative.is_empty()).then(|| (relative.to_owned(), stored))
        });
        Ok((contents.collect(), count))
    }

    /// One long request; the caller repeats it.
    async fn wait(&self, deadline: Moment, request: &Request) -> Result<Answer, Failure> {
        match self.server.ask(deadline, request).await {
            Ok(answer) if matches!(answer.status, 200 | 404) => Ok(answer),
            Ok(answer) => Err(Failure::Unreachable(self.describe(&answer.text()))),
            Err(error) => Err(Failure::Unreachable(self.describe(&error.into_text()))),
        }
    }

    fn entries(&self, answer: &Answer) -> Result<Vec<Value>, Failure> {
        match answer.json() {
            Some(Value::Array(entries)) => Ok(entries),
            _ => Err(Failure::Unreachable(self.describe(&format!(
                "not the answer of a Consul agent: {}",
                answer.text()
            )))),
        }
    }

    /// All steps or none, sent once.
    pub(super) async fn transaction(
        &self,
        deadline: Moment,
        ops: &[Op],
    ) -> Result<Outcome, Failure> {
        self.run(deadline, Kind::Once, ops).await
    }

    /// The same for steps that may run twice.
    pub(super) async fn repeatable(
        &self,
        deadline: Moment,
        ops: &[Op],
    ) -> Result<Outcome, Failure> {
        self.run(deadline, Kind::Repeatable, ops).await
    }

    /// Runs the steps, and again while a lock delay, which is shorter than a turn, is all that stands against them.
    async fn run(&self, deadline: Moment, kind: Kind, ops: &[Op]) -> Result<Outcome, Failure> {
        let patience = deadline.min(clock::now() + LOCK_DELAY);
        let mut pause = Duration::from_millis(1);
        loop {
            return match self.run_once(deadline, kind, ops).await? {
                Ok(revision) => Ok(Outcome::Done(revision)),
                Err(Refusal::LockDelay) if clock::now() + pause < patience => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(50));
                    continue;
                }
                Err(Refusal::SessionGone) => Ok(Outcome::SessionGone),
                Err(Refusal::Conflict | Refusal::LockDelay) => Ok(Outcome::Conflict),
            };
        }
    }

    async fn run_once(
        &self,
        deadline: Moment,
        kind: Kind,
        ops: &[Op],
    ) -> Result<Result<u64, Refusal>, Failure> {
        let steps: Vec<Value> = ops.iter().map(|Op(op)| json!({ "KV": op })).collect();
        let request = self
            .request(Method::PUT, "/v1/txn", &[])
            .body("application/json", Value::from(steps).to_string());
        let answer = self.call(deadline, kind, &request).await?;
        let body = answer.json().unwrap_or_default();
        match answer.status {
            200 => {
                let results = body["Results"].as_array();
                let last = results.and_then(|results| results.last());
                let revision = last.and_then(|result| result["KV"]["ModifyIndex"].as_u64());
                Ok(Ok(revision.unwrap_or(0)))
            }
            409 => Ok(Err(Self::refusal(&body)?)),
            status => Err(Failure::Rejected(format!("{status}: {}", answer.text()))),
        }
    }

    /// Why a transaction was rolled back.
    fn refusal(body: &Value) -> Result<Refusal, Failure> {
        let errors = body["Errors"].as_array().map_or(&[][..], Vec::as_slice);
        let texts = errors.iter().filter_map(|error| error["What"].as_str());
        if let Some(denied) = texts
            .clone()
            .find(|text| text.contains("Permission denied"))
        {
            return Err(Failure::Rejected(denied.to_owned()));
        }
        let says = |what: &str| texts.clone().any(|text| text.contains(what));
        Ok(if says("invalid session") || says("session lookup") {
            Refusal::SessionGone
        } else if says("lock delay") {
            Refusal::LockDelay
        } else {
            Refusal::Conflict
        })
    }

    /// Opens a session whose keys are deleted with it. The inner error is the shortest time to live that the servers allow.
    pub(super) async fn create_session(
        &self,
        deadline: Moment,
        name: &str,
        checks: &[String],
        ttl: Duration,
    ) -> Result<Result<String, Duration>, Failure> {
        let body = json!({
            "Name": name,
            "LockDelay": "1ms",
            "Behavior": "delete",
            "Checks": checks,
            "TTL": format!("{}ms", ttl.as_millis()),
        });
        let request = self
            .request(Method::PUT, "/v1/session/create", &[])
            .body("application/json", body.to_string());
        // An orphan of a request that was repeated ends by itself.
        let refused = |detail: &str| shortest_session(detail);
        match self.call_session(deadline, &request).await {
            Ok(answer) => match answer.json().as_ref().and_then(|body| body["ID"].as_str()) {
                Some(id) => Ok(Ok(id.to_owned())),
                None => Err(Failure::Rejected(answer.text())),
            },
            Err(Failure::Rejected(detail)) => match refused(&detail) {
                Some(shortest) if shortest > ttl => Ok(Err(shortest)),
                _ => Err(Failure::Rejected(detail)),
            },
            Err(failure) => Err(failure),
        }
    }

    /// Some versions answer a session that is too short with 500, others with 400.
    async fn call_session(&self, deadline: Moment, request: &Request) -> Result<Answer, Failure> {
        match self.call(deadline, Kind::Once, request).await {
            Err(Failure::Ambiguous(error)) if shortest_session(&error.detail).is_some() => {
                Err(Failure::Rejected(error.detail))
            }
            Err(Failure::Ambiguous(_)) => self.call(deadline, Kind::Repeatable, request).await,
            other => other,
        }
    }

    /// Whether the session was there to be renewed.
    pub(super) async fn renew_session(&self, deadline: Moment, id: &str) -> Result<bool, Failure> {
        let path = format!("/v1/session/renew/{}", encode(id));
        let request = self.request(Method::PUT, &path, &[]);
        let answer = self.call(deadline, Kind::Repeatable, &request).await?;
        Ok(answer.status == 200)
    }

    /// Registers or deregisters a service with this agent.
    pub(super) async fn service(
        &self,
        deadline: Moment,
        request: &ServiceRequest,
    ) -> Result<(), DcsError> {
        let request = match request {
            ServiceRequest::Register(body) => self
                .request(Method::PUT, "/v1/agent/service/register", &[])
                .body("application/json", body.to_string()),
            ServiceRequest::Deregister(id) => {
                let path = format!(
                    "/v1/agent/service/deregister/{}",
                    encode(id).replace('/', "%2F")
                );
                self.request(Method::PUT, &path, &[])
            }
        };
        let answer = self.call(deadline, Kind::Repeatable, &request).await;
        answer.map(|_| ()).map_err(|failure| self.error(failure))
    }
}

fn found(entry: &Value) -> Option<(String, Found)> {
    let value = match entry["Value"].as_str() {
        Some(text) => STANDARD.decode(text).ok()?,
        None => Vec::new(),
    };
    let found = Found {
        value: String::from_utf8_lossy(&value).into_owned(),
        revision: entry["ModifyIndex"].as_u64()?,
        session: entry["Session"].as_str().map(str::to_owned),
    };
    Some((entry["Key"].as_str()?.to_owned(), found))
}

/// The lower bound in "Invalid Session TTL '2000000000', must be between [10s=24h0m0s]".
fn shortest_session(detail: &str) -> Option<Duration> {
    let (_, bounds) = detail.split_once("Invalid Session TTL")?;
    let lowest = bounds
        .split_once('[')
        .and_then(|(_, bounds)| bounds.split_once(['=', ']']))
        .and_then(|(lowest, _)| lowest.trim().strip_suffix('s'))
        .and_then(|seconds| seconds.parse().ok());
    // Consul's own default (agent configuration, session_ttl_min).
    Some(Duration::from_secs_f64(lowest.unwrap_or(10.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_session_is_read_from_the_refusal() {
        let refusal = "400: Request decode failed: Invalid Session TTL '2000000000', must be between [10s=24h0m0s]";
        assert_eq!(shortest_session(refusal), Some(Duration::from_secs(10)));
        assert_eq!(
            shortest_session("Invalid Session TTL"),
            Some(Duration::from_secs(10))
        );
        assert_eq!(shortest_session("No cluster leader"), None);
    }
}
