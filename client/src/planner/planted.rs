//! Bugs that the simulation plants to see whether it finds them. Outside of tests there are none.

/// A bug, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "planted in tests only"))]
pub(super) enum Bug {
    /// A delete wins over an edit.
    DeleteBeatsEdit,
    /// Who moved is compared the wrong way round.
    MovesInverted,
    /// What is new on the server does not keep a folder that was deleted here.
    NewKeepsNothing,
    /// What was moved out of the way counts as agreed upon.
    AsideAgreed,
    /// A move of what is on one side only makes it look synced.
    MoveMakesSynced,
    /// A crash between a split's rename and its record is forgotten.
    SplitForgotten,
    /// What was excluded and is gone from the disk looks like a delete.
    ExcludedIsDelete,
    /// What is being worked on is planned for again.
    BusyIgnored,
    /// A name for stepping aside looks like somebody's wish.
    AsideIsWish,
    /// A folder that was moved into what was moved into it is waited for.
    CycleNotUndone,
    /// A conflict name is taken without a look whether it is free.
    NameNotFree,
    /// Names that are one to the file system are not known to be.
    FoldIgnored,
    /// Of two edits the server's is taken.
    SplitMissed,
    /// Two operations of one plan may come to one place.
    ClaimsIgnored,
    /// An answer that comes after the journal has told of the delete brings a thing back.
    LateAnswer,
    /// What came back while it was made anew is not seen.
    ComesBackUnseen,
    /// What is replaced is not looked at again.
    StampIgnored,
    /// A folder is deleted before something has left it.
    NotWaitedFor,
    /// What was said of an entry in another history of the server's counts in this one.
    OtherHistoryHolds,
    /// The answer to a call is believed, of whichever history it is.
    AnswerOfElsewhere,
}

#[cfg(test)]
impl Bug {
    pub(super) const ALL: [Self; 20] = [
        Self::DeleteBeatsEdit,
        Self::MovesInverted,
        Self::NewKeepsNothing,
        Self::AsideAgreed,
        Self::MoveMakesSynced,
        Self::SplitForgotten,
        Self::ExcludedIsDelete,
        Self::BusyIgnored,
        Self::AsideIsWish,
        Self::CycleNotUndone,
        Self::NameNotFree,
        Self::FoldIgnored,
        Self::SplitMissed,
        Self::ClaimsIgnored,
        Self::LateAnswer,
        Self::ComesBackUnseen,
        Self::StampIgnored,
        Self::NotWaitedFor,
        Self::OtherHistoryHolds,
        Self::AnswerOfElsewhere,
    ];
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug for this thread.
#[cfg(test)]
pub(super) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether a bug is planted.
#[cfg(test)]
pub(super) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether a bug is planted: none is.
#[cfg(not(test))]
pub(super) const fn planted(_bug: Bug) -> bool {
    false
}
