//! The decisions of the table in docs/sync.md, by name: so that tests can tell which of them were reached.

use std::collections::BTreeSet;

macro_rules! decisions {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A decision of the planner. Each is a row of the table in docs/sync.md.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Decision {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Decision {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];
        }
    };
}

decisions! {
    // Nothing but the state.
    /// Gone on both sides.
    BothGone,
    /// Both sides are the same in some part that synced does not know yet.
    PartsAgree,
    /// Folders made on both sides at one place are one.
    LinkFolders,
    /// Files of one content, made on both sides at one place, are one.
    LinkFiles,
    /// Symlinks to one target, made on both sides at one place, are one.
    LinkSymlinks,
    /// Deleted and made anew here, at one place: it is the old one.
    LinkAnewHere,
    /// Deleted and made anew on the server, at one place: it is the old one.
    LinkAnewThere,
    /// Made on both sides, cut differently: the local one is cut again to be compared.
    RecutCreated,
    /// Edited on both sides, cut differently: the local one is cut again to be compared.
    RecutEdited,

    // Made on one side.
    /// A folder made here.
    SendFolder,
    /// A file made here.
    SendFile,
    /// A symlink made here.
    SendSymlink,
    /// A folder made there.
    BringFolder,
    /// A file made there.
    BringFile,
    /// A symlink made there.
    BringSymlink,

    // Edited.
    /// A file edited here.
    UploadEdit,
    /// A file edited there.
    DownloadEdit,
    /// A symlink that points elsewhere here.
    RetargetRemote,
    /// A symlink that points elsewhere there.
    RetargetLocal,
    /// Edited on both sides at one place: the local one becomes a conflicted copy.
    SplitRenamed,
    /// Edited on both sides, and elsewhere here: the local one becomes a node of its own where it is.
    SplitInPlace,

    // Deleted.
    /// A file or symlink deleted here.
    DeleteRemote,
    /// A folder deleted here.
    DeleteRemoteFolder,
    /// A file or symlink deleted there.
    DeleteLocal,
    /// A folder deleted there.
    DeleteLocalFolder,
    /// Goes with the folder that it is in.
    GoesWithFolder,
    /// Edited there, deleted here: made anew here.
    EditBeatsDeleteHere,
    /// Moved there, deleted here: made anew here.
    MoveBeatsDeleteHere,
    /// Edited here, deleted there: made anew there.
    EditBeatsDeleteThere,
    /// Moved here, deleted there: made anew there.
    MoveBeatsDeleteThere,
    /// A folder deleted here in which something lives there: made anew here.
    FolderKeptHere,
    /// A folder deleted there in which something lives here: made anew there.
    FolderKeptThere,
    /// Deletes wait for a confirmation.
    DeleteWithheld,

    // Moved.
    /// Moved here.
    MoveRemote,
    /// Moved there.
    MoveLocal,
    /// Moved on both sides to different places: the server's place wins.
    MoveBothRemoteWins,
    /// Moved here into what was moved into it there: the local move is undone.
    MoveCycleUndone,
    /// What is moved here waits for what is to leave its inside.
    MoveWaitsForInner,

    // Names.
    /// Made here where another is on the server: gets the conflict name.
    TakenCreated,
    /// Moved here to where another is on the server: gets the conflict name.
    TakenMoved,
    /// The place is still taken on the server by what is to leave it.
    WaitPlaceRemote,
    /// The place is still taken here by what is to leave it.
    WaitPlaceLocal,
    /// The folder is not on the server yet.
    WaitFolderRemote,
    /// The folder is not here yet.
    WaitFolderLocal,
    /// A folder cannot be deleted before something has left it.
    WaitToLeave,
    /// Moves that wait for one another on the server: one steps aside.
    SwapRemote,
    /// Moves that wait for one another here: one steps aside.
    SwapLocal,
    /// Something on the server under a name for stepping aside, left over: gets its right name.
    SwapLeftoverRemote,
    /// Something here under a name for stepping aside, left over: gets its right name.
    SwapLeftoverLocal,
    /// Differs in case alone from what is here: renamed, for all.
    RenameCase,
    /// Differs in Unicode normalisation alone from what is here: renamed, for all.
    RenameUnicode,
    /// Cannot be here under its name: renamed, for all.
    RenameReserved,

    // Attributes.
    /// Changed here.
    AttributesRemote,
    /// Changed there.
    AttributesLocal,
    /// Changed on both sides: the server's win.
    AttributesBothRemoteWins,
    /// Edited here, permissions changed there: those come first.
    ModeBeforeUpload,
    /// Edited there, permissions changed here: those go first.
    ModeBeforeDownload,

    // Not kept on this device.
    /// Excluded, and not here.
    ExcludedAway,
    /// Excluded and gone from here: that is no delete.
    ExcludedForgotten,
    /// Excluded, and what is here agrees: it goes from here.
    ExcludedRemoved,
    /// Excluded, but something here is to go to the server first.
    ExcludedWaits,
    /// Made here where an excluded one is: gets another name.
    ExcludedTaken,

    /// Not to be touched now.
    Busy,
    /// Something else comes first.
    NotYet,
}

/// Decisions that were reached.
pub type Decisions = BTreeSet<Decision>;
