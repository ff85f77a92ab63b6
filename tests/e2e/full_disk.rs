//! A volume without space: it is named, nothing that was there is touched, and once there is space everything goes on by itself.

use crate::cluster::{Cluster, PATIENCE, Store};
use crate::docker::{Container, Lab, image, wait_until};

const NO_SPACE: &str = "No space left on device";
const PLACE: &str = "/var/lib/postgresql";

/// Keeps a volume in use, and fills it until `free` megabytes are left.
fn fill(lab: &Lab, volume: &str, free: u32) -> Container {
    let script = format!(
        "cat /dev/zero > {PLACE}/filler 2>/dev/null; truncate -s -{free}M {PLACE}/filler; echo full; exec sleep infinity"
    );
    let mount = format!("{volume}:{PLACE}");
    let filler = lab.run("filler", &image(), &["-v", &mount], &["sh", "-c", &script]);
    wait_until("the volume is full", PATIENCE, || {
        filler.logs().contains("full")
    });
    filler
}

fn make_room(container: &Container) {
    container.shell(&format!("rm {PLACE}/filler")).unwrap();
}

#[test]
fn under_a_copy() {
    let mut cluster = Cluster::start("full-copy", Store::Etcd, 1, &[]);
    let volume = cluster.lab.small_volume("small", 200);
    let filler = fill(&cluster.lab, &volume, 20);
    let mount = format!("{volume}:{PLACE}");
    let node = cluster.start_member_of(&image(), 2, 2, &[], &["-v", &mount]);
    wait_until("the log names the lack", PATIENCE, || {
        node.container.logs().contains(NO_SPACE)
    });
    assert!(node.container.is_running(), "it waits for space");
    assert!(cluster.nodes[0].is_primary());
    make_room(&filler);
    node.await_streaming();
    assert!(!node.container.logs().contains("panicked"));
    cluster.nodes.push(node);
    cluster.await_healthy();
}

/// The data and the embedded store are on the same volume: the lease cannot be renewed either.
#[test]
fn under_a_leader_and_its_store() {
    let lab = Lab::new("full-leader");
    let volume = lab.small_volume("small", 300);
    let mount = format!("{volume}:{PLACE}");
    let settings = [
        "PATRONI_SCOPE=demo",
        "PATRONI_NAME=one",
        "PATRONI_TTL=5",
        "PATRONI_LOOP_WAIT=1",
        "PATRONI_RETRY_TIMEOUT=2",
    ];
    let mut options = vec!["-v", &mount];
    options.extend(settings.iter().flat_map(|setting| ["-e", *setting]));
    let container = lab.run("one", &image(), &options, &[]);
    let sql = |text: &str| container.exec(&["psql", "-U", "postgres", "-XAtqc", text]);
    wait_until("the first write", PATIENCE, || {
        sql("create table t (v text)").is_ok()
    });
    sql("insert into t values ('precious')").unwrap();
    let began = container.inspect("{{.State.StartedAt}}");

    let _ = container.shell(&format!("cat /dev/zero > {PLACE}/filler"));
    wait_until("no write is taken", PATIENCE, || {
        sql("insert into t select repeat('x', 1000) from generate_series(1, 40000)").is_err()
    });
    wait_until("the log names what cannot be written", PATIENCE, || {
        let log = container.logs();
        log.contains(&format!("raft: cannot write the log in {PLACE}/raft"))
            && log.contains(NO_SPACE)
    });
    // The lease ends with its store.
    wait_until("nobody leads", PATIENCE, || {
        container
            .exec(&["howdah", "healthcheck", "primary"])
            .is_err()
    });
    make_room(&container);
    wait_until("writes go on", PATIENCE, || {
        sql("insert into t values ('later')").is_ok()
    });
    assert_eq!(
        sql("select v from t where v in ('precious', 'later')").unwrap(),
        "precious\nlater"
    );
    assert_eq!(container.inspect("{{.State.StartedAt}}"), began);
    assert!(!container.logs().contains("panicked"));
}
