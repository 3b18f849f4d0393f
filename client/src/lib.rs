//! What a program uses to reach a Keepstone cluster: the profile it signs in with, the API over gRPC, and the
//! transfer of local trees in both directions. It prints nothing, and knows no RocksDB and no Raft.

pub mod api;
pub mod call_error;
pub mod connection;
pub mod daemon;
pub mod download;
#[cfg(test)]
mod fake_gateway;
pub mod local;
pub mod local_folder;
mod memory;
mod naming;
pub mod path;
pub mod planner;
pub mod private_file;
pub mod profile;
pub mod progress;
pub mod report;
mod server_clock;
mod shown_token;
mod sparse;
pub mod state;
pub mod sync;
pub mod upload;
mod wire;
mod write_back;
