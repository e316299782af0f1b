//! What is going to happen, in order of time.

use super::link::SessionId;
use super::swarm::Fault;
use smalti_map::{ClusterMap, Command, Rejection};
use smalti_rowcommit::coordinator::BlockWrite;
use smalti_rowcommit::msg::Frame;
use smalti_storage::ids::StoreId;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// The index of a node.
pub(crate) type At = usize;

/// A process of a node: events for an earlier one are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Life {
    pub(crate) at: At,
    pub(crate) life: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Ev {
    /// The first frame of a session has come as far as the store.
    Frame(SessionId),
    /// The first reply of a session has come as far as the coordinator.
    Reply(SessionId),
    /// One end has found out that the session is dead.
    Broken(SessionId),
    /// The session is broken if whatever stops it still does.
    Timeout(SessionId),
    Connect {
        from: Life,
        store: StoreId,
    },
    Read {
        to: Life,
        session: SessionId,
        frame: Box<Frame>,
    },
    Committed(Life),
    Map {
        to: Life,
        map: Arc<ClusterMap>,
    },
    MapAtCore {
        to: Life,
        map: Arc<ClusterMap>,
    },
    Tick(Life),
    Flush(Life),
    Propose {
        from: Life,
        command: Box<Command>,
        again: bool,
    },
    Refused {
        to: Life,
        command: Box<Command>,
        why: Rejection,
    },
    Client(usize),
    Invoke {
        client: usize,
        op: u64,
        at: At,
    },
    Deadline {
        client: usize,
        op: u64,
    },
    /// A second copy of a client's write.
    Late {
        blocks: Vec<BlockWrite>,
    },
    /// A snapshot is made or deleted.
    Snapshot,
    /// A group is scrubbed.
    Scrub,
    /// The leader looks at what lies where.
    Places,
    Leader,
    Elect,
    /// A client attaches at this node, which is elected for it.
    Attach(At),
    Fault,
    /// The coordinator that just let go is cut off.
    Depose,
    /// All nodes but one die and come back.
    RestartOthers(At),
    /// A fault's time is over.
    Over(Fault, At, At),
    Resume(At),
    Start(At),
    /// A lost store's place is to be taken.
    Replace(StoreId),
}

impl Ev {
    /// The node that has to be running to take it.
    pub(crate) fn process(&self) -> Option<Life> {
        match self {
            Self::Connect { from, .. } => Some(*from),
            Self::Read { to, .. }
            | Self::Map { to, .. }
            | Self::MapAtCore { to, .. }
            | Self::Refused { to, .. } => Some(*to),
            Self::Committed(life) | Self::Tick(life) | Self::Flush(life) => Some(*life),
            _ => None,
        }
    }
}

struct Entry(u64, u64, Ev);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// Events by time; those of one time in the order they were added.
#[derive(Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    next: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at: u64, event: Ev) {
        self.next += 1;
        self.heap.push(Reverse(Entry(at, self.next, event)));
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, Ev)> {
        self.heap.pop().map(|Reverse(Entry(at, _, event))| (at, event))
    }
}
