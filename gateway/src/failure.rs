//! What clients are told when something fails: the one place where errors of all tiers become gRPC statuses.
//!
//! Invariants:
//! - A message speaks of what the client named (paths, sessions), never of ids inside the cluster or of others' data.
//! - Every failure has a stable word for programs, in the trailer [`proto::REASON_TRAILER`].

use std::time::Duration;

use metaraft::api::MetaError;
use metaraft::model::command::StepError;
use proto::v1::ItemError;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Code, Status};

use crate::door::shares::Full;
use crate::path::PathError;

/// When something of which all is in use may be free again.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(1);

fn whole_seconds(time: Duration) -> u64 {
    time.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
}

/// A failure as a client sees it: of a whole request or of one item of a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The gRPC status code.
    pub code: Code,
    /// A stable word for programs.
    pub reason: &'static str,
    /// What happened, to what, and what to do.
    pub message: String,
    /// When it is worth coming again, where that is known: in the trailer [`proto::RETRY_AFTER_TRAILER`] as well.
    pub retry_after: Option<Duration>,
}

impl Failure {
    pub(crate) fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), retry_after: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, "invalid", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, "not-found", message)
    }

    pub(crate) fn precondition(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, reason, message)
    }

    pub(crate) fn busy(what: &str) -> Self {
        let message = format!("the gateway is busy ({what}); try again in a moment");
        Self::new(Code::ResourceExhausted, "busy", message)
    }

    /// A limit is reached; `setting` is its name in the gateway's configuration.
    pub(crate) fn limit(what: &str, setting: &str, retry_after: Duration) -> Self {
        let retry_after = (!retry_after.is_zero()).then_some(retry_after);
        let when = retry_after
            .map_or_else(String::new, |after| format!("; try again in {} s", whole_seconds(after)));
        let message = format!("{what} (the gateway's limit {setting}){when}");
        // Where coming again is no use, the word for programs says so.
        let reason = if retry_after.is_some() { "busy" } else { "limit" };
        Self { retry_after, ..Self::new(Code::ResourceExhausted, reason, message) }
    }

    /// One's own share of something, or all of it, is in use.
    pub(crate) fn full(what: &str, full: Full, own_setting: &str, all_setting: &str) -> Self {
        match full {
            Full::Own => Self::limit(&format!("too many {what} of yours"), own_setting, FULL_RETRY_AFTER),
            Full::All => {
                Self::limit(&format!("the gateway is busy: too many {what}"), all_setting, FULL_RETRY_AFTER)
            }
        }
    }

    /// The client did not send what was waited for.
    pub(crate) fn too_slow(what: &str, setting: &str) -> Self {
        let message = format!("{what} (the gateway's limit {setting}); send it again");
        Self::new(Code::DeadlineExceeded, "too-slow", message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, "unavailable", message)
    }

    /// Something that cannot happen did: logged in full here, told in general.
    pub(crate) fn internal(what: &str, error: &dyn std::fmt::Display) -> Self {
        tracing::error!(error = %error, "internal: {what}");
        let message = format!("internal error ({what}); the gateway's log says more");
        Self::new(Code::Internal, "internal", message)
    }

    pub(crate) fn no_entry(subject: &str) -> Self {
        Self::not_found(format!("{subject}: no such file or folder"))
    }

    /// Why the metadata cluster did not do what was asked of `subject` (a path, or words).
    pub(crate) fn from_meta(error: &MetaError, subject: &str) -> Self {
        match error {
            MetaError::Step(step) => Self::from_step(step, subject),
            MetaError::RequestOutOfTime { .. } => Self::new(
                Code::InvalidArgument,
                "request-out-of-time",
                "the request id's time is more than a day old or ahead of the cluster's clock; \
                 check this machine's clock and send a new request",
            ),
            MetaError::NoSpace => Self::new(
                Code::ResourceExhausted,
                "no-space",
                "the disks of the cluster's metadata nodes are at their reserve, so nothing new is taken; reading goes \
                 on, and so do `keepstone rm`, `keepstone trash purge` and `keepstone versions rm`, which make room. An \
                 administrator must give \
                 them more space (`keepstone admin status` says which)",
            ),
            other => Self::from_unreachable(other),
        }
    }

    fn from_unreachable(error: &MetaError) -> Self {
        if matches!(error, MetaError::NoCluster) {
            // Whoever asks is told what to do; here nothing is wrong.
            tracing::debug!("asked before the cluster was initialised");
            return Self::unavailable(error.to_string());
        }
        if matches!(error, MetaError::Unavailable { .. }) {
            tracing::warn!(error = %error, "metadata unavailable");
            return Self::unavailable("the metadata cluster does not answer; try again in a moment");
        }
        Self::internal("metadata", error)
    }

    /// Says what fills a quota, and which command frees it.
    fn over_quota(subject: &str, used_bytes: u64, quota_bytes: u64, needed_bytes: u64) -> Self {
        let message = format!(
            "{subject}: over the account's quota: {needed_bytes} bytes more do not fit; {used_bytes} of \
             {quota_bytes} are used, by files, their earlier versions, the trash, uploads that have begun, and some \
             hundred bytes for each entry and version (`keepstone whoami` shows how much). Earlier versions are \
             freed by `keepstone versions rm FILE --keep 1` (`keepstone versions ls FILE` shows them), files by \
             `keepstone rm FILE` and then `keepstone trash purge --all`, which frees the trash; an upload that \
             was broken off makes room for the next ten minutes later. An administrator can raise the quota (`keepstone admin account quota`)"
        );
        Self::new(Code::ResourceExhausted, "quota", message)
    }

    fn reused(subject: &str) -> Self {
        let message = format!(
            "{subject}: the request id has been used for another request; nothing was done: send it under a new id"
        );
        Self::new(Code::InvalidArgument, "request-id-reused", message)
    }

    /// Why a step changed nothing.
    pub(crate) fn from_step(step: &StepError, subject: &str) -> Self {
        let precondition = |reason, text: &str| Self::precondition(reason, format!("{subject}: {text}"));
        match step {
            StepError::NotFound { what } if what == "entry" => Self::no_entry(subject),
            StepError::NotFound { what } if what == "folder" => {
                Self::not_found(format!("{subject}: the folder that it goes to is not there"))
            }
            StepError::NotFound { what } => Self::not_found(format!("{subject}: no such {what}")),
            StepError::AlreadyExists { kind } => Self::new(
                Code::AlreadyExists,
                "exists",
                format!("{subject}: there is a {kind} of that name already"),
            ),
            StepError::Conflict { .. } => Self::new(
                Code::Aborted,
                "conflict",
                format!("{subject}: it was changed by someone else meanwhile; look at it and try again"),
            ),
            StepError::Changed { .. } => Self::new(
                Code::Aborted,
                "changed",
                format!("{subject}: something changed meanwhile; try again"),
            ),
            StepError::WrongKind { is } => precondition("wrong-kind", &format!("it is a {is}")),
            StepError::NotEmpty => precondition("not-empty", "the folder is not empty"),
            StepError::Cycle => precondition("cycle", "a folder cannot be moved into itself"),
            StepError::TooDeep { max } => {
                precondition("too-deep", &format!("at most {max} folders within one another"))
            }
            StepError::BadName { why } | StepError::Invalid { why } => {
                Self::invalid(format!("{subject}: {why}"))
            }
            StepError::Quota { used_bytes, quota_bytes, needed_bytes } => {
                Self::over_quota(subject, *used_bytes, *quota_bytes, *needed_bytes)
            }
            StepError::TooMany { what } => Self::new(
                Code::ResourceExhausted,
                "limit",
                format!("{subject}: the account has as much as it may have: {what}"),
            ),
            StepError::UploadEnded { how } => precondition(
                "upload-ended",
                &format!("the upload session has ended ({how}); begin a new one"),
            ),
            StepError::EmailTaken => Self::new(
                Code::AlreadyExists,
                "exists",
                format!("{subject}: there is an account with that email already"),
            ),
            StepError::NotOwner { .. } | StepError::StaleEpoch { .. } => {
                Self::unavailable(format!("{subject}: the cluster is being rearranged; try again"))
            }
            StepError::RequestReused => Self::reused(subject),
            StepError::TokenRefused => crate::auth::refused(),
            StepError::NurseryFull | StepError::ContentHeld => {
                Self::unavailable(format!("{subject}: too many small files at once; try again in a moment"))
            }
            StepError::WrongGroup => Self::internal("metadata", step),
            StepError::WrongCluster => {
                tracing::debug!(error = %step, "asked before the cluster was made");
                Self::unavailable(format!(
                    "{subject}: the cluster has not been made yet; try again in a moment"
                ))
            }
        }
    }

    /// The same, of the first of `left` things that could not be done while all others were.
    pub(crate) fn but_for(mut self, left: u64, what: &str, done: &str) -> Self {
        self.message = format!("{} (the first of {left} such {what}s; all others were {done})", self.message);
        self
    }

    /// Whether it was refused for what its account has already.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self.reason, "quota" | "limit")
    }

    /// As an item of a batch.
    pub(crate) fn into_item(self) -> ItemError {
        #[expect(clippy::cast_sign_loss, reason = "gRPC codes are 0 to 16")]
        let code = self.code as i32 as u32;
        ItemError { code, message: self.message, reason: self.reason.to_owned() }
    }
}

impl From<PathError> for Failure {
    fn from(error: PathError) -> Self {
        Self::new(Code::InvalidArgument, "bad-path", error.to_string())
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut metadata = MetadataMap::new();
        metadata.insert(proto::REASON_TRAILER, AsciiMetadataValue::from_static(failure.reason));
        if let Some(after) = failure.retry_after {
            metadata.insert(proto::RETRY_AFTER_TRAILER, AsciiMetadataValue::from(whole_seconds(after)));
        }
        Self::with_metadata(failure.code, failure.message, metadata)
    }
}

#[cfg(test)]
mod tests {
    use engine::ids::VersionId;

    use super::*;

    #[test]
    fn statuses_carry_code_reason_and_path() {
        let failure = Failure::from_step(&StepError::Conflict { current: Some(VersionId(7)) }, "/a.txt");
        let status = Status::from(failure);
        assert_eq!(status.code(), Code::Aborted);
        assert_eq!(status.metadata().get(proto::REASON_TRAILER).unwrap(), "conflict");
        assert!(status.message().starts_with("/a.txt: "), "{}", status.message());
        assert!(!status.message().contains('7'), "an id is shown: {}", status.message());
    }

    #[test]
    fn a_limit_says_which_one_it_is_and_when_to_come_back() {
        let status = Status::from(Failure::limit("too many x", "x_max", Duration::from_millis(2100)));
        assert_eq!(status.message(), "too many x (the gateway's limit x_max); try again in 3 s");
        assert_eq!(status.metadata().get(proto::RETRY_AFTER_TRAILER).unwrap(), "3");
        assert_eq!(status.metadata().get(proto::REASON_TRAILER).unwrap(), "busy");
    }

    #[test]
    fn items_carry_the_same_words() {
        let item = Failure::from_step(&StepError::NotEmpty, "/docs").into_item();
        assert_eq!((item.code, item.reason.as_str()), (9, "not-empty"));
    }

    #[test]
    fn a_missing_entry_reads_like_one() {
        let failure = Failure::from_step(&StepError::NotFound { what: "entry".into() }, "/x");
        assert_eq!(failure.message, "/x: no such file or folder");
        assert_eq!(failure.code, Code::NotFound);
    }
}
