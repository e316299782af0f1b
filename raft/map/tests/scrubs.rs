//! Scrubs: asked for by anybody, noted by the coordinator of the epoch.

mod support;

use smalti_map::{ClusterMap, Command, GroupScrub, Rejection};
use smalti_storage::ids::{Epoch, GroupNo, VolumeNo};
use support::*;

const ASK: Command = Command::AskScrub { volume: VOLUME };

fn note(map: &ClusterMap, group: u16, asked: u32, ended: u64) -> Command {
    let scrub = GroupScrub { ended, asked, rows: 5, wrong: 1, unclear: 0, unread: 0 };
    let epoch = volume(map).epoch;
    Command::NoteScrubs { volume: VOLUME, epoch, groups: vec![(GroupNo(group), scrub)] }
}

fn asked(map: &ClusterMap) -> Vec<u16> {
    volume(map).asked_scrubs().map(|group| group.0).collect()
}

#[test]
fn a_scrub_is_due_when_asked_for_or_when_the_last_one_was_long_ago() {
    let mut map = active();
    let groups = u16::try_from(volume(&map).groups.len()).expect("few");
    assert_eq!(asked(&map), [0u16; 0]);
    // Never scrubbed is long ago.
    assert_eq!(volume(&map).old_scrub(1_000_000, 1000), Some(GroupNo(0)));
    accept(&mut map, &ASK);
    assert_eq!(asked(&map), (0..groups).collect::<Vec<_>>());
    for group in 0..groups {
        let noted = note(&map, group, 1, 500 - u64::from(group));
        accept(&mut map, &noted);
    }
    assert_eq!(asked(&map), [0u16; 0]);
    let oldest = GroupNo(groups - 1);
    let ended = 500 - u64::from(oldest.0);
    assert_eq!(volume(&map).old_scrub(ended + 999, 1000), None);
    assert_eq!(volume(&map).old_scrub(ended + 1000, 1000), Some(oldest));
    // One that began before it was asked for again does not count.
    accept(&mut map, &ASK);
    let noted = note(&map, 0, 1, 600);
    accept(&mut map, &noted);
    assert_eq!(asked(&map).first(), Some(&0));
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut map = active();
    let of_nobody = Command::AskScrub { volume: VolumeNo(99) };
    assert_eq!(refuse(&mut map, &of_nobody), Rejection::NoVolume(VolumeNo(99)));
    let unknown = note(&map, 999, 0, 5);
    refuse(&mut map, &unknown);
    let unasked = note(&map, 0, 1, 5);
    refuse(&mut map, &unasked);
    let Command::NoteScrubs { groups, .. } = note(&map, 0, 0, 5) else { unreachable!() };
    let stale = Command::NoteScrubs { volume: VOLUME, epoch: Epoch(1), groups };
    assert!(matches!(refuse(&mut map, &stale), Rejection::StaleEpoch { .. }));
}

#[test]
fn faults_stay_with_the_store_over_its_starts_and_go_with_it() {
    let mut map = active();
    let (known, unknown) = (store(1), store(77));
    let faults = vec![(known, 3), (unknown, 4)];
    accept(&mut map, &Command::NoteFaults { at: 86_400 * 20, faults });
    assert_eq!(map.stores[&known].faults.total, 3);
    assert!(!map.stores.contains_key(&unknown));
}
