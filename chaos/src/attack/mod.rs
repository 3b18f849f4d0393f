//! Attacks from outside: what a stranger or a neighbour can send to a gateway, and what an innocent second account and
//! the processes' memory say about it meanwhile.
//!
//! Nothing here uses our own client: plain calls are the generated stubs, everything else is TLS and HTTP/2 frames, as
//! anybody may write them.

pub mod arena;
pub mod caller;
pub mod frames;
pub mod gate;
pub mod h2_client;
pub mod impostor;
pub mod innocent;
pub mod memory;
pub mod statistics;
