//! The root group, and accounts.

use engine::cluster::{Location, SlotRange};
use engine::code::Code;
use engine::ids::{AccountId, ClusterId, DeviceId, DiskId, GroupId, NamespaceId, NodeId, SlotId, VolumeId};

use super::Harness;
use crate::api::bootstrap::spread_slots;
use crate::model::command::{DataStep, RootStep, StepError};
use crate::model::outcome::StepOutcome;
use crate::model::query::{Query, Reply};
use crate::model::row::{AccountRow, DeviceRow};

fn init(cluster: u8, slots: Vec<SlotRange>) -> RootStep {
    let (cluster, code) = (ClusterId::from_bytes([cluster; 16]), Code::new(4, 2).unwrap());
    RootStep::ClusterInit { cluster, code, slots, meta_nodes: vec![(NodeId(1), "m1:1".into())] }
}

fn node(node: u64, address: &str) -> RootStep {
    let location = Location { rack: "r1".into() };
    RootStep::StorageNodeRegister { node: NodeId(node), address: address.into(), location }
}

fn disk(number: u8, node: u64) -> RootStep {
    RootStep::DiskRegister { disk: disk_id(number), node: NodeId(node), path: format!("/d{number}") }
}

fn disk_id(number: u8) -> DiskId {
    DiskId::from_bytes([number; 16])
}

fn volumes(existing: u64, members: &[&[u8]]) -> RootStep {
    let members = members.iter().map(|disks| disks.iter().map(|number| disk_id(*number)).collect()).collect();
    RootStep::VolumesCreate { existing, code: Code::new(4, 2).unwrap(), members }
}

fn made() -> Harness {
    let mut harness = Harness::root();
    harness.root_step(init(1, spread_slots(3))).unwrap();
    harness
}

fn revision(harness: &Harness) -> u64 {
    match harness.ask(&Query::ClusterMap) {
        Reply::ClusterMap(map) => map.revision,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_installation_is_made_once() {
    let mut harness = Harness::root();
    assert_eq!(harness.ask(&Query::ClusterMap), Reply::NoCluster);
    assert_eq!(harness.root_step(node(1, "a:1")), Err(StepError::WrongCluster));
    let mut gap = spread_slots(3);
    gap[1].first = SlotId(gap[1].first.0 + 1);
    let mut short = spread_slots(3);
    short.pop();
    let mut root = spread_slots(2);
    root[0].group = GroupId(0);
    for bad in [gap, short, root, Vec::new()] {
        assert!(matches!(harness.root_step(init(1, bad)), Err(StepError::Invalid { .. })));
    }
    harness.root_step(init(1, spread_slots(3))).unwrap();
    harness.root_step(init(1, spread_slots(1))).unwrap();
    assert_eq!(harness.root_step(init(2, spread_slots(3))), Err(StepError::WrongCluster));
    let Reply::ClusterMap(map) = harness.ask(&Query::ClusterMap) else { panic!("no map") };
    assert_eq!(map.data_groups(), [GroupId(1), GroupId(2), GroupId(3)]);
    assert_eq!(map.meta_nodes[0].address, "m1:1");
}

#[test]
fn registering_again_what_is_registered_changes_nothing() {
    let mut harness = made();
    assert!(matches!(harness.root_step(disk(1, 1)), Err(StepError::NotFound { .. })), "node first");
    for step in [node(1, "a:1"), disk(1, 1), node(1, "b:2"), node(2, "c:3"), disk(1, 2)] {
        let before = revision(&harness);
        harness.root_step(step.clone()).unwrap();
        assert_eq!(revision(&harness), before + 1, "{step:?}");
        harness.root_step(step).unwrap();
        assert_eq!(revision(&harness), before + 1);
    }
    let Reply::ClusterMap(map) = harness.ask(&Query::ClusterMap) else { panic!("no map") };
    assert_eq!(map.storage_node(NodeId(1)).unwrap().address, "b:2");
    assert_eq!(map.disk(disk_id(1)).unwrap().node, NodeId(2));
}

#[test]
fn volumes_are_created_by_a_planner_that_has_seen_the_others() {
    let mut harness = made();
    harness.root_step(node(1, "a:1")).unwrap();
    (1..=6).for_each(|number| drop(harness.root_step(disk(number, 1)).unwrap()));
    for bad in [&[1, 2, 3, 4, 5][..], &[1, 2, 3, 4, 5, 5], &[1, 2, 3, 4, 5, 9]] {
        assert!(harness.root_step(volumes(0, &[bad])).is_err(), "{bad:?}");
    }
    let all = [1, 2, 3, 4, 5, 6];
    let created = harness.root_step(volumes(0, &[&all, &all]));
    assert_eq!(created, Ok(StepOutcome::VolumesCreated(vec![VolumeId(1), VolumeId(2)])));
    assert!(matches!(harness.root_step(volumes(0, &[&all])), Err(StepError::Changed { .. })));
    let created = harness.root_step(volumes(2, &[&all]));
    assert_eq!(created, Ok(StepOutcome::VolumesCreated(vec![VolumeId(3)])));
}

#[test]
fn settings_are_checked_again() {
    let mut harness = made();
    let set = |name: &str, value: &str| RootStep::SettingSet { name: name.into(), value: value.into() };
    assert!(harness.root_step(set("node-grace", "1ms")).is_err());
    assert!(harness.root_step(set("no-such", "1s")).is_err());
    harness.root_step(set("node-grace", "9s")).unwrap();
    let expected = vec![("node-grace".to_owned(), "9s".to_owned())];
    assert_eq!(harness.ask(&Query::Settings), Reply::Settings(expected));
    let namespace = NamespaceId::from_bytes([1; 16]);
    assert_eq!(harness.ask(&Query::Namespace { namespace }), Reply::NotUnderstood);
}

#[test]
fn an_email_stays_with_its_first_account_and_tokens_can_be_revoked() {
    let mut harness = Harness::data();
    let accounts = [1, 2].map(|number| AccountId::from_bytes([number; 16]));
    let reserve = |account| DataStep::EmailReserve { email: "a@b".into(), account };
    for account in accounts {
        let owner = accounts[0];
        assert_eq!(harness.done(reserve(account)), StepOutcome::EmailReserved(owner));
    }
    for bad in ["", "A@b", "a\n@b", &"x".repeat(400)] {
        let step = DataStep::EmailReserve { email: bad.to_owned(), account: accounts[0] };
        assert!(matches!(harness.step(step), Err(StepError::Invalid { .. })), "{bad:?}");
    }
    let account = accounts[0];
    let row = AccountRow {
        email: "a@b".into(),
        name: "A".into(),
        password_hash: "x".into(),
        namespace: NamespaceId::from_bytes([1; 16]),
        admin: false,
        created_ms: 0,
    };
    let device = DeviceId::from_bytes([1; 8]);
    let token = DeviceRow { name: "d".into(), token_hash: [1; 32], created_ms: 0, revoked_ms: None };
    let add = || DataStep::DeviceAdd { account, device, row: token.clone() };
    assert!(matches!(harness.step(add()), Err(StepError::NotFound { .. })));
    let create = |row: &AccountRow| DataStep::AccountCreate { account, row: row.clone() };
    harness.done(create(&row));
    harness.time_ms += 5;
    harness.done(create(&row));
    assert!(harness.step(create(&AccountRow { admin: true, ..row.clone() })).is_err());
    harness.done(add());
    harness.done(add());
    harness.done(DataStep::DeviceRevoke { account, device });
    let revoked_at = harness.time_ms;
    harness.time_ms += 5;
    harness.done(DataStep::DeviceRevoke { account, device });
    let Reply::Device(Some((found, token))) = harness.ask(&Query::Device { account, device }) else {
        panic!("no device");
    };
    assert_eq!((found.email, token.revoked_ms), (row.email, Some(revoked_at)));
    let Reply::Devices(devices) = harness.ask(&Query::Devices { account }) else { panic!("no devices") };
    assert_eq!(devices[0].0, device);
    let none = DeviceId::from_bytes([2; 8]);
    harness.done(DataStep::DeviceAdd { account, device: none, row: devices[0].1.clone() });
    let asked = Query::DevicesLive { devices: vec![(account, device), (account, none), (accounts[1], none)] };
    assert_eq!(harness.ask(&asked), Reply::Flags(vec![false, true, false]));
}

#[test]
fn who_watches_is_told_of_accounts_whose_devices_changed() {
    let (account, device) = (AccountId::from_bytes([5; 16]), DeviceId::from_bytes([6; 8]));
    let mut changes = crate::kv::Changes::new();
    changes.insert(super::super::keys::account(account), Some(vec![1]));
    assert_eq!(super::super::journal::notices(&changes), []);
    changes.insert(super::super::keys::device(account, device), Some(vec![1]));
    let notice = crate::app::Notice { namespace: NamespaceId::from_bytes([5; 16]), sequence: 0 };
    assert_eq!(super::super::journal::notices(&changes), [notice]);
}
