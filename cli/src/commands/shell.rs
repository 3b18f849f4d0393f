//! `completions`, `man`: from the same definitions as the command line itself.

use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use serde_json::json;

use crate::args::{Arguments, Completions, Man};
use crate::output::Output;
use crate::shown::shown_path;

pub(crate) fn completions(arguments: &Completions, output: &Output) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "keepstone", &mut script);
    let script = String::from_utf8(script)?;
    let document = json!({ "shell": arguments.shell.to_string(), "script": script });
    output.print_exactly(&document, script.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(arguments: &Man, output: &Output) -> anyhow::Result<ExitCode> {
    let directory = &arguments.directory;
    clap_mangen::generate_to(Arguments::command(), directory)
        .with_context(|| format!("cannot write man pages into {}", directory.display()))?;
    let text = || format!("Wrote man pages into {}", shown_path(directory));
    output.print(&json!({ "directory": directory }), text)?;
    Ok(ExitCode::SUCCESS)
}
