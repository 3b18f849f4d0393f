//! The answer to a command.

use serde::{Deserialize, Serialize};

use super::outcome::StepOutcome;
use super::step_error::StepError;

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandOutcome {
    /// One outcome per step.
    Done(Vec<StepOutcome>),
    /// Nothing was changed.
    Failed {
        /// Which step, counted from 0.
        step: u32,
        /// Why.
        error: StepError,
    },
    /// The request id is older than requests are remembered, or further ahead than clocks may differ.
    RequestOutOfTime {
        /// The leader's time, milliseconds since 1970.
        leader_ms: u64,
    },
    /// The bytes are not a command that the leader's software knows; it has not been proposed.
    NotUnderstood,
    /// The disk of the leader is at its reserve, and this command does not only make room: it has not been proposed.
    NoSpace,
}
