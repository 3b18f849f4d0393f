//! A metadata node: its databases, its groups, its gRPC server.

pub mod config;
pub(crate) mod databases;
pub mod heartbeat;
pub(crate) mod server;
pub(crate) mod service;
pub(crate) mod space;
pub mod start;

pub use crate::raft::group::{COMMAND_BYTES_MAX, GroupError, GroupHandle, GroupProgress, Leadership};
pub use crate::raft::log_database::LogError;
pub use crate::raft::peers::PeerAddressError;
pub use config::{LOG_ENTRIES_KEPT, MetaConfig, SNAPSHOT_LOG_ENTRIES, SNAPSHOT_STALL_MAX};
pub use heartbeat::HeartbeatSink;
pub use start::{MetaNode, StartError};

#[cfg(test)]
pub(crate) mod tests;
