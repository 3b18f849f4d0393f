//! An account as an outside client has it: a channel, a token, and the generated stubs of the public API.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use proto::v1;
use proto::v1::accounts_client::AccountsClient;
use proto::v1::admin_client::AdminClient;
use proto::v1::files_client::FilesClient;
use proto::v1::sync_client::SyncClient;
use sha2::{Digest as _, Sha256};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::gate::Gate;

/// The password of every account that attacks make.
pub const PASSWORD: &str = "correct horse battery staple";

/// Sixteen fresh random bytes: an upload id, or the random part of a request id.
#[must_use]
pub fn random_16() -> Bytes {
    Bytes::copy_from_slice(&rand::random::<[u8; 16]>())
}

/// A fresh request id, as the wire has it.
#[must_use]
pub fn request_id() -> Bytes {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let milliseconds = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    [&milliseconds.to_be_bytes()[..], &random_16()].concat().into()
}

/// Random bytes that no account has stored before.
#[must_use]
pub fn random_bytes(length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    rand::fill(&mut bytes[..]);
    bytes.into()
}

/// A chunk's name.
#[must_use]
pub fn chunk_id(data: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&Sha256::digest(data))
}

/// A session for a file that consists of `chunks`: names and sizes.
#[must_use]
pub fn session(path: &str, chunks: &[(Bytes, u32)]) -> v1::BeginUpload {
    let ids = chunks.iter().flat_map(|(id, _size)| id.iter().copied()).collect::<Vec<u8>>();
    v1::BeginUpload {
        upload_id: random_16(),
        path: path.to_owned(),
        size: chunks.iter().map(|(_id, size)| u64::from(*size)).sum(),
        cutter: v1::Cutter::Cdc64k.into(),
        chunks: Some(v1::ChunkList {
            ids: ids.into(),
            sizes: chunks.iter().map(|(_id, size)| *size).collect(),
        }),
        ..v1::BeginUpload::default()
    }
}

/// Whoever holds a token, or none.
#[derive(Clone, Debug)]
pub struct Caller {
    channel: Channel,
    /// The device's token; empty for a stranger.
    pub token: String,
    header: Option<MetadataValue<Ascii>>,
}

impl Caller {
    /// Connects from `from`, with a token.
    ///
    /// # Errors
    /// If the gateway cannot be reached.
    pub async fn connect(gate: &Gate, from: IpAddr, token: &str) -> anyhow::Result<Self> {
        let header = format!("Bearer {token}").parse().context("a token")?;
        let header = (!token.is_empty()).then_some(header);
        Ok(Self { channel: gate.channel(from).await?, token: token.to_owned(), header })
    }

    /// Connects from `from`, without a token.
    ///
    /// # Errors
    /// If the gateway cannot be reached.
    pub async fn stranger(gate: &Gate, from: IpAddr) -> anyhow::Result<Self> {
        Self::connect(gate, from, "").await
    }

    /// A request with the token.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(header) = &self.header {
            request.metadata_mut().insert("authorization", header.clone());
        }
        request
    }

    /// The calls on accounts and devices.
    #[must_use]
    pub fn accounts(&self) -> AccountsClient<Channel> {
        AccountsClient::new(self.channel.clone())
    }

    /// The calls on files.
    #[must_use]
    pub fn files(&self) -> FilesClient<Channel> {
        let max = proto::MESSAGE_BYTES_MAX;
        FilesClient::new(self.channel.clone()).max_decoding_message_size(max).max_encoding_message_size(max)
    }

    /// The calls of sync clients.
    #[must_use]
    pub fn sync(&self) -> SyncClient<Channel> {
        SyncClient::new(self.channel.clone()).max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
    }

    /// The calls of administrators.
    #[must_use]
    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone())
    }

    /// Signs in once, and gives the answer's token.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn sign_in(&self, email: &str, password: &str) -> Result<String, Status> {
        let message = v1::SignInRequest {
            email: email.to_owned(),
            password: password.to_owned(),
            device_name: "attack".to_owned(),
        };
        Ok(self.accounts().sign_in(message).await?.into_inner().token)
    }

    /// Opens a session; gives the indexes of the chunks to be sent.
    ///
    /// # Errors
    /// What the gateway says, of the call or of the session.
    pub async fn begin(&self, upload: v1::BeginUpload) -> Result<Vec<u32>, Status> {
        let message = v1::BeginUploadsRequest { request_id: request_id(), uploads: vec![upload] };
        let answer = self.files().begin_uploads(self.request(message)).await?.into_inner();
        let begun = answer.uploads.into_iter().next().ok_or_else(|| Status::internal("no answer"))?;
        begun.error.map_or(Ok(begun.missing), |error| Err(item_status(error)))
    }

    /// Sends chunks for a session in one message, and waits until each is acknowledged.
    ///
    /// # Errors
    /// What the gateway says, of the call or of the first chunk that it refuses.
    pub async fn put_chunks(&self, upload_id: &Bytes, chunks: &[Bytes]) -> Result<(), Status> {
        let put = |data: &Bytes| v1::PutChunk {
            upload_ids: vec![upload_id.clone()],
            id: chunk_id(data),
            data: data.clone(),
        };
        let message = v1::PutChunksRequest { chunks: chunks.iter().map(put).collect() };
        let stream = tokio_stream::once(message);
        let mut answers = self.files().put_chunks(self.request(stream)).await?.into_inner();
        let mut acknowledged = 0;
        while let Some(answer) = answers.message().await? {
            for result in answer.results {
                if let Some(error) = result.error {
                    return Err(item_status(error));
                }
                acknowledged += 1;
            }
        }
        if acknowledged != chunks.len() {
            return Err(Status::internal(format!("{acknowledged} of {} chunks acknowledged", chunks.len())));
        }
        Ok(())
    }

    /// Makes the file of a complete session, whatever was there.
    ///
    /// # Errors
    /// What the gateway says, of the call or of the file.
    pub async fn commit(&self, upload_id: Bytes, path: &str) -> Result<v1::Entry, Status> {
        let message = v1::CommitUploadsRequest {
            request_id: request_id(),
            uploads: vec![commit_of(upload_id, path)],
            ..Default::default()
        };
        let answer = self.files().commit_uploads(self.request(message)).await?.into_inner();
        entry_of(answer.results)
    }

    /// Stores a file of the given chunks: begin, put, commit.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn put(&self, path: &str, chunks: &[Bytes]) -> Result<v1::Entry, Status> {
        let size = |data: &Bytes| u32::try_from(data.len()).unwrap_or(u32::MAX);
        let listed: Vec<(Bytes, u32)> = chunks.iter().map(|data| (chunk_id(data), size(data))).collect();
        let upload = session(path, &listed);
        let upload_id = upload.upload_id.clone();
        self.begin(upload).await?;
        for data in chunks {
            self.put_chunks(&upload_id, std::slice::from_ref(data)).await?;
        }
        self.commit(upload_id, path).await
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn get(&self, path: &str) -> Result<Vec<u8>, Status> {
        let message = v1::DownloadRequest { path: path.to_owned(), ..v1::DownloadRequest::default() };
        let mut stream = self.files().download(self.request(message)).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = stream.message().await? {
            bytes.extend_from_slice(&part.data);
        }
        Ok(bytes)
    }

    /// Makes a folder, with its parents.
    ///
    /// # Errors
    /// What the gateway says, of the call or of the folder.
    pub async fn make_folder(&self, path: &str) -> Result<v1::Entry, Status> {
        let entries = vec![folder(path)];
        let message = v1::CreateEntriesRequest { request_id: request_id(), entries };
        entry_of(self.files().create_entries(self.request(message)).await?.into_inner().results)
    }

    /// Carries out actions by ids, and gives how each went.
    ///
    /// # Errors
    /// What the gateway says of the call.
    pub async fn apply(&self, actions: Vec<v1::action::Action>) -> Result<Vec<v1::ApplyResult>, Status> {
        let actions = actions.into_iter().map(|action| v1::Action { action: Some(action) }).collect();
        let message = v1::ApplyRequest { request_id: request_id(), actions, ..Default::default() };
        Ok(self.sync().apply(self.request(message)).await?.into_inner().results)
    }

    /// Bytes that the account has used.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn used_bytes(&self) -> Result<u64, Status> {
        Ok(self.accounts().who_am_i(self.request(v1::WhoAmIRequest {})).await?.into_inner().used_bytes)
    }

    /// Makes an account, as an administrator.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn create_account(&self, email: &str, quota_bytes: u64) -> anyhow::Result<()> {
        let message = v1::CreateAccountRequest {
            request_id: request_id(),
            email: email.to_owned(),
            name: "somebody".to_owned(),
            password: PASSWORD.to_owned(),
            quota_bytes,
            admin: false,
        };
        let made = self.admin().create_account(self.request(message)).await?.into_inner();
        ensure!(!made.account.is_empty(), "an account without an id");
        Ok(())
    }
}

/// A folder to be made, with its parents.
#[must_use]
pub fn folder(path: &str) -> v1::CreateEntry {
    v1::CreateEntry {
        path: path.to_owned(),
        kind: v1::EntryKind::Folder.into(),
        mode: 0o755,
        parents: true,
        ..v1::CreateEntry::default()
    }
}

/// A commit over whatever is there.
#[must_use]
pub fn commit_of(upload_id: Bytes, path: &str) -> v1::CommitUpload {
    v1::CommitUpload {
        upload_id,
        path: path.to_owned(),
        base: Some(v1::Base { base: Some(v1::base::Base::Any(true)) }),
        mode: 0o644,
        ..v1::CommitUpload::default()
    }
}

/// The status that an item's error is.
#[must_use]
pub fn item_status(error: v1::ItemError) -> Status {
    let code = i32::try_from(error.code).map_or(tonic::Code::Unknown, tonic::Code::from);
    Status::new(code, error.message)
}

/// The only entry of a batch of one.
///
/// # Errors
/// The item's error.
pub fn entry_of(results: Vec<v1::EntryResult>) -> Result<v1::Entry, Status> {
    match results.into_iter().next().and_then(|result| result.result) {
        Some(v1::entry_result::Result::Entry(entry)) => Ok(entry),
        Some(v1::entry_result::Result::Error(error)) => Err(item_status(error)),
        None => Err(Status::internal("no answer")),
    }
}
