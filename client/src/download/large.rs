//! Gets one file of any size, as a stream.

use std::io::Write;

use bytes::Bytes;
use proto::v1;
use tokio::sync::mpsc;

use super::place::place_failure;
use super::verify::ContentCheck;
use super::{Context, FileJob};

/// Messages between the network and the disk.
const MESSAGES_QUEUED_MAX: usize = 4;

/// Gets the file; what comes of it goes into the report.
pub(crate) async fn get(context: &Context, job: FileJob) {
    match get_file(context, &job).await {
        Ok(size) => context.placed(&job, size),
        Err(Failed::Call(error)) => {
            context.fail_file(&job, error.to_string());
            context.stop_if_fatal(&error);
        }
        Err(Failed::Here(reason)) => context.fail_file(&job, reason),
        // That is told once, for all.
        Err(Failed::Stopped) => {}
    }
}

enum Failed {
    Call(crate::call_error::CallError),
    Here(String),
    Stopped,
}

async fn get_file(context: &Context, job: &FileJob) -> Result<u64, Failed> {
    let opened = context.stop.run_until_cancelled(context.api.open_download(&job.remote, 0)).await;
    let mut stream = opened.ok_or(Failed::Stopped)?.map_err(Failed::Call)?;
    let entry = stream.entry().clone();
    let size = entry.size;
    let (sender, messages) = mpsc::channel(MESSAGES_QUEUED_MAX);
    let (writer_job, overwrite) = (job.clone(), context.options.overwrite);
    let writer = tokio::task::spawn_blocking(move || write(&writer_job, &entry, messages, overwrite));
    let mut received = Ok(());
    loop {
        // After a stop the stream is used no more.
        let Some(next) = context.stop.run_until_cancelled(stream.next()).await else {
            received = Err(Failed::Stopped);
            break;
        };
        match next {
            Ok(Some(data)) => {
                let bytes = data.len() as u64;
                if sender.send(Message::Data(data)).await.is_err() {
                    break;
                }
                context.progress.advanced(bytes);
            }
            Ok(None) => {
                // When the writer has failed, its result says why.
                drop(sender.send(Message::End).await);
                break;
            }
            Err(error) => {
                received = Err(Failed::Call(error));
                break;
            }
        }
    }
    drop(sender);
    let written = writer.await.unwrap_or_else(|error| Err(format!("writing it panicked: {error}")));
    received.and(written.map(|()| size).map_err(Failed::Here))
}

enum Message {
    Data(Bytes),
    /// All has come. Without it the writer drops what it has.
    End,
}

fn write(
    job: &FileJob,
    entry: &v1::Entry,
    mut messages: mpsc::Receiver<Message>,
    overwrite: bool,
) -> Result<(), String> {
    let cannot = |error: std::io::Error| format!("cannot be written: {error}");
    let mut temporary = job.folder.begin_file(&job.name).map_err(cannot)?;
    let mut check = ContentCheck::new(entry);
    loop {
        match messages.blocking_recv() {
            Some(Message::Data(data)) => {
                temporary.write_all(&data).map_err(cannot)?;
                check.push(&data);
            }
            Some(Message::End) => break,
            None => return Err("the download was stopped".to_owned()),
        }
    }
    check.finish().map_err(|error| error.to_string())?;
    temporary.sync(entry.mode, entry.mtime_ns).map_err(cannot)?;
    temporary.place(overwrite).map_err(|error| place_failure(job, &error))
}
