//! Which changes in the store are news to a node, so that it runs its loop at once (spec/dcs.md §4.5).
//!
//! The rule every watching backend shows. It must not feed itself: whatever a node writes in every turn is no news to the nodes
//! that would answer it with a write of their own.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::keys;
use crate::cluster::{Cluster, Member, wire};
use crate::types::MemberName;

/// Positions that move all the time; a member document that differs in nothing else is no news.
const POSITIONS: [&str; 3] = ["xlog_location", "replay_lsn", "receive_lsn"];

/// Whether the change of one relative key from `old` to `new` (`None` = absent) is news to `me`.
///
/// My own member document never is. `status` is news to everybody but the leader, who writes it.
#[must_use]
pub fn is_news(
    me: Option<&MemberName>,
    i_lead: bool,
    key: &str,
    old: Option<&str>,
    new: Option<&str>,
) -> bool {
    if let Some(member) = keys::member_name(key) {
        return me != Some(&member) && without_positions(old) != without_positions(new);
    }
    match key {
        "status" | "optime/leader" => !i_lead && old != new,
        keys::LEADER | "initialize" | "config" | "sync" | "failover" | "history" | "failsafe" => {
            old != new
        }
        _ => false,
    }
}

/// The same rule between two snapshots, for stores that only say that something has changed.
#[must_use]
pub fn is_news_between(me: &MemberName, i_lead: bool, before: &Cluster, after: &Cluster) -> bool {
    let leader = |cluster: &Cluster| {
        let leader = cluster.leader.as_ref();
        leader.map(|leader| (leader.name.clone(), leader.session.clone()))
    };
    let document = |members: &BTreeMap<MemberName, Member>, name| {
        let text = members.get(name).map(wire::member_text);
        without_positions(text.as_deref())
    };
    let names: BTreeSet<&MemberName> = before.members.keys().chain(after.members.keys()).collect();
    leader(before) != leader(after)
        || before.initialize != after.initialize
        || before.config_revision != after.config_revision
        || before.failover != after.failover
        || before.sync != after.sync
        || before.history != after.history
        || before.failsafe != after.failsafe
        || !i_lead && before.status != after.status
        || names
            .into_iter()
            .filter(|name| *name != me)
            .any(|name| document(&before.members, name) != document(&after.members, name))
}

/// The document without what moves all the time; text that is no object stands for itself.
fn without_positions(text: Option<&str>) -> Option<Value> {
    let text = text?;
    match serde_json::from_str(text) {
        Ok(Value::Object(mut data)) => {
            data.retain(|key, _| !POSITIONS.contains(&key.as_str()));
            Some(Value::Object(data))
        }
        _ => Some(Value::from(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_everybody_writes_all_the_time_wakes_nobody() {
        let me = MemberName::new("me").unwrap();
        let news = |lead, key, old, new| is_news(Some(&me), lead, key, old, new);
        let (slow, fast) = (
            r#"{"state":"running","xlog_location":1}"#,
            r#"{"state":"running","xlog_location":2}"#,
        );
        let stopped = r#"{"state":"stopped","xlog_location":2}"#;
        assert!(!news(false, "members/other", Some(slow), Some(fast)));
        assert!(news(false, "members/other", Some(fast), Some(stopped)));
        assert!(news(false, "members/other", Some(fast), None));
        assert!(news(false, "members/other", None, Some("garbage")));
        assert!(!news(false, "members/me", Some(fast), Some(stopped)));
        assert!(news(false, "status", Some("1"), Some("2")));
        assert!(!news(true, "status", Some("1"), Some("2")));
        assert!(news(true, "failover", None, Some("{}")));
        assert!(!news(false, "leader", Some("a"), Some("a")));
        assert!(news(false, "leader", Some("a"), None));
        assert!(!news(false, "unknown", None, Some("1")));
    }
}
