//! Removes earlier versions of files, for good.
//!
//! Invariant: all steps of a request are about one file. A repetition looks its path up anew; if another file is there by
//! then, it is refused.

use engine::ids::{EntryId, VersionId};
use metaraft::api::MetaError;
use metaraft::model::command::{DataStep, StepError, VersionChoice};
use metaraft::model::outcome::StepOutcome;
use metaraft::model::request_key::{Payload, RequestKey};
use proto::v1;

use crate::auth::Caller;
use crate::core::Core;
use crate::downloads::stream::file_state;
use crate::failure::Failure;
use crate::limits::{PURGE_ENTRIES_MAX, REMOVED_VERSIONS_MAX};
use crate::meta::wrong_reply;
use crate::path::RemotePath;
use crate::release;

/// Steps that one removal takes: more versions than any file has.
const STEPS_MAX: u32 = 10_000_000;

/// Which versions a request is about.
fn choice(message: &v1::RemoveVersionsRequest) -> Result<VersionChoice, Failure> {
    let v1::RemoveVersionsRequest { versions, keep_newest, before_ms, .. } = message;
    match (versions.as_slice(), *keep_newest, *before_ms) {
        (listed, 0, 0) if !listed.is_empty() && listed.len() <= REMOVED_VERSIONS_MAX => {
            Ok(VersionChoice::Listed(listed.iter().map(|version| VersionId(*version)).collect()))
        }
        ([], kept, 0) if kept > 0 => Ok(VersionChoice::AllButNewest(kept)),
        ([], 0, time_ms) if time_ms > 0 => Ok(VersionChoice::Before { time_ms }),
        _ => {
            let message = format!(
                "say which versions: up to {REMOVED_VERSIONS_MAX} of them, or how many of the newest are kept, or \
                 before which time"
            );
            Err(Failure::invalid(message))
        }
    }
}

/// The request about this very entry. Under the same id it has other words for any other: the metadata refuse it where
/// a step about that one is remembered.
fn about(request: RequestKey, entry: EntryId) -> RequestKey {
    let asked = request.payload.map_or([0; Payload::LENGTH], |payload| payload.0);
    let words = [&b"versions of "[..], &entry.0.to_be_bytes(), &asked].concat();
    RequestKey { payload: Some(Payload::of_command(&words)), ..request }
}

fn failure_of(error: &MetaError, subject: &str) -> Failure {
    let failure = Failure::from_meta(error, subject);
    if !matches!(error, MetaError::Step(StepError::RequestReused)) {
        return failure;
    }
    let message = format!(
        "{subject}: the request id has been used for another file that was there, or for another request; nothing was \
         done to this one: look at it, and ask under a new id"
    );
    Failure::new(failure.code, failure.reason, message)
}

/// Removes versions, and gives back what they referred to.
pub(crate) async fn remove(
    core: &Core,
    caller: &Caller,
    request: RequestKey,
    message: &v1::RemoveVersionsRequest,
) -> Result<v1::RemoveVersionsResponse, Failure> {
    let path = RemotePath::parse_named(&message.path)?;
    let which = choice(message)?;
    let subject = path.to_string();
    let namespace = caller.namespace;
    let failed = |error: MetaError| failure_of(&error, &subject);
    release::drain(&core.meta, &core.source, namespace).await?;
    let row = core.entry_at(namespace, &path).await?;
    let current = file_state(&row, &subject)?.version;
    if matches!(&which, VersionChoice::Listed(listed) if listed.contains(&current)) {
        let message = format!(
            "{subject}: version {current} is the current one, which stays; `keepstone rm` removes the file with all \
             its versions"
        );
        return Err(Failure::precondition("current-version", message));
    }
    let request = about(request, row.entry);
    let mut removed = v1::RemoveVersionsResponse::default();
    for number in 0..STEPS_MAX {
        let step = DataStep::VersionsRemove {
            namespace,
            entry: row.entry,
            which: which.clone(),
            versions_max: PURGE_ENTRIES_MAX,
        };
        let outcome = core.meta.step(namespace.slot(), request.step(number), step).await.map_err(failed)?;
        let StepOutcome::VersionsRemoved { done, versions, bytes, releases } = outcome else {
            return Err(failed(wrong_reply("versions")));
        };
        removed.versions += versions;
        removed.bytes += bytes;
        release::execute(&core.meta, &core.source, namespace, &releases).await?;
        if done {
            return Ok(removed);
        }
    }
    Err(Failure::internal("versions", &"it does not end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_about_one_file() {
        let client = engine::ids::AccountId::from_bytes([1; 16]);
        let request = |message: &[u8]| {
            let id = engine::ids::RequestId::new(1, [1; 16]);
            RequestKey::of_client(client, id, "remove_versions", message)
        };
        let first = about(request(b"/a"), EntryId(7)).step(3);
        assert_eq!(first, about(request(b"/a"), EntryId(7)).step(3));
        for other in [about(request(b"/a"), EntryId(8)), about(request(b"/b"), EntryId(7))] {
            assert_eq!(other.step(3).id, first.id, "it meets what is remembered");
            assert_ne!(other.step(3).payload, first.payload);
        }
    }

    #[test]
    fn exactly_one_way_of_choosing_is_taken() {
        let message = |versions: &[u64], keep_newest, before_ms| v1::RemoveVersionsRequest {
            versions: versions.to_vec(),
            keep_newest,
            before_ms,
            ..v1::RemoveVersionsRequest::default()
        };
        let taken = |versions: &[u64], keep, before| choice(&message(versions, keep, before)).unwrap();
        assert_eq!(taken(&[3, 4], 0, 0), VersionChoice::Listed(vec![VersionId(3), VersionId(4)]));
        assert_eq!(taken(&[], 2, 0), VersionChoice::AllButNewest(2));
        assert_eq!(taken(&[], 0, 9), VersionChoice::Before { time_ms: 9 });
        let many = vec![1; REMOVED_VERSIONS_MAX + 1];
        for (versions, keep, before) in
            [(&[][..], 0, 0), (&[3], 2, 0), (&[3], 0, 9), (&[], 2, 9), (many.as_slice(), 0, 0)]
        {
            assert!(choice(&message(versions, keep, before)).is_err(), "{} {keep} {before}", versions.len());
        }
    }
}
