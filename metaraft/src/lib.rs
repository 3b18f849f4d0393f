//! The metadata cluster, and the client that finds its leaders.
//!
//! Raft groups by openraft: the root group holds the cluster map, the data groups hold accounts, trees, versions,
//! contents and the chunk registry. openraft is named only in `raft`, RocksDB only there and in `raft`'s stores;
//! what a command does is decided by the pure state machine in `state`.

pub mod api;
pub mod app;
pub mod client;
pub mod kv;
#[cfg(test)]
mod local;
mod log_clock;
pub mod model;
pub mod node;
mod raft;
mod standing;
pub mod state;
pub mod warden;
mod watchers;
