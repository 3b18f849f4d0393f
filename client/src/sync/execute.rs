//! Carries tasks out, each kind in its own way. What was done is recorded before a task counts as ended.

pub(crate) mod compare;
pub(crate) mod download_large;
pub(crate) mod download_small;
pub(crate) mod local;
mod range_reader;
pub(crate) mod remote;
pub(crate) mod upload_large;
mod upload_session;
pub(crate) mod upload_small;
