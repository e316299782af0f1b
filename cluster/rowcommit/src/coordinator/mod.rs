//! The coordinator of one volume: the single party that orders updates of its rows in an epoch.
//!
//! Feed it [`Event`]s with [`Coordinator::handle`], as many as are at hand, then perform what
//! [`Coordinator::drain`] returns: requests that wait for the same store leave in one frame, and
//! the store makes them durable with one sync.
//!
//! C1. Nothing is read or written for a client before `Activate` of this epoch is in the map.
//! C2. A version is issued once, while active, and the watermark never passes an undecided one.
//! C3. An update is acknowledged when all its slots in `insync ∪ pending growth` hold it durably.
//! C4. A read is answered after its bytes are in hand *and then* enough leases were found valid, or
//!     after enough stores confirmed the epoch in a round that began after the read.
//! C5. A row has at most one undecided update; reads of a row and updates of it exclude each other.
//! C6. A snapshot is proposed with no update undecided, and none is issued before the epoch is over.

mod admit;
mod api;
mod blocks;
mod cache;
mod catchup;
mod confirm;
mod decide;
mod describe;
mod digest;
mod evidence;
mod gather;
mod growth;
mod leave;
mod links;
mod listing;
mod map;
mod offline;
mod progress;
mod read;
mod repair;
mod rows;
mod scrub;
mod settle;
mod short;
mod snapshot;
mod suspects;
mod takeover;
mod unrepaired;
mod walk;
mod write;

pub use api::{
    Action, Alarm, BACKGROUND, BlockWrite, CoordinatorConfig, Event, OpError, Phase, Stats,
};
pub use blocks::{BlockList, Contents, ListedBlock};
pub use scrub::ScrubReport;

use crate::governor::{Burden, Governor};
use crate::msg::{Answer, Ask, Reject, Reply, Request};
use crate::time::Time;
use blocks::Pages;
use cache::VecCache;
use catchup::Catchup;
use confirm::Confirms;
use links::Links;
use progress::Missed;
use rows::{Row, Task, TaskId};
use scrub::Scrub;
use smalti_map::mutant::{Mutant, lives};
use smalti_map::{ClusterMap, Command, Volume};
use smalti_storage::code::Code;
use smalti_storage::ids::{Epoch, GroupNo, Incarnation, RowAddr, Slot, SlotSet, StoreId, Ver};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use suspects::Suspects;
use takeover::Takeover;

/// A proposal without effect is made again after this long: it may have been lost with a leader,
/// and the compare-and-set on the epoch makes the repetition harmless.
const PROPOSE_AGAIN: Duration = Duration::from_millis(400);

/// Slots that may repair as much as they may at the same time.
const WINDOWS: usize = 16;

/// One slot of one group.
type Place = (GroupNo, Slot);

/// A slot of a row and a store that is asked for it: the one that holds it, or one that is to.
type Seat = (Slot, StoreId);

/// Why a request was sent: what to do with its answer.
#[derive(Clone, Debug)]
enum Purpose {
    Task { task: TaskId, slot: Slot, round: u32 },
    Prep { task: TaskId, row: RowAddr, slot: Slot },
    Abort { task: TaskId, slot: Slot },
    Vec { task: TaskId, slot: Slot, round: u32 },
    Look { task: TaskId },
    Repaired { task: TaskId },
    Lease,
    Confirm { round: u64 },
    Forget,
    Promise,
    Settle { row: RowAddr, slot: Slot },
    SettleDone,
    Opened { group: GroupNo, slot: Slot },
    Scan { group: GroupNo, learner: Slot, of: Seat, round: u64 },
    Leftovers { group: GroupNo, learner: Slot, round: u64 },
    Changed { group: GroupNo, learner: Slot, of: Seat, round: u64 },
    Vet { group: GroupNo, of: Slot, round: u64 },
    Vetted,
    Digest { group: GroupNo, of: Slot, round: u64 },
    List { op: u64, of: Slot, round: u64 },
    Proof { task: TaskId, slot: Slot },
}

#[derive(Clone, Debug)]
struct Pending {
    store: StoreId,
    place: Option<Place>,
    ask: Ask,
    purpose: Purpose,
    sent_at: Time,
    /// Sessions in which it was sent again.
    sessions: u8,
    /// To be sent again once this side or the other has caught up with the map.
    held: bool,
}

/// The coordinator of one volume.
#[derive(Clone)]
pub struct Coordinator {
    config: CoordinatorConfig,
    now: Time,
    last_tick: Option<Time>,
    /// When it began to serve in the epoch it took over.
    active_since: Time,
    map: Arc<ClusterMap>,
    volume: Option<Volume>,
    /// Stores in sync in some group of the volume.
    insync_stores: Vec<StoreId>,
    code: Option<Arc<Code>>,
    zeroes: Arc<[u8]>,
    epoch: Epoch,
    phase: Phase,
    /// Since when the map names this process for an epoch that it does not act in.
    idle_since: Option<Time>,
    /// The epoch that was given up.
    released: Option<Epoch>,
    links: Links,
    next_request: u64,
    pending: BTreeMap<u64, Pending>,
    held: Vec<u64>,
    outbox: BTreeMap<StoreId, Vec<Request>>,
    actions: Vec<Action>,
    takeover: Takeover,
    catchup: Catchup,
    governor: Governor,
    /// What the rest of the cluster has to do.
    around: Burden,
    /// Updates of groups with too few in sync, which hold no row.
    parked: BTreeMap<RowAddr, write::Update>,
    /// Stores whose disks hold others up.
    slow: BTreeSet<StoreId>,
    suspects: Suspects,
    scrub: Option<Scrub>,
    lists: BTreeMap<u64, Pages>,
    /// When background work was last asked for.
    background_at: Option<Time>,
    cache: VecCache,
    repairs: BTreeMap<TaskId, (Seat, repair::RepairState)>,
    rows: BTreeMap<RowAddr, Row>,
    tasks: BTreeMap<TaskId, Task>,
    next_task: u64,
    /// Tasks that may be able to go on.
    runnable: VecDeque<TaskId>,
    next_seq: u64,
    last_issued: Ver,
    inflight: BTreeMap<Ver, RowAddr>,
    /// Operations that can not begin yet, each with when it came, or was looked at last.
    waiting_ops: VecDeque<(Time, Event)>,
    writes: BTreeMap<u64, write::WriteOp>,
    reads: BTreeMap<u64, read::ReadOp>,
    /// Reads with their bytes in hand, that wait for leases or confirmations.
    lease_wait: BTreeSet<u64>,
    confirms: Confirms,
    /// Snapshots that are being made, the first one now.
    snapshots: VecDeque<snapshot::Making>,
    /// Updates that are ready and wait for a snapshot to be made.
    frozen: BTreeSet<TaskId>,
    lost_rows: BTreeSet<RowAddr>,
    /// Slots that could not tell what they hold when their rows were settled, until they are
    /// repaired.
    distrusted: BTreeSet<(RowAddr, Seat)>,
    /// When lost rows are to be decided again, and how often that was in vain.
    decide_again: Option<(Time, u32)>,
    /// Rows that were updated while one of their slots was out. For people: catch-up compares.
    missed: Missed,
    /// The start of each in-sync store that this epoch began with.
    incarnations: BTreeMap<StoreId, Incarnation>,
    /// Stores that are to be taken out together, in this epoch: the first request made since that came
    /// to light, and when it was still wanted.
    leaving: BTreeMap<Vec<StoreId>, (u64, Time)>,
    proposed: BTreeMap<&'static str, (Epoch, Time)>,
    stats: Stats,
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coordinator")
            .field("volume", &self.config.volume)
            .field("epoch", &self.epoch)
            .field("phase", &self.phase)
            .field("pending", &self.pending.len())
            .field("tasks", &self.tasks.len())
            .field("rows", &self.rows.len())
            .field("inflight", &self.inflight)
            .field("lists", &self.lists)
            .field("waiting", &self.waiting_ops.len())
            .field("catchup", &self.catchup)
            .field("takeover", &self.takeover)
            .finish_non_exhaustive()
    }
}

impl Coordinator {
    /// A coordinator that does nothing until a map names it.
    pub fn new(config: CoordinatorConfig) -> Self {
        let governor = Governor::new(WINDOWS * config.catchup_window).with_phase(config.phase);
        Self {
            cache: VecCache::new(config.cached_rows),
            zeroes: vec![0; config.record_len].into(),
            config,
            now: Time::default(),
            last_tick: None,
            active_since: Time::default(),
            map: Arc::default(),
            volume: None,
            insync_stores: Vec::new(),
            code: None,
            epoch: Epoch(0),
            phase: Phase::Idle,
            idle_since: None,
            released: None,
            links: Links::default(),
            next_request: 1,
            pending: BTreeMap::new(),
            held: Vec::new(),
            outbox: BTreeMap::new(),
            actions: Vec::new(),
            takeover: Takeover::default(),
            catchup: Catchup::default(),
            governor,
            around: Burden::default(),
            parked: BTreeMap::new(),
            slow: BTreeSet::new(),
            suspects: Suspects::default(),
            scrub: None,
            lists: BTreeMap::new(),
            background_at: None,
            repairs: BTreeMap::new(),
            rows: BTreeMap::new(),
            tasks: BTreeMap::new(),
            next_task: 1,
            runnable: VecDeque::new(),
            next_seq: 1,
            last_issued: Ver::NONE,
            inflight: BTreeMap::new(),
            waiting_ops: VecDeque::new(),
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            lease_wait: BTreeSet::new(),
            confirms: Confirms::default(),
            snapshots: VecDeque::new(),
            frozen: BTreeSet::new(),
            lost_rows: BTreeSet::new(),
            distrusted: BTreeSet::new(),
            decide_again: None,
            missed: Missed::default(),
            incarnations: BTreeMap::new(),
            leaving: BTreeMap::new(),
            proposed: BTreeMap::new(),
            stats: Stats::default(),
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The epoch it acts in.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What the rest of the cluster is to know of its repairs and its clients.
    pub fn burden(&self) -> Burden {
        self.governor.burden(self.now)
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        let slots_out = self.volume.as_ref().map_or(0, |volume| {
            let all = volume.all_slots();
            volume.groups.iter().map(|g| u64::from(all.minus(g.insync).len())).sum()
        });
        Stats {
            rows_behind: self.rows_behind(),
            rows_lost: self.rows_lost(),
            rows_left: self.rows_left(),
            learners: self.catchup.learners.len() as u64,
            stuck: self.catchup.learners.values().filter(|l| l.is_in_vain()).count() as u64,
            held_back: self.is_held_back(),
            unheard: self.unheard(),
            slots_out,
            suspects: self.suspects.len() as u64,
            scrubbing: self.scrub.as_ref().map(|scrub| scrub.group),
            in_flight: self.inflight.len() as u64,
            ..self.stats
        }
    }

    /// Stores in sync that may be gone. Where reads are confirmed one by one nobody is asked anything
    /// while there are none: there only the session counts.
    fn unheard(&self) -> u64 {
        let stores = self.insync_stores.iter();
        let gone = stores.filter(|store| match self.confirms_reads() {
            true => !self.links.is_up(**store),
            // Leases are asked for every quarter of one.
            false => {
                let lately = self.config.suspect_after + self.config.lease / 4;
                !self.links.heard_within(**store, self.now, lately)
            }
        });
        gone.count() as u64
    }

    /// Whether less is repaired at once than could be, for the sake of clients.
    fn is_held_back(&self) -> bool {
        let governed = self.config.govern && self.governor.holds_back();
        governed && !self.catchup.learners.is_empty()
    }

    /// Rows that the takeover could not decide, and those of which a slot can not be repaired.
    fn rows_lost(&self) -> u64 {
        self.catchup.unrepaired.beyond_repair().union(&self.lost_rows).count() as u64
    }

    /// Whether nothing is queued, in flight, asked or remembered for any operation; what is left
    /// are leases and the caches. For tests that look for leaks.
    pub fn is_quiet(&self) -> bool {
        self.rows.is_empty()
            && self.tasks.is_empty()
            && self.repairs.is_empty()
            && self.inflight.is_empty()
            && self.writes.is_empty()
            && self.reads.is_empty()
            && self.lease_wait.is_empty()
            && self.waiting_ops.is_empty()
            && self.parked.is_empty()
            && self.snapshots.is_empty()
            && self.frozen.is_empty()
            && self.catchup.is_quiet()
            && self.suspects.is_quiet()
            && self.scrub.is_none()
            && self.lists.is_empty()
            && self.pending.values().all(|p| {
                matches!(p.purpose, Purpose::Lease | Purpose::Confirm { .. } | Purpose::Forget)
            })
    }

    /// Takes one event. `now` must have been read after the event was received: a lease that was
    /// valid before a reply's bytes were read on the store proves nothing about them.
    pub fn handle(&mut self, now: Time, event: Event) {
        if !(lives(Mutant::LeaseBeforeBytes) && matches!(event, Event::Reply { .. })) {
            self.now = now;
        }
        if let Event::Write { op, .. } | Event::Read { op, .. } | Event::List { op, .. } = &event {
            match *op < BACKGROUND {
                true => self.governor.began(*op, now),
                false => self.background_at = Some(now),
            }
        }
        match event {
            Event::Map(map) => self.on_map(map),
            Event::LinkUp { store, session } => self.on_link_up(store, session),
            Event::LinkDown { store } => self.on_link_down(store),
            Event::Unheard { store, since } => self.on_unheard(store, since),
            Event::Reply { store, reply } => self.on_reply(store, reply),
            Event::Write { .. }
            | Event::Read { .. }
            | Event::List { .. }
            | Event::Snapshot { .. } => match self.phase {
                Phase::Active => self.start(event),
                _ => self.waiting_ops.push_back((self.now, event)),
            },
            Event::Refused { command: Command::AddSnapshot { epoch, .. }, why } => {
                self.snapshot_refused(epoch, &why);
            }
            // Whatever refused it is in a map that is on its way, and that decides.
            Event::Refused { .. } => {}
            Event::Slow(stores) => self.slow = stores,
            Event::Around(burden) => self.around = burden,
            Event::Scrub { group } => self.start_scrub(group),
            Event::Tick => self.on_tick(),
        }
        self.run_tasks();
    }

    /// A client's operation begins.
    fn start(&mut self, event: Event) {
        match event {
            Event::Write { op, blocks } => self.start_write(op, blocks),
            Event::Read { .. } => self.start_read(event),
            Event::List { op, group, after } => self.start_list(op, group, after),
            Event::Snapshot { op, name, created } => self.start_snapshot(op, name, created),
            _ => {}
        }
    }

    /// What is to be done since the last call.
    pub fn drain(&mut self) -> Vec<Action> {
        self.propose_snapshot();
        self.ask_confirms();
        self.flush();
        for action in &self.actions {
            if let Action::WriteDone { op, .. } | Action::ReadDone { op, .. } = action {
                self.governor.ended(*op, self.now);
            }
        }
        std::mem::take(&mut self.actions)
    }

    /// Stops serving: gives leases back and fails what is in flight. Used before a handover. If
    /// nobody else has been elected after a while, this process has itself elected anew.
    pub fn release(&mut self) {
        for store in self.links.stores() {
            self.ask_store(store, None, Ask::Release, Purpose::Forget);
        }
        self.flush();
        self.released = Some(self.epoch);
        self.idle_since = Some(self.now);
        if !lives(Mutant::ServeAfterRelease) {
            self.resign();
        }
    }

    fn on_reply(&mut self, store: StoreId, reply: Reply) {
        let first = !self.links.has_answered(store);
        let back = !self.links.is_believed(store);
        if !self.links.heard(store, reply.session, self.now) {
            return;
        }
        if first && self.phase == Phase::Active {
            self.catchup_on_map();
        }
        let believed = self.believes(store, reply.incarnation);
        if believed {
            if back {
                self.repair_again_with(store);
            }
            let request = reply.answers.iter().map(|(id, _)| *id).max().unwrap_or(0);
            let served = |(_, answer): &(u64, Answer)| {
                !matches!(
                    answer,
                    Answer::PromiseLater(_) | Answer::Rejected(Reject::StaleEpoch { .. })
                )
            };
            let served = reply.answers.iter().any(served);
            self.links.believed(store, request, served, self.now);
        } else {
            self.links.not_believed(store);
        }
        for (id, answer) in reply.answers {
            if !believed || matches!(answer, Answer::Rejected(Reject::StaleEpoch { .. })) {
                // One of us is behind. Kept, and sent again when our map moves or time passes.
                if let Some(pending) = self.pending.get_mut(&id) {
                    pending.held = true;
                    self.held.push(id);
                }
                continue;
            }
            let Some(pending) = self.take_pending(id) else { continue };
            self.dispatch(&pending, answer);
        }
    }

    fn dispatch(&mut self, pending: &Pending, answer: Answer) {
        match pending.purpose {
            Purpose::Task { task, slot, round } => self.on_gathered(task, slot, round, answer),
            Purpose::Vec { task, slot, round } => self.on_vec(task, slot, round, answer),
            Purpose::Prep { task, row, slot } => {
                self.on_prepared(task, row, (slot, pending.store), &answer);
            }
            Purpose::Abort { task, slot } => self.on_aborted(task, (slot, pending.store)),
            Purpose::Lease => {
                if answer == Answer::Granted {
                    let held = crate::time::lease_held(self.config.lease);
                    let late = lives(Mutant::LeaseFromAnswer);
                    let from = if late { self.now } else { pending.sent_at };
                    self.links.leased(pending.store, from.after(held));
                    self.check_leases();
                }
            }
            Purpose::Confirm { round } => {
                if answer == Answer::Ok {
                    self.confirms.answered(pending.store, round);
                    self.check_leases();
                }
            }
            Purpose::Look { task } => self.on_looked(task, answer),
            Purpose::Repaired { task } => self.on_repaired(task, &answer),
            Purpose::Forget => {}
            Purpose::Vetted => self.on_told_vetted(pending.store),
            Purpose::Promise => self.on_promised(pending.store, answer),
            Purpose::Settle { row, slot } => self.on_versions(row, slot, answer),
            Purpose::SettleDone => self.on_settled(&answer),
            Purpose::Opened { group, slot } => self.catchup.opened((group, slot)),
            Purpose::Scan { group, learner, of, round } => {
                self.on_scanned((group, learner), of, round, answer);
            }
            Purpose::Leftovers { group, learner, round } => {
                self.on_leftovers((group, learner), round, answer);
            }
            Purpose::Changed { group, learner, of, round } => {
                self.on_changed((group, learner), of, round, answer);
            }
            Purpose::Vet { group, of, round } => self.on_vet_page(group, of, round, answer),
            Purpose::Digest { group, of, round } => self.on_digested(group, of, round, answer),
            Purpose::List { op, of, round } => self.on_listed(op, of, round, answer),
            Purpose::Proof { task, slot } => self.on_proven(task, slot, Some(answer)),
        }
    }

    /// An answer that will never come, because the slot is not reached or needed any more.
    fn lose_answer(&mut self, pending: &Pending) {
        match pending.purpose {
            Purpose::Task { task, slot, round } | Purpose::Vec { task, slot, round } => {
                self.slot_is_gone(task, slot, round);
            }
            Purpose::Prep { task, .. } => self.runnable.push_back(task),
            Purpose::Abort { task, slot } => self.on_aborted(task, (slot, pending.store)),
            Purpose::Look { task } | Purpose::Repaired { task } => self.repair_lost(task),
            Purpose::Scan { group, learner, round, .. } => {
                self.scan_lost((group, learner), round);
            }
            Purpose::Leftovers { group, learner, round }
            | Purpose::Changed { group, learner, round, .. } => {
                self.listing_lost((group, learner), round);
            }
            Purpose::Vet { group, round, .. } => self.suspects.page_lost(group, round),
            Purpose::Digest { round, .. } => {
                self.scrub.iter_mut().for_each(|scrub| scrub.page_lost(round));
            }
            Purpose::List { op, round, .. } => self.list_lost(op, round),
            Purpose::Proof { task, slot } => self.on_proven(task, slot, None),
            _ => {}
        }
    }

    /// Whether the proposal was made now, and not lately.
    fn propose(&mut self, kind: &'static str, command: Command) -> bool {
        if let Some((epoch, at)) = self.proposed.get(kind)
            && *epoch == self.epoch
            && self.now.since(*at) < PROPOSE_AGAIN
        {
            return false;
        }
        self.proposed.insert(kind, (self.epoch, self.now));
        self.actions.push(Action::Propose(command));
        true
    }

    fn n(&self) -> u8 {
        self.volume.as_ref().map_or(0, |volume| volume.data)
    }

    fn data_slots(&self) -> SlotSet {
        SlotSet::first(self.n())
    }

    fn parity_slots(&self) -> SlotSet {
        self.volume.as_ref().map_or(SlotSet::EMPTY, |v| SlotSet::range(v.data, v.slots()))
    }

    fn insync(&self, group: GroupNo) -> SlotSet {
        let group = self.volume.as_ref().and_then(|volume| volume.group(group));
        group.map_or(SlotSet::EMPTY, |group| group.insync)
    }

    fn is_insync(&self, (group, slot): Place) -> bool {
        self.insync(group).contains(slot)
    }

    fn store_of(&self, group: GroupNo, slot: Slot) -> Option<StoreId> {
        self.volume.as_ref()?.group(group)?.slots.get(slot.index()).copied()
    }
}

#[cfg(test)]
mod tests;
