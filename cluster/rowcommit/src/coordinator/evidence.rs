//! What a row's slots say together of its committed state.
//!
//! Usually one parity slot tells the row's vector. Where an in-sync store may have forgotten what
//! it acknowledged, no single one is believed: a version that was acknowledged stood on k + 1
//! slots, and at most k forget, so for each data slot the newest version that anybody names is the
//! committed one.

use smalti_storage::ids::{Slot, SlotSet};
use smalti_storage::store::{VecEntry, VersionMeta};
use std::collections::BTreeMap;

/// Takes the newer of two entries.
pub(super) fn raise(entry: &mut VecEntry, other: VecEntry) {
    if other.ver > entry.ver {
        *entry = other;
    }
}

/// As the entry of a vector.
pub(super) fn entry_of(meta: &VersionMeta) -> VecEntry {
    VecEntry { ver: meta.ver, wid: meta.wid, snap: meta.snap }
}

/// The vector of `n` data slots that committed metadata of a row's slots speaks for.
pub(super) fn vector<'a>(
    metas: impl Iterator<Item = (Slot, &'a VersionMeta)>,
    n: u8,
) -> Vec<VecEntry> {
    let data = SlotSet::first(n);
    let mut vec = vec![VecEntry::default(); usize::from(n)];
    for (slot, meta) in metas {
        if data.contains(slot) {
            raise(&mut vec[slot.index()], entry_of(meta));
        } else {
            vec.iter_mut().zip(&meta.vec).for_each(|(entry, told)| raise(entry, *told));
        }
    }
    vec
}

/// The newest vector, unless so many slots contradict it that too few are left to construct a row from, and one that
/// some of them tell is borne by enough. Then the newest was undone, and whoever names it has lost that: had it been
/// acknowledged, more slots than there are parity slots to spare would have lost it.
pub(super) fn borne(
    metas: &BTreeMap<Slot, VersionMeta>,
    newest: Vec<VecEntry>,
    data: SlotSet,
) -> Vec<VecEntry> {
    let n = data.len() as usize;
    let against = |vec: &[VecEntry]| dissenting(metas, vec, data).len() as usize;
    let spare = metas.len().saturating_sub(n);
    if against(&newest) <= spare {
        return newest;
    }
    let told = metas.iter().filter(|(slot, _)| !data.contains(**slot)).map(|(_, meta)| {
        let mut vec = meta.vec.clone();
        vec.resize(n, VecEntry::default());
        vec
    });
    let own: Vec<VecEntry> =
        data.iter().filter_map(|slot| metas.get(&slot)).map(entry_of).collect();
    // Each may lack what another one knows; what few enough contradict one by one has to be so together.
    let borne =
        told.chain(Some(own).filter(|own| own.len() == n)).filter(|vec| against(vec) <= spare);
    let together = borne.reduce(|mut all, vec| {
        all.iter_mut().zip(vec).for_each(|(entry, other)| raise(entry, other));
        all
    });
    together.filter(|vec| against(vec) <= spare).unwrap_or(newest)
}

/// The slots whose metadata is not what the vector says.
pub(super) fn dissenting(
    metas: &BTreeMap<Slot, VersionMeta>,
    vec: &[VecEntry],
    data: SlotSet,
) -> SlotSet {
    let agrees = |slot: Slot, meta: &VersionMeta| match vec.get(slot.index()) {
        Some(entry) if data.contains(slot) => entry.ver == meta.ver,
        _ => super::gather::same_vector(&meta.vec, vec),
    };
    metas.iter().filter(|(slot, meta)| !agrees(**slot, meta)).map(|(slot, _)| *slot).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_storage::ids::{Epoch, Ver};

    fn ver(seq: u64) -> Ver {
        Ver { epoch: Epoch(1), seq }
    }

    fn data(seq: u64) -> VersionMeta {
        VersionMeta { ver: ver(seq), ..VersionMeta::default() }
    }

    fn parity(vec: &[u64]) -> VersionMeta {
        let vec: Vec<VecEntry> =
            vec.iter().map(|seq| VecEntry { ver: ver(*seq), ..VecEntry::default() }).collect();
        let newest = vec.iter().map(|entry| entry.ver).max().unwrap_or_default();
        VersionMeta { ver: newest, vec, ..VersionMeta::default() }
    }

    #[test]
    fn the_newest_that_anybody_names_is_committed() {
        // 2+2. Slot 0 forgot version 7, the first parity slot forgot it too.
        let metas: BTreeMap<Slot, VersionMeta> = [
            (Slot(0), data(3)),
            (Slot(1), data(5)),
            (Slot(2), parity(&[3, 5])),
            (Slot(3), parity(&[7, 5])),
        ]
        .into();
        let found = vector(metas.iter().map(|(slot, meta)| (*slot, meta)), 2);
        assert_eq!(found.iter().map(|entry| entry.ver).collect::<Vec<_>>(), [ver(7), ver(5)]);
        let wrong = dissenting(&metas, &found, SlotSet::first(2));
        assert_eq!(wrong, [Slot(0), Slot(2)].into_iter().collect());
    }

    #[test]
    fn what_was_undone_does_not_count_though_one_slot_has_lost_that() {
        // 3+2: version 9 of two blocks was undone, and the first parity slot has it yet.
        let undone: BTreeMap<Slot, VersionMeta> = [
            (Slot(0), data(5)),
            (Slot(1), data(6)),
            (Slot(2), data(3)),
            (Slot(3), parity(&[9, 9, 3])),
            (Slot(4), parity(&[5, 6, 3])),
        ]
        .into();
        let of = |metas: &BTreeMap<Slot, VersionMeta>| {
            let newest = vector(metas.iter().map(|(slot, meta)| (*slot, meta)), 3);
            let found = borne(metas, newest, SlotSet::first(3));
            found.iter().map(|entry| entry.ver.seq).collect::<Vec<_>>()
        };
        assert_eq!(of(&undone), [5, 6, 3]);
        // It was acknowledged, and two of five have lost it.
        let mut lost = undone.clone();
        lost.insert(Slot(0), data(9));
        lost.insert(Slot(4), parity(&[9, 9, 3]));
        lost.insert(Slot(3), parity(&[5, 6, 3]));
        assert_eq!(of(&lost), [9, 9, 3]);
        // 2+2 and 2+3: version 6 of the second block was undone, which one has lost, and others lack version 7 of the
        // first, for which as many or fewer speak.
        for lacking in 1..=2_u8 {
            let mut metas: BTreeMap<Slot, VersionMeta> =
                [(Slot(0), data(7)), (Slot(1), data(5)), (Slot(2), parity(&[3, 6]))].into();
            metas.extend((0..lacking).map(|no| (Slot(3 + no), parity(&[3, 5]))));
            let newest = vector(metas.iter().map(|(slot, meta)| (*slot, meta)), 2);
            let found = borne(&metas, newest, SlotSet::first(2));
            assert_eq!(found.iter().map(|entry| entry.ver.seq).collect::<Vec<_>>(), [7, 5]);
        }
        // Nobody can tell: nothing is made of it.
        let mut split = undone;
        split.insert(Slot(4), parity(&[5, 7, 3]));
        split.remove(&Slot(2));
        assert_eq!(of(&split), [9, 9, 3]);
    }

    #[test]
    fn data_slots_outvote_a_parity_slot_that_forgot() {
        let metas: BTreeMap<Slot, VersionMeta> =
            [(Slot(0), data(9)), (Slot(1), data(5)), (Slot(2), parity(&[3, 5]))].into();
        let found = vector(metas.iter().map(|(slot, meta)| (*slot, meta)), 2);
        assert_eq!(found[0].ver, ver(9));
        let wrong = dissenting(&metas, &found, SlotSet::first(2));
        assert_eq!(wrong, SlotSet::EMPTY.with(Slot(2)));
    }
}
