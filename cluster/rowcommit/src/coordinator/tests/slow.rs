//! Disks that are far slower than others.

use super::*;
use std::collections::BTreeSet;

fn slow(rig: &mut Rig, stores: &[u64]) {
    let stores: BTreeSet<StoreId> = stores.iter().map(|no| store(*no)).collect();
    rig.feed(Event::Slow(stores));
}

/// What is proposed within two seconds.
fn proposed(rig: &mut Rig) -> Vec<Command> {
    for _ in 0..20 {
        rig.tick(100);
        let commands = rig.settle();
        if !commands.is_empty() {
            return commands;
        }
    }
    Vec::new()
}

fn rig(data: u8, parity: u8, min_insync: u8) -> Rig {
    let mut map = support::map(data, parity);
    map.volumes.get_mut(&VOLUME).expect("it is there").min_insync = min_insync;
    Rig::of(map).activated()
}

#[test]
fn what_can_be_spared_is_done_without_until_it_is_fast_again() {
    let mut rig = rig(2, 2, 3);
    rig.write(1, 0, 1);
    rig.settle();
    slow(&mut rig, &[4]);
    let shrink = proposed(&mut rig);
    let stores = vec![store(4)];
    let expected = Command::Shrink { volume: VOLUME, epoch: Epoch(2), stores, to_data: false };
    assert_eq!(shrink, vec![expected]);
    assert_eq!(rig.done.last(), Some(&Action::Alarm(Alarm::Slow { store: store(4) })));
    rig.accept(shrink);
    // It answers all the time, and nobody waits for it or lets it in.
    assert_eq!(proposed(&mut rig), vec![]);
    rig.write(2, 0, 2);
    rig.settle();
    assert_eq!(rig.done.last(), Some(&written(2)));
    assert_eq!((rig.head(3).wid, rig.head(4).wid), (wid(2), wid(1)));
    slow(&mut rig, &[]);
    rig.pass(3);
    assert_eq!(rig.head(4).wid, wid(2));
    assert!(rig.map.volumes[&VOLUME].is_full());
    assert!(rig.coordinator.is_quiet());
}

#[test]
fn what_can_not_be_spared_is_waited_for() {
    for (data, parity, min_insync) in [(2, 1, 2), (2, 2, 4), (1, 1, 1)] {
        let mut rig = rig(data, parity, min_insync);
        slow(&mut rig, &[1]);
        assert_eq!(proposed(&mut rig), vec![], "{data}+{parity}, {min_insync} in sync at least");
    }
    // Of two slow ones only one can.
    let mut rig = rig(2, 2, 2);
    slow(&mut rig, &[3, 4]);
    let shrink = proposed(&mut rig);
    assert!(matches!(&shrink[..], [Command::Shrink { stores, .. }] if *stores == [store(3)]));
    rig.accept(shrink);
    assert_eq!(proposed(&mut rig), vec![]);
}

/// However many there are to spare for reads.
#[test]
fn writes_do_not_wait_for_a_slow_store_to_be_fast() {
    let mut rig = rig(2, 2, 4);
    rig.deafen(4, true);
    rig.write(1, 0, 1);
    rig.pass(8);
    assert_eq!(rig.map.volumes[&VOLUME].groups[0].insync.len(), 3);
    slow(&mut rig, &[4]);
    rig.deafen(4, false);
    rig.link_down(4);
    rig.link_up(4);
    rig.pass(5);
    assert!(rig.map.volumes[&VOLUME].is_full());
    assert_eq!(rig.done.last(), Some(&written(1)));
}

#[test]
fn one_that_is_needed_comes_back_however_slow_it_is() {
    let mut rig = rig(2, 2, 3);
    slow(&mut rig, &[4]);
    rig.pass(2);
    assert_eq!(rig.map.volumes[&VOLUME].groups[0].insync.len(), 3);
    rig.deafen(3, true);
    rig.write(1, 0, 1);
    rig.pass(10);
    let insync = rig.map.volumes[&VOLUME].groups[0].insync;
    assert!(insync.contains(support::slot(4)) && !insync.contains(support::slot(3)), "{insync}");
    assert_eq!(rig.done.last(), Some(&written(1)));
}
