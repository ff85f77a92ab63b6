//! The table is a small world here: changes are applied to it under the rules that PostgreSQL and Citus enforce.

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::cluster::wire::{self, Entry};
use crate::types::Revision;

fn address(host: &str) -> Address {
    Address {
        host: host.to_owned(),
        port: 5432,
    }
}

/// `1:a*` is row 1, the primary's, at host a.
fn table(text: &str) -> Vec<Row> {
    let row = |text: &str| {
        let (id, host) = text.split_once(':').unwrap();
        let primary = host.ends_with('*');
        Row {
            id: id.parse().unwrap(),
            group: 1,
            address: address(host.trim_end_matches('*')),
            primary,
        }
    };
    text.split_whitespace().map(row).collect()
}

fn show(rows: &[Row]) -> String {
    let row = |row: &Row| {
        let mark = if row.primary { "*" } else { "" };
        format!("{}:{}{mark}", row.id, row.address.host)
    };
    rows.iter().map(row).collect::<Vec<_>>().join(" ")
}

/// What Citus makes of a change: no two rows have one address, a row that is changed is there, a group has one primary.
fn apply(rows: &mut Vec<Row>, change: &Change) {
    match change {
        Change::Add {
            address,
            group,
            primary,
        } => {
            assert!(!taken(rows, address), "{address} is there already");
            assert!(!primary || !rows.iter().any(|row| row.primary));
            rows.push(Row {
                id: rows.iter().map(|row| row.id).max().unwrap_or(0) + 1,
                group: *group,
                address: address.clone(),
                primary: *primary,
            });
        }
        Change::Move { id, to } => {
            assert!(!taken(rows, to), "{to} is there already: {}", show(rows));
            let row = rows.iter_mut().find(|row| row.id == *id).unwrap();
            row.address = to.clone();
        }
        Change::Remove { address } => {
            let at = rows.iter().position(|row| row.address == *address).unwrap();
            assert!(!rows[at].primary, "a primary's row has shards");
            rows.remove(at);
        }
    }
}

fn after(rows: &[Row], changes: &[Change]) -> Vec<Row> {
    let mut rows = rows.to_vec();
    for change in changes {
        apply(&mut rows, change);
    }
    rows
}

fn want(primary: &str, secondaries: &str) -> Wanted {
    Wanted {
        primary: address(primary),
        secondaries: secondaries.split_whitespace().map(address).collect(),
    }
}

#[test]
fn a_switchover_step_by_step() {
    let mut rows = table("1:a* 2:b 3:c");
    let held = pause(&rows);
    assert_eq!(
        held.iter()
            .map(|change| change.sql(2500))
            .collect::<Vec<_>>(),
        ["SELECT pg_catalog.citus_update_node(1, 'a-demoted', 5432, true, 2500)"]
    );
    rows = after(&rows, &held);
    assert_eq!(pause(&rows), [], "it is paused already");
    let promoted = swap(&rows, 1, &address("b"));
    assert_eq!(
        promoted
            .iter()
            .map(|change| change.sql(0))
            .collect::<Vec<_>>(),
        [
            "SELECT pg_catalog.citus_update_node(2, 'a', 5432, true, 0)",
            "SELECT pg_catalog.citus_update_node(1, 'b', 5432, true, 0)",
        ]
    );
    rows = after(&rows, &promoted);
    assert_eq!(show(&rows), "1:b* 2:a 3:c");
    assert_eq!(swap(&rows, 1, &address("b")), []);
    // The old primary is not back yet.
    rows = after(&rows, &settle(&rows, 1, &want("b", "c")));
    assert_eq!(show(&rows), "1:b* 3:c");
    rows = after(&rows, &settle(&rows, 1, &want("b", "a c")));
    assert_eq!(show(&rows), "1:b* 3:c 4:a");
}

#[test]
fn a_restart_gives_the_row_back() {
    let rows = table("1:a* 2:b");
    let paused = after(&rows, &pause(&rows));
    assert_eq!(show(&paused), "1:a-demoted* 2:b");
    let back = after(&paused, &swap(&paused, 1, &address("a")));
    assert_eq!(back, rows);
}

#[test]
fn what_each_picture_leads_to() {
    for (rows, wanted, expected) in [
        ("", want("a", "b"), "1:a*"),
        ("1:a*", want("a", "b c"), "1:a* 2:b 3:c"),
        ("1:a* 2:b", want("b", ""), "1:b* 2:a"),
        ("1:a* 2:b", want("c", "b"), "1:c* 2:b"),
        // Gone, and replaced.
        ("1:a* 2:b 3:c", want("a", "c d"), "1:a* 2:d 3:c"),
        ("1:a* 2:b 3:c", want("a", "d"), "1:a* 2:d"),
        // Left behind by somebody else.
        ("1:a-demoted* 2:b", want("b", ""), "1:b* 2:a"),
        ("1:a-demoted* 2:a 3:b", want("b", "a"), "1:b* 2:a"),
        ("1:a-demoted* 2:a", want("a", ""), "1:a*"),
        ("1:a* 2:a-demoted 3:b", want("b", ""), "1:b* 2:a-demoted"),
        ("2:b 3:a", want("a", "b"), "2:b 3:a*"),
    ] {
        let rows = table(rows);
        let settled = after(&rows, &settle(&rows, 1, &wanted));
        assert_eq!(show(&settled), expected, "from {}", show(&rows));
    }
}

#[test]
fn whatever_happens_the_table_comes_to_say_what_is_wanted() {
    for seed in 0..2000 {
        let mut random = SmallRng::seed_from_u64(seed);
        let hosts = ["a", "b", "c", "d"];
        let pick = |random: &mut SmallRng| address(hosts[random.random_range(0..hosts.len())]);
        let mut rows: Vec<Row> = Vec::new();
        let mut committed = rows.clone();
        let mut primary_id = None;
        for _ in 0..40 {
            let before = rows.clone();
            match random.random_range(0..6) {
                0 => rows = after(&rows, &pause(&rows)),
                1 => {
                    let promoted = pick(&mut random);
                    let changes = swap(&rows, 1, &promoted);
                    rows = after(&rows, &changes);
                    let holder = rows.iter().find(|row| row.primary).unwrap();
                    assert_eq!(holder.address, promoted, "seed {seed}");
                }
                // The transaction has had its time.
                2 => rows = committed.clone(),
                // What was moved is committed only with the final state.
                _ => {
                    let primary = pick(&mut random);
                    let secondaries = (0..random.random_range(0..4))
                        .map(|_| pick(&mut random))
                        .filter(|address| *address != primary)
                        .collect();
                    let wanted = Wanted {
                        primary,
                        secondaries,
                    };
                    let changes = settle(&rows, 1, &wanted);
                    rows = after(&rows, &changes);
                    let again = settle(&rows, 1, &wanted);
                    rows = after(&rows, &again);
                    assert_eq!(
                        settle(&rows, 1, &wanted),
                        [],
                        "seed {seed}: {}",
                        show(&rows)
                    );
                    let found: BTreeSet<Address> = rows
                        .iter()
                        .filter(|row| !row.primary)
                        .map(|row| row.address.clone())
                        .collect();
                    assert_eq!(found, wanted.secondaries, "seed {seed}");
                    committed = rows.clone();
                }
            }
            let holder = rows.iter().find(|row| row.primary).map(|row| row.id);
            if before.iter().any(|row| row.primary) && !rows.is_empty() {
                assert_eq!(holder, primary_id, "seed {seed}: shards refer to the row");
            }
            primary_id = holder;
        }
    }
}

#[test]
fn who_is_in_the_table() {
    let member = |state: &str, role: &str, host: &str, tags: &str| {
        format!(
            r#"{{"state":"{state}","role":"{role}","conn_url":"postgres://{host}:5433/x","tags":{{{tags}}}}}"#
        )
    };
    let documents = |primary: &str| {
        [
            ("leader", "a".to_owned()),
            ("members/a", member("running", primary, "10.0.0.1", "")),
            ("members/b", member("running", "replica", "[fe80::1]", "")),
            ("members/c", member("starting", "replica", "10.0.0.3", "")),
            (
                "members/d",
                member("running", "replica", "10.0.0.4", r#""noloadbalance":true"#),
            ),
        ]
    };
    let cluster = |documents: &[(&str, String)]| {
        wire::assemble(documents.iter().map(|(key, value)| Entry {
            key,
            value,
            revision: Revision(1),
            session: None,
        }))
    };
    let at = |host: &str| Address {
        host: host.to_owned(),
        port: 5433,
    };
    let group = cluster(&documents("primary"));
    let found = wanted(&group).unwrap();
    assert_eq!(found.primary, at("10.0.0.1"));
    assert_eq!(found.secondaries, BTreeSet::from([at("fe80::1")]));
    // Not promoted yet: nobody is told to write there, but it is known where it is.
    let group = cluster(&documents("replica"));
    assert_eq!(wanted(&group), None);
    let name = |name: &str| MemberName::new(name).unwrap();
    assert_eq!(leader_address(&group, &name("a")), Some(at("10.0.0.1")));
    assert_eq!(leader_address(&group, &name("b")), None);
    assert_eq!(wanted(&cluster(&documents("primary")[1..])), None);
}

#[test]
fn names_are_quoted_and_statements_complete() {
    let odd = Address {
        host: r"o'dd\host".to_owned(),
        port: 1,
    };
    let add = Change::Add {
        address: odd.clone(),
        group: 2,
        primary: false,
    };
    assert_eq!(
        add.sql(5),
        r"SELECT pg_catalog.citus_add_node(E'o''dd\\host', 1, 2, 'secondary', 'default')"
    );
    let remove = Change::Remove {
        address: address("a"),
    };
    assert_eq!(
        remove.sql(5),
        "SELECT pg_catalog.citus_remove_node('a', 5432)"
    );
}

#[test]
fn slots_of_shards_that_move() {
    for (name, plugin, own) in [
        ("citus_shard_move_slot_10_20_30", Some("pgoutput"), true),
        ("citus_shard_split_slot_1_10_3", Some("citus"), true),
        ("citus_shard_split_slot_1_10_3", Some("pgoutput"), false),
        ("mine", Some("pgoutput"), false),
        ("citus_shard_move_slot_1", None, false),
    ] {
        assert_eq!(is_own_slot(name, plugin), own, "{name}");
    }
}
