//! The actor around the coordinator's core.

use super::VolumeRepairs;
use super::link::{LinkArgs, LinkHandle};
use super::rate::Rate;
use super::scrubs::Scrubs;
use crate::clock;
use crate::shard_store::{LocalStores, SlowDisk};
use crate::transport::Transport;
use bytes::Bytes;
use futures::future::BoxFuture;
use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr};
use smalti_map::view::MapView;
use smalti_map::{Applied, Command, Group, Rejection};
use smalti_raft::{ProposeError, RaftGroup};
use smalti_rowcommit::coordinator::{
    Alarm, BACKGROUND, BlockList, BlockWrite, OpError, Phase, Stats,
};
use smalti_rowcommit::governor::Burden;
use smalti_rowcommit::msg::Reply;
use smalti_rowcommit::{Action, Coordinator, CoordinatorConfig, Event};
use smalti_storage::ids::{Epoch, GroupNo, RowAddr, Slot, StoreId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often the core is told that time has passed.
const TICK: Duration = Duration::from_millis(20);

/// Ticks between two lines about the core's state in the debug log.
const DESCRIBE_TICKS: u64 = 100;

/// Ticks between two looks at how many rows were repaired, and at which group is to be scrubbed.
const RATE_TICKS: u64 = 25;

/// How long a proposal may take before the core, which asks again by itself, is on its own.
const PROPOSAL_PATIENCE: Duration = Duration::from_secs(2);

/// Messages of the coder actor.
#[derive(Debug)]
pub enum CoderMsg {
    /// Write blocks.
    Write {
        /// Which.
        blocks: Vec<BlockWrite>,
        /// Whether it gives way to clients.
        background: bool,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(), OpError>>,
    },
    /// Read blocks.
    Read {
        /// Which.
        blocks: Vec<(RowAddr, Slot)>,
        /// As a snapshot holds them, by its number; else as they are.
        snap: Option<u32>,
        /// Of the gateway that asks.
        generation: u32,
        /// Whether it gives way to clients.
        background: bool,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Vec<Bytes>, OpError>>,
    },
    /// Tell the next blocks of a group that have contents.
    List {
        /// The group.
        group: GroupNo,
        /// The row after which to go on.
        after: Option<RowAddr>,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<BlockList, OpError>>,
    },
    /// Make a snapshot.
    Snapshot {
        /// Its name.
        name: String,
        /// Unix seconds.
        created: u64,
        /// Where the answer goes: its number.
        reply: oneshot::Sender<Result<u32, OpError>>,
    },
    /// A store answered.
    Reply {
        /// The store.
        store: StoreId,
        /// What.
        reply: Reply,
    },
    /// A session with a store began.
    LinkUp {
        /// The store.
        store: StoreId,
        /// The session's number.
        session: u64,
    },
    /// It ended.
    LinkDown {
        /// The store.
        store: StoreId,
    },
    /// A newer map.
    Map(MapView),
    /// A proposal has come to an end, one way or another.
    Proposed(Box<Command>),
    /// A proposal was refused.
    Refused {
        /// The proposal.
        command: Box<Command>,
        /// The reason.
        why: Rejection,
    },
    /// Time has passed.
    Tick,
    /// Everything that waited has been fed: perform what the core wants.
    Flush,
    /// Stop serving and give leases back.
    Release {
        /// Where the answer goes.
        reply: oneshot::Sender<()>,
    },
    /// What the rest of the cluster repairs, and how its clients bear it.
    Around(Burden),
    /// Say how the volume stands.
    Status {
        /// Where the answer goes.
        reply: oneshot::Sender<CoderStatus>,
    },
}

/// How a volume stands, as its coordinator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoderStatus {
    /// What the coordinator is doing.
    pub phase: Phase,
    /// Its epoch.
    pub epoch: Epoch,
    /// Counters.
    pub stats: Stats,
    /// Rows a second brought up to date on some slot of late.
    pub rows_per_second: u64,
    /// How much background work may be under way at once.
    pub window: usize,
}

/// Where proposals go.
pub(crate) trait Propose: Send + Sync + 'static {
    /// Proposes, and says what became of it.
    fn propose(&self, command: Command) -> BoxFuture<'static, Result<Applied, ProposeError>>;
}

impl Propose for RaftGroup {
    fn propose(&self, command: Command) -> BoxFuture<'static, Result<Applied, ProposeError>> {
        let raft = self.clone();
        Box::pin(async move { raft.propose_within(command, PROPOSAL_PATIENCE).await })
    }
}

/// What a coder needs.
pub(crate) struct CoderArgs<T> {
    /// Settings of the core.
    pub(crate) config: CoordinatorConfig,
    /// Stores whose nodes have been silent before it began, and for how long.
    pub(crate) unheard: Vec<(StoreId, Duration)>,
    /// Reaches other nodes.
    pub(crate) transport: T,
    /// The stores of this node.
    pub(crate) local: LocalStores,
    /// Where proposals go.
    pub(crate) map: Arc<dyn Propose>,
    /// Numbers sessions, for the whole process.
    pub(crate) sessions: Arc<AtomicU64>,
    /// Where links and proposals run.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the process is to end.
    pub(crate) stopping: CancellationToken,
    /// Each group is scrubbed again after so long; zero: only when asked.
    pub(crate) scrub_every: Duration,
    /// Stores whose disks are far slower than others'.
    pub(crate) slow: watch::Receiver<BTreeMap<StoreId, SlowDisk>>,
    /// Where what this volume repairs is told.
    pub(crate) told: watch::Sender<VolumeRepairs>,
}

struct Coder<T>(PhantomData<fn(T)>);

struct State<T> {
    args: CoderArgs<T>,
    core: Coordinator,
    map: Option<MapView>,
    links: BTreeMap<StoreId, LinkHandle>,
    /// Proposals without an answer yet: to make them again would only make the log longer.
    proposing: Vec<Command>,
    next_op: u64,
    writes: HashMap<u64, oneshot::Sender<Result<(), OpError>>>,
    reads: HashMap<u64, oneshot::Sender<Result<Vec<Bytes>, OpError>>>,
    snapshots: HashMap<u64, oneshot::Sender<Result<u32, OpError>>>,
    lists: HashMap<u64, oneshot::Sender<Result<BlockList, OpError>>>,
    flushing: bool,
    ticks: u64,
    repaired: Rate,
    scrubs: Scrubs,
}

/// Starts the coder of a volume.
///
/// # Errors
/// When the actor can not be spawned.
pub(crate) async fn start<T: Transport>(
    args: CoderArgs<T>,
) -> Result<ActorRef<CoderMsg>, SpawnErr> {
    let (actor, _) = Actor::spawn(None, Coder(PhantomData), args).await?;
    actor.send_interval(TICK, || CoderMsg::Tick);
    Ok(actor)
}

impl<T: Transport> Actor for Coder<T> {
    type Msg = CoderMsg;
    type State = State<T>;
    type Arguments = CoderArgs<T>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        args: CoderArgs<T>,
    ) -> Result<State<T>, ActorProcessingErr> {
        let mut core = Coordinator::new(args.config.clone());
        let now = clock::now();
        core.handle(now, Event::Slow(args.slow.borrow().keys().copied().collect()));
        for (store, silent) in &args.unheard {
            core.handle(now, Event::Unheard { store: *store, since: now.before(*silent) });
        }
        Ok(State {
            scrubs: Scrubs::new(args.scrub_every),
            core,
            args,
            map: None,
            links: BTreeMap::new(),
            proposing: Vec::new(),
            next_op: 1,
            writes: HashMap::new(),
            reads: HashMap::new(),
            snapshots: HashMap::new(),
            lists: HashMap::new(),
            flushing: false,
            ticks: 0,
            repaired: Rate::default(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut State<T>,
    ) -> Result<(), ActorProcessingErr> {
        let now = clock::now();
        match message {
            CoderMsg::Write { blocks, background, reply } => {
                let op = state.next_op(background);
                state.writes.insert(op, reply);
                state.core.handle(now, Event::Write { op, blocks });
            }
            CoderMsg::Read { blocks, snap, generation, background, reply } => {
                let op = state.next_op(background);
                state.reads.insert(op, reply);
                state.core.handle(now, Event::Read { op, blocks, snap, generation });
            }
            CoderMsg::List { group, after, reply } => {
                let op = state.next_op(true);
                state.lists.insert(op, reply);
                state.core.handle(now, Event::List { op, group, after });
            }
            CoderMsg::Snapshot { name, created, reply } => {
                let op = state.next_op(false);
                state.snapshots.insert(op, reply);
                state.core.handle(now, Event::Snapshot { op, name, created });
            }
            CoderMsg::Reply { store, reply } => {
                state.core.handle(now, Event::Reply { store, reply });
            }
            CoderMsg::LinkUp { store, session } => {
                state.core.handle(now, Event::LinkUp { store, session });
            }
            CoderMsg::LinkDown { store } => state.core.handle(now, Event::LinkDown { store }),
            CoderMsg::Map(map) => {
                state.adopt(&myself, map);
            }
            CoderMsg::Proposed(command) => {
                state.proposing.retain(|other| other != &*command);
                return Ok(());
            }
            CoderMsg::Refused { command, why } => {
                state.core.handle(now, Event::Refused { command: *command, why });
            }
            CoderMsg::Tick => {
                if state.args.slow.has_changed().unwrap_or(false) {
                    let slow = state.args.slow.borrow_and_update().keys().copied().collect();
                    state.core.handle(now, Event::Slow(slow));
                }
                state.core.handle(now, Event::Tick);
                let (burden, in_vain) = (state.core.burden(), state.core.moves_in_vain());
                state.args.told.send_replace(VolumeRepairs { burden, in_vain });
                state.ticks += 1;
                if state.ticks.is_multiple_of(RATE_TICKS) {
                    state.repaired.note(now, state.core.stats().rows_repaired);
                    // A scrub that has ended is to be told before another one begins.
                    state.perform(&myself);
                    state.scrub(&myself);
                }
                if state.ticks.is_multiple_of(DESCRIBE_TICKS) {
                    let volume = state.args.config.volume;
                    tracing::debug!(%volume, state = state.core.describe(), "coordinating");
                }
            }
            CoderMsg::Around(burden) => state.core.handle(now, Event::Around(burden)),
            CoderMsg::Release { reply } => {
                state.core.release();
                state.perform(&myself);
                // The caller may have given up; released is released.
                let _ = reply.send(());
                return Ok(());
            }
            CoderMsg::Status { reply } => {
                // Nobody waiting any more is no matter.
                let _ = reply.send(CoderStatus {
                    phase: state.core.phase(),
                    epoch: state.core.epoch(),
                    stats: state.core.stats(),
                    rows_per_second: state.repaired.rate(),
                    window: state.core.window(),
                });
                return Ok(());
            }
            CoderMsg::Flush => {
                state.flushing = false;
                if state.perform(&myself) {
                    state.scrub(&myself);
                    state.perform(&myself);
                }
                return Ok(());
            }
        }
        if !state.flushing {
            state.flushing = true;
            myself.cast(CoderMsg::Flush)?;
        }
        Ok(())
    }

    /// Another coordinates from now on, and knows nothing of what this one found wrong. A node that
    /// stops does not wait for the map, which may be without a majority.
    async fn post_stop(
        &self,
        myself: ActorRef<Self::Msg>,
        state: &mut State<T>,
    ) -> Result<(), ActorProcessingErr> {
        if !state.args.stopping.is_cancelled()
            && let Some(command) = state.scrubs.untold_faults(clock::unix_seconds())
        {
            state.propose(&myself, command);
        }
        Ok(())
    }
}

/// A proposal. However it ends, the same may be proposed again then.
struct UnderWay {
    coder: ActorRef<CoderMsg>,
    command: Command,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // The coder may have ended meanwhile.
        let _ = self.coder.cast(CoderMsg::Proposed(Box::new(self.command.clone())));
    }
}

impl<T: Transport> State<T> {
    fn next_op(&mut self, background: bool) -> u64 {
        let op = self.next_op;
        self.next_op += 1;
        if background { BACKGROUND | op } else { op }
    }

    /// Links to every store that has or is to have a slot of the volume, then the map itself.
    fn adopt(&mut self, myself: &ActorRef<CoderMsg>, map: MapView) {
        if let Some(volume) = map.volumes.get(&self.args.config.volume) {
            let stores: BTreeSet<StoreId> = volume.groups.iter().flat_map(Group::members).collect();
            for store in &stores {
                let store = *store;
                let Some(node) = map.node_of(store) else { continue };
                self.links.entry(store).or_insert_with(|| {
                    LinkHandle::start(LinkArgs {
                        store,
                        node,
                        me: self.args.config.me.node,
                        transport: self.args.transport.clone(),
                        local: Arc::clone(&self.args.local),
                        sessions: Arc::clone(&self.args.sessions),
                        tasks: self.args.tasks.clone(),
                        coder: myself.clone(),
                    })
                });
            }
            let gone: Vec<StoreId> =
                self.links.keys().filter(|store| !stores.contains(store)).copied().collect();
            for store in gone {
                self.links.remove(&store);
                self.core.handle(clock::now(), Event::LinkDown { store });
            }
        }
        self.map = Some(Arc::clone(&map));
        self.core.handle(clock::now(), Event::Map(map));
    }

    /// Whether the scrub of a group has ended.
    fn perform(&mut self, myself: &ActorRef<CoderMsg>) -> bool {
        let mut scrubbed = false;
        for action in self.core.drain() {
            match action {
                Action::Send { store, frame } => {
                    if let Some(link) = self.links.get(&store) {
                        link.send(frame);
                    }
                }
                Action::Propose(command) => self.propose(myself, command),
                Action::WriteDone { op, result } => {
                    if let Some(reply) = self.writes.remove(&op) {
                        // A client that has gone does not take its answer.
                        let _ = reply.send(result);
                    }
                }
                Action::ReadDone { op, result } => {
                    if let Some(reply) = self.reads.remove(&op) {
                        // Likewise.
                        let _ = reply.send(result);
                    }
                }
                Action::SnapshotDone { op, result } => {
                    if let Some(reply) = self.snapshots.remove(&op) {
                        // Likewise.
                        let _ = reply.send(result);
                    }
                }
                Action::Listed { op, result } => {
                    if let Some(reply) = self.lists.remove(&op) {
                        // Likewise.
                        let _ = reply.send(result);
                    }
                }
                Action::Alarm(alarm) => self.alarm(alarm),
                Action::Fault { store } => self.scrubs.fault(store),
                Action::Scrubbed { group, report } => {
                    if !report.is_clean() {
                        let volume = self.args.config.volume;
                        tracing::warn!(%volume, %group, ?report, "scrub found something wrong");
                    }
                    let volume = self.args.config.volume;
                    let volume = self.map.as_ref().and_then(|map| map.volumes.get(&volume));
                    let told = volume.and_then(|volume| volume.scrubs.groups.get(&group));
                    self.scrubs.ended(group, &report, clock::unix_seconds(), told);
                    scrubbed = true;
                }
            }
        }
        for link in self.links.values() {
            link.flushed();
        }
        scrubbed
    }

    /// Begins the scrub of the next group, and tells the map of those that have ended.
    fn scrub(&mut self, myself: &ActorRef<CoderMsg>) {
        let volume = self.args.config.volume;
        let Some(volume) = self.map.as_ref().and_then(|map| map.volumes.get(&volume)) else {
            return;
        };
        let serves = self.core.phase() == Phase::Active && self.core.epoch() == volume.epoch;
        let how = (serves, self.core.stats().scrubbing.is_some());
        let now = clock::now();
        let (wrong, unix) = (self.core.groups_beyond_repair(), clock::unix_seconds());
        let (next, commands) = self.scrubs.turn(now, unix, how, &wrong, volume);
        if let Some(group) = next {
            self.core.handle(now, Event::Scrub { group });
        }
        commands.into_iter().for_each(|command| self.propose(myself, command));
    }

    fn propose(&mut self, myself: &ActorRef<CoderMsg>, command: Command) {
        if self.proposing.contains(&command) {
            return;
        }
        let takes_out = matches!(command, Command::Shrink { .. } | Command::SetOffline { .. });
        if takes_out && self.args.stopping.is_cancelled() {
            // Perhaps all nodes are being stopped. Whoever was faster is not out of sync for that: he
            // may be the one who is needed when they start again.
            tracing::info!(volume = %self.args.config.volume, ?command, "stopping: not proposed");
            return;
        }
        tracing::info!(volume = %self.args.config.volume, ?command, "proposing");
        self.proposing.push(command.clone());
        let applied = self.args.map.propose(command.clone());
        let myself = myself.clone();
        self.args.tasks.spawn(async move {
            let ended = {
                let _under_way = UnderWay { coder: myself.clone(), command: command.clone() };
                applied.await
            };
            match ended {
                Ok(Applied::Rejected(why)) => {
                    tracing::info!(?command, %why, "proposal refused");
                    let refused = CoderMsg::Refused { command: Box::new(command), why };
                    // The coder has ended meanwhile: nobody needs to know.
                    let _ = myself.cast(refused);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "proposal got no answer"),
            }
        });
    }

    fn alarm(&self, alarm: Alarm) {
        let volume = self.args.config.volume;
        match alarm {
            Alarm::RowLost { row } => {
                tracing::error!(%volume, %row, "an acknowledged row can not be constructed");
            }
            Alarm::RecordLost { row, slot, snap } => tracing::error!(
                %volume, %row, %slot, ?snap,
                "a record can not be constructed: too few of the others are readable"
            ),
            Alarm::Corrupt { row, slot } => {
                tracing::warn!(%volume, %row, %slot, "record does not verify, repairing it");
            }
            Alarm::Miscomputed { row, slot } => tracing::error!(
                %volume, %row, %slot,
                "parity would have come out wrong and was refused: memory or processor is at fault"
            ),
            Alarm::Unclear { row } => tracing::error!(
                %volume, %row,
                "the records of a row do not fit together, and nobody can tell which is wrong"
            ),
            Alarm::Silent { store } => tracing::warn!(%volume, %store, "store is silent"),
            Alarm::Slow { store } => {
                tracing::warn!(%volume, %store, "the disk of a store is slow: it is done without");
            }
            _ => tracing::warn!(%volume, ?alarm, "alarm"),
        }
    }
}
