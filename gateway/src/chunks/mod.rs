//! Chunks on their way to the disks and back: the shell around the engine's packer, stripe writer and chunk reader.

pub(crate) mod deposit;
pub(crate) mod inflight;
pub(crate) mod latency;
pub(crate) mod lists;
pub(crate) mod prepare;
pub(crate) mod presence;
pub(crate) mod reader;
pub(crate) mod stripe;
pub(crate) mod writer;
