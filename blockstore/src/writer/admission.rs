//! Whether a put is written: by history, by epoch, and by what is stored already under its name.

use super::{Put, PutOutcome, VOLUMES_MAX, Writer, authority};
use crate::index::Row;
use crate::reader::{ReadFault, read_range};

/// Whether a put is to be written.
pub(super) enum Admission {
    Write { replaced: Option<Row> },
    Answer(PutOutcome),
}

impl Writer {
    /// Decides whether a put is written, by epoch and by what is stored already.
    pub(super) fn admit(&mut self, put: &Put) -> Admission {
        let header = &put.header;
        let refused = |reason| Admission::Answer(PutOutcome::Refused(reason));
        if let Some(reason) = self.core.refuses_writes() {
            return refused(reason);
        }
        if put.history < self.history {
            return refused(authority::stale_history(put.history, self.history));
        }
        let volume = header.name.stripe.volume();
        match self.epochs.get(&volume) {
            Some(current) if header.epoch < *current => {
                return Admission::Answer(PutOutcome::StaleEpoch(*current));
            }
            None if self.epochs.len() >= VOLUMES_MAX => {
                return refused(format!("the disk knows {VOLUMES_MAX} volumes, the most it can"));
            }
            _ => {}
        }
        let known = self.core.index.row(header.name);
        let (stored, damaged) =
            match known.and_then(|row| Ok((row, self.core.index.is_damaged(header.name)?))) {
                Ok((Some(row), damaged)) => (row, damaged),
                Ok((None, _)) => return Admission::Write { replaced: None },
                Err(error) => {
                    self.core.index_failed(&error);
                    return refused(error.to_string());
                }
            };
        if damaged {
            return Admission::Write { replaced: Some(stored) };
        }
        let same = stored.payload_length == header.payload_length;
        let read = read_range(&self.core.extents, header.name, &stored, 0, stored.payload_length);
        match read {
            Ok(bytes) if same && bytes == put.payload => Admission::Answer(PutOutcome::Stored),
            Ok(_other) => Admission::Answer(PutOutcome::Conflict(format!(
                "other bytes are stored as stripe={} position={}; a shard never changes",
                header.name.stripe, header.name.position
            ))),
            Err(ReadFault::Gone) => Admission::Write { replaced: Some(stored) },
            Err(fault @ (ReadFault::Damaged(_) | ReadFault::Io(_))) => {
                self.mark_damaged(header.name, &stored, matches!(fault, ReadFault::Io(_)));
                match self.core.refuses_writes() {
                    Some(reason) => refused(reason),
                    None => Admission::Write { replaced: Some(stored) },
                }
            }
        }
    }
}
