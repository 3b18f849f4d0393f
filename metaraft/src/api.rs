//! The metadata cluster as gateways use it: typed commands and queries, and the cluster map and settings, a moment
//! old at most.

pub mod bootstrap;
pub mod cluster_clock;
mod error;
mod meta_api;
mod request;
mod transport;

pub use error::MetaError;
pub use meta_api::{MetaApi, by_group};
pub use request::{new_request, new_request_at};
pub use transport::Transport;

#[cfg(test)]
mod tests;
