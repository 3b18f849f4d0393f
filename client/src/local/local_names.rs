//! Finds out what a file system can hold: which names it takes for the same, and whether it keeps permission bits.

use rustix::fs::{AtFlags, Mode, OFlags};

use super::disk::DiskError;
use super::rel::Rel;
use super::root::{Root, TEMPORARY_FOLDER};

/// Which names of one folder are the same to a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalNames {
    /// `a` and `A` are.
    pub case_blind: bool,
    /// The composed and the decomposed form of an accented letter are.
    pub normalising: bool,
}

impl Root {
    /// Tries it out, with files in the temporary folder. Blocks.
    ///
    /// # Errors
    /// `NoSpace`, `Denied`, `Io`: then it is not known.
    pub fn probe_names(&self) -> Result<LocalNames, DiskError> {
        Ok(LocalNames {
            case_blind: self.is_same_name("probe-a", "probe-A")?,
            normalising: self.is_same_name("probe-\u{e9}", "probe-e\u{301}")?,
        })
    }

    /// Whether two files can have different permission bits, by trying it. Blocks.
    ///
    /// # Errors
    /// `NoSpace`, `Denied`, `Io`: then it is not known.
    pub fn probe_modes(&self) -> Result<bool, DiskError> {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let probe = self.temp_file()?;
        let mut shown = [0; 2];
        for (mode, shown) in [0o600, 0o755].into_iter().zip(&mut shown) {
            let failed = |error| DiskError::of_io(&Rel::root(), error);
            // A refusal says as much as a mode that stays.
            drop(probe.as_file().set_permissions(PermissionsExt::from_mode(mode)));
            *shown = probe.as_file().metadata().map_err(failed)?.mode() & 0o777;
        }
        Ok(shown == [0o600, 0o755])
    }

    fn is_same_name(&self, one: &str, other: &str) -> Result<bool, DiskError> {
        let failed = |errno| DiskError::of(&Rel::root(), errno);
        let folder = self.state_folder(TEMPORARY_FOLDER)?;
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|error| DiskError::of_io(&Rel::root(), std::io::Error::other(error.to_string())))?;
        let (one, other) =
            (format!("{}-{one}", hex::encode(random)), format!("{}-{other}", hex::encode(random)));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&folder, &one, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        drop(made);
        let found = rustix::fs::statat(&folder, &other, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        rustix::fs::unlinkat(&folder, &one, AtFlags::empty()).map_err(failed)?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_file_systems_keep_modes() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::create(dir.path(), None, &[]).unwrap();
        assert!(root.probe_modes().unwrap());
        assert_eq!(std::fs::read_dir(dir.path().join(".keepstone/tmp")).unwrap().count(), 0);
    }

    #[test]
    fn linux_file_systems_tell_names_apart_and_keep_no_probe() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::create(dir.path(), None, &[]).unwrap();
        let names = root.probe_names().unwrap();
        let tmp = dir.path().join(".keepstone/tmp");
        std::fs::write(tmp.join("x"), "").unwrap();
        let same = |other: &str| tmp.join(other).exists();
        assert_eq!(names.case_blind, same("X"));
        std::fs::write(tmp.join("\u{e9}"), "").unwrap();
        assert_eq!(names.normalising, same("e\u{301}"));
        assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 2);
    }
}
