//! `sync status`, `sync log`; and a folder's status as people read it.

use std::process::ExitCode;

use client::daemon::client::Refused;
use client::daemon::config::DaemonConfig;
use client::daemon::paths::Paths;
use client::daemon::{rate, wire as convert};
use client::sync::config::Rate;
use client::sync::status::{Direction, Phase, Status, Traffic, Transfer, Waiting};
use proto::daemon as wire;
use serde_json::json;

use super::reach::{self, roots};
use crate::args::{SyncLog, SyncSome};
use crate::format;
use crate::output::{Output, complain};
use crate::shown::{shown, shown_argument, shown_path};
use crate::table::{Side, Table};

/// Files listed for people in each list; the JSON document has more.
const LISTED_MAX: usize = 20;

pub(crate) async fn status(arguments: &SyncSome, output: &Output) -> anyhow::Result<ExitCode> {
    let directory = arguments.directory.as_deref().map(super::directory).transpose()?;
    let Some(mut api) = reach::find(directory.as_deref()).await? else {
        return not_running(output).await;
    };
    let request = wire::StatusRequest { roots: roots(directory.as_deref())? };
    let answer = api.status(request).await.map_err(Refused::from)?.into_inner();
    let (pid, metered) = (answer.process_id, answer.metered_pause);
    let folders: Vec<Status> = answer.roots.into_iter().map(convert::status).collect();
    let document = json!({
        "running": true, "pid": pid, "version": answer.version, "config": answer.config,
        "metered_pause": metered, "roots": folders,
    });
    output.print(&document, || {
        let mut text: Vec<String> = folders.iter().map(|folder| folder_text(folder, metered)).collect();
        if text.is_empty() {
            text.push("No folder is kept in sync; add one with `keepstone sync add DIR`\n".to_owned());
        }
        text.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn not_running(output: &Output) -> anyhow::Result<ExitCode> {
    let path = Paths::from_environment()?.config;
    let config = tokio::task::spawn_blocking(move || DaemonConfig::load(&path)).await??;
    let rows: Vec<_> = config
        .roots
        .iter()
        .map(|root| json!({ "root": root.directory, "remote_path": root.remote, "paused": root.paused }))
        .collect();
    let printed = output.print(&json!({ "running": false, "roots": rows }), || {
        let line = |directory: &std::path::Path, remote: &str| {
            format!("{} with {}\n", shown_path(directory), shown(remote))
        };
        config.roots.iter().map(|root| line(&root.directory, &root.remote)).collect()
    });
    complain("the sync daemon does not run; start it with `keepstone sync start`");
    printed.map(|()| ExitCode::FAILURE)
}

fn phase_text(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Looking => "looking for changes",
        Phase::Syncing => "syncing",
        Phase::UpToDate => "up to date",
        Phase::Waiting => "waiting",
        Phase::Paused => "paused",
        Phase::Offline => "offline",
        Phase::Stopped => "not running",
    }
}

/// A folder's status for people.
pub(crate) fn folder_text(status: &Status, metered: bool) -> String {
    let mut text = format!(
        "{} with {}: {}",
        shown_path(&status.root),
        shown(&status.remote_path),
        phase_text(status.phase)
    );
    if metered && status.paused {
        text.push_str(" (while the network is metered)");
    }
    if !status.message.is_empty() {
        text.push_str(&format!(": {}", shown(&status.message)));
    }
    text.push('\n');
    text.push_str(&format!(
        "  {} in sync, {} to do{}\n",
        status.agreed_count,
        status.pending_count,
        match status.waiting_count {
            0 => String::new(),
            count => format!(", {count} of them waiting"),
        }
    ));
    let moved = |traffic: &Traffic| {
        format!(
            "{}, {}, {}/s",
            format::count(traffic.files, "file"),
            format::size(traffic.bytes),
            format::size(traffic.bytes_per_second)
        )
    };
    text.push_str(&format!(
        "  up {}{}; down {}{}\n",
        moved(&status.up),
        limit_text(status.limits.up),
        moved(&status.down),
        limit_text(status.limits.down)
    ));
    if !status.watching && !matches!(status.phase, Phase::Starting | Phase::Stopped) {
        text.push_str("  changes here are not noticed at once, only when everything is looked at\n");
    }
    if status.deletes_to_confirm > 0 {
        text.push_str(&format!(
            "  {} wait: if they are meant, `keepstone sync confirm {root} {}`; to bring the files back, \
             `keepstone sync undelete {root}`\n",
            format::count(status.deletes_to_confirm, "delete"),
            status.deletes_shown,
            root = shown_argument(&status.root)
        ));
    }
    text.extend(status.transfers.iter().take(LISTED_MAX).map(transfer_text));
    text.push_str(&listed("waiting", &status.waiting, status.waiting_count));
    text.push_str(&listed("not kept in sync", &status.skipped, 0));
    if status.ignored_count > 0 {
        text.push_str(&format!(
            "  {} ignored; `keepstone sync ls --ignored {}` says by which rules\n",
            status.ignored_count,
            shown_argument(&status.root)
        ));
    }
    for path in &status.excluded {
        text.push_str(&format!("  excluded: {}\n", shown(path)));
    }
    text
}

fn transfer_text(transfer: &Transfer) -> String {
    format!(
        "  {} {}: {} of {}\n",
        match transfer.direction {
            Direction::Up => "up",
            Direction::Down => "down",
        },
        shown(&transfer.path),
        format::size(transfer.bytes_done),
        format::size(transfer.bytes_total)
    )
}

fn limit_text(limit: Rate) -> String {
    if limit == Rate::Unlimited { String::new() } else { format!(" (limit {})", rate::show(limit)) }
}

/// `total` may be more than are listed.
fn listed(title: &str, list: &[Waiting], total: u64) -> String {
    let mut text = String::new();
    for Waiting { path, why } in list.iter().take(LISTED_MAX) {
        text.push_str(&format!("  {title}: {}: {}\n", shown(path), shown(why)));
    }
    let all = usize::try_from(total).unwrap_or(usize::MAX).max(list.len());
    if all > LISTED_MAX {
        text.push_str(&format!("  {title}: and {} more; --json lists more\n", all - LISTED_MAX));
    }
    text
}

pub(crate) async fn log(arguments: &SyncLog, output: &Output) -> anyhow::Result<ExitCode> {
    let directory = arguments.directory.as_deref().map(super::directory).transpose()?;
    let mut api = reach::require(directory.as_deref()).await?;
    let request = wire::LogRequest { roots: roots(directory.as_deref())?, count_max: arguments.lines };
    let entries = api.log(request).await.map_err(Refused::from)?.into_inner().entries;
    let rows: Vec<_> = entries
        .iter()
        .map(|entry| {
            json!({
                "root": entry.directory, "number": entry.number, "time": format::json_time_ms(entry.time_ms),
                "what": entry.what, "path": entry.path, "detail": entry.detail,
            })
        })
        .collect();
    output.print(&json!({ "entries": rows }), || {
        let mut table = Table::new(&[("", Side::Left), ("", Side::Left), ("", Side::Left)]);
        for entry in &entries {
            let path = std::path::Path::new(&entry.directory).join(&entry.path);
            let path = path.to_string_lossy();
            let detail = if entry.detail.is_empty() { String::new() } else { format!(" ({})", entry.detail) };
            let what = entry.what.replace('-', " ");
            table.row(vec![format::time_ms(entry.time_ms), what, format!("{path}{detail}")]);
        }
        table.render()
    })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use client::sync::config::Limits;
    use client::sync::status::Transfer;

    use super::*;

    fn status() -> Status {
        Status {
            root: "/r".into(),
            remote_path: "/docs".to_owned(),
            phase: Phase::Waiting,
            message: String::new(),
            online: true,
            paused: false,
            watching: true,
            agreed_count: 5,
            pending_count: 30,
            waiting_count: 30,
            waiting: (0..25)
                .map(|index| Waiting { path: format!("f{index}"), why: "no room".to_owned() })
                .collect(),
            skipped: vec![Waiting { path: "bad\nname".to_owned(), why: "a socket".to_owned() }],
            ignored_count: 3,
            deletes_to_confirm: 1200,
            deletes_shown: "1200-00c0ffee".to_owned(),
            transfers: vec![Transfer {
                path: "big".to_owned(),
                direction: Direction::Up,
                bytes_done: 1024,
                bytes_total: 2048,
            }],
            up: Traffic::default(),
            down: Traffic::default(),
            limits: Limits { up: Rate::BytesPerSecond(1 << 20), down: Rate::Unlimited },
            excluded: vec!["raw".to_owned()],
        }
    }

    #[test]
    fn a_status_says_what_waits_and_why() {
        let text = folder_text(&status(), false);
        for part in [
            "/r with /docs: waiting\n",
            "5 in sync, 30 to do, 30 of them waiting",
            "(limit 1M)",
            "1200 deletes wait: if they are meant, `keepstone sync confirm /r 1200-00c0ffee`",
            "`keepstone sync undelete /r`",
            "up big: 1.00 KiB of 2.00 KiB",
            "waiting: f0: no room",
            "waiting: and 10 more",
            "not kept in sync: bad\\nname: a socket",
            "excluded: raw",
            "3 ignored; `keepstone sync ls --ignored /r`",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }
}
