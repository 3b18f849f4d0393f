//! Passwords guessed by strangers: how many are answered, what it does to those who know theirs, and whether the time
//! of an answer tells who has an account.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos::attack::arena::Arena;
use chaos::attack::caller::{Caller, PASSWORD};
use chaos::attack::gate::{ATTACKER, Gate, INNOCENT, address_of};
use chaos::attack::statistics::{percentile, rank_sum};
use chaos::serial::serial;
use chaos::size::{Size, seed};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Code;

/// Verdicts on guesses that are no attack yet: a second's worth, and what may be saved up.
const VERDICTS_PER_SECOND_MAX: u64 = 10;
const VERDICTS_AT_ONCE_MAX: u64 = 30;
/// Whoever knows the password is in by then.
const SIGN_IN_TIME_MAX: Duration = Duration::from_secs(10);

/// What became of guesses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Guesses {
    /// Answered with whether the password is right.
    pub(crate) verdicts: u64,
    /// All answers, by code.
    codes: BTreeMap<String, u64>,
}

/// Guesses `email_of(worker)` from `address_of(worker)` until `period` is over, one after the other in each worker.
pub(crate) async fn guess(
    gate: &Gate,
    workers: u32,
    period: Duration,
    from: fn(u32) -> IpAddr,
    email_of: fn(u32) -> String,
) -> Result<Guesses> {
    let mut guessing = JoinSet::new();
    for worker in 0..workers {
        let gate = gate.clone();
        guessing.spawn(async move {
            let (begun, mut codes) = (Instant::now(), HashMap::<Code, u64>::new());
            let Ok(mut caller) = Caller::stranger(&gate, from(worker)).await else { return codes };
            let mut number = 0_u64;
            while begun.elapsed() < period {
                let guessed = caller.sign_in(&email_of(worker), &format!("guess {number}")).await;
                number += 1;
                let code = guessed.map_or_else(|status| status.code(), |_token| Code::Ok);
                *codes.entry(code).or_insert(0) += 1;
                if code != Code::Unauthenticated {
                    // Whoever is told to come again does so, from a new connection if need be.
                    sleep(Duration::from_millis(20)).await;
                }
                if matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled)
                    && let Ok(again) = Caller::stranger(&gate, from(worker)).await
                {
                    caller = again;
                }
            }
            codes
        });
    }
    let mut guesses = Guesses::default();
    while let Some(codes) = guessing.join_next().await {
        for (code, count) in codes? {
            if matches!(code, Code::Unauthenticated | Code::Ok) {
                guesses.verdicts += count;
            }
            *guesses.codes.entry(format!("{code:?}")).or_insert(0) += count;
        }
    }
    Ok(guesses)
}

/// Signs in with the right password until it works; gives how long it took.
async fn get_in(gate: &Gate, from: IpAddr, email: &str, attempts_max: usize) -> Result<Duration> {
    let begun = Instant::now();
    let caller = Caller::stranger(gate, from).await?;
    let trying = async {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match caller.sign_in(email, PASSWORD).await {
                Ok(_token) => return Ok(()),
                Err(status) if status.code() == Code::ResourceExhausted && attempts < attempts_max => {
                    sleep(Duration::from_millis(300)).await;
                }
                Err(status) => anyhow::bail!("{email} is kept out after {attempts} attempts: {status}"),
            }
        }
    };
    timeout(SIGN_IN_TIME_MAX, trying).await.with_context(|| format!("{email} is not let in"))??;
    Ok(begun.elapsed())
}

fn the_owner(_worker: u32) -> String {
    "owner@example.org".to_owned()
}

fn nobody(worker: u32) -> String {
    format!("nobody-{worker}@example.org")
}

fn one_address(_worker: u32) -> IpAddr {
    ATTACKER
}

/// Guesses of one account's password, from one address or from many; the owner signs in meanwhile.
fn guesses_are_few(name: &str, workers: u32, from: fn(u32) -> IpAddr) -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let gate = arena.gate.clone();
    let admin = arena.admin().clone();
    let period = Duration::from_secs(Size::chosen().pick(4, 15, 15));
    arena.innocently(async { admin.create_account("owner@example.org", 0).await })?;
    // The owner has been here before, from the same address.
    arena.innocently(get_in(&gate, INNOCENT, "owner@example.org", 1))?;
    let attack = async move {
        let owner = async {
            let (begun, mut waited, mut kept_out) = (Instant::now(), Vec::new(), Vec::new());
            while begun.elapsed() < period {
                match get_in(&gate, INNOCENT, "owner@example.org", 30).await {
                    Ok(time) => waited.push(time),
                    Err(error) => kept_out.push(format!("{error:#}")),
                }
                sleep(Duration::from_secs(1)).await;
            }
            (waited, kept_out)
        };
        let (guesses, owner) = tokio::join!(guess(&gate, workers, period, from, the_owner), owner);
        Ok((guesses?, owner))
    };
    let ((guesses, (waited, kept_out)), seen) = arena.attack(name, attack)?;
    let longest = waited.iter().max().copied().unwrap_or_default();
    eprintln!("{guesses:?}; the owner signed in {} times and waited {longest:?} at most", waited.len());
    // The last guesses wait for their turns beyond the period.
    let allowed = (seen.elapsed().as_secs() + 1) * VERDICTS_PER_SECOND_MAX + VERDICTS_AT_ONCE_MAX;
    let elapsed = seen.elapsed();
    ensure!(guesses.verdicts <= allowed, "{name}: {} verdicts in {elapsed:?}", guesses.verdicts);
    ensure!(kept_out.is_empty(), "{name}: the owner was kept out {} times: {kept_out:?}", kept_out.len());
    seen.hardly_felt()?;
    arena.finish()
}

#[test]
fn guesses_from_one_address_are_throttled_and_the_owner_is_let_in() -> Result<()> {
    guesses_are_few("guesses from one address", 8, one_address)
}

#[test]
fn guesses_from_many_addresses_are_throttled_and_the_owner_is_let_in() -> Result<()> {
    guesses_are_few("guesses from many addresses", 48, address_of)
}

/// Many sign-ins at once by somebody else: everybody who knows their password gets in, at the first attempt.
fn others_get_in(name: &str, workers: u32, from: fn(u32) -> IpAddr) -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let gate = arena.gate.clone();
    let period = Duration::from_secs(Size::chosen().pick(4, 20, 20));
    let attack = async move {
        let innocents = async {
            let (begun, mut waited, mut kept_out) = (Instant::now(), Vec::new(), Vec::new());
            // The attack is to have begun.
            sleep(Duration::from_millis(500)).await;
            while begun.elapsed() < period {
                match get_in(&gate, INNOCENT, "innocent@example.org", 1).await {
                    Ok(time) => waited.push(time),
                    Err(error) => kept_out.push(format!("{error:#}")),
                }
                sleep(Duration::from_millis(300)).await;
            }
            (waited, kept_out)
        };
        let (guesses, innocents) = tokio::join!(guess(&gate, workers, period, from, nobody), innocents);
        Ok((guesses?, innocents))
    };
    let ((guesses, (waited, kept_out)), seen) = arena.attack(name, attack)?;
    let longest = waited.iter().max().copied().unwrap_or_default();
    eprintln!("{guesses:?}; {} innocent sign-ins, {longest:?} at most", waited.len());
    ensure!(
        kept_out.is_empty() && !waited.is_empty(),
        "{name}: {} of {} innocent sign-ins failed: {:?}",
        kept_out.len(),
        kept_out.len() + waited.len(),
        kept_out.first()
    );
    seen.hardly_felt()?;
    arena.finish()
}

#[test]
fn thirty_four_sign_ins_at_once_keep_nobody_out() -> Result<()> {
    others_get_in("34 sign-ins at once", 34, one_address)
}

#[test]
fn two_hundred_sign_ins_at_once_keep_nobody_out() -> Result<()> {
    others_get_in("200 sign-ins at once", 200, one_address)
}

#[test]
fn many_addresses_signing_in_at_once_keep_nobody_out() -> Result<()> {
    others_get_in("200 sign-ins at once from 200 addresses", 200, address_of)
}

/// Wrong passwords for e-mails that have an account and for such that have none, each pair from an address of its own:
/// the times of the verdicts, and how many of each kind were verdicts.
async fn verdict_times(
    gate: &Gate,
    round: u32,
    tries: u32,
    emails: u32,
    random: &mut SmallRng,
) -> Result<[Vec<Duration>; 2]> {
    let mut times = [Vec::new(), Vec::new()];
    for number in 0..tries {
        let caller = Caller::stranger(gate, address_of(round * 100_000 + number)).await?;
        // The first call of a connection is of no kind.
        caller.accounts().who_am_i(proto::v1::WhoAmIRequest {}).await.ok();
        let first = usize::from(random.random_bool(0.5));
        for kind in [first, 1 - first] {
            let who = ["known", "unknown"][kind];
            let email = format!("{who}-{}@example.org", number % emails);
            let begun = Instant::now();
            let refused = caller.sign_in(&email, "wrong").await;
            let elapsed = begun.elapsed();
            if refused.is_err_and(|status| status.code() == Code::Unauthenticated) {
                times[kind].push(elapsed);
            }
        }
    }
    for kind in &mut times {
        kind.sort_unstable();
    }
    Ok(times)
}

#[test]
fn the_time_of_a_refusal_does_not_tell_who_has_an_account() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let mut random = SmallRng::seed_from_u64(seed("sign_in"));
    let (tries, emails) = Size::chosen().pick((160, 80), (1000, 500), (1000, 500));
    let (gate, admin) = (arena.gate.clone(), arena.admin().clone());
    arena.prepare(async move {
        for number in 0..emails {
            admin.create_account(&format!("known-{number}@example.org"), 0).await?;
        }
        let mut found = Vec::new();
        // One sample of a hundred is off by chance: the second decides.
        for round in 0..2 {
            let [known, unknown] = verdict_times(&gate, round, tries, emails, &mut random).await?;
            ensure!(
                known.len().abs_diff(unknown.len()) * 20 <= usize::try_from(tries)?,
                "{} verdicts on known e-mails, {} on unknown ones",
                known.len(),
                unknown.len()
            );
            ensure!(known.len() * 2 >= usize::try_from(tries)?, "only {} verdicts", known.len());
            let test = rank_sum(&known, &unknown);
            let medians = [percentile(&known, 0.5), percentile(&unknown, 0.5)];
            eprintln!("known and unknown e-mails, {tries} each: medians {medians:?}, {test:?}");
            if test.p > 0.01 {
                return Ok(());
            }
            found.push((medians, test));
        }
        anyhow::bail!("known and unknown e-mails are told apart: {found:?}")
    })?;
    arena.finish()
}
