//! A network between a device and its gateway that can be cut, or fall silent, and that counts what goes over it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context as _;

/// One read's worth.
const BUFFER_BYTES: usize = 64 << 10;

/// How the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// It works.
    Up,
    /// Connections break, and new ones are closed at once.
    Cut,
    /// Nothing arrives any more, and nobody is told: as when packets are lost.
    Silent,
    /// The proxy has ended.
    Gone,
}

#[derive(Debug)]
struct State {
    network: Network,
    connections: Vec<TcpStream>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while it is silent; whether bytes may go on.
    fn passes(&self) -> bool {
        let mut state = self.state();
        while state.network == Network::Silent {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.network == Network::Up
    }
}

/// A proxy on a port of its own. It ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where devices connect to.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Begins to pass on what comes to a free port of `host` to `target`.
    ///
    /// # Errors
    /// If there is no port.
    pub fn start(host: &str, target: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((host, 0)).with_context(|| format!("listen on {host}"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { network: Network::Up, connections: Vec::new() }),
            changed: Condvar::new(),
            up_bytes: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
        });
        let (target, passing) = (target.to_owned(), Arc::clone(&shared));
        let accepting = std::thread::spawn(move || accept(&listener, &target, &passing));
        Ok(Self { address, shared, accepting: Some(accepting) })
    }

    /// Changes how the network is.
    pub fn set(&self, network: Network) {
        let mut state = self.shared.state();
        state.network = network;
        if network != Network::Up && network != Network::Silent {
            for connection in state.connections.drain(..) {
                // It may have ended by itself.
                connection.shutdown(Shutdown::Both).ok();
            }
        }
        self.shared.changed.notify_all();
    }

    /// Bytes that went to the gateway, and from it, TLS and all.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.shared.up_bytes.load(Ordering::Relaxed), self.shared.down_bytes.load(Ordering::Relaxed))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Network::Gone);
        // Wakes the accepting thread.
        TcpStream::connect(self.address).ok();
        if let Some(thread) = self.accepting.take() {
            thread.join().ok();
        }
    }
}

fn accept(listener: &TcpListener, target: &str, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        match shared.state().network {
            Network::Gone => return,
            Network::Cut => continue,
            Network::Up | Network::Silent => {}
        }
        let Ok(client) = client else { continue };
        let Ok(server) = TcpStream::connect(target) else { continue };
        for stream in [&client, &server] {
            stream.set_nodelay(true).ok();
        }
        let (Ok(client_again), Ok(server_again)) = (client.try_clone(), server.try_clone()) else { continue };
        if let (Ok(a), Ok(b)) = (client.try_clone(), server.try_clone()) {
            shared.state().connections.extend([a, b]);
        }
        let (up, down) = (Arc::clone(shared), Arc::clone(shared));
        std::thread::spawn(move || pass(client, server, &up, &up.up_bytes));
        std::thread::spawn(move || pass(server_again, client_again, &down, &down.down_bytes));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, shared: &Shared, count: &AtomicU64) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        if !shared.passes() {
            break;
        }
        // Before they go: whoever has them finds them counted.
        count.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        if to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_cut_breaks_and_silence_keeps() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in server.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
                    std::io::copy(&mut from, &mut to).ok();
                });
            }
        });
        let proxy = Proxy::start("127.0.0.1", &target).unwrap();
        let mut client = TcpStream::connect(proxy.address).unwrap();
        let echo = |client: &mut TcpStream| -> std::io::Result<()> {
            client.write_all(b"abc")?;
            client.read_exact(&mut [0; 3])
        };
        echo(&mut client).unwrap();
        assert_eq!(proxy.bytes(), (3, 3));
        proxy.set(Network::Silent);
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(echo(&mut client).is_err());
        proxy.set(Network::Up);
        client.set_read_timeout(None).unwrap();
        client.read_exact(&mut [0; 3]).unwrap();
        proxy.set(Network::Cut);
        assert!(echo(&mut client).is_err());
        proxy.set(Network::Up);
        let mut client = TcpStream::connect(proxy.address).unwrap();
        echo(&mut client).unwrap();
    }
}
