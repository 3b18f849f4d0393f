//! Clusters of three nodes in this process, over real gRPC and mutual TLS, with a small state machine.

mod cluster;
pub(crate) mod registers;
mod scenarios;
