//! The whole cluster in one thread.

use super::client::{Block, Client};
use super::event::{At, Ev, Life, Queue};
use super::failure::Failure;
use super::history::History;
use super::link::Session;
use super::lists::Lists;
use super::node::Node;
use super::rng::Rng;
use super::swarm::{Fault, MS, Mode, Swarm};
use super::timeline::Timeline;
use bytes::Bytes;
use smalti_map::{
    Applied, ClusterMap, Command, Custody, KeyEpoch, NewVolume, NodeAddresses, ShareHolder,
    StoreStart, Volume,
};
use smalti_rowcommit::coordinator::ScrubReport;
use smalti_storage::ids::{
    ClusterId, GroupNo, Incarnation, KeyEpochNo, NodeId, RowAddr, RowSlot, RunId, StoreId, Ver,
    VolumeId, VolumeNo, Wid,
};
use smalti_storage::store::VersionMeta;
use smalti_storage::store::memory::MemoryStore;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use uuid::Uuid;

/// How long the cluster may take to be whole again once all faults are over.
const HEALING: u64 = 120_000 * MS;

/// How long after healing something of before may still have an effect.
const STRAGGLERS: u64 = 5_000 * MS;

/// Looks in a row that must find everything whole.
const STEADY: u32 = 15;

/// Far more events than any run has: beyond them two parties only go round in a circle.
const STEPS_MAX: u64 = 10_000_000;

pub(crate) struct World {
    pub(crate) swarm: Swarm,
    pub(crate) rng: Rng,
    /// Runs of stores so far, but for the first ones.
    pub(crate) runs: u64,
    pub(crate) now: u64,
    pub(crate) queue: Queue,
    pub(crate) nodes: Vec<Node>,
    pub(crate) sessions: Vec<Session>,
    /// Faults that hold messages, by direction.
    pub(crate) cuts: BTreeMap<(At, At), u32>,
    /// When the oldest of those began.
    pub(crate) cut_since: BTreeMap<(At, At), u64>,
    /// The network is so many times slower than usual.
    pub(crate) slow: u64,
    pub(crate) volume: VolumeNo,
    pub(crate) map: Arc<ClusterMap>,
    /// All maps there ever were.
    pub(crate) maps: Vec<Arc<ClusterMap>>,
    /// Nobody can propose.
    pub(crate) map_away: bool,
    /// Proposals to take a store out that may still be accepted.
    pub(crate) shrinks: u32,
    /// Since when the coordinator looks dead.
    pub(crate) suspected: Option<u64>,
    pub(crate) clients: Vec<Client>,
    pub(crate) history: History<Block>,
    pub(crate) moment: u64,
    /// Faults go on, clients too.
    pub(crate) stormy: bool,
    pub(crate) reading_back: bool,
    /// Per block the newest acknowledged client write.
    pub(crate) acked: BTreeMap<Block, Wid>,
    /// Who issued each version, and for which row.
    pub(crate) issued: BTreeMap<Ver, (Life, RowAddr)>,
    pub(crate) trimmed: BTreeSet<Block>,
    pub(crate) written: BTreeSet<Block>,
    /// Rows in which bytes were made rotten.
    pub(crate) rotten: BTreeSet<RowAddr>,
    /// Those of them in which slots have what they had before, and all of it verifies.
    pub(crate) lost_writes: BTreeSet<RowAddr>,
    /// What slots of rows had some time ago.
    pub(crate) before: BTreeMap<RowAddr, Vec<(StoreId, RowSlot, VersionMeta, Bytes)>>,
    /// Nodes whose disk forgot something that has not been put right yet.
    pub(crate) forgot: BTreeSet<At>,
    /// Stores whose disk is gone, and on which node they were.
    pub(crate) gone: BTreeMap<StoreId, At>,
    pub(crate) counts: BTreeMap<Fault, u64>,
    /// When each snapshot was made: two points with no other between them.
    pub(crate) snapshots: BTreeMap<u32, (u64, u64)>,
    /// What the last scrub that has ended found.
    pub(crate) scrubbed: Option<(GroupNo, ScrubReport)>,
    pub(crate) lists: Lists,
    pub(crate) acknowledged: u64,
    /// Moves that a plan made.
    pub(crate) planned: u64,
    /// Groups that the volume went on without, and those that were served again.
    pub(crate) offline: u64,
    pub(crate) online: u64,
    pub(crate) steps: u64,
    pub(crate) tracing: bool,
    pub(crate) timeline: Option<Timeline>,
    hash: u64,
    /// Everything is whole and at rest, after all faults.
    whole: bool,
    pub(crate) unreadable: u64,
    pub(crate) failure: Option<Failure>,
}

/// What became of one run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What its faults could destroy.
    pub mode: Mode,
    /// Everything was whole and at rest in the end.
    pub whole: bool,
    /// Operations that ended in an error because something could not be read.
    pub unreadable: u64,
    /// What went wrong, in words.
    pub failure: Option<String>,
    /// The row that it went wrong in, if it is about one.
    pub row: Option<RowAddr>,
    /// Two runs of a seed have the same.
    pub hash: u64,
    /// Operations that the checker looked at.
    pub ops: usize,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Moves of slots that a plan made.
    pub planned: u64,
    /// Groups that the volume went on without for a while.
    pub offline: u64,
    /// Those that were served again.
    pub online: u64,
    /// Faults by class.
    pub faults: BTreeMap<Fault, u64>,
    /// Simulated microseconds.
    pub time: u64,
    /// Events.
    pub steps: u64,
    /// Epochs the volume went through.
    pub epochs: u32,
    /// Snapshots that were made.
    pub snapshots: u64,
}

pub(crate) fn node_id(at: At) -> NodeId {
    NodeId(at as u64 + 1)
}

pub(crate) fn addresses(at: At) -> NodeAddresses {
    let port = 1000 + u16::try_from(at).unwrap_or(0) * 10;
    let to = |offset| ([127, 0, 0, 1], port + offset).into();
    NodeAddresses { quic: to(0), api: to(1), nbd: to(2) }
}

pub(crate) fn store_id(at: At) -> StoreId {
    StoreId(Uuid::from_u128(0x5_0000 + at as u128))
}

/// Runs one seed.
pub fn run(seed: u64, mode: Mode, tracing: bool) -> Report {
    let mut world = World::new(seed, mode, tracing);
    world.run();
    world.report()
}

impl Report {
    /// The commands that show what a seed does, a line each.
    pub fn replay(&self, seed: u64) -> String {
        let beyond = if self.mode == Mode::Beyond { " --beyond" } else { "" };
        let sim =
            format!("cargo run --release -p smalti-jepsen --bin sim -- --seed {seed}{beyond}");
        let row = self.row.map(|row| format!("\nits row: {sim} --row {row}"));
        format!("replay: {sim} --trace{}", row.unwrap_or_default())
    }
}

impl World {
    pub(crate) fn new(seed: u64, mode: Mode, tracing: bool) -> Self {
        let mut rng = Rng::new(seed);
        let mut swarm = Swarm::draw(&mut rng, mode);
        // Without a draw: the other worlds go as they would without lists.
        swarm.lists = seed.is_multiple_of(4);
        let count = usize::try_from(swarm.nodes).unwrap_or(1);
        let nodes = (0..count)
            .map(|at| Node {
                at,
                life: 0,
                up: false,
                paused: false,
                changed: 0,
                stash: VecDeque::new(),
                store: store_id(at),
                disk: Arc::new(MemoryStore::new(store_id(at))),
                next_run: RunId::default(),
                past: VecDeque::new(),
                copy: None,
                disk_slow: 1,
                links: BTreeMap::new(),
                sessions: 0,
                offset: rng.below(1_000_000 * MS),
                ppm: i64::try_from(rng.below(2 * swarm.drift + 1)).unwrap_or(0)
                    - i64::try_from(swarm.drift).unwrap_or(0),
                map_cut: 0,
                process: None,
            })
            .collect();
        let clients = (0..swarm.clients).map(|_| Client::default()).collect();
        let mut world = Self {
            swarm,
            rng,
            runs: 0,
            now: 1,
            queue: Queue::default(),
            nodes,
            sessions: Vec::new(),
            cuts: BTreeMap::new(),
            cut_since: BTreeMap::new(),
            slow: 1,
            volume: VolumeNo(1),
            map: Arc::default(),
            maps: Vec::new(),
            map_away: false,
            shrinks: 0,
            suspected: None,
            clients,
            history: History::default(),
            moment: 1,
            stormy: true,
            reading_back: false,
            acked: BTreeMap::new(),
            issued: BTreeMap::new(),
            trimmed: BTreeSet::new(),
            written: BTreeSet::new(),
            rotten: BTreeSet::new(),
            lost_writes: BTreeSet::new(),
            before: BTreeMap::new(),
            forgot: BTreeSet::new(),
            gone: BTreeMap::new(),
            counts: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            scrubbed: None,
            lists: Lists::default(),
            acknowledged: 0,
            planned: 0,
            offline: 0,
            online: 0,
            whole: false,
            unreadable: 0,
            steps: 0,
            tracing,
            timeline: None,
            hash: 0xcbf2_9ce4_8422_2325,
            failure: None,
        };
        world.found();
        world
    }

    /// The cluster and its volume; then every node starts.
    fn found(&mut self) {
        let swarm = self.swarm.clone();
        self.trace(|| format!("{swarm:?}"));
        let count = self.nodes.len();
        let holders = vec![ShareHolder { node: node_id(0), share: 1 }];
        let custody = Custody {
            share_epoch: 1,
            threshold: 1,
            holders,
            commitments: vec![7],
            sealed_for_recovery: Vec::new(),
        };
        self.must(&Command::InitCluster {
            cluster: ClusterId(Uuid::from_u128(1)),
            nodes: (0..count).map(|at| (node_id(at), format!("n{at}"), addresses(at))).collect(),
            custody: custody.clone(),
            recovery: None,
        });
        for at in 0..count {
            let first = StoreStart::first(store_id(at), node_id(at), Incarnation(0));
            self.must(&Command::RegisterStore(first));
            self.nodes[at].next_run = first.run;
        }
        let slots = usize::from(swarm.data + swarm.parity);
        let groups: Vec<Vec<StoreId>> = (0..swarm.groups)
            .map(|_| {
                let mut all: Vec<At> = (0..count).collect();
                self.rng.shuffle(&mut all);
                all.into_iter().take(slots).map(store_id).collect()
            })
            .collect();
        let key_epoch = KeyEpoch {
            no: KeyEpochNo(1),
            timestamp: 1,
            since: 0,
            sealed: 0,
            shard_keys: vec![vec![1; 8]; groups.len() * usize::from(swarm.data)],
            place_key: vec![2; 8],
            custody,
        };
        let created = self.must(&Command::CreateVolume(Box::new(NewVolume {
            id: VolumeId(Uuid::from_u128(2)),
            name: "vol".into(),
            size: 1 << 30,
            data: swarm.data,
            parity: swarm.parity,
            shard_size: 1 << 20,
            min_insync: swarm.min_insync,
            read_mode: swarm.read_mode,
            groups,
            key_epoch,
        })));
        if let Applied::Created(no) = created {
            self.volume = no;
        }
        for at in 0..count {
            let later = self.rng.below(50 * MS);
            self.queue.push(later, Ev::Start(at));
        }
        for client in 0..self.clients.len() {
            let later = 100 * MS + self.rng.below(50 * MS);
            self.queue.push(later, Ev::Client(client));
        }
        self.queue.push(60 * MS, Ev::Leader);
        if self.swarm.snapshot_every > 0 {
            self.queue.push(500 * MS, Ev::Snapshot);
        }
        if self.swarm.scrub_every > 0 {
            self.queue.push(700 * MS, Ev::Scrub);
        }
        if self.swarm.plans {
            self.queue.push(900 * MS, Ev::Places);
        }
        self.queue.push(3000 * MS, Ev::Fault);
    }

    fn must(&mut self, command: &Command) -> Applied {
        let applied = self.apply(command);
        if let Applied::Rejected(why) = &applied {
            self.fail(format!("{command:?} was refused: {why}"));
        }
        applied
    }

    pub(crate) fn run(&mut self) {
        self.storm();
        self.calm();
    }

    fn storm(&mut self) {
        let end = 3000 * MS + self.swarm.length;
        while self.failure.is_none() && self.now < end {
            self.step();
        }
    }

    /// All faults are over: within a bound everything is whole, and what was written is there.
    fn calm(&mut self) {
        if self.failure.is_some() {
            return;
        }
        self.heal();
        let end = self.now + HEALING;
        // Proposals that were stuck somewhere may still come through for a while.
        let mut next_look = self.now + STRAGGLERS;
        let mut steady = 0;
        let mut seen = 0;
        while self.failure.is_none() {
            self.step();
            if self.now >= next_look {
                next_look = self.now + 100 * MS;
                // A proposal may be under way that changes it once more.
                let whole = self.is_whole().is_ok() && self.map.version == seen;
                steady = if whole { steady + 1 } else { 0 };
                seen = self.map.version;
                if steady >= STEADY {
                    self.whole = true;
                    break;
                }
            }
            if self.now > end && self.is_beyond() {
                break;
            }
            if self.now > end {
                let why = self.is_whole().err().unwrap_or_default();
                self.fail(format!("not whole {} s after healing: {why}", HEALING / 1000 / MS));
                return;
            }
        }
        self.read_back();
        let epoch = self.volume().map(|volume| volume.epoch);
        let end = self.now + HEALING;
        while self.failure.is_none() && self.clients.iter().any(Client::is_busy) {
            self.step();
            if self.now > end && self.is_beyond() {
                break;
            }
            if self.now > end {
                self.fail("reads of a whole volume do not end");
            }
        }
        self.scrub_all();
        // Time for the watermark to come everywhere.
        let end = self.now + 500 * MS;
        while self.failure.is_none() && self.now < end {
            self.step();
        }
        if self.is_beyond() {
            self.whole &= self.is_whole().is_ok();
            return self.check_end();
        }
        if self.failure.is_none()
            && let Err(why) = self.is_whole()
        {
            self.fail(format!("was whole, and is not any more: {why}"));
        }
        if self.failure.is_none() && epoch != self.volume().map(|volume| volume.epoch) {
            self.fail(format!("the epoch moves on without a fault, from {epoch:?}"));
        }
        self.check_end();
    }

    fn check_end(&mut self) {
        if self.failure.is_some() {
            return;
        }
        let rest = if self.whole { self.check_rest() } else { Ok(()) };
        let rest = if self.is_beyond() { rest } else { rest.and_then(|()| self.check_lists()) };
        let history = || self.history.check().map_err(|((row, _), why)| Failure::at(row, why));
        if let Err(failure) = rest.and_then(|()| history()) {
            self.fail(failure);
        }
    }

    pub(crate) fn is_beyond(&self) -> bool {
        self.swarm.mode == Mode::Beyond
    }

    pub(crate) fn report(self) -> Report {
        let mut hash = self.hash;
        for node in &self.nodes {
            let print = node.disk.fingerprint();
            hash = mixed(hash, u64::try_from(print & u128::from(u64::MAX)).unwrap_or(0));
        }
        Report {
            mode: self.swarm.mode,
            whole: self.whole,
            unreadable: self.unreadable,
            row: self.failure.as_ref().and_then(|failure| failure.row),
            failure: self.failure.map(|failure| failure.why),
            hash,
            ops: self.history.len(),
            acknowledged: self.acknowledged,
            planned: self.planned,
            offline: self.offline,
            online: self.online,
            faults: self.counts,
            time: self.now,
            steps: self.steps,
            epochs: self.map.volumes.values().next().map_or(0, |volume| volume.epoch.0),
            snapshots: self.snapshots.len() as u64,
        }
    }

    pub(crate) fn step(&mut self) {
        let Some((at, event)) = self.queue.pop() else {
            self.fail("nothing is going to happen any more");
            return;
        };
        self.watch(at);
        self.now = self.now.max(at);
        self.steps += 1;
        if self.steps > STEPS_MAX {
            self.fail(format!("no end after {STEPS_MAX} events"));
        }
        if let Some(life) = event.process() {
            if !self.is_alive(life) {
                return;
            }
            if self.nodes[life.at].paused {
                self.nodes[life.at].stash.push_back(event);
                return;
            }
        }
        self.mix(self.now);
        match event {
            Ev::Frame(id) => self.frame_arrives(id),
            Ev::Reply(id) => self.reply_arrives(id),
            Ev::Broken(id) => {
                let Session { from, store, .. } = self.sessions[id];
                if self.is_alive(from) {
                    self.session_is_down(id, from, store);
                }
            }
            Ev::Timeout(id) => self.timeout(id),
            Ev::Connect { from, store } => self.connect(from, store),
            Ev::Read { to, session, frame } => self.read(to, session, &frame),
            Ev::Committed(life) => self.committed(life),
            Ev::Map { to, map } => self.map_arrives(to, map),
            Ev::MapAtCore { to, map } => self.map_at_core(to.at, map),
            Ev::Tick(life) => self.tick(life),
            Ev::Flush(life) => self.flush(life),
            Ev::Propose { from, command, again } => self.proposed(from, command, again),
            Ev::Refused { to, command, why } => {
                let event = smalti_rowcommit::Event::Refused { command: *command, why };
                self.coordinate(to.at, event);
            }
            Ev::Client(client) => self.client_turn(client),
            Ev::Invoke { client, op, at } => self.invoke(client, op, at),
            Ev::Deadline { client, op } => self.client_unknown(client, op),
            Ev::Late { blocks } => self.late_write(blocks),
            Ev::Snapshot => self.snapshot_turn(),
            Ev::Scrub => self.scrub_turn(),
            Ev::Places => self.places_turn(),
            Ev::Leader => self.leader(),
            Ev::Elect => self.elect_any(),
            Ev::Attach(at) => self.attach(at),
            Ev::Fault => self.fault(),
            Ev::Depose => self.depose(),
            Ev::RestartOthers(at) => self.restart_others(at),
            Ev::Over(fault, a, b) => self.over(fault, a, b),
            Ev::Resume(at) => self.resume(at),
            Ev::Start(at) => self.start(at),
            Ev::Replace(store) => self.replace(store),
        }
    }

    pub(crate) fn volume(&self) -> Option<&Volume> {
        self.map.volumes.get(&self.volume)
    }

    pub(crate) fn node_of(&self, store: StoreId) -> At {
        let at = self.nodes.iter().position(|node| node.store == store);
        at.or_else(|| self.gone.get(&store).copied()).unwrap_or(0)
    }

    /// The next point in the order of what clients see.
    pub(crate) fn tock(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    pub(crate) fn count(&mut self, fault: Fault, begins: bool) {
        *self.counts.entry(fault).or_default() += u64::from(begins);
    }

    pub(crate) fn mix(&mut self, with: u64) {
        self.hash = mixed(self.hash, with);
    }

    pub(crate) fn fail(&mut self, failure: impl Into<Failure>) {
        if self.failure.is_none() {
            let failure = failure.into();
            self.trace(|| format!("FAILED: {}", failure.why));
            self.failure = Some(failure);
        }
    }

    pub(crate) fn trace(&self, line: impl FnOnce() -> String) {
        if self.tracing {
            eprintln!("{:>10.3} {}", self.now as f64 / 1000.0, line());
        }
    }
}

fn mixed(hash: u64, with: u64) -> u64 {
    (hash.rotate_left(5) ^ with).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
