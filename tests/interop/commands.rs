//! Every command of Patroni's command line and ours, against members of either: they say and do the same.

use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, PATIENCE, wait_until};
use crate::etcd::Etcd;
use crate::members::{self, Kind};
use crate::tools::{Said, Tools};

const BOTH: [Kind; 2] = [Kind::Patroni, Kind::Howdah];
const LATER: &str = "2044-05-01T02:00+00:00";

#[test]
fn every_command_against_our_members() {
    every_command(Kind::Howdah);
}

#[test]
fn every_command_against_patronis_members() {
    every_command(Kind::Patroni);
}

fn every_command(kind: Kind) {
    let etcd = Etcd::start();
    let mut cluster = members::start(&[kind; 3], |_| etcd.port);
    let tools = Tools::new(&members::file(&cluster.nodes[0]));
    reading(&tools);
    settings(&cluster, &tools);
    reloads_and_restarts(&cluster, &tools);
    pause(&cluster, &tools);
    changes_of_the_leader(&cluster, &tools);
    copies(&cluster, &tools);
    changes_of_the_kind(&cluster, &tools);
    for format in ["pretty", "json", "tsv", "yaml"] {
        tools.same(&["history", "demo", "-f", format]);
    }
    removal(&mut cluster, &tools, kind);
}

/// Waits until the cluster is healthy and its members have told the store so: that is what the tools show.
#[track_caller]
fn await_told(cluster: &Cluster) {
    cluster.await_healthy();
    let leader = &cluster.nodes[cluster.await_primary()];
    wait_until("all members have told that they stream", PATIENCE, || {
        let told = leader
            .ask("GET", "/cluster", "")
            .and_then(|(_, body)| serde_json::from_str::<Value>(&body).ok());
        let members = told.and_then(|told| told["members"].as_array().cloned());
        members.is_some_and(|members| {
            members.len() == cluster.nodes.len()
                && members.iter().all(|member| {
                    let streams = member["role"] == "leader" || member["state"] == "streaming";
                    streams && member["timeline"] == members[0]["timeline"]
                })
        })
    });
}

fn reading(tools: &Tools) {
    for arguments in [
        "list",
        "list demo -e",
        "list demo other -f tsv",
        "list -f json",
        "list -f yaml",
        "list nobody",
        "topology demo",
        "show-config",
        "dsn demo",
        "dsn demo -r replica -m n2",
        "dsn demo -m n2",
        "dsn demo -m nobody",
        "query demo -c SELECT(1)",
        "query demo --format json -c SELECT(1.5::float8),'x',null,true,7",
        "query demo --format pretty -m n3 -c SELECT(1)",
        "query demo -r replica -c SELECT(pg_is_in_recovery())",
        "query demo -r replica -m n2 -c SELECT(1)",
        "query demo",
        "history demo",
        "flush demo switchover",
    ] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        tools.same(&arguments);
    }
    for arguments in [
        "list -t",
        "query demo -m nobody -c SELECT(1)",
        "query demo -c SELECT(1/0)",
    ] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        tools.same_shape(&arguments);
    }
    let [theirs, ours] = BOTH.map(|whose| tools.run(whose, &["version", "demo"], ""));
    // The first line is the version of the tool itself.
    assert!(ours.out.starts_with("patronictl version "), "{ours:#?}");
    let members = |said: &Said| {
        said.out
            .lines()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(members(&theirs), members(&ours));
}

fn settings(cluster: &Cluster, tools: &Tools) {
    let undo = |change: &'static str| move |_: &Said| cluster.configure(change);
    let edit = ["edit-config", "demo", "--force"];
    let with = |more: &[&'static str]| [&edit[..], more].concat();
    let said = tools.alike(&with(&["-s", "ttl=25"]), "", undo(r#"{"ttl": 20}"#));
    said.must_contain("Configuration changed");
    tools.alike(
        &with(&["-s", "postgresql.parameters.work_mem=7MB", "-p", "max_standby_archive_delay=9s"]),
        "",
        undo(r#"{"postgresql": {"parameters": {"work_mem": null, "max_standby_archive_delay": null}}}"#),
    );
    tools.alike(
        &with(&["--apply", "-"]),
        "synchronous_mode_strict: false\nslots:\n  extra: {type: physical}\n",
        undo(r#"{"synchronous_mode_strict": null, "slots": null}"#),
    );
    let whole = tools.same(&["show-config", "demo"]);
    let said = tools.alike(&with(&["--replace", "-"]), &whole.out, |_| {});
    said.must_contain("Not changed");
    tools.alike(&["edit-config", "demo", "-s", "ttl=25"], "n\n", |_| {});
    tools.alike(&with(&["-s", "ttl"]), "", |_| {});
    let said = tools.run(Kind::Patroni, &with(&["-p", "work_mem=7MB"]), "");
    said.must_contain("Configuration changed");
    for node in &cluster.nodes {
        wait_until("the member has the setting", PATIENCE, || {
            node.sql("SHOW work_mem").as_deref() == Ok("7MB")
        });
    }
}

fn reloads_and_restarts(cluster: &Cluster, tools: &Tools) {
    await_told(cluster);
    let rest = |_: &Said| await_told(cluster);
    tools.alike(&["reload", "demo", "n2", "--force"], "", rest);
    tools.alike(&["reload", "demo", "n2"], "y\n", rest);
    tools.alike(&["reload", "demo", "n2"], "n\n", rest);
    tools.alike(&["reload", "demo", "nobody", "--force"], "", rest);

    let node = &cluster.nodes[1];
    for whose in BOTH {
        let before = node.postmaster();
        let said = tools.run(whose, &["restart", "demo", "n2", "--force"], "");
        said.must_contain("Success: restart on member n2");
        assert_ne!(node.postmaster(), before, "{whose:?} restarted nothing");
        await_told(cluster);
    }
    tools.alike(
        &["restart", "demo", "n2", "n3", "--force", "--timeout", "30"],
        "",
        rest,
    );
    tools.alike(
        &["restart", "demo", "n1", "--force", "--pg-version", "9.5.0"],
        "",
        rest,
    );
    tools.alike(&["restart", "demo", "--pending", "--force"], "", rest);
    tools.alike(&["restart", "demo", "n2"], "now\ny\n\n", rest);
    tools.alike(&["restart", "demo", "n2"], "now\nn\n", rest);
    tools.alike(
        &["restart", "demo", "-r", "replica", "nobody", "--force"],
        "",
        rest,
    );

    // What one schedules the other flushes.
    let at = ["restart", "demo", "n2", "--force", "--scheduled", LATER];
    let flush = ["flush", "demo", "n2", "restart", "--force"];
    let scheduled = BOTH.map(|whose| {
        let said = tools.run(whose, &at, "");
        said.must_contain("Success: restart scheduled on member n2");
        tools.until(
            Kind::Patroni,
            &["list", "demo"],
            "2044-05-01T02:00:00+00:00",
        );
        tools.same(&["list", "demo"]);
        tools.same(&["list", "demo", "-f", "json"]);
        let other = if whose == Kind::Patroni {
            Kind::Howdah
        } else {
            Kind::Patroni
        };
        let flushed = tools.run(other, &flush, "");
        flushed.must_contain("Success: flush scheduled restart for member n2");
        wait_until("nothing is scheduled", PATIENCE, || {
            !tools
                .run(Kind::Howdah, &["list", "demo"], "")
                .out
                .contains("2044")
        });
        said.out.lines().last().map(str::to_owned)
    });
    assert_eq!(scheduled[0], scheduled[1]);
    tools.alike(&flush, "", rest);

    // A pending restart, its reason, and its end. Not of a setting in which no standby may stay below its primary: there
    // the first restart ends the standbys that still have the old value, and nothing is pending any more.
    let setting = "superuser_reserved_connections";
    cluster.configure(&format!(
        r#"{{"postgresql": {{"parameters": {{"{setting}": 4}}}}}}"#
    ));
    tools.until(
        Kind::Patroni,
        &["list", "demo"],
        &format!("{setting}: 3->4"),
    );
    for format in ["pretty", "tsv", "json", "yaml"] {
        tools.same(&["list", "demo", "-f", format]);
    }
    let said = tools.run(
        Kind::Patroni,
        &["restart", "demo", "n1", "--pending", "--force"],
        "",
    );
    said.must_contain("Success: restart on member n1");
    let said = tools.run(
        Kind::Howdah,
        &["restart", "demo", "--pending", "--force"],
        "",
    );
    said.must_contain("Success: restart on member n3");
    cluster.await_healthy();
    wait_until("no restart is pending", PATIENCE, || {
        !tools
            .run(Kind::Howdah, &["list", "demo"], "")
            .out
            .contains('*')
    });
}

fn pause(cluster: &Cluster, tools: &Tools) {
    let said = BOTH.map(|whose| {
        let paused = tools.run(whose, &["pause", "demo", "--wait"], "");
        paused.must_contain("Success: cluster management is paused");
        tools.same(&["pause", "demo"]);
        tools
            .same(&["list", "demo"])
            .must_contain("Maintenance mode: on");
        tools.same_asked(
            &[
                "switchover",
                "demo",
                "--scheduled",
                LATER,
                "--candidate",
                "n2",
                "--force",
            ],
            "",
        );
        let resumed = tools.run(whose, &["resume", "demo", "--wait"], "");
        resumed.must_contain("Success: cluster management is resumed");
        tools.same(&["resume", "demo"]);
        (paused, resumed)
    });
    assert_eq!(said[0], said[1]);
    await_told(cluster);
}

fn changes_of_the_leader(cluster: &Cluster, tools: &Tools) {
    // Refused, declined, impossible.
    for (arguments, input) in [
        ("switchover demo", "n1\nn2\nnow\nn\n"),
        ("switchover demo", "n2\n"),
        ("switchover demo --candidate n1 --force", ""),
        ("switchover demo --candidate nobody --force", ""),
        (
            "switchover demo --scheduled nonsense --candidate n2 --force",
            "",
        ),
        ("failover demo --force", ""),
        ("failover demo", "n2\nn\n"),
        ("failover demo", "\n"),
    ] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        tools.same_asked(&arguments, input);
    }
    // Scheduled by one, dropped by the other.
    let at = [
        "switchover",
        "demo",
        "--scheduled",
        LATER,
        "--candidate",
        "n3",
        "--force",
    ];
    for (one, other) in [(Kind::Patroni, Kind::Howdah), (Kind::Howdah, Kind::Patroni)] {
        tools.run(one, &at, "").must_contain("Switchover scheduled");
        tools
            .same(&["list", "demo"])
            .must_contain("Switchover scheduled at: 2044-05-01T02:00:00+00:00");
        tools
            .run(other, &["flush", "demo", "switchover"], "")
            .must_contain("Success: scheduled switchover deleted");
    }
    // Done: the same words, and the one who was named leads.
    for (action, word) in [
        ("switchover", "Successfully switched over to"),
        ("failover", "Successfully failed over to"),
    ] {
        for whose in BOTH {
            let old = cluster.await_primary();
            let to = &cluster.nodes[cluster.others(old)[0]];
            let said = tools.run(
                whose,
                &[action, "demo", "--candidate", &to.name, "--force"],
                "",
            );
            said.must_contain(&format!("{word} \"{}\"", to.name));
            wait_until("the candidate leads", PATIENCE, || to.is_primary());
            await_told(cluster);
        }
        tools.same(&["list", "demo"]);
    }
}

fn copies(cluster: &Cluster, tools: &Tools) {
    let leader = cluster.await_primary();
    let name = cluster.nodes[leader].name.clone();
    tools.alike(&["reinit", "demo", &name, "--force"], "", |_| {});
    let node = &cluster.nodes[cluster.others(leader)[0]];
    for more in [&["--wait"][..], &["--wait", "--from-leader"]] {
        let before = node.postmaster();
        let arguments = [&["reinit", "demo", &node.name, "--force"], more].concat();
        let said = tools.alike(&arguments, "", |_| {
            wait_until("a new copy runs", Duration::from_secs(60), || {
                node.postmaster().is_some_and(|pid| Some(pid) != before)
            });
            await_told(cluster);
        });
        said.must_contain(&format!("Success: reinitialize for member {}", node.name));
    }
}

/// `demote-cluster` and `promote-cluster`: to a standby cluster whose only source is an archive, and back.
fn changes_of_the_kind(cluster: &Cluster, tools: &Tools) {
    let demote = [
        "demote-cluster",
        "demo",
        "--restore-command",
        "cp /nonexistent/%f %p",
    ];
    let promote = ["promote-cluster", "demo"];
    tools.same(&["demote-cluster", "demo"]);
    tools.same(&["demote-cluster", "nothing", "--port", "5432", "--force"]);
    tools.same_asked(&demote, "n\n");
    tools.same(&promote);
    tools.same(&["promote-cluster", "demo", "--force"]);
    for whose in BOTH {
        let demoted = tools.run(whose, &[&demote[..], &["--force"]].concat(), "");
        assert_eq!(demoted.status, Some(0), "{demoted:#?}");
        demoted.must_contain("cluster is successfully demoted");
        demoted.must_contain("Standby Leader");
        assert!(
            cluster.nodes.iter().all(|node| !node.is_primary()),
            "a primary in a standby cluster"
        );
        wait_until("all follow the standby leader", PATIENCE, || {
            let states = cluster.nodes.iter().map(|node| {
                let about = node.about();
                about["replication_state"].as_str().map(str::to_owned)
            });
            let states: Vec<_> = states.flatten().collect();
            let follow = states.iter().filter(|state| *state == "streaming").count();
            states.len() == cluster.nodes.len() && follow + 1 == states.len()
        });
        tools.same(&[&demote[..], &["--force"]].concat());
        tools.same_asked(&promote, "\n");
        let promoted = tools.run(whose, &promote, "y\n");
        assert_eq!(promoted.status, Some(0), "{promoted:#?}");
        promoted.must_contain("cluster is successfully promoted");
        await_told(cluster);
    }
}

fn removal(cluster: &mut Cluster, tools: &Tools, kind: Kind) {
    for input in ["wrong\n", "demo\nyes\n", "demo\nYes I am aware\nwrong\n"] {
        tools.same_asked(&["remove", "demo"], input);
    }
    for node in &mut cluster.nodes {
        assert!(node.stop().success(), "{} ends well", node.name);
    }
    // By the other's tool: the members were of this kind.
    let other = if kind == Kind::Patroni {
        Kind::Howdah
    } else {
        Kind::Patroni
    };
    // The last but one may have been handed the key a moment before it was stopped; with a leader, its name is asked for as well.
    wait_until("nobody leads", Duration::from_secs(60), || {
        let said = tools.run(other, &["list", "demo"], "");
        said.status == Some(0) && !said.out.contains("Leader")
    });
    let said = tools.run(other, &["remove", "demo"], "demo\nYes I am aware\n");
    assert_eq!(said.status, Some(0), "{said:#?}");
    tools.same(&["list", "demo"]).must_contain("uninitialized");
}
