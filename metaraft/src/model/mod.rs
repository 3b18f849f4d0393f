//! What the metadata groups hold and how it is changed and read: rows, commands, queries, settings, and their
//! encoding.

mod answer;
mod choice;
pub mod codec;
pub mod command;
pub mod journal;
pub mod nursery;
pub mod outcome;
pub mod query;
pub mod request_key;
pub(crate) mod room;
mod root_step;
pub mod row;
pub mod settings;
mod step_error;

/// Version of the encoding of rows, commands and queries: the first byte of each. It stays 1, whatever is added, until
/// something has been released that would have to be understood.
pub const MODEL_FORMAT: u8 = 1;

/// How long the outcome of a request is remembered; requests that are older are refused.
pub const REQUEST_MEMORY_MS: u64 = 24 * 60 * 60 * 1000;

/// How far ahead of the leader's clock a request's time may be.
pub const REQUEST_AHEAD_MS: u64 = 10 * 60 * 1000;

/// Entries in one part of an upload session's chunk list.
pub const UPLOAD_PART_ENTRIES: usize = 4096;

/// Folders within one another.
pub const DEPTH_MAX: u32 = 256;

/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 255;

/// Items in one query, and in one page.
pub const QUERY_ITEMS_MAX: u32 = 10_000;

/// Bytes of rows in one answer, about (but at least one row): a page of a list ends there, and of things that were asked
/// for by name the first ones are answered for.
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// Journal rows that a conditional deletion of a folder looks at.
pub const SEEN_ROWS_MAX: usize = 4096;

/// Rows that all conditional deletions of one command read together, of journals and on the way up.
pub const SEEN_COMMAND_ROWS_MAX: usize = 16 * SEEN_ROWS_MAX;

/// Steps in one command.
pub const STEPS_MAX: usize = 4096;

/// Chunks of one file: their list must fit one command, and so one entry of the log (4 MiB).
pub const UPLOAD_CHUNKS_MAX: usize = 100_000;
