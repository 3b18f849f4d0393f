//! Promise 6, measured: how long chunks take does not tell whether somebody else has them.
//!
//! A short form for every run; `KEEPSTONE_ORACLE_TRIES=1000` measures as many of each kind and size.

use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::ids::ChunkId;
use proto::v1;
use rand::seq::SliceRandom;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::cluster::{Client, Cluster, random, request_id};
use crate::noise;

/// Chunks of each kind and size, unless the environment says otherwise.
const TRIES: usize = 120;

/// The smallest chunks of which a file has several.
const SMALL_BYTES: usize = 16 << 10;

/// By chance alone one comparison of a hundred is below; two of the same, one of twenty thousand.
const P_MIN: f64 = 0.01;
const ROUNDS: usize = 2;

/// A chunk of one session.
struct Chunk {
    upload: Bytes,
    id: Bytes,
    data: Bytes,
    known: bool,
}

fn chunks(seed: u64, count: usize, bytes: usize, known: bool) -> Vec<Chunk> {
    let chunk = |number: u64| {
        let data: Bytes = noise(seed.wrapping_add(number), bytes).into();
        let id = Bytes::copy_from_slice(ChunkId::of(&data).as_bytes());
        Chunk { upload: Bytes::new(), id, data, known }
    };
    (0..count as u64).map(chunk).collect()
}

/// Begins one session for all of them.
async fn begin(client: &Client, chunks: &mut [Chunk]) {
    let upload_id = Bytes::copy_from_slice(&random::<16>());
    let upload = v1::BeginUpload {
        upload_id: upload_id.clone(),
        size: chunks.iter().map(|chunk| chunk.data.len() as u64).sum(),
        cutter: v1::Cutter::Cdc64k.into(),
        chunks: Some(v1::ChunkList {
            ids: chunks.iter().flat_map(|chunk| chunk.id.to_vec()).collect::<Vec<u8>>().into(),
            sizes: chunks.iter().map(|chunk| u32::try_from(chunk.data.len()).unwrap()).collect(),
        }),
        ..v1::BeginUpload::default()
    };
    let request = v1::BeginUploadsRequest { request_id: request_id(), uploads: vec![upload] };
    let begun = client.files().begin_uploads(client.request(request)).await.unwrap().into_inner();
    assert_eq!(
        begun.uploads[0].missing.len(),
        chunks.len(),
        "all are to be sent: {:?}",
        begun.uploads[0].error
    );
    chunks.iter_mut().for_each(|chunk| chunk.upload = upload_id.clone());
}

/// One stream of chunks, each sent when the one before was answered.
struct Stream {
    messages: mpsc::Sender<v1::PutChunksRequest>,
    answers: Streaming<v1::PutChunksResponse>,
}

impl Stream {
    async fn open(client: &Client) -> Self {
        let (messages, receiver) = mpsc::channel(1);
        let stream = ReceiverStream::new(receiver);
        let answers = client.files().put_chunks(client.request(stream)).await.unwrap().into_inner();
        Self { messages, answers }
    }

    async fn put(&mut self, chunk: &Chunk) -> Duration {
        let chunk = v1::PutChunk {
            upload_ids: vec![chunk.upload.clone()],
            id: chunk.id.clone(),
            data: chunk.data.clone(),
        };
        let began = Instant::now();
        self.messages.send(v1::PutChunksRequest { chunks: vec![chunk] }).await.unwrap();
        let answer = self.answers.message().await.unwrap().unwrap();
        assert!(answer.results.iter().all(|result| result.error.is_none()), "{answer:?}");
        began.elapsed()
    }
}

async fn put_all(client: &Client, mut chunks: Vec<Chunk>) {
    begin(client, &mut chunks).await;
    let mut stream = Stream::open(client).await;
    for chunk in &chunks {
        stream.put(chunk).await;
    }
}

/// A second account, without a quota.
async fn attacker(cluster: &Cluster, admin: &Client) -> Client {
    let (email, password) = ("mallory@x.org".to_owned(), "hunter2hunter2".to_owned());
    let create = v1::CreateAccountRequest {
        request_id: request_id(),
        email: email.clone(),
        name: "Mallory".to_owned(),
        password: password.clone(),
        quota_bytes: 0,
        admin: false,
    };
    admin.admin().create_account(admin.request(create)).await.unwrap();
    let sign_in = v1::SignInRequest { email, password, device_name: "laptop".to_owned() };
    let token = admin.accounts().sign_in(sign_in).await.unwrap().into_inner().token;
    cluster.client().await.with_token(token)
}

/// Two-sided p of the rank-sum test (Mann and Whitney, normal approximation), and whether `one` is the larger.
#[expect(clippy::cast_precision_loss, reason = "some thousand tries")]
fn rank_sum(one: &[Duration], other: &[Duration]) -> (f64, bool) {
    let mut all: Vec<(Duration, bool)> = one.iter().map(|time| (*time, true)).collect();
    all.extend(other.iter().map(|time| (*time, false)));
    all.sort_unstable();
    let ranks: usize = (1..).zip(&all).filter(|(_rank, (_time, of_one))| *of_one).map(|(rank, _)| rank).sum();
    let (n, m) = (one.len() as f64, other.len() as f64);
    let u = ranks as f64 - n * (n + 1.0) / 2.0;
    let z = (u - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt();
    (2.0 * normal_tail(z.abs()), z > 0.0)
}

/// The normal distribution beyond `z` (Abramowitz and Stegun, 26.2.17).
fn normal_tail(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let series = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let sum = series.iter().rev().fold(0.0, |sum, part| (sum + part) * t);
    (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * sum
}

fn median_ms(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

/// Times of chunks that the victim has, and of chunks that nobody has, in random order.
async fn round(victim: &Client, attacker: &Client, seed: u64, bytes: usize, tries: usize) -> (f64, bool) {
    put_all(victim, chunks(seed, tries, bytes, true)).await;
    let mut mixed = chunks(seed, tries, bytes, true);
    mixed.extend(chunks(seed ^ 0x5555_0000_0000, tries, bytes, false));
    mixed.shuffle(&mut rand::rng());
    // What the attacker did before: small chunks, which are answered fast.
    put_all(attacker, chunks(seed ^ 0x7777_0000_0000, 64, SMALL_BYTES, false)).await;
    begin(attacker, &mut mixed).await;
    let mut stream = Stream::open(attacker).await;
    let (mut known, mut fresh) = (Vec::new(), Vec::new());
    for chunk in &mixed {
        let time = stream.put(chunk).await;
        if chunk.known { known.push(time) } else { fresh.push(time) }
    }
    let (p, larger) = rank_sum(&known, &fresh);
    eprintln!(
        "{bytes} bytes, {tries} each: known {:.2} ms, fresh {:.2} ms, p = {p:.2e}",
        median_ms(&known),
        median_ms(&fresh)
    );
    (p, larger)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn time_does_not_tell_whether_others_have_a_chunk() {
    let tries = std::env::var("KEEPSTONE_ORACLE_TRIES").ok().map(|text| text.parse().unwrap());
    let tries = tries.unwrap_or(TRIES);
    let cluster = Cluster::start(1).await;
    let victim = cluster.client().await;
    let attacker = attacker(&cluster, &victim).await;
    for (number, bytes) in [SMALL_BYTES, 64 << 10, 1 << 20].into_iter().enumerate() {
        let mut told = Vec::new();
        for each in 0..ROUNDS {
            let seed = u64::from_be_bytes(random::<8>()) >> 16 | (number * ROUNDS + each) as u64;
            let (p, larger) = round(&victim, &attacker, seed, bytes, tries).await;
            if p > P_MIN {
                told.clear();
                break;
            }
            told.push(larger);
        }
        assert!(
            told.len() < ROUNDS || told.windows(2).any(|pair| pair[0] != pair[1]),
            "known and fresh chunks of {bytes} bytes can be told apart"
        );
    }
    drop((victim, attacker));
    cluster.stop().await;
}

#[test]
fn the_rank_sum_test_sees_what_differs_and_nothing_else() {
    let times =
        |from: u64| (0..400).map(|n| Duration::from_micros(from + n * 7919 % 1000)).collect::<Vec<_>>();
    assert!(rank_sum(&times(0), &times(1)).0 > 0.1);
    let (p, larger) = rank_sum(&times(150), &times(0));
    assert!(p < 1e-4 && larger, "{p}");
    assert!((normal_tail(1.96) - 0.025).abs() < 1e-4);
}
