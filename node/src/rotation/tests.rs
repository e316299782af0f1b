use super::pass::Found;
use smalti_rowcommit::coordinator::{BlockList, Contents, ListedBlock};
use smalti_storage::ids::{GroupNo, KeyEpochNo, RowAddr, Slot};

/// Key epoch 1 from the beginning, 2 from generation 5, 3 from generation 9.
const SINCE: [(u32, KeyEpochNo); 3] = [(9, KeyEpochNo(3)), (5, KeyEpochNo(2)), (0, KeyEpochNo(1))];

fn found() -> Found {
    Found { current: KeyEpochNo(3), ..Found::default() }
}

fn listed(blocks: &[(Contents, &[u32])]) -> BlockList {
    let block = |(index, (contents, held)): (u32, &(Contents, &[u32]))| ListedBlock {
        row: RowAddr { group: GroupNo(0), stripe: 0, index },
        slot: Slot(0),
        contents: *contents,
        held: held.to_vec(),
    };
    BlockList { blocks: (0..).zip(blocks).map(block).collect(), next: None }
}

#[test]
fn blocks_are_counted_by_the_key_epoch_of_their_generation() {
    let mut found = found();
    let contents = [0, 4, 5, 8, 9, 12].map(Contents::Since);
    let blocks: Vec<(Contents, &[u32])> = contents.iter().map(|c| (*c, &[][..])).collect();
    let old = found.tally(&listed(&blocks), &SINCE);
    let counted: Vec<(u32, u64)> = found.counted.iter().map(|(no, n)| (no.0, *n)).collect();
    assert_eq!(counted, [(1, 2), (2, 2), (3, 2)]);
    assert_eq!(old.iter().map(|(row, _)| row.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(!found.is_clean());
}

#[test]
fn a_look_is_clean_that_found_nothing_older_and_did_nothing() {
    let new = (Contents::Since(9), &[][..]);
    let mut clean = found();
    assert_eq!(clean.tally(&listed(&[new, (Contents::Absent, &[10])]), &SINCE), vec![]);
    assert!(clean.is_clean() && !clean.goes_on());
    // All was old, and is not any more: the next look has to see that.
    let mut all_old = found();
    all_old.tally(&listed(&[(Contents::Since(8), &[])]), &SINCE);
    assert!(!all_old.is_clean());
    all_old.sealed = 1;
    assert!(!all_old.is_clean() && all_old.goes_on());
    let mut unknown = found();
    assert_eq!(unknown.tally(&listed(&[new, (Contents::Unknown, &[])]), &SINCE).len(), 1);
    assert!(!unknown.is_clean() && !unknown.goes_on());
    let mut held = found();
    assert_eq!(held.tally(&listed(&[(Contents::Since(9), &[8, 9])]), &SINCE), vec![]);
    assert!(held.held == 1 && !held.is_clean());
    for not in [
        Found { sealed: 1, ..found() },
        Found { failed: 1, ..found() },
        Found { unlisted: 1, ..found() },
        Found { stopped: true, ..found() },
    ] {
        assert!(!not.is_clean(), "{not:?}");
    }
}
