//! What the control API and the command line know of a running node: the [`Control`] trait and the
//! facts it gives. The facts are shapes of the API and of `--json`, so fields are only ever added.

mod custody;
mod error;
mod facts;
mod places;
mod recovery;
mod slot;
mod tokens;

pub use custody::{
    AuditFacts, AuditReport, ResharingStatus, RevokeKeys, SetCustodians, Unlock, Unlocked,
    VerifiedCustodian, VerifiedSecret, VerifyReport,
};
pub use error::{ControlError, ErrorKind};
pub use facts::{
    CreateVolume, CustodyStatus, GroupFacts, Health, HolderFacts, KeyEpochFacts, KeyReport,
    NodeFacts, NodeState, NodeStatus, RaftStatus, Reason, ResealStatus, RevokedKeys, ScrubStatus,
    SlotFacts, SlotState, StatusReport, StoreFacts, StoreStatus, VolumeDetail, VolumeFacts,
    VolumeKeys, VolumeStatus, WhyReport,
};
pub use places::{
    ChangeNode, DiskFacts, DiskState, MovesStatus, PauseMoves, ReplaceNode, WhatIfReport,
    WhatIfVolume,
};
pub use recovery::{RecoverKeys, RecoveryFacts, RecoveryReport, ShareLine};
pub use slot::ControlSlot;
pub use tokens::{CreateToken, NewToken, TOKEN_SECONDS};

use bytes::Bytes;
use futures::future::BoxFuture;
use smalti_storage::ids::VolumeId;
use tokio::io::AsyncWrite;

/// Where the contents of a volume go.
pub type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// An open volume whose contents are to be written out, in order.
pub struct Export {
    /// Bytes that will be written.
    pub size: u64,
    /// Writes them, and says how many they were.
    pub run: Box<dyn FnOnce(Output) -> BoxFuture<'static, Result<u64, ControlError>> + Send>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("size", &self.size).finish_non_exhaustive()
    }
}

/// The answer of a [`Control`] method.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ControlError>>;

/// A running node as its operator sees it.
///
/// Reads answer from this node's view of the cluster and must not wait for other nodes for longer
/// than a second or two: an operator asks most urgently when others do not answer. Changes return
/// when the cluster has agreed on them and this node has applied them.
pub trait Control: Send + Sync + 'static {
    /// Health in short: the answer of `smalti status`.
    fn status(&self) -> Answer<'_, StatusReport>;

    /// Why health is not `ok`, and what goes on meanwhile.
    fn why(&self) -> Answer<'_, WhyReport>;

    /// Every volume, by name.
    fn volumes(&self) -> Answer<'_, Vec<VolumeFacts>>;

    /// One volume with its groups; `NotFound` when there is none of that name.
    fn volume(&self, name: String) -> Answer<'_, VolumeDetail>;

    /// Makes a volume. What is left open gets its default for this cluster.
    ///
    /// `Exists` when there is one of that name, `Invalid` when it can not be as asked.
    fn create_volume(&self, request: CreateVolume) -> Answer<'_, VolumeDetail>;

    /// Removes the volume of that name if its identity still is `id`; `Conflict` when the name has
    /// passed to another volume, and unless `force` when clients are attached to it.
    fn delete_volume(&self, name: String, id: VolumeId, force: bool) -> Answer<'_, ()>;

    /// Changes what the cluster wants of a node. Returns when that is agreed, not when slots have
    /// moved.
    ///
    /// `NotFound` when there is no such node, `Invalid` when it can not be so.
    fn change_node(&self, name: String, change: ChangeNode) -> Answer<'_, NodeFacts>;

    /// Has a node get weight and failure domain of another one, and that one drained. Asked again it
    /// goes on. Returns when that is agreed, with the facts of the one that leaves.
    ///
    /// `NotFound` when there is no such node, `Invalid` when it can not be: then nothing has changed.
    fn replace_node(&self, name: String, wish: ReplaceNode) -> Answer<'_, NodeFacts>;

    /// Removes a node that has been emptied and stopped.
    ///
    /// `NotFound` when there is no such node, `Invalid` when something depends on it yet.
    fn remove_node(&self, name: String) -> Answer<'_, ()>;

    /// Has a volume get new keys. Returns when that is agreed, not when it is done.
    fn rotate_keys(&self, name: String) -> Answer<'_, VolumeKeys>;

    /// Says that key epochs of a volume may have leaked: what is under them is sealed anew before anything else.
    /// Returns when that is agreed, not when it is done.
    ///
    /// `NotFound` when there is no such volume, `Invalid` when it has no such key epoch.
    fn revoke_keys(&self, name: String, wish: RevokeKeys) -> Answer<'_, VolumeKeys>;

    /// Has every group of a volume scrubbed. Returns when that is agreed, not when it is done.
    fn scrub_volume(&self, name: String) -> Answer<'_, ScrubStatus>;

    /// Makes a token with which a node can join.
    ///
    /// `Invalid` when this node can not let nodes join, or the token can not be so.
    fn create_token(&self, request: CreateToken) -> Answer<'_, NewToken>;

    /// Lets no slot begin to move, or lets them again.
    fn pause_moves(&self, wish: PauseMoves) -> Answer<'_, MovesStatus>;

    /// What would be if these nodes were stopped.
    fn what_if(&self, stop: Vec<String>) -> Answer<'_, WhatIfReport>;

    /// Bytes of a volume. `Invalid` when the range does not lie within it.
    fn read_volume(&self, name: String, offset: u64, size: u64) -> Answer<'_, Bytes>;

    /// Opens a volume to write all of it somewhere. What keeps it from being read shows here.
    fn export_volume(&self, name: String) -> Answer<'_, Export>;

    /// Every node, by number.
    fn nodes(&self) -> Answer<'_, Vec<NodeFacts>>;

    /// Names who is to hold the shares of every secret. Returns when that is agreed, not when it is done.
    ///
    /// `NotFound` when there is no such node, `Invalid` when it can not be so.
    fn set_custodians(&self, wish: SetCustodians) -> Answer<'_, KeyReport>;

    /// Has every custodian prove that it has its shares.
    fn verify_keys(&self, without: Vec<String>) -> Answer<'_, VerifyReport>;

    /// The logs of custodians, of one or all.
    fn audit_keys(&self, node: Option<String>) -> Answer<'_, Vec<AuditReport>>;

    /// Gives the custodian of this node the passphrase under which its shares are sealed.
    ///
    /// `Invalid` when it is the wrong one, or there is none; `Unavailable` while another one is tried.
    fn unlock(&self, wish: Unlock) -> Answer<'_, Unlocked>;

    /// Custody of the master secret and the key epochs of every volume.
    fn keys(&self) -> Answer<'_, KeyReport>;

    /// Opens every secret with recovery shares and has custodians get new shares of it; or only tells what would
    /// open. Returns when that is done.
    ///
    /// `Invalid` when a share is bad, which says so of each, or there are too few; `NotFound` when there is no such
    /// node. Then nothing has changed.
    fn recover_keys(&self, wish: RecoverKeys) -> Answer<'_, RecoveryReport>;
}
