//! `trash ls`, `trash restore`, `trash purge`.

use std::process::ExitCode;

use client::path::RemotePath;
use proto::v1;
use serde_json::json;

use super::connect;
use crate::args::{Global, TrashCommand, TrashPurge, TrashRestore};
use crate::format::{self, json_entry};
use crate::output::Output;
use crate::table::{Side, Table};

pub(crate) async fn run(global: &Global, command: TrashCommand, output: &Output) -> anyhow::Result<ExitCode> {
    match command {
        TrashCommand::Ls => list(global, output).await,
        TrashCommand::Restore(arguments) => restore(global, &arguments, output).await,
        TrashCommand::Purge(arguments) => purge(global, &arguments, output).await,
    }
}

async fn list(global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    let api = connect(global).await?;
    let mut items: Vec<v1::TrashItem> = Vec::new();
    loop {
        let after = items.last().map(|item| item.trash_id).unwrap_or_default();
        let (page, more) = api.list_trash_page(after).await?;
        items.extend(page);
        if !more {
            break;
        }
    }
    let rows: Vec<_> = items
        .iter()
        .map(|item| {
            let mut value =
                item.entry.as_ref().map_or(json!({}), |entry| json_entry(entry, Some(&item.path)));
            value["trash_id"] = json!(item.trash_id);
            value["path"] = json!(item.path);
            value["deleted"] = format::json_time_ms(item.deleted_ms);
            value
        })
        .collect();
    output.print(&json!({ "items": rows }), || {
        let columns = [
            ("ID", Side::Right),
            ("REMOVED", Side::Left),
            ("SIZE", Side::Right),
            ("WHERE IT WAS", Side::Left),
        ];
        let mut table = Table::new(&columns);
        for item in &items {
            let file = item.entry.as_ref().filter(|entry| entry.kind() == v1::EntryKind::File);
            let size = file.map_or_else(|| "-".to_owned(), |entry| entry.size.to_string());
            let removed = format::time_ms(item.deleted_ms);
            table.row(vec![item.trash_id.to_string(), removed, size, item.path.clone()]);
        }
        table.render()
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn restore(global: &Global, arguments: &TrashRestore, output: &Output) -> anyhow::Result<ExitCode> {
    let to = arguments.to.as_deref().map(RemotePath::parse).transpose()?;
    let restored = connect(global).await?.restore_trash(arguments.id, to.as_ref()).await;
    let entry = restored.map_err(|error| {
        if to.is_none() && (error.is_failed_precondition() || error.is_already_exists()) {
            anyhow::anyhow!("{error}; name another place with --to REMOTE")
        } else {
            error.into()
        }
    })?;
    let path = to.map(|path| path.to_string()).or(Some(entry.path.clone()).filter(|path| !path.is_empty()));
    output.print(&json_entry(&entry, path.as_deref()), || {
        format!("Restored {}", path.as_deref().unwrap_or(&entry.name))
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn purge(global: &Global, arguments: &TrashPurge, output: &Output) -> anyhow::Result<ExitCode> {
    // The wire's 0 means all of it.
    let id = arguments.id.unwrap_or(0);
    anyhow::ensure!(arguments.all || id != 0, "there is no item 0; name one, or --all");
    let purged = connect(global).await?.purge_trash(id).await?;
    let document = json!({ "entries": purged.entries, "bytes": purged.bytes });
    output.print(&document, || {
        let entries = if purged.entries == 1 { "entry" } else { "entries" };
        format!("Purged {} {entries}, {}", purged.entries, format::size(purged.bytes))
    })?;
    Ok(ExitCode::SUCCESS)
}
