//! Where things are in the store: path construction (spec/dcs.md §1.1). Pure text; knows no backend and no document's content.

use std::collections::BTreeMap;

use super::{Document, Identity};
use crate::cluster::Cluster;
use crate::cluster::wire::{self, Entry};
use crate::types::MemberName;

/// The relative key of the leader lock.
pub const LEADER: &str = "leader";
/// The relative folder of the member documents.
pub const MEMBERS: &str = "members/";

/// `/namespace/scope` with runs of slashes collapsed and no trailing slash. No namespace means `service`.
#[must_use]
pub fn base(namespace: Option<&str>, scope: &str) -> String {
    let mut path = String::new();
    for part in [namespace.unwrap_or("service"), scope]
        .iter()
        .flat_map(|text| text.split('/'))
    {
        if !part.is_empty() {
            path.push('/');
            path.push_str(part);
        }
    }
    path
}

/// The absolute keys of one cluster (or one Citus group of it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    base: String,
    prefix: String,
}

impl Keys {
    /// The keys of the cluster that `identity` belongs to.
    #[must_use]
    pub fn of(identity: &Identity) -> Self {
        Keys::new(&identity.base, identity.group)
    }

    /// The keys below `base`, or below one Citus group of it.
    #[must_use]
    pub fn new(base: &str, group: Option<u32>) -> Self {
        let base = base.trim_end_matches('/').to_owned();
        let prefix = match group {
            Some(group) => format!("{base}/{group}/"),
            None => format!("{base}/"),
        };
        Keys { base, prefix }
    }

    /// The keys of all Citus groups together.
    #[must_use]
    pub fn of_all_groups(&self) -> Keys {
        Keys::new(&self.base, None)
    }

    /// What every key of the cluster begins with; ends with a slash.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The leader lock.
    #[must_use]
    pub fn leader(&self) -> String {
        self.absolute(LEADER)
    }

    /// One member's document.
    #[must_use]
    pub fn member(&self, name: &MemberName) -> String {
        format!("{}{MEMBERS}{name}", self.prefix)
    }

    /// One permanent document.
    #[must_use]
    pub fn document(&self, document: Document) -> String {
        self.absolute(document.key())
    }

    /// The absolute form of a relative key.
    #[must_use]
    pub fn absolute(&self, relative: &str) -> String {
        format!("{}{relative}", self.prefix)
    }

    /// The relative form of an absolute key; `None` when it belongs to somebody else.
    #[must_use]
    pub fn relative<'a>(&self, absolute: &'a str) -> Option<&'a str> {
        absolute.strip_prefix(self.prefix.as_str())
    }
}

/// The snapshots of all Citus groups from keys relative to the *base* path; keys of no group are left out.
pub fn assemble_groups<'a>(entries: impl IntoIterator<Item = Entry<'a>>) -> BTreeMap<u32, Cluster> {
    let mut groups: BTreeMap<u32, Vec<Entry<'a>>> = BTreeMap::new();
    for entry in entries {
        if let Some((group, key)) = split_group(entry.key) {
            groups
                .entry(group)
                .or_default()
                .push(Entry { key, ..entry });
        }
    }
    groups
        .into_iter()
        .map(|(group, entries)| (group, wire::assemble(entries)))
        .collect()
}

/// Splits a key relative to the *base* path into its Citus group and the rest; `None` when the first part is no group.
///
/// A group is a decimal number without leading zeros (`^(0|[1-9][0-9]*)$`).
#[must_use]
pub fn split_group(relative_to_base: &str) -> Option<(u32, &str)> {
    let (first, rest) = relative_to_base.split_once('/')?;
    let canonical = first == "0" || !first.starts_with(['0', '+']);
    let group = first.parse().ok()?;
    canonical.then_some((group, rest))
}

/// The name in a relative member key: `members/<name>` with exactly one slash.
#[must_use]
pub fn member_name(relative: &str) -> Option<MemberName> {
    let name = relative.strip_prefix(MEMBERS)?;
    (!name.contains('/'))
        .then(|| MemberName::new(name).ok())
        .flatten()
}

/// The end of the range of all keys that begin with `prefix`: the last byte below 0xff raised by one.
#[must_use]
pub fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_spellings_lead_to_one_path() {
        for namespace in [None, Some("service"), Some("/service/"), Some("//service")] {
            assert_eq!(base(namespace, "demo"), "/service/demo");
        }
        assert_eq!(base(Some("a/b"), "demo"), "/a/b/demo");
        assert_eq!(base(Some("/"), "demo"), "/demo");
    }

    #[test]
    fn keys_of_a_plain_cluster_and_of_a_group() {
        let name = MemberName::new("node1").unwrap();
        let plain = Keys::new("/service/demo", None);
        assert_eq!(plain.leader(), "/service/demo/leader");
        assert_eq!(plain.member(&name), "/service/demo/members/node1");
        assert_eq!(
            plain.document(Document::LegacyOptime),
            "/service/demo/optime/leader"
        );
        assert_eq!(plain.relative("/service/demo/config"), Some("config"));
        assert_eq!(plain.relative("/service/demo2/config"), None);
        let group = Keys::new("/service/demo", Some(0));
        assert_eq!(group.leader(), "/service/demo/0/leader");
        assert_eq!(group.of_all_groups(), plain);
    }

    #[test]
    fn groups_are_canonical_numbers() {
        assert_eq!(split_group("0/leader"), Some((0, "leader")));
        assert_eq!(split_group("12/members/a"), Some((12, "members/a")));
        for other in ["leader", "members/a", "01/leader", "+1/leader", "/leader"] {
            assert_eq!(split_group(other), None, "{other}");
        }
    }

    #[test]
    fn member_keys_have_exactly_one_slash() {
        assert_eq!(
            member_name("members/a").map(|n| n.to_string()),
            Some("a".to_owned())
        );
        for other in ["members/", "members/a/b", "members", "leader"] {
            assert_eq!(member_name(other), None, "{other}");
        }
    }

    #[test]
    fn range_end_raises_the_last_byte_that_can_be_raised() {
        assert_eq!(range_end(b"/a/"), b"/a0");
        assert_eq!(range_end(b"a\xff"), b"b");
        assert_eq!(range_end(b"\xff"), b"\0");
    }
}
