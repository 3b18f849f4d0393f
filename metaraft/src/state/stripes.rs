//! Stripes, how many lack which positions, the oldest epochs that are taken, and the slots that the group owns.
//!
//! Invariants:
//! - A stripe's record is registered once and is the same for ever, until repair changes what is missing.
//! - The counts by volume and positions are those of the stripe rows.
//! - Once a volume is fenced at an epoch, no registration of an older one is taken.

use engine::cluster::StripeRecord;
use engine::ids::{Epoch, SLOT_COUNT, SlotId, VolumeId};

use super::keys;
use super::txn::{Group, invalid};
use crate::model::command::StepError;
use crate::model::outcome::StepOutcome;
use crate::model::row::StripeCount;

fn check_record(record: &StripeRecord) -> Result<(), StepError> {
    let within = record.used.iter().all(|position| usize::from(position.0) < record.code.total());
    let missing_used = record.missing.iter().all(|position| record.used.contains(position));
    if record.used.is_empty() || !within || !missing_used || record.shape.length == 0 {
        return Err(invalid("a stripe's positions are not those of its code, or it is empty"));
    }
    Ok(())
}

impl Group<'_, '_> {
    pub(super) fn slots_adopt(&mut self, first: SlotId, last: SlotId) -> Result<StepOutcome, StepError> {
        if first > last || last.0 >= SLOT_COUNT {
            return Err(invalid(format!("slots {first} to {last}; there are 0 to {}", SLOT_COUNT - 1)));
        }
        self.adopt(first, last);
        Ok(StepOutcome::Done)
    }

    pub(super) fn stripe_register(&mut self, record: &StripeRecord) -> Result<StepOutcome, StepError> {
        self.own(record.stripe.slot())?;
        let key = keys::stripe(record.stripe);
        if let Some(existing) = self.get::<StripeRecord>(&key)? {
            let kind = || "stripe".to_owned();
            return if existing == *record {
                Ok(StepOutcome::Done)
            } else {
                Err(StepError::AlreadyExists { kind: kind() })
            };
        }
        check_record(record)?;
        self.check_epoch(record.stripe.volume(), record.epoch)?;
        self.put(&key, record);
        let (volume, used, missing) = (record.stripe.volume(), record.used, record.missing);
        let count_key = keys::stripe_count(volume, used, missing);
        let before = self.get::<StripeCount>(&count_key)?.map_or(0, |count| count.stripes);
        self.put(&count_key, &StripeCount { volume, used, missing, stripes: before + 1 });
        Ok(StepOutcome::Done)
    }

    /// Refuses a registration of an epoch that the volume's fence shuts out.
    pub(super) fn check_epoch(&self, volume: VolumeId, epoch: Epoch) -> Result<(), StepError> {
        match self.get::<Epoch>(&keys::volume_fence(volume))? {
            Some(current) if epoch < current => Err(StepError::StaleEpoch { current }),
            _ => Ok(()),
        }
    }

    pub(super) fn volume_fence(&mut self, volume: VolumeId, epoch: Epoch) -> Result<StepOutcome, StepError> {
        let key = keys::volume_fence(volume);
        if self.get::<Epoch>(&key)?.is_none_or(|current| current < epoch) {
            self.put(&key, &epoch);
        }
        Ok(StepOutcome::Done)
    }
}
