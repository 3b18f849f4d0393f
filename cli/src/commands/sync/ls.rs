//! `sync ls --ignored`: what of a folder is not sent because of rules, each with its rule. It looks for itself: whether
//! anybody keeps the folder in sync just now does not matter.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use client::daemon::config::DaemonConfig;
use client::daemon::paths::Paths;
use client::local::ignored::{Ignored, list_ignored};
use serde_json::json;

use crate::args::SyncLs;
use crate::output::Output;
use crate::shown::{shown, shown_path};

/// A folder and, if it is elsewhere, its state.
type Folder = (PathBuf, Option<PathBuf>);

pub(crate) async fn ls(arguments: &SyncLs, output: &Output) -> anyhow::Result<ExitCode> {
    let directory = arguments.directory.as_deref().map(super::directory).transpose()?;
    let state = arguments.state.as_deref().map(super::absolute).transpose()?;
    let listed = tokio::task::spawn_blocking(move || {
        let folders = folders(directory, state)?;
        folders.into_iter().map(list).collect::<anyhow::Result<Vec<_>>>()
    });
    let listed = listed.await??;
    let rows: Vec<_> = listed.iter().map(|(directory, found)| document(directory, found)).collect();
    output.print(&json!({ "roots": rows }), || {
        listed.iter().map(|(directory, found)| text(directory, found, listed.len() > 1)).collect()
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The one that is named, or all that the daemon keeps in sync.
fn folders(directory: Option<PathBuf>, state: Option<PathBuf>) -> anyhow::Result<Vec<Folder>> {
    let config = DaemonConfig::load(&Paths::from_environment()?.config)?;
    let Some(directory) = directory else {
        anyhow::ensure!(!config.roots.is_empty(), "the daemon keeps no folder in sync; name one");
        return Ok(config.roots.into_iter().map(|root| (root.directory, root.state)).collect());
    };
    let known = config.roots.into_iter().find(|root| root.directory == directory);
    let state = state.or_else(|| known.and_then(|root| root.state));
    Ok(vec![(directory, state)])
}

fn list((directory, state): Folder) -> anyhow::Result<(PathBuf, Vec<Ignored>)> {
    let mut found = Vec::new();
    list_ignored(&directory, state.as_deref(), &mut |ignored| found.push(ignored))
        .with_context(|| format!("cannot list what is ignored in {}", directory.display()))?;
    found.sort_by(|a, b| path_of(a).cmp(path_of(b)));
    Ok((directory, found))
}

fn path_of(ignored: &Ignored) -> &str {
    match ignored {
        Ignored::Thing(path, _) | Ignored::InSync(path, _) | Ignored::Unknown(path, _) => path,
    }
}

fn document(directory: &Path, found: &[Ignored]) -> serde_json::Value {
    let (mut ignored, mut in_sync, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for one in found {
        match one {
            Ignored::Thing(path, rule) => ignored.push(json!({ "path": path, "rule": rule.to_string() })),
            Ignored::InSync(path, rule) => in_sync.push(json!({ "path": path, "rule": rule.to_string() })),
            Ignored::Unknown(path, why) => unknown.push(json!({ "path": path, "why": why })),
        }
    }
    json!({ "root": directory, "ignored": ignored, "in_sync_all_the_same": in_sync, "rules_not_understood": unknown })
}

fn text(directory: &Path, found: &[Ignored], is_one_of_many: bool) -> String {
    let mut text = String::new();
    if is_one_of_many {
        text.push_str(&format!("{}\n", shown_path(directory)));
    }
    for one in found {
        text.push_str(&match one {
            Ignored::Thing(path, rule) => format!("{}  ({})\n", shown(path), shown(&rule.to_string())),
            Ignored::InSync(path, rule) => {
                format!("{}  (in sync all the same: {})\n", shown(path), shown(&rule.to_string()))
            }
            Ignored::Unknown(path, why) => {
                format!("{}: {}; nothing new in this folder is sent\n", shown(path), shown(why))
            }
        });
    }
    text
}
