//! The daemon that keeps several folders the same, as its configuration file says, and the socket by which the
//! commands of the same user reach it.

pub mod bus;
pub mod client;
pub mod config;
pub mod forget;
pub mod keeper;
pub mod paths;
pub mod rate;
pub mod server;
pub mod service;
pub mod socket;
pub mod supervisor;
pub mod wire;
