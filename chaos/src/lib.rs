//! Fault injection and checkers: runs the real binary as processes, breaks them and their disks, and looks whether
//! the promises hold.
//!
//! Everything here goes through what a user or an operator has: the binary (`KEEPSTONE_BIN`), `cluster.json`, signals
//! and files on disk. What is started here ends when its handle is dropped, also on a failed test.

pub mod attack;
pub mod client;
pub mod cluster;
pub mod compare;
pub mod contents;
pub mod damage;
pub mod device;
pub mod disk;
pub mod edits;
pub mod faulty;
pub mod gateway;
pub mod group;
mod history;
pub mod ledger;
pub mod netns;
pub mod process;
pub mod proxy;
pub mod serial;
pub mod size;
pub mod skip;
pub mod snapshot;
pub mod tree;
pub mod wait;
pub mod workload;
