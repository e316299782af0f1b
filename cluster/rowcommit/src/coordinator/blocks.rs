//! Which blocks of a group have contents, and how old those are: for whoever seals them under newer keys.
//!
//! L1. A block that has contents is in the list, as far as the pages tell.
//! L2. The generation in the list is at most that of the write whose contents the block has, whatever
//!     becomes of updates that are under way.
//! L3. Where a data slot is not in sync, or has damaged metadata, its blocks are in the list with what
//!     parity says, or as unknown: nobody takes for new what nobody has seen.

use super::walk::{Page, rows_of};
use super::{Action, Coordinator, OpError, Purpose};
use crate::msg::{Answer, Ask, SCAN_LIMIT};
use crate::snaps;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{GroupNo, RowAddr, Slot, SlotSet, Ver};
use smalti_storage::store::VersionMeta;
use std::collections::BTreeMap;

/// A block that has contents, or had when a snapshot was made, or may have some.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListedBlock {
    /// Its row.
    pub row: RowAddr,
    /// Its data slot.
    pub slot: Slot,
    /// What it has now.
    pub contents: Contents,
    /// The generations of other contents that snapshots hold of it.
    pub held: Vec<u32>,
}

/// What a block has; the older, the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Contents {
    /// None: never written, or trimmed.
    Absent,
    /// Contents that the gateway of this generation wrote, or that of a later one.
    Since(u32),
    /// Perhaps some, of any age.
    Unknown,
}

/// A stretch of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BlockList {
    /// Its blocks, in order.
    pub blocks: Vec<ListedBlock>,
    /// The row after which to go on; `None`: that is all.
    pub next: Option<RowAddr>,
}

/// A list that was asked for.
#[derive(Clone, Debug, Hash)]
pub(super) struct Pages {
    group: GroupNo,
    after: Option<RowAddr>,
    due: SlotSet,
    pages: BTreeMap<Slot, Page>,
}

impl Coordinator {
    pub(super) fn start_list(&mut self, op: u64, group: GroupNo, after: Option<RowAddr>) {
        if !self.is_served(group) {
            return self.listed(op, Err(OpError::Unreadable));
        }
        let insync = self.insync(group);
        let mut due = self.data_slots().and(insync);
        if due != self.data_slots()
            && let Some(parity) = self.parity_slots().and(insync).iter().next()
        {
            due = due.with(parity);
        }
        self.lists.insert(op, Pages { group, after, due, pages: BTreeMap::new() });
        let limit = u32::try_from(SCAN_LIMIT).unwrap_or(u32::MAX);
        let after = after.map(|row| (row, Slot(u8::MAX)));
        for of in due.iter() {
            self.ask(group, of, Ask::Scan { group, after, limit }, Purpose::List { op, of });
        }
    }

    /// A page will not come: whoever was asked is not in sync any more. Those who are, are asked.
    pub(super) fn list_lost(&mut self, op: u64) {
        if let Some(Pages { group, after, .. }) = self.lists.remove(&op) {
            self.start_list(op, group, after);
        }
    }

    pub(super) fn on_listed(&mut self, op: u64, of: Slot, answer: Answer) {
        let Some(list) = self.lists.get_mut(&op) else { return };
        let Answer::Scanned { entries, done } = answer else {
            self.lists.remove(&op);
            return self.listed(op, Err(OpError::Unreadable));
        };
        list.pages.insert(of, Page::new(of, entries, done));
        list.due = list.due.without(of);
        if list.due.is_empty()
            && let Some(list) = self.lists.remove(&op)
        {
            let blocks = self.read_pages(&list);
            self.listed(op, Ok(blocks));
        }
    }

    /// Ends all of them; the coordinator serves no more.
    pub(super) fn end_lists(&mut self) {
        for op in std::mem::take(&mut self.lists).into_keys() {
            self.listed(op, Err(OpError::Fenced));
        }
    }

    fn listed(&mut self, op: u64, result: Result<BlockList, OpError>) {
        self.actions.push(Action::Listed { op, result });
    }

    fn read_pages(&self, list: &Pages) -> BlockList {
        let (rows, next) = rows_of(list.pages.values());
        let mut blocks = Vec::new();
        for row in rows {
            let lost = self.lost_rows.contains(&row);
            for slot in self.data_slots().iter() {
                let (contents, held) = match list.pages.get(&slot) {
                    _ if lost => (Contents::Unknown, Vec::new()),
                    Some(page) => self.own_contents(page.rows.get(&row)),
                    None => (told_by_parity(list, row, slot), Vec::new()),
                };
                if contents != Contents::Absent || !held.is_empty() {
                    blocks.push(ListedBlock { row, slot, contents, held });
                }
            }
        }
        BlockList { blocks, next }
    }

    /// What a data slot says of its own block, and of what snapshots hold of it.
    fn own_contents(&self, versions: Option<&Option<Vec<VersionMeta>>>) -> (Contents, Vec<u32>) {
        let versions = match versions {
            None => return (Contents::Absent, Vec::new()),
            // Its metadata is damaged.
            Some(None) => return (Contents::Unknown, Vec::new()),
            Some(Some(versions)) => versions,
        };
        let Some(newest) = versions.first() else { return (Contents::Absent, Vec::new()) };
        // What is not decided yet may be undone, and then it is what it was.
        let decided = newest.ver <= self.watermark() || lives(Mutant::ListUndecided);
        let counted = if decided { 1 } else { versions.len() };
        let present = |meta: &&VersionMeta| meta.present;
        let generation = |meta: &VersionMeta| meta.wid.generation;
        let oldest = versions.iter().take(counted).filter(present).map(generation).min();
        let snaps = self.snaps();
        let kept = snaps.iter().filter_map(|snap| snaps::held(versions, snap));
        let others = kept.filter(present).filter(|meta| meta.ver != newest.ver);
        let held: BTreeMap<Ver, u32> = others.map(|meta| (meta.ver, generation(meta))).collect();
        (oldest.map_or(Contents::Absent, Contents::Since), held.into_values().collect())
    }
}

/// What parity says of the block of a data slot that is not in sync. Whether that has contents is not among
/// it.
fn told_by_parity(list: &Pages, row: RowAddr, slot: Slot) -> Contents {
    let written = |meta: &VersionMeta| {
        let ver = meta.vec.get(slot.index()).map_or(Ver::NONE, |entry| entry.ver);
        ver != Ver::NONE
    };
    let may_be = |held: &Option<Vec<VersionMeta>>| match held {
        None => true,
        Some(versions) => versions.iter().any(written),
    };
    if lives(Mutant::ListInsync) {
        return Contents::Absent;
    }
    let told = list.pages.values().filter_map(|page| page.rows.get(&row));
    if told.into_iter().any(may_be) { Contents::Unknown } else { Contents::Absent }
}
