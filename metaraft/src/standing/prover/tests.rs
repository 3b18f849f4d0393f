use super::*;

const GRACE: Duration = WITNESS_GRACE;
const BEGUN: Attestation = Attestation { incarnation: [1; 16], start: 4, run: [4; 16], sequence: 70 };
const LAST: Attestation = Attestation { incarnation: [1; 16], start: 3, run: [3; 16], sequence: 70 };

fn roster() -> Roster {
    (1..=3).map(|node| (node, [u8::try_from(node).unwrap(); 16])).collect()
}

fn voter(node: u64) -> VoterSelf {
    VoterSelf { incarnation: [u8::try_from(node).unwrap(); 16], roster: Some(roster()) }
}

/// Node 1 of three, enrolled, which knows of the storage nodes 11 and 12.
fn enrolled() -> Prover {
    let found = Found { attestation: LAST, roster: Some(roster()), witnesses: [11, 12].into() };
    Prover::new(NodeId(1), (1..=3).collect(), found, None, Duration::ZERO)
}

fn blank() -> Prover {
    let attestation = Attestation { start: 0, run: [0; 16], sequence: 0, ..LAST };
    let found = Found { attestation, roster: None, witnesses: BTreeSet::new() };
    Prover::new(NodeId(1), (1..=3).collect(), found, None, Duration::ZERO)
}

fn hear_of_voters(prover: &mut Prover, nodes: &[u64], held: Option<Attestation>) {
    for node in nodes {
        prover.meet(*node, voter(*node));
        prover.hear(WitnessId::Voter(*node), held);
    }
}

fn waits_for(prover: &Prover) -> String {
    match prover.standing() {
        Standing::Waits(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn everybody_is_asked_then_told_and_then_it_votes() {
    let mut prover = enrolled();
    hear_of_voters(&mut prover, &[2, 3], Some(LAST));
    prover.hear(WitnessId::Storage(11), Some(LAST));
    assert_eq!(prover.step(Duration::ZERO), None);
    assert!(waits_for(&prover).ends_with("not heard of yet: storage node 12"));
    prover.hear(WitnessId::Storage(12), None);
    assert_eq!(prover.telling(70), None, "nothing is told before it is durable");
    assert_eq!(prover.step(Duration::ZERO), Some(Action::Begin));
    prover.began(BEGUN, Duration::ZERO);
    assert_eq!(prover.telling(71), Some(Attestation { sequence: 71, ..BEGUN }));
    hear_of_voters(&mut prover, &[2, 3], Some(BEGUN));
    prover.hear(WitnessId::Storage(11), Some(BEGUN));
    assert_eq!(prover.step(Duration::ZERO), None);
    assert!(!prover.standing().votes());
    prover.hear(WitnessId::Storage(12), Some(BEGUN));
    assert_eq!(prover.step(Duration::ZERO), None);
    assert!(prover.standing().votes() && prover.may_found());
}

#[test]
fn without_all_witnesses_a_majority_and_the_grace_are_needed_in_both_rounds() {
    let mut prover = enrolled();
    prover.hear(WitnessId::Storage(11), Some(LAST));
    prover.hear(WitnessId::Storage(12), Some(LAST));
    assert_eq!(prover.step(GRACE * 10), None, "no other voter is there");
    hear_of_voters(&mut prover, &[3], Some(LAST));
    assert_eq!(prover.step(GRACE / 2), None);
    assert_eq!(prover.step(GRACE), Some(Action::Begin));
    prover.began(BEGUN, GRACE);
    hear_of_voters(&mut prover, &[3], Some(BEGUN));
    assert_eq!(prover.step(GRACE * 3 / 2), None);
    assert!(!prover.standing().votes());
    assert_eq!(prover.step(GRACE * 2), None);
    assert!(prover.standing().votes());
    assert!(!prover.may_found(), "founding needs all of them");
}

#[test]
fn a_witness_that_knows_better_ends_it_for_good_also_when_it_comes_late() {
    let better = Attestation { sequence: 71, ..LAST };
    let mut prover = enrolled();
    prover.hear(WitnessId::Storage(11), Some(better));
    let Standing::Refuses(reason) = prover.standing() else { panic!("{:?}", prover.standing()) };
    assert!(reason.contains("storage node 11") && reason.contains("lost synced writes"), "{reason}");
    hear_of_voters(&mut prover, &[2, 3], Some(LAST));
    assert_eq!(prover.step(GRACE * 10), None);

    let mut late = enrolled();
    hear_of_voters(&mut late, &[2], Some(LAST));
    assert_eq!(late.step(GRACE), Some(Action::Begin));
    late.began(BEGUN, GRACE);
    hear_of_voters(&mut late, &[2], Some(BEGUN));
    assert_eq!(late.step(GRACE * 2), None);
    assert!(late.standing().votes());
    late.hear(WitnessId::Storage(12), Some(better));
    assert!(matches!(late.standing(), Standing::Refuses(_)));
    assert_eq!(late.telling(99), None);
}

#[test]
fn blank_nodes_enrol_once_all_have_met() {
    let mut prover = blank();
    prover.meet(2, VoterSelf { roster: None, ..voter(2) });
    assert_eq!(prover.step(GRACE * 10), None);
    assert!(waits_for(&prover).contains("before all its metadata nodes are there"));
    prover.meet(3, VoterSelf { roster: None, ..voter(3) });
    assert_eq!(prover.step(Duration::ZERO), Some(Action::Enrol(roster())));
    prover.enrolled(roster());
    assert_eq!(prover.step(Duration::ZERO), None, "then it asks, like any other start");
}

#[test]
fn a_wiped_node_refuses_and_one_that_crashed_while_all_enrolled_goes_on() {
    let other = Roster::from([(1, [9; 16]), (2, [2; 16]), (3, [3; 16])]);
    let mut wiped = blank();
    wiped.meet(2, VoterSelf { roster: Some(other), ..voter(2) });
    let Standing::Refuses(reason) = wiped.standing() else { panic!("{:?}", wiped.standing()) };
    assert!(reason.contains("wiped") && reason.contains("new id"), "{reason}");

    let mut crashed = blank();
    crashed.meet(2, voter(2));
    assert_eq!(crashed.step(Duration::ZERO), Some(Action::Enrol(roster())));
}

#[test]
fn a_stranger_in_a_voters_place_makes_no_majority_and_stops_nobody() {
    let mut prover = enrolled();
    let stranger = VoterSelf { incarnation: [8; 16], roster: None };
    prover.meet(2, stranger.clone());
    prover.hear(WitnessId::Voter(2), None);
    assert_eq!(prover.step(GRACE * 10), None);
    assert!(waits_for(&prover).contains("metadata node 2 (it is not the one that it was)"));
    hear_of_voters(&mut prover, &[3], Some(LAST));
    assert_eq!(prover.step(GRACE), Some(Action::Begin));
}

#[test]
fn a_storage_node_that_holds_something_is_remembered() {
    let mut prover = enrolled();
    hear_of_voters(&mut prover, &[2, 3], None);
    for storage in 11..=13 {
        prover.hear(WitnessId::Storage(storage), None);
    }
    assert_eq!(prover.step(Duration::ZERO), Some(Action::Begin));
    prover.began(BEGUN, Duration::ZERO);
    prover.hear(WitnessId::Storage(13), Some(BEGUN));
    assert_eq!(prover.step(Duration::ZERO), Some(Action::Remember([11, 12, 13].into())));
    assert_eq!(prover.step(Duration::ZERO), None);
}

#[test]
fn a_voter_alone_asks_nobody() {
    let found = Found { attestation: LAST, roster: None, witnesses: BTreeSet::new() };
    let mut prover = Prover::new(NodeId(1), [1].into(), found, None, Duration::ZERO);
    assert_eq!(prover.step(Duration::ZERO), Some(Action::Enrol([(1, [1; 16])].into())));
    prover.enrolled([(1, [1; 16])].into());
    assert_eq!(prover.step(Duration::ZERO), Some(Action::Begin));
    prover.began(BEGUN, Duration::ZERO);
    assert_eq!(prover.step(Duration::ZERO), None);
    assert!(prover.standing().votes() && prover.may_found());
}
