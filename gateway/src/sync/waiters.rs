//! Who waits for changes: few at once of each device, and so many of all together.
//!
//! Invariants:
//! - A device is counted as long as it waits, and not at all once it does not.
//! - A device that is refused takes no place from others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::ids::DeviceId;

use crate::failure::Failure;
use crate::limits::DEVICE_WAITERS_MAX;

/// How often each device waits.
#[derive(Debug, Default)]
pub(crate) struct DeviceWaiters {
    counts: Mutex<HashMap<DeviceId, usize>>,
}

/// One place among a device's waiters.
#[derive(Debug)]
pub(crate) struct DeviceWaiter {
    device: DeviceId,
    waiters: Arc<DeviceWaiters>,
}

impl DeviceWaiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, usize>> {
        // Held for a count.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a device wait once more, or says that it waits often enough.
    pub(crate) fn admit(self: &Arc<Self>, device: DeviceId) -> Result<DeviceWaiter, Failure> {
        let mut counts = self.lock();
        let count = counts.entry(device).or_default();
        if *count >= DEVICE_WAITERS_MAX {
            return Err(Failure::busy("too many watchers of one device"));
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
        let waiters = Arc::new(DeviceWaiters::default());
        let [one, other] = [1, 2].map(|number| DeviceId::from_bytes([number; 8]));
        let mut waiting: Vec<_> =
            (0..DEVICE_WAITERS_MAX).map(|_number| waiters.admit(one).unwrap()).collect();
        assert_eq!(waiters.admit(one).unwrap_err().reason, "busy");
        drop(waiters.admit(other).unwrap());
        waiting.pop();
        drop(waiters.admit(one).unwrap());
        drop(waiting);
        assert!(waiters.lock().is_empty());
    }
}
