//! Positions that clients keep for us: opaque, and sealed by a key that all gateways share, so that what comes back
//! is what was given, for that purpose.
//!
//! Form: 16 bytes of HMAC-SHA256 over purpose and payload, then the payload.

use bytes::Bytes;
use engine::hash::sha256_parts;
use metaraft::model::codec;
use metaraft::model::row::SecretBytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::token::equal_in_constant_time;

const MAC_BYTES: usize = 16;
/// SHA-256's block (RFC 2104).
const BLOCK_BYTES: usize = 64;

/// What a sealed value is for; part of what is authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A cursor of the journal.
    Cursor = 1,
    /// A page of a folder's listing.
    Below = 2,
    /// A cursor of the journal, with its runs.
    CursorOfRuns = 3,
}

/// Seals and opens.
pub(crate) struct Sealer {
    inner: [u8; BLOCK_BYTES],
    outer: [u8; BLOCK_BYTES],
}

impl Sealer {
    pub(crate) fn new(SecretBytes(secret): SecretBytes) -> Self {
        let padded = |pad: u8| {
            let mut block = [pad; BLOCK_BYTES];
            block.iter_mut().zip(secret).for_each(|(byte, key)| *byte ^= key);
            block
        };
        Self { inner: padded(0x36), outer: padded(0x5c) }
    }

    fn hmac(&self, parts: [&[u8]; 2]) -> [u8; 32] {
        let inner = sha256_parts(&[&self.inner, parts[0], parts[1]]);
        sha256_parts(&[&self.outer, &inner])
    }

    fn mac(&self, purpose: Purpose, payload: &[u8]) -> [u8; 32] {
        let mut mac = [0; 32];
        mac[..MAC_BYTES].copy_from_slice(&self.hmac([&[purpose as u8], payload])[..MAC_BYTES]);
        mac
    }

    /// Seals a value for a client to keep.
    pub(crate) fn seal<T: Serialize>(&self, purpose: Purpose, value: &T) -> Bytes {
        let payload = codec::encode(value);
        let mac = self.mac(purpose, &payload);
        [&mac[..MAC_BYTES], &payload].concat().into()
    }

    /// The value that was sealed; `None` if this is not one of ours.
    pub(crate) fn open<T: DeserializeOwned>(&self, purpose: Purpose, sealed: &[u8]) -> Option<T> {
        let (mac, payload) = sealed.split_at_checked(MAC_BYTES)?;
        let mut given = [0; 32];
        given[..MAC_BYTES].copy_from_slice(mac);
        if !equal_in_constant_time(&given, &self.mac(purpose, payload)) {
            return None;
        }
        codec::decode(payload).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_that_of_the_rfc() {
        // RFC 4231, test case 1, with its key padded to 32 bytes (HMAC pads keys with zeros).
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        let code = Sealer::new(SecretBytes(key)).hmac([b"Hi ", b"There"]);
        assert_eq!(hex::encode(code), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    }

    #[test]
    fn only_what_was_sealed_for_the_purpose_opens() {
        let sealer = Sealer::new(SecretBytes([7; 32]));
        let sealed = sealer.seal(Purpose::Cursor, &(5_u64, 6_u64));
        assert_eq!(sealer.open(Purpose::Cursor, &sealed), Some((5_u64, 6_u64)));
        assert_eq!(sealer.open::<(u64, u64)>(Purpose::Below, &sealed), None);
        assert_eq!(Sealer::new(SecretBytes([8; 32])).open::<(u64, u64)>(Purpose::Cursor, &sealed), None);
        for at in 0..sealed.len() {
            let mut bent = sealed.to_vec();
            bent[at] ^= 1;
            assert_eq!(sealer.open::<(u64, u64)>(Purpose::Cursor, &bent), None, "{at}");
            assert_eq!(sealer.open::<(u64, u64)>(Purpose::Cursor, &sealed[..at]), None, "{at}");
        }
    }
}
