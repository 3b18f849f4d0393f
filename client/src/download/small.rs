//! Gets small files, many in one round trip.

use std::io::Write;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use proto::v1;

use super::place::place_failure;
use super::verify::ContentCheck;
use super::{Context, FileJob};
use crate::api::files;
use crate::call_error::CallError;
use crate::connection::{Backoff, RETRY_TIME_MAX};
use crate::local_folder::TemporaryFile;

/// Most bytes that one answer may hold, whatever was asked for.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A file as it came.
struct Received {
    job: FileJob,
    entry: v1::Entry,
    data: Bytes,
}

/// Gets the files. Gives back those that did not come this way and are to be got one by one.
pub(crate) async fn get(context: &Context, jobs: Vec<FileJob>) -> Vec<FileJob> {
    let mut backoff = Backoff::new(RETRY_TIME_MAX);
    let answers = loop {
        let Some(received) = context.stop.run_until_cancelled(receive(context, &jobs)).await else {
            return Vec::new();
        };
        match received {
            Ok(answers) => break answers,
            Err(error) if error.is_transient() && backoff.wait().await => {
                tracing::debug!(%error, "small files asked for again");
            }
            Err(error) if error.is_fatal() => {
                jobs.iter().for_each(|job| context.fail_call(&job.remote, &error));
                return Vec::new();
            }
            Err(error) => {
                tracing::debug!(%error, "small files got one by one");
                return jobs;
            }
        }
    };
    let mut left = Vec::new();
    let mut received = Vec::with_capacity(jobs.len());
    for (job, answer) in jobs.into_iter().zip(answers) {
        match answer {
            Some((entry, data)) => received.push(Received { job, entry, data: data.freeze() }),
            None => left.push(job),
        }
    }
    let overwrite = context.options.overwrite;
    let written = tokio::task::spawn_blocking(move || write_all(received, overwrite)).await;
    match written {
        Ok(results) => results.into_iter().for_each(|(job, size, result)| match result {
            Ok(()) => context.placed(&job, size),
            Err(reason) => context.fail_file(&job, reason),
        }),
        Err(error) => context.fail(Path::new("").display(), format!("writing files panicked: {error}")),
    }
    left
}

type Answer = Option<(v1::Entry, BytesMut)>;

/// One answer per job; `None` for those that the gateway did not give whole.
async fn receive(context: &Context, jobs: &[FileJob]) -> Result<Vec<Answer>, CallError> {
    let api = &context.api;
    let message = v1::DownloadManyRequest {
        paths: jobs.iter().map(|job| job.remote.to_string()).collect(),
        entries: Vec::new(),
    };
    let opened = files(api.channel()).download_many(api.request(message)).await;
    let mut stream = opened.map_err(|status| api.status(&status))?.into_inner();
    let mut answers: Vec<Answer> = jobs.iter().map(|_| None).collect();
    let mut ended = vec![false; jobs.len()];
    let mut bytes = 0;
    while let Some(message) = stream.message().await.map_err(|status| api.status(&status))? {
        let index = message.index as usize;
        bytes += message.data.len();
        if index >= jobs.len() || ended[index] || bytes > ANSWER_BYTES_MAX {
            return Err(CallError::protocol("files or bytes that were not asked for"));
        }
        if let Some(error) = message.error {
            tracing::debug!(path = %jobs[index].remote, error = %error.message, "small file got by itself");
            answers[index] = None;
            ended[index] = true;
            continue;
        }
        if let Some(entry) = message.entry {
            answers[index] = Some((entry, BytesMut::new()));
        }
        match &mut answers[index] {
            Some((_entry, data)) => data.extend_from_slice(&message.data),
            None => return Err(CallError::protocol("bytes without an entry")),
        }
        ended[index] = message.end;
    }
    for (answer, ended) in answers.iter_mut().zip(ended) {
        if !ended {
            *answer = None;
        }
    }
    Ok(answers)
}

type Written = (FileJob, u64, Result<(), String>);

/// Writes all, then syncs all, then gives all their names: so that one commit of the file system's journal serves many.
fn write_all(received: Vec<Received>, overwrite: bool) -> Vec<Written> {
    let written: Vec<_> = received
        .into_iter()
        .map(|file| {
            let temporary = write(&file);
            (file, temporary)
        })
        .collect();
    let synced = written.into_iter().map(|(file, temporary)| {
        let synced = temporary.and_then(|temporary| {
            let synced = temporary.sync(file.entry.mode, file.entry.mtime_ns);
            synced.map(|()| temporary).map_err(|error| format!("cannot be written: {error}"))
        });
        (file, synced)
    });
    let synced: Vec<_> = synced.collect();
    synced
        .into_iter()
        .map(|(file, synced)| {
            let placed = synced.and_then(|temporary| {
                temporary.place(overwrite).map_err(|error| place_failure(&file.job, &error))
            });
            (file.job, file.entry.size, placed)
        })
        .collect()
}

fn write(file: &Received) -> Result<TemporaryFile, String> {
    let mut check = ContentCheck::new(&file.entry);
    check.push(&file.data);
    check.finish().map_err(|error| error.to_string())?;
    let cannot = |error: std::io::Error| format!("cannot be written: {error}");
    let mut temporary = file.job.folder.begin_file(&file.job.name).map_err(cannot)?;
    temporary.write_all(&file.data).map_err(cannot)?;
    Ok(temporary)
}
