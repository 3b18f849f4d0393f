//! `history`, `versions`, `restore`.

use std::collections::HashMap;
use std::process::ExitCode;

use client::api::VersionsRemoved;
use client::path::RemotePath;
use proto::v1;
use serde_json::{Value, json};

use super::connect;
use crate::args::{Global, History, Restore, VersionsCommand, VersionsRm};
use crate::format::{self, json_entry};
use crate::output::Output;
use crate::shown::shown;
use crate::table::{Side, Table};

pub(crate) async fn run(
    global: &Global,
    command: VersionsCommand,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    match command {
        VersionsCommand::Ls(arguments) => history(global, &arguments, output).await,
        VersionsCommand::Rm(arguments) => remove(global, arguments, output).await,
    }
}

async fn remove(global: &Global, arguments: VersionsRm, output: &Output) -> anyhow::Result<ExitCode> {
    let path = RemotePath::parse(&arguments.path)?;
    let which = match (arguments.keep, arguments.before) {
        (Some(kept), _) => VersionsRemoved::AllButNewest(kept),
        (None, Some(time_ms)) => VersionsRemoved::Before { time_ms },
        (None, None) => VersionsRemoved::Listed(arguments.version),
    };
    let removed = connect(global).await?.remove_versions(&path, which).await?;
    let document = json!({ "path": path.as_str(), "versions": removed.versions, "bytes": removed.bytes });
    output.print(&document, || {
        let versions = format::count(removed.versions, "earlier version");
        format!("Removed {versions} of {}, {}", shown(path.as_str()), format::size(removed.bytes))
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn history(
    global: &Global,
    arguments: &History,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let path = RemotePath::parse(&arguments.path)?;
    let api = connect(global).await?;
    let versions = api.list_versions(&path).await?;
    let names: HashMap<_, _> =
        api.list_devices().await?.into_iter().map(|device| (device.device, device.name)).collect();
    let rows: Vec<_> =
        versions.iter().map(|version| json_version(version, names.get(&version.device))).collect();
    let document = json!({ "path": path.as_str(), "versions": rows });
    output.print(&document, || {
        let mut table = Table::new(&[
            ("VERSION", Side::Right),
            ("", Side::Left),
            ("STORED", Side::Left),
            ("SIZE", Side::Right),
            ("MODIFIED", Side::Left),
            ("DEVICE", Side::Left),
        ]);
        for version in &versions {
            table.row(vec![
                version.version.to_string(),
                if version.current { "current" } else { "" }.to_owned(),
                format::time_ms(version.created_ms),
                version.size.to_string(),
                format::time_ns(version.mtime_ns),
                // A device of somebody else, or one that is forgotten, has no name here.
                names.get(&version.device).cloned().unwrap_or_else(|| hex::encode(&version.device)),
            ]);
        }
        table.render()
    })?;
    Ok(ExitCode::SUCCESS)
}

fn json_version(version: &v1::Version, device_name: Option<&String>) -> Value {
    json!({
        "version": version.version,
        "current": version.current,
        "size": version.size,
        "mode": format!("{:04o}", version.mode),
        "mtime": format::json_time_ns(version.mtime_ns),
        "mtime_ns": version.mtime_ns,
        "created": format::json_time_ms(version.created_ms),
        "content": hex::encode(&version.content),
        "device": hex::encode(&version.device),
        "device_name": device_name,
    })
}

pub(crate) async fn restore(
    global: &Global,
    arguments: &Restore,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let path = RemotePath::parse(&arguments.path)?;
    let entry = connect(global).await?.restore_version(&path, arguments.version).await?;
    output.print(&json_entry(&entry, Some(path.as_str())), || {
        format!(
            "{} has the content of version {} again, as version {}",
            shown(path.as_str()),
            arguments.version,
            entry.version
        )
    })?;
    Ok(ExitCode::SUCCESS)
}
