use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

fn disk(number: u8) -> DiskId {
    DiskId::from_bytes([number; 16])
}

fn model() -> DiskHealth {
    DiskHealth::new(HealthBounds::for_deadline(DEADLINE))
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn call(health: &mut DiskHealth, number: u8, kind: CallKind, began: u64, ended: u64, end: CallEnd) {
    health.begin(at(began), disk(number), kind);
    health.end(at(ended), disk(number), kind, at(began), end);
}

#[test]
fn a_hung_disk_is_learned_from_the_first_call_that_is_given_up_and_held_until_it_answers() {
    let mut health = model();
    call(&mut health, 1, CallKind::Write, 0, 10_000, CallEnd::GivenUp);
    assert_eq!(health.state(at(10_000), disk(1), CallKind::Write), DiskState::Gone);
    assert_eq!(health.state(at(3_600_000), disk(1), CallKind::Write), DiskState::Gone, "not forgotten");
    assert_eq!(health.state(at(10_000), disk(1), CallKind::Read), DiskState::Fine, "reads are judged apart");
    let hung = HungDisk { disk: disk(1), kind: CallKind::Write, since: at(0) };
    assert_eq!(health.hung(at(20_000)), [hung]);
    call(&mut health, 1, CallKind::Write, 30_000, 30_002, CallEnd::Answered);
    assert_eq!(health.state(at(30_002), disk(1), CallKind::Write), DiskState::Fine);
    assert!(health.hung(at(30_002)).is_empty());
}

#[test]
fn a_call_that_still_waits_counts_as_well() {
    let mut health = model();
    health.begin(at(0), disk(1), CallKind::Write);
    assert_eq!(health.state(at(1_000), disk(1), CallKind::Write), DiskState::Fine);
    assert_eq!(health.state(at(3_000), disk(1), CallKind::Write), DiskState::Slow);
    assert!(!health.hangs(at(8_000), disk(1), CallKind::Write));
    assert!(health.hangs(at(10_000), disk(1), CallKind::Write));
}

#[test]
fn a_disk_that_answers_others_is_slow_and_does_not_hang() {
    let mut health = model();
    health.begin(at(0), disk(1), CallKind::Write);
    for second in 1..12 {
        call(&mut health, 1, CallKind::Write, second * 1000 - 900, second * 1000, CallEnd::Answered);
    }
    assert!(!health.hangs(at(11_500), disk(1), CallKind::Write));
    health.end(at(12_000), disk(1), CallKind::Write, at(0), CallEnd::GivenUp);
    assert_ne!(health.state(at(12_000), disk(1), CallKind::Write), DiskState::Gone);
}

#[test]
fn short_waits_that_are_far_apart_are_no_hang() {
    let mut health = model();
    for hour in 0..20 {
        call(&mut health, 1, CallKind::Read, hour * 3_600_000, hour * 3_600_000 + 500, CallEnd::GivenUp);
    }
    assert_eq!(health.state(at(20 * 3_600_000), disk(1), CallKind::Read), DiskState::Fine);
}

#[test]
fn hedged_reads_that_are_given_up_one_after_the_other_add_up() {
    let mut health = model();
    let mut now = 0;
    while health.state(at(now), disk(1), CallKind::Read) != DiskState::Gone {
        call(&mut health, 1, CallKind::Read, now, now + 600, CallEnd::GivenUp);
        now += 700;
        assert!(now < 11_000, "never learned");
    }
    assert!(now >= 8_000, "learned too early: {now}");
}

#[test]
fn busy_is_not_broken_while_anything_is_answered() {
    let mut health = model();
    for round in 0..300 {
        let now = round * 100;
        call(&mut health, 1, CallKind::Write, now, now + 1, CallEnd::Busy);
        call(&mut health, 1, CallKind::Write, now + 2, now + 50, CallEnd::Answered);
        assert_eq!(health.state(at(now + 60), disk(1), CallKind::Write), DiskState::Fine);
    }
}

#[test]
fn a_queue_that_stays_full_and_never_moves_is_a_hang() {
    let mut health = model();
    for round in 0..120 {
        call(&mut health, 1, CallKind::Write, round * 100, round * 100 + 1, CallEnd::Busy);
    }
    assert!(health.hangs(at(12_000), disk(1), CallKind::Write));
}

#[test]
fn a_disk_that_failed_is_left_alone_for_a_moment() {
    let mut health = model();
    call(&mut health, 1, CallKind::Read, 0, 5, CallEnd::Failed);
    for kind in [CallKind::Read, CallKind::Write] {
        assert_eq!(health.state(at(100), disk(1), kind), DiskState::Gone);
        assert_eq!(health.state(at(2_100), disk(1), kind), DiskState::Fine);
    }
    call(&mut health, 2, CallKind::Write, 0, 5, CallEnd::Refused);
    assert_eq!(health.state(at(100), disk(2), CallKind::Write), DiskState::Gone);
    assert_eq!(health.state(at(100), disk(2), CallKind::Read), DiskState::Fine, "a full disk reads");
    assert_eq!(health.state(at(100), disk(3), CallKind::Write), DiskState::Fine, "others are not blamed");
}

#[test]
fn a_disk_that_is_much_later_than_the_others_is_slow_until_that_is_long_ago() {
    let mut health = model();
    for round in 0..10 {
        for number in 1..=6 {
            let delay = if number == 3 { 900 } else { 20 };
            call(&mut health, number, CallKind::Write, round * 1000, round * 1000 + delay, CallEnd::Answered);
        }
    }
    assert_eq!(health.state(at(10_000), disk(3), CallKind::Write), DiskState::Slow);
    assert_eq!(health.state(at(10_000), disk(2), CallKind::Write), DiskState::Fine);
    assert_eq!(health.state(at(60_000), disk(3), CallKind::Write), DiskState::Fine, "tried again");
}

#[test]
fn when_all_are_late_none_is_slow() {
    let mut health = model();
    for round in 0..10 {
        for number in 1..=6 {
            call(&mut health, number, CallKind::Write, round * 1000, round * 1000 + 900, CallEnd::Answered);
        }
    }
    assert_eq!(health.state(at(10_000), disk(3), CallKind::Write), DiskState::Fine);
}

#[test]
fn hung_disks_are_probed_now_and_then_by_one_call_at_a_time() {
    let mut health = model();
    call(&mut health, 1, CallKind::Write, 0, 10_000, CallEnd::GivenUp);
    assert!(health.probes_due(at(10_001)).is_empty(), "not at once");
    assert_eq!(health.probes_due(at(15_000)), [(disk(1), CallKind::Write)]);
    assert!(health.probes_due(at(16_000)).is_empty());
    health.begin(at(16_000), disk(1), CallKind::Write);
    assert!(health.probes_due(at(90_000)).is_empty(), "one is under way");
    health.end(at(90_000), disk(1), CallKind::Write, at(16_000), CallEnd::GivenUp);
    assert_eq!(health.probes_due(at(90_001)).len(), 1);
}

#[test]
fn a_disk_that_is_forgotten_is_judged_by_what_comes_then() {
    let mut health = model();
    call(&mut health, 1, CallKind::Write, 0, 10_000, CallEnd::GivenUp);
    call(&mut health, 1, CallKind::Read, 0, 10, CallEnd::Failed);
    health.begin(at(10_000), disk(1), CallKind::Write);
    assert_eq!(health.state(at(10_001), disk(1), CallKind::Write), DiskState::Gone);
    health.forget(disk(1));
    for kind in [CallKind::Read, CallKind::Write] {
        assert_eq!(health.state(at(10_001), disk(1), kind), DiskState::Fine);
    }
    health.end(at(10_002), disk(1), CallKind::Write, at(10_000), CallEnd::Failed);
    assert_eq!(health.state(at(10_003), disk(1), CallKind::Write), DiskState::Gone);
}

#[test]
fn what_is_delayed_is_what_the_middle_delay_says() {
    for counts in 0..3_u32.pow(9) {
        let mut lane = Lane::default();
        // Each of nine places: no delay, a short or a long one.
        for place in 0..9 {
            match counts / 3_u32.pow(place) % 3 {
                0 => {}
                kind => lane.delays.push_back((at(1), at(u64::from(kind) * 10))),
            }
        }
        for least in [at(10), at(15), at(20), at(21)] {
            let middle = lane.delay(at(2));
            let expected = middle.is_some_and(|delay| delay >= least);
            assert_eq!(lane.is_delayed(at(2), least), expected, "{:?}", lane.delays);
        }
    }
}

#[test]
fn the_percentile_of_reads_needs_enough_of_them() {
    let mut health = model();
    for read in 0..100 {
        if read == 20 {
            assert_eq!(health.read_delay_p99(), None);
        }
        let delay = if read % 50 == 49 { 80 } else { 4 };
        call(&mut health, 1, CallKind::Read, read * 100, read * 100 + delay, CallEnd::Answered);
    }
    assert_eq!(health.read_delay_p99(), Some(at(80)));
}

#[test]
fn the_memory_is_bounded() {
    let mut health = model();
    for number in 0..DISKS_MAX as u64 * 3 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        let disk = DiskId::from_bytes(bytes);
        health.begin(at(number), disk, CallKind::Read);
        health.end(at(number), disk, CallKind::Read, at(number), CallEnd::Failed);
    }
    assert!(health.lanes.len() <= 2 * DISKS_MAX);
}
