//! A store whose tables can not be read any more while its disk works.
//!
//! Nobody can tell what such a store lacks, so it is made anew as one that was replaced is; but only once
//! the cluster has agreed, by Raft, to go on without it. Of two that are damaged at once and can not both
//! be done without, one stays. Its folder is kept: for whoever needs what can still be read in it.
//!
//! What the leader says counts, for the map here may be an old one. Coordinators take out of sync what does not
//! answer: they know whether another store that a power cut met has to be compared before. A slot that was
//! catching up is given up by the node of the store: each step of a volume's membership is an epoch, so its
//! growth, which may be on its way, is refused then.
//!
//! A store that is damaged when its node starts is not run at all. The node is a member of the Raft group
//! meanwhile, and does not say that it has joined.

use super::Member;
use smalti_map::{ClusterMap, Command, Group, Store, Volume};
use smalti_storage::ids::{NodeId, StoreId};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// How long the cluster has to do without the store, besides the time for which a power cut may keep its
/// coordinators from that. They notice within a second that it does not answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// A look at the map, or a change of it, may take so long; between two looks.
const LOOK: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(200);

/// A disk on which that happens so often is to be looked at by somebody.
const KEPT_MOST: u32 = 5;

/// The folder of a node's store.
pub(super) fn store_of(data_dir: &Path) -> PathBuf {
    data_dir.join("store")
}

/// Where that of a damaged one is kept. Earlier ones stay: nobody can tell here whether one of them has the last
/// of something.
fn aside_of(data_dir: &Path) -> Result<PathBuf, String> {
    let numbered = (2..=KEPT_MOST).map(|number| format!("store.damaged-{number}"));
    for name in std::iter::once("store.damaged".to_owned()).chain(numbered) {
        let path = data_dir.join(name);
        match path.try_exists() {
            Ok(false) => return Ok(path),
            Ok(true) => {}
            Err(error) => return Err(format!("{}: {error}", path.display())),
        }
    }
    Err(format!(
        "{KEPT_MOST} damaged stores are kept in {}: replace the disk, or delete them once the health is ok, then \
         start again",
        data_dir.display()
    ))
}

/// Of how many groups of a volume a store is in sync, and in how many it may be in a moment.
fn counted_on(volume: &Volume, store: StoreId) -> (usize, usize) {
    let insync = |group: &&Group| group.insync_stores().any(|other| other == store);
    let learns = |group: &&Group| group.learners.values().any(|learner| learner.store == store);
    let count = |of: &dyn Fn(&&Group) -> bool| volume.groups.iter().filter(of).count();
    (count(&insync), count(&learns))
}

/// The stores that a node has registered.
fn registered(map: &ClusterMap, node: NodeId) -> Vec<StoreId> {
    let of_node = |(id, store): (&StoreId, &Store)| (store.node == node).then_some(*id);
    map.stores.iter().filter_map(of_node).collect()
}

impl Member {
    /// Puts the folder of this node's damaged store aside, once no group counts on it, and says where.
    /// The process has to start anew then.
    ///
    /// # Errors
    /// The store is needed, too many earlier ones are still there, or the folder can not be moved.
    pub async fn set_store_aside(&self) -> Result<PathBuf, String> {
        let aside = aside_of(&self.inner.data_dir)?;
        self.be_done_without().await?;
        let from = store_of(&self.inner.data_dir);
        std::fs::rename(&from, &aside)
            .and_then(|()| File::open(&self.inner.data_dir)?.sync_all())
            .map_err(|error| format!("{} to {}: {error}", from.display(), aside.display()))?;
        Ok(aside)
    }

    /// Waits until the cluster does without this node's store, if it can.
    async fn be_done_without(&self) -> Result<(), String> {
        let mut patience = PATIENCE + self.inner.power_patience;
        let mut groups = 0;
        while !patience.is_zero() {
            if self.inner.stopping.is_cancelled() {
                return Err("the node stops".into());
            }
            let began = Instant::now();
            match self.raft().linearizable_within(LOOK).await {
                Ok(map) if map.cluster != self.inner.cluster => {
                    return Err(
                        "the cluster is not founded yet: empty the folder of the store".into()
                    );
                }
                Ok(map) => {
                    let stores = match self.inner.stores.first() {
                        Some(store) => vec![store.id()],
                        // Which one it is could be read of a label that is whole; none of them runs.
                        None => registered(&map, self.inner.node),
                    };
                    let left = self.give_up_growth(&map, &stores).await;
                    if left == 0 {
                        return Ok(());
                    }
                    groups = left;
                    patience = patience.saturating_sub(began.elapsed() + PAUSE);
                }
                // This node may be what is missing to a majority: it stays as it is.
                Err(error) => tracing::info!(%error, "waiting for a majority"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(format!(
            "{groups} groups can not do without it: see `smalti why`, and start this node again when the \
             others are up and in sync"
        ))
    }

    /// Takes stores out of the groups where they only catch up, and answers how many count on them.
    async fn give_up_growth(&self, map: &ClusterMap, stores: &[StoreId]) -> usize {
        let mut groups = 0;
        for volume in map.volumes.values() {
            for store in stores {
                let (insync, learns) = counted_on(volume, *store);
                groups += insync + learns;
                if insync == 0 && learns > 0 {
                    let (volume, epoch) = (volume.no, volume.epoch);
                    let stores = vec![*store];
                    let shrink = Command::Shrink { volume, epoch, stores, to_data: false };
                    // Whatever becomes of it, the next look tells.
                    let shrunk = self.raft().propose_within(shrink, LOOK).await;
                    tracing::info!(%volume, ?shrunk, "no longer to catch up");
                }
            }
        }
        groups
    }
}
