//! Howdah: PostgreSQL high availability as one binary that is a container's PID 1. Modules in reading order; ARCHITECTURE.md is the map.

pub mod api;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod ctl;
pub mod dcs;
pub mod ha;
pub mod init;
pub mod healthcheck;
pub mod json_text;
pub mod node;
pub mod peers;
pub mod postgres;
pub mod timestamps;
pub mod topology;
pub mod types;
