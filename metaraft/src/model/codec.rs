//! The encoding of rows, commands, queries and their answers: one format byte, then postcard.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::MODEL_FORMAT;

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
}

/// Encodes a value.
///
/// # Panics
/// Never: the model's types have no case that postcard refuses (no maps of unknown length, no untyped values).
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "see Panics")]
    postcard::to_extend(value, vec![MODEL_FORMAT]).expect("the model's types always encode")
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
    postcard::from_bytes(body)
        .map_err(|source| DecodeError::Malformed { what: std::any::type_name::<T>(), source })
}
