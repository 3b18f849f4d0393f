//! The state machine of the metadata groups: what a command does to a group's rows, and what a query reads.
//!
//! Pure: no clock, no randomness, no IO but through the transaction that it is given. Each area is a file: it says
//! which rows are its own and what it keeps true of them. `docs/metadata.md` has the tables and the order of
//! operations across groups.

mod accounts;
mod chunks;
mod conditional;
mod contents;
mod entries;
mod journal;
mod keys;
mod machine;
mod moves;
mod names;
mod nursery;
mod query;
mod query_files;
mod query_journal;
mod query_tree;
mod quota;
mod requests;
mod root;
mod rows;
mod runs;
mod stripes;
mod trash;
mod tree;
mod txn;
mod uploads;
mod uses;
mod versions;
mod walks;

pub use machine::StateMachine;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
