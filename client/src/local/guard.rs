//! Whether so many deletes at once are meant. Pure.
//!
//! A disk that lost its files, a wrong folder or a slip of the hand look like deletes; those are carried out only once
//! somebody has confirmed them.

use crate::sync::config::DeleteGuard;

/// So few deletes never wait: of the last two files, one is half.
pub const FEW_DELETES_MAX: u64 = 10;

/// What is to be done about the deletes that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They may be carried out.
    Allowed,
    /// They wait for a confirmation of at least that many.
    Confirm {
        /// Files, folders and symlinks that would be deleted.
        deletes: u64,
    },
}

/// Judges `deletes` of the `known` files, folders and symlinks that both sides agreed on. `confirmed`: so many were
/// confirmed since they began to wait.
#[must_use]
pub fn judge(deletes: u64, known: u64, confirmed: u64, limits: &DeleteGuard) -> Verdict {
    let too_many = deletes > limits.count_max;
    let share = u128::from(deletes) * 100 > u128::from(known) * u128::from(limits.percent_max);
    if (too_many || (share && deletes > FEW_DELETES_MAX)) && deletes > confirmed {
        return Verdict::Confirm { deletes };
    }
    Verdict::Allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_or_most_deletes_wait_and_few_do_not() {
        let limits = DeleteGuard::default();
        let confirm = |deletes| Verdict::Confirm { deletes };
        assert_eq!(judge(1_000, 1_000_000, 0, &limits), Verdict::Allowed);
        assert_eq!(judge(1_001, 1_000_000, 0, &limits), confirm(1_001));
        assert_eq!(judge(50, 100, 0, &limits), Verdict::Allowed);
        assert_eq!(judge(51, 100, 0, &limits), confirm(51));
        assert_eq!(judge(11, 11, 0, &limits), confirm(11));
        assert_eq!(judge(10, 10, 0, &limits), Verdict::Allowed);
        assert_eq!(judge(u64::MAX, u64::MAX, 0, &limits), confirm(u64::MAX));
    }

    #[test]
    fn what_was_confirmed_does_not_cover_more() {
        let limits = DeleteGuard { count_max: 5, percent_max: 100 };
        assert_eq!(judge(6, 100, 6, &limits), Verdict::Allowed);
        assert_eq!(judge(7, 100, 6, &limits), Verdict::Confirm { deletes: 7 });
    }
}
