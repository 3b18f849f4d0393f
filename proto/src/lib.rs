//! Wire formats: generated code, the only conversions between wire and domain types, and the transport security
//! that all tiers share.

pub mod codec;
pub mod peer;

/// What all messages can do: be encoded, for a hash of what a request says.
pub use prost::Message;

/// What clients speak to a gateway.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::pedantic,
    clippy::too_many_lines,
    clippy::large_futures,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("keepstone.v1");

    /// The public package's file descriptors, encoded, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/keepstone.v1.descriptor"));
}

/// What gateways, storage nodes and metadata nodes speak to each other.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::pedantic,
    clippy::too_many_lines,
    clippy::large_futures,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod internal {
    tonic::include_proto!("keepstone.internal.v1");
}

/// What `keepstone sync` and its daemon speak, on one machine.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::pedantic,
    clippy::too_many_lines,
    clippy::large_futures,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod daemon {
    tonic::include_proto!("keepstone.daemon.v1");
}

/// Largest gRPC message that any tier sends or takes: a 4 MiB chunk or copy with room for its envelope, or the
/// chunk list of a file of some 400 GB.
pub const MESSAGE_BYTES_MAX: usize = 20 * 1024 * 1024;

/// Upload sessions that one chunk may be sent for at once.
pub const CHUNK_UPLOADS_MAX: usize = 64;

/// Where a request's stable reason word travels, beside the gRPC status.
pub const REASON_TRAILER: &str = "keepstone-reason";

/// Where it travels after how many seconds a refused request is worth another try.
pub const RETRY_AFTER_TRAILER: &str = "retry-after";
