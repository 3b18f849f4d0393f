//! Who calls: device tokens, checked against the cluster with every request.
//!
//! Invariants:
//! - A token is checked by a linearizable read, once for each request, before anything of it is read; so a revoked one
//!   stops with the next request. What is open already is ended by [`crate::live`].
//! - Where one command or query does all the work, the token is checked in it, and nobody who has just been right is asked
//!   for beforehand: a [`Claim`], which is no [`Caller`] to anything else.
//! - All ways in which a token can be wrong look alike from outside.

use engine::ids::{AccountId, DeviceId, NamespaceId};
use http::{HeaderMap, HeaderValue};
use metaraft::model::nursery::TokenGuard;
use metaraft::model::query::{Query, Reply};
use metaraft::model::row::{AccountRow, DeviceRow};
use tonic::{Code, Request};

use crate::failure::Failure;
use crate::meta::{Meta, wrong_reply};
use crate::token::{Token, equal_in_constant_time};

/// An authenticated caller.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) account: AccountId,
    pub(crate) device: DeviceId,
    pub(crate) namespace: NamespaceId,
    pub(crate) account_row: AccountRow,
    pub(crate) device_row: DeviceRow,
}

pub(crate) fn refused() -> Failure {
    let message = "the token is wrong or has been revoked; sign in again (`keepstone login`)";
    Failure::new(Code::Unauthenticated, "unauthenticated", message)
}

/// The token in `authorization`; if there is no such header, in the one of its own, which HTTP/2 keeps from one request of
/// a connection to the next.
pub(crate) fn token_of(headers: &HeaderMap) -> Result<Token, Failure> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let shown = match headers.contains_key("authorization") {
        true => text("authorization").and_then(|header| header.strip_prefix("Bearer ")),
        false => text("keepstone-token"),
    };
    let text = shown.ok_or_else(|| {
        let message = "no token; send it as `authorization: Bearer TOKEN`";
        Failure::new(Code::Unauthenticated, "unauthenticated", message)
    })?;
    Token::parse(text.trim()).ok_or_else(refused)
}

/// The caller of a request, as the gate has found.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Caller, Failure> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Failure::internal("caller", &"a request came by the gate without one"))
}

/// Who calls, by a token that is to be checked where the work is done.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) caller: Caller,
    /// The token; `None` if it has been checked for this request.
    pub(crate) token: Option<TokenGuard>,
}

/// Who calls, for what checks tokens itself.
pub(crate) fn claim<T>(request: &Request<T>) -> Result<Claim, Failure> {
    let claim = request.extensions().get::<Claim>().cloned();
    claim.ok_or_else(|| Failure::internal("caller", &"a request came by the gate without one"))
}

impl Claim {
    /// Checks the token now, where several steps follow.
    pub(crate) async fn check(&self, meta: &Meta) -> Result<(), Failure> {
        let Some(TokenGuard { account, device, token_hash }) = self.token else { return Ok(()) };
        let found = device_of(meta, account, device).await?;
        let right = |row: &DeviceRow| {
            row.revoked_ms.is_none() && equal_in_constant_time(&row.token_hash, &token_hash)
        };
        if found.is_some_and(|(_account, row)| right(&row)) { Ok(()) } else { Err(refused()) }
    }
}

async fn device_of(
    meta: &Meta,
    account: AccountId,
    device: DeviceId,
) -> Result<Option<(AccountRow, DeviceRow)>, Failure> {
    match meta.query(account.slot(), Query::Device { account, device }).await {
        Ok(Reply::Device(found)) => Ok(found),
        Ok(_) => Err(Failure::from_meta(&wrong_reply("device"), "sign-in")),
        Err(error) => Err(Failure::from_meta(&error, "sign-in")),
    }
}

/// Checks a token.
pub(crate) async fn check(meta: &Meta, token: Token) -> Result<Caller, Failure> {
    let found = device_of(meta, token.account, token.device).await?;
    // Without a device the work is the same: a hash, and a comparison that fails.
    let kept = found.as_ref().map_or([0; 32], |(_account, device)| device.token_hash);
    let proven = token.proves(&kept);
    match found {
        Some((account_row, device_row)) if proven && device_row.revoked_ms.is_none() => Ok(Caller {
            account: token.account,
            device: token.device,
            namespace: account_row.namespace,
            account_row,
            device_row,
        }),
        _ => Err(refused()),
    }
}

impl Caller {
    /// Only administrators go on.
    pub(crate) fn require_admin(&self) -> Result<(), Failure> {
        if self.account_row.admin {
            return Ok(());
        }
        let message = "only administrators may do this";
        Err(Failure::new(Code::PermissionDenied, "not-admin", message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_from_either_header() {
        let token = Token::new(AccountId::from_bytes([1; 16]), DeviceId::from_bytes([2; 8]), [3; 32]);
        let bearer = format!("Bearer {}", token.text());
        for (name, value) in [("authorization", bearer), ("keepstone-token", token.text())] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(token_of(&headers).ok().as_ref(), Some(&token), "{name}");
            // Who sends `authorization` means that one.
            headers.insert("authorization", "Bearer x".parse().unwrap());
            assert!(token_of(&headers).is_err(), "{name}");
        }
    }

    #[test]
    fn a_missing_or_malformed_token_is_unauthenticated() {
        let mut headers = HeaderMap::new();
        assert_eq!(token_of(&headers).unwrap_err().code, Code::Unauthenticated);
        for bad in ["", "Bearer", "Bearer x", "Basic eDp5", "Bearer ks1_!!"] {
            headers.insert("authorization", bad.parse().unwrap());
            assert_eq!(token_of(&headers).unwrap_err().code, Code::Unauthenticated, "{bad}");
        }
    }
}
