//! A scrub of everything now: all storage nodes that are up at once, their progress as one.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::cluster::{Health, StorageNodeInfo};
use engine::ids::NodeId;
use proto::internal::ScrubProgress;
use proto::v1;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Status;

use crate::core::Core;

/// Progress messages of all nodes that wait to be merged.
const PROGRESS_MAX: usize = 64;

/// Where the merged progress goes.
pub(crate) type Sink = mpsc::Sender<Result<v1::AdminScrubResponse, Status>>;

/// What one node says.
enum Said {
    Progress(NodeId, ScrubProgress),
    Over(NodeId, Result<(), String>),
}

/// The sums over all nodes.
#[derive(Debug, Default)]
struct Merged {
    nodes: u64,
    progress: BTreeMap<NodeId, ScrubProgress>,
    nodes_done: u64,
    failed: Vec<String>,
}

impl Merged {
    fn response(&self, done: bool) -> v1::AdminScrubResponse {
        let sum = |of: fn(&ScrubProgress) -> u64| self.progress.values().map(of).sum();
        v1::AdminScrubResponse {
            nodes: self.nodes,
            nodes_done: self.nodes_done,
            records_checked: sum(|progress| progress.records_checked),
            bytes_checked: sum(|progress| progress.bytes_checked),
            damaged: sum(|progress| progress.damaged),
            failed: self.failed.clone(),
            done,
        }
    }

    fn take(&mut self, said: Said) {
        match said {
            Said::Progress(node, progress) => drop(self.progress.insert(node, progress)),
            Said::Over(_node, Ok(())) => self.nodes_done += 1,
            Said::Over(node, Err(why)) => {
                self.failed.push(format!("storage node {node} was not scrubbed to the end: {why}"));
            }
        }
    }
}

async fn scrub_node(core: Arc<Core>, node: StorageNodeInfo, said: mpsc::Sender<Said>) {
    let over = async {
        let mut progress =
            core.storage.scrub(node.node, &node.address).await.map_err(|error| error.to_string())?;
        loop {
            let message = progress.message().await.map_err(|status| status.message().to_owned())?;
            let Some(message) = message else { return Err("its answer ended early".to_owned()) };
            let done = message.done;
            if said.send(Said::Progress(node.node, message)).await.is_err() || done {
                return Ok(());
            }
        }
    }
    .await;
    // Fails only if the client has gone.
    drop(said.send(Said::Over(node.node, over)).await);
}

/// Scrubs, and tells of it until the end. Ends early if the client goes.
pub(crate) async fn serve(core: Arc<Core>, sink: Sink) {
    let map = core.meta.map();
    let (said, mut heard) = mpsc::channel(PROGRESS_MAX);
    let mut merged = Merged::default();
    let mut tasks = JoinSet::new();
    for node in &map.storage_nodes {
        merged.nodes += 1;
        if node.health == Health::Up {
            tasks.spawn(scrub_node(Arc::clone(&core), node.clone(), said.clone()));
        } else {
            merged.take(Said::Over(node.node, Err("it is down".to_owned())));
        }
    }
    drop(said);
    loop {
        let next = tokio::select! {
            next = heard.recv() => next,
            () = core.stopping.cancelled() => return,
        };
        let done = match next {
            Some(said) => {
                merged.take(said);
                false
            }
            None => true,
        };
        if sink.send(Ok(merged.response(done))).await.is_err() || done {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_nodes_adds_up_and_replaces_earlier_progress() {
        let progress = |checked| ScrubProgress { records_checked: checked, damaged: 1, ..Default::default() };
        let mut merged = Merged { nodes: 2, ..Merged::default() };
        merged.take(Said::Progress(NodeId(1), progress(5)));
        merged.take(Said::Progress(NodeId(1), progress(9)));
        merged.take(Said::Progress(NodeId(2), progress(1)));
        merged.take(Said::Over(NodeId(1), Ok(())));
        merged.take(Said::Over(NodeId(2), Err("it stopped".into())));
        let response = merged.response(true);
        assert_eq!((response.records_checked, response.damaged, response.nodes_done), (10, 2, 1));
        assert_eq!(response.failed.len(), 1);
    }
}
