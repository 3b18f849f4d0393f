//! Sign-ins wait for their turn to have a password checked.
//!
//! Invariants:
//! - At most so many turns are given at once, one by one to each address that waits, within it to each account, within
//!   that to each connection: whoever floods waits behind himself, and not the others behind him.
//! - Wrong passwords are bounded by account and address, and more widely by account. A right one counts for nothing. So
//!   a guesser has few guesses, and does not lock the owner out: from another address the owner is not hindered, from
//!   the same one the connections take turns.
//! - What waits is bounded; when it is too much, the last of who has most waiting is refused.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::fair::Fair;
use crate::config::Limits;
use crate::door::gate::Origin;
use crate::door::meter::Meter;
use crate::door::recent::Recent;
use crate::failure::Failure;
use crate::limits::SIGN_INS_WAITING_MAX;
use crate::password::at_once;

/// How often it is looked whether one that waits may go on by now.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// One account at one address, and the account; by hashes that nobody outside can find collisions of.
#[derive(Clone, Copy, Debug)]
struct Keys {
    here: u64,
    account: u64,
}

struct Waiting {
    keys: Keys,
    turn: oneshot::Sender<Turn>,
}

struct State {
    waiting: Fair<Waiting>,
    running: usize,
    /// When time alone may have let somebody go on.
    next_look: Instant,
    guesses_here: Meter<u64>,
    guesses: Meter<u64>,
    /// Where the right password came from lately: guesses from elsewhere do not count there.
    right_here: Recent<u64>,
}

impl State {
    /// Who gave up waits no more.
    fn drop_gone(&mut self) {
        self.waiting.retain(&mut |waiting| !waiting.turn.is_closed());
    }
}

/// All sign-ins.
pub(crate) struct Turns {
    state: Mutex<State>,
    hashes: RandomState,
    wait_max: Duration,
    /// Turns at once.
    at_once: usize,
}

/// Leave to check one password. Until it is said that it was right it counts as wrong.
pub(crate) struct Turn {
    keys: Keys,
    /// Whether it counts for the account everywhere.
    counted: bool,
    turns: Arc<Turns>,
}

fn period(per_minute: u64) -> Duration {
    Duration::from_secs(60) / u32::try_from(per_minute.max(1)).unwrap_or(u32::MAX)
}

impl Turns {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        let state = State {
            waiting: Fair::default(),
            running: 0,
            next_look: Instant::now(),
            guesses_here: Meter::new(limits.sign_in_guesses_burst, period(limits.sign_in_guesses_per_minute)),
            guesses: Meter::new(limits.account_guesses_burst, period(limits.account_guesses_per_minute)),
            right_here: Recent::default(),
        };
        let wait_max = Duration::from_secs(limits.sign_in_wait_seconds_max);
        Arc::new(Self { state: Mutex::new(state), hashes: RandomState::new(), wait_max, at_once: at_once() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Held for one pass over what waits.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives turns to those who may have one.
    fn give(self: &Arc<Self>, now: Instant) {
        let mut given = Vec::new();
        {
            let mut state = self.lock();
            let state = &mut *state;
            if state.running >= self.at_once {
                return;
            }
            state.drop_gone();
            while state.running < self.at_once {
                let (here, all, right) = (&state.guesses_here, &state.guesses, &state.right_here);
                let next = state.waiting.pop(&mut |waiting| {
                    let keys = waiting.keys;
                    let elsewhere = right.contains(&keys.here) || all.wait(keys.account, now).is_zero();
                    elsewhere && here.wait(keys.here, now).is_zero()
                });
                let Some(Waiting { keys, turn }) = next else { break };
                let taken = state.guesses_here.take(keys.here, now);
                debug_assert!(taken.is_ok(), "it was asked before");
                let counted = !state.right_here.contains(&keys.here);
                if counted {
                    let taken = state.guesses.take(keys.account, now);
                    debug_assert!(taken.is_ok(), "it was asked before");
                }
                state.running += 1;
                given.push((turn, Turn { keys, counted, turns: Arc::clone(self) }));
            }
        }
        for (waiting, turn) in given {
            if let Err(unused) = waiting.send(turn) {
                // Gone at this moment: nothing was guessed.
                unused.was_not_used();
            }
        }
    }

    /// The same, by whoever of those that wait comes first each time.
    fn give_if_due(self: &Arc<Self>, now: Instant) {
        {
            let mut state = self.lock();
            if now < state.next_look {
                return;
            }
            state.next_look = now + LOOK_INTERVAL;
        }
        self.give(now);
    }

    fn refused(&self, keys: Keys) -> Failure {
        let (here, all) = {
            let (state, now) = (self.lock(), Instant::now());
            (state.guesses_here.wait(keys.here, now), state.guesses.wait(keys.account, now))
        };
        let soon = Duration::from_secs(1);
        if here > Duration::ZERO {
            let what = "too many wrong passwords for this account from your address";
            return Failure::limit(what, "sign_in_guesses_per_minute", here.max(soon));
        }
        if all > Duration::ZERO {
            let what = "too many wrong passwords for this account";
            return Failure::limit(what, "account_guesses_per_minute", all.max(soon));
        }
        Failure::limit("too many sign-ins at once", "sign_in_wait_seconds_max", Duration::from_secs(2))
    }

    /// Waits for a turn. Cancel safe.
    pub(crate) async fn wait(self: &Arc<Self>, origin: Origin, email: &str) -> Result<Turn, Failure> {
        let keys = Keys {
            here: self.hashes.hash_one((origin.address, email)),
            account: self.hashes.hash_one(email),
        };
        let path = [self.hashes.hash_one(origin.address), keys.here, origin.connection];
        let (turn, mut mine) = oneshot::channel();
        let begun = Instant::now();
        {
            let mut state = self.lock();
            state.waiting.push(&path, Waiting { keys, turn });
            if state.waiting.len() > SIGN_INS_WAITING_MAX {
                state.drop_gone();
            }
            if state.waiting.len() > SIGN_INS_WAITING_MAX {
                drop(state.waiting.pop_of_heaviest());
            }
        }
        self.give(Instant::now());
        loop {
            match tokio::time::timeout(LOOK_INTERVAL, &mut mine).await {
                Ok(Ok(turn)) => return Ok(turn),
                Ok(Err(_made_room)) => return Err(self.refused(keys)),
                Err(_elapsed) if begun.elapsed() >= self.wait_max => return Err(self.refused(keys)),
                Err(_elapsed) => self.give_if_due(Instant::now()),
            }
        }
    }
}

impl Turn {
    /// The password was right: it counts for nothing.
    pub(crate) fn was_right(self) {
        self.give_back(true);
    }

    /// No password was looked at: it counts for nothing.
    pub(crate) fn was_not_used(self) {
        self.give_back(false);
    }

    fn give_back(&self, was_right: bool) {
        let mut state = self.turns.lock();
        state.guesses_here.give_back(self.keys.here);
        if self.counted {
            state.guesses.give_back(self.keys.account);
        }
        if was_right {
            state.right_here.insert(self.keys.here, ());
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.lock().running -= 1;
        self.turns.give(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::door::address::Address;

    fn origin(address: u8, connection: u64) -> Origin {
        Origin { address: Address::of([192, 0, 2, address].into()), connection }
    }

    fn turns() -> Arc<Turns> {
        Turns::new(&Limits { sign_in_wait_seconds_max: 1, ..Limits::default() })
    }

    #[tokio::test]
    async fn a_guesser_has_few_guesses_and_does_not_hinder_the_owner_elsewhere() {
        let turns = turns();
        let guesses = (0..200).map(|_guess| async {
            match turns.wait(origin(1, 1), "ada@example.org").await {
                Ok(_wrong) => 1,
                Err(failure) => {
                    assert!(failure.retry_after.is_some(), "{failure:?}");
                    0
                }
            }
        });
        let owner = async {
            for _sign_in in 0..20 {
                let waited = Instant::now();
                turns.wait(origin(2, 2), "ada@example.org").await.unwrap().was_right();
                assert!(waited.elapsed() < Duration::from_millis(500));
            }
        };
        let (guessed, ()) = tokio::join!(join_all(guesses), owner);
        let guessed: u32 = guessed.into_iter().sum();
        assert!((5..=8).contains(&guessed), "{guessed}");
    }

    /// Waits until so many wait for their turn.
    async fn crowded(turns: &Turns, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while turns.lock().waiting.len() < count {
            assert!(Instant::now() < deadline, "{} wait", turns.lock().waiting.len());
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_owner_at_the_guessers_address_has_the_next_turn_but_one() {
        let turns = Turns::new(&Limits { sign_in_guesses_per_minute: 120, ..Limits::default() });
        let guesser = async {
            let guesses =
                (0..500).map(|_guess| async { drop(turns.wait(origin(1, 1), "ada@example.org").await) });
            join_all(guesses).await;
        };
        let owner = async {
            crowded(&turns, 400).await;
            let begun = Instant::now();
            turns.wait(origin(1, 2), "ada@example.org").await.unwrap().was_right();
            begun.elapsed()
        };
        let waited = tokio::select! {
            waited = owner => waited,
            () = guesser => panic!("it ended before the owner was let in"),
        };
        assert!(waited < Duration::from_secs(3), "{waited:?}");
    }

    #[tokio::test]
    async fn guesses_from_everywhere_do_not_hinder_the_owner_at_a_known_address() {
        let turns = turns();
        turns.wait(origin(200, 1), "ada@example.org").await.unwrap().was_right();
        let guesses = (0..100).flat_map(|address| [address; 3]).map(|address| {
            let turns = &turns;
            async move { turns.wait(origin(address, 1), "ada@example.org").await.is_ok() }
        });
        let owner = async {
            crowded(&turns, 200).await;
            for _sign_in in 0..3 {
                let begun = Instant::now();
                turns.wait(origin(200, 2), "ada@example.org").await.unwrap().was_right();
                assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
            }
        };
        let (guessed, ()) = tokio::join!(join_all(guesses), owner);
        let guessed = guessed.into_iter().filter(|looked_at| *looked_at).count();
        assert!((20..=35).contains(&guessed), "{guessed}");
    }

    #[tokio::test]
    async fn right_passwords_are_not_slowed_down() {
        let turns = turns();
        let sign_ins = (0..100).map(|_sign_in| async {
            turns.wait(origin(1, 1), "ada@example.org").await.unwrap().was_right();
        });
        join_all(sign_ins).await;
    }

    #[tokio::test]
    async fn a_flood_is_refused_and_others_are_served() {
        let turns = turns();
        let flood = (0..3000).map(|number: u32| {
            let turns = Arc::clone(&turns);
            async move { turns.wait(origin(1, 1), &format!("{number}@example.org")).await.is_ok() }
        });
        let flood = tokio::spawn(join_all(flood));
        tokio::task::yield_now().await;
        for number in 0..50 {
            let innocent = turns.wait(origin(2, number), &format!("innocent {number}")).await;
            innocent.unwrap().was_right();
        }
        let served = flood.await.unwrap().into_iter().filter(|served| *served).count();
        assert!(served >= SIGN_INS_WAITING_MAX / 2, "{served}");
        assert_eq!(turns.lock().running, 0);
    }
}
