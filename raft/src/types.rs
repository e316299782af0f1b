//! What openraft is told about us.

use serde::{Deserialize, Serialize};
use smalti_map::{Applied, Command};
use std::io::Cursor;

/// Bytes of one encoded command. A log entry has to fit one request with room to spare.
pub const MAX_COMMAND_BYTES: usize = 1 << 20;

openraft::declare_raft_types!(
    /// Raft over commands of the cluster map. Nodes are plain numbers to it: where they are is
    /// the transport's business.
    pub(crate) MapRaft:
        D = Proposal,
        R = Applied,
        NodeId = u64,
        Node = openraft::EmptyNode,
        Entry = openraft::Entry<MapRaft>,
        SnapshotData = Cursor<Vec<u8>>,
        Responder = openraft::impls::OneshotResponder<MapRaft>,
        AsyncRuntime = openraft::TokioRuntime,
);

pub(crate) type Raft = openraft::Raft<MapRaft>;
pub(crate) type Entry = openraft::Entry<MapRaft>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, openraft::EmptyNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, openraft::EmptyNode>;
pub(crate) type StorageError = openraft::StorageError<u64>;
pub(crate) type StorageIOError = openraft::StorageIOError<u64>;

/// A command with the identity of its proposal, by which a retry is recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proposal {
    pub(crate) id: ProposalId,
    pub(crate) command: Command,
}

/// Unique over all proposals ever: a node, one random number per start of it, a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProposalId {
    pub(crate) node: u64,
    pub(crate) session: u64,
    pub(crate) seq: u64,
}
