//! What a neighbour can do with upload sessions: space without a quota, chunks of no size, lists that harm others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use chaos::attack::arena::Arena;
use chaos::attack::caller::{Caller, chunk_id, commit_of, random_16, random_bytes, request_id, session};
use chaos::serial::serial;
use chaos::size::Size;
use proto::v1;
use tonic::Code;

const MIB: u64 = 1 << 20;
/// The least that `cdc-64k` cuts (docs: chunks), and so what a list of an honest client names but for the last.
const CHUNK_BYTES: u32 = 16 << 10;

/// A list of so many chunks that nobody has.
pub(crate) fn unknown_chunks(count: u32, size: u32) -> Vec<(Bytes, u32)> {
    let seed = random_16();
    let id = |number: u32| chunk_id(&[&seed[..], &number.to_be_bytes()].concat());
    (0..count).map(|number| (id(number), size)).collect()
}

#[test]
fn open_sessions_count_against_the_quota() -> Result<()> {
    const QUOTA: u64 = 10 * MIB;
    const SESSION_BYTES: usize = 8 << 20;
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", QUOTA)?;
    let sessions = Size::chosen().pick(5, 60, 60);
    let attack = async move {
        let (mut taken, mut refused) = (0_u64, BTreeMap::new());
        for number in 0..sessions {
            let chunks: Vec<Bytes> = (0..SESSION_BYTES >> 20).map(|_| random_bytes(1 << 20)).collect();
            let listed: Vec<(Bytes, u32)> = chunks.iter().map(|data| (chunk_id(data), 1 << 20)).collect();
            let upload = session(&format!("/{number}"), &listed);
            let upload_id = upload.upload_id.clone();
            let put = match neighbour.begin(upload).await {
                Ok(_missing) => neighbour.put_chunks(&upload_id, &chunks[..4]).await,
                Err(status) => Err(status),
            };
            match put {
                Ok(()) => taken += 4 * MIB,
                Err(status) => *refused.entry(status.code().to_string()).or_insert(0) += 1,
            }
        }
        Ok((taken, refused))
    };
    let ((taken, refused), seen) = arena.attack("sessions that are never committed", attack)?;
    eprintln!("{} MiB of a quota of {} MiB were taken; refused: {refused:?}", taken / MIB, QUOTA / MIB);
    ensure!(taken > 0, "nothing fits a quota of 10 MiB");
    ensure!(taken <= QUOTA, "{} MiB were taken for open sessions at a quota of 10 MiB", taken / MIB);
    seen.harmless()?;
    arena.finish()
}

#[test]
fn a_session_that_is_given_up_frees_its_quota() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 2 * MIB)?;
    arena.prepare(async move {
        for _round in 0..6 {
            let data = random_bytes(1 << 20);
            let upload = session("/given-up", &[(chunk_id(&data), 1 << 20)]);
            let upload_id = upload.upload_id.clone();
            neighbour.begin(upload).await?;
            neighbour.put_chunks(&upload_id, &[data]).await?;
            let message = v1::AbortUploadRequest { request_id: request_id(), upload_id };
            neighbour.files().abort_upload(neighbour.request(message)).await?;
        }
        neighbour.put("/kept", &[random_bytes(1 << 20)]).await?;
        Ok(())
    })?;
    arena.finish()
}

/// Sessions of very small chunks: how many of them may begin.
pub(crate) async fn tiny_sessions(caller: &Caller, sessions: u32, chunks: u32) -> Result<u32> {
    let mut begun = 0;
    for number in 0..sessions {
        for size in [1, 3, 100] {
            begun += u32::from(
                caller.begin(session(&format!("/{number}"), &unknown_chunks(chunks, size))).await.is_ok(),
            );
        }
    }
    Ok(begun)
}

#[test]
fn only_a_files_last_chunk_may_be_small() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", 0)?;
    let (sessions, chunks) = Size::chosen().pick((2, 2000), (5, 105_000), (5, 105_000));
    let attacker = neighbour.clone();
    let attack = async move { tiny_sessions(&attacker, sessions, chunks).await };
    let (begun, seen) = arena.attack("sessions of tiny chunks", attack)?;
    ensure!(begun == 0, "{begun} of {} sessions of {chunks} chunks of 1 to 100 bytes began", sessions * 3);
    seen.harmless()?;
    // Honest files: one small chunk, and a last small one.
    arena.prepare(async move {
        neighbour.put("/small", &[random_bytes(3)]).await?;
        let chunks = [random_bytes(64 << 10), random_bytes(CHUNK_BYTES as usize), random_bytes(3)];
        neighbour.put("/large", &chunks).await?;
        ensure!(neighbour.get("/large").await? == chunks.concat());
        Ok(())
    })?;
    arena.finish()
}

/// Many files that are one tiny chunk each: how many were taken until the account's quota was full.
async fn tiny_files(caller: &Caller, batches: usize) -> Result<usize> {
    const BATCH: usize = 500;
    let mut stored = 0;
    for batch in 0..batches {
        let data: Vec<Bytes> = (0..BATCH).map(|_| random_bytes(3 + batch % 3 + 6)).collect();
        let uploads: Vec<v1::BeginUpload> = data
            .iter()
            .map(|data| session("/tiny", &[(chunk_id(data), u32::try_from(data.len()).unwrap_or(0))]))
            .collect();
        let ids: Vec<Bytes> = uploads.iter().map(|upload| upload.upload_id.clone()).collect();
        let begin = v1::BeginUploadsRequest { request_id: request_id(), uploads };
        caller.files().begin_uploads(caller.request(begin)).await?;
        let put = |(data, upload): (&Bytes, &Bytes)| v1::PutChunk {
            upload_ids: vec![upload.clone()],
            id: chunk_id(data),
            data: data.clone(),
        };
        let message = v1::PutChunksRequest { chunks: data.iter().zip(&ids).map(put).collect() };
        let stream = tokio_stream::once(message);
        let mut answers = caller.files().put_chunks(caller.request(stream)).await?.into_inner();
        while answers.message().await?.is_some() {}
        let commit =
            |(place, upload): (usize, &Bytes)| commit_of(upload.clone(), &format!("/tiny-{batch}-{place}"));
        let uploads = ids.iter().enumerate().map(commit).collect();
        let message = v1::CommitUploadsRequest { request_id: request_id(), uploads, ..Default::default() };
        let answer = caller.files().commit_uploads(caller.request(message)).await?.into_inner();
        let made =
            |result: &&v1::EntryResult| matches!(result.result, Some(v1::entry_result::Result::Entry(_)));
        stored += answer.results.iter().filter(made).count();
    }
    Ok(stored)
}

#[test]
fn tiny_files_are_charged_what_they_cost() -> Result<()> {
    const QUOTA: u64 = 512 << 10;
    let _serial = serial();
    let arena = Arena::start()?;
    let neighbour = arena.neighbour("neighbour", QUOTA)?;
    let batches = Size::chosen().pick(12, 40, 40);
    let attack = async move { tiny_files(&neighbour, batches).await };
    let (stored, seen) = arena.watch("files of a few bytes", attack)?;
    // An entry, its version and its chunk are a few hundred bytes on three metadata disks.
    let most = usize::try_from(QUOTA / 100)?;
    ensure!(stored < most, "{stored} files of 9 bytes were stored at a quota of {} KiB", QUOTA >> 10);
    seen.survived()?;
    arena.finish()
}

/// Very long lists, again and again, of chunks as small and as large as any: what became of them, by code.
pub(crate) async fn long_lists(caller: &Caller, period: Duration) -> Result<BTreeMap<String, u32>> {
    let kinds = [(130_000, 1), (130_000, CHUNK_BYTES), (299_000, CHUNK_BYTES)];
    let lists = kinds.map(|(count, size)| (count, size, session("/long", &unknown_chunks(count, size))));
    let mut codes = BTreeMap::new();
    let begun = Instant::now();
    while begun.elapsed() < period {
        for (count, size, list) in &lists {
            let upload = v1::BeginUpload { upload_id: random_16(), ..list.clone() };
            let outcome = caller.begin(upload).await;
            let code = outcome.map_or_else(|status| status.code(), |_missing| Code::Ok);
            *codes.entry(format!("{count} × {size}: {code}")).or_insert(0) += 1;
        }
    }
    Ok(codes)
}

#[test]
fn a_long_list_is_refused_by_itself() -> Result<()> {
    let _serial = serial();
    let arena = Arena::start()?;
    let attacker = arena.neighbour("neighbour", 0)?;
    let others: Vec<Caller> =
        (0..8).map(|number| arena.neighbour(&format!("other-{number}"), 0)).collect::<Result<_>>()?;
    let period = Duration::from_secs(Size::chosen().pick(5, 60, 60));
    let attack = async move {
        let mut calling = tokio::task::JoinSet::new();
        for other in others {
            calling.spawn(async move {
                let (begun, mut failed) = (Instant::now(), Vec::new());
                let mut calls = 0;
                while begun.elapsed() < period {
                    if let Err(status) = other.make_folder(&format!("/{}", calls % 100)).await {
                        failed.push(status);
                    }
                    calls += 1;
                }
                (calls, failed)
            });
        }
        // Several, so that one waits with others' commands while another is on its way.
        let mut listing = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let attacker = attacker.clone();
            listing.spawn(async move { long_lists(&attacker, period).await });
        }
        let mut codes = BTreeMap::new();
        while let Some(of_one) = listing.join_next().await {
            for (code, count) in of_one?? {
                *codes.entry(code).or_insert(0) += count;
            }
        }
        let (mut calls, mut failed) = (0, Vec::new());
        while let Some(of_one) = calling.join_next().await {
            let (more, failures) = of_one?;
            calls += more;
            failed.extend(failures);
        }
        Ok((codes, calls, failed))
    };
    let ((codes, calls, failed), seen) = arena.watch("long chunk lists", attack)?;
    eprintln!("{codes:?}; {} of {calls} calls of others failed", failed.len());
    ensure!(failed.is_empty(), "{} of {calls} calls of others failed: {:?}", failed.len(), failed[0]);
    seen.survived()?;
    arena.finish()
}
