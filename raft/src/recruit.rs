//! Members whose store is new: they may have voted, and acknowledged entries, in an earlier life that
//! nobody here remembers.
//!
//! R1. Every store has an identity, drawn when it is made. The map names the one of each member.
//! R2. A member whose store is not the one that the map names is a *recruit*: it grants no vote and
//!     asks for none. Before a group is founded there is nothing to forget: then it votes.
//!     It takes entries and snapshots only from a leader for whom it does not vote, or who knows of no
//!     store or of this one: what a leader of the past were acknowledged by one that has forgotten
//!     the present one would count.
//! R3. The leader takes a recruit out of the voters, then has the map name its new store, and only
//!     then makes it a voter again. What it forgot is of a configuration that is over: a candidate
//!     that counts its old vote lacks an entry that a majority has.

use crate::db::{Batch, Db, DbError, blocking, key};
use crate::rpc::Known;
use serde::{Deserialize, Serialize};
use smalti_map::view::MapView;
use smalti_storage::ids::{NodeId, RaftStoreId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use uuid::Uuid;

/// What is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    id: RaftStoreId,
    admitted: bool,
}

/// Whether this member's store is the one that the group knows.
#[derive(Debug)]
pub(crate) struct Recruit {
    id: RaftStoreId,
    admitted: AtomicBool,
}

impl Recruit {
    /// Reads it, or draws an identity for a new store. `trusted`: it may vote all the same. Blocks.
    pub(crate) fn load(db: &Db, trusted: bool) -> Result<Self, DbError> {
        let stored = match db.meta::<Stored>(key::IDENTITY)? {
            Some(stored) => stored,
            None => {
                let stored = Stored { id: RaftStoreId(Uuid::new_v4()), admitted: false };
                put(db, stored)?;
                stored
            }
        };
        Ok(Self { id: stored.id, admitted: AtomicBool::new(stored.admitted || trusted) })
    }

    pub(crate) fn id(&self) -> RaftStoreId {
        self.id
    }

    pub(crate) fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Acquire)
    }

    /// Whether it may vote for, or as, a candidate whose last entry is this one.
    pub(crate) fn may_vote(&self, last_index: Option<u64>) -> bool {
        // The entry with number 0 founds the group.
        self.is_admitted() || last_index.is_none_or(|index| index == 0)
    }

    /// Whether it may take what a leader sends who knows so much of this member.
    pub(crate) fn may_follow(&self, known: Known) -> bool {
        self.is_admitted() || !known.votes || known.store.is_none_or(|store| store == self.id)
    }

    /// Looks whether the map names this store; durable before it counts.
    pub(crate) async fn look(
        &self,
        db: &Arc<Db>,
        node: NodeId,
        map: &MapView,
    ) -> Result<bool, DbError> {
        let named = map.nodes.get(&node).and_then(|node| node.raft_store);
        if self.is_admitted() || named != Some(self.id) {
            return Ok(self.is_admitted());
        }
        let stored = Stored { id: self.id, admitted: true };
        blocking(db, move |db| put(db, stored)).await?;
        self.admitted.store(true, Ordering::Release);
        Ok(true)
    }
}

fn put(db: &Db, stored: Stored) -> Result<(), DbError> {
    let mut batch = Batch::new(db);
    batch.put_meta(key::IDENTITY, &stored)?;
    batch.commit_synced()
}
