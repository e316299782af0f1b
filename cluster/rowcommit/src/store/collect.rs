//! Letting go of versions that only deleted snapshots needed.
//!
//! A pass over all row slots, a few at a time, begins when the map tells of more deleted
//! snapshots than the store has made a pass for. What it deletes nobody can read any more: the
//! deletion of a snapshot raises the epoch, and requests of an older one are not served.

use super::{StoreCore, VolumeSide};
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{GroupNo, RowSlot, VolumeNo};
use smalti_storage::store::StoreError;

/// Row slots that are looked at in one step.
const STEP: usize = 64;

/// A pass.
#[derive(Clone, Debug, Hash)]
pub(super) struct Collecting {
    /// The deleted snapshots it is made for.
    deleted: u32,
    /// Its index, which goes one past the last group.
    group: usize,
    after: Option<RowSlot>,
}

impl StoreCore {
    /// Whether something is to be let go of; [`Self::collect`] does a part of it.
    pub fn is_collecting(&self) -> bool {
        let due = |side: &VolumeSide| side.state.collected != side.deleted;
        self.registered && self.volumes.values().any(due)
    }

    /// Moves the passes that are to be made on by a step: changes for the next batch. To be called
    /// with every batch, and when there is nothing else to do.
    ///
    /// # Errors
    /// When the disk can not be read.
    pub fn collect(&mut self) -> Result<(), StoreError> {
        for at in std::mem::take(&mut self.recheck) {
            self.let_go(at)?;
        }
        // Readers that the fence still lets through may be after what is deleted.
        if !self.is_collecting() || self.fence_due {
            return Ok(());
        }
        let due = self.volumes.iter().filter(|(_, side)| side.state.collected != side.deleted);
        let due: Vec<VolumeNo> = due.map(|(no, _)| *no).collect();
        due.into_iter().try_for_each(|volume| self.collect_some(volume))
    }

    fn collect_some(&mut self, volume: VolumeNo) -> Result<(), StoreError> {
        let Some(side) = self.volumes.get_mut(&volume) else { return Ok(()) };
        let anew = Collecting { deleted: side.deleted, group: 0, after: None };
        let made_for = |pass: &Collecting| pass.deleted == side.deleted;
        let mut pass = side.collecting.take().filter(made_for).unwrap_or(anew);
        let group = u16::try_from(pass.group).ok().map(GroupNo);
        let group = group.filter(|_| pass.group < side.told.len());
        let Some(group) = group.filter(|_| !lives(Mutant::KeepDeleted)) else {
            side.state.collected = pass.deleted;
            side.dirty = true;
            return Ok(());
        };
        let (page, corrupt) = match self.store.scan(volume, group, pass.after, STEP) {
            Ok(page) => (page, None),
            Err(StoreError::Corrupt { at, .. }) => (Vec::new(), Some(at)),
            Err(error) => return Err(error),
        };
        let last = corrupt.or_else(|| page.last().map(|(at, _)| *at));
        for (at, versions) in page {
            if versions.len() > 1 {
                self.let_go(at)?;
            }
        }
        match last {
            Some(at) => pass.after = Some(at),
            None => pass = Collecting { group: pass.group + 1, after: None, ..pass },
        }
        if let Some(side) = self.volumes.get_mut(&volume) {
            side.collecting = Some(pass);
        }
        Ok(())
    }

    /// One that is undecided has its turn when it is decided.
    fn let_go(&mut self, at: RowSlot) -> Result<(), StoreError> {
        let undecided = self.volumes.get(&at.volume).is_some_and(|v| v.prepared.contains_key(&at));
        let head = self.rows.at(at)?.head_ver();
        if undecided { Ok(()) } else { self.delete_older(at, head) }
    }
}
