//! Logs on standard error: quiet for client commands, telling for roles, as KEEPSTONE_LOG says otherwise.
//!
//! Invariants:
//! - An entry is one line, and nothing in it does anything to a terminal but what colours the log itself: whatever
//!   names are in it.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};

use tracing_subscriber::EnvFilter;

use crate::output::complain;
use crate::shown::shown;

/// The variable that sets what is logged.
const VARIABLE: &str = "KEEPSTONE_LOG";

/// Who logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Role,
    /// `up`, to a terminal: what goes well is not told.
    WholeCluster,
    Client,
}

pub(crate) fn start(speaks: Speaks, json: bool) {
    let default = match speaks {
        Speaks::Role => "info,openraft=error",
        // A call that meets a group at its stop is told so by an error. openraft logs that error as well.
        Speaks::WholeCluster => "warn,openraft=error,openraft::raft::raft_inner=off",
        Speaks::Client => "error",
    };
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_unset| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    let started = if json {
        // JSON has escapes of its own, and names are exact in it.
        builder.json().with_writer(std::io::stderr).try_init()
    } else {
        let coloured = std::io::stderr().is_terminal();
        let writer = move || Lines { to: std::io::stderr(), coloured };
        builder.with_ansi(coloured).with_writer(writer).try_init()
    };
    if let Err(error) = started {
        complain(&format!("no logs: {error}"));
    }
}

/// Writes entries, each of which comes whole, as lines.
struct Lines<W> {
    to: W,
    coloured: bool,
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, entry: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(entry);
        self.to.write_all(line(&text, self.coloured).as_bytes())?;
        Ok(entry.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

/// What colours an entry: the sequences that the formatter uses.
const COLOURS: [&str; 9] = [
    "\u{1b}[0m",
    "\u{1b}[1m",
    "\u{1b}[2m",
    "\u{1b}[3m",
    "\u{1b}[31m",
    "\u{1b}[32m",
    "\u{1b}[33m",
    "\u{1b}[34m",
    "\u{1b}[35m",
];

/// An entry with its colours, if it has any, and all else in it plain. In a name that is coloured, only that is left.
fn line(entry: &str, coloured: bool) -> String {
    let mut rest = entry.strip_suffix('\n').unwrap_or(entry);
    let mut line = String::with_capacity(entry.len());
    while let Some(at) = rest.find('\u{1b}').filter(|_at| coloured) {
        let (plain, sequence) = rest.split_at(at);
        line.push_str(&shown(plain));
        let colour = COLOURS.into_iter().find(|colour| sequence.starts_with(colour));
        let length = colour.map_or(1, str::len);
        line.push_str(&colour.map_or_else(|| shown(&sequence[..1]), Cow::Borrowed));
        rest = &sequence[length..];
    }
    line.push_str(&shown(rest));
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_line_and_keeps_its_colours_only() {
        assert_eq!(line("\u{1b}[33m WARN\u{1b}[0m a\n", true), "\u{1b}[33m WARN\u{1b}[0m a\n");
        assert_eq!(
            line("a\nINFO forged \u{202e}x\u{1b}[2J\n", true),
            "a\\nINFO forged \\u{202e}x\\u{1b}[2J\n"
        );
    }

    #[test]
    fn a_log_without_colours_has_no_sequences() {
        assert_eq!(line("a\u{1b}[31mb\n", false), "a\\u{1b}[31mb\n");
        assert_eq!(line("a\u{1b}", true), "a\\u{1b}\n");
    }

    #[test]
    fn names_in_fields_do_nothing_to_a_terminal() {
        #[derive(Clone, Default)]
        struct Kept(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
        impl Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(true)
            .with_writer(move || Lines { to: writer.clone(), coloured: true })
            .finish();
        let name = "n\u{1b}[8mx\u{9b}2Jy\u{7}\nz\u{202e}";
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(path = %name, error = name, ?name, "of {name}");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        for bad in ["\u{1b}[8m", "\u{9b}", "\u{7}", "\u{202e}"] {
            assert!(!text.contains(bad), "{text:?}");
        }
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert!(text.contains("\u{1b}["), "colours: {text:?}");
    }
}
