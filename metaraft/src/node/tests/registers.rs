//! A state machine for tests: named registers with the number of writes each has seen, and a running count.

use std::time::Duration;

use engine::ids::{GroupId, NamespaceId};

use crate::app::{App, Made, NotUnderstood, Notice};
use crate::kv::{Changes, KeyRange, Read, Txn, View};
use crate::node::COMMAND_BYTES_MAX;

/// Commands: `set NAME VALUE`, `fail NAME VALUE` (writes, then refuses), `new NAME` (which some do not know), `time`,
/// `say BYTES` (an outcome of so many).
/// Queries: `get NAME`, `count`, `all`, `long` (which takes a second).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Registers {
    /// Whether it is of an older version.
    pub(crate) knows_less: bool,
}

const COUNT: &[u8] = b"count";

fn number(bytes: Option<Vec<u8>>) -> u64 {
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn register(name: &str) -> Vec<u8> {
    format!("r/{name}").into_bytes()
}

impl App for Registers {
    fn apply(
        &self,
        _group: GroupId,
        txn: &mut Txn<'_>,
        made: Made,
        command: &[u8],
    ) -> Result<Vec<u8>, NotUnderstood> {
        let text = String::from_utf8_lossy(command);
        if self.knows_less && text.starts_with("new ") {
            return Err(NotUnderstood { why: "a step called new".to_owned() });
        }
        let result = txn.attempt(|txn| match text.splitn(3, ' ').collect::<Vec<_>>()[..] {
            ["set", name, value] => {
                let count = number(txn.get(COUNT)) + 1;
                txn.put(COUNT, count.to_string().into_bytes());
                txn.put(&register(name), value.as_bytes().to_vec());
                Ok(count.to_string())
            }
            ["fail", name, value] => {
                txn.put(&register(name), value.as_bytes().to_vec());
                Err("refused".to_owned())
            }
            ["new", name] => {
                txn.put(&register(name), b"new".to_vec());
                Ok("new".to_owned())
            }
            ["say", bytes] => Ok("x".repeat(bytes.parse().unwrap_or(0))),
            ["time"] => Ok(made.time.time_ms.to_string()),
            _ => Err("unknown command".to_owned()),
        });
        Ok(result.unwrap_or_else(|refusal| refusal).into_bytes())
    }

    fn refusal(&self, _group: GroupId, command: &[u8]) -> Option<Vec<u8>> {
        if command.len() > COMMAND_BYTES_MAX {
            return Some(b"too large".to_vec());
        }
        command.starts_with(b"bad").then(|| b"not proposed".to_vec())
    }

    fn refusal_at_reserve(&self, command: &[u8]) -> Option<Vec<u8>> {
        (!command.starts_with(b"free")).then(|| b"no space".to_vec())
    }

    fn query(&self, _group: GroupId, view: &View<'_>, query: &[u8]) -> Vec<u8> {
        let text = String::from_utf8_lossy(query);
        match text.splitn(2, ' ').collect::<Vec<_>>()[..] {
            ["get", name] => view.get(&register(name)).unwrap_or_default(),
            ["count"] => number(view.get(COUNT)).to_string().into_bytes(),
            ["all"] => {
                let rows = view.scan(&KeyRange::all(), usize::MAX);
                let digest = rows.iter().map(|(key, value)| format!("{key:?}={value:?}")).collect::<Vec<_>>();
                digest.join(";").into_bytes()
            }
            ["long"] => {
                std::thread::sleep(Duration::from_secs(1));
                b"long".to_vec()
            }
            _ => b"unknown query".to_vec(),
        }
    }

    fn may_take_long(&self, query: &[u8]) -> bool {
        query == b"long"
    }

    fn notices(&self, changes: &Changes) -> Vec<Notice> {
        let count = changes.get(COUNT).cloned().flatten();
        let notice =
            |count| Notice { namespace: NamespaceId::from_bytes([0; 16]), sequence: number(Some(count)) };
        count.map(notice).into_iter().collect()
    }
}
