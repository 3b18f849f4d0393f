//! Names the content of files: cuts and hashes them, and says how they were while that was done.

use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};
use std::os::fd::AsFd;

use engine::cutter::{ChunkCutter, Cutter};
use engine::ids::ContentId;
use engine::manifest::ManifestEntry;
use tokio_util::sync::CancellationToken;

use super::disk::DiskError;
use super::model::Stamp;
use super::own_data;
use super::rel::Rel;
use super::root::Root;
use crate::naming::name_chunks;
use crate::planner::model::FileContent;

/// Why a file's content cannot be named.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// It is being written: try again once it is quiet.
    #[error("{0} changed while it was read")]
    StillChanging(Rel),
    /// It gives another number of bytes than its size says, and nobody writes it: what it is cannot be told.
    #[error("it says that it has {said} bytes and gives {gave}")]
    OtherSize {
        /// Its size.
        said: u64,
        /// `fewer` or `more`.
        gave: &'static str,
    },
    /// It cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The caller stopped it.
    #[error("stopped")]
    Stopped,
}

/// A file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// Its name.
    pub content: FileContent,
    /// How the file was, before the first byte was read and after the last.
    pub stamp: Stamp,
    /// Its chunks.
    pub chunks: Vec<ManifestEntry>,
    /// It signs a device in.
    pub is_profile: bool,
}

impl Root {
    /// Has the file system write back what is in a file's pages, so that the next store into one of them through a
    /// mapping changes the file's time. Gives the stamp from before that. Blocks.
    ///
    /// # Errors
    /// If it cannot be opened, or the disk fails.
    pub(super) fn write_back(&self, rel: &Rel) -> Result<Stamp, DiskError> {
        let (file, before) = self.open_for_read(rel)?;
        rustix::fs::fdatasync(&file).map_err(|errno| DiskError::of(rel, errno))?;
        Ok(before)
    }

    /// Reads a file and names its content, cut as `cutter` says for its size. Blocks.
    ///
    /// # Errors
    /// See [`HashError`].
    pub fn hash(
        &self,
        rel: &Rel,
        cutter: impl FnOnce(u64) -> Cutter,
        stop: &CancellationToken,
    ) -> Result<Hashed, HashError> {
        let (file, before) = self.open_for_read(rel)?;
        let cutter = cutter(before.size);
        let (chunks, is_profile) = cut(&file, before.size, cutter, stop, rel)?;
        let size = chunks.iter().map(|chunk| chunk.size).sum::<u64>();
        let other_size =
            other_size(&file, before.size, size).map_err(|error| DiskError::of_io(rel, error))?;
        let after = self.object_of_fd(file.as_fd()).map_err(|errno| DiskError::of(rel, errno))?;
        if after.stamp != before {
            return Err(HashError::StillChanging(rel.clone()));
        }
        if let Some(gave) = other_size {
            return Err(HashError::OtherSize { said: before.size, gave });
        }
        let content = FileContent { content: ContentId::of(&chunks), size, cutter };
        Ok(Hashed { content, stamp: before, chunks, is_profile })
    }
}

/// How a file that gave `came` bytes is not as its size says.
fn other_size(file: &File, said: u64, came: u64) -> std::io::Result<Option<&'static str>> {
    use std::os::unix::fs::FileExt;
    Ok(match came.cmp(&said) {
        std::cmp::Ordering::Less => Some("fewer"),
        std::cmp::Ordering::Greater => Some("more"),
        std::cmp::Ordering::Equal => (file.read_at(&mut [0], said)? > 0).then_some("more"),
    })
}

fn cut(
    file: &File,
    size: u64,
    cutter: Cutter,
    stop: &CancellationToken,
    rel: &Rel,
) -> Result<(Vec<ManifestEntry>, bool), HashError> {
    let (mut is_profile, mut may_be_profile) = (false, false);
    let (ended, chunks) = name_chunks(size, |take| {
        let mut cut = ChunkCutter::new(cutter);
        // No further than it reached when it was opened: a log that grows all the time would never end.
        let mut reader = file.take(size);
        loop {
            let ended = cut.push_from(&mut reader).map_err(|error| DiskError::of_io(rel, error))?;
            while let Some(chunk) = cut.next_chunk() {
                is_profile |= own_data::is_profile(chunk.bytes, size);
                may_be_profile |= own_data::may_be_of_profile(chunk.bytes, size);
                take(chunk.bytes);
            }
            if ended {
                return Ok(());
            }
            if stop.is_cancelled() {
                return Err(HashError::Stopped);
            }
        }
    });
    ended?;
    if may_be_profile {
        let (mut again, mut whole) = (file, Vec::new());
        again.seek(SeekFrom::Start(0)).map_err(|error| DiskError::of_io(rel, error))?;
        again.take(size).read_to_end(&mut whole).map_err(|error| DiskError::of_io(rel, error))?;
        is_profile = own_data::is_profile(&whole, size);
    }
    Ok((chunks, is_profile))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::testing::TestRoot;
    use crate::profile::{Ca, Profile};

    #[test]
    fn a_profile_is_known_however_many_certificates_it_holds() {
        let root = TestRoot::new();
        for lines in [0, 10, 1_000, 8_000] {
            let certificates = "-----BEGIN CERTIFICATE-----\n".to_owned()
                + &"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n".repeat(lines)
                + "-----END CERTIFICATE-----\n";
            let profile = Profile {
                endpoint: "https://127.0.0.1:7420".to_owned(),
                ca: Ca::Pem(certificates.clone()),
                token: "ks1_secret".to_owned(),
                account: "00".repeat(16),
                device: "00".repeat(8),
            };
            root.write("profile", &toml::to_string(&profile).unwrap());
            root.write("certificates", &certificates);
            let is_profile = |name: &str| {
                let rel = Rel::parse(name).unwrap();
                root.hash(&rel, Cutter::for_size, &CancellationToken::new()).unwrap().is_profile
            };
            assert!(is_profile("profile"), "{lines} lines");
            assert!(!is_profile("certificates"), "{lines} lines");
        }
    }

    #[test]
    fn a_size_that_is_not_true_is_found_out() {
        let scratch = tempfile::tempfile().unwrap();
        scratch.set_len(10).unwrap();
        assert_eq!(other_size(&scratch, 10, 10).unwrap(), None);
        assert_eq!(other_size(&scratch, 10, 7).unwrap(), Some("fewer"));
        let version = File::open("/proc/version").unwrap();
        assert_eq!(other_size(&version, 0, 0).unwrap(), Some("more"));
    }
}
