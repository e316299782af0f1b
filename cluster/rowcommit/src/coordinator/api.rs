//! What goes into a coordinator and what comes out of it.

use super::ScrubReport;
use super::blocks::BlockList;
use crate::governor::Burden;
use crate::msg::{Frame, Reply};
use crate::time::Time;
use bytes::Bytes;
use smalti_map::{ClusterMap, Command, Coordinator as Coordinating, Rejection};
use smalti_storage::ids::{GroupNo, RowAddr, Slot, StoreId, VolumeNo, Wid};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// What a coordinator needs to be told.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// Which process it runs in.
    pub me: Coordinating,
    /// The volume.
    pub volume: VolumeNo,
    /// Bytes of a record.
    pub record_len: usize,
    /// How long a read lease lasts.
    pub lease: Duration,
    /// A store that owes an answer for this long is taken out of the in-sync sets.
    pub suspect_after: Duration,
    /// The same during a takeover, where stores may still be starting.
    pub takeover_patience: Duration,
    /// The same while another one, that would remain, came up with a disk that may have gone back, as
    /// after a power cut, and is a suspect: the silent one may be the only one that remembers.
    pub power_patience: Duration,
    /// How long stores are waited for whose leaving leaves fewer than `min_insync`: writes wait for them
    /// anyway, and would go on sooner if they came back than if others had to be brought up to date.
    pub stall_patience: Duration,
    /// Rows whose version vectors stay in memory.
    pub cached_rows: usize,
    /// Rows repaired at once by catch-up, in each slot. Eight times as many in all.
    pub catchup_window: usize,
    /// Whether fewer are while clients would notice.
    pub govern: bool,
    /// What a clock that all coordinators have in common is ahead of the one that `now` is of, up to whole
    /// intervals of [`crate::governor::QUIET_EVERY`].
    pub phase: Duration,
}

impl CoordinatorConfig {
    /// The defaults for a volume.
    pub fn new(me: Coordinating, volume: VolumeNo) -> Self {
        Self {
            me,
            volume,
            record_len: smalti_storage::record::RECORD_LEN,
            lease: Duration::from_millis(1500),
            suspect_after: Duration::from_millis(500),
            takeover_patience: Duration::from_millis(1500),
            power_patience: Duration::from_secs(30),
            stall_patience: Duration::from_secs(5),
            cached_rows: 256 * 1024,
            catchup_window: 64,
            govern: true,
            phase: Duration::ZERO,
        }
    }
}

/// One block to write: where, which client write, and its sealed record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlockWrite {
    /// The row.
    pub row: RowAddr,
    /// The data slot.
    pub slot: Slot,
    /// The client write; grows per block.
    pub wid: Wid,
    /// The sealed record; empty makes the block absent.
    pub record: Bytes,
}

/// Operations with numbers from here on are background work: they give way to those of clients, which are
/// measured, and are not measured themselves.
pub const BACKGROUND: u64 = 1 << 63;

/// What happens to a coordinator.
#[derive(Clone, Debug)]
pub enum Event {
    /// A newer map.
    Map(Arc<ClusterMap>),
    /// Stores whose disks are far slower than others', all there are: what can be done without them is.
    Slow(BTreeSet<StoreId>),
    /// What the rest of the cluster repairs, and how its clients bear that.
    Around(Burden),
    /// A session with a store began. Session numbers grow for ever within one process.
    LinkUp {
        /// The store.
        store: StoreId,
        /// The session's number.
        session: u64,
    },
    /// The session with a store ended.
    LinkDown {
        /// The store.
        store: StoreId,
    },
    /// The process has not heard of the node of a store for longer than this coordinator has asked it
    /// anything: in a takeover nobody waits for it anew.
    Unheard {
        /// The store.
        store: StoreId,
        /// Since when.
        since: Time,
    },
    /// A store answered.
    Reply {
        /// The store.
        store: StoreId,
        /// What.
        reply: Reply,
    },
    /// Blocks to write, acknowledged together; no block twice.
    Write {
        /// Chosen by the caller.
        op: u64,
        /// The blocks.
        blocks: Vec<BlockWrite>,
    },
    /// Blocks to read.
    Read {
        /// Chosen by the caller.
        op: u64,
        /// The blocks.
        blocks: Vec<(RowAddr, Slot)>,
        /// As a snapshot holds them, by its number; else as they are.
        snap: Option<u32>,
        /// Of the gateway that asks. Another one than that of the last election is fenced, or waits.
        generation: u32,
    },
    /// A snapshot to be made of all that was acknowledged until now.
    Snapshot {
        /// Chosen by the caller.
        op: u64,
        /// Unique among the volume's snapshots.
        name: String,
        /// Unix seconds, for people.
        created: u64,
    },
    /// The next blocks of a group that have contents, and how old those are.
    List {
        /// Chosen by the caller.
        op: u64,
        /// The group.
        group: GroupNo,
        /// The row after which to go on.
        after: Option<RowAddr>,
    },
    /// A proposal was refused by the map.
    Refused {
        /// The proposal.
        command: Command,
        /// The reason.
        why: Rejection,
    },
    /// A group is to be scrubbed: nothing happens while another one is, or while this coordinator does
    /// not serve.
    Scrub {
        /// The group.
        group: GroupNo,
    },
    /// Some time has passed; every 10 to 50 ms.
    Tick,
}

/// What a coordinator wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send requests to a store over its current session.
    Send {
        /// The store.
        store: StoreId,
        /// The requests.
        frame: Frame,
    },
    /// Propose a change of the map. The outcome shows in the map, or as [`Event::Refused`].
    Propose(Command),
    /// A write has ended. An error leaves the blocks with the old or the new contents.
    WriteDone {
        /// The operation.
        op: u64,
        /// Durable, or why not.
        result: Result<(), OpError>,
    },
    /// A read has ended.
    ReadDone {
        /// The operation.
        op: u64,
        /// The records in the order asked; empty means absent.
        result: Result<Vec<Bytes>, OpError>,
    },
    /// The making of a snapshot has ended. After [`OpError::Fenced`] it may have been made or not.
    SnapshotDone {
        /// The operation.
        op: u64,
        /// Its number, or why there is none.
        result: Result<u32, OpError>,
    },
    /// A list of blocks, or why there is none. After [`OpError::Unreadable`] it may be asked for again.
    Listed {
        /// The operation.
        op: u64,
        /// The blocks.
        result: Result<BlockList, OpError>,
    },
    /// Something an operator should know.
    Alarm(Alarm),
    /// A store in sync had something that is not what was written.
    Fault {
        /// The store.
        store: StoreId,
    },
    /// The scrub of a group has ended.
    Scrubbed {
        /// The group.
        group: GroupNo,
        /// What was found, and repaired where that could be.
        report: ScrubReport,
    },
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// This coordinator was replaced; another one may have carried the operation out or not.
    #[error("the coordinator was replaced")]
    Fenced,
    /// A store is full.
    #[error("no space left on a store")]
    NoSpace,
    /// Fewer than n shards of a row can be read and agree.
    #[error("too few shards of a row can be read")]
    Unreadable,
    /// The request does not fit the volume.
    #[error("request does not fit the volume")]
    Invalid,
    /// Updates that are under way do not end: a store is out of reach that can not be done without.
    #[error("updates of the volume do not end; a store is out of reach")]
    Busy,
    /// There is no such snapshot, or it was deleted meanwhile.
    #[error("no such snapshot")]
    NoSnapshot,
    /// There is a snapshot of that name, or there are too many.
    #[error("the snapshot was refused: its name is in use or wrong, or there are too many")]
    SnapshotRefused,
}

/// What went wrong without failing an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Alarm {
    /// A slot's record did not verify and is being repaired from the others.
    Corrupt {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
    },
    /// A slot that is being repaired can not be given one of its records: too few of the others are
    /// readable. Reads of it fail until they are.
    RecordLost {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
        /// The snapshot whose state it belongs to, the oldest of them; none for the newest state.
        snap: Option<u32>,
    },
    /// A parity record would have come out wrong: a coded difference was computed or added wrongly,
    /// here or at the slot's store. Nothing was written, and it is computed anew.
    Miscomputed {
        /// The row.
        row: RowAddr,
        /// The parity slot.
        slot: Slot,
    },
    /// An acknowledged version of the row can not be constructed.
    RowLost {
        /// The row.
        row: RowAddr,
    },
    /// The records of a row verify and are no codeword, and nobody can tell which of them is wrong.
    Unclear {
        /// The row.
        row: RowAddr,
    },
    /// A store was silent for too long.
    Silent {
        /// The store.
        store: StoreId,
    },
    /// A store answers, far later than others.
    Slow {
        /// The store.
        store: StoreId,
    },
}

/// Where a coordinator stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not the coordinator, as far as its map says.
    Idle,
    /// Taking over: collecting promises and settling undecided rows.
    TakingOver,
    /// Waiting for the map to say activated.
    Activating,
    /// Serving.
    Active,
}

/// Counters for people and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Rows known to be behind on some slot that is out of sync.
    pub rows_behind: u64,
    /// Rows of which something is lost or rotten in more slots than the code can bear, as far as it was
    /// met.
    pub rows_lost: u64,
    /// Rows that slots lack yet, those included that no comparison has come to: an estimate.
    pub rows_left: u64,
    /// Slots that catch up, moved ones included.
    pub learners: u64,
    /// Of those, how many lack nothing but rows that can not be made from what answers.
    pub stuck: u64,
    /// They get less than they could, for the sake of clients.
    pub held_back: bool,
    /// Stores in sync that have not answered in their present session.
    pub unheard: u64,
    /// Slots, over all groups, that are not in sync.
    pub slots_out: u64,
    /// In-sync stores that may have forgotten something and were not compared yet.
    pub suspects: u64,
    /// Rows of learners compared so far, where it was not known which had changed.
    pub rows_walked: u64,
    /// Rows of learners listed as changed so far.
    pub rows_listed: u64,
    /// Rows brought up to date on some slot so far.
    pub rows_repaired: u64,
    /// Records that did not verify so far.
    pub corrupt_records: u64,
    /// Updates in flight.
    pub in_flight: u64,
    /// The group that is being scrubbed.
    pub scrubbing: Option<GroupNo>,
}
