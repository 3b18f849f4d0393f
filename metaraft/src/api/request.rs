//! Names of requests that begin here.

use engine::ids::RequestId;

use super::cluster_clock;

/// A new request, made now by the time of the cluster's logs: that is always taken.
///
/// # Panics
/// If the operating system has no random bytes.
#[must_use]
pub fn new_request() -> RequestId {
    new_request_at(cluster_clock::now().time_ms)
}

/// A new request, made at `time_ms`.
///
/// # Panics
/// As [`new_request`].
#[must_use]
pub fn new_request_at(time_ms: u64) -> RequestId {
    let mut random = [0; 16];
    #[expect(clippy::expect_used, reason = "see Panics: nothing safe can be done without them")]
    getrandom::fill(&mut random).expect("the operating system gives random bytes");
    RequestId::new(time_ms, random)
}
