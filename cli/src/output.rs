//! What a command says: results on standard output, for people or as one JSON document; failures on standard error.
//!
//! Invariants:
//! - Nothing else in this crate writes to standard output or standard error, but for logs and progress bars.
//! - What people read is plain text: whatever a name holds, no character of it does anything to a terminal.
//! - That nobody reads standard output changes neither the exit code nor what is said of failures. It is the end only of
//!   what does nothing but write there ([`NobodyReads`]).

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use client::call_error::CallError;
use client::report::Failure;
use serde_json::{Value, json};

use crate::shown::{shown, shown_lines};

/// Failures listed for people; the JSON document has them all.
const FAILURES_SHOWN_MAX: usize = 50;

/// How a command speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

/// Ends the process with what the command line's parser says: help, the version, or what is wrong with the arguments,
/// which may be names that a shell found.
pub(crate) fn usage(error: &clap::Error) -> ! {
    let told = error.render().to_string();
    let arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    let text = with_shown(&told, arguments);
    if text == told {
        error.exit();
    }
    drop(write!(std::io::stderr().lock(), "{text}"));
    std::process::exit(error.exit_code());
}

/// A text of several lines in which no argument, nor what is on either side of the `=` in one, makes a line of its own.
fn with_shown(text: &str, arguments: impl Iterator<Item = String>) -> String {
    let mut text = text.to_owned();
    for argument in arguments {
        let sides = argument.split_once('=').into_iter().flat_map(|(name, value)| [name, value]);
        for part in [argument.as_str()].into_iter().chain(sides).filter(|part| shown(part) != *part) {
            text = text.replace(part, &shown(part));
        }
    }
    shown_lines(&text).into_owned()
}

/// A failure that the end of another process's log explains.
#[derive(Debug, thiserror::Error)]
#[error("{what}; the end of its log, {}:", path.display())]
pub(crate) struct LogEnd {
    what: String,
    path: PathBuf,
    lines: Vec<String>,
}

impl LogEnd {
    /// With the last `lines_max` lines of the log at `path`; none if it cannot be read. Blocks.
    pub(crate) fn of(what: String, path: &Path, lines_max: usize) -> Self {
        let bytes = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let lines = lines[lines.len().saturating_sub(lines_max)..].to_vec();
        Self { what, path: path.to_owned(), lines }
    }
}

/// Tells people of something that went wrong, on one line of standard error.
pub(crate) fn complain(text: &str) {
    tell(&format!("keepstone: {text}"));
}

/// Tells people something besides results, on one line of standard error. That nobody can read it is no failure.
pub(crate) fn tell(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{}", shown(text)));
}

/// Shows how far something is, over what was shown before; nothing ends that line.
pub(crate) fn tell_progress(text: &str) {
    drop(write!(std::io::stderr().lock(), "\r{}  ", shown(text)));
}

/// Nobody reads standard output any more: to who does nothing but write there, the end, and a good one.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output")]
pub(crate) struct NobodyReads;

impl NobodyReads {
    /// An error of writing to standard output, told from others.
    pub(crate) fn or(error: std::io::Error) -> anyhow::Error {
        if error.kind() == ErrorKind::BrokenPipe { Self.into() } else { error.into() }
    }
}

/// What was done is done, whoever reads what is said of it.
fn unread_is_well(written: std::io::Result<()>) -> anyhow::Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints the document with `--json`, else the text that `text` makes. Names in it are for the caller to escape,
    /// by [`shown`] or as cells of a table: here a line end in a name cannot be told from that of a line.
    pub(crate) fn print(self, document: &Value, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        unread_is_well(self.write(document, text))
    }

    /// As [`Self::print`], for what is not text for people: each byte as it is, and nothing after it.
    pub(crate) fn print_exactly(self, document: &Value, bytes: &[u8]) -> anyhow::Result<()> {
        unread_is_well(self.write_exactly(document, bytes))
    }

    /// As [`Self::print`], for a part of a listing: without a reader, [`NobodyReads`].
    pub(crate) fn list(self, document: &Value, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        self.write(document, text).map_err(NobodyReads::or)
    }

    /// As [`Self::print_exactly`], for a part of a listing: without a reader, [`NobodyReads`].
    pub(crate) fn list_exactly(self, document: &Value, bytes: &[u8]) -> anyhow::Result<()> {
        self.write_exactly(document, bytes).map_err(NobodyReads::or)
    }

    /// Prints what was done, and lists what failed even if that cannot be printed; gives the command's exit code.
    pub(crate) fn report(
        self,
        document: &Value,
        text: impl FnOnce() -> String,
        failures: &[Failure],
    ) -> anyhow::Result<ExitCode> {
        let printed = self.print(document, text);
        let code = self.failures(failures);
        printed.map(|()| code)
    }

    fn write(self, document: &Value, text: impl FnOnce() -> String) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, document).map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
        } else {
            let text = text();
            if !text.is_empty() {
                out.write_all(shown_lines(&text).as_bytes())?;
                if !text.ends_with('\n') {
                    out.write_all(b"\n")?;
                }
            }
        }
        out.flush()
    }

    fn write_exactly(self, document: &Value, bytes: &[u8]) -> std::io::Result<()> {
        if self.json {
            return self.write(document, String::new);
        }
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// One line of a listing that goes on while the command runs. That nobody reads it is no failure.
    pub(crate) fn line(self, line: &str) {
        if !self.json {
            drop(writeln!(std::io::stdout().lock(), "{}", shown(line)));
        }
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
        let log = error.downcast_ref::<LogEnd>();
        if self.json {
            let reason = error.chain().find_map(|cause| cause.downcast_ref::<CallError>());
            let reason = reason.map_or("failed", CallError::reason);
            let mut document = json!({ "error": { "reason": reason, "message": message } });
            if let Some(log) = log {
                document["error"]["log"] = json!(log.lines);
            }
            // If it cannot be printed, the exit code and standard error say it.
            drop(self.print(&document, String::new));
        }
        complain(&message);
        log.iter().flat_map(|log| &log.lines).for_each(|line| tell(&format!("  {line}")));
        ExitCode::FAILURE
    }

    /// Lists failures on standard error; gives the command's exit code.
    fn failures(self, failures: &[Failure]) -> ExitCode {
        for Failure { path, reason } in failures.iter().take(FAILURES_SHOWN_MAX) {
            if path.is_empty() {
                complain(reason);
            } else {
                complain(&format!("{path}: {reason}"));
            }
        }
        if failures.len() > FAILURES_SHOWN_MAX {
            let more = failures.len() - FAILURES_SHOWN_MAX;
            complain(&format!("and {more} more failed; --json lists them all"));
        }
        if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reader_that_left_is_no_failure() {
        let gone = || std::io::Error::from(ErrorKind::BrokenPipe);
        let full = || std::io::Error::from(ErrorKind::StorageFull);
        assert!(unread_is_well(Ok(())).is_ok() && unread_is_well(Err(gone())).is_ok());
        assert!(unread_is_well(Err(full())).is_err());
        let left = NobodyReads::or(gone()).context("in what was asked for");
        assert!(left.is::<NobodyReads>(), "known by its context too");
        assert!(!NobodyReads::or(full()).is::<NobodyReads>());
    }

    #[test]
    fn an_argument_makes_no_line_of_its_own_in_what_the_parser_says() {
        let arguments = ["--line\nforged", "--name=a\nb", "plain"].map(str::to_owned);
        let told = "unexpected argument '--line\nforged'\n\nnot '--name' with 'a\nb'\nUsage: plain\n";
        let text = with_shown(told, arguments.into_iter());
        let right = "unexpected argument '--line\\nforged'\n\nnot '--name' with 'a\\nb'\nUsage: plain\n";
        assert_eq!(text, right);
    }
}
