//! Bytes that no client of ours would send: the command is in the log, so whatever it is, applying it must end well.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::nursery::{file, put_step};
use super::{Harness, SPACE, begin_step, chunks, commit_step, retain_step};
use crate::app::{App, LogTime};
use crate::kv::{Txn, View};
use crate::model::codec::encode;
use crate::model::command::{Base, Command, DataStep, Steps};
use crate::model::query::Query;
use crate::model::row::ROOT_ENTRY;

#[test]
fn damaged_commands_and_queries_are_answered_and_two_replicas_agree() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut harness = Harness::data();
    harness.file(1, "a");
    let upload = harness.begin(2, 1000);
    let steps = [
        begin_step(upload, &chunks(2, 1000)),
        DataStep::UploadHold { namespace: SPACE, upload },
        retain_step(upload, &chunks(2, 1000), None),
        commit_step(upload, ROOT_ENTRY, "b", Base::Any),
        DataStep::TrashPurge { namespace: SPACE, trash: 1, entries_max: 5 },
        put_step(file(&["c"], &[5; 300])),
    ];
    let query = encode(&Query::Children { namespace: SPACE, parent: ROOT_ENTRY, after: None, count_max: 3 });
    for _ in 0..20_000 {
        let step = steps[random.random_range(0..steps.len())].clone();
        let request = harness.request();
        let mut command = encode(&Command::new(request, Steps::Data(vec![step])));
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..command.len());
            command[at] = random.random();
        }
        let mut answers = (0..2).map(|_replica| {
            let mut txn = Txn::new(&harness.store);
            let answer =
                harness.machine.apply(harness.group, &mut txn, LogTime::at(harness.time_ms).into(), &command);
            (answer, txn.into_changes().unwrap())
        });
        let (answer, changes) = answers.next().unwrap();
        assert_eq!(answers.next().unwrap(), (answer, changes.clone()));
        if random.random_bool(0.1) {
            harness.store.commit(changes);
        }
        let mut query = query.clone();
        let at = random.random_range(0..query.len());
        query[at] = random.random();
        harness.machine.query(harness.group, &View::new(&harness.store), &query);
    }
}
