//! A gateway for tests, on a socket of this machine without TLS: it answers the calls that a test gives it answers for,
//! and no others.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use prost::Message;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::connection::ApiClient;

type HttpAnswer = BoxFuture<http::Response<Body>, Infallible>;
type Handler = Box<dyn Fn(http::Request<Body>) -> HttpAnswer + Send + Sync>;

/// What it answers, by the calls' paths.
#[derive(Default)]
pub(crate) struct FakeGateway {
    handlers: HashMap<String, Handler>,
}

/// How often each call was made.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<BTreeMap<String, usize>>>);

impl Calls {
    /// Of a call: `Sync/Changes`.
    pub(crate) fn of(&self, call: &str) -> usize {
        self.0.lock().unwrap().get(call).copied().unwrap_or(0)
    }
}

impl FakeGateway {
    /// Answers a call: `Sync/Changes`.
    pub(crate) fn on<Q, A>(
        mut self,
        call: &str,
        answer: impl Fn(Q) -> Result<A, Status> + Send + Sync + 'static,
    ) -> Self
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let answer = Arc::new(answer);
        let handler = move |request| -> HttpAnswer {
            let answer = Answer(answer.clone());
            Box::pin(async move { Ok(Grpc::new(ProstCodec::<A, Q>::default()).unary(answer, request).await) })
        };
        self.handlers.insert(call.to_owned(), Box::new(handler));
        self
    }

    /// Starts it; it ends with the test's runtime.
    pub(crate) async fn start(self) -> (ApiClient, Calls) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Calls::default();
        let service = Routes { handlers: Arc::new(self.handlers), calls: calls.clone() };
        let server = Server::builder().add_service(OfFiles(service.clone())).add_service(OfSync(service));
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        drop(tokio::spawn(server.serve_with_incoming(incoming)));
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        (ApiClient::of_channel(channel), calls)
    }
}

struct Answer<F>(Arc<F>);

impl<Q, A, F: Fn(Q) -> Result<A, Status>> UnaryService<Q> for Answer<F> {
    type Response = A;
    type Future = Ready<Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        ready((self.0)(request.into_inner()).map(Response::new))
    }
}

#[derive(Clone)]
struct Routes {
    handlers: Arc<HashMap<String, Handler>>,
    calls: Calls,
}

impl Routes {
    fn answer(&self, request: http::Request<Body>) -> HttpAnswer {
        let call = request.uri().path().trim_start_matches("/keepstone.v1.").to_owned();
        *self.calls.0.lock().unwrap().entry(call.clone()).or_default() += 1;
        match self.handlers.get(&call) {
            Some(handler) => handler(request),
            None => Box::pin(ready(Ok(Status::unimplemented(call).into_http()))),
        }
    }
}

#[derive(Clone)]
struct OfSync(Routes);
#[derive(Clone)]
struct OfFiles(Routes);

impl NamedService for OfSync {
    const NAME: &'static str = "keepstone.v1.Sync";
}

impl NamedService for OfFiles {
    const NAME: &'static str = "keepstone.v1.Files";
}

impl Service<http::Request<Body>> for OfSync {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = HttpAnswer;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> HttpAnswer {
        self.0.answer(request)
    }
}

impl Service<http::Request<Body>> for OfFiles {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = HttpAnswer;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> HttpAnswer {
        self.0.answer(request)
    }
}

/// A refusal with its word for programs, as the gateway's.
pub(crate) fn refusal(code: tonic::Code, reason: &'static str) -> Status {
    let mut metadata = tonic::metadata::MetadataMap::new();
    metadata.insert(proto::REASON_TRAILER, tonic::metadata::AsciiMetadataValue::from_static(reason));
    Status::with_metadata(code, reason, metadata)
}
