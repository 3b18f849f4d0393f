//! Names of things. Every id is a newtype, so that a disk can never be passed for a node.
//!
//! Byte ids print as lower-case hex and parse from it; counters print as decimals.

use serde::{Deserialize, Serialize};

/// Why a text or a byte string is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind}: {text:?}")]
pub struct ParseIdError {
    /// What was expected, in the glossary's words.
    pub kind: &'static str,
    /// What was given, shortened to 80 characters.
    pub text: String,
}

impl ParseIdError {
    fn new(kind: &'static str, text: &str) -> Self {
        Self { kind, text: text.chars().take(80).collect() }
    }
}

macro_rules! byte_id {
    ($(#[$meta:meta])* $name:ident, $length:literal, $kind:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(#[serde(with = "serde_bytes")] [u8; $length]);

        impl $name {
            /// Bytes in an id of this kind.
            pub const LENGTH: usize = $length;

            /// Wraps bytes that are already known to be such an id.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; $length]) -> Self {
                Self(bytes)
            }

            /// The bytes, in the order in which ids sort.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }

            /// Takes an id from the wire or a disk.
            ///
            /// # Errors
            /// If the length is not [`Self::LENGTH`].
            pub fn from_slice(bytes: &[u8]) -> Result<Self, ParseIdError> {
                <[u8; $length]>::try_from(bytes)
                    .map(Self)
                    .map_err(|_wrong_length| ParseIdError::new($kind, &hex::encode(bytes)))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({})", stringify!($name), hex::encode(self.0))
            }
        }

        impl std::str::FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut bytes = [0; $length];
                hex::decode_to_slice(text, &mut bytes)
                    .map_err(|_not_hex| ParseIdError::new($kind, text))?;
                Ok(Self(bytes))
            }
        }
    };
}

macro_rules! counter_id {
    ($(#[$meta:meta])* $name:ident, $number:ty, $kind:literal) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        pub struct $name(pub $number);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.parse().map(Self).map_err(|_not_a_number| ParseIdError::new($kind, text))
            }
        }
    };
}

byte_id! {
    /// The SHA-256 of a chunk's plain bytes (or, in a hash domain of its own, of a manifest node's).
    ChunkId, 32, "chunk id"
}
byte_id! {
    /// The SHA-256 over a content's ordered chunk ids and sizes.
    ContentId, 32, "content id"
}
byte_id! {
    /// Who refers to chunks: minted when an upload session begins, kept by the content it becomes.
    HolderId, 16, "holder id"
}
byte_id! {
    /// One upload session.
    UploadId, 16, "upload id"
}
byte_id! {
    /// One owner's tree.
    NamespaceId, 16, "namespace id"
}
byte_id! {
    /// A person, or a program, that signs in.
    AccountId, 16, "account id"
}
byte_id! {
    /// One signed-in device of an account.
    DeviceId, 8, "device id"
}
byte_id! {
    /// A disk, from its superblock. Never reused.
    DiskId, 16, "disk id"
}
byte_id! {
    /// One installation. Disks and certificates of another are refused.
    ClusterId, 16, "cluster id"
}
byte_id! {
    /// A stripe: 8 random bytes, which choose its slot, then its volume's number, big-endian.
    StripeId, 16, "stripe id"
}
byte_id! {
    /// A mutating request: its time in milliseconds since 1970, big-endian, then 16 random bytes.
    RequestId, 24, "request id"
}

counter_id! {
    /// A container of stripes with one code and one set of member disks. Issued by the root group, never reused.
    VolumeId, u64, "volume id"
}
counter_id! {
    /// A machine's process of any role. Never reused.
    NodeId, u64, "node id"
}
counter_id! {
    /// A Raft group: 0 is the root, 1 and up hold the data.
    GroupId, u16, "group id"
}
counter_id! {
    /// One of the [`SLOT_COUNT`] parts into which metadata is spread over the data groups.
    SlotId, u16, "slot id"
}
counter_id! {
    /// A file, folder or symlink within its namespace. Never reused there.
    EntryId, u64, "entry id"
}
counter_id! {
    /// A version of a file, unique within its namespace and growing.
    VersionId, u64, "version id"
}
counter_id! {
    /// How often a volume's membership has changed. Stale writers carry an older one and are refused.
    Epoch, u32, "epoch"
}
counter_id! {
    /// Which of a stripe's `k+m` pieces: `0..k` hold data, `k..k+m` parity.
    Position, u8, "position"
}

/// Slots in a cluster, for ever.
pub const SLOT_COUNT: u16 = 16_384;

/// The root group.
pub const ROOT_GROUP: GroupId = GroupId(0);

fn slot_of_first_bits(bytes: &[u8]) -> SlotId {
    SlotId(u16::from_be_bytes([bytes[0], bytes[1]]) >> 2)
}

impl ChunkId {
    /// The slot that holds this chunk's row and references.
    #[must_use]
    pub fn slot(&self) -> SlotId {
        slot_of_first_bits(&self.0)
    }
}

impl ContentId {
    /// The slot that holds this content's row and references.
    #[must_use]
    pub fn slot(&self) -> SlotId {
        slot_of_first_bits(&self.0)
    }
}

impl AccountId {
    /// The slot that holds this account's row and devices.
    #[must_use]
    pub fn slot(&self) -> SlotId {
        slot_of_first_bits(&self.0)
    }
}

impl NamespaceId {
    /// The slot that holds this namespace: by hash, since ids need not be random for ever.
    #[must_use]
    pub fn slot(&self) -> SlotId {
        slot_of_first_bits(&crate::hash::sha256(&self.0))
    }
}

impl StripeId {
    /// Names a new stripe of `volume`. `random` must be fresh: it keeps ids of one volume apart.
    #[must_use]
    pub fn new(volume: VolumeId, random: [u8; 8]) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&random);
        bytes[8..].copy_from_slice(&volume.0.to_be_bytes());
        Self(bytes)
    }

    /// The volume this stripe lies in.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        let mut number = [0; 8];
        number.copy_from_slice(&self.0[8..]);
        VolumeId(u64::from_be_bytes(number))
    }

    /// The slot that holds this stripe's row.
    #[must_use]
    pub fn slot(&self) -> SlotId {
        slot_of_first_bits(&self.0)
    }
}

impl RequestId {
    /// A request made at `time_ms` (milliseconds since 1970). `random` must be fresh.
    #[must_use]
    pub fn new(time_ms: u64, random: [u8; 16]) -> Self {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&time_ms.to_be_bytes());
        bytes[8..].copy_from_slice(&random);
        Self(bytes)
    }

    /// When the request was made, in milliseconds since 1970, by its maker's clock.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        let mut number = [0; 8];
        number.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(number)
    }

    /// The id of step `step` of this request: the same time, and random bytes that only this request and
    /// step give, so that a retry of the whole repeats each step under its first id.
    #[must_use]
    pub fn step(&self, step: u32) -> Self {
        let digest = crate::hash::sha256_parts(&[b"keepstone request step\0", &self.0, &step.to_be_bytes()]);
        let mut random = [0; 16];
        random.copy_from_slice(&digest[..16]);
        Self::new(self.time_ms(), random)
    }
}

/// The slot that holds the row of an email address (lower-cased by the caller).
#[must_use]
pub fn email_slot(email: &str) -> SlotId {
    slot_of_first_bits(&crate::hash::sha256_parts(&[b"keepstone email\0", email.as_bytes()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse_alike() {
        let stripe = StripeId::new(VolumeId(7), *b"\x00\x01\x02\x03\x04\x05\x06\x07");
        assert_eq!(stripe.to_string().parse::<StripeId>(), Ok(stripe));
        assert_eq!(stripe.volume(), VolumeId(7));
        assert!("zz".parse::<StripeId>().is_err());
        assert!(StripeId::from_slice(&[0; 15]).is_err());
    }

    #[test]
    fn slots_stay_in_range() {
        assert_eq!(ChunkId::from_bytes([0xff; 32]).slot(), SlotId(SLOT_COUNT - 1));
        assert_eq!(ChunkId::from_bytes([0; 32]).slot(), SlotId(0));
    }

    #[test]
    fn request_steps_keep_the_time_and_differ() {
        let request = RequestId::new(1_700_000_000_000, [9; 16]);
        assert_eq!(request.step(1).time_ms(), request.time_ms());
        assert_ne!(request.step(1), request.step(2));
        assert_eq!(request.step(1), request.step(1));
    }
}
