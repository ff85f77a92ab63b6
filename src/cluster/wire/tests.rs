use super::*;
use crate::types::WallTime;

fn name(text: &str) -> MemberName {
    MemberName::new(text).unwrap()
}

fn entry<'a>(key: &'a str, value: &'a str) -> Entry<'a> {
    Entry {
        key,
        value,
        revision: Revision(7),
        session: None,
    }
}

const MEMBER: &str = concat!(
    r#"{"conn_url":"postgres://10.0.0.1:5432/postgres","api_url":"http://10.0.0.1:8008/patroni","state":"running","#,
    r#""role":"replica","version":"4.1.4","proxy_url":"postgres://proxy:5432/postgres","checkpoint_after_promote":false,"#,
    r#""tags":{"clonefrom":true,"nofailover":false,"failover_priority":2,"replicatefrom":"node3","datacenter":"b"},"#,
    r#""pending_restart":true,"pending_restart_reason":{"max_connections":{"old_value":"100","new_value":"200"}},"#,
    r#""xlog_location":67108960,"replay_lsn":67108960,"receive_lsn":67108961,"replication_state":"in archive recovery","#,
    r#""timeline":3,"scheduled_restart":{"schedule":"2030-01-01T00:00:00+00:00"},"pause":true}"#
);

#[test]
fn a_full_member_survives_both_directions() {
    let member = parse_member(name("node1"), Some("42"), MEMBER);
    assert_eq!(member.session.as_deref(), Some("42"));
    assert_eq!(member.role, Some(Role::Replica));
    assert_eq!(member.state, Some(PgState::Running));
    assert!(!member.checkpoint_after_promote);
    assert_eq!(member.tags.leader_priority(), 2);
    assert_eq!(member.tags.custom["datacenter"], "b");
    assert_eq!(
        member.pending_restart.as_ref().unwrap()["max_connections"].new_value,
        "200"
    );
    assert_eq!(member.receive_lsn, Some(Lsn(67_108_961)));
    assert_eq!(member.timeline, Some(Timeline(3)));
    assert!(member.pause);
    assert_eq!(member_text(&member), MEMBER);
}

#[test]
fn a_member_without_content_is_a_placeholder() {
    for text in [
        "",
        "{",
        "[]",
        "17",
        "null",
        "hello",
        "{\"tags\":4,\"timeline\":\"x\",\"role\":[]}",
    ] {
        assert_eq!(
            parse_member(name("a"), None, text),
            Member::unknown(name("a")),
            "{text}"
        );
    }
    assert_eq!(member_text(&Member::unknown(name("a"))), "{}");
}

#[test]
fn the_url_form_of_old_nodes_is_read() {
    let text =
        "postgres://u@127.0.0.1:5432/postgres?application_name=http%3A//127.0.0.1:8008/patroni";
    let member = parse_member(name("a"), None, text);
    assert_eq!(
        member.conn_url.as_deref(),
        Some("postgres://u@127.0.0.1:5432/postgres")
    );
    assert_eq!(
        member.api_url.as_deref(),
        Some("http://127.0.0.1:8008/patroni")
    );
    assert_eq!(percent_decoded("a%2"), "a%2");
    assert_eq!(percent_decoded("%zz+%C3%A4"), "%zz ä");
}

#[test]
fn every_role_and_state_has_one_spelling() {
    for (role, text) in ROLES {
        assert_eq!(role_text(role), text);
        assert_eq!(parse_role(text), Some(role));
    }
    for (index, (state, text)) in STATES.into_iter().enumerate() {
        assert_eq!(state as usize, index);
        assert_eq!(state_text(state), text);
        assert_eq!(parse_state(text), Some(state));
    }
    assert_eq!(parse_role("master"), Some(Role::Primary));
    assert_eq!(parse_role("king"), None);
}

#[test]
fn tags_are_published_by_the_rules() {
    let published = |text: &str| {
        let tags = parse_tags(&object(text).unwrap());
        Value::Object(tags_object(&tags)).to_string()
    };
    assert_eq!(
        published(r#"{"nofailover":false,"nosync":"off","clonefrom":0,"nostream":"yes"}"#),
        r#"{"nostream":true}"#
    );
    assert_eq!(
        published(r#"{"nosync":false,"sync_priority":"3"}"#),
        r#"{"nosync":false,"sync_priority":3}"#
    );
    assert_eq!(
        published(r#"{"replicatefrom":null,"x":[1,2]}"#),
        r#"{"x":[1,2]}"#
    );
}

#[test]
fn status_golden_samples() {
    // The order inside `slots` is ours (sorted); nothing depends on it.
    let text = r#"{"optime":67108960,"slots":{"logical_x":67100000,"node1":67108960,"node2":67108960},"retain_slots":["node2","node3"]}"#;
    let status = parse_status(text);
    assert_eq!(status.optime, Lsn(67_108_960));
    assert_eq!(status.slots["logical_x"], Lsn(67_100_000));
    assert_eq!(status_text(&status), text);
    assert_eq!(status_text(&Status::default()), "{}");
    // Structured parts as strings, numbers as strings, a bare number, an unreadable slot.
    let strings = r#"{"optime":"67108960","slots":"{\"a\": \"5\", \"b\": null}","retain_slots":"[\"z\", \"y\"]"}"#;
    let status = parse_status(strings);
    assert_eq!(
        status.slots,
        BTreeMap::from([("a".to_owned(), Lsn(5)), ("b".to_owned(), Lsn(0))])
    );
    assert_eq!(
        status_text(&status),
        r#"{"optime":67108960,"slots":{"a":5,"b":0},"retain_slots":["y","z"]}"#
    );
    assert_eq!(parse_status("67108960").optime, Lsn(67_108_960));
    for text in [
        "",
        "{",
        "[1]",
        "null",
        "{\"optime\":-1,\"slots\":[],\"retain_slots\":{}}",
    ] {
        assert_eq!(parse_status(text), Status::default(), "{text}");
    }
}

#[test]
fn the_legacy_position_counts_only_without_status() {
    assert_eq!(
        assemble([entry("optime/leader", "99")]).status.optime,
        Lsn(99)
    );
    let both = assemble([
        entry("status", r#"{"optime":5}"#),
        entry("optime/leader", "99"),
    ]);
    assert_eq!(both.status.optime, Lsn(5));
    assert_eq!(legacy_optime_text(Lsn(99)), "99");
}

#[test]
fn sync_golden_samples() {
    for text in [
        r#"{"leader":"node1","quorum":0,"sync_standby":"node2,node3"}"#,
        r#"{"leader":"node1","quorum":1,"sync_standby":"node2,node3,node4"}"#,
        r#"{"leader":"node1","quorum":0,"sync_standby":null}"#,
    ] {
        assert_eq!(sync_text(&parse_sync(text, None)), text);
    }
    let lenient = parse_sync(
        r#"{"sync_standby": " b , a,", "leader": "n", "quorum": "2"}"#,
        Some(Revision(3)),
    );
    assert_eq!(lenient.standbys, [name("a"), name("b")]);
    assert_eq!(lenient.quorum, 2);
    for text in [
        "",
        "{}",
        "[]",
        "{\"leader\":null,\"sync_standby\":\"a\"}",
        "{\"leader\":\"\"}",
        "x",
    ] {
        let sync = parse_sync(text, Some(Revision(3)));
        assert_eq!(
            sync,
            SyncState {
                revision: Some(Revision(3)),
                ..SyncState::default()
            },
            "{text}"
        );
    }
    assert_eq!(sync_text(&SyncState::default()), "{}");
}

#[test]
fn failover_golden_samples() {
    let text = r#"{"leader":"node1","member":"node2","scheduled_at":"2026-03-01T12:00:00+00:00"}"#;
    let request = parse_failover(text, Revision(4)).unwrap();
    assert_eq!(request.leader, Some(name("node1")));
    assert_eq!(request.candidate, Some(name("node2")));
    assert_eq!(
        request.scheduled_at,
        Some(Schedule::At(WallTime(1_772_366_400_000)))
    );
    assert_eq!(failover_text(Some(&request)), text);
    assert_eq!(failover_text(None), "{}");

    let old = parse_failover("node1:node2", Revision(4)).unwrap();
    assert_eq!(
        (old.leader, old.candidate),
        (Some(name("node1")), Some(name("node2")))
    );
    let old = parse_failover(":node2", Revision(4)).unwrap();
    assert_eq!((old.leader, old.candidate), (None, Some(name("node2"))));

    let naive = parse_failover(
        r#"{"leader":"a","scheduled_at":"2026-03-01T12:00:00"}"#,
        Revision(4),
    )
    .unwrap();
    assert_eq!(
        naive.scheduled_at,
        Some(Schedule::Unreadable("2026-03-01T12:00:00".to_owned()))
    );
    for text in [
        "",
        "{}",
        "{",
        "[]",
        "7",
        "null",
        r#"{"leader":null,"member":""}"#,
        r#"{"scheduled_at":"x"}"#,
    ] {
        assert_eq!(parse_failover(text, Revision(4)), None, "{text}");
    }
}

#[test]
fn history_of_three_four_and_five_elements() {
    let text = r#"[[1,67108960,"no recovery target specified"],[2,67108961,"x","2026-03-01T12:00:00.5+01:00"],[3,67108962,"y","2026-03-01T12:00:00+01:00","node2"]]"#;
    let history = parse_history(text).unwrap();
    assert_eq!(history.entries[2].new_leader, Some(name("node2")));
    assert_eq!(history_text(&history), text);
    assert_eq!(history_text(&History::default()), "[]");
    assert_eq!(parse_history("[]"), Some(History::default()));
    for text in ["", "{}", "[1]", "[[1]]", "[[\"x\",2,\"\"]]", "null"] {
        assert_eq!(parse_history(text), None, "{text}");
    }
}

#[test]
fn failsafe_and_config_are_objects_or_nothing() {
    let text = r#"{"node1":"http://10.0.0.1:8008/patroni","node2":"http://10.0.0.2:8008/patroni"}"#;
    assert_eq!(failsafe_text(&parse_failsafe(text).unwrap()), text);
    assert_eq!(parse_failsafe("[]"), None);
    let text = r#"{"ttl":30,"postgresql":{"parameters":{"a b":"ä\"\n"}},"z":null,"a":[1,2.5]}"#;
    assert_eq!(config_text(&parse_config(text).unwrap()), text);
    assert_eq!(parse_config("null"), None);
}

#[test]
fn initialize_forms() {
    assert_eq!(parse_initialize(""), Initialize::InProgress);
    assert_eq!(
        parse_initialize("abc"),
        Initialize::Invalid("abc".to_owned())
    );
    let id = parse_initialize("7301234567890123456");
    assert!(matches!(id, Initialize::Done(_)));
    assert_eq!(initialize_text(&id), "7301234567890123456");
}

#[test]
fn a_whole_cluster_is_assembled() {
    let cluster = assemble([
        entry("initialize", "7301234567890123456"),
        entry("config", "{\"ttl\":30}"),
        Entry {
            session: Some("77"),
            ..entry("leader", "node1")
        },
        Entry {
            session: Some("77"),
            ..entry("members/node1", MEMBER)
        },
        entry("members/node2", "garbage"),
        entry("members/", MEMBER),
        entry("members/a/b", MEMBER),
        entry("failover", "{}"),
        entry("sync", "{}"),
        entry("history", "oops"),
        entry("unknown/key", "1"),
    ]);
    assert!(cluster.is_led_by(&name("node1")));
    assert_eq!(
        cluster.leader.as_ref().unwrap().session.as_deref(),
        Some("77")
    );
    assert_eq!(cluster.leader_member().unwrap().role, Some(Role::Replica));
    assert_eq!(
        cluster
            .members
            .keys()
            .map(MemberName::as_str)
            .collect::<Vec<_>>(),
        ["node1", "node2"]
    );
    assert_eq!(cluster.config.as_ref().unwrap().revision, Revision(7));
    assert_eq!(cluster.failover, None);
    assert_eq!(cluster.failover_revision, Some(Revision(7)));
    assert_eq!(cluster.sync.revision, Some(Revision(7)));
    assert_eq!(cluster.timeline(), None);
}

#[test]
fn an_unreadable_config_keeps_its_revision_and_an_empty_leader_is_none() {
    let cluster = assemble([entry("config", "]"), entry("leader", "")]);
    assert_eq!(cluster.config, None);
    assert_eq!(cluster.config_revision, Some(Revision(7)));
    assert!(cluster.is_unlocked());
}

#[test]
fn changes_are_semantic() {
    assert!(same_text(
        r#"{"a":1,"b":{"c":"2"}}"#,
        r#"{"b":{"c":2},"a":"1"}"#
    ));
    assert!(same_text(r#"{"a":[1,2]}"#, r#"{ "a" : [1, 2] }"#));
    assert!(!same_text(r#"{"a":[1,2]}"#, r#"{"a":[2,1]}"#));
    assert!(!same_text(r#"{"a":1}"#, r#"{"a":1,"b":null}"#));
    assert!(!same_text("{}", "x"));
    assert!(!same_text("1", "1.0"));
    assert!(!same_text(r#"{"a":null}"#, r#"{"a":false}"#));
}
