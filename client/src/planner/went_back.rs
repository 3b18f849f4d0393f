//! What still holds of what was known of the server, once it went back to an older state.
//!
//! Its two histories, the one that was known and the one that there is now, are the same up to some number. Ids of entries
//! that were issued up to there are the same things in both; later ones may have been issued twice, for different things.

use super::planted::{Bug, planted};

/// Whether what was said of an entry still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bond {
    /// It was said in the common beginning: the entry is the same thing, and both sides have known it so.
    Holds,
    /// It is of one history alone, or it is not known of which: nothing of it counts, nor does the id.
    Void,
}

/// A place in the server's history, as far as it decides what may be taken in: the journal's number, and the reign in
/// which it was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place<R> {
    pub(crate) sequence: u64,
    pub(crate) reign: R,
}

/// Whether an answer that was given in the reign `told` may be taken in by one who knows of `known`, and knew of `asked`
/// when it asked: the server has checked that, and no more.
pub(crate) fn takes<R: PartialEq>(known: &Place<R>, asked: &Place<R>, told: &R) -> bool {
    known == asked || known.reign == *told || planted(Bug::AnswerOfElsewhere)
}

/// Judges what was said of an entry under a number of the journal (`None`: it is not known under which). Both histories are
/// the same up to `common`; 0 = that is not known.
pub(crate) fn bond(common: u64, said: Option<u64>) -> Bond {
    match said {
        Some(_) if planted(Bug::OtherHistoryHolds) => Bond::Holds,
        Some(said) if said <= common => Bond::Holds,
        _ => Bond::Void,
    }
}
