//! As much of HTTP as Syncthing's API needs: one request per connection, JSON both ways, over loopback.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

const TIME_MAX: Duration = Duration::from_secs(60);

/// Where the API is, and the key to it.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    pub(crate) key: String,
}

impl Api {
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        let body = self.request("GET", path, "")?;
        serde_json::from_str(&body).with_context(|| format!("GET {path}: {body}"))
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> anyhow::Result<()> {
        self.request("PUT", path, &body.to_string()).map(drop)
    }

    pub(crate) fn patch(&self, path: &str, body: &Value) -> anyhow::Result<()> {
        self.request("PATCH", path, &body.to_string()).map(drop)
    }

    fn request(&self, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(TIME_MAX))?;
        // HTTP/1.0: the answer ends with the connection, and has no chunks.
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nX-API-Key: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.key,
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        ensure!(status.starts_with('2'), "{method} {path}: {head}\n{body}");
        Ok(body.to_owned())
    }
}
