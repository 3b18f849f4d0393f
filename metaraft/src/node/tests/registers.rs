//! A state machine for tests: named registers with the number of writes each has seen, and a running count.

use engine::ids::{GroupId, NamespaceId};

use crate::app::{App, Notice};
use crate::kv::{Changes, KeyRange, Read, Txn, View};

/// Commands: `set NAME VALUE`, `fail NAME VALUE` (writes, then refuses), `time`.
/// Queries: `get NAME`, `count`, `all`.
pub(crate) struct Registers;

const COUNT: &[u8] = b"count";

fn number(bytes: Option<Vec<u8>>) -> u64 {
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn register(name: &str) -> Vec<u8> {
    format!("r/{name}").into_bytes()
}

impl App for Registers {
    fn apply(&self, _group: GroupId, txn: &mut Txn<'_>, time_ms: u64, command: &[u8]) -> Vec<u8> {
        let text = String::from_utf8_lossy(command);
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
            ["time"] => Ok(time_ms.to_string()),
            _ => Err("unknown command".to_owned()),
        });
        result.unwrap_or_else(|refusal| refusal).into_bytes()
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
            _ => b"unknown query".to_vec(),
        }
    }

    fn notices(&self, changes: &Changes) -> Vec<Notice> {
        let count = changes.get(COUNT).cloned().flatten();
        let notice =
            |count| Notice { namespace: NamespaceId::from_bytes([0; 16]), sequence: number(Some(count)) };
        count.map(notice).into_iter().collect()
    }
}
