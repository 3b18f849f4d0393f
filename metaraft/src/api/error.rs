//! Why the metadata cluster did not do, or answer, what was asked.

use crate::client::{ProposeError, QueryError};
use crate::model::codec::DecodeError;
use crate::model::command::StepError;

/// Why a command or query has no answer. Variants differ where the caller's next move differs.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MetaError {
    /// The command changed nothing, or the query's namespace is not there: the answer is final.
    #[error(transparent)]
    Step(#[from] StepError),
    /// No leader answered in time. A command may have been applied: repeat it under the same request id.
    #[error("the metadata cluster does not answer: {reason}")]
    Unavailable {
        /// What happened last.
        reason: String,
    },
    /// The disks of the metadata nodes are nearly full: nothing was done, and nothing will be until there is room.
    #[error("the disks of the metadata nodes are nearly full")]
    NoSpace,
    /// The request was made too long ago, or by a clock that is ahead: make a new one.
    #[error("the request's time is out of bounds; the cluster's is {leader_ms} ms since 1970")]
    RequestOutOfTime {
        /// The leader's time.
        leader_ms: u64,
    },
    /// The installation has not been made, or the map has not been fetched yet.
    #[error(
        "there is no map of the cluster yet: it has not been fetched so far, or `keepstone cluster bootstrap` was not run"
    )]
    NoCluster,
    /// The other side speaks differently, or refuses the caller: repeating does not help.
    #[error("the metadata cluster's answer is not understood: {what}")]
    Protocol {
        /// What was wrong.
        what: String,
    },
}

impl From<ProposeError> for MetaError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Unavailable { last_failure } => Self::Unavailable { reason: last_failure },
            ProposeError::NoSpace => Self::NoSpace,
            error @ ProposeError::TooLarge { .. } => {
                Self::Step(StepError::Invalid { why: error.to_string() })
            }
            ProposeError::Refused { reason } => Self::Protocol { what: reason },
        }
    }
}

impl From<QueryError> for MetaError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Unavailable { last_failure } => Self::Unavailable { reason: last_failure },
            QueryError::Refused { reason } => Self::Protocol { what: reason },
        }
    }
}

impl From<DecodeError> for MetaError {
    fn from(error: DecodeError) -> Self {
        Self::Protocol { what: error.to_string() }
    }
}
