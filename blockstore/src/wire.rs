//! Between the storage API's messages and this crate's types: everything from a peer is checked here, once.

use engine::cluster::StripeLayout;
use engine::code::Code;
use engine::ids::{DiskId, Epoch, Position, StripeId, VolumeId};
use engine::store::ShardLoss;
use proto::internal;
use tonic::Status;

use crate::record::{SHARD_BYTES_MAX, ShardHeader, ShardName};
use crate::writer::{Authority, Put};

/// Shards that one call may delete or list.
pub(crate) const SHARDS_PER_CALL_MAX: usize = 4096;

fn invalid(what: impl std::fmt::Display) -> Status {
    Status::invalid_argument(what.to_string())
}

pub(crate) fn disk_id(bytes: &[u8]) -> Result<DiskId, Status> {
    DiskId::from_slice(bytes).map_err(invalid)
}

pub(crate) fn shard_name(stripe: &[u8], position: u32) -> Result<ShardName, Status> {
    let stripe = StripeId::from_slice(stripe).map_err(invalid)?;
    match u8::try_from(position) {
        Ok(position) if position < engine::code::SHARDS_MAX => {
            Ok(ShardName { stripe, position: Position(position) })
        }
        _ => Err(invalid(format!("no stripe has a position {position}"))),
    }
}

/// The wire's word for a layout.
pub(crate) fn layout_to_wire(layout: StripeLayout) -> internal::ShardLayout {
    match layout {
        StripeLayout::Coded => internal::ShardLayout::Coded,
        StripeLayout::Copies => internal::ShardLayout::Copy,
    }
}

/// The wire's word for how a shard is lost.
pub(crate) fn loss_to_wire(loss: ShardLoss) -> internal::ShardLoss {
    match loss {
        ShardLoss::Absent => internal::ShardLoss::Absent,
        ShardLoss::Damaged => internal::ShardLoss::Damaged,
        ShardLoss::Unreadable => internal::ShardLoss::Unreadable,
    }
}

/// How a shard is lost, off the wire. What a later version says counts as damage.
pub(crate) fn loss_from_wire(loss: internal::ShardLoss) -> ShardLoss {
    match loss {
        internal::ShardLoss::Absent => ShardLoss::Absent,
        internal::ShardLoss::Unreadable => ShardLoss::Unreadable,
        internal::ShardLoss::Damaged | internal::ShardLoss::Unspecified => ShardLoss::Damaged,
    }
}

/// By whose order a disk is to be changed.
pub(crate) fn authority(history: u64, volumes: &[internal::VolumeAuthority]) -> Result<Authority, Status> {
    if history == 0 {
        return Err(invalid("a change of a disk names the cluster's history"));
    }
    shard_count(volumes.len())?;
    let epochs = volumes.iter().map(|named| (VolumeId(named.volume), Epoch(named.epoch))).collect();
    Ok(Authority { history, epochs })
}

/// Takes a shard off the wire, with its payload verified against its CRC-32.
pub(crate) fn put(request: internal::PutShardRequest) -> Result<Put, Status> {
    let name = shard_name(&request.stripe, request.position)?;
    let part = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
    let code = Code::new(part(request.code_data), part(request.code_parity)).map_err(invalid)?;
    if usize::from(name.position.0) >= code.total() {
        return Err(invalid(format!("a stripe of code {code} has no position {}", name.position)));
    }
    let layout = match request.layout() {
        internal::ShardLayout::Coded => StripeLayout::Coded,
        internal::ShardLayout::Copy => StripeLayout::Copies,
        internal::ShardLayout::Unspecified => return Err(invalid("a shard is coded or a copy")),
    };
    if request.history == 0 {
        return Err(invalid("a change of a disk names the cluster's history"));
    }
    let payload_length = u32::try_from(request.payload.len()).unwrap_or(u32::MAX);
    if !(1..=SHARD_BYTES_MAX).contains(&payload_length) {
        return Err(invalid(format!("a shard has 1 to {SHARD_BYTES_MAX} bytes, not {payload_length}")));
    }
    let room = match layout {
        StripeLayout::Coded => u64::from(payload_length) * code.data() as u64,
        StripeLayout::Copies => u64::from(payload_length),
    };
    if request.stripe_length == 0 || u64::from(request.stripe_length) > room {
        return Err(invalid(format!(
            "a stripe of {} bytes does not lie in {layout:?} shards of {payload_length}",
            request.stripe_length
        )));
    }
    let payload_crc32 = crc32fast::hash(&request.payload);
    if payload_crc32 != request.payload_crc32 {
        return Err(Status::data_loss("the shard was damaged on its way: send it again"));
    }
    let header = ShardHeader {
        name,
        epoch: Epoch(request.epoch),
        code,
        layout,
        stripe_length: request.stripe_length,
        payload_length,
        payload_crc32,
    };
    Ok(Put { history: request.history, header, payload: request.payload })
}

/// Checks the range of a read.
pub(crate) fn range(offset: u32, length: u32) -> Result<(), Status> {
    let end = u64::from(offset) + u64::from(length);
    if length == 0 || end > u64::from(SHARD_BYTES_MAX) {
        return Err(invalid(format!("no shard has the {length} bytes from {offset}")));
    }
    Ok(())
}

/// Checks how many shards a call names.
pub(crate) fn shard_count(count: usize) -> Result<(), Status> {
    if count > SHARDS_PER_CALL_MAX {
        return Err(invalid(format!("{count} shards in one call; at most {SHARDS_PER_CALL_MAX}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tonic::Code as StatusCode;

    fn request() -> internal::PutShardRequest {
        let payload = Bytes::from_static(b"shard");
        internal::PutShardRequest {
            disk: Bytes::copy_from_slice(&[1; 16]),
            stripe: Bytes::copy_from_slice(&[2; 16]),
            position: 5,
            epoch: 1,
            code_data: 4,
            code_parity: 2,
            layout: internal::ShardLayout::Coded.into(),
            stripe_length: 20,
            payload_crc32: crc32fast::hash(&payload),
            payload,
            history: 1,
        }
    }

    #[test]
    fn a_sound_put_is_taken_and_absurd_ones_are_refused() {
        assert_eq!(put(request()).unwrap().header.payload_length, 5);
        type Spoil = fn(&mut internal::PutShardRequest);
        let spoils: [(Spoil, StatusCode); 11] = [
            (|r| r.history = 0, StatusCode::InvalidArgument),
            (|r| r.stripe = Bytes::from_static(b"short"), StatusCode::InvalidArgument),
            (|r| r.position = 6, StatusCode::InvalidArgument),
            (|r| r.position = 1 << 20, StatusCode::InvalidArgument),
            (|r| r.code_data = 0, StatusCode::InvalidArgument),
            (|r| r.code_parity = 1 << 30, StatusCode::InvalidArgument),
            (|r| r.layout = 77, StatusCode::InvalidArgument),
            (|r| r.stripe_length = 21, StatusCode::InvalidArgument),
            (|r| r.stripe_length = 0, StatusCode::InvalidArgument),
            (|r| r.payload = Bytes::new(), StatusCode::InvalidArgument),
            (|r| r.payload_crc32 ^= 1, StatusCode::DataLoss),
        ];
        for (spoil, code) in spoils {
            let mut spoilt = request();
            spoil(&mut spoilt);
            assert_eq!(put(spoilt.clone()).unwrap_err().code(), code, "{spoilt:?}");
        }
        let mut copy = request();
        copy.layout = internal::ShardLayout::Copy.into();
        assert!(put(copy.clone()).is_err(), "a copy is the whole stripe");
        copy.stripe_length = 5;
        assert!(put(copy).is_ok());
    }

    #[test]
    fn ranges_beyond_any_shard_are_refused() {
        assert!(range(0, SHARD_BYTES_MAX).is_ok());
        for (offset, length) in [(0, 0), (1, SHARD_BYTES_MAX), (u32::MAX, u32::MAX)] {
            assert!(range(offset, length).is_err());
        }
    }
}
