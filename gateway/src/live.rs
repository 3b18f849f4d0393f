//! Devices that have something open (streams, waits), and whether they still may: a revoked one ends within a second,
//! whichever gateway it was revoked through.
//!
//! Invariants:
//! - A device is listed before its token is checked, so no revocation falls between the check and the list.
//! - Each metadata group's subscription tells of accounts whose devices changed; they are looked at at once. Beside
//!   that all listed ones are looked at in turn, the longest unseen first, [`CHECKS_MAX`] every [`CHECK_INTERVAL`]: a
//!   subscription that has gone deaf costs that long, and no more.
//! - Every look is a linearizable read of many devices at once. Who could not be looked at for [`UNSEEN_MAX`] ends as
//!   well: nobody goes on because nobody can be asked.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::ids::{AccountId, DeviceId, GroupId, NamespaceId};
use futures_util::future::join_all;
use metaraft::api::MetaError;
use metaraft::model::query::{Query, Reply};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::meta::{Meta, wrong_reply};

/// How often devices are looked at in turn.
const CHECK_INTERVAL: Duration = Duration::from_millis(400);

/// How many at a time: so many that all of a usual gateway's are, so few that tens of thousands cost little.
const CHECKS_MAX: usize = 2000;

/// How long one may be unseen, at the least; many listed ones take longer to be seen in turn.
const UNSEEN_MAX: Duration = Duration::from_secs(20);

/// How long one look may take before the next begins.
const CHECK_TIME_MAX: Duration = Duration::from_secs(2);

type Key = (AccountId, DeviceId);

/// Tells that a device may not go on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ended {
    revoked: CancellationToken,
    unseen: CancellationToken,
}

impl Ended {
    /// Once it may not go on: why.
    pub(crate) async fn wait(&self) -> Failure {
        tokio::select! {
            () = self.revoked.cancelled() => crate::auth::refused(),
            () = self.unseen.cancelled() => {
                Failure::unavailable("the metadata cluster does not answer; try again in a moment")
            }
        }
    }
}

struct Entry {
    ended: Ended,
    users: usize,
    /// When the last look that found it live began.
    seen: Instant,
}

#[derive(Default)]
struct Listed {
    entries: BTreeMap<Key, Entry>,
    /// Accounts of which something may have changed.
    changed: HashSet<AccountId>,
}

/// All devices that have something open.
#[derive(Default)]
pub(crate) struct LiveDevices {
    listed: Mutex<Listed>,
    changed: Notify,
}

/// A device that has something open, as long as this lives.
pub(crate) struct LiveDevice {
    key: Key,
    devices: Arc<LiveDevices>,
    pub(crate) ended: Ended,
}

impl Drop for LiveDevice {
    fn drop(&mut self) {
        let mut listed = self.devices.lock();
        if let Some(entry) = listed.entries.get_mut(&self.key) {
            entry.users -= 1;
            if entry.users == 0 {
                listed.entries.remove(&self.key);
            }
        }
    }
}

impl LiveDevices {
    fn lock(&self) -> MutexGuard<'_, Listed> {
        // Held for look-ups, and for one pass each interval.
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a device, whose token is to be checked after this.
    pub(crate) fn enter(self: &Arc<Self>, account: AccountId, device: DeviceId) -> LiveDevice {
        let key = (account, device);
        let mut listed = self.lock();
        let fresh = || Entry { ended: Ended::default(), users: 0, seen: Instant::now() };
        let entry = listed.entries.entry(key).or_insert_with(fresh);
        if entry.ended.unseen.is_cancelled() {
            // Those that ended hold on to their own token.
            entry.ended = Ended::default();
            entry.seen = Instant::now();
        }
        entry.users += 1;
        LiveDevice { key, devices: Arc::clone(self), ended: entry.ended.clone() }
    }

    /// A subscription told of a change under this id: a namespace's, or an account's.
    pub(crate) fn told(&self, id: NamespaceId) {
        let account = AccountId::from_bytes(*id.as_bytes());
        {
            let mut listed = self.lock();
            let devices = [0, 0xff].map(|byte| (account, DeviceId::from_bytes([byte; DeviceId::LENGTH])));
            if listed.entries.range(devices[0]..=devices[1]).next().is_none() {
                return;
            }
            listed.changed.insert(account);
        }
        self.changed.notify_one();
    }

    /// Anything may have changed.
    pub(crate) fn told_gap(&self) {
        {
            let mut listed = self.lock();
            let all: Vec<AccountId> = listed.entries.keys().map(|(account, _device)| *account).collect();
            listed.changed.extend(all);
        }
        self.changed.notify_one();
    }

    /// Those to look at now: of changed accounts all, of the others the longest unseen.
    fn due(&self) -> Vec<Key> {
        let mut listed = self.lock();
        let changed = std::mem::take(&mut listed.changed);
        let mut in_turn: Vec<(Instant, Key)> = Vec::new();
        let mut due = Vec::new();
        for (key, entry) in &listed.entries {
            if changed.contains(&key.0) {
                due.push(*key);
            } else if !entry.ended.revoked.is_cancelled() {
                in_turn.push((entry.seen, *key));
            }
        }
        if in_turn.len() > CHECKS_MAX {
            in_turn.select_nth_unstable(CHECKS_MAX);
            in_turn.truncate(CHECKS_MAX);
        }
        due.extend(in_turn.into_iter().map(|(_seen, key)| key));
        due
    }

    fn note(&self, begun: Instant, keys: &[Key], live: &[bool]) {
        let mut listed = self.lock();
        for (key, live) in keys.iter().zip(live) {
            if let Some(entry) = listed.entries.get_mut(key) {
                if *live {
                    entry.seen = entry.seen.max(begun);
                } else {
                    entry.ended.revoked.cancel();
                }
            }
        }
    }

    fn end_unseen(&self, now: Instant) {
        let listed = self.lock();
        let rounds = u32::try_from(listed.entries.len() / CHECKS_MAX).unwrap_or(u32::MAX);
        let unseen_max = UNSEEN_MAX + CHECK_INTERVAL * rounds.saturating_mul(2);
        for entry in listed.entries.values() {
            if now.saturating_duration_since(entry.seen) > unseen_max {
                entry.ended.unseen.cancel();
            }
        }
    }

    async fn look(&self, meta: &Meta) {
        let mut groups: BTreeMap<GroupId, Vec<Key>> = BTreeMap::new();
        for key in self.due() {
            if let Ok(group) = meta.group_of(key.0.slot()) {
                groups.entry(group).or_default().push(key);
            }
        }
        let looks =
            groups.iter().flat_map(|(group, keys)| keys.chunks(CHECKS_MAX).map(|keys| (*group, keys)));
        let looks = looks.map(|(group, keys)| async move {
            let begun = Instant::now();
            match tokio::time::timeout(CHECK_TIME_MAX, ask(meta, group, keys)).await {
                Ok(Ok(live)) => self.note(begun, keys, &live),
                Ok(Err(error)) => tracing::debug!(group = group.0, error = %error, "devices not looked at"),
                Err(_elapsed) => tracing::debug!(group = group.0, "devices not looked at in time"),
            }
        });
        join_all(looks).await;
    }

    /// Looks at devices until the gateway stops.
    pub(crate) async fn follow(self: Arc<Self>, meta: Meta, stopping: CancellationToken) {
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = self.look(&meta) => {}
            }
            self.end_unseen(Instant::now());
        }
    }
}

async fn ask(meta: &Meta, group: GroupId, devices: &[Key]) -> Result<Vec<bool>, MetaError> {
    match meta.api().query(group, Query::DevicesLive { devices: devices.to_vec() }).await? {
        Reply::Flags(live) if live.len() == devices.len() => Ok(live),
        _ => Err(wrong_reply("devices")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(account: u8, device: u8) -> Key {
        (AccountId::from_bytes([account; 16]), DeviceId::from_bytes([device; 8]))
    }

    fn enter(devices: &Arc<LiveDevices>, (account, device): Key) -> LiveDevice {
        devices.enter(account, device)
    }

    #[test]
    fn a_revoked_device_ends_and_no_other() {
        let devices = Arc::new(LiveDevices::default());
        let (one, same, other) =
            (enter(&devices, key(1, 1)), enter(&devices, key(1, 1)), enter(&devices, key(1, 2)));
        devices.note(Instant::now(), &[key(1, 1), key(1, 2)], &[false, true]);
        assert!(one.ended.revoked.is_cancelled() && same.ended.revoked.is_cancelled());
        assert!(!other.ended.revoked.is_cancelled());
        drop((one, same, other));
        assert!(devices.lock().entries.is_empty());
    }

    #[test]
    fn those_of_changed_accounts_come_first_and_the_others_in_turn() {
        let devices = Arc::new(LiveDevices::default());
        let count = 3 * CHECKS_MAX;
        let id = |number: usize| {
            let mut account = [0; 16];
            account[..8].copy_from_slice(&number.to_be_bytes());
            (AccountId::from_bytes(account), DeviceId::from_bytes([1; 8]))
        };
        let _listed: Vec<LiveDevice> = (0..count).map(|number| enter(&devices, id(number))).collect();
        let mut seen = HashSet::new();
        for _round in 0..3 {
            let due = devices.due();
            assert_eq!(due.len(), CHECKS_MAX);
            devices.note(Instant::now() + Duration::from_secs(1), &due, &vec![true; due.len()]);
            seen.extend(due);
        }
        assert_eq!(seen.len(), count, "each once before any twice");
        devices.told(NamespaceId::from_bytes(*id(7).0.as_bytes()));
        devices.told(NamespaceId::from_bytes([0xff; 16]));
        let due = devices.due();
        assert_eq!((due[0], due.len()), (id(7), CHECKS_MAX + 1));
        devices.told_gap();
        assert_eq!(devices.due().len(), count);
    }

    #[test]
    fn who_cannot_be_seen_for_long_ends_and_may_come_again() {
        let devices = Arc::new(LiveDevices::default());
        let one = enter(&devices, key(1, 1));
        devices.end_unseen(Instant::now() + UNSEEN_MAX / 2);
        assert!(!one.ended.unseen.is_cancelled());
        devices.end_unseen(Instant::now() + 2 * UNSEEN_MAX);
        assert!(one.ended.unseen.is_cancelled());
        assert!(!enter(&devices, key(1, 1)).ended.unseen.is_cancelled());
    }
}
