//! The one stream of chunks that all files of an upload share.
//!
//! One task owns the stream. It packs waiting chunks into messages, matches answers to chunks by id, and tells each
//! chunk's owner what came of it. When the stream breaks, all chunks in flight are reported as broken: their owners
//! ask the gateway what is missing and hand those in again; the next one opens a new stream.
//!
//! Invariants:
//! - Bytes of chunks handed in and not yet answered never exceed [`IN_FLIGHT_BYTES_MAX`].
//! - At most one chunk of an id is in flight, so an answer belongs to exactly one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::ids::ChunkId;
use proto::v1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::api;
use crate::call_error::CallError;
use crate::connection::ApiClient;

/// Bytes handed in and not yet acknowledged.
const IN_FLIGHT_BYTES_MAX: u32 = 24 * 1024 * 1024;
/// Chunk bytes packed into a message, unless a single chunk is larger.
const MESSAGE_CHUNK_BYTES: usize = 1024 * 1024;
/// Chunks in a message.
const MESSAGE_CHUNKS_MAX: usize = 256;
/// Messages handed to the transport and not yet taken by it.
const MESSAGES_QUEUED_MAX: usize = 2;
/// Chunks waiting for the task.
const JOBS_QUEUED_MAX: usize = 256;
/// With chunks in flight, silence for this long means that the stream is dead.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What came of a chunk.
pub(crate) type PutOutcome = Result<(), PutFailure>;

/// Why a chunk is not acknowledged.
#[derive(Clone, Debug)]
pub(crate) enum PutFailure {
    /// The stream broke: whether the chunk is stored is not known.
    Broken(CallError),
    /// The gateway refused this chunk.
    Refused(CallError),
}

impl PutFailure {
    pub(crate) fn error(&self) -> &CallError {
        match self {
            Self::Broken(error) | Self::Refused(error) => error,
        }
    }
}

/// A chunk on its way.
#[derive(Clone, Debug)]
pub(crate) struct OutgoingChunk {
    pub(crate) id: ChunkId,
    pub(crate) data: Bytes,
    /// The sessions that it is for, at most [`proto::CHUNK_UPLOADS_MAX`]; for more it is sent again.
    pub(crate) upload_ids: Vec<Bytes>,
}

struct Job {
    chunk: OutgoingChunk,
    done: oneshot::Sender<PutOutcome>,
    _bytes: OwnedSemaphorePermit,
}

/// Hands chunks to the stream's task.
#[derive(Clone, Debug)]
pub(crate) struct ChunkSender {
    jobs: mpsc::Sender<Job>,
    bytes: Arc<Semaphore>,
}

impl ChunkSender {
    /// Starts the task. It ends once all senders are dropped and the last chunk is answered.
    pub(crate) fn start(api: ApiClient) -> (Self, JoinHandle<()>) {
        let (jobs, queue) = mpsc::channel(JOBS_QUEUED_MAX);
        let bytes = Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX as usize));
        let task = Task { api, queue, stream: None, in_flight: HashMap::new(), parked: VecDeque::new() };
        (Self { jobs, bytes }, tokio::spawn(task.run()))
    }

    /// Hands in a chunk, once there is room for its bytes; the receiver gives what came of it. Cancel safe.
    pub(crate) async fn put(&self, chunk: OutgoingChunk) -> oneshot::Receiver<PutOutcome> {
        let (done, outcome) = oneshot::channel();
        let size = u32::try_from(chunk.data.len()).unwrap_or(u32::MAX).min(IN_FLIGHT_BYTES_MAX);
        // Neither can fail while this sender lives, but at a panic of the task; then the receiver says so.
        if let Ok(permit) = self.bytes.clone().acquire_many_owned(size).await {
            drop(self.jobs.send(Job { chunk, done, _bytes: permit }).await);
        }
        outcome
    }
}

/// Waits for what came of a chunk.
pub(crate) async fn outcome(receiver: oneshot::Receiver<PutOutcome>) -> PutOutcome {
    receiver
        .await
        .unwrap_or_else(|_task_gone| Err(PutFailure::Broken(CallError::protocol("the upload was stopped"))))
}

struct OpenStream {
    messages: mpsc::Sender<v1::PutChunksRequest>,
    answers: Streaming<v1::PutChunksResponse>,
}

struct Task {
    api: ApiClient,
    queue: mpsc::Receiver<Job>,
    stream: Option<OpenStream>,
    in_flight: HashMap<ChunkId, Job>,
    /// Chunks whose id is in flight for another session.
    parked: VecDeque<Job>,
}

/// What the task does next.
enum Event {
    Jobs(Vec<Job>),
    Answer(Result<Option<v1::PutChunksResponse>, tonic::Status>),
    Silence,
    NoMoreJobs,
}

impl Task {
    async fn run(mut self) {
        let mut queue_open = true;
        loop {
            if !queue_open && self.in_flight.is_empty() && self.parked.is_empty() {
                return;
            }
            match self.next_event(queue_open).await {
                Event::Jobs(jobs) => self.send(jobs).await,
                Event::Answer(Ok(Some(answer))) => self.answered(answer).await,
                Event::Answer(Ok(None)) => self.broken(&CallError::Unreachable {
                    endpoint: self.api.endpoint().to_owned(),
                    reason: "it ended the stream of chunks".to_owned(),
                }),
                Event::Answer(Err(status)) => self.broken(&self.api.status(&status)),
                Event::Silence => self.broken(&CallError::Unreachable {
                    endpoint: self.api.endpoint().to_owned(),
                    reason: format!("it acknowledged nothing for {} s", SILENCE_MAX.as_secs()),
                }),
                Event::NoMoreJobs => queue_open = false,
            }
        }
    }

    async fn next_event(&mut self, queue_open: bool) -> Event {
        let waiting = !self.in_flight.is_empty();
        let answer = async {
            match &mut self.stream {
                Some(stream) => stream.answers.message().await,
                None => std::future::pending().await,
            }
        };
        let mut jobs = Vec::new();
        tokio::select! {
            answer = answer => Event::Answer(answer),
            count = self.queue.recv_many(&mut jobs, MESSAGE_CHUNKS_MAX), if queue_open => {
                if count == 0 { Event::NoMoreJobs } else { Event::Jobs(jobs) }
            }
            () = tokio::time::sleep(SILENCE_MAX), if waiting => Event::Silence,
        }
    }

    async fn send(&mut self, jobs: Vec<Job>) {
        let mut message = Vec::new();
        let mut bytes = 0;
        for job in jobs {
            if self.in_flight.contains_key(&job.chunk.id) {
                self.parked.push_back(job);
                continue;
            }
            if !message.is_empty() && bytes + job.chunk.data.len() > MESSAGE_CHUNK_BYTES {
                self.send_message(std::mem::take(&mut message)).await;
                bytes = 0;
            }
            bytes += job.chunk.data.len();
            message.push(v1::PutChunk {
                upload_ids: job.chunk.upload_ids.clone(),
                id: Bytes::copy_from_slice(job.chunk.id.as_bytes()),
                data: job.chunk.data.clone(),
            });
            self.in_flight.insert(job.chunk.id, job);
        }
        if !message.is_empty() {
            self.send_message(message).await;
        }
    }

    async fn send_message(&mut self, chunks: Vec<v1::PutChunk>) {
        let message = v1::PutChunksRequest { chunks };
        let sent = match &self.stream {
            // The transport takes messages as the gateway reads them. Answers wait meanwhile; they are small, and
            // the flow-control window holds far more of them than there can be.
            Some(stream) => match tokio::time::timeout(SILENCE_MAX, stream.messages.send(message)).await {
                Ok(Ok(())) => Ok(()),
                // The reason comes with the answers, which have ended.
                Ok(Err(_closed)) => return,
                Err(_elapsed) => Err(CallError::Unreachable {
                    endpoint: self.api.endpoint().to_owned(),
                    reason: format!("it read nothing for {} s", SILENCE_MAX.as_secs()),
                }),
            },
            None => self.open(message).await,
        };
        if let Err(error) = sent {
            self.broken(&error);
        }
    }

    async fn open(&mut self, first: v1::PutChunksRequest) -> Result<(), CallError> {
        let (messages, receiver) = mpsc::channel(MESSAGES_QUEUED_MAX);
        drop(messages.try_send(first));
        let request = self.api.request(ReceiverStream::new(receiver));
        let mut files = api::files(self.api.channel());
        let opened = tokio::time::timeout(SILENCE_MAX, files.put_chunks(request)).await;
        let answers = match opened {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(self.api.status(&status)),
            Err(_elapsed) => {
                return Err(CallError::Unreachable {
                    endpoint: self.api.endpoint().to_owned(),
                    reason: format!("no answer within {} s", SILENCE_MAX.as_secs()),
                });
            }
        };
        self.stream = Some(OpenStream { messages, answers });
        Ok(())
    }

    async fn answered(&mut self, answer: v1::PutChunksResponse) {
        let mut unparked = Vec::new();
        for result in answer.results {
            let job = ChunkId::from_slice(&result.id).ok().and_then(|id| self.in_flight.remove(&id));
            let Some(job) = job else {
                tracing::warn!("an answer to a chunk that is not in flight");
                continue;
            };
            let id = job.chunk.id;
            finish(
                job,
                match &result.error {
                    None => Ok(()),
                    Some(error) => Err(PutFailure::Refused(CallError::from_item(error))),
                },
            );
            if let Some(at) = self.parked.iter().position(|parked| parked.chunk.id == id) {
                unparked.extend(self.parked.remove(at));
            }
        }
        if !unparked.is_empty() {
            self.send(unparked).await;
        }
    }

    fn broken(&mut self, error: &CallError) {
        tracing::debug!(%error, in_flight = self.in_flight.len(), "chunk stream broken");
        self.stream = None;
        let jobs = self.in_flight.drain().map(|(_id, job)| job).chain(self.parked.drain(..));
        jobs.for_each(|job| finish(job, Err(PutFailure::Broken(error.clone()))));
    }
}

fn finish(job: Job, outcome: PutOutcome) {
    // Nobody listens any more when the file has failed meanwhile.
    drop(job.done.send(outcome));
}
