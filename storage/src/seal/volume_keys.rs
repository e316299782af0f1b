//! The keys of an attached volume, as unwrapped from the metadata.

use crate::geometry::{Geometry, PlaceKey};
use crate::ids::{GroupNo, KeyEpochNo, Slot};
use crate::keys::ShardKey;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The column keys of one key epoch, one for each group and data slot.
pub struct EpochKeys {
    // Boxed, so that growing a vector never leaves copies of keys behind.
    columns: Box<[ShardKey]>,
    /// How many blocks each has sealed here.
    sealed: Box<[AtomicU64]>,
    data: u8,
}

/// All keys of one volume: placement, and the columns of every key epoch still in use.
pub struct VolumeKeys {
    place: Arc<PlaceKey>,
    current: KeyEpochNo,
    epochs: BTreeMap<KeyEpochNo, Arc<EpochKeys>>,
}

/// Why keys do not make up a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// Not one key for each column.
    #[error("a volume of this geometry has {need} shard keys in a key epoch, not {have}")]
    Count {
        /// How many there must be.
        need: usize,
        /// How many were given.
        have: usize,
    },
    /// The current key epoch has no keys.
    #[error("no keys of the current key epoch {0}")]
    NoCurrent(KeyEpochNo),
}

impl EpochKeys {
    /// Takes the keys of a key epoch in the order of group, then data slot.
    ///
    /// # Errors
    /// Unless there are `groups * n` keys.
    pub fn new(geometry: &Geometry, columns: Vec<ShardKey>) -> Result<Self, KeysError> {
        let (need, have) = (geometry.columns(), columns.len());
        if need != have {
            return Err(KeysError::Count { need, have });
        }
        Ok(Self::of(columns, geometry))
    }

    fn of(columns: Vec<ShardKey>, geometry: &Geometry) -> Self {
        let sealed = columns.iter().map(|_| AtomicU64::new(0)).collect();
        Self { columns: columns.into(), sealed, data: geometry.data }
    }

    /// Makes the keys of a key epoch, asking for each column's in turn.
    ///
    /// # Errors
    /// The first that `key` gives.
    pub fn try_from_fn<E>(
        geometry: &Geometry,
        mut key: impl FnMut(GroupNo, Slot) -> Result<ShardKey, E>,
    ) -> Result<Self, E> {
        let mut columns = Vec::with_capacity(geometry.columns());
        for group in (0..geometry.groups).map(GroupNo) {
            for slot in (0..geometry.data).map(Slot) {
                columns.push(key(group, slot)?);
            }
        }
        Ok(Self::of(columns, geometry))
    }

    /// The key of a column; `None` when there is no such group or data slot.
    pub fn column(&self, group: GroupNo, slot: Slot) -> Option<&ShardKey> {
        self.columns.get(self.at(group, slot)?)
    }

    fn at(&self, group: GroupNo, slot: Slot) -> Option<usize> {
        let exists = slot.0 < self.data;
        exists.then(|| usize::from(group.0) * usize::from(self.data) + slot.index())
    }
}

impl VolumeKeys {
    /// Puts a volume's keys together; new blocks are sealed under `current`.
    ///
    /// # Errors
    /// When `current` is not among the epochs.
    pub fn new(
        place: PlaceKey,
        current: KeyEpochNo,
        epochs: impl IntoIterator<Item = (KeyEpochNo, EpochKeys)>,
    ) -> Result<Self, KeysError> {
        let epochs: BTreeMap<_, _> =
            epochs.into_iter().map(|(no, keys)| (no, Arc::new(keys))).collect();
        if !epochs.contains_key(&current) {
            return Err(KeysError::NoCurrent(current));
        }
        Ok(Self { place: Arc::new(place), current, epochs })
    }

    /// The placement key.
    pub fn place(&self) -> &PlaceKey {
        &self.place
    }

    /// The key epoch that new blocks are sealed under.
    pub const fn current(&self) -> KeyEpochNo {
        self.current
    }

    /// The same without key epochs before one. Keys are wiped once nobody has them any more.
    #[must_use]
    pub fn without_older(&self, than: KeyEpochNo) -> Self {
        let epochs = self.epochs.range(than.min(self.current)..);
        Self {
            place: Arc::clone(&self.place),
            current: self.current,
            epochs: epochs.map(|(no, keys)| (*no, Arc::clone(keys))).collect(),
        }
    }

    /// Whether the keys of an epoch are here.
    pub fn has_epoch(&self, epoch: KeyEpochNo) -> bool {
        self.epochs.contains_key(&epoch)
    }

    /// The epochs whose keys are here, oldest first.
    pub fn epochs(&self) -> impl Iterator<Item = KeyEpochNo> {
        self.epochs.keys().copied()
    }

    /// The key of a column in an epoch; `None` when one of them is not there.
    pub fn column(&self, epoch: KeyEpochNo, group: GroupNo, slot: Slot) -> Option<&ShardKey> {
        self.epochs.get(&epoch)?.column(group, slot)
    }

    /// Counts a block that is sealed under the current key of a column.
    pub(super) fn count(&self, group: GroupNo, slot: Slot) {
        let current = self.epochs.get(&self.current);
        let count = current.and_then(|keys| keys.sealed.get(keys.at(group, slot)?));
        if let Some(count) = count {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many blocks were sealed here under the current key of the column that sealed most.
    pub fn most_sealed(&self) -> u64 {
        let counts = self.epochs.get(&self.current).into_iter().flat_map(|keys| keys.sealed.iter());
        counts.map(|count| count.load(Ordering::Relaxed)).max().unwrap_or(0)
    }
}

impl fmt::Debug for EpochKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EpochKeys({} columns, redacted)", self.columns.len())
    }
}

impl fmt::Debug for VolumeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeKeys")
            .field("current", &self.current)
            .field("epochs", &self.epochs)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry::new(2, 1, 1 << 20, 3).expect("valid")
    }

    fn numbered() -> EpochKeys {
        let keys = (0..6).map(|i| ShardKey::new([i; 32])).collect();
        EpochKeys::new(&geometry(), keys).expect("six columns")
    }

    #[test]
    fn columns_are_found_by_group_and_slot() {
        let keys = numbered();
        let column = |group, slot| keys.column(GroupNo(group), Slot(slot)).map(|k| k.expose()[0]);
        assert_eq!(column(0, 0), Some(0));
        assert_eq!(column(0, 1), Some(1));
        assert_eq!(column(2, 1), Some(5));
        assert_eq!(column(0, 2), None, "a parity slot has no key");
        assert_eq!(column(3, 0), None);
        let same = EpochKeys::try_from_fn(&geometry(), |group, slot| {
            Ok::<_, KeysError>(ShardKey::new([group.0 as u8 * 2 + slot.0; 32]))
        });
        let same = same.expect("never fails");
        for (group, slot) in [(0, 0), (1, 0), (2, 1)] {
            let key = same.column(GroupNo(group), Slot(slot)).map(|k| k.expose()[0]);
            assert_eq!(key, column(group, slot));
        }
    }

    #[test]
    fn incomplete_keys_are_refused() {
        let few = EpochKeys::new(&geometry(), vec![ShardKey::new([0; 32])]);
        assert_eq!(few.err(), Some(KeysError::Count { need: 6, have: 1 }));
        let epochs = [(KeyEpochNo(1), numbered())];
        let keys = VolumeKeys::new(PlaceKey::new([0; 32]), KeyEpochNo(2), epochs);
        assert_eq!(keys.err(), Some(KeysError::NoCurrent(KeyEpochNo(2))));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let epochs = [(KeyEpochNo(1), numbered())];
        let keys = VolumeKeys::new(PlaceKey::new([0; 32]), KeyEpochNo(1), epochs).expect("whole");
        let text = format!("{keys:?}");
        let expected = "VolumeKeys { current: KeyEpochNo(1), \
            epochs: {KeyEpochNo(1): EpochKeys(6 columns, redacted)}, .. }";
        assert_eq!(text, expected);
    }
}
