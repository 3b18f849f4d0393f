//! Who asks again and again for what is refused waits longer and longer for the answer: a refusal costs the cluster as
//! much as what is done, and nothing is had of it.
//!
//! Invariants:
//! - What is done is never counted, nor what fails because something is not there or the cluster does not answer.

use std::time::Duration;

use engine::ids::AccountId;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::door::debts::{Cause, Debts};
use crate::failure::Failure;

/// Chunks of a list that are as much work as an item.
const CHUNKS_OF_ITEM: usize = 256;

/// Counts them for each account.
pub(crate) struct Refusals {
    debts: Debts,
}

const CAUSE: Cause = Cause {
    what: "nearly all that this account asked for lately was refused; mend what those answers name first",
    limit: "account_refusals_per_second",
};

/// What kind of request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// One with lists of so many chunks together.
    Uploads(usize),
    /// To make or change entries by their paths, where there may be others.
    Entries,
    /// What a device that synchronises wants. It may find that another one was faster, any number of times.
    Actions,
}

impl Asked {
    /// Whether it was refused for what was asked, and will be so again.
    fn in_vain(self, failure: &Failure) -> bool {
        match failure.code {
            Code::InvalidArgument => true,
            Code::ResourceExhausted => failure.is_full(),
            Code::AlreadyExists => self == Self::Entries,
            _ => false,
        }
    }
}

impl Refusals {
    pub(crate) fn new(burst: u64, per_second: u64, stopping: CancellationToken) -> Self {
        Self { debts: Debts::new(CAUSE, burst, per_second, stopping) }
    }

    /// Answers a request for one thing: if it is refused, once what is owed by then was waited for.
    pub(crate) async fn counted<T>(
        &self,
        account: AccountId,
        asked: Asked,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let outcome = answer.await.map(|answer| vec![Ok(answer)]);
        self.settle(account, asked, &outcome).await;
        outcome?.pop().unwrap_or_else(|| Err(Failure::internal("request", &"no answer")))
    }

    /// Keeps those who owe too much for a while, and refuses them if they then still do.
    pub(crate) async fn check(&self, account: AccountId) -> Result<(), Failure> {
        self.debts.check(account).await
    }

    /// Counts what was refused of a request, and waits as long as is owed by then.
    pub(crate) async fn settle<T>(
        &self,
        account: AccountId,
        asked: Asked,
        outcome: &Result<Vec<Result<T, Failure>>, Failure>,
    ) {
        self.debts.keep(self.owed(account, asked, outcome)).await;
    }

    /// What is owed once what was refused of a request is counted; nothing if nothing was.
    fn owed<T>(
        &self,
        account: AccountId,
        asked: Asked,
        outcome: &Result<Vec<Result<T, Failure>>, Failure>,
    ) -> Duration {
        let in_vain = |failure: &Failure| asked.in_vain(failure);
        let items = match outcome {
            Ok(items) => items.iter().filter(|item| item.as_ref().is_err_and(in_vain)).count(),
            Err(failure) => usize::from(in_vain(failure)),
        };
        if items == 0 {
            return Duration::ZERO;
        }
        let more = if let Asked::Uploads(chunks) = asked { chunks / CHUNKS_OF_ITEM } else { 0 };
        self.debts.owe(account, items + more)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::door::debts::ANSWER_WAIT_MAX;

    fn refused(code: Code, reason: &'static str) -> Failure {
        Failure::new(code, reason, "refused")
    }

    fn request(count: usize, failure: &Failure) -> Result<Vec<Result<(), Failure>>, Failure> {
        Ok((0..count).map(|item| if item == 0 { Ok(()) } else { Err(failure.clone()) }).collect())
    }

    fn after(refusals: &Refusals, asked: Asked, count: usize, failure: &Failure) -> Duration {
        refusals.owed(AccountId::from_bytes([1; 16]), asked, &request(count, failure))
    }

    #[tokio::test]
    async fn who_is_refused_again_and_again_waits_longer_and_longer_and_not_for_ever() {
        let (refusals, account) =
            (Refusals::new(100, 10, CancellationToken::new()), AccountId::from_bytes([1; 16]));
        let quota = refused(Code::ResourceExhausted, "quota");
        assert_eq!(after(&refusals, Asked::Actions, 100, &quota), Duration::ZERO);
        refusals.check(account).now_or_never().unwrap().unwrap();
        let owed = after(&refusals, Asked::Actions, 31, &quota);
        assert!(owed > Duration::from_secs(2) && owed < ANSWER_WAIT_MAX, "{owed:?}");
        refusals.check(account).now_or_never().unwrap().unwrap();
        for _again in 0..5 {
            let owed = after(&refusals, Asked::Actions, 1000, &quota);
            assert!(owed > ANSWER_WAIT_MAX, "{owed:?}");
        }
        assert!(refusals.check(account).now_or_never().is_none(), "answered at once");
    }

    #[test]
    fn what_is_done_or_not_there_or_taken_by_another_device_is_not_counted() {
        let refusals = Refusals::new(1, 1, CancellationToken::new());
        let elsewhere = [
            refused(Code::NotFound, "not-found"),
            refused(Code::Unavailable, "unavailable"),
            refused(Code::ResourceExhausted, "no-space"),
            refused(Code::ResourceExhausted, "busy"),
            refused(Code::Aborted, "conflict"),
            refused(Code::AlreadyExists, "exists"),
        ];
        for failure in &elsewhere {
            assert_eq!(after(&refusals, Asked::Actions, 1000, failure), Duration::ZERO);
        }
        let owed = after(&refusals, Asked::Entries, 1000, &elsewhere[5]);
        assert!(owed > ANSWER_WAIT_MAX, "{owed:?}");
    }

    #[tokio::test]
    async fn one_thing_that_is_refused_counts_as_an_item_does() {
        let (refusals, account) =
            (Refusals::new(1, 1, CancellationToken::new()), AccountId::from_bytes([1; 16]));
        let ask = |answer: Result<u8, Failure>| refusals.counted(account, Asked::Entries, async { answer });
        let owed = || refusals.debts.owed(account);
        for _again in 0..100 {
            assert_eq!(ask(Ok(7)).await.unwrap(), 7);
        }
        assert_eq!(owed(), Duration::ZERO);
        let exists = refused(Code::AlreadyExists, "exists");
        for _again in 0..5 {
            // Whoever does not wait for the answer owes it all the same.
            drop(ask(Err(exists.clone())).now_or_never());
        }
        assert!(owed() > Duration::from_secs(2), "{:?}", owed());
        after(&refusals, Asked::Entries, 1000, &exists);
        let failure = refusals.check(account).await.unwrap_err();
        assert_eq!(failure.reason, "busy");
        assert!(failure.message.contains("account_refusals_per_second"), "{failure}");
    }

    #[test]
    fn a_long_list_is_more_than_an_item() {
        let refusals = Refusals::new(100, 10, CancellationToken::new());
        let invalid = refused(Code::InvalidArgument, "invalid");
        assert_eq!(after(&refusals, Asked::Uploads(1000), 2, &invalid), Duration::ZERO);
        let owed = after(&refusals, Asked::Uploads(130_000), 2, &invalid);
        assert!(owed > ANSWER_WAIT_MAX, "{owed:?}");
    }
}
