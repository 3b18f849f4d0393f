//! How much room a disk has, so that what did not fit is tried again once there is more.

use super::root::Root;

/// What must have come free for another try: what others write and delete all the time is less.
const MORE_BYTES: u64 = 1024 * 1024;

/// The room on a root's file system, as the system tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Bytes that can still be written.
    bytes: u64,
    /// Files that can still be made; absent: the file system does not count them.
    files: Option<u64>,
}

impl Room {
    /// Whether something that did not fit into `before` may fit.
    fn is_more_than(self, before: Self) -> bool {
        let no_files = |room: Self| room.files == Some(0);
        match (no_files(before), no_files(self)) {
            (_, true) => false,
            (true, false) => true,
            (false, false) => self.bytes >= before.bytes.saturating_add(MORE_BYTES),
        }
    }
}

impl Root {
    /// Absent: the system does not tell. Blocks.
    pub(crate) fn room(&self) -> Option<Room> {
        let stat = rustix::fs::fstatvfs(self.fd()).ok()?;
        let bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        Some(Room { bytes, files: (stat.f_files > 0).then_some(stat.f_favail) })
    }

    /// Whether there is more room than when something did not fit. Blocks.
    pub(crate) fn has_more_room(&self, before: Room) -> bool {
        self.room().is_some_and(|room| room.is_more_than(before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_more_room_once_a_mebibyte_or_the_first_file_has_come_free() {
        let room = |bytes, files| Room { bytes, files };
        for files in [None, Some(5)] {
            let before = room(1_000, files);
            for (bytes, is_more) in [(0, false), (1_000, false), (1_049_575, false), (1_049_576, true)] {
                assert_eq!(room(bytes, files).is_more_than(before), is_more, "{bytes} {files:?}");
            }
        }
        // It was files that were missing, or are now.
        assert!(room(0, Some(1)).is_more_than(room(1_000, Some(0))));
        assert!(!room(u64::MAX, Some(0)).is_more_than(room(1_000, Some(0))));
        assert!(!room(u64::MAX, Some(0)).is_more_than(room(1_000, Some(7))));
    }
}
