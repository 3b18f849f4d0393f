//! How patient a client of the metadata cluster is.

use std::time::Duration;

/// Deadlines of a [`super::MetaClient`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// How long a command or query may take, all attempts together.
    pub deadline: Duration,
    /// How long one attempt at one node may take: a leader that was cut off answers late or never.
    pub attempt_timeout: Duration,
    /// The first pause between attempts; it doubles, up to eight times this.
    pub pause: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(3),
            pause: Duration::from_millis(25),
        }
    }
}
