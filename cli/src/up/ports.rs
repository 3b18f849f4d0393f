//! Free ports, chosen once and kept.
//!
//! They are taken from below the range out of which the system gives ports to outgoing connections, so that none of
//! those is in the way at a later start.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::Context;

use super::layout::RoleName;
use crate::listen::wait_until_free;

const PORT_FIRST: u16 = 10_000;
const PORT_LAST: u16 = 31_999;
const TRIES_MAX: usize = 10_000;

/// Finds free ports on `ip`, each with its listener, which keeps others off until it is dropped.
#[derive(Debug)]
pub(crate) struct FreePorts {
    held: Vec<TcpListener>,
}

impl FreePorts {
    pub(crate) fn new() -> Self {
        Self { held: Vec::new() }
    }

    /// One more free port.
    pub(crate) fn take(&mut self, ip: IpAddr) -> anyhow::Result<SocketAddr> {
        for _ in 0..TRIES_MAX {
            let mut random = [0; 2];
            getrandom::fill(&mut random)
                .map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
            let port = PORT_FIRST + u16::from_le_bytes(random) % (PORT_LAST - PORT_FIRST + 1);
            let address = SocketAddr::new(ip, port);
            match TcpListener::bind(address) {
                Ok(listener) => {
                    self.held.push(listener);
                    return Ok(address);
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).with_context(|| format!("cannot listen on {address}")),
            }
        }
        anyhow::bail!("no free port on {ip} from {PORT_FIRST} to {PORT_LAST}")
    }

    /// This very port, or why not.
    pub(crate) fn take_exactly(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let listener = TcpListener::bind(address).with_context(|| taken("the gateway", address))?;
        self.held.push(listener);
        Ok(())
    }
}

fn taken(who: &str, address: SocketAddr) -> String {
    format!(
        "{who} cannot listen on {address}: stop what uses port {}, or make a cluster on another port with --listen \
         and --data",
        address.port()
    )
}

/// Checks that every role can listen, before any is started. Waits for processes that are being taken down.
pub(crate) fn check_free(addresses: &[(RoleName, SocketAddr)]) -> anyhow::Result<()> {
    for (name, address) in addresses {
        wait_until_free(*address).with_context(|| taken(&name.to_string(), *address))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_distinct() {
        let mut ports = FreePorts::new();
        let ip = IpAddr::from([127, 0, 0, 1]);
        let mut taken: Vec<u16> = (0..50).map(|_| ports.take(ip).unwrap().port()).collect();
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len(), 50);
        assert!(taken.iter().all(|port| (PORT_FIRST..=PORT_LAST).contains(port)));
    }

    #[test]
    fn a_taken_port_is_named() {
        let mut ports = FreePorts::new();
        let address = ports.take(IpAddr::from([127, 0, 0, 1])).unwrap();
        let error = ports.take_exactly(address).unwrap_err().to_string();
        assert!(error.contains(&address.port().to_string()), "{error}");
    }
}
