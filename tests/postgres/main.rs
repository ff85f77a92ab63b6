//! The process half of the PostgreSQL module against a real server.

mod cluster;
mod life;
