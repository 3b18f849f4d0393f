//! What users did with files of the same bytes: who saved one, when and under which names, and who gave one up. Nothing
//! here looks at a file: [`crate::contents`] does.
//!
//! Invariants:
//! - A save is open until a file of its time is given up. Which of the two is noted first makes no difference.
//! - Bytes that were saved with one time only are never excused: they are lost unless a file of that time was given up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Saves, and as many files given up, that a story tells of.
const STORY_LINES_MAX: usize = 10;
const NANOSECONDS: i128 = 1_000_000_000;

/// One file as somebody saved it.
#[derive(Debug)]
pub(crate) struct Save {
    device: String,
    /// What it was called in its folder when it was saved, and what users have called it since.
    names: BTreeSet<String>,
    time_ns: i128,
    what: String,
}

/// One file that somebody destroyed.
#[derive(Debug)]
pub(crate) struct GiveUp {
    /// Of the file.
    pub(crate) time_ns: i128,
    /// Of the deed.
    pub(crate) at_ns: i128,
    pub(crate) what: String,
}

/// All of one content.
#[derive(Debug, Default)]
pub(crate) struct History {
    saves: Vec<Save>,
    /// By time, with the place in `saves`.
    open: BTreeMap<i128, usize>,
    give_ups: Vec<GiveUp>,
    /// Times of files that were given up while no save of that time was open: nobody had saved it, it was not noted yet,
    /// or it was given up before. Copies that change places on one device while another deletes one of them exchange
    /// their times: then each of these is one of them.
    unmatched: Vec<i128>,
}

impl Save {
    pub(crate) fn new(device: &str, path: &Path, time_ns: i128, what: &str) -> Self {
        let names = BTreeSet::from([name_of(path)]);
        Self { device: device.to_owned(), names, time_ns, what: what.to_owned() }
    }

    pub(crate) fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    pub(crate) fn what(&self) -> &str {
        &self.what
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl History {
    pub(crate) fn save(&mut self, save: Save) {
        // Whoever saves notes it a moment later: another device may have given it up in between.
        if let Some(early) = self.unmatched.iter().position(|time| *time == save.time_ns) {
            self.unmatched.swap_remove(early);
        } else {
            self.open.insert(save.time_ns, self.saves.len());
        }
        self.saves.push(save);
    }

    /// A user gave the file of this time another name.
    pub(crate) fn rename(&mut self, time_ns: i128, path: &Path) {
        for save in self.saves.iter_mut().filter(|save| save.time_ns == time_ns) {
            save.names.insert(name_of(path));
        }
    }

    /// `only_here`: the file is known as one that stays on its device.
    pub(crate) fn give_up(&mut self, give_up: GiveUp, only_here: bool) {
        if self.open.remove(&give_up.time_ns).is_none() && !only_here {
            self.unmatched.push(give_up.time_ns);
        }
        self.give_ups.push(give_up);
    }

    pub(crate) fn open_count(&self) -> usize {
        self.open.len()
    }

    /// What nobody gave up, if no file has these bytes any more, but for what may be gone all the same.
    pub(crate) fn lost(&self) -> impl Iterator<Item = &Save> {
        let mut open: Vec<&Save> = self.open.values().map(|index| &self.saves[*index]).collect();
        let times: BTreeSet<i128> = self.saves.iter().map(|save| save.time_ns).collect();
        let mut unmatched = 0;
        if times.len() > 1 {
            let names: BTreeSet<&String> = self.saves.iter().flat_map(|save| &save.names).collect();
            for name in names {
                let mut excused = self.merged_count_max(name);
                open.retain(|save| {
                    let is_excused = excused > 0 && save.names.contains(name);
                    excused -= usize::from(is_excused);
                    !is_excused
                });
            }
            unmatched = self.unmatched.len();
        }
        open.into_iter().skip(unmatched)
    }

    /// How many saves of that name may have gone with another one of it that was given up. What two devices put at one
    /// path before either heard of the other becomes one file if it is the same, with the time of one of them. Each
    /// device has at most one of its saves in such a file. Folders are moved as well, so a path is known by its name
    /// alone.
    fn merged_count_max(&self, name: &String) -> usize {
        let called: Vec<&Save> = self.saves.iter().filter(|save| save.names.contains(name)).collect();
        if !called.iter().any(|save| self.is_given_up(save.time_ns)) {
            return 0;
        }
        let mut by_device: BTreeMap<&str, usize> = BTreeMap::new();
        for save in &called {
            *by_device.entry(&save.device).or_default() += 1;
        }
        called.len() - by_device.values().max().copied().unwrap_or_default()
    }

    fn is_given_up(&self, time_ns: i128) -> bool {
        self.give_ups.iter().any(|give_up| give_up.time_ns == time_ns)
    }

    /// The last that was done with these bytes, a line for each deed.
    pub(crate) fn story(&self) -> String {
        let saves = last(&self.saves).iter();
        let saves = saves.map(|save| format!("\n    saved at {}: {}", clock(save.time_ns), save.what));
        let give_ups = last(&self.give_ups).iter().map(|give_up| {
            let (at, of) = (clock(give_up.at_ns), clock(give_up.time_ns));
            format!("\n    given up at {at}, as saved at {of}: {}", give_up.what)
        });
        saves.chain(give_ups).collect()
    }
}

fn last<T>(all: &[T]) -> &[T] {
    &all[all.len().saturating_sub(STORY_LINES_MAX)..]
}

/// The time of day, in UTC as logs have it.
fn clock(time_ns: i128) -> String {
    let second = time_ns.div_euclid(NANOSECONDS).rem_euclid(24 * 60 * 60);
    let rest = time_ns.rem_euclid(NANOSECONDS);
    format!("{:02}:{:02}:{:02}.{rest:09}", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(history: &mut History, device: &str, name: &str, second: i128) {
        history.save(Save::new(device, Path::new(name), second * NANOSECONDS, name));
    }

    fn give_up(history: &mut History, second: i128) {
        let give_up = GiveUp { time_ns: second * NANOSECONDS, at_ns: 0, what: "deleted".to_owned() };
        history.give_up(give_up, false);
    }

    #[test]
    fn one_save_of_each_device_may_be_in_a_file_that_was_given_up() {
        let mut history = History::default();
        for second in [1, 2, 3] {
            save(&mut history, "a", "n", second);
        }
        save(&mut history, "c", "n", 4);
        assert_eq!(history.lost().count(), 4, "nothing is given up");
        give_up(&mut history, 1);
        assert_eq!(history.lost().count(), 2, "the one of c may have been that one");
        save(&mut history, "b", "n", 5);
        assert_eq!(history.lost().count(), 2, "and so may the one of b");
        give_up(&mut history, 2);
        give_up(&mut history, 3);
        assert_eq!(history.lost().count(), 0);
    }

    #[test]
    fn what_was_given_up_under_one_name_excuses_nothing_under_another() {
        let mut history = History::default();
        for (device, name, second) in [("a", "n", 1), ("c", "n", 2), ("b", "m", 3)] {
            save(&mut history, device, name, second);
        }
        give_up(&mut history, 1);
        give_up(&mut history, 2);
        assert_eq!(history.lost().map(Save::what).collect::<Vec<_>>(), ["m"]);
    }

    #[test]
    fn a_story_tells_of_all_times() {
        let mut history = History::default();
        save(&mut history, "a", "n", 3_600 + 62);
        give_up(&mut history, 5);
        assert_eq!(
            history.story(),
            "\n    saved at 01:01:02.000000000: n\n    given up at 00:00:00.000000000, as saved at \
             00:00:05.000000000: deleted"
        );
    }
}
