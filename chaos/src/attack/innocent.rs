//! The innocent second account: stores and reads 4 KiB, one after the other, and notes how long it takes and what
//! goes wrong.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::caller::{Caller, random_bytes};
use super::statistics::percentile;

/// What it stores and reads.
const FILE_BYTES: usize = 4096;
/// Whoever waits longer for 4 KiB has an error.
const OPERATION_TIME_MAX: Duration = Duration::from_secs(10);
/// Names that are written again and again.
const NAMES_MAX: u32 = 16;
/// Errors that are shown.
const ERRORS_SHOWN_MAX: usize = 5;

/// What it saw.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// A put and a get of each file, sorted once complete.
    latencies: Vec<Duration>,
    /// What went wrong.
    pub errors: Vec<String>,
}

impl Figures {
    /// Pairs of a put and a get that went well.
    #[must_use]
    pub fn count(&self) -> usize {
        self.latencies.len()
    }

    /// The middle one.
    #[must_use]
    pub fn p50(&self) -> Duration {
        percentile(&self.latencies, 0.5)
    }

    /// The 99th of a hundred.
    #[must_use]
    pub fn p99(&self) -> Duration {
        percentile(&self.latencies, 0.99)
    }

    /// Fails if anything went wrong.
    ///
    /// # Errors
    /// With the first of what did.
    pub fn no_errors(&self) -> anyhow::Result<()> {
        let shown: Vec<&String> = self.errors.iter().take(ERRORS_SHOWN_MAX).collect();
        ensure!(self.errors.is_empty(), "the innocent account: {} errors, {shown:?}", self.errors.len());
        Ok(())
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (p50, p99) = (self.p50().as_millis(), self.p99().as_millis());
        write!(f, "{} × 4 KiB, p50 {p50} ms, p99 {p99} ms, {} errors", self.count(), self.errors.len())
    }
}

async fn once(caller: &Caller, path: &str) -> Result<Duration, String> {
    let data = random_bytes(FILE_BYTES);
    let begun = Instant::now();
    let both = async {
        caller.put(path, std::slice::from_ref(&data)).await.map_err(|status| format!("put: {status}"))?;
        caller.get(path).await.map_err(|status| format!("get: {status}"))
    };
    match tokio::time::timeout(OPERATION_TIME_MAX, both).await {
        Err(_elapsed) => Err(format!("no answer within {OPERATION_TIME_MAX:?}")),
        Ok(Err(error)) => Err(error),
        Ok(Ok(back)) if back != data => Err("read other bytes than it stored".to_owned()),
        Ok(Ok(_same)) => Ok(begun.elapsed()),
    }
}

async fn one_more(caller: &Caller, figures: &mut Figures) {
    let number = u32::try_from(figures.count() + figures.errors.len()).unwrap_or(0) % NAMES_MAX;
    match once(caller, &format!("/innocent-{number}")).await {
        Ok(latency) => figures.latencies.push(latency),
        Err(error) => figures.errors.push(error),
    }
}

/// Stores and reads for so long.
pub async fn for_a_while(caller: &Caller, period: Duration) -> Figures {
    let begun = Instant::now();
    let mut figures = Figures::default();
    while begun.elapsed() < period {
        one_more(caller, &mut figures).await;
    }
    figures.latencies.sort_unstable();
    figures
}

/// Stores and reads until `attack` has ended, and at least once. The last operation runs to its end.
pub async fn beside<T>(caller: &Caller, attack: impl Future<Output = T>) -> (T, Figures) {
    let ended = tokio::sync::Notify::new();
    let attacking = async {
        let result = attack.await;
        ended.notify_one();
        result
    };
    let working = async {
        let mut figures = Figures::default();
        let mut over = std::pin::pin!(ended.notified());
        loop {
            one_more(caller, &mut figures).await;
            let now = tokio::time::timeout(Duration::ZERO, over.as_mut()).await;
            if now.is_ok() {
                break figures;
            }
        }
    };
    let (result, mut figures) = tokio::join!(attacking, working);
    figures.latencies.sort_unstable();
    (result, figures)
}
