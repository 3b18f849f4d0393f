//! Files and folders of the account's tree. For content see the modules `upload` and `download`.

use bytes::Bytes;
use engine::ids::ContentId;
use proto::v1;

use super::{files, present};
use crate::call_error::CallError;
use crate::connection::ApiClient;
use crate::path::RemotePath;
use crate::state::reached::Reached;

/// Entries asked for in one page of a listing.
const PAGE_ENTRIES: u32 = 2_000;

/// Which earlier versions of a file are removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionsRemoved {
    /// These; not the current one.
    Listed(Vec<u64>),
    /// All but so many of the newest, the current one counted; at least 1.
    AllButNewest(u32),
    /// Those that were stored before this time, the oldest first up to one that was not; never the current one.
    Before {
        /// Milliseconds since 1970.
        time_ms: u64,
    },
}

impl ApiClient {
    /// What is at `path`.
    ///
    /// # Errors
    /// NOT_FOUND if nothing is; if the gateway refuses or cannot be reached.
    pub async fn get_entry(&self, path: &RemotePath) -> Result<v1::Entry, CallError> {
        let message = v1::GetEntryRequest { path: path.to_string() };
        let answer = self
            .call(message, |channel, request| async move { files(channel).get_entry(request).await })
            .await?;
        present(answer.entry, "entry")
    }

    /// What is at `path`, if anything.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn find_entry(&self, path: &RemotePath) -> Result<Option<v1::Entry>, CallError> {
        match self.get_entry(path).await {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One page of a folder, by name, after the name `after` (empty: from the start), and whether there are more.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn list_folder_page(
        &self,
        path: &RemotePath,
        after: &str,
    ) -> Result<(Vec<v1::Entry>, bool), CallError> {
        let message = v1::ListFolderRequest {
            path: path.to_string(),
            after: after.to_owned(),
            count_max: PAGE_ENTRIES,
        };
        let answer = self
            .call(message, |channel, request| async move { files(channel).list_folder(request).await })
            .await?;
        if answer.more && answer.entries.is_empty() {
            return Err(CallError::protocol("an empty page with more to come"));
        }
        Ok((answer.entries, answer.more))
    }

    /// Makes folders and symlinks, in order; each succeeds or fails by itself.
    ///
    /// # Errors
    /// If the gateway refuses the batch as a whole, or cannot be reached.
    pub async fn create_entries(
        &self,
        entries: Vec<v1::CreateEntry>,
    ) -> Result<Vec<Result<v1::Entry, CallError>>, CallError> {
        let count = entries.len();
        let message = v1::CreateEntriesRequest { request_id: self.new_request_id().await?, entries };
        let answer = self
            .call(message, |channel, request| async move { files(channel).create_entries(request).await })
            .await?;
        item_results(answer.results, count)
    }

    /// Sets permission bits and times; each succeeds or fails by itself.
    ///
    /// # Errors
    /// If the gateway refuses the batch as a whole, or cannot be reached.
    pub async fn set_attributes(
        &self,
        entries: Vec<v1::SetAttributes>,
    ) -> Result<Vec<Result<v1::Entry, CallError>>, CallError> {
        let count = entries.len();
        let message = v1::SetAttributesRequest { request_id: self.new_request_id().await?, entries };
        let answer = self
            .call(message, |channel, request| async move { files(channel).set_attributes(request).await })
            .await?;
        item_results(answer.results, count)
    }

    /// Moves or renames an entry to exactly `to`.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn move_entry(
        &self,
        from: &RemotePath,
        to: &RemotePath,
        replace: bool,
    ) -> Result<v1::Entry, CallError> {
        let message = v1::MoveEntryRequest {
            request_id: self.new_request_id().await?,
            from: from.to_string(),
            to: to.to_string(),
            replace,
        };
        let answer = self
            .call(message, |channel, request| async move { files(channel).move_entry(request).await })
            .await?;
        present(answer.entry, "entry")
    }

    /// Copies an entry, and all below it, to exactly `to`.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn copy_entry(
        &self,
        from: &RemotePath,
        to: &RemotePath,
        replace: bool,
    ) -> Result<v1::CopyEntryResponse, CallError> {
        let message = v1::CopyEntryRequest {
            request_id: self.new_request_id().await?,
            from: from.to_string(),
            to: to.to_string(),
            replace,
        };
        self.call(message, |channel, request| async move { files(channel).copy_entry(request).await }).await
    }

    /// Moves an entry to the trash; gives its id there.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn delete_entry(&self, path: &RemotePath, recursive: bool) -> Result<u64, CallError> {
        let message = v1::DeleteEntryRequest {
            request_id: self.new_request_id().await?,
            path: path.to_string(),
            recursive,
        };
        let answer = self
            .call(message, |channel, request| async move { files(channel).delete_entry(request).await })
            .await?;
        Ok(answer.trash_id)
    }

    /// A file's versions, newest first.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn list_versions(&self, path: &RemotePath) -> Result<Vec<v1::Version>, CallError> {
        let message = v1::ListVersionsRequest { path: path.to_string() };
        let answer = self
            .call(message, |channel, request| async move { files(channel).list_versions(request).await })
            .await?;
        Ok(answer.versions)
    }

    /// Adds a new version with the content of an earlier one.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn restore_version(&self, path: &RemotePath, version: u64) -> Result<v1::Entry, CallError> {
        let message = v1::RestoreVersionRequest {
            request_id: self.new_request_id().await?,
            path: path.to_string(),
            version,
        };
        let answer = self
            .call(message, |channel, request| async move { files(channel).restore_version(request).await })
            .await?;
        present(answer.entry, "entry")
    }

    /// Removes earlier versions of a file for good; gives how many, and their bytes.
    ///
    /// # Errors
    /// If the current version is among those named, the gateway refuses otherwise, or cannot be reached.
    pub async fn remove_versions(
        &self,
        path: &RemotePath,
        which: VersionsRemoved,
    ) -> Result<v1::RemoveVersionsResponse, CallError> {
        let mut message = v1::RemoveVersionsRequest {
            request_id: self.new_request_id().await?,
            path: path.to_string(),
            ..v1::RemoveVersionsRequest::default()
        };
        match which {
            VersionsRemoved::Listed(versions) => message.versions = versions,
            VersionsRemoved::AllButNewest(kept) => message.keep_newest = kept,
            VersionsRemoved::Before { time_ms } => message.before_ms = time_ms,
        }
        self.call(message, |channel, request| async move { files(channel).remove_versions(request).await })
            .await
    }

    /// One page of the trash, after the id `after` (0: from the start), and whether there are more.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn list_trash_page(&self, after: u64) -> Result<(Vec<v1::TrashItem>, bool), CallError> {
        let message = v1::ListTrashRequest { after, count_max: PAGE_ENTRIES };
        let answer = self
            .call(message, |channel, request| async move { files(channel).list_trash(request).await })
            .await?;
        if answer.more && answer.items.is_empty() {
            return Err(CallError::protocol("an empty page with more to come"));
        }
        Ok((answer.items, answer.more))
    }

    /// Brings an item of the trash back, to where it was or to exactly `to`.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn restore_trash(
        &self,
        trash_id: u64,
        to: Option<&RemotePath>,
    ) -> Result<v1::Entry, CallError> {
        let message = v1::RestoreTrashRequest {
            request_id: self.new_request_id().await?,
            trash_id,
            to: to.map(ToString::to_string).unwrap_or_default(),
        };
        let answer = self
            .call(message, |channel, request| async move { files(channel).restore_trash(request).await })
            .await?;
        present(answer.entry, "entry")
    }

    /// Deletes one item of the trash for good, or (with 0) all of it; gives entries and bytes.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn purge_trash(&self, trash_id: u64) -> Result<v1::PurgeTrashResponse, CallError> {
        let message = v1::PurgeTrashRequest { request_id: self.new_request_id().await?, trash_id };
        self.call(message, |channel, request| async move { files(channel).purge_trash(request).await }).await
    }

    /// Opens upload sessions; one answer per session, in order.
    pub(crate) async fn begin_uploads(
        &self,
        uploads: Vec<v1::BeginUpload>,
    ) -> Result<Vec<v1::BegunUpload>, CallError> {
        let count = uploads.len();
        let message = v1::BeginUploadsRequest { request_id: self.new_request_id().await?, uploads };
        let answer = self
            .call(message, |channel, request| async move { files(channel).begin_uploads(request).await })
            .await?;
        if answer.uploads.len() != count {
            return Err(CallError::protocol("not one answer per upload"));
        }
        Ok(answer.uploads)
    }

    /// What is still missing in a session.
    pub(crate) async fn upload_status(
        &self,
        upload_id: Bytes,
    ) -> Result<v1::UploadStatusResponse, CallError> {
        let message = v1::UploadStatusRequest { upload_id };
        self.call(message, |channel, request| async move { files(channel).upload_status(request).await })
            .await
    }

    /// Makes the files of complete sessions; each succeeds or fails by itself. What they are to replace, and where, rests on
    /// what was seen up to a cursor; empty: on no cursor.
    pub(crate) async fn commit_uploads(
        &self,
        cursor: Bytes,
        uploads: Vec<v1::CommitUpload>,
    ) -> Result<(Vec<Result<v1::Entry, CallError>>, Reached), CallError> {
        let count = uploads.len();
        let message = v1::CommitUploadsRequest { request_id: self.new_request_id().await?, uploads, cursor };
        let answer = self
            .call(message, |channel, request| async move { files(channel).commit_uploads(request).await })
            .await?;
        let reached =
            Reached { proof: answer.seen.to_vec(), sequence: answer.sequence, reign: answer.reign.to_vec() };
        Ok((item_results(answer.results, count)?, reached))
    }

    /// Puts one small file, in one round trip, against what `message` says is there; its request id is made here. It must
    /// come to be the content that is named. Refused as UNIMPLEMENTED by gateways that are older than this call.
    pub(crate) async fn put_file(
        &self,
        message: v1::PutFileRequest,
        content: ContentId,
    ) -> Result<(v1::Entry, Reached), CallError> {
        let message = v1::PutFileRequest { request_id: self.new_request_id().await?, ..message };
        let empty = message.data.is_empty();
        let answer = self
            .call(message, |channel, request| async move { files(channel).put_file(request).await })
            .await;
        if matches!(&answer, Err(error) if error.code() == Some(tonic::Code::Unimplemented)) {
            self.note_lack_of_put_file();
        }
        let answer = answer?;
        let entry = present(answer.entry, "entry")?;
        if !empty && entry.content != content.as_bytes()[..] {
            return Err(CallError::protocol("the file that was put is another one than was sent"));
        }
        let reached =
            Reached { proof: answer.seen.to_vec(), sequence: answer.sequence, reign: answer.reign.to_vec() };
        Ok((entry, reached))
    }

    /// Gives up a session. Tried once: a session that nobody ends expires by itself.
    pub(crate) async fn abort_upload(&self, upload_id: Bytes) -> Result<(), CallError> {
        let message = v1::AbortUploadRequest { request_id: self.new_request_id().await?, upload_id };
        let once = self.clone().with_retry_time_max(std::time::Duration::ZERO);
        once.call(message, |channel, request| async move { files(channel).abort_upload(request).await })
            .await?;
        Ok(())
    }
}

fn item_results(
    results: Vec<v1::EntryResult>,
    count: usize,
) -> Result<Vec<Result<v1::Entry, CallError>>, CallError> {
    if results.len() != count {
        return Err(CallError::protocol("not one answer per item"));
    }
    Ok(results
        .into_iter()
        .map(|item| match item.result {
            Some(v1::entry_result::Result::Entry(entry)) => Ok(entry),
            Some(v1::entry_result::Result::Error(error)) => Err(CallError::from_item(&error)),
            None => Err(CallError::protocol("an item without an answer")),
        })
        .collect())
}
