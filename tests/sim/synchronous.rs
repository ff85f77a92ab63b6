//! PostgreSQL's own rule for telling a client that its commit is done, read from the text of `synchronous_standby_names` as the server
//! reads it. Written apart from the core's, so that the two can disagree.

use std::collections::BTreeMap;

use howdah::ha::observation::Standing;

/// How the listed standbys are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    First,
    Any,
}

/// A value of `synchronous_standby_names` that is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    method: Method,
    count: usize,
    listed: Vec<String>,
}

impl Rule {
    /// `None`: commits wait for nobody. The names of this world need no quotes.
    pub(crate) fn read(text: &str) -> Option<Rule> {
        if text.is_empty() {
            return None;
        }
        let (method, rest) = text
            .strip_prefix("ANY ")
            .map_or((Method::First, text), |rest| (Method::Any, rest));
        let (count, list) = match rest.split_once(" (") {
            Some((count, list)) => (count.parse().ok()?, list.trim_end_matches(')')),
            None => (1, rest),
        };
        Some(Rule {
            method,
            count,
            listed: list.split(',').map(str::to_owned).collect(),
        })
    }

    /// The listed ones that are connected, in the order of the list.
    fn connected<'a>(&'a self, flushed: &'a BTreeMap<&str, u64>) -> impl Iterator<Item = u64> + 'a {
        self.listed
            .iter()
            .filter_map(|name| flushed.get(name.as_str()).copied())
    }

    /// Up to where commits are confirmed, given what the connected standbys have flushed.
    pub(crate) fn confirmed(&self, flushed: &BTreeMap<&str, u64>) -> Option<u64> {
        let mut positions: Vec<u64> = self.connected(flushed).collect();
        match self.method {
            Method::First => positions.truncate(self.count),
            Method::Any => positions.sort_unstable_by(|a, b| b.cmp(a)),
        }
        let enough = self.count.checked_sub(1)?;
        match self.method {
            Method::First if positions.len() < self.count => None,
            Method::First => positions.into_iter().min(),
            Method::Any => positions.get(enough).copied(),
        }
    }

    /// `sync_state` of a connection.
    pub(crate) fn standing(&self, name: &str, flushed: &BTreeMap<&str, u64>) -> Standing {
        let place = self
            .listed
            .iter()
            .filter(|listed| flushed.contains_key(listed.as_str()))
            .position(|listed| listed == name);
        match (self.method, place) {
            (_, None) => Standing::Async,
            (Method::Any, Some(_)) => Standing::Quorum,
            (Method::First, Some(place)) if place < self.count => Standing::Sync,
            (Method::First, Some(_)) => Standing::Potential,
        }
    }
}
