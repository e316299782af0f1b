//! Key epochs: one begins with an election, and ends when a coordinator has found that nothing is under it.

mod support;

use smalti_map::{ClusterMap, Command, Rejection, Revoked};
use smalti_storage::ids::{Epoch, KeyEpochNo};
use support::*;

/// Columns of the volume of [`active`]: two groups of two data slots.
const COLUMNS: usize = 4;

fn add(map: &ClusterMap, no: u32) -> Command {
    let key_epoch = Box::new(new_keys(no, COLUMNS));
    Command::AddKeyEpoch { volume: VOLUME, epoch: volume(map).epoch, key_epoch }
}

fn retire(map: &ClusterMap, below: u32) -> Command {
    let generation = volume(map).writer_gen;
    Command::RetireKeyEpochs { volume: VOLUME, generation, below: KeyEpochNo(below) }
}

fn ask(no: u32) -> Command {
    Command::AskRotation { volume: VOLUME, key_epoch: KeyEpochNo(no) }
}

fn activate(map: &mut ClusterMap) {
    let epoch = volume(map).epoch;
    accept(map, &Command::Activate { volume: VOLUME, epoch, online: Vec::new() });
}

#[track_caller]
fn invalid(map: &mut ClusterMap, command: &Command, text: &str) {
    let rejection = refuse(map, command);
    assert!(matches!(&rejection, Rejection::Invalid(why) if why.contains(text)), "{rejection}");
}

#[test]
fn a_key_epoch_begins_with_an_election_of_the_same_coordinator() {
    let mut map = active();
    let before = volume(&map).clone();
    accept(&mut map, &ask(1));
    assert!(volume(&map).rotate);
    let command = add(&map, 2);
    accept(&mut map, &command);
    let after = volume(&map);
    assert_eq!(after.coordinator, before.coordinator);
    assert_eq!((after.epoch, after.writer_gen), (Epoch(3), 3));
    assert!(!after.activated && !after.rotate);
    assert_eq!(after.key_epoch, KeyEpochNo(2));
    let since: Vec<u32> = after.key_epochs.values().map(|epoch| epoch.since).collect();
    assert_eq!(since, [0, 3], "whoever makes it can not know");
    // The same again, late.
    let rejection = refuse(&mut map, &command);
    assert!(matches!(rejection, Rejection::StaleEpoch { .. }), "{rejection}");
}

#[test]
fn a_key_epoch_that_does_not_fit_is_refused() {
    let mut map = active();
    for no in [1, 3] {
        let command = add(&map, no);
        invalid(&mut map, &command, "does not follow on k1");
    }
    let epoch = volume(&map).epoch;
    let with = |change: fn(&mut smalti_map::KeyEpoch)| {
        let mut key_epoch = Box::new(new_keys(2, COLUMNS));
        change(&mut key_epoch);
        Command::AddKeyEpoch { volume: VOLUME, epoch, key_epoch }
    };
    invalid(&mut map, &with(|keys| keys.timestamp -= 1), "can not begin before");
    invalid(&mut map, &with(|keys| keys.shard_keys.truncate(3)), "3 shard keys, expected 4");
    invalid(&mut map, &with(|keys| keys.place_key.clear()), "wrapped key");
    invalid(&mut map, &with(|keys| keys.custody.holders.truncate(1)), "not a threshold");
    invalid(&mut map, &ask(2), "planned against key epoch k2, the volume is at k1");
    elect(&mut map, 1);
    let command = add(&map, 2);
    invalid(&mut map, &command, "has not finished its takeover");
}

#[test]
fn key_epochs_end_by_who_has_looked_and_never_come_back() {
    let mut map = active();
    let command = retire(&map, 1);
    invalid(&mut map, &command, "no older key epochs");
    for no in 2..=3 {
        let command = add(&map, no);
        accept(&mut map, &command);
        activate(&mut map);
    }
    let command = retire(&map, 4);
    invalid(&mut map, &command, "key epoch k3 is in use");
    let late = retire(&map, 3);
    elect(&mut map, 1);
    invalid(&mut map, &late, "found in generation");
    let command = retire(&map, 3);
    accept(&mut map, &command);
    let id = volume(&map).id;
    assert_eq!(volume(&map).key_epochs.keys().copied().collect::<Vec<_>>(), [KeyEpochNo(3)]);
    assert_eq!(map.retired_keys, [(id, KeyEpochNo(1)), (id, KeyEpochNo(2))].into());
    // Its custodians have destroyed shares of that name, or will.
    accept(&mut map, &Command::DeleteVolume { volume: VOLUME, id });
    let groups = vec![vec![store(1), store(2), store(3)]];
    let again = Command::CreateVolume(Box::new(new_volume("again", 0xf1, 2, 1, groups)));
    invalid(&mut map, &again, "there was a volume with the identity");
}

#[test]
fn what_is_revoked_stays_so_until_it_has_ended() {
    let mut map = active();
    let revoke = |no, now| Command::RevokeKeys { volume: VOLUME, key_epoch: KeyEpochNo(no), now };
    invalid(&mut map, &revoke(2, 10), "no key epoch k2");
    accept(&mut map, &revoke(1, 10));
    let of = |map: &ClusterMap| volume(map).revoked.map(|it| (it.through.0, it.since));
    assert!(volume(&map).rotate, "new records are under it");
    for no in 2..=3 {
        let command = add(&map, no);
        accept(&mut map, &command);
        activate(&mut map);
        assert_eq!(of(&map), Some((1, 10)));
    }
    // An older one than what is revoked changes nothing, a newer one adds to it; the time is that of the first.
    accept(&mut map, &revoke(2, 20));
    assert_eq!((of(&map), volume(&map).rotate), (Some((2, 10)), false));
    accept(&mut map, &revoke(1, 30));
    assert_eq!(volume(&map).revoked, Some(Revoked { through: KeyEpochNo(2), since: 10 }));
    let command = retire(&map, 2);
    accept(&mut map, &command);
    assert_eq!(of(&map), Some((2, 10)));
    let command = retire(&map, 3);
    accept(&mut map, &command);
    assert_eq!(of(&map), None);
    invalid(&mut map, &revoke(2, 40), "no key epoch k2, or it has ended");
}

#[test]
fn what_gateways_have_sealed_adds_up() {
    let mut map = active();
    let note = |no, blocks| {
        let key_epoch = KeyEpochNo(no);
        Command::NoteSealed { volume: VOLUME, key_epoch, blocks }
    };
    accept(&mut map, &note(1, 5));
    accept(&mut map, &note(1, u64::MAX));
    assert_eq!(volume(&map).key_epochs[&KeyEpochNo(1)].sealed, u64::MAX);
    invalid(&mut map, &note(2, 1), "no key epoch k2");
    // Whoever makes a key epoch can not say that it was used.
    let mut key_epoch = Box::new(new_keys(2, COLUMNS));
    key_epoch.sealed = 7;
    let epoch = volume(&map).epoch;
    accept(&mut map, &Command::AddKeyEpoch { volume: VOLUME, epoch, key_epoch });
    assert_eq!(volume(&map).key_epochs[&KeyEpochNo(2)].sealed, 0);
}

#[test]
fn no_more_key_epochs_begin_than_can_be_in_use() {
    let mut map = active();
    for no in 2..=8 {
        let command = add(&map, no);
        accept(&mut map, &command);
        activate(&mut map);
    }
    let command = add(&map, 9);
    invalid(&mut map, &command, "records have to be sealed anew first");
    // Nor is one wanted that can not be made.
    invalid(&mut map, &ask(8), "records have to be sealed anew first");
    let command = retire(&map, 2);
    accept(&mut map, &command);
    let command = add(&map, 9);
    accept(&mut map, &command);
}
