//! Slots in sync whose disks lost a write without a word, or were given back what they had: all verifies, and
//! nobody has crashed. As many as there are parity slots change nothing for clients.

use super::*;
use smalti_storage::ids::SlotSet;

/// What a slot had.
type Had = (RowSlot, VersionMeta, Bytes);

fn had(rig: &Rig, slots: u8) -> Vec<Had> {
    let of = |no: u8| {
        let disk = disk(rig, u64::from(no) + 1);
        let meta = disk.head(at(no)).expect("memory").unwrap_or_default();
        let record = disk.record(at(no), meta.ver).expect("memory").unwrap_or_default();
        (at(no), meta, record)
    };
    (0..slots).map(of).collect()
}

/// Lets the stores know that all is committed.
fn commit(rig: &mut Rig) {
    for _ in 0..10 {
        rig.tick(20);
        rig.settle();
    }
}

fn lose(rig: &mut Rig, before: &[Had], of: SlotSet) -> bool {
    let mut lost = false;
    for (at, meta, record) in before.iter().filter(|(at, ..)| of.contains(at.slot)) {
        let party = rig.parties.get_mut(&store(u64::from(at.slot.0) + 1)).expect("there");
        party.core.look_again(*at);
        lost |= party.disk.put_back(*at, meta.clone(), record.clone());
    }
    rig.coordinator.cache.clear();
    lost
}

/// Reads all blocks, in the order of `first` on; each has to be what was written last.
fn read_all(rig: &mut Rig, written: &[u64], first: u8, what: &str) {
    let data = written.len() as u8;
    for slot in (0..data).map(|no| (first + no) % data) {
        rig.done.clear();
        rig.read(90, slot);
        rig.settle();
        let seq = written[usize::from(slot)];
        let expected = if seq == 0 { Bytes::new() } else { bytes(seq) };
        let read = Action::ReadDone { op: 90, result: Ok(vec![expected]) };
        let done: Vec<_> =
            rig.done.iter().filter(|done| matches!(done, Action::ReadDone { .. })).collect();
        assert_eq!(done, vec![&read], "{what}: block {slot}");
    }
}

/// All slots have what the newest writes made: said by each, in versions of data slots.
fn check_all(rig: &mut Rig, versions: &[Ver], parity: u8, what: &str) {
    commit(rig);
    assert!(rig.coordinator.is_quiet(), "{what}: {:?}", rig.coordinator);
    let data = versions.len() as u8;
    for no in 0..data {
        assert_eq!(rig.head(u64::from(no) + 1).ver, versions[usize::from(no)], "{what}: slot {no}");
    }
    for no in data..data + parity {
        let told = rig.head(u64::from(no) + 1).vec;
        let told: Vec<Ver> = (0..versions.len())
            .map(|slot| told.get(slot).map_or(Ver::NONE, |entry| entry.ver))
            .collect();
        assert_eq!(told, versions, "{what}: parity slot {no}");
    }
}

#[test]
fn as_many_as_there_are_parity_slots_may_lose_a_write_without_a_word() {
    let mut cases = 0;
    for (data, parity) in [(2, 1), (1, 2), (2, 2), (3, 2)] {
        // The row was written once before, in part, or never.
        for first in [vec![], vec![0], vec![0, 1]] {
            let first: Vec<u8> = first.into_iter().filter(|slot| *slot < data).collect();
            for then in [vec![0], vec![1], vec![0, 1]] {
                let then: Vec<u8> = then.into_iter().filter(|slot| *slot < data).collect();
                let slots = data + parity;
                let subsets = (1..1_u32 << slots).filter(|of| of.count_ones() <= parity.into());
                for of in subsets {
                    let of: SlotSet = (0..slots).filter(|no| of >> no & 1 == 1).map(Slot).collect();
                    for order in 0..data {
                        cases += u64::from(case((data, parity), &first, &then, of, order));
                    }
                }
            }
        }
    }
    assert!(cases > 500, "{cases} cases in which something was lost");
}

fn case((data, parity): (u8, u8), first: &[u8], then: &[u8], of: SlotSet, order: u8) -> bool {
    let what = format!("{data}+{parity}, {first:?} then {then:?}, {of:?} lose it, from {order} on");
    let mut rig = Rig::active(data, parity);
    let mut written = vec![0; usize::from(data)];
    let mut seq = 0;
    let mut write = |rig: &mut Rig, written: &mut [u64], slot: u8| {
        seq += 1;
        rig.write(seq, slot, seq);
        rig.settle();
        assert!(rig.done.contains(&rig::written(seq)), "{seq} is written");
        written[usize::from(slot)] = seq;
    };
    first.iter().for_each(|slot| write(&mut rig, &mut written, *slot));
    commit(&mut rig);
    let before = had(&rig, data + parity);
    then.iter().for_each(|slot| write(&mut rig, &mut written, *slot));
    commit(&mut rig);
    if !lose(&mut rig, &before, of) {
        return false;
    }
    // With what it knows of the first block it reads, and with nothing.
    read_all(&mut rig, &written, order, &what);
    let versions: Vec<Ver> = (0..data).map(|no| rig.head(u64::from(no) + 1).ver).collect();
    check_all(&mut rig, &versions, parity, &what);
    rig.coordinator.cache.clear();
    read_all(&mut rig, &written, 0, &what);

    // Whoever writes meets it first.
    let before = before.into_iter().filter(|(at, ..)| of.contains(at.slot)).collect::<Vec<_>>();
    lose(&mut rig, &before, of);
    write(&mut rig, &mut written, order);
    commit(&mut rig);
    read_all(&mut rig, &written, order, &what);
    rig.coordinator.cache.clear();
    read_all(&mut rig, &written, 0, &what);
    true
}
