//! Data that belongs to another user: it is said whose it is, and it stays as it is.

use crate::cluster::PATIENCE;
use crate::docker::{Lab, docker, image, wait_until};

#[test]
fn a_directory_of_another_user_is_named_and_left_alone() {
    let lab = Lab::new("owner");
    let volume = lab.volume("data");
    let mount = format!("{volume}:/var/lib/postgresql");
    let settings = [
        "-e",
        "PATRONI_SCOPE=demo",
        "-e",
        "PATRONI_NAME=one",
        "-v",
        &mount,
    ];
    let container = lab.run("one", &image(), &settings, &[]);
    let sql = |text: &str| container.exec(&["psql", "-U", "postgres", "-XAtqc", text]);
    wait_until("the first write", PATIENCE, || {
        sql("create table precious (v int)").is_ok()
    });
    container.stop();
    let as_root = |script: &str| {
        let image = image();
        docker(&[
            "run", "--rm", "--user", "0:0", "-v", &mount, &image, "sh", "-c", script,
        ])
    };
    let contents =
        "cd /var/lib/postgresql/data && find . -type f | sort | xargs sha256sum | sha256sum";
    as_root("chown -R 4321:4321 /var/lib/postgresql/data");
    let before = as_root(contents);
    container.start();
    wait_until("the log says whose it is", PATIENCE, || {
        let log = container.logs();
        log.contains("/var/lib/postgresql/data") && log.contains("4321")
    });
    assert!(container.is_running(), "it waits for a remedy");
    assert_eq!(as_root(contents), before, "something was written");
    as_root("chown -R 999:999 /var/lib/postgresql/data");
    wait_until("the table is still there", PATIENCE, || {
        sql("select * from precious").is_ok()
    });
}
