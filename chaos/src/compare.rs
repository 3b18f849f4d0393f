//! Compares two local trees to the last byte: kinds, bytes, permission bits, modification times, symlink targets.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

/// How many differences are told.
pub const DIFFERENCES_SHOWN_MAX: usize = 20;
/// One read's worth.
const BUFFER_BYTES: usize = 1 << 20;

/// The SHA-256 of a file's bytes.
///
/// # Errors
/// On IO errors.
pub fn file_digest(path: &Path) -> anyhow::Result<[u8; 32]> {
    digest_of(&mut File::open(path).with_context(|| format!("open {}", path.display()))?)
}

/// The SHA-256 of an open file's bytes, from its beginning.
///
/// # Errors
/// On IO errors.
pub fn digest_of(file: &mut File) -> anyhow::Result<[u8; 32]> {
    file.rewind()?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&buffer[..count]);
    }
}

/// How two trees differ, one line each, at most [`DIFFERENCES_SHOWN_MAX`]. Empty = they are the same.
///
/// # Errors
/// On IO errors.
pub fn differences(left: &Path, right: &Path) -> anyhow::Result<Vec<String>> {
    let paths: BTreeSet<PathBuf> = relative_paths(left)?.union(&relative_paths(right)?).cloned().collect();
    let mut found = Vec::new();
    for path in paths {
        // Joining an empty path would add a slash, behind which a file is no file.
        let under =
            |root: &Path| if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
        if let Some(difference) = entry_difference(&under(left), &under(right))? {
            found.push(format!("{}: {difference}", path.display()));
            if found.len() == DIFFERENCES_SHOWN_MAX {
                break;
            }
        }
    }
    Ok(found)
}

/// Fails unless both trees are the same to the last byte.
///
/// # Errors
/// If they differ; the message says how.
pub fn assert_same(left: &Path, right: &Path) -> anyhow::Result<()> {
    let found = differences(left, right)?;
    anyhow::ensure!(
        found.is_empty(),
        "{} and {} differ:\n{}",
        left.display(),
        right.display(),
        found.join("\n")
    );
    Ok(())
}

fn relative_paths(root: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for entry in walkdir::WalkDir::new(root) {
        paths.insert(entry?.path().strip_prefix(root)?.to_owned());
    }
    Ok(paths)
}

fn entry_difference(left: &Path, right: &Path) -> anyhow::Result<Option<String>> {
    let (a, b) = match (fs::symlink_metadata(left), fs::symlink_metadata(right)) {
        (Ok(a), Ok(b)) => (a, b),
        (Ok(_), Err(error)) => return Ok(Some(format!("only on the left ({error})"))),
        (Err(error), Ok(_)) => return Ok(Some(format!("only on the right ({error})"))),
        (Err(error), Err(_)) => return Err(error).with_context(|| left.display().to_string()),
    };
    if a.file_type() != b.file_type() {
        return Ok(Some(format!("{:?} and {:?}", a.file_type(), b.file_type())));
    }
    if (a.mtime(), a.mtime_nsec()) != (b.mtime(), b.mtime_nsec()) {
        return Ok(Some(format!(
            "modified at {}.{:09} and {}.{:09}",
            a.mtime(),
            a.mtime_nsec(),
            b.mtime(),
            b.mtime_nsec()
        )));
    }
    if a.is_symlink() {
        let (a, b) = (fs::read_link(left)?, fs::read_link(right)?);
        return Ok((a != b).then(|| format!("points to {} and {}", a.display(), b.display())));
    }
    let (mode_a, mode_b) = (a.permissions().mode() & 0o7777, b.permissions().mode() & 0o7777);
    if mode_a != mode_b {
        return Ok(Some(format!("permission bits {mode_a:o} and {mode_b:o}")));
    }
    if !a.is_file() {
        return Ok(None);
    }
    if a.len() != b.len() {
        return Ok(Some(format!("{} and {} bytes", a.len(), b.len())));
    }
    byte_difference(left, right)
}

fn byte_difference(left: &Path, right: &Path) -> anyhow::Result<Option<String>> {
    let (mut a, mut b) = (File::open(left)?, File::open(right)?);
    let (mut part_a, mut part_b) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    let mut offset = 0;
    loop {
        let (count_a, count_b) = (read_full(&mut a, &mut part_a)?, read_full(&mut b, &mut part_b)?);
        if part_a[..count_a] != part_b[..count_b] {
            let at = part_a.iter().zip(&part_b).take_while(|(a, b)| a == b).count();
            return Ok(Some(format!("bytes differ from offset {}", offset + at)));
        }
        if count_a == 0 {
            return Ok(None);
        }
        offset += count_a;
    }
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let count = file.read(&mut buffer[filled..])?;
        if count == 0 {
            break;
        }
        filled += count;
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_difference_is_seen() {
        let scratch = tempfile::tempdir().unwrap();
        let (left, right) = (scratch.path().join("l"), scratch.path().join("r"));
        let make = |root: &Path| {
            fs::remove_dir_all(root).ok();
            fs::create_dir(root).unwrap();
            fs::write(root.join("f"), b"abc").unwrap();
            std::os::unix::fs::symlink("x", root.join("s")).unwrap();
        };
        let align = || {
            for name in ["f", "s", ""] {
                std::process::Command::new("touch")
                    .args(["-h", "-d", "@5"])
                    .args([left.join(name), right.join(name)])
                    .status()
                    .unwrap();
            }
        };
        let count = |change: &dyn Fn()| {
            make(&left);
            make(&right);
            change();
            align();
            differences(&left, &right).unwrap().len()
        };
        assert_eq!(count(&|| ()), 0);
        assert_eq!(count(&|| fs::write(right.join("f"), b"abd").unwrap()), 1);
        assert_eq!(count(&|| fs::write(right.join("f"), b"ab").unwrap()), 1);
        assert_eq!(
            count(&|| fs::set_permissions(left.join("f"), fs::Permissions::from_mode(0o600)).unwrap()),
            1
        );
        assert_eq!(
            count(&|| {
                fs::remove_file(left.join("s")).unwrap();
                std::os::unix::fs::symlink("y", left.join("s")).unwrap();
            }),
            1
        );
        make(&left);
        make(&right);
        fs::write(right.join("g"), b"").unwrap();
        align();
        assert_eq!(differences(&left, &right).unwrap().len(), 1);
        File::options()
            .write(true)
            .open(left.join("f"))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
        assert_eq!(differences(&left, &right).unwrap().len(), 2);
    }
}
