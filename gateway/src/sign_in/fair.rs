//! A queue of queues: what waits is taken in turn from each branch, whatever each of them has waiting.

use std::collections::VecDeque;

/// A tree whose leaves are queues. Each item has a path of keys; all paths are of one length.
#[derive(Debug)]
pub(super) struct Fair<T> {
    key: u64,
    branches: VecDeque<Fair<T>>,
    items: VecDeque<T>,
    len: usize,
}

impl<T> Default for Fair<T> {
    fn default() -> Self {
        Self::of(0)
    }
}

impl<T> Fair<T> {
    fn of(key: u64) -> Self {
        Self { key, branches: VecDeque::new(), items: VecDeque::new(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds an item behind those of its path.
    pub(super) fn push(&mut self, path: &[u64], item: T) {
        self.len += 1;
        let Some((key, rest)) = path.split_first() else { return self.items.push_back(item) };
        if let Some(branch) = self.branches.iter_mut().find(|branch| branch.key == *key) {
            return branch.push(rest, item);
        }
        let mut branch = Self::of(*key);
        branch.push(rest, item);
        self.branches.push_back(branch);
    }

    /// Takes the first item, of the branch whose turn it is, that fits. Items behind one that does not are not looked
    /// at.
    pub(super) fn pop(&mut self, fits: &mut impl FnMut(&T) -> bool) -> Option<T> {
        if self.items.front().is_some_and(&mut *fits) {
            self.len -= 1;
            return self.items.pop_front();
        }
        for index in 0..self.branches.len() {
            let Some(item) = self.branches[index].pop(fits) else { continue };
            self.len -= 1;
            if let Some(branch) = self.branches.remove(index).filter(|branch| branch.len > 0) {
                self.branches.push_back(branch);
            }
            return Some(item);
        }
        None
    }

    /// Takes the last item of the branch that has most, and so on within it.
    pub(super) fn pop_of_heaviest(&mut self) -> Option<T> {
        let heaviest = self.branches.iter().enumerate().max_by_key(|(_index, branch)| branch.len);
        let item = match heaviest.map(|(index, _branch)| index) {
            Some(index) => {
                let item = self.branches[index].pop_of_heaviest();
                if self.branches[index].len == 0 {
                    self.branches.remove(index);
                }
                item
            }
            None => self.items.pop_back(),
        };
        self.len -= usize::from(item.is_some());
        item
    }

    /// Drops what does not wait any more.
    pub(super) fn retain(&mut self, waits: &mut impl FnMut(&T) -> bool) {
        self.items.retain(&mut *waits);
        self.branches.iter_mut().for_each(|branch| branch.retain(waits));
        self.branches.retain(|branch| branch.len > 0);
        self.len = self.items.len() + self.branches.iter().map(|branch| branch.len).sum::<usize>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(fair: &mut Fair<u32>) -> Vec<u32> {
        std::iter::from_fn(|| fair.pop(&mut |_item| true)).collect()
    }

    #[test]
    fn each_branch_has_its_turn_and_each_within_it() {
        let mut fair = Fair::default();
        for item in 0..6 {
            fair.push(&[1, 1], item);
        }
        fair.push(&[1, 2], 10);
        fair.push(&[2, 1], 20);
        fair.push(&[2, 1], 21);
        assert_eq!(fair.len(), 9);
        assert_eq!(all(&mut fair), [0, 20, 10, 21, 1, 2, 3, 4, 5]);
        assert_eq!(fair.len(), 0);
        assert!(fair.branches.is_empty());
    }

    #[test]
    fn who_may_not_yet_is_passed_over() {
        let mut fair = Fair::default();
        fair.push(&[1], 1);
        fair.push(&[1], 2);
        fair.push(&[2], 3);
        assert_eq!(fair.pop(&mut |item| *item > 1), Some(3), "2 is behind 1");
        assert_eq!(fair.pop(&mut |item| *item > 1), None);
        assert_eq!(all(&mut fair), [1, 2]);
    }

    #[test]
    fn who_has_most_gives_way() {
        let mut fair = Fair::default();
        fair.push(&[1, 1], 1);
        for item in 0..5 {
            fair.push(&[2, 7], 20 + item);
        }
        fair.push(&[2, 8], 30);
        assert_eq!(fair.pop_of_heaviest(), Some(24));
        fair.retain(&mut |item| item % 2 == 0);
        assert_eq!(fair.len(), 3);
        assert_eq!(all(&mut fair), [20, 30, 22]);
        assert_eq!(fair.pop_of_heaviest(), None);
    }
}
