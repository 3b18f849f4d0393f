//! The state against models of what it must say, and what becomes of damaged files.

mod answers;
mod damage;
mod deletes;
mod journal;
mod trees;
mod went_back;

use super::database::State;

/// A state in a folder of its own.
pub(super) fn fresh() -> (tempfile::TempDir, State) {
    let folder = tempfile::tempdir().unwrap();
    let opened = State::open(folder.path()).unwrap();
    assert!(opened.rebuilt.is_none());
    (folder, opened.state)
}

/// A seed: of the environment, or a new one; printed, so that a failure can be repeated.
fn seed() -> u64 {
    let seed = std::env::var("KEEPSTONE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("KEEPSTONE_SEED={seed}");
    seed
}
