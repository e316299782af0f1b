//! Prepares, commits, aborts and installs: everything that changes rows.

use super::{Room, StoreCore};
use crate::invariant::invariant;
use crate::msg::{Answer, Changed, FROZEN, Reject, UNREADABLE, Update};
use bytes::Bytes;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::code::Fingerprint;
use smalti_storage::ids::{RowSlot, Ver, VolumeNo, Wid};
use smalti_storage::store::{Change, StoreError, VecEntry, VersionMeta};

type Answered = Result<Answer, StoreError>;

/// Stands where a record is lost: it never verifies, so whoever reads it hears that it is wrong.
const LOST: &[u8] = b"lost";

impl StoreCore {
    pub(super) fn prep_data(
        &mut self,
        at: RowSlot,
        update: Update,
        base: Ver,
        wid: Wid,
        record: Bytes,
    ) -> Answered {
        if let Some(answer) = self.before_prepare(at, update.ver, Some(base), Some(&record))? {
            return Ok(answer);
        }
        let row = self.rows.at(at)?;
        if row.head_ver() != base {
            return Ok(Answer::Rejected(Reject::Base { have: row.head_ver() }));
        }
        if row.head().is_some_and(|head| wid <= head.wid) && !lives(Mutant::OldWriteApplied) {
            return Ok(Answer::Rejected(Reject::OldWid));
        }
        let meta = new_version(update, base, wid, Vec::new(), &record).sealed_for(at, &record);
        self.put_prepared(at, meta, record)
    }

    pub(super) fn prep_delta(
        &mut self,
        at: RowSlot,
        update: Update,
        changed: &[Changed],
        delta: &Bytes,
        fingerprint: Fingerprint,
    ) -> Answered {
        // The base of a parity slot is the version its vector stands at, whichever that is: the
        // entries of the changed slots are what must match.
        if let Some(answer) = self.before_prepare(at, update.ver, None, None)? {
            return Ok(answer);
        }
        let head = self.rows.at(at)?.head().cloned();
        let head = head.unwrap_or_default();
        let mut vec = head.vec.clone();
        for change in changed {
            let j = change.slot.index();
            if j >= 32 {
                return Ok(Answer::Rejected(Reject::Invalid));
            }
            if vec.len() <= j {
                // A row this parity slot never saw has an empty vector: all entries are NONE.
                vec.resize(j + 1, VecEntry::default());
            }
            if vec[j].ver != change.base && !lives(Mutant::DeltaWithoutBase) {
                return Ok(Answer::Rejected(Reject::Base { have: head.ver }));
            }
            if change.wid <= vec[j].wid && !lives(Mutant::OldWriteApplied) {
                return Ok(Answer::Rejected(Reject::OldWid));
            }
            vec[j] = VecEntry { ver: update.ver, wid: change.wid, snap: update.snap };
        }
        let record = match self.rows.verified_record(at, &head)? {
            _ if head.ver.is_none() => Bytes::new(),
            Some(record) => record,
            None if lives(Mutant::DeltaUnverified) => {
                self.store.record(at, head.ver)?.unwrap_or_default()
            }
            None => return Ok(Answer::Rejected(Reject::Corrupt)),
        };
        let Some(sum) = add_delta(&record, delta) else {
            return Ok(Answer::Rejected(Reject::Invalid));
        };
        let (old, new) = (Fingerprint::of(&record), Fingerprint::of(&sum));
        let (Ok(old), Ok(new)) = (old, new) else {
            return Ok(Answer::Rejected(Reject::Invalid));
        };
        if new != old ^ fingerprint && !lives(Mutant::FingerprintUnchecked) {
            return Ok(Answer::Rejected(Reject::Fingerprint));
        }
        let record = sum;
        if self.lacks_room_for(Some(&record)) {
            return Ok(Answer::Rejected(Reject::NoSpace));
        }
        let wid = vec.iter().map(|entry| entry.wid).max().unwrap_or_default();
        let meta = new_version(update, head.ver, wid, vec, &record).sealed_for(at, &record);
        self.put_prepared(at, meta, record)
    }

    pub(super) fn prep_full(
        &mut self,
        at: RowSlot,
        update: Update,
        wid: Wid,
        vec: Vec<VecEntry>,
        record: Bytes,
    ) -> Answered {
        if let Some(answer) = self.before_prepare(at, update.ver, None, Some(&record))? {
            return Ok(answer);
        }
        let row = self.rows.at(at)?;
        // A parity slot has to look at every block's write: with enough parity a takeover completes
        // the row from parity alone, whatever the data slots refused.
        let old = |head: &VersionMeta| {
            if vec.is_empty() {
                wid <= head.wid
            } else {
                vec.iter().zip(&head.vec).any(|(new, held)| new.wid <= held.wid)
                    && !lives(Mutant::LateWholeRow)
            }
        };
        if row.head().is_some_and(old) && !lives(Mutant::OldWriteApplied) {
            return Ok(Answer::Rejected(Reject::OldWid));
        }
        let base = row.head_ver();
        let meta = new_version(update, base, wid, vec, &record).sealed_for(at, &record);
        self.put_prepared(at, meta, record)
    }

    /// What every prepare has in common: repeated ones are simply confirmed, late ones refused,
    /// and an undecided version that this one was not built on is dropped. `record` is what the
    /// slot is to hold, if that is known already.
    fn before_prepare(
        &mut self,
        at: RowSlot,
        ver: Ver,
        base: Option<Ver>,
        record: Option<&Bytes>,
    ) -> Result<Option<Answer>, StoreError> {
        if let Some(side) = self.volumes.get(&at.volume) {
            let unsettled = side.unsettled.as_ref().is_none_or(|u| u.contains(&at.row.group));
            if unsettled && !lives(Mutant::PrepareUnsettled) {
                // The next epoch begins without this store, or with its promise.
                return Ok(Some(Answer::Rejected(Reject::StaleEpoch { known: side.epoch })));
            }
            if side.prepared.get(&at).is_some_and(|ver| is_sign(*ver)) {
                return Ok(Some(Answer::Corrupt));
            }
        }
        let row = self.rows.at(at)?;
        if row.corrupt {
            return Ok(Some(Answer::Corrupt));
        }
        if row.has(ver) {
            // It may be of a batch that is still being collected.
            self.must_sync = true;
            return Ok(Some(Answer::Ok));
        }
        let have = row.head_ver();
        let Some(side) = self.volumes.get(&at.volume) else {
            return Ok(Some(Answer::Rejected(Reject::Invalid)));
        };
        let passed = ver <= side.state.watermark && !lives(Mutant::PrepareBelowWatermark);
        if passed || ver.epoch > side.epoch {
            return Ok(Some(Answer::Rejected(Reject::Invalid)));
        }
        if ver < have && !lives(Mutant::PrepareBelowHead) {
            // A late one for a slot that was repaired past it meanwhile.
            return Ok(Some(Answer::Rejected(Reject::Base { have })));
        }
        if self.lacks_room_for(record) {
            return Ok(Some(Answer::Rejected(Reject::NoSpace)));
        }
        let undecided = side.prepared.get(&at).copied();
        if let (Some(undecided), Some(base)) = (undecided, base)
            && undecided != base
        {
            let row = self.rows.at(at)?;
            let built_on = row.versions.iter().find(|meta| meta.ver == undecided);
            if built_on.is_some_and(|meta| meta.base == base) {
                self.drop_undecided(at, undecided)?;
            }
        }
        Ok(None)
    }

    /// An absent record takes no space and gives back what was there.
    fn lacks_room_for(&self, record: Option<&Bytes>) -> bool {
        match self.room {
            Room::All => false,
            Room::Freeing => record.is_some_and(|record| !record.is_empty()),
            Room::Nothing => true,
        }
    }

    /// What a slot lacks may be more than there is room for: on a full disk it only gets records in place
    /// of others, and with hardly anything free none. What is left is for aborts and compactions, and a
    /// disk without any is a store lost.
    fn lacks_room_to_restore(
        &mut self,
        at: RowSlot,
        versions: &[(VersionMeta, Bytes)],
        keep: &[Ver],
    ) -> Result<bool, StoreError> {
        if self.room == Room::All {
            return Ok(false);
        }
        let puts = versions.iter().filter(|(_, record)| !record.is_empty()).count();
        let row = self.rows.at(at)?;
        let given_back =
            row.versions.iter().filter(|held| held.present && !keep.contains(&held.ver));
        let frees = if row.corrupt { puts } else { given_back.count() };
        Ok(puts > if self.room == Room::Freeing { frees } else { 0 })
    }

    /// An update is only ever built on a committed version, so what is older than its base has
    /// had its time. Without this a row that is written again and again while the watermark
    /// stands still would collect versions without end.
    fn put_prepared(&mut self, at: RowSlot, meta: VersionMeta, record: Bytes) -> Answered {
        let (ver, base) = (meta.ver, meta.base);
        self.note(at);
        self.delete_older(at, if lives(Mutant::CollectEarly) { ver } else { base })?;
        self.put_version(at, meta, record)?;
        self.mark(at, ver);
        self.must_sync |= !lives(Mutant::AckUnsynced);
        Ok(Answer::Ok)
    }

    fn put_version(
        &mut self,
        at: RowSlot,
        meta: VersionMeta,
        record: Bytes,
    ) -> Result<(), StoreError> {
        let fresh = !self.rows.at(at)?.has(meta.ver);
        invariant!("I2", !meta.ver.is_none(), "a version of {at} without a number");
        self.rows.put(at, meta.clone(), record.clone())?;
        self.batch.changes.push(Change::PutVersion { at, meta, record, fresh });
        Ok(())
    }

    /// Deletes what is older than the committed version `limit` and held by no snapshot.
    pub(super) fn delete_older(&mut self, at: RowSlot, limit: Ver) -> Result<(), StoreError> {
        let side = self.volumes.get(&at.volume);
        let snaps = side.map(|side| &side.snaps).filter(|_| !lives(Mutant::ForgetHeld));
        let mut newer = None;
        let mut older = Vec::new();
        for meta in &self.rows.at(at)?.versions {
            let held = newer.is_some_and(|newer| snaps.is_some_and(|s| s.hold(meta.snap, newer)));
            newer = Some(meta.snap);
            if meta.ver < limit && !held {
                older.push(meta.ver);
            }
        }
        older.into_iter().try_for_each(|ver| self.delete_version(at, ver))
    }

    fn delete_version(&mut self, at: RowSlot, ver: Ver) -> Result<(), StoreError> {
        self.rows.delete(at, ver)?;
        self.batch.changes.push(Change::DeleteVersion { at, ver });
        Ok(())
    }

    fn mark(&mut self, at: RowSlot, ver: Ver) {
        if let Some(side) = self.volumes.get_mut(&at.volume) {
            if let Some(older) = side.prepared.insert(at, ver) {
                side.by_ver.remove(&older);
            }
            side.doubtful.remove(&at);
            if !is_sign(ver) {
                side.by_ver.insert(ver, at);
            }
            self.batch.changes.push(Change::SetPrepared { at, ver });
        }
    }

    fn unmark(&mut self, at: RowSlot) {
        if let Some(side) = self.volumes.get_mut(&at.volume)
            && let Some(ver) = side.prepared.remove(&at)
        {
            side.by_ver.remove(&ver);
            side.doubtful.remove(&at);
            self.batch.changes.push(Change::ClearPrepared { at });
        }
    }

    fn drop_undecided(&mut self, at: RowSlot, ver: Ver) -> Result<(), StoreError> {
        self.delete_version(at, ver)?;
        self.unmark(at);
        Ok(())
    }

    /// Everything up to `watermark` is committed: older versions of those rows may go.
    pub(super) fn advance_watermark(
        &mut self,
        volume: VolumeNo,
        watermark: Ver,
    ) -> Result<(), StoreError> {
        let Some(side) = self.volumes.get_mut(&volume) else { return Ok(()) };
        if watermark > side.state.watermark {
            side.state.watermark = watermark;
            side.dirty = true;
        } else if !std::mem::take(&mut side.sweep) {
            return Ok(());
        }
        side.sweep = false;
        let watermark = side.state.watermark;
        let committed: Vec<_> = side
            .by_ver
            .range(..=watermark)
            .filter(|(_, at)| side.is_told_of(at.row.group) || lives(Mutant::WatermarkOutOfSync))
            .filter(|(_, at)| !side.doubtful.contains(at))
            .map(|(ver, at)| (*ver, *at))
            .collect();
        for (ver, at) in committed {
            if self.rows.at(at)?.corrupt {
                continue;
            }
            self.delete_older(at, ver)?;
            self.unmark(at);
        }
        Ok(())
    }

    pub(super) fn abort(&mut self, at: RowSlot, ver: Ver) -> Answered {
        self.must_sync = true;
        let Some(side) = self.volumes.get(&at.volume) else {
            return Ok(Answer::Rejected(Reject::Invalid));
        };
        let mark = side.prepared.get(&at).copied();
        let row = self.rows.at(at)?;
        if row.corrupt {
            return self.abort_unread(at, ver, mark);
        }
        let marked = mark == Some(ver) || mark == Some(FROZEN) && row.head_ver() == ver;
        if row.has(ver) {
            if !marked {
                // Committed: nobody may take that back.
                return Ok(Answer::Rejected(Reject::Invalid));
            }
            self.drop_undecided(at, ver)?;
            // What was passed over while something was undecided here.
            let head = self.rows.at(at)?.head_ver();
            self.delete_older(at, head)?;
        }
        Ok(Answer::Ok)
    }

    /// What can not be read may have been taken a moment ago, from memory. Left as it is, the watermark
    /// would pass it: it would be committed here, and nowhere else. Which one of a frozen row it is
    /// nobody can tell now: the takeover that could begins anew.
    fn abort_unread(&mut self, at: RowSlot, ver: Ver, mark: Option<Ver>) -> Answered {
        self.rows.forget_after_batch(at);
        if mark == Some(FROZEN) {
            return Ok(Answer::Corrupt);
        }
        if mark == Some(ver) {
            self.drop_undecided(at, ver)?;
            self.mark(at, UNREADABLE);
        }
        Ok(Answer::Ok)
    }

    /// Whatever can be read of the slot, it is known which version of it is undecided.
    pub(super) fn abort_newer(&mut self, at: RowSlot, than: Ver) -> Answered {
        self.must_sync = true;
        let Some(side) = self.volumes.get(&at.volume) else {
            return Ok(Answer::Rejected(Reject::Invalid));
        };
        let undecided = side.prepared.get(&at).copied();
        // In memory it may be whole still, and lack what is completed on the others now: nothing may
        // be built on it before it was repaired.
        self.rows.reload(at);
        let undecided = match undecided {
            Some(FROZEN) => Some(self.rows.at(at)?.head_ver()).filter(|ver| !ver.is_none()),
            other => other.filter(|ver| *ver != UNREADABLE),
        };
        if let Some(ver) = undecided.filter(|ver| *ver > than) {
            self.drop_undecided(at, ver)?;
        }
        // Whoever takes over next is to know, if this coordinator does not come to repair it.
        if !lives(Mutant::UnreadableForgotten) {
            self.mark(at, UNREADABLE);
        }
        self.rows.forget_after_batch(at);
        Ok(Answer::Ok)
    }

    /// Takes what is undecided of a slot out of the reach of watermarks, or gives it back.
    pub(super) fn freeze(&mut self, at: RowSlot, frozen: bool) -> Answered {
        self.must_sync = true;
        let mark = self.volumes.get(&at.volume).and_then(|side| side.prepared.get(&at)).copied();
        match mark {
            Some(ver) if frozen && ver != UNREADABLE => self.mark(at, FROZEN),
            Some(FROZEN) if !frozen => {
                if self.rows.at(at)?.corrupt {
                    // Without a mark what it holds undecided would pass for committed. With this one
                    // nothing is built on the slot until it was restored.
                    return Ok(Answer::Ok);
                }
                let newest = self.rows.at(at)?.head_ver();
                self.unmark(at);
                if !newest.is_none() {
                    self.mark(at, newest);
                }
            }
            _ => {}
        }
        Ok(Answer::Ok)
    }

    pub(super) fn install(
        &mut self,
        at: RowSlot,
        meta: VersionMeta,
        record: Bytes,
        expect: Ver,
    ) -> Answered {
        self.must_sync = true;
        if meta.present == record.is_empty() {
            return Ok(Answer::Rejected(Reject::Invalid));
        }
        if self.is_corrupt(at, expect)? {
            // Without what lies beneath it would pass for all that the slot ever held.
            return Ok(Answer::Corrupt);
        }
        self.note(at);
        let meta = meta.sealed_for(at, &record);
        let (ver, head) = (meta.ver, self.rows.at(at)?.head().cloned());
        let have = head.as_ref().map_or(Ver::NONE, |head| head.ver);
        if have == ver
            && let Some(head) = head
        {
            if self.rows.verified_record(at, &head)?.is_none() {
                self.delete_version(at, ver)?;
                self.put_version(at, meta, record)?;
            }
            self.mark(at, ver);
            return Ok(Answer::Ok);
        }
        if have != expect && !lives(Mutant::InstallBlindly) {
            return Ok(Answer::Rejected(Reject::Base { have }));
        }
        self.put_version(at, meta, record)?;
        self.mark(at, ver);
        Ok(Answer::Ok)
    }

    pub(super) fn restore(
        &mut self,
        at: RowSlot,
        versions: Vec<(VersionMeta, Bytes)>,
        keep: &[Ver],
        expect: Ver,
    ) -> Answered {
        self.must_sync = true;
        if versions.iter().any(|(meta, record)| !meta.present && !record.is_empty()) {
            return Ok(Answer::Rejected(Reject::Invalid));
        }
        let corrupt = self.is_corrupt(at, expect)?;
        if self.lacks_room_to_restore(at, &versions, keep)? {
            return Ok(Answer::Rejected(Reject::NoSpace));
        }
        if corrupt && !keep.is_empty() {
            // It has nothing to keep. Whoever looked at it before must bring everything, and until
            // then it stays as it is: left empty it would pass for one that was never written.
            return Ok(Answer::Rejected(Reject::Base { have: Ver::NONE }));
        }
        self.note(at);
        self.clear_corrupt(at)?;
        let row = self.rows.at(at)?;
        let have = row.head_ver();
        let nothing = versions.is_empty() && keep.is_empty();
        if have.is_none() && nothing {
            self.unmark(at);
            return Ok(Answer::Ok);
        }
        let expected = have == expect || corrupt || lives(Mutant::InstallBlindly) && !nothing;
        if !expected || keep.iter().any(|ver| !row.has(*ver)) {
            return Ok(Answer::Rejected(Reject::Base { have }));
        }
        let held: Vec<Ver> = row.versions.iter().map(|meta| meta.ver).collect();
        for ver in held.into_iter().filter(|ver| !keep.contains(ver)) {
            self.delete_version(at, ver)?;
        }
        for (meta, record) in versions {
            if meta.present && record.is_empty() {
                // Nobody can construct it: bytes that are no record's, under a hash that is none's.
                let hash = smalti_storage::store::RecordHash::default();
                self.put_version(at, VersionMeta { hash, ..meta }, Bytes::from_static(LOST))?;
            } else {
                self.put_version(at, meta.sealed_for(at, &record), record)?;
            }
        }
        self.unmark(at);
        // It may have been sent before a snapshot was deleted, and come after the pass for that.
        let head = self.rows.at(at)?.head_ver();
        self.delete_older(at, head)?;
        Ok(Answer::Ok)
    }

    /// Whether the metadata can not be read, on the disk that is: in memory it may be whole still.
    fn is_corrupt(&mut self, at: RowSlot, expect: Ver) -> Result<bool, StoreError> {
        if self.rows.at(at)?.head_ver() != expect {
            self.rows.reload(at);
        }
        Ok(self.rows.at(at)?.corrupt)
    }

    /// Forgets a row slot whose metadata can not be read: there is no other way to replace it, and
    /// whoever calls this does so in the same batch.
    fn clear_corrupt(&mut self, at: RowSlot) -> Result<(), StoreError> {
        if self.rows.at(at)?.corrupt {
            self.rows.drop_slot(at)?;
            self.unmark(at);
            self.batch.changes.push(Change::DropSlot { at });
        }
        Ok(())
    }
}

/// Whether a mark says something else of a slot than which version of it is undecided.
pub(super) fn is_sign(mark: Ver) -> bool {
    mark == UNREADABLE || mark == FROZEN
}

fn new_version(
    update: Update,
    base: Ver,
    wid: Wid,
    vec: Vec<VecEntry>,
    record: &[u8],
) -> VersionMeta {
    VersionMeta {
        ver: update.ver,
        base,
        touched: update.touched,
        snap: update.snap,
        wid,
        vec,
        present: !record.is_empty(),
        hash: smalti_storage::store::RecordHash::default(),
    }
}

/// `record + delta` over GF(2); empty stands for all zeroes on both sides.
fn add_delta(record: &Bytes, delta: &Bytes) -> Option<Bytes> {
    if delta.is_empty() {
        return Some(record.clone());
    }
    if record.is_empty() {
        return Some(if delta.iter().all(|byte| *byte == 0) {
            Bytes::new()
        } else {
            delta.clone()
        });
    }
    if record.len() != delta.len() {
        return None;
    }
    // A vector knows the length beforehand and is filled many bytes at a time.
    let sum: Vec<u8> = record.iter().zip(delta.iter()).map(|(a, b)| a ^ b).collect();
    Some(if sum.iter().all(|byte| *byte == 0) { Bytes::new() } else { sum.into() })
}
