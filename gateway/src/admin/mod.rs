//! What administrators see and order: status, scrubs, settings, accounts.

pub(crate) mod gather;
pub(crate) mod replicas;
pub(crate) mod scrub;
pub(crate) mod settings;
pub(crate) mod status;
