//! When a disk is too full for new data.

use serde::{Deserialize, Serialize};
use smalti_rowcommit::store::Room;
use smalti_storage::store::Space;

/// A full disk has room again once this much more than the reserve is free, as a part of it:
/// otherwise every buffer that is written out would change it back and forth.
const ROOM_AGAIN_PART: u64 = 8;

/// With less than this part of the reserve free, what frees space is refused as well: it writes
/// metadata first. By then all buffers that were full of new data have been written out, and what is
/// left is for aborts, commits, repairs and compactions.
const FREEING_PART: u64 = 4;

/// Record bytes that may be taken between two looks at the disk.
const LOOK_EVERY: u64 = 8 << 20;

/// Watches one disk.
#[derive(Debug, Default)]
pub(super) struct SpaceWatch {
    room: Room,
    taken: u64,
}

impl SpaceWatch {
    /// So many bytes of records were written.
    pub(super) fn took(&mut self, bytes: u64) {
        self.taken += bytes;
    }

    /// Whether it is time for a look before the next one that the clock asks for.
    pub(super) fn is_due(&self) -> bool {
        self.taken >= LOOK_EVERY
    }

    /// What there is room for.
    pub(super) fn room(&self) -> Room {
        self.room
    }

    /// Takes what was seen; returns what there is room for now if that has changed.
    pub(super) fn saw(&mut self, space: Space) -> Option<Room> {
        self.taken = 0;
        let below = |limit: u64, was: bool| {
            space.free < if was { limit + limit / ROOM_AGAIN_PART } else { limit }
        };
        let reserve = space.reserve();
        let room = if below(reserve / FREEING_PART, self.room == Room::Nothing) {
            Room::Nothing
        } else if below(reserve, self.room != Room::All) {
            Room::Freeing
        } else {
            Room::All
        };
        let changed = room != self.room;
        self.room = room;
        changed.then_some(room)
    }
}

/// How full a store's disk is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Fullness {
    /// There is room.
    #[default]
    Ok,
    /// Nothing is moved there any more.
    NearFull,
    /// New data is refused.
    Full,
    /// So is what frees space, but for deletions of volumes and snapshots.
    Exhausted,
}

/// The space of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreSpace {
    /// Bytes of the disk.
    pub total: u64,
    /// Free bytes of it.
    pub free: u64,
    /// Bytes that the store takes up.
    pub used: u64,
    /// Bytes that it can take before its disk is nearly full.
    pub room: u64,
    /// How full the disk is.
    pub fullness: Fullness,
}

impl StoreSpace {
    pub(super) fn of(space: Space, now: Room) -> Self {
        let Space { total, free, used, .. } = space;
        let room = space.room();
        let fullness = match (now, room) {
            (Room::Nothing, _) => Fullness::Exhausted,
            (Room::Freeing, _) => Fullness::Full,
            (Room::All, 0) => Fullness::NearFull,
            (Room::All, _) => Fullness::Ok,
        };
        Self { total, free, used, room, fullness }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn a_full_disk_has_room_again_only_well_above_the_reserve() {
        let mut watch = SpaceWatch::default();
        let mut see = |free| watch.saw(Space { total: 40 * GIB, free, ..Space::default() });
        assert_eq!(see(2 * GIB), None);
        assert_eq!(see(2 * GIB - 1), Some(Room::Freeing));
        assert_eq!(see(2 * GIB), None);
        assert_eq!(see(2 * GIB + GIB / 4 - 1), None);
        assert_eq!(see(2 * GIB + GIB / 4), Some(Room::All));
        assert_eq!(see(2 * GIB), None);
    }

    #[test]
    fn what_frees_space_is_taken_until_a_quarter_of_the_reserve_is_left() {
        let mut watch = SpaceWatch::default();
        let mut see = |free| watch.saw(Space { total: 40 * GIB, free, ..Space::default() });
        assert_eq!(see(GIB / 2), Some(Room::Freeing));
        assert_eq!(see(GIB / 2 - 1), Some(Room::Nothing));
        assert_eq!(see(GIB / 2 + GIB / 16 - 1), None);
        assert_eq!(see(GIB / 2 + GIB / 16), Some(Room::Freeing));
        assert_eq!(see(0), Some(Room::Nothing));
        assert_eq!(see(3 * GIB), Some(Room::All));
    }

    #[test]
    fn a_disk_is_nearly_full_before_it_is_full() {
        let of =
            |free, room| StoreSpace::of(Space { total: 40 * GIB, free, ..Space::default() }, room);
        let nearly = of(6 * GIB, Room::All);
        assert_eq!((of(7 * GIB, Room::All).room, nearly.room), (GIB, 0));
        assert_eq!(
            (of(7 * GIB, Room::All).fullness, nearly.fullness),
            (Fullness::Ok, Fullness::NearFull)
        );
        assert_eq!(of(GIB, Room::Freeing).fullness, Fullness::Full);
        assert_eq!(of(MIB, Room::Nothing).fullness, Fullness::Exhausted);
        let small = Space { total: 1500 * MIB, buffers: 100 * MIB, ..Space::default() };
        let of = |free| StoreSpace::of(Space { free, ..small }, Room::All).fullness;
        assert_eq!(of(550 * MIB), Fullness::NearFull);
        assert_eq!(of(551 * MIB), Fullness::Ok);
    }

    #[test]
    fn a_look_is_due_after_so_many_bytes() {
        let mut watch = SpaceWatch::default();
        watch.took(LOOK_EVERY - 1);
        assert!(!watch.is_due());
        watch.took(1);
        assert!(watch.is_due());
        watch.saw(Space { total: GIB, free: GIB, ..Space::default() });
        assert!(!watch.is_due());
    }
}
