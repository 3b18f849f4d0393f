//! What was seen lately, bounded: the present generation and the one before.

use std::collections::HashMap;
use std::hash::Hash;

/// Things of one generation: between once and twice so many are remembered.
const GENERATION_MAX: usize = 8 * 1024;

#[derive(Debug)]
pub(crate) struct Recent<T, V = ()> {
    present: HashMap<T, V>,
    before: HashMap<T, V>,
}

impl<T, V> Default for Recent<T, V> {
    fn default() -> Self {
        Self { present: HashMap::new(), before: HashMap::new() }
    }
}

impl<T: Eq + Hash, V> Recent<T, V> {
    /// What is remembered of a thing.
    pub(crate) fn get(&self, item: &T) -> Option<&V> {
        self.present.get(item).or_else(|| self.before.get(item))
    }

    pub(crate) fn contains(&self, item: &T) -> bool {
        self.get(item).is_some()
    }

    pub(crate) fn insert(&mut self, item: T, value: V) {
        if self.present.len() >= GENERATION_MAX {
            self.before = std::mem::take(&mut self.present);
        }
        self.present.insert(item, value);
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
        (0..10 * GENERATION_MAX).for_each(|number| recent.insert(number, ()));
        assert!(recent.present.len() + recent.before.len() <= 2 * GENERATION_MAX);
        let last = 10 * GENERATION_MAX - 1;
        assert!(
            recent.contains(&last) && recent.contains(&(last - GENERATION_MAX + 1)) && !recent.contains(&0)
        );
        recent.remove(&last);
        assert!(!recent.contains(&last));
    }
}
