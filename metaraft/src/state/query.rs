//! Queries: what is read, from one consistent view. The tree's are in `query_tree`.
//!
//! Invariants:
//! - Every answer is bounded by [`QUERY_ITEMS_MAX`] items; a query for more is not understood.
//! - Rows that owners can make as large as they like (names, targets, lists) are bounded by [`PAGE_BYTES_MAX`] in all:
//!   a page ends early, and of things asked for by name the first ones are answered for.
//! - A row that cannot be decoded fails the query; it is never taken for an absent one.

use engine::cluster::{ClusterMap, DiskInfo, DiskUsage, Health, MetaNodeInfo, StorageNodeInfo, Volume};
use engine::ids::{
    AccountId, ChunkId, ContentId, DeviceId, DiskId, GroupId, HolderId, NodeId, ROOT_GROUP, SlotId, VolumeId,
    email_slot,
};
use serde::de::DeserializeOwned;

use super::keys::{self, Table};
use super::rows::{ClusterRow, DiskRow, OwnedSlotsRow, StorageNodeRow, SumsRow, VolumeRow};
use super::txn::{decode_row, load};
use crate::kv::{KeyRange, Read, Row, View};
use crate::model::codec;
use crate::model::command::StepError;
use crate::model::query::{Query, Reply};
use crate::model::row::{
    AccountRow, AsideRelease, ChunkRow, ChunkState, ContentRow, DeviceRow, GroupCounters, StripeCount,
};
use crate::model::settings::Settings;
use crate::model::{PAGE_BYTES_MAX, QUERY_ITEMS_MAX};
use crate::warden::liveness::Liveness;

/// Bytes of a row but for names, targets and lists, about.
pub(super) const ROW_BYTES: usize = 128;

/// Bytes of an entry of a chunk list, about.
pub(super) const MANIFEST_ENTRY_BYTES: usize = 40;

/// Rows of the cluster map's tables: more nodes, disks or volumes than any cluster of this design has.
const MAP_ROWS_MAX: usize = 1_000_000;

/// Releases that were set aside, of those that counters tell more of.
const ASIDE_SHOWN_MAX: usize = 5;

/// Why a query has no answer of its own kind.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The namespace is not there.
    NoNamespace,
    /// The slot is another group's.
    NotOwner(SlotId),
    /// The installation has not been made.
    NoCluster,
    /// For another kind of group, too much, or not readable.
    NotUnderstood,
}

impl From<StepError> for Refusal {
    /// A row that cannot be decoded; it has been logged.
    fn from(_damaged: StepError) -> Self {
        Self::NotUnderstood
    }
}

/// A query's view of its group.
pub(super) struct Reader<'a> {
    view: &'a View<'a>,
    owned: OwnedSlotsRow,
}

/// Answers an encoded query.
pub(super) fn answer(group: GroupId, view: &View<'_>, query: &[u8], liveness: &Liveness) -> Reply {
    let query: Query = match codec::decode(query) {
        Ok(query) => query,
        Err(error) => {
            tracing::warn!(group = group.0, error = %error, "query not understood");
            return Reply::NotUnderstood;
        }
    };
    let reply = match query {
        Query::ClusterMap | Query::Settings | Query::Secret { .. } if group != ROOT_GROUP => {
            Err(Refusal::NotUnderstood)
        }
        Query::ClusterMap => cluster_map(view, liveness).map(|map| Reply::ClusterMap(Box::new(map))),
        Query::Settings => settings_rows(view).map(Reply::Settings),
        Query::Secret { name } => load(view, &keys::secret(&name)).map(Reply::Secret).map_err(Refusal::from),
        _ if group == ROOT_GROUP => Err(Refusal::NotUnderstood),
        query => Reader::new(view).and_then(|reader| reader.answer(query)),
    };
    reply.unwrap_or_else(|refusal| match refusal {
        Refusal::NoNamespace => Reply::NoNamespace,
        Refusal::NotOwner(slot) => Reply::NotOwner(slot),
        Refusal::NoCluster => Reply::NoCluster,
        Refusal::NotUnderstood => Reply::NotUnderstood,
    })
}

/// Refuses more items than a query may name.
pub(super) fn check_count(count: usize) -> Result<(), Refusal> {
    if count > QUERY_ITEMS_MAX as usize { Err(Refusal::NotUnderstood) } else { Ok(()) }
}

/// Answers for the first of `items`, as many as one answer may have bytes for, but at least for one. `answer` gives each
/// one with its size.
pub(super) fn first_answers<T, R>(
    items: &[T],
    mut answer: impl FnMut(&T) -> Result<(R, usize), Refusal>,
) -> Result<Vec<R>, Refusal> {
    check_count(items.len())?;
    let (mut answers, mut bytes) = (Vec::new(), 0);
    for item in items {
        if bytes >= PAGE_BYTES_MAX {
            break;
        }
        let (one, size) = answer(item)?;
        bytes += size;
        answers.push(one);
    }
    Ok(answers)
}

/// Rows that a page reads at once.
const PAGE_STEP_ROWS: usize = 256;

impl<'a> Reader<'a> {
    fn new(view: &'a View<'a>) -> Result<Self, Refusal> {
        Ok(Self { view, owned: load(view, &keys::owned_slots())?.unwrap_or_default() })
    }

    pub(super) fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, Refusal> {
        Ok(load(self.view, key)?)
    }

    /// All rows, as this query sees them.
    pub(super) fn rows(&self) -> &View<'_> {
        self.view
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        self.view.contains(key)
    }

    pub(super) fn scan(&self, range: &KeyRange, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.view.scan(range, limit)
    }

    /// The first rows of `range`, `count_max` or as many as a page has bytes for, and whether there are further ones.
    pub(super) fn scan_page(&self, range: &KeyRange, count_max: usize) -> (Vec<Row>, bool) {
        let mut range = range.clone();
        let (mut rows, mut bytes) = (Vec::new(), 0);
        loop {
            let wanted = PAGE_STEP_ROWS.min(count_max + 1 - rows.len());
            let read = self.scan(&range, wanted);
            let ended = read.len() < wanted;
            for row in read {
                if rows.len() == count_max || bytes >= PAGE_BYTES_MAX {
                    return (rows, true);
                }
                bytes += row.0.len() + row.1.len();
                rows.push(row);
            }
            if ended {
                return (rows, false);
            }
            if let Some((last, _value)) = rows.last() {
                range.from = [last.as_slice(), &[0]].concat();
            }
        }
    }

    pub(super) fn scan_reverse(&self, range: &KeyRange, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.view.scan_reverse(range, limit)
    }

    pub(super) fn own(&self, slot: SlotId) -> Result<(), Refusal> {
        if self.owned.contains(slot) { Ok(()) } else { Err(Refusal::NotOwner(slot)) }
    }

    fn answer(&self, query: Query) -> Result<Reply, Refusal> {
        match query {
            Query::AccountByEmail { email } => {
                self.own(email_slot(&email))?;
                Ok(Reply::AccountId(self.get(&keys::email(&email))?))
            }
            Query::Account { account } => Ok(Reply::Account(self.account(account)?)),
            Query::Devices { account } => self.devices(account),
            Query::Device { account, device } => self.device(account, device),
            Query::DevicesLive { devices } => self.devices_live(&devices),
            Query::Contents { contents } => self.contents(&contents),
            Query::ChunksLocate { chunks } => self.chunks_locate(&chunks),
            Query::ChunksPinned { holder, chunks } => self.chunks_pinned(holder, &chunks),
            Query::Counters => Ok(Reply::Counters(self.counters()?)),
            Query::ReleasesDue { now_ms, count_max } => {
                let before = keys::release_retries_from(now_ms.saturating_add(1));
                let range = KeyRange::between(&keys::table(Table::ReleaseRetry), &before);
                Ok(Reply::ReleasesAside(
                    self.releases_aside(&range, count_max.min(QUERY_ITEMS_MAX) as usize)?,
                ))
            }
            Query::ClusterMap | Query::Settings | Query::Secret { .. } => Err(Refusal::NotUnderstood),
            query => self.answer_tree(query),
        }
    }

    fn account(&self, account: AccountId) -> Result<Option<AccountRow>, Refusal> {
        self.own(account.slot())?;
        self.get(&keys::account(account))
    }

    fn devices(&self, account: AccountId) -> Result<Reply, Refusal> {
        self.own(account.slot())?;
        let rows = self.scan(&KeyRange::prefix(&keys::devices(account)), QUERY_ITEMS_MAX as usize);
        let mut devices = Vec::with_capacity(rows.len());
        for (key, bytes) in rows {
            let device = keys::device_id(&key).ok_or(Refusal::NotUnderstood)?;
            devices.push((device, decode_row::<DeviceRow>(&key, &bytes)?));
        }
        Ok(Reply::Devices(devices))
    }

    fn devices_live(&self, devices: &[(AccountId, DeviceId)]) -> Result<Reply, Refusal> {
        check_count(devices.len())?;
        let mut live = Vec::with_capacity(devices.len());
        for (account, device) in devices {
            self.own(account.slot())?;
            let row: Option<DeviceRow> = self.get(&keys::device(*account, *device))?;
            live.push(row.is_some_and(|row| row.revoked_ms.is_none()));
        }
        Ok(Reply::Flags(live))
    }

    fn device(&self, account: AccountId, device: DeviceId) -> Result<Reply, Refusal> {
        let Some(row) = self.account(account)? else { return Ok(Reply::Device(None)) };
        let device: Option<DeviceRow> = self.get(&keys::device(account, device))?;
        Ok(Reply::Device(device.map(|device| (row, device))))
    }

    fn contents(&self, contents: &[ContentId]) -> Result<Reply, Refusal> {
        let rows = first_answers(contents, |content| {
            self.own(content.slot())?;
            let row = self.get::<ContentRow>(&keys::content(*content))?;
            let entries = row.as_ref().map_or(0, |row| row.list.entries.len());
            Ok((row, ROW_BYTES + entries * MANIFEST_ENTRY_BYTES))
        })?;
        Ok(Reply::Contents(rows))
    }

    fn chunks_locate(&self, chunks: &[ChunkId]) -> Result<Reply, Refusal> {
        check_count(chunks.len())?;
        let mut locations = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            self.own(chunk.slot())?;
            let row: Option<ChunkRow> = self.get(&keys::chunk(*chunk))?;
            locations.push(row.filter(|row| row.state != ChunkState::Condemned).map(|row| row.location));
        }
        Ok(Reply::Locations(locations))
    }

    fn chunks_pinned(&self, holder: HolderId, chunks: &[ChunkId]) -> Result<Reply, Refusal> {
        check_count(chunks.len())?;
        let mut pinned = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            self.own(chunk.slot())?;
            let unreadable =
                |row: Option<ChunkRow>| row.is_some_and(|row| row.state == ChunkState::Unreadable);
            let there = self.contains(&keys::chunk_ref(*chunk, holder));
            pinned.push(there && !unreadable(self.get(&keys::chunk(*chunk))?));
        }
        Ok(Reply::Flags(pinned))
    }

    fn counters(&self) -> Result<GroupCounters, Refusal> {
        let sums: SumsRow = self.get(&keys::group_sums())?.unwrap_or_default();
        let range = KeyRange::prefix(&keys::table(Table::StripeCount));
        let mut stripes = Vec::new();
        for (key, bytes) in self.scan(&range, QUERY_ITEMS_MAX as usize) {
            stripes.push(decode_row::<StripeCount>(&key, &bytes)?);
        }
        let aside = KeyRange::prefix(&keys::table(Table::ReleaseRetry));
        let releases_aside = self.scan(&aside, QUERY_ITEMS_MAX as usize).len() as u64;
        let releases_aside_some = self.releases_aside(&aside, ASIDE_SHOWN_MAX)?;
        let SumsRow { bytes_logical, bytes_unique, chunks, .. } = sums;
        Ok(GroupCounters {
            bytes_logical,
            bytes_unique,
            chunks,
            stripes,
            releases_aside,
            releases_aside_some,
            nursery: self.get(&keys::nursery_sums())?.unwrap_or_default(),
        })
    }

    fn releases_aside(&self, range: &KeyRange, limit: usize) -> Result<Vec<AsideRelease>, Refusal> {
        let rows = self.scan(range, limit);
        Ok(rows.iter().map(|(key, bytes)| decode_row(key, bytes)).collect::<Result<_, _>>()?)
    }
}

fn settings_rows(view: &View<'_>) -> Result<Vec<(String, String)>, Refusal> {
    let range = KeyRange::prefix(&keys::table(Table::Setting));
    let rows = view.scan(&range, QUERY_ITEMS_MAX as usize);
    Ok(rows.iter().map(|(key, bytes)| decode_row(key, bytes)).collect::<Result<_, _>>()?)
}

/// All rows of a table, with the part of their keys after the table's byte.
fn table_rows<T: DeserializeOwned>(view: &View<'_>, table: Table) -> Result<Vec<(Vec<u8>, T)>, Refusal> {
    let prefix = keys::table(table);
    let mut rows = Vec::new();
    for (key, bytes) in view.scan(&KeyRange::prefix(&prefix), MAP_ROWS_MAX) {
        rows.push((key[prefix.len()..].to_vec(), decode_row(&key, &bytes)?));
    }
    Ok(rows)
}

fn number(key: &[u8]) -> Result<u64, Refusal> {
    key.try_into().map(u64::from_be_bytes).map_err(|_wrong_length| Refusal::NotUnderstood)
}

fn disk_id(key: &[u8]) -> Result<DiskId, Refusal> {
    DiskId::from_slice(key).map_err(|_wrong_length| Refusal::NotUnderstood)
}

fn cluster_map(view: &View<'_>, liveness: &Liveness) -> Result<ClusterMap, Refusal> {
    let cluster: ClusterRow = load(view, &keys::table(Table::Cluster))?.ok_or(Refusal::NoCluster)?;
    let meta_nodes = table_rows::<(NodeId, String)>(view, Table::MetaNode)?
        .into_iter()
        .map(|(_, (node, address))| MetaNodeInfo { node, address, health: Health::Up })
        .collect();
    let storage_nodes = table_rows::<StorageNodeRow>(view, Table::StorageNode)?
        .into_iter()
        .map(|(key, StorageNodeRow { address, location })| {
            let node = NodeId(number(&key)?);
            Ok(StorageNodeInfo { node, address, location, health: Health::Down })
        })
        .collect::<Result<_, Refusal>>()?;
    let disks = table_rows::<DiskRow>(view, Table::Disk)?
        .into_iter()
        .map(|(key, DiskRow { node, path })| {
            let (disk, usage) = (disk_id(&key)?, DiskUsage::default());
            let attested = load(view, &keys::disk_attestation(disk))?.unwrap_or_default();
            let reason = String::new();
            Ok(DiskInfo { disk, node, path, health: Health::Down, reason, usage, attested })
        })
        .collect::<Result<_, Refusal>>()?;
    let volumes = table_rows::<VolumeRow>(view, Table::Volume)?
        .into_iter()
        .map(|(key, VolumeRow { code, epoch, members, open })| {
            Ok(Volume { volume: VolumeId(number(&key)?), code, epoch, members, open })
        })
        .collect::<Result<_, Refusal>>()?;
    let ClusterRow { cluster, code, slots, revision, .. } = cluster;
    let mut map = ClusterMap { cluster, revision, code, meta_nodes, storage_nodes, disks, volumes, slots };
    liveness.overlay(&mut map, Settings::new(settings_rows(view)?).node_grace());
    Ok(map)
}
