//! Names of requests that begin here.

use std::time::{SystemTime, UNIX_EPOCH};

use engine::ids::RequestId;

/// A new request, made now.
///
/// # Panics
/// If the operating system has no random bytes.
#[must_use]
pub fn new_request() -> RequestId {
    let mut random = [0; 16];
    #[expect(clippy::expect_used, reason = "see Panics: nothing safe can be done without them")]
    getrandom::fill(&mut random).expect("the operating system gives random bytes");
    RequestId::new(now_ms(), random)
}

/// Milliseconds since 1970 by this machine's clock; 0 before.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
