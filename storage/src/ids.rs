//! Names of things: small typed numbers that travel on the wire and stand in keys on disk.
//!
//! Every identifier is a newtype, so a node number can not be passed where a store is meant. All
//! of them are `Copy`, totally ordered and print shortly.

use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A node of the cluster; also its number in the Raft group.
    NodeId(u64), "n"
);
number!(
    /// One start of a process or store. Grows with every start, so that a restarted party is
    /// never taken for the one it replaces.
    Incarnation(u64), "i"
);
number!(
    /// The short number of a volume inside one cluster. Never reused, not even after deletion.
    VolumeNo(u32), "v"
);
number!(
    /// A placement group of one volume.
    GroupNo(u16), "g"
);
number!(
    /// One configuration of a volume: coordinator and in-sync sets. Fences older ones.
    Epoch(u32), "e"
);
number!(
    /// A generation of shard keys of one volume.
    KeyEpochNo(u32), "k"
);
number!(
    /// A place `0..n+k` in a group: data slots first, parity slots after them.
    Slot(u8), "s"
);

identity!(
    /// A cluster, made once by `init`.
    ClusterId
);
identity!(
    /// One run of a store, drawn when it starts. A count would not do: a disk that is put back as it
    /// was counts the same starts again.
    RunId
);
identity!(
    /// The store of a member of the metadata group: its votes and its log.
    RaftStoreId
);
identity!(
    /// A token with which a node can join.
    TokenId
);
identity!(
    /// A volume.
    VolumeId
);
identity!(
    /// One shard store: one directory on one node.
    StoreId
);

impl Slot {
    /// The slot as an index into per-slot tables.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The version of a row or block: unique, because only the coordinator of an epoch issues it.
///
/// `Ver::NONE` (epoch 0) stands for "never written" and is smaller than every issued version.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Ver {
    /// The epoch whose coordinator issued it.
    pub epoch: Epoch,
    /// Counts from 1 within the epoch.
    pub seq: u64,
}

impl Ver {
    /// Never written.
    pub const NONE: Self = Self { epoch: Epoch(0), seq: 0 };

    /// Whether this is [`Ver::NONE`].
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

impl fmt::Display for Ver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch.0, self.seq)
    }
}

/// The identity of one client write to one block: which attach of the gateway sent it, and its
/// number there. Per block it only grows, which is how a late duplicate is recognised.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Wid {
    /// The gateway's generation: the epoch in which its node was elected coordinator.
    pub generation: u32,
    /// Counts from 1 within the generation; below 2^48, because the record has six bytes for it.
    pub seq: u64,
}

/// Where a row is kept: its group, its stripe and its place in the stripe. The same on every
/// store; says nothing about which blocks of the volume the row holds.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct RowAddr {
    /// The placement group.
    pub group: GroupNo,
    /// The stripe's number within the volume.
    pub stripe: u64,
    /// The row's number within the stripe.
    pub index: u32,
}

impl fmt::Display for RowAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.group, self.stripe, self.index)
    }
}

/// One slot of one row of one volume: what a single store keeps versions of.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct RowSlot {
    /// The volume.
    pub volume: VolumeNo,
    /// The row.
    pub row: RowAddr,
    /// The slot.
    pub slot: Slot,
}

impl fmt::Display for RowSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.volume, self.row, self.slot)
    }
}

/// A set of slots of one group. At most 32 slots (n + k <= 32).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct SlotSet(pub u32);

impl SlotSet {
    /// No slot.
    pub const EMPTY: Self = Self(0);

    /// The slots `0..count`.
    pub const fn first(count: u8) -> Self {
        Self(if count >= 32 { u32::MAX } else { (1u32 << count) - 1 })
    }

    /// The slots `from..to`.
    pub const fn range(from: u8, to: u8) -> Self {
        Self(Self::first(to).0 & !Self::first(from).0)
    }

    /// Whether `slot` is a member.
    pub const fn contains(self, slot: Slot) -> bool {
        slot.0 < 32 && self.0 & (1 << slot.0) != 0
    }

    /// This set with `slot`.
    #[must_use]
    pub const fn with(self, slot: Slot) -> Self {
        Self(self.0 | (1 << slot.0))
    }

    /// This set without `slot`.
    #[must_use]
    pub const fn without(self, slot: Slot) -> Self {
        Self(self.0 & !(1 << slot.0))
    }

    /// Members of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Members of either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Members of this set that are not in `other`.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether every member is also in `other`.
    pub const fn is_subset(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// How many members.
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether there is no member.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members, ascending.
    pub fn iter(self) -> impl Iterator<Item = Slot> {
        (0..32u8).map(Slot).filter(move |slot| self.contains(*slot))
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        slots.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, slot) in self.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { "," }, slot.0)?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_sets_behave_like_sets() {
        let all = SlotSet::first(3);
        assert_eq!(all.len(), 3);
        assert_eq!(SlotSet::range(2, 3).iter().collect::<Vec<_>>(), [Slot(2)]);
        assert_eq!(all.without(Slot(1)), [Slot(0), Slot(2)].into_iter().collect());
        assert!(all.without(Slot(1)).is_subset(all));
        assert_eq!(SlotSet::first(32).len(), 32);
        assert_eq!(all.to_string(), "{0,1,2}");
    }

    #[test]
    fn versions_order_by_epoch_then_sequence() {
        let ver = |epoch, seq| Ver { epoch: Epoch(epoch), seq };
        assert!(ver(1, 9) < ver(2, 1));
        assert!(Ver::NONE < ver(1, 1));
    }
}
