//! RowCommit: how a row of n data and k parity blocks is updated, read, taken over and caught up.
//!
//! Pure: the parties here are state machines that are fed events and time and answer with actions.
//! They hold no clock, do no I/O of their own, draw no randomness and iterate over no unordered
//! map, so a simulator can run years of faults through exactly the code that serves volumes. The
//! store side reaches its disk through the synchronous [`smalti_storage::store::ShardStore`].
//!
//! Place in the way of a request: gateway → **coordinator** → transport → **store side** → disk.
//!
//! R1. A write is acknowledged only after every in-sync slot it touches holds it durably.
//! R2. A read returns a committed version that was current at some instant during the read.
//! R3. Bytes that failed their hash, identity or version check are never returned, never a base
//!     of a parity delta and never an input of a decode.
//! R4. A version that was acknowledged is constructible from every later in-sync set.

pub mod coordinator;
pub mod governor;
pub mod invariant;
pub mod msg;
mod snaps;
pub mod store;
#[cfg(test)]
mod support;
pub mod time;

pub use coordinator::{Action, Coordinator, CoordinatorConfig, Event};
pub use store::StoreCore;
pub use time::Time;
