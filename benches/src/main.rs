//! `keepstone-bench`: puts and gets through the whole stack of a real cluster, beside what the machine gives by itself
//! in the same minute, and the ratios.
//!
//! Rounds alternate over all measurements, so that a busy neighbour hits them alike; a figure is the median of its
//! rounds, with the range. Wall-clock figures of a shared machine are floors: compare ratios.

mod figure;
mod raw;
mod stack;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use chaos::cluster::{Cluster, Options};
use clap::Parser;
use serde_json::json;

use crate::figure::{Figures, short};
use crate::stack::Stack;

/// Measures puts and gets through a whole cluster on this machine.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often everything is measured.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How often each set of files is read in a round: more reads make what they cost sharper.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    reads: u32,
    /// Where the figures go as JSON.
    #[arg(long, default_value = "target/bench.json")]
    out: PathBuf,
    /// Where the cluster and the files live; a fresh directory below it is used.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Passed on to `keepstone up`, for example --up --data-groups --up 3.
    #[arg(long, allow_hyphen_values = true)]
    up: Vec<String>,
}

/// What is divided by what in the end.
const RATIOS: [(&str, &str, &str); 8] = [
    ("put 4 MiB, 1 in flight / disk", "put 4 MiB, 1 in flight", "4 MiB writes, fdatasync each"),
    ("put 4 MiB, 16 in flight / disk", "put 4 MiB, 16 in flight", "4 MiB writes, fdatasync each"),
    ("put 4 MiB, 16 in flight / hash", "put 4 MiB, 16 in flight", "SHA-256, one core"),
    ("get 4 MiB, 1 in flight / TLS", "get 4 MiB, 1 in flight", "TLS over loopback"),
    ("get 4 MiB, 16 in flight / TLS", "get 4 MiB, 16 in flight", "TLS over loopback"),
    ("get 4 MiB, 16 in flight / hash", "get 4 MiB, 16 in flight", "SHA-256, one core"),
    ("put 4 KiB, 1 in flight / fdatasyncs", "put 4 KiB, 1 in flight", "4 KiB writes, fdatasync each"),
    ("put 4 KiB, 64 in flight / fdatasyncs", "put 4 KiB, 64 in flight", "4 KiB writes, fdatasync each"),
];

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let parent = arguments.directory.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = tempfile::Builder::new().prefix("keepstone-bench-").tempdir_in(parent)?;
    let options = Options {
        arguments: arguments.up.clone(),
        directory: Some(scratch.path().join("cluster")),
        ..Options::default()
    };
    let cluster = Cluster::start(&options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stack = runtime.block_on(Stack::connect(&cluster, &scratch.path().join("files")))?;
    let mut figures = Figures::default();
    for round in 0..arguments.rounds {
        eprintln!("round {} of {} ...", round + 1, arguments.rounds);
        raw::measure(scratch.path())?.into_iter().for_each(|figure| figures.add(figure));
        runtime.block_on(stack.measure(round, arguments.reads, &mut figures))?;
    }
    report(&figures, &arguments)?;
    drop(stack);
    cluster.finish()
}

fn report(figures: &Figures, arguments: &Arguments) -> anyhow::Result<()> {
    let mut text = figures.table();
    let mut ratios = Vec::new();
    text.push_str("\nratios of medians\n");
    for (name, part, whole) in RATIOS {
        if let (Some(part), Some(whole)) = (figures.median(part), figures.median(whole)) {
            text.push_str(&format!("{name:<46} {:>10}\n", short(part / whole)));
            ratios.push(json!({ "name": name, "value": part / whole }));
        }
    }
    let document = json!({ "rounds": arguments.rounds, "figures": figures.json(), "ratios": ratios });
    write(&arguments.out, &serde_json::to_vec_pretty(&document)?)?;
    text.push_str(&format!("\nall measurements: {}\n", arguments.out.display()));
    print(&text)
}

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
fn print(text: &str) -> anyhow::Result<()> {
    println!("{text}");
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}
