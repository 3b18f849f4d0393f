//! A node's certificate at another node's address: whoever calls has to look whom it reached before it says anything.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos::attack::arena::Arena;
use chaos::attack::impostor::Impostor;
use chaos::serial::serial;
use chaos::size::Size;

/// The file names of a node's certificate, as `keepstone up` lays them out: numbers among the kind, from 1.
struct Case {
    /// Whose address is taken.
    stopped: (&'static str, usize),
    /// Whose certificate is shown there.
    shown: &'static str,
}

const CASES: [Case; 5] = [
    Case { stopped: ("meta", 2), shown: "storage-1" },
    Case { stopped: ("meta", 2), shown: "gateway-1" },
    Case { stopped: ("meta", 2), shown: "meta-1" },
    Case { stopped: ("storage", 5), shown: "meta-1" },
    Case { stopped: ("storage", 3), shown: "storage-1" },
];

#[test]
fn a_nodes_certificate_does_not_serve_at_anothers_address() -> Result<()> {
    let _serial = serial();
    let mut arena = Arena::start()?;
    let hold = Duration::from_secs(Size::chosen().pick(3, 12, 12));
    let pki = arena.cluster.directory().join("pki");
    let mut told = Vec::new();
    for Case { stopped: name, shown } in CASES {
        let (kind, index) = name;
        let address = arena.cluster.roles(kind)[index].address.parse().context("an address")?;
        arena.cluster.kill(name)?;
        let impostor = arena.innocently(Impostor::start(address, &pki, shown))?;
        let begun = Instant::now();
        let innocent = arena.innocent().clone();
        let figures = arena.innocently(chaos::attack::innocent::for_a_while(&innocent, hold));
        let (requests, bytes) = impostor.requests();
        let what = format!("{shown} at the address of {kind}-{}", index + 1);
        eprintln!(
            "{what}: {} connections, {requests} requests with {bytes} bytes in {:?}; {figures}",
            impostor.connections(),
            begun.elapsed()
        );
        if requests > 0 {
            told.push(format!("{what}: {requests} requests with {bytes} bytes"));
        }
        // Metadata nodes look for each other without end; a storage node that is down may be left alone.
        ensure!(kind != "meta" || impostor.connections() > 0, "{what}: nobody came, so nothing is shown");
        figures.no_errors().context(what)?;
        arena.innocently(impostor.stop());
        arena.cluster.start_role(name)?;
    }
    ensure!(told.is_empty(), "an impostor was spoken to: {told:?}");
    arena.finish()
}
