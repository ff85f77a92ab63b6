//! Members that are ours or Patroni's, over the same configuration file.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cluster::{Cluster, Node, PATIENCE, PROGRAMS, give, wait_until};

/// Whose program runs a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Howdah,
    Patroni,
}

/// A program of the installed Patroni.
pub(crate) fn upstream(program: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/interop/patroni/bin")
        .join(program);
    assert!(
        path.exists(),
        "no {program} of Patroni: run tests/interop/fetch.sh"
    );
    path
}

/// The file that both programs read, and both command lines.
pub(crate) fn file(node: &Node) -> PathBuf {
    node.dir.join("patroni.yml")
}

/// The section that says where the cluster's state is, for a way to etcd.
pub(crate) fn etcd3(port: u16) -> String {
    format!("etcd3:\n  proxy: http://127.0.0.1:{port}\n")
}

/// The shortest `ttl` that Patroni takes.
fn text(node: &Node, store: &str) -> String {
    format!(
        "\
{store}scope: demo
name: {name}
restapi:
  listen: 127.0.0.1:{rest}
  connect_address: 127.0.0.1:{rest}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 1
    retry_timeout: 3
    maximum_lag_on_failover: 1048576
    postgresql:
      use_pg_rewind: true
      parameters:
        max_connections: 50
  initdb:
  - encoding: UTF8
  - data-checksums
postgresql:
  listen: 127.0.0.1:{port}
  connect_address: 127.0.0.1:{port}
  data_dir: {dir}/data
  bin_dir: {PROGRAMS}
  pgpass: {dir}/pgpass
  authentication:
    superuser: {{username: postgres, password: super}}
    replication: {{username: replicator, password: replication}}
  parameters:
    unix_socket_directories: {dir}
    fsync: 'off'
    shared_buffers: 16MB
  pg_hba:
  - local all all trust
  - host all all 127.0.0.1/32 md5
  - host replication replicator 127.0.0.1/32 md5
",
        name = node.name,
        rest = node.rest,
        port = node.port,
        dir = node.dir.display(),
    )
}

/// From its next start on, this program runs the member.
pub(crate) fn assign(node: &mut Node, kind: Kind) {
    let program = match kind {
        Kind::Howdah => PathBuf::from(env!("CARGO_BIN_EXE_howdah")),
        Kind::Patroni => upstream("patroni"),
    };
    node.program = Some(vec![program, file(node)]);
}

/// A healthy cluster of these, each with its way to etcd (a port); the first one creates it.
pub(crate) fn start(kinds: &[Kind], etcd: impl Fn(usize) -> u16) -> Cluster {
    start_over(kinds, |at, _| etcd3(etcd(at)))
}

/// The same over any store: its section of the file for each member, which may get more in its environment.
pub(crate) fn start_over(kinds: &[Kind], store: impl Fn(usize, &mut Node) -> String) -> Cluster {
    let mut cluster = Cluster::prepare(kinds.len());
    for (at, node) in cluster.nodes.iter_mut().enumerate() {
        node.environment.clear();
        let store = store(at, node);
        fs::write(file(node), text(node, &store)).unwrap();
        give(&file(node));
        assign(node, kinds[at]);
    }
    cluster.nodes[0].start();
    wait_until("the first member leads", PATIENCE, || {
        cluster.nodes[0].is_primary()
    });
    for node in &mut cluster.nodes[1..] {
        node.start();
    }
    cluster.await_healthy();
    cluster
}
