//! One store and links to it, with a party that plays the coder: it sends what a test wants and
//! takes what comes.

use super::clients::{row, wid};
use super::cluster::{MapMachine, Setup, found, fresh_stores};
use super::rng::Rng;
use crate::coder::CoderMsg;
use crate::coder::link::{LinkArgs, LinkHandle};
use crate::shard_store::{self, Fatal, ShardStoreArgs, ShardStoreMsg, StoreHandle, StoreSessions};
use crate::transport::Transport;
use bytes::Bytes;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use smalti_rowcommit::msg::{Answer, Ask, Frame, Reply, Request, Update};
use smalti_rowcommit::store::StoreConfig;
use smalti_storage::ids::{
    Epoch, GroupNo, NodeId, RowAddr, RowSlot, RunId, Slot, SlotSet, StoreId, Ver, VolumeNo,
};
use smalti_storage::store::memory::MemoryStore;
use smalti_storage::store::{
    Admission, Batch, ChangeIndex, Opened, ShardStore, SlotVersions, Space, StoreError,
    VersionMeta, VolumeState,
};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

/// Longer than anything takes on a crowded machine.
pub(super) const LONG: Duration = Duration::from_secs(60);

/// Counts bytes that somebody still holds on to, however they are passed on.
#[derive(Clone, Debug, Default)]
pub(super) struct Gauge(Arc<AtomicUsize>);

struct Held {
    bytes: Arc<[u8]>,
    gauge: Gauge,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.0.fetch_sub(self.bytes.len(), Ordering::SeqCst);
    }
}

impl Gauge {
    /// The same bytes again, counted anew: a test may have gigabytes in flight without the memory.
    pub(super) fn count(&self, bytes: &Arc<[u8]>) -> Bytes {
        self.0.fetch_add(bytes.len(), Ordering::SeqCst);
        Bytes::from_owner(Held { bytes: Arc::clone(bytes), gauge: self.clone() })
    }

    pub(super) fn held(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A disk whose commits hang while it is held, and whose records are counted when they are read.
#[derive(Debug, Default)]
pub(super) struct Disk {
    held: Mutex<bool>,
    released: Condvar,
    /// Commits that hang now.
    pub(super) hanging: AtomicUsize,
    pub(super) read: Gauge,
}

impl Disk {
    pub(super) fn hold(&self, held: bool) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
        self.released.notify_all();
    }

    fn pass(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.hanging.fetch_add(1, Ordering::SeqCst);
        while *held {
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        self.hanging.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The store in memory behind such a disk.
pub(super) struct Watched {
    pub(super) store: Arc<MemoryStore>,
    pub(super) disk: Arc<Disk>,
}

impl ShardStore for Watched {
    fn opened(&self) -> Opened {
        self.store.opened()
    }

    fn announce(&self, run: RunId) -> Result<(), StoreError> {
        self.store.announce(run)
    }

    fn admit(&self, admission: Admission) -> Result<(), StoreError> {
        self.store.admit(admission)
    }

    fn versions(&self, at: RowSlot) -> Result<Vec<VersionMeta>, StoreError> {
        self.store.versions(at)
    }

    fn head(&self, at: RowSlot) -> Result<Option<VersionMeta>, StoreError> {
        self.store.head(at)
    }

    fn meta(&self, at: RowSlot, ver: Ver) -> Result<Option<VersionMeta>, StoreError> {
        self.store.meta(at, ver)
    }

    fn record(&self, at: RowSlot, ver: Ver) -> Result<Option<Bytes>, StoreError> {
        let record = self.store.record(at, ver)?;
        Ok(record.map(|record| self.disk.read.count(&Arc::from(record.as_ref()))))
    }

    fn records(&self, wanted: &[(RowSlot, Ver)]) -> Vec<Result<Option<Bytes>, StoreError>> {
        wanted.iter().map(|(at, ver)| self.record(*at, *ver)).collect()
    }

    fn scan(
        &self,
        volume: VolumeNo,
        group: GroupNo,
        after: Option<RowSlot>,
        limit: usize,
    ) -> Result<Vec<SlotVersions>, StoreError> {
        self.store.scan(volume, group, after, limit)
    }

    fn prepared(&self, volume: VolumeNo) -> Result<Vec<(RowSlot, Ver)>, StoreError> {
        self.store.prepared(volume)
    }

    fn volume(&self, volume: VolumeNo) -> Result<VolumeState, StoreError> {
        self.store.volume(volume)
    }

    fn index(&self, volume: VolumeNo, group: GroupNo) -> Result<Option<ChangeIndex>, StoreError> {
        self.store.index(volume, group)
    }

    fn changed(
        &self,
        volume: VolumeNo,
        group: GroupNo,
        after: Option<RowAddr>,
        limit: usize,
    ) -> Result<Vec<RowAddr>, StoreError> {
        self.store.changed(volume, group, after, limit)
    }

    fn volumes(&self) -> Result<Vec<VolumeNo>, StoreError> {
        self.store.volumes()
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.disk.pass();
        self.store.commit(batch)
    }

    fn space(&self) -> Result<Space, StoreError> {
        self.store.space()
    }

    fn close(&self) -> Result<(), StoreError> {
        self.store.close()
    }
}

/// What a link told its coder.
#[derive(Debug)]
pub(super) enum Told {
    Up(u64),
    Down,
    Reply(Reply),
}

/// Takes the place of a coder: everything goes into a queue that never fills.
struct Ear;

impl Actor for Ear {
    type Msg = CoderMsg;
    type State = mpsc::Sender<Told>;
    type Arguments = mpsc::Sender<Told>;

    async fn pre_start(
        &self,
        _myself: ActorRef<CoderMsg>,
        told: mpsc::Sender<Told>,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(told)
    }

    async fn handle(
        &self,
        _myself: ActorRef<CoderMsg>,
        message: CoderMsg,
        told: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let message = match message {
            CoderMsg::LinkUp { session, .. } => Told::Up(session),
            CoderMsg::LinkDown { .. } => Told::Down,
            CoderMsg::Reply { reply, .. } => Told::Reply(reply),
            other => panic!("a link said {other:?}"),
        };
        // The test has ended.
        let _ = told.try_send(message);
        Ok(())
    }
}

/// A link and its coder's ear.
pub(super) struct Sender {
    pub(super) link: LinkHandle,
    pub(super) told: mpsc::Receiver<Told>,
    pub(super) session: u64,
    pub(super) volume: VolumeNo,
    epoch: Epoch,
    next: u64,
}

/// The store.
pub(super) struct Rig {
    pub(super) id: StoreId,
    pub(super) disk: Arc<Disk>,
    pub(super) tasks: TaskTracker,
    machine: MapMachine,
    handle: StoreHandle,
    actor: ActorRef<ShardStoreMsg>,
    ended: oneshot::Receiver<()>,
    _fatal: mpsc::Receiver<Fatal>,
    sessions: Arc<AtomicU64>,
}

/// Where the store is.
pub(super) const HOME: NodeId = NodeId(1);

impl Drop for Rig {
    fn drop(&mut self) {
        // A test that fails must end, and its runtime waits for the writer.
        self.disk.hold(false);
    }
}

impl Rig {
    /// A store that has its map.
    pub(super) async fn start(volumes: u64) -> Self {
        let mut setup = Setup::plain(1, 1);
        setup.volumes = volumes;
        let stores = fresh_stores(2);
        let machine = found(&Arc::new(setup), &stores, &mut Rng::new(1));
        let disk = Arc::new(Disk::default());
        let store = Arc::new(MemoryStore::new(stores[0]));
        let (fatal_tx, fatal) = mpsc::channel(1);
        let (ended_tx, ended) = oneshot::channel();
        let args = ShardStoreArgs {
            store: Arc::new(Watched { store: Arc::clone(&store), disk: Arc::clone(&disk) }),
            config: StoreConfig::default(),
            fatal: fatal_tx,
            ended: ended_tx,
        };
        let (actor, handle) = shard_store::start(args).await.expect("a store starts");
        let admitted = ShardStoreMsg::Admitted(super::as_it_is(store.opened()));
        actor.cast(admitted).expect("it has just started");
        actor.cast(ShardStoreMsg::Map(machine.view())).expect("it has just started");
        Self {
            id: stores[0],
            disk,
            tasks: TaskTracker::new(),
            machine,
            handle,
            actor,
            ended,
            _fatal: fatal,
            sessions: Arc::new(AtomicU64::new(1)),
        }
    }

    pub(super) fn sessions(&self) -> StoreSessions {
        StoreSessions { stores: vec![self.handle.clone()], tasks: self.tasks.clone() }
    }

    /// Where the coordinator of a volume is.
    pub(super) fn seat(&self, volume: u32) -> NodeId {
        self.machine.view().volumes[&VolumeNo(volume)].coordinator.expect("elected").node
    }

    /// A link of a volume's coordinator, in process or over a network.
    pub(super) async fn link<T: Transport>(&self, volume: u32, local: bool, net: T) -> Sender {
        let volume = VolumeNo(volume);
        let (told_tx, told) = mpsc::channel(1 << 20);
        let (coder, _) = Actor::spawn(None, Ear, told_tx).await.expect("an ear");
        let me = self.seat(volume.0);
        let link = LinkHandle::start(LinkArgs {
            store: self.id,
            node: if local { me } else { HOME },
            me: if local { me } else { NodeId(77) },
            transport: net,
            local: Arc::new(vec![self.handle.clone()]),
            sessions: Arc::clone(&self.sessions),
            tasks: self.tasks.clone(),
            coder,
        });
        let epoch = self.machine.view().volumes[&volume].epoch;
        let mut sender = Sender { link, told, session: 0, volume, epoch, next: 1 };
        sender.up().await;
        sender
    }

    /// Ends the store and everything that hangs on it; links must be gone.
    pub(super) async fn stop(mut self) {
        self.actor.cast(ShardStoreMsg::Stop).expect("it lives");
        within("the store ends", &mut self.ended).await.expect("in order");
        self.tasks.close();
        within("all tasks end", self.tasks.wait()).await;
    }
}

impl Sender {
    /// Waits for the next session; counts the replies that come before.
    pub(super) async fn up(&mut self) -> usize {
        let mut replies = 0;
        loop {
            match self.hear().await {
                Told::Up(session) => {
                    self.session = session;
                    return replies;
                }
                Told::Down => {}
                Told::Reply(_) => replies += 1,
            }
        }
    }

    pub(super) async fn hear(&mut self) -> Told {
        within("the link says something", self.told.recv()).await.expect("the ear lives")
    }

    /// Waits for the answer to a request, in this session.
    pub(super) async fn answer(&mut self, id: u64) -> Answer {
        loop {
            match self.hear().await {
                Told::Reply(reply) => {
                    let found = reply.answers.into_iter().find(|(answered, _)| *answered == id);
                    if let Some((_, answer)) = found {
                        return answer;
                    }
                }
                other => panic!("{other:?} before the answer to {id}"),
            }
        }
    }

    /// Sends requests in one frame; the number of the last one.
    pub(super) fn send(&mut self, asks: Vec<Ask>) -> u64 {
        let first = self.next;
        self.next += asks.len() as u64;
        let frame = Frame {
            volume: self.volume,
            epoch: self.epoch,
            incarnation: smalti_storage::ids::Incarnation(1),
            session: self.session,
            watermark: Ver::NONE,
            requests: (first..).zip(asks).map(|(id, ask)| Request { id, ask }).collect(),
        };
        self.link.send(frame);
        self.link.flushed();
        self.next - 1
    }

    /// A whole row's first slot, prepared.
    pub(super) fn prepare(&self, index: u64, record: Bytes) -> Ask {
        Ask::PrepFull {
            row: row(index),
            slot: Slot(0),
            update: Update {
                ver: Ver { epoch: self.epoch, seq: self.next },
                touched: SlotSet::first(2),
                snap: 0,
            },
            wid: wid(self.next),
            vec: Vec::new(),
            record,
        }
    }

    /// Writes so many rows, and waits until they are there.
    pub(super) async fn fill(&mut self, rows: u64, record: &Bytes) {
        for index in 0..rows {
            let ask = self.prepare(index, record.clone());
            let id = self.send(vec![ask]);
            assert_eq!(self.answer(id).await, Answer::Ok);
        }
    }
}

/// Reads the newest version of a row's first slot.
pub(super) fn fetch(index: u64) -> Ask {
    Ask::Fetch { row: row(index), slot: Slot(0), want: smalti_rowcommit::msg::Want::Head }
}

pub(super) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Polls until `check` holds.
pub(super) async fn until(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !check() {
        assert!(Instant::now() < end, "never: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}
