//! Compares files that are here and on the server with different content, of which nothing is known, with the server's
//! earlier versions: who has an earlier version here has not edited it, only missed what came after.
//!
//! Without this, a lost state, or a folder that was copied to a new device some time ago, would make a conflicted copy
//! of every file that was edited elsewhere meanwhile.

use super::remote::record;
use crate::state::record::Outcome;
use crate::sync::shared::Shared;
use crate::sync::task::{CompareTask, End, Ended};

/// Files compared one after another in one portion.
pub(crate) const BATCH_MAX: usize = 16;

/// Compares the files and records which of them are earlier versions.
pub(crate) async fn run(shared: &Shared, tasks: Vec<CompareTask>) -> Vec<Ended> {
    let mut outcomes = Vec::new();
    let mut ended = Vec::with_capacity(tasks.len());
    for task in tasks {
        if shared.stop.is_cancelled() {
            ended.push(Ended::quietly(task.node, End::Stopped));
            continue;
        }
        match shared.api.list_versions(&task.path).await {
            Ok(versions) => {
                let earlier = versions.iter().any(|version| {
                    version.content[..] == task.content.content.as_bytes()[..]
                        && version.size == task.content.size
                });
                if earlier {
                    outcomes.push(Outcome::Adopted { keep: task.node, gone: task.other, stamp: task.stamp });
                }
                ended.push(Ended::quietly(task.node, End::Compared));
            }
            Err(error) => ended.push(Ended::call(task.node, &error)),
        }
    }
    record(shared, outcomes, ended).await
}
