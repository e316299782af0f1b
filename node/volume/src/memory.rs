//! A whole cluster within the process, for examples, tests and first steps.
//!
//! Stores and coordinators are the state machines that serve volumes on real nodes, over stores in
//! memory; custodians keep real shares. There is no network: whoever calls carries the frames from
//! one to the other, and time passes only while a call waits.

use crate::cluster::{Cluster, Session, Volumes};
use crate::error::VolumeError;
use crate::metadata::ShardMetadata;
use crate::shard::unshard_volume;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use smalti_gateway::{BlockDevice, Rows};
use smalti_map::placement::Candidate;
use smalti_map::{
    Applied, ClusterMap, Command, Coordinator as Seat, Custodians, Custody, KeyEpoch,
    NodeAddresses, ReadMode, Recovery, ShareHolder, StoreStart, Volume,
};
use smalti_rowcommit::coordinator::{BlockList, BlockWrite, ListedBlock, OpError};
use smalti_rowcommit::msg::{Frame, Reply};
use smalti_rowcommit::store::StoreConfig;
use smalti_rowcommit::store::read::ReadSide;
use smalti_rowcommit::{Action, Coordinator, CoordinatorConfig, Event, StoreCore, Time};
use smalti_storage::ids::{
    ClusterId, GroupNo, Incarnation, NodeId, RowAddr, Slot, StoreId, VolumeId, VolumeNo,
};
use smalti_storage::keys::{
    Commitments, Dealt, KeyPart, Secret, SecretName, ShareName, get_key_parts, seal_for_recovery,
    verify_part,
};
use smalti_storage::store::ShardStore;
use smalti_storage::store::memory::MemoryStore;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use uuid::Uuid;

const TICK: Duration = Duration::from_millis(20);
/// Ticks that a call waits at most: ten seconds, far longer than a dead store is waited for.
const TICKS_MAX: usize = 500;
const STARTED: Incarnation = Incarnation(1);

/// A cluster in memory. Clones are the same cluster.
#[derive(Clone)]
pub struct MemoryCluster {
    state: Arc<Mutex<State>>,
}

struct State {
    map: ClusterMap,
    now: Time,
    parties: BTreeMap<StoreId, Party>,
    coordinators: BTreeMap<VolumeNo, Coordinator>,
    shares: BTreeMap<(NodeId, ShareName), KeyPart>,
    stopped: BTreeSet<NodeId>,
    sessions: u64,
    ops: u64,
    written: BTreeMap<u64, Result<(), OpError>>,
    read: BTreeMap<u64, Result<Vec<Bytes>, OpError>>,
    listed: BTreeMap<u64, Result<BlockList, OpError>>,
}

struct Party {
    node: NodeId,
    disk: Arc<MemoryStore>,
    core: StoreCore,
    reader: ReadSide,
}

/// The node that stands for this process: it orders the updates of every volume. Stopping it stops
/// its store and its custodian only.
const HERE: NodeId = NodeId(1);

impl MemoryCluster {
    /// A cluster of `nodes` nodes with a store and a custodian each; a majority of the custodians
    /// is needed to open a volume.
    ///
    /// # Panics
    /// With fewer than two nodes, for a secret can not be split over one custodian.
    pub fn new(nodes: u8) -> Self {
        Self::found(nodes, ClusterId(Uuid::new_v4()), None)
    }

    fn found(nodes: u8, cluster: ClusterId, recovery: Option<(Recovery, Commitments)>) -> Self {
        let mut rng = rand::rng();
        let secret = Secret::random(&mut rng);
        let (recovery, to) = recovery.unzip();
        let sealed = to
            .map(|to| seal_for_recovery(&secret, cluster, SecretName::Master, &to, &mut rng))
            .unwrap_or_default();
        let dealing = get_key_parts(&secret, nodes / 2 + 1, nodes, &mut rng)
            .expect("two nodes and more can share a secret");
        let ids: Vec<NodeId> = (1..=u64::from(nodes)).map(NodeId).collect();
        let address = ([127, 0, 0, 1], 0).into();
        let addresses = NodeAddresses { quic: address, api: address, nbd: address };
        let share =
            |(node, part): (&NodeId, &KeyPart)| ShareHolder { node: *node, share: part.index() };
        let custody = Custody {
            share_epoch: 1,
            threshold: nodes / 2 + 1,
            holders: ids.iter().zip(&dealing.parts).map(share).collect(),
            commitments: dealing.commitments.to_bytes(),
            sealed_for_recovery: sealed,
        };
        let master = custody.share_name(SecretName::Master);
        let mut state = State {
            map: ClusterMap::default(),
            now: Time(Duration::from_secs(60).as_micros() as u64),
            parties: BTreeMap::new(),
            coordinators: BTreeMap::new(),
            shares: ids
                .iter()
                .zip(dealing.parts)
                .map(|(node, part)| ((*node, master), part))
                .collect(),
            stopped: BTreeSet::new(),
            sessions: 0,
            ops: 0,
            written: BTreeMap::new(),
            read: BTreeMap::new(),
            listed: BTreeMap::new(),
        };
        let members = ids.iter().map(|id| (*id, format!("n{}", id.0), addresses.clone())).collect();
        state.must(&Command::InitCluster { cluster, nodes: members, custody, recovery });
        for node in ids {
            let store = StoreId(Uuid::new_v4());
            state.must(&Command::RegisterNode { node, addresses: addresses.clone() });
            state.must(&Command::RegisterStore(StoreStart::first(store, node, STARTED)));
            let disk = Arc::new(MemoryStore::new(store));
            let core = StoreCore::new(Arc::clone(&disk) as _, StoreConfig::default(), Time(0));
            let reader = ReadSide::new(Arc::clone(&disk) as _, core.fence());
            state.parties.insert(store, Party { node, disk, core, reader });
        }
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Puts a volume that was cut into the cluster's map under a name, as the running system's
    /// Raft group would, and starts its coordinator.
    ///
    /// # Errors
    /// When the map refuses it: the name or the identity is taken, say.
    pub fn add_volume(&self, name: &str, metadata: &ShardMetadata) -> Result<(), VolumeError> {
        let new = metadata.clone().into_new_volume(name.to_owned(), None, ReadMode::Lease)?;
        let mut state = self.lock();
        let no = match state.apply(&Command::CreateVolume(Box::new(new))) {
            Applied::Created(no) => no,
            Applied::Rejected(why) => return Err(VolumeError::Metadata(why.to_string())),
            other => return Err(VolumeError::Metadata(format!("{other:?}"))),
        };
        state.elect(no)
    }

    /// Puts a key epoch that [`rotate_keys`](crate::rotate_keys) made into the map. What comes back
    /// describes the volume from now on.
    ///
    /// # Errors
    /// When there is no such volume, or the key epoch does not follow on the current one.
    pub fn begin_key_epoch(
        &self,
        volume: VolumeId,
        key_epoch: KeyEpoch,
    ) -> Result<ShardMetadata, VolumeError> {
        let mut state = self.lock();
        let Volume { no, epoch, .. } = *state.volume(volume)?;
        let key_epoch = Box::new(key_epoch);
        match state.apply(&Command::AddKeyEpoch { volume: no, epoch, key_epoch }) {
            Applied::Rejected(why) => Err(VolumeError::Metadata(why.to_string())),
            _ => ShardMetadata::of(state.volume(volume)?),
        }
    }

    /// The blocks of a volume that have contents, and how old those are.
    ///
    /// # Errors
    /// When there is no such volume, or too little of it is in reach.
    pub fn list_blocks(&self, volume: VolumeId) -> Result<Vec<ListedBlock>, VolumeError> {
        let mut state = self.lock();
        let (no, groups) = {
            let volume = state.volume(volume)?;
            (volume.no, volume.groups.len())
        };
        let mut blocks = Vec::new();
        for group in (0..u16::try_from(groups).unwrap_or(u16::MAX)).map(GroupNo) {
            let mut after = None;
            loop {
                let done = |state: &mut State, op| state.listed.remove(&op);
                let list = state.run(no, |op| Event::List { op, group, after }, done);
                let list = list.map_err(|error| VolumeError::Unavailable(error.to_string()))?;
                blocks.extend(list.blocks);
                after = list.next;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(blocks)
    }

    /// Stops a node: its store and its custodian answer nothing any more.
    pub fn stop_node(&self, node: NodeId) {
        self.lock().stopped.insert(node);
    }

    /// Starts a stopped node: its store comes back with what it held, and catches up.
    pub fn start_node(&self, node: NodeId) {
        let mut state = self.lock();
        if !state.stopped.remove(&node) {
            return;
        }
        state.adopt();
        let stores: Vec<StoreId> = state.map.stores_of(node).collect();
        let volumes: Vec<VolumeNo> = state.coordinators.keys().copied().collect();
        for no in volumes {
            for store in &stores {
                state.link(no, *store);
            }
            state.settle(no);
        }
    }

    /// Lets time pass until every shard of a volume is in sync again.
    ///
    /// # Errors
    /// When that does not happen within ten seconds.
    pub fn heal(&self, volume: VolumeId) -> Result<(), VolumeError> {
        let mut state = self.lock();
        let no = state.volume(volume)?.no;
        for _ in 0..TICKS_MAX {
            let full = state.volume(volume)?.is_full();
            let quiet = state.coordinators.get(&no).is_some_and(Coordinator::is_quiet);
            if full && quiet {
                return Ok(());
            }
            state.tick(no);
        }
        Err(VolumeError::Unavailable("it did not heal in time".into()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn must(&mut self, command: &Command) {
        let applied = self.apply(command);
        assert!(!matches!(applied, Applied::Rejected(_)), "{command:?}: {applied:?}");
    }

    /// Applies a command, and lets everybody know who can hear of it.
    fn apply(&mut self, command: &Command) -> Applied {
        let applied = self.map.apply(command);
        self.adopt();
        applied
    }

    fn adopt(&mut self) {
        for party in self.parties.values_mut().filter(|p| !self.stopped.contains(&p.node)) {
            party.core.set_map(&self.map).expect("memory does not fail");
        }
        let map = Arc::new(self.map.clone());
        for coordinator in self.coordinators.values_mut() {
            coordinator.handle(self.now, Event::Map(Arc::clone(&map)));
        }
    }

    fn volume(&self, id: VolumeId) -> Result<&Volume, VolumeError> {
        let found = self.map.volumes.values().find(|volume| volume.id == id);
        found.ok_or(VolumeError::NoVolume(id))
    }

    /// Gives the volume a coordinator of a new epoch, which settles what the last one left.
    fn elect(&mut self, no: VolumeNo) -> Result<(), VolumeError> {
        let refused = |what: String| VolumeError::Unavailable(what);
        let epoch = self.map.volumes.get(&no).map(|volume| volume.epoch);
        let epoch = epoch.ok_or_else(|| refused(format!("there is no {no}")))?;
        let (node, incarnation) = (HERE, STARTED);
        if let Applied::Rejected(why) =
            self.apply(&Command::Elect { volume: no, epoch, node, incarnation })
        {
            return Err(refused(why.to_string()));
        }
        if let Entry::Vacant(entry) = self.coordinators.entry(no) {
            let config = CoordinatorConfig::new(Seat { node, incarnation }, no);
            entry.insert(Coordinator::new(config));
            for store in self.parties.keys().copied().collect::<Vec<_>>() {
                self.link(no, store);
            }
        }
        self.adopt();
        for _ in 0..TICKS_MAX {
            self.settle(no);
            if self.map.volumes.get(&no).is_some_and(|volume| volume.activated) {
                return Ok(());
            }
            self.tick(no);
        }
        Err(refused("too few stores answer".into()))
    }

    fn link(&mut self, no: VolumeNo, store: StoreId) {
        self.sessions += 1;
        let (now, session) = (self.now, self.sessions);
        if let Some(coordinator) = self.coordinators.get_mut(&no) {
            coordinator.handle(now, Event::LinkDown { store });
            coordinator.handle(now, Event::LinkUp { store, session });
        }
    }

    fn tick(&mut self, no: VolumeNo) {
        self.now = self.now.after(TICK);
        self.feed(no, Event::Tick);
        self.settle(no);
    }

    fn feed(&mut self, no: VolumeNo, event: Event) {
        if let Some(coordinator) = self.coordinators.get_mut(&no) {
            coordinator.handle(self.now, event);
        }
    }

    /// Carries frames and answers until nothing moves.
    fn settle(&mut self, no: VolumeNo) {
        loop {
            let actions = self.coordinators.get_mut(&no).map(Coordinator::drain);
            let actions = actions.unwrap_or_default();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    Action::Send { store, frame } => {
                        if let Some(reply) = self.deliver(store, frame) {
                            self.feed(no, Event::Reply { store, reply });
                        }
                    }
                    Action::Propose(command) => {
                        if let Applied::Rejected(why) = self.apply(&command) {
                            self.feed(no, Event::Refused { command, why });
                        }
                    }
                    Action::WriteDone { op, result } => {
                        self.written.insert(op, result);
                    }
                    Action::ReadDone { op, result } => {
                        self.read.insert(op, result);
                    }
                    Action::Listed { op, result } => {
                        self.listed.insert(op, result);
                    }
                    Action::Alarm(alarm) => tracing::warn!(?alarm, "coordinator"),
                    Action::Fault { store } => tracing::warn!(%store, "had something wrong"),
                    Action::Scrubbed { group, report } => {
                        tracing::warn!(%group, ?report, "a scrub that nobody asked for");
                    }
                    Action::SnapshotDone { op, result } => {
                        tracing::warn!(op, ?result, "a snapshot that nobody asked for");
                    }
                }
            }
        }
    }

    /// A frame to a store, and its answer.
    fn deliver(&mut self, to: StoreId, frame: Frame) -> Option<Reply> {
        let party = self.parties.get_mut(&to)?;
        if self.stopped.contains(&party.node) {
            return None;
        }
        if frame.requests.iter().all(|request| request.ask.is_read()) {
            return Some(party.reader.handle(HERE, &frame).expect("memory does not fail"));
        }
        let reply = party.core.handle(self.now, HERE, frame).expect("memory does not fail");
        let (batch, _) = party.core.take_batch();
        party.disk.commit(batch).expect("memory does not fail");
        party.core.committed();
        reply
    }

    /// Feeds an operation and waits for its end.
    fn run<T>(
        &mut self,
        no: VolumeNo,
        event: impl FnOnce(u64) -> Event,
        done: impl Fn(&mut Self, u64) -> Option<Result<T, OpError>>,
    ) -> Result<T, OpError> {
        self.ops += 1;
        let op = self.ops;
        self.feed(no, event(op));
        self.settle(no);
        for _ in 0..TICKS_MAX {
            if let Some(result) = done(self, op) {
                return result;
            }
            self.tick(no);
        }
        Err(OpError::Unreadable)
    }
}

/// The coordinator of a volume, as its gateway sees it.
struct MemoryRows {
    cluster: MemoryCluster,
    no: VolumeNo,
    generation: u32,
}

impl Rows for MemoryRows {
    fn write(&self, blocks: Vec<BlockWrite>) -> smalti_gateway::BoxFuture<Result<(), OpError>> {
        let mut state = self.cluster.lock();
        let done = |state: &mut State, op| state.written.remove(&op);
        let result = state.run(self.no, |op| Event::Write { op, blocks }, done);
        ready(result).boxed()
    }

    fn read(
        &self,
        blocks: Vec<(RowAddr, Slot)>,
    ) -> smalti_gateway::BoxFuture<Result<Vec<Bytes>, OpError>> {
        let mut state = self.cluster.lock();
        let done = |state: &mut State, op| state.read.remove(&op);
        let generation = self.generation;
        let read = |op| Event::Read { op, blocks, snap: None, generation };
        let result = state.run(self.no, read, done);
        ready(result).boxed()
    }
}

impl Cluster for MemoryCluster {
    fn id(&self) -> ClusterId {
        self.lock().map.cluster
    }

    fn stores(&self) -> Vec<Candidate> {
        let state = self.lock();
        let stores = state.map.stores.iter();
        let candidate = |(id, store): (&StoreId, &smalti_map::Store)| {
            let domain = state.map.domain_of(store.node);
            Candidate { store: *id, node: store.node, domain, weight: 1 }
        };
        stores.map(candidate).collect()
    }

    fn custody(&self) -> Custody {
        self.lock().map.custody.clone()
    }

    fn custodians(&self) -> Custodians {
        self.lock().map.custodians.clone()
    }

    fn recovery(&self) -> Option<Recovery> {
        self.lock().map.recovery.clone()
    }

    fn unix_seconds(&self) -> u64 {
        self.lock().now.0 / 1_000_000
    }

    fn keep(
        &self,
        custodian: NodeId,
        secret: SecretName,
        share_epoch: u32,
        part: &KeyPart,
        commitments: &Commitments,
    ) -> BoxFuture<'_, Result<(), String>> {
        let mut state = self.lock();
        let kept = if state.stopped.contains(&custodian) {
            Err("stopped".into())
        } else {
            verify_part(part, commitments).map_err(|error| error.to_string())
        };
        if kept.is_ok() {
            let dealing = Dealt::of(&commitments.to_bytes());
            let share = ShareName { secret, share_epoch, dealing };
            state.shares.insert((custodian, share), part.clone());
        }
        ready(kept).boxed()
    }

    fn release(
        &self,
        custodian: NodeId,
        share: ShareName,
    ) -> BoxFuture<'_, Result<KeyPart, String>> {
        let state = self.lock();
        let share = state.shares.get(&(custodian, share)).cloned();
        let share = share.filter(|_| !state.stopped.contains(&custodian));
        ready(share.ok_or_else(|| "stopped, or without that share".into())).boxed()
    }

    fn session(&self, volume: VolumeId) -> BoxFuture<'_, Result<Session, VolumeError>> {
        let mut state = self.lock();
        let begun = (|| {
            let no = state.volume(volume)?.no;
            // A new epoch fences the gateway before this one: its late writes are refused.
            state.elect(no)?;
            let volume = state.volume(volume)?;
            let (generation, snap) = (volume.writer_gen, volume.snap_seq);
            let rows = Arc::new(MemoryRows { cluster: self.clone(), no, generation });
            Ok(Session { rows, generation, snap, now: state.now })
        })();
        ready(begun).boxed()
    }
}

impl Volumes for MemoryCluster {
    fn device(&self, volume: VolumeId) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>, VolumeError>> {
        async move {
            let metadata = ShardMetadata::of(self.lock().volume(volume)?)?;
            let gateway = unshard_volume(self, volume, &metadata).await?;
            Ok(Arc::new(gateway) as Arc<dyn BlockDevice>)
        }
        .boxed()
    }
}

impl std::fmt::Debug for MemoryCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryCluster").finish_non_exhaustive()
    }
}

mod recovery;

#[cfg(test)]
mod tests;
