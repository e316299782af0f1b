//! The cluster map: what the Raft group agrees on, and the commands that change it.
//!
//! Pure and deterministic: [`ClusterMap::apply`] uses no clock, no randomness and no unordered
//! container; whoever proposes a command puts such things into it. The map holds configuration
//! only. It never sees block bytes or an unwrapped key, and nothing here happens per write.
//!
//! M1. A volume's epoch grows by one with every change of its coordinator, in-sync sets or snapshots.
//! M2. Every command of a coordinator names the epoch it was planned against; otherwise it is refused.
//! M3. In-sync sets only shrink, except by `Grow` from an activated coordinator.
//! M4. A slot grows in only with the incarnation its store is registered with.

mod apply;
mod check;
mod command;
pub mod custodians;
pub mod mutant;
pub mod placement;
pub mod plan;
pub mod reach;
mod scrub;
mod types;
pub mod view;
pub mod voters;

pub use apply::limits;
pub use command::{
    Applied, Command, GrowSlot, MoveSlot, NewVolume, NodeSetting, Rejection, StoreStart,
};
pub use scrub::{Faults, GroupScrub, Scrubs};
pub use types::{
    ClusterMap, Coordinator, Custodians, Custody, FIRST_SHARE_EPOCH, FailureDomain, Group,
    JoinToken, KeyEpoch, Learner, Node, NodeAddresses, ReadMode, Recovery, Revoked, ShareHolder,
    Snapshot, Store, Volume,
};
