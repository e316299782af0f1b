//! One node's part in the cluster.

mod around;
mod beats;
mod custody;
mod damage;
mod govern;
mod join;
mod links;
mod member_inner;
mod outlook;
mod places;
mod seats;
mod slow;
#[cfg(test)]
mod tests;

pub use beats::Beats;
pub use join::{Founding, MemberConfig, StartError};
pub use seats::{KeyProgress, Seat, SeatError, VolumeProgress};

use crate::coder::CoderHandle;
use crate::custodian::CustodyClient;
use crate::fabric::Fabric;
use crate::shard_store::Fatal;
use member_inner::Inner;
use smalti_map::view::MapView;
use smalti_raft::RaftGroup;
use smalti_storage::ids::{ClusterId, Incarnation, NodeId, VolumeNo};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

/// A running member. Clones are the same member.
#[derive(Clone)]
pub struct Member {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("node", &self.inner.node).finish_non_exhaustive()
    }
}

impl Member {
    /// This node.
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.inner.cluster
    }

    /// Under which start this process is registered; none before it has reached the cluster.
    pub fn incarnation(&self) -> Option<Incarnation> {
        *self.inner.incarnation.borrow()
    }

    /// The newest map known here.
    pub fn map(&self) -> MapView {
        self.inner.raft.map()
    }

    /// The Raft group: proposals, the map, the leader.
    pub fn raft(&self) -> &RaftGroup {
        &self.inner.raft
    }

    /// Reaches other nodes.
    pub fn fabric(&self) -> &Fabric {
        &self.inner.fabric
    }

    /// Who is alive.
    pub fn beats(&self) -> &Beats {
        &self.inner.beats
    }

    /// Reaches custodians.
    pub fn custodians(&self) -> &CustodyClient {
        &self.inner.custodians
    }

    /// The coder of a volume that this node coordinates.
    pub fn coder(&self, volume: VolumeNo) -> Option<CoderHandle> {
        self.lock_coders().get(&volume).filter(|coder| !coder.has_ended()).cloned()
    }

    /// All coders here.
    pub fn coders(&self) -> Vec<CoderHandle> {
        self.lock_coders().values().cloned().collect()
    }

    fn lock_coders(&self) -> std::sync::MutexGuard<'_, BTreeMap<VolumeNo, CoderHandle>> {
        self.inner.coders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_coder(&self, coder: CoderHandle) {
        let mut coders = self.lock_coders();
        // Seen under the lock: whoever stops takes away what is here afterwards.
        if self.inner.stop.is_cancelled() {
            coder.actor().stop(None);
            return;
        }
        // What it has to know first; later maps follow from the watch.
        let _ = coder.actor().cast(crate::coder::CoderMsg::Map(self.map()));
        coders.insert(coder.volume(), coder);
    }

    fn drop_coder(&self, volume: VolumeNo) {
        if let Some(coder) = self.lock_coders().remove(&volume) {
            coder.actor().stop(None);
        }
    }

    /// Marks a volume as used by clients of this node while the guard lives: its seat is not
    /// handed over meanwhile.
    pub fn use_volume(&self, volume: VolumeNo) -> UseGuard {
        *self.lock_uses().entry(volume).or_default() += 1;
        UseGuard { member: self.clone(), volume }
    }

    fn in_use(&self, volume: VolumeNo) -> bool {
        self.lock_uses().contains_key(&volume)
    }

    fn lock_uses(&self) -> std::sync::MutexGuard<'_, BTreeMap<VolumeNo, usize>> {
        self.inner.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is told of the keys of a volume that this node coordinates.
    pub fn tell_keys(&self, volume: VolumeNo, change: impl FnOnce(&mut KeyProgress)) {
        change(self.lock_keys().entry(volume).or_default());
    }

    /// Nothing is to be told of them any more.
    pub fn forget_keys(&self, volume: VolumeNo) {
        self.lock_keys().remove(&volume);
    }

    fn lock_keys(&self) -> std::sync::MutexGuard<'_, BTreeMap<VolumeNo, KeyProgress>> {
        self.inner.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something failed after which the process must stop, and says what.
    pub async fn failed(&self) -> Fatal {
        let mut fatal = self.inner.fatal.lock().await;
        let why = tokio::select! {
            why = fatal.recv() => {
                return why.unwrap_or_else(|| Fatal::Failed("shard store ended".into()));
            }
            why = self.inner.raft.stopped_because() => format!("raft stopped: {why}"),
            start = self.registered_anew() => format!(
                "this node was registered anew, as start {start}: another process runs as this \
                 node, or a late copy of its registration counted as one"
            ),
        };
        Fatal::Failed(why)
    }

    /// Waits until the map knows a later start of this node than this one, which nobody listens to
    /// from then on.
    async fn registered_anew(&self) -> Incarnation {
        let mut own = self.inner.incarnation.subscribe();
        let mut map = self.raft().watch();
        loop {
            let known = map.borrow_and_update().nodes.get(&self.node()).map(|n| n.incarnation);
            let own_start = *own.borrow_and_update();
            if let (Some(known), Some(own_start)) = (known, own_start)
                && known > own_start
            {
                return known;
            }
            tokio::select! {
                changed = map.changed() => if changed.is_err() { std::future::pending::<()>().await },
                changed = own.changed() => if changed.is_err() { std::future::pending::<()>().await },
            }
        }
    }

    /// Stops in order: coders give their leases back, the store finishes what is queued and
    /// leaves its clean marker, Raft lets go of its log.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        for coder in self.coders() {
            coder.release().await;
            self.drop_coder(coder.volume());
        }
        for store in &self.inner.store_actors {
            // Already ended is what is wanted.
            let _ = store.cast(crate::shard_store::ShardStoreMsg::Stop);
        }
        if let Some(ended) = self.inner.store_ended.lock().await.take() {
            // An error means that it failed, which was told already.
            let _ = ended.await;
        }
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "raft did not let go of its store");
        }
        self.inner.fabric.endpoint().close().await;
    }
}

/// Keeps a volume in use. See [`Member::use_volume`].
#[derive(Debug)]
pub struct UseGuard {
    member: Member,
    volume: VolumeNo,
}

impl Drop for UseGuard {
    fn drop(&mut self) {
        let mut uses = self.member.lock_uses();
        if let Some(count) = uses.get_mut(&self.volume) {
            *count -= 1;
            if *count == 0 {
                uses.remove(&self.volume);
            }
        }
    }
}
