//! The way in: connections are taken and bounded, and every request's caller is known before anything of the request
//! is read or anything that others share is taken.
//!
//! `listen` takes connections, `connections` counts them, `gate` checks callers, `bodies` bounds what they send and
//! what waits to be sent to them. `shares` and `meter` are the two kinds of limit: so much at once, so much a second;
//! `debts` slows down those who do too much, and `refusals` those who are refused again and again.

pub(crate) mod address;
pub(crate) mod bodies;
pub(crate) mod chunk_messages;
pub(crate) mod connections;
pub(crate) mod debts;
pub(crate) mod gate;
pub(crate) mod listen;
pub(crate) mod meter;
pub(crate) mod recent;
pub(crate) mod refusals;
pub(crate) mod shares;
