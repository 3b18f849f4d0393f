//! What a disk knows of itself over its starts: one small file beside the superblock, replaced whole.
//!
//! It holds how often the disk was started, a random number for each start, how many records had been appended, what
//! the cluster has ordered (history, epochs), and whether the disk was fenced.
//!
//! Invariants:
//! - Each start is written here before anything is appended in it. The cluster remembers the start that it confirmed
//!   last: a directory whose lineage lacks that one is an older copy.
//! - Epochs and the history are durable here before anybody is refused by them, and outlive the index.
//! - The record count here is never below one that can no longer be found in the extents: it is raised before the
//!   last record is removed.
//! - A fence is here, or in the node's own directory if the disk takes no more writes, until the operator has had the
//!   disk verified.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use engine::ids::{DiskId, Epoch, VolumeId};
use serde::{Deserialize, Serialize};

use crate::files;

/// The file within a disk's directory.
pub(crate) const LOGBOOK_FILE: &str = "logbook";

/// The directory within a node's data directory that remembers fenced disks, one file each.
const FENCES_DIRECTORY: &str = "fenced";

const FORMAT: u32 = 1;

/// Starts that are remembered since the last one that was confirmed; beyond that the second oldest is forgotten.
const LINEAGE_MAX: usize = 256;

/// Bytes of a reason that are kept.
const REASON_BYTES_MAX: usize = 1024;

/// A start that was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    incarnation: u64,
    /// Records that it found.
    sequence_opened: u64,
}

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Page {
    format: u32,
    starts: u64,
    /// The last start that was confirmed, and those after it.
    lineage: Vec<Begun>,
    confirmed: bool,
    sequence_floor: u64,
    verified_starts: u64,
    fenced: Option<String>,
    history: u64,
    epochs: BTreeMap<u64, u32>,
    /// CRC-32 of the JSON of all this with 0 here.
    crc32: u32,
}

impl Page {
    fn new() -> Self {
        Self {
            format: FORMAT,
            starts: 0,
            lineage: Vec::new(),
            confirmed: true,
            sequence_floor: 0,
            verified_starts: 0,
            fenced: None,
            history: 0,
            epochs: BTreeMap::new(),
            crc32: 0,
        }
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let mut page = Self { crc32: 0, ..self.clone() };
        page.crc32 = crc32fast::hash(&serde_json::to_vec(&page)?);
        Ok(serde_json::to_vec_pretty(&page)?)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let page: Self = serde_json::from_slice(bytes).ok()?;
        let unsigned = serde_json::to_vec(&Self { crc32: 0, ..page.clone() }).ok()?;
        (page.format == FORMAT && page.crc32 == crc32fast::hash(&unsigned)).then_some(page)
    }
}

/// A start, as it is reported to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Start {
    /// Which one, from 1; 0 if it could not be written down, so that nothing is to be told of it.
    pub starts: u64,
    /// Its random number.
    pub incarnation: u64,
    /// Those that it descends from; empty once it is confirmed.
    pub lineage: Vec<u64>,
    /// Records appended so far.
    pub sequence: u64,
    /// For each of them, the fewest records that any start after it found. (The cluster may have confirmed a start that
    /// could not note it: whatever that one appended must be there since.)
    pub lineage_opened: Vec<u64>,
    /// The operator had the disk verified after so many starts.
    pub verified_starts: u64,
}

/// The logbook of a disk.
#[derive(Debug)]
pub(crate) struct Logbook {
    file: PathBuf,
    /// Where the node remembers that this disk is fenced, if it has a place for that.
    fence: Option<PathBuf>,
    page: Page,
    /// Whether this start stands in the file.
    begun: bool,
}

/// The node's own note that `disk` is fenced.
fn fence_file(data_dir: &Path, disk: DiskId) -> PathBuf {
    data_dir.join(FENCES_DIRECTORY).join(disk.to_string())
}

fn shorten(reason: &str) -> String {
    reason.chars().take(REASON_BYTES_MAX / 4).collect()
}

impl Logbook {
    /// Reads the logbook of `disk`; a disk without one has never been started. One that is damaged counts as absent:
    /// the cluster then finds that this start descends from none that it knows.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn load(directory: &Path, data_dir: Option<&Path>, disk: DiskId) -> io::Result<Self> {
        let file = directory.join(LOGBOOK_FILE);
        let page = match std::fs::read(&file) {
            Ok(bytes) => Page::decode(&bytes).unwrap_or_else(|| {
                tracing::error!(%disk, file = %file.display(), "the disk's logbook is damaged");
                Page::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Page::new(),
            Err(error) => return Err(error),
        };
        let fence = data_dir.map(|data_dir| fence_file(data_dir, disk));
        Ok(Self { file, fence, page, begun: false })
    }

    /// Why the disk is fenced, as an earlier start left it written.
    pub(crate) fn fenced(&self) -> Option<String> {
        let beside = || {
            let path = self.fence.as_ref()?;
            match std::fs::read_to_string(path) {
                Ok(reason) => Some(reason),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => Some(format!("{}: {error}", path.display())),
            }
        };
        self.page.fenced.clone().or_else(beside)
    }

    fn write(&self, page: &Page) -> io::Result<()> {
        files::replace_durably(&self.file, &page.encode()?)
    }

    fn change(&mut self, change: impl FnOnce(&mut Page)) -> io::Result<()> {
        let mut page = self.page.clone();
        change(&mut page);
        if page != self.page {
            self.write(&page)?;
            self.page = page;
        }
        Ok(())
    }

    /// Writes down that the disk is started now, with `sequence` records.
    ///
    /// # Errors
    /// If it cannot be written: then this start is not to be told of.
    pub(crate) fn begin(&mut self, sequence: u64) -> io::Result<()> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let sequence = sequence.max(self.page.sequence_floor);
        self.change(|page| {
            page.starts += 1;
            if page.lineage.len() >= LINEAGE_MAX {
                // What it found is still to count.
                let forgotten = page.lineage.remove(1);
                if let Some(next) = page.lineage.get_mut(1) {
                    next.sequence_opened = next.sequence_opened.min(forgotten.sequence_opened);
                }
            }
            let incarnation = u64::from_le_bytes(random).max(1);
            page.lineage.push(Begun { incarnation, sequence_opened: sequence });
            page.sequence_floor = sequence;
            page.confirmed = false;
        })?;
        self.begun = true;
        Ok(())
    }

    /// The cluster has confirmed this start.
    ///
    /// # Errors
    /// If it cannot be written: it is told again.
    pub(crate) fn confirm(&mut self) -> io::Result<()> {
        self.change(|page| {
            page.confirmed = true;
            page.lineage.drain(..page.lineage.len().saturating_sub(1));
        })
    }

    /// This start, with `sequence` records by now.
    pub(crate) fn start(&self, sequence: u64) -> Start {
        if !self.begun {
            return Start::default();
        }
        let Some((own, before)) = self.page.lineage.split_last() else { return Start::default() };
        let mut fewest = own.sequence_opened;
        let mut lineage_opened = Vec::with_capacity(before.len());
        for begun in before.iter().rev() {
            lineage_opened.push(fewest);
            fewest = fewest.min(begun.sequence_opened);
        }
        lineage_opened.reverse();
        Start {
            starts: self.page.starts,
            incarnation: own.incarnation,
            lineage: before.iter().map(|begun| begun.incarnation).collect(),
            lineage_opened,
            sequence,
            verified_starts: self.page.verified_starts,
        }
    }

    /// Records that had been appended, at least.
    pub(crate) fn sequence_floor(&self) -> u64 {
        self.page.sequence_floor
    }

    /// Writes down that `sequence` records have been appended.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn raise_floor(&mut self, sequence: u64) -> io::Result<()> {
        self.change(|page| page.sequence_floor = page.sequence_floor.max(sequence))
    }

    /// The history that the disk obeys; 0 if it was told of none.
    pub(crate) fn history(&self) -> u64 {
        self.page.history
    }

    /// Epochs that volumes were raised to.
    pub(crate) fn epochs(&self) -> BTreeMap<VolumeId, Epoch> {
        self.page.epochs.iter().map(|(volume, epoch)| (VolumeId(*volume), Epoch(*epoch))).collect()
    }

    /// Obeys `history` and these epochs from now on, where they are higher than what is known.
    ///
    /// # Errors
    /// If it cannot be written: then nothing has changed.
    pub(crate) fn raise_authority(&mut self, history: u64, epochs: &[(VolumeId, Epoch)]) -> io::Result<()> {
        self.change(|page| {
            page.history = page.history.max(history);
            for (volume, epoch) in epochs {
                let known = page.epochs.entry(volume.0).or_default();
                *known = epoch.0.max(*known);
            }
        })
    }

    /// Writes down that the disk is fenced: on the disk, or else in the node's own directory. The first reason stays.
    /// Where neither can be written the fence ends with the process, unless the cluster has heard of it.
    pub(crate) fn fence(&mut self, reason: &str) {
        if self.fenced().is_some() {
            return;
        }
        let reason = shorten(reason);
        let on_disk = self.change(|page| page.fenced = Some(reason.clone()));
        if let Err(error) = &on_disk {
            // What the failed write left may be read as written: it is not relied on.
            self.page.fenced = Some(reason.clone());
            tracing::warn!(%error, file = %self.file.display(), "the disk cannot note that it is fenced");
        }
        let Some(beside) = &self.fence else { return };
        let noted = beside.parent().map_or(Ok(()), files::create_directory_durably);
        if let Err(error) = noted.and_then(|()| files::replace_durably(beside, reason.as_bytes())) {
            tracing::error!(%error, file = %beside.display(), "the node cannot note that a disk is fenced");
        }
    }

    /// Lifts the fence: every record has been verified from the medium.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn lift_fence(&mut self) -> io::Result<()> {
        let mut page = self.page.clone();
        page.fenced = None;
        page.verified_starts = page.starts.max(1);
        self.write(&page)?;
        self.page = page;
        match self.fence.as_ref().map(std::fs::remove_file) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _gone => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DiskId = DiskId::from_bytes([7; 16]);

    fn load(directory: &Path) -> Logbook {
        Logbook::load(directory, None, DISK).unwrap()
    }

    #[test]
    fn starts_are_counted_and_descend_from_the_last_that_was_confirmed() {
        let scratch = tempfile::tempdir().unwrap();
        let mut first = load(scratch.path());
        assert_eq!(first.start(0), Start::default(), "not begun, nothing to tell");
        first.begin(5).unwrap();
        let told = first.start(6);
        assert_eq!((told.starts, told.sequence), (1, 6));
        assert!(told.lineage.is_empty());
        first.confirm().unwrap();

        let mut second = load(scratch.path());
        second.begin(9).unwrap();
        let again = second.start(9);
        assert_eq!(again.starts, 2);
        assert_eq!((again.lineage, again.lineage_opened), (vec![told.incarnation], vec![9]));
        // Not confirmed: what the next start finds is not taken for what the disk always had, but for what the one
        // before it left.
        let mut third = load(scratch.path());
        third.begin(20).unwrap();
        assert_eq!(third.start(20).lineage, vec![told.incarnation, again.incarnation]);
        assert_eq!(third.start(20).lineage_opened, vec![9, 20]);
        third.confirm().unwrap();
        assert!(third.start(20).lineage.is_empty());
    }

    #[test]
    fn many_starts_that_nobody_confirms_keep_the_one_that_was() {
        let scratch = tempfile::tempdir().unwrap();
        let mut logbook = load(scratch.path());
        logbook.begin(0).unwrap();
        logbook.confirm().unwrap();
        let confirmed = logbook.start(0).incarnation;
        for found in [3].into_iter().chain(7..LINEAGE_MAX as u64 + 12) {
            logbook.begin(found).unwrap();
        }
        let start = logbook.start(0);
        assert_eq!((start.lineage.first(), start.lineage_opened.first()), (Some(&confirmed), Some(&3)));
        assert_eq!((start.lineage.len(), start.lineage_opened.len()), (LINEAGE_MAX - 1, LINEAGE_MAX - 1));
    }

    #[test]
    fn a_fence_outlives_the_process_on_the_disk_or_beside_it() {
        let scratch = tempfile::tempdir().unwrap();
        let (disk, node) = (scratch.path().join("disk"), scratch.path().join("node"));
        std::fs::create_dir(&disk).unwrap();
        for gone in [false, true] {
            let mut logbook = Logbook::load(&disk, Some(&node), DISK).unwrap();
            logbook.begin(1).unwrap();
            logbook.fence("a sync failed");
            if gone {
                // As a disk that took no more writes has it.
                std::fs::remove_file(disk.join(LOGBOOK_FILE)).unwrap();
            }
            let mut again = Logbook::load(&disk, Some(&node), DISK).unwrap();
            assert_eq!(again.fenced().as_deref(), Some("a sync failed"));
            again.lift_fence().unwrap();
            assert_eq!(Logbook::load(&disk, Some(&node), DISK).unwrap().fenced(), None);
        }
    }

    #[test]
    fn a_damaged_logbook_descends_from_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let mut logbook = load(scratch.path());
        logbook.begin(5).unwrap();
        logbook.raise_authority(2, &[(VolumeId(3), Epoch(4)), (VolumeId(3), Epoch(1))]).unwrap();
        assert_eq!(
            (load(scratch.path()).history(), load(scratch.path()).epochs()[&VolumeId(3)]),
            (2, Epoch(4))
        );
        let file = scratch.path().join(LOGBOOK_FILE);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("\"sequence_floor\": 5", "\"sequence_floor\": 9")).unwrap();
        assert_eq!(load(scratch.path()).page, Page::new());
    }
}
