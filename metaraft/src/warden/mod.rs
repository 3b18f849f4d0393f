//! The warden: looks after the cluster's nodes, disks and volumes, on the root group's leader.

pub mod liveness;
