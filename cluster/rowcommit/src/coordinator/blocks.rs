//! Which blocks of a group have contents, and how old those are: for whoever seals them under newer keys.
//!
//! L1. A block that has contents is in the list, whatever one store may have forgotten, where more than n slots are
//!     in sync: data slots and parity are asked, and what one of them does not have the other one says.
//! L2. The generation in the list is at most that of the write whose contents the block has, whatever
//!     becomes of updates that were under way when it was asked for.
//! L3. What nobody can tell is in the list as unknown: nobody takes for new what nobody has seen. A group of
//!     which stores have yet to be compared after a crash, or that is offline or short, is not listed at all.

use super::walk::{Page, rows_of};
use super::{Action, Coordinator, OpError, Purpose};
use crate::msg::{Answer, Ask, SCAN_LIMIT};
use crate::snaps;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{GroupNo, RowAddr, Slot, SlotSet, Ver};
use smalti_storage::store::VersionMeta;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

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
#[derive(Clone, Debug)]
pub(super) struct Pages {
    group: GroupNo,
    after: Option<RowAddr>,
    /// What is at or below it was decided before anybody was asked.
    decided: Ver,
    round: u64,
    due: SlotSet,
    pages: BTreeMap<Slot, Page>,
}

impl Pages {
    /// Its part of [`Coordinator::digest`]; rounds are only compared with those of requests.
    pub(super) fn digest(&self, hasher: &mut impl Hasher) {
        (self.group, self.after, self.decided, self.due, &self.pages).hash(hasher);
    }

    pub(super) fn is_round(&self, round: u64) -> bool {
        self.round == round
    }
}

/// What a slot says of a block.
struct Told {
    /// The version of the block's record.
    ver: Ver,
    contents: Contents,
    /// Other versions that snapshots hold, and the generations of those that have contents.
    held: BTreeMap<Ver, Option<u32>>,
}

impl Told {
    fn nothing() -> Self {
        Self { ver: Ver::NONE, contents: Contents::Absent, held: BTreeMap::new() }
    }

    fn unknown() -> Self {
        Self { contents: Contents::Unknown, ..Self::nothing() }
    }

    /// What two slots say together: where one of them lacks what the other one has, or is about to change, the
    /// older counts.
    fn and(mut self, other: Self) -> Self {
        self.contents = match (self.contents, other.contents) {
            (Contents::Unknown, _) | (_, Contents::Unknown) => Contents::Unknown,
            // What the first one says of a version it knows best.
            (own, _) if self.ver == other.ver => own,
            (Contents::Absent, told) | (told, Contents::Absent) => told,
            (one, other) => one.min(other),
        };
        self.ver = self.ver.max(other.ver);
        for (ver, generation) in other.held {
            self.held.entry(ver).or_insert(generation);
        }
        self
    }
}

impl Coordinator {
    pub(super) fn start_list(&mut self, op: u64, group: GroupNo, after: Option<RowAddr>) {
        // Nor while it is short: what would be sealed anew waits.
        let open = self.is_served(group) && self.may_acknowledge(group);
        if !open || self.suspects.in_group(group) {
            return self.listed(op, Err(OpError::Unreadable));
        }
        let insync = self.insync(group);
        let (data, parity) = (self.data_slots().and(insync), self.parity_slots().and(insync));
        // Two for each block, wherever there are two.
        let enough = if data == self.data_slots() { 1 } else { parity.len() as usize };
        let due: SlotSet = data.iter().chain(parity.iter().take(enough)).collect();
        self.catchup.rounds += 1;
        let (round, decided) = (self.catchup.rounds, self.watermark());
        let pages = BTreeMap::new();
        self.lists.insert(op, Pages { group, after, decided, round, due, pages });
        let limit = u32::try_from(SCAN_LIMIT).unwrap_or(u32::MAX);
        let after = after.map(|row| (row, Slot(u8::MAX)));
        for of in due.iter() {
            let purpose = Purpose::List { op, of, round };
            self.ask(group, of, Ask::Scan { group, after, limit }, purpose);
        }
    }

    /// A page will not come: whoever was asked is not in sync any more. Those who are, are asked.
    pub(super) fn list_lost(&mut self, op: u64, round: u64) {
        if !self.lists.get(&op).is_some_and(|list| list.is_round(round)) {
            return;
        }
        // Gone first: it may be refused by now.
        if let Some(Pages { group, after, .. }) = self.lists.remove(&op) {
            self.start_list(op, group, after);
        }
    }

    pub(super) fn on_listed(&mut self, op: u64, of: Slot, round: u64, answer: Answer) {
        let Some(list) = self.lists.get_mut(&op).filter(|list| list.round == round) else { return };
        let Answer::Scanned { entries, done } = answer else {
            self.lists.remove(&op);
            return self.listed(op, Err(OpError::Unreadable));
        };
        list.pages.insert(of, Page::new(of, entries, done));
        list.due = list.due.without(of);
        if list.due.is_empty()
            && let Some(list) = self.lists.remove(&op)
        {
            // One that came meanwhile was not compared yet.
            let result = match self.suspects.in_group(list.group) {
                true => Err(OpError::Unreadable),
                false => Ok(self.read_pages(&list)),
            };
            self.listed(op, result);
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
        let (mut rows, next) = rows_of(list.pages.values());
        let asked = |row: &RowAddr| {
            let begun = list.after.is_none_or(|after| *row > after);
            row.group == list.group && begun && next.is_none_or(|next| *row <= next)
        };
        // Those of which something is known to be wrong, though no page may name them.
        let wrong = self.distrusted.iter().map(|(row, _)| row).chain(&self.lost_rows);
        rows.extend(wrong.copied().filter(asked));
        let mut blocks = Vec::new();
        for row in rows {
            for slot in self.data_slots().iter() {
                let Told { contents, held, .. } = self.told(list, row, slot);
                let held: Vec<u32> = held.into_values().flatten().collect();
                if contents != Contents::Absent || !held.is_empty() {
                    blocks.push(ListedBlock { row, slot, contents, held });
                }
            }
        }
        BlockList { blocks, next }
    }

    /// What the slots that were asked say together.
    fn told(&self, list: &Pages, row: RowAddr, slot: Slot) -> Told {
        let distrusted = self.distrusted(row);
        if self.lost_rows.contains(&row) || distrusted.contains(slot) {
            return Told::unknown();
        }
        let own = list.pages.get(&slot).map(|page| {
            self.read_slot(list, page.rows.get(&row), |meta| {
                (meta.ver, meta.present.then_some(meta.wid.generation))
            })
        });
        if own.is_none() && lives(Mutant::ListInsync) {
            return Told::nothing();
        }
        let data = self.data_slots();
        let parity = list.pages.iter().filter(|(of, _)| !data.contains(**of));
        // Whether the block has contents at all is not among what parity tells.
        let parity = parity.map(|(of, page)| match distrusted.contains(*of) {
            true => Told::unknown(),
            false => self.read_slot(list, page.rows.get(&row), |meta| {
                let entry = meta.vec.get(slot.index()).copied().unwrap_or_default();
                (entry.ver, (entry.ver != Ver::NONE).then_some(entry.wid.generation))
            }),
        });
        own.into_iter().chain(parity).reduce(Told::and).unwrap_or_else(Told::unknown)
    }

    /// What the versions of one slot say of a block; `of` is what one of them says: a version of the block, and
    /// the generation of the write that made its contents, if it has some.
    fn read_slot(
        &self,
        list: &Pages,
        versions: Option<&Option<Vec<VersionMeta>>>,
        of: impl Fn(&VersionMeta) -> (Ver, Option<u32>),
    ) -> Told {
        let versions = match versions {
            None => return Told::nothing(),
            // Its metadata is damaged.
            Some(None) => return Told::unknown(),
            Some(Some(versions)) => versions,
        };
        let Some(newest) = versions.first() else { return Told::nothing() };
        // What was not decided yet may be undone, and then it is what it was.
        let decided = newest.ver <= list.decided || lives(Mutant::ListUndecided);
        let counted = if decided { 1 } else { versions.len() };
        let oldest = versions.iter().take(counted).filter_map(|meta| of(meta).1).min();
        let ver = of(newest).0;
        let snaps = self.snaps();
        let kept = snaps.iter().filter_map(|snap| snaps::held(versions, snap)).map(&of);
        let held = kept.filter(|(of, _)| *of != ver).collect();
        let contents = oldest.map_or(Contents::Absent, Contents::Since);
        Told { ver, contents, held }
    }
}
