//! `keepstone.v1.Sync`.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use proto::v1;
use proto::v1::sync_server::Sync as SyncApi;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::auth;
use crate::convert;
use crate::core::Core;
use crate::door::refusals::Asked;
use crate::downloads::outbox::outbox;
use crate::failure::Failure;
use crate::sync;
use crate::sync::history::{Guard, Reached};

/// Messages of a manifest that wait to be taken.
const MESSAGES_MAX: usize = 2;

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(crate) struct SyncService {
    core: Arc<Core>,
}

impl SyncService {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl SyncApi for SyncService {
    async fn changes(
        &self,
        request: Request<v1::ChangesRequest>,
    ) -> Result<Response<v1::ChangesResponse>, Status> {
        let caller = auth::caller(&request)?;
        Ok(Response::new(sync::changes::changes(&self.core, &caller, &request.into_inner()).await?))
    }

    async fn list_below(
        &self,
        request: Request<v1::ListBelowRequest>,
    ) -> Result<Response<v1::ListBelowResponse>, Status> {
        let caller = auth::caller(&request)?;
        Ok(Response::new(sync::changes::list_below(&self.core, &caller, &request.into_inner()).await?))
    }

    type WatchStream = Messages<v1::WatchResponse>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = auth::caller(&request)?;
        let of_device = self.core.device_waiters.admit(caller.device)?;
        let (sink, messages) = mpsc::channel(1);
        let core = Arc::clone(&self.core);
        self.core.tasks.spawn(async move {
            sync::watch::serve(&core, &caller, sink).await;
            drop(of_device);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn wait_for_change(
        &self,
        request: Request<v1::WaitForChangeRequest>,
    ) -> Result<Response<v1::WaitForChangeResponse>, Status> {
        let caller = auth::caller(&request)?;
        let _of_device = self.core.device_waiters.admit(caller.device)?;
        let changed = sync::watch::wait_for_change(&self.core, &caller, &request.into_inner()).await?;
        Ok(Response::new(v1::WaitForChangeResponse { changed }))
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let request = convert::request_of(&caller, &message.request_id, "apply", &message)?;
        let guard = Guard::of(&self.core, &caller, &message.cursor).await?;
        let applied = sync::apply::apply(&self.core, &caller, request, guard.as_ref(), message.actions).await;
        // At once: it tells of which history the answer is.
        let reached = Reached::of(guard.as_ref(), &self.core, &caller).await;
        self.core.refusals.settle(caller.account, Asked::Actions, &applied).await;
        let results = applied?.into_iter().map(|result| {
            let result = match result {
                Ok(row) => v1::apply_result::Result::Entry(convert::entry_to_wire(row, None)),
                Err(failure) => v1::apply_result::Result::Error(failure.into_item()),
            };
            v1::ApplyResult { result: Some(result) }
        });
        let results = results.collect();
        let Reached { seen, sequence, reign } = reached?;
        Ok(Response::new(v1::ApplyResponse { results, seen, sequence, reign }))
    }

    type GetManifestStream = Messages<v1::GetManifestResponse>;

    async fn get_manifest(
        &self,
        request: Request<v1::GetManifestRequest>,
    ) -> Result<Response<Self::GetManifestStream>, Status> {
        let caller = auth::caller(&request)?;
        let slot = self.core.downloads.try_take(caller.account, 1).map_err(|full| {
            Failure::full("downloads at once", full, "account_downloads_max", "downloads_max")
        })?;
        let manifest = sync::manifest::find(&self.core, &caller, &request.into_inner()).await?;
        let (sink, messages) = outbox(MESSAGES_MAX);
        let core = Arc::clone(&self.core);
        self.core.tasks.spawn(async move {
            sync::manifest::serve(core, manifest, sink).await;
            drop(slot);
        });
        Ok(Response::new(Box::pin(messages)))
    }
}
