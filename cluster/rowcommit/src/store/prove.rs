//! What a store can prove to hold: of each version its metadata, and the fingerprint of its record where
//! that verifies. So a whole group is compared without its records travelling.

use super::read;
use crate::msg::{Answer, Proven};
use smalti_storage::code::Fingerprint;
use smalti_storage::ids::{GroupNo, RowSlot, VolumeNo};
use smalti_storage::store::{ShardStore, StoreError, VersionMeta};

/// A page of a group, as [`read::scan`] makes them.
pub(super) fn digest(
    store: &dyn ShardStore,
    volume: VolumeNo,
    group: GroupNo,
    after: Option<RowSlot>,
    limit: usize,
) -> Result<Answer, StoreError> {
    let (scanned, done) = read::scan(store, volume, group, after, limit)?;
    let held = scanned.iter().filter_map(|(row, slot, versions)| {
        let at = RowSlot { volume, row: *row, slot: *slot };
        Some(versions.as_ref()?.iter().map(move |meta| (at, meta)))
    });
    let mut proofs = prove_all(store, &held.flatten().collect::<Vec<_>>())?.into_iter();
    let entries = scanned.iter().map(|(row, slot, versions)| {
        let versions = versions.as_ref();
        (*row, *slot, versions.map(|held| proofs.by_ref().take(held.len()).collect()))
    });
    Ok(Answer::Digested { entries: entries.collect(), done })
}

/// All versions of one row slot.
pub(super) fn prove(store: &dyn ShardStore, at: RowSlot) -> Result<Answer, StoreError> {
    let versions = match store.versions(at) {
        Ok(versions) => versions,
        Err(StoreError::Corrupt { .. }) => return Ok(Answer::Proven(None)),
        Err(error) => return Err(error),
    };
    let held: Vec<_> = versions.iter().map(|meta| (at, meta)).collect();
    Ok(Answer::Proven(Some(prove_all(store, &held)?)))
}

/// With as few looks at the disk as there can be.
fn prove_all(
    store: &dyn ShardStore,
    held: &[(RowSlot, &VersionMeta)],
) -> Result<Vec<Proven>, StoreError> {
    let present = held.iter().filter(|(_, meta)| meta.present);
    let wanted: Vec<_> = present.map(|(at, meta)| (*at, meta.ver)).collect();
    let mut records = store.records(&wanted).into_iter();
    let mut proofs = Vec::with_capacity(held.len());
    for (at, meta) in held {
        let found = if meta.present { records.next() } else { None };
        let record = match found.transpose() {
            Ok(found) => found.flatten().unwrap_or_default(),
            // As if it had no bytes, which its metadata contradict.
            Err(StoreError::Corrupt { .. }) => Default::default(),
            Err(error) => return Err(error),
        };
        let good = meta.verifies(*at, &record);
        proofs.push(((*meta).clone(), good.then(|| Fingerprint::of(&record).ok()).flatten()));
    }
    Ok(proofs)
}
