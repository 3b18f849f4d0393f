//! By whose order a disk is changed: the cluster's history and the epochs of its volumes. Older ones are refused.

use std::collections::BTreeMap;

use engine::ids::{Epoch, VolumeId};

use super::{VOLUMES_MAX, Writer};
use crate::index::IndexBatch;
use crate::locks::locked;
use crate::record::ShardName;

/// What the caller of a change knows of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Authority {
    /// The cluster's history.
    pub history: u64,
    /// The epochs of the volumes that are concerned.
    pub epochs: BTreeMap<VolumeId, Epoch>,
}

pub(super) fn stale_history(given: u64, known: u64) -> String {
    format!("history {given} is over: the cluster was restored since, and its history is {known} now")
}

impl Writer {
    /// Whether `authority` covers the volumes of `names` and is as new as what is known; else why not.
    pub(super) fn check_authority(&self, names: &[ShardName], authority: &Authority) -> Result<(), String> {
        if authority.history < self.history {
            return Err(stale_history(authority.history, self.history));
        }
        for name in names {
            let volume = name.stripe.volume();
            let known = self.epochs.get(&volume).copied().unwrap_or_default();
            match authority.epochs.get(&volume) {
                None => return Err(format!("no epoch was given for volume {}", volume.0)),
                Some(given) if *given < known => {
                    return Err(format!(
                        "epoch {} of volume {} is over: it is {} now",
                        given.0, volume.0, known.0
                    ));
                }
                Some(_current) => {}
            }
        }
        Ok(())
    }

    /// Obeys a newer history and newer epochs from now on; they are durable before anybody is refused by them.
    pub(super) fn raise_authority(&mut self, authority: &Authority) -> Result<(), String> {
        let known = |volume: &VolumeId| self.epochs.get(volume).copied().unwrap_or_default();
        let mut room = VOLUMES_MAX.saturating_sub(self.epochs.len());
        let raised: Vec<(VolumeId, Epoch)> = authority
            .epochs
            .iter()
            .filter(|(volume, epoch)| **epoch > known(volume))
            .filter(|(volume, _)| {
                let fits = self.epochs.contains_key(volume) || room > 0;
                room = room.saturating_sub(usize::from(!self.epochs.contains_key(volume)));
                fits
            })
            .map(|(volume, epoch)| (*volume, *epoch))
            .collect();
        if raised.is_empty() && authority.history <= self.history {
            return Ok(());
        }
        if let Some(reason) = self.core.refuses_reads() {
            return Err(reason);
        }
        let noted = locked(&self.core.logbook).raise_authority(authority.history, &raised);
        noted.map_err(|error| self.write_failed(&error))?;
        self.history = self.history.max(authority.history);
        let mut batch = IndexBatch::default();
        let mut fill = || {
            for (volume, epoch) in &raised {
                batch.set_epoch(*volume, *epoch)?;
            }
            Ok(())
        };
        let filled = fill();
        self.epochs.extend(raised.iter().copied());
        // The logbook has them; the index is only quicker.
        self.commit(filled.map(|()| batch), false)
    }

    /// Notes that the cluster has confirmed this start.
    pub(super) fn confirm(&self) {
        if self.core.refuses_reads().is_some() {
            return;
        }
        if let Err(error) = self.core.confirm() {
            let reason = self.write_failed(&error);
            tracing::warn!(disk = %self.core.extents.owner().disk, reason, "the disk's start was not noted as confirmed");
        }
    }
}
