//! Real containers, real PostgreSQL, one file per operator's story. Needs Docker and the images `howdah:pg17` and `howdah-etcd`
//! (`make images`); `make test` makes them. HOWDAH_IMAGE names another image.
//!
//! Everything a story starts carries the label `howdah.test=<run>` and is removed when the story ends, however it ends.

#![allow(
    missing_docs,
    reason = "a test program has no readers of its interface"
)]
#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed story")]
#![allow(
    clippy::print_stdout,
    reason = "the log of a failing story goes to standard output, as the harness expects"
)]

#[path = "../containers/client.rs"]
mod client;
#[path = "../containers/cluster.rs"]
mod cluster;
#[path = "../containers/docker.rs"]
mod docker;

mod bad_input;
mod bootstrap_single;
mod container;
mod demos;
mod dynamic_settings;
mod failover;
mod frozen_agent;
mod full_disk;
mod majors;
mod slow_network;
mod store_trouble;
mod switchover;
mod wrong_owner;
