//! Whether a disk is what the cluster knows it to be, or an older copy. Pure.
//!
//! Each start of a disk has a random number, and says which starts it descends from and how many records it found.
//! The root group keeps, for each disk, the start that was confirmed last and how many records that has appended at
//! least. A start is judged once, by what it found; from then on it is confirmed, and its count is attested as it
//! grows.
//!
//! Invariants:
//! - A start that does not descend from the registered one, or found fewer records than are attested, is never
//!   confirmed: the disk stays behind until its directory is the right one again.
//! - A disk of which a write or a sync failed serves nothing until the operator has had it verified.

use engine::cluster::{DiskAttestation, Health};

use super::liveness::DiskReport;

/// What is to become of a disk's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Nothing is told of it.
    Unknown,
    /// It is the registered one, and goes on.
    Known,
    /// It takes the registered one's place.
    Accepted,
    /// The disk holds less than it acknowledged.
    Behind(String),
    /// The disk was fenced.
    Fenced(String),
}

/// Judges a start by what is attested: the registered row, with what this leader has heard since.
pub(super) fn judge(attested: &DiskAttestation, report: &DiskReport) -> Judgement {
    let start = &report.start;
    if start.starts == 0 || start.incarnation == 0 {
        return Judgement::Unknown;
    }
    if attested.incarnation == 0 {
        return Judgement::Accepted;
    }
    let known = start.incarnation == attested.incarnation;
    let descends = start.lineage.iter().find(|(incarnation, _opened)| *incarnation == attested.incarnation);
    let opened = descends.map(|(_incarnation, opened)| *opened);
    if !known && opened.is_none() {
        return Judgement::Behind(format!(
            "its directory is an older copy: this is its start {}, and does not follow on start {} that the cluster \
             knows; put the right directory back",
            start.starts, attested.starts
        ));
    }
    if let Some(opened) = opened.filter(|opened| !known && *opened < attested.sequence) {
        return Judgement::Behind(format!(
            "it holds less than it acknowledged: {} records were appended, {} are known of; put the right directory \
             back",
            opened, attested.sequence
        ));
    }
    if attested.fenced_starts > start.verified_starts && !start.fenced {
        return Judgement::Fenced(format!(
            "fenced: a write failed in its start {}; once the disk is sound, stop its node and run `keepstone storage \
             --config FILE --unfence {}`",
            attested.fenced_starts, report.path
        ));
    }
    if known { Judgement::Known } else { Judgement::Accepted }
}

/// What is to be attested of a start that goes on or is accepted.
pub(super) fn attestation(attested: &DiskAttestation, report: &DiskReport) -> DiskAttestation {
    let start = &report.start;
    let lifted = attested.fenced_starts <= start.verified_starts;
    let before = if lifted { 0 } else { attested.fenced_starts };
    DiskAttestation {
        starts: start.starts,
        incarnation: start.incarnation,
        sequence: start.sequence,
        fenced_starts: if start.fenced { start.starts } else { before },
    }
}

/// Makes a report say what the judgement is.
pub(super) fn overrule(report: &mut DiskReport, judgement: &Judgement) {
    match judgement {
        Judgement::Behind(reason) if report.health.readable() => {
            report.health = Health::Behind;
            report.reason.clone_from(reason);
        }
        Judgement::Fenced(reason) if report.health.readable() => {
            report.health = Health::Failed;
            report.reason.clone_from(reason);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::liveness::DiskStart;
    use super::*;
    use engine::cluster::DiskUsage;

    fn report(start: DiskStart) -> DiskReport {
        let (path, usage) = ("/d".to_owned(), DiskUsage::default());
        DiskReport { path, health: Health::Up, reason: String::new(), usage, start }
    }

    fn start(starts: u64, incarnation: u64, lineage: &[u64], sequence: u64) -> DiskStart {
        let lineage = lineage.iter().map(|before| (*before, sequence)).collect();
        DiskStart { starts, incarnation, lineage, sequence, ..DiskStart::default() }
    }

    const KNOWN: DiskAttestation =
        DiskAttestation { starts: 3, incarnation: 33, sequence: 10, fenced_starts: 0 };

    #[test]
    fn a_start_is_accepted_if_it_follows_and_holds_all_that_is_attested() {
        assert_eq!(judge(&DiskAttestation::default(), &report(start(1, 11, &[], 0))), Judgement::Accepted);
        assert_eq!(judge(&KNOWN, &report(DiskStart::default())), Judgement::Unknown);
        assert_eq!(judge(&KNOWN, &report(start(3, 33, &[], 7))), Judgement::Known, "its count may be older");
        assert_eq!(judge(&KNOWN, &report(start(4, 44, &[33], 10))), Judgement::Accepted);
        // Starts in between that no leader heard of.
        assert_eq!(judge(&KNOWN, &report(start(6, 66, &[33, 44, 55], 12))), Judgement::Accepted);
    }

    #[test]
    fn an_older_copy_and_one_that_lost_its_end_are_behind() {
        let older = [start(3, 99, &[22], 10), start(9, 99, &[22, 88], 1000), start(1, 99, &[], 0)];
        for older in older {
            assert!(matches!(judge(&KNOWN, &report(older)), Judgement::Behind(_)));
        }
        let short = report(start(4, 44, &[33], 9));
        let Judgement::Behind(reason) = judge(&KNOWN, &short) else { panic!("one record is missing") };
        assert!(reason.contains("holds less"), "{reason}");
        // What it appends now does not make up for it.
        let later = DiskStart { sequence: 50, ..start(4, 44, &[33], 9) };
        assert!(matches!(judge(&KNOWN, &report(later)), Judgement::Behind(_)));
    }

    #[test]
    fn what_counts_is_what_was_found_after_the_registered_start() {
        // The registered start was heard of, and could not note that: what the one before it found is long past.
        let crashed = DiskStart { lineage: vec![(22, 0), (33, 10)], ..start(4, 44, &[], 10) };
        assert_eq!(judge(&KNOWN, &report(crashed)), Judgement::Accepted);
        // A copy that appended before it was told that it is behind, and was started again.
        let copy = DiskStart { lineage: vec![(33, 6), (44, 11)], ..start(5, 55, &[], 11) };
        assert!(matches!(judge(&KNOWN, &report(copy)), Judgement::Behind(_)));
    }

    #[test]
    fn a_fence_holds_until_the_disk_was_verified() {
        let failing = DiskStart { fenced: true, ..start(3, 33, &[], 10) };
        let failing = DiskReport { health: Health::Failed, ..report(failing) };
        let fenced = attestation(&KNOWN, &failing);
        assert_eq!(fenced.fenced_starts, 3);
        let mut again = report(start(4, 44, &[33], 10));
        let judgement = judge(&fenced, &again);
        assert!(matches!(judgement, Judgement::Fenced(_)));
        overrule(&mut again, &judgement);
        assert_eq!(again.health, Health::Failed);
        let verified = report(DiskStart { verified_starts: 4, ..start(5, 55, &[33, 44], 10) });
        assert_eq!(judge(&fenced, &verified), Judgement::Accepted);
        assert_eq!(attestation(&fenced, &verified).fenced_starts, 0);
    }
}
