//! A progress bar with rate and time left, on a terminal only.

use std::io::IsTerminal;
use std::sync::Arc;

use client::progress::{NoProgress, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

struct Bar {
    bar: ProgressBar,
}

/// A bar for a transfer if people watch, else nothing.
pub(crate) fn for_transfer(output: Output) -> Arc<dyn Progress> {
    if output.is_json() || !std::io::stderr().is_terminal() {
        return Arc::new(NoProgress);
    }
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
    let template = "{wide_bar} {bytes:>10} of {total_bytes}  {bytes_per_sec:>12}  {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    Arc::new(Bar { bar })
}

impl Progress for Bar {
    fn planned(&self, _files: u64, bytes: u64) {
        self.bar.inc_length(bytes);
    }

    fn planned_all(&self) {}

    fn advanced(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn file_done(&self) {}
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
