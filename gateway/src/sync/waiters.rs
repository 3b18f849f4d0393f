//! Who waits for changes: few at once of each device, and so many of all together.
//!
//! Invariants:
//! - A device is counted as long as it waits, and not at all once it does not.
//! - A device that is refused takes no place from others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::ids::DeviceId;

use crate::door::shares::Full;
use crate::failure::Failure;

/// How often each device waits.
#[derive(Debug)]
pub(crate) struct DeviceWaiters {
    /// How often each may.
    each_max: u64,
    counts: Mutex<HashMap<DeviceId, u64>>,
}

/// One place among a device's waiters.
#[derive(Debug)]
pub(crate) struct DeviceWaiter {
    device: DeviceId,
    waiters: Arc<DeviceWaiters>,
}

impl DeviceWaiters {
    pub(crate) fn new(each_max: u64) -> Arc<Self> {
        Arc::new(Self { each_max, counts: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, u64>> {
        // Held for a count.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a device wait once more, or says that it waits often enough.
    pub(crate) fn admit(self: &Arc<Self>, device: DeviceId) -> Result<DeviceWaiter, Failure> {
        let mut counts = self.lock();
        let count = counts.entry(device).or_default();
        if *count >= self.each_max {
            return Err(Failure::full("watchers of one device", Full::Own, "device_waiters_max", ""));
        }
        *count += 1;
        Ok(DeviceWaiter { device, waiters: Arc::clone(self) })
    }
}

impl Drop for DeviceWaiter {
    fn drop(&mut self) {
        let mut counts = self.waiters.lock();
        if let Some(count) = counts.get_mut(&self.device) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_waits_so_often_and_no_other_is_hindered() {
        let waiters = DeviceWaiters::new(8);
        let [one, other] = [1, 2].map(|number| DeviceId::from_bytes([number; 8]));
        let mut waiting: Vec<_> = (0..8).map(|_number| waiters.admit(one).unwrap()).collect();
        assert_eq!(waiters.admit(one).unwrap_err().reason, "busy");
        drop(waiters.admit(other).unwrap());
        waiting.pop();
        drop(waiters.admit(one).unwrap());
        drop(waiting);
        assert!(waiters.lock().is_empty());
    }
}
