//! Stories of real daemons on one machine: `howdah` itself with the embedded store or etcd and real PostgreSQL, on loopback.
//!
//! What containers add (init as PID 1, networks that part) is the tier `e2e`; here the agent and PostgreSQL are the subject.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and prints what it measured"
)]

mod bad_input;
mod citus;
mod cluster;
mod etcd;
mod failsafe;
mod failures;
mod isolation;
mod operations;
mod serving;
mod shutdown;
mod slots;
mod standby_cluster;
mod synchronous;
mod watchdog;
mod writer;
