//! The gateway's own bounds in one place; what clients may do at most is set in [`crate::config::Limits`]. Together
//! they say how much memory it takes.
//!
//! Payload bytes held at once: `upload_bytes_max` and `download_bytes_max`, each about doubled by coding and
//! compression, `request_bytes_max` and `answer_bytes_max`; chunk lists: [`SESSION_ENTRIES_MAX`] of some 44 bytes;
//! strangers: `unproven_connections_max` of some 100 KiB; the rest is small.

use std::time::Duration;

/// Entries of chunk lists in one request that are worked on in between others' requests.
pub(crate) const SHORT_LISTS_ENTRIES_MAX: usize = 8192;

/// So many of them count as one.
pub(crate) const SHORT_LISTS_DISCOUNT: usize = 16;

/// Items in one batch (uploads, entries, paths).
pub(crate) const BATCH_ITEMS_MAX: usize = 1024;

/// Chunk list entries in one batch of uploads: what fits a message.
pub(crate) const BATCH_ENTRIES_MAX: usize = 300_000;

/// The largest message of chunks: one maximal chunk, with its sessions and room for small ones.
pub(crate) const PUT_MESSAGE_BYTES_MAX: usize = 5 * 1024 * 1024;

/// Chunks in one message.
pub(crate) const PUT_MESSAGE_CHUNKS_MAX: usize = 1024;

/// Sessions that the chunks of one message may be for together. Keepstone's own client has 3 × 500 small files and 2
/// large ones under way at once, all of which one message may name if they are much alike.
pub(crate) const PUT_MESSAGE_SESSIONS_MAX: usize = 2048;

/// Chunk bytes of one stream that are not acknowledged yet.
pub(crate) const UPLOAD_STREAM_BYTES_MAX: u64 = 24 * 1024 * 1024;

/// Messages of one stream that are worked on at once.
pub(crate) const PUT_MESSAGES_IN_FLIGHT_MAX: usize = 64;

/// Stripes being written at once.
pub(crate) const STRIPES_IN_FLIGHT_MAX: usize = 6;

/// Runs of one stripe's chunks that one download reads ahead.
pub(crate) const DOWNLOAD_RUNS_MAX: usize = 4;

/// A run is cut at this many plain bytes.
pub(crate) const RUN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Chunks whose places are asked for at once.
pub(crate) const LOCATE_CHUNKS_MAX: usize = 256;

/// Small chunks are sent together up to this many bytes.
pub(crate) const DOWNLOAD_MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Bytes that one `DownloadMany` gives.
pub(crate) const DOWNLOAD_MANY_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// A client that takes nothing for so long pauses: what was read for it is dropped, and read again when it goes on.
pub(crate) const DOWNLOAD_PAUSE_AFTER: Duration = Duration::from_secs(5);

/// Chunk list entries that the session cache holds.
pub(crate) const SESSION_ENTRIES_MAX: usize = 1024 * 1024;

/// Sessions in the cache.
pub(crate) const SESSIONS_MAX: usize = 16 * 1024;

/// How long a session counts as open without another look.
pub(crate) const SESSION_FRESH: Duration = Duration::from_secs(30);

/// How long after a session was last gone on with that is noted again.
pub(crate) const EXTEND_AFTER_MS: u64 = 2 * 60 * 1000;

/// A session that nobody has gone on with for so long makes room for others of its account, if they need it.
pub(crate) const IDLE_AFTER_MS: u64 = 10 * 60 * 1000;

/// Entries of one list that the look for chunks that need not be sent goes through.
pub(crate) const LOOK_ENTRIES_MAX: usize = 262_144;

/// Entries of all lists that one batch of uploads has looked at.
pub(crate) const LOOK_BATCH_ENTRIES_MAX: usize = 2 * LOOK_ENTRIES_MAX;

/// Chunk ids in one command.
pub(crate) const COMMAND_CHUNKS_MAX: usize = 4096;

/// Steps in one fused command.
pub(crate) const COMMAND_STEPS_MAX: usize = 64;

/// Commands and queries that one request has under way at once.
pub(crate) const REQUEST_COMMANDS_MAX: usize = 64;

/// Entries that are made, or given attributes, in one fused command: with symlinks of the longest targets 128 KiB.
pub(crate) const COMMAND_ENTRIES_MAX: usize = 32;

/// Such commands that one request has under way at once.
pub(crate) const ENTRY_COMMANDS_AT_ONCE_MAX: usize = 2;

/// Commands that a copy has under way at once, of one entry each: others' commands wait behind them.
pub(crate) const COPY_COMMANDS_AT_ONCE_MAX: usize = 16;

/// Small uploads that are committed, or begun, in one fused command.
pub(crate) const COMMAND_UPLOADS_MAX: usize = 256;

/// Chunks of an upload that is small enough to be committed together with others.
pub(crate) const SMALL_UPLOAD_CHUNKS_MAX: u64 = 16;

/// Actions in one request.
pub(crate) const APPLY_ACTIONS_MAX: usize = 1000;

/// Of them, those of one command: with targets as long as they may be, what these answer is half a mebibyte, which each
/// replica remembers. Commands are made one after the other, so not fewer.
pub(crate) const APPLY_COMMAND_ACTIONS_MAX: usize = 128;

/// Bytes of actions in one command, about.
pub(crate) const APPLY_COMMAND_BYTES: usize = 1024 * 1024;

/// Changes or entries in one page, if the client does not say; and the most it may ask for.
pub(crate) const SYNC_PAGE: u32 = 1000;
/// See [`SYNC_PAGE`].
pub(crate) const SYNC_PAGE_MAX: u32 = 10_000;
/// What a page has at most, whatever was asked for: to gather and tell them takes a processor some 10 ms, in which others'
/// small steps wait.
pub(crate) const SYNC_PAGE_GIVEN_MAX: u32 = 2_500;

/// Chunk list entries in one message of a manifest.
pub(crate) const MANIFEST_MESSAGE_ENTRIES: usize = 8192;

/// How long a subscription may be silent before the numbers of watched trees are read anew.
pub(crate) const WATCH_REREAD: Duration = Duration::from_secs(5);

/// How long after a subscription has ended the next one is tried.
pub(crate) const WATCH_PAUSE: Duration = Duration::from_millis(50);

/// How often it is looked for groups that are not followed yet.
pub(crate) const WATCH_GROUPS_CHECK: Duration = Duration::from_millis(200);

/// Entries that one step of a purge removes.
pub(crate) const PURGE_ENTRIES_MAX: u32 = 1000;

/// Versions that one request may name to be removed.
pub(crate) const REMOVED_VERSIONS_MAX: usize = 10_000;

/// Entries in one page of a walk.
pub(crate) const PAGE_ENTRIES: u32 = 1000;

/// Passwords hashed at once, on a machine with processors for it (some 19 MiB each, twice where it is never idle).
pub(crate) const PASSWORDS_AT_ONCE_MAX: usize = 2;

/// Sign-ins that wait for it.
pub(crate) const SIGN_INS_WAITING_MAX: usize = 512;

/// Bytes of emails, names of people and devices, and passwords.
pub(crate) const TEXT_BYTES_MAX: usize = 1024;

/// How often it is looked for disks that hang and are to be probed.
pub(crate) const PROBE_TICK: Duration = Duration::from_secs(1);

/// A read waits at least so long before it asks for parity as well, however fast reads usually are.
pub(crate) const READ_HEDGE_MIN: Duration = Duration::from_millis(50);

/// Stripes whose disks are asked at once whether they have their shards.
pub(crate) const STRIPES_LOOKED_AT_MAX: usize = 16;

/// Clean-ups after answers (pins of sessions whose content had another holder) that may wait.
pub(crate) const CLEANUPS_MAX: usize = 256;

/// Sessions that were given up and wait to be forgotten.
pub(crate) const FORGETTING_MAX: usize = 4096;

/// Sessions of an account that are looked at when it needs room.
pub(crate) const TIDY_UPLOADS_MAX: u32 = 16;

/// How long the administrator's status waits for a node or a group.
pub(crate) const STATUS_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long requests may go on when the gateway stops.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(5);
