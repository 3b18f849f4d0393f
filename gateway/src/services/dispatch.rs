//! Puts the right bound on messages before any of their bytes are gathered: chunks come in small messages in many
//! streams, chunk lists in large ones. How many bytes are gathered at once the door bounds.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use proto::v1::files_server::FilesServer;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::limits::PUT_MESSAGE_BYTES_MAX;
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
            BEGIN_UPLOADS => self.lists.call(request),
            _ => self.others.call(request),
        }
    }
}
