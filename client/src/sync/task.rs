//! What the executor is given, and what it gives back. A task holds all that its work needs, as the trees were when it
//! was planned; the server and the disk refuse it if that is no longer so.

use std::time::Duration;

use engine::cutter::Cutter;
use proto::v1;

use super::status::Done;
use crate::call_error::CallError;
use crate::local::disk::DiskError;
use crate::local::model::{Identity, LocalRecord, Stamp};
use crate::local::obstacle::Obstacle;
use crate::local::rel::Rel;
use crate::local::trash::Fate;
use crate::path::RemotePath;
use crate::planner::model::{Attributes, FileContent, Kind, NodeId, Place};
use crate::state::record::Part;

/// Files up to this size go many at once.
pub(crate) const SMALL_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// An action on the server that moves no content.
#[derive(Clone, Debug)]
pub(crate) struct RemoteTask {
    pub(crate) node: NodeId,
    pub(crate) action: v1::Action,
    /// What is then the same on both sides; none for a delete.
    pub(crate) part: Option<Part>,
    pub(crate) path: String,
    /// Where it was, for a move.
    pub(crate) detail: String,
}

impl RemoteTask {
    /// Whether it makes something that the server has not had.
    pub(crate) fn is_new(&self) -> bool {
        use v1::action::Action::{CreateFolder, CreateSymlink};
        matches!(self.action.action, Some(CreateFolder(_) | CreateSymlink(_)))
    }
}

/// A file to be sent.
#[derive(Clone, Debug)]
pub(crate) struct UploadTask {
    pub(crate) node: NodeId,
    pub(crate) rel: Rel,
    pub(crate) content: FileContent,
    pub(crate) attributes: Attributes,
    pub(crate) stamp: Stamp,
    /// The file on the server: its id and the version that the new one follows; none: it is new there.
    pub(crate) base: Option<(u64, u64)>,
    /// The folder there, and the name in it.
    pub(crate) parent: u64,
    pub(crate) name: String,
}

/// A file to be fetched.
#[derive(Clone, Debug)]
pub(crate) struct DownloadTask {
    pub(crate) node: NodeId,
    pub(crate) rel: Rel,
    pub(crate) place: Place,
    pub(crate) entry: u64,
    pub(crate) version: u64,
    pub(crate) content: FileContent,
    pub(crate) attributes: Attributes,
    /// Which object its folder is; `None` for the root.
    pub(crate) within: Option<Identity>,
    /// The local file that it replaces, as it was last seen.
    pub(crate) replaces: Option<LocalRecord>,
    /// That one is kept in the trash: what the server has may be older, or somebody writes into it.
    pub(crate) keeps_replaced: bool,
}

/// A local file to be compared with the earlier versions of the one that is at its place on the server.
#[derive(Clone, Debug)]
pub(crate) struct CompareTask {
    pub(crate) node: NodeId,
    pub(crate) other: NodeId,
    pub(crate) path: RemotePath,
    pub(crate) content: FileContent,
    pub(crate) stamp: Stamp,
}

/// Work on the disk that moves no content.
#[derive(Clone, Debug)]
pub(crate) struct LocalTask {
    pub(crate) node: NodeId,
    pub(crate) rel: Rel,
    pub(crate) work: LocalWork,
}

/// `within`: which object the folder is that something is put into; `None` for the root.
#[derive(Clone, Debug)]
pub(crate) enum LocalWork {
    Create {
        place: Place,
        within: Option<Identity>,
        kind: Kind,
        attributes: Attributes,
    },
    Retarget {
        record: LocalRecord,
        target: Vec<u8>,
        mtime_ns: i64,
    },
    Move {
        record: LocalRecord,
        to: Rel,
        place: Place,
        within: Option<Identity>,
        part: Part,
    },
    /// `fate`: of what is on the server as well.
    Delete {
        record: LocalRecord,
        fate: Fate,
    },
    Attributes {
        record: LocalRecord,
        attributes: Attributes,
    },
    Recut {
        record: LocalRecord,
        cutter: Cutter,
    },
    Split {
        record: LocalRecord,
        new_node: NodeId,
        name: Option<String>,
    },
}

/// Something to be done.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    Remote(RemoteTask),
    Upload(UploadTask),
    Download(DownloadTask),
    Local(LocalTask),
    Compare(CompareTask),
}

impl Task {
    pub(crate) fn node(&self) -> NodeId {
        match self {
            Self::Remote(task) => task.node,
            Self::Upload(task) => task.node,
            Self::Download(task) => task.node,
            Self::Local(task) => task.node,
            Self::Compare(task) => task.node,
        }
    }
}

/// What came of a task.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) node: NodeId,
    pub(crate) end: End,
    /// What keeps it from being done, if no scan ever takes that in.
    pub(crate) obstacle: Option<Obstacle>,
    /// For the log.
    pub(crate) line: Option<Line>,
    pub(crate) after: After,
}

/// What is otherwise on the disk, beside the node itself, once a task is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct After {
    /// What is in it is not known yet: it was here before.
    pub(crate) look_below: bool,
    /// It is a folder, and is elsewhere on this device now.
    pub(crate) moved: Option<MovedFolder>,
    /// It is a file with rules, and is in this folder no more.
    pub(crate) rules_left: Option<NodeId>,
}

/// A folder that was moved here by a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MovedFolder {
    pub(crate) from: Rel,
    pub(crate) to: Rel,
    /// There are files with rules above one of the two: others may hold for what is in it.
    pub(crate) ruled: bool,
}

impl MovedFolder {
    /// Where something is that was there, or below it.
    pub(crate) fn path_now(&self, path: &str) -> Option<String> {
        let below = path.strip_prefix(self.from.as_str())?;
        (below.is_empty() || below.starts_with('/')).then(|| format!("{}{below}", self.to.as_str()))
    }
}

/// A line of the log, without time and number.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) what: Done,
    pub(crate) path: String,
    pub(crate) detail: String,
}

#[derive(Clone, Debug)]
pub(crate) enum End {
    /// Done and recorded.
    Done,
    /// Compared with earlier versions; what came of it is recorded.
    Compared,
    /// The disk is not as it was known: its folder is to be scanned.
    LocalChanged,
    /// The server's tree is not as it was known: its news are to be waited for.
    RemoteChanged,
    /// The disk refused it; to be tried again once that may be past.
    Refused { by: Refusal, reason: String },
    /// It was broken off.
    Stopped,
    /// It failed; to be tried again after a while.
    Failed { reason: String, again: Again },
}

/// Why a disk refuses something.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    /// This user may not do that at a place.
    Rights(Rel),
    /// It has no room.
    Full,
}

/// When something that failed is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// Soon, then ever later: it may pass by itself.
    Soon,
    /// Once the gateway answers again.
    Online,
    /// Once what is in the way has gone; looked for at intervals, for not all that goes is noticed.
    Unblocked,
    /// After a long time, or when the file changes: somebody must do something about it.
    Later,
    /// Never: the session ends.
    Never,
}

impl Again {
    /// How long to wait after so many failures in a row.
    pub(crate) fn wait(self, failures: u32) -> Duration {
        let doubled = |first: u64, most: u64| {
            Duration::from_millis((first << failures.min(16).saturating_sub(1)).min(most))
        };
        match self {
            Self::Soon => doubled(250, 60_000),
            Self::Online => doubled(500, 30_000),
            Self::Unblocked => doubled(2_000, 60_000),
            Self::Later => doubled(15_000, 600_000),
            Self::Never => Duration::MAX,
        }
    }
}

impl Ended {
    pub(crate) fn done(node: NodeId, what: Done, path: &str, detail: impl Into<String>) -> Self {
        let line = Line { what, path: path.to_owned(), detail: detail.into() };
        Self { line: Some(line), ..Self::quietly(node, End::Done) }
    }

    pub(crate) fn quietly(node: NodeId, end: End) -> Self {
        Self { node, end, obstacle: None, line: None, after: After::default() }
    }

    pub(crate) fn failed(node: NodeId, reason: impl Into<String>, again: Again) -> Self {
        Self::quietly(node, End::Failed { reason: reason.into(), again })
    }

    pub(crate) fn call(node: NodeId, error: &CallError) -> Self {
        Self::quietly(node, End::of_call(error))
    }
}

impl End {
    pub(crate) fn of_call(error: &CallError) -> Self {
        let failed = |again| Self::Failed { reason: error.to_string(), again };
        match error {
            CallError::Unreachable { .. } => failed(Again::Online),
            CallError::Token { .. } | CallError::Setup { .. } | CallError::Certificate { .. } => {
                failed(Again::Never)
            }
            CallError::Protocol { .. } => failed(Again::Later),
            CallError::Refused { .. } if error.is_transient() => failed(Again::Soon),
            // No news of the server's will change that: somebody must move it.
            CallError::Refused { .. } if error.reason() == "too-deep" => Self::Failed {
                reason: format!("{error}; move it, or a folder that it is in, higher up"),
                again: Again::Later,
            },
            // Nor that: servers are to be started, or disks added.
            CallError::Refused { .. } if error.reason() == "not-enough-disks" => failed(Again::Soon),
            CallError::Refused { code, .. } => match code {
                tonic::Code::Aborted
                | tonic::Code::NotFound
                | tonic::Code::AlreadyExists
                | tonic::Code::FailedPrecondition => Self::RemoteChanged,
                tonic::Code::Internal | tonic::Code::Unknown | tonic::Code::Cancelled => failed(Again::Soon),
                _ => failed(Again::Later),
            },
        }
    }

    pub(crate) fn of_disk(error: &DiskError) -> Self {
        let failed = |again| Self::Failed { reason: error.to_string(), again };
        match error {
            DiskError::Changed(_) | DiskError::Vanished(_) | DiskError::Exists(_) => Self::LocalChanged,
            DiskError::Denied(rel) | DiskError::Protected { rel, .. } => {
                Self::Refused { by: Refusal::Rights(rel.clone()), reason: error.to_string() }
            }
            DiskError::NoSpace(_) => Self::Refused { by: Refusal::Full, reason: error.to_string() },
            DiskError::Quota(_) | DiskError::NotSupported { .. } | DiskError::NotMovable(_) => {
                failed(Again::Later)
            }
            DiskError::Io { .. } => failed(Again::Soon),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_servers_disks_refuse_is_told_as_it_is() {
        let error = CallError::Refused {
            code: tonic::Code::FailedPrecondition,
            reason: "not-enough-disks".to_owned(),
            message: "start the storage nodes that are down".to_owned(),
        };
        let End::Failed { reason, again: Again::Soon } = End::of_call(&error) else {
            panic!("{:?}", End::of_call(&error));
        };
        assert!(reason.contains("storage nodes"), "{reason}");
    }

    #[test]
    fn what_is_too_deep_for_the_server_is_told_and_tried_again_only_later() {
        let error = CallError::Refused {
            code: tonic::Code::FailedPrecondition,
            reason: "too-deep".to_owned(),
            message: "x: at most 200 folders within one another".to_owned(),
        };
        let End::Failed { reason, again: Again::Later } = End::of_call(&error) else {
            panic!("{:?}", End::of_call(&error));
        };
        assert!(reason.contains("move it"), "{reason}");
    }
}
