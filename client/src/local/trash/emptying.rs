//! Removes what has been in the trash for long.
//!
//! The machine's clock may be wrong for a while: one without a battery starts in the past, and one jump forward would
//! make all of the trash old. So the folder of a day goes only if all of this says that it is old: its name; the day on
//! which it was first seen here; and an emptying at least a day earlier, which found the same. These days are kept in
//! `.keepstone/trash-seen`; if that file is lost or damaged, what is in the trash stays longer.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::removal::remove_folder;
use super::{date_of, days_now};
use crate::local::disk::DiskError;
use crate::local::rel::Rel;
use crate::local::root::{Root, TRASH_FOLDER};

/// In the state's folder: a line for each day's folder.
const SEEN_FILE: &str = "trash-seen";
/// While it is written.
const SEEN_FILE_NEW: &str = "trash-seen-new";
/// Bytes of it that are read: some ten thousand lines.
const SEEN_BYTES_MAX: u64 = 1024 * 1024;
/// By the calendar; two, for there is a whole day between them then.
const FOUND_OLD_DAYS_MIN: i64 = 2;

/// When a day's folder was seen, in days since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    first: i64,
    /// Since when it has been found to be old, each time.
    old: Option<i64>,
}

type SeenFolders = BTreeMap<String, Seen>;

/// Which of the folders are to go, and what to remember of them all. Pure.
fn decide(before: &SeenFolders, names: Vec<String>, today: i64, days_max: u32) -> (Vec<String>, SeenFolders) {
    let days_max = i64::from(days_max);
    let oldest_kept = date_of(today.saturating_sub(days_max));
    let mut go = Vec::new();
    let mut after = SeenFolders::new();
    for name in names {
        let known = before.get(&name).copied().unwrap_or(Seen { first: today, old: None });
        let is_old = name < oldest_kept && today.saturating_sub(known.first) > days_max;
        let old = is_old.then_some(known.old.unwrap_or(today));
        if old.is_some_and(|old| today.saturating_sub(old) >= FOUND_OLD_DAYS_MIN) {
            go.push(name.clone());
        }
        after.insert(name, Seen { first: known.first, old });
    }
    (go, after)
}

/// A line that is none is left out: what it was about counts as not seen yet.
fn parse(text: &str) -> SeenFolders {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let (name, first) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        let old = match words.next()? {
            "-" => None,
            old => Some(old.parse().ok()?),
        };
        Some((name, Seen { first, old }))
    };
    text.lines().filter_map(line).collect()
}

fn write(seen: &SeenFolders) -> String {
    let line = |(name, seen): (&String, &Seen)| {
        let old = seen.old.map_or("-".to_owned(), |old| old.to_string());
        format!("{name} {} {old}\n", seen.first)
    };
    seen.iter().map(line).collect()
}

/// Whether that is how the folder of a day is called.
fn is_date(name: &str) -> bool {
    let is_right =
        |(at, byte): (usize, u8)| if matches!(at, 4 | 7) { byte == b'-' } else { byte.is_ascii_digit() };
    name.len() == "1970-01-01".len() && name.bytes().enumerate().all(is_right)
}

impl Root {
    /// Removes what has been in the trash for more than `days_max` days. To be called once a day. Says how many days'
    /// trash it removed. Blocks.
    ///
    /// # Errors
    /// `Denied`, `Io`; `Changed` if another file system is mounted in it: the rest stays for the next time.
    pub fn empty_trash(&self, days_max: u32) -> Result<u32, DiskError> {
        self.empty_trash_on(days_now(), days_max)
    }

    pub(super) fn empty_trash_on(&self, today: i64, days_max: u32) -> Result<u32, DiskError> {
        let failed = |errno| DiskError::of(&Rel::root(), errno);
        let trash = self.state_folder(TRASH_FOLDER)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&trash).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            names.extend(entry.file_name().to_str().ok().filter(|name| is_date(name)).map(str::to_owned));
        }
        let before = self.read_seen()?;
        let (go, after) = decide(&before, names, today, days_max);
        if after != before {
            self.write_seen(&after)?;
        }
        let mut removed = Ok(0);
        for name in go {
            let this = remove_folder(trash.as_fd(), OsStr::new(&name), &self.home()).map_err(|errno| {
                let place = Rel::root().join(&name).unwrap_or_default();
                if errno == Errno::XDEV {
                    tracing::warn!(day = name, "another file system is mounted in the trash: unmount it");
                }
                DiskError::of(&place, errno)
            });
            removed = removed.and_then(|count: u32| this.map(|()| count + 1));
        }
        removed
    }

    fn read_seen(&self) -> Result<SeenFolders, DiskError> {
        let failed = |errno| DiskError::of(&Rel::root(), errno);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(self.state_folder(".")?, SEEN_FILE, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(SeenFolders::new()),
            Err(errno) => return Err(failed(errno)),
        };
        let mut bytes = Vec::new();
        let read = std::fs::File::from(fd).take(SEEN_BYTES_MAX).read_to_end(&mut bytes);
        read.map_err(|error| DiskError::of_io(&Rel::root(), error))?;
        Ok(parse(&String::from_utf8_lossy(&bytes)))
    }

    /// After a crash: as it was, or whole.
    fn write_seen(&self, seen: &SeenFolders) -> Result<(), DiskError> {
        let failed = |errno| DiskError::of(&Rel::root(), errno);
        let folder = self.state_folder(".")?;
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(&folder, SEEN_FILE_NEW, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        let mut file = std::fs::File::from(fd);
        let written = file.write_all(write(seen).as_bytes()).and_then(|()| file.sync_all());
        written.map_err(|error| DiskError::of_io(&Rel::root(), error))?;
        rustix::fs::renameat(&folder, SEEN_FILE_NEW, &folder, SEEN_FILE).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 20_000;

    /// What goes when the trash is emptied on these days, one after another, with a folder of day 0 in it.
    fn gone_on(folder: i64, days: impl IntoIterator<Item = i64>) -> Option<i64> {
        let mut seen = SeenFolders::new();
        for day in days {
            let (go, after) = decide(&seen, vec![date_of(DAY + folder)], DAY + day, 30);
            seen = parse(&write(&after));
            assert_eq!(seen, after);
            if !go.is_empty() {
                return Some(day);
            }
        }
        None
    }

    #[test]
    fn what_is_trashed_stays_for_its_days_and_goes_then() {
        assert_eq!(gone_on(0, 0..100), Some(33));
        assert_eq!(gone_on(0, [1, 50, 51, 52]), Some(52), "after a long time off");
        assert_eq!(gone_on(0, [1, 50, 50, 50, 51]), None, "not by many starts at once");
    }

    #[test]
    fn a_clock_that_was_in_the_past_costs_nothing_its_days() {
        // Trashed while the clock was sixty days back; right from then on.
        assert_eq!(gone_on(-60, 0..100), Some(33));
    }

    #[test]
    fn one_jump_of_the_clock_removes_nothing() {
        assert_eq!(gone_on(0, [0, 1, 4_000, 2, 3]), None);
        assert_eq!(gone_on(0, [0, 1, 4_000, 2, 3, 5_000, 4]), None, "nor do two");
    }

    #[test]
    fn names_of_days_are_told_from_others() {
        assert!(is_date(&date_of(DAY)));
        for name in ["2026-1-001", "2026-01-01x", "2026_01_01", "recovered!", ""] {
            assert!(!is_date(name), "{name}");
        }
    }
}
