//! Refuses to run on a CPU that the binary is not compiled for, with words instead of an illegal instruction.

#[cfg(target_arch = "x86_64")]
pub(crate) fn check() -> anyhow::Result<()> {
    // The compiler takes these features as given, so its own run-time check would be folded away.
    let Ok(text) = std::fs::read_to_string("/proc/cpuinfo") else { return Ok(()) };
    let Some(flags) = text.lines().find(|line| line.starts_with("flags")) else { return Ok(()) };
    let missing: Vec<&str> = ["avx2", "bmi2", "fma"]
        .into_iter()
        .filter(|need| !flags.split(' ').any(|flag| flag == *need))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    anyhow::bail!(
        "this CPU lacks {}: keepstone is compiled for Haswell (2013) and later; \
         build it with another target-cpu in .cargo/config.toml, or run it on a newer machine",
        missing.join(" and ")
    )
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn check() -> anyhow::Result<()> {
    Ok(())
}
