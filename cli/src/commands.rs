//! The commands, one file per family; and what they share: the profile, and the work on many paths.

pub(crate) mod account;
pub(crate) mod admin;
pub(crate) mod cluster;
pub(crate) mod entries;
pub(crate) mod list;
pub(crate) mod shell;
pub(crate) mod sync;
pub(crate) mod transfer;
pub(crate) mod trash;
pub(crate) mod versions;
mod write_through;

use std::path::PathBuf;
use std::process::ExitCode;

use client::connection::ApiClient;
use client::profile::Profile;
use client::report::Failure;
use serde_json::{Value, json};

use crate::args::Global;
use crate::output::Output;

/// The profile that is asked for, or the default data directory's.
fn profile_path(global: &Global) -> anyhow::Result<PathBuf> {
    match &global.profile {
        Some(path) => Ok(path.clone()),
        None => Ok(crate::files::default_data_directory()?.join("profile.toml")),
    }
}

/// Connects as the profile says.
async fn connect(global: &Global) -> anyhow::Result<ApiClient> {
    let path = profile_path(global)?;
    let options = Profile::load(&path)?.connect_options(&path)?;
    Ok(ApiClient::connect(&options).await?)
}

/// What came of doing something to each of several paths.
#[derive(Default)]
struct Done {
    done: Vec<Value>,
    failed: Vec<Failure>,
}

impl Done {
    fn fail(&mut self, path: impl std::fmt::Display, error: impl std::fmt::Display) {
        self.failed.push(Failure {
            path: path.to_string(),
            reason: reason_for(&path.to_string(), &error.to_string()),
        });
    }

    /// Says it, and gives the exit code. For people nothing is printed of what went well, as by `mv` and `rm`.
    fn report(self, output: Output) -> anyhow::Result<ExitCode> {
        let document = json!({ "done": self.done, "failed": self.failed });
        output.report(&document, String::new, &self.failed)
    }
}

/// A reason without the path that it begins with, which is shown before it anyway.
fn reason_for(path: &str, reason: &str) -> String {
    let rest = reason.strip_prefix(path).and_then(|rest| rest.strip_prefix(": "));
    rest.unwrap_or(reason).to_owned()
}

/// Reads the password: the first line of standard input, or what is typed without an echo.
async fn read_password(from_stdin: bool, confirm: bool) -> anyhow::Result<String> {
    tokio::task::spawn_blocking(move || {
        if from_stdin {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line)?;
            let password = line.trim_end_matches(['\n', '\r']);
            anyhow::ensure!(!password.is_empty(), "there is no password on standard input");
            return Ok(password.to_owned());
        }
        let ask = |prompt: &str| {
            rpassword::prompt_password(prompt).map_err(|error| {
                anyhow::anyhow!("no password can be asked for here ({error}); use --password-stdin")
            })
        };
        let password = ask("Password: ")?;
        anyhow::ensure!(!password.is_empty(), "the password is empty");
        if confirm {
            anyhow::ensure!(ask("Once more: ")? == password, "the two passwords differ");
        }
        Ok(password)
    })
    .await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_not_told_twice() {
        assert_eq!(reason_for("/a", "/a: no such entry"), "no such entry");
        assert_eq!(reason_for("/a", "/ab: no such entry"), "/ab: no such entry");
    }
}
