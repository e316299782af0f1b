//! What clients did and saw, and whether one register per block explains it.

use super::bounds::Plan;
use crate::sim::client::{record, value_of};
use crate::sim::history::ABSENT;
use bytes::Bytes;
use smalti_rowcommit::Event;
use smalti_rowcommit::coordinator::{BlockWrite, OpError};
use smalti_storage::ids::{RowAddr, Slot, Wid};
use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester};
use std::collections::BTreeMap;

/// The only row there is.
pub(super) const ROW: RowAddr =
    RowAddr { group: smalti_storage::ids::GroupNo(0), stripe: 0, index: 0 };

type Tester = LinearizabilityTester<usize, Register<u64>>;

/// Where an operation is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// Not begun.
    Waiting,
    /// Given to this node's coordinator.
    Begun { node: usize, wid: Wid },
    /// Answered; a read with these values.
    Done { wid: Wid, values: Vec<u64> },
    /// Nobody will ever tell whether it happened.
    Unknown,
}

/// All clients: one for each operation.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(super) struct Clients {
    pub(super) stages: Vec<Stage>,
    /// By data slot.
    testers: Vec<Tester>,
}

/// The number of the write that comes before the first state.
pub(super) const FIRST: u64 = 0;

/// The value that an operation writes to a slot.
fn value(number: u64, slot: u8) -> u64 {
    (number + 1) << 8 | u64::from(slot)
}

/// The operation of a number that a coordinator was told.
pub(super) fn op_of(number: u64) -> Option<usize> {
    usize::try_from(number.checked_sub(FIRST + 1)?).ok()
}

fn write_of(number: u64, slots: &[u8], generation: u32) -> Event {
    let write = |slot: &u8| BlockWrite {
        row: ROW,
        slot: Slot(*slot),
        wid: Wid { generation, seq: number },
        record: record(value(number, *slot)),
    };
    Event::Write { op: number, blocks: slots.iter().map(write).collect() }
}

impl Clients {
    /// Nothing has been done yet; `fresh`: by nobody, ever.
    pub(super) fn new(ops: usize, data: u8, fresh: bool) -> Self {
        let first = |slot| if fresh { ABSENT } else { value(FIRST, slot) };
        let testers = (0..data).map(|slot| Tester::new(Register(first(slot)))).collect();
        Self { stages: vec![Stage::Waiting; ops], testers }
    }

    /// The write of the whole row before the first state.
    pub(super) fn first(data: u8, generation: u32) -> Event {
        write_of(FIRST, &(0..data).collect::<Vec<u8>>(), generation)
    }

    /// Operations that may begin: of the writes that wait, the first. Their values are all that
    /// tells writes of the same blocks apart, so nothing is lost by it.
    pub(super) fn ready(&self, ops: &[Plan]) -> Vec<usize> {
        let waits = |op: &usize| self.stages[*op] == Stage::Waiting;
        let first_write = (0..ops.len()).find(|op| waits(op) && ops[*op].write);
        let reads = (0..ops.len()).filter(|op| waits(op) && !ops[*op].write);
        first_write.into_iter().chain(reads).collect()
    }

    /// Begins an operation at a node and answers what its coordinator is told.
    pub(super) fn begin(
        &mut self,
        op: usize,
        plan: &Plan,
        node: usize,
        generation: u32,
    ) -> Result<Event, String> {
        let number = FIRST + 1 + op as u64;
        let wid = Wid { generation, seq: number };
        self.stages[op] = Stage::Begun { node, wid };
        for slot in &plan.slots {
            let what =
                if plan.write { RegisterOp::Write(value(number, *slot)) } else { RegisterOp::Read };
            self.testers[usize::from(*slot)].on_invoke(op, what)?;
        }
        if plan.write {
            return Ok(write_of(number, &plan.slots, generation));
        }
        let blocks = plan.slots.iter().map(|slot| (ROW, Slot(*slot))).collect();
        Ok(Event::Read { op: number, blocks, snap: None, generation })
    }

    /// A write was answered by the node that had it. True if it was acknowledged.
    pub(super) fn write_done(
        &mut self,
        op: usize,
        plan: &Plan,
        result: Result<(), OpError>,
    ) -> Result<bool, String> {
        let Stage::Begun { wid, .. } = self.stages[op] else { return Ok(false) };
        if result.is_err() {
            self.stages[op] = Stage::Unknown;
            return Ok(false);
        }
        self.stages[op] = Stage::Done { wid, values: Vec::new() };
        for slot in &plan.slots {
            self.testers[usize::from(*slot)].on_return(op, RegisterRet::WriteOk)?;
        }
        self.check()?;
        Ok(true)
    }

    /// A read was answered.
    pub(super) fn read_done(
        &mut self,
        op: usize,
        plan: &Plan,
        result: Result<Vec<Bytes>, OpError>,
    ) -> Result<(), String> {
        let Stage::Begun { wid, .. } = self.stages[op] else { return Ok(()) };
        let Ok(records) = result else {
            self.stages[op] = Stage::Unknown;
            return Ok(());
        };
        let values = records.iter().map(|bytes| value_of(bytes)).collect::<Option<Vec<u64>>>();
        let values = values.ok_or_else(|| format!("I15: {records:?} was never written"))?;
        for (slot, value) in plan.slots.iter().zip(&values) {
            self.testers[usize::from(*slot)].on_return(op, RegisterRet::ReadOk(*value))?;
        }
        self.stages[op] = Stage::Done { wid, values };
        self.check()
    }

    /// The process that had them is gone.
    pub(super) fn forget(&mut self, of: usize) {
        for stage in &mut self.stages {
            if matches!(stage, Stage::Begun { node, .. } if *node == of) {
                *stage = Stage::Unknown;
            }
        }
    }

    /// Whether a read saw something that was written.
    pub(super) fn saw_something(&self) -> bool {
        let seen = |stage: &Stage| match stage {
            Stage::Done { values, .. } => values.iter().any(|v| *v >= value(FIRST + 1, 0)),
            _ => false,
        };
        self.stages.iter().any(seen)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.stages.iter().any(|stage| matches!(stage, Stage::Begun { .. }))
    }

    /// Per block the newest acknowledged client write.
    pub(super) fn acknowledged(&self, ops: &[Plan]) -> BTreeMap<Slot, Wid> {
        let mut newest = BTreeMap::new();
        for (plan, stage) in ops.iter().zip(&self.stages).filter(|(plan, _)| plan.write) {
            let Stage::Done { wid, .. } = stage else { continue };
            for slot in &plan.slots {
                let entry: &mut Wid = newest.entry(Slot(*slot)).or_default();
                *entry = (*entry).max(*wid);
            }
        }
        newest
    }

    /// Whether a read of all blocks that begins and ends now may see these values.
    pub(super) fn may_read(&self, values: &[u64]) -> Result<(), String> {
        let reader = self.stages.len();
        for (slot, value) in values.iter().enumerate() {
            let mut tester = self.testers[slot].clone();
            tester.on_invoke(reader, RegisterOp::Read)?;
            tester.on_return(reader, RegisterRet::ReadOk(*value))?;
            if !tester.is_consistent() {
                return Err(format!("slot {slot} holds {value:#x}, which explains nothing"));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        match self.testers.iter().position(|tester| !tester.is_consistent()) {
            Some(slot) => Err(format!("no register explains slot {slot}: {:?}", self.stages)),
            None => Ok(()),
        }
    }
}
