//! Processes by pid, safely: a pid that was given to another process since is never signalled.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal};

use crate::wait::wait_for;

/// How long a killed process may take to be gone.
const EXIT_DEADLINE: Duration = Duration::from_secs(20);

/// A running process: its pid and when it began, which together are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessRef {
    /// Its number.
    pub pid: u32,
    start_ticks: u64,
}

impl ProcessRef {
    /// The process that has `pid` now; `None` if there is none, or only its remains. A process whose first thread has
    /// ended is there until all have: only then are its ports and locks free.
    #[must_use]
    pub fn observe(pid: u32) -> Option<Self> {
        let Stat { state, threads, start_ticks } = stat(pid)?;
        let remains = state == 'X' || (state == 'Z' && threads <= 1);
        (!remains).then_some(Self { pid, start_ticks })
    }

    /// Whether it still runs (stopped counts as running).
    #[must_use]
    pub fn is_running(&self) -> bool {
        Self::observe(self.pid) == Some(*self)
    }

    /// Sends a signal; nothing happens if the process is gone.
    ///
    /// # Errors
    /// If the signal is refused.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("pid out of range")?;
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("signal to pid {}", self.pid)),
        }
    }

    /// Whether it catches a signal, rather than being ended by it. False if it is gone.
    #[must_use]
    pub fn catches(&self, signal: Signal) -> bool {
        let caught = self.status("SigCgt:").and_then(|mask| u64::from_str_radix(&mask, 16).ok()).unwrap_or(0);
        let bit = u32::try_from(signal.as_raw() - 1).ok().and_then(|bit| 1_u64.checked_shl(bit)).unwrap_or(0);
        caught & bit != 0
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// If it is still there after a generous deadline.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        self.wait_gone()
    }

    /// Waits until it is gone.
    ///
    /// # Errors
    /// If it is still there after a generous deadline.
    pub fn wait_gone(&self) -> anyhow::Result<()> {
        wait_for(
            &format!("end of pid {}", self.pid),
            EXIT_DEADLINE,
            || Ok((!self.is_running()).then_some(())),
        )
    }

    /// The most memory it has had resident so far, in bytes; `None` if it is gone.
    #[must_use]
    pub fn resident_bytes_peak(&self) -> Option<u64> {
        self.status_bytes("VmHWM:")
    }

    /// The memory that it has resident now, in bytes; `None` if it is gone.
    #[must_use]
    pub fn resident_bytes(&self) -> Option<u64> {
        self.status_bytes("VmRSS:")
    }

    fn status_bytes(&self, name: &str) -> Option<u64> {
        let kibibytes: u64 = self.status(name)?.strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kibibytes * 1024)
    }

    /// What a line of `/proc/PID/status` says.
    fn status(&self, name: &str) -> Option<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    }

    /// CPU time it has used so far, user and system, in seconds; `None` if it is gone.
    #[must_use]
    pub fn cpu_seconds(&self) -> Option<f64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        let ticks = fields.get(11)?.parse::<u32>().ok()? + fields.get(12)?.parse::<u32>().ok()?;
        let per_second = u32::try_from(rustix::param::clock_ticks_per_second()).ok()?;
        Some(f64::from(ticks) / f64::from(per_second))
    }
}

/// What is looked at of `/proc/PID/stat`.
struct Stat {
    state: char,
    threads: u32,
    start_ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything, blanks and brackets too; the state, field 3, comes behind it.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        threads: fields.get(17)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_until_it_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = ProcessRef::observe(child.id()).unwrap();
        assert!(process.is_running());
        process.signal(Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(!process.is_running());
        process.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn this_process_has_figures() {
        let own = ProcessRef::observe(std::process::id()).unwrap();
        assert!(own.resident_bytes_peak().unwrap() > 100_000);
        assert!(own.cpu_seconds().is_some());
    }
}
