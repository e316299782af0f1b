//! The shape of a volume and the place of every block in it.
//!
//! [`Geometry`] holds the numbers chosen when a volume is made and never changed; [`Layout`] adds
//! the volume's secret [`PlaceKey`] and answers where a block is, both ways, in constant time.

use crate::ids::SlotSet;
use crate::record::BLOCK_LEN;
use serde::{Deserialize, Serialize};
use std::fmt;

mod layout;
mod prf;

pub use layout::{BlockPlace, Layout};

use crate::secret::secret_bytes;

secret_bytes!(
    /// The key of a volume's placement: who has it can tell a block's address from its place.
    /// Drawn from the master key once and never rotated, because rotation would move every block.
    PlaceKey
);

/// Most slots of a group, `n + k`; [`SlotSet`] has one bit for each.
pub const SLOTS_MAX: u8 = 32;
/// Smallest shard size in bytes.
pub const SHARD_SIZE_MIN: u32 = 64 << 10;
/// Largest shard size in bytes.
pub const SHARD_SIZE_MAX: u32 = 64 << 20;
/// Shard size in bytes when nothing else is asked for.
pub const SHARD_SIZE_DEFAULT: u32 = 1 << 20;
/// Groups of a volume when nothing else is asked for: enough that every node of a small cluster
/// holds a fair part and a lost one is rebuilt by all others, few enough to stay in the map.
pub const GROUPS_DEFAULT: u16 = 32;

/// The numbers that fix how a volume is cut. Made by [`Geometry::new`], which checks them;
/// deserializing checks them too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
#[non_exhaustive]
pub struct Geometry {
    /// Data shards of a stripe, `n`.
    pub data: u8,
    /// Parity shards of a stripe, `k`: how many lost slots a row survives.
    pub parity: u8,
    /// Mean size of a shard in bytes; a stripe's own length varies by its boundaries.
    pub shard_size: u32,
    /// Placement groups of the volume.
    pub groups: u16,
}

#[derive(Deserialize)]
struct Unchecked {
    data: u8,
    parity: u8,
    shard_size: u32,
    groups: u16,
}

impl TryFrom<Unchecked> for Geometry {
    type Error = GeometryError;

    fn try_from(raw: Unchecked) -> Result<Self, GeometryError> {
        Self::new(raw.data, raw.parity, raw.shard_size, raw.groups)
    }
}

/// Why a geometry was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// `n` is zero.
    #[error("a volume needs at least 1 data shard")]
    NoData,
    /// `k` is zero.
    #[error("a volume needs at least 1 parity shard")]
    NoParity,
    /// `n + k` is too large.
    #[error("{data}+{parity} shards are more than {SLOTS_MAX}")]
    TooManySlots {
        /// The `n` asked for.
        data: u8,
        /// The `k` asked for.
        parity: u8,
    },
    /// The shard size is out of range or no power of two.
    #[error("shard size {0} is not a power of two from 64 KiB to 64 MiB")]
    ShardSize(u32),
    /// No groups.
    #[error("a volume needs at least 1 placement group")]
    NoGroups,
    /// No default for so few nodes.
    #[error("a cluster of {0} nodes is too small: at least 3 are needed")]
    TooFewNodes(usize),
}

impl Geometry {
    /// Checks and makes a geometry of `data` + `parity` shards of `shard_size` bytes.
    ///
    /// # Errors
    /// Unless `data >= 1`, `parity >= 1`, `data + parity <= 32`, `shard_size` is a power of two
    /// from 64 KiB to 64 MiB, and `groups >= 1`.
    pub fn new(data: u8, parity: u8, shard_size: u32, groups: u16) -> Result<Self, GeometryError> {
        if data == 0 {
            return Err(GeometryError::NoData);
        }
        if parity == 0 {
            return Err(GeometryError::NoParity);
        }
        if u16::from(data) + u16::from(parity) > u16::from(SLOTS_MAX) {
            return Err(GeometryError::TooManySlots { data, parity });
        }
        if !shard_size.is_power_of_two() || !(SHARD_SIZE_MIN..=SHARD_SIZE_MAX).contains(&shard_size)
        {
            return Err(GeometryError::ShardSize(shard_size));
        }
        if groups == 0 {
            return Err(GeometryError::NoGroups);
        }
        Ok(Self { data, parity, shard_size, groups })
    }

    /// The default for a cluster of `count` nodes: 2+1 on 3, 2+2 on 4, 3+2 on 5, 4+2 on more.
    ///
    /// # Errors
    /// With fewer than 3 nodes.
    pub fn default_for_nodes(count: usize) -> Result<Self, GeometryError> {
        let (data, parity) = match count {
            0..=2 => return Err(GeometryError::TooFewNodes(count)),
            3 => (2, 1),
            4 => (2, 2),
            5 => (3, 2),
            _ => (4, 2),
        };
        Self::new(data, parity, SHARD_SIZE_DEFAULT, GROUPS_DEFAULT)
    }

    /// All slots of a group.
    pub const fn slots(&self) -> SlotSet {
        SlotSet::first(self.data + self.parity)
    }

    /// The slots `0..n`.
    pub const fn data_slots(&self) -> SlotSet {
        SlotSet::first(self.data)
    }

    /// The slots `n..n+k`.
    pub const fn parity_slots(&self) -> SlotSet {
        SlotSet::range(self.data, self.data + self.parity)
    }

    /// Mean number of rows in a stripe, `R`.
    pub const fn rows_per_stripe(&self) -> u32 {
        self.shard_size / BLOCK_LEN as u32
    }

    /// How many rows hold a volume of `size` bytes; the last block and row may be partly used.
    pub const fn rows(&self, size: u64) -> u64 {
        size.div_ceil(BLOCK_LEN as u64).div_ceil(self.data as u64)
    }

    /// How many keyed columns the volume has: one for each group and data slot.
    pub const fn columns(&self) -> usize {
        self.groups as usize * self.data as usize
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_enforced_one_by_one() {
        let make = Geometry::new;
        assert!(make(1, 1, SHARD_SIZE_MIN, 1).is_ok());
        assert!(make(31, 1, SHARD_SIZE_MAX, u16::MAX).is_ok());
        assert_eq!(make(0, 1, 1 << 20, 1), Err(GeometryError::NoData));
        assert_eq!(make(1, 0, 1 << 20, 1), Err(GeometryError::NoParity));
        let many = GeometryError::TooManySlots { data: 31, parity: 2 };
        assert_eq!(make(31, 2, 1 << 20, 1), Err(many));
        let huge = GeometryError::TooManySlots { data: 255, parity: 255 };
        assert_eq!(make(255, 255, 1 << 20, 1), Err(huge));
        for size in [0, 1 << 15, 1 << 27, (1 << 20) + 4096, u32::MAX] {
            assert_eq!(make(2, 1, size, 1), Err(GeometryError::ShardSize(size)));
        }
        assert_eq!(make(2, 1, 1 << 20, 0), Err(GeometryError::NoGroups));
    }

    #[test]
    fn errors_are_one_plain_line() {
        for error in [
            GeometryError::NoData,
            GeometryError::NoParity,
            GeometryError::TooManySlots { data: 30, parity: 3 },
            GeometryError::ShardSize(5),
            GeometryError::NoGroups,
            GeometryError::TooFewNodes(2),
        ] {
            let text = error.to_string();
            assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
        }
    }

    #[test]
    fn defaults_follow_the_node_count() {
        let shape = |nodes| Geometry::default_for_nodes(nodes).map(|g| (g.data, g.parity));
        assert_eq!(shape(2), Err(GeometryError::TooFewNodes(2)));
        assert_eq!(shape(3), Ok((2, 1)));
        assert_eq!(shape(4), Ok((2, 2)));
        assert_eq!(shape(5), Ok((3, 2)));
        assert_eq!(shape(6), Ok((4, 2)));
        assert_eq!(shape(60), Ok((4, 2)));
    }

    #[test]
    fn slot_sets_rows_and_columns() {
        let g = Geometry::new(4, 2, 1 << 20, 8).expect("valid");
        assert_eq!((g.slots().len(), g.data_slots().len(), g.parity_slots().len()), (6, 4, 2));
        assert!(g.data_slots().and(g.parity_slots()).is_empty());
        assert_eq!(g.slots(), g.data_slots().or(g.parity_slots()));
        assert_eq!(g.rows_per_stripe(), 256);
        assert_eq!(g.columns(), 32);
        let rows: Vec<u64> =
            [0, 1, 16 << 10, (16 << 10) + 1, u64::MAX].map(|size| g.rows(size)).to_vec();
        assert_eq!(rows, [0, 1, 1, 2, 1 << 50]);
        let full = Geometry::new(31, 1, 1 << 20, 1).expect("valid");
        assert_eq!((full.slots().len(), full.parity_slots().len()), (32, 1));
    }

    #[test]
    fn deserializing_checks_too() {
        let good = Geometry::new(4, 2, 1 << 20, 8).expect("valid");
        let bytes = postcard::to_stdvec(&good).expect("serializes");
        assert_eq!(postcard::from_bytes::<Geometry>(&bytes), Ok(good));
        let bad = postcard::to_stdvec(&(0u8, 2u8, 1u32 << 20, 8u16)).expect("serializes");
        assert!(postcard::from_bytes::<Geometry>(&bad).is_err());
    }

    #[test]
    fn a_place_key_is_silent() {
        assert_eq!(format!("{:?}", PlaceKey::new([7; 32])), "PlaceKey(redacted)");
    }
}
