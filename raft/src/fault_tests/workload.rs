//! What is written while the power may be cut, and what must be there afterwards.

use crate::db::{Db, DbError};
use crate::log_store::LogStore;
use crate::state_machine::{Published, StateMachine};
use crate::types::{Entry, LogId, Proposal, ProposalId, SnapshotMeta, StorageError};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::{CommittedLeaderId, EntryPayload, RaftLogReader, RaftSnapshotBuilder, Vote};
use smalti_map::{Command, Custody, NodeAddresses, ShareHolder};
use smalti_powercut::Draw;
use smalti_storage::ids::{ClusterId, NodeId};
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

pub(crate) const NODE: u64 = 1;

/// Everything a Raft store may be asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    pub(crate) vote: Option<Vote<u64>>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    pub(crate) snapshot: Option<(SnapshotMeta, Vec<u8>)>,
}

impl State {
    fn last(&self) -> u64 {
        let last = self.entries.last().map(|entry| entry.log_id.index);
        last.or(self.purged.map(|id| id.index)).unwrap_or(0)
    }
}

/// One operation of openraft on the store; all but `Commit` are durable when they return.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Vote(Vote<u64>),
    Append(Vec<Entry>),
    Truncate(LogId),
    Commit(LogId),
    /// Builds a snapshot of what is applied, which is all that is committed.
    Snapshot,
    /// Takes a snapshot of another member.
    Install(LogId),
    Purge(LogId),
    /// The process ends and starts.
    Reopen,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Open(#[from] DbError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, NODE), index)
}

fn addresses(port: u16) -> NodeAddresses {
    let at = |port: u16| ([127, 0, 0, 1], port).into();
    NodeAddresses { quic: at(port), api: at(2), nbd: at(3) }
}

/// Every entry is another one, in term and content.
fn entry(term: u64, index: u64, large: usize) -> Entry {
    let command = if index == 1 || large > 0 {
        let node = NodeId(NODE);
        Command::InitCluster {
            cluster: ClusterId(Uuid::from_u128(0xc1)),
            nodes: vec![(node, "a".into(), addresses(1))],
            custody: Custody {
                share_epoch: 1,
                threshold: 1,
                holders: vec![ShareHolder { node, share: 1 }],
                commitments: vec![index as u8; large],
                sealed_for_recovery: Vec::new(),
            },
            recovery: None,
        }
    } else {
        Command::RegisterNode { node: NodeId(NODE), addresses: addresses(index as u16) }
    };
    let id_of = ProposalId { node: NODE, session: term, seq: index };
    let payload = EntryPayload::Normal(Proposal { id: id_of, command });
    Entry { log_id: id(term, index), payload }
}

/// Steps as openraft takes them: it truncates nothing committed, and purges what a snapshot has.
pub(crate) fn steps(seed: u64, count: usize) -> Vec<Step> {
    let mut draw = Draw::new(seed);
    let (mut term, mut ids, mut committed, mut snapshot): (u64, Vec<LogId>, usize, usize) =
        (0, Vec::new(), 0, 0);
    let mut steps = Vec::new();
    while steps.len() < count {
        let last = ids.len();
        match draw.below(100) {
            0..15 => {
                term += 1;
                let vote = if draw.chance(50) { Vote::new } else { Vote::new_committed };
                steps.push(Step::Vote(vote(term, NODE)));
            }
            15..60 => {
                let mut entries = Vec::new();
                for _ in 0..draw.between(1, 4) {
                    let large = if draw.chance(15) { draw.between(1, 60_000) } else { 0 };
                    let entry = entry(term, ids.len() as u64 + 1, large);
                    ids.push(entry.log_id);
                    entries.push(entry);
                }
                steps.push(Step::Append(entries));
            }
            60..70 if last > committed => {
                let from = draw.between(committed, last - 1);
                steps.push(Step::Truncate(ids[from]));
                ids.truncate(from);
                term += 1;
            }
            70..85 if last > committed => {
                committed = draw.between(committed + 1, last);
                steps.push(Step::Commit(ids[committed - 1]));
            }
            85..91 if committed > snapshot => {
                snapshot = committed;
                steps.push(Step::Snapshot);
            }
            91..95 if snapshot > 0 => steps.push(Step::Purge(ids[snapshot - 1])),
            95..97 if snapshot > 0 && committed == last => {
                for _ in 0..5 {
                    ids.push(id(term, ids.len() as u64 + 1));
                }
                (committed, snapshot) = (ids.len(), ids.len());
                steps.push(Step::Install(ids[snapshot - 1]));
                // As openraft does: what the snapshot stands for is no part of the log.
                steps.push(Step::Purge(ids[snapshot - 1]));
                steps.push(Step::Commit(ids[snapshot - 1]));
            }
            97.. => steps.push(Step::Reopen),
            _ => {}
        }
    }
    steps
}

pub(crate) struct Open {
    pub(crate) log: LogStore,
    pub(crate) machine: StateMachine,
}

pub(crate) async fn open(path: &Path) -> Result<Open, DbError> {
    let db = Arc::new(Db::open(path, NODE)?);
    let machine = StateMachine::load(Arc::clone(&db), Published::default()).await?;
    Ok(Open { log: LogStore::new(db), machine })
}

/// Reads all there is, as a start of openraft would.
pub(crate) async fn read(open: &mut Open) -> Result<State, StorageError> {
    let log_state = open.log.get_log_state().await?;
    let entries = open.log.try_get_log_entries(..).await?;
    let last = entries.last().map(|entry| entry.log_id).or(log_state.last_purged_log_id);
    assert_eq!(log_state.last_log_id, last);
    let snapshot = open.machine.get_current_snapshot().await?;
    Ok(State {
        vote: open.log.read_vote().await?,
        entries,
        purged: log_state.last_purged_log_id,
        committed: open.log.read_committed().await?,
        snapshot: snapshot.map(|snapshot| (snapshot.meta, snapshot.snapshot.into_inner())),
    })
}

/// Takes the steps; `note` hears of each before and after it. Answers the states: the first is
/// the empty one, then one after each step.
pub(crate) async fn take(
    path: &Path,
    steps: &[Step],
    mut note: impl FnMut(Mark),
) -> Result<Vec<State>, Failure> {
    note(Mark::Opening);
    let mut opened = open(path).await?;
    note(Mark::Opened);
    let mut states = vec![State::default()];
    for (step, no) in steps.iter().zip(1..) {
        note(Mark::Begun(no));
        let mut state = states.last().cloned().unwrap_or_default();
        if let Step::Reopen = step {
            drop(opened);
            opened = open(path).await?;
            let applied = opened.machine.applied_state().await?.0;
            apply(&mut opened.machine, &state, applied).await?;
        } else {
            change(&mut opened, &mut state, step).await?;
        }
        states.push(state);
        note(Mark::Acked(no));
    }
    Ok(states)
}

async fn change(open: &mut Open, state: &mut State, step: &Step) -> Result<(), StorageError> {
    let Open { log, machine } = open;
    match step {
        Step::Vote(vote) => {
            log.save_vote(vote).await?;
            state.vote = Some(*vote);
        }
        Step::Append(entries) => {
            assert_eq!(state.last() + 1, entries[0].log_id.index);
            log.blocking_append(entries.clone()).await?;
            state.entries.extend(entries.iter().cloned());
        }
        Step::Truncate(from) => {
            log.truncate(*from).await?;
            state.entries.retain(|entry| entry.log_id.index < from.index);
        }
        Step::Commit(id) => {
            log.save_committed(Some(*id)).await?;
            let applied = machine.applied_state().await?.0;
            state.committed = Some(*id);
            apply(machine, state, applied).await?;
        }
        Step::Snapshot => {
            let built = machine.get_snapshot_builder().await.build_snapshot().await?;
            state.snapshot = Some((built.meta, built.snapshot.into_inner()));
        }
        Step::Install(id) => {
            let Some((meta, data)) = state.snapshot.clone() else { unreachable!("one was built") };
            let meta = SnapshotMeta { last_log_id: Some(*id), ..meta };
            machine.install_snapshot(&meta, Box::new(Cursor::new(data.clone()))).await?;
            state.snapshot = Some((meta, data));
        }
        Step::Purge(id) => {
            log.purge(*id).await?;
            state.entries.retain(|entry| entry.log_id.index > id.index);
            state.purged = state.purged.max(Some(*id));
        }
        Step::Reopen => unreachable!("done where the store is held"),
    }
    Ok(())
}

/// Applies what is committed and not applied.
async fn apply(
    machine: &mut StateMachine,
    state: &State,
    applied: Option<LogId>,
) -> Result<(), StorageError> {
    let fresh =
        |entry: &&Entry| Some(entry.log_id) > applied && Some(entry.log_id) <= state.committed;
    let entries: Vec<Entry> = state.entries.iter().filter(fresh).cloned().collect();
    machine.apply(entries).await?;
    Ok(())
}

/// A note between the store's own writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Opening,
    Opened,
    Begun(u32),
    Acked(u32),
}

impl Mark {
    pub(crate) fn code(self) -> u64 {
        match self {
            Self::Opening => 0,
            Self::Opened => 1,
            Self::Begun(no) => 2 << 32 | u64::from(no),
            Self::Acked(no) => 3 << 32 | u64::from(no),
        }
    }

    pub(crate) fn of(code: u64) -> Self {
        let no = code as u32;
        match (code >> 32, no) {
            (0, 0) => Self::Opening,
            (0, _) => Self::Opened,
            (2, _) => Self::Begun(no),
            _ => Self::Acked(no),
        }
    }
}

/// What has to hold after the marks so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    /// All steps up to this one are done for good.
    pub(crate) least: usize,
    /// None after this one is.
    pub(crate) most: usize,
    /// The store is just being opened.
    pub(crate) opening: bool,
}

impl Known {
    pub(crate) fn after(marks: impl Iterator<Item = Mark>, steps: &[Step]) -> Self {
        let mut known = Self::default();
        for mark in marks {
            match mark {
                Mark::Begun(no) => {
                    known.most = no as usize;
                    known.opening = matches!(steps[no as usize - 1], Step::Reopen);
                }
                Mark::Acked(no) => {
                    known.opening = false;
                    let step = &steps[no as usize - 1];
                    if !matches!(step, Step::Commit(_) | Step::Reopen) {
                        known.least = no as usize;
                    }
                }
                Mark::Opening => known.opening = true,
                Mark::Opened => known.opening = false,
            }
        }
        known
    }
}

/// The newest of the states up to `most` that is this one.
pub(crate) fn which(state: &State, states: &[State], most: usize) -> Option<usize> {
    states[..=most].iter().rposition(|known| known == state)
}
