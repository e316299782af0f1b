//! The space on a store's disk, and how much of it is kept back.

use serde::{Deserialize, Serialize};

/// New data is refused when less than this part of the disk is free: aborts, commits, repairs and
/// compactions still need room.
const RESERVED_PART: u64 = 20;

/// No more than this is kept back for them on a large disk.
const RESERVED_MAX: u64 = 4 << 30;

/// On a small disk it is so many times a store's buffers: what three stores of a local cluster
/// that share it may all have to write at once, and as much again as one of them for compactions.
const RESERVED_BUFFERS: u64 = 4;

/// With less than so many parts of that kind free beside the reserve, a disk is nearly full:
/// nothing moves there. They count no buffers, or a small disk would be nearly full when empty.
const NEARLY_FULL_PARTS: u64 = 2;

/// Space on the device below the store, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Size of the file system.
    pub total: u64,
    /// Free for us.
    pub free: u64,
    /// What the store itself takes up, about.
    pub used: u64,
    /// What the store may hold in memory of what it has acknowledged, at most: it is written once
    /// more, from a log into its place, and needs room there.
    pub buffers: u64,
}

impl Space {
    /// With less than this free the disk is full.
    pub fn reserve(&self) -> u64 {
        self.reserved_part().max(self.buffers * RESERVED_BUFFERS)
    }

    /// What can be taken before the disk is nearly full; 0 when it is.
    pub fn room(&self) -> u64 {
        self.free.saturating_sub(self.reserve() + NEARLY_FULL_PARTS * self.reserved_part())
    }

    fn reserved_part(&self) -> u64 {
        (self.total / RESERVED_PART).min(RESERVED_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn the_reserve_is_a_part_of_the_disk_between_the_buffers_and_a_limit() {
        let of = |total| Space { total, buffers: 100 * MIB, ..Space::default() }.reserve();
        assert_eq!(of(GIB), 400 * MIB);
        assert_eq!(of(40 * GIB), 2 * GIB);
        assert_eq!(of(1000 * GIB), 4 * GIB);
    }

    #[test]
    fn there_is_room_above_the_reserve_and_two_parts_more() {
        let of = |free| Space { total: 40 * GIB, free, ..Space::default() }.room();
        assert_eq!((of(7 * GIB), of(6 * GIB), of(GIB)), (GIB, 0, 0));
    }
}
