//! A cluster whose shell is the real one: stores, coders and what lies between them. The map is a
//! value behind a lock that everybody hears of late.

use super::net::MemoryNet;
use super::probe;
use super::rng::Rng;
use crate::coder::{self, CoderArgs, CoderHandle, CoderMsg, Propose, VolumeRepairs};
use crate::shard_store::{self, Fatal, ShardStoreArgs, ShardStoreMsg, StoreHandle, StoreSessions};
use crate::transport::Transport;
use futures::future::BoxFuture;
use ractor::ActorRef;
use smalti_map::{
    Applied, ClusterMap, Command, Coordinator, Custody, KeyEpoch, NewVolume, NodeAddresses,
    ReadMode, ShareHolder, StoreStart,
};
use smalti_raft::ProposeError;
use smalti_rowcommit::CoordinatorConfig;
use smalti_rowcommit::coordinator::Phase;
use smalti_rowcommit::store::StoreConfig;
use smalti_storage::ids::{
    ClusterId, Incarnation, KeyEpochNo, NodeId, StoreId, VolumeId, VolumeNo,
};
use smalti_storage::store::ShardStore;
use smalti_storage::store::memory::MemoryStore;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// How long the cluster may take to be whole, and everything to end, once nothing is wrong.
pub(super) const HEALING: Duration = Duration::from_secs(120);

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) data: u8,
    pub(super) parity: u8,
    pub(super) min_insync: u8,
    pub(super) volumes: u64,
    pub(super) record_len: usize,
    /// How late news of the map are, at most.
    pub(super) map_delay: Duration,
    /// Of 100 proposals, how many are lost, or their answers are.
    pub(super) map_lost: u64,
    /// How long a store may owe an answer.
    pub(super) suspect_after: Duration,
}

impl Setup {
    /// Small and without faults.
    pub(super) fn plain(data: u8, parity: u8) -> Self {
        Self {
            data,
            parity,
            min_insync: data,
            volumes: 1,
            record_len: 64,
            map_delay: Duration::from_millis(2),
            map_lost: 0,
            suspect_after: Duration::from_millis(500),
        }
    }

    pub(super) fn nodes(&self) -> u64 {
        u64::from(self.data + self.parity)
    }
}

/// The map, as a group of nodes would keep it.
#[derive(Clone)]
pub(super) struct MapMachine {
    rng: Arc<Mutex<Rng>>,
    setup: Arc<Setup>,
    map: Arc<Mutex<Arc<ClusterMap>>>,
    /// In the order of the nodes: those who wait at a watch channel are woken in any order.
    news: Arc<Mutex<Vec<mpsc::Sender<()>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MapMachine {
    fn apply(&self, command: &Command) -> Applied {
        let applied = Arc::make_mut(&mut lock(&self.map)).apply(command);
        for news in lock(&self.news).iter() {
            // What waits there already is news enough.
            let _ = news.try_send(());
        }
        applied
    }

    fn must(&self, command: &Command) -> Applied {
        let applied = self.apply(command);
        assert!(!matches!(applied, Applied::Rejected(_)), "{command:?}: {applied:?}");
        applied
    }

    fn draw<R>(&self, draw: impl FnOnce(&mut Rng) -> R) -> R {
        draw(&mut lock(&self.rng))
    }

    fn delay(&self) -> Duration {
        let most = u64::try_from(self.setup.map_delay.as_micros()).unwrap_or(0);
        Duration::from_micros(self.draw(|rng| rng.below(most + 1)))
    }

    pub(super) fn view(&self) -> Arc<ClusterMap> {
        Arc::clone(&lock(&self.map))
    }
}

impl Propose for MapMachine {
    fn propose(&self, command: Command) -> BoxFuture<'static, Result<Applied, ProposeError>> {
        let machine = self.clone();
        Box::pin(async move {
            sleep(machine.delay()).await;
            let lost = || Err(ProposeError::Timeout { last: "lost".into() });
            if machine.draw(|rng| rng.percent(machine.setup.map_lost)) {
                return lost();
            }
            let applied = machine.apply(&command);
            sleep(machine.delay()).await;
            if machine.draw(|rng| rng.percent(machine.setup.map_lost)) {
                return lost();
            }
            Ok(applied)
        })
    }
}

/// One node: its store, and what runs on it.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) handle: StoreHandle,
    pub(super) disk: Arc<MemoryStore>,
    actor: ActorRef<ShardStoreMsg>,
    ended: oneshot::Receiver<()>,
    fatal: mpsc::Receiver<Fatal>,
}

/// The cluster.
pub(super) struct Cluster {
    pub(super) setup: Arc<Setup>,
    pub(super) machine: MapMachine,
    pub(super) nodes: Vec<Node>,
    pub(super) coders: Vec<CoderHandle>,
    /// Links, sessions, proposals.
    pub(super) tasks: TaskTracker,
    /// Cancelled when all processes are about to end.
    pub(super) stopping: CancellationToken,
    /// Those who carry news of the map.
    news: Vec<tokio::task::JoinHandle<()>>,
}

/// Identities of stores are drawn once per process: actors are registered by them.
pub(super) fn fresh_stores(count: u64) -> Vec<StoreId> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let first = NEXT.fetch_add(count, Ordering::Relaxed);
    (first..first + count).map(|no| StoreId(Uuid::from_u128(u128::from(no)))).collect()
}

/// A map with all nodes, and volumes whose coordinators are elected.
pub(super) fn found(setup: &Arc<Setup>, stores: &[StoreId], rng: &mut Rng) -> MapMachine {
    let machine = MapMachine {
        rng: Arc::new(Mutex::new(rng.fork())),
        setup: Arc::clone(setup),
        map: Arc::default(),
        news: Arc::default(),
    };
    let at = ([127, 0, 0, 1], 1).into();
    let addresses = NodeAddresses { quic: at, api: at, nbd: at };
    let holders = vec![ShareHolder { node: NodeId(1), share: 1 }];
    let custody = Custody {
        share_epoch: 1,
        threshold: 1,
        holders,
        commitments: Vec::new(),
        sealed_for_recovery: Vec::new(),
    };
    let nodes = (1..=setup.nodes()).map(|no| (NodeId(no), format!("n{no}"), addresses.clone()));
    let cluster = ClusterId(Uuid::from_u128(1));
    let nodes = nodes.collect();
    machine.must(&Command::InitCluster {
        cluster,
        nodes,
        custody: custody.clone(),
        recovery: None,
    });
    for (node, store) in (1..).map(NodeId).zip(stores) {
        machine.must(&Command::RegisterNode { node, addresses: addresses.clone() });
        let first = StoreStart::first(*store, node, Incarnation(1));
        machine.must(&Command::RegisterStore(first));
    }
    for volume in 1..=setup.volumes {
        let mut group = stores.to_vec();
        let turn = rng.index(group.len());
        group.rotate_left(turn);
        let key_epoch = KeyEpoch {
            no: KeyEpochNo(1),
            timestamp: 1,
            since: 0,
            sealed: 0,
            shard_keys: vec![vec![1]; usize::from(setup.data)],
            place_key: vec![1],
            custody: custody.clone(),
        };
        let created = machine.must(&Command::CreateVolume(Box::new(NewVolume {
            id: VolumeId(Uuid::from_u128(u128::from(volume))),
            name: format!("vol{volume}"),
            size: 1 << 30,
            data: setup.data,
            parity: setup.parity,
            shard_size: 1 << 20,
            min_insync: setup.min_insync,
            read_mode: ReadMode::Lease,
            groups: vec![group],
            key_epoch,
        })));
        let Applied::Created(volume) = created else { panic!("{created:?}") };
        let node = NodeId(1 + rng.below(setup.nodes()));
        let epoch = machine.view().volumes[&volume].epoch;
        machine.must(&Command::Elect { volume, epoch, node, incarnation: Incarnation(1) });
    }
    machine
}

impl Cluster {
    /// Starts one over a network in memory.
    pub(super) async fn over(net: &MemoryNet, setup: Setup, rng: &mut Rng) -> Self {
        let serve = |node, sessions| net.serve(node, sessions);
        Self::start(setup, rng, |node| net.of(node), serve, |_, disk| disk).await
    }

    /// Starts stores, whose disks `wrap` may stand before, and a coder for each volume.
    pub(super) async fn start<T: Transport>(
        setup: Setup,
        rng: &mut Rng,
        transport: impl Fn(NodeId) -> T,
        serve: impl Fn(NodeId, StoreSessions),
        wrap: impl Fn(NodeId, Arc<MemoryStore>) -> Arc<dyn ShardStore>,
    ) -> Self {
        let setup = Arc::new(setup);
        let stores = fresh_stores(setup.nodes());
        let machine = found(&setup, &stores, rng);
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        let mut nodes = Vec::new();
        for (id, store) in (1..).map(NodeId).zip(&stores) {
            let disk = Arc::new(MemoryStore::new(*store));
            let (fatal_tx, fatal) = mpsc::channel(1);
            let (ended_tx, ended) = oneshot::channel();
            let args = ShardStoreArgs {
                store: wrap(id, Arc::clone(&disk)),
                config: StoreConfig::default(),
                fatal: fatal_tx,
                ended: ended_tx,
            };
            let (actor, handle) = shard_store::start(args).await.expect("a store starts");
            let admitted = ShardStoreMsg::Admitted(super::as_it_is(disk.opened()));
            actor.cast(admitted).expect("it has just started");
            serve(id, StoreSessions { stores: vec![handle.clone()], tasks: tasks.clone() });
            nodes.push(Node { id, handle, disk, actor, ended, fatal });
        }
        let mut coders: Vec<CoderHandle> = Vec::new();
        let map = machine.view();
        for volume in map.volumes.values() {
            let me = volume.coordinator.expect("elected above");
            let sessions = Arc::new(AtomicU64::new(1));
            let local = nodes.iter().find(|node| node.id == me.node).expect("a node");
            let mut config = CoordinatorConfig::new(me, volume.no);
            config.record_len = setup.record_len;
            config.suspect_after = setup.suspect_after;
            let (tell, told) = watch::channel(VolumeRepairs::default());
            let args = CoderArgs {
                told: tell,
                config,
                unheard: Vec::new(),
                transport: transport(me.node),
                local: Arc::new(vec![local.handle.clone()]),
                map: Arc::new(machine.clone()),
                sessions,
                tasks: tasks.clone(),
                stopping: stopping.clone(),
                scrub_every: Duration::ZERO,
                slow: watch::Sender::default().subscribe(),
            };
            let actor = coder::start(args).await.expect("a coder starts");
            coders.push(CoderHandle::new(volume.no, actor, told));
        }
        let mut news = Vec::new();
        for node in &nodes {
            let (actor, here) = (node.actor.clone(), node.id);
            let of = |map: &ClusterMap, volume| {
                map.volumes.get(&volume).and_then(|volume| volume.coordinator)
            };
            let coders: Vec<CoderHandle> = coders
                .iter()
                .filter(|coder| {
                    of(&map, coder.volume()).map(|me: Coordinator| me.node) == Some(here)
                })
                .cloned()
                .collect();
            let machine = machine.clone();
            let (tell, mut told) = mpsc::channel(1);
            let _ = tell.try_send(());
            lock(&machine.news).push(tell);
            news.push(tokio::spawn(async move {
                while told.recv().await.is_some() {
                    sleep(machine.delay()).await;
                    let map = machine.view();
                    // Either has ended: so has the test.
                    let _ = actor.cast(ShardStoreMsg::Map(Arc::clone(&map)));
                    for coder in &coders {
                        let _ = coder.actor().cast(CoderMsg::Map(Arc::clone(&map)));
                    }
                }
            }));
        }
        Self { setup, machine, nodes, coders, tasks, stopping, news }
    }

    pub(super) fn stores(&self) -> Vec<StoreId> {
        self.nodes.iter().map(|node| node.handle.id()).collect()
    }

    /// Why the cluster is not at rest with everything in sync, if it is not.
    async fn unrest(&self) -> Option<String> {
        for coder in &self.coders {
            let volume = coder.volume();
            let Some(status) = coder.status().await else {
                return Some(format!("the coder of {volume} has ended"));
            };
            let stats = status.stats;
            let open = stats.learners + stats.slots_out + stats.suspects + stats.in_flight;
            if status.phase != Phase::Active || open > 0 {
                return Some(format!("{volume}: {status:?}"));
            }
        }
        None
    }

    /// Waits until every volume serves and is whole.
    pub(super) async fn whole(&self) -> Result<(), String> {
        let mut why = String::new();
        let whole = async {
            while let Some(unrest) = self.unrest().await {
                why = unrest;
                sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = timeout(HEALING, whole).await.is_ok();
        if in_time { Ok(()) } else { Err(format!("not whole after {HEALING:?}: {why}")) }
    }

    pub(super) fn store_of(&self, volume: VolumeNo, slot: usize) -> &Node {
        let map = self.machine.view();
        let store = map.volumes[&volume].groups[0].slots[slot];
        self.nodes.iter().find(|node| node.handle.id() == store).expect("a store of the cluster")
    }

    /// Ends everything in order; says what of it does not end, and what the probes saw.
    pub(super) async fn stop(mut self) -> Result<probe::Found, String> {
        for coder in &self.coders {
            coder.release().await;
            coder.actor().stop(None);
        }
        for news in &self.news {
            news.abort();
        }
        let stores = self.stores();
        for node in &mut self.nodes {
            if let Ok(why) = node.fatal.try_recv() {
                return Err(format!("{} failed: {why:?}", node.id));
            }
            node.actor.cast(ShardStoreMsg::Stop).map_err(|error| error.to_string())?;
            let ended = timeout(HEALING, &mut node.ended).await;
            ended
                .map_err(|_| format!("the store of {} does not end", node.id))?
                .map_err(|_| format!("the store of {} did not end in order", node.id))?;
        }
        // Sessions hold a handle to their store.
        drop(self.nodes);
        self.tasks.close();
        if timeout(HEALING, self.tasks.wait()).await.is_err() {
            return Err(format!("{} tasks are left over", self.tasks.len()));
        }
        probe::check(&stores)
    }
}
