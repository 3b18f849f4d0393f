//! Damages extents on disk as decaying disks do: flipped bits, lost tails.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use rand::Rng as _;
use rand::rngs::SmallRng;

/// Damage is spread over pages: at most one flip in each.
const PAGE_BYTES: u64 = 4096;

/// All extents of a storage node's directory, by path.
///
/// # Errors
/// On IO errors.
pub fn extents(data_dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(data_dir).sort_by_file_name() {
        let entry = entry?;
        if entry.file_type().is_file() && entry.path().extension().is_some_and(|ending| ending == "ext") {
            found.push(entry.into_path());
        }
    }
    Ok(found)
}

/// One flipped bit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flip {
    /// The damaged extent.
    pub extent: PathBuf,
    /// The byte in it.
    pub offset: u64,
}

/// Flips one bit in each of up to `count` random pages that hold anything but zeros.
///
/// # Errors
/// On IO errors, or if there is nothing to damage.
pub fn flip_bits(extents: &[PathBuf], count: usize, random: &mut SmallRng) -> anyhow::Result<Vec<Flip>> {
    let mut pages = Vec::new();
    for extent in extents {
        let file = File::open(extent).with_context(|| format!("open {}", extent.display()))?;
        let mut page = [0; 4096];
        // The last page may be short, and stays as it is.
        for index in 0..file.metadata()?.len() / PAGE_BYTES {
            file.read_exact_at(&mut page, index * PAGE_BYTES)?;
            if page.iter().any(|&byte| byte != 0) {
                pages.push((extent.clone(), index));
            }
        }
    }
    ensure!(!pages.is_empty(), "no data to damage in {extents:?}");
    let mut flips = BTreeSet::new();
    for _ in 0..count {
        let (extent, page) = &pages[random.random_range(0..pages.len())];
        if flips.iter().any(|flip: &Flip| flip.extent == *extent && flip.offset / PAGE_BYTES == *page) {
            continue;
        }
        let offset = page * PAGE_BYTES + random.random_range(0..PAGE_BYTES);
        flip_bit(extent, offset, random.random_range(0..8))?;
        flips.insert(Flip { extent: extent.clone(), offset });
    }
    Ok(flips.into_iter().collect())
}

/// Flips one bit.
///
/// # Errors
/// On IO errors.
pub fn flip_bit(extent: &Path, offset: u64, bit: u32) -> anyhow::Result<()> {
    let file = File::options().read(true).write(true).open(extent)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, offset)?;
    Ok(())
}

/// Cuts an extent's tail off.
///
/// # Errors
/// On IO errors.
pub fn truncate(extent: &Path, bytes: u64) -> anyhow::Result<()> {
    let file = File::options().write(true).open(extent)?;
    ensure!(fs::metadata(extent)?.len() > bytes, "{} is shorter than {bytes}", extent.display());
    file.set_len(bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    #[test]
    fn each_flip_changes_one_bit_of_a_page_with_data() {
        let scratch = tempfile::tempdir().unwrap();
        let extent = scratch.path().join("1.ext");
        let mut bytes = vec![0; 40 * 4096];
        bytes[8192..60_000].fill(7);
        fs::write(&extent, &bytes).unwrap();
        let found = extents(scratch.path()).unwrap();
        let flips = flip_bits(&found, 5, &mut SmallRng::seed_from_u64(1)).unwrap();
        let after = fs::read(&extent).unwrap();
        let bits: u32 = bytes.iter().zip(&after).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(bits, u32::try_from(flips.len()).unwrap());
        assert!(flips.iter().all(|flip| (8192..61_440).contains(&flip.offset)));
    }
}
