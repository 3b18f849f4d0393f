//! Counts the messages of a stream of chunks while they are gathered.
//!
//! Invariants:
//! - Room for a whole message is taken once its head is seen, before more of it is read; it is given back when more is
//!   asked for after the message was taken, that is once its chunks are counted as an upload's.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use engine::ids::AccountId;

use crate::door::bodies::UNIT_BYTES;
use crate::door::shares::{Share, Shares};
use crate::limits::PUT_MESSAGE_BYTES_MAX;

/// The head of a gRPC message: a flag, and the length.
const HEAD_BYTES: usize = 5;

/// How far the parsing of frames has come.
#[derive(Debug, Default, PartialEq, Eq)]
struct Framing {
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    /// Bytes of the message still to come.
    left: usize,
}

impl Framing {
    /// Whether a message has begun and is not whole.
    fn is_within(&self) -> bool {
        self.left > 0 || self.head_bytes > 0
    }

    /// Goes through bytes; gives the length of the last message that begins in them, and does not end in them.
    fn go_on(&mut self, mut bytes: &[u8]) -> Option<usize> {
        let mut begun = None;
        while !bytes.is_empty() {
            if self.left > 0 {
                let part = self.left.min(bytes.len());
                self.left -= part;
                bytes = &bytes[part..];
                continue;
            }
            let part = (HEAD_BYTES - self.head_bytes).min(bytes.len());
            self.head[self.head_bytes..self.head_bytes + part].copy_from_slice(&bytes[..part]);
            self.head_bytes += part;
            bytes = &bytes[part..];
            if self.head_bytes == HEAD_BYTES {
                let [_flag, a, b, c, d] = self.head;
                self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                self.head_bytes = 0;
                begun = (self.left > bytes.len()).then_some(self.left);
            }
        }
        begun
    }
}

/// The messages of one stream.
pub(crate) struct Messages {
    account: AccountId,
    shares: Arc<Shares<AccountId>>,
    framing: Framing,
    room: Option<Share>,
    taking: Option<Pin<Box<dyn Future<Output = Share> + Send>>>,
}

impl Messages {
    pub(crate) fn new(account: AccountId, shares: Arc<Shares<AccountId>>) -> Self {
        Self { account, shares, framing: Framing::default(), room: None, taking: None }
    }

    /// More is asked for: what was whole has been taken.
    pub(crate) fn before_more(&mut self) {
        if !self.framing.is_within() {
            self.room = None;
        }
    }

    /// Bytes have come; afterwards [`Self::poll_room`] says when they may be handed on.
    pub(crate) fn have_come(&mut self, bytes: &[u8]) {
        if let Some(length) = self.framing.go_on(bytes) {
            // A longer one is refused by who decodes it.
            let units = (length.min(PUT_MESSAGE_BYTES_MAX) as u64).div_ceil(UNIT_BYTES);
            self.room = None;
            match self.shares.try_take(self.account, units) {
                Ok(room) => self.room = Some(room),
                Err(_full) => {
                    let (account, shares) = (self.account, Arc::clone(&self.shares));
                    self.taking = Some(Box::pin(async move { shares.take(account, units).await }));
                }
            }
        }
    }

    /// Ready once there is room for the message that has begun.
    pub(crate) fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(taking) = self.taking.as_mut() {
            self.room = Some(std::task::ready!(taking.as_mut().poll(context)));
            self.taking = None;
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Vec<u8> {
        let length = u32::try_from(bytes).unwrap().to_be_bytes();
        [&[0][..], &length, &vec![9; bytes]].concat()
    }

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let sizes = [0, 1, 5, 300, 7, 0, 64];
        let stream: Vec<u8> = sizes.iter().flat_map(|size| message(*size)).collect();
        for cut in 1..80 {
            let (mut framing, mut ends) = (Framing::default(), 0);
            for part in stream.chunks(cut) {
                framing.go_on(part);
                ends += usize::from(!framing.is_within());
            }
            assert_eq!(framing, Framing { head: framing.head, ..Framing::default() }, "{cut}");
            assert!(ends > 0);
        }
        let mut framing = Framing::default();
        assert_eq!(framing.go_on(&stream), None, "all are whole");
        assert_eq!(framing.go_on(&[message(3), message(100)[..9].to_vec()].concat()), Some(100));
        assert!(framing.is_within());
    }

    #[test]
    fn room_is_held_until_the_message_was_taken() {
        let account = AccountId::from_bytes([1; 16]);
        let shares = Arc::new(Shares::new(4, 4));
        let mut messages = Messages::new(account, Arc::clone(&shares));
        let bytes = message(3000);
        messages.have_come(&bytes[..100]);
        messages.before_more();
        assert!(shares.try_take(account, 2).is_err());
        messages.have_come(&bytes[100..]);
        assert!(shares.try_take(account, 2).is_err(), "it may not be counted elsewhere yet");
        messages.before_more();
        assert!(shares.try_take(account, 4).is_ok());
    }
}
