//! The store side of the protocol: what one shard store accepts, keeps and answers.
//!
//! [`StoreCore::handle`] takes one frame after another and collects their changes; the caller makes
//! [`StoreCore::take_batch`] durable and only then sends the answers. Requests that only read may
//! also be served beside it by [`read::ReadSide`], which sees durable state alone.
//!
//! S1. Nothing is accepted from anyone but the coordinator of the epoch in the store's own map,
//!     nothing older than what it promised, and nothing before the map tells of this start.
//! S2. An undecided version keeps its pre-image until it is known committed.
//! S3. What it came up with undecided after a crash is settled with the others before any update is
//!     taken: until it promises an epoch, a store that is in sync takes none.
//! S4. Bytes are checked against hash, place and version before anything is built on them.

mod collect;
mod digest;
mod index;
mod prepare;
mod prove;
pub mod read;
mod room;
mod rows;

use crate::invariant::invariant;
use crate::msg::{Answer, Ask, Frame, Reject, Reply};
use crate::snaps::Snaps;
use crate::time::{Time, lease_granted};
use collect::Collecting;
use index::Indexes;
use read::Fence;
pub use room::Room;
use rows::Rows;
use smalti_map::mutant::{Mutant, lives};
use smalti_map::{ClusterMap, Coordinator as Coordinating, Group, ReadMode};
use smalti_storage::ids::{Epoch, GroupNo, NodeId, RowSlot, Ver, VolumeNo};
use smalti_storage::store::{Batch, Change, Opened, ShardStore, StoreError, VolumeState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What a store needs to be told.
#[derive(Clone, Copy, Debug)]
pub struct StoreConfig {
    /// The longest read lease any coordinator may hold.
    pub lease_max: Duration,
    /// Row slots whose versions stay in memory.
    pub cached_rows: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { lease_max: Duration::from_millis(1500), cached_rows: 4096 }
    }
}

/// One volume as this store sees it.
#[derive(Clone, Debug)]
struct VolumeSide {
    /// Epoch and coordinator by this node's own map.
    epoch: Epoch,
    coordinator: Option<Coordinating>,
    /// Durable state, and whether the copy here is newer than the disk's.
    state: VolumeState,
    dirty: bool,
    /// Undecided versions, both ways round.
    prepared: BTreeMap<RowSlot, Ver>,
    by_ver: BTreeMap<Ver, RowSlot>,
    /// Row slots with an undecided version that this store came up with after a crash. They may have
    /// been undone since: no watermark speaks of them before the store has been compared.
    doubtful: BTreeSet<RowSlot>,
    /// Groups in which this store has been in sync since it came up after a crash, until it promises
    /// an epoch. What it holds undecided there was not settled with the others yet. Unknown before
    /// the first map.
    unsettled: Option<BTreeSet<GroupNo>>,
    /// Until when other parties may believe in a read lease from here. Lost in a restart.
    grants: Vec<(Coordinating, Time)>,
    /// The newest session heard of, and whose it is.
    session: Option<(Coordinating, u64)>,
    /// Groups that are online and in which this store is in sync, by its own map. Only of those does the
    /// watermark tell anything: elsewhere an undecided version may be one that was undone behind its back,
    /// or that nobody has settled yet.
    told: Vec<bool>,
    /// Groups of which this store is to keep what it has. Unknown before the first map.
    keeps: Option<Vec<bool>>,
    /// Groups of which it took something though its map did not say that it is to.
    unasked: BTreeSet<GroupNo>,
    indexes: Indexes,
    snaps: Snaps,
    /// How many snapshots have been deleted, by its map.
    deleted: u32,
    collecting: Option<Collecting>,
    /// Its rows were compared with those of other stores since this store came up.
    vetted: bool,
    /// Coordinators ask for read leases.
    leases: bool,
    /// The store came to be in sync somewhere: what the watermark covered already is to be looked
    /// through again, for it was not believed there.
    sweep: bool,
}

impl VolumeSide {
    fn is_told_of(&self, group: GroupNo) -> bool {
        self.told.get(usize::from(group.0)).copied().unwrap_or(false)
    }

    /// Why a frame is refused: the newest epoch heard of. A store that promised more than its
    /// map tells of, after a restart with an older one, does not know its coordinator yet.
    fn refuses(&self, sender: Coordinating, epoch: Epoch) -> Option<Epoch> {
        let promised = Some(self.state.promised).filter(|_| !lives(Mutant::ForgetPromise));
        let known = self.epoch.max(promised.unwrap_or_default());
        if lives(Mutant::ObeyAnyone) && epoch <= known {
            return None;
        }
        let right = self.coordinator == Some(sender) && self.epoch == known && epoch == known;
        (!right).then_some(known)
    }
}

/// The store side of the protocol.
pub struct StoreCore {
    store: Arc<dyn ShardStore>,
    opened: Opened,
    config: StoreConfig,
    boot: Time,
    /// The map tells of this start. An older one may be from before this store was given, or gave
    /// up, what it holds.
    registered: bool,
    room: Room,
    volumes: BTreeMap<VolumeNo, VolumeSide>,
    rows: Rows,
    /// Row slots that may keep more than they need, because a pass found them unreadable.
    recheck: Vec<RowSlot>,
    batch: Batch,
    /// Whether the batch holds anything an answer depends on.
    must_sync: bool,
    fence: Arc<Fence>,
    /// The map moved on while changes were being collected that readers can not see yet.
    fence_due: bool,
}

impl std::fmt::Debug for StoreCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreCore").field("opened", &self.opened).finish_non_exhaustive()
    }
}

impl StoreCore {
    /// A store that came up at `boot`.
    pub fn new(store: Arc<dyn ShardStore>, config: StoreConfig, boot: Time) -> Self {
        Self {
            opened: store.opened(),
            rows: Rows::new(Arc::clone(&store), config.cached_rows),
            store,
            config,
            boot,
            registered: false,
            room: Room::All,
            volumes: BTreeMap::new(),
            recheck: Vec::new(),
            batch: Batch::default(),
            must_sync: false,
            fence: Arc::default(),
            fence_due: false,
        }
    }

    /// With a fence that readers look at already.
    #[must_use]
    pub fn with_fence(self, fence: Arc<Fence>) -> Self {
        Self { fence, ..self }
    }

    /// What readers beside this core check requests against.
    pub fn fence(&self) -> Arc<Fence> {
        Arc::clone(&self.fence)
    }

    /// What clients may still have written. Aborts, commits and repairs always go on.
    pub fn set_room(&mut self, room: Room) {
        self.room = room;
    }

    /// Adopts a newer map; forgets volumes that were deleted. Readers beside this core adopt it
    /// once the changes collected so far are durable: at once when there are none, else with the
    /// next call of [`Self::committed`]. A reader of the new epoch must not miss what was accepted
    /// in the old one.
    ///
    /// # Errors
    /// When the disk can not be read.
    pub fn set_map(&mut self, map: &ClusterMap) -> Result<(), StoreError> {
        let nothing_waits = self.batch.changes.is_empty();
        let mut given_up = Vec::new();
        let known = map.stores.get(&self.opened.id).map(|entry| entry.incarnation);
        self.registered |=
            known == Some(self.opened.incarnation) || lives(Mutant::ObeyUnregistered);
        for volume in map.volumes.values() {
            let side = match self.volumes.remove(&volume.no) {
                Some(side) => side,
                None => self.load(volume.no)?,
            };
            let me = self.opened.id;
            let in_sync = |group: &Group| group.has_in_sync(me);
            let in_sync: Vec<bool> = volume.groups.iter().map(in_sync).collect();
            let told = |group: &Group| {
                group.has_in_sync(me) && (!group.offline || lives(Mutant::WatermarkOffline))
            };
            let told: Vec<bool> = volume.groups.iter().map(told).collect();
            let keeps: Vec<bool> = volume.groups.iter().map(|group| group.keeps(me)).collect();
            // A frame of the epoch in which a group was given up may have brought something new by
            // the time another map comes: only the first one deletes. What came because this
            // store's map was late to tell of a move goes with the first map of another epoch.
            let before = side.keeps.as_deref().filter(|_| self.registered);
            let later = volume.epoch > side.epoch;
            for (no, _) in (0u16..).zip(&keeps).filter(|(_, keeps)| self.registered && !**keeps) {
                let had = before.is_none_or(|before| before.get(usize::from(no)) == Some(&true));
                if had || later && side.unasked.contains(&GroupNo(no)) {
                    given_up.push((volume.no, GroupNo(no)));
                }
            }
            let in_sync_now = || (0u16..).map(GroupNo).zip(&in_sync).filter(|(_, inside)| **inside);
            let unsettled = match side.unsettled {
                None if self.registered => Some(in_sync_now().map(|(no, _)| no).collect()),
                Some(mut groups) => {
                    groups.retain(|no| in_sync.get(usize::from(no.0)) == Some(&true));
                    Some(groups)
                }
                None => None,
            };
            let side = VolumeSide {
                epoch: volume.epoch,
                coordinator: volume.coordinator,
                unsettled,
                leases: volume.read_mode == ReadMode::Lease,
                sweep: side.sweep || told != side.told,
                told,
                keeps: Some(keeps).filter(|_| self.registered),
                snaps: Snaps::of(volume),
                deleted: volume.snapshots_deleted,
                ..side
            };
            self.volumes.insert(volume.no, side);
        }
        for (no, group) in given_up {
            self.give_up(no, group)?;
        }
        if self.registered {
            map.volumes.values().try_for_each(|volume| self.index_by(volume))?;
        }

        let gone = |no: &VolumeNo| no.0 < map.next_volume && !map.volumes.contains_key(no);
        for no in self.store.volumes()?.into_iter().filter(gone) {
            self.volumes.remove(&no);
            self.rows.forget_volume(no);
            self.batch.changes.push(Change::DropVolume { volume: no });
        }
        self.volumes.retain(|no, _| !gone(no));
        self.fence_due = true;
        if nothing_waits {
            self.committed();
        }
        Ok(())
    }

    /// Deletes what is here of a group that others hold.
    fn give_up(&mut self, no: VolumeNo, group: GroupNo) -> Result<(), StoreError> {
        let in_batch = self.batch.changes.iter().any(|change| match change {
            Change::PutVersion { at, .. } => at.volume == no && at.row.group == group,
            _ => false,
        });
        // One row slot that can not be read is one that is there.
        let empty = self.store.scan(no, group, None, 1).is_ok_and(|page| page.is_empty());
        let marked = |side: &VolumeSide| side.prepared.keys().any(|at| at.row.group == group);
        let marked = self.volumes.get(&no).is_some_and(marked);
        if empty && !in_batch && !marked {
            return Ok(());
        }
        if let Some(side) = self.volumes.get_mut(&no) {
            side.prepared.retain(|at, _| at.row.group != group);
            side.by_ver.retain(|_, at| at.row.group != group);
            side.doubtful.retain(|at| at.row.group != group);
            side.indexes.forget(group);
            side.unasked.remove(&group);
        }
        self.rows.forget_group(no, group);
        self.batch.changes.push(Change::DropGroup { volume: no, group });
        Ok(())
    }

    /// What [`Self::take_batch`] gave is durable now.
    pub fn committed(&mut self) {
        if std::mem::take(&mut self.fence_due) {
            let entry = |(no, side): (&VolumeNo, &VolumeSide)| {
                let behind = side.epoch < side.state.promised || !self.registered;
                (*no, (side.epoch, side.coordinator.filter(|_| !behind)))
            };
            self.fence.replace(self.volumes.iter().map(entry).collect());
        }
    }

    fn load(&self, no: VolumeNo) -> Result<VolumeSide, StoreError> {
        let prepared: BTreeMap<_, _> = self.store.prepared(no)?.into_iter().collect();
        let mut state = self.store.volume(no)?;
        let doubtful = !self.opened.clean && !lives(Mutant::SuspectTold);
        if doubtful {
            // Of several crashes it is the first one that counts.
            state.doubted.get_or_insert(state.watermark);
        }
        // One that ended in order has been compared, or had nothing to compare.
        let settled = self.opened.clean && state.doubted.take().is_some();
        Ok(VolumeSide {
            epoch: Epoch(0),
            coordinator: None,
            state,
            dirty: doubtful || settled,
            doubtful: prepared.keys().filter(|_| doubtful).copied().collect(),
            unsettled: self.opened.clean.then(BTreeSet::new),
            by_ver: prepared
                .iter()
                .filter(|(_, ver)| !prepare::is_sign(**ver))
                .map(|(at, ver)| (*ver, *at))
                .collect(),
            prepared,
            grants: Vec::new(),
            session: None,
            told: Vec::new(),
            keeps: None,
            unasked: BTreeSet::new(),
            indexes: Indexes::default(),
            snaps: Snaps::default(),
            deleted: 0,
            collecting: None,
            vetted: false,
            leases: true,
            sweep: false,
        })
    }

    /// What was read of a row slot is read anew: somebody else may have changed the disk. Between batches only.
    pub fn look_again(&mut self, at: RowSlot) {
        self.rows.reload(at);
    }

    /// The volumes' epoch this store knows; the caller holds a frame of a newer one back until
    /// its map has caught up.
    pub fn epoch_of(&self, volume: VolumeNo) -> Option<Epoch> {
        self.volumes.get(&volume).map(|side| side.epoch)
    }

    /// Whether this run may be ended in order. One that began after a crash is not to be trusted
    /// before every volume was compared, and the clean marker would say that it is.
    pub fn is_vetted(&self) -> bool {
        let right = |side: &VolumeSide| {
            let nothing = side.keeps.as_ref().is_some_and(|keeps| !keeps.contains(&true));
            nothing || side.vetted && side.indexes.is_right()
        };
        // With no map that tells of this start, nobody can have compared anything.
        self.opened.clean || (self.registered && self.volumes.values().all(right))
    }

    /// Takes one frame. `None`: it belongs to an older session and is dropped. The answers may be
    /// sent once the batch taken after this call is durable.
    ///
    /// # Errors
    /// When the disk fails: the process must stop.
    pub fn handle(
        &mut self,
        now: Time,
        from: NodeId,
        frame: Frame,
    ) -> Result<Option<Reply>, StoreError> {
        if self.batch.changes.is_empty() {
            // Whatever was taken has been committed, or this would not be called.
            self.committed();
        }
        let (volume, session) = (frame.volume, frame.session);
        let incarnation = self.opened.incarnation;
        let reply = |answers| Ok(Some(Reply { volume, session, incarnation, answers }));
        let sender = Coordinating { node: from, incarnation: frame.incarnation };
        let refused = match self.volumes.get_mut(&volume) {
            None => Some(Epoch(0)),
            Some(side) => {
                if let Some(known) = side.refuses(sender, frame.epoch) {
                    Some(known)
                } else if !self.registered {
                    // The map that tells of this start is on its way.
                    Some(side.epoch)
                } else if matches!(side.session, Some((who, at)) if who == sender && at > session)
                    && !lives(Mutant::LateFrames)
                {
                    return Ok(None);
                } else {
                    side.session = Some((sender, session));
                    None
                }
            }
        };
        if let Some(known) = refused {
            let stale = Answer::Rejected(Reject::StaleEpoch { known });
            return reply(frame.requests.into_iter().map(|r| (r.id, stale.clone())).collect());
        }
        invariant!(
            "I2",
            frame.watermark.epoch <= frame.epoch,
            "watermark {} of {}",
            frame.watermark,
            frame.epoch
        );
        self.advance_watermark(volume, frame.watermark)?;
        let changed = frame.requests.iter().filter_map(|request| request.ask.changes());
        self.rows.load(changed.map(|(row, slot)| RowSlot { volume, row, slot }))?;
        let mut answers = Vec::with_capacity(frame.requests.len());
        for request in frame.requests {
            if request.ask.binds() && !lives(Mutant::AcceptUnbound) {
                self.raise_promise(volume, frame.epoch);
            }
            let vetted = matches!(request.ask, Ask::Vetted { .. });
            let answer = self.answer(now, sender, volume, frame.epoch, request.ask)?;
            answers.push((request.id, answer));
            if vetted {
                // What it came up with is spoken of now, and it may not be told again for a while.
                self.advance_watermark(volume, frame.watermark)?;
            }
        }
        reply(answers)
    }

    /// The changes since the last call, and whether answers wait for them to be durable.
    pub fn take_batch(&mut self) -> (Batch, bool) {
        for (no, side) in &mut self.volumes {
            if std::mem::take(&mut side.dirty) {
                self.batch.changes.push(Change::SetVolume { volume: *no, state: side.state });
            }
        }
        self.recheck.extend(self.rows.trim());
        let must_sync = std::mem::take(&mut self.must_sync);
        let mut batch = std::mem::take(&mut self.batch);
        batch.relaxed = !must_sync;
        (batch, must_sync)
    }

    fn answer(
        &mut self,
        now: Time,
        sender: Coordinating,
        volume: VolumeNo,
        epoch: Epoch,
        ask: Ask,
    ) -> Result<Answer, StoreError> {
        let at = |row, slot| RowSlot { volume, row, slot };
        Ok(match ask {
            Ask::Promise => self.promise(now, sender, volume, epoch),
            Ask::Lease { duration_us } => {
                self.grant(now, sender, volume, Duration::from_micros(duration_us))
            }
            Ask::Release => {
                if let Some(side) = self.volumes.get_mut(&volume) {
                    side.grants.retain(|(who, _)| *who != sender);
                }
                Answer::Ok
            }
            Ask::Nop => Answer::Ok,
            Ask::Undecided { group } => self.undecided_of(volume, group),
            Ask::Vetted { incarnation } => {
                if incarnation == self.opened.incarnation {
                    self.vetted(volume);
                }
                Answer::Ok
            }
            Ask::PrepData { row, slot, update, base, wid, record } => {
                self.prep_data(at(row, slot), update, base, wid, record)?
            }
            Ask::PrepDelta { row, slot, update, changed, delta, fingerprint } => {
                self.prep_delta(at(row, slot), update, &changed, &delta, fingerprint)?
            }
            Ask::PrepFull { row, slot, update, wid, vec, record } => {
                self.prep_full(at(row, slot), update, wid, vec, record)?
            }
            Ask::Abort { row, slot, ver } => self.abort(at(row, slot), ver)?,
            Ask::AbortNewer { row, slot, than } => self.abort_newer(at(row, slot), than)?,
            Ask::Freeze { row, slot, frozen } => self.freeze(at(row, slot), frozen)?,
            Ask::Install { row, slot, meta, record, expect } => {
                self.install(at(row, slot), meta, record, expect)?
            }
            Ask::Restore { row, slot, versions, keep, expect } => {
                self.restore(at(row, slot), versions, &keep, expect)?
            }
            read @ (Ask::Fetch { .. }
            | Ask::Versions { .. }
            | Ask::Scan { .. }
            | Ask::Changed { .. }
            | Ask::Digest { .. }
            | Ask::Prove { .. }
            | Ask::Confirm) => {
                // Served in order here too, but it must not see a change that is not yet durable:
                // whoever calls this flushes before reads (the shell sends them past this core).
                read::serve(self.store.as_ref(), volume, &read)?
            }
        })
    }

    /// What it holds was compared with the others.
    fn vetted(&mut self, volume: VolumeNo) {
        if let Some(side) = self.volumes.get_mut(&volume) {
            side.vetted = true;
            side.state.doubted = None;
            side.dirty = true;
            side.doubtful.clear();
            side.sweep = true;
        }
        self.indexes_vetted(volume);
    }

    /// A store that accepts anything in an epoch serves no older one any more, not even after a
    /// restart with an older map. Stores that were out of sync in the takeover come to know the
    /// epoch this way.
    fn raise_promise(&mut self, volume: VolumeNo, epoch: Epoch) {
        if let Some(side) = self.volumes.get_mut(&volume)
            && side.state.promised < epoch
        {
            side.state.promised = epoch;
            side.dirty = true;
            self.must_sync = true;
        }
    }

    fn promise(
        &mut self,
        now: Time,
        sender: Coordinating,
        volume: VolumeNo,
        epoch: Epoch,
    ) -> Answer {
        let lease_max = lease_granted(self.config.lease_max);
        let Some(side) = self.volumes.get_mut(&volume) else {
            return Answer::Rejected(Reject::Invalid);
        };
        side.grants.retain(|(_, until)| *until > now);
        let others = side.grants.iter().filter(|(who, _)| *who != sender);
        let others = others.filter(|_| !lives(Mutant::PromiseOverLease));
        let mut wait_until = others.map(|(_, until)| *until).max().unwrap_or(now);
        // Whatever this store granted before it went down it has forgotten; nothing was granted
        // where nothing was ever promised, if that can be believed.
        let granted = side.state.promised > Epoch(0) || !self.opened.clean;
        let anew = granted && side.leases && side.state.promised < epoch;
        if anew && !lives(Mutant::NoBootWait) {
            wait_until = wait_until.max(self.boot.after(lease_max));
        }
        if wait_until > now {
            let wait = wait_until.since(now).as_micros();
            return Answer::PromiseLater(u64::try_from(wait).unwrap_or(u64::MAX));
        }
        if side.state.promised < epoch {
            side.state.promised = epoch;
            side.dirty = true;
        }
        side.unsettled = Some(BTreeSet::new());
        self.must_sync |= !lives(Mutant::PromiseUnsynced);
        let suspect = !self.opened.clean && !side.vetted;
        Answer::Promised {
            incarnation: self.opened.incarnation,
            suspect,
            went_back: suspect && self.opened.went_back,
            watermark: side.state.doubted.unwrap_or(side.state.watermark),
            prepared: side.prepared.keys().map(|at| (at.row, at.slot)).collect(),
        }
    }

    fn grant(
        &mut self,
        now: Time,
        sender: Coordinating,
        volume: VolumeNo,
        lease: Duration,
    ) -> Answer {
        let Some(side) = self.volumes.get_mut(&volume) else {
            return Answer::Rejected(Reject::Invalid);
        };
        // Nobody would wait for it to run out.
        if lease > self.config.lease_max || !side.leases {
            return Answer::Rejected(Reject::Invalid);
        }
        side.grants.retain(|(who, until)| *who != sender && *until > now);
        side.grants.push((sender, now.after(lease_granted(lease))));
        Answer::Granted
    }
}

#[cfg(test)]
mod tests;
