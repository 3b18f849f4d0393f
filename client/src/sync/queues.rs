//! What waits to be carried out, by kind, and in which portions it is. Pure.
//!
//! Invariants:
//! - Of each kind at most so many portions are under way.
//! - A portion is bounded in tasks and in bytes held in memory.

use std::collections::VecDeque;

use super::execute::{compare, download_small, local, remote, upload_small};
use super::task::{
    CompareTask, DownloadTask, LocalTask, LocalWork, RemoteTask, SMALL_FILE_BYTES_MAX, Task, UploadTask,
};
use crate::local::rel::Rel;
use crate::planner::model::NodeId;

/// Kinds of work that have a queue of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    Remote,
    Local,
    Recut,
    UploadSmall,
    UploadLarge,
    DownloadSmall,
    DownloadLarge,
    Compare,
}

impl Lane {
    pub(crate) const ALL: [Self; 8] = [
        Self::Remote,
        Self::Local,
        Self::Recut,
        Self::UploadSmall,
        Self::UploadLarge,
        Self::DownloadSmall,
        Self::DownloadLarge,
        Self::Compare,
    ];

    /// Portions under way.
    pub(crate) fn running_max(self) -> usize {
        match self {
            Self::Recut => 1,
            Self::Remote | Self::Local | Self::UploadLarge => 2,
            Self::UploadSmall | Self::DownloadLarge => 3,
            Self::DownloadSmall | Self::Compare => 4,
        }
    }

    /// Whether it needs the gateway.
    pub(crate) fn is_remote(self) -> bool {
        !matches!(self, Self::Local | Self::Recut)
    }

    fn index(self) -> usize {
        Self::ALL.iter().position(|lane| *lane == self).unwrap_or_default()
    }
}

/// What is carried out together.
#[derive(Debug)]
pub(crate) enum Portion {
    Remote(Vec<RemoteTask>),
    Local(Vec<LocalTask>),
    UploadSmall(Vec<UploadTask>),
    UploadLarge(UploadTask),
    DownloadSmall(Vec<DownloadTask>),
    DownloadLarge(DownloadTask),
    Compare(Vec<CompareTask>),
}

impl Portion {
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        match self {
            Self::Remote(tasks) => tasks.iter().map(|task| task.node).collect(),
            Self::Local(tasks) => tasks.iter().map(|task| task.node).collect(),
            Self::UploadSmall(tasks) => tasks.iter().map(|task| task.node).collect(),
            Self::DownloadSmall(tasks) => tasks.iter().map(|task| task.node).collect(),
            Self::Compare(tasks) => tasks.iter().map(|task| task.node).collect(),
            Self::UploadLarge(task) => vec![task.node],
            Self::DownloadLarge(task) => vec![task.node],
        }
    }
}

impl Portion {
    /// Where its work is on this disk, or comes to.
    pub(crate) fn local_places(&self) -> Vec<(NodeId, Rel)> {
        fn of_local(task: &LocalTask) -> Vec<(NodeId, Rel)> {
            let mut places = vec![(task.node, task.rel.clone())];
            if let LocalWork::Move { to, .. } = &task.work {
                places.push((task.node, to.clone()));
            }
            places
        }
        match self {
            Self::Remote(_) | Self::Compare(_) => Vec::new(),
            Self::Local(tasks) => tasks.iter().flat_map(of_local).collect(),
            Self::UploadSmall(tasks) => tasks.iter().map(|task| (task.node, task.rel.clone())).collect(),
            Self::DownloadSmall(tasks) => tasks.iter().map(|task| (task.node, task.rel.clone())).collect(),
            Self::UploadLarge(task) => vec![(task.node, task.rel.clone())],
            Self::DownloadLarge(task) => vec![(task.node, task.rel.clone())],
        }
    }
}

/// All that waits.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    remote: VecDeque<RemoteTask>,
    local: VecDeque<LocalTask>,
    recut: VecDeque<LocalTask>,
    upload_small: VecDeque<UploadTask>,
    upload_large: VecDeque<UploadTask>,
    download_small: VecDeque<DownloadTask>,
    download_large: VecDeque<DownloadTask>,
    compare: VecDeque<CompareTask>,
    running: [usize; Lane::ALL.len()],
}

impl Queues {
    pub(crate) fn push(&mut self, task: Task) {
        match task {
            Task::Remote(task) => self.remote.push_back(task),
            Task::Local(task) if matches!(task.work, LocalWork::Recut { .. }) => self.recut.push_back(task),
            Task::Local(task) => self.local.push_back(task),
            Task::Upload(task) if task.content.size <= SMALL_FILE_BYTES_MAX => {
                self.upload_small.push_back(task);
            }
            Task::Upload(task) => self.upload_large.push_back(task),
            Task::Download(task) if task.content.size <= SMALL_FILE_BYTES_MAX => {
                self.download_small.push_back(task);
            }
            Task::Download(task) => self.download_large.push_back(task),
            Task::Compare(task) => self.compare.push_back(task),
        }
    }

    /// The next portion of a lane, if there is room for it.
    pub(crate) fn take(&mut self, lane: Lane) -> Option<Portion> {
        if self.running[lane.index()] >= lane.running_max() {
            return None;
        }
        let portion = match lane {
            Lane::Remote => Portion::Remote(some(&mut self.remote, remote::ACTIONS_MAX)?),
            Lane::Local => Portion::Local(some(&mut self.local, local::BATCH_MAX)?),
            Lane::Recut => Portion::Local(some(&mut self.recut, 1)?),
            Lane::UploadSmall => {
                let size = |task: &UploadTask| task.content.size;
                let bounds = (upload_small::BATCH_FILES_MAX, upload_small::BATCH_BYTES_MAX);
                Portion::UploadSmall(sized(&mut self.upload_small, size, bounds)?)
            }
            Lane::DownloadSmall => {
                let size = |task: &DownloadTask| task.content.size;
                let bounds = (download_small::BATCH_FILES_MAX, download_small::BATCH_BYTES_MAX);
                Portion::DownloadSmall(sized(&mut self.download_small, size, bounds)?)
            }
            Lane::Compare => Portion::Compare(some(&mut self.compare, compare::BATCH_MAX)?),
            Lane::UploadLarge => Portion::UploadLarge(self.upload_large.pop_front()?),
            Lane::DownloadLarge => Portion::DownloadLarge(self.download_large.pop_front()?),
        };
        self.running[lane.index()] += 1;
        Some(portion)
    }

    /// A portion of a lane has ended.
    pub(crate) fn ended(&mut self, lane: Lane) {
        self.running[lane.index()] -= 1;
    }

    /// Drops all that has not begun; gives its nodes.
    pub(crate) fn clear(&mut self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = Vec::new();
        nodes.extend(self.remote.drain(..).map(|task| task.node));
        nodes.extend(self.local.drain(..).map(|task| task.node));
        nodes.extend(self.recut.drain(..).map(|task| task.node));
        nodes.extend(self.upload_small.drain(..).map(|task| task.node));
        nodes.extend(self.upload_large.drain(..).map(|task| task.node));
        nodes.extend(self.download_small.drain(..).map(|task| task.node));
        nodes.extend(self.download_large.drain(..).map(|task| task.node));
        nodes.extend(self.compare.drain(..).map(|task| task.node));
        nodes
    }
}

fn some<T>(queue: &mut VecDeque<T>, count_max: usize) -> Option<Vec<T>> {
    let count = queue.len().min(count_max);
    if count == 0 { None } else { Some(queue.drain(..count).collect()) }
}

/// The first tasks, up to a number and a sum of bytes, but at least one.
fn sized<T>(
    queue: &mut VecDeque<T>,
    size: impl Fn(&T) -> u64,
    (count_max, bytes_max): (usize, u64),
) -> Option<Vec<T>> {
    let mut bytes = 0;
    let mut count = 0;
    for task in queue.iter().take(count_max) {
        bytes += size(task);
        if count > 0 && bytes > bytes_max {
            break;
        }
        count += 1;
    }
    some(queue, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_are_bounded_in_number_and_bytes_and_never_empty() {
        let mut queue: VecDeque<u64> = [1, 1, 1, 5, 100].into();
        let mut portions = Vec::new();
        while let Some(portion) = sized(&mut queue, |size| *size, (3, 6)) {
            portions.push(portion);
        }
        assert_eq!(portions, [vec![1, 1, 1], vec![5], vec![100]]);
    }

    #[test]
    fn no_more_portions_run_than_a_lane_may() {
        let mut queues = Queues::default();
        let task = |node| {
            Task::Remote(RemoteTask {
                node: NodeId(node),
                action: proto::v1::Action::default(),
                part: None,
                path: String::new(),
                detail: String::new(),
            })
        };
        (0..5_000).for_each(|node| queues.push(task(node)));
        let running: Vec<usize> =
            std::iter::from_fn(|| queues.take(Lane::Remote)).map(|portion| portion.nodes().len()).collect();
        assert_eq!(running, [remote::ACTIONS_MAX; 2]);
        queues.ended(Lane::Remote);
        assert!(queues.take(Lane::Remote).is_some());
        assert_eq!(queues.clear().len(), 2_000);
    }
}
