//! Clusters of three nodes in this process, over real gRPC and mutual TLS, with a small state machine.

mod access;
mod amnesia;
mod cluster;
mod damage;
mod paused;
pub(crate) mod registers;
mod restarts;
mod scenarios;
mod snapshots;
mod unknown;
mod watching;
