//! Rules that a machine can check: the crate graph, the size of files, words that do not belong in a commit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use cargo_metadata::{DependencyKind, MetadataCommand};

/// Longer files are split.
const FILE_LINES_MAX: usize = 600;

/// Who may use whom, besides dependencies for tests only. Every edge points down; the tiers meet only on the wire.
const GRAPH: [(&str, &[&str]); 10] = [
    ("engine", &[]),
    ("proto", &["engine"]),
    ("blockstore", &["engine", "proto"]),
    ("metaraft", &["engine", "proto"]),
    ("gateway", &["engine", "proto", "blockstore", "metaraft"]),
    ("client", &["engine", "proto"]),
    ("cli", &["engine", "proto", "blockstore", "metaraft", "gateway", "client"]),
    ("chaos", &["engine", "proto", "blockstore", "metaraft", "gateway", "client"]),
    ("benches", &["engine", "proto", "blockstore", "metaraft", "gateway", "client", "chaos"]),
    ("tests", &["engine", "proto", "blockstore", "metaraft", "gateway", "client", "chaos"]),
];

/// Libraries that only some crates may name, in any kind of dependency.
const ONLY_IN: [(&str, &[&str]); 4] = [
    ("openraft", &["metaraft"]),
    ("rocksdb", &["metaraft", "blockstore"]),
    ("anyhow", &["cli", "chaos", "tests", "benches"]),
    ("clap", &["cli", "benches"]),
];

/// What the pure heart must not link: the network, files, threads, prost.
const NOT_IN_ENGINE: [&str; 8] =
    ["tokio", "tonic", "prost", "rocksdb", "rustix", "tokio-util", "getrandom", "rand"];

fn root() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace's root")?.to_owned())
}

/// Direct dependencies of each of our crates, by the crate's directory: names, and whether for tests only.
fn dependencies() -> Result<BTreeMap<String, BTreeSet<(String, bool)>>> {
    let metadata = MetadataCommand::new().current_dir(root()?).no_deps().exec()?;
    let folder = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut found = BTreeMap::new();
    for package in metadata.workspace_packages() {
        let directory = package.manifest_path.parent().and_then(|path| folder(path.as_std_path()));
        let used = package.dependencies.iter().map(|dependency| {
            let own = dependency.path.as_ref().and_then(|path| folder(path.as_std_path()));
            (own.unwrap_or_else(|| dependency.name.clone()), dependency.kind == DependencyKind::Development)
        });
        found.insert(directory.context("package without a directory")?, used.collect());
    }
    Ok(found)
}

/// Our text files, by path from the root.
fn sources(endings: &[&str]) -> Result<Vec<(PathBuf, String)>> {
    let root = root()?;
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !path.is_symlink() {
                if name != "target" && name != ".git" {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                found.push((path.strip_prefix(&root)?.to_owned(), text));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn crates_depend_only_as_the_graph_says() -> Result<()> {
    let found = dependencies()?;
    let expected: BTreeSet<&str> = GRAPH.iter().map(|(name, _)| *name).collect();
    let names: BTreeSet<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names, expected, "GRAPH lists every crate");
    for (name, allowed) in GRAPH {
        for (dependency, only_tests) in &found[name] {
            let ours = expected.contains(dependency.as_str());
            assert!(
                !ours || *only_tests || allowed.contains(&dependency.as_str()),
                "{name} must not use {dependency}"
            );
            // What a crate's tests use must not point up either.
            assert!(
                !ours || dependency == "chaos" || allowed.contains(&dependency.as_str()),
                "the tests of {name} must not use {dependency}"
            );
        }
    }
    Ok(())
}

#[test]
fn libraries_stay_where_they_belong() -> Result<()> {
    let found = dependencies()?;
    for (library, places) in ONLY_IN {
        for (name, used) in &found {
            let uses = used.iter().any(|(dependency, _)| dependency == library);
            assert!(!uses || places.contains(&name.as_str()), "{name} must not use {library}");
        }
    }
    for library in NOT_IN_ENGINE {
        let used = found["engine"].contains(&(library.to_owned(), false));
        assert!(!used, "engine must not use {library}");
    }
    Ok(())
}

#[test]
fn files_stay_short() -> Result<()> {
    let long: Vec<String> = sources(&[".rs", ".proto"])?
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "split these (at most {FILE_LINES_MAX} lines):\n{}", long.join("\n"));
    Ok(())
}

#[test]
fn files_say_what_they_are_for() -> Result<()> {
    let silent: Vec<String> = sources(&[".rs"])?
        .into_iter()
        // A file of unit tests belongs to the file above it.
        .filter(|(path, text)| !path.ends_with("tests.rs") && !text.trim_start().starts_with("//!"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert!(silent.is_empty(), "these do not begin with a `//!` header:\n{}", silent.join("\n"));
    Ok(())
}

#[test]
fn nothing_is_left_undone() -> Result<()> {
    // Put together here, so that this file does not contain them.
    let words = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("dbg", "!("),
        concat!("#[ig", "nore"),
        concat!("FIX", "ME"),
        concat!("TO", "DO"),
        concat!("XX", "X:"),
    ];
    report_words(&[".rs", ".proto", ".toml", ".md"], &words)
}

#[test]
fn no_path_of_the_machine_that_wrote_it() -> Result<()> {
    let words = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    report_words(&[".rs", ".proto", ".toml", ".md", "Makefile", "run"], &words)
}

fn report_words(endings: &[&str], words: &[&str]) -> Result<()> {
    let mut found = Vec::new();
    for (path, text) in sources(endings)? {
        for (number, line) in text.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                found.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}
