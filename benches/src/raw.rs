//! What the machine gives by itself, without Keepstone: the yardsticks for every other figure of the same minute.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use engine::code::Code;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::figure::{Figure, megabytes_per_second, per_second};

const MIB: usize = 1 << 20;
/// Hashed or coded in one go.
const BLOCK_BYTES: usize = 4 * MIB;
const COMPUTE_BLOCKS: usize = 64;
const LOOPBACK_BYTES: usize = 1024 * MIB;
const DISK_BLOCKS: usize = 48;
const SMALL_WRITES: usize = 300;

/// All raw figures, once.
///
/// # Errors
/// If the machine refuses.
pub(crate) fn measure(scratch: &Path) -> anyhow::Result<Vec<Figure>> {
    Ok(vec![
        Figure::new("SHA-256, one core", "MB/s", hash()),
        Figure::new("Reed-Solomon 4+2, one core", "MB/s", coding()?),
        Figure::new("TCP over loopback", "MB/s", tcp()?),
        Figure::new("TLS over loopback", "MB/s", tls()?),
        Figure::new("4 MiB writes, fdatasync each", "MB/s", large_writes(scratch)?),
        Figure::new("4 KiB writes, fdatasync each", "1/s", small_writes(scratch)?),
    ])
}

fn block() -> Vec<u8> {
    let mut state = 1_u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..BLOCK_BYTES).map(next).collect()
}

fn hash() -> f64 {
    let block = block();
    let started = Instant::now();
    for _ in 0..COMPUTE_BLOCKS {
        std::hint::black_box(engine::hash::sha256(std::hint::black_box(&block)));
    }
    megabytes_per_second(COMPUTE_BLOCKS * BLOCK_BYTES, started.elapsed())
}

fn coding() -> anyhow::Result<f64> {
    let code: Code = "4+2".parse().context("code 4+2")?;
    let stripe = bytes_of(block());
    let started = Instant::now();
    for _ in 0..COMPUTE_BLOCKS {
        std::hint::black_box(engine::coding::encode(code, std::hint::black_box(&stripe)));
    }
    Ok(megabytes_per_second(COMPUTE_BLOCKS * BLOCK_BYTES, started.elapsed()))
}

fn bytes_of(block: Vec<u8>) -> bytes::Bytes {
    block.into()
}

fn tcp() -> anyhow::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let reader = std::thread::spawn(move || -> std::io::Result<usize> {
        let (mut stream, _peer) = listener.accept()?;
        let mut buffer = vec![0; MIB];
        let mut sum = 0;
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(sum),
                count => sum += count,
            }
        }
    });
    let started = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    let buffer = vec![7; MIB];
    for _ in 0..LOOPBACK_BYTES / MIB {
        stream.write_all(&buffer)?;
    }
    drop(stream);
    let read = reader.join().map_err(|panic| anyhow::anyhow!("the reader panicked: {panic:?}"))??;
    Ok(megabytes_per_second(read, started.elapsed()))
}

fn tls() -> anyhow::Result<f64> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(tls_transfer())
}

async fn tls_transfer() -> anyhow::Result<f64> {
    let (server, client) = tls_configs()?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let acceptor = tokio_rustls::TlsAcceptor::from(server);
    let reader = tokio::spawn(async move {
        let (stream, _peer) = listener.accept().await?;
        let mut stream = acceptor.accept(stream).await?;
        let mut buffer = vec![0; MIB];
        let mut sum = 0;
        while sum < LOOPBACK_BYTES {
            sum += stream.read(&mut buffer).await?;
        }
        Ok::<usize, std::io::Error>(sum)
    });
    let stream = tokio::net::TcpStream::connect(address).await?;
    let name = rustls::pki_types::ServerName::try_from("localhost")?;
    let mut stream = tokio_rustls::TlsConnector::from(client).connect(name, stream).await?;
    let started = Instant::now();
    let buffer = vec![7; MIB];
    for _ in 0..LOOPBACK_BYTES / MIB {
        stream.write_all(&buffer).await?;
    }
    stream.flush().await?;
    let read = reader.await??;
    Ok(megabytes_per_second(read, started.elapsed()))
}

type TlsConfigs = (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>);

fn tls_configs() -> anyhow::Result<TlsConfigs> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der())
        .map_err(|reason| anyhow::anyhow!("key: {reason}"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate)?;
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok((Arc::new(server), Arc::new(client)))
}

fn large_writes(scratch: &Path) -> anyhow::Result<f64> {
    let path = scratch.join("raw-large");
    let file = File::create(&path)?;
    let block = block();
    let started = Instant::now();
    for index in 0..DISK_BLOCKS {
        file.write_all_at(&block, u64::try_from(index * BLOCK_BYTES)?)?;
        file.sync_data()?;
    }
    let elapsed = started.elapsed();
    std::fs::remove_file(path)?;
    Ok(megabytes_per_second(DISK_BLOCKS * BLOCK_BYTES, elapsed))
}

fn small_writes(scratch: &Path) -> anyhow::Result<f64> {
    let path = scratch.join("raw-small");
    let file = File::create(&path)?;
    let block = [7; 4096];
    let started = Instant::now();
    for index in 0..SMALL_WRITES {
        file.write_all_at(&block, u64::try_from(index * block.len())?)?;
        file.sync_data()?;
    }
    let elapsed = started.elapsed();
    std::fs::remove_file(path)?;
    Ok(per_second(SMALL_WRITES, elapsed))
}
