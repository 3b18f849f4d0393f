//! Whether this node may vote: proven by others before it does, and lost for good once anyone knows better.
//!
//! A voter whose directory was wiped, swapped or put back from an older copy must neither vote nor found a group: what
//! it acknowledged, and no longer has, may be all that keeps a committed entry. Its own disk cannot tell. So others do:
//! see [`engine::attestation`] for what they remember, [`prover`] for the decision, [`attester`] for the shell.

pub(crate) mod attester;
pub(crate) mod directory;
pub(crate) mod prover;
#[cfg(test)]
mod simulation;
