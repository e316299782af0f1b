//! Custodians: who is to hold shares, and how each secret comes to them.

mod support;

use smalti_map::{ClusterMap, Command, Custodians, Custody, Rejection};
use smalti_storage::ids::{KeyEpochNo, NodeId};
use smalti_storage::keys::SecretName;
use support::*;

/// Makes something else of a dealing.
type Change<'a> = &'a dyn Fn(&mut Custody);

fn set(share_epoch: u32, threshold: u8, nodes: &[u64]) -> Command {
    let nodes = nodes.iter().copied().map(NodeId).collect();
    Command::SetCustodians { share_epoch, threshold, nodes, now: 5, new_master: false }
}

/// The dealing of a secret as the map wants it.
fn reshare(map: &ClusterMap, secret: SecretName, dealing: u8) -> Command {
    let from = map.custody_of(&secret).expect("a secret").commitments.clone();
    let custody = dealt(map, 1, dealing);
    Command::Reshare { secret, from, custody }
}

/// A dealing of a secret for the custodians of now.
fn dealt(map: &ClusterMap, secret: u8, dealing: u8) -> Custody {
    let Custodians { share_epoch, threshold, ref holders, .. } = map.custodians;
    let commitments = commitments(secret, dealing, threshold);
    Custody {
        share_epoch,
        threshold,
        holders: holders.clone(),
        commitments,
        sealed_for_recovery: Vec::new(),
    }
}

fn wrapping(map: &ClusterMap) -> SecretName {
    SecretName::Wrapping { volume: volume(map).id, key_epoch: KeyEpochNo(1) }
}

#[track_caller]
fn invalid(map: &mut ClusterMap, command: &Command, text: &str) {
    let rejection = refuse(map, command);
    assert!(matches!(&rejection, Rejection::Invalid(why) if why.contains(text)), "{rejection}");
}

#[test]
fn secrets_go_to_other_custodians_one_by_one() {
    let mut map = active();
    assert_eq!(map.custodians.share_epoch, 1);
    accept(&mut map, &set(1, 3, &[2, 3, 4, 5]));
    assert_eq!((map.custodians.share_epoch, map.custodians.since), (2, 5));
    // Until it has been dealt on, each is with those who have it.
    let of = |map: &ClusterMap| map.custodies().map(|(_, of)| of.share_epoch).collect::<Vec<_>>();
    assert_eq!(of(&map), [1, 1]);
    let remove = Command::RemoveNode { node: NodeId(5) };
    invalid(&mut map, &remove, "is a custodian");
    let command = reshare(&map, SecretName::Master, 2);
    accept(&mut map, &command);
    assert_eq!(of(&map), [2, 1]);
    assert!(!map.custody.has(NodeId(1)) && map.custody.has(NodeId(5)));
    invalid(&mut map, &command, "has been dealt on since");
    let command = reshare(&map, SecretName::Master, 3);
    invalid(&mut map, &command, "dealt for share epoch 2, from 2; it is 2 now");
    let command = reshare(&map, wrapping(&map), 3);
    accept(&mut map, &command);
    assert_eq!(of(&map), [2, 2]);
    // The first custodian is free to go, but for what else it has.
    let remove = Command::RemoveNode { node: NodeId(1) };
    invalid(&mut map, &remove, "has slots");
}

#[test]
fn custodians_that_can_not_be_are_refused() {
    let mut map = active();
    invalid(&mut map, &set(2, 2, &[1, 2, 3]), "planned against share epoch 2, it is 1 now");
    invalid(&mut map, &set(1, 1, &[1, 2, 3]), "less than 2");
    invalid(&mut map, &set(1, 4, &[1, 2, 3]), "4 of 3 shares is not a threshold");
    invalid(&mut map, &set(1, 2, &[1, 2, 2]), "holds two shares");
    invalid(&mut map, &set(1, 2, &[1, 2, 9]), "is no member");
    let many: Vec<u64> = (1..=300).collect();
    invalid(&mut map, &set(1, 2, &many), "at most 32 custodians");
    // The same ones again: all shares become new ones.
    accept(&mut map, &set(1, 2, &[1, 2, 3]));
    assert_eq!(map.custodians.share_epoch, 2);
}

#[test]
fn a_dealing_that_is_not_what_is_wanted_is_refused() {
    let mut map = active();
    let with = |map: &ClusterMap, change: Change<'_>| {
        let Command::Reshare { secret, from, mut custody } = reshare(map, SecretName::Master, 2)
        else {
            unreachable!()
        };
        change(&mut custody);
        Command::Reshare { secret, from, custody }
    };
    // Nobody wanted one.
    let command = with(&map, &|_| {});
    invalid(&mut map, &command, "dealt for share epoch 1, from 1; it is 1 now");
    accept(&mut map, &set(1, 2, &[3, 4, 5]));
    let cases: [(Change<'_>, &str); 7] = [
        (&|new| new.share_epoch = 1, "dealt for share epoch 1"),
        (&|new| new.share_epoch = 3, "dealt for share epoch 3"),
        (&|new| new.holders.truncate(2), "not dealt to those who are to hold them"),
        (&|new| new.threshold = 3, "not dealt to those who are to hold them"),
        (&|new| new.commitments = commitments(2, 2, 2), "are of another secret"),
        (&|new| new.commitments = commitments(1, 2, 3), "need 3 of them"),
        (&|new| new.commitments.truncate(40), "not key part commitments"),
    ];
    for (change, text) in cases {
        let command = with(&map, change);
        invalid(&mut map, &command, text);
    }
    let nobody = SecretName::Wrapping { volume: volume(&map).id, key_epoch: KeyEpochNo(2) };
    let Command::Reshare { from, custody, .. } = with(&map, &|_| {}) else { unreachable!() };
    let command = Command::Reshare { secret: nobody, from, custody };
    invalid(&mut map, &command, "there is no wrapping secret");
    let command = with(&map, &|_| {});
    accept(&mut map, &command);
}

#[test]
fn another_master_secret_is_taken_if_one_is_wanted_and_only_once() {
    let mut map = active();
    let replace = |map: &ClusterMap, secret| Command::ReplaceMaster {
        from: map.custody.commitments.clone(),
        custody: dealt(map, secret, 2),
    };
    accept(&mut map, &set(1, 2, &[1, 2, 3]));
    let command = replace(&map, 2);
    invalid(&mut map, &command, "no other master secret is wanted");
    let nodes = [1, 2, 3].map(NodeId).to_vec();
    let wish =
        Command::SetCustodians { share_epoch: 2, threshold: 2, nodes, now: 6, new_master: true };
    accept(&mut map, &wish);
    // A change that comes after does not take the wish back.
    accept(&mut map, &set(3, 2, &[1, 2, 3]));
    let command = replace(&map, 1);
    invalid(&mut map, &command, "are of the same secret");
    // Nor is the present one dealt on, by whoever has it whole.
    let command = reshare(&map, SecretName::Master, 5);
    invalid(&mut map, &command, "there is to be another master secret");
    let command = replace(&map, 2);
    accept(&mut map, &command);
    assert!(!map.custodians.new_master && map.custody.share_epoch == 4);
    invalid(&mut map, &command, "no other master secret is wanted");
}

/// Whoever made keys has asked those who were custodians then.
#[test]
fn keys_that_were_dealt_before_the_custodians_changed_are_taken_and_dealt_on() {
    let mut map = active();
    accept(&mut map, &set(1, 2, &[3, 4, 5]));
    let epoch = volume(&map).epoch;
    let mut key_epoch = Box::new(new_keys(2, 4));
    key_epoch.custody.share_epoch = 2;
    let dealt_wrong = Command::AddKeyEpoch { volume: VOLUME, epoch, key_epoch: key_epoch.clone() };
    invalid(&mut map, &dealt_wrong, "not dealt to those who are to hold them");
    key_epoch.custody.share_epoch = 3;
    let ahead = Command::AddKeyEpoch { volume: VOLUME, epoch, key_epoch: key_epoch.clone() };
    invalid(&mut map, &ahead, "share epoch 3 is not in 1..=2");
    key_epoch.custody.share_epoch = 1;
    accept(&mut map, &Command::AddKeyEpoch { volume: VOLUME, epoch, key_epoch });
    let secret = SecretName::Wrapping { volume: volume(&map).id, key_epoch: KeyEpochNo(2) };
    let command = reshare(&map, secret, 7);
    accept(&mut map, &command);
}
