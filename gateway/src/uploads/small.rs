//! Puts one small file by one command: its bytes stay in the nursery of the tree's group until they are packed into
//! stripes (`crate::nursery`).
//!
//! Where the nursery is full, or the tree has the content in stripes already, which may not be readable any more, the file goes the long way, by a session that is named after the request: begun, its chunks
//! stored, committed. A repetition of the request finds the refusal that the first command was remembered with, and goes
//! the same way: session and commit have the names that they had the first time.

use std::sync::Arc;

use bytes::Bytes;
use engine::chunk::CHUNK_BYTES_MAX;
use engine::cutter::{ChunkCutter, Cutter};
use engine::hash::sha256_parts;
use engine::ids::{ChunkId, EntryId, UploadId};
use engine::location::ChunkKind;
use engine::manifest::ManifestEntry;
use metaraft::api::MetaError;
use metaraft::model::command::{Base, DataStep, StepError};
use metaraft::model::nursery::{SMALL_FILE_BYTES_MAX, SmallFile, TokenGuard};
use metaraft::model::request_key::RequestKey;
use metaraft::model::row::ROOT_ENTRY;
use proto::v1;
use tonic::Code;

use crate::auth::{Caller, Claim};
use crate::convert;
use crate::core::Core;
use crate::failure::Failure;
use crate::meta::entry_of;
use crate::path::{RemotePath, name_fault, shown};
use crate::sync::history::Guard;
use crate::uploads::{begin, commit, status};

/// The step of a request that puts the file; those of commits are below.
const PUT_STEP: u32 = 2_000_000;

/// The one that gives its session up.
const ABORT_STEP: u32 = 3_000_000;

/// Files up to so many bytes are hashed where they arrive: that takes a few microseconds, another thread more.
const HASHED_HERE_BYTES_MAX: usize = 16 * 1024;

/// Whose file it is, and by which request.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub core: &'a Arc<Core>,
    pub caller: &'a Caller,
    /// The caller's token, if it is to be judged by the command.
    pub token: Option<TokenGuard>,
    pub id: RequestKey,
    /// What refuses the file of a caller who knows another history of the tree.
    pub history: Option<&'a Guard>,
}

/// A file as it was sent, checked but for its place.
struct Wanted {
    folder: EntryId,
    names: Vec<String>,
    path: Option<RemotePath>,
    subject: String,
    base: Base,
    mode: u32,
    cutter: Cutter,
}

fn parse(message: &v1::PutFileRequest) -> Result<Wanted, Failure> {
    let (folder, names, path) = if !message.path.is_empty() || message.parent_id == 0 {
        let path = RemotePath::parse_named(&message.path)?;
        (ROOT_ENTRY, path.names().to_vec(), Some(path))
    } else if let Some(why) = name_fault(&message.name) {
        let message = format!("{}: {why}", shown(&message.name));
        return Err(Failure::new(Code::InvalidArgument, "bad-path", message));
    } else {
        (EntryId(message.parent_id), vec![message.name.clone()], None)
    };
    let subject = path.as_ref().map_or_else(|| shown(&message.name), ToString::to_string);
    if message.data.len() > SMALL_FILE_BYTES_MAX {
        let bytes = message.data.len();
        return Err(Failure::invalid(format!(
            "{subject}: {bytes} bytes; more than {SMALL_FILE_BYTES_MAX} go by an upload session"
        )));
    }
    Ok(Wanted {
        folder,
        names,
        path,
        subject,
        base: convert::base(message.base)?,
        mode: convert::mode(message.mode)?,
        cutter: convert::cutter(message.cutter)?,
    })
}

/// Cuts a file that is all there.
fn cut(cutter: Cutter, data: &Bytes) -> Vec<ManifestEntry> {
    let mut cutting = ChunkCutter::new(cutter);
    cutting.push(data);
    cutting.finish();
    let mut chunks = Vec::new();
    while let Some(chunk) = cutting.next_chunk() {
        chunks.push(ManifestEntry { id: ChunkId::of(chunk.bytes), size: chunk.bytes.len() as u64 });
    }
    chunks
}

async fn cut_apart(core: &Core, cutter: Cutter, data: &Bytes) -> Result<Vec<ManifestEntry>, Failure> {
    if data.len() <= HASHED_HERE_BYTES_MAX {
        return Ok(cut(cutter, data));
    }
    let data = data.clone();
    core.preparer.run(move || cut(cutter, &data)).await
}

/// Puts it.
pub(crate) async fn put(request: Request<'_>, message: v1::PutFileRequest) -> Result<v1::Entry, Failure> {
    let Request { core, caller, token, id, history } = request;
    let wanted = parse(&message)?;
    let chunks = cut_apart(core, wanted.cutter, &message.data).await?;
    let file = SmallFile {
        folder: wanted.folder,
        names: wanted.names.clone(),
        base: wanted.base,
        mode: wanted.mode,
        mtime_ns: message.mtime_ns,
        device: caller.device,
        cutter: wanted.cutter,
        chunks: chunks.clone(),
        bytes: message.data.to_vec(),
    };
    let nursery_bytes_max = core.meta.api().settings().nursery_bytes_max();
    let put = DataStep::FilePut { namespace: caller.namespace, file: Box::new(file), nursery_bytes_max };
    let steps = token.map(DataStep::TokenGuard).into_iter().chain([put]).chain(history.map(Guard::step));
    let slot = caller.namespace.slot();
    match core.meta.commit(slot, id.step(PUT_STEP), steps.collect()).await {
        Ok(mut outcomes) => {
            history.inspect(|history| history.take(&mut outcomes));
            let entry = entry_of(outcomes).map_err(|error| Failure::from_meta(&error, &wanted.subject))?;
            Ok(convert::entry_to_wire(entry, wanted.path.as_ref()))
        }
        Err(MetaError::Step(StepError::NurseryFull | StepError::ContentHeld)) => {
            // The answer may be the remembered one, of a time when the token was right.
            Claim { caller: caller.clone(), token }.check(&core.meta).await?;
            over_stripes(request, message, &chunks).await
        }
        Err(MetaError::Step(StepError::NotFound { what })) if what == "folder" => {
            let subject = &wanted.subject;
            let folder =
                wanted.path.map_or_else(|| "that folder".to_owned(), |path| path.parent().to_string());
            Err(Failure::not_found(format!("{subject}: there is no folder {folder}")))
        }
        Err(error) => Err(Failure::from_meta(&error, &wanted.subject)),
    }
}

fn upload_of(id: RequestKey) -> UploadId {
    let digest = sha256_parts(&[b"keepstone small file\0", id.id.as_bytes()]);
    let mut bytes = [0; UploadId::LENGTH];
    bytes.copy_from_slice(&digest[..UploadId::LENGTH]);
    UploadId::from_bytes(bytes)
}

/// By an upload session, as larger files go.
async fn over_stripes(
    request: Request<'_>,
    message: v1::PutFileRequest,
    chunks: &[ManifestEntry],
) -> Result<v1::Entry, Failure> {
    let Request { core, caller, id, history, .. } = request;
    let upload = upload_of(id);
    let upload_id = Bytes::copy_from_slice(upload.as_bytes());
    let size = message.data.len() as u64;
    let sizes = chunks.iter().map(|chunk| u32::try_from(chunk.size).unwrap_or(u32::MAX)).collect();
    let ids: Vec<u8> = chunks.iter().flat_map(|chunk| *chunk.id.as_bytes()).collect();
    let session = v1::BeginUpload {
        upload_id: upload_id.clone(),
        path: message.path.clone(),
        entry_id: 0,
        size,
        cutter: message.cutter,
        chunks: Some(v1::ChunkList { ids: ids.into(), sizes }),
        ..v1::BeginUpload::default()
    };
    let begun = begin::begin(core, caller, vec![session]).await?.pop();
    match begun.unwrap_or_else(|| Err(Failure::internal("begin", &"no answer"))) {
        Ok(session) => store(core, &session, chunks, &message.data).await?,
        // A repetition, whose session was committed: only the remembered answer matters.
        Err(failure) if failure.reason == "upload-ended" => {}
        Err(failure) => return Err(failure),
    }
    let commit = v1::CommitUpload {
        upload_id,
        path: message.path,
        base: message.base,
        mode: message.mode,
        mtime_ns: message.mtime_ns,
        parent_id: message.parent_id,
        name: message.name,
    };
    let request = commit::Request { core, caller, id, guard: history };
    let committed = commit::commit(request, &[commit]).await?.pop();
    let committed = committed.unwrap_or_else(|| Err(Failure::internal("commit", &"no answer")));
    if matches!(&committed, Err(failure) if failure.code != Code::Unavailable) {
        // Nobody else knows of the session; a repetition finds the refusal remembered.
        let aborted = status::abort(core, caller, id.step(ABORT_STEP), upload.as_bytes()).await;
        if let Err(error) = aborted {
            tracing::debug!(error = %error, "the session of a small file is left to expire");
        }
    }
    committed
}

/// Stores what a session lacks.
async fn store(
    core: &Arc<Core>,
    session: &crate::sessions::Session,
    chunks: &[ManifestEntry],
    data: &Bytes,
) -> Result<(), Failure> {
    let mut rest = data.clone();
    let mut missing: Vec<(usize, ChunkId, Bytes)> = Vec::new();
    let unknown = session.unknown();
    for chunk in chunks {
        let size = usize::try_from(chunk.size).unwrap_or(CHUNK_BYTES_MAX).min(rest.len());
        let plain = rest.split_to(size);
        if let Some((place, id)) = unknown.iter().find(|(_place, id)| *id == chunk.id)
            && !missing.iter().any(|(known, ..)| known == place)
        {
            missing.push((*place, *id, plain));
        }
    }
    let ids: Vec<ChunkId> = missing.iter().map(|(_place, id, _plain)| *id).collect();
    let known = core.known(&ids).await?;
    let places: Vec<usize> = missing.iter().map(|(place, ..)| *place).collect();
    let plain = missing.into_iter().map(|(_place, id, plain)| (id, plain)).collect();
    let prepared = core.preparer.prepare(ChunkKind::Data, plain).await?;
    let stored = prepared
        .into_iter()
        .zip(known)
        .map(|(chunk, known)| core.writer.store(chunk, vec![session.holder], known));
    futures_util::future::try_join_all(stored).await?;
    session.mark_durable(places);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> v1::PutFileRequest {
        v1::PutFileRequest {
            path: "/a/b".to_owned(),
            base: Some(v1::Base { base: Some(v1::base::Base::Any(true)) }),
            cutter: v1::Cutter::Cdc64k.into(),
            ..v1::PutFileRequest::default()
        }
    }

    #[test]
    fn what_is_too_large_or_has_no_right_name_is_refused_before_anything_is_asked() {
        let right = parse(&message()).unwrap();
        assert_eq!((right.folder, right.names.len()), (ROOT_ENTRY, 2));
        let by_id =
            v1::PutFileRequest { path: String::new(), parent_id: 7, name: "b".to_owned(), ..message() };
        assert_eq!(parse(&by_id).unwrap().names, ["b"]);
        let bad = [
            v1::PutFileRequest { data: vec![0; SMALL_FILE_BYTES_MAX + 1].into(), ..message() },
            v1::PutFileRequest { path: "/".to_owned(), ..message() },
            v1::PutFileRequest { path: "/a/../b".to_owned(), ..message() },
            v1::PutFileRequest { path: String::new(), parent_id: 7, name: "a/b".to_owned(), ..message() },
            v1::PutFileRequest { base: None, ..message() },
            v1::PutFileRequest { mode: 0o10000, ..message() },
            v1::PutFileRequest { cutter: 99, ..message() },
        ];
        for bad in bad {
            let failure = parse(&bad).err().unwrap();
            assert_eq!(failure.code, Code::InvalidArgument, "{failure}");
        }
    }

    #[test]
    fn a_file_is_cut_as_its_client_would_cut_it() {
        let data: Bytes = (0..SMALL_FILE_BYTES_MAX).map(|byte| (byte * 31 % 251).to_le_bytes()[0]).collect();
        let chunks = cut(Cutter::Cdc64k, &data);
        assert_eq!(chunks.iter().map(|chunk| chunk.size).sum::<u64>(), data.len() as u64);
        let sizes: Vec<u32> = chunks.iter().map(|chunk| u32::try_from(chunk.size).unwrap()).collect();
        Cutter::Cdc64k.check_sizes(&sizes).unwrap();
        assert_eq!(cut(Cutter::Cdc64k, &Bytes::new()), []);
    }
}
