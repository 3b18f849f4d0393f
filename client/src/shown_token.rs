//! How the device's token is shown to the gateway with each call.
//!
//! Every gateway takes it as `authorization`, which HTTP/2 never keeps for later requests of a connection: it is 70 bytes
//! on the wire each time. One that takes it as [`HEADER`] as well says so, and is then shown it there: after the first
//! time two bytes stand for it. It is 256 random bits, so what such a table gives away to who can have requests sent
//! over the same connection, whether a guess of the whole is right, is of no use.

use std::sync::atomic::{AtomicBool, Ordering};

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::call_error::CallError;

/// The header that carries nothing but a token.
const HEADER: &str = "keepstone-token";
/// How a gateway begins to say that it was shown no token.
const NOT_SEEN: &str = "no token";

/// A token, and how the gateway takes it. Secret: never printed.
pub(crate) struct ShownToken {
    bearer: MetadataValue<Ascii>,
    plain: MetadataValue<Ascii>,
    in_own_header: AtomicBool,
    /// Whether a gateway ever took it there.
    was_taken: AtomicBool,
}

impl ShownToken {
    /// # Errors
    /// If it has characters that no token has.
    pub(crate) fn new(token: &str) -> Result<Self, CallError> {
        let value = |text: String| {
            text.parse::<MetadataValue<Ascii>>().map_err(|_not_ascii| CallError::Setup {
                message: "the profile's token has characters that no token has".to_owned(),
            })
        };
        let mut bearer = value(format!("Bearer {}", token.trim()))?;
        bearer.set_sensitive(true);
        // Not marked: what is would be sent in full each time.
        let plain = value(token.trim().to_owned())?;
        Ok(Self { bearer, plain, in_own_header: AtomicBool::new(false), was_taken: AtomicBool::new(false) })
    }

    /// Adds it to a request's headers.
    pub(crate) fn show(&self, headers: &mut MetadataMap) {
        if self.in_own_header.load(Ordering::Relaxed) {
            headers.insert(HEADER, self.plain.clone());
        } else {
            headers.insert("authorization", self.bearer.clone());
        }
    }

    /// The gateway says whether it takes the header of its own.
    pub(crate) fn learn(&self, in_own_header: bool) {
        self.in_own_header.store(in_own_header, Ordering::Relaxed);
        self.was_taken.fetch_or(in_own_header, Ordering::Relaxed);
    }

    /// Whether a refusal comes from a gateway, an older one than the one that was asked before, that did not look where the
    /// token was shown. From then on it is shown as all gateways take it. Where it never was shown elsewhere, something
    /// between takes it out.
    pub(crate) fn was_not_seen(&self, refusal: &Status) -> bool {
        let not_seen = refusal.code() == Code::Unauthenticated
            && refusal.message().starts_with(NOT_SEEN)
            && self.was_taken.load(Ordering::Relaxed);
        if not_seen {
            self.learn(false);
        }
        not_seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_with_a_newline_inside_is_refused() {
        assert!(ShownToken::new("a\nb").is_err());
        assert!(ShownToken::new("ks1_abc\n").is_ok(), "the end of a file is trimmed");
    }

    #[test]
    fn the_own_header_is_used_with_a_gateway_that_takes_it_and_until_one_does_not() {
        let token = ShownToken::new("ks1_abc\n").unwrap();
        let shown = || {
            let mut headers = MetadataMap::new();
            token.show(&mut headers);
            let of = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            (of("authorization"), of(HEADER))
        };
        let (usual, own) = ((Some("Bearer ks1_abc".to_owned()), None), (None, Some("ks1_abc".to_owned())));
        assert_eq!(shown(), usual);
        assert!(!token.was_not_seen(&Status::unauthenticated("no token; send it")), "taken out on its way");
        token.learn(true);
        assert_eq!(shown(), own);
        let revoked = Status::unauthenticated("the token is wrong or has been revoked");
        assert!(!token.was_not_seen(&revoked) && !token.was_not_seen(&Status::unavailable("no token")));
        assert_eq!(shown(), own);
        assert!(token.was_not_seen(&Status::unauthenticated("no token; send it as `authorization`")));
        assert_eq!(shown(), usual);
    }
}
