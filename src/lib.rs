//! Howdah: PostgreSQL high availability as one binary that is a container's PID 1. Modules in reading order; ARCHITECTURE.md is the map.

pub mod clock;
pub mod cluster;
pub mod config;
pub mod dcs;
pub mod node;
pub mod postgres;
pub mod types;
pub mod ha;
