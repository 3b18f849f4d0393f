//! Which connections are open, and which of them have to go.
//!
//! A connection is unproven until a request on it has shown a token that is right. Strangers' connections cost little
//! and are few: a new one takes the place of an old one, so that whoever proves itself at once always gets in. Proven
//! ones are never closed for others; each account has a share of them.
//!
//! Invariants:
//! - Unproven connections are at most so many of one address and so many in all; of those that have to go, the ones
//!   that have not asked for anything go before the others, and the older before the younger.
//! - Proven connections of one account, and all open ones, are bounded.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use engine::ids::AccountId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::config::Limits;
use crate::door::address::Address;
use crate::door::shares::{Share, Shares};

/// Bounds on connections.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    all: usize,
    unproven: usize,
    unproven_of_address: usize,
}

#[derive(Default)]
struct Open {
    count: usize,
    next: u64,
    /// By age.
    unproven: BTreeMap<u64, Arc<Connection>>,
    unproven_of_address: HashMap<Address, usize>,
}

/// All open connections.
pub(crate) struct Connections {
    bounds: Bounds,
    open: Mutex<Open>,
    proven: Shares<AccountId>,
}

/// One open connection.
pub(crate) struct Connection {
    pub(crate) number: u64,
    pub(crate) address: Address,
    connections: Arc<Connections>,
    /// Its part of its account's share, once it is proven.
    proven: OnceLock<Share>,
    /// Cancelled when it has to make room.
    pub(crate) evicted: CancellationToken,
    begun: Instant,
    /// Streams under way.
    streams: AtomicU32,
    /// When the last stream ended, in milliseconds since the connection began; 0 before the first.
    ended_ms: AtomicU64,
    /// Bytes read since a request was last answered, or begun while there was none, while it is unproven.
    unproven_bytes: AtomicU64,
    /// Told when more may be read.
    pub(crate) may_read: Notify,
}

/// An open connection's place; given back when dropped.
pub(crate) struct Place(Arc<Connection>);

impl std::ops::Deref for Place {
    type Target = Arc<Connection>;

    fn deref(&self) -> &Arc<Connection> {
        &self.0
    }
}

impl Connections {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Arc::new(Self {
            bounds: Bounds {
                all: size(limits.connections_max),
                unproven: size(limits.unproven_connections_max),
                unproven_of_address: size(limits.address_unproven_connections_max),
            },
            open: Mutex::default(),
            proven: Shares::new(limits.account_connections_max, limits.connections_max),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Held for some look-ups; when somebody has to go, for one pass over the unproven.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new connection in; `None` if all places are taken by proven ones.
    pub(crate) fn enter(self: &Arc<Self>, address: Address) -> Option<Place> {
        let mut open = self.lock();
        let of_address = open.unproven_of_address.get(&address).copied().unwrap_or(0);
        if of_address >= self.bounds.unproven_of_address {
            open.evict(|connection| connection.address == address);
        } else if open.unproven.len() >= self.bounds.unproven || open.count >= self.bounds.all {
            // The address with most of them gives way.
            let most = open.unproven_of_address.iter().max_by_key(|(_address, count)| **count);
            let most = *most?.0;
            open.evict(|connection| connection.address == most);
        }
        open.next += 1;
        let connection = Arc::new(Connection {
            number: open.next,
            address,
            connections: Arc::clone(self),
            proven: OnceLock::new(),
            evicted: CancellationToken::new(),
            begun: Instant::now(),
            streams: AtomicU32::new(0),
            ended_ms: AtomicU64::new(0),
            unproven_bytes: AtomicU64::new(0),
            may_read: Notify::new(),
        });
        open.count += 1;
        *open.unproven_of_address.entry(address).or_default() += 1;
        let number = open.next;
        open.unproven.insert(number, Arc::clone(&connection));
        Some(Place(connection))
    }
}

impl Open {
    fn evict(&mut self, which: impl Fn(&Connection) -> bool) {
        let mut candidates = self.unproven.values().filter(|connection| which(connection));
        let oldest = candidates.clone().next();
        let goes = candidates.find(|connection| !connection.has_asked()).or(oldest).map(Arc::clone);
        if let Some(goes) = goes {
            self.no_longer_unproven(&goes);
            goes.evicted.cancel();
        }
    }

    fn no_longer_unproven(&mut self, connection: &Connection) {
        if self.unproven.remove(&connection.number).is_some()
            && let Some(count) = self.unproven_of_address.get_mut(&connection.address)
        {
            *count -= 1;
            if *count == 0 {
                self.unproven_of_address.remove(&connection.address);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.0.connections.lock();
        open.count -= 1;
        open.no_longer_unproven(&self.0);
    }
}

impl Connection {
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn has_asked(&self) -> bool {
        self.streams.load(Ordering::Relaxed) > 0 || self.ended_ms.load(Ordering::Relaxed) > 0
    }

    /// Whether a request on it has shown a right token.
    pub(crate) fn is_proven(&self) -> bool {
        self.proven.get().is_some()
    }

    /// Notes that a request has shown `account`'s token; `false` if that account has too many connections already.
    pub(crate) fn prove(&self, account: AccountId) -> bool {
        if self.is_proven() {
            return true;
        }
        let Ok(share) = self.connections.proven.try_take(account, 1) else { return false };
        // Two requests may prove it at once; the other's share is given back.
        drop(self.proven.set(share));
        self.connections.lock().no_longer_unproven(self);
        self.may_read.notify_one();
        true
    }

    /// A stream begins; it ends when this is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> OpenStream {
        if self.streams.fetch_add(1, Ordering::Relaxed) == 0 {
            // What came before belongs to requests that were answered.
            self.unproven_bytes.store(0, Ordering::Relaxed);
        }
        OpenStream(Arc::clone(self))
    }

    /// Notes bytes read; says whether still more may be.
    pub(crate) fn has_read(&self, bytes: usize) {
        if !self.is_proven() {
            self.unproven_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Whether more may be read: of strangers, `bytes_max` between one answer and the next. While no request is
    /// under way nothing would end the wait, and what comes is the rest of bodies that were refused, which is
    /// thrown away as it is read.
    pub(crate) fn readable(&self, bytes_max: u64) -> bool {
        self.is_proven()
            || self.streams.load(Ordering::Relaxed) == 0
            || self.unproven_bytes.load(Ordering::Relaxed) < bytes_max
    }

    /// When it has to be looked at again, and whether its time is over now: nothing was asked, or nothing any more.
    pub(crate) fn time_left(&self, first_max: Duration, idle_max: Duration) -> Option<Duration> {
        if self.streams.load(Ordering::Relaxed) > 0 {
            return Some(first_max);
        }
        let ended_ms = self.ended_ms.load(Ordering::Relaxed);
        let max = if self.is_proven() { idle_max } else { first_max };
        let quiet = Duration::from_millis(self.elapsed_ms().saturating_sub(ended_ms));
        max.checked_sub(quiet).filter(|left| !left.is_zero())
    }
}

/// A stream of a connection.
pub(crate) struct OpenStream(Arc<Connection>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.ended_ms.store(self.0.elapsed_ms(), Ordering::Relaxed);
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
        self.0.unproven_bytes.store(0, Ordering::Relaxed);
        self.0.may_read.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(all: u64, unproven: u64, of_address: u64, of_account: u64) -> Arc<Connections> {
        Connections::new(&Limits {
            connections_max: all,
            unproven_connections_max: unproven,
            address_unproven_connections_max: of_address,
            account_connections_max: of_account,
            ..Limits::default()
        })
    }

    fn address(last: u8) -> Address {
        Address::of([192, 0, 2, last].into())
    }

    fn account(number: u8) -> AccountId {
        AccountId::from_bytes([number; 16])
    }

    #[test]
    fn a_newcomer_takes_the_place_of_the_oldest_silent_stranger_of_its_address() {
        let connections = connections(100, 100, 3, 100);
        let enter = |last| connections.enter(address(last)).unwrap();
        let other = enter(2);
        let asks = enter(1);
        let stream = asks.begin();
        let silent = [enter(1), enter(1)];
        let newcomer = enter(1);
        assert!(silent[0].evicted.is_cancelled() && !silent[1].evicted.is_cancelled());
        assert!(!asks.evicted.is_cancelled() && !other.evicted.is_cancelled());
        assert!(newcomer.prove(account(1)));
        for _more in 0..10 {
            drop(enter(1));
        }
        let _more: Vec<Place> = (0..5).map(|_| enter(1)).collect();
        assert!(!newcomer.evicted.is_cancelled(), "who is proven stays");
        assert!(!other.evicted.is_cancelled());
        drop(stream);
    }

    #[test]
    fn when_all_is_full_the_address_with_most_strangers_gives_way() {
        let connections = connections(100, 4, 3, 100);
        let enter = |last| connections.enter(address(last)).unwrap();
        let many = [enter(1), enter(1), enter(1)];
        let one = enter(2);
        let newcomer = enter(3);
        assert!(many[0].evicted.is_cancelled() && !one.evicted.is_cancelled());
        assert!(!newcomer.evicted.is_cancelled());
    }

    #[test]
    fn proven_connections_are_bounded_by_account_and_in_all() {
        let connections = connections(3, 3, 3, 2);
        let enter = || connections.enter(address(1));
        let [one, two, three] = [enter().unwrap(), enter().unwrap(), enter().unwrap()];
        assert!(one.prove(account(1)) && two.prove(account(1)) && !three.prove(account(1)));
        assert!(three.prove(account(2)));
        assert!(enter().is_none(), "all places are taken");
        drop(one);
        assert!(enter().is_some());
    }

    #[test]
    fn a_place_is_given_back_whatever_became_of_it() {
        let connections = connections(10, 2, 2, 2);
        for number in 0..100 {
            let place = connections.enter(address(number % 7)).unwrap();
            if number % 3 == 0 {
                assert!(place.prove(account(1)));
            }
        }
        let open = connections.lock();
        assert_eq!((open.count, open.unproven.len(), open.unproven_of_address.len()), (0, 0, 0));
    }

    #[test]
    fn who_asks_nothing_has_little_time_and_who_is_known_more() {
        let connections = connections(10, 10, 10, 10);
        let place = connections.enter(address(1)).unwrap();
        let (first, idle) = (Duration::from_millis(1), Duration::from_secs(60));
        let deadline = Instant::now() + Duration::from_secs(10);
        while place.time_left(first, idle).is_some() {
            assert!(Instant::now() < deadline, "it has for ever");
            std::thread::yield_now();
        }
        let stream = place.begin();
        assert!(place.time_left(first, idle).is_some(), "it is at work");
        assert!(place.prove(account(1)));
        drop(stream);
        assert!(place.time_left(first, idle).unwrap() > Duration::from_secs(50));
    }

    #[test]
    fn a_stranger_is_read_only_so_far_until_it_is_answered() {
        let connections = connections(10, 10, 10, 10);
        let place = connections.enter(address(1)).unwrap();
        let stream = place.begin();
        place.has_read(100);
        assert!(place.readable(101) && !place.readable(100));
        let other = place.begin();
        assert!(!place.readable(100));
        drop(other);
        assert!(place.readable(100));
        place.has_read(100);
        assert!(!place.readable(100));
        assert!(place.prove(account(1)) && place.readable(100));
        drop(stream);
    }

    #[test]
    fn the_rest_of_a_refused_body_is_read_away() {
        let connections = connections(10, 10, 10, 10);
        let place = connections.enter(address(1)).unwrap();
        drop(place.begin());
        place.has_read(1000);
        assert!(place.readable(100), "nobody would say when to go on");
        let _next = place.begin();
        assert!(place.readable(100), "it has all of its bytes");
    }
}
