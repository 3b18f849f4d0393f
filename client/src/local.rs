//! The folder on this device: finding what changed in it, and changing it without losing anything.

mod beneath;
pub(crate) mod blocker;
pub mod disk;
pub mod hash;
pub mod ignore_rules;
pub mod ignored;
mod list;
pub mod local_names;
pub mod model;
pub(crate) mod obstacle;
mod only_ignored;
mod own_data;
pub mod rel;
pub mod replace;
pub(crate) mod rights;
pub(crate) mod room;
pub mod root;
pub mod scan;
pub mod temp;
#[cfg(test)]
mod testing;
pub mod trash;
pub(crate) mod unsynced;
pub mod watch;
