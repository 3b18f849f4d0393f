//! Removes earlier versions of files, for good.

use engine::ids::VersionId;
use metaraft::api::MetaError;
use metaraft::model::command::{DataStep, VersionChoice};
use metaraft::model::outcome::StepOutcome;
use metaraft::model::request_key::RequestKey;
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
    let failed = |error: MetaError| Failure::from_meta(&error, &subject);
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
