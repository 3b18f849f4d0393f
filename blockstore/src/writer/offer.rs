//! A put on its way to the writer's thread, which its caller can take back.

use std::sync::{Arc, Mutex};

use super::Put;
use crate::locks::locked;

/// A put that waits for the writer. Once its caller has given up its bytes are let go of, however long the writer
/// stands still; what is left in the queue is an empty place.
#[derive(Clone, Debug)]
pub(crate) struct Offer(Arc<Mutex<Option<Put>>>);

impl Offer {
    pub(crate) fn new(put: Put) -> Self {
        Self(Arc::new(Mutex::new(Some(put))))
    }

    /// The put, once, if nobody has taken it or given it up.
    pub(crate) fn take(&self) -> Option<Put> {
        locked(&self.0).take()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use engine::cluster::StripeLayout;
    use engine::ids::{Epoch, Position, StripeId, VolumeId};

    use super::*;
    use crate::record::{ShardHeader, ShardName};

    #[test]
    fn an_offer_that_is_given_up_holds_no_bytes_while_it_waits_in_the_queue() {
        let payload = Bytes::from(vec![7; 1024]);
        let name = ShardName { stripe: StripeId::new(VolumeId(1), [0; 8]), position: Position(0) };
        let header = ShardHeader {
            name,
            epoch: Epoch(1),
            code: engine::code::Code::new(4, 2).unwrap(),
            layout: StripeLayout::Copies,
            stripe_length: 1024,
            payload_length: 1024,
            payload_crc32: 0,
        };
        let offer = Offer::new(Put { history: engine::cluster::HISTORY, header, payload: payload.clone() });
        let waiting = offer.clone();
        assert!(!payload.is_unique());
        drop(offer.take());
        assert!(payload.is_unique(), "the queue holds on to it");
        assert!(waiting.take().is_none(), "the writer finds an empty place");
    }
}
