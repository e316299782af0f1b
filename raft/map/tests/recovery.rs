//! Recovery shares: every secret of a cluster that has them is sealed to them, and stays so.

mod support;

use smalti_map::{ClusterMap, Command, Custody, KeyEpoch, NewVolume, Recovery, Rejection};
use smalti_storage::ids::{KeyEpochNo, NodeId};
use smalti_storage::keys::{RECOVERY_ENVELOPE_LEN, SecretName};
use support::*;

fn recovery() -> Recovery {
    Recovery { threshold: 3, shares: 5, commitments: commitments(9, 1, 3) }
}

fn sealed(byte: u8) -> Vec<u8> {
    vec![byte; RECOVERY_ENVELOPE_LEN]
}

/// The founding of a cluster with recovery shares, and something about it changed.
fn founding(change: impl FnOnce(&mut Custody, &mut Option<Recovery>)) -> Command {
    let Command::InitCluster { cluster, nodes, mut custody, .. } = init(3) else { unreachable!() };
    custody.sealed_for_recovery = sealed(1);
    let mut recovery = Some(recovery());
    change(&mut custody, &mut recovery);
    Command::InitCluster { cluster, nodes, custody, recovery }
}

fn with_recovery() -> ClusterMap {
    let mut map = ClusterMap::default();
    accept(&mut map, &founding(|_, _| {}));
    for no in 1..=3 {
        let node = NodeId(no);
        accept(&mut map, &Command::RegisterNode { node, addresses: addresses(2000) });
        register_store(&mut map, start(no, 1, true));
    }
    map
}

fn keys(no: u32, columns: usize, sealed_for_recovery: Vec<u8>) -> KeyEpoch {
    let mut keys = new_keys(no, columns);
    keys.custody.sealed_for_recovery = sealed_for_recovery;
    keys
}

fn create(sealed_for_recovery: Vec<u8>) -> Command {
    let new = new_volume("v", 0xf0, 2, 1, vec![(1..=3).map(store).collect()]);
    let key_epoch = keys(1, 2, sealed_for_recovery);
    Command::CreateVolume(Box::new(NewVolume { key_epoch, ..new }))
}

#[track_caller]
fn invalid(map: &mut ClusterMap, command: &Command, text: &str) {
    let rejection = refuse(map, command);
    assert!(matches!(&rejection, Rejection::Invalid(why) if why.contains(text)), "{rejection}");
}

#[test]
fn a_cluster_is_founded_with_its_master_secret_sealed_or_without_recovery() {
    let mut map = ClusterMap::default();
    let mut refused = |command: Command, text: &str| invalid(&mut map, &command, text);
    refused(founding(|custody, _| custody.sealed_for_recovery.clear()), "has 0 bytes, not 82");
    refused(founding(|custody, _| custody.sealed_for_recovery.push(1)), "has 83 bytes, not 82");
    refused(founding(|_, recovery| *recovery = None), "no recovery shares to seal for");
    type Change<'a> = &'a dyn Fn(&mut Recovery);
    let cases: [(Change<'_>, &str); 5] = [
        (&|recovery| recovery.threshold = 1, "1 of 5 recovery shares"),
        (&|recovery| recovery.shares = 2, "3 of 2 recovery shares"),
        (&|recovery| recovery.shares = 100, "3 of 100 recovery shares"),
        (&|recovery| recovery.threshold = 4, "3 recovery shares are needed, not 4"),
        (&|recovery| recovery.commitments.truncate(40), "not key part commitments"),
    ];
    for (change, text) in cases {
        refused(founding(|_, recovery| recovery.iter_mut().for_each(change)), text);
    }
    assert_eq!(with_recovery().recovery, Some(recovery()));
    assert_eq!(cluster(3).recovery, None);
}

#[test]
fn no_key_epoch_begins_that_is_not_sealed_for_recovery() {
    let mut map = with_recovery();
    for wrong in [Vec::new(), vec![2; RECOVERY_ENVELOPE_LEN - 1]] {
        invalid(&mut map, &create(wrong), "what is sealed for recovery has");
    }
    accept(&mut map, &create(sealed(2)));
    elect(&mut map, 1);
    let epoch = volume(&map).epoch;
    accept(&mut map, &Command::Activate { volume: VOLUME, epoch, online: Vec::new() });
    let add = |map: &ClusterMap, sealed_for_recovery| {
        let key_epoch = Box::new(keys(2, 2, sealed_for_recovery));
        Command::AddKeyEpoch { volume: VOLUME, epoch: volume(map).epoch, key_epoch }
    };
    let without = add(&map, Vec::new());
    invalid(&mut map, &without, "what is sealed for recovery has 0 bytes");
    let with = add(&map, sealed(3));
    accept(&mut map, &with);
    assert_eq!(map.check(), Ok(()));
    // Where nobody could open it, nothing is sealed.
    let mut plain = active();
    let key_epoch = Box::new(keys(2, 4, sealed(3)));
    let epoch = volume(&plain).epoch;
    let with = Command::AddKeyEpoch { volume: VOLUME, epoch, key_epoch };
    invalid(&mut plain, &with, "no recovery shares to seal for");
}

#[test]
fn what_is_sealed_stays_the_same_when_shares_are_dealt_on_and_goes_with_its_keys() {
    let mut map = with_recovery();
    accept(&mut map, &create(sealed(2)));
    let nodes = [1, 2, 3].map(NodeId).to_vec();
    accept(
        &mut map,
        &Command::SetCustodians { share_epoch: 1, threshold: 2, nodes, now: 5, new_master: false },
    );
    let key_epoch = KeyEpochNo(1);
    let secret = SecretName::Wrapping { volume: volume(&map).id, key_epoch };
    let reshare = |map: &ClusterMap, sealed_for_recovery| {
        let from = map.custody_of(&secret).expect("a secret").commitments.clone();
        let plan = &map.custodians;
        let custody = Custody {
            share_epoch: plan.share_epoch,
            threshold: plan.threshold,
            holders: plan.holders.clone(),
            commitments: commitments(1, 2, 2),
            sealed_for_recovery,
        };
        Command::Reshare { secret, from, custody }
    };
    let other = reshare(&map, sealed(4));
    invalid(&mut map, &other, "something else sealed for recovery");
    let none = reshare(&map, Vec::new());
    invalid(&mut map, &none, "what is sealed for recovery has 0 bytes");
    let same = reshare(&map, sealed(2));
    accept(&mut map, &same);
    assert_eq!(map.custody_of(&secret).map(|of| of.sealed_for_recovery.clone()), Some(sealed(2)));
    let id = volume(&map).id;
    accept(&mut map, &Command::DeleteVolume { volume: VOLUME, id });
    assert_eq!(map.custody_of(&secret), None);
}
