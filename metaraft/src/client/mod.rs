//! The client of the metadata cluster: finds leaders, tries again, and puts waiting commands into one call.

pub(crate) mod asker;
pub mod config;
pub mod errors;
pub(crate) mod leaders;
pub mod meta_client;
pub(crate) mod proposer;

pub use config::ClientConfig;
pub use errors::{ProposeError, QueryError};
pub use meta_client::{MetaClient, WatchedChanges};
