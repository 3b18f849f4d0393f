//! Upload sessions: begin, put, status, commit, abort.

mod alone;
pub(crate) mod begin;
pub(crate) mod commit;
pub(crate) mod forget;
pub(crate) mod look;
pub(crate) mod put;
pub(crate) mod small;
pub(crate) mod status;
mod together;
