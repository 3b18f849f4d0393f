//! Passwords are not guessed, their owners not locked out, and nobody learns who has an account.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use gateway::config::Limits;
use tonic::Code;

use super::{account, sign_in};
use crate::cluster::Cluster;

const PASSWORD: &str = "correct horse battery";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_guesser_has_few_guesses_and_the_owner_gets_in() {
    let cluster = Cluster::start_with(1, Limits::default()).await;
    drop(account(&cluster, "ada@x.org", PASSWORD).await);
    let guesser = cluster.client().await;
    let begun = Instant::now();
    let guesses = async {
        let mut looked_at = 0;
        while begun.elapsed() < Duration::from_secs(8) {
            let some =
                (0..50).map(|_| async { guesser.accounts().sign_in(sign_in("ada@x.org", "wrong")).await });
            for refused in join_all(some).await {
                let refused = refused.unwrap_err();
                match refused.code() {
                    Code::Unauthenticated => looked_at += 1,
                    Code::ResourceExhausted => {
                        assert!(refused.metadata().get(proto::RETRY_AFTER_TRAILER).is_some());
                    }
                    other => panic!("{other:?}: {refused}"),
                }
            }
        }
        looked_at
    };
    let owner = async {
        let mut waits = Vec::new();
        for _sign_in in 0..3 {
            // Each time on a connection of its own, as the command does.
            let client = cluster.client().await;
            let begun = Instant::now();
            client.accounts().sign_in(sign_in("ada@x.org", PASSWORD)).await.unwrap();
            waits.push(begun.elapsed());
        }
        waits
    };
    let (looked_at, waits) = tokio::join!(guesses, owner);
    let elapsed = begun.elapsed().as_secs();
    eprintln!("{looked_at} guesses in {elapsed} s, the owner waited {waits:?}");
    assert!(looked_at <= 10 + elapsed, "{looked_at} in {elapsed} s");
    assert!(waits.iter().all(|wait| *wait < Duration::from_secs(5)), "{waits:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_sign_in_at_once() {
    let cluster = Cluster::start_with(1, Limits::default()).await;
    let emails: Vec<String> = (0..4).map(|number| format!("user-{number}@x.org")).collect();
    for email in &emails {
        drop(account(&cluster, email, PASSWORD).await);
    }
    let client = cluster.client().await;
    let sign_ins = (0..100).map(|number| {
        let (mut accounts, email) = (client.accounts(), emails[number % emails.len()].clone());
        async move { accounts.sign_in(sign_in(&email, PASSWORD)).await.map(drop) }
    });
    let failed = join_all(sign_ins).await.into_iter().filter_map(Result::err).count();
    assert_eq!(failed, 0);
    cluster.stop().await;
}

/// How many standard deviations two samples are apart (Mann and Whitney; the normal approximation).
fn apart(one: &[Duration], other: &[Duration]) -> f64 {
    let count = |sample: &[Duration]| u32::try_from(sample.len()).map(f64::from).unwrap();
    let (n, m) = (count(one), count(other));
    let smaller = one.iter().map(|a| other.iter().filter(|b| a < *b).count()).sum::<usize>();
    let u = f64::from(u32::try_from(smaller).unwrap());
    (u - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_known_email_takes_as_long_as_an_unknown_one() {
    const TRIES: usize = 400;
    let limits = Limits { sign_in_guesses_burst: 10_000, account_guesses_burst: 10_000, ..Limits::default() };
    let cluster = Cluster::start_with(1, limits).await;
    drop(account(&cluster, "ada@x.org", PASSWORD).await);
    let client = cluster.client().await;
    let mut times = [Vec::new(), Vec::new()];
    for number in 0..2 * TRIES {
        // In an order that nothing periodic goes with.
        let known = (number / 2 + number % 2) % 2;
        let email = if known == 1 { "ada@x.org" } else { "eve@x.org" };
        let begun = Instant::now();
        let refused = client.accounts().sign_in(sign_in(email, "wrong")).await.unwrap_err();
        times[known].push(begun.elapsed());
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::Unauthenticated, "the email or the password is wrong")
        );
    }
    let apart = apart(&times[0], &times[1]);
    eprintln!("known and unknown emails are {apart:.2} standard deviations apart");
    assert!(apart.abs() < 3.9, "{apart}");
    cluster.stop().await;
}
