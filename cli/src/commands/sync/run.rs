//! `sync run`: one folder, in the foreground.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use client::daemon::config::RootConfig;
use client::daemon::forget::set_aside;
use client::daemon::keeper::Shared;
use client::daemon::known;
use client::daemon::paths::Paths;
use client::daemon::server::{self, RunSocket};
use client::path::RemotePath;
use client::profile::Profile;
use client::sync::config::{DeleteGuard, Expected, OnDeletes, SyncConfig};
use client::sync::handle::{Ended, Handle};
use client::sync::session::Session;
use client::sync::status::{DELETES_ALL, LogEntry, Quiet, Status, Waiting};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

use crate::args::{Global, SyncRun};
use crate::format;
use crate::output::{Output, complain, tell};
use crate::shown::shown;
use crate::shutdown::StopSignals;

/// How often the terminal's progress line is made anew.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Why it came to an end.
enum End {
    Signal,
    Ended(Ended),
    Quiet(Quiet),
}

pub(crate) async fn run(global: &Global, arguments: SyncRun, output: &Output) -> anyhow::Result<ExitCode> {
    let mut signals = StopSignals::new()?;
    let config = configure(global, &arguments)?;
    let mut kept = RootConfig::new(config.root.clone(), &config.remote_path);
    kept.state.clone_from(&config.state_dir);
    let session = Session::start(config).await?;
    remember(&kept, &session);
    let mut printer = Printer::new(*output, session.events());
    let socket = listen(&session, kept).await;
    let end = tokio::select! {
        end = follow(&session, &mut printer, arguments.once) => end,
        () = signals.wait() => End::Signal,
    };
    session.stop().await;
    if let Some(socket) = socket {
        socket.stop().await;
    }
    printer.finish();
    report(end, &session.status(), arguments.once, output)
}

fn configure(global: &Global, arguments: &SyncRun) -> anyhow::Result<SyncConfig> {
    let root = super::existing_directory(&arguments.directory)?;
    let remote = RemotePath::parse(&arguments.remote)?;
    let path = super::super::profile_path(global)?;
    let connect = Profile::load(&path)?.connect_options(&path)?;
    let mut config = SyncConfig::new(root, remote, connect);
    config.expected = expected(&config.root, arguments.new)?;
    config.state_dir = arguments.state.as_deref().map(super::absolute).transpose()?;
    config.limits.up = arguments.limits.up.unwrap_or_default();
    config.limits.down = arguments.limits.down.unwrap_or_default();
    config.delete_guard =
        DeleteGuard { count_max: arguments.deletes_max, percent_max: arguments.deletes_percent_max };
    let confirmed = arguments.confirm.clone().map(OnDeletes::Confirm);
    config.on_deletes = if arguments.undelete { Some(OnDeletes::BringBack) } else { confirmed };
    config.scan_interval = Duration::from_secs(arguments.scan_minutes.max(1).saturating_mul(60));
    if arguments.new
        && let Some(aside) = set_aside(&config.root, config.state_dir.as_deref())?
    {
        tell(&format!(
            "the folder is taken for a new one; the state that was there is now {}",
            aside.display()
        ));
    }
    Ok(config)
}

/// A folder that was kept in sync before is not taken for a new one.
fn expected(directory: &Path, new: bool) -> anyhow::Result<Expected> {
    match Paths::from_environment() {
        Ok(paths) if !new => Ok(known::expected(&paths, directory)?),
        Ok(_) | Err(_) => Ok(Expected::MayBeNew),
    }
}

fn remember(kept: &RootConfig, session: &Handle) {
    let Ok(paths) = Paths::from_environment() else { return };
    let noted = known::remember(&paths, &kept.directory, session.root_id(), kept.state.as_deref());
    if let Err(error) = noted {
        tracing::warn!(%error, "it is not noted that this folder is kept in sync");
    }
}

/// So that `sync status`, `confirm` and the like reach this folder too. It is kept in sync without that as well.
async fn listen(session: &Handle, config: RootConfig) -> Option<RunSocket> {
    let socket = match Paths::from_environment() {
        Ok(paths) => paths.socket_of_run(&config.directory),
        Err(error) => {
            tracing::warn!(%error, "commands cannot reach this folder");
            return None;
        }
    };
    let (_metered, metered_pause) = watch::channel(false);
    let shared = Shared { profile: Path::new("").to_owned(), metered_pause, notices: None };
    match server::serve_session(&socket, config, session.clone(), shared) {
        Ok(socket) => Some(socket),
        Err(error) => {
            tracing::warn!(%error, "commands cannot reach this folder");
            None
        }
    }
}

/// Prints what is done until it ends by itself.
async fn follow(session: &Handle, printer: &mut Printer, once: bool) -> End {
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    let quiet = async { if once { session.quiet().await } else { std::future::pending().await } };
    tokio::pin!(quiet);
    loop {
        tokio::select! {
            quiet = &mut quiet => {
                return match quiet {
                    Ok(quiet) => End::Quiet(quiet),
                    Err(ended) => End::Ended(ended),
                };
            }
            ended = session.ended_wait() => return End::Ended(ended),
            event = printer.events.recv() => match event {
                Ok(event) => printer.event(&event),
                Err(RecvError::Lagged(missed)) => printer.missed(missed),
                Err(RecvError::Closed) => return End::Ended(session.ended_wait().await),
            },
            _ = ticks.tick() => printer.progress(&session.status()),
        }
    }
}

fn report(end: End, status: &Status, once: bool, output: &Output) -> anyhow::Result<ExitCode> {
    match end {
        End::Ended(ended) => Err(ended).context("stopped"),
        End::Signal => {
            let document = json!({ "agreed": false, "stopped": true, "status": status });
            let printed = output.print(&document, String::new);
            if once {
                complain("stopped before both sides agreed");
            }
            printed.map(|()| if once { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        End::Quiet(quiet) => {
            let document = json!({ "agreed": quiet.agreed, "waiting": quiet.waiting, "status": status });
            let printed = output.print(&document, || {
                if !quiet.agreed {
                    return String::new();
                }
                let ignored = match status.ignored_count {
                    0 => String::new(),
                    count => format!("; {count} ignored (`keepstone sync ls --ignored`)"),
                };
                let entries = format::count_of(status.agreed_count, "entry", "entries");
                format!("{entries} in sync with {}{ignored}", shown(&status.remote_path))
            });
            let code = if quiet.agreed {
                for left_out in &status.skipped {
                    complain(&format!("not kept in sync: {}", named(left_out)));
                }
                ExitCode::SUCCESS
            } else {
                complain_of(&quiet.waiting, status);
                ExitCode::FAILURE
            };
            printed.map(|()| code)
        }
    }
}

/// Says what keeps both sides from agreement.
fn complain_of(waiting: &[Waiting], status: &Status) {
    let deletes = deletes_that_wait(&status.root, status.deletes_to_confirm, &status.deletes_shown);
    for one in waiting {
        // Of an emptied folder the line about its deletes says more.
        if !one.path.is_empty() || status.deletes_shown != DELETES_ALL {
            complain(&named(one));
        }
    }
    if let Some(deletes) = deletes {
        complain(&deletes);
    }
    if waiting.is_empty() {
        complain(&format!("not in sync: {}", status.message));
    }
}

/// What is of the whole folder has no path.
fn named(waiting: &Waiting) -> String {
    let Waiting { path, why } = waiting;
    if path.is_empty() { why.clone() } else { format!("{path}: {why}") }
}

/// What deletes wait, and how to decide about them when nothing runs that could be told.
fn deletes_that_wait(root: &Path, count: u64, deletes_shown: &str) -> Option<String> {
    if deletes_shown == DELETES_ALL {
        return Some(format!(
            "{} is empty, and was not: nothing is deleted. If it is meant, run it again with --confirm {DELETES_ALL}; to \
             bring the files back, with --undelete",
            root.display()
        ));
    }
    let deletes = format::count(count, "delete");
    (count > 0).then(|| {
        format!(
            "{deletes} wait: if they are meant, run it again with --confirm {deletes_shown}, or raise --deletes-max or \
             --deletes-percent-max; to bring the files back, with --undelete"
        )
    })
}

/// Says what is done: one line each, and a progress line on a terminal.
struct Printer {
    output: Output,
    events: broadcast::Receiver<LogEntry>,
    bar: Option<ProgressBar>,
}

impl Printer {
    fn new(output: Output, events: broadcast::Receiver<LogEntry>) -> Self {
        let watched = !output.is_json() && std::io::stderr().is_terminal();
        let bar = watched.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { output, events, bar }
    }

    fn line(&self, line: &str) {
        // If nobody reads any more, the folder is kept in sync all the same.
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.line(line)),
            None => self.output.line(line),
        }
    }

    fn event(&self, event: &LogEntry) {
        let word = event.what.word().replace('-', " ");
        let detail = if event.detail.is_empty() { String::new() } else { format!(" ({})", event.detail) };
        self.line(format!("{word:<14}  {}{detail}", event.path).trim_end());
    }

    fn missed(&self, count: u64) {
        self.line(&format!("...             {count} more; `keepstone sync log` has them"));
    }

    fn progress(&self, status: &Status) {
        let Some(bar) = &self.bar else { return };
        bar.set_message(format!(
            "{} in sync, {} to do; up {}/s, down {}/s{}",
            status.agreed_count,
            status.pending_count,
            format::size(status.up.bytes_per_second),
            format::size(status.down.bytes_per_second),
            if status.message.is_empty() { String::new() } else { format!("; {}", shown(&status.message)) }
        ));
        bar.tick();
    }

    /// Prints what was done until the end.
    fn finish(&mut self) {
        loop {
            match self.events.try_recv() {
                Ok(event) => self.event(&event),
                Err(broadcast::error::TryRecvError::Lagged(missed)) => self.missed(missed),
                Err(_empty_or_closed) => break,
            }
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletes_that_wait_are_told_with_what_decides_about_them() {
        let told = |count, shown| deletes_that_wait(Path::new("/r"), count, shown);
        assert_eq!(told(0, ""), None);
        let some = told(12, "12-00c0ffee").unwrap();
        assert!(some.contains("12 deletes") && some.contains("--confirm 12-00c0ffee"), "{some}");
        let all = told(0, DELETES_ALL).unwrap();
        assert!(all.starts_with("/r is empty") && all.contains("--confirm all"), "{all}");
        assert!(some.contains("--undelete") && all.contains("--undelete"));
    }

    #[test]
    fn what_is_of_the_whole_folder_has_no_path_before_it() {
        let named = |path: &str| named(&Waiting { path: path.to_owned(), why: "why".to_owned() });
        assert_eq!((named("").as_str(), named("a/b").as_str()), ("why", "a/b: why"));
    }
}
