//! Howdah: PostgreSQL high availability as one binary that is a container's PID 1. Modules in reading order; ARCHITECTURE.md is the map.

#![cfg_attr(
    not(feature = "all-stores"),
    allow(
        dead_code,
        unused_imports,
        unused_macros,
        reason = "one store alone does not need all that stores share"
    )
)]

pub mod types;

pub mod clock;
pub mod histogram;
pub mod systemd;
pub mod telemetry;

pub mod init;

pub mod agent;

pub mod ha;

pub mod citus;
pub mod cluster;

pub mod config;

pub mod dcs;
pub mod witness;

pub mod postgres;
pub mod watchdog;

pub mod node;
pub mod resident;

pub mod api;
pub mod json_text;
pub mod peers;
mod pem;
pub mod restart;
pub mod timestamps;
pub mod topology;

pub mod ctl;
pub mod daemon;
pub mod healthcheck;
pub mod helpers;
