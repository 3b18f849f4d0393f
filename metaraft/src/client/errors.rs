//! Why the metadata cluster did not answer.

/// Why commands have no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No leader answered before the deadline. The commands may have been committed, or may yet be: propose them
    /// again under their request ids to learn it.
    #[error("the metadata cluster did not answer in time; last failure: {last_failure}")]
    Unavailable {
        /// What happened at the last attempt.
        last_failure: String,
    },
    /// One of the commands is larger than the cluster takes; none of the caller's was sent.
    #[error("a command of {bytes} bytes; at most {bytes_max} are taken")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// The most.
        bytes_max: usize,
    },
    /// The disks of the metadata nodes are nearly full: nothing was done; reads go on.
    #[error("the disks of the metadata nodes are nearly full")]
    NoSpace,
    /// The cluster refuses the call as such: do not try again.
    #[error("the metadata cluster refuses the commands: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
}

/// Why a query has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// No leader answered before the deadline: try again.
    #[error("the metadata cluster did not answer in time; last failure: {last_failure}")]
    Unavailable {
        /// What happened at the last attempt.
        last_failure: String,
    },
    /// The cluster refuses the call as such: do not try again.
    #[error("the metadata cluster refuses the query: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
}
