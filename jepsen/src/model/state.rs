//! The world at one moment, and its digest.
//!
//! The parts that a step leaves alone are shared with the state before it. Equality is that of a
//! 128-bit hash of everything that matters for what can happen next (see the `digest` modules of
//! `rowcommit` for what does not), and the checker keeps 64 bits of it: of N different states the
//! expected number that are taken for another one is N²/2⁶⁵, 3·10⁻⁶ for ten millions.

use super::clients::Clients;
use smalti_map::{ClusterMap, Command, Coordinator as Coordinating, Volume};
use smalti_rowcommit::coordinator::Coordinator;
use smalti_rowcommit::msg::{Frame, Reply};
use smalti_rowcommit::{StoreCore, Time};
use smalti_storage::ids::{Incarnation, NodeId, SlotSet, StoreId, VolumeNo};
use smalti_storage::store::memory::MemoryStore;
use smalti_storage::store::{Batch, ShardStore};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use twox_hash::XxHash3_128;
use uuid::Uuid;

/// The only volume there is.
pub(super) const VOLUME: VolumeNo = VolumeNo(1);

/// The store side of a node: what its process has, over a disk that outlives it.
#[derive(Debug)]
pub(super) struct StoreSide {
    pub(super) disk: Arc<MemoryStore>,
    /// None while the process is down.
    pub(super) core: Option<StoreCore>,
    /// Which of the maps it has.
    pub(super) map: usize,
    /// Taken from the core and not durable yet, with the answers that wait for it: by the node
    /// they go to.
    pub(super) committing: Option<(Batch, Vec<(usize, Reply)>)>,
}

/// The coordinating side of a node.
#[derive(Clone, Debug)]
pub(super) struct CoordinatorSide {
    pub(super) core: Coordinator,
    pub(super) incarnation: Incarnation,
    pub(super) map: usize,
    /// Sessions begun so far.
    pub(super) sessions: u64,
}

/// What is under way between a coordinator and a store. Updates are answered in order, and reads
/// beside them.
#[derive(Clone, Debug, Default)]
pub(super) struct Session {
    pub(super) number: Option<u64>,
    pub(super) frames: VecDeque<Frame>,
    pub(super) reads: VecDeque<Frame>,
    pub(super) replies: VecDeque<Reply>,
    pub(super) found: VecDeque<Reply>,
}

/// How many faults are still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Left {
    pub(super) crashes: u8,
    pub(super) elections: u8,
    pub(super) drops: u8,
    pub(super) passes: u8,
}

/// Something that must never be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// No register explains what clients saw.
    History(String),
    /// What was acknowledged is not there, or can not be decoded.
    Lost(String),
    /// An invariant of the protocol is broken.
    Invariant(String),
}

/// Everything.
#[derive(Clone)]
pub(crate) struct State {
    pub(super) now: Time,
    /// All maps there ever were, oldest first.
    pub(super) maps: Vec<Arc<ClusterMap>>,
    /// A hash of them.
    pub(super) log: u128,
    pub(super) stores: Vec<Arc<StoreSide>>,
    /// None while the process is down.
    pub(super) coordinators: Vec<Option<Arc<CoordinatorSide>>>,
    /// By coordinator, then by store.
    pub(super) sessions: Vec<Vec<Arc<Session>>>,
    /// What was proposed and may be accepted at any time, by its encoding.
    pub(super) proposals: BTreeMap<Vec<u8>, Command>,
    pub(super) clients: Arc<Clients>,
    pub(super) left: Left,
    pub(super) bad: Option<Arc<Bad>>,
    pub(super) digest: u128,
}

pub(super) fn node_id(at: usize) -> NodeId {
    NodeId(at as u64 + 1)
}

pub(super) fn store_id(at: usize) -> StoreId {
    StoreId(Uuid::from_u128(0x5_0000 + at as u128))
}

/// The volume in a map that has it from the beginning.
pub(super) fn volume(map: &ClusterMap) -> &Volume {
    map.volumes.get(&VOLUME).expect("made before the first state and never deleted")
}

/// What the store of a node makes of a map: it takes nothing before one tells of its start.
pub(super) fn for_store(
    map: &ClusterMap,
    at: usize,
) -> (u32, Option<Coordinating>, SlotSet, Option<Incarnation>) {
    let volume = volume(map);
    let start = map.stores.get(&store_id(at)).map(|entry| entry.incarnation);
    (volume.epoch.0, volume.coordinator, volume.groups[0].insync, start)
}

impl Clone for StoreSide {
    fn clone(&self) -> Self {
        let disk = Arc::new(self.disk.fork());
        let shared: Arc<dyn ShardStore> = Arc::<MemoryStore>::clone(&disk);
        let core = self.core.as_ref().map(|core| core.fork(shared));
        Self { disk, core, map: self.map, committing: self.committing.clone() }
    }
}

impl Session {
    pub(super) fn clear(&mut self) {
        let number = self.number;
        *self = Self { number, ..Self::default() };
    }

    /// Whether anything is under way but updates.
    pub(super) fn is_heard(&self) -> bool {
        !(self.reads.is_empty() && self.replies.is_empty() && self.found.is_empty())
    }

    pub(super) fn forget_answers(&mut self) {
        self.reads.clear();
        self.replies.clear();
        self.found.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
            && self.reads.is_empty()
            && self.replies.is_empty()
            && self.found.is_empty()
    }
}

impl State {
    pub(super) fn map(&self) -> &Arc<ClusterMap> {
        self.maps.last().expect("there is a first map")
    }

    /// Whether the map that the coordinating side of a node has names it.
    pub(super) fn believes(&self, at: usize, map: usize) -> bool {
        let Some(side) = &self.coordinators[at] else { return false };
        let me = Coordinating { node: node_id(at), incarnation: side.incarnation };
        volume(&self.maps[map]).coordinator == Some(me)
    }

    pub(super) fn note_map(&mut self, map: ClusterMap) -> Result<(), String> {
        let bytes = postcard::to_stdvec(&map).map_err(|error| error.to_string())?;
        let mut hasher = Digest::default();
        (self.log, bytes).hash(&mut hasher);
        self.log = hasher.hash();
        self.maps.push(Arc::new(map));
        Ok(())
    }

    /// Computes the digest; the last act of every step.
    pub(super) fn seal(&mut self) {
        let mut hasher = Digest(Vec::with_capacity(4096));
        (self.log, self.left, self.bad.is_some()).hash(&mut hasher);
        self.proposals.keys().collect::<Vec<_>>().hash(&mut hasher);
        self.clients.hash(&mut hasher);
        for side in &self.stores {
            side.disk.digest(&mut hasher);
            (side.map, side.core.is_some(), side.committing.is_some()).hash(&mut hasher);
            if let Some(core) = &side.core {
                core.digest(self.now, &mut hasher);
            }
            if let Some((batch, replies)) = &side.committing {
                batch.hash(&mut hasher);
                replies.len().hash(&mut hasher);
                for (to, reply) in replies {
                    to.hash(&mut hasher);
                    self.digest_reply(*to, reply, &mut hasher);
                }
            }
        }
        for (from, side) in self.coordinators.iter().enumerate() {
            side.is_some().hash(&mut hasher);
            if let Some(side) = side {
                (side.incarnation, side.map).hash(&mut hasher);
                side.core.digest(self.now, &mut hasher);
            }
            for session in &self.sessions[from] {
                self.digest_session(from, session, &mut hasher);
            }
        }
        self.digest = hasher.hash();
    }

    fn digest_session(&self, from: usize, session: &Session, hasher: &mut Digest) {
        session.number.is_some().hash(hasher);
        for frames in [&session.frames, &session.reads] {
            frames.len().hash(hasher);
            for frame in frames {
                (frame.epoch, frame.watermark, frame.requests.len()).hash(hasher);
                for request in &frame.requests {
                    (self.rank(from, request.id), &request.ask).hash(hasher);
                }
            }
        }
        for replies in [&session.replies, &session.found] {
            replies.len().hash(hasher);
            replies.iter().for_each(|reply| self.digest_reply(from, reply, hasher));
        }
    }

    /// Answers that nobody waits for any more are all alike.
    fn digest_reply(&self, to: usize, reply: &Reply, hasher: &mut Digest) {
        reply.answers.len().hash(hasher);
        for (id, answer) in &reply.answers {
            self.rank(to, *id).map(|rank| (rank, answer)).hash(hasher);
        }
    }

    fn rank(&self, from: usize, request: u64) -> Option<usize> {
        self.coordinators[from].as_ref().and_then(|side| side.core.rank_of(request))
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for State {}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("digest", &format_args!("{:032x}", self.digest))
            .field("volume", volume(self.map()))
            .field("coordinators", &self.coordinators)
            .field("sessions", &self.sessions)
            .field("clients", &self.clients.stages)
            .field("bad", &self.bad)
            .finish_non_exhaustive()
    }
}

/// Collects what there is to hash: thousands of small pieces, hashed faster in one go.
#[derive(Default)]
pub(super) struct Digest(Vec<u8>);

impl Digest {
    fn hash(&self) -> u128 {
        XxHash3_128::oneshot(&self.0)
    }
}

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(&self) -> u64 {
        let low = self.hash() & u128::from(u64::MAX);
        u64::try_from(low).expect("the upper half was cut off")
    }
}
