//! The roles' configuration files: TOML with comments, unknown keys refused, paths relative to the file's directory.

pub(crate) mod gateway;
pub(crate) mod meta;
pub(crate) mod storage;

use std::path::{Component, Path, PathBuf};

use anyhow::Context;
use proto::peer::TlsFiles;
use serde::{Deserialize, de::DeserializeOwned};

/// Where a process keeps its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsSection {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl TlsSection {
    fn resolve(&self, directory: &Path) -> TlsFiles {
        TlsFiles {
            ca: join(directory, &self.ca),
            certificate: join(directory, &self.certificate),
            key: join(directory, &self.key),
        }
    }

    fn render(&self) -> String {
        format!(
            "# This process's certificate, by which the other tiers know it, and the CA that vouches for theirs.\n\
             [tls]\nca = {}\ncertificate = {}\nkey = {}\n",
            path(&self.ca),
            path(&self.certificate),
            path(&self.key)
        )
    }

    /// For `--print-config`.
    fn example(name: &str) -> Self {
        Self {
            ca: "ca.pem".into(),
            certificate: format!("{name}.pem").into(),
            key: format!("{name}.key").into(),
        }
    }
}

/// Reads a configuration file; gives it with the directory that its paths are relative to.
pub(crate) fn load<T: DeserializeOwned>(file: &Path) -> anyhow::Result<(T, PathBuf)> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the configuration {}", file.display()))?;
    let parsed = toml::from_str(&text).map_err(|error| {
        anyhow::anyhow!(
            "{} is not a configuration of this role: {}",
            file.display(),
            error.to_string().trim_end()
        )
    })?;
    let file = std::path::absolute(file).with_context(|| format!("where is {}?", file.display()))?;
    let directory = file.parent().context("a file without a directory")?;
    let directory =
        std::fs::canonicalize(directory).with_context(|| format!("where is {}?", directory.display()))?;
    Ok((parsed, directory))
}

/// `path` as seen from `directory`, which has no symlinks in it: so a leading `..` can be taken off in the text.
pub(crate) fn join(directory: &Path, path: &Path) -> PathBuf {
    let mut directory = directory.to_owned();
    let mut rest = path.components();
    while rest.clone().next() == Some(Component::ParentDir) {
        // Above the root directory there is only itself.
        directory.pop();
        rest.next();
    }
    directory.join(rest.as_path())
}

/// A text as TOML.
pub(crate) fn text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A path as TOML. Our paths are UTF-8: they come from TOML, or were checked.
pub(crate) fn path(path: &Path) -> String {
    text(&path.to_string_lossy())
}

fn texts(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|item| text(item)).collect();
    format!("[{}]", texts.join(", "))
}

/// A key that may be absent: shown as a comment then, with an example.
fn optional(key: &str, value: Option<&str>, example: &str) -> String {
    match value {
        Some(value) => format!("{key} = {value}\n"),
        None => format!("# {key} = {example}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_files_directory() {
        let join = |path: &str| join(Path::new("/d/config"), Path::new(path)).display().to_string();
        assert_eq!(join("../pki/ca.pem"), "/d/pki/ca.pem");
        assert_eq!(join("ca.pem"), "/d/config/ca.pem");
        assert_eq!(join("/abs/ca.pem"), "/abs/ca.pem");
        assert_eq!(join("a/../ca.pem"), "/d/config/a/../ca.pem", "there may be a symlink");
        assert_eq!(join("../../../../x"), "/x");
    }
}
