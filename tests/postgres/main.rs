//! The process half of the PostgreSQL module against a real server.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod cluster;
mod failover;
mod life;
mod queries;
