//! Power cuts: no vote and no acknowledged entry goes back.

use super::workload::{Known, Mark, NODE, State, Step, open, read, steps, take, which};
use openraft::Vote;
use openraft::storage::RaftLogStorage;
use smalti_powercut::{Cut, Disk, Mode, Record, Trial, Watch, scratch};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokio::runtime::{Builder, Runtime};

const STEPS: usize = 160;

/// The states of each workload after its steps.
type States = RefCell<BTreeMap<u64, Vec<State>>>;

pub(super) fn runtime() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

/// The store's own folder below a watched one, so that making it is recorded too.
pub(super) fn store_in(folder: &Path) -> PathBuf {
    folder.join("raft")
}

fn recorded(seed: u64, states: &States) -> Record {
    let folder = scratch().unwrap();
    let watch = Watch::begin(folder.path()).unwrap();
    let steps = steps(seed, STEPS);
    let path = store_in(folder.path());
    let taken = runtime().block_on(take(&path, &steps, |mark| watch.mark(mark.code())));
    states.borrow_mut().insert(seed, taken.unwrap());
    watch.record()
}

fn known(cut: &Cut<'_>) -> (Known, Vec<Step>) {
    let steps = steps(cut.workload, STEPS);
    (Known::after(cut.record.marks(cut.point).map(Mark::of), &steps), steps)
}

#[test]
fn the_record_is_whole() {
    let folder = scratch().unwrap();
    let watch = Watch::begin(folder.path()).unwrap();
    let path = store_in(folder.path());
    let states = runtime().block_on(take(&path, &steps(3, STEPS), |_| {})).unwrap();
    let record = watch.record();
    let seen = Disk::after(&record, record.events.len()).seen();
    for entry in std::fs::read_dir(&path).unwrap() {
        let entry = entry.unwrap();
        let name = format!("raft/{}", entry.file_name().to_str().unwrap());
        assert!(seen[&name] == std::fs::read(entry.path()).unwrap(), "{name}");
    }
    assert_eq!(seen.len(), std::fs::read_dir(&path).unwrap().count());
    // And the model is right where nothing fails.
    let found = runtime().block_on(async {
        let mut opened = open(&path).await.unwrap();
        read(&mut opened).await.unwrap()
    });
    assert!(Some(&found) == states.last(), "{found:?}");
}

#[test]
fn votes_and_entries_survive_a_power_cut() {
    let states = States::default();
    Trial::new("raft, honest disk", Mode::Honest).run(
        |seed| recorded(seed, &states),
        |cut| {
            let (known, steps) = known(&cut);
            let path = store_in(cut.folder);
            let states = &states.borrow()[&cut.workload];
            let outcome = async {
                let mut opened = match open(&path).await {
                    Err(_) if cut.has_garbage_in_manifest() => return "refused",
                    opened => opened.expect("opens after an honest cut"),
                };
                let found = read(&mut opened).await.expect("can be read");
                let at = which(&found, states, known.most);
                let at = at.unwrap_or_else(|| panic!("no state is this one: {known:?} {found:?}"));
                assert!(at >= known.least, "back at {at}, {known:?}: {:?}", &steps[at..known.most]);
                // And it goes on from there.
                let vote = Vote::new(999, NODE);
                opened.log.save_vote(&vote).await.expect("a vote");
                drop(opened);
                let mut opened = open(&path).await.expect("opens again");
                let expected = State { vote: Some(vote), ..found };
                assert!(read(&mut opened).await.expect("can be read") == expected);
                "whole"
            };
            runtime().block_on(outcome).to_owned()
        },
    );
}

#[test]
fn a_lying_disk_brings_no_wrong_state() {
    brings_no_wrong_state("raft, lying disk", Mode::Lying);
}

#[test]
fn a_bit_that_turned_over_brings_no_wrong_state() {
    brings_no_wrong_state("raft, rotten disk", Mode::Rotten);
}

fn brings_no_wrong_state(name: &'static str, mode: Mode) {
    let states = States::default();
    Trial::new(name, mode).run(
        |seed| recorded(seed, &states),
        |cut| {
            let (known, _) = known(&cut);
            let states = &states.borrow()[&cut.workload];
            let outcome = async {
                let mut opened = match open(&store_in(cut.folder)).await {
                    Ok(opened) => opened,
                    Err(error) => {
                        assert!(!error.to_string().is_empty());
                        return "refused";
                    }
                };
                let Ok(found) = read(&mut opened).await else { return "not readable" };
                nothing_is_invented(&found, &states[..=known.most]);
                if which(&found, states, known.most).is_some_and(|at| at >= known.least) {
                    return "whole";
                }
                // A new manifest is known to the witness only when the store is open, and a disk
                // that lies about the witness as well can make it forget anything.
                let excused =
                    known.opening || cut.harmed.iter().any(|name| name.ends_with("WITNESS"));
                assert!(excused, "forgot what was acknowledged: {known:?} {found:?}");
                "forgot, as said in the witness"
            };
            runtime().block_on(outcome).to_owned()
        },
    );
}

/// Each part was once just so.
fn nothing_is_invented(found: &State, states: &[State]) {
    let ever = |was: &dyn Fn(&State) -> bool| states.iter().any(was);
    assert!(ever(&|state| state.vote == found.vote), "{:?}", found.vote);
    assert!(ever(&|state| state.purged == found.purged), "{:?}", found.purged);
    assert!(ever(&|state| state.committed == found.committed), "{:?}", found.committed);
    assert!(ever(&|state| state.snapshot == found.snapshot), "a snapshot nobody made");
    for entry in &found.entries {
        assert!(ever(&|state| state.entries.contains(entry)), "{entry:?}");
    }
}
