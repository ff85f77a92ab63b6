//! What a watchdog device that cannot be used means in each mode. No machine of these tests has one that can: what an armed device does is
//! tested in `src/watchdog`, and by hand as ARCHITECTURE.md says.

use crate::cluster::{Cluster, PATIENCE, wait_until};

/// With the ttl of these clusters, the usual margin would leave no time at all.
const MARGIN: (&str, &str) = ("PATRONI_WATCHDOG_SAFETY_MARGIN", "1");

#[test]
fn a_node_without_its_required_watchdog_creates_no_cluster_and_leads_none() {
    let mut cluster = Cluster::prepare(2);
    for node in &mut cluster.nodes {
        let device = node.dir.join("watchdog").display().to_string();
        let mode = if node.name == "n1" {
            "required"
        } else {
            "automatic"
        };
        for (name, value) in [
            MARGIN,
            ("PATRONI_WATCHDOG_MODE", mode),
            ("PATRONI_WATCHDOG_DEVICE", &device),
        ] {
            node.environment.insert(name.to_owned(), value.to_owned());
        }
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.await_healthy();
    assert_eq!(cluster.primary(), Some(1), "the other one leads");
    let [first, second] = &cluster.nodes[..] else {
        panic!("two nodes");
    };
    second.await_log("no watchdog: there is no device");
    assert_eq!(first.about()["watchdog_failed"], true);
    assert_eq!(second.about()["watchdog_failed"], serde_json::Value::Null);
    // It is no candidate either.
    let (status, answer) = second
        .ask("POST", "/switchover", r#"{"leader": "n2"}"#)
        .unwrap();
    assert_eq!(status, 412, "{answer}");
}

#[test]
fn what_is_no_watchdog_is_not_led_by_if_it_is_required() {
    let mut cluster = Cluster::prepare(1);
    let node = &mut cluster.nodes[0];
    let device = node.dir.join("watchdog");
    std::fs::write(&device, "").unwrap();
    crate::cluster::give(&device);
    for (name, value) in [
        MARGIN,
        ("PATRONI_WATCHDOG_MODE", "required"),
        ("PATRONI_WATCHDOG_DEVICE", device.to_str().unwrap()),
    ] {
        node.environment.insert(name.to_owned(), value.to_owned());
    }
    node.start();
    node.await_log("the required watchdog");
    wait_until("it gives the key back", PATIENCE, || {
        node.log().contains("not leading: the required watchdog")
            && node.about()["watchdog_failed"] == true
            && !node.is_primary()
    });
    assert!(
        node.sql("CREATE TABLE t ()").is_err(),
        "nothing is writable"
    );
    // Its last word to whatever that file may be: stop.
    assert_eq!(std::fs::read_to_string(&device).unwrap(), "V");
}
