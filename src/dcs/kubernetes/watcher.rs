//! Keeps the cache fed: a list, then events from its version on, for each of the two kinds.
//!
//! A watch is ended by the server after a while and begun again from where it was; one that has died without a word is noticed by that.
//! It counts as a source for reads only shortly after a sign of life, though: Kubernetes gives none while nothing happens.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::api::{Api, Failure};
use super::cache::{Cache, Kind};
use super::object::{Object, version};
use crate::clock;
use crate::types::Moment;

/// How long one watch lasts.
const LASTS: Duration = Duration::from_secs(15);
/// Before a watch that broke is begun again, and one that is not allowed.
const SOON: Duration = Duration::from_millis(250);
const LATER: Duration = Duration::from_secs(5);
/// How old the list of API servers may get.
const SERVERS_AGE: Duration = Duration::from_millis(9500);
/// How much later than it should end one counts as dead.
const GRACE: Duration = Duration::from_secs(3);

/// Where the objects of one kind are.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) kind: Kind,
    /// `/api/v1/namespaces/…/configmaps`.
    pub(super) path: String,
    pub(super) selector: String,
}

/// Runs for as long as the store's handle lives.
pub(super) async fn run(api: Arc<Api>, cache: Arc<Cache>, source: Source) {
    let (mut restarted, mut told) = (false, false);
    let mut soon = SOON;
    loop {
        let began = clock::now();
        let ended = follow(&api, &cache, &source, restarted).await;
        cache.set_alive(source.kind, false);
        restarted = true;
        // Each start lists everything: a server that is too busy for watches has to have less of that, not more.
        soon = match clock::now().since(began) > LATER {
            true => SOON,
            false => (soon * 2).min(LATER),
        };
        let pause = match ended {
            Ok(()) => SOON,
            // Nothing of that changes in a moment, and somebody has to do something about it.
            Err(Failure::Forbidden(detail) | Failure::Rejected(detail)) => {
                if !told {
                    tracing::warn!("the cluster's objects cannot be watched: {detail}");
                }
                told = true;
                LATER
            }
            Err(failure) => {
                told = false;
                let error = api.error(failure);
                tracing::debug!(%error, path = source.path, "the watch cannot be kept up, starting it again");
                soon
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Lists all of a kind into the cache; the version of the list.
pub(super) async fn refresh(
    api: &Api,
    cache: &Cache,
    source: &Source,
    deadline: Moment,
) -> Result<u64, Failure> {
    let before = cache.version(source.kind);
    let (objects, version) = api.list(deadline, &source.path, &source.selector).await?;
    // A list is as new as the last write before it was asked for. If it is older than what was known then, etcd came from a backup.
    cache.replace(source.kind, objects, version, version < before);
    Ok(version)
}

/// From a first list to the first failure.
async fn follow(api: &Api, cache: &Cache, source: &Source, restarted: bool) -> Result<(), Failure> {
    let mut seen = refresh(api, cache, source, api.deadline()).await?;
    if restarted {
        cache.announce();
    }
    loop {
        let mut lines = api
            .watch(&source.path, &source.selector, seen, LASTS)
            .await?;
        cache.set_alive(source.kind, true);
        let ends = clock::now() + LASTS + GRACE;
        loop {
            let next = tokio::time::timeout(clock::now().until(ends), lines.next());
            let Ok(next) = next.await else {
                return Err(Failure::Unreachable(api.describe("a watch died silently")));
            };
            let line = match next {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(error) => return Err(Failure::Unreachable(api.describe(&error))),
            };
            let event = serde_json::from_slice(&line).unwrap_or(Value::Null);
            match apply(cache, source.kind, &event) {
                Some(version) => seen = seen.max(version),
                None if event["object"]["code"] == 410 => return Err(Failure::Gone),
                None => {
                    let text = String::from_utf8_lossy(&line);
                    let text: String = text.chars().take(200).collect();
                    return Err(Failure::Unreachable(api.describe(&text)));
                }
            }
            cache.set_alive(source.kind, true);
        }
    }
}

/// Takes an event over; the version it brings the cache to, `None` for what is no event.
fn apply(cache: &Cache, kind: Kind, event: &Value) -> Option<u64> {
    let object = &event["object"];
    match event["type"].as_str()? {
        "BOOKMARK" => version(&object["metadata"]),
        "ADDED" | "MODIFIED" => {
            let object = Object::parse(object)?;
            let version = object.version;
            cache.put(kind, object, true);
            Some(version)
        }
        "DELETED" => {
            let object = Object::parse(object)?;
            cache.remove(kind, &object);
            Some(object.version)
        }
        _ => None,
    }
}

/// Learns where the API servers are, again and again: they come and go. Runs for as long as the store's handle lives, or until it may not.
pub(super) async fn watch_the_servers(api: Arc<Api>) {
    while api.learn_servers().await {
        tokio::time::sleep(SERVERS_AGE).await;
    }
}

/// Tells of the end of the leader's lease, of which the API servers know nothing. Runs for as long as the store's handle lives.
pub(super) async fn watch_the_lease(cache: Arc<Cache>) {
    let mut changes = cache.changes();
    let mut told = None;
    loop {
        match cache.ends_at().filter(|at| told != Some(*at)) {
            Some(at) => {
                tokio::time::sleep(clock::now().until(at) + Duration::from_millis(1)).await;
                if !cache.is_led() {
                    told = Some(at);
                    cache.announce();
                }
            }
            None => {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}
