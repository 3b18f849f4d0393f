//! Syncthing's API over loopback: JSON both ways.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;

const TIME_MAX: Duration = Duration::from_secs(60);

/// Where the API is, and the key to it.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    agent: Agent,
    base: String,
    key: String,
}

impl Api {
    pub(crate) fn new(address: SocketAddr, key: &str) -> Self {
        // No proxy of the environment: nothing leaves this machine.
        let config = Agent::config_builder().timeout_global(Some(TIME_MAX)).proxy(None).build();
        Self { agent: config.into(), base: format!("http://{address}"), key: key.to_owned() }
    }

    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.agent.get(format!("{}{path}", self.base)).header("X-API-Key", &self.key);
        Ok(request.call()?.body_mut().read_json()?)
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> anyhow::Result<()> {
        let request = self.agent.put(format!("{}{path}", self.base)).header("X-API-Key", &self.key);
        request.send_json(body)?;
        Ok(())
    }
}
