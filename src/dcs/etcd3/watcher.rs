//! The watch-fed copy of the cluster's keys, and the task that keeps it fed.
//!
//! The copy counts only while the watch is known to be alive: the node confirms it on request, and stops confirming when it
//! has lost its leader. Whoever reads decides what to do otherwise; nothing here writes to the store or touches a lease.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use etcd_client::{EventType, GetOptions, GetResponse, KeyValue, WatchOptions, WatchResponse};
use tokio::sync::watch;

use super::pool::{Failure, Kind, Pool, Stamp};
use super::unpoisoned;
use crate::clock;
use crate::cluster::Cluster;
use crate::cluster::wire::{self, Entry};
use crate::dcs::keys::{self, Keys};
use crate::dcs::{DcsError, news};
use crate::types::{MemberName, Moment, Revision};

/// One key as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stored {
    value: String,
    revision: i64,
    lease: i64,
}

/// All keys of the cluster as of one revision.
#[derive(Debug, Default)]
struct Copy {
    keys: BTreeMap<String, Stored>,
    /// Everything up to this revision is in `keys`.
    revision: i64,
    /// In which of the store's histories that is.
    epoch: u64,
    /// When the watch last gave a sign of life; `None` while there is no watch.
    alive: Option<Moment>,
}

/// The copy, what must be in it, and who wants to hear of changes.
pub(super) struct Cache {
    keys: Keys,
    me: Option<MemberName>,
    copy: Mutex<Copy>,
    /// A revision this node knows to exist, from its own writes and refusals.
    wanted: Mutex<i64>,
    changes: watch::Sender<u64>,
}

impl Cache {
    pub(super) fn new(keys: Keys, me: Option<MemberName>) -> Self {
        Cache {
            keys,
            me,
            copy: Mutex::default(),
            wanted: Mutex::new(0),
            changes: watch::Sender::new(0),
        }
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// From now on a copy older than `revision` does not count.
    pub(super) fn require(&self, revision: i64) {
        let mut wanted = unpoisoned(&self.wanted);
        *wanted = (*wanted).max(revision);
    }

    /// The snapshot from the copy, if the watch has given a sign of life within `silence` and the copy is new enough.
    pub(super) fn recent(&self, silence: Duration) -> Option<Cluster> {
        let copy = unpoisoned(&self.copy);
        let fresh = copy
            .alive
            .is_some_and(|at| clock::now().since(at) <= silence);
        let complete = copy.revision >= *unpoisoned(&self.wanted);
        (fresh && complete).then(|| copy.assemble())
    }

    /// Whether the copy, as `recent` would give it, has exactly this value on this lease under the key.
    pub(super) fn has(&self, relative: &str, value: &str, lease: i64, silence: Duration) -> bool {
        let copy = unpoisoned(&self.copy);
        let fresh = copy
            .alive
            .is_some_and(|at| clock::now().since(at) <= silence);
        let complete = copy.revision >= *unpoisoned(&self.wanted);
        fresh
            && complete
            && copy.keys.get(relative).is_some_and(|stored| {
                stored.lease == lease && wire::same_text(&stored.value, value)
            })
    }

    /// Reads everything, newer than any write before, and keeps it as the copy.
    pub(super) async fn load(&self, pool: &Pool, deadline: Moment) -> Result<Cluster, DcsError> {
        let answer = read(pool, deadline, &self.keys)
            .await
            .map_err(Failure::into_error)?;
        let fresh = parse(&self.keys, &answer.1);
        let cluster = wire::assemble(entries(&fresh, &leases(&fresh)));
        self.replace(fresh, answer.0.revision, pool.epoch());
        Ok(cluster)
    }

    /// Reads all groups; the copy is of one.
    pub(super) async fn load_groups(
        &self,
        pool: &Pool,
        deadline: Moment,
    ) -> Result<BTreeMap<u32, Cluster>, DcsError> {
        let all = self.keys.of_all_groups();
        let answer = read(pool, deadline, &all)
            .await
            .map_err(Failure::into_error)?;
        let found = parse(&all, &answer.1);
        Ok(keys::assemble_groups(entries(&found, &leases(&found))))
    }

    /// Puts a whole read in place of the copy, unless the copy is newer.
    fn replace(&self, fresh: BTreeMap<String, Stored>, revision: i64, epoch: u64) {
        let mut copy = unpoisoned(&self.copy);
        if copy.epoch == epoch && revision < copy.revision {
            return;
        }
        if copy.epoch != epoch {
            *unpoisoned(&self.wanted) = 0;
        }
        let names: Vec<&String> = fresh.keys().chain(copy.keys.keys()).collect();
        let news = names.iter().any(|key| {
            let value = |keys: &BTreeMap<String, Stored>| keys.get(*key).map(|s| s.value.clone());
            self.is_news(
                &copy,
                key,
                value(&copy.keys).as_deref(),
                value(&fresh).as_deref(),
            )
        });
        copy.keys = fresh;
        copy.revision = revision;
        copy.epoch = epoch;
        drop(copy);
        if news {
            self.announce();
        }
    }

    /// Takes over what one message of the watch says.
    fn apply(&self, message: &WatchResponse) {
        let mut copy = unpoisoned(&self.copy);
        let base = copy.revision;
        let mut news = false;
        for event in message.events() {
            // A whole read may already have brought what the watch still has on its way.
            let Some(kv) = event.kv().filter(|kv| kv.mod_revision() > base) else {
                continue;
            };
            let Some((key, stored)) = entry(&self.keys, kv) else {
                continue;
            };
            copy.revision = copy.revision.max(stored.revision);
            let new = (event.event_type() == EventType::Put).then_some(stored);
            let old = copy.keys.get(&key).map(|stored| stored.value.clone());
            let value = new.as_ref().map(|stored| stored.value.as_str());
            news |= self.is_news(&copy, &key, old.as_deref(), value);
            match new {
                Some(stored) => {
                    copy.keys.insert(key, stored);
                }
                None => {
                    copy.keys.remove(&key);
                }
            }
        }
        copy.alive = Some(clock::now());
        drop(copy);
        if news {
            self.announce();
        }
    }

    fn is_news(&self, copy: &Copy, key: &str, old: Option<&str>, new: Option<&str>) -> bool {
        let leader = copy
            .keys
            .get(keys::LEADER)
            .map(|stored| stored.value.as_str());
        let i_lead = self
            .me
            .as_ref()
            .is_some_and(|me| leader == Some(me.as_str()));
        news::is_news(self.me.as_ref(), i_lead, key, old, new)
    }

    fn announce(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn set_alive(&self, alive: bool) {
        unpoisoned(&self.copy).alive = alive.then(clock::now);
    }
}

impl Copy {
    fn assemble(&self) -> Cluster {
        wire::assemble(entries(&self.keys, &leases(&self.keys)))
    }
}

async fn read(pool: &Pool, deadline: Moment, keys: &Keys) -> Result<(Stamp, GetResponse), Failure> {
    let prefix = keys.prefix();
    let answer = pool
        .call(deadline, Kind::Read, |client| async move {
            let options = GetOptions::new().with_prefix();
            client.kv_client().get(prefix, Some(options)).await
        })
        .await?;
    let stamp = answer.header().map(Stamp::from).unwrap_or_default();
    Ok((stamp, answer))
}

fn parse(keys: &Keys, answer: &GetResponse) -> BTreeMap<String, Stored> {
    answer
        .kvs()
        .iter()
        .filter_map(|kv| entry(keys, kv))
        .collect()
}

fn entry(keys: &Keys, kv: &KeyValue) -> Option<(String, Stored)> {
    let key = String::from_utf8_lossy(kv.key());
    let stored = Stored {
        value: String::from_utf8_lossy(kv.value()).into_owned(),
        revision: kv.mod_revision(),
        lease: kv.lease(),
    };
    Some((keys.relative(&key)?.to_owned(), stored))
}

/// Leases as snapshots have them, in the order of the keys.
fn leases(keys: &BTreeMap<String, Stored>) -> Vec<Option<String>> {
    keys.values()
        .map(|stored| (stored.lease != 0).then(|| stored.lease.to_string()))
        .collect()
}

fn entries<'a>(
    keys: &'a BTreeMap<String, Stored>,
    leases: &'a [Option<String>],
) -> impl Iterator<Item = Entry<'a>> {
    keys.iter().zip(leases).map(|((key, stored), lease)| Entry {
        key,
        value: &stored.value,
        revision: model_revision(stored.revision),
        session: lease.as_deref(),
    })
}

/// How often a silent watch is asked whether it is alive.
pub(super) fn heartbeat(retry_timeout: Duration) -> Duration {
    (retry_timeout / 4).clamp(Duration::from_millis(500), Duration::from_millis(2500))
}

/// How long a watch may be silent and still count as alive.
pub(super) fn silence(retry_timeout: Duration) -> Duration {
    heartbeat(retry_timeout) * 2
}

/// Keeps the copy fed and the list of nodes right for as long as the store's handle lives.
pub(super) async fn run(pool: Arc<Pool>, cache: Arc<Cache>) {
    tokio::join!(keep_following(&pool, &cache), pool.keep_discovering());
}

async fn keep_following(pool: &Pool, cache: &Cache) {
    let mut restarted = false;
    loop {
        let end = follow(pool, cache, restarted).await;
        cache.set_alive(false);
        match end {
            Ok(reason) => tracing::debug!(reason, "the watch has ended, starting it again"),
            Err(error) => tracing::debug!(%error, "the watch cannot be kept up, starting it again"),
        }
        restarted = true;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// One watch from its first read to its end.
async fn follow(pool: &Pool, cache: &Cache, restarted: bool) -> Result<&'static str, DcsError> {
    cache.load(pool, pool.deadline()).await?;
    let start = unpoisoned(&cache.copy).revision;
    let (client, url) = pool.stream_client().await.map_err(Failure::into_error)?;
    let failed = |detail: String| super::pool::error(&url, &detail);
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(start + 1);
    let patience = silence(pool.timings().retry_timeout);
    let mut watch_client = client.watch_client();
    let opening = watch_client.watch(cache.keys.prefix(), Some(options));
    let mut stream = tokio::time::timeout(patience, opening)
        .await
        .map_err(|_| failed("the watch does not start".to_owned()))?
        .map_err(|e| failed(e.to_string()))?;
    if restarted {
        cache.announce();
    }
    let mut asked = false;
    loop {
        let interval = heartbeat(pool.timings().retry_timeout);
        let message = match tokio::time::timeout(interval, stream.message()).await {
            Ok(message) => message.map_err(|e| failed(e.to_string()))?,
            Err(_) if asked => return Ok("no sign of life"),
            Err(_) => {
                asked = true;
                stream
                    .request_progress()
                    .await
                    .map_err(|e| failed(e.to_string()))?;
                continue;
            }
        };
        asked = false;
        let Some(message) = message else {
            return Ok("closed by the node");
        };
        if message.canceled() || message.compact_revision() > 0 {
            return Ok("cancelled by the node");
        }
        cache.apply(&message);
    }
}

/// A revision as the model has it.
pub(super) fn model_revision(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}
