//! Between the wire's messages and the inside's types: each value from a client is checked here, once.

use bytes::Bytes;
use engine::chunk::check_chunk_size;
use engine::cutter::Cutter;
use engine::ids::{ChunkId, DeviceId, RequestId, UploadId, VersionId};
use engine::manifest::ManifestEntry;
use metaraft::model::UPLOAD_CHUNKS_MAX;
use metaraft::model::command::Base;
use metaraft::model::request_key::RequestKey;
use metaraft::model::row::{EntryKind, EntryRow, VersionRow};
use proto::v1;

use crate::auth::Caller;
use crate::failure::Failure;
use crate::path::RemotePath;

/// Permission bits that are kept.
const MODE_MAX: u32 = 0o7777;

/// Bytes of a symlink's target.
const SYMLINK_BYTES_MAX: usize = 4096;

pub(crate) fn request_id(bytes: &[u8]) -> Result<RequestId, Failure> {
    RequestId::from_slice(bytes).map_err(|error| Failure::invalid(format!("request_id: {error}")))
}

/// The request that a caller makes by `message`: bound to its account and to all that it says, so that its id answers
/// nobody else, and nothing else. `call` names what was called.
pub(crate) fn request_of(
    caller: &Caller,
    request_id: &[u8],
    call: &str,
    message: &impl proto::Message,
) -> Result<RequestKey, Failure> {
    let id = self::request_id(request_id)?;
    Ok(RequestKey::of_client(caller.account, id, call, &message.encode_to_vec()))
}

pub(crate) fn upload_id(bytes: &[u8]) -> Result<UploadId, Failure> {
    UploadId::from_slice(bytes).map_err(|error| Failure::invalid(format!("upload_id: {error}")))
}

pub(crate) fn chunk_id(bytes: &[u8]) -> Result<ChunkId, Failure> {
    ChunkId::from_slice(bytes).map_err(|error| Failure::invalid(error.to_string()))
}

pub(crate) fn device_id(bytes: &[u8]) -> Result<DeviceId, Failure> {
    DeviceId::from_slice(bytes).map_err(|error| Failure::invalid(error.to_string()))
}

pub(crate) fn mode(mode: u32) -> Result<u32, Failure> {
    if mode > MODE_MAX {
        return Err(Failure::invalid(format!("mode {mode:o} has more than permission bits")));
    }
    Ok(mode)
}

pub(crate) fn symlink_target(target: &[u8]) -> Result<Vec<u8>, Failure> {
    if target.is_empty() || target.len() > SYMLINK_BYTES_MAX || target.contains(&0) {
        let message = format!("a symlink's target has 1 to {SYMLINK_BYTES_MAX} bytes without NUL");
        return Err(Failure::invalid(message));
    }
    Ok(target.to_vec())
}

pub(crate) fn cutter(cutter: i32) -> Result<Cutter, Failure> {
    match v1::Cutter::try_from(cutter) {
        Ok(v1::Cutter::Cdc64k) => Ok(Cutter::Cdc64k),
        Ok(v1::Cutter::Cdc256k) => Ok(Cutter::Cdc256k),
        Ok(v1::Cutter::Cdc1m) => Ok(Cutter::Cdc1m),
        Ok(v1::Cutter::Fixed4m) => Ok(Cutter::Fixed4m),
        _ => Err(Failure::invalid("cutter: not one that this gateway knows")),
    }
}

pub(crate) fn cutter_to_wire(cutter: Cutter) -> v1::Cutter {
    match cutter {
        Cutter::Cdc64k => v1::Cutter::Cdc64k,
        Cutter::Cdc256k => v1::Cutter::Cdc256k,
        Cutter::Cdc1m => v1::Cutter::Cdc1m,
        Cutter::Fixed4m => v1::Cutter::Fixed4m,
    }
}

pub(crate) fn base(base: Option<v1::Base>) -> Result<Base, Failure> {
    match base.and_then(|base| base.base) {
        Some(v1::base::Base::Absent(true)) => Ok(Base::Absent),
        Some(v1::base::Base::Any(true)) => Ok(Base::Any),
        Some(v1::base::Base::Version(version)) => Ok(Base::Version(VersionId(version))),
        _ => Err(Failure::invalid("base: say what the file must be now: absent, a version or any")),
    }
}

/// A file's chunk list, whose sizes must be such as the cutter makes and add up to `size`.
pub(crate) fn chunk_list(
    list: Option<&v1::ChunkList>,
    cutter: Cutter,
    size: u64,
) -> Result<Vec<ManifestEntry>, Failure> {
    let (ids, sizes): (&[u8], &[u32]) = list.map_or((&[], &[]), |list| (&list.ids, &list.sizes));
    let (ids, rest) = ids.as_chunks::<{ ChunkId::LENGTH }>();
    if ids.len() != sizes.len() || !rest.is_empty() {
        return Err(Failure::invalid("chunks: ids and sizes do not match"));
    }
    if ids.len() > UPLOAD_CHUNKS_MAX {
        let count = ids.len();
        return Err(Failure::invalid(format!(
            "chunks: {count} are named; a file has at most {UPLOAD_CHUNKS_MAX}: cut it into larger ones"
        )));
    }
    cutter.check_sizes(sizes).map_err(|error| Failure::invalid(format!("chunks: {error}")))?;
    let mut sum = 0;
    let mut entries = Vec::with_capacity(ids.len());
    for (id, chunk_size) in ids.iter().zip(sizes) {
        let chunk_size = u64::from(*chunk_size);
        check_chunk_size(chunk_size).map_err(|error| Failure::invalid(format!("chunks: {error}")))?;
        sum += chunk_size;
        entries.push(ManifestEntry { id: ChunkId::from_bytes(*id), size: chunk_size });
    }
    if sum != size {
        return Err(Failure::invalid(format!("chunks: their sizes add up to {sum} bytes, not {size}")));
    }
    Ok(entries)
}

/// An entry as clients see it; `path` where the request was by path.
pub(crate) fn entry_to_wire(row: EntryRow, path: Option<&RemotePath>) -> v1::Entry {
    let mut entry = v1::Entry {
        id: row.entry.0,
        parent: row.parent.0,
        name: row.name,
        path: path.map(RemotePath::text).unwrap_or_default(),
        mode: row.mode,
        mtime_ns: row.mtime_ns,
        created_ms: row.created_ms,
        changed_ms: row.changed_ms,
        sequence: row.sequence,
        ..v1::Entry::default()
    };
    match row.kind {
        EntryKind::Folder => entry.set_kind(v1::EntryKind::Folder),
        EntryKind::Symlink(target) => {
            entry.set_kind(v1::EntryKind::Symlink);
            entry.symlink_target = target.into();
        }
        EntryKind::File(state) => {
            entry.set_kind(v1::EntryKind::File);
            entry.size = state.size;
            entry.version = state.version.0;
            entry.content = Bytes::copy_from_slice(state.content.as_bytes());
            entry.set_cutter(cutter_to_wire(state.cutter));
        }
    }
    entry
}

/// A version as clients see it.
pub(crate) fn version_to_wire(row: &VersionRow, current: VersionId) -> v1::Version {
    v1::Version {
        version: row.version.0,
        size: row.size,
        mtime_ns: row.mtime_ns,
        mode: row.mode,
        created_ms: row.created_ms,
        content: Bytes::copy_from_slice(row.content.as_bytes()),
        device: Bytes::copy_from_slice(row.device.as_bytes()),
        current: row.version == current,
    }
}

pub(crate) fn result_to_wire(result: Result<v1::Entry, Failure>) -> v1::EntryResult {
    let result = match result {
        Ok(entry) => v1::entry_result::Result::Entry(entry),
        Err(failure) => v1::entry_result::Result::Error(failure.into_item()),
    };
    v1::EntryResult { result: Some(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ids: usize, sizes: &[u32]) -> v1::ChunkList {
        v1::ChunkList { ids: vec![7; ids].into(), sizes: sizes.to_vec() }
    }

    #[test]
    fn chunk_lists_must_add_up() {
        const LEAST: u32 = 16 * 1024;
        let chunk_list = |list: Option<&v1::ChunkList>, size| chunk_list(list, Cutter::Cdc64k, size);
        assert_eq!(chunk_list(None, 0).unwrap(), []);
        assert_eq!(chunk_list(Some(&list(64, &[LEAST, 6])), u64::from(LEAST) + 6).unwrap().len(), 2);
        assert!(chunk_list(Some(&list(64, &[LEAST - 1, 6])), u64::from(LEAST) + 5).is_err(), "too small");
        assert!(chunk_list(Some(&list(64, &[LEAST, 6])), u64::from(LEAST) + 7).is_err());
        assert!(chunk_list(Some(&list(63, &[5, 6])), 11).is_err());
        assert!(chunk_list(Some(&list(32, &[5, 6])), 11).is_err());
        assert!(chunk_list(Some(&list(32, &[0])), 0).is_err(), "empty chunks are none");
        assert!(chunk_list(Some(&list(32, &[u32::MAX])), u64::from(u32::MAX)).is_err());
        assert!(chunk_list(None, 1).is_err());
        let many = |count: usize| list(32 * count, &vec![LEAST; count]);
        let size = |count: usize| u64::from(LEAST) * count as u64;
        let most = UPLOAD_CHUNKS_MAX;
        assert_eq!(chunk_list(Some(&many(most)), size(most)).unwrap().len(), most);
        assert!(chunk_list(Some(&many(most + 1)), size(most + 1)).is_err());
    }

    #[test]
    fn a_base_must_be_said() {
        assert!(base(None).is_err());
        assert!(base(Some(v1::Base { base: Some(v1::base::Base::Absent(false)) })).is_err());
        let any = v1::Base { base: Some(v1::base::Base::Any(true)) };
        assert_eq!(base(Some(any)).unwrap(), Base::Any);
    }

    #[test]
    fn modes_and_targets_are_bounded() {
        assert!(mode(0o7777).is_ok() && mode(0o10000).is_err());
        assert!(symlink_target(b"../x").is_ok());
        assert!(symlink_target(b"").is_err() && symlink_target(b"a\0").is_err());
    }
}
