//! `sync unit`: the systemd unit of the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;

use crate::args::SyncUnit;
use crate::files::{PUBLIC, make_directory, write_whole};
use crate::output::Output;
use crate::shown::shown_path;

const UNIT: &str = include_str!("../../../../deploy/systemd/keepstone-sync.service");
/// The program in [`UNIT`].
const PROGRAM: &str = "/usr/bin/keepstone";
const NAME: &str = "keepstone-sync.service";

pub(crate) fn run(arguments: &SyncUnit, output: &Output) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("where is this program?")?;
    let unit = unit_for(&super::utf8(&program)?);
    if !arguments.install {
        output.print_exactly(&json!({ "unit": unit }), unit.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let path = systemd_directory()?.join(NAME);
    make_directory(path.parent().context("a file without a directory")?)?;
    write_whole(&path, unit.as_bytes(), PUBLIC)?;
    output.print(&json!({ "unit": unit, "path": path }), || {
        format!("Wrote {}; now: systemctl --user enable --now keepstone-sync", shown_path(&path))
    })?;
    Ok(ExitCode::SUCCESS)
}

fn systemd_directory() -> anyhow::Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
    Ok(base.context("neither XDG_CONFIG_HOME nor HOME is set")?.join("systemd/user"))
}

/// The unit for this program, quoted as systemd wants it.
fn unit_for(program: &str) -> String {
    let escaped = program.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    let plain = escaped.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte));
    let quoted = if plain { escaped } else { format!("\"{escaped}\"") };
    UNIT.replace(PROGRAM, &quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_names_this_program() {
        assert!(unit_for("/opt/keepstone").contains("ExecStart=/opt/keepstone sync daemon\n"));
        assert!(unit_for("/a b/100%").contains("ExecStart=\"/a b/100%%\" sync daemon\n"));
        assert!(UNIT.contains(PROGRAM));
    }
}
