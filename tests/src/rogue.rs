//! What somebody makes of a stopped store who knows all formats and has no keys: records put back, or in
//! each other's places, with metadata and hashes that agree. What is left to notice it are the other stores
//! and the seals.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use smalti_rocks::{Expect, RocksOptions, RocksStore};
use smalti_storage::ids::{ClusterId, GroupNo, RowSlot};
use smalti_storage::store::{Batch, Change, ShardStore, SlotVersions, VersionMeta};

/// Row slots looked at in one go.
const PAGE: usize = 512;
/// More groups than any volume of a test has.
const GROUPS: u16 = 1024;

/// A stopped store in somebody else's hands.
#[derive(Debug)]
pub struct Rogue {
    store: RocksStore,
}

#[derive(Debug, Deserialize)]
struct Config {
    cluster: ClusterId,
}

impl Rogue {
    /// Opens the store in `store`, of the node whose folder is `node`.
    ///
    /// # Errors
    /// When it is none, or is in use.
    pub fn open(node: &Path, store: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(node.join("node.toml")).context("read node.toml")?;
        let Config { cluster } = toml::from_str(&text)?;
        let options = RocksOptions { create: false, ..RocksOptions::default() };
        let store = RocksStore::open(store, &options, Expect { cluster })
            .with_context(|| format!("open {}", store.display()))?;
        Ok(Self { store })
    }

    /// All row slots with versions, in order.
    ///
    /// # Errors
    /// When it can not be read.
    pub fn slots(&self) -> Result<Vec<SlotVersions>> {
        let mut found = Vec::new();
        for volume in self.store.volumes()? {
            for group in (0..GROUPS).map(GroupNo) {
                let mut after = None;
                loop {
                    let page = self.store.scan(volume, group, after, PAGE)?;
                    let Some((last, _)) = page.last() else { break };
                    after = Some(*last);
                    found.extend(page);
                }
            }
        }
        Ok(found)
    }

    /// The newest version of a row slot, and its record.
    fn newest(&self, at: RowSlot) -> Result<Option<(VersionMeta, Vec<u8>)>> {
        let Some(meta) = self.store.head(at)? else { return Ok(None) };
        let record = self.store.record(at, meta.ver)?.unwrap_or_default();
        ensure!(meta.verifies(at, &record), "what is at {at} is not what was written");
        Ok(Some((meta, record.to_vec())))
    }

    /// Puts what another store has in the place of whatever is newer here, wherever `chosen` says so; answers in
    /// how many row slots.
    ///
    /// # Errors
    /// When one of them can not be read or written.
    pub fn put_back(&self, old: &Self, mut chosen: impl FnMut(RowSlot) -> bool) -> Result<u64> {
        let mut count = 0;
        for (at, versions) in self.slots()? {
            let Some((meta, record)) = old.newest(at)? else { continue };
            if versions.first().is_none_or(|newest| newest.ver <= meta.ver) || !chosen(at) {
                continue;
            }
            let mut changes: Vec<_> = versions
                .iter()
                .map(|version| Change::DeleteVersion { at, ver: version.ver })
                .collect();
            changes.push(put(at, meta, record));
            self.store.commit(Batch::durable(changes))?;
            count += 1;
        }
        Ok(count)
    }

    /// Exchanges the records of data that follow on one another in the same column, wherever `chosen` says so of the
    /// first of two; answers the row slots that have other records now.
    ///
    /// # Errors
    /// When one of them can not be read or written.
    pub fn swap(
        &self,
        data_slots: u8,
        mut chosen: impl FnMut(RowSlot) -> bool,
    ) -> Result<Vec<RowSlot>> {
        let slots = self.slots()?;
        let data = slots.iter().map(|(at, _)| *at).filter(|at| at.slot.0 < data_slots);
        let data: Vec<RowSlot> = data.collect();
        let mut swapped = Vec::new();
        for pair in data.chunks_exact(2) {
            let [one, other] = [pair[0], pair[1]];
            let same = (one.volume, one.row.group, one.slot)
                == (other.volume, other.row.group, other.slot);
            let (a, b) = (self.newest(one)?, self.newest(other)?);
            let (Some((meta, record)), Some((other_meta, other_record))) = (a, b) else { continue };
            if !same || !meta.present || !other_meta.present || !chosen(one) {
                continue;
            }
            let changes = vec![
                Change::DeleteVersion { at: one, ver: meta.ver },
                Change::DeleteVersion { at: other, ver: other_meta.ver },
                put(one, meta.sealed_for(one, &other_record), other_record),
                put(other, other_meta.sealed_for(other, &record), record),
            ];
            self.store.commit(Batch::durable(changes))?;
            swapped.extend([one, other]);
        }
        Ok(swapped)
    }

    /// Leaves it as a run that ended in order does.
    ///
    /// # Errors
    /// When it can not be closed.
    pub fn close(self) -> Result<()> {
        Ok(self.store.close()?)
    }
}

fn put(at: RowSlot, meta: VersionMeta, record: Vec<u8>) -> Change {
    Change::PutVersion { at, meta, record: record.into(), fresh: false }
}
