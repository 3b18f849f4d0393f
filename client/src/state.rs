//! All that a session must remember, in one SQLite file: the three trees, and how far each side is known.
//!
//! `synced` is kept whole; `remote` and `local` are kept as differences from it, so that a node both sides agree on is
//! one row, and the rows of differences are the nodes that are dirty.
//!
//! Invariants:
//! - Whatever changes together is one transaction; between transactions the trees are as [`crate::planner::model`]
//!   says. While a batch of the server's changes has come in part, `remote` may be torn: nothing is planned then.
//! - A node has a row in `differences` for a tree if and only if it is not the same there as in `synced`.
//! - A committed transaction is on stable storage (WAL, `synchronous = FULL`).
//! - A damaged file is never trusted in part: it is moved aside, and the state is built anew from disk and server.

pub mod chunk_index;
pub mod database;
pub mod deletes;
pub mod error;
pub mod excluded;
pub mod local;
pub mod log;
pub mod reached;
pub mod record;
pub mod remote;
mod row;
pub mod scan_index;
mod schema;
pub mod trees;
pub mod uploads;
pub mod went_back;

#[cfg(test)]
mod tests;
