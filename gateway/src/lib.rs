//! Everything a client can reach: the `keepstone.v1` API over gRPC. Holds nothing durable.
//!
//! A request comes in by `door` (connections, limits, who calls) and `services` to `uploads`, `downloads`, `entries`,
//! `accounts` or `admin`; these speak to the metadata cluster through `meta`, and to the disks through `chunks`. Every bound is in
//! `limits`, every error that clients see is made in `failure`.

pub mod accounts;
mod admin;
mod auth;
mod chunks;
pub mod config;
mod contents;
mod convert;
mod core;
mod door;
mod downloads;
mod entries;
pub mod failure;
mod limits;
mod live;
mod meta;
mod nursery;
mod password;
mod path;
mod places;
mod random;
mod release;
pub mod server;
mod services;
mod sessions;
mod sign_in;
mod suspects;
mod sync;
pub mod token;
mod uploads;
mod workers;
