//! What a newer map changes: who serves, in which epoch, with whom.

use super::cache::VecCache;
use super::catchup::Catchup;
use super::progress::Missed;
use super::suspects::Suspects;
use super::takeover::Takeover;
use super::{Action, Coordinator, Event, OpError, Phase};
use crate::invariant::invariant;
use smalti_map::mutant::{Mutant, lives};
use smalti_map::{ClusterMap, Command};
use smalti_storage::code::Code;
use smalti_storage::ids::Ver;
use std::sync::Arc;

impl Coordinator {
    pub(super) fn on_map(&mut self, map: Arc<ClusterMap>) {
        if map.version < self.map.version {
            return;
        }
        self.map = map;
        let Some(volume) = self.map.volumes.get(&self.config.volume).cloned() else {
            self.volume = None;
            self.insync_stores.clear();
            self.resign();
            return;
        };
        invariant!(
            "I1",
            volume.epoch >= self.epoch,
            "epoch {} of {} after {}",
            volume.epoch,
            volume.no,
            self.epoch
        );
        let mine = volume.coordinator == Some(self.config.me);
        let (before, epoch, activated) = (self.epoch, volume.epoch, volume.activated);
        if self.code.is_none() {
            self.code = Code::new(volume.data, volume.parity).ok().map(Arc::new);
        }
        self.volume = Some(volume);
        self.note_stores();
        if !mine {
            self.idle_since = None;
            self.resign();
            return;
        }
        self.epoch = epoch;
        match self.phase {
            Phase::Active if activated => {
                if epoch != before {
                    self.adopt_epoch();
                    self.finish_writes();
                    self.snapshot_on_map();
                    for (_, event) in std::mem::take(&mut self.waiting_ops) {
                        self.start(event);
                    }
                }
                self.catchup_on_map();
                self.release_held();
            }
            // Elected anew, with others in between unless it is the very next epoch. If it is,
            // committed rows are what they were; those under work are settled first.
            Phase::Active => {
                let next = before.0.checked_add(1) == Some(epoch.0) || lives(Mutant::KeepVectors);
                let known = next.then(|| self.vectors_at_rest());
                // Writes of the gateway that this election let in.
                let early = std::mem::take(&mut self.waiting_ops);
                self.resign();
                self.begin_takeover();
                self.waiting_ops = early;
                if let Some(known) = known {
                    self.cache = known;
                }
            }
            // The epoch has moved on if a shrink of ours followed the activation.
            Phase::Activating if activated => self.become_active(),
            Phase::TakingOver | Phase::Activating if epoch == before => self.release_held(),
            // An earlier life in this very process issued versions in this epoch. Acting in it
            // again would issue them twice.
            Phase::Idle
                if (activated || self.released == Some(epoch)) && !lives(Mutant::ReuseEpoch) =>
            {
                self.idle_since.get_or_insert(self.now);
            }
            _ => self.begin_takeover(),
        }
    }

    /// Named, but not serving: after a while asks for an epoch to serve in.
    pub(super) fn idle_tick(&mut self) {
        let patience = self.config.takeover_patience;
        if self.idle_since.is_some_and(|since| self.now.since(since) > patience) {
            self.propose_elect();
        }
    }

    /// Asks for this coordinator to be elected anew: everything undecided is settled again.
    pub(super) fn propose_elect(&mut self) {
        let (volume, epoch) = (self.config.volume, self.epoch);
        let (node, incarnation) = (self.config.me.node, self.config.me.incarnation);
        self.propose("elect", Command::Elect { volume, epoch, node, incarnation });
    }

    fn note_stores(&mut self) {
        let mut stores = Vec::new();
        if let Some(volume) = &self.volume {
            // A takeover tries to settle those that are offline, too.
            let counts = volume.groups.iter().filter(|group| !(volume.activated && group.offline));
            counts.for_each(|group| stores.extend(group.insync_stores()));
        }
        stores.sort_unstable();
        stores.dedup();
        self.insync_stores = stores;
        if let Some(volume) = &self.volume {
            self.missed.keep(volume);
        }
    }

    pub(super) fn become_active(&mut self) {
        let promised = |store| self.takeover.incarnation(store).is_some();
        let missing = self.insync_stores.iter().find(|store| !promised(**store));
        invariant!(
            "I4",
            missing.is_none(),
            "{} is active and {missing:?} has not promised it",
            self.epoch
        );
        self.phase = Phase::Active;
        self.active_since = self.now;
        self.last_issued = self.last_issued.max(Ver { epoch: self.epoch, seq: 0 });
        for store in self.insync_stores.clone() {
            if let Some(start) = self.takeover.incarnation(store) {
                self.incarnations.insert(store, start);
            }
        }
        for store in self.takeover.suspects() {
            self.suspect(store);
        }
        self.plan_next_decision();
        self.note_incarnations();
        let unreadable = std::mem::take(&mut self.takeover.unreadable);
        // Before what follows from all being well.
        for (row, slot) in &unreadable {
            let store = self.store_of(row.group, *slot);
            self.distrusted.extend(store.map(|store| (*row, (*slot, store))));
        }
        self.catchup_on_map();
        self.release_held();
        for (row, slot) in unreadable {
            self.repair_later(row, slot);
        }
        for (_, event) in std::mem::take(&mut self.waiting_ops) {
            self.start(event);
        }
    }

    /// Ends every operation with [`OpError::Fenced`] and forgets all state of the epoch.
    pub(super) fn resign(&mut self) {
        self.phase = Phase::Idle;
        let fenced = Err(OpError::Fenced);
        for op in std::mem::take(&mut self.writes).into_keys() {
            self.actions.push(Action::WriteDone { op, result: fenced });
        }
        for op in std::mem::take(&mut self.reads).into_keys() {
            self.actions.push(Action::ReadDone { op, result: Err(OpError::Fenced) });
        }
        for (_, event) in std::mem::take(&mut self.waiting_ops) {
            match event {
                Event::Write { op, .. } => {
                    self.actions.push(Action::WriteDone { op, result: fenced });
                }
                Event::Read { op, .. } => {
                    self.actions.push(Action::ReadDone { op, result: Err(OpError::Fenced) });
                }
                Event::List { op, .. } => {
                    self.actions.push(Action::Listed { op, result: Err(OpError::Fenced) });
                }
                Event::Snapshot { op, .. } => {
                    self.actions.push(Action::SnapshotDone { op, result: Err(OpError::Fenced) });
                }
                _ => {}
            }
        }
        for making in std::mem::take(&mut self.snapshots) {
            let op = making.op;
            self.actions.push(Action::SnapshotDone { op, result: Err(OpError::Fenced) });
        }
        self.end_lists();
        self.forget_epoch();
    }

    /// The generation of the gateway that is served.
    pub(super) fn writer_gen(&self) -> u32 {
        self.volume.as_ref().map_or(0, |volume| volume.writer_gen)
    }

    /// The cached vectors of rows that nothing is going on with.
    fn vectors_at_rest(&mut self) -> VecCache {
        let empty = VecCache::new(self.config.cached_rows);
        let mut vectors = std::mem::replace(&mut self.cache, empty);
        let busy = self.rows.keys().chain(self.inflight.values()).chain(&self.lost_rows);
        busy.for_each(|row| vectors.forget(*row));
        vectors
    }

    fn forget_epoch(&mut self) {
        self.pending.clear();
        self.held.clear();
        self.outbox.clear();
        self.repairs.clear();
        self.rows.clear();
        self.tasks.clear();
        self.parked.clear();
        self.runnable.clear();
        self.inflight.clear();
        self.lease_wait.clear();
        self.confirms.clear();
        self.frozen.clear();
        self.lost_rows.clear();
        self.distrusted.clear();
        self.missed = Missed::default();
        self.cache.clear();
        self.catchup = Catchup::default();
        self.suspects = Suspects::default();
        self.scrub = None;
        self.takeover = Takeover::default();
        self.incarnations.clear();
        self.leaving.clear();
        self.links.forget_epoch();
        self.proposed.clear();
    }

    pub(super) fn begin_takeover(&mut self) {
        // Client operations of an earlier life in this process were ended by `resign`; those that
        // wait for activation stay.
        self.forget_epoch();
        self.idle_since = None;
        self.phase = Phase::TakingOver;
        self.takeover.since = self.now;
        self.next_seq = 1;
        self.last_issued = Ver { epoch: self.epoch, seq: 0 };
        self.start_promises();
    }

    /// The same coordinator goes on in a new epoch: the in-sync sets changed under it.
    fn adopt_epoch(&mut self) {
        self.leaving.clear();
        self.catchup_retain();
        self.drop_lost(None);
        self.note_incarnations();
        self.confirm_again();
        self.runnable.extend(self.tasks.keys().copied());
        self.check_leases();
    }

    /// Remembers with which start each in-sync store is in sync.
    fn note_incarnations(&mut self) {
        let stores = &self.insync_stores;
        self.incarnations.retain(|store, _| stores.binary_search(store).is_ok());
        for store in stores {
            let registered = self.map.stores.get(store).map(|entry| entry.incarnation);
            if let Some(start) = registered {
                self.incarnations.entry(*store).or_insert(start);
            }
        }
    }
}
