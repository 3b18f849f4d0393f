//! `keepstone.v1.Sync`: following a tree and changing it, by ids.

pub(crate) mod apply;
pub(crate) mod changes;
pub(crate) mod history;
pub(crate) mod manifest;
pub(crate) mod seal;
pub(crate) mod waiters;
pub(crate) mod watch;
