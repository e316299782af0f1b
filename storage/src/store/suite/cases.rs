//! The cases of the suite. Each is given an empty store.

use super::{Subject, commit, is_refused, place, put, scan_all, state, ver, vers};
use crate::ids::{GroupNo, Incarnation, RowSlot, RunId, Slot, StoreId, Ver, VolumeNo};
use crate::store::{
    Admission, Announced, Batch, Change, ChangeIndex, Opened, ShardStore, StoreError, VersionMeta,
    VolumeState,
};
use bytes::Bytes;
use uuid::Uuid;

const RECORD: usize = 4160;

pub(super) fn empty(subject: &mut dyn Subject) {
    let store = subject.store();
    let at = place(1, 0, 0, 0, 0);
    assert_eq!(store.versions(at).expect("versions"), []);
    assert_eq!(store.head(at).expect("head"), None);
    assert_eq!(store.meta(at, ver(1, 1)).expect("meta"), None);
    assert_eq!(store.record(at, ver(1, 1)).expect("record"), None);
    assert!(store.records(&[]).is_empty());
    assert_eq!(store.scan(VolumeNo(1), GroupNo(0), None, 10).expect("scan"), []);
    assert_eq!(store.prepared(VolumeNo(1)).expect("marks"), []);
    assert_eq!(store.volume(VolumeNo(1)).expect("state"), VolumeState::default());
    assert_eq!(store.volumes().expect("volumes"), []);
    commit(store, Vec::new());
}

pub(super) fn versions(subject: &mut dyn Subject) {
    let store = subject.store();
    let at = place(7, 3, 5, 2, 1);
    let order = [ver(1, 9), ver(3, 1), ver(1, 10), ver(2, 1 << 40), ver(1, 256)];
    for (fill, version) in order.into_iter().enumerate() {
        commit(store, vec![put(at, version, fill as u8, RECORD)]);
    }
    // Neighbours in every part of the key must not show up.
    for near in [
        place(6, 3, 5, 2, 1),
        place(8, 3, 5, 2, 1),
        place(7, 2, 5, 2, 1),
        place(7, 4, 5, 2, 1),
        place(7, 3, 4, 2, 1),
        place(7, 3, 6, 2, 1),
        place(7, 3, 5, 1, 1),
        place(7, 3, 5, 3, 1),
        place(7, 3, 5, 2, 0),
        place(7, 3, 5, 2, 2),
    ] {
        commit(store, vec![put(near, ver(9, 9), 0xee, 16)]);
    }
    let newest_first = [ver(3, 1), ver(2, 1 << 40), ver(1, 256), ver(1, 10), ver(1, 9)];
    assert_eq!(vers(store, at), newest_first);
    let head = store.head(at).expect("head").expect("there is one");
    assert_eq!(head.ver, ver(3, 1));
    let Change::PutVersion { meta, record, .. } = put(at, ver(1, 10), 2, RECORD) else {
        unreachable!("put makes a put")
    };
    assert_eq!(store.meta(at, ver(1, 10)).expect("meta"), Some(meta.clone()));
    assert_eq!(store.record(at, ver(1, 10)).expect("record"), Some(record.clone()));
    assert!(meta.verifies(at, &record));
    assert_eq!(store.meta(at, ver(1, 11)).expect("meta"), None);
    assert_eq!(store.record(at, ver(1, 11)).expect("record"), None);
}

pub(super) fn large_numbers(subject: &mut dyn Subject) {
    let store = subject.store();
    let far = place(u32::MAX, u16::MAX, u64::MAX, u32::MAX, u8::MAX);
    let top = ver(u32::MAX, u64::MAX);
    commit(store, vec![put(far, top, 1, 64), put(far, ver(0, 1), 2, 64)]);
    commit(store, vec![Change::SetPrepared { at: far, ver: top }]);
    commit(store, vec![Change::SetVolume { volume: far.volume, state: state(u32::MAX, top) }]);
    assert_eq!(vers(store, far), [top, ver(0, 1)]);
    assert_eq!(scan_all(store, far.volume, far.row.group, 1).len(), 1);
    let after = store.scan(far.volume, far.row.group, Some(far), 1).expect("scan");
    assert_eq!(after, []);
    assert_eq!(store.prepared(far.volume).expect("marks"), [(far, top)]);
    assert_eq!(store.volumes().expect("volumes"), [far.volume]);
    commit(store, vec![Change::DropGroup { volume: far.volume, group: far.row.group }]);
    assert_eq!(vers(store, far), []);
    commit(store, vec![put(far, top, 1, 64), Change::DropSlot { at: far }]);
    assert_eq!(vers(store, far), []);
    commit(store, vec![put(far, top, 1, 64), Change::DropVolume { volume: far.volume }]);
    assert_eq!(store.volumes().expect("volumes"), []);
}

pub(super) fn absent_versions(subject: &mut dyn Subject) {
    let store = subject.store();
    let at = place(1, 1, 1, 1, 0);
    commit(store, vec![put(at, ver(1, 1), 5, RECORD), put(at, ver(1, 2), 0, 0)]);
    assert_eq!(vers(store, at), [ver(1, 2), ver(1, 1)]);
    let head = store.head(at).expect("head").expect("there is one");
    assert!(!head.present);
    assert!(head.verifies(at, &[]));
    assert_eq!(store.record(at, ver(1, 2)).expect("record"), None);
    let both: Vec<_> = store
        .records(&[(at, ver(1, 2)), (at, ver(1, 1))])
        .into_iter()
        .map(|answer| answer.expect("record").map(|bytes| bytes.len()))
        .collect();
    assert_eq!(both, [None, Some(RECORD)]);
    commit(store, vec![Change::DeleteVersion { at, ver: ver(1, 2) }]);
    assert_eq!(vers(store, at), [ver(1, 1)]);
}

pub(super) fn put_delete_put(subject: &mut dyn Subject) {
    let at = place(1, 0, 3, 4, 1);
    for round in 0..6u8 {
        let store = subject.store();
        commit(store, vec![put(at, ver(1, 1), round, RECORD)]);
        let record = store.record(at, ver(1, 1)).expect("record").expect("just put");
        assert_eq!(record, vec![round; RECORD]);
        if round % 2 == 1 {
            subject.restart(round % 3 == 0);
        }
        let store = subject.store();
        commit(store, vec![Change::DeleteVersion { at, ver: ver(1, 1) }]);
        assert_eq!(vers(store, at), []);
        assert_eq!(store.record(at, ver(1, 1)).expect("record"), None);
        // Deleting what is not there is no error and brings nothing back.
        commit(store, vec![Change::DeleteVersion { at, ver: ver(1, 1) }]);
        assert_eq!(store.head(at).expect("head"), None);
        if round % 2 == 0 {
            subject.restart(true);
            assert_eq!(vers(subject.store(), at), []);
        }
    }
}

pub(super) fn put_twice(subject: &mut dyn Subject) {
    let at = place(1, 0, 3, 4, 0);
    for round in 0..4u8 {
        // Also within one batch, and with other bytes, as a repair does.
        let twice = vec![put(at, ver(1, 1), 1, RECORD), put(at, ver(1, 1), 2 + round, RECORD)];
        commit(subject.store(), twice);
        subject.restart(round % 2 == 0);
    }
    let store = subject.store();
    assert_eq!(vers(store, at), [ver(1, 1)]);
    let record = store.record(at, ver(1, 1)).expect("record").expect("put");
    assert_eq!(record, vec![5; RECORD]);
    commit(store, vec![put(at, ver(1, 1), 0, 0)]);
    assert_eq!(store.record(at, ver(1, 1)).expect("record"), None);
    commit(store, vec![Change::DeleteVersion { at, ver: ver(1, 1) }]);
    // Nothing of the earlier puts may come back.
    assert_eq!(vers(store, at), []);
    subject.restart(true);
    let store = subject.store();
    assert_eq!(vers(store, at), []);
    assert_eq!(store.record(at, ver(1, 1)).expect("record"), None);
}

pub(super) fn batch_order(subject: &mut dyn Subject) {
    let store = subject.store();
    let at = place(2, 0, 0, 0, 0);
    let other = place(2, 0, 0, 0, 1);
    commit(
        store,
        vec![
            put(at, ver(1, 1), 1, 64),
            Change::DeleteVersion { at, ver: ver(1, 1) },
            put(at, ver(1, 1), 2, 64),
            Change::SetPrepared { at, ver: ver(1, 1) },
            Change::SetPrepared { at, ver: ver(1, 2) },
            Change::SetPrepared { at: other, ver: ver(1, 1) },
            Change::ClearPrepared { at: other },
            put(other, ver(1, 1), 3, 64),
            Change::DropGroup { volume: VolumeNo(2), group: GroupNo(0) },
            put(at, ver(2, 1), 4, 64),
            Change::SetPrepared { at, ver: ver(2, 1) },
            Change::SetVolume { volume: VolumeNo(2), state: state(1, ver(1, 1)) },
            Change::SetVolume { volume: VolumeNo(2), state: state(2, ver(1, 2)) },
        ],
    );
    assert_eq!(vers(store, at), [ver(2, 1)]);
    assert_eq!(vers(store, other), []);
    assert_eq!(store.prepared(VolumeNo(2)).expect("marks"), [(at, ver(2, 1))]);
    assert_eq!(store.volume(VolumeNo(2)).expect("state"), state(2, ver(1, 2)));
}

pub(super) fn refused_batches(subject: &mut dyn Subject) {
    let store = subject.store();
    let at = place(2, 0, 0, 0, 0);
    let liar = |present, record: &'static [u8]| {
        let meta = VersionMeta { ver: ver(1, 2), present, ..VersionMeta::default() };
        Change::PutVersion { at, meta, record: Bytes::from_static(record), fresh: false }
    };
    for wrong in [liar(true, b""), liar(false, b"bytes")] {
        let batch = Batch::durable(vec![put(at, ver(1, 1), 1, 64), wrong]);
        assert!(is_refused(&store.commit(batch)));
        // Nothing of it was applied, and the store goes on.
        assert_eq!(vers(store, at), []);
    }
    commit(store, vec![put(at, ver(1, 3), 1, 64)]);
    assert_eq!(vers(store, at), [ver(1, 3)]);
}

pub(super) fn prepared_marks(subject: &mut dyn Subject) {
    let store = subject.store();
    let marks: Vec<(RowSlot, Ver)> = (0..20)
        .map(|i| (place(4, (i % 3) as u16, i / 3, i as u32, (i % 2) as u8), ver(1, i)))
        .collect();
    for (at, version) in marks.iter().rev() {
        commit(store, vec![Change::SetPrepared { at: *at, ver: *version }]);
    }
    commit(store, vec![Change::SetPrepared { at: place(5, 0, 0, 0, 0), ver: ver(1, 1) }]);
    let mut sorted = marks;
    sorted.sort_unstable();
    assert_eq!(store.prepared(VolumeNo(4)).expect("marks"), sorted);
    assert_eq!(store.prepared(VolumeNo(3)).expect("marks"), []);
    let (at, _) = sorted[7];
    commit(store, vec![Change::SetPrepared { at, ver: ver(8, 8) }]);
    sorted[7].1 = ver(8, 8);
    assert_eq!(store.prepared(VolumeNo(4)).expect("marks"), sorted);
    commit(store, vec![Change::ClearPrepared { at }, Change::ClearPrepared { at }]);
    sorted.remove(7);
    subject.restart(false);
    assert_eq!(subject.store().prepared(VolumeNo(4)).expect("marks"), sorted);
}

pub(super) fn volume_state(subject: &mut dyn Subject) {
    let store = subject.store();
    let set = |volume, value| Change::SetVolume { volume: VolumeNo(volume), state: value };
    commit(store, vec![set(9, state(1, ver(1, 5))), set(1, state(2, Ver::NONE))]);
    commit(store, vec![set(9, state(3, ver(2, 1))), put(place(5, 0, 0, 0, 0), ver(1, 1), 0, 9)]);
    subject.restart(true);
    let store = subject.store();
    assert_eq!(store.volume(VolumeNo(9)).expect("state"), state(3, ver(2, 1)));
    assert_eq!(store.volume(VolumeNo(1)).expect("state"), state(2, Ver::NONE));
    assert_eq!(store.volume(VolumeNo(5)).expect("state"), VolumeState::default());
    assert_eq!(store.volumes().expect("volumes"), [VolumeNo(1), VolumeNo(5), VolumeNo(9)]);
}

pub(super) fn scan_pages(subject: &mut dyn Subject) {
    let mut expected = Vec::new();
    let mut changes = Vec::new();
    for i in 0..50u64 {
        // Byte order must follow number order, so numbers cross byte boundaries.
        let at = place(1, 2, (i / 10) * 200, (i % 5) as u32 * 100, (i % 2) as u8);
        changes.push(put(at, ver(1, i + 1), i as u8, 40));
        if i % 3 == 0 {
            changes.push(put(at, ver(2, i + 1), i as u8, 0));
        }
        expected.push(at);
    }
    commit(subject.store(), changes);
    expected.sort_unstable();
    expected.dedup();
    subject.restart(true);
    let store = subject.store();
    for page in [1, 2, 7, 49, 50, 51, usize::MAX] {
        let found = scan_all(store, VolumeNo(1), GroupNo(2), page);
        let places: Vec<_> = found.iter().map(|(at, _)| *at).collect();
        assert_eq!(places, expected);
        for (at, versions) in found {
            assert_eq!(versions, store.versions(at).expect("versions"));
            assert!(!versions.is_empty());
        }
    }
    assert_eq!(store.scan(VolumeNo(1), GroupNo(2), None, 0).expect("scan"), []);
}

pub(super) fn scan_bounds(subject: &mut dyn Subject) {
    let store = subject.store();
    let inside = [place(3, 5, 0, 0, 0), place(3, 5, u64::MAX, u32::MAX, u8::MAX)];
    let outside = [
        place(2, 5, 1, 1, 1),
        place(3, 4, u64::MAX, u32::MAX, u8::MAX),
        place(3, 6, 0, 0, 0),
        place(4, 5, 0, 0, 0),
    ];
    for at in inside.into_iter().chain(outside) {
        commit(store, vec![put(at, ver(1, 1), 1, 20)]);
    }
    let scan = |after| -> Vec<RowSlot> {
        let page = store.scan(VolumeNo(3), GroupNo(5), after, 10).expect("scan");
        page.into_iter().map(|(at, _)| at).collect()
    };
    assert_eq!(scan(None), inside);
    // `after` need not be there, nor in the group.
    assert_eq!(scan(Some(place(3, 5, 0, 0, 1))), inside[1..]);
    assert_eq!(scan(Some(outside[0])), inside);
    assert_eq!(scan(Some(outside[1])), inside);
    assert_eq!(scan(Some(inside[1])), []);
    assert_eq!(scan(Some(outside[2])), []);
    assert_eq!(scan(Some(outside[3])), []);
}

pub(super) fn drop_slot(subject: &mut dyn Subject) {
    let at = place(3, 5, 1, 1, 1);
    let near = [place(3, 5, 1, 1, 0), place(3, 5, 1, 1, 2)];
    let store = subject.store();
    for place in near.into_iter().chain([at]) {
        commit(store, vec![put(place, ver(1, 1), 1, 2000), put(place, ver(1, 2), 1, 0)]);
        commit(store, vec![Change::SetPrepared { at: place, ver: ver(1, 2) }]);
    }
    commit(store, vec![Change::DropSlot { at }, put(at, ver(1, 1), 9, 2000)]);
    subject.restart(false);
    let store = subject.store();
    assert_eq!(vers(store, at), [ver(1, 1)]);
    assert_eq!(store.record(at, ver(1, 1)).expect("record").expect("put"), vec![9; 2000]);
    let marks = near.map(|place| (place, ver(1, 2)));
    assert_eq!(store.prepared(VolumeNo(3)).expect("marks"), marks);
    for place in near {
        assert_eq!(vers(store, place), [ver(1, 2), ver(1, 1)]);
    }
}

pub(super) fn drop_group(subject: &mut dyn Subject) {
    fill_groups(subject.store());
    commit(subject.store(), vec![Change::DropGroup { volume: VolumeNo(2), group: GroupNo(7) }]);
    for _ in 0..2 {
        let store = subject.store();
        for (volume, group) in GROUPS {
            let left = if (volume, group) == (2, 7) { 0 } else { 6 };
            assert_eq!(scan_all(store, VolumeNo(volume), GroupNo(group), 4).len(), left);
        }
        assert_eq!(store.prepared(VolumeNo(2)).expect("marks").len(), 12);
        assert_eq!(store.volume(VolumeNo(2)).expect("state"), state(2, ver(1, 1)));
        let gone = place(2, 7, 1, 1, 1);
        assert_eq!(store.record(gone, ver(1, 1)).expect("record"), None);
        subject.restart(true);
    }
    // The same versions may come again.
    fill_groups(subject.store());
    let back = place(2, 7, 1, 1, 1);
    commit(subject.store(), vec![Change::DeleteVersion { at: back, ver: ver(1, 1) }]);
    subject.restart(true);
    assert_eq!(vers(subject.store(), back), []);
    assert_eq!(scan_all(subject.store(), VolumeNo(2), GroupNo(7), 4).len(), 5);
}

pub(super) fn drop_volume(subject: &mut dyn Subject) {
    fill_groups(subject.store());
    commit(subject.store(), vec![Change::DropVolume { volume: VolumeNo(2) }]);
    for _ in 0..2 {
        let store = subject.store();
        assert_eq!(store.volumes().expect("volumes"), [VolumeNo(1), VolumeNo(3)]);
        assert_eq!(store.volume(VolumeNo(2)).expect("state"), VolumeState::default());
        assert_eq!(store.prepared(VolumeNo(2)).expect("marks"), []);
        assert_eq!(scan_all(store, VolumeNo(2), GroupNo(7), 4), []);
        assert_eq!(scan_all(store, VolumeNo(1), GroupNo(7), 4).len(), 6);
        assert_eq!(scan_all(store, VolumeNo(3), GroupNo(7), 4).len(), 6);
        assert_eq!(store.volume(VolumeNo(3)).expect("state"), state(3, ver(1, 1)));
        subject.restart(false);
    }
}

const GROUPS: [(u32, u16); 5] = [(1, 7), (2, 6), (2, 7), (2, 8), (3, 7)];

fn fill_groups(store: &dyn ShardStore) {
    for (volume, group) in GROUPS {
        let mut changes = Vec::new();
        for i in 0..6 {
            let at = place(volume, group, i / 2, (i % 2) as u32, (i % 2) as u8);
            changes.push(put(at, ver(1, 1), i as u8, 1500));
            changes.push(Change::SetPrepared { at, ver: ver(1, 1) });
        }
        let value = state(volume, ver(1, 1));
        changes.push(Change::SetVolume { volume: VolumeNo(volume), state: value });
        commit(store, changes);
    }
}

pub(super) fn records_in_order(subject: &mut dyn Subject) {
    let at = |i: u64| place(1, 0, i, 0, 0);
    let changes = (0..200).map(|i| put(at(i), ver(1, i), i as u8, RECORD)).collect();
    commit(subject.store(), changes);
    subject.restart(true);
    // Neither sorted nor unique, and with holes.
    let wanted: Vec<_> =
        (0..300u64).map(|i| (i * 7919) % 260).map(|i| (at(i), ver(1, i))).collect();
    let found = subject.store().records(&wanted);
    assert_eq!(found.len(), wanted.len());
    for ((_, version), answer) in wanted.iter().zip(found) {
        let expected = (version.seq < 200).then(|| vec![version.seq as u8; RECORD]);
        assert_eq!(answer.expect("record").map(|bytes| bytes.to_vec()), expected);
    }
}

pub(super) fn restarts(subject: &mut dyn Subject) {
    let first = subject.store().opened();
    assert!(first.clean, "a new store has lost nothing");
    let at = place(1, 0, 0, 0, 0);
    let mut last = first;
    for (round, clean) in [true, false, true, true, false, false].into_iter().enumerate() {
        commit(subject.store(), vec![put(at, ver(1, round as u64 + 1), 1, RECORD)]);
        subject.restart(clean);
        let opened = subject.store().opened();
        assert_eq!(opened.id, first.id);
        assert!(opened.incarnation > last.incarnation);
        assert_eq!(opened.clean, clean);
        assert_eq!(vers(subject.store(), at).len(), round + 1);
        last = opened;
    }
}

pub(super) fn admissions(subject: &mut dyn Subject) {
    let first = subject.store().opened();
    assert_eq!(first.run, RunId::default(), "never admitted");
    let run = |no: u128| RunId(Uuid::from_u128(no));
    let mut number = first.incarnation.0;
    for round in 1..6 {
        // What the cluster says counts, whatever the store knows of itself.
        let (incarnation, clean) =
            (Incarnation(number + u64::from(round == 3) * 10), round % 2 == 0);
        let admission = Admission { run: run(round), incarnation, clean };
        let was_clean = subject.store().opened().clean;
        subject.store().admit(admission).expect("admission");
        let opened = subject.store().opened();
        let announced = Announced::default();
        let expected = Opened {
            id: first.id,
            incarnation,
            clean,
            went_back: was_clean && !clean,
            run: run(round),
            announced,
        };
        assert_eq!(opened, expected);
        subject.restart(round != 4);
        let opened = subject.store().opened();
        assert_eq!((opened.clean, opened.run), (round != 4, run(round)), "round {round}");
        number = opened.incarnation.0;
        assert_eq!(number, incarnation.0 + 1);
        let used = Admission { run: run(99), incarnation, clean: true };
        assert!(matches!(subject.store().admit(used), Err(StoreError::Refused(_))));
        assert_eq!(subject.store().opened(), opened, "nothing changed");
    }
    // Names of starts that were broken off are kept until one is admitted.
    for name in 60..66 {
        subject.store().announce(run(name)).expect("announced");
        subject.restart(name % 2 == 0);
    }
    let opened = subject.store().opened();
    assert_eq!(opened.announced, [65, 64, 63, 62].map(run));
    let Opened { incarnation, .. } = opened;
    subject.store().announce(run(66)).expect("announced");
    let admission = Admission { run: run(66), incarnation, clean: false };
    subject.store().admit(admission).expect("admission");
    subject.restart(true);
    assert_eq!(subject.store().opened().announced, Announced::default());
    // Who has ended is admitted no more: the marker that it left is its last run's.
    let last = subject.store().opened();
    subject.store().close().expect("close");
    let late = Admission { run: run(50), incarnation: last.incarnation, clean: false };
    assert!(subject.store().admit(late).is_err());
    subject.restart(true);
    let opened = subject.store().opened();
    assert_eq!((opened.clean, opened.run), (true, last.run));
}

pub(super) fn relaxed_batches(subject: &mut dyn Subject) {
    let at = place(1, 0, 0, 0, 0);
    let store = subject.store();
    store.commit(Batch::relaxed(vec![put(at, ver(1, 1), 1, RECORD)])).expect("relaxed commit");
    assert_eq!(vers(store, at), [ver(1, 1)]);
    commit(store, vec![put(at, ver(1, 2), 2, RECORD)]);
    let delete = vec![Change::DeleteVersion { at, ver: ver(1, 1) }];
    store.commit(Batch::relaxed(delete)).expect("relaxed commit");
    assert_eq!(vers(store, at), [ver(1, 2)]);
    // A clean end makes them durable.
    subject.restart(true);
    assert_eq!(vers(subject.store(), at), [ver(1, 2)]);
}

pub(super) fn large_batches(subject: &mut dyn Subject) {
    let at = |i: u64| place(1, 0, i / 256, (i % 256) as u32, (i % 3) as u8);
    for round in 1..=3 {
        let mut changes = Vec::new();
        for i in 0..1500 {
            changes.push(put(at(i), ver(1, round), i as u8, RECORD));
            changes.push(Change::DeleteVersion { at: at(i), ver: ver(1, round - 1) });
        }
        commit(subject.store(), changes);
    }
    subject.restart(false);
    let store = subject.store();
    let rows = scan_all(store, VolumeNo(1), GroupNo(0), 400);
    assert_eq!(rows.len(), 1500);
    assert!(rows.iter().all(|(_, versions)| versions.len() == 1 && versions[0].ver == ver(1, 3)));
    let last = store.record(at(1499), ver(1, 3)).expect("record").expect("put");
    assert_eq!(last, vec![1499u64 as u8; RECORD]);
}

pub(super) fn closed_store(subject: &mut dyn Subject) {
    let at = place(1, 0, 0, 0, 0);
    let store = subject.store();
    commit(store, vec![put(at, ver(1, 1), 1, 64)]);
    store.close().expect("close");
    let late = Batch::durable(vec![put(at, ver(1, 2), 1, 64)]);
    assert!(store.commit(late).is_err(), "nothing is taken after the clean marker");
    store.close().expect("closing twice is no error");
    subject.restart(true);
    assert!(subject.store().opened().clean);
    assert_eq!(vers(subject.store(), at), [ver(1, 1)]);
}

pub(super) fn space(subject: &mut dyn Subject) {
    let space = subject.store().space().expect("space");
    assert!(space.total > 0);
    assert!(space.free <= space.total);
}

pub(super) fn index_of_changes(subject: &mut dyn Subject) {
    let (volume, group) = (VolumeNo(1), GroupNo(2));
    let row = |index| place(1, 2, 5, index, 0).row;
    let index = |ids: &[u128]| ChangeIndex {
        seats: ids.iter().map(|id| (Slot(2), StoreId(Uuid::from_u128(*id)))).collect(),
    };
    let set = |ids| Change::SetIndex { volume, group, index: index(ids) };
    let note = |index| Change::NoteChanged { volume, row: row(index) };
    let store = subject.store();
    assert_eq!(store.index(volume, group).expect("index"), None);
    assert_eq!(store.changed(volume, group, None, 9).expect("rows"), []);
    // Neighbours are not met.
    let beside = |volume, group| {
        let at = place(volume, group, 5, 7, 0);
        let index = index(&[9]);
        vec![
            Change::SetIndex { volume: at.volume, group: at.row.group, index },
            Change::NoteChanged { volume: at.volume, row: at.row },
        ]
    };
    for (volume, group) in [(1, 1), (1, 3), (0, 2), (2, 2)] {
        commit(store, beside(volume, group));
    }
    commit(store, vec![set(&[1, 2]), note(300), note(1), note(2), note(300)]);
    subject.restart(false);
    let store = subject.store();
    assert_eq!(store.index(volume, group).expect("index"), Some(index(&[1, 2])));
    let page = |after, limit| store.changed(volume, group, after, limit).expect("rows");
    assert_eq!(page(None, 2), [row(1), row(2)]);
    assert_eq!(page(Some(row(2)), 2), [row(300)]);
    assert_eq!(page(Some(row(300)), 2), []);
    // What it says of stores changes, and the rows stay.
    commit(store, vec![set(&[1, 2, 3])]);
    assert_eq!(store.index(volume, group).expect("index"), Some(index(&[1, 2, 3])));
    assert_eq!(page(None, 9).len(), 3);
    // Dropped and begun anew in one batch it has nothing of before.
    commit(store, vec![Change::DropIndex { volume, group }, set(&[1]), note(4)]);
    assert_eq!(page(None, 9), [row(4)]);
    commit(store, vec![Change::DropIndex { volume, group }]);
    assert_eq!((store.index(volume, group).expect("index"), page(None, 9)), (None, vec![]));
    for change in [
        Change::DropIndex { volume, group: GroupNo(1) },
        Change::DropGroup { volume, group: GroupNo(3) },
        Change::DropVolume { volume: VolumeNo(2) },
    ] {
        commit(store, vec![change]);
    }
    let there = |volume, group| {
        let rows = store.changed(VolumeNo(volume), GroupNo(group), None, 9).expect("rows").len();
        (store.index(VolumeNo(volume), GroupNo(group)).expect("index").is_some(), rows)
    };
    let neighbours = [there(1, 1), there(1, 3), there(0, 2), there(2, 2)];
    assert_eq!(neighbours, [(false, 0), (false, 0), (true, 1), (false, 0)]);
}
