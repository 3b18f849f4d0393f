//! Puts and gets through the whole stack: a client over TLS, the gateway, the metadata, the disks.
//!
//! A put is one file by the client library, as `keepstone put` does it: a small one by one call, others by look up, begin,
//! send, commit. A get reads one file's stream to its end, without writing it to a disk of the client.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use chaos::cluster::Cluster;
use chaos::process::ProcessRef;
use client::connection::ApiClient;
use client::path::RemotePath;
use client::profile::Profile;
use client::progress::NoProgress;
use client::upload::{UploadSource, upload};
use hdrhistogram::Histogram;
use proto::v1::DownloadRequest;
use proto::v1::files_client::FilesClient;
use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::commits::Clients;
use crate::figure::{Figure, Figures, megabytes_per_second, per_second};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Files of one size, put and then got with so many in flight.
struct Load {
    bytes: usize,
    count: usize,
    in_flight: usize,
}

const LOADS: [Load; 5] = [
    Load { bytes: 4 * MIB, count: 24, in_flight: 1 },
    Load { bytes: 4 * MIB, count: 64, in_flight: 16 },
    Load { bytes: 4 * KIB, count: 300, in_flight: 1 },
    Load { bytes: 4 * KIB, count: 2000, in_flight: 16 },
    Load { bytes: 4 * KIB, count: 4000, in_flight: 64 },
];

const ROLES: [&str; 3] = ["gateway", "meta", "storage"];

/// A cluster and a connection to it.
pub(crate) struct Stack {
    api: ApiClient,
    files: FilesClient<Channel>,
    token: MetadataValue<Ascii>,
    clients: Arc<Clients>,
    /// Each once, by role.
    processes: Vec<(&'static str, ProcessRef)>,
    folder: PathBuf,
}

impl Stack {
    pub(crate) async fn connect(cluster: &Cluster, folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let path = cluster.directory().join("profile.toml");
        let options = Profile::load(&path)?.connect_options(&path)?;
        let api = ApiClient::connect(&options).await?;
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&options.ca_pem));
        let endpoint = Endpoint::from_shared(api.endpoint().to_owned())?
            .tls_config(tls)?
            .tcp_nodelay(true)
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(16 * 1024 * 1024)
            .max_frame_size(1024 * 1024);
        let channel = endpoint.connect().await?;
        let files = FilesClient::new(channel).max_decoding_message_size(proto::MESSAGE_BYTES_MAX);
        let token = options.token.context("the profile has no token")?;
        let token: MetadataValue<Ascii> = format!("Bearer {token}").parse()?;
        Ok(Self {
            api,
            files,
            clients: Arc::new(Clients::connect(cluster, &endpoint).await?),
            token,
            processes: processes(cluster)?,
            folder: folder.to_owned(),
        })
    }

    /// Every load once: all puts, then all gets, these `reads` times over.
    pub(crate) async fn measure(&self, round: u32, reads: u32, figures: &mut Figures) -> anyhow::Result<()> {
        for (index, load) in LOADS.iter().enumerate() {
            let names: Arc<Vec<String>> =
                Arc::new((0..load.count).map(|file| format!("{round}-{index}-{file}")).collect());
            for name in names.iter() {
                make_file(&self.folder.join(name), load.bytes)?;
            }
            let put = self.timed(load, names.clone(), Direction::Put).await?;
            self.record("put", load, &put, figures);
            let again = (0..reads).flat_map(|_read| names.iter().cloned()).collect();
            let got = self.timed(load, Arc::new(again), Direction::Get).await?;
            self.record("get", load, &got, figures);
            for name in names.iter() {
                std::fs::remove_file(self.folder.join(name))?;
            }
        }
        self.clients.measure(figures).await
    }

    async fn timed(&self, load: &Load, names: Arc<Vec<String>>, way: Direction) -> anyhow::Result<Run> {
        let cpu = self.cpu_seconds();
        let next = Arc::new(AtomicUsize::new(0));
        let started = Instant::now();
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..load.in_flight {
            let (api, mut files, token) = (self.api.clone(), self.files.clone(), self.token.clone());
            let (names, next, folder, bytes) = (names.clone(), next.clone(), self.folder.clone(), load.bytes);
            workers.spawn(async move {
                let mut latencies = Histogram::<u64>::new(3)?;
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let started = Instant::now();
                    match way {
                        Direction::Put => put(&api, &folder, name).await?,
                        Direction::Get => get(&mut files, &token, name, bytes).await?,
                    }
                    latencies.record(u64::try_from(started.elapsed().as_micros())?)?;
                }
                anyhow::Ok(latencies)
            });
        }
        let mut latencies = Histogram::new(3)?;
        while let Some(worker) = workers.join_next().await {
            latencies.add(worker??)?;
        }
        let files = names.len();
        Ok(Run { files, elapsed: started.elapsed(), cpu: self.cpu_since(&cpu), latencies })
    }

    fn cpu_seconds(&self) -> Vec<f64> {
        self.processes.iter().map(|(_, process)| process.cpu_seconds().unwrap_or_default()).collect()
    }

    /// CPU time since `before` by role, the client's included, and of all together.
    fn cpu_since(&self, before: &[f64]) -> Vec<(&'static str, f64)> {
        let mut by_role: Vec<(&'static str, f64)> = Vec::new();
        let spent = self.cpu_seconds().into_iter().zip(before).map(|(now, before)| now - before);
        let mut all = 0.0;
        for ((role, _process), seconds) in self.processes.iter().zip(spent) {
            all += seconds;
            match by_role.iter_mut().find(|(known, _)| known == role) {
                Some((_role, sum)) => *sum += seconds,
                None => by_role.push((role, seconds)),
            }
        }
        by_role.push(("all", all));
        by_role
    }

    fn record(&self, verb: &str, load: &Load, run: &Run, figures: &mut Figures) {
        let total = load.bytes * run.files;
        if load.bytes >= MIB {
            let name = format!("{verb} 4 MiB, {} in flight", load.in_flight);
            figures.add(Figure::new(&name, "MB/s", megabytes_per_second(total, run.elapsed)));
            if load.in_flight > 1 {
                for (role, seconds) in &run.cpu {
                    let per_gigabyte = seconds * 1000.0 / megabytes_per_second(total, Duration::from_secs(1));
                    figures.add(Figure::new(format!("{verb} 4 MiB: {role} CPU"), "s/GB", per_gigabyte));
                }
            }
        } else {
            let name = format!("{verb} 4 KiB, {} in flight", load.in_flight);
            figures.add(Figure::new(&name, "1/s", per_second(run.files, run.elapsed)));
            for (label, quantile) in [("p50", 0.5), ("p99", 0.99)] {
                let micros = Duration::from_micros(run.latencies.value_at_quantile(quantile));
                figures.add(Figure::new(format!("{name}: {label}"), "ms", micros.as_secs_f64() * 1000.0));
            }
            if load.in_flight == 64 {
                for (role, seconds) in &run.cpu {
                    let per_file = seconds * 1e6 / per_second(run.files, Duration::from_secs(1));
                    figures.add(Figure::new(format!("{verb} 4 KiB: {role} CPU"), "µs/file", per_file));
                }
            }
        }
    }
}

/// The processes that work: those of the cluster, and this one.
fn processes(cluster: &Cluster) -> anyhow::Result<Vec<(&'static str, ProcessRef)>> {
    let own = ProcessRef::observe(std::process::id()).context("this process is not to be seen")?;
    let served = cluster.processes();
    let pids: BTreeSet<u32> = served.iter().map(|(_, process)| process.pid).collect();
    let mut all = vec![("client", own)];
    if let [(_, only), _, ..] = served.as_slice()
        && pids.len() == 1
    {
        all.push(("one process", *only));
        return Ok(all);
    }
    for (info, process) in served {
        let role = ROLES.into_iter().find(|role| *role == info.role).context("an unknown role")?;
        all.push((role, process));
    }
    Ok(all)
}

#[derive(Clone, Copy)]
enum Direction {
    Put,
    Get,
}

/// What one load took.
struct Run {
    /// Puts or gets of a file.
    files: usize,
    elapsed: Duration,
    cpu: Vec<(&'static str, f64)>,
    /// Of single operations, in microseconds.
    latencies: Histogram<u64>,
}

/// Bytes that were never stored before and do not compress.
fn make_file(path: &Path, bytes: usize) -> anyhow::Result<()> {
    let mut buffer = vec![0; bytes];
    SmallRng::from_os_rng().fill_bytes(&mut buffer);
    std::fs::write(path, buffer)?;
    Ok(())
}

async fn put(api: &ApiClient, folder: &Path, name: &str) -> anyhow::Result<()> {
    let source = UploadSource { local: folder.join(name), remote: RemotePath::parse(&format!("/{name}"))? };
    let report = upload(api, vec![source], Arc::new(NoProgress)).await;
    ensure!(report.failed.is_empty() && report.files == 1, "put {name}: {report:?}");
    Ok(())
}

async fn get(
    files: &mut FilesClient<Channel>,
    token: &MetadataValue<Ascii>,
    name: &str,
    bytes: usize,
) -> anyhow::Result<()> {
    let mut request =
        tonic::Request::new(DownloadRequest { path: format!("/{name}"), ..DownloadRequest::default() });
    request.metadata_mut().insert("authorization", token.clone());
    let mut stream = files.download(request).await?.into_inner();
    let mut received = 0;
    while let Some(message) = stream.message().await? {
        received += message.data.len();
    }
    ensure!(received == bytes, "get {name}: {received} of {bytes} bytes");
    Ok(())
}
