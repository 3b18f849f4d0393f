//! Fresh randomness and the time, for ids that are made here.

use std::time::{SystemTime, UNIX_EPOCH};

use engine::ids::RequestId;
use metaraft::api::cluster_clock;

/// `N` random bytes.
///
/// # Panics
/// If the operating system has none: nothing can be done safely then.
#[expect(clippy::expect_used, reason = "see Panics")]
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives randomness");
    bytes
}

/// Milliseconds since 1970 for people, by the cluster's clocks: this machine's may be off by days.
pub(crate) fn wall_ms() -> u64 {
    cluster_clock::now().wall_ms
}

/// The time by which sessions expire and requests are taken: that of the metadata groups' logs.
pub(crate) fn log_ms() -> u64 {
    cluster_clock::now().time_ms
}

/// Milliseconds since 1970, by this machine's clock.
pub(crate) fn own_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// The id of a request that the gateway makes itself: only for steps that are idempotent.
pub(crate) fn request() -> RequestId {
    RequestId::new(log_ms(), bytes())
}

/// Randomness for the engine.
pub(crate) struct SystemEntropy;

impl engine::store::Entropy for SystemEntropy {
    #[expect(clippy::expect_used, reason = "see `bytes`")]
    fn fill(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the operating system gives randomness");
    }
}

/// Deadlines for the engine.
pub(crate) struct TokioTimer;

impl engine::store::Timer for TokioTimer {
    async fn sleep(&self, duration: std::time::Duration) {
        tokio::time::sleep(duration).await;
    }
}
