//! Who does more in a second than is good for others waits with the answer for as long as that is too much.
//!
//! Invariants:
//! - At most [`DEBT_MAX`] is owed: whoever stops goes on within that.
//! - Who is not let in has waited as long as any answer is kept back: to ask again at once is of no use.
//! - Nobody is kept any longer once the gateway stops.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::ids::AccountId;
use tokio_util::sync::CancellationToken;

use crate::door::meter::Meter;
use crate::failure::Failure;

/// The longest that an answer is kept back; who owes more is not let in.
pub(crate) const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);
/// The most that may be owed.
pub(crate) const DEBT_MAX: Duration = Duration::from_secs(20);

/// What is counted, in the words of who is not let in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cause {
    pub(crate) what: &'static str,
    /// The limit's key.
    pub(crate) limit: &'static str,
}

/// Counts it for each account.
pub(crate) struct Debts {
    cause: Cause,
    stopping: CancellationToken,
    meter: Mutex<Meter<AccountId>>,
}

impl Debts {
    pub(crate) fn new(cause: Cause, burst: u64, per_second: u64, stopping: CancellationToken) -> Self {
        let period = Duration::from_secs(1) / u32::try_from(per_second.max(1)).unwrap_or(u32::MAX);
        Self { cause, stopping, meter: Mutex::new(Meter::new(burst, period)) }
    }

    fn meter(&self) -> MutexGuard<'_, Meter<AccountId>> {
        // Held for a look-up or an insertion.
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps those who owe too much for a while, and refuses them if they then still do. Cancel safe: it counts nothing.
    pub(crate) async fn check(&self, account: AccountId) -> Result<(), Failure> {
        if self.let_in(account).is_err() {
            self.keep(ANSWER_WAIT_MAX).await;
        }
        self.let_in(account)
    }

    /// Keeps an answer back for what is owed, but not for ever. Cancel safe: it counts nothing.
    pub(crate) async fn keep(&self, owed: Duration) {
        tokio::select! {
            () = self.stopping.cancelled() => {}
            () = tokio::time::sleep(owed.min(ANSWER_WAIT_MAX)) => {}
        }
    }

    /// Refuses those who owe too much now.
    fn let_in(&self, account: AccountId) -> Result<(), Failure> {
        match self.owed(account) {
            owed if owed <= ANSWER_WAIT_MAX => Ok(()),
            owed => Err(Failure::limit(self.cause.what, self.cause.limit, owed - ANSWER_WAIT_MAX)),
        }
    }

    /// What is owed.
    pub(crate) fn owed(&self, account: AccountId) -> Duration {
        self.meter().wait(account, Instant::now())
    }

    /// Counts `count`; gives what is owed with them.
    pub(crate) fn owe(&self, account: AccountId, count: usize) -> Duration {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.meter().owe(account, count, DEBT_MAX, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const CAUSE: Cause = Cause { what: "so much is asked for", limit: "so_much_per_second" };

    #[tokio::test]
    async fn who_owes_too_much_is_kept_and_refused() {
        let (debts, account) =
            (Debts::new(CAUSE, 100, 10, CancellationToken::new()), AccountId::from_bytes([1; 16]));
        assert_eq!(debts.owe(account, 99), Duration::ZERO);
        debts.check(account).now_or_never().unwrap().unwrap();
        for _again in 0..5 {
            assert!(debts.owe(account, 1000) > ANSWER_WAIT_MAX);
        }
        assert!(debts.check(account).now_or_never().is_none(), "answered at once");
        let failure = debts.let_in(account).unwrap_err();
        assert_eq!(failure.reason, "busy");
        assert!(failure.message.contains("so_much_per_second"), "{failure}");
        let after = failure.retry_after.unwrap();
        assert!(!after.is_zero() && after <= DEBT_MAX - ANSWER_WAIT_MAX, "{after:?}");
        debts.check(AccountId::from_bytes([2; 16])).now_or_never().unwrap().unwrap();
    }

    #[tokio::test]
    async fn nobody_is_kept_once_the_gateway_stops() {
        let stopping = CancellationToken::new();
        let debts = Debts::new(CAUSE, 100, 10, stopping.clone());
        stopping.cancel();
        debts.keep(DEBT_MAX).now_or_never().unwrap();
    }

    #[tokio::test]
    async fn who_owes_little_more_than_it_may_is_let_in_after_a_while() {
        let (debts, account) =
            (Debts::new(CAUSE, 1, 1000, CancellationToken::new()), AccountId::from_bytes([1; 16]));
        assert!(debts.owe(account, 5500) > ANSWER_WAIT_MAX);
        debts.check(account).await.unwrap();
    }
}
