//! The storage node: serves the shards of erasure-coded stripes from plain disks, and the client stub for it.
//!
//! It knows no users, files or names. A disk is a directory; [`disk::Disk`] is one that serves, [`node::StorageNode`]
//! the process around several, and [`client::StorageClient`] how others reach it.

mod aligned;
mod appender;
mod attest;
mod channels;
pub mod client;
pub mod config;
pub mod disk;
mod disk_core;
pub mod disks;
mod extent;
#[cfg(test)]
mod faults;
mod files;
mod heartbeat;
mod index;
mod locks;
mod logbook;
pub mod node;
mod reader;
pub mod record;
mod recovery;
mod scan;
mod scrub;
mod service;
mod shared_index;
mod space;
pub mod superblock;
#[cfg(test)]
mod testing;
mod threads;
mod wire;
mod writer;

pub use disk_core::DiskStatus;
pub use index::{IndexError, Row};
pub use logbook::Start;
pub use scan::ScanError;
pub use writer::{Authority, Put, PutOutcome};
