//! The Raft group that keeps the cluster map.
//!
//! Every voter holds the log in a RocksDB of its own and the map in memory. [`RaftGroup`] is the
//! handle: propose a command from any node, watch the map, ask for a map that is surely current.
//! Readers of the map wait for nobody: they hold an immutable snapshot.
//!
//! This crate knows no transport: whoever owns a group gives it a [`RaftTransport`] and hands it
//! the requests that come in. It never sees block data or key bytes (wrapped keys are opaque).
//!
//! R1. Every vote, append, truncation, purge and snapshot is synced before it is reported done.
//! R2. A failed write is never retried: the group stops and says so, and its owner must stop too.
//! R3. A command that was answered was applied exactly once, as long as its retries arrive within
//!     [`REMEMBERED_ANSWERS`] later commands.
//! R4. A store that lacks what it once said was synced is not opened.
//! R5. A map from `linearizable` contains every command answered before it was asked for.

mod codec;
mod db;
mod group;
mod log_store;
mod network;
mod offline;
mod recruit;
mod rpc;
mod state_machine;
mod stored;
mod transport;
mod types;
mod witness;

#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod storage_tests;

pub use group::{
    GroupMetrics, InitializeError, MemberError, POSITIONS, ProposeError, RaftGroup,
    RaftGroupConfig, Role, StartError,
};
pub use offline::{OfflineError, read_stopped};
pub use rpc::MAX_REQUEST_BYTES;
pub use state_machine::REMEMBERED_ANSWERS;
pub use transport::{RaftTransport, TransportError};
pub use types::MAX_COMMAND_BYTES;
