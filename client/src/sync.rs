//! Keeps a local folder and a remote one the same: [`session::Session`] runs it, [`handle::Handle`] steers it.

pub mod config;
pub mod handle;
pub mod session;
pub mod status;
