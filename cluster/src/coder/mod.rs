//! The coder actor: the coordinator of one volume, on the node that holds the seat.
//!
//! It feeds the pure core with requests, answers of stores, maps and time, and performs what comes
//! back. Everything that waits in its mailbox is fed before anything is sent: a `Flush` to itself
//! goes to the end of the mailbox, so one frame per store carries all of it.

mod actor;
pub(crate) mod link;
mod queue;
mod rate;
mod scrubs;
#[cfg(test)]
mod tests;

/// What the queue is built on: tests put it onto something else.
mod sync {
    pub(super) use std::sync::{Mutex, MutexGuard};
}

#[cfg(test)]
pub(crate) use actor::Propose;
pub(crate) use actor::{CoderArgs, start};
pub use actor::{CoderMsg, CoderStatus};

use bytes::Bytes;
use ractor::{ActorRef, ActorStatus};
use smalti_rowcommit::coordinator::{BlockList, BlockWrite, OpError};
use smalti_rowcommit::governor::Burden;
use smalti_storage::ids::{GroupNo, RowAddr, Slot, VolumeNo};
use std::collections::BTreeSet;
use tokio::sync::{oneshot, watch};

/// Talks to the coder of one volume.
#[derive(Clone, Debug)]
pub struct CoderHandle {
    volume: VolumeNo,
    actor: ActorRef<CoderMsg>,
    told: watch::Receiver<VolumeRepairs>,
    background: bool,
}

/// What the rest of the cluster is to know of a volume's repairs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct VolumeRepairs {
    /// What is repaired, and how clients bear it.
    pub(crate) burden: Burden,
    /// Slots that are on their way to another store and do not get on.
    pub(crate) in_vain: BTreeSet<(GroupNo, Slot)>,
}

impl CoderHandle {
    pub(crate) fn new(
        volume: VolumeNo,
        actor: ActorRef<CoderMsg>,
        told: watch::Receiver<VolumeRepairs>,
    ) -> Self {
        Self { volume, actor, told, background: false }
    }

    /// The same for work that gives way to that of clients.
    #[must_use]
    pub fn in_background(&self) -> Self {
        Self { background: true, ..self.clone() }
    }

    /// What the rest of the cluster is to know of the volume's repairs.
    pub(crate) fn told(&self) -> VolumeRepairs {
        self.told.borrow().clone()
    }

    /// The volume.
    pub fn volume(&self) -> VolumeNo {
        self.volume
    }

    /// Writes blocks; durable when it returns. Not cancelled by dropping the future. The caller
    /// bounds how much it has in flight.
    ///
    /// # Errors
    /// See [`OpError`]; the blocks then hold the old or the new contents.
    pub async fn write(&self, blocks: Vec<BlockWrite>) -> Result<(), OpError> {
        let (reply, answer) = oneshot::channel();
        let message = CoderMsg::Write { blocks, background: self.background, reply };
        self.actor.cast(message).map_err(|_| OpError::Fenced)?;
        answer.await.unwrap_or(Err(OpError::Fenced))
    }

    /// Reads the records of blocks for the gateway of a generation, in the order asked; empty means
    /// never written or trimmed.
    ///
    /// # Errors
    /// See [`OpError`].
    pub async fn read(
        &self,
        generation: u32,
        blocks: Vec<(RowAddr, Slot)>,
    ) -> Result<Vec<Bytes>, OpError> {
        self.read_at(generation, blocks, None).await
    }

    /// As [`Self::read`]; with the number of a snapshot as that holds them.
    ///
    /// # Errors
    /// See [`OpError`]; [`OpError::NoSnapshot`] when it was deleted.
    pub async fn read_at(
        &self,
        generation: u32,
        blocks: Vec<(RowAddr, Slot)>,
        snap: Option<u32>,
    ) -> Result<Vec<Bytes>, OpError> {
        let (reply, answer) = oneshot::channel();
        let background = self.background;
        let message = CoderMsg::Read { blocks, snap, generation, background, reply };
        self.actor.cast(message).map_err(|_| OpError::Fenced)?;
        answer.await.unwrap_or(Err(OpError::Fenced))
    }

    /// The next blocks of a group that have contents, or may have some, and how old those are.
    ///
    /// # Errors
    /// See [`OpError`]: [`OpError::Unreadable`] when too much of the group is out of reach just now.
    pub async fn list(&self, group: GroupNo, after: Option<RowAddr>) -> Result<BlockList, OpError> {
        let (reply, answer) = oneshot::channel();
        self.actor.cast(CoderMsg::List { group, after, reply }).map_err(|_| OpError::Fenced)?;
        answer.await.unwrap_or(Err(OpError::Fenced))
    }

    /// Makes a snapshot of all that was acknowledged until now, and answers its number. Writes wait
    /// meanwhile for one change of the map. `created` is Unix seconds, for people.
    ///
    /// # Errors
    /// See [`OpError`]; after [`OpError::Fenced`] there may be a snapshot of that name or not.
    pub async fn snapshot(&self, name: String, created: u64) -> Result<u32, OpError> {
        let (reply, answer) = oneshot::channel();
        let message = CoderMsg::Snapshot { name, created, reply };
        self.actor.cast(message).map_err(|_| OpError::Fenced)?;
        answer.await.unwrap_or(Err(OpError::Fenced))
    }

    /// Stops serving and gives the read leases back, before a handover.
    pub async fn release(&self) {
        let (reply, done) = oneshot::channel();
        if self.actor.cast(CoderMsg::Release { reply }).is_ok() {
            // Ended without an answer means released as well.
            let _ = done.await;
        }
    }

    /// How the volume stands; `None` when the coder has ended.
    pub async fn status(&self) -> Option<CoderStatus> {
        let (reply, answer) = oneshot::channel();
        self.actor.cast(CoderMsg::Status { reply }).ok()?;
        answer.await.ok()
    }

    /// Whether it can not answer any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.actor.get_status() >= ActorStatus::Stopping
    }

    pub(crate) fn actor(&self) -> &ActorRef<CoderMsg> {
        &self.actor
    }
}
