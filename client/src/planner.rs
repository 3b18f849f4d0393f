//! What to do so that a folder here and a tree there become the same: pure, with neither clock nor IO.

pub mod model;
