//! The most memory that the gateway and the metadata nodes have resident while something goes on.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;

use crate::cluster::Cluster;
use crate::process::ProcessRef;

/// How often it is looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
const MIB: u64 = 1 << 20;

/// Peaks, in MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peaks {
    /// The gateway's before.
    pub gateway_mib_before: u64,
    /// The gateway's highest.
    pub gateway_mib: u64,
    /// The highest of any metadata node before.
    pub meta_mib_before: u64,
    /// The highest of any metadata node: whoever leads holds the most.
    pub meta_mib: u64,
}

/// Looks at memory on a thread of its own until it is asked.
#[derive(Debug)]
pub struct MemoryWatch {
    gateways: Vec<ProcessRef>,
    metas: Vec<ProcessRef>,
    before: (u64, u64),
    gateway_peak: Arc<AtomicU64>,
    meta_peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn highest(processes: &[ProcessRef], look: impl Fn(&ProcessRef) -> Option<u64>) -> u64 {
    processes.iter().filter_map(look).max().unwrap_or(0)
}

impl MemoryWatch {
    /// Begins to look.
    ///
    /// # Errors
    /// If the cluster has no gateway or metadata node that runs.
    pub fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let of = |kind: &str| -> Vec<ProcessRef> {
            let running = cluster.processes().into_iter().filter(|(info, _process)| info.role == kind);
            running.map(|(_info, process)| process).collect()
        };
        let (gateways, metas) = (of("gateway"), of("meta"));
        gateways.first().context("no gateway")?;
        metas.first().context("no metadata node")?;
        for process in gateways.iter().chain(&metas) {
            // Forgets the peak so far (proc(5)); where that is not allowed, the samples have to do.
            fs::write(format!("/proc/{}/clear_refs", process.pid), "5").ok();
        }
        let before =
            (highest(&gateways, ProcessRef::resident_bytes), highest(&metas, ProcessRef::resident_bytes));
        let (gateway_peak, meta_peak) =
            (Arc::new(AtomicU64::new(before.0)), Arc::new(AtomicU64::new(before.1)));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (gateways, metas) = (gateways.clone(), metas.clone());
            let (gateway_peak, meta_peak) = (Arc::clone(&gateway_peak), Arc::clone(&meta_peak));
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let gateway = highest(&gateways, ProcessRef::resident_bytes);
                    gateway_peak.fetch_max(gateway, Ordering::Relaxed);
                    meta_peak.fetch_max(highest(&metas, ProcessRef::resident_bytes), Ordering::Relaxed);
                    std::thread::sleep(SAMPLE_INTERVAL);
                }
            })
        };
        Ok(Self { gateways, metas, before, gateway_peak, meta_peak, stop, thread: Some(thread) })
    }

    /// The peaks until now.
    #[must_use]
    pub fn peaks(&self) -> Peaks {
        // Where the peak was reset, the system's own figure misses nothing between two samples.
        let exact = |processes: &[ProcessRef], before: u64, sampled: &AtomicU64| {
            let sampled = sampled.load(Ordering::Relaxed);
            let system = highest(processes, ProcessRef::resident_bytes_peak);
            if was_reset(processes) { sampled.max(system) } else { sampled.max(before) }
        };
        Peaks {
            gateway_mib_before: self.before.0 / MIB,
            gateway_mib: exact(&self.gateways, self.before.0, &self.gateway_peak) / MIB,
            meta_mib_before: self.before.1 / MIB,
            meta_mib: exact(&self.metas, self.before.1, &self.meta_peak) / MIB,
        }
    }
}

/// Whether this process may reset the peaks of these.
fn was_reset(processes: &[ProcessRef]) -> bool {
    let writable = |process: &ProcessRef| {
        fs::File::options().write(true).open(format!("/proc/{}/clear_refs", process.pid)).is_ok()
    };
    processes.iter().all(writable)
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_that_was_reset_begins_anew() {
        let own = ProcessRef::observe(std::process::id()).unwrap();
        let large = vec![1_u8; 256 << 20];
        std::hint::black_box(&large);
        let with = own.resident_bytes_peak().unwrap();
        assert!(with > 256 * MIB, "{with}");
        drop(large);
        assert!(was_reset(&[own]));
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let without = own.resident_bytes_peak().unwrap();
        assert!(without < with - 128 * MIB, "{without} after {with}");
    }
}
