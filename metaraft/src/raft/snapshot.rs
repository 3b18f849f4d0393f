//! A group's state on its way from one node to another, in parts.
//!
//! A part is a CRC-32 (4 bytes, little-endian) of its body, then the body: rows, or the end with their number. The
//! receiver keeps the parts in a file, each after its length (4 bytes, little-endian), and installs from there.
//!
//! Invariants:
//! - A snapshot without its end, or with another number of rows, is never installed.
//! - Parts are bounded: [`PART_BYTES`] of rows, or one row.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use serde::{Deserialize, Serialize};

use super::receiving::ReceivedFile;
use super::state_database::PinnedState;
use super::types::{decode, encode};
use crate::kv::{Backing, KeyRange, Row};

/// Bytes of rows in a part, unless one row is larger.
const PART_BYTES: usize = 1024 * 1024;
/// Rows, and bytes of them (but at least one row), that are read at once when a snapshot is sent.
const READ_ROWS: usize = 256;
const READ_BYTES: usize = PART_BYTES;
/// Bytes of a part that a receiver takes.
const PART_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What openraft passes around for a snapshot.
#[derive(Debug)]
pub(crate) enum SnapshotData {
    /// This node's own state, at one moment.
    Own(PinnedState),
    /// A whole snapshot that came from another node.
    Received(ReceivedSnapshot),
}

#[derive(Serialize, Deserialize)]
enum Body {
    Rows(#[serde(with = "rows")] Vec<Row>),
    End { rows: u64, time_ms: u64 },
}

mod rows {
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_bytes::{ByteBuf, Bytes};

    use crate::kv::Row;

    pub(super) fn serialize<S: Serializer>(rows: &[Row], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(rows.iter().map(|(key, value)| (Bytes::new(key), Bytes::new(value))))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Row>, D::Error> {
        let rows = Vec::<(ByteBuf, ByteBuf)>::deserialize(deserializer)?;
        Ok(rows.into_iter().map(|(key, value)| (key.into_vec(), value.into_vec())).collect())
    }
}

fn sealed(body: &Body) -> io::Result<Vec<u8>> {
    let body = encode(body)?;
    Ok([crc32fast::hash(&body).to_le_bytes().as_slice(), &body].concat())
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot: {what}"))
}

fn opened(part: &[u8]) -> io::Result<Body> {
    let (sum, body) = part.split_at_checked(4).ok_or_else(|| damaged("a part is too short"))?;
    if crc32fast::hash(body).to_le_bytes() != sum {
        return Err(damaged("a part is damaged"));
    }
    decode(body)
}

/// Reads a group's state and hands it out a bounded number of rows at a time, until `take` says that nobody wants
/// more.
fn read_rows(state: &PinnedState, mut take: impl FnMut(Vec<Row>) -> io::Result<bool>) -> io::Result<()> {
    let view = state.view();
    let mut range = KeyRange::all();
    loop {
        let (mut rows, mut bytes): (Vec<Row>, usize) = (Vec::new(), 0);
        let mut keep = |key: &[u8], value: &[u8]| {
            bytes += key.len() + value.len();
            rows.push((key.to_vec(), value.to_vec()));
            rows.len() < READ_ROWS && bytes < READ_BYTES
        };
        view.visit(&range, &mut keep).map_err(io::Error::other)?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        range.from = [last.as_slice(), &[0]].concat();
        if !take(rows)? {
            return Ok(());
        }
    }
}

/// Reads a group's state and hands it out part by part, until `send` says that nobody wants more.
///
/// # Errors
/// If the database cannot be read.
pub(crate) fn send_parts(state: &PinnedState, mut send: impl FnMut(Vec<u8>) -> bool) -> io::Result<()> {
    let (mut count, mut bytes, mut waiting, mut wanted) = (0, 0, Vec::new(), true);
    read_rows(state, |rows| {
        for row in rows {
            bytes += row.0.len() + row.1.len();
            count += 1;
            waiting.push(row);
            if bytes >= PART_BYTES && wanted {
                bytes = 0;
                wanted = send(sealed(&Body::Rows(std::mem::take(&mut waiting)))?);
            }
        }
        Ok(wanted)
    })?;
    if wanted && !waiting.is_empty() {
        wanted = send(sealed(&Body::Rows(waiting))?);
    }
    if wanted {
        send(sealed(&Body::End { rows: count, time_ms: state.meta().time_ms })?);
    }
    Ok(())
}

impl SnapshotData {
    /// The leader's time of the last batch that it holds.
    pub(crate) fn time_ms(&self) -> u64 {
        match self {
            Self::Own(state) => state.meta().time_ms,
            Self::Received(received) => received.time_ms,
        }
    }

    /// Reads all its rows, a bounded number at a time. Blocks.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or `take` fails.
    pub(crate) fn read(&self, mut take: impl FnMut(&[Row]) -> io::Result<()>) -> io::Result<()> {
        match self {
            Self::Own(state) => read_rows(state, |rows| take(&rows).map(|()| true)),
            Self::Received(received) => received.read(take),
        }
    }
}

/// Takes parts as they arrive.
pub(crate) struct SnapshotReceiver {
    kept: ReceivedFile,
    file: BufWriter<File>,
    rows: u64,
    time_ms: Option<u64>,
}

impl SnapshotReceiver {
    /// Keeps the parts in a file of their own, which goes with this unless the snapshot becomes whole.
    pub(crate) fn create(kept: ReceivedFile) -> io::Result<Self> {
        let file = BufWriter::new(kept.create()?);
        Ok(Self { kept, file, rows: 0, time_ms: None })
    }

    /// Checks and keeps the next part.
    pub(crate) fn take(&mut self, part: &[u8]) -> io::Result<()> {
        if self.time_ms.is_some() || part.len() > PART_BYTES_MAX {
            return Err(damaged("a part too many, or too large"));
        }
        match opened(part)? {
            Body::Rows(rows) => self.rows += rows.len() as u64,
            Body::End { rows, time_ms } if rows == self.rows => self.time_ms = Some(time_ms),
            Body::End { .. } => return Err(damaged("rows are missing")),
        }
        let length = u32::try_from(part.len()).map_err(io::Error::other)?;
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(part)?;
        self.kept.progress().advance();
        Ok(())
    }

    /// The snapshot, if its end has come.
    pub(crate) fn finish(mut self) -> io::Result<ReceivedSnapshot> {
        let time_ms = self.time_ms.ok_or_else(|| damaged("the end is missing"))?;
        self.file.flush()?;
        Ok(ReceivedSnapshot { kept: self.kept, rows: self.rows, time_ms })
    }
}

/// A whole snapshot in a file, which goes when this goes.
#[derive(Debug)]
pub(crate) struct ReceivedSnapshot {
    kept: ReceivedFile,
    rows: u64,
    time_ms: u64,
}

impl ReceivedSnapshot {
    /// Reads it back, part by part, checking again.
    fn read(&self, mut take: impl FnMut(&[Row]) -> io::Result<()>) -> io::Result<()> {
        let mut file = BufReader::new(self.kept.open()?);
        let mut count = 0;
        loop {
            let mut length = [0; 4];
            file.read_exact(&mut length)?;
            let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
            if length > PART_BYTES_MAX {
                return Err(damaged("a part is too large"));
            }
            let mut part = vec![0; length];
            file.read_exact(&mut part)?;
            match opened(&part)? {
                Body::Rows(rows) => {
                    count += rows.len() as u64;
                    self.kept.progress().installing();
                    take(&rows)?;
                }
                Body::End { .. } if count == self.rows => return Ok(()),
                Body::End { .. } => return Err(damaged("rows are missing")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use engine::ids::GroupId;

    use super::*;
    use crate::kv::Changes;
    use crate::raft::receiving::Receiving;
    use crate::raft::state_database::{StateDatabase, StateMeta};

    fn parts() -> (tempfile::TempDir, Vec<Row>, Vec<Vec<u8>>) {
        let directory = tempfile::tempdir().unwrap();
        let database =
            StateDatabase::open(&directory.path().join("state"), [GroupId(1)].into_iter()).unwrap();
        let rows: Vec<Row> =
            (0..3000_u32).map(|index| (index.to_be_bytes().to_vec(), vec![7; 1000])).collect();
        let changes = rows.iter().map(|(key, value)| (key.clone(), Some(value.clone())));
        let meta = StateMeta { time_ms: 5, ..StateMeta::default() };
        database.write(GroupId(1), changes.collect::<Changes>(), &meta).unwrap();
        let state = PinnedState::new(Arc::new(database), GroupId(1)).unwrap();
        let mut parts = Vec::new();
        send_parts(&state, |part| {
            parts.push(part);
            true
        })
        .unwrap();
        (directory, rows, parts)
    }

    fn receive(directory: &tempfile::TempDir, parts: &[Vec<u8>]) -> io::Result<ReceivedSnapshot> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let receiving = Receiving::new(directory.path().to_owned(), GroupId(1));
        let kept = runtime.block_on(receiving.begin(Duration::ZERO)).unwrap();
        let mut receiver = SnapshotReceiver::create(kept)?;
        parts.iter().try_for_each(|part| receiver.take(part))?;
        receiver.finish()
    }

    #[test]
    fn large_rows_are_read_a_few_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let database =
            StateDatabase::open(&directory.path().join("state"), [GroupId(1)].into_iter()).unwrap();
        let rows = (0..20_u32).map(|index| (index.to_be_bytes().to_vec(), Some(vec![7; READ_BYTES / 4])));
        database.write(GroupId(1), rows.collect::<Changes>(), &StateMeta::default()).unwrap();
        let state = PinnedState::new(Arc::new(database), GroupId(1)).unwrap();
        let mut counts = Vec::new();
        read_rows(&state, |rows| {
            counts.push(rows.len());
            Ok(true)
        })
        .unwrap();
        assert_eq!(counts, [4; 5]);
    }

    #[test]
    fn a_snapshot_arrives_whole_in_bounded_parts() {
        let (directory, rows, parts) = parts();
        assert!(parts.len() > 3 && parts.iter().all(|part| part.len() < 2 * PART_BYTES));
        let received = SnapshotData::Received(receive(&directory, &parts).unwrap());
        let mut found = Vec::new();
        received
            .read(|rows| {
                found.extend_from_slice(rows);
                Ok(())
            })
            .unwrap();
        assert_eq!((found, received.time_ms()), (rows, 5));
    }

    #[test]
    fn a_damaged_or_incomplete_snapshot_is_refused() {
        let (directory, _rows, parts) = parts();
        assert!(receive(&directory, &parts[..parts.len() - 1]).is_err(), "the end is missing");
        assert!(receive(&directory, &parts[1..]).is_err(), "a part is missing");
        assert!(receive(&directory, &[parts.clone(), parts.clone()].concat()).is_err(), "a part too many");
        let mut flipped = parts.clone();
        flipped[0][500] ^= 1;
        assert!(receive(&directory, &flipped).is_err(), "a bit is flipped");
        assert!(receive(&directory, &[vec![1, 2]]).is_err(), "a part is too short");
    }
}
