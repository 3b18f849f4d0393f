//! The warden: looks after the cluster's nodes, disks and volumes, on the root group's leader.
//!
//! One per metadata node; it acts while its node leads the root group. What it decides is in `plan` and `attest` (pure), what it
//! remembers in `liveness` (memory only), what it does in `service`.

mod attest;
pub mod liveness;
mod plan;
mod report;
mod service;

pub use service::{RootGroup, Warden};

#[cfg(test)]
mod tests;
