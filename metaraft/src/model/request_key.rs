//! What names a request, and what it asked for: a memory of answers belongs to both.

use engine::hash::sha256_parts;
use engine::ids::{AccountId, RequestId};
use serde::{Deserialize, Serialize};

/// A hash of what a request asks for. Whoever sends an id again asks for the same, or is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload(pub [u8; Payload::LENGTH]);

fn first_16(digest: &[u8; 32]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes
}

impl Payload {
    /// Its bytes.
    pub const LENGTH: usize = 16;

    /// Of an encoded command that says nothing else.
    #[must_use]
    pub fn of_command(encoded: &[u8]) -> Self {
        Self(first_16(&sha256_parts(&[b"keepstone command\0", encoded])))
    }
}

/// A request's id with what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// Its id.
    pub id: RequestId,
    /// What it asks for; `None` if that is the command itself, byte by byte.
    pub payload: Option<Payload>,
}

impl From<RequestId> for RequestKey {
    fn from(id: RequestId) -> Self {
        Self { id, payload: None }
    }
}

impl RequestKey {
    /// The request that `account` sent under `id`, by its `message`, the same in each repetition; `call` names what was
    /// called. The commands that it leads to may differ from one repetition to the next, for they rest on what is there
    /// by then; the message does not.
    ///
    /// Two accounts that send the same id never meet: the ids of their commands differ.
    #[must_use]
    pub fn of_client(account: AccountId, id: RequestId, call: &str, message: &[u8]) -> Self {
        let named = sha256_parts(&[b"keepstone client request\0", account.as_bytes(), id.as_bytes()]);
        let length = (call.len() as u64).to_be_bytes();
        let asked = sha256_parts(&[b"keepstone client payload\0", &length, call.as_bytes(), message]);
        Self { id: RequestId::new(id.time_ms(), first_16(&named)), payload: Some(Payload(first_16(&asked))) }
    }

    /// Step `step` of this request: see [`RequestId::step`].
    #[must_use]
    pub fn step(&self, step: u32) -> Self {
        Self { id: self.id.step(step), payload: self.payload }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_its_senders_and_its_words() {
        let (one, other) = (AccountId::from_bytes([1; 16]), AccountId::from_bytes([2; 16]));
        let id = RequestId::new(77, [3; 16]);
        let first = RequestKey::of_client(one, id, "Move", b"a to b");
        assert_eq!(first, RequestKey::of_client(one, id, "Move", b"a to b"));
        assert_eq!(first.id.time_ms(), 77);
        assert_ne!(first.id, RequestKey::of_client(other, id, "Move", b"a to b").id);
        for different in [
            RequestKey::of_client(one, id, "Move", b"a to c"),
            RequestKey::of_client(one, id, "Mov", b"ea to b"),
        ] {
            assert_eq!(different.id, first.id);
            assert_ne!(different.payload, first.payload);
        }
        assert_eq!(first.step(4).payload, first.payload);
        assert_ne!(first.step(4).id, first.step(5).id);
    }
}
