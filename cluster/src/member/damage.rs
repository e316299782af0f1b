//! A store whose tables can not be read any more while its disk works.
//!
//! Nobody can tell what such a store lacks, so it is made anew as one that was replaced is; but only once
//! the cluster has agreed, by Raft, to go on without it. Of two that are damaged at once and can not both
//! be done without, one stays. Its folder is kept: for whoever needs what can still be read in it.

use super::Member;
use smalti_map::{ClusterMap, Group};
use smalti_storage::ids::StoreId;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the cluster has to do without the store. Its coordinators notice within a second that it does
/// not answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The folder of a node's store.
pub(super) fn store_of(data_dir: &Path) -> PathBuf {
    data_dir.join("store")
}

/// Where that of a damaged one is kept.
fn aside_of(data_dir: &Path) -> PathBuf {
    data_dir.join("store.damaged")
}

/// In how many groups a store is in sync, so that what it holds is counted on.
fn counted_on(map: &ClusterMap, store: StoreId) -> usize {
    let groups = map.volumes.values().flat_map(|volume| &volume.groups);
    groups.filter(|group: &&Group| group.insync_stores().any(|other| other == store)).count()
}

impl Member {
    /// Puts the folder of this node's damaged store aside, once no group counts on it, and says where.
    /// The process has to start anew then.
    ///
    /// # Errors
    /// The store is needed, an earlier one is still there, or the folder can not be moved.
    pub async fn set_store_aside(&self) -> Result<PathBuf, String> {
        let aside = aside_of(&self.inner.data_dir);
        let is_free = |there: io::Result<bool>| match there {
            Ok(false) => Ok(()),
            Ok(true) => Err(format!(
                "{} is there from an earlier time: delete it once the health is ok, then start again",
                aside.display()
            )),
            Err(error) => Err(format!("{}: {error}", aside.display())),
        };
        is_free(aside.try_exists())?;
        let mut map = self.raft().watch();
        let store = self.inner.stores.first().map(crate::shard_store::StoreHandle::id);
        let needed = |map: &ClusterMap| store.map_or(0, |store| counted_on(map, store));
        let done_without = map.wait_for(|map| needed(map) == 0);
        let waited = tokio::time::timeout(PATIENCE, done_without).await;
        if !waited.is_ok_and(|known| known.is_ok()) {
            let groups = needed(&self.map());
            return Err(format!(
                "{groups} groups can not do without it: see `smalti why`, and start this node again when \
                 the others are up and in sync"
            ));
        }
        let from = store_of(&self.inner.data_dir);
        std::fs::rename(&from, &aside)
            .and_then(|()| File::open(&self.inner.data_dir)?.sync_all())
            .map_err(|error| format!("{} to {}: {error}", from.display(), aside.display()))?;
        Ok(aside)
    }
}
