//! The first state: a volume that node 0 has taken over, everybody connected, nothing under way.
//! It has no leases: whether it asks for some before something else is up to its clock.

use super::clients::Clients;
use super::perform::PASS;
use super::state::{CoordinatorSide, Left, Session, State, StoreSide, VOLUME, node_id, store_id};
use super::step::Step;
use super::{Bounds, Model};
use crate::sim::client::RECORD_LEN;
use smalti_map::{
    Applied, ClusterMap, Command, Coordinator as Coordinating, Custody, KeyEpoch, NewVolume,
    NodeAddresses, ReadMode, ShareHolder, StoreStart,
};
use smalti_rowcommit::coordinator::Coordinator;
use smalti_rowcommit::store::StoreConfig;
use smalti_rowcommit::{CoordinatorConfig, Event, StoreCore, Time};
use smalti_storage::ids::{ClusterId, Incarnation, KeyEpochNo, RunId, VolumeId};
use smalti_storage::store::memory::MemoryStore;
use smalti_storage::store::{Admission, Opened, ShardStore};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Two steps of time are longer than it and its margins, one is not.
const LEASE: Duration = Duration::from_millis(1500);

/// Less than a step of time; a third of one is less than half of it, so that who is awake notices.
const PATIENCE: Duration = Duration::from_millis(600);

/// More than there are rows: who is dropped from a full cache is not looked at.
const CACHED_ROWS: usize = 1024;

/// When it begins; early enough that nothing lies before the first moment.
const BEGINNING: Time = Time(1_000_000_000);

pub(super) fn store_config() -> StoreConfig {
    // Nothing is kept between frames: the disk is the truth, and forks of it are cheap.
    StoreConfig { lease_max: LEASE, cached_rows: 0 }
}

pub(super) fn coordinator(at: usize, incarnation: Incarnation) -> Coordinator {
    let me = Coordinating { node: node_id(at), incarnation };
    Coordinator::new(CoordinatorConfig {
        record_len: RECORD_LEN,
        lease: LEASE,
        suspect_after: PATIENCE,
        takeover_patience: PATIENCE,
        power_patience: PATIENCE,
        stall_patience: PATIENCE,
        cached_rows: CACHED_ROWS,
        catchup_window: 2,
        // What it remembers is no part of a state.
        govern: false,
        ..CoordinatorConfig::new(me, VOLUME)
    })
}

fn addresses(at: usize) -> NodeAddresses {
    let port = 1000 + u16::try_from(at).unwrap_or(0);
    let to = ([127, 0, 0, 1], port).into();
    NodeAddresses { quic: to, api: to, nbd: to }
}

fn accept(map: &mut ClusterMap, command: &Command) -> Result<Applied, String> {
    match map.apply(command) {
        Applied::Rejected(why) => Err(format!("{command:?} was refused: {why}")),
        applied => Ok(applied),
    }
}

/// Registers a process and its store.
pub(super) fn register(
    map: &mut ClusterMap,
    at: usize,
    disk: &MemoryStore,
) -> Result<Incarnation, String> {
    let node = node_id(at);
    let applied = accept(map, &Command::RegisterNode { node, addresses: addresses(at) })?;
    let Applied::Registered(of) = applied else {
        return Err(format!("node {at} could not register: {applied:?}"));
    };
    let Opened { id: store, incarnation, clean, run: last, announced, .. } = disk.opened();
    // Disks do not go back here, so a count tells runs from each other.
    let run = RunId(Uuid::from_u128(u128::from(incarnation.0)));
    let start = StoreStart { store, node, of, incarnation, run, last, clean, announced };
    let applied = accept(map, &Command::RegisterStore(start))?;
    let Applied::RegisteredStore { incarnation, clean } = applied else {
        return Err(format!("the store of node {at} could not register: {applied:?}"));
    };
    disk.admit(Admission { run, incarnation, clean }).map_err(|error| error.to_string())?;
    Ok(of)
}

fn first_map(bounds: &Bounds, disks: &[Arc<MemoryStore>]) -> Result<ClusterMap, String> {
    let mut map = ClusterMap::default();
    let holders = vec![ShareHolder { node: node_id(0), share: 1 }];
    let custody = Custody {
        share_epoch: 1,
        threshold: 1,
        holders,
        commitments: vec![7],
        sealed_for_recovery: Vec::new(),
    };
    let nodes = (0..disks.len()).map(|at| (node_id(at), format!("n{at}"), addresses(at)));
    let (cluster, nodes) = (ClusterId(Uuid::from_u128(1)), nodes.collect());
    accept(
        &mut map,
        &Command::InitCluster { cluster, nodes, custody: custody.clone(), recovery: None },
    )?;
    for (at, disk) in disks.iter().enumerate() {
        register(&mut map, at, disk)?;
    }
    let key_epoch = KeyEpoch {
        no: KeyEpochNo(1),
        timestamp: 1,
        since: 0,
        sealed: 0,
        shard_keys: vec![vec![1]; usize::from(bounds.data)],
        place_key: vec![1],
        custody,
    };
    let volume = NewVolume {
        id: VolumeId(Uuid::from_u128(2)),
        name: "vol".into(),
        size: 1 << 30,
        data: bounds.data,
        parity: bounds.parity,
        shard_size: 1 << 20,
        min_insync: bounds.data,
        read_mode: ReadMode::Lease,
        groups: vec![(0..disks.len()).map(store_id).collect()],
        key_epoch,
    };
    accept(&mut map, &Command::CreateVolume(Box::new(volume)))?;
    let (volume, node) = (VOLUME, node_id(0));
    let (epoch, incarnation) = (map.volumes[&VOLUME].epoch, map.nodes[&node].incarnation);
    accept(&mut map, &Command::Elect { volume, epoch, node, incarnation })?;
    Ok(map)
}

impl Model {
    /// The first state. Node 0 is elected and takes over, in the only order there is without
    /// faults; nobody has seen anything yet, so what another order would do is not lost.
    pub(super) fn beginning(&self) -> Result<State, String> {
        let count = self.bounds.slots();
        let disks: Vec<_> = (0..count).map(|at| Arc::new(MemoryStore::new(store_id(at)))).collect();
        let map = first_map(&self.bounds, &disks)?;
        let store = |disk: &Arc<MemoryStore>| -> Result<Arc<StoreSide>, String> {
            let shared: Arc<dyn ShardStore> = Arc::<MemoryStore>::clone(disk);
            let mut core = StoreCore::new(shared, store_config(), BEGINNING);
            core.set_map(&map).map_err(|error| error.to_string())?;
            let disk = Arc::clone(disk);
            Ok(Arc::new(StoreSide { disk, core: Some(core), map: 0, committing: None }))
        };
        let node = |at| {
            let incarnation = Incarnation(1);
            let core = coordinator(at, incarnation);
            Some(Arc::new(CoordinatorSide { core, incarnation, map: 0, sessions: 0 }))
        };
        let session = |at| Session { number: Some(at as u64 + 1), ..Session::default() };
        let mut state = State {
            now: BEGINNING,
            maps: Vec::new(),
            log: 0,
            stores: disks.iter().map(store).collect::<Result<_, _>>()?,
            coordinators: (0..count).map(node).collect(),
            sessions: (0..count)
                .map(|_| (0..count).map(|at| Arc::new(session(at))).collect())
                .collect(),
            proposals: BTreeMap::new(),
            clients: Arc::new(Clients::new(
                self.bounds.ops.len(),
                self.bounds.data,
                self.bounds.fresh,
            )),
            left: Left { crashes: 0, elections: 0, drops: 0, passes: 0 },
            bad: None,
            digest: 0,
        };
        state.note_map(map.clone())?;
        let map = Arc::new(map);
        for from in 0..count {
            for to in 0..count {
                let (store, session) = (store_id(to), to as u64 + 1);
                let up = Event::LinkUp { store, session };
                self.tell(&mut state, from, up).map_err(|bad| format!("{bad:?}"))?;
            }
            if let Some(side) = &mut state.coordinators[from] {
                Arc::make_mut(side).sessions = count as u64;
            }
            self.tell(&mut state, from, Event::Map(Arc::clone(&map)))
                .map_err(|bad| format!("{bad:?}"))?;
        }
        self.run_down(&mut state)?;
        if !self.bounds.fresh {
            let generation = super::state::volume(state.map()).writer_gen;
            let write = Clients::first(self.bounds.data, generation);
            self.tell(&mut state, 0, write).map_err(|bad| format!("{bad:?}"))?;
            self.run_down(&mut state)?;
            // Time for the watermark; the leases that are asked for too will have run out.
            state.now = state.now.after(PASS / 4);
            self.tell(&mut state, 0, Event::Tick).map_err(|bad| format!("{bad:?}"))?;
            self.run_down(&mut state)?;
        }
        // What lies before is of no use to anybody who starts later.
        let at_last = state.maps.split_off(state.maps.len() - 1);
        state.maps = at_last;
        for at in 0..count {
            Arc::make_mut(&mut state.stores[at]).map = 0;
            if let Some(side) = &mut state.coordinators[at] {
                Arc::make_mut(side).map = 0;
            }
        }
        // No store has started lately.
        state.now = state.now.after(4 * PASS);
        let Bounds { crashes, elections, drops, passes, .. } = self.bounds;
        state.left = Left { crashes, elections, drops, passes };
        debug_assert!(PASS < LEASE && PASS * 2 > LEASE && PASS > PATIENCE);
        state.seal();
        Ok(state)
    }

    /// Lets everything happen that happens by itself, until nothing does.
    fn run_down(&self, state: &mut State) -> Result<(), String> {
        loop {
            let mut steps = Vec::new();
            self.list(state, &mut steps);
            let quiet = |step: &Step| matches!(step, Step::Begin { .. } | Step::Tick { .. });
            let Some(step) = steps.into_iter().find(|step| !quiet(step)) else { return Ok(()) };
            self.perform(state, &step).map_err(|bad| format!("{bad:?}"))?;
            state.skip_maps();
        }
    }
}
