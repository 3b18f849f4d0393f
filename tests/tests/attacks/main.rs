//! Attacks on a whole cluster by an outside client: strangers without a token, and neighbours with an account of their
//! own. Beside each, an innocent account stores and reads, and the memory of the processes is watched.
//!
//! A test asserts what must hold whatever the limits are: memory stays bounded, nobody else has an error or waits much
//! longer, and the attacked call has the right outcome. Short by default; `KEEPSTONE_SIZE=full` (`make attacks`) runs
//! them at the sizes at which they once worked.

mod all_at_once;
mod certificates;
mod connections;
mod entries;
mod floods;
mod foreign_ids;
mod hostile_values;
mod oracle;
mod queries;
mod retries;
mod sign_in;
mod streams;
mod uploads;
