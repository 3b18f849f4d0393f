//! Everything a client can reach: the `keepstone.v1` API over gRPC. Holds nothing durable.
//!
//! A request goes through `services` (let in, caller checked) to `uploads`, `downloads`, `entries`, `accounts` or
//! `admin`; these speak to the metadata cluster through `meta`, and to the disks through `chunks`. Every bound is in
//! `limits`, every error that clients see is made in `failure`.

pub mod accounts;
mod admin;
mod auth;
mod chunks;
pub mod config;
mod convert;
mod core;
mod downloads;
mod entries;
pub mod failure;
mod limits;
mod meta;
mod password;
mod path;
mod random;
mod release;
pub mod server;
mod services;
mod sessions;
mod suspects;
mod sync;
pub mod token;
mod uploads;
