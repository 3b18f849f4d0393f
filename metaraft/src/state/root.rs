//! The root group: the installation, its nodes, disks, volumes and settings.
//!
//! Invariants:
//! - The shard map names every slot once.
//! - A volume's members are registered disks, all different, one per position of its code; its id is never reused.
//! - The revision grows with every change of what is registered, and with nothing else: not with what is attested.
//! - What is attested of a start of a disk never goes down; another start takes its place only if the warden decided
//!   on the one that is registered.

use std::collections::BTreeSet;

use engine::cluster::{DiskAttestation, Location, SlotRange};
use engine::code::Code;
use engine::ids::{ClusterId, DiskId, Epoch, NodeId, ROOT_GROUP, SLOT_COUNT, VolumeId};

use super::keys::{self, Table};
use super::rows::{ClusterRow, DiskRow, StorageNodeRow, VolumeRow};
use super::txn::{Group, invalid, not_found};
use crate::model::QUERY_ITEMS_MAX;
use crate::model::command::{AttestedDisk, StepError};
use crate::model::outcome::StepOutcome;
use crate::model::row::SecretBytes;
use crate::model::settings;

/// Bytes of an address, a path, or a rack's name.
const TEXT_BYTES_MAX: usize = 4096;

fn check_slots(slots: &[SlotRange]) -> Result<(), StepError> {
    let mut next = 0_u32;
    for range in slots {
        if u32::from(range.first.0) != next || range.last < range.first || range.group == ROOT_GROUP {
            return Err(invalid("the shard map does not name every slot once, ascending, in data groups"));
        }
        next = u32::from(range.last.0) + 1;
    }
    if next == u32::from(SLOT_COUNT) { Ok(()) } else { Err(invalid("the shard map leaves slots out")) }
}

fn check_text(what: &str, text: &str) -> Result<(), StepError> {
    if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(invalid(format!("{what}: up to {TEXT_BYTES_MAX} bytes, without control characters")));
    }
    Ok(())
}

impl Group<'_, '_> {
    fn cluster(&self) -> Result<ClusterRow, StepError> {
        self.get(&keys::table(Table::Cluster))?.ok_or(StepError::WrongCluster)
    }

    /// Counts a change of what is registered.
    fn put_cluster(&mut self, row: &ClusterRow) {
        let row = ClusterRow { revision: row.revision + 1, ..row.clone() };
        self.put(&keys::table(Table::Cluster), &row);
    }

    pub(super) fn cluster_init(
        &mut self,
        cluster: ClusterId,
        code: Code,
        slots: &[SlotRange],
        meta_nodes: &[(NodeId, String)],
    ) -> Result<StepOutcome, StepError> {
        if let Some(existing) = self.get::<ClusterRow>(&keys::table(Table::Cluster))? {
            let same = existing.cluster == cluster;
            return if same { Ok(StepOutcome::Done) } else { Err(StepError::WrongCluster) };
        }
        check_slots(slots)?;
        for (node, address) in meta_nodes {
            check_text("address", address)?;
            self.put(&keys::meta_node(*node), &(*node, address));
        }
        self.put_cluster(&ClusterRow { cluster, code, slots: slots.to_vec(), revision: 0, volumes: 0 });
        Ok(StepOutcome::Done)
    }

    pub(super) fn storage_node_register(
        &mut self,
        node: NodeId,
        address: &str,
        location: &Location,
    ) -> Result<StepOutcome, StepError> {
        let cluster = self.cluster()?;
        check_text("address", address)?;
        check_text("rack", &location.rack)?;
        let row = StorageNodeRow { address: address.to_owned(), location: location.clone() };
        let key = keys::storage_node(node);
        if self.get::<StorageNodeRow>(&key)?.as_ref() != Some(&row) {
            self.put(&key, &row);
            self.put_cluster(&cluster);
        }
        Ok(StepOutcome::Done)
    }

    pub(super) fn disk_register(
        &mut self,
        disk: DiskId,
        node: NodeId,
        path: &str,
    ) -> Result<StepOutcome, StepError> {
        let cluster = self.cluster()?;
        check_text("path", path)?;
        if !self.contains(&keys::storage_node(node)) {
            return Err(not_found("storage node"));
        }
        let row = DiskRow { node, path: path.to_owned() };
        let key = keys::disk(disk);
        if self.get::<DiskRow>(&key)?.as_ref() != Some(&row) {
            self.put(&key, &row);
            self.put_cluster(&cluster);
        }
        Ok(StepOutcome::Done)
    }

    pub(super) fn disks_attest(&mut self, disks: &[AttestedDisk]) -> Result<StepOutcome, StepError> {
        self.cluster()?;
        if disks.len() > QUERY_ITEMS_MAX as usize {
            return Err(invalid(format!("at most {QUERY_ITEMS_MAX} disks at once")));
        }
        for AttestedDisk { disk, before, attested } in disks {
            if !self.contains(&keys::disk(*disk)) {
                continue;
            }
            let key = keys::disk_attestation(*disk);
            let known = self.get::<DiskAttestation>(&key)?.unwrap_or_default();
            let row = if known.incarnation == attested.incarnation {
                DiskAttestation {
                    sequence: attested.sequence.max(known.sequence),
                    fenced_starts: attested.fenced_starts.max(known.fenced_starts),
                    ..*attested
                }
            } else if known.incarnation == *before {
                *attested
            } else {
                continue;
            };
            if row != known {
                self.put(&key, &row);
            }
        }
        Ok(StepOutcome::Done)
    }

    pub(super) fn volumes_create(
        &mut self,
        existing: u64,
        code: Code,
        members: &[Vec<DiskId>],
    ) -> Result<StepOutcome, StepError> {
        let mut cluster = self.cluster()?;
        if cluster.volumes != existing {
            return Err(StepError::Changed { what: format!("there are {} volumes", cluster.volumes) });
        }
        if members.len() > QUERY_ITEMS_MAX as usize {
            return Err(invalid(format!("at most {QUERY_ITEMS_MAX} volumes at once")));
        }
        let mut created = Vec::with_capacity(members.len());
        for members in members {
            let distinct: BTreeSet<_> = members.iter().collect();
            if members.len() != code.total() || distinct.len() != members.len() {
                return Err(invalid(format!("a volume of {code} has {} different disks", code.total())));
            }
            if !members.iter().all(|disk| self.contains(&keys::disk(*disk))) {
                return Err(not_found("disk"));
            }
            cluster.volumes += 1;
            let volume = VolumeId(cluster.volumes);
            let row = VolumeRow { code, epoch: Epoch(1), members: members.clone(), open: true };
            self.put(&keys::volume(volume), &row);
            created.push(volume);
        }
        if !created.is_empty() {
            self.put_cluster(&cluster);
        }
        Ok(StepOutcome::VolumesCreated(created))
    }

    pub(super) fn secret_make(&mut self, name: &str, secret: SecretBytes) -> Result<StepOutcome, StepError> {
        self.cluster()?;
        check_text("secret", name)?;
        let key = keys::secret(name);
        if let Some(kept) = self.get::<SecretBytes>(&key)? {
            return Ok(StepOutcome::Secret(kept));
        }
        self.put(&key, &secret);
        Ok(StepOutcome::Secret(secret))
    }

    pub(super) fn setting_set(&mut self, name: &str, value: &str) -> Result<StepOutcome, StepError> {
        self.cluster()?;
        settings::check(name, value).map_err(|refused| invalid(refused.to_string()))?;
        self.put(&keys::setting(name), &(name, value));
        Ok(StepOutcome::Done)
    }
}
