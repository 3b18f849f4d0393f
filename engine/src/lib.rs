//! The heart that the tiers share: pure logic, and the stripe writer and chunk reader over small traits.
//!
//! It has no sockets, files, clock, threads or database, so that everything in it runs the same over the network,
//! in memory and in a simulation.

pub mod attestation;
pub mod chunk;
pub mod cluster;
pub mod code;
pub mod codec;
pub mod coding;
pub mod cutter;
pub mod durability;
pub mod hash;
pub mod health;
pub mod ids;
pub mod location;
pub mod manifest;
pub mod packer;
pub mod placement;
pub mod presence;
pub mod read_plan;
pub mod reader;
pub mod rebuild;
#[cfg(test)]
mod simulation;
pub mod store;
pub mod stripe;
pub mod writer;
