//! A coordinator's state in canonical form, for checkers that must know whether they have seen it.
//!
//! Two coordinators with the same digest, whose nodes have the same map and whose messages under
//! way are the same by [`Coordinator::rank_of`], behave alike for ever. So that states merge which
//! differ in nothing that matters:
//!
//! * times are told from now, and no further than the last threshold they are compared with, unless
//!   they move on by as long as this side was asleep;
//! * requests, tasks, rounds and admissions are numbered by their order among those alive: their
//!   numbers grow for ever and are compared for equality and order only;
//! * counters for people (`stats`, `missed`) are left out, and what the map tells by itself.
//!
//! The order of the cache of vectors is left out too: it tells who is dropped once the cache is
//! full, so a checker must give it more room than there are rows.

use super::links::{HELD_AGAIN, IDLE_WATERMARK, Link, OVERDUE};
use super::rows::{Kind, Task, TaskId};
use super::{Coordinator, Event, PROPOSE_AGAIN, Pending, Phase, Purpose};
use crate::coordinator::catchup::{BACKGROUND_ENDS, Stage};
use crate::time::Time;
use smalti_storage::ids::StoreId;
use std::hash::{Hash, Hasher};
use std::time::Duration;

impl Coordinator {
    /// The place of a request among those that are still waited for, in order.
    pub fn rank_of(&self, request: u64) -> Option<usize> {
        self.pending.contains_key(&request).then(|| self.pending.range(..request).count())
    }

    /// Whether it has a session with the store.
    pub fn has_link(&self, store: StoreId) -> bool {
        self.links.is_up(store)
    }

    /// Feeds its state, as seen at `now`, to a hasher. To be called with nothing left to
    /// [`Coordinator::drain`].
    pub fn digest(&self, now: Time, hasher: &mut impl Hasher) {
        debug_assert!(self.actions.is_empty() && self.outbox.is_empty());
        (self.epoch, self.phase, self.released, self.waiting_ops.len()).hash(hasher);
        let patience = self.longest_patience();
        self.idle_since.map(|since| age(now, since, patience)).hash(hasher);
        for (since, event) in &self.waiting_ops {
            match event {
                Event::Write { op, blocks } => (0, op, blocks).hash(hasher),
                Event::Read { op, blocks, snap, generation } => {
                    let age = snap.map(|_| age(now, *since, patience));
                    (1, op, blocks, snap, generation, age).hash(hasher);
                }
                Event::List { op, group, after } => (4, op, group, after).hash(hasher),
                Event::Snapshot { op, name, created } => (3, op, name, created).hash(hasher),
                _ => 2.hash(hasher),
            }
        }
        self.last_tick.map(|last| now.since(last)).hash(hasher);
        self.links.links.len().hash(hasher);
        for (store, link) in &self.links.links {
            (store, link.session.is_some(), link.forgiven).hash(hasher);
            link.heard_at.map(|at| age(now, at, patience / 2)).hash(hasher);
            // Both move on by as long as this side was asleep.
            now.since(link.silent_from).hash(hasher);
            link.went_back.map(|(start, at)| (start, now.since(at))).hash(hasher);
        }
        if self.phase == Phase::Idle {
            // All else was forgotten when it resigned, or will be when it begins to take over.
            return;
        }
        self.links.links.values().for_each(|link| self.digest_link(now, link, hasher));
        self.leaving.len().hash(hasher);
        for (who, (asked, at)) in &self.leaving {
            (who, self.pending.range(..asked).count()).hash(hasher);
            age(now, *at, patience / 2).hash(hasher);
            let heard = self.links.links.values().map(|link| link.heard_of >= *asked);
            heard.collect::<Vec<_>>().hash(hasher);
        }
        self.lists.len().hash(hasher);
        for (op, list) in &self.lists {
            op.hash(hasher);
            list.digest(hasher);
        }
        let background = self.background_at.map(|at| age(now, at, BACKGROUND_ENDS));
        background.hash(hasher);
        self.pending.len().hash(hasher);
        for pending in self.pending.values() {
            self.digest_pending(now, pending, hasher);
        }
        let held: Vec<_> = self.held.iter().map(|id| self.rank_of(*id)).collect();
        held.hash(hasher);
        (self.next_seq, self.last_issued, &self.inflight).hash(hasher);
        self.digest_tasks(hasher);
        (&self.writes, &self.lease_wait, &self.lost_rows, &self.distrusted).hash(hasher);
        let ready = self.frozen.iter().map(|task| self.task_rank(*task));
        ready.collect::<Vec<_>>().hash(hasher);
        for making in &self.snapshots {
            making.digest(now, patience, hasher);
        }
        (self.snapshots.len(), self.reads.len()).hash(hasher);
        for (op, read) in &self.reads {
            (op, &read.records, read.rows_left, &read.groups, read.snap).hash(hasher);
            self.confirms.ahead(read.round).hash(hasher);
        }
        self.confirms.digest(hasher);
        self.incarnations.hash(hasher);
        let lately =
            |(epoch, at): &(_, Time)| *epoch == self.epoch && now.since(*at) < PROPOSE_AGAIN;
        let proposed = self.proposed.iter().filter(|(_, made)| lately(made));
        proposed.map(|(kind, (_, at))| (kind, now.since(*at))).collect::<Vec<_>>().hash(hasher);
        self.cache.digest(hasher);
        self.digest_takeover(now, hasher);
        self.digest_catchup(now, hasher);
        self.suspects.digest(now, hasher);
        if self.has_offline() {
            age(now, self.active_since, self.config.stall_patience).hash(hasher);
        }
        (&self.slow, &self.parked).hash(hasher);
        self.scrub.is_some().hash(hasher);
        self.scrub.iter().for_each(|scrub| scrub.digest(hasher));
    }

    fn longest_patience(&self) -> Duration {
        let patience = self.config.takeover_patience.max(self.config.suspect_after);
        let patience = patience.max(self.config.power_patience).max(self.config.stall_patience);
        // A single group is never gone on without.
        let groups = self.volume.as_ref().map_or(0, |volume| volume.groups.len());
        if groups > 1 { 2 * patience } else { patience }
    }

    fn digest_link(&self, now: Time, link: &Link, hasher: &mut impl Hasher) {
        let patience = self.longest_patience();
        (link.owed, link.told).hash(hasher);
        for since in [link.waiting_since, link.unheard_since] {
            since.map(|since| age(now, since, patience)).hash(hasher);
        }
        link.lease_until.since(now).hash(hasher);
        link.lease_asked.map(|asked| age(now, asked, self.config.lease / 4)).hash(hasher);
        age(now, link.told_at, IDLE_WATERMARK).hash(hasher);
    }

    fn digest_pending(&self, now: Time, pending: &Pending, hasher: &mut impl Hasher) {
        let patience = self.longest_patience();
        let limit = (OVERDUE * patience).max(HELD_AGAIN).max(self.config.lease);
        (pending.store, pending.place, &pending.ask, pending.held, pending.sessions).hash(hasher);
        age(now, pending.sent_at, limit).hash(hasher);
        std::mem::discriminant(&pending.purpose).hash(hasher);
        let fresh = |task: &TaskId, round| {
            self.tasks.get(task).is_some_and(|task| task.gather.round == round)
        };
        match &pending.purpose {
            Purpose::Task { task, slot, round } | Purpose::Vec { task, slot, round } => {
                // What an answer to an earlier round is for is not remembered.
                let live = fresh(task, *round).then(|| (self.task_rank(*task), slot));
                live.hash(hasher);
            }
            Purpose::Prep { task, row, slot } => (self.task_rank(*task), row, slot).hash(hasher),
            Purpose::Abort { task, slot } => (self.task_rank(*task), slot).hash(hasher),
            Purpose::Look { task } | Purpose::Repaired { task } => {
                self.task_rank(*task).hash(hasher);
            }
            Purpose::Settle { row, slot } => (row, slot).hash(hasher),
            Purpose::Opened { group, slot } => (group, slot).hash(hasher),
            Purpose::Scan { group, learner, of, round } => {
                let live = self.catchup.learners.get(&(*group, *learner)).is_some_and(
                    |l| matches!(&l.stage, Stage::Walking(walk) if walk.round == *round),
                );
                (group, learner, of, live).hash(hasher);
            }
            Purpose::Leftovers { group, learner, round }
            | Purpose::Changed { group, learner, round, .. } => {
                let live = self.catchup.learners.get(&(*group, *learner)).is_some_and(
                    |l| matches!(&l.stage, Stage::Listing(listing) if listing.round == *round),
                );
                (pending.store, group, learner, live).hash(hasher);
            }
            Purpose::Vet { group, of, round } => {
                (group, of, self.suspects.is_round(*group, *round)).hash(hasher);
            }
            Purpose::Digest { group, of, round } => {
                let live = self.scrub.as_ref().is_some_and(|scrub| scrub.is_round(*round));
                (group, of, live).hash(hasher);
            }
            Purpose::List { op, of, round } => {
                let live = self.lists.get(op).is_some_and(|list| list.is_round(*round));
                (op, of, live).hash(hasher);
            }
            Purpose::Proof { task, slot } => (self.task_rank(*task), slot).hash(hasher),
            Purpose::Confirm { round } => self.confirms.ahead(*round).hash(hasher),
            Purpose::Lease
            | Purpose::Forget
            | Purpose::Vetted
            | Purpose::Promise
            | Purpose::SettleDone => {}
        }
    }

    fn task_rank(&self, task: TaskId) -> Option<usize> {
        self.tasks.contains_key(&task).then(|| self.tasks.range(..task).count())
    }

    fn digest_tasks(&self, hasher: &mut impl Hasher) {
        (self.rows.len(), self.tasks.len()).hash(hasher);
        for (at, row) in &self.rows {
            (at, row.readers, row.holder.and_then(|task| self.task_rank(task))).hash(hasher);
            // Those that have ended are passed over.
            let queued = row.queue.iter().filter_map(|task| self.task_rank(*task));
            queued.collect::<Vec<_>>().hash(hasher);
        }
        for (id, task) in &self.tasks {
            (task.row, task.started, self.repairs.get(id)).hash(hasher);
            self.digest_task(task, hasher);
        }
        let runnable = self.runnable.iter().map(|task| self.task_rank(*task));
        runnable.collect::<Vec<_>>().hash(hasher);
    }

    fn digest_task(&self, task: &Task, hasher: &mut impl Hasher) {
        let g = &task.gather;
        (g.snap, g.need, g.avoid, &g.vec, g.parity_ver, &g.parity_meta).hash(hasher);
        (&g.records, &g.unchecked, &g.heads, g.asked, g.asked_vec, g.gone).hash(hasher);
        (g.dumb, g.by_all, g.eager, g.bringing).hash(hasher);
        match &task.kind {
            Kind::Read { op, want, snap } => (0, op, want, snap).hash(hasher),
            Kind::Update(update) => (1, update).hash(hasher),
            Kind::Check(check) => (4, check).hash(hasher),
            Kind::Repair(repair) => {
                let learning = self.catchup.learners.get(&(task.row.group, repair.seat.0));
                // For a learner that is admitted now, for one that was, or for none.
                let current = repair.life.map(|life| learning.is_some_and(|l| l.life == life));
                (2, repair.seat, current, &repair.doubt).hash(hasher);
            }
            Kind::Forward(forward) => (3, forward).hash(hasher),
        }
    }

    fn digest_takeover(&self, now: Time, hasher: &mut impl Hasher) {
        let t = &self.takeover;
        (&t.promised, t.looking, &t.facts, t.answers_due, t.open, t.again).hash(hasher);
        t.unreadable.hash(hasher);
        let again = t.ask_again.iter().map(|(store, at)| (store, at.since(now)));
        again.collect::<Vec<_>>().hash(hasher);
    }

    fn digest_catchup(&self, now: Time, hasher: &mut impl Hasher) {
        (&self.catchup.claimed, self.catchup.learners.len()).hash(hasher);
        self.catchup.unrepaired.digest(now, hasher);
        self.decide_again.map(|(at, tried)| (at.since(now), tried)).hash(hasher);
        for (place, l) in &self.catchup.learners {
            (place, l.store, l.incarnation, &l.behind, l.repairing, &l.failed, &l.marked, l.lost)
                .hash(hasher);
            (l.outstanding, l.retry_at.since(now), l.full_until.since(now), l.refused(), l.vain)
                .hash(hasher);
            match &l.stage {
                Stage::Barrier { after, opened } => (0, after, opened).hash(hasher),
                Stage::Walking(walk) => {
                    (1, walk.after, &walk.pages, &walk.due, walk.paused).hash(hasher);
                    walk.touched.hash(hasher);
                }
                Stage::Repairing => 2.hash(hasher),
                Stage::Listing(listing) => {
                    (4, listing.after, &listing.pages, &listing.due).hash(hasher);
                    (listing.paused, listing.told).hash(hasher);
                }
                Stage::Growing { proposed } => (3, proposed).hash(hasher),
            }
        }
    }
}

/// How long ago, up to just past `limit`: nothing asks whether it is more.
fn age(now: Time, then: Time, limit: Duration) -> Duration {
    now.since(then).min(limit + Duration::from_micros(1))
}
