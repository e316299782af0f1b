//! What all clones of a member share.

use super::Beats;
use super::beats::NodeRepairs;
use super::seats::KeyProgress;
use crate::coder::CoderHandle;
use crate::custodian::{CustodianMsg, CustodyClient, Holdings};
use crate::fabric::{AddressBook, Fabric};
use crate::shard_store::{Fatal, LocalStores, ShardStoreMsg, SlowDisk};
use ractor::ActorRef;
use smalti_map::reach::HalfHeard;
use smalti_raft::RaftGroup;
use smalti_storage::ids::{ClusterId, Incarnation, NodeId, StoreId, VolumeNo};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) struct Inner {
    pub(super) node: NodeId,
    pub(super) cluster: ClusterId,
    pub(super) incarnation: watch::Sender<Option<Incarnation>>,
    pub(super) raft: RaftGroup,
    pub(super) fabric: Fabric,
    pub(super) book: Arc<AddressBook>,
    pub(super) beats: Arc<Beats>,
    pub(super) custodians: CustodyClient,
    pub(super) stores: LocalStores,
    pub(super) store_actors: Vec<ActorRef<ShardStoreMsg>>,
    pub(super) store_ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
    pub(super) custodian: ActorRef<CustodianMsg>,
    /// What the custodian of this node says of the shares that it should have.
    pub(super) holdings: watch::Receiver<Holdings>,
    /// While this node leads: why secrets are not dealt on; else empty.
    pub(super) custody_problem: watch::Sender<String>,
    /// After so long all shares become new ones; zero: never.
    pub(super) refresh_every: Duration,
    pub(super) coders: Mutex<BTreeMap<VolumeNo, CoderHandle>>,
    pub(super) uses: Mutex<BTreeMap<VolumeNo, usize>>,
    /// What is told of the keys of volumes that are coordinated here.
    pub(super) keys: Mutex<BTreeMap<VolumeNo, KeyProgress>>,
    pub(super) sessions: Arc<AtomicU64>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    pub(super) stopping: CancellationToken,
    pub(super) fatal: tokio::sync::Mutex<mpsc::Receiver<Fatal>>,
    pub(super) data_dir: PathBuf,
    pub(super) lease: Duration,
    pub(super) suspect_after: Duration,
    /// How long it may while another one came up after a power cut.
    pub(super) power_patience: Duration,
    /// For how long a store may be away before its slots are rebuilt elsewhere.
    pub(super) down_out: Duration,
    /// For how long a disk that was far slower than others is done without.
    pub(super) slow_out: Duration,
    /// Those that are.
    pub(super) slow: watch::Sender<BTreeMap<StoreId, SlowDisk>>,
    /// What other nodes are told of the volumes that are coordinated here.
    pub(super) told: watch::Sender<NodeRepairs>,
    /// Nodes that some hear and others do not.
    pub(super) half_heard: watch::Sender<BTreeMap<NodeId, HalfHeard>>,
    /// Each group is scrubbed again after so long; zero: only when asked.
    pub(super) scrub_every: Duration,
    /// A coordinator costs more to replace than a store: it is given twice the time.
    pub(super) seat_suspect_after: Duration,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("node", &self.node).finish_non_exhaustive()
    }
}
