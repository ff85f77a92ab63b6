//! Howdah beside the real Patroni, which `tests/interop/fetch.sh` installs below `target/`: its command line against our members,
//! ours against its members, both in one cluster, one replaced by the other while clients write.
//!
//! Members are processes on loopback with real PostgreSQL and a real etcd, as in the tier `agent`, whose harness this one shares, or a
//! real API server of Kubernetes, as in the tier `dcs`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and prints what it measured"
)]
#![allow(
    dead_code,
    reason = "shares the harness of the tier `agent`, not all of it"
)]

#[path = "../agent/cluster.rs"]
mod cluster;
#[path = "../agent/etcd.rs"]
mod etcd;
#[path = "../dcs/etcd_server.rs"]
mod etcd_server;
#[path = "../dcs/kubernetes_server.rs"]
mod kubernetes_server;
#[path = "../dcs/server.rs"]
mod server;
#[path = "../agent/writer.rs"]
mod writer;

mod commands;
mod kubernetes;
mod members;
mod migration;
mod mixed;
mod proxies;
mod tools;
