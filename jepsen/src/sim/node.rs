//! A node: a process with a store, a potential coordinator and a replica of the map, over a disk
//! that outlives it.

use super::event::{At, Ev, Life};
use super::link::SessionId;
use super::swarm::{Fault, MS};
use super::world::{World, node_id};
use bytes::Bytes;
use smalti_map::{Applied, ClusterMap, Command, Coordinator as Coordinating, StoreStart};
use smalti_rowcommit::coordinator::{Coordinator, Phase};
use smalti_rowcommit::msg::{Frame, Reply};
use smalti_rowcommit::store::read::ReadSide;
use smalti_rowcommit::store::{Room, StoreConfig};
use smalti_rowcommit::{Action, CoordinatorConfig, Event, StoreCore, Time};
use smalti_storage::ids::{Incarnation, RowSlot, RunId, StoreId, VolumeNo};
use smalti_storage::store::memory::{MemoryStore, Restart};
use smalti_storage::store::{Admission, Batch, Change, ShardStore, VersionMeta};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How often a coordinator is told that time has passed.
const TICK: u64 = 20 * MS;

/// Moments that a disk may go back to.
const PAST: usize = 6;

/// Frames that the writer takes at once.
const BATCH_FRAMES: usize = 64;

#[derive(Debug)]
enum Job {
    Frame(SessionId, Box<Frame>),
    Map(Arc<ClusterMap>),
    /// Nothing else waits.
    Idle,
}

/// What dies with the process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) incarnation: Incarnation,
    began: u64,
    pub(crate) map: Arc<ClusterMap>,
    pub(crate) core: StoreCore,
    pub(crate) reader: ReadSide,
    pub(crate) coordinator: Coordinator,
    jobs: VecDeque<Job>,
    committing: Option<(Batch, Vec<(SessionId, Reply)>)>,
    flushing: bool,
    /// The next client write's number.
    pub(crate) next_wid: u64,
    /// Client operations under way, by the coordinator's number.
    pub(crate) ops: BTreeMap<u64, (usize, u64)>,
    pub(crate) next_op: u64,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) at: At,
    pub(crate) life: u64,
    pub(crate) up: bool,
    pub(crate) paused: bool,
    /// Since when it answers nobody, or answers again.
    pub(crate) changed: u64,
    /// What came while it was stopped.
    pub(crate) stash: VecDeque<Ev>,
    pub(crate) store: StoreId,
    pub(crate) disk: Arc<MemoryStore>,
    /// How the next run of its store will be called.
    pub(crate) next_run: RunId,
    /// What the disk held at some moments of late, oldest first, where disks may forget.
    pub(crate) past: VecDeque<MemoryStore>,
    /// The disk as a run that ended in order left it, where disks may be put back.
    pub(crate) copy: Option<MemoryStore>,
    /// Its disk takes so many times longer than usual.
    pub(crate) disk_slow: u64,
    /// The current sessions with stores.
    pub(crate) links: BTreeMap<StoreId, SessionId>,
    pub(crate) sessions: u64,
    /// Its clock: ahead by so much, and so many millionths too fast.
    pub(crate) offset: u64,
    pub(crate) ppm: i64,
    /// Cut off from the map.
    pub(crate) map_cut: u32,
    pub(crate) process: Option<Process>,
}

impl Node {
    pub(crate) fn life(&self) -> Life {
        Life { at: self.at, life: self.life }
    }

    pub(crate) fn process(&self) -> &Process {
        self.process.as_ref().expect("asked of running nodes only")
    }

    /// Has the disk of a slot changed behind the back of the process, which has it at hand no more; not while it
    /// is writing.
    pub(crate) fn put_back(&mut self, at: RowSlot, meta: VersionMeta, record: Bytes) -> bool {
        if let Some(process) = &mut self.process {
            if process.committing.is_some() {
                return false;
            }
            process.core.look_again(at);
        }
        self.disk.put_back(at, meta, record)
    }

    pub(crate) fn process_mut(&mut self) -> &mut Process {
        self.process.as_mut().expect("asked of running nodes only")
    }

    pub(crate) fn clock(&self, now: u64) -> Time {
        let drift = i128::from(now) * i128::from(self.ppm) / 1_000_000;
        let local = i128::from(now) + i128::from(self.offset) + drift;
        Time(u64::try_from(local).unwrap_or(0))
    }
}

impl World {
    pub(crate) fn is_alive(&self, life: Life) -> bool {
        let node = &self.nodes[life.at];
        node.up && node.life == life.life
    }

    /// Starts the process of a node that is down: registers, then serves.
    pub(crate) fn start(&mut self, at: At) {
        if self.nodes[at].up {
            return;
        }
        if self.nodes[at].map_cut > 0 || self.map_away {
            let later = self.now + 50 * MS;
            self.queue.push(later, Ev::Start(at));
            return;
        }
        let node = node_id(at);
        let addresses = super::world::addresses(at);
        let applied = self.apply(&Command::RegisterNode { node, addresses });
        let Applied::Registered(incarnation) = applied else {
            self.fail(format!("node {at} could not register: {applied:?}"));
            return;
        };
        let disk = Arc::clone(&self.nodes[at].disk);
        let opened = disk.opened();
        let run = self.nodes[at].next_run;
        let start = StoreStart {
            store: opened.id,
            node,
            of: incarnation,
            incarnation: opened.incarnation,
            run,
            last: opened.run,
            clean: opened.clean,
            announced: opened.announced,
        };
        if let Err(error) = disk.announce(run) {
            self.fail(format!("store of node {at} can not announce its run: {error}"));
            return;
        }
        let applied = self.apply(&Command::RegisterStore(start));
        if self.stormy && self.rng.percent(3) {
            // It dies before it knows that it was registered.
            disk.restart(Restart { clean: opened.clean, ..Restart::default() });
            self.nodes[at].next_run = self.fresh_run();
            let later = self.now + self.rng.range(5, 300) * MS;
            self.queue.push(later, Ev::Start(at));
            self.trace(|| format!("n{at} dies while its store is registered"));
            return;
        }
        let Applied::RegisteredStore { incarnation: admitted, clean } = applied else {
            self.fail(format!("store of node {at} could not register: {applied:?}"));
            return;
        };
        if let Err(error) = disk.admit(Admission { run, incarnation: admitted, clean }) {
            self.fail(format!("store of node {at} is not admitted: {error}"));
            return;
        }
        let me = Coordinating { node, incarnation };
        let mut config = CoordinatorConfig::new(me, self.volume);
        config.record_len = super::client::RECORD_LEN;
        config.cached_rows = self.swarm.cached_rows;
        config.catchup_window = 2;
        config.lease = Duration::from_micros(self.swarm.lease);
        config.suspect_after = Duration::from_micros(self.swarm.suspect_after);
        config.power_patience = Duration::from_micros(self.swarm.power_patience);
        config.stall_patience = Duration::from_micros(self.swarm.stall_patience);
        config.takeover_patience = Duration::from_micros(self.swarm.takeover_patience);
        let store_config =
            StoreConfig { lease_max: config.lease, cached_rows: self.swarm.cached_rows };
        let boot = self.nodes[at].clock(self.now);
        let shared: Arc<dyn ShardStore> = disk;
        let core = StoreCore::new(Arc::clone(&shared), store_config, boot);
        let reader = ReadSide::new(shared, core.fence());
        let node = &mut self.nodes[at];
        node.life += 1;
        node.up = true;
        node.changed = self.now;
        node.links.clear();
        node.process = Some(Process {
            incarnation,
            began: self.now,
            map: Arc::default(),
            core,
            reader,
            coordinator: Coordinator::new(config),
            jobs: VecDeque::new(),
            committing: None,
            flushing: false,
            next_wid: 1,
            ops: BTreeMap::new(),
            next_op: 1,
        });
        let life = node.life();
        self.trace(|| format!("n{at} starts as {incarnation}, store {admitted}"));
        // A replica may come up with an older map than it had: what was applied is not durable,
        // what was committed is.
        let behind = usize::try_from(self.rng.below(6)).unwrap_or(0);
        let known = self.maps.len().saturating_sub(1 + behind);
        if let Some(map) = self.maps.get(known).cloned() {
            self.queue.push(self.now, Ev::Map { to: life, map });
        }
        let map = Arc::clone(&self.map);
        let later = self.now + self.rng.below(self.swarm.map_delay * 4);
        self.queue.push(later, Ev::Map { to: life, map });
        self.queue.push(self.now + self.rng.below(TICK), Ev::Tick(life));
        let stores: Vec<StoreId> = self.nodes.iter().map(|node| node.store).collect();
        for store in stores {
            let later = self.now + self.rng.below(20 * MS);
            self.queue.push(later, Ev::Connect { from: life, store });
        }
    }

    /// A run that no store has had.
    pub(crate) fn fresh_run(&mut self) -> RunId {
        self.runs += 1;
        RunId(Uuid::from_u128((1 << 64) + u128::from(self.runs)))
    }

    /// Ends the process of a node, in order or not.
    pub(crate) fn stop(&mut self, at: At, clean: bool) {
        if !self.nodes[at].up {
            return;
        }
        let vetted = self.nodes[at].process.as_ref().is_some_and(|p| p.core.is_vetted());
        // A store that nobody compared leaves no clean marker.
        let marked = clean && vetted;
        self.trace(|| format!("n{at} stops, clean {clean}, marked {marked}"));
        let lost = usize::try_from(self.rng.below(4)).unwrap_or(0);
        let kept = clean || self.rng.percent(50);
        let node = &mut self.nodes[at];
        let life = node.life();
        node.changed = if node.paused { node.changed } else { self.now };
        node.up = false;
        node.paused = false;
        node.stash.clear();
        node.links.clear();
        let process = node.process.take();
        let under_way = process.as_ref().and_then(|process| process.committing.as_ref());
        if let Some((batch, _)) = under_way
            && kept
        {
            // The disk was faster than the process.
            let batch = batch.clone();
            self.commit(at, batch);
        }
        if let Some(process) = process {
            for (client, op) in process.ops.into_values() {
                self.client_unknown(client, op);
            }
        }
        if marked && let Err(error) = self.nodes[at].disk.close() {
            self.fail(format!("store of node {at} does not close: {error}"));
        }
        let lost = if clean { 0 } else { lost };
        let before = self.promised(at);
        self.nodes[at].disk.restart(Restart { clean: marked, lost, went_back: lost > 0 });
        self.nodes[at].next_run = self.fresh_run();
        if self.promised(at) < before && !self.forgot.contains(&at) {
            self.fail(format!("I3: the store of node {at} forgot its promise in a restart"));
        }
        // Whoever talks to it finds out sooner or later.
        for id in self.open_sessions() {
            if self.sessions[id].to == life {
                let later = self.now + self.rng.below(self.swarm.link_timeout);
                self.queue.push(later, Ev::Timeout(id));
            }
        }
    }

    pub(crate) fn promised(&self, at: At) -> u32 {
        self.nodes[at].disk.volume(self.volume).map_or(0, |state| state.promised.0)
    }

    pub(crate) fn pause(&mut self, at: At) {
        if self.nodes[at].up && !self.nodes[at].paused {
            self.trace(|| format!("n{at} is stopped"));
            self.nodes[at].paused = true;
            self.nodes[at].changed = self.now;
            self.time_out(|_, to| to == at);
        }
    }

    pub(crate) fn resume(&mut self, at: At) {
        if !self.nodes[at].paused {
            return;
        }
        self.trace(|| format!("n{at} goes on"));
        self.nodes[at].paused = false;
        self.nodes[at].changed = self.now;
        let mut stash: Vec<Ev> = self.nodes[at].stash.drain(..).collect();
        if self.rng.percent(50) {
            // Timers and messages race when a process wakes up. Messages of one session stay in
            // order, because each takes the first of its queue.
            let mut rest: Vec<Ev> = Vec::new();
            let (ticks, others): (Vec<Ev>, Vec<Ev>) =
                stash.into_iter().partition(|event| matches!(event, Ev::Tick(_)));
            rest.extend(ticks);
            rest.extend(others);
            stash = rest;
        }
        for event in stash {
            self.queue.push(self.now, event);
        }
    }

    pub(crate) fn tick(&mut self, life: Life) {
        self.queue.push(self.now + TICK, Ev::Tick(life));
        let process = self.nodes[life.at].process_mut();
        if process.core.is_collecting() && process.jobs.is_empty() {
            process.jobs.push_back(Job::Idle);
            self.write(life.at);
        }
        self.coordinate(life.at, Event::Tick);
    }

    /// Feeds a node's coordinator; what it wants is done a little later, with what else came.
    pub(crate) fn coordinate(&mut self, at: At, event: Event) {
        let now = self.nodes[at].clock(self.now);
        let process = self.nodes[at].process_mut();
        process.coordinator.handle(now, event);
        if !process.flushing {
            process.flushing = true;
            let later = self.now + self.rng.below(200);
            let life = self.nodes[at].life();
            self.queue.push(later, Ev::Flush(life));
        }
    }

    pub(crate) fn flush(&mut self, life: Life) {
        let process = self.nodes[life.at].process_mut();
        process.flushing = false;
        for action in process.coordinator.drain() {
            self.perform(life, action);
        }
    }

    fn perform(&mut self, life: Life, action: Action) {
        let at = life.at;
        match action {
            Action::Send { store, mut frame } => {
                self.flip(&mut frame);
                self.trace(|| format!("n{at} -> n{}: {frame:?}", self.node_of(store)));
                self.mix(frame.watermark.seq ^ u64::from(frame.epoch.0) << 40);
                self.check_frame(life, store, &frame);
                self.tell_sent(life, store, &frame);
                self.send_frame(at, store, frame);
            }
            Action::Propose(command) => {
                self.trace(|| format!("n{at} proposes {command:?}"));
                let later = self.now + self.rng.below(self.swarm.map_delay * 2);
                self.shrinks += u32::from(matches!(command, Command::Shrink { .. }));
                let command = Box::new(command);
                self.queue.push(later, Ev::Propose { from: life, command, again: false });
            }
            Action::WriteDone { op, result } => {
                self.trace(|| format!("n{at} write {op}: {result:?}"));
                self.tell_done(at, op, result.map(|()| &[][..]));
                self.write_done(at, op, result);
            }
            Action::ReadDone { op, result } => {
                self.trace(|| format!("n{at} read {op}: {result:?}"));
                self.tell_done(at, op, result.as_deref().map_err(|error| *error));
                self.read_done(at, op, result);
            }
            Action::SnapshotDone { op, result } => {
                self.trace(|| format!("n{at} snapshot {op}: {result:?}"));
                self.snapshot_done(result);
            }
            Action::Fault { store } => self.trace(|| format!("n{at} finds fault with {store}")),
            Action::Scrubbed { group, report } => self.scrubbed(at, group, report),
            Action::Listed { op, result } => self.listed(at, op, result),
            Action::Alarm(alarm) => {
                self.trace(|| format!("n{at} alarm {alarm:?}"));
                self.tell_alarm(at, alarm);
                self.alarm(at, alarm);
            }
        }
    }

    pub(crate) fn map_arrives(&mut self, to: Life, map: Arc<ClusterMap>) {
        if self.nodes[to.at].map_cut > 0 {
            let later = self.now + self.rng.range(10, 60) * MS;
            self.queue.push(later, Ev::Map { to, map });
            return;
        }
        let process = self.nodes[to.at].process_mut();
        if map.version <= process.map.version {
            return;
        }
        process.map = Arc::clone(&map);
        process.jobs.push_back(Job::Map(Arc::clone(&map)));
        let later = self.now + self.rng.below(500);
        self.queue.push(later, Ev::MapAtCore { to, map });
        self.write(to.at);
    }

    /// A node that is newly named coordinator tells its core for how long it has not heard of others.
    pub(crate) fn map_at_core(&mut self, at: At, map: Arc<ClusterMap>) {
        let process = self.nodes[at].process();
        let me = Coordinating { node: node_id(at), incarnation: process.incarnation };
        let seat = |map: &ClusterMap| map.volumes.get(&self.volume).and_then(|v| v.coordinator);
        let began = process.began;
        if seat(&map) == Some(me) && process.coordinator.phase() == Phase::Idle {
            let others: Vec<_> = (0..self.nodes.len()).filter(|other| *other != at).collect();
            for other in others {
                let Some(since) = self.unheard_since(at, other).filter(|since| *since > began)
                else {
                    continue;
                };
                let (store, since) = (self.nodes[other].store, self.nodes[at].clock(since));
                self.coordinate(at, Event::Unheard { store, since });
            }
        }
        self.coordinate(at, Event::Map(map));
    }

    /// Since when a node can not have heard of another one.
    fn unheard_since(&self, at: At, other: At) -> Option<u64> {
        let node = &self.nodes[other];
        let silent = (!node.up || node.paused).then_some(node.changed);
        let cut = |a, b| self.cut_since.get(&(a, b)).copied().filter(|_| self.is_cut(a, b));
        [silent, cut(at, other), cut(other, at)].into_iter().flatten().min()
    }

    pub(crate) fn queue_frame(&mut self, at: At, session: SessionId, frame: Frame) {
        self.nodes[at].process_mut().jobs.push_back(Job::Frame(session, Box::new(frame)));
        self.write(at);
    }

    /// The writer takes what waits, unless a commit is under way.
    fn write(&mut self, at: At) {
        let now = self.nodes[at].clock(self.now);
        let life = self.nodes[at].life();
        let process = self.nodes[at].process_mut();
        if process.committing.is_some() || process.jobs.is_empty() {
            return;
        }
        let take = process.jobs.len().min(BATCH_FRAMES);
        let jobs: Vec<Job> = process.jobs.drain(..take).collect();
        let mut replies = Vec::new();
        for job in jobs {
            let process = self.nodes[at].process_mut();
            let done = match job {
                Job::Map(map) => process.core.set_map(&map).map(|()| None),
                Job::Idle => Ok(None),
                Job::Frame(session, frame) => {
                    let from = node_id(self.sessions[session].from.at);
                    process.core.handle(now, from, *frame).map(|reply| reply.map(|r| (session, r)))
                }
            };
            match done {
                Ok(reply) => replies.extend(reply),
                Err(error) => return self.fail(format!("the store of node {at} failed: {error}")),
            }
        }
        let process = self.nodes[at].process_mut();
        if let Err(error) = process.core.collect() {
            return self.fail(format!("the store of node {at} failed: {error}"));
        }
        let (batch, must_sync) = process.core.take_batch();
        process.committing = Some((batch, replies));
        let delay = if must_sync { self.swarm.disk_delay * self.nodes[at].disk_slow } else { 20 };
        let later = self.now + 1 + self.rng.below(delay * 2);
        self.queue.push(later, Ev::Committed(life));
    }

    pub(crate) fn committed(&mut self, life: Life) {
        let at = life.at;
        let Some((batch, replies)) = self.nodes[at].process_mut().committing.take() else { return };
        if !batch.changes.is_empty() {
            self.commit(at, batch);
        }
        self.nodes[at].process_mut().core.committed();
        for (session, reply) in replies {
            self.trace(|| format!("n{at} answers {reply:?}"));
            self.tell_answered(at, session, &reply);
            self.mix(reply.answers.iter().fold(reply.session, |sum, (id, _)| sum ^ id));
            self.send_reply(session, reply);
        }
        self.write(at);
    }

    fn commit(&mut self, at: At, batch: Batch) {
        let before = self.promised(at);
        self.trace(|| format!("n{at} commits {}", told(&batch)));
        self.tell_batch(at, &batch);
        for change in &batch.changes {
            if let Change::SetVolume { state, .. } = change
                && state.promised.0 < before
            {
                self.fail(format!("I3: node {at} promised {} after {before}", state.promised));
            }
        }
        if self.swarm.has(Fault::Amnesia) && self.rng.percent(10) {
            let now = self.nodes[at].disk.fork();
            let past = &mut self.nodes[at].past;
            past.push_back(now);
            if past.len() > PAST {
                past.pop_front();
            }
        }
        if let Err(error) = self.nodes[at].disk.commit(batch) {
            self.fail(format!("the disk of node {at} refused a batch: {error}"));
        }
        self.tell_committed(at);
    }

    pub(crate) fn read(&mut self, to: Life, session: SessionId, frame: &Frame) {
        let from = node_id(self.sessions[session].from.at);
        match self.nodes[to.at].process().reader.handle(from, frame) {
            Ok(reply) => {
                self.trace(|| format!("n{} answers {reply:?}", to.at));
                self.tell_answered(to.at, session, &reply);
                self.send_reply(session, reply);
            }
            Err(error) => self.fail(format!("the store of node {} failed: {error}", to.at)),
        }
    }

    /// Whether the node's own map calls it the coordinator.
    pub(crate) fn believes(&self, at: At, volume: VolumeNo) -> bool {
        let Some(process) = &self.nodes[at].process else { return false };
        let me = Coordinating { node: node_id(at), incarnation: process.incarnation };
        process.map.volumes.get(&volume).is_some_and(|v| v.coordinator == Some(me))
    }

    pub(crate) fn set_full(&mut self, at: At, full: bool) {
        if let Some(process) = &mut self.nodes[at].process {
            process.core.set_room(if full { Room::Freeing } else { Room::All });
        }
        self.count(Fault::Full, full);
    }
}

/// A batch without the bytes of its records.
fn told(batch: &Batch) -> String {
    let change = |change: &Change| match change {
        Change::PutVersion { at, meta, .. } => format!("put {at} {}", meta.ver),
        Change::DeleteVersion { at, ver } => format!("delete {at} {ver}"),
        other => format!("{other:?}"),
    };
    batch.changes.iter().map(change).collect::<Vec<_>>().join(", ")
}
