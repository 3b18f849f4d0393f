//! Consensus: openraft over this crate's stores and network, one instance per group. Nothing outside names openraft.
//!
//! A node has two databases. The log database holds the votes and logs of all groups, and every write to it is
//! synced; the state database holds what the groups' state machines made of their logs, and may lose its latest
//! writes in a power cut: they are applied again from the log. What is on disk after a crash:
//!
//! | crash after | log database | state database | on restart |
//! | --- | --- | --- | --- |
//! | an entry is appended, before its sync | with it or not | without it | not acknowledged, may be dropped or kept |
//! | its sync | with it | without it | applied again once it is committed |
//! | its apply | with it | with it or not; never in part | applied again, or not, as its applied index says |
//! | the state database is synced, before the purge | with it | with it | as it was |
//! | the purge | without it | with it, for the sync came first | as it was |
//! | part of a snapshot is installed | as it was | the old generation in force | the new one is deleted |
//! | a snapshot is installed | behind the snapshot | at the snapshot | openraft purges the log up to it |
//!
//! Invariants:
//! - An entry or a vote is acknowledged only after its sync; a failed sync fails everything after it, for good.
//! - A group whose log went back behind what it had acknowledged does not start, so it cannot vote (see [`witness`]).
//! - The log is purged only below the index that the state database holds durably.

pub(crate) mod batcher;
pub(crate) mod group;
pub(crate) mod log_database;
pub(crate) mod log_store;
pub(crate) mod log_writer;
pub(crate) mod network;
pub(crate) mod peers;
pub(crate) mod reader;
pub(crate) mod receiving;
pub(crate) mod service;
pub(crate) mod snapshot;
pub(crate) mod state_database;
pub(crate) mod state_store;
pub(crate) mod types;
pub(crate) mod witness;

#[cfg(test)]
mod store_suite;
