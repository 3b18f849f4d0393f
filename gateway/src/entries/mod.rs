//! Files and folders as names in a tree: looking, making, moving, copying, the trash.

pub(crate) mod change;
pub(crate) mod copy;
pub(crate) mod create;
pub(crate) mod look;
mod together;
pub(crate) mod trash;
pub(crate) mod versions;
mod waves;
