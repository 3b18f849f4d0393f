use super::*;
use crate::cluster::Health;
use crate::ids::ChunkId;
use crate::simulation::{
    DEADLINE, Fault, Sim, all, cluster, disk_id, disk_of, plain_view, sealed, set_health,
};
use crate::store::ShardPut;
use std::collections::BTreeMap;

fn code() -> Code {
    "4+2".parse().unwrap()
}

/// A coded stripe.
fn large() -> (SealedStripe, BTreeMap<ChunkId, Bytes>) {
    sealed(1, &[70_000, 100_000, 50_000])
}

/// A copied one.
fn small() -> (SealedStripe, BTreeMap<ChunkId, Bytes>) {
    sealed(1, &[700, 1000])
}

fn write(sim: &Arc<Sim>, map: &ClusterMap, sealed: &SealedStripe) -> Result<WrittenStripe, WriteStripeError> {
    let writer = StripeWriter::new(sim.clone(), sim.clone(), sim.clone());
    sim.run(writer.write(map, plain_view(), sealed, DEADLINE))
}

/// Positions of the record whose shards are on disk.
fn stored(sim: &Sim, map: &ClusterMap, record: &StripeRecord) -> PositionSet {
    let holds = |position: &Position| sim.holds(disk_of(map, record, *position), record.stripe, *position);
    record.used.iter().filter(holds).collect()
}

fn used_disks(map: &ClusterMap, record: &StripeRecord) -> Vec<DiskId> {
    record.used.iter().map(|position| disk_of(map, record, position)).collect()
}

#[test]
fn a_write_ends_only_when_every_shard_is_durable() {
    for seed in 0..50 {
        let (sim, map) = (Sim::new(seed), cluster(6, code()));
        for (sealed, count) in [(large().0, 6), (small().0, 3)] {
            let record = write(&sim, &map, &sealed).unwrap().record;
            assert_eq!(record.used.count(), count);
            assert_eq!(stored(&sim, &map, &record), record.used);
            assert!(record.missing.is_empty());
            assert_eq!((record.shape, record.epoch), (sealed.shape(), Epoch(1)));
        }
    }
}

#[test]
fn a_member_that_fails_sends_the_stripe_to_another_volume() {
    for fault in [Fault::Down, Fault::Hangs, Fault::Full] {
        let (sim, map) = (Sim::new(2), cluster(18, code()));
        sim.set_fault(disk_id(3), fault);
        let mut failed = 0;
        for _stripe in 0..30 {
            let written = write(&sim, &map, &large().0).unwrap();
            assert!(written.record.missing.is_empty());
            assert!(!used_disks(&map, &written.record).contains(&disk_id(3)));
            failed += written.failed.iter().filter(|put| put.disk == disk_id(3)).count();
            assert!(written.failed.iter().all(|put| put.disk == disk_id(3)));
        }
        assert!(failed > 0, "the disk was tried");
    }
}

#[test]
fn volumes_with_a_member_that_is_known_not_to_serve_are_not_tried() {
    let (sim, mut map) = (Sim::new(2), cluster(18, code()));
    set_health(&mut map, disk_id(3), Health::Full);
    map.storage_nodes[4].health = Health::Down;
    let writer = StripeWriter::new(sim.clone(), sim.clone(), sim.clone());
    let state = |disk| if disk == disk_id(5) { DiskState::Gone } else { DiskState::Fine };
    let suspected = DiskView { state: &state, hangs: &all };
    for _stripe in 0..20 {
        let written = sim.run(writer.write(&map, suspected, &large().0, DEADLINE)).unwrap();
        let disks = used_disks(&map, &written.record);
        assert!([3, 4, 5].iter().all(|index| !disks.contains(&disk_id(*index))));
        assert!(written.failed.is_empty());
    }
}

#[test]
fn without_a_healthy_volume_k_plus_1_shards_suffice_and_the_rest_is_on_record() {
    for (known, fault) in [(true, Fault::Down), (false, Fault::Down), (false, Fault::Hangs)] {
        let (sim, mut map) = (Sim::new(3), cluster(6, code()));
        sim.set_fault(disk_id(2), fault);
        if known {
            set_health(&mut map, disk_id(2), Health::Down);
        }
        let written = write(&sim, &map, &large().0).unwrap();
        assert_eq!(written.record.missing.count(), 1);
        assert_eq!(written.failed.is_empty(), known, "a disk known to be down is not asked");
        let missing = written.record.missing.iter().next().unwrap();
        assert_eq!(disk_of(&map, &written.record, missing), disk_id(2));
        assert_eq!(stored(&sim, &map, &written.record), written.record.used.without(missing));
    }
}

#[test]
fn a_late_disk_is_given_up_after_the_deadline_and_not_before() {
    let (sim, map) = (Sim::new(4), cluster(6, code()));
    sim.set_fault(disk_id(2), Fault::Slow(DEADLINE / 2));
    assert!(write(&sim, &map, &large().0).unwrap().record.missing.is_empty());
    sim.set_fault(disk_id(2), Fault::Slow(DEADLINE * 2));
    let began = sim.clock.now();
    let written = write(&sim, &map, &large().0).unwrap();
    assert_eq!(written.record.missing.count(), 1);
    assert!(matches!(written.failed[..], [FailedPut { error: None, .. }]));
    assert_eq!(sim.clock.now() - began, DEADLINE);
}

#[test]
fn with_fewer_than_k_plus_1_disks_a_write_is_refused_clearly() {
    for (first, second) in [(true, true), (true, false), (false, false)] {
        let (sim, mut map) = (Sim::new(5), cluster(6, code()));
        for (index, known) in [(0, first), (4, second)] {
            sim.set_fault(disk_id(index), Fault::Down);
            if known {
                set_health(&mut map, disk_id(index), Health::Down);
            }
        }
        let error = write(&sim, &map, &large().0).unwrap_err();
        let WriteStripeError::NotEnoughDisks { durable, needed, .. } = &error else {
            panic!("another error: {error}")
        };
        assert!(*durable < 5 && *needed == 5);
        let text = error.to_string();
        assert!(text.starts_with("not enough disks take writes: "), "{text}");
    }
}

#[test]
fn small_stripes_avoid_disks_that_are_down() {
    let (sim, mut map) = (Sim::new(6), cluster(6, code()));
    sim.set_fault(disk_id(3), Fault::Down);
    set_health(&mut map, disk_id(3), Health::Down);
    for _stripe in 0..20 {
        let written = write(&sim, &map, &small().0).unwrap();
        assert!(written.record.missing.is_empty(), "three copies fit the five disks that are left");
        assert!(written.failed.is_empty());
    }
}

#[test]
fn small_stripes_are_refused_where_large_ones_are() {
    let (sim, mut map) = (Sim::new(7), cluster(6, code()));
    set_health(&mut map, disk_id(0), Health::Down);
    assert!(write(&sim, &map, &small().0).unwrap().record.missing.is_empty());
    assert!(write(&sim, &map, &large().0).is_ok());
    set_health(&mut map, disk_id(1), Health::Down);
    for sealed in [small().0, large().0] {
        assert!(matches!(write(&sim, &map, &sealed), Err(WriteStripeError::NotEnoughDisks { .. })));
    }
}

#[test]
fn two_copies_of_a_small_stripe_suffice_while_one_disk_of_six_hangs() {
    for seed in 0..20 {
        let (sim, map) = (Sim::new(seed), cluster(6, code()));
        sim.set_fault(disk_id(0), Fault::Hangs);
        let record = write(&sim, &map, &small().0).unwrap().record;
        assert!(record.used.count() == 3 && record.missing.count() <= 1);
    }
}

#[test]
fn an_attempt_that_was_durable_enough_counts_if_no_later_one_is_better() {
    for seed in 0..10 {
        // As many volumes as attempts: one with a disk that hangs, the others with two.
        let (sim, mut map) = (Sim::new(seed), cluster(24, code()));
        map.volumes.truncate(WRITE_ATTEMPTS_MAX);
        for (volume, first) in map.volumes.iter_mut().zip((0..).step_by(6)) {
            volume.members = (first..first + 6).map(disk_id).collect();
            sim.set_fault(disk_id(first), Fault::Hangs);
            sim.set_fault(disk_id(first + u64::from(first > 0)), Fault::Hangs);
        }
        let record = write(&sim, &map, &large().0).unwrap().record;
        assert_eq!((record.stripe.volume(), record.missing), (map.volumes[0].volume, PositionSet(1)));
    }
}

#[test]
fn a_stale_epoch_is_told_to_the_caller() {
    let (sim, map) = (Sim::new(8), cluster(6, code()));
    sim.set_epoch(Epoch(7));
    let error = write(&sim, &map, &large().0).unwrap_err();
    assert!(matches!(error, WriteStripeError::StaleEpoch { current: Epoch(7), .. }));
}

#[test]
fn sealed_volumes_take_nothing() {
    let (sim, mut map) = (Sim::new(9), cluster(6, code()));
    let open = map.volumes[2].volume;
    map.volumes.iter_mut().for_each(|volume| volume.open = volume.volume == open);
    assert_eq!(write(&sim, &map, &large().0).unwrap().record.stripe.volume(), open);
    map.volumes[2].open = false;
    assert!(matches!(write(&sim, &map, &large().0), Err(WriteStripeError::NoVolume)));
}

#[test]
fn a_dropped_write_leaves_only_garbage() {
    let (sim, map) = (Sim::new(10), cluster(6, code()));
    let writer = StripeWriter::new(sim.clone(), sim.clone(), sim.clone());
    let (sealed, _plains) = large();
    for polls in 0..8 {
        sim.run_and_drop(writer.write(&map, plain_view(), &sealed, DEADLINE), polls);
    }
    let record = write(&sim, &map, &sealed).unwrap().record;
    assert_eq!(stored(&sim, &map, &record), record.used, "later writes are not harmed");
}

#[test]
fn every_attempt_has_a_stripe_id_of_its_own() {
    /// Notes the stripe ids of puts, by attempt, and fails them all.
    struct Noting(Arc<Sim>, std::sync::Mutex<Vec<StripeId>>);
    impl ShardStore for Noting {
        async fn put_shard(&self, put: ShardPut) -> Result<(), PutShardError> {
            let mut ids = self.1.lock().unwrap();
            if ids.last() != Some(&put.stripe) {
                ids.push(put.stripe);
            }
            Err(PutShardError::Unavailable { disk: put.disk, reason: "no".to_owned() })
        }
        async fn read_shard(
            &self,
            disk: DiskId,
            stripe: StripeId,
            position: Position,
            offset: u32,
            length: u32,
        ) -> Result<Bytes, crate::store::ReadShardError> {
            self.0.read_shard(disk, stripe, position, offset, length).await
        }
    }
    let (sim, map) = (Sim::new(11), cluster(30, code()));
    let noting = Arc::new(Noting(sim.clone(), std::sync::Mutex::default()));
    let writer = StripeWriter::new(noting.clone(), sim.clone(), sim.clone());
    assert!(sim.run(writer.write(&map, plain_view(), &large().0, DEADLINE)).is_err());
    let ids = noting.1.lock().unwrap().clone();
    assert_eq!(ids.len(), ids.iter().collect::<std::collections::BTreeSet<_>>().len());
    assert!((2..=WRITE_ATTEMPTS_MAX).contains(&ids.len()), "attempts are bounded: {}", ids.len());
}

#[test]
fn writes_can_run_as_tasks() {
    fn sendable<T: Send>(value: T) -> T {
        value
    }
    let (sim, map) = (Sim::new(12), cluster(6, code()));
    let writer = StripeWriter::new(sim.clone(), sim.clone(), sim.clone());
    let (sealed, _plains) = large();
    assert!(sim.run(sendable(writer.write(&map, plain_view(), &sealed, DEADLINE))).is_ok());
}

/// The view of a caller who knows that late disks answer others.
fn late_is_slow() -> DiskView<'static> {
    DiskView { state: &|_disk| DiskState::Fine, hangs: &|_disk| false }
}

#[test]
fn a_busy_disk_is_waited_for_and_makes_no_stripe_short() {
    for (disks, view) in [(6, plain_view()), (6, late_is_slow()), (18, late_is_slow())] {
        for sealed in [large().0, small().0] {
            let (sim, map) = (Sim::new(13), cluster(disks, code()));
            for index in 0..disks {
                sim.set_fault(disk_id(index), Fault::BusyUntil(Duration::from_secs(3)));
            }
            let writer = StripeWriter::new(sim.clone(), sim.clone(), sim.clone());
            let written = sim.run(writer.write(&map, view, &sealed, DEADLINE)).unwrap();
            assert!(written.record.missing.is_empty(), "{:?}", written.record);
            assert!(written.failed.is_empty(), "nobody is blamed");
            let now = sim.clock.now();
            assert!((Duration::from_secs(3)..Duration::from_secs(5)).contains(&now), "{now:?}");
            assert!(sim.puts() < 200, "with back-off: {}", sim.puts());
        }
    }
}

#[test]
fn a_disk_that_stays_busy_or_slow_is_refused_as_busy_and_never_short() {
    for fault in [Fault::BusyUntil(DEADLINE * 100), Fault::Slow(DEADLINE * 100)] {
        let (sim, map) = (Sim::new(14), cluster(6, code()));
        sim.set_fault(disk_id(2), fault);
        let writer = StripeWriter::new(sim.clone(), sim.clone(), sim.clone());
        let error = sim.run(writer.write(&map, late_is_slow(), &large().0, DEADLINE)).unwrap_err();
        assert!(matches!(error, WriteStripeError::Busy { deadlines: WRITE_ATTEMPTS_MAX, .. }), "{error}");
        let attempts = u32::try_from(WRITE_ATTEMPTS_MAX).unwrap();
        assert_eq!(sim.clock.now(), DEADLINE * attempts);
    }
}

#[test]
fn a_slow_disk_is_waited_for_when_there_is_no_volume_without_one() {
    let (sim, map) = (Sim::new(15), cluster(6, code()));
    sim.set_fault(disk_id(2), Fault::Slow(DEADLINE * 5 / 2));
    let writer = StripeWriter::new(sim.clone(), sim.clone(), sim.clone());
    let written = sim.run(writer.write(&map, late_is_slow(), &large().0, DEADLINE)).unwrap();
    assert!(written.record.missing.is_empty());
    assert_eq!(sim.clock.now(), DEADLINE * 5 / 2);
}

#[test]
fn a_slow_disk_is_gone_around_where_others_suffice() {
    let (sim, map) = (Sim::new(16), cluster(18, code()));
    sim.set_fault(disk_id(2), Fault::Slow(DEADLINE * 100));
    let known = |disk| if disk == disk_id(2) { DiskState::Slow } else { DiskState::Fine };
    let writer = StripeWriter::new(sim.clone(), sim.clone(), sim.clone());
    for _stripe in 0..20 {
        let view = DiskView { state: &known, hangs: &|_disk| false };
        let record = sim.run(writer.write(&map, view, &large().0, DEADLINE)).unwrap().record;
        assert!(record.missing.is_empty() && !used_disks(&map, &record).contains(&disk_id(2)));
    }
    assert!(sim.clock.now() < DEADLINE, "nobody waited for it");
    for _stripe in 0..20 {
        let began = sim.clock.now();
        let record = sim.run(writer.write(&map, late_is_slow(), &large().0, DEADLINE)).unwrap().record;
        assert!(record.missing.is_empty());
        assert!(sim.clock.now() - began < DEADLINE * 2, "one deadline, then another volume");
    }
}

#[test]
fn a_write_that_fails_in_every_volume_it_tried_is_not_acknowledged_short_while_healthy_ones_remain() {
    // One disk of each of the first volumes is down; there are more volumes than attempts, all of other disks.
    for seed in 0..20 {
        let volumes = WRITE_ATTEMPTS_MAX as u64 * 4;
        let (sim, mut map) = (Sim::new(seed), cluster(volumes * 6, code()));
        map.volumes.truncate(usize::try_from(volumes).unwrap());
        for (volume, first) in map.volumes.iter_mut().zip((0..).step_by(6)) {
            volume.members = (first..first + 6).map(disk_id).collect();
            if first > 0 {
                sim.set_fault(disk_id(first), Fault::Down);
            }
        }
        match write(&sim, &map, &large().0) {
            Ok(written) => assert!(written.record.missing.is_empty(), "seed {seed}: short"),
            Err(WriteStripeError::Unsettled { failed }) => assert_eq!(failed.len(), WRITE_ATTEMPTS_MAX),
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
}
