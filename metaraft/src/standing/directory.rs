//! What a node keeps of itself, and of others, in its data directory.
//!
//! | where | what | written |
//! | --- | --- | --- |
//! | log database, its own row | incarnation, starts, run, writes | with every batch, once the run has begun |
//! | log database, enrolment | the roster, and which storage nodes remember this node | at enrolment, and when one is new |
//! | `identity` | incarnation, starts and run again | after the run has begun in the database |
//! | `refused` | why this directory must not vote | once, never removed |
//! | `attested` | what other voters say of themselves | when they say something new, once a second at most: [`engine::attestation::file`] |
//!
//! After a crash between the first and the third, the file is behind the database, which is as good. A file that is ahead of
//! the database, or has no database, means that the database was swapped or removed by itself.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use engine::attestation::file::{self, Halves};
use engine::attestation::{Attestation, Attestations, Behind};
use engine::ids::NodeId;
use serde::{Deserialize, Serialize};

use super::prover::{Found, Roster};
use crate::raft::log_database::LogDatabase;
use crate::raft::types::{decode, encode};

#[derive(Default, Serialize, Deserialize)]
struct Enrolment {
    roster: Option<Roster>,
    witnesses: BTreeSet<u64>,
}

/// The files beside the databases.
pub(crate) struct OwnFiles {
    directory: PathBuf,
    attested: Mutex<Halves<File>>,
}

/// What a start found.
pub(crate) struct Opened {
    pub(crate) found: Found,
    /// Why this directory must not vote.
    pub(crate) refused: Option<String>,
    /// What this node holds of other voters.
    pub(crate) attested: Attestations,
}

/// Replaces a small file so that a crash leaves the old one or the new one. Gives the new one, open for writing.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_directory_of(path)?;
    Ok(file)
}

/// Makes the names beside a file durable.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl OwnFiles {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), attested: Mutex::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Reads what there is. Blocks.
    pub(crate) fn open(&self, node: NodeId, log: &LogDatabase) -> io::Result<Opened> {
        let attestation = log.attestation();
        let enrolment: Enrolment =
            log.enrolment()?.map(|bytes| decode(&bytes)).transpose()?.unwrap_or_default();
        let attested = self.attested()?;
        let mut refused =
            read(&self.path("refused"))?.map(|reason| String::from_utf8_lossy(&reason).into_owned());
        let identity = read(&self.path("identity"))?;
        if refused.is_none()
            && let Some(identity) = &identity
            && let Some(behind) = contradiction(log.is_new(), &attestation, identity)
        {
            let reason = format!(
                "metadata node {node} must not vote: the log database in {} is not the one that belongs there: {behind}. \
                 Put it back if it still exists; else leave the node off and replace it by one with a new id",
                self.directory.display()
            );
            // Not for good: the file goes on saying so for as long as it is true.
            refused = Some(reason);
        }
        if identity.is_none() {
            self.identify(&attestation)?;
        }
        let found = Found { attestation, roster: enrolment.roster, witnesses: enrolment.witnesses };
        Ok(Opened { found, refused, attested })
    }

    /// What this node holds of other voters, on disk: a run that was killed may have written it and not synced it.
    fn attested(&self) -> io::Result<Attestations> {
        let path = self.path("attested");
        let Some(bytes) = read(&path)? else {
            return Ok(Attestations::default());
        };
        File::open(&path)?.sync_all()?;
        sync_directory_of(&path)?;
        Ok(file::read(&bytes).unwrap_or_else(|error| {
            // One witness fewer: the others remember too.
            tracing::error!(%error, file = %path.display(), "begun anew");
            Attestations::default()
        }))
    }

    /// Writes the second record of who this node is.
    pub(crate) fn identify(&self, attestation: &Attestation) -> io::Result<()> {
        replace(&self.path("identity"), &attestation.to_bytes()).map(drop)
    }

    /// Makes it last that this directory must not vote.
    pub(crate) fn refuse(&self, reason: &str) -> io::Result<()> {
        replace(&self.path("refused"), reason.as_bytes()).map(drop)
    }

    /// Keeps what this node holds of other voters.
    pub(crate) fn keep(&self, attested: &Attestations) -> io::Result<()> {
        let make = |bytes: &[u8]| replace(&self.path("attested"), bytes);
        let overwrite = |file: &File, offset, bytes: &[u8]| {
            file.write_all_at(bytes, offset)?;
            file.sync_data()
        };
        let mut halves = self.attested.lock().unwrap_or_else(PoisonError::into_inner);
        halves.keep(attested, make, overwrite)
    }
}

/// Notes roster and witnesses.
pub(crate) fn enrol(log: &LogDatabase, roster: Option<Roster>, witnesses: BTreeSet<u64>) -> io::Result<()> {
    log.enrol(&encode(&Enrolment { roster, witnesses })?)
}

/// How the log database contradicts the file beside it.
fn contradiction(new: bool, found: &Attestation, identity: &[u8]) -> Option<Behind> {
    let Some(identity) = Attestation::from_bytes(identity) else {
        // A torn file cannot be: it is replaced whole. Something else lies there.
        return Some(Behind::OtherIncarnation);
    };
    if new || identity.incarnation != found.incarnation {
        return Some(Behind::OtherIncarnation);
    }
    if identity.start > found.start {
        return Some(Behind::OlderStart { found: found.start, held: identity.start });
    }
    if identity.start == found.start && identity.run != found.run {
        return Some(Behind::OtherRun { start: found.start });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(directory: &Path) -> (LogDatabase, Opened) {
        let log = LogDatabase::open(&directory.join("log")).unwrap();
        let opened = OwnFiles::new(directory).open(NodeId(1), &log).unwrap();
        (log, opened)
    }

    fn begin(directory: &Path, log: &LogDatabase) -> Attestation {
        let begun = log.begin().unwrap();
        OwnFiles::new(directory).identify(&begun).unwrap();
        begun
    }

    #[test]
    fn a_directory_remembers_its_incarnation_its_starts_and_its_writes() {
        let scratch = tempfile::tempdir().unwrap();
        let (log, first) = open(scratch.path());
        assert_eq!(first.found.attestation.start, 0);
        let begun = begin(scratch.path(), &log);
        log.write_synced(rocksdb::WriteBatch::default()).unwrap();
        drop(log);
        let (_log, second) = open(scratch.path());
        assert_eq!(second.refused, None);
        assert_eq!(second.found.attestation, Attestation { sequence: 1, ..begun });
        assert_eq!(second.found.attestation.incarnation, first.found.attestation.incarnation);
    }

    #[test]
    fn writes_before_the_run_began_are_not_counted() {
        let scratch = tempfile::tempdir().unwrap();
        let (log, _opened) = open(scratch.path());
        log.write_synced(rocksdb::WriteBatch::default()).unwrap();
        assert_eq!(log.attestation().sequence, 0);
    }

    #[test]
    fn an_older_log_beside_the_identity_is_refused_until_the_right_one_is_put_back() {
        let scratch = tempfile::tempdir().unwrap();
        let (log, _opened) = open(scratch.path());
        begin(scratch.path(), &log);
        drop(log);
        let copy = scratch.path().join("copy");
        copy_all(&scratch.path().join("log"), &copy);
        let (log, _opened) = open(scratch.path());
        begin(scratch.path(), &log);
        drop(log);
        let latest = scratch.path().join("latest");
        std::fs::rename(scratch.path().join("log"), &latest).unwrap();
        std::fs::rename(&copy, scratch.path().join("log")).unwrap();
        let (log, older) = open(scratch.path());
        assert!(older.refused.unwrap().contains("older copy"));
        drop(log);
        std::fs::remove_dir_all(scratch.path().join("log")).unwrap();
        std::fs::rename(&latest, scratch.path().join("log")).unwrap();
        assert_eq!(open(scratch.path()).1.refused, None);
    }

    #[test]
    fn what_is_held_of_others_is_read_after_a_start_whichever_way_it_was_written() {
        let scratch = tempfile::tempdir().unwrap();
        let mut held = Attestations::default();
        for run in 0..3 {
            let (_log, opened) = open(scratch.path());
            assert_eq!(opened.attested, held, "{run}");
            let files = OwnFiles::new(scratch.path());
            for sequence in 0..=run {
                held.tell(
                    NodeId(run),
                    Attestation { incarnation: [1; 16], start: 2, run: [3; 16], sequence },
                );
                files.keep(&held).unwrap();
            }
        }
    }

    #[test]
    fn what_others_refused_stays_refused() {
        let scratch = tempfile::tempdir().unwrap();
        drop(open(scratch.path()));
        OwnFiles::new(scratch.path()).refuse("because").unwrap();
        assert_eq!(open(scratch.path()).1.refused.as_deref(), Some("because"));
    }

    #[test]
    fn a_new_log_beside_an_old_identity_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        drop(open(scratch.path()));
        std::fs::remove_dir_all(scratch.path().join("log")).unwrap();
        assert!(open(scratch.path()).1.refused.unwrap().contains("wiped"));
    }

    fn copy_all(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for file in std::fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}
