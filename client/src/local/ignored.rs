//! Lists what is ignored in a folder, each with its rule. It looks at the disk and at the state as both are now, beside
//! whoever keeps the folder in sync.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::Path;

use super::disk::{DiskError, ObjectKind};
use super::ignore_rules::{Beside, IGNORE_FILE, IgnoreRules, Level, Rule};
use super::list::{Entry, list};
use super::model::{LocalIndex, LocalRecord};
use super::own_data;
use super::rel::{Rel, STATE_FOLDER};
use super::root::{Root, RootError};
use crate::planner::model::{NodeId, ROOT};
use crate::state::database::FILE_NAME;
use crate::state::error::StateError;
use crate::state::scan_index::ScanIndex;

/// Why it cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListIgnoredError {
    /// The folder cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// What is in sync cannot be told.
    #[error(transparent)]
    State(#[from] StateError),
    /// It cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Something that is not sent because of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// A file, folder or symlink, with its path below the root.
    Thing(String, Rule),
    /// The same of something that was in sync before: it stays so.
    InSync(String, Rule),
    /// A file with rules that are not known, and why: nothing new of its folder is sent.
    Unknown(String, String),
}

/// Tells all that is ignored in `directory`, whose state is in `state` or, absent, in the folder itself. What is in an
/// ignored folder is not told by itself. Blocks.
///
/// # Errors
/// If it was never kept in sync, or cannot be read; what was told until then is right.
pub fn list_ignored(
    directory: &Path,
    state: Option<&Path>,
    tell: &mut dyn FnMut(Ignored),
) -> Result<(), ListIgnoredError> {
    let root = Root::open_to_look(directory)?;
    let own = directory.join(STATE_FOLDER);
    let index = ScanIndex::open(&state.unwrap_or(&own).join(FILE_NAME))?;
    let mut listing = Listing { root: &root, index: &index, folders: Vec::new() };
    listing.folders.push((Rel::root(), Some(ROOT), None));
    while let Some((rel, node, above)) = listing.folders.pop() {
        listing.folder(&rel, node, above.as_ref(), tell)?;
        index.check()?;
    }
    Ok(())
}

struct Listing<'a> {
    root: &'a Root,
    index: &'a ScanIndex,
    /// To be listed: where, as which node it is known, and the rules around it.
    folders: Vec<(Rel, Option<NodeId>, Option<Level>)>,
}

impl Listing<'_> {
    fn folder(
        &mut self,
        rel: &Rel,
        node: Option<NodeId>,
        above: Option<&Level>,
        tell: &mut dyn FnMut(Ignored),
    ) -> Result<(), DiskError> {
        let failed = |errno| DiskError::of(rel, errno);
        // What goes away meanwhile, or may not be read, is told by `status`.
        let Ok(fd) = self.root.open_folder(rel) else { return Ok(()) };
        let entries = list(fd.as_fd(), &self.root.home()).map_err(failed)?;
        let is_other = !rel.is_root()
            && (own_data::folder(fd.as_fd(), rel.name(), &entries).is_some()
                || entries.iter().any(|entry| entry.name == STATE_FOLDER));
        if is_other {
            return Ok(());
        }
        let level = match above {
            Some(above) => above.enter(fd.as_fd(), rel.name()),
            None => IgnoreRules.top(fd.as_fd()),
        };
        if let Some(why) = level.unknown_here() {
            let path =
                rel.join(IGNORE_FILE).map_or_else(|_too_long| rel.to_string(), |path| path.to_string());
            tell(Ignored::Unknown(path, why.to_owned()));
        }
        let known = self.known(node);
        let beside = Beside::new(&entries);
        for Entry { name, object } in &entries {
            let Some(name) = name.to_str().filter(|name| !rel.is_root() || *name != STATE_FOLDER) else {
                continue;
            };
            let Ok(below) = rel.join(name) else { continue };
            let known = known.get(name).map(|known| known.node);
            // What is mounted there is a folder to the rules.
            let kind = if object.kind == ObjectKind::MountPoint { ObjectKind::Folder } else { object.kind };
            match level.judge(name, kind, &beside) {
                Some(rule) if known.is_none() => tell(Ignored::Thing(below.to_string(), rule)),
                Some(rule) if !level.is_within_ignored() => {
                    tell(Ignored::InSync(below.to_string(), rule));
                    if object.kind == ObjectKind::Folder {
                        self.folders.push((below, known, Some(level.clone())));
                    }
                }
                _ if object.kind == ObjectKind::Folder => {
                    self.folders.push((below, known, Some(level.clone())));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What is in sync in a folder, by name.
    fn known(&self, node: Option<NodeId>) -> HashMap<String, LocalRecord> {
        let Some(node) = node else { return HashMap::new() };
        let unsent = self.index.children_unsent(node);
        let children = self.index.children(node).into_iter().filter(|child| !unsent.contains(&child.node));
        children.map(|child| (child.place.name.clone(), child)).collect()
    }
}
