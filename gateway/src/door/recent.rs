//! What was seen lately, bounded: the present generation and the one before.

use std::collections::HashSet;
use std::hash::Hash;

/// Things of one generation: between once and twice so many are remembered.
const GENERATION_MAX: usize = 8 * 1024;

#[derive(Debug)]
pub(crate) struct Recent<T> {
    present: HashSet<T>,
    before: HashSet<T>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { present: HashSet::new(), before: HashSet::new() }
    }
}

impl<T: Eq + Hash> Recent<T> {
    pub(crate) fn contains(&self, item: &T) -> bool {
        self.present.contains(item) || self.before.contains(item)
    }

    pub(crate) fn insert(&mut self, item: T) {
        if self.present.len() >= GENERATION_MAX {
            self.before = std::mem::take(&mut self.present);
        }
        self.present.insert(item);
    }

    pub(crate) fn remove(&mut self, item: &T) {
        self.present.remove(item);
        self.before.remove(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_remembered_and_no_more_than_two_generations() {
        let mut recent = Recent::default();
        (0..10 * GENERATION_MAX).for_each(|number| recent.insert(number));
        assert!(recent.present.len() + recent.before.len() <= 2 * GENERATION_MAX);
        let last = 10 * GENERATION_MAX - 1;
        assert!(
            recent.contains(&last) && recent.contains(&(last - GENERATION_MAX + 1)) && !recent.contains(&0)
        );
        recent.remove(&last);
        assert!(!recent.contains(&last));
    }
}
