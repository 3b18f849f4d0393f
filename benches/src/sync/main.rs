//! `keepstone-bench-sync`: two devices that keep one folder the same, by Keepstone through a whole cluster, and by
//! Syncthing straight from one to the other, on this machine in one run. Prints a table, writes all figures as JSON.
//!
//! Wall-clock figures of a shared machine are floors: compare the two columns.

mod http;
mod keepstone;
mod pair;
mod scenarios;
mod syncthing;
mod table;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;

use crate::keepstone::KeepstonePair;
use crate::pair::Pair;
use crate::scenarios::Sizes;
use crate::syncthing::SyncthingPair;
use crate::table::Table;

/// Measures how fast a second device has what a first one wrote.
#[derive(Debug, Parser)]
struct Arguments {
    /// The sizes that the promises name (1 GiB, 100,000 files); else a tenth or so of them.
    #[arg(long)]
    full: bool,
    /// Files of the restart, instead of as many as were renamed: 1000000 is what the promises name.
    #[arg(long)]
    restart_files: Option<usize>,
    /// Only these: latency, many, large, rename.
    #[arg(long)]
    only: Vec<String>,
    /// Leave Syncthing out.
    #[arg(long)]
    alone: bool,
    /// Where the figures go as JSON.
    #[arg(long, default_value = "target/bench-sync.json")]
    out: PathBuf,
    /// Where the cluster and the folders live; a fresh directory below it is used.
    #[arg(long)]
    directory: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let sizes = Sizes::new(arguments.full, arguments.restart_files);
    let parent = arguments.directory.clone().unwrap_or_else(std::env::temp_dir);
    let mut table = Table::default();
    for name in ["latency", "many", "large", "rename"] {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|only| only == name) {
            continue;
        }
        // Fresh devices for each: nothing of one measurement is in the next.
        let scratch = tempfile::Builder::new().prefix("ksb-").tempdir_in(&parent)?;
        eprintln!("{name}: Keepstone ...");
        let mut keepstone = KeepstonePair::start(&scratch.path().join("k"))?;
        run(name, &mut keepstone, &sizes, &mut table)?;
        keepstone.finish()?;
        if arguments.alone {
            continue;
        }
        match SyncthingPair::start(&scratch.path().join("s"))? {
            Some(mut syncthing) => {
                eprintln!("{name}: Syncthing ...");
                run(name, &mut syncthing, &sizes, &mut table)?;
                syncthing.finish()?;
            }
            None => eprintln!("{name}: there is no syncthing here (apt-get install syncthing)"),
        }
    }
    if let Some(folder) = arguments.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&arguments.out, serde_json::to_vec_pretty(&table.json())?)
        .with_context(|| format!("write {}", arguments.out.display()))?;
    print(&format!("{}\nall figures: {}", table.text(), arguments.out.display()));
    Ok(())
}

fn run(name: &str, pair: &mut dyn Pair, sizes: &Sizes, table: &mut Table) -> anyhow::Result<()> {
    let done = match name {
        "latency" => scenarios::latency(pair, sizes, table),
        "many" => scenarios::many(pair, sizes, table),
        "large" => scenarios::large(pair, sizes, table),
        _ => scenarios::rename_and_restart(pair, sizes, table),
    };
    done.with_context(|| format!("{name} by {}", pair.name()))
}

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
fn print(text: &str) {
    println!("{text}");
}
