//! Tests that need what a machine may lack: root, namespaces, tools. Such a test says that it was skipped where nobody
//! can miss it, and in CI, where everything is there, it fails instead.

use std::io::Write as _;

/// Whether what is missing must not be: `CI` is set, and this is root.
fn must_run(ci: bool, root: bool) -> bool {
    ci && root
}

/// Says that a test is skipped, and why: to standard error itself, which the test harness does not keep back.
///
/// # Errors
/// In CI as root: there nothing is skipped.
pub fn skipped(why: &str) -> anyhow::Result<()> {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let ci =
        std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0");
    anyhow::ensure!(!must_run(ci, rustix::process::geteuid().is_root()), "{test} was skipped in CI: {why}");
    writeln!(std::io::stderr(), "SKIPPED {test}: {why}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_skipped_in_ci_as_root() {
        assert!(must_run(true, true));
        assert!(!must_run(true, false) && !must_run(false, true));
    }
}
