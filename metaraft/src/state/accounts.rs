//! Accounts, their devices, and whose an email is.
//!
//! Invariants:
//! - An email points to one account, and never to another one later.
//! - An account's and a device's times are the leader's.
//! - An account has at most [`DEVICES_MAX`] devices; the one whose token was revoked first makes room for a new one.
//!
//! Making an account: the email's row first, then the namespace, then the account's row. After a crash in between
//! the email names the account that is to be made: who comes again with it is told that id, and goes on with it.

use engine::ids::{AccountId, DeviceId, email_slot};

use super::keys;
use super::txn::{Group, decode_row, invalid, not_found};
use crate::kv::KeyRange;
use crate::model::command::StepError;
use crate::model::nursery::TokenGuard;
use crate::model::outcome::StepOutcome;
use crate::model::row::{AccountRow, DeviceRow};

/// Bytes of an email (RFC 5321, section 4.5.3.1: 64 + 1 + 255).
const EMAIL_BYTES_MAX: usize = 320;

/// Bytes of an account's or a device's name.
const LABEL_BYTES_MAX: usize = 1024;

/// Devices of an account, those counted whose token was revoked.
const DEVICES_MAX: usize = 1000;

fn check_email(email: &str) -> Result<(), StepError> {
    let lower = email.to_lowercase() == email;
    if email.is_empty() || email.len() > EMAIL_BYTES_MAX || email.chars().any(char::is_control) || !lower {
        return Err(invalid(format!("an email has 1 to {EMAIL_BYTES_MAX} bytes, in lower case")));
    }
    Ok(())
}

fn check_label(label: &str) -> Result<(), StepError> {
    if label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control) {
        return Err(invalid(format!("a name of up to {LABEL_BYTES_MAX} bytes, without control characters")));
    }
    Ok(())
}

impl Group<'_, '_> {
    pub(super) fn email_reserve(
        &mut self,
        email: &str,
        account: AccountId,
    ) -> Result<StepOutcome, StepError> {
        self.own(email_slot(email))?;
        check_email(email)?;
        let key = keys::email(email);
        if let Some(owner) = self.get(&key)? {
            return Ok(StepOutcome::EmailReserved(owner));
        }
        self.put(&key, &account);
        Ok(StepOutcome::EmailReserved(account))
    }

    pub(super) fn account_create(
        &mut self,
        account: AccountId,
        row: &AccountRow,
    ) -> Result<StepOutcome, StepError> {
        self.own(account.slot())?;
        check_email(&row.email)?;
        check_label(&row.name)?;
        let key = keys::account(account);
        if let Some(existing) = self.get::<AccountRow>(&key)? {
            let equal = existing == AccountRow { created_ms: existing.created_ms, ..row.clone() };
            let kind = || "account".to_owned();
            return if equal {
                Ok(StepOutcome::Done)
            } else {
                Err(StepError::AlreadyExists { kind: kind() })
            };
        }
        let row = AccountRow { created_ms: self.wall_ms, ..row.clone() };
        self.put(&key, &row);
        Ok(StepOutcome::Done)
    }

    pub(super) fn device_add(
        &mut self,
        account: AccountId,
        device: DeviceId,
        row: &DeviceRow,
    ) -> Result<StepOutcome, StepError> {
        self.own(account.slot())?;
        check_label(&row.name)?;
        if !self.contains(&keys::account(account)) {
            return Err(not_found("account"));
        }
        let key = keys::device(account, device);
        if let Some(existing) = self.get::<DeviceRow>(&key)? {
            let equal = existing.name == row.name && existing.token_hash == row.token_hash;
            let kind = || "device".to_owned();
            return if equal {
                Ok(StepOutcome::Done)
            } else {
                Err(StepError::AlreadyExists { kind: kind() })
            };
        }
        self.device_make_room(account)?;
        let row = DeviceRow { created_ms: self.wall_ms, revoked_ms: None, ..row.clone() };
        self.put(&key, &row);
        Ok(StepOutcome::Done)
    }

    /// Forgets the device that was revoked first, if there are as many as an account may have.
    fn device_make_room(&mut self, account: AccountId) -> Result<(), StepError> {
        let rows = self.scan_keys(&KeyRange::prefix(&keys::devices(account)), DEVICES_MAX);
        if rows.len() < DEVICES_MAX {
            return Ok(());
        }
        let mut first: Option<(u64, &[u8])> = None;
        for (key, bytes) in &rows {
            if let Some(revoked_ms) = decode_row::<DeviceRow>(key, bytes)?.revoked_ms {
                let this = (revoked_ms, key.as_slice());
                first = Some(first.map_or(this, |first| first.min(this)));
            }
        }
        let Some((_revoked_ms, key)) = first else {
            return Err(StepError::TooMany {
                what: format!("{DEVICES_MAX} devices are signed in; revoke some (`keepstone devices`)"),
            });
        };
        self.delete(key);
        Ok(())
    }

    pub(super) fn device_revoke(
        &mut self,
        account: AccountId,
        device: DeviceId,
    ) -> Result<StepOutcome, StepError> {
        self.own(account.slot())?;
        let key = keys::device(account, device);
        let mut row: DeviceRow = self.get(&key)?.ok_or_else(|| not_found("device"))?;
        if row.revoked_ms.is_none() {
            row.revoked_ms = Some(self.wall_ms);
            self.put(&key, &row);
        }
        Ok(StepOutcome::Done)
    }

    pub(super) fn token_guard(&self, guard: &TokenGuard) -> Result<StepOutcome, StepError> {
        self.own(guard.account.slot())?;
        let row: Option<DeviceRow> = self.get(&keys::device(guard.account, guard.device))?;
        if row.is_some_and(|row| row.token_hash == guard.token_hash && row.revoked_ms.is_none()) {
            Ok(StepOutcome::Done)
        } else {
            Err(StepError::TokenRefused)
        }
    }
}
