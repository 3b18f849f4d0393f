//! Compiles the .proto files, without protoc.

use std::path::PathBuf;

use prost::Message;

const PUBLIC: [&str; 3] =
    ["proto/keepstone/v1/keepstone.proto", "proto/keepstone/v1/sync.proto", "proto/keepstone/v1/admin.proto"];
const INTERNAL: [&str; 2] =
    ["proto/keepstone/internal/v1/storage.proto", "proto/keepstone/internal/v1/meta.proto"];

const DAEMON: [&str; 1] = ["proto/keepstone/daemon/v1/daemon.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in PUBLIC.iter().chain(&INTERNAL).chain(&DAEMON) {
        println!("cargo:rerun-if-changed={file}");
    }
    let public = protox::compile(PUBLIC, ["proto"])?;
    let internal = protox::compile(INTERNAL, ["proto"])?;
    let daemon = protox::compile(DAEMON, ["proto"])?;
    // Server reflection tells clients of the public package only, and nothing of the cluster's inside.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("keepstone.v1.descriptor"), public.encode_to_vec())?;
    for package in [public, internal, daemon] {
        tonic_prost_build::configure()
            .bytes(".")
            .codec_path("crate::codec::PayloadCodec")
            .compile_fds(package)?;
    }
    Ok(())
}
