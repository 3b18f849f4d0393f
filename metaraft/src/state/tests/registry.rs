//! Contents, chunks, stripes and fences.

use engine::cluster::{StripeLayout, StripeRecord, StripeShape};
use engine::code::{Code, PositionSet};
use engine::ids::{ChunkId, ContentId, Epoch, HolderId, NamespaceId, StripeId, VolumeId};
use engine::location::{ChunkKind, ChunkLocation, Codec};

use super::super::keys;
use super::{Harness, SPACE, chunks, holder_of, retain_step};
use crate::kv::{Backing, Changes};
use crate::model::codec::{decode, encode};
use crate::model::command::{DataStep, NewChunk, StepError};
use crate::model::outcome::StepOutcome;
use crate::model::query::{Query, Reply};
use crate::model::row::{ChunkRow, ChunkState};

const CHUNK: ChunkId = ChunkId::from_bytes([1; 32]);

fn holder(number: u8) -> HolderId {
    HolderId::from_bytes([number; 16])
}

fn stripe(number: u8) -> StripeRecord {
    StripeRecord {
        stripe: StripeId::new(VolumeId(3), [number; 8]),
        code: Code::new(4, 2).unwrap(),
        shape: StripeShape { layout: StripeLayout::Coded, length: 10_000 },
        epoch: Epoch(2),
        used: PositionSet(0b11_1111),
        missing: PositionSet(0b1),
    }
}

fn new_chunk(number: u8, holders: Vec<HolderId>) -> NewChunk {
    let StripeRecord { stripe, shape, .. } = stripe(number);
    let location = ChunkLocation {
        stripe,
        shape,
        offset: 500,
        stored_length: 900,
        plain_length: 1000,
        codec: Codec::Zstd,
        kind: ChunkKind::Data,
    };
    NewChunk { chunk: CHUNK, location, holders }
}

fn register(number: u8, holders: Vec<HolderId>) -> DataStep {
    DataStep::ChunksRegister { epoch: Epoch(2), chunks: vec![new_chunk(number, holders)] }
}

fn pin(number: u8) -> DataStep {
    DataStep::ChunksPin { holder: holder(number), chunks: vec![CHUNK] }
}

fn unpin(number: u8) -> DataStep {
    DataStep::ChunksUnpin { holder: holder(number), chunks: vec![CHUNK] }
}

fn row(harness: &Harness) -> ChunkRow {
    decode(&harness.store.get(&keys::chunk(CHUNK)).unwrap().unwrap()).unwrap()
}

#[test]
fn the_first_registration_wins_and_the_last_pin_says_since_when() {
    let mut harness = Harness::data();
    assert_eq!(harness.done(pin(1)), StepOutcome::Pinned(vec![false]));
    assert_eq!(harness.done(register(1, vec![holder(1)])), StepOutcome::Registered(vec![true]));
    assert_eq!(harness.done(register(2, vec![holder(2)])), StepOutcome::Registered(vec![false]));
    assert_eq!(harness.done(register(1, vec![])), StepOutcome::Registered(vec![true]), "idempotent");
    for number in [1, 1, 2] {
        assert_eq!(row(&harness).unreferenced_since_ms, None);
        harness.done(unpin(number));
    }
    let since = harness.time_ms;
    assert_eq!(row(&harness).unreferenced_since_ms, Some(since));
    harness.time_ms += 1000;
    harness.done(unpin(2));
    assert_eq!(row(&harness).unreferenced_since_ms, Some(since), "nothing was taken away");
    assert_eq!(harness.done(pin(3)), StepOutcome::Pinned(vec![true]));
    assert_eq!(row(&harness).unreferenced_since_ms, None);
    let Reply::Counters(counters) = harness.ask(&Query::Counters) else { panic!("no counters") };
    assert_eq!((counters.chunks, counters.bytes_unique), (1, 1000));
}

#[test]
fn a_condemned_chunk_is_registered_anew_and_never_pinned() {
    let mut harness = Harness::data();
    harness.done(register(1, vec![]));
    let before = row(&harness);
    let condemned = ChunkRow { state: ChunkState::Condemned, ..before };
    harness.store.commit(Changes::from([(keys::chunk(CHUNK), Some(encode(&condemned)))]));
    assert_eq!(harness.done(pin(1)), StepOutcome::Pinned(vec![false]));
    let locate = Query::ChunksLocate { chunks: vec![CHUNK] };
    assert_eq!(harness.ask(&locate), Reply::Locations(vec![None]));
    assert_eq!(harness.done(register(2, vec![holder(1)])), StepOutcome::Registered(vec![true]));
    let anew = row(&harness);
    assert!(anew.generation > before.generation && anew.state == ChunkState::Live);
    assert_eq!(harness.ask(&locate), Reply::Locations(vec![Some(anew.location)]));
    let Reply::Counters(counters) = harness.ask(&Query::Counters) else { panic!("no counters") };
    assert_eq!((counters.chunks, counters.bytes_unique), (1, 1000));
}

#[test]
fn an_unreadable_chunk_is_asked_for_again_and_its_next_registration_heals_it_for_all_who_refer_to_it() {
    let mut harness = Harness::data();
    harness.done(register(1, vec![holder(1), holder(2)]));
    let before = row(&harness);
    let found = |number: u8| DataStep::ChunksUnreadable { chunks: vec![(CHUNK, stripe(number).stripe)] };
    assert_eq!(harness.done(found(2)), StepOutcome::Done);
    assert_eq!(row(&harness), before, "it lies elsewhere");
    harness.done(found(1));
    let lost = row(&harness);
    assert_eq!(lost, ChunkRow { state: ChunkState::Unreadable, ..before });
    assert_eq!(harness.done(pin(3)), StepOutcome::Pinned(vec![false]), "who uploads it is told to send it");
    let pinned = |number: u8| Query::ChunksPinned { holder: holder(number), chunks: vec![CHUNK] };
    assert_eq!(harness.ask(&pinned(1)), Reply::Flags(vec![false]), "a session that had it lacks it again");
    let locate = Query::ChunksLocate { chunks: vec![CHUNK] };
    assert_eq!(harness.ask(&locate), Reply::Locations(vec![Some(before.location)]), "who reads may try");

    let again = harness.done(register(1, vec![holder(1)]));
    assert_eq!(again, StepOutcome::Registered(vec![true]), "a late repetition");
    assert_eq!(row(&harness), lost, "and heals nothing");
    assert_eq!(harness.done(register(2, vec![])), StepOutcome::Registered(vec![true]));
    let healed = row(&harness);
    assert!(healed.generation > before.generation && healed.state == ChunkState::Live);
    assert_eq!(healed.unreferenced_since_ms, None, "it is still referred to");
    assert_eq!(harness.ask(&pinned(1)), Reply::Flags(vec![true]));
    harness.done(found(1));
    assert_eq!(row(&harness), healed, "a late finding of the old place");
    let Reply::Counters(counters) = harness.ask(&Query::Counters) else { panic!("no counters") };
    assert_eq!((counters.chunks, counters.bytes_unique), (1, 1000));
    for number in [1, 2] {
        harness.done(unpin(number));
    }
    assert_eq!(row(&harness).unreferenced_since_ms, Some(harness.time_ms));
}

#[test]
fn registrations_of_an_older_epoch_are_fenced_out() {
    let mut harness = Harness::data();
    let volume = VolumeId(3);
    harness.done(DataStep::VolumeFence { volume, epoch: Epoch(2) });
    harness.done(DataStep::StripeRegister { record: stripe(1) });
    harness.done(register(1, vec![]));
    harness.done(DataStep::VolumeFence { volume, epoch: Epoch(5) });
    harness.done(DataStep::VolumeFence { volume, epoch: Epoch(4) });
    let stale = Err(StepError::StaleEpoch { current: Epoch(5) });
    assert_eq!(harness.step(register(2, vec![])), stale);
    assert_eq!(harness.step(DataStep::StripeRegister { record: stripe(2) }), stale);
    assert_eq!(harness.step(DataStep::StripeRegister { record: stripe(1) }), Ok(StepOutcome::Done));
    let Reply::Counters(counters) = harness.ask(&Query::Counters) else { panic!("no counters") };
    assert_eq!(counters.stripes.len(), 1);
    assert_eq!((counters.stripes[0].stripes, counters.stripes[0].missing), (1, PositionSet(1)));
}

#[test]
fn stripes_and_places_that_cannot_be_are_refused() {
    let mut harness = Harness::data();
    let good = stripe(1);
    let bad = [
        StripeRecord { used: PositionSet(0b111_1111), ..good },
        StripeRecord { used: PositionSet::EMPTY, missing: PositionSet::EMPTY, ..good },
        StripeRecord { used: PositionSet(0b10), missing: PositionSet(0b1), ..good },
    ];
    for record in bad {
        assert!(matches!(harness.step(DataStep::StripeRegister { record }), Err(StepError::Invalid { .. })));
    }
    harness.done(DataStep::StripeRegister { record: good });
    let other = StripeRecord { missing: PositionSet::EMPTY, ..good };
    assert!(harness.step(DataStep::StripeRegister { record: other }).is_err());
    let change = |change: &dyn Fn(&mut ChunkLocation)| {
        let mut new = new_chunk(1, vec![]);
        change(&mut new.location);
        new
    };
    let bad = [
        change(&|location| location.plain_length = 0),
        change(&|location| location.plain_length = u32::MAX),
        change(&|location| location.stored_length = 0),
        change(&|location| location.offset = 9_500),
        change(&|location| location.offset = u32::MAX),
    ];
    for new in bad {
        let step = DataStep::ChunksRegister { epoch: Epoch(2), chunks: vec![new] };
        assert!(matches!(harness.step(step), Err(StepError::Invalid { .. })));
    }
    let two = vec![new_chunk(1, vec![]), new_chunk(2, vec![])];
    assert!(harness.step(DataStep::ChunksRegister { epoch: Epoch(2), chunks: two }).is_err());
}

fn release(content: ContentId, namespace: NamespaceId, generation: u64) -> DataStep {
    DataStep::ContentRelease { content, namespace, generation }
}

#[test]
fn a_content_lives_by_its_first_holder_until_its_last_reference() {
    let mut harness = Harness::data();
    let chunks = chunks(1, 1000);
    let content = ContentId::of(&chunks);
    let uploads = [1, 2].map(|number| engine::ids::UploadId::from_bytes([number; 16]));
    let first = holder_of(uploads[0]);
    let retained = StepOutcome::Retained { holder: first };
    assert_eq!(harness.done(retain_step(uploads[0], &chunks, Some(1))), retained);
    assert_eq!(harness.done(retain_step(uploads[1], &chunks, Some(2))), retained);
    assert_eq!(harness.done(retain_step(uploads[1], &chunks, Some(2))), retained, "idempotent");
    let dismiss = |holder| DataStep::HolderDismiss { content, holder };
    assert_eq!(harness.done(dismiss(first)), StepOutcome::Dismissed { in_force: true });
    let second = holder_of(uploads[1]);
    assert_eq!(harness.done(dismiss(second)), StepOutcome::Dismissed { in_force: false });
    assert_eq!(harness.done(release(content, SPACE, 1)), StepOutcome::Released { dead: None });
    let last = harness.done(release(content, SPACE, 2));
    let StepOutcome::Released { dead: Some(dead) } = &last else { panic!("{last:?}") };
    assert_eq!((dead.content, dead.holder), (content, first));
    assert_eq!(harness.done(release(content, SPACE, 2)), last, "still queued");
    let barred = harness.step(retain_step(uploads[1], &chunks, Some(3)));
    assert!(matches!(barred, Err(StepError::Changed { .. })), "a dismissed holder makes no content");
    harness.done(DataStep::DeadContentForget { content, holder: first });
    assert_eq!(harness.done(release(content, SPACE, 2)), StepOutcome::Released { dead: None });
}

#[test]
fn a_retain_within_the_group_reads_the_hold_and_lists_are_checked() {
    let mut harness = Harness::data();
    let good = chunks(1, 1000);
    let upload = engine::ids::UploadId::from_bytes([1; 16]);
    assert!(matches!(harness.step(retain_step(upload, &good, None)), Err(StepError::Changed { .. })));
    let DataStep::ContentRetain { namespace, generation, holder, size, list, .. } =
        retain_step(upload, &good, Some(1))
    else {
        panic!("another step");
    };
    let other = ContentId::from_bytes([5; 32]);
    let misnamed =
        DataStep::ContentRetain { content: other, namespace, generation, holder, size, list: list.clone() };
    assert!(matches!(harness.step(misnamed), Err(StepError::Invalid { .. })));
    let content = ContentId::of(&good);
    let missized = DataStep::ContentRetain { content, namespace, generation, holder, size: size + 1, list };
    assert!(matches!(harness.step(missized), Err(StepError::Invalid { .. })));
    let nothing = retain_step(upload, &[], Some(1));
    assert!(matches!(harness.step(nothing), Err(StepError::Invalid { .. })), "empty content has no rows");
}
