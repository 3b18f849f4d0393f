//! A cluster that is attacked: who is there, and what is measured of every attack.
//!
//! Invariants:
//! - Attackers run on threads of low priority and from addresses of their own: they stand for other machines.
//! - The innocent account is measured undisturbed just before, in the same run.

use std::future::Future;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::runtime::Runtime;

use super::caller::{Caller, PASSWORD};
use super::gate::{ATTACKER, Gate, INNOCENT};
use super::innocent::{Figures, beside, for_a_while};
use super::memory::{MemoryWatch, Peaks};
use crate::cluster::{Cluster, Options};
use crate::size::Size;

/// How long the innocent account stores and reads before it is measured: the first calls pay for connections.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long the innocent account is measured undisturbed: in the short form, and in the full one, where a flush of the
/// disk now and then counts on both sides.
const UNDISTURBED: [Duration; 2] = [Duration::from_millis(1500), Duration::from_secs(20)];
/// The most that a gateway or a metadata node may have resident, whatever is done to it.
const RESIDENT_MIB_MAX: u64 = 300;
/// What is added to twice the undisturbed latency: two cores serve the cluster, the attackers and the tests.
const LATENCY_FLOOR: Duration = Duration::from_millis(20);
/// The longest that the innocent account waits, but for one in a hundred, on a machine that has other work.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How much less important attackers are to the scheduler.
const ATTACKERS_NICE: i32 = 5;

/// The cluster, and those who use it.
#[derive(Debug)]
pub struct Arena {
    /// What is attacked.
    pub cluster: Cluster,
    /// Where its gateway is.
    pub gate: Gate,
    admin: Caller,
    innocent: Caller,
    attackers: Runtime,
    innocents: Runtime,
}

/// What an attack did to others.
#[derive(Clone, Debug)]
pub struct Seen {
    name: String,
    elapsed: Duration,
    /// The innocent account just before.
    pub undisturbed: Figures,
    /// The innocent account meanwhile.
    pub beside: Figures,
    /// Memory meanwhile.
    pub peaks: Peaks,
}

fn runtime(nice: i32) -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(move || {
            // On Linux this is the thread's alone. If it is refused the attack is only a little harder.
            rustix::process::nice(nice).ok();
        })
        .build()
        .context("a runtime")
}

impl Arena {
    /// Starts a cluster with an innocent account.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(&Options::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn start_with(options: &Options) -> anyhow::Result<Self> {
        let cluster = Cluster::start(options)?;
        let gate = Gate::of(&cluster)?;
        let (attackers, innocents) = (runtime(ATTACKERS_NICE)?, runtime(0)?);
        let profile = std::fs::read_to_string(cluster.directory().join("profile.toml"))?;
        let token = profile.lines().find_map(|line| line.strip_prefix("token = ")).context("no token")?;
        let token = token.trim().trim_matches('"').to_owned();
        let admin = innocents.block_on(Caller::connect(&gate, INNOCENT, &token))?;
        let innocent = innocents.block_on(signed_up(&gate, &admin, INNOCENT, "innocent@example.org", 0))?;
        Ok(Self { cluster, gate, admin, innocent, attackers, innocents })
    }

    /// The administrator.
    #[must_use]
    pub fn admin(&self) -> &Caller {
        &self.admin
    }

    /// The innocent account.
    #[must_use]
    pub fn innocent(&self) -> &Caller {
        &self.innocent
    }

    /// A new account that calls from the attacker's address; a quota of 0 is none.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn neighbour(&self, name: &str, quota_bytes: u64) -> anyhow::Result<Caller> {
        let email = format!("{name}@example.org");
        let gate = self.gate.clone();
        let admin = self.admin.clone();
        // Spawned, as all of an account's connections live on the runtime that made them.
        let made = self
            .attackers
            .spawn(async move { signed_up(&gate, &admin, ATTACKER, &email, quota_bytes).await });
        self.attackers.block_on(made)?
    }

    /// Runs something as an attacker, with nobody watching: what an attack is prepared with.
    ///
    /// # Errors
    /// As `work`.
    pub fn prepare<T: Send + 'static>(
        &self,
        work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
    ) -> anyhow::Result<T> {
        let running = self.attackers.spawn(work);
        self.attackers.block_on(running)?
    }

    /// Runs something as an innocent client.
    pub fn innocently<T>(&self, work: impl Future<Output = T>) -> T {
        self.innocents.block_on(work)
    }

    /// Runs an attack, with the memory and the innocent account watched, which is measured undisturbed just before.
    ///
    /// # Errors
    /// As `attack`, or if there is nothing to watch.
    pub fn attack<T: Send + 'static>(
        &self,
        name: &str,
        attack: impl Future<Output = anyhow::Result<T>> + Send + 'static,
    ) -> anyhow::Result<(T, Seen)> {
        let warm_up = self.innocents.block_on(for_a_while(&self.innocent, WARM_UP));
        warm_up.no_errors().with_context(|| format!("{name}: before it began"))?;
        let [short, full] = UNDISTURBED;
        let period = Size::chosen().pick(short, full, full);
        let undisturbed = self.innocents.block_on(for_a_while(&self.innocent, period));
        undisturbed.no_errors().with_context(|| format!("{name}: before it began"))?;
        self.run(name, undisturbed, attack)
    }

    /// The same for attacks that may be felt: the innocent account may wait longer than undisturbed.
    ///
    /// # Errors
    /// As [`Self::attack`].
    pub fn watch<T: Send + 'static>(
        &self,
        name: &str,
        attack: impl Future<Output = anyhow::Result<T>> + Send + 'static,
    ) -> anyhow::Result<(T, Seen)> {
        self.run(name, Figures::default(), attack)
    }

    fn run<T: Send + 'static>(
        &self,
        name: &str,
        undisturbed: Figures,
        attack: impl Future<Output = anyhow::Result<T>> + Send + 'static,
    ) -> anyhow::Result<(T, Seen)> {
        let memory = MemoryWatch::start(&self.cluster)?;
        let begun = Instant::now();
        let attacking = self.attackers.spawn(attack);
        let (result, beside) = self.innocents.block_on(beside(&self.innocent, attacking));
        let elapsed = begun.elapsed();
        let seen = Seen { name: name.to_owned(), elapsed, undisturbed, beside, peaks: memory.peaks() };
        eprintln!("{seen}");
        Ok((result?.with_context(|| name.to_owned())?, seen))
    }

    /// Stops the cluster, and the part of the test with it is well done.
    ///
    /// # Errors
    /// If something does not come to a clean end.
    pub fn finish(self) -> anyhow::Result<()> {
        self.attackers.shutdown_background();
        drop((self.admin, self.innocent));
        self.innocents.shutdown_background();
        self.cluster.finish()
    }
}

async fn signed_up(
    gate: &Gate,
    admin: &Caller,
    from: IpAddr,
    email: &str,
    quota_bytes: u64,
) -> anyhow::Result<Caller> {
    admin.create_account(email, quota_bytes).await?;
    let token = Caller::stranger(gate, from).await?.sign_in(email, PASSWORD).await?;
    Caller::connect(gate, from, &token).await
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Peaks { gateway_mib_before, gateway_mib, meta_mib_before, meta_mib } = self.peaks;
        write!(
            f,
            "{} ({:.1} s): gateway {gateway_mib_before} → {gateway_mib} MiB, metadata {meta_mib_before} → \
             {meta_mib} MiB; ",
            self.name,
            self.elapsed.as_secs_f64(),
        )?;
        if self.undisturbed.count() > 0 {
            write!(f, "undisturbed {}; ", self.undisturbed)?;
        }
        write!(f, "beside {}", self.beside)
    }
}

impl Seen {
    /// How long the attack took.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Fails unless memory stayed bounded and nobody else had errors or waited longer than before.
    ///
    /// # Errors
    /// With what was not as it should be.
    pub fn harmless(&self) -> anyhow::Result<()> {
        self.survived()?;
        let name = &self.name;
        ensure!(self.undisturbed.count() > 0, "{name}: not measured undisturbed: use Arena::attack");
        let allowed = self.undisturbed.p99() * 2 + LATENCY_FLOOR;
        let p99 = self.beside.p99();
        ensure!(p99 <= allowed, "{name}: the innocent account's p99 {p99:?} is above {allowed:?}");
        Ok(())
    }

    /// Fails unless memory stayed bounded and nobody else had errors, waited twice as long on the whole, or ever for
    /// long: what holds beside other work on the machine too, unlike the 99th of some hundred.
    ///
    /// # Errors
    /// With what was not as it should be.
    pub fn hardly_felt(&self) -> anyhow::Result<()> {
        self.survived()?;
        let name = &self.name;
        ensure!(self.undisturbed.count() > 0, "{name}: not measured undisturbed: use Arena::attack");
        let allowed = self.undisturbed.p50() * 2 + LATENCY_FLOOR;
        let (p50, p99) = (self.beside.p50(), self.beside.p99());
        ensure!(p50 <= allowed, "{name}: the innocent account's p50 {p50:?} is above {allowed:?}");
        ensure!(p99 <= WAIT_MAX, "{name}: the innocent account's p99 {p99:?} is above {WAIT_MAX:?}");
        Ok(())
    }

    /// Fails unless memory stayed bounded and nobody else had errors.
    ///
    /// # Errors
    /// With what was not as it should be.
    pub fn survived(&self) -> anyhow::Result<()> {
        self.bounded()?;
        let name = &self.name;
        self.beside.no_errors().with_context(|| name.clone())?;
        ensure!(self.beside.count() > 0, "{name}: the innocent account got nothing done");
        Ok(())
    }

    /// Fails if a process took too much memory.
    ///
    /// # Errors
    /// If so.
    pub fn bounded(&self) -> anyhow::Result<()> {
        let Peaks { gateway_mib, meta_mib, .. } = self.peaks;
        let name = &self.name;
        ensure!(gateway_mib <= RESIDENT_MIB_MAX, "{name}: the gateway took {gateway_mib} MiB");
        ensure!(meta_mib <= RESIDENT_MIB_MAX, "{name}: a metadata node took {meta_mib} MiB");
        Ok(())
    }
}
