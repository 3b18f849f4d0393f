//! Positions that clients keep for us: opaque, and sealed by a key that all gateways share, so that what comes back
//! is what was given, for that purpose and that tree.
//!
//! Form: 16 bytes of HMAC-SHA256 over purpose, tree (if it is bound to one) and payload, then the payload.

use bytes::Bytes;
use engine::hash::sha256_parts;
use engine::ids::NamespaceId;
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
    /// A cursor of the journal, as it was before it had runs.
    PlainCursor = 1,
    /// A page of a folder's listing.
    Below = 2,
    /// A cursor of the journal with its runs, as it was before it was bound to its tree.
    LongCursor = 3,
    /// A cursor of the journal.
    Cursor = 4,
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

    fn hmac(&self, parts: [&[u8]; 3]) -> [u8; 32] {
        let inner = sha256_parts(&[&self.inner, parts[0], parts[1], parts[2]]);
        sha256_parts(&[&self.outer, &inner])
    }

    fn mac(&self, purpose: Purpose, tree: Option<NamespaceId>, payload: &[u8]) -> [u8; 32] {
        let tree = tree.as_ref().map_or(&[][..], |tree| tree.as_bytes());
        let mut mac = [0; 32];
        mac[..MAC_BYTES].copy_from_slice(&self.hmac([&[purpose as u8], tree, payload])[..MAC_BYTES]);
        mac
    }

    /// Seals a value for a client to keep. Each purpose has a tree always or never.
    pub(crate) fn seal<T: Serialize>(&self, purpose: Purpose, tree: Option<NamespaceId>, value: &T) -> Bytes {
        let payload = codec::encode(value);
        let mac = self.mac(purpose, tree, &payload);
        [&mac[..MAC_BYTES], &payload].concat().into()
    }

    /// The value that was sealed; `None` if this is not one of ours, or of another purpose or tree.
    pub(crate) fn open<T: DeserializeOwned>(
        &self,
        purpose: Purpose,
        tree: Option<NamespaceId>,
        sealed: &[u8],
    ) -> Option<T> {
        let (mac, payload) = sealed.split_at_checked(MAC_BYTES)?;
        let mut given = [0; 32];
        given[..MAC_BYTES].copy_from_slice(mac);
        if !equal_in_constant_time(&given, &self.mac(purpose, tree, payload)) {
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
        let code = Sealer::new(SecretBytes(key)).hmac([b"Hi ", b"", b"There"]);
        assert_eq!(hex::encode(code), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    }

    #[test]
    fn only_what_was_sealed_for_the_purpose_and_the_tree_opens() {
        let sealer = Sealer::new(SecretBytes([7; 32]));
        let [tree, other] = [1, 2].map(|byte| Some(NamespaceId::from_bytes([byte; 16])));
        let sealed = sealer.seal(Purpose::Cursor, tree, &(5_u64, 6_u64));
        let open = |purpose, tree, sealed: &[u8]| sealer.open::<(u64, u64)>(purpose, tree, sealed);
        assert_eq!(open(Purpose::Cursor, tree, &sealed), Some((5, 6)));
        assert_eq!(open(Purpose::Below, tree, &sealed), None);
        assert_eq!(open(Purpose::Cursor, other, &sealed), None);
        assert_eq!(open(Purpose::Cursor, None, &sealed), None);
        let elsewhere = Sealer::new(SecretBytes([8; 32]));
        assert_eq!(elsewhere.open::<(u64, u64)>(Purpose::Cursor, tree, &sealed), None);
        for at in 0..sealed.len() {
            let mut bent = sealed.to_vec();
            bent[at] ^= 1;
            assert_eq!(open(Purpose::Cursor, tree, &bent), None, "{at}");
            assert_eq!(open(Purpose::Cursor, tree, &sealed[..at]), None, "{at}");
        }
    }
}
