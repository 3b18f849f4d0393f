//! `mkdir`, `mv`, `cp`, `rm`: each path by itself; what fails is listed, and the rest goes on.

use std::process::ExitCode;

use anyhow::Context;
use bytes::Bytes;
use client::call_error::CallError;
use client::connection::ApiClient;
use client::path::RemotePath;
use proto::v1;
use serde_json::json;

use super::{Done, connect};
use crate::args::{Cp, Global, Mkdir, Mv, Rm};
use crate::format::json_entry;
use crate::output::Output;
use crate::target::{At, Placement, RemoteTarget, placement};

/// Folders made in one call.
const BATCH_MAX: usize = 512;
const FOLDER_MODE: u32 = 0o755;

/// What is at a path now.
pub(crate) async fn look(api: &ApiClient, path: &RemotePath) -> Result<At, CallError> {
    Ok(match api.find_entry(path).await? {
        None => At::Nothing,
        Some(entry) if entry.kind() == v1::EntryKind::Folder => At::Folder,
        Some(_) => At::Other,
    })
}

/// The time for something made now.
fn now_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or_default()
}

pub(crate) async fn mkdir(global: &Global, arguments: Mkdir, output: &Output) -> anyhow::Result<ExitCode> {
    let api = connect(global).await?;
    let mut done = Done::default();
    let mut paths = Vec::new();
    for text in arguments.paths {
        match RemotePath::parse(&text) {
            // It is there whatever happens.
            Ok(path) if path.is_root() && arguments.parents => {}
            Ok(path) => paths.push(path),
            Err(error) => done.fail(text, error),
        }
    }
    for batch in paths.chunks(BATCH_MAX) {
        let entry = |path: &RemotePath| v1::CreateEntry {
            path: path.to_string(),
            kind: v1::EntryKind::Folder.into(),
            symlink_target: Bytes::new(),
            mode: FOLDER_MODE,
            mtime_ns: now_ns(),
            parents: arguments.parents,
            replace: false,
        };
        let results = api.create_entries(batch.iter().map(entry).collect()).await?;
        for (path, result) in batch.iter().zip(results) {
            match result {
                Ok(entry) => done.done.push(json_entry(&entry, Some(path.as_str()))),
                Err(error) => done.fail(path, error),
            }
        }
    }
    done.report(*output)
}

/// Each source that is a path, and exactly where it goes.
async fn place(
    api: &ApiClient,
    sources: Vec<String>,
    target: &str,
    done: &mut Done,
) -> anyhow::Result<Vec<(RemotePath, RemotePath)>> {
    let to = RemoteTarget::parse(target)?;
    let at = look(api, &to.path).await?;
    let placement = placement(sources.len(), to.trailing_slash, at).with_context(|| target.to_owned())?;
    let mut placed = Vec::with_capacity(sources.len());
    for text in sources {
        let pair = RemotePath::parse(&text).map_err(anyhow::Error::from).and_then(|from| {
            let name = from.name().context("the top folder cannot be moved or copied as a whole")?;
            let exact = match placement {
                Placement::Exact => to.path.clone(),
                Placement::Into => to.path.join(name)?,
            };
            Ok((from, exact))
        });
        match pair {
            Ok(pair) => placed.push(pair),
            Err(error) => done.fail(text, error),
        }
    }
    Ok(placed)
}

fn explain(error: &CallError) -> String {
    if error.is_already_exists() && !error.to_string().contains("--replace") {
        return format!("{error}; put it into the trash with --replace");
    }
    error.to_string()
}

pub(crate) async fn mv(global: &Global, arguments: Mv, output: &Output) -> anyhow::Result<ExitCode> {
    let api = connect(global).await?;
    let mut done = Done::default();
    for (from, to) in place(&api, arguments.sources, &arguments.target, &mut done).await? {
        match api.move_entry(&from, &to, arguments.replace).await {
            Ok(entry) => done.done.push(json_entry(&entry, Some(to.as_str()))),
            Err(error) => done.fail(from, explain(&error)),
        }
    }
    done.report(*output)
}

pub(crate) async fn cp(global: &Global, arguments: Cp, output: &Output) -> anyhow::Result<ExitCode> {
    let api = connect(global).await?;
    let mut done = Done::default();
    for (from, to) in place(&api, arguments.sources, &arguments.target, &mut done).await? {
        match api.copy_entry(&from, &to, arguments.replace).await {
            Ok(copied) => {
                let mut value =
                    copied.entry.as_ref().map_or(json!({}), |entry| json_entry(entry, Some(to.as_str())));
                value["files"] = json!(copied.files);
                value["bytes"] = json!(copied.bytes);
                done.done.push(value);
            }
            Err(error) => done.fail(from, explain(&error)),
        }
    }
    done.report(*output)
}

pub(crate) async fn rm(global: &Global, arguments: Rm, output: &Output) -> anyhow::Result<ExitCode> {
    let api = connect(global).await?;
    let mut done = Done::default();
    for text in arguments.paths {
        let path = match RemotePath::parse(&text) {
            Ok(path) if path.is_root() => {
                done.fail(text, "the top folder cannot be removed");
                continue;
            }
            Ok(path) => path,
            Err(error) => {
                done.fail(text, error);
                continue;
            }
        };
        match api.delete_entry(&path, arguments.recursive).await {
            Ok(trash_id) => done.done.push(json!({ "path": path.as_str(), "trash_id": trash_id })),
            Err(error) if error.reason() == "not-empty" && !error.to_string().contains("-r") => {
                done.fail(path, format!("{error}; remove it with all that is in it by rm -r"));
            }
            Err(error) => done.fail(path, error),
        }
    }
    done.report(*output)
}
