//! Accounts and devices, as steps on the metadata cluster.
//!
//! What is there after a crash between the steps of creating an account: the email points to an account id that has
//! no row yet (nobody can sign in); a creation of the same email later goes on with that id. So the steps are
//! EmailReserve, NamespaceCreate, AccountCreate, in this order: whoever can sign in has a tree.

use std::sync::Arc;

use bytes::Bytes;
use engine::hash::sha256_parts;
use engine::ids::{AccountId, DeviceId, NamespaceId, email_slot};
use metaraft::api::{MetaApi, MetaError};
use metaraft::model::command::{DataStep, StepError};
use metaraft::model::outcome::StepOutcome;
use metaraft::model::query::{Query, Reply};
use metaraft::model::request_key::RequestKey;
use metaraft::model::row::{AccountRow, DeviceRow, NamespaceRow};
use proto::v1;
use tonic::Code;

use crate::core::Core;
use crate::door::gate::Origin;
use crate::failure::Failure;
use crate::limits::TEXT_BYTES_MAX;
use crate::meta::{Meta, wrong_reply};
use crate::password::{NO_PASSWORD, Passwords, check_length};
use crate::random;
use crate::token::Token;

/// Bytes of an email address, by RFC 5321.
const EMAIL_BYTES_MAX: usize = 254;

/// Names that are tried for a tree, until one is in its account's slot: that none is has a chance of e^-61.
const NAMES_TRIED_MAX: u32 = 1_000_000;

/// What an account is made of.
#[derive(Clone, Debug)]
pub(crate) struct NewAccount {
    /// Normalised by [`normalise_email`].
    pub(crate) email: String,
    pub(crate) name: String,
    /// In PHC form; [`NO_PASSWORD`] for none.
    pub(crate) password_hash: String,
    /// 0 = no limit.
    pub(crate) quota_bytes: u64,
    pub(crate) admin: bool,
}

/// The administrator that a first start makes, and a signed-in device.
#[derive(Clone, Debug)]
pub struct BootstrapAdmin {
    /// The account.
    pub account: AccountId,
    /// The device.
    pub device: DeviceId,
    /// Its token, as text. Secret.
    pub token: String,
}

/// An email as it is kept: lower case, with one `@` that has something on both sides.
pub(crate) fn normalise_email(email: &str) -> Result<String, Failure> {
    let email = email.trim().to_lowercase();
    let bad = email.len() > EMAIL_BYTES_MAX
        || email.chars().any(|character| character.is_control() || character.is_whitespace())
        || !matches!(email.split_once('@'), Some((user, host)) if !user.is_empty() && !host.is_empty() && !host.contains('@'));
    if bad { Err(Failure::invalid("that is no email address")) } else { Ok(email) }
}

/// A name of a person or device.
pub(crate) fn check_text(what: &str, text: &str) -> Result<(), Failure> {
    if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
        let message = format!("{what}: at most {TEXT_BYTES_MAX} bytes, without control characters");
        return Err(Failure::invalid(message));
    }
    Ok(())
}

fn id_of_request(request: RequestKey) -> AccountId {
    let digest = sha256_parts(&[b"keepstone account\0", request.id.as_bytes()]);
    let mut bytes = [0; AccountId::LENGTH];
    bytes.copy_from_slice(&digest[..AccountId::LENGTH]);
    AccountId::from_bytes(bytes)
}

/// An account's tree is named after it, so that a creation that was broken off goes on with the same one, and is in the
/// account's own slot, so that its tokens are judged where the work is done. One of some 16,384 names is.
fn namespace_of(account: AccountId) -> NamespaceId {
    let named = |number: u32| {
        let digest = sha256_parts(&[b"keepstone namespace\0", account.as_bytes(), &number.to_be_bytes()]);
        let mut bytes = [0; NamespaceId::LENGTH];
        bytes.copy_from_slice(&digest[..NamespaceId::LENGTH]);
        NamespaceId::from_bytes(bytes)
    };
    let in_slot = (0..NAMES_TRIED_MAX).map(named).find(|namespace| namespace.slot() == account.slot());
    in_slot.unwrap_or_else(|| named(0))
}

async fn account_by_email(meta: &Meta, email: &str) -> Result<Option<AccountId>, MetaError> {
    let query = Query::AccountByEmail { email: email.to_owned() };
    match meta.query(email_slot(email), query).await? {
        Reply::AccountId(account) => Ok(account),
        _ => Err(wrong_reply("account by email")),
    }
}

async fn account_row(meta: &Meta, account: AccountId) -> Result<Option<AccountRow>, MetaError> {
    match meta.query(account.slot(), Query::Account { account }).await? {
        Reply::Account(row) => Ok(row),
        _ => Err(wrong_reply("account")),
    }
}

/// Whose the email is after trying to reserve it for `account`.
async fn reserve_email(
    meta: &Meta,
    request: RequestKey,
    email: &str,
    account: AccountId,
) -> Result<AccountId, MetaError> {
    let step = DataStep::EmailReserve { email: email.to_owned(), account };
    match meta.step(email_slot(email), request.step(0), step).await {
        Ok(StepOutcome::EmailReserved(owner)) => Ok(owner),
        Ok(_) => Err(wrong_reply("email")),
        Err(error) => Err(error),
    }
}

/// Makes an account. Repeating it with the same request gives the same account.
pub(crate) async fn create(meta: &Meta, request: RequestKey, new: NewAccount) -> Result<AccountId, Failure> {
    let subject = new.email.clone();
    let failed = |error: MetaError| Failure::from_meta(&error, &subject);
    let taken = || Failure::from_step(&StepError::EmailTaken, &subject);
    let own = id_of_request(request);
    let account = reserve_email(meta, request, &new.email, own).await.map_err(failed)?;
    if account != own && account_row(meta, account).await.map_err(failed)?.is_some() {
        return Err(taken());
    }
    let namespace = namespace_of(account);
    let step = DataStep::NamespaceCreate { namespace, owner: account, quota_bytes: new.quota_bytes };
    meta.step(namespace.slot(), request.step(1), step).await.map_err(failed)?;
    let row = AccountRow {
        email: new.email,
        name: new.name,
        password_hash: new.password_hash,
        namespace,
        admin: new.admin,
        created_ms: 0,
    };
    let step = DataStep::AccountCreate { account, row };
    match meta.step(account.slot(), request.step(2), step).await {
        Ok(_) => Ok(account),
        Err(MetaError::Step(StepError::AlreadyExists { .. })) => Err(taken()),
        Err(error) => Err(failed(error)),
    }
}

/// What an account may keep and what it has, after the quota was changed by a request, if it is to be.
pub(crate) async fn quota(
    meta: &Meta,
    email: String,
    set: Option<(RequestKey, u64)>,
) -> Result<v1::AccountQuotaResponse, Failure> {
    let failed = |error: MetaError| Failure::from_meta(&error, &email);
    let account = account_by_email(meta, &email).await.map_err(failed)?;
    let row = match account {
        Some(account) => account_row(meta, account).await.map_err(failed)?,
        None => None,
    };
    let (Some(account), Some(AccountRow { namespace, .. })) = (account, row) else {
        return Err(Failure::not_found(format!("{email}: there is no such account")));
    };
    if let Some((request, quota_bytes)) = set {
        let step = DataStep::NamespaceQuotaSet { namespace, quota_bytes };
        meta.step(namespace.slot(), request.step(0), step).await.map_err(failed)?;
    }
    match meta.query(namespace.slot(), Query::Namespace { namespace }).await.map_err(failed)? {
        Reply::Namespace(Some(row @ NamespaceRow { quota_bytes, .. })) => {
            let (account, used_bytes) = (Bytes::copy_from_slice(account.as_bytes()), row.charged_bytes());
            Ok(v1::AccountQuotaResponse { account, email, quota_bytes, used_bytes })
        }
        _ => Err(failed(wrong_reply("namespace"))),
    }
}

/// Adds a device, and gives its token.
pub(crate) async fn add_device(meta: &Meta, account: AccountId, name: &str) -> Result<Token, Failure> {
    let token = Token::new(account, DeviceId::from_bytes(random::bytes()), random::bytes());
    let row = DeviceRow { name: name.to_owned(), token_hash: token.hash(), created_ms: 0, revoked_ms: None };
    let step = DataStep::DeviceAdd { account, device: token.device, row };
    meta.step(account.slot(), random::request(), step)
        .await
        .map_err(|error| Failure::from_meta(&error, "sign-in"))?;
    Ok(token)
}

/// An id that no account has, always the same for an email: looking for it costs what looking for an account does.
fn nobody(email: &str) -> AccountId {
    let digest = sha256_parts(&[b"keepstone nobody\0", email.as_bytes()]);
    let mut bytes = [0; AccountId::LENGTH];
    bytes.copy_from_slice(&digest[..AccountId::LENGTH]);
    AccountId::from_bytes(bytes)
}

/// Checks a password, and gives the token of a new device. Whether there is such an account makes no difference to
/// what is done before the answer: two questions to the metadata, and one hash.
pub(crate) async fn sign_in(
    core: &Core,
    origin: Origin,
    email: &str,
    password: String,
    device_name: &str,
) -> Result<Token, Failure> {
    check_text("device name", device_name)?;
    check_text("email", email)?;
    check_length(&password)?;
    let email = normalise_email(email).unwrap_or_else(|_none| email.trim().to_lowercase());
    let turn = core.turns.wait(origin, &email).await?;
    let failed = |error: MetaError| Failure::from_meta(&error, "sign-in");
    let found = async {
        let account = account_by_email(&core.meta, &email).await?;
        let row = account_row(&core.meta, account.unwrap_or_else(|| nobody(&email))).await?;
        Ok((account, row))
    };
    let (account, row) = match found.await {
        Ok(found) => found,
        Err(error) => {
            turn.was_not_used();
            return Err(failed(error));
        }
    };
    let matches = core.passwords.matches(password, row.map(|row| row.password_hash)).await?;
    match account {
        Some(account) if matches => {
            turn.was_right();
            add_device(&core.meta, account, device_name).await
        }
        _ => {
            let message = "the email or the password is wrong";
            Err(Failure::new(Code::Unauthenticated, "unauthenticated", message))
        }
    }
}

/// Makes sure that there is an administrator of that email, and signs in a new device of theirs: what the first
/// start of a cluster needs before there is anybody who could sign in. Needs no running gateway.
///
/// Repeating it after a crash goes on with the same account and adds another device. Without `password` nobody can
/// sign in to the account by password; its devices are all there is.
///
/// # Errors
/// If the metadata cluster does not answer, or the email is that of somebody who is no administrator.
pub async fn bootstrap_admin(
    api: Arc<MetaApi>,
    email: &str,
    name: &str,
    password: Option<&str>,
    device_name: &str,
) -> Result<BootstrapAdmin, Failure> {
    let meta = Meta::new(api);
    let failed = |error: MetaError| Failure::from_meta(&error, email);
    let email = normalise_email(email)?;
    check_text("name", name)?;
    check_text("device name", device_name)?;
    let existing = match account_by_email(&meta, &email).await.map_err(failed)? {
        Some(account) => account_row(&meta, account).await.map_err(failed)?.map(|row| (account, row.admin)),
        None => None,
    };
    let account = match existing {
        Some((account, true)) => account,
        Some((_account, false)) => {
            let message = format!("{email}: there is such an account, but it is no administrator");
            return Err(Failure::precondition("not-admin", message));
        }
        None => {
            let password_hash = match password {
                Some(password) => Passwords::new()?.hash(password.to_owned()).await?,
                None => NO_PASSWORD.to_owned(),
            };
            let new = NewAccount { email, name: name.to_owned(), password_hash, quota_bytes: 0, admin: true };
            create(&meta, random::request().into(), new).await?
        }
    };
    let token = add_device(&meta, account, device_name).await?;
    Ok(BootstrapAdmin { account, device: token.device, token: token.text() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emails_are_kept_in_lower_case() {
        assert_eq!(normalise_email(" Ada@Example.ORG ").unwrap(), "ada@example.org");
        for bad in ["", "ada", "@x", "ada@", "a@b@c", "a b@c", "a\n@c", &format!("{}@x", "a".repeat(300))] {
            assert!(normalise_email(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_follow_from_the_request() {
        let request = RequestKey::from(engine::ids::RequestId::new(1, [2; 16]));
        assert_eq!(id_of_request(request), id_of_request(request));
        assert_ne!(namespace_of(id_of_request(request)).as_bytes(), id_of_request(request).as_bytes());
    }
}
