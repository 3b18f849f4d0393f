//! The encoding of rows, commands, queries and their answers: one format byte, then postcard.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::MODEL_FORMAT;

/// Room for most rows, so that they are made in one piece.
const ROW_BYTES: usize = 192;

/// Why bytes are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a version of the software that this one does not know.
    #[error("unknown format {found}; this version knows {MODEL_FORMAT}")]
    Format {
        /// The first byte; 0 for no bytes.
        found: u8,
    },
    /// Damaged, or something else.
    #[error("cannot decode {what}")]
    Malformed {
        /// The type that was expected.
        what: &'static str,
        /// Why.
        source: postcard::Error,
    },
    /// More than one value: written by a version that knows more, or something else.
    #[error("{bytes} bytes left over after {what}")]
    LeftOver {
        /// The type that was expected.
        what: &'static str,
        /// Bytes that it does not account for.
        bytes: usize,
    },
}

/// Encodes a value.
///
/// # Panics
/// Never: the model's types have no case that postcard refuses (no maps of unknown length, no untyped values).
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ROW_BYTES);
    bytes.push(MODEL_FORMAT);
    #[expect(clippy::expect_used, reason = "see Panics")]
    postcard::to_extend(value, bytes).expect("the model's types always encode")
}

/// Decodes what [`encode`] made.
///
/// # Errors
/// For another format, damage, or bytes left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (&format, body) = bytes.split_first().ok_or(DecodeError::Format { found: 0 })?;
    if format != MODEL_FORMAT {
        return Err(DecodeError::Format { found: format });
    }
    let what = std::any::type_name::<T>();
    let (value, rest) =
        postcard::take_from_bytes(body).map_err(|source| DecodeError::Malformed { what, source })?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::LeftOver { what, bytes: rest.len() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_left_over_are_an_error() {
        let mut bytes = encode(&7_u64);
        assert_eq!(decode::<u64>(&bytes).unwrap(), 7);
        bytes.push(0);
        assert!(matches!(decode::<u64>(&bytes), Err(DecodeError::LeftOver { bytes: 1, .. })));
    }
}
