//! Objects as API servers write them, and what becomes of them.

use super::*;
use crate::types::MemberName;

fn object(name: &str, version: u64, annotations: Value) -> Object {
    Object::parse(&json!({
        "kind": "ConfigMap",
        "metadata": { "name": name, "resourceVersion": version.to_string(), "annotations": annotations },
    }))
    .unwrap()
}

fn names(group: Option<u32>, use_endpoints: bool) -> Names {
    Names {
        scope: "demo".to_owned(),
        group,
        use_endpoints,
        labels: BTreeMap::from([
            ("app".to_owned(), "pg".to_owned()),
            ("cluster-name".to_owned(), "demo".to_owned()),
        ]),
    }
}

#[test]
fn a_cluster_as_patroni_writes_it() {
    let objects = [
        object(
            "demo-leader",
            7,
            json!({
                "leader": "demo-0", "acquireTime": "2026-01-01T00:00:00.000000+00:00", "ttl": "30",
                "renewTime": "2026-01-01T00:00:10.000000+00:00", "transitions": "3",
                "optime": "67108960", "slots": "{\"demo_1\":67108960}", "retain_slots": "[\"demo_2\", \"demo_3\"]",
                "failsafe": "{\"demo-0\":\"http://x:8008/patroni\"}",
            }),
        ),
        object(
            "demo-config",
            5,
            json!({ "config": "{\"ttl\":30}", "initialize": "7000", "history": "[]" }),
        ),
        object(
            "demo-sync",
            6,
            json!({ "leader": "demo-0", "sync_standby": "demo-1", "quorum": "1" }),
        ),
        object(
            "demo-failover",
            4,
            json!({ "leader": "demo-0", "member": "demo-1" }),
        ),
        object("demo-other", 9, json!({ "leader": "nobody" })),
    ];
    let pods = [object(
        "demo-0",
        8,
        json!({ "status": "{\"state\":\"running\",\"role\":\"primary\"}" }),
    )];
    let cluster = names(None, false).assemble(objects.iter(), pods.iter(), true);
    let leader = cluster.leader.as_ref().unwrap();
    assert_eq!(
        (leader.name.as_str(), leader.revision),
        ("demo-0", Revision(7))
    );
    assert_eq!(cluster.status.optime.0, 67_108_960);
    assert_eq!(cluster.status.slots["demo_1"].0, 67_108_960);
    assert_eq!(cluster.status.retain_slots.len(), 2);
    assert_eq!(cluster.config_revision, Some(Revision(5)));
    assert_eq!(cluster.sync.quorum, 1);
    assert_eq!(cluster.sync.standbys, [MemberName::new("demo-1").unwrap()]);
    assert!(cluster.failover.is_some() && cluster.failsafe.is_some());
    assert_eq!(cluster.members.len(), 1);
    let expired = names(None, false).assemble(objects.iter(), pods.iter(), false);
    assert!(expired.is_unlocked());
}

#[test]
fn documents_survive_being_split_up() {
    for (document, value) in [
        (
            Document::Status,
            "{\"optime\":67108960,\"slots\":{\"a\":1},\"retain_slots\":[\"b\"]}",
        ),
        (
            Document::Sync,
            "{\"leader\":\"a\",\"quorum\":1,\"sync_standby\":\"b,c\"}",
        ),
        (Document::Failover, "{\"leader\":\"a\",\"member\":\"b\"}"),
    ] {
        let annotations = split(document, value).unwrap();
        let present: Value = json!(annotations);
        let part = object("x", 1, present);
        let again = split(document, &joined(&part, document)).unwrap();
        assert_eq!(annotations, again, "{value}");
    }
    assert!(split(Document::Sync, "nonsense").is_err());
    let empty = split(Document::Failover, "{}").unwrap();
    assert!(empty.len() == 3 && empty.values().all(Option::is_none));
}

#[test]
fn transitions_count_the_changes_of_the_leader() {
    let first = Record::default().claimed("a", 30, WallTime(0));
    assert_eq!(first.transitions.as_deref(), Some("0"));
    assert_eq!(
        first.acquired.as_deref(),
        Some("1970-01-01T00:00:00.000000+00:00")
    );
    let other = first.claimed("b", 30, WallTime(1500));
    assert_eq!(other.transitions.as_deref(), Some("1"));
    assert_eq!(
        other.acquired.as_deref(),
        Some("1970-01-01T00:00:01.500000+00:00")
    );
    let again = other.claimed("b", 20, WallTime(9000));
    assert_eq!(
        (&again.transitions, &again.acquired),
        (&other.transitions, &other.acquired)
    );
    assert_eq!(again.ttl.as_deref(), Some("20"));
    let most = Record {
        transitions: Some(u64::MAX.to_string()),
        ..again
    };
    assert_eq!(
        most.claimed("c", 20, WallTime(0)).transitions,
        most.transitions
    );
}

#[test]
fn a_renewal_goes_on_with_a_tenure_and_another_leader_does_not() {
    let first = Record::default().claimed("a", 30, WallTime(0));
    let renewed = first.renewed(20, WallTime(9000));
    assert!(renewed != first && renewed.is_same_tenure(&first));
    assert!(!first.claimed("b", 30, WallTime(0)).is_same_tenure(&first));
    let released = Record {
        leader: None,
        ..first.clone()
    };
    let again = released.claimed("a", 30, WallTime(9000));
    assert!(!again.is_same_tenure(&first));
}

#[test]
fn names_and_selectors_with_and_without_a_group() {
    assert_eq!(names(None, false).name(Part::Leader), "demo-leader");
    assert_eq!(names(None, true).name(Part::Leader), "demo");
    assert_eq!(names(Some(2), true).name(Part::Leader), "demo-2");
    assert_eq!(names(Some(0), true).name(Part::Config), "demo-0-config");
    assert_eq!(names(Some(2), true).selector(), "app=pg,cluster-name=demo");
    assert_eq!(
        names(Some(2), true).own_selector(),
        "app=pg,citus-group=2,cluster-name=demo"
    );
}

#[test]
fn subsets_are_written_only_when_they_change() {
    let pod = Object::parse(&json!({
        "kind": "Pod",
        "metadata": { "name": "demo-0", "resourceVersion": "8", "uid": "u" },
        "spec": { "nodeName": "n" },
        "status": { "podIP": "10.0.0.1" },
    }))
    .unwrap();
    let ports = [json!({ "name": "postgresql", "port": 5432 })];
    let wanted = subsets(None, &pod, None, "default", &ports).unwrap();
    assert_eq!(wanted[0]["addresses"][0]["ip"], "10.0.0.1");
    assert_eq!(wanted[0]["addresses"][0]["targetRef"]["uid"], "u");
    let mut written = wanted.clone();
    // As the API server gives it back.
    written[0]["ports"][0]["protocol"] = "TCP".into();
    let mut object = object("demo", 1, json!({}));
    object.subsets = Some(written);
    let mut later = pod.clone();
    later.version = 99;
    assert_eq!(
        subsets(Some(&object), &later, None, "default", &ports),
        None
    );
    assert!(subsets(Some(&object), &later, Some("10.0.0.2"), "default", &ports).is_some());
    later.pod = None;
    assert_eq!(
        subsets(None, &later, None, "default", &ports),
        None,
        "the address is unknown"
    );
    assert_eq!(no_subsets(&object), Some(json!([])));
    object.subsets = Some(json!([]));
    assert_eq!(no_subsets(&object), None);
}

#[test]
fn role_labels_by_situation() {
    let labels = RoleLabels {
        role: "role".to_owned(),
        leader: "primary".to_owned(),
        follower: "replica".to_owned(),
        standby_leader: "sl".to_owned(),
        temporary: Some("tmp".to_owned()),
        bootstrap: BTreeMap::from([("boot".to_owned(), "yes".to_owned())]),
    };
    let of = |text: &str, leads| {
        let member = wire::parse_member(MemberName::new("a").unwrap(), None, text);
        let labels = labels.labels(&member, leads);
        ["role", "tmp", "boot"].map(|name| labels[name].clone().unwrap_or_default())
    };
    let running = |role| format!("{{\"state\":\"running\",\"role\":\"{role}\"}}");
    assert_eq!(of(&running("primary"), true), ["primary", "primary", ""]);
    assert_eq!(of(&running("standby_leader"), true), ["sl", "primary", ""]);
    assert_eq!(of(&running("replica"), false), ["replica", "replica", ""]);
    assert_eq!(of(&running("demoted"), false), ["demoted", "demoted", ""]);
    assert_eq!(of(&running("primary"), false), ["", "", ""]);
    assert_eq!(
        of("{\"state\":\"stopped\",\"role\":\"replica\"}", false),
        ["", "", ""]
    );
    assert_eq!(
        of(
            "{\"state\":\"creating replica\",\"role\":\"replica\"}",
            false
        ),
        ["", "", "yes"]
    );
}
