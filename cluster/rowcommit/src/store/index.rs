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
//!     while it is out: undone again, that may cost what lay beneath, here alone.
//! N2. A store that came up after a crash does not know what it has forgotten: neither its index is
//!     believed nor what it says of itself, until it has been compared with others.

use super::{StoreCore, VolumeSide};
use crate::msg::Answer;
use smalti_map::mutant::{Mutant, lives};
use smalti_map::{Group, Volume};
use smalti_storage::ids::{GroupNo, RowSlot, Slot, StoreId, VolumeNo};
use smalti_storage::store::{Change, ChangeIndex, StoreError};
use std::collections::{BTreeMap, BTreeSet};

/// A slot and the store that holds it.
type Seat = (Slot, StoreId);

/// Rows that are remembered as noted already; a row noted twice costs a few bytes.
const NOTED_MAX: usize = 64 * 1024;

/// What is known of the indexes of a volume.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Indexes {
    /// Those that go on.
    open: BTreeMap<GroupNo, ChangeIndex>,
    noted: BTreeSet<RowSlot>,
    /// What was in sync by the map before, of groups in which this store was.
    before: BTreeMap<GroupNo, BTreeSet<Seat>>,
    /// A map that tells of this start has been adopted.
    begun: bool,
    /// Groups whose rows this store had right in this run.
    right: BTreeSet<GroupNo>,
}

impl StoreCore {
    /// A newer map, which tells of this start: begins, goes on with and ends indexes.
    pub(super) fn index_by(&mut self, volume: &Volume) -> Result<(), StoreError> {
        let (me, clean) = (self.opened.id, self.opened.clean);
        let all = volume.all_slots();
        let mut changes = Vec::new();
        for (no, group) in (0u16..).map(GroupNo).zip(&volume.groups) {
            let insync = insync_seats(group);
            let inside = insync.iter().any(|(_, store)| *store == me);
            let Some(side) = self.volumes.get_mut(&volume.no) else { return Ok(()) };
            if !side.indexes.begun {
                let found = self.store.index(volume.no, no)?;
                if let Some(index) = found {
                    if clean || lives(Mutant::IndexOfCrashed) {
                        side.indexes.open.insert(no, index);
                    } else {
                        changes.push(Change::DropIndex { volume: volume.no, group: no });
                    }
                }
                if inside && clean {
                    side.indexes.right.insert(no);
                }
            } else if inside && !side.indexes.before.contains_key(&no) {
                // Grown: it was compared.
                side.indexes.right.insert(no);
            }
            let open = side.indexes.open.get(&no);
            let known = open.map(|index| index.seats.clone());
            let wanted = inside && group.insync != all;
            match known {
                Some(_) if !wanted => {
                    side.indexes.open.remove(&no);
                    changes.push(Change::DropIndex { volume: volume.no, group: no });
                }
                Some(known) => {
                    let mut seats = &known | &insync;
                    seats.retain(|seat| still_has(group, *seat));
                    if seats != known {
                        let index = ChangeIndex { seats };
                        side.indexes.open.insert(no, index.clone());
                        changes.push(Change::SetIndex { volume: volume.no, group: no, index });
                    }
                }
                None if wanted => {
                    let before = side.indexes.before.get(&no);
                    let mut seats = before.map_or_else(|| insync.clone(), |b| b | &insync);
                    seats.retain(|seat| still_has(group, *seat));
                    let index = ChangeIndex { seats };
                    side.indexes.open.insert(no, index.clone());
                    changes.push(Change::SetIndex { volume: volume.no, group: no, index });
                    if !lives(Mutant::IndexDecidedOnly) {
                        changes.extend(
                            undecided(side, no)
                                .map(|at| Change::NoteChanged { volume: volume.no, row: at.row }),
                        );
                    }
                }
                None => {}
            }
            if inside {
                side.indexes.before.insert(no, insync);
            } else {
                side.indexes.before.remove(&no);
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
        let Indexes { open, noted, before, right, .. } = &mut side.indexes;
        if !before.contains_key(&at.row.group) {
            // Out of sync: what is undone again, here alone perhaps, may have cost what lay beneath.
            right.remove(&at.row.group);
        }
        if open.contains_key(&at.row.group) && noted.insert(at) {
            if noted.len() > NOTED_MAX {
                noted.clear();
            }
            self.batch.changes.push(Change::NoteChanged { volume: at.volume, row: at.row });
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
        // After a restart nobody knows what was changed here while it was out.
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
