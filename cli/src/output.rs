//! What a command says: results on standard output, for people or as one JSON document; failures on standard error.

use std::io::Write;
use std::process::ExitCode;

use client::call_error::CallError;
use client::report::Failure;
use serde_json::{Value, json};

/// Failures listed for people; the JSON document has them all.
const FAILURES_SHOWN_MAX: usize = 50;

/// How a command speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

/// Whether an error is that nobody reads standard output any more.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints the document with `--json`, else the text that `text` makes.
    pub(crate) fn print(self, document: &Value, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, document).map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
        } else {
            let text = text();
            if !text.is_empty() {
                out.write_all(text.as_bytes())?;
                if !text.ends_with('\n') {
                    out.write_all(b"\n")?;
                }
            }
        }
        out.flush()?;
        Ok(())
    }

    /// Reports that the whole command failed.
    pub(crate) fn failed(self, error: &anyhow::Error) -> ExitCode {
        // With the causes, but for those whose text the one above already has.
        let mut message = error.to_string();
        for cause in error.chain().skip(1) {
            let cause = cause.to_string();
            if !message.contains(&cause) {
                message = format!("{message}: {cause}");
            }
        }
        if self.json {
            let reason = error.chain().find_map(|cause| cause.downcast_ref::<CallError>());
            let reason = reason.map_or("failed", CallError::reason);
            let document = json!({ "error": { "reason": reason, "message": message } });
            // A closed standard output leaves the exit code and standard error.
            drop(self.print(&document, String::new));
        }
        eprintln!("keepstone: {message}");
        ExitCode::FAILURE
    }

    /// Lists failures on standard error; gives the command's exit code.
    pub(crate) fn failures(self, failures: &[Failure]) -> ExitCode {
        for Failure { path, reason } in failures.iter().take(FAILURES_SHOWN_MAX) {
            if path.is_empty() {
                eprintln!("keepstone: {reason}");
            } else {
                eprintln!("keepstone: {path}: {reason}");
            }
        }
        if failures.len() > FAILURES_SHOWN_MAX {
            let more = failures.len() - FAILURES_SHOWN_MAX;
            eprintln!("keepstone: and {more} more failed; --json lists them all");
        }
        if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
