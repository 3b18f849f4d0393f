//! Files that somebody may be writing without a word of it: open for writing, or written through a mapping.
//!
//! The system tells of writes through a file's descriptor, not of stores through a mapping. Such a store changes the
//! file's time once, when it is the first one to a page since that page was last written back; the next ones change
//! bytes and nothing else. So these files are looked at every few seconds, and have their pages written back before they
//! are read: what is stored afterwards shows in the time.
//!
//! Invariants:
//! - A file is here from the first write that is told of until its closing is, or for [`SUSPECT_FOR`] after it was last
//!   found changed without a word.
//! - At most [`WRITERS_MAX`]; then the ones that were here longest go.
//! - A file is stale from a write that is told of until a reading that began later is kept, wherever the file is moved.
//! - What changed and was not heard of is treated like a writer's, whoever finds it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::local::rel::Rel;

/// Files that are kept in mind.
const WRITERS_MAX: usize = 1_000;
/// Files that were heard of are remembered so long: until a scan has looked at them, mostly.
const HEARD_FOR: Duration = Duration::from_secs(60);
/// So many of them; when there are more, all count as heard of for that long.
const HEARD_MAX: usize = 20_000;
/// Files that are stale. While there are more, further ones are not remembered, and those go that have been so for
/// [`HEARD_FOR`]: nobody reads them, as those that are ignored.
const STALE_MAX: usize = 20_000;
/// How often those are looked for.
const STALE_PRUNED_EVERY: Duration = Duration::from_secs(1);
/// A mapping may be left alone for a while and stored to again.
const SUSPECT_FOR: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug)]
struct Writer {
    since: Instant,
    /// Told of, and not closed yet.
    open: bool,
    /// Until when it is suspected, whatever is told.
    suspect_until: Option<Instant>,
}

/// See the module. Shared by who hears of changes and who looks for them.
#[derive(Clone, Debug, Default)]
pub struct Writers(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    writers: HashMap<Rel, Writer>,
    heard: HashMap<Rel, Instant>,
    all_heard_until: Option<Instant>,
    /// When the last write was told of, of those that have not been read since.
    stale: HashMap<Rel, Instant>,
    stale_pruned: Option<Instant>,
}

impl Writers {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, rel: &Rel, now: Instant, change: impl FnOnce(&mut Writer)) {
        let inner = &mut self.inner().writers;
        if let Some(writer) = inner.get_mut(rel) {
            change(writer);
            return;
        }
        if inner.len() >= WRITERS_MAX
            && let Some(oldest) =
                inner.iter().min_by_key(|(_, writer)| writer.since).map(|(rel, _)| rel.clone())
        {
            inner.remove(&oldest);
        }
        let mut writer = Writer { since: now, open: false, suspect_until: None };
        change(&mut writer);
        inner.insert(rel.clone(), writer);
    }

    /// The system told of something that was done with the file.
    pub(super) fn heard(&self, rel: &Rel, now: Instant) {
        let mut inner = self.inner();
        if inner.all_heard_until.is_some_and(|until| until > now) {
            inner.all_heard_until = Some(now + HEARD_FOR);
            return;
        }
        if let Some(last) = inner.heard.get_mut(rel) {
            *last = now;
            return;
        }
        if inner.heard.len() >= HEARD_MAX {
            inner.heard.retain(|_, last| *last + HEARD_FOR > now);
            if inner.heard.len() >= HEARD_MAX / 2 {
                inner.heard.clear();
                inner.all_heard_until = Some(now + HEARD_FOR);
                return;
            }
        }
        inner.heard.insert(rel.clone(), now);
    }

    /// Whether a file that has changed may go on changing without a word: it is a writer's, or nobody told of the
    /// change.
    #[must_use]
    pub fn may_store(&self, rel: &Rel, now: Instant) -> bool {
        let inner = self.inner();
        let all = inner.all_heard_until.is_some_and(|until| until > now);
        let heard = all || inner.heard.get(rel).is_some_and(|last| *last + HEARD_FOR > now);
        !heard || inner.writers.contains_key(rel)
    }

    /// Something was written to the file.
    pub(in crate::local) fn written(&self, rel: &Rel, now: Instant) {
        self.note(rel, now, |writer| writer.open = true);
        let mut inner = self.inner();
        let Inner { stale, stale_pruned, .. } = &mut *inner;
        if stale.len() >= STALE_MAX && !stale.contains_key(rel) {
            if stale_pruned.is_some_and(|last| last + STALE_PRUNED_EVERY > now) {
                return;
            }
            *stale_pruned = Some(now);
            stale.retain(|_, told| *told + HEARD_FOR > now);
        }
        if stale.len() < STALE_MAX || stale.contains_key(rel) {
            stale.insert(rel.clone(), now);
        }
    }

    /// Whether a write was told of since the file was last read.
    #[must_use]
    pub fn is_stale(&self, rel: &Rel) -> bool {
        self.inner().stale.contains_key(rel)
    }

    /// These were read, from the given times on, and what was found is kept.
    pub fn read(&self, files: impl IntoIterator<Item = (Rel, Instant)>) {
        let stale = &mut self.inner().stale;
        for (rel, began) in files {
            if stale.get(&rel).is_some_and(|told| *told < began) {
                stale.remove(&rel);
            }
        }
    }

    /// Something came to a place, from another one of the root if that is known: what was there is not any more.
    pub(super) fn moved(&self, from: Option<&Rel>, to: &Rel, is_folder: bool) {
        let mut inner = self.inner();
        inner.writers.remove(to);
        let stale = &mut inner.stale;
        stale.remove(to);
        let Some(from) = from else { return };
        if !is_folder {
            if let Some(told) = stale.remove(from) {
                stale.insert(to.clone(), told);
            }
            return;
        }
        let moved: Vec<Rel> = stale.keys().filter(|rel| rel.is_within(from)).cloned().collect();
        for rel in moved {
            let below = rel.as_str().strip_prefix(from.as_str()).unwrap_or_default();
            let now = Rel::parse(&format!("{}{below}", to.as_str()));
            if let (Some(told), Ok(now)) = (stale.remove(&rel), now) {
                stale.insert(now, told);
            }
        }
    }

    /// A file is not there any more.
    pub(super) fn deleted(&self, rel: &Rel) {
        self.inner().stale.remove(rel);
    }

    /// It was closed by somebody who could write, or is gone from there.
    pub(super) fn closed(&self, rel: &Rel, now: Instant) {
        let inner = &mut self.inner().writers;
        if let Some(writer) = inner.get_mut(rel) {
            writer.open = false;
            if writer.suspect_until.is_none_or(|until| until < now) {
                inner.remove(rel);
            }
        }
    }

    /// It has changed, and nobody told of it.
    pub fn suspect(&self, rel: &Rel, now: Instant) {
        self.note(rel, now, |writer| writer.suspect_until = Some(now + SUSPECT_FOR));
    }

    /// Whether a file is a writer's.
    #[must_use]
    pub fn contains(&self, rel: &Rel) -> bool {
        self.inner().writers.contains_key(rel)
    }

    /// All of them, those left out whose time is over.
    #[must_use]
    pub fn all(&self, now: Instant) -> Vec<Rel> {
        let inner = &mut self.inner().writers;
        inner.retain(|_, writer| writer.open || writer.suspect_until.is_some_and(|until| until >= now));
        inner.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rel(path: &str) -> Rel {
        Rel::parse(path).unwrap()
    }

    #[test]
    fn a_file_is_a_writers_until_it_is_closed_or_a_while_after_it_changed_unheard() {
        let (writers, start) = (Writers::default(), Instant::now());
        let [open, quiet, both] = ["open", "quiet", "both"].map(rel);
        writers.written(&open, start);
        writers.suspect(&quiet, start);
        writers.written(&both, start);
        writers.suspect(&both, start);
        for rel in [&open, &quiet, &both] {
            writers.closed(rel, start);
        }
        assert!(!writers.contains(&open) && writers.contains(&quiet) && writers.contains(&both));
        writers.written(&open, start);
        let mut later = writers.all(start + SUSPECT_FOR * 2);
        later.sort();
        assert_eq!(later, [open]);
    }

    #[test]
    fn what_was_heard_of_and_closed_is_left_alone_and_all_else_may_be_stored_to() {
        let (writers, start) = (Writers::default(), Instant::now());
        let [told, open, unheard] = ["told", "open", "unheard"].map(rel);
        for rel in [&told, &open] {
            writers.heard(rel, start);
            writers.written(rel, start);
        }
        writers.closed(&told, start);
        assert!(!writers.may_store(&told, start) && writers.may_store(&open, start));
        assert!(writers.may_store(&unheard, start));
        assert!(writers.may_store(&told, start + HEARD_FOR), "it may have been stored to since");
        // More than can be told apart.
        (0..=HEARD_MAX).for_each(|at| writers.heard(&rel(&format!("f{at}")), start));
        assert!(!writers.may_store(&unheard, start));
        assert!(writers.may_store(&unheard, start + HEARD_FOR));
    }

    #[test]
    fn what_is_told_of_while_a_file_is_read_is_not_read() {
        let (writers, start) = (Writers::default(), Instant::now());
        let (file, later) = (rel("file"), start + Duration::from_millis(5));
        writers.read([(file.clone(), start)]);
        assert!(!writers.is_stale(&file));
        writers.written(&file, later);
        for (began, stale) in [(start, true), (later, true), (later + Duration::from_nanos(1), false)] {
            writers.read([(file.clone(), began)]);
            assert_eq!(writers.is_stale(&file), stale);
        }
        writers.written(&file, later);
        writers.deleted(&file);
        assert!(!writers.is_stale(&file));
    }

    #[test]
    fn a_file_stays_stale_wherever_it_is_moved() {
        let (writers, now) = (Writers::default(), Instant::now());
        for path in ["a/b/f", "a/bc", "g", "h"] {
            writers.written(&rel(path), now);
        }
        writers.moved(Some(&rel("a/b")), &rel("z"), true);
        writers.moved(Some(&rel("g")), &rel("h"), false);
        writers.moved(None, &rel("a/bc"), false);
        let all = ["a/b/f", "z/f", "a/bc", "g", "h"].map(|path| writers.is_stale(&rel(path)));
        assert_eq!(all, [false, true, false, false, true]);
        assert!(!writers.contains(&rel("h")), "another file is there now");
    }

    #[test]
    fn stale_files_that_nobody_reads_make_room_after_a_while() {
        let (writers, start) = (Writers::default(), Instant::now());
        (0..=STALE_MAX).for_each(|at| writers.written(&rel(&format!("f{at}")), start));
        let last = rel(&format!("f{STALE_MAX}"));
        assert!(writers.is_stale(&rel("f0")) && !writers.is_stale(&last));
        writers.written(&rel("f0"), start + HEARD_FOR);
        writers.written(&last, start + HEARD_FOR);
        assert!(writers.is_stale(&rel("f0")) && writers.is_stale(&last) && !writers.is_stale(&rel("f1")));
    }

    #[test]
    fn there_are_not_more_than_can_be_looked_at() {
        let (writers, start) = (Writers::default(), Instant::now());
        let count = u64::try_from(WRITERS_MAX).unwrap() + 5;
        (0..count).for_each(|at| writers.written(&rel(&format!("f{at}")), start + Duration::from_millis(at)));
        let all = writers.all(start);
        assert_eq!(all.len(), WRITERS_MAX);
        assert!(!all.contains(&rel("f0")) && all.contains(&rel("f1004")));
    }
}
