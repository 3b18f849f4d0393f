//! `ls`, `stat`.

use std::io::IsTerminal;
use std::process::ExitCode;

use client::connection::ApiClient;
use client::path::RemotePath;
use proto::v1;
use serde_json::json;

use super::connect;
use crate::args::{Global, Ls, Stat};
use crate::format::{self, json_entry};
use crate::output::Output;
use crate::shown::shown;
use crate::table::{Side, Table};

pub(crate) async fn ls(global: &Global, arguments: &Ls, output: &Output) -> anyhow::Result<ExitCode> {
    let path = RemotePath::parse(&arguments.path)?;
    let api = connect(global).await?;
    let entry = api.get_entry(&path).await?;
    if entry.kind() != v1::EntryKind::Folder {
        let document = json!({ "path": path.as_str(), "entries": [json_entry(&entry, Some(path.as_str()))] });
        if arguments.null {
            output.print_exactly(&document, &[entry.name.as_bytes(), b"\0"].concat())?;
        } else {
            output.print(&document, || lines(std::slice::from_ref(&entry), arguments.long))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut pending = vec![path.clone()];
    let mut rows = Vec::new();
    let mut first = true;
    while let Some(folder) = pending.pop() {
        let entries = list_all(&api, &folder).await?;
        if arguments.recursive {
            let subfolders = entries.iter().filter(|entry| entry.kind() == v1::EntryKind::Folder);
            let below: Result<Vec<_>, _> = subfolders.map(|entry| folder.join(&entry.name)).collect();
            pending.extend(below?.into_iter().rev());
        }
        if output.is_json() {
            for entry in &entries {
                rows.push(json_entry(entry, Some(folder.join(&entry.name)?.as_str())));
            }
        } else if arguments.null {
            output.list_exactly(&json!(null), &exact(&entries, arguments.recursive.then_some(&folder))?)?;
        } else {
            // Folder by folder as they come: a long listing begins at once.
            let separator = if first { "" } else { "\n" };
            let title = if arguments.recursive {
                format!("{separator}{}:\n", shown(folder.as_str()))
            } else {
                String::new()
            };
            output.list(&json!(null), || format!("{title}{}", lines(&entries, arguments.long)))?;
        }
        first = false;
    }
    if output.is_json() {
        output.print(&json!({ "path": path.as_str(), "entries": rows }), String::new)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn list_all(api: &ApiClient, folder: &RemotePath) -> anyhow::Result<Vec<v1::Entry>> {
    let mut all: Vec<v1::Entry> = Vec::new();
    loop {
        let after = all.last().map(|entry| entry.name.clone()).unwrap_or_default();
        let (page, more) = api.list_folder_page(folder, &after).await?;
        all.extend(page);
        if !more {
            return Ok(all);
        }
    }
}

/// Each name, or each path in `folder`, with a NUL after it.
fn exact(entries: &[v1::Entry], folder: Option<&RemotePath>) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for entry in entries {
        match folder {
            Some(folder) => bytes.extend(folder.join(&entry.name)?.as_str().as_bytes()),
            None => bytes.extend(entry.name.as_bytes()),
        }
        bytes.push(0);
    }
    Ok(bytes)
}

fn lines(entries: &[v1::Entry], long: bool) -> String {
    if !long {
        let slashes = std::io::stdout().is_terminal();
        let line = |entry: &v1::Entry| {
            let folder = slashes && entry.kind() == v1::EntryKind::Folder;
            format!("{}{}\n", shown(&entry.name), if folder { "/" } else { "" })
        };
        return entries.iter().map(line).collect();
    }
    let mut table = Table::new(&[("", Side::Left), ("", Side::Right), ("", Side::Left), ("", Side::Left)]);
    for entry in entries {
        let name = match entry.kind() {
            v1::EntryKind::Symlink => {
                format!("{} -> {}", entry.name, String::from_utf8_lossy(&entry.symlink_target))
            }
            _ => entry.name.clone(),
        };
        let size = match entry.kind() {
            v1::EntryKind::File => entry.size.to_string(),
            _ => "-".to_owned(),
        };
        table.row(vec![format::mode(entry.kind(), entry.mode), size, format::time_ns(entry.mtime_ns), name]);
    }
    table.render()
}

pub(crate) async fn stat(global: &Global, arguments: &Stat, output: &Output) -> anyhow::Result<ExitCode> {
    let path = RemotePath::parse(&arguments.path)?;
    let entry = connect(global).await?.get_entry(&path).await?;
    output.print(&json_entry(&entry, Some(path.as_str())), || {
        let mut table = Table::new(&[("", Side::Left), ("", Side::Left)]);
        let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
        row("path", path.to_string());
        row("kind", format::kind(entry.kind()).to_owned());
        row("mode", format!("{} ({:04o})", format::mode(entry.kind(), entry.mode), entry.mode));
        row("modified", format::time_ns(entry.mtime_ns));
        match entry.kind() {
            v1::EntryKind::File => {
                row("size", format!("{} bytes ({})", entry.size, format::size(entry.size)));
                row("version", entry.version.to_string());
                row("content", hex::encode(&entry.content));
                row("cutter", format::cutter(entry.cutter()).to_owned());
            }
            v1::EntryKind::Symlink => {
                row("target", String::from_utf8_lossy(&entry.symlink_target).into_owned());
            }
            v1::EntryKind::Folder | v1::EntryKind::Unspecified => {}
        }
        row("created", format::time_ms(entry.created_ms));
        row("changed", format::time_ms(entry.changed_ms));
        row("id", entry.id.to_string());
        table.render()
    })?;
    Ok(ExitCode::SUCCESS)
}
