//! Whether an address can be listened on.
//!
//! A process that was killed holds its ports (and locks) until the system has taken it down, which a restart right
//! after it can outrun: so an address in use is waited for a moment before it is an error.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

/// How long an address may stay in use.
const IN_USE_TIME_MAX: Duration = Duration::from_secs(5);
const IN_USE_POLL: Duration = Duration::from_millis(20);

/// Waits until `address` can be listened on. Blocks the thread: for starts only.
///
/// # Errors
/// If it is still in use after [`IN_USE_TIME_MAX`], or cannot be listened on at all.
pub(crate) fn wait_until_free(address: SocketAddr) -> std::io::Result<()> {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Ok(_listener) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < IN_USE_TIME_MAX => {
                std::thread::sleep(IN_USE_POLL);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_becomes_free_in_time_is_no_error() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        let waiting = std::thread::spawn(move || wait_until_free(address));
        drop(held);
        assert!(waiting.join().unwrap().is_ok());
    }
}
