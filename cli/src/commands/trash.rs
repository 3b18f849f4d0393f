//! `trash ls`, `trash restore`, `trash purge`.

use std::process::ExitCode;

use client::connection::ApiClient;
use client::path::RemotePath;
use proto::v1;
use serde_json::json;

use super::connect;
use crate::args::{Global, TrashCommand, TrashName, TrashPurge, TrashRestore};
use crate::format::{self, json_entry};
use crate::output::Output;
use crate::shown::shown;
use crate::table::{Side, Table};

pub(crate) async fn run(global: &Global, command: TrashCommand, output: &Output) -> anyhow::Result<ExitCode> {
    match command {
        TrashCommand::Ls => list(global, output).await,
        TrashCommand::Restore(arguments) => restore(global, &arguments, output).await,
        TrashCommand::Purge(arguments) => purge(global, &arguments, output).await,
    }
}

async fn list_all(api: &ApiClient) -> anyhow::Result<Vec<v1::TrashItem>> {
    let mut items: Vec<v1::TrashItem> = Vec::new();
    loop {
        let after = items.last().map(|item| item.trash_id).unwrap_or_default();
        let (page, more) = api.list_trash_page(after).await?;
        items.extend(page);
        if !more {
            return Ok(items);
        }
    }
}

/// The id of what somebody named.
async fn find(api: &ApiClient, name: &TrashName) -> anyhow::Result<u64> {
    match name {
        TrashName::Id(id) => Ok(*id),
        TrashName::Path(path) => only_one_at(&list_all(api).await?, path),
    }
}

/// The id of the one thing that was at `path`. Which of several is meant, nobody but the person can say.
fn only_one_at(items: &[v1::TrashItem], path: &RemotePath) -> anyhow::Result<u64> {
    let at: Vec<_> = items.iter().filter(|item| item.path == path.as_str()).collect();
    if let [item] = at[..] {
        return Ok(item.trash_id);
    }
    if !at.is_empty() {
        let each =
            at.iter().map(|item| format!("{} (removed {})", item.trash_id, format::time_ms(item.deleted_ms)));
        let each: Vec<_> = each.collect();
        anyhow::bail!(
            "{path}: {} in the trash were there; name one by its id: {}",
            at.len(),
            each.join(", ")
        );
    }
    let holds = |item: &&v1::TrashItem| {
        path.as_str().strip_prefix(item.path.as_str()).is_some_and(|rest| rest.starts_with('/'))
    };
    match items.iter().rfind(holds) {
        Some(folder) => anyhow::bail!(
            "{path}: nothing in the trash was there by itself; {} was removed as a whole (id {}), perhaps with it in it",
            folder.path,
            folder.trash_id
        ),
        None => {
            anyhow::bail!("{path}: nothing in the trash was there; `keepstone trash ls` shows what is in it")
        }
    }
}

async fn list(global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    let items = list_all(&connect(global).await?).await?;
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
    let api = connect(global).await?;
    let restored = api.restore_trash(find(&api, &arguments.item).await?, to.as_ref()).await;
    let entry = restored.map_err(|error| {
        if to.is_none() && (error.is_failed_precondition() || error.is_already_exists()) {
            anyhow::anyhow!("{error}; name another place with --to REMOTE")
        } else {
            error.into()
        }
    })?;
    let path = to.map(|path| path.to_string()).or(Some(entry.path.clone()).filter(|path| !path.is_empty()));
    output.print(&json_entry(&entry, path.as_deref()), || {
        format!("Restored {}", shown(path.as_deref().unwrap_or(&entry.name)))
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn purge(global: &Global, arguments: &TrashPurge, output: &Output) -> anyhow::Result<ExitCode> {
    let api = connect(global).await?;
    let id = match &arguments.item {
        Some(item) => find(&api, item).await?,
        // The wire's word for all of it; the command line lets nobody come here without --all.
        None => 0,
    };
    anyhow::ensure!(arguments.all || id != 0, "name an item, or --all");
    let purged = api.purge_trash(id).await?;
    let document = json!({ "entries": purged.entries, "bytes": purged.bytes });
    output.print(&document, || {
        let entries = format::count_of(purged.entries, "entry", "entries");
        format!("Purged {entries}, {}", format::size(purged.bytes))
    })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_at_a_path_is_found_and_ambiguity_is_told() {
        let item = |trash_id, path: &str| v1::TrashItem {
            trash_id,
            path: path.to_owned(),
            deleted_ms: 1_700_000_000_000,
            ..v1::TrashItem::default()
        };
        let items = [item(3, "/a"), item(5, "/b"), item(9, "/b"), item(11, "/7")];
        let find =
            |path| only_one_at(&items, &RemotePath::parse(path).unwrap()).map_err(|error| error.to_string());
        assert_eq!(find("/a"), Ok(3));
        assert_eq!(find("//a/"), Ok(3));
        assert_eq!(find("/7"), Ok(11), "a number as a name");
        let several = find("/b").unwrap_err();
        assert!(several.contains("5 (removed 2023") && several.contains("9 (removed 2023"), "{several}");
        assert!(find("/a/below").unwrap_err().contains("id 3"));
        assert!(find("/ab").unwrap_err().contains("trash ls"));
    }
}
