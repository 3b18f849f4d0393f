//! `cluster.json`: which process serves which role, and how to start it again.

use proto::peer::Role;
use serde::Serialize;

use super::layout::{Layout, RoleName};
use super::parameters::Parameters;
use crate::files::{PUBLIC, write_whole};

#[derive(Debug, Serialize)]
struct Row {
    role: &'static str,
    id: u16,
    pid: u32,
    address: String,
    data_dir: String,
    argv: Vec<String>,
}

/// What starts a role: this very binary, with its configuration.
pub(crate) fn argv(layout: &Layout, name: RoleName) -> anyhow::Result<Vec<String>> {
    let word = match name.role {
        Role::Meta => "meta",
        Role::Storage => "storage",
        Role::Gateway => "gateway",
    };
    let binary = std::env::current_exe()?;
    let config = layout.config(name);
    let text = |path: &std::path::Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| anyhow::anyhow!("{} is not UTF-8", path.display()))
    };
    Ok(vec![text(&binary)?, word.to_owned(), "--config".to_owned(), text(&config)?])
}

/// Writes it, in one step.
pub(crate) fn write(
    layout: &Layout,
    parameters: &Parameters,
    pid: impl Fn(RoleName) -> u32,
) -> anyhow::Result<()> {
    let row = |name: RoleName| {
        Ok(Row {
            role: name.role.as_str(),
            id: name.number,
            pid: pid(name),
            address: parameters.address(name).to_string(),
            data_dir: layout.data(name).to_string_lossy().into_owned(),
            argv: argv(layout, name)?,
        })
    };
    let rows = parameters.roles().into_iter().map(row).collect::<anyhow::Result<Vec<Row>>>()?;
    let mut text = serde_json::to_string_pretty(&rows)?;
    text.push('\n');
    write_whole(&layout.manifest(), text.as_bytes(), PUBLIC)
}
