//! Which rows have changed while a slot of their group was out: what a store that comes back lacks.
//!
//! An index begins when a group of which this store is in sync loses a slot, or when this store comes
//! to be in sync of one that lacks some already. It names the slots that were in sync just before, with
//! their stores, and from then on every row in which this store changes anything, in the batch that
//! changes it. It ends when the group is whole, or this store leaves the in-sync set itself; and it
//! forgets a store that may have deleted what it held.
//!
//! N1. A store that the index names with a slot lacks nothing of it but rows of the index and rows
//!     that it holds undecided itself: what was acknowledged before, it acknowledged too, and what was
//!     undecided when it left is undecided here or there. That ends with the first thing it takes
//!     while it is out: undone again, that may cost what lay beneath, here alone. It has *strayed*
//!     then, and remembers it on its disk, as an index that names nobody, until it has been compared.
//! N2. A store that came up after a crash does not know what it has forgotten: neither its index is
//!     believed nor what it says of itself, until it has been compared with others.

use super::{StoreCore, VolumeSide};
use crate::msg::Answer;
use smalti_map::mutant::{Mutant, lives};
use smalti_map::{Group, Volume};
use smalti_storage::ids::{GroupNo, RowSlot, Slot, SlotSet, StoreId, VolumeNo};
use smalti_storage::store::{Change, ChangeIndex, StoreError};
use std::collections::{BTreeMap, BTreeSet};

/// A slot and the store that holds it.
type Seat = (Slot, StoreId);

/// Rows that are remembered as noted already; a row noted twice costs a few bytes.
const NOTED_MAX: usize = 64 * 1024;

/// What is known of the indexes of a volume.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Indexes {
    /// Those that go on; one that names nobody says that this store has strayed.
    open: BTreeMap<GroupNo, ChangeIndex>,
    noted: BTreeSet<RowSlot>,
    /// What was in sync by the map before, of groups in which this store was.
    before: BTreeMap<GroupNo, BTreeSet<Seat>>,
    /// A map that tells of this start has been adopted.
    begun: bool,
    /// Groups whose rows this store has right, but for what was changed while it was out of sync.
    right: BTreeSet<GroupNo>,
}

/// Says that this store took something while it was out of sync, or may have forgotten something,
/// and has not been compared since. Names nobody, and so no rows are noted in it.
const STRAYED: ChangeIndex = ChangeIndex { seats: BTreeSet::new() };

impl Indexes {
    /// Whether all groups of which this store is in sync were right in this run.
    pub(super) fn is_right(&self) -> bool {
        self.before.keys().all(|group| self.right.contains(group))
    }

    /// The group was given up with all that was here.
    pub(super) fn forget(&mut self, group: GroupNo) {
        self.open.remove(&group);
    }

    /// What there is of a group when the first map comes.
    fn begin(&mut self, group: GroupNo, found: ChangeIndex) {
        if found == STRAYED {
            self.right.remove(&group);
        }
        self.open.insert(group, found);
    }

    /// What the index of a group is to be by a newer map, and whether it begins.
    fn next(
        &self,
        no: GroupNo,
        group: &Group,
        all: SlotSet,
        inside: bool,
    ) -> (Option<ChangeIndex>, bool) {
        if inside && group.insync != all {
            let known = self.open.get(&no).filter(|known| **known != STRAYED);
            let before = known.map(|known| &known.seats).or_else(|| self.before.get(&no));
            let mut seats = insync_seats(group);
            seats.extend(before.into_iter().flatten().copied());
            seats.retain(|seat| still_has(group, *seat));
            (Some(ChangeIndex { seats }), known.is_none())
        } else {
            ((!inside && !self.right.contains(&no)).then_some(STRAYED), false)
        }
    }
}

impl StoreCore {
    /// A newer map, which tells of this start: begins, goes on with and ends indexes.
    pub(super) fn index_by(&mut self, volume: &Volume) -> Result<(), StoreError> {
        let me = self.opened.id;
        let believed = self.opened.clean || lives(Mutant::IndexOfCrashed);
        let mut changes = Vec::new();
        for (no, group) in (0u16..).map(GroupNo).zip(&volume.groups) {
            let insync = insync_seats(group);
            let inside = insync.iter().any(|(_, store)| *store == me);
            let Some(side) = self.volumes.get_mut(&volume.no) else { return Ok(()) };
            let indexes = &mut side.indexes;
            let drop = Change::DropIndex { volume: volume.no, group: no };
            if !indexes.begun {
                if believed {
                    indexes.right.insert(no);
                }
                match self.store.index(volume.no, no)? {
                    Some(found) if believed => indexes.begin(no, found),
                    Some(_) => changes.push(drop.clone()),
                    None => {}
                }
            } else if inside && !indexes.before.contains_key(&no) {
                // Grown: it was compared.
                indexes.right.insert(no);
            }
            let (next, begins) = indexes.next(no, group, volume.all_slots(), inside);
            let known = indexes.open.get(&no);
            if next.as_ref() != known {
                if known.is_some() && next.as_ref().is_none_or(|next| *next == STRAYED) {
                    changes.push(drop);
                }
                indexes.open.remove(&no);
                if let Some(index) = next {
                    indexes.open.insert(no, index.clone());
                    changes.push(Change::SetIndex { volume: volume.no, group: no, index });
                }
            }
            if inside {
                indexes.before.insert(no, insync);
            } else {
                indexes.before.remove(&no);
            }
            if begins && !lives(Mutant::IndexDecidedOnly) {
                let note = |at: &RowSlot| Change::NoteChanged { volume: volume.no, row: at.row };
                changes.extend(undecided(side, no).map(note));
            }
        }
        if let Some(side) = self.volumes.get_mut(&volume.no) {
            side.indexes.begun = true;
            if !changes.is_empty() {
                side.indexes.noted.clear();
            }
        }
        self.batch.changes.extend(changes);
        Ok(())
    }

    /// Something of the row slot changes in the batch.
    pub(super) fn note(&mut self, at: RowSlot) {
        let Some(side) = self.volumes.get_mut(&at.volume) else { return };
        let (volume, group) = (at.volume, at.row.group);
        let keeps = side.keeps.as_ref().and_then(|keeps| keeps.get(usize::from(group.0)));
        if keeps == Some(&false) {
            side.unasked.insert(group);
        }
        let Indexes { open, noted, before, right, .. } = &mut side.indexes;
        let known = open.get(&group);
        if !before.contains_key(&group) {
            // Out of sync: what is undone again, here alone perhaps, may have cost what lay beneath.
            right.remove(&group);
            if known != Some(&STRAYED) && !lives(Mutant::StrayForgotten) {
                open.insert(group, STRAYED);
                self.batch.changes.push(Change::SetIndex { volume, group, index: STRAYED });
            }
        } else if known.is_some() && noted.insert(at) {
            if noted.len() > NOTED_MAX {
                noted.clear();
            }
            self.batch.changes.push(Change::NoteChanged { volume, row: at.row });
        }
    }

    /// All rows of the groups it is in sync of were compared.
    pub(super) fn indexes_vetted(&mut self, volume: VolumeNo) {
        if let Some(side) = self.volumes.get_mut(&volume) {
            let inside: Vec<GroupNo> = side.indexes.before.keys().copied().collect();
            side.indexes.right.extend(inside);
        }
    }

    /// What it holds undecided of a group, and whether all it lacks of the rest is what has changed
    /// since it left.
    pub(super) fn undecided_of(&self, volume: VolumeNo, group: GroupNo) -> Answer {
        let Some(side) = self.volumes.get(&volume) else {
            return Answer::Undecided { right: false, rows: Vec::new() };
        };
        let right = side.indexes.right.contains(&group) || lives(Mutant::IndexOfCrashed);
        Answer::Undecided { right, rows: undecided(side, group).map(|at| at.row).collect() }
    }
}

fn undecided(side: &VolumeSide, group: GroupNo) -> impl Iterator<Item = &RowSlot> {
    side.prepared.keys().filter(move |at| at.row.group == group)
}

fn insync_seats(group: &Group) -> BTreeSet<Seat> {
    let seat = |slot: Slot| Some((slot, *group.slots.get(slot.index())?));
    group.insync.iter().filter_map(seat).collect()
}

/// Whether the store has not been told to delete what it held of the slot.
fn still_has(group: &Group, (slot, store): Seat) -> bool {
    group.slots.get(slot.index()) == Some(&store)
        || group.old_holders.contains(&store)
        || lives(Mutant::IndexOfDeleted)
}
