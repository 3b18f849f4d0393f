//! Puts the right bound on messages before any of their bytes are gathered: chunks come in small messages in many
//! streams, chunk lists in large ones of which only a few are taken at a time.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use proto::v1::files_server::FilesServer;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::failure::Failure;
use crate::limits::{LARGE_REQUESTS_MAX, PUT_MESSAGE_BYTES_MAX};
use crate::services::files::FilesService;

const PUT_CHUNKS: &str = "/keepstone.v1.Files/PutChunks";
const BEGIN_UPLOADS: &str = "/keepstone.v1.Files/BeginUploads";
const DECODE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The Files service with bounds by method.
#[derive(Clone)]
pub(crate) struct BoundedFiles {
    chunks: FilesServer<FilesService>,
    lists: FilesServer<FilesService>,
    others: FilesServer<FilesService>,
    lists_at_once: Arc<Semaphore>,
}

impl BoundedFiles {
    pub(crate) fn new(service: FilesService) -> Self {
        let service = Arc::new(service);
        let bounded = |bytes| {
            FilesServer::from_arc(Arc::clone(&service))
                .max_decoding_message_size(bytes)
                .max_encoding_message_size(proto::MESSAGE_BYTES_MAX)
        };
        Self {
            chunks: bounded(PUT_MESSAGE_BYTES_MAX),
            lists: bounded(proto::MESSAGE_BYTES_MAX),
            others: bounded(DECODE_BYTES_MAX),
            lists_at_once: Arc::new(Semaphore::new(LARGE_REQUESTS_MAX)),
        }
    }
}

impl NamedService for BoundedFiles {
    const NAME: &'static str = <FilesServer<FilesService> as NamedService>::NAME;
}

impl Service<Request<Body>> for BoundedFiles {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match request.uri().path() {
            PUT_CHUNKS => self.chunks.call(request),
            BEGIN_UPLOADS => {
                let mut lists = self.lists.clone();
                let at_once = Arc::clone(&self.lists_at_once);
                Box::pin(async move {
                    let Ok(_permit) = at_once.acquire_owned().await else {
                        return Ok(Status::from(Failure::busy("uploads")).into_http());
                    };
                    lists.call(request).await
                })
            }
            _ => self.others.call(request),
        }
    }
}
