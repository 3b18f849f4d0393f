//! Who calls: device tokens, checked against the cluster with every request.
//!
//! Invariants:
//! - A token is checked by a linearizable read, so a revoked one stops with the next request; streams check theirs
//!   again every [`STREAM_RECHECK`].
//! - All ways in which a token can be wrong look alike from outside.

use std::time::Instant;

use engine::ids::{AccountId, DeviceId, NamespaceId};
use metaraft::model::query::{Query, Reply};
use metaraft::model::row::{AccountRow, DeviceRow};
use tonic::Code;
use tonic::metadata::MetadataMap;

use crate::failure::Failure;
use crate::limits::STREAM_RECHECK;
use crate::meta::{Meta, wrong_reply};
use crate::token::Token;

/// An authenticated caller.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) account: AccountId,
    pub(crate) device: DeviceId,
    pub(crate) namespace: NamespaceId,
    pub(crate) account_row: AccountRow,
    pub(crate) device_row: DeviceRow,
    token: Token,
    checked: Instant,
}

fn refused() -> Failure {
    let message = "the token is wrong or has been revoked; sign in again (`keepstone login`)";
    Failure::new(Code::Unauthenticated, "unauthenticated", message)
}

fn token_of(metadata: &MetadataMap) -> Result<Token, Failure> {
    let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
    let text = header.and_then(|header| header.strip_prefix("Bearer ")).ok_or_else(|| {
        let message = "no token; send it as `authorization: Bearer TOKEN`";
        Failure::new(Code::Unauthenticated, "unauthenticated", message)
    })?;
    Token::parse(text.trim()).ok_or_else(refused)
}

/// The caller of a request.
pub(crate) async fn caller(meta: &Meta, metadata: &MetadataMap) -> Result<Caller, Failure> {
    check(meta, token_of(metadata)?).await
}

async fn check(meta: &Meta, token: Token) -> Result<Caller, Failure> {
    let checked = Instant::now();
    let query = Query::Device { account: token.account, device: token.device };
    let found = match meta.query(token.account.slot(), query).await {
        Ok(Reply::Device(found)) => found,
        Ok(_) => return Err(Failure::from_meta(&wrong_reply("device"), "sign-in")),
        Err(error) => return Err(Failure::from_meta(&error, "sign-in")),
    };
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
            token,
            checked,
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

    /// For streams: checks the token again if the last check is old.
    pub(crate) async fn recheck(&mut self, meta: &Meta) -> Result<(), Failure> {
        if self.checked.elapsed() >= STREAM_RECHECK {
            *self = check(meta, self.token.clone()).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_malformed_token_is_unauthenticated() {
        let mut metadata = MetadataMap::new();
        assert_eq!(token_of(&metadata).unwrap_err().code, Code::Unauthenticated);
        for bad in ["", "Bearer", "Bearer x", "Basic eDp5", "Bearer ks1_!!"] {
            metadata.insert("authorization", bad.parse().unwrap());
            assert_eq!(token_of(&metadata).unwrap_err().code, Code::Unauthenticated, "{bad}");
        }
    }
}
