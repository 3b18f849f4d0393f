//! Whose turn it is to have a password checked: a few at a time, fairly, and only so many wrong ones.

mod fair;
pub(crate) mod turns;
