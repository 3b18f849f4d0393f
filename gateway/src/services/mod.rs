//! The gRPC services: each call is let in, its caller is checked, and it is handed on.

pub(crate) mod accounts;
pub(crate) mod admin;
pub(crate) mod dispatch;
pub(crate) mod files;
pub(crate) mod sync;
