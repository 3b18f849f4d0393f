//! Device tokens: `ks1_` and, in base64url, the account (16 bytes), the device (8) and a secret (32).
//!
//! Invariants:
//! - The cluster keeps only the SHA-256 of the secret.
//! - Secrets are compared in constant time, and never printed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::hash::sha256;
use engine::ids::{AccountId, DeviceId};

const PREFIX: &str = "ks1_";
const SECRET_BYTES: usize = 32;
const TOKEN_BYTES: usize = AccountId::LENGTH + DeviceId::LENGTH + SECRET_BYTES;

/// What a device shows to prove itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Whose device.
    pub account: AccountId,
    /// Which.
    pub device: DeviceId,
    secret: [u8; SECRET_BYTES],
}

impl Token {
    /// A token with a secret that must be fresh.
    pub(crate) fn new(account: AccountId, device: DeviceId, secret: [u8; SECRET_BYTES]) -> Self {
        Self { account, device, secret }
    }

    /// As it travels. Secret.
    #[must_use]
    pub fn text(&self) -> String {
        let mut bytes = Vec::with_capacity(TOKEN_BYTES);
        bytes.extend_from_slice(self.account.as_bytes());
        bytes.extend_from_slice(self.device.as_bytes());
        bytes.extend_from_slice(&self.secret);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Takes it from a request; `None` if it is not one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        let bytes: [u8; TOKEN_BYTES] = bytes.try_into().ok()?;
        let (account, rest) = bytes.split_at(AccountId::LENGTH);
        let (device, secret) = rest.split_at(DeviceId::LENGTH);
        Some(Self {
            account: AccountId::from_slice(account).ok()?,
            device: DeviceId::from_slice(device).ok()?,
            secret: secret.try_into().ok()?,
        })
    }

    /// What the cluster keeps of it.
    pub(crate) fn hash(&self) -> [u8; 32] {
        sha256(&self.secret)
    }

    /// Whether the cluster keeps this token's hash.
    pub(crate) fn proves(&self, kept: &[u8; 32]) -> bool {
        equal_in_constant_time(&self.hash(), kept)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token(account={} device={})", self.account, self.device)
    }
}

pub(crate) fn equal_in_constant_time(left: &[u8; 32], right: &[u8; 32]) -> bool {
    let difference = left.iter().zip(right).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token::new(AccountId::from_bytes([1; 16]), DeviceId::from_bytes([2; 8]), [3; 32])
    }

    #[test]
    fn a_token_survives_its_text() {
        assert_eq!(Token::parse(&token().text()), Some(token()));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let text = token().text();
        for bad in ["", "ks1_", "ks2_AAAA", &text[..text.len() - 1], &format!("{text}A"), &text[4..]] {
            assert_eq!(Token::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_the_right_secret_proves_it() {
        let hash = token().hash();
        assert!(token().proves(&hash));
        let other = Token::new(token().account, token().device, [4; 32]);
        assert!(!other.proves(&hash));
    }

    #[test]
    fn a_token_never_prints_its_secret() {
        assert!(!format!("{:?}", token()).contains("0303"));
    }
}
