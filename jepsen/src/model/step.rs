//! What can happen next.

use super::Model;
use super::bounds::Broken;
use super::state::{State, VOLUME, for_store, volume};
use smalti_map::Applied;
use smalti_rowcommit::coordinator::Phase;
use smalti_rowcommit::store::read::ReadSide;
use smalti_storage::store::ShardStore;
use smalti_storage::store::memory::MemoryStore;
use std::fmt;
use std::sync::Arc;

/// One step. Nodes are told by their place; node 0 is the first coordinator, and node `i` has the
/// store of slot `i`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A client's operation comes to a node that believes to serve.
    Begin { op: usize, node: usize },
    /// A store takes the next frame of a coordinator.
    Frame { from: usize, to: usize },
    /// A store looks up what the next frame of reads asks for.
    Lookup { from: usize, to: usize },
    /// What a store collected is durable, and answered.
    Synced { store: usize },
    /// A coordinator takes the next answer of a store.
    Reply { from: usize, to: usize },
    /// The same for reads.
    Found { from: usize, to: usize },
    /// A store adopts a map.
    StoreMap { node: usize, map: usize },
    /// A coordinator adopts a map.
    Map { node: usize, map: usize },
    /// The map takes the proposal of this place.
    Accept { proposal: usize },
    /// The map names a coordinator.
    Elect { node: usize },
    /// A session breaks, and the next one begins.
    Drop { from: usize, to: usize },
    /// A process dies; `lost`: and its disk forgets what need not be durable.
    Crash { node: usize, lost: bool },
    /// It starts again.
    Restart { node: usize },
    /// A coordinator looks at the clock.
    Tick { node: usize },
    /// Time passes. Those coordinators whose bit is set look at the clock meanwhile, the others
    /// have been asleep.
    Pass { awake: u32 },
}

impl Model {
    pub(super) fn list(&self, state: &State, steps: &mut Vec<Step>) {
        if state.bad.is_some() {
            return;
        }
        self.list_clients(state, steps);
        let nodes = self.bounds.slots();
        for from in 0..nodes {
            for to in 0..nodes {
                list_session(state, from, to, steps);
            }
        }
        for (node, side) in state.stores.iter().enumerate() {
            if side.committing.is_some() {
                steps.push(Step::Synced { store: node });
            } else if side.core.is_some() {
                let maps = side.map + 1..state.maps.len();
                steps.extend(maps.map(|map| Step::StoreMap { node, map }));
            }
            if let Some(side) = &state.coordinators[node] {
                let maps = side.map + 1..state.maps.len();
                steps.extend(maps.map(|map| Step::Map { node, map }));
                if side.core.phase() != Phase::Idle || state.believes(node, side.map) {
                    steps.push(Step::Tick { node });
                }
            }
        }
        for (proposal, command) in state.proposals.values().enumerate() {
            let mut map = state.map().as_ref().clone();
            if !matches!(map.apply(command), Applied::Rejected(_)) {
                steps.push(Step::Accept { proposal });
            }
        }
        self.list_faults(state, steps);
    }

    fn list_clients(&self, state: &State, steps: &mut Vec<Step>) {
        let serving: Vec<usize> = (0..self.bounds.slots())
            .filter(|at| {
                let side = state.coordinators[*at].as_ref();
                side.is_some_and(|side| state.believes(*at, side.map))
            })
            .collect();
        for op in state.clients.ready(&self.bounds.ops) {
            steps.extend(serving.iter().map(|node| Step::Begin { op, node: *node }));
        }
    }

    fn list_faults(&self, state: &State, steps: &mut Vec<Step>) {
        let up: Vec<usize> =
            (0..self.bounds.slots()).filter(|at| state.coordinators[*at].is_some()).collect();
        let down = (0..self.bounds.slots()).filter(|at| state.coordinators[*at].is_none());
        steps.extend(down.map(|node| Step::Restart { node }));
        if state.left.elections > 0 {
            let able = up.iter().filter(|node| self.bounds.may_elect(**node));
            steps.extend(able.map(|node| Step::Elect { node: *node }));
        }
        if state.left.crashes > 0 {
            for node in &up {
                steps.extend([false, true].map(|lost| Step::Crash { node: *node, lost }));
            }
        }
        if state.left.drops > 0 {
            for from in 0..self.bounds.slots() {
                let full = |to: &usize| {
                    let session = &state.sessions[from][*to];
                    session.number.is_some() && !session.is_empty()
                };
                let broken = (0..self.bounds.slots()).filter(full);
                steps.extend(broken.map(|to| Step::Drop { from, to }));
            }
        }
        if state.left.passes > 0 {
            let working = up.iter().filter(|at| {
                let side = state.coordinators[**at].as_ref();
                side.is_some_and(|side| {
                    side.core.phase() != Phase::Idle || state.believes(**at, side.map)
                })
            });
            let working: u32 = if self.bounds.asleep { 0 } else { working.map(|at| 1 << at).sum() };
            let subsets = (0..1u32 << self.bounds.slots()).filter(|mask| mask & !working == 0);
            steps.extend(subsets.map(|awake| Step::Pass { awake }));
        }
    }
}

fn list_session(state: &State, from: usize, to: usize, steps: &mut Vec<Step>) {
    let session = &state.sessions[from][to];
    let side = &state.stores[to];
    // A frame of an epoch the store has not heard of waits until its map has come.
    if let Some(core) = side.core.as_ref().filter(|_| side.committing.is_none())
        && let Some(frame) = session.frames.front()
        && core.epoch_of(VOLUME).is_some_and(|known| known >= frame.epoch)
    {
        steps.push(Step::Frame { from, to });
    }
    if let Some(core) = &side.core
        && let Some(frame) = session.reads.front()
    {
        let disk: Arc<dyn ShardStore> = Arc::<MemoryStore>::clone(&side.disk);
        let known = ReadSide::new(disk, core.fence()).epoch_of(VOLUME);
        if known.is_some_and(|known| known >= frame.epoch) {
            steps.push(Step::Lookup { from, to });
        }
    }
    if !session.replies.is_empty() {
        steps.push(Step::Reply { from: to, to: from });
    }
    if !session.found.is_empty() {
        steps.push(Step::Found { from: to, to: from });
    }
}

impl State {
    /// Forgets messages that change nothing when they are taken.
    ///
    /// What is under way to a coordinator that has nothing to do is not waited for by anybody, and
    /// neither is what it asked to read. And all that a store which has heard of another one does
    /// with a frame of the former is to refuse it. That makes the sender ask again when it hears of
    /// a newer epoch: of one from before, and is refused again, or of an election of its own, and
    /// then it forgets everything first.
    pub(super) fn purge(&mut self) {
        for from in 0..self.coordinators.len() {
            let Some(side) = &self.coordinators[from] else { continue };
            let (idle, epoch) = (side.core.phase() == Phase::Idle, side.core.epoch());
            for to in 0..self.stores.len() {
                let session = &self.sessions[from][to];
                if idle && session.is_heard() {
                    Arc::make_mut(&mut self.sessions[from][to]).forget_answers();
                }
                let session = &self.sessions[from][to];
                let side = &self.stores[to];
                let known = side.core.as_ref().and_then(|core| core.epoch_of(VOLUME));
                // While it syncs, readers may still be at the map before.
                let heard = known.is_some_and(|known| known > epoch) && side.committing.is_none();
                let over = heard && !self.believes(from, side.map);
                if over && !(session.frames.is_empty() && session.reads.is_empty()) {
                    let session = Arc::make_mut(&mut self.sessions[from][to]);
                    session.frames.clear();
                    session.reads.clear();
                }
            }
        }
    }

    /// Maps that change nothing for who has not come to them yet are adopted at once: it makes no
    /// difference when.
    pub(super) fn skip_maps(&mut self) {
        for at in 0..self.stores.len() {
            let side = &self.stores[at];
            let known = for_store(&self.maps[side.map], at);
            let same = |map: usize| for_store(&self.maps[map], at) == known;
            let next = (side.map + 1..self.maps.len()).take_while(|map| same(*map)).last();
            if let Some(map) = next.filter(|_| side.core.is_some()) {
                Arc::make_mut(&mut self.stores[at]).map = map;
            }
            let Some(side) = &self.coordinators[at] else { continue };
            if side.core.phase() != Phase::Idle || self.believes(at, side.map) {
                continue;
            }
            let strange = |map: &usize| !self.believes(at, *map);
            let next = (side.map + 1..self.maps.len()).take_while(strange).last();
            if let (Some(map), Some(side)) = (next, &mut self.coordinators[at]) {
                Arc::make_mut(side).map = map;
            }
        }
        let epoch = volume(self.map()).epoch;
        self.proposals.retain(|_, command| super::perform::planned(command) == Some(epoch));
    }
}

impl Model {
    /// Whether answers leave before what they tell of is durable.
    pub(super) fn answers_early(&self) -> bool {
        self.bounds.broken == Some(Broken::AnswerBeforeSync)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin { op, node } => write!(f, "operation {op} comes to node {node}"),
            Self::Frame { from, to } => write!(f, "store {to} takes a frame of node {from}"),
            Self::Lookup { from, to } => write!(f, "store {to} looks up for node {from}"),
            Self::Synced { store } => write!(f, "store {store} has synced"),
            Self::Reply { from, to } => write!(f, "node {to} takes an answer of store {from}"),
            Self::Found { from, to } => write!(f, "node {to} takes what store {from} looked up"),
            Self::StoreMap { node, map } => write!(f, "store {node} adopts map {map}"),
            Self::Map { node, map } => write!(f, "node {node} adopts map {map}"),
            Self::Accept { proposal } => write!(f, "the map takes proposal {proposal}"),
            Self::Elect { node } => write!(f, "node {node} is elected"),
            Self::Drop { from, to } => write!(f, "the session of node {from} with {to} breaks"),
            Self::Crash { node, lost: false } => write!(f, "node {node} crashes"),
            Self::Crash { node, lost: true } => {
                write!(f, "node {node} crashes and forgets what need not be durable")
            }
            Self::Restart { node } => write!(f, "node {node} starts again"),
            Self::Tick { node } => write!(f, "node {node} looks at the clock"),
            Self::Pass { awake } => write!(f, "time passes, awake {awake:b}"),
        }
    }
}

impl Model {
    /// What exactly a step is about, for people.
    pub(super) fn detail(&self, state: &State, step: &Step) -> String {
        match step {
            Step::Begin { op, .. } => format!(": {}", self.bounds.ops[*op]),
            Step::Frame { from, to } => detail(state.sessions[*from][*to].frames.front()),
            Step::Lookup { from, to } => detail(state.sessions[*from][*to].reads.front()),
            Step::Reply { from, to } => detail(state.sessions[*to][*from].replies.front()),
            Step::Found { from, to } => detail(state.sessions[*to][*from].found.front()),
            Step::Accept { proposal } => detail(state.proposals.values().nth(*proposal)),
            _ => String::new(),
        }
    }
}

fn detail(what: Option<&impl fmt::Debug>) -> String {
    what.map_or_else(String::new, |what| format!(": {what:?}"))
}
