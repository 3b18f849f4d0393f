//! How much the tests do: little in CI, everything in `make acceptance`, for hours in `make soak`.
//!
//! Chosen by `KEEPSTONE_SIZE` (`ci`, `full`, `soak`); seeds by `KEEPSTONE_SEED`.

use std::time::{SystemTime, UNIX_EPOCH};

/// How large the inputs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Minutes in total: the default.
    Ci,
    /// What the promises name, word for word.
    Full,
    /// Full, and many more rounds.
    Soak,
}

impl Size {
    /// From the environment.
    #[must_use]
    pub fn chosen() -> Self {
        match std::env::var("KEEPSTONE_SIZE").as_deref() {
            Ok("full") => Self::Full,
            Ok("soak") => Self::Soak,
            _other => Self::Ci,
        }
    }

    /// One of three figures.
    #[must_use]
    pub fn pick<T>(self, ci: T, full: T, soak: T) -> T {
        match self {
            Self::Ci => ci,
            Self::Full => full,
            Self::Soak => soak,
        }
    }
}

/// The seed of a random test: `KEEPSTONE_SEED`, or one from the clock. Printed, so that a failure can be repeated.
#[must_use]
pub fn seed(test: &str) -> u64 {
    let chosen = std::env::var("KEEPSTONE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = chosen.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_secs().wrapping_mul(1_000_003).wrapping_add(u64::from(now.subsec_nanos()))
    });
    eprintln!("{test}: KEEPSTONE_SEED={seed}");
    seed
}
