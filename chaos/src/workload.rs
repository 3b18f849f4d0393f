//! Uploads that go on while things break: threads that put new files, new versions and folders of small files, and
//! keep a [`Ledger`] of what was acknowledged.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::client::{Client, Output, PutReport};
use crate::compare::file_digest;
use crate::ledger::{AttemptId, Ledger};
use crate::tree::{write_random, write_text};

/// A command that is under way while its cluster is broken gives up, or gets through, within this.
const PUT_DEADLINE: std::time::Duration = std::time::Duration::from_secs(180);
/// Files in a folder that is put at once.
const BATCH_FILES_MAX: usize = 30;

/// One thread's part of the workload.
#[derive(Debug)]
pub struct Uploader<'a> {
    /// Whose account.
    pub client: Client,
    /// Where the files are made.
    pub scratch: PathBuf,
    /// The remote folder of the ledger; it must be there.
    pub remote: String,
    /// What is known.
    pub ledger: &'a Ledger,
    /// Keeps the names of threads and rounds apart.
    pub name: String,
    /// Drives it.
    pub seed: u64,
}

impl Uploader<'_> {
    /// Puts files until `stop` is set; a put that is under way then is killed half of the time, as a client whose
    /// machine fails, and otherwise goes on to whatever end it finds. Returns how many puts were acknowledged.
    ///
    /// # Errors
    /// If the machinery fails; a failing put is not an error.
    pub fn run(&self, stop: &AtomicBool) -> anyhow::Result<usize> {
        let mut random = SmallRng::seed_from_u64(self.seed);
        let mut acknowledged = 0;
        let mut turn = 0;
        while !stop.load(Ordering::Relaxed) {
            let done = match random.random_range(0..4) {
                0 => self.put_folder(turn, &mut random, stop)?,
                1 => self.put_file(&format!("{}-current", self.name), &mut random, stop)?,
                _ => self.put_file(&format!("{}-{turn}", self.name), &mut random, stop)?,
            };
            acknowledged += usize::from(done);
            turn += 1;
        }
        Ok(acknowledged)
    }

    /// Puts one new file, or a folder of small ones. Returns whether all of it was acknowledged.
    ///
    /// # Errors
    /// If the machinery fails; a failing put is not an error.
    pub fn put_one(&self) -> anyhow::Result<bool> {
        let mut random = SmallRng::seed_from_u64(self.seed);
        let never = AtomicBool::new(false);
        if random.random_range(0..4) == 0 {
            self.put_folder(0, &mut random, &never)
        } else {
            self.put_file(&self.name, &mut random, &never)
        }
    }

    /// One file; its local name is its remote one.
    fn put_file(&self, name: &str, random: &mut SmallRng, stop: &AtomicBool) -> anyhow::Result<bool> {
        let local = self.scratch.join(name);
        make_file(&local, random)?;
        let attempt = self.ledger.begin(name, file_digest(&local)?);
        let target = format!("{}/{name}", self.remote);
        let Some(output) = self.put(&local, &target, random, stop)? else { return Ok(false) };
        std::fs::remove_file(&local)?;
        if output.code == Some(0) {
            self.ledger.acknowledge(&attempt);
        }
        Ok(output.code == Some(0))
    }

    /// A folder of small files at once, which travel in batches: each succeeds or fails by itself.
    fn put_folder(&self, turn: usize, random: &mut SmallRng, stop: &AtomicBool) -> anyhow::Result<bool> {
        let folder = format!("{}-{turn}-many", self.name);
        let local = self.scratch.join(&folder);
        std::fs::create_dir(&local)?;
        let mut attempts = Vec::new();
        for index in 0..random.random_range(2..=BATCH_FILES_MAX) {
            let name = format!("small-{turn}-{index:03}");
            write_text(&local.join(&name), random.random_range(0..9000), random.random())?;
            let attempt = self.ledger.begin(&format!("{folder}/{name}"), file_digest(&local.join(&name))?);
            attempts.push((name, attempt));
        }
        let Some(output) = self.put(&local, &format!("{}/", self.remote), random, stop)? else {
            return Ok(false);
        };
        std::fs::remove_dir_all(&local)?;
        self.acknowledge_reported(&output, &attempts)?;
        Ok(output.code == Some(0))
    }

    /// Of a failed put, those files count as acknowledged that its report does not name, if the numbers add up.
    fn acknowledge_reported(&self, output: &Output, attempts: &[(String, AttemptId)]) -> anyhow::Result<()> {
        let Ok(report) = serde_json::from_str::<PutReport>(&output.stdout) else {
            anyhow::ensure!(output.code != Some(0), "put succeeded without a report: {output:?}");
            return Ok(());
        };
        let failed = |name: &str| report.failed.iter().any(|failed| failed.path.contains(name));
        let stored: Vec<_> = attempts.iter().filter(|(name, _)| !failed(name)).collect();
        if u64::try_from(stored.len())? == report.files {
            stored.iter().for_each(|(_, attempt)| self.ledger.acknowledge(attempt));
        }
        Ok(())
    }

    /// `None` if the client was killed.
    fn put(
        &self,
        local: &Path,
        target: &str,
        random: &mut SmallRng,
        stop: &AtomicBool,
    ) -> anyhow::Result<Option<Output>> {
        let arguments = ["put".as_ref(), "--json".as_ref(), local.as_os_str(), target.as_ref()];
        let mut running = self.client.with_deadline(PUT_DEADLINE).start(&arguments)?;
        while !running.has_ended()? {
            if stop.load(Ordering::Relaxed) {
                if random.random() {
                    running.kill()?;
                    return Ok(None);
                }
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        running.wait().map(Some).with_context(|| format!("put {}", local.display()))
    }
}

/// A file of one of the interesting sizes.
fn make_file(path: &Path, random: &mut SmallRng) -> anyhow::Result<()> {
    let bytes = match random.random_range(0..6) {
        0 => 0,
        1 => random.random_range(1..5000),
        2 => random.random_range(30_000..40_000),
        3 => random.random_range(100_000..2_000_000),
        4 => random.random_range(4_000_000..9_000_000),
        _ => random.random_range(1..300_000),
    };
    write_random(path, bytes, random.random())
}
