//! The daemon's messages, from and to what they mean.

use std::path::PathBuf;

use proto::daemon as wire;

use crate::sync::config::{Limits, Rate};
use crate::sync::status::{Direction, LogEntry, Phase, Status, Traffic, Transfer, Waiting};

fn phase_to_wire(phase: Phase) -> wire::Phase {
    match phase {
        Phase::Starting => wire::Phase::Starting,
        Phase::Looking => wire::Phase::Looking,
        Phase::Syncing => wire::Phase::Syncing,
        Phase::UpToDate => wire::Phase::UpToDate,
        Phase::Waiting => wire::Phase::Waiting,
        Phase::Paused => wire::Phase::Paused,
        Phase::Offline => wire::Phase::Offline,
        Phase::Stopped => wire::Phase::Stopped,
    }
}

/// A phase that this program does not know is of a newer daemon: something that begins.
fn phase(phase: wire::Phase) -> Phase {
    match phase {
        wire::Phase::Starting | wire::Phase::Unspecified => Phase::Starting,
        wire::Phase::Looking => Phase::Looking,
        wire::Phase::Syncing => Phase::Syncing,
        wire::Phase::UpToDate => Phase::UpToDate,
        wire::Phase::Waiting => Phase::Waiting,
        wire::Phase::Paused => Phase::Paused,
        wire::Phase::Offline => Phase::Offline,
        wire::Phase::Stopped => Phase::Stopped,
    }
}

/// A rate as a message.
#[must_use]
pub fn rate_to_wire(rate: Rate) -> wire::Rate {
    let rate = match rate {
        Rate::Unlimited => None,
        Rate::Auto => Some(wire::rate::Rate::Auto(true)),
        Rate::BytesPerSecond(bytes) => Some(wire::rate::Rate::BytesPerSecond(bytes)),
    };
    wire::Rate { rate }
}

/// A rate from a message.
#[must_use]
pub fn rate(rate: wire::Rate) -> Rate {
    match rate.rate {
        None | Some(wire::rate::Rate::Auto(false) | wire::rate::Rate::BytesPerSecond(0)) => Rate::Unlimited,
        Some(wire::rate::Rate::Auto(true)) => Rate::Auto,
        Some(wire::rate::Rate::BytesPerSecond(bytes)) => Rate::BytesPerSecond(bytes),
    }
}

fn waiting_to_wire(waiting: Vec<Waiting>) -> Vec<wire::Waiting> {
    waiting.into_iter().map(|waiting| wire::Waiting { path: waiting.path, why: waiting.why }).collect()
}

fn waiting(waiting: Vec<wire::Waiting>) -> Vec<Waiting> {
    waiting.into_iter().map(|waiting| Waiting { path: waiting.path, why: waiting.why }).collect()
}

fn traffic_to_wire(traffic: Traffic) -> wire::Traffic {
    wire::Traffic {
        files: traffic.files,
        bytes: traffic.bytes,
        bytes_on_wire: traffic.bytes_on_wire,
        bytes_per_second: traffic.bytes_per_second,
    }
}

fn traffic(traffic: Option<wire::Traffic>) -> Traffic {
    let traffic = traffic.unwrap_or_default();
    Traffic {
        files: traffic.files,
        bytes: traffic.bytes,
        bytes_on_wire: traffic.bytes_on_wire,
        bytes_per_second: traffic.bytes_per_second,
    }
}

/// A folder's status as a message.
#[must_use]
pub fn status_to_wire(status: Status) -> wire::RootStatus {
    wire::RootStatus {
        directory: status.root.to_string_lossy().into_owned(),
        remote: status.remote_path,
        phase: phase_to_wire(status.phase).into(),
        message: status.message,
        online: status.online,
        paused: status.paused,
        watching: status.watching,
        agreed_count: status.agreed_count,
        pending_count: status.pending_count,
        waiting_count: status.waiting_count,
        waiting: waiting_to_wire(status.waiting),
        skipped: waiting_to_wire(status.skipped),
        ignored_count: status.ignored_count,
        deletes_to_confirm: status.deletes_to_confirm,
        transfers: status
            .transfers
            .into_iter()
            .map(|transfer| wire::Transfer {
                path: transfer.path,
                up: transfer.direction == Direction::Up,
                bytes_done: transfer.bytes_done,
                bytes_total: transfer.bytes_total,
            })
            .collect(),
        up: Some(traffic_to_wire(status.up)),
        down: Some(traffic_to_wire(status.down)),
        up_limit: Some(rate_to_wire(status.limits.up)),
        down_limit: Some(rate_to_wire(status.limits.down)),
        excluded: status.excluded,
        deletes_shown: status.deletes_shown,
    }
}

/// A folder's status from a message.
#[must_use]
pub fn status(status: wire::RootStatus) -> Status {
    let phase = phase(status.phase());
    Status {
        root: PathBuf::from(status.directory),
        remote_path: status.remote,
        phase,
        message: status.message,
        online: status.online,
        paused: status.paused,
        watching: status.watching,
        agreed_count: status.agreed_count,
        pending_count: status.pending_count,
        waiting_count: status.waiting_count,
        waiting: waiting(status.waiting),
        skipped: waiting(status.skipped),
        ignored_count: status.ignored_count,
        deletes_to_confirm: status.deletes_to_confirm,
        deletes_shown: status.deletes_shown,
        transfers: status
            .transfers
            .into_iter()
            .map(|transfer| Transfer {
                path: transfer.path,
                direction: if transfer.up { Direction::Up } else { Direction::Down },
                bytes_done: transfer.bytes_done,
                bytes_total: transfer.bytes_total,
            })
            .collect(),
        up: traffic(status.up),
        down: traffic(status.down),
        limits: Limits {
            up: rate(status.up_limit.unwrap_or_default()),
            down: rate(status.down_limit.unwrap_or_default()),
        },
        excluded: status.excluded,
    }
}

/// A log entry as a message.
#[must_use]
pub fn log_to_wire(directory: &str, entry: LogEntry) -> wire::LogEntry {
    wire::LogEntry {
        directory: directory.to_owned(),
        number: entry.number,
        time_ms: entry.time_ms,
        what: entry.what.word().to_owned(),
        path: entry.path,
        detail: entry.detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Status {
        let wait = |path: &str| Waiting { path: path.to_owned(), why: "because".to_owned() };
        Status {
            root: "/r".into(),
            remote_path: "/docs".to_owned(),
            phase: Phase::Syncing,
            message: "m".to_owned(),
            online: true,
            paused: true,
            watching: true,
            agreed_count: 1,
            pending_count: 2,
            waiting_count: 3,
            waiting: vec![wait("w")],
            skipped: vec![wait("s")],
            ignored_count: 3,
            deletes_to_confirm: 4,
            deletes_shown: "4-00aa".to_owned(),
            transfers: vec![
                Transfer { path: "u".to_owned(), direction: Direction::Up, bytes_done: 5, bytes_total: 6 },
                Transfer { path: "d".to_owned(), direction: Direction::Down, bytes_done: 7, bytes_total: 8 },
            ],
            up: Traffic { files: 9, bytes: 10, bytes_on_wire: 11, bytes_per_second: 12 },
            down: Traffic { files: 13, bytes: 14, bytes_on_wire: 15, bytes_per_second: 16 },
            limits: Limits { up: Rate::Auto, down: Rate::BytesPerSecond(17) },
            excluded: vec!["x".to_owned()],
        }
    }

    #[test]
    fn a_status_arrives_as_it_was_sent() {
        let phases = [
            Phase::Starting,
            Phase::Looking,
            Phase::Syncing,
            Phase::UpToDate,
            Phase::Waiting,
            Phase::Paused,
            Phase::Offline,
            Phase::Stopped,
        ];
        for phase in phases {
            let sent = Status { phase, ..full() };
            assert_eq!(status(status_to_wire(sent.clone())), sent);
        }
    }

    #[test]
    fn rates_arrive_as_they_were_sent() {
        for sent in [Rate::Unlimited, Rate::Auto, Rate::BytesPerSecond(1)] {
            assert_eq!(rate(rate_to_wire(sent)), sent);
        }
    }
}
