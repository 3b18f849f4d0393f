//! `keepstone.v1.Files`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use proto::v1;
use proto::v1::files_server::Files;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::auth::{self, Caller, Claim};
use crate::convert;
use crate::core::Core;
use crate::door::bodies::Beginning;
use crate::door::debts::ANSWER_WAIT_MAX;
use crate::door::refusals::Asked;
use crate::door::shares::Share;
use crate::downloads;
use crate::downloads::outbox::outbox;
use crate::entries;
use crate::failure::Failure;
use crate::sync::history::{Guard, Reached};
use crate::uploads;

/// Answers of one stream of chunks that wait to be taken.
const ANSWERS_MAX: usize = 2 * 1024;

/// Answers that are sent in one message.
const ANSWERS_TOGETHER_MAX: usize = 512;

/// Messages of a download that wait to be taken, a MiB each at most.
const MESSAGES_MAX: usize = 2;

/// How long a stream of chunks, or of a file's bytes, waits to be let in; and when it is worth another try.
const STREAM_WAIT_MAX: Duration = Duration::from_secs(10);
const STREAM_RETRY_AFTER: Duration = Duration::from_secs(2);

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(crate) struct FilesService {
    core: Arc<Core>,
}

impl FilesService {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    async fn admit_download(&self, caller: &Caller) -> Result<Share, Failure> {
        let slot = self.core.downloads.take(caller.account, 1);
        tokio::time::timeout(STREAM_WAIT_MAX, slot).await.map_err(|_elapsed| {
            Failure::limit("too many downloads at once", "account_downloads_max", STREAM_RETRY_AFTER)
        })
    }
}

fn results(results: Vec<Result<v1::Entry, Failure>>) -> Vec<v1::EntryResult> {
    results.into_iter().map(convert::result_to_wire).collect()
}

#[tonic::async_trait]
impl Files for FilesService {
    async fn begin_uploads(
        &self,
        request: Request<v1::BeginUploadsRequest>,
    ) -> Result<Response<v1::BeginUploadsResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let entries = uploads::begin::entries(&message.uploads);
        let owed = self.core.chunk_lists.owe(caller.account, uploads::begin::burden(entries));
        let paid = Instant::now() + owed.min(ANSWER_WAIT_MAX);
        let begun = match convert::request_id(&message.request_id) {
            Ok(_id) => uploads::begin::begin(&self.core, &caller, message.uploads).await,
            Err(failure) => Err(failure),
        };
        self.core.refusals.settle(caller.account, Asked::Uploads(entries), &begun).await;
        self.core.chunk_lists.keep(paid.saturating_duration_since(Instant::now())).await;
        let uploads = begun?.into_iter().map(uploads::begin::begun_to_wire).collect();
        Ok(Response::new(v1::BeginUploadsResponse { uploads }))
    }

    type PutChunksStream = Messages<v1::PutChunksResponse>;

    async fn put_chunks(
        &self,
        request: Request<Streaming<v1::PutChunksRequest>>,
    ) -> Result<Response<Self::PutChunksStream>, Status> {
        let caller = auth::caller(&request)?;
        let slot = self.core.put_streams.take(caller.account, 1);
        let Ok(slot) = tokio::time::timeout(STREAM_WAIT_MAX, slot).await else {
            let what = "too many uploads at once";
            return Err(Failure::limit(what, "account_put_streams_max", STREAM_RETRY_AFTER).into());
        };
        let (answers, answered) = mpsc::channel(ANSWERS_MAX);
        let core = Arc::clone(&self.core);
        let incoming = request.into_inner();
        self.core.tasks.spawn(async move {
            uploads::put::serve(core, caller, incoming, answers).await;
            drop(slot);
        });
        let together = ReceiverStream::new(answered).ready_chunks(ANSWERS_TOGETHER_MAX);
        Ok(Response::new(Box::pin(together.flat_map(|answers| futures_util::stream::iter(gather(answers))))))
    }

    async fn upload_status(
        &self,
        request: Request<v1::UploadStatusRequest>,
    ) -> Result<Response<v1::UploadStatusResponse>, Status> {
        let caller = auth::caller(&request)?;
        let upload = request.into_inner().upload_id;
        Ok(Response::new(uploads::status::status(&self.core, &caller, &upload).await?))
    }

    async fn commit_uploads(
        &self,
        request: Request<v1::CommitUploadsRequest>,
    ) -> Result<Response<v1::CommitUploadsResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let request = convert::request_of(&caller, &message.request_id, "commit_uploads", &message)?;
        let guard = Guard::of(&self.core, &caller, &message.cursor).await?;
        let request = uploads::commit::Request {
            core: &self.core,
            caller: &caller,
            id: request,
            guard: guard.as_ref(),
        };
        let committed = uploads::commit::commit(request, &message.uploads).await;
        // At once: it tells of which history the answer is.
        let reached = Reached::of(guard.as_ref(), &self.core, &caller).await;
        self.core.refusals.settle(caller.account, Asked::Uploads(0), &committed).await;
        let results = results(committed?);
        let Reached { seen, sequence, reign } = reached?;
        Ok(Response::new(v1::CommitUploadsResponse { results, seen, sequence, reign }))
    }

    async fn put_file(
        &self,
        request: Request<v1::PutFileRequest>,
    ) -> Result<Response<v1::PutFileResponse>, Status> {
        let Claim { caller, token } = auth::claim(&request)?;
        let message = request.into_inner();
        let id = convert::request_of(&caller, &message.request_id, "put_file", &message)?;
        let history = Guard::of(&self.core, &caller, &message.cursor).await?;
        let request = uploads::small::Request {
            core: &self.core,
            caller: &caller,
            token,
            id,
            history: history.as_ref(),
        };
        let put = uploads::small::put(request, message);
        let entry = self.core.refusals.counted(caller.account, Asked::Uploads(0), put).await?;
        let Reached { seen, sequence, reign } = Reached::of(history.as_ref(), &self.core, &caller).await?;
        Ok(Response::new(v1::PutFileResponse { entry: Some(entry), seen, sequence, reign }))
    }

    async fn abort_upload(
        &self,
        request: Request<v1::AbortUploadRequest>,
    ) -> Result<Response<v1::AbortUploadResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let request = convert::request_of(&caller, &message.request_id, "abort_upload", &message)?;
        uploads::status::abort(&self.core, &caller, request, &message.upload_id).await?;
        Ok(Response::new(v1::AbortUploadResponse {}))
    }

    type DownloadStream = Messages<v1::DownloadResponse>;

    async fn download(
        &self,
        request: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let claim = auth::claim(&request)?;
        let slot = self.admit_download(&claim.caller).await?;
        let turn = self.core.lookups.take(claim.caller.account, 1).await;
        let download = downloads::stream::find(&self.core, &claim, &request.into_inner()).await?;
        let account = claim.caller.account;
        drop(turn);
        let (sink, messages) = outbox(MESSAGES_MAX);
        let (core, beginning) = (Arc::clone(&self.core), Beginning::default());
        let mut response: Response<Self::DownloadStream> = Response::new(Box::pin(messages));
        response.extensions_mut().insert(beginning.clone());
        self.core.tasks.spawn(async move {
            downloads::stream::serve(core, account, download, sink, &beginning).await;
            drop(slot);
        });
        Ok(response)
    }

    type DownloadManyStream = Messages<v1::DownloadManyResponse>;

    async fn download_many(
        &self,
        request: Request<v1::DownloadManyRequest>,
    ) -> Result<Response<Self::DownloadManyStream>, Status> {
        let caller = auth::caller(&request)?;
        let slot = self.admit_download(&caller).await?;
        let turn = self.core.lookups.take(caller.account, 1).await;
        let many = downloads::many::find(&self.core, &caller, &request.into_inner()).await?;
        drop(turn);
        let (sink, messages) = outbox(MESSAGES_MAX);
        let core = Arc::clone(&self.core);
        self.core.tasks.spawn(async move {
            downloads::many::serve(&core, caller.account, many, sink).await;
            drop(slot);
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn get_entry(
        &self,
        request: Request<v1::GetEntryRequest>,
    ) -> Result<Response<v1::GetEntryResponse>, Status> {
        let claim = auth::claim(&request)?;
        let entry = entries::look::get(&self.core, &claim, &request.into_inner().path).await?;
        Ok(Response::new(v1::GetEntryResponse { entry: Some(entry) }))
    }

    async fn list_folder(
        &self,
        request: Request<v1::ListFolderRequest>,
    ) -> Result<Response<v1::ListFolderResponse>, Status> {
        let caller = auth::caller(&request)?;
        Ok(Response::new(entries::look::list(&self.core, &caller, &request.into_inner()).await?))
    }

    async fn create_entries(
        &self,
        request: Request<v1::CreateEntriesRequest>,
    ) -> Result<Response<v1::CreateEntriesResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let request = convert::request_of(&caller, &message.request_id, "create_entries", &message)?;
        let created = entries::create::create(&self.core, &caller, request, &message.entries).await;
        self.core.refusals.settle(caller.account, Asked::Entries, &created).await;
        Ok(Response::new(v1::CreateEntriesResponse { results: results(created?) }))
    }

    async fn set_attributes(
        &self,
        request: Request<v1::SetAttributesRequest>,
    ) -> Result<Response<v1::SetAttributesResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let request = convert::request_of(&caller, &message.request_id, "set_attributes", &message)?;
        let set = entries::change::set_attributes(&self.core, &caller, request, &message.entries).await;
        self.core.refusals.settle(caller.account, Asked::Entries, &set).await;
        Ok(Response::new(v1::SetAttributesResponse { results: results(set?) }))
    }

    async fn move_entry(
        &self,
        request: Request<v1::MoveEntryRequest>,
    ) -> Result<Response<v1::MoveEntryResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let request = convert::request_of(&caller, &message.request_id, "move_entry", &message)?;
        let answer = entries::change::move_entry(&self.core, &caller, request, &message);
        let entry = self.core.refusals.counted(caller.account, Asked::Entries, answer).await?;
        Ok(Response::new(v1::MoveEntryResponse { entry: Some(entry) }))
    }

    async fn copy_entry(
        &self,
        request: Request<v1::CopyEntryRequest>,
    ) -> Result<Response<v1::CopyEntryResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let request = convert::request_of(&caller, &message.request_id, "copy_entry", &message)?;
        let answer = entries::copy::copy(&self.core, &caller, request, &message);
        Ok(Response::new(self.core.refusals.counted(caller.account, Asked::Entries, answer).await?))
    }

    async fn delete_entry(
        &self,
        request: Request<v1::DeleteEntryRequest>,
    ) -> Result<Response<v1::DeleteEntryResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let request = convert::request_of(&caller, &message.request_id, "delete_entry", &message)?;
        let answer = entries::change::delete(&self.core, &caller, request, &message);
        let trash_id = self.core.refusals.counted(caller.account, Asked::Entries, answer).await?;
        Ok(Response::new(v1::DeleteEntryResponse { trash_id }))
    }

    async fn list_versions(
        &self,
        request: Request<v1::ListVersionsRequest>,
    ) -> Result<Response<v1::ListVersionsResponse>, Status> {
        let caller = auth::caller(&request)?;
        Ok(Response::new(entries::look::versions(&self.core, &caller, &request.into_inner().path).await?))
    }

    async fn restore_version(
        &self,
        request: Request<v1::RestoreVersionRequest>,
    ) -> Result<Response<v1::RestoreVersionResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let request = convert::request_of(&caller, &message.request_id, "restore_version", &message)?;
        let answer = entries::change::restore_version(&self.core, &caller, request, &message);
        let entry = self.core.refusals.counted(caller.account, Asked::Entries, answer).await?;
        Ok(Response::new(v1::RestoreVersionResponse { entry: Some(entry) }))
    }

    async fn remove_versions(
        &self,
        request: Request<v1::RemoveVersionsRequest>,
    ) -> Result<Response<v1::RemoveVersionsResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let request = convert::request_of(&caller, &message.request_id, "remove_versions", &message)?;
        Ok(Response::new(entries::versions::remove(&self.core, &caller, request, &message).await?))
    }

    async fn list_trash(
        &self,
        request: Request<v1::ListTrashRequest>,
    ) -> Result<Response<v1::ListTrashResponse>, Status> {
        let caller = auth::caller(&request)?;
        Ok(Response::new(entries::look::trash(&self.core, &caller, &request.into_inner()).await?))
    }

    async fn restore_trash(
        &self,
        request: Request<v1::RestoreTrashRequest>,
    ) -> Result<Response<v1::RestoreTrashResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let request = convert::request_of(&caller, &message.request_id, "restore_trash", &message)?;
        let entry = entries::trash::restore(&self.core, &caller, request, &message).await?;
        Ok(Response::new(v1::RestoreTrashResponse { entry: Some(entry) }))
    }

    async fn purge_trash(
        &self,
        request: Request<v1::PurgeTrashRequest>,
    ) -> Result<Response<v1::PurgeTrashResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let request = convert::request_of(&caller, &message.request_id, "purge_trash", &message)?;
        Ok(Response::new(entries::trash::purge(&self.core, &caller, request, message.trash_id).await?))
    }
}

/// Answers that are ready together, as one message; an error after them ends the stream.
fn gather(answers: Vec<Result<v1::PutChunkResult, Status>>) -> Vec<Result<v1::PutChunksResponse, Status>> {
    let mut results = Vec::with_capacity(answers.len());
    let mut error = None;
    for answer in answers {
        match answer {
            Ok(result) => results.push(result),
            Err(status) => error = Some(status),
        }
    }
    let mut messages = Vec::new();
    if !results.is_empty() {
        messages.push(Ok(v1::PutChunksResponse { results }));
    }
    messages.extend(error.map(Err));
    messages
}
