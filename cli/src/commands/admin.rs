//! `admin`: accounts, status, scrub, settings.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use client::api::NewAccount;
use client::call_error::CallError;
use client::report::Failure;
use proto::v1;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{connect, read_password};
use crate::args::{
    AccountCommand, AccountCreate, AccountQuota, AdminCommand, Global, ScrubArguments, SettingsCommand,
    StatusArguments,
};
use crate::format;
use crate::output::{Output, tell, tell_progress};
use crate::shown::shown;
use crate::table::{Side, Table};

const STATUS_INTERVAL: Duration = Duration::from_millis(200);

pub(crate) async fn run(global: &Global, command: AdminCommand, output: &Output) -> anyhow::Result<ExitCode> {
    match command {
        AdminCommand::Account(AccountCommand::Create(create)) => create_account(global, create, output).await,
        AdminCommand::Account(AccountCommand::Quota(quota)) => account_quota(global, &quota, output).await,
        AdminCommand::Status(arguments) => status(global, &arguments, output).await,
        AdminCommand::Scrub(ScrubArguments { now: _ }) => scrub(global, output).await,
        AdminCommand::Settings(command) => settings(global, command, output).await,
    }
}

async fn create_account(
    global: &Global,
    arguments: AccountCreate,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let api = connect(global).await?;
    let password = read_password(arguments.password_stdin, true).await?;
    let email = arguments.email.clone();
    let new = NewAccount {
        email: arguments.email,
        name: arguments.name,
        password,
        quota_bytes: arguments.quota.unwrap_or(0),
        admin: arguments.admin,
    };
    let account = hex::encode(api.create_account(new).await?);
    output.print(&json!({ "account": account, "email": email }), || {
        format!("Made {} ({account})", shown(&email))
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn account_quota(
    global: &Global,
    arguments: &AccountQuota,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let told = connect(global).await?.account_quota(&arguments.email, arguments.quota).await?;
    let document = json!({
        "account": hex::encode(&told.account), "email": told.email, "quota_bytes": told.quota_bytes,
        "used_bytes": told.used_bytes,
    });
    output.print(&document, || {
        let quota = match told.quota_bytes {
            0 => "no limit".to_owned(),
            quota => format::size(quota),
        };
        format!("{}: {} used, quota {quota}", shown(&told.email), format::size(told.used_bytes))
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn status(global: &Global, arguments: &StatusArguments, output: &Output) -> anyhow::Result<ExitCode> {
    let deadline = arguments.wait.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let status = loop {
        let status = current_status(global, deadline).await;
        let waited = deadline.is_none_or(|deadline| Instant::now() >= deadline);
        match status {
            Ok(status) if waited || status.health == "ok" => break status,
            // Whatever is not there yet may come.
            Err(error)
                if waited || error.downcast_ref::<CallError>().is_none_or(|error| !error.is_transient()) =>
            {
                return Err(error);
            }
            Ok(_) | Err(_) => tokio::time::sleep(STATUS_INTERVAL).await,
        }
    };
    output.print(&json_status(&status), || text_status(&status))?;
    // Asked to wait for it, "not ok" is a failure.
    let failed = arguments.wait.is_some() && status.health != "ok";
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One look. While there is time left it is not repeated within: the caller does that.
async fn current_status(global: &Global, deadline: Option<Instant>) -> anyhow::Result<v1::StatusResponse> {
    let mut api = connect(global).await?;
    if deadline.is_some() {
        api = api.with_retry_time_max(Duration::ZERO);
    }
    Ok(api.cluster_status().await?)
}

fn json_status(status: &v1::StatusResponse) -> Value {
    let node = |node: &v1::NodeStatus| json!({ "id": node.node, "role": node.role, "address": node.address, "state": node.state });
    let disk = |disk: &v1::DiskStatus| {
        json!({
            "id": hex::encode(&disk.disk), "node": disk.node, "path": disk.path, "state": disk.state,
            "bytes": disk.allocated_bytes, "capacity_bytes": disk.capacity_bytes, "free_bytes": disk.free_bytes,
            "shards": disk.shards, "shards_damaged_found": disk.shards_damaged_found,
        })
    };
    json!({
        "health": status.health,
        "problems": status.problems,
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
        "disks": status.disks.iter().map(disk).collect::<Vec<_>>(),
        "stripes_total": status.stripes_total,
        "stripes_short": status.stripes_short,
        "releases_aside": status.releases_aside,
        "shards_damaged_found": status.shards_damaged_found,
        "bytes_logical": status.bytes_logical,
        "bytes_unique": status.bytes_unique,
        "nursery_files": status.nursery_files,
        "nursery_bytes": status.nursery_bytes,
        "bytes_on_disk": status.bytes_on_disk,
        "volumes": status.volumes,
        "code": status.code,
        "data_groups": status.data_groups,
        "cluster": hex::encode(&status.cluster),
        "version": status.version,
    })
}

fn text_status(status: &v1::StatusResponse) -> String {
    let mut text = format!("health  {}\n", status.health);
    for problem in &status.problems {
        text.push_str(&format!("  - {}\n", shown(problem)));
    }
    let mut summary = Table::new(&[("", Side::Left), ("", Side::Left)]);
    let mut row = |name: &str, value: String| summary.row(vec![name.to_owned(), value]);
    row("stripes", format!("{}, of which {} short", status.stripes_total, status.stripes_short));
    row("damage", format!("{} found", format::count(status.shards_damaged_found, "shard")));
    row("logical", format::size(status.bytes_logical));
    row("unique", format::size(status.bytes_unique));
    if status.nursery_files > 0 {
        let bytes = format::size(status.nursery_bytes);
        row("nursery", format!("{} small files, {bytes}, to be packed", status.nursery_files));
    }
    row("on disk", format::size(status.bytes_on_disk));
    row("volumes", format!("{}, code {}", status.volumes, status.code));
    row("groups", format!("1 root, {} data", status.data_groups));
    row("cluster", hex::encode(&status.cluster));
    text.push_str(&summary.render());
    let columns = [("NODE", Side::Left), ("STATE", Side::Left), ("ADDRESS", Side::Left)];
    let mut nodes = Table::new(&columns);
    for node in &status.nodes {
        let name = format!("{}-{}", node.role, node.node);
        nodes.row(vec![name, node.state.clone(), node.address.clone()]);
    }
    text.push_str(&format!("\n{}", nodes.render()));
    let mut disks = Table::new(&[
        ("DISK", Side::Left),
        ("NODE", Side::Right),
        ("STATE", Side::Left),
        ("USED", Side::Right),
        ("FREE", Side::Right),
        ("SHARDS", Side::Right),
        ("PATH", Side::Left),
    ]);
    for disk in &status.disks {
        disks.row(vec![
            hex::encode(&disk.disk).chars().take(8).collect(),
            disk.node.to_string(),
            disk.state.clone(),
            format::size(disk.allocated_bytes),
            format::size(disk.free_bytes),
            disk.shards.to_string(),
            disk.path.clone(),
        ]);
    }
    text.push_str(&format!("\n{}", disks.render()));
    text
}

async fn scrub(global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    let mut stream = connect(global).await?.scrub().await?;
    let watched = !output.is_json() && std::io::stderr().is_terminal();
    let mut last = None;
    while let Some(news) = stream.next().await? {
        if watched {
            let bytes = format::size(news.bytes_checked);
            let nodes = format::count(news.nodes, "node");
            tell_progress(&format!("{} of {nodes}, {bytes} checked", news.nodes_done));
        }
        last = Some(news);
    }
    if watched {
        tell("");
    }
    let last =
        last.filter(|last| last.done).context("the scrub was broken off before its end; begin it again")?;
    let document = json!({
        "nodes": last.nodes, "nodes_done": last.nodes_done, "records_checked": last.records_checked,
        "bytes_checked": last.bytes_checked, "damaged": last.damaged, "failed": last.failed,
    });
    let failure = |reason: &String| Failure { path: String::new(), reason: reason.clone() };
    let failures: Vec<_> = last.failed.iter().map(failure).collect();
    let text = || {
        format!(
            "Checked {} with {} on {}; {} damaged",
            format::count(last.records_checked, "shard"),
            format::size(last.bytes_checked),
            format::count(last.nodes_done, "node"),
            format::count(last.damaged, "shard"),
        )
    };
    output.report(&document, text, &failures)
}

async fn settings(global: &Global, command: SettingsCommand, output: &Output) -> anyhow::Result<ExitCode> {
    let api = connect(global).await?;
    match command {
        SettingsCommand::Ls => {
            let settings = api.list_settings().await?;
            let document = json!({ "settings": settings.iter().map(json_setting).collect::<Vec<_>>() });
            output.print(&document, || {
                let columns = [
                    ("NAME", Side::Left),
                    ("VALUE", Side::Left),
                    ("DEFAULT", Side::Left),
                    ("WHAT IT IS", Side::Left),
                ];
                let mut table = Table::new(&columns);
                for setting in settings {
                    table.row(vec![setting.name, setting.value, setting.default_value, setting.description]);
                }
                table.render()
            })?;
        }
        SettingsCommand::Get { name } => {
            let found = api.list_settings().await?.into_iter().find(|setting| setting.name == name);
            let setting = found
                .with_context(|| format!("no setting {name:?}; `keepstone admin settings ls` lists them"))?;
            output.print(&json_setting(&setting), || setting.value.clone())?;
        }
        SettingsCommand::Set { name, value } => {
            let setting = api.set_setting(&name, &value).await?;
            output.print(&json_setting(&setting), || format!("{} = {}", setting.name, setting.value))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn json_setting(setting: &v1::Setting) -> Value {
    json!({
        "name": setting.name, "value": setting.value, "default": setting.default_value,
        "description": setting.description,
    })
}
