//! The key-value view of one group's state: a read-only view, a transaction that reads its own writes, and a backing
//! in memory for simulations (a replica's backing is in `raft`).
//!
//! Invariants:
//! - Keys and values are byte strings private to the group, ordered bytewise.
//! - A transaction changes nothing underneath: its changes are taken out at the end and written as one.
//! - The first failure to read is kept; the owner asks for it before it uses anything that came out of the view.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// What a transaction wrote: a value per key, `None` where it deleted.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// The store underneath failed to read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot read the state database: {reason}")]
pub struct BackingError {
    /// Why, in the store's words.
    pub reason: String,
}

/// Keys from `from` (included) to `to` (excluded; `None`: to the last key of the group).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key.
    pub from: Vec<u8>,
    /// The first key beyond.
    pub to: Option<Vec<u8>>,
}

impl KeyRange {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self { from: Vec::new(), to: None }
    }

    /// `from` included, `to` excluded.
    #[must_use]
    pub fn between(from: &[u8], to: &[u8]) -> Self {
        Self { from: from.to_vec(), to: Some(to.to_vec()) }
    }

    /// Every key that begins with `prefix`, itself included.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> Self {
        Self { from: prefix.to_vec(), to: prefix_end(prefix) }
    }

    /// Every key that begins with `prefix` and sorts after `key`.
    #[must_use]
    pub fn prefix_after(prefix: &[u8], key: &[u8]) -> Self {
        let next = [key, &[0]].concat();
        Self { from: next.max(prefix.to_vec()), to: prefix_end(prefix) }
    }

    fn is_empty(&self) -> bool {
        self.to.as_ref().is_some_and(|to| *to <= self.from)
    }

    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let to = self.to.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        (Bound::Included(self.from.as_slice()), to)
    }
}

/// The first key beyond all that begin with `prefix`; `None` if there is none.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

/// A consistent store of one group's keys.
pub trait Backing {
    /// The value of `key`.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackingError>;

    /// Up to `limit` rows of `range`: the first ones in order of keys, or with `reverse` the last ones, last first.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn scan(&self, range: &KeyRange, limit: usize, reverse: bool) -> Result<Vec<Row>, BackingError>;

    /// Shows `take` the key and value of each row of `range`, in order of keys, until it wants no more. Rows behind that
    /// are not read.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn visit(&self, range: &KeyRange, take: &mut dyn FnMut(&[u8], &[u8]) -> bool)
    -> Result<(), BackingError>;
}

/// Reading, alike for [`Txn`] and [`View`].
pub trait Read {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Option<Vec<u8>>;

    /// The first `limit` rows of `range`, in order of keys.
    fn scan(&self, range: &KeyRange, limit: usize) -> Vec<Row>;

    /// The last `limit` rows of `range`, last first.
    fn scan_reverse(&self, range: &KeyRange, limit: usize) -> Vec<Row>;

    /// Whether `key` is there.
    fn contains(&self, key: &[u8]) -> bool {
        self.get(key).is_some()
    }
}

/// Keeps the first failure and answers "nothing there" instead.
#[derive(Default)]
struct FirstFailure(RefCell<Option<BackingError>>);

impl FirstFailure {
    fn or_empty<T: Default>(&self, result: Result<T, BackingError>) -> T {
        result.unwrap_or_else(|error| {
            self.0.borrow_mut().get_or_insert(error);
            T::default()
        })
    }
}

/// Values that a view keeps once they were read; then all are forgotten, and read again as they are asked for.
const VALUES_KEPT_MAX: usize = 4_096;
/// Bytes of a value that is kept.
const VALUE_KEPT_BYTES_MAX: usize = 1_024;

/// A read-only, consistent view. What it read is kept: the steps of one command ask for the same folders, namespace and
/// slots again and again.
pub struct View<'a> {
    backing: &'a dyn Backing,
    failure: FirstFailure,
    kept: RefCell<HashMap<Vec<u8>, Option<Vec<u8>>>>,
}

impl<'a> View<'a> {
    /// A view of `backing`, which must not change while it lives.
    #[must_use]
    pub fn new(backing: &'a dyn Backing) -> Self {
        Self { backing, failure: FirstFailure::default(), kept: RefCell::default() }
    }

    /// Tells whether all reads so far were answered by the store.
    ///
    /// # Errors
    /// The first failure to read: then nothing that was read may be used.
    pub fn check(&self) -> Result<(), BackingError> {
        self.failure.0.borrow().clone().map_or(Ok(()), Err)
    }
}

impl Read for View<'_> {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        if let Some(known) = self.kept.borrow().get(key) {
            return known.clone();
        }
        let value = match self.backing.get(key) {
            Ok(value) => value,
            failed @ Err(_) => return self.failure.or_empty(failed),
        };
        if value.as_ref().is_none_or(|value| value.len() <= VALUE_KEPT_BYTES_MAX) {
            let mut kept = self.kept.borrow_mut();
            if kept.len() >= VALUES_KEPT_MAX {
                kept.clear();
            }
            kept.insert(key.to_vec(), value.clone());
        }
        value
    }

    fn scan(&self, range: &KeyRange, limit: usize) -> Vec<Row> {
        self.failure.or_empty(self.backing.scan(range, limit, false))
    }

    fn scan_reverse(&self, range: &KeyRange, limit: usize) -> Vec<Row> {
        self.failure.or_empty(self.backing.scan(range, limit, true))
    }
}

/// A point within a transaction that [`Txn::rollback`] returns to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Savepoint(usize);

/// A key, and what a write replaced there in a transaction's changes, if there was anything.
type Replaced = (Vec<u8>, Option<Option<Vec<u8>>>);

/// Changes over a consistent view, seen by its own reads.
pub struct Txn<'a> {
    view: View<'a>,
    changes: Changes,
    /// What each write replaced in `changes`, oldest first.
    undo: Vec<Replaced>,
}

impl<'a> Txn<'a> {
    /// A transaction over `backing`, which must not change while it lives.
    #[must_use]
    pub fn new(backing: &'a dyn Backing) -> Self {
        Self { view: View::new(backing), changes: Changes::new(), undo: Vec::new() }
    }

    /// Writes a value.
    pub fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.change(key, Some(value));
    }

    /// Removes a key, present or not.
    pub fn delete(&mut self, key: &[u8]) {
        self.change(key, None);
    }

    fn change(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        let replaced = self.changes.insert(key.to_vec(), value);
        self.undo.push((key.to_vec(), replaced));
    }

    /// The present point, to return to.
    #[must_use]
    pub fn savepoint(&self) -> Savepoint {
        Savepoint(self.undo.len())
    }

    /// Takes back every change made since `savepoint`.
    pub fn rollback(&mut self, savepoint: Savepoint) {
        for (key, replaced) in self.undo.drain(savepoint.0.min(self.undo.len())..).rev() {
            match replaced {
                Some(value) => self.changes.insert(key, value),
                None => self.changes.remove(&key),
            };
        }
    }

    /// Runs `steps`; if they fail, nothing that they wrote remains.
    ///
    /// # Errors
    /// What `steps` returned.
    pub fn attempt<T, E>(&mut self, steps: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<T, E> {
        let savepoint = self.savepoint();
        let result = steps(self);
        if result.is_err() {
            self.rollback(savepoint);
        }
        result
    }

    /// Declares what was written so far final, so that it need not be remembered how to take it back.
    pub fn forget_savepoints(&mut self) {
        self.undo.clear();
    }

    /// Ends the transaction: what is to be written.
    ///
    /// # Errors
    /// If a read failed: then the changes rest on nothing and are dropped.
    pub fn into_changes(self) -> Result<Changes, BackingError> {
        self.view.check()?;
        Ok(self.changes)
    }

    /// The first keys of `range`, in order: up to `limit`, and none behind that with which their rows have `bytes_max`
    /// bytes. Tells as well whether it ended there, so that there may be more.
    pub fn keys_within(&self, range: &KeyRange, limit: usize, bytes_max: usize) -> (Vec<Vec<u8>>, bool) {
        if range.is_empty() || limit == 0 {
            return (Vec::new(), false);
        }
        let (mut keys, mut bytes) = (Vec::new(), 0);
        // Whether the next one is wanted.
        let mut take = |key: &[u8], value: &[u8]| {
            bytes += key.len() + value.len();
            keys.push(key.to_vec());
            keys.len() < limit && bytes < bytes_max
        };
        let mut changed = self.changes.range::<[u8], _>(range.bounds()).peekable();
        let mut wanted = true;
        let visited = self.view.backing.visit(range, &mut |key, value| {
            while wanted && let Some((own, written)) = changed.next_if(|(own, _)| own.as_slice() < key) {
                wanted = written.as_ref().is_none_or(|written| take(own, written));
            }
            if wanted {
                wanted = match changed.next_if(|(own, _)| own.as_slice() == key) {
                    Some((_, written)) => written.as_ref().is_none_or(|written| take(key, written)),
                    None => take(key, value),
                };
            }
            wanted
        });
        self.view.failure.or_empty(visited);
        while wanted && let Some((own, written)) = changed.next() {
            wanted = written.as_ref().is_none_or(|written| take(own, written));
        }
        (keys, !wanted)
    }

    fn merged(&self, range: &KeyRange, limit: usize, reverse: bool) -> Vec<Row> {
        if range.is_empty() || limit == 0 {
            return Vec::new();
        }
        let changed = || self.changes.range::<[u8], _>(range.bounds());
        // Enough rows that, whatever this transaction deleted of them, `limit` remain if there are as many.
        let deleted = changed().filter(|(_, value)| value.is_none()).count();
        let base =
            self.view.failure.or_empty(self.view.backing.scan(range, limit.saturating_add(deleted), reverse));
        let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = base.into_iter().collect();
        for (key, value) in changed() {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        if reverse {
            rows.into_iter().rev().take(limit).collect()
        } else {
            rows.into_iter().take(limit).collect()
        }
    }
}

impl Read for Txn<'_> {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self.changes.get(key) {
            Some(value) => value.clone(),
            None => self.view.get(key),
        }
    }

    fn scan(&self, range: &KeyRange, limit: usize) -> Vec<Row> {
        self.merged(range, limit, false)
    }

    fn scan_reverse(&self, range: &KeyRange, limit: usize) -> Vec<Row> {
        self.merged(range, limit, true)
    }
}

/// A group's keys in memory, so that a state machine can be simulated by the million.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStore {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl MemoryStore {
    /// Writes what a transaction changed.
    pub fn commit(&mut self, changes: Changes) {
        for (key, value) in changes {
            match value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
    }

    /// All rows, in order of keys.
    #[must_use]
    pub fn rows(&self) -> &BTreeMap<Vec<u8>, Vec<u8>> {
        &self.rows
    }
}

impl Backing for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackingError> {
        Ok(self.rows.get(key).cloned())
    }

    fn scan(&self, range: &KeyRange, limit: usize, reverse: bool) -> Result<Vec<Row>, BackingError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let rows =
            self.rows.range::<[u8], _>(range.bounds()).map(|(key, value)| (key.clone(), value.clone()));
        Ok(if reverse { rows.rev().take(limit).collect() } else { rows.take(limit).collect() })
    }

    fn visit(
        &self,
        range: &KeyRange,
        take: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), BackingError> {
        if !range.is_empty() {
            let mut rows = self.rows.range::<[u8], _>(range.bounds());
            while rows.next().is_some_and(|(key, value)| take(key, value)) {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn key(random: &mut SmallRng) -> Vec<u8> {
        let length = random.random_range(0..3);
        (0..length).map(|_| [0, 1, 254, 255][random.random_range(0..4)]).collect()
    }

    fn range(random: &mut SmallRng) -> KeyRange {
        match random.random_range(0..4) {
            0 => KeyRange::all(),
            1 => KeyRange::between(&key(random), &key(random)),
            2 => KeyRange::prefix(&key(random)),
            _ => KeyRange::prefix_after(&key(random), &key(random)),
        }
    }

    /// What [`Txn::keys_within`] gives where all is written.
    fn first_keys(
        store: &MemoryStore,
        range: &KeyRange,
        limit: usize,
        bytes_max: usize,
    ) -> (Vec<Vec<u8>>, bool) {
        let (mut keys, mut bytes) = (Vec::new(), 0);
        for (key, value) in store.scan(range, limit, false).unwrap() {
            bytes += key.len() + value.len();
            keys.push(key);
            if bytes >= bytes_max {
                break;
            }
        }
        let ended = !keys.is_empty() && (keys.len() == limit || bytes >= bytes_max);
        (keys, ended)
    }

    #[test]
    fn a_transaction_reads_as_if_its_changes_were_written() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        for _ in 0..2_000 {
            let mut base = MemoryStore::default();
            for _ in 0..random.random_range(0..12) {
                base.commit(Changes::from([(key(&mut random), Some(key(&mut random)))]));
            }
            let mut expected = base.clone();
            let mut txn = Txn::new(&base);
            for _ in 0..random.random_range(0..12) {
                let kept = random.random_bool(0.7);
                let changes: Vec<_> = (0..random.random_range(0..4))
                    .map(|_| (key(&mut random), random.random_bool(0.5).then(|| key(&mut random))))
                    .collect();
                let result: Result<(), ()> = txn.attempt(|txn| {
                    for (key, value) in &changes {
                        match value {
                            Some(value) => txn.put(key, value.clone()),
                            None => txn.delete(key),
                        }
                    }
                    if kept { Ok(()) } else { Err(()) }
                });
                if result.is_ok() {
                    changes.into_iter().for_each(|change| expected.commit(Changes::from([change])));
                }
                let (range, limit) = (range(&mut random), random.random_range(0..6));
                assert_eq!(txn.scan(&range, limit), expected.scan(&range, limit, false).unwrap());
                assert_eq!(txn.scan_reverse(&range, limit), expected.scan(&range, limit, true).unwrap());
                let bytes_max = random.random_range(1..8);
                assert_eq!(
                    txn.keys_within(&range, limit, bytes_max),
                    first_keys(&expected, &range, limit, bytes_max)
                );
                let key = key(&mut random);
                assert_eq!(txn.get(&key), expected.get(&key).unwrap());
            }
            let changes = txn.into_changes().unwrap();
            base.commit(changes);
            assert_eq!(base, expected);
        }
    }

    struct Broken;

    impl Backing for Broken {
        fn get(&self, _key: &[u8]) -> Result<Option<Vec<u8>>, BackingError> {
            Err(BackingError { reason: "unreadable".to_owned() })
        }

        fn scan(&self, _range: &KeyRange, _limit: usize, _reverse: bool) -> Result<Vec<Row>, BackingError> {
            Err(BackingError { reason: "unreadable".to_owned() })
        }

        fn visit(
            &self,
            _range: &KeyRange,
            _take: &mut dyn FnMut(&[u8], &[u8]) -> bool,
        ) -> Result<(), BackingError> {
            Err(BackingError { reason: "unreadable".to_owned() })
        }
    }

    #[test]
    fn a_failed_read_spoils_the_transaction() {
        let mut txn = Txn::new(&Broken);
        assert_eq!(txn.get(b"a"), None);
        txn.put(b"a", b"1".to_vec());
        assert!(txn.into_changes().is_err());
        let txn = Txn::new(&Broken);
        assert_eq!(txn.keys_within(&KeyRange::all(), 1, 1), (Vec::new(), false));
        assert!(txn.into_changes().is_err());
        let view = View::new(&Broken);
        assert!(view.check().is_ok());
        assert!(view.scan(&KeyRange::all(), 1).is_empty());
        assert!(view.check().is_err());
    }

    #[test]
    fn a_prefix_ends_before_the_next() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(&[1, 255]), Some(vec![2]));
        assert_eq!(prefix_end(&[255]), None);
        assert_eq!(prefix_end(&[]), None);
    }
}
