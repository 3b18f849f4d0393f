//! Whole files by one call each, and linearizable looks at them, from many clients at once: what a key-value store of the
//! same durability does with its puts and gets.
//!
//! Each client does one thing after the other; up to [`CONNECTIONS_MAX`] connections are shared by all, and they are of
//! [`ACCOUNTS`] people, for one account may not have so much under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use chaos::cluster::Cluster;
use client::profile::Profile;
use hdrhistogram::Histogram;
use proto::v1;
use proto::v1::files_client::FilesClient;
use rand::RngCore as _;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use crate::figure::{Figure, Figures, per_second};

/// Clients at once.
pub(crate) const COMMITS: [usize; 3] = [1, 64, 1000];
pub(crate) const STATS: usize = 64;

pub(crate) const CONNECTIONS_MAX: usize = 100;

const ACCOUNTS: usize = 10;

/// Bytes of a file.
pub(crate) const FILE_BYTES: usize = 256;

/// How long each load takes.
pub(crate) const PERIOD: Duration = Duration::from_secs(3);

/// Connections to a gateway, and what has been put over them.
pub(crate) struct Clients {
    channels: Vec<Channel>,
    accounts: Vec<Account>,
}

/// One account, and how many files have been put into its tree.
struct Account {
    token: MetadataValue<Ascii>,
    put: AtomicU64,
}

/// What one client has done.
pub(crate) struct Done {
    pub(crate) count: usize,
    pub(crate) latencies: Histogram<u64>,
    /// The gateway does not know the call.
    pub(crate) unknown: bool,
}

impl Done {
    /// Nothing.
    pub(crate) fn nothing() -> anyhow::Result<Self> {
        Ok(Self { count: 0, latencies: Histogram::new(3)?, unknown: false })
    }

    pub(crate) fn add(&mut self, other: Self) -> anyhow::Result<()> {
        self.count += other.count;
        self.unknown |= other.unknown;
        Ok(self.latencies.add(other.latencies)?)
    }
}

/// So many clients, in words.
pub(crate) fn clients(count: usize) -> String {
    if count == 1 { "1 client".to_owned() } else { format!("{count} clients") }
}

fn request_id(random: &mut SmallRng) -> anyhow::Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut id = u64::try_from(now.as_millis())?.to_be_bytes().to_vec();
    id.extend_from_slice(&random.random::<[u8; 16]>());
    Ok(id)
}

impl Clients {
    pub(crate) async fn connect(cluster: &Cluster, endpoint: &Endpoint) -> anyhow::Result<Self> {
        let mut accounts = Vec::with_capacity(ACCOUNTS);
        for number in 0..ACCOUNTS {
            let client = cluster.account(&format!("bench-{number}@example.org"))?;
            let options = Profile::load(client.profile())?.connect_options(client.profile())?;
            let token = options.token.context("the profile has no token")?;
            accounts.push(Account { token: format!("Bearer {token}").parse()?, put: AtomicU64::new(0) });
        }
        let mut channels = Vec::with_capacity(CONNECTIONS_MAX);
        for _ in 0..CONNECTIONS_MAX {
            channels.push(endpoint.connect().await?);
        }
        Ok(Self { channels, accounts })
    }

    /// All loads once; none for a gateway that is older than the call.
    pub(crate) async fn measure(self: &Arc<Self>, figures: &mut Figures) -> anyhow::Result<()> {
        for count in COMMITS {
            let (done, elapsed) = self.timed(count, true).await?;
            if done.unknown {
                return Ok(());
            }
            record(&format!("commit 256 B, {}", clients(count)), &done, elapsed, figures);
        }
        let (done, elapsed) = self.timed(STATS, false).await?;
        record(&format!("stat, {STATS} clients"), &done, elapsed, figures);
        Ok(())
    }

    async fn timed(self: &Arc<Self>, count: usize, commits: bool) -> anyhow::Result<(Done, Duration)> {
        let (started, until) = (Instant::now(), Instant::now() + PERIOD);
        let mut running = tokio::task::JoinSet::new();
        for client in 0..count {
            let own = Arc::clone(self);
            running.spawn(async move { own.client(client, until, commits).await });
        }
        let mut all = Done::nothing()?;
        while let Some(client) = running.join_next().await {
            all.add(client??)?;
        }
        Ok((all, started.elapsed()))
    }

    async fn client(&self, number: usize, until: Instant, commits: bool) -> anyhow::Result<Done> {
        let channel = &self.channels[number % self.channels.len()];
        let account = &self.accounts[number % self.accounts.len()];
        let mut files = FilesClient::new(channel.clone());
        let mut random = SmallRng::from_os_rng();
        let mut done = Done::nothing()?;
        while Instant::now() < until {
            let started = Instant::now();
            let answer = if commits {
                let message = account.put(&mut random)?;
                files.put_file(account.request(message)).await.map(drop)
            } else {
                let path = path(random.random_range(0..account.put.load(Ordering::Relaxed).max(1)));
                files.get_entry(account.request(v1::GetEntryRequest { path })).await.map(drop)
            };
            match answer {
                Ok(()) => {}
                Err(status) if status.code() == Code::Unimplemented => {
                    done.unknown = true;
                    break;
                }
                // A commit that was under way when the load before ended.
                Err(status) if !commits && status.code() == Code::NotFound => continue,
                Err(status) => return Err(status).context("a client of many"),
            }
            done.latencies.record(u64::try_from(started.elapsed().as_micros())?)?;
            done.count += 1;
        }
        Ok(done)
    }
}

impl Account {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.token.clone());
        request
    }

    fn put(&self, random: &mut SmallRng) -> anyhow::Result<v1::PutFileRequest> {
        let mut data = vec![0; FILE_BYTES];
        random.fill_bytes(&mut data);
        Ok(v1::PutFileRequest {
            request_id: request_id(random)?.into(),
            path: path(self.put.fetch_add(1, Ordering::Relaxed)),
            base: Some(v1::Base { base: Some(v1::base::Base::Any(true)) }),
            mode: 0o644,
            cutter: v1::Cutter::Cdc64k.into(),
            data: data.into(),
            ..v1::PutFileRequest::default()
        })
    }
}

fn path(number: u64) -> String {
    format!("/commit-{number}")
}

pub(crate) fn record(name: &str, done: &Done, elapsed: Duration, figures: &mut Figures) {
    figures.add(Figure::new(name, "1/s", per_second(done.count, elapsed)));
    for (label, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let micros = Duration::from_micros(done.latencies.value_at_quantile(quantile));
        figures.add(Figure::new(format!("{name}: {label}"), "ms", micros.as_secs_f64() * 1000.0));
    }
}
