//! Passwords: argon2id, off the async workers, a few at a time.
//!
//! Invariants:
//! - Checking costs the same whether or not there is an account: an absent hash is replaced by one that nothing
//!   matches.
//! - [`at_once`] are hashed at once, each by a thread of its own, which runs when nobody who serves wants to: a flood of
//!   sign-ins takes the time that others leave. Where they leave none, as many threads more do the same work with a
//!   share of the time, and the first answer is taken. Who waits is bounded by who asks: sign-ins have turns, other
//!   requests are bounded by account.
//! - Each thread keeps its workspace of some 19 MiB and uses it again: freed, each thread that ever hashed would leave
//!   some of that with the allocator, for good.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::{Output, ParamsString, PasswordHash, SaltString};
use argon2::{Algorithm, Argon2, Block, Params, Version};

use crate::failure::Failure;
use crate::limits::{PASSWORDS_AT_ONCE_MAX, TEXT_BYTES_MAX};
use crate::random;
use crate::workers::{Importance, Unfinished, Workers};

/// In place of a password hash: nothing matches it.
pub(crate) const NO_PASSWORD: &str = "";

/// Memory that one hash is made in.
type Workspace = Vec<Block>;

/// The share of the time that hashing has where nothing is left to it.
const SHARE: Importance = Importance::Nice(15);
/// How long no password is hashed before that is so.
const NOTHING_LEFT_AFTER: Duration = Duration::from_millis(250);

/// How many are hashed at once.
pub(crate) fn at_once() -> usize {
    at_once_of(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

/// Half of the processors, for a hash fills a processor's caches beside its time.
fn at_once_of(processors: usize) -> usize {
    (processors / 2).clamp(1, PASSWORDS_AT_ONCE_MAX)
}

/// Who hashes.
struct Threads {
    /// They take what others leave of the processors' time.
    idle: Workers<Workspace>,
    /// They have a share of it.
    sharing: Workers<Workspace>,
}

impl Threads {
    fn start() -> std::io::Result<Self> {
        let idle = Workers::start("password", at_once(), Importance::Idle)?;
        Ok(Self { idle, sharing: Workers::start("password-due", at_once(), SHARE)? })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Workspace) -> T + Send + Sync + 'static,
    ) -> Result<T, Unfinished> {
        let work = Arc::new(work);
        let again = Arc::clone(&work);
        let mut done = std::pin::pin!(self.idle.run(move |workspace| work(workspace)));
        tokio::select! {
            biased;
            done = &mut done => return done,
            () = self.idle.stand_still(NOTHING_LEFT_AFTER) => {}
        }
        tokio::select! {
            biased;
            done = done => done,
            done = self.sharing.run(move |workspace| again(workspace)) => done,
        }
    }
}

/// Hashes and checks passwords.
#[derive(Clone)]
pub(crate) struct Passwords {
    threads: Arc<Threads>,
    /// What looks like a hash, and is of nothing that anybody knows.
    decoy: Arc<str>,
}

impl Passwords {
    /// Starts the threads; hashes nothing yet.
    ///
    /// # Errors
    /// If the machine gives no threads.
    pub(crate) fn new() -> Result<Self, Failure> {
        let decoy = text_of(&salt()?, Output::new(&random::bytes::<{ Params::DEFAULT_OUTPUT_LEN }>()))?;
        let threads = Threads::start().map_err(|error| internal(&error))?;
        Ok(Self { threads: Arc::new(threads), decoy: decoy.into() })
    }

    /// The PHC string of a new password.
    pub(crate) async fn hash(&self, password: String) -> Result<String, Failure> {
        check_length(&password)?;
        self.run(move |workspace| {
            let salt = salt()?;
            let mut bytes = [0; 64];
            let salted = salt.as_salt().decode_b64(&mut bytes).map_err(|error| internal(&error))?;
            text_of(&salt, output(&Argon2::default(), password.as_bytes(), salted, workspace))
        })
        .await?
    }

    /// Whether `password` is the one that `hash` was made of; costs the same without a hash.
    pub(crate) async fn matches(&self, password: String, hash: Option<String>) -> Result<bool, Failure> {
        check_length(&password)?;
        let decoy = Arc::clone(&self.decoy);
        self.run(move |workspace| {
            let known = hash.as_deref().and_then(|hash| PasswordHash::new(hash).ok());
            let is_known = known.is_some();
            let Some(hash) = known.or_else(|| PasswordHash::new(&decoy).ok()) else { return false };
            verify(password.as_bytes(), &hash, workspace).unwrap_or(false) && is_known
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Workspace) -> T + Send + Sync + 'static,
    ) -> Result<T, Failure> {
        self.threads.run(work).await.map_err(|error| internal(&error))
    }
}

fn internal(error: &dyn std::error::Error) -> Failure {
    Failure::internal("password", &error)
}

/// Refuses what is no password, before any work.
pub(crate) fn check_length(password: &str) -> Result<(), Failure> {
    if password.is_empty() || password.len() > TEXT_BYTES_MAX {
        return Err(Failure::invalid(format!("a password has 1 to {TEXT_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn salt() -> Result<SaltString, Failure> {
    SaltString::encode_b64(&random::bytes::<16>()).map_err(|error| internal(&error))
}

/// What is kept of a password that was hashed by [`Argon2::default`].
fn text_of(salt: &SaltString, output: argon2::password_hash::Result<Output>) -> Result<String, Failure> {
    let text = || -> argon2::password_hash::Result<String> {
        let hash = PasswordHash {
            algorithm: Algorithm::default().ident(),
            version: Some(Version::default().into()),
            params: ParamsString::try_from(&Params::default())?,
            salt: Some(salt.as_salt()),
            hash: Some(output?),
        };
        Ok(hash.to_string())
    };
    text().map_err(|error| internal(&error))
}

/// What argon2 makes of a password.
fn output(
    argon2: &Argon2<'_>,
    password: &[u8],
    salt: &[u8],
    workspace: &mut Workspace,
) -> argon2::password_hash::Result<Output> {
    let blocks = argon2.params().block_count();
    if workspace.len() < blocks {
        workspace.resize(blocks, Block::default());
    }
    let length = argon2.params().output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN);
    Output::init_with(length, |out| {
        Ok(argon2.hash_password_into_with_memory(password, salt, out, &mut workspace[..blocks])?)
    })
}

/// Whether a password is the one of `hash`; compared in constant time.
fn verify(
    password: &[u8],
    hash: &PasswordHash<'_>,
    workspace: &mut Workspace,
) -> argon2::password_hash::Result<bool> {
    let (Some(salt), Some(expected)) = (hash.salt, hash.hash) else { return Ok(false) };
    let version = hash.version.map(Version::try_from).transpose()?.unwrap_or_default();
    let argon2 = Argon2::new(Algorithm::try_from(hash.algorithm)?, version, Params::try_from(hash)?);
    let mut bytes = [0; 64];
    let salt = salt.decode_b64(&mut bytes)?;
    Ok(output(&argon2, password, salt, workspace)? == expected)
}

#[cfg(test)]
mod tests {
    use argon2::{PasswordHasher as _, PasswordVerifier as _};
    use futures_util::future::join_all;

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
    async fn hashes_are_those_of_the_standard_form_whoever_makes_or_checks_them() {
        let passwords = Passwords::new().unwrap();
        let salt = SaltString::encode_b64(&[7; 16]).unwrap();
        let theirs = Argon2::default().hash_password(b"correct horse", &salt).unwrap().to_string();
        assert!(passwords.matches("correct horse".into(), Some(theirs)).await.unwrap());
        let ours = passwords.hash("correct horse".into()).await.unwrap();
        let ours = PasswordHash::new(&ours).unwrap();
        Argon2::default().verify_password(b"correct horse", &ours).unwrap();
        Argon2::default().verify_password(b"battery", &ours).unwrap_err();
        // Larger and smaller ones than ours take and leave the same workspaces.
        let params = Params::new(64 * 1024, 1, 1, None).unwrap();
        let large = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let large = large.hash_password(b"correct horse", &salt).unwrap().to_string();
        assert!(passwords.matches("correct horse".into(), Some(large.clone())).await.unwrap());
        assert!(!passwords.matches("battery".into(), Some(large)).await.unwrap());
        assert!(passwords.matches("correct horse".into(), Some(ours.to_string())).await.unwrap());
    }

    #[tokio::test]
    async fn many_at_once_are_all_answered_also_those_whose_neighbours_gave_up() {
        let passwords = Passwords::new().unwrap();
        for _gives_up in 0..20 {
            let given_up = passwords.matches("battery".into(), None);
            drop(tokio::time::timeout(Duration::ZERO, given_up).await);
        }
        let checks = (0..20).map(|_check| passwords.matches("battery".into(), None));
        assert!(join_all(checks).await.into_iter().all(|matches| !matches.unwrap()));
        assert_eq!(passwords.threads.idle.count(), at_once());
        assert_eq!([1, 2, 3, 4, 64].map(at_once_of), [1, 1, 1, 2, 2]);
    }

    #[tokio::test]
    async fn where_nothing_is_left_they_are_hashed_all_the_same() {
        let passwords = Passwords::new().unwrap();
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        let starve = || {
            let held = Arc::clone(&held);
            passwords.threads.idle.run(move |_workspace| held.lock().unwrap().recv().is_ok())
        };
        let starved = join_all((0..at_once()).map(|_thread| starve()));
        let checks = async {
            let hash = passwords.hash("correct horse".into()).await.unwrap();
            let checks = ["correct horse", "battery"]
                .map(|password| passwords.matches(password.into(), Some(hash.clone())));
            let checks = join_all(checks).await;
            drop(hold);
            checks.into_iter().map(Result::unwrap).collect::<Vec<_>>()
        };
        let both = async { tokio::join!(starved, checks) };
        let (_starved, checked) = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
        assert_eq!(checked, [true, false]);
    }

    #[tokio::test]
    async fn absurd_passwords_are_refused_before_any_work() {
        let passwords = Passwords::new().unwrap();
        assert!(passwords.hash(String::new()).await.is_err());
        assert!(passwords.matches("x".repeat(TEXT_BYTES_MAX + 1), None).await.is_err());
    }
}
