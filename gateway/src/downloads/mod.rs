//! Downloads: one version as a stream, or many small files in one round trip.

pub(crate) mod many;
pub(crate) mod outbox;
pub(crate) mod plan;
pub(crate) mod stream;
