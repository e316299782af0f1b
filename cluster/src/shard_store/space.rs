//! When a disk is too full for new data.

use serde::{Deserialize, Serialize};
use smalti_storage::store::Space;

/// New data is refused when less than this part of the disk is free: aborts, commits, repairs and
/// compactions still need room.
const RESERVED_PART: u64 = 20;

/// No more than this is kept back for them on a large disk.
const RESERVED_MAX: u64 = 4 << 30;

/// On a small disk it is so many times a store's buffers: what three stores of a local cluster
/// that share it may all have to write at once, and as much again as one of them for compactions.
const RESERVED_BUFFERS: u64 = 4;

/// A full disk has room again once this much more than the reserve is free, as a part of it:
/// otherwise every buffer that is written out would change it back and forth.
const ROOM_AGAIN_PART: u64 = 8;

/// With less than so many parts of that kind free beside the reserve, a disk is nearly full:
/// nothing moves there. They count no buffers, or a small disk would be nearly full when empty.
const NEARLY_FULL_PARTS: u64 = 2;

/// Record bytes that may be taken between two looks at the disk.
const LOOK_EVERY: u64 = 8 << 20;

/// Watches one disk.
#[derive(Debug, Default)]
pub(super) struct SpaceWatch {
    low: bool,
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

    /// Whether new data is refused.
    pub(super) fn is_low(&self) -> bool {
        self.low
    }

    /// Takes what was seen; returns whether new data is refused now if that has changed.
    pub(super) fn saw(&mut self, space: Space) -> Option<bool> {
        self.taken = 0;
        let reserve = reserve(space);
        let limit = if self.low { reserve + reserve / ROOM_AGAIN_PART } else { reserve };
        let low = space.free < limit;
        let changed = low != self.low;
        self.low = low;
        changed.then_some(low)
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
    pub(super) fn of(space: Space, low: bool) -> Self {
        let Space { total, free, used, .. } = space;
        let room = free.saturating_sub(reserve(space) + NEARLY_FULL_PARTS * reserved_part(space));
        let fullness = match (low, room) {
            (true, _) => Fullness::Full,
            (false, 0) => Fullness::NearFull,
            (false, _) => Fullness::Ok,
        };
        Self { total, free, used, room, fullness }
    }
}

fn reserve(space: Space) -> u64 {
    reserved_part(space).max(space.buffers * RESERVED_BUFFERS)
}

fn reserved_part(space: Space) -> u64 {
    (space.total / RESERVED_PART).min(RESERVED_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn the_reserve_is_a_part_of_the_disk_between_the_buffers_and_a_limit() {
        let of = |total| reserve(Space { total, buffers: 100 * MIB, ..Space::default() });
        assert_eq!(of(GIB), 400 * MIB);
        assert_eq!(of(40 * GIB), 2 * GIB);
        assert_eq!(of(1000 * GIB), 4 * GIB);
    }

    #[test]
    fn a_full_disk_has_room_again_only_well_above_the_reserve() {
        let mut watch = SpaceWatch::default();
        let mut see = |free| watch.saw(Space { total: 40 * GIB, free, ..Space::default() });
        assert_eq!(see(2 * GIB), None);
        assert_eq!(see(2 * GIB - 1), Some(true));
        assert_eq!(see(2 * GIB), None);
        assert_eq!(see(2 * GIB + GIB / 4 - 1), None);
        assert_eq!(see(2 * GIB + GIB / 4), Some(false));
        assert_eq!(see(2 * GIB), None);
    }

    #[test]
    fn a_disk_is_nearly_full_before_it_is_full() {
        let of =
            |free, low| StoreSpace::of(Space { total: 40 * GIB, free, ..Space::default() }, low);
        assert_eq!((of(7 * GIB, false).room, of(7 * GIB, false).fullness), (GIB, Fullness::Ok));
        assert_eq!((of(6 * GIB, false).room, of(6 * GIB, false).fullness), (0, Fullness::NearFull));
        assert_eq!(of(GIB, true).fullness, Fullness::Full);
        let small = Space { total: 1500 * MIB, buffers: 100 * MIB, ..Space::default() };
        let of = |free| StoreSpace::of(Space { free, ..small }, false).fullness;
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
