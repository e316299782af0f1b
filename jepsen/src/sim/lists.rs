//! Lists of blocks and of how old their contents are, asked for beside everything else. What they say is
//! held against what lies in the stores in the end: contents only ever become newer.

use super::client::Block;
use super::event::At;
use super::failure::Failure;
use super::world::World;
use smalti_rowcommit::Event;
use smalti_rowcommit::coordinator::{BACKGROUND, BlockList, Contents, OpError};
use smalti_storage::ids::{GroupNo, RowAddr, RowSlot, Slot};
use smalti_storage::store::ShardStore;
use std::collections::BTreeMap;

/// Lists that were asked for, and what those that came say.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    /// Of which group, and in which generation: what that gateway writes later may be missing.
    asked: BTreeMap<u64, (GroupNo, u32)>,
    /// Contents of gateways of generations before this one a block can not have any more.
    floors: BTreeMap<Block, u32>,
}

impl World {
    /// Asks the coordinator for the list of a group.
    pub(crate) fn begin_list(&mut self, group: GroupNo) {
        if !self.swarm.lists {
            return;
        }
        let Some(at) = self.serving() else { return };
        let node = &self.nodes[at];
        if node.up && !node.paused && self.believes(at, self.volume) {
            let process = self.nodes[at].process_mut();
            process.next_op += 1;
            let op = BACKGROUND | process.next_op;
            let volume = process.map.volumes.get(&self.volume);
            let generation = volume.map_or(0, |volume| volume.writer_gen);
            self.lists.asked.insert(op, (group, generation));
            self.coordinate(at, Event::List { op, group, after: None });
        }
    }

    pub(crate) fn listed(&mut self, at: At, op: u64, result: Result<BlockList, OpError>) {
        self.trace(|| format!("n{at} lists {op:x}: {result:?}"));
        let (Some((group, newest)), Ok(list)) = (self.lists.asked.remove(&op), result) else {
            return;
        };
        let told = |row: &RowAddr| row.group == group && list.next.is_none_or(|next| *row <= next);
        let found =
            |(row, slot): &Block| list.blocks.iter().find(|b| (b.row, b.slot) == (*row, *slot));
        for block in self.all_blocks().into_iter().filter(|(row, _)| told(row)) {
            let floor = self.lists.floors.entry(block).or_default();
            match found(&block).map(|listed| listed.contents) {
                None | Some(Contents::Absent) => *floor = newest.max(*floor),
                Some(Contents::Since(generation)) => *floor = generation.max(*floor),
                Some(Contents::Unknown) => {}
            }
        }
    }

    /// I16: no block has older contents than some list has said.
    pub(crate) fn check_lists(&self) -> Result<(), Failure> {
        for ((row, slot), floor) in &self.lists.floors {
            let Some(generation) = self.contents_of(*row, *slot) else { continue };
            if generation < *floor {
                let why = format!(
                    "I16: {row}/{slot} has contents of generation {generation}, and lists said {floor}"
                );
                return Err(Failure::at(*row, why));
            }
        }
        Ok(())
    }

    /// The generation of what a block has, unless it can not be told.
    fn contents_of(&self, row: RowAddr, slot: Slot) -> Option<u32> {
        let volume = self.volume()?;
        let store = volume.group(row.group)?.slots.get(slot.index()).copied()?;
        let at = RowSlot { volume: volume.no, row, slot };
        let head = self.nodes[self.node_of(store)].disk.head(at).ok()??;
        head.present.then_some(head.wid.generation)
    }
}
