//! Remembers what was put and what was acknowledged, and judges what reads back.
//!
//! The rule, for one path: what reads back is the last acknowledged content, or one that was tried after it (its
//! acknowledgement may have been lost), whole. Nothing at all is right only if nothing was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::compare::{DIFFERENCES_SHOWN_MAX, file_digest};

type Digest = [u8; 32];

#[derive(Debug)]
struct Attempt {
    digest: Digest,
    acknowledged: bool,
}

/// Names one attempt.
#[derive(Debug, Clone)]
pub struct AttemptId {
    path: String,
    index: usize,
}

/// What [`Ledger::check`] found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Paths of which some content was acknowledged; all are there.
    pub acknowledged: usize,
    /// Paths that are there though nothing was acknowledged; all are whole.
    pub unacknowledged: usize,
}

/// All attempts, by path below the ledger's root, in order. Shared by the threads that put.
#[derive(Debug, Default)]
pub struct Ledger {
    files: Mutex<BTreeMap<String, Vec<Attempt>>>,
}

impl Ledger {
    fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<Attempt>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A put of `digest` at `path` begins. Attempts at one path follow one another.
    pub fn begin(&self, path: &str, digest: Digest) -> AttemptId {
        let mut files = self.files();
        let attempts = files.entry(path.to_owned()).or_default();
        attempts.push(Attempt { digest, acknowledged: false });
        AttemptId { path: path.to_owned(), index: attempts.len() - 1 }
    }

    /// The put was acknowledged.
    pub fn acknowledge(&self, attempt: &AttemptId) {
        if let Some(found) =
            self.files().get_mut(&attempt.path).and_then(|attempts| attempts.get_mut(attempt.index))
        {
            found.acknowledged = true;
        }
    }

    /// How many attempts were acknowledged.
    #[must_use]
    pub fn acknowledged_count(&self) -> usize {
        self.files().values().flatten().filter(|attempt| attempt.acknowledged).count()
    }

    /// Judges a local copy of the tree.
    ///
    /// # Errors
    /// If a file is lost, wrong, half there, or was never put; the message names them.
    pub fn check(&self, copy: &Path) -> anyhow::Result<Checked> {
        let found = digests(copy)?;
        let files = self.files();
        let mut wrong = Vec::new();
        let mut checked = Checked { acknowledged: 0, unacknowledged: 0 };
        for (path, attempts) in files.iter() {
            let last = attempts.iter().rposition(|attempt| attempt.acknowledged);
            let allowed = &attempts[last.unwrap_or(0)..];
            match (found.get(path), last) {
                (None, Some(_)) => wrong.push(format!("{path}: acknowledged and lost")),
                (None, None) => {}
                (Some(digest), _) if !allowed.iter().any(|attempt| attempt.digest == *digest) => {
                    let earlier = attempts.iter().any(|attempt| attempt.digest == *digest);
                    let what = if earlier { "an earlier version is current again" } else { "wrong bytes" };
                    wrong.push(format!("{path}: {what}"));
                }
                (Some(_), Some(_)) => checked.acknowledged += 1,
                (Some(_), None) => checked.unacknowledged += 1,
            }
        }
        let known: BTreeSet<&String> = files.keys().collect();
        wrong.extend(
            found.keys().filter(|path| !known.contains(path)).map(|path| format!("{path}: never put")),
        );
        if wrong.is_empty() {
            return Ok(checked);
        }
        let mut text = format!("{} of {} paths are wrong:", wrong.len(), files.len());
        for line in wrong.iter().take(DIFFERENCES_SHOWN_MAX) {
            write!(text, "\n{line}")?;
        }
        anyhow::bail!(text)
    }
}

fn digests(root: &Path) -> anyhow::Result<BTreeMap<String, Digest>> {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry?;
        if entry.file_type().is_file() {
            let path = entry.path().strip_prefix(root)?.to_string_lossy().into_owned();
            found.insert(path, file_digest(entry.path())?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};

    fn digest(text: &str) -> Digest {
        Sha256::digest(text.as_bytes()).into()
    }

    fn verdict(setup: impl Fn(&Ledger), there: Option<&str>) -> bool {
        let scratch = tempfile::tempdir().unwrap();
        let ledger = Ledger::default();
        setup(&ledger);
        if let Some(text) = there {
            std::fs::write(scratch.path().join("f"), text).unwrap();
        }
        ledger.check(scratch.path()).is_ok()
    }

    #[test]
    fn the_rule_is_kept() {
        let acknowledged = |ledger: &Ledger| ledger.acknowledge(&ledger.begin("f", digest("one")));
        let then_tried = |ledger: &Ledger| {
            acknowledged(ledger);
            ledger.begin("f", digest("two"));
        };
        let twice = |ledger: &Ledger| {
            then_tried(ledger);
            ledger.acknowledge(&ledger.begin("f", digest("three")));
        };
        assert!(verdict(acknowledged, Some("one")));
        assert!(!verdict(acknowledged, Some("on")), "half there");
        assert!(!verdict(acknowledged, None), "lost");
        assert!(verdict(then_tried, Some("one")));
        assert!(verdict(then_tried, Some("two")));
        assert!(!verdict(then_tried, None), "lost");
        assert!(verdict(twice, Some("three")));
        assert!(!verdict(twice, Some("one")), "went back");
        assert!(verdict(|ledger| drop(ledger.begin("f", digest("one"))), None));
        assert!(!verdict(|_| (), Some("one")), "never put");
    }
}
