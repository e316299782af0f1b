//! What a step does. Whatever the core asks for is put where the next step finds it.

use super::bounds::Broken;
use super::clients::{Stage, op_of};
use super::state::{Bad, CoordinatorSide, State, StoreSide, VOLUME, node_id, store_id, volume};
use super::step::Step;
use super::{Model, found};
use smalti_map::{Applied, Command};
use smalti_rowcommit::coordinator::{Action, Alarm};
use smalti_rowcommit::msg::{Ask, Frame, Reply};
use smalti_rowcommit::store::read::ReadSide;
use smalti_rowcommit::{Event, StoreCore, Time};
use smalti_storage::ids::{Epoch, StoreId};
use smalti_storage::store::memory::{MemoryStore, Restart};
use smalti_storage::store::{Batch, ShardStore};
use std::sync::Arc;
use std::time::Duration;

/// One step of time: longer than any patience, and two of them longer than a lease.
pub(super) const PASS: Duration = Duration::from_millis(800);

/// How often a coordinator that is awake looks at the clock in one such step: often enough not to
/// take its own silence for that of others.
const LOOKS: u32 = 3;

type Done = Result<(), Bad>;

#[expect(clippy::needless_pass_by_value, reason = "errors are mapped with it")]
fn broken(why: impl ToString) -> Bad {
    Bad::Invariant(why.to_string())
}

/// The epoch a command was planned against.
pub(super) fn planned(command: &Command) -> Option<Epoch> {
    match command {
        Command::Shrink { epoch, .. }
        | Command::Elect { epoch, .. }
        | Command::Activate { epoch, .. }
        | Command::SetOffline { epoch, .. }
        | Command::AddLearners { epoch, .. }
        | Command::Grow { epoch, .. } => Some(*epoch),
        _ => None,
    }
}

impl Model {
    pub(super) fn perform(&self, state: &mut State, step: &Step) -> Done {
        match step {
            Step::Begin { op, node } => self.begin(state, *op, *node),
            Step::Frame { from, to } => self.frame(state, *from, *to),
            Step::Lookup { from, to } => lookup(state, *from, *to),
            Step::Synced { store } => self.synced(state, *store),
            Step::Reply { from, to } => {
                let reply = Arc::make_mut(&mut state.sessions[*to][*from]).replies.pop_front();
                self.answer(state, *to, *from, reply)
            }
            Step::Found { from, to } => {
                let reply = Arc::make_mut(&mut state.sessions[*to][*from]).found.pop_front();
                self.answer(state, *to, *from, reply)
            }
            Step::StoreMap { node, map } => {
                let content = Arc::clone(&state.maps[*map]);
                let side = Arc::make_mut(&mut state.stores[*node]);
                side.map = *map;
                let Some(core) = &mut side.core else { return Ok(()) };
                core.set_map(&content).map_err(broken)
            }
            Step::Map { node, map } => {
                let content = Arc::clone(&state.maps[*map]);
                let Some(side) = &mut state.coordinators[*node] else { return Ok(()) };
                Arc::make_mut(side).map = *map;
                self.tell(state, *node, Event::Map(content))
            }
            Step::Accept { proposal } => {
                let Some((key, command)) = state.proposals.iter().nth(*proposal) else {
                    return Ok(());
                };
                let (key, command) = (key.clone(), command.clone());
                state.proposals.remove(&key);
                self.apply(state, &command)
            }
            Step::Elect { node } => {
                state.left.elections -= 1;
                let epoch = volume(state.map()).epoch;
                let node_no = node_id(*node);
                let incarnation = state
                    .map()
                    .nodes
                    .get(&node_no)
                    .map_or_else(Default::default, |n| n.incarnation);
                let elect = Command::Elect { volume: VOLUME, epoch, node: node_no, incarnation };
                self.apply(state, &elect)
            }
            Step::Drop { from, to } => {
                state.left.drops -= 1;
                self.disconnect(state, *from, *to)?;
                self.connect(state, *from, *to)
            }
            Step::Crash { node, lost } => self.crash(state, *node, *lost),
            Step::Restart { node } => self.restart(state, *node),
            Step::Tick { node } => self.tell(state, *node, Event::Tick),
            Step::Pass { awake } => self.pass(state, *awake),
        }
    }

    fn begin(&self, state: &mut State, op: usize, node: usize) -> Done {
        let Some(side) = &state.coordinators[node] else { return Ok(()) };
        let generation = volume(&state.maps[side.map]).writer_gen;
        let clients = Arc::make_mut(&mut state.clients);
        let event = clients.begin(op, &self.bounds.ops[op], node, generation).map_err(broken)?;
        self.tell(state, node, event)
    }

    /// Feeds a coordinator and does what it wants.
    pub(super) fn tell(&self, state: &mut State, at: usize, event: Event) -> Done {
        let now = state.now;
        self.tell_at(state, at, now, event)
    }

    fn tell_at(&self, state: &mut State, at: usize, now: Time, event: Event) -> Done {
        let Some(side) = &mut state.coordinators[at] else { return Ok(()) };
        let side = Arc::make_mut(side);
        side.core.handle(now, event);
        for action in side.core.drain() {
            self.act(state, at, action)?;
        }
        Ok(())
    }

    fn act(&self, state: &mut State, at: usize, action: Action) -> Done {
        match action {
            Action::Send { store, frame } => {
                self.check_frame(state, at, &frame)?;
                let Some(to) = (0..state.stores.len()).find(|to| store_id(*to) == store) else {
                    return Err(broken(format!("{store} is nobody's")));
                };
                let session = Arc::make_mut(&mut state.sessions[at][to]);
                if session.number == Some(frame.session) {
                    let reads = frame.requests.iter().all(|request| request.ask.is_read());
                    let queue = if reads { &mut session.reads } else { &mut session.frames };
                    queue.push_back(frame);
                }
            }
            Action::Propose(command) => {
                // A proposal may always be lost; without learners nobody comes back.
                let lost = matches!(command, Command::AddLearners { .. }) && !self.bounds.catchup;
                if !lost && planned(&command) == Some(volume(state.map()).epoch) {
                    let key = postcard::to_stdvec(&command).map_err(broken)?;
                    state.proposals.insert(key, command);
                }
            }
            Action::SnapshotDone { op, .. } => {
                return Err(broken(format!("nobody asked for snapshot {op}")));
            }
            Action::WriteDone { op, result } => {
                let Some(op) = op_of(op) else { return Ok(()) };
                let plan = &self.bounds.ops[op];
                let clients = Arc::make_mut(&mut state.clients);
                if clients.write_done(op, plan, result).map_err(Bad::History)? {
                    self.check_acknowledged(state, at, op)?;
                }
            }
            Action::ReadDone { op, result } => {
                let Some(op) = op_of(op) else { return Ok(()) };
                let plan = &self.bounds.ops[op];
                let clients = Arc::make_mut(&mut state.clients);
                clients.read_done(op, plan, result).map_err(Bad::History)?;
            }
            Action::Alarm(Alarm::RowLost { row }) => {
                return Err(Bad::Lost(format!("node {at} finds {row} lost")));
            }
            Action::Alarm(Alarm::RecordLost { row, slot, .. }) => {
                return Err(Bad::Lost(format!("node {at} finds {row}/{slot} lost")));
            }
            Action::Alarm(Alarm::Corrupt { row, slot }) => {
                return Err(broken(format!("node {at} finds {row}/{slot} rotten")));
            }
            Action::Fault { .. }
            | Action::Scrubbed { .. }
            | Action::Listed { .. }
            | Action::Alarm(_) => {}
        }
        Ok(())
    }

    /// The store's side of the next frame.
    fn frame(&self, state: &mut State, from: usize, to: usize) -> Done {
        let session = Arc::make_mut(&mut state.sessions[from][to]);
        let Some(frame) = session.frames.pop_front() else { return Ok(()) };
        let asks = |wanted: &Ask| frame.requests.iter().any(|request| request.ask == *wanted);
        let promise = asks(&Ask::Promise) && frame.epoch > volume(&state.maps[0]).epoch;
        let early = self.bounds.broken == Some(Broken::GrantExpiresEarly) && promise;
        let now = if early { state.now.after(4 * PASS) } else { state.now };
        let side = Arc::make_mut(&mut state.stores[to]);
        if self.bounds.broken == Some(Broken::PromiseNotKept) && promise {
            return forgetful(state, from, to, now, frame);
        }
        let Some(core) = &mut side.core else { return Ok(()) };
        let reply = core.handle(now, node_id(from), frame).map_err(broken)?;
        let (batch, must_sync) = core.take_batch();
        let replies: Vec<(usize, Reply)> = reply.into_iter().map(|reply| (from, reply)).collect();
        let waits = must_sync && !batch.changes.is_empty() && self.bounds.split_sync;
        if waits && self.answers_early() {
            side.committing = Some((batch, Vec::new()));
            send(state, to, replies);
            return Ok(());
        }
        side.committing = Some((batch, replies));
        // A batch that need not be durable is simply there; a crash may lose it none the less.
        if waits { Ok(()) } else { self.synced(state, to) }
    }

    fn synced(&self, state: &mut State, at: usize) -> Done {
        let side = Arc::make_mut(&mut state.stores[at]);
        let Some((batch, replies)) = side.committing.take() else { return Ok(()) };
        commit(side, batch)?;
        if let Some(core) = &mut side.core {
            core.committed();
        }
        send(state, at, replies);
        Ok(())
    }

    fn answer(&self, state: &mut State, to: usize, from: usize, reply: Option<Reply>) -> Done {
        let Some(reply) = reply else { return Ok(()) };
        self.tell(state, to, Event::Reply { store: store_id(from), reply })
    }

    fn apply(&self, state: &mut State, command: &Command) -> Done {
        let mut map = state.map().as_ref().clone();
        if let Applied::Rejected(why) = map.apply(command) {
            return Err(broken(format!("{command:?} was refused: {why}")));
        }
        state.note_map(map).map_err(broken)?;
        self.check_change(state, command)
    }

    fn connect(&self, state: &mut State, from: usize, to: usize) -> Done {
        if state.stores[to].core.is_none() {
            return Ok(());
        }
        let Some(side) = &mut state.coordinators[from] else { return Ok(()) };
        let side = Arc::make_mut(side);
        side.sessions += 1;
        let session = side.sessions;
        Arc::make_mut(&mut state.sessions[from][to]).number = Some(session);
        self.tell(state, from, Event::LinkUp { store: store_id(to), session })
    }

    fn disconnect(&self, state: &mut State, from: usize, to: usize) -> Done {
        let session = Arc::make_mut(&mut state.sessions[from][to]);
        session.clear();
        if session.number.take().is_none() {
            return Ok(());
        }
        self.tell(state, from, Event::LinkDown { store: store_id(to) })
    }

    fn crash(&self, state: &mut State, at: usize, lost: bool) -> Done {
        state.left.crashes -= 1;
        state.coordinators[at] = None;
        let side = Arc::make_mut(&mut state.stores[at]);
        side.core = None;
        side.committing = None;
        side.map = 0;
        let how =
            Restart { clean: false, lost: if lost { usize::MAX } else { 0 }, went_back: lost };
        side.disk.restart(how);
        Arc::make_mut(&mut state.clients).forget(at);
        for other in 0..state.stores.len() {
            self.disconnect(state, at, other)?;
            self.disconnect(state, other, at)?;
        }
        Ok(())
    }

    /// It registers, and goes on from a map as old as can be: a replica does not keep what it has
    /// applied, and what is newer comes again.
    fn restart(&self, state: &mut State, at: usize) -> Done {
        let mut map = state.map().as_ref().clone();
        // To be admitted is written down on the disk, which is shared with the state before until
        // this one has its own.
        let disk = Arc::clone(&Arc::make_mut(&mut state.stores[at]).disk);
        let incarnation = found::register(&mut map, at, &disk).map_err(broken)?;
        state.note_map(map).map_err(broken)?;
        let boot = if self.bounds.broken == Some(Broken::NoBootWait) { Time(0) } else { state.now };
        let first = Arc::clone(&state.maps[0]);
        let side = Arc::make_mut(&mut state.stores[at]);
        let shared: Arc<dyn ShardStore> = Arc::<MemoryStore>::clone(&side.disk);
        let mut core = StoreCore::new(shared, found::store_config(), boot);
        core.set_map(&first).map_err(broken)?;
        side.core = Some(core);
        let core = found::coordinator(at, incarnation);
        let side = CoordinatorSide { core, incarnation, map: 0, sessions: 0 };
        state.coordinators[at] = Some(Arc::new(side));
        self.tell(state, at, Event::Map(first))?;
        for other in 0..state.stores.len() {
            self.connect(state, at, other)?;
            if other != at {
                self.connect(state, other, at)?;
            }
        }
        Ok(())
    }

    fn pass(&self, state: &mut State, awake: u32) -> Done {
        state.left.passes -= 1;
        for look in 1..=LOOKS {
            let now = state.now.after(PASS * look / LOOKS);
            for at in 0..state.stores.len() {
                if awake & 1 << at != 0 {
                    self.tell_at(state, at, now, Event::Tick)?;
                }
            }
        }
        state.now = state.now.after(PASS);
        Ok(())
    }

    /// The node that an operation was given to and its write, once it is acknowledged.
    pub(super) fn acknowledged(state: &State, op: usize) -> bool {
        matches!(state.clients.stages[op], Stage::Done { .. })
    }
}

fn commit(side: &StoreSide, batch: Batch) -> Done {
    if batch.changes.is_empty() {
        return Ok(());
    }
    let promised = |disk: &MemoryStore| disk.volume(VOLUME).map(|state| state.promised);
    let before = promised(&side.disk).map_err(broken)?;
    side.disk.commit(batch).map_err(broken)?;
    let after = promised(&side.disk).map_err(broken)?;
    if after < before {
        return Err(broken(format!("I3: promised {after} after {before}")));
    }
    Ok(())
}

fn send(state: &mut State, from: usize, replies: Vec<(usize, Reply)>) {
    for (to, reply) in replies {
        let session = Arc::make_mut(&mut state.sessions[to][from]);
        if session.number == Some(reply.session) {
            session.replies.push_back(reply);
        }
    }
}

fn lookup(state: &mut State, from: usize, to: usize) -> Done {
    let session = Arc::make_mut(&mut state.sessions[from][to]);
    let Some(frame) = session.reads.pop_front() else { return Ok(()) };
    let side = &state.stores[to];
    let Some(core) = &side.core else { return Ok(()) };
    let disk: Arc<dyn ShardStore> = Arc::<MemoryStore>::clone(&side.disk);
    let reply = ReadSide::new(disk, core.fence()).handle(node_id(from), &frame).map_err(broken)?;
    let session = Arc::make_mut(&mut state.sessions[from][to]);
    session.found.push_back(reply);
    Ok(())
}

/// Answers as the store would, and leaves the store as if it had not been asked.
fn forgetful(state: &mut State, from: usize, to: usize, now: Time, frame: Frame) -> Done {
    let mut other = StoreSide::clone(&state.stores[to]);
    let Some(core) = &mut other.core else { return Ok(()) };
    let reply = core.handle(now, node_id(from), frame).map_err(broken)?;
    send(state, to, reply.into_iter().map(|reply| (from, reply)).collect());
    Ok(())
}

/// The place of a store's node.
pub(super) fn place_of(store: StoreId, nodes: usize) -> Option<usize> {
    (0..nodes).find(|at| store_id(*at) == store)
}
