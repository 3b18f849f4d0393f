//! Keeps a local folder and a remote one the same: [`session::Session`] runs it, [`handle::Handle`] steers it.
//!
//! A session has one loop (`run`) that decides what is done next. It plans on the thread that owns the state
//! (`state_thread`, `planning`, `prepare`), hands portions of work (`queues`) to tasks (`execute`), and hears of the
//! server by the `follower`, of the disk by the `scanner`.

mod board;
pub mod config;
mod effects;
mod execute;
mod follower;
mod guard;
pub mod handle;
mod lookout;
mod obstacles;
pub mod opening;
mod planning;
mod prepare;
mod queues;
mod recover;
mod rules_first;
mod run;
mod scanner;
pub mod session;
mod shared;
mod state_thread;
pub mod status;
mod task;
mod throttle;
mod waits;
