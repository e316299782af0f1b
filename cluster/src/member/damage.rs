//! A store whose tables can not be read any more while its disk works.
//!
//! Nobody can tell what such a store lacks, so it is made anew as one that was replaced is; but only once
//! the cluster has agreed, by Raft, to go on without it. Of two that are damaged at once and can not both
//! be done without, one stays. Its folder is kept: for whoever needs what can still be read in it.
//!
//! What the leader says counts, for the map here may be an old one. And a slot that was catching up is given
//! up as well: each step of a volume's membership is an epoch, so its growth, which may be on its way, is
//! refused then.

use super::Member;
use smalti_map::{Command, Group, Volume};
use smalti_storage::ids::StoreId;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// How long the cluster has to do without the store. Its coordinators notice within a second that it does
/// not answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// A look at the map, or a change of it, may take so long; between two looks.
const LOOK: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(200);

/// The folder of a node's store.
pub(super) fn store_of(data_dir: &Path) -> PathBuf {
    data_dir.join("store")
}

/// Where that of a damaged one is kept.
fn aside_of(data_dir: &Path) -> PathBuf {
    data_dir.join("store.damaged")
}

/// In how many groups of a volume what a store holds is counted on, or may be in a moment.
fn counted_on(volume: &Volume, store: StoreId) -> usize {
    let counts = |group: &&Group| {
        let learns = group.learners.values().any(|learner| learner.store == store);
        learns || group.insync_stores().any(|other| other == store)
    };
    volume.groups.iter().filter(counts).count()
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
        if let Some(store) = self.inner.stores.first() {
            self.be_done_without(store.id()).await?;
        }
        let from = store_of(&self.inner.data_dir);
        std::fs::rename(&from, &aside)
            .and_then(|()| File::open(&self.inner.data_dir)?.sync_all())
            .map_err(|error| format!("{} to {}: {error}", from.display(), aside.display()))?;
        Ok(aside)
    }

    /// Has the cluster do without a store, if it can.
    async fn be_done_without(&self, store: StoreId) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let mut groups = None;
        while Instant::now() < deadline {
            match self.raft().linearizable_within(LOOK).await {
                Ok(map) => {
                    let volumes = map.volumes.values();
                    let needed = volumes.map(|volume| (volume, counted_on(volume, store)));
                    let needed: Vec<(&Volume, usize)> = needed.filter(|(_, n)| *n > 0).collect();
                    groups = Some(needed.iter().map(|(_, groups)| groups).sum::<usize>());
                    if needed.is_empty() {
                        return Ok(());
                    }
                    for (volume, _) in needed {
                        let (volume, epoch) = (volume.no, volume.epoch);
                        let stores = vec![store];
                        let shrink = Command::Shrink { volume, epoch, stores, to_data: false };
                        // Refused where too few would be left: the next look tells.
                        let shrunk = self.raft().propose_within(shrink, LOOK).await;
                        tracing::info!(%volume, ?shrunk, "to be done without");
                    }
                }
                Err(error) => tracing::info!(%error, "waiting for a majority"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        let groups = groups.map_or("nobody knows how many".into(), |groups| groups.to_string());
        Err(format!(
            "{groups} groups can not do without it: see `smalti why`, and start this node again when the \
             others are up and in sync"
        ))
    }
}
