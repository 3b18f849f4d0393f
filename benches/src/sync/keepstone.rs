//! Two devices by Keepstone: `keepstone sync run` twice, on one cluster of ten processes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chaos::cluster::{Cluster, Options};
use chaos::device::Device;
use chaos::group::Group;
use chaos::process::ProcessRef;
use chaos::proxy::Proxy;

use crate::pair::{Pair, wait};

pub(crate) struct KeepstonePair {
    group: Group,
    /// Each device's own, to count what goes over it.
    proxies: [Proxy; 2],
}

impl KeepstonePair {
    pub(crate) fn start(directory: &Path) -> anyhow::Result<Self> {
        let options = Options { directory: Some(directory.to_owned()), ..Options::default() };
        let cluster = Arc::new(Cluster::start(&options)?);
        let target = cluster.endpoint.strip_prefix("https://").context("no https endpoint")?.to_owned();
        let mut group = Group::on(cluster, "bench", 2)?;
        let start = || Proxy::start("127.0.0.1", &target);
        let proxies = [start()?, start()?];
        for (device, proxy) in group.devices.iter_mut().zip(&proxies) {
            device.via(proxy)?;
        }
        group.start()?;
        let pair = Self { group, proxies };
        pair.settle()?;
        Ok(pair)
    }

    fn devices(&self) -> [&Device; 2] {
        [&self.group.devices[0], &self.group.devices[1]]
    }

    /// The two assertions, and the end.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        let Self { group, proxies } = self;
        group.finish()?;
        drop(proxies);
        Ok(())
    }
}

impl Pair for KeepstonePair {
    fn name(&self) -> &'static str {
        "Keepstone"
    }

    fn a(&self) -> &Path {
        &self.devices()[0].root
    }

    fn b(&self) -> &Path {
        &self.devices()[1].root
    }

    fn wire_bytes(&self) -> anyhow::Result<(u64, u64)> {
        let sum = |proxy: &Proxy| proxy.bytes().0 + proxy.bytes().1;
        Ok((sum(&self.proxies[0]), sum(&self.proxies[1])))
    }

    fn settle(&self) -> anyhow::Result<()> {
        for device in self.devices() {
            wait("Keepstone up to date", Instant::now(), Duration::from_millis(50), || {
                let Some(status) = device.status()? else { return Ok(false) };
                Ok(status["phase"] == "up-to-date" && status["pending_count"] == 0)
            })?;
        }
        Ok(())
    }

    fn stop_a(&mut self) -> anyhow::Result<()> {
        self.group.devices[0].stop()
    }

    fn start_a(&mut self) -> anyhow::Result<()> {
        self.group.devices[0].start()
    }

    fn process_a(&self) -> Option<ProcessRef> {
        self.devices()[0].process()
    }

    fn alone(&self, file: &Path) -> anyhow::Result<Option<(f64, f64)>> {
        let cluster = self.group.cluster()?;
        // Another account's, so that nothing of it is known to the one that is measured afterwards.
        let client = cluster.account("alone@example.org")?.with_deadline(Duration::from_secs(1800));
        let back = cluster.scratch("alone")?.join("back");
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let bytes = std::fs::metadata(file)?.len() as f64;
        let began = Instant::now();
        client.put(&[file], "/alone")?;
        let up = bytes / began.elapsed().as_secs_f64();
        let began = Instant::now();
        client.get("/alone", &back)?;
        let down = bytes / began.elapsed().as_secs_f64();
        std::fs::remove_file(&back)?;
        Ok(Some((up, down)))
    }
}
