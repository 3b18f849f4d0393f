//! `keepstone-bench`: puts and gets through the whole stack of a real cluster, beside what the machine gives by itself
//! in the same minute, and the ratios; beside another build, and all roles in one process, where they are asked for.
//!
//! Rounds alternate over all measurements and clusters, in turn from the first and from the last, so that a busy
//! neighbour hits them alike; a figure is the median of its rounds, with the range. Wall-clock figures of a shared
//! machine are floors: compare ratios. The client is this build's, whatever it speaks to.

mod commits;
mod figure;
mod peers;
mod raw;
mod stack;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use chaos::cluster::{Cluster, Options};
use clap::Parser;
use serde_json::json;

use crate::figure::{Figures, compared, short};
use crate::peers::Etcd;
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
    /// Another build's `keepstone`, measured in turn with this one: the ratios are to it.
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// Measures a cluster in one process as well.
    #[arg(long)]
    one_process: bool,
    /// Measures three etcd as well, if they are installed (Debian: etcd-server).
    #[arg(long)]
    peers: bool,
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

/// One of the clusters that are measured in turn.
struct Contender {
    name: &'static str,
    cluster: Cluster,
    stack: Stack,
    figures: Figures,
}

impl Contender {
    async fn start(
        name: &'static str,
        scratch: &Path,
        arguments: &Arguments,
        options: Options,
    ) -> anyhow::Result<Self> {
        let place = scratch.join(name.replace(' ', "-"));
        let options =
            Options { arguments: arguments.up.clone(), directory: Some(place.join("cluster")), ..options };
        let cluster = Cluster::start(&options).with_context(|| format!("start {name}"))?;
        let stack = Stack::connect(&cluster, &place.join("files")).await?;
        Ok(Self { name, cluster, stack, figures: Figures::default() })
    }
}

const THIS: &str = "this build";

async fn start_all(scratch: &Path, arguments: &Arguments) -> anyhow::Result<Vec<Contender>> {
    let mut all = Vec::new();
    if let Some(path) = &arguments.against {
        let binary = path.canonicalize().with_context(|| format!("--against {}", path.display()))?;
        let options = Options { binary: Some(binary), ..Options::default() };
        all.push(Contender::start("the other", scratch, arguments, options).await?);
    }
    all.push(Contender::start(THIS, scratch, arguments, Options::default()).await?);
    if arguments.one_process {
        let options = Options { one_process: true, ..Options::default() };
        all.push(Contender::start("one process", scratch, arguments, options).await?);
    }
    Ok(all)
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let parent = arguments.directory.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = tempfile::Builder::new().prefix("keepstone-bench-").tempdir_in(parent)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut contenders = runtime.block_on(start_all(scratch.path(), &arguments))?;
    let mut raw = Figures::default();
    let etcd = if arguments.peers { runtime.block_on(Etcd::start(scratch.path()))? } else { None };
    let mut others = Figures::default();
    for round in 0..arguments.rounds {
        eprintln!("round {} of {} ...", round + 1, arguments.rounds);
        raw::measure(scratch.path())?.into_iter().for_each(|figure| raw.add(figure));
        if let Some(etcd) = &etcd {
            runtime.block_on(etcd.measure(&mut others))?;
        }
        for contender in &mut contenders {
            let Contender { stack, figures, .. } = contender;
            runtime.block_on(stack.measure(round, arguments.reads, figures))?;
        }
        contenders.reverse();
    }
    if !arguments.rounds.is_multiple_of(2) {
        contenders.reverse();
    }
    report(&raw, &others, &contenders, &arguments)?;
    for contender in contenders {
        drop(contender.stack);
        contender.cluster.finish()?;
    }
    Ok(())
}

fn report(
    raw: &Figures,
    others: &Figures,
    contenders: &[Contender],
    arguments: &Arguments,
) -> anyhow::Result<()> {
    let columns: Vec<_> = contenders.iter().map(|one| (one.name, &one.figures)).collect();
    let mut text = raw.table();
    text.push_str(&others.table());
    text.push('\n');
    text.push_str(&compared(&columns));
    let mut ratios = Vec::new();
    let this = columns.iter().find(|(name, _)| *name == THIS).map(|(_, figures)| *figures);
    text.push_str("\nratios of medians to the machine\n");
    for (name, part, whole) in RATIOS {
        let part = this.and_then(|figures| figures.median(part));
        if let (Some(part), Some(whole)) = (part, raw.median(whole)) {
            text.push_str(&format!("{name:<46} {:>10}\n", short(part / whole)));
            ratios.push(json!({ "name": name, "value": part / whole }));
        }
    }
    let builds: serde_json::Map<_, _> =
        columns.iter().map(|(name, figures)| ((*name).to_owned(), figures.json())).collect();
    let document = json!({ "rounds": arguments.rounds, "raw": raw.json(), "others": others.json(), "clusters": builds, "ratios": ratios });
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
