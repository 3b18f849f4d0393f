//! Others that do a part of what Keepstone does, measured in the same rounds: three etcd, for commits and looks.
//!
//! They are started from their Debian packages, on loopback, with their own defaults: synced, and without TLS.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::commits::{COMMITS, CONNECTIONS_MAX, Done, FILE_BYTES, PERIOD, STATS, clients, record};
use crate::figure::Figures;

const NODES: usize = 3;

/// Keys that are put.
const KEYS: u64 = 1_000_000;

/// How long they may take to elect a leader.
const READY_MAX: Duration = Duration::from_secs(20);

/// `etcdserverpb.PutRequest`, what of it is used.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.RangeRequest`: one key, linearizable.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

/// Whatever is answered; nothing of it is looked at.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Answer {}

/// Three etcd, ended with this.
pub(crate) struct Etcd {
    nodes: Vec<Child>,
    channels: Vec<Channel>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // It may have ended by itself.
            drop(node.kill());
            drop(node.wait());
        }
    }
}

fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    // All are held until each is known, so that none is given twice.
    let held: Vec<TcpListener> =
        (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

/// Where the program is, if it is installed.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("etcd")).find(|file| file.is_file())
}

impl Etcd {
    /// Starts them; `None` if they are not installed.
    pub(crate) async fn start(directory: &Path) -> anyhow::Result<Option<Self>> {
        let Some(program) = program() else { return Ok(None) };
        let (clients, peers) = (free_ports::<NODES>()?, free_ports::<NODES>()?);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let all: Vec<String> =
            peers.iter().enumerate().map(|(node, port)| format!("n{node}={}", url(*port))).collect();
        let mut nodes = Vec::with_capacity(NODES);
        for (node, (client, peer)) in clients.iter().zip(&peers).enumerate() {
            let folder = directory.join(format!("etcd-{node}"));
            std::fs::create_dir_all(&folder)?;
            let log = std::fs::File::create(directory.join(format!("etcd-{node}.log")))?;
            let child = Command::new(&program)
                .args(["--name", &format!("n{node}"), "--logger", "zap", "--initial-cluster-state", "new"])
                .arg("--data-dir")
                .arg(&folder)
                .args(["--listen-peer-urls", &url(*peer), "--initial-advertise-peer-urls", &url(*peer)])
                .args(["--listen-client-urls", &url(*client), "--advertise-client-urls", &url(*client)])
                .args(["--initial-cluster", &all.join(",")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .context("start etcd")?;
            nodes.push(child);
        }
        let mut etcd = Self { nodes, channels: Vec::new() };
        etcd.connect(&clients).await?;
        Ok(Some(etcd))
    }

    async fn connect(&mut self, ports: &[u16]) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_MAX;
        for number in 0..CONNECTIONS_MAX {
            let endpoint =
                Endpoint::from_shared(format!("http://127.0.0.1:{}", ports[number % ports.len()]))?;
            let channel = loop {
                match endpoint.connect().await {
                    Ok(channel) => break channel,
                    Err(error) => {
                        ensure!(Instant::now() < deadline, "etcd does not answer: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            };
            self.channels.push(channel);
        }
        while let Err(error) = put(&self.channels[0], b"ready".to_vec(), Vec::new()).await {
            ensure!(Instant::now() < deadline, "etcd takes nothing: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// All loads once.
    pub(crate) async fn measure(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let loads = COMMITS.iter().map(|count| (*count, true)).chain([(STATS, false)]);
        for (count, puts) in loads {
            let (started, until) = (Instant::now(), Instant::now() + PERIOD);
            let mut running = tokio::task::JoinSet::new();
            for client in 0..count {
                let channel = self.channels[client % self.channels.len()].clone();
                running.spawn(async move { one_client(&channel, until, puts).await });
            }
            let mut all = Done::nothing()?;
            while let Some(client) = running.join_next().await {
                all.add(client??)?;
            }
            let verb = if puts { "put 256 B" } else { "get" };
            record(&format!("etcd: {verb}, {}", clients(count)), &all, started.elapsed(), figures);
        }
        Ok(())
    }
}

async fn one_client(channel: &Channel, until: Instant, puts: bool) -> anyhow::Result<Done> {
    let mut random = SmallRng::from_os_rng();
    let mut done = Done::nothing()?;
    while Instant::now() < until {
        let started = Instant::now();
        let key = format!("k{:08}", random.random_range(0..KEYS)).into_bytes();
        if puts {
            let mut value = vec![0; FILE_BYTES];
            random.fill_bytes(&mut value);
            put(channel, key, value).await?;
        } else {
            call(channel, "/etcdserverpb.KV/Range", RangeRequest { key }).await?;
        }
        done.latencies.record(u64::try_from(started.elapsed().as_micros())?)?;
        done.count += 1;
    }
    Ok(done)
}

async fn put(channel: &Channel, key: Vec<u8>, value: Vec<u8>) -> anyhow::Result<()> {
    call(channel, "/etcdserverpb.KV/Put", PutRequest { key, value }).await
}

async fn call<M: prost::Message + 'static>(
    channel: &Channel,
    path: &'static str,
    message: M,
) -> anyhow::Result<()> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await?;
    let codec: ProstCodec<M, Answer> = ProstCodec::default();
    grpc.unary(tonic::Request::new(message), PathAndQuery::from_static(path), codec).await?;
    Ok(())
}
