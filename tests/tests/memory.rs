//! Memory while a large file goes up and down: bounded by design, not by the file's size.

use std::time::Duration;

use anyhow::{Result, ensure};
use chaos::cluster::{Cluster, Options};
use chaos::compare::assert_same;
use chaos::serial::serial;
use chaos::size::{Size, seed};
use chaos::tree;

const MIB: u64 = 1 << 20;
const PROCESS_BYTES_MAX: u64 = 300 * MIB;
const CLIENT_BYTES_MAX: u64 = 150 * MIB;
const LONG: Duration = Duration::from_secs(3600);

#[test]
fn a_large_file_goes_up_and_down_in_little_memory() -> Result<()> {
    let _serial = serial();
    let cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?.with_deadline(LONG);
    let scratch = cluster.scratch("memory")?;
    let (made, back) = (scratch.join("made"), scratch.join("back"));
    tree::write_random(&made, Size::chosen().pick(512 * MIB, 4096 * MIB, 4096 * MIB), seed("memory"))?;

    let up = client.ok(&["put".as_ref(), made.as_os_str(), "/large".as_ref()])?;
    let down = client.ok(&["get".as_ref(), "/large".as_ref(), back.as_os_str()])?;
    assert_same(&made, &back)?;
    for (name, output) in [("put", &up), ("get", &down)] {
        eprintln!("{name}: {:?}, {} MiB resident at most", output.elapsed, output.resident_bytes_peak / MIB);
        ensure!(output.resident_bytes_peak < CLIENT_BYTES_MAX, "{name}: {}", output.resident_bytes_peak);
    }
    let mut over = Vec::new();
    for (role, process) in cluster.processes() {
        let bytes = process.resident_bytes_peak().unwrap_or(0);
        ensure!(bytes > 0, "{} {} is gone", role.role, role.id);
        eprintln!("{} {}: {} MiB resident at most", role.role, role.id, bytes / MIB);
        if bytes > PROCESS_BYTES_MAX {
            over.push(format!("{} {}: {} MiB", role.role, role.id, bytes / MIB));
        }
    }
    ensure!(over.is_empty(), "above {} MiB: {over:?}", PROCESS_BYTES_MAX / MIB);
    cluster.finish()
}
