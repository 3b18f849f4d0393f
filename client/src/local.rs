//! The folder on this device: finding what changed in it, and changing it without losing anything.

pub mod model;
