//! Passwords: argon2id, off the async workers, a few at a time.
//!
//! Invariants:
//! - Checking costs the same whether or not there is an account: an absent hash is replaced by one that nothing
//!   matches.
//! - At most [`PASSWORDS_AT_ONCE_MAX`] are hashed at once (some 19 MiB each). Who waits is bounded by who asks:
//!   sign-ins have turns, other requests are bounded by account.

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use tokio::sync::Semaphore;

use crate::failure::Failure;
use crate::limits::{PASSWORDS_AT_ONCE_MAX, TEXT_BYTES_MAX};
use crate::random;

/// In place of a password hash: nothing matches it.
pub(crate) const NO_PASSWORD: &str = "";

/// Hashes and checks passwords.
#[derive(Clone)]
pub(crate) struct Passwords {
    at_once: Arc<Semaphore>,
    /// A hash of something that nobody knows, made like all others.
    decoy: Arc<str>,
}

impl Passwords {
    /// Takes as long as hashing one password.
    pub(crate) fn new() -> Result<Self, Failure> {
        let decoy = hash_now(&hex::encode(random::bytes::<32>()))?;
        Ok(Self { at_once: Arc::new(Semaphore::new(PASSWORDS_AT_ONCE_MAX)), decoy: decoy.into() })
    }

    /// The PHC string of a new password.
    pub(crate) async fn hash(&self, password: String) -> Result<String, Failure> {
        check_length(&password)?;
        self.run(move || hash_now(&password)).await?
    }

    /// Whether `password` is the one that `hash` was made of; costs the same without a hash.
    pub(crate) async fn matches(&self, password: String, hash: Option<String>) -> Result<bool, Failure> {
        check_length(&password)?;
        let decoy = Arc::clone(&self.decoy);
        self.run(move || {
            let known = hash.as_deref().and_then(|hash| PasswordHash::new(hash).ok());
            let is_known = known.is_some();
            let Some(hash) = known.or_else(|| PasswordHash::new(&decoy).ok()) else { return false };
            Argon2::default().verify_password(password.as_bytes(), &hash).is_ok() && is_known
        })
        .await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
        let running = Arc::clone(&self.at_once).acquire_owned().await;
        let running = running.map_err(|closed| Failure::internal("password", &closed))?;
        // The permit goes with the work: a caller that is dropped does not let more of it start.
        tokio::task::spawn_blocking(move || {
            let result = work();
            drop(running);
            result
        })
        .await
        .map_err(|error| Failure::internal("password", &error))
    }
}

/// Refuses what is no password, before any work.
pub(crate) fn check_length(password: &str) -> Result<(), Failure> {
    if password.is_empty() || password.len() > TEXT_BYTES_MAX {
        return Err(Failure::invalid(format!("a password has 1 to {TEXT_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn hash_now(password: &str) -> Result<String, Failure> {
    let salt = SaltString::encode_b64(&random::bytes::<16>())
        .map_err(|error| Failure::internal("password salt", &error))?;
    Argon2::default()
        .hash_password(password.as_bytes(), &salt)
        .map(|hash| hash.to_string())
        .map_err(|error| Failure::internal("password hash", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_matches() {
        let passwords = Passwords::new().unwrap();
        let hash = passwords.hash("correct horse".into()).await.unwrap();
        assert!(passwords.matches("correct horse".into(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.matches("battery".into(), Some(hash)).await.unwrap());
        assert!(!passwords.matches("battery".into(), None).await.unwrap());
        assert!(!passwords.matches("x".into(), Some(NO_PASSWORD.into())).await.unwrap());
    }

    #[tokio::test]
    async fn absurd_passwords_are_refused_before_any_work() {
        let passwords = Passwords::new().unwrap();
        assert!(passwords.hash(String::new()).await.is_err());
        assert!(passwords.matches("x".repeat(TEXT_BYTES_MAX + 1), None).await.is_err());
    }
}
