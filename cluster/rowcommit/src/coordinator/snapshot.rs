//! Making a snapshot: the volume holds its breath for one change of the map.
//!
//! No version is issued any more; once none is undecided, the snapshot is proposed. So every update
//! is wholly before it or wholly after, on all rows, and whoever was acknowledged before it was asked
//! for is in it. Whether the map has it shows when the epoch is over, by whatever ended it; until then
//! the proposal may still be accepted, and nothing is issued.

use super::{Action, Coordinator, OpError, Phase};
use crate::snaps::Snaps;
use crate::time::Time;
use smalti_map::mutant::{Mutant, lives};
use smalti_map::{Command, Rejection};
use smalti_storage::ids::Epoch;
use std::hash::{Hash, Hasher};
use std::time::Duration;

/// A snapshot that is being made.
#[derive(Clone, Debug)]
pub(super) struct Making {
    pub(super) op: u64,
    name: String,
    created: u64,
    /// Since when nothing is issued for its sake.
    since: Option<Time>,
    proposed: Option<Epoch>,
}

impl Making {
    /// Feeds it to a hasher, with times told from now and up to the patience with it.
    pub(super) fn digest(&self, now: Time, patience: Duration, hasher: &mut impl Hasher) {
        let since = self.since.map(|since| now.since(since).min(patience));
        (self.op, &self.name, self.created, since, self.proposed).hash(hasher);
    }
}

impl Coordinator {
    pub(super) fn start_snapshot(&mut self, op: u64, name: String, created: u64) {
        let known = self.volume.as_ref().and_then(|volume| volume.snapshot_named(&name));
        if known.is_some() || self.snapshots.iter().any(|making| making.name == name) {
            let result = Err(OpError::SnapshotRefused);
            self.actions.push(Action::SnapshotDone { op, result });
            return;
        }
        if self.has_offline() {
            // Nobody can tell what it would hold.
            self.actions.push(Action::SnapshotDone { op, result: Err(OpError::Busy) });
            return;
        }
        self.snapshots.push_back(Making { op, name, created, since: None, proposed: None });
    }

    /// The newest snapshot: what versions are stamped with.
    pub(super) fn newest_snap(&self) -> u32 {
        self.volume.as_ref().map_or(0, |volume| volume.snap_seq)
    }

    /// The snapshots whose versions a slot in sync must hold too.
    pub(super) fn snaps(&self) -> Snaps {
        let volume = self.volume.as_ref().filter(|_| !lives(Mutant::WalkNewestOnly));
        volume.map(Snaps::of).unwrap_or_default()
    }

    /// Whether a snapshot that is read can be.
    pub(super) fn is_kept(&self, snap: Option<u32>) -> bool {
        let snapshots = self.volume.as_ref().map(|volume| &volume.snapshots);
        snap.is_none_or(|snap| snapshots.is_some_and(|kept| kept.contains_key(&snap)))
    }

    /// Whether no version may be issued.
    pub(super) fn is_frozen(&self) -> bool {
        !self.snapshots.is_empty() && !lives(Mutant::IssueFrozen)
    }

    /// Proposes the snapshot whose turn it is, once nothing is undecided. If that takes too long,
    /// because a store is out of reach that can not be done without, others need not wait for it.
    pub(super) fn propose_snapshot(&mut self) {
        if self.phase != Phase::Active {
            return;
        }
        let (now, patience) = (self.now, self.config.takeover_patience);
        let decided = self.inflight.is_empty() || lives(Mutant::SnapUndecided);
        let epoch = self.epoch;
        let Some(making) = self.snapshots.front_mut() else { return };
        let since = *making.since.get_or_insert(now);
        if decided {
            making.proposed = Some(epoch);
            let (name, created) = (making.name.clone(), making.created);
            let volume = self.config.volume;
            self.propose("snapshot", Command::AddSnapshot { volume, epoch, name, created });
        } else if making.proposed != Some(epoch) && now.since(since) > patience {
            self.end_snapshot(Err(OpError::Busy));
        }
    }

    /// The epoch is over in which a snapshot was proposed, perhaps because it was made.
    pub(super) fn snapshot_on_map(&mut self) {
        let Some(making) = self.snapshots.front() else { return };
        let made = self.volume.as_ref().and_then(|volume| volume.snapshot_named(&making.name));
        if let Some(snap) = made {
            self.end_snapshot(Ok(snap));
        }
    }

    /// The map refused the proposal. As long as the epoch lasts it refuses every copy of it.
    pub(super) fn snapshot_refused(&mut self, epoch: Epoch, why: &Rejection) {
        let stale = matches!(why, Rejection::StaleEpoch { .. });
        if !stale && epoch == self.epoch && self.phase == Phase::Active {
            self.end_snapshot(Err(OpError::SnapshotRefused));
        }
    }

    fn end_snapshot(&mut self, result: Result<u32, OpError>) {
        let Some(making) = self.snapshots.pop_front() else { return };
        self.actions.push(Action::SnapshotDone { op: making.op, result });
        // Another one that waits is proposed at the next turn, and finds them frozen again.
        self.runnable.extend(std::mem::take(&mut self.frozen));
    }
}
