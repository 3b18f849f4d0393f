//! What scans leave out, and where that is by now.

use tokio::time::Instant;

use super::Run;
use crate::local::rel::Rel;
use crate::local::scan::Scope;
use crate::sync::scanner::FoundLeftOut;
use crate::sync::task::MovedFolder;

/// Whether a scan of this scope has looked into a folder.
fn looks_into(scope: &Scope, folder: &Rel) -> bool {
    let Scope::Folders(folders) = scope else { return true };
    folders.iter().any(|looked| looked.folder == *folder || (looked.deep && folder.is_within(&looked.folder)))
}

impl Run {
    /// Takes in what a scan left out that began at `began`.
    pub(super) async fn take_left_out(&mut self, found: FoundLeftOut, began: Instant) {
        let FoundLeftOut { scope, left, unread, skipped, ignored } = found;
        self.unread.retain(|folder, _node| !looks_into(&scope, folder));
        self.unread.extend(unread);
        left.iter().for_each(|folder| self.forget_left_out(folder));
        self.board.skipped(skipped, &scope);
        self.board.ignored(ignored, &scope);
        // What this session moved while that scan was under way was seen where it is no more: another scan follows.
        self.moved_from.retain(|(_from, since)| *since > began);
        for (from, _since) in self.moved_from.clone() {
            self.forget_left_out(&from);
        }
        self.forget_gone(&scope).await;
    }

    fn forget_left_out(&mut self, folder: &Rel) {
        self.board.left(folder);
        self.unread.retain(|rel, _node| !rel.is_within(folder));
    }

    /// Folders that were never known, and in which something was left out, go without a word in any index.
    async fn forget_gone(&mut self, scope: &Scope) {
        let folders = self.board.folders_with_left_out(scope);
        if folders.is_empty() {
            return;
        }
        let root = self.shared.root.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let is_gone = |rel: &Rel| matches!(root.stat(rel), Ok(None));
            folders.into_iter().filter(is_gone).collect::<Vec<Rel>>()
        });
        for folder in looked.await.unwrap_or_default() {
            self.board.left(&folder);
        }
    }

    /// What is known of places is known where they are now. All that is in the folder is looked at besides: what was
    /// heard of its old place, and not yet looked at, is not found there any more.
    pub(super) fn folder_moved(&mut self, folder: &MovedFolder) {
        self.board.moved(folder);
        self.moved_from.push((folder.from.clone(), Instant::now()));
        for (rel, node) in std::mem::take(&mut self.unread) {
            let now = folder.path_now(rel.as_str()).and_then(|path| Rel::parse(&path).ok());
            self.unread.insert(now.unwrap_or(rel), node);
        }
    }
}
