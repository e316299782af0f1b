//! Which versions snapshots need.
//!
//! A version is stamped with the newest snapshot at the time it is issued. A snapshot is made while
//! no update of the volume is undecided, and numbered one higher than any before: so what it holds
//! of a slot is the newest version with a stamp *below* its number, and of all slots of a row
//! these are one codeword, named by the vector of its parity slots' ones.

use smalti_map::Volume;
use smalti_storage::store::VersionMeta;
use std::collections::BTreeSet;

/// The numbers of the snapshots that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Snaps(BTreeSet<u32>);

impl Snaps {
    pub(crate) fn of(volume: &Volume) -> Self {
        Self(volume.snapshots.keys().copied().collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }

    /// Whether a snapshot holds a version stamped `older` that one stamped `newer` has replaced.
    pub(crate) fn hold(&self, older: u32, newer: u32) -> bool {
        older < newer && self.0.range(older + 1..=newer).next().is_some()
    }
}

/// What a snapshot holds of a slot with these versions, newest first.
pub(crate) fn held(versions: &[VersionMeta], snap: u32) -> Option<&VersionMeta> {
    versions.iter().find(|meta| is_held(meta, snap))
}

/// Whether a version is from before a snapshot: the newest one that is, it holds.
pub(crate) fn is_held(meta: &VersionMeta, snap: u32) -> bool {
    meta.snap < snap
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped(stamps: &[u32]) -> Vec<VersionMeta> {
        stamps.iter().map(|snap| VersionMeta { snap: *snap, ..VersionMeta::default() }).collect()
    }

    #[test]
    fn a_snapshot_holds_what_was_newest_before_it() {
        let snaps = Snaps([2, 5].into());
        let versions = stamped(&[5, 4, 2, 1, 0]);
        let of = |snap| held(&versions, snap).map(|meta| meta.snap);
        assert_eq!((of(5), of(2), of(1), of(0)), (Some(4), Some(1), Some(0), None));
        let replaced = versions.windows(2).map(|pair| snaps.hold(pair[1].snap, pair[0].snap));
        assert_eq!(replaced.collect::<Vec<_>>(), [true, false, true, false]);
        assert!(!snaps.hold(5, 5) && !snaps.hold(u32::MAX, u32::MAX));
    }
}
