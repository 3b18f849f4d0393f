//! `put`, `get`, `cat`.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use client::connection::ApiClient;
use client::download::{DownloadOptions, DownloadSource, download};
use client::path::RemotePath;
use client::report::{DownloadReport, Failure};
use client::upload::{UploadSource, upload};
use proto::v1;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::write_through::{self, Target, Through};
use super::{connect, entries::look};
use crate::args::{Cat, Get, Global, Put};
use crate::output::Output;
use crate::shutdown::StopSignals;
use crate::target::{At, Placement, RemoteTarget, TargetError, placement};
use crate::{format, progress};

pub(crate) async fn put(global: &Global, arguments: Put, output: &Output) -> anyhow::Result<ExitCode> {
    let target = RemoteTarget::parse(&arguments.target)?;
    let api = connect(global).await?;
    let at = look(&api, &target.path).await?;
    let placement = placement(arguments.sources.len(), target.trailing_slash, at)
        .with_context(|| arguments.target.clone())?;
    let (sources, mut failed) = place_sources(&arguments.sources, &target.path, placement);
    let started = Instant::now();
    let mut report = upload(&api, sources, progress::for_transfer(*output)).await;
    report.failed.append(&mut failed);
    let elapsed = started.elapsed();
    let mut document = serde_json::to_value(&report)?;
    document["elapsed_ms"] = json!(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    let text = || {
        format!(
            "Put {}, {} in {} ({}); {} sent{}",
            things(report.files, report.folders, report.symlinks),
            format::size(report.bytes),
            seconds(elapsed),
            rate(report.bytes, elapsed),
            format::size(report.bytes_sent),
            there_already(report.unchanged),
        )
    };
    output.report(&document, text, &report.failed)
}

fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}

fn rate(bytes: u64, elapsed: Duration) -> String {
    let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    format!("{}/s", format::size(bytes.saturating_mul(1000) / ms))
}

/// Where each source goes exactly; and those that have no name to go by.
fn place_sources(
    sources: &[PathBuf],
    target: &RemotePath,
    placement: Placement,
) -> (Vec<UploadSource>, Vec<Failure>) {
    let mut placed = Vec::with_capacity(sources.len());
    let mut failed = Vec::new();
    for source in sources {
        let remote = match placement {
            Placement::Exact => Ok(target.clone()),
            Placement::Into => into(source, target),
        };
        match remote {
            Ok(remote) => placed.push(UploadSource { local: source.clone(), remote }),
            Err(reason) => failed.push(Failure { path: source.display().to_string(), reason }),
        }
    }
    (placed, failed)
}

fn into(source: &Path, target: &RemotePath) -> Result<RemotePath, String> {
    // As by `cp -r DIR/. INTO`: what is in the folder goes there, not the folder.
    let bytes = source.as_os_str().as_bytes();
    if bytes == b"." || bytes.ends_with(b"/.") {
        return Ok(target.clone());
    }
    let name = match source.file_name() {
        Some(name) => name.to_owned(),
        // `..` and `/` have a name, or none, only once it is known where they are.
        None => std::fs::canonicalize(source)
            .ok()
            .and_then(|path| path.file_name().map(OsString::from))
            .ok_or("it has no name: name the target in full")?,
    };
    let name = name.to_str().ok_or("its name is not UTF-8: name the target in full")?;
    target.join(name).map_err(|error| error.to_string())
}

pub(crate) async fn get(global: &Global, arguments: Get, output: &Output) -> anyhow::Result<ExitCode> {
    // As by `cp -r DIR/. INTO`: what is in the folder goes there, not the folder.
    let (text, straight) = match arguments.source.strip_suffix("/.") {
        Some(folder) => (if folder.is_empty() { "/" } else { folder }, true),
        None => (arguments.source.as_str(), false),
    };
    let remote = RemotePath::parse(text)?;
    let shown = || arguments.target.display().to_string();
    let through = match write_through::look(&arguments.target) {
        Target::Place => None,
        Target::Through(through) => Some(through),
        Target::Refused(reason) => return Err(anyhow::anyhow!(reason)).with_context(shown),
    };
    if let Some(through) = through {
        return get_through(global, &remote, through, *output).await.with_context(shown);
    }
    let source = place_target(&remote, straight, &arguments.target).with_context(shown)?;
    // From here on: a signal that comes at the wrong moment must not leave half a file.
    let mut signals = StopSignals::new()?;
    let look = async {
        let api = connect(global).await?;
        let entry = api.get_entry(&remote).await?;
        anyhow::Ok((api, entry))
    };
    // Before anything is made here.
    let (api, entry) = tokio::select! {
        found = look => found?,
        () = signals.wait() => anyhow::bail!("stopped before anything was got"),
    };
    if source.name.is_none() {
        crate::files::make_directory(&source.folder)?;
    }
    anyhow::ensure!(
        source.name.is_some() || entry.kind() == v1::EntryKind::Folder,
        "{remote} is not a folder"
    );
    let started = Instant::now();
    let options = DownloadOptions { overwrite: arguments.overwrite };
    let stop = CancellationToken::new();
    let got = download(&api, vec![source], options, progress::for_transfer(*output), &stop);
    tokio::pin!(got);
    let report = tokio::select! {
        report = &mut got => report,
        () = signals.wait() => {
            stop.cancel();
            // A second signal does not wait for that: the next call cleans up.
            tokio::select! {
                report = got => report,
                () = signals.wait() => anyhow::bail!("stopped at once: got to the same place again, it is completed"),
            }
        }
    };
    report_got(&report, started.elapsed(), *output)
}

fn report_got(report: &DownloadReport, elapsed: Duration, output: Output) -> anyhow::Result<ExitCode> {
    let mut document = serde_json::to_value(report)?;
    document["elapsed_ms"] = json!(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    let text = || {
        format!(
            "Got {}, {} in {} ({}){}",
            things(report.files, report.folders, report.symlinks),
            format::size(report.bytes),
            seconds(elapsed),
            rate(report.bytes, elapsed),
            there_already(report.unchanged),
        )
    };
    output.report(&document, text, &report.failed)
}

/// What was put or got, of each kind that there was.
fn things(files: u64, folders: u64, symlinks: u64) -> String {
    let kinds = [(files, "file"), (folders, "folder"), (symlinks, "symlink")];
    let counts = kinds.iter().filter(|(count, _kind)| *count > 0);
    let counts: Vec<String> = counts.map(|(count, kind)| format::count(*count, kind)).collect();
    if counts.is_empty() { format::count(0, "file") } else { counts.join(", ") }
}

fn there_already(files: u64) -> String {
    if files == 0 { String::new() } else { format!("; {} there already", format::count(files, "file")) }
}

/// Writes a file into something that is no place in a folder. What is said of it must not get in between.
async fn get_through(
    global: &Global,
    remote: &RemotePath,
    through: Through,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let is_standard_output = through == Through::StandardOutput;
    anyhow::ensure!(
        !output.is_json() || !is_standard_output,
        "the file itself goes to standard output, which is no JSON; leave out --json"
    );
    let api = connect(global).await?;
    let entry = api.get_entry(remote).await?;
    anyhow::ensure!(
        entry.kind() == v1::EntryKind::File,
        "only a file can be written there, and {remote} is a {}",
        format::kind(entry.kind())
    );
    let started = Instant::now();
    let bytes = write_out(&api, remote, 0, &through).await?;
    if is_standard_output {
        return Ok(ExitCode::SUCCESS);
    }
    let report = DownloadReport { files: 1, bytes, ..DownloadReport::default() };
    report_got(&report, started.elapsed(), output)
}

/// Where what is at `remote` goes exactly.
fn place_target(remote: &RemotePath, straight: bool, target: &Path) -> anyhow::Result<DownloadSource> {
    let at = match std::fs::metadata(target) {
        Ok(metadata) if metadata.is_dir() => At::Folder,
        Ok(_) => At::Other,
        // A dangling symlink is something, too.
        Err(_) if std::fs::symlink_metadata(target).is_ok() => At::Other,
        Err(_) => At::Nothing,
    };
    let trailing_slash = target.as_os_str().as_bytes().ends_with(b"/");
    // The whole tree has no name: it goes straight into the folder, which may be new.
    if remote.is_root() || straight {
        anyhow::ensure!(at != At::Other, TargetError::NotAFolder);
        return Ok(DownloadSource { remote: remote.clone(), folder: target.to_owned(), name: None });
    }
    if placement(1, trailing_slash, at)? == Placement::Into {
        let name = remote.name().map(OsString::from);
        return Ok(DownloadSource { remote: remote.clone(), folder: target.to_owned(), name });
    }
    let name = target.file_name().context("it has no name")?.to_owned();
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    anyhow::ensure!(folder.is_dir(), "no such folder: {}; make it first", folder.display());
    Ok(DownloadSource { remote: remote.clone(), folder, name: Some(name) })
}

pub(crate) async fn cat(global: &Global, arguments: &Cat, output: &Output) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(!output.is_json(), "cat writes the file itself, which is no JSON; leave out --json");
    let path = RemotePath::parse(&arguments.path)?;
    let api = connect(global).await?;
    write_out(&api, &path, arguments.version.unwrap_or(0), &Through::StandardOutput).await?;
    Ok(ExitCode::SUCCESS)
}

/// Gives the bytes written.
async fn write_out(
    api: &ApiClient,
    path: &RemotePath,
    version: u64,
    through: &Through,
) -> anyhow::Result<u64> {
    let opened = through.clone();
    let mut into = tokio::task::spawn_blocking(move || opened.open()).await??;
    let mut stream = api.open_download(path, version).await?;
    let mut bytes = 0;
    while let Some(data) = stream.next().await? {
        bytes += data.len() as u64;
        // A reader that is slow, or a terminal that is held, must not hold up the async work.
        let written = tokio::task::spawn_blocking(move || into.write_all(&data).map(|()| into));
        into = written.await?.map_err(|error| through.failure(error))?;
    }
    let flushed = tokio::task::spawn_blocking(move || into.flush()).await?;
    flushed.map_err(|error| through.failure(error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_was_none_of_is_not_named() {
        assert_eq!(things(1, 0, 0), "1 file");
        assert_eq!(things(0, 2, 6000), "2 folders, 6000 symlinks");
        assert_eq!(things(0, 0, 0), "0 files");
    }

    #[test]
    fn sources_keep_their_last_name() {
        let target = RemotePath::parse("/t").unwrap();
        let into = |source: &str| into(Path::new(source), &target).map(|path| path.to_string());
        assert_eq!(into("a/b"), Ok("/t/b".to_owned()));
        assert_eq!(into("a/b/"), Ok("/t/b".to_owned()));
        assert_eq!(into("a/."), Ok("/t".to_owned()));
        assert_eq!(into("."), Ok("/t".to_owned()));
        assert!(into("/").is_err());
        assert!(into("/tmp/..").is_err(), "it is the root");
    }

    #[test]
    fn downloads_go_where_cp_would_put_them() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("folder")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        let remote = RemotePath::parse("/docs/a").unwrap();
        let place = |target: PathBuf| {
            place_target(&remote, false, &target).map(|placed| (placed.folder, placed.name))
        };
        assert_eq!(place(at("folder")).unwrap(), (at("folder"), Some("a".into())));
        assert_eq!(place(at("new")).unwrap(), (directory.path().to_owned(), Some("new".into())));
        assert_eq!(place(at("file")).unwrap(), (directory.path().to_owned(), Some("file".into())));
        assert!(place(at("new/")).is_err());
        assert!(place(at("file/")).is_err());
        assert!(place(at("no/such/folder")).is_err());
        let all = place_target(&RemotePath::root(), false, &at("new")).unwrap();
        assert_eq!((all.folder, all.name), (at("new"), None));
        let below = place_target(&remote, true, &at("folder")).unwrap();
        assert_eq!((below.folder, below.name), (at("folder"), None));
        assert!(place_target(&RemotePath::root(), false, &at("file")).is_err());
    }
}
