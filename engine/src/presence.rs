//! Whether a stripe can be read, judged without reading it: by what the cluster map says of its disks, and by what they
//! answer when asked for a byte of their shards.

use crate::cluster::{ClusterMap, StripeLayout};
use crate::code::Code;
use crate::ids::{DiskId, Position, StripeId};
use crate::stripe::used_positions;

/// What a disk answers when it is asked for a byte of its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardAnswer {
    /// It has it.
    There,
    /// It serves, and does not have it, or has it damaged.
    Lost,
    /// It does not answer, or cannot say now.
    Silent,
}

/// What is known of a stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No shard that was asked for is lost, and there are enough.
    Sound,
    /// Some shards are lost, and there are enough others: whether they give every chunk, only reading shows.
    Damaged,
    /// Too few disks answer now.
    Unavailable,
    /// Too few shards are left, whichever disks come back.
    Lost,
}

/// Shards that it takes to read a stripe.
#[must_use]
pub fn shards_needed(code: Code, layout: StripeLayout) -> usize {
    match layout {
        StripeLayout::Coded => code.data(),
        StripeLayout::Copies => 1,
    }
}

/// The positions of a stripe whose disks can be read now, by the map; `None` if the map does not know its volume.
#[must_use]
pub fn readable_shards(
    map: &ClusterMap,
    stripe: StripeId,
    layout: StripeLayout,
) -> Option<Vec<(Position, DiskId)>> {
    let volume = map.volume(stripe.volume())?;
    let disks = used_positions(volume.code, stripe, layout).iter().filter_map(|position| {
        let disk = *volume.members.get(usize::from(position.0))?;
        map.disk_health(disk).readable().then_some((position, disk))
    });
    Some(disks.collect())
}

/// Whether enough disks of a stripe can be read now, by the map.
#[must_use]
pub fn readable_by_map(map: &ClusterMap, stripe: StripeId, layout: StripeLayout) -> bool {
    let code = map.volume(stripe.volume()).map(|volume| volume.code);
    let readable = readable_shards(map, stripe, layout).map_or(0, |shards| shards.len());
    code.is_some_and(|code| readable >= shards_needed(code, layout))
}

/// Judges by the answers of those disks that were asked.
#[must_use]
pub fn judge(code: Code, stripe: StripeId, layout: StripeLayout, answers: &[ShardAnswer]) -> Verdict {
    let count = |kind| answers.iter().filter(|answer| **answer == kind).count();
    let (there, lost) = (count(ShardAnswer::There), count(ShardAnswer::Lost));
    let (need, all) = (shards_needed(code, layout), used_positions(code, stripe, layout).count());
    if there >= need {
        if lost == 0 { Verdict::Sound } else { Verdict::Damaged }
    } else if all - lost < need {
        Verdict::Lost
    } else {
        Verdict::Unavailable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Health;
    use crate::ids::VolumeId;
    use crate::simulation::{cluster, disk_id, set_health};

    fn code() -> Code {
        "4+2".parse().unwrap()
    }

    #[test]
    fn the_map_says_when_too_few_disks_are_left() {
        let mut map = cluster(6, code());
        let stripe = StripeId::new(map.volumes[0].volume, [3; 8]);
        for index in 0..2 {
            assert!(readable_by_map(&map, stripe, StripeLayout::Coded));
            set_health(&mut map, disk_id(index), Health::Missing);
        }
        set_health(&mut map, disk_id(2), Health::Full);
        assert!(readable_by_map(&map, stripe, StripeLayout::Coded), "two of six lost; a full disk reads");
        set_health(&mut map, disk_id(2), Health::Failed);
        assert!(!readable_by_map(&map, stripe, StripeLayout::Coded));
        assert!(!readable_by_map(&map, StripeId::new(VolumeId(999), [3; 8]), StripeLayout::Coded));
        // One copy is enough, and its place is on one of three disks that the id chooses.
        let copies = (0..=u8::MAX).map(|byte| StripeId::new(map.volumes[0].volume, [byte; 8]));
        let readable = copies.filter(|stripe| readable_by_map(&map, *stripe, StripeLayout::Copies)).count();
        assert!((1..=255).contains(&readable), "{readable}");
    }

    #[test]
    fn lost_for_good_and_for_now_are_told_apart() {
        use ShardAnswer::{Lost, Silent, There};
        let stripe = StripeId::new(VolumeId(1), [3; 8]);
        let coded = |answers: &[ShardAnswer]| judge(code(), stripe, StripeLayout::Coded, answers);
        assert_eq!(coded(&[There, There, There, There, Silent, Silent]), Verdict::Sound);
        assert_eq!(coded(&[There, There, There, There, Lost, Lost]), Verdict::Damaged);
        assert_eq!(coded(&[There, There, There, Lost, Silent, Silent]), Verdict::Unavailable);
        assert_eq!(coded(&[There, There, There, Lost, Lost, Lost]), Verdict::Lost);
        assert_eq!(coded(&[Lost, Lost, Lost]), Verdict::Lost, "whatever the others would say");
        assert_eq!(coded(&[]), Verdict::Unavailable);
        let copies = |answers: &[ShardAnswer]| judge(code(), stripe, StripeLayout::Copies, answers);
        assert_eq!(copies(&[There, Silent, Silent]), Verdict::Sound);
        assert_eq!(copies(&[Lost, Lost, Lost]), Verdict::Lost);
        assert_eq!(copies(&[Lost, Lost, Silent]), Verdict::Unavailable);
    }
}
